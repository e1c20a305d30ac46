"""Every step of a matrix product is rounded once: to the last bit as the reference does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab import accumulate, dot, matmul, matmul_fp32_accumulate, round_to
from precision_lab.numerics import products, reference
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.modes import RoundingMode
from tests.numerics.helpers import MODES, REGISTERED, UP_TO_8_BITS, Array, Oracle, assert_same, uniforms, unsigned_nan

ALL_MODES = (*MODES, "stochastic")
CUSTOM = st.builds(FloatFormat.ieee, st.integers(2, 8), st.integers(0, 23))
FORMAT = st.sampled_from(REGISTERED) | CUSTOM


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
    extents = products._extents(a, b)
    rows = products._rows_by_addition(a, b, extents, fmt, round_products)
    fast = products._matmul_by_addition(a[rows], b, fmt, round_products, extents.low[rows])
    even, never = RoundingMode.TIES_TO_EVEN, np.zeros(int(rows.sum()), np.bool_)
    return rows, fast, products._matmul_by_fields(a[rows], b, fmt, round_products, even, None, never)


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
            extents = products._extents(a, b)
            assert products._rows_by_addition(a, b, extents, get_format(name), round_products).all()


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
