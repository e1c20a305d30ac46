"""encode, cast, decode: exhaustive where the domain is finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precision_lab.numerics import reference
from precision_lab.numerics.codes import cast, code_dtype, decode, encode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.rounding import round_to
from tests.numerics.helpers import (
    CARRIERS,
    CUSTOM,
    MODES,
    REGISTERED,
    WITH_DTYPE,
    Array,
    DType,
    as_dtype,
    assert_same,
    hard_values,
    runs,
)

carriers = pytest.mark.parametrize("dtype", CARRIERS, ids=str)


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
