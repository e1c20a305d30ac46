"""Counts of magnitudes by binade, and by class within the binade.

A key is 32 * (exponent field + ROW_OFFSET) + class. The classes split a binade at the significands where some
format's thresholds lie: at 1; by the number of leading ones of the fraction; at 1.1101 (464 of fp8_e4m3fn).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precision_lab.numerics.kernels.bits import TILE, U32, U64, leading_zeros, reinterpret
from precision_lab.numerics.kernels.compiled import compiled

ROW_OFFSET = 64  # the row of zero; below it there is room for the carrier's subnormals
HALF_NORMAL_CLASS = 31  # in zero's row, whose class 0 is taken: half the carrier's smallest normal
LANES = 16  # neighbouring elements count in different cells: no increment waits for the one before it


@compiled(inline="always")  # a call takes 7 % of a histogram
def add_keys(keys, cells):
    """Count keys that are multiples of LANES, each element in its lane of the key's cells."""
    whole = keys.size - keys.size % LANES
    for j in range(0, whole, LANES):
        for lane in range(LANES):
            cells[U64(keys[j + lane]) + U64(lane)] += U32(1)
    for j in range(whole, keys.size):
        cells[U64(keys[j])] += U32(1)


@compiled()
def _key(a, fraction_mask, to_top, to_row, split, U):
    """Key of a normal magnitude, less the row offset."""
    fraction = U(a & fraction_mask)
    # more than 24 leading ones decide nothing; only float64 has them
    ones = U(min(leading_zeros(U(~U(a << to_top))), U(24)))
    position = U(U(ones + U(1)) + (U(1) if fraction > split else U(0)))
    return U(U(U(a >> to_row) & U(0xFFFFFFE0)) + (position if fraction != U(0) else U(0)))


def _make_histogram(U: Any, width: int, mantissa: int) -> Any:
    ABS = U((1 << (width - 1)) - 1)
    FRACTION = U((1 << mantissa) - 1)
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))
    TO_TOP, TO_ROW = U(width - mantissa), U(mantissa - 5)
    SPLIT = U(13 << (mantissa - 4))  # the fraction of 1.1101
    OFFSET = U(ROW_OFFSET << 5)
    HALF_NORMAL = U(1 << (mantissa - 1))
    LEADING = U(width - 1 - mantissa)  # zero bits above the leading bit of a normal's significand

    @compiled()
    def count(x, cells, extremes):
        """Add x to `cells` (LANES cells a key) and to `extremes`: least non-zero magnitude less one, largest finite."""
        keys = np.empty(TILE, np.uint32)
        least, largest = extremes[0], extremes[1]
        for start in range(0, x.size, TILE):
            tile = x[start : start + TILE]
            n = tile.size
            least_here = U(~U(0))
            for j in range(n):
                a = U(reinterpret(tile[j]) & ABS)
                least_here = U(min(least_here, U(a - U(1))))  # zero wraps to the top
                largest = U(max(largest, a if a < EXPONENT else U(0)))
                keys[j] = U32(U(U(_key(a, FRACTION, TO_TOP, TO_ROW, SPLIT, U) + OFFSET) * U(LANES)))
            least = U(min(least, least_here))
            if least_here < FRACTION:  # subnormals
                for j in range(n):
                    a = U(reinterpret(tile[j]) & ABS)
                    if U(a - U(1)) < FRACTION:
                        lift = U(leading_zeros(a) - LEADING)
                        normal = U(a << lift)
                        row_drop = U(lift << U(5))
                        key = U(U(_key(normal, FRACTION, TO_TOP, TO_ROW, SPLIT, U) + OFFSET) - row_drop)
                        key = U(OFFSET + U(HALF_NORMAL_CLASS)) if a == HALF_NORMAL else key
                        keys[j] = U32(U(key * U(LANES)))
            add_keys(keys[:n], cells)
        extremes[0], extremes[1] = least, largest

    return count


count_32 = _make_histogram(U32, 32, 23)
count_64 = _make_histogram(U64, 64, 52)
