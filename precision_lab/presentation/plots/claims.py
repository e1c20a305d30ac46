"""What is left of the folklore: verdicts by subject, and which of them go back to one error."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from precision_lab.experiments.claims.claim import Judgement, Outcome
from precision_lab.experiments.claims.experiment import ClaimsResult
from precision_lab.presentation.plots.figures import figure_of_report
from precision_lab.presentation.plots.style import INK, dress, style, styled

VERDICT_COLORS: dict[Outcome, str] = {
    Outcome.HOLDS: "#0072B2",
    Outcome.ONLY_IF: "#8CC5E3",
    Outcome.FAILS: "#D55E00",
    Outcome.UNDECIDED: "#E8D48A",
    Outcome.UNTESTED: "#c9c9c9",
}
"""The colour of each verdict."""


_DARK = (Outcome.HOLDS, Outcome.FAILS)


def plot_verdicts(result: ClaimsResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw a square for each claim in a row for each subject; those that are wrong for one reason share a letter.

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
    letters = dict(zip(shared_errors(result), ascii_uppercase, strict=False))
    with styled(ax) as ax:
        dress(ax, title=title)
        ax.grid(visible=False)
        subjects = list(dict.fromkeys(j.claim.subject for j in result.judgements))
        for row, subject in enumerate(subjects):
            # those of one error stand side by side
            of_subject = sorted(
                (j for j in result.judgements if j.claim.subject == subject),
                key=lambda j: (_letter(j, letters) or "~", list(VERDICT_COLORS).index(j.verdict.outcome)),
            )
            for column, judgement in enumerate(of_subject):
                outcome = judgement.verdict.outcome
                ax.add_patch(Rectangle((column, row - 0.45), 0.9, 0.9, color=VERDICT_COLORS[outcome]))
                ax.text(
                    *(column + 0.45, row, _letter(judgement, letters)),
                    ha="center",
                    va="center",
                    color="white" if outcome in _DARK else INK,
                )
        widest = max(sum(j.claim.subject == s for j in result.judgements) for s in subjects)
        ax.set_xlim(-0.1, widest)
        ax.set_ylim(len(subjects) - 0.4, -0.6)
        ax.set_aspect("equal")
        ax.set_yticks(range(len(subjects)), subjects)
        ax.set_xticks([])
        ax.tick_params(axis="y", length=0)
        ax.spines[:].set_visible(False)
        handles: list[Artist] = [Patch(color=color, label=outcome.value) for outcome, color in VERDICT_COLORS.items()]
        handles += [Line2D([], [], ls="", label=f"{letter}: {error}") for error, letter in letters.items()]
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=2, borderaxespad=0)
    return ax


def shared_errors(result: ClaimsResult) -> tuple[str, ...]:
    """Return the errors that more than one of the claims go back to."""
    return tuple(root for root, keys in result.errors.items() if len(keys) > 1)


def _letter(judgement: Judgement, letters: Mapping[str, str]) -> str:
    return letters.get(judgement.claim.root, "") if judgement.wrong else ""


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
        figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
        figure.suptitle("What people say about mixed precision, computed", x=0.01, ha="left")
        plot_verdicts(result, ax=figure.add_subplot())
    return figure
