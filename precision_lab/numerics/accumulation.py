"""Sums of which every step is rounded to a chosen accumulator format; `products` has those of matrix products.

Why does the mean of ten thousand fp16 numbers come out wrong, and `numpy.mean` right? A sum is not one operation.
Adding one term after the other means rounding after each addition: the running sum grows, its spacing with it, and from
some point on every term is smaller than half a spacing and changes nothing (ones in fp16 stop at 2048, in bf16 at 256).
Libraries hide this in two ways: they add in another order (NumPy adds float32 and float64 in pairs), or they keep the
running sum in a wider format and round once at the end (NumPy adds float16 in float32 where it adds along the
contiguous axis, but row to row in float16; every tensor core does). Here both are arguments:

=============  ====================================================================================================
method         what is added, each addition rounded once
=============  ====================================================================================================
`sequential`   s = R(s + t), from s = 0, in the order of the terms
`pairwise`     neighbours, then the sums of neighbours ...; an odd one at the end moves up as it is
`blocked`      within blocks from 0, then the block sums from 0, both sequentially (Wang et al. 2018, NeurIPS, chunks)
`kahan`        y = R(t - c); s' = R(s + y); c = R(R(s' - s) - y) (Kahan 1965)
`neumaier`     s' = R(s + t); c = R(c + R(R(large - s') + small)), large and small being s and t; at the end R(s + c)
               (Neumaier 1974)
=============  ====================================================================================================

Terms and products are taken as they are: R(s + t) is the *exact* sum of the accumulator's value s and a float64 t,
rounded once. Computing s + t in float32 or float64 and rounding that would round twice, and be wrong near ties.

Special cases. A sum that is exactly zero is +0 unless both summands are -0; in ``toward_negative`` it is -0 unless both
are +0 (IEEE 754-2019, 6.3); sums start from +0. Overflow, infinities, the zeros of fnuz formats are as in `round_to`.
inf - inf, 0 * inf and a NaN term give NaN without a sign, which `round_to` rounds as a positive NaN: it stays NaN for
good, but in the formats without NaN (fp6, fp4) it becomes -0. A Kahan sum that overflows becomes NaN at the next step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import is_number
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.plans import overflows
from precision_lab.numerics.rounding import (
    RandomSource,
    as_carrier,
    random_numbers,
    random_stream,
)
from precision_lab.support.arguments import check_integer
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.shown import Shown

Array: TypeAlias = NDArray[Any]

METHODS = ("sequential", "pairwise", "blocked", "kahan", "neumaier")
"""The orders in which `accumulate` adds."""

_NOTHING = Fraction(0)


@dataclass(frozen=True, eq=False, slots=True)
class RoundedSum:
    """What a sum came to, beside the exact one.

    Attributes
    ----------
    result : float
        The sum, a value of its format.
    exact : Fraction or None
        The sum of the terms without any rounding; None where a term is infinite or NaN.

    """

    result: float
    exact: Fraction | None

    @property
    def exact_sum(self) -> float:
        """The exact sum, rounded once to the nearest double (ties to even); NaN where there is none."""
        return math.nan if self.exact is None else _to_float(self.exact)

    @property
    def absolute_error(self) -> float:
        """The distance between result and exact sum; inf or NaN where the result is, NaN without an exact sum."""
        if self.exact is None or not math.isfinite(self.result):
            return math.nan if self.exact is None else abs(self.result)
        return _to_float(abs(Fraction(self.result) - self.exact))

    @property
    def relative_error(self) -> float:
        """`absolute_error` / abs(exact sum): 0 for 0/0, infinite for another error of a sum that is exactly 0."""
        if self.exact is None or not math.isfinite(self.result):
            return self.absolute_error
        if not self.exact:
            return math.inf if self.result else 0.0
        (a, b), (c, d) = self.result.as_integer_ratio(), self.exact.as_integer_ratio()
        return _to_float(abs(a * d - c * b), b * abs(c))  # in integers: nothing is reduced to lowest terms


@dataclass(frozen=True, eq=False, slots=True)
class AccumulationTrace(RoundedSum, Shown):
    """What became of a sum on the way, and the bounds of its error.

    Attributes
    ----------
    result : float
        The sum, in `format`.
    exact : Fraction or None
        The sum of the terms without any rounding; None where a term is infinite or NaN.
    method, mode : str
        How it was added and rounded.
    format, accumulator : FloatFormat
        Of the result and of the partial sums.
    count : int
        Number of terms n.
    partial_sums : ndarray of float64
        Values of the accumulator: after each term (``sequential``; ``kahan`` and ``neumaier``, compensation left out),
        after each block (``blocked``), every node of the tree, level by level (``pairwise``, n - 1 of them).
    magnitudes : Fraction or None
        The sum of the absolute values, which the bounds multiply.
    stagnates_after : int or None
        ``sequential``, in a deterministic mode: the number of terms after which no other one changed the partial sum;
        None if the last that is not zero still did, and for the other methods.
    roundings : int
        The most roundings k that a term passes on its way to the accumulator's result: n for ``sequential`` (one less
        if the first term is a value of the accumulator), ceil(log2 n) for ``pairwise``, the length of a block plus the
        number of blocks for ``blocked``.
    underflow : Fraction
        What gradual underflow can add to the error: 0 if every term is a multiple of the smallest subnormal, since
        sums of such terms are exact below the smallest normal.

    """

    method: str
    mode: str
    format: FloatFormat
    accumulator: FloatFormat
    count: int
    partial_sums: NDArray[np.float64]
    magnitudes: Fraction | None
    stagnates_after: int | None
    roundings: int
    underflow: Fraction

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error of a step: 2^-p of the accumulator in the ties modes, twice that in the others."""
        return self.accumulator.unit_roundoff * (1 if RoundingMode(self.mode).to_nearest else 2)

    @property
    def worst_case_bound(self) -> float:
        """What `absolute_error` cannot exceed as long as no step overflows.

        With u_r the `unit_roundoff`, k the `roundings` and M the sum of the magnitudes:

        - ``sequential`` in the ties modes: k u_r M. No second-order term, any n (Rump 2012, BIT 52, whose proof for
          terms of the format also covers others: a step errs by at most abs(t), and by at most u_r times the sum).
        - other modes, ``pairwise``, ``blocked``: gamma_k M with gamma_k = k u_r / (1 - k u_r) (Higham 2002, 4.2);
          infinite from k u_r = 1 on.
        - ``kahan``: 2 u_r M, ``neumaier``: u_r abs(exact) + (n u_r)^2 M, to first order and as proven for ties_to_even
          (Higham 2002, 4.3; Ogita, Rump and Oishi 2005, prop. 4.5); infinite from n u_r = 1 on, where the next order
          is no smaller.

        To this comes `underflow` and, where the result is rounded from the accumulator to another format, the error
        of that rounding.
        """
        u_r, k = Fraction(self.unit_roundoff), self.roundings
        if self.exact is None or self.magnitudes is None:
            return math.nan
        if self.method in ("kahan", "neumaier"):
            first = 2 * u_r * self.magnitudes
            if self.method == "neumaier":
                first = u_r * abs(self.exact) + (self.count * u_r) ** 2 * self.magnitudes
            bound = first if self.count * u_r < 1 else None
        elif self.method == "sequential" and RoundingMode(self.mode).to_nearest:
            bound = k * u_r * self.magnitudes
        else:
            bound = k * u_r / (1 - k * u_r) * self.magnitudes if k * u_r < 1 else None
        return math.inf if bound is None else self._with_output(bound)

    def probabilistic_bound(self, multiple: float = 1.0) -> float:
        """Return the bound that holds with high probability: `multiple` * sqrt(k) u_r M, to first order.

        If the errors of the steps are independent of each other with mean zero, the error exceeds it with a probability
        of at most about 2 n exp(-multiple^2 / 2) (Higham and Mary 2019, whose lambda `multiple` is). The ties modes
        often behave so, and never where the sum stagnates; for stochastic rounding, with 2 u_r for u_r, the model is a
        theorem (Connolly, Higham and Mary 2021) as far as the probabilities are exact: ours have 16 bits. The other
        symbols are those of `worst_case_bound`, which is returned for the compensated methods: to first order it does
        not grow with n.

        Raises
        ------
        ValueError
            `multiple` is no positive number.

        """
        if not (is_number(multiple) and multiple > 0):
            raise ValueError(f"multiple must be positive, got {multiple!r}")
        if self.exact is None or self.magnitudes is None or self.method in ("kahan", "neumaier"):
            return self.worst_case_bound
        likely = Fraction(multiple * math.sqrt(self.roundings)) * Fraction(self.unit_roundoff)
        return self._with_output(likely * self.magnitudes)

    def _with_output(self, bound: Fraction) -> float:
        """Add what underflow and the rounding to the output format contribute."""
        assert self.exact is not None
        bound += self.underflow
        if self.format != self.accumulator:
            of_output = Fraction(self.format.unit_roundoff) * (1 if RoundingMode(self.mode).to_nearest else 2)
            bound += max(of_output * (abs(self.exact) + bound), Fraction(self.format.smallest_subnormal))
        return _to_float(bound)


def _to_float(x: Fraction | int, divisor: int = 1) -> float:
    """Return x / divisor rounded once; the divisor of an integer is positive, a Fraction has none."""
    require_gradual_underflow()  # a trace may be looked at under another environment than it was made in
    try:
        return x / divisor if isinstance(x, int) else float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def exact_sum(terms: ArrayLike) -> Fraction:
    """Return the sum of finite terms without any rounding.

    Raises
    ------
    ValueError
        A term is infinite or NaN, or of a dtype that `round_to` does not take either; an integer that is no float64.
    FloatingPointError
        As `round_to`.

    """
    total, _ = Terms(as_carrier(terms).reshape(-1)).sums
    if total is None:
        raise ValueError("the exact sum needs finite terms: some are infinite or NaN")
    return total


def nonzero_cells(cells: NDArray[np.int64]) -> Iterator[tuple[list[int], int]]:
    """Yield what is not zero in an array, place and value; in one dimension NumPy finds it in a tenth of the time."""
    flat = cells.reshape(-1)
    touched = np.flatnonzero(flat != 0)
    places = np.stack(np.unravel_index(touched, cells.shape), axis=1)
    return zip(places.tolist(), flat[touched].tolist(), strict=True)


def _of_units(count: int) -> Fraction:
    """Return count * 2^-1074, in numbers that are as short as may be: those are reduced to lowest terms sooner."""
    zeros = min((count & -count).bit_length() - 1, 1074) if count else 1074
    return Fraction(count >> zeros, 1 << (1074 - zeros))


class Terms:
    """What is added, and what is known about it in whatever way it is added: for callers that add it in several."""

    def __init__(self, terms: ArrayLike) -> None:
        given = as_carrier(terms)
        if given.ndim != 1:
            raise ValueError(f"terms must have one dimension, got {given.ndim}")
        wide = given.dtype == np.float64
        self.array = np.ascontiguousarray(given) if wide else np.empty(given.shape)
        extents = load_kernels().sums.extents
        self.largest, self.lowest, *self._totals = extents(self.array if wide else given, None if wide else self.array)
        self._known: dict[FloatFormat, tuple[bool, bool]] = {}

    @cached_property
    def sums(self) -> tuple[Fraction, Fraction] | tuple[None, None]:
        """The exact sum and that of the magnitudes; None where a term is infinite or NaN."""
        if not self.largest < math.inf:
            return None, None
        if self.array.size * self.largest < min(2.0**53 * self.lowest, sys.float_info.max):
            total, magnitudes = map(Fraction.from_float, self._totals)
            return total, magnitudes
        return self._exact_sums()

    def _exact_sums(self) -> tuple[Fraction, Fraction]:
        cells = np.zeros((2, 2047, 2), np.int64)  # halves of significands do not overflow it below 2^36 terms
        load_kernels().sums.sum_exactly(self.array, self.largest, self.lowest, cells)
        sums = [0, 0]
        for (sign, field, half), n in nonzero_cells(cells):
            # field f means 2^(f - 1075) times the significand as an integer, 0 what 1 does
            sums[sign] += n << max(field - 1, 0) + (0 if half else 26)
        positive, negative = sums
        return _of_units(positive - negative), _of_units(positive + negative)

    def known(self, fmt: FloatFormat) -> tuple[bool, bool]:
        """Return whether the first term is a value of the format, and all are multiples of its smallest subnormal."""
        if fmt not in self._known:
            in_units = not math.isnan(self.largest) and self.lowest >= fmt.smallest_subnormal
            self._known[fmt] = self._first_is_value(fmt), in_units
        return self._known[fmt]

    def _first_is_value(self, fmt: FloatFormat) -> bool:
        if not self.array.size:
            return False
        first = float(self.array[0])
        rounded = _rounded(first, sum_constants(fmt, RoundingMode.TIES_TO_EVEN), None)
        return (
            fmt.has_nan if first != first else rounded == first and math.copysign(1, rounded) == math.copysign(1, first)
        )


@lru_cache(maxsize=256)
def sum_constants(fmt: FloatFormat, mode: RoundingMode) -> Array:
    """Return the constants of kernels/sums.py as its loops read them."""
    return as_words(accumulator(fmt, mode))


def as_words(constants: tuple[Any, ...]) -> Array:
    """Return a NamedTuple of a loop's constants as bit patterns of 64 bits, signs and all."""
    return np.array([x if isinstance(x, int) else np.float64(x).view(np.uint64) for x in constants], np.uint64)


def _ends(fmt: FloatFormat, mode: RoundingMode) -> tuple[float, ...]:
    """Return what `round_to` makes of 1e300, -1e300, inf, -inf, -0.0 and NaN: no loop need be compiled for that."""
    nan = math.copysign(math.nan, -1 if fmt.specials == "fnuz" else 1) if fmt.has_nan else -0.0
    positive, negative, infinity = overflows(fmt, mode, False)
    signed = positive, -negative, infinity, -infinity
    ends = (nan if x != x and fmt.specials == "fnuz" else x for x in signed)
    return *ends, -0.0 if fmt.has_negative_zero else 0.0, nan


def accumulator(fmt: FloatFormat, mode: RoundingMode) -> Any:
    """Return the constants of kernels/sums.py."""
    beyond, beyond_negative, infinity, negative_infinity, negative_zero, nan = _ends(fmt, mode)
    discarded = 52 - fmt.mantissa_bits
    low, half = (1 << discarded) - 1, 1 << (discarded - 1)
    below_16_bits = (1 << (discarded - 16)) - 1
    # what is added to all, what to some, and the bit that decides; the bits by which a sum that is no double is one of
    # those that lie at a decision: as doubles they look like a midpoint, like a value, like 2^-16ths of a spacing
    dither, by_bit, deciding, undecided, undecided_at = {
        RoundingMode.TIES_TO_EVEN: (half - 1, 1, discarded, low, half),
        RoundingMode.TIES_TO_AWAY: (half, 0, 63, low, half),
        RoundingMode.TOWARD_ZERO: (0, 0, 63, low, 0),
        RoundingMode.TOWARD_POSITIVE: (low, -low, 63, low, 0),
        RoundingMode.TOWARD_NEGATIVE: (0, low, 63, low, 0),
        RoundingMode.TO_ODD: (low, -low, discarded, low, 0),
        RoundingMode.STOCHASTIC: (0, 0, 63, below_16_bits, 0),
    }[mode]
    dither_below = dither
    if not fmt.mantissa_bits and deciding == discarded:  # every significand but zero's is 1, odd
        dither, by_bit = dither + by_bit, 0
    return load_kernels().sums.Accumulator(
        discarded=discarded,
        low=low,
        dither=dither,
        dither_below=dither_below,
        deciding=deciding,
        by_bit=by_bit % 2**64,
        number_shift=discarded - 16,
        undecided=undecided,
        undecided_at=undecided_at,
        smallest_normal=fmt.smallest_normal,
        largest=fmt.max,
        beyond=beyond,
        beyond_negative=beyond_negative,
        infinity=infinity,
        negative_infinity=negative_infinity,
        negative_zero=negative_zero,
        cancelled=-0.0 if mode is RoundingMode.TOWARD_NEGATIVE else 0.0,
        nan=nan,
    )


def accumulate(
    terms: ArrayLike | Terms,
    fmt: FormatLike,
    *,
    method: str = "sequential",
    mode: str = "ties_to_even",
    accumulator: FormatLike | None = None,
    block: int = 64,
    rng: RandomSource = None,
) -> AccumulationTrace:
    """Add up the terms, every operation rounded once.

    Parameters
    ----------
    terms : array_like
        One-dimensional; float32, float64 and what `round_to` takes; or `Terms` of them. They are not rounded first:
        give ``round_to(terms, fmt)`` for the sum of stored numbers. None at all sum to 0.
    fmt : str, dtype or FloatFormat
        The format of the result, see `get_format`.
    method : str
        ``sequential``, ``pairwise``, ``blocked``, ``kahan``, ``neumaier``, as described at the top of this module.
    mode : str
        Any rounding mode of `round_to`, for every operation.
    accumulator : str, dtype or FloatFormat, optional
        The format of all partial sums, usually a wider one (``fp32``); the last is rounded once to `fmt`. Default
        `fmt`.
    block : int
        Terms a block, for ``blocked``.
    rng : int, (int, int), numpy.random.Generator or None
        For ``stochastic``: each rounding uses the next number of the counter-based stream of `round_to`, in the order
        in which the operations stand in the table (``sequential``: step i uses number i; ``kahan`` and ``neumaier``:
        four a step; the rounding to `fmt` comes last). A Generator is drawn from once, for the seed.

    Returns
    -------
    AccumulationTrace
        Partial sums, result, exact sum, error and its bounds.

    Raises
    ------
    ValueError
        Terms with more than one dimension or of a dtype that `round_to` does not take; an integer that is no float64;
        unknown format, method or mode; `block` below 1; bad `rng`.
    FloatingPointError
        As `round_to`.

    Notes
    -----
    Stochastic rounding compares 16 bits: a term below 2^-16 spacings of the running sum never changes it.

    Examples
    --------
    >>> trace = accumulate([1.0] * 300, "bf16")
    >>> trace.result, trace.exact_sum, trace.stagnates_after
    (256.0, 300.0, 256)

    """
    settings = _settings(fmt, method, mode, accumulator, block)
    given = terms if isinstance(terms, Terms) else Terms(terms)
    added = _added(given, settings, rng)
    n = given.array.size
    exact, magnitudes = given.sums
    is_given, in_units = given.known(settings.accumulator)
    numerator, denominator = settings.accumulator.smallest_subnormal.as_integer_ratio()
    return AccumulationTrace(
        result=added.result,
        exact=exact,
        method=method,
        mode=settings.mode.value,
        format=settings.format,
        accumulator=settings.accumulator,
        count=n,
        partial_sums=added.partial_sums,
        magnitudes=magnitudes,
        stagnates_after=added.stagnates_after,
        roundings={
            "pairwise": max((n - 1).bit_length(), 1 - is_given) if n else 0,  # the additions above a leaf of the tree
            "blocked": min(block, n) - (-n // block),
        }.get(method, n - is_given),
        underflow=_NOTHING if in_units else Fraction(added.steps * numerator, denominator),
    )


def rounded_sum(
    terms: ArrayLike | Terms,
    fmt: FormatLike,
    *,
    method: str = "sequential",
    mode: str = "ties_to_even",
    accumulator: FormatLike | None = None,
    block: int = 64,
    rng: RandomSource = None,
) -> RoundedSum:
    """Return what `accumulate` comes to, and neither the way there nor what its bounds need: for very many sums.

    Parameters, rounding and errors are those of `accumulate`.
    """
    settings = _settings(fmt, method, mode, accumulator, block)
    given = terms if isinstance(terms, Terms) else Terms(terms)
    return RoundedSum(_added(given, settings, rng).result, given.sums[0])


class _Settings(NamedTuple):
    """The arguments of a sum, checked."""

    format: FloatFormat
    accumulator: FloatFormat
    method: str
    mode: RoundingMode
    block: int


def _settings(fmt: FormatLike, method: str, mode: str, accumulator: FormatLike | None, block: int) -> _Settings:
    fmt = get_format(fmt)
    wide = fmt if accumulator is None else get_format(accumulator)
    rounding_mode = get_mode(mode)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    return _Settings(fmt, wide, method, rounding_mode, check_integer("block", block, 1))


class _Added(NamedTuple):
    """A sum and the way to it; `steps` is the number of roundings."""

    result: float
    partial_sums: Array
    stagnates_after: int | None
    steps: int


def _added(terms: Terms, settings: _Settings, rng: RandomSource) -> _Added:
    """Add up."""
    kernels = load_kernels().sums

    fmt, wide, method, mode, block = settings
    array = terms.array
    n = array.size
    steps = kept = n
    if method == "pairwise":
        steps, kept = max(n - 1, 1), max(n - 1, 0)
    elif method == "blocked":
        kept = -(-n // block)
        steps = n + kept
    elif method in ("kahan", "neumaier"):
        steps = 4 * n + (method == "neumaier")
    numbers = None
    if mode is RoundingMode.STOCHASTIC:
        numbers = random_numbers(*random_stream(rng), steps + 1)

    constants = sum_constants(wide, mode)
    sums = np.empty(kept)
    last = 0.0
    stagnates_after: int | None = None
    if method == "sequential":
        after = int(kernels.sum_sequential(array, sums, constants, numbers))
        stagnates_after = after if after >= 0 else None
    elif method == "blocked":
        totals = np.empty(kept)
        kernels.sum_blocks(array, totals, constants, numbers, block)
        kernels.sum_sequential(totals, sums, constants, None if numbers is None else numbers[n:])
    elif method == "pairwise" and n > 1:
        last = float(kernels.sum_pairs(array, sums, constants, numbers, terms.largest, terms.lowest))
    elif method == "pairwise":
        last = _rounded(float(array[0]), constants, numbers) if n else 0.0
    elif method == "kahan":
        kernels.sum_kahan(array, sums, constants, numbers)
    else:
        last = float(kernels.sum_neumaier(array, sums, constants, numbers))
    if n and method not in ("pairwise", "neumaier"):
        last = float(sums[-1])
    if wide != fmt:
        last = _rounded(last, sum_constants(fmt, mode), None if numbers is None else numbers[steps:])
    return _Added(last, sums, stagnates_after, steps)


def _rounded(x: float, constants: Array, numbers: NDArray[np.uint16] | None) -> float:
    """Round a double, with the first of the numbers."""
    value = np.array([x])
    load_kernels().sums.round_values(value, constants, numbers)
    return float(value[0])
