"""The mistakes that casts are suspected of: those that others have made, and those that the results suggest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.codes import decode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.testing.cast_models import Codes, Rows, Spec, infinity_code
from precision_lab.testing.cast_report import short_text

_FEWEST = 5  # results that suggest a bound


class Suspect(NamedTuple):
    """A mistake: its short name, what it means, what it changes in the model, and whether it may be confined."""

    name: str
    text: str
    changes: dict[str, Any]
    in_places: bool = True
    in_binades: bool = True


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
        if infinity_code(to, spec) == infinity_code("", spec) or (to == "infinity" and not target.has_infinity):
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


def readings(spec: Spec) -> Iterator[Suspect]:
    """Yield the mistakes in taking the fields of an input apart."""
    source, fmt = spec.source, spec.source.format
    if fmt is None:
        return
    name = "exponent field 0 decoded as normal"
    yield Suspect(name, "the implicit one is added to subnormals and to zero", {"zero_field": "normal"})
    yield Suspect(name, "the implicit one is added to subnormals", {"zero_field": "normal, not zero"})
    text = "subnormal inputs are half as large: their exponent is that of field 1, not of field 0"
    yield Suspect("exponent of subnormals off by one", text, {"zero_field": "exponent 0"})
    special = {"ieee": "infinity and NaN become numbers", "fn": "NaN becomes a number"}
    if fmt.specials in special and spec.target.max >= 2.0 ** (2**fmt.exponent_bits - fmt.bias):
        text = f"the highest exponent is one like others: {special[fmt.specials]}"
        yield Suspect("top exponent decoded as normal", text, {"top_field": "normal"})
    if fmt.mantissa_bits:
        shifts = {
            "low": "one place too low: it counts half",
            "lost": "one place too high, its first bit lost",
            "added": "one place too high, its first bit added to the exponent",
            "or": "one place too high, its first bit put into the exponent",
        }
        for where, text in shifts.items():
            for extent in ("normal inputs", "subnormals too"):
                words = f"the fraction of {'inputs' if extent == 'subnormals too' else extent} is {text}"
                yield Suspect("fraction shifted", words, {"fraction": f"{where}, {extent}"})
    for other in FORMATS.values():
        if other.bits == source.bits and other.name != fmt.name:
            yield Suspect(f"reads {other.name}", f"takes the inputs for codes of {other.name}", {"reads": other})


def suggested(rows: Rows, spec: Spec) -> Iterator[Suspect]:
    """Yield mistakes whose numbers are in the results: factors, and bounds."""
    wrong = rows.take((rows.got != rows.expected) & ~np.isnan(rows.values))
    yield from _factors(wrong.take(np.isfinite(wrong.values) & np.isfinite(wrong.stored)), spec)
    yield from _bounds(wrong, spec)


def _factors(wrong: Rows, spec: Spec) -> Iterator[Suspect]:
    some = (wrong.values != 0) & (wrong.stored != 0)
    fractions, exponents = np.frexp(np.abs(wrong.values[some]))
    others, shifted = np.frexp(np.abs(wrong.stored[some]))
    steps = (shifted - exponents)[fractions == others]
    steps = steps[steps != 0]
    if not steps.size:
        return
    kinds, counts = np.unique(steps, return_counts=True)
    step = int(kinds[np.argmax(counts)])
    by = "one" if abs(step) == 1 else f"{abs(step)}"
    if abs(step) > 1:
        yield Suspect(f"exponent off by {by}", f"is {short_text(2.0**step)} times what it should be", {"scale": step})
    if spec.source.format is not None:
        text = f"normal inputs are taken for {short_text(2.0**step)} times what they are, subnormal ones are not"
        yield Suspect(f"exponent bias off by {by}", text, {"bias": step})


def _bounds(wrong: Rows, spec: Spec) -> Iterator[Suspect]:
    """Yield clamps to the results that many inputs share."""
    target = spec.target
    sign = 1 << (target.bits - 1)
    largest = infinity_code("max", spec)
    finite = (wrong.got & (sign - 1) <= largest) & (wrong.got < 2 * sign)
    wrong = wrong.take(finite)
    beyond = wrong.expected >= 2 * sign
    size, right = wrong.got & (sign - 1), np.where(beyond, sign, wrong.expected & (sign - 1))
    got = np.where(wrong.got & sign, ~size, size)
    expected = np.where(np.where(beyond, np.signbit(wrong.values), wrong.expected & sign), ~right, right)
    highest, lowest = _most_common(wrong.got[got < expected]), _most_common(wrong.got[got > expected])
    top = _most_common(size[size < right])
    if top is not None and 0 < top < largest:
        yield from _clamps({"highest": top, "lowest": top | sign}, "from {0} on {0}", top, target)
    for bound, side, where in ((highest, "highest", "above"), (lowest, "lowest", "below")):
        if bound is not None and bound & (sign - 1) < largest:
            text = f"inputs {where} {{0}} become {{0}}"
            yield from _clamps({side: bound}, text, bound, target)
    least = _most_common(size[size > right])
    if least:
        value = _value_text(least, target)
        for too in (False, True):
            text = f"below {value} ({'zero too' if too else 'not zero'}) {value}"
            yield Suspect("clamps", text, {"least": least, "least_of_zero": too}, in_binades=False)


def _clamps(bounds: dict[str, Any], text: str, code: int, target: FloatFormat) -> Iterator[Suspect]:
    words, places = text.format(_value_text(code, target)), code & ((1 << (target.bits - 1)) - 1) != 0
    for what, stays in (("", ""), ("infinity", "; infinity stays"), ("overflow", "; overflow stays")):
        yield Suspect("clamps", words + stays, bounds | ({"passes": what} if what else {}), places, False)


def _value_text(code: int, target: FloatFormat) -> str:
    return short_text(float(decode(code, target, np.float64)))


def _most_common(codes: Codes) -> int | None:
    kinds, counts = np.unique(codes, return_counts=True)
    return int(kinds[np.argmax(counts)]) if kinds.size and counts.max() >= _FEWEST else None
