"""Name the faults of a cast by testing hypotheses about it.

Each suspected mistake is a change to a model of the right cast: it truncates, it rounds to float32 first, it flushes
subnormal results. Together the suspects make a model of the wrong cast, and a model predicts a result for every input.
From the right cast on, the suspect is added that mends most predictions and spoils fewest, as long as one does; a
suspect may be confined: to negative inputs, to magnitudes from some power of two on, to the last elements of an array.
What no model predicts is counted as unexplained.

The models are written in float64, apart from the compiled roundings: a value divided by the spacing of the target is
below 2^24 and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.codes import code_dtype, encode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.rounding import Array, round_to
from precision_lab.testing.hard_inputs import Source

Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]

NAN = 1 << 40  # stands for every code of a NaN
NO_VALUE = 1 << 41  # a float that is no value of the target
_SHARE = 0.6  # of what a mistake changes that must become right, less what becomes wrong
_FEWEST = 5  # rows that a mistake must explain for it to be confined to some place


class Spec(NamedTuple):
    """What a cast should do."""

    source: Source
    target: FloatFormat
    mode: str
    subnormals: bool
    saturate: bool
    nan: str


class Rows(NamedTuple):
    """Inputs that were tried, each with what came back and where it stood.

    Attributes
    ----------
    patterns, values : ndarray
        Of the inputs.
    expected, got : ndarray of int64
        Codes; NAN for every NaN, NO_VALUE for what is no value of the target.
    raw : ndarray of int64
        The codes as they came, -1 where there was none.
    stored : ndarray of float64
        The values that came.
    position, length, address : ndarray of int64
        Where the input stood, in an array of how many, at which byte of 64 that began.

    """

    patterns: Array
    values: NDArray[np.float64]
    expected: Codes
    got: Codes
    raw: Codes
    stored: NDArray[np.float64]
    position: Codes
    length: Codes
    address: Codes

    def take(self, chosen: Any) -> Rows:
        """Return some of the rows."""
        return Rows(*(column[chosen] for column in self))


def canonical(codes: Array, target: FloatFormat) -> Codes:
    """Return codes with one number for all NaNs."""
    wide = codes.astype(np.int64)
    if not target.has_nan:
        return wide
    magnitude = wide & ((1 << (target.bits - 1)) - 1)
    if target.specials == "ieee":
        is_nan = magnitude > (2**target.exponent_bits - 1) << target.mantissa_bits
    elif target.specials == "fn":
        is_nan = magnitude == 2 ** (target.bits - 1) - 1
    else:
        is_nan = wide == 2 ** (target.bits - 1)
    return np.where(is_nan, NAN, wide)


@dataclass(frozen=True)
class Model:
    """A cast, right or wrong; every field that is not empty is one mistake."""

    flushes_inputs: bool = False
    scale: int = 0  # a power of two
    via: FloatFormat | int | None = None  # a format, or a number of significand bits
    via_mode: str = "ties_to_even"
    mode: str = ""
    looks_at: int | None = None  # bits beyond the last
    carry: str = ""
    flushes: str = ""
    overflows_from: str = ""
    overflows_to: str = ""
    infinity_to: str = ""
    loses_sign: str = ""


class Suspect(NamedTuple):
    """A mistake: its short name, what it means, and what it changes in the model."""

    name: str
    text: str
    changes: dict[str, Any]


class Condition(NamedTuple):
    """Where a mistake shows."""

    text: str
    holds: Callable[[Rows], Mask]


class Finding(NamedTuple):
    """A mistake that was found."""

    suspect: Suspect
    condition: Condition


EVERYWHERE = Condition("", lambda rows: np.ones(rows.values.shape, np.bool_))


def _goes_away(mode: str, rest: Array, odd: Mask, negative: Mask) -> Mask:
    """Return where the value with this rest, in spacings, goes to the larger magnitude."""
    tie, above, inexact = rest == 0.5, rest > 0.5, rest > 0
    rules: dict[str, Callable[[], Mask]] = {
        "ties_to_even": lambda: above | (tie & odd),
        "ties_to_away": lambda: above | tie,
        "ties_to_zero": lambda: above,
        "ties_to_odd": lambda: above | (tie & ~odd),
        "ties_upward": lambda: above | (tie & ~negative),
        "ties_downward": lambda: above | (tie & negative),
        "toward_zero": lambda: np.zeros_like(tie),
        "away_from_zero": lambda: inexact,
        "toward_positive": lambda: inexact & ~negative,
        "toward_negative": lambda: inexact & negative,
        "to_odd": lambda: inexact & ~odd,
        "only_odd_ties": lambda: tie & odd,
    }
    return rules[mode]()


def _to_bits(v: Array, bits: int, mode: str) -> Array:
    """Round magnitudes to so many significand bits, without limits to the exponent."""
    fraction, exponent = np.frexp(v)
    scaled = np.ldexp(fraction, bits)
    below = np.floor(scaled)
    away = _goes_away(mode, scaled - below, below % 2 == 1, np.zeros(v.shape, np.bool_))
    with np.errstate(over="ignore"):
        result: Array = np.ldexp(below + away, exponent - bits)
    return result


def predict(model: Model, x: NDArray[np.float64], spec: Spec) -> Codes:
    """Return the codes that a cast with these mistakes gives for numbers that are not NaN."""
    target = spec.target
    mantissa = target.mantissa_bits
    negative, v = np.signbit(x), np.abs(x)
    flushed = np.zeros(v.shape, np.bool_)
    if model.flushes_inputs:
        flushed = (v > 0) & (v < spec.source.smallest_normal)
        v = np.where(flushed, 0.0, v)
    with np.errstate(over="ignore", under="ignore"):
        if model.scale:
            v = np.ldexp(v, model.scale)
        if isinstance(model.via, FloatFormat):
            signed = np.where(negative, -v, v)
            v = np.abs(np.asarray(round_to(signed, model.via, model.via_mode)))
        elif model.via is not None:
            finite = np.isfinite(v)
            v = np.where(finite, _to_bits(np.where(finite, v, 0.0), model.via, model.via_mode), v)
    infinite, nan = np.isinf(x), np.isnan(v)
    overflowed = np.isinf(v) & ~infinite  # on the way
    usual = np.where(np.isinf(v) | nan, 0.0, v)

    _, exponent = np.frexp(np.where(usual > 0, usual, target.smallest_subnormal))
    exponent = np.maximum(exponent - 1, target.emin)
    scaled = np.ldexp(usual, mantissa - exponent)
    below = np.floor(scaled)
    odd, rest = below % 2 == 1, scaled - below
    if model.looks_at is not None:
        rest = np.ldexp(np.floor(np.ldexp(rest, model.looks_at)), -model.looks_at)
    away = _goes_away(model.mode or spec.mode, rest, odd, negative)
    significand = below + away
    if model.carry:
        lost = away & (significand == 2.0 ** (mantissa + 1))
        significand = np.where(lost, below if model.carry == "sticks" else 2.0**mantissa, significand)
    with np.errstate(over="ignore"):
        r = np.ldexp(significand, exponent - mantissa)

    if model.flushes in ("before", "after") or not (spec.subnormals or model.flushes):
        tiny = (usual if model.flushes == "before" else r) < target.smallest_normal
        flushed = flushed | (tiny & (usual > 0))
        r = np.where(tiny, 0.0, r)

    code_bits = np.asarray(encode(np.minimum(r, target.max), target)).astype(np.int64)
    over = {
        "": r > target.max,
        "max": usual > target.max,
        "tie": usual >= target.overflow_threshold,
        "past tie": usual > target.overflow_threshold,
        "next binade": usual >= 2.0 ** (target.emax + 1),
        "top binade": r >= 2.0**target.emax,
    }[model.overflows_from]
    over = over | overflowed
    code_bits = np.where(over, _beyond(model.overflows_to, r, negative, spec), code_bits)
    code_bits = np.where(infinite, _infinity(model.infinity_to, spec), code_bits)

    zero = code_bits == 0
    drops = {
        "": np.zeros_like(zero),
        "zeros": zero & (x == 0),
        "rounded": zero & (x != 0),
        "flushed": flushed,
        "all": zero,
    }[model.loses_sign]
    if model.overflows_to == "positive zero":
        drops = drops | over
    sign = np.where(negative & ~drops, 1 << (target.bits - 1), 0)
    if not target.has_negative_zero:
        sign = np.where(zero, 0, sign)
    codes = np.where(code_bits >= NAN, NAN, code_bits | sign)
    return canonical(np.where(nan, NAN, codes), target)


def _infinity(to: str, spec: Spec) -> int:
    """Return the magnitude of the code that infinity becomes."""
    target = spec.target
    largest = int(encode(target.max, target))
    if to == "":
        to = "max" if spec.saturate or target.saturates else "infinity"
    if to == "infinity" and not target.has_infinity:
        to = "nan"
    if to == "nan" and not target.has_nan:
        to = "max"
    return {"infinity": largest + 1, "max": largest, "nan": NAN, "zero": 0, "positive zero": 0}[to]


def _beyond(to: str, r: Array, negative: Mask, spec: Spec) -> Codes:
    """Return the magnitudes of the codes of results beyond the largest value."""
    target = spec.target
    if to == "wraps":
        fraction, exponent = np.frexp(np.where((r > 0) & np.isfinite(r), r, 1.0))
        significand = np.ldexp(fraction, target.precision).astype(np.int64) - 2**target.mantissa_bits
        code = ((exponent.astype(np.int64) - 1 + target.bias) << target.mantissa_bits) + significand
        return canonical(code & ((1 << (target.bits - 1)) - 1), target)
    if to:
        return np.full(r.shape, _infinity(to, spec))
    usual, largest = _infinity("", spec), int(encode(target.max, target))
    stays = {
        "toward_zero": np.ones_like(negative),
        "to_odd": np.ones_like(negative),
        "toward_positive": negative,
        "toward_negative": ~negative,
    }.get(spec.mode, np.zeros_like(negative))
    return np.where(stays, largest, usual)


def suspects(spec: Spec) -> list[Suspect]:
    """Return every mistake that could be told from right, the simple ones first."""
    source, target = spec.source, spec.target
    beyond = "infinity" if target.has_infinity else "NaN" if target.has_nan else "the largest value"
    modes = {
        "toward_zero": ("truncates", "rounds toward zero"),
        "ties_to_away": ("ties away", "rounds ties away from zero"),
        "ties_to_even": ("ties to even", "rounds ties to even"),
        "ties_to_zero": ("ties toward zero", "rounds ties toward zero (half down)"),
        "ties_upward": ("ties upward", "rounds ties toward +infinity (half up)"),
        "ties_downward": ("ties downward", "rounds ties toward -infinity"),
        "ties_to_odd": ("ties to odd", "rounds ties to odd"),
        "toward_positive": ("rounds up", "rounds toward +infinity"),
        "toward_negative": ("rounds down", "rounds toward -infinity"),
        "away_from_zero": ("rounds away", "rounds everything inexact away from zero"),
        "to_odd": ("rounds to odd", "rounds everything inexact to odd"),
        "only_odd_ties": ("rounds only ties up", "rounds toward zero all but ties"),
    }
    mistakes = [Suspect(*modes[mode], {"mode": mode}) for mode in modes if mode != spec.mode]
    for name in ("fp32", "fp16", "bf16", "tf32"):
        fmt = FORMATS[name]
        if fmt in (source.format, target) or fmt.mantissa_bits >= source.mantissa_bits:
            continue
        if fmt.precision < target.precision:
            mistakes.append(
                Suspect(f"passes through {name}", f"what {name} cannot hold is lost on the way", {"via": fmt})
            )
            continue
        chopped = {"via": fmt, "via_mode": "toward_zero"}
        mistakes += [
            Suspect(f"rounds twice, via {name}", f"to {name} first, then to {target}", {"via": fmt}),
            Suspect(f"truncates to {name} first", f"truncates to {name}, then rounds to {target}", chopped),
        ]
    for bits in range(target.precision, source.mantissa_bits + 1):
        then = "subnormal results once more to their spacing" if bits == target.precision else f"to {target}"
        text = f"to {bits} significand bits first, then {then}"
        mistakes.append(Suspect(f"rounds twice, via {bits} bits", text, {"via": bits}))
    for bits in range(1, source.mantissa_bits - target.mantissa_bits):
        text = f"looks at {bits} bit{'s' * (bits > 1)} beyond the last one kept and ignores those below"
        mistakes.append(Suspect("ignores low bits", text, {"looks_at": bits}))
    if spec.subnormals:
        mistakes += [
            Suspect("flushes subnormal results", "subnormal results become zero", {"flushes": "after"}),
        ]
    else:
        text = "subnormal results are kept, where zero was asked for"
        mistakes.append(Suspect("keeps subnormal results", text, {"flushes": "never"}))
    if spec.subnormals and source.smallest_normal < target.smallest_normal:  # else it is the next
        text = "subnormal results become zero, even those that would round to the smallest normal"
        mistakes.append(Suspect("flushes subnormal results", text, {"flushes": "before"}))
    mistakes += [
        Suspect("flushes subnormal inputs", "takes subnormal inputs for zero", {"flushes_inputs": True}),
        Suspect("loses the sign of zero", "-0.0 becomes +0.0", {"loses_sign": "zeros"}),
        Suspect("loses the sign of zero", "every zero result is +0.0", {"loses_sign": "all"}),
        Suspect("loses the sign of flushed values", "what is flushed becomes +0.0", {"loses_sign": "flushed"}),
        Suspect("loses the sign of underflow", "what is rounded to zero becomes +0.0", {"loses_sign": "rounded"}),
    ]
    saturates = spec.saturate or target.saturates
    outcomes = {"infinity": "infinity", "max": "the largest value", "nan": "NaN", "zero": "zero"}
    for to, text in outcomes.items():
        if _infinity(to, spec) == _infinity("", spec) or (to == "infinity" and not target.has_infinity):
            continue
        name = "saturates" if to == "max" else "does not saturate" if saturates else f"overflows to {text}"
        mistakes += [
            Suspect(name, f"turns overflow into {text}", {"overflows_to": to}),
            Suspect(f"infinity becomes {text}", f"turns infinity into {text}", {"infinity_to": to}),
        ]
    mistakes += [
        Suspect("overflows to zero", "turns overflow into +0.0", {"overflows_to": "positive zero"}),
        Suspect("overflow wraps around", "lets overflow run on into other codes", {"overflows_to": "wraps"}),
        Suspect(
            "overflows too early",
            f"everything above the largest value {target.max:g} becomes {beyond}",
            {"overflows_from": "max"},
        ),
        Suspect(
            "overflows too early",
            f"the tie at {target.overflow_threshold:g} becomes {beyond}",
            {"overflows_from": "tie"},
        ),
        Suspect(
            "overflows too late",
            f"the tie at {target.overflow_threshold:g} stays {target.max:g}",
            {"overflows_from": "past tie"},
        ),
        Suspect(
            "overflows too late",
            f"below {2.0 ** (target.emax + 1):g} everything stays {target.max:g}",
            {"overflows_from": "next binade"},
        ),
        Suspect(
            "overflows too early",
            f"from {2.0**target.emax:g} on: the highest exponent is not used",
            {"overflows_from": "top binade"},
        ),
        Suspect(
            "carry into the exponent lost",
            "a significand rounded up to 2 becomes 1",
            {"carry": "wraps"},
        ),
        Suspect(
            "carry into the exponent lost",
            "a significand of ones is not rounded up",
            {"carry": "sticks"},
        ),
        Suspect("exponent off by one", "is twice what it should be", {"scale": 1}),
        Suspect("exponent off by one", "is half what it should be", {"scale": -1}),
    ]
    return mistakes


def place_conditions() -> list[Condition]:
    """Return conditions on the sign of the input and on where it stands."""

    def last(width: int) -> Condition:
        text = f"in the last n mod {width} elements of an array of n"
        return Condition(text, lambda rows: rows.position >= rows.length - rows.length % width)

    def body(width: int) -> Condition:
        text = f"in whole groups of {width} elements, not in what is left over"
        return Condition(text, lambda rows: rows.position < rows.length - rows.length % width)

    def unaligned(width: int) -> Condition:
        text = f"in arrays that do not begin at a multiple of {width} bytes"
        return Condition(text, lambda rows: rows.address % width != 0)

    widths = (2, 4, 8, 16, 32, 64)
    return [
        Condition("for negative inputs", lambda rows: np.signbit(rows.values)),
        Condition("for positive inputs", lambda rows: ~np.signbit(rows.values)),
        *map(last, widths),
        *map(body, widths),
        Condition("in the first element", lambda rows: rows.position == 0),
        Condition("in the last element", lambda rows: rows.position == rows.length - 1),
        Condition("in elements of odd index", lambda rows: rows.position % 2 == 1),
        Condition("in elements of even index", lambda rows: rows.position % 2 == 0),
        *(unaligned(width) for width in (8, 16, 32, 64)),
        *(
            Condition(f"in arrays of less than {n} elements", lambda rows, n=n: rows.length < n)  # type: ignore[misc]
            for n in (4, 8, 16, 32, 64)
        ),
        *(
            Condition(f"in arrays of {n} elements or more", lambda rows, n=n: rows.length >= n)  # type: ignore[misc]
            for n in (4, 8, 16, 32, 64)
        ),
    ]


def _from(exponent: int, above: bool) -> Condition:
    text = f"{'from' if above else 'below'} 2^{exponent}{' on' if above else ''}"
    limit = float(np.ldexp(1.0, exponent))
    return Condition(text, lambda rows: (np.abs(rows.values) >= limit) == above)


def _binades(rows: Rows, gains: Codes) -> list[Condition]:
    """Return the best of the conditions "from 2^k on" and "below 2^k", the narrowest of equal ones."""
    finite = np.isfinite(rows.values) & (rows.values != 0) & (gains != 0)
    if not finite.any():
        return []
    _, exponents = np.frexp(np.abs(rows.values[finite]))
    low = int(exponents.min())
    total = np.bincount(exponents - low, weights=gains[finite]).astype(np.int64)
    upward, downward = np.cumsum(total[::-1]), np.cumsum(total)
    first, last = upward.size - 1 - int(np.argmax(upward)), int(np.argmax(downward))
    return [_from(first + low - 1, True), _from(last + low, False)]


def _confined(
    rows: Rows, gains: Codes, changed: Mask, held: list[tuple[Condition, Mask]]
) -> list[tuple[float, Condition]]:
    """Return conditions under which a mistake would explain more, with a score each.

    Scores are what it explains less what it spoils. A condition that does not tell the two apart well is handicapped,
    for among many conditions one is always a little better than none.
    """
    options: list[tuple[float, Condition]] = []
    mended, spoiled = np.count_nonzero(gains > 0), np.count_nonzero(gains < 0)
    for condition, holds in [*((c, c.holds(rows)) for c in _binades(rows, gains)), *held]:
        here = gains[holds]
        gain = int(here.sum())
        if gain < max(_FEWEST, _SHARE * np.count_nonzero(changed & holds)):
            continue
        clear = np.count_nonzero(here > 0) >= 0.99 * mended and np.count_nonzero(here < 0) <= 0.2 * spoiled
        # half a row: of equal explanations the one without a condition
        options.append((gain - 0.5 - (0 if clear else 0.03 * np.count_nonzero(changed)), condition))
    return options


def predict_all(findings: Iterable[Finding], rows: Rows, spec: Spec) -> Codes:
    """Return what the mistakes that were found predict, each where its condition holds."""
    findings = list(findings)
    active = np.zeros(rows.values.shape, np.int64)
    for i, finding in enumerate(findings):
        active |= finding.condition.holds(rows).astype(np.int64) << i
    result = rows.expected.copy()  # right where no mistake is at work
    for chosen in range(1, 1 << len(findings)):
        where = active == chosen
        if not where.any():
            continue
        model = Model()
        for i, finding in enumerate(findings):
            if chosen >> i & 1:
                model = replace(model, **finding.suspect.changes)
        result[where] = predict(model, rows.values[where], spec)
    return result


def explain(rows: Rows, spec: Spec, limit: int = 6) -> list[Finding]:
    """Return the fewest mistakes, each with its condition, that predict most of the rows (no NaNs among the inputs)."""
    candidates = suspects(spec)
    held = [(condition, condition.holds(rows)) for condition in place_conditions()]
    findings: list[Finding] = []
    current = rows.expected
    while len(findings) < limit and (current != rows.got).any():
        best: tuple[float, Finding] | None = None
        for suspect in candidates:
            if any(suspect.changes.keys() & other.suspect.changes.keys() for other in findings):
                continue
            predicted = predict_all([*findings, Finding(suspect, EVERYWHERE)], rows, spec)
            changed = predicted != current
            if not changed.any():
                continue
            gains = (predicted == rows.got).astype(np.int64) - (current == rows.got)
            gain = int(gains.sum())
            options = [(float(gain), EVERYWHERE)] if gain >= _SHARE * np.count_nonzero(changed) else []
            if (gains < 0).any():  # somewhere it is right: then where?
                options += _confined(rows, gains, changed, held)
            for score, condition in options:
                if score > 0 and (best is None or score > best[0]):
                    best = score, Finding(suspect, condition)
        if best is None:
            break
        findings.append(best[1])
        current = predict_all(findings, rows, spec)
    return _simplest(findings, rows, spec)


def refine(findings: list[Finding], rows: Rows, spec: Spec) -> list[Finding]:
    """Look at more rows for the binade from which, or below which, a mistake shows."""
    result = list(findings)
    for i, finding in enumerate(findings):
        if "2^" not in finding.condition.text:
            continue
        others = [*result[:i], *result[i + 1 :]]
        without = predict_all(others, rows, spec) == rows.got
        gains = (
            predict_all([*others, finding._replace(condition=EVERYWHERE)], rows, spec) == rows.got
        ) - without.astype(np.int64)
        # gains are -1, 0 and 1; the better of the two conditions explains more
        best = max(_binades(rows, gains), key=lambda condition: int(gains[condition.holds(rows)].sum()))
        result[i] = finding._replace(condition=best)
    return result


def place_of(strange: Rows, right: Rows) -> Condition | None:
    """Return the place in the array, or the length, that all strange rows have in common and right ones have not."""
    best: tuple[int, Condition] | None = None
    for condition in place_conditions():
        if condition.holds(strange).all():
            exceptions = int(np.count_nonzero(condition.holds(right)))
            if exceptions <= strange.got.size and (best is None or exceptions < best[0]):
                best = exceptions, condition
    return None if best is None else best[1]


def _simplest(findings: list[Finding], rows: Rows, spec: Spec) -> list[Finding]:
    """Leave out mistakes and conditions that the others make superfluous."""

    def misses(candidates: list[Finding]) -> int:
        return int(np.count_nonzero(predict_all(candidates, rows, spec) != rows.got))

    least = misses(findings)
    for finding in tuple(findings):
        without = [other for other in findings if other is not finding]
        if (fewer := misses(without)) <= least:
            findings, least = without, fewer
    for i, finding in enumerate(findings):
        relaxed = [*findings[:i], finding._replace(condition=EVERYWHERE), *findings[i + 1 :]]
        if (fewer := misses(relaxed)) <= least:
            findings, least = relaxed, fewer
    return findings


def other_meaning(rows: Rows, spec: Spec) -> tuple[str, str] | None:
    """Return the name and text of one mistake that explains all results at once: codes of another kind, say."""
    target, bits = spec.target, spec.target.bits
    numbers = ~np.isnan(rows.values)
    if not numbers.any():
        return None
    rows = rows.take(numbers)
    raw, sign = np.where(rows.raw < 0, 0, rows.raw), 1 << (bits - 1)
    right = np.asarray(encode(rows.values, target, spec.mode, subnormals=spec.subnormals, saturate=spec.saturate))
    whole = right.astype(np.int64)
    kind = code_dtype(target)
    swapped = right.byteswap().astype(np.int64) if kind.itemsize > 1 and bits == 8 * kind.itemsize else None
    guesses: list[tuple[str, str, Codes]] = [
        ("sign inverted", "every result has the wrong sign", whole ^ sign),
        ("sign lost", "every result is positive", whole & ~sign),
        ("one code too high", "every code is one too high", whole + 1),
        ("one code too low", "every code is one too low", whole - 1),
    ]
    if swapped is not None:
        guesses.append(("bytes swapped", "the bytes of every code are swapped", swapped))
    for fmt in FORMATS.values():
        if fmt.bits == bits and fmt.name != target.name:
            other = np.asarray(encode(rows.values, fmt)).astype(np.int64)
            guesses.append((f"codes of {fmt}", f"the codes are those of {fmt}", other))
    for name, text, guess in guesses:
        if np.array_equal(canonical(guess, target), canonical(raw, target)) and (rows.raw >= 0).all():
            return name, text
    return None


def meaning_of_values(rows: Rows, spec: Spec) -> tuple[str, str]:
    """Return the name and text of the mistake in results that are no values of the target."""
    target = spec.target
    if np.array_equal(rows.stored, rows.values):
        return "returned unrounded", f"results are no {target} values: inputs come back as they were"
    if (np.abs(rows.stored) > target.max).all():
        return "exceeds the largest value", f"results are finite and above the largest value of {target}"
    for fmt in FORMATS.values():
        if np.array_equal(rows.stored, np.asarray(round_to(rows.values, fmt))):
            return f"rounded to {fmt}", f"results are no {target} values but those of {fmt}"
    return "no value of the target", f"results that are no {target} value"
