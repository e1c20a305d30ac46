"""round_to, encode, decode, cast, spacing, neighbours, is_representable: exhaustive where the domain is finite."""

from typing import Any

import numpy as np
import pytest

from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.rounding import (
    cast,
    code_dtype,
    decode,
    encode,
    is_representable,
    neighbours,
    round_to,
    spacing,
)
from tests.numerics.helpers import (
    CARRIERS,
    MODES,
    REGISTERED,
    SWITCHES,
    UP_TO_8_BITS,
    UP_TO_16_BITS,
    WITH_DTYPE,
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

# beside the registered ones: no or all fraction bits, the carrier's exponents, few exponents, every kind of specials
CUSTOM = [
    *(FloatFormat.ieee(e, m) for e, m in ((8, 0), (5, 0), (2, 0), (2, 1), (8, 1), (8, 22), (7, 23), (5, 22), (6, 9))),
    FloatFormat("fn_e8m4", 7, 4, 63, "fn"),
    FloatFormat("fnuz_without_fraction", 4, 0, 8, "fnuz"),
    FloatFormat("finite_without_fraction", 3, 0, 3, "finite"),
    FloatFormat("fnuz_of_float32_range", 7, 5, 127, "fnuz"),
    FloatFormat("finite_at_the_top", 4, 3, -2, "finite"),
    FloatFormat("ieee_at_the_top", 3, 2, -1, "ieee"),
    FloatFormat("ieee_at_the_bottom", 4, 3, 108, "ieee"),
    FloatFormat("ieee_small_subnormals", 6, 11, 100, "ieee"),
]
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


# --- codes -----------------------------------------------------------------------------------------------------------


def some_codes(fmt: FloatFormat) -> Array:
    if fmt.bits <= 16:
        return np.arange(2**fmt.bits, dtype=code_dtype(fmt))
    positive = {*runs(fmt, 2 ** (fmt.bits - 10)), *(2 ** (fmt.bits - 1) - np.arange(1, 5))}
    sign = 2 ** (fmt.bits - 1)
    return np.array(sorted(positive | {c + sign for c in positive}), code_dtype(fmt))


@pytest.mark.parametrize(("width", "bits"), [(np.uint8, range(3, 9)), (np.uint16, range(9, 17)), (np.uint32, [17, 32])])
def test_code_dtype(width: Any, bits: Any) -> None:
    for fmt in (*REGISTERED, *CUSTOM):
        if fmt.bits in bits:
            assert code_dtype(fmt) == width


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM], ids=str)
def test_decode_every_code(fmt: FloatFormat) -> None:
    codes = some_codes(fmt)
    expected = np.array([reference.decode(int(code), fmt) for code in codes])
    assert_same(decode(codes, fmt, np.float64), expected)
    assert_same(decode(codes, fmt), expected.astype(np.float32))
    assert_same(decode(codes.astype(np.int64), fmt, "float32"), expected.astype(np.float32))


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM], ids=str)
@carriers
def test_encode_undoes_decode(fmt: FloatFormat, dtype: DType) -> None:
    codes = some_codes(fmt)
    values = decode(codes, fmt, dtype)
    back = encode(values, fmt)
    assert back.dtype == code_dtype(fmt)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(back[numbers], codes[numbers])
    # a value of the format is a fixed point of every mode
    for mode in MODES:
        assert_same(round_to(values, fmt, mode), values)
    if fmt.has_nan:
        nans = back[~numbers]
        assert np.isnan(decode(nans, fmt)).all()
        np.testing.assert_array_equal(np.signbit(decode(nans, fmt)), np.signbit(values[~numbers]))


@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [
        ("fp32", 0x7FC00000, 0xFFC00000),
        ("tf32", 0x3FE00, 0x7FE00),
        ("fp16", 0x7E00, 0xFE00),
        ("bf16", 0x7FC0, 0xFFC0),
        ("fp8_e4m3fn", 0x7F, 0xFF),
        ("fp8_e5m2", 0x7E, 0xFE),
        ("fp8_e4m3", 0x7C, 0xFC),
        ("fp8_e3m4", 0x78, 0xF8),
        ("fp8_e4m3fnuz", 0x80, 0x80),
        ("fp8_e5m2fnuz", 0x80, 0x80),
        ("fp8_e4m3b11fnuz", 0x80, 0x80),
        ("fp6_e2m3fn", 0x20, 0x00),  # no NaN: the zero of the other sign
        ("fp6_e3m2fn", 0x20, 0x00),
        ("fp4_e2m1fn", 0x8, 0x0),
    ],
)
@carriers
def test_nan_codes(name: str, positive: int, negative: int, dtype: DType) -> None:
    assert encode(np.array([np.nan, -np.nan], dtype), name).tolist() == [positive, negative]


@pytest.mark.parametrize("fmt", REGISTERED, ids=str)
@carriers
def test_encode_is_round_to_in_codes(fmt: FloatFormat, dtype: DType) -> None:
    codes = runs(fmt, 2 ** (fmt.bits - 10)) if fmt.bits > 16 else None
    x = hard_values(fmt, dtype, codes)
    if x.size > 100_000:
        x = x[:: x.size // 100_000]
    for mode in MODES:
        for subnormals, saturate in ((True, False), (False, True)):
            options: dict[str, Any] = {"subnormals": subnormals, "saturate": saturate}
            rounded, encoded = round_to(x, fmt, mode, **options), encode(x, fmt, mode, **options)
            assert_same(decode(encoded, fmt, dtype), rounded)
            if fmt.dtype is not None:
                stored = cast(x, fmt, mode, **options)
                assert stored.dtype == fmt.dtype
                np.testing.assert_array_equal(stored.view(encoded.dtype), encoded)
    x = x[:1000]
    np.testing.assert_array_equal(encode(round_to(x, fmt, "sr", rng=3), fmt), encode(x, fmt, "sr", rng=3))


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
def test_cast_and_back(fmt: FloatFormat) -> None:
    """An array of the format's own dtype comes back as it is, by every door."""
    codes = some_codes(fmt)
    stored = as_dtype(codes, fmt)
    values = decode(codes, fmt)
    assert_same(round_to(stored, fmt), values)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(cast(stored, fmt)[numbers].view(codes.dtype), codes[numbers])


@pytest.mark.parametrize("fmt", [FORMATS["tf32"], FloatFormat.ieee(5, 10)], ids=str)
def test_cast_needs_a_dtype(fmt: FloatFormat) -> None:
    with pytest.raises(ValueError, match="no NumPy or ml_dtypes dtype") as error:
        cast([1.0], fmt)
    assert fmt.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("codes", "fmt", "message"),
    [
        ([256], "fp8_e5m2", "0..0xff"),
        ([-1], "fp16", "0..0xffff"),
        ([0, 16], "fp4_e2m1fn", "0..0xf"),
        ([64], "fp6_e3m2fn", "0..0x3f"),
        ([1 << 19], "tf32", "0..0x7ffff"),
        ([2**32], "fp32", "0..0xffffffff"),
        (np.array([2**63], np.uint64), "fp32", "0..0xffffffff"),
        ([1.0], "fp16", "codes must be integers, got float64"),
        ([True], "fp16", "codes must be integers, got bool"),
        (["1"], "fp16", "codes must be integers"),
    ],
)
def test_decode_refuses(codes: Any, fmt: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        decode(codes, fmt)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float16, "int32", np.complex64, ">f4"])
def test_decode_refuses_other_dtypes(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        decode([1], "fp16", dtype)


def test_decode_shapes() -> None:
    assert decode(np.uint16(0x3C00), "fp16") == 1
    assert isinstance(decode(0x3C00, "fp16"), np.float32)
    assert isinstance(decode(0x3F800000, "fp32", np.float64), np.float64)
    assert decode(np.zeros((2, 0, 3), np.uint8), "fp16").shape == (2, 0, 3)
    assert decode([[0x3C00], [0xC000]], "fp16").tolist() == [[1], [-2]]
    codes = np.arange(24, dtype=np.uint8).reshape(4, 6)[::-2, ::3]
    np.testing.assert_array_equal(decode(codes, "fp8_e5m2"), decode(codes.copy(), "fp8_e5m2"))


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
