"""Dot products and matrix products of which every step is rounded to a chosen accumulator format.

Products are taken as they are: R(s + a * b) is the *exact* sum of the accumulator's value s and the exact product,
rounded once; special cases are those of `accumulation`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.numerics.accumulation import accumulator, as_words, sum_constants
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
    narrow = rounded if rounded.dtype == np.float32 else converted(rounded, np.float32)
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
    return left, right, of_left if of_left == of_right else np.result_type(of_left, of_right)


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
    steps = left.shape[1]
    sums = _sums(left, right, wide, round_products, rounding_mode, stream)
    if last != wide:
        np.copyto(sums, np.nan, where=np.isnan(sums))  # without the sign that fnuz formats give it
        seed, first = stream or (0, 0)
        first += sums.size * steps * (2 if round_products else 1)
        round_to(sums, last, rounding_mode, rng=(seed, first), out=sums)
    return sums.astype(dtype, copy=False)


_FEW = 4  # elements that are summed one by one
_TERMS = 1 << 15  # of which so many are held at a time
_BLOCK = 512  # rows and columns that are worked on together
_PACKED = 1 << 15  # numbers that are packed at a time, if a chunk of steps has not more
_DRAWN = 1 << 18  # random numbers that are drawn at a time, if half a chunk has not more
_NONE = np.empty(0, np.uint16), np.empty((0, 0, 0), np.int64)


def _sums(
    left: Array, right: Array, fmt: FloatFormat, round_products: bool, mode: RoundingMode, stream: _Stream
) -> Array:
    """Multiply: in tiles, or where the result has few elements one by one."""
    few = len(left) * right.shape[1] <= _FEW
    return (_few_sums if few else _in_tiles)(left, right, fmt, round_products, mode, stream)


class _Tiled(NamedTuple):
    """How tiles are added."""

    add: Any
    add_anything: Any
    constants: Array
    scale: float  # of sums


@lru_cache(maxsize=256)
def _tiled(fmt: FloatFormat, mode: RoundingMode, round_products: bool) -> _Tiled:
    """Choose the loops and make their constants."""
    products, tiles = load_kernels().products, load_kernels().tiles
    kind = {
        RoundingMode.TIES_TO_EVEN: tiles.EVEN,
        RoundingMode.TIES_TO_AWAY: tiles.FIELDS,
        RoundingMode.TOWARD_ZERO: tiles.FIELDS,
        RoundingMode.STOCHASTIC: tiles.CHANCE,
    }.get(mode, tiles.BY_BIT)
    of_sums = accumulator(fmt, mode)._asdict()
    power, scale = 2.0 ** of_sums["discarded"], tiles.SMALLEST / fmt.smallest_normal
    as_they_are = ("dither", "dither_below", "by_bit", "number_shift", "nan")
    scaled = ("largest", "beyond", "beyond_negative", "infinity", "negative_infinity")
    constants = tiles.Rounding(
        power=power,
        split=1 - power,
        up=1.5 * power,
        down=-1.5 * power,
        keep=2**64 - 1 - of_sums["low"],
        to_top=63 - of_sums["deciding"],
        **{name: of_sums[name] for name in as_they_are},
        **{name: of_sums[name] * scale for name in scaled},
        **{name: int(np.float64(of_sums[name]).view(np.uint64)) for name in ("negative_zero", "cancelled")},
    )
    loops = products.ADD[kind, round_products], products.ADD_ANYTHING[kind == tiles.CHANCE, round_products]
    return _Tiled(*loops, as_words(constants), scale)


@lru_cache(maxsize=256)
def _blocks(size: int, whole: int) -> list[tuple[int, int]]:
    """Return where blocks of rows or columns begin and end, all about as large; they begin at multiples of `whole`."""
    count = -(-size // _BLOCK)
    edges = [size * i // count // whole * whole for i in range(count)]
    return list(zip(edges, [*edges[1:], size], strict=True))


def _in_tiles(
    left: Array, right: Array, fmt: FloatFormat, round_products: bool, mode: RoundingMode, stream: _Stream
) -> Array:
    """Multiply in tiles: a block of the result after the other, so many steps at a time as fit the caches."""
    loops, of_tiles = load_kernels().products, load_kernels().tiles
    height, width, chunk = of_tiles.tile_rows(), of_tiles.WIDTH, of_tiles.DEPTH
    add, add_anything, constants, scale = _tiled(fmt, mode, round_products)
    (rows, steps), columns = left.shape, right.shape[1]
    if columns < width:  # there must be a whole tile
        right = right[:, np.minimum(np.arange(width), columns - 1)]
    wide = right.shape[1]
    result = np.empty((rows, wide), np.float32)
    flat_left, flat_right = _flat(left), _flat(right)
    spare = np.zeros(chunk, np.float32)
    each = 2 if round_products else 1
    place = None if stream is None else np.array(stream, np.uint64)
    for row, below in _blocks(rows, height):
        for column, end in _blocks(wide, width):
            panels, tiles = -(-(below - row) // height), -(-(end - column) // width)
            deep = max(_PACKED // (panels * height + tiles * width) // chunk, 1) * chunk
            at_once, numbers, places = panels, *_NONE
            if place is not None:
                of_panel = each * height * (end - column)  # a step
                deep = min(deep, max(_DRAWN // of_panel // chunk * chunk, chunk // 2), max(steps, 1))
                at_once = min(max(_DRAWN // (of_panel * deep), 1), panels)
                # if those of a row are apart they begin and end within four; the last tile reads beyond
                words = np.empty(at_once * deep * each * height * (-(-columns // 4) + 2) * 2, np.uint32)
                numbers, places = words.view(np.uint16), np.empty((at_once, deep * each, height), np.int64)
            shape = panels, tiles, max(-(-min(deep, steps) // chunk), 1), height
            room = np.empty(loops.room_of.py_func(shape, 8).end)  # it begins within eight
            for step in range(0, max(steps, 1), deep):
                depth = min(deep, steps - step)
                start = row, column, step, end
                loops.pack(flat_left, flat_right, (rows, steps, wide), start, depth, scale, room, shape, spare)
                for panel in range(0, panels, at_once):
                    some = panel, min(panel + at_once, panels)
                    if place is not None:
                        first = row + panel * height, column, min(end, columns), step * each
                        loops.draw(place, (rows, columns), first, depth * each, words, places)
                    most = 1
                    while not add(room, shape, numbers, places, constants, some, end - column, depth):
                        add_anything(room, shape, numbers, places, constants, some, end - column, depth, most)
                        most *= 2  # where anything occurs once, it often goes on
            loops.unpack(room, shape, 1 / scale, result.reshape(-1), (rows, wide), row, column, end)
    return result if wide == columns else np.ascontiguousarray(result[:, :columns])


def _flat(x: Array) -> Array:
    """Return a vector that a loop takes: contiguous, and of the kind that may be written to."""
    return (x if x.flags.c_contiguous and x.flags.writeable else x.copy()).reshape(-1)


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
