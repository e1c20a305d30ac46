"""The drawings and the table of the hyperparameters say what the audits hold."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from precision_lab import Severity, World, audit_hyperparameters
from precision_lab.presentation.plots.hyperparameters import hyperparameters_figure, plot_betas, plot_severities
from precision_lab.presentation.plots.style import save_figure
from precision_lab.presentation.tables.hyperparameters import hyperparameters_table
from tests.presentation.axes import texts

mpl.use("Agg")


def test_the_table_has_a_row_a_finding() -> None:
    result = audit_hyperparameters("bf16", lr=1e-4, weight_decay=0.1)
    table = hyperparameters_table(result)
    assert [row[0] for row in table.rows] == [f.expression for f in result.of(World.HELD)]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table.columns[2:6] == ("held in bf16", "severity", "as torch", "severity")
    rows = {row[0]: row for row in table.rows}
    assert rows["beta2"][1:6] == ("0.999", "1", "fatal", "not stored", "–")
    assert rows["beta2"][6:] == (result["beta2"].consequence, result["beta2"].advice)
    assert rows["lr"][7] == "–"
    average = "beta2*v + (1 - beta2)*g^2"
    held, torch = result[average], result.torch(average)
    assert torch is not None
    assert rows[average][2:6] == ("0.5", "warning", "0.5", "warning")
    assert rows[average][6] == held.consequence == torch.consequence  # said once
    assert rows[average][7] == f"held: {held.advice} / torch: {torch.advice}"


def test_severities_are_drawn_as_they_are() -> None:
    audits = [audit_hyperparameters(fmt) for fmt in ("bf16", "fp16", "fp32")]
    ax = plot_severities(audits)
    (image,) = ax.images
    codes = np.ma.filled(np.ma.asarray(image.get_array()).astype(float), np.nan)
    assert np.isnan(codes[:, 0]).all()  # what was asked has no severity
    expressions = [f.expression for f in audits[0].of(World.HELD)]
    levels = [None if np.isnan(code) else list(Severity)[int(code)] for code in codes.ravel()]
    drawn = np.array(levels, object).reshape(codes.shape)
    for place, result in enumerate(audits):
        assert drawn[:, 2 * place + 1].tolist() == [f.severity for f in result.of(World.HELD)]
        torch = [result.torch(expression) for expression in expressions]
        assert drawn[:, 2 * place + 2].tolist() == [f and f.severity for f in torch]
    assert [label.get_text() for label in ax.get_yticklabels()] == expressions
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns == [
        "asked",
        *(name for fmt in ("bf16", "fp16", "fp32") for name in (f"held in {fmt}", "as torch")),
    ]
    written = texts(ax)
    assert "0.999" in written
    assert "1  fatal" in written
    assert "0.99902  note" in written
    assert written.count("not stored") == 3 * sum(f is None for f in torch)


def test_the_stairs_are_those_of_the_format() -> None:
    ax = plot_betas(["bf16", "fp32"], betas=[0.9, 0.999])
    lines = {str(line.get_label()): line for line in ax.lines}
    x, y = (np.asarray(data, float) for data in lines["bf16"].get_data())
    assert y.max() == 256  # 1/(1 - 0.99609375)
    assert x.max() < 512  # 1 - 2^-9 becomes 1
    lane = np.asarray(lines["_bf16 without end"].get_xdata(), float)
    assert x.max() < lane[0] < 1.02 * 512
    assert np.asarray(lines["fp32"].get_ydata(), float).max() == 2.0**24
    assert texts(ax) == ["0.9", "0.999"]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["bf16", "fp32"]


@pytest.mark.parametrize("fmt", ["fp4_e2m1fn", "e8m0_ieee", "e2m0"])
def test_stairs_of_few_steps(fmt: str) -> None:
    plot_betas([fmt])


def test_the_page(tmp_path: Path) -> None:
    page = hyperparameters_figure(
        [audit_hyperparameters(fmt, optimizer="sgd", momentum=0.9) for fmt in ("fp32", "bf16")]
    )
    assert isinstance(page, Figure)
    left, right = page.axes
    legend = right.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["fp32", "bf16"]
    save_figure(page, tmp_path / "page.svg")
    assert (tmp_path / "page.svg").stat().st_size
    # no text of the table is wider than its cell
    page.draw_without_rendering()
    cell = left.transData.transform((1, 0))[0] - left.transData.transform((0, 0))[0]
    assert all(text.get_window_extent().width < cell for text in left.texts)


def test_it_draws_where_it_is_told() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_severities([audit_hyperparameters("bf16")], ax=left, title="here") is left
    assert left.get_title(loc="left") == "here"
    assert plot_betas(["bf16"], ax=right) is right


def test_bad_arguments() -> None:
    for draw in (plot_severities, hyperparameters_figure):
        with pytest.raises(ValueError, match="no audits"):
            draw([])
        with pytest.raises(ValueError, match="same optimizer"):
            draw([audit_hyperparameters("bf16"), audit_hyperparameters("fp16", lr=1)])
    with pytest.raises(ValueError, match="no formats"):
        plot_betas([])
    with pytest.raises(ValueError, match=r"\(0, 1\), got 1"):
        plot_betas(["bf16"], betas=[0.9, 1])
