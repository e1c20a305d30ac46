from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest

import precision_lab as pl
from precision_lab.analysis.loss_scale_plan import plan_tensors
from precision_lab.analysis.sums import sum_tensors
from precision_lab.analysis.swamping_scan import scan_frozen, scan_updates
from precision_lab.experiments import (
    accumulation,
    averages,
    hyperparameters,
    loss_scaling,
    memory,
    storage,
    swamping,
    underflow,
)
from precision_lab.experiments.claims import experiment as claims
from precision_lab.presentation import notebook
from precision_lab.presentation.tables.table import Table, tables_of
from precision_lab.support.shown import Shown
from precision_lab.training.comparison import TrainingComparison
from precision_lab.training.optimizers import Adam

NASTY = '<script>alert("&")</script>'
VALUES = np.array([0, 0, 1e-9, 1e-7, 3e-5, 0.5, 1e5, np.inf], np.float32)


class Page(HTMLParser):
    """The text of every cell, and the tags that are there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("img", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        elif tag == "br" and {"td", "th"} & {*self.open}:
            self.cells[-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += data


def pictures(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(unquote(x)) for x in re.findall(r'src="data:image/svg\+xml,([^"]*)"', text)]


def bars(picture: ElementTree.Element) -> list[float]:
    return [float(rect.attrib["height"]) for rect in picture.iter("{http://www.w3.org/2000/svg}rect")]


def shown_classes() -> set[type]:
    """With slots a dataclass is made anew, and the first is still known for a while: the module's is meant."""
    found = (kind for kind in Shown.__subclasses__() if kind.__module__.startswith("precision_lab."))
    return {getattr(sys.modules[kind.__module__], kind.__name__) for kind in found}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[type, object]:
    """One object of each class that shows itself."""
    path = tmp_path_factory.mktemp("html") / "w.npz"
    np.savez(path, allow_pickle=False, **{NASTY: VALUES})
    histogram = pl.ExponentHistogram.of(VALUES)
    objects = [
        pl.accumulate(np.ones(600), "bf16"),
        histogram.conversion("fp16", 4),
        histogram,
        pl.get_format("fp16"),
        scan_frozen(path, [1e-3]),
        scan_updates(path, path),
        pl.audit_hyperparameters("bf16", lr=1e-4),
        pl.inspect_number(1e-7, "fp16"),
        pl.plan_loss_scale(histogram, "fp16"),
        plan_tensors([(NASTY, histogram)], "fp16"),
        pl.memory_ledger(pl.StorageConfig.parse("master_bf16"), Adam(1e-3), 1000),
        pl.replay_loss_scale(pl.DynamicLossScale.torch(), [0.5, 1e9, 1.0], "fp16"),
        pl.scan(path),
        pl.stagnation(pl.Series.counting(), "bf16"),
        pl.StorageConfig.parse("pure_bf16"),
        sum_tensors(path, "bf16"),
        pl.swamping_thresholds("bf16"),
        pl.train(pl.TrainingConfig(steps=20)),
        pl.update_report([1.0, 1.0], [1e-3, 1e-2], "bf16"),
        pl.quantization_report([1.1, -2.3], "bf16"),
        accumulation.run(accumulation.AccumulationConfig(exponents=(2, 3), seeds=1, shown=8)),
        loss_scaling.run(
            loss_scaling.LossScalingConfig(
                seeds=1, more_seeds=1, steps=6, factors=(0,), products=(0, 4), judged=(), starts=(4,), accident_steps=9,
                accidents=(loss_scaling.Accident("burst", 1, loss_factor=4.0),),
            )
        ),
        storage.run(
            storage.StorageExperimentConfig(
                ("pure_bf16",), seeds=1, more_seeds=1, base=pl.TrainingConfig(steps=10), miniatures=(), sections=(),
                axes=(),
            )
        ),
        swamping.run(swamping.SwampingConfig(steps=9, batches=1, most_terms=1000)),
        underflow.run(underflow.UnderflowConfig(transformer_steps=2, steps=9, batches=1, seeds=1, more_seeds=1)),
        averages.run(averages.AveragesConfig(steps=4, decays=(0.9,), decay_steps=10)),
        hyperparameters.run(),
        memory.run(),
        claims.run(claims.ClaimsConfig(("fp16-1e-7", "right-shift"))),
        pl.preflight({NASTY: np.ones((8, 8))}, lr=1e-3),
        TrainingComparison(
            pl.TrainingConfig(steps=2), NASTY, np.ones(2), np.ones(2), (), (), np.zeros(2), (), 0.5, 0.5
        ),
    ]  # fmt: skip
    return {type(x): x for x in objects}


def test_every_class_shows_itself_without_being_asked(every: dict[type, object]) -> None:
    assert {*every} == shown_classes(), "a class that is shown must be among the objects of this test"
    for shown, value in every.items():
        text = value._repr_html_()  # type: ignore[attr-defined]
        page = Page(text)
        assert "table" in page.tags, shown
        assert text == value._repr_html_(), "the same every time"  # type: ignore[attr-defined]
        for table in tables_of(value):
            for line in (table.columns, *table.rows, table.totals or ()):
                for cell in line:
                    assert cell in page.cells, (shown, cell)


def test_names_of_tensors_are_text(every: dict[type, object]) -> None:
    named = [x for x in every.values() if any(NASTY in row for table in tables_of(x) for row in table.rows)]
    assert len(named) == 6
    for value in named:
        text = notebook.to_html(value)
        assert "<script" not in text
        assert NASTY in Page(text).cells


@pytest.mark.parametrize("place", ["title", "columns", "rows", "totals", "note"])
def test_everything_in_a_table_is_escaped(place: str) -> None:
    parts: dict[str, object] = {"title": "t", "columns": ("bits", "severity"), "rows": (("0 01 1", "fatal"),)}
    parts[place] = {"columns": (NASTY, NASTY), "rows": ((NASTY, NASTY),), "totals": (NASTY, NASTY)}.get(place, NASTY)
    text = Table(**parts)._repr_html_()  # type: ignore[arg-type]
    assert not {*Page(text).tags} & {"script", "img", "a"}
    assert "&lt;script&gt;" in text


def test_a_loss_scale_without_a_text_can_be_shown() -> None:
    storage = pl.StorageConfig(weights=pl.get_format("fp16"), loss_scale=pl.DynamicLossScale.torch(window=7))
    run = pl.train(pl.TrainingConfig(steps=3, storage=storage))
    for value in (storage, run, pl.memory_ledger(storage, Adam(1e-3), 10)):
        assert "weights=fp16, ..., loss_scale=DynamicLossScale" in notebook.to_html(value)


def test_a_code_and_a_severity_keep_their_text() -> None:
    assert "0 01111 0000000000" in Page(notebook.to_html(pl.inspect_number(1.0, "fp16"))).cells
    assert Page(notebook.to_html(pl.audit_hyperparameters("bf16", beta2=0.999))).cells.count("fatal") >= 1


def test_the_picture_of_a_format_has_a_box_a_bit() -> None:
    for fmt in pl.FORMATS.values():
        (picture,) = pictures(notebook.layout_picture(fmt))
        assert len(bars(picture)) == fmt.bits


def test_the_picture_of_a_histogram_has_a_bar_a_binade() -> None:
    histogram = pl.ExponentHistogram.of([0, 0, 1, 1, 1, 1, 2.5, 1e-30])
    (picture,) = pictures(notebook.histogram_picture(histogram))
    zero, tiny, one, two = bars(picture)
    assert zero == pytest.approx(one / 2, abs=0.1)
    assert two == pytest.approx(one / 4, abs=0.1)
    assert two == tiny
    (picture,) = pictures(notebook.histogram_picture(pl.ExponentHistogram.of([8.0] + [1.0] * 10_000)))
    assert min(bars(picture)[1:]) == 1, "one in ten thousand can be seen"


@pytest.mark.parametrize("values", [[], [0.0], [np.nan], [5e-324], [1e308, 5e-324]])
def test_histograms_of_little(values: list[float]) -> None:
    histogram = pl.ExponentHistogram.of(np.array(values))
    assert Page(notebook.to_html(histogram)).cells
    assert len(pictures(notebook.to_html(histogram))) == bool(histogram.nonzero)
    assert not any(math_word in notebook.histogram_picture(histogram) for math_word in ("nan", "inf"))


def test_nothing_is_promised_for_other_objects() -> None:
    with pytest.raises(TypeError, match="no table of a int"):
        notebook.to_html(7)
