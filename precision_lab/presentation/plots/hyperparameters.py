"""What the constants of an optimizer become in each format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from precision_lab.experiments.hyperparameters import HyperparametersResult
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import INK, PALE, SMALL, dress, style, styled
from precision_lab.training.hyperparameters import Finding, HyperparameterAudit, Severity, World, stored_rates

SEVERITY_COLORS: dict[Severity, str] = {
    Severity.OK: "#EAF2F8",
    Severity.NOTE: "#A9D3EE",
    Severity.WARNING: "#F0B940",
    Severity.FATAL: "#D55E00",
}
"""How far an effect is from the one that was asked for, and its colour."""

_DECADES = 8  # of the windows that are drawn: beyond the last one that fp32 can hold
_LANE = 0.9  # where windows without end are drawn, as a share of the height


def plot_betas(
    formats: Sequence[FormatLike], *, betas: Sequence[float] = (), ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the averaging window 1/(1 - beta) that each format stores against the one that was asked for.

    The stairs get steeper towards 1; where beta becomes 1 itself the window has no end, and they continue on the lane
    above.

    Parameters
    ----------
    formats : sequence of format specs
        At least one.
    betas : sequence of float
        Values in (0, 1) to mark.
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
        There are no formats, or a beta is not in (0, 1).

    """
    if not formats:
        raise ValueError("there are no formats to draw")
    if wrong := [beta for beta in betas if not 0 < beta < 1]:
        raise ValueError(f"betas must be in (0, 1), got {wrong[0]!r}")
    windows = fixed.geomspace(1, 10**_DECADES, 200 * _DECADES + 1)
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(1, 10**_DECADES)
        ax.set_ylim(1, _ten_to(_DECADES / _LANE))
        ax.plot([1, 10**_DECADES], [1, 10**_DECADES], color=PALE, linewidth=0.8, linestyle=":", label="_as asked")
        for place, spec in enumerate(formats):
            fmt = get_format(spec)
            rates = stored_rates(1 / windows, fmt)
            lost = rates <= 0
            line = ax.step(windows[~lost], 1 / rates[~lost], where="mid", linewidth=1.5, label=fmt.name)[0]
            if not lost.any():
                continue
            first, height = windows[lost][0], 1 - (1 - _LANE) * (place + 1) / (len(formats) + 1)
            ends = [1 / rates[~lost][-1] if (~lost).any() else 1.0, _ten_to(_DECADES / _LANE * height)]
            ax.plot([first, first], ends, color=line.get_color(), linewidth=0.8, linestyle=":", label="_rise")
            across = {"color": line.get_color(), "linewidth": 3, "solid_capstyle": "butt"}
            ax.plot([first, 10**_DECADES], [ends[1]] * 2, label=f"_{fmt.name} without end", **across)  # type: ignore[arg-type]
        ax.axhline(10**_DECADES, color=INK, linewidth=0.6, label="_lane")
        for beta in dict.fromkeys(betas):
            ax.axvline(
                1 / (1 - beta), 0, _LANE, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1, label="_asked"
            )
            ax.text(
                0.93 / (1 - beta), 1.6, f"{beta:.6g}", rotation=90, va="bottom", ha="right", fontsize=SMALL, color=INK
            )
        _window_ticks(ax)
        ax.legend(loc="lower right")
    return ax


def _ten_to(x: float) -> float:
    return float(fixed.exp(x * 2.302585092994046))  # log 10


def _window_ticks(ax: Axes) -> None:
    decades = range(_DECADES + 1)
    powers = [float(10**d) for d in decades]
    steps = [f"{10**d:,}" if d < 4 else f"$10^{{{d}}}$" for d in decades]
    betas = {1: "0.9", 3: "0.999", 5: "1 - $10^{-5}$", 7: "1 - $10^{-7}$"}
    below = [f"{step}\n{betas.get(d, '')}" for d, step in zip(decades, steps, strict=True)]
    lane = _ten_to(_DECADES * (1 + 1 / _LANE) / 2)
    for axis, places, labels in ((ax.xaxis, powers, below), (ax.yaxis, [*powers[:-1], lane], [*steps[:-1], "endless"])):
        axis.set_major_locator(FixedLocator(places))
        axis.set_major_formatter(FixedFormatter(labels))
        axis.set_minor_locator(NullLocator())
    ax.set_xlabel("window asked: 1/(1 - beta) steps, below it beta")
    ax.set_ylabel("window stored, steps", y=_LANE / 2)


def plot_severities(audits: Sequence[HyperparameterAudit], *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw a table of what each number becomes in each format, held in it and as torch has it, coloured by severity.

    Parameters
    ----------
    audits : sequence of HyperparameterAudit
        The same numbers in several formats.
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
        There are no audits, or they are not of the same numbers.

    """
    _check_alike(audits)
    numbers = audits[0].of(World.HELD)
    levels = list(Severity)
    cells = [[f for a in audits for f in (a[n.expression], a.torch(n.expression))] for n in numbers]
    codes = [[np.nan, *(np.nan if f is None else levels.index(f.severity) for f in row)] for row in cells]
    columns = [column for audit in audits for column in (f"held in {audit.format}", "as torch")]
    with styled(ax) as ax:
        dress(ax, title=title)
        ax.grid(visible=False)
        paint = ListedColormap([SEVERITY_COLORS[level] for level in levels])
        ax.imshow(codes, cmap=paint, vmin=-0.5, vmax=len(levels) - 0.5, aspect="auto")
        for row, number in enumerate(numbers):
            for column, text in enumerate([f"{number.exact:.6g}", *map(_cell, cells[row])]):
                fatal = codes[row][column] == levels.index(Severity.FATAL)
                color = "white" if fatal else INK
                ax.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=color)
        for edge in range(1, len(numbers)):
            ax.axhline(edge - 0.5, color="white", linewidth=2)
        for edge in range(1, len(columns) + 1):
            ax.axvline(edge - 0.5, color="white", linewidth=4 if edge % 2 else 1)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_yticks(range(len(numbers)), [number.expression for number in numbers])
        ax.set_xticks(range(len(columns) + 1), ["asked", *columns])
        ax.xaxis.tick_top()
    return ax


def _cell(finding: Finding | None) -> str:
    return "not stored" if finding is None else f"{finding.stored:.5g}  {finding.severity}"


def _check_alike(audits: Sequence[HyperparameterAudit]) -> None:
    if not audits:
        raise ValueError("there are no audits to draw")
    if any((a.optimizer, a.hyperparameters) != (audits[0].optimizer, audits[0].hyperparameters) for a in audits):
        raise ValueError("the audits must be of the same optimizer and hyperparameters")


def hyperparameters_figure(audits: Sequence[HyperparameterAudit]) -> Figure:
    """Draw what the numbers of an optimizer become on one page: the table, and beside it the stairs of beta.

    Parameters
    ----------
    audits : sequence of HyperparameterAudit
        The same numbers in several formats.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    Raises
    ------
    ValueError
        As `plot_severities`.

    """
    _check_alike(audits)
    first = audits[0]
    constants = first.hyperparameters
    betas = [constants[name] for name in ("momentum", "beta1", "beta2") if constants.get(name)]
    with style():
        width, height = 1.2 * (2 * len(audits) + 1), max(4.2, 1.4 + 0.3 * len(first.of(World.HELD)))
        figure = Figure(figsize=(7.6 + width, height), layout="constrained")
        figure.suptitle(f"What the numbers of {first.optimizer} become", x=0.01, ha="left")
        left, right = figure.subplots(1, 2, width_ratios=[width, 4.6])
        plot_severities(audits, ax=left)
        formats = dict.fromkeys([get_format("fp32"), *(a.format for a in audits)])
        plot_betas(list(formats), betas=betas, ax=right, title="The stairs end where beta becomes 1")
    return figure


def _rows(audits: Sequence[HyperparameterAudit]) -> int:
    """Return the height of a table, in rows."""
    return len(audits[0].of(World.HELD)) + 3


@figure_of_report("hyperparameters")
def usual_settings_figure(result: HyperparametersResult) -> Figure:
    """Draw what the constants of the usual settings become: a table for each, and the stairs of beta.

    Parameters
    ----------
    result : HyperparametersResult
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    """
    settings = list(result.audits.items())
    constants = [audits[0].hyperparameters for _, audits in settings]
    betas = sorted(
        {values[beta] for values in constants for beta in ("beta1", "beta2", "momentum") if values.get(beta)}
    )
    with style():
        figure = Figure(figsize=(19, 11), dpi=85, layout="constrained")
        figure.suptitle("Which of an optimizer's usual constants survive", x=0.01, ha="left")
        columns = figure.add_gridspec(1, 2, width_ratios=[1, 0.95])
        # the tables fill the left column from above, the rest of them the right one, over the stairs
        half = -(-len(settings) // 2)
        left = columns[0].subgridspec(half, 1, height_ratios=[_rows(a) for _, a in settings[:half]])
        rest = [_rows(a) for _, a in settings[half:]]
        right = columns[1].subgridspec(len(rest) + 1, 1, height_ratios=[*rest, 22])
        cells = [*(left[i] for i in range(half)), *(right[i] for i in range(len(rest)))]
        for cell, (name, audits) in zip(cells, settings, strict=True):
            plot_severities(audits, ax=figure.add_subplot(cell), title=name)
        formats = [get_format("fp32"), *(audit.format for audit in settings[0][1])]
        panel = figure.add_subplot(right[len(rest)])
        plot_betas(list(dict.fromkeys(formats)), betas=betas, ax=panel, title="The stairs end where beta becomes 1")
    return figure
