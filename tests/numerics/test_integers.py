"""Integers beyond 2^53, which float64 does not hold: rounded once, or refused where their exact value is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from precision_lab.analysis.frozen_weights import WeightGaps, frozen_fraction
from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.loss_scale_replay import replay_loss_scale
from precision_lab.analysis.loss_scalers import DynamicLossScale
from precision_lab.analysis.stagnation import Series
from precision_lab.analysis.updates import update_report
from precision_lab.numerics import reference
from precision_lab.numerics.accumulation import accumulate, exact_sum
from precision_lab.numerics.codes import cast, decode, encode
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.inputs import as_array, integers_as_doubles, is_number
from precision_lab.numerics.inspection import inspect_number
from precision_lab.numerics.products import dot, matmul, matmul_fp32_accumulate
from precision_lab.numerics.rounding import as_carrier, is_representable, neighbours, random_numbers, round_to, spacing
from precision_lab.support.arguments import is_integer
from tests.numerics.helpers import MODES, assert_same

FORMATS = (
    *map(get_format, ("fp32", "tf32", "bf16", "fp16", "fp8_e5m2", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp6_e3m2fn")),
    *(FloatFormat.ieee(8, 0), FloatFormat.ieee(8, 22), FloatFormat.ieee(7, 23)),
)
formats = st.sampled_from(FORMATS)
modes = st.sampled_from(MODES)


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Of any size, and those where roundings are decided: beside short significands."""
    hard = st.builds(
        lambda bits, p, k, offset, negative: (-1) ** negative * ((k >> max(24 - p, 0) << max(bits - p, 0)) + offset),
        st.integers(50, max(high.bit_length(), 51)),
        st.integers(2, 26),
        st.integers(0, 2**24),
        st.integers(-3, 3),
        st.booleans(),
    )
    return st.one_of(st.integers(low, high), hard.map(lambda n: max(low, min(high, n))))


SIGNED, UNSIGNED = integers(-(2**63), 2**63 - 1), integers(0, 2**64 - 1)
PYTHON = integers(-(2**1023), 2**1023)


def by_reference(numbers: list[int], fmt: FloatFormat, mode: str, subnormals: bool, saturate: bool) -> Any:
    exact = [reference.round_to(Fraction(n), fmt, mode, subnormals=subnormals, saturate=saturate) for n in numbers]
    return np.array(exact)


Case = tuple[Any, list[int]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """What is given to a function, and the integers in it."""
    kind = draw(st.sampled_from(["int64", "uint64", ">i8", "list", "mixed", "scalar"]))
    one = {"uint64": UNSIGNED, "int64": SIGNED, ">i8": SIGNED}.get(kind, PYTHON)
    numbers = draw(st.lists(one, min_size=1, max_size=8))
    if kind == "scalar":
        return numbers[0], numbers[:1]
    if kind in ("int64", "uint64", ">i8"):
        return np.array(numbers, kind), numbers
    if kind == "mixed":  # a float among them, which is an integer too
        numbers = [*numbers, 3]
        return [*numbers[:-1], 3.0], numbers
    return numbers, numbers


@settings(max_examples=1000)
@given(cases(), formats, modes, st.booleans(), st.booleans())
@example((2**53 + 1, [2**53 + 1]), get_format("fp32"), "toward_positive", True, False)
@example(([2**53 + 1, 0.0], [2**53 + 1, 0]), get_format("fp32"), "to_odd", True, False)
def test_integers_are_rounded_once(case: Case, fmt: FloatFormat, mode: str, subnormals: bool, saturate: bool) -> None:
    given_, numbers = case
    expected = by_reference(numbers, fmt, mode, subnormals, saturate)
    got = np.atleast_1d(round_to(given_, fmt, mode, subnormals=subnormals, saturate=saturate))
    assert_same(got, expected)
    codes = np.atleast_1d(encode(given_, fmt, mode, subnormals=subnormals, saturate=saturate))
    np.testing.assert_array_equal(codes, np.atleast_1d(encode(expected, fmt)))
    if fmt.dtype is not None:
        cast_ = np.atleast_1d(cast(given_, fmt, mode, subnormals=subnormals, saturate=saturate))
        assert (cast_.view(codes.dtype) == codes).all()


@settings(max_examples=300)
@given(cases(), formats)
def test_where_integers_lie_among_the_values_of_a_format(case: Case, fmt: FloatFormat) -> None:
    given_, numbers = case
    representable = np.atleast_1d(is_representable(given_, fmt))
    below, above = map(np.atleast_1d, neighbours(given_, fmt))
    gap = np.atleast_1d(spacing(given_, fmt))
    for i, n in enumerate(numbers):
        nearest = reference.round_to(Fraction(n), fmt)
        assert representable[i] == (math.isfinite(nearest) and nearest == n)
        exponent = min(max(abs(n).bit_length() - 1, fmt.emin), fmt.emax) if n else fmt.emin
        assert gap[i] == 2.0 ** (exponent - fmt.mantissa_bits)
        down, up = (reference.round_to(Fraction(n), fmt, mode) for mode in ("toward_negative", "toward_positive"))
        if not representable[i] and abs(n) < fmt.max:
            assert (below[i], above[i]) == (down, up)
        for value, inward in ((float(below[i]), 1), (float(above[i]), -1)):  # Python compares exactly
            assert math.isnan(value) or inward * value < inward * n


@settings(max_examples=300)
@given(st.lists(SIGNED, min_size=1, max_size=20), formats)
def test_histograms_count_integers_where_they_are(numbers: list[int], fmt: FloatFormat) -> None:
    for given_ in (np.array(numbers), [*numbers, 0.5]):
        histogram = ExponentHistogram.of(given_)
        beyond = [
            abs(n) >= fmt.overflow_threshold if fmt.overflow_inclusive else abs(n) > fmt.overflow_threshold
            for n in numbers
        ]
        assert histogram.overflowed(fmt) == sum(beyond)
        assert histogram.zero == numbers.count(0)
        assert {e: n for e, n in histogram.binades.items() if n and e >= 0} == {
            e: n for e in range(64) if (n := sum(abs(m).bit_length() - 1 == e for m in numbers))
        }


@settings(max_examples=200)
@given(st.lists(SIGNED, min_size=1, max_size=8), st.sampled_from(FORMATS), st.integers(0, 2**64 - 1))
def test_stochastic_rounding_of_integers_is_by_their_exact_position(
    numbers: list[int], fmt: FloatFormat, seed: int
) -> None:
    uniforms = [Fraction(int(u), 2**16) for u in random_numbers(seed, 0, len(numbers))]
    expected = [
        reference.round_to(Fraction(n), fmt, "stochastic", uniform=u) for n, u in zip(numbers, uniforms, strict=True)
    ]
    assert_same(round_to(np.array(numbers), fmt, "stochastic", rng=seed), np.array(expected))


@settings(max_examples=200)
@given(st.lists(SIGNED, min_size=1, max_size=8), st.sampled_from(FORMATS))
def test_weights_that_are_integers_are_stored_once(numbers: list[int], fmt: FloatFormat) -> None:
    weights, stored = np.array(numbers), round_to(np.array(numbers), fmt)
    assert WeightGaps.of(weights, fmt) == WeightGaps.of(numbers, fmt) == WeightGaps.of(stored, fmt)
    small = np.ones(weights.shape, np.float32)
    assert update_report(weights, small, fmt) == update_report(stored, small, fmt)


def test_weights_in_float64_are_stored_once_beside_narrow_updates() -> None:
    """Through float32 the first would become a tie, and 1."""
    weights, small = np.array([1 + 2.0**-8 + 2.0**-40, 1e300]), np.full(2, 2.0**-9, np.float32)
    report = update_report(weights, small, "bf16")
    assert report == update_report(np.array([1 + 2.0**-7, np.inf], np.float32), small, "bf16")
    assert report.lost == 1


@given(SIGNED, formats, modes)
def test_products_of_integers_with_inputs_round_once(n: int, fmt: FloatFormat, mode: str) -> None:
    rounded = reference.round_to(Fraction(n), fmt)
    if math.isfinite(rounded) and rounded:
        assert matmul([[n]], [[1]], inputs=fmt, accumulator="fp32", mode=mode)[0, 0] == rounded
        assert dot([n], np.array([1]), inputs=fmt, accumulator="fp32", mode=mode) == rounded
        assert matmul_fp32_accumulate(np.array([[n]]), [[1]], inputs=fmt)[0, 0] == rounded


@given(st.one_of(PYTHON, SIGNED.map(np.int64), UNSIGNED.map(np.uint64)), st.sampled_from(FORMATS))
def test_one_integer_is_inspected_exactly(n: int | np.integer[Any], fmt: FloatFormat) -> None:
    seen = inspect_number(n, fmt)
    assert seen.stored == reference.round_to(Fraction(int(n)), fmt) or math.isnan(seen.stored)
    if math.isfinite(seen.stored):
        error = Fraction(seen.stored) - int(n)
        assert seen.error == (float(error) if abs(error) < 2**1023 else seen.error)


def test_the_examples_that_were_wrong() -> None:
    assert round_to(2**53 + 1, "fp32", "toward_positive") == 9007200328482816
    assert round_to(np.array([9007199791611905]), "fp32").tolist() == [9007200328482816]
    assert round_to(np.array([2**63 - 1]), "bf16", "toward_zero").tolist() == [9187343239835811840]
    assert round_to([2**53 + 1, 0.5], "fp32", "toward_positive").tolist() == [9007200328482816, 0.5]
    assert round_to([-1, 2**64 - 1], "bf16", "toward_zero").tolist() == [-1, 2**64 - 2**56]
    assert round_to(2**70, "fp32") == 2.0**70
    assert round_to(2**1024 - 1, "bf16") == np.inf  # beyond the largest float64, whose significand is odd
    assert round_to(2**1024 - 1, "bf16", "toward_zero") == get_format("bf16").max
    assert round_to([2**70, 0.1], "bf16").tolist() == [2.0**70, 0.10009765625]


def test_nested_lists_of_arrays_and_numbers() -> None:
    large = 2**53 + 1
    examples: list[Any] = [
        [[large, 0.5], [1, 2]],
        [np.array([large, 1]), np.array([0.5, 2.0])],
        ([np.int64(large), 0.5], (np.float32(1), 2)),
        [[np.array(large), 0.5], [1.0, 2]],
        [[2**70 + 1, 0.5], [1, 2]],
    ]
    for x in examples:
        result = round_to(x, "fp32", "toward_positive")
        assert result.shape == (2, 2)
        assert result[0, 0] > max(large, result[0, 1])
        with pytest.raises(ValueError, match="is no float64"):
            as_carrier(x)


def test_layouts_of_large_integers() -> None:
    x = (np.arange(12).reshape(3, 4) + 2**53 + 2**29).T[::2]
    expected = [[reference.round_to(Fraction(int(n)), get_format("fp32")) for n in row] for row in x]
    assert round_to(x, "fp32").tolist() == expected
    assert round_to(np.asfortranarray(x), "fp32").tolist() == expected
    assert round_to(x[0, 0], "fp32") == expected[0][0]
    assert round_to(np.array(2**53 + 1), "fp32", "toward_positive") == 9007200328482816


@pytest.mark.parametrize("x", [10**400, [10**400], [10**400, 0.5], [-(2**1024)], -(2**1024), [2**70, None]])
def test_integers_beyond_float64_are_refused(x: Any) -> None:
    with pytest.raises(ValueError, match="cannot take an array of object"):
        round_to(x, "fp32")


LARGE = [2**53 + 1, 1]


@pytest.mark.parametrize("x", [np.array(LARGE), np.array(LARGE, np.uint64), LARGE, [*LARGE, 0.5], [2**70 + 1]])
@pytest.mark.parametrize(
    "call",
    [
        exact_sum,
        lambda x: accumulate(x, "fp16"),
        lambda x: accumulate(x, "fp16", method="kahan", accumulator="fp32"),
        lambda x: update_report(np.ones(np.shape(x)), x, "bf16"),
        lambda x: frozen_fraction([1.0], x, "bf16"),
        lambda x: WeightGaps.of([1.0], "bf16").frozen(x[0]),
        lambda x: replay_loss_scale(DynamicLossScale.torch(), x, "fp16"),
        as_carrier,
    ],
)
def test_where_the_exact_value_is_needed_it_is_asked_for(call: Callable[[Any], object], x: Any) -> None:
    with pytest.raises(ValueError, match="is no float64, and its exact value is needed here") as error:
        call(x)
    assert "\n" not in str(error.value)
    assert "round_to(x, FORMAT)" in str(error.value)
    call(np.asarray(x, float)[:2] if call is not as_carrier else np.asarray(x, float))  # the cures
    call(np.asarray(round_to(x, "fp32")))


@pytest.mark.parametrize("function", [matmul, matmul_fp32_accumulate])
def test_products_without_inputs_say_what_is_missing(function: Any) -> None:
    options = {"accumulator": "fp32"} if function is matmul else {}
    with pytest.raises(ValueError, match="name their format in inputs="):
        function(np.array([LARGE]), np.array([[1], [1]]), **options)


def test_an_error_does_not_fill_the_screen() -> None:
    with pytest.raises(ValueError, match="the integer of 1000 bits is no float64"):
        accumulate([2**999 + 1], "fp16")


def test_exact_integers_are_taken_everywhere() -> None:
    large = [2**60, -(2**62), 2**53]
    assert exact_sum(np.array(large)) == sum(large)
    assert exact_sum([2**70, 0.5]) == 2**70 + Fraction(1, 2)
    assert integers_as_doubles(np.array(large), to_odd=False).tolist() == large
    assert as_carrier(np.array([2**63], np.uint64)).tolist() == [2.0**63]
    assert Series.counting(2**53 + 1).terms(np.ones(2)).tolist() == [as_array([2**53 + 1, 0.5], to_odd=True)[0]] * 2


def test_odd_doubles_have_odd_last_bits() -> None:
    x = np.array([2**53 + 1, 2**53 + 3, -(2**53) - 1, 2**63 - 1, 2**62 + 1, -(2**63), 2**53])
    odd = integers_as_doubles(x, to_odd=True)
    exact = np.array([int(d) == int(n) for d, n in zip(odd, x, strict=True)])
    assert ((odd.view(np.int64) & 1) == 1).tolist() == (~exact).tolist()
    assert all(abs(int(d) - int(n)) < 2**10 for d, n in zip(odd, x, strict=True))
    assert as_array([int(n) for n in x] + [0.5], to_odd=True).tolist() == [*odd.tolist(), 0.5]


def test_small_integers_take_the_plain_way() -> None:
    x = np.arange(-5, 2**12)
    assert_same(integers_as_doubles(x, to_odd=True), x.astype(np.float64))
    assert integers_as_doubles(np.zeros(0, np.int64), to_odd=False).shape == (0,)
    assert integers_as_doubles(np.array([2**31 - 1], np.int32), to_odd=False).tolist() == [2.0**31 - 1]


def test_what_is_a_number() -> None:
    value: object
    for value in (1, np.int8(1), np.uint64(1)):
        assert is_integer(value)
        assert is_number(value)
    for value in (1.5, np.float32(1), np.float64(1), ml_dtypes.bfloat16(1), ml_dtypes.float8_e4m3fn(1)):
        assert not is_integer(value)
        assert is_number(value)
    for value in (True, np.True_, "1", None, 1j, [1], Fraction(1), np.datetime64("2020-01-01"), np.array([1.0])):
        assert not is_integer(value)
        assert not is_number(value)


def test_codes_are_integers_and_not_rounded() -> None:
    assert decode([1, 2], "fp16").tolist() == [2.0**-24, 2.0**-23]
    for codes in ([2**70], [2**53 + 1, 0.5], 2**70):
        with pytest.raises(ValueError, match=r"codes must be integers|is no float64"):
            decode(codes, "fp16")
