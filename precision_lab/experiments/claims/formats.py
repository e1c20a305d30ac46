"""Claims on what the formats hold and what a cast does: each is decided by casting."""

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
from precision_lab.numerics.formats import FormatLike, get_format

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
        "{x:g} becomes {stored:power} = {stored:.3g}, a subnormal, {error:.0%} off; zero is what magnitudes up to "
        "{last:power} become. Hardware that flushes subnormals would make it {flushing:g}.",
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
)
def _below_the_smallest(arithmetic: Arithmetic) -> Verdict:
    limit, last = 2.0**-24, arithmetic.flushed_up_to(_FP16)
    if last >= math.nextafter(limit, 0):
        return holds(
            "All magnitudes up to {last:.3g} become zero, {limit:power} is {limit:.3g}.", last=last, limit=limit
        )
    truncated = replace(arithmetic, mode="toward_zero").flushed_up_to(_FP16)
    return fails(
        "Zero is what magnitudes up to {last:power} become; between that and {limit:power} they are rounded up to "
        "{up:power}. Truncation would make zeros of all up to {truncated:.3g}.",
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
)
def _range_of_fp16(arithmetic: Arithmetic) -> Verdict:
    values = positive_values(_FP16)
    kept = values[arithmetic.round(values, _FP16) != 0]
    evidence = {"least": kept[0], "normal": _FP16.smallest_normal, "largest": kept[-1]}
    if kept[0] == _FP16.smallest_normal:
        return holds("From {least:.3g} to {largest:g}; the smallest normal number is {normal:.3g}.", **evidence)
    return only_if(
        "normal numbers alone are counted",
        "Normal numbers lie from {normal:.3g} to {largest:g}, but {below:,} subnormals reach down to {least:.3g}, "
        "{times:,.0f} times lower, with fewer and fewer bits.",
        **evidence,
        below=int(np.count_nonzero(kept < _FP16.smallest_normal)),
        times=_FP16.smallest_normal / kept[0],
    )


@_claim(
    "fp16-floor",
    text="What lies below fp16's floor of 6e-5 rounds to 0.",
    source=f"{ARTICLE}, the figure and “Why bf16 over fp16?”",
    root=SUBNORMALS,
)
def _floor(arithmetic: Arithmetic) -> Verdict:
    floor, last = _FP16.smallest_normal, arithmetic.flushed_up_to(_FP16)
    if last > 0.99 * floor:
        return holds("Everything up to {last:.3g} becomes zero; the floor is {floor:.3g}.", last=last, floor=floor)
    return fails(
        "Zero is what magnitudes up to {last:.3g} become. Between that and the floor of {floor:.3g} fp16 has {count:,} "
        "subnormals, with one bit less in each binade.",
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
    text="bf16 has fp32's 8 exponent bits, so its dynamic range is identical to fp32's.",
    source=f"{CHAPTER}, “Numerical formats”; {ARTICLE}, “Why bf16 won”; {LESSON}, step 1",
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


@_claim(
    "bf16-never-overflows",
    text="Casting fp32 to bf16 and back never overflows.",
    source=f"{LESSON}, the last section",
)
def _never_overflows(arithmetic: Arithmetic) -> Verdict:
    over = _not_finite(arithmetic)
    if not over:
        return holds("{over:,} of fp32's positive finite values become infinite.", over=over)
    return fails(
        "{over:,} of fp32's positive finite values, those above {last:.5g}, become infinite; truncation would send "
        "{truncated:,} there.",
        over=over,
        last=arithmetic.finite_up_to(_BF16),
        truncated=_not_finite(replace(arithmetic, mode="toward_zero")),
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
    total = upper.size * low.size
    values = np.asarray(positive_values(_BF16), np.float32).view(np.uint32)
    evidence = {"share": share(differ, total), "differ": differ, "total": total}
    if not differ:
        return holds("The cast chops: of {total:,} patterns {differ} become anything else, {share:.0%}.", **evidence)
    return only_if(
        "it is said of the values, not of the cast",
        "All {values:,} positive values of bf16 are fp32 values that end in zeros ({wrong} exceptions), but the cast "
        "rounds: {share:.3%} of the patterns, {differ:,} of {total:,}, become something else than what chopping gives.",
        **evidence,
        values=values.size,
        wrong=int(np.count_nonzero(values & 0xFFFF)),
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
    always = max((d for d in range(1, claimed + 1) if _back(arithmetic, fmt, d) == 1), default=0)
    evidence = {
        "claimed": claimed,
        "back": _back(arithmetic, fmt, claimed),
        "always": always,
        "mean": fixed.log10(2) * fmt.precision,
    }
    words = (
        "{mean:.1f} digits by its bits. Of decimal numbers with {claimed} digits {back:.1%} come back when they are "
        "stored and printed again, all of them with {always}."
    )
    if always == claimed:
        return holds(words, **evidence)
    if evidence["mean"] >= claimed:
        return only_if("digits are counted by the number of bits", words, **evidence)
    return fails(words, **evidence)


@_claim("fp32-digits", text="fp32 has about 7 decimal digits.", source=f"{CHAPTER}, “Numerical formats”")
def _digits_of_fp32(arithmetic: Arithmetic) -> Verdict:
    return _digits(arithmetic, "fp32", 7)


@_claim("bf16-digits", text="bf16 has 3 decimal digits of precision.", source=f"{CHAPTER}, “Numerical formats”")
def _digits_of_bf16(arithmetic: Arithmetic) -> Verdict:
    return _digits(arithmetic, "bf16", 3)
