"""The same roundings one value at a time in exact rational arithmetic: the readable specification.

It is the independent oracle of the tests: it shares nothing with the fast path but the table of formats. Values are
Python floats, which hold every value of every format; all arithmetic between them is in `fractions.Fraction`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from precision_lab.numerics.formats import FloatFormat

_HALF = Fraction(1, 2)


class Candidates(NamedTuple):
    """Where a magnitude lies between multiples of the spacing: (k + position) * spacing, 0 <= position < 1."""

    k: int
    spacing: Fraction
    position: Fraction


def candidates(magnitude: Fraction, fmt: FloatFormat) -> Candidates:
    """Split a positive magnitude into a multiple of the format's spacing there and the rest, in spacings."""
    exponent = max(floor_log2(magnitude), fmt.emin)
    spacing = Fraction(2) ** (exponent - fmt.mantissa_bits)
    in_spacings = magnitude / spacing
    k = math.floor(in_spacings)
    return Candidates(k, spacing, in_spacings - k)


def floor_log2(x: Fraction) -> int:
    """Return the largest e with 2^e <= x, for positive x."""
    numerator, denominator = x.as_integer_ratio()
    e = numerator.bit_length() - denominator.bit_length()
    reached = denominator << e <= numerator if e >= 0 else denominator <= numerator << -e
    return e if reached else e - 1


def rounds_away(c: Candidates, negative: bool, mode: str, uniform: Fraction | None) -> bool:
    """Return whether the value between k and k + 1 spacings goes to k + 1."""
    match mode:
        case "ties_to_even":
            return c.position > _HALF or (c.position == _HALF and c.k % 2 == 1)
        case "ties_to_away":
            return c.position >= _HALF
        case "toward_zero":
            return False
        case "toward_positive":
            return c.position > 0 and not negative
        case "toward_negative":
            return c.position > 0 and negative
        case "to_odd":
            return c.position > 0 and c.k % 2 == 0
        case "stochastic":
            if uniform is None:
                raise ValueError("stochastic rounding needs `uniform`, a number in [0, 1)")
            return c.position + uniform >= 1
    raise ValueError(f"unknown rounding mode {mode!r}")


def round_to(
    x: float | Fraction,
    fmt: FloatFormat,
    mode: str = "ties_to_even",
    *,
    subnormals: bool = True,
    saturate: bool = False,
    uniform: Fraction | None = None,
) -> float:
    """Round one number into the format.

    Parameters
    ----------
    x : float or Fraction
        Any number, a Fraction also beyond what a float holds.
    fmt : FloatFormat
        The format.
    mode : str
        The full name of a rounding mode.
    subnormals, saturate : bool
        As in `precision_lab.round_to`.
    uniform : Fraction
        For ``stochastic``, in [0, 1): x goes away from zero if its position between the neighbours plus this reaches 1.

    Returns
    -------
    float
        A value of the format.

    """
    exact = isinstance(x, Fraction)  # which math.isnan would turn into a float
    negative = x < 0 if exact else math.copysign(1, x) < 0
    if not exact and math.isnan(x):
        if fmt.specials == "fnuz":
            return -math.nan
        return math.copysign(math.nan if fmt.has_nan else 0.0, x if fmt.has_nan else -math.copysign(1, x))
    if not exact and math.isinf(x):
        return _signed(_beyond(fmt, saturate), negative, fmt)
    if x == 0:
        return _signed(0.0, negative, fmt)
    c = candidates(abs(Fraction(x)), fmt)
    result = (c.k + rounds_away(c, negative, mode, uniform)) * c.spacing
    if result > Fraction(fmt.max):
        keeps_finite = (
            mode in ("toward_zero", "to_odd")
            or (mode == "toward_positive" and negative)
            or (mode == "toward_negative" and not negative)
        )
        return _signed(fmt.max if keeps_finite else _beyond(fmt, saturate), negative, fmt)
    if not subnormals and result < Fraction(fmt.smallest_normal):
        result = Fraction(0)
    return _signed(float(result), negative, fmt)


def _beyond(fmt: FloatFormat, saturate: bool) -> float:
    if saturate or not (fmt.has_infinity or fmt.has_nan):
        return fmt.max
    return math.inf if fmt.has_infinity else math.nan


def _signed(magnitude: float, negative: bool, fmt: FloatFormat) -> float:
    if fmt.specials == "fnuz" and (magnitude == 0 or math.isnan(magnitude)):
        return 0.0 if magnitude == 0 else -math.nan
    return -magnitude if negative else magnitude


def decode(code: int, fmt: FloatFormat) -> float:
    """Return the value of a code by the definition of its fields (formats.py)."""
    fraction = code % 2**fmt.mantissa_bits
    exponent = code // 2**fmt.mantissa_bits % 2**fmt.exponent_bits
    negative = code >= 2 ** (fmt.bits - 1)
    ones = 2**fmt.exponent_bits - 1
    if fmt.specials == "ieee" and exponent == ones:
        return math.copysign(math.inf if fraction == 0 else math.nan, -1 if negative else 1)
    if fmt.specials == "fn" and exponent == ones and fraction == 2**fmt.mantissa_bits - 1:
        return math.copysign(math.nan, -1 if negative else 1)
    if fmt.specials == "fnuz" and negative and exponent == 0 and fraction == 0:
        return -math.nan
    implicit = 0 if exponent == 0 else 2**fmt.mantissa_bits
    magnitude = Fraction(implicit + fraction) * Fraction(2) ** (max(exponent, 1) - fmt.bias - fmt.mantissa_bits)
    return -float(magnitude) if negative else float(magnitude)


def encode(value: float, fmt: FloatFormat) -> int:
    """Return the code of a value of the format; for NaN, of which there may be many, `FloatFormat.nan_code`."""
    sign = 1 << (fmt.bits - 1) if math.copysign(1, value) < 0 else 0
    if math.isnan(value) or math.isinf(value):
        magnitude = fmt.nan_code if math.isnan(value) else fmt.infinity_code
        if magnitude is None:
            raise ValueError(f"{value} has no code in {fmt}")
        return magnitude | sign
    if value == 0:
        return sign if fmt.has_negative_zero else 0
    c = candidates(abs(Fraction(value)), fmt)
    field = floor_log2(c.spacing) + fmt.mantissa_bits + fmt.bias  # 1 also for subnormals, whose k has no leading bit
    return ((field - 1) << fmt.mantissa_bits) + c.k | sign


def finite_values(fmt: FloatFormat) -> Iterator[float]:
    """Yield the finite values that are not negative, upwards: the magnitudes of consecutive codes."""
    for code in range(2 ** (fmt.bits - 1)):
        value = decode(code, fmt)
        if math.isfinite(value):
            yield value


def threefry_2x32(counter: tuple[int, int], key: tuple[int, int], rounds: int = 13) -> tuple[int, int]:
    """Return two random 32-bit words: Threefry-2x32 of Salmon et al. 2011, SC '11, section 4.2."""
    rotations = (13, 15, 26, 6, 17, 29, 16, 24)
    schedule = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    word = 2**32
    x, y = (counter[0] + key[0]) % word, (counter[1] + key[1]) % word
    for i in range(rounds):
        x = (x + y) % word
        turn = rotations[i % 8]
        y = (y << turn | y >> (32 - turn)) % word ^ x
        if i % 4 == 3:
            s = i // 4 + 1
            x = (x + schedule[s % 3]) % word
            y = (y + schedule[(s + 1) % 3] + s) % word
    return x, y


def random_number(seed: int, index: int) -> int:
    """Return the 16-bit number that stochastic rounding gives to element `index` of the stream of `seed`."""
    counter, part = divmod(index, 4)
    words = threefry_2x32((counter % 2**32, counter // 2**32), (seed % 2**32, seed // 2**32))
    return words[part // 2] >> 16 * (part % 2) & 0xFFFF


# ---- sums and products of which every step is rounded once ----

Uniforms: TypeAlias = "Iterator[Fraction] | None"
"""For ``stochastic``: one number in [0, 1) for each rounding, in order."""


def add(a: float, b: float, fmt: FloatFormat, mode: str = "ties_to_even", uniforms: Uniforms = None) -> float:
    """Add exactly and round once.

    A sum that is exactly zero is -0 where both are -0, in ``toward_negative`` where either is (IEEE 754-2019, 6.3).
    """
    uniform = None if uniforms is None else next(uniforms)
    if not (math.isfinite(a) and math.isfinite(b)):
        return round_to(_no_sign_of_nan(a + b), fmt, mode)
    exact = Fraction(a) + Fraction(b)
    if exact == 0:
        signs = [math.copysign(1, a) < 0, math.copysign(1, b) < 0]
        return round_to(-0.0 if (any if mode == "toward_negative" else all)(signs) else 0.0, fmt, mode)
    beyond_every_format = Fraction(2) ** 1000
    return round_to(min(max(exact, -beyond_every_format), beyond_every_format), fmt, mode, uniform=uniform)


def _no_sign_of_nan(x: float) -> float:
    return math.nan if math.isnan(x) else x


def sequential_sums(terms: Sequence[float], fmt: FloatFormat, mode: str, uniforms: Uniforms = None) -> list[float]:
    """Return the running sums s = R(s + t), from s = 0."""
    s, sums = 0.0, []
    for t in terms:
        s = add(s, t, fmt, mode, uniforms)
        sums.append(s)
    return sums


def pairwise_sums(terms: Sequence[float], fmt: FloatFormat, mode: str, uniforms: Uniforms = None) -> list[float]:
    """Return all sums of the tree: neighbours are added, then their sums; an odd one at the end moves up as it is."""
    level, sums = list(terms), []
    while len(level) > 1:
        added = [add(level[i], level[i + 1], fmt, mode, uniforms) for i in range(0, len(level) - 1, 2)]
        sums += added
        level = added + level[2 * len(added) :]
    return sums


def blocked_sums(
    terms: Sequence[float], block: int, fmt: FloatFormat, mode: str, uniforms: Uniforms = None
) -> list[float]:
    """Return the running sums of the sums of blocks."""
    starts = range(0, len(terms), block)
    totals = [sequential_sums(terms[i : i + block], fmt, mode, uniforms)[-1] for i in starts]
    return sequential_sums(totals, fmt, mode, uniforms)


def kahan_sums(terms: Sequence[float], fmt: FloatFormat, mode: str, uniforms: Uniforms = None) -> list[float]:
    """Return the running sums of Kahan 1965."""
    s = compensation = 0.0
    sums = []
    for t in terms:
        y = add(t, -compensation, fmt, mode, uniforms)
        before, s = s, add(s, y, fmt, mode, uniforms)
        gained = add(s, -before, fmt, mode, uniforms)
        compensation = add(gained, -y, fmt, mode, uniforms)
        sums.append(s)
    return sums


def neumaier_sums(
    terms: Sequence[float], fmt: FloatFormat, mode: str, uniforms: Uniforms = None
) -> tuple[list[float], float]:
    """Return the running sums of Neumaier 1974 and the last one with its compensation."""
    s = compensation = 0.0
    sums = []
    for t in terms:
        before, s = s, add(s, t, fmt, mode, uniforms)
        large, small = (before, t) if abs(before) >= abs(t) else (t, before)
        lost = add(large, -s, fmt, mode, uniforms)
        lost = add(lost, small, fmt, mode, uniforms)
        compensation = add(compensation, lost, fmt, mode, uniforms)
        sums.append(s)
    return sums, add(s, compensation, fmt, mode, uniforms)


def dot(
    a: Sequence[float],
    b: Sequence[float],
    accumulator: FloatFormat,
    mode: str = "ties_to_even",
    *,
    round_products: bool = False,
    uniforms: Uniforms = None,
) -> float:
    """Return acc = R(acc + a b), or R(acc + R(a b)), over the pairs in order, from acc = 0; products are exact.

    float32 holds the values of a and b, so that a Python float holds a product.
    """
    acc = 0.0
    for x, y in zip(a, b, strict=True):
        product = _no_sign_of_nan(x * y)
        if round_products:
            product = round_to(product, accumulator, mode, uniform=None if uniforms is None else next(uniforms))
        acc = add(acc, product, accumulator, mode, uniforms)
    return acc


# ---- products, sums and elementary functions of stated bits (fixed.py) ----


def ordered_sum(terms: Sequence[float], fmt: FloatFormat) -> float:
    """Return acc = R(acc + x) over the terms in order, from acc = +0."""
    return sequential_sums(terms, fmt, "ties_to_even")[-1] if len(terms) else 0.0


def ordered_dot(a: Sequence[float], b: Sequence[float], fmt: FloatFormat) -> float:
    """Return acc = R(acc + R(a b)) over the pairs in order, from acc = +0, for values of a format of up to 24 bits."""
    return dot(a, b, fmt, round_products=True)


def exp_between(x: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Return two numbers between which exp(x) lies, less than 2^-bits of it apart.

    exp(x) = exp(x / 2^s)^(2^s) with abs(x / 2^s) below 2^-8. Taylor's series is summed in whole multiples of
    2^-precision, each term and each of the s squarings rounded down and, for the other end, up.
    """
    s = max(floor_log2(abs(x)) + 9, 0) if x else 0
    precision = bits + s + 10 + max(math.ceil(-2 * x), 0)  # exp(x) itself may be small: above 2^(2 x) here
    one, r = 1 << precision, x / 2**s
    low = high = one
    term, k = (one, one), 0
    while max(map(abs, term)) > 1:
        k += 1
        ends = sorted(end * r / k for end in term)
        term = math.floor(ends[0]), math.ceil(ends[1])
        low, high = low + term[0], high + term[1]
    low, high = low - 1, high + 1  # all further terms together are less than the last
    for _ in range(s):
        low, high = low * low >> precision, -(-high * high >> precision)
    return Fraction(low, one), Fraction(high, one)


def _rounded_between(between: Callable[[int], tuple[Fraction, Fraction]], fmt: FloatFormat) -> float:
    """Round, to nearest, a number that is known to lie between two others, as near as is asked for in bits."""
    bits = 64
    while True:
        low, high = (round_to(end, fmt) for end in between(bits))
        if low == high:
            return low
        bits *= 2


def exp(x: float, fmt: FloatFormat) -> float:
    """Return the exponential, rounded once to nearest, for finite x of up to 1,000 in magnitude."""
    return 1.0 if x == 0 else _rounded_between(lambda bits: exp_between(Fraction(x), bits), fmt)


def sigmoid(x: float, fmt: FloatFormat) -> float:
    """Return 1 / (1 + exp(-x)), rounded once to nearest, for finite x."""
    if x == 0:
        return 0.5

    def between(bits: int) -> tuple[Fraction, Fraction]:
        low, high = exp_between(Fraction(-x), bits)
        return 1 / (1 + high), 1 / (1 + low)

    return _rounded_between(between, fmt)


def tanh(x: float, fmt: FloatFormat) -> float:
    """Return the hyperbolic tangent, 1 - 2 / (exp(2 x) + 1), rounded once to nearest, for finite x."""
    if x == 0:
        return x

    def between(bits: int) -> tuple[Fraction, Fraction]:
        # for small x the difference cancels as many bits as x has zeros after the point
        low, high = exp_between(2 * Fraction(x), bits + max(-2 * floor_log2(abs(Fraction(x))), 0))
        return 1 - 2 / (low + 1), 1 - 2 / (high + 1)

    return _rounded_between(between, fmt)


def is_log(y: float, x: float, fmt: FloatFormat) -> bool:
    """Return whether y is log(x), rounded once to nearest: exp of the midpoints beside y lies on both sides of x."""
    if x == 1:
        return y == 0
    exact, c = Fraction(x), candidates(abs(Fraction(y)), fmt)
    if y == 0 or c.position:
        return False
    below = c.spacing / (4 if c.k == 2**fmt.mantissa_bits and c.spacing > fmt.smallest_subnormal else 2)
    ends = abs(Fraction(y)) - below, abs(Fraction(y)) + c.spacing / 2
    first, last = ends if y > 0 else (-ends[1], -ends[0])
    bits = 64
    while True:
        before, after = exp_between(first, bits), exp_between(last, bits)
        if before[1] < exact < after[0]:
            return True
        if exact < before[0] or exact > after[1]:
            return False
        bits *= 2
