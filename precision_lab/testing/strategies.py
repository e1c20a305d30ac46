"""What Hypothesis should draw to break a rounding: values, ties, what lies beside ties, and the ends of the range.

Hypothesis knows float16, float32 and float64 only, and where it draws a float32 it seldom draws one at which a cast to
bfloat16 can go wrong: of the 65,536 float32 values between two neighbours, one is the tie. These strategies know where
the trouble is. One that favours it finds within some dozens of examples that a cast truncates, rounds ties away from
zero, flushes subnormals, drops the sign of zero, overflows too early, or rounds twice::

    from hypothesis import given
    from precision_lab.testing.strategies import arrays, hard_values

    @given(hard_values("bf16", carrier="fp32"))
    def test_my_cast(x):
        assert my_cast(x) == expected(x)

    @given(arrays("bf16", (8,)))
    def test_my_sum(x): ...

What is drawn has the format's own type: a scalar or array of ml_dtypes (fp16, fp32: NumPy). tf32 and custom formats
have none; their values come as float32, which holds them all. A strategy is given a format, or a carrier, as
`precision_lab.get_format` takes it; a carrier, the wider format in which ties and their neighbours lie, may also be
float64. Bad arguments are refused as Hypothesis refuses them, with InvalidArgument.

Examples shrink towards zero, then towards 1, to positive numbers and few significant bits; 1, 2, 4 and so on are
simpler than 1/2, this than 1/4; finite values are simpler than infinities, these than NaN.

Importing this module also makes ``st.from_type`` know the scalar types of ml_dtypes. With the extra ``testing``
installed that needs no import: Hypothesis finds the registration by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.extra import numpy as of_numpy
from numpy.typing import NDArray

from precision_lab.numerics.codes import code_dtype
from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.support.environment import require_gradual_underflow

Strategy: TypeAlias = st.SearchStrategy[Any]
Draw: TypeAlias = st.DrawFn


def codes(fmt: FormatLike) -> st.SearchStrategy[int]:
    """Draw codes of the format, all 2^bits of them, NaN included; in the order of their values, not of the integers.

    Simplest is 0, then the code of 1. Zeros, subnormals, powers of two, the ends of the range and specials are
    favoured, and so are the neighbours of 1 and of the ends.
    """
    fmt = _format(fmt)
    everything = _beyond(fmt)
    return _codes(fmt, -everything - 1, everything, True, True, fmt.has_nan)


def values(
    fmt: FormatLike,
    *,
    allow_nan: bool | None = None,
    allow_infinity: bool | None = None,
    allow_subnormal: bool | None = None,
    min_value: float | None = None,
    max_value: float | None = None,
) -> Strategy:
    """Draw values of the format, as scalars of its type, as `hypothesis.strategies.floats` does.

    Often drawn are zeros, subnormals and the ends of the range, 1 and the bounds, and the neighbours of all of these:
    the value below 1 of fp32 in 5 of 100 examples or so.

    Parameters
    ----------
    fmt : str, dtype, type or FloatFormat
        See `precision_lab.get_format`.
    allow_nan : bool, optional
        Default: where the format has a NaN and no bound is given.
    allow_infinity : bool, optional
        Default: where the format has infinities and not both bounds are given.
    allow_subnormal : bool, optional
        Default: where the bounds leave room for any.
    min_value, max_value : float, optional
        Inclusive; values of the format. As there, a bound of 0.0 from below leaves -0.0 out.

    Raises
    ------
    InvalidArgument
        A bound that the format cannot hold; no value between the bounds; something allowed that the bounds or the
        format leave no room for.

    """
    fmt = _format(fmt)
    for name, bound in (("min_value", min_value), ("max_value", max_value)):
        _check_bound(name, bound, fmt)
    bounded = min_value is not None or max_value is not None
    if allow_nan is None:
        allow_nan = fmt.has_nan and not bounded
    elif allow_nan and bounded:
        raise InvalidArgument(f"Cannot have {allow_nan=}, with min_value or max_value")
    elif allow_nan and not fmt.has_nan:
        raise InvalidArgument(f"Cannot have {allow_nan=}: {fmt} has no NaN")

    low = None if min_value == -math.inf else min_value
    high = None if max_value == math.inf else max_value
    if allow_infinity is None:
        allow_infinity = fmt.has_infinity and (low is None or high is None)
    elif allow_infinity and not fmt.has_infinity:
        raise InvalidArgument(f"Cannot have {allow_infinity=}: {fmt} has no infinity")
    elif allow_infinity and low is not None and high is not None:
        raise InvalidArgument(f"Cannot have {allow_infinity=}, with both min_value and max_value")
    elif not allow_infinity and (low == math.inf or high == -math.inf):
        raise InvalidArgument(f"{allow_infinity=} excludes {min_value=}, {max_value=}")

    everything = _beyond(fmt) if allow_infinity else _magnitude_code(fmt.max, fmt)
    first = -everything - 1 if low is None else _ordinal(low, fmt)
    last = everything if high is None else _ordinal(high, fmt)
    if first > last:
        raise InvalidArgument(f"There are no values of {fmt} between {min_value=} and {max_value=}")
    any_subnormal = fmt.mantissa_bits > 0 and first < 1 << fmt.mantissa_bits and last >= -(1 << fmt.mantissa_bits)
    if allow_subnormal is None:
        allow_subnormal = True
    elif allow_subnormal and not any_subnormal:
        raise InvalidArgument(f"Cannot have {allow_subnormal=}: none of {fmt} lies between {min_value=}, {max_value=}")
    if not any(_magnitudes(fmt, n, first, last, allow_subnormal, allow_infinity, allow_nan).all for n in (False, True)):
        raise InvalidArgument(f"{allow_subnormal=} leaves no value of {fmt} between {min_value=} and {max_value=}")
    return _codes(fmt, first, last, allow_subnormal, allow_infinity, allow_nan).map(_scalar_of_code(fmt))


def midpoints(fmt: FormatLike, *, carrier: FormatLike | None = None) -> Strategy:
    """Draw ties of the format: numbers halfway between two neighbours, of either sign, as scalars of a carrier.

    The overflow threshold is among them, halfway between the largest value and what would follow it, and so is the
    flush threshold, halfway to zero.

    Parameters
    ----------
    fmt : str, dtype, type or FloatFormat
        Whose ties.
    carrier : str, dtype, type or FloatFormat
        In which type; those ties are drawn that it holds. Default: float32, which holds all of every format but of
        those with 23 mantissa bits; for these float64.

    Raises
    ------
    InvalidArgument
        The carrier holds no tie of the format: it must have at least one bit of precision more.

    """
    fmt = _format(fmt)
    return _ties(fmt, _carrier(carrier or (np.float32 if fmt.mantissa_bits < 23 else np.float64)), ((True, 0),))


def near_midpoints(fmt: FormatLike, carrier: FormatLike = np.float32) -> Strategy:
    """Draw the values of the carrier next to a tie of the format, below and above.

    Whoever rounds them twice, truncates what lies below the tie, or forgets one of the lower bits, is off by one. A
    carrier wider than what is tested is right for finding out whether it rounds through something narrower: float64
    for a cast from float64, say.

    Parameters
    ----------
    fmt, carrier : str, dtype, type or FloatFormat
        As for `midpoints`.

    Raises
    ------
    InvalidArgument
        As `midpoints`.

    """
    return _ties(_format(fmt), _carrier(carrier), ((True, 1), (True, -1)))


def hard_values(fmt: FormatLike, carrier: FormatLike = np.float32) -> Strategy:
    """Draw values of the carrier at which a cast to the format may go wrong.

    Almost half are landmarks: the flush threshold, that of subnormals and that of overflow, the smallest value, the
    smallest normal one and the largest, 1 and the tie below it, each with its neighbours, zeros, infinities, NaN, and
    something well beyond the largest. The others are values of the format and ties, each as it is or the carrier's
    neighbour of it, with the ends of the range, of binades and of the subnormals favoured, and any values of the
    carrier.

    Parameters
    ----------
    fmt, carrier : str, dtype, type or FloatFormat
        As for `midpoints`. What the carrier cannot hold is left out.

    Raises
    ------
    InvalidArgument
        As `midpoints`.

    """
    fmt, wide = _format(fmt), _carrier(carrier)
    kinds = [(half, direction) for direction in (0, 1, -1) for half in (False, True)]
    return _ties(fmt, wide, (*kinds, _ANY, *[_LANDMARK] * 6))


def arrays(fmt: FormatLike, shape: Any, *, elements: Strategy | None = None) -> st.SearchStrategy[NDArray[Any]]:
    """Draw arrays of the format's dtype (float32 for formats without one).

    Parameters
    ----------
    fmt : str, dtype, type or FloatFormat
        Of the array.
    shape : int, tuple of int, or strategy of such
        As for `hypothesis.extra.numpy.arrays`.
    elements : strategy, optional
        Of the elements: values of the format. Default: all its `values`, NaN and infinities too.

    """
    fmt = _format(fmt)
    # large arrays are a few drawn elements and, for the rest, one of these
    simple = [_scalar(x, fmt) for x in (0.0, -0.0, 1.0, fmt.smallest_subnormal, fmt.max) if _is_value(x, fmt)]
    fill = st.sampled_from(simple) if elements is None else None
    return of_numpy.arrays(_dtype(fmt), shape, elements=values(fmt) if elements is None else elements, fill=fill)


def formats(*, max_bits: int = 32, custom: bool = True) -> st.SearchStrategy[FloatFormat]:
    """Draw formats: the registered ones, and IEEE-like ones of any widths.

    Parameters
    ----------
    max_bits : int
        Of a code, at least 4.
    custom : bool
        False draws registered formats only.

    Raises
    ------
    InvalidArgument
        No format is as narrow.

    """
    if max_bits < 4:
        raise InvalidArgument(f"There are no formats of {max_bits=}; the narrowest registered one has 4")
    registered = st.sampled_from(sorted((f for f in FORMATS.values() if f.bits <= max_bits), key=lambda f: -f.bits))
    if not custom:
        return registered
    widths = st.integers(2, min(8, max_bits - 1)).flatmap(
        lambda e: st.tuples(st.just(e), st.integers(0, min(23, max_bits - 1 - e)))
    )
    return registered | widths.map(lambda pair: FloatFormat.ieee(*pair))


def rounding_modes(*, stochastic: bool = False) -> st.SearchStrategy[RoundingMode]:
    """Draw rounding modes, ties_to_even first.

    Parameters
    ----------
    stochastic : bool
        Whether that one too, which needs a seed.

    """
    return st.sampled_from([m for m in RoundingMode if stochastic or m is not RoundingMode.STOCHASTIC])


# ---- codes and values ----


def _format(spec: FormatLike) -> FloatFormat:
    require_gradual_underflow()
    try:
        return get_format(spec)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _dtype(fmt: FloatFormat) -> np.dtype[Any]:
    return fmt.dtype or np.dtype(np.float32)


def _magnitude(code: int, fmt: FloatFormat) -> float:
    """Return the value of a code without sign, finite or the one that would follow the largest."""
    field, fraction = divmod(code, 1 << fmt.mantissa_bits)
    significand = fraction + (1 << fmt.mantissa_bits if field else 0)
    return math.ldexp(significand, max(field, 1) - fmt.bias - fmt.mantissa_bits)


def _magnitude_code(x: float, fmt: FloatFormat) -> int:
    """Return the code without sign of a magnitude of the format; that of infinity follows that of the largest."""
    if x == math.inf:
        return _magnitude_code(fmt.max, fmt) + 1
    if x < fmt.smallest_normal:
        return int(x / fmt.smallest_subnormal)
    significand, exponent = math.frexp(x)
    field = exponent - 1 + fmt.bias
    return (field << fmt.mantissa_bits) + int((2 * significand - 1) * (1 << fmt.mantissa_bits))


def _beyond(fmt: FloatFormat) -> int:
    """Return the largest code without sign that is no NaN."""
    return _magnitude_code(math.inf if fmt.has_infinity else fmt.max, fmt)


def _ordinal(x: float, fmt: FloatFormat) -> int:
    """Number the values upwards: +0 is 0, -0 is -1."""
    code = _magnitude_code(abs(x), fmt)
    return -code - 1 if math.copysign(1, x) < 0 and (code or fmt.has_negative_zero) else code


def _is_value(x: float, fmt: FloatFormat) -> bool:
    if math.isinf(x):
        return fmt.has_infinity
    return abs(x) <= fmt.max and _magnitude(_magnitude_code(abs(x), fmt), fmt) == abs(x)


def _check_bound(name: str, bound: object, fmt: FloatFormat) -> None:
    if bound is None:
        return
    try:
        x = float(bound)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(f"{name}={bound!r} must be a number") from None
    if math.isnan(x):
        raise InvalidArgument(f"{name}={bound!r} is not a number to compare with")
    if not _is_value(x, fmt) or x != bound:
        below = fmt.max
        if abs(x) < fmt.max:
            below = _magnitude(_magnitude_code(abs(x), fmt), fmt)
        raise InvalidArgument(
            f"{name}={bound!r} cannot be exactly represented in {fmt} - use {name}={math.copysign(below, x)!r} instead."
        )


def _scalar_of_code(fmt: FloatFormat) -> Callable[[int], Any]:
    if fmt.dtype is not None:
        dtype = fmt.dtype
        return lambda code: np.array(code, code_dtype(fmt)).view(dtype)[()]
    return lambda code: np.float32(_float_of_code(code, fmt))


def _float_of_code(code: int, fmt: FloatFormat) -> float:
    negative, magnitude = divmod(code, 1 << (fmt.bits - 1))
    if magnitude > _beyond(fmt) or (fmt.specials == "fnuz" and negative and not magnitude):
        x = math.nan
    elif fmt.has_infinity and magnitude == _beyond(fmt):
        x = math.inf
    else:
        x = _magnitude(magnitude, fmt)
    return -x if negative else x


def _scalar(x: float, fmt: FloatFormat) -> Any:
    """Return a value of the format, or NaN, as a scalar of its type."""
    if math.isnan(x) or fmt.dtype is None:
        return _dtype(fmt).type(x)
    negative = math.copysign(1, x) < 0 and (x != 0 or fmt.has_negative_zero)
    return _scalar_of_code(fmt)(_magnitude_code(abs(x), fmt) | negative << (fmt.bits - 1))


# ---- drawing codes ----


@dataclass(frozen=True, eq=False)
class _Slots:
    """Runs of codes without sign, first and last, simplest first; and those among them where the trouble is."""

    all: tuple[tuple[int, int], ...]
    ends: tuple[tuple[int, int], ...]

    @cached_property
    def weighted(self) -> tuple[tuple[int, int], ...]:
        """All runs, and three times as often those where the trouble is, each beside the run that it is of.

        So a lower number is a simpler run of the same kind: Hypothesis lowers it. The first run is at the start once.
        """
        first, *others = self.all

        def place(run: tuple[int, int]) -> int:
            within = (i for i, (low, high) in enumerate(others) if low <= run[0] <= high)
            return len(others) if run == first else next(within, -1)

        times = max(1, round(3 * len(self.all) / max(len(self.ends), 1)))
        places = {run: place(run) for run in (*others, *self.ends)}
        return (first, *sorted((*others, *self.ends * times), key=places.__getitem__))


def _runs(fmt: FloatFormat, first: int, last: int, subnormal: bool = True) -> _Slots:
    """Cut finite codes into zero, the binades from that of 1 upwards, those below it downwards, subnormals."""
    size = 1 << fmt.mantissa_bits
    zero = [(0, 0)] if first <= 0 <= last else []
    small = [(max(first, 1), min(last, size - 1))] if subnormal and last >= 1 and first < size and size > 1 else []
    fields = list(range(max(first, size) >> fmt.mantissa_bits, (last >> fmt.mantissa_bits) + 1))
    ends = set(fields[:1] + fields[-1:])
    fields.sort(key=lambda field: (field < fmt.bias, abs(field - fmt.bias)))
    ends |= set(fields[:1])
    binades = {f: (max(first, f * size), min(last, (f + 1) * size - 1)) for f in fields}
    near = [run for field, run in binades.items() if field in ends]
    one = fmt.bias << fmt.mantissa_bits
    marks = [(code, code) for code in dict.fromkeys((last, size, size - 1, 1, first, first + 1, last - 1))]
    marks += [(one, one + 1), *[(one - 1, one - 1)] * 3]  # what has to stay below 1 is often rounded up to it
    least = max(first, 1 if subnormal else size)
    points = [(low, high) for low, high in marks if least <= low and high <= last]
    return _Slots((*zero, *binades.values(), *small), (*zero, *near, *small, *points))


@lru_cache(maxsize=256)
def _magnitudes(
    fmt: FloatFormat, negative: bool, first: int, last: int, subnormal: bool, infinity: bool, nan: bool
) -> _Slots:
    """List the codes without sign of the values of a sign whose ordinals are first..last, and of NaN."""
    low, high = (-min(last, -1) - 1, -first - 1) if negative else (max(first, 0), last)
    if negative and not fmt.has_negative_zero:
        low = max(low, 1)
    largest, top = _magnitude_code(fmt.max, fmt), (1 << (fmt.bits - 1)) - 1
    runs = _runs(fmt, low, min(high, largest), subnormal) if low <= min(high, largest) else _Slots((), ())
    special = []
    if infinity and fmt.has_infinity and low <= largest + 1 <= high:
        special.append((largest + 1, largest + 1))
    if nan and fmt.specials == "fnuz":
        special += [(0, 0)] if negative else []
    elif nan:
        special.append((_beyond(fmt) + 1, top))
    return _Slots((*runs.all, *special), (*runs.ends, *special))


def _draw_magnitude(draw: Draw, slots: _Slots, fmt: FloatFormat) -> int:
    """Draw a code of these runs; three times of four from where the trouble is, half the time an end of a run."""
    runs = slots.weighted
    first, last = runs[draw(st.integers(0, len(runs) - 1))]
    size = last - first + 1
    offset = draw(st.integers(0, 2 * size - 1))
    if offset >= size:
        return first if offset % 2 else last
    if fmt.mantissa_bits and size == 1 << fmt.mantissa_bits:  # a whole binade: few significant bits first
        offset = int(f"{offset:0{fmt.mantissa_bits}b}"[::-1], 2)
    return first + offset


@st.composite
def _codes(draw: Draw, fmt: FloatFormat, first: int, last: int, subnormal: bool, infinity: bool, nan: bool) -> int:
    positive, negative = (_magnitudes(fmt, sign, first, last, subnormal, infinity, nan) for sign in (False, True))
    minus = draw(st.booleans()) if positive.all and negative.all else not positive.all
    return _draw_magnitude(draw, negative if minus else positive, fmt) | minus << (fmt.bits - 1)


# ---- drawing in a carrier ----


class _Carrier(NamedTuple):
    """A format, or float64 (`fmt` None), by its numbers."""

    fmt: FloatFormat | None
    mantissa_bits: int
    emin: int
    max: float

    @property
    def smallest(self) -> float:
        return math.ldexp(1.0, self.emin - self.mantissa_bits)

    def any_value(self) -> Strategy:
        return st.floats().map(np.float64) if self.fmt is None else values(self.fmt)

    def scalar(self, x: float) -> Any:
        return np.float64(x) if self.fmt is None else _scalar(x, self.fmt)

    def next(self, x: float, direction: int) -> float:
        """Return the next magnitude, further from zero (1), closer to it (-1) or x itself (0); at the ends x."""
        if direction == 0 or not math.isfinite(x) or (direction < 0 and x == 0) or (direction > 0 and x >= self.max):
            return x
        significand, exponent = math.frexp(x)
        # towards zero from a power of two the spacing is that of the binade below
        exponent -= 1 + (direction < 0 and significand == 0.5)
        step = math.ldexp(1.0, max(exponent if x else self.emin, self.emin) - self.mantissa_bits)
        return x + direction * step


def _carrier(spec: FormatLike) -> _Carrier:
    try:
        # NumPy asks a FloatFormat for its dtype, and some have none
        is_double = spec == "fp64" or (not isinstance(spec, FloatFormat) and np.dtype(cast(Any, spec)) == np.float64)
    except (TypeError, ValueError):
        is_double = False
    if is_double and spec is not None:
        return _Carrier(None, 52, -1022, float(np.finfo(np.float64).max))
    fmt = _format(spec)
    return _Carrier(fmt, fmt.mantissa_bits, fmt.emin, fmt.max)


@lru_cache(maxsize=256)
def _tie_slots(fmt: FloatFormat, carrier: _Carrier) -> _Slots:
    """List the codes without sign with a tie above them that the carrier holds."""
    first = 0
    if carrier.smallest > fmt.smallest_subnormal / 2:  # then only where the spacing is twice its smallest value
        first = (round(math.log2(carrier.smallest)) + 1 + fmt.mantissa_bits + fmt.bias) << fmt.mantissa_bits
    last = _last_tie(fmt, carrier, first)
    if carrier.mantissa_bits <= fmt.mantissa_bits or first > last:
        name = carrier.fmt or "float64"
        raise InvalidArgument(f"carrier {name} holds no tie of {fmt}; it must have more mantissa bits than that has")
    slots = _runs(fmt, first, last)
    # 1 + eps/2 is simpler than the flush threshold
    return _Slots(*(tuple(sorted(runs, key=lambda run: run == (0, 0))) for runs in (slots.all, slots.ends)))


@lru_cache(maxsize=256)
def _value_slots(fmt: FloatFormat, carrier: _Carrier) -> _Slots:
    """List the codes without sign of zero, of the values below ties, and of what would follow the largest."""
    beyond = _magnitude_code(fmt.max, fmt) + 1
    above = ((beyond, beyond),) if _magnitude(beyond, fmt) <= carrier.max else ()
    slots = _tie_slots(fmt, carrier)
    both = (slots.all, slots.ends)
    return _Slots(*(((0, 0), *(run for run in runs if run != (0, 0)), *above) for runs in both))


def _tie_above(code: int, fmt: FloatFormat) -> float:
    return (_magnitude(code, fmt) + _magnitude(code + 1, fmt)) / 2


def _last_tie(fmt: FloatFormat, carrier: _Carrier, first: int) -> int:
    """Return the last code from `first` on with a tie above it of at most the carrier's largest value, by bisection."""
    low, high = first - 1, _magnitude_code(fmt.max, fmt) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _tie_above(middle, fmt) <= carrier.max else (low, middle)
    return low


_Kind: TypeAlias = tuple[bool, int]
_ANY: _Kind = (False, 2)
_LANDMARK: _Kind = (False, 3)


@lru_cache(maxsize=256)
def _landmarks(fmt: FloatFormat, carrier: _Carrier) -> tuple[float, ...]:
    ties = [fmt.flush_threshold, fmt.overflow_threshold]
    ends = [fmt.smallest_subnormal, fmt.smallest_normal, fmt.max]
    one = fmt.bias << fmt.mantissa_bits
    ones = [1.0, _tie_above(one - 1, fmt)] if one > 0 and _is_value(1.0, fmt) else []
    others = [fmt.subnormal_threshold, *ends, 1.5 * 2.0 ** (fmt.emax + 1), *ones]
    points = [0.0, *ties, *others, *ties]
    infinite = [math.inf] if carrier.fmt is None or carrier.fmt.has_infinity else []
    nan = [math.nan] if carrier.fmt is None or carrier.fmt.has_nan else []
    return (*(x for x in points if carrier.fmt is None or _is_value(x, carrier.fmt)), *infinite, *nan)


@st.composite
def _ties_drawn(draw: Draw, fmt: FloatFormat, carrier: _Carrier, kinds: tuple[_Kind, ...]) -> Any:
    kind = draw(st.sampled_from(kinds))
    if kind == _ANY:
        return draw(carrier.any_value())
    minus = draw(st.booleans())
    if kind == _LANDMARK:
        x = carrier.next(draw(st.sampled_from(_landmarks(fmt, carrier))), draw(st.sampled_from((0, 0, 1, -1))))
        return carrier.scalar(-x if minus else x)
    half, direction = kind
    code = _draw_magnitude(draw, (_tie_slots if half else _value_slots)(fmt, carrier), fmt)
    centre = _tie_above(code, fmt) if half else _magnitude(code, fmt)
    x = carrier.next(centre, direction)
    if x == centre:  # the carrier ends here
        x = carrier.next(centre, -direction)
    return carrier.scalar(-x if minus else x)


def _ties(fmt: FloatFormat, carrier: _Carrier, kinds: tuple[_Kind, ...]) -> Strategy:
    """Draw of each kind: whether ties or values, and in which direction the next; or one of two kinds apart."""
    _tie_slots(fmt, carrier)  # refuses now what cannot be drawn later
    return _ties_drawn(fmt, carrier, kinds)


for _fmt in FORMATS.values():
    if _fmt.dtype is not None and _fmt.dtype.type.__module__ == "ml_dtypes":
        st.register_type_strategy(_fmt.dtype.type, values)
