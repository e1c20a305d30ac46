"""Weights by the gaps around them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from precision_lab.numerics.kernels.bits import MAGNITUDE, TILE, U32, named, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.histogram import LANES, add_keys

WEIGHT_CLASSES = 4  # power of two (or zero), even, odd, and the largest value of a format that saturates
WEIGHT_ROWS = 256
WEIGHT_COLUMNS = WEIGHT_CLASSES * 2
CELLS = WEIGHT_ROWS * WEIGHT_COLUMNS * LANES


class Spacing(NamedTuple):
    """The constants of `count_weights`."""

    smallest_normal: float
    last_bit: int
    largest: float  # of a format that saturates, else infinity


@compiled()
def count_weights(w, cells, touched, c):
    """Add float32 values of a format to `cells` (LANES a key): 8 * row + 2 * class + (whether negative).

    `touched` holds the first and the last row that anything may have been added to.

    The row is the exponent field, for subnormals and zero one less than the smallest normal's; infinity and NaN are in
    the last row.
    """
    k = named(Spacing, c)
    keys = np.empty(TILE, np.uint32)
    first, last = U32(touched[0]), U32(touched[1])
    for start in range(0, w.size, TILE):
        tile = w[start : start + TILE]
        n = tile.size
        for j in range(n):
            b = reinterpret(tile[j])
            a = U32(b & MAGNITUDE)
            v = reinterpret(a)
            small = v < k.smallest_normal
            # beside the smallest normal, subnormals have their last bit where normals have theirs
            bits = reinterpret(np.float32(v + k.smallest_normal)) if small else a
            row = U32(U32(bits >> U32(23)) - (U32(1) if small else U32(0)))
            first, last = min(first, row), max(last, row)
            kind = U32(2) if U32(bits & k.last_bit) != U32(0) else U32(1)
            kind = U32(0) if U32(bits & U32(0x7FFFFF)) == U32(0) else kind
            kind = U32(3) if v == k.largest else kind
            key = U32(U32(row << U32(3)) | U32(U32(kind << U32(1)) | U32(b >> U32(31))))
            keys[j] = U32(key * U32(LANES))
        add_keys(keys[:n], cells)
    touched[0], touched[1] = first, last
