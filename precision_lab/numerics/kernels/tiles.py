"""Tiles of a matrix product: eight vectors of sums that stay in registers over many steps, each step rounded.

Sums are scaled by a power of two so that the smallest normal is 2, the first number with the highest bit of the
exponent set. What a tile does depends on what may occur:

*usual*: no sum is below the smallest normal, so that the format has as many bits everywhere. Whether that is so, is
known afterwards: the tile keeps what all sums have in common, and where that lacks this bit, the steps are redone.

*gradual*: sums may be below, but all are doubles, or are rounded as if they were, and none overflows.

*anything*: as sums.py adds.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from numba import types
from numba.core.cgutils import alloca_once_value, for_range, unpack_tuple
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from precision_lab.numerics.kernels.lanes import Lanes, constants, select

USUAL, GRADUAL, ANYTHING = range(3)  # what may occur
EVEN, FIELDS, BY_BIT, CHANCE = range(4)  # ties to even; a dither; one that depends on a bit; a random one

WIDTH = 8  # columns of a tile
DEPTH = 64  # steps between two looks at what may occur: so many numbers of a row lie side by side
SMALLEST = 2.0  # the smallest normal, scaled
HIGHEST = 1 << 62  # set in the exponents of 2 and above

_MAGNITUDE = (1 << 63) - 1
_EXPONENT = 0x7FF << 52
_SIGN = 1 << 63


# --- rounding --------------------------------------------------------------------------------------------------------


class Rounding(NamedTuple):
    """What tiles read."""

    power: float  # 2^d with d = the bits that a double has and the format has not
    split: float  # 1 - 2^d
    up: float  # 1.5 * 2^d
    down: float  # the same, negative
    keep: int  # the bits that the format has
    to_top: int  # from the deciding bit to the highest
    dither: int  # these as in `sums.Accumulator`
    dither_below: int
    by_bit: int
    number_shift: int
    negative_zero: int
    cancelled: int
    nan: float
    largest: float  # these scaled, too
    beyond: float
    beyond_negative: float
    infinity: float
    negative_infinity: float


def _round_normal(s: Lanes, kind: int, k: SimpleNamespace, number: Lanes | None) -> Lanes:
    """Round as if there were no smallest normal.

    Ties to even: with q the spacing of the format at s, M = s / ulp(s), the double closest to (2^d - 1) s = 2^d s - s
    is, in units of q, the integer closest to M - M / 2^d, ties to even; since M is even where M / 2^d lies between two
    integers, these are the ties of M / 2^d, too. Taken from 2^d s it leaves s rounded, exactly. Just above a power of
    two, where (2^d - 1) s lies below 2^d times that, the spacing is q / 2; but s lies less than q / 4 above (as
    53 - d < d), so that both spacings lead to the power of two.
    """
    if kind == EVEN:
        return s.times_plus(k.power, s.times(k.split))
    return _by_fields(s.as_bits(), kind, k, k.dither, number)


def _by_fields(bits: Lanes, kind: int, k: SimpleNamespace, dither: Any, number: Lanes | None) -> Lanes:
    """Add a dither to the bits of a double and clear what the format has not."""
    if kind == CHANCE:
        assert number is not None
        dithered = bits + (number << k.number_shift)
    elif kind == FIELDS:
        dithered = bits + dither
    else:
        dithered = bits + ((bits << k.to_top).shift_signed(63) & k.by_bit) + dither
    kept: Lanes = (dithered & k.keep).as_float()
    return kept


def _round(s: Lanes, kind: int, k: SimpleNamespace, number: Lanes | None) -> Lanes:
    """Round in the whole range; zero has the sign of s where the format has such.

    By fields as in sums.py, where sums below the smallest normal are lifted. Ties to even by addition: C = 1.5 * 2^d e
    with e the power of two at or below |s|, but not below the smallest normal.
    """
    bits = s.as_bits()
    if kind == EVEN:
        e = (bits & _EXPONENT).as_float()
        e = select(e.builder.fcmp_ordered(">", e.value, e.same(SMALLEST).value), e, SMALLEST)
        r = e.times_plus(k.down, e.times_plus(k.up, s))
    else:
        smallest = s.same(SMALLEST).as_bits()
        lift = select((bits << 1).is_negative(), smallest.same(0), smallest | (bits & _SIGN)).as_float()
        r = _round_normal(s.plus(lift), kind, k, number).minus(lift)
    signed: Lanes = (r.as_bits() | (bits & k.negative_zero)).as_float()
    return signed


def _two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """As `sums.two_sum`."""
    s = a.plus(b)
    part = s.minus(a)
    return s, a.minus(s.minus(part)).plus(b.minus(part))


def _round_anything(s: Lanes, error: Lanes | None, kind: int, k: SimpleNamespace, number: Lanes | None) -> Lanes:
    """Round s + error as `sums.rounded` does."""
    build = s.builder
    bits = s.as_bits()
    sign, magnitude = bits & _SIGN, (bits & _MAGNITUDE).as_float()
    distance = magnitude.minus(s.same(SMALLEST))
    if error is not None:
        distance = distance.plus((error.as_bits() ^ sign).as_float())
    below = build.fcmp_ordered("<", distance.value, s.same(0.0).value)
    lift = select(below, s.same(SMALLEST).as_bits() | sign, 0).as_float()
    z = s.plus(lift)
    lost = s.minus(z.minus(lift))
    lost = lost if error is None else lost.plus(error)
    of_z = z.as_bits()
    odd = (of_z - ((lost.as_bits() ^ of_z) >> 63)) | 1
    of_z = select(build.fcmp_ordered("!=", lost.value, s.same(0.0).value), odd, of_z)
    dither = select(below, bits.same(k.dither_below), k.dither)
    r = _by_fields(of_z, kind, k, dither, number).minus(lift)
    r = (r.as_bits() | (of_z & k.negative_zero)).as_float()
    negative = bits.is_negative()
    size = (r.as_bits() & _MAGNITUDE).as_float()
    too_large = build.fcmp_ordered(">", size.value, s.same(k.largest).value)
    r = select(too_large, select(negative, s.same(k.beyond_negative), k.beyond), r)
    is_infinite = build.fcmp_ordered("==", magnitude.value, s.same(float("inf")).value)
    r = select(is_infinite, select(negative, s.same(k.negative_infinity), k.infinity), r)
    return select(build.fcmp_unordered("uno", s.value, s.value), s.same(k.nan), r)


# --- tiles -----------------------------------------------------------------------------------------------------------


@cache
def tile_rows() -> int:
    """Return the rows of a tile: its accumulators are eight vectors of the processor, of which it has 16 or 32."""
    target: Any = cpu_target
    features = target.target_context.codegen().magic_tuple()[2].split(",")
    return 8 if "+avx512f" in features else 4


def make_tile(kind: int, round_products: bool, level: int) -> Any:
    """Make an intrinsic that adds to a tile of sums, and returns whether all of them had the demanded bit.

    Arrays are sums, the packed operands, random numbers, and where these begin: row by row, step by step, those of
    products before those of sums. Positions are those of the tile in the first three of them and in the last, and its
    first column. At the level of what is usual it leaves the sums as they were unless all had the bit.
    """
    each = 2 if round_products else 1
    signed = level != USUAL and kind == BY_BIT  # there is a mode in which a sum that is exactly zero is -0

    def tile(typing_context: Any, arrays: Any, positions: Any, depth: Any, demanded: Any, k: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            import llvmlite.ir as ir

            rows, long, real = tile_rows(), ir.IntType(64), ir.DoubleType()
            c = constants(builder, k, args[4])
            sums, left, right, numbers, places = (
                context.make_array(array)(context, builder, value).data
                for array, value in zip(arrays, unpack_tuple(builder, args[0]), strict=True)
            )
            of_sums, of_left, of_right, of_places, column = unpack_tuple(builder, args[1])

            def moved(start: Any, count: Any, times: int = 1) -> Any:
                count = ir.Constant(long, count) if isinstance(count, int) else count
                return builder.add(start, builder.mul(count, ir.Constant(long, times)))

            def line(pointer: Any, start: Any, element: Any) -> Any:
                return builder.bitcast(builder.gep(pointer, [start]), ir.VectorType(element, WIDTH).as_pointer())

            def number(step: Any, row: int, which: int) -> Lanes | None:
                if kind != CHANCE:
                    return None
                place = moved(moved(of_places, rows * which + row), step, rows * each)
                start = builder.add(builder.load(builder.gep(places, [place])), column)
                short = builder.load(line(numbers, start, ir.IntType(16)), align=2)
                return Lanes(builder, short).widened(64)

            lines = [line(sums, moved(of_sums, row, WIDTH), real) for row in range(rows)]
            accumulators = [alloca_once_value(builder, builder.load(start, align=8)) for start in lines]
            common = alloca_once_value(builder, ir.Constant(ir.VectorType(long, WIDTH), [2**64 - 1] * WIDTH))
            with for_range(builder, args[2]) as loop:
                step = loop.index
                b = Lanes(builder, builder.load(line(right, moved(of_right, step, WIDTH), real), align=8))
                shared = Lanes(builder, builder.load(common))
                for row, accumulator in enumerate(accumulators):
                    a = b.same(builder.load(builder.gep(left, [moved(moved(of_left, row, DEPTH), step)])))
                    acc = Lanes(builder, builder.load(accumulator))
                    product, error = a.times(b), None
                    if round_products:
                        of_product = number(step, row, 0)
                        if level == ANYTHING:
                            product = _round_anything(product, None, kind, c, of_product)
                        else:
                            product = _round(product, kind, c, of_product)
                    if level == ANYTHING:
                        s, error = _two_sum(acc, product)
                    else:
                        s = acc.plus(product) if round_products else a.times_plus(b, acc)
                    if signed:
                        sign = (acc.as_bits() | product.as_bits()) & c.cancelled
                        s = (s.as_bits() | select((s.as_bits() << 1).equals(0), sign, 0)).as_float()
                    shared &= s.as_bits()
                    of_sum = number(step, row, each - 1)
                    if level == ANYTHING:
                        r = _round_anything(s, error, kind, c, of_sum)
                    else:
                        r = (_round if level == GRADUAL else _round_normal)(s, kind, c, of_sum)
                    builder.store(r.value, accumulator)
                builder.store(shared.value, common)
            shared = Lanes(builder, builder.load(common))
            wanted = shared.same(args[3])
            mask = builder.bitcast((shared & wanted).equals(wanted), ir.IntType(WIDTH))
            usual = builder.icmp_unsigned("==", mask, ir.Constant(mask.type, 2**WIDTH - 1))
            with builder.if_then(usual if level == USUAL else ir.Constant(ir.IntType(1), 1)):
                for start, accumulator in zip(lines, accumulators, strict=True):
                    builder.store(builder.load(accumulator), start, align=8)
            return usual

        return types.boolean(arrays, positions, depth, demanded, k), codegen

    return intrinsic(tile)


@intrinsic
def extremes(typing_context: Any, sums: Any, at: Any) -> Any:
    """Return the largest magnitude in a tile, and the smallest but for +0, in whose place infinity stands."""
    result = types.UniTuple(types.float64, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        def exceeds(x: Lanes, y: Lanes) -> Any:
            return builder.icmp_signed(">", x.value, y.value)

        words = ir.VectorType(ir.IntType(64), WIDTH)
        start = builder.gep(context.make_array(sums)(context, builder, args[0]).data, [args[1]])
        data = builder.bitcast(start, words.as_pointer())
        high = Lanes(builder, ir.Constant(words, [0] * WIDTH))
        low = infinity = high.same(_EXPONENT)
        for row in range(tile_rows()):
            bits = Lanes(builder, builder.load(builder.gep(data, [ir.Constant(ir.IntType(64), row)]), align=8))
            size = bits & _MAGNITUDE
            high = select(exceeds(size, high), size, high)
            size = select(bits.equals(0), infinity, size)
            low = select(exceeds(low, size), size, low)
        while high.value.type.count > 1:
            (x, y), (u, v) = high.halves(), low.halves()
            high, low = select(exceeds(x, y), x, y), select(exceeds(u, v), v, u)
        ends = (builder.extract_element(x.as_float().value, ir.Constant(ir.IntType(32), 0)) for x in (high, low))
        return context.make_tuple(builder, result, tuple(ends))

    return result(sums, at), codegen
