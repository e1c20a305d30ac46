"""The drawings that came with the report: the classics, the ledgers, the usual settings; and what all figures share."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.experiments import hyperparameters, memory, storage
from precision_lab.experiments.memory import MemoryResult
from precision_lab.experiments.storage import Setting, StorageExperimentConfig, StorageResult
from precision_lab.presentation.plots.hyperparameters import usual_settings_figure
from precision_lab.presentation.plots.memory import memory_figure, plot_memory, plot_ranks
from precision_lab.presentation.plots.storage import (
    descent_quality_figure,
    plot_descent_curves,
    plot_learning_curves,
    storage_figure,
)
from precision_lab.presentation.plots.style import FATE_COLORS, plain_ticks, say_quick
from precision_lab.presentation.plots.underflow import plot_gradient_histogram
from precision_lab.training.memory import bytes_of

mpl.use("Agg")


@pytest.fixture(scope="module")
def ledgers() -> MemoryResult:
    return memory.run()


@pytest.fixture(scope="module")
def stored() -> StorageResult:
    return storage.run(
        StorageExperimentConfig(
            configurations=("master_bf16", "pure_bf16", "collage_plus"),
            settings=(Setting("sgd", 0.01), Setting("adam", 1e-3)),
            seeds=1,
            steps=80,
            hidden=(4,),
            sections=(),
        )
    )


def test_the_gradient_histogram_names_the_regions_of_the_format() -> None:
    values = [0.0] * 60 + [2.0**-30] * 10 + [2.0**-20] * 20 + [2.0**-10] * 10
    ax = plot_gradient_histogram(ExponentHistogram.of(values))
    lines = {str(line.get_label()): line for line in ax.lines}
    for name, fate, left, right in (
        ("_becomes zero in fp16", "flushed", -31, -25),
        ("_becomes subnormal", "subnormal", -25, -14),
        ("_is kept", "kept", -14, -9),
    ):
        assert np.asarray(lines[name].get_xdata()).tolist() == pytest.approx([left + 0.1, right - 0.1])
        assert lines[name].get_color() == FATE_COLORS[fate]  # type: ignore[index]
    assert np.asarray(lines["_unused range of fp16"].get_xdata())[0] == pytest.approx(-8.9)
    texts = [text.get_text() for text in ax.texts]
    assert "becomes zero in fp16\n25 % of non-zero" in texts
    assert "becomes subnormal\n50 % of non-zero" in texts
    assert "60 %" in texts  # the bin of the zeros, of all
    assert ax.get_legend() is None


def test_descent_curves_are_those_of_the_runs(stored: StorageResult) -> None:
    outcomes = stored.outcomes["SGD, lr 0.01"]
    ax = plot_descent_curves(outcomes)
    drawn = {str(line.get_label()): line for line in ax.lines}
    for outcome in outcomes:
        assert np.asarray(drawn[outcome.label].get_ydata()).tolist() == list(outcome.runs[0].edq_ratios)
        assert np.asarray(drawn[outcome.label].get_xdata()).tolist() == [10, 30, 50, 70]
    assert outcomes[0].runs[0].edq_ratios == pytest.approx([1] * 4, abs=0.01)
    widths = [drawn[outcome.label].get_linewidth() for outcome in outcomes]
    assert widths == sorted(widths, reverse=True)  # none hides another
    figure = descent_quality_figure(stored)
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(stored.outcomes)
    assert len({ax.get_ylim() for ax in figure.axes}) == 1


def test_learning_curves_are_those_of_the_runs(stored: StorageResult) -> None:
    outcomes = stored.outcomes["Adam, lr 0.001"]
    drawn = {str(line.get_label()): line for line in plot_learning_curves(outcomes).lines}
    for outcome in outcomes:
        assert np.asarray(drawn[outcome.label].get_ydata()).tolist() == list(outcome.runs[0].losses)


def test_bars_of_memory_are_the_bytes_of_the_buffers(ledgers: MemoryResult) -> None:
    ax = plot_memory(ledgers.shown)
    for row, ledger in enumerate(ledgers.shown.values()):
        boxes = [box for box in ax.patches if round(box.get_y() + 0.36, 6) == row]  # type: ignore[attr-defined]
        sizes = [bytes_of(buffer.format) for buffer in (*ledger.buffers, *ledger.casts)]
        dashed = [box.get_linestyle() in ("--", "dashed") for box in boxes]
        assert dashed == [False] * len(ledger.buffers) + [True] * len(ledger.casts)
        assert [box.get_width() for box in boxes] == sizes  # type: ignore[attr-defined]
        assert [box.get_x() for box in boxes] == [sum(sizes[:i]) for i in range(len(sizes))]  # type: ignore[attr-defined]
        peak = f", at the peak {ledger.peak_bytes_per_parameter}" if ledger.casts else ""
        assert f"{ledger.bytes_per_parameter}{peak}" in [
            text.get_text() for text in ax.texts if text.get_position()[1] == row
        ]
    legend = ax.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert len(set(names)) == len(names) == 10
    with pytest.raises(ValueError, match="no ledgers"):
        plot_memory({})


def test_ranks_hold_what_the_ledgers_say(ledgers: MemoryResult) -> None:
    ax = plot_ranks(ledgers.shown, 8)
    for stage, line in enumerate(ax.lines):
        expected = [ledger.per_rank(8, stage) / 2**30 for ledger in ledgers.shown.values()]
        assert np.asarray(line.get_xdata()).tolist() == expected


def test_the_usual_settings_have_a_table_each_and_the_stairs() -> None:
    result = hyperparameters.run()
    figure = usual_settings_figure(result)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [*result.audits, "The stairs end where beta becomes 1"]
    cells = [text.get_text() for text in figure.axes[0].texts]
    # held: beta2 in bf16 and fp8, 1 - lr*weight_decay everywhere; and v, which never decays, there and as torch has it
    assert cells.count("1  fatal") == 2 + 3 + 4
    assert cells.count("0.99999  fatal") == 3  # torch holds the factor, and no weight decays
    marks = [line for line in figure.axes[-1].lines if line.get_label() == "_asked"]
    assert [round(float(np.asarray(line.get_xdata())[0])) for line in marks] == [10, 20, 1000]


def test_a_quick_figure_says_so() -> None:
    figure = Figure()
    figure.suptitle("Numbers", x=0.01, ha="left")
    say_quick(figure)
    assert figure.get_suptitle() == "Numbers (quick run)"


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.3, 2.5, ["0.5", "1", "2"]),
        (0.05, 15, ["0.1", "0.3", "1", "3", "10"]),
        (1e-3, 1e3, ["0.01", "1", "100"]),
        (1e-7, 1e-3, ["$10^{-7}$", "$10^{-6}$", "$10^{-5}$", "0.0001", "0.001"]),
    ],
)
def test_plain_ticks(low: float, high: float, labels: list[str]) -> None:
    ax = Figure().add_subplot()
    ax.set_yscale("log")
    plain_ticks(ax.yaxis, low, high)
    places = ax.yaxis.get_majorticklocs().tolist()
    assert ax.yaxis.get_major_formatter().format_ticks(places) == labels
    assert all(low <= place <= high for place in places)


def test_every_axis_of_the_new_figures_is_labelled(stored: StorageResult, ledgers: MemoryResult) -> None:
    for figure in (storage_figure(stored), descent_quality_figure(stored), memory_figure(ledgers)):
        for ax in figure.axes:
            assert ax.get_xlabel(), ax.get_title(loc="left")
        assert figure.axes[0].get_ylabel()


def test_buffers_are_told_apart() -> None:
    from precision_lab.presentation.plots.memory import BUFFER_COLORS

    assert all(to_hex(color).upper() == color.upper() for color in BUFFER_COLORS.values())
    apart = {name: color for name, color in BUFFER_COLORS.items() if name != "compensation"}  # never beside a word
    assert len(set(apart.values())) == len(apart)
