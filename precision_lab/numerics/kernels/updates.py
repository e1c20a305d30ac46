"""What becomes of updates: stored, added, rounded, and counted; tile by tile, so that a tile stays in the first cache.

Tiles with nothing special, which is nearly all of them, are counted without a question about each element.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precision_lab.numerics.kernels.addresses import call
from precision_lab.numerics.kernels.bits import TILE, U32, U64, borrowed, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.histogram import LANES, add_keys
from precision_lab.numerics.kernels.product_sums import (
    WIDEST,
    add_any,
    add_squares,
    add_three,
    exponent_of_largest,
)

ROWS, COLUMNS = 2048, 4
CELLS = ROWS * COLUMNS * LANES
RATIO_OFFSET = 1280  # the row of 2^0: below it there is room for 2^-1074 / 2^128
ZERO_UPDATE, NONFINITE, ZERO_WEIGHT = 0, 1, 2  # rows
SPECIAL_ROWS = 3
LOST, OVERFLOWED = 1, 2  # columns
NO_UPDATE, MOVED = 0, 2  # what may become of an update, beside LOST
LARGEST_UPDATE = 2.0**480  # its square can be added 2^62 times


@compiled()
def _add_products(w, u, rounded, exponents, sums):
    """Add to the three sums what a usual tile has; `exponents` are those of `count_usual`."""
    top_u, low_u, top_d, low_d = exponents
    if top_u < 0:
        return
    if top_u - low_u > WIDEST or (top_d >= 0 and top_d - low_d > WIDEST):
        updates, effective = np.empty(u.size), np.empty(u.size)
        for j in range(u.size):
            updates[j], effective[j] = np.float64(u[j]), np.float64(rounded[j]) - np.float64(w[j])
        _add_any_products(updates, effective, sums)
    elif top_d < 0:
        add_squares(u, top_u, sums)
    else:
        add_three(u, rounded, w, top_u, top_d, sums)


@compiled()
def _add_any_products(updates, effective, sums):
    """Add what any tile has, in float64."""
    rest = np.empty(updates.size)
    top_u, top_d = exponent_of_largest(updates), exponent_of_largest(effective)
    if top_u >= 0:
        add_any(updates, updates, top_u, top_u, rest, sums[0])
    if top_d >= 0:
        add_any(effective, effective, top_d, top_d, rest, sums[1])
        add_any(effective, updates, top_d, top_u, rest, sums[2])


def _make_updates(U: Any, F: Any, Signed: Any, width: int, mantissa: int, limit: float) -> tuple[Any, ...]:
    """Build the loops for a carrier; updates of magnitude `limit` or more count as not finite."""
    ABS = U((1 << (width - 1)) - 1)
    INF = U((1 << (width - 1)) - (1 << mantissa))
    LIMIT = U(np.array(limit, F).view(U))
    SIGN = U(1 << (width - 1))
    SMALLEST_NORMAL = U(1 << mantissa)
    REBIAS = np.int64(1024 - (1 << (width - 2 - mantissa)))  # from the exponents to those of float64
    LIFT, LIFTED = F(2.0**64), Signed(64)
    SHIFT = Signed(mantissa)

    @compiled()
    def add_to_odd(w, u, out):
        """Add w and u, rounded to odd (Boldo and Melquiond 2008): one more rounding, two bits shorter, is exact."""
        for i in range(w.size):
            s = F(w[i] + u[i])
            t = F(s - w[i])
            error = F(F(w[i] - F(s - t)) + F(u[i] - t))  # Knuth's TwoSum; NaN where s is infinite
            b = U(reinterpret(s))
            # what is inexact lies between the values with the bits b and b + 1 or, as infinity does, b - 1 and b
            outward = reinterpret(U(reinterpret(error) ^ U(b & SIGN))) >= F(0)
            odd = U((b if outward else U(b - U(1))) | U(1))
            out[i] = reinterpret(odd if error != F(0) else b)

    @compiled()
    def count_any(w, u, rounded, keys, updates, effective):
        """Write the keys of any tile; and updates and effective updates in float64, 0 where they are not in the sums.

        A key is 4 * row + column, times LANES; the row is floor(log2|u/w|) + RATIO_OFFSET, but for ZERO_UPDATE,
        NONFINITE and ZERO_WEIGHT.
        """
        for j in range(w.size):
            a, b = U(reinterpret(w[j]) & ABS), U(reinterpret(u[j]) & ABS)
            # subnormals have no leading bit: lift them among the normals
            a_low, b_low = a < SMALLEST_NORMAL, b < SMALLEST_NORMAL
            a_bits = Signed(reinterpret(F(reinterpret(a) * LIFT))) if a_low else Signed(a)
            b_bits = Signed(reinterpret(F(reinterpret(b) * LIFT))) if b_low else Signed(b)
            row = Signed(Signed(Signed(b_bits - a_bits) >> SHIFT) + Signed(RATIO_OFFSET))
            row = Signed(row + (LIFTED if a_low else Signed(0)) - (LIFTED if b_low else Signed(0)))
            row = Signed(ZERO_WEIGHT) if a == U(0) else row
            row = Signed(ZERO_UPDATE) if b == U(0) else row
            usable = (a < INF) & (b < LIMIT)
            row = row if usable else Signed(NONFINITE)
            finite = U(reinterpret(rounded[j]) & ABS) < INF
            column = (Signed(LOST) if rounded[j] == w[j] else Signed(0)) if finite else Signed(OVERFLOWED)
            keys[j] = U32(Signed(Signed(Signed(row << Signed(2)) + column) * Signed(LANES)))
            counted = usable & finite
            updates[j] = np.float64(u[j]) if counted else 0.0
            effective[j] = np.float64(rounded[j]) - np.float64(w[j]) if counted else 0.0

    @compiled()
    def count_usual(w, u, rounded, keys, touched):
        """Write the keys of a tile in which no magnitude but zero is subnormal, `limit` or more, infinite or NaN.

        Returns whether it is one, and the biased exponents, as in float64, of the largest and the least non-zero u and
        effective update: -1 for the largest where all are zero; of an effective update, which is rounded here, the
        largest may be one too large and the least one or two too small.
        """
        least_w, least_u, least_d = U(~U(0)), U(~U(0)), U(~U(0))  # less one, so that zero is not the least
        largest_w, largest_u, largest_d = U(0), U(0), U(0)
        for j in range(w.size):
            a, b = U(reinterpret(w[j]) & ABS), U(reinterpret(u[j]) & ABS)
            d = U(reinterpret(F(rounded[j] - w[j])) & ABS)  # not finite where one of them is not
            least_w, largest_w = min(least_w, U(a - U(1))), max(largest_w, a)
            least_u, largest_u = min(least_u, U(b - U(1))), max(largest_u, b)
            least_d, largest_d = min(least_d, U(d - U(1))), max(largest_d, d)
            row = Signed(Signed(Signed(b - a) >> SHIFT) + Signed(RATIO_OFFSET))
            row = Signed(ZERO_WEIGHT) if a == U(0) else row
            row = Signed(ZERO_UPDATE) if b == U(0) else row
            column = Signed(LOST) if d == U(0) else Signed(0)
            keys[j] = U32(Signed(Signed(Signed(row << Signed(2)) + column) * Signed(LANES)))
        least = min(min(least_w, least_u), least_d)
        usual = (largest_u < LIMIT) & (largest_d < INF) & (least >= U(SMALLEST_NORMAL - U(1)))
        if largest_w != U(0) and largest_u != U(0):
            first, last = Signed(U(least_u + U(1)) - largest_w) >> SHIFT, Signed(largest_u - U(least_w + U(1))) >> SHIFT
            touched[0] = min(touched[0], np.int64(first) + np.int64(RATIO_OFFSET))
            touched[1] = max(touched[1], np.int64(last) + np.int64(RATIO_OFFSET))
        top_u = np.int64(largest_u >> U(mantissa)) + REBIAS if largest_u != U(0) else np.int64(-1)
        top_d = np.int64(largest_d >> U(mantissa)) + REBIAS if largest_d != U(0) else np.int64(-1)
        low_u = np.int64(U(least_u + U(1)) >> U(mantissa)) + REBIAS
        low_d = np.int64(U(least_d + U(1)) >> U(mantissa)) + REBIAS - np.int64(1)
        return usual, (top_u, low_u, top_d, low_d)

    @compiled()
    def tell(w, u, rounded, outcomes):
        """Write what became of each update: LOST, MOVED (or overflowed), or NO_UPDATE where none is counted."""
        for j in range(w.size):
            a, b = U(reinterpret(w[j]) & ABS), U(reinterpret(u[j]) & ABS)
            counts = (a < INF) & (b < LIMIT) & (b != U(0))
            outcomes[j] = (np.uint8(LOST) if rounded[j] == w[j] else np.uint8(MOVED)) if counts else np.uint8(NO_UPDATE)

    return add_to_odd, count_usual, count_any, tell


@compiled()
def _unhide(x, rounded):
    """Put a NaN wherever x is infinite or NaN."""
    for j in range(x.size):
        rounded[j] = rounded[j] if np.isfinite(x[j]) else np.nan


def _make_loops(add_to_odd: Any, count_usual: Any, count_any: Any, tell: Any) -> tuple[Any, Any, Any]:
    """Build the loops over tiles for a carrier."""

    @compiled()
    def step(w, u, storing, rounding, by_chance, stream, hides, stored, total, rounded):
        call(storing[0], (w, stored, storing[1], False))
        if hides:
            _unhide(w, stored)
        add_to_odd(stored, u, total)
        if by_chance:
            call(rounding[0], (total, rounded, rounding[1], stream))
        else:
            call(rounding[0], (total, rounded, rounding[1], False))
        stream[1] += U64(w.size)

    @compiled()
    def count(w, u, rounded, keys, cells, touched, sums):
        usual, exponents = count_usual(w, u, rounded, keys, touched)
        if usual:
            _add_products(w, u, rounded, exponents, sums)
        else:
            updates, effective = np.empty(w.size), np.empty(w.size)
            count_any(w, u, rounded, keys, updates, effective)
            touched[0], touched[1] = np.int64(0), np.int64(ROWS - 1)
            _add_any_products(updates, effective, sums)
        add_keys(keys, cells)

    @compiled()
    def updates(w, u, storing, rounding, by_chance, stream, hides, room, cells, touched, sums):
        """Store weights, add updates, round, and count, tile by tile.

        Parameters
        ----------
        w, u : array
            Weights and updates.
        storing, rounding : (int, array)
            The address of a loop, and its constants.
        by_chance : bool
            Whether rounding takes `stream`, too.
        stream : array of uint64
            A seed and the index of the first element, which moves on.
        hides : bool
            Whether storing makes something finite of an infinity or a NaN.
        room : array, (4, TILE)
            Scratch of the carrier.
        cells : array of uint32, (CELLS,)
            To be added to, LANES a key.
        touched : array of int64
            The first and the last row, but the special ones, that anything may have been added to.
        sums : array of int64, (3, product_sums.DIGITS)
            Of u * u, d * d and d * u, for the effective updates d; to be added to.

        """
        w, u, room, cells, sums = borrowed(w), borrowed(u), borrowed(room), borrowed(cells), borrowed(sums)
        keys = room[3].view(np.uint32)
        for start in range(0, w.size, TILE):
            ws, us = w[start : start + TILE], u[start : start + TILE]
            stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
            step(ws, us, storing, rounding, by_chance, stream, hides, stored, total, rounded)
            count(stored, us, rounded, keys[: ws.size], cells, touched, sums)

    @compiled()
    def outcomes(w, u, storing, rounding, by_chance, stream, hides, room, outcomes):
        """Store, add and round as `updates`, and write what became of each update."""
        w, u, room = borrowed(w), borrowed(u), borrowed(room)
        for start in range(0, w.size, TILE):
            ws, us = w[start : start + TILE], u[start : start + TILE]
            stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
            step(ws, us, storing, rounding, by_chance, stream, hides, stored, total, rounded)
            tell(stored, us, rounded, outcomes[start : start + TILE])

    @compiled()
    def made(w, u, rounded, keys, cells, touched, sums):
        """Count as `updates`, of a step that was made: `rounded` is what the weights are after it.

        `keys` is scratch, (TILE,) of uint32.
        """
        w, u, rounded, cells, sums = borrowed(w), borrowed(u), borrowed(rounded), borrowed(cells), borrowed(sums)
        for start in range(0, w.size, TILE):
            tile = slice(start, min(start + TILE, w.size))
            count(w[tile], u[tile], rounded[tile], keys[: tile.stop - start], cells, touched, sums)

    return updates, outcomes, made


UPDATES, OUTCOMES, MADE = zip(
    _make_loops(*_make_updates(U32, np.float32, np.int32, 32, 23, np.inf)),
    _make_loops(*_make_updates(U64, np.float64, np.int64, 64, 52, LARGEST_UPDATE)),
    strict=True,
)
