"""Deterministic rounding of arrays.

Arrays are one-dimensional float32 or float64, the *carrier*; the loops work on its bit patterns. What a format and a
mode mean is data, one small array of constants a call (made in `plans.py`), so that one compiled loop serves every
format; beside each loop stands what they are called. Two ways to round:

*by addition* (``add``). With q the spacing of the format at x, C = 1.5 * q * 2^(carrier mantissa bits) makes the
addition in (|x| + C) - C round |x| to a multiple of q, ties to even; taking the spacing at the smallest normal for
everything below it gives gradual underflow. Sums between C and its neighbours are q apart and so are their bit
patterns: the other modes add or take one where the sum came out on the wrong side of |x|. Needs C in range and at least
two discarded bits.

*by fields* (``mask``, ``directed``, ``random``). A format's normal values are the carrier's with zeros below bit d.
So adding a dither below 2^d to the bit pattern and clearing the d bits rounds up if and only if the discarded bits
plus the dither reach 2^d; the carry into the exponent, and from the largest value beyond, comes by itself. Each mode is
a dither: 0 truncates, 2^d - 1 rounds away from zero, 2^(d-1) sends ties away, one less sends them down, a random number
is stochastic rounding; which one may depend on the sign of x and on whether the value below is odd. Below the format's
smallest normal the same rule is applied to x in units of the smallest subnormal (``directed``, ``random``). Where the
exponent range is the carrier's own, the fields serve for everything (``mask``).

The ``plain`` loops leave out what most formats do not need: flush to zero, a missing negative zero, a missing NaN.

Generic in the carrier: U is its unsigned, Signed its signed and F its float type. numba widens uint32 arithmetic to
uint64, which would halve the vector width: hence a cast around every operation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.kernels.bits import (
    INFINITY,
    MAGNITUDE,
    QUIET,
    SIGN,
    U32,
    U64,
    named,
    reinterpret,
    shift_down,
)
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.lanes import TILE, fetch_ahead, first_block, put_tile, tile_for


@compiled()
def finish(r, b, sign, k, U, F):
    """Give the magnitude r the sign of b; NaN and zero as the format has them."""
    out = U(reinterpret(F(r)) | U(b & sign))
    out = U(0) if out == k.lost_zero else out
    return U(U(b & k.nan_keep) ^ k.nan_flip) if r != r else out


def elementwise(element: Any, layout: Any) -> Any:
    """Build the loop that writes ``element(x[i], constants)`` for every i: to `out`, or to x itself if that is `out`.

    Other overlaps are not for callers to have. The compiler computes neighbours at once only where it sees that nothing
    is written which is read later: hence a tile in between for x itself, and for what goes past the caches (lanes.py).
    """

    @compiled()
    def loop(x, out, c, past_caches):
        k = named(layout, c)
        first, last = 0, 0
        itself = x.ctypes.data == out.ctypes.data
        if itself or past_caches:
            tile = tile_for(out)
            _, first, past = first_block(out, past_caches and not itself)
            last = x.size - (x.size - first) % TILE
            for start in range(first, last, TILE):
                fetch_ahead(x, start)
                for i in range(TILE):
                    tile[U64(i)] = element(x[U64(start + i)], k)
                put_tile(tile, out, start, past)
        for start, stop in ((0, first), (last, x.size)):
            for i in range(start, stop):
                out[U64(i)] = element(x[U64(i)], k)

    return loop


class ByAddition(NamedTuple):
    """The constants of `add`; the last three are read by `finish`."""

    lowest: float  # power of two of a normal
    highest: float
    up: int  # from the exponent of x to C
    half: float  # half a spacing of 1
    turn: int  # the sign bit where signs are turned over: toward_negative is toward_positive of -x
    largest: float
    overflow: float  # what is beyond `largest` becomes this
    overflow_negative: float
    infinity: float  # and infinity itself this
    smallest: float  # what is below becomes zero
    lost_zero: int  # the bits of -0.0 where the format has none
    nan_keep: int  # the bits of a NaN that stay,
    nan_flip: int  # and those that are turned over then


EVEN, AWAY, ZERO, ODD, POSITIVE = range(5)  # ties to even, ties away, toward zero, to odd, toward positive


def _make_add(U: Any, F: Any, width: int, mantissa: int, kind: int, plain: bool) -> Any:
    """Build a loop for a carrier of `width` bits, `mantissa` of them fraction."""
    SIGN_BIT = U(1 << (width - 1))
    ABS = U((1 << (width - 1)) - 1)
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))
    ONE, NONE = U(1), U(0)

    @compiled()
    def add(x, k):
        """Round by addition."""
        b = reinterpret(x)
        a = U(b & ABS)
        e = reinterpret(U(a & EXPONENT))  # never NaN
        e = k.lowest if e < k.lowest else e
        e = k.highest if e > k.highest else e
        C = reinterpret(U(reinterpret(F(e)) + k.up))
        v = reinterpret(U(b ^ k.turn)) if kind == POSITIVE else reinterpret(a)
        total = F(v + C)
        back = F(total - C)
        t = reinterpret(total)
        if kind == AWAY:
            t = U(t + (ONE if F(v - back) == F(k.half * e) else NONE))
        elif kind == ZERO:
            t = U(t - (ONE if back > v else NONE))
        elif kind == ODD:
            t = U(U(t - (ONE if back > v else NONE)) | (ONE if (back > v) | (back < v) else NONE))
        elif kind == POSITIVE:
            t = U(t + (ONE if back < v else NONE))
        r = F(reinterpret(t) - C)
        if kind == POSITIVE:
            r = reinterpret(U(reinterpret(r) & ABS))
            r = (k.overflow_negative if U(b & SIGN_BIT) != NONE else k.overflow) if r > k.largest else r
        elif kind in (ZERO, ODD):
            r = k.largest if r > k.largest else r
        else:
            r = k.overflow if r > k.largest else r
        if kind in (POSITIVE, ZERO, ODD):
            r = k.infinity if a == EXPONENT else r
        if plain:
            r = reinterpret(U(reinterpret(F(r)) | U(b & SIGN_BIT)))
            return r if kind == EVEN or r == r else reinterpret(U(U(b & k.nan_keep) ^ k.nan_flip))
        r = F(0) if r < k.smallest else r
        return reinterpret(finish(r, b, SIGN_BIT, k, U, F))

    return elementwise(add, ByAddition)


_CARRIERS = {32: (U32, np.float32, 32, 23), 64: (U64, np.float64, 64, 52)}
ADD = {
    (kind, plain, width): _make_add(*carrier, kind, plain)
    for width, carrier in _CARRIERS.items()
    for kind in (EVEN, AWAY, ZERO, ODD, POSITIVE)
    for plain in (True, False)
}
"""By kind, whether plain, and the bits of the carrier."""


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
    def directed(x, k):
        """Round by fields, with the dithers of a mode."""
        b = reinterpret(x)
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
        return reinterpret(finish(r, b, SIGN_BIT, k, U, F))

    return elementwise(directed, ByFields)


directed_32 = _make_directed(U32, np.float32, 32, 23)
directed_64 = _make_directed(U64, np.float64, 64, 52)


class ByMask(NamedTuple):
    """The constants of `mask`, which compares magnitudes as bit patterns."""

    keep: int  # the bits that the format has
    last: int  # the place of the lowest of them
    dither: int  # for a positive number above an even value;
    by_sign: int  # the bits that differ for a negative one,
    by_odd: int  # and above an odd value (ties to even: what is added there)
    largest: int
    overflow: int
    overflow_by_sign: int
    infinity: int


def _make_mask(even: bool) -> Any:
    """Build a loop for formats with float32's exponents: of ties to even, which leaves a NaN its payload, or of all."""

    @compiled()
    def mask(x, k):
        """Round by fields, without subnormals of their own."""
        b = reinterpret(x)
        a = U32(b & MAGNITUDE)
        odd = shift_down(a, k.last)
        if even:
            dither = U32(k.dither + U32(odd & k.by_odd))
            overflow = k.overflow
        else:
            negative = U32(np.int32(b) >> np.int32(31))
            dither = U32(U32(k.dither ^ U32(negative & k.by_sign)) ^ U32(U32(U32(0) - U32(odd & U32(1))) & k.by_odd))
            overflow = U32(k.overflow ^ U32(negative & k.overflow_by_sign))
        r = U32(U32(a + dither) & k.keep)
        r = overflow if r > k.largest else r
        if not even:
            r = k.infinity if a == INFINITY else r
        r = (U32(a | QUIET) if even else U32(INFINITY | QUIET)) if a > INFINITY else r
        return reinterpret(U32(r | U32(b & SIGN)))

    return elementwise(mask, ByMask)


mask_even, mask_any = _make_mask(True), _make_mask(False)
