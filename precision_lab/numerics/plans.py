"""A format as what the compiled loops read: which loop serves it, and its constants.

Each kind of loop names its constants in a `NamedTuple` beside it. Here those of roundings, codes and optimizers get
their values; those of sums and weights get them where the loops are called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias, get_type_hints

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.modes import RoundingMode

Array: TypeAlias = NDArray[Any]
Kernel: TypeAlias = Callable[..., None]

_FP16 = FORMATS["fp16"]
_LARGE = 1 << 21  # bytes: a core's own caches hold no more
_LARGER = 1 << 25  # nor do those that cores share

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
    """Return a NamedTuple of a loop's constants as the bit patterns that `kernels.bits.named` reads.

    Of an integer, which may be negative, that is its last bits.
    """
    kinds = get_type_hints(type(constants)).values()
    carrier = _CARRIERS[wide]
    bits = [magnitude_bits(wide, x) if kind is float else x for x, kind in zip(constants, kinds, strict=True)]
    return np.array([x % 2**carrier.bits for x in bits], carrier.unsigned)


class Plan(NamedTuple):
    """A loop that rounds, and its constants."""

    kernel: Kernel
    constants: Array
    seeded: Kernel | None = None  # stochastic: the same with a stream of its own


@lru_cache(maxsize=1024)
def plan_of(fmt: FloatFormat, mode: RoundingMode, subnormals: bool, saturate: bool, wide: bool) -> Plan:
    """Choose the loop and make its constants for a carrier (`wide`: float64)."""
    options = fmt, mode, subnormals, saturate, wide
    if mode is RoundingMode.STOCHASTIC:
        return _by_chance(*options)
    if _same_exponents(fmt, wide):
        fits = _is_plain(fmt, subnormals) and not wide and fmt.mantissa_bits
        return _by_mask(fmt, mode, saturate) if fits else by_fields(*options)
    discarded = _discarded(fmt, wide)
    fits = discarded >= 2 and fmt.emax + discarded < _CARRIERS[wide].bias
    return _by_addition(*options) if fits else by_fields(*options)


def _discarded(fmt: FloatFormat, wide: bool) -> int:
    """Return how many fraction bits the carrier has and the format has not."""
    return _CARRIERS[wide].fraction_bits - fmt.mantissa_bits


def _same_exponents(fmt: FloatFormat, wide: bool) -> bool:
    """Return whether the carrier's fields serve for subnormals too."""
    return fmt.emin == 1 - _CARRIERS[wide].bias


def _is_plain(fmt: FloatFormat, subnormals: bool) -> bool:
    return subnormals and fmt.has_negative_zero and fmt.has_nan


def overflows(fmt: FloatFormat, mode: RoundingMode, saturate: bool) -> tuple[float, float, float]:
    """Return what is made of overflow, positive and negative, and of infinity."""
    beyond = fmt.max if saturate else fmt.overflow_value
    positive, negative = (fmt.max if mode.clamps(negative=negative) else beyond for negative in (False, True))
    return positive, negative, beyond


def _ends(fmt: FloatFormat, subnormals: bool, wide: bool) -> dict[str, Any]:
    return {"smallest": 0.0 if subnormals else fmt.smallest_normal, **_zero_and_nan(fmt, wide)}


def _dithers(fmt: FloatFormat, mode: RoundingMode, wide: bool) -> list[int]:
    """Return what is added to the discarded bits, in the order of _CASES."""
    unit = 1 << _discarded(fmt, wide)
    dithers = {_ANY: unit - 1, _HALF_UP: unit // 2, _ABOVE_HALF: max(unit // 2 - 1, 0), _NEVER: 0}
    return [dithers[level] for level in _DITHERS[mode]]


def _by_mask(fmt: FloatFormat, mode: RoundingMode, saturate: bool) -> Plan:
    loops = load_kernels().rounding

    positive_even, positive_odd, negative_even, _ = _dithers(fmt, mode, False)
    overflow, overflow_negative, infinity = map(partial(magnitude_bits, False), overflows(fmt, mode, saturate))
    discarded, even = _discarded(fmt, False), mode is RoundingMode.TIES_TO_EVEN
    constants = loops.ByMask(
        keep=2**32 - (1 << discarded),
        last=discarded,
        dither=positive_even,
        by_sign=positive_even ^ negative_even,
        by_odd=positive_odd - positive_even if even else positive_even ^ positive_odd,
        largest=magnitude_bits(False, fmt.max),
        overflow=overflow,
        overflow_by_sign=overflow ^ overflow_negative,
        infinity=infinity,
    )
    return Plan(loops.mask_even if even else loops.mask_any, packed(constants, False))


def _by_addition(fmt: FloatFormat, mode: RoundingMode, subnormals: bool, saturate: bool, wide: bool) -> Plan:
    loops = load_kernels().rounding

    kinds = {
        RoundingMode.TIES_TO_EVEN: loops.EVEN,
        RoundingMode.TIES_TO_AWAY: loops.AWAY,
        RoundingMode.TOWARD_ZERO: loops.ZERO,
        RoundingMode.TO_ODD: loops.ODD,
    }
    _, _, width, fraction_bits, _ = _CARRIERS[wide]
    overflow, overflow_negative, infinity = overflows(fmt, mode, saturate)
    constants = loops.ByAddition(
        lowest=2.0**fmt.emin,
        highest=2.0**fmt.emax,
        up=_discarded(fmt, wide) << fraction_bits | 1 << (fraction_bits - 1),
        half=2.0 ** -(fmt.mantissa_bits + 1),
        turn=1 << (width - 1) if mode is RoundingMode.TOWARD_NEGATIVE else 0,
        largest=fmt.max,
        overflow=overflow,
        overflow_negative=overflow_negative,
        infinity=infinity,
        **_ends(fmt, subnormals, wide),
    )
    loop = loops.ADD[kinds.get(mode, loops.POSITIVE), _is_plain(fmt, subnormals), width]
    return Plan(loop, packed(constants, wide))


def _units(fmt: FloatFormat, wide: bool) -> tuple[float, float, float]:
    """Return the smallest normal and subnormal, and the factor to units of the latter; 0 where nothing is subnormal."""
    if _same_exponents(fmt, wide):
        return 0.0, 0.0, 0.0
    return fmt.smallest_normal, fmt.smallest_subnormal, 1 / fmt.smallest_subnormal


def _by_chance(fmt: FloatFormat, mode: RoundingMode, subnormals: bool, saturate: bool, wide: bool) -> Plan:
    kernels = load_kernels()

    smallest_normal, quantum, scale = _units(fmt, wide)
    width, discarded, signed_zero = _CARRIERS[wide].bits, _discarded(fmt, wide), fmt.has_negative_zero
    bits = partial(magnitude_bits, wide)
    largest, overflow, nan = bits(fmt.max), bits(overflows(fmt, mode, saturate)[-1]), _zero_and_nan(fmt, wide)
    if overflow > bits(np.inf):
        overflow = nan["nan_flip"]
    if _is_plain(fmt, subnormals):
        nan |= {"nan_keep": -1, "nan_flip": 0}  # the payload, too
    # from `first` on one addition does; of zero, too, where it keeps its sign: only subnormals are as far away
    gradual = smallest_normal if signed_zero or smallest_normal else fmt.smallest_subnormal
    first = bits(gradual if subnormals else fmt.smallest_normal)
    reach = largest if not first else -first if signed_zero else largest - first
    lowest = -1 << (width - 1)
    constants = kernels.stochastic.ByChance(
        keep=-1 << discarded,
        shift=width - discarded,
        origin=first - lowest,
        reach=reach + lowest,
        largest=largest,
        gradual=largest if smallest_normal or (subnormals and signed_zero) else -1,
        subnormal=bits(smallest_normal) - 1,
        scale=scale * 2**16,
        unit=quantum / 2**16,
        whole=-1 << (16 if subnormals else 16 + fmt.mantissa_bits),
        overflow=overflow,
        flushed=-int(signed_zero) if subnormals else bits(fmt.smallest_normal) - 1,
        zero_keep=1 << (width - 1) if signed_zero else 0,
        nan_keep=nan["nan_keep"],
        nan_flip=nan["nan_flip"],
    )
    return Plan(kernels.stochastic.random, packed(constants, wide), kernels.stochastic.seeded)


@lru_cache(maxsize=256)
def by_fields(fmt: FloatFormat, mode: RoundingMode, subnormals: bool, saturate: bool, wide: bool) -> Plan:
    """Return the plan with the loop that serves every deterministic mode and every format, the slowest."""
    loops = load_kernels().rounding

    _, real, width, *_ = _CARRIERS[wide]
    smallest_normal, quantum, scale = _units(fmt, wide)
    spacing_bits = 1 << _discarded(fmt, wide)
    over_positive, over_negative, infinity = overflows(fmt, mode, saturate)
    starts = {  # the positions between two subnormals from which a value goes away from zero
        _ANY: float(np.finfo(real).smallest_subnormal),
        _HALF_UP: 0.5,
        _ABOVE_HALF: float(np.nextafter(real(0.5), real(1))),
        _NEVER: 1.0,
    }
    constants = loops.ByFields(
        keep=2**width - spacing_bits,
        # without mantissa bits every significand but zero's is 1, odd
        odd_bits=spacing_bits if fmt.mantissa_bits else (1 << (width - 1)) - 1,
        scale=scale,
        quantum=quantum,
        smallest_normal=smallest_normal,
        largest=fmt.max,
        over_positive=over_positive,
        over_negative=over_negative,
        infinity=infinity,
        **_ends(fmt, subnormals, wide),
        **dict(zip(_CASES, _dithers(fmt, mode, wide), strict=True)),
        **{f"at_{name}": starts[level] for name, level in zip(_CASES, _DITHERS[mode], strict=True)},
    )
    return Plan(getattr(loops, f"directed_{width}"), packed(constants, wide))


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


@lru_cache(maxsize=256)
def even_encode_plan(fmt: FloatFormat, saturate: bool) -> tuple[Kernel, Array] | None:
    """Return the loop that rounds float32 to codes at once, ties to even, and its constants; None where there is none.

    That is, for codes of more than 16 bits, without fraction bits, and where C of the addition is out of range in a
    format that does not share float32's exponents (kernels/codes.py).
    """
    codes, lanes = load_kernels().codes, load_kernels().lanes
    discarded = 23 - fmt.mantissa_bits
    if not fmt.mantissa_bits or fmt.bits > 16:
        return None
    if _shares_exponents(fmt) and not saturate:
        return codes.encode_shared, packed(codes.SharedEncoding(discarded, (1 << discarded - 1) - 1), False)
    # the value whose code is that of infinity, or of the NaN for want of it
    largest = fmt.max if saturate or fmt.saturates else fmt.max + 2.0 ** (fmt.emax - fmt.mantissa_bits)
    if math.frexp(largest)[1] - 1 + discarded > 127:
        return None
    lowest = (fmt.emin + 127) << 23
    width = 8 if fmt.bits <= 8 else 16
    constants = codes.EvenEncoding(
        largest=magnitude_bits(False, largest),
        lowest_exponent=lowest,
        # even, so that it changes no tie, and too small to reach the exponent
        up=(discarded << 23) + -(lowest >> discarded) % (1 << width),
        shift=discarded,
        keep=(1 << width) - 1,
        nan=fmt.nan_code or 0,
        sign_shift=32 - fmt.bits,
        sign_down=width - fmt.bits,
        zero_keep=(1 << width) - 1 if fmt.has_negative_zero else 0,
        nan_flip=0 if fmt.has_nan else 1 << 31,
    )
    by_half = fmt == _FP16 and not saturate and lanes.has_half()
    return codes.encode_half if by_half else codes.encode_even, packed(constants, False)


def _shares_exponents(fmt: FloatFormat) -> bool:
    """Whether the format is float32 without its last fraction bits."""
    return fmt.exponent_bits == 8 and fmt.bias == 127 and fmt.specials == "ieee"


@lru_cache(maxsize=256)
def decode_plan(fmt: FloatFormat) -> tuple[Kernel, Array]:
    """Return the loop of kernels/codes.py that turns codes into float32, and its constants."""
    codes, lanes = load_kernels().codes, load_kernels().lanes
    fields = (1 << fmt.bits - 1) - 1
    if _shares_exponents(fmt):
        nan = (fmt.infinity_code or 0) + 1
        quiet_nan = magnitude_bits(False, np.nan)
        shared = codes.SharedDecoding(23 - fmt.mantissa_bits, 0, fields, nan, 1 << 31, quiet_nan)
        return codes.decode_shared, packed(shared, False)
    magnitudes = fields + 1
    infinity = magnitudes if fmt.infinity_code is None else fmt.infinity_code
    first_nan = {"ieee": infinity + 1, "fn": fields}.get(fmt.specials, magnitudes)
    # with as many exponents fp16 has infinity and NaN where other kinds have numbers
    in_half = fmt.exponent_bits <= (5 if fmt.specials == "ieee" else 4) and fmt.mantissa_bits <= 10
    constants = codes.Decoding(
        shift=23 - fmt.mantissa_bits,
        offset=(127 - fmt.bias << 23) % 2**32,
        smallest_normal=1 << fmt.mantissa_bits,
        unit=magnitude_bits(False, 2.0**23 * fmt.smallest_subnormal),
        sign_shift=fmt.bits - 1,
        infinity=infinity,
        first_nan=first_nan,
        negative_nan=fmt.nan_code if fmt.specials == "fnuz" else 2**32 - 1,
        half_up=16 - fmt.bits if in_half else 0,
        half_down=5 - fmt.exponent_bits if in_half else 0,
        half_keep=1 << 15 | fields << 10 - fmt.mantissa_bits if in_half else 0,
        half_scale=2.0 ** (15 - fmt.bias),
        # of fnuz formats the one NaN: what comes after it is 0, then
        before=magnitudes + 1 if fmt.specials == "fnuz" else 0,
        magnitude=2 * magnitudes - 1 if fmt.specials == "fnuz" else fields,
        first_special=2 * magnitudes - 1 if fmt.specials == "fnuz" else min(infinity, first_nan),
    )
    return codes.decode_by_half if in_half and lanes.has_half() else codes.decode, packed(constants, False)


@lru_cache(maxsize=256)
def stored_plan(fmt: FloatFormat) -> tuple[Kernel, Array]:
    """Return the same for arrays of the format's own dtype: of bf16 the payload of a NaN stays."""
    kernel, constants = decode_plan(fmt)
    if fmt != FORMATS["bf16"]:
        return kernel, constants
    every = load_kernels().codes.SharedDecoding(16, 0, 0x7FFF, 0x8000, 2**32 - 1, 0)
    return kernel, packed(every, False)


def past_caches(out: Array) -> bool:
    """Whether an array is so large that what is written to it should not go through the caches."""
    return out.nbytes >= _LARGE


def past_shared_caches(out: Array) -> bool:
    """Whether it is so large even if what is written is read again soon."""
    return out.nbytes >= _LARGER


def widen(x: Array, out: Array) -> None:
    """Convert float32 to float64."""
    load_kernels().codes.widen(x, out)


def even_constants(fmt: FloatFormat, *, payloads: bool = False) -> Array:
    """Return the constants of kernels/optimizers.py.

    With `payloads`, a NaN, which an operation has made and is quiet, keeps its bits in IEEE formats, as it does in the
    loops that round arrays. (Where infinity becomes NaN, there is no payload to keep.)
    """
    nan = _zero_and_nan(fmt, False)
    if payloads and fmt.specials == "ieee" and fmt.has_nan:
        nan |= {"nan_keep": 2**32 - 1, "nan_flip": 0}
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
        **nan,
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
