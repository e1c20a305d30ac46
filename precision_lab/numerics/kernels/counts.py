"""What loops have counted in cells, LANES a key, where the keys make up rows and columns."""

from __future__ import annotations

import numpy as np

from precision_lab.numerics.kernels.bits import U32
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.histogram import LANES


@compiled()
def _take_row(cells, row, line):
    columns, sum_of_all = line.size - 2, np.int64(0)
    for column in range(columns):
        start, total = (row * columns + column) * LANES, np.int64(0)
        for lane in range(LANES):
            total += np.int64(cells[start + lane])
            cells[start + lane] = U32(0)
        line[2 + column] = total
        sum_of_all += total
    line[0], line[1] = row, sum_of_all
    return sum_of_all


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
    first, stop = max(np.int64(special), touched[0]), touched[1] + np.int64(1)
    found = np.empty((special + max(stop - first, np.int64(0)), 2 + columns), np.int64)
    for row in range(special):
        _take_row(cells, row, found[row])
    lines = special
    for row in range(first, stop):
        if _take_row(cells, row, found[lines]):
            lines += 1
    return found[:lines]
