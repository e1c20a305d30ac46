"""What is said of one number of an optimizer, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from precision_lab.support.plain import PlainData


class World(StrEnum):
    """Where constants are kept: held in the format, or as torch has them, as doubles."""

    HELD = "held"
    TORCH = "torch"


class Severity(StrEnum):
    """How far an effect is from the one that was asked for, in rising order; see `severity_of`."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FATAL = "fatal"

    @property
    def harmless(self) -> bool:
        """Whether the effect is within 10 %."""
        return self in (Severity.OK, Severity.NOTE)


def severity_of(effect_error: float) -> Severity:
    """Return the severity of a relative change of an effect.

    ``ok`` is up to 1 %, ``note`` up to 10 %, ``warning`` more; ``fatal`` is a tenth or less, ten times or more, or NaN:
    the hyperparameter no longer has its effect.

    Examples
    --------
    >>> [str(severity_of(error)) for error in (0.01, -0.1, 0.5, -0.9, float("inf"))]
    ['ok', 'note', 'warning', 'fatal', 'fatal']

    """
    if not -0.9 < effect_error < 9:
        return Severity.FATAL
    size = abs(effect_error)
    return Severity.OK if size <= 0.01 else Severity.NOTE if size <= 0.1 else Severity.WARNING


@dataclass(frozen=True)
class Finding(PlainData):
    """What becomes of one number of an optimizer in one world.

    Attributes
    ----------
    world : World
        Where it holds.
    name : str
        The hyperparameter that it is about: ``beta2``.
    expression : str
        The number: ``beta2``, ``1 - beta2``, ``1 - lr*weight_decay`` ...
    exact : float
        What it is in exact arithmetic on the doubles that were given, as the closest double.
    stored : float
        What it is here: a value of the format, an infinity or NaN; a share where the number is one.
    relative_error : float
        (stored - exact) / exact; NaN where exact is 0 and where one of them is not finite.
    effect_error : float
        Relative change of what the number is for (of 1 - beta for a beta, of lr*weight_decay for 1 - lr*weight_decay,
        else `relative_error`); infinite or NaN where nothing sensible is left.
    severity : Severity
        `severity_of` the effect error.
    consequence : str
        What follows, in words and numbers.
    cure : float or None
        A value of the hyperparameter that is in use and with which nothing of this is left (`rows.cure_of`); None where
        nothing is wrong, or where no such value helps.
    advice : str
        What to do, empty where all is well.

    """

    world: World
    name: str
    expression: str
    exact: float
    stored: float
    relative_error: float
    effect_error: float
    severity: Severity
    consequence: str
    cure: float | None
    advice: str
