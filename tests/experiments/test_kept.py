"""What a result depends on, and when what is kept of it is reused."""

from __future__ import annotations

import platform
import subprocess
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from precision_lab.experiments import hyperparameters, memory
from precision_lab.experiments import kept as keeping
from precision_lab.experiments.hyperparameters import SETTINGS, HyperparametersConfig
from precision_lab.experiments.kept import digest, kept, sources
from precision_lab.experiments.memory import MemoryConfig
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.experiments.runner import run

SMALL: dict[str, Any] = {
    "hyperparameters": HyperparametersConfig(settings=SETTINGS[:1]),
    "memory": MemoryConfig(sizes=(("tiny", 10),), configurations=("fp32",)),
}


def files(module: str) -> set[str]:
    package = Path(keeping.__file__).parents[1]
    return {file.relative_to(package).as_posix() for file in sources(f"precision_lab.{module}")}


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
    assert "training/hyperparameters/rows.py" in audits
    assert not [file for file in audits if file.startswith(("training/models", "training/loop"))]
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
    monkeypatch.setattr(keeping, "_PACKAGE", package)

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
    before, versions, machine = digest(experiment, config), keeping.versions(), keeping.machine()
    for name, changes in (
        *(("versions", {**versions, package: "0.0"}) for package in ("numpy", "ml_dtypes", "numba", "python")),
        *(("machine", {**machine, key: "other"}) for key in ("cpu", "platform")),
    ):
        monkeypatch.setattr(keeping, name, lambda changes=changes: changes)
        assert digest(experiment, config) != before, changes
        monkeypatch.undo()
    for name, changes in (("machine", {**machine, "cores": 99}), ("versions", {**versions, "precision_lab": "9"})):
        monkeypatch.setattr(keeping, name, lambda changes=changes: changes)
        assert digest(experiment, config) == before  # sources say more than the package's version
        monkeypatch.undo()


# ---- keeping and reusing ----


def test_what_was_run_is_kept_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(run(SMALL, tmp_path))
    assert [one.name for one in first] == ["hyperparameters", "memory"]
    assert not any(one.reused for one in first)

    for module in (hyperparameters, memory):

        @wraps(module.run)  # its annotations name the result
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("it is run again")

        monkeypatch.setattr(module, "run", refuse)
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


# ---- the machine ----


def test_the_processor_is_found_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert keeping.machine()["cpu"] == platform.processor()


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
    assert keeping._cpu(first) == "implementer 0x41, architecture 8, variant 0x3, part 0xd0c, revision 1"
    assert keeping._cpu(first) == keeping._cpu(same) != keeping._cpu(other)


def test_the_model_is_named_where_the_kernel_names_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor	: 0\nmodel name	: Some CPU @ 2 GHz\n\nprocessor	: 1\n", "utf-8"
    )
    assert keeping._cpu(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"


def test_macos_is_asked_and_windows_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def sysctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command == ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.CompletedProcess(command, 0, "Apple M9\n", "")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", sysctl)
    assert keeping._cpu(tmp_path / "none") == "Apple M9"
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6")
    assert keeping._cpu(tmp_path / "none") == "Intel64 Family 6"
