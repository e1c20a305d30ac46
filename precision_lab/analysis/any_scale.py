"""What any loss scale does to numbers, a power of two or not: counted over the numbers themselves.

A histogram answers for powers of two, which move the exponents and nothing else. Any other S moves numbers within their
binades, so that they have to be looked at again. What is counted is R(S x), the *exact* product rounded once: what a
backward pass in the format makes of a gradient x, had the loss been S times as large and everything else exact.
(Frameworks multiply the loss by S in float32; what that rounds is common to all gradients, a relative 2^-24.)

No product is computed. A threshold t is passed by S x where x passes t/S, and so by all doubles above the largest one
that does not exceed it, which is found in rational arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.analysis.histogram import Conversion
from precision_lab.analysis.loss_scalers import StaticLossScale
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import converted
from precision_lab.numerics.rounding import as_carrier

Array: TypeAlias = NDArray[Any]


def count_conversion(x: ArrayLike, fmt: FormatLike, *, loss_scale: float = 1.0) -> Conversion:
    """Count what a format makes of S x: what is flushed, subnormal, overflowed.

    Parameters
    ----------
    x : array_like
        Any shape; as for `ExponentHistogram.of`, but an integer that is no double is refused.
    fmt : format spec
        See `get_format`.
    loss_scale : float
        S, any positive finite number; of a power of two `ExponentHistogram.conversion` says the same.

    Raises
    ------
    ValueError
        Another dtype; unknown format; no such S; a masked array.
    FloatingPointError
        As `round_to`.

    Examples
    --------
    >>> c = count_conversion([2.0**-34, 2.0**-35, 66.0], "fp16", loss_scale=1000)
    >>> c.flushed, c.subnormal, c.overflowed  # 1000 * 2^-34 is just below 2^-24
    (1, 1, 1)

    """
    (conversion,) = count_conversions([as_carrier(x)], get_format(fmt), [loss_scale])
    return conversion


def count_conversions(chunks: Iterable[Array], fmt: FloatFormat, loss_scales: Sequence[float]) -> list[Conversion]:
    """Count what becomes of all chunks of a tensor at several scales, in one pass; parameters as `count_conversion`."""
    scales = [StaticLossScale(s).loss_scale for s in loss_scales]
    limits = [_limits(fmt, scale) for scale in scales]
    count = nonzero = finite = 0
    below = np.zeros((len(scales), 3), np.int64)
    for chunk in chunks:
        magnitudes = np.abs(converted(as_carrier(chunk), np.float64))
        count += magnitudes.size
        nonzero += int(np.count_nonzero(magnitudes))
        finite += int(np.count_nonzero(np.isfinite(magnitudes)))
        for counts, ends in zip(below, limits, strict=True):
            counts += [np.count_nonzero(magnitudes <= end) for end in ends]
    zero = count - nonzero
    return [
        Conversion(fmt, scale, count, zero, count - finite, flushed - zero, small - flushed, finite - stay)
        for scale, (flushed, small, stay) in zip(scales, below.tolist(), strict=True)
    ]


def _limits(fmt: FloatFormat, scale: float) -> tuple[float, float, float]:
    """Return the largest magnitudes that are flushed, that are not normal, that stay finite."""
    flushed = _largest(fmt.flush_threshold, scale, inclusive=True)
    small = _largest(fmt.subnormal_threshold, scale, inclusive=False) if fmt.mantissa_bits else flushed
    return flushed, small, _largest(fmt.overflow_threshold, scale, inclusive=not fmt.overflow_inclusive)


def _largest(threshold: float, scale: float, *, inclusive: bool) -> float:
    """Return the largest double x with scale * x below a threshold, or at it where it is inclusive."""
    exact = Fraction(threshold) / Fraction(scale)
    try:
        x = float(exact)
    except OverflowError:
        return np.finfo(np.float64).max.item()
    return x if Fraction(x) < exact or (inclusive and x == exact) else math.nextafter(x, 0)
