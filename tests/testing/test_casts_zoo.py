"""A zoo of casts: wrong ones as people have written them, each to be caught and named, and right ones to pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import precision_lab as pl
from precision_lab.testing.casts import assert_cast, check_cast

Array: TypeAlias = NDArray[Any]
U32 = np.uint32


def bits(x: Array) -> Array:
    return x.view(U32)


def bf16(x: Array) -> Array:
    """The right codes."""
    return x.astype(ml_dtypes.bfloat16).view(np.uint16)


def fp16(x: Array) -> Array:
    return x.astype(np.float16).view(np.uint16)


def where(condition: Array, yes: Any, no: Array) -> Array:
    chosen: Array = np.where(condition, yes, no).astype(no.dtype)
    return chosen


# ---- wrong ones: fp32 to bf16 ----


def chopped(x: Array) -> Array:
    """bf16 is fp32 with the low bits chopped off."""
    return (bits(x) >> U32(16)).astype(np.uint16)


def half_added(x: Array) -> Array:
    return ((bits(x) + U32(0x8000)) >> U32(16)).astype(np.uint16)


def half_added_but_nan_kept(x: Array) -> Array:
    return where(np.isnan(x), 0x7FC0, half_added(x))


def just_less_than_half_added(x: Array) -> Array:
    """The usual trick, with the last bit forgotten."""
    return where(np.isnan(x), 0x7FC0, ((bits(x) + U32(0x7FFF)) >> U32(16)).astype(np.uint16))


def nan_forgotten(x: Array) -> Array:
    u = bits(x)
    return ((u + U32(0x7FFF) + (u >> U32(16) & U32(1))) >> U32(16)).astype(np.uint16)


def guard_bit_only(x: Array) -> Array:
    """Rounds up if the first dropped bit is set and the last kept one too: sticky bits are not looked at."""
    u = bits(x)
    up = (u >> U32(15)) & (u >> U32(16)) & U32(1)
    return where(np.isnan(x), 0x7FC0, ((u >> U32(16)) + up).astype(np.uint16))


def sticky_from_one_bit(x: Array) -> Array:
    """Looks at two of the sixteen dropped bits."""
    u = bits(x)
    guard, sticky, odd = u >> U32(15) & U32(1), u >> U32(14) & U32(1), u >> U32(16) & U32(1)
    return where(np.isnan(x), 0x7FC0, ((u >> U32(16)) + (guard & (sticky | odd))).astype(np.uint16))


def denormals_are_zero(x: Array) -> Array:
    return bf16(where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x))


def results_flushed(x: Array) -> Array:
    y = bf16(x)
    return where(y & 0x7F80 == 0, y & 0x8000, y)


def flushed_to_positive_zero(x: Array) -> Array:
    y = bf16(x)
    return where((y & 0x7F80 == 0) & (x != 0), 0, y)


def plus_zero(x: Array) -> Array:
    """x + 0.0 makes -0.0 positive."""
    return bf16(x + np.float32(0))


def nan_to_num(x: Array) -> Array:
    return bf16(where(np.isnan(x), 0, x))


def floor_of_twos_complement(x: Array) -> Array:
    """An arithmetic shift rounds negative numbers down."""
    u = bits(x)
    down = np.signbit(x) & np.isfinite(x) & (u & U32(0xFFFF) != 0)
    return where(np.isnan(x), 0x7FC0, ((u >> U32(16)) + down).astype(np.uint16))


def half_up(x: Array) -> Array:
    """floor(x + 1/2) in units of the last place."""
    y, u = bf16(x), bits(x)
    tie = np.isfinite(x) & (u & U32(0xFFFF) == 0x8000)
    toward = (u >> U32(16)).astype(np.uint16) + ~np.signbit(x)
    return where(tie, toward, y)


def noisy(x: Array) -> Array:
    """Stochastic rounding under another name."""
    noise = np.random.default_rng().integers(0, 1 << 16, x.shape, dtype=U32)
    y = ((bits(x) + noise) >> U32(16)).astype(np.uint16)
    return where(np.isfinite(x), y, bf16(x))


def tail_truncated(x: Array) -> Array:
    """The vector body is right, the scalar loop after it another implementation."""
    n = x.size - x.size % 8
    return np.concatenate([bf16(x[:n]), bf16(bits(x[n:]).__and__(U32(0xFFFF0000)).view(np.float32))])


def body_truncated(x: Array) -> Array:
    n = x.size - x.size % 16
    return np.concatenate([bf16(bits(x[:n]).__and__(U32(0xFFFF0000)).view(np.float32)), bf16(x[n:])])


def last_element_forgotten(x: Array) -> Array:
    y = bf16(x)
    y[-1] = 0
    return y


def big_endian(x: Array) -> Array:
    return bf16(x).byteswap()


def ties_away_from_2_to_the_10_on(x: Array) -> Array:
    return where(np.abs(x) >= 1024, half_added_but_nan_kept(x), bf16(x))


def truncated_and_flushed(x: Array) -> Array:
    y = chopped(x)
    return where(np.isnan(x), 0x7FC0, where(y & 0x7F80 == 0, y & 0x8000, y))


def unrounded(x: Array) -> Array:
    """A fake quantizer whose switch is off."""
    return x.copy()


def to_tf32(x: Array) -> Array:
    return np.asarray(pl.round_to(x, "tf32"))


# ---- wrong ones: fp32 to fp16 ----


def half_by_hand(x: Array, *, subnormals: bool = True, late: bool = False, carry: bool = True) -> Array:
    """The usual integer conversion: exponent rebiased, fraction rounded to even."""
    u = bits(x)
    sign = (u >> U32(16) & U32(0x8000)).astype(np.int64)
    exponent = (u >> U32(23) & U32(0xFF)).astype(np.int64) - 127 + 15
    fraction = (u & U32(0x7FFFFF)).astype(np.int64)
    rounded = (fraction + 0xFFF + (fraction >> 13 & 1)) >> 13
    if not carry:
        rounded &= 0x3FF
    normal = (exponent << 10) + rounded
    normal = np.where(exponent >= 31 if late else normal >= 0x7C00, 0x7C00, normal)
    if late:
        normal = np.where((exponent == 30) & (normal >= 0x7C00), 0x7BFF, normal)
    small = np.abs(fp16(x).astype(np.int64) & 0x7FFF) if subnormals else np.zeros_like(normal)
    result = np.where(exponent <= 0, small, normal)
    result = np.where(np.isnan(x), 0x7E00, result)
    return (sign | result).astype(np.uint16)


def half_without_subnormals(x: Array) -> Array:
    return half_by_hand(x, subnormals=False)


def half_that_overflows_late(x: Array) -> Array:
    return half_by_hand(x, late=True)


def half_without_carry(x: Array) -> Array:
    return half_by_hand(x, carry=False)


def half_that_overflows_early(x: Array) -> Array:
    return fp16(where(np.abs(x) > 65504, np.copysign(np.float32(np.inf), x), x))


def half_that_keeps_the_tie(x: Array) -> Array:
    """`>` where it should be `>=`."""
    return fp16(where(np.abs(x) == 65520, np.copysign(np.float32(65504), x), x))


def half_clipped(x: Array) -> Array:
    return np.clip(x, -65504, 65504).astype(np.float16)


def half_overflow_to_zero(x: Array) -> Array:
    return fp16(where((np.abs(x) >= 65520) & np.isfinite(x), np.float32(0) * np.sign(x), x))


def half_nan_is_infinity(x: Array) -> Array:
    return fp16(where(np.isnan(x), np.copysign(np.float32(np.inf), x), x))


def half_twice_rounded_subnormals(x: Array) -> Array:
    """Rounds to eleven bits, as for a normal number, and shifts afterwards."""
    return fp16(np.asarray(pl.round_to(x, "e8m10")))


def half_through_bf16(x: Array) -> Array:
    return fp16(x.astype(ml_dtypes.bfloat16).astype(np.float32))


def half_underflow_without_sign(x: Array) -> Array:
    y = fp16(x)
    return where((y == 0x8000) & (x != 0), 0, y)


def half_with_the_bias_of_sixteen(x: Array) -> Array:
    return fp16(np.ldexp(x, 1))


# ---- wrong ones: other pairs ----


def through_float32(x: Array) -> Array:
    return x.astype(np.float32).astype(ml_dtypes.bfloat16)


def half_through_float32(x: Array) -> Array:
    return x.astype(np.float32).astype(np.float16)


def float32_truncated(x: Array) -> Array:
    return np.asarray(pl.round_to(x, "fp32", "toward_zero")).astype(np.float32)


def e4m3_through_fp16(x: Array) -> Array:
    return x.astype(np.float16).astype(ml_dtypes.float8_e4m3fn)


def e4m3_like_ieee(x: Array) -> Array:
    return x.astype(ml_dtypes.float8_e4m3).view(np.uint8)


def e4m3_below_256(x: Array) -> Array:
    """Takes the highest exponent for reserved, as in IEEE formats."""
    y = x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return where(y & 0x7F >= 0x78, y | 0x7F, y)


def e4m3_tie_overflows(x: Array) -> Array:
    y = x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return where(np.abs(x.astype(np.float32)) == 464, y | 0x7F, y)


def e5m2_wraps(x: Array) -> Array:
    """Fields put together with no look at the exponent's range."""
    wide = np.asarray(pl.encode(x, "e8m2")).astype(np.int64)
    magnitude = (wide & 0x3FF) - ((127 - 15) << 2)
    y = x.astype(ml_dtypes.float8_e5m2).view(np.uint8)
    large = np.isfinite(x) & (np.abs(x) >= 61440)
    return where(large, (magnitude & 0x7F) | (y & 0x80), y)


def fp16_subnormals_lost(x: Array) -> Array:
    x = where(np.abs(x) < np.float16(2.0**-14), np.copysign(np.float16(0), x), x)
    return x.astype(ml_dtypes.bfloat16)


def e4m3_of_bf16_truncated(x: Array) -> Array:
    return np.asarray(pl.cast(x, "fp8_e4m3fn", "toward_zero"))


def ml_dtypes_e4m3(x: Array) -> Array:
    return x.astype(ml_dtypes.float8_e4m3fn)


class Animal(NamedTuple):
    cast: Callable[[Array], Any]
    source: str
    target: str
    names: tuple[str, ...]
    words: str = ""  # somewhere in the report
    options: dict[str, Any] = {}  # noqa: RUF012


NAN_LOST = ("NaN becomes infinity", "NaN becomes a number")
FLUSHES = ("flushes subnormal results",)
WRONG = [
    Animal(chopped, "fp32", "bf16", ("truncates", "NaN becomes infinity"), "payload is only in the low bits"),
    Animal(half_added, "fp32", "bf16", ("ties away", *NAN_LOST)),
    Animal(half_added_but_nan_kept, "fp32", "bf16", ("ties away",)),
    Animal(just_less_than_half_added, "fp32", "bf16", ("ties toward zero",)),
    Animal(nan_forgotten, "fp32", "bf16", NAN_LOST),
    Animal(guard_bit_only, "fp32", "bf16", ("ignores low bits",), "looks at 1 bit beyond"),
    Animal(sticky_from_one_bit, "fp32", "bf16", ("ignores low bits",), "looks at 2 bits beyond"),
    Animal(denormals_are_zero, "fp32", "bf16", ("flushes subnormal inputs",)),
    Animal(results_flushed, "fp32", "bf16", FLUSHES),
    Animal(flushed_to_positive_zero, "fp32", "bf16", (*FLUSHES, "loses the sign of underflow")),
    Animal(plus_zero, "fp32", "bf16", ("loses the sign of zero",), "-0.0 becomes +0.0"),
    Animal(nan_to_num, "fp32", "bf16", ("NaN becomes a number",)),
    Animal(floor_of_twos_complement, "fp32", "bf16", ("rounds down",)),
    Animal(half_up, "fp32", "bf16", ("ties upward",)),
    Animal(noisy, "fp32", "bf16", ("differs from call to call",)),
    Animal(tail_truncated, "fp32", "bf16", ("truncates", "NaN becomes infinity"), "only in the last n mod 8 elements"),
    Animal(
        body_truncated, "fp32", "bf16", ("truncates", "NaN becomes infinity"), "only in whole groups of 16 elements"
    ),
    Animal(
        last_element_forgotten,
        "fp32",
        "bf16",
        ("depends on position or length", "NaN becomes a number"),
        "wrong in the last element",
    ),
    Animal(big_endian, "fp32", "bf16", ("bytes swapped", "NaN becomes a number")),
    Animal(ties_away_from_2_to_the_10_on, "fp32", "bf16", ("ties away",), "only from 2^10 on"),
    Animal(truncated_and_flushed, "fp32", "bf16", ("truncates", *FLUSHES)),
    Animal(unrounded, "fp32", "bf16", ("returned unrounded",)),
    Animal(to_tf32, "fp32", "bf16", ("rounded to tf32",)),
    Animal(half_without_subnormals, "fp32", "fp16", FLUSHES, "even those that would round to the smallest normal"),
    Animal(half_that_overflows_late, "fp32", "fp16", ("overflows too late",), "below 65536 everything stays 65504"),
    Animal(half_that_keeps_the_tie, "fp32", "fp16", ("overflows too late",), "the tie at 65520 stays 65504"),
    Animal(half_that_overflows_early, "fp32", "fp16", ("overflows too early",)),
    Animal(half_without_carry, "fp32", "fp16", ("carry into the exponent lost",)),
    Animal(half_clipped, "fp32", "fp16", ("saturates", "infinity becomes the largest value")),
    Animal(half_overflow_to_zero, "fp32", "fp16", ("overflows to zero",)),
    Animal(half_nan_is_infinity, "fp32", "fp16", ("NaN becomes infinity",)),
    Animal(half_twice_rounded_subnormals, "fp32", "fp16", ("rounds twice, via tf32",)),
    Animal(half_through_bf16, "fp32", "fp16", ("passes through bf16",)),
    Animal(half_underflow_without_sign, "fp32", "fp16", ("loses the sign of underflow",)),
    Animal(half_with_the_bias_of_sixteen, "fp32", "fp16", ("exponent off by one",)),
    Animal(through_float32, "float64", "bf16", ("rounds twice, via fp32",)),
    Animal(half_through_float32, "float64", "fp16", ("rounds twice, via fp32",)),
    Animal(float32_truncated, "float64", "fp32", ("truncates", "saturates")),
    Animal(e4m3_through_fp16, "fp32", "fp8_e4m3fn", ("rounds twice, via fp16",)),
    Animal(e4m3_through_fp16, "float64", "fp8_e4m3fn", ("rounds twice, via fp16",)),
    Animal(e4m3_like_ieee, "fp16", "fp8_e4m3fn", ("codes of fp8_e4m3", "NaN becomes a number")),
    Animal(e4m3_below_256, "fp16", "fp8_e4m3fn", ("overflows too early",), "from 256 on"),
    Animal(e4m3_tie_overflows, "bf16", "fp8_e4m3fn", ("overflows too early",), "the tie at 464 becomes NaN"),
    Animal(e5m2_wraps, "fp32", "fp8_e5m2", ("overflow wraps around",)),
    Animal(fp16_subnormals_lost, "fp16", "bf16", ("flushes subnormal inputs",)),
    Animal(e4m3_of_bf16_truncated, "bf16", "fp8_e4m3fn", ("truncates", "saturates")),
    Animal(ml_dtypes_e4m3, "fp32", "fp8_e4m3fn", ("does not saturate", "infinity becomes NaN"), "", {"saturate": True}),
    Animal(half_clipped, "fp32", "fp16", ("keeps subnormal results",), "", {"subnormals": False, "saturate": True}),
    Animal(
        chopped, "fp32", "bf16", ("NaN payload lost", "NaN becomes infinity"), "", {"mode": "rtz", "nan": "payload"}
    ),
]


@pytest.mark.parametrize("animal", WRONG, ids=lambda animal: f"{animal.cast.__name__}-{animal.source}-{animal.target}")
def test_wrong_casts_are_caught_and_named(animal: Animal) -> None:
    start = time.process_time()
    report = check_cast(animal.cast, animal.source, animal.target, **animal.options)
    assert time.process_time() - start < 5
    assert {fault.name for fault in report.faults} == {*animal.names}, str(report)
    assert animal.words in str(report)
    for fault in report.faults:
        assert 1 <= len(fault.examples) <= 3
        assert fault.count >= len(fault.examples)
    assert report.unexplained == 0 or animal.cast is last_element_forgotten or animal.cast is noisy


# ---- right ones ----


def bf16_by_hand(x: Array) -> Array:
    return where(np.isnan(x), 0x7FC0, nan_forgotten(x))


RIGHT: list[tuple[str, Callable[[Array], Any], str, str, dict[str, Any]]] = [
    ("numpy", lambda x: x.astype(np.float16), "fp32", "fp16", {}),
    ("numpy", lambda x: x.astype(np.float16), "float64", "fp16", {}),
    ("numpy", lambda x: x.astype(np.float32), "float64", "fp32", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.bfloat16), "fp32", "bf16", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.bfloat16), "fp16", "bf16", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.float8_e4m3fn), "fp32", "fp8_e4m3fn", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.float8_e4m3fn), "bf16", "fp8_e4m3fn", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.float8_e4m3fn), "fp16", "fp8_e4m3fn", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.float8_e5m2), "fp32", "fp8_e5m2", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.float8_e4m3fnuz), "fp32", "fp8_e4m3fnuz", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.float6_e3m2fn), "fp32", "fp6_e3m2fn", {}),
    ("ml_dtypes", lambda x: x.astype(ml_dtypes.float4_e2m1fn), "fp8_e4m3fn", "fp4_e2m1fn", {}),
    ("ours, values", lambda x: pl.round_to(x, "bf16"), "float64", "bf16", {}),
    ("ours, values", lambda x: pl.round_to(x, "tf32"), "fp32", "tf32", {}),
    ("ours, codes", lambda x: pl.encode(x, "tf32"), "float64", "tf32", {}),
    ("ours, codes", lambda x: pl.encode(x, "e6m9"), "fp32", "e6m9", {}),
    ("ours, codes", lambda x: pl.encode(x, "bf16"), "e6m9", "bf16", {}),
    ("ours, dtype", lambda x: pl.cast(x, "fp8_e5m2"), "float64", "fp8_e5m2", {}),
    ("ours, dtype", lambda x: pl.cast(x, "fp16", saturate=True), "fp32", "fp16", {"saturate": True}),
    ("ours, dtype", lambda x: pl.cast(x, "fp16", subnormals=False), "fp32", "fp16", {"subnormals": False}),
    *(
        ("ours, dtype", lambda x, mode=mode: pl.cast(x, "fp16", mode), "fp32", "fp16", {"mode": mode})
        for mode in ("rna", "rtz", "rup", "rdn", "rto")
    ),
    ("by hand", bf16_by_hand, "fp32", "bf16", {"nan": "quiet"}),
    ("clipped", lambda x: np.clip(x, -65504, 65504).astype(np.float16), "fp32", "fp16", {"saturate": True}),
    ("chopped", chopped, "fp32", "bf16", {"mode": "rtz", "nan": "ignore"}),
]


@pytest.mark.parametrize(("kind", "cast", "source", "target", "options"), RIGHT)
def test_right_casts_pass(
    kind: str, cast: Callable[[Array], Any], source: str, target: str, options: dict[str, Any]
) -> None:
    report = check_cast(cast, source, target, **options)
    assert report.ok, str(report)
    assert report.wrong == 0
    assert report.checked > 1000


def test_assert_cast_raises_with_the_report() -> None:
    assert_cast(fp16, "fp8_e5m2", "fp16")
    with pytest.raises(AssertionError) as raised:
        assert_cast(fp16_subnormals_lost, "fp16", "bf16", nan="ignore")
    assert str(raised.value) == str(check_cast(fp16_subnormals_lost, "fp16", "bf16", nan="ignore"))
    assert "1. flushes subnormal inputs: takes subnormal inputs for zero" in str(raised.value)


@pytest.mark.torch
@pytest.mark.parametrize(("target", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp8_e5m2", "float8_e5m2")])
def test_torch_passes(target: str, dtype: str) -> None:
    import torch

    torch.ones(1 << 20).sum()  # its threads have started: a forked process must do without them

    def cast(x: Array) -> Array:
        result = torch.from_numpy(x).to(getattr(torch, dtype))
        codes: Array = result.view(torch.uint8 if target.startswith("fp8") else torch.uint16).numpy()
        return codes

    assert_cast(cast, "fp32", target)
