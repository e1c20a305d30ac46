"""Processes and clusters for the long work, which end in silence when this process does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from concurrent.futures import Executor


def _begin(begin: Callable[[Any], None] | None, argument: Any) -> None:
    from multiprocessing import parent_process

    from precision_lab.support.processes import end_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    end_with_parent(parent.join)
    if begin is not None:
        begin(argument)


_ANSWER = 10  # seconds that a scheduler has to answer, and a process to end


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Start processes: signals are answered afterwards, so that none is started and not known.

    Ctrl-C reaches all processes of the terminal, and is this one's to answer: the others are born with it blocked.
    """
    came: list[int] = []
    numbers = signal.SIGINT, signal.SIGTERM
    answers = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    mask = None
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # it unblocks signals where it is started
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # one that was blocked is noted here
        for number, answer in zip(numbers, answers, strict=True):
            signal.signal(number, answer)
        for first in came[:1]:
            signal.raise_signal(first)


@contextmanager
def workers(
    count: int | None, begin: Callable[[Any], None] | None = None, argument: Any = None
) -> Iterator[Executor | None]:
    """Give an executor of so many processes, None for one; they end at once on Ctrl-C and when this process ends.

    Each process calls `begin` with the argument first.
    """
    from precision_lab.support.processes import number_of_processes

    count = number_of_processes(count)
    if count == 1:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    executor = ProcessPoolExecutor(count, get_context("spawn"), _begin, (begin, argument))
    try:
        with _uninterrupted():
            for _ in range(count):
                executor.submit(int)
        yield executor
        executor.shutdown()  # waits for those that still begin, where there was nothing to do for them
    except BaseException:
        # the executor's thread may stumble over futures that are cancelled while its processes end, and would say so
        hook, threading.excepthook = threading.excepthook, lambda _: None
        processes = list((executor._processes or {}).values())
        for process in processes:
            process.kill()  # they hold nothing that is to be cleaned up
        for process in processes:  # one that still begins would miss the semaphores of the executor, and say so
            process.join(_ANSWER)
        executor.shutdown(cancel_futures=True)
        threading.excepthook = hook
        raise


workers_option = click.option("--workers", "processes", type=int, metavar="N", help="Processes; default: one.")
dask_option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Run on a Dask cluster, tcp://host:8786, or on one of this machine, 'local'; needs the extra distributed. "
    "Files must be on a file system that all workers share.",
)


@contextmanager
def executor(processes: int | None, dask: str | None, *, default: int | None = 1) -> Iterator[Executor | None]:
    """Give the executor of ``--workers`` and ``--dask``: so many processes here, or a cluster; None for one process.

    `default` is the number of processes where neither is given, None one for each core.
    """
    if dask is None:
        with workers(default if processes is None else processes) as executor:
            yield executor
    elif dask == "local":
        with _quiet_dask(), _local_cluster(processes) as address, _client(address) as executor:
            yield executor
    else:
        if processes is not None:
            raise click.UsageError("--workers is for this machine; a cluster has its own number (--dask ADDRESS)")
        with _quiet_dask(), _client(dask) as executor:
            yield executor


@contextmanager
def _quiet_dask() -> Iterator[None]:
    """Keep its log off the terminal: what goes wrong is raised, and said once."""
    import logging

    try:
        import distributed  # noqa: F401
    except ImportError:
        raise ValueError("--dask needs Dask: pip install 'precision-lab[distributed]'") from None
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed.")]:
        logging.getLogger(name).setLevel(logging.NOTSET)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _local_cluster(count: int | None) -> Iterator[str]:
    """Start worker processes of one thread each, and end them."""
    import logging

    from distributed import LocalCluster

    from precision_lab.support.processes import number_of_processes

    cluster = None
    try:
        with _uninterrupted():
            cluster = LocalCluster(
                n_workers=number_of_processes(count),
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        yield cluster.scheduler_address
    finally:
        if cluster is not None:
            cluster.close()


@contextmanager
def _client(address: str) -> Iterator[Executor]:
    """Connect to a scheduler, or say in one line that it does not answer."""
    from distributed import Client
    from distributed.comm.addressing import parse_address
    from distributed.comm.registry import get_backend

    try:
        get_backend(parse_address(address)[0])  # a client would stumble over a bad one once more when it is closed
        client = Client(address, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"--dask {address}: no scheduler answers ({reason}); give its address as tcp://host:8786, or 'local'"
        ) from error
    try:
        yield client.get_executor()
    finally:
        client.close(timeout=_ANSWER)
