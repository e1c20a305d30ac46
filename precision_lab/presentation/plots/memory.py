"""What each storage configuration takes in bytes."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precision_lab.experiments.memory import MemoryResult
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import INK, SMALL, dress, style, styled
from precision_lab.training.memory import MemoryLedger, bytes_of
from precision_lab.training.update_rules import UPDATE_RULES

_WORD_COLORS = {"weights": "#CC79A7", "second_moment": "#E9C3D6"}  # of what completes them

BUFFER_COLORS = {
    "weights": "#0072B2",
    "gradients": "#E69F00",
    "main_gradients": "#F5CE80",
    "master": "#56B4E9",
    "first_moment": "#009E73",
    "second_moment": "#8FCFB8",
    **{word: _WORD_COLORS[role] for rule in UPDATE_RULES.values() for word, role in rule.words.items()},
}
"""The colour of each buffer; moments are greens, what keeps the lost parts of numbers reds."""

STAGE_MARKERS = {0: "o", 1: "s", 2: "^", 3: "D"}


def plot_memory(ledgers: Mapping[str, MemoryLedger], *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the bytes per parameter of each ledger, stacked by buffer; dashed: what comes on top within a step.

    Parameters
    ----------
    ledgers : mapping of str to MemoryLedger
        By the names of the rows.
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
        There are no ledgers.

    """
    if not ledgers:
        raise ValueError("there are no ledgers to draw")
    with styled(ax) as ax:
        dress(ax, title=title, grid="x")
        named: set[str] = set()
        for row, ledger in enumerate(ledgers.values()):
            left = 0
            for buffer in ledger.buffers:
                size, label = bytes_of(buffer.format), buffer.name.replace("_", " ")
                ax.barh(
                    row,
                    size,
                    left=left,
                    height=0.72,
                    color=BUFFER_COLORS[buffer.name],
                    edgecolor="white",
                    linewidth=0.8,
                    label=f"_{label}" if label in named else label,
                )
                if size > 1:
                    ax.text(
                        left + size / 2,
                        row,
                        str(buffer.format),
                        ha="center",
                        va="center",
                        fontsize=SMALL,
                        color="white" if buffer.name == "weights" else INK,
                    )
                named.add(label)
                left += size
            resident, peak = ledger.bytes_per_parameter, ledger.peak_bytes_per_parameter
            if peak > resident:
                label = "cast weights, in a step"
                ax.barh(
                    row,
                    peak - resident,
                    left=left,
                    height=0.72,
                    color="none",
                    edgecolor=INK,
                    linewidth=0.8,
                    linestyle="--",
                    label=f"_{label}" if label in named else label,
                )
                named.add(label)
            text = f"{resident}" if peak == resident else f"{resident}, at the peak {peak}"
            ax.text(peak + 0.2, row, text, ha="left", va="center", fontsize=8.5)
        most = max(ledger.peak_bytes_per_parameter for ledger in ledgers.values())
        ax.set_xlim(0, 1.15 * most)
        ax.set_xticks(range(0, most + 1, 2))
        ax.set_yticks(range(len(ledgers)), list(ledgers))
        ax.set_ylim(len(ledgers) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("bytes per parameter")
        ax.set_ylabel("storage configuration")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.06 if title else 1.0), ncols=4, borderaxespad=0)
    return ax


def plot_ranks(
    ledgers: Mapping[str, MemoryLedger], ranks: int, *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw what each of some ranks holds under every ZeRO stage, in GiB; other parameters as in `plot_memory`."""
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        names = {0: "one device, or DDP", 1: "ZeRO-1", 2: "ZeRO-2", 3: "ZeRO-3"}
        colors = ("#222222", "#E69F00", "#56B4E9", "#0072B2")
        for stage, name in names.items():
            held = [ledger.per_rank(ranks, stage) / 2**30 for ledger in ledgers.values()]
            ax.plot(held, range(len(held)), STAGE_MARKERS[stage], color=colors[stage], markersize=5.5, label=name)
        ax.set_xlim(left=0)
        ax.set_yticks(range(len(ledgers)), list(ledgers))
        ax.set_ylim(len(ledgers) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"GiB on each of {ranks} ranks")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.06 if title else 1.0), ncols=2, borderaxespad=0)
    return ax


@figure_of_report("memory")
def memory_figure(result: MemoryResult) -> Figure:
    """Draw the ledgers of the last size: bytes per parameter by buffer, and what ZeRO leaves on each rank.

    Parameters
    ----------
    result : MemoryResult
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    """
    size, optimizer = result.config.sizes[-1][0], result.config.optimizer
    with style():
        figure = Figure(figsize=(12, 6), dpi=120, layout="constrained")
        figure.suptitle(f"What each way of storing takes with {optimizer}", x=0.01, ha="left")
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        plot_memory(result.shown, ax=left)
        plot_ranks(result.shown, result.config.ranks, ax=right)
        left.set_title("Bytes per parameter by buffer", pad=44)
        right.set_title(f"{size} parameters", pad=44)
        right.set_yticklabels([])
    return figure
