"""What was found out about an accumulator, put together again in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from precision_lab.numerics import reference
from precision_lab.testing.accumulator_probe import Probe
from precision_lab.testing.addition_trees import Tree, leaves_of

_FEW = 3  # bits of factors


class Model(NamedTuple):
    """What was found, to be computed in exact arithmetic."""

    tree: Tree | None
    bits: Mapping[frozenset[int], int]
    default_bits: int | None
    mode: str
    product_bits: int | None
    output_bits: int | None
    output_mode: str
    emin: int | None
    output_emin: int | None


def _rounded(x: Fraction, bits: int | None, mode: str, emin: int | None) -> Fraction:
    if bits is None or x == 0:
        return x
    exponent = reference.floor_log2(abs(x))
    spacing = Fraction(2) ** ((exponent if emin is None else max(exponent, emin)) - bits + 1)
    k = math.floor(abs(x) / spacing)
    position = reference.Candidates(k, spacing, abs(x) / spacing - k)
    magnitude = (k + reference.rounds_away(position, x < 0, mode, None)) * spacing
    return -magnitude if x < 0 else magnitude


def _computed(model: Model, terms: Sequence[Fraction], first: Callable[[Iterable[int]], int] | None) -> float:
    """Add as the model says; of two products that are added, `first` is the one that was in the accumulator, if any."""

    def value(tree: Tree) -> Fraction:
        if isinstance(tree, int):
            return _rounded(terms[tree], model.product_bits, model.mode, model.emin)
        bits = model.bits.get(leaves_of(tree), model.default_bits)
        parts = [value(part) for part in tree]
        if len(parts) > 2:  # aligned to the largest, the rest cut off (Fasi et al. 2021)
            spacing = Fraction(2) ** max((reference.floor_log2(abs(x)) for x in parts if x), default=0)
            spacing *= Fraction(2) ** (1 - (bits or 1))
            cut = [abs(x) // spacing * spacing * (1 if x > 0 else -1) for x in parts]
            return _rounded(sum(cut, Fraction(0)), bits, "toward_zero", model.emin)
        if first is not None and all(isinstance(part, int) for part in tree):
            at = tree.index(first(part for part in tree if isinstance(part, int)))
            parts[at] = _rounded(parts[at], bits, model.mode, model.emin)
        return _rounded(parts[0] + parts[1], bits, model.mode, model.emin)

    total = sum(terms, Fraction(0)) if model.tree is None else value(model.tree)
    result = _rounded(total, model.output_bits, model.output_mode, model.output_emin)
    return float(result)


class Sample(NamedTuple):
    """A random dot product: what it gave, and the products as integers.

    Attributes
    ----------
    result : float
        What the function returned.
    unit : int
        The exponent of 1 among the products.
    products, exponents : tuple of int
        Each product, and the sum of the exponents of its factors less `unit`.

    """

    result: float
    unit: int
    products: tuple[int, ...]
    exponents: tuple[int, ...]

    @property
    def terms(self) -> list[Fraction]:
        """The products."""
        return [Fraction(product) * Fraction(2) ** self.unit for product in self.products]


def samples(probe: Probe, largest: int, seed: int, count: int, binades: int = 4, cancel: bool = False) -> list[Sample]:
    """Ask for random dot products of factors from so many binades and one, whose sums stay below 2^largest.

    Those that `cancel` have nearly every product with both signs, so that the result is what was lost on the way, and
    factors of few bits, so that sums are often in the middle between two numbers.
    """
    draw = np.random.default_rng(seed)
    fmt, n = probe.fmt, probe.length
    high = max(min(2, (largest - n.bit_length()) // 2, fmt.emax - 1), fmt.emin)
    low = max(high - binades, fmt.emin)
    unit = 2 * (low - fmt.mantissa_bits)
    zeros = max(fmt.precision - _FEW, 0) if cancel else 0
    result = []
    for _ in range(count):
        x, y = (
            np.ldexp(
                draw.integers(2**fmt.mantissa_bits, 2**fmt.precision, n) >> zeros << zeros,
                draw.integers(low, high + 1, n) - fmt.mantissa_bits,
            )
            * draw.choice([-1, 1], n)
            for _ in range(2)
        )
        if cancel:
            one, other = draw.permutation(n)[: n // 2 * 2].reshape(2, -1)
            x[other], y[other] = -x[one], y[one]
        factors = list(zip(x.tolist(), y.tolist(), strict=True))
        products = tuple(int(Fraction(a) * Fraction(b) / Fraction(2) ** unit) for a, b in factors)
        exponents = tuple(math.frexp(a)[1] + math.frexp(b)[1] - 2 - unit for a, b in factors)
        result.append(Sample(probe.number(x, y), unit, products, exponents))
    return result


def reproduced(seen: Sequence[Sample], model: Model) -> int:
    """Count the random dot products that the model gives to the last bit."""
    firsts = (min, max, None)
    return max(sum(sample.result == _computed(model, sample.terms, first) for sample in seen) for first in firsts)
