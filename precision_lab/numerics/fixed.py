"""Matrix products, sums and elementary functions whose bits are stated, and so the same on every machine.

A BLAS adds in an order of its own, fuses products into sums where the processor can, and is another one elsewhere; the
exponential of a libm or of NumPy is one of several, chosen at run time by the processor's instructions, and of float32
not the nearest value. Each is as good as the next, but a training magnifies the last bit, so that no result built on
them can be compared to the bit. Here the order is part of the definition and every step is an IEEE 754 operation:

=============================  ========================================================================================
function                       what it is
=============================  ========================================================================================
`matmul`, `dot`                acc = R(acc + R(a * b)), k ascending, from acc = +0; R rounds to the dtype, ties to even
`sum`, `mean`, `norm`          acc = R(acc + x), ascending, from acc = +0; `mean` divides that once; `norm` is the root
                               of `dot` with itself
`exp log tanh sigmoid`         of float32: the exact value, rounded once (on all 2^32 patterns). Of float64: an error of
                               at most 0.54 ulp in the normal range, the same bits everywhere
`log2`, `log10`, `geomspace`   in float64, within an ulp; logarithms are exact where they are integers
`power`                        a whole power of a float64, from 120 bits rounded once
=============================  ========================================================================================

All take float32 or float64 and return that dtype, where no other is said. `precision_lab.numerics.reference` has the
same one number at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.numerics.environment import load_fixed_kernels
from precision_lab.numerics.inputs import as_array

Array = NDArray[Any]


def matmul(a: ArrayLike, b: ArrayLike) -> Array:
    """Return a @ b, one rounded product after the other added to each sum, k ascending from +0.

    Parameters
    ----------
    a, b : array_like, shapes (..., m, k) and (..., k, n)
        Both float32 or both float64; the same leading dimensions. They may lie in memory in any way.

    Returns
    -------
    ndarray, shape (..., m, n)
        A new array of their dtype.

    Raises
    ------
    ValueError
        Other dtypes, or shapes that do not fit.

    """
    left, right = _real(a), _real(b)
    if left.dtype != right.dtype:
        raise ValueError(f"a and b must have one dtype, got {left.dtype} and {right.dtype}")
    leading, (rows, steps) = left.shape[:-2], left.shape[-2:] if left.ndim > 1 else (0, -1)
    if right.ndim < 2 or right.shape[:-1] != (*leading, steps):
        raise ValueError(f"a and b must have shapes (..., m, k) and (..., k, n), got {left.shape} and {right.shape}")
    out = np.empty((*leading, rows, right.shape[-1]), left.dtype)
    kernels = load_fixed_kernels()
    if not leading:
        kernels.matmul(left, right, out)
    else:
        count = math.prod(leading)
        kernels.matmul_each(*(x.reshape(count, *x.shape[-2:]) for x in (left, right, out)))
    return out


def dot(x: ArrayLike, y: ArrayLike) -> float:
    """Return the dot product of all elements, in C order: one rounded product after the other added up from +0.

    Raises
    ------
    ValueError
        Other dtypes than float32 and float64, or shapes that differ.

    """
    a, b = _real(x), _real(y)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"x and y must be alike, got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    return float(sum(a * b))


def norm(x: ArrayLike) -> float:
    """Return the Euclidean norm of all elements: the square root of `dot` with itself."""
    return math.sqrt(dot(x, x))


def sum(x: ArrayLike, axis: int | None = None, *, keepdims: bool = False) -> Array:
    """Add up one after the other, ascending, from +0, every sum rounded.

    Parameters
    ----------
    x : array_like
        float32 or float64.
    axis : int, optional
        Default: all elements, in C order.
    keepdims : bool
        Keep the axis, with length 1.

    Raises
    ------
    ValueError
        Another dtype.
    numpy.exceptions.AxisError
        There is no such axis.

    """
    fixed_kernels = load_fixed_kernels()
    array = _real(x)
    if axis is None:
        before, count, after, shape = 1, array.size, 1, (1,) * array.ndim if keepdims else ()
    else:
        axis = np.lib.array_utils.normalize_axis_index(axis, array.ndim)
        before, count, after = math.prod(array.shape[:axis]), array.shape[axis], math.prod(array.shape[axis + 1 :])
        shape = (*array.shape[:axis], *(1,) * keepdims, *array.shape[axis + 1 :])
    sums = np.zeros((before, after), array.dtype)
    fixed_kernels.sum_middle(np.ascontiguousarray(array).reshape(before, count, after), sums)
    return sums.reshape(shape)[()]


def mean(x: ArrayLike, axis: int | None = None, *, keepdims: bool = False) -> Array:
    """Return `sum` divided by the number of terms, rounded."""
    array = _real(x)
    count = array.size if axis is None else array.shape[axis]
    result: Array = sum(array, axis, keepdims=keepdims) / array.dtype.type(count)
    return result


def sum_by_group(rows: Array, groups: NDArray[np.integer[Any]], count: int) -> Array:
    """Add up the rows of each group, in their order, from +0.

    Parameters
    ----------
    rows : array, shape (n, width)
        float32 or float64.
    groups : integer array, shape (n,)
        Of each row the group, from 0 to count - 1.
    count : int
        Number of groups.

    Returns
    -------
    ndarray, shape (count, width)

    Raises
    ------
    ValueError
        A group is out of range, or the shapes do not fit.

    """
    fixed_kernels = load_fixed_kernels()
    array = _real(rows)
    if array.ndim != 2 or groups.shape != array.shape[:1]:
        raise ValueError(f"rows must be (n, width) and groups (n,), got {array.shape} and {groups.shape}")
    if groups.size and not (groups.min() >= 0 and groups.max() < count):
        raise ValueError(f"groups must lie in 0..{count - 1}, got {groups.min()}..{groups.max()}")
    sums = np.zeros((count, array.shape[1]), array.dtype)
    fixed_kernels.sum_by_group(np.ascontiguousarray(array), np.ascontiguousarray(groups), sums)
    return sums


def exp(x: ArrayLike) -> Array:
    """Return the exponential, element by element; errors and accuracy at the top of this module."""
    return _each("exp", x)


def log(x: ArrayLike) -> Array:
    """Return the natural logarithm; -inf of either zero, NaN of what is negative, without a warning."""
    return _each("log", x)


def tanh(x: ArrayLike) -> Array:
    """Return the hyperbolic tangent; it keeps the sign of a zero."""
    return _each("tanh", x)


def sigmoid(x: ArrayLike) -> Array:
    """Return the logistic function 1 / (1 + exp(-x))."""
    return _each("sigmoid", x)


@overload
def log2(x: float) -> float: ...
@overload
def log2(x: Array) -> Array: ...
def log2(x: float | Array) -> float | Array:
    """Return the binary logarithm in float64, exact for powers of two; zeros and negative numbers as `log`."""
    fixed_kernels = load_fixed_kernels()
    return _each("log_to_base", x, *fixed_kernels.PER_LN2)


@overload
def log10(x: float) -> float: ...
@overload
def log10(x: Array) -> Array: ...
def log10(x: float | Array) -> float | Array:
    """Return the decimal logarithm in float64, exact for powers of ten; zeros and negative numbers as `log`."""
    fixed_kernels = load_fixed_kernels()
    return _each("log_to_base", x, *fixed_kernels.PER_LN10)


def _each(loop: str, x: ArrayLike, *constants: float) -> Array:
    fixed_kernels = load_fixed_kernels()
    array = _real(x)
    out = np.empty(array.shape, np.float64 if constants else array.dtype)
    function: Callable[..., None] = getattr(fixed_kernels, loop)
    function(np.ascontiguousarray(array).reshape(-1), out.reshape(-1), *constants)
    return out[()]


_POWER_BITS = 128


@lru_cache(maxsize=1 << 15)  # the runs of a sweep take the same steps
def power(base: float, exponent: int) -> float:
    """Return base^exponent from 120 bits, rounded once: the nearest double but in one of 2^60 cases.

    Parameters
    ----------
    base : float
        At least 0, finite.
    exponent : int
        At least 0; 0^0 is 1.

    Raises
    ------
    ValueError
        One of them is out of range.
    OverflowError
        The power is beyond the largest double.

    """
    if not 0 <= base < math.inf or exponent < 0:
        raise ValueError(f"base must be finite and at least 0, and exponent at least 0, got {base!r} and {exponent!r}")
    # of the steps of Adam, which ask for one exponent after the other, each costs one product
    first, rest = _pair(base, exponent & -_POWERS), _pair(base, exponent % _POWERS)
    return math.ldexp(*_shortened(first[0] * rest[0], first[1] + rest[1]))


_POWERS = 64


@lru_cache(maxsize=1 << 10)
def _pair(base: float, exponent: int) -> tuple[int, int]:
    """Return base^exponent as an integer times a power of two."""
    significand, scale = base.as_integer_ratio()
    square, result = (significand, 1 - scale.bit_length()), (1, 0)
    while exponent:
        if exponent & 1:
            result = _shortened(result[0] * square[0], result[1] + square[1])
        square = _shortened(square[0] * square[0], 2 * square[1])
        exponent >>= 1
    return result


def _shortened(significand: int, exponent: int) -> tuple[int, int]:
    """Keep the first bits of an integer times a power of two."""
    spare = max(significand.bit_length() - _POWER_BITS, 0)
    return significand >> spare, exponent + spare


def geomspace(first: float, last: float, count: int) -> NDArray[np.float64]:
    """Return `count` numbers, at least two, from the positive `first` to `last`, both exact, in equal ratios."""
    ends = log([float(first), float(last)])
    between = exp(ends[0] + (ends[1] - ends[0]) / (count - 1) * np.arange(1, count - 1, dtype=np.float64))
    return np.concatenate([[first], between, [last]], dtype=np.float64)


def _real(x: ArrayLike) -> Array:
    array = as_array(float(x) if isinstance(x, int) else x)
    if array.dtype.char not in "fd" or not array.dtype.isnative:
        raise ValueError(f"must be float32 or float64, got {array.dtype}")
    return array if array.flags.aligned else array.copy()
