"""The drawings and tables of sums against their results."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from precision_lab.analysis.sums import SUM_METHODS, sum_tensors
from precision_lab.experiments.accumulation import AccumulationConfig, AccumulationResult, run
from precision_lab.presentation.plots.accumulation import (
    accumulation_figure,
    plot_product_errors,
    plot_running_sums,
    plot_sum_errors,
)
from precision_lab.presentation.plots.style import save_figure
from precision_lab.presentation.tables.accumulation import accumulation_tables, sums_table
from precision_lab.presentation.tables.table import percent_or_more

mpl.use("Agg")


@pytest.fixture(scope="module")
def result() -> AccumulationResult:
    return run(AccumulationConfig(exponents=(2, 6, 11), seeds=2, shown=900, hidden=4))


def test_running_sums(result: AccumulationResult) -> None:
    ax = plot_running_sums(result)
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}
    assert set(drawn) == {"exact", "sequential", "stochastic", "kahan", "fp32 accumulator"}
    assert drawn["sequential"].tolist() == list(result.running["sequential"].values)
    assert drawn["exact"][-1] == pytest.approx(result.running["sequential"].exact)
    after = result.running["sequential"].stagnates_after
    assert [text.get_text() for text in ax.texts] == [f"stops at 256 after {after:,} terms"]


def test_errors_with_spread_and_bounds(result: AccumulationResult) -> None:
    ax = plot_sum_errors(result, ways=("kahan", "stochastic"), spread=True, bounds_of="sequential")
    lines = {str(line.get_label()): line for line in ax.lines}
    assert np.asarray(lines["kahan"].get_xdata()).tolist() == [4, 64, 2048]
    floor = 2.0**-8 / 32
    assert np.asarray(lines["stochastic"].get_ydata()).tolist() == [
        max(at.median, floor) for at in result.errors["stochastic"]
    ]
    assert len(np.asarray(lines["_stochastic, each"].get_ydata())) == 6
    bounds = [label for label in lines if "sequential" in label]
    assert len(bounds) == 2
    assert np.asarray(lines[bounds[0]].get_ydata()).tolist() == [at.worst_case for at in result.errors["sequential"]]
    with pytest.raises(ValueError, match="ways must be among sequential"):
        plot_sum_errors(result, ways=("abacus",))


def test_every_way_has_a_line_of_its_own_colour(result: AccumulationResult) -> None:
    ax = plot_sum_errors(result)
    assert [str(line.get_label()) for line in ax.lines] == list(SUM_METHODS)
    assert len({line.get_color() for line in ax.lines}) == len(SUM_METHODS)


def test_products(result: AccumulationResult) -> None:
    ax = plot_product_errors(result)
    widths = sorted(patch.get_width() for patch in ax.patches)  # type: ignore[attr-defined]
    assert widths == pytest.approx(sorted(p.error for p in result.products))
    assert f"{100 * result.products[0].error:.3g} %" in [text.get_text() for text in ax.texts]


def test_the_page_is_the_same_every_time(result: AccumulationResult, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_figure(accumulation_figure(result), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_tables_of_the_experiment(result: AccumulationResult) -> None:
    sums, products = accumulation_tables(result)
    for table in (sums, products):
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [row[0] for row in sums.rows] == ["2^2", "2^6", "2^11"]
    assert sums.rows[2][1] == percent_or_more(result.errors["sequential"][2].median)
    first = [p.error for p in result.products if (p.accumulator, p.products_rounded) == ("bf16", False)]
    assert products.rows[0] == ("bf16", "exact", *map(percent_or_more, first))


def test_the_table_of_tensors(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(1000))
    np.save(tmp_path / "b.npy", np.array([1.0, np.nan]))
    np.save(tmp_path / "c.npy", np.array([1.0, 0.5]))
    table = sums_table(sum_tensors(tmp_path, "bf16"))
    assert [row[0] for row in table.rows] == ["b.npy: b", "a.npy: a", "c.npy: c"]
    assert table.rows[0][2:4] == ("–", "NaN")
    assert table.rows[1][:4] == ("a.npy: a", "1,000", "1e+03", "74")
    assert table.rows[2][3:] == ("0",) * len(SUM_METHODS)
