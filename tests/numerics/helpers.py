"""What the tests of this floor share: hard inputs, an oracle made of tables, comparison to the last bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.modes import RoundingMode

Array: TypeAlias = NDArray[Any]
DType: TypeAlias = np.dtype[Any]

REGISTERED = tuple(FORMATS.values())
UP_TO_8_BITS = tuple(f for f in REGISTERED if f.bits <= 8)
UP_TO_16_BITS = tuple(f for f in REGISTERED if f.bits <= 16)
WITH_DTYPE = tuple(f for f in REGISTERED if f.dtype is not None)
# beside the registered ones: no or all fraction bits, the carrier's exponents, few exponents, every kind of specials
CUSTOM = [
    *(FloatFormat.ieee(e, m) for e, m in ((8, 0), (5, 0), (2, 0), (2, 1), (8, 1), (8, 22), (7, 23), (5, 22), (6, 9))),
    FloatFormat("fn_e8m4", 7, 4, 63, "fn"),
    FloatFormat("fnuz_without_fraction", 4, 0, 8, "fnuz"),
    FloatFormat("finite_without_fraction", 3, 0, 3, "finite"),
    FloatFormat("fnuz_of_float32_range", 7, 5, 127, "fnuz"),
    FloatFormat("finite_at_the_top", 4, 3, -2, "finite"),
    FloatFormat("ieee_at_the_top", 3, 2, -1, "ieee"),
    FloatFormat("ieee_at_the_bottom", 4, 3, 108, "ieee"),
    FloatFormat("ieee_small_subnormals", 6, 11, 100, "ieee"),
]
CARRIERS: tuple[DType, DType] = (np.dtype(np.float32), np.dtype(np.float64))
MODES = tuple(mode.value for mode in RoundingMode if mode is not RoundingMode.STOCHASTIC)
# the same rounding seen in a mirror at zero
MIRRORED = {mode: mode for mode in MODES} | {
    "toward_positive": "toward_negative",
    "toward_negative": "toward_positive",
}
SWITCHES = [(subnormals, saturate) for subnormals in (True, False) for saturate in (False, True)]


def bits_of(array: Array) -> Array:
    """The bit patterns of an array of floats (or of codes, unchanged)."""
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def as_dtype(codes: Array, fmt: FloatFormat) -> Array:
    """Codes as an array of the format's own dtype."""
    assert fmt.dtype is not None
    return codes.view(fmt.dtype)


def assert_same(actual: Any, expected: Any, x: Any = None) -> None:
    """Equal to the last bit, signs of zeros included; NaNs agree where both are NaN of the same sign."""
    a, e = np.asarray(actual), np.asarray(expected)
    assert a.dtype == e.dtype
    assert a.shape == e.shape
    both_nan = np.isnan(a) & np.isnan(e) & (np.signbit(a) == np.signbit(e))
    differ = (bits_of(a) != bits_of(e)) & ~both_nan
    if differ.any():
        first = np.flatnonzero(differ)[:5]
        at = "" if x is None else f" at {[float(v).hex() for v in np.asarray(x).reshape(-1)[first]]}"
        got, want = a.reshape(-1)[first], e.reshape(-1)[first]
        raise AssertionError(f"{np.count_nonzero(differ)} of {a.size} differ: {got} instead of {want}{at}")


@lru_cache
def finite_values(fmt: FloatFormat) -> Array:
    """All magnitudes of a format upwards, once for all tests."""
    values = np.array([*reference.finite_values(fmt)])
    values.flags.writeable = False
    return values


class Table(NamedTuple):
    """Magnitudes of a format upwards, with one beyond the largest: where it would go on with more exponents."""

    values: Array
    odd: Array  # whether the significand is odd
    consecutive: Array  # whether the next in the table is the next in the format


@lru_cache(maxsize=32)
def table(fmt: FloatFormat, codes: tuple[int, ...] | None = None) -> Table:
    """Tabulate a format, whole or only the runs of codes that are given."""
    if codes is None:
        value = finite_values(fmt)
        code = np.arange(value.size)  # the finite codes come first
    else:
        value = np.array([reference.decode(code, fmt) for code in codes])
        code, value = np.array(codes)[np.isfinite(value)], value[np.isfinite(value)]
    # with the implicit bit alone every significand is 1
    odd = code % 2 == 1 if fmt.mantissa_bits else code > 0
    beyond = value[-1] + 2.0 ** (fmt.emax - fmt.mantissa_bits)
    return Table(np.append(value, beyond), np.append(odd, not odd[-1]), np.append(np.diff(code) == 1, True))


def runs(fmt: FloatFormat, step: int) -> tuple[int, ...]:
    """Runs of four codes at every `step`-th and at all places where the exponent changes or the range ends."""
    top = _largest_code(fmt)
    binades = range(0, top, 2**fmt.mantissa_bits)
    starts = {*range(0, top, step), *binades, *(b + 2**fmt.mantissa_bits // 2 for b in binades), top}
    codes = {start + offset for start in starts for offset in (-2, -1, 0, 1, 2)}
    return tuple(sorted(c for c in codes if 0 <= c <= top))


def _largest_code(fmt: FloatFormat) -> int:
    low, high = 0, 2 ** (fmt.bits - 1) - 1
    while low < high:  # the finite codes come first
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.isfinite(reference.decode(middle, fmt)) else (low, middle - 1)
    return low


def hard_values(fmt: FloatFormat, dtype: DType, codes: tuple[int, ...] | None = None) -> Array:
    """Every value, every midpoint, their neighbours in the carrier; what lies beyond and below; both signs; NaNs."""
    values, _, consecutive = table(fmt, codes)
    inner = values[:-1][consecutive & np.append(True, consecutive[:-1])]
    middles = ((values[:-1] + values[1:]) / 2)[consecutive]
    exact = np.concatenate([inner, middles, values[-1:]])
    with np.errstate(over="ignore", under="ignore"):
        exact = exact[exact.astype(dtype) == exact].astype(dtype)
        around = [exact, np.nextafter(exact, dtype.type(np.inf)), np.nextafter(exact, dtype.type(0))]
        if dtype == np.float64:
            # what a detour through float32 would move onto the tie or the value
            around += [exact * (1 + 2.0**-40), exact * (1 - 2.0**-40)]
        limits = np.finfo(dtype)
        extremes = np.array([0, limits.smallest_subnormal, limits.smallest_normal, limits.max, np.inf], dtype)
        large = np.array([v for v in (2 * fmt.max, 1e30, 3e38) if v > fmt.overflow_threshold]).astype(dtype)
    magnitudes = np.concatenate([*around, extremes, large])
    # quiet, signalling with the lowest payload bit only, all ones
    payloads = np.array([2 ** (limits.nmant - 1), 1, 2**limits.nmant - 1], bits_of(extremes).dtype)
    nans = (bits_of(extremes[-1:]) + payloads).view(dtype)
    magnitudes = np.concatenate([magnitudes, nans])
    return np.concatenate([magnitudes, -magnitudes])


class Oracle:
    """Round by looking up: every comparison is between doubles that are exact.

    Inputs are located once and then rounded in any mode. Independent of the fast path and, but for the table of values
    and three properties of the format, of the reference, to which `test_rounding.py` holds it.
    """

    def __init__(self, x: Array, fmt: FloatFormat, codes: tuple[int, ...] | None = None) -> None:
        self.fmt, self.dtype = fmt, x.dtype
        values, odd, _ = table(fmt, codes)
        self.negative, self.nan, self.infinite = np.signbit(x), np.isnan(x), np.isinf(x)
        magnitude = np.zeros(x.shape)
        finite = np.isfinite(x)
        magnitude[finite] = np.abs(x[finite].astype(np.float64))
        below = np.minimum(np.searchsorted(values, magnitude, "right") - 1, values.size - 2)
        self.low, self.high, self.odd = values[below], values[below + 1], odd[below]
        self.beyond = magnitude >= values[-1]
        middle = (self.low + self.high) / 2
        self.inexact, self.above, self.tie = magnitude > self.low, magnitude > middle, magnitude == middle
        # exact: a difference of doubles at most a factor of two apart (or from zero), divided by a power of two
        self.position = (np.where(self.beyond, self.low, magnitude) - self.low) / (self.high - self.low)

    def goes_away(self, mode: str, numbers: Array | None) -> Array:
        """Whether each element goes to the larger of its neighbours in magnitude."""
        nothing = np.zeros_like(self.inexact)
        if mode == "stochastic":
            assert numbers is not None
            up: Array = np.floor(self.position * 2**16) + numbers >= 2**16
            return up
        rules: dict[str, Array] = {
            "ties_to_even": self.above | (self.tie & self.odd),
            "ties_to_away": self.above | self.tie,
            "toward_zero": nothing,
            "toward_positive": self.inexact & ~self.negative,
            "toward_negative": self.inexact & self.negative,
            "to_odd": self.inexact & ~self.odd,
        }
        return rules[mode]

    def round(self, mode: str, subnormals: bool = True, saturate: bool = False, numbers: Array | None = None) -> Array:
        fmt = self.fmt
        result: Array = np.where(self.goes_away(mode, numbers), self.high, self.low)
        beyond = np.inf if fmt.has_infinity else np.nan if fmt.has_nan else fmt.max
        beyond = fmt.max if saturate else beyond
        clamped: dict[str, Array | bool] = {
            "toward_zero": True,
            "to_odd": True,
            "toward_positive": self.negative,
            "toward_negative": ~self.negative,
        }
        too_large = self.beyond | (result > fmt.max)
        if not subnormals:
            result[result < fmt.smallest_normal] = 0.0
        result[too_large] = beyond
        result[too_large & clamped.get(mode, False)] = fmt.max
        result[self.infinite] = beyond
        result[self.nan] = np.nan if fmt.has_nan else 0.0
        negative = self.negative if fmt.has_nan else self.negative ^ self.nan
        if fmt.specials == "fnuz":
            negative = (negative & (result != 0)) | np.isnan(result)
        np.negative(result, out=result, where=negative)  # of magnitudes, and of NaNs whose sign is not set
        return result.astype(self.dtype)


def by_reference(x: Array, fmt: FloatFormat, mode: str, subnormals: bool = True, saturate: bool = False) -> Array:
    """Round element by element by the reference."""
    rounded = [reference.round_to(float(v), fmt, mode, subnormals=subnormals, saturate=saturate) for v in x]
    return np.array(rounded).astype(x.dtype)


def uniforms(mode: str, seed: int, first: int = 0, step: int = 1) -> Iterator[Fraction] | None:
    """The numbers of a stream, as the reference takes them."""
    if mode != "stochastic":
        return None
    return (Fraction(reference.random_number(seed, i), 2**16) for i in itertools.count(first, step))


def unsigned_nan(x: Any) -> Array:
    """Doubles; the sign of a NaN says nothing here."""
    array = np.asarray(x, np.float64)
    return np.where(np.isnan(array), np.nan, array)
