"""Swamping: an update too small for its weight is not made a little wrong, it is not made at all.

Between a weight w and the next value of its format there is a gap. w + u is rounded to one of the two, and where |u|
is less than half the gap it is rounded back to w: the update is *lost*. The gap grows with the weight, so what counts
is the ratio w/u. In fp16, with 11 significand bits, an addition can vanish from w/u = 2048 on and must beyond 4094; in
bf16, with 8, the numbers are 256 and 510, and Adam, whose updates are hardly ever larger than the learning rate, moves
few weights of 512 learning rates. A loss scale does not help: it changes the gradients on their way, not the update
that is added.

Four questions, four functions:

- `update_report`: what became of these updates? How many were lost, and how much of the step was made.
- `frozen_weights.frozen_fraction`: which share of these weights could an update of a given size not move? Weights alone
  can tell: `WeightGaps` counts them once, by the sizes of their gaps, and answers every size afterwards.
- `stagnation.swamping_thresholds`: from which ratio on can, and must, an addition or a subtraction vanish?
- `stagnation.stagnation`: where does a running sum stop? 1 + 1 + 1 + ... ends at 2048 in fp16 and at 256 in bf16.

Stochastic rounding makes a lost update a small chance of a large one, right on average as far as its 16 random bits go
(Connolly, Higham and Mary 2021). Weights are stored first: they are rounded into the format, ties to even, which
changes nothing where they are its values already. Then w + u, with u exactly as given, is rounded once, in the mode
that is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.analysis.counting import (
    BLOCK,
    counted,
    give_back,
    integers,
    merged,
    of_one_kind,
    quotient,
    share,
    take_zeros,
)
from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import as_array, converted
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.plans import plan_of
from precision_lab.numerics.rounding import _stream, as_carrier
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.plain import HEXADECIMAL, Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.support.threads import in_slices

Array: TypeAlias = NDArray[Any]
_UNITS = 2**1074  # of the sums, in 1
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_Sum: TypeAlias = Annotated[int, HEXADECIMAL]

NO_UPDATE, LOST, MOVED = 0, 1, 2
"""What `update_outcomes` returns: the words of kernels/updates.py, which is not loaded at import."""


@dataclass(frozen=True, slots=True)
class UpdateReport(PlainData, Shown):
    """What became of updates; exact counts. Make one with `update_report`, add those of chunks with ``+``.

    With w the stored weight, u the update and R the rounding, d = R(w + u) - w is the *effective update*, of weights
    in one word. (Second words and compensations are counted in by `training.result.UpdateStatistics`.)

    Attributes
    ----------
    format : FloatFormat
        Of the weights.
    mode : RoundingMode
        R of w + u.
    count : int
        All elements.
    nonzero : int
        Updates that are not zero, u and w being finite.
    lost : int
        Of these the ones with R(w + u) == w.
    overflowed : int
        Of these the ones with R(w + u) infinite or NaN. The norms leave them out. (In formats with neither, w + u is
        clamped, and nothing overflows here.)
    nonfinite : int
        Elements whose weight, stored or as given, or whose update is infinite or NaN, or whose update is 2^480 or more:
        left out of all but `count`.
    zero_weights : int
        Of `nonzero` the ones with w == 0, for which log2|u/w| is infinite.
    ratios, lost_ratios : dict of int to int
        The other nonzero updates, and the lost ones among them, by floor(log2|u/w|), exactly; ascending. Not to be
        written to: reports with the same counts share them.
    sums : tuple of int
        <u, u>, <d, d> and <d, u> in units of 2^-1074: every product is rounded to float64, their sum is exact, so that
        the order of the elements, and how they were cut into chunks, change nothing.

    """

    layout: ClassVar = Layout(
        derived=("lost_of_nonzero", "imprecision", "edq", "edq_ratio", "raw_update_norm", "effective_update_norm"),
        names={"ratios": "log2_ratios", "lost_ratios": "lost_log2_ratios"},
    )

    format: FloatFormat
    mode: RoundingMode
    count: int
    nonzero: int
    lost: int
    overflowed: int
    nonfinite: int
    zero_weights: int
    ratios: dict[int, int]
    lost_ratios: dict[int, int]
    sums: tuple[_Sum, _Sum, _Sum]

    @classmethod
    def empty(cls, fmt: FormatLike, mode: str = "ties_to_even") -> Self:
        """Return the report on nothing, the neutral element of ``+``."""
        return cls(get_format(fmt), get_mode(mode), 0, 0, 0, 0, 0, 0, {}, {}, (0, 0, 0))

    @property
    def lost_of_nonzero(self) -> float:
        """Share lost / nonzero; 0 where nothing is nonzero."""
        return share(self.lost, self.nonzero)

    @property
    def imprecision(self) -> float:
        """Share of *all* elements with R(w + u) == w, updates of zero with them: Collage's imprecision percentage.

        Yu et al. 2024, arXiv 2405.03637; here a fraction, of weights in one word.
        """
        return share(self.count - self.nonfinite - self.nonzero + self.lost, self.count)

    @property
    def raw_update_norm(self) -> float:
        """||u||, in float64."""
        return math.sqrt(_in_units(self.sums[0]))

    @property
    def effective_update_norm(self) -> float:
        """||d||, in float64."""
        return math.sqrt(_in_units(self.sums[1]))

    @property
    def edq(self) -> float:
        """Effective descent quality <d, u> / ||u|| (Yu et al. 2024): how far the step went along u.

        ||u|| is perfect, 0 is standstill; NaN without updates.
        """
        return _in_units(self.sums[2]) / self.raw_update_norm if self.sums[0] else math.nan

    @property
    def edq_ratio(self) -> float:
        """EDQ ratio, our word for <d, u> / ||u||^2: 1 is perfect, 0 is standstill. NaN without updates."""
        return quotient(self.sums[2], self.sums[0]) if self.sums[0] else math.nan

    def __add__(self, other: object) -> Self:
        """Merge the reports on two chunks; nothing is lost."""
        return self.total((self, other), self.format, self.mode) if isinstance(other, UpdateReport) else NotImplemented

    @classmethod
    def total(cls, reports: Iterable[UpdateReport], fmt: FloatFormat, mode: RoundingMode) -> Self:
        """Return the sum of any number of reports on one format and mode, which takes less time than one by one."""
        listed = of_one_kind(reports, fmt, mode)
        uu, dd, du = (sum(report.sums[i] for report in listed) for i in range(3))
        return cls(
            fmt,
            mode,
            **{name: sum(getattr(report, name) for report in listed) for name in _COUNTS},
            ratios=merged(report.ratios for report in listed),
            lost_ratios=merged(report.lost_ratios for report in listed),
            sums=(uu, dd, du),
        )


_COUNTS = ("count", "nonzero", "lost", "overflowed", "nonfinite", "zero_weights")


def update_report(
    weights: ArrayLike,
    updates: ArrayLike,
    fmt: FormatLike,
    *,
    mode: str = "ties_to_even",
    rng: int | tuple[int, int] | None = None,
) -> UpdateReport:
    """Say what becomes of updates when the weights are stored in a format.

    Parameters
    ----------
    weights, updates : array_like
        Of one shape; float64, float32, float16, bfloat16 or an ml_dtypes float each. Integers and lists count as
        float64. A descent step adds u = -learning_rate * (...): give u with its sign.
    fmt : str, dtype or FloatFormat
        Of the weights; see `get_format`. Weights that are not its values are rounded first, ties to even.
    mode : str
        Rounding of w + u; see `round_to`.
    rng : int, (int, int) or None
        For ``stochastic``, as in `round_to`: a seed, or (seed, first) for the chunk that begins at element `first`.

    Returns
    -------
    UpdateReport

    Raises
    ------
    ValueError
        The shapes differ; unknown format or mode; another dtype; a masked array; an update that is an integer beyond
        2^53 and no float64.
    FloatingPointError
        As `precision_lab.round_to`.

    Notes
    -----
    w + u is added in the carrier rounded to odd, and then rounded into the format: that is one rounding (Boldo and
    Melquiond 2008), as the carrier has at least two bits more than the format, for ``stochastic`` 18.

    Examples
    --------
    >>> report = update_report([1.0, 1.0], [1e-3, 1e-2], "bf16")
    >>> report.lost, report.nonzero
    (1, 2)

    """
    kernels = load_kernels()

    fmt, mode = get_format(fmt), get_mode(mode)
    w, u, carrier = _pairs(weights, updates, fmt, mode)
    loop = _loop(kernels.updates.UPDATES, fmt, mode, carrier)
    seed, first = _stream(rng).tolist() if mode is RoundingMode.STOCHASTIC else (0, 0)

    def add(part: slice, *results: Array) -> None:
        stream = np.array([seed, (first + part.start) % 2**64], np.uint64)
        for _, weight, update in _blocks(w[part], u[part], carrier):
            loop(weight, update, stream, *results)

    return _counts(fmt, mode, w.size, add)


def step_report(before: ArrayLike, after: ArrayLike, updates: ArrayLike, fmt: FormatLike) -> UpdateReport:
    """Say what became of updates in a step that was made: R(w + u) is the weight after it, whoever rounded how often.

    Parameters
    ----------
    before, after : array_like
        Weights before and after the step, values of the format; it is one whose values float32 has.
    updates : array_like
        What the step was to add to them, of as many elements.
    fmt : str, dtype or FloatFormat
        In which the weights are stored.

    Returns
    -------
    UpdateReport
        As if the step had rounded once, ties to even, so that it adds up with the reports of `update_report`.

    Raises
    ------
    ValueError, FloatingPointError
        As `update_report`; of the shapes only the sizes are compared.

    Examples
    --------
    >>> report = step_report([1.0, 1.0], [1.0, 1.0078125], [1e-3, 1e-2], "bf16")
    >>> report.lost, report.nonzero, report.edq_ratio
    (1, 2, 0.7735148514851485)

    """
    kernels = load_kernels()

    fmt = get_format(fmt)
    u = as_carrier(updates).ravel()
    # the loop needs a difference of weights that is finite in float64, and below 2^480
    w, new = (converted(converted(as_carrier(x).ravel(), _SINGLE), u.dtype) for x in (before, after))
    if not w.size == new.size == u.size:
        raise ValueError(f"weights and updates must be of one size, got {w.size:,}, {new.size:,} and {u.size:,}")

    def add(part: slice, *results: Array) -> None:
        keys = np.empty(kernels.updates.TILE, np.uint32)
        kernels.updates.MADE[u.dtype == _DOUBLE](w[part], u[part], new[part], keys, *results)

    return _counts(fmt, RoundingMode.TIES_TO_EVEN, w.size, add)


def _counts(fmt: FloatFormat, mode: RoundingMode, size: int, add: Callable[..., None]) -> UpdateReport:
    """Return the report on what `add` counts: called with a part of the elements, and with what is to be added to."""
    kernels = load_kernels()

    def count(parts: Iterator[slice]) -> UpdateReport:
        cells = take_zeros("updates", kernels.updates.CELLS, np.uint32)
        touched = np.array([kernels.updates.ROWS, 0])
        sums = np.zeros((3, kernels.product_sums.DIGITS), np.int64)
        for part in parts:
            add(part, cells, touched, sums)
        rows = kernels.counts.take_rows(cells, kernels.updates.COLUMNS, kernels.updates.SPECIAL_ROWS, touched)
        give_back("updates", cells)
        return _report(fmt, mode, rows, kernels.product_sums.take_sums(sums))

    reports = counted(count, size)
    return reports[0] if len(reports) == 1 else UpdateReport.total(reports, fmt, mode)


def update_outcomes(weights: ArrayLike, updates: ArrayLike, fmt: FormatLike) -> NDArray[np.uint8]:
    """Return what becomes of each update, ties to even: `LOST`, `MOVED`, or `NO_UPDATE`.

    The last is what `update_report` does not count as `nonzero`; updates that overflow are `MOVED`. The shape is that
    of `weights`; parameters and errors are those of `update_report`.
    """
    kernels = load_kernels().updates

    fmt, mode = get_format(fmt), RoundingMode.TIES_TO_EVEN
    w, u, carrier = _pairs(weights, updates, fmt, mode)
    loop = _loop(kernels.OUTCOMES, fmt, mode, carrier)
    outcomes = np.empty(w.size, np.uint8)

    def tell(start: int, stop: int) -> None:
        unused, part = np.zeros(2, np.uint64), outcomes[start:stop]
        for begin, weight, update in _blocks(w[start:stop], u[start:stop], carrier):
            loop(weight, update, unused, part[begin : begin + weight.size])

    in_slices(tell, w.size)
    return outcomes.reshape(np.shape(weights))


def _pairs(
    weights: ArrayLike, updates: ArrayLike, fmt: FloatFormat, mode: RoundingMode
) -> tuple[Array, Array, np.dtype[Any]]:
    """Return both as flat arrays, and the carrier that they are to be added in."""
    w, u = as_array(weights, to_odd=True), as_array(updates)  # weights are rounded into the format
    if w.shape != u.shape:
        raise ValueError(f"weights and updates must be of one shape, got {w.shape} and {u.shape}")
    w, u = (x.ravel() if x.flags.aligned else x.flatten() for x in (w, u))  # of the latter another copy
    # float32 has 24 significand bits, float64 53; weights in float64 are stored from there, to be rounded once
    doubles = any(x.dtype != np.float32 and as_carrier(x[:0]).dtype == np.float64 for x in (w, u))
    wide = doubles or fmt.precision > 22 or mode is RoundingMode.STOCHASTIC
    return w, u, _DOUBLE if wide else _SINGLE


def _blocks(w: Array, u: Array, carrier: np.dtype[Any]) -> Iterator[tuple[int, Array, Array]]:
    """Yield where a block begins, and its weights and updates in the carrier; what is converted stays in the caches."""
    if w.dtype == u.dtype == carrier:
        yield 0, w, u
        return
    for start in range(0, w.size, BLOCK):
        weight = converted(as_carrier(w[start : start + BLOCK], to_odd=True), carrier)
        yield start, weight, converted(as_carrier(u[start : start + BLOCK]), carrier)


@lru_cache(maxsize=256)
def _loop(
    loops: tuple[Callable[..., None], Callable[..., None]], fmt: FloatFormat, mode: RoundingMode, carrier: np.dtype[Any]
) -> Callable[..., None]:
    """Return the loop for a carrier with its two roundings, to be called with the rest of its arguments."""
    kernels = load_kernels()

    wide = carrier == np.float64
    by_chance, hides = mode is RoundingMode.STOCHASTIC, not fmt.has_nan
    nothing, no_stream = np.empty(0, carrier), np.empty(0, np.uint64)

    def of(m: RoundingMode) -> tuple[int, Array]:
        plan = plan_of(fmt, m, True, False, wide)
        last = no_stream if m is RoundingMode.STOCHASTIC else False
        return kernels.addresses.address(
            plan.seeded or plan.kernel, nothing, nothing, plan.constants, last
        ), plan.constants

    both = of(RoundingMode.TIES_TO_EVEN), of(mode)
    room = 4, kernels.updates.TILE

    def loop(w: Array, u: Array, stream: Array, *results: Array) -> None:
        loops[wide](w, u, *both, by_chance, stream, hides, np.empty(room, carrier), *results)

    return loop


def _report(fmt: FloatFormat, mode: RoundingMode, found: NDArray[np.int64], words: NDArray[np.uint32]) -> UpdateReport:
    """Read what `take_rows` and `take_sums` returned."""
    kernels = load_kernels().updates

    first = kernels.SPECIAL_ROWS
    rows, totals, _, lost, overflowed, _ = zip(*found.tolist(), strict=True)
    sums = integers(words)
    return UpdateReport(
        fmt,
        mode,
        count=sum(totals),
        nonzero=sum(totals[kernels.ZERO_WEIGHT :]),
        lost=sum(lost[kernels.ZERO_WEIGHT :]),
        overflowed=sum(overflowed[kernels.ZERO_WEIGHT :]),
        nonfinite=totals[kernels.NONFINITE],
        zero_weights=totals[kernels.ZERO_WEIGHT],
        ratios=_ratios(rows[first:], totals[first:]),
        lost_ratios=_ratios(rows[first:], lost[first:]),
        sums=(sums[0], sums[1], sums[2]),
    )


@lru_cache(maxsize=1 << 12)
def _ratios(rows: tuple[int, ...], counts: tuple[int, ...]) -> dict[int, int]:
    """Return counts by exponent, which reports share: of many small tensors, nearly all."""
    offset = load_kernels().updates.RATIO_OFFSET
    return {row - offset: n for row, n in zip(rows, counts, strict=True) if n}


def _in_units(value: int) -> float:
    """Return an integer times 2^-1074, rounded once."""
    require_gradual_underflow()
    return quotient(value, _UNITS)
