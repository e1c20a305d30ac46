"""What does a sum come to in a narrow format? One tensor, every way of adding it up, beside the exact sum.

Means, norms, losses, batch gradients, the entries of a matrix product: all of them are sums, and in 16 bits the way in
which a sum is made decides whether it has two digits or none. `SUM_METHODS` holds the usual ones. What to expect:

- one term after the other stops at about 2^p times the size of a term (p: the bits of the significand);
- pairs, and a float32 accumulator, are accurate to about the rounding of the result;
- blocks help until the number of blocks is large itself;
- compensation (Kahan, Neumaier) doubles the number of bits: for 2 p bits of running sum it is exact enough, beyond
  them it stops too, since the compensation is a running sum in the same format;
- stochastic rounding does not stop; its error grows like the square root of the number of terms.

A norm is such a sum of squares, and then a root: `norm_every_way` takes it in the accumulator's format, before the cast
to the result's. So the norm of 64 times 300 in fp16 is 2400 with a float32 accumulator, and infinite without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from precision_lab.numerics.accumulation import AccumulationTrace, RoundedSum, Terms, accumulate, rounded_sum
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import converted
from precision_lab.numerics.rounding import as_carrier, round_to
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import PlainReport, header, number
from precision_lab.support.shown import Shown
from precision_lab.tensors.info import TensorInfo
from precision_lab.tensors.walk import Walk


@dataclass(frozen=True)
class SumMethod:
    """A way to add: the arguments of `accumulate` besides the terms and the format."""

    method: str
    mode: str = "ties_to_even"
    accumulator: str | None = None

    def arguments(self, seed: int) -> dict[str, Any]:
        """Return them by name, with the seed of stochastic rounding."""
        rng = seed if self.mode == "stochastic" else None
        return {"method": self.method, "mode": self.mode, "accumulator": self.accumulator, "rng": rng}


SUM_METHODS: dict[str, SumMethod] = {
    "sequential": SumMethod("sequential"),
    "stochastic": SumMethod("sequential", mode="stochastic"),
    "blocked": SumMethod("blocked"),
    "kahan": SumMethod("kahan"),
    "neumaier": SumMethod("neumaier"),
    "pairwise": SumMethod("pairwise"),
    "fp32 accumulator": SumMethod("sequential", accumulator="fp32"),
}
"""The ways, by name; blocks have 64 terms."""


def sum_every_way(terms: ArrayLike, fmt: FormatLike, *, seed: int = 0) -> dict[str, AccumulationTrace]:
    """Add up the terms by each of `SUM_METHODS`.

    Parameters
    ----------
    terms : array_like
        One-dimensional, as for `accumulate`; taken as they are.
    fmt : str, dtype or FloatFormat
        The format of results and, where the way names no other, of all partial sums.
    seed : int
        Of stochastic rounding.

    Raises
    ------
    ValueError
        As `accumulate`.

    """
    given = Terms(terms)  # one exact sum for all
    return {name: accumulate(given, fmt, **way.arguments(seed)) for name, way in SUM_METHODS.items()}


def norm_every_way(terms: ArrayLike, fmt: FormatLike, *, seed: int = 0) -> dict[str, RoundedSum]:
    """Take the Euclidean norm, its sum of squares by each of `SUM_METHODS`.

    The squares are computed in float64 (exact for float32 and narrower ones) and added in the accumulator's format;
    their root is rounded to that format, and then to the result's, ties to even.

    Parameters
    ----------
    terms : array_like
        One-dimensional, as for `accumulate`.
    fmt, seed
        As for `sum_every_way`.

    Returns
    -------
    dict of RoundedSum
        The norms and the exact one: to 2^-200 of itself, and without any error where it is a number of so many bits.

    Raises
    ------
    ValueError
        As `accumulate`.

    """
    fmt, x = get_format(fmt), converted(as_carrier(terms), np.float64)
    with np.errstate(all="ignore"):  # an infinity or a NaN shows in the results
        squares = Terms(x * x)
    norms = {}
    for name, way in SUM_METHODS.items():
        accumulator = get_format(way.accumulator or fmt)
        total = rounded_sum(squares, accumulator, **way.arguments(seed) | {"accumulator": None})
        with np.errstate(all="ignore"):
            root = np.sqrt(total.result)  # in float64: rounded again to 24 bits or fewer it is rounded once
        result = float(round_to(round_to(root, accumulator), fmt))
        norms[name] = RoundedSum(result, None if total.exact is None else _root(total.exact))
    return norms


def _root(square: Fraction) -> Fraction:
    """Return the square root to 2^-200 of itself; exactly where it has no more bits."""
    product = square.numerator * square.denominator
    shift = max(200 - product.bit_length() // 2, 0) + 1
    return Fraction(math.isqrt(product << 2 * shift), square.denominator << shift)


@dataclass(frozen=True, eq=False, slots=True)
class SummedTensor:
    """A tensor and what its sum, or its norm, came to.

    Attributes
    ----------
    info : TensorInfo
        Where it is from.
    terms : int
        How many of its elements, the first ones in the order of memory, were added up.
    exact : Fraction or None
        Their sum without any rounding, or their norm as `norm_every_way` has it; None where one is infinite or NaN.
    results : tuple of float
        What they came to, in the order of `SUM_METHODS`.

    """

    info: TensorInfo
    terms: int
    exact: Fraction | None
    results: tuple[float, ...]

    @property
    def sums(self) -> dict[str, RoundedSum]:
        """The sums by the names of `SUM_METHODS`."""
        return {name: RoundedSum(result, self.exact) for name, result in zip(SUM_METHODS, self.results, strict=True)}

    @property
    def exact_sum(self) -> float:
        """`exact`, rounded once to the nearest double; NaN where there is none."""
        return next(iter(self.sums.values())).exact_sum

    @property
    def worst(self) -> float:
        """The largest relative error of all ways, NaN counted as infinite."""
        errors = [RoundedSum(result, self.exact).relative_error for result in self.results]
        return max([np.inf if np.isnan(error) else error for error in errors], default=0.0)


@dataclass(frozen=True, eq=False)
class SumsResult(PlainReport, Shown):
    """The sums of all tensors of some files, or their norms.

    Attributes
    ----------
    tensors : tuple of SummedTensor
        Worst first.
    skipped : tuple of TensorInfo
        What is no floating-point tensor, or no parameter, with the reason.
    format : FloatFormat
        Of the sums.
    squares : bool
        Whether squares were added up and their root was taken.

    """

    tensors: tuple[SummedTensor, ...]
    skipped: tuple[TensorInfo, ...]
    format: FloatFormat
    squares: bool

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with iterators for its long lists."""
        return {
            **header("accumulation"),
            "format": self.format.name,
            "squares": self.squares,
            "tensors": (
                {
                    **tensor.info.described(),
                    "terms": tensor.terms,
                    "exact": number(tensor.exact_sum),
                    "sums": {
                        name: {
                            "result": number(computed.result),
                            "relative_error": number(computed.relative_error),
                        }
                        for name, computed in tensor.sums.items()
                    },
                }
                for tensor in self.tensors
            ),
            "skipped": (info.described() for info in self.skipped),
        }


def sum_tensors(
    paths: str | Path | Iterable[str | Path],
    fmt: FormatLike,
    *,
    squares: bool = False,
    limit: int = 2**18,
    seed: int = 0,
    dtype: FormatLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SumsResult:
    """Add up every parameter of the files, or what they hold of one, by each of `SUM_METHODS`.

    Parameters
    ----------
    paths : path, or iterable of path
        Files and folders as `read_tensors` takes them.
    fmt : str, dtype or FloatFormat
        The format of the sums.
    squares : bool
        Take the norm: the root of the sum of the squares, as `norm_every_way` does.
    limit : int
        At most this many elements of each tensor, the first ones.
    seed : int
        Of stochastic rounding.
    dtype : format spec, optional
        What the raw items of ``.npy`` and ``.npz`` files are.
    progress : callable, optional
        Called with the number of tensors done and of all tensors.

    Raises
    ------
    TensorFileError
        A file cannot be read, or none has parameters.
    ValueError
        Unknown format; no paths; `limit` below 1.

    """
    fmt = get_format(fmt)
    limit = check_integer("limit", limit, 1)
    places: list[Any] = [paths] if isinstance(paths, str | Path) else list(paths)
    if not places:
        raise ValueError("nothing to add up; name a file or a folder")
    walk = Walk(places, dtype=dtype, chunk_bytes=1 << 20, parameters=True)  # chunks are mostly more than the limit
    tensors: list[SummedTensor] = []
    for info, chunks in walk:
        terms = _first(chunks, limit)
        if squares:
            sums = list(norm_every_way(terms, fmt, seed=seed).values())
        else:
            added = Terms(terms)
            sums = [rounded_sum(added, fmt, **way.arguments(seed)) for way in SUM_METHODS.values()]
        tensors.append(SummedTensor(info, terms.size, sums[0].exact, tuple(one.result for one in sums)))
        if progress is not None:
            progress(len(tensors), walk.tensors)
    tensors.sort(key=lambda tensor: -tensor.worst)
    return SumsResult(tuple(tensors), tuple(walk.skipped), fmt, squares)


def _first(chunks: Iterable[Any], limit: int) -> Any:
    """Return the first elements of a stream as float64."""
    parts: list[Any] = []
    room = limit
    for chunk in chunks:
        part = as_carrier(chunk[:room])
        parts.append(part.copy() if part.dtype == np.float64 else converted(part, np.float64))  # chunks share a buffer
        room -= parts[-1].size
        if room == 0:
            break
    return np.concatenate(parts) if parts else np.zeros(0)
