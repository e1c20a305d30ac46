"""Codes: the bit patterns of a format's values, rounded from numbers and decoded to them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import as_array
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.plans import Kernel, decode_plan, encode_plan, even_encode_plan, past_caches, widen
from precision_lab.numerics.rounding import (
    _PIECE,
    Array,
    RandomSource,
    _flat,
    _room,
    _scalar_if_0d,
    carrier_of,
    each_piece,
    random_stream,
    round_to,
)
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.threads import LEAST, alone, in_slices

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_STRAIGHT = {_FLOAT32, FORMATS["bf16"].dtype}  # what the loops from numbers to codes take


class _Way(NamedTuple):
    """What arguments come to, as they are given: to look at them again and again takes longer than a small array."""

    format: FloatFormat
    codes: np.dtype[Any]
    mode: RoundingMode
    straight: tuple[Kernel, Array] | None  # from `_STRAIGHT` to codes at once


@lru_cache(maxsize=1024)
def _way(fmt: FormatLike, mode: str, subnormals: bool, saturate: bool) -> _Way:
    chosen, rounding_mode = get_format(fmt), get_mode(mode)
    even = rounding_mode is RoundingMode.TIES_TO_EVEN and subnormals
    return _Way(chosen, code_dtype(chosen), rounding_mode, even_encode_plan(chosen, saturate) if even else None)


@lru_cache(maxsize=1024)
def _way_back(fmt: FormatLike) -> tuple[FloatFormat, np.dtype[Any], Kernel, Array]:
    chosen = get_format(fmt)
    return chosen, code_dtype(chosen), *decode_plan(chosen)


def code_dtype(fmt: FormatLike) -> np.dtype[Any]:
    """Return the unsigned dtype that holds the format's codes: uint8, uint16 or uint32, right-aligned."""
    bits = get_format(fmt).bits
    return np.dtype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


def encode(
    x: ArrayLike,
    fmt: FormatLike,
    mode: str = "ties_to_even",
    *,
    subnormals: bool = True,
    saturate: bool = False,
    rng: RandomSource = None,
    out: Array | None = None,
) -> Array:
    """Round as `round_to` does and return the codes of the results.

    Parameters
    ----------
    x, fmt, mode, subnormals, saturate, rng
        As in `round_to`.
    out : ndarray, optional
        Where to write: x's shape, the dtype of the result (see `code_dtype`); it may share memory with x.

    Returns
    -------
    ndarray
        uint8, uint16 or uint32 of x's shape, right-aligned (tf32 has 19 bits); `out` where it is given. NaN gets the
        code of a quiet NaN without payload, with its sign; ``fnuz`` formats have one NaN. In the formats of ml_dtypes
        that is what its casts give; NumPy's own casts to fp16 and fp32 keep the payload.

    Raises
    ------
    ValueError
        As `round_to`.
    FloatingPointError
        As `round_to`.

    Examples
    --------
    >>> [hex(code) for code in encode([1.0, -2.0], "fp16").tolist()]
    ['0x3c00', '0xc000']

    """
    return _encoded(x, fmt, mode, subnormals, saturate, rng, out, as_codes=True)


def cast(
    x: ArrayLike,
    fmt: FormatLike,
    mode: str = "ties_to_even",
    *,
    subnormals: bool = True,
    saturate: bool = False,
    rng: RandomSource = None,
    out: Array | None = None,
) -> Array:
    """Round as `round_to` does and return an array of the format's own NumPy or ml_dtypes dtype.

    Unlike ``astype`` of ml_dtypes, which rounds float64 through float32, this rounds once.

    Parameters
    ----------
    x, fmt, mode, subnormals, saturate, rng
        As in `round_to`.
    out : ndarray, optional
        Where to write: x's shape, the format's dtype; it may share memory with x.

    Returns
    -------
    ndarray
        Of x's shape and the format's dtype; `out` where it is given.

    Raises
    ------
    ValueError
        As `round_to`, and where the format has no dtype (tf32, custom formats).
    FloatingPointError
        As `round_to`.

    Examples
    --------
    >>> cast([0.1, 3.0], "bf16")
    array([0.100098, 3], dtype=bfloat16)

    """
    return _encoded(x, fmt, mode, subnormals, saturate, rng, out, as_codes=False)


def decode(codes: ArrayLike, fmt: FormatLike, dtype: Any = None, *, out: Array | None = None) -> Array:
    """Return the values of codes.

    Parameters
    ----------
    codes : array_like of integers
        Codes of the format, right-aligned; any shape.
    fmt : str, dtype or FloatFormat
        See `get_format`.
    dtype : float32 or float64, optional
        Both hold every value of every format exactly. The default is that of `out`, or float32.
    out : ndarray, optional
        Where to write: the shape of the codes, the dtype of the result; it may share memory with them.

    Returns
    -------
    ndarray
        The values; `out` where it is given. NaN is quiet, without payload, with its sign.

    Raises
    ------
    ValueError
        Codes are no integers or not below 2^bits; another dtype; `out` does not fit.
    FloatingPointError
        As `round_to`.

    Examples
    --------
    >>> decode([0x3C00, 0xC000], "fp16").tolist()
    [1.0, -2.0]

    """
    require_gradual_underflow()
    try:
        fmt, dtype_of_codes, kernel, constants = _way_back(fmt)
    except TypeError:  # not hashable, and therefore none
        get_format(fmt)
        raise
    if dtype is None:
        wanted = _FLOAT64 if isinstance(out, np.ndarray) and out.dtype == _FLOAT64 else _FLOAT32
    elif dtype in (np.float32, np.float64, "float32", "float64"):
        wanted = np.dtype(dtype)
    else:
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    array = _as_codes(codes, fmt, dtype_of_codes)
    result = np.empty(array.shape, wanted) if out is None else _room(out, codes, array, wanted)
    source, values = _flat(array), _flat(result)
    past = past_caches(result)
    if wanted == _FLOAT32 and source.size < LEAST:
        kernel(source, values, constants, past)
        return _given(out, result)

    def run(start: int, stop: int) -> None:
        if wanted == _FLOAT32:
            kernel(source[start:stop], values[start:stop], constants, past)
            return
        narrow = np.empty(min(stop - start, _PIECE), np.float32)
        for first in range(start, stop, _PIECE):
            part = slice(first, min(first + _PIECE, stop))
            within = narrow[: part.stop - first]
            kernel(source[part], within, constants, False)
            widen(within, values[part])

    in_slices(run, source.size)
    return _given(out, result)


def _as_codes(codes: ArrayLike, fmt: FloatFormat, dtype: np.dtype[Any]) -> Array:
    """Return codes of the format as a contiguous array of their dtype."""
    array = as_array(codes)
    if array.dtype == dtype and dtype.itemsize * 8 == fmt.bits and array.flags.c_contiguous:
        return array  # every pattern is a code
    if array.size == 0:
        return array.astype(dtype)
    if array.dtype.kind not in "iu":
        raise ValueError(f"codes must be integers, got {array.dtype}")
    every_pattern = array.dtype.kind == "u" and array.dtype.itemsize * 8 <= fmt.bits
    if not every_pattern and not (int(array.min()) >= 0 and int(array.max()) < 2**fmt.bits):
        raise ValueError(f"codes of {fmt} are in 0..{2**fmt.bits - 1:#x}, got {int(array.min())}..{int(array.max())}")
    return np.ascontiguousarray(array, dtype).reshape(array.shape)  # without dimensions it would get one


def _encoded(
    x: ArrayLike,
    fmt: FormatLike,
    mode: str,
    subnormals: bool,
    saturate: bool,
    rng: RandomSource,
    out: Array | None,
    *,
    as_codes: bool,
) -> Array:
    """Round to codes, in an array of their dtype or of the format's own."""
    try:
        way = _way(fmt, mode, subnormals, saturate)
    except TypeError:  # not hashable, and therefore none
        get_format(fmt)
        get_mode(mode)
        raise
    dtype = way.codes if as_codes else way.format.dtype
    if dtype is None:
        raise ValueError(f"{way.format} has no NumPy or ml_dtypes dtype; use round_to for values or encode for codes")
    array = as_array(x, to_odd=True)
    if array.dtype in _STRAIGHT:
        require_gradual_underflow()
    else:
        carrier_of(array)  # refuses what is not a number, too
    result = np.empty(array.shape, dtype) if out is None else _room(out, x, array, dtype)
    codes = _flat(result)
    if not as_codes:
        codes = codes.view(way.codes)
    straight, constants = way.straight or (None, None)
    past = past_caches(result)
    if straight is not None and array.dtype in _STRAIGHT and array.flags.c_contiguous:
        source = _flat(array if array.dtype == _FLOAT32 else array.view(np.uint16))
        if source.size < LEAST:
            straight(source, codes, constants, past)
        else:
            in_slices(lambda start, stop: straight(source[start:stop], codes[start:stop], constants, past), source.size)
        return _given(out, result)
    in_turn = isinstance(rng, np.random.Generator)
    stream = random_stream(rng) if way.mode is RoundingMode.STOCHASTIC and not in_turn else None

    def run(piece: Array, start: int) -> None:
        for first in range(0, piece.size, _PIECE):
            source = piece[first : first + _PIECE]
            target = codes[start + first :][: source.size]
            if straight is not None and source.dtype == _FLOAT32:
                straight(source, target, constants, past)
                continue
            drawn = rng if stream is None else (stream[0], (stream[1] + start + first) % 2**64)
            rounded = round_to(source, way.format, way.mode, subnormals=subnormals, saturate=saturate, rng=drawn)
            kernel, of_values = encode_plan(way.format, rounded.dtype == _FLOAT64)
            kernel(rounded, target, of_values)

    if in_turn:
        with alone():
            each_piece(array, run)
    else:
        each_piece(array, run)
    return _given(out, result)


def _given(out: Array | None, result: Array) -> Array:
    """Return what was written, in `out` where there is one."""
    if out is None:
        return _scalar_if_0d(result)
    if result is not out:
        np.copyto(out, result)
    return out
