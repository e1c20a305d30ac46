"""Processes for the long work, which Ctrl-C ends in silence."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor


@contextmanager
def workers(count: int | None) -> Iterator[Executor | None]:
    """Give an executor of so many processes, None for one; on Ctrl-C they are told to stop at once."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    count = (os.cpu_count() or 1) if count is None else count
    if count < 1:
        raise ValueError(f"workers must be an integer of at least 1, got {count}")
    if count == 1:
        yield None
        return
    # Ctrl-C reaches all processes of the terminal, and is this one's to answer: the others are started while it is
    # ignored, which they inherit
    executor = ProcessPoolExecutor(count, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in range(count):
            executor.submit(int)
    finally:
        signal.signal(signal.SIGINT, answer)
    try:
        yield executor
    except BaseException:
        # the executor's thread may stumble over futures that are cancelled while its processes end, and would say so
        hook, threading.excepthook = threading.excepthook, lambda _: None
        for process in list((executor._processes or {}).values()):
            process.terminate()
        executor.shutdown(cancel_futures=True)
        threading.excepthook = hook
        raise
    executor.shutdown()
