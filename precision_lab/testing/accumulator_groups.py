"""Sums in groups, as matrix units make them: several products and the sum so far in one step, then one rounding.

Within a step the addends are aligned to the largest exponent and cut toward zero below some bit, or added exactly; the
sum is rounded to the accumulator's bits (Fasi et al. 2021; Khattak and Mikaitis 2025, arXiv 2512.07004; Xie et al.
2025, arXiv 2511.10909). How many products a step has and where it cuts show in what three terms give; the rest is
chosen so that random dot products come out to the last bit, and left open where several choices do that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from precision_lab.numerics import reference
from precision_lab.testing.accumulator_model import Sample
from precision_lab.testing.accumulator_probe import Probe, Scale
from precision_lab.testing.accumulator_questions import DETERMINISTIC, bits_kept, is_lost
from precision_lab.testing.accumulator_report import Steps

_MORE = range(9)  # bits that an accumulator may have beyond those that the cut of its addends leaves


class Output(NamedTuple):
    """The bits to which a sum is rounded for the caller, None if it is not, the mode, and the smallest exponent."""

    bits: int | None
    mode: str
    emin: int | None


def computed(steps: Steps, sample: Sample) -> int:
    """Return the sum of a sample's products, in units of the last bit that any of them has."""
    total = 0
    for start in range(0, len(sample.products), steps.size):
        chosen = slice(start, start + steps.size)
        terms = list(zip(sample.products[chosen], sample.exponents[chosen], strict=True))
        if steps.aligned == "products":
            terms = [(product, product.bit_length() - 1) for product, _ in terms]
        if steps.joined:
            terms.append((total, total.bit_length() - 1))
        step = _added(terms, steps.cut)
        total = rounded(
            step if steps.joined else total + step, steps.bits, steps.mode, _last_place(steps.bits, steps.emin, sample)
        )
    return total


def _added(terms: Sequence[tuple[int, int]], cut: int | None) -> int:
    """Add numbers with the exponents that stand beside them, each cut toward zero."""
    top = max((exponent for number, exponent in terms if number), default=0)
    lost = 0 if cut is None else max(top - cut + 1, 0)
    return sum((abs(number) >> lost << lost) * (1 if number > 0 else -1) for number, _ in terms)


def _last_place(bits: int | None, emin: int | None, sample: Sample) -> int:
    """Return the exponent of the spacing of subnormal numbers, in a sample's units."""
    return 0 if bits is None or emin is None else emin - bits + 1 - sample.unit


def rounded(number: int, bits: int | None, mode: str, last: int = 0) -> int:
    """Round an integer to so many significant bits, none of them below 2^last."""
    drop = 0 if bits is None else max(abs(number).bit_length() - bits, last)
    if drop <= 0:
        return number
    size, unit = abs(number), 1 << drop
    k, rest = divmod(size, unit)
    if mode == "toward_zero":
        away = False
    else:
        position = reference.Candidates(k, Fraction(unit), Fraction(rest, unit))
        away = reference.rounds_away(position, number < 0, mode, None)
    size = (k + away) * unit
    return -size if number < 0 else size


def result_of(steps: Steps, sample: Sample, output: Output) -> float:
    """Return what a sum in these steps gives, rounded for the caller."""
    total = rounded(computed(steps, sample), output.bits, output.mode, _last_place(output.bits, output.emin, sample))
    return float(Fraction(total) * Fraction(2) ** sample.unit)


def find_steps(probe: Probe, scale: Scale, seen: Sequence[Sample], output: Output, emin: int | None) -> Steps | None:
    """Return the steps in which a dot product adds, None if none that is known here gives all samples."""
    inside, across = (bits_kept(probe, scale, (0, 1, place)) for place in (2, probe.length - 1))
    if across is None:
        return None
    size = _size(probe, scale, inside, across)
    cuts = [inside, None] if size == 2 else [inside]  # in steps of two the third term is in the next
    options = []
    for cut in cuts:
        widths: list[int | None] = [across]
        if cut is not None and across >= cut:  # what is cut hides the rest
            widths = [*(cut + more for more in _MORE), None]
        aligned = ("products",) if cut is None else ("products", "factors")
        every = itertools.product(aligned, (True, False), widths, DETERMINISTIC)
        options += [Steps(size, cut, to, joined, width, mode, emin) for to, joined, width, mode in every]
    for sample in seen:
        options = [steps for steps in options if result_of(steps, sample, output) == sample.result]
    if not options:
        return None
    fields = ("aligned", "joined", "bits", "mode")
    return replace(options[0], open=tuple(name for name in fields if len({getattr(o, name) for o in options}) > 1))


def _size(probe: Probe, scale: Scale, inside: int | None, across: int) -> int:
    """Return how many products a step has: where the next one begins."""
    n = probe.length
    if inside is None or across < inside:  # what is kept within a step is lost from one to the next
        begun = (k for k in range(2, n) if is_lost(probe, scale, across, (0, 1, k)))
    else:  # what is lost in a step is kept in the next, where nothing large is left
        begun = (k for k in range(2, n) if not is_lost(probe, scale, across, (0, k, 1)))
    return next(begun, n)
