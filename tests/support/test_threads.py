"""Threads share the work: every slice once, what is raised is raised, and neither a fork nor a worker begins any."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from precision_lab.support import threads as module
from precision_lab.support.executors import completed
from precision_lab.support.processes import usable_cores
from precision_lab.support.threads import LEAST, alone, in_slices, in_threads, thread_count, threads


def slices(size: int) -> list[tuple[int, int, int]]:
    """Return start, stop and thread of each slice."""
    seen: list[tuple[int, int, int]] = []

    def run(start: int, stop: int) -> None:
        seen.append((start, stop, threading.get_ident()))
        time.sleep(0.002)  # as a loop does, it lets others run

    in_slices(run, size)
    return sorted(seen)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("size", [0, 1, LEAST - 1, LEAST, LEAST + 1, 12_345_678])
def test_slices_make_up_the_whole(count: int, size: int) -> None:
    with threads(count):
        parts = slices(size)
    assert [start for start, _, _ in parts] == [0, *(stop for _, stop, _ in parts[:-1])]
    assert parts[-1][1] == size
    assert len({thread for *_, thread in parts}) == (count if size > 10 * LEAST else 1) or LEAST <= size <= 10 * LEAST


def test_small_arrays_stay_with_the_caller() -> None:
    with threads(7):
        assert slices(LEAST - 1) == [(0, LEAST - 1, threading.get_ident())]


def test_each_task_is_taken_once_and_each_result_returned() -> None:
    def work(tasks: Iterator[int]) -> list[int]:
        return list(tasks)

    with threads(7):
        results = in_threads(work, range(10_000))
    assert sorted(task for some in results for task in some) == list(range(10_000))
    assert in_threads(work, []) == [[]]


@pytest.mark.parametrize("by_caller", [False, True])
def test_what_is_raised_anywhere_is_raised_when_all_have_ended(by_caller: bool) -> None:
    caller, running = threading.get_ident(), []

    def work(tasks: Iterator[int]) -> None:
        for task in tasks:
            running.append(task)
            time.sleep(0.001)
            running.remove(task)
            if (threading.get_ident() == caller) == by_caller:
                raise OSError("no such thing")

    with threads(3), pytest.raises(OSError, match="no such thing"):
        in_threads(work, range(1000))
    assert not running


def test_a_block_ends_and_counts_are_checked() -> None:
    with threads(3):
        assert thread_count() == 3
        with threads(None):
            assert thread_count() == usable_cores()
        with alone():
            assert thread_count() == 1
        assert thread_count() == 3
    assert thread_count() == usable_cores()
    threads(2)
    assert thread_count() == 2
    threads(None)
    for wrong in (0, -1, 1025, 1.5, True, "2"):
        with pytest.raises(ValueError, match=r"count must be an integer in 1\.\.1024"):
            threads(wrong)  # type: ignore[arg-type]
    assert thread_count() == usable_cores()


def count_of(_: object) -> int:
    return thread_count()


def test_nobody_shares_within_a_task_of_an_executor() -> None:
    with threads(3), ThreadPoolExecutor(1) as executor:
        assert list(completed(count_of, [0], executor)) == [(0, 1)]
        assert list(completed(count_of, [0], None)) == [(0, 3)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        assert executor.submit(count_of, 0).result() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_begins_alone_and_may_be_told_otherwise() -> None:
    code = """
import os, sys
from precision_lab.support.threads import in_slices, thread_count, threads
threads(3)
in_slices(lambda *_: None, 10**7)  # there are threads now, which a forked process lacks
pid = os.fork()
if not pid:
    alone = thread_count()
    threads(2)
    seen = []
    in_slices(lambda *part: seen.append(part), 10**7)
    os._exit(0 if alone == 1 and sum(stop - start for start, stop in seen) == 10**7 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or thread_count() != 3)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_threads_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThreads:
        def submit(self, function: object) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "_pool", NoThreads)
    with threads(2):
        assert sum(stop - start for start, stop, _ in slices(3 * LEAST)) == 3 * LEAST


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT there")
def test_ctrl_c_ends_all_of_them() -> None:
    code = """
import os, signal, threading, time
from precision_lab.support.threads import in_threads, threads

done = []
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes are started without

def work(tasks):
    for task in tasks:
        time.sleep(0.01)
        done.append(task)
        if len(done) == 10:
            os.kill(os.getpid(), signal.SIGINT)

threads(3)
try:
    in_threads(work, range(10_000))
except KeyboardInterrupt:
    count = len(done)
    time.sleep(0.1)
    print(count < 100 and len(done) == count)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "True\n", run.stderr
