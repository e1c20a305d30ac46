"""Where running sums stop, and from which ratio on an addition vanishes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from precision_lab.analysis.counting import BLOCK
from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import converted, is_number
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.plans import overflows
from precision_lab.numerics.rounding import _stream, as_carrier, random_numbers, round_to
from precision_lab.support.arguments import check_integer
from precision_lab.support.shown import Shown


class Threshold(NamedTuple):
    """A ratio w/u, and whether what happens beyond it happens at the ratio itself, too."""

    ratio: float
    inclusive: bool

    def passed(self, ratio: float | Fraction) -> bool:
        """Return whether a ratio lies at or beyond the threshold."""
        return ratio >= self.ratio if self.inclusive else ratio > self.ratio


@dataclass(frozen=True)
class SwampingThresholds(Shown):
    """The ratios w/u, both positive, from which u vanishes beside w in ties_to_even.

    Attributes
    ----------
    format : FloatFormat
        The format.
    add_can, add_must : Threshold
        The ratio from which w + u == w for some significand of w; for every one.
    subtract_can, subtract_must : Threshold
        The same for w - u == w.

    """

    format: FloatFormat
    add_can: Threshold
    add_must: Threshold
    subtract_can: Threshold
    subtract_must: Threshold


def swamping_thresholds(fmt: FormatLike) -> SwampingThresholds:
    """Return the ratios w/u from which an addition can, and must, vanish, and the same for a subtraction.

    Parameters
    ----------
    fmt : str, dtype or FloatFormat
        See `get_format`.

    Returns
    -------
    SwampingThresholds

    Notes
    -----
    Let p be the precision and w = s * 2^e with a significand s = 1, 1 + 2^(1-p), ..., 2 - 2^(1-p). The gap above w is
    2^(e+1-p), half of it 2^(e-p). So w + u == w if and only if u < 2^(e-p), which is w/u > s * 2^p; and at equality,
    the tie, if s is even. The smallest of these bounds is that of s = 1, even: **can** from 2^p on, inclusive. The
    largest is that of the odd s = 2 - 2^(1-p): **must** beyond 2^(p+1) - 2, exclusive.

    The gap below w is the same but for s = 1, a power of two, where it is half: w - u == w from w/u = 2^(p+1) on,
    inclusive, for the tie goes to w, which is even. That is above 2^(p+1) - 2: **must** from 2^(p+1) on, inclusive. The
    smallest bound is now that of the odd s = 1 + 2^(1-p): **can** beyond 2^p + 2, exclusive.

    With p = 1 there is only s = 1, odd, and a tie goes to the larger: adding vanishes beyond 2, subtracting from 4 on.

    This is so for every normal w, but for the smallest one, below which the gap is not half (subtraction vanishes as
    for the other s); subnormal w have the gaps of the smallest normal, so that u vanishes at smaller ratios already.
    Where the format saturates nothing moves its largest value up.

    fp16: 2048 and 4094; 2050 and 4096. Micikevicius et al. 2018, 3.1, give the first: an update can vanish if the
    weight is at least 2048 times larger.

    """
    fmt = get_format(fmt)
    p, ties_to_larger = fmt.precision, fmt.mantissa_bits == 0
    return SwampingThresholds(
        fmt,
        add_can=Threshold(2.0**p, not ties_to_larger),
        add_must=Threshold(2.0 ** (p + 1) - 2, False),
        subtract_can=Threshold(2.0**p + 2, ties_to_larger),
        subtract_must=Threshold(2.0 ** (p + 1), True),
    )


@dataclass(frozen=True)
class Series:
    """Endless positive terms that never grow, to be added up.

    Attributes
    ----------
    name : str
        For tables and figures.
    terms : callable
        From the numbers of some terms, a float64 array counted from 1, to the terms.

    """

    name: str
    terms: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    @classmethod
    def counting(cls, step: float = 1) -> Self:
        """Return step + step + step + ...; raises ValueError where `step` is no number."""
        if not is_number(step):
            raise ValueError(f"step must be a number, got {step!r}")
        term = float(as_carrier(step, to_odd=True))  # terms are rounded into the format
        return cls(f"counting by {step:g}", lambda numbers: np.full(numbers.size, term))

    @classmethod
    def harmonic(cls) -> Self:
        """Return 1 + 1/2 + 1/3 + ..., which has no limit.

        The quotients are rounded to float64 before they are rounded to the format, without harm: 1/k, if not a middle M
        between two values, is at least 1/(k * 2^(p+1)) of itself away from M, more than float64's 2^-53 for k < 2^28.
        """
        return cls("harmonic series", lambda numbers: 1 / numbers)


MOST_TERMS = 1 << 27


@dataclass(frozen=True)
class Stagnation(Shown):
    """Where a running sum stopped.

    Attributes
    ----------
    format : FloatFormat
        Of the terms and of the sum.
    mode : RoundingMode
        How each addition is rounded.
    series : str
        Name of what was added.
    value : float
        The sum in the end.
    terms : int
        Number of terms that had been added when it got there; the next one changes nothing, and none after it. It is
        the limit that was given, if it did not stop.
    stopped : bool
        Whether it stopped. An infinity or NaN counts: see `overflowed`.

    """

    format: FloatFormat
    mode: RoundingMode
    series: str
    value: float
    terms: int
    stopped: bool

    @property
    def first_lost(self) -> int | None:
        """Number of the first term that no longer changes the sum; None if it did not stop."""
        return self.terms + 1 if self.stopped else None

    @property
    def overflowed(self) -> bool:
        """Whether it ended at an infinity or NaN."""
        return not math.isfinite(self.value)


def stagnation(
    series: Series,
    fmt: FormatLike,
    *,
    mode: str = "ties_to_even",
    most: int = 1 << 25,
    rng: int | tuple[int, int] | None = None,
) -> Stagnation:
    """Add up a series term by term in a format until it stands still.

    Each term is stored first (rounded into the format, ties to even); each addition is rounded once.

    Parameters
    ----------
    series : Series
        `Series.counting`, `Series.harmonic`, or one of your own.
    fmt : str, dtype or FloatFormat
        See `get_format`.
    mode : str
        Rounding of the additions; see `round_to`.
    most : int
        Give up after so many terms, at most 2^27. ``toward_positive`` goes on to the end of the format, and
        ``stochastic``, which has 16 random bits, until the sum is 2^16 times as large as where others stop: then no
        random number can move it.
    rng : int or None
        Seed for ``stochastic``: term k takes the number that `round_to` gives to element k - 1. None takes a fresh one.

    Returns
    -------
    Stagnation

    Raises
    ------
    ValueError
        Unknown format or mode; `most` is out of range; bad `rng`; a term is not positive and finite as stored, or
        larger than the one before: then a sum that stands still could start again.
    FloatingPointError
        As `precision_lab.round_to`.

    Examples
    --------
    >>> stagnation(Series.counting(), "fp16").value
    2048.0

    """
    kernels = load_kernels().sums

    fmt, mode = get_format(fmt), get_mode(mode)
    most = check_integer("most", most, 1, MOST_TERMS)
    constants, stochastic = _addition(fmt, mode), mode is RoundingMode.STOCHASTIC
    seed, start = _stream(rng).tolist()
    if start:
        raise ValueError(f"rng must be a seed in 0..2^64-1 or None: a sum begins at the first term, got {rng!r}")
    state, none = np.zeros(1), np.zeros(0, np.uint16)
    last = math.inf
    for first in range(0, int(most), BLOCK):
        numbers = np.arange(first + 1, min(first + BLOCK, int(most)) + 1, dtype=np.float64)
        terms = _stored_terms(series, numbers, fmt, last)
        last = float(terms[-1])
        random = random_numbers(seed, first, terms.size) if stochastic else none
        added = int(kernels.add_in_turn(terms, random, state, constants))
        if added < terms.size or not math.isfinite(state[0]):
            return Stagnation(fmt, mode, series.name, float(state[0]), first + added, True)
    return Stagnation(fmt, mode, series.name, float(state[0]), int(most), False)


def _stored_terms(series: Series, numbers: NDArray[np.float64], fmt: FloatFormat, last: float) -> NDArray[np.float64]:
    """Round terms into the format and check that they are what `stagnation` can follow."""
    with np.errstate(all="ignore"):
        terms = converted(as_carrier(series.terms(numbers)), np.float64)
    if terms.shape != numbers.shape:
        raise ValueError(f"{series.name}: {numbers.size} terms are asked for, got an array of shape {terms.shape}")
    stored = np.asarray(round_to(terms, fmt))
    if not (np.isfinite(stored) & (terms > 0)).all() or not (np.diff(stored, prepend=last) <= 0).all():
        raise ValueError(f"{series.name}: terms must be positive, not growing, and finite in {fmt}")
    return stored


def _addition(fmt: FloatFormat, mode: RoundingMode) -> NDArray[np.float64]:
    """Return the constants of `add_in_turn`."""
    anything, never = math.ulp(0.0), 1.0
    above_half = math.nextafter(0.5, 1)
    at_even, at_odd = {
        RoundingMode.TIES_TO_EVEN: (above_half, 0.5),
        RoundingMode.TIES_TO_AWAY: (0.5, 0.5),
        RoundingMode.TOWARD_POSITIVE: (anything, anything),
        RoundingMode.TO_ODD: (anything, never),
    }.get(mode, (never, never))
    beyond, _, _ = overflows(fmt, mode, False)
    return np.array(load_kernels().sums.InTurn(fmt.mantissa_bits, fmt.emin, fmt.max, beyond, at_even, at_odd))
