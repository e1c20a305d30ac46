"""What a format costs in precision: a rounding error for each tensor, where a histogram says what leaves the range.

bf16 has float32's range, and nearly every float32 is changed by it. How much that is, a ratio says: that of the signal
to the quantization noise (SQNR), in decibels, 6.02 for each bit of the significand. Whether the errors cancel, two
means say, of errors in ulps of the format: R(x) - x as it is, and away from zero, that is sign(x) (R(x) - x). What
truncates shows in the second only where positive and negative numbers are as many: there it is -1/2.

All is counted over the elements that stay finite. What is infinite or NaN already, and what overflows, is counted
apart: one infinity would be all that a sum shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.analysis.binades import plainly
from precision_lab.analysis.counting import BLOCK, counted, integers, of_one_kind, quotient, share
from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import as_array, converted
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.plans import magnitude_bits, plan_of
from precision_lab.numerics.rounding import _stream, as_carrier
from precision_lab.support.plain import HEXADECIMAL, Layout, PlainData
from precision_lab.support.shown import Shown

Array: TypeAlias = NDArray[Any]
_Sum: TypeAlias = Annotated[int, HEXADECIMAL]

_ULP_BITS = 22  # as in kernels/quantization.py
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_DECIMAL = Context(prec=30)  # its logarithm is rounded once, on every machine


@dataclass(frozen=True, slots=True)
class QuantizationReport(PlainData, Shown):
    """What a format costs in precision; exact counts. Make one with `quantization_report`, add those of chunks with +.

    With x an element and R the rounding. An *ulp* is `spacing(x, format)`: the distance of the format's values in the
    binade of x, at a power of two the one above it, and below the smallest normal that of the subnormals.

    Attributes
    ----------
    format : FloatFormat
        Of R(x).
    mode : RoundingMode
        Of R.
    count : int
        All elements.
    nonfinite : int
        Elements that are infinite or NaN already.
    overflowed : int
        Finite ones that overflow: rounded as if there were no end, they lie beyond the format's largest value. They
        become infinite or NaN, or are clamped. Left out, as the nonfinite ones are, of all that follows.
    changed : int
        Elements with R(x) != x.
    sums : tuple of int
        Of x^2 and of (R(x) - x)^2 in units of 2^-1074: every square is rounded to float64, their sum is exact, so that
        the order of the elements, and how they were cut into chunks, change nothing.
    ulps : tuple of int
        Sums of R(x) - x and of sign(x) (R(x) - x) in ulps, and of its square: each difference is rounded to a multiple
        of 2^-22, which is the unit. (A float32 that is normal in a format with a fraction bit is such a multiple.)

    """

    layout: ClassVar = Layout(
        derived=(
            "sqnr_db",
            "changed_of_finite",
            "bias",
            "bias_standard_error",
            "outward_bias",
            "outward_bias_standard_error",
        )
    )

    format: FloatFormat
    mode: RoundingMode
    count: int
    nonfinite: int
    overflowed: int
    changed: int
    sums: tuple[_Sum, _Sum]
    ulps: tuple[_Sum, _Sum, _Sum]

    @classmethod
    def empty(cls, fmt: FormatLike, mode: str = "ties_to_even") -> Self:
        """Return the report on nothing, the neutral element of ``+``."""
        return cls(get_format(fmt), get_mode(mode), 0, 0, 0, 0, (0, 0), (0, 0, 0))

    @property
    def finite(self) -> int:
        """Elements that stay finite."""
        return self.count - self.nonfinite - self.overflowed

    @property
    def changed_of_finite(self) -> float:
        """Share changed / finite; 0 where nothing stays finite."""
        return share(self.changed, self.finite)

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio: the sum of x^2 over that of (R(x) - x)^2.

        Infinite where nothing is changed; NaN without a signal, that is where all that stays finite is zero (or below
        2^-538, of which the square is no float64).
        """
        signal, noise = self.sums
        if not signal:
            return math.nan
        return quotient(signal, noise) if noise else math.inf

    @property
    def sqnr_db(self) -> float:
        """`sqnr` in decibels, 10 log10 of it."""
        signal, noise = self.sums
        if not (signal and noise):
            return self.sqnr
        ratio = _DECIMAL.divide(Decimal(signal), Decimal(noise))
        return float(10 * _DECIMAL.log10(ratio))

    @property
    def bias(self) -> float:
        """Mean of R(x) - x in ulps, over all that stays finite; NaN where nothing does."""
        return self._mean(self.ulps[0])

    @property
    def bias_standard_error(self) -> float:
        """Standard error of `bias` over independent elements, s / sqrt(n); NaN for fewer than two."""
        return self._standard_error(self.ulps[0])

    @property
    def outward_bias(self) -> float:
        """Mean of sign(x) (R(x) - x) in ulps, as `bias`: positive away from zero, -1/2 of what truncates many bits."""
        return self._mean(self.ulps[1])

    @property
    def outward_bias_standard_error(self) -> float:
        """That of `outward_bias`, as `bias_standard_error`."""
        return self._standard_error(self.ulps[1])

    def _mean(self, total: int) -> float:
        return quotient(total, self.finite << _ULP_BITS) if self.finite else math.nan

    def _standard_error(self, total: int) -> float:
        n = self.finite
        if n < 2:
            return math.nan
        return math.sqrt(quotient(n * self.ulps[2] - total * total, n * n * (n - 1) << 2 * _ULP_BITS))

    def __add__(self, other: object) -> Self:
        """Merge the reports on two chunks; nothing is lost."""
        return (
            self.total((self, other), self.format, self.mode)
            if isinstance(other, QuantizationReport)
            else NotImplemented
        )

    @classmethod
    def total(cls, reports: Iterable[QuantizationReport], fmt: FloatFormat, mode: RoundingMode) -> Self:
        """Return the sum of any number of reports on one format and mode, which takes less time than one by one."""
        listed = of_one_kind(reports, fmt, mode)
        signal, noise = (sum(report.sums[i] for report in listed) for i in range(2))
        ulps, outward, squares = (sum(report.ulps[i] for report in listed) for i in range(3))
        counts = {name: sum(getattr(report, name) for report in listed) for name in _COUNTS}
        return cls(fmt, mode, **counts, sums=(signal, noise), ulps=(ulps, outward, squares))


_COUNTS = ("count", "nonfinite", "overflowed", "changed")


def quantization_report(
    x: ArrayLike,
    fmt: FormatLike,
    *,
    mode: str = "ties_to_even",
    rng: int | tuple[int, int] | None = None,
) -> QuantizationReport:
    """Say what rounding an array into a format costs in precision.

    Parameters
    ----------
    x : array_like
        Any shape; float64, float32, float16, bfloat16 or an ml_dtypes float. Integers and lists count as float64; an
        integer that is none counts as the odd one of the two beside it.
    fmt : str, dtype or FloatFormat
        See `get_format`.
    mode : str
        See `round_to`.
    rng : int, (int, int) or None
        For ``stochastic``, as in `round_to`: a seed, or (seed, first) for the chunk that begins at element `first`.

    Returns
    -------
    QuantizationReport

    Raises
    ------
    ValueError
        Unknown format or mode; another dtype; a masked array.
    FloatingPointError
        As `round_to`.

    Examples
    --------
    >>> report = quantization_report([1.0, 1.1, 1.3, -1.7], "bf16")
    >>> report.changed, round(report.sqnr_db, 1)
    (3, 54.9)
    >>> truncated = quantization_report([1.1, -1.1], "bf16", mode="toward_zero")
    >>> truncated.bias, round(truncated.outward_bias, 3)
    (0.0, -0.8)

    """
    fmt, mode = get_format(fmt), get_mode(mode)
    array = as_array(x, to_odd=True)
    flat = array.ravel() if array.flags.aligned else array.flatten()
    seed, first = _stream(rng).tolist() if mode is RoundingMode.STOCHASTIC else (0, 0)
    load_kernels()  # before threads do

    def count(parts: Iterator[slice]) -> QuantizationReport:
        tally = Quantizations([fmt], mode, seed=seed)
        for part in parts:
            tally.add(flat[part], (first + part.start) % 2**64)
        return tally.reports()[0]

    reports = counted(count, flat.size)
    return reports[0] if len(reports) == 1 else QuantizationReport.total(reports, fmt, mode)


class Quantizations:
    """What several formats cost, counted array after array; for one thread.

    Parameters
    ----------
    formats : sequence of FloatFormat
        What to round to.
    mode : RoundingMode
        How.
    loss_scale : float
        A power of two: S x is rounded, and compared with S x.
    seed : int
        For ``stochastic``.

    """

    def __init__(
        self,
        formats: Sequence[FloatFormat],
        mode: RoundingMode = RoundingMode.TIES_TO_EVEN,
        *,
        loss_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._tallies = [_Tally(fmt, mode, seed) for fmt in formats]
        self._may_be_plain = mode is RoundingMode.TIES_TO_EVEN
        self._scale = loss_scale

    def add(self, array: Array, first: int = 0) -> None:
        """Count the elements of an array, of which the first is number `first` of a stream of random numbers."""
        if not self._tallies:
            return
        plain = self._may_be_plain and plainly(_PLAIN * array.size * len(self._tallies), _CALL * len(self._tallies))
        for start in range(0, array.size, BLOCK):
            block = as_carrier(array[start : start + BLOCK], to_odd=True)
            if not (block.flags.c_contiguous and block.flags.aligned):
                block = block.copy()
            block = _scaled(block.reshape(-1), self._scale)
            for tally in self._tallies:
                if plain:
                    tally.add_plainly(converted(block, _DOUBLE))
                else:
                    tally.add(block, (first + start) % 2**64)

    def reports(self) -> tuple[QuantizationReport, ...]:
        """Return what was counted, in the order of the formats."""
        signals: dict[int, int] = {}  # most often one, which the reports share: of many tensors it is half of them
        return tuple(tally.report(signals) for tally in self._tallies)


_PLAIN = 2  # what NumPy takes for an element, and
_CALL = 3000  # for a call of these, in elements of a histogram


def _scaled(x: Array, scale: float) -> Array:
    """Return S x, in float64 where that is no float32; what float64 does not hold lies beyond the ends of all formats.

    Beyond the large end it is float64's largest number, beyond the small one its smallest.
    """
    if scale == 1:
        return x
    with np.errstate(all="ignore"):
        if x.dtype == _SINGLE and 2.0**-126 <= scale <= 2.0**126:
            narrow = x * np.float32(scale)
            if np.array_equal((narrow * np.float32(1 / scale)).view(np.uint32), x.view(np.uint32)):
                return narrow
        wide = converted(x, _DOUBLE) * scale
        ends = np.finfo(_DOUBLE)
        wide[np.isinf(wide) & (np.abs(x) < np.inf)] = ends.max  # on either side it overflows
        lost = (wide == 0) & (x != 0)
        wide[lost] = np.copysign(ends.smallest_subnormal, x[lost])
    return wide


class _Tally:
    """Counts what one format costs."""

    def __init__(self, fmt: FloatFormat, mode: RoundingMode, seed: int) -> None:
        self._format, self._mode, self._seed = fmt, mode, seed
        self._count = 0
        self._counts: NDArray[np.int64] | None = None
        self._plain = [0] * 7
        self._plain_sums = [0, 0]

    def add(self, block: Array, first: int) -> None:
        """Count a block of a carrier with the compiled loops."""
        fmt, mode = self._format, self._mode
        if mode is RoundingMode.STOCHASTIC and fmt.mantissa_bits > 14:
            block = converted(block, _DOUBLE)  # as `round_to` does
        loop = _loop(fmt, mode, block.dtype == _DOUBLE)
        if self._counts is None:
            kernels = load_kernels()
            self._counts = np.zeros(kernels.quantization.COUNTS, np.int64)
            self._sums = np.zeros((2, kernels.product_sums.DIGITS), np.int64)
        self._count += block.size
        loop(block, np.array([self._seed, first], np.uint64), self._counts, self._sums)

    def add_plainly(self, x: Array) -> None:
        """Count a block of float64 with NumPy alone, ties to even: the counts are the same."""
        fmt = self._format
        self._count += x.size
        finite = np.isfinite(x)
        stays = finite & (np.abs(np.where(finite, x, 0)) < _overflow_from(fmt, self._mode, True)[0])
        values = x[stays]
        _, exponents = np.frexp(values)
        exponents = np.where(values == 0, fmt.emin, np.maximum(exponents - 1, fmt.emin))
        ulp = np.ldexp(1.0, exponents - fmt.mantissa_bits)
        errors = np.rint(values / ulp) * ulp - values
        units = np.rint(np.ldexp(errors / ulp, _ULP_BITS)).astype(np.int64)
        nonfinite = x.size - int(np.count_nonzero(finite))
        squares = units * units
        found = (
            nonfinite,
            x.size - nonfinite - values.size,
            int(np.count_nonzero(errors)),
            int(units.sum()),
            int((units * np.where(np.signbit(values), -1, 1)).sum()),
            int((squares & 0xFFFFFFFF).sum()),
            int((squares >> 32).sum()),
        )
        self._plain = [a + b for a, b in zip(self._plain, found, strict=True)]
        for i, numbers in enumerate((values, errors)):
            self._plain_sums[i] += _sum_of_squares(numbers)

    def report(self, signals: dict[int, int]) -> QuantizationReport:
        """Return what was counted; `signals` are those of other reports."""
        counts, (signal, noise) = self._plain, self._plain_sums
        if self._counts is not None:
            counts = [a + b for a, b in zip(counts, self._counts.tolist(), strict=True)]
            of_loops = integers(load_kernels().product_sums.take_sums(self._sums))
            signal, noise = signal + of_loops[0], noise + of_loops[1]
        nonfinite, overflowed, changed, total, outward, low, high = counts
        return QuantizationReport(
            self._format,
            self._mode,
            self._count,
            nonfinite,
            overflowed,
            changed,
            (signals.setdefault(signal, signal), noise),
            (total, outward, low + (high << 32)),
        )


def _sum_of_squares(x: Array) -> int:
    """Return the exact sum of the squares, each rounded to float64, in units of 2^-1074; of at most BLOCK numbers."""
    squares = (x * x)[x != 0]
    if not squares.size:
        return 0
    significands, exponents = np.frexp(squares)
    first = int(exponents.min())
    whole = np.ldexp(significands, 53)
    high = np.floor(np.ldexp(whole, -27))
    parts = (np.bincount(exponents - first, weights=part) for part in (high, whole - np.ldexp(high, 27)))  # exact
    total = sum((int(h) << 27) + int(low) << i for i, (h, low) in enumerate(zip(*parts, strict=True)))
    shift = first - 53 + 1074
    return total << shift if shift >= 0 else total >> -shift  # zeros, of subnormals


@lru_cache(maxsize=256)
def _overflow_from(fmt: FloatFormat, mode: RoundingMode, wide: bool) -> tuple[float, float]:
    """Return the least magnitudes in the carrier that overflow, of positive and of negative numbers.

    By chance both neighbours are possible: from the one on that the format has not.
    """
    beyond = fmt.max + 2.0 ** (fmt.emax - fmt.mantissa_bits), True
    tie = fmt.overflow_threshold, fmt.overflow_inclusive or mode is RoundingMode.TIES_TO_AWAY
    above = fmt.max, False

    def end(negative: bool) -> float:
        if mode.to_nearest:
            threshold, itself = tie
        elif mode is RoundingMode.TO_ODD:
            threshold, itself = beyond if fmt.max_significand % 2 else above
        elif mode is RoundingMode.STOCHASTIC or mode.clamps(negative=negative):
            threshold, itself = beyond
        else:
            threshold, itself = above
        real = np.float64 if wide else np.float32
        with np.errstate(over="ignore"):
            least = real(threshold)
            if float(least) < threshold or (float(least) == threshold and not itself):
                least = np.nextafter(least, real(np.inf))
        return float(least)

    return end(False), end(True)


@lru_cache(maxsize=256)
def _loop(fmt: FloatFormat, mode: RoundingMode, wide: bool) -> Any:
    """Return the loop for a carrier, to be called with a block, a stream, counts and sums."""
    kernels = load_kernels()

    carrier = _DOUBLE if wide else _SINGLE
    by_chance = mode is RoundingMode.STOCHASTIC
    nothing, no_stream = np.empty(0, carrier), np.empty(0, np.uint64)
    plan = plan_of(fmt, mode, True, False, wide)
    loop, last = plan.seeded or plan.kernel, no_stream if by_chance else False
    place = kernels.addresses.address(loop, nothing, nothing, plan.constants, last)
    ends = np.array([magnitude_bits(wide, end) for end in _overflow_from(fmt, mode, wide)], np.int64)
    # by chance what lies beyond the largest value may become anything
    limit = magnitude_bits(wide, fmt.max) + 1 if by_chance else int(ends.min())
    bias, tile = 1023 if wide else 127, kernels.updates.TILE
    rounding = place, plan.constants, by_chance
    bounds = fmt.emin + bias, fmt.mantissa_bits + bias, limit, ends
    quantization = kernels.quantization.QUANTIZATION[wide]

    def run(x: Array, stream: Array, counts: Array, sums: Array) -> None:
        quantization(x, *rounding, stream, *bounds, np.empty((4, tile), carrier), np.empty((2, tile)), counts, sums)

    return run
