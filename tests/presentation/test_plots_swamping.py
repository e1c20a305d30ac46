"""The drawings of swamping are checked against the results: heights, places and words."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.transforms import Bbox

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.swamping_scan import scan_frozen, scan_updates
from precision_lab.analysis.updates import update_report
from precision_lab.experiments.swamping import SwampingConfig, SwampingResult, run
from precision_lab.presentation.plots.style import save_figure
from precision_lab.presentation.plots.swamping import (
    plot_descent_quality,
    plot_frozen_fraction,
    plot_stopping_sums,
    plot_update_ratios,
    swamping_figure,
    swamping_scan_figure,
)
from tests.presentation.axes import bars

mpl.use("Agg")


@pytest.fixture(scope="module")
def result() -> SwampingResult:
    return run(SwampingConfig(hidden=(8,), steps=60, batches=3, most_terms=5000))


def test_ratios_are_percent_by_binade_and_fate() -> None:
    weights = [1.0, 1, 1, 1, 1, 0, 0, 1, 1, np.nan]
    updates = [2.0**-8, -(2.0**-8), 2.0**-7, 2.0**-40, 2.0**30, 1, 2.0**-140, 0, 2.0**-9, 1]
    ax = plot_update_ratios(update_report(weights, updates, "bf16"))
    one = 100 / 9
    # 1 + 2^-8 is a tie and stays, 1 - 2^-8 is a value; the ends: far below, far above with the weights of zero
    assert bars(ax, "lost in bf16") == pytest.approx({-8: one, -9: one, -23: one, 2: one})
    assert bars(ax, "moves the weight") == pytest.approx({-8: one, -7: one, 2: 2 * one})
    assert bars(ax, "_zero") == pytest.approx({-25: one})
    assert sum(height for c in ax.containers for height in bars(ax, str(c.get_label())).values()) == pytest.approx(100)


def test_thresholds_stand_where_they_are() -> None:
    ax = plot_update_ratios(update_report([1.0], [1.0], "bf16"), formats=("bf16", "fp16"))
    bands = {p.get_label(): p.get_x() for p in ax.patches if str(p.get_label()).startswith(("_bf16", "_fp16"))}  # type: ignore[attr-defined]
    assert bands == {"_bf16": -9, "_fp16": -12}


def test_nothing_can_be_drawn() -> None:
    plot_update_ratios(update_report([], [], "bf16"))
    plot_frozen_fraction({"none": WeightGaps.of([], "bf16")}, [-3, -2])


def test_frozen_steps_are_the_shares() -> None:
    gaps = WeightGaps.of([1.0, 1.0, 1000.0, 0.0], "bf16")
    ax = plot_frozen_fraction({"four": gaps}, range(-12, 4), marks={"here": 0.5})
    (steps,) = (p for p in ax.patches if isinstance(p, StepPatch))
    values, edges, _ = steps.get_data()
    assert edges.tolist() == [2.0**k for k in range(-12, 5)]
    expected = {k: 100 * gaps.frozen(1.25 * 2.0**k).fraction for k in range(-12, 4)}
    assert values.tolist() == list(expected.values())
    assert expected[-12] == 75
    assert expected[3] == 0
    assert [line.get_xdata()[0] for line in ax.lines if line.get_label() == "_here"] == [0.5]  # type: ignore[index]


def test_running_sums_end_in_a_dot(result: SwampingResult) -> None:
    ones = [s for s in result.sums if s.end.series == "counting by 1"]
    ax = plot_stopping_sums(ones)
    dots = {str(line.get_label()): line.get_xydata().tolist() for line in ax.lines if "stops" in str(line.get_label())}  # type: ignore[union-attr]
    assert dots == {"_bf16 stops": [[256, 256]], "_fp16 stops": [[2048, 2048]]}
    assert "256" in [text.get_text() for text in ax.texts]
    assert ax.get_yscale() == "log"


def test_descent_quality_has_a_curve_a_format_and_optimizer(result: SwampingResult) -> None:
    ax = plot_descent_quality(result)
    curves = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in ax.lines}
    for fmt, (optimizer, _) in itertools.product(result.config.formats, result.config.runs):
        looks = [look for look in result.looks if look.optimizer == optimizer]
        even, random = (
            [look.reports[fmt][mode].edq_ratio for look in looks] for mode in ("ties_to_even", "stochastic")
        )
        assert curves[f"{fmt}, {optimizer}"] == even
        assert curves[f"_{fmt}, {optimizer}, stochastic"] == random


@pytest.fixture(scope="module")
def page(result: SwampingResult, tmp_path_factory: pytest.TempPathFactory) -> tuple[Figure, bytes]:
    """The page as it is after it has been saved, and what was saved."""
    figure, file = swamping_figure(result), tmp_path_factory.mktemp("page") / "a.png"
    save_figure(figure, file)
    return figure, file.read_bytes()


def test_the_page_is_whole_and_repeats(page: tuple[Figure, bytes], result: SwampingResult, tmp_path: Path) -> None:
    figure, picture = page
    assert len(figure.axes) == 6
    assert all(ax.get_title(loc="left") and ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    save_figure(swamping_figure(result), tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == picture


def test_nothing_is_cut_off(page: tuple[Figure, bytes]) -> None:
    figure, _ = page
    figure.draw_without_rendering()
    paper = Bbox.from_bounds(0, 0, figure.bbox.width, figure.bbox.height)
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert box is not None
        assert paper.x0 <= box.x0 < box.x1 <= paper.x1 + 1
        assert paper.y0 <= box.y0 < box.y1 <= paper.y1 + 1


def test_figures_of_the_command(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3), b=np.zeros(2))
    np.savez(tmp_path / "u.npz", a=np.full(3, 1e-4), b=np.ones(2))
    (ax,) = swamping_scan_figure(scan_updates(tmp_path / "w.npz", tmp_path / "u.npz")).axes
    assert "60 %" in ax.get_title(loc="left")
    (ax,) = swamping_scan_figure(scan_frozen(tmp_path / "w.npz", [1e-4, 0.0], formats=("bf16", "fp16"))).axes
    legend = ax.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["bf16, all weights", "fp16, all weights", "bf16, a", "bf16, b"]
    assert "0.0001" in [text.get_text() for text in ax.texts]
    np.savez(tmp_path / "n.npz", a=np.full(3, np.nan))
    swamping_scan_figure(scan_frozen(tmp_path / "n.npz", [0.0]))
