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
- **to_odd**, with p + 2 bits or more, is safe to round once more, to p bits (Boldo and Melquiond 2008). Beyond the
  largest value it gives the largest value even where that is even, as 448 of ``fp8_e4m3fn`` is. The odd last bit, by
  which the next rounding sees that something was lost, is then missing: at the top of that format rounding twice
  through ``to_odd`` is not safe.
- **subnormals=False** (flush to zero, FTZ): a *result* that is subnormal in the format becomes the zero of its sign.
  What rounds up to the smallest normal stays: 0x1.ffcp-15 to fp16 is 2^-14, though it is below it. Inputs are taken as
  they are: there is no DAZ (denormals are zero), which hardware often switches together with it.
- **Underflow** is gradual otherwise: below the smallest normal, values are multiples of the smallest subnormal.
- With one significand bit (``e5m0``) both neighbours may be odd: a tie then goes to the larger (IEEE 754-2019, 4.3.1).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import as_array, converted, integers_as_doubles, refuse_masked
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.plans import Plan, past_caches, past_shared_caches, plan_of, stored_plan
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.threads import LEAST, alone, in_slices, in_threads

Array: TypeAlias = NDArray[Any]
RandomSource: TypeAlias = "int | tuple[int, int] | np.random.Generator | None"


_BLOCK = 1 << 15  # numbers drawn from a Generator at a time
_PIECE = 1 << 16  # elements that are converted at a time


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
    codes = np.ascontiguousarray(array).view(f"u{array.itemsize}")
    if fmt.bits < 8:
        codes = codes & (2**fmt.bits - 1)  # the unused bits of the byte mean nothing
    values = np.empty(array.shape, np.float32)
    kernel, constants = stored_plan(fmt)
    kernel(codes.reshape(-1), values.reshape(-1), constants, past_caches(values))
    return values


def carrier_of(array: Array) -> np.dtype[Any]:
    """Return the dtype that `as_carrier` gives an array; raises as it does."""
    dtype = array.dtype
    if dtype in _CARRIERS:
        require_gradual_underflow()
        return dtype
    return as_carrier(np.empty(0, dtype)).dtype


def each_piece(array: Array, run: Callable[[Array, int], object]) -> None:
    """Call ``run(piece, start)`` for pieces that make up an array in C order, on threads where that is worth it.

    A piece is one-dimensional, contiguous and in the carrier. What is copied or converted for that is small enough to
    stay in the second-level cache.
    """
    if array.flags.c_contiguous:
        flat = _flat(array)
        if array.dtype in _CARRIERS:
            in_slices(lambda start, stop: run(flat[start:stop], start), flat.size)
            return
        array = flat
    if array.size <= _PIECE or not array.ndim:
        run(np.ascontiguousarray(as_carrier(array, to_odd=True)).reshape(-1), 0)
        return
    width = array.size // len(array)
    step = max(_PIECE // width, 1)

    def work(rows: Iterator[int]) -> None:
        for row in rows:
            piece = as_carrier(array[row : row + step], to_odd=True)
            run(np.ascontiguousarray(piece).reshape(-1), row * width)

    rows = range(0, len(array), step)
    if array.size >= LEAST:
        in_threads(work, rows)
    else:
        work(iter(rows))


_CARRIERS = np.dtype(np.float32), np.dtype(np.float64)
_FORMAT_OF_DTYPE = {fmt.dtype: fmt for fmt in FORMATS.values() if fmt.dtype is not None}


def _flat(array: Array) -> Array:
    return array if array.ndim == 1 else array.reshape(-1)


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


@lru_cache(maxsize=1024)
def _chosen(fmt: FormatLike, mode: str, subnormals: bool, saturate: bool, wide: bool) -> tuple[Plan, bool]:
    """Return the plan for arguments as they come, and whether it is one for float64."""
    chosen, rounding_mode = get_format(fmt), get_mode(mode)
    if rounding_mode is RoundingMode.STOCHASTIC and chosen.mantissa_bits > 14:
        wide = True  # 16 more bits do not fit beside the significand of a float32
    return plan_of(chosen, rounding_mode, subnormals, saturate, wide), wide


def _round(
    plan: Plan, x: Array, out: Array, rng: Array | np.random.Generator | None, start: int, past: bool = False
) -> None:
    """Round a piece that begins at element `start`; `rng` is what `_source` returned."""
    if rng is None:
        plan.kernel(x, out, plan.constants, past)
    elif isinstance(rng, np.random.Generator):
        for first in range(0, x.size, _BLOCK):
            part = slice(first, min(first + _BLOCK, x.size))
            # a whole word an element: numpy would throw away what is left of one at the end of each call
            words = rng.integers(0, 1 << 32, part.stop - part.start, dtype=np.uint32)
            plan.kernel(x[part], out[part], plan.constants, (words >> np.uint32(16)).astype(np.uint16))
    else:
        assert plan.seeded is not None
        plan.seeded(x, out, plan.constants, rng + np.array([0, start], np.uint64) if start else rng)


def _round_pieces(
    plan: Plan, wide: bool, array: Array, target: Array, rng: Array | np.random.Generator | None, past: bool
) -> None:
    """Round any array, with a plan that may be one for float64 where the result is float32."""

    def run(piece: Array, start: int) -> None:
        part = target[start : start + piece.size]
        if wide and part.dtype == np.float32:
            rounded = converted(piece, np.float64)
            _round(plan, rounded, rounded, rng, start)
            np.copyto(part, rounded, casting="same_kind")
        else:
            _round(plan, piece, part, rng, start, past)

    if isinstance(rng, np.random.Generator):
        with alone():  # numbers are drawn in the order of the elements
            each_piece(array, run)
    else:
        each_piece(array, run)


def _room(out: Any, x: object, array: Array, dtype: np.dtype[Any]) -> Array:
    """Return where to write: `out`, or an array that is to be copied there."""
    if type(out) is not np.ndarray:
        refuse_masked(out)
    if not isinstance(out, np.ndarray) or out.shape != array.shape or out.dtype != dtype:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be an array of {dtype} {array.shape}, got {got}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out is read-only")
    apart = flags.owndata and array.flags.owndata  # what has memory of its own shares none, which takes longer to ask
    fits = flags.c_contiguous and (out is x or (apart and out is not array) or not np.may_share_memory(out, array))
    return out if fits else np.empty(array.shape, dtype)


def round_to(
    x: ArrayLike,
    fmt: FormatLike,
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
        False flushes subnormal results to zero, not inputs. The default is gradual underflow.
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

    Examples
    --------
    >>> round_to([0.1, 1e-8, 70000.0], "fp16").tolist()
    [0.0999755859375, 0.0, inf]
    >>> round_to(0.1, "bf16", "toward_zero").item()
    0.099609375

    """
    array = as_array(x, to_odd=True)
    dtype = carrier_of(array)
    try:
        plan, wide = _chosen(fmt, mode, subnormals, saturate, dtype == np.float64)
    except TypeError:  # not hashable, and therefore none
        get_format(fmt)
        get_mode(mode)
        raise
    result = np.empty(array.shape, dtype) if out is None else _room(out, x, array, dtype)
    source = None
    if plan.seeded is not None:
        source = rng if isinstance(rng, np.random.Generator) else _stream(rng)
    if array.size < LEAST and array.dtype is dtype and array.flags.c_contiguous and wide is (dtype == np.float64):
        _round(plan, _flat(array), _flat(result), source, 0)  # at once: a small array would wait for what else there is
    else:
        past = result is out and past_shared_caches(result)  # new memory is in the caches, full of zeros
        _round_pieces(plan, wide, array, _flat(result), source, past)
    if out is None:
        return _scalar_if_0d(result)
    if result is not out:
        np.copyto(out, result)
    return out


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


def spacing(x: ArrayLike, fmt: FormatLike) -> Array:
    """Return the distance between neighbouring values of the format in the binade of x (its ulp).

    That is 2^(e - mantissa_bits) with e = floor(log2(abs(x))) held within emin..emax, at a power of two the distance to
    the neighbour outward; for zero the smallest subnormal; for infinities and NaN it is NaN. Shape and dtype as
    `round_to`, errors too.
    """
    fmt = get_format(fmt)
    array = as_carrier(x, to_odd=True)
    finite, zero = np.isfinite(array), array == 0
    _, exponent = np.frexp(np.where(finite & ~zero, array, 1))  # frexp warns about a signalling NaN
    exponent = np.where(zero, fmt.emin, np.clip(exponent - 1, fmt.emin, fmt.emax))
    result = np.ldexp(array.dtype.type(1), exponent - fmt.mantissa_bits)
    return _scalar_if_0d(np.where(finite, result, array.dtype.type(np.nan)))


def neighbours(x: ArrayLike, fmt: FormatLike) -> tuple[Array, Array]:
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


def is_representable(x: ArrayLike, fmt: FormatLike) -> NDArray[np.bool_]:
    """Return where rounding into the format changes nothing: neither the value nor the sign of a zero.

    NaN counts as representable where the format has a NaN. Errors as `round_to`.
    """
    fmt = get_format(fmt)
    array = as_carrier(x, to_odd=True)
    rounded = np.asarray(round_to(array, fmt))
    same = (rounded == array) & (np.signbit(rounded) == np.signbit(array))
    result: NDArray[np.bool_] = _scalar_if_0d(np.where(np.isnan(array), fmt.has_nan, same))
    return result
