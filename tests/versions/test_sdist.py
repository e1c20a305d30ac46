"""The sdist is all that the repository keeps: whoever unpacks it can run the tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# setuptools' own way from MANIFEST.in to a list of files; SOURCES.txt is what it puts into the sdist
PROGRAM = "import sys; from setuptools import setup; sys.argv[1:] = ['-q', 'egg_info', '--egg-base', {!r}]; setup()"
WRITTEN = ("PKG-INFO", "setup.cfg")


def listed(folder: Path, base: Path) -> set[str]:
    """The files that setuptools would put into an sdist of a folder."""
    base.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(str(base))],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (sources,) = base.rglob("SOURCES.txt")
    names = (line.replace("\\", "/") for line in sources.read_text(encoding="utf-8").splitlines())
    return {name for name in names if ".egg-info" not in name and name not in WRITTEN}


def kept() -> list[str]:
    """What git keeps here; the tests of an sdist have no git to ask."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git repository: this is an sdist itself")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What git keeps, and what runs leave beside it."""
    for name in kept():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    for name in (
        "tests/__pycache__/a.cpython-311.pyc",
        "figures/memory.json",
        "figures/quick/a.png",
        "site/index.html",
    ):
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_text("left behind", encoding="utf-8")
    return tmp_path / "copy"


def test_the_sdist_has_what_git_keeps_and_nothing_else(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    assert listed(copy, tmp_path / "info") == {*kept()}


def test_what_is_left_out_is_seen(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    manifest = copy / "MANIFEST.in"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("graft tests\n", ""), encoding="utf-8")
    assert "tests/conftest.py" in {*kept()} - listed(copy, tmp_path / "info")
