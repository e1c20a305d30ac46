"""Products of matrices, every step of an accumulator rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import INFINITY, MAGNITUDE, SIGN, U32, U64, named, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.stochastic import random_words
from precision_lab.numerics.kernels.sums import (
    Accumulator,
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


@compiled(forceinline=True)
def _numbers_of(stream, words, rounding):
    """Return the random numbers of a rounding of all sums, where there are any; they lie in `words`."""
    if stream is None:
        return None
    seed, first, distance = stream[0], stream[1], stream[2]
    place = U64(first + U64(distance * U64(rounding)))
    _fill(words, place, seed)
    return words.view(np.uint16)[np.int64(place & U64(3)) :]


@compiled(forceinline=True)
def _add(a, b, number, k):
    """Round a + b, which does not overflow in float64."""
    s, error = two_sum(a, b)
    return rounded(signed_zero(s, a, b, k), error, number, k)


@compiled(forceinline=True)
def _round(x, number, k):
    """Round a double."""
    return rounded(x, 0.0, number, k)


@compiled(forceinline=True)
def _round_double(s, number, k):
    """Round what is a double when it is lifted, too, to a finite value of a format of more than one significand bit."""
    lift = lift_of(s, abs(s) < k.smallest_normal, k)
    return by_fields(reinterpret(s + lift), lift, k.dither, number, k)


@compiled(forceinline=True)
def _add_doubles(a, b, number, k):
    """Round a + b under the same conditions, in every mode but ``toward_negative``."""
    return _round_double(a + b, number, k)


@compiled(forceinline=True)
def _add_doubles_downward(a, b, number, k):
    """Round a + b under the same conditions."""
    return _round_double(signed_zero(a + b, a, b, k), number, k)


def _make_rounded(add: Any, round_product: Any, round_products: bool) -> Any:
    """Build the loop of matrix products in any mode, of functions that round a sum and, if it is to be, a product."""

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
                        p = round_product(p, number_at(factors, first + j), k)
                    line[j] = add(line[j], p, number_at(numbers, first + j), k)

    return rounded_products


add_products, add_rounded_products = (_make_rounded(_add, _round, rounds) for rounds in (False, True))
add_products_of_doubles, add_rounded_products_of_doubles = (
    _make_rounded(_add_doubles, _round_double, rounds) for rounds in (False, True)
)
add_products_of_doubles_downward, add_rounded_products_of_doubles_downward = (
    _make_rounded(_add_doubles_downward, _round_double, rounds) for rounds in (False, True)
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


@compiled(forceinline=True)
def _even_in_units(s, k, U):
    """Round a finite s that does not overflow and is a multiple of the smallest subnormal; zero loses its sign."""
    exponent, _, _, c = k
    q = reinterpret(U(reinterpret(s) & exponent))
    return _muladd(q, -c, _muladd(q, c, s))


@compiled(forceinline=True)
def _even_unsigned(s, k, U):
    """Round a finite s that does not overflow; zero loses its sign."""
    exponent, _, smallest_normal, c = k
    q = reinterpret(U(reinterpret(s) & exponent))
    q = q if q > smallest_normal else smallest_normal  # of floats, for which AVX2 has an instruction
    return _muladd(q, -c, _muladd(q, c, s))


@compiled(forceinline=True)
def _even(s, k, U):
    """Round a finite s that does not overflow."""
    sign = k[1]
    return reinterpret(U(reinterpret(_even_unsigned(s, k, U)) | U(reinterpret(s) & sign)))


def _make_fused(even: Any) -> Any:
    """Build the loop for exact products, of the function that rounds a sum."""

    @compiled(forceinline=True)
    def added(s, a, b, k):
        return even(_muladd(a, b, s), k, U64)

    @compiled()
    def fused(sums, left, right, smallest_normal, c):
        """Add left @ right to `sums` in float64: k ascending, each product exact, each sum rounded."""
        k = (U64(0x7FF0000000000000), U64(0x8000000000000000), smallest_normal, c)
        steps = left.shape[1]
        fours = steps - steps % 4
        for i in range(left.shape[0]):
            acc = sums[i]
            for step in range(0, fours, 4):  # so that sums are read and written once in four steps
                a0, a1 = np.float64(left[i, step]), np.float64(left[i, step + 1])
                a2, a3 = np.float64(left[i, step + 2]), np.float64(left[i, step + 3])
                b0, b1, b2, b3 = right[step], right[step + 1], right[step + 2], right[step + 3]
                for j in range(acc.size):
                    s = added(added(acc[j], a0, b0[j], k), a1, b1[j], k)
                    acc[j] = added(added(s, a2, b2[j], k), a3, b3[j], k)
            for step in range(fours, steps):
                a, b = np.float64(left[i, step]), right[step]
                for j in range(acc.size):
                    acc[j] = added(acc[j], a, b[j], k)

    return fused


def _make_rounded_even(even: Any) -> Any:
    """Build the loop for rounded products, of the function that rounds both."""

    @compiled()
    def rounded_even(sums, left, right, smallest_normal, c):
        """Add left @ right to `sums` in float32: k ascending, each product and each sum rounded."""
        k = (INFINITY, SIGN, smallest_normal, c)
        for i in range(left.shape[0]):
            acc = sums[i]
            for step in range(left.shape[1]):
                a, b = left[i, step], right[step]
                for j in range(acc.size):
                    acc[j] = even(np.float32(acc[j] + even(np.float32(a * b[j]), k, U32)), k, U32)

    return rounded_even


fused_even, rounded_even = _make_fused(_even), _make_rounded_even(_even)
fused_even_unsigned, rounded_even_unsigned = _make_fused(_even_unsigned), _make_rounded_even(_even_unsigned)
fused_even_in_units, rounded_even_in_units = _make_fused(_even_in_units), _make_rounded_even(_even_in_units)


@compiled()
def extents_of_rows(x, largest, lowest):
    """Write of each row the largest magnitude and the value of the lowest bit of all; infinite where all are 0.

    Magnitudes are compared as integers, which the compiler may do in any order; NaN is the largest.
    """
    for i in range(x.shape[0]):
        row = x[i]
        high, low = U32(0), INFINITY
        for j in range(row.size):
            a = U32(reinterpret(row[j]) & MAGNITUDE)
            rest = U32(a & U32(a - U32(1))) if U32(a & U32(0x7FFFFF)) != U32(0) else U32(0)  # without its lowest bit
            bit = reinterpret(np.float32(reinterpret(a) - reinterpret(rest)))
            bit = bit if a != U32(0) else INFINITY
            high, low = U32(max(high, a)), U32(min(low, bit))
        largest[i], lowest[i] = reinterpret(high), reinterpret(low)


@compiled(fastmath={"reassoc"})
def extents_of_products(left, largest, lowest, total, high, low):
    """Write of each row the sum and the maximum of |a| * largest and the minimum of (lowest bit of a) * lowest.

    The sum is added in any order: it is a bound, and none of its terms is negative.
    """
    for i in range(left.shape[0]):
        row = left[i]
        s = 0.0
        for step in range(row.size):
            s += abs(np.float64(row[step])) * largest[step]
        h, g = U64(0), reinterpret(np.inf)
        for step in range(row.size):
            a = U32(reinterpret(row[step]) & MAGNITUDE)
            rest = U32(a & U32(a - U32(1))) if U32(a & U32(0x7FFFFF)) != U32(0) else U32(0)
            bit = np.float64(reinterpret(a)) - np.float64(reinterpret(rest))
            bit = bit if a != U32(0) else np.inf
            h = U64(max(h, reinterpret(np.float64(reinterpret(a)) * largest[step])))
            g = U64(min(g, reinterpret(bit * lowest[step])))
        total[i], high[i], low[i] = s, reinterpret(h), reinterpret(g)
