"""Products of matrices, every step of an accumulator rounded.

The result is made in tiles (tiles.py); operands are packed as doubles in the order in which a tile reads them. For so
many steps it is found out first what may occur, and it is done in the cheapest way that is right (`_make_multiply`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.cgutils import alloca_once_value, for_range
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import U32, U64, borrowed, leading_zeros, named, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.lanes import Lanes, select
from precision_lab.numerics.kernels.stochastic import random_words
from precision_lab.numerics.kernels.sums import Accumulator, to_odd, two_sum
from precision_lab.numerics.kernels.tiles import (
    ANYTHING,
    BY_BIT,
    CHANCE,
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
    tile_rows,
)

_DEPTH = 64  # steps between two looks at what may occur
_DEPTH_BY_CHANCE = 32  # the random numbers of so many stay in the cache
_BLOCK = 512  # rows and columns that are worked on together

_MAGNITUDE = (1 << 63) - 1
_EXPONENT = U64(0x7FF0000000000000)
_FRACTION = (1 << 52) - 1


@compiled()
def add_to_odd(x, y, out):
    """Add element by element, rounded to odd."""
    for i in range(x.size):
        out[i] = reinterpret(to_odd(*two_sum(x[i], y[i])))


# --- what may occur --------------------------------------------------------------------------------------------------


class _Operand(NamedTuple):
    """Of some steps of the packed rows or columns of a tile."""

    norm: float  # the largest of a row or column: the root of the sum of squares; infinite or NaN where one is
    low: float  # a power of two that divides all; infinite if all are 0
    precision: int  # significand bits that suffice for all


@intrinsic
def _scan(typing_context: Any, panel: Any, size: Any, out: Any) -> Any:
    """Write of every eighth of the numbers in a panel the sum of squares, the value of the lowest bit, and all bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        vector = ir.VectorType(ir.DoubleType(), WIDTH)
        data, results = (
            builder.bitcast(context.make_array(kind)(context, builder, value).data, vector.as_pointer())
            for kind, value in ((panel, args[0]), (out, args[2]))
        )
        zeros = Lanes(builder, ir.Constant(vector, [0.0] * WIDTH))
        infinity = zeros.same(float("inf"))
        squares, lowest, fraction = (
            alloca_once_value(builder, start.value) for start in (zeros, infinity, zeros.as_bits())
        )
        count = builder.udiv(args[1], ir.Constant(ir.IntType(64), WIDTH))
        with for_range(builder, count) as loop:
            x = Lanes(builder, builder.load(builder.gep(data, [loop.index]), align=8))
            builder.store(x.times_plus(x, Lanes(builder, builder.load(squares))).value, squares)
            bits = x.as_bits() & _MAGNITUDE
            of_fraction = bits & _FRACTION
            builder.store((Lanes(builder, builder.load(fraction)) | of_fraction).value, fraction)
            rest = select(of_fraction.equals(0), bits.same(0), bits & (bits - 1))  # without its lowest bit
            bit = bits.as_float().minus(rest.as_float())
            bit = select(bits.equals(0), infinity, bit)
            so_far = Lanes(builder, builder.load(lowest))
            less = builder.fcmp_ordered("<", bit.value, so_far.value)
            builder.store(select(less, bit, so_far).value, lowest)
        for place, result in enumerate((squares, lowest, fraction)):
            value = builder.bitcast(builder.load(result), vector)
            builder.store(value, builder.gep(results, [ir.Constant(ir.IntType(64), place)]), align=8)
        return context.get_dummy_value()

    return types.none(panel, size, out), codegen


@compiled()
def _operand(panel, size, width, found):
    """Look at a panel, of which as many numbers lie side by side as `width`, a divisor of eight."""
    for i in range(size, -(-size // WIDTH) * WIDTH):
        panel[i] = 0.0
    _scan(panel, -(-size // WIDTH) * WIDTH, found)
    most, total, low, bits = 0.0, 0.0, np.inf, U64(1 << 52)
    for i in range(width):
        squares = 0.0
        for j in range(i, WIDTH, width):
            squares += found[j]
            low = min(low, found[WIDTH + j])
            bits = U64(bits | reinterpret(found[2 * WIDTH + j]))
        most, total = max(most, squares), total + squares
    last = U64(bits & U64(~bits + U64(1)))
    norm = np.sqrt(most) if total < np.inf else total
    return _Operand(norm, low, np.int64(leading_zeros(last)) - 10)


@compiled()
def _growth(steps, spacing, nearest):
    """Return the factor by which roundings may let sums grow; spacing: that of 1 in the format."""
    if nearest:  # n terms that sum up to S in magnitude leave sums of at most (1 + n u) S (Rump 2012)
        return 1 + (steps + 1) * spacing / 2
    growth = 1.0
    for _ in range(steps + 2):
        growth *= 1 + spacing
    return growth


# --- packing ---------------------------------------------------------------------------------------------------------


@compiled()
def _pack_rows(left, up, packed, operands, height, found):
    """Pack rows, times `up`, for tiles of that height; the last row serves for those that are missing."""
    rows, steps = left.shape
    for tile in range(operands.shape[0]):
        panel = packed[tile]
        for i in range(height):
            row, line = left[min(tile * height + i, rows - 1)], panel[i::height]
            for step in range(steps):
                line[step] = np.float64(row[step]) * up
        operands[tile, 0], operands[tile, 1], operands[tile, 2] = _operand(panel, steps * height, height, found)


@compiled()
def _pack_columns(right, packed, operands, found):
    """Pack columns in the same way."""
    steps, columns = right.shape
    for tile in range(operands.shape[0]):
        panel, first = packed[tile], tile * WIDTH
        lines, part = panel.reshape(-1, WIDTH), right[:, first : first + WIDTH]
        if part.shape[1] == WIDTH:
            for step in range(steps):
                for j in range(WIDTH):
                    lines[step, j] = part[step, j]
        else:
            for step in range(steps):
                for j in range(WIDTH):
                    lines[step, j] = part[step, min(j, columns - first - 1)]
        operands[tile, 0], operands[tile, 1], operands[tile, 2] = _operand(panel, steps * WIDTH, WIDTH, found)


@compiled()
def _aligned(rows, columns):
    """Return room that begins at a cache line: vectors that straddle two take longer."""
    room = np.empty(rows * columns + 8)
    start = np.int64((-room.ctypes.data % 64) // 8)
    return room[start : start + rows * columns].reshape(rows, columns)


# --- random numbers --------------------------------------------------------------------------------------------------


@compiled()
def _fill(words, first, seed):
    """Fill `words` with random numbers, four a counter, beginning with that of number `first`."""
    counter = U64(first >> U64(2))
    low, high = U64(counter & U64(0xFFFFFFFF)), U64(counter >> U64(32))
    before = min(words.size, 2 * np.int64(U64(U64(1 << 32) - low)))  # the low word must not wrap within a call
    key0, key1 = U32(seed & U64(0xFFFFFFFF)), U32(seed >> U64(32))
    random_words(words[:before], U32(low), U32(high), key0, key1)
    random_words(words[before:], U32(0), U32(high + U64(1)), key0, key1)


@compiled()
def _draw(stream, first_rounding, words, places, rows, columns, columns_of_all, height):
    """Draw the numbers of some rows of a tile and all columns of a block, for as many roundings as there are places."""
    seed, first, distance = stream[0], stream[1], stream[2]
    in_one = columns == columns_of_all
    pieces, length = (1, rows * columns) if in_one else (rows, columns)
    room = length // 4 + 4  # counters, and what the last tile reads beyond
    at = 0
    for rounding in range(places.size // height):
        place = U64(first + U64(distance * U64(first_rounding + rounding)))
        for piece in range(pieces):
            begin = U64(place + U64(piece * columns_of_all))
            skip = np.int64(begin & U64(3))
            _fill(words[2 * at : 2 * (at + (skip + length + 3) // 4)], begin, seed)
            start = 4 * at + skip
            if in_one:
                for i in range(height):
                    places[rounding * height + i] = start + min(i, rows - 1) * columns
            else:
                for i in range(piece, height):
                    places[rounding * height + i] = start
            at += room


# --- products --------------------------------------------------------------------------------------------------------


def _make_multiply(kind: int, round_products: bool) -> Any:
    """Build the loop for a kind of rounding.

    When tiles serve. Let g be the power of two that divides all products of these steps, and the sums there were
    before. It divides the accumulators, too, and the rounded products: rounding to a spacing of at least g gives a
    multiple of that, rounding to a smaller one leaves a multiple of g as it is. So all exact sums are multiples of g,
    which are doubles up to 2^53 g. Those below the smallest normal N are lifted by N, to less than 2 N.

    A rounding adds at most a spacing: 2 u of what it rounds, or the smallest subnormal. From |s| <= (1 + 2 u) (|s'| +
    |x|) + smallest follows a bound of all sums; the magnitudes of products come to at most the product of two norms
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
    usually, gradually, anyhow = (make_tile(kind, round_products, level) for level in (USUAL, GRADUAL, ANYTHING))
    each = 2 if round_products else 1
    most = _DEPTH_BY_CHANCE if kind == CHANCE else _DEPTH

    @compiled()
    def add_block(arrays, operands, shape, depth, usual, rounding):
        """Add to a row of tiles; return whether what was usual last still is."""
        sums, left, right, numbers, places = arrays
        sums, left, right = borrowed(sums), borrowed(left), borrowed(right)
        numbers, places = borrowed(numbers), borrowed(places)
        of_left, of_right = borrowed(operands[0]), borrowed(operands[1])
        row, tiles, wide, deep = shape
        height = tile_rows()
        size = height * WIDTH
        spacing = rounding.power / 2.0**52
        smallest = SMALLEST * spacing  # subnormal, scaled
        of_format = np.int64(leading_zeros(U64(~rounding.keep))) - 11  # significand bits
        growth = _growth(depth, spacing, kind == EVEN) * 1.001
        for j in range(tiles):
            at, from_left, from_right = (row * wide + j) * size, row * deep * height, j * deep * WIDTH
            top, least = extremes(sums, at)
            total = of_left[row, 0] * of_right[j, 0]
            of_products = of_left[row, 1] * of_right[j, 1]
            bound = growth * (top + (1 + spacing) * total + 2 * depth * smallest)
            divisor = reinterpret(U64(reinterpret(least) & _EXPONENT)) * spacing
            divisor = min(max(divisor, smallest), of_products)
            serves = max(bound, 2 * SMALLEST) <= 2.0**53 * divisor and spacing < 1
            if kind == EVEN:
                precision = of_left[row, 2] + of_right[j, 2] + of_format
                twice = round_products or (precision <= 50 and total <= 2.0**51 * max(divisor, smallest))
                serves = serves or twice
            in_units = of_products >= smallest and least > 0.0 and rounding.cancelled == U64(0)
            demanded = U64(0) if in_units else U64(HIGHEST)
            arrays, positions = (sums, left, right, numbers, places), (at, from_left, from_right, j * WIDTH)
            if not (serves and bound <= rounding.largest):
                anyhow(arrays, positions, depth, demanded, rounding)
            elif not (usual and usually(arrays, positions, depth, demanded, rounding)):
                usual = gradually(arrays, positions, depth, demanded, rounding)
        return usual

    @compiled()
    def multiply(left, right, result, c, stream):
        """Write left @ right: k ascending, each sum rounded, and each product if it is to be.

        stream: for ``stochastic`` the seed, the number of the first rounding, and the distance to the next one of the
        same element; those of the other elements follow one another.
        """
        k = named(Accumulator, c)
        height = tile_rows()
        power = np.float64(k.low) + 1
        scale = SMALLEST / k.smallest_normal
        rounding = Rounding(
            power,
            1 - power,
            1.5 * power,
            -1.5 * power,
            U64(~k.low),
            U64(U64(63) - k.deciding),
            k.dither,
            k.dither_below,
            k.by_bit,
            k.number_shift,
            reinterpret(k.negative_zero),
            reinterpret(k.cancelled),
            k.nan,
            k.largest * scale,
            k.beyond * scale,
            k.beyond_negative * scale,
            k.infinity * scale,
            k.negative_infinity * scale,
        )
        down = k.smallest_normal / SMALLEST

        (rows, steps), columns = left.shape, right.shape[1]
        tall, wide = -(-min(rows, _BLOCK) // height), -(-min(columns, _BLOCK) // WIDTH)
        deep = max(1, min(steps, most))
        even = deep + deep % 2
        found = np.empty(3 * WIDTH)
        sums = _aligned(tall * wide, height * WIDTH)
        packed_left, packed_right = _aligned(tall, even * height), _aligned(wide, even * WIDTH)
        of_left, of_right = np.empty((tall, 3)), np.empty((wide, 3))
        places = np.empty(deep * each * height if kind == CHANCE else 0, np.int64)
        room = height * (wide * WIDTH // 4 + 4)
        words = np.empty(2 * deep * each * room if kind == CHANCE else 0, np.uint32)
        arrays = sums.reshape(-1), packed_left.reshape(-1), packed_right.reshape(-1), words.view(np.uint16), places
        usual = True
        for row in range(0, rows, _BLOCK):
            some_rows = min(_BLOCK, rows - row)
            panels = -(-some_rows // height)
            for column in range(0, columns, _BLOCK):
                some_columns = min(_BLOCK, columns - column)
                tiles = -(-some_columns // WIDTH)
                sums[:] = 0
                for step in range(0, steps, deep):
                    depth = min(deep, steps - step)
                    part = slice(step, step + depth)
                    _pack_rows(left[row : row + some_rows, part], scale, packed_left, of_left[:panels], height, found)
                    _pack_columns(right[part, column : column + some_columns], packed_right, of_right[:tiles], found)
                    for i in range(panels):
                        if kind == CHANCE:
                            _draw(
                                stream + np.array([0, (row + i * height) * columns + column, 0], np.uint64),
                                step * each,
                                words,
                                places[: depth * each * height],
                                min(height, some_rows - i * height),
                                some_columns,
                                columns,
                                height,
                            )
                        shape = i, tiles, wide, even
                        usual = add_block(arrays, (of_left, of_right), shape, depth, usual, rounding)
                for i in range(some_rows):
                    panel, at = i // height * wide, i % height * WIDTH
                    for j in range(tiles):
                        line = sums[panel + j, at : at + WIDTH]
                        target = result[row + i, column + j * WIDTH : min(column + (j + 1) * WIDTH, columns)]
                        for place in range(target.size):
                            target[place] = line[place] * down

    return multiply


MULTIPLY = {
    (kind, round_products): _make_multiply(kind, round_products)
    for kind in (EVEN, FIELDS, BY_BIT, CHANCE)
    for round_products in (False, True)
}
"""By the kind of rounding and whether products are rounded."""
