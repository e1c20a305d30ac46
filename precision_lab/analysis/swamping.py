"""Swamping: an update too small for its weight is not made a little wrong, it is not made at all.

Between a weight w and the next value of its format there is a gap. w + u is rounded to one of the two, and where |u|
is less than half the gap it is rounded back to w: the update is *lost*. The gap grows with the weight, so what counts
is the ratio w/u. In fp16, with 11 significand bits, an addition can vanish from w/u = 2048 on and must beyond 4094; in
bf16, with 8, the numbers are 256 and 510, and Adam, whose updates are hardly ever larger than the learning rate, moves
few weights of 512 learning rates. A loss scale does not help: it changes the gradients on their way, not the update
that is added.

Four questions, four functions:

- `update_report`: what became of these updates? How many were lost, and how much of the step was made.
- `frozen_fraction`: which share of these weights could an update of a given size not move? Weights alone can tell:
  `WeightGaps` counts them once, by the sizes of their gaps, and answers every size afterwards.
- `swamping_thresholds`: from which ratio on can, and must, an addition or a subtraction vanish?
- `stagnation`: where does a running sum stop? 1 + 1 + 1 + ... ends at 2048 in fp16 and at 256 in bf16.

Stochastic rounding makes a lost update a small chance of a large one, right on average (Connolly, Higham and Mary
2021). Weights are stored first: they are rounded into the format, ties to even, which changes nothing where they are
its values already. Then w + u, with u exactly as given, is rounded once, in the mode that is asked about.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.analysis.plain import finite_or_none, number_or
from precision_lab.analysis.spare import give_back, take_zeros
from precision_lab.numerics.accumulation import nonzero_cells
from precision_lab.numerics.environment import load_kernels, require_gradual_underflow
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.inputs import as_array, converted, is_integer, is_number
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.rounding import _stream, as_carrier, compiled_rounding, random_numbers, round_to

Array: TypeAlias = NDArray[Any]

_BLOCK = 1 << 15  # elements that stay in the second-level cache with all that is made from them
_UNITS = 2**1074  # of the sums, in 1
_MOST = 1 << 31  # elements counted in 32-bit cells

NO_UPDATE, LOST, MOVED = 0, 1, 2
"""What `update_outcomes` returns."""


# --- updates ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What became of updates; exact counts. Make one with `update_report`, add those of chunks with ``+``.

    With w the stored weight, u the update and R the rounding, d = R(w + u) - w is the *effective update*.

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
    sums: tuple[int, int, int]

    @classmethod
    def empty(cls, fmt: object, mode: str = "ties_to_even") -> Self:
        """Return the report on nothing, the neutral element of ``+``."""
        return cls(get_format(fmt), get_mode(mode), 0, 0, 0, 0, 0, 0, {}, {}, (0, 0, 0))

    @property
    def lost_of_nonzero(self) -> float:
        """Share lost / nonzero; 0 where nothing is nonzero."""
        return _share(self.lost, self.nonzero)

    @property
    def imprecision(self) -> float:
        """Share of *all* elements with R(w + u) == w, updates of zero with them: Collage's imprecision percentage.

        Yu et al. 2024, arXiv 2405.03637; here a fraction.
        """
        return _share(self.count - self.nonfinite - self.nonzero + self.lost, self.count)

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
        """<d, u> / ||u||^2: 1 is perfect, 0 is standstill. NaN without updates."""
        return _quotient(self.sums[2], self.sums[0]) if self.sums[0] else math.nan

    def __add__(self, other: object) -> Self:
        """Merge the reports on two chunks; nothing is lost."""
        if not isinstance(other, UpdateReport):
            return NotImplemented
        if (self.format, self.mode) != (other.format, other.mode):
            raise ValueError(
                f"cannot add a report on {other.format} ({other.mode}) to one on {self.format} ({self.mode}); "
                "reports of one format and mode add up"
            )
        return self.total((self, other), self.format, self.mode)

    @classmethod
    def total(cls, reports: Iterable[UpdateReport], fmt: FloatFormat, mode: RoundingMode) -> Self:
        """Return the sum of any number of reports on one format and mode, which takes less time than one by one."""
        listed = list(reports)
        if any((report.format, report.mode) != (fmt, mode) for report in listed):
            raise ValueError(f"cannot add up reports of which some are not on {fmt} ({mode})")
        uu, dd, du = (sum(report.sums[i] for report in listed) for i in range(3))
        return cls(
            fmt,
            mode,
            **{name: sum(getattr(report, name) for report in listed) for name in _COUNTS},
            ratios=_merged(report.ratios for report in listed),
            lost_ratios=_merged(report.lost_ratios for report in listed),
            sums=(uu, dd, du),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; shares and norms that are not numbers become None."""
        floats = ("lost_of_nonzero", "imprecision", "edq", "edq_ratio", "raw_update_norm", "effective_update_norm")
        return {
            "format": self.format.name,
            "mode": self.mode.value,
            **{name: getattr(self, name) for name in _COUNTS},
            **{name: finite_or_none(getattr(self, name)) for name in floats},
            "log2_ratios": {str(e): n for e, n in self.ratios.items()},
            "lost_log2_ratios": {str(e): n for e, n in self.lost_ratios.items()},
            "sums": [_hexadecimal(value) for value in self.sums],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the report that `to_dict` described; raises ValueError."""
        try:
            uu, dd, du = map(_from_hexadecimal, data["sums"])
            return cls(
                get_format(data["format"]),
                get_mode(data["mode"]),
                **{name: data[name] for name in _COUNTS},
                ratios={int(e): n for e, n in data["log2_ratios"].items()},
                lost_ratios={int(e): n for e, n in data["lost_log2_ratios"].items()},
                sums=(uu, dd, du),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no report on updates: {error!r}") from error


_COUNTS = ("count", "nonzero", "lost", "overflowed", "nonfinite", "zero_weights")


def _hexadecimal(value: int) -> str:
    """Write an integer without the zeros at its end: 0x1p3 is 8."""
    zeros = (value & -value).bit_length() - 1 if value else 0
    return f"{value >> zeros:#x}p{zeros}"


def _from_hexadecimal(text: str) -> int:
    mantissa, _, zeros = text.partition("p")
    return int(mantissa, 16) << int(zeros)


def update_report(
    weights: ArrayLike,
    updates: ArrayLike,
    fmt: object,
    mode: str = "ties_to_even",
    *,
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

    """
    kernels = load_kernels().updates

    fmt, mode = get_format(fmt), get_mode(mode)
    w, u, carrier = _pairs(weights, updates, fmt, mode)
    loop = _loop(kernels.UPDATES, fmt, mode, carrier)
    stream = _stream(rng) if mode is RoundingMode.STOCHASTIC else np.zeros(2, np.uint64)
    reports = []
    for part in range(0, w.size, _MOST):
        cells = take_zeros("updates", kernels.CELLS, np.uint32)
        sums = take_zeros("sums", (3, 2100, 2), np.int64)
        for _, weight, update in _blocks(w[part : part + _MOST], u[part : part + _MOST], carrier):
            loop(weight, update, stream, cells, sums)
        reports.append(_report(fmt, mode, _taken("updates", cells, w.size), sums))
    return reports[0] if len(reports) == 1 else UpdateReport.total(reports, fmt, mode)


def update_outcomes(weights: ArrayLike, updates: ArrayLike, fmt: object) -> NDArray[np.uint8]:
    """Return what becomes of each update, ties to even: `LOST`, `MOVED`, or `NO_UPDATE`.

    The last is what `update_report` does not count as `nonzero`; updates that overflow are `MOVED`. The shape is that
    of `weights`; parameters and errors are those of `update_report`.
    """
    kernels = load_kernels().updates

    fmt, mode = get_format(fmt), RoundingMode.TIES_TO_EVEN
    w, u, carrier = _pairs(weights, updates, fmt, mode)
    loop = _loop(kernels.OUTCOMES, fmt, mode, carrier)
    outcomes = np.empty(w.size, np.uint8)
    for start, weight, update in _blocks(w, u, carrier):
        loop(weight, update, np.zeros(2, np.uint64), outcomes[start : start + weight.size])
    return outcomes.reshape(np.shape(weights))


def _pairs(
    weights: ArrayLike, updates: ArrayLike, fmt: FloatFormat, mode: RoundingMode
) -> tuple[Array, Array, np.dtype[Any]]:
    """Return both as flat arrays, and the carrier that they are to be added in."""
    w, u = as_array(weights, to_odd=True), as_array(updates)  # weights are rounded into the format
    if w.shape != u.shape:
        raise ValueError(f"weights and updates must be of one shape, got {w.shape} and {u.shape}")
    w, u = (np.ascontiguousarray(x).reshape(-1) for x in (w, u))
    # float32 has 24 significand bits, float64 53; weights in float64 are stored from there, to be rounded once
    doubles = any(as_carrier(x[:0]).dtype == np.float64 for x in (w, u))
    wide = doubles or fmt.precision > 22 or mode is RoundingMode.STOCHASTIC
    return w, u, np.dtype(np.float64 if wide else np.float32)


def _blocks(w: Array, u: Array, carrier: np.dtype[Any]) -> Iterator[tuple[int, Array, Array]]:
    """Yield where a block begins, and its weights and updates in the carrier; what is converted stays in the caches."""
    step = _MOST if w.dtype == u.dtype == carrier else _BLOCK
    for start in range(0, w.size, step):
        weight = converted(as_carrier(w[start : start + step], to_odd=True), carrier)
        yield start, weight, converted(as_carrier(u[start : start + step]), carrier)


@lru_cache(maxsize=256)
def _loop(
    loops: tuple[Callable[..., None], Callable[..., None]], fmt: FloatFormat, mode: RoundingMode, carrier: np.dtype[Any]
) -> Callable[..., None]:
    """Return the loop for a carrier with its two roundings, to be called with the rest of its arguments."""
    kernels = load_kernels().updates

    wide = carrier == np.float64
    roundings = kernels.ROUNDINGS_64 if wide else kernels.ROUNDINGS_32
    both = (compiled_rounding(fmt, m, carrier) for m in (RoundingMode.TIES_TO_EVEN, mode))
    storing, rounding = ((roundings.index(kernel), constants) for kernel, constants in both)
    hides = not fmt.has_nan

    def loop(w: Array, u: Array, stream: Array, *counted: Array) -> None:
        loops[wide](w, u, storing, rounding, stream, hides, *counted)

    return loop


def _taken(name: str, cells: NDArray[np.uint32], size: int) -> dict[int, int]:
    """Return how often each key was counted, LANES cells a key, in their order, and give the cells back as zeros."""
    kernels = load_kernels().histogram

    lanes = kernels.LANES if size >= kernels.LANES else 1  # fewer elements are all counted in the first one
    looked = cells if lanes > 1 else cells[:: kernels.LANES]
    touched = np.flatnonzero(looked != 0)
    found: dict[int, int] = {}
    for key, n in zip((touched // lanes).tolist(), looked[touched].tolist(), strict=True):
        found[key] = found.get(key, 0) + n
    looked[touched] = 0
    give_back(name, cells)
    return found


def _hides(fmt: FloatFormat) -> bool:
    """Return whether storing makes something finite of an infinity or a NaN."""
    return not fmt.has_nan


def _report(fmt: FloatFormat, mode: RoundingMode, counted: dict[int, int], sums: NDArray[np.int64]) -> UpdateReport:
    """Read what the loop counted, by 4 * row + column, and what it summed, halves of integers by unit."""
    kernels = load_kernels().updates

    rows: dict[int, int] = {}
    columns = [0, 0, 0]
    lost: dict[int, int] = {}
    for key, n in counted.items():
        row, column = divmod(key, 4)
        rows[row] = rows.get(row, 0) + n
        if row not in (kernels.ZERO_UPDATE, kernels.NONFINITE):
            columns[column] += n
        if row > kernels.ZERO_WEIGHT and column == kernels.LOST:
            lost[row - kernels.RATIO_OFFSET] = n

    exact = [0, 0, 0]
    for (i, unit, half), n in nonzero_cells(sums):
        exact[i] += n << unit + (0 if half else 32)
        sums[i, unit, half] = 0
    give_back("sums", sums)
    return UpdateReport(
        fmt,
        mode,
        count=sum(rows.values()),
        nonzero=sum(columns),
        lost=columns[kernels.LOST],
        overflowed=columns[kernels.OVERFLOWED],
        nonfinite=rows.get(kernels.NONFINITE, 0),
        zero_weights=rows.get(kernels.ZERO_WEIGHT, 0),
        ratios=_ratios(tuple((row - kernels.RATIO_OFFSET, n) for row, n in rows.items() if row > kernels.ZERO_WEIGHT)),
        lost_ratios=_ratios(tuple(lost.items())),
        sums=(exact[0], exact[1], exact[2]),
    )


@lru_cache(maxsize=1 << 12)
def _ratios(counts: tuple[tuple[int, int], ...]) -> dict[int, int]:
    """Return counts that reports share: of many small tensors, nearly all."""
    return dict(counts)


def _in_units(value: int) -> float:
    """Return an integer times 2^-1074, rounded once."""
    require_gradual_underflow()
    return _quotient(value, _UNITS)


def _quotient(a: int, b: int) -> float:
    """Return a/b rounded once, which is infinite where it is too large for float64."""
    try:
        return a / b
    except OverflowError:
        return math.inf if (a < 0) == (b < 0) else -math.inf


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _merged(counts: Iterable[dict[Any, int]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for some in counts:
        if some:
            total.update(some)
    return {key: total[key] for key in sorted(total) if total[key] > 0}


# --- weights ---------------------------------------------------------------------------------------------------------


class Gaps(NamedTuple):
    """How far a weight can be pushed and still come back, ties to even.

    Attributes
    ----------
    up, down : float
        Half the gap to the next value above and below; infinite where the format saturates.
    up_tie, down_tie : bool
        Whether an update of exactly this size comes back as well.

    """

    up: float
    up_tie: bool
    down: float
    down_tie: bool


@dataclass(frozen=True)
class Frozen:
    """How many weights an update of one magnitude cannot move; exact counts.

    Attributes
    ----------
    update_size : float
        The magnitude |u|.
    count : int
        Finite weights.
    up, down : int
        Weights with R(w + |u|) == w; with R(w - |u|) == w.
    both : int
        Weights that move neither way.

    """

    update_size: float
    count: int
    up: int
    down: int
    both: int

    @property
    def up_fraction(self) -> float:
        """Share of the finite weights that cannot move up."""
        return _share(self.up, self.count)

    @property
    def down_fraction(self) -> float:
        """Share of the finite weights that cannot move down."""
        return _share(self.down, self.count)

    @property
    def fraction(self) -> float:
        """Frozen fraction: the share of the finite weights that can move neither way."""
        return _share(self.both, self.count)


@dataclass(frozen=True)
class WeightGaps:
    """Exact counts of weights by the sizes of the gaps around them; answers every update size afterwards.

    Whether |u| moves w depends on half the gap on that side alone, and where |u| is exactly that, on the last bit of w:
    the tie goes to the even one. In a binade all gaps are the same, but below a power of two the gap is half. So there
    are only a few hundred kinds of weights. Make one with `of`, add those of chunks with ``+``.

    Attributes
    ----------
    format : FloatFormat
        Of the weights.
    nonfinite : int
        Weights that are infinite or NaN, as given or stored.
    gaps : dict of Gaps to int
        The others.

    """

    format: FloatFormat
    nonfinite: int = 0
    gaps: dict[Gaps, int] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: ArrayLike, fmt: object) -> Self:
        """Count the elements of an array.

        Parameters
        ----------
        weights : array_like
            Any shape; dtypes as for `update_report`. What is no value of the format is rounded first, ties to even.
        fmt : str, dtype or FloatFormat
            See `get_format`.

        Raises
        ------
        ValueError
            Unknown format; another dtype; a masked array.
        FloatingPointError
            As `precision_lab.round_to`.

        """
        kernels = load_kernels().weights

        fmt = get_format(fmt)
        w = np.ascontiguousarray(as_array(weights, to_odd=True)).reshape(-1)
        layout = _layout(fmt)
        carrier = as_carrier(w[:0]).dtype
        store, constants = compiled_rounding(fmt, RoundingMode.TIES_TO_EVEN, carrier)
        buffer = np.empty(min(_BLOCK, w.size), carrier)
        parts = []
        for part in range(0, w.size, _MOST):
            cells = take_zeros("weights", kernels.CELLS, np.uint32)
            for start in range(part, min(part + _MOST, w.size), _BLOCK):
                block = as_carrier(w[start : min(start + _BLOCK, part + _MOST)], to_odd=True)
                stored = buffer[: block.size]
                store(block, stored, constants)
                if _hides(fmt):
                    stored[~np.isfinite(block)] = np.nan
                kernels.count_weights(stored.astype(np.float32, copy=False), cells, layout)
            gaps: dict[Gaps, int] = {}
            nonfinite = 0
            for key, n in _taken("weights", cells, w.size).items():
                row, (kind, negative) = key // 8, divmod(key % 8, 2)
                if row == kernels.WEIGHT_ROWS - 1:
                    nonfinite += n
                else:
                    found = _gaps(fmt, row - 127, kind, bool(negative))
                    gaps[found] = gaps.get(found, 0) + n
            parts.append(cls(fmt, nonfinite, dict(sorted(gaps.items()))))
        return parts[0] if len(parts) == 1 else cls.total(parts, fmt)

    @property
    def count(self) -> int:
        """Finite weights."""
        return sum(self.gaps.values())

    def __add__(self, other: object) -> Self:
        """Merge the counts of two chunks; nothing is lost."""
        if not isinstance(other, WeightGaps):
            return NotImplemented
        if self.format != other.format:
            raise ValueError(f"cannot add gaps of {other.format} to those of {self.format}")
        return self.total((self, other), self.format)

    @classmethod
    def total(cls, counted: Iterable[WeightGaps], fmt: FloatFormat) -> Self:
        """Return the sum of any number of counts for one format, which takes less time than to add one by one."""
        listed = list(counted)
        if any(some.format != fmt for some in listed):
            raise ValueError(f"cannot add up gaps of which some are not those of {fmt}")
        return cls(fmt, sum(some.nonfinite for some in listed), _merged(some.gaps for some in listed))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: of each kind of gap its four answers (infinity is None) and how many there are."""
        return {
            "format": self.format.name,
            "nonfinite": self.nonfinite,
            "gaps": [[finite_or_none(x) for x in gaps] + [n] for gaps, n in self.gaps.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the counts that `to_dict` described; raises ValueError."""
        try:
            gaps = {
                Gaps(number_or(up, math.inf), up_tie, number_or(down, math.inf), down_tie): n
                for up, up_tie, down, down_tie, n in data["gaps"]
            }
            return cls(get_format(data["format"]), data["nonfinite"], gaps)
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no gaps of weights: {error!r}") from error

    def frozen(self, update_size: float) -> Frozen:
        """Return how many weights an update of this magnitude cannot move.

        Raises
        ------
        ValueError
            It is negative, infinite or NaN, no number, or an integer that is no float64.

        """
        require_gradual_underflow()
        size = update_size if type(update_size) is float else _size(update_size)
        if not 0 <= size < math.inf:
            raise ValueError(f"an update size is a finite number that is not negative, got {update_size!r}")
        up = down = both = 0
        for gaps, n in self.gaps.items():
            stays_up = size < gaps.up or (gaps.up_tie and size == gaps.up)
            stays_down = size < gaps.down or (gaps.down_tie and size == gaps.down)
            up += n * stays_up
            down += n * stays_down
            both += n * (stays_up and stays_down)
        return Frozen(size, self.count, up, down, both)


def _size(value: Any) -> float:
    return float(as_carrier(value)) if is_number(value) else math.nan


@lru_cache(maxsize=256)
def _layout(fmt: FloatFormat) -> NDArray[np.uint32]:
    """Return the constants of `count_weights`."""
    largest = fmt.max if fmt.saturates else math.inf
    layout = np.array([fmt.smallest_normal, 0, largest], np.float32).view(np.uint32)
    layout[1] = 1 << (23 - fmt.mantissa_bits)
    return layout


@lru_cache(maxsize=1 << 14)
def _gaps(fmt: FloatFormat, exponent: int, kind: int, negative: bool) -> Gaps:
    """Return the gaps of a class of weights: see `count_weights`."""
    power, odd, largest = kind == 0, kind == 2, kind == 3
    zero = power and exponent < fmt.emin
    outward = 2.0 ** (max(exponent, fmt.emin) - fmt.mantissa_bits - 1)
    inward = outward
    outward_tie = inward_tie = not (odd or largest)  # the largest value of a format that saturates is all ones
    if fmt.mantissa_bits == 0 and not zero:
        # every significand is 1, odd: ties go to the larger
        outward_tie, inward_tie = False, exponent > fmt.emin
    if (power or (largest and fmt.mantissa_bits == 0)) and exponent > fmt.emin:
        inward /= 2
    if largest:
        outward, outward_tie = math.inf, True
    if negative:
        return Gaps(inward, inward_tie, outward, outward_tie)
    return Gaps(outward, outward_tie, inward, inward_tie)


def frozen_fraction(weights: ArrayLike, update_sizes: ArrayLike, fmt: object) -> tuple[Frozen, ...]:
    """Say which share of weights, stored in a format, updates of given magnitudes cannot move; ties to even.

    Parameters
    ----------
    weights : array_like
        Any shape; dtypes as for `update_report`. They are read once, however many sizes there are.
    update_sizes : array_like
        Magnitudes |u|, one or a flat sequence.
    fmt : str, dtype or FloatFormat
        Of the weights; see `get_format`.

    Returns
    -------
    tuple of Frozen
        One for each size, in their order.

    Raises
    ------
    ValueError
        A size is negative, infinite or NaN; a size of another dtype, or an integer that is no float64; unknown format;
        weights of another dtype; a masked array.
    FloatingPointError
        As `precision_lab.round_to`.

    """
    sizes = np.atleast_1d(as_carrier(update_sizes)).tolist()
    for size in sizes:
        WeightGaps(get_format(fmt)).frozen(size)  # a bad one is found before the weights are read
    gaps = WeightGaps.of(weights, fmt)
    return tuple(gaps.frozen(size) for size in sizes)


# --- thresholds ------------------------------------------------------------------------------------------------------


class Threshold(NamedTuple):
    """A ratio w/u, and whether what happens beyond it happens at the ratio itself, too."""

    ratio: float
    inclusive: bool

    def passed(self, ratio: float | Fraction) -> bool:
        """Return whether a ratio lies at or beyond the threshold."""
        return ratio >= self.ratio if self.inclusive else ratio > self.ratio


@dataclass(frozen=True)
class SwampingThresholds:
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


def swamping_thresholds(fmt: object) -> SwampingThresholds:
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


# --- running sums ----------------------------------------------------------------------------------------------------


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


def counting(step: float = 1) -> Series:
    """Return step + step + step + ...; raises ValueError where `step` is no number."""
    if not is_number(step):
        raise ValueError(f"step must be a number, got {step!r}")
    term = float(as_carrier(step, to_odd=True))  # terms are rounded into the format
    return Series(f"counting by {step:g}", lambda numbers: np.full(numbers.size, term))


def harmonic() -> Series:
    """Return 1 + 1/2 + 1/3 + ..., which has no limit.

    The quotients are rounded to float64 before they are rounded to the format, without harm: 1/k, if not a middle M
    between two values, is at least 1/(k * 2^(p+1)) of itself away from M, more than float64's 2^-53 for k < 2^28.
    """
    return Series("harmonic series", lambda numbers: 1 / numbers)


MOST_TERMS = 1 << 27


@dataclass(frozen=True)
class Stagnation:
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
    fmt: object,
    series: Series,
    mode: str = "ties_to_even",
    *,
    most: int = 1 << 25,
    rng: int | tuple[int, int] | None = None,
) -> Stagnation:
    """Add up a series term by term in a format until it stands still.

    Each term is stored first (rounded into the format, ties to even); each addition is rounded once.

    Parameters
    ----------
    fmt : str, dtype or FloatFormat
        See `get_format`.
    series : Series
        `counting`, `harmonic`, or one of your own.
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

    """
    kernels = load_kernels().sums

    fmt, mode = get_format(fmt), get_mode(mode)
    if not is_integer(most) or not 1 <= most <= MOST_TERMS:
        raise ValueError(f"most must be an integer in 1..2^27, got {most!r}")
    constants, stochastic = _addition(fmt, mode), mode is RoundingMode.STOCHASTIC
    seed, start = _stream(rng).tolist()
    if start:
        raise ValueError(f"rng must be a seed in 0..2^64-1 or None: a sum begins at the first term, got {rng!r}")
    state, none = np.zeros(1), np.zeros(0, np.uint16)
    last = math.inf
    for first in range(0, int(most), _BLOCK):
        numbers = np.arange(first + 1, min(first + _BLOCK, int(most)) + 1, dtype=np.float64)
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
    """Return the constants of `add_in_turn`: the last two are the positions between two values that go up."""
    anything, never = math.ulp(0.0), 1.0
    above_half = math.nextafter(0.5, 1)
    at_even, at_odd = {
        RoundingMode.TIES_TO_EVEN: (above_half, 0.5),
        RoundingMode.TIES_TO_AWAY: (0.5, 0.5),
        RoundingMode.TOWARD_POSITIVE: (anything, anything),
        RoundingMode.TO_ODD: (anything, never),
    }.get(mode, (never, never))
    beyond = fmt.max if mode.clamps(negative=False) else fmt.overflow_value
    return np.array([fmt.mantissa_bits, fmt.emin, fmt.max, beyond, at_even, at_odd])
