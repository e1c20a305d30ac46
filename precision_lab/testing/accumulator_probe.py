"""How a dot product is asked: with vectors that are zero but for a few terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.formats import FloatFormat
from precision_lab.support.environment import require_gradual_underflow

Array: TypeAlias = NDArray[Any]
Dot: TypeAlias = Callable[[Any, Any], Any]
Terms: TypeAlias = "Mapping[int, float | tuple[float, float]]"


class NoAnswerError(Exception):
    """The function raised, or returned no number."""


@dataclass(frozen=True)
class Probe:
    """The dot product of vectors that are zero but for a few terms."""

    dot: Dot
    fmt: FloatFormat
    length: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the vectors."""
        return self.fmt.dtype or np.dtype(np.float32)

    def reaches(self, *values: float) -> bool:
        """Whether each of these few-bit numbers is a product of two normal numbers of the source."""
        low, high = 2 * self.fmt.emin, 2 * self.fmt.emax - 1
        return all(low <= math.frexp(value)[1] - 1 <= high for value in values)

    def __call__(self, terms: Terms) -> float:
        """Return the sum of a few products at their places; a term alone is split into two factors."""
        x, y = np.zeros(self.length), np.zeros(self.length)
        for place, term in terms.items():
            x[place], y[place] = term if isinstance(term, tuple) else _factors(term)
        return self.number(x, y)

    def number(self, x: Array, y: Array) -> float:
        """Return the result as a Python float."""
        result = self.ask(x, y)
        if shape := tuple(getattr(result, "shape", ())):
            raise NoAnswerError(f"it returned an array of shape {shape}, not a number, for vectors of length {x.size}")
        try:
            return float(result)
        except (TypeError, ValueError):
            raise NoAnswerError(f"it returned {type(result).__name__} {result!r:.60}, not a number") from None

    def ask(self, x: Array, y: Array) -> Any:
        """Return what the function returns."""
        with np.errstate(all="ignore"):
            left, right = x.astype(self.dtype), y.astype(self.dtype)
            try:
                return self.dot(left, right)
            except Exception as error:
                text = " ".join(str(error).split())
                raise NoAnswerError(
                    f"it raised {type(error).__name__}: {text[:200]} for two {self.dtype} vectors of length {x.size}"
                ) from error
            finally:  # it may have switched it on, here, where the next vectors are made
                require_gradual_underflow("since the function was called")


def _factors(value: float) -> tuple[float, float]:
    """Return two numbers with half of the exponent each."""
    if value == 0:
        return 0.0, 0.0
    exponent = math.frexp(value)[1] - 1
    half = exponent // 2
    return math.ldexp(value, half - exponent), 2.0 ** (exponent - half)


def check_it_is_a_dot(probe: Probe) -> None:
    """Raise NoAnswerError where vectors of one element have no product."""
    for i in range(probe.length):
        for terms, wanted in (({i: 1.0}, 1.0), ({i: (1.0, 0.0)}, 0.0), ({i: (0.0, 1.0)}, 0.0), ({i: -1.0}, -1.0)):
            got = probe(terms)
            if got != wanted:
                raise NoAnswerError(f"it is no dot product: {terms[i]} at i = {i} gives {got}, not {wanted}")


class Scale(NamedTuple):
    """Exponents: of the largest number to use, and of the largest that the result should have."""

    top: int
    ceiling: int


def mask_exponent(scale: Scale, bits: int) -> int:
    """Return the exponent of a number with spacings that the result can hold."""
    return min(scale.top, scale.ceiling + bits - 2)
