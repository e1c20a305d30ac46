"""Pure tasks on any executor: each result once, with its number; errors in one line."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from precision_lab.numerics import verification
from precision_lab.numerics.verification import verify_against_ml_dtypes
from precision_lab.support.executors import WorkersLostError, completed


class Shuffled(Executor):
    """Finishes tasks in an order of its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        timer = threading.Timer(self.random.uniform(0.01, 0.3), lambda: future.set_result(function(*arguments)))
        timer.start()
        return future


def square(x: int) -> int:
    return x * x


def refuse(x: int) -> int:
    if x == 3:
        raise ValueError(f"no {x}")
    return x


def die(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def lack(_: int) -> int:
    raise ModuleNotFoundError("No module named 'precision_lab'", name="precision_lab")


@pytest.mark.parametrize("seed", range(3))
def test_every_result_comes_once_with_its_number(seed: int) -> None:
    expected = {i: i * i for i in range(10)}
    results = list(completed(square, range(10), Shuffled(seed)))
    assert [number for number, _ in results] != list(range(10))
    assert len(results) == 10
    assert dict(results) == expected == dict(completed(square, range(10), None))
    with ThreadPoolExecutor(3) as threads:
        assert sorted(completed(square, range(10), threads)) == sorted(expected.items())


def test_nothing_to_do() -> None:
    with ThreadPoolExecutor(1) as threads:
        assert list(completed(square, [], threads)) == list(completed(square, [], None)) == []


def test_what_a_task_raises_is_raised_and_the_rest_cancelled() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="no 3"):
        list(completed(refuse, range(10_000), threads))
    closed, begun = threading.Event(), list[int]()

    def task(number: int) -> None:
        begun.append(number)
        assert number == 0 or closed.wait(60)

    with ThreadPoolExecutor(1) as threads:
        results = completed(task, range(100), threads)
        next(results)
        results.close()  # type: ignore[attr-defined]
        closed.set()
    assert set(begun) <= {0, 1}  # the next one may have begun, no other


def test_a_dead_worker_of_a_process_pool_is_said_in_one_line() -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        with pytest.raises(WorkersLostError, match="a worker process died") as caught:
            list(completed(die, range(10), pool))
        assert "\n" not in str(caught.value)
        with pytest.raises(WorkersLostError):  # and a pool that is broken already
            list(completed(square, range(10), pool))


class Cancelling(Executor):
    def submit(self, _: Callable[..., Any], /, *_arguments: Any, **_options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_a_cluster_that_goes_away() -> None:
    with pytest.raises(WorkersLostError, match="were stopped"):
        list(completed(square, range(3), Cancelling()))


def test_workers_without_the_package() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(WorkersLostError, match="cannot import precision_lab"):
        list(completed(lack, range(3), threads))


# ---- the exhaustive check ----


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 10 * 2^18 patterns stand for all."""
    monkeypatch.setattr(verification, "_ALL", 10 << 18)
    monkeypatch.setattr(verification, "_TASK", 1 << 18)


@pytest.mark.usefixtures("few")
def test_the_exhaustive_check_is_the_same_anywhere() -> None:
    told: list[tuple[int, int]] = []
    found = verify_against_ml_dtypes(
        "bf16", exhaustive=True, executor=Shuffled(1), progress=lambda *step: told.append(step)
    )
    assert (found.checked, found.mismatches) == (10 << 18, 0)
    assert told == [((i + 1) << 18, 10 << 18) for i in range(10)]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_examples_are_the_first_whatever_is_done_first(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(fmt: Any, patterns: Any) -> Any:
        return patterns[patterns % 500_000 == 7]

    monkeypatch.setattr(verification, "differing_patterns", wrong)
    with ThreadPoolExecutor(2) as threads:
        executor = threads if seed is None else Shuffled(seed)
        found = verify_against_ml_dtypes("fp16", exhaustive=True, executor=executor)
    assert found.mismatches == len(range(7, 10 << 18, 500_000))
    assert [example[:10] for example in found.examples] == ["0x00000007", "0x0007a127", "0x000f4247"]
