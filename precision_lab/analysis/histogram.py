"""ExponentHistogram: exact counts that answer any format and loss scale afterwards.

Whether a value is flushed, subnormal or overflows in a format depends on its magnitude alone, and only on a few
thresholds: half the smallest subnormal, the middle between the largest subnormal and the smallest normal, the middle
between the largest value and what would follow it. A power-of-two loss scale moves the exponents and nothing else. So
it is enough to count, in each binade, what lies between the significands at which *some* format has a threshold:

- the power of two itself (half a smallest subnormal is one, and the tie is flushed),
- the significands 1.1, 1.11, 1.111, ... in binary: the middle above the largest value of a format with m mantissa bits
  begins with m + 1 ones, the one below the smallest normal with m ones,
- 1.1101, the significand of 464, above which fp8_e4m3fn has no finite value left.

These 27 classes a binade answer every registered format and every power-of-two loss scale with exact counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.analysis.binades import CLASSES, SLICE, compile_for, count_array, count_arrays, slices
from precision_lab.analysis.counting import share
from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import as_array, is_number
from precision_lab.support.arguments import is_integer
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.plain import PlainData, register
from precision_lab.support.shown import Shown
from precision_lab.support.threads import LEAST, in_threads

# first class at or above a fraction: "below 1.11" is "in classes before _FIRST_CLASS[3/4]"
_FIRST_CLASS: dict[Fraction, int] = {Fraction(0): 0, Fraction(1, 2): 2, Fraction(3, 4): 3} | {
    1 - Fraction(1, 2**ones): ones + 2 for ones in range(3, 25)
}
# first class above a fraction: "at most 1.1101" is "in classes before _CLASS_AFTER[13/16]"
_CLASS_AFTER: dict[Fraction, int] = {Fraction(0): 1, Fraction(13, 16): 4}


@dataclass(frozen=True)
class Conversion(Shown):
    """What storing a tensor in a format does to its elements; exact counts.

    Attributes
    ----------
    format : FloatFormat
        The format.
    loss_scale : float
        The S by which every element was multiplied first.
    count, zero, nonfinite : int
        All elements; those that are zero already; those that are infinite or NaN already.
    flushed : int
        Finite and not zero, but zero in the format.
    subnormal : int
        Not zero in the format, but below its smallest normal.
    overflowed : int
        Finite, but not finite in the format (or, where it has no infinity and no NaN, clamped).

    """

    format: FloatFormat
    loss_scale: float
    count: int
    zero: int
    nonfinite: int
    flushed: int
    subnormal: int
    overflowed: int

    @property
    def nonzero(self) -> int:
        """Finite elements that are not zero."""
        return self.count - self.zero - self.nonfinite

    @property
    def kept(self) -> int:
        """Elements that are normal values of the format."""
        return self.nonzero - self.flushed - self.subnormal - self.overflowed

    @property
    def flushed_of_nonzero(self) -> float:
        """Share flushed / nonzero, which is meant where nothing else is said; 0 where nothing is nonzero."""
        return share(self.flushed, self.nonzero)

    @property
    def flushed_of_all(self) -> float:
        """Share flushed / count."""
        return share(self.flushed, self.count)

    @property
    def zero_after_of_all(self) -> float:
        """Share (zero + flushed) / count."""
        return share(self.zero + self.flushed, self.count)

    @property
    def subnormal_of_nonzero(self) -> float:
        """Share subnormal / nonzero."""
        return share(self.subnormal, self.nonzero)

    @property
    def overflowed_of_nonzero(self) -> float:
        """Share overflowed / nonzero."""
        return share(self.overflowed, self.nonzero)


@dataclass(frozen=True, eq=False, slots=True)
class ExponentHistogram(PlainData, Shown):
    """Exact counts of magnitudes by binade and by class within the binade.

    Make one with `of` or `of_chunks`; add histograms with ``+``, in any order and grouping.

    Attributes
    ----------
    zero, nonfinite : int
        Elements that are zero; that are infinite or NaN.
    min_nonzero, max_abs : float or None
        Smallest and largest finite magnitude, zero not counted in the first; None where there is none.
    first_exponent : int
        The exponent e of the first row: its elements lie in [2^e, 2^(e+1)).
    table : ndarray of int64, (binades, 27)
        Counts of finite, non-zero elements. Not to be written to: histograms of one binade share equal ones.
    nonzero : int
        Finite elements that are not zero: the sum of the table.

    """

    zero: int
    nonfinite: int
    min_nonzero: float | None
    max_abs: float | None
    first_exponent: int
    table: NDArray[np.int64]
    nonzero: int = field(init=False, repr=False)
    counted: InitVar[int | None] = None

    def __post_init__(self, counted: int | None) -> None:
        """Count the elements once, unless who counted them says how many there were."""
        if counted is None:
            counted = int(np.add.reduce(self.table.reshape(-1)))
        object.__setattr__(self, "nonzero", counted)

    @classmethod
    def empty(cls) -> Self:
        """Return the histogram of nothing, the neutral element of ``+``."""
        return cls(0, 0, None, None, 0, np.zeros((0, CLASSES), np.int64))

    @classmethod
    def of(cls, x: ArrayLike) -> Self:
        """Count the elements of an array.

        Parameters
        ----------
        x : array_like
            Any shape; float64, float32, float16, bfloat16 or an ml_dtypes float. Integers and lists count as float64;
            an integer that is none is counted where it lies, and stands in `max_abs` rounded to odd.

        Raises
        ------
        ValueError
            Another dtype; a masked array.
        FloatingPointError
            As `round_to`.

        """
        array = as_array(x, to_odd=True)
        if array.size <= SLICE:
            return cls(*count_array(array))
        if array.size < LEAST:
            return cls.of_chunks([array])
        compile_for(array.size)
        parts = in_threads(count_arrays, list(slices(array)))
        return cls.total(cls(*counts) for part in parts for counts in part)

    @classmethod
    def of_chunks(cls, chunks: Iterable[ArrayLike]) -> Self:
        """Count the elements of all chunks of a tensor together, holding one chunk at a time."""
        return cls.total(cls(*counts) for counts in count_arrays(as_array(chunk, to_odd=True) for chunk in chunks))

    @property
    def count(self) -> int:
        """All elements."""
        return self.nonzero + self.zero + self.nonfinite

    @property
    def exponents(self) -> range:
        """The exponents of the rows."""
        return range(self.first_exponent, self.first_exponent + len(self.table))

    @property
    def binades(self) -> dict[int, int]:
        """Number of elements in [2^e, 2^(e+1)) for each exponent e, from the smallest to the largest that occurs."""
        return dict(zip(self.exponents, self.table.sum(axis=1).tolist(), strict=True))

    def __add__(self, other: object) -> Self:
        """Merge two histograms; nothing is lost."""
        if not isinstance(other, type(self)):
            return NotImplemented
        require_gradual_underflow()  # or two subnormal extremes would compare equal
        if not (self.count and other.count):
            return self if self.count else other
        return self.total((self, other))

    @classmethod
    def total(cls, histograms: Iterable[ExponentHistogram]) -> Self:
        """Return the sum of any number of histograms, which takes less time than to add one after the other."""
        require_gradual_underflow()
        listed = list(histograms)
        if len(listed) == 1 and isinstance(listed[0], cls):
            return listed[0]
        parts = [h for h in listed if len(h.table)]
        first = min((h.first_exponent for h in parts), default=0)
        table = np.zeros((max((h.first_exponent + len(h.table) for h in parts), default=0) - first, CLASSES), np.int64)
        for h in parts:
            table[h.first_exponent - first : h.first_exponent + len(h.table) - first] += h.table
        return cls(
            sum(h.zero for h in listed),
            sum(h.nonfinite for h in listed),
            min((h.min_nonzero for h in listed if h.min_nonzero is not None), default=None),
            max((h.max_abs for h in listed if h.max_abs is not None), default=None),
            first,
            table,
        )

    def __eq__(self, other: object) -> bool:
        """Compare all counts and extremes."""
        if not isinstance(other, ExponentHistogram):
            return NotImplemented
        return _written(self) == _written(other)

    __hash__ = None  # type: ignore[assignment]

    def flushed(self, fmt: FormatLike, loss_scale: float = 1) -> int:
        """Return how many finite non-zero elements become zero in the format after multiplication by `loss_scale`.

        Raises
        ------
        ValueError
            `loss_scale` is no power of two: it would move elements within their binades, which only a new pass over
            the data could follow. Or the format (a custom one) has thresholds that the classes do not separate.

        """
        fmt = get_format(fmt)
        return self._below(fmt.flush_threshold, loss_scale, inclusive=True)

    def subnormal(self, fmt: FormatLike, loss_scale: float = 1) -> int:
        """Return how many elements become subnormal, neither zero nor normal; otherwise as `flushed`."""
        fmt = get_format(fmt)
        if fmt.mantissa_bits == 0:  # there are no subnormals
            return 0
        return self._below(fmt.subnormal_threshold, loss_scale, inclusive=False) - self.flushed(fmt, loss_scale)

    def overflowed(self, fmt: FormatLike, loss_scale: float = 1) -> int:
        """Return how many finite elements do not stay finite, or are clamped; otherwise as `flushed`."""
        fmt = get_format(fmt)
        stays = self._below(fmt.overflow_threshold, loss_scale, inclusive=not fmt.overflow_inclusive)
        return self.nonzero - stays

    def conversion(self, fmt: FormatLike, loss_scale: float = 1) -> Conversion:
        """Return all counts of a conversion at once; raises as `flushed`."""
        fmt, k = get_format(fmt), log2_of_power_of_two(loss_scale)
        flushed, below, stays = (self._before(place, k) for place in _places(fmt))
        overflowed = self.nonzero - stays
        return Conversion(
            fmt, float(loss_scale), self.count, self.zero, self.nonfinite, flushed, below - flushed, overflowed
        )

    def at_each(self, fmt: FloatFormat, scales: range) -> list[tuple[int, int, int, int]]:
        """Return k, and how many elements are flushed, subnormal and overflowed at the loss scale 2^k, for each k."""
        sums = np.concatenate([[0], self.table.reshape(-1).cumsum()])
        ks = np.arange(scales.start, scales.stop)
        flushed, below, stays = (
            sums[np.clip((exponent - self.first_exponent - ks) * CLASSES + position, 0, sums.size - 1)]
            for exponent, position in _places(fmt)
        )
        counts = (flushed.tolist(), (below - flushed).tolist(), (self.nonzero - stays).tolist())
        return list(zip(scales, *counts, strict=True))

    def _below(self, threshold: float, loss_scale: float, *, inclusive: bool) -> int:
        """Count the elements x with S * |x| < threshold, or <= where inclusive."""
        return self._before(place_of(threshold, inclusive=inclusive), log2_of_power_of_two(loss_scale))

    def _before(self, place: tuple[int, int], k: int) -> int:
        """Count the elements that 2^k leaves below a place of `place_of`."""
        row = place[0] - k - self.first_exponent
        if row < 0:
            return 0
        if row >= len(self.table):
            return self.nonzero
        return int(self.table[:row].sum()) + int(self.table[row, : place[1]].sum())


@cache
def _places(fmt: FloatFormat) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return below which places elements are flushed, are not normal, stay finite."""
    flushed = place_of(fmt.flush_threshold, inclusive=True)
    return (
        flushed,
        place_of(fmt.subnormal_threshold, inclusive=False) if fmt.mantissa_bits else flushed,  # or nothing is subnormal
        place_of(fmt.overflow_threshold, inclusive=not fmt.overflow_inclusive),
    )


@cache
def place_of(threshold: float, *, inclusive: bool) -> tuple[int, int]:
    """Return where a threshold cuts the table.

    Parameters
    ----------
    threshold : float
        A positive number, unscaled. A loss scale of 2^k moves it k binades down.
    inclusive : bool
        Whether the threshold itself lies below the cut.

    Returns
    -------
    exponent, classes : int
        Below the cut lie all binades below `exponent`, and of that one the first so many classes.

    Raises
    ------
    ValueError
        The classes do not separate it.

    """
    mantissa, exponent = math.frexp(threshold)
    position = (_CLASS_AFTER if inclusive else _FIRST_CLASS).get(Fraction(mantissa) * 2 - 1)
    if position is None:
        raise ValueError(
            f"the histogram does not separate the threshold {threshold!r}; it resolves the formats "
            f"{', '.join(FORMATS)} and those of FloatFormat.ieee"
        )
    return exponent - 1, position


def _written(histogram: ExponentHistogram) -> dict[str, Any]:
    """Return the counts of each binade by its exponent, without trailing zeros."""
    rows = {
        str(e): np.trim_zeros(row, "b").tolist()
        for e, row in zip(histogram.exponents, histogram.table, strict=True)
        if row.any()
    }
    return {
        "zero": histogram.zero,
        "nonfinite": histogram.nonfinite,
        "min_nonzero": histogram.min_nonzero,
        "max_abs": histogram.max_abs,
        "binades": rows,
    }


def _read(data: Any) -> ExponentHistogram:
    """Return the histogram that `_written` described; no counts that no data could have."""
    try:
        rows = {int(e): [_count(n) for n in row] for e, row in data["binades"].items()}
        least, largest = (_magnitude(data[key]) for key in ("min_nonzero", "max_abs"))
        if len(rows) != len(data["binades"]) or not all(0 < len(row) <= CLASSES and any(row) for row in rows.values()):
            raise ValueError(f"a binade occurs once, with up to {CLASSES} counts")
        if sum(map(sum, rows.values())) >= 2**63:
            raise ValueError("counts fit in 63 bits")
        if rows and (min(rows), max(rows)) != (_exponent(least), _exponent(largest)):
            raise ValueError("min_nonzero and max_abs lie in the first and the last binade")
        if not rows and not (least is None and largest in (None, 0.0)):
            raise ValueError("without binades there is no min_nonzero, and max_abs is 0 or none")
        first = min(rows, default=0)
        table = np.zeros((max(rows) - first + 1 if rows else 0, CLASSES), np.int64)
        for e, row in rows.items():
            table[e - first, : len(row)] = row
        return ExponentHistogram(_count(data["zero"]), _count(data["nonfinite"]), least, largest, first, table)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        missing = isinstance(error, KeyError)
        raise ValueError(f"not a histogram: it has no {error}" if missing else f"not a histogram: {error}") from error


register(ExponentHistogram, _written, _read)


def _count(value: Any) -> int:
    """Return a count, an integer that is not negative."""
    if not is_integer(value) or value < 0:
        raise ValueError(f"counts are integers that are not negative, got {value!r}")
    return int(value)


def _magnitude(value: Any) -> float | None:
    """Return an extreme as a float."""
    if value is not None and not is_number(value):
        raise ValueError(f"min_nonzero and max_abs are numbers, got {value!r}")
    return None if value is None else float(value)


def _exponent(magnitude: float | None) -> int | None:
    """Return the exponent of the binade of a positive finite magnitude, None where there is none."""
    return math.frexp(magnitude)[1] - 1 if magnitude and 0 < magnitude < math.inf else None


def log2_of_power_of_two(loss_scale: float) -> int:
    """Return k for a loss scale of 2^k.

    Raises
    ------
    ValueError
        It is not a finite positive power of two.

    """
    try:
        mantissa, exponent = math.frexp(loss_scale)
    except (TypeError, OverflowError):
        mantissa, exponent = math.nan, 0
    if mantissa != 0.5 or isinstance(loss_scale, bool | np.bool_):
        raise ValueError(
            f"loss scale must be a power of two such as 1024 or 65536, got {loss_scale!r}: any other moves elements "
            "within their binades, and that needs the data (loss-scale FILE --scale S; count_conversion)"
        )
    return exponent - 1
