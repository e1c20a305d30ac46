"""The figure of the storage experiment: what each configuration costs in loss and in bytes, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from precision_lab.experiments.storage import ConfigurationSummary, StorageResult
from precision_lab.numerics import fixed
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import FATE_COLORS, INK, SMALL, dress, plain_ticks, style, styled

LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)))
KEEPS, LOSES, BREAKS, UNDECIDED = "#009E73", FATE_COLORS["flushed"], "#222222", "#888888"


def _color(outcome: ConfigurationSummary) -> str:
    if outcome.broken:
        return BREAKS
    return {True: KEEPS, False: LOSES, None: UNDECIDED}[outcome.keeps]


def plot_final_losses(
    outcomes: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the final loss of each configuration, a dot a seed; the band is the spread of the control.

    Parameters
    ----------
    outcomes : sequence of ConfigurationSummary
        The control first.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    ValueError
        There are no outcomes.

    """
    if not outcomes:
        raise ValueError("there are no outcomes to draw")
    with styled(ax) as ax:
        dress(ax, title=title, grid="x")
        control = [run.final_loss for run in outcomes[0].runs]
        ax.axvspan(min(control), max(control), color=KEEPS, alpha=0.2, linewidth=1, label="_control")
        finite = [run.final_loss for o in outcomes for run in o.runs if math.isfinite(run.final_loss)]
        right = max(finite) * 2
        for row, outcome in enumerate(outcomes):
            color = _color(outcome)
            losses = [run.final_loss for run in outcome.runs]
            shown = [loss if math.isfinite(loss) else right for loss in losses]
            ax.plot(shown, [row] * len(shown), "o", color=color, markersize=4.5, alpha=0.75, label=f"_{outcome.label}")
            if not all(map(math.isfinite, losses)):
                ax.annotate("NaN", (right, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=SMALL)
        _loss_axis(ax, min(finite), max(finite))
        ax.set_yticks(range(len(outcomes)), [outcome.label for outcome in outcomes])
        ax.set_ylim(len(outcomes) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"final loss ({_loss(outcomes)})")
        ax.set_ylabel("storage")
    return ax


def _loss_axis(ax: Axes, low: float, high: float) -> None:
    """Make the x axis logarithmic where the losses differ by much, with a few labels."""
    if low <= 0 or high < 1.5 * low:
        ax.margins(x=0.15)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.ticklabel_format(axis="x", useOffset=False)
        return
    ax.set_xscale("log")
    plain_ticks(ax.xaxis, low / 1.6, high * 1.6, 4)


def _loss(outcomes: Sequence[ConfigurationSummary]) -> str:
    """Name the loss, with its unit."""
    return "squared error" if outcomes[0].runs[0].config.model == "least_squares" else "cross-entropy, nats"


def plot_learning_curves(
    outcomes: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the batch loss over the steps, means of blocks, of the first seed; parameters as in `plot_final_losses`."""
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        for i, outcome in enumerate(outcomes):
            run = outcome.runs[0]
            ax.plot(run.middles, run.losses, label=outcome.label, linewidth=1.4, linestyle=LINES[i // 7 % len(LINES)])
        ax.set_yscale("log")
        drawn = [loss for o in outcomes for loss in o.runs[0].losses if 0 < loss < math.inf]
        if drawn:
            plain_ticks(ax.yaxis, min(drawn) / 1.2, max(drawn) * 1.2)
        ax.set_xlabel("step")
        ax.set_ylabel(f"batch loss ({_loss(outcomes)})")
        ax.legend(loc="upper right", fontsize=SMALL)
    return ax


def plot_descent_curves(
    outcomes: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the effective descent quality over the steps of the first seed (the curves of Collage, Yu et al. 2024).

    1 is the whole step, 0 is standstill: <d, u> / ||u||^2, pooled over blocks of steps. Parameters as in
    `plot_final_losses`.
    """
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        ax.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), label="_whole step")
        for i, outcome in enumerate(outcomes):  # curves that lie on each other: the first are the widest
            run, line = outcome.runs[0], LINES[i % len(LINES)]
            width = max(1.3, 5 - 1.2 * i)
            ax.plot(run.middles, run.edq_ratios, label=outcome.label, linewidth=width, linestyle=line)
        drawn = [edq for o in outcomes for edq in o.runs[0].edq_ratios if math.isfinite(edq)]
        ax.set_ylim(min([0.0, *drawn]), max([1.0, *drawn]) + 0.05)
        ax.set_xlabel("step")
        ax.set_ylabel("effective descent quality, <d,u>/||u||²")
        ax.legend(loc="center right", fontsize=SMALL)
    return ax


def plot_bytes(outcomes: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw final loss over the control's against the bytes per parameter; parameters as in `plot_final_losses`."""
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        drawn = sorted((o for o in outcomes if 0 < o.ratio < math.inf), key=lambda o: (o.ratio, o.bytes_per_parameter))
        for outcome in drawn:
            ax.plot([outcome.bytes_per_parameter], [outcome.ratio], "o", color=_color(outcome), markersize=6)
        texts: dict[tuple[float, int], list[Any]] = {}
        for outcome in drawn:
            near = (outcome.bytes_per_parameter, round(6 * fixed.log10(outcome.ratio)))
            texts.setdefault(near, [outcome.ratio]).append(outcome.label)
        for (size, _), (ratio, *labels) in texts.items():
            # the same loss at several sizes: every other label stands above
            up = sum(place < (size, 0) for place in texts if place[1] == _) % 2
            ax.annotate(
                "\n".join(map(str, labels)),
                (size, float(ratio)),
                xytext=(0, 8 if up else -8),
                textcoords="offset points",
                ha="center",
                va="bottom" if up else "top",
                fontsize=SMALL,
            )
        ax.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        low, high = ax.get_ylim()
        ticks = [t for t in (0.5, 1, 2, 3, 5, 10, 20, 50, 100) if low / 1.2 <= t <= high * 1.2]
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
        ax.set_ylim(low / 9, high * 2)  # room for the labels
        sizes = [o.bytes_per_parameter for o in outcomes]
        ax.set_xlim(min(sizes) - 2, max(sizes) + 2)
        ax.set_xticks(sorted(set(sizes)))
        ax.set_xlabel("bytes per parameter, measured")
        ax.set_ylabel("final loss / float32's")
    return ax


def plot_lost_updates(
    outcomes: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the share of lost updates and the EDQ ratio of each configuration; parameters as in `plot_final_losses`."""
    with styled(ax) as ax:
        dress(ax, title=title, grid="x")
        rows = np.arange(len(outcomes))
        ax.barh(rows - 0.2, [o.lost for o in outcomes], height=0.38, color=FATE_COLORS["flushed"], label="lost updates")
        ax.barh(rows + 0.2, [o.edq_ratio for o in outcomes], height=0.38, color=FATE_COLORS["kept"], label="EDQ ratio")
        ax.set_yticks(rows, [o.label for o in outcomes])
        ax.set_ylim(len(outcomes) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_xlim(0, 1.55 * np.nanmax([1.0, *(o.edq_ratio for o in outcomes)]))  # room for the legend
        ax.set_xlabel("share of non-zero updates; ratio <d,u>/||u||²")
        ax.set_ylabel("storage")
        ax.legend(loc="center right", fontsize=SMALL)
    return ax


def training_figure(result: StorageResult) -> Figure:
    """Draw final losses and learning curves of the settings of a result, a row each."""
    with style():
        figure = Figure(figsize=(11, 4.6 * len(result.outcomes)), dpi=120, layout="constrained")
        rows = figure.add_gridspec(len(result.outcomes), 2)
        for row, (name, outcomes) in enumerate(result.outcomes.items()):
            plot_final_losses(outcomes, ax=figure.add_subplot(rows[row, 0]), title=f"{result.config.model}, {name}")
            plot_learning_curves(outcomes, ax=figure.add_subplot(rows[row, 1]), title="Batch loss, first seed")
    return figure


_CURVES = ("fp32", "master_bf16", "pure_bf16", "pure_fp16", "bf16_kahan", "bf16_stochastic", "collage_plus")


@figure_of_report("storage")
def storage_figure(result: StorageResult) -> Figure:
    """Draw what the storage experiment found on one page."""
    settings = list(result.outcomes)
    first, last = result.outcomes[settings[0]], result.outcomes[settings[-1]]
    with style():
        figure = Figure(figsize=(14, 13), dpi=110, layout="constrained")
        figure.suptitle(
            f"Where are the numbers kept? The digits MLP stored in {len(first)} ways\n"
            "green: keeps float32's result, orange: loses, black: breaks, grey: not decided; a dot a seed, "
            "band: float32's spread",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        rows = figure.add_gridspec(3, 1, height_ratios=[1.15, 1, 0.9])
        top = rows[0].subgridspec(1, len(settings))
        for column, setting in enumerate(settings):
            panel = figure.add_subplot(top[column])
            plot_final_losses(result.outcomes[setting], ax=panel, title=setting)
            if column:
                panel.set_yticklabels([])
                panel.set_ylabel("")
        middle = rows[1].subgridspec(1, 3)
        curves = [o for o in first if o.label in _CURVES] or list(first)
        plot_learning_curves(curves, ax=figure.add_subplot(middle[0]), title=settings[0])
        plot_lost_updates(first, ax=figure.add_subplot(middle[1]), title=f"What becomes of updates ({settings[0]})")
        plot_bytes(last, ax=figure.add_subplot(middle[2]), title=f"Bytes and loss ({settings[-1]})")
        if result.sections:
            bottom = rows[2].subgridspec(1, len(result.sections))
            for column, (name, outcomes) in enumerate(result.sections.items()):
                panel = figure.add_subplot(bottom[column])
                plot_final_losses(outcomes, ax=panel, title=_SECTION_TITLES[name])
                if column:
                    panel.set_ylabel("")
    return figure


_DESCENT = ("master_bf16", "bf16_kahan", "collage_light", "collage_plus", "pure_bf16", "bf16_stochastic")


@figure_of_report("descent_quality")
def descent_quality_figure(result: StorageResult) -> Figure:
    """Draw the curves of effective descent quality of Collage (Yu et al. 2024) in miniature, a panel a setting."""
    with style():
        figure = Figure(figsize=(4.6 * len(result.outcomes), 4.4), dpi=120, layout="constrained")
        figure.suptitle(
            "A classic in miniature: effective descent quality, after Collage (Yu et al. 2024)", x=0.01, ha="left"
        )
        panels = figure.subplots(1, len(result.outcomes), squeeze=False)[0]
        for i, (panel, (name, outcomes)) in enumerate(zip(panels, result.outcomes.items(), strict=True)):
            shown = sorted((o for o in outcomes if o.label in _DESCENT), key=lambda o: _DESCENT.index(o.label))
            plot_descent_curves(shown or outcomes, ax=panel, title=name)
            if i:
                panel.set_ylabel("")
                panel.get_legend().remove()
        top = max(panel.get_ylim()[1] for panel in panels)
        for panel in panels:
            panel.set_ylim(0, top)
    return figure


_SECTION_TITLES = {
    "ablation": "Least squares: what is rounded",
    "range": "Range or precision",
    "sensitive": "Transformer: softmax, norm, loss",
    "accumulation": "Sums of micro-batches",
}
