"""What is taken for a number or an array of numbers, so that nothing is lost before the first rounding.

`numpy.asarray` drops the mask of a masked array, takes True for 1, and rounds an integer beyond 2^53 to float64 where
it stands in a list beside a float; a cast from integers to float64 rounds too. Here the first two are refused. Such an
integer is rounded *to odd*: float64 has 53 significand bits and a format at most 24, and what is rounded to odd with
two bits more and then into the format is rounded once (Boldo and Melquiond 2008). Where no format follows, it is
refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.torch_arrays import array_of, is_tensor
from precision_lab.support.arguments import is_integer

Array: TypeAlias = NDArray[Any]

_EXACT = 2**53  # float64 holds all integers up to here
_LARGEST_BITS = 1024  # of an integer in the range of float64
_BOOLS: set[type] = {bool, np.bool_}
_NUMBERS = (int, float, np.integer, np.float16, np.float32)  # what may stand in a list beside large integers


def is_number(value: object) -> TypeGuard[int | float | np.integer[Any] | np.floating[Any]]:
    """Return whether it is an integer or a float, also of ml_dtypes; a bool is neither."""
    if is_integer(value) or isinstance(value, float | np.floating):
        return True
    return isinstance(value, np.generic) and any(value.dtype == fmt.dtype for fmt in FORMATS.values())


def converted(array: Array, dtype: DTypeLike) -> Array:
    """Return an array in another dtype (itself where it has it), without warnings about NaN and the ends of the range.

    Processors say "invalid" where they convert a signalling NaN, and NumPy warns then.
    """
    with np.errstate(all="ignore"):
        result: Array = array.astype(dtype, copy=False)
    return result


def refuse_masked(x: object) -> None:
    """Raise ValueError if x is a masked array, or a list with one."""
    if _has_mask(x):
        raise ValueError(
            "cannot take a masked array, whose masked elements would count; pass x.compressed(), the others alone, or "
            "x.filled(0)"
        )


def as_array(x: ArrayLike, *, to_odd: bool = False) -> Array:
    """Return what `numpy.asarray` does, where that loses nothing.

    Parameters
    ----------
    x : array_like
        A list of numbers, or a Python integer, that no integer dtype holds becomes float64. A tensor of torch gives
        its elements (see `array_of`).
    to_odd : bool
        Round integers that are no float64 to odd. Otherwise those of a list are refused; for an array of integers see
        `integers_as_doubles`.

    Raises
    ------
    ValueError
        A masked array, or a list with one; a list with bools among its numbers; an integer that is no float64; a tensor
        without elements in memory.

    """
    if type(x) is np.ndarray:
        return x
    if is_tensor(x):
        return array_of(x)
    refuse_masked(x)
    if _is_list(x) and any(hasattr(kind, "untyped_storage") for kind in set(map(type, x))):
        x = [array_of(item) if is_tensor(item) else item for item in x]
    array = np.asarray(x)
    if not (_is_list(x) or isinstance(x, int)) or array.dtype.kind not in "iufO":
        return array
    kinds = set(map(type, x)) if _is_list(x) and array.ndim == 1 else {type(x)}
    large = array.dtype == object or (array.dtype == np.float64 and bool((np.abs(array) >= _EXACT).any()))
    if kinds <= {int, float} and not (large and int in kinds):
        return array  # the usual lists, in little time
    elements = _elements(x, array.shape)
    kinds = set(map(type, elements.flat))
    if array.dtype != object and kinds & _BOOLS:
        raise ValueError("cannot take an array of numbers and bools; pass np.asarray(x, float) if True stands for 1")
    known = not kinds & _BOOLS and all(issubclass(kind, _NUMBERS) for kind in kinds)
    return _doubles(array, elements, to_odd) if large and known else array


def _elements(x: object, shape: tuple[int, ...]) -> Array:
    """Return the numbers of a nested list as the objects that they are."""
    elements = np.array(x, object)
    listed = [v.item() if isinstance(v, np.ndarray) else v for v in elements.flat]  # arrays without dimensions
    elements = np.empty(len(listed), object)
    elements[:] = listed
    return elements.reshape(shape)


def _doubles(array: Array, elements: Array, to_odd: bool) -> Array:
    """Return the elements as float64; the array as it is where an integer is beyond its range."""
    listed = [int(n) if is_integer(n) else float(n) for n in elements.flat]
    if any(isinstance(n, int) and n.bit_length() > _LARGEST_BITS for n in listed):
        return array
    doubles = [_integer_to_odd(n) if isinstance(n, int) else n for n in listed]
    if not to_odd:
        for n, double in zip(listed, doubles, strict=True):
            if isinstance(n, int) and n != double:
                raise _no_double(n)
    return np.array(doubles, np.float64).reshape(elements.shape)


def integers_as_doubles(array: Array, *, to_odd: bool) -> Array:
    """Return an array of integers as float64.

    Parameters
    ----------
    array : ndarray of integers
        Any shape.
    to_odd : bool
        Round what is no float64 to odd.

    Raises
    ------
    ValueError
        There is an integer that is no float64, and it must not be rounded.

    """
    doubles: Array = array.astype(np.float64)
    small = array.dtype.itemsize < 8 or not array.size
    if small or (int(array.min()) >= -_EXACT and int(array.max()) <= _EXACT):
        return doubles
    flat = array.reshape(-1)
    head = (flat >> 11 << 11).astype(np.float64)  # at most 53 bits, exact as the 11 others are
    rest = (flat & 2047).astype(np.float64)
    if not to_odd:
        inexact = np.flatnonzero(doubles.reshape(-1) - head != rest)
        if inexact.size:
            raise _no_double(int(flat[inexact[0]]))
        return doubles
    odd = np.empty(flat.size)
    load_kernels().products.add_to_odd(head, rest, odd)
    return odd.reshape(array.shape)


def _integer_to_odd(n: int) -> float:
    """Round an integer of at most 1024 bits to float64, to odd."""
    magnitude = abs(n)
    excess = max(magnitude.bit_length() - 53, 0)
    kept = magnitude >> excess
    if kept << excess != magnitude:
        kept |= 1
    return math.ldexp(-kept if n < 0 else kept, excess)


def _no_double(n: int) -> ValueError:
    shown = str(n) if n.bit_length() <= 128 else f"of {n.bit_length()} bits"
    return ValueError(
        f"the integer {shown} is no float64, and its exact value is needed here; round it first, with "
        "round_to(x, FORMAT), or with np.asarray(x, float) to the closest float64"
    )


def _is_list(x: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(x, Sequence) and not isinstance(x, str | bytes | bytearray | memoryview)


def _has_mask(x: object) -> bool:
    """Return whether x is a masked array or a list with one, which exists only where numpy.ma was imported."""
    if "numpy.ma" not in sys.modules:
        return False
    if isinstance(x, np.ma.MaskedArray):
        return True
    # by types first: a list of a million floats has one
    return _is_list(x) and not set(map(type, x)) <= {int, float} and any(map(_has_mask, x))
