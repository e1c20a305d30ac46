"""Dot products and matrix products of which every step is rounded to a chosen accumulator format.

Products are taken as they are: R(s + a * b) is the *exact* sum of the accumulator's value s and the exact product,
rounded once; special cases are those of `accumulation`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.numerics.accumulation import sum_constants
from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import converted
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.rounding import RandomSource, as_carrier, random_numbers, random_stream, round_to

Array: TypeAlias = NDArray[Any]
_Stream: TypeAlias = tuple[int, int] | None


def _taken(x: ArrayLike, inputs: FloatFormat | None, name: str) -> tuple[Array, np.dtype[Any]]:
    """Return an operand, rounded to `inputs`, as float32, and the dtype it came in."""
    array = as_carrier(x, to_odd=True)  # a large integer that was rounded is no float32
    rounded = array if inputs is None else np.asarray(round_to(array, inputs))
    narrow = converted(rounded, np.float32)
    if rounded.dtype == np.float64 and not np.array_equal(narrow, rounded, equal_nan=True):
        raise ValueError(f"{name} has values that float32 cannot hold; name their format in inputs=")
    return narrow, array.dtype


def dot(
    a: ArrayLike,
    b: ArrayLike,
    *,
    inputs: FormatLike | None = None,
    accumulator: FormatLike,
    output: FormatLike | None = None,
    round_products: bool = False,
    mode: str = "ties_to_even",
    rng: RandomSource = None,
) -> Any:
    """Return the dot product of two vectors, every step of the accumulator rounded.

    It is ``matmul`` of a row and a column: parameters, rounding and errors are as there.

    Returns
    -------
    numpy.float32 or numpy.float64
        A value of `output`.

    Examples
    --------
    >>> float(dot([1.0] * 300, [1.0] * 300, accumulator="bf16"))
    256.0

    """
    x, y = as_carrier(a, to_odd=True), as_carrier(b, to_odd=True)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"a and b must be vectors of the same length, got shapes {x.shape} and {y.shape}")
    product = matmul(
        x[np.newaxis],
        y[:, np.newaxis],
        inputs=inputs,
        accumulator=accumulator,
        output=output,
        round_products=round_products,
        mode=mode,
        rng=rng,
    )
    return product[0, 0]


def _operands(a: ArrayLike, b: ArrayLike, inputs: FormatLike | None) -> tuple[Array, Array, np.dtype[Any]]:
    """Return both matrices as float32, rounded to `inputs`, and the dtype of the result."""
    source = None if inputs is None else get_format(inputs)
    left, of_left = _taken(a, source, "a")
    right, of_right = _taken(b, source, "b")
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(f"a and b must be matrices (m, k) and (k, n), got shapes {left.shape} and {right.shape}")
    return left, right, np.result_type(of_left, of_right)


def matmul(
    a: ArrayLike,
    b: ArrayLike,
    *,
    inputs: FormatLike | None = None,
    accumulator: FormatLike,
    output: FormatLike | None = None,
    round_products: bool = False,
    mode: str = "ties_to_even",
    rng: RandomSource = None,
) -> Array:
    """Return the product of two matrices, every step of every accumulator rounded.

    For each element of the result, with k ascending from acc = 0: acc = R(acc + a_ik * b_kj), the product exact and the
    sum rounded once, as a fused multiply-add into the accumulator's format does.

    Parameters
    ----------
    a, b : array_like
        Shapes (m, k) and (k, n).
    inputs : str, dtype or FloatFormat, optional
        The elements are first rounded to this format, ties to even (where that should be another mode, round them with
        `round_to` and leave this out). Default: they are taken as they are, if float32 holds their values.
    accumulator : str, dtype or FloatFormat
        The format of every partial sum.
    output : str, dtype or FloatFormat, optional
        What the accumulator's result is rounded to. Default: the accumulator's format.
    round_products : bool
        Round the product too: acc = R(acc + R(a_ik * b_kj)).
    mode : str
        Of products, sums and output: any of `round_to`.
    rng : int, (int, int), numpy.random.Generator or None
        For ``stochastic``. Element (i, j) has the place e = i * n + j; in step k its sum uses the number k * m * n + e
        of the stream of `round_to`; with `round_products` its product uses 2 * k * m * n + e, its sum
        (2 * k + 1) * m * n + e. The output uses the numbers that follow. A Generator is drawn from once, for the seed.

    Returns
    -------
    ndarray
        Values of `output`, shape (m, n), float64 if a or b counts as float64 (see `round_to`), else float32.

    Raises
    ------
    ValueError
        Shapes that do not fit; values that float32 does not hold and no `inputs`; unknown formats or mode; bad `rng`.
    FloatingPointError
        As `round_to`.

    See Also
    --------
    matmul_fp32_accumulate : the sums in float32, as libraries and tensor cores do.

    Examples
    --------
    >>> matmul([[1.0, 2.0]], [[3.0], [4.0]], accumulator="fp32").tolist()
    [[11.0]]

    """
    left, right, dtype = _operands(a, b, inputs)
    wide = get_format(accumulator)
    last = wide if output is None else get_format(output)
    rounding_mode = get_mode(mode)
    stream = random_stream(rng) if rounding_mode is RoundingMode.STOCHASTIC else None
    (rows, steps), columns = left.shape, right.shape[1]
    # loops over columns want many; the random numbers of a column alone follow one another as those of a row do
    if columns < min(rows, _LANES) and (stream is None or columns == 1):
        sums = _sums(right.T, left.T, wide, round_products, rounding_mode, stream).T.copy()
    else:
        sums = _sums(left, right, wide, round_products, rounding_mode, stream)
    if last != wide:
        np.copyto(sums, np.nan, where=np.isnan(sums))  # without the sign that fnuz formats give it
        seed, first = stream or (0, 0)
        first += sums.size * steps * (2 if round_products else 1)
        round_to(sums, last, rounding_mode, rng=(seed, first), out=sums)
    return sums.astype(dtype, copy=False)


_LANES = 16  # columns that are worked on at once

_TILE = 1 << 11  # accumulators that are held in the first-level cache at a time
_FEW = 4  # elements that are summed one by one
_TERMS = 1 << 15  # of which so many are held at a time
_PANEL = (512, 128)  # rows and columns of the right matrix that stay in the second-level cache


def _sums(
    left: Array, right: Array, fmt: FloatFormat, round_products: bool, mode: RoundingMode, stream: _Stream
) -> Array:
    """Multiply in whatever way is the fastest."""
    if left.shape[0] * right.shape[1] <= _FEW:
        return _few_sums(left, right, fmt, round_products, mode, stream)
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    extents = _extents(left, right)
    if mode is not RoundingMode.TIES_TO_EVEN:
        return _matmul_by_fields(left, right, fmt, round_products, mode, stream, _rows_of_doubles(extents, fmt))
    by_addition = _rows_by_addition(left, right, extents, fmt, round_products)
    if by_addition.all():
        return _matmul_by_addition(left, right, fmt, round_products, extents.low)
    sums = np.empty((left.shape[0], right.shape[1]), np.float32)
    if by_addition.any():  # else there may be signalling NaNs, about which a cast within warns
        low = extents.low[by_addition]
        sums[by_addition] = _matmul_by_addition(left[by_addition], right, fmt, round_products, low)
    rest, of_doubles = ~by_addition, _rows_of_doubles(extents, fmt)
    sums[rest] = _matmul_by_fields(left[rest], right, fmt, round_products, mode, stream, of_doubles[rest])
    return sums


def _matmul_by_fields(
    left: Array,
    right: Array,
    fmt: FloatFormat,
    round_products: bool,
    mode: RoundingMode,
    stream: _Stream,
    of_doubles: NDArray[np.bool_],
) -> Array:
    """Multiply in any format and mode; `of_doubles`: the rows of which `_rows_of_doubles` holds."""
    kernels = load_kernels().products

    rows, columns = left.shape[0], right.shape[1]
    constants = sum_constants(fmt, mode)
    name = f"add_{'rounded_' * round_products}products"
    simpler = f"{name}_of_doubles{'_downward' * (mode is RoundingMode.TOWARD_NEGATIVE)}"
    result = np.empty((rows, columns), np.float32)
    width, height = min(columns, _TILE), max(1, _TILE // max(columns, 1))
    room = _aligned(width * height, np.float64)
    starts = sorted({*range(0, rows, height), *(np.flatnonzero(np.diff(of_doubles)) + 1).tolist()})
    for column in range(0, columns, max(width, 1)):
        panel = np.ascontiguousarray(right[:, column : column + width])
        for row, end in pairwise([*starts, rows]):
            some = slice(row, end)
            tile = result[some, column : column + width]
            sums = room[: tile.size].reshape(tile.shape)
            sums[:] = 0
            place = None
            if stream is not None:
                seed, first = stream
                place = np.array([seed, first + row * columns + column, rows * columns], np.uint64)
            kernel = getattr(kernels, simpler if of_doubles[row] else name)
            kernel(sums, left[some], panel, constants, place)
            tile[:] = sums
    return result


def _few_sums(
    left: Array, right: Array, fmt: FloatFormat, round_products: bool, mode: RoundingMode, stream: _Stream
) -> Array:
    """Multiply where the result has few elements: each is a sum like those of `accumulate`."""
    kernels = load_kernels().sums

    constants = sum_constants(fmt, mode)
    columns = np.ascontiguousarray(right.T)
    result = np.zeros((len(left), len(columns)))
    roundings = result.size * (2 if round_products else 1)  # a step
    factors = numbers = None
    for start in range(0, left.shape[1], _TERMS):
        part = slice(start, start + _TERMS)
        for place, (i, j) in enumerate(np.ndindex(result.shape)):
            x, y = left[i, part], columns[j, part]
            if stream is not None:
                seed, first = stream
                drawn = random_numbers(seed, first + start * roundings, x.size * roundings)
                of_sum = roundings - result.size + place  # what comes before is the product's
                factors, numbers = drawn[place::roundings].copy(), drawn[of_sum::roundings].copy()
            result[i, j] = kernels.add_dot(result[i, j], x, y, constants, round_products, factors, numbers)
    return result.astype(np.float32)


class _Extents(NamedTuple):
    """Of each row of a product, over its steps and all columns."""

    steps: int
    total: NDArray[np.float64]  # a bound of the sum of the magnitudes of products
    high: NDArray[np.float64]  # one of the largest; infinities and NaN where there are any
    low: NDArray[np.float64]  # a power of two that divides all products


def _extents(left: Array, right: Array) -> _Extents:
    kernels = load_kernels().products

    rows, steps = left.shape
    largest, lowest = np.empty(steps, np.float32), np.empty(steps, np.float32)
    kernels.extents_of_rows(right, largest, lowest)
    extents = _Extents(steps, *(np.empty(rows) for _ in range(3)))
    kernels.extents_of_products(left, largest, lowest, *extents[1:])
    return extents


def _rows_of_doubles(extents: _Extents, fmt: FloatFormat) -> NDArray[np.bool_]:
    """Return for which rows every sum is finite and a double, as it is and after it was lifted (kernels/sums.py).

    Let g be the power of two that divides all products of the row. It divides the accumulators, too, and the rounded
    products: rounding to a spacing of at least g gives a multiple of that, rounding to a smaller one leaves a multiple
    of g as it is. So all exact sums are multiples of g, which are doubles up to 2^53 g. Those below the smallest normal
    N are lifted by N, to less than 2 N.

    A rounding adds at most a spacing: 2 u of what it rounds, or the smallest subnormal. From |s| <= (1 + 2 u) (|s'| +
    |x|) + smallest follows, over n steps, the bound below: the sums grow by (1 + 2 u)^(n + 1) at most, which is below
    1 / (1 - x) and below 2^(1.5 x) for x = 2 u (n + 1).
    """
    steps = extents.steps
    x = 2 * fmt.unit_roundoff * (steps + 1)
    growth = 1 / (1 - x) if x < 0.5 else math.ldexp(1.0, min(math.ceil(1.5 * x), 1000))
    bound = growth * (extents.total + 2 * steps * fmt.smallest_subnormal) * 1.001
    fits = np.maximum(bound, 2 * fmt.smallest_normal) <= 2.0**53 * extents.low
    rows: NDArray[np.bool_] = fits & (bound <= fmt.max) & (fmt.mantissa_bits > 0)
    return rows


def _rows_by_addition(
    left: Array, right: Array, extents: _Extents, fmt: FloatFormat, round_products: bool
) -> NDArray[np.bool_]:
    """Return for which rows of `left` every sum may be rounded twice: to even in the carrier, then into the format.

    Let P be the significand bits of a product, p those of the format, w the carrier's (float64: 53, float32: 24), S a
    bound of all sums, g a power of two that divides all products of the row; it divides all sums too, as does the
    smallest subnormal. Let s be a sum of a product x and an accumulator y that is no value of the carrier, 2^e <= |s|,
    and q = 2^(e-p+1) the spacing of the format there.

    - If x has the bits that are lost, |x| < 2^(e-w+1+P), for P + p <= w - 3 below q/4: both roundings end at y, also
      where y is a power of two and the spacing below it q/2.
    - If y has them, |y| < 2^(e-w+1+p), while x has P bits and is therefore a value of the format, a midpoint, or at
      least 2^(e-P) away from all of these. In the first case both roundings end at x, in the last on the same side
      of the midpoint, since |y| < 2^(e-P-1). There remains the midpoint, where the carrier loses the direction of
      y. It cannot occur if the largest product is at most 2^(w-2) times what divides y: then s is a value of the
      carrier.

    With rounded products both summands have p bits: the first item holds for 2 p + 2 <= w, and is the only one.
    """
    rows, steps = left.shape
    precision = _precision(left) + _precision(right)
    width = 24 if round_products else 53
    fits = precision <= 24 and 2 * fmt.precision + 2 <= 24 if round_products else precision + fmt.precision <= 50
    if not fits or not fmt.has_negative_zero:  # the loops keep the sign of what underflows
        return np.zeros(rows, np.bool_)
    total, high, low = extents.total, extents.high, extents.low
    # Rump 2012: n terms that sum up to S in magnitude leave sums of at most (1 + n u) S; each underflow adds to S
    u, smallest = fmt.unit_roundoff, fmt.smallest_subnormal
    # infinities and NaN fail the comparisons
    bound = (1 + steps * u) * ((1 + u) * total + 2 * steps * smallest) * 1.001
    if round_products:  # exact products; and the constant that is added is finite
        enough = (low >= 2.0**-149) & (bound <= 2.0 ** (102 + fmt.mantissa_bits))
    else:
        enough = high <= 2.0 ** (width - 2) * np.maximum(low, smallest)
    rows_that_fit: NDArray[np.bool_] = enough & (bound <= fmt.max)
    return rows_that_fit


def _precision(x: Array) -> int:
    """Return the significand bits that the float32 values of x need."""
    fraction = int(np.bitwise_or.reduce(x.reshape(-1).view(np.uint32), initial=0)) & 0x7FFFFF
    return 24 - (23 if not fraction else (fraction & -fraction).bit_length() - 1)


def _aligned(count: int, real: Any) -> Array:
    """Return room that begins at a cache line: vectors that straddle two take half as long again."""
    line, size = 64, count * np.dtype(real).itemsize
    room = np.empty(size + line, np.uint8)
    start = -room.ctypes.data % line
    return room[start : start + size].view(real)


def _matmul_by_addition(
    left: Array, right: Array, fmt: FloatFormat, round_products: bool, low: NDArray[np.float64]
) -> Array:
    """Multiply where `_rows_by_addition` allows it; `low` is that of the extents.

    Where the smallest subnormal divides all products, it divides all sums, and those below the smallest normal are
    values of the format: rounding to the smaller spacing that goes with their exponent leaves them as they are. Nothing
    underflows, and from +0 on no sum becomes -0. Elsewhere the sign of a zero matters only where a sum ends as one.
    """
    if (low >= fmt.smallest_subnormal).all():
        return _by_addition(left, right, fmt, round_products, "_in_units")
    result = _by_addition(left, right, fmt, round_products, "_unsigned")
    zero = result == 0
    if zero.any():
        rows, columns = zero.any(axis=1), zero.any(axis=0)
        result[np.ix_(rows, columns)] = _by_addition(left[rows], right[:, columns], fmt, round_products, "")
    return result


def _by_addition(left: Array, right: Array, fmt: FloatFormat, round_products: bool, variant: str) -> Array:
    """Multiply, panel by panel, in the loop of that name."""
    kernels = load_kernels().products

    real, bits = (np.float32, 23) if round_products else (np.float64, 52)
    kernel = getattr(kernels, ("rounded_even" if round_products else "fused_even") + variant)
    constants = real(fmt.smallest_normal), real(1.5 * 2.0 ** (bits - fmt.mantissa_bits))
    (rows, steps), all_columns = left.shape, right.shape[1]
    result = np.empty((rows, all_columns), np.float32)
    height, width = _PANEL
    room_for_sums, room_for_panel = _aligned(rows * width, real), _aligned(height * width, real)
    for column in range(0, all_columns, width):
        columns = slice(column, min(column + width, all_columns))
        some = columns.stop - column
        sums = room_for_sums[: rows * some].reshape(rows, some)
        sums[:] = 0
        for step in range(0, steps, height):
            part = right[step : step + height, columns]
            panel = room_for_panel[: part.size].reshape(part.shape)
            panel[:] = part
            kernel(sums, left[:, step : step + height], panel, *constants)
        result[:, columns] = sums
    return result


def _require_gradual_underflow_of_blas(left: Array, right: Array) -> None:
    """Raise FloatingPointError where the BLAS has threads that flush subnormal numbers and these could have met some.

    They are made when NumPy is imported, and keep what was set then. All sums of products of at least 2^-78 are
    multiples of 2^-125: none is subnormal. Else a product of the same shape, all subnormal, is tried.
    """
    low_left, low_right = (float(np.min(np.abs(x), initial=np.inf, where=x != 0)) for x in (left, right))
    if low_left * low_right >= 2.0**-78:
        return
    small = np.float32(2.0**-70)
    if not np.matmul(np.full_like(left, small), np.full_like(right, small)).all() and left.size:
        raise FloatingPointError(
            "subnormal numbers are flushed to zero in threads of NumPy's BLAS, which were made where that was switched "
            "on; start Python anew and import numpy before anything that switches it on, or set OPENBLAS_NUM_THREADS=1"
        )


def matmul_fp32_accumulate(
    a: ArrayLike,
    b: ArrayLike,
    *,
    inputs: FormatLike | None = None,
    output: FormatLike | None = None,
    mode: str = "ties_to_even",
) -> Array:
    """Return the product of two matrices with exact products and float32 sums: tensor-core style, by NumPy's BLAS.

    The order of the sums, and with it the last bits, are the library's own. Products of inputs of at most 12
    significand bits (tf32, fp16, bf16 and below) are exact in float32 as long as they neither overflow nor underflow
    there; of wider ones they are exact where the library uses fused multiply-adds.

    Parameters
    ----------
    a, b, inputs, output
        As for `matmul`. Default output: fp32, nothing is rounded after the sums.
    mode : str
        Of the output: any deterministic mode of `round_to`.

    Returns
    -------
    ndarray
        Values of `output`, shape (m, n), float64 if a or b counts as float64, else float32.

    Raises
    ------
    ValueError
        As `matmul`; ``stochastic``: round the float32 result with `round_to`.
    FloatingPointError
        As `round_to`, of this thread or of those of the BLAS.

    """
    left, right, dtype = _operands(a, b, inputs)
    rounding_mode = get_mode(mode)
    if rounding_mode is RoundingMode.STOCHASTIC:
        raise ValueError("mode must be deterministic here; for stochastic round the float32 result with round_to")
    with np.errstate(all="ignore"):
        sums = np.matmul(left, right)
    _require_gradual_underflow_of_blas(left, right)
    if output is not None:
        round_to(sums, output, rounding_mode, out=sums)
    result: Array = sums.astype(dtype, copy=False)
    return result
