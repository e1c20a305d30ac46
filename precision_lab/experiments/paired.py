"""The one criterion of the lab: losses beside those of a control with the same seed, an interval, and what it allows.

A run and its control have seed, start and batches in common, so what they share of luck cancels in the ratio of their
losses. With r = log(loss / control) of each of n seeds, the interval is mean(r) -+ t(n-1, .95) s / sqrt(n): it holds
the true mean of r in 90 of 100 repetitions, and each of its two ends is a one-sided test at 5 % (two one-sided tests of
equivalence: Schuirmann 1987). Then

===============  =====================================================================================================
`KEEPS`          the interval lies within -+log(1.03)
`LOSES`          it lies above log(1.03)
`ENDS_LOWER`     it lies below -log(1.03)
`BREAKS`         a seed has no loss to compare: it is infinite or NaN, or the run was ended
`NOT_DECIDED`    it lies across a limit; there are fewer than two seeds; or a control has not learned: it does not end
                 below `LEARNED` of the loss that it began with
===============  =====================================================================================================

How many seeds it takes depends on s, the standard deviation of r: `SEEDS` are enough where it is at most
`LARGE_DEVIATION`, else `MORE_SEEDS`. Chosen by s alone, and never by where the interval lies, the number does not bend
the verdict towards either side (Stein 1945).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, Self

from precision_lab.numerics import fixed
from precision_lab.support.plain import Layout, PlainData

EQUAL = 1.03
"""Losses whose ratio lies between 1/1.03 and 1.03 count as the same."""

LEARNED = 0.5
"""Nothing is judged where a control ends at this share of its first loss or more."""

SEEDS, MORE_SEEDS = 5, 10
"""How many seeds there are, and how many where s exceeds `LARGE_DEVIATION`."""

LARGE_DEVIATION = 0.01
"""With a standard deviation of r up to this, an interval of five seeds is at most 1 % to either side."""


class Finding(StrEnum):
    """What may be said of a run beside its control."""

    KEEPS = "keeps"
    LOSES = "loses"
    ENDS_LOWER = "ends lower"
    BREAKS = "breaks"
    NOT_DECIDED = "not decided"


@dataclass(frozen=True)
class PairedRatio(PlainData):
    """Losses of some seeds, each beside that of the control with the same seed.

    Attributes
    ----------
    losses, controls : tuple of float
        Final losses, seed by seed.
    learned : bool
        Whether every control has learned, see `have_learned`.

    Raises
    ------
    ValueError
        There is no seed, or losses and controls are not as many.

    """

    layout: ClassVar = Layout(derived=("n", "ratio", "deviation", "low", "high", "finding"))

    losses: tuple[float, ...]
    controls: tuple[float, ...]
    learned: bool = True

    def __post_init__(self) -> None:
        if not self.losses or len(self.losses) != len(self.controls):
            raise ValueError(
                f"losses and controls must be as many, at least one; got {len(self.losses)} and {len(self.controls)}"
            )

    @classmethod
    def of(cls, losses: Sequence[float], controls: Sequence[float], first: Sequence[float]) -> Self:
        """Compare losses; `first` are those that the controls began with."""
        return cls(tuple(losses), tuple(controls), have_learned(first, controls))

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.losses)

    @property
    def comparable(self) -> bool:
        """Whether there is a logarithm of every ratio."""
        return all(0 < loss < math.inf for loss in (*self.losses, *self.controls))

    @cached_property
    def logs(self) -> tuple[float, ...]:
        """Of each seed r = log(loss / control); empty if one has none."""
        if not self.comparable:
            return ()
        return tuple(float(fixed.log(a)) - float(fixed.log(b)) for a, b in zip(self.losses, self.controls, strict=True))

    @property
    def mean(self) -> float:
        """Mean of r; NaN if there is none."""
        return math.fsum(self.logs) / self.n if self.comparable else math.nan

    @property
    def deviation(self) -> float:
        """s, the standard deviation of r, with n - 1; NaN of one seed, or if there is no r."""
        if not self.comparable or self.n < 2:
            return math.nan
        return math.sqrt(math.fsum((r - self.mean) * (r - self.mean) for r in self.logs) / (self.n - 1))

    @property
    def half_width(self) -> float:
        """Half of the interval of the mean of r; NaN where s is."""
        return student(self.n - 1) * self.deviation / math.sqrt(self.n) if self.n > 1 else math.nan

    @property
    def ratio(self) -> float:
        """How many times the control's loss: the geometric mean; infinite where a run breaks."""
        if self.finding is Finding.BREAKS:
            return math.inf
        return _exp(self.mean)

    @property
    def low(self) -> float:
        """Where the interval of the ratio begins."""
        return _exp(self.mean - self.half_width)

    @property
    def high(self) -> float:
        """Where it ends."""
        return _exp(self.mean + self.half_width)

    @property
    def broken(self) -> int:
        """How many seeds have no loss to compare."""
        return sum(not math.isfinite(loss) for loss in self.losses)

    @property
    def finding(self) -> Finding:
        """What may be said."""
        if self.broken:
            return Finding.BREAKS
        if not self.learned or not self.comparable or self.n < 2:
            return Finding.NOT_DECIDED
        limit, low, high = float(fixed.log(EQUAL)), self.mean - self.half_width, self.mean + self.half_width
        if -limit <= low and high <= limit:
            return Finding.KEEPS
        if low > limit:
            return Finding.LOSES
        return Finding.ENDS_LOWER if high < -limit else Finding.NOT_DECIDED

    @property
    def keeps(self) -> bool | None:
        """Whether the result is not worse than the control's; None if that is not decided."""
        if self.finding is Finding.NOT_DECIDED:
            return None
        return self.finding in (Finding.KEEPS, Finding.ENDS_LOWER)

    @property
    def needs_more(self) -> bool:
        """Whether s asks for `MORE_SEEDS`."""
        return self.deviation > LARGE_DEVIATION

    @property
    def text(self) -> str:
        """The ratio with its interval and n.

        >>> PairedRatio((2.02, 1.98, 2.0), (1.0, 1.0, 1.0)).text
        '2.00 times [1.97, 2.03], n = 3'
        """
        if not self.comparable:
            return self.cell if self.broken else f"{self.cell}, n = {self.n}"
        ratio, bracket, interval = self.cell.partition(" [")
        return f"{ratio} times{bracket}{interval}, n = {self.n}"

    @property
    def cell(self) -> str:
        """The same for a table: the ratio with its interval.

        >>> PairedRatio((2.02, 1.98, 2.0), (1.0, 1.0, 1.0)).cell
        '2.00 [1.97, 2.03]'
        """
        if self.finding is Finding.BREAKS:
            return f"inf or NaN in {self.broken} of {self.n} seeds"
        if not self.comparable:
            return "no ratio"
        if self.n < 2:
            return _digits(self.ratio, self.ratio)
        width = self.high - self.low
        low, ratio, high = (_digits(x, width) for x in (self.low, self.ratio, self.high))
        return f"{ratio} [{low}, {high}]"


def have_learned(first: Sequence[float], last: Sequence[float]) -> bool:
    """Return whether each of some runs ends below `LEARNED` of the loss that it began with."""
    return all(b < LEARNED * a for a, b in zip(first, last, strict=True))


def student(freedom: int) -> float:
    """Return the number that 5 % of Student's t lie above, for some degrees of freedom, at least 1.

    Up to `len(_T95)` from a table, beyond by the expansion in 1/freedom (Abramowitz, Stegun 1964, 26.7.5), which is
    right to six digits there.

    Raises
    ------
    ValueError
        `freedom` below 1.

    """
    if freedom < 1:
        raise ValueError(f"the degrees of freedom must be at least 1, got {freedom!r}")
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    total, share = _NORMAL95, 1.0
    for term in _EXPANSION:
        share /= freedom
        total += term * share
    return total


_T95 = (
    *(6.313752, 2.919986, 2.353363, 2.131847, 2.015048, 1.943180, 1.894579, 1.859548, 1.833113, 1.812461),
    *(1.795885, 1.782288, 1.770933, 1.761310, 1.753050, 1.745884, 1.739607, 1.734064, 1.729133, 1.724718),
)
_NORMAL95 = 1.6448536269514722
_Z = _NORMAL95
_Z2 = _Z * _Z
_EXPANSION = (
    (_Z2 + 1) * _Z / 4,
    ((5 * _Z2 + 16) * _Z2 + 3) * _Z / 96,
    (((3 * _Z2 + 19) * _Z2 + 17) * _Z2 - 15) * _Z / 384,
    ((((79 * _Z2 + 776) * _Z2 + 1482) * _Z2 - 1920) * _Z2 - 945) * _Z / 92160,
)


def _exp(x: float) -> float:
    return float(fixed.exp(x)) if math.isfinite(x) else math.nan


def _digits(x: float, width: float) -> str:
    """Write a number with the decimals that an interval of some width leaves: two to four."""
    if x >= 100:
        return f"{x:,.0f}"
    if x >= 10:
        return f"{x:.1f}"
    decimals = 2 + (width < 0.02) + (width < 0.002)
    return f"{x:.{decimals}f}"
