"""Rounding arrays into a format, exactly and once: the fast path, in any mode.

What happens where the rule "the nearest value" is not enough, in `round_to`, `encode` and `cast` alike:

- **Signed zeros** keep their sign, except in the ``fnuz`` formats, which have one zero.
- **NaN** stays NaN, quiet, with its sign (in ``fnuz`` formats there is one NaN); its payload means nothing. In formats
  without NaN (fp6, fp4) it becomes the zero of the opposite sign: that is what ml_dtypes does. Count first.
- **Infinity** stays; without infinities it becomes NaN (``fn``, ``fnuz``) or the largest value (fp6, fp4).
- **Overflow** is decided on the value rounded as if the exponent range were unlimited (IEEE 754-2019, 7.4). Beyond the
  largest value the ties modes and ``stochastic`` give infinity, or NaN or the largest value in formats without; the
  directed modes give that only away from zero, and the largest value otherwise; ``toward_zero`` and ``to_odd`` always
  give the largest value.
- **saturate=True** clamps overflow and infinities alike to the largest value (OCP OFP8 1.0); NaN stays NaN.
- **to_odd** beyond the largest value gives the largest value even where that is even, as 448 of ``fp8_e4m3fn`` is. The
  odd last bit, by which the next rounding sees that something was lost, is then missing: at the top of that format
  rounding twice through ``to_odd`` is not safe.
- **subnormals=False** (flush to zero): a *result* that is subnormal in the format becomes the zero of its sign. What
  rounds up to the smallest normal stays: 0x1.ffcp-15 to fp16 is 2^-14, though it is below it.
- **Underflow** is gradual otherwise: below the smallest normal, values are multiples of the smallest subnormal.
- With one significand bit (``e8m0``) both neighbours may be odd: a tie then goes to the larger (IEEE 754-2019, 4.3.1).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.numerics.environment import load_kernels, require_gradual_underflow
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.inputs import as_array, converted, integers_as_doubles, refuse_masked

Array: TypeAlias = NDArray[Any]
RandomSource: TypeAlias = "int | tuple[int, int] | np.random.Generator | None"


class RoundingMode(StrEnum):
    """How a value between two neighbours of a format is rounded (IEEE 754-2019, 4.3; Boldo and Melquiond 2008; ...)."""

    TIES_TO_EVEN = "ties_to_even"
    TIES_TO_AWAY = "ties_to_away"
    TOWARD_ZERO = "toward_zero"
    TOWARD_POSITIVE = "toward_positive"
    TOWARD_NEGATIVE = "toward_negative"
    TO_ODD = "to_odd"
    STOCHASTIC = "stochastic"


_MODES: dict[str, RoundingMode] = {mode.value: mode for mode in RoundingMode} | {
    "rne": RoundingMode.TIES_TO_EVEN,
    "rna": RoundingMode.TIES_TO_AWAY,
    "rtz": RoundingMode.TOWARD_ZERO,
    "rup": RoundingMode.TOWARD_POSITIVE,
    "rdn": RoundingMode.TOWARD_NEGATIVE,
    "rto": RoundingMode.TO_ODD,
    "sr": RoundingMode.STOCHASTIC,
}


def get_mode(mode: str) -> RoundingMode:
    """Return the rounding mode of that name or alias (rne, rna, rtz, rup, rdn, rto, sr).

    Raises
    ------
    ValueError
        Nothing of that name; the message lists them.

    """
    try:
        return _MODES[mode]
    except (KeyError, TypeError):
        raise ValueError(f"unknown rounding mode {mode!r}; choose one of {', '.join(_MODES)}") from None


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

_BLOCK = 1 << 15  # numbers drawn from a Generator at a time
_Kernel: TypeAlias = Callable[..., None]


# by whether it is wide: unsigned type, float type, bits, fraction bits, bias
_CARRIERS: dict[bool, tuple[Any, Any, int, int, int]] = {
    False: (np.uint32, np.float32, 32, 23, 127),
    True: (np.uint64, np.float64, 64, 52, 1023),
}


def _magnitude_bits(wide: bool, value: float) -> int:
    """Return the bit pattern of a value in the carrier, without its sign."""
    uint, real, width, _, _ = _CARRIERS[wide]
    return int(np.array(value, real).view(uint)) & (1 << (width - 1)) - 1


class _Plan(NamedTuple):
    kernel: _Kernel
    constants: Array
    seeded: _Kernel | None = None  # stochastic: the same with a stream of its own


@lru_cache(maxsize=1024)
def _plan(fmt: FloatFormat, mode: RoundingMode, subnormals: bool, saturate: bool, wide: bool) -> _Plan:
    """Choose the kernel and make its constants for a carrier (`wide`: float64)."""
    kernels = load_kernels()

    uint, real, width, fraction_bits, carrier_bias = _CARRIERS[wide]
    discarded = fraction_bits - fmt.mantissa_bits
    same_exponents = fmt.emin == 1 - carrier_bias  # the carrier's fields serve for subnormals too
    sign = 1 << (width - 1)

    bits = partial(_magnitude_bits, wide)
    special = np.inf if fmt.has_infinity else np.nan if fmt.has_nan else fmt.max
    beyond = fmt.max if saturate else special
    truncating = (RoundingMode.TOWARD_ZERO, RoundingMode.TO_ODD)
    over_positive = fmt.max if mode in (*truncating, RoundingMode.TOWARD_NEGATIVE) else beyond
    over_negative = fmt.max if mode in (*truncating, RoundingMode.TOWARD_POSITIVE) else beyond
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
            return _Plan(kernels.rounding.mask_even_plain, np.array(constants, uint))
        if not same_exponents and discarded >= 2 and fmt.emax + discarded < carrier_bias:
            fields = [
                (fmt.emin + carrier_bias) << fraction_bits,
                (fmt.emax + carrier_bias) << fraction_bits,
                discarded << fraction_bits | 1 << (fraction_bits - 1),
            ]
            name = f"add_even_{'plain_' if plain else ''}{width}"
            return _Plan(getattr(kernels.rounding, name), np.array([*fields, *extremes, *tail], uint))

    spacing_bits = 1 << discarded
    keep = 2**width - spacing_bits
    smallest_normal, quantum = (0.0, 0.0) if same_exponents else (fmt.smallest_normal, fmt.smallest_subnormal)
    scale = 0.0 if same_exponents else 1 / quantum
    if mode is RoundingMode.STOCHASTIC:
        extremes = [bits(smallest_normal), bits(fmt.max), bits(beyond)]
        constants = [keep, *extremes, bits(scale * 2**16), bits(quantum), width - 1 - discarded, *tail]
        suffix = f"{'plain_' if plain else ''}{width}"
        kernel, seeded = (getattr(kernels.stochastic, f"{name}_{suffix}") for name in ("random", "seeded"))
        return _Plan(kernel, np.array(constants, uint), seeded)

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
    return _Plan(getattr(kernels.rounding, f"directed_{width}"), np.array(constants, uint))


def as_carrier(x: ArrayLike, *, to_odd: bool = False) -> Array:
    """Return x as an array of float32 or float64 with the same values, x itself where it is one.

    Integers, lists and Python numbers become float64; float16, bfloat16 and the ml_dtypes floats become float32.

    Parameters
    ----------
    x : array_like
        Any shape.
    to_odd : bool
        Round integers that are no float64 to odd, for callers that round into a format afterwards, or ask only where x
        lies among the values of one: see inputs.py. Otherwise they are refused.

    Raises
    ------
    ValueError
        Another dtype (complex, bool, object, longdouble ...), whose values might not survive; a masked array; bools
        among numbers; without `to_odd` an integer that is no float64.
    FloatingPointError
        This thread flushes subnormal numbers to zero; see `require_gradual_underflow`.

    """
    array = as_array(x, to_odd=to_odd)
    require_gradual_underflow()  # all that computes begins here; what is asked for its array may switch it on
    dtype = array.dtype
    if dtype == np.float32 or dtype == np.float64:
        return array
    if dtype.kind == "f" and dtype.itemsize <= 8 and not dtype.isnative:
        return as_carrier(array.astype(dtype.newbyteorder("=")))
    if dtype.kind in "iu":
        return integers_as_doubles(array, to_odd=to_odd)
    fmt = _FORMAT_OF_DTYPE.get(dtype)
    if fmt is None:
        raise ValueError(
            f"cannot take an array of {dtype}; pass float32, float64, float16, an ml_dtypes float, integers or a list "
            "of numbers"
        )
    if fmt.name == "bf16":
        return converted(array, np.float32)
    # a table is several times faster than the casts of NumPy and ml_dtypes
    codes = array.view(code_dtype(fmt))
    if fmt.bits < 8:
        codes = codes & (2**fmt.bits - 1)  # the unused bits of the byte mean nothing
    values: Array = _decode_table(fmt, np.dtype(np.float32)).take(codes)
    return values


_FORMAT_OF_DTYPE = {fmt.dtype: fmt for fmt in FORMATS.values() if fmt.dtype is not None}


def _scalar_if_0d(array: Array) -> Array:
    """Return a NumPy scalar for an array without dimensions, as NumPy's own functions do."""
    return array if array.ndim else array[()]


def _stream(rng: object) -> Array:
    """Return [seed, index of the first element] of a counter-based stream."""
    if rng is None:
        rng = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    pair: tuple[Any, Any] = rng if isinstance(rng, tuple) and len(rng) == 2 else (rng, 0)
    try:
        if any(isinstance(part, bool | np.bool_) for part in pair):
            raise TypeError("True is no seed")
        return np.array([operator.index(part) for part in pair], np.uint64)
    except (TypeError, OverflowError):
        raise ValueError(
            "rng must be a seed in 0..2^64-1, a pair (seed, index of the first element), a numpy Generator or None; "
            f"got {rng!r}"
        ) from None


def random_stream(rng: RandomSource) -> tuple[int, int]:
    """Return the seed and the index of the first element of a stream; a Generator is drawn from once, for the seed."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(0, 1 << 64, dtype=np.uint64)), 0
    seed, first = _stream(rng)
    return int(seed), int(first)


def _round_randomly(plan: _Plan, x: Array, out: Array, rng: RandomSource) -> None:
    if not isinstance(rng, np.random.Generator):
        assert plan.seeded is not None
        plan.seeded(x, out, plan.constants, _stream(rng))
        return
    for start in range(0, x.size, _BLOCK):
        part = slice(start, min(start + _BLOCK, x.size))
        # a whole word an element: numpy would throw away what is left of one at the end of each call
        words = rng.integers(0, 1 << 32, part.stop - part.start, dtype=np.uint32)
        plan.kernel(x[part], out[part], plan.constants, (words >> np.uint32(16)).astype(np.uint16))


def round_to(
    x: ArrayLike,
    fmt: object,
    mode: str = "ties_to_even",
    *,
    subnormals: bool = True,
    saturate: bool = False,
    rng: RandomSource = None,
    out: Array | None = None,
) -> Array:
    """Round every element of x once, to a value of the format.

    Parameters
    ----------
    x : array_like
        Any shape. float32 and float64 keep their dtype. Lists, Python numbers and integers are taken exactly and come
        back as float64; float16, bfloat16 and the ml_dtypes floats are taken exactly and come back as float32.
    fmt : str, dtype or FloatFormat
        See `get_format`.
    mode : str
        ``ties_to_even`` (rne), ``ties_to_away`` (rna), ``toward_zero`` (rtz), ``toward_positive`` (rup),
        ``toward_negative`` (rdn), ``to_odd`` (rto), ``stochastic`` (sr).
    subnormals : bool
        False flushes subnormal results to zero. The default is gradual underflow.
    saturate : bool
        Clamp overflow and infinities to the largest value.
    rng : int, (int, int), numpy.random.Generator or None
        For ``stochastic`` only. A seed makes element i of x (in C order) use the i-th 16-bit number of the
        counter-based generator Threefry-2x32-13 (Salmon et al. 2011) under that key; the pair (seed, first) says that
        x begins at element `first` of the stream, so that chunks, rounded in any order or thread, give what the whole
        would. A Generator is drawn from in order, 32 bits an element, of which the high 16 are used. None takes a fresh
        seed from the system.
    out : ndarray, optional
        Where to write: x's shape, the dtype of the result; may be x itself.

    Returns
    -------
    ndarray
        Values of the format in float32 or float64; a NumPy scalar for a scalar x.

    Raises
    ------
    ValueError
        Unknown format or mode; x of another dtype (complex, bool, object, longdouble ...), or a masked array; `out`
        does not fit; bad `rng`.
    FloatingPointError
        This thread flushes subnormal numbers to zero, which no result would survive; the message names the cure.

    Notes
    -----
    Special cases are at the top of this module. Stochastic rounding moves x away from zero with probability
    p = (abs(x) - lo)/(hi - lo), where lo and hi are its neighbours in magnitude: exactly p where that is a multiple of
    2^-16, as it is for every float32 in the normal range of fp16, bf16 and tf32; else p rounded down to one.

    """
    fmt = get_format(fmt)
    rounding_mode = get_mode(mode)
    array = as_carrier(x, to_odd=True)
    if out is None:
        result = np.empty(array.shape, array.dtype)
    else:
        result = out
        refuse_masked(out)
        if not isinstance(out, np.ndarray) or out.shape != array.shape or out.dtype != array.dtype:
            got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
            raise ValueError(f"out must be an array of {array.dtype} {array.shape}, got {got}")
        if not out.flags.writeable:
            raise ValueError("out is read-only")
        if not out.flags.c_contiguous or (out is not x and np.may_share_memory(out, array)):
            result = np.empty(array.shape, array.dtype)
    source, target = np.ascontiguousarray(array).reshape(-1), result.reshape(-1)
    plan = _plan(fmt, rounding_mode, subnormals, saturate, array.dtype.itemsize == 8)
    if plan.seeded is None:
        plan.kernel(source, target, plan.constants)
    elif fmt.mantissa_bits > 14 and array.dtype.itemsize == 4:  # 16 more bits do not fit beside the significand
        wide = converted(source, np.float64)
        rounded = round_to(wide, fmt, mode, subnormals=subnormals, saturate=saturate, rng=rng)
        np.copyto(target, rounded, casting="same_kind")
    else:
        _round_randomly(plan, source, target, rng)
    if out is None:
        return _scalar_if_0d(result)
    if result is not out:
        np.copyto(out, result)
    return out


def compiled_rounding(fmt: FloatFormat, mode: RoundingMode, dtype: Any) -> tuple[_Kernel, Array]:
    """Return the loop that `round_to` runs for float32 or float64, and its constants.

    For callers that round block by block. It takes a contiguous block, where to write, the constants and, for
    ``stochastic``, an array of the seed and the index of the first element. Written onto the block itself it is several
    times slower: it cannot work on neighbours at once.
    """
    plan = _plan(fmt, mode, True, False, np.dtype(dtype) == np.float64)
    return plan.seeded or plan.kernel, plan.constants


def random_numbers(seed: int, first: int, count: int) -> NDArray[np.uint16]:
    """Return the 16-bit numbers that ``stochastic`` gives to the elements from `first` on, under a seed."""
    kernels = load_kernels()

    counter, skip = divmod(first, 4)  # a counter makes four
    words = np.empty(2 * ((skip + count + 3) // 4), np.uint32)
    start = 0
    while start < words.size:  # the low word of the counter must not wrap within a call
        high, low = divmod(counter + start // 2, 1 << 32)
        stop = min(words.size, start + 2 * ((1 << 32) - low))
        key = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
        kernels.stochastic.random_words(words[start:stop], np.uint32(low), np.uint32(high & 0xFFFFFFFF), *key)
        start = stop
    numbers: NDArray[np.uint16] = words.view(np.uint16)[skip : skip + count]
    return numbers


def code_dtype(fmt: object) -> np.dtype[Any]:
    """Return the unsigned dtype that holds the format's codes: uint8, uint16 or uint32, right-aligned."""
    bits = get_format(fmt).bits
    return np.dtype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


@lru_cache(maxsize=256)
def _encode_plan(fmt: FloatFormat, wide: bool) -> tuple[_Kernel, Array]:
    kernels = load_kernels()

    uint, _, width, fraction_bits, carrier_bias = _CARRIERS[wide]
    shares_subnormals = fmt.emin == 1 - carrier_bias  # then the fields match, subnormals too
    infinity = 0 if not fmt.has_infinity else (2**fmt.exponent_bits - 1) << fmt.mantissa_bits
    nan = 0
    if fmt.specials == "ieee":
        nan = infinity | 1 << max(fmt.mantissa_bits - 1, 0)
    elif fmt.specials == "fn":
        nan = 2 ** (fmt.bits - 1) - 1
    elif fmt.specials == "fnuz":
        nan = 2 ** (fmt.bits - 1)
    bits = partial(_magnitude_bits, wide)
    constants = [
        fraction_bits - fmt.mantissa_bits,
        (carrier_bias - fmt.bias) << fmt.mantissa_bits,
        bits(0.0 if shares_subnormals else 2.0 ** (fmt.mantissa_bits - fmt.emin)),
        bits(0.0 if shares_subnormals else fmt.smallest_normal),
        infinity,
        nan,
        fmt.bits - 1,
    ]
    return getattr(kernels.codes, f"encode_{width}"), np.array(constants, uint)


def encode(
    x: ArrayLike,
    fmt: object,
    mode: str = "ties_to_even",
    *,
    subnormals: bool = True,
    saturate: bool = False,
    rng: RandomSource = None,
) -> Array:
    """Round as `round_to` does and return the codes of the results.

    Returns
    -------
    ndarray
        uint8, uint16 or uint32 of x's shape, right-aligned (tf32 has 19 bits). NaN gets the code of a quiet NaN without
        payload, with its sign; ``fnuz`` formats have one NaN. In the formats of ml_dtypes that is what its casts give;
        NumPy's own casts to fp16 and fp32 keep the payload.

    """
    fmt = get_format(fmt)
    rounded = np.asarray(round_to(x, fmt, mode, subnormals=subnormals, saturate=saturate, rng=rng))
    codes = np.empty(rounded.shape, code_dtype(fmt))
    kernel, constants = _encode_plan(fmt, rounded.dtype.itemsize == 8)
    kernel(rounded.reshape(-1), codes.reshape(-1), constants)
    return _scalar_if_0d(codes)


def cast(
    x: ArrayLike,
    fmt: object,
    mode: str = "ties_to_even",
    *,
    subnormals: bool = True,
    saturate: bool = False,
    rng: RandomSource = None,
) -> Array:
    """Round as `round_to` does and return an array of the format's own NumPy or ml_dtypes dtype.

    Unlike ``astype`` of ml_dtypes, which rounds float64 through float32, this rounds once.

    Raises
    ------
    ValueError
        As `round_to`, and where the format has no dtype (tf32, custom formats).

    """
    fmt = get_format(fmt)
    if fmt.dtype is None:
        raise ValueError(f"{fmt} has no NumPy or ml_dtypes dtype; use round_to for values or encode for codes")
    codes = np.asarray(encode(x, fmt, mode, subnormals=subnormals, saturate=saturate, rng=rng))
    return _scalar_if_0d(codes.view(fmt.dtype))


def _decode_exactly(codes: Array, fmt: FloatFormat) -> Array:
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
        values = np.where(wide & (2 ** (fmt.bits - 1) - 1) == 2 ** (fmt.bits - 1) - 1, np.nan, values)
    elif fmt.specials == "fnuz":
        values = np.where(wide == 2 ** (fmt.bits - 1), np.nan, values)
    signed: Array = np.copysign(values, np.where(negative, -1.0, 1.0))
    return signed


@lru_cache(maxsize=64)
def _decode_table(fmt: FloatFormat, dtype: np.dtype[Any]) -> Array:
    return _decode_exactly(np.arange(2**fmt.bits), fmt).astype(dtype)


def decode(codes: ArrayLike, fmt: object, dtype: Any = np.float32) -> Array:
    """Return the values of codes.

    Parameters
    ----------
    codes : array_like of integers
        Codes of the format, right-aligned.
    fmt : str, dtype or FloatFormat
        See `get_format`.
    dtype : float32 or float64
        Both hold every value of every format exactly.

    Raises
    ------
    ValueError
        Codes are no integers or not below 2^bits; another dtype.
    FloatingPointError
        As `round_to`.

    """
    require_gradual_underflow()
    fmt = get_format(fmt)
    if dtype not in (np.float32, np.float64, "float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    target: np.dtype[Any] = np.dtype(dtype)
    array = as_array(codes)
    if array.size == 0:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise ValueError(f"codes must be integers, got {array.dtype}")
    if array.size and not (int(array.min()) >= 0 and int(array.max()) < 2**fmt.bits):
        raise ValueError(f"codes of {fmt} are in 0..{2**fmt.bits - 1:#x}, got {int(array.min())}..{int(array.max())}")
    values = _decode_table(fmt, target)[array] if fmt.bits <= 16 else _decode_exactly(array, fmt).astype(target)
    return _scalar_if_0d(np.asarray(values))


def spacing(x: ArrayLike, fmt: object) -> Array:
    """Return the distance between neighbouring values of the format in the binade of x (its ulp).

    That is 2^(e - mantissa_bits) with e = floor(log2(abs(x))) held within emin..emax; for zero the smallest subnormal;
    for infinities and NaN it is NaN. Shape and dtype as `round_to`, errors too.
    """
    fmt = get_format(fmt)
    array = as_carrier(x, to_odd=True)
    finite, zero = np.isfinite(array), array == 0
    _, exponent = np.frexp(np.where(finite & ~zero, array, 1))  # frexp warns about a signalling NaN
    exponent = np.where(zero, fmt.emin, np.clip(exponent - 1, fmt.emin, fmt.emax))
    result = np.ldexp(array.dtype.type(1), exponent - fmt.mantissa_bits)
    return _scalar_if_0d(np.where(finite, result, array.dtype.type(np.nan)))


def neighbours(x: ArrayLike, fmt: object) -> tuple[Array, Array]:
    """Return the largest value of the format below x and the smallest above x, both strictly.

    Where there is none (beyond the largest value of a format without infinities, beyond infinity, for NaN) it is NaN.
    Shape and dtype as `round_to`, errors too.
    """
    fmt = get_format(fmt)
    array = as_carrier(x, to_odd=True)
    return _scalar_if_0d(0 - _above(-array, fmt)), _scalar_if_0d(_above(array, fmt))


def _above(array: Array, fmt: FloatFormat) -> Array:
    """Return the smallest value of the format strictly above, NaN where there is none."""
    infinity = array.dtype.type(np.inf)
    with np.errstate(all="ignore"):
        next_up = np.nextafter(array, infinity)  # every value of the format is one of the carrier
    up = np.asarray(round_to(next_up, fmt, "toward_positive")) + array.dtype.type(0)  # no -0.0
    beyond = infinity if fmt.has_infinity else array.dtype.type(np.nan)
    above: Array = np.where(next_up > fmt.max, beyond, up)
    return np.where(np.isnan(array) | (array == infinity), array.dtype.type(np.nan), above)


def is_representable(x: ArrayLike, fmt: object) -> NDArray[np.bool_]:
    """Return where rounding into the format changes nothing: neither the value nor the sign of a zero.

    NaN counts as representable where the format has a NaN. Errors as `round_to`.
    """
    fmt = get_format(fmt)
    array = as_carrier(x, to_odd=True)
    rounded = np.asarray(round_to(array, fmt))
    same = (rounded == array) & (np.signbit(rounded) == np.signbit(array))
    result: NDArray[np.bool_] = _scalar_if_0d(np.where(np.isnan(array), fmt.has_nan, same))
    return result
