"""What is drawn is checked against the results: heights, places and words, not pixels."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.loss_scale_plan import Covers, plan_loss_scale, plan_tensors
from precision_lab.analysis.loss_scale_replay import replay_loss_scale
from precision_lab.analysis.loss_scalers import DynamicLossScale
from precision_lab.experiments.paired import PairedRatio
from precision_lab.experiments.underflow import GROUPS, UnderflowConfig, UnderflowResult, run
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.presentation.plots.histograms import plot_exponent_histogram
from precision_lab.presentation.plots.loss_scaling import (
    loss_scale_figure,
    plot_loss_scale,
    plot_loss_scale_plan,
    plot_loss_scale_windows,
    plot_scale_trace,
    scale_trace_figure,
)
from precision_lab.presentation.plots.style import FATE_COLORS, save_figure
from precision_lab.presentation.plots.underflow import plot_flushed_table, underflow_figure
from precision_lab.support.files import OutputError
from tests.presentation.axes import bars, texts

mpl.use("Agg")


@pytest.fixture(scope="module")
def result() -> UnderflowResult:
    return run(UnderflowConfig(transformer_steps=2, steps=60, batches=3, seeds=1, more_seeds=1))


@pytest.fixture(scope="module")
def page(result: UnderflowResult) -> Figure:
    return underflow_figure(result)


def saved(figure: Figure, folder: Path) -> dict[str, bytes]:
    """Lay it out, once, for that takes most of the time, and save it in two formats."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for suffix in (".png", ".svg"):
        save_figure(figure, folder / f"figure{suffix}")
    return {file.suffix: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def pictures(page: Figure, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return saved(page, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def histogram() -> ExponentHistogram:
    """Two zeros, an infinity, and 2^-30, 2^-20, 2^-20, 2^-10, 1, 2^20: one of each fate in fp16 and more."""
    return ExponentHistogram.of([0, 0, np.inf, 2.0**-30, 2.0**-20, 2.0**-20, 2.0**-10, 1, 2.0**20])


def lines(ax: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in ax.lines}


def x_of(line: Line2D) -> float:
    low, high = np.asarray(line.get_xdata(), float)
    assert low == high
    return float(low)


def colors(ax: Axes) -> dict[float, str]:
    """Return the colours of the bars, by their left end."""
    (container,) = (c for c in ax.containers if c.get_label() == "_binades")
    assert isinstance(container, BarContainer)
    return {box.get_x(): to_hex(box.get_facecolor()).upper() for box in container.patches}


def ticks(ax: Axes, which: str = "x") -> dict[float, str]:
    axis = ax.xaxis if which == "x" else ax.yaxis
    places = axis.get_majorticklocs().tolist()
    return dict(zip(places, axis.get_major_formatter().format_ticks(places), strict=True))


def figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def legend_texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


class TestExponentHistogram:
    def test_bars_are_percent_of_all_elements_by_binade(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram)
        assert bars(ax) == pytest.approx({-30: 100 / 9, -20: 200 / 9, -10: 100 / 9, 0: 100 / 9, 20: 100 / 9})

    def test_all_bars_together_are_everything(self, result: UnderflowResult) -> None:
        ax = plot_exponent_histogram(result.stages[-1].histogram(GROUPS[1]))
        assert sum(bars(ax).values()) + sum(bars(ax, "_zero").values()) == pytest.approx(100)

    def test_zeros_have_a_bin_of_their_own_on_the_left(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram)
        ((x, height),) = bars(ax, "_zero").items()
        assert height == pytest.approx(200 / 9)
        assert ax.get_xlim()[0] < x < min(bars(ax)) - 1
        left, *_ = sorted(ticks(ax))
        assert x < left < -31
        assert ticks(ax)[left] == "0"

    def test_infinities_have_one_on_the_right(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram)
        ((x, height),) = bars(ax, "_nonfinite").items()
        assert height == pytest.approx(100 / 9)
        assert max(bars(ax)) + 1 < x < ax.get_xlim()[1]
        assert ticks(ax)[max(ticks(ax))] == "inf\nNaN"

    def test_and_none_where_there_are_none(self) -> None:
        ax = plot_exponent_histogram(ExponentHistogram.of([1.0, 0.0]))
        assert "_nonfinite" not in [c.get_label() for c in ax.containers]
        assert "inf\nNaN" not in ticks(ax).values()

    def test_share_of_nonzero_leaves_both_out(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram, share_of="nonzero")
        assert [c.get_label() for c in ax.containers] == ["_binades"]
        assert sum(bars(ax).values()) == pytest.approx(100)
        assert ax.get_ylabel() == "% of non-zero elements"

    def test_a_bin_that_is_too_tall_is_cut_and_says_its_share(self) -> None:
        ax = plot_exponent_histogram(ExponentHistogram.of([0.0] * 90 + [2.0**-e for e in range(10)]))
        assert list(bars(ax, "_zero").values()) == [pytest.approx(90)]
        assert ax.get_ylim()[1] < 10
        assert "90 %" in texts(ax)
        assert "_cut" in lines(ax)

    @pytest.mark.parametrize("loss_scale", [1, 65536.0])
    @pytest.mark.parametrize("name", ["fp16", "fp8_e4m3fn"])
    def test_limits_stand_where_the_format_has_them(
        self, histogram: ExponentHistogram, name: str, loss_scale: float
    ) -> None:
        ax = plot_exponent_histogram(histogram, formats=[name], loss_scale=loss_scale)
        fmt, drawn = FORMATS[name], lines(ax)
        assert x_of(drawn[f"_{name} flush"]) == np.log2(fmt.flush_threshold / loss_scale)
        assert x_of(drawn[f"_{name} normal"]) == np.log2(fmt.smallest_normal / loss_scale)
        assert x_of(drawn[f"_{name} overflow"]) == pytest.approx(np.log2(fmt.overflow_threshold / loss_scale))

    def test_limits_are_labelled(self, histogram: ExponentHistogram) -> None:
        assert {"fp16", "$2^{-25}$", "$2^{-14}$", "65,520"} <= set(
            texts(plot_exponent_histogram(histogram, formats="fp16"))
        )

    def test_several_formats_have_a_row_and_two_lines_each(self, histogram: ExponentHistogram) -> None:
        names = list(FORMATS)[2:12]
        ax = plot_exponent_histogram(histogram, formats=names)
        rows = [text for text in ax.texts if text.get_text() in names]
        assert [text.get_text() for text in rows] == names
        heights = [text.get_position()[1] for text in rows]
        assert heights == sorted(heights, reverse=True)
        in_range = [n for n in names if n != "bf16"]
        assert {label for label in lines(ax) if label.split(" ")[0][1:] in names} == {
            f"_{name} {end}" for name in in_range for end in ("flush", "overflow")
        }

    def test_limits_out_of_range_are_arrows(self) -> None:
        near = plot_exponent_histogram(ExponentHistogram.of([1.0]), formats=["bf16"])
        assert {"◂ $2^{-134}$", "$2^{128}$ ▸"} <= set(texts(near))
        assert not any(label.startswith("_bf16") for label in lines(near))
        assert "◂ ends at 65,520" in texts(plot_exponent_histogram(ExponentHistogram.of([2.0**500]), formats=["fp16"]))
        assert "begins above $2^{-25}$ ▸" in texts(
            plot_exponent_histogram(ExponentHistogram.of([2.0**-500]), formats=["fp16"])
        )

    def test_one_format_colours_the_bars_by_their_fate(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram, formats=["fp16"])
        assert colors(ax) == {
            -30: FATE_COLORS["flushed"],
            -20: FATE_COLORS["subnormal"],
            -10: FATE_COLORS["kept"],
            0: FATE_COLORS["kept"],
            20: FATE_COLORS["overflowed"],
        }
        assert legend_texts(ax) == ["flushed 16.7 %", "subnormal 33.3 %", "kept 33.3 %", "overflowed 16.7 %"]

    @pytest.mark.parametrize("fmt", [FORMATS["fp16"], FORMATS["fp4_e2m1fn"], FloatFormat.ieee(5, 0)], ids=str)
    @pytest.mark.parametrize("loss_scale", [1, 2.0**-5])
    def test_fates_agree_with_the_conversion(self, fmt: FloatFormat, loss_scale: float) -> None:
        values = [1.25 * 2.0**e for e in range(-40, 40)]
        histogram = ExponentHistogram.of(values)
        ax = plot_exponent_histogram(histogram, formats=[fmt], loss_scale=loss_scale)
        c = histogram.conversion(fmt, loss_scale)
        counts = {"flushed": c.flushed, "subnormal": c.subnormal, "kept": c.kept, "overflowed": c.overflowed}
        assert {fate: list(colors(ax).values()).count(color) for fate, color in FATE_COLORS.items()} == counts

    def test_several_formats_do_not_unless_asked(self, histogram: ExponentHistogram) -> None:
        several = plot_exponent_histogram(histogram, formats=["fp16", "bf16"])
        assert len(set(colors(several).values())) == 1
        asked = plot_exponent_histogram(histogram, formats=["fp16", "bf16"], fate_in="fp16")
        assert colors(asked) == colors(plot_exponent_histogram(histogram, formats=["fp16"]))

    def test_a_chosen_range_says_what_it_leaves_out(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram, exponents=(-24, 4), share_of="nonzero")
        assert ax.get_xlim() == (-24, 4)
        assert [t.strip() for t in texts(ax)][-2:] == ["◂ 16.7 % further down", "16.7 % further up ▸"]

    def test_ticks_are_powers_of_two(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram, share_of="nonzero")
        assert len(ticks(ax)) >= 5
        assert all(label == f"$2^{{{x:.0f}}}$" for x, label in ticks(ax).items())

    def test_the_axes_given_are_the_axes_returned(self, histogram: ExponentHistogram) -> None:
        ax = Figure().add_subplot()
        assert plot_exponent_histogram(histogram, ax=ax, title="A title") is ax
        assert ax.get_title(loc="left") == "A title"
        assert pyplot.get_fignums() == []

    def test_without_axes_there_is_a_new_pyplot_figure(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram)
        assert pyplot.gcf() is ax.figure

    def test_labels_have_units(self, histogram: ExponentHistogram) -> None:
        ax = plot_exponent_histogram(histogram, loss_scale=1024)
        assert ax.get_ylabel() == "% of all elements"
        assert "before scaling by S = $2^{10}$" in ax.get_xlabel()

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ([], "no elements"),
            ([0.0] * 7, "all 7 elements are zero"),
            ([np.nan, 0.0], "no element is finite and non-zero"),
        ],
    )
    @pytest.mark.parametrize("options", [{}, {"share_of": "nonzero"}, {"formats": ["fp16"]}, {"formats": []}], ids=str)
    def test_nothing_to_draw_is_said(self, values: list[float], text: str, options: dict[str, Any]) -> None:
        ax = plot_exponent_histogram(ExponentHistogram.of(values), **options)
        assert text in texts(ax)
        figure_of(ax).draw_without_rendering()

    @pytest.mark.parametrize(
        "values",
        [[1.0], [2.0**-1074, 2.0**1023], 2.0 ** np.arange(-1000.0, 1001), [np.inf, 1.0]],
        ids=["single", "ends of float64", "wide", "infinity"],
    )
    def test_any_range_can_be_drawn_even_small(self, values: Any) -> None:
        figure = Figure(figsize=(4, 3), dpi=100, layout="constrained")
        histogram = ExponentHistogram.of(values)
        ax = plot_exponent_histogram(histogram, ax=figure.add_subplot(), formats=("fp16", "bf16"))
        figure.draw_without_rendering()
        assert sum(bars(ax).values()) == pytest.approx(100 * histogram.nonzero / histogram.count)
        low, high = ax.get_xlim()
        assert low < min(bars(ax)) <= max(bars(ax)) < high
        assert 3 <= len(ticks(ax)) <= 10

    def test_names_of_ten_formats_do_not_touch(self, histogram: ExponentHistogram) -> None:
        names = list(FORMATS)[:10]
        ax = plot_exponent_histogram(histogram, formats=names)
        figure = figure_of(ax)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in names]
        assert all(above.y0 > below.y1 for above, below in pairwise(boxes))
        assert all(box.x0 >= 0 and box.y1 <= figure.bbox.height for box in boxes)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"share_of": "some"}, "share_of must be one of all, nonzero, got 'some'"),
            ({"formats": ["fp17"]}, "unknown format 'fp17'"),
            ({"loss_scale": 1000}, "loss scale must be a power of two"),
            ({"exponents": (3, 3)}, "low < high"),
        ],
    )
    def test_bad_arguments(self, histogram: ExponentHistogram, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plot_exponent_histogram(histogram, **options)
        assert pyplot.get_fignums() == []


def conversions(*flushed_subnormal_overflowed: tuple[int, int, int], first: int = 0) -> list[Conversion]:
    return [
        Conversion(FORMATS["fp16"], 2.0 ** (first + k), 1000, 0, 0, flushed, subnormal, overflowed)
        for k, (flushed, subnormal, overflowed) in enumerate(flushed_subnormal_overflowed)
    ]


def draw(figure: Figure) -> None:
    figure.canvas.draw()


class TestLossScalePlan:
    def test_the_recommended_scale_has_a_line(self) -> None:
        ax = plot_loss_scale_plan(plan_loss_scale(ExponentHistogram.of([2.0**-26, 2.0**-10]), "fp16"))
        (line,) = (line for line in ax.lines if line.get_label() == "_recommended")
        assert np.asarray(line.get_xdata())[0] == 2.0**12  # the first at which none is subnormal
        assert "recommended: $2^{12}$" in texts(ax)
        assert "nothing overflows up to $2^{25}$" in texts(ax)

    @pytest.mark.parametrize("values", [[], [1.0], [1e300], [np.nan, 0.0]])
    def test_plans_that_have_nothing_to_recommend_are_drawn_too(self, values: list[float]) -> None:
        plans = plan_tensors([("a", ExponentHistogram.of(values))], "fp16")
        figure = loss_scale_figure(plans)
        assert len(figure.axes) == 2
        draw(figure)

    def test_windows_reach_from_sufficient_to_safe(self) -> None:
        tensors = {"saved": [2.0**-26, 1.0], "wide": [2.0**-60, 1.0], "nothing": [0.0]}
        plans = plan_tensors([(name, ExponentHistogram.of(x)) for name, x in tensors.items()], "fp16")
        ax = plot_loss_scale_windows(plans)
        assert [label.get_text() for label in ax.get_yticklabels()] == [n for n, _ in plans.tensors] + ["all together"]
        drawn = [
            (round(bar.get_y() + bar.get_height() / 2), bar.get_x() + 0.4, bar.get_x() + bar.get_width() - 0.4, color)
            for container in ax.containers
            if isinstance(container, BarContainer)
            for bar in container
            for color in [to_hex(bar.get_facecolor()).upper()]
        ]
        lost, saved = FATE_COLORS["flushed"], "#009E73"
        assert drawn == [
            (0, 15, pytest.approx(36), lost),
            (1, pytest.approx(2), 15, saved),
            (3, 15, pytest.approx(36), lost),
        ]
        assert "nothing to scale" in "".join(texts(ax))
        assert legend_texts(ax) == ["S = $2^{12}$", "no scale saves every element", "every element is saved"]

    def test_what_there_is_no_room_for_is_said(self) -> None:
        plans = plan_tensors([(f"t{i}", ExponentHistogram.of([1.0])) for i in range(30)], "fp16")
        ax = plot_loss_scale_windows(plans, most=5)
        assert len(ax.get_yticks()) == 6
        assert ax.get_ylabel() == "the 5 worst; 25 more are not shown"

    @pytest.mark.parametrize("covers", Covers)
    def test_the_page_says_what_it_covers_and_no_text_leaves_it(self, covers: Covers) -> None:
        plans = plan_tensors([("a", ExponentHistogram.of([2.0**-30, 1.0]))], "fp16", covers=covers)
        figure = loss_scale_figure(plans)
        draw(figure)
        shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        assert covers.sentence in [" ".join(text.get_text().split()) for text in shown]
        (title,) = (text for text in shown if text.get_text() == "Loss scaling in fp16: 2 nonzero elements")
        (words,) = (text for text in shown if covers.sentence == " ".join(text.get_text().split()))
        for text in (title, words):
            box = text.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert 0 <= box.y0 < box.y1 <= figure.bbox.y1

    def test_both_panels_of_the_page_have_the_same_scales(self) -> None:
        plans = plan_tensors(
            [("a", ExponentHistogram.of([2.0**-30, 1.0])), ("b", ExponentHistogram.of([2.0**-9]))], "fp16"
        )
        curves, windows = loss_scale_figure(plans).axes
        assert np.log2(curves.get_xlim()) == pytest.approx(windows.get_xlim())
        assert np.log2(curves.get_xticks()) == pytest.approx(windows.get_xticks())


class TestScaleTrace:
    def test_scales_limits_and_skipped_steps(self) -> None:
        trace = replay_loss_scale(DynamicLossScale.torch(window=2), [1.0, 0.5, 0.25, np.nan, 0.0, 2.0], "fp16")
        ax = plot_scale_trace(trace)
        scale = lines(ax)["loss scale"]
        assert list(np.asarray(scale.get_xdata())) == list(range(7))
        assert list(np.asarray(scale.get_ydata()))[:-1] == list(np.log2(trace.loss_scales))
        skipped = lines(ax)["skipped step"]
        assert list(np.asarray(skipped.get_xdata())) == [i for i, s in enumerate(trace.skipped) if s]
        limits = np.asarray(lines(ax)["each step overflows from here"].get_ydata(), dtype=float)
        edge = np.log2(65520)
        np.testing.assert_array_equal(limits, [edge, edge + 1, edge + 2, np.nan, np.nan, edge - 1])
        assert ax.get_title(loc="left") == f"torch: {trace.skipped_steps} of 6 steps skipped"

    def test_the_end_of_a_run_is_shaded_and_told(self) -> None:
        trace = replay_loss_scale(DynamicLossScale.deepspeed(4.0), [np.inf] * 20, "fp16")
        ax = plot_scale_trace(trace)
        (ended,) = (patch for patch in ax.patches if patch.get_label() == "_ended")
        assert ended.get_extents().transformed(ax.transData.inverted()).x0 == pytest.approx(trace.steps)
        assert trace.reason in texts(ax)

    def test_several_scalers_share_the_steps_and_one_legend(self) -> None:
        steps = list(np.geomspace(1e-3, 1e3, 50))
        traces = [replay_loss_scale(s, steps, "fp16") for s in (DynamicLossScale.torch(), DynamicLossScale.megatron())]
        upper, lower = scale_trace_figure(traces).axes
        assert upper.get_xlim() == lower.get_xlim()
        assert upper.get_legend() is not None
        assert lower.get_legend() is None
        assert lower.get_xlabel() == "step"

    def test_a_single_step_is_drawn(self) -> None:
        draw(scale_trace_figure([replay_loss_scale(DynamicLossScale.torch(), [0.0], "fp16")]))


class TestLossScale:
    def test_curves_are_the_conversions(self, result: UnderflowResult) -> None:
        curves = result.conversions["end"][GROUPS[1]]["fp8_e4m3fn"]
        ax = plot_loss_scale(curves)
        for fate in ("flushed", "subnormal", "overflowed"):
            line = lines(ax)[fate]
            assert list(np.asarray(line.get_xdata())) == [c.loss_scale for c in curves]
            assert list(np.asarray(line.get_ydata())) == [100 * getattr(c, f"{fate}_of_nonzero") for c in curves]

    def test_number_of_lines(self) -> None:
        ax = plot_loss_scale(conversions((5, 5, 0), (1, 1, 0)))
        assert set(lines(ax)) == {"flushed", "subnormal", "overflowed", "_S=1", "_best"}
        assert legend_texts(ax) == ["flushed", "overflowed", "subnormal"]

    def test_the_window_ends_with_the_last_scale_at_which_nothing_overflows(self) -> None:
        ax = plot_loss_scale(conversions((5, 0, 0), (3, 0, 0), (2, 0, 0), (1, 0, 9)))
        (window,) = (patch for patch in ax.patches if patch.get_label() == "_window")
        assert window.get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx([1, 4])
        assert "nothing overflows up to $2^{2}$" in texts(ax)

    def test_and_there_is_none_if_something_always_does(self) -> None:
        ax = plot_loss_scale(conversions((0, 0, 1), (0, 0, 2)))
        assert not ax.patches
        assert not any("nothing" in text for text in texts(ax))

    def test_marks(self) -> None:
        ax = plot_loss_scale(conversions((50, 0, 0), (30, 0, 0), (10, 0, 5), (9, 0, 100)))
        assert "S = 1: 5 %" in texts(ax)
        assert "S = $2^{2}$ loses least: 1.5 %" in texts(ax)
        (best,) = lines(ax)["_best"].get_xydata().tolist()  # type: ignore[union-attr]
        assert best == [4, pytest.approx(1)]

    def test_the_best_is_that_of_the_result(self, result: UnderflowResult) -> None:
        ax = plot_loss_scale(result.conversions["end"][GROUPS[1]]["fp8_e4m3fn"])
        best = result.best_loss_scale("end", GROUPS[1], "fp8_e4m3fn")
        assert np.asarray(lines(ax)["_best"].get_xdata())[0] == best.loss_scale

    def test_scales_need_not_include_one(self) -> None:
        ax = plot_loss_scale(conversions((5, 0, 0), (3, 0, 0), first=4))
        assert "_S=1" not in lines(ax)
        assert ax.get_xlim()[0] > 8

    def test_zero_and_a_single_element_can_be_told_apart(self) -> None:
        ax = plot_loss_scale(conversions((1, 0, 0), (0, 0, 0)))  # 1 of 1000 is 0.1 %
        assert list(ticks(ax, "y").values()) == ["0", "0.1", "1", "10", "100"]
        heights = ax.transData.transform([(1, 0), (1, 0.1), (1, 1)])[:, 1]
        assert heights[1] - heights[0] > 0.4 * (heights[2] - heights[1])

    def test_drawn_again_on_the_same_axes(self) -> None:
        ax = plot_loss_scale(conversions((5, 0, 0), (3, 0, 0)), label="start")
        assert plot_loss_scale(conversions((9, 0, 0), (8, 0, 0)), label="end", ax=ax, title="Both") is ax
        assert lines(ax)["flushed (start)"].get_marker() != lines(ax)["flushed (end)"].get_marker()
        assert len(legend_texts(ax)) == 6

    def test_ticks_and_labels(self, result: UnderflowResult) -> None:
        ax = plot_loss_scale(result.conversions["end"][GROUPS[1]]["fp16"])
        assert ax.get_xlabel() == "loss scale S"
        assert ax.get_ylabel() == "% of non-zero elements"
        assert all(label == f"$2^{{{np.log2(x):.0f}}}$" for x, label in ticks(ax).items())

    def test_nothing_but_zeros(self) -> None:
        ax = plot_loss_scale([ExponentHistogram.of([0.0]).conversion("fp16")])
        figure_of(ax).draw_without_rendering()

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="no conversions"):
            plot_loss_scale([])
        histogram = ExponentHistogram.of([1.0])
        with pytest.raises(ValueError, match="one format, got bf16, fp16"):
            plot_loss_scale([histogram.conversion("fp16"), histogram.conversion("bf16")])


class TestUnderflowFigure:
    def test_pyplot_does_not_know_it(self, page: Figure) -> None:
        assert pyplot.get_fignums() == []
        assert page.get_size_inches().tolist() == [11, 9]

    def test_title(self, page: Figure) -> None:
        assert page.get_suptitle() == "Gradients of a digits MLP: what each format flushes to zero"

    def test_histograms_are_those_of_the_stages(self, page: Figure, result: UnderflowResult) -> None:
        panels = [ax for ax in page.axes if "gradients," in ax.get_title(loc="left")]
        assert len({panel.get_xlim() for panel in panels}) == 1
        for panel, stage in zip(panels, result.stages, strict=True):
            histogram = stage.histogram("activation gradients")
            assert stage.name in panel.get_title(loc="left")
            expected = {e: 100 * n / histogram.count for e, n in histogram.binades.items() if n}
            assert bars(panel) == pytest.approx(expected)

    def test_every_axis_is_labelled(self, page: Figure) -> None:
        for ax in page.axes:
            if ax.axison:
                assert ax.get_ylabel()
                outer = ax.get_subplotspec()
                assert outer is not None
                assert ax.get_xlabel() or not outer.is_last_row()  # panels with the x axis of the one below

    def test_each_format_has_a_row_in_the_ruler(self, page: Figure, result: UnderflowResult) -> None:
        (ruler,) = (ax for ax in page.axes if not ax.axison)
        assert [text for text in texts(ruler) if text in FORMATS] == list(result.config.formats)

    def test_loss_scaling_of_the_first_format(self, page: Figure, result: UnderflowResult) -> None:
        for stage in ("start", "end"):
            (ax,) = (a for a in page.axes if a.get_title(loc="left") == f"Loss scaling in fp16, {stage}")
            curves = result.conversions[stage]["activation gradients"]["fp16"]
            assert list(np.asarray(lines(ax)["flushed"].get_ydata())) == [100 * c.flushed_of_nonzero for c in curves]

    def test_no_text_is_cut_off(self, page: Figure, pictures: dict[str, bytes]) -> None:
        assert pictures  # it is drawn
        width, height = page.bbox.width, page.bbox.height
        for ax in page.axes:
            box = ax.get_tightbbox()
            assert box is not None
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height

    def test_the_last_line_says_what_it_costs(self, page: Figure, result: UnderflowResult) -> None:
        words = page.get_supxlabel()
        for cost in (result.cost, result.cost_of_small):
            assert cost.text in words
        assert words.startswith("What flushing costs here: not decided; ")
        kept = replace(result, cost=PairedRatio((1.0, 1.001, 0.999), (1.0,) * 3))
        assert underflow_figure(kept).get_supxlabel().startswith("What flushing costs here: nothing; ")

    def test_other_formats_first(self) -> None:
        config = UnderflowConfig(
            transformer_steps=2, steps=12, batches=2, formats=("fp8_e5m2", "e6m9"), loss_scale_exponents=(0, 8),
            seeds=1, more_seeds=1,
        )  # fmt: skip
        figure = underflow_figure(run(config))
        figure.draw_without_rendering()
        assert "Loss scaling in fp8_e5m2, end" in [ax.get_title(loc="left") for ax in figure.axes]


class TestFlushedTable:
    def test_numbers_are_those_of_the_result(self, result: UnderflowResult) -> None:
        ax = plot_flushed_table(result)
        (image,) = ax.images
        cells = np.asarray(image.get_array())
        assert cells.shape == (len(result.config.formats), 6)
        for row, name in enumerate(result.config.formats):
            expected = [
                100 * result.unscaled(stage.name, group, name).flushed_of_nonzero
                for group in GROUPS
                for stage in result.stages
            ]
            assert cells[row].tolist() == expected
        assert len(ax.texts) == cells.size

    def test_zero_is_written_only_for_none(self) -> None:
        from precision_lab.presentation.plots.style import percent_label as _number

        assert [_number(x) for x in (0, 0.001, 0.0434, 4.981, 53.634, 99.97, 100)] == [
            "0", "<0.01", "0.04", "4.98", "53.6", ">99.9", "100"
        ]  # fmt: skip


class TestSaveFigure:
    @pytest.fixture
    def figure(self, histogram: ExponentHistogram) -> Figure:
        figure = Figure(figsize=(4, 3), layout="constrained")
        plot_exponent_histogram(histogram, ax=figure.add_subplot(), title="Saved")
        return figure

    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
    def test_the_same_figure_is_the_same_bytes(self, figure: Figure, tmp_path: Path, suffix: str) -> None:
        first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
        save_figure(figure, first)
        save_figure(figure, str(second))
        assert first.read_bytes() == second.read_bytes()
        assert sorted(tmp_path.iterdir()) == [first, second]

    def test_and_so_is_a_figure_made_anew(
        self, pictures: dict[str, bytes], result: UnderflowResult, tmp_path: Path
    ) -> None:
        assert saved(underflow_figure(result), tmp_path) == pictures

    def test_whatever_the_style_of_the_user(self, histogram: ExponentHistogram, tmp_path: Path) -> None:
        for name, style in (("plain", "default"), ("dark", "dark_background")):
            with mpl.style.context(style):
                ax = plot_exponent_histogram(histogram)
                save_figure(figure_of(ax), tmp_path / f"{name}.png")
        assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "dark.png").read_bytes()

    def test_nothing_of_the_day_or_the_software_is_in_it(self, figure: Figure, tmp_path: Path) -> None:
        for name in ("figure.png", "figure.svg"):
            save_figure(figure, tmp_path / name)
            content = (tmp_path / name).read_bytes()
            assert b"Software" not in content
            assert b"<dc:date>" not in content

    @pytest.mark.parametrize(
        ("error", "raised"), [(OSError("disk full"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)]
    )
    def test_failure_leaves_what_was_there(
        self,
        figure: Figure,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        raised: type[BaseException],
    ) -> None:
        path = tmp_path / "figure.png"
        path.write_bytes(b"older")

        def half(self: Figure, to: Path, **options: Any) -> None:
            Path(to).write_bytes(b"half of a")
            raise error

        monkeypatch.setattr(Figure, "savefig", half)
        with pytest.raises(raised):
            save_figure(figure, path)
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == b"older"

    @pytest.mark.parametrize("name", ["figure.gif", "figure", "png"])
    def test_unknown_suffix(self, figure: Figure, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=r"^[^\n]*: a figure is saved as \.png, \.svg, \.pdf; [^\n]*$"):
            save_figure(figure, tmp_path / name)
        assert list(tmp_path.iterdir()) == []


def test_the_style_of_the_user_is_left_alone(histogram: ExponentHistogram) -> None:
    before = mpl.rcParams.copy()
    plot_exponent_histogram(histogram)
    assert mpl.rcParams == before


def test_pyplot_is_loaded_with_the_first_figure_that_is_shown_and_matplotlib_with_this_module() -> None:
    code = """
import sys
import precision_lab
assert "matplotlib" not in sys.modules
from precision_lab.presentation.topics import load_topics
load_topics("precision_lab.presentation.plots")
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
