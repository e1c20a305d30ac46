"""The reference: hand-computed cases, the definition of rounding itself, and the published vectors of Threefry."""

import math
from fractions import Fraction

import numpy as np
import pytest

from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS, FloatFormat
from tests.numerics.helpers import (
    CARRIERS,
    MODES,
    REGISTERED,
    SWITCHES,
    UP_TO_8_BITS,
    DType,
    Oracle,
    assert_same,
    by_reference,
    hard_values,
    runs,
)

FP8 = FORMATS["fp8_e4m3fn"]
TINY = FloatFormat.ieee(3, 1)  # 0, 1/8 (subnormal), 1/4, 3/8, 1/2, 3/4, 1, 3/2, 2, 3, 4, 6, 8, 12, infinity


# --- hand-computed ---------------------------------------------------------------------------------------------------


def test_values_of_a_tiny_format() -> None:
    assert list(reference.finite_values(TINY)) == [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12]


@pytest.mark.parametrize(
    ("mode", "expected"),
    # 1.25 lies between 1 (even) and 1.5; 1.75 between 1.5 and 2 (even); 1.3 is above the half
    [
        ("ties_to_even", [1, 2, 1.5, -1, -2, 1]),
        ("ties_to_away", [1.5, 2, 1.5, -1.5, -2, 1]),
        ("toward_zero", [1, 1.5, 1, -1, -1.5, 1]),
        ("toward_positive", [1.5, 2, 1.5, -1, -1.5, 1]),
        ("toward_negative", [1, 1.5, 1, -1.5, -2, 1]),
        ("to_odd", [1.5, 1.5, 1.5, -1.5, -1.5, 1]),
    ],
)
def test_modes_by_hand(mode: str, expected: list[float]) -> None:
    assert [reference.round_to(x, TINY, mode) for x in (1.25, 1.75, 1.3, -1.25, -1.75, 1.0)] == expected


@pytest.mark.parametrize(
    ("mode", "large", "negative"),
    [
        ("ties_to_even", math.inf, -math.inf),
        ("ties_to_away", math.inf, -math.inf),
        ("toward_zero", 12, -12),
        ("toward_positive", math.inf, -12),
        ("toward_negative", 12, -math.inf),
        ("to_odd", 12, -12),
    ],
)
def test_overflow_by_hand(mode: str, large: float, negative: float) -> None:
    assert reference.round_to(14.0, TINY, mode) == large
    assert reference.round_to(-1e300, TINY, mode) == negative
    assert reference.round_to(14.0, TINY, mode, saturate=True) == 12
    # an infinity is no overflow: only `saturate` touches it
    assert reference.round_to(math.inf, TINY, mode) == math.inf
    assert reference.round_to(-math.inf, TINY, mode, saturate=True) == -12


def test_subnormals_by_hand() -> None:
    assert reference.round_to(0.125, TINY) == 0.125
    assert reference.round_to(0.0625, TINY) == 0  # the tie between 0 and 1/8
    assert reference.round_to(0.1875, TINY) == 0.25  # between 1/8 (odd) and 1/4: a result that is normal again
    assert reference.round_to(0.1875, TINY, subnormals=False) == 0.25  # the result decides, not the input
    assert math.copysign(1, reference.round_to(-0.125, TINY, subnormals=False)) == -1
    assert reference.round_to(-0.125, TINY, subnormals=False) == 0


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("fp8_e4m3fn", math.inf, math.nan),
        ("fp8_e4m3fn", -math.inf, -math.nan),
        ("fp8_e4m3fnuz", -0.0, 0.0),
        ("fp8_e4m3fnuz", -1e-9, 0.0),
        ("fp8_e4m3fnuz", math.nan, -math.nan),
        ("fp8_e4m3fnuz", math.inf, -math.nan),
        ("fp6_e2m3fn", math.inf, 7.5),
        ("fp6_e2m3fn", math.nan, -0.0),
        ("fp4_e2m1fn", -math.nan, 0.0),
        ("fp4_e2m1fn", -1e9, -6.0),
        ("fp16", -math.nan, -math.nan),
        ("bf16", -0.0, -0.0),
    ],
)
def test_specials_by_hand(name: str, x: float, expected: float) -> None:
    assert_same(np.float64(reference.round_to(x, FORMATS[name])), np.float64(expected))


def test_stochastic_by_hand() -> None:
    # 1.125 is a quarter of the way from 1 to 1.5: away from zero for the last quarter of the uniform numbers
    assert [reference.round_to(1.125, TINY, "stochastic", uniform=Fraction(i, 4)) for i in range(4)] == [1, 1, 1, 1.5]
    assert reference.round_to(-1.125, TINY, "stochastic", uniform=Fraction(3, 4)) == -1.5
    with pytest.raises(ValueError, match="uniform"):
        reference.round_to(1.125, TINY, "stochastic")
    with pytest.raises(ValueError, match="unknown rounding mode 'rne'"):
        reference.round_to(1.125, TINY, "rne")


def test_floor_log2() -> None:
    for e in (-1074, -3, 0, 1, 52, 1023):
        power = Fraction(2) ** e
        assert reference.floor_log2(power) == e
        assert reference.floor_log2(power * Fraction(3, 2)) == e
        assert reference.floor_log2(power * Fraction(2**60 - 1, 2**60)) == e - 1


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("fp16", 0x3C01, 1 + 2.0**-10),
        ("fp16", 0x8001, -(2.0**-24)),
        ("fp16", 0x7C00, math.inf),
        ("fp16", 0xFC00, -math.inf),
        ("fp16", 0x7C01, math.nan),
        ("fp16", 0xFC01, -math.nan),
        ("fp16", 0x8000, -0.0),
        ("fp8_e4m3fn", 0x7E, 448),
        ("fp8_e4m3fn", 0xFF, -math.nan),
        ("fp8_e4m3fnuz", 0x80, -math.nan),
        ("fp8_e4m3fnuz", 0xFF, -240),
        ("fp6_e2m3fn", 0x3F, -7.5),
        ("fp4_e2m1fn", 0x7, 6),
    ],
)
def test_codes_by_hand(name: str, code: int, expected: float) -> None:
    assert_same(np.float64(reference.decode(code, FORMATS[name])), np.float64(expected))


# --- against the definition: the nearest of all values ---------------------------------------------------------------


@pytest.mark.parametrize("fmt", [*REGISTERED, TINY, FloatFormat.ieee(8, 0)], ids=str)
def test_encode_is_the_inverse_of_decode(fmt: FloatFormat) -> None:
    positive = runs(fmt, 2 ** max(0, fmt.bits - 12))
    for code in [*positive, *(2 ** (fmt.bits - 1) + c for c in positive)]:
        value = reference.decode(code, fmt)
        if not math.isnan(value):
            assert reference.encode(value, fmt) == code


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_encode_refuses_what_has_no_code(value: float) -> None:
    with pytest.raises(ValueError, match=f"{value} has no code in fp4_e2m1fn"):
        reference.encode(value, FORMATS["fp4_e2m1fn"])


@pytest.mark.parametrize("fmt", UP_TO_8_BITS, ids=str)
def test_it_is_the_nearest_value(fmt: FloatFormat) -> None:
    """Search all values of the format for the nearest, with no notion of exponent or spacing."""
    values = [Fraction(v) for v in reference.finite_values(fmt)]
    rng = np.random.default_rng(20)
    for x in rng.uniform(0, fmt.max, 40).tolist() + (2.0 ** rng.uniform(fmt.emin - 8, fmt.emin + 3, 40)).tolist():
        exact = Fraction(x)
        distance = min(abs(v - exact) for v in values)
        for mode in ("ties_to_even", "ties_to_away"):
            assert abs(Fraction(reference.round_to(x, fmt, mode)) - exact) == distance
        assert reference.round_to(x, fmt, "toward_negative") == max(v for v in values if v <= exact)
        if exact <= values[-1]:
            assert reference.round_to(x, fmt, "toward_positive") == min(v for v in values if v >= exact)


@pytest.mark.usefixtures("places_are_kept")
@pytest.mark.parametrize("fmt", UP_TO_8_BITS, ids=str)
def test_the_tables_are_the_reference(fmt: FloatFormat) -> None:
    """All hard values of all small formats: what `Oracle` says is what the reference says."""
    x = hard_values(fmt, CARRIERS[1])
    oracle = Oracle(x, fmt)
    # each switch both ways; they do not meet in one value. All four for the smallest formats
    for subnormals, saturate in SWITCHES if fmt.bits <= 6 else [(True, False), (False, True)]:
        for mode in MODES:
            expected = by_reference(x, fmt, mode, subnormals, saturate)
            assert_same(oracle.round(mode, subnormals, saturate), expected, x)


@pytest.mark.usefixtures("places_are_kept")
@pytest.mark.parametrize("name", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
def test_the_tables_are_the_reference_on_samples(name: str, dtype: DType) -> None:
    fmt = FORMATS[name]
    codes = runs(fmt, 2**fmt.mantissa_bits)
    every = hard_values(fmt, dtype, codes)
    x = np.random.default_rng(21).choice(every, 500, replace=False)
    oracle = Oracle(x, fmt, codes)
    for mode in MODES:
        for subnormals, saturate in ((True, False), (False, True)):
            assert_same(oracle.round(mode, subnormals, saturate), by_reference(x, fmt, mode, subnormals, saturate), x)


@pytest.mark.parametrize("fmt", REGISTERED, ids=str)
def test_decode_is_monotonic(fmt: FloatFormat) -> None:
    codes = range(0, 2 ** (fmt.bits - 1), max(1, 2 ** (fmt.bits - 12)))
    values = [v for code in codes if math.isfinite(v := reference.decode(code, fmt))]
    assert values == sorted(set(values))


# --- Threefry --------------------------------------------------------------------------------------------------------

# Random123's kat_vectors: rounds, counter, key, result
KNOWN_ANSWERS = [
    (13, (0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x9D1C5EC6, 0x8BD50731)),
    (13, (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
    (13, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    (20, (0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    (20, (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    (20, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), KNOWN_ANSWERS)
def test_threefry_known_answers(
    rounds: int, counter: tuple[int, int], key: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert reference.threefry_2x32(counter, key, rounds) == expected


def test_random_number_takes_the_words_from_the_low_end() -> None:
    seed, counter = 0x0123456789ABCDEF, 0x1_0000_0007
    x, y = reference.threefry_2x32((7, 1), (0x89ABCDEF, 0x01234567))
    expected = [x & 0xFFFF, x >> 16, y & 0xFFFF, y >> 16]
    assert [reference.random_number(seed, 4 * counter + part) for part in range(4)] == expected


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_the_bounds_of_exp_hold_however_few_bits_are_asked_for(bits: int) -> None:
    for n in range(-40, 41):
        x = Fraction(n, 7)
        (low, high), (nearer_low, nearer_high) = (reference.exp_between(x, b) for b in (bits, 200))
        assert low <= nearer_low <= nearer_high <= high
        assert nearer_high - nearer_low < Fraction(nearer_high) / 2**190


def test_fractions_beyond_what_a_float_holds() -> None:
    huge = Fraction(2) ** 2000
    for name, beyond in (("fp32", math.inf), ("fp8_e4m3fn", math.nan), ("fp4_e2m1fn", 6.0)):
        fmt = FORMATS[name]
        for sign in (1, -1):
            assert np.array_equal(reference.round_to(sign * huge, fmt), sign * beyond, equal_nan=True)
            assert reference.round_to(sign * huge, fmt, saturate=True) == sign * fmt.max
            assert reference.round_to(sign * huge, fmt, "toward_zero") == sign * fmt.max
    for x in (88.8, 709.7, 709.8, 1000.0):
        assert reference.exp(x, FORMATS["fp32"]) == math.inf
        assert reference.exp(-x, FORMATS["fp16"]) == 0.0
