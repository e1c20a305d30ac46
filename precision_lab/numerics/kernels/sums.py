"""Sums, every addition rounded to an accumulator.

A sum is rounded once: to odd in float64, then into the format (Boldo and Melquiond 2008). A format has at most 24
significand bits, so its values, its midpoints and the 2^-16ths of its spacings that stochastic rounding compares with
all end in zeros as doubles. A sum that is no double becomes the odd one of the two doubles around it, which lies
strictly between the same two of those places as the sum itself: every mode then decides as it would on the sum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from precision_lab.numerics.kernels.bits import U64, named, reinterpret
from precision_lab.numerics.kernels.compiled import compiled

LARGEST_64 = np.finfo(np.float64).max
_EVEN, _AWAY, _ZERO, _POSITIVE, _NEGATIVE, _ODD, _RANDOM = range(7)  # the order of RoundingMode


@compiled()
def sum_to_odd(a, b, downward):
    """Round a + b to odd; an exact zero is -0 if both are, `downward` if either is; NaN is positive."""
    s = a + b
    large, small = (a, b) if abs(a) >= abs(b) else (b, a)
    error = small - (s - large)  # exact (Dekker 1971) where s is finite
    bits = reinterpret(s)
    move = U64(1) if (error > 0.0) == (s > 0.0) else U64(0xFFFFFFFFFFFFFFFF)
    odd = reinterpret(U64(bits + move)) if U64(bits & U64(1)) == U64(0) and error != 0.0 else s
    if abs(s) == np.inf:
        odd = s if abs(large) == np.inf else np.copysign(LARGEST_64, s)
    if downward and s == 0.0:
        odd = -0.0 if np.copysign(1.0, a) < 0.0 or np.copysign(1.0, b) < 0.0 else 0.0
    return odd if s == s else np.nan


@compiled()
def _power(exponent):
    return reinterpret(U64(U64(exponent + 1023) << U64(52)))


class Accumulator(NamedTuple):
    """The constants of `_round_one`: a format and a mode, and what becomes of the ends of the range there."""

    mode: int  # its place in RoundingMode
    mantissa_bits: int
    emin: int
    largest: float
    beyond: float  # what is beyond `largest`
    beyond_negative: float
    infinity: float
    negative_infinity: float
    negative_zero: float
    nan: float


@compiled()
def _round_one(x, k, number):
    """Round one double in any mode."""
    negative = np.copysign(1.0, x) < 0.0
    a = abs(x)
    if x != x:
        return k.nan
    if a == np.inf:
        return k.negative_infinity if negative else k.infinity
    if a == 0.0:
        return k.negative_zero if negative else 0.0
    if a > 2 * k.largest:
        return k.beyond_negative if negative else k.beyond
    exponent = max(np.int64(reinterpret(a) >> U64(52)) - 1023, k.emin)
    scaled = a * _power(k.mantissa_bits - exponent)
    below = np.floor(scaled)
    rest = scaled - below
    odd = int(below) % 2 == 1
    if k.mode == _EVEN:
        away = rest > 0.5 or (rest == 0.5 and odd)
    elif k.mode == _AWAY:
        away = rest >= 0.5
    elif k.mode == _ZERO:
        away = False
    elif k.mode == _POSITIVE:
        away = rest > 0.0 and not negative
    elif k.mode == _NEGATIVE:
        away = rest > 0.0 and negative
    elif k.mode == _ODD:
        away = rest > 0.0 and not odd
    else:
        away = np.floor(rest * 65536.0) + number >= 65536.0
    r = (below + (1.0 if away else 0.0)) * _power(exponent - k.mantissa_bits)
    if r > k.largest:
        return k.beyond_negative if negative else k.beyond
    if r == 0.0:
        return k.negative_zero if negative else 0.0
    return -r if negative else r


@compiled()
def _add(a, b, k, numbers, i):
    """Add and round once, with the i-th random number where there are any."""
    number = numbers[i] if numbers.size else np.uint16(0)
    return _round_one(sum_to_odd(a, b, k.mode == _NEGATIVE), k, number)


@compiled()
def round_values(x, c, numbers):
    """Round in place."""
    k = named(Accumulator, c)
    for i in range(x.size):
        x[i] = _round_one(x[i], k, numbers[i] if numbers.size else np.uint16(0))


@compiled()
def sum_sequential(terms, sums, c, numbers):
    """Leave the running sums in `sums` and return after how many terms none changed it any more.

    -1 if the last that is not zero did, or where there are random numbers.
    """
    k = named(Accumulator, c)
    s, after, last = 0.0, 0, 0
    for i in range(terms.size):
        before, s = s, _add(s, terms[i], k, numbers, i)
        sums[i] = s
        if terms[i] != 0.0:
            last = i + 1
        if before != s and not (np.isnan(before) and np.isnan(s)):
            after = i + 1
    return after if after < last and not numbers.size else -1


@compiled()
def sum_blocks(terms, sums, c, numbers, block):
    """Leave the sum of each block of terms in `sums`."""
    k = named(Accumulator, c)
    s = 0.0
    for i in range(terms.size):
        s = _add(s if i % block else 0.0, terms[i], k, numbers, i)
        sums[i // block] = s


@compiled()
def sum_pairs(level, sums, c, numbers):
    """Add neighbours, level by level, in place; every sum also goes to `sums`."""
    k = named(Accumulator, c)
    count, done = level.size, 0
    while count > 1:
        for i in range(count // 2):
            level[i] = _add(level[2 * i], level[2 * i + 1], k, numbers, done)
            sums[done] = level[i]
            done += 1
        if count % 2:
            level[count // 2] = level[count - 1]
        count = (count + 1) // 2


@compiled()
def sum_kahan(terms, sums, c, numbers):
    """Leave the running sums in `sums`; a step takes four numbers."""
    k = named(Accumulator, c)
    s = compensation = 0.0
    for i in range(terms.size):
        y = _add(terms[i], -compensation, k, numbers, 4 * i)
        before, s = s, _add(s, y, k, numbers, 4 * i + 1)
        gained = _add(s, -before, k, numbers, 4 * i + 2)
        compensation = _add(gained, -y, k, numbers, 4 * i + 3)
        sums[i] = s


@compiled()
def sum_neumaier(terms, sums, c, numbers):
    """Leave the running sums in `sums` and return the sum with its compensation."""
    k = named(Accumulator, c)
    s = compensation = 0.0
    for i in range(terms.size):
        t = terms[i]
        before, s = s, _add(s, t, k, numbers, 4 * i)
        large, small = (before, t) if abs(before) >= abs(t) else (t, before)
        lost = _add(large, -s, k, numbers, 4 * i + 1)
        lost = _add(lost, small, k, numbers, 4 * i + 2)
        compensation = _add(compensation, lost, k, numbers, 4 * i + 3)
        sums[i] = s
    return _add(s, compensation, k, numbers, 4 * terms.size)


@compiled()
def sum_exactly(terms, cells):
    """Add the significands of finite terms to `cells`, by sign and exponent field, in two halves of 27 and 26 bits."""
    for t in terms:
        bits = reinterpret(t)
        field = U64(U64(bits >> U64(52)) & U64(0x7FF))
        significand = np.int64(U64(bits & U64(0xFFFFFFFFFFFFF)) | U64(min(field, U64(1)) << U64(52)))
        cell = cells[np.int64(bits >> U64(63)), np.int64(field)]
        cell[0] += significand >> 26
        cell[1] += significand & 0x3FFFFFF


class InTurn(NamedTuple):
    """The constants of `add_in_turn`."""

    mantissa_bits: int
    emin: int
    largest: float
    beyond: float  # what is beyond `largest` becomes this
    at_even: float  # positions between two values from which on a sum goes up
    at_odd: float


@compiled()
def add_in_turn(terms, numbers, state, c):
    """Add positive values of a format one by one to state[0]; return how many came before one that cannot change it.

    All of them if there is none. An infinity or NaN ends it too. `numbers`: of stochastic rounding, else empty.
    """
    k = named(InTurn, c)
    lowest = k.emin + np.int64(1023)
    total = state[0]
    for i in range(terms.size):
        # rounded to odd in float64, as in add_to_odd, and then once more
        s = total + terms[i]
        t = s - total
        error = (total - (s - t)) + (terms[i] - t)
        bits = reinterpret(s)
        if error != 0.0 and U64(bits & U64(1)) == U64(0):
            bits = U64(bits + U64(1)) if error > 0.0 else U64(bits - U64(1))
            s = reinterpret(bits)
        field = max(np.int64(bits >> U64(52)), lowest) - k.mantissa_bits
        position = s * reinterpret(U64(U64(2046 - field) << U64(52)))  # in spacings
        below = np.int64(position)
        rest = position - np.float64(below)
        if numbers.size:
            reach = np.floor(rest * 65536.0)
            away = reach + np.float64(numbers[i]) >= 65536.0
            certain = reach == 0.0
        else:
            away = rest >= (k.at_odd if below & np.int64(1) else k.at_even)
            certain = True
        rounded = np.float64(below + np.int64(away)) * reinterpret(U64(U64(field) << U64(52)))
        rounded = k.beyond if rounded > k.largest else rounded
        if rounded == total and (certain or total == k.beyond):
            state[0] = total
            return i
        total = rounded
        if not total < np.inf:
            state[0] = total
            return i + 1
    state[0] = total
    return terms.size
