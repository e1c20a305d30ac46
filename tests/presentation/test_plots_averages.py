"""The drawings of averages against the result: places, and what is left out."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes

from precision_lab.experiments.averages import AveragesConfig, AveragesResult, run
from precision_lab.presentation.plots.averages import averages_figure, plot_decay, plot_ends, plot_standing_averages
from precision_lab.presentation.plots.style import save_figure

mpl.use("Agg")


@pytest.fixture(scope="module")
def result() -> AveragesResult:
    return run(AveragesConfig(decays=(0.9, 0.999), hidden=(4,), steps=20, decay_steps=20))


def lines(ax: Axes) -> dict[str, list[list[float]]]:
    return {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in ax.lines}


def test_curves_are_the_gaps_and_marks_the_averages(result: AveragesResult) -> None:
    drawn = lines(plot_standing_averages(result))
    for reach in result.reaches:
        name = reach.format if reach.beginning == "initialisation" else f"_{reach.format}, middle"
        assert drawn[name] == [[x, 100 * y] for x, y in zip(reach.rates, reach.still, strict=True)]
    for f in result.followed:
        mark = f"_{f.keeping.text}, {f.beginning}, {f.decay:g}"
        plain = f.keeping.rule == "ties_to_even" and f.keeping.order == "lerp"  # the curves are of nothing else
        assert drawn.get(mark) == ([[1 - f.decay, 100 * f.still]] if plain else None)


def test_ends_and_norms_are_those_of_the_result(result: AveragesResult) -> None:
    drawn = lines(plot_ends(result, "middle"))
    for keeping in result.config.keepings:
        ends = [result.of("middle", decay)[keeping].off for decay in (0.9, 0.999)]
        assert drawn[keeping.text] == [[i, max(end, 1e-7)] for i, end in enumerate(ends)]
    drawn = lines(plot_decay(result))
    for d in result.decayed:
        name = {1e-4: d.keeping.text, 1e-3: "", 3e-3: f"_{d.keeping.text}, 0.003"}[d.rate]
        assert not name or drawn[name] == [[s, n] for s, n in zip(d.steps, d.norms, strict=True)]


def test_the_page_is_saved(result: AveragesResult, tmp_path: Path) -> None:
    figure = averages_figure(result)
    save_figure(figure, tmp_path / "a.svg")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "Averages that never move",
        "Where they end (from the initialisation)",
        "Weights that only decay",
    ]
