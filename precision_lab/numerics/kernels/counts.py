"""What loops have counted in cells, LANES a key, where the keys make up rows and columns."""

from __future__ import annotations

import numpy as np

from precision_lab.numerics.kernels.bits import U32
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.histogram import LANES


@compiled()
def take_rows(cells, columns, special, touched):
    """Return counts, and make zeros of the cells.

    Parameters
    ----------
    cells : array of uint32
        LANES a key; the keys of a row are neighbours.
    columns : int
        Keys of a row.
    special : int
        Rows at the beginning that are returned whatever was counted.
    touched : array of int64
        The first and the last of the other rows that may have counts.

    Returns
    -------
    array of int64, (rows, 2 + columns)
        The special rows, and the others that have counts, in their order: number, total, counts.

    """
    found = np.empty((special + max(touched[1] + np.int64(1) - touched[0], np.int64(0)), 2 + columns), np.int64)
    lines, row = np.int64(0), np.int64(0) if special else touched[0]
    while row <= touched[1] or row < special:
        line = found[lines]
        line[0], line[1] = row, np.int64(0)
        for column in range(columns):
            start, total = (row * columns + column) * LANES, np.int64(0)
            for lane in range(LANES):
                total += np.int64(cells[start + lane])
                cells[start + lane] = U32(0)
            line[2 + column] = total
            line[1] += total
        if line[1] or row < special:
            lines += 1
        row = row + 1 if row + 1 < special else max(row + 1, touched[0])
    return found[:lines]
