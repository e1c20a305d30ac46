"""Any loss scale, counted over the numbers: against rational arithmetic, the rounding, and the histogram."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab.analysis.any_scale import count_conversion, count_conversions
from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.rounding import round_to

FORMATS_AND_CUSTOM = (*FORMATS.values(), FloatFormat.ieee(6, 9), FloatFormat.ieee(2, 0))
SCALES = (1000, 3.0, 0.1, 65535.0, 1 / 3, 1.5 * 2.0**-30, 2.0**10, 1e30, 1.0)


def fates(c: Conversion) -> tuple[int, int, int]:
    return c.flushed, c.subnormal, c.overflowed


def exactly(values: list[float], fmt: FloatFormat, scale: float) -> tuple[int, int, int]:
    """Each product as a fraction, rounded once by the reference."""
    flushed = subnormal = overflowed = 0
    for x in values:
        exact = abs(Fraction(x) * Fraction(scale))
        if not exact:
            continue
        if not fmt.mantissa_bits and exact < fmt.smallest_subnormal:  # no subnormals: up to the smallest normal, or 0
            result = Fraction(fmt.smallest_subnormal) if 2 * exact > Fraction(fmt.smallest_subnormal) else Fraction(0)
        else:
            c = reference.candidates(exact, fmt)
            result = (c.k + reference.rounds_away(c, False, "ties_to_even", None)) * c.spacing
        flushed += result == 0
        subnormal += 0 < result < Fraction(fmt.smallest_normal)
        overflowed += result > Fraction(fmt.max)
    return flushed, subnormal, overflowed


@pytest.mark.parametrize("fmt", FORMATS_AND_CUSTOM, ids=str)
def test_counts_are_those_of_the_exact_product_rounded_once(fmt: FloatFormat) -> None:
    """Doubles around each threshold over S, where one unit decides; S x of some is no double."""
    for scale in SCALES:
        values = [0.0, 1.0, -1.0, 1e300, 5e-324]
        for edge in (fmt.flush_threshold, fmt.subnormal_threshold, fmt.overflow_threshold):
            x = edge / scale
            for _ in range(3):
                values += [x, -x]
                x = math.nextafter(x, 0)
            values += [math.nextafter(edge / scale, math.inf), edge]
        found = count_conversion(values, fmt, loss_scale=scale)
        assert fates(found) == exactly(values, fmt, scale), scale
        assert (found.count, found.zero, found.nonfinite, found.loss_scale) == (len(values), 1, 0, scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2", "fp4_e2m1fn"])
def test_they_are_what_round_to_makes_of_products_that_are_doubles(dtype: Any, name: str) -> None:
    """Of 29 bits of S and 24 of x: the product is exact in float64."""
    rng = np.random.default_rng(7)
    fmt = get_format(name)
    with np.errstate(all="ignore"):
        x = (rng.standard_normal(4000) * 2.0 ** rng.integers(-45, 18, 4000)).astype(dtype)
    for scale in (1000.0, 3.0, 0.75, 2.0**28 + 1):
        wide = x.astype(np.float64)
        with np.errstate(all="ignore"):
            y = round_to(wide * scale, fmt)
        finite = np.isfinite(wide) & (wide != 0)
        size = np.abs(wide * scale)  # some formats clamp, so that y does not say what overflows
        overflows = size >= fmt.overflow_threshold if fmt.overflow_inclusive else size > fmt.overflow_threshold
        small = np.abs(y) < fmt.smallest_normal
        expected = tuple(int((finite & fate).sum()) for fate in (y == 0, small & (y != 0), overflows))
        found = count_conversion(x, fmt, loss_scale=scale)
        assert fates(found) == expected


def test_of_powers_of_two_the_histogram_says_the_same() -> None:
    x = np.random.default_rng(1).standard_normal(3000).astype(np.float32) * np.float32(1e-5)
    x[:4] = np.inf, np.nan, 0, -0.0
    for fmt in FORMATS_AND_CUSTOM:
        for k in (-140, -3, 0, 11, 30, 140):
            found = count_conversion(x, fmt, loss_scale=2.0**k)
            histogram = ExponentHistogram.of(x)
            assert fates(found) == tuple(
                getattr(histogram, f)(fmt, 2.0**k) for f in ("flushed", "subnormal", "overflowed")
            )
            assert (found.nonfinite, found.zero, found.nonzero) == (2, 2, 2996)


def test_chunks_and_several_scales_are_counted_in_one_pass() -> None:
    x = np.random.default_rng(2).standard_normal(100)
    once = [count_conversion(x, "fp8_e5m2", loss_scale=s) for s in (3.0, 1000.0)]
    assert count_conversions([x[:1], x[1:60], x[60:]], get_format("fp8_e5m2"), [3.0, 1000.0]) == once
    (nothing,) = count_conversions([], get_format("fp16"), [3.0])
    assert nothing == Conversion(get_format("fp16"), 3.0, 0, 0, 0, 0, 0, 0)


def test_scales_at_the_ends_of_doubles() -> None:
    """t/S is no double then."""
    x = [5e-324, 1.0, 1e308]
    assert fates(count_conversion(x, "fp16", loss_scale=5e-324)) == (3, 0, 0)
    assert fates(count_conversion(x, "fp16", loss_scale=1.7e308)) == (1, 0, 2)
    assert fates(count_conversion([2.0**-24], "fp16", loss_scale=math.nextafter(0.5, 1))) == (0, 1, 0)
    assert fates(count_conversion([2.0**-24], "fp16", loss_scale=0.5)) == (1, 0, 0)  # the tie


@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, "2", True])
def test_a_scale_is_positive_and_finite(scale: Any) -> None:
    with pytest.raises(ValueError, match="loss_scale must be a number above 0 and finite"):
        count_conversion([1.0], "fp16", loss_scale=scale)


def test_an_integer_that_is_no_double_is_refused() -> None:
    with pytest.raises(ValueError, match="9007199254740993"):
        count_conversion([2**53 + 1], "fp16", loss_scale=3)
