"""One number at a time: read exactly, rounded once, taken apart; against exact arithmetic and by hand."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from precision_lab.numerics import reference
from precision_lab.numerics.codes import encode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.inspection import Inspection, inspect_number, parse_number, to_double_by_odd
from precision_lab.numerics.rounding import neighbours, round_to, spacing
from tests.numerics.helpers import MODES, REGISTERED, UP_TO_8_BITS, assert_same, hard_values, runs, unsigned_nan

LARGEST = Fraction(np.finfo(np.float64).max.item())
TINIEST = Fraction(2) ** -1074


def same(a: float, b: float) -> bool:
    """Equal, NaN and the sign of a zero included."""
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


# ---- reading ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", Fraction(0)),
        ("1", Fraction(1)),
        ("-17", Fraction(-17)),
        ("+3", Fraction(3)),
        ("0.1", Fraction(1, 10)),  # not the double
        (".5", Fraction(1, 2)),
        ("1.", Fraction(1)),
        ("1e-7", Fraction(1, 10**7)),
        ("1E5", Fraction(10**5)),
        ("-2.5e+3", Fraction(-2500)),
        ("65519.99", Fraction(6551999, 100)),
        ("1/3", Fraction(1, 3)),
        ("-2/6", Fraction(-1, 3)),
        ("2^-25", Fraction(1, 2**25)),
        ("-2^-25", Fraction(-1, 2**25)),
        ("+2^3", Fraction(8)),
        ("2^+3", Fraction(8)),
        ("2^0", Fraction(1)),
        ("2**-24", Fraction(1, 2**24)),
        ("1.5*2^-14", Fraction(3, 2**15)),
        ("-1.5*2**-14", Fraction(-3, 2**15)),
        ("1/3*2^4", Fraction(16, 3)),
        ("3e2*2^-1", Fraction(150)),
        ("0x1.8p-3", Fraction(3, 16)),
        ("-0X1P4", Fraction(-16)),
        ("0x10", Fraction(16)),
        ("0x1p-1074", TINIEST),
        ("1_000.5", Fraction(2001, 2)),
        ("2^-1_0", Fraction(1, 1024)),
        ("  2^-25\n", Fraction(1, 2**25)),
        ("2^10000", Fraction(2) ** 10000),
        ("1e-10000", Fraction(1, 10**10000)),
        ("1." + "0" * 60 + "1", 1 + Fraction(1, 10**61)),
    ],
)
def test_numbers(text: str, expected: Fraction) -> None:
    value = parse_number(text)
    assert isinstance(value, Fraction)
    assert value == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inf", math.inf),
        ("+inf", math.inf),
        ("-inf", -math.inf),
        ("Infinity", math.inf),
        ("-INFINITY", -math.inf),
        ("nan", math.nan),
        ("NaN", math.nan),
        ("-0", -0.0),
        ("-0.0", -0.0),
        ("-0/5", -0.0),
        ("-0e9", -0.0),
        ("-0*2^4", -0.0),
        ("-0x0p0", -0.0),
        (" -0 ", -0.0),
    ],
)
def test_what_a_fraction_cannot_hold(text: str, expected: float) -> None:
    value = parse_number(text)
    assert isinstance(value, float)
    assert same(value, expected)


def test_the_sign_of_nan() -> None:
    signs = [math.copysign(1, float(parse_number(text))) for text in ("nan", "+nan", "-nan")]
    assert signs == [1, 1, -1]


GARBAGE = [
    *("", " ", "\n", "-", "+", ".", "e5", "abc", "1e", "1e5.5", "--1", "+-1", "1 2", "1,5", "1..2", "(1)", "1j"),
    *("2^", "^2", "2^x", "2^1.5", "2^^3", "2*^3", "*2^3", "1*2*2^3", "1.5^2", "3^2", "3**2", "2***3", "2^3*1.5"),
    *("1/0", "0/0", "1/", "/3", "1/3/5", "1/2.5", "1.5/2", "1/0*2^3", "x*2^3", "inf*2^3", "nan*2^3", "1/inf"),
    *("0x", "0xg", "0x1p", "0x1.8*2^3", "0x1p99999", "10x1", "infinit", "nano", "in f", "one", "½", "∞", "#"),
    *("1e99999999", "-1e99999999", "1e-99999999", "1e10001", "1e-10001", "1e+99999999", "1e9_9999_999"),
    *("2^99999999", "2^-99999999", "2^10001", "2^-10001", "1.5*2^99999999", "2**99999999", "2^" + "9" * 5000),
    *("1e" + "9" * 5000, "9" * 5000, "1/" + "9" * 5000, "1\n2", "nan(1)", "\0", "1\0"),
]


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: repr(text)[:20])
def test_garbage_is_refused_in_one_line_before_large_numbers_are_made(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"cannot read .* as a number; write it like") as caught:
            parse_number(text)
        assert tracemalloc.get_traced_memory()[1] < 2**20  # 2^99999999 has 12 MB
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert repr(text) in str(caught.value)


@settings(deadline=None)
@given(st.fractions(max_denominator=10**6), st.integers(-300, 300))
def test_what_is_written_is_read(number: Fraction, power: int) -> None:
    for text, expected in [
        (str(number), number),
        (f"{number}*2^{power}", number * Fraction(2) ** power),
        (f"{number}*2**{power}", number * Fraction(2) ** power),
    ]:
        value = parse_number(text)
        assert value == expected
        assert isinstance(value, Fraction)


@settings(deadline=None)
@given(st.floats(allow_nan=False))
def test_every_double_is_read(x: float) -> None:
    assert same(float(parse_number(x.hex())), x) or (math.isinf(x) and parse_number(str(x)) == x)
    if math.isfinite(x):
        # repr is a decimal of its own, which rounds to x but need not be it
        assert same(float(parse_number(repr(x))), x)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="0123456789.eE+-*/^x p_naif", max_size=12))
@example("1e9*2^9")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        value = parse_number(text)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert isinstance(value, Fraction | float)
    assert message.isprintable()


# ---- rounding to odd ----


def odd_by_search(value: Fraction) -> set[float]:
    """The double itself, or that of its two neighbours whose significand is odd; found without their exponents."""
    magnitude = abs(value)
    near = float(magnitude) if magnitude <= LARGEST else math.inf  # the nearest, by Python
    sign = -1.0 if value < 0 else 1.0
    if math.isfinite(near) and Fraction(near) == magnitude:
        return {sign * near}
    other = math.nextafter(near, math.inf if math.isfinite(near) and Fraction(near) < magnitude else 0.0)
    return {sign * v for v in (near, other) if math.isfinite(v) and int(np.float64(v).view(np.uint64)) % 2}


RATIONALS = st.builds(
    lambda n, d, power: Fraction(n, d) * Fraction(2) ** power,
    st.integers(-(2**70), 2**70),
    st.integers(1, 2**70),
    st.integers(-1200, 1100),
)


@settings(deadline=None, max_examples=300)
@given(RATIONALS | st.floats(allow_nan=False, allow_infinity=False).map(Fraction))
@example(TINIEST)
@example(TINIEST / 3)
@example(TINIEST * Fraction(3, 2))
@example(TINIEST * Fraction(5, 2))
@example(Fraction(2) ** -1022 - TINIEST / 2)
@example(Fraction(2) ** -1022 + TINIEST / 2)
@example(LARGEST)
@example(LARGEST + 1)
@example(Fraction(2) ** 1024)
@example(Fraction(-(2**53) - 1))
@example(Fraction(2**54 - 1))
@example(Fraction(1, 3))
def test_to_odd(value: Fraction) -> None:
    assert {to_double_by_odd(value)} == odd_by_search(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Fraction(0), 0.0),
        (Fraction(1), 1.0),
        (1 + Fraction(1, 2**60), 1 + 2.0**-52),  # 1 is even
        (1 - Fraction(1, 2**60), 1 - 2.0**-53),
        (-1 - Fraction(1, 2**60), -1 - 2.0**-52),
        (Fraction(2**53 + 1), 2.0**53 + 2),
        (TINIEST / 10**9, 5e-324),
        (-TINIEST / 10**9, -5e-324),
        (Fraction(10) ** 400, float(LARGEST)),
        (Fraction(-10) ** 401, -float(LARGEST)),
        (Fraction(1, 10**400), 5e-324),
    ],
)
def test_to_odd_by_hand(value: Fraction, expected: float) -> None:
    assert same(to_double_by_odd(value), expected)


def exact_rounding(value: Fraction, fmt: FloatFormat) -> float:
    """Round a rational once, ties to even: the magnitude, infinite where it overflows."""
    c = reference.candidates(abs(value), fmt)
    result = (c.k + reference.rounds_away(c, False, "ties_to_even", None)) * c.spacing
    return float(result) if result <= Fraction(fmt.max) else math.inf


@st.composite
def near_ties(draw: st.DrawFn) -> tuple[Fraction, FloatFormat]:
    """A value or tie of a format, and what is next to it by far less than a double could tell."""
    fmt = draw(st.sampled_from(REGISTERED))
    exponent = draw(st.integers(fmt.emin - 2, fmt.emax + 1))
    half_spacing = Fraction(2) ** (max(exponent, fmt.emin) - fmt.mantissa_bits - 1)
    steps = draw(st.integers(1, 2 ** (fmt.mantissa_bits + 2)))
    offset = draw(st.sampled_from([-1, 0, 1])) * Fraction(1, 2 ** draw(st.integers(30, 400)))
    return steps * half_spacing * (1 + offset), fmt


@settings(deadline=None, max_examples=300)
@given(near_ties())
def test_rounded_again_it_is_as_if_rounded_once(case: tuple[Fraction, FloatFormat]) -> None:
    value, fmt = case
    expected = exact_rounding(value, fmt)
    stored = inspect_number(value, fmt).stored
    if math.isinf(expected):
        assert stored == math.inf or math.isnan(stored) or stored == fmt.max
    else:
        assert stored == expected
    mirrored = inspect_number(-value, fmt).stored
    assert mirrored == -stored or (math.isnan(mirrored) and math.isnan(stored))


# ---- one number ----


def look(text: str, name: str) -> Inspection:
    return inspect_number(parse_number(text), name)


@pytest.mark.parametrize(
    ("text", "name", "code", "stored", "kind", "lost"),
    [
        ("1e-7", "fp16", 2, 2.0**-23, "subnormal", "rounded"),
        ("2^-25", "fp16", 0, 0.0, "zero", "flushed"),
        ("-2^-25", "fp16", 0x8000, -0.0, "zero", "flushed"),
        ("2^-24", "fp16", 1, 2.0**-24, "subnormal", "exact"),
        ("1/33554431", "fp16", 1, 2.0**-24, "subnormal", "rounded"),  # just above the tie at 2^-25
        ("2^-14", "fp16", 0x0400, 2.0**-14, "normal", "exact"),
        ("65504", "fp16", 0x7BFF, 65504.0, "normal", "exact"),
        ("65519.99", "fp16", 0x7BFF, 65504.0, "normal", "rounded"),
        ("65520", "fp16", 0x7C00, math.inf, "infinity", "overflowed"),
        ("-65520", "fp16", 0xFC00, -math.inf, "infinity", "overflowed"),
        ("inf", "fp16", 0x7C00, math.inf, "infinity", "exact"),
        ("1e400", "fp16", 0x7C00, math.inf, "infinity", "overflowed"),
        ("1e-400", "fp16", 0, 0.0, "zero", "flushed"),
        ("nan", "fp16", 0x7E00, math.nan, "nan", "nan"),
        ("-nan", "fp16", 0xFE00, math.nan, "nan", "nan"),
        ("0", "fp16", 0, 0.0, "zero", "exact"),
        ("-0", "fp16", 0x8000, -0.0, "zero", "exact"),
        ("-0", "fp8_e4m3fnuz", 0, 0.0, "zero", "exact"),
        ("0.1", "bf16", 0x3DCD, 0.10009765625, "normal", "rounded"),
        ("257/256", "bf16", 0x3F80, 1.0, "normal", "rounded"),  # the tie 1 + 2^-8
        ("1.00390625000001", "bf16", 0x3F81, 1.0078125, "normal", "rounded"),  # above it by less than float32 holds
        ("464", "fp8_e4m3fn", 0x7E, 448.0, "normal", "rounded"),
        ("464.0000001", "fp8_e4m3fn", 0x7F, math.nan, "nan", "overflowed"),
        ("inf", "fp8_e4m3fn", 0x7F, math.nan, "nan", "overflowed"),
        ("nan", "fp8_e4m3fn", 0x7F, math.nan, "nan", "nan"),
        ("nan", "fp8_e4m3fnuz", 0x80, math.nan, "nan", "nan"),
        ("1e9", "fp8_e4m3fnuz", 0x80, math.nan, "nan", "overflowed"),
        ("6.9", "fp4_e2m1fn", 7, 6.0, "normal", "rounded"),
        ("7", "fp4_e2m1fn", 7, 6.0, "normal", "overflowed"),
        ("inf", "fp4_e2m1fn", 7, 6.0, "normal", "overflowed"),
        ("-inf", "fp4_e2m1fn", 15, -6.0, "normal", "overflowed"),
        ("nan", "fp4_e2m1fn", 8, -0.0, "zero", "nan"),  # the zero of the opposite sign
        ("1/3", "fp32", 0x3EAAAAAB, float(np.float32(1 / 3)), "normal", "rounded"),
        ("2^-149", "fp32", 1, 2.0**-149, "subnormal", "exact"),
        ("2^-150", "fp32", 0, 0.0, "zero", "flushed"),
    ],
)
def test_by_hand(text: str, name: str, code: int, stored: float, kind: str, lost: str) -> None:
    found = look(text, name)
    assert found.format is FORMATS[name]
    assert (found.code, found.kind, found.lost) == (code, kind, lost)
    assert same(found.stored, stored)
    fmt = found.format
    assert (len(found.sign), len(found.exponent), len(found.significand)) == (1, fmt.exponent_bits, fmt.mantissa_bits)
    assert int(found.sign + found.exponent + found.significand, 2) == code


def test_the_fields_by_hand() -> None:
    found = look("1e-7", "fp16")
    assert (found.sign, found.exponent, found.significand) == ("0", "00000", "0000000010")
    assert found.error == float(Fraction(1, 2**23) - Fraction(1, 10**7))
    assert found.relative_error == float((Fraction(1, 2**23) - Fraction(1, 10**7)) * 10**7)
    assert (found.below, found.above, found.ulp) == (2.0**-24, 3 * 2.0**-24, 2.0**-24)
    found = look("-1.5", "bf16")
    assert (found.sign, found.exponent, found.significand) == ("1", "01111111", "1000000")
    assert (found.below, found.above, found.ulp) == (-1.5 - 2**-7, -1.5 + 2**-7, 2.0**-7)
    assert (found.error, found.relative_error) == (0, 0)


@pytest.mark.parametrize(
    ("text", "name", "error", "relative"),
    [
        ("2^-25", "fp16", -(2.0**-25), -1.0),
        ("-2^-25", "fp16", 2.0**-25, -1.0),
        ("257/256", "bf16", -(2.0**-8), -1 / 257),
        ("0", "fp16", 0.0, math.nan),
        ("-0", "fp16", 0.0, math.nan),
        ("65520", "fp16", math.nan, math.nan),
        ("inf", "fp16", math.nan, math.nan),
        ("nan", "fp16", math.nan, math.nan),
        ("nan", "fp4_e2m1fn", math.nan, math.nan),
        ("inf", "fp4_e2m1fn", math.nan, math.nan),
        ("8", "fp4_e2m1fn", -2.0, -0.25),
        ("1e-400", "fp16", -0.0, -1.0),  # the error is below the doubles, its share is not
    ],
)
def test_errors_by_hand(text: str, name: str, error: float, relative: float) -> None:
    found = look(text, name)
    assert found.error == error or (math.isnan(found.error) and math.isnan(error))
    assert found.relative_error == relative or (math.isnan(found.relative_error) and math.isnan(relative))


@pytest.mark.parametrize(
    ("text", "name", "below", "above", "ulp"),
    [
        ("1", "fp16", 1 - 2.0**-11, 1 + 2.0**-10, 2.0**-10),
        ("0", "fp16", -(2.0**-24), 2.0**-24, 2.0**-24),
        ("65504", "fp16", 65472, math.inf, 32),
        ("inf", "fp16", 65504, math.nan, math.nan),
        ("448", "fp8_e4m3fn", 416, math.nan, 32),
        ("6", "fp4_e2m1fn", 4, math.nan, 2),
        # of the stored value, not of the number
        ("2047.9", "fp16", 2047, 2050, 2),
        ("-2047.9", "fp16", -2050, -2047, 2),
        ("65520", "fp16", 65504, math.nan, math.nan),
        ("2^-25", "fp16", -(2.0**-24), 2.0**-24, 2.0**-24),
        ("nan", "fp16", math.nan, math.nan, math.nan),
    ],
)
def test_neighbours_by_hand(text: str, name: str, below: float, above: float, ulp: float) -> None:
    found = look(text, name)
    assert [found.below, found.above, found.ulp] == pytest.approx([below, above, ulp], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("fmt", UP_TO_8_BITS, ids=str)
def test_all_codes_of_the_small_formats(fmt: FloatFormat) -> None:
    """Every value is stored exactly, under its own code, between the values of the codes beside it."""
    values = {code: reference.decode(code, fmt) for code in range(2**fmt.bits)}
    finite = sorted({v for v in values.values() if math.isfinite(v)})
    for code, value in values.items():
        number: Any = value if math.isinf(value) or math.isnan(value) or value == 0 else Fraction(value)
        found = inspect_number(number, fmt)
        digits = found.sign + found.exponent + found.significand
        assert (len(found.sign), len(found.exponent), len(digits)) == (1, fmt.exponent_bits, fmt.bits)
        assert int(digits, 2) == found.code
        assert same(reference.decode(found.code, fmt), found.stored)
        assert same(found.stored, value)
        if math.isnan(value):  # several codes may mean NaN
            assert (found.kind, found.lost) == ("nan", "nan")
            continue
        assert found.code == code
        assert found.lost == "exact"
        field = code >> fmt.mantissa_bits & (2**fmt.exponent_bits - 1)
        if math.isfinite(value):
            assert found.kind == ("zero" if value == 0 else "normal" if field else "subnormal")
            assert (found.error, found.ulp) == (0, Fraction(2) ** (max(field, 1) - fmt.bias - fmt.mantissa_bits))
            place = finite.index(value)
            beyond = math.inf if fmt.has_infinity else math.nan
            below = finite[place - 1] if place else -beyond
            above = finite[place + 1] if place + 1 < len(finite) else beyond
            assert [found.below, found.above] == pytest.approx([below, above], rel=0, abs=0, nan_ok=True)
        else:
            assert found.kind == "infinity"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", [*REGISTERED, FloatFormat.ieee(6, 9), FloatFormat.ieee(8, 0)], ids=str)
def test_one_number_is_rounded_as_arrays_are(fmt: FloatFormat, mode: str) -> None:
    """The exact arithmetic that one number goes through, and the compiled loops: the same bits."""
    x = np.unique(hard_values(fmt, np.dtype(np.float64), runs(fmt, 2 ** max(0, fmt.bits - 6))).view(np.uint64))
    x = x[:: max(1, x.size // 500)].view(np.float64)
    for number, stored, code in zip(x.tolist(), round_to(x, fmt, mode), encode(x, fmt, mode), strict=True):
        rounded = reference.round_to(number, fmt, mode)
        assert_same(np.float64(rounded), stored)
        assert reference.encode(rounded, fmt) == code
        if mode == "ties_to_even":
            found = inspect_number(number, fmt)
            assert_same(np.float64(found.stored), stored)
            assert found.code == code
            below, above = neighbours(stored, fmt)
            expected = np.array([below, above, spacing(stored, fmt)])
            assert_same(unsigned_nan(np.array([found.below, found.above, found.ulp])), unsigned_nan(expected))


@settings(deadline=None, max_examples=200)
@given(RATIONALS.filter(lambda number: abs(number) <= LARGEST), st.sampled_from(REGISTERED))
def test_any_number(number: Fraction, fmt: FloatFormat) -> None:
    found = inspect_number(number, fmt)
    rounded = exact_rounding(number, fmt) if number else 0.0
    if math.isinf(rounded):
        assert found.lost == "overflowed"
        assert found.stored == (fmt.max if number > 0 else fmt.min) or not math.isfinite(found.stored)
        return
    assert abs(found.stored) == rounded
    exact = Fraction(rounded) == abs(number)
    assert found.lost == ("exact" if exact else "flushed" if rounded == 0 else "rounded")
    difference = Fraction(found.stored) - number
    assert found.error == float(difference)
    if number:
        assert found.relative_error == float(difference / number)
    assert not found.below >= found.stored
    assert not found.above <= found.stored


@pytest.mark.parametrize("x", [1.5, -0.1, 2.0**-24, 5e-324, 1e300, np.float64(0.3), 1, -3])
def test_a_double_and_its_fraction_are_one_number(x: float) -> None:
    assert repr(inspect_number(x, "fp16")) == repr(inspect_number(Fraction(x), "fp16"))  # in which NaN is itself


def test_an_unknown_format() -> None:
    with pytest.raises(ValueError, match="unknown format 'fp17'"):
        inspect_number(1.0, "fp17")


def test_integers_and_numpy_scalars_are_taken_exactly() -> None:
    assert inspect_number(2**60 + 2**36 + 1, "fp32").stored == 2.0**60 + 2.0**37  # 2^60 by way of a double
    assert inspect_number(np.float32(0.1), "fp32").lost == "exact"


def test_a_custom_format() -> None:
    found = inspect_number(Fraction(1, 3), "e6m9")
    assert (found.format.name, len(found.exponent), len(found.significand)) == ("e6m9", 6, 9)
    assert found.stored == exact_rounding(Fraction(1, 3), found.format)


# ---- what went wrong once ----


@pytest.mark.parametrize("text", ["1e10001*2^3", "1e-10001*2^3", "-1e20000*2^3"])
def test_the_exponent_of_a_factor_is_limited(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse_number(text)


@pytest.mark.parametrize("text", ["--1*2^3", "+-1*2^3", "-+1*2^3"])
def test_two_signs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse_number(text)


def test_hexadecimal_floats_are_exact() -> None:
    # a hair above the tie at 2^-25: fp16 has it as 2^-24
    value = parse_number("0x1.000000000000008p-25")
    assert value == Fraction(1, 2**25) * (1 + Fraction(1, 2**57))
    assert inspect_number(value, "fp16").lost == "rounded"
    assert parse_number("0x1p-1080") == Fraction(1, 2**1080)


@pytest.mark.parametrize("name", ["fp6_e2m3fn", "fp6_e3m2fn", "fp4_e2m1fn"])
def test_a_huge_number_where_overflow_is_clamped(name: str) -> None:
    found = look("1e400", name)
    assert (found.stored, found.lost) == (FORMATS[name].max, "overflowed")
    assert (found.error, found.relative_error) == (-math.inf, -1.0)  # correctly rounded, to what is no finite double
    assert (look("-1e400", name).error, look("-1e400", name).relative_error) == (math.inf, -1.0)


@pytest.mark.parametrize("text", ["0x1.e99999p+0", "0xe10001", "-0x1.9e20000p-3", "0x1.999999999999ap-4"])
def test_an_e_in_a_hexadecimal_float_is_a_digit(text: str) -> None:
    assert parse_number(text) == Fraction(float.fromhex(text))


def test_an_error_below_the_doubles_is_one() -> None:
    assert inspect_number(1 + Fraction(1, 10**400), "fp16").lost == "rounded"
