"""A format as what the compiled loops read: which loop serves it, and its constants.

Each kind of loop has a function here that lays out its constants; the loop says in which order it reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.modes import RoundingMode

Array: TypeAlias = NDArray[Any]
Kernel: TypeAlias = Callable[..., None]

# Dithers (kernels/rounding.py): the remainder, in spacings, from which a value goes away from zero.
_ANY, _HALF_UP, _ABOVE_HALF, _NEVER = "any", "half or more", "more than half", "never"
# per mode: positive with an even value below, positive odd, negative even, negative odd
_DITHERS: dict[RoundingMode, tuple[str, str, str, str]] = {
    RoundingMode.TIES_TO_EVEN: (_ABOVE_HALF, _HALF_UP, _ABOVE_HALF, _HALF_UP),
    RoundingMode.TIES_TO_AWAY: (_HALF_UP, _HALF_UP, _HALF_UP, _HALF_UP),
    RoundingMode.TOWARD_ZERO: (_NEVER, _NEVER, _NEVER, _NEVER),
    RoundingMode.TOWARD_POSITIVE: (_ANY, _ANY, _NEVER, _NEVER),
    RoundingMode.TOWARD_NEGATIVE: (_NEVER, _NEVER, _ANY, _ANY),
    RoundingMode.TO_ODD: (_ANY, _NEVER, _ANY, _NEVER),
    RoundingMode.STOCHASTIC: (_NEVER, _NEVER, _NEVER, _NEVER),  # unused: its dither is random
}

# by whether it is wide: unsigned type, float type, bits, fraction bits, bias
_CARRIERS: dict[bool, tuple[Any, Any, int, int, int]] = {
    False: (np.uint32, np.float32, 32, 23, 127),
    True: (np.uint64, np.float64, 64, 52, 1023),
}


def magnitude_bits(wide: bool, value: float) -> int:
    """Return the bit pattern of a value in the carrier, without its sign."""
    uint, real, width, _, _ = _CARRIERS[wide]
    return int(np.array(value, real).view(uint)) & (1 << (width - 1)) - 1


class Plan(NamedTuple):
    """A loop that rounds, and its constants."""

    kernel: Kernel
    constants: Array
    seeded: Kernel | None = None  # stochastic: the same with a stream of its own


@lru_cache(maxsize=1024)
def plan_of(fmt: FloatFormat, mode: RoundingMode, subnormals: bool, saturate: bool, wide: bool) -> Plan:
    """Choose the loop and make its constants for a carrier (`wide`: float64)."""
    kernels = load_kernels()

    uint, real, width, fraction_bits, carrier_bias = _CARRIERS[wide]
    discarded = fraction_bits - fmt.mantissa_bits
    same_exponents = fmt.emin == 1 - carrier_bias  # the carrier's fields serve for subnormals too
    sign = 1 << (width - 1)

    bits = partial(magnitude_bits, wide)
    beyond = fmt.max if saturate else fmt.overflow_value
    over_positive, over_negative = (fmt.max if mode.clamps(negative=negative) else beyond for negative in (False, True))
    if fmt.specials == "fnuz":
        nan_keep, nan_flip = 0, sign | bits(np.nan)  # as its code decodes
    else:
        nan_keep, nan_flip = sign, bits(np.nan) if fmt.has_nan else sign
    tail = [0 if subnormals else bits(fmt.smallest_normal), 0 if fmt.has_negative_zero else sign, nan_keep, nan_flip]
    plain = subnormals and fmt.has_negative_zero and fmt.has_nan

    if mode is RoundingMode.TIES_TO_EVEN:
        extremes = [bits(fmt.max), bits(over_positive)]
        if not wide and same_exponents and plain:
            last, half = (1 << discarded, 1 << discarded >> 1) if discarded else (0, 0)
            constants = [2**32 - (1 << discarded), last, max(half - 1, 0), *extremes]
            return Plan(kernels.rounding.mask_even_plain, np.array(constants, uint))
        if not same_exponents and discarded >= 2 and fmt.emax + discarded < carrier_bias:
            fields = [
                (fmt.emin + carrier_bias) << fraction_bits,
                (fmt.emax + carrier_bias) << fraction_bits,
                discarded << fraction_bits | 1 << (fraction_bits - 1),
            ]
            name = f"add_even_{'plain_' if plain else ''}{width}"
            return Plan(getattr(kernels.rounding, name), np.array([*fields, *extremes, *tail], uint))

    spacing_bits = 1 << discarded
    keep = 2**width - spacing_bits
    smallest_normal, quantum = (0.0, 0.0) if same_exponents else (fmt.smallest_normal, fmt.smallest_subnormal)
    scale = 0.0 if same_exponents else 1 / quantum
    if mode is RoundingMode.STOCHASTIC:
        extremes = [bits(smallest_normal), bits(fmt.max), bits(beyond)]
        constants = [keep, *extremes, bits(scale * 2**16), bits(quantum), width - 1 - discarded, *tail]
        suffix = f"{'plain_' if plain else ''}{width}"
        kernel, seeded = (getattr(kernels.stochastic, f"{name}_{suffix}") for name in ("random", "seeded"))
        return Plan(kernel, np.array(constants, uint), seeded)

    half = spacing_bits // 2
    dithers = {_ANY: spacing_bits - 1, _HALF_UP: half, _ABOVE_HALF: max(half - 1, 0), _NEVER: 0}
    starts = {  # the positions between two subnormals from which a value goes away from zero
        _ANY: bits(np.finfo(real).smallest_subnormal),
        _HALF_UP: bits(0.5),
        _ABOVE_HALF: bits(float(np.nextafter(real(0.5), real(1)))),
        _NEVER: bits(1.0),
    }
    constants = [
        keep,
        # without mantissa bits every significand but zero's is 1, odd
        spacing_bits if fmt.mantissa_bits else sign - 1,
        *map(bits, (scale, quantum, smallest_normal, fmt.max, over_positive, over_negative, beyond)),
        *tail,
        *(dithers[level] for level in _DITHERS[mode]),
        *(starts[level] for level in _DITHERS[mode]),
    ]
    return Plan(getattr(kernels.rounding, f"directed_{width}"), np.array(constants, uint))


@lru_cache(maxsize=256)
def encode_plan(fmt: FloatFormat, wide: bool) -> tuple[Kernel, Array]:
    """Return the loop of kernels/codes.py that turns values in a carrier into codes, and its constants."""
    kernels = load_kernels()

    uint, _, width, fraction_bits, carrier_bias = _CARRIERS[wide]
    shares_subnormals = fmt.emin == 1 - carrier_bias  # then the fields match, subnormals too
    bits = partial(magnitude_bits, wide)
    constants = [
        fraction_bits - fmt.mantissa_bits,
        (carrier_bias - fmt.bias) << fmt.mantissa_bits,
        bits(0.0 if shares_subnormals else 2.0 ** (fmt.mantissa_bits - fmt.emin)),
        bits(0.0 if shares_subnormals else fmt.smallest_normal),
        fmt.infinity_code or 0,  # 0 where there is none, and none is met
        fmt.nan_code or 0,
        fmt.bits - 1,
    ]
    return getattr(kernels.codes, f"encode_{width}"), np.array(constants, uint)


def even_constants(fmt: FloatFormat) -> Array:
    """Return the constants of kernels/optimizers.py."""
    bits = partial(magnitude_bits, False)
    discarded = 23 - fmt.mantissa_bits
    last = 1 << discarded if discarded else 0
    if fmt.mantissa_bits == 0:
        last = 0x7F800000  # every significand but zero's is 1, odd
    # where the exponents are float32's own the fields serve for subnormals too
    smallest_normal = 0.0 if fmt.emin == -126 else fmt.smallest_normal
    shift_out = 2.0**23 * fmt.smallest_subnormal
    lost_zero = 0 if fmt.has_negative_zero else 1 << 31
    nan = (0, 1 << 31 | bits(np.nan)) if fmt.specials == "fnuz" else (1 << 31, bits(np.nan) if fmt.has_nan else 1 << 31)
    floats = map(bits, (smallest_normal, shift_out, fmt.max, fmt.overflow_value))
    return np.array(
        [2**32 - (1 << discarded), last, max((1 << discarded >> 1) - 1, 0), *floats, lost_zero, *nan], np.uint32
    )


def decode_constants(fmt: FloatFormat) -> Array:
    """Return the constants of `codes.decode_32`."""
    magnitudes = 2 ** (fmt.bits - 1)
    infinity = magnitudes if fmt.infinity_code is None else fmt.infinity_code
    first_nan = {"ieee": infinity + 1, "fn": fmt.nan_code}.get(fmt.specials, magnitudes)
    negative_nan = fmt.nan_code if fmt.specials == "fnuz" else 2**32 - 1
    scale = magnitude_bits(False, 2.0 ** (127 - fmt.bias))
    return np.array([23 - fmt.mantissa_bits, scale, fmt.bits - 1, infinity, first_nan, negative_nan], np.uint32)


def decode_exactly(codes: Array, fmt: FloatFormat) -> Array:
    """Decode unsigned codes to float64 by the definition of the fields."""
    wide = codes.astype(np.int64)
    fraction = wide & (2**fmt.mantissa_bits - 1)
    exponent = (wide >> fmt.mantissa_bits) & (2**fmt.exponent_bits - 1)
    negative = (wide >> (fmt.bits - 1)).astype(bool)
    significand = np.where(exponent > 0, fraction + 2**fmt.mantissa_bits, fraction)
    power = np.maximum(exponent, 1) - fmt.bias - fmt.mantissa_bits
    values = np.ldexp(significand.astype(np.float64), power)
    if fmt.specials == "ieee":
        top = exponent == 2**fmt.exponent_bits - 1
        values = np.where(top, np.where(fraction == 0, np.inf, np.nan), values)
    elif fmt.specials == "fn":
        values = np.where(wide & (2 ** (fmt.bits - 1) - 1) == fmt.nan_code, np.nan, values)
    elif fmt.specials == "fnuz":
        values = np.where(wide == fmt.nan_code, np.nan, values)
    signed: Array = np.copysign(values, np.where(negative, -1.0, 1.0))
    return signed


@lru_cache(maxsize=64)
def decode_table(fmt: FloatFormat, dtype: np.dtype[Any]) -> Array:
    """Return the values of all codes of a format of few bits."""
    return decode_exactly(np.arange(2**fmt.bits), fmt).astype(dtype)
