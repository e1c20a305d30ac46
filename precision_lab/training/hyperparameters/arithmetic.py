"""The arithmetic of the audit: what a format stores, where running averages settle, and what does not decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.numerics.codec import codec
from precision_lab.numerics.codes import decode, encode
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import converted
from precision_lab.numerics.inspection import to_double_by_odd
from precision_lab.numerics.rounding import as_carrier, round_to

Numbers: TypeAlias = NDArray[np.floating]

# sixty digits and no end of exponents: powers for any number of steps, far more exact than a double
_DECIMAL = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


def stored_value(value: Fraction, fmt: FormatLike) -> float:
    """Return an exact number rounded once into the format (ties_to_even)."""
    return float(round_to(to_double_by_odd(value), fmt))


def stored_rates(rates: ArrayLike, fmt: FormatLike) -> NDArray[np.float64]:
    """Return 1 - beta as the format has it for each asked 1 - beta: the staircase that ends in 0, where beta becomes 1.

    Parameters
    ----------
    rates : array_like
        Values of 1 - beta in (0, 1].
    fmt : format spec
        See `get_format`.

    Raises
    ------
    ValueError
        `rates` of a dtype that `round_to` does not take; unknown format.

    """
    with np.errstate(invalid="ignore"):  # a signalling NaN
        betas = 1 - converted(as_carrier(rates), np.float64)
    return 1 - np.asarray(round_to(betas, fmt), np.float64)


# ---- running averages ----


class Average(NamedTuple):
    """A running average, as it is computed in a format.

    Attributes
    ----------
    fmt : FloatFormat
        In which it is stored.
    step : callable
        ``step(a, fed)`` returns what a step makes of values of the format, fed with g = 1, or with g = 0.
    decay, gain : float
        Its constants as they are used; exact arithmetic would make decay*a + gain of a.
    unit : float
        At least the largest relative error of a product or a sum that is not subnormal.

    """

    fmt: FloatFormat
    step: Callable[[Numbers, bool], Numbers]
    decay: float
    gain: float
    unit: float


def held_average(fmt: FormatLike, name: str, beta: float) -> Average:
    """Return the average of a moment with its constants held in the format: R(R(decay*a) + gain).

    Parameters
    ----------
    fmt : format spec
        See `get_format`.
    name : str
        ``beta1`` or ``beta2``, whose gain is 1 - beta, or ``momentum``, whose gain is 1.
    beta : float
        In [0, 1).

    """
    gain = Fraction(1) if name == "momentum" else 1 - Fraction(beta)
    return _held(get_format(fmt), stored_value(Fraction(beta), fmt), stored_value(gain, fmt))


def _held(fmt: FloatFormat, decay: float, gain: float) -> Average:
    # products of two values are exact in float64, and their sums are rounded twice without harm because 53 >= 2p + 2
    # (Figueroa 1995, "When is double rounding innocuous?")
    def step(a: Numbers, fed: bool) -> Numbers:
        return np.asarray(round_to(round_to(decay * a, fmt) + (gain if fed else 0.0), fmt))

    return Average(fmt, step, decay, gain, fmt.unit_roundoff)


def torch_average(fmt: FormatLike, name: str, beta: float) -> Average:
    """Return the average of a moment as torch.optim computes it on a tensor of the format; see `optimizers`.

    beta and 1 - beta are float32 numbers. m is one `lerp`, rounded once; v is multiplied and rounded, then `addcmul`
    rounds once more; and so is the buffer of SGD, whose second step is `add`.

    Parameters
    ----------
    fmt, name, beta
        As for `held_average`.

    """
    fmt = get_format(fmt)
    to = codec(fmt)
    decay, rest = np.float32(beta), np.float32(1 - beta)

    def step(a: Numbers, fed: bool) -> Numbers:
        a = np.ascontiguousarray(a, np.float32)
        g = np.full_like(a, fed)
        with np.errstate(over="ignore"):
            if name == "beta1":
                return to.compute("lerp_32", rest, a, g)
            if name == "beta2":
                return to.compute("mean_square_32", decay, rest, a, g)
            return to.round(to.round(a * decay) + g)

    used = 1 - float(rest) if name == "beta1" else float(decay)
    return Average(fmt, step, used, 1.0 if name == "momentum" else float(rest), fmt.unit_roundoff + 2.0**-23)


def settling_value(fmt: FormatLike, decay: float, gain: float) -> float:
    """Return where a running average stops that starts at 0 and is fed a constant.

    Parameters
    ----------
    fmt : format spec
        See `get_format`.
    decay, gain : float
        Positive values of the format, `decay` at most 1. A step is a <- R(R(decay*a) + gain), R being ties_to_even.

    Returns
    -------
    float
        The smallest value of the format that a step does not raise; exact arithmetic goes to gain / (1 - decay). Beyond
        the largest value: what the format makes of that (infinity, NaN).

    """
    return settled(_held(get_format(fmt), decay, gain))


def settled(average: Average) -> float:
    """Return where a running average stops that starts at 0 and is fed g = 1, as `settling_value`.

    A step never gives less for a larger a, so the sequence climbs to exactly this value. It is searched for, not
    iterated: with relative errors of at most u_r a step raises every a below gain*(1 - u_r) / (1 - decay*(1 - u_r)^2),
    so the search begins there.
    """
    fmt, u_r = average.fmt, average.unit
    after = average.step(np.zeros(1), True)
    if after[0] == 0 or not np.isfinite(after[0]):
        return float(after[0])
    bound = average.gain * (1 - u_r) / (1 - average.decay * (1 - u_r) * (1 - u_r))
    bound *= 1 - 2**-20  # for errors of these lines
    first, jump = (int(encode(min(x, fmt.max), fmt, "toward_zero")) for x in (float(after[0]), bound))
    last, size = int(encode(fmt.max, fmt)), 1 << 10
    while first <= last:
        if average.decay * float(decode(first, fmt)) >= fmt.smallest_normal:  # from here on the relative error is u_r
            first = max(first, jump)
        values = decode(np.arange(first, min(first + size, last + 1)), fmt, np.float64)
        after = average.step(values, True)
        still = np.flatnonzero(after <= values)
        if still.size:
            return float(values[still[0]])
        first, size = first + size, min(2 * size, 1 << 18)
    return float(after[-1])


# ---- what does not decay ----


class Decay(NamedTuple):
    """What multiplying by a factor just below 1 does to the numbers of a binade.

    Attributes
    ----------
    frozen : float
        The share of its values, and so of all normal ones, that stay what they are.
    rate : float
        By what share of themselves they fall, on average.

    """

    frozen: float
    rate: float


_CHUNK = 1 << 18
_SAMPLE = 1 << 12


def decay_of(fmt: FloatFormat, step: Callable[[Numbers], Numbers], rate: float) -> Decay:
    """Look at every significand of a format.

    Parameters
    ----------
    fmt : FloatFormat
        The format.
    step : callable
        What is done to its values: a multiplication by about 1 - rate, and roundings.
    rate : float
        Beyond 2^(1 - p) nothing can stay, and some 4,096 significands are enough for the mean; below a sixteenth of
        that everything stays.

    """
    if rate < fmt.eps / 16:
        return Decay(1.0, 0.0)
    count = 1 << fmt.mantissa_bits
    bottom = 2.0 ** min(max(0, fmt.emin + 1), fmt.emax)  # what lies below it is normal, too
    stride = max(1, count // _SAMPLE) if rate > fmt.eps else 1
    frozen = seen = 0
    fallen = 0.0
    for first in range(0, count, _CHUNK * stride):
        values = bottom * (1 + np.arange(first, min(first + _CHUNK * stride, count), stride) / count)
        values = values[values <= fmt.max]
        after = np.asarray(step(values), np.float64)
        frozen += int(np.count_nonzero(after == values))
        seen += values.size
        fallen += math.fsum((values - after) / values)
    return Decay(frozen / seen, fallen / seen)


def average_decay(average: Average) -> Decay:
    """Return what becomes of a running average that is not fed."""
    return decay_of(average.fmt, lambda a: average.step(a, False), 1 - average.decay)


def frozen_share(fmt: FormatLike, beta2: float) -> float:
    """Return the share of all second moments v with R(beta2*v) == v, where beta2 is a double: those never decay.

    Counted over all significands of the format; subnormal numbers, which are all but still, apart. Where the share is
    not 0, a v that falls gets to one of them before it is halved.

    Parameters
    ----------
    fmt : format spec
        See `get_format`.
    beta2 : float
        In [0, 1).

    Examples
    --------
    >>> [frozen_share("bf16", beta2) for beta2 in (0.999, 0.998, 0.997, 0.996, 0.95)]
    [1.0, 0.953125, 0.296875, 0.0, 0.0]

    """
    return average_decay(torch_average(fmt, "beta2", beta2)).frozen


# ---- exact numbers ----


def power(base: Fraction, exponent: int) -> Decimal:
    """Return a power to sixty digits."""
    size = _DECIMAL.divide(Decimal(abs(base.numerator)), Decimal(base.denominator))
    result = _DECIMAL.power(size, Decimal(exponent))
    return result.copy_negate() if base < 0 and exponent % 2 else result


def correction(beta: float, t: int) -> Fraction:
    """Return 1 - beta^t."""
    return Fraction(_DECIMAL.subtract(Decimal(1), power(Fraction(beta), t)))


def root(value: Fraction) -> Fraction:
    """Return a square root to sixty digits."""
    return Fraction(_DECIMAL.sqrt(_DECIMAL.divide(Decimal(value.numerator), Decimal(value.denominator))))


def change(new: Fraction | float, old: Fraction) -> float:
    """Return new / old - 1; 0 where both are 0, infinite where only `old` is, `new` where that is not finite."""
    if isinstance(new, float) and not math.isfinite(new):
        return new
    if old == 0:
        return 0.0 if new == 0 else math.inf
    return as_float(Fraction(new) / Fraction(old) - 1)


def as_float(value: Fraction) -> float:
    """Return the closest double, an infinity beyond them."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def largest_value(fmt: FloatFormat, holds: Callable[[float], bool]) -> float:
    """Return the largest finite value of the format up to which a condition holds; it does for 0."""
    low, high = 0, int(encode(fmt.max, fmt)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(float(decode(middle, fmt))) else (low, middle)
    return float(decode(low, fmt))


def last_count(fmt: FloatFormat) -> float:
    """Return where a counter ends that is kept in a format and goes up by 1: at the first n with R(n + 1) <= n."""
    end = 2.0**fmt.precision  # from here on values are 2 apart, and n + 1 is a tie that goes back
    return end if end <= fmt.max else float(round_to(math.floor(fmt.max) + 1.0, fmt))
