"""Stochastic rounding of arrays, and the random numbers that it compares with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.kernels.bits import U32, U64, borrowed, named, reinterpret, shift_down, shift_up
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.rounding import finish

TILE = 512  # half of what others take: the processor fetches what is next while the numbers of a tile are made


@compiled()
def _mix(x, y, turn):
    """One round of Threefry on two words."""
    x = U32(x + y)
    return x, U32(U32(U32(y << U32(turn)) | U32(y >> U32(32 - turn))) ^ x)


@compiled()
def random_words(words, low, high, key0, key1):
    """Fill `words` with Threefry-2x32-13 (Salmon et al. 2011): two words a counter, from (low, high) on.

    13 rounds are the fewest that the paper found to pass BigCrush. The low word must not wrap within the call.
    """
    key2 = U32(U32(key0 ^ key1) ^ U32(0x1BD11BDA))
    for i in range(words.size // 2):
        x, y = U32(U32(low + U32(i)) + key0), U32(high + key1)
        x, y = _mix(x, y, 13)
        x, y = _mix(x, y, 15)
        x, y = _mix(x, y, 26)
        x, y = _mix(x, y, 6)
        x, y = U32(x + key1), U32(U32(y + key2) + U32(1))
        x, y = _mix(x, y, 17)
        x, y = _mix(x, y, 29)
        x, y = _mix(x, y, 16)
        x, y = _mix(x, y, 24)
        x, y = U32(x + key2), U32(U32(y + key0) + U32(2))
        x, y = _mix(x, y, 13)
        x, y = _mix(x, y, 15)
        x, y = _mix(x, y, 26)
        x, y = _mix(x, y, 6)
        x, y = U32(x + key0), U32(U32(y + key1) + U32(3))
        x, y = _mix(x, y, 17)
        words[2 * i] = x
        words[2 * i + 1] = y


class ByChance(NamedTuple):
    """The constants of the stochastic loops."""

    keep: int  # the bits that the format has
    smallest_normal: float
    largest: float
    overflow: float  # what is beyond `largest` becomes this
    scale: float  # to units of 2^-16 smallest subnormals
    quantum: float  # the smallest subnormal
    shift: int  # from a number in the highest bits to the discarded ones
    origin: int  # of magnitudes whose rounding is one addition to their bits,
    span: int  # and how far they reach from there
    smallest: float  # these four as in `rounding.ByAddition`
    lost_zero: int
    nan_keep: int
    nan_flip: int


def _make_random(U: Any, F: Any, Signed: Any, width: int, mantissa: int, plain: bool) -> tuple[Any, Any]:
    """Build the stochastic loops; Signed holds 2^16 times the format's largest subnormal in units of the smallest."""
    SIGN_BIT = U(1 << (width - 1))
    ABS = U((1 << (width - 1)) - 1)
    TO_TOP = U(width - 17)
    LEAST = Signed(-(1 << (width - 1)))
    WIDE = width == 64
    INTEGERS = F(2.0**mantissa)  # from here on to its double, the last bit of a float is 1
    INTEGER_BITS = U((1 << (width - 2)) - (1 << mantissa) + (mantissa << mantissa))  # of that

    @compiled()
    def units_of(f, number):
        """Return the integer part of (integer part of f + number) / 2^16, as a float."""
        if WIDE:  # AVX2 converts no integers of 64 bits; f is below 2^40
            t = f + INTEGERS
            t = U(reinterpret(t) - (U(1) if t - INTEGERS > f else U(0)))
            whole = U(U(U(t - INTEGER_BITS) + number) >> U(16))
            return reinterpret(U(whole + INTEGER_BITS)) - INTEGERS
        return F(Signed(Signed(Signed(f) + Signed(number)) >> Signed(16)))

    @compiled()
    def gradual(x, out, k, numbers, ends):
        """Round with one number of 16 bits an element; `ends`: there may be overflow, infinities and NaN."""
        for i in range(x.size):
            number = U(numbers[i])
            b = reinterpret(x[i])
            a = U(b & ABS)
            v = reinterpret(a)
            normal = reinterpret(U(U(a + shift_down(shift_up(number, TO_TOP), k.shift)) & k.keep))
            f = F(F(v if v < k.smallest_normal else F(0)) * k.scale)
            r = F(units_of(f, number) * k.quantum) if v < k.smallest_normal else normal
            if ends:
                r = k.overflow if r > k.largest else r
                r = v if v != v else r
            if plain:
                out[i] = reinterpret(U(reinterpret(F(r)) | U(b & SIGN_BIT)))
            else:
                r = F(0) if r < k.smallest else r
                out[i] = reinterpret(finish(r, b, SIGN_BIT, k, U, F))

    @compiled()
    def tile(x, out, k, numbers, room):
        """Round a tile by way of `room`, since `out` may be x itself; normal values in one addition."""
        part = room[: x.size]
        farthest = largest = LEAST
        for i in range(x.size):
            part[i] = x[i]
            a = U(reinterpret(x[i]) & ABS)
            # as signed numbers, of which AVX2 has the larger one in 64 bits
            largest = Signed(max(largest, Signed(a)))
            farthest = Signed(max(farthest, Signed(U(U(a - k.origin) ^ SIGN_BIT))))
        if U(U(farthest) ^ SIGN_BIT) <= k.span:
            for i in range(x.size):
                dither = shift_down(shift_up(U(numbers[i]), TO_TOP), k.shift)
                out[i] = reinterpret(U(U(reinterpret(part[i]) + dither) & k.keep))
        elif U(largest) <= U(k.origin + k.span):
            gradual(part, out, k, numbers, False)
        else:
            gradual(part, out, k, numbers, True)

    # whoever makes the scratch calls a loop that borrows it, and holds it until then
    @compiled()
    def given_numbers(x, out, c, numbers, room):
        x, out, numbers, room = borrowed(x), borrowed(out), borrowed(numbers), borrowed(room)
        k = named(ByChance, c)
        for start in range(0, x.size, TILE):
            stop = min(x.size, start + TILE)
            tile(x[start:stop], out[start:stop], k, numbers[start:stop], room)

    @compiled()
    def own_numbers(x, out, c, stream, room, words):
        x, out, room, words = borrowed(x), borrowed(out), borrowed(room), borrowed(words)
        k = named(ByChance, c)
        numbers = words.view(np.uint16)
        seed, first = stream[0], stream[1]
        start = U64(0)
        while start < U64(x.size):
            # tiles lie at fixed places of the stream: it does not matter where x begins, and the low word never wraps
            counter = U64((first + start) // U64(TILE)) * U64(TILE // 4)
            skip = U64((first + start) % U64(TILE))
            stop = min(U64(x.size), U64(start + U64(TILE)) - skip)
            low, high = U32(counter & U64(0xFFFFFFFF)), U32(counter >> U64(32))
            random_words(words, low, high, U32(seed & U64(0xFFFFFFFF)), U32(seed >> U64(32)))
            tile(x[start:stop], out[start:stop], k, numbers[skip:], room)
            start = stop

    @compiled()
    def random(x, out, c, numbers):
        """Use given numbers, one an element."""
        room = np.empty(TILE, x.dtype)
        given_numbers(x, out, c, numbers, room)

    @compiled()
    def seeded(x, out, c, stream):
        """Use the numbers of a stream, [seed, index of the first element]."""
        room, words = np.empty(TILE, x.dtype), np.empty(TILE // 2, np.uint32)
        own_numbers(x, out, c, stream, room, words)

    return random, seeded


random_plain_32, seeded_plain_32 = _make_random(U32, np.float32, np.int32, 32, 23, True)
random_32, seeded_32 = _make_random(U32, np.float32, np.int32, 32, 23, False)
random_plain_64, seeded_plain_64 = _make_random(U64, np.float64, np.int64, 64, 52, True)
random_64, seeded_64 = _make_random(U64, np.float64, np.int64, 64, 52, False)
