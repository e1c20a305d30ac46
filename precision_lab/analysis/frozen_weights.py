"""Frozen weights: which share of them an update of a given size cannot move, told by the weights alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.analysis.counting import BLOCK, counted, give_back, merged, share, take_zeros
from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import as_array, is_number
from precision_lab.numerics.modes import RoundingMode
from precision_lab.numerics.plans import packed, plan_of
from precision_lab.numerics.rounding import as_carrier
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.plain import PlainData, from_plain, number, register


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
        return share(self.up, self.count)

    @property
    def down_fraction(self) -> float:
        """Share of the finite weights that cannot move down."""
        return share(self.down, self.count)

    @property
    def fraction(self) -> float:
        """Frozen fraction: the share of the finite weights that can move neither way."""
        return share(self.both, self.count)


@dataclass(frozen=True)
class WeightGaps(PlainData):
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
    def of(cls, weights: ArrayLike, fmt: FormatLike) -> Self:
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
        fmt = get_format(fmt)
        w = as_array(weights, to_odd=True).ravel()
        results = counted(lambda parts: cls._count(w, parts, fmt), w.size)
        return results[0] if len(results) == 1 else cls.total(results, fmt)

    @classmethod
    def _count(cls, w: NDArray[Any], parts: Iterator[slice], fmt: FloatFormat) -> Self:
        """Count the elements of parts of an array."""
        kernels = load_kernels()

        spacing = _spacing(fmt)
        carrier = as_carrier(w[:0]).dtype
        plan = plan_of(fmt, RoundingMode.TIES_TO_EVEN, True, False, carrier == np.float64)
        cells = take_zeros("weights", kernels.weights.CELLS, np.uint32)
        touched = np.array([kernels.weights.WEIGHT_ROWS, 0])
        buffer = np.empty(min(BLOCK, w.size), carrier)
        for part in parts:
            for start in range(part.start, part.stop, BLOCK):
                block = as_carrier(w[start : min(start + BLOCK, part.stop)], to_odd=True)
                stored = buffer[: block.size]
                plan.kernel(block, stored, plan.constants, False)
                if not fmt.has_nan:
                    stored[~np.isfinite(block)] = np.nan
                kernels.weights.count_weights(stored.astype(np.float32, copy=False), cells, touched, spacing)
        rows = kernels.counts.take_rows(cells, kernels.weights.WEIGHT_COLUMNS, 0, touched).tolist()
        give_back("weights", cells)
        nonfinite = rows.pop()[1] if rows and rows[-1][0] == kernels.weights.WEIGHT_ROWS - 1 else 0
        gaps: dict[Gaps, int] = {}
        for row, _, *counts in rows:
            for gap, n in zip(_gaps_of_row(fmt, row - 127), counts, strict=True):
                if n:
                    gaps[gap] = gaps.get(gap, 0) + n
        return cls(fmt, nonfinite, dict(sorted(gaps.items())))

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
        return cls(fmt, sum(some.nonfinite for some in listed), merged(some.gaps for some in listed))

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
def _spacing(fmt: FloatFormat) -> NDArray[np.uint32]:
    """Return the constants of `count_weights`."""
    largest = fmt.max if fmt.saturates else math.inf
    spacing = load_kernels().weights.Spacing(fmt.smallest_normal, 1 << (23 - fmt.mantissa_bits), largest)
    return packed(spacing, wide=False)


@lru_cache(maxsize=1 << 12)
def _gaps_of_row(fmt: FloatFormat, exponent: int) -> tuple[Gaps, ...]:
    """Return the gaps of the classes of weights with an exponent, in their order in `count_weights`."""
    classes = range(load_kernels().weights.WEIGHT_CLASSES)
    return tuple(_gaps(fmt, exponent, kind, negative) for kind in classes for negative in (False, True))


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


def frozen_fraction(weights: ArrayLike, update_sizes: ArrayLike, fmt: FormatLike) -> tuple[Frozen, ...]:
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

    Examples
    --------
    >>> [frozen.fraction for frozen in frozen_fraction([1.0, 100.0], [1e-2, 1.0], "bf16")]
    [0.5, 0.0]

    """
    sizes = np.atleast_1d(as_carrier(update_sizes)).tolist()
    for size in sizes:
        WeightGaps(get_format(fmt)).frozen(size)  # a bad one is found before the weights are read
    gaps = WeightGaps.of(weights, fmt)
    return tuple(gaps.frozen(size) for size in sizes)


def _written(gaps: WeightGaps) -> dict[str, Any]:
    """Return of each kind of gap its four answers and how many there are."""
    listed = [[number(x) for x in kind] + [n] for kind, n in gaps.gaps.items()]
    return {"format": gaps.format.name, "nonfinite": gaps.nonfinite, "gaps": listed}


def _read(data: Any) -> WeightGaps:
    try:
        listed = from_plain(tuple[tuple[float, bool, float, bool, int], ...], data["gaps"])
        gaps = {Gaps(up, up_tie, down, down_tie): n for up, up_tie, down, down_tie, n in listed}
        return WeightGaps(get_format(data["format"]), from_plain(int, data["nonfinite"]), gaps)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the gaps of weights: {error!r}") from error


register(WeightGaps, _written, _read)
