"""What becomes of a sum, and of a matrix product, when every step is rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from precision_lab.analysis.sums import SUM_METHODS
from precision_lab.experiments.accumulation import AccumulationResult
from precision_lab.numerics import fixed
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import (
    INK,
    MARKERS,
    PALE,
    SMALL,
    dress,
    power,
    powers_between,
    size_in_inches,
    style,
    styled,
)

WAY_COLORS = dict(
    zip(SUM_METHODS, ("#D55E00", "#CC79A7", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#222222"), strict=True)
)
"""The colour of each way of adding."""

_RUNNING = ("stochastic", "kahan", "fp32 accumulator", "sequential")  # a whole sum after every term


def plot_running_sums(result: AccumulationResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the running sums of the ways that have one, beside the exact sum.

    Parameters
    ----------
    result : AccumulationResult
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
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        counts = result.config.counts
        ax.plot(counts, result.exact, color=PALE, linewidth=5, alpha=0.5, label="exact")
        for name in _RUNNING:
            trace = result.running[name]
            dashes = (0, (3, 3)) if name == "fp32 accumulator" else "-"  # it lies on Kahan's
            ax.plot(counts, trace.values, color=WAY_COLORS[name], linewidth=1.5, linestyle=dashes, label=name)
            if trace.stagnates_after is not None:
                ax.annotate(
                    f"stops at {trace.result:,.0f} after {trace.stagnates_after:,} terms",
                    (trace.stagnates_after, trace.result),
                    xytext=(70, 12),
                    textcoords="offset points",
                    fontsize=SMALL,
                    arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": INK},
                )
        ax.set_xlim(0, result.config.shown)
        ax.set_ylim(0, None)
        ax.set_xlabel("number of terms n")
        ax.set_ylabel("running sum")
        ax.legend(loc="upper left")
    return ax


def plot_sum_errors(
    result: AccumulationResult,
    *,
    ways: Sequence[str] = tuple(SUM_METHODS),
    spread: bool = False,
    bounds_of: str | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the relative error of sums against the number of terms.

    Parameters
    ----------
    result : AccumulationResult
        What to draw.
    ways : sequence of str
        Names of `analysis.sums.SUM_METHODS`.
    spread : bool
        Whether to draw each seed as a dot, besides the line of the medians.
    bounds_of : str, optional
        Draw the worst-case and the probabilistic bound of this way.
    ax, title
        As in `plot_running_sums`.

    Raises
    ------
    ValueError
        A name is none of the ways.

    """
    for name in (*ways, *([bounds_of] if bounds_of else [])):
        if name not in result.errors:
            raise ValueError(f"ways must be among {', '.join(result.errors)}; got {name!r}")
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        floor = result.format.unit_roundoff / 32  # where an error of 0 is drawn
        for i, name in enumerate(ways):
            counts = [at.count for at in result.errors[name]]
            medians = [max(at.median, floor) for at in result.errors[name]]
            ax.plot(
                counts,
                medians,
                color=WAY_COLORS[name],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                linewidth=1.3,
                label=name,
            )
            if spread:
                dots = [(at.count, max(error, floor)) for at in result.errors[name] for error in at.errors]
                ax.plot(*zip(*dots, strict=True), ".", color=WAY_COLORS[name], alpha=0.5, label=f"_{name}, each")
        if bounds_of is not None:
            _bounds(ax, result, bounds_of)
        _terms_axis(ax, result)
        ax.set_yscale("log")
        ax.set_ylim(floor / 1.5, 300)  # room for the legend
        ax.yaxis.set_major_locator(FixedLocator([float(f"1e{k}") for k in range(math.ceil(fixed.log10(floor)), 1)]))
        ax.yaxis.set_major_formatter(FuncFormatter(_in_percent))
        ax.set_ylabel("relative error of the sum")
        ax.legend(loc="upper left", ncols=2)
    return ax


def _in_percent(share: float, _: object = None) -> str:
    return f"{100 * share:g} %"


def _bounds(ax: Axes, result: AccumulationResult, name: str) -> None:
    for values, dashes, label in (
        ([at.worst_case for at in result.errors[name]], (0, (1, 1.5)), "worst case, n $u_r$"),
        ([at.probabilistic for at in result.errors[name]], (0, (4, 2)), r"probabilistic, $\sqrt{n}$ $u_r$"),
    ):
        finite = [(at.count, v) for at, v in zip(result.errors[name], values, strict=True) if math.isfinite(v)]
        ax.plot(*zip(*finite, strict=True), color=INK, linewidth=1, linestyle=dashes, label=f"{label} ({name})")


def _terms_axis(ax: Axes, result: AccumulationResult) -> None:
    low, high = result.config.exponents[0], result.config.exponents[-1]
    ax.set_xscale("log", base=2)
    ax.set_xlim(2.0 ** (low - 0.4), 2.0 ** (high + 0.4))
    ticks = powers_between(low, high, size_in_inches(ax)[0] / 0.45)
    ax.xaxis.set_major_locator(FixedLocator([2.0**k for k in ticks]))
    ax.xaxis.set_major_formatter(FixedFormatter([power(k) for k in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("number of terms n")


def plot_product_errors(result: AccumulationResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the error of the matrix products by accumulator.

    Parameters and return value as `plot_running_sums`.
    """
    with styled(ax) as ax:
        dress(ax, title=title, grid="x")
        kinds = list(dict.fromkeys((p.accumulator, p.products_rounded) for p in result.products))
        names = list(dict.fromkeys(p.product for p in result.products))
        height = 0.8 / len(names)
        for i, name in enumerate(names):
            errors = [
                next(
                    p.error for p in result.products if (p.product, p.accumulator, p.products_rounded) == (name, *kind)
                )
                for kind in kinds
            ]
            length = next(p.length for p in result.products if p.product == name)
            places = [row + (i - (len(names) - 1) / 2) * height for row in range(len(kinds))]
            color = ("#56B4E9", "#0072B2")[i % 2]
            bars = ax.barh(places, errors, height=0.9 * height, color=color, label=f"{name}, {length:,} terms")
            ax.bar_label(bars, [f"{100 * e:.3g} %" for e in errors], padding=3, fontsize=SMALL)
        ax.set_xscale("log")
        ax.set_xlim(min(p.error for p in result.products) / 4, 5 * max(p.error for p in result.products))
        ax.xaxis.set_major_formatter(FuncFormatter(_in_percent))
        ax.set_yticks(
            range(len(kinds)),
            [f"{accumulator}{', products too' if rounded else ''}" for accumulator, rounded in kinds],
        )
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("relative error of the product (Frobenius)")
        ax.legend(loc="lower right")
    return ax


@figure_of_report("accumulation")
def accumulation_figure(result: AccumulationResult) -> Figure:
    """Draw what the accumulation experiment found on one page."""
    fmt = result.config.format
    with style():
        figure = Figure(figsize=(11, 9), dpi=120, layout="constrained")
        figure.suptitle(f"Sums in {fmt}: the order decides", x=0.01, ha="left")
        grid = figure.add_gridspec(2, 2)
        plot_running_sums(result, ax=figure.add_subplot(grid[0, 0]), title=f"Numbers from [0, 1), added up in {fmt}")
        plot_sum_errors(result, ax=figure.add_subplot(grid[0, 1]), title="Error of the sum")
        plot_sum_errors(
            result,
            ways=("sequential", "stochastic"),
            spread=True,
            bounds_of="sequential",
            ax=figure.add_subplot(grid[1, 0]),
            title="Ties to even and stochastic rounding, one after the other",
        )
        plot_product_errors(
            result,
            ax=figure.add_subplot(grid[1, 1]),
            title="Two products of the digits MLP by accumulator",
        )
    return figure
