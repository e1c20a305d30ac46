"""Models of casts, right and wrong: every mistake is one field, and a model predicts a result for every input.

The models are written in float64, apart from the compiled roundings: a value divided by the spacing of the target is
below 2^24 and exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.codes import decode, encode
from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.rounding import Array, round_to
from precision_lab.testing.hard_inputs import Source

Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]

NAN = 1 << 40  # stands for every code of a NaN
NO_VALUE = 1 << 41  # a float that is no value of the target


class Spec(NamedTuple):
    """What a cast should do."""

    source: Source
    target: FloatFormat
    mode: str
    subnormals: bool
    saturate: bool
    nan: str


class Rows(NamedTuple):
    """Inputs that were tried, each with what came back and where it stood.

    Attributes
    ----------
    patterns, values : ndarray
        Of the inputs.
    expected, got : ndarray of int64
        Codes; NAN for every NaN, NO_VALUE for what is no value of the target.
    raw : ndarray of int64
        The codes as they came, -1 where there was none.
    stored : ndarray of float64
        The values that came.
    position, length, address : ndarray of int64
        Where the input stood, in an array of how many, at which byte of 64 that began.

    """

    patterns: Array
    values: NDArray[np.float64]
    expected: Codes
    got: Codes
    raw: Codes
    stored: NDArray[np.float64]
    position: Codes
    length: Codes
    address: Codes

    def take(self, chosen: Any) -> Rows:
        """Return some of the rows."""
        return Rows(*(column[chosen] for column in self))


def canonical(codes: Array, target: FloatFormat) -> Codes:
    """Return codes with one number for all NaNs."""
    wide = codes.astype(np.int64)
    if not target.has_nan:
        return wide
    magnitude = wide & ((1 << (target.bits - 1)) - 1)
    if target.specials == "ieee":
        is_nan = magnitude > (2**target.exponent_bits - 1) << target.mantissa_bits
    elif target.specials == "fn":
        is_nan = magnitude == 2 ** (target.bits - 1) - 1
    else:
        is_nan = wide == 2 ** (target.bits - 1)
    return np.where(is_nan, NAN, wide)


@dataclass(frozen=True)
class Model:
    """A cast, right or wrong; every field that is not empty is one mistake."""

    flushes_inputs: bool = False
    scale: int = 0  # a power of two
    via: FloatFormat | int | None = None  # a format, or a number of significand bits
    via_mode: str = "ties_to_even"
    mode: str = ""
    looks_at: int | None = None  # bits beyond the last
    carry: str = ""
    flushes: str = ""
    overflows_from: str = ""
    overflows_to: str = ""
    infinity_to: str = ""
    loses_sign: str = ""
    zero_field: str = ""  # how exponent field 0 of the input is read
    top_field: str = ""  # and the highest one
    bias: int = 0  # too much in the exponent of normal inputs
    fraction: str = ""  # where that of the input is read
    reads: FloatFormat | None = None  # the format that the codes of the input are taken for
    highest: int | None = None  # codes that are never passed
    lowest: int | None = None
    passes: str = ""  # what goes past them all the same
    least: int | None = None  # the smallest magnitude
    least_of_zero: bool = False  # and of zero too


def _goes_away(mode: str, rest: Array, odd: Mask, negative: Mask) -> Mask:
    """Return where the value with this rest, in spacings, goes to the larger magnitude."""
    tie, above, inexact = rest == 0.5, rest > 0.5, rest > 0
    rules: dict[str, Callable[[], Mask]] = {
        "ties_to_even": lambda: above | (tie & odd),
        "ties_to_away": lambda: above | tie,
        "ties_to_zero": lambda: above,
        "ties_to_odd": lambda: above | (tie & ~odd),
        "ties_upward": lambda: above | (tie & ~negative),
        "ties_downward": lambda: above | (tie & negative),
        "toward_zero": lambda: np.zeros_like(tie),
        "away_from_zero": lambda: inexact,
        "toward_positive": lambda: inexact & ~negative,
        "toward_negative": lambda: inexact & negative,
        "to_odd": lambda: inexact & ~odd,
        "only_odd_ties": lambda: tie & odd,
    }
    return rules[mode]()


def _to_bits(v: Array, bits: int, mode: str) -> Array:
    """Round magnitudes to so many significand bits, without limits to the exponent."""
    fraction, exponent = np.frexp(v)
    scaled = np.ldexp(fraction, bits)
    below = np.floor(scaled)
    away = _goes_away(mode, scaled - below, below % 2 == 1, np.zeros(v.shape, np.bool_))
    with np.errstate(over="ignore"):
        result: Array = np.ldexp(below + away, exponent - bits)
    return result


def predict(model: Model, x: NDArray[np.float64], spec: Spec) -> Codes:
    """Return the codes that a cast with these mistakes gives for numbers that are not NaN."""
    target = spec.target
    mantissa = target.mantissa_bits
    negative, v = np.signbit(x), np.abs(x)
    flushed = np.zeros(v.shape, np.bool_)
    if model.flushes_inputs:
        flushed = (v > 0) & (v < spec.source.smallest_normal)
        v = np.where(flushed, 0.0, v)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # signalling NaNs
        if model.scale:
            v = np.ldexp(v, model.scale)
        if isinstance(model.via, FloatFormat):
            signed = np.where(negative, -v, v)
            v = np.abs(np.asarray(round_to(signed, model.via, model.via_mode)))
        elif model.via is not None:
            finite = np.isfinite(v)
            v = np.where(finite, _to_bits(np.where(finite, v, 0.0), model.via, model.via_mode), v)
    infinite, nan = np.isinf(x), np.isnan(v)
    overflowed = np.isinf(v) & ~infinite  # on the way
    usual = np.where(np.isinf(v) | nan, 0.0, v)

    _, exponent = np.frexp(np.where(usual > 0, usual, target.smallest_subnormal))
    exponent = np.maximum(exponent - 1, target.emin)
    scaled = np.ldexp(usual, mantissa - exponent)
    below = np.floor(scaled)
    odd, rest = below % 2 == 1, scaled - below
    if model.looks_at is not None:
        rest = np.ldexp(np.floor(np.ldexp(rest, model.looks_at)), -model.looks_at)
    away = _goes_away(model.mode or spec.mode, rest, odd, negative)
    significand = below + away
    if model.carry:
        lost = away & (significand == 2.0 ** (mantissa + 1))
        significand = np.where(lost, below if model.carry == "sticks" else 2.0**mantissa, significand)
    with np.errstate(over="ignore"):
        r = np.ldexp(significand, exponent - mantissa)

    if model.flushes in ("before", "after") or not (spec.subnormals or model.flushes):
        tiny = (usual if model.flushes == "before" else r) < target.smallest_normal
        flushed = flushed | (tiny & (usual > 0))
        r = np.where(tiny, 0.0, r)

    code_bits = np.asarray(encode(np.minimum(r, target.max), target)).astype(np.int64)
    over = {
        "": r > target.max,
        "max": usual > target.max,
        "tie": usual >= target.overflow_threshold,
        "past tie": usual > target.overflow_threshold,
        "next binade": usual >= 2.0 ** (target.emax + 1),
        "top binade": r >= 2.0**target.emax,
    }[model.overflows_from]
    over = over | overflowed
    code_bits = np.where(over, _beyond(model.overflows_to, r, negative, spec), code_bits)
    code_bits = np.where(infinite, infinity_code(model.infinity_to, spec), code_bits)

    zero = code_bits == 0
    drops = {
        "": np.zeros_like(zero),
        "zeros": zero & (x == 0),
        "rounded": zero & (x != 0),
        "flushed": flushed,
        "all": zero,
    }[model.loses_sign]
    if model.overflows_to == "positive zero":
        drops = drops | over
    sign = np.where(negative & ~drops, 1 << (target.bits - 1), 0)
    if not target.has_negative_zero:
        sign = np.where(zero, 0, sign)
    codes = np.where(code_bits >= NAN, NAN, code_bits | sign)
    codes = _clamped(model, codes, negative, over, infinite, x == 0, target)
    return canonical(np.where(nan, NAN, codes), target)


def _clamped(
    model: Model, codes: Codes, negative: Mask, over: Mask, infinite: Mask, zero: Mask, target: FloatFormat
) -> Codes:
    """Keep codes within bounds; it makes no difference whether that is done before the rounding or after it."""
    sign = 1 << (target.bits - 1)
    if model.least is not None:
        small = ((codes & (sign - 1)) < model.least) & ~(over | infinite)
        small &= model.least_of_zero | ~zero
        codes = np.where(small, np.where(negative, sign, 0) | model.least, codes)
    if model.highest is None and model.lowest is None:
        return codes
    size = np.where(over | infinite, sign, codes & (sign - 1))  # beyond every number
    order = np.where(negative, ~size, size)  # -0.0 is below 0.0
    kept = {"": np.zeros_like(over), "infinity": infinite, "overflow": over | infinite}[model.passes]
    for bound, side in ((model.highest, 1), (model.lowest, -1)):
        if bound is not None:
            limit = ~(bound & (sign - 1)) if bound & sign else bound
            past = (order * side > limit * side) & ~kept
            codes = np.where(past, bound, codes)
    return codes


def read(model: Model, patterns: Array, values: NDArray[np.float64], source: Source) -> NDArray[np.float64]:
    """Return the values that a cast with these mistakes takes its inputs for."""
    fmt = source.format
    if fmt is None or not (model.zero_field or model.top_field or model.bias or model.fraction or model.reads):
        return values
    if model.reads is not None:
        return np.asarray(decode(patterns, model.reads, np.float64))
    wide = patterns.astype(np.int64)
    field = wide >> fmt.mantissa_bits & (2**fmt.exponent_bits - 1)
    own = np.ldexp((wide & (2**fmt.mantissa_bits - 1)).astype(np.float64), -fmt.mantissa_bits)
    fraction, carry = own, np.zeros(own.shape)
    place, _, extent = model.fraction.partition(", ")
    if place == "low":
        fraction = own / 2
    elif place:  # too high: what is carried out of it
        carry = np.floor(2 * own)
        fraction = 2 * own - carry
    if place == "lost":
        carry = 0 * carry
    elif place == "or":
        carry = np.where(field % 2 == 0, carry, 0)
    normal = np.ldexp(1 + fraction, field + carry.astype(np.int64) - fmt.bias + model.bias)
    if extent != "subnormals too":
        fraction = own
    subnormal = {
        "": np.ldexp(fraction, 1 - fmt.bias),
        "normal": np.ldexp(1 + fraction, -fmt.bias),
        "normal, not zero": np.where(fraction == 0, 0.0, np.ldexp(1 + fraction, -fmt.bias)),
        "exponent 0": np.ldexp(fraction, -fmt.bias),
    }[model.zero_field]
    magnitude = np.where(field == 0, subnormal, normal)
    read_so = np.isfinite(values) | bool(model.top_field)
    return np.where(read_so, np.where(wide >> (fmt.bits - 1) & 1, -magnitude, magnitude), values)


def infinity_code(to: str, spec: Spec) -> int:
    """Return the magnitude of the code that infinity becomes."""
    target = spec.target
    largest = int(encode(target.max, target))
    if to == "":
        to = "max" if spec.saturate or target.saturates else "infinity"
    if to == "infinity" and not target.has_infinity:
        to = "nan"
    if to == "nan" and not target.has_nan:
        to = "max"
    return {"infinity": largest + 1, "max": largest, "nan": NAN, "zero": 0, "positive zero": 0}[to]


def _beyond(to: str, r: Array, negative: Mask, spec: Spec) -> Codes:
    """Return the magnitudes of the codes of results beyond the largest value."""
    target = spec.target
    if to == "wraps":
        fraction, exponent = np.frexp(np.where((r > 0) & np.isfinite(r), r, 1.0))
        significand = np.ldexp(fraction, target.precision).astype(np.int64) - 2**target.mantissa_bits
        code = ((exponent.astype(np.int64) - 1 + target.bias) << target.mantissa_bits) + significand
        return canonical(code & ((1 << (target.bits - 1)) - 1), target)
    if to:
        return np.full(r.shape, infinity_code(to, spec))
    usual, largest = infinity_code("", spec), int(encode(target.max, target))
    stays = {
        "toward_zero": np.ones_like(negative),
        "to_odd": np.ones_like(negative),
        "toward_positive": negative,
        "toward_negative": ~negative,
    }.get(spec.mode, np.zeros_like(negative))
    return np.where(stays, largest, usual)
