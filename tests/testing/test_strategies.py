"""What the strategies draw, what they shrink to, what they refuse, and that they find what is wrong."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.testing import hypothesis_plugin as plugin
from precision_lab.testing import strategies
from precision_lab.testing.strategies import (
    arrays,
    codes,
    formats,
    hard_values,
    midpoints,
    near_midpoints,
    rounding_modes,
    values,
)

Cast: TypeAlias = Callable[[float], float]
FP64 = "float64"
REGISTERED = tuple(FORMATS.values())
CUSTOM = (
    FloatFormat.ieee(6, 9),
    FloatFormat.ieee(5, 0),
    FloatFormat("tiny", 2, 2, 8, "finite"),  # all its values are below 1
    FloatFormat("large", 3, 3, -2, "fn"),  # its smallest subnormal is 1
)
SOME = tuple(map(get_format, ("fp32", "bf16", "fp8_e4m3fn", "fp8_e5m2fnuz", "fp4_e2m1fn")))
some_formats = pytest.mark.parametrize("fmt", [*SOME, *CUSTOM], ids=str)
PAIRS = [
    *((get_format(f), c) for f, c in [("bf16", "fp32"), ("fp16", FP64), ("fp32", FP64), ("fp8_e4m3fn", "fp32")]),
    *((get_format(f), c) for f, c in [("bf16", "fp16"), ("fp8_e5m2", "fp16"), ("fp4_e2m1fn", "fp6_e2m3fn")]),
    *((get_format(f), c) for f, c in [("fp8_e4m3", "e4m4"), ("fp8_e5m2", "fp8_e3m4"), ("fp16", "e4m12")]),
    *((fmt, "fp32") for fmt in CUSTOM),
]
GENERATE = settings(database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
each_pair = pytest.mark.parametrize(("fmt", "carrier"), PAIRS, ids=str)


@pytest.fixture(autouse=True)
def _nan_is_compared() -> Iterator[None]:
    """The comparisons of ml_dtypes warn of NaN."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        yield


def drawn(strategy: st.SearchStrategy[Any], count: int = 200, of: int = 0) -> list[Any]:
    """What a seed draws: not quite the same everywhere, since Hypothesis tries the constants of the modules loaded.

    Each draw is by chance, none depends on another: Hypothesis starts to vary what it has drawn after ten examples, and
    the first is the simplest, so that eight more of many draws each are taken, again and again.
    """
    examples: list[list[Any]] = []
    parts = -(-count // 1600)  # an example has room for a few hundred draws
    size = -(-count // (8 * parts))
    for part in range(parts):

        @seed(of * 1000 + part)
        @settings(GENERATE, max_examples=9)
        @given(st.lists(strategy, min_size=size, max_size=size))
        def collect(some: list[Any]) -> None:
            examples.append(some)

        collect()
        assert len(examples) == 9 * (part + 1)
    return [x for number, some in enumerate(examples) if number % 9 for x in some]


def all_drawn(strategy: st.SearchStrategy[Any], count: int = 200) -> list[Any]:
    """What is drawn one by one: Hypothesis draws nothing twice, and stops when it has drawn all there is."""
    found: list[Any] = []

    @seed(0)
    @settings(GENERATE, max_examples=count)
    @given(strategy)
    def collect(x: Any) -> None:
        found.append(x)

    collect()
    return found


@lru_cache
def hard_ones(fmt: FloatFormat, carrier: FormatLike, count: int, of: int = 0) -> tuple[Any, ...]:
    """What a seed draws of hard values: asked for by several tests."""
    return tuple(drawn(hard_values(fmt, carrier), count, of))


def simplest(strategy: st.SearchStrategy[Any], condition: Callable[[Any], bool], of: int = 0) -> Any:
    """What Hypothesis shrinks to."""
    found = find(strategy, condition, settings=settings(database=None, max_examples=500), random=random.Random(of))
    return found if isinstance(found, np.ndarray) else found if isinstance(found, int) else float(found)


def negative(x: float) -> bool:
    return math.copysign(1, x) < 0


def dtype_of(fmt: FloatFormat) -> np.dtype[Any]:
    return fmt.dtype or np.dtype(np.float32)


# asked again and again of the same few numbers, in rational arithmetic
@lru_cache(2**16)
def around(x: float, fmt: FloatFormat) -> tuple[float, float]:
    """The magnitudes of the format at or below x, and above; where there is none, what would follow."""
    if x == 0:
        return 0.0, fmt.smallest_subnormal
    c = reference.candidates(min(Fraction(abs(x)), Fraction(2) ** 1000), fmt)
    return float(c.k * c.spacing), float((c.k + 1) * c.spacing)


@lru_cache(2**16)
def is_tie(x: float, fmt: FloatFormat) -> bool:
    return x != 0 and reference.candidates(Fraction(abs(x)), fmt).position == Fraction(1, 2)


@lru_cache(2**16)
def next_to(x: float, carrier: FormatLike) -> frozenset[float]:
    """The neighbours in the carrier, by its own means."""
    if carrier == FP64:
        return frozenset({math.nextafter(x, math.inf), math.nextafter(x, -math.inf)})
    fmt = get_format(carrier)
    far = [
        reference.round_to(math.nextafter(x, up * math.inf), fmt, f"toward_{word}", saturate=not fmt.has_infinity)
        for up, word in ((1, "positive"), (-1, "negative"))
    ]
    return frozenset(far)


@lru_cache(2**16)
def holds(carrier: FormatLike, x: float) -> bool:
    return carrier == FP64 or reference.round_to(x, get_format(carrier), saturate=True) == x


# ---- what they draw ----


@some_formats
def test_codes(fmt: FloatFormat) -> None:
    found = all_drawn(codes(fmt), 600) if fmt.bits <= 6 else drawn(codes(fmt))
    assert all(type(code) is int and 0 <= code < 2**fmt.bits for code in found)
    if fmt.bits <= 6:
        assert set(found) == set(range(2**fmt.bits))


@some_formats
def test_values_are_of_the_format(fmt: FloatFormat) -> None:
    found = drawn(values(fmt), 1500)
    assert {np.asarray(x).dtype for x in found} == {dtype_of(fmt)}
    assert {type(x) for x in found} == {dtype_of(fmt).type}
    numbers = [float(x) for x in found]
    finite = [x for x in numbers if math.isfinite(x)]
    assert all(abs(x) <= fmt.max and reference.round_to(x, fmt) == x for x in {*finite})
    assert any(x > 0 for x in finite)
    assert any(x < 0 for x in finite)
    assert {fmt.max, fmt.smallest_normal} <= {abs(x) for x in finite}
    assert {negative(x) for x in finite if x == 0} == ({True, False} if fmt.has_negative_zero else {False})
    assert any(0 < abs(x) < fmt.smallest_normal for x in finite) == (fmt.mantissa_bits > 0)
    assert {x for x in numbers if math.isinf(x)} == ({math.inf, -math.inf} if fmt.has_infinity else set())
    assert any(math.isnan(x) for x in numbers) == fmt.has_nan


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM], ids=str)
def test_codes_and_values_agree(fmt: FloatFormat) -> None:
    scalar = strategies._scalar_of_code(fmt)
    step = 1 if fmt.bits <= 8 else 2**fmt.bits // 509
    for code in {*range(0, 2**fmt.bits, step), *range(2 ** (fmt.bits - 1) - 4, 2 ** (fmt.bits - 1) + 4)}:
        x, wanted = float(scalar(code)), reference.decode(code, fmt)
        assert x == wanted or (math.isnan(x) and math.isnan(wanted)), hex(code)
        assert negative(x) == negative(wanted), hex(code)
        if math.isfinite(x) and (x or not negative(x)):
            assert strategies._magnitude_code(abs(x), fmt) == code % 2 ** (fmt.bits - 1)


@pytest.mark.parametrize("fmt", ["bf16", "fp8_e4m3fn", "fp8_e5m2fnuz", "fp4_e2m1fn"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_values_keep_to_their_bounds(fmt: str, data: st.DataObject) -> None:
    number = values(fmt, allow_nan=False, allow_infinity=False).map(float)
    low, high = data.draw(st.none() | number), data.draw(st.none() | number)
    subnormal = data.draw(st.sampled_from([None, False]))
    limits = get_format(fmt)
    if low is not None and high is not None and (low > high or (low == high == 0)):
        low, high = high, low
    if low is not None and high is not None and low == high == 0:
        low = high = 0.0
    try:
        strategy = values(fmt, min_value=low, max_value=high, allow_subnormal=subnormal)
    except InvalidArgument:  # only subnormals lie between them
        assert subnormal is False
        assert low is not None
        assert high is not None
        assert -limits.smallest_normal < low <= high < limits.smallest_normal
        return
    x = float(data.draw(strategy))
    assert low is None or x >= low
    assert high is None or x <= high
    assert not (low == 0 and not negative(low) and negative(x))  # as st.floats: -0.0 is below 0.0
    assert not (high == 0 and negative(high) and not negative(x) and x == 0)
    assert not (subnormal is False and 0 < abs(x) < limits.smallest_normal)
    open_ended = low is None or high is None
    assert not (math.isinf(x) and not (limits.has_infinity and open_ended))
    assert not (math.isnan(x) and not (limits.has_nan and low is high is None))


def test_bounds_are_drawn() -> None:
    assert {1.5, 3.0} <= {float(x) for x in all_drawn(values("bf16", min_value=1.5, max_value=3))}
    assert {float(x) for x in all_drawn(values("bf16", min_value=3, max_value=3))} == {3.0}
    assert {float(x) for x in all_drawn(values("fp16", min_value=math.inf))} == {math.inf}
    assert {float(x) for x in all_drawn(values("fp16", min_value=-math.inf, max_value=-65504))} == {-math.inf, -65504.0}
    assert {math.copysign(1, x) for x in all_drawn(values("fp16", min_value=-0.0, max_value=0.0))} == {1, -1}
    assert {math.copysign(1, x) for x in all_drawn(values("fp16", min_value=0.0, max_value=0.0))} == {1}
    assert not any(math.isfinite(x) is False for x in all_drawn(values("fp16", allow_infinity=False, allow_nan=False)))
    assert any(math.isnan(x) for x in all_drawn(values("fp16", allow_infinity=False)))
    for low in (None, 1.0):
        assert any(map(math.isinf, map(float, all_drawn(values("fp16", allow_infinity=True, min_value=low)))))


def test_where_the_trouble_is_is_favoured() -> None:
    """Each of these codes of 2^15 without sign by five in a hundred or so; asked for are one and a half."""
    found = [code & 0x7FFF for number in range(10) for code in drawn(codes("fp16"), 200, number)]
    marks = {"zero": 0, "smallest subnormal": 1, "largest subnormal": 0x3FF, "smallest normal": 0x400, "max": 0x7BFF}
    counts = {name: found.count(code) for name, code in marks.items()}
    assert min(counts.values()) >= 30, counts


@each_pair
def test_midpoints_are_midpoints(fmt: FloatFormat, carrier: str) -> None:
    found = drawn(midpoints(fmt, carrier=carrier), 1500)
    type_ = np.float64 if carrier == FP64 else dtype_of(get_format(carrier)).type
    assert {type(x) for x in found} == {type_}
    numbers = {float(x) for x in found}
    assert all(is_tie(x, fmt) and holds(carrier, x) for x in numbers)
    assert {x < 0 for x in numbers} == {True, False}
    ends = (fmt.flush_threshold, fmt.subnormal_threshold, fmt.overflow_threshold)
    assert {x for x in ends if holds(carrier, x)} <= numbers


@each_pair
def test_near_midpoints_are_next_to_them(fmt: FloatFormat, carrier: str) -> None:
    numbers = {float(x) for x in drawn(near_midpoints(fmt, carrier=carrier))}
    for x in numbers:
        assert holds(carrier, x) or abs(x) > fmt.max
        assert any(is_tie(y, fmt) for y in next_to(x, carrier) if math.isfinite(y))
    if carrier != "e4m4":  # one bit more: all its values are next to ties
        assert {is_tie(min(next_to(x, carrier)), fmt) for x in numbers if x > 0} == {True, False}


def test_all_midpoints_and_their_neighbours_can_be_drawn() -> None:
    fmt = get_format("fp6_e2m3fn")
    magnitudes = [*reference.finite_values(fmt), 8.0]
    ties = {s * (a + b) / 2 for a, b in itertools.pairwise(magnitudes) for s in (1, -1)}
    assert {float(x) for x in all_drawn(midpoints(fmt), 700)} == ties
    wanted = {float(np.nextafter(np.float32(x), np.float32(to))) for x in ties for to in (math.inf, -math.inf)}
    assert {float(x) for x in all_drawn(near_midpoints(fmt), 1500)} == wanted
    assert {float(x) for x in all_drawn(values(fmt), 700)} == {s * x for x in magnitudes[:-1] for s in (1, -1)}


@lru_cache
def classes_of_hard_values(fmt: FloatFormat, carrier: str) -> list[tuple[float, set[str]]]:
    """What 3,000 of them are, each with its number."""
    numbers = [float(x) for x in hard_ones(fmt, carrier, 3000)]
    known = {str(x): set(hard_classes(x, fmt, carrier)) for x in numbers}  # with the sign of 0.0
    return [(x, known[str(x)]) for x in numbers]


def hard_classes(x: float, fmt: FloatFormat, carrier: str) -> Iterator[str]:
    """In how many ways a number is hard."""
    yield "negative" if negative(x) else "positive"
    if not math.isfinite(x):
        yield "nan" if math.isnan(x) else f"{x}"
        return
    if x == 0:
        yield f"{x}"
        return
    magnitude, beside = abs(x), {abs(y) for y in next_to(x, carrier)}
    up, down = max(beside), min(beside)
    below, above = around(x, fmt)
    if is_tie(x, fmt):
        yield "tie"
    if is_tie(down, fmt):
        yield "above a tie"
    if math.isfinite(up) and is_tie(up, fmt):
        yield "below a tie"
    if below == magnitude <= fmt.max:
        yield "value"
    elif magnitude <= fmt.max:
        yield "between"
    if math.frexp(x)[0] in (0.5, -0.5):
        yield "power of two"
    if math.isfinite(up) and math.frexp(up)[0] == 0.5:
        yield "below a power of two"
    if magnitude < fmt.smallest_normal:
        yield "subnormal"
    if magnitude > fmt.overflow_threshold:
        yield "too large"
    if magnitude < fmt.flush_threshold:
        yield "too small"
    names = {
        "flush threshold": fmt.flush_threshold,
        "subnormal threshold": fmt.subnormal_threshold,
        "overflow threshold": fmt.overflow_threshold,
        "max": fmt.max,
        "smallest normal": fmt.smallest_normal,
        "smallest subnormal": fmt.smallest_subnormal,
        "beyond max": 2.0 ** (fmt.emax + 1) if fmt.max_significand % 2 else above,
    }
    for name, y in names.items():
        if magnitude == y:
            yield name
        for place, z in (("above", down), ("below", up)):
            if z == y:
                yield f"{place} {name}"


@pytest.mark.parametrize(("fmt", "carrier"), [("bf16", "fp32"), ("fp16", FP64)])
def test_every_hard_class_is_drawn(fmt: str, carrier: str) -> None:
    """Each ten times in a thousand or more often, but what is drawn differs from one machine to the next."""
    target = get_format(fmt)
    found = {name for _, names in classes_of_hard_values(target, carrier) for name in names}
    thresholds = ("flush threshold", "subnormal threshold", "overflow threshold")
    wanted = {
        *("positive", "negative", "0.0", "-0.0", "inf", "-inf", "nan", "tie", "above a tie", "below a tie", "value"),
        *("between", "power of two", "below a power of two", "subnormal", "too large", "too small", "max"),
        *("smallest normal", "smallest subnormal", "below smallest normal", "above max", *thresholds),
        *(f"{place} {name}" for name in thresholds for place in ("above", "below")),
    }
    if (fmt, carrier) == ("bf16", "fp32"):  # 2^-134 and its neighbours, with float32's subnormals of 2^-149
        assert "above smallest subnormal" in found
    assert wanted <= found, wanted - found


@each_pair
def test_hard_values_are_of_the_carrier(fmt: FloatFormat, carrier: str) -> None:
    found = drawn(hard_values(fmt, carrier), 800)
    type_ = np.float64 if carrier == FP64 else dtype_of(get_format(carrier)).type
    assert {type(x) for x in found} == {type_}
    assert all(holds(carrier, float(x)) for x in found if math.isfinite(x))


def test_arrays() -> None:
    found = drawn(arrays("bf16", (8,)), 100)
    assert {(x.dtype, x.shape) for x in found} == {(np.dtype(ml_dtypes.bfloat16), (8,))}
    assert any(len(set(x.view(np.uint16).tolist())) > 4 for x in found)
    assert {x.dtype for x in drawn(arrays("tf32", (2, 3)), 20)} == {np.dtype(np.float32)}
    assert {x.shape for x in drawn(arrays(np.float16, st.sampled_from([2, (1, 3)])), 40)} == {(2,), (1, 3)}
    for fmt in REGISTERED:
        for x in drawn(arrays(fmt, 3), 10):
            assert x.dtype == dtype_of(fmt)
    positive = drawn(arrays("fp8_e4m3fn", 4, elements=values("fp8_e4m3fn", min_value=1)), 50)
    assert all((x.astype(np.float32) >= 1).all() for x in positive)
    assert len(all_drawn(arrays("bf16", 5000), 5)) == 5  # large ones are not drawn element by element


def test_a_given_array() -> None:
    @given(x=arrays("bf16", (8,)))
    def test(x: Any) -> None:
        assert x.dtype == ml_dtypes.bfloat16

    test()


def test_formats() -> None:
    found = all_drawn(formats(), 200)
    assert set(REGISTERED) <= set(found)
    assert any(fmt.name not in FORMATS for fmt in found)
    assert set(all_drawn(formats(custom=False), 200)) == set(REGISTERED)
    assert {fmt.bits <= 8 for fmt in all_drawn(formats(max_bits=8), 200)} == {True}
    assert {fmt.bits for fmt in all_drawn(formats(max_bits=4), 50)} == {3, 4}


def test_rounding_modes() -> None:
    assert set(all_drawn(rounding_modes(), 50)) == set(RoundingMode) - {RoundingMode.STOCHASTIC}
    assert set(all_drawn(rounding_modes(stochastic=True), 50)) == set(RoundingMode)
    assert find(rounding_modes(), lambda mode: True) is RoundingMode.TIES_TO_EVEN


@pytest.mark.parametrize("strategy", [values("bf16"), hard_values("fp16", FP64), codes("fp8_e5m2"), arrays("bf16", 3)])
def test_a_seed_draws_the_same(strategy: st.SearchStrategy[Any]) -> None:
    first, again, other = (repr(drawn(strategy, 100, number)) for number in (1, 1, 2))
    assert first == again != other


class FoundError(Exception):
    """An example of what is looked for."""


def found_in(strategy: st.SearchStrategy[Any], condition: Callable[[float], bool], number: int, examples: int) -> bool:
    """Whether a test of so many examples, with a seed, comes upon one."""

    @seed(number)
    @settings(GENERATE, max_examples=examples, report_multiple_bugs=False)
    @given(strategy)
    def look(x: Any) -> None:
        if condition(float(x)):
            raise FoundError

    try:
        look()
    except FoundError:
        return True
    return False


def rounds_up_to_one(x: float) -> bool:
    return 0 < x < 1 == float(np.float32(x).astype(ml_dtypes.bfloat16))


def beside_fp16s_overflow(x: float) -> bool:
    return 65504 < x < 65520 and float(np.float16(x)) == 65504


def just_above_fp16s_flush_threshold(x: float) -> bool:
    return 2.0**-25 < x < 1.001 * 2.0**-25 and float(np.float16(x)) == 2.0**-24


BESIDE: dict[str, tuple[st.SearchStrategy[Any], Callable[[float], bool], int]] = {
    "below 1": (values("fp32"), rounds_up_to_one, 500),
    "below a bound of 1": (values("fp32", min_value=0, max_value=1), rounds_up_to_one, 500),
    "below a bound of 65520": (values("fp32", max_value=65520), beside_fp16s_overflow, 1200),
    "above a bound of 2^-25": (values("fp32", min_value=2.0**-25), just_above_fp16s_flush_threshold, 800),
    "below 1, hard": (hard_values("bf16"), rounds_up_to_one, 800),
    "overflow threshold, hard": (hard_values("fp16"), beside_fp16s_overflow, 1500),
    "flush threshold, hard": (hard_values("fp16"), just_above_fp16s_flush_threshold, 2500),
}


@pytest.mark.parametrize("where", BESIDE)
def test_neighbours_of_one_and_of_bounds_are_found_by_each_of_ten_tests(where: str) -> None:
    """One in 3 to one in 90 examples is such a one: that a test misses them all has a chance of less than 1e-10."""
    strategy, condition, examples = BESIDE[where]
    assert [number for number in range(10) if not found_in(strategy, condition, number, examples)] == []


@pytest.mark.parametrize(("low", "high", "signs"), [(None, None, 2), (0.0, 1.0, 1)])
def test_the_chance_that_a_test_misses_the_value_below_one(low: float | None, high: float | None, signs: int) -> None:
    """By the runs that are drawn from, with a fifth off for what Hypothesis likes better: ten tests of 500 find it."""
    fp32 = get_format("fp32")
    everything = strategies._beyond(fp32)
    first = -everything - 1 if low is None else strategies._ordinal(low, fp32)
    last = everything if high is None else strategies._ordinal(high, fp32)
    runs = strategies._magnitudes(fp32, False, first, last, True, high is None, high is None).weighted
    below_one = strategies._magnitude_code(1.0, fp32) - 1
    chance = runs.count((below_one, below_one)) / len(runs) / signs
    assert 10 * (1 - 0.8 * chance) ** 500 < 1e-9
    assert sum(runs.count(run) for run in {(below_one, below_one), (below_one + 1, below_one + 2)}) < len(runs) / 2


def test_other_floats_are_seldom_beside_one() -> None:
    """The control: a test that would find what is not drawn often could not fail."""
    away = values("fp32", min_value=2, max_value=2.0**100)
    assert not found_in(away, rounds_up_to_one, 0, 300)
    assert not found_in(st.floats(0, 1).map(lambda x: x / 2), rounds_up_to_one, 0, 300)


# ---- what they shrink to ----


def test_the_simplest_examples() -> None:
    number = 0
    assert simplest(codes("fp16"), lambda code: True, number) == 0
    assert simplest(codes("fp16"), lambda code: code not in (0, 0x8000), number) == 0x3C00
    for fmt in ("bf16", "fp8_e4m3fn", "fp32"):
        assert simplest(values(fmt), lambda x: True, number) == 0
        assert simplest(values(fmt), lambda x: x != 0, number) == 1
        assert simplest(values(fmt), lambda x: x < 0, number) == -1
        assert simplest(values(fmt), lambda x: 1 < x < 2, number) == 1.5
        assert simplest(values(fmt), lambda x: 0 < x < 1, number) == 0.5
    assert simplest(values("fp16"), lambda x: bool(np.isinf(x)), number) == math.inf
    assert simplest(values("bf16", min_value=3, max_value=1024), lambda x: True, number) == 3
    for carrier in ("fp32", FP64):
        assert simplest(hard_values("bf16", carrier), lambda x: True, number) == 0
        assert simplest(hard_values("bf16", carrier), lambda x: x != 0, number) == 1
    assert simplest(midpoints("bf16"), lambda x: True, number) == 1 + 2**-8
    assert simplest(midpoints("bf16"), lambda x: x < -10, number) <= -10
    assert simplest(near_midpoints("bf16", FP64), lambda x: True, number) == 1 + 2**-8 + 2**-52


def test_arrays_shrink_to_zeros() -> None:
    assert simplest(arrays("bf16", 4), lambda x: True).view(np.uint16).tolist() == [0, 0, 0, 0]
    one = simplest(arrays("bf16", 4), lambda x: bool((x != 0).any()))
    assert sorted(one.astype(float).tolist()) == [0, 0, 0, 1]


# ---- what they refuse ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_value": 2, "max_value": 1}, "no values of bf16 between"),
        ({"min_value": 0.0, "max_value": -0.0}, "no values of bf16 between"),
        ({"min_value": 0.1}, "use min_value=0.099"),
        ({"max_value": 1e39}, "cannot be exactly represented in bf16 - use max_value=3.38"),
        ({"max_value": 2**1000}, "cannot be exactly represented"),
        ({"max_value": 2**53 + 1}, "cannot be exactly represented"),
        ({"min_value": math.nan}, "not a number"),
        ({"min_value": "low"}, "must be a number"),
        ({"min_value": 1, "allow_nan": True}, "allow_nan=True, with min_value or max_value"),
        ({"min_value": 1, "max_value": 2, "allow_infinity": True}, "with both min_value and max_value"),
        ({"min_value": math.inf, "allow_infinity": False}, "excludes min_value=inf"),
        ({"max_value": -math.inf, "allow_infinity": False}, "excludes min_value=None, max_value=-inf"),
        ({"min_value": 1, "allow_subnormal": True}, "allow_subnormal=True: none of bf16"),
        ({"max_value": -1, "allow_subnormal": True}, "allow_subnormal=True: none of bf16"),
        ({"min_value": 2.0**-130, "max_value": 2.0**-129, "allow_subnormal": False}, "leaves no value"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        values("bf16", **options)
    if "cannot be exactly" not in message and options.get("min_value") != 2.0**-130 and "low" not in options.values():
        with pytest.raises(InvalidArgument):  # as for float32 there
            st.floats(width=32, **options).validate()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: values("fp8_e4m3fn", allow_infinity=True), "fp8_e4m3fn has no infinity"),
        (lambda: values("fp8_e4m3fn", min_value=math.inf), "cannot be exactly represented"),
        (lambda: values("fp4_e2m1fn", allow_nan=True), "fp4_e2m1fn has no NaN"),
        (lambda: values("fp17"), "unknown format 'fp17'; choose one of"),
        (lambda: codes(None), "unknown format"),  # type: ignore[arg-type]
        (lambda: hard_values("bf16", "fp8_e4m3fn"), "carrier fp8_e4m3fn holds no tie of bf16"),
        (lambda: midpoints("fp32", carrier="fp32"), "carrier fp32 holds no tie of fp32"),
        (lambda: near_midpoints("fp32"), "must have more mantissa bits"),
        (lambda: near_midpoints("fp16", "bf16"), "carrier bf16 holds no tie"),
        (lambda: near_midpoints("bf16", "tf64"), "unknown format 'tf64'"),
        (lambda: formats(max_bits=2), "max_bits=2"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make()


# ---- that they find what is wrong ----


def right(fmt: FloatFormat) -> Cast:
    return lambda x: reference.round_to(x, fmt)


def wrong_casts(fmt: FloatFormat, carrier: str) -> dict[str, Cast]:
    """Mistakes that were really made."""
    correct = right(fmt)
    narrow = FloatFormat.ieee(8, min(fmt.mantissa_bits + 4, 22), "narrow")

    def of(magnitude: float, x: float) -> float:
        return math.copysign(magnitude, x)

    casts: dict[str, Cast] = {
        "ties away": lambda x: reference.round_to(x, fmt, "ties_to_away"),
        "truncation": lambda x: reference.round_to(x, fmt, "toward_zero"),
        "flush": lambda x: reference.round_to(x, fmt, subnormals=False),
        "lost -0.0": lambda x: correct(x) + 0.0,
        "overflow too late": lambda x: of(fmt.max, x) if abs(x) == fmt.overflow_threshold else correct(x),
        "overflow too early": lambda x: of(math.inf, x) if fmt.max < abs(x) < fmt.overflow_threshold else correct(x),
        "rounds twice": lambda x: correct(reference.round_to(x, narrow)),
        "saturates": lambda x: reference.round_to(x, fmt, saturate=True),
        "NaN to infinity": lambda x: math.inf if math.isnan(x) else correct(x),
        "carry lost": lambda x: (
            of(abs(correct(x)) / 2, x)
            if 0 < abs(x) < fmt.max and math.frexp(correct(x))[1] > math.frexp(x)[1]
            else correct(x)
        ),
        "binade above max to zero": lambda x: (
            of(0, x) if 2 ** (fmt.emax + 1) <= abs(x) < 2 ** (fmt.emax + 2) else correct(x)
        ),
        "flush threshold away": lambda x: (
            of(fmt.smallest_subnormal, x) if abs(x) == fmt.flush_threshold else correct(x)
        ),
    }
    if carrier == FP64:
        casts["through float32"] = lambda x: correct(float(np.float32(x)))
    return casts


def differs(a: float, b: float) -> bool:
    return not (a == b and negative(a) == negative(b)) and not (math.isnan(a) and math.isnan(b))


def shown(draw: Callable[[int], Iterable[Any]], casts: dict[str, Cast], correct: Cast) -> dict[str, int]:
    """How many of 1,600 examples show each mistake: eight seeds, since what one draws is not the same everywhere."""
    examples = Counter(float(x).hex() for number in range(8) for x in draw(number))  # many are drawn again and again
    numbers = {text: float.fromhex(text) for text in examples}
    expected = {text: correct(x) for text, x in numbers.items()}
    return {
        name: sum(examples[text] for text, x in numbers.items() if differs(cast(x), expected[text]))
        for name, cast in casts.items()
    }


@pytest.mark.parametrize(("fmt", "carrier"), [("bf16", "fp32"), ("fp16", "fp32"), ("bf16", FP64), ("fp8_e5m2", "fp16")])
def test_planted_mistakes_are_found(fmt: str, carrier: str) -> None:
    """By one example in two hundred at the least, which leaves room for chance: it is one in forty to one in three."""
    target = get_format(fmt)
    casts = wrong_casts(target, carrier)
    if (fmt, carrier) in [("fp8_e5m2", "fp16"), ("bf16", "fp32")]:  # the carrier ends where the format does
        del casts["binade above max to zero"]
    found = shown(partial(hard_ones, target, carrier, 200), casts, right(target))
    assert {name: count for name, count in found.items() if count < 8} == {}


def test_a_right_cast_is_not_accused() -> None:
    bf16, fp16 = map(get_format, ("bf16", "fp16"))
    right_one: dict[str, Cast] = {"ml_dtypes": lambda x: float(np.float32(x).astype(ml_dtypes.bfloat16))}
    assert shown(partial(hard_ones, bf16, "fp32", 200), right_one, right(bf16)) == {"ml_dtypes": 0}
    also_right: dict[str, Cast] = {"numpy": lambda x: float(np.float16(x))}
    assert shown(partial(hard_ones, fp16, FP64, 200), also_right, right(fp16)) == {"numpy": 0}
    # and ml_dtypes' own mistake is found: it rounds float64 through float32
    wrong: dict[str, Cast] = {"ml_dtypes": lambda x: float(np.float64(x).astype(ml_dtypes.bfloat16))}
    assert shown(partial(hard_ones, bf16, FP64, 200), wrong, right(bf16))["ml_dtypes"] > 80


def test_floats_alone_would_miss_it() -> None:
    """Why the strategies exist."""
    bf16 = get_format("bf16")
    twice = {"through float32": wrong_casts(bf16, FP64)["through float32"]}
    found = shown(lambda number: drawn(st.floats(), 200, number), twice, right(bf16))
    assert found["through float32"] < 8


# ---- st.from_type ----


def test_the_scalars_of_ml_dtypes_are_registered() -> None:
    for fmt in REGISTERED:
        if fmt.dtype is not None and fmt.dtype.type.__module__ == "ml_dtypes":
            found = drawn(st.from_type(fmt.dtype.type), 30)
            assert {type(x) for x in found} == {fmt.dtype.type}


def test_the_plugin_knows_the_same_types() -> None:
    ours = {f.dtype.type for f in REGISTERED if f.dtype is not None and f.dtype.type.__module__ == "ml_dtypes"}
    assert set(plugin.scalar_types()) == ours


def test_importing_hypothesis_is_enough(tmp_path: Path) -> None:
    """An installation, with nothing but the metadata that pyproject.toml says."""
    root = Path(strategies.__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    ((name, target),) = project["project"]["entry-points"]["hypothesis"].items()
    assert target == f"{plugin.__name__}:register"
    installed = tmp_path / "stand_in-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[hypothesis]\n{name} = {target}\n")
    program = """if True:
        import sys
        import hypothesis.strategies as st
        print(*(name in sys.modules for name in ("numba", "cattrs", "precision_lab.testing.strategies")))
        import ml_dtypes, warnings
        warnings.simplefilter("ignore")
        print(type(st.from_type(ml_dtypes.bfloat16).example()).__name__)
    """
    path = os.pathsep.join([str(tmp_path), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False", "False", "bfloat16"]


@pytest.mark.parametrize(("carrier_bias", "ties"), [(4, {0.5}), (3, {0.5, 1.5}), (5, set())])
def test_the_lowest_ties_of_a_format_may_be_all_that_a_carrier_holds(carrier_bias: int, ties: set[float]) -> None:
    """The format's values are 0, 1, 2 ...; the carrier's largest is a little below 1, 2 or 1/2."""
    fmt = FloatFormat("large", 3, 3, -2, "fn")
    carrier = FloatFormat("small", 2, 5, carrier_bias, "finite")
    assert carrier.max == (2 - 2.0**-5) * 2.0 ** (3 - carrier_bias)
    if ties:
        found = {float(x) for x in all_drawn(midpoints(fmt, carrier=carrier), 200)}
        assert found == {sign * tie for tie in ties for sign in (1, -1)}
        assert {abs(float(x)) for x in all_drawn(near_midpoints(fmt, carrier=carrier), 200)} == {
            abs(y) for tie in ties for y in next_to(tie, carrier)
        }
    else:
        with pytest.raises(InvalidArgument, match="holds no tie of large"):
            all_drawn(midpoints(fmt, carrier=carrier), 200)


@pytest.mark.parametrize(("fmt", "carrier"), [("bf16", "fp32"), ("fp16", FP64)])
def test_hard_values_lie_above_ties_as_often_as_below(fmt: str, carrier: str) -> None:
    """Not of the thresholds alone, which are drawn apart; and so do those beside values."""
    target = get_format(fmt)
    thresholds = {target.flush_threshold, target.overflow_threshold, target.subnormal_threshold}
    count = dict.fromkeys(("above a tie", "below a tie"), 0)
    for x, names in classes_of_hard_values(target, carrier):
        if math.isfinite(x) and x != 0 and not {abs(y) for y in next_to(x, carrier)} & thresholds:
            for name in names & count.keys():
                count[name] += 1
    assert min(count.values()) > max(count.values()) / 3, count
    assert min(count.values()) > 100, count
