"""Every step of a sum and of a matrix product is rounded once: to the last bit as the reference does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from precision_lab import accumulate, dot, exact_sum, matmul, matmul_fp32_accumulate, round_to
from precision_lab.numerics import accumulation, reference
from precision_lab.numerics.accumulation import METHODS, rounded_sum
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.rounding import RoundingMode
from tests.numerics.helpers import MODES, REGISTERED, UP_TO_8_BITS, Array, Oracle, assert_same

ALL_MODES = (*MODES, "stochastic")
CUSTOM = st.builds(FloatFormat.ieee, st.integers(2, 8), st.integers(0, 23))
FORMAT = st.sampled_from(REGISTERED) | CUSTOM


def uniforms(mode: str, seed: int, first: int = 0, step: int = 1) -> Iterator[Fraction] | None:
    """The numbers of a stream, as the reference takes them."""
    if mode != "stochastic":
        return None
    return (Fraction(reference.random_number(seed, i), 2**16) for i in itertools.count(first, step))


def unsigned_nan(x: Any) -> Array:
    """Doubles; the sign of a NaN says nothing here."""
    array = np.asarray(x, np.float64)
    return np.where(np.isnan(array), np.nan, array)


def by_reference(
    method: str, terms: Sequence[float], fmt: FloatFormat, mode: str, block: int, stream: Iterator[Fraction] | None
) -> tuple[list[float], float]:
    """Partial sums and the last of them."""
    if method == "pairwise":
        sums = reference.pairwise_sums(terms, fmt, mode, stream)
        if len(terms) == 1:
            uniform = None if stream is None else next(stream)
            return sums, reference.round_to(float(unsigned_nan(terms[0])), fmt, mode, uniform=uniform)
    elif method == "blocked":
        sums = reference.blocked_sums(terms, block, fmt, mode, stream)
    elif method == "neumaier":
        return reference.neumaier_sums(terms, fmt, mode, stream)
    else:
        of = {"sequential": reference.sequential_sums, "kahan": reference.kahan_sums}[method]
        sums = of(terms, fmt, mode, stream)
    return sums, sums[-1] if sums else 0.0


def number_near(draw: st.DrawFn, fmt: FloatFormat) -> float:
    """A value of the format or the middle of two, perhaps moved by very little."""
    value = reference.decode(draw(st.integers(0, 2**fmt.bits - 1)), fmt)
    if math.isfinite(value):
        ulp = 2.0 ** (max(math.frexp(value)[1] - 1, fmt.emin) - fmt.mantissa_bits) if value else fmt.smallest_subnormal
        value += draw(st.sampled_from((0.0, 0.0, 0.5))) * ulp
        value += draw(st.sampled_from((0, 0, 1, -1))) * ulp * 2.0 ** -draw(st.integers(2, 60))
    return value


@st.composite
def sums(draw: st.DrawFn) -> tuple[list[float], FloatFormat]:
    fmt = draw(FORMAT)
    size = draw(st.integers(0, 9))
    return [number_near(draw, fmt) if draw(st.integers(0, 9)) else draw(st.floats()) for _ in range(size)], fmt


@settings(max_examples=1000)
@given(sums(), FORMAT | st.none(), st.sampled_from(METHODS), st.sampled_from(ALL_MODES), st.integers(1, 5), st.data())
def test_sums_are_the_reference(
    case: tuple[list[float], FloatFormat],
    output: FloatFormat | None,
    method: str,
    mode: str,
    block: int,
    data: st.DataObject,
) -> None:
    terms, wide = case
    seed, first = data.draw(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**40)))
    fmt = output or wide
    trace = accumulate(
        np.array(terms, np.float64), fmt, method=method, mode=mode, accumulator=wide, block=block, rng=(seed, first)
    )
    stream = uniforms(mode, seed, first)
    partial, last = by_reference(method, terms, wide, mode, block, stream)
    assert_same(unsigned_nan(trace.partial_sums), unsigned_nan(partial))
    if fmt != wide:
        last = reference.round_to(
            float(unsigned_nan(last)), fmt, mode, uniform=None if stream is None else next(stream)
        )
    assert_same(unsigned_nan(trace.result), unsigned_nan(last))
    alone = rounded_sum(
        np.array(terms, np.float64), fmt, method=method, mode=mode, accumulator=wide, block=block, rng=(seed, first)
    )
    assert_same(alone.result, trace.result)
    assert alone.exact == trace.exact
    if all(map(math.isfinite, terms)):
        assert trace.exact == sum(map(Fraction, terms))


def test_the_order_of_sums() -> None:
    """Each method by its formula, on numbers that can be checked by hand: bf16 has 8 bits, 256 + 1 is a tie."""
    terms = [256.0, 1.0, 1.0, 1.0]
    assert accumulate(terms, "bf16").partial_sums.tolist() == [256, 256, 256, 256]
    assert accumulate(terms, "bf16", method="pairwise").partial_sums.tolist() == [256, 2, 258]
    assert accumulate(terms[:3], "bf16", method="pairwise").partial_sums.tolist() == [256, 256]  # the last moves up
    assert accumulate(terms, "bf16", method="blocked", block=2).partial_sums.tolist() == [256, 258]
    assert accumulate(terms, "bf16", method="kahan").partial_sums.tolist() == [256, 256, 258, 260]
    assert accumulate(terms, "bf16", method="neumaier").partial_sums.tolist() == [256, 256, 256, 256]
    assert accumulate(terms, "bf16", method="neumaier").result == 260  # 259 is a tie
    assert accumulate(terms, "bf16", accumulator="fp32").partial_sums.tolist() == [256, 257, 258, 259]
    assert accumulate(terms, "bf16", accumulator="fp32").result == 260


@pytest.mark.parametrize(("fmt", "stop"), [("fp16", 2048), ("bf16", 256), ("fp8_e4m3fn", 16), ("fp4_e2m1fn", 4)])
def test_counting_stops(fmt: str, stop: int) -> None:
    trace = accumulate(np.ones(4096), fmt)
    assert (trace.result, trace.stagnates_after, trace.exact_sum) == (stop, stop, 4096)
    assert_same(accumulate(np.ones(4096), fmt, method="pairwise").result, round_to(4096.0, fmt))
    assert accumulate(np.ones(stop), fmt).stagnates_after is None


def test_stagnation_says_from_which_term_on() -> None:
    assert accumulate([0, 1, 0, 256, 1, 0, 0], "bf16").stagnates_after == 4  # 257 is a tie
    assert accumulate([1, 0, 0], "bf16").stagnates_after is None  # zeros change nothing anyway
    assert accumulate([1, 2**-20, 1], "bf16").stagnates_after is None
    assert accumulate([1e-9, 1e-9], "fp16").stagnates_after == 0
    assert accumulate([65504, 65504, 1, 1], "fp16").stagnates_after == 2  # infinity
    assert accumulate(np.ones(300), "bf16", method="kahan").stagnates_after is None


def test_stochastic_rounding_goes_on() -> None:
    sums = [accumulate(np.ones(4096), "bf16", mode="sr", rng=seed).result for seed in range(20)]
    assert 3500 < np.mean(np.array(sums)) < 4700
    # but not below 2^-16 spacings
    assert accumulate([1.0] + [2.0**-24] * 500, "bf16", mode="sr", rng=0).result == 1
    assert accumulate([1.0] + [2.0**-22] * 50_000, "bf16", mode="sr", rng=0).result > 1


@pytest.mark.parametrize("seed", range(5))
def test_stochastic_rounding_goes_up_from_its_number_on(seed: int) -> None:
    enough = 2**16 - reference.random_number(seed, 0)
    for position, expected in ((enough, 1 + 2.0**-7), (enough - 1, 1.0)):
        assert accumulate([1 + position * 2.0**-23], "bf16", mode="sr", rng=seed).result == expected


def test_rounded_once() -> None:
    """Each of these is wrong when the sum is first rounded to float64."""
    tie, tiny = 1 + 2.0**-8, 2.0**-70
    assert accumulate([tiny, tie], "bf16").result == 1 + 2.0**-7
    assert accumulate([-tiny, tie], "bf16").result == 1
    assert accumulate([-tiny, -tie], "bf16").result == -1 - 2.0**-7
    assert accumulate([1, tiny], "bf16", mode="toward_positive").result == 1 + 2.0**-7
    assert accumulate([1, -tiny], "bf16", mode="toward_zero").result == 1 - 2.0**-8
    assert accumulate([1, tiny], "bf16", mode="to_odd").result == 1 + 2.0**-7
    # the sum lies between two doubles, of which the odd one is next to a midpoint that goes up
    next_to_it = 1 + 3 * 2.0**-8 - 2.0**-52
    for sign in (1, -1):
        assert accumulate([sign * 2.0**-54, sign * next_to_it], "bf16").result == sign * (1 + 2.0**-7)
        assert dot([sign * 2.0**-54, next_to_it], [1, sign], inputs="fp32", accumulator="bf16") == sign * (1 + 2.0**-6)
    # 7 * 37 = 259 lies in the middle between 258 and 260
    assert dot([0, 7], [1, 37], inputs="bf16", accumulator="bf16") == 260
    for size in (2.0**-10, 2.0**-60, 2.0**-120):
        assert dot([size, 7], [1, 37], inputs="bf16", accumulator="bf16") == 260
        assert dot([-size, 7], [1, 37], inputs="bf16", accumulator="bf16") == 258
        assert dot([size, -7], [1, 37], inputs="bf16", accumulator="bf16") == -258
        assert dot([-size, -7], [1, 37], inputs="bf16", accumulator="bf16") == -260


def test_zeros_have_signs() -> None:
    def signs(terms: list[float], mode: str, fmt: str = "fp16") -> list[bool]:
        return [bool(s) for s in np.signbit(accumulate(terms, fmt, mode=mode).partial_sums)]

    assert signs([-0.0, -0.0], "ties_to_even") == [False, False]
    assert signs([-0.0, -0.0, 0.0], "toward_negative") == [True, True, True]
    assert signs([0.0, 1, -1], "toward_negative") == [False, False, True]
    assert signs([1, -1], "ties_to_even") == [False, False]
    assert signs([-1e-9, -0.0], "ties_to_even") == [True, True]  # what underflows keeps its sign
    assert signs([-1e-9, -0.0], "ties_to_even", "fp8_e4m3fnuz") == [False, False]
    assert np.signbit(dot([-1, -1], [2.0**-30, 0.0], accumulator="fp16"))
    assert not np.signbit(dot([-1, -1], [2.0**-30, 0.0], accumulator="fp16", round_products=True))  # 0 + -0


def test_infinities_and_nans() -> None:
    assert np.isnan(accumulate([65504, 65504, -np.inf], "fp16").partial_sums).tolist() == [False, False, True]
    assert np.isnan(accumulate([60000, 60000, 1], "fp16", method="kahan").result)
    nan = accumulate([1, np.nan, 1], "bf16")
    assert math.isnan(nan.result)
    assert math.isnan(nan.exact_sum)
    assert math.isnan(nan.worst_case_bound)
    assert nan.exact is None
    # no NaN there: -0, and on from it
    assert accumulate([1, np.nan, 1], "fp4_e2m1fn").partial_sums.tolist() == [1, 0, 1]
    overflow = accumulate([60000, 60000], "fp16")
    assert overflow.absolute_error == overflow.relative_error == math.inf
    assert accumulate([1e308, 1e308], "fp16", method="pairwise", mode="toward_zero").result == 65504
    assert accumulate([60000, 60000], "fp16", accumulator="fp32").result == math.inf
    assert accumulate([60000, 60000, -60000], "fp16", accumulator="fp32").result == 60000
    assert np.isnan(dot([np.inf, 1], [0, 1], accumulator="bf16"))
    for rounded in (False, True):  # NaN has no sign: as a positive one it becomes -0 where there is no NaN
        options: dict[str, Any] = {"mode": "toward_negative", "round_products": rounded}
        assert_same(dot([np.inf], [0], accumulator="fp4_e2m1fn", **options), np.float64(-0.0))
    assert_same(dot([np.inf, 1], [1, -np.inf], accumulator="fp16"), np.float64(np.nan))


def test_nothing_sums_to_zero() -> None:
    for method in METHODS:
        trace = accumulate([], "fp16", method=method)
        assert trace.result == trace.exact == trace.count == trace.partial_sums.size == 0
        assert trace.absolute_error == trace.relative_error == trace.worst_case_bound == 0
    assert matmul(np.ones((2, 0)), np.ones((0, 3)), accumulator="fp16").tolist() == [[0, 0, 0], [0, 0, 0]]
    assert matmul(np.ones((0, 2)), np.ones((2, 3)), accumulator="fp16").shape == (0, 3)
    assert matmul(np.ones((3, 2)), np.ones((2, 0)), accumulator="fp16", mode="sr").shape == (3, 0)


# ---- the exact sum and the bounds ----


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_the_exact_sum(terms: list[float]) -> None:
    assert exact_sum(terms) == sum(map(Fraction, terms))
    # of few terms Python's integers make the sum, of many a compiled loop
    assert exact_sum(terms * 33) == 33 * sum(map(Fraction, terms))
    assert accumulate(terms * 33, "bf16").magnitudes == 33 * sum(map(abs, map(Fraction, terms)))


def test_the_exact_sum_of_the_extremes() -> None:
    tiny, huge = 5e-324, np.finfo(np.float64).max
    assert exact_sum([huge] * 3 + [tiny]) == 3 * Fraction(huge) + Fraction(tiny)
    assert accumulate([huge] * 3, "fp16").exact_sum == math.inf
    with pytest.raises(ValueError, match="finite"):
        exact_sum([1, np.inf])


@settings(max_examples=400)
@given(sums(), st.sampled_from(METHODS[:3]), st.sampled_from(ALL_MODES), st.integers(1, 5), FORMAT | st.none())
def test_the_bound_holds(
    case: tuple[list[float], FloatFormat], method: str, mode: str, block: int, output: FloatFormat | None
) -> None:
    terms, wide = case
    limit = min(wide.max, (output or wide).max) / 20
    terms = [math.fmod(t, limit) for t in terms if math.isfinite(t)]
    trace = accumulate(terms, output or wide, method=method, mode=mode, block=block, accumulator=wide, rng=1)
    assert trace.exact is not None
    # it is one of sums that do not overflow; in a format of a few values, rounded upwards, small terms get there too
    assume(bool((np.abs(trace.partial_sums) < wide.max).all()) and abs(trace.result) < (output or wide).max)
    error = abs(Fraction(trace.result) - trace.exact)
    # the bound is rounded to a double
    assert math.isinf(trace.worst_case_bound) or error <= Fraction(math.nextafter(trace.worst_case_bound, math.inf))
    assert trace.absolute_error == float(error)


def test_the_bound_is_sharp() -> None:
    """Ones in front of a large sum are all lost: n - 1 errors of nearly u each."""
    trace = accumulate([1.0] + [2.0**-8] * 100, "bf16")
    assert trace.absolute_error == 100 * 2.0**-8
    assert trace.worst_case_bound == pytest.approx(trace.absolute_error * (1 + 100 * 2.0**-8))
    assert trace.worst_case_bound > trace.absolute_error


def test_the_bounds_by_their_formulas() -> None:
    terms = np.full(100, 0.5)
    u, total = 2.0**-11, 50.0
    assert accumulate(terms, "fp16").worst_case_bound == 99 * u * total
    assert accumulate(np.full(100, 0.1), "fp16").roundings == 100  # the first is rounded too
    assert accumulate(terms, "fp16").probabilistic_bound(2) == pytest.approx(2 * math.sqrt(99) * u * total)
    assert accumulate(terms, "fp16", mode="sr").probabilistic_bound() == pytest.approx(math.sqrt(99) * 2 * u * total)
    assert accumulate(terms, "fp16", method="pairwise").worst_case_bound == pytest.approx(7 * u / (1 - 7 * u) * total)
    blocked = accumulate(terms, "fp16", method="blocked", block=10)
    assert blocked.roundings == 20
    assert accumulate(terms, "fp16", method="kahan").worst_case_bound == 2 * u * total
    assert accumulate(terms, "fp16", method="neumaier").worst_case_bound == u * total + (100 * u) ** 2 * total
    assert accumulate(np.ones(300), "bf16", method="kahan").worst_case_bound == math.inf
    assert accumulate(np.ones(300), "bf16", mode="toward_zero").worst_case_bound == math.inf
    wider = accumulate(terms, "fp16", accumulator="fp32")
    assert wider.unit_roundoff == 2.0**-24
    assert wider.worst_case_bound == pytest.approx(99 * 2.0**-24 * total + u * (total + 99 * 2.0**-24 * total))
    with pytest.raises(ValueError, match="positive"):
        wider.probabilistic_bound(0)


# ---- matrix products ----


def small_matrices(rng: np.random.Generator, fmt: FloatFormat, m: int, k: int, n: int) -> tuple[Array, Array]:
    codes = rng.integers(0, 2**fmt.bits, (m + n) * k)
    values = np.array([reference.decode(int(c), fmt) for c in codes], np.float32)
    return values[: m * k].reshape(m, k), values[m * k :].reshape(k, n)


@pytest.mark.parametrize("round_products", [False, True])
@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("fmt", REGISTERED, ids=str)
def test_matrix_products_are_the_reference(fmt: FloatFormat, mode: str, round_products: bool) -> None:
    rng = np.random.default_rng(3)
    a, b = small_matrices(rng, fmt, 3, 5, 4)
    result = matmul(a, b, accumulator=fmt, mode=mode, round_products=round_products, rng=(5, 7))
    size = a.shape[0] * b.shape[1]
    for i, j in np.ndindex(result.shape):
        stream = uniforms(mode, 5, 7 + i * b.shape[1] + j, size)
        expected = reference.dot(
            a[i].tolist(), b[:, j].tolist(), fmt, mode, round_products=round_products, uniforms=stream
        )
        assert_same(unsigned_nan(result[i, j]), unsigned_nan(expected))


def by_both(a: Array, b: Array, fmt: FloatFormat, round_products: bool) -> tuple[Array, Array, Array]:
    """The rows that may be rounded by addition, as they come out so, and as they come out of rounding to odd."""
    rows = accumulation._rows_by_addition(a, b, fmt, round_products)
    fast = accumulation._matmul_by_addition(a[rows], b, fmt, round_products)
    even = RoundingMode.TIES_TO_EVEN
    return rows, fast, accumulation._matmul_to_odd(a[rows], b, fmt, round_products, even, (0, 0))


WIDE_AND_NARROW = [
    *(("fp16", "fp16"), ("bf16", "bf16"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp8_e4m3fn", "fp16"), ("tf32", "fp32")),
    *(("fp8_e5m2", "fp8_e5m2"), ("fp4_e2m1fn", "fp6_e3m2fn"), ("bf16", "fp16"), ("fp16", "bf16"), ("fp16", "e8m1")),
    *(("fp8_e4m3fn", "e6m0"), ("fp8_e4m3fn", "fp8_e4m3fnuz")),
]


@pytest.mark.parametrize("round_products", [False, True])
@pytest.mark.parametrize("spread", [0, 3, 12, 40])
@pytest.mark.parametrize(("inputs", "accumulator"), WIDE_AND_NARROW)
def test_both_ways_agree(inputs: str, accumulator: str, spread: int, round_products: bool) -> None:
    """Numbers of few bits, so that ties abound, over more and more binades."""
    rng = np.random.default_rng(spread)
    shape, other = (65, 40), (40, 300)  # an odd row, and more than a panel

    def numbers(shape: tuple[int, int]) -> Array:
        few = rng.integers(-16, 17, shape) / 16 if spread % 2 else rng.standard_normal(shape)
        return np.asarray(round_to(np.float32(few * 2.0 ** rng.integers(-spread, spread + 1, shape)), inputs))

    a, b = numbers(shape), numbers(other)
    a[np.abs(a) == np.inf], b[np.abs(b) == np.inf] = 1, 1
    a[0] *= 2.0**-10
    fmt = get_format(accumulator)
    rows, fast, slow = by_both(a, b, fmt, round_products)
    assert_same(fast, slow)
    assert_same(matmul(a, b, accumulator=fmt, round_products=round_products)[rows], slow)
    if spread == 0 and not (round_products and fmt.precision > 11) and fmt.has_infinity:
        assert rows.any()


def test_the_fast_way_is_taken_where_it_matters() -> None:
    rng = np.random.default_rng(0)
    for name in ("fp16", "bf16"):
        a, b = (np.asarray(round_to(rng.standard_normal((512, 512)).astype(np.float32), name)) for _ in range(2))
        for round_products in (False, True):
            assert accumulation._rows_by_addition(a, b, get_format(name), round_products).all()


@settings(max_examples=300)
@given(
    st.data(), st.sampled_from(("fp16", "bf16", "fp8_e5m2", "fp6_e3m2fn")), st.sampled_from(("fp16", "bf16", "fp32"))
)
def test_both_ways_are_the_reference(data: st.DataObject, inputs: str, accumulator: str) -> None:
    source, fmt = get_format(inputs), get_format(accumulator)
    steps = data.draw(st.integers(1, 5))
    codes = st.integers(0, 2 ** (source.bits - 1) - 1).filter(lambda c: math.isfinite(reference.decode(c, source)))
    few = st.sampled_from((0.0, 1.0, 3.0, 7.0, 0.5, 37 / 256, source.smallest_subnormal, source.max))
    number = st.builds(
        lambda x, sign: sign * reference.round_to(x, source),
        few | codes.map(lambda c: reference.decode(c, source)),
        st.sampled_from((1.0, -1.0)),
    )
    values = data.draw(st.lists(number, min_size=2 * steps, max_size=2 * steps))
    a, b = np.array(values[:steps], np.float32), np.array(values[steps:], np.float32)
    for round_products in (False, True):
        expected = np.float32(reference.dot(values[:steps], values[steps:], fmt, round_products=round_products))
        result = dot(a, b, accumulator=fmt, round_products=round_products)
        assert_same(unsigned_nan(result), unsigned_nan(expected))


def all_values(fmt: FloatFormat) -> Array:
    values = [reference.decode(code, fmt) for code in range(2**fmt.bits)]
    return np.array([v for v in values if math.isfinite(v)], np.float32)


def check_all_triples(fmt: FloatFormat, mode: str, round_products: bool, some: slice = slice(None)) -> None:
    """R(acc + a b) for all acc, a and b: two steps from 0, the first of them acc * 1."""
    values = all_values(fmt)
    acc, x = (part.reshape(-1) for part in np.meshgrid(values, values, indexing="ij"))
    y = values[some]
    left = np.stack([acc, x], axis=1)
    right = np.stack([np.ones_like(y), y])
    result = matmul(left, right, accumulator=fmt, mode=mode, round_products=round_products)
    products = np.multiply.outer(x.astype(np.float64), y.astype(np.float64))
    if round_products:
        products = Oracle(products.reshape(-1), fmt).round(mode).reshape(products.shape)
    # exact: multiples of the square of the smallest subnormal, below 2^53 of them
    exact = acc.astype(np.float64)[:, np.newaxis] + products
    if mode == "toward_negative":  # the first step starts from +0, and an exact zero is -0
        first = np.where(acc == 0, np.where(np.signbit(acc), -0.0, 0.0), acc).astype(np.float64)[:, np.newaxis]
        exact = np.where((exact == 0) & (np.signbit(first) | np.signbit(products)), -0.0, exact)
    else:
        exact = np.where((exact == 0) & (acc == 0)[:, np.newaxis], np.where(products == 0, 0.0, exact), exact)
    expected = Oracle(exact.reshape(-1), fmt).round(mode).astype(np.float32)
    assert_same(unsigned_nan(result.reshape(-1)), unsigned_nan(expected))


SMALL = [f for f in UP_TO_8_BITS if f.bits <= 6]
UP_TO_SUMS_OF_53_BITS = [f for f in UP_TO_8_BITS if 2 * (f.emax - f.emin + f.mantissa_bits) + 2 <= 53]


@pytest.mark.parametrize("round_products", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_all_triples(fmt: FloatFormat, mode: str, round_products: bool) -> None:
    check_all_triples(fmt, mode, round_products)


@pytest.mark.parametrize("fmt", [f for f in UP_TO_SUMS_OF_53_BITS if f.bits == 8], ids=str)
def test_many_triples(fmt: FloatFormat) -> None:
    for mode in MODES:
        check_all_triples(fmt, mode, False, slice(3, None, 29))


def test_all_triples_of_e4m3() -> None:
    for start in range(0, 256, 16):
        check_all_triples(get_format("fp8_e4m3fn"), "ties_to_even", False, slice(start, start + 16))


@pytest.mark.exhaustive
@pytest.mark.parametrize("round_products", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", [f for f in UP_TO_SUMS_OF_53_BITS if f.bits == 8], ids=str)
def test_all_triples_of_eight_bits(fmt: FloatFormat, mode: str, round_products: bool) -> None:
    for start in range(0, 256, 16):
        check_all_triples(fmt, mode, round_products, slice(start, start + 16))


def test_where_the_carrier_would_be_too_narrow() -> None:
    # 1 + 2^-10 + 2^-11 - 2^-57 lies below a midpoint that goes up
    a, b = [1 + 2.0**-10, 2.0**-11 * (1 + 2.0**-23)], [1, 1 - 2.0**-23]
    assert dot(a, b, accumulator="fp16") == 1 + 2.0**-10
    # a little more than half the smallest subnormal, which float32 cannot tell from the half
    half = get_format("tf32").flush_threshold / 2**21
    assert 1141 * 1838 > 2**21
    assert dot([1141 * 2.0**-80], [1838 * half * 2.0**80], accumulator="tf32", round_products=True) == 2.0**-136


def test_every_element_has_its_place_in_the_stream() -> None:
    """Also where the rows are worked on in blocks."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 2)).astype(np.float32), rng.standard_normal((2, 9000)).astype(np.float32)
    for rounded in (False, True):
        result = matmul(a, b, accumulator="bf16", mode="sr", rng=(3, 11), round_products=rounded)
        for i, j in ((0, 1), (1, 8999), (2, 4000)):
            stream = uniforms("stochastic", 3, 11 + i * 9000 + j, 27000)
            bf16 = get_format("bf16")
            expected = reference.dot(
                a[i].tolist(), b[:, j].tolist(), bf16, "stochastic", round_products=rounded, uniforms=stream
            )
            assert result[i, j] == expected


def test_inputs_and_output_are_rounded_once() -> None:
    a, b = [[1 + 2.0**-8 + 2.0**-40]], [[1.0]]
    assert matmul(a, b, inputs="bf16", accumulator="fp32") == 1 + 2.0**-7
    assert matmul([[1 + 2.0**-9]], b, accumulator="fp32") == 1 + 2.0**-9
    assert matmul([[1 + 2.0**-9]], b, accumulator="fp32", output="bf16") == 1
    assert matmul([[1 + 2.0**-9]], b, accumulator="fp32", output="bf16", mode="toward_positive") == 1 + 2.0**-7
    assert dot([1.5, 2], [2, 3], accumulator="bf16") == 9
    assert dot(np.ones(1, np.float32), np.ones(1, np.float32), accumulator="bf16").dtype == np.float32
    assert dot([1.5], np.ones(1, np.float32), accumulator="bf16").dtype == np.float64
    nan = matmul([[np.nan]], [[1.0]], accumulator="fp8_e4m3fnuz", output="fp4_e2m1fn")
    assert_same(nan, np.array([[-0.0]]))


def test_stochastic_output_goes_on_in_the_stream() -> None:
    a, b = np.ones((2, 3), np.float32), np.full((3, 2), 1 / 3, np.float32)
    for rounded, steps in ((False, 3), (True, 6)):
        options: dict[str, Any] = {"accumulator": "fp32", "mode": "sr", "round_products": rounded}
        sums = matmul(a, b, rng=(1, 5), **options)
        result = matmul(a, b, output="fp8_e5m2", rng=(1, 5), **options)
        assert_same(result, round_to(sums, "fp8_e5m2", "sr", rng=(1, 5 + 4 * steps)))


def test_a_generator_gives_the_seed() -> None:
    terms = np.random.default_rng(1).random(100)
    seed = int(np.random.default_rng(2).integers(0, 1 << 64, dtype=np.uint64))
    from_generator = accumulate(terms, "bf16", mode="sr", rng=np.random.default_rng(2))
    assert from_generator.result == accumulate(terms, "bf16", mode="sr", rng=seed).result
    assert accumulate(terms, "bf16", mode="sr").mode == "stochastic"


def test_float32_sums_of_exact_products() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 30)), rng.standard_normal((30, 10))
    x, y = (np.asarray(round_to(v, "bf16")).astype(np.float32) for v in (a, b))
    assert_same(matmul_fp32_accumulate(a, b, inputs="bf16"), (x @ y).astype(np.float64))
    assert_same(matmul_fp32_accumulate(x, y, output="fp16"), round_to(x @ y, "fp16"))
    with pytest.raises(ValueError, match="deterministic"):
        matmul_fp32_accumulate(x, y, output="bf16", mode="stochastic")


def test_views_and_inputs_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 8)).astype(np.float32), rng.standard_normal((8, 6)).astype(np.float32)
    before = a.copy(), b.copy()
    plain = matmul(a, b, inputs="bf16", accumulator="bf16")
    assert_same(matmul(a[::-1], b[:, ::-1], inputs="bf16", accumulator="bf16"), plain[::-1, ::-1])
    assert_same(matmul(np.asfortranarray(a), np.asfortranarray(b), inputs="bf16", accumulator="bf16"), plain)
    accumulate(a[0], "bf16", method="pairwise")
    assert_same(a, before[0])
    assert_same(b, before[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accumulate([1], "fp16", method="magic"), "choose one of sequential, pairwise, blocked"),
        (lambda: accumulate([1], "fp16", mode="nearest"), "unknown rounding mode"),
        (lambda: accumulate([1], "fp17"), "unknown format"),
        (lambda: accumulate([1], "fp16", accumulator="float64"), "unknown format"),
        (lambda: accumulate([1], "fp16", block=0), "block must be an integer of at least 1, got 0"),
        (lambda: accumulate([1], "fp16", block=True), "block must be an integer of at least 1, got True"),
        (lambda: accumulate([[1]], "fp16"), "terms must have one dimension, got 2"),
        (lambda: accumulate([1j], "fp16"), "cannot take an array of complex128"),
        (lambda: accumulate([1], "fp16", mode="sr", rng=-1), "rng must be a seed"),
        (lambda: dot([1, 2], [1], accumulator="fp16"), "same length"),
        (lambda: matmul([1], [1], accumulator="fp16"), "must be matrices"),
        (lambda: matmul(np.ones((2, 3)), np.ones((2, 3)), accumulator="fp16"), "must be matrices"),
        (lambda: matmul([[0.1]], [[1]], accumulator="fp16"), "a has values that float32 cannot hold; name their"),
        (lambda: matmul([[1]], [[1e300]], accumulator="fp16"), "b has values that float32 cannot hold; name their"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("method", ["kahan", "neumaier", "pairwise", "blocked", "sequential"])
def test_every_rounding_of_a_long_stochastic_sum_has_its_own_number(method: str) -> None:
    """Terms of many magnitudes, so that nearly all roundings, those of the compensation too, are inexact."""
    rng = np.random.default_rng(7)
    for seed in range(6):
        terms = np.ldexp(rng.standard_normal(1000), rng.integers(-9, 10, 1000))
        trace = accumulate(terms, "bf16", method=method, mode="stochastic", rng=seed, block=16)
        numbers = uniforms("stochastic", seed)
        partial, last = by_reference(method, terms.tolist(), get_format("bf16"), "stochastic", 16, numbers)
        assert trace.partial_sums.tolist() == partial
        assert trace.result == last
