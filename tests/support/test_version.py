"""The version is stated once, in pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import precision_lab
from precision_lab.support import version as module
from precision_lab.support.version import version

ROOT = Path(__file__).parents[2]


def test_it_is_that_of_pyproject() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert precision_lab.__version__ == version() == stated


def test_nobody_else_states_it() -> None:
    sources = (ROOT / "precision_lab").rglob("*.py")
    assert [path for path in sources if f'"{version()}"' in path.read_text(encoding="utf-8")] == []


def test_a_source_tree_that_is_not_installed(tmp_path: Path) -> None:
    for part in ("precision_lab/__init__.py", "precision_lab/support/__init__.py", "precision_lab/support/version.py"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "precision-lab"\nversion = "7.8.9"\n')
    program = "import sys; sys.path.insert(0, '.'); import precision_lab; print(precision_lab.__version__)"
    command = [sys.executable, "-I", "-S", "-c", program]  # without what is installed
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "7.8.9\n"


@pytest.mark.parametrize("beside", [None, "no toml", '[project]\nname = "other"\nversion = "1"\n', "x = 1\n"])
def test_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str | None) -> None:
    """What lies two folders above an installed module is somebody else's."""
    if beside is not None:
        (tmp_path / "pyproject.toml").write_text(beside)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "precision_lab" / "support" / "version.py"))
    monkeypatch.setattr(metadata, "version", lambda name: f"installed {name}")
    assert version.__wrapped__() == "installed precision-lab"
