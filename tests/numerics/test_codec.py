"""The unchecked loops against the checked ones and against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab.numerics import reference
from precision_lab.numerics.codec import Codec, adam, codec, largest_magnitude, stored_dtype
from precision_lab.numerics.codes import code_dtype, encode
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.rounding import Array, round_to
from precision_lab.numerics.verification import hard_patterns

FP32 = get_format("fp32")
NARROW = [f for f in FORMATS.values() if f.bits <= 16] + [
    get_format(name) for name in ("e6m9", "e8m0_ieee", "e2m0", "e7m8")
]


@pytest.mark.parametrize("fmt", NARROW, ids=str)
def test_every_code_decodes_to_its_value_and_encodes_back(fmt: FloatFormat) -> None:
    codes = np.arange(2**fmt.bits).astype(code_dtype(fmt))
    values = codec(fmt).decode(codes.view(stored_dtype(fmt)))
    expected = np.array([reference.decode(int(code), fmt) for code in codes], np.float32)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    np.testing.assert_array_equal(np.signbit(values), np.signbit(expected))
    np.testing.assert_array_equal(values, expected)
    again = codec(fmt).encode(values)
    assert again.dtype == stored_dtype(fmt)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(again.view(code_dtype(fmt))[numbers], codes[numbers])
    np.testing.assert_array_equal(np.isnan(codec(fmt).decode(again)), ~numbers)


@pytest.mark.parametrize("fmt", [*NARROW, get_format("tf32"), FP32], ids=str)
def test_round_and_encode_are_those_that_check(fmt: FloatFormat) -> None:
    x = hard_patterns().view(np.float32)
    before = x.copy()
    rounded = codec(fmt).round(x)
    expected = np.asarray(round_to(x, fmt)) if fmt != FP32 else x
    np.testing.assert_array_equal(rounded.view(np.uint32), expected.view(np.uint32))
    if fmt != FP32:
        for values in (x, rounded):
            codes = codec(fmt).encode(values).view(code_dtype(fmt))
            np.testing.assert_array_equal(codes, np.asarray(encode(x, fmt)), strict=True)
        assert not np.shares_memory(rounded, x)
    np.testing.assert_array_equal(x.view(np.uint32), before.view(np.uint32))


def sum_of(x: float, y: float, z: float, fmt: FloatFormat) -> float:
    arrays = (np.full(20, value, np.float32) for value in (y, z))
    result = codec(fmt).compute("scaled_sum_32", np.float32(x), *arrays)
    assert np.all(result == result[0])
    return float(result[0])


@given(*[st.floats(2.0**-20, 2.0**20, width=32) | st.floats(-(2.0**20), -(2.0**-20), width=32)] * 3)
def test_a_product_and_a_sum_are_rounded_once(x: float, y: float, z: float) -> None:
    expected = reference.round_to(Fraction(x) * Fraction(y) + Fraction(z), FP32)
    assert sum_of(x, y, z, FP32) == expected
    assert sum_of(x, y, z, get_format("bf16")) == reference.round_to(expected, get_format("bf16"))


def test_two_roundings_would_be_seen() -> None:
    x = 1 + 2.0**-12
    assert sum_of(x, x, -1 - 2.0**-11, FP32) == 2.0**-24
    assert np.float32(x) * np.float32(x) - np.float32(1 + 2.0**-11) == 0


@pytest.mark.parametrize("fmt", [*NARROW, *map(get_format, ("tf32", "fp32", "e5m23", "e8m22", "e2m23"))], ids=str)
def test_the_loops_round_as_round_to_does(fmt: FloatFormat) -> None:
    x = hard_patterns().view(np.float32)
    x = x[~np.isnan(x)]  # an operation may make any NaN of a NaN
    rounded = codec(fmt).compute("scaled_sum_32", np.float32(1), x, np.copysign(np.float32(0), x))
    np.testing.assert_array_equal(rounded.view(np.uint32), np.asarray(round_to(x, fmt)).view(np.uint32))
    nan = codec(fmt).compute("scaled_sum_32", np.float32(1), np.full(3, np.nan, np.float32), np.zeros(3, np.float32))
    assert np.all(np.isnan(nan) if fmt.has_nan else nan == 0)


Pair = tuple[Array, Array]


def kahan(w: Array, y: Array, to: Codec) -> Pair:
    total = to.round(w + y)
    return total, to.round(y - to.round(total - w))


def grow(m: Array, r: Array, v: Array, to: Codec) -> Pair:
    x = to.round(m + v)
    r = to.round(r + to.round(v - to.round(x - m)))
    m = to.round(x + r)
    return m, to.round(r - to.round(m - x))


def pair_product(high: np.float32, low: np.float32, m: Array, r: Array, to: Codec) -> Pair:
    x = to.round(high * m)
    error = to.compute("scaled_sum_32", high, m, -x)
    r = to.round(to.compute("scaled_sum_32", low, m, to.round(high * r)) + error)
    m = to.round(x + r)
    return m, to.round(r - to.round(m - x))


@pytest.mark.parametrize("fmt", [*NARROW, get_format("tf32"), FP32], ids=str)
def test_loops_with_two_results_round_every_operation(fmt: FloatFormat) -> None:
    """Operands of the format and others, of every size, with infinities and NaN among them."""
    to, rng = codec(fmt), np.random.default_rng(4)
    with np.errstate(invalid="ignore"):
        nan = np.subtract(np.inf, np.inf, dtype=np.float32)  # with this processor's sign, which formats without NaN see
    special = np.array([0, -0.0, np.inf, -np.inf, nan, fmt.max, fmt.smallest_subnormal, 2.0**-149], np.float32)
    for top in (3, 20, 140):
        x = [np.ldexp(rng.standard_normal(4000), rng.integers(-top, min(top, 126), 4000)) for _ in range(3)]
        m, r, v = (np.where(rng.random(4000) < 0.02, rng.choice(special, 4000), y.astype(np.float32)) for y in x)
        high, low = np.float32(1), np.float32(-0.00099945)
        with np.errstate(all="ignore"):
            for a, b, c in ((m, r, v), (to.round(m), to.round(np.ldexp(r, -8)), to.round(v))):
                same(to.compute_pair("kahan_32", a, c), kahan(a, c, to))
                same(to.compute_pair("grow_32", a, b, c), grow(a, b, c, to))
                same(to.compute_pair("pair_product_32", high, low, a, b), pair_product(high, low, a, b, to))


@pytest.mark.parametrize("second", [*NARROW, get_format("tf32"), FP32], ids=str)
@pytest.mark.parametrize("first", [FP32, get_format("bf16"), get_format("fp8_e4m3fn")], ids=str)
def test_adam_is_its_three_loops(first: FloatFormat, second: FloatFormat) -> None:
    """In sizes around that of a tile, from either end of the interpolation, with hard values among others."""
    a, b, rng = codec(first), codec(second), np.random.default_rng(5)
    special = np.array([0, -0.0, np.inf, -np.inf, 2.0**-149, 2.0**-126, 3e38, second.max, first.max], np.float32)
    if first.has_nan and second.has_nan:
        special = np.append(special, np.float32(np.nan))
    for size in (0, 1, 31, 1023, 1024, 1025, 3 * 1024 + 7):
        for weight, beta in ((0.1, 0.999), (0.5, 0.0), (0.75, 0.5)):
            spread = np.ldexp(rng.standard_normal((3, size)), rng.integers(-30, 20, (3, size))).astype(np.float32)
            m, v, g = np.where(rng.random((3, size)) < 0.05, rng.choice(special, (3, size)), spread)
            w, numbers = np.float32(weight), (np.float32(beta), np.float32(1 - beta))
            last = np.float32(-1e-3), np.float32(0.8), np.float32(1e-6)
            with np.errstate(all="ignore"):
                new_m, new_v = a.compute("lerp_32", w, m, g), b.compute("mean_square_32", *numbers, v, g)
                direction = b.compute("adam_direction_32", *last, new_m, new_v)
                same(adam(a, b, w, *numbers, *last, m, v, g), (new_m, new_v, direction))


def same(ours: tuple[Array, ...], theirs: tuple[Array, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        alike = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
        assert alike.all(), (a[~alike], b[~alike])


def test_the_largest_magnitude() -> None:
    for values, expected in (
        ([], 0.0),
        ([-0.0], 0.0),
        ([1, -3, 2], 3.0),
        ([-(2.0**-149)], 2.0**-149),
        ([1, -np.inf], np.inf),
        ([np.inf, np.nan, -np.inf], np.nan),
        ([-np.nan, 5], np.nan),
    ):
        np.testing.assert_equal(largest_magnitude(np.array(values, np.float32)), expected)
    x = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    assert largest_magnitude(x) == np.abs(x).max()
