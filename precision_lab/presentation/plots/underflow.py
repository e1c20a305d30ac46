"""The figure of the underflow experiment."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.experiments.underflow import GROUPS, UnderflowResult
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.histograms import Limits, Ruler, Span, drop_lines, plot_exponent_histogram
from precision_lab.presentation.plots.loss_scaling import plot_loss_scale
from precision_lab.presentation.plots.style import (
    FATE_COLORS,
    INK,
    PALE,
    Fate,
    dress,
    percent_label,
    percent_of,
    style,
    styled,
)


def plot_flushed_table(result: UnderflowResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw a table of the shares that are flushed without loss scaling: formats by kind of gradient and stage.

    Parameters
    ----------
    result : UnderflowResult
        What to draw.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    columns = [(group, stage.name) for group in GROUPS for stage in result.stages]
    formats = result.config.formats
    cells = [[100 * result.unscaled(stage, group, f).flushed_of_nonzero for group, stage in columns] for f in formats]
    paint = LinearSegmentedColormap.from_list("flushed", ["#f6f6f6", FATE_COLORS["flushed"]])
    with styled(ax) as ax:
        dress(ax, title=title)
        ax.grid(visible=False)
        ax.imshow(cells, cmap=paint, vmin=0, vmax=100, aspect="auto")
        for row, shares in enumerate(cells):
            for column, share in enumerate(shares):
                ax.text(
                    column,
                    row,
                    percent_label(share),
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if share > 80 else INK,
                )
        for edge in range(1, len(formats)):
            ax.axhline(edge - 0.5, color="white", linewidth=2)
        for edge in range(1, len(columns)):
            ax.axvline(edge - 0.5, color="white", linewidth=8 if edge % len(result.stages) == 0 else 2)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_yticks(range(len(formats)), formats)
        middle = len(result.stages) // 2  # the stage that also carries the name of its group
        names = [
            f"{stage}\n{group if i % len(result.stages) == middle else ' '}" for i, (group, stage) in enumerate(columns)
        ]
        ax.set_xticks(range(len(columns)), names)
        ax.set_xlabel("stage of the training")
        ax.set_ylabel("format")
    return ax


@figure_of_report("underflow")
def underflow_figure(result: UnderflowResult) -> Figure:
    """Draw what the underflow experiment found on one page.

    Above, the activation gradients of the three stages under one format ruler, coloured by what becomes of them in the
    first format of the configuration; below, what loss scaling does to them in this format at the start and at the end,
    and the shares flushed without it; as the last line, what flushing costs the training.

    Parameters
    ----------
    result : UnderflowResult
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    """
    group, fmt = GROUPS[1], result.config.formats[0]
    with style():
        figure = Figure(figsize=(11, 9), dpi=120, layout="constrained")
        figure.suptitle("Gradients of a digits MLP: what each format flushes to zero", x=0.01, ha="left")
        rows = figure.add_gridspec(2, 1, height_ratios=[6, 3.1])
        stages = len(result.stages)
        upper = rows[0].subgridspec(stages + 1, 1, height_ratios=[0.8] + [1.3] * stages)
        panels = [figure.add_subplot(upper[row + 1]) for row in range(stages)]
        _stages(panels, figure.add_subplot(upper[0]), result, group, fmt)
        figure.align_ylabels(panels)
        grid = rows[1].subgridspec(1, 3, wspace=0.04)
        for column, stage in enumerate((result.stages[0], result.stages[-1])):
            curves = plot_loss_scale(
                result.conversions[stage.name][group][fmt],
                ax=figure.add_subplot(grid[column]),
                title=f"Loss scaling in {fmt}, {stage.name}",
            )
            if column and (legend := curves.get_legend()) is not None:
                legend.remove()  # its neighbour has the same
        plot_flushed_table(result, ax=figure.add_subplot(grid[2]), title="Flushed at S = 1, % of non-zero")
        words = f"{result.cost_in_words[0].upper()}{result.cost_in_words[1:]}."
        figure.supxlabel(_typeset(words).replace(", and ", ",\nand "), x=0.01, ha="left", fontsize=10)
    return figure


def _typeset(words: str) -> str:
    """Write the powers of two as such."""
    return re.sub(r"2\^(-?\d+)", r"$2^{\1}$", words)


def plot_gradient_histogram(
    histogram: ExponentHistogram, fmt: FormatLike = "fp16", *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw a histogram of gradients as Micikevicius et al. did (2018, figure 3): zeros apart, regions named.

    Parameters
    ----------
    histogram : ExponentHistogram
        What to draw.
    fmt : str, dtype or FloatFormat
        The format whose regions are named: what becomes zero in it, what subnormal, what is kept, and where it has
        values that nothing uses.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    limits = Limits.of(get_format(fmt), 1)
    low = min(histogram.first_exponent, math.floor(limits.flush)) - 1
    with styled(ax) as ax:
        plot_exponent_histogram(
            histogram,
            formats=(limits.format,),
            exponents=(low, math.ceil(limits.overflow) + 2),
            ruler=False,
            ax=ax,
            title=title,
        )
        if (legend := ax.get_legend()) is not None:
            legend.remove()  # its shares stand with the names
        top = ax.get_ylim()[1]
        ax.set_ylim(0, 1.35 * top)  # room for the names
        for box in (box for bars in ax.containers if bars.get_label() == "_zero" for box in bars.get_children()):
            box.set(clip_path=Rectangle((0, 0), 1, 1 / 1.35, transform=ax.transAxes))
        c = histogram.conversion(limits.format)
        used = max(limits.normal, min(histogram.exponents.stop, limits.overflow))
        regions: list[tuple[float, float, str, Fate | None, int]] = [
            (low, limits.flush, f"becomes zero in {limits.format}", "flushed", c.flushed),
            (limits.flush, limits.normal, "becomes subnormal", "subnormal", c.subnormal),
            (limits.normal, used, "is kept", "kept", c.kept),
            (used, limits.overflow, f"unused range of {limits.format}", None, 0),
        ]
        for left, right, name, fate, n in regions:
            if left < right:
                color = PALE if fate is None else FATE_COLORS[fate]
                ax.plot([left + 0.1, right - 0.1], [1.06 * top] * 2, color=color, linewidth=3, label=f"_{name}")
                share = "" if fate is None else f"\n{percent_label(percent_of(n, c.nonzero))} % of non-zero"
                ax.text((left + right) / 2, 1.1 * top, name + share, ha="center", va="bottom", fontsize=8.5)
    return ax


@figure_of_report("gradient_histogram")
def gradient_histogram_figure(result: UnderflowResult) -> Figure:
    """Draw the classic of Micikevicius et al. in miniature: the activation gradients of a transformer with ReLU.

    Parameters
    ----------
    result : UnderflowResult
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    """
    gradients, fmt = result.transformer, result.config.formats[0]
    zero = percent_label(percent_of(gradients.zero, gradients.count))
    with style():
        figure = Figure(figsize=(10, 4.6), dpi=120, layout="constrained")
        figure.suptitle(
            "A classic in miniature: activation gradients, after Micikevicius et al. 2018, figure 3",
            x=0.01,
            ha="left",
        )
        plot_gradient_histogram(
            gradients,
            fmt,
            ax=figure.add_subplot(),
            title=f"A small transformer with ReLU over {result.config.transformer_steps} steps: {zero} % of "
            f"{gradients.count:,} gradients are exactly zero",
        )
    return figure


def _stages(panels: Sequence[Axes], ruler: Axes, result: UnderflowResult, group: str, fmt: str) -> None:
    """Draw the histogram of each stage on its panel, all over the same binades, and one ruler for all."""
    histograms = [stage.histogram(group) for stage in result.stages]
    limits = [Limits.of(get_format(f), 1) for f in result.config.formats]
    low, high = _common_exponents(histograms, limits[0])
    for panel, histogram, stage in zip(panels, histograms, result.stages, strict=True):
        steps = f"steps {stage.steps.start:,}–{stage.steps.stop - 1:,}, loss {stage.loss:.2g}"
        plot_exponent_histogram(
            histogram,
            formats=result.config.formats,
            fate_in=fmt,
            exponents=(low, high),
            ruler=False,
            ax=panel,
            title=f"{group.capitalize()}, {stage.name} ({steps})",
        )
        panel.set_ylabel("% of elements")
        panel.label_outer()
    left, right = panels[0].get_xlim()
    ruler.set_xlim(left, right)
    ruler.set_axis_off()
    span = Span.of(ruler, low, high, zero=True, nonfinite=False)
    for f, height in zip(limits, Ruler(ruler, low, high, left, right).draw(limits, 0.0, 1.0), strict=True):
        drop_lines(ruler, f, height, span, normal=f == limits[0])


def _common_exponents(histograms: Sequence[ExponentHistogram], limits: Limits) -> tuple[int, int]:
    """Return a range with all but a half percent of each histogram's lower tail, all above, and the limits."""
    lows, highs = [math.floor(limits.flush)], [math.ceil(limits.overflow)]
    for histogram in histograms:
        tail = 0
        for exponent, n in histogram.binades.items():
            tail += n
            if tail > 0.005 * histogram.count:
                lows.append(exponent)
                break
        highs.append(histogram.exponents.stop)
    return min(lows) - 1, max(highs) + 6
