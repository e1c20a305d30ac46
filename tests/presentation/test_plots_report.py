"""The drawings that came with the report: the classics, the ledgers, the usual settings; and what all figures share."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.experiments import hyperparameters, memory
from precision_lab.experiments.memory import MemoryResult
from precision_lab.experiments.paired import Finding
from precision_lab.experiments.storage import Setting, StorageExperimentConfig, StorageResult
from precision_lab.presentation.plots.hyperparameters import usual_settings_figure
from precision_lab.presentation.plots.memory import memory_figure, plot_memory, plot_ranks
from precision_lab.presentation.plots.storage import (
    FINDING_COLORS,
    descent_quality_figure,
    plot_axis,
    plot_descent_curves,
    plot_horizon,
    plot_horizon_losses,
    plot_learning_curves,
    plot_ratios,
    storage_figure,
    storage_questions_figure,
    training_figure,
)
from precision_lab.presentation.plots.style import FATE_COLORS, plain_ticks, say_quick
from precision_lab.presentation.plots.underflow import plot_gradient_histogram
from precision_lab.training.memory import bytes_of
from tests.presentation.axes import texts
from tests.presentation.stored import BREAKS, UNDECIDED, judged, made_up

mpl.use("Agg")


@pytest.fixture(scope="module")
def ledgers() -> MemoryResult:
    return memory.run()


@pytest.fixture(scope="module")
def stored() -> StorageResult:
    return made_up(
        StorageExperimentConfig(
            configurations=("master_bf16", "pure_bf16", "collage_plus", "pure_fp16", "fp8_hybrid"),
            settings=(Setting("sgd", 0.01), Setting("adam", 1e-3)),
        )
    )


@pytest.fixture(scope="module")
def bare() -> StorageResult:
    """One training, and nothing beside it: what `train` and quick runs have."""
    settings = (Setting("adam", 1e-3),)
    return made_up(StorageExperimentConfig(("pure_bf16",), settings, seeds=1, miniatures=(), sections=(), axes=()))


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


def lines_of(ax: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in ax.lines}


def test_descent_curves_are_those_of_the_runs(stored: StorageResult) -> None:
    outcomes = stored.outcomes["Adam, lr 0.001"]
    drawn = lines_of(plot_descent_curves(outcomes))
    for outcome in outcomes:
        run, line = outcome.runs[0], drawn[outcome.label]
        assert np.asarray(line.get_xdata()).tolist() == run.middles
        np.testing.assert_array_equal(np.asarray(line.get_ydata()), run.edq_ratios)
        second = drawn.get(f"_{outcome.label}, fp32's step")
        if outcome.label == "pure_fp16":
            assert second is None  # it was not measured
        else:
            assert second is not None
            np.testing.assert_array_equal(np.asarray(second.get_ydata()), run.edq_ratios_fp32)
            assert (second.get_color(), second.is_dashed()) == (line.get_color(), True)
    widths = [drawn[outcome.label].get_linewidth() for outcome in outcomes]
    assert widths == sorted(widths, reverse=True)  # none hides another
    figure = descent_quality_figure(stored)
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(stored.outcomes)
    assert len({ax.get_ylim() for ax in figure.axes}) == 1


def test_learning_curves_are_those_of_the_runs(stored: StorageResult) -> None:
    outcomes = stored.miniatures["characters"]
    ax = plot_learning_curves(outcomes, schedule=True)
    for outcome in outcomes:
        assert np.asarray(lines_of(ax)[outcome.label].get_ydata()).tolist() == list(outcome.runs[0].losses)
    (rate,) = ax.collections
    heights = np.asarray(rate.get_paths()[0].vertices)[:, 1].tolist()
    config = outcomes[0].runs[0].config
    assert max(heights) == 1  # the learning rate, as a share of its largest
    assert config.schedule.factor(500, config.steps) in heights
    assert not plot_learning_curves(outcomes).collections


def test_ratios_are_drawn_with_their_intervals(stored: StorageResult) -> None:
    outcomes = stored.outcomes["Adam, lr 0.001"]
    ax = plot_ratios(outcomes)
    drawn = lines_of(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == [o.label for o in outcomes[1:]]
    for row, outcome in enumerate(outcomes[1:]):
        ratio, dot = outcome.paired, drawn[f"_{outcome.label}"]
        assert dot.get_color() == FINDING_COLORS[ratio.finding]
        assert np.asarray(dot.get_ydata()).tolist() == [row]
        if ratio.comparable:
            assert np.asarray(dot.get_xdata()).tolist() == [ratio.ratio]
            bar = np.asarray(drawn[f"_{outcome.label}, interval"].get_xdata()).tolist()
            assert bar == [ratio.low, ratio.high]
            left, right = ax.get_xlim()
            assert left < ratio.low <= ratio.high < right
    assert {o.finding for o in outcomes[1:]} == set(Finding) - {Finding.ENDS_LOWER}
    assert texts(ax) == ["inf or NaN"]
    (band,) = ax.patches
    assert band.get_x() == pytest.approx(1 / 1.03)  # type: ignore[attr-defined]
    assert band.get_width() == pytest.approx(1.03 - 1 / 1.03)  # type: ignore[attr-defined]


def test_one_seed_has_no_interval_and_is_not_decided(bare: StorageResult) -> None:
    (outcomes,) = bare.outcomes.values()
    drawn = lines_of(plot_ratios(outcomes))
    assert drawn["_pure_bf16"].get_color() == FINDING_COLORS[Finding.NOT_DECIDED]
    assert "_pure_bf16, interval" not in drawn
    with pytest.raises(ValueError, match="beside a control"):
        plot_ratios(outcomes[:1])


def test_a_finding_has_a_colour_of_its_own() -> None:
    assert set(FINDING_COLORS) == set(Finding)
    assert len(set(FINDING_COLORS.values())) == len(Finding)
    assert FINDING_COLORS[Finding.LOSES] == FATE_COLORS["flushed"]


def test_ratios_along_an_axis(stored: StorageResult) -> None:
    groups = stored.axes["beta2"]
    ax = plot_axis(groups, name="beta2")
    assert [label.get_text() for label in ax.get_xticklabels()] == list(groups)
    for label in ("bf16_stochastic", "pure_bf16"):
        line = lines_of(ax)[f"_{label}"]
        ratios = [o.paired.ratio for group in groups.values() for o in group if o.label == label]
        assert np.asarray(line.get_xdata()).tolist() == list(range(len(groups)))
        assert np.asarray(line.get_ydata()).tolist() == ratios
    assert [to_hex(str(dot.get_markerfacecolor())) == "#ffffff" for dot in dots(ax)].count(True) == 0
    undecided = {"0.9": judged(pure_bf16=UNDECIDED), "0.99": judged(pure_bf16=BREAKS)}
    ax = plot_axis(undecided)
    assert [to_hex(str(dot.get_markerfacecolor())) for dot in dots(ax)] == ["#ffffff"]  # what breaks has no place


def dots(ax: Axes) -> list[Line2D]:
    return [line for line in ax.lines if line.get_marker() == "o" and len(np.asarray(line.get_xdata())) == 1]


def test_the_horizon_has_the_ratios_and_the_losses(stored: StorageResult) -> None:
    group = stored.sections["horizon"]
    ratios, losses = lines_of(plot_horizon(group)), lines_of(plot_horizon_losses(group))
    pure = next(o for o in group if o.label == "pure_bf16")
    along = {**pure.paired_after, pure.runs[0].config.steps: pure.paired}
    expected = [ratio.ratio for ratio in along.values()]
    assert np.asarray(ratios["_pure_bf16"].get_ydata()).tolist() == expected
    assert expected[0] < expected[-1]
    means = [float(np.mean(ratio.losses)) for ratio in along.values()]
    assert np.asarray(losses["pure_bf16"].get_ydata()) == pytest.approx(means)
    assert pure.stalls
    assert pure.settled is not None
    crosses = [line for line in plot_horizon_losses(group).lines if line.get_marker() == "x"]
    assert [float(np.asarray(cross.get_xdata())[0]) for cross in crosses] == [
        o.settled.step for o in group if o.stalls and o.settled
    ]


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


def test_every_axis_of_the_new_figures_is_labelled(
    stored: StorageResult, bare: StorageResult, ledgers: MemoryResult
) -> None:
    figures = [memory_figure(ledgers)]
    for result in (stored, bare):
        figures += [storage_figure(result), storage_questions_figure(result), descent_quality_figure(result)]
        figures.append(training_figure(result))
    for figure in figures:
        for ax in figure.axes:
            assert ax.get_xlabel(), ax.get_title(loc="left")
        assert figure.axes[0].get_ylabel()


def test_the_page_of_storage_begins_with_the_miniatures(stored: StorageResult, bare: StorageResult) -> None:
    figure = storage_figure(stored)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[:4:2] == ["Fine-tuning", "Characters"]
    assert titles.index("Characters") < titles.index("SGD, lr 0.01") < titles.index("By Adam's beta2")
    width, height = figure.get_size_inches()
    assert width <= 14
    assert height <= 13
    assert [ax.get_title(loc="left") for ax in storage_figure(bare).axes] == ["Adam, lr 0.001"]


def test_buffers_are_told_apart() -> None:
    from precision_lab.presentation.plots.memory import BUFFER_COLORS

    assert all(to_hex(color).upper() == color.upper() for color in BUFFER_COLORS.values())
    apart = {name: color for name, color in BUFFER_COLORS.items() if name != "compensation"}  # never beside a word
    assert len(set(apart.values())) == len(apart)
