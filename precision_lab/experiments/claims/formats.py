"""Claims on what the formats hold and what a cast does: each is decided by casting.

Statements on the bits of the formats are asked of codes and values, not of the fields that `FORMATS` defines them with.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    FORUM_FP32,
    LESSON,
    SUBNORMALS,
    Arithmetic,
    Ground,
    Verdict,
    fails,
    holds,
    only_if,
    positive_values,
    share,
    stated,
)
from precision_lab.numerics import fixed
from precision_lab.numerics.codes import code_dtype, decode, encode
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.rounding import spacing

_claim = partial(stated, subject="Formats and casts", rests_on=Ground.ARITHMETIC)
_FP16, _BF16, _FP32 = map(get_format, ("fp16", "bf16", "fp32"))


@_claim(
    "fp16-1e-7",
    text="A gradient of 1e-7 lies below fp16's smallest normal number, so it rounds to exactly zero.",
    source=f"{LESSON}, step 2; {ARTICLE}, “Why bf16 won”",
    root=SUBNORMALS,
)
def _one_in_ten_million(arithmetic: Arithmetic) -> Verdict:
    x = 1e-7
    stored, last = arithmetic.one(x, _FP16), arithmetic.flushed_up_to(_FP16)
    if stored == 0:
        return holds("{x:g} becomes {stored:g}: all magnitudes up to {last:power} do.", x=x, stored=stored, last=last)
    flushing = replace(arithmetic, subnormals=False).one(x, _FP16)
    return fails(
        "{x:g} becomes {stored:power}, a subnormal, {error:.0%} off. Zero is what magnitudes up to {last:power} "
        "become; hardware that flushes subnormals would make it {flushing:g}.",
        x=x,
        stored=stored,
        error=abs(stored - x) / x,
        last=last,
        flushing=flushing,
    )


@_claim(
    "fp16-2^-24",
    text="Any value whose magnitude is smaller than 2^-24 becomes zero in fp16.",
    source=f"{FORUM_FP32}, quoting Micikevicius et al. 2018, section 3.1",
    root=SUBNORMALS,
    rests_on=Ground.ALL_VALUES,
)
def _below_the_smallest(arithmetic: Arithmetic) -> Verdict:
    limit, last = 2.0**-24, arithmetic.flushed_up_to(_FP16)
    if last >= math.nextafter(limit, 0):
        return holds(
            "All magnitudes up to {last:.3g} become zero, {limit:power} is {limit:.3g}.", last=last, limit=limit
        )
    truncated = replace(arithmetic, mode="toward_zero").flushed_up_to(_FP16)
    return fails(
        "Zero is what magnitudes up to {last:power} become; what lies between that and {limit:power} is rounded up to "
        "{up:power}. With truncation all up to {truncated:.3g} would be zero.",
        last=last,
        limit=limit,
        up=arithmetic.one(0.75 * limit, _FP16),
        truncated=truncated,
    )


@_claim(
    "fp16-range",
    text="fp16 ranges from about 6e-5 to 6.5e4.",
    source=f"{CHAPTER}, “Numerical formats”; {ARTICLE}, “Why bf16 won”; {LESSON}, step 1",
    root=SUBNORMALS,
    rests_on=Ground.ALL_VALUES,
)
def _range_of_fp16(arithmetic: Arithmetic) -> Verdict:
    values = positive_values(_FP16)
    kept = values[arithmetic.round(values, _FP16) != 0]
    evidence = {"least": kept[0], "normal": _FP16.smallest_normal, "largest": kept[-1]}
    if kept[0] == _FP16.smallest_normal:
        return holds("From {least:.3g} to {largest:g}; the smallest normal number is {normal:.3g}.", **evidence)
    return only_if(
        "normal numbers alone are counted",
        "Normal numbers lie from {normal:.3g} to {largest:g}. Below them {below:,} subnormals, with fewer and fewer "
        "bits, reach down to {least:.3g}.",
        **evidence,
        below=int(np.count_nonzero(kept < _FP16.smallest_normal)),
    )


@_claim(
    "fp16-floor",
    text="What lies below fp16's floor of 6e-5 rounds to 0.",
    source=f"{ARTICLE}, the figure and “Why bf16 over fp16?”",
    root=SUBNORMALS,
    rests_on=Ground.ALL_VALUES,
)
def _floor(arithmetic: Arithmetic) -> Verdict:
    floor, last = _FP16.smallest_normal, arithmetic.flushed_up_to(_FP16)
    if last > 0.99 * floor:
        return holds("Everything up to {last:.3g} becomes zero; the floor is {floor:.3g}.", last=last, floor=floor)
    return fails(
        "Zero is what magnitudes up to {last:.3g} become. Between that and the floor, {floor:.3g}, fp16 has {count:,} "
        "subnormals.",
        last=last,
        floor=floor,
        count=int(np.count_nonzero(positive_values(_FP16) < floor)),
    )


def _not_finite(arithmetic: Arithmetic) -> int:
    """Return how many positive finite fp32 values a cast to bf16 makes infinite."""
    top = np.arange(0x7F000000, 0x7F800000, dtype=np.uint32).view(np.float32)  # the last binade
    return int(np.count_nonzero(np.isinf(arithmetic.round(top, _BF16))))


@_claim(
    "bf16-range",
    text="bf16's dynamic range is identical to fp32's.",
    source=f"{ARTICLE}, “Why bf16 won”; {CHAPTER}, “Numerical formats” (it “matches FP32”)",
    rests_on=Ground.ALL_VALUES,
)
def _range_of_bf16(arithmetic: Arithmetic) -> Verdict:
    over = _not_finite(arithmetic)
    tiny = np.arange(1, 1 << 17, dtype=np.uint32).view(np.float32)
    flushed = int(np.count_nonzero((arithmetic.round(tiny, _FP32) != 0) & (arithmetic.round(tiny, _BF16) == 0)))
    evidence = {
        "over": over,
        "flushed": flushed,
        "normal": _FP32.smallest_normal,
        "bf16": _BF16.max,
        "fp32": _FP32.max,
    }
    if not over and not flushed:
        return holds(
            "No finite fp32 value overflows or becomes zero: {over:,} and {flushed:,} of them. Normal numbers begin at "
            "{normal:.3g} in both, and end at {bf16:.4g} and {fp32:.4g}.",
            **evidence,
        )
    return only_if(
        "subnormals and the last half spacing at the top are left out",
        "Normal numbers begin at {normal:.3g} in both and end at {bf16:.4g} and {fp32:.4g}. Of fp32's positive values "
        "{flushed:,} become zero and {over:,} infinite.",
        **evidence,
    )


def _fields(fmt: FormatLike) -> tuple[int, int, int]:
    """Return how many bits sign, exponent and mantissa have: what lies between the codes of 1, 2 and infinity."""
    one, two, infinity, negative = (int(code) for code in encode([1.0, 2.0, math.inf, -0.0], fmt))
    mantissa = (two - one).bit_length() - 1  # as many codes from 1 to 2 as there are fractions
    exponent = (infinity >> mantissa).bit_length()  # all ones
    return (negative >> (exponent + mantissa)).bit_length(), exponent, mantissa


@_claim(
    "bit-counts",
    text="fp32 has 1 sign, 8 exponent and 23 mantissa bits, fp16 1 + 5 + 10, bf16 1 + 8 + 7.",
    source=f"{CHAPTER}, “Numerical formats”; {LESSON}, step 1; {ARTICLE}, “Why bf16 over fp16?”",
)
def _bit_counts(arithmetic: Arithmetic) -> Verdict:
    found = {f: _fields(f) for f in ("fp32", "fp16", "bf16")}
    evidence = {f"{f}_{name}": bits for f, three in found.items() for name, bits in zip("sem", three, strict=True)}
    words = (
        ", ".join(f"{f} {{{f}_s}} + {{{f}_e}} + {{{f}_m}}" for f in found) + ", counted in the codes of one and two."
    )
    said = {"fp32": (1, 8, 23), "fp16": (1, 5, 10), "bf16": (1, 8, 7)}
    return (holds if found == said else fails)(words, **evidence)


@_claim(
    "value-formula",
    text="A floating-point value is (-1)^sign x 1.mantissa x 2^exponent.",
    source=f"{LESSON}, the last section",
    rests_on=Ground.ALL_VALUES,
    root=SUBNORMALS,
)
def _formula(arithmetic: Arithmetic) -> Verdict:
    sign, exponent, mantissa = _fields(_FP16)
    codes = np.arange(1 << (sign + exponent + mantissa), dtype=code_dtype(_FP16))
    field, fraction = codes >> mantissa & ((1 << exponent) - 1), codes & ((1 << mantissa) - 1)
    negative = codes >> (exponent + mantissa) != 0
    bias = (1 << (exponent - 1)) - 1
    formula = np.ldexp(1 + np.ldexp(fraction.astype(np.float64), -mantissa), field.astype(np.int64) - bias)
    formula = np.where(negative, -formula, formula)
    finite = np.isfinite(values := np.asarray(decode(codes, _FP16), np.float64))
    other = finite & (arithmetic.round(values, _FP16) != formula)
    evidence = {"count": int(np.count_nonzero(finite)), "other": int(np.count_nonzero(other))}
    if not evidence["other"]:
        return holds("Of fp16's {count:,} finite codes {other} have another value.", **evidence)
    return (fails if np.any(other & (field > 0)) else partial(only_if, "the value is normal"))(
        "{other:,} of fp16's {count:,} finite codes are zeros and subnormals, with a zero before the point. By the "
        "formula nothing lies below {least:power}: who believes that takes {x:g} for zero.",
        **evidence,
        least=float(np.abs(formula).min()),
        x=1e-7,
    )


@_claim(
    "fp16-smallest-normal",
    text="The smallest normal number of fp16 is 6.10e-5, that of bf16 about 1e-38.",
    source=FORUM_FP32,
    rests_on=Ground.ALL_VALUES,
)
def _smallest_normal(arithmetic: Arithmetic) -> Verdict:
    fp16, bf16 = map(_first_with_all_bits, (_FP16, _BF16))
    words = "fp16 has all its bits from {fp16:power} = {fp16:.2e} on, bf16 from {bf16:power} = {bf16:.2e} on."
    good = f"{fp16:.2e}" == "6.10e-05" and math.floor(fixed.log10(bf16)) == -38
    return (holds if good else fails)(words, fp16=fp16, bf16=bf16)


def _first_with_all_bits(fmt: FormatLike) -> float:
    """Return the least value from which on the gap to the next is, beside the value, no wider than at one."""
    values = positive_values(fmt)
    values, gaps = values[:-1], np.diff(values)
    short = np.flatnonzero(gaps > values * gaps[values == 1])
    return float(values[short[-1] + 1 if short.size else 0])


@_claim(
    "fp16-smallest",
    text="2^-24 is the smallest positive number of fp16.",
    source=f"{FORUM_FP32}, quoting Micikevicius et al. 2018, section 3.1",
    rests_on=Ground.ALL_VALUES,
)
def _smallest(arithmetic: Arithmetic) -> Verdict:
    values = positive_values(_FP16)
    least = float(values[arithmetic.round(values, _FP16) != 0][0])
    words = "The least of its {count:,} positive values that is kept is {least:power} = {least:.3g}."
    return (holds if least == 2.0**-24 else fails)(words, count=values.size, least=least)


@_claim(
    "bf16-exponent-range",
    text="bf16 has fp32's exponent range, with fp32's 8 exponent bits.",
    source=f"{CHAPTER}, “Numerical formats”; {LESSON}, step 1 and the summary; {ARTICLE}, “Why bf16 over fp16?”",
    rests_on=Ground.ALL_VALUES,
)
def _exponents(arithmetic: Arithmetic) -> Verdict:
    bf16 = positive_values(_BF16)
    low, high = _first_with_all_bits(_BF16), float(bf16[-1])
    # fp32's codes begin with bf16's, so that its binades are those of the codes that end in zeros
    binades = np.arange(1, 255, dtype=np.uint32) << 23
    fp32 = binades.view(np.float32).astype(np.float64)
    evidence = {
        "bits": _fields(_BF16)[1],
        "least": low,
        "top": float(fp32[-1]),
        "binades": int(np.count_nonzero(np.frexp(bf16[bf16 >= low])[0] == 0.5)),
    }
    same = evidence["binades"] == fp32.size and low == fp32[0] and fp32[-1] <= high < 2 * fp32[-1]
    return (holds if same and _fields(_FP32)[1] == evidence["bits"] else fails)(
        "Both have {bits} exponent bits and {binades} binades of normal numbers, the first from {least:power} on, the "
        "last from {top:power}.",
        **evidence,
    )


@_claim(
    "bf16-coarser",
    text="bf16 has fewer mantissa bits than fp16, so it is coarser.",
    source=f"{LESSON}, step 1; {ARTICLE}, “Why bf16 won”; {CHAPTER}, “Numerical formats”",
    rests_on=Ground.ALL_VALUES,
)
def _coarser(arithmetic: Arithmetic) -> Verdict:
    values = positive_values(_FP16)
    ratios = np.asarray(spacing(values, _BF16)) / np.asarray(spacing(values, _FP16))
    normal = values >= _first_with_all_bits(_FP16)
    evidence = {
        "times": float(ratios[normal].min()),
        "finer": float(np.max(values[ratios < 1], initial=0.0)),
        "normal": float(values[normal][0]),
    }
    words = (
        "At each of fp16's normal numbers, {normal:power} and above, bf16's spacing is {times:.0f} times as wide. Only "
        "among fp16's subnormals, up to {finer:.1e}, is bf16 the finer one."
    )
    good = ratios[normal].min() == ratios[normal].max() > 1
    return (holds if good else fails)(words, **evidence)


@_claim(
    "bf16-never-overflows",
    text="Casting fp32 to bf16 and back never overflows.",
    source=f"{LESSON}, the last section",
    rests_on=Ground.ALL_VALUES,
)
def _never_overflows(arithmetic: Arithmetic) -> Verdict:
    over = _not_finite(arithmetic)
    finite = 0x7F800000 - 1
    if not over:
        return holds("Of fp32's positive finite values {over:.0%} become infinite.", over=share(over, finite))
    truncated = _not_finite(replace(arithmetic, mode="toward_zero"))
    return fails(
        "{over:,} of fp32's positive finite values, those above {last:.5g}, become infinite; if it chopped, "
        "{truncated:.0%} would.",
        over=over,
        last=arithmetic.finite_up_to(_BF16),
        truncated=share(truncated, finite),
    )


@_claim(
    "bf16-chopped",
    text="bf16 is fp32 with the bottom 16 bits of the mantissa chopped off.",
    source=f"{LESSON}, the last section",
)
def _chopped(arithmetic: Arithmetic) -> Verdict:
    # every exponent, the last two significands of it, and all that can be chopped off
    upper = (np.arange(255, dtype=np.uint32)[:, None] << 7 | np.array([0x7E, 0x7F], np.uint32)).reshape(-1)
    low = np.arange(1 << 16, dtype=np.uint32)
    differ = 0
    for part in np.array_split(upper, 16):
        patterns = (part[:, None] << 16 | low).reshape(-1)
        cast = arithmetic.round(patterns.view(np.float32), _BF16).view(np.uint32)
        differ += int(np.count_nonzero(cast != patterns & np.uint32(0xFFFF0000)))
    evidence = {"share": share(differ, upper.size * low.size)}
    if not differ:
        return holds("The cast chops: {share:.0%} of fp32's values become anything else.", **evidence)
    values = np.asarray(positive_values(_BF16), np.float32).view(np.uint32)
    if np.any(values & 0xFFFF):
        return fails("The cast rounds, and not all values end in zeros.")
    return only_if(
        "it is said of the values, not of the cast",
        "All {values:,} positive values of bf16 are fp32 values whose last bits are zeros. But the cast rounds: "
        "chopping would give another value for {share:.3%} of fp32's.",
        **evidence,
        values=values.size,
    )


def _back(arithmetic: Arithmetic, fmt: FormatLike, digits: int) -> float:
    """Return the share of decimal numbers that come back when they are stored and printed with as many digits."""
    numbers = np.arange(10 ** (digits - 1), 10**digits, max(1, 10**digits // 50_021), dtype=np.float64)
    came = []
    for power in range(-20, 21):
        scale = float(f"1e{power}")
        came.append(np.rint(arithmetic.round(numbers * scale, fmt) / scale) == numbers)
    return share(np.concatenate(came))


def _digits(arithmetic: Arithmetic, fmt_name: str, claimed: int) -> Verdict:
    fmt = get_format(fmt_name)
    evidence = {
        "claimed": claimed,
        "back": _back(arithmetic, fmt, claimed),
        "always": max((d for d in range(1, claimed + 1) if _back(arithmetic, fmt, d) == 1), default=0),
        "mean": fixed.log10(2) * fmt.precision,
    }
    words = (
        "By its bits it has {mean:.1f} digits. Of decimal numbers with {claimed} digits {back:.1%} come back when they "
        "are stored and printed again, with {always} all of them."
    )
    return (holds if round(evidence["mean"]) == claimed else fails)(words, **evidence)


@_claim("fp32-digits", text="fp32 has about 7 decimal digits.", source=f"{CHAPTER}, “Numerical formats”")
def _digits_of_fp32(arithmetic: Arithmetic) -> Verdict:
    return _digits(arithmetic, "fp32", 7)


@_claim("bf16-digits", text="bf16 has 3 decimal digits of precision.", source=f"{CHAPTER}, “Numerical formats”")
def _digits_of_bf16(arithmetic: Arithmetic) -> Verdict:
    return _digits(arithmetic, "bf16", 3)
