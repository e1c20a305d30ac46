"""The figures of the storage experiment: what each way of storing costs in loss and bytes, how sure that is, why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import NullLocator

from precision_lab.experiments.outcomes import ConfigurationSummary, Run, mean
from precision_lab.experiments.paired import EQUAL, Finding, PairedRatio
from precision_lab.experiments.storage import StorageResult
from precision_lab.numerics import fixed
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import FATE_COLORS, INK, PALE, SMALL, dress, plain_ticks, style, styled

LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)))

FINDING_COLORS: dict[Finding, str] = {
    Finding.KEEPS: "#009E73",
    Finding.ENDS_LOWER: "#00543D",
    Finding.LOSES: FATE_COLORS["flushed"],
    Finding.BREAKS: INK,
    Finding.NOT_DECIDED: "#999999",
}
"""The colour of each finding."""

_MARKS = {Finding.ENDS_LOWER: "v", Finding.BREAKS: "X"}

_LEGEND = (
    "green: keeps float32's result (dark: ends lower), orange: loses, black: breaks, grey: not decided; "
    "line: 90 % interval, band: 3 % to either side"
)


# --- ratios -----------------------------------------------------------------------------------------------------------


def plot_ratios(outcomes: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the final loss of each configuration over the control's, with its interval; the band is 3 % to either side.

    Parameters
    ----------
    outcomes : sequence of ConfigurationSummary
        The control first; it is not drawn.
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
        There is nothing beside a control.

    """
    if len(outcomes) < 2:
        raise ValueError("there are no outcomes beside a control to draw")
    with styled(ax) as ax:
        dress(ax, title=title, grid="x")
        shown = {o.label: o.paired for o in outcomes[1:]}
        low, high = _limits(shown.values())
        _ratio_axis(ax, low, high)
        for row, (label, ratio) in enumerate(shown.items()):
            color = FINDING_COLORS[ratio.finding]
            if not ratio.comparable:
                ax.plot([high], [row], "X", color=color, markersize=5, label=f"_{label}", clip_on=False)
                word = "inf or NaN" if ratio.broken else "no ratio"
                ax.annotate(
                    word, (high, row), (-7, 0), textcoords="offset points", ha="right", va="center", fontsize=SMALL
                )
                continue
            if ratio.n > 1:
                ax.plot([ratio.low, ratio.high], [row, row], color=color, linewidth=2.2, label=f"_{label}, interval")
            ax.plot([ratio.ratio], [row], _MARKS.get(ratio.finding, "o"), color=color, markersize=5, label=f"_{label}")
        ax.set_yticks(range(len(shown)), list(shown))
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("final loss / float32's")
        ax.set_ylabel("storage")
    return ax


def _limits(ratios: Iterable[PairedRatio]) -> tuple[float, float]:
    """Return the ends of an axis of some ratios: all of their intervals, 1, and some room."""
    ends = [1 / 1.05, 1.05]
    for ratio in ratios:
        if ratio.comparable:
            ends += [ratio.ratio] if ratio.n < 2 else [ratio.low, ratio.high]
    low, high = min(ends), max(ends)
    room = float(fixed.exp(0.06 * float(fixed.log(high / low))))
    return max(low / room, 1e-4), min(high * room, 1e4)


_RATIO_TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.7, 0.9, 1, 1.1, 1.3, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000)


def _ratio_axis(ax: Axes, low: float, high: float, *, vertical: bool = False) -> None:
    """Make an axis logarithmic, with plain labels, and draw the band of equal losses."""
    axis = ax.yaxis if vertical else ax.xaxis
    (ax.set_yscale if vertical else ax.set_xscale)("log")
    (ax.axhspan if vertical else ax.axvspan)(1 / EQUAL, EQUAL, color=FINDING_COLORS[Finding.KEEPS], alpha=0.15, lw=0)
    (ax.axhline if vertical else ax.axvline)(1, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
    (ax.set_ylim if vertical else ax.set_xlim)(low, high)
    ticks = [tick for tick in _RATIO_TICKS if low <= tick <= high]
    if len(ticks) < 3:
        ticks = [tick for tick in (0.94, 0.97, 1, 1.03, 1.06) if low <= tick <= high]
    span = float(fixed.log(high / low))
    shown: list[float] = [1]
    for tick in sorted(ticks, key=lambda t: abs(float(fixed.log(t)))):  # from 1 outwards, what has room
        if all(abs(float(fixed.log(tick / other))) > 0.13 * span for other in shown):
            shown.append(tick)
    axis.set_ticks(sorted(shown), [f"{tick:g}" for tick in sorted(shown)])
    axis.set_minor_locator(NullLocator())


def plot_axis(
    groups: Mapping[str, Sequence[ConfigurationSummary]],
    *,
    connected: bool = True,
    ax: Axes | None = None,
    title: str | None = None,
    name: str = "",
) -> Axes:
    """Draw the ratios of a few configurations along an axis of an experiment, with their intervals.

    Filled dots are decided, hollow ones not.

    Parameters
    ----------
    groups : mapping of str to sequence of ConfigurationSummary
        By the values of the axis; the control first.
    connected : bool
        Whether the values lie on a line.
    ax, title
        As in `plot_ratios`.
    name : str
        Label of the axis.

    """
    with styled(ax) as ax:
        dress(ax, title=title, grid="y")
        ratios = {
            label: {at: o.paired for at, group in enumerate(groups.values()) for o in group[1:] if o.label == label}
            for label in dict.fromkeys(o.label for group in groups.values() for o in group[1:])
        }
        _ratio_axis(ax, *_limits([r for found in ratios.values() for r in found.values()]), vertical=True)
        for i, (label, found) in enumerate(ratios.items()):
            shift = 0.0 if connected else 0.14 * (i - (len(ratios) - 1) / 2)
            _curve(ax, label, {at + shift: ratio for at, ratio in found.items()}, i, connected=connected)
        ax.set_xticks(range(len(groups)), list(groups))
        if not connected:
            ax.tick_params(axis="x", labelrotation=25, labelsize=SMALL)
        ax.set_xlim(-0.5, len(groups) - 0.5)
        ax.set_xlabel(name)
        ax.set_ylabel("final loss / float32's")
        ax.legend(fontsize=SMALL)
    return ax


def _curve(ax: Axes, label: str, ratios: Mapping[float, PairedRatio], index: int, *, connected: bool) -> None:
    """Draw ratios over places, with their intervals; hollow is what is not decided."""
    found = {at: ratio for at, ratio in ratios.items() if ratio.comparable}
    color = _color(label, index)
    line = LINES[index % len(LINES)] if connected else "none"
    ax.plot(
        list(found), [r.ratio for r in found.values()], color=color, linewidth=1.3, linestyle=line, label=f"_{label}"
    )
    for at, ratio in found.items():
        if ratio.n > 1:
            ax.plot([at, at], [ratio.low, ratio.high], color=color, linewidth=1.3)
        face = "white" if ratio.finding is Finding.NOT_DECIDED else color
        ax.plot([at], [ratio.ratio], "o", color=color, markerfacecolor=face, markersize=5)
    ax.plot([], [], "o", color=color, linestyle=line, label=label, markersize=5)


def plot_horizon(group: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw how the ratios depend on the number of steps, with their intervals; parameters as in `plot_ratios`."""
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        steps = group[0].runs[0].config.steps
        ratios = {o.label: {**o.paired_after, steps: o.paired} for o in group[1:]}
        _ratio_axis(ax, *_limits([r for found in ratios.values() for r in found.values()]), vertical=True)
        for i, (label, found) in enumerate(ratios.items()):
            _curve(ax, label, {float(at): ratio for at, ratio in found.items()}, i, connected=True)
        ax.set_xscale("log")
        plain_ticks(ax.xaxis, min(group[0].paired_after, default=1) / 1.2, steps * 1.2)
        ax.set_xlabel("steps")
        ax.set_ylabel("loss / float32's")
        ax.legend(fontsize=SMALL, loc="upper left")
    return ax


def plot_horizon_losses(
    group: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the losses themselves, mean of the seeds; a cross is where a run stands still while the control goes on.

    Parameters as in `plot_ratios`.
    """
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        steps = group[0].runs[0].config.steps
        for i, o in enumerate(group):
            means = {at: mean(ratio.losses) for at, ratio in {**o.paired_after, steps: o.paired}.items()}
            color = _color(o.label, i - 1)
            ax.plot(
                *(list(means), list(means.values())), color=color, linewidth=1.3, label=o.label, markersize=3.5,
                marker="o", linestyle=LINES[(i - 1) % len(LINES)] if i else "-",
            )  # fmt: skip
            if o.stalls and o.settled:
                ax.plot([o.settled.step], [o.settled.loss], "x", color=color, markersize=9, markeredgewidth=2)
        ax.set_xscale("log")
        ax.set_yscale("log")
        plain_ticks(ax.xaxis, min(group[0].paired_after, default=1) / 1.2, steps * 1.2)
        low, high = ax.get_ylim()
        plain_ticks(ax.yaxis, low, high)
        ax.set_xlabel("steps (cross: from here on it stands still)")
        ax.set_ylabel(f"loss ({_loss(group)})")
        ax.legend(fontsize=SMALL, loc="lower left")
    return ax


_COLORS = {
    "fp32": INK,
    "pure_bf16": "#D55E00",
    "bf16 weights": "#D55E00",
    "bf16_fp32_moments": "#E69F00",
    "master_bf16": "#0072B2",
    "autocast_bf16": "#0072B2",
    "master_bf16,second_moment=bf16": "#8C6BB1",
    "bf16_stochastic": "#CC79A7",
    "bf16_stochastic_fp32_v": "#009E73",
    "bf16 weights, stochastic": "#009E73",
    "bf16_kahan": "#56B4E9",
    "bf16_kahan_fp32_v": "#56B4E9",
    "collage_light": "#7F7F7F",
    "collage_plus": "#6B4E00",
}
"""The same storage has the same colour in every panel of curves."""


def _color(label: str, index: int) -> str:
    return _COLORS.get(label, f"C{index % 7}")


def _loss(outcomes: Sequence[ConfigurationSummary]) -> str:
    """Name the loss, with its unit."""
    names = {"least_squares": "squared error", "fine_tuning": "squared distance left, of 1"}
    return names.get(outcomes[0].runs[0].config.model, "cross-entropy, nats")


# --- curves over the steps --------------------------------------------------------------------------------------------


def plot_learning_curves(
    outcomes: Sequence[ConfigurationSummary],
    *,
    ax: Axes | None = None,
    title: str | None = None,
    schedule: bool = False,
) -> Axes:
    """Draw the batch loss over the steps, means of blocks, of the first seed.

    Parameters
    ----------
    outcomes, ax, title
        As in `plot_ratios`; the control is drawn too.
    schedule : bool
        Whether to draw the learning rate lightly behind, from 0 to its largest.

    """
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        if schedule:
            _draw_schedule(ax, outcomes[0].runs[0])
        for i, outcome in enumerate(outcomes):
            run = outcome.runs[0]
            look: dict[str, Any] = {"linewidth": 1.4, "linestyle": LINES[i % len(LINES)]}
            if not i:  # the control is a wide pale one below the others, which may lie on it
                look = {"linewidth": 5, "alpha": 0.3}
            ax.plot(run.middles, run.losses, label=outcome.label, color=_color(outcome.label, i), **look)
        drawn = [loss for o in outcomes for loss in o.runs[0].losses if 0 < loss < math.inf]
        if drawn and max(drawn) > 3 * min(drawn):  # else a logarithmic axis has no room for labels
            ax.set_yscale("log")
            plain_ticks(ax.yaxis, min(drawn) / 1.2, max(drawn) * 1.2)
        ax.set_xlabel("step")
        ax.set_ylabel(f"batch loss ({_loss(outcomes)})")
        ax.legend(fontsize=SMALL)
    return ax


def _draw_schedule(ax: Axes, run: Run) -> None:
    """Fill the share of the learning rate behind the curves: the whole height of the axes is all of it."""
    total = run.config.steps
    steps = range(0, total, max(1, total // 100))
    shares = [run.config.schedule.factor(step, total) for step in steps]
    ax.fill_between(
        *(steps, shares), color=PALE, alpha=0.13, linewidth=0, transform=ax.get_xaxis_transform(),
        label="learning rate",
    )  # fmt: skip


def plot_descent_curves(
    outcomes: Sequence[ConfigurationSummary],
    *,
    ax: Axes | None = None,
    title: str | None = None,
    schedule: bool = False,
) -> Axes:
    """Draw the effective descent quality over the steps of the first seed (the curves of Collage, Yu et al. 2024).

    1 is the whole step, 0 is standstill: <d, u> / ||u||^2, pooled over blocks of steps. u is the step that the narrow
    optimizer proposes; dashed, where it was measured, the step of the fp32 optimizer. Parameters as in
    `plot_learning_curves`.
    """
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        if schedule:
            _draw_schedule(ax, outcomes[0].runs[0])
        ax.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), label="_whole step")
        for i, outcome in enumerate(outcomes):  # curves that lie on each other: the first are the widest
            run, color = outcome.runs[0], _color(outcome.label, i)
            ax.plot(*(run.middles, run.edq_ratios), label=outcome.label, linewidth=max(1.3, 5 - 1.2 * i), color=color)
            if any(map(math.isfinite, run.edq_ratios_fp32)):
                ax.plot(
                    *(run.middles, run.edq_ratios_fp32), label=f"_{outcome.label}, fp32's step", linewidth=1.3,
                    color=color, linestyle=LINES[1],
                )  # fmt: skip
        drawn = [edq for o in outcomes for edq in (*o.runs[0].edq_ratios, *o.runs[0].edq_ratios_fp32)]
        finite = [edq for edq in drawn if math.isfinite(edq)]
        ax.set_ylim(min([0.0, *finite]), max([1.0, *finite]) + 0.05)
        ax.set_xlabel("step")
        ax.set_ylabel("effective descent quality, <d,u>/||u||²")
        ax.legend(fontsize=SMALL)
    return ax


# --- what explains it -------------------------------------------------------------------------------------------------


def plot_bytes(outcomes: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw final loss over the control's against the bytes per parameter; parameters as in `plot_ratios`."""
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        drawn = sorted(
            (o for o in outcomes if o.paired.comparable), key=lambda o: (o.paired.ratio, o.bytes_per_parameter)
        )
        for o in drawn:
            color = FINDING_COLORS[o.finding]
            ax.plot([o.bytes_per_parameter], [o.paired.ratio], _MARKS.get(o.finding, "o"), color=color, markersize=6)
        texts: dict[tuple[float, int], list[ConfigurationSummary]] = {}
        for o in drawn:
            texts.setdefault((o.bytes_per_parameter, round(20 * fixed.log10(o.paired.ratio))), []).append(o)
        lifted: list[bool] = []
        for (size, _), there in sorted(texts.items()):
            # what loses is named above its dot, the rest below; neighbours stand at two heights
            up = there[0].paired.ratio > EQUAL
            away = 8 + 11 * (lifted.count(up) % 2)
            lifted.append(up)
            ax.annotate(
                "\n".join(o.label for o in there),
                (size, there[0].paired.ratio),
                xytext=(0, away if up else -away),
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
        ax.set_ylim(low / 5, high * 2)  # room for the labels
        sizes = [o.bytes_per_parameter for o in outcomes]
        ax.set_xlim(min(sizes) - 2, max(sizes) + 2)
        ax.set_xticks(sorted(set(sizes)))
        ax.set_xlabel("bytes per parameter, measured")
        ax.set_ylabel("final loss / float32's")
    return ax


def plot_lost_updates(
    outcomes: Sequence[ConfigurationSummary], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the share of lost updates and the EDQ ratio of each configuration; parameters as in `plot_ratios`."""
    with styled(ax) as ax:
        dress(ax, title=title, grid="x")
        rows = np.arange(len(outcomes))
        ax.barh(rows - 0.2, [o.lost for o in outcomes], height=0.38, color=FATE_COLORS["flushed"], label="lost updates")
        ax.barh(rows + 0.2, [o.edq_ratio for o in outcomes], height=0.38, color=FATE_COLORS["kept"], label="EDQ ratio")
        second = {row: o.edq_ratio_fp32 for row, o in enumerate(outcomes) if math.isfinite(o.edq_ratio_fp32)}
        if second:
            places = [row + 0.2 for row in second]
            ax.plot(list(second.values()), places, "|", color=INK, markersize=7, label="EDQ ratio, fp32's step")
        ax.set_yticks(rows, [o.label for o in outcomes])
        ax.set_ylim(len(outcomes) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        edqs = [o.edq_ratio for o in outcomes]
        ax.set_xlim(0, 1.55 * np.nanmax([1.0, *edqs, *second.values()]))  # room for the legend
        ax.set_xlabel("share of non-zero updates; ratio <d,u>/||u||²")
        ax.set_ylabel("storage")
        ax.legend(loc="center right", fontsize=SMALL)
    return ax


# --- whole figures ----------------------------------------------------------------------------------------------------


def training_figure(result: StorageResult) -> Figure:
    """Draw ratios and learning curves of the settings of a result, a row each."""
    with style():
        figure = Figure(figsize=(11, 4.6 * len(result.outcomes)), dpi=120, layout="constrained")
        figure.suptitle(_LEGEND, x=0.01, ha="left", fontsize=9)
        rows = figure.add_gridspec(len(result.outcomes), 2)
        for row, (name, outcomes) in enumerate(result.outcomes.items()):
            heading = f"{outcomes[0].runs[0].config.model}, {name}"
            if len(outcomes) > 1:
                plot_ratios(outcomes, ax=figure.add_subplot(rows[row, 0]), title=heading)
            plot_learning_curves(_few(outcomes), ax=figure.add_subplot(rows[row, 1]), title="Batch loss, first seed")
    return figure


_CURVES = ("fp32", "master_bf16", "pure_bf16", "bf16_kahan", "bf16_stochastic", "bf16_stochastic_fp32_v")


def _few(outcomes: Sequence[ConfigurationSummary]) -> list[ConfigurationSummary]:
    """Return those whose curves can be told apart; all if there are few."""
    if len(outcomes) <= 6:
        return list(outcomes)
    return [o for o in outcomes if o.label in _CURVES or o is outcomes[0]]


@figure_of_report("storage")
def storage_figure(result: StorageResult) -> Figure:
    """Draw what the storage experiment found on one page: miniatures, ratios, and what they depend on."""
    rows: list[tuple[float, Callable[[Figure, SubplotSpec], None]]] = []
    if result.miniatures:
        rows.append((1.0, lambda figure, place: _miniatures(figure, place, result)))
    rows.append((1.25, lambda figure, place: _ratios(figure, place, result)))
    dependences = _dependences(result)
    if dependences:
        rows.append((1.0, lambda figure, place: _in_a_row(figure, place, dependences)))
    with style():
        figure = Figure(figsize=(14, 13 * sum(height for height, _ in rows) / 3.25), dpi=94, layout="constrained")
        most = max(map(len, result.outcomes.values()), default=0)
        ways = f", the digits in {most} ways" if most else ""
        figure.suptitle(
            f"Where are the numbers kept? Final loss over float32's, paired by seed{ways}\n{_LEGEND}",
            x=0.01, ha="left", fontsize=11,
        )  # fmt: skip
        grid = figure.add_gridspec(len(rows), 1, height_ratios=[height for height, _ in rows])
        for i, (_, draw) in enumerate(rows):
            draw(figure, grid[i])
    return figure


def _in_a_row(figure: Figure, place: SubplotSpec, draws: Sequence[Callable[[Axes], object]]) -> None:
    panels = place.subgridspec(1, len(draws))
    for i, draw in enumerate(draws):
        draw(figure.add_subplot(panels[i]))


def _miniatures(figure: Figure, place: SubplotSpec, result: StorageResult) -> None:
    """Draw the loss and the descent quality of each miniature over its steps, the learning rate behind."""
    panels = place.subgridspec(1, 2 * len(result.miniatures))
    for i, (name, group) in enumerate(result.miniatures.items()):
        shown = _few(group)
        loss, descent = (figure.add_subplot(panels[2 * i + k]) for k in range(2))
        plot_learning_curves(shown, ax=loss, title=name.capitalize(), schedule=True)
        loss.get_legend().remove()  # type: ignore[union-attr]  # there is room in the next panel
        plot_descent_curves(shown, ax=descent, title="How much of the step is made", schedule=True)
        descent.legend(loc="center left", fontsize=SMALL)


def _ratios(figure: Figure, place: SubplotSpec, result: StorageResult) -> None:
    """Draw the ratios of the miniatures below each other, and beside them those of the settings."""
    small = [(name.capitalize(), group) for name, group in result.miniatures.items() if len(group) > 1]
    large = [(name, group) for name, group in result.outcomes.items() if len(group) > 1]
    widths = [1.35] * bool(small) + [1.45 - 0.45 * bool(column) for column in range(len(large))]  # room for the names
    panels = place.subgridspec(1, len(widths), width_ratios=widths)
    if small:
        stacked = panels[0].subgridspec(len(small), 1, height_ratios=[len(group) + 1 for _, group in small])
        for row, (name, group) in enumerate(small):
            plot_ratios(group, ax=figure.add_subplot(stacked[row]), title=name).set_ylabel("")
    for column, (name, group) in enumerate(large):
        panel = plot_ratios(group, ax=figure.add_subplot(panels[bool(small) + column]), title=name)
        if column:
            panel.set_yticklabels([])
        if column or small:
            panel.set_ylabel("")


def _dependences(result: StorageResult) -> list[Callable[[Axes], object]]:
    """Return what draws the axes of the experiment and the horizon."""
    draws: list[Callable[[Axes], object]] = []
    if groups := result.axes.get("beta2"):
        draws.append(lambda ax: plot_axis(groups, ax=ax, title="By Adam's beta2", name="beta2"))
    if horizon := result.sections.get("horizon"):
        draws.append(lambda ax: plot_horizon(horizon, ax=ax, title="A ratio depends on the steps ..."))
        draws.append(lambda ax: plot_horizon_losses(horizon, ax=ax, title="... the loss that it stands at does not"))
    if settings := result.axes.get("setting"):
        draws.append(
            lambda ax: plot_axis(
                settings, ax=ax, title="By learning rate, width, batch", name="setting", connected=False
            )
        )
    return draws


_SECTION_TITLES = {
    "ablation": "Least squares: rounded",
    "range": "Range or precision",
    "sensitive": "Softmax, norm and loss",
    "accumulation": "Micro-batches added",
    "noise": "Noise floor",
}


@figure_of_report("storage_questions")
def storage_questions_figure(result: StorageResult) -> Figure:
    """Draw the smaller questions of the storage experiment, and what a byte buys and a rounding loses."""
    last, outcomes = list(result.outcomes.items())[-1]
    sections = [(t, result.sections[n]) for n, t in _SECTION_TITLES.items() if n in result.sections]
    with style():
        figure = Figure(figsize=(14, 9 if sections else 4.6), dpi=100, layout="constrained")
        figure.suptitle(
            f"Smaller questions about storage, and what a byte buys\n{_LEGEND}", x=0.01, ha="left", fontsize=11
        )
        rows = figure.add_gridspec(2 if sections else 1, 1, height_ratios=[1, 1.2][-(1 + bool(sections)) :])
        if sections:
            panels = rows[0].subgridspec(1, len(sections))
            for i, (title, group) in enumerate(sections):
                panel = plot_ratios(group, ax=figure.add_subplot(panels[i]), title=title)
                if i:
                    panel.set_ylabel("")
        below = rows[-1].subgridspec(1, 2)
        plot_lost_updates(outcomes, ax=figure.add_subplot(below[0]), title=f"What becomes of updates ({last})")
        plot_bytes(outcomes, ax=figure.add_subplot(below[1]), title=f"Bytes and loss ({last})")
    return figure


_DESCENT = ("master_bf16", "bf16_kahan", "collage_light", "collage_plus", "pure_bf16", "bf16_stochastic")


@figure_of_report("descent_quality")
def descent_quality_figure(result: StorageResult) -> Figure:
    """Draw the curves of effective descent quality of Collage (Yu et al. 2024) in miniature, a panel a setting."""
    with style():
        figure = Figure(figsize=(4.6 * len(result.outcomes), 4.6), dpi=120, layout="constrained")
        figure.suptitle(
            "A classic in miniature: effective descent quality, after Collage (Yu et al. 2024)\n"
            "line: of the step that the narrow optimizer proposes, dashed: of the float32 optimizer's step",
            x=0.01, ha="left", fontsize=11,
        )  # fmt: skip
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
