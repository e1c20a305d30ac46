"""Where a function is called: forked, in a new interpreter, or here; what becomes of it, and what the report says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from precision_lab.testing import isolation as ways
from precision_lab.testing.casts import check_cast
from precision_lab.testing.isolation import Caller, Forked, InProcess, Spawned, isolation
from tests.testing.functions import (
    brain,
    changes_its_input,
    dies_on_three,
    hangs_on_three,
    prints,
    raises_for_three,
    two_dtypes,
)

Array: TypeAlias = NDArray[Any]
FLOAT = np.dtype(np.float32)


ONES, THREES = np.ones(5, np.float32), np.full(5, 3, np.float32)


@pytest.fixture(params=["fork", "spawn", False])
def way(request: pytest.FixtureRequest) -> str | bool:
    if request.param == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    found: str | bool = request.param
    return found


@pytest.fixture
def spawned() -> Iterator[Callable[[Callable[[Array], Any]], Caller]]:
    callers: list[Caller] = []

    def start(function: Callable[[Array], Any]) -> Caller:
        callers.append(isolation(function, FLOAT, "spawn"))
        return callers[-1]

    yield start
    for caller in callers:
        caller.close()


# ---- the same, wherever it is called ----


def test_two_calls_their_answers_and_addresses(way: str | bool) -> None:
    with closing(isolation(brain, FLOAT, way)) as caller:
        caller.submit(ONES, 3)
        caller.submit(np.arange(7, dtype=np.float32), 0, 2)
        first = caller.answer(60)
        assert (first.status, first.mutated) == ("ok", False)
        assert first.result is not None
        assert first.result.dtype == ml_dtypes.bfloat16
        assert first.result.tolist() == ONES.tolist()
        second = caller.answer(60)
        assert second.result is not None
        assert second.result.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_an_exception_a_changed_input_and_no_array(way: str | bool) -> None:
    for function, status, message, mutated in (
        (raises_for_three, "raised", "OverflowError: three is too much", False),
        (changes_its_input, "ok", "", True),
        (prints, "ok", "", False),
    ):
        with closing(isolation(function, FLOAT, way)) as caller:
            caller.submit(THREES)
            answer = caller.answer(60)
            assert (answer.status, answer.message, answer.mutated) == (status, message, mutated)


def test_pieces_of_several_dtypes() -> None:
    with closing(isolation(two_dtypes, FLOAT, "spawn")) as caller:
        caller.submit(np.array([1, 1, 3, 3], np.float32), 0, 2)
        answer = caller.answer(60)
        assert (answer.status, answer.message) == ("wrong type", "arrays of bfloat16 and of float64")


# ---- a new interpreter ----


def test_a_hang_is_ended_and_the_next_call_answered(spawned: Callable[[Callable[[Array], Any]], Caller]) -> None:
    caller = spawned(hangs_on_three)
    caller.submit(THREES)
    caller.submit(ONES)
    start = time.monotonic()
    assert caller.answer(0.3).status == "hung"
    assert time.monotonic() - start < 30
    caller.restart()
    caller.submit(ONES)
    assert caller.answer(60).status == "ok"


def test_an_end_is_told(spawned: Callable[[Callable[[Array], Any]], Caller]) -> None:
    caller = spawned(dies_on_three)
    caller.submit(THREES)
    answer = caller.answer(60)
    assert (answer.status, answer.message) == ("died", "its process ended with status 7")


def test_what_cannot_be_imported_elsewhere() -> None:
    with pytest.raises(ValueError, match="<lambda> is not to be had by one"):
        isolation(lambda x: x, FLOAT, "spawn")
    with pytest.raises(ValueError, match="isolate must be True, False, 'fork' or 'spawn', got 'thread'"):
        check_cast(brain, "fp32", "bf16", isolate="thread")


def test_an_import_that_fails_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that only this process knows."""
    module = type(sys)("precision_lab_nowhere")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(brain, "__module__", module.__name__)
    module.__dict__["brain"] = brain
    with closing(isolation(brain, FLOAT, "spawn")) as caller:
        caller.submit(ONES)
        answer = caller.answer(60)
        assert answer.status == "raised"
        assert "where precision_lab_nowhere is imported anew" in answer.message
    monkeypatch.setattr(ways, "_fork_is_safe", lambda: False)
    with closing(isolation(brain, FLOAT)) as caller:
        assert isinstance(caller, InProcess)


LEFT_OPEN = """
import numpy as np
from precision_lab.testing.isolation import isolation
from tests.testing.functions import brain

caller = isolation(brain, np.dtype(np.float32), "spawn")
caller.submit(np.ones(5, np.float32))
assert caller.answer(60).status == "ok"
print("done")
"""


def test_nobody_waits_for_a_caller_that_was_not_closed() -> None:
    """The interpreter that answers ends with this one, whose end does not wait for it."""
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("done\n", 0)


# ---- which it is, and what the report says ----


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    if ways._fork_is_safe():
        with closing(isolation(lambda x: x, FLOAT)) as caller:
            assert isinstance(caller, Forked)
    monkeypatch.setattr(sys, "platform", "darwin")
    with closing(isolation(brain, FLOAT)) as caller:
        assert isinstance(caller, Spawned)
        assert caller.limited
    with closing(isolation(lambda x: x, FLOAT)) as caller:
        assert isinstance(caller, InProcess)
        assert not caller.limited
    monkeypatch.delattr(os, "fork", raising=False)
    with pytest.raises(ValueError, match="this system has no fork"):
        isolation(brain, FLOAT, "fork")


def test_the_report_of_a_spawned_cast() -> None:
    """A narrow source: every input, in a second or two."""
    right = check_cast(brain, "fp16", "bf16", isolate="spawn")
    assert right.ok
    assert right.exhaustive
    assert right.isolated
    assert "this process" not in str(right)


def test_the_report_says_that_there_was_no_limit() -> None:
    report = check_cast(brain, "fp16", "bf16", isolate=False)
    assert report.ok
    assert not report.isolated
    assert report.to_dict()["isolated"] is False
    assert str(report).endswith("note: the cast ran in this process, without a time limit; a crash would have ended it")
