"""Counting: zeros for compiled loops to count in, what they counted, and shares and sums of it.

Zeros are kept, because making a megabyte of them costs more than counting a small array.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.environment import load_kernels

MOST = 1 << 31  # elements that are counted in 32-bit cells
BLOCK = 1 << 15  # elements that stay in the second-level cache with all that is made from them

_kept = threading.local()


def take_zeros(name: str, shape: int | tuple[int, ...], dtype: type) -> NDArray[Any]:
    """Return zeros, those that this thread gave back under the name if there are any.

    Nobody else has them meanwhile; after an error nobody gets them again.
    """
    array: NDArray[Any] | None = vars(_kept).pop(name, None)
    return np.zeros(shape, dtype) if array is None else array


def give_back(name: str, zeros: NDArray[Any]) -> None:
    """Keep an array of a name's shape and dtype, all zeros again, for the next call."""
    setattr(_kept, name, zeros)


def taken(name: str, cells: NDArray[np.uint32], size: int) -> dict[int, int]:
    """Return how often each key was counted, LANES cells a key, in their order, and give the cells back as zeros."""
    kernels = load_kernels().histogram

    lanes = kernels.LANES if size >= kernels.LANES else 1  # fewer elements are all counted in the first one
    looked = cells if lanes > 1 else cells[:: kernels.LANES]
    touched = np.flatnonzero(looked != 0)
    counts: dict[int, int] = {}
    for key, n in zip((touched // lanes).tolist(), looked[touched].tolist(), strict=True):
        counts[key] = counts.get(key, 0) + n
    looked[touched] = 0
    give_back(name, cells)
    return counts


def share(part: int, whole: int) -> float:
    """Return part / whole; 0 of nothing."""
    return part / whole if whole else 0.0


def merged(counts: Iterable[dict[Any, int]]) -> dict[Any, int]:
    """Return the sums by key, ascending, of those that are not 0."""
    total: Counter[Any] = Counter()
    for some in counts:
        if some:
            total.update(some)
    return {key: total[key] for key in sorted(total) if total[key] > 0}
