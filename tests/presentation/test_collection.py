"""What a report keeps, when it is reused, and what it puts together."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from precision_lab.experiments import hyperparameters, memory
from precision_lab.experiments.accumulation import AccumulationConfig
from precision_lab.experiments.hyperparameters import SETTINGS, HyperparametersConfig
from precision_lab.experiments.memory import MemoryConfig
from precision_lab.experiments.storage import Setting, StorageExperimentConfig
from precision_lab.presentation import collection, plots, tables
from precision_lab.presentation.collection import EXPERIMENTS, Finished, digest, kept, results, run, sources
from tests.processes.helpers import without_seconds

SMALL: dict[str, Any] = {
    "hyperparameters": HyperparametersConfig(settings=SETTINGS[:1]),
    "memory": MemoryConfig(sizes=(("tiny", 10),), configurations=("fp32",)),
}


def files(module: str) -> set[str]:
    package = Path(collection.__file__).parents[1]
    return {file.relative_to(package).as_posix() for file in sources(f"precision_lab.{module}")}


# ---- the table ----


def test_every_part_of_every_experiment_is_there() -> None:
    for name, experiment in EXPERIMENTS.items():
        config, result = experiment.find(experiment.config), experiment.find(experiment.result)
        assert isinstance(experiment.configuration(), config)
        assert callable(result.from_dict)
        assert callable(experiment.find(experiment.call))
        assert callable(getattr(tables, experiment.tables))
        assert all(callable(getattr(plots, figure)) for figure in experiment.figures.values())
        assert name in experiment.figures
    pictures = [picture for experiment in EXPERIMENTS.values() for picture in experiment.figures]
    assert len(set(pictures)) == len(pictures)


# ---- what a result depends on ----


def test_sources_are_what_is_imported_and_nothing_else() -> None:
    found = files("experiments.storage")
    assert {"experiments/storage.py", "training/loop.py", "training/optimizers.py", "numerics/kernels/sums.py"} <= found
    assert {"numerics/fixed.py", "numerics/kernels/fixed.py"} <= found
    assert {"numerics/formats.py", "training/models/__init__.py", "training/models/transformer.py"} <= found
    assert any(file.startswith("training/data/") for file in found)
    assert not [file for file in found if file.startswith(("presentation", "cli"))]
    assert "experiments/underflow.py" not in found
    assert "__init__.py" not in found
    audits = files("experiments.hyperparameters")
    assert "analysis/hyperparameters.py" in audits
    assert not [file for file in audits if file.startswith("training")]
    assert sources("numpy.linalg") == sources("precision_lab.nowhere") == ()


def test_the_digest_follows_the_configuration() -> None:
    experiment, config = EXPERIMENTS["memory"], SMALL["memory"]
    assert digest(experiment, config) == digest(experiment, MemoryConfig(**vars(config)))
    assert digest(experiment, config) != digest(experiment, MemoryConfig())
    assert len(digest(experiment, config)) == 64


def test_the_digest_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a copy of the package's tree, of which one file is changed after the other."""
    package = tmp_path / "precision_lab"
    for place, text in {
        "experiments/memory.py": "def f():\n    from precision_lab.training import memory\n# 1",
        "training/__init__.py": "",
        "training/memory.py": "from precision_lab.numerics.formats import get_format\n# 1",
        "training/data/digits.csv": "2,1",
        "numerics/formats.py": "a = 1",
        "numerics/rounding.py": "",
    }.items():
        (package / place).parent.mkdir(parents=True, exist_ok=True)
        (package / place).write_text(text)
    monkeypatch.setattr(collection, "_PACKAGE", package)

    def now() -> str:
        sources.cache_clear()
        return digest(EXPERIMENTS["memory"], SMALL["memory"])

    seen = [now()]
    for place in ("experiments/memory.py", "training/memory.py", "training/data/digits.csv", "numerics/formats.py"):
        (package / place).write_text((package / place).read_text().removesuffix("1") + "2")  # as long as before
        seen.append(now())
    assert len(set(seen)) == len(seen)
    (package / "numerics/rounding.py").write_text("# nobody imports it")
    assert now() == seen[-1]
    sources.cache_clear()


def test_the_digest_follows_versions_and_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, config = EXPERIMENTS["memory"], SMALL["memory"]
    before, versions, machine = digest(experiment, config), collection.versions(), collection.machine()
    for name, changes in (
        *(("versions", {**versions, package: "0.0"}) for package in ("numpy", "ml_dtypes", "numba", "python")),
        *(("machine", {**machine, key: "other"}) for key in ("cpu", "platform")),
    ):
        monkeypatch.setattr(collection, name, lambda changes=changes: changes)
        assert digest(experiment, config) != before, changes
        monkeypatch.undo()
    for name, changes in (("machine", {**machine, "cores": 99}), ("versions", {**versions, "precision_lab": "9"})):
        monkeypatch.setattr(collection, name, lambda changes=changes: changes)
        assert digest(experiment, config) == before  # sources say more than the package's version
        monkeypatch.undo()


# ---- keeping and reusing ----


def test_what_was_run_is_kept_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(run(SMALL, tmp_path))
    assert [one.name for one in first] == ["hyperparameters", "memory"]
    assert not any(one.reused for one in first)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it is run again")

    monkeypatch.setattr(hyperparameters, "run", refuse)
    monkeypatch.setattr(memory, "run", refuse)
    for one in first:
        again = kept(one.name, tmp_path, SMALL[one.name])
        assert again is not None
        assert again.reused
        assert (again.data, again.seconds, again.answer) == (one.data, one.seconds, one.answer)
    assert kept("memory", tmp_path, MemoryConfig()) is None  # another question


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"digest": 1}', '{"digest": "DIGEST", "seconds": 1, "result": {}}']
)
def test_what_is_damaged_is_run_again(content: str, tmp_path: Path) -> None:
    text = content.replace("DIGEST", digest(EXPERIMENTS["memory"], SMALL["memory"]))
    (tmp_path / "memory.json").write_text(text)
    assert kept("memory", tmp_path, SMALL["memory"]) is None
    (one,) = run({"memory": SMALL["memory"]}, tmp_path)
    assert not one.reused
    assert kept("memory", tmp_path, SMALL["memory"]) is not None


def test_an_interruption_leaves_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    work = collection._work

    def edit(*arguments: Any) -> Any:
        monkeypatch.setattr(collection, "versions", lambda: {"numpy": "edited"})
        return work(*arguments)

    monkeypatch.setattr(collection, "_work", edit)
    list(run({"memory": SMALL["memory"]}, tmp_path))
    assert kept("memory", tmp_path, SMALL["memory"]) is None
    monkeypatch.undo()
    assert kept("memory", tmp_path, SMALL["memory"]) is not None


def test_an_executor_changes_nothing(tmp_path: Path) -> None:
    storage = StorageExperimentConfig(
        configurations=("pure_bf16",),
        settings=(Setting("sgd", 0.01),),
        seeds=1,
        steps=20,
        hidden=(4,),
        sections=("ablation",),
        section_steps=10,
    )
    sums = AccumulationConfig(exponents=(1,), seeds=1, shown=3, hidden=2)
    configs = {**SMALL, "storage": storage, "accumulation": sums}
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


def test_processes_tell_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, int]] = []

    class Listener:
        def put(self, at: tuple[str, int, int]) -> None:
            heard.append(at)

    monkeypatch.setattr(collection, "_listener", None)
    collection.listen(Listener())
    collection._work("memory", MemoryConfig(sizes=(("a", 1), ("b", 2)), configurations=("fp32",)))
    assert heard[-1] == ("memory", 2, 2)


def test_an_error_in_a_thread_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from precision_lab.experiments import storage

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(storage, "run", fail)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="no such luck"):
        list(run({"storage": StorageExperimentConfig(steps=1)}, tmp_path, executor=executor))


# ---- one file ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Finished]:
    return list(run(SMALL, tmp_path_factory.mktemp("kept")))


def test_results_have_values_configurations_versions_and_the_machine(finished: list[Finished]) -> None:
    data = results(finished[::-1], quick=True)
    assert list(data) == ["experiments", "configs", "answers", "seconds", "versions", "machine", "quick"]
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


def test_the_processor_is_found_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert collection.machine()["cpu"] == platform.processor()


TWO_OF_ARM = """processor	: 0
BogoMIPS	: 243.75
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
CPU revision	: 1

processor	: 1
CPU implementer	: 0x41
CPU part	: {}
"""


def test_processors_of_arm_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    """There is no 'model name' there; what is computed on one must not count as kept by another."""
    first, same, other = tmp_path / "first", tmp_path / "same", tmp_path / "other"
    first.write_text(TWO_OF_ARM.format("0xd0c"), encoding="utf-8")
    same.write_text(TWO_OF_ARM.format("0xd05"), encoding="utf-8")  # of two kinds the first counts
    other.write_text(TWO_OF_ARM.replace("0xd0c", "0xd4f"), encoding="utf-8")
    assert collection._cpu(first) == "implementer 0x41, architecture 8, variant 0x3, part 0xd0c, revision 1"
    assert collection._cpu(first) == collection._cpu(same) != collection._cpu(other)


def test_the_model_is_named_where_the_kernel_names_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor	: 0\nmodel name	: Some CPU @ 2 GHz\n\nprocessor	: 1\n", "utf-8"
    )
    assert collection._cpu(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"


def test_macos_is_asked_and_windows_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def sysctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command == ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.CompletedProcess(command, 0, "Apple M9\n", "")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", sysctl)
    assert collection._cpu(tmp_path / "none") == "Apple M9"
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6")
    assert collection._cpu(tmp_path / "none") == "Intel64 Family 6"


def test_the_summary_says_what_came_out_and_whether_it_was_run(finished: list[Finished], tmp_path: Path) -> None:
    (again,) = run({"memory": SMALL["memory"]}, tmp_path)
    table = tables.summary_table([finished[0], again], quick=False)
    assert [row[0] for row in table.rows] == ["hyperparameters", "memory"]
    assert [row[1] for row in table.rows] == [finished[0].answer, again.answer]
    assert [row[3] for row in table.rows] == ["run", "run"]
    reused = kept("memory", tmp_path, SMALL["memory"])
    assert reused is not None
    assert tables.summary_table([reused], quick=True).rows[0][3] == "reused"
    assert "quick run" in tables.summary_table([reused], quick=True).title
    assert "quick" not in table.title
