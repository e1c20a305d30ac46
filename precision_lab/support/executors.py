"""Run independent tasks on an executor (this process, other processes, a cluster), in order of completion.

What is long here is always the same: many independent pieces (slices of a file, ranges of bit patterns, runs of a
sweep) whose results are exact and add up in any order. So a piece may be done anywhere, and again where a worker was
lost; what must not happen is that it counts twice. Each task has a number, and its result is handed out once, with that
number.

A `concurrent.futures.ProcessPoolExecutor` cannot go on without a process that died, and says so in one line here.
Dask's `Client.get_executor()` runs a lost worker's tasks again on others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed
from functools import partial
from typing import TypeVar

from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.threads import alone

Task = TypeVar("Task")
Result = TypeVar("Result")


def _alone(function: Callable[[Task], Result], task: Task) -> Result:
    """Do a task in the thread that it was given to: the other cores have theirs."""
    with alone():
        return function(task)


class WorkersLostError(ValueError):
    """An executor that cannot go on, in one line: what happened, and the cure."""


def completed(
    function: Callable[[Task], Result], tasks: Sequence[Task], executor: Executor | None
) -> Iterator[tuple[int, Result]]:
    """Yield the number and the result of every task once, as they finish.

    Parameters
    ----------
    function : callable
        At the top of a module, so that it can be sent; it depends on its task alone and changes nothing.
    tasks : sequence
        What it is called with; plain data.
    executor : concurrent.futures.Executor, optional
        Default: one after the other, here.

    Raises
    ------
    WorkersLostError
        Workers died or the cluster went away.
    FloatingPointError
        This thread, or a worker's, flushes subnormal numbers to zero.

    Whatever a task raises is raised here, after the others have been cancelled.

    """
    require_gradual_underflow()  # of this thread, which puts the results together; tasks look at theirs
    if executor is None:
        yield from ((number, function(task)) for number, task in enumerate(tasks))
        return
    numbers: dict[Future[Result], int] = {}
    try:
        for number, task in enumerate(tasks):
            numbers[executor.submit(partial(_alone, function), task)] = number
        for future in as_completed(list(numbers)):
            require_gradual_underflow()  # whoever takes the results may have switched it on
            # let go of it: what is done need not be kept, here or by a cluster
            yield numbers.pop(future), future.result()
    except BrokenExecutor as error:
        raise WorkersLostError(
            "a worker process died before its task was done (killed, or out of memory); run it again with fewer"
        ) from error
    except CancelledError as error:
        raise WorkersLostError("the workers were stopped before the tasks were done; run it again") from error
    except ImportError as error:
        raise WorkersLostError(
            f"a worker cannot import {error.name or error}; install the same precision-lab wherever workers run"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith("distributed"):
            raise
        what = " ".join(str(error).split())[:200]
        raise WorkersLostError(
            f"the cluster gave a task up ({type(error).__name__}: {what}); look at the workers' memory and logs"
        ) from error
    finally:
        for future in numbers:
            future.cancel()
