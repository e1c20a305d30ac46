"""Products of matrices, every step of an accumulator rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import INFINITY, SIGN, U32, U64, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.sums import sum_to_odd


@compiled()
def multiply(column, row, out):
    """Write the exact products (of values that float32 holds); NaN is positive."""
    for i in range(column.size):
        for j in range(row.size):
            p = column[i] * row[j]
            out[i, j] = p if p == p else np.nan


@compiled()
def add_to_odd(sums, terms, out, downward):
    """Add element by element."""
    for i in range(sums.size):
        out[i] = sum_to_odd(sums[i], terms[i], downward)


@compiled()
def add_products_to_odd(sums, column, row, out, downward):
    """Add the exact products of a column and a row (of values that float32 holds)."""
    for i in range(column.size):
        a, line, target = column[i], sums[i], out[i]
        for j in range(row.size):
            target[j] = sum_to_odd(line[j], a * row[j], downward)


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
