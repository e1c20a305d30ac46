"""Threads: large arrays are cut into slices, which the cores take in turns.

The compiled loops let go of Python's lock, so threads suffice. What they compute does not depend on how many there
are: a slice of an array is rounded as it is within the whole, and counts add up exactly in any order. Below
`LEAST` elements handing work over would take longer than doing it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from precision_lab.support.arguments import check_integer
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.processes import usable_cores

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Task = TypeVar("Task")
Result = TypeVar("Result")

LEAST = 10**6
"""Elements from which on an array is cut into slices."""
SLICE = 1 << 18
"""Elements of a slice: enough to hide what it costs, and few enough to answer Ctrl-C at once."""
_MOST = 1024

_chosen: int | None = None
_here = threading.local()  # .alone: this thread is one of many that do the same


class threads:  # noqa: N801  # a setting, called like a function
    """Set how many threads this process uses for large arrays, until it is set again, or within a ``with`` block.

    Results do not depend on it. The default is the number of cores that the process may use, by its affinity and the
    quotas of its control groups; and 1 in the tasks of an executor, in processes that were forked, and in recorders.

    Parameters
    ----------
    count : int or None
        From 1 to 1024; None for the default.

    Raises
    ------
    ValueError
        Another count.

    Examples
    --------
    >>> with threads(1):
    ...     thread_count()
    1

    """

    def __init__(self, count: int | None) -> None:
        global _chosen
        if count is not None:
            check_integer("count", count, 1, _MOST)
        self._before, _chosen = _chosen, count

    def __enter__(self) -> None:
        """Leave it as it was set."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Set what was set before."""
        global _chosen
        _chosen = self._before


def thread_count() -> int:
    """Return how many threads a large array is shared among by this thread."""
    if getattr(_here, "alone", False):
        return 1
    return _chosen or _default()


@cache
def _default() -> int:
    of_multiprocessing = sys.modules.get("multiprocessing.process")
    if of_multiprocessing is not None and of_multiprocessing.parent_process() is not None:
        return 1
    return usable_cores()


@contextmanager
def alone() -> Iterator[None]:
    """Let this thread work alone: it is one of many already, or must not disturb what others do."""
    before, _here.alone = getattr(_here, "alone", False), True
    try:
        yield
    finally:
        _here.alone = before


@cache
def _pool() -> ThreadPoolExecutor:
    """Return the threads, which are begun when they are needed and wait for more work then."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(_MOST, "precision-lab")


def _forked() -> None:
    """Forget threads that only the parent has, and begin none: the others that were forked would do the same."""
    global _chosen
    _chosen = 1
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def in_threads(work: Callable[[Iterator[Task]], Result], tasks: Sequence[Task]) -> list[Result]:
    """Let `work` take the tasks from an iterator that several threads share; return what it returned in each of them.

    Whatever is raised, here or in another thread, is raised here once all of them have ended: the others after the task
    that they are at.

    Raises
    ------
    FloatingPointError
        A thread flushes subnormal numbers to zero.

    """
    count = min(thread_count(), len(tasks))
    if count <= 1:
        return [work(iter(tasks))]
    from concurrent.futures import wait

    left = iter(tasks)  # of a list, a tuple or a range: each of them hands an item to one thread only

    def begin() -> Result:
        require_gradual_underflow()
        with alone():
            return work(left)

    others: list[Future[Result]] = []
    try:
        with suppress(RuntimeError):  # no more threads can be begun: those that there are suffice
            for _ in range(count - 1):
                others.append(_pool().submit(begin))
        results = [begin()]
    finally:
        for _ in left:  # where something was raised: nobody begins another
            pass
        for other in others:
            other.cancel()  # it has not begun, and there is nothing left to do
        wait(others)
    return results + [other.result() for other in others if not other.cancelled()]


def in_slices(run: Callable[[int, int], Any], size: int) -> None:
    """Call ``run(start, stop)`` for slices that make up 0..size, on several threads where that is worth it."""
    if size < LEAST or thread_count() == 1:
        run(0, size)
        return

    def work(starts: Iterator[int]) -> None:
        for start in starts:
            run(start, min(start + SLICE, size))

    in_threads(work, range(0, size, SLICE))
