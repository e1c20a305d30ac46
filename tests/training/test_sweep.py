"""Sweeps: the same table from any executor, after any interruption, with nothing run twice."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab.training import sweep as module
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.result import TrainingResult
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig
from precision_lab.training.sweep import CheckpointError, sweep
from tests.conftest import wait_until

SMALL = TrainingConfig(hidden=(3,), steps=6, batch_size=16, histogram_steps=(2,), measure_every=2)
CONFIGS = [
    replace(SMALL, storage=StorageConfig.parse(name), optimizer=optimizer, learning_rate=0.01)
    for name in ("fp32", "bf16_stochastic", "collage_plus", "pure_fp16", "fp8_hybrid")
    for optimizer in ("sgd", "adam")
]


def comparable(result: TrainingResult) -> dict[str, Any]:
    """Everything but the time that it took, every float with all its digits."""
    return {key: value for key, value in result.to_dict().items() if key != "seconds"}


def table(results: list[TrainingResult]) -> list[dict[str, Any]]:
    return [comparable(result) for result in results]


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    return table(sweep(CONFIGS))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[TrainingConfig]:
    """The configurations that are run in this process, in their order."""
    seen: list[TrainingConfig] = []

    def counted(config: TrainingConfig) -> TrainingResult:
        seen.append(config)
        return train(config)

    monkeypatch.setattr(module, "train", counted)
    return seen


# ---- what is run ----


def test_results_come_in_the_order_of_the_configurations(expected: list[dict[str, Any]]) -> None:
    assert [row["config"] for row in expected] == [config.to_dict() for config in CONFIGS]
    assert table(sweep(CONFIGS[::-1])) == expected[::-1]


def test_a_sweep_is_its_runs(expected: list[dict[str, Any]]) -> None:
    assert [comparable(train(config)) for config in CONFIGS[:3]] == expected[:3]
    (result,) = sweep([replace(SMALL, snapshot_steps=(0,))])
    assert result.snapshots == ()
    assert result.parameters == {}
    assert result.config == replace(SMALL, snapshot_steps=(0,))


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert sweep([], checkpoint=tmp_path / "runs") == []


def test_equal_configurations_are_run_once(runs: list[TrainingConfig]) -> None:
    """However they are written."""
    written: list[Any] = [
        {"learning_rate": 1},
        {"learning_rate": 1.0},
        {"learning_rate": np.float64(1), "steps": np.int64(6), "hidden": (np.int32(3),)},
        {"learning_rate": 1.0, "storage": "weights=fp32"},
        {"learning_rate": 1.0, "seed": 1},
    ]
    told: list[tuple[int, int]] = []
    configs = [replace(SMALL, **change) for change in written]
    results = sweep(configs, progress=lambda done, of: told.append((done, of)))
    assert runs == [configs[0], configs[4]]
    assert [result.config for result in results] == configs
    assert results[0] is results[1] is results[2] is results[3]
    assert told == [(0, 2), (1, 2), (2, 2)]


# ---- where it is run ----


class Backwards(Executor):
    """Runs what it was given when it is asked for the first result, the last first."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append(lambda: future.set_result(fn(*args, **kwargs)))
        if len(self.waiting) == len(CONFIGS):
            for call in reversed(self.waiting):
                call()
        return future


@pytest.mark.parametrize(
    "executor",
    [
        lambda: ThreadPoolExecutor(1),
        lambda: ThreadPoolExecutor(3),
        lambda: ProcessPoolExecutor(2, get_context("spawn")),
        Backwards,
    ],
    ids=["one thread", "threads", "processes", "backwards"],
)
def test_every_executor_gives_the_same_bits(
    executor: Callable[[], Executor], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    told: list[tuple[int, int]] = []
    with executor() as running:
        results = sweep(CONFIGS, executor=running, checkpoint=path, progress=lambda *done: told.append(done))
    assert table(results) == expected
    assert told == [(n, len(CONFIGS)) for n in range(len(CONFIGS) + 1)]
    assert table(sweep(CONFIGS, checkpoint=path)) == expected


def test_a_run_that_fails_ends_the_sweep_and_keeps_what_was_done(runs: list[TrainingConfig], tmp_path: Path) -> None:
    path, bad = tmp_path / "runs.jsonl", replace(SMALL, batch_size=1439)
    with pytest.raises(ValueError, match="batch_size must lie in"):
        sweep([CONFIGS[0], bad, CONFIGS[1]], checkpoint=path)
    assert runs == [CONFIGS[0], bad]
    sweep(CONFIGS[:2], checkpoint=path)
    assert runs == [CONFIGS[0], bad, CONFIGS[1]]
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="batch_size must lie in"):
        sweep([bad, *CONFIGS], executor=executor)
    assert len(runs) < 4 + len(CONFIGS)  # those that had not begun were not


@pytest.mark.parametrize("twin", [lambda c: pickle.loads(pickle.dumps(c)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("name", ["fp32", "autocast_bf16", "collage_plus", "fp8_hybrid"])
def test_a_configuration_that_was_pickled_gives_the_same_bits(
    twin: Callable[[TrainingConfig], TrainingConfig], name: str
) -> None:
    """Formats are compared with `is` where it matters for speed: an accumulator of fp32 has loops of its own."""
    config = replace(SMALL, storage=CONFIGURATIONS[name])
    other = twin(config)
    assert other == config
    assert other.storage.accumulator is config.storage.accumulator
    assert comparable(train(other)) == comparable(train(config))


# ---- the checkpoint ----


def written_line(data: dict[str, Any]) -> bytes:
    """A line as a sweep writes it, of anything."""
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return json.dumps(data | {"digest": digest}).encode()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_in_the_checkpoint_is_not_run_again(
    runs: list[TrainingConfig], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    sweep(CONFIGS[3:6], checkpoint=path)
    assert [line["config"] for line in lines(path)] == [config.to_dict() for config in CONFIGS[3:6]]
    runs.clear()
    told: list[tuple[int, int]] = []
    assert table(sweep(CONFIGS, checkpoint=str(path), progress=lambda *done: told.append(done))) == expected
    assert runs == CONFIGS[:3] + CONFIGS[6:]
    assert told == [(n, 10) for n in range(3, 11)]
    before = path.read_bytes()
    runs.clear()
    assert table(sweep(CONFIGS, checkpoint=path)) == expected
    told.clear()  # others in the file do no harm
    assert table(sweep(CONFIGS[2:4], checkpoint=path, progress=lambda *done: told.append(done))) == expected[2:4]
    assert told == [(2, 2)]
    assert runs == []
    assert path.read_bytes() == before


def test_each_result_is_in_the_file_before_the_next_is_taken(tmp_path: Path) -> None:
    path, seen = tmp_path / "runs.jsonl", []
    path.touch()
    sweep(CONFIGS[:3], checkpoint=path, progress=lambda done, _: seen.append((done, len(lines(path)))))
    assert seen == [(n, n) for n in range(4)]


@pytest.mark.parametrize("kept", [1, 7, 11, 300, -1])
def test_a_torn_last_line_is_dropped_and_its_run_repeated(
    runs: list[TrainingConfig], expected: list[dict[str, Any]], tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "runs.jsonl"
    sweep(CONFIGS[:3], checkpoint=path)
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:kept])
    runs.clear()
    assert table(sweep(CONFIGS[:3], checkpoint=path)) == expected[:3]
    assert runs == [CONFIGS[2]]
    assert [line["config"] for line in lines(path)] == [config.to_dict() for config in CONFIGS[:3]]


def test_a_torn_first_line(runs: list[TrainingConfig], tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b'{"kind": "precision_lab training result", "vers')
    sweep(CONFIGS[:1], checkpoint=path)
    assert runs == CONFIGS[:1]
    assert len(lines(path)) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"hello\n", 1),
        (b"\n", 1),
        (b"null\n", 1),
        (b"[]\n", 1),
        (b"{}\n", 1),
        (b'{"config": {}}\n', 1),
        (b'{"kind": "precision_lab training result", "config": {}}\n', 1),
        (b'{"kind": "precision_lab training result", "config": {"model": "rnn"}}\n', 1),
        (b'{"kind": "precision_lab training result", "config": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", 1),
        (b"\x93NUMPY\xff\n", 1),
        (b"RESULT\n\n", 2),
        (b"RESULT\nRESULT\nhello\nRESULT\n", 3),
        (b"RESULT\nhello", 2),
        (b"hello", 1),
        (b"a file that the user did not mean, without an end of line", 1),
        (b"RESULT\n\0\0\0", 2),
    ],
)
def test_a_foreign_line_is_refused_and_left_as_it_is(content: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    result = written_line(train(SMALL).to_dict())
    content = content.replace(b"RESULT", result)
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        sweep(CONFIGS, checkpoint=path)
    assert str(caught.value) == (
        f"{path}, line {line}: not a result of a sweep; choose another file, or delete this line"
    )
    assert path.read_bytes() == content


def test_a_result_that_was_changed_is_not_believed(
    runs: list[TrainingConfig], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Every part of a line, and a line without a digest, which an older version wrote."""
    path = tmp_path / "runs.jsonl"
    sweep(CONFIGS[:3], checkpoint=path)
    whole = lines(path)
    for part in (*(whole[1].keys() - {"config"}), None):
        changed = [whole[0], whole[1] | {part: "changed"} if part else whole[1], whole[2]]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        runs.clear()
        assert table(sweep(CONFIGS[:3], checkpoint=path)) == expected[:3], part
        assert runs == ([CONFIGS[1]] if part else [])
        assert table(sweep(CONFIGS[:3], checkpoint=path)) == expected[:3]  # the last line of a run counts
        assert runs == ([CONFIGS[1]] if part else [])


def test_two_sweeps_with_one_checkpoint_do_each_run_once(
    runs: list[TrainingConfig], expected: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "runs.jsonl"
    others: list[Future[list[TrainingResult]]] = []
    with ThreadPoolExecutor(1) as pool:

        def begin_another(done: int, _: int) -> None:
            if done == 1 and not others:
                others.append(pool.submit(sweep, CONFIGS[:3], checkpoint=path))
                wait_until(lambda: "another process works here" in caplog.text, 60)

        assert table(sweep(CONFIGS[:3], checkpoint=path, progress=begin_another)) == expected[:3]
        assert table(others[0].result()) == expected[:3]
    assert runs == CONFIGS[:3]
    assert len(lines(path)) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_checkpoint_is_a_regular_file(runs: list[TrainingConfig], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path / "fifo", Path(os.devnull)):
        with pytest.raises(CheckpointError, match="not a regular file"):
            sweep(CONFIGS, checkpoint=place)
    assert runs == []


@pytest.mark.parametrize("change", [{"skipped": [99]}, {"losses": ["x"]}, {"histograms": []}, {"updates": {}}])
def test_a_result_with_something_wrong_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(written_line(train(SMALL).to_dict() | change) + b"\n")
    with pytest.raises(CheckpointError, match="line 1: not a result"):
        sweep(CONFIGS, checkpoint=path)


@pytest.mark.parametrize("where", [".", "nowhere/runs.jsonl", "file/runs.jsonl"])
def test_a_path_that_cannot_be_used_is_found_before_the_first_run(
    runs: list[TrainingConfig], where: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    words = r"^.*: (cannot (read|write): .*; choose another|not a regular file; give a) file$"
    with pytest.raises(CheckpointError, match=words) as caught:
        sweep(CONFIGS, checkpoint=tmp_path / where)
    assert str(caught.value).startswith(str(tmp_path / where))
    assert runs == []


def test_a_full_disk_loses_only_the_run_that_it_met(
    runs: list[TrainingConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, real = tmp_path / "runs.jsonl", os.fsync

    def full(descriptor: int) -> None:
        if len(runs) == 3:
            os.truncate(path, path.stat().st_size - 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="cannot write: No space left on device; choose another file"):
            sweep(CONFIGS, checkpoint=path)
    assert runs == CONFIGS[:3]
    sweep(CONFIGS[:4], checkpoint=path)
    assert runs == CONFIGS[:3] + CONFIGS[2:4]


def test_an_error_of_the_caller_is_not_one_of_the_checkpoint(tmp_path: Path) -> None:
    def closed(done: int, _: int) -> None:
        if done:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        sweep(CONFIGS, checkpoint=tmp_path / "runs.jsonl", progress=closed)


# ---- killed ----

SCRIPT = """
import sys
from dataclasses import replace
from precision_lab.training.config import TrainingConfig
from precision_lab.training.storage import CONFIGURATIONS
from precision_lab.training.sweep import sweep

small = TrainingConfig(hidden=(3,), steps=60, batch_size=16, measure_every=2, optimizer="adam", learning_rate=.01)
sweep([replace(small, seed=seed, storage=storage) for seed in range(3) for storage in CONFIGURATIONS.values()],
      checkpoint=sys.argv[1])
"""
KILLED = [
    TrainingConfig(
        hidden=(3,),
        steps=60,
        batch_size=16,
        measure_every=2,
        optimizer="adam",
        learning_rate=0.01,
        seed=seed,
        storage=storage,
    )
    for seed in range(3)
    for storage in CONFIGURATIONS.values()
]


def test_killed_at_any_moment_it_goes_on_where_it_was(runs: list[TrainingConfig], tmp_path: Path) -> None:
    """SIGKILL: no handler runs and no buffer is written."""
    path = tmp_path / "runs.jsonl"
    finished = 0
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if path.exists() and path.read_bytes().count(b"\n") >= finished + 5:
                    break
                time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
        content = path.read_bytes()
        assert content.count(b"\n") >= finished + 5
        finished = content.count(b"\n")
        assert finished < len(KILLED)
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    done = [json.loads(line)["config"] for line in whole]
    assert done == [config.to_dict() for config in KILLED[:finished]]  # nothing twice

    resumed = table(sweep(KILLED, checkpoint=path))
    assert runs == KILLED[finished:]  # nothing again, nothing lost
    assert path.read_bytes().splitlines()[:finished] == whole
    assert [line["config"] for line in lines(path)] == [config.to_dict() for config in KILLED]
    assert resumed == table(sweep(KILLED))
