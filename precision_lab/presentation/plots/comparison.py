"""The drawing of two trainings side by side."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from precision_lab.presentation.plots.style import FATE_COLORS, INK, dress, style, styled
from precision_lab.training.comparison import TrainingComparison
from precision_lab.training.storage import CONFIGURATIONS

OURS, THEIRS = FATE_COLORS["kept"], FATE_COLORS["flushed"]


def plot_both_losses(result: TrainingComparison, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the loss of each batch on both sides.

    Parameters
    ----------
    result : TrainingComparison
        From `precision_lab.torch.compare_training`.
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
        dress(ax, title=title)
        ax.plot(result.losses, color=OURS, linewidth=2.5, alpha=0.5, label="precision_lab")
        ax.plot(result.other_losses, color=THEIRS, linewidth=0.8, label=result.other)
        ax.set(xlabel="step", ylabel="loss of the batch")
        ax.legend()
        return ax


def plot_distances(result: TrainingComparison, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw how far the weights of the two are apart after each step, and where they part.

    Steps after which they are the same are not drawn: the axis is logarithmic. Parameters and result as those of
    `plot_both_losses`; the title says where they part unless there is another.
    """
    with styled(ax) as ax:
        parting = result.parting
        caption = "the same to the last bit" if parting is None else f"part at step {parting.step}: {parting.operation}"
        dress(ax, title=caption if title is None else title)
        steps = np.flatnonzero(result.distances > 0)
        ax.plot(steps, result.distances[steps], color=INK, linewidth=1.2)
        ax.set(xlabel="step", ylabel=r"$||w - w'||\;/\;||w||$", xlim=(0, len(result.distances)))
        if len(steps):
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_minor_formatter(NullFormatter())
        if parting is not None:
            ax.axvline(parting.step, color=THEIRS, linewidth=0.8, linestyle="--")
        return ax


def comparison_figure(result: TrainingComparison) -> Figure:
    """Lay out the losses of both above the distance of their weights."""
    config = result.config
    name = next((name for name, known in CONFIGURATIONS.items() if known == config.storage), str(config.storage))
    with style():
        figure = Figure(figsize=(5.2, 3.8), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        plot_both_losses(result, ax=upper, title=f"{name}, {config.optimizer}")
        plot_distances(result, ax=lower)
        upper.set_xlabel("")
        return figure
