"""Exact sums of products, each product rounded to float64: integers, which can be added in any order.

With all |x| <= 2^51 g and M = 1.5 * 2^52 g, x + M rounds x to a multiple of g, and the bit patterns of floats from
2^52 g to 2^53 g are consecutive: bits(x + M) - bits(M) is that multiple. What is left of x, at most g/2, is exact.

A sum is an array of DIGITS int64: digit i counts 2^(32 i) units of 2^-1074, the smallest that float64 has. Each
addition changes a digit by less than 2^32, and so there may be 2^31 of them.
"""

from __future__ import annotations

import numpy as np

from precision_lab.numerics.kernels.bits import U32, U64, any_order, reinterpret
from precision_lab.numerics.kernels.compiled import compiled

DIGITS = 66
LARGEST_UNIT = 1985  # of products below 2^960: with 2^62 of them the highest digit is number 63
MAGNITUDE_64 = U64(0x7FFFFFFFFFFFFFFF)
WORD = np.int64(0xFFFFFFFF)

# Up to 1024 remainders, each at most g/2, add up exactly in any order where all are multiples of 2^-42 g: whatever they
# come to on the way is at most 2^51 of these.
LOWER = np.int64(42)
WIDEST = np.int64(19)  # exponents from least to largest of the x and of the y, with x * y a multiple of 2^-42 g
SCATTERED = np.int64(45)  # and with x * x one of 2^-94 g


@compiled()
def _shift_to(unit):
    """1.5 * 2^52 units of 2^(unit - 1074)."""
    return reinterpret(U64((unit + np.int64(1)) << np.int64(52))) * 1.5


@compiled()
def _add_multiple(n, unit, digits):
    """Add n * 2^(unit - 1074), |n| < 2^62."""
    i, shift = unit >> np.int64(5), unit & np.int64(31)
    rest = n >> (np.int64(32) - shift)
    digits[i] += (n << shift) & WORD
    digits[i + 1] += rest & WORD
    digits[i + 2] += rest >> np.int64(32)


@compiled()
def _add_patterns(total, n, unit, digits):
    """Add what the total of n bit patterns of x + M says of the sum of x."""
    _add_multiple(total - np.int64(n) * np.int64(reinterpret(_shift_to(unit))), unit, digits)


@compiled()
def _add_low(low, unit, digits):
    """Add a sum of remainders of multiples of the unit."""
    unit = max(unit - LOWER, np.int64(0))
    _add_patterns(np.int64(reinterpret(low + _shift_to(unit))), 1, unit, digits)


@compiled()
def _unit_of(exponent, other):
    """Return the unit of which products are at most 2^51: the biased exponents of the largest factors are given."""
    return max(exponent + other - np.int64(1021), np.int64(0))


@compiled()
def add_squares(x, largest, sums):
    """Add x * x to the first of three sums; parameters as in `add_three`."""
    unit = _unit_of(largest, largest)
    shift = _shift_to(unit)
    total, low = np.int64(0), 0.0
    for j in range(x.size):
        v = np.float64(x[j])
        p = v * v
        t = p + shift
        total += np.int64(reinterpret(t))
        low = any_order(low, p - (t - shift))
    _add_patterns(total, x.size, unit, sums[0])
    _add_low(low, unit, sums[0])


@compiled()
def add_scattered_squares(x, largest, sums):
    """Add x * x to the first of some sums as `add_squares`, where the least x may be SCATTERED exponents smaller.

    What is left of a multiple of the unit is divided once more, into a multiple of 2^-52 units and what is left of it.
    """
    unit = _unit_of(largest, largest)
    finer = max(unit - np.int64(52), np.int64(0))
    shift, finer_shift = _shift_to(unit), _shift_to(finer)
    total, finer_total, low = np.int64(0), np.int64(0), 0.0
    for j in range(x.size):
        v = np.float64(x[j])
        p = v * v
        t = p + shift
        total += np.int64(reinterpret(t))
        r = p - (t - shift)
        t = r + finer_shift
        finer_total += np.int64(reinterpret(t))
        low = any_order(low, r - (t - finer_shift))
    _add_patterns(total, x.size, unit, sums[0])
    _add_patterns(finer_total, x.size, finer, sums[0])
    _add_low(low, finer, sums[0])


@compiled()
def add_three(x, a, b, largest_x, largest_d, sums):
    """Add x * x, d * d and d * x to three sums, d = a - b in float64.

    Parameters
    ----------
    x, a, b : array
        At most 1024 elements.
    largest_x, largest_d : int
        The exponents of the largest x and d, biased as in float64; the least but zero is at most WIDEST below.
    sums : array of int64, (3, DIGITS)
        To be added to.

    """
    unit_xx, unit_dd, unit_dx = (
        _unit_of(largest_x, largest_x),
        _unit_of(largest_d, largest_d),
        _unit_of(largest_d, largest_x),
    )
    shift_xx, shift_dd, shift_dx = _shift_to(unit_xx), _shift_to(unit_dd), _shift_to(unit_dx)
    total_xx, total_dd, total_dx = np.int64(0), np.int64(0), np.int64(0)
    low_xx, low_dd, low_dx = 0.0, 0.0, 0.0
    for j in range(x.size):
        v, d = np.float64(x[j]), np.float64(a[j]) - np.float64(b[j])
        xx, dd, dx = v * v, d * d, d * v
        near_xx, near_dd, near_dx = xx + shift_xx, dd + shift_dd, dx + shift_dx
        total_xx += np.int64(reinterpret(near_xx))
        total_dd += np.int64(reinterpret(near_dd))
        total_dx += np.int64(reinterpret(near_dx))
        low_xx = any_order(low_xx, xx - (near_xx - shift_xx))
        low_dd = any_order(low_dd, dd - (near_dd - shift_dd))
        low_dx = any_order(low_dx, dx - (near_dx - shift_dx))
    _add_patterns(total_xx, x.size, unit_xx, sums[0])
    _add_patterns(total_dd, x.size, unit_dd, sums[1])
    _add_patterns(total_dx, x.size, unit_dx, sums[2])
    _add_low(low_xx, unit_xx, sums[0])
    _add_low(low_dd, unit_dd, sums[1])
    _add_low(low_dx, unit_dx, sums[2])


@compiled()
def exponent_of_largest(x):
    """Biased exponent of the largest magnitude, -1 where all are zero."""
    largest = U64(0)
    for j in range(x.size):
        largest = max(largest, U64(reinterpret(x[j]) & MAGNITUDE_64))
    return np.int64(largest >> U64(52)) if largest else np.int64(-1)


@compiled()
def add_any(x, y, largest_x, largest_y, rest, digits):
    """Add x * y of any finite doubles with products below 2^960; `rest` is scratch."""
    unit = _unit_of(largest_x, largest_y)
    for j in range(x.size):
        rest[j] = x[j] * y[j]
    left = True
    while left:
        shift = _shift_to(unit)
        total, bits_left = np.int64(0), U64(0)
        for j in range(x.size):
            t = rest[j] + shift
            total += np.int64(reinterpret(t))
            r = rest[j] - (t - shift)
            rest[j] = r
            bits_left |= reinterpret(r)
        _add_patterns(total, x.size, unit, digits)
        left = U64(bits_left & MAGNITUDE_64) != U64(0)
        unit = max(unit - np.int64(51), np.int64(0))


@compiled()
def take_sums(sums):
    """Return sums as words of 32 bits, two's complement, the lowest first; of each a line."""
    words = np.empty(sums.shape, np.uint32)
    for k in range(sums.shape[0]):
        carry = np.int64(0)
        for i in range(sums.shape[1]):
            carry += sums[k, i]
            words[k, i] = U32(carry & WORD)
            carry >>= np.int64(32)
    return words
