"""Counting: zeros for compiled loops to count in, on several threads, and shares and sums of what they counted.

Zeros are kept, because making a megabyte of them costs more than counting a small array.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.modes import RoundingMode
from precision_lab.support.threads import LEAST, SLICE, in_threads, thread_count

Result = TypeVar("Result")

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


def counted(count: Callable[[Iterator[slice]], Result], size: int) -> list[Result]:
    """Return what `count` returns for the parts of an array that it is given: one result a thread.

    No call is given more than MOST elements.
    """
    if size < LEAST:
        return [count(iter((slice(0, size),)))]
    results: list[Result] = []
    for first in range(0, size, MOST):
        last = min(first + MOST, size)
        step = SLICE if thread_count() > 1 else last - first
        results += in_threads(count, [slice(i, min(i + step, last)) for i in range(first, last, step)])
    return results


def share(part: int, whole: int) -> float:
    """Return part / whole; 0 of nothing."""
    return part / whole if whole else 0.0


def quotient(a: int, b: int) -> float:
    """Return a/b rounded once, which is infinite where it is too large for float64."""
    try:
        return a / b
    except OverflowError:
        return math.inf if (a < 0) == (b < 0) else -math.inf


def integers(words: NDArray[np.uint32]) -> list[int]:
    """Return what the rows stand for that `product_sums.take_sums` returned."""
    return [int.from_bytes(row.astype("<u4", copy=False).tobytes(), "little", signed=True) for row in words]


class _Report(Protocol):
    """What is counted in one format and mode."""

    @property
    def format(self) -> FloatFormat:
        """The format."""

    @property
    def mode(self) -> RoundingMode:
        """How is rounded to it."""


Report = TypeVar("Report", bound=_Report)


def of_one_kind(reports: Iterable[Report], fmt: FloatFormat, mode: RoundingMode) -> list[Report]:
    """Return reports that are to be added up; raise a ValueError if one is on another format or mode."""
    listed = list(reports)
    for report in listed:
        if (report.format, report.mode) != (fmt, mode):
            raise ValueError(
                f"cannot add a report on {report.format} ({report.mode}) to one on {fmt} ({mode}); "
                "reports of one format and mode add up"
            )
    return listed


def merged(counts: Iterable[dict[Any, int]]) -> dict[Any, int]:
    """Return the sums by key, ascending, of those that are not 0."""
    total: Counter[Any] = Counter()
    for some in counts:
        if some:
            total.update(some)
    return {key: total[key] for key in sorted(total) if total[key] > 0}
