"""A format as what the compiled loops read: which loop serves it, and its constants.

Each kind of loop names its constants in a `NamedTuple` beside it. Here those of roundings, codes and optimizers get
their values; those of sums and weights get them where the loops are called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias, get_type_hints

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.modes import RoundingMode

Array: TypeAlias = NDArray[Any]
Kernel: TypeAlias = Callable[..., None]

# Dithers (kernels/rounding.py): the remainder, in spacings, from which a value goes away from zero.
_ANY, _HALF_UP, _ABOVE_HALF, _NEVER = "any", "half or more", "more than half", "never"
# per mode, in the order of _CASES: the sign, and whether the value below is even or odd
_DITHERS: dict[RoundingMode, tuple[str, str, str, str]] = {
    RoundingMode.TIES_TO_EVEN: (_ABOVE_HALF, _HALF_UP, _ABOVE_HALF, _HALF_UP),
    RoundingMode.TIES_TO_AWAY: (_HALF_UP, _HALF_UP, _HALF_UP, _HALF_UP),
    RoundingMode.TOWARD_ZERO: (_NEVER, _NEVER, _NEVER, _NEVER),
    RoundingMode.TOWARD_POSITIVE: (_ANY, _ANY, _NEVER, _NEVER),
    RoundingMode.TOWARD_NEGATIVE: (_NEVER, _NEVER, _ANY, _ANY),
    RoundingMode.TO_ODD: (_ANY, _NEVER, _ANY, _NEVER),
    RoundingMode.STOCHASTIC: (_NEVER, _NEVER, _NEVER, _NEVER),  # unused: its dither is random
}

_CASES = ("positive_even", "positive_odd", "negative_even", "negative_odd")


class _Carrier(NamedTuple):
    unsigned: Any
    real: Any
    bits: int
    fraction_bits: int
    bias: int


_CARRIERS = {  # by whether it is wide
    False: _Carrier(np.uint32, np.float32, 32, 23, 127),
    True: _Carrier(np.uint64, np.float64, 64, 52, 1023),
}


def magnitude_bits(wide: bool, value: float) -> int:
    """Return the bit pattern of a value in the carrier, without its sign."""
    carrier = _CARRIERS[wide]
    return int(np.array(value, carrier.real).view(carrier.unsigned)) & (1 << (carrier.bits - 1)) - 1


def packed(constants: Any, wide: bool) -> Array:
    """Return a NamedTuple of a loop's constants as the bit patterns that `kernels.bits.named` reads."""
    kinds = get_type_hints(type(constants)).values()
    bits = [magnitude_bits(wide, x) if kind is float else x for x, kind in zip(constants, kinds, strict=True)]
    return np.array(bits, _CARRIERS[wide].unsigned)


class Plan(NamedTuple):
    """A loop that rounds, and its constants."""

    kernel: Kernel
    constants: Array
    seeded: Kernel | None = None  # stochastic: the same with a stream of its own


@lru_cache(maxsize=1024)
def plan_of(fmt: FloatFormat, mode: RoundingMode, subnormals: bool, saturate: bool, wide: bool) -> Plan:
    """Choose the loop and make its constants for a carrier (`wide`: float64)."""
    kernels = load_kernels()

    _, real, width, fraction_bits, carrier_bias = _CARRIERS[wide]
    discarded = fraction_bits - fmt.mantissa_bits
    same_exponents = fmt.emin == 1 - carrier_bias  # the carrier's fields serve for subnormals too
    sign = 1 << (width - 1)
    spacing_bits = 1 << discarded
    keep = 2**width - spacing_bits

    bits = partial(magnitude_bits, wide)
    beyond = fmt.max if saturate else fmt.overflow_value
    over_positive, over_negative = (fmt.max if mode.clamps(negative=negative) else beyond for negative in (False, True))
    ends = {"smallest": 0.0 if subnormals else fmt.smallest_normal, **_zero_and_nan(fmt, wide)}
    plain = subnormals and fmt.has_negative_zero and fmt.has_nan

    def plan(kernel: str, constants: Any) -> Plan:
        return Plan(getattr(kernels.rounding, kernel), packed(constants, wide))

    if mode is RoundingMode.TIES_TO_EVEN:
        if not wide and same_exponents and plain:
            last, half = (spacing_bits, spacing_bits >> 1) if discarded else (0, 0)
            largest, overflow = bits(fmt.max), bits(over_positive)
            return plan("mask_even_plain", kernels.rounding.ByMask(keep, last, max(half - 1, 0), largest, overflow))
        if not same_exponents and discarded >= 2 and fmt.emax + discarded < carrier_bias:
            constants = kernels.rounding.ByAddition(
                lowest_exponent=(fmt.emin + carrier_bias) << fraction_bits,
                highest_exponent=(fmt.emax + carrier_bias) << fraction_bits,
                up=discarded << fraction_bits | 1 << (fraction_bits - 1),
                largest=fmt.max,
                overflow=over_positive,
                **ends,
            )
            return plan(f"add_even_{'plain_' if plain else ''}{width}", constants)

    smallest_normal, quantum = (0.0, 0.0) if same_exponents else (fmt.smallest_normal, fmt.smallest_subnormal)
    scale = 0.0 if same_exponents else 1 / quantum
    if mode is RoundingMode.STOCHASTIC:
        constants = kernels.stochastic.ByChance(
            keep=keep,
            smallest_normal=smallest_normal,
            largest=fmt.max,
            overflow=beyond,
            scale=scale * 2**16,
            quantum=quantum,
            shift=width - 1 - discarded,
            **ends,
        )
        suffix = f"{'plain_' if plain else ''}{width}"
        kernel, seeded = (getattr(kernels.stochastic, f"{name}_{suffix}") for name in ("random", "seeded"))
        return Plan(kernel, packed(constants, wide), seeded)

    half = spacing_bits // 2
    dithers = {_ANY: spacing_bits - 1, _HALF_UP: half, _ABOVE_HALF: max(half - 1, 0), _NEVER: 0}
    starts = {  # the positions between two subnormals from which a value goes away from zero
        _ANY: float(np.finfo(real).smallest_subnormal),
        _HALF_UP: 0.5,
        _ABOVE_HALF: float(np.nextafter(real(0.5), real(1))),
        _NEVER: 1.0,
    }
    constants = kernels.rounding.ByFields(
        keep=keep,
        # without mantissa bits every significand but zero's is 1, odd
        odd_bits=spacing_bits if fmt.mantissa_bits else sign - 1,
        scale=scale,
        quantum=quantum,
        smallest_normal=smallest_normal,
        largest=fmt.max,
        over_positive=over_positive,
        over_negative=over_negative,
        infinity=beyond,
        **ends,
        **{name: dithers[level] for name, level in zip(_CASES, _DITHERS[mode], strict=True)},
        **{f"at_{name}": starts[level] for name, level in zip(_CASES, _DITHERS[mode], strict=True)},
    )
    return plan(f"directed_{width}", constants)


def _zero_and_nan(fmt: FloatFormat, wide: bool) -> dict[str, int]:
    """Return what `rounding.finish` reads: what becomes of -0.0 and of NaN."""
    sign, nan = 1 << (_CARRIERS[wide].bits - 1), magnitude_bits(wide, np.nan)
    if fmt.specials == "fnuz":
        keep, flip = 0, sign | nan  # as its code decodes
    else:
        keep, flip = sign, nan if fmt.has_nan else sign
    return {"lost_zero": 0 if fmt.has_negative_zero else sign, "nan_keep": keep, "nan_flip": flip}


@lru_cache(maxsize=256)
def encode_plan(fmt: FloatFormat, wide: bool) -> tuple[Kernel, Array]:
    """Return the loop of kernels/codes.py that turns values in a carrier into codes, and its constants."""
    kernels = load_kernels()

    carrier = _CARRIERS[wide]
    shares_subnormals = fmt.emin == 1 - carrier.bias  # then the fields match, subnormals too
    constants = kernels.codes.Encoding(
        shift=carrier.fraction_bits - fmt.mantissa_bits,
        offset=(carrier.bias - fmt.bias) << fmt.mantissa_bits,
        scale=0.0 if shares_subnormals else 2.0 ** (fmt.mantissa_bits - fmt.emin),
        smallest_normal=0.0 if shares_subnormals else fmt.smallest_normal,
        infinity=fmt.infinity_code or 0,  # 0 where there is none, and none is met
        nan=fmt.nan_code or 0,
        sign_shift=fmt.bits - 1,
    )
    return getattr(kernels.codes, f"encode_{carrier.bits}"), packed(constants, wide)


def decode_constants(fmt: FloatFormat) -> Array:
    """Return the constants of `codes.decode_32`."""
    magnitudes = 2 ** (fmt.bits - 1)
    infinity = magnitudes if fmt.infinity_code is None else fmt.infinity_code
    constants = load_kernels().codes.Decoding(
        shift=23 - fmt.mantissa_bits,
        scale=2.0 ** (127 - fmt.bias),
        sign_shift=fmt.bits - 1,
        infinity=infinity,
        first_nan={"ieee": infinity + 1, "fn": fmt.nan_code}.get(fmt.specials, magnitudes),
        negative_nan=fmt.nan_code if fmt.specials == "fnuz" else 2**32 - 1,
    )
    return packed(constants, False)


def even_constants(fmt: FloatFormat) -> Array:
    """Return the constants of kernels/optimizers.py."""
    discarded = 23 - fmt.mantissa_bits
    last = 1 << discarded if discarded else 0
    constants = load_kernels().optimizers.EvenFields(
        keep=2**32 - (1 << discarded),
        last=last if fmt.mantissa_bits else 0x7F800000,  # then every significand but zero's is 1, odd
        below_half=max((1 << discarded >> 1) - 1, 0),
        smallest_normal=0.0 if fmt.emin == -126 else fmt.smallest_normal,  # float32's fields serve for subnormals too
        shift_out=2.0**23 * fmt.smallest_subnormal,
        largest=fmt.max,
        overflow=fmt.overflow_value,
        **_zero_and_nan(fmt, False),
    )
    return packed(constants, False)


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
