"""What a rounding costs: R(x) - x in ulps of the format and squared, tile by tile, so that a tile stays in the cache.

R(x) - x is exact in the carrier, but where x far below the smallest subnormal is rounded up to it. In ulps, which are
powers of two, it is rounded to a multiple of 2^-ULP_BITS: that changes nothing of a float32 that is normal in a format
with a fraction, and so sums are of integers. The squares of x and of R(x) - x are rounded to float64, and their sums
are exact (product_sums.py). So the order of the elements changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precision_lab.numerics.kernels.addresses import call
from precision_lab.numerics.kernels.bits import TILE, U32, U64, borrowed, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.product_sums import (
    SCATTERED,
    WIDEST,
    WORD,
    add_any,
    add_scattered_squares,
    add_squares,
    exponent_of_largest,
)

ULP_BITS = 22
NONFINITE, OVERFLOWED, CHANGED, TOTAL, OUTWARD, SQUARES, SQUARES_HIGH = range(7)
"""What is counted: elements; then sums in units of 2^-ULP_BITS ulp, and of their squares by words of 32 bits."""
COUNTS = 7
ERRORS_DEEPER = 26  # exponents by which errors of doubles may lie closer together, with squares that add up as others
PART = 256  # elements of which the units add up in 32 bits


@compiled()
def _add_any_squares(x, doubles, digits):
    """Add the squares of finite numbers, exactly, whatever exponents they have; `doubles` is scratch."""
    wide, rest = doubles[0, : x.size], doubles[1, : x.size]
    for j in range(x.size):
        wide[j] = np.float64(x[j])
    top = exponent_of_largest(wide)
    if top >= 0:
        add_any(wide, wide, top, top, rest, digits)


@compiled()
def _add_units(units, counts):
    """Add the squares of numbers of at most 22 bits and their sign to the two words."""
    squares = np.int64(0)
    for j in range(units.size):
        squares += np.int64(units[j]) * np.int64(units[j])
    counts[SQUARES] += squares & WORD
    counts[SQUARES_HIGH] += squares >> np.int64(32)


def _make_quantization(U: Any, F: Any, Signed: Any, width: int, mantissa: int) -> Any:
    """Build the loop for a carrier."""
    ABS = U((1 << (width - 1)) - 1)
    INF = U((1 << (width - 1)) - (1 << mantissa))
    BIAS = Signed((1 << (width - 2 - mantissa)) - 1)
    REBIAS = np.int64(1023 - ((1 << (width - 2 - mantissa)) - 1))  # from the exponents to those of float64
    SHIFT, LAST = Signed(mantissa), Signed(width - 1)
    NEAR = F(1.5 * 2.0 ** (mantissa - ULP_BITS))  # the floats around it are 2^-ULP_BITS apart, and so are their bits
    NEAR_BITS = Signed(U(np.array(NEAR, F).view(U)))
    NARROW = width == 32

    @compiled()
    def exponent(magnitude):
        """Return the biased exponent of a magnitude that is given as bits."""
        return max(np.int64(magnitude >> U(mantissa)), np.int64(1))

    @compiled()
    def extent(x):
        """Return the least magnitude but zero, less one, and the largest, as bits."""
        least, largest = U(~U(0)), U(0)
        for j in range(x.size):
            a = U(reinterpret(x[j]) & ABS)
            least, largest = min(least, U(a - U(1))), max(largest, a)
        return least, largest

    @compiled()
    def leave_out(x, rounded, over_positive, over_negative, kept, counts):
        """Count what is not finite or overflows; copy the others, and zeros in place of these."""
        for j in range(x.size):
            b = reinterpret(x[j])
            a = U(b & ABS)
            finite = a < INF
            over = a >= (over_negative if a != b else over_positive)
            over = over | (U(reinterpret(rounded[j]) & ABS) >= INF)
            counts[NONFINITE] += 0 if finite else 1
            counts[OVERFLOWED] += 1 if finite & over else 0
            left = finite & (not over)
            kept[j] = x[j] if left else F(0)
            rounded[j] = rounded[j] if left else F(0)

    @compiled()
    def compare(x, rounded, lowest, up, shared, error, units, counts):
        """Write R(x) - x, and in units of 2^-ULP_BITS ulp; count it; return the bits of the largest.

        1/ulp is 2^(up - the biased exponent, or `lowest` if that is less). Of it 2^shared is one factor, so that the
        other is in range.
        """
        factor = reinterpret(U(Signed(Signed(shared + BIAS) << SHIFT)))
        rest = Signed(Signed(up - shared) + BIAS)
        largest, changed, total, negative = U(0), np.int32(0), Signed(0), Signed(0)
        for j in range(x.size):
            b = reinterpret(x[j])
            e = F(rounded[j] - x[j])
            error[j] = e
            largest = max(largest, U(reinterpret(e) & ABS))
            field = max(Signed(Signed(U(b & ABS)) >> SHIFT), lowest)
            own = reinterpret(U(Signed(Signed(rest - field) << SHIFT)))
            n = Signed(Signed(reinterpret(F(F(F(e * factor) * own) + NEAR))) - NEAR_BITS)
            units[j] = n
            changed = np.int32(changed + (np.int32(1) if e != F(0) else np.int32(0)))
            total = Signed(total + n)
            negative = Signed(negative + Signed(n & Signed(Signed(b) >> LAST)))
        counts[CHANGED] += np.int64(changed)
        counts[TOTAL] += np.int64(total)
        counts[OUTWARD] += np.int64(total) - np.int64(2) * np.int64(negative)
        return largest

    @compiled()
    def quantization(x, place, constants, by_chance, stream, lowest, up, limit, ends, room, doubles, counts, sums):
        """Round, and count and add up what it costs, tile by tile.

        Parameters
        ----------
        x : array
            Of the carrier.
        place, constants : int, array
            The address of a loop that rounds, and its constants.
        by_chance : bool
            Whether rounding takes `stream`, too.
        stream : array of uint64
            A seed and the index of the first element, which moves on.
        lowest, up : int
            The biased exponent of the format's smallest normal, and the carrier's bias plus the format's fraction bits.
        limit : int
            The bits of the least magnitude that may not stay finite.
        ends : array of int64
            Those of the least magnitudes that overflow if they are positive, and if they are negative.
        room, doubles : array
            Scratch of the carrier, (4, TILE), and of float64, (2, TILE).
        counts, sums : array of int64
            (COUNTS,), and of x * x and (R(x) - x)^2, (2, product_sums.DIGITS); to be added to.

        """
        x, room, doubles, counts, sums = (
            borrowed(x),
            borrowed(room),
            borrowed(doubles),
            borrowed(counts),
            borrowed(sums),
        )
        all_units = room[3].view(Signed)
        for start in range(0, x.size, TILE):
            xs = x[start : start + TILE]
            rounded, error, kept = room[0, : xs.size], room[1, : xs.size], room[2, : xs.size]
            units = all_units[: xs.size]
            if by_chance:
                call(place, (xs, rounded, constants, stream))
                stream[1] += U64(xs.size)
            else:
                call(place, (xs, rounded, constants, False))
            least, largest = extent(xs)
            if largest >= U(limit):
                leave_out(xs, rounded, U(ends[0]), U(ends[1]), kept, counts)
                xs = kept
                least, largest = extent(xs)
            if largest == U(0):
                continue
            low, top = exponent(U(least + U(1))), exponent(largest)
            least_field = max(low, lowest)  # that of zeros, too, whose own would be out of range
            shared = up - ((least_field + max(top, lowest) + 1) >> 1)  # the other factor is 2^-126 at least
            bits = U(0)
            for i in range(0, xs.size, PART):
                j = min(i + PART, xs.size)
                part = compare(
                    xs[i:j],
                    rounded[i:j],
                    Signed(least_field),
                    Signed(up),
                    Signed(shared),
                    error[i:j],
                    units[i:j],
                    counts,
                )
                bits = max(bits, part)
            _add_units(units, counts)
            error_top = exponent(bits)
            # errors are multiples of the last bit of the least x, which is 52 binades below it, or 23
            spread = max(top, error_top) - low if NARROW else max(top, error_top + ERRORS_DEEPER) - low
            if spread > SCATTERED:
                _add_any_squares(xs, doubles, sums[0])
                _add_any_squares(error, doubles, sums[1])
            elif NARROW and spread <= WIDEST:
                add_squares(xs, top + REBIAS, sums)
                add_squares(error, error_top + REBIAS, sums[1:])
            else:
                add_scattered_squares(xs, top + REBIAS, sums)
                add_scattered_squares(error, error_top + REBIAS, sums[1:])

    return quantization


QUANTIZATION = (
    _make_quantization(U32, np.float32, np.int32, 32, 23),
    _make_quantization(U64, np.float64, np.int64, 64, 52),
)
"""By whether the carrier is float64."""
