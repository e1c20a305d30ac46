"""What becomes of updates: stored, added, rounded, and counted.

Sums of products are exact. With all |x| <= 2^51 g and M = 1.5 * 2^52 g, x + M rounds x to a multiple of g, and the
bit patterns of floats from 2^52 g to 2^53 g are consecutive: bits(x + M) - bits(M) is that multiple, and integers can
be added in any order. What is left of x, at most g/2, is exact and goes round again, 51 bits lower.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from precision_lab.numerics.kernels.bits import TILE, U32, U64, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.histogram import LANES, add_keys
from precision_lab.numerics.kernels.rounding import (
    add_even_32,
    add_even_64,
    add_even_plain_32,
    add_even_plain_64,
    directed_32,
    directed_64,
    mask_even_plain,
)
from precision_lab.numerics.kernels.stochastic import seeded_64, seeded_plain_64

UPDATE_TILE = 16 * TILE
CELLS = 2048 * 4 * LANES  # rows and columns
RATIO_OFFSET = 1280  # the row of 2^0: below it there is room for 2^-1074 / 2^128
ZERO_UPDATE, NONFINITE, ZERO_WEIGHT = 0, 1, 2  # rows
LOST, OVERFLOWED = 1, 2  # columns, of four
NO_UPDATE, MOVED = 0, 2  # what may become of an update, beside LOST
LARGEST_UPDATE = 2.0**480  # its square can be added 2^62 times
MAGNITUDE_64 = U64(0x7FFFFFFFFFFFFFFF)


@compiled()
def _exponent_of_largest(x):
    """Biased exponent of the largest magnitude, -1 where all are zero."""
    largest = U64(0)
    for j in range(x.size):
        largest = max(largest, U64(reinterpret(x[j]) & MAGNITUDE_64))
    return np.int64(largest >> U64(52)) if largest else np.int64(-1)


@compiled()
def _shift_to(unit):
    """1.5 * 2^52 units of 2^(unit - 1074)."""
    return reinterpret(U64((unit + np.int64(1)) << np.int64(52))) * 1.5


@compiled()
def _add_integers(total, n, shift, unit, sums):
    """Add a total of n bit patterns, less those of the shift, in two halves that do not overflow."""
    total -= np.int64(n) * np.int64(reinterpret(shift))
    sums[unit, 0] += total >> np.int64(32)
    sums[unit, 1] += total & np.int64(0xFFFFFFFF)


@compiled()
def _add_products(a, b, unit, rest, sums):
    """Add a[j] * b[j], each rounded to float64, to `sums`: the halves of integers, in units of 2^(unit - 1074).

    All finite, and no product beyond 2^51 units.
    """
    unit = max(unit, np.int64(0))
    shift = _shift_to(unit)
    total, left = np.int64(0), U64(0)
    for j in range(a.size):
        x = a[j] * b[j]
        t = x + shift
        total += np.int64(reinterpret(t))
        r = x - (t - shift)
        rest[j] = r
        left |= reinterpret(r)
    _add_integers(total, a.size, shift, unit, sums)
    while U64(left & MAGNITUDE_64) != U64(0):
        unit = max(unit - np.int64(51), np.int64(0))
        shift = _shift_to(unit)
        total, left = np.int64(0), U64(0)
        for j in range(a.size):
            x = rest[j]
            t = x + shift
            total += np.int64(reinterpret(t))
            r = x - (t - shift)
            rest[j] = r
            left |= reinterpret(r)
        _add_integers(total, a.size, shift, unit, sums)


def _make_updates(U: Any, F: Any, Signed: Any, width: int, mantissa: int, limit: float) -> tuple[Any, Any, Any]:
    """Build the loops for a carrier; updates of magnitude `limit` or more count as not finite."""
    ABS = U((1 << (width - 1)) - 1)
    INF = U((1 << (width - 1)) - (1 << mantissa))
    LIMIT = U(np.array(limit, F).view(U))
    SMALLEST_NORMAL = U(1 << mantissa)
    LIFT, LIFTED = F(2.0**64), Signed(64)
    SHIFT = Signed(mantissa)

    @compiled()
    def add_to_odd(w, u, out):
        """Add w and u, rounded to odd (Boldo and Melquiond 2008): one more rounding, two bits shorter, is exact."""
        for i in range(w.size):
            s = F(w[i] + u[i])
            t = F(s - w[i])
            error = F(F(w[i] - F(s - t)) + F(u[i] - t))  # Knuth's TwoSum
            bits = Signed(reinterpret(s))
            overflow = U(U(bits) & ABS) == INF  # the error is NaN then
            inward = (Signed(Signed(reinterpret(error)) ^ bits) < Signed(0)) | overflow
            inexact_and_even = (error != F(0)) & (Signed(bits & Signed(1)) == Signed(0))
            step = (Signed(-1) if inward else Signed(1)) if inexact_and_even else Signed(0)
            out[i] = reinterpret(U(bits + step))

    @compiled()
    def count(w, u, rounded, cells, sums):
        """Add to `cells` (LANES a key, the key 4 * row + column) and to the sums of u^2, d^2 and d*u.

        The rows are floor(log2|u/w|) + RATIO_OFFSET, but for ZERO_UPDATE, NONFINITE and ZERO_WEIGHT.
        """
        keys = np.empty(TILE, np.uint32)
        updates, effective, rest = np.empty(TILE), np.empty(TILE), np.empty(TILE)
        for start in range(0, w.size, TILE):
            ws, us, rs = w[start : start + TILE], u[start : start + TILE], rounded[start : start + TILE]
            n = ws.size
            for j in range(n):
                a, b = U(reinterpret(ws[j]) & ABS), U(reinterpret(us[j]) & ABS)
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
                finite = U(reinterpret(rs[j]) & ABS) < INF
                column = (Signed(LOST) if rs[j] == ws[j] else Signed(0)) if finite else Signed(OVERFLOWED)
                keys[j] = U32(Signed(Signed(Signed(row << Signed(2)) + column) * Signed(LANES)))
                counted = usable & finite
                updates[j] = np.float64(us[j]) if counted else 0.0
                effective[j] = np.float64(rs[j]) - np.float64(ws[j]) if counted else 0.0
            add_keys(keys[:n], cells)
            # |u| < 2^(raw - 1022) and so on: the unit is 2^-51 of the bound of the product
            raw, changed = _exponent_of_largest(updates[:n]), _exponent_of_largest(effective[:n])
            if raw >= 0:
                _add_products(updates[:n], updates[:n], raw + raw - 1021, rest[:n], sums[0])
            if changed >= 0:
                _add_products(effective[:n], effective[:n], changed + changed - 1021, rest[:n], sums[1])
                _add_products(effective[:n], updates[:n], changed + raw - 1021, rest[:n], sums[2])

    @compiled()
    def tell(w, u, rounded, outcomes):
        """Write what became of each update: LOST, MOVED (or overflowed), or NO_UPDATE where `count` finds none."""
        for j in range(w.size):
            a, b = U(reinterpret(w[j]) & ABS), U(reinterpret(u[j]) & ABS)
            counts = (a < INF) & (b < LIMIT) & (b != U(0))
            outcomes[j] = (np.uint8(LOST) if rounded[j] == w[j] else np.uint8(MOVED)) if counts else np.uint8(NO_UPDATE)

    return add_to_odd, count, tell


_add_to_odd_32, _count_updates_32, _tell_32 = _make_updates(U32, np.float32, np.int32, 32, 23, np.inf)
_add_to_odd_64, _count_updates_64, _tell_64 = _make_updates(U64, np.float64, np.int64, 64, 52, LARGEST_UPDATE)

ROUNDINGS_32 = (mask_even_plain, add_even_plain_32, add_even_32, directed_32)
ROUNDINGS_64 = (add_even_plain_64, add_even_64, directed_64, seeded_plain_64, seeded_64)


@compiled()
def _round_32(kind, x, out, c, stream):
    if kind == 0:
        mask_even_plain(x, out, c)
    elif kind == 1:
        add_even_plain_32(x, out, c)
    elif kind == 2:
        add_even_32(x, out, c)
    else:
        directed_32(x, out, c)


@compiled()
def _round_64(kind, x, out, c, stream):
    if kind == 0:
        add_even_plain_64(x, out, c)
    elif kind == 1:
        add_even_64(x, out, c)
    elif kind == 2:
        directed_64(x, out, c)
    elif kind == 3:
        seeded_plain_64(x, out, c, stream)
    else:
        seeded_64(x, out, c, stream)


@compiled()
def _unhide(x, rounded):
    """Put a NaN wherever x is infinite or NaN."""
    for j in range(x.size):
        rounded[j] = rounded[j] if np.isfinite(x[j]) else np.nan


# twice the same: what a factory closes over, or what takes loops as arguments, is compiled in every process anew
@compiled()
def _step_32(w, u, storing, rounding, stream, hides, stored, total, rounded):
    _round_32(storing[0], w, stored, storing[1], stream)
    if hides:
        _unhide(w, stored)
    _add_to_odd_32(stored, u, total)
    _round_32(rounding[0], total, rounded, rounding[1], stream)
    stream[1] += U64(w.size)


@compiled()
def updates_32(w, u, storing, rounding, stream, hides, cells, sums):
    """Store float32 weights, add updates, round, and count, tile by tile.

    The roundings are pairs: an index into ROUNDINGS_32, and its constants. `stream` is a seed and the index of the
    first element, which moves on; `hides` says that storing makes something finite of an infinity or a NaN.
    """
    room = np.empty((3, UPDATE_TILE), np.float32)
    for start in range(0, w.size, UPDATE_TILE):
        ws, us = w[start : start + UPDATE_TILE], u[start : start + UPDATE_TILE]
        stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
        _step_32(ws, us, storing, rounding, stream, hides, stored, total, rounded)
        _count_updates_32(stored, us, rounded, cells, sums)


@compiled()
def outcomes_32(w, u, storing, rounding, stream, hides, outcomes):
    """Store, add and round as `updates_32`, and write what became of each update."""
    room = np.empty((3, UPDATE_TILE), np.float32)
    for start in range(0, w.size, UPDATE_TILE):
        ws, us = w[start : start + UPDATE_TILE], u[start : start + UPDATE_TILE]
        stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
        _step_32(ws, us, storing, rounding, stream, hides, stored, total, rounded)
        _tell_32(stored, us, rounded, outcomes[start : start + UPDATE_TILE])


@compiled()
def _step_64(w, u, storing, rounding, stream, hides, stored, total, rounded):
    _round_64(storing[0], w, stored, storing[1], stream)
    if hides:
        _unhide(w, stored)
    _add_to_odd_64(stored, u, total)
    _round_64(rounding[0], total, rounded, rounding[1], stream)
    stream[1] += U64(w.size)


@compiled()
def updates_64(w, u, storing, rounding, stream, hides, cells, sums):
    """The same for float64, with ROUNDINGS_64."""
    room = np.empty((3, UPDATE_TILE), np.float64)
    for start in range(0, w.size, UPDATE_TILE):
        ws, us = w[start : start + UPDATE_TILE], u[start : start + UPDATE_TILE]
        stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
        _step_64(ws, us, storing, rounding, stream, hides, stored, total, rounded)
        _count_updates_64(stored, us, rounded, cells, sums)


@compiled()
def outcomes_64(w, u, storing, rounding, stream, hides, outcomes):
    """Write outcomes for float64, with ROUNDINGS_64."""
    room = np.empty((3, UPDATE_TILE), np.float64)
    for start in range(0, w.size, UPDATE_TILE):
        ws, us = w[start : start + UPDATE_TILE], u[start : start + UPDATE_TILE]
        stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
        _step_64(ws, us, storing, rounding, stream, hides, stored, total, rounded)
        _tell_64(stored, us, rounded, outcomes[start : start + UPDATE_TILE])


UPDATES = updates_32, updates_64
OUTCOMES = outcomes_32, outcomes_64
