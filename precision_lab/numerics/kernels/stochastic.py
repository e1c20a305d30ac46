"""Stochastic rounding of arrays, and the random numbers that it compares with.

Blocks of 128 elements (lanes.py) are made from the counter to the rounded values in registers, in one of three ways:

- One addition an element (rounding.py), sign and all. With 2^d for the place of the format's last bit, the dither is
  below 2^d: it leaves zero as it is, and raises a magnitude to the next multiple of 2^d at most. So no normal value
  falls below the smallest normal, and none passes the largest, a multiple itself.
- The same, and below the smallest normal in units of the smallest subnormal: none of these passes the smallest normal.
  Flush to zero takes all these units, or none; where there is no -0.0, adding +0.0 removes it.
- All that can be: also overflow, infinity, NaN; and what the second does with zeros, for the carrier's own exponents.

What a block is, two largest values tell: of the magnitudes, and of their distances from the first that an addition
rounds, modulo 2^32 (2^64): what is below it has the longest, and zero the shortest of these. An incomplete block is
done within a complete one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.cgutils import unpack_tuple
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import U32, U64, borrowed, copy, named
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.lanes import Lanes, Place, constants, select, some

BLOCK = 128  # elements
_COUNTERS = BLOCK // 4
_LANES = 16
_INFINITY = {32: 0x7F800000, 64: 0x7FF << 52}

# --- random numbers --------------------------------------------------------------------------------------------------

_TURNS = (13, 15, 26, 6, 17, 29, 16, 24)


def _threefry(builder: Any, counter: Sequence[Any], places: Sequence[Sequence[int]]) -> list[tuple[Lanes, Lanes]]:
    """Return the two words of Threefry-2x32-13 (Salmon et al. 2011) of counters, for each row of places.

    13 rounds are the fewest that the paper found to pass BigCrush. `counter` is the low and the high word of the first
    counter, and two of the key. The low word does not carry. Rows are made side by side: they wait for each other less.
    """
    import llvmlite.ir as ir

    rows = [ir.Constant(ir.VectorType(ir.IntType(32), len(row)), list(row)) for row in places]
    low, high, key0, key1 = (Lanes(builder, rows[0]).same(word) for word in counter)
    keys = key0, key1, key0 ^ key1 ^ 0x1BD11BDA
    x = [Lanes(builder, row) + (low + key0) for row in rows]
    y = [high + key1] * len(rows)
    for turn in range(13):
        x = [a + b for a, b in zip(x, y, strict=True)]
        y = [b.rotated(_TURNS[turn % 8]) ^ a for a, b in zip(x, y, strict=True)]
        step, within = divmod(turn + 1, 4)
        if not within:
            x = [a + keys[step % 3] for a in x]
            y = [b + (keys[(step + 1) % 3] + step) for b in y]
    return list(zip(x, y, strict=True))


def _rows(order: Sequence[int]) -> list[list[int]]:
    return [[first + place for place in order] for first in range(0, _COUNTERS, _LANES)]


# so that interleaving the words brings them to their places, and what of them are numbers to their elements
_OF_WORDS = _rows([0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15])
_OF_ELEMENTS = _rows([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15])


@intrinsic
def _write_words(typing_context: Any, words: Any, start: Any, counter: Any) -> Any:
    """Write those of a block."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = Place(context, builder, words, args[0], args[1])
        made = _threefry(builder, unpack_tuple(builder, args[2]), _OF_WORDS)
        for i, part in enumerate(half for x, y in made for half in x.interleaved(y)):
            target.store(_LANES * i, part)
        return context.get_dummy_value()

    return types.none(words, start, counter), codegen


@compiled()
def random_words(words, low, high, key0, key1):
    """Fill `words` with random ones, two a counter, from (low, high) on; the low word must not wrap within the call."""
    counters = words.size // 2
    if counters < _COUNTERS:
        room = np.empty(2 * _COUNTERS, np.uint32)
        _write_words(room, 0, (low, high, key0, key1))
        copy(room[: words.size], words)
        return
    for i in range(0, counters, _COUNTERS):
        first = min(i, counters - _COUNTERS)
        _write_words(words, 2 * first, (U32(low + U32(first)), high, key0, key1))


def _numbers(words: Sequence[tuple[Lanes, Lanes]]) -> Iterator[Lanes]:
    """Make of words the numbers of the elements in turn, each in the highest of 32 bits."""
    for x, y in words:
        for part in x.interleaved(y):
            numbers = part.split()
            for lanes in numbers.same(0).interleaved(numbers):
                yield lanes.joined()


# --- rounding --------------------------------------------------------------------------------------------------------


class ByChance(NamedTuple):
    """The constants of the stochastic loops; magnitudes are compared as bit patterns, which are signed integers."""

    keep: int  # the bits that the format has
    shift: int  # from a number in the highest bits to the discarded ones
    origin: int  # subtracted from a magnitude whose rounding is one addition, it leaves
    reach: int  # at most this; and it is at most
    largest: int  # the largest value
    gradual: int  # up to here the addition and what is done with subnormals and zeros are all
    subnormal: int  # the last magnitude below the smallest normal, -1 where the fields serve for all
    scale: float  # to units of 2^-16 smallest subnormals,
    unit: float  # which is this,
    whole: int  # and the bits of such a number that the format has
    overflow: int  # what is beyond `largest` becomes this
    flushed: int  # the last result that becomes zero, and of which these bits of the sign stay
    zero_keep: int
    nan_keep: int  # as in `rounding.ByAddition`
    nan_flip: int


def _whole_units(f: Lanes, number: Lanes, whole: Any) -> Lanes:
    """Return f without its fraction, plus the number, with the bits of `whole` alone."""
    if number.width == 32:  # f is below 2^31
        kept: Lanes = f.truncated() + number & whole
        return kept.converted()
    # AVX2 converts no integers of 64 bits; f is below 2^40. From 2^52 to its double the last bit of a float is 1
    integers = 2.0**52
    total = f.plus(integers)
    up = total.minus(integers).exceeds(f)
    kept = select(up, total.as_bits() - 1, total.as_bits()) + number & whole
    return kept.as_float().minus(integers)


def _rounded(b: Lanes, number: Lanes, k: SimpleNamespace, *, gradual: bool, ends: bool) -> Lanes:
    """Round lanes given as bits; `gradual`, `ends`: there may be subnormal results; overflow, infinities, NaN."""
    number = number.widened(b.width)
    r: Lanes = b + (number << b.width - 32 >> k.shift) & k.keep
    if not gradual:
        return r
    sign = 1 << b.width - 1
    a, negative = b & sign - 1, b & sign
    # what is not subnormal may be out of range there: it is not chosen
    units = _whole_units(a.as_float().times(k.scale), number >> 16, k.whole)
    unit, zero = units.same(k.unit).as_bits() | negative, b.same(k.zero_keep)
    below = units.times_plus(unit.as_float(), zero.as_float())  # exact; +0.0 makes +0.0 of -0.0
    r = select(a.exceeds(k.subnormal), r, below.as_bits())
    if not ends:
        return r
    magnitude = r & sign - 1
    r = select(magnitude.exceeds(k.largest), negative | k.overflow, r)
    r = select(magnitude.exceeds(k.flushed), r, negative & k.zero_keep)
    return select(a.exceeds(_INFINITY[b.width]), b & k.nan_keep ^ k.nan_flip, r)


@intrinsic
def _round_block(typing_context: Any, x: Any, out: Any, start: Any, k: Any, source: Any) -> Any:
    """Round the block that begins there; `source`: numbers, one an element, or the counter and key of the block."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given = Place(context, builder, x, args[0], args[2])
        target = Place(context, builder, out, args[1], args[2])
        c = constants(builder, k, args[3])
        offsets = range(0, BLOCK, _LANES)

        if isinstance(source, types.Array):
            chosen = Place(context, builder, source, args[4], args[2])

            def numbers() -> Iterable[Lanes]:
                return (chosen.load(i, _LANES).widened(32) << 16 for i in offsets)

        else:
            words = _threefry(builder, unpack_tuple(builder, args[4]), _OF_ELEMENTS)

            def numbers() -> Iterable[Lanes]:
                return _numbers(words)

        def write(*, gradual: bool, ends: bool) -> None:
            for i, number in zip(offsets, numbers(), strict=True):
                r = _rounded(given.load(i, _LANES).as_bits(), number, c, gradual=gradual, ends=ends)
                target.store(i, r.as_float())

        def magnitude(i: int) -> Lanes:
            b = given.load(i, _LANES).as_bits()
            return b & (1 << b.width - 1) - 1

        largest = magnitude(0)
        farthest = largest - c.origin
        for i in offsets[1:]:
            a = magnitude(i)
            largest, farthest = largest.or_larger(a), farthest.or_larger(a - c.origin)
        unusual = builder.or_(farthest.exceeds(c.reach), largest.exceeds(c.largest))
        with builder.if_else(some(builder, unusual)) as (rare, usual):
            with usual:
                write(gradual=False, ends=False)
            with rare, builder.if_else(some(builder, largest.exceeds(c.gradual))) as (beyond, within):
                with within:
                    write(gradual=True, ends=False)
                with beyond:
                    write(gradual=True, ends=True)
        return context.get_dummy_value()

    return types.none(x, out, start, k, source), codegen


@compiled()
def _round_part(x, out, start, stop, k, room, skip, source):
    """Round what is less than a block, which begins at `skip` of one."""
    room[:] = 0
    for i in range(start, stop):
        room[skip + i - start] = x[i]
    _round_block(room, room, 0, k, source)
    for i in range(start, stop):
        out[i] = room[skip + i - start]


# whoever makes the scratch calls a loop that borrows it, and holds it until then
@compiled()
def _with_numbers(x, out, c, numbers, room, rest):
    x, out, numbers, room, rest = borrowed(x), borrowed(out), borrowed(numbers), borrowed(room), borrowed(rest)
    k = named(ByChance, c)
    whole = x.size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        _round_block(x, out, start, k, numbers)
    if whole < x.size:
        for i in range(whole, x.size):
            rest[i - whole] = numbers[i]
        _round_part(x, out, whole, x.size, k, room, 0, rest)


@compiled()
def _with_stream(x, out, c, stream, room):
    x, out, room = borrowed(x), borrowed(out), borrowed(room)
    k = named(ByChance, c)
    seed, first = stream[0], stream[1]
    key0, key1 = U32(seed & U64(0xFFFFFFFF)), U32(seed >> U64(32))
    start = 0
    while start < x.size:
        # blocks lie at fixed places of the stream: it does not matter where x begins, and the low word never carries
        place = U64(first + U64(start))
        skip = np.int64(place % U64(BLOCK))
        counter = U64(place // U64(BLOCK)) * U64(_COUNTERS)
        source = U32(counter & U64(0xFFFFFFFF)), U32(counter >> U64(32)), key0, key1
        stop = min(x.size, start + BLOCK - skip)
        if stop - start == BLOCK:
            _round_block(x, out, start, k, source)
        else:
            _round_part(x, out, start, stop, k, room, skip, source)
        start = stop


@compiled()
def random(x, out, c, numbers):
    """Round with given numbers, one an element."""
    _with_numbers(x, out, c, numbers, np.empty(BLOCK, x.dtype), np.empty(BLOCK, np.uint16))


@compiled()
def seeded(x, out, c, stream):
    """Round with the numbers of a stream, [seed, index of the first element]."""
    _with_stream(x, out, c, stream, np.empty(BLOCK, x.dtype))
