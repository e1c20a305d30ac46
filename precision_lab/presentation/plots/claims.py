"""What is left of the folklore: verdicts by subject."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from precision_lab.experiments.claims.claim import Outcome
from precision_lab.experiments.claims.experiment import ClaimsResult
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import INK, dress, style, styled

VERDICT_COLORS: dict[Outcome, str] = {
    Outcome.HOLDS: "#0072B2",
    Outcome.ONLY_IF: "#8CC5E3",
    Outcome.FAILS: "#D55E00",
    Outcome.UNTESTED: "#c9c9c9",
}
"""The colour of each verdict."""


def plot_verdicts(result: ClaimsResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw how many claims got which verdict, a bar for each subject.

    Parameters
    ----------
    result : ClaimsResult
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
        dress(ax, title=title, grid="x")
        subjects = result.by_subject
        left = [0] * len(subjects)
        for outcome, bar in VERDICT_COLORS.items():
            counts = [verdicts[outcome] for verdicts in subjects.values()]
            ax.barh(
                range(len(subjects)), counts, left=left, height=0.7, color=bar, edgecolor="white", label=outcome.value
            )
            for row, (start, count) in enumerate(zip(left, counts, strict=True)):
                if count:
                    dark = outcome in (Outcome.HOLDS, Outcome.FAILS)
                    ax.text(
                        start + count / 2, row, f"{count}", ha="center", va="center", color="white" if dark else INK
                    )
            left = [start + count for start, count in zip(left, counts, strict=True)]
        ax.set_yticks(range(len(subjects)), list(subjects))
        ax.set_ylim(len(subjects) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("number of claims")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=4, borderaxespad=0)
    return ax


@figure_of_report("claims")
def claims_figure(result: ClaimsResult) -> Figure:
    """Draw the verdicts on all claims.

    Parameters
    ----------
    result : ClaimsResult
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    """
    with style():
        figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
        figure.suptitle("What people say about mixed precision, computed", x=0.01, ha="left")
        plot_verdicts(result, ax=figure.add_subplot())
    return figure
