"""The drawings and tables of the loss-scaling experiment against its result."""

from __future__ import annotations

import math
from dataclasses import replace
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
    hidden=(16,),
    learning_rate=4e-3,
    seeds=2,
    more_seeds=3,
    steps=120,
    factors=(-20, 0),
    products=(-24, 0, 24),
    judged=(-12, -9, 0, 19),
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
        assert np.asarray(line.get_ydata()).tolist() == [first.final_loss for first, *_ in runs.values()]
    (others,) = [line for line in ax.lines if str(line.get_label()).startswith("other seeds")]
    seeds = [(k, r.final_loss) for k, runs in result.static[-20].items() for r in runs[1:]]
    drawn = (np.asarray(data).tolist() for data in (others.get_xdata(), others.get_ydata()))
    assert list(zip(*drawn, strict=True)) == seeds
    assert len(seeds) >= 3
    stars = [line for line in ax.lines if line.get_marker() == "*"]
    assert [line.get_ydata()[0] for line in stars] == [first.final_loss for first, *_ in result.dynamic.values()]  # type: ignore[index]
    assert ax.get_yscale() == "log"
    assert ax.get_title(loc="left") == "t"


def test_recovery_shades_what_keeps_and_what_is_not_decided(result: LossScalingResult) -> None:
    spans = {"_plateau": [], "_undecided": []}  # type: dict[str, list[tuple[float, float]]]
    ax = plot_recovery(result)
    for patch in ax.patches:
        if isinstance(patch, Rectangle) and patch.get_label() in spans:
            spans[str(patch.get_label())].append((patch.get_x(), patch.get_x() + patch.get_width()))
    assert result.plateau is not None
    assert result.undecided
    assert spans["_plateau"] == [(result.plateau[0] - 0.5, result.plateau[1] + 0.5)]
    assert spans["_undecided"] == [(k - 0.5, k + 0.5) for k in result.undecided]
    texts = [t.get_text() for t in ax.texts]
    assert texts.count("not\ndecided") == len(result.undecided)
    assert sum(text.startswith("keeps float32's result: ") for text in texts) == 1
    nothing = replace(result, config=replace(CONFIG, judged=(), starts=()), dynamic={})
    for bare in (plot_recovery(nothing), plot_search(nothing)):
        assert not bare.texts
        assert not bare.patches
    assert "dynamic" not in nothing.answer
    assert "dynamic" not in loss_scaling_tables(nothing)[0].note


def test_search_shows_the_scales_and_a_cross_for_each_skipped_step(result: LossScalingResult) -> None:
    ax = plot_search(result)
    for i, (r, *_) in enumerate(result.dynamic.values()):
        line, crosses = ax.lines[2 * i : 2 * i + 2]
        assert np.array_equal(line.get_ydata(), np.log2(r.loss_scales) - 20)
        assert np.asarray(crosses.get_xdata()).tolist() == np.flatnonzero(r.skipped).tolist()
    assert len(ax.lines) == 4
    legend = [t.get_text() for t in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert [text.split(": ")[1] for text in legend] == [ratio.text for ratio in result.searches.values()]


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
        assert r.outcome in ("trains", "NaN") or r.outcome in what
        assert (f"loss inf or NaN in {r.nonfinite_losses:,} steps" in what) == bool(r.nonfinite_losses)


def test_the_page_is_the_same_every_time(result: LossScalingResult, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_figure(loss_scaling_figure(result), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_tables_say_what_the_result_holds(result: LossScalingResult) -> None:
    recovery, accidents = loss_scaling_tables(result)
    for table in (recovery, accidents):
        assert {len(row) for row in table.rows} == {len(table.columns)}
    rows = {row[0]: row[1:] for row in recovery.rows}
    assert list(rows) == ["2^-24", "2^-12", "2^-9", "2^0", "2^19", "2^24"]
    small, one = result.static.values()
    assert rows["2^0"] == (
        number(small[0][0].final_loss),
        number(one[0][0].final_loss),
        "0",
        result.judged[0].text,
        result.judged[0].finding,
    )
    assert rows["2^-24"][2:] == ("0", "untrained", "")
    assert rows["2^24"][2:] == ("120", "stuck", "")
    assert rows["2^-9"][1] == ""
    skipped = [int(r.skipped.sum()) for r in small[19]]
    assert rows["2^19"][2] == f"{min(skipped)} to {max(skipped)}"
    assert recovery.totals is not None
    assert recovery.totals[1] == number(result.float32[-20][0].final_loss)
    assert f"{result.searches[40].text} from S = 2^40 ({result.searches[40].finding})" in recovery.note
    assert [row[0] for row in accidents.rows] == [r.name for r in result.accidents["ramp"]]
    none = next(row for row in accidents.rows if row[0] == "none")
    broken = next(r for r in result.accidents["ramp"] if r.name == "none").nonfinite_losses
    assert none[2] == f"not finite, loss inf or NaN in {broken}, NaN"
    static = next(row for row in accidents.rows if row[0] == "static 2^16")
    assert ", 20 skipped, " in static[1]
