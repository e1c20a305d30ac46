"""Lost updates, frozen weights, and running sums that stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.stagnation import swamping_thresholds
from precision_lab.analysis.swamping_scan import FrozenScan, UpdateScan
from precision_lab.analysis.updates import UpdateReport
from precision_lab.experiments.swamping import MODES, STAGES, RunningSum, SwampingResult
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import FormatLike
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import (
    FATE_COLORS,
    INK,
    MARKERS,
    OWN,
    SMALL,
    dress,
    percent_label,
    percent_of,
    plain_text,
    power,
    powers_between,
    size_in_inches,
    style,
    styled,
)

BAND = "#dddddd"
KEPT, LOST = FATE_COLORS["kept"], FATE_COLORS["flushed"]
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")


def plot_update_ratios(
    report: UpdateReport,
    *,
    formats: Sequence[FormatLike] = (),
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the histogram of |u/w|, what is lost in another colour than what moves the weight.

    Updates of zero have a bar of their own on the left; what lies beyond the range is in two bars at its ends, with the
    updates of weights that are zero on the right.

    Parameters
    ----------
    report : UpdateReport
        What to draw.
    formats : sequence of format specs
        Whose thresholds are marked as bands: left of it adding and subtracting must be lost, right of it neither can.
        Default: that of the report.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    finite = report.count - report.nonfinite
    limits = [swamping_thresholds(fmt) for fmt in formats or (report.format,)]
    bands = [(-fixed.log2(t.subtract_must.ratio), -fixed.log2(t.add_can.ratio)) for t in limits]
    low, high = math.floor(min(left for left, _ in bands)) - 12, math.ceil(max(right for _, right in bands)) + 9
    lost, moved = (_binned(counts, low, high) for counts in (report.lost_ratios, report.ratios))
    moved[-1] += report.zero_weights
    lost[-1] += report.lost - sum(lost)
    places = [low - 2.0, *range(low, high), high + 1.0]
    with styled(ax) as ax:
        dress(ax, title=title)
        below = [percent_of(n, finite) for n in lost]
        above = [percent_of(n - m, finite) for n, m in zip(moved, lost, strict=True)]
        ax.bar(places, below, 0.92, align="edge", color=LOST, label=f"lost in {report.format}")
        ax.bar(places, above, 0.92, bottom=below, align="edge", color=KEPT, label="moves the weight")
        zero = percent_of(finite - report.nonzero, finite)
        ax.bar([low - 4.0], [zero], 0.92, align="edge", color=OWN, label="_zero")
        tallest = max([*(x + y for x, y in zip(below, above, strict=True)), zero, 1e-9])
        ax.set_xlim(low - 5, high + 3)
        ax.set_ylim(0, 1.32 * tallest)
        for i, (threshold, (left, right)) in enumerate(zip(limits, bands, strict=True)):
            ax.axvspan(left, right, color=BAND, linewidth=0, zorder=0, label=f"_{threshold.format.name}")
            words = f"must be lost ◂ {threshold.format.name} ▸ moves"
            _say(ax, (left + right) / 2, (1.24 - 0.1 * i) * tallest, words)
        ticks = powers_between(low, high, size_in_inches(ax)[0] / 0.5)
        ends = [(low - 3.5, "0"), (low - 1.5, f"<{power(low)}"), (high + 1.5, f"≥{power(high)}")]
        named = [*((x, power(x)) for x in ticks if low + 1 < x < high - 1), *ends]
        ax.xaxis.set_major_locator(FixedLocator([x for x, _ in named]))
        ax.xaxis.set_major_formatter(FixedFormatter([name for _, name in named]))
        ax.set_xlabel("update / weight, |u/w|")
        ax.set_ylabel("% of elements")
        ax.legend(loc="center right")
    return ax


def _binned(counts: Mapping[int, int], low: int, high: int) -> list[int]:
    """Return the counts below the range, at each exponent in it, and above."""
    below, above = (sum(n for e, n in counts.items() if beyond(e)) for beyond in (low.__gt__, high.__le__))
    return [below, *(counts.get(e, 0) for e in range(low, high)), above]


def _say(ax: Axes, x: float, y: float, text: str, *, ha: str = "center", color: str = INK) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
    ax.text(x, y, text, ha=ha, va="bottom", fontsize=SMALL, color=color, bbox=box)


def plot_frozen_fraction(
    gaps: Mapping[str, WeightGaps],
    exponents: Sequence[int],
    *,
    marks: Mapping[str, float] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the share of weights that an update cannot move against its size; ties to even.

    The curves are steps: between two powers of two all sizes do the same.

    Parameters
    ----------
    gaps : mapping of str to WeightGaps
        What the curves are called, and of which weights they are.
    exponents : sequence of int
        From 2^k of the first to 2^(k+1) of the last.
    marks : mapping of str to float, optional
        Sizes to mark, by what they are called.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    edges = [2.0**k for k in (*exponents, max(exponents) + 1)]
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        for i, (name, g) in enumerate(gaps.items()):
            shares = [100 * g.frozen(1.5 * 2.0**k).fraction for k in exponents]
            ax.stairs(
                shares,
                edges,
                baseline=None,
                color=COLORS[i % len(COLORS)],
                linestyle=LINES[i % 4],
                linewidth=1.8,
                label=name,
            )
        ax.set_xscale("log", base=2)
        ax.set_xlim(edges[0], edges[-1])
        _powers(ax.xaxis, min(exponents), max(exponents) + 1, size_in_inches(ax)[0] / 0.5)
        ax.set_ylim(0, 118 if marks else 104)
        ax.set_yticks(range(0, 101, 20))
        for i, (name, size) in enumerate((marks or {}).items()):
            ax.axvline(size, color=INK, linewidth=0.8, linestyle=":", label=f"_{name}")
            _say(ax, size, 103 + 7 * (i % 2), name)
        ax.set_xlabel("size of the update |u|")
        ax.set_ylabel("% of weights that cannot move")
        ax.legend(loc="best")
    return ax


def plot_stopping_sums(sums: Sequence[RunningSum], *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw running sums of one series against the number of terms, and where each stops.

    Parameters
    ----------
    sums : sequence of RunningSum
        As in ``SwampingResult.sums``.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    last = 8 * max(s.end.terms for s in sums)
    labelled: set[float] = set()
    counting = sums[0].end.series.startswith("counting")
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        for i, s in enumerate(sums):
            name = s.end.format.name + ("" if s.end.mode.value == "ties_to_even" else f" {s.end.mode.value}")
            color = COLORS[i % len(COLORS)]
            ax.plot([*s.terms, last], [*s.values, s.end.value], color=color, linestyle=LINES[i % 4], label=name)
            if s.end.stopped:
                ax.plot(s.end.terms, s.end.value, "o", color=color, markersize=5, label=f"_{name} stops")
                if s.end.value not in labelled:
                    place: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
                    ax.annotate(_value(s.end.value), (last, s.end.value), fontsize=SMALL, **place)
                labelled.add(s.end.value)
        ax.set_xscale("log", base=2)
        ax.set_xlim(1, last)
        _powers(ax.xaxis, 0, fixed.log2(last), size_in_inches(ax)[0] / 0.5)
        if counting:
            ax.set_yscale("log", base=2)
            ax.margins(y=0.08)
            _powers(ax.yaxis, 0, fixed.log2(max(s.end.value for s in sums if math.isfinite(s.end.value))) + 1, 10)
        else:
            ax.set_ylim(bottom=0)
        ax.set_xlabel("terms added one by one")
        ax.set_ylabel("running sum")
        ax.legend(loc="upper left")
    return ax


def _powers(axis: Axis, low: float, high: float, room: float) -> None:
    """Put ticks at powers of two on a logarithmic axis from 2^low to 2^high."""
    ticks = powers_between(low, high, room)
    axis.set_major_locator(FixedLocator([2.0**k for k in ticks]))
    axis.set_major_formatter(FixedFormatter([power(k) for k in ticks]))
    axis.set_minor_locator(NullLocator())


def _value(value: float) -> str:
    mantissa, exponent = math.frexp(value)
    return power(exponent - 1) if mantissa == 0.5 and exponent > 14 else f"{value:.6g}"


def plot_descent_quality(result: SwampingResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the effective descent quality at each stage: formats and optimizers, ties to even and stochastic.

    Parameters
    ----------
    result : SwampingResult
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
    optimizers = [optimizer for optimizer, _ in result.config.runs]
    with styled(ax) as ax:
        dress(ax, title=title)
        ax.axhline(1, color=INK, linewidth=0.8, label="_perfect")
        for i, fmt in enumerate(result.config.formats):
            for k, optimizer in enumerate(optimizers):
                for mode in MODES:
                    even = mode == "ties_to_even"
                    shift = 0 if even else 0.03 * (len(optimizers) * i + k + 1)
                    ratios = [result.look(optimizer, stage).reports[fmt][mode].edq_ratio for stage in STAGES]
                    ax.plot(
                        [x + shift for x in range(len(STAGES))],
                        ratios,
                        color=COLORS[i],
                        linestyle=LINES[k] if even else "none",
                        linewidth=1.5,
                        marker=MARKERS[k],
                        markerfacecolor=COLORS[i] if even else "white",
                        markersize=6,
                        label=f"{fmt}, {optimizer}" if even else f"_{fmt}, {optimizer}, stochastic",
                    )
        ax.plot([], [], "o", color=OWN, markerfacecolor="white", linestyle="none", label="stochastic")
        ax.set_xticks(range(len(STAGES)), STAGES)
        ax.set_xlim(-0.2, len(STAGES) - 0.8)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("effective descent quality, <d,u>/||u||²")
        ax.set_xlabel("stage of the training")
        ax.legend(loc="lower left")
    return ax


@figure_of_report("swamping")
def swamping_figure(result: SwampingResult) -> Figure:
    """Draw what the swamping experiment found on one page.

    Above, the ratios of update and weight at the start and at the end of the first run, coloured by what becomes of
    them in the first format; in the middle the effective descent quality and the frozen fraction at the end of that
    run; below, the running sums.

    Parameters
    ----------
    result : SwampingResult
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    """
    config = result.config
    (optimizer, rate), fmt = config.runs[0], config.formats[0]
    with style():
        figure = Figure(figsize=(11, 11), dpi=120, layout="constrained")
        figure.suptitle("Weights of a digits MLP in 16 bits: which updates are lost", x=0.01, ha="left")
        axes = figure.subplots(3, 2)
        for ax, stage in zip(axes[0], (STAGES[0], STAGES[-1]), strict=True):
            report = result.look(optimizer, stage).reports[fmt]["ties_to_even"]
            share = percent_label(percent_of(report.lost, report.nonzero))
            plot_update_ratios(
                report,
                formats=config.formats,
                ax=ax,
                title=f"{optimizer.capitalize()}, {stage}: {share} % of the updates lost in {fmt}",
            )
        plot_descent_quality(result, ax=axes[1, 0], title="How much of the step is made")
        end = result.look(optimizer, STAGES[-1])
        plot_frozen_fraction(
            {name: end.gaps[name] for name in config.formats},
            config.update_exponents,
            marks={f"learning rate {rate:g}": rate},
            ax=axes[1, 1],
            title=f"Weights that stand still ({optimizer}, end)",
        )
        names = list(dict.fromkeys(s.end.series for s in result.sums))
        for ax, name in zip(axes[2], names, strict=False):
            chosen = [s for s in result.sums if s.end.series == name]
            plot_stopping_sums(chosen, ax=ax, title=f"{name.capitalize()}: where the sum stops")
    return figure


def swamping_scan_figure(result: FrozenScan | UpdateScan) -> Figure:
    """Draw what the command found: frozen fractions against |u| in each format, or ratios in the first format.

    Parameters
    ----------
    result : FrozenScan or UpdateScan
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    Raises
    ------
    ValueError
        It has no report on updates in any format, as where those of a recorded run are not measurable.

    """
    with style():
        figure = Figure(figsize=(8.5, 4.4), dpi=120, layout="constrained")
        ax = figure.add_subplot()
        if isinstance(result, UpdateScan):
            if not result.formats:
                raise ValueError("there is no report on updates in any format: nothing to draw")
            report = result.total[0]
            share = percent_label(percent_of(report.lost, report.nonzero))
            title = f"All updates: {share} % of those that are not zero are lost in {report.format}"
            plot_update_ratios(report, formats=result.formats, ax=ax, title=title)
            return figure
        curves = {f"{g.format}, all weights": g for g in result.total}
        for info, gaps in result.tensors[:3]:
            curves.setdefault(f"{gaps[0].format}, {plain_text(info.name)}", gaps[0])
        plot_frozen_fraction(
            curves,
            _exponents(result),
            marks={f"{size:.3g}": size for size in result.update_sizes if size},
            ax=ax,
            title="Weights that stand still",
        )
    return figure


def _exponents(result: FrozenScan) -> range:
    """Return a range from where all weights are frozen to where none is, and the sizes that were asked for."""
    sizes = [size for size in result.update_sizes if size]
    for gaps in result.total:
        finite = [size for key in gaps.gaps for size in (key.up, key.down) if math.isfinite(size)]
        half = sorted(finite, key=float)
        sizes += half[len(half) // 50 :: max(len(half) - 1, 1)] or [1.0]
        sizes += half[-1:]
    logs = fixed.log2(np.array(sizes or [1.0]))
    return range(max(math.floor(logs.min()) - 2, -149), min(math.ceil(logs.max()) + 2, 127))
