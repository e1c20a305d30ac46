"""Counts of magnitudes by binade, and by class within the binade.

A key is 32 * (exponent field + ROW_OFFSET) + class. The classes split a binade at the significands where some
format's thresholds lie: at 1; by the number of leading ones of the fraction; at 1.1101 (464 of fp8_e4m3fn).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precision_lab.numerics.kernels.bits import U32, U64, copy, leading_zeros, reinterpret
from precision_lab.numerics.kernels.compiled import compiled

I32 = np.int32
I64 = np.int64

ROW_OFFSET = 64  # the row of zero; below it there is room for the carrier's subnormals
COLUMNS = 32
CLASSES = 27
HALF_NORMAL_CLASS = 31  # in zero's row, whose class 0 is taken: half the carrier's smallest normal
LANES = 8  # neighbouring elements count in different cells: no increment waits for the one before it
BLOCK = 64  # elements whose keys are made while those of the block before are counted


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
def _place_32(doubled):
    """Return the place of a normal float32, given its bits without the sign, doubled; see `_make_histogram`.

    The leading ones of the fraction are the leading zeros of its complement n. The odd integer 2n + 1 has 24 bits: it
    is a float32, and the exponent of that says how many it needs.
    """
    odd = I32(doubled | U32(0xFF000001))  # minus the integer
    needed = reinterpret(np.float32(odd)) >> U32(23)  # 256 for the sign, 127 for the bias, and the bits less one
    place = I32(U32(U32(doubled >> U32(19)) | U32(31)) - needed)
    place = I32(place - (I32(1) if odd == I32(1 - 2**24) else I32(0)))
    return I32(place + (I32(1) if odd > I32(1 - 2**24 + (13 << 20)) else I32(0)))


@compiled()
def _place_64(doubled):
    """Return that of a float64."""
    n = U64(U64(~doubled) >> U64(1)) & U64(2**52 - 1)
    # more than 24 leading ones decide nothing, so n has 28 bits at least; 2^52 + n is a float64, too
    needed = reinterpret(reinterpret(n | U64((1023 + 52 << 52) | 1 << 27)) - 2.0**52) >> U64(52)
    place = I64(U64(doubled >> U64(48)) | U64(31)) - I64(needed)
    place -= I64(1) if n == U64(2**52 - 1) else I64(0)
    return I32(place + (I64(1) if I64(n) < I64(2**52 - 1 - (13 << 48)) else I64(0)))


def _make_histogram(place: Any, origin: int, U: Any, real: Any, signed: Any, width: int, mantissa: int) -> Any:
    """Build the loop for floats of a width; the key is what `place` returns, plus the origin."""
    bias = 2 ** (width - 2 - mantissa) - 1
    LAST = (2 * bias + 1 + ROW_OFFSET) * COLUMNS  # the first key of the last row: infinities and NaNs
    ZERO = ROW_OFFSET * COLUMNS
    ORIGIN = U64(origin * LANES)
    HALF_NORMAL = I32((ZERO + HALF_NORMAL_CLASS - origin) * LANES)
    NOTHING = I32((LAST + COLUMNS - 1 - origin) * LANES)  # a cell that no class uses
    NORMAL = U(1 << mantissa)  # the smallest one
    TOP = U(2 << mantissa)  # infinity wraps to 0 where this is added to its bits, doubled
    DROP = I32((bias + mantissa - 1) * COLUMNS)  # what is between an integer and the subnormal of the same bits

    @compiled(inline="always")
    def make_keys(x, start, keys, at):
        """Write the keys of a block; return 2 * the least magnitude - 1 and 2 * the largest + TOP, as they wrap."""
        least, largest = U(~U(0)), U(0)
        for j in range(BLOCK):
            doubled = U(reinterpret(x[U64(start) + U64(j)]) << U(1))
            least = U(min(least, U(doubled - U(1))))  # zero wraps to the top
            largest = U(max(largest, U(doubled + TOP)))  # infinity and NaN wrap below zero
            keys[U64(at) + U64(j)] = I32(place(doubled) * I32(LANES))
        if least < U(TOP - U(1)):  # subnormals
            for j in range(BLOCK):
                a = U(U(reinterpret(x[U64(start) + U64(j)]) << U(1)) >> U(1))
                if U(a - U(1)) < U(NORMAL - U(1)):
                    key = I32(I32(place(U(reinterpret(real(signed(a))) << U(1))) - DROP) * I32(LANES))
                    keys[U64(at) + U64(j)] = HALF_NORMAL if a == U(NORMAL >> U(1)) else key
        return least, largest

    @compiled(inline="always")
    def count_keys(keys, at, cells):
        for j in range(at, at + BLOCK, LANES):
            for lane in range(LANES):
                cells[U64(U64(I64(keys[j + lane])) + U64(ORIGIN + U64(lane)))] += U32(1)

    @compiled()
    def count_blocks(x, cells, found):
        """Count an even number of whole blocks; keep the least and the largest as `make_keys` returns them."""
        keys = np.full(2 * BLOCK, NOTHING)
        least, largest = found[0], found[1]
        for start in range(0, x.size, 2 * BLOCK):
            # the keys of one block while those of the block before are counted: the processor does both at once
            least_here, largest_here = make_keys(x, start, keys, 0)
            count_keys(keys, BLOCK, cells)
            least, largest = U(min(least, least_here)), U(max(largest, largest_here))
            least_here, largest_here = make_keys(x, start + BLOCK, keys, BLOCK)
            count_keys(keys, 0, cells)
            least, largest = U(min(least, least_here)), U(max(largest, largest_here))
        count_keys(keys, BLOCK, cells)
        found[0], found[1] = least, largest

    @compiled()
    def take(cells, key):
        """Return the count of a key, and make its cells zeros."""
        n = I64(0)
        for lane in range(LANES):
            n += I64(cells[U64(key * LANES + lane)])
            cells[U64(key * LANES + lane)] = U32(0)
        return n

    @compiled()
    def row(magnitude):
        """Return the first key of a magnitude's row."""
        field = I64(magnitude >> U(mantissa))
        if field == 0:
            field = 1 + width - 1 - mantissa - I64(leading_zeros(magnitude))
        return ZERO + field * COLUMNS

    @compiled()
    def count(x, cells, table, facts):
        """Add the counts of at most 2^31 elements to a table, which has a number for each key.

        `cells`, LANES a key, are zeros before and after. `facts` are the numbers of zeros and of infinities and NaNs,
        which no binade has, the least magnitude that is not zero and the largest finite one.
        """
        found = np.array([U(~U(0)), U(0)])
        whole = x.size - x.size % (2 * BLOCK)
        count_blocks(x[:whole], cells, found)
        rest = np.zeros(2 * BLOCK, x.dtype)
        copy(x[whole:], rest)
        count_blocks(rest, cells, found)

        take(cells, LAST + COLUMNS - 1)
        facts[0] += take(cells, ZERO) - (rest.size - (x.size - whole))
        for key in range(LAST, LAST + CLASSES):
            facts[1] += take(cells, key)
        if found[1] <= TOP:
            return
        least, largest = U(U(found[0] >> U(1)) + U(1)), U(U(found[1] - TOP) >> U(1))
        facts[2] = min(facts[2], np.float64(reinterpret(least)))
        facts[3] = max(facts[3], np.float64(reinterpret(largest)))
        table[ZERO] += take(cells, ZERO + HALF_NORMAL_CLASS)
        for start in range(row(least), row(largest) + 1, COLUMNS):
            for key in range(start, start + CLASSES):
                table[key] += take(cells, key)

    return count


# the rows begin at that of zero, and 31 was put in the place of each row's class
count_32 = _make_histogram(_place_32, 32 * 64 - 31 + 256 + 127 + 24, U32, np.float32, I32, 32, 23)
count_64 = _make_histogram(_place_64, 32 * 64 - 31 + 1023 + 52, U64, np.float64, I64, 64, 52)
