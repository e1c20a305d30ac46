"""Deterministic rounding of arrays.

Arrays are one-dimensional float32 or float64, the *carrier*; the loops work on its bit patterns. What a format and a
mode mean is data, one small array of constants a call (made in `rounding.py`), so that one compiled loop serves every
format. Two ways to round:

*by addition* (``add``). With q the spacing of the format at x, C = 1.5 * q * 2^(carrier mantissa bits) makes the
addition in (|x| + C) - C round |x| to a multiple of q, ties to even; taking the spacing at the smallest normal for
everything below it gives gradual underflow. Needs C in range and at least two discarded bits.

*by fields* (``mask``, ``directed``, ``random``). A format's normal values are the carrier's with zeros below bit d.
So adding a dither below 2^d to the bit pattern and clearing the d bits rounds up if and only if the discarded bits
plus the dither reach 2^d; the carry into the exponent, and from the largest value beyond, comes by itself. Each mode is
a dither: 0 truncates, 2^d - 1 rounds away from zero, 2^(d-1) sends ties away, one less sends them down, a random number
is stochastic rounding; which one may depend on the sign of x and on whether the value below is odd. Below the format's
smallest normal the same rule is applied to x in units of the smallest subnormal. Where the exponent range is the
carrier's own, the fields serve for everything.

The ``plain`` loops leave out what most formats do not need: flush to zero, a missing negative zero, a missing NaN.

Generic in the carrier: U is its unsigned and F its float type. numba widens uint32 arithmetic to uint64, which would
halve the vector width: hence a cast around every operation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precision_lab.numerics.kernels.bits import INFINITY, MAGNITUDE, QUIET, SIGN, U32, U64, reinterpret
from precision_lab.numerics.kernels.compiled import compiled


@compiled()
def finish(r, b, k, U, F):
    """Give the magnitude r the sign of b; flush what is below `smallest`; NaN and zero as the format has them."""
    sign, smallest, lost_zero, nan_keep, nan_flip = k
    r = F(0) if r < smallest else r
    out = U(reinterpret(F(r)) | U(b & sign))
    out = U(0) if out == lost_zero else out
    return U(U(b & nan_keep) ^ nan_flip) if r != r else out


def _make_even(U: Any, F: Any, width: int, mantissa: int, plain: bool) -> Any:
    """Build the loop of ties_to_even for a carrier of `width` bits, `mantissa` of them fraction.

    U is the carrier's unsigned and F its float type.
    """
    SIGN_BIT = U(1 << (width - 1))
    ABS = U((1 << (width - 1)) - 1)
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))

    @compiled()
    def add_even(x, out, c):
        """Round by addition."""
        emin, emax, up, largest, overflow = c[0], c[1], c[2], reinterpret(c[3]), reinterpret(c[4])
        tail = (SIGN_BIT, reinterpret(c[5]), c[6], c[7], c[8])
        for i in range(x.size):
            b = reinterpret(x[i])
            a = U(b & ABS)
            C = reinterpret(U(U(min(max(U(a & EXPONENT), emin), emax)) + up))
            r = F(F(reinterpret(a) + C) - C)
            r = overflow if r > largest else r
            if plain:
                out[i] = reinterpret(U(reinterpret(F(r)) | U(b & SIGN_BIT)))
            else:
                out[i] = reinterpret(finish(r, b, tail, U, F))

    return add_even


add_even_plain_32 = _make_even(U32, np.float32, 32, 23, True)
add_even_32 = _make_even(U32, np.float32, 32, 23, False)
add_even_plain_64 = _make_even(U64, np.float64, 64, 52, True)
add_even_64 = _make_even(U64, np.float64, 64, 52, False)


def _make_directed(U: Any, F: Any, width: int, mantissa: int) -> Any:
    """Build the loop of all deterministic modes; parameters as in `_make_even`."""
    SIGN_BIT = U(1 << (width - 1))
    ABS = U((1 << (width - 1)) - 1)
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))

    @compiled()
    def directed(x, out, c):
        """Round by fields, with the dithers of a mode."""
        keep, odd_bits, scale, quantum = c[0], c[1], reinterpret(c[2]), reinterpret(c[3])
        smallest_normal, largest = reinterpret(c[4]), reinterpret(c[5])
        over_pos, over_neg, infinity = reinterpret(c[6]), reinterpret(c[7]), reinterpret(c[8])
        tail = (SIGN_BIT, reinterpret(c[9]), c[10], c[11], c[12])
        pos_even, pos_odd, neg_even, neg_odd = c[13], c[14], c[15], c[16]
        at_pos_even, at_pos_odd = reinterpret(c[17]), reinterpret(c[18])
        at_neg_even, at_neg_odd = reinterpret(c[19]), reinterpret(c[20])
        for i in range(x.size):
            b = reinterpret(x[i])
            a = U(b & ABS)
            v = reinterpret(a)
            negative = U(b & SIGN_BIT) != U(0)
            odd = U(U(a & keep) & odd_bits) != U(0)
            dither = (neg_odd if odd else neg_even) if negative else (pos_odd if odd else pos_even)
            normal = reinterpret(U(U(a + dither) & keep))
            f = F(F(v if v < smallest_normal else F(0)) * scale)  # in units of the smallest subnormal
            k = np.int32(f)
            odd = (k & 1) != 0
            at = (at_neg_odd if odd else at_neg_even) if negative else (at_pos_odd if odd else at_pos_even)
            lo = F(k)
            subnormal = F(F(lo + (F(1) if F(f - lo) >= at else F(0))) * quantum)
            r = subnormal if v < smallest_normal else normal
            r = (over_neg if negative else over_pos) if r > largest else r
            r = infinity if a == EXPONENT else r
            r = v if v != v else r
            out[i] = reinterpret(finish(r, b, tail, U, F))

    return directed


directed_32 = _make_directed(U32, np.float32, 32, 23)
directed_64 = _make_directed(U64, np.float64, 64, 52)


@compiled()
def mask_even_plain(x, out, c):
    """Round by fields to even, where the format has float32's exponents."""
    keep, last, below_half, largest, overflow = c[0], c[1], c[2], c[3], c[4]
    for i in range(x.size):
        b = reinterpret(x[i])
        a = U32(b & MAGNITUDE)
        r = U32(U32(U32(a + below_half) + (U32(1) if U32(a & last) != U32(0) else U32(0))) & keep)
        r = overflow if r > largest else r
        r = U32(a | QUIET) if a > INFINITY else r
        out[i] = reinterpret(U32(r | U32(b & SIGN)))
