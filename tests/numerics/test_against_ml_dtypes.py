"""cast and decode against the casts of ml_dtypes and NumPy, code by code."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab.numerics.codes import cast, code_dtype, decode, encode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.rounding import round_to
from tests.numerics.helpers import UP_TO_16_BITS, WITH_DTYPE, Array, as_dtype, bits_of, hard_values, runs

FLOAT32 = np.dtype(np.float32)
CHUNK = 1 << 24


def theirs(x: Array, fmt: FloatFormat) -> Array:
    """Codes that NumPy or ml_dtypes gives for x."""
    assert fmt.dtype is not None
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        stored: Array = x.astype(fmt.dtype)
    return stored.view(code_dtype(fmt))


def mismatches(x: Array, fmt: FloatFormat) -> int:
    """Count where the codes differ. NaN has any payload there and one here: both must be NaN of the same sign."""
    ours, expected = encode(x, fmt), theirs(x, fmt)
    differ = np.flatnonzero(ours != expected)
    if fmt.has_nan and differ.size:
        a, b = decode(ours[differ], fmt), decode(expected[differ], fmt)
        differ = differ[~(np.isnan(a) & np.isnan(b) & (np.signbit(a) == np.signbit(b)))]
    return int(differ.size)


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
def test_random_float32_patterns(fmt: FloatFormat) -> None:
    x = np.random.default_rng(40).integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    assert mismatches(x, fmt) == 0


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
def test_random_float32_in_the_range_of_the_format(fmt: FloatFormat) -> None:
    rng = np.random.default_rng(41)
    exponents = rng.uniform(fmt.emin - fmt.mantissa_bits - 2, min(fmt.emax + 1.5, 127.9), 200_000)
    x = (rng.choice([-1, 1], exponents.size) * 2.0**exponents).astype(np.float32)
    assert mismatches(x, fmt) == 0


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
@pytest.mark.parametrize("like", WITH_DTYPE, ids=str)
def test_hard_float32_values(fmt: FloatFormat, like: FloatFormat) -> None:
    """What is hard for one format is cast to all."""
    x = hard_values(like, FLOAT32, runs(like, 2 ** (like.mantissa_bits - 1)) if like.bits == 32 else None)
    assert mismatches(x, fmt) == 0


@pytest.mark.parametrize("fmt", UP_TO_16_BITS, ids=str)
def test_decode_of_every_code(fmt: FloatFormat) -> None:
    codes = np.arange(2**fmt.bits, dtype=code_dtype(fmt))
    expected = as_dtype(codes, fmt).astype(np.float32)
    actual = decode(codes, fmt)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
def test_every_value_of_the_other_formats(fmt: FloatFormat) -> None:
    for other in UP_TO_16_BITS:
        x = as_dtype(np.arange(2**other.bits, dtype=code_dtype(other)), other)
        with np.errstate(over="ignore", invalid="ignore"):
            wide = x.astype(np.float32)
        expected = encode(wide, fmt)
        np.testing.assert_array_equal(cast(x, fmt).view(expected.dtype), expected)
        assert mismatches(wide, fmt) == 0


def test_a_mismatch_is_counted() -> None:
    x = np.array([1.0, 1 + 2.0**-8 + 2.0**-40])  # ml_dtypes is wrong on the second, see test_traps.py
    assert mismatches(x, FORMATS["bf16"]) == 1


def all_float32(chunk: int = CHUNK) -> Iterator[Array]:
    """All 2^32 bit patterns in order."""
    for start in range(0, 2**32, chunk):
        yield np.arange(start, start + chunk, dtype=np.uint64).astype(np.uint32).view(np.float32)


def count(where: Array) -> int:
    return int(np.count_nonzero(where))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_all_float32_patterns(name: str, dtype: Any) -> None:
    wrong_codes = wrong_values = seen = 0
    for x in all_float32():
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            expected = x.astype(dtype)
        codes, values, wide = encode(x, name), round_to(x, name), expected.astype(np.float32)
        nan = np.isnan(x)
        signed = np.signbit(values) == np.signbit(x)
        wrong_codes += count((codes != bits_of(expected)) & ~nan)
        wrong_values += count((bits_of(values) != bits_of(wide)) & ~nan)
        if nan.any():
            right = np.isnan(values) & np.isnan(wide) & signed & np.isnan(codes.view(dtype).astype(np.float32))
            wrong_values += count(nan & ~right)
        seen += x.size
    assert (seen, wrong_codes, wrong_values) == (2**32, 0, 0)
