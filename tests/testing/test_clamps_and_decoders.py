"""Casts that clamp and casts that misread their inputs: each is named as that, and what explains a part is not named.

What a cast should be said to do is known from how it is written here, in plain NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import precision_lab as pl
from precision_lab.numerics.formats import get_format
from precision_lab.testing.cast_models import Model, Spec, canonical, predict, read
from precision_lab.testing.cast_report import CastReport, short_text
from precision_lab.testing.casts import check_cast
from precision_lab.testing.hard_inputs import all_patterns, get_source

Array: TypeAlias = NDArray[Any]
Cast: TypeAlias = Callable[[Array], Any]
F = np.float32
EIGHT = {"fp8_e5m2": ml_dtypes.float8_e5m2, "fp8_e4m3fn": ml_dtypes.float8_e4m3fn}


def named(report: CastReport) -> list[str]:
    return [fault.name for fault in report.faults]


# ---- clamps ----


def magnitudes(x: Array, low: float, high: float, *, zero: bool = False) -> Array:
    """Clamp magnitudes, in float32; zero only if it is said."""
    x = x.astype(F)
    y = np.copysign(np.clip(np.abs(x), F(low), F(high)), x)
    return y if zero else np.where(x == 0, x, y)


def test_a_clamp_of_magnitudes_at_both_ends() -> None:
    report = check_cast(lambda x: magnitudes(x, 1e-7, 1e4).astype(np.float16), "fp32", "fp16")
    (fault,) = report.faults
    assert (fault.name, fault.text) == ("clamps", "from 10000 on 10000, and below 2^-23 (not zero) 2^-23")
    assert report.unexplained == 0
    ends = {example.got.rpartition(" = ")[2] for example in fault.examples}
    assert ends == {"625*2^4", "2^-23"}, "an example of each end"
    assert F(1e-7).astype(np.float16) == 2.0**-23


def to_fp16(x: Array) -> Array:
    return x.astype(np.float16)


def to_bf16(x: Array) -> Array:
    return x.astype(ml_dtypes.bfloat16)


def to_e4m3(x: Array) -> Array:
    return x.astype(F).astype(ml_dtypes.float8_e4m3fn)


class Clamp(NamedTuple):
    words: str
    cast: Cast
    source: str
    target: str
    options: dict[str, Any] = {}  # noqa: RUF012


CLAMPS = [
    Clamp("from 10000 on 10000", lambda x: np.clip(x.astype(F), F(-1e4), F(1e4)).astype(np.float16), "bf16", "fp16"),
    Clamp(
        "from 10000 on 10000; infinity stays",
        lambda x: np.where(np.isinf(x), x, np.clip(x, F(-1e4), F(1e4))).astype(np.float16),
        "fp32",
        "fp16",
    ),
    Clamp(
        "from 240 on 240; overflow stays",
        lambda x: np.where(np.isnan(to_e4m3(x)), np.nan, np.clip(to_e4m3(x).astype(F), -240, 240)).astype(F),
        "bf16",
        "fp8_e4m3fn",
    ),
    Clamp("below 2^-23 (not zero) 2^-23", lambda x: to_fp16(magnitudes(x, 1e-7, np.inf)), "bf16", "fp16"),
    Clamp("below 2^-10 (zero too) 2^-10", lambda x: to_fp16(magnitudes(x, 2**-10, np.inf, zero=True)), "bf16", "fp16"),
    Clamp("from 9984 on 9984, and below 2^-23", lambda x: to_bf16(magnitudes(x, 2**-23, 1e4)), "fp16", "bf16"),
    Clamp("from 240 on 240", lambda x: to_e4m3(np.clip(x.astype(F), -240, 240)), "bf16", "fp8_e4m3fn"),
    Clamp(
        "from 416 on 416", lambda x: to_e4m3(np.clip(x.astype(F), -416, 416)), "bf16", "fp8_e4m3fn", {"saturate": True}
    ),
    Clamp("from 448 on 448", lambda x: np.clip(x, -448, 448).astype(ml_dtypes.float8_e5m2), "fp16", "fp8_e5m2"),
    Clamp("inputs below 0 become 0", lambda x: to_bf16(np.maximum(x, np.float16(0))), "fp16", "bf16"),
    Clamp(
        "inputs below 0 become 0, and inputs above 6 become 6",
        lambda x: to_bf16(np.clip(x, np.float16(0), np.float16(6))),
        "fp16",
        "bf16",
    ),
    Clamp(
        "inputs below -5 become -5, and inputs above 10 become 10",
        lambda x: to_bf16(np.clip(x, np.float16(-5), np.float16(10))),
        "fp16",
        "bf16",
    ),
    Clamp("inputs below 2^-7 become 2^-7", lambda x: to_bf16(np.maximum(x, np.float16(2**-7))), "fp16", "bf16"),
]


@pytest.mark.parametrize("clamp", CLAMPS, ids=lambda clamp: clamp.words)
def test_clamps_are_named_with_their_bounds(clamp: Clamp) -> None:
    report = check_cast(clamp.cast, clamp.source, clamp.target, **clamp.options)
    (fault,) = report.faults
    assert fault.name == "clamps", report
    assert clamp.words in fault.text
    assert report.unexplained == 0


def test_a_clamp_is_told_beside_another_mistake() -> None:
    def cast(x: Array) -> Array:
        clipped = np.clip(x, np.float16(-1000), np.float16(1000)).astype(F)
        codes: Array = (clipped.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return codes

    assert named(check_cast(cast, "fp16", "bf16", nan="ignore")) == ["truncates", "clamps"]


def test_what_ends_at_the_largest_value_is_no_clamp() -> None:
    """It saturates; and if that was asked for, nothing is wrong."""

    def cast(x: Array) -> Array:
        return to_e4m3(np.clip(x.astype(F), -448, 448))

    assert "clamps" not in named(check_cast(cast, "bf16", "fp8_e4m3fn"))
    assert check_cast(cast, "bf16", "fp8_e4m3fn", saturate=True).ok


# ---- no more than is seen ----


def scattered(x: Array) -> Array:
    """One in two, by no rule that is known."""
    mixed: Array = (x.astype(F).view(np.uint32) * np.uint32(2654435761) >> np.uint32(13)) & np.uint32(1)
    found: Array = mixed == 0
    return found


def strange(x: Array, *ranges: tuple[float, float]) -> Array:
    """Fixed to one of two values, by no rule, in these ranges of magnitude."""
    y, size = to_bf16(x).astype(F), np.abs(x.astype(F))
    for low, high in ranges:
        wrong = (size >= low) & (size < high)
        y = np.where(wrong, np.copysign(F(low) * np.where(scattered(x), F(0.25), F(0.125)), y), y)
    return y


def test_two_ranges_far_apart_are_not_one_cause() -> None:
    report = check_cast(lambda x: strange(x, (2**-12, 2**-10), (2**10, 2**12)), "fp16", "bf16")
    assert named(report) == ["far off", "far off"]
    assert {fault.text.rpartition("; ")[2] for fault in report.faults} == {
        "inputs from 2^-12 to below 2^-10",
        "inputs from 2^10 to below 2^12",
    }


def test_one_range_is_one() -> None:
    report = check_cast(lambda x: strange(x, (2**-2, 2**4)), "fp16", "bf16")
    assert [fault.text.rpartition("; ")[2] for fault in report.faults] == ["inputs from 2^-2 to below 2^4"]


def test_what_explains_a_part_only_is_not_named() -> None:
    """Half of the results are chopped, by no rule; that half is explained by truncation, the other half speaks against.

    What is chopped everywhere is named.
    """

    def chopped(x: Array, where: Array) -> Array:
        u = x.view(np.uint32)
        return np.where(where & np.isfinite(x), (u >> np.uint32(16)).astype(np.uint16), to_bf16(x).view(np.uint16))

    some = check_cast(lambda x: chopped(x, scattered(x * 3)), "fp32", "bf16")
    assert named(some) == ["wrong neighbour"]
    assert some.unexplained > 0
    assert named(check_cast(lambda x: chopped(x, np.ones(x.shape, bool)), "fp32", "bf16")) == ["truncates"]


# ---- decoders ----


def decoder(
    fmt: str, zero_field: str = "right", *, top: bool = True, bias: int = 0, shift: int = 0, carry: bool = False
) -> Cast:
    """A decoder to float32 as people write it, on the bits."""
    exponent_bits, width = get_format(fmt).exponent_bits, get_format(fmt).mantissa_bits
    own_bias, ones = 2 ** (exponent_bits - 1) - 1, 2**exponent_bits - 1

    def cast(x: Array) -> Array:
        code = x.view(f"u{x.dtype.itemsize}").astype(np.int64)
        sign, field, fraction = code >> (exponent_bits + width) << 31, code >> width & ones, code & (2**width - 1)
        moved = np.left_shift(fraction, 23 - width + shift)
        above = (field + 127 - own_bias + bias) << 23
        bits = above + moved if carry else above | moved
        if zero_field != "as others":
            right = (fraction * 2.0 ** (1 - own_bias - width)).astype(F).view(np.uint32)
            zero = np.zeros_like(right) if zero_field == "zero" else right
            bits = np.where((field == 0) & ((fraction == 0) | (zero_field == "right")), zero, bits)
        if top and fmt == "fp8_e4m3fn":
            bits = np.where(code & 127 == 127, 0x7FC00000, bits)
        elif top:
            bits = np.where(field == ones, 0x7F800000 | fraction << (23 - width), bits)
        values: Array = (sign | bits).astype(np.uint32).view(F)
        return values

    return cast


ZERO_FIELD, TOP, BIAS, SHIFTED = (
    "exponent field 0 decoded as normal",
    "top exponent decoded as normal",
    "exponent bias off by one",
    "fraction shifted",
)
DECODERS: list[tuple[str, Cast, tuple[str, ...], str]] = [
    ("fp8_e5m2", decoder("fp8_e5m2", "as others"), (ZERO_FIELD,), "added to subnormals and to zero"),
    ("fp8_e5m2", decoder("fp8_e5m2", "zero"), (ZERO_FIELD,), "added to subnormals ["),
    ("fp8_e4m3fn", decoder("fp8_e4m3fn", "as others"), (ZERO_FIELD,), "added to subnormals and to zero"),
    ("fp16", decoder("fp16", "as others"), (ZERO_FIELD,), "added to subnormals and to zero"),
    ("fp16", decoder("fp16", "as others", top=False), (ZERO_FIELD, TOP), "infinity and NaN become numbers"),
    ("fp8_e4m3fn", decoder("fp8_e4m3fn", "as others", top=False), (ZERO_FIELD, TOP), "NaN becomes a number"),
    ("fp8_e5m2", decoder("fp8_e5m2", top=False), (TOP,), ""),
    ("fp8_e4m3fn", decoder("fp8_e4m3fn", bias=1), (BIAS,), "2 times"),
    ("fp16", decoder("fp16", bias=-1), (BIAS,), "2^-1 times"),
    ("fp8_e5m2", decoder("fp8_e5m2", bias=-112), ("exponent bias off by 112",), "2^-112 times"),
    ("fp8_e5m2", decoder("fp8_e5m2", shift=-1), (SHIFTED,), "one place too low"),
    ("fp8_e4m3fn", decoder("fp8_e4m3fn", shift=1), (SHIFTED,), "put into the exponent"),
    ("fp16", decoder("fp16", shift=1, carry=True), (SHIFTED,), "added to the exponent"),
    ("fp8_e4m3fn", lambda x: x.view(ml_dtypes.float8_e4m3).astype(F), ("reads fp8_e4m3",), ""),
    ("fp8_e5m2", lambda x: x.view(ml_dtypes.float8_e5m2fnuz).astype(F), ("reads fp8_e5m2fnuz",), ""),
    ("fp16", lambda x: x.view(ml_dtypes.bfloat16).astype(F), ("reads bf16",), ""),
    ("bf16", lambda x: x.astype(F) * F(2), ("exponent off by one",), "twice what it should be"),
]


@pytest.mark.parametrize(("source", "cast", "names", "words"), DECODERS)
def test_what_a_decoder_misreads_is_named(source: str, cast: Cast, names: tuple[str, ...], words: str) -> None:
    report = check_cast(cast, source, "fp32")
    assert {*named(report)} == {*names}, report
    assert words in str(report)
    assert report.unexplained == 0


@pytest.mark.parametrize("source", ["fp8_e5m2", "fp8_e4m3fn", "fp16", "bf16"])
def test_right_decoders_pass(source: str) -> None:
    assert check_cast(lambda x: x.astype(F), source, "fp32").ok
    if source != "bf16":
        assert check_cast(decoder(source), source, "fp32").ok


def test_the_implicit_one_of_bf16_subnormals() -> None:
    """In bf16 and float32 exponents are the same, so that only subnormals show it."""

    def cast(x: Array) -> Array:
        code = x.view(np.uint16).astype(np.int64)
        y = x.astype(np.float64)
        wrong = np.ldexp(1 + (code & 127) / 128, -127) * np.where(code >> 15, -1, 1)
        return np.where(code >> 7 & 255 == 0, wrong, y).astype(F)

    assert named(check_cast(cast, "bf16", "fp32")) == [ZERO_FIELD]


# ---- the models themselves ----


def test_a_clamp_before_the_cast_is_one_of_its_results() -> None:
    """Rounding keeps the order of numbers."""
    spec = Spec(get_source("fp16"), get_format("fp8_e4m3fn"), "ties_to_even", True, False, "any")
    x = spec.source.values(all_patterns(spec.source))
    x = x[~np.isnan(x)]
    for low, high in ((-3.3, 100.0), (0.1, 7.0), (-9.0, -0.01), (0.0, 1.0)):
        codes = canonical(np.asarray(pl.encode(np.clip(x, low, high), spec.target)), spec.target)
        lowest, highest = (int(pl.encode(bound, spec.target)) for bound in (low, high))
        model = Model(lowest=lowest, highest=highest)
        got = predict(model, x, spec)
        keeps_sign = (x == 0) | (np.abs(x) < 2.0**-10)  # which zero, where 0 is the bound
        assert np.array_equal(got[~keeps_sign], codes[~keeps_sign])


@pytest.mark.parametrize("name", ["fp16", "fp8_e5m2", "fp8_e4m3fn", "bf16"])
def test_reading_without_a_mistake_is_decoding(name: str) -> None:
    source = get_source(name)
    patterns = all_patterns(source)
    values = source.values(patterns)
    assert np.array_equal(read(Model(), patterns, values, source), values, equal_nan=True)
    untouched = read(Model(bias=1), patterns, values, source)
    numbers = np.isfinite(values)
    twice = np.where(np.abs(values) < source.smallest_normal, values, 2 * values)
    assert np.array_equal(untouched[numbers], twice[numbers])


@pytest.mark.parametrize(("value", "text"), [(1e4, "10000"), (2.0**-23, "2^-23"), (-0.0, "-0"), (-6.0, "-6")])
def test_short_text(value: float, text: str) -> None:
    assert short_text(value) == text
