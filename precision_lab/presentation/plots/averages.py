"""Running averages that stand still, and weights that do not decay."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from precision_lab.experiments.averages import BEGINNINGS, ORDERS, AveragesResult, Keeping
from precision_lab.numerics import fixed
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import (
    INK,
    MARKERS,
    OWN,
    PALE,
    SMALL,
    dress,
    power,
    powers_between,
    size_in_inches,
    style,
    styled,
)

_COLORS = {"bf16": "#D55E00", "fp16": "#0072B2", "fp32": "#222222"}
_OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LEAST = 1e-7
"""Where what ends off by less is drawn."""


def plot_standing_averages(result: AveragesResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the share of the averages that never move against 1 - d: curves from the gaps, marks that were computed.

    Parameters
    ----------
    result : AveragesResult
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
    rates = result.config.rates
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        for reach in result.reaches:
            first = reach.beginning == BEGINNINGS[0]
            ax.plot(
                reach.rates,
                [100 * share for share in reach.still],
                color=_COLORS.get(reach.format, OWN),
                linestyle="-" if first else "--",
                linewidth=1.5,
                label=reach.format if first else f"_{reach.format}, {reach.beginning}",
            )
        for f in result.followed:
            if f.keeping.rule == "ties_to_even" and f.keeping.order == ORDERS[0]:
                color = _COLORS.get(f.keeping.format, OWN)
                mark = "o" if f.beginning == BEGINNINGS[0] else "s"
                label = f"_{f.keeping.text}, {f.beginning}, {f.decay:g}"
                ax.plot(1 - f.decay, 100 * f.still, mark, color=color, markersize=4, label=label)
        for mark, line, beginning in zip("os", ("-", "--"), BEGINNINGS, strict=True):
            ax.plot([], [], mark, linestyle=line, color=PALE, markersize=4, label=f"from the {beginning}")
        ax.set_xscale("log", base=2)
        ax.set_xlim(rates[0], rates[-1])
        ticks = powers_between(fixed.log2(rates[0]), fixed.log2(rates[-1]), size_in_inches(ax)[0] / 0.5)
        ax.xaxis.set_major_locator(FixedLocator([2.0**k for k in ticks]))
        ax.xaxis.set_major_formatter(FixedFormatter([power(k) for k in ticks]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(-3, 140)
        ax.set_yticks(range(0, 101, 20))
        ax.set_xlabel("1 - d (curves: what the gaps tell; marks: computed)")
        ax.set_ylabel("% of averages that never move")
        ax.legend(loc="upper left", ncols=2)
    return ax


def plot_ends(
    result: AveragesResult, beginning: str = BEGINNINGS[0], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw how far the averages end from the exact ones, by how far these went, against the decay.

    Parameters
    ----------
    result : AveragesResult
        What to draw.
    beginning : str
        One of `BEGINNINGS`.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    decays = sorted(result.config.decays)
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        ax.axhline(1, color=INK, linewidth=0.8, label="_standing still")
        colors = _coloured(result.config.keepings)
        for i, keeping in enumerate(result.config.keepings):
            ends = [max(result.of(beginning, decay)[keeping].off, _LEAST) for decay in decays]
            ax.plot(
                range(len(decays)),
                ends,
                color=colors[keeping],
                linestyle="-" if keeping.order == ORDERS[0] else ":",
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                label=keeping.text,
            )
        ax.set_yscale("log")
        ax.set_ylim(_LEAST / 2, 5)
        ax.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        ax.set_xlabel("decay d")
        ax.set_ylabel("off, in parts of the exact way")
        ax.legend(loc="center left", bbox_to_anchor=(0, 0.42), ncols=2, fontsize=SMALL)
    return ax


def plot_decay(result: AveragesResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the norm of weights under AdamW's decay alone against the steps, for the smallest decay and the largest.

    Parameters
    ----------
    result : AveragesResult
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
    rates = sorted({min(result.config.weight_decays), max(result.config.weight_decays)})
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        colors = _coloured(result.config.decay_keepings)
        for i, keeping in enumerate(result.config.decay_keepings):
            for rate, line in zip(rates, ("-", "--"), strict=False):
                found = next(d for d in result.decayed if (d.keeping, d.rate) == (keeping, rate))
                label = keeping.text if rate == rates[0] else f"_{keeping.text}, {rate:g}"
                mark = MARKERS[i % len(MARKERS)]
                ax.plot(
                    found.steps,
                    found.norms,
                    color=colors[keeping],
                    linestyle=line,
                    linewidth=max(4 - 0.8 * i, 0.8),  # many are the same line
                    marker=mark,
                    markersize=4,
                    label=label,
                )
        for rate, line in zip(rates, ("-", "--"), strict=False):
            ax.plot([], [], linestyle=line, color=PALE, label=f"{rate:g} a step")
        ax.set_ylim(0, 1.08)
        ax.set_xlim(left=0)
        ax.set_xlabel("steps")
        ax.set_ylabel("norm, in parts of the first")
        ax.legend(loc="best", fontsize=SMALL)
    return ax


def _coloured(keepings: tuple[Keeping, ...]) -> dict[Keeping, str]:
    """Return the colours of formats, and others for what keeps more."""
    others = [keeping for keeping in dict.fromkeys(keepings) if keeping.rule != "ties_to_even"]
    plain = {keeping: _COLORS.get(keeping.format, OWN) for keeping in keepings}
    return plain | {keeping: _OTHERS[i % len(_OTHERS)] for i, keeping in enumerate(others)}


@figure_of_report("averages")
def averages_figure(result: AveragesResult) -> Figure:
    """Draw what the experiment found on one page: which averages stand still, where they end, and decay.

    Parameters
    ----------
    result : AveragesResult
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    """
    with style():
        figure = Figure(figsize=(13, 4.6), dpi=110, layout="constrained")
        figure.suptitle("Running averages of the weights of a digits MLP, and weight decay", x=0.01, ha="left")
        left, middle, right = figure.subplots(1, 3)
        plot_standing_averages(result, ax=left, title="Averages that never move")
        plot_ends(result, ax=middle, title=f"Where they end (from the {BEGINNINGS[0]})")
        plot_decay(result, ax=right, title="Weights that only decay")
    return figure
