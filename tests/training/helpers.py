"""What optimizers compute, in exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from precision_lab.numerics import reference
from precision_lab.numerics.formats import FloatFormat, get_format

FP32_FORMAT = get_format("fp32")


class Exact:
    """Operations on rational numbers whose results are rounded to float32 and then into a format."""

    def __init__(self, fmt: FloatFormat) -> None:
        self.fmt = fmt

    def __call__(self, x: Fraction | float) -> Fraction:
        first = reference.round_to(x, FP32_FORMAT)
        return Fraction(first if self.fmt == FP32_FORMAT else reference.round_to(first, self.fmt))


def f32(x: Fraction | float) -> Fraction:
    return Fraction(reference.round_to(x, FP32_FORMAT))


def exact_grow(m: Fraction, r: Fraction, v: Fraction, to: Callable[[Fraction], Fraction]) -> tuple[Fraction, Fraction]:
    x = to(m + v)
    r = to(r + to(v - to(x - m)))
    m = to(x + r)
    return m, to(r - to(m - x))


def exact_product(m: Fraction, r: Fraction, factor: float, fmt: FloatFormat) -> tuple[Fraction, Fraction]:
    to = Exact(fmt)
    high = to(factor)
    low = to(Fraction(factor) - high)
    x = to(high * m)
    error = to(high * m - x)
    r = to(to(low * m + to(high * r)) + error)
    m = to(x + r)
    return m, to(r - to(m - x))
