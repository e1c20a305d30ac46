"""The recipes of CONTRIBUTING, cooked: what stands there is run, and everything that should know of it does."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import precision_lab as pl
from precision_lab.cli import app, numbers
from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.tensors import info, reading
from precision_lab.testing.strategies import values
from tests.conftest import CommandLine

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def recipe(heading: str) -> dict[str, str]:
    """The code of a recipe, by the comments that say where it goes."""
    (code,) = re.findall(rf"^### {heading}\n.*?^```python\n(.*?)^```", CONTRIBUTING, re.MULTILINE | re.DOTALL)[:1]
    parts = re.split(r"^# (\w+(?:/\w+)*\.py.*)\n", code, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_there_are_five() -> None:
    headings = re.findall(r"^### (.*)$", CONTRIBUTING, re.MULTILINE)
    assert headings == [
        f"Add {what}" for what in ("a format", "an experiment", "an optimizer", "a file format", "a command")
    ]
    for heading in headings:
        for place, code in recipe(heading).items():
            ast.parse(f"{{{code}}}" if ": " in code.splitlines()[0] and " in " in place else code)


# ---- a format ----


@pytest.fixture
def new(monkeypatch: pytest.MonkeyPatch) -> FloatFormat:
    fmt = eval(recipe("Add a format")["numerics/formats.py, in FORMATS"], {"FloatFormat": FloatFormat})
    assert isinstance(fmt, FloatFormat)
    monkeypatch.setitem(FORMATS, fmt.name, fmt)
    return fmt


def test_a_format_is_rounded_into(new: FloatFormat) -> None:
    assert pl.get_format(new.name) is new
    codes = np.arange(2**new.bits)
    decoded = np.asarray(pl.decode(codes, new.name, np.float64))
    assert all(reference.decode(int(c), new) == v or np.isnan(v) for c, v in zip(codes, decoded, strict=True))
    x = np.linspace(-2 * new.max, 2 * new.max, 999)
    for mode in ("ties_to_even", "toward_zero", "to_odd"):
        assert pl.round_to(x, new.name, mode).tolist() == [reference.round_to(v, new, mode) for v in x.tolist()]


def test_a_format_has_strategies(new: FloatFormat) -> None:
    @settings(max_examples=20, deadline=None, database=None)
    @given(st.data())
    def drawn(data: st.DataObject) -> None:
        value = data.draw(values(new.name))
        assert np.isnan(value) or pl.is_representable(value, new)

    drawn()


def test_a_format_is_shown(new: FloatFormat, command_line: CommandLine) -> None:
    assert new.source in command_line("formats").out
    assert f" {new.name} " in command_line("inspect", "0.3").out


# ---- a file format ----


@pytest.fixture
def suffix(monkeypatch: pytest.MonkeyPatch) -> str:
    parts = recipe("Add a file format")
    names: dict[str, Any] = {**vars(info), "Path": Path}
    exec(parts["tensors/raw32.py"], names)
    ((suffix, reader),) = eval(f"{{{parts['tensors/reading.py, in _READERS']}}}", names).items()
    monkeypatch.setitem(reading._READERS, suffix, reader)
    return str(suffix)


def test_a_file_format_is_read(suffix: str, tmp_path: Path, command_line: CommandLine) -> None:
    x = np.array([1.5, 1e-9, 70000], np.float32)
    (tmp_path / f"weights{suffix}").write_bytes(x.tobytes())
    ((found, chunks),) = pl.read_tensors(tmp_path / f"weights{suffix}")
    assert (found.name, found.shape, [v for chunk in chunks for v in chunk.tolist()]) == ("weights", (3,), x.tolist())
    finished = command_line("scan", tmp_path / f"weights{suffix}", "-f", "fp16")
    assert finished.status == 0
    assert "weights" in finished.out


def test_a_spoilt_file_is_refused_in_a_line(suffix: str, tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / f"weights{suffix}").write_bytes(b"12345")
    finished = command_line("scan", tmp_path / f"weights{suffix}")
    assert (finished.status, finished.err.count("\n")) == (2, 1)
    assert "5 bytes are no float32 numbers; save it as .npy" in finished.err


# ---- a command ----


def test_a_command_is_run(monkeypatch: pytest.MonkeyPatch, command_line: CommandLine) -> None:
    parts = recipe("Add a command")
    monkeypatch.setattr(app, "commands", dict(app.commands))
    names: dict[str, Any] = {**vars(numbers), "click": click, "app": app}
    exec(parts["cli/numbers.py"] + parts["cli/__init__.py"], names)
    assert "Report the spacing of each format" in command_line("--help").out
    finished = command_line("ulp", "1", "-f", "fp16")
    assert (finished.status, finished.out) == (0, f"fp16: {2.0**-10}\n")
    assert command_line("ulp", "one").err.startswith("precision-lab: error: cannot read 'one'")
