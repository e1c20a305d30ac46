"""The arithmetic of optimizers, each operation rounded as it is done.

What training/optimizers.py computes, R being `_even` with the constants `EvenFields`. A sum with a product in it is
one fma, as in torch's vectorised loops.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import (
    INFINITY,
    MAGNITUDE,
    SIGN,
    TILE,
    U32,
    U64,
    borrowed,
    named,
    reinterpret,
)
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.rounding import finish


@intrinsic
def _fma_of_processor(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Compute x * y + z, rounded once, by the instruction."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return x(x, x, x), codegen


@compiled()
def _fma_in_doubles(x, y, z):
    """Compute the same, of float32, without the instruction: where there is none, LLVM calls a function for each.

    The product is exact in float64. So is the error of the sum (Knuth's TwoSum), which tells a sum to odd: rounded once
    more, from 53 bits to 24, it is the exact one rounded once (Boldo, Melquiond 2008).
    """
    p, z = np.float64(x) * np.float64(y), np.float64(z)
    s = p + z
    part = s - p
    error = (p - (s - part)) + (z - part)
    bits = reinterpret(s)
    inexact = error != 0.0 and error - error == 0.0 and (bits & U64(1)) == U64(0)  # infinities and NaN stay
    away = (error > 0.0) == (s > 0.0)
    odd = U64(bits + U64(1)) if away else U64(bits - U64(1))
    return np.float32(reinterpret(odd if inexact else bits))


_TARGET: Any = cpu_target
_TRIPLE, _, _FEATURES = _TARGET.target_context.codegen().magic_tuple()
HAS_FMA = not _TRIPLE.startswith("x86_64") or "+fma" in _FEATURES.split(",")
"""Whether numba compiles for a processor that has the instruction, as all of 64 bits but old x86 ones do."""

_fma = _fma_of_processor if HAS_FMA else _fma_in_doubles


ALL = U32(0xFFFFFFFF)


class EvenFields(NamedTuple):
    """The constants of `_even`."""

    keep: int  # the bits that the format has
    last: int  # of which one is set in an odd value
    below_half: int
    smallest_normal: float
    shift_out: float  # added, it rounds to the spacing of subnormals
    largest: float
    overflow: float  # what is beyond `largest` becomes this
    lost_zero: int  # these three as in `rounding.ByAddition`
    nan_keep: int
    nan_flip: int


@compiled()
def _even(x, k):
    """Round one float32, ties to even: by fields, and by addition below the smallest normal; for any format."""
    b = reinterpret(np.float32(x))
    a = U32(b & MAGNITUDE)
    v = reinterpret(a)
    odd = U32(1) if U32(a & k.last) != U32(0) else U32(0)
    r = reinterpret(U32(U32(U32(a + k.below_half) + odd) & k.keep))
    r = np.float32(np.float32(v + k.shift_out) - k.shift_out) if v < k.smallest_normal else r
    r = k.overflow if r > k.largest else r
    r = v if v != v else r
    return reinterpret(finish(r, b, SIGN, k, U32, np.float32))


@compiled()
def round_even(x, k):
    """Round an array in place, each as `_even` does; with less to do where the format has float32's exponents."""
    if k.keep == ALL and k.nan_keep == ALL:
        return
    if k.smallest_normal == np.float32(0) and k.lost_zero == U32(0):
        largest, overflow = reinterpret(k.largest), reinterpret(k.overflow)
        for i in range(x.size):
            b = reinterpret(x[i])
            a = U32(b & MAGNITUDE)
            odd = U32(1) if U32(a & k.last) != U32(0) else U32(0)
            r = U32(U32(U32(a + k.below_half) + odd) & k.keep)
            r = overflow if r > largest else r
            r = U32(r | U32(b & SIGN))
            x[i] = reinterpret(U32(U32(b & k.nan_keep) ^ k.nan_flip) if a > INFINITY else r)
    else:
        for i in range(x.size):
            x[i] = _even(x[i], k)


@compiled()
def largest_magnitude_32(x):
    """Return the largest magnitude; NaN, which is the largest, where there is one."""
    largest = U32(0)
    for i in range(x.size):
        largest = max(largest, U32(reinterpret(x[i]) & MAGNITUDE))
    return reinterpret(U32(largest))


@compiled()
def scaled_sum_32(x, y, z, out, c):
    """Compute R(x * y + z) of a float32 number x and arrays."""
    k = named(EvenFields, c)
    for i in range(out.size):
        out[i] = _fma(x, y[i], z[i])
    round_even(out, k)


@compiled()
def lerp_32(weight, m, g, out, c):
    """Compute R(m + weight * (g - m)) from the nearer end, as torch does."""
    k = named(EvenFields, c)
    near = weight < np.float32(0.5)
    factor = weight if near else np.float32(weight - np.float32(1))
    end = m if near else g
    for i in range(out.size):
        out[i] = _fma(factor, np.float32(g[i] - m[i]), end[i])
    round_even(out, k)


@compiled()
def mean_square_32(beta, rest, v, g, out, c):
    """Compute R(R(beta * v) + (rest * g) * g)."""
    k = named(EvenFields, c)
    for i in range(out.size):
        out[i] = beta * v[i]
    round_even(out, k)
    for i in range(out.size):
        out[i] = _fma(np.float32(rest * g[i]), g[i], out[i])
    round_even(out, k)


@compiled(error_model="numpy")  # division by zero is no error
def adam_direction_32(scale, correction, epsilon, m, v, out, c):
    """Compute (scale * m) / R(R(R(sqrt(v)) / correction) + epsilon)."""
    k = named(EvenFields, c)
    for i in range(out.size):
        out[i] = np.sqrt(v[i])
    round_even(out, k)
    for i in range(out.size):
        out[i] /= correction
    round_even(out, k)
    for i in range(out.size):
        out[i] += epsilon
    round_even(out, k)
    for i in range(out.size):
        out[i] = np.float32(scale * m[i]) / out[i]


@compiled()
def adam_32(weight, beta, rest, scale, correction, epsilon, m, v, g, new_m, new_v, out, c_first, c_second):
    """Do `lerp_32`, `mean_square_32` and `adam_direction_32`, whose numbers these are, on one tile after the other."""
    m, v, g, new_m, new_v, out = borrowed(m), borrowed(v), borrowed(g), borrowed(new_m), borrowed(new_v), borrowed(out)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        first, second = new_m[start:stop], new_v[start:stop]
        lerp_32(weight, m[start:stop], g[start:stop], first, c_first)
        mean_square_32(beta, rest, v[start:stop], g[start:stop], second, c_second)
        adam_direction_32(scale, correction, epsilon, first, second, out[start:stop], c_second)


@compiled()
def kahan_32(w, y, total, lost, c):
    """Compute total = R(w + y) and lost = R(y - R(total - w))."""
    k = named(EvenFields, c)
    for i in range(w.size):
        total[i] = w[i] + y[i]
    round_even(total, k)
    for i in range(w.size):
        lost[i] = total[i] - w[i]
    round_even(lost, k)
    for i in range(w.size):
        lost[i] = y[i] - lost[i]
    round_even(lost, k)


@compiled()
def _fast_sum(x, r, total, k):
    """Compute total = R(x + r) and then r = R(r - R(total - x))."""
    error = np.empty_like(x)
    for i in range(x.size):
        total[i] = x[i] + r[i]
    round_even(total, k)
    for i in range(x.size):
        error[i] = total[i] - x[i]
    round_even(error, k)
    for i in range(x.size):
        r[i] = r[i] - error[i]
    round_even(r, k)


@compiled()
def grow_32(m, r, v, total, word, c):
    """Compute (m, r) + v: x = R(m + v), r = R(r + R(v - R(x - m))), total = R(x + r), word = R(r - R(total - x))."""
    k = named(EvenFields, c)
    x, rest = np.empty_like(total), v.copy()
    _fast_sum(m, rest, x, k)
    for i in range(m.size):
        word[i] = r[i] + rest[i]
    round_even(word, k)
    _fast_sum(x, word, total, k)


@compiled()
def pair_product_32(high, low, m, r, total, word, c):
    """Compute (high, low) * (m, r), a sum with a product in it being one fma.

    x = R(high * m), r = R(R(low * m + R(high * r)) + R(high * m - x)), total = R(x + r), word = R(r - R(total - x)).
    """
    k = named(EvenFields, c)
    x, error = np.empty_like(total), np.empty_like(total)
    for i in range(m.size):
        x[i] = high * m[i]
    round_even(x, k)
    for i in range(m.size):
        error[i] = _fma(high, m[i], -x[i])
    round_even(error, k)
    for i in range(m.size):
        word[i] = high * r[i]
    round_even(word, k)
    for i in range(m.size):
        word[i] = _fma(low, m[i], word[i])
    round_even(word, k)
    for i in range(m.size):
        word[i] += error[i]
    round_even(word, k)
    _fast_sum(x, word, total, k)
