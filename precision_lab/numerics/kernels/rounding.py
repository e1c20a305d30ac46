"""Deterministic rounding of arrays.

Arrays are one-dimensional float32 or float64, the *carrier*; the loops work on its bit patterns. What a format and a
mode mean is data, one small array of constants a call (made in `plans.py`), so that one compiled loop serves every
format; beside each loop stands what they are called. Two ways to round:

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

from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.kernels.bits import INFINITY, MAGNITUDE, QUIET, SIGN, U32, U64, named, reinterpret
from precision_lab.numerics.kernels.compiled import compiled


@compiled()
def finish(r, b, sign, k, U, F):
    """Give the magnitude r the sign of b; NaN and zero as the format has them."""
    out = U(reinterpret(F(r)) | U(b & sign))
    out = U(0) if out == k.lost_zero else out
    return U(U(b & k.nan_keep) ^ k.nan_flip) if r != r else out


class ByAddition(NamedTuple):
    """The constants of `add_even`; the last three are read by `finish`."""

    lowest_exponent: int  # of a normal, in its place in the carrier
    highest_exponent: int
    up: int  # from the exponent of x to C
    largest: float
    overflow: float  # what is beyond `largest` becomes this
    smallest: float  # what is below becomes zero
    lost_zero: int  # the bits of -0.0 where the format has none
    nan_keep: int  # the bits of a NaN that stay,
    nan_flip: int  # and those that are turned over then


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
        k = named(ByAddition, c)
        for i in range(x.size):
            b = reinterpret(x[i])
            a = U(b & ABS)
            C = reinterpret(U(U(min(max(U(a & EXPONENT), k.lowest_exponent), k.highest_exponent)) + k.up))
            r = F(F(reinterpret(a) + C) - C)
            r = k.overflow if r > k.largest else r
            if plain:
                out[i] = reinterpret(U(reinterpret(F(r)) | U(b & SIGN_BIT)))
            else:
                r = F(0) if r < k.smallest else r
                out[i] = reinterpret(finish(r, b, SIGN_BIT, k, U, F))

    return add_even


add_even_plain_32 = _make_even(U32, np.float32, 32, 23, True)
add_even_32 = _make_even(U32, np.float32, 32, 23, False)
add_even_plain_64 = _make_even(U64, np.float64, 64, 52, True)
add_even_64 = _make_even(U64, np.float64, 64, 52, False)


class ByFields(NamedTuple):
    """The constants of `directed`; what differs by the sign of x differs by whether the value below is odd, too."""

    keep: int  # the bits that the format has
    odd_bits: int  # of which one is set in an odd value
    scale: float  # to units of the smallest subnormal,
    quantum: float  # which is this
    smallest_normal: float
    largest: float
    over_positive: float  # what is beyond `largest` becomes this
    over_negative: float
    infinity: float  # and infinity itself this
    smallest: float  # these four as in `ByAddition`
    lost_zero: int
    nan_keep: int
    nan_flip: int
    positive_even: int  # the dithers
    positive_odd: int
    negative_even: int
    negative_odd: int
    at_positive_even: float  # positions between two subnormals from which on a value goes away from zero
    at_positive_odd: float
    at_negative_even: float
    at_negative_odd: float


def _make_directed(U: Any, F: Any, width: int, mantissa: int) -> Any:
    """Build the loop of all deterministic modes; parameters as in `_make_even`."""
    SIGN_BIT = U(1 << (width - 1))
    ABS = U((1 << (width - 1)) - 1)
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))

    @compiled()
    def directed(x, out, c):
        """Round by fields, with the dithers of a mode."""
        k = named(ByFields, c)
        for i in range(x.size):
            b = reinterpret(x[i])
            a = U(b & ABS)
            v = reinterpret(a)
            negative = U(b & SIGN_BIT) != U(0)
            odd = U(U(a & k.keep) & k.odd_bits) != U(0)
            for_negative, for_positive = (k.negative_odd, k.positive_odd) if odd else (k.negative_even, k.positive_even)
            normal = reinterpret(U(U(a + (for_negative if negative else for_positive)) & k.keep))
            f = F(F(v if v < k.smallest_normal else F(0)) * k.scale)  # in units of the smallest subnormal
            below = np.int32(f)
            odd = (below & 1) != 0
            at_negative = k.at_negative_odd if odd else k.at_negative_even
            at_positive = k.at_positive_odd if odd else k.at_positive_even
            at = at_negative if negative else at_positive
            away = F(1) if F(f - F(below)) >= at else F(0)
            r = F(F(F(below) + away) * k.quantum) if v < k.smallest_normal else normal
            r = (k.over_negative if negative else k.over_positive) if r > k.largest else r
            r = k.infinity if a == EXPONENT else r
            r = v if v != v else r
            r = F(0) if r < k.smallest else r
            out[i] = reinterpret(finish(r, b, SIGN_BIT, k, U, F))

    return directed


directed_32 = _make_directed(U32, np.float32, 32, 23)
directed_64 = _make_directed(U64, np.float64, 64, 52)


class ByMask(NamedTuple):
    """The constants of `mask_even_plain`, which compares magnitudes as bit patterns."""

    keep: int  # the bits that the format has
    last: int  # of which this is the last
    below_half: int  # of the unit of that bit
    largest: int
    overflow: int


@compiled()
def mask_even_plain(x, out, c):
    """Round by fields to even, where the format has float32's exponents."""
    k = named(ByMask, c)
    for i in range(x.size):
        b = reinterpret(x[i])
        a = U32(b & MAGNITUDE)
        r = U32(U32(U32(a + k.below_half) + (U32(1) if U32(a & k.last) != U32(0) else U32(0))) & k.keep)
        r = k.overflow if r > k.largest else r
        r = U32(a | QUIET) if a > INFINITY else r
        out[i] = reinterpret(U32(r | U32(b & SIGN)))
