"""Exact sums of products, against rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from precision_lab.numerics.kernels import product_sums

Array = NDArray[Any]
WIDEST = int(product_sums.WIDEST)
WIDTHS = (0, 1, 7, WIDEST)


def exactly(x: Array, y: Array) -> int:
    """The sum of products, each rounded to float64, in units of 2^-1074."""
    return int(sum(Fraction(p) for p in (x.astype(np.float64) * y.astype(np.float64)).tolist()) * 2**1074)


def integers(sums: Array) -> list[int]:
    words = product_sums.take_sums(sums)
    return [int.from_bytes(some.astype("<u4").tobytes(), "little", signed=True) for some in words]


def largest_exponent(x: Array) -> int:
    return int(np.frexp(np.abs(x).max())[1]) + 1022


def of_width(rng: np.random.Generator, n: int, width: int, top: int) -> Array:
    """Full significands with exponents from `top` down to `width` below, both of them there."""
    exponents = rng.integers(top - width, top + 1, n)
    exponents[[0, -1]] = top, top - width
    x = np.ldexp(rng.integers(2**52, 2**53, n) * 2.0**-52, exponents)
    x[rng.random(n) < 0.1] = 2.0 ** (top + 1) * (1 - 2.0**-53)  # as much as there can be
    x[-1] = np.ldexp(1 + 2.0**-52, top - width)  # and as little
    signed: Array = np.where(rng.random(n) < 0.5, x, -x)
    return signed


def add_three(x: Array, d: Array) -> list[int]:
    sums = np.zeros((3, product_sums.DIGITS), np.int64)
    product_sums.add_three(x, d, np.zeros_like(d), largest_exponent(x), largest_exponent(d), sums)
    return integers(sums)


@pytest.mark.parametrize("top", [0, -300, -512, -530, -545, 300, 478])
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_narrow_enough_is_exact(width: int, top: int) -> None:
    """To the last bit of the least product; underflow of products, and the largest that there may be, with it."""
    rng = np.random.default_rng(width)
    for n in (1, 5, 1023, 1024):
        x, d = of_width(rng, n, width, top), of_width(rng, n, WIDEST - width, min(top, 128))
        assert add_three(x, d) == [exactly(x, x), exactly(d, d), exactly(d, x)]
        sums = np.zeros((3, product_sums.DIGITS), np.int64)
        product_sums.add_squares(x, largest_exponent(x), sums)
        assert integers(sums) == [exactly(x, x), 0, 0]


def test_a_thousand_remainders_of_one_sign_do_not_overflow() -> None:
    """Each just below half of the last place, with bits as far down as they may be."""
    x = np.full(1024, 2.0 - 2.0**-52)
    x[-1] = 2.0**-WIDEST * (1 + 2.0**-52)
    d = np.full(1024, 1 - 2.0**-50)
    assert add_three(x, d) == [exactly(x, x), exactly(d, d), exactly(d, x)]


def test_what_is_wider_is_not() -> None:
    """The bound is no larger than it may be."""
    x = np.full(1024, 2.0 - 2.0**-52)
    x[-1] = 2.0 ** -(WIDEST + 3) * (1 + 2.0**-52)
    assert add_three(x, x)[0] != exactly(x, x)


def test_differences_are_taken_in_float64() -> None:
    x, a, b = (np.array(some, np.float32) for some in ([2.0**80, 2.0**81], [1, 3], [2.0**-30, -(2.0**-30)]))
    d = a.astype(np.float64) - b
    sums = np.zeros((3, product_sums.DIGITS), np.int64)
    product_sums.add_three(x, a, b, largest_exponent(x), largest_exponent(d), sums)
    assert integers(sums) == [exactly(x, x), exactly(d, d), exactly(d, x)]


@pytest.mark.parametrize("n", [1, 1000, 1024])
def test_anything_is_exact(n: int) -> None:
    rng = np.random.default_rng(n)
    for top in (479, 0, -600):
        x = np.ldexp(rng.standard_normal(n), np.maximum(rng.integers(-1073, top - 3, n), -1073))
        y = np.ldexp(rng.standard_normal(n), rng.integers(-1073, 100, n))
        x[0], y[0] = 2.0**top, -(2.0**128)
        sums = np.zeros((1, product_sums.DIGITS), np.int64)
        tops = (product_sums.exponent_of_largest(some) for some in (x, y))
        product_sums.add_any(x, y, *tops, np.empty(n), sums[0])
        assert integers(sums) == [exactly(x, y)]
    assert product_sums.exponent_of_largest(np.array([0.0, -0.0])) == -1


def test_sums_carry_and_have_signs() -> None:
    sums = np.zeros((2, product_sums.DIGITS), np.int64)
    sums[0, :3], sums[1, :3] = (-1, 2**62, -5), (2**32, -(2**63), 0)
    expected = [-1 + 2**94 - 5 * 2**64, 2**32 - 2**95]
    assert integers(sums) == expected
