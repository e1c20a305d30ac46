"""round_to, spacing, neighbours, is_representable: exhaustive where the domain is finite."""

from typing import Any

import numpy as np
import pytest

from precision_lab.numerics import reference
from precision_lab.numerics.codes import cast, decode, encode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.rounding import is_representable, neighbours, round_to, spacing
from tests.numerics.helpers import (
    CARRIERS,
    CUSTOM,
    MODES,
    REGISTERED,
    SWITCHES,
    UP_TO_8_BITS,
    UP_TO_16_BITS,
    Array,
    DType,
    Oracle,
    as_dtype,
    assert_same,
    bits_of,
    by_reference,
    finite_values,
    hard_values,
    runs,
)

carriers = pytest.mark.parametrize("dtype", CARRIERS, ids=str)


def every_rounding(fmt: FloatFormat, x: Array, codes: tuple[int, ...] | None = None) -> None:
    oracle = Oracle(x, fmt, codes)
    before = x.copy()
    for mode in MODES:
        for subnormals, saturate in SWITCHES:
            actual = round_to(x, fmt, mode, subnormals=subnormals, saturate=saturate)
            assert_same(actual, oracle.round(mode, subnormals, saturate), x)
    assert bits_of(x).tobytes() == bits_of(before).tobytes()


# --- round_to --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", UP_TO_16_BITS, ids=str)
@carriers
def test_every_code_mode_and_switch(fmt: FloatFormat, dtype: DType) -> None:
    every_rounding(fmt, hard_values(fmt, dtype))


@carriers
def test_fp32_at_its_boundaries(dtype: DType) -> None:
    fmt = FORMATS["fp32"]
    codes = runs(fmt, 1 << 17)
    every_rounding(fmt, hard_values(fmt, dtype, codes), codes)


@carriers
def test_every_code_of_tf32(dtype: DType) -> None:
    every_rounding(FORMATS["tf32"], hard_values(FORMATS["tf32"], dtype))


@pytest.mark.parametrize("fmt", CUSTOM, ids=str)
@carriers
def test_custom_formats(fmt: FloatFormat, dtype: DType) -> None:
    codes = None if fmt.bits <= 16 else runs(fmt, 2 ** (fmt.mantissa_bits - 1))
    every_rounding(fmt, hard_values(fmt, dtype, codes), codes)


@pytest.mark.parametrize("e", range(2, 9))
@pytest.mark.parametrize("m", range(24))
def test_every_ieee_format_at_its_boundaries(e: int, m: int) -> None:
    fmt = FloatFormat.ieee(e, m)
    codes = runs(fmt, 2 ** (fmt.bits - 1))
    if fmt.emin < -60:  # the binades at the ends and in the middle will do
        last = codes[-1]
        ends = (last >> 5, last // 2 - (last >> 6), last // 2 + (last >> 6), last - (last >> 5))
        codes = tuple(c for c in codes if c <= ends[0] or ends[1] <= c <= ends[2] or c >= ends[3])
    for dtype in CARRIERS:
        x = hard_values(fmt, dtype, codes)
        oracle = Oracle(x, fmt, codes)
        for mode in MODES:
            assert_same(round_to(x, fmt, mode), oracle.round(mode), x)


@carriers
def test_double_rounding_through_float32(dtype: DType) -> None:
    """Where it matters: a hair beside a midpoint decides in float64, and is gone in float32."""
    fmt = FORMATS["bf16"]
    x = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-40])
    through_float32 = round_to(x.astype(np.float32), fmt).astype(np.float64)
    once = round_to(x, fmt)
    assert once.tolist() == [1 + 2.0**-7, 1, 1 + 2.0**-7]
    assert through_float32.tolist() == [1, 1, 1 + 2.0**-6]


@pytest.mark.usefixtures("places_are_kept")
@pytest.mark.parametrize("fmt", REGISTERED, ids=str)
@carriers
def test_random_bit_patterns_by_the_reference(fmt: FloatFormat, dtype: DType) -> None:
    # directly, not by way of the tables: all magnitudes that the carrier has, and those near the format's range
    rng = np.random.default_rng(30)
    patterns = rng.integers(0, 2 ** (8 * dtype.itemsize), 60, dtype=np.dtype(f"u{dtype.itemsize}")).view(dtype)
    exponents = rng.uniform(fmt.emin - fmt.mantissa_bits - 2, min(fmt.emax + 1.5, 127.9), 60)
    near = (rng.choice([-1, 1], 60) * 2.0**exponents).astype(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        x = np.concatenate([patterns, near])
        for mode in MODES:
            for subnormals, saturate in SWITCHES:
                actual = round_to(x, fmt, mode, subnormals=subnormals, saturate=saturate)
                assert_same(actual, by_reference(x, fmt, mode, subnormals, saturate), x)


def test_nan_is_quiet() -> None:
    for dtype, quiet in zip(CARRIERS, (1 << 22, 1 << 51), strict=True):
        x = hard_values(FORMATS["fp4_e2m1fn"], dtype)
        nans = x[np.isnan(x)]
        assert not (bits_of(nans) & quiet).all()
        for fmt in (f for f in REGISTERED if f.has_nan):
            for mode in MODES:
                assert (bits_of(round_to(nans, fmt, mode)) & quiet).all()


# --- modes -----------------------------------------------------------------------------------------------------------


def test_modes_and_aliases() -> None:
    aliases = {
        "rne": "ties_to_even",
        "rna": "ties_to_away",
        "rtz": "toward_zero",
        "rup": "toward_positive",
        "rdn": "toward_negative",
        "rto": "to_odd",
        "sr": "stochastic",
    }
    assert {mode.value for mode in RoundingMode} == set(aliases.values())
    x = hard_values(FORMATS["fp4_e2m1fn"], CARRIERS[0])
    for alias, name in aliases.items():
        assert get_mode(alias) is get_mode(name) is RoundingMode(name)
        assert_same(round_to(x, "fp16", alias, rng=1), round_to(x, "fp16", RoundingMode(name), rng=1))


@pytest.mark.parametrize("mode", ["nearest", "", "RNE", "even", 3, None, ["rne"]])
def test_unknown_modes_are_refused_with_the_list(mode: Any) -> None:
    for function in (round_to, encode, cast):
        with pytest.raises(ValueError, match="unknown rounding mode") as error:
            function(1.0, "fp16", mode)
        message = str(error.value)
        assert "\n" not in message
        assert all(m.value in message for m in RoundingMode)


# --- spacing, neighbours, is_representable ---------------------------------------------------------------------------


def all_values(fmt: FloatFormat) -> Array:
    """Everything but NaN that the format holds, upwards."""
    magnitudes = np.append(finite_values(fmt), [np.inf] if fmt.has_infinity else [])
    return np.concatenate([-magnitudes[:0:-1], magnitudes])


@pytest.mark.parametrize("fmt", UP_TO_16_BITS, ids=str)
@carriers
def test_neighbours_by_search(fmt: FloatFormat, dtype: DType) -> None:
    x = hard_values(fmt, dtype)
    if not fmt.has_infinity:
        x = x[~np.isinf(x)]
    values = np.concatenate([[np.nan], all_values(fmt), [np.nan]])
    inner, number = values[1:-1], ~np.isnan(x)
    wide = np.where(number, x, 0).astype(np.float64)
    below = np.where(number, values[np.searchsorted(inner, wide, "left")], np.nan)
    above = np.where(number, values[np.searchsorted(inner, wide, "right") + 1], np.nan)
    lower, upper = neighbours(x, fmt)
    assert lower.dtype == upper.dtype == dtype
    np.testing.assert_array_equal(lower, below)
    np.testing.assert_array_equal(upper, above)


def test_neighbours_of_infinity_where_there_is_none() -> None:
    for fmt in (f for f in UP_TO_16_BITS if not f.has_infinity):
        lower, upper = neighbours(np.array([np.inf, -np.inf]), fmt)
        np.testing.assert_array_equal(lower, [fmt.max, np.nan])
        np.testing.assert_array_equal(upper, [np.nan, fmt.min])


@pytest.mark.parametrize("fmt", UP_TO_16_BITS, ids=str)
@carriers
def test_spacing_by_search(fmt: FloatFormat, dtype: DType) -> None:
    x = hard_values(fmt, dtype)
    values = finite_values(fmt)
    magnitude = np.abs(np.where(np.isfinite(x), x, 0).astype(np.float64))
    # of the value at or below x, the distance to the next; the largest has none: as below it, or as its last power of 2
    gaps = np.diff(values)
    last = 2.0 ** (np.floor(np.log2(fmt.max)) - fmt.mantissa_bits)
    expected = np.append(gaps, last)[np.searchsorted(values, magnitude, "right") - 1]
    assert_same(spacing(x, fmt), np.where(np.isfinite(x), expected, np.nan).astype(dtype), x)


@pytest.mark.parametrize("fmt", UP_TO_16_BITS, ids=str)
@carriers
def test_is_representable_by_search(fmt: FloatFormat, dtype: DType) -> None:
    x = hard_values(fmt, dtype)
    number, values = ~np.isnan(x), all_values(fmt)
    wide = np.where(number, x, 0).astype(np.float64)
    found = values[np.minimum(np.searchsorted(values, wide), values.size - 1)] == wide
    negative_zero = (x == 0) & np.signbit(x)
    expected = np.where(number, found & (~negative_zero | fmt.has_negative_zero), fmt.has_nan)
    actual = is_representable(x, fmt)
    assert actual.dtype == np.bool_
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("fmt", [FORMATS["fp32"], FORMATS["tf32"]], ids=str)
@carriers
def test_wide_formats_step_from_code_to_code(fmt: FloatFormat, dtype: DType) -> None:
    codes = np.array([c for c in runs(fmt, 2 ** (fmt.bits - 9)) if c > 0])
    values = np.array([reference.decode(int(c), fmt) for c in codes])
    before = np.array([reference.decode(int(c) - 1, fmt) for c in codes])
    after = np.array([reference.decode(int(c) + 1, fmt) for c in codes])
    for sign, expected in ((1, (before, after)), (-1, (-after, -before))):
        lower, upper = neighbours((sign * values).astype(dtype), fmt)
        np.testing.assert_array_equal(lower, expected[0])
        np.testing.assert_array_equal(upper, expected[1])
    finite = np.isfinite(after)
    np.testing.assert_array_equal(spacing(values.astype(dtype), fmt)[finite], (after - values)[finite])
    assert is_representable(values.astype(dtype), fmt).all()


def test_scalars_of_the_queries() -> None:
    assert spacing(1.0, "fp16") == 2.0**-10
    assert isinstance(spacing(np.float32(1), "fp16"), np.float32)
    assert spacing([0.0, -0.0], "fp16").tolist() == [2.0**-24] * 2
    lower: Any
    upper: Any
    lower, upper = neighbours(np.float32(-1), "bf16")
    assert isinstance(lower, np.float32)
    assert isinstance(upper, np.float32)
    assert (float(lower), float(upper)) == (-1 - 2.0**-7, -1 + 2.0**-8)
    assert is_representable(1.5, "fp4_e2m1fn")
    assert not is_representable(2.5, "fp4_e2m1fn")
    for function in (spacing, is_representable, lambda x, f: neighbours(x, f)[0]):
        assert function(np.zeros((3, 0, 2)), "fp16").shape == (3, 0, 2)
        assert function(np.ones((2, 3), np.float32), "fp16").shape == (2, 3)


@pytest.mark.parametrize("fmt", UP_TO_8_BITS, ids=str)
def test_queries_take_the_dtypes_that_round_to_takes(fmt: FloatFormat) -> None:
    stored = as_dtype(np.arange(2**fmt.bits, dtype=np.uint8), fmt)
    values = decode(np.arange(2**fmt.bits), fmt)
    for function in (spacing, is_representable, lambda x, f: neighbours(x, f)[1]):
        np.testing.assert_array_equal(function(stored, fmt), function(values, fmt))
    assert is_representable(stored, fmt).all()
