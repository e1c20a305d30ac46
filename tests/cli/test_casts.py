"""The command `verify --cast`: a function of the user's, from a module in the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CommandLine

MODULE = """
import numpy as np

def chopped(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)

class casts:
    @staticmethod
    def half(x):
        return x.astype(np.float16)

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that only the current folder has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    name = "casts_of_a_user"
    Path(f"{name}.py").write_text(MODULE)
    Path("broken_casts.py").write_text("import nowhere_to_be_found")
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_a_wrong_cast(command_line: CommandLine, module: str) -> None:
    arguments = ("--cast", f"{module}:chopped", "--source", "fp32", "--target", "bf16", "--json", "report.json")
    finished = command_line("verify", *arguments)
    assert finished.status == 1, finished.err
    assert "1. truncates: rounds toward zero" in finished.out
    assert "0x0000c000 = 3*2^-135: expected 0x0001 = 2^-133, got 0x0000 = 0.0" in finished.out
    report = json.loads(Path("report.json").read_text())
    assert report["ok"] is False
    assert [fault["name"] for fault in report["faults"]] == ["truncates", "NaN becomes infinity"]


def test_right_casts(command_line: CommandLine, module: str) -> None:
    options = ("--source", "fp32", "--target", "fp16")
    assert command_line("verify", "--cast", "numpy:float16", *options).status == 0
    finished = command_line("verify", "--cast", f"{module}:casts.half", "--source", "float64", "--target", "half")
    assert finished.status == 0, finished.out
    assert "nothing wrong" in finished.out
    assert finished.err == ""


def test_every_switch_reaches_the_check(command_line: CommandLine, module: str) -> None:
    options = ("--source", "fp16", "--target", "fp8_e4m3fn", "--mode", "rtz", "--nan", "ignore")
    switches = ("--saturate", "--flush-subnormals", "--exhaustive")
    finished = command_line("verify", "--cast", f"{module}:casts.half", *options, *switches)
    assert finished.status == 1
    assert "cast fp16 -> fp8_e4m3fn, toward_zero, flush to zero, saturating: 1 fault" in finished.out
    assert "wrong dtype: returns an array of float16; accepted are float8_e4m3fn, uint8 (codes)" in finished.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cast", "MODULE:chopped", "--source", "fp32"), "--cast needs --source and --target"),
        (("--cast", "MODULE", "--source", "fp32", "--target", "bf16"), "--cast takes MODULE:FUNCTION"),
        (("--cast", "nowhere:f", "--source", "fp32", "--target", "bf16"), "cannot import nowhere: ModuleNotFoundError"),
        (("--cast", "broken_casts:f", "--source", "fp32", "--target", "bf16"), "No module named 'nowhere_to_be_found'"),
        (("--cast", "MODULE:g", "--source", "fp32", "--target", "bf16"), "casts_of_a_user has no g"),
        (("--cast", "MODULE:number", "--source", "fp32", "--target", "bf16"), "cast must be a function of an array"),
        (("--cast", "MODULE:chopped", "--source", "fp33", "--target", "bf16"), "unknown format 'fp33'"),
        (
            ("--cast", "MODULE:chopped", "--source", "fp32", "--target", "e8m0", "--mode", "sr"),
            "mode must be None or one of",
        ),
        (("--cast", "MODULE:chopped", "--source", "fp32", "--target", "bf16", "--nan", "x"), "nan must be one of any"),
        (("--cast", "MODULE:chopped", "-f", "bf16"), "-f does not go with --cast"),
        (("--source", "fp32"), "--source goes with --cast only"),
        (("--json", "x.json"), "--json goes with --cast only"),
    ],
)
def test_bad_arguments_are_one_line(
    command_line: CommandLine, module: str, arguments: tuple[str, ...], words: str
) -> None:
    finished = command_line("verify", *(argument.replace("MODULE", module) for argument in arguments))
    assert finished.status == 2
    assert words in finished.err
    assert finished.err.count("\n") == 1
    assert finished.out == ""


PLANTED = "from pathlib import Path\nPath({marker!r}).write_text('ran')\nraise ImportError('planted')\n"


@pytest.mark.parametrize("first", [False, True])
def test_no_other_module_of_the_folder_runs(tmp_path: Path, first: bool) -> None:
    """A folder full of modules that are called like others; where Python itself puts it first, they do run."""
    marker = str(tmp_path / "marker")
    for name in {*sys.stdlib_module_names, "scipy", "numba", "rich", "ml_dtypes", "hypothesis"} - {"pathlib", "os"}:
        (tmp_path / f"{name}.py").write_text(PLANTED.format(marker=marker))
    done = subprocess.run(
        [
            *(sys.executable, *([] if first else ["-P"]), "-c", "from precision_lab.cli import main; main()"),
            *("verify", "--cast", "numpy:float16", "--source", "bf16", "--target", "fp16"),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert Path(marker).exists() is first
    assert (done.returncode == 0) is not first, done.stderr


def test_the_folder_does_not_stay_in_the_path(command_line: CommandLine, module: str) -> None:
    for name in (f"{module}:casts.half", "broken_casts:f", "nowhere:f", "numpy:float16"):
        before = list(sys.path)
        command_line("verify", "--cast", name, "--source", "bf16", "--target", "fp16")
        assert sys.path == before
