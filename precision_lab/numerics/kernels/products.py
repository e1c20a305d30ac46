"""Products of matrices, every step of an accumulator rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import INFINITY, SIGN, U32, U64, named, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.stochastic import random_words
from precision_lab.numerics.kernels.sums import (
    Accumulator,
    add_anything,
    by_fields,
    lift_of,
    number_at,
    rounded,
    signed_zero,
    to_odd,
    two_sum,
)


@compiled()
def add_to_odd(x, y, out):
    """Add element by element, rounded to odd."""
    for i in range(x.size):
        out[i] = reinterpret(to_odd(*two_sum(x[i], y[i])))


@compiled()
def _fill(words, first, seed):
    """Fill `words` with random numbers, four a counter, beginning with that of number `first`."""
    counter = U64(first >> U64(2))
    low, high = U64(counter & U64(0xFFFFFFFF)), U64(counter >> U64(32))
    before = min(words.size, 2 * np.int64(U64(U64(1 << 32) - low)))  # the low word must not wrap within a call
    key0, key1 = U32(seed & U64(0xFFFFFFFF)), U32(seed >> U64(32))
    random_words(words[:before], U32(low), U32(high), key0, key1)
    random_words(words[before:], U32(0), U32(high + U64(1)), key0, key1)


@compiled()
def _numbers_of(stream, words, rounding):
    """Return the random numbers of a rounding of all sums, where there are any; they lie in `words`."""
    if stream is None:
        return None
    seed, first, distance = stream[0], stream[1], stream[2]
    place = U64(first + U64(distance * U64(rounding)))
    _fill(words, place, seed)
    return words.view(np.uint16)[np.int64(place & U64(3)) :]


@compiled()
def _add(a, b, number, k):
    """Round a + b."""
    s, error = two_sum(a, b)
    return add_anything(s, error, a, b, number, k)


@compiled()
def _add_doubles(a, b, number, k):
    """Round a + b where it is a double, when it is lifted too, and does not overflow."""
    s = signed_zero(a + b, a, b, k)
    lift = lift_of(s, k)
    return by_fields(reinterpret(s + lift), lift, number, k)


def _make_rounded(add: Any, round_products: bool) -> Any:
    """Build the loop of matrix products in any mode; `add` rounds a sum."""

    @compiled()
    def rounded_products(sums, left, right, c, stream):
        """Add left @ right to `sums` in float64: k ascending, each sum rounded, and each product if it is to be.

        stream: for ``stochastic`` the seed, the number of the first rounding, and the distance to the next one of the
        same element; those of the other elements of `sums` follow one another.
        """
        k = named(Accumulator, c)
        rows, columns = sums.shape
        words = np.empty(2 * (sums.size // 4 + 2), np.uint32)
        of_products = words.copy()
        for step in range(left.shape[1]):
            if round_products:
                factors = _numbers_of(stream, of_products, 2 * step)
                numbers = _numbers_of(stream, words, 2 * step + 1)
            else:
                factors = numbers = _numbers_of(stream, words, step)
            for i in range(rows):
                a, b, line, first = np.float64(left[i, step]), right[step], sums[i], i * columns
                for j in range(columns):
                    p = a * np.float64(b[j])
                    if round_products:
                        p = rounded(p, 0.0, number_at(factors, first + j), k)
                    line[j] = add(line[j], p, number_at(numbers, first + j), k)

    return rounded_products


add_products, add_rounded_products = _make_rounded(_add, False), _make_rounded(_add, True)
add_products_of_doubles, add_rounded_products_of_doubles = (
    _make_rounded(_add_doubles, False),
    _make_rounded(_add_doubles, True),
)


# Sums that need no rounding to odd, ties to even (when, is in accumulation.py): the sum in the carrier is rounded by
# addition. As there: C = c * q with q the power of two at or below |s|, but not below the smallest normal, and
# c = 1.5 * 2^(carrier mantissa bits - mantissa bits); s may be negative. q, C and the products of two inputs are exact,
# so that it does not matter whether the processor fuses what `_muladd` leaves to it.


@intrinsic
def _muladd(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z, fused where the processor can (LLVM's fmuladd)."""
    import llvmlite.ir as ir

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        real = args[0].type
        fmuladd = builder.module.declare_intrinsic("llvm.fmuladd", [real], ir.FunctionType(real, [real] * 3))
        return builder.call(fmuladd, args)

    return x(x, x, x), codegen


@compiled()
def _even_sum(s, k, U):
    """Round a finite s that does not overflow."""
    exponent, sign, emin, c = k
    bits = reinterpret(s)
    q = reinterpret(U(max(U(bits & exponent), emin)))
    r = _muladd(q, -c, _muladd(q, c, s))
    return reinterpret(U(reinterpret(r) | U(bits & sign)))


@compiled()
def fused_even(sums, left, right, smallest_normal, c):
    """Add left @ right to `sums` in float64: k ascending, each product exact, each sum rounded."""
    k = (U64(0x7FF0000000000000), U64(0x8000000000000000), reinterpret(smallest_normal), c)
    for i in range(left.shape[0]):
        acc = sums[i]
        for step in range(left.shape[1]):
            a, b = np.float64(left[i, step]), right[step]
            for j in range(b.size):
                acc[j] = _even_sum(_muladd(a, b[j], acc[j]), k, U64)


@compiled()
def rounded_even(sums, left, right, smallest_normal, c):
    """Add left @ right to `sums` in float32: k ascending, each product and each sum rounded."""
    k = (INFINITY, SIGN, reinterpret(smallest_normal), c)
    for i in range(left.shape[0]):
        acc = sums[i]
        for step in range(left.shape[1]):
            a, b = left[i, step], right[step]
            for j in range(b.size):
                acc[j] = _even_sum(np.float32(acc[j] + _even_sum(np.float32(a * b[j]), k, U32)), k, U32)


@compiled()
def _lowest_bit(a):
    """Return the value of the lowest set bit of a normal double that is not negative; infinite for 0."""
    bits = reinterpret(a)
    rest = reinterpret(U64(bits & U64(bits - U64(1)))) if U64(bits & U64(0xFFFFFFFFFFFFF)) != U64(0) else 0.0
    return a - rest if a > 0.0 else np.inf


@compiled()
def product_extents(left, largest, lowest, total, high, low):
    """Write of each row the sum and the maximum of |a| * largest and the minimum of (lowest bit of a) * lowest.

    Magnitudes are compared as integers, which the compiler may do in any order; NaN is the largest.
    """
    for i in range(left.shape[0]):
        row = left[i]
        s = 0.0
        for step in range(row.size):
            s += abs(np.float64(row[step])) * largest[step]
        h, g = U64(0), ~U64(0)
        for step in range(row.size):
            a = abs(np.float64(row[step]))
            h = U64(max(h, reinterpret(a * largest[step])))
            g = U64(min(g, reinterpret(_lowest_bit(a) * lowest[step])))
        total[i], high[i], low[i] = s, reinterpret(h), reinterpret(g)
