"""Stochastic casts: right ones pass, whatever they draw, and wrong ones are named; the bounds are true bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import precision_lab as pl
from precision_lab.testing.cast_chance import ChanceCheck
from precision_lab.testing.cast_report import CastReport
from precision_lab.testing.casts import assert_cast, check_cast
from precision_lab.testing.chance import RISK, Choices, judge, log_tail, refutes, with_bits

Array: TypeAlias = NDArray[Any]
Cast: TypeAlias = Callable[[Array], Any]

# ---- bounds ----


@pytest.mark.parametrize("p", [0.5, 0.25, 0.01, 0.97])
def test_the_bound_is_above_the_probability(p: float) -> None:
    """Against the binomial distribution in exact arithmetic."""
    n, exact = 60, Fraction(p)
    chances = [math.comb(n, k) * exact**k * (1 - exact) ** (n - k) for k in range(n + 1)]
    for k in range(n + 1):
        tail = sum(chances[k:]) if k >= n * p else sum(chances[: k + 1])
        assert math.exp(log_tail(n, k, p)) >= tail * (1 - 1e-9)


def test_what_cannot_be_has_no_probability() -> None:
    assert log_tail(10, 1, 0.0) == log_tail(10, 9, 1.0) == -math.inf
    assert log_tail(10, 0, 0.0) == log_tail(10, 10, 1.0) == 0


# ---- the judgement, of choices with known probabilities ----

NEAR = 2.0 ** -np.arange(1, 11)
SHARES = np.sort(np.concatenate([NEAR[1:], 1 - NEAR, (np.arange(1, 32) + 0.5) / 33]))


def choices(chance: Callable[[Choices], Array], asked: int = 20_000, **changes: Any) -> Choices:
    """Draw choices with probabilities that depend on the input."""
    share = np.tile(SHARES, 4)
    quarter = np.repeat(np.arange(4), SHARES.size)
    draft = Choices(
        share,
        quarter % 2 == 1,
        np.arange(share.size) % 3 == 0,
        quarter >= 2,
        np.zeros(share.shape, np.bool_),
        np.full(share.shape, asked),
        np.zeros(share.shape, np.int64),
        0,
        8,
        False,
    )
    up = np.random.default_rng(7).binomial(asked, np.clip(chance(draft), 0, 1))
    return draft._replace(up=up, **changes)


NAMED: dict[str, tuple[Callable[[Choices], Array], str, str]] = {
    "down": (lambda c: 0 * c.share, "always rounds toward zero", "every one of"),
    "nearly down": (lambda c: 0.01 * c.share, "nearly always rounds toward zero", "% of"),
    "up": (lambda c: 1 + 0 * c.share, "always rounds away from zero", ""),
    "nearly up": (lambda c: 1 - 0.02 * (1 - c.share), "nearly always rounds away from zero", ""),
    "to infinity": (lambda c: np.where(c.negative, 0.0, 1.0), "always rounds up, toward +infinity", ""),
    "floor": (lambda c: np.where(c.negative, 1.0, 0.0), "always rounds down, toward -infinity", ""),
    "nearest": (lambda c: (c.share > 0.5) | ((c.share == 0.5) & c.odd), "always rounds to nearest", ""),
    "coin": (lambda c: 0.5 + 0 * c.share, "even odds", "equally often"),
    "exchanged": (lambda c: 1 - c.share, "probabilities exchanged", "more often"),
    "negative": (lambda c: np.where(c.negative, 0, c.share), "always rounds toward zero", "only for negative inputs"),
    "subnormal": (
        lambda c: np.where(c.subnormal, 0, c.share),
        "always rounds toward zero",
        "only for subnormal results",
    ),
    "mixed": (lambda c: 0.91 * c.share, "biased", "-0.04"),
    "squares": (lambda c: c.share**2, "biased", "spacings away from zero"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_wrong_choices_are_named(kind: str) -> None:
    chance, name, words = NAMED[kind]
    verdict = judge(choices(chance))
    assert verdict.name == name
    assert words in verdict.text


def test_right_choices_pass() -> None:
    verdict = judge(choices(lambda c: c.share))
    assert verdict.name == ""
    assert verdict.notes[-1] == "random bits: 10 or more"
    assert f"fails this check with a probability below {RISK:g}" in verdict.notes[0]


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
@pytest.mark.parametrize("rule", ["down", "to nearest", "up"])
def test_few_random_bits_are_counted(bits: int, rule: str) -> None:
    verdict = judge(choices(lambda c: with_bits(c.share, bits, rule)))
    assert verdict.name == ""
    assert verdict.notes[-1].startswith(f"{bits} random bit")
    assert verdict.notes[-1].endswith(f"multiples of 2^-{bits}, rounded {rule}")


def test_few_choices_refute_little() -> None:
    """With three copies of each nothing is known of distances of 2^-10."""
    some = choices(lambda c: with_bits(c.share, 8, "down"), 3)
    assert not refutes(some, some.share)
    assert judge(choices(lambda c: 0 * c.share, 3)).name == "always rounds toward zero"
    empty = some.take(np.zeros(some.share.shape, np.bool_))
    assert "no choice to make" in judge(empty).notes[0]


def test_choices_that_are_no_choices() -> None:
    right = choices(lambda c: c.share)
    assert judge(right._replace(alike=8)).name == "one random number for a whole array"
    assert judge(right._replace(alike=8, steady=True)).name == "always the same choice"
    assert "fixed seed" in " ".join(judge(right._replace(steady=True)).notes)


# ---- casts, from end to end ----

DRAW = np.random.default_rng(20)
U16 = np.uint16


def random_bits(bits: int, *, one: bool = False) -> Cast:
    """From fp32 to bf16: so many of the sixteen bits that are dropped are drawn."""

    def cast(x: Array) -> Array:
        u = x.view(np.uint32)
        noise = DRAW.integers(0, 1 << bits, 1 if one else x.size, dtype=np.uint32) << np.uint32(16 - bits)
        y = ((u + noise) >> np.uint32(16)).astype(U16)
        return np.where(np.isfinite(x), y, x.astype(ml_dtypes.bfloat16).view(U16))

    return cast


def ours(target: str, **options: Any) -> Cast:
    return lambda x: pl.encode(x, target, "stochastic", rng=DRAW, **options)


def names(report: CastReport) -> list[str]:
    return [fault.name for fault in report.faults]


def check(cast: Cast, source: str = "fp16", target: str = "fp8_e5m2", **options: Any) -> CastReport:
    return check_cast(cast, source, target, mode="stochastic", **options)


@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        ("fp32", "fp16", {}),
        ("fp16", "fp8_e4m3fn", {"saturate": True}),
        ("bf16", "fp8_e4m3fn", {}),
        ("fp16", "fp8_e5m2", {"subnormals": False}),
    ],
)
def test_our_own_passes(source: str, target: str, options: dict[str, Any]) -> None:
    report = check(ours(target, **options), source, target, **options)
    assert report.ok, report
    assert "or more" in report.notes[-1]


def test_eight_random_bits() -> None:
    report = check(random_bits(8), "fp32", "bf16")
    assert report.ok
    assert report.notes[-1].startswith("8 random bits: right within them")
    assert_cast(random_bits(8), "fp32", "bf16", mode="stochastic")


def test_one_random_number_for_an_array() -> None:
    assert names(check(random_bits(16, one=True), "fp32", "bf16")) == ["one random number for a whole array"]


def test_a_cast_without_chance() -> None:
    assert names(check(lambda x: x.astype(ml_dtypes.float8_e5m2))) == ["always rounds to nearest"]


def test_what_has_one_result_only() -> None:
    """Zeros, exact values, infinities, NaN, what is beyond the range; each of these is spoilt once."""
    right = ours("fp8_e5m2")
    smallest = float(pl.get_format("fp8_e5m2").smallest_normal)

    def spoilt(where: Callable[[Array], Array], code: int) -> Cast:
        return lambda x: np.where(where(x), code | (np.signbit(x) << 7), right(x)).astype(np.uint8)

    assert names(check(spoilt(lambda x: x == 1, 0x3D))) == ["changes exact values"]
    assert names(check(spoilt(np.isnan, 0x3C))) == ["NaN becomes a number"]
    beyond = spoilt(lambda x: np.isfinite(x) & (np.abs(x.astype(float)) >= 65536), 0x7B)
    assert names(check(beyond, "bf16")) == ["saturates"]
    edge = spoilt(lambda x: np.isfinite(x) & (np.abs(x.astype(float)) > 57344), 0x7C)
    assert "only beyond the largest value" in str(check(edge))
    assert names(check(spoilt(lambda x: np.abs(x) < smallest, 0))) == ["flushes subnormal results"]
    assert names(check(spoilt(lambda x: (x > 2) & (x < 2.5), 0x42))) == ["no neighbour"]


def test_a_zero_that_loses_its_sign() -> None:
    def cast(x: Array) -> Array:
        codes = ours("fp8_e5m2")(x)
        return np.where(codes == 0x80, 0, codes).astype(np.uint8)

    assert names(check(cast)) == ["loses the sign of zero"]


def test_a_cast_with_nothing_to_choose() -> None:
    report = check(lambda x: x.astype(np.float32), "fp16", "fp32")
    assert report.ok
    assert "no choice to make" in report.notes[0]


def test_a_cast_that_fails_while_choices_are_counted() -> None:
    def cast(x: Array) -> Any:
        if x.size > 100_000:
            raise MemoryError("too much")
        return ours("fp8_e5m2")(x)

    assert names(check(cast)) == ["raises"]


def test_the_neighbours_and_distances() -> None:
    """Against exact arithmetic."""
    from precision_lab.numerics import reference
    from precision_lab.testing.casts import _checked_spec
    from precision_lab.testing.isolation import InProcess

    spec = _checked_spec("fp16", "fp8_e4m3fn", "stochastic", True, False, "any")
    chance = ChanceCheck(spec, InProcess(lambda x: x), 1.0, None)
    patterns = np.arange(0, 0x7C00, 37).astype(U16)
    share = chance._shares(patterns)
    values = [*map(Fraction, reference.finite_values(spec.target))]
    for x, found in zip(map(Fraction, spec.source.values(patterns).tolist()), share.tolist(), strict=True):
        below = max(value for value in values if value <= x)
        above = min((value for value in values if value > x), default=Fraction(480))
        assert found == min((x - below) / (above - below), 1)
