"""Sums, every addition rounded to an accumulator.

The rounding is by fields, as in rounding.py, of float64: a dither is added to the bit pattern, and what lies below the
last bit of the format is cleared. A mode is the dither: what it is made of is in `Accumulator`. Two things differ from
arrays. The sum of two doubles may be no double: how it is rounded then, is told by `rounded`. And a running sum is a
chain in which each operation waits for the one before: `add` has the usual case on a short way, in vector registers,
and leaves all else, which the processor foresees, to `rounded`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import TILE, U64, any_order, named, reinterpret
from precision_lab.numerics.kernels.compiled import compiled

LARGEST_64 = np.finfo(np.float64).max
SMALLEST_64 = np.finfo(np.float64).smallest_normal
_MAGNITUDE = U64(0x7FFFFFFFFFFFFFFF)
_SIGN = U64(0x8000000000000000)
_FRACTION = U64(0xFFFFFFFFFFFFF)


class Accumulator(NamedTuple):
    """A format and a mode as the loops read them, and what becomes of the ends of the range there.

    With d = 52 - mantissa bits, the bits of a double that the format has not are its last d.
    """

    discarded: int  # d
    low: int  # those bits
    dither: int  # what is added to them before they are cleared
    dither_below: int  # the same below the smallest normal
    deciding: int  # the place of the bit
    by_bit: int  # where this is added, too: the sign, or the last one that stays
    number_shift: int  # random numbers are added, moved up so far
    undecided: int  # a sum that is no double rounds as the double beside it, but perhaps where these bits of it
    undecided_at: int  # are these
    smallest_normal: float
    largest: float
    beyond: float  # what is beyond `largest`
    beyond_negative: float
    infinity: float
    negative_infinity: float
    negative_zero: float
    cancelled: float  # a sum that is exactly zero, not both summands being so with the same sign
    nan: float


@compiled(forceinline=True)
def two_sum(a, b):
    """Return a + b as a double and what that lacks of the exact sum: NaN where it overflows (Knuth's TwoSum)."""
    s = a + b
    part = s - a
    return s, (a - (s - part)) + (b - part)


@compiled(forceinline=True)
def to_odd(s, error):
    """Return the bits of s if nothing is lacking, else those of the odd one of the doubles around s + error."""
    bits = reinterpret(s)
    opposite = U64(U64(reinterpret(error) ^ bits) >> U64(63))
    odd = U64(U64(bits - opposite) | U64(1))
    return odd if abs(error) > 0.0 else bits


@compiled(forceinline=True)
def lift_of(s, below, k):
    """Return what is added to sums below the smallest normal N: N, with the sign of s.

    All of them then have the exponent of N, and the last bit of the format is in its place. Subtracting it is exact.
    """
    return np.copysign(k.smallest_normal, s) if below else 0.0


@compiled(forceinline=True)
def by_fields(bits, lift, dither, number, k):
    """Round a double with those bits that was lifted; it is no NaN, and nothing is beyond the largest value."""
    of_bit = k.by_bit if U64(bits & U64(U64(1) << k.deciding)) != U64(0) else U64(0)
    of_number = U64(U64(number) << k.number_shift)
    dithered = U64(bits + U64(U64(dither + of_number) + of_bit))
    r = reinterpret(U64(dithered & U64(~k.low))) - lift
    return reinterpret(U64(reinterpret(r) | U64(bits & reinterpret(k.negative_zero))))


@compiled(forceinline=True)
def rounded(s, error, number, k):
    """Round s + error once, two doubles of which the second is at most half a spacing of the first; no branches.

    Whether the exact sum is below the smallest normal, is told by s alone unless s is that: then its error decides.

    Lifted, s may lose a second time; both errors together are less than a spacing of the new sum z. The first is
    smaller than the unit of the second unless that is zero: their sum has the right sign, and is zero where both are.

    Then the exact sum lies strictly between z and the next double, and becomes the odd one of them (Boldo and Melquiond
    2008). Format and random numbers have at most 24 + 16 bits, so that the values, the midpoints and the 2^-16ths of a
    spacing all are even as doubles: the odd one lies between the same two of them as the sum.
    """
    outward = reinterpret(U64(reinterpret(error) ^ U64(reinterpret(s) & _SIGN)))  # an error that adds to the magnitude
    lift = lift_of(s, (abs(s) - k.smallest_normal) + outward < 0.0, k)
    z = s + lift
    dither = k.dither if lift == 0.0 else k.dither_below
    r = by_fields(to_odd(z, (s - (z - lift)) + error), lift, dither, number, k)
    beyond = k.beyond_negative if s < 0.0 else k.beyond  # one choice a line: nested ones become branches
    infinity = k.negative_infinity if s < 0.0 else k.infinity
    r = beyond if abs(r) > k.largest else r
    r = infinity if abs(s) == np.inf else r
    return r if s == s else k.nan


@compiled(forceinline=True)
def signed_zero(s, a, b, k):
    """Return s, the sum of a and b, with the sign of the mode if it is zero."""
    sign = U64(U64(reinterpret(a) | reinterpret(b)) & reinterpret(k.cancelled))
    return reinterpret(U64(reinterpret(s) | (sign if s == 0.0 else U64(0))))


@compiled(forceinline=True)
def add_anything(s, error, a, b, number, k):
    """Round the sum of a and b, of which s and error are known; no branches."""
    finite = np.copysign(LARGEST_64, s) if abs(s) == np.inf else s  # the sum of two that are finite
    finite = finite if abs(a) < np.inf else s
    s = finite if abs(b) < np.inf else s
    return rounded(signed_zero(s, a, b, k), error, number, k)


@intrinsic
def _by_fields(typing_context: Any, x: Any, constants: Any) -> Any:
    """Add the dither to a double and clear what the format has not, all in vector registers.

    Left to itself LLVM moves a double to a general register to work on its bits, and back, or makes a choice of a
    bit: each takes as long as an addition. What comes out of a fence it takes as it is.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        lane, word = ir.Constant(ir.IntType(32), 0), ir.IntType(64)
        reals, words = (ir.VectorType(kind, 2) for kind in (ir.DoubleType(), word))
        fence = get_or_insert_function(builder.module, ir.FunctionType(reals, [reals]), "llvm.arithmetic.fence.v2f64")

        def in_vector(x: Any) -> Any:
            return builder.insert_element(ir.Constant(words, ir.Undefined), builder.bitcast(x, word), lane)

        def fenced(x: Any) -> Any:
            return builder.bitcast(builder.call(fence, [builder.bitcast(x, reals)]), words)

        dither, deciding, by_bit, keep = (in_vector(builder.extract_value(args[1], i)) for i in range(len(constants)))
        bits = fenced(in_vector(args[0]))
        bit = fenced(builder.and_(builder.lshr(bits, deciding), words([1, 1])))
        is_set = builder.sub(words([0, 0]), bit)  # all bits, or none
        result = builder.and_(builder.add(builder.add(bits, dither), builder.and_(by_bit, is_set)), keep)
        return builder.extract_element(builder.bitcast(fenced(result), reals), lane)

    return x(x, constants), codegen


@intrinsic
def _likely(typing_context: Any, condition: Any) -> Any:
    """Return the condition and tell LLVM that it holds: so it stays a branch, which is off the chain."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        bit = ir.IntType(1)
        expect = builder.module.declare_intrinsic("llvm.expect", [bit], ir.FunctionType(bit, [bit, bit]))
        return builder.call(expect, [args[0], ir.Constant(bit, 1)])

    return condition(condition), codegen


@compiled()
def _add_slowly(s, error, a, b, number, k):
    return add_anything(s, error, a, b, number, k)


@compiled(forceinline=True)
def _is_undecided(s, error, k):
    """Whether s + error may be rounded in another way than s: error is less than a spacing, and s at a decision."""
    return (abs(error) > 0.0) & (U64(reinterpret(s) & k.undecided) == k.undecided_at)


@compiled(forceinline=True)
def add(a, b, number, k):
    """Add and round once."""
    s, error = two_sum(a, b)
    of_number = U64(U64(number) << k.number_shift)
    keep = U64(~k.low)
    r = _by_fields(s, (U64(k.dither + of_number), k.deciding, k.by_bit, keep))
    # The result is normal, and finite. A sum below the smallest normal, which is rounded to half the spacing here, goes
    # up to it only if it does so with the right one.
    smallest = reinterpret(k.smallest_normal)
    usual = U64(U64(reinterpret(r) & _MAGNITUDE) - smallest) <= U64(reinterpret(k.largest) - smallest)
    if _likely(usual & (not _is_undecided(s, error, k))):
        return r
    if (abs(s) < k.smallest_normal) & (s != 0.0):
        lift = np.copysign(k.smallest_normal, s)
        z = s + lift
        r = _by_fields(z, (U64(k.dither_below + of_number), k.deciding, k.by_bit, keep)) - lift
        if not _is_undecided(z, (s - (z - lift)) + error, k):
            return reinterpret(U64(reinterpret(r) | U64(reinterpret(s) & reinterpret(k.negative_zero))))
    if s != s:
        return k.nan
    if abs(a) == np.inf:  # a sum that has overflowed stays infinite
        return k.negative_infinity if s < 0.0 else k.infinity
    return _add_slowly(s, error, a, b, number, k)


@compiled(forceinline=True)
def number_at(numbers, i):
    """Return the i-th random number where there are any."""
    return 0 if numbers is None else numbers[i]


@compiled()
def round_values(x, c, numbers):
    """Round in place."""
    k = named(Accumulator, c)
    for i in range(x.size):
        x[i] = rounded(x[i], 0.0, number_at(numbers, i), k)


@compiled()
def add_dot(s, x, y, c, round_products, factors, numbers):
    """Return the sum of s and the products of x and y, one after the other; each product is rounded if it is to be."""
    k = named(Accumulator, c)
    for i in range(x.size):
        p = np.float64(x[i]) * np.float64(y[i])
        if round_products:
            p = rounded(p, 0.0, number_at(factors, i), k)
        s = add(s, p, number_at(numbers, i), k)
    return s


@compiled()
def _same(x, y):
    return x == y or (x != x and y != y)


@compiled()
def sum_sequential(terms, sums, c, numbers):
    """Leave the running sums in `sums` and return after how many terms none changed it any more.

    -1 if the last that is not zero did, or where there are random numbers.
    """
    k = named(Accumulator, c)
    s = 0.0
    for i in range(terms.size):
        s = add(s, terms[i], number_at(numbers, i), k)
        sums[i] = s
    if numbers is not None:
        return -1
    last = terms.size
    while last > 0 and terms[last - 1] == 0.0:
        last -= 1
    after = terms.size
    while after > 0 and _same(sums[after - 1], sums[after - 2] if after > 1 else 0.0):
        after -= 1
    return after if after < last else -1


@compiled()
def sum_blocks(terms, sums, c, numbers, block):
    """Leave the sum of each block of terms in `sums`."""
    k = named(Accumulator, c)
    for i in range(sums.size):
        s = 0.0
        for j in range(i * block, min((i + 1) * block, terms.size)):
            s = add(s, terms[j], number_at(numbers, j), k)
        sums[i] = s


@compiled()
def _add_neighbours(level, sums, k, numbers, first, of_doubles):
    """Add 2 i and 2 i + 1, all i; with the random numbers from the first on."""
    if of_doubles:
        for i in range(sums.size):
            a, b = level[2 * i], level[2 * i + 1]
            s = signed_zero(a + b, a, b, k)
            lift = lift_of(s, abs(s) < k.smallest_normal, k)
            sums[i] = by_fields(reinterpret(s + lift), lift, k.dither, number_at(numbers, first + i), k)
    else:
        for i in range(sums.size):
            a, b = level[2 * i], level[2 * i + 1]
            s, error = two_sum(a, b)
            sums[i] = add_anything(s, error, a, b, number_at(numbers, first + i), k)


@compiled()
def sum_pairs(terms, sums, c, numbers, largest, lowest):
    """Add at least two terms, neighbours, level by level; every sum goes to `sums`, the last is returned.

    `largest` and `lowest` are what `extents` says of the terms. Where a power of two B, at least the smallest normal,
    bounds the magnitudes of a level, 2 B bounds the sums, rounded ones too as long as it is a value of the format. All
    are multiples of `lowest`, since rounding to a smaller spacing leaves such a multiple as it is: up to 2^53 times
    that they are doubles, also when those below the smallest normal are lifted by that.
    """
    k = named(Accumulator, c)
    level, done = terms, 0
    waiting, moved_up = False, 0.0
    bound = reinterpret(U64(U64(reinterpret(largest) + _FRACTION) & U64(~_FRACTION))) if largest < np.inf else np.inf
    bound = max(bound, k.smallest_normal)
    while level.size + waiting > 1:
        here = sums[done : done + (level.size + waiting) // 2]
        bound *= 2.0
        of_doubles = bound <= k.largest and bound <= 2.0**53 * lowest
        of_doubles = of_doubles and k.discarded < 52  # with one significand bit ties to even are another matter
        _add_neighbours(level, here[: level.size // 2], k, numbers, done, of_doubles)
        if level.size % 2:
            if waiting:
                here[-1] = add(level[-1], moved_up, number_at(numbers, done + here.size - 1), k)
            else:
                moved_up = level[-1]
            waiting = not waiting
        level, done = here, done + here.size
    return level[0]


@compiled()
def sum_kahan(terms, sums, c, numbers):
    """Leave the running sums in `sums`; a step takes four numbers."""
    k = named(Accumulator, c)
    s = compensation = 0.0
    for i in range(terms.size):
        y = add(terms[i], -compensation, number_at(numbers, 4 * i), k)
        before, s = s, add(s, y, number_at(numbers, 4 * i + 1), k)
        gained = add(s, -before, number_at(numbers, 4 * i + 2), k)
        compensation = add(gained, -y, number_at(numbers, 4 * i + 3), k)
        sums[i] = s


@compiled()
def sum_neumaier(terms, sums, c, numbers):
    """Leave the running sums in `sums` and return the sum with its compensation."""
    k = named(Accumulator, c)
    s = compensation = 0.0
    for i in range(terms.size):
        t = terms[i]
        before, s = s, add(s, t, number_at(numbers, 4 * i), k)
        large, small = (before, t) if abs(before) >= abs(t) else (t, before)
        lost = add(large, -s, number_at(numbers, 4 * i + 1), k)
        lost = add(lost, small, number_at(numbers, 4 * i + 2), k)
        compensation = add(compensation, lost, number_at(numbers, 4 * i + 3), k)
        sums[i] = s
    return add(s, compensation, number_at(numbers, 4 * terms.size), k)


@compiled()
def extents(terms, doubles):
    """Return four numbers: the largest magnitude, the lowest bit of all, the sum and the sum of the magnitudes.

    NaN is the largest; where all are zero the lowest bit is infinite. The sums are taken in any order: they are exact
    up to 2^53 times the lowest bit. The terms are written to `doubles` unless that is None.
    """
    high, low = np.int64(0), np.int64(reinterpret(np.inf))  # magnitudes as signed integers, whose order is theirs
    total = magnitudes = 0.0
    for i in range(terms.size):
        x = np.float64(terms[i])
        if doubles is not None:
            doubles[i] = x
        a = U64(reinterpret(x) & _MAGNITUDE)
        # what its lowest bit leaves of it; of a power of two that is a subnormal number which is nothing beside it
        rest = U64(a & U64(a - U64(1)))
        rest = rest if U64(a & _FRACTION) != U64(0) else U64(0)
        bit = np.int64(reinterpret(reinterpret(a) - reinterpret(rest)))
        bit = bit if a != U64(0) else np.int64(reinterpret(np.inf))
        high, low = max(high, np.int64(a)), min(low, bit)
        total = any_order(total, x)
        magnitudes = any_order(magnitudes, reinterpret(a))
    return reinterpret(U64(high)), reinterpret(U64(low)), total, magnitudes


@compiled()
def _count(cells, x):
    """Add the significand of x to its cell, by exponent field, in two halves of 27 and 26 bits."""
    bits = U64(reinterpret(x) & _MAGNITUDE)
    field = U64(bits >> U64(52))
    significand = np.int64(U64(bits & _FRACTION) | U64(min(field, U64(1)) << U64(52)))
    sign = np.int64(-1) if x < 0.0 else np.int64(1)
    cell = cells[np.int64(field)]
    cell[0] += sign * (significand >> 26)
    cell[1] += sign * (significand & 0x3FFFFFF)


@compiled()
def sum_exactly(terms, largest, lowest, cells):
    """Add finite terms to `cells`, positive ones to the first half and the magnitudes of the others to the second.

    `largest` and `lowest` are what `extents` says of them; what a tile has is asked only where that is not enough.

    A tile, of which the largest is below 2^(e + 1) and the lowest bit is g, adds up exactly in any order where that is
    at most 2^43 g. Else let h = 2^(e - 41): adding and subtracting 1.5 * 2^52 h splits a term into a multiple of h, of
    which 1024 come to at most 2^52 h, and a rest of at most h / 2, of which they come to at most 2^53 g if 2^e is at
    most 2^85 g. What is wider, or so large that it might overflow, is added one by one.
    """
    positive, negative = cells[0], cells[1]
    near = largest <= min(2.0**43 * lowest, 2.0**999)
    for start in range(0, terms.size, TILE):
        tile = terms[start : start + TILE]
        if not near:
            largest, lowest, _, _ = extents(tile, None)
        p = m = p_rest = m_rest = 0.0
        if largest >= 2.0**1000 or largest > 2.0**85 * lowest:
            for x in tile:
                _count(positive if x > 0.0 else negative, abs(x))
        elif largest <= 2.0**43 * lowest:
            for x in tile:
                over = max(x, 0.0)
                p, m = any_order(p, over), any_order(m, over - x)
        else:
            power = max(reinterpret(U64(reinterpret(largest) & U64(~_FRACTION))), SMALLEST_64)  # 0: it is subnormal
            shift = 1.5 * 2.0**11 * power
            for x in tile:
                over = max(x, 0.0)
                under = over - x
                p_part, m_part = (over + shift) - shift, (under + shift) - shift
                p, m = any_order(p, p_part), any_order(m, m_part)
                p_rest, m_rest = any_order(p_rest, over - p_part), any_order(m_rest, under - m_part)
        _count(positive, p)
        _count(negative, m)
        _count(positive, p_rest)
        _count(negative, m_rest)


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
