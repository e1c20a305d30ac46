"""An experiment is its module, its table, its figure, and one line of the registry: nothing else knows of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from precision_lab.experiments.registry import EXPERIMENTS, Experiment
from precision_lab.presentation import notebook
from precision_lab.support.plain import header
from tests.conftest import CommandLine

MODULE = '''"""Adding one to one.

The *sum* is ``two``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown


@dataclass(frozen=True)
class ToyConfig(PlainData):
    terms: int = 3

    @classmethod
    def quick(cls) -> Self:
        return cls(2)


@dataclass(frozen=True)
class ToyResult(PlainData, Shown):
    layout: ClassVar = Layout("experiment toy")

    config: ToyConfig
    total: int

    @property
    def answer(self) -> str:
        return f"it comes to {self.total}"


def run(config: ToyConfig | None = None, *, progress: Callable[[int, int], None] | None = None) -> ToyResult:
    config = config or ToyConfig()
    if progress is not None:
        progress(1, 1)
    return ToyResult(config, config.terms)
'''
SHOWING = """
from matplotlib.figure import Figure

from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.tables.table import Table, only_table

from toy_experiment import ToyResult


@only_table
def toy_table(result: ToyResult) -> Table:
    return Table("A sum of ones", ("terms", "sum"), ((f"{result.config.terms}", f"{result.total}"),))


@figure_of_report("toy_sum")
def toy_figure(result: ToyResult) -> Figure:
    figure = Figure()
    figure.suptitle("A sum of ones")
    figure.add_subplot().bar(["sum"], [result.total])
    return figure
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The experiment, in the registry; the module that shows it stands for one of `tables` and one of `plots`."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "toy_experiment.py").write_text(MODULE, encoding="utf-8")
    (folder / "toy_showing.py").write_text(SHOWING, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    for name in ("toy_experiment", "toy_showing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module("toy_showing")
    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment("How much is one and one?", "toy_experiment"))
    return EXPERIMENTS["toy"]


def test_its_table_figure_json_and_section_are_there(
    toy: Experiment, command_line: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "figures"
    finished = command_line("report", "toy", "-o", folder, "--workers", 1)
    assert finished.status == 0, finished.err
    assert "A sum of ones" in finished.out
    assert "it comes to 3" in finished.out
    files = {"toy.json", "toy_sum.png", "toy_sum.svg", "report.html", "results.json"}
    assert {file.name for file in folder.iterdir()} == files
    data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert data["experiments"] == {"toy": header("experiment toy") | {"config": {"terms": 3}, "total": 3}}
    assert data["configs"] == {"toy": {"terms": 3}}
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in ('<section id="toy"', "How much is one and one?", "it comes to 3", "A sum of ones", "<code>two</code>"):
        assert part in page
    assert page.count('<img src="data:image/svg+xml;base64,') == 1
    again = command_line("report", "toy", "-o", folder, "--workers", 1)
    assert "reused" in again.out


def test_quick_and_a_notebook_know_it_too(toy: Experiment, command_line: CommandLine, tmp_path: Path) -> None:
    finished = command_line("report", "--quick", "toy", "-o", tmp_path / "quick", "--workers", 1)
    assert "it comes to 2" in finished.out
    assert "A sum of ones (quick run)" in (tmp_path / "quick" / "toy_sum.svg").read_text(encoding="utf-8")
    result = toy.run()
    assert result._repr_html_() == notebook.to_html(result)
    assert "<td" in result._repr_html_()
