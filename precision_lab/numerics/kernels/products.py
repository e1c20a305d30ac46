"""Products of matrices, every step of an accumulator rounded.

The result is made in tiles (tiles.py); operands are packed as doubles in the order in which a tile reads them. For so
many steps it is found out first what may occur, and it is done in the cheapest way that is right (`_make_add`).

`numerics.products` calls these loops in turn. None calls another that is long: that would be compiled again with it.
They share a `Room`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.cgutils import alloca_once_value, for_range
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import U32, U64, borrowed, leading_zeros, named, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.lanes import Lanes, Place, select
from precision_lab.numerics.kernels.stochastic import random_words
from precision_lab.numerics.kernels.sums import to_odd, two_sum
from precision_lab.numerics.kernels.tiles import (
    ANYTHING,
    BY_BIT,
    CHANCE,
    DEPTH,
    EVEN,
    FIELDS,
    GRADUAL,
    HIGHEST,
    SMALLEST,
    USUAL,
    WIDTH,
    Rounding,
    extremes,
    make_tile,
)

_EXPONENT = U64(0x7FF0000000000000)
_MAGNITUDE = (1 << 31) - 1  # of float32
_FRACTION = (1 << 23) - 1


@compiled()
def add_to_odd(x, y, out):
    """Add element by element, rounded to odd."""
    for i in range(x.size):
        out[i] = reinterpret(to_odd(*two_sum(x[i], y[i])))


class Room(NamedTuple):
    """Where what the loops share begins in an array of doubles, of a block of the result and some steps."""

    sums: int  # panels of rows, tiles of columns: the sums of a tile, row by row
    left: int  # panels of rows, chunks of DEPTH steps: row by row
    right: int  # tiles of columns, chunks: step by step
    of_left: int  # panels, chunks: norm, lowest bit, and precision (`_operand`)
    of_right: int  # tiles, chunks: the same
    done: int  # panels, tiles: how many chunks were added
    end: int


@compiled(forceinline=True)
def room_of(shape, start):
    """Lay out the room from a place on; shape: panels, tiles, chunks, rows of a panel."""
    panels, tiles, chunks, height = shape
    left = start + panels * tiles * height * WIDTH
    right = left + panels * chunks * height * DEPTH
    of_left = right + tiles * chunks * DEPTH * WIDTH
    of_right = of_left + panels * chunks * 3
    done = of_right + tiles * chunks * 3
    return Room(start, left, right, of_left, of_right, done, done + panels * tiles)


@compiled(forceinline=True)
def _room_in(room, shape):
    """Begin at a cache line: vectors that straddle two take longer."""
    return room_of(shape, np.int64((-room.ctypes.data % 64) // 8))


# --- packing, and what may occur -------------------------------------------------------------------------------------


@intrinsic
def _take(typing_context: Any, source: Any, start: Any, stride: Any, target: Any, to: Any, count: Any, up: Any) -> Any:
    """Write `count` times eight numbers of float32 as doubles, times `up`; the next eight begin a stride further.

    Return the sum of all squares and the largest one of an eighth, the value of the lowest bit, and all fraction bits.
    """
    result = types.Tuple((types.float64, types.float64, types.float32, types.uint32))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        narrow, wide = (ir.VectorType(kind, WIDTH) for kind in (ir.FloatType(), ir.DoubleType()))
        given = Place(context, builder, source, args[0], args[1]).first
        room = Place(context, builder, target, args[3], args[4]).first
        nothing = Lanes(builder, ir.Constant(narrow, [0.0] * WIDTH))
        infinity = nothing.same(float("inf"))
        starts = ir.Constant(wide, [0.0] * WIDTH), infinity.value, nothing.as_bits().value
        squares, lowest, fractions = (alloca_once_value(builder, start) for start in starts)
        with for_range(builder, args[5]) as loop:
            first = builder.gep(given, [builder.mul(loop.index, args[2])])
            x = Lanes(builder, builder.load(builder.bitcast(first, narrow.as_pointer()), align=4))
            double = Lanes(builder, builder.fpext(x.value, wide))
            first = builder.gep(room, [builder.mul(loop.index, ir.Constant(ir.IntType(64), WIDTH))])
            builder.store(double.times(args[6]).value, builder.bitcast(first, wide.as_pointer()), align=8)
            builder.store(double.times_plus(double, Lanes(builder, builder.load(squares))).value, squares)
            bits = x.as_bits() & _MAGNITUDE
            fraction = bits & _FRACTION
            builder.store((Lanes(builder, builder.load(fractions)) | fraction).value, fractions)
            rest = select(fraction.equals(0), nothing.as_bits(), bits & (bits - 1))  # without its lowest bit
            bit = select(bits.equals(0), infinity, bits.as_float().minus(rest.as_float()))
            builder.store(_smaller(bit, Lanes(builder, builder.load(lowest))).value, lowest)
        total, low, fraction = (Lanes(builder, builder.load(place)) for place in (squares, lowest, fractions))
        most = total
        while total.value.type.count > 1:
            parts = (x.halves() for x in (total, most, low, fraction))
            (a, b), (c, d), (e, f), (g, h) = parts
            total, most, low, fraction = a.plus(b), select(c.exceeds(d), c, d), _smaller(e, f), g | h
        lane = ir.Constant(ir.IntType(32), 0)
        ends = [builder.extract_element(x.value, lane) for x in (total, most, low, fraction)]
        return context.make_tuple(builder, result, ends)

    return result(source, start, stride, target, to, count, up), codegen


def _smaller(x: Lanes, y: Lanes) -> Lanes:
    return select(y.exceeds(x), x, y)


@compiled(forceinline=True)
def _operand(most, total, low, fraction, up, room, at):
    """Write of the rows of a panel, or the columns of a tile, in a chunk, what is to be known of their products.

    The norm of the largest one, infinite or NaN where a number is; a power of two that divides all, infinite if they
    are 0; the significand bits that suffice for all.
    """
    last = U32(fraction & U32(~fraction + U32(1))) if fraction != U32(0) else U32(1 << 23)
    room[at] = (np.sqrt(most) if total < np.inf else total) * up
    room[at + 1] = np.float64(low) * up
    room[at + 2] = np.float64(np.int64(leading_zeros(last)) - 7)


@compiled()
def pack(left, right, shape, start, steps, up, room, of_room, spare):
    """Pack rows, times `up`, and columns for so many steps.

    Parameters
    ----------
    left, right : array of float32
        The operands, flat.
    shape : tuple
        Rows, steps, columns.
    start : tuple
        The first row, column and step, and the column that comes after the last.
    steps : int
        How many. The last row serves for those that a panel lacks, and the last tile begins where it ends in time.
    up : float
        A power of two.
    room, of_room : array of float64, tuple
        To be filled, and its shape as `room_of` takes it.
    spare : array of float32
        DEPTH zeros, for what is no multiple of eight.

    """
    rows, of_row, columns = shape
    row, column, step, end = start
    panels, tiles, chunks, height = of_room
    room = borrowed(room)
    places = _room_in(room, of_room)
    if step == 0:
        for i in range(places.sums, places.left):
            room[i] = 0.0
    for i in range(places.done, places.end):
        room[i] = 0.0
    for chunk in range(-(-steps // DEPTH)):
        first = step + chunk * DEPTH
        depth = min(DEPTH, steps - chunk * DEPTH)
        for panel in range(panels):
            place = panel * chunks + chunk
            most, total, low, fraction = 0.0, 0.0, np.float32(np.inf), U32(0)
            for i in range(height):
                source, at = left, min(row + panel * height + i, rows - 1) * of_row + first
                if depth % WIDTH:
                    for j in range(depth):
                        spare[j] = left[at + j]
                    source, at = spare, 0
                to = places.left + (place * height + i) * DEPTH
                squares, _, lowest, bits = _take(source, at, WIDTH, room, to, -(-depth // WIDTH), up)
                most, total = max(most, squares), total + squares
                low, fraction = min(low, lowest), U32(fraction | bits)
            _operand(most, total, low, fraction, up, room, places.of_left + place * 3)
        for tile in range(tiles):
            place = tile * chunks + chunk
            at = first * columns + min(column + tile * WIDTH, end - WIDTH)
            to = places.right + place * DEPTH * WIDTH
            total, most, low, fraction = _take(right, at, columns, room, to, depth, 1.0)
            _operand(most, total, low, fraction, 1.0, room, places.of_right + place * 3)


@compiled(forceinline=True)
def _growth(steps, spacing, nearest):
    """Return the factor by which roundings may let sums grow; spacing: that of 1 in the format."""
    if nearest:  # n terms that sum up to S in magnitude leave sums of at most (1 + n u_r) S (Rump 2012)
        return 1 + (steps + 1) * spacing / 2
    growth = 1.0
    for _ in range(steps + 2):
        growth *= 1 + spacing
    return growth


# --- random numbers --------------------------------------------------------------------------------------------------


@compiled()
def _drawn(words, at, base, begin, end, seed):
    """Draw those from one number to another, four a counter, and return how many counters that took."""
    count = (end + 3) // 4 - begin // 4
    counter = U64(base + U64(begin // 4))
    low, high = U64(counter & U64(0xFFFFFFFF)), U64(counter >> U64(32))
    before = min(count, np.int64(U64(U64(1 << 32) - low)))  # the low word must not wrap within a call
    key0, key1 = U32(seed & U64(0xFFFFFFFF)), U32(seed >> U64(32))
    random_words(words[2 * at : 2 * (at + before)], U32(low), U32(high), key0, key1)
    random_words(words[2 * (at + before) : 2 * (at + count)], U32(0), U32(high + U64(1)), key0, key1)
    return count


@compiled()
def draw(stream, shape, start, roundings, words, places):
    """Draw the numbers of some rows and columns for as many roundings as there are places.

    Parameters
    ----------
    stream : array of uint64
        The seed and the number of the first rounding of all.
    shape : tuple
        Rows and columns of the result: each rounding takes as many numbers as it has elements.
    start : tuple
        The first row, the first column, the one after the last, and how many roundings of an element came before.
    roundings : int
        Of each element.
    words : array of uint32
        For the numbers; each two of them begin with one.
    places : array of int64, (panels, roundings, rows of a panel)
        Where in `words` those of a row begin.

    """
    rows, columns = shape
    row, column, end, before = start
    seed, base, skip = stream[0], U64(stream[1] >> U64(2)), np.int64(stream[1] & U64(3))
    panels, _, height = places.shape
    at = 0  # in counters: four numbers, two words
    pending = done = np.int64(-1)  # the elements that are to be drawn, counted from the first of all
    for rounding in range(roundings):
        for i in range(panels * height):
            line = min(row + i, rows - 1)
            begin = skip + ((before + rounding) * rows + line) * columns + column
            if row + i < rows and begin != done:
                if done >= 0:
                    at += _drawn(words, at, base, pending, done, seed)
                pending = begin
            done = begin + end - column
            places[i // height, rounding, i % height] = 4 * at + begin - pending // 4 * 4
    _drawn(words, at, base, pending, done, seed)


# --- sums ------------------------------------------------------------------------------------------------------------


@compiled(forceinline=True)
def _positions(at, shape, panel, tile, chunk, of_places, columns):
    """Return what a tile reads of its place: where sums, operands and places of numbers begin, and its first column."""
    _, tiles, chunks, height = shape
    return (
        at.sums + (panel * tiles + tile) * height * WIDTH,
        at.left + (panel * chunks + chunk) * height * DEPTH,
        at.right + (tile * chunks + chunk) * DEPTH * WIDTH,
        of_places * height,
        min(tile * WIDTH, columns - WIDTH),
    )


def _make_add(kind: int, round_products: bool) -> Any:
    """Build the loop for a kind of rounding.

    When tiles serve. Let g be the power of two that divides all products of these steps, and the sums there were
    before. It divides the accumulators, too, and the rounded products: rounding to a spacing of at least g gives a
    multiple of that, rounding to a smaller one leaves a multiple of g as it is. So all exact sums are multiples of g,
    which are doubles up to 2^53 g. Those below the smallest normal N are lifted by N, to less than 2 N.

    A rounding adds at most a spacing: 2 u_r of what it rounds, or the smallest subnormal. From |s| <= (1 + 2 u_r) (|s'|
    + |x|) + smallest follows a bound of all sums; the magnitudes of products come to at most the product of two norms
    (Cauchy and Schwarz).

    Ties to even may be rounded twice: to even in double, then into the format. Let P be the significand bits of a
    product, p those of the format, s a sum of a product x and an accumulator y that is no double, 2^e <= |s|, and
    q = 2^(e-p+1) the spacing of the format there.

    - If x has the bits that are lost, |x| < 2^(e-52+P), for P + p <= 50 below q/4: both roundings end at y, also where
      y is a power of two and the spacing below it q/2.
    - If y has them, |y| < 2^(e-52+p), while x has P bits and is therefore a value of the format, a midpoint, or at
      least 2^(e-P) away from all of these. In the first case both roundings end at x, in the last on the same side
      of the midpoint, since |y| < 2^(e-P-1). There remains the midpoint, where double loses the direction of y. It
      cannot occur if the largest product is at most 2^51 times what divides y: then s is a double.

    With rounded products both summands have p <= 24 bits: the first item holds, and is the only one.

    Where the smallest subnormal divides all products, sums below the smallest normal are values of the format: rounding
    to the smaller spacing that goes with their exponent leaves them as they are, and no sum need be above it. Nothing
    underflows, and from +0 on no sum becomes -0.
    """
    usually, gradually = (make_tile(kind, round_products, level) for level in (USUAL, GRADUAL))
    each = 2 if round_products else 1

    @compiled()
    def add(room, shape, numbers, places, c, some, columns, steps):
        """Add to the tiles of some panels until anything may occur; return whether that is nowhere so."""
        k = named(Rounding, c)
        _, tiles, chunks, height = shape
        room = borrowed(room)
        at = _room_in(room, shape)
        arrays = room, room, room, borrowed(numbers), borrowed(places)
        spacing = k.power / 2.0**52
        smallest = SMALLEST * spacing  # subnormal, scaled
        of_format = np.int64(leading_zeros(U64(~k.keep))) - 11  # significand bits
        most = min(DEPTH, steps)
        growth = _growth(most, spacing, kind == EVEN) * 1.001
        usual, all_done = True, True
        for panel in range(some[0], some[1]):
            for tile in range(tiles):
                of_sums = at.sums + (panel * tiles + tile) * height * WIDTH
                chunk = np.int64(room[at.done + panel * tiles + tile])
                while chunk * DEPTH < steps:
                    left = at.of_left + (panel * chunks + chunk) * 3
                    right = at.of_right + (tile * chunks + chunk) * 3
                    top, least = extremes(room, of_sums)
                    total = room[left] * room[right]
                    of_products = room[left + 1] * room[right + 1]
                    bound = growth * (top + (1 + spacing) * total + 2 * most * smallest)
                    divisor = reinterpret(U64(reinterpret(least) & _EXPONENT)) * spacing
                    divisor = min(max(divisor, smallest), of_products)
                    serves = max(bound, 2 * SMALLEST) <= 2.0**53 * divisor and spacing < 1
                    if kind == EVEN:
                        precision = room[left + 2] + room[right + 2] + of_format
                        twice = round_products or (precision <= 50 and total <= 2.0**51 * max(divisor, smallest))
                        serves = serves or twice
                    if not (serves and bound <= k.largest):
                        all_done = False
                        break
                    in_units = of_products >= smallest and least > 0.0 and k.cancelled == U64(0)
                    demanded = U64(0) if in_units else U64(HIGHEST)
                    of_places = (panel - some[0]) * places.shape[1] + chunk * DEPTH * each
                    positions = _positions(at, shape, panel, tile, chunk, of_places, columns)
                    depth = min(DEPTH, steps - chunk * DEPTH)
                    if not (usual and usually(arrays, positions, depth, demanded, k)):
                        usual = gradually(arrays, positions, depth, demanded, k)
                    chunk += 1
                room[at.done + panel * tiles + tile] = chunk
        return all_done

    return add


def _make_add_anything(by_chance: bool, round_products: bool) -> Any:
    """Build the loop for what those before leave."""
    anyhow = make_tile(CHANCE if by_chance else BY_BIT, round_products, ANYTHING)
    each = 2 if round_products else 1

    @compiled()
    def add_anything(room, shape, numbers, places, c, some, columns, steps, most):
        """Add up to so many chunks that are not done."""
        k = named(Rounding, c)
        tiles = shape[1]
        room = borrowed(room)
        at = _room_in(room, shape)
        arrays = room, room, room, borrowed(numbers), borrowed(places)
        for panel in range(some[0], some[1]):
            for tile in range(tiles):
                done = at.done + panel * tiles + tile
                first = np.int64(room[done])
                for chunk in range(first, min(first + most, -(-steps // DEPTH))):
                    of_places = (panel - some[0]) * places.shape[1] + chunk * DEPTH * each
                    positions = _positions(at, shape, panel, tile, chunk, of_places, columns)
                    anyhow(arrays, positions, min(DEPTH, steps - chunk * DEPTH), U64(0), k)
                    room[done] = chunk + 1

    return add_anything


@intrinsic
def _give(typing_context: Any, room: Any, at: Any, down: Any, result: Any, to: Any) -> Any:
    """Write eight doubles, times `down`, as float32; the result is flat."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        sums = Place(context, builder, room, args[0], args[1]).load(0, WIDTH).times(args[2])
        target = Place(context, builder, result, args[3], args[4])
        narrow = ir.VectorType(target.element, WIDTH)
        target.store(0, Lanes(builder, builder.fptrunc(sums.value, narrow)))
        return context.get_dummy_value()

    return types.none(room, at, down, result, to), codegen


@compiled()
def unpack(room, shape, down, result, of_result, row, column, end):
    """Write sums, times `down`, to the flat result of that shape, from a row and a column on."""
    panels, tiles, _, height = shape
    at = _room_in(room, shape).sums
    room, result = borrowed(room), borrowed(result)
    for i in range(min(panels * height, of_result[0] - row)):
        for tile in range(tiles):
            source = at + ((i // height * tiles + tile) * height + i % height) * WIDTH
            first = min(column + tile * WIDTH, end - WIDTH)
            _give(room, source, down, result, (row + i) * of_result[1] + first)


ADD = {
    (kind, round_products): _make_add(kind, round_products)
    for kind in (EVEN, FIELDS, BY_BIT, CHANCE)
    for round_products in (False, True)
}
"""By the kind of rounding and whether products are rounded."""

ADD_ANYTHING = {
    (by_chance, round_products): _make_add_anything(by_chance, round_products)
    for by_chance in (False, True)
    for round_products in (False, True)
}
"""By whether the rounding is stochastic and whether products are rounded."""
