"""Running: here and elsewhere, interrupted, failing; and what is put into one file."""

from __future__ import annotations

import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from precision_lab.experiments import kept as keeping
from precision_lab.experiments import memory, runner, storage
from precision_lab.experiments.accumulation import AccumulationConfig
from precision_lab.experiments.hyperparameters import SETTINGS, HyperparametersConfig
from precision_lab.experiments.kept import Finished, kept
from precision_lab.experiments.memory import MemoryConfig
from precision_lab.experiments.runner import results, run
from precision_lab.experiments.storage import Setting, StorageExperimentConfig
from precision_lab.presentation.tables.summary import summary_table
from precision_lab.training.config import TrainingConfig

SMALL: dict[str, Any] = {
    "hyperparameters": HyperparametersConfig(settings=SETTINGS[:1]),
    "memory": MemoryConfig(sizes=(("tiny", 10),), configurations=("fp32",)),
}


def test_an_interruption_leaves_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @wraps(memory.run)
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(run(SMALL, tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["hyperparameters.json"]
    assert kept("hyperparameters", tmp_path, SMALL["hyperparameters"]) is not None


def test_a_source_that_changes_meanwhile_is_not_taken_for_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = runner._work

    def edit(*arguments: Any) -> Any:
        monkeypatch.setattr(keeping, "versions", lambda: {"numpy": "edited"})
        return work(*arguments)

    monkeypatch.setattr(runner, "_work", edit)
    list(run({"memory": SMALL["memory"]}, tmp_path))
    assert kept("memory", tmp_path, SMALL["memory"]) is None
    monkeypatch.undo()
    assert kept("memory", tmp_path, SMALL["memory"]) is not None


def test_an_executor_changes_nothing(tmp_path: Path) -> None:
    stored = StorageExperimentConfig(
        configurations=("pure_bf16",),
        settings=(Setting("sgd", 0.01),),
        base=TrainingConfig(steps=20, hidden=(4,)),
        seeds=1,
        more_seeds=1,
        miniatures=(),
        sections=("ablation",),
        axes=(),
        section_steps=10,
    )
    sums = AccumulationConfig(exponents=(1,), seeds=1, shown=3, hidden=2)
    configs = {**SMALL, "storage": stored, "accumulation": sums}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    seen: list[tuple[str, int, int]] = []
    with ThreadPoolExecutor(2) as executor:
        found = run(configs, tmp_path / "a", executor=executor, progress=lambda *at: seen.append(at))
        spread = {one.name: without_seconds(one.data) for one in found}
    alone = {one.name: without_seconds(one.data) for one in run(configs, tmp_path / "b")}
    assert spread == alone
    assert {name for name, done, total in seen if done == total} == set(configs)
    assert ("storage", 3, 8) in seen


def without_seconds(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_seconds(value) for key, value in data.items() if key != "seconds"}
    return [without_seconds(value) for value in data] if isinstance(data, list) else data


def test_processes_tell_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, int]] = []

    class Listener:
        def put(self, at: tuple[str, int, int]) -> None:
            heard.append(at)

    monkeypatch.setattr(runner, "_listener", None)
    runner.listen(Listener())
    runner._work("memory", MemoryConfig(sizes=(("a", 1), ("b", 2)), configurations=("fp32",)))
    assert heard[-1] == ("memory", 2, 2)


def test_an_error_in_a_thread_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @wraps(storage.run)
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(storage, "run", fail)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="no such luck"):
        list(run({"storage": StorageExperimentConfig()}, tmp_path, executor=executor))


# ---- one file ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Finished]:
    return list(run(SMALL, tmp_path_factory.mktemp("kept")))


def test_results_have_values_configurations_versions_and_the_machine(finished: list[Finished]) -> None:
    data = results(finished[::-1], quick=True)
    assert list(data) == [
        "kind",
        "version",
        "experiments",
        "configs",
        "answers",
        "seconds",
        "versions",
        "machine",
        "quick",
    ]
    assert list(data["experiments"]) == ["hyperparameters", "memory"]  # the order of the table, not of the runs
    assert data["experiments"]["memory"] == finished[1].data
    assert data["configs"]["memory"] == finished[1].data["config"]
    assert data["answers"]["memory"] == finished[1].result.answer
    assert list(data["versions"]) == ["precision_lab", "numpy", "ml_dtypes", "numba", "python"]
    assert data["versions"]["python"] == platform.python_version()
    assert set(data["machine"]) == {"cpu", "cores", "platform"}
    assert data["machine"]["cores"] == os.cpu_count()
    assert data["quick"] is True
    text = json.dumps(data, allow_nan=False)
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text


def test_the_summary_says_what_came_out_and_whether_it_was_run(finished: list[Finished], tmp_path: Path) -> None:
    (again,) = run({"memory": SMALL["memory"]}, tmp_path)
    table = summary_table([finished[0], again], quick=False)
    assert [row[0] for row in table.rows] == ["hyperparameters", "memory"]
    assert [row[1] for row in table.rows] == [finished[0].answer, again.answer]
    assert [row[3] for row in table.rows] == ["run", "run"]
    reused = kept("memory", tmp_path, SMALL["memory"])
    assert reused is not None
    assert summary_table([reused], quick=True).rows[0][3] == "reused"
    assert "quick run" in summary_table([reused], quick=True).title
    assert "quick" not in table.title
