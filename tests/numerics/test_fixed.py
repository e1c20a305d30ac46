"""Products, sums and elementary functions of stated bits, against plain loops and exact arithmetic."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from precision_lab.numerics import fixed, reference
from precision_lab.numerics.formats import FloatFormat, get_format

Array = NDArray[Any]
FP32 = get_format("fp32")
REALS = [np.float32, np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def in_loops(a: Array, b: Array) -> Array:
    """The definition: one product and one sum after the other, in NumPy's scalars of the dtype."""
    out = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                out[i, j] = out[i, j] + a[i, k] * b[k, j]
    return out


def same(a: Array, b: Array) -> bool:
    """The same values with the same signs of zeros; NaN is NaN."""
    alike = (a == b) & (np.signbit(a) == np.signbit(b)) | (np.isnan(a) & np.isnan(b))
    return bool(a.shape == b.shape and a.dtype == b.dtype and alike.all())


# ---- products ----


@pytest.mark.parametrize("real", REALS)
@given(seed=SEEDS, m=st.integers(1, 20), k=st.integers(0, 12), n=st.integers(1, 40), spread=st.integers(0, 40))
def test_a_product_is_the_plain_loop(real: Any, seed: int, m: int, k: int, n: int, spread: int) -> None:
    """Every remainder of rows and columns, ascending k; values from equal sizes to such that cancel or vanish."""
    rng = np.random.default_rng(seed)
    a, b = (
        np.ldexp(rng.standard_normal(s), rng.integers(-spread, spread + 1, s)).astype(real) for s in ((m, k), (k, n))
    )
    assert same(fixed.matmul(a, b), in_loops(a, b))


@pytest.mark.parametrize("real", REALS)
def test_a_product_with_infinities_nan_and_zeros(real: Any) -> None:
    rng = np.random.default_rng(0)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, np.finfo(real).smallest_subnormal], real)
    with np.errstate(all="ignore"):
        for shape in ((3, 2, 5), (9, 4, 33), (21, 3, 1), (1, 5, 17)):
            a, b = rng.choice(special, shape[:2]), rng.choice(special, shape[1:])
            assert same(fixed.matmul(a, b), in_loops(a, b))


def test_a_sum_that_is_fused_or_in_another_order_would_be_seen() -> None:
    """The cases of which libraries make different values."""
    a = np.array([[-1, 1 + 2**-12]], np.float32)
    b = np.array([[1], [1 + 2**-12]], np.float32)
    assert fixed.matmul(a, b)[0, 0] == 2**-11  # (1 + 2^-12)^2 is rounded: a fused sum has 2^-24 more
    big = np.array([[2**24, 1, 1]], np.float32)
    assert fixed.matmul(big, np.ones((3, 1), np.float32))[0, 0] == 2**24  # the ones first would make 2^24 + 2
    assert math.copysign(1, fixed.matmul(-np.zeros((1, 1)), np.ones((1, 1)))[0, 0]) == 1  # from +0


@pytest.mark.parametrize("real", REALS)
def test_the_layout_in_memory_and_leading_dimensions_do_not_matter(real: Any) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 7, 5)).astype(real), rng.standard_normal((2, 3, 5, 18)).astype(real)
    expected = np.stack([[in_loops(a[i, j], b[i, j]) for j in range(3)] for i in range(2)])
    assert same(fixed.matmul(a, b), expected)
    for leading in ((6,), (1, 2, 3), (3, 1, 1, 2)):
        found = fixed.matmul(a.reshape(*leading, 7, 5), b.reshape(*leading, 5, 18))
        assert same(found, expected.reshape(*leading, 7, 18))
    turned_a, turned_b = (x.swapaxes(-1, -2).copy().swapaxes(-1, -2) for x in (a, b))
    assert same(fixed.matmul(turned_a, turned_b), expected)
    doubled = np.repeat(a, 2, axis=-1)[..., ::2]
    assert same(fixed.matmul(doubled, b[:, :, ::1]), expected)
    assert same(fixed.matmul(a[..., ::-1], b[:, :, ::-1])[0, 0], in_loops(a[0, 0][:, ::-1], b[0, 0][::-1]))
    a.flags.writeable = False
    assert same(fixed.matmul(a, b), expected)
    packed = np.zeros(a.shape, [("flag", "u1"), ("value", real)])  # values at odd addresses
    packed["value"] = a
    assert not packed["value"].flags.aligned
    assert same(fixed.matmul(packed["value"], b), expected)
    assert same(fixed.sum(packed["value"], 1), fixed.sum(a, 1))
    assert same(fixed.exp(packed["value"]), fixed.exp(a))


def test_the_reference_is_the_same_loop() -> None:
    rng = np.random.default_rng(2)
    a, b = (np.ldexp(rng.standard_normal(9), rng.integers(-60, 60, 9)).astype(np.float32) for _ in range(2))
    assert reference.ordered_dot(a.tolist(), b.tolist(), FP32) == fixed.matmul(a[None], b[:, None])[0, 0]
    assert reference.ordered_dot(a.tolist(), b.tolist(), FP32) == fixed.dot(a, b)
    assert reference.ordered_sum(a.tolist(), FP32) == fixed.sum(a)
    assert reference.ordered_sum([], FP32) == fixed.sum(a[:0])


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.ones((2, 3), np.float32), np.ones((3, 2)), "one dtype, got float32 and float64"),
        (np.ones((2, 3)), np.ones((2, 3)), r"shapes \(..., m, k\) and \(..., k, n\)"),
        (np.ones((2, 2, 3)), np.ones((1, 3, 2)), "shapes"),
        (np.ones(3), np.ones((3, 2)), "shapes"),
        (np.ones((3, 2)), np.ones(2), "shapes"),
        (np.ones((2, 2), np.float16), np.ones((2, 2), np.float16), "must be float32 or float64, got float16"),
        (np.ones((2, 2), int), np.ones((2, 2), int), "must be float32 or float64, got int64"),
    ],
)
def test_operands_that_do_not_fit(a: Array, b: Array, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fixed.matmul(a, b)


# ---- sums ----


@pytest.mark.parametrize("real", REALS)
@given(seed=SEEDS, shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), data=st.data())
def test_a_sum_is_one_after_the_other(real: Any, seed: int, shape: list[int], data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.standard_normal(shape), rng.integers(-30, 30, shape)).astype(real)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    terms = np.moveaxis(x, axis, 0)
    expected = np.zeros(terms.shape[1:], real)
    for term in terms:
        expected = expected + term
    assert same(np.asarray(fixed.sum(x, axis)), np.asarray(expected))
    assert fixed.sum(x, axis, keepdims=True).shape == x.sum(axis, keepdims=True).shape
    assert same(np.asarray(fixed.mean(x, axis)), np.asarray(expected / real(len(terms))))
    total = real(0)
    for term in x.reshape(-1):
        total = total + term
    assert fixed.sum(x) == total
    assert fixed.sum(np.asfortranarray(x)) == total  # C order of the elements, however they lie
    assert fixed.sum(x, keepdims=True).shape == (1,) * x.ndim


def test_norm_and_dot() -> None:
    x = np.array([[3.0, 4.0]])
    assert fixed.norm(x) == 5
    assert fixed.dot(x, x) == 25
    assert type(fixed.dot(np.ones(1, np.float32), np.ones(1, np.float32))) is float
    with pytest.raises(ValueError, match=r"alike, got float64 \(1, 2\) and float64 \(2,\)"):
        fixed.dot(x, x[0])


@given(seed=SEEDS, count=st.integers(1, 6), rows=st.integers(0, 30))
def test_the_rows_of_a_group_are_added_in_their_order(seed: int, count: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    x, groups = rng.standard_normal((rows, 3)).astype(np.float32), rng.integers(0, count, rows)
    expected = np.zeros((count, 3), np.float32)
    for row, group in zip(x, groups, strict=True):
        expected[group] += row
    assert same(fixed.sum_by_group(x, groups, count), expected)


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"groups must lie in 0\.\.1, got 0\.\.2"):
        fixed.sum_by_group(np.ones((2, 2)), np.array([0, 2]), 2)
    with pytest.raises(ValueError, match="groups must lie in"):
        fixed.sum_by_group(np.ones((2, 2)), np.array([0, -1]), 2)
    with pytest.raises(ValueError, match=r"rows must be \(n, width\)"):
        fixed.sum_by_group(np.ones((2, 2)), np.array([0]), 2)


# ---- elementary functions ----

Oracle = Callable[[float, FloatFormat], float]
RIGHT: dict[str, Oracle] = {"exp": reference.exp, "tanh": reference.tanh, "sigmoid": reference.sigmoid}
PATTERNS = st.integers(0, 2**32 - 1).map(lambda bits: np.array(bits, np.uint32).view(np.float32)[()])
BY_SIZE = st.builds(
    lambda exponent, fraction, sign: np.array(sign << 31 | exponent << 23 | fraction, np.uint32).view(np.float32)[()],
    st.integers(127 - 26, 127 + 7),
    st.integers(0, 2**23 - 1),
    st.integers(0, 1),
)


@pytest.mark.parametrize("name", RIGHT)
@given(x=BY_SIZE | PATTERNS)
@settings(max_examples=300, deadline=None)
def test_of_float32_a_function_is_rounded_once(name: str, x: np.float32) -> None:
    """Against exact arithmetic; on all patterns in test_fixed_exhaustive.py."""
    ours = getattr(fixed, name)(np.array([x]))[0]
    if np.isnan(x):
        assert np.isnan(ours)
    elif abs(x) > 1000:
        assert ours == {"exp": np.inf if x > 0 else 0, "tanh": np.sign(x), "sigmoid": x > 0}[name]
    else:
        assert ours == RIGHT[name](float(x), FP32)
        assert ours.dtype == np.float32


@given(x=(BY_SIZE | PATTERNS).map(abs))
@settings(max_examples=300, deadline=None)
def test_of_float32_the_logarithm_is_rounded_once(x: np.float32) -> None:
    ours = fixed.log(np.array([x]))[0]
    if 0 < x < np.inf:
        assert reference.is_log(float(ours), float(x), FP32)
        for other in (np.inf, -np.inf):
            assert not reference.is_log(float(np.nextafter(ours, np.float32(other))), float(x), FP32)
    else:
        assert np.isnan(ours) if np.isnan(x) else ours == (np.inf if x else -np.inf)


def test_the_oracle_lies_around_the_exponential() -> None:
    """Known digits of e, and the width that was asked for."""
    e = Fraction("2.71828182845904523536028747135266249775724709369995")
    for bits in (20, 64, 150):
        low, high = reference.exp_between(Fraction(1), bits)
        assert low < e < high or high - low < Fraction(1, 10**49)
        assert high - low < high / 2**bits
    for x in (-104.0, -1e-3, 1e-30, 3.5, 88.0):
        low, high = reference.exp_between(Fraction(x), 80)
        assert low < high < low * (1 + Fraction(1, 2**80))
    assert not reference.is_log(0.0, 2.0, FP32)
    assert reference.is_log(0.0, 1.0, FP32)


@pytest.mark.parametrize("name", [*RIGHT, "log"])
@given(x=st.floats(-750, 750) | st.floats(-1, 1) | st.floats(0.5, 2) | st.floats(0.98, 1.02))
@example(0.9957419169446378)  # was off by .6 ulp once
@settings(max_examples=300, deadline=None)
def test_of_float64_the_error_is_at_most_as_stated(name: str, x: float) -> None:
    """0.54 ulp where the result is normal: seen by comparing with the exact value, to 40 bits more."""
    x = abs(x) if name == "log" else x
    if x == 0:
        return
    ours = float(getattr(fixed, name)(x))
    if not 2.0**-1022 <= abs(ours) < math.inf:
        return
    ulp = Fraction(math.ulp(ours))
    low, high = Fraction(ours) - ulp * Fraction(54, 100), Fraction(ours) + ulp * Fraction(54, 100)
    if name == "log":
        before, after = reference.exp_between(low, 120), reference.exp_between(high, 120)
        assert before[0] <= Fraction(x) <= after[1]
        return
    exact: Any = {
        "exp": lambda bits: reference.exp_between(Fraction(x), bits),
        "sigmoid": lambda bits: tuple(1 / (1 + end) for end in reversed(reference.exp_between(-Fraction(x), bits))),
        "tanh": lambda bits: tuple(1 - 2 / (end + 1) for end in reference.exp_between(2 * Fraction(x), bits)),
    }
    least, most = exact[name](200)
    assert low <= most
    assert least <= high


def test_the_ends_of_the_functions() -> None:
    """Without a warning, in both types."""
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan])
    expected = {
        "exp": [1, 1, np.inf, 0, np.nan],
        "log": [-np.inf, -np.inf, np.inf, np.nan, np.nan],
        "tanh": [0.0, -0.0, 1, -1, np.nan],
        "sigmoid": [0.5, 0.5, 1, 0, np.nan],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for real in REALS:
            for name, values in expected.items():
                assert same(getattr(fixed, name)(x.astype(real)), np.array(values, real)), name
            assert np.isnan(fixed.log(-np.ones(1, real))[0])
        signalling = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
        for name in expected:
            assert np.isnan(getattr(fixed, name)(signalling)).all()
    assert fixed.exp(710.0) == np.inf
    assert fixed.exp(-745.0) == 5e-324
    assert fixed.exp(-746.0) == 0
    assert fixed.sigmoid(-745.0) == 5e-324


def test_shapes_are_kept() -> None:
    for shape in ((), (0,), (2, 3), (1, 0, 2)):
        assert np.shape(fixed.exp(np.ones(shape))) == shape
    assert fixed.exp(np.ones((4, 6))[::2, ::3]).tolist() == [[float(fixed.exp(1.0))] * 2] * 2
    with pytest.raises(ValueError, match="masked array"):
        fixed.exp(np.ma.array([1.0], mask=[True]))
    with pytest.raises(ValueError, match="must be float32 or float64, got float16"):
        fixed.exp(np.ones(1, np.float16))


def test_logarithms_of_powers_are_exact() -> None:
    exponents = np.arange(-1074, 1024)
    assert np.array_equal(fixed.log2(np.ldexp(1.0, exponents)), exponents)
    tens = range(-307, 309)
    assert [fixed.log10(float(f"1e{k}")) for k in tens] == [float(k) for k in tens]
    x = np.array([3, 5e-324, 1.7e308, 0.1])
    np.testing.assert_allclose(fixed.log2(x), [math.log2(t) for t in x], rtol=2**-52)
    np.testing.assert_allclose(fixed.log10(x), [math.log10(t) for t in x], rtol=2**-52)
    assert fixed.log2(8) == 3


@given(base=st.floats(0, 1), exponent=st.integers(0, 20_000))
def test_a_power_is_the_exact_one_rounded(base: float, exponent: int) -> None:
    if exponent > 300:
        base = max(base, 0.96)
    exact = Fraction(base) ** min(exponent, 300) if exponent <= 300 else None
    ours = fixed.power(base, exponent)
    if exact is not None and (exact == 0 or exact >= Fraction(2) ** -1022):
        assert ours == float(exact)
    halves = fixed.power(base, exponent // 2), fixed.power(base, exponent - exponent // 2)
    assert math.isclose(ours, halves[0] * halves[1], rel_tol=1e-15, abs_tol=1e-320)


def test_powers() -> None:
    assert fixed.power(0.0, 0) == 1
    assert fixed.power(0.0, 3) == 0
    assert fixed.power(2.0, 1000) == 2.0**1000
    assert fixed.power(0.5, 2000) == 0
    with pytest.raises(OverflowError):
        fixed.power(2.0, 1024)
    for base, exponent in ((-1.0, 2), (math.nan, 2), (math.inf, 2), (0.5, -1)):
        with pytest.raises(ValueError, match="base must be finite and at least 0"):
            fixed.power(base, exponent)


def test_equal_ratios() -> None:
    assert fixed.geomspace(1, 8, 4).tolist() == [1, 2, 4, 8]
    np.testing.assert_allclose(fixed.geomspace(1e-3, 1e7, 101), np.geomspace(1e-3, 1e7, 101), rtol=1e-14)
    assert fixed.geomspace(1, 10**7, 1401)[-1] == 1e7
