"""Every answer of the histogram against brute force: exact arithmetic for few values, the rounding itself for many."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import operator
from collections import Counter
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import precision_lab
from precision_lab.analysis import binades, counting
from precision_lab.analysis import histogram as module
from precision_lab.analysis.histogram import Conversion, ExponentHistogram, log2_of_power_of_two
from precision_lab.numerics import kernels, reference
from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import integers_as_doubles
from precision_lab.numerics.rounding import round_to

Array = NDArray[Any]

REGISTERED = tuple(FORMATS.values())
CUSTOM = tuple(FloatFormat.ieee(e, m) for e in range(2, 9) for m in range(24))
CARRIERS: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), np.dtype(np.float64))
SCALES = range(-30, 61)  # exponents of loss scales
DTYPES = tuple(f.dtype for f in REGISTERED if f.dtype is not None)


class Losses(NamedTuple):
    flushed: int
    subnormal: int
    overflowed: int


def asked(h: ExponentHistogram, fmt: FormatLike, k: int) -> Losses:
    scale = 2.0**k
    return Losses(h.flushed(fmt, scale), h.subnormal(fmt, scale), h.overflowed(fmt, scale))


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert message.isprintable()
    assert message
    return message


# ---- brute force ----


def fate(x: float, fmt: FloatFormat, k: int) -> str:
    """What storing 2^k * x does to it, in exact arithmetic (the product may be no double)."""
    if not math.isfinite(x) or x == 0:
        return "other"
    c = reference.candidates(abs(Fraction(x)) * Fraction(2) ** k, fmt)
    result = (c.k + reference.rounds_away(c, False, "ties_to_even", None)) * c.spacing
    if result == 0:
        return "flushed"
    if result < Fraction(fmt.smallest_normal):
        return "subnormal"
    return "overflowed" if result > Fraction(fmt.max) else "normal"


def exactly(x: Array, fmt: FloatFormat, k: int) -> Losses:
    counts = Counter(fate(float(v), fmt, k) for v in x)
    return Losses(counts["flushed"], counts["subnormal"], counts["overflowed"])


def by_rounding(x: Array, fmt: FloatFormat, k: int) -> Losses:
    """Count with `round_to`; where doubles under- or overflow by 2^k, every format has done so long before."""
    if fmt.saturates:  # the same values and beyond, so that what would be clamped shows
        fmt = dataclasses.replace(fmt, exponent_bits=fmt.exponent_bits + 1, specials="ieee")
        largest = fmt.max_significand * 2.0 ** (fmt.emax - 2 ** (fmt.exponent_bits - 1) + 1 - fmt.mantissa_bits)
    else:
        largest = fmt.max
    finite = np.abs(x[np.isfinite(x) & (x != 0)].astype(np.float64))
    with np.errstate(over="ignore"):
        rounded = round_to(np.ldexp(finite, k), fmt)
    flushed, below = int((rounded == 0).sum()), int((rounded < fmt.smallest_normal).sum())
    return Losses(flushed, below - flushed, int((~(rounded <= largest)).sum()))


class Facts(NamedTuple):
    elements: int
    zero: int
    nonfinite: int
    min_nonzero: float | None
    max_abs: float | None
    binades: dict[int, int]


def facts_of(x: Array) -> Facts:
    magnitudes = [abs(float(v)) for v in x.reshape(-1)]
    finite = [v for v in magnitudes if math.isfinite(v)]
    nonzero = [v for v in finite if v]
    binades = Counter(math.frexp(v)[1] - 1 for v in nonzero)
    every = range(min(binades), max(binades) + 1) if binades else range(0)
    return Facts(
        len(magnitudes),
        len(finite) - len(nonzero),
        len(magnitudes) - len(finite),
        min(nonzero, default=None),
        max(finite, default=None),
        {e: binades[e] for e in every},
    )


def facts_in(h: ExponentHistogram) -> Facts:
    assert h.nonzero == h.count - h.zero - h.nonfinite
    assert list(h.exponents) == list(h.binades)
    return Facts(h.count, h.zero, h.nonfinite, h.min_nonzero, h.max_abs, h.binades)


def assert_everything(x: Array, *, formats: tuple[FloatFormat, ...] = REGISTERED, scales: Any = (-30, 0, 13)) -> None:
    h = ExponentHistogram.of(x)
    assert facts_in(h) == facts_of(x)
    for fmt, k in itertools.product(formats, scales):
        assert asked(h, fmt, k) == by_rounding(x, fmt, k), (fmt.name, k)


# ---- hard values ----


def around(values: Array) -> Array:
    """The values and their neighbours in their own dtype, from below, without what is not finite."""
    with np.errstate(over="ignore"):
        up = np.nextafter(values, values.dtype.type(np.inf))
    found = np.stack([np.nextafter(values, values.dtype.type(0)), values, up], axis=1).reshape(-1)
    finite: Array = found[np.isfinite(found)]
    return finite


def held(values: list[Fraction], dtype: np.dtype[Any]) -> Array:
    """Those of the values that the carrier holds exactly."""
    limit = Fraction(float(np.finfo(dtype).max))
    doubles = [float(v) for v in values if v <= limit and Fraction(float(v)) == v]
    return np.array([v for v in doubles if float(dtype.type(v)) == v], dtype)


@functools.cache
def boundaries(dtype: np.dtype[Any]) -> Array:
    """Every significand with a threshold of any format, in every binade that a question can reach, and both sides.

    Fractions of more leading ones than any threshold has must fall into the last class and no further.
    """
    ones = range(1, 25 if dtype == np.float32 else 53)
    significands = [Fraction(1), Fraction(29, 16), *(2 - Fraction(1, 2**n) for n in ones)]
    if dtype == np.float32:
        exponents = list(range(-149, 128))
    else:
        exponents = [*range(-1074, -1015), *range(-215, 165), *range(1000, 1024)]
    return around(held([s * Fraction(2) ** e for s in significands for e in exponents], dtype))


def thresholds(fmt: FloatFormat) -> list[Fraction]:
    return [Fraction(t) for t in (fmt.flush_threshold, fmt.subnormal_threshold, fmt.overflow_threshold)]


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
def test_all_boundaries_for_all_registered_formats_and_scales(dtype: np.dtype[Any]) -> None:
    x = boundaries(dtype)
    h = ExponentHistogram.of(x)
    for fmt, k in itertools.product(REGISTERED, SCALES):
        assert asked(h, fmt, k) == by_rounding(x, fmt, k), (fmt.name, k)


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
def test_all_boundaries_for_all_custom_formats(dtype: np.dtype[Any]) -> None:
    x = boundaries(dtype)
    h = ExponentHistogram.of(x)
    for fmt, k in itertools.product(CUSTOM, SCALES[::9] if dtype == np.float64 else SCALES[::5]):
        assert asked(h, fmt, k) == by_rounding(x, fmt, k), (fmt.name, k)


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
@pytest.mark.parametrize("k", [-30, -1, 0, 1, 24, 60])
def test_each_threshold_alone(k: int, dtype: np.dtype[Any]) -> None:
    """At, just below and just above every threshold of every format, one value a histogram: nothing can cancel."""
    for fmt in (*REGISTERED, *CUSTOM):
        for value in around(held([t / Fraction(2) ** k for t in thresholds(fmt)], dtype)):
            assert asked(ExponentHistogram.of(value), fmt, k) == exactly(value.reshape(1), fmt, k), (fmt.name, value)


def test_the_two_brute_forces_agree() -> None:
    x = np.random.default_rng(4).choice(boundaries(CARRIERS[1]), 300, replace=False)
    for fmt in (*REGISTERED, *CUSTOM[::10]):
        assert by_rounding(x, fmt, -5) == exactly(x, fmt, -5), fmt.name


NOTHING, FLUSHED, SUBNORMAL, OVERFLOWED = Losses(0, 0, 0), Losses(1, 0, 0), Losses(0, 1, 0), Losses(0, 0, 1)
UP, DOWN = np.float32(np.inf), np.float32(0)


@pytest.mark.parametrize(
    ("x", "name", "k", "expected"),
    [
        (np.float32(2**-25), "fp16", 0, FLUSHED),  # the tie goes to zero, which is even
        (np.nextafter(np.float32(2**-25), UP), "fp16", 0, SUBNORMAL),
        (np.nextafter(2.0**-25, 1), "fp16", 0, SUBNORMAL),  # float32 would have lost the difference
        (np.float32(2**-25), "fp16", 1, SUBNORMAL),
        (np.float32(2**-24), "fp16", -1, FLUSHED),
        (np.float32(2**-14 - 2**-25), "fp16", 0, NOTHING),  # rounds up to a normal
        (np.nextafter(np.float32(2**-14 - 2**-25), DOWN), "fp16", 0, SUBNORMAL),
        (65519.99, "fp16", 0, NOTHING),
        (np.nextafter(65520.0, 0), "fp16", 0, NOTHING),
        (np.float32(65519.99), "fp16", 0, NOTHING),
        (65520, "fp16", 0, OVERFLOWED),
        (np.float32(65520), "fp16", 0, OVERFLOWED),
        (np.float32(65520), "fp16", -1, NOTHING),
        (np.float32(32760), "fp16", 1, OVERFLOWED),
        (464, "fp8_e4m3fn", 0, NOTHING),  # 448 is even: the tie stays
        (np.nextafter(464.0, 500), "fp8_e4m3fn", 0, OVERFLOWED),
        (np.nextafter(np.float32(464), UP), "fp8_e4m3fn", 0, OVERFLOWED),
        (np.nextafter(np.float32(464), DOWN), "fp8_e4m3fn", 0, NOTHING),
        (-464 * 2.0**-20, "fp8_e4m3fn", 20, NOTHING),
        (61440, "fp8_e5m2", 0, OVERFLOWED),
        (np.nextafter(61440.0, 0), "fp8_e5m2", 0, NOTHING),
        (7, "fp4_e2m1fn", 0, OVERFLOWED),  # clamped to 6, from the middle to what would be 8
        (np.nextafter(7.0, 0), "fp4_e2m1fn", 0, NOTHING),
        (np.float32(2**-127), "fp32", 0, SUBNORMAL),
        (np.float32(2**-127), "bf16", 0, SUBNORMAL),
        (np.float32(2**-127), "fp16", 0, FLUSHED),
        (np.float32(2**-149), "fp32", 0, SUBNORMAL),
        (np.float32(2**-149), "fp32", -1, FLUSHED),
        (np.float32(2**-149), "bf16", 0, FLUSHED),
        (np.nextafter(np.float32(2**-126), DOWN), "fp32", 0, SUBNORMAL),  # the largest, alone in its tile
        (np.nextafter(np.float32(2**-126), DOWN), "tf32", 0, NOTHING),
        (np.float32(2**-126), "fp32", 0, NOTHING),
        (np.float32(2**-126), "fp32", -1, SUBNORMAL),
        (2.0**-150, "fp32", 0, FLUSHED),
        (5e-324, "fp32", 60, FLUSHED),
        (2.0**-1022, "fp32", 60, FLUSHED),
        (np.finfo(np.float32).max, "fp32", 0, NOTHING),
        (np.finfo(np.float32).max, "bf16", 0, OVERFLOWED),
        (np.finfo(np.float32).max, "fp32", 1, OVERFLOWED),
        (np.finfo(np.float64).max, "fp32", 60, OVERFLOWED),  # beyond the double, too
        (np.finfo(np.float64).max, "fp32", -30, OVERFLOWED),
        (0.0, "fp16", 0, NOTHING),
        (-0.0, "fp16", 0, NOTHING),
        (np.inf, "fp16", 0, NOTHING),  # not finite before
        (np.nan, "fp16", -30, NOTHING),
    ],
)
def test_by_hand(x: Any, name: str, k: int, expected: Losses) -> None:
    assert asked(ExponentHistogram.of(x), FORMATS[name], k) == expected
    assert asked(ExponentHistogram.of(-np.asarray(x)), FORMATS[name], k) == expected


def test_bf16_overflow_takes_32768_patterns() -> None:
    x = np.arange(0x7F000000, 0x7F800000, dtype=np.uint32).view(np.float32)
    assert ExponentHistogram.of(x).overflowed("bf16") == 32768


# ---- what it counts ----


def test_by_hand_counts() -> None:
    h = ExponentHistogram.of([0.0, -0.0, 1.5, -1, 0.25, math.nan, math.inf, -math.inf, -math.nan])
    assert (h.count, h.zero, h.nonfinite, h.nonzero) == (9, 2, 4, 3)
    assert (h.min_nonzero, h.max_abs) == (0.25, 1.5)
    assert h.binades == {-2: 1, -1: 0, 0: 2}
    assert h.exponents == range(-2, 1)


@pytest.mark.parametrize(
    ("x", "least", "largest"),
    [
        ([], None, None),
        ([0.0, -0.0], None, 0.0),
        ([math.nan, math.inf], None, None),
        ([0.0, math.inf], None, 0.0),
        ([-5e-324], 5e-324, 5e-324),
    ],
)
def test_extremes_where_there_is_little(x: list[float], least: float | None, largest: float | None) -> None:
    h = ExponentHistogram.of(x)
    assert (h.min_nonzero, h.max_abs) == (least, largest)
    assert h.count == len(x)
    assert all(asked(h, fmt, 60) == by_rounding(np.array(x), fmt, 60) for fmt in REGISTERED)


@pytest.mark.parametrize(("dtype", "exponent"), [(CARRIERS[0], -127), (CARRIERS[1], -1023)], ids=str)
def test_half_the_smallest_normal_is_no_zero(dtype: np.dtype[Any], exponent: int) -> None:
    """The compiled cells keep both in one row."""
    half = 2.0**exponent
    for zeros, halves, others in itertools.product((0, 1, 5), (0, 1, 3), (0, 2)):
        # 1.5 and 1.25 times it lie in the same binade
        x = np.array([0.0, -0.0] * zeros + [half, -half] * halves + [half * 1.5, half * 1.25, 1.0] * others, dtype)
        h = ExponentHistogram.of(x)
        assert facts_in(h) == facts_of(x)
        assert asked(h, FORMATS["fp32"], 0) == by_rounding(x, FORMATS["fp32"], 0)
        assert asked(h, FORMATS["bf16"], -7) == by_rounding(x, FORMATS["bf16"], -7)
        if len(h.table):
            assert h.table[0].sum() == h.binades[h.first_exponent]


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 31, 1023, 1024, 1025, 2048, 5000])
def test_sizes_around_the_lanes_and_the_tile(size: int, dtype: np.dtype[Any]) -> None:
    # arbitrary patterns: every 2,000th float64 and every 256th float32 is no finite normal number
    x = np.random.default_rng(size).integers(0, 256, size * dtype.itemsize, np.uint8).view(dtype)
    hard = np.array([0.0, np.inf, np.nan, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny / 2], dtype)
    x[size // 3 : size // 3 + hard.size] = hard[: x[size // 3 : size // 3 + hard.size].size]
    assert_everything(x)


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
@pytest.mark.parametrize("value", ["subnormal", "zero", "infinite", "small"])
def test_one_element_at_every_place_of_a_tile(value: str, dtype: np.dtype[Any]) -> None:
    """Tiles with subnormals take another path, and the end of an array shorter than the lanes a third."""
    info = np.finfo(dtype)
    number = {"subnormal": 3 * info.smallest_subnormal, "zero": 0, "infinite": np.inf, "small": info.tiny}[value]
    expected = facts_of(np.array([*[1] * 1033, number], dtype))
    for place in range(1034):  # a tile and what is left of a second
        x = np.ones(1034, dtype)
        x[place] = number
        h = ExponentHistogram.of(x)
        assert (h.zero, h.nonfinite, h.min_nonzero) == (expected.zero, expected.nonfinite, expected.min_nonzero), place
        assert int(h.table[0].sum()) == expected.binades[h.first_exponent], place
        assert h.count == 1034


def test_a_tile_of_nothing_but_subnormals() -> None:
    x = np.arange(1, 1 << 15, dtype=np.uint32).view(np.float32)
    assert_everything(x, scales=(-3, 0, 60))
    # every float32 subnormal has its own binade and class: the leading ones are counted after normalisation
    spread = np.random.default_rng(5).integers(1, 1 << 23, 5000).astype(np.uint32).view(np.float32)
    assert_everything(spread, scales=(-3, 0, 60))
    wide = np.random.default_rng(6).integers(1, 1 << 52, 5000).astype(np.uint64).view(np.float64)
    assert_everything(wide * 2.0**900, scales=range(-30, 61, 30))
    assert_everything(wide, scales=(60,))


# ---- what it takes ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_codes_of_a_dtype(dtype: np.dtype[Any]) -> None:
    bits = next(f.bits for f in REGISTERED if f.dtype == dtype)
    if bits == 32:
        x = np.arange(0, 2**32, 65521, dtype=np.uint32).view(dtype)
    else:
        x = np.arange(2**bits).astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)  # by NumPy and ml_dtypes
    h = ExponentHistogram.of(x)
    assert facts_in(h) == facts_of(wide)
    for fmt, k in itertools.product(REGISTERED, (-30, -9, 0, 1, 60)):
        assert asked(h, fmt, k) == by_rounding(wide, fmt, k), (fmt.name, k)


@pytest.mark.parametrize("dtype", [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)])
def test_integers(dtype: str) -> None:
    info = np.iinfo(dtype)
    x = np.array([v for v in (info.min, -464, -7, -1, 0, 1, 7, 127, 464, 465, 65519, 65520, info.max)
                  if info.min <= v <= info.max], dtype)  # fmt: skip
    h = ExponentHistogram.of(x)
    doubles = integers_as_doubles(x, to_odd=True)
    assert facts_in(h) == facts_of(doubles)
    for fmt, k in itertools.product(REGISTERED, (-30, 0, 8)):
        assert asked(h, fmt, k) == exactly(doubles, fmt, k)


@pytest.mark.parametrize(
    "x", [1.5, 3, [1, 2.5, 0], [[1, 2], [3, -4]], (0.0, 1e300), np.float32(2), ml_dtypes.bfloat16(3), [2**70, 2.0], []]
)
def test_lists_and_numbers(x: Any) -> None:
    flat = [abs(float(v)) for v in np.asarray(x, np.float64).reshape(-1)]
    h = ExponentHistogram.of(x)
    assert h.count == len(flat)
    assert h.zero == flat.count(0.0)
    assert h.max_abs == max(flat, default=None)


def layouts() -> dict[str, Any]:
    """One set of numbers in arrays of every make."""
    x = np.random.default_rng(8).standard_normal((6, 20, 7)).astype(np.float32)
    x[0, 0, :4] = [0, np.inf, np.nan, 2**-140]
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32)
    assert not unaligned.flags.aligned
    padded = np.zeros((6, 40, 14), np.float32)
    padded[:, ::2, ::2] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    return {
        "plain": x,
        "flat": x.reshape(-1),
        "Fortran": np.asfortranarray(x),
        "transposed": x.T,
        "reversed": x[::-1, ::-1, ::-1],
        "strided": padded[:, ::2, ::2],
        "big-endian": x.astype(">f4"),
        "big-endian float64": x.astype(">f8"),
        "float64": x.astype(np.float64),
        "unaligned": unaligned,
        "read-only": read_only,
        "with empty-handed axes": x[:, None, :, :, None],
        "list": x.tolist(),
    }


@pytest.mark.parametrize("layout", layouts())
def test_layout_does_not_matter(layout: str) -> None:
    x = layouts()[layout]
    assert ExponentHistogram.of(x) == ExponentHistogram.of(layouts()["plain"])
    assert facts_in(ExponentHistogram.of(x)) == facts_of(np.asarray(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2", ">f2"])
def test_narrow_layouts(dtype: str) -> None:
    x = np.random.default_rng(9).standard_normal((31, 8)).astype(np.float32).astype(dtype)
    assert ExponentHistogram.of(x[::2, ::-1]) == ExponentHistogram.of(x.astype(np.float64)[::2, ::-1])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8", "float8_e4m3fn"])
def test_empty_arrays(shape: tuple[int, ...], dtype: str) -> None:
    assert ExponentHistogram.of(np.zeros(shape, dtype)) == ExponentHistogram.empty()


@pytest.mark.parametrize("dtype", [*CARRIERS, *DTYPES], ids=str)
def test_the_input_stays_as_it_is(dtype: np.dtype[Any]) -> None:
    x = np.array([0.0, -0.0, 1.0, -1.5, 0.5, np.inf, np.nan, 2.0**-149], np.float32).astype(dtype)
    before = x.tobytes()
    ExponentHistogram.of(x)
    assert x.tobytes() == before


@pytest.mark.parametrize(
    "x",
    [
        np.ones(3, bool),
        np.ones(3, complex),
        np.ones(3, np.complex64),
        np.ones(3, object),
        np.array(["1"]),
        np.array([b"1"]),
        np.ones(3, "V2"),
        np.ones(3, "datetime64[s]"),
        np.ones(3, ml_dtypes.float8_e8m0fnu),
        np.ones(3, ml_dtypes.int4),
        True,
        None,
        "1.0",
        {"a": 1},
        [10**400],
        1j,
    ],
    ids=repr,
)
def test_other_dtypes_are_refused(x: Any) -> None:
    with pytest.raises(ValueError, match="cannot take an array of") as caught:
        ExponentHistogram.of(x)
    one_line(caught)


def test_longdouble_is_refused() -> None:
    if np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(ValueError, match="cannot take"):
        ExponentHistogram.of(np.ones(3, np.longdouble))


# ---- arbitrary arrays ----

HARD_32 = np.unique(np.concatenate([around(held(thresholds(f), CARRIERS[0])) for f in REGISTERED])).tolist()
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, 2.0**-127, -(2.0**-126), 2.0**-150, 5e-324, 2.0**-1023]


@st.composite
def arrays(draw: st.DrawFn, max_size: int = 40) -> Array:
    """Arbitrary bit patterns of either carrier, among them thresholds scaled by powers of two."""
    dtype = draw(st.sampled_from(CARRIERS))
    word = np.dtype(f"u{dtype.itemsize}")
    patterns = st.integers(0, np.iinfo(word).max).map(lambda n: float(np.array(n, word).view(dtype)))
    scaled = st.builds(math.ldexp, st.sampled_from(HARD_32), st.integers(-40, 0))
    values = draw(st.lists(patterns | scaled | st.sampled_from(SPECIAL), max_size=max_size))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.array(values, np.float64).astype(dtype)


@settings(deadline=None, max_examples=150)
@given(arrays(), st.sampled_from([*REGISTERED, *CUSTOM]), st.sampled_from(SCALES))
def test_any_array_any_format_any_scale(x: Array, fmt: FloatFormat, k: int) -> None:
    h = ExponentHistogram.of(x)
    assert facts_in(h) == facts_of(x)
    assert asked(h, fmt, k) == exactly(x, fmt, k)


@settings(deadline=None, max_examples=60)
@given(arrays(), st.randoms(use_true_random=False))
def test_signs_and_order_do_not_matter(x: Array, random: Any) -> None:
    y = [v if random.random() < 0.5 else -v for v in x]
    random.shuffle(y)
    assert ExponentHistogram.of(np.array(y, x.dtype)) == ExponentHistogram.of(x)


@settings(deadline=None, max_examples=60)
@given(arrays())
@example(np.zeros(0, np.float32))
@example(np.array([np.nan]))
@example(np.array([1.0, 2.0**300, 2.0**-300]))
def test_json_round_trip(x: Array) -> None:
    h = ExponentHistogram.of(x)
    text = json.dumps(h.to_dict(), allow_nan=False)
    back = ExponentHistogram.from_dict(json.loads(text))
    assert back == h
    assert facts_in(back) == facts_in(h)
    assert json.dumps(back.to_dict()) == text
    for fmt in (FORMATS["fp16"], FORMATS["fp8_e4m3fn"], FORMATS["fp32"]):
        assert asked(back, fmt, 3) == asked(h, fmt, 3)


# ---- merging ----


@settings(deadline=None, max_examples=60)
@given(st.lists(arrays(max_size=12), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_merged_parts_are_the_whole(parts: list[Array], random: Any) -> None:
    """Any order and any grouping; the parts may be of both carriers."""
    whole = ExponentHistogram.of(np.concatenate([part.astype(np.float64) for part in parts]))
    histograms = [ExponentHistogram.of(part) for part in parts]
    random.shuffle(histograms)
    while len(histograms) > 1:
        i = random.randrange(len(histograms) - 1)
        histograms[i : i + 2] = [histograms[i] + histograms[i + 1]]
    assert histograms[0] == whole
    assert facts_in(histograms[0]) == facts_in(whole)
    assert ExponentHistogram.of_chunks(parts) == whole
    for fmt in REGISTERED:
        assert asked(histograms[0], fmt, -2) == asked(whole, fmt, -2)


def test_every_split_of_one_array() -> None:
    x = np.array([1, 0, 2.0**-140, np.inf, -3, 2**-127, 0.75, 2**100, np.nan, -0.0], np.float32)
    whole = ExponentHistogram.of(x)
    for cut in range(x.size + 1):
        left, right = ExponentHistogram.of(x[:cut]), ExponentHistogram.of(x[cut:])
        assert left + right == whole
        assert right + left == whole


def test_merging_is_associative_and_commutative() -> None:
    a, b, c = (ExponentHistogram.of(x) for x in ([1.0, 0, 2.0**200], [2.0**-300, math.nan], [3.0, -7.0]))
    assert (a + b) + c == a + (b + c) == c + (a + b)
    assert functools.reduce(operator.add, (c, b, a)) == functools.reduce(operator.add, (a, b, c))


@pytest.mark.parametrize("x", [[], [0.0], [math.nan], [1.0, 2.0**-1074], [2.0**-20] * 3], ids=repr)
def test_empty_is_neutral(x: list[float]) -> None:
    h, empty = ExponentHistogram.of(x), ExponentHistogram.empty()
    assert h + empty == empty + h == h
    assert facts_in(h + empty) == facts_in(empty + h) == facts_in(h)
    assert ExponentHistogram.of_chunks([]) == empty


def test_merging_changes_neither() -> None:
    a, b = ExponentHistogram.of([1.0, 2.0]), ExponentHistogram.of([2.0, 1024.0])
    before = json.dumps([a.to_dict(), b.to_dict()])
    both = a + b
    assert both.count == 4
    assert json.dumps([a.to_dict(), b.to_dict()]) == before


def test_only_histograms_are_added_and_equal() -> None:
    h = ExponentHistogram.of([1.0])
    for other in (1, None, "histogram", [1.0]):
        with pytest.raises(TypeError):
            h + other
        assert h != other
    for different in ([1.5], [2.0], [1.0, 0.0], [1.0, math.inf], [1.0, 1.0], []):
        assert h != ExponentHistogram.of(different)
    with pytest.raises(TypeError, match="unhashable"):
        hash(h)


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
@pytest.mark.parametrize("size", [0, 6, 7, 8, 14, 50])
def test_more_elements_than_are_counted_at_a_time(
    size: int, dtype: np.dtype[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 7 in the place of 2^18: the loop never sees more, so that no cell overflows, and the answer is the same."""
    x = boundaries(dtype)[:size].copy()
    x[: min(size, 2)] = 0
    whole, seen = ExponentHistogram.of(x), []
    name = f"count_{8 * dtype.itemsize}"
    loop = getattr(kernels.histogram, name)

    def watched(array: Array, *others: Array) -> None:
        seen.append(array.size)
        loop(array, *others)

    monkeypatch.setattr(kernels.histogram, name, watched)
    monkeypatch.setattr(binades._Tally, "taken", binades._Tally)  # new ones: what is kept has the loop itself
    monkeypatch.setattr(binades, "SLICE", 7)
    monkeypatch.setattr(module, "SLICE", 7)
    monkeypatch.setattr(module, "LEAST", 20)
    for threads in (1, 3):
        seen.clear()
        with precision_lab.threads(threads):
            assert ExponentHistogram.of(x) == ExponentHistogram.of_chunks([x]) == whole
        assert max(seen) <= 7
        assert sum(seen) == 2 * size


def test_a_cell_can_count_what_it_is_given() -> None:
    assert np.iinfo(np.uint32).max >= counting.MOST >= binades.SLICE


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "int16", ">f4"])
def test_threads_do_not_show(dtype: str) -> None:
    x = (np.random.default_rng(7).standard_normal(1_500_001) * 50).astype(dtype)
    with precision_lab.threads(1):
        expected = ExponentHistogram.of(x)
    assert expected.count == x.size
    for threads in (2, 7):
        with precision_lab.threads(threads):
            assert ExponentHistogram.of(x) == expected
            assert ExponentHistogram.of(x[::-1]) == expected
            assert ExponentHistogram.of(x[:1_500_000].reshape(3, -1).T) + ExponentHistogram.of(x[-1:]) == expected


def test_what_another_thread_refuses_is_raised_here() -> None:
    x = np.zeros(2_000_000, np.complex64)
    with precision_lab.threads(3), pytest.raises(ValueError, match="cannot take an array of complex64"):
        ExponentHistogram.of(x)
    assert ExponentHistogram.of(np.ones(3)).count == 3  # nobody kept cells that are not zero


def test_classes_agree_with_the_compiled_loop() -> None:
    assert kernels.histogram.CLASSES == binades.CLASSES
    assert kernels.histogram.HALF_NORMAL_CLASS >= binades.CLASSES  # a cell that no class uses
    # below zero's row there is one for each of the carrier's subnormal binades
    assert kernels.histogram.ROW_OFFSET >= 52


# ---- loss scales ----

NO_POWERS: list[Any] = [3, 0, -0.0, -2, -0.5, math.nan, math.inf, -math.inf, True, False, "2", 1e300 * 1.5]
NO_POWERS += [1.0000000000000002, None, 2**2000, [2], 2j, b"2"]


@pytest.mark.parametrize(
    "scale",
    NO_POWERS,
    ids=lambda scale: repr(scale)[:20],
)
def test_no_power_of_two(scale: Any) -> None:
    h = ExponentHistogram.of([1.0, 2.0**-30])
    for ask in (h.flushed, h.subnormal, h.overflowed, lambda _, s: log2_of_power_of_two(s)):
        with pytest.raises(ValueError, match="loss scale must be a power of two such as 1024") as caught:
            ask("fp16", scale)
        assert "within their binades" in one_line(caught)  # why


@pytest.mark.parametrize(
    "scale",
    NO_POWERS,
    ids=lambda scale: repr(scale)[:20],
)
def test_no_power_of_two_for_a_conversion(scale: Any) -> None:
    with pytest.raises(ValueError, match="loss scale must be a power of two such as 1024"):
        ExponentHistogram.of([1.0]).conversion("fp16", scale)


@pytest.mark.parametrize("k", [-1074, -1022, -300, -1, 0, 1, 16, 300, 1023])
def test_any_power_of_two(k: int) -> None:
    assert log2_of_power_of_two(2.0**k) == k
    x = np.array([2.0**-300, 1.5 * 2.0**-300, 1.0, 464.0, 2.0**300, 5e-324, 1.7e308])
    for fmt in REGISTERED:
        assert asked(ExponentHistogram.of(x), fmt, k) == exactly(x, fmt, k)


def test_other_types_of_loss_scales() -> None:
    h = ExponentHistogram.of([2.0**-26])
    for scale in (2, 2.0, np.float32(2), np.float64(2), np.int64(2), Fraction(2)):
        assert h.flushed("fp16", scale) == 1  # type: ignore[arg-type]
        assert h.subnormal("fp16", 2 * scale) == 1  # type: ignore[arg-type]
    assert h.flushed("fp16") == 1


# ---- formats ----


@pytest.mark.parametrize(
    "fmt",
    [
        FloatFormat("fn_wide", 5, 9, 15, "fn"),
        FloatFormat("fn_narrow", 4, 2, 7, "fn"),
        FloatFormat("fn_one_bit", 4, 1, 7, "fn"),
    ],
    ids=str,
)
@pytest.mark.parametrize("x", [[], [1.0], [1e9]], ids=repr)
def test_a_threshold_that_is_not_resolved(x: list[float], fmt: FloatFormat) -> None:
    h = ExponentHistogram.of(x)
    for ask in (h.overflowed, h.conversion):
        with pytest.raises(ValueError, match="does not separate the threshold") as caught:
            ask(fmt)
        assert repr(fmt.overflow_threshold) in one_line(caught)
    # the other questions have answers
    array = np.array(x)
    assert (h.flushed(fmt), h.subnormal(fmt)) == by_rounding(array, fmt, 0)[:2]


@pytest.mark.parametrize(
    "fmt",
    [
        FloatFormat("fn_of_three_bits", 3, 3, 3, "fn"),
        FloatFormat("fnuz_without_fraction", 4, 0, 8, "fnuz"),
        FloatFormat("finite_without_fraction", 3, 0, 3, "finite"),
        FloatFormat("fnuz_wide", 6, 9, 40, "fnuz"),
        FloatFormat("shifted_down", 4, 5, -4, "ieee"),
        FloatFormat("shifted_up", 4, 5, 90, "ieee"),
    ],
    ids=str,
)
def test_custom_formats_of_other_kinds(fmt: FloatFormat) -> None:
    x = np.concatenate([around(held([t / 2**4 for t in thresholds(fmt)], dtype)) for dtype in CARRIERS])
    h = ExponentHistogram.of(x)
    for k in range(-3, 12):
        assert asked(h, fmt, k) == exactly(x, fmt, k)


def test_a_format_by_any_name() -> None:
    h = ExponentHistogram.of([2.0**-25, 1e6])
    for spec in ("fp16", "half", "E5M10", np.float16, np.dtype(np.float16), FORMATS["fp16"]):
        assert asked(h, spec, 0) == Losses(1, 0, 1)
        assert h.conversion(spec).flushed == 1
    with pytest.raises(ValueError, match="unknown format 'fp17'"):
        h.flushed("fp17")


# ---- conversions ----


def test_a_conversion_holds_all_counts() -> None:
    x = np.array([0.0, -0.0, np.nan, 2.0**-30, -(2.0**-26), 2.0**-25, 2.0**-24, 1.0, 1e6, -2.0, 3.0])
    h = ExponentHistogram.of(x)
    assert h.conversion("fp16", 2) == Conversion(
        FORMATS["fp16"], 2.0, count=11, zero=2, nonfinite=1, flushed=2, subnormal=2, overflowed=1
    )
    assert isinstance(h.conversion("fp16", 2).loss_scale, float)
    assert h.conversion("fp16") == h.conversion("fp16", 1)


def test_each_share_has_its_own_denominator() -> None:
    c = Conversion(FORMATS["fp16"], 1.0, count=20, zero=5, nonfinite=3, flushed=4, subnormal=2, overflowed=1)
    assert c.nonzero == 12
    assert c.kept == 5
    assert c.flushed_of_nonzero == 4 / 12
    assert c.flushed_of_all == 4 / 20
    assert c.zero_after_of_all == 9 / 20
    assert c.subnormal_of_nonzero == 2 / 12
    assert c.overflowed_of_nonzero == 1 / 12


@pytest.mark.parametrize("x", [[], [0.0, -0.0], [math.nan]], ids=repr)
def test_nothing_is_divided_by_zero(x: list[float]) -> None:
    c = ExponentHistogram.of(x).conversion("fp16")
    assert c.nonzero == c.kept == 0
    assert c.flushed_of_nonzero == c.subnormal_of_nonzero == c.overflowed_of_nonzero == 0.0
    assert c.flushed_of_all == 0.0
    assert c.zero_after_of_all == (1.0 if c.zero else 0.0)


def test_negative_zeros_are_zeros() -> None:
    """ "Zeros after less zeros before" went negative where somebody counted only +0.0 before."""
    c = ExponentHistogram.of(np.array([-0.0] * 9 + [1.0], np.float32)).conversion("fp16")
    assert (c.zero, c.flushed, c.nonzero) == (9, 0, 1)
    assert c.flushed_of_nonzero == c.flushed_of_all == 0.0
    assert c.zero_after_of_all == 0.9


@settings(deadline=None, max_examples=60)
@given(arrays(), st.sampled_from(REGISTERED), st.sampled_from(SCALES))
def test_the_counts_of_a_conversion_add_up(x: Array, fmt: FloatFormat, k: int) -> None:
    c = ExponentHistogram.of(x).conversion(fmt, 2.0**k)
    parts = (c.zero, c.nonfinite, c.flushed, c.subnormal, c.overflowed, c.kept)
    assert min(parts) >= 0
    assert sum(parts) == c.count == x.size
    assert c.kept == sum(fate(float(v), fmt, k) == "normal" for v in x)
    shares = (c.flushed_of_nonzero, c.flushed_of_all, c.zero_after_of_all, c.subnormal_of_nonzero)
    assert all(0 <= share <= 1 for share in (*shares, c.overflowed_of_nonzero))


# ---- dictionaries ----


def test_a_dictionary_by_hand() -> None:
    # 1 is class 0, 1.25 class 1, 1.5 class 2; a binade without elements is left out
    h = ExponentHistogram.of([1.0, -1.0, 1.25, 0.0, 6.0, math.nan])
    assert h.to_dict() == {
        "zero": 1,
        "nonfinite": 1,
        "min_nonzero": 1.0,
        "max_abs": 6.0,
        "binades": {"0": [2, 1], "2": [0, 0, 1]},
    }
    assert [type(n) for n in h.to_dict()["binades"]["0"]] == [int, int]


GOOD: dict[str, Any] = {
    **{"zero": 1, "nonfinite": 0, "min_nonzero": 1.0, "max_abs": 2.5},
    "binades": {"0": [1], "1": [0, 1]},
}
BAD: list[Any] = [
    None,
    [],
    "histogram",
    {},
    7,
    *({key: value for key, value in GOOD.items() if key != missing} for missing in GOOD),
    GOOD | {"binades": None},
    GOOD | {"binades": []},
    GOOD | {"binades": {"one": [1]}},
    GOOD | {"binades": {"0": 1}},
    GOOD | {"binades": {"0": None}},
    GOOD | {"binades": {"0": [None]}},
    GOOD | {"binades": {"0": ["x"]}},
    GOOD | {"binades": {"0": [-1]}},
    GOOD | {"binades": {"0": [0] * 28}},
    GOOD | {"zero": None},
    GOOD | {"zero": "many"},
    GOOD | {"nonfinite": []},
    GOOD | {"max_abs": "large"},
    GOOD | {"min_nonzero": {}},
]


@pytest.mark.parametrize("data", BAD, ids=repr)
def test_other_dictionaries_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="ExponentHistogram: not a histogram") as caught:
        ExponentHistogram.from_dict(data)
    one_line(caught)


def test_good_dictionaries_are_those_of_histograms() -> None:
    """So that what is changed in them is what is wrong."""
    assert ExponentHistogram.of([1.0, 2.5, 0.0]).to_dict() == GOOD
    assert ExponentHistogram.of([1.0, 1.5, 0.0]).to_dict() == ONE_BINADE


def test_a_row_may_have_all_classes() -> None:
    row = list(range(1, 28))
    h = ExponentHistogram.from_dict(GOOD | {"binades": {"-3": row}, "min_nonzero": 0.125, "max_abs": 0.2})
    assert h.table.tolist() == [row]
    assert h.exponents == range(-3, -2)


@pytest.mark.parametrize("exponent", [10**13, -(10**13)])
def test_exponents_beyond_the_double_are_refused(exponent: int) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        ExponentHistogram.from_dict(GOOD | {"binades": {"0": [1], str(exponent): [1]}})


@pytest.mark.parametrize(
    "wrong",
    [{"binades": {"0": [2**63]}}, {"zero": math.inf}, {"nonfinite": math.inf}, {"max_abs": 10**400}],
    ids=lambda wrong: repr(wrong)[:40],
)
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        ExponentHistogram.from_dict(GOOD | wrong)


# 1 and 1.5: one binade, so that each of these has one thing wrong
ONE_BINADE: dict[str, Any] = GOOD | {"max_abs": 1.5, "binades": {"0": [1, 0, 1]}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"zero": -5},
        {"zero": 1.5},
        {"zero": True},
        {"nonfinite": -1},
        {"min_nonzero": math.nan},
        {"min_nonzero": None},
        {"min_nonzero": -1.0},
        {"min_nonzero": 0.9},
        {"max_abs": 0.5},
        {"max_abs": 2.0},
        {"max_abs": math.inf},
        {"max_abs": None},
        {"binades": {}},
        {"binades": {"0": [1.7]}},
        {"binades": {"0": "12"}},
        {"binades": {"0": [1], "00": [2]}},
        {"binades": {"0": [1], "1": [0]}},
        {"binades": {"0": [2**62] * 2}},
        {"binades": {"0": [2**62] * 4}},
    ],
    ids=lambda wrong: repr(wrong)[:40],
)
def test_contradictions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        ExponentHistogram.from_dict(ONE_BINADE | wrong)


def test_as_many_as_fit() -> None:
    h = ExponentHistogram.from_dict(ONE_BINADE | {"binades": {"0": [2**62, 2**62 - 1]}})
    assert h.nonzero == 2**63 - 1


@pytest.mark.parametrize("name", ["e3m0", "e2m0", "e5m0", *FORMATS])
def test_a_conversion_has_the_counts_of_each_question(name: str) -> None:
    """Formats without mantissa bits, which have no subnormals, among them."""
    fmt = get_format(name)
    edges = (fmt.flush_threshold, fmt.subnormal_threshold, fmt.smallest_normal, fmt.overflow_threshold, fmt.max, 1.0)
    near = [v for e in edges for v in (e, np.nextafter(e, 0), np.nextafter(e, np.inf), e / 8, e * 8)]
    histogram = ExponentHistogram.of(np.array([*near, 0.0, np.nan, np.inf]))
    for scale in (1.0, 2.0**-3, 2.0**20):
        c = histogram.conversion(fmt, scale)
        counts = (c.flushed, c.subnormal, c.overflowed)
        assert counts == tuple(
            count(fmt, scale) for count in (histogram.flushed, histogram.subnormal, histogram.overflowed)
        )
        assert min(counts) >= 0
        assert fmt.mantissa_bits or c.subnormal == 0
        (at_once,) = histogram.at_each(fmt, range(int(np.log2(scale)), int(np.log2(scale)) + 1))
        assert at_once == (int(np.log2(scale)), *counts)
