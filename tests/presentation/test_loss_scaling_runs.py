"""The drawings and tables of the loss-scaling experiment against its result."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from precision_lab.experiments.loss_scaling import Accident, LossScalingConfig, LossScalingResult, run
from precision_lab.presentation.plots.loss_scaling_runs import (
    loss_scaling_figure,
    plot_accident,
    plot_outcomes,
    plot_recovery,
    plot_search,
)
from precision_lab.presentation.plots.style import save_figure
from precision_lab.presentation.tables.loss_scaling import loss_scaling_tables
from precision_lab.presentation.tables.table import number

mpl.use("Agg")

CONFIG = LossScalingConfig(
    hidden=(8,),
    steps=60,
    factors=(-20, 0),
    products=(-24, 0, 24),
    starts=(0, 40),
    window=5,
    accident_steps=330,
    accidents=(Accident("gradients 2^12 times larger", 20, loss_factor=2.0**12), Accident("ramp", 26, growth=4.0)),
)


@pytest.fixture(scope="module")
def result() -> LossScalingResult:
    return run(CONFIG)


def test_recovery_shows_every_final_loss(result: LossScalingResult) -> None:
    ax = plot_recovery(result, title="t")
    curves = [line for line in ax.lines if str(line.get_label()).startswith("static")]
    for line, (_, runs) in zip(curves, result.static.items(), strict=True):
        assert np.asarray(line.get_xdata()).tolist() == list(runs)
        assert np.asarray(line.get_ydata()).tolist() == [r.final_loss for r in runs.values()]
    stars = [line for line in ax.lines if line.get_marker() == "*"]
    assert [line.get_ydata()[0] for line in stars] == [r.final_loss for r in result.dynamic.values()]  # type: ignore[index]
    assert ax.get_yscale() == "log"
    assert ax.get_title(loc="left") == "t"


def test_search_shows_the_scales_and_a_cross_for_each_skipped_step(result: LossScalingResult) -> None:
    ax = plot_search(result)
    for i, r in enumerate(result.dynamic.values()):
        line, crosses = ax.lines[2 * i : 2 * i + 2]
        assert np.array_equal(line.get_ydata(), np.log2(r.loss_scales) - 20)
        assert np.asarray(crosses.get_xdata()).tolist() == np.flatnonzero(r.skipped).tolist()
    assert len(ax.lines) == 4


def test_an_accident_shows_the_rules_that_are_asked_for(result: LossScalingResult) -> None:
    ax = plot_accident(result, "ramp", rules=("torch", "jmp"))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["torch", "jmp"]  # type: ignore[union-attr]
    everything = plot_accident(result, "ramp")
    assert len(everything.get_legend().get_texts()) == len(result.accidents["ramp"])  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="accident must be one of gradients"):
        plot_accident(result, "flood")
    with pytest.raises(ValueError, match="rules must be among float32, none, torch"):
        plot_accident(result, "ramp", rules=("adam",))


def test_outcomes_has_a_cell_for_each_run_with_its_numbers(result: LossScalingResult) -> None:
    ax = plot_outcomes(result)
    runs = [r for group in result.accidents.values() for r in group]
    assert len([p for p in ax.patches if isinstance(p, Rectangle)]) == len(runs)
    texts = [t.get_text() for t in ax.texts]
    for r, (final, what) in zip(runs, zip(texts[::2], texts[1::2], strict=True), strict=True):
        assert final == (f"loss {r.final_loss:.3g}" if math.isfinite(r.final_loss) else "loss NaN")
        skipped = int(r.skipped[CONFIG.accident_at :].sum())
        assert what.startswith(f"{skipped:,} skipped" if skipped else "none skipped")
        assert r.outcome in ("trains", "NaN") or what.endswith(r.outcome)


def test_the_page_is_the_same_every_time(result: LossScalingResult, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_figure(loss_scaling_figure(result), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_tables_say_what_the_result_holds(result: LossScalingResult) -> None:
    recovery, accidents = loss_scaling_tables(result)
    for table in (recovery, accidents):
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [row[0] for row in recovery.rows] == ["2^-24", "2^0", "2^24"]
    assert recovery.rows[1][1] == number(result.static[-20][0].final_loss)
    assert recovery.rows[2][2].endswith(", 60 skipped")
    assert recovery.totals is not None
    assert recovery.totals[1] == number(result.float32[-20].final_loss)
    assert [row[0] for row in accidents.rows] == [r.name for r in result.accidents["ramp"]]
    none = next(row for row in accidents.rows if row[0] == "none")
    assert none[2] == "not finite, NaN"
    static = next(row for row in accidents.rows if row[0] == "static 2^16")
    assert ", 20 skipped, " in static[1]
