"""The figure of the loss-scaling experiment: recovery, search and accidents."""

from __future__ import annotations

import math
import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from precision_lab.experiments.loss_scaling import LossScalingResult, ScaledRun
from precision_lab.numerics import fixed
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import (
    FATE_COLORS,
    INK,
    MARKERS,
    OWN,
    PALE,
    SMALL,
    dress,
    plain_ticks,
    power,
    powers_between,
    size_in_inches,
    style,
    styled,
)

SAFE = "#009E73"
"""The green of what is as good as float32."""

OPEN, OPEN_TEXT = "#E69F00", "#7a5400"
"""The yellow of what is not decided."""

OUTCOME_COLORS = {
    "trains": "#ffffff",
    "untrained": "#fbeee0",
    "ruined": "#f7d9c4",
    "stuck": "#e8b48f",
    "stopped": "#d9d9d9",
    "NaN": FATE_COLORS["flushed"],
}
"""How a run with an accident ended, and the colour of its cell."""


def plot_recovery(result: LossScalingResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the final loss against the product of the loss's factor c and the loss scale S.

    Parameters
    ----------
    result : LossScalingResult
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
    config = result.config
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        for i, (c, runs) in enumerate(result.static.items()):
            _plot_seeds(ax, runs)
            exponents = [k for k, (first, *_) in runs.items() if math.isfinite(first.final_loss)]
            ax.plot(
                exponents,
                [runs[k][0].final_loss for k in exponents],
                marker=MARKERS[i % len(MARKERS)],
                markersize=9 - 2.5 * i,
                markerfacecolor="none" if i == 0 else None,
                linewidth=1.0,
                label=f"static S, c = {power(c)}" if c else "static S, c = 1",
                zorder=3 + i,
            )
        for start, (run, *_) in result.dynamic.items():
            ax.plot(
                [fixed.log2(run.loss_scales[-1] * run.factor)],
                [run.final_loss],
                linestyle="none",
                marker="*",
                markersize=11,
                color="#E69F00",
                markeredgecolor=INK,
                markeredgewidth=0.6,
                zorder=8,
                label=f"dynamic, c = {power(config.least)}, where S ended"
                if start == min(result.dynamic)
                else f"_{start}",
            )
        target = result.float32[config.least][0]
        ax.axhline(target.final_loss, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="float32")
        ax.axhline(target.initial_loss, color=PALE, linewidth=0.8, linestyle=":", label="untrained")
        ax.set_yscale("log")
        ax.set_ylim(top=3 * ax.get_ylim()[1])  # room for the words
        plain_ticks(ax.yaxis, *ax.get_ylim())
        low, high = config.grid[0], config.grid[-1]
        ax.set_xlim(low - 1, high + 1)
        powers = powers_between(low, high, size_in_inches(ax)[0] / 0.45)
        ax.xaxis.set_major_locator(FixedLocator([float(k) for k in powers]))
        ax.xaxis.set_major_formatter(FixedFormatter([power(k) for k in powers]))
        ax.set_xlabel(f"c · S, what {config.format} sees of the loss's factor")
        ax.set_ylabel("final training loss (cross-entropy, nats)")
        _findings(ax, result)
        ax.legend(loc="center", ncols=2)
    return ax


def _plot_seeds(ax: Axes, runs: dict[int, tuple[ScaledRun, ...]]) -> None:
    """Draw a dot for each seed but the first."""
    dots = [(k, run.final_loss) for k, (_, *others) in runs.items() for run in others if math.isfinite(run.final_loss)]
    if dots:
        ax.plot(
            *zip(*dots, strict=True),
            linestyle="none",
            marker=".",
            markersize=4,
            color=PALE,
            label=f"other seeds, up to {max(map(len, runs.values())) - 1}",
            zorder=2,
        )


def _findings(ax: Axes, result: LossScalingResult) -> None:
    """Shade what keeps float32's result and what is not decided, and say so above."""
    shown: list[tuple[float, str, str]] = []
    if (plateau := result.plateau) is not None:
        ax.axvspan(plateau[0] - 0.5, plateau[1] + 0.5, color=SAFE, alpha=0.08, linewidth=0, label="_plateau")
        words = f"keeps float32's result: {power(plateau[0])} to {power(plateau[1])}"
        shown.append((sum(plateau) / 2, words, "#00664a"))
    for k in result.undecided:
        ax.axvspan(k - 0.5, k + 0.5, color=OPEN, alpha=0.22, linewidth=0, label="_undecided")
        shown.append((k, "not\ndecided", OPEN_TEXT))
    for x, words, color in shown:
        ax.text(
            x,
            0.97,
            words,
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=8.5 if "keeps" in words else SMALL,
            color=color,
        )


def plot_search(result: LossScalingResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw c * S over the steps for dynamic scales that start too low, about right and too high; the first seed's.

    The legend says how their losses end beside float32's.

    Parameters and return value as `plot_recovery`.
    """
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        firsts = {start: run for start, (run, *_) in result.dynamic.items()}
        scales = [run.loss_scales * run.factor for run in firsts.values()]
        if (plateau := result.plateau) is not None:
            ax.axhspan(plateau[0] - 0.5, plateau[1] + 0.5, color=SAFE, alpha=0.08, linewidth=0)
        for start, run in firsts.items():
            label = f"from S = {power(start)}"
            if (ratio := result.searches[start]).n > 1:
                label += f": {ratio.text}"
            _plot_scale(ax, run, label, run.factor)
        if scales:
            low, high = fixed.log2(min(s.min() for s in scales)), fixed.log2(max(s.max() for s in scales))
            _power_ticks(ax, low - 2 - 0.6 * (high - low), high + 2)  # room for the legend
        ax.set_xlim(0, result.config.steps)
        ax.set_xlabel("step (crosses: skipped)")
        ax.set_ylabel("c · S")
        if scales:
            ax.legend(loc="lower right")
    return ax


def plot_accident(
    result: LossScalingResult,
    accident: str,
    *,
    rules: tuple[str, ...] = (),
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the loss scale of each rule from the beginning of an accident on; crosses mark skipped steps.

    Parameters
    ----------
    result : LossScalingResult
        What to draw.
    accident : str
        Its name.
    rules : tuple of str
        Names of the rules to draw; default: all.
    ax, title
        As in `plot_recovery`.

    Raises
    ------
    ValueError
        There is no accident or no rule of such a name.

    """
    if accident not in result.accidents:
        raise ValueError(f"accident must be one of {', '.join(result.accidents)}; got {accident!r}")
    runs = {run.name: run for run in result.accidents[accident]}
    if unknown := [name for name in rules if name not in runs]:
        raise ValueError(f"rules must be among {', '.join(runs)}; got {unknown[0]!r}")
    begin = result.config.accident_at
    length = next(a.steps for a in result.config.accidents if a.name == accident)
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        ax.axvspan(begin, begin + length, color=PALE, alpha=0.15, linewidth=0)
        view = slice(max(0, begin - 5), begin + 2 * length + 20)
        for name in rules or runs:
            _plot_scale(ax, runs[name], name, 1.0, view)
        ax.set_xlim(view.start, view.stop)
        shown = np.concatenate([runs[name].loss_scales[view] for name in rules or runs])
        _power_ticks(ax, fixed.log2(shown.min()) - 1, fixed.log2(shown.max()) + 1)
        ax.set_xlabel("step (shaded: the accident)")
        ax.set_ylabel("loss scale S")
        ax.legend(loc="best")
    return ax


def plot_outcomes(result: LossScalingResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw a table of the runs with accidents: final loss and skipped steps of every rule, coloured by the outcome.

    Parameters and return value as `plot_recovery`.
    """
    accidents = list(result.accidents)
    names = [run.name for run in result.accidents[accidents[0]]]
    with styled(ax) as ax:
        dress(ax, title=title)
        ax.grid(visible=False)
        for column, accident in enumerate(accidents):
            for row, run in enumerate(result.accidents[accident]):
                _draw_outcome(ax, column, row, run, result.config.accident_at)
        ax.set_xlim(-0.5, len(accidents) - 0.5)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_yticks(range(len(names)), [_typeset(name) for name in names])
        ax.set_xticks(range(len(accidents)), [_typeset(name).replace(" for ", "\nfor ") for name in accidents])
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return ax


def _typeset(name: str) -> str:
    """Write the powers of two in a name as such."""
    return re.sub(r"2\^(-?\d+)", r"$2^{\1}$", name)


def _draw_outcome(ax: Axes, column: int, row: int, run: ScaledRun, begin: int) -> None:
    box = (column - 0.5, row - 0.5)
    ax.add_patch(Rectangle(box, 1, 1, facecolor=OUTCOME_COLORS[run.outcome], edgecolor="white", linewidth=2))
    skipped = int(run.skipped[begin:].sum())
    note = f"{skipped:,} skipped" if skipped else "none skipped"
    how = {"trains": "", "NaN": ""}.get(run.outcome, f", {run.outcome}")
    final = f"loss {run.final_loss:.3g}" if math.isfinite(run.final_loss) else "loss NaN"
    white = run.outcome == "NaN"
    if run.nonfinite_losses:
        note, how = note + how, f"\nloss inf or NaN in {run.nonfinite_losses:,} steps"
    top = -0.26 if run.nonfinite_losses else -0.15
    ax.text(column, row + top, final, ha="center", va="center", fontsize=8.5, color="white" if white else INK)
    below = 0.16 if run.nonfinite_losses else 0.24
    ax.text(column, row + below, note + how, ha="center", va="center", fontsize=SMALL, color="white" if white else OWN)


def _plot_scale(ax: Axes, run: ScaledRun, label: str, factor: float, view: slice = slice(None)) -> None:
    """Draw log2 of factor * S over the steps of the view, a cross at each that was skipped."""
    scales = fixed.log2(run.loss_scales * factor)
    steps = np.arange(scales.size)[view]
    (line,) = ax.plot(steps, scales[view], drawstyle="steps-post", label=label, linewidth=1.5)
    steps = steps[run.skipped[view]]
    ax.plot(
        steps,
        scales[steps],
        linestyle="none",
        marker="x",
        markersize=4,
        color=line.get_color(),
        label=f"_{label} skipped",
    )


def _power_ticks(ax: Axes, low: float, high: float) -> None:
    """Label a y axis of exponents with powers of two."""
    ax.set_ylim(low, high)
    ticks = powers_between(low, high, size_in_inches(ax)[1] / 0.25)
    ax.yaxis.set_major_locator(FixedLocator([float(k) for k in ticks]))
    ax.yaxis.set_major_formatter(FixedFormatter([power(k) for k in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())


@figure_of_report("loss_scaling")
def loss_scaling_figure(result: LossScalingResult) -> Figure:
    """Draw what the loss-scaling experiment found on one page: recovery, search, accidents."""
    accidents = list(result.accidents)
    with style():
        figure = Figure(figsize=(11, 12), dpi=120, layout="constrained")
        figure.suptitle(f"Loss scaling in {result.config.format}: recovery and accidents", x=0.01, ha="left")
        rows = figure.add_gridspec(2, 1, height_ratios=[1, 1.7])
        plot_recovery(result, ax=figure.add_subplot(rows[0]), title="Only the product of loss factor and scale counts")
        lower = rows[1].subgridspec(1, 2, width_ratios=[1, 1.25])
        left = lower[0].subgridspec(3, 1)
        plot_search(result, ax=figure.add_subplot(left[0]), title="A dynamic scale finds it, at a cost")
        rules = ("torch", "megatron", "deepspeed", "jmp")
        for row, accident in enumerate((accidents[0], accidents[-1]), start=1):
            panel = figure.add_subplot(left[row])
            plot_accident(result, accident, rules=rules, ax=panel, title=_typeset(accident.capitalize()))
        plot_outcomes(
            result,
            ax=figure.add_subplot(lower[1]),
            title=f"Final loss and steps skipped (without an accident, float32: {result.calm.final_loss:.2g})",
        )
    return figure
