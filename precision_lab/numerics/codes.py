"""Codes: the bit patterns of a format's values, rounded from numbers and decoded to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.inputs import as_array
from precision_lab.numerics.plans import decode_exactly, decode_table, encode_plan
from precision_lab.numerics.rounding import Array, RandomSource, _scalar_if_0d, round_to
from precision_lab.support.environment import require_gradual_underflow


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
) -> Array:
    """Round as `round_to` does and return the codes of the results.

    Returns
    -------
    ndarray
        uint8, uint16 or uint32 of x's shape, right-aligned (tf32 has 19 bits). NaN gets the code of a quiet NaN without
        payload, with its sign; ``fnuz`` formats have one NaN. In the formats of ml_dtypes that is what its casts give;
        NumPy's own casts to fp16 and fp32 keep the payload.

    Examples
    --------
    >>> [hex(code) for code in encode([1.0, -2.0], "fp16").tolist()]
    ['0x3c00', '0xc000']

    """
    fmt = get_format(fmt)
    rounded = np.asarray(round_to(x, fmt, mode, subnormals=subnormals, saturate=saturate, rng=rng))
    codes = np.empty(rounded.shape, code_dtype(fmt))
    kernel, constants = encode_plan(fmt, rounded.dtype.itemsize == 8)
    kernel(rounded.reshape(-1), codes.reshape(-1), constants)
    return _scalar_if_0d(codes)


def cast(
    x: ArrayLike,
    fmt: FormatLike,
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

    Examples
    --------
    >>> cast([0.1, 3.0], "bf16")
    array([0.100098, 3], dtype=bfloat16)

    """
    fmt = get_format(fmt)
    if fmt.dtype is None:
        raise ValueError(f"{fmt} has no NumPy or ml_dtypes dtype; use round_to for values or encode for codes")
    codes = np.asarray(encode(x, fmt, mode, subnormals=subnormals, saturate=saturate, rng=rng))
    return _scalar_if_0d(codes.view(fmt.dtype))


def decode(codes: ArrayLike, fmt: FormatLike, dtype: Any = np.float32) -> Array:
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

    Examples
    --------
    >>> decode([0x3C00, 0xC000], "fp16").tolist()
    [1.0, -2.0]

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
    values = decode_table(fmt, target)[array] if fmt.bits <= 16 else decode_exactly(array, fmt).astype(target)
    return _scalar_if_0d(np.asarray(values))
