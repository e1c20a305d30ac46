"""Count magnitudes by binade and class, by a compiled loop or by NumPy: the counts are the same.

NumPy takes fifty times as long, but the compiled loops take a third of a second before the first element is counted.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.environment import kernels_are_loaded, load_kernels
from precision_lab.numerics.rounding import as_carrier

Array = NDArray[Any]

CLASSES = 27
SLICE = 1 << 18
"""Elements that are converted and counted at a time: they stay in the second-level cache."""

_CALL = 1000  # elements that NumPy counts in the time that it takes to call it
_left = 4_000_000  # elements that NumPy counts before the compiled loops are loaded, which takes about as long


class Counts(NamedTuple):
    """What `ExponentHistogram` holds of a tensor."""

    zero: int
    nonfinite: int
    min_nonzero: float | None
    max_abs: float | None
    first_exponent: int
    table: NDArray[np.int64]
    nonzero: int


def slices(array: Array) -> Iterator[Array]:
    """Yield the elements of an array in parts of at most SLICE, in any order; of an empty array itself."""
    if array.size <= SLICE:
        yield array
        return
    flat = array if array.ndim == 1 else array.ravel(order="K")  # a copy only where the elements have no one stride
    for start in range(0, flat.size, SLICE):
        yield flat[start : start + SLICE]


def count_array(array: Array) -> Counts:
    """Count an array of at most 2^31 elements at once.

    Raises
    ------
    ValueError, FloatingPointError
        As `as_carrier`.

    """
    carrier = _flat(as_carrier(array, to_odd=True))
    if plainly(carrier.size):
        return count_plainly(carrier)
    tally = _Tally.taken(carrier.dtype)
    tally.add(carrier)
    return tally.end()


def count_arrays(arrays: Iterable[Array]) -> list[Counts]:
    """Count arrays one after the other, each of which may be overwritten by the next; the counts are to be added up.

    Errors are those of `count_array`.
    """
    counts: list[Counts] = []
    tallies: dict[np.dtype[Any], _Tally] = {}
    for array in arrays:
        for part in slices(array):
            carrier = _flat(as_carrier(part, to_odd=True))
            if plainly(carrier.size):
                counts.append(count_plainly(carrier))
                continue
            if carrier.dtype not in tallies:
                tallies[carrier.dtype] = _Tally.taken(carrier.dtype)
            tallies[carrier.dtype].add(carrier)
    return counts + [tally.end() for tally in tallies.values()]


def _flat(array: Array) -> Array:
    return array if array.ndim == 1 and array.flags.c_contiguous else np.ascontiguousarray(array).reshape(-1)


def compile_for(elements: int) -> None:
    """Load the compiled loops now where so many elements follow that it pays."""
    global _left
    if elements > _left:
        _left = 0
        load_kernels()  # before threads do, of which one would meet what the other has half imported


def plainly(elements: int, call: int = _CALL) -> bool:
    """Whether NumPy is to count an array: the compiled loops are not loaded, and what there was to count was little.

    Where it takes longer than a histogram does, `elements` and `call` are as many as that counts in the time.
    """
    global _left
    if kernels_are_loaded():
        return False
    _left -= elements + call
    return _left >= 0


class _Tally:
    """Counts arrays of a carrier in cells that its thread keeps: making them costs more than counting a small array."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        loops = load_kernels().histogram
        self._dtype = dtype
        self._count, bias = (loops.count_32, 127) if dtype == np.float32 else (loops.count_64, 1023)
        self._origin = bias + loops.ROW_OFFSET
        rows = self._origin + bias + 2
        self._cells = np.zeros(rows * loops.COLUMNS * loops.LANES, np.uint32)
        self._table = np.zeros((rows, loops.COLUMNS), np.int64)
        self._keys = self._table.reshape(-1)  # the same counts, by key
        self._facts = _NO_FACTS.copy()
        self._elements = 0

    @classmethod
    def taken(cls, dtype: np.dtype[Any]) -> _Tally:
        """Return the one that this thread keeps; until it ends, and after an error, nobody else gets it."""
        tally: _Tally | None = vars(_kept).pop(dtype.char, None)
        return tally or cls(dtype)

    def add(self, array: Array) -> None:
        """Count an array of at most 2^31 elements."""
        self._elements += array.size
        self._count(array, self._cells, self._keys, self._facts)

    def end(self) -> Counts:
        """Return the counts, and be kept for others."""
        zero, nonfinite, least, largest = self._facts.tolist()
        self._facts = _NO_FACTS.copy()
        elements, self._elements = self._elements, 0
        if largest:
            first, last = math.frexp(least)[1] - 1, math.frexp(largest)[1] - 1
            touched = self._table[first + self._origin : last + self._origin + 1]
            table = _kept_table(touched[:, :CLASSES])
            nonzero = elements - int(zero) - int(nonfinite)
            counts = Counts(int(zero), int(nonfinite), least, largest, first, table, nonzero)
            touched.fill(0)
        else:
            counts = Counts(int(zero), int(nonfinite), None, 0.0 if zero else None, 0, _NO_TABLE, 0)
        setattr(_kept, self._dtype.char, self)
        return counts


_kept = threading.local()
_NO_FACTS = np.array([0.0, 0.0, math.inf, 0.0])
_NO_TABLE = np.zeros((0, CLASSES), np.int64)


def _kept_table(table: Array) -> Array:
    return table.copy() if len(table) > 1 else _row(table.tobytes())


@lru_cache(maxsize=1 << 12)
def _row(counts: bytes) -> Array:
    """Return a table of one binade that tensors with the same counts share: of many small ones, nearly all."""
    return np.frombuffer(counts, np.int64).reshape(1, CLASSES)


def count_plainly(x: Array) -> Counts:
    """Count a one-dimensional array of float32 or float64 with NumPy alone."""
    with np.errstate(all="ignore"):  # a signalling NaN makes processors say "invalid"
        magnitudes = np.abs(x).astype(np.float64)
        finite = magnitudes < math.inf
        counted = magnitudes[finite & (magnitudes > 0)]
    nonfinite = x.size - int(np.count_nonzero(finite))
    zero = x.size - nonfinite - counted.size
    if not counted.size:
        return Counts(zero, nonfinite, None, 0.0 if zero else None, 0, _NO_TABLE, 0)
    significands, exponents = np.frexp(counted)
    first = int(exponents.min())
    fractions = significands * 2 - 1
    # with k leading ones 1 - fraction lies in (2^-(k + 1), 2^-k], and less half its last bit in [2^-(k + 1), 2^-k)
    ones = np.minimum(-np.frexp((1 - fractions) - 2.0**-53)[1], 24)
    classes = ones + 1 + (fractions > 13 / 16) - (fractions == 0)
    keys = (exponents - first) * CLASSES + classes
    table = np.bincount(keys, minlength=(int(exponents.max()) - first + 1) * CLASSES)
    least, largest = float(counted.min()), float(counted.max())
    return Counts(zero, nonfinite, least, largest, first - 1, _kept_table(table.reshape(-1, CLASSES)), counted.size)
