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


def by_both(a: Array, b: Array, fmt: FloatFormat, mode: str, round_products: bool) -> tuple[Array, Array]:
    """In tiles, and element by element as sums are added."""
    stream = (7, 3) if mode == "stochastic" else None
    arguments = a, b, fmt, round_products, RoundingMode(mode), stream
    return products._sums(*arguments), products._few_sums(*arguments)


WIDE_AND_NARROW = [
    *(("fp16", "fp16"), ("bf16", "bf16"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp8_e4m3fn", "fp16"), ("tf32", "fp32")),
    *(("fp8_e5m2", "fp8_e5m2"), ("fp4_e2m1fn", "fp6_e3m2fn"), ("bf16", "fp16"), ("fp16", "bf16"), ("fp16", "e8m1")),
    *(("fp8_e4m3fn", "e6m0"), ("fp8_e4m3fn", "fp8_e4m3fnuz"), ("fp32", "fp16"), ("fp32", "fp32")),
]


@pytest.mark.parametrize("round_products", [False, True])
@pytest.mark.parametrize("spread", [0, 3, 12, 40])
@pytest.mark.parametrize(("inputs", "accumulator"), WIDE_AND_NARROW)
def test_tiles_add_as_sums_do(inputs: str, accumulator: str, spread: int, round_products: bool) -> None:
    """Numbers of few bits, so that ties abound, over more and more binades: steps of every kind follow one another."""
    rng = np.random.default_rng(spread)
    fmt = get_format(accumulator)

    def numbers(shape: tuple[int, int]) -> Array:
        few = rng.integers(-16, 17, shape) / 16 if spread % 2 else rng.standard_normal(shape)
        return np.asarray(round_to(np.float32(few * 2.0 ** rng.integers(-spread, spread + 1, shape)), inputs))

    a, b = numbers((9, 150)), numbers((150, 11))
    a[0] *= 2.0**-10
    a[1, 100:] = 0
    a[5] = np.sqrt(np.float32(fmt.smallest_normal)) * np.sign(a[5])
    b[:, 2] = np.sqrt(np.float32(fmt.smallest_normal)) * np.sign(b[:, 2])
    a[8, 70], b[3, 10] = np.inf, np.nan
    for mode in ALL_MODES:
        assert_same(*by_both(a, b, fmt, mode, round_products))


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize(
    ("rows", "columns"),
    [*((m, n) for m in (1, 3, 4, 5, 8, 9) for n in (1, 7, 8, 9, 17)), (1, 1030), (5, 513)],
)
def test_every_size_of_a_tile(rows: int, columns: int, mode: str) -> None:
    rng = np.random.default_rng(rows * columns)
    for steps in (1, 2, 3) if columns > 16 else (0, 1, 31, 32, 33, 63, 64, 65, 129):
        a, b = rng.standard_normal((rows, steps)), rng.standard_normal((steps, columns))
        a, b = (np.asarray(round_to(x.astype(np.float32), "bf16")) for x in (a, b))
        assert_same(*by_both(a, b, get_format("fp16"), mode, steps % 2 == 1))


@pytest.mark.parametrize("mode", ALL_MODES)
def test_many_rows(mode: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((515, 3)).astype(np.float32), rng.standard_normal((3, 2)).astype(np.float32)
    assert_same(*by_both(a, b, get_format("fp16"), mode, False))


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("exponent", [-5, -1, 0, 1, 5])
@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp8_e5m2", "fp8_e4m3fnuz", "fp8_e4m3fn"])
def test_at_the_ends_of_the_range(fmt: str, exponent: int, mode: str) -> None:
    """Sums around the smallest subnormal, the smallest normal and the largest value, which they pass back and forth."""
    rng = np.random.default_rng(5 + exponent)
    of = get_format(fmt)
    for end in (of.smallest_subnormal, of.smallest_normal, of.max / 4):
        factor = 2.0 ** (math.frexp(end)[1] // 2 + exponent)
        shape = 9, 70
        a = (rng.choice([-1, -0.75, -0.5, -0.0, 0, 0.5, 0.75, 1, 1.25, 1.0625], shape) * factor).astype(np.float32)
        b = (rng.choice([-1, -0.5, 0.5, 1, 1.5], shape[::-1]) * end / factor).astype(np.float32)
        for round_products in (False, True):
            assert_same(*by_both(a, b, of, mode, round_products))


@pytest.mark.parametrize("accumulator", ["fp32", "fp16", "bf16"])
def test_where_sums_are_no_doubles(accumulator: str) -> None:
    """At every condition of the loops: the bits of a product, and how far apart products lie."""
    rng = np.random.default_rng(1)
    fmt = get_format(accumulator)
    for bits in (4, 8, 12, 13, 14, 18, 24):
        for apart in (20, 26, 27, 28, 29, 30, 35):
            a = np.asarray(round_to(rng.standard_normal((9, 66)).astype(np.float32), FloatFormat.ieee(8, bits - 1)))
            b = np.asarray(round_to(rng.standard_normal((66, 9)).astype(np.float32), FloatFormat.ieee(8, bits - 1)))
            a[:, ::3] *= np.float32(2.0 ** -(apart // 2))
            b[::3] *= np.float32(2.0 ** -(apart - apart // 2))
            b[1::3] = np.sign(b[1::3])
            for mode in ALL_MODES:
                assert_same(*by_both(a, b, fmt, mode, False))


def test_random_numbers_where_the_counter_wraps() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 9)).astype(np.float32), rng.standard_normal((9, 700)).astype(np.float32)
    for first in ((1 << 34) - 5, (1 << 34) - 2001, 1, 2, 3):
        arguments = a, b, get_format("bf16"), True, RoundingMode.STOCHASTIC, (11, first)
        assert_same(products._sums(*arguments), products._few_sums(*arguments))


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
