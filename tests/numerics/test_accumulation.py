"""Every step of a sum is rounded once: to the last bit as the reference does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from precision_lab import accumulate, dot, exact_sum, matmul, round_to
from precision_lab.numerics import reference
from precision_lab.numerics.accumulation import METHODS, _ends, rounded_sum
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.modes import RoundingMode
from tests.numerics.helpers import MODES, REGISTERED, assert_same, uniforms, unsigned_nan

ALL_MODES = (*MODES, "stochastic")
CUSTOM = st.builds(FloatFormat.ieee, st.integers(2, 8), st.integers(0, 23))
FORMAT = st.sampled_from(REGISTERED) | CUSTOM


@pytest.mark.parametrize("mode", list(RoundingMode))
def test_the_ends_of_the_range_are_those_of_arrays(mode: RoundingMode) -> None:
    every = [*REGISTERED, *(FloatFormat.ieee(exponent, 2) for exponent in range(2, 9)), FloatFormat.ieee(5, 0)]
    every += [FloatFormat("custom", 4, 3, 7, specials) for specials in ("fn", "fnuz", "finite")]
    for fmt in every:
        ends = round_to(np.array([1e300, -1e300, np.inf, -np.inf, -0.0, np.nan]), fmt, mode, rng=0)
        assert np.array(_ends(fmt, mode)).tobytes() == ends.tobytes()


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


@pytest.mark.parametrize(
    "fmt", [*REGISTERED, *map(get_format, ("e8m0_ieee", "e6m0", "e6m9", "e5m14", "e8m23"))], ids=str
)
def test_a_little_beside_every_kind_of_place(fmt: FloatFormat) -> None:
    """Sums that are no doubles, beside values, midpoints and 2^-16ths, also where exponents change."""
    unit, top = fmt.smallest_subnormal, 2.0**fmt.mantissa_bits
    values = [k * unit for k in (0.0, 1.0, 2.0, 3.0, top - 1, top, top + 1, 2 * top)] + [1.0, fmt.max / 2, fmt.max]
    places = []
    for v in (v for v in values if v <= fmt.max and reference.round_to(v, fmt) == v):
        spacing = 2.0 ** (max(math.frexp(v)[1] - 1, fmt.emin) - fmt.mantissa_bits) if v else unit
        places += [sign * (v + part * spacing) for part in (0.0, 0.5, -0.25, 2.0**-16) for sign in (1, -1)]
    for mode in ALL_MODES:
        for terms in ([place, tiny] for place in places for tiny in (2.0**-1074, -unit * 2.0**-60)):
            together = accumulate(terms, fmt, method="pairwise", mode=mode, rng=3)
            assert_same(together.partial_sums, reference.pairwise_sums(terms, fmt, mode, uniforms(mode, 3)))
            in_turn = accumulate(terms, fmt, mode=mode, rng=3)
            assert_same(in_turn.partial_sums, reference.sequential_sums(terms, fmt, mode, uniforms(mode, 3)))


def test_zeros_have_signs() -> None:
    def signs(terms: list[float], mode: str, fmt: str = "fp16") -> list[bool]:
        return [bool(s) for s in np.signbit(accumulate(terms, fmt, mode=mode).partial_sums)]

    assert signs([-0.0, -0.0], "ties_to_even") == [False, False]
    assert signs([-0.0, -0.0, 0.0], "toward_negative") == [True, True, True]
    assert signs([0.0, 1, -1], "toward_negative") == [False, False, True]
    assert signs([1, -1], "ties_to_even") == [False, False]
    assert signs([-1e-9, -0.0], "ties_to_even") == [True, True]  # what is rounded to zero keeps its sign
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


@example([2.2250738585072009e-308] * 3)  # subnormal, and their sum is no double
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_the_exact_sum(terms: list[float]) -> None:
    assert exact_sum(terms) == sum(map(Fraction, terms))
    assert exact_sum(terms * 33) == 33 * sum(map(Fraction, terms))
    assert accumulate(terms * 33, "bf16").magnitudes == 33 * sum(map(abs, map(Fraction, terms)))


@pytest.mark.parametrize("spread", [0, 1, 42, 43, 44, 52, 84, 85, 86, 87, 200, 2097])
@pytest.mark.parametrize("top", [-1022, -1000, 0, 998, 999, 1000, 1011, 1013, 1023])
def test_the_exact_sum_at_the_edges_of_each_way(spread: int, top: int) -> None:
    """Terms that reach from 2^top, nearly twice that or below, down to a bit `spread` below it: 43, 85 and 2^1000."""
    rng = np.random.default_rng(spread)
    lowest = max(top - spread, -1074)
    for size in (1, 2, 3, 1023, 1024, 1025, 2100):
        exponents = rng.integers(lowest, top, size, endpoint=True)
        places = np.minimum(exponents - lowest, 52)  # of the lowest bit, below the first
        terms = np.ldexp(np.floor(np.ldexp(rng.uniform(1, 2, size), places)), exponents - places)
        terms[0] = 2.0**lowest
        terms[-1] = np.ldexp(2.0 - 2.0 ** -rng.integers(0, min(top - lowest, 52), endpoint=True), top)
        terms *= rng.choice((-1.0, 1.0), size)
        exact, magnitudes = sum(map(Fraction, terms.tolist())), sum(abs(Fraction(x)) for x in terms.tolist())
        trace = accumulate(terms, "bf16")
        assert (exact_sum(terms), trace.exact, trace.magnitudes) == (exact, exact, magnitudes)


@pytest.mark.parametrize("spread", [42, 43, 44, 83, 84, 85, 86, 87])
def test_the_exact_sum_of_a_crowd(spread: int) -> None:
    """1023 terms as large as they may be, or with rests as large as they may be, and a lowest bit."""
    lowest = 2.0**-spread
    for large in (1.0, 2.0 - 2.0**-41, 2.0 - 2.0**-42 - 2.0**-52, 1.0 + 2.0**-42 - 2.0**-52):
        for last in (lowest, -lowest):
            terms = [large] * 1023 + [last]
            assert exact_sum(terms) == 1023 * Fraction(large) + Fraction(last)


@pytest.mark.parametrize(
    "terms", [[2.0**53, 1, 1], [2.0**53 - 1, 1, 1, 1], [2.0**52] * 2 + [1], [2.0**52, -(2.0**52), 1]]
)
def test_the_exact_sum_where_sums_end_to_be_doubles(terms: list[float]) -> None:
    for scale in (-1074, -30, 0, 900, 970):
        scaled = [math.ldexp(x, scale) for x in terms]
        assert exact_sum(scaled) == sum(map(Fraction, scaled))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "fmt", [*REGISTERED, FloatFormat.ieee(5, 0), FloatFormat.ieee(3, 1), FloatFormat.ieee(8, 23)], ids=str
)
def test_pairs_near_a_tie(fmt: FloatFormat, mode: str) -> None:
    """A midpoint and so little that the sum is a double, or just none; also where it has to be lifted."""
    half, tiny, normal = 2.0**-fmt.precision, fmt.smallest_subnormal, fmt.smallest_normal
    for middle, unit in ((1 + half, 1.0), (1 + 3 * half, 1.0), (tiny / 2, normal), (1.5 * tiny, normal), (0.0, normal)):
        for spread in range(49, 57):
            for little in (unit * 2.0**-spread, -unit * 2.0**-spread, 0.0):
                for terms in ([middle, little], [-middle, little], [middle, little, -unit * 2.0**-spread, middle]):
                    trace = accumulate(terms, fmt, method="pairwise", mode=mode)
                    partial = reference.pairwise_sums(terms, fmt, mode, None)
                    assert_same(unsigned_nan(trace.partial_sums), unsigned_nan(partial))


@settings(max_examples=300)
@given(FORMAT, st.sampled_from(ALL_MODES), st.integers(0, 2**32 - 1), st.integers(2, 70), st.data())
def test_sums_of_pairs_that_are_doubles(
    fmt: FloatFormat, mode: str, seed: int, count: int, data: st.DataObject
) -> None:
    """Terms in units, whose largest is near the ends of what makes every sum a double, and of the format."""
    near = data.draw(st.sampled_from([fmt.max, fmt.smallest_normal, fmt.smallest_subnormal, fmt.max / count]))
    bits = data.draw(st.sampled_from([1, 3, 20, 47, 50, 51, 52, 53]))
    rng = np.random.default_rng(seed)
    units = np.floor(rng.uniform(-(2.0**bits), 2.0**bits, count))
    terms = np.ldexp(units, math.frexp(near)[1] - bits + data.draw(st.integers(-3, 1)))
    trace = accumulate(terms, fmt, method="pairwise", mode=mode, rng=(seed, 7))
    partial = reference.pairwise_sums(terms.tolist(), fmt, mode, uniforms(mode, seed, 7))
    assert_same(unsigned_nan(trace.partial_sums), unsigned_nan(partial))


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
