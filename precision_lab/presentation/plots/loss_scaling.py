"""What a loss scale saves and what it costs, and where a scaler takes it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from precision_lab.analysis.histogram import Conversion
from precision_lab.analysis.loss_scale_plan import LossScalePlan, TensorPlans
from precision_lab.analysis.loss_scale_replay import ScaleTrace
from precision_lab.numerics import fixed
from precision_lab.presentation.plots.style import (
    FATE_COLORS,
    INK,
    MARKERS,
    PALE,
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

_SAVES, _SAVES_TEXT = "#009E73", "#00664a"


def plot_loss_scale(
    conversions: Sequence[Conversion], *, ax: Axes | None = None, title: str | None = None, label: str | None = None
) -> Axes:
    """Draw what a format flushes, makes subnormal and overflows at each loss scale.

    The y axis is logarithmic from the share of a single element upwards, and 0 has a place of its own below. Shaded are
    the scales at which nothing overflows; rings mark S = 1 and the scale that loses least, of several the closest to 1.

    Parameters
    ----------
    conversions : sequence of Conversion
        The same tensor in the same format at several loss scales, as in ``UnderflowResult.conversions``.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure. Drawing on the same axes again gives the curves another marker.
    title : str, optional
        Title of the axes.
    label : str, optional
        What the curves are of, for the legend.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    ValueError
        There are no conversions, or they are of several formats.

    """
    if not conversions:
        raise ValueError("there are no conversions to draw")
    if len(names := sorted({c.format.name for c in conversions})) > 1:
        raise ValueError(f"the conversions must be of one format, got {', '.join(names)}")
    curves = sorted(conversions, key=lambda c: c.loss_scale)
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        earlier = sum(line.get_label() == "_best" for line in ax.lines)
        _scale_axes(ax, curves)
        _window(ax, curves, label, earlier)
        scales = [c.loss_scale for c in curves]
        of = "" if label is None else f" ({label})"
        for fate, shares, width, dashes in (
            ("flushed", [c.flushed_of_nonzero for c in curves], 2.0, "-"),
            ("overflowed", [c.overflowed_of_nonzero for c in curves], 2.0, "-."),
            ("subnormal", [c.subnormal_of_nonzero for c in curves], 1.0, "--"),
        ):
            ax.plot(
                scales,
                [100 * s for s in shares],
                color=FATE_COLORS[fate],  # type: ignore[index]
                linewidth=width,
                linestyle=dashes,
                marker=MARKERS[(earlier - 1) % len(MARKERS)] if earlier else None,
                markevery=4,
                label=f"{fate}{of}",
            )
        _mark_scales(ax, curves)
        handles = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
        ax.legend(handles=handles, loc="best")
    return ax


def plot_loss_scale_plan(plan: LossScalePlan, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the curves of `plot_loss_scale` for a plan, and a line at the scale that it recommends.

    Parameters
    ----------
    plan : LossScalePlan
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
    ax = plot_loss_scale(plan.conversions, ax=ax, title=title)
    if plan.recommended is not None:
        scale = plan.recommended.loss_scale
        left, right = (fixed.log2(x) for x in ax.get_xlim())
        to_the_right = fixed.log2(scale) < (left + right) / 2
        ax.set_ylim(top=2500)  # room for a second line above the curves
        ax.axvline(scale, color=_SAVES_TEXT, linewidth=1, linestyle=":", label="_recommended")
        ax.annotate(
            f"recommended: {_scale(scale)}",
            (scale, 0.93),
            xycoords=ax.get_xaxis_transform(),
            xytext=(4 if to_the_right else -4, 0),
            textcoords="offset points",
            ha="left" if to_the_right else "right",
            va="top",
            fontsize=SMALL,
            color=_SAVES_TEXT,
        )
    return ax


def plot_loss_scale_windows(
    plans: TensorPlans, *, ax: Axes | None = None, title: str | None = None, most: int = 24
) -> Axes:
    """Draw for each tensor the loss scales that save all of it.

    A bar reaches from the smallest scale at which nothing is flushed to the largest at which nothing overflows. Where
    there is no such scale the bar has another colour, and spans the scales at which the tensor loses something at both
    ends. The line is the scale of the plans.

    Parameters
    ----------
    plans : TensorPlans
        What to draw: the tensors from above in their order, worst first, and all together below them.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.
    most : int
        How many tensors there is room for; how many are left out is said.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    rows = [*plans.tensors[:most], ("all together", plans.total)]
    chosen = fixed.log2(plans.loss_scale)
    ends = [
        tuple(_exponent(s, none) for s, none in ((p.smallest_sufficient, 127.0), (p.largest_safe, -126.0)))
        for _, p in rows
    ]
    inner = [k for pair in ends for k in pair if -100 < k < 100]  # the rest reach over the edge
    low, high = min([*inner, chosen, 0.0]) - 3, max([*inner, chosen, 0.0]) + 3
    with styled(ax) as ax:
        dress(ax, title=title, grid="x")
        for y, ((_, plan), (sufficient, safe)) in enumerate(zip(rows, ends, strict=True)):
            if not plan.histogram.nonzero:
                ax.text(chosen, y, "  nothing to scale", va="center", fontsize=SMALL)
                continue
            first, last = min(sufficient, safe) - 0.4, max(sufficient, safe) + 0.4
            saved = plan.window is not None
            ax.barh(
                y,
                last - first,
                left=first,
                height=0.62,
                color=_SAVES if saved else FATE_COLORS["flushed"],
                alpha=0.75,
                label="every element is saved" if saved else "no scale saves every element",
            )
        ax.axvline(chosen, color=INK, linewidth=1, linestyle=":", label=f"S = {_scale(plans.loss_scale)}")
        ax.set_xlim(low, high)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), [plain_text(name) for name, _ in rows])
        _power_ticks(ax, "x", low, high)
        ax.set_xlabel("loss scale S")
        if (more := len(plans.tensors) - most) > 0:
            ax.set_ylabel(f"the {most} worst; {more:,} more are not shown")
        handles, labels = ax.get_legend_handles_labels()
        _legend_above(ax, dict(zip(labels, handles, strict=True)))
    return ax


def loss_scale_figure(plans: TensorPlans) -> Figure:
    """Draw a plan on one page: what each loss scale does to all elements together, and the window of each tensor."""
    count, most = len(plans.tensors), 24
    with style():
        figure = Figure(figsize=(9.5, 5.2 + 0.24 * min(count, most)), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=[3.6, 1.2 + 0.24 * min(count, most)])
        total = plans.total
        curves = plot_loss_scale_plan(
            total,
            ax=figure.add_subplot(grid[0]),
            title=f"Loss scaling in {total.format}: {total.histogram.nonzero:,} nonzero elements",
        )
        windows = plot_loss_scale_windows(
            plans, ax=figure.add_subplot(grid[1]), title="The loss scales that save every element", most=most
        )
        ends = [*windows.get_xlim(), *(fixed.log2(x) for x in curves.get_xlim())]
        low, high = min(ends), max(ends)
        curves.set_xlim(2.0**low, 2.0**high)
        windows.set_xlim(low, high)
        _power_ticks(windows, "x", low, high)
        figure.supxlabel(textwrap.fill(total.covers.sentence, 110), fontsize=SMALL)
        curves.set_xticks(
            [2.0**k for k in windows.get_xticks()], [label.get_text() for label in windows.get_xticklabels()]
        )
    return figure


def plot_scale_trace(trace: ScaleTrace, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the loss scale over the steps of a replay, and the steps that it lost.

    The pale line is the scale from which each step overflows: where the loss scale is above it, the step is skipped and
    marked.

    Parameters
    ----------
    trace : ScaleTrace
        What to draw.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes. Default: the summary in a few words.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    scales = [fixed.log2(s) for s in trace.loss_scales]
    threshold = fixed.log2(trace.format.overflow_threshold)
    limits = [threshold - fixed.log2(m) if 0 < m < math.inf else math.nan for m in trace.max_abs]
    skipped_steps = [step for step, skipped in enumerate(trace.skipped) if skipped]
    if title is None:
        title = f"{trace.scaler.framework}: {len(skipped_steps):,} of {trace.steps:,} steps skipped"
    with styled(ax) as ax:
        dress(ax, title=title)
        ax.plot(limits, color=PALE, linewidth=0.5, alpha=0.55, label="each step overflows from here", zorder=1)
        ax.step(range(trace.steps + 1), [*scales, scales[-1]], where="post", color="#0072B2", label="loss scale")
        ax.plot(
            skipped_steps,
            [scales[step] for step in skipped_steps],
            linestyle="none",
            marker="x",
            markersize=4.5,
            markeredgewidth=1.2,
            color=FATE_COLORS["flushed"],
            label="skipped step",
        )
        low, high = min(scales), max(scales)
        seen = [k for k in limits if not math.isnan(k)]
        if seen:  # most of the limits, not each of their spikes
            seen.sort()
            low, high = min(low, seen[len(seen) // 50]), max(high, seen[-1 - len(seen) // 50])
        low, high = low - 1.5, high + 1.5
        ax.set_ylim(low, high)
        ax.set_xlim(-0.01 * len(limits) - 0.5, 1.01 * len(limits) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        _power_ticks(ax, "y", low, high)
        ax.set_xlabel("step")
        ax.set_ylabel("loss scale S")
        if trace.final.ended:
            ax.axvspan(trace.steps, ax.get_xlim()[1], color=PALE, alpha=0.2, linewidth=0, label="_ended")
        if trace.exhausted:
            ax.text(
                0.99,
                0.96,
                trace.reason,
                transform=ax.transAxes,
                ha="right",
                va="top",
                fontsize=SMALL,
                color=FATE_COLORS["flushed"],
                wrap=True,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
            )
        handles, labels = ax.get_legend_handles_labels()
        _legend_above(ax, dict(zip(labels, handles, strict=True)))
    return ax


def scale_trace_figure(traces: Sequence[ScaleTrace]) -> Figure:
    """Draw replays of one run by several scalers below each other."""
    with style():
        figure = Figure(figsize=(9.5, 1.2 + 1.9 * len(traces)), layout="constrained")
        panels = figure.subplots(len(traces), 1, sharex=True, squeeze=False)[:, 0]
        for panel, trace in zip(panels, traces, strict=True):
            plot_scale_trace(trace, ax=panel)
            panel.label_outer()
        for panel in panels[1:]:
            panel.get_legend().remove()  # they are all the same
    return figure


def _exponent(scale: float | None, none: float) -> float:
    return none if scale is None else fixed.log2(scale)


def _scale(scale: float) -> str:
    return "1" if scale == 1 else power(fixed.log2(scale))


def _legend_above(ax: Axes, handles: dict[str, Any]) -> None:
    """Put the legend beside the title, where it hides nothing; of what stands there several times, one."""
    ax.legend(
        handles.values(), handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), borderaxespad=0.1
    )


def _power_ticks(ax: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """Label an axis of exponents with powers of two."""
    width, height = size_in_inches(ax)
    powers = powers_between(low, high, width / 0.45 if which == "x" else height / 0.22)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(FixedLocator(powers))
    axis.set_major_formatter(FixedFormatter([power(k) for k in powers]))


def _scale_axes(ax: Axes, curves: Sequence[Conversion]) -> None:
    scales = [fixed.log2(c.loss_scale) for c in curves]
    low, high = min(scales), max(scales)
    ax.set_xscale("log", base=2)
    ax.set_xlim(2.0 ** (low - 0.7), 2.0 ** (high + 0.7))
    powers = powers_between(low, high, size_in_inches(ax)[0] / 0.45)
    ax.xaxis.set_major_locator(FixedLocator([2.0**k for k in powers]))
    ax.xaxis.set_major_formatter(FixedFormatter([power(k) for k in powers]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("loss scale S")

    most = max(max(c.nonzero for c in curves), 1)
    decade = min(max(math.floor(2 - fixed.log10(most)), -6), 1)  # no share but 0 is below 10^decade %
    ticks = [0.0, *(float(f"1e{d}") for d in range(decade, 3))]
    ax.set_yscale("symlog", linthresh=ticks[1], linscale=0.6)
    ax.set_ylim(-0.75 * ticks[1], 400)  # room for what is said above and below the curves
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{t:g}" for t in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("% of non-zero elements")


def _window(ax: Axes, curves: Sequence[Conversion], label: str | None, earlier: int) -> None:
    """Shade the scales up to the last at which nothing overflows."""
    safe = [c.loss_scale for c in curves if not c.overflowed]
    if not safe:
        return
    low, high = min(safe), max(safe)
    ax.axvspan(low, high, color=_SAVES, alpha=0.08, linewidth=0, label="_window")
    of = "" if label is None else f"{label}: "
    text = f"{of}nothing overflows up to {power(fixed.log2(high))}"
    narrow = high < curves[-1].loss_scale and fixed.log2(high / low) < 0.4 * fixed.log2(curves[-1].loss_scale / low)
    ax.text(
        high if narrow else math.sqrt(low * high),
        0.985 - 0.06 * earlier,
        f"  {text}" if narrow else text,
        transform=ax.get_xaxis_transform(),
        ha="left" if narrow else "center",
        va="top",
        fontsize=SMALL,
        color=_SAVES_TEXT,
    )


def _mark_scales(ax: Axes, curves: Sequence[Conversion]) -> None:
    """Mark S = 1, and of the scales that flush and overflow the fewest that closest to it."""
    best = min(curves, key=lambda c: (c.flushed + c.overflowed, abs(fixed.log2(c.loss_scale))))
    one = next((c for c in curves if c.loss_scale == 1), None)
    middle = math.sqrt(curves[0].loss_scale * curves[-1].loss_scale)
    if one is not None and one is not best:
        _mark(ax, one, "_S=1", f"S = 1: {_lost(one)}", side="left" if middle >= 1 else "right")
    text = f"S = {1 if best is one else power(fixed.log2(best.loss_scale))} loses least: {_lost(best)}"
    _mark(ax, best, "_best", text, side="left" if best.loss_scale <= middle else "right")


def _lost(conversion: Conversion) -> str:
    return f"{percent_label(percent_of(conversion.flushed + conversion.overflowed, conversion.nonzero))} %"


def _mark(ax: Axes, conversion: Conversion, label: str, text: str, *, side: Literal["left", "right"]) -> None:
    """Put a ring on the flushed curve, and a text below it."""
    x, y = conversion.loss_scale, 100 * conversion.flushed_of_nonzero
    ring: dict[str, Any] = {"marker": "o", "markersize": 6, "markerfacecolor": "white", "markeredgecolor": INK}
    ax.add_line(Line2D([x], [y], linestyle="none", zorder=3, label=label, **ring))
    ax.annotate(
        text,
        (x, y),
        xytext=(4 if side == "left" else -4, -18 if y else -6),
        textcoords="offset points",
        ha=side,
        va="top",
        fontsize=SMALL,
        arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": INK} if y else None,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
    )
