"""Name the faults of a cast by testing hypotheses about it.

Each suspected mistake is a change to a model of the right cast: it truncates, it rounds to float32 first, it flushes
subnormal results. Together the suspects make a model of the wrong cast, and a model predicts a result for every input.
From the right cast on, the suspect is added that mends most predictions and spoils fewest, as long as one does; a
suspect may be confined: to negative inputs, to magnitudes from some power of two on, to the last elements of an array.
What no model predicts is counted as unexplained.

Among many mistakes there is always one that is right here and there. So at the end a mistake is kept only if nearly all
that it changes comes out as it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from precision_lab.numerics.codes import code_dtype, encode
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.rounding import round_to
from precision_lab.testing.cast_models import Codes, Mask, Model, Rows, Spec, canonical, predict, read
from precision_lab.testing.cast_suspects import Suspect, readings, suggested, suspects

_SHARE = 0.6  # of what a mistake changes that must become right, less what becomes wrong
_FOUNDED = 0.95  # of what a mistake changes that must come out as it says, in the end
_FEWEST = 5  # rows that a mistake must explain for it to be confined to some place


class Condition(NamedTuple):
    """Where a mistake shows."""

    text: str
    holds: Callable[[Rows], Mask]


class Finding(NamedTuple):
    """A mistake that was found."""

    suspect: Suspect
    condition: Condition


EVERYWHERE = Condition("", lambda rows: np.ones(rows.values.shape, np.bool_))


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
    suspect: Suspect, rows: Rows, gains: Codes, changed: Mask, held: list[tuple[Condition, Mask]]
) -> list[tuple[float, Condition]]:
    """Return conditions under which a mistake would explain more, with a score each.

    Scores are what it explains less what it spoils. A condition that does not tell the two apart well is handicapped,
    for among many conditions one is always a little better than none.
    """
    options: list[tuple[float, Condition]] = []
    mended, spoiled = np.count_nonzero(gains > 0), np.count_nonzero(gains < 0)
    sizes = _binades(rows, gains) if suspect.in_binades else []
    for condition, holds in [*((c, c.holds(rows)) for c in sizes), *(held if suspect.in_places else [])]:
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
        x = read(model, rows.patterns[where], rows.values[where], spec.source)
        result[where] = predict(model, x, spec)
    return result


def explain(rows: Rows, spec: Spec, limit: int = 6) -> list[Finding]:
    """Return the fewest mistakes, each with its condition, that predict most of the rows."""
    candidates = [*suspects(spec), *suggested(rows, spec), *readings(spec)]
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
                options += _confined(suspect, rows, gains, changed, held)
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


def well_founded(findings: list[Finding], rows: Rows, spec: Spec) -> list[Finding]:
    """Keep the mistakes of which nearly all that they change comes out as they say."""
    while findings:
        predicted = predict_all(findings, rows, spec)
        shares: list[float] = []
        for finding in findings:
            changed = predicted != predict_all([other for other in findings if other is not finding], rows, spec)
            right = np.count_nonzero(changed & (predicted == rows.got))
            shares.append(float(right) / max(int(np.count_nonzero(changed)), 1))
        if min(shares) >= _FOUNDED:
            break
        findings = [finding for finding, share in zip(findings, shares, strict=True) if share > min(shares)]
    return findings


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
