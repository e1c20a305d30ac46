"""The sdist and the wheel as strangers get them: built, checked, installed into an empty environment, run elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from precision_lab.cli import app

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
LEFT_BEHIND = (
    ".git",
    ".venv*",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    ".mutants",
    "build",
    "dist",
    "site",
    "*.egg-info",
)

# a small real run of each command
RUNS: dict[str, tuple[str, ...]] = {
    "formats": (),
    "inspect": ("1e-7",),
    "scan": ("x.npz", "--json", "scan.json", "--figure", "scan.png", "--html", "scan.html"),
    "loss-scale": ("x.npz",),
    "accumulation": ("x.npz", "--limit", "64"),
    "swamping": ("--weights", "x.npz", "--lr", "1e-4"),
    "hyperparameters": ("-f", "bf16"),
    "memory": ("--parameters", "7e9"),
    "preflight": ("x.npz", "--lr", "1e-4"),
    "train": ("--model", "transformer", "--storage", "pure_bf16", "--steps", "1", "--seeds", "1", "--workers", "1"),
    "claims": ("fp16-1e-7", "--markdown", "claims.md"),
    "underflow": ("--steps", "30", "-o", "underflow"),
    "report": ("memory", "--workers", "1", "-o", "report"),
    "verify": ("-f", "fp4_e2m1fn"),
}


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """Run a command that knows nothing of this repository; return its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | more
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, made as `make dist` makes them of a clean copy, and with nothing fetched."""
    source = tmp_path_factory.mktemp("source") / "copy"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    folder = source / "dist"
    tools = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source, **tools)
    run(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir(), cwd=source, **tools)
    return folder


@pytest.fixture(scope="module")
def elsewhere(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The commands of an environment with the wheel, and a folder outside the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=True)
    bin_ = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    wheel = next(built.glob("*.whl"))
    pins = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run(bin_ / "python", "-m", "pip", "install", "--quiet", f"{wheel}[testing]", cwd=folder, **pins)
    rng = np.random.default_rng(0)
    np.savez(folder / "x.npz", weight=rng.standard_normal((8, 16), np.float32))
    yield bin_, folder
    shutil.rmtree(folder / "venv")


def test_both_have_what_they_need(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == [
        f"precision_lab-{VERSION}-py3-none-any.whl",
        f"precision_lab-{VERSION}.tar.gz",
    ]
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "precision_lab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".nbi", ".nbc")
    }
    assert {"precision_lab/py.typed", "precision_lab/training/data/topics.txt"} <= package
    assert "precision_lab/presentation/report/templates/numbers.js" in package
    # and no habits, no tests
    assert names == package | {path.name for path in ROOT.glob("_precision_lab_*.py")}
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert package <= inside
    assert {"Makefile", "tests/test_dist.py", "CITATION.cff", ".github/workflows/tests.yml", ".editorconfig"} <= inside


def test_every_command_is_run() -> None:
    assert sorted(RUNS) == sorted(app.commands)


def test_it_is_the_wheel(elsewhere: tuple[Path, Path]) -> None:
    bin_, folder = elsewhere
    program = "import precision_lab; print(precision_lab.__version__, precision_lab.__file__)"
    version, file = run(bin_ / "python", "-c", program, cwd=folder).split(maxsplit=1)
    assert version == VERSION
    assert Path(file.strip()).is_relative_to(folder / "venv")
    assert VERSION in run(bin_ / "precision-lab", "--version", cwd=folder)


def test_the_module_is_the_command(elsewhere: tuple[Path, Path]) -> None:
    bin_, folder = elsewhere
    page = run(bin_ / "python", "-m", "precision_lab", "--help", cwd=folder)
    assert page == run(bin_ / "precision-lab", "--help", cwd=folder)
    assert all(command in page for command in RUNS)


@pytest.mark.parametrize("command", RUNS)
def test_a_command(elsewhere: tuple[Path, Path], command: str) -> None:
    bin_, folder = elsewhere
    assert f"precision-lab {command}" in run(bin_ / "precision-lab", command, "--help", cwd=folder)
    assert run(bin_ / "precision-lab", command, *RUNS[command], cwd=folder)
    for written in (word for word in RUNS[command] if "." in word and word != "x.npz" and not word[0].isdigit()):
        assert (folder / written).stat().st_size


def test_hypothesis_finds_the_hook(elsewhere: tuple[Path, Path]) -> None:
    bin_, folder = elsewhere
    program = """if True:
        import ml_dtypes
        from hypothesis import find, strategies as st
        print(find(st.from_type(ml_dtypes.bfloat16), lambda x: x > 1))
    """
    assert float(run(bin_ / "python", "-c", program, cwd=folder)) > 1
