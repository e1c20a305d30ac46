"""Sums in steps of several products, as matrix units make them: size, cut and rounding are found, and nothing else.

The units are written here in exact integers, apart from the models of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pytest

from precision_lab.numerics import reference
from precision_lab.numerics.modes import RoundingMode
from precision_lab.testing.accumulator_groups import Output, computed, result_of, rounded
from precision_lab.testing.accumulator_model import Sample
from precision_lab.testing.accumulator_report import AccumulatorReport, Steps, Width
from precision_lab.testing.accumulators import check_accumulator

Dot: TypeAlias = Callable[[Any, Any], Any]
ONE = 80  # bits below the point: enough for every product of fp16 and fp8


def cut(number: int, last: int) -> int:
    """Cut toward zero below 2^last."""
    kept = abs(number) >> max(last, 0) << max(last, 0)
    return kept if number > 0 else -kept


def to_bits(number: int, bits: int | None, even: bool) -> int:
    """Truncate to so many significant bits, or round to nearest, ties to even."""
    drop = 0 if bits is None else abs(number).bit_length() - bits
    if drop <= 0:
        return number
    size, half = abs(number) >> drop, 1 << (drop - 1)
    rest = abs(number) - (size << drop)
    size += even and (rest > half or (rest == half and size % 2 == 1))
    return (size << drop) * (1 if number > 0 else -1)


def unit(
    size: int,
    fraction: int | None,
    bits: int | None,
    *,
    even: bool = False,
    factors: bool = True,
    apart: bool = False,
    finish: Callable[[float], Any] = float,
) -> Dot:
    """A matrix unit: fractional bits below the largest exponent, bits of the sum; `apart` adds it after the step."""

    def exponent(number: float) -> int:
        return math.frexp(number)[1] - 1

    def dot(x: Any, y: Any) -> Any:
        pairs = list(zip(x.astype(float).tolist(), y.astype(float).tolist(), strict=True))
        total = 0
        for start in range(0, len(pairs), size):
            terms = []
            for a, b in pairs[start : start + size]:
                product = int(Fraction(a) * Fraction(b) * 2**ONE)
                top = exponent(a) + exponent(b) + ONE if factors else abs(product).bit_length() - 1
                terms += [(product, top)] if product else []
            if not apart and total:
                terms.append((total, abs(total).bit_length() - 1))
            last = 0 if fraction is None else max((top for _, top in terms), default=0) - fraction
            total = to_bits(sum(cut(term, last) for term, _ in terms) + (total if apart else 0), bits, even)
        return finish(float(Fraction(total, 2**ONE)))

    return dot


def check(dot: Dot, source: str = "fp8_e4m3fn", length: int = 40, lengths: tuple[int, ...] = ()) -> AccumulatorReport:
    report = check_accumulator(dot, source, length=length, lengths=lengths)
    assert report.failure is None
    return report


# ---- the two of the kind that were taken for exact ----


@pytest.mark.parametrize("source", ["fp16", "fp8_e4m3fn"])
def test_exact_within_a_step_and_truncated_after_it(source: str) -> None:
    report = check(unit(32, None, 14), source, 64, (17,))
    assert report.explained
    assert report.steps is not None
    assert report.steps.additions == "exact within 32 products; 14 bits after each 32, toward zero"
    assert report.products == "exact"
    assert report.orders == ((17, 14, "groups of 32, each in one operation"),)
    assert report.accumulator is not None
    assert report.accumulator.bits == 14
    assert "14 bits after each 32, toward zero" in str(report)
    assert "nothing" not in str(report)


def test_products_that_are_aligned_and_truncated() -> None:
    report = check(unit(32, 13, None, factors=False), "fp16", 64)
    assert report.explained
    assert report.products == "aligned and truncated to 14 bits below the largest, of products"
    assert report.order == "groups of 32, each in one operation with the sum so far"
    assert "no rounding after each 32 shows" in str(report)
    assert "nothing was lost" not in str(report)


# ---- others of the family ----

FACTORS = "of factors' exponents added"
FAMILY: list[tuple[str, str, Dot, tuple[int, int | None, int | None, str], str]] = [
    ("Hopper, fp8", "fp8_e4m3fn", unit(32, 13, 14), (32, 14, 14, "toward_zero"), FACTORS),
    ("Ada, fp8", "fp8_e5m2", unit(16, 13, 14), (16, 14, 14, "toward_zero"), FACTORS),
    ("Hopper, fp16", "fp16", unit(16, 25, 24), (16, 26, 24, "toward_zero"), FACTORS),
    ("Volta, fp16", "fp16", unit(4, 23, 24), (4, 24, 24, "toward_zero"), FACTORS),
    ("Volta, rounded", "fp16", unit(4, 23, 11, even=True), (4, 24, 11, "ties_to_even"), ""),
    ("products", "fp8_e4m3fn", unit(8, 9, 10, factors=False), (8, 10, 10, "toward_zero"), ", of products"),
    ("apart", "fp8_e4m3fn", unit(8, 9, 12, apart=True), (8, 10, 12, "toward_zero"), FACTORS),
    ("exact, to even", "fp8_e5m2", unit(4, None, 13, even=True), (4, None, 13, "ties_to_even"), "exact"),
    ("in twos", "fp8_e4m3fn", unit(2, None, 10), (2, None, 10, "toward_zero"), "exact"),
    ("one step", "fp8_e4m3fn", unit(64, 10, None), (40, 11, None, ""), FACTORS),
]


@pytest.mark.parametrize(("name", "source", "dot", "expected", "words"), FAMILY, ids=[row[0] for row in FAMILY])
def test_units_are_found(
    name: str, source: str, dot: Dot, expected: tuple[int, int | None, int | None, str], words: str
) -> None:
    report = check(dot, source)
    assert report.explained, report
    steps = report.steps
    assert steps is not None
    assert (steps.size, steps.cut, steps.kept, report.mode or "") == expected
    assert words in report.products
    if name == "apart":
        assert report.order == "groups of 8, each in one operation, then to the sum so far"
    if name == "one step":
        assert report.order == "all in one operation"


def test_the_result_may_be_rounded_once_more() -> None:
    report = check(unit(16, 25, 24, finish=np.float16), "fp16")
    assert report.explained
    assert report.steps is not None
    assert (report.steps.size, report.steps.cut, report.steps.kept, report.mode) == (16, 26, 24, "toward_zero")
    assert report.output is not None
    assert (report.output.name, report.output_mode) == ("fp16", "ties_to_even")


# ---- what must not be taken for one of them ----


def test_a_sum_one_by_one_is_none() -> None:
    report = check(lambda x, y: unit(1, None, 12)(x, y))
    assert report.explained
    assert (report.steps, report.order, report.mode) == (None, "sequential", "toward_zero")


def test_an_exact_sum_is_none() -> None:
    report = check(unit(1, None, None), lengths=(9,))
    assert report.explained
    assert report.steps is None
    assert "nothing was lost" in str(report)
    assert report.orders == ((9, None, "does not show: nothing is lost"),)


def irregular(x: Any, y: Any) -> float:
    """Steps of 4, 12 and 8 products, 12 bits after each."""
    total = 0
    for start, end in ((0, 4), (4, 16), (16, 24)):
        step = int(Fraction(unit(64, None, None)(x[start:end], y[start:end])) * 2**ONE)
        total = to_bits(total + step, 12, False)
    return float(Fraction(total, 2**ONE))


def moody(x: Any, y: Any) -> float:
    """Exact, but for an odd number of negative factors: then truncated to 9 bits."""
    exact = int(Fraction(unit(64, None, None)(x, y)) * 2**ONE)
    return float(Fraction(to_bits(exact, 9 if np.signbit(x).sum() % 2 else None, False), 2**ONE))


@pytest.mark.parametrize("dot", [irregular, moody])
def test_what_is_not_understood_says_so_first(dot: Dot) -> None:
    report = check(dot, length=24)
    assert not report.explained
    assert report.steps is None
    lines = str(report).splitlines()
    assert lines[1] == (
        f"  not understood: only {report.reproduced} of 50 random dot products come out as follows: there is more to it"
    )
    assert "nothing" not in str(report)
    assert "exact, as far as it shows" not in str(report)


# ---- the model, the words ----


@pytest.mark.parametrize("mode", [mode.value for mode in RoundingMode if mode is not RoundingMode.STOCHASTIC])
def test_rounded_integers(mode: str) -> None:
    for number in range(-70, 71):
        for bits in (2, 3, 5):
            size = abs(number)
            step = Fraction(2) ** max(size.bit_length() - bits, 0)
            k = math.floor(size / step)
            away = reference.rounds_away(reference.Candidates(k, step, size / step - k), number < 0, mode, None)
            assert rounded(number, bits, mode) == (k + away) * step * (1 if number > 0 else -1)
        assert rounded(number, None, mode) == number
        assert rounded(number, 8, "toward_zero", 3) == int(math.copysign(size // 8 * 8, number))


def test_a_step_in_integers() -> None:
    """96 + 7 + 5 - 3: aligned to 64, cut to 3 bits each (16) or 5 (4), and rounded to 4 bits."""
    sample = Sample(0.0, 0, (96, 7, 5, -3), (6, 2, 2, 1))
    assert computed(Steps(4, 3, "factors", True, None, "toward_zero", None), sample) == 96
    assert computed(Steps(4, 5, "factors", True, None, "toward_zero", None), sample) == 104
    assert computed(Steps(4, None, "products", True, None, "toward_zero", None), sample) == 105
    assert computed(Steps(4, None, "products", True, 4, "toward_zero", None), sample) == 104
    assert computed(Steps(2, None, "products", True, 4, "toward_positive", None), sample) == 112
    assert result_of(Steps(4, None, "products", True, None, "", None), sample, Output(3, "ties_to_even", None)) == 112
    assert result_of(Steps(4, None, "products", True, None, "", None), sample, Output(9, "toward_zero", 11)) == 104


def test_what_is_left_open_is_not_said() -> None:
    steps = Steps(8, 10, "factors", True, 12, "toward_zero", None, ("aligned", "joined", "mode"))
    assert steps.products == "aligned and truncated to 10 bits below the largest"
    assert steps.order == "groups of 8, each in one operation"
    assert steps.additions == "12 bits after each 8, in a mode that does not show"
    assert Steps(8, 10, "factors", True, 12, "", None, ("bits",)).kept is None
    assert str(Width(None, 30, "", None, 9)) == "at least 30 bits; no overflow up to 2^9"
