"""What must hold for every number, every format and every mode, searched by Hypothesis near the ties."""

import math
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from precision_lab.numerics import reference
from precision_lab.numerics.codes import decode, encode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.rounding import is_representable, neighbours, round_to, spacing
from tests.numerics.helpers import CARRIERS, MIRRORED, MODES, REGISTERED, DType, assert_same

Case: TypeAlias = tuple[FloatFormat, DType, float]

CUSTOM = st.builds(FloatFormat.ieee, st.integers(2, 8), st.integers(0, 23))
FORMAT = st.sampled_from(REGISTERED) | CUSTOM
MODE = st.sampled_from(MODES)
CARRIER = st.sampled_from(CARRIERS)
carriers = pytest.mark.parametrize("dtype", CARRIERS, ids=str)


@st.composite
def near_a_tie(draw: st.DrawFn, fmt: FloatFormat) -> float:
    """A value of the format or the middle between it and the next, moved by nothing or very little."""
    code = draw(st.integers(0, 2 ** (fmt.bits - 1) - 1))
    value = reference.decode(code, fmt)
    if not math.isfinite(value):
        value = fmt.max
    ulp = 2.0 ** (max(math.frexp(value)[1] - 1, fmt.emin) - fmt.mantissa_bits) if value else fmt.smallest_subnormal
    x = value + draw(st.sampled_from((0.0, 0.25, 0.5, 0.75, 1.0))) * ulp
    x += draw(st.sampled_from((0, 1, -1))) * ulp * 2.0 ** -draw(st.integers(2, 28))
    direction = draw(st.sampled_from((0.0, math.inf, math.nan)))
    x = x if math.isnan(direction) else math.nextafter(x, direction)
    return -x if draw(st.booleans()) else x


@st.composite
def numbers(draw: st.DrawFn, fmt: FloatFormat, dtype: DType) -> float:
    """Half of them near a tie of the format, half arbitrary doubles; rounded to the carrier."""
    x = draw(near_a_tie(fmt) | st.floats(width=64))
    with np.errstate(over="ignore", under="ignore"):
        return float(dtype.type(x))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    fmt, dtype = draw(FORMAT), draw(CARRIER)
    return fmt, dtype, draw(numbers(fmt, dtype))


def one(x: float, fmt: FloatFormat, dtype: DType, mode: str, **options: Any) -> float:
    return float(round_to(np.array([x], dtype), fmt, mode, **options)[0])


@settings(max_examples=1500)
@given(cases(), MODE, st.booleans(), st.booleans())
@example((FORMATS["bf16"], CARRIERS[1], 1 + 2.0**-8 + 2.0**-40), "ties_to_even", True, False)
@example((FORMATS["fp8_e4m3fn"], CARRIERS[0], 464.0), "ties_to_even", True, False)
def test_it_is_the_reference(case: Case, mode: str, subnormals: bool, saturate: bool) -> None:
    fmt, dtype, x = case
    options: dict[str, Any] = {"subnormals": subnormals, "saturate": saturate}
    expected = reference.round_to(x, fmt, mode, **options)
    assert_same(np.float64(one(x, fmt, dtype, mode, **options)), np.float64(expected), [x])


@settings(max_examples=500)
@given(cases(), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 2))
def test_stochastic_is_the_reference(case: Case, seed: int, first: int) -> None:
    fmt, dtype, x = case
    uniform = Fraction(reference.random_number(seed, first), 2**16)
    expected = reference.round_to(x, fmt, "stochastic", uniform=uniform)
    assert_same(np.float64(one(x, fmt, dtype, "stochastic", rng=(seed, first))), np.float64(expected), [x])


@given(cases(), MODE)
def test_idempotent(case: Case, mode: str) -> None:
    fmt, dtype, x = case
    once = one(x, fmt, dtype, mode)
    # without NaN, NaN becomes a zero; without infinities, infinity becomes NaN
    for again in (*MODES, "stochastic"):
        assert_same(np.float64(one(once, fmt, dtype, again)), np.float64(once))
    assert is_representable(dtype.type(once), fmt)


@given(cases(), MODE, st.data())
def test_monotonic(case: Case, mode: str, data: st.DataObject) -> None:
    fmt, dtype, x = case
    y = data.draw(numbers(fmt, dtype))
    assume(not math.isnan(x) and not math.isnan(y))
    low, high = (one(v, fmt, dtype, mode, saturate=not fmt.has_infinity) for v in sorted((x, y)))
    assert low <= high


@given(cases(), MODE, st.booleans(), st.booleans())
def test_mirrored(case: Case, mode: str, subnormals: bool, saturate: bool) -> None:
    fmt, dtype, x = case
    options: dict[str, Any] = {"subnormals": subnormals, "saturate": saturate}
    there = one(-x, fmt, dtype, mode, **options)
    here = one(x, fmt, dtype, MIRRORED[mode], **options)
    # fnuz formats have one zero and one NaN, their own mirror images
    alone = fmt.specials == "fnuz" and (here == 0 or math.isnan(here))
    assert_same(np.float64(there), np.float64(here if alone else -here), [x])


@given(cases())
def test_directed_modes_enclose(case: Case) -> None:
    fmt, dtype, x = case
    assume(abs(x) <= fmt.max)
    down, up = one(x, fmt, dtype, "toward_negative"), one(x, fmt, dtype, "toward_positive")
    assert down <= x <= up
    assert (down == up) == (down == x == up)
    for mode in (*MODES, "stochastic"):
        assert one(x, fmt, dtype, mode) in (down, up)
    assert abs(one(x, fmt, dtype, "toward_zero")) <= abs(x)
    assert one(x, fmt, dtype, "toward_zero") == (down if x > 0 else up)
    # nothing of the format lies between
    if down != up:
        lower, upper = neighbours(dtype.type(x), fmt)
        assert (float(lower), float(upper)) == (down, up)
        assert up - down == spacing(dtype.type(x), fmt)


@given(cases())
def test_ties_modes_are_nearest(case: Case) -> None:
    fmt, dtype, x = case
    assume(abs(x) <= fmt.max)
    exact = Fraction(x)
    lower, upper = (abs(Fraction(one(x, fmt, dtype, m)) - exact) for m in ("toward_negative", "toward_positive"))
    for mode in ("ties_to_even", "ties_to_away"):
        assert abs(Fraction(one(x, fmt, dtype, mode)) - exact) == min(lower, upper)


@settings(max_examples=300)
@given(st.integers(1, 12), st.integers(2, 10), st.data(), st.booleans())
def test_to_odd_makes_two_roundings_one(m: int, more: int, data: st.DataObject, subnormals: bool) -> None:
    """Boldo and Melquiond 2008: to odd with two more bits, then to nearest, is as one rounding."""
    narrow, wide = FloatFormat.ieee(8, m), FloatFormat.ieee(8, m + more)
    x = data.draw(near_a_tie(narrow) | near_a_tie(wide))
    assume(abs(x) < narrow.max)
    for mode in ("ties_to_even", "ties_to_away"):
        first = one(x, wide, CARRIERS[1], "to_odd")
        assert one(first, narrow, CARRIERS[1], mode, subnormals=subnormals) == one(
            x, narrow, CARRIERS[1], mode, subnormals=subnormals
        )


@given(FORMAT, st.data())
def test_codes_round_trip(fmt: FloatFormat, data: st.DataObject) -> None:
    code = data.draw(st.integers(0, 2**fmt.bits - 1))
    dtype = data.draw(CARRIER)
    value = decode(code, fmt, dtype)
    assert_same(value, dtype.type(reference.decode(code, fmt)))
    if not np.isnan(value):
        assert encode(value, fmt) == code


@given(cases(), MODE, st.integers(0, 2**64 - 1))
def test_encode_then_decode_is_round_to(case: Case, mode: str, seed: int) -> None:
    fmt, dtype, x = case
    for how in (mode, "stochastic"):
        array = np.array([x], dtype)
        codes = encode(array, fmt, how, rng=seed)
        assert_same(decode(codes, fmt, dtype), round_to(array, fmt, how, rng=seed), array)


@carriers
@given(st.lists(st.floats(width=32), max_size=40), FORMAT, MODE)
def test_an_array_is_its_elements(dtype: DType, values: list[float], fmt: FloatFormat, mode: str) -> None:
    x = np.array(values, dtype)
    together = round_to(x, fmt, mode)
    assert_same(together, np.array([one(v, fmt, dtype, mode) for v in values], dtype))
