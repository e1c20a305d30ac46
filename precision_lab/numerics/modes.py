"""The rounding modes: their names, and what is true of each."""

from __future__ import annotations

from enum import StrEnum


class RoundingMode(StrEnum):
    """How a value between two neighbours of a format is rounded (IEEE 754-2019, 4.3; Boldo and Melquiond 2008; ...)."""

    TIES_TO_EVEN = "ties_to_even"
    TIES_TO_AWAY = "ties_to_away"
    TOWARD_ZERO = "toward_zero"
    TOWARD_POSITIVE = "toward_positive"
    TOWARD_NEGATIVE = "toward_negative"
    TO_ODD = "to_odd"
    STOCHASTIC = "stochastic"

    @property
    def to_nearest(self) -> bool:
        """Whether the nearer neighbour is taken."""
        return self in (RoundingMode.TIES_TO_EVEN, RoundingMode.TIES_TO_AWAY)

    def clamps(self, *, negative: bool) -> bool:
        """Return whether numbers of that sign never overflow, but end at the largest value."""
        inward = RoundingMode.TOWARD_POSITIVE if negative else RoundingMode.TOWARD_NEGATIVE
        return self in (RoundingMode.TOWARD_ZERO, RoundingMode.TO_ODD, inward)


_MODES: dict[str, RoundingMode] = {mode.value: mode for mode in RoundingMode} | {
    "rne": RoundingMode.TIES_TO_EVEN,
    "rna": RoundingMode.TIES_TO_AWAY,
    "rtz": RoundingMode.TOWARD_ZERO,
    "rup": RoundingMode.TOWARD_POSITIVE,
    "rdn": RoundingMode.TOWARD_NEGATIVE,
    "rto": RoundingMode.TO_ODD,
    "sr": RoundingMode.STOCHASTIC,
}


def get_mode(mode: str) -> RoundingMode:
    """Return the rounding mode of that name or alias (rne, rna, rtz, rup, rdn, rto, sr).

    Raises
    ------
    ValueError
        Nothing of that name; the message lists them.

    """
    try:
        return _MODES[mode]
    except (KeyError, TypeError):
        raise ValueError(f"unknown rounding mode {mode!r}; choose one of {', '.join(_MODES)}") from None
