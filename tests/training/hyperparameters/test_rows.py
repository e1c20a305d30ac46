"""Every number against exact rational arithmetic; what is said, and what helps."""

from __future__ import annotations

import json
import math
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from precision_lab import FORMATS, FloatFormat, audit_hyperparameters, get_format, neighbours
from precision_lab.training.hyperparameters import rows
from precision_lab.training.hyperparameters.finding import Severity, World, severity_of
from precision_lab.training.optimizers import OPTIMIZERS
from tests.training.hyperparameters.helpers import (
    ALL,
    COUNTER,
    DECAY,
    FROZEN,
    LOST,
    SMALL,
    M,
    V,
    finite_values,
    in_torch,
    rounded,
    same,
)

# ---- known values ----

KNOWN: list[tuple[str, dict[str, Any], str, float]] = [
    ("bf16", {"beta1": 0.9}, "beta1", 0.8984375),
    ("bf16", {"beta1": 0.9}, "1 - beta1", 0.10009765625),
    ("bf16", {"beta1": 0.9}, "1 - beta1^t, t = 1", 0.1015625),
    ("bf16", {"beta1": 0.9}, M, 0.984375),
    ("bf16", {"beta2": 0.95}, "beta2", 0.94921875),
    ("bf16", {"beta2": 0.99}, "beta2", 0.98828125),
    ("bf16", {"beta2": 0.999}, "beta2", 1.0),
    ("bf16", {"beta2": 0.999}, "1 - beta2^t, t = 1", 0.0),
    ("bf16", {"beta2": 0.999}, "sqrt(1 - beta2^t), t = 1", 0.0),
    ("bf16", {"beta2": 0.999}, V, 0.5),
    ("bf16", {"beta2": 0.998046875}, "beta2", 1.0),  # 1 - 2^-9, a tie
    ("bf16", {"beta2": 0.99609375}, "beta2", 0.99609375),
    ("bf16", {"eps": 1e-8}, "eps", float.fromhex("0x1.58p-27")),
    ("bf16", {"lr": 1e-4, "weight_decay": 0.1}, DECAY, 1.0),
    ("bf16", {"lr": 2**-8, "weight_decay": 0.5}, DECAY, 1.0),  # 1 - 2^-9
    ("bf16", {"lr": 2**-8, "weight_decay": 0.5000001}, DECAY, 1 - 2**-8),
    ("bf16", {"optimizer": "sgd", "momentum": 0.99}, "momentum*m + g", 64.0),
    ("bf16", {"optimizer": "sgd", "momentum": 0.999}, "momentum*m + g", 256.0),  # counting by one
    ("fp16", {"beta2": 0.999}, "beta2", 0.9990234375),
    ("fp16", {"beta2": 0.999}, "1 - beta2^t, t = 1", 2**-10),
    ("fp16", {"beta2": 0.999}, "sqrt(1 - beta2^t), t = 1", 2**-5),
    ("fp16", {"beta2": 0.999}, V, 0.75),
    ("fp16", {"beta2": 0.9999}, "beta2", 1.0),
    ("fp16", {"eps": 1e-8}, "eps", 0.0),
    ("fp16", {"eps": 2**-25}, "eps", 0.0),
    ("fp16", {"eps": math.nextafter(2**-25, 1)}, "eps", 2**-24),
    ("fp16", {"lr": 1e-8}, "lr", 0.0),
    ("fp16", {"lr": 1e-7}, "lr", 2**-23),
    ("fp16", {"lr": 65519.99}, "lr", 65504.0),
    ("fp16", {"lr": 65520.0}, "lr", math.inf),
    ("fp16", {"lr": 1e-4, "weight_decay": 0.1}, DECAY, 1.0),
    ("fp16", {"lr": 1e-2, "weight_decay": 0.1}, DECAY, 0.9990234375),
    ("fp16", {"optimizer": "adam", "weight_decay": 1e-8}, "weight_decay", 0.0),
    ("fp32", {"beta2": 0.999}, "beta2", 0.9990000128746033),
    ("fp32", {"eps": 1e-8}, "eps", 9.99999993922529e-09),
    ("tf32", {"beta2": 0.999}, "beta2", 0.9990234375),
    ("fp8_e4m3fn", {"lr": 464.0}, "lr", 448.0),
    ("fp8_e4m3fn", {"lr": 465.0}, "lr", math.nan),
    ("fp8_e4m3fn", {"beta1": 0.9}, "beta1", 0.875),
    ("fp8_e5m2", {"beta1": 0.9}, "beta1", 0.875),
    ("fp6_e3m2fn", {"lr": 1e9}, "lr", 28.0),
    ("fp4_e2m1fn", {"beta1": 0.9}, "beta1", 1.0),
    ("fp4_e2m1fn", {"beta1": 0.9}, "lr/(1 - beta1^t), t = 1", math.inf),
]


@pytest.mark.parametrize(("fmt", "asked", "expression", "stored"), KNOWN)
def test_known_values(fmt: str, asked: dict[str, Any], expression: str, stored: float) -> None:
    assert len(KNOWN) >= 30
    assert same(audit_hyperparameters(fmt, **asked)[expression].stored, stored)


def test_the_folklore_of_bf16() -> None:
    result = audit_hyperparameters("bf16", lr=1e-4, beta2=0.999, weight_decay=0.1)
    beta2 = result["beta2"]
    assert beta2.severity is Severity.FATAL
    assert beta2.consequence == "becomes 1, a window without end: asked 1000 steps"
    assert beta2.advice == "beta2 = 0.98, or keep it in fp32"
    assert beta2.relative_error == pytest.approx(0.001001, rel=1e-3)  # a small error, a lost effect
    assert beta2.effect_error == -1
    assert result["eps"].severity is Severity.OK
    decay = result[DECAY]
    assert decay.severity is Severity.FATAL
    assert decay.consequence == "becomes 1: no decay; 10,000 steps multiply a weight by 1, asked 0.904837"
    assert decay.advice == "keep the weights in fp32, or decay in a master copy"
    assert result.worst == {World.HELD: Severity.FATAL, World.TORCH: Severity.FATAL}


def test_torch_keeps_doubles_and_freezes_v_all_the_same() -> None:
    result = audit_hyperparameters("bf16", lr=1e-4, beta2=0.999, weight_decay=0.1)
    for name in ("beta1", "beta2", "1 - beta2", "1 - beta2^t, t = 1", "sqrt(1 - beta2^t), t = 1"):
        assert result.torch(name) is None
    for found in (result[FROZEN], in_torch(result, FROZEN)):
        assert (found.stored, found.severity) == (1, Severity.FATAL)
        assert (
            "100 % of all v stay what they are: v never decays: once gradients shrink, steps bec" in found.consequence
        )
    for found in (result[V], in_torch(result, V)):  # what is true while v climbs
        assert "climbs from 0 to 0.5 g^2, asked 1: steps are 41 % too large" in found.consequence
    decay = in_torch(result, DECAY)
    assert decay.severity is Severity.FATAL
    assert decay.consequence == "R((1 - lr*weight_decay)*w) = w for 100 % of all w: no decay"
    assert in_torch(result, "lr").consequence == "a step of lr is lost on weights above 0.0311279"


@pytest.mark.parametrize(
    ("beta2", "share", "held", "torch"),
    [
        (0.999, 1.0, 0.5, 0.5),
        (0.998, 0.953125, 0.251953125, 0.490234375),
        (0.997, 0.296875, 0.5, 0.5),
        (0.996, 0.0, 0.50390625, 0.50390625),
        (0.99, 0.0, 0.8359375, 0.98046875),
        (0.95, 0.0, 0.96484375, 0.98046875),  # nothing is frozen, and little is off
    ],
)
def test_the_two_worlds_of_beta2(beta2: float, share: float, held: float, torch: float) -> None:
    """As torch.optim.AdamW in bf16 has it, foreach=True and foreach=False: tests/torch/test_hyperparameters.py."""
    result = audit_hyperparameters("bf16", beta2=beta2)
    assert in_torch(result, FROZEN).stored == share
    assert (in_torch(result, FROZEN).severity is Severity.FATAL) is (share > 0)
    assert (result[V].stored, in_torch(result, V).stored) == (held, torch)


def test_the_folklore_of_fp16() -> None:
    result = audit_hyperparameters("fp16", lr=1e-4)
    eps, lost = result["eps"], result[LOST]
    assert eps.severity is Severity.FATAL
    assert eps.advice == "eps = 1e-06, or keep it in fp32"
    assert "0/0" in eps.consequence
    assert lost.severity is Severity.FATAL
    assert "0.00545502" in lost.consequence
    assert "from |g| = 256 on v becomes inf at once" in lost.consequence
    assert "from |g| = 8096 on v becomes inf at once" in in_torch(result, LOST).consequence  # no square is stored
    assert result["beta2"].severity is Severity.NOTE
    assert result["beta2"].consequence == "averages over 1024 steps, asked 1000"
    assert result[V].severity is Severity.WARNING
    assert "0.75 g^2, asked 1: steps are 15 % too large" in result[V].consequence
    assert "0.732422 g^2, asked 1: steps are 17 % too large" in in_torch(result, V).consequence


def test_fp32_has_nothing_to_say() -> None:
    assert set(audit_hyperparameters("fp32").worst.values()) == {Severity.OK}
    assert all(finding.advice == "" for finding in audit_hyperparameters("fp32").findings)


# ---- every row against Fractions ----

POSITIVE = st.floats(1e-12, 1e6)
BETAS = st.one_of(st.floats(0, 1, exclude_max=True), st.integers(1, 20).map(lambda k: 1 - 2.0**-k))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ALL), POSITIVE, BETAS, BETAS, st.floats(0, 1e6), st.floats(1e-9, 10), st.integers(1, 10**6))
def test_adamw_against_rational_arithmetic(
    fmt: FloatFormat, lr: float, beta1: float, beta2: float, eps: float, decay: float, steps: int
) -> None:
    result = audit_hyperparameters(fmt, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay, steps=steps)
    b1, b2 = (Fraction(rounded(Fraction(beta), fmt)) for beta in (beta1, beta2))
    x1, x2 = 1 - Fraction(beta1), 1 - Fraction(beta2)
    rate = Fraction(lr) * Fraction(decay)
    first = rounded(Fraction(lr) / (1 - b1), fmt) if b1 < 1 else math.inf
    expected: dict[str, tuple[Fraction, float]] = {
        "lr": (Fraction(lr), rounded(Fraction(lr), fmt)),
        "beta1": (Fraction(beta1), float(b1)),
        "1 - beta1": (x1, rounded(x1, fmt)),
        "1 - beta1^t, t = 1": (x1, rounded(1 - b1, fmt)),
        "lr/(1 - beta1^t), t = 1": (Fraction(lr) / x1, first),
        "beta2": (Fraction(beta2), float(b2)),
        "1 - beta2": (x2, rounded(x2, fmt)),
        "1 - beta2^t, t = 1": (x2, rounded(1 - b2, fmt)),
        "eps": (Fraction(eps), rounded(Fraction(eps), fmt)),
        DECAY: (1 - rate, rounded(1 - rate, fmt)),
    }
    frozen = "share of m with R(beta1*m) = m"
    assert [f.expression for f in result.of(World.HELD)] == [
        *("lr", COUNTER, "beta1", "1 - beta1", frozen, M, "1 - beta1^t, t = 1", "lr/(1 - beta1^t), t = 1"),
        *("beta2", "1 - beta2", FROZEN, V, "1 - beta2^t, t = 1", "sqrt(1 - beta2^t), t = 1", "eps", LOST, DECAY),
    ]
    assert [f.expression for f in result.of(World.TORCH)] == [
        *("lr", COUNTER, frozen, M, FROZEN, V, "eps", LOST, DECAY)
    ]
    for expression, (exact, stored) in expected.items():
        finding = result[expression]
        assert same(finding.stored, stored), expression
        assert finding.exact == float(exact)
        if exact and math.isfinite(stored):
            assert finding.relative_error == float(Fraction(stored) / exact - 1)
        else:
            assert math.isnan(finding.relative_error)
    root = result["sqrt(1 - beta2^t), t = 1"]
    # the square root lies between the squares of the middles beside what is stored
    if 0 < root.stored < fmt.max:
        below, above = (Fraction(float(v)) for v in neighbours(root.stored, fmt))
        kept = Fraction(root.stored)
        assert ((kept + below) / 2) ** 2 <= 1 - b2 <= ((kept + above) / 2) ** 2
    for name, beta in (("beta1", b1), ("beta2", b2)):
        window = result[name]
        assert window.effect_error == float((1 - beta) / (1 - Fraction(window.exact)) - 1)
    for finding in result.findings:
        assert finding.severity is severity_of(finding.effect_error)
        assert bool(finding.advice) == (finding.severity in (Severity.WARNING, Severity.FATAL))
        assert finding.consequence
    json.dumps(result.to_dict(), allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ALL), POSITIVE, st.floats(0, 1, exclude_max=True), st.floats(1e-9, 10))
def test_sgd_against_rational_arithmetic(fmt: FloatFormat, lr: float, momentum: float, decay: float) -> None:
    result = audit_hyperparameters(fmt, optimizer="sgd", lr=lr, momentum=momentum, weight_decay=decay)
    assert same(result["weight_decay"].stored, rounded(Fraction(decay), fmt))
    factor = 1 - Fraction(lr) * Fraction(decay) / (1 - Fraction(momentum))
    expression = DECAY + "/(1 - momentum)" * (momentum > 0)
    assert same(result[expression].stored, rounded(factor, fmt))
    if momentum:
        assert result["momentum"].stored == rounded(Fraction(momentum), fmt)
        assert result["momentum*m + g"].exact == float(1 / (1 - Fraction(momentum)))


def test_only_what_the_optimizer_has_is_asked() -> None:
    assert [f.expression for f in audit_hyperparameters("bf16", optimizer="sgd").findings] == ["lr", "lr"]
    adam = [f.expression for f in audit_hyperparameters("bf16", optimizer="adam", weight_decay=0.1).findings]
    assert adam[-1] == "weight_decay"
    assert DECAY not in adam
    assert DECAY not in [f.expression for f in audit_hyperparameters("bf16", weight_decay=0).findings]


def test_the_defaults_are_torchs() -> None:
    adam = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    assert {name: audit_hyperparameters("bf16", optimizer=name).hyperparameters for name in OPTIMIZERS} == {
        "sgd": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
        "adam": adam | {"weight_decay": 0.0},
        "adamw": adam | {"weight_decay": 1e-2},
    }


# ---- the step counter ----


@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if f.precision <= 11] + [FloatFormat.ieee(2, 9)], ids=str)
def test_a_counter_stops_where_counting_does(fmt: FloatFormat) -> None:
    t = 0.0
    for _ in range(3000):
        t = rounded(Fraction(t) + 1, fmt) if math.isfinite(t) else t
    assert same(audit_hyperparameters(fmt, steps=10**6)[COUNTER].stored, min(t, 1e6) if t == t else t)


@pytest.mark.parametrize(("fmt", "scalar", "end"), [("bf16", ml_dtypes.bfloat16, 256), ("fp16", np.float16, 2048)])
def test_a_counter_kept_in_16_bits(fmt: str, scalar: Any, end: int) -> None:
    t = scalar(0)
    for _ in range(5000):
        t = t + scalar(1)
    assert t == end
    result = audit_hyperparameters(fmt, beta2=0.999, steps=5000)
    assert result[COUNTER].stored == end
    stays = f"{1 - 0.999**end:.3g}"
    assert f"stops at {end}: 1 - beta2^t stays {stays} for ever, asked 0.993" in result[COUNTER].consequence
    effect = math.sqrt((1 - 0.999**end) / (1 - 0.999**5000)) / (1 - 0.9**end)
    assert result[COUNTER].effect_error == pytest.approx(effect - 1, rel=1e-9)
    assert result[COUNTER].severity is (Severity.WARNING if fmt == "bf16" else Severity.NOTE)
    assert in_torch(result, COUNTER).stored == 5000
    assert in_torch(result, COUNTER).consequence == "counts up to 16,777,216, in float32"


def test_a_counter_that_gets_to_the_end_of_the_run_is_right() -> None:
    assert audit_hyperparameters("bf16", steps=256)[COUNTER].effect_error == 0
    assert audit_hyperparameters("bf16", steps=257)[COUNTER].effect_error < 0
    assert audit_hyperparameters("bf16", beta2=0.95)[COUNTER].severity is Severity.OK  # 0.95^256 is nothing
    late = audit_hyperparameters("bf16", beta2=1 - 2.0**-30, steps=2**25)
    assert in_torch(late, COUNTER).stored == 2**24
    assert "stops at 1.67772e+07" in in_torch(late, COUNTER).consequence


# ---- what helps ----

CASES = [
    {"lr": lr, "weight_decay": decay, "beta2": beta2}
    for lr in (2e-5, 1e-3)
    for decay in (0.01, 0.1)
    for beta2 in (0.95, 0.99, 0.998, 0.9999)
]


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2"])
@pytest.mark.parametrize("world", World)
def test_a_cure_is_one_that_people_use_and_has_been_tried(fmt: str, world: World) -> None:
    named = set()
    for case in CASES:
        for found in audit_hyperparameters(fmt, **case).of(world):  # type: ignore[arg-type]
            assert bool(found.advice) is not found.severity.harmless
            assert ("= " in found.advice) is (found.cure is not None)
            if found.cure is None:
                continue
            assert found.advice.startswith(f"{found.name} = {found.cure:g}, or keep ")
            assert found.cure in rows.USUAL[found.name]
            assert abs(math.log10((1 - found.cure) / (1 - case["beta2"]))) < 3 or found.name == "eps"
            cured = audit_hyperparameters(fmt, **(case | {found.name: found.cure}))  # type: ignore[arg-type]
            again = [f for f in cured.of(world) if f.name == found.name]
            assert all(f.severity.harmless for f in again if found.name != "eps" or f.expression == found.expression)
            named.add((found.name, found.cure))
    assert named == EXPECTED_CURES[fmt, world]


EXPECTED_CURES = {
    ("bf16", World.HELD): {("beta2", 0.98)},
    ("bf16", World.TORCH): {("beta2", 0.99)},
    ("fp16", World.HELD): {("beta2", 0.995), ("eps", 1e-6)},
    ("fp16", World.TORCH): {("beta2", 0.995), ("eps", 1e-6)},
    ("fp8_e4m3fn", World.HELD): set(),
    ("fp8_e4m3fn", World.TORCH): set(),
    ("fp8_e5m2", World.HELD): {("eps", 1e-4)},
    ("fp8_e5m2", World.TORCH): {("eps", 1e-4)},
}


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_a_cure_is_the_closest_of_those_in_use(fmt: str) -> None:
    for world in World:
        cure = audit_hyperparameters(fmt, beta2=0.9999).of(world)
        (value,) = {f.cure for f in cure if f.name == "beta2" and f.cure}
        for larger in (beta for beta in rows.USUAL["beta2"] if value < beta < 0.9999):
            others = audit_hyperparameters(fmt, beta2=larger).of(world)
            assert any(not f.severity.harmless for f in others if f.name == "beta2")


def test_nobody_takes_another_learning_rate_or_decay() -> None:
    for fmt in ("bf16", "fp16", "fp8_e4m3fn", "fp4_e2m1fn"):
        for name in OPTIMIZERS:
            for lr in (1e-9, 1e6):
                for found in audit_hyperparameters(fmt, optimizer=name, lr=lr, weight_decay=0.01).findings:
                    assert found.cure is None or found.name not in ("lr", "weight_decay")
                    assert "once in" not in found.advice


# ---- gradients that are lost ----


@cache
def squared(fmt: FloatFormat, gradient: float) -> float:
    return rounded(Fraction(gradient) ** 2, fmt)


@pytest.mark.parametrize("fmt", [*SMALL, get_format("fp16"), get_format("e4m5")], ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
def test_the_largest_gradient_that_is_lost(fmt: FloatFormat, beta: float) -> None:
    share = rounded(1 - Fraction(beta), fmt)

    def added(gradient: float) -> float:
        square = squared(fmt, gradient)
        return rounded(Fraction(share) * Fraction(square), fmt) if math.isfinite(square) else square

    values = finite_values(fmt)
    step = 1 if fmt.bits <= 10 else 7
    lost = audit_hyperparameters(fmt, beta2=beta)[LOST].stored
    if share:
        assert added(lost) == 0
        assert added(float(neighbours(lost, fmt)[1])) != 0
        assert all((added(v) == 0) == (v <= lost) for v in values[::step])


def test_what_a_lost_gradient_does_to_the_step() -> None:
    fmt = get_format("fp16")
    finding = audit_hyperparameters("fp16", eps=1e-3)[LOST]
    eps, lost = Fraction(rounded(Fraction(1e-3), fmt)), Fraction(finding.stored)
    assert finding.effect_error == float((lost + Fraction(1e-3)) / eps - 1)
    assert finding.severity is Severity.WARNING
    assert "lr*g/epsilon is up to 6.452 times as large" in finding.consequence


# ---- words ----


@pytest.mark.parametrize(
    ("fmt", "asked", "expression", "words"),
    [
        ("fp16", {"lr": 1e6}, "lr", ["inf", "65504"]),
        ("fp4_e2m1fn", {"lr": 100.0}, "lr", ["clamped", "94 % too small"]),
        ("fp8_e4m3fn", {"lr": 1e6}, "lr", ["nan", "448"]),
        ("fp16", {"lr": 1e-7}, "lr", ["19 % too large"]),
        ("fp16", {"lr": 1e-9}, "lr", ["no weight ever moves"]),
        ("bf16", {"lr": 1e-4}, "lr", ["lost on weights above 0.0311279"]),
        ("fp8_e4m3fn", {"lr": 16.0}, "lr", ["lost on weights above 416"]),  # 448 + 16 is a tie, and 448 is even
        ("fp16", {"eps": 0.0}, "eps", ["0 as asked"]),
        ("fp16", {"eps": 1e6}, "eps", ["becomes inf", "65504"]),
        ("fp16", {"eps": 1e6}, LOST, ["epsilon is not finite"]),
        ("fp8_e4m3fn", {"eps": 1e6}, LOST, ["epsilon is not finite"]),
        ("fp6_e3m2fn", {"eps": 1e6}, "eps", ["clamped"]),
        ("bf16", {"beta2": 0.99, "steps": 50}, "1 - beta2^t, t = 1", ["17 % too large", "t = 50 it is 0.4453", "0.39"]),
        ("bf16", {"beta2": 0.999}, "1 - beta2^t, t = 1", ["makes the step 0", "NaN"]),
        ("fp4_e2m1fn", {}, "1 - beta1^t, t = 1", ["makes the step infinite"]),
        ("bf16", {"beta1": 0.9}, "1 - beta1", ["together count 0.998535, asked 1"]),
        ("bf16", {"lr": 0.01, "weight_decay": 0.3, "steps": 100}, DECAY, ["30 % too large", "0.676", "0.740"]),
        ("fp32", {"lr": 3, "weight_decay": 1, "steps": 3}, DECAY, ["multiply a weight by -8"]),
        ("fp32", {"lr": 1e-12, "weight_decay": 0.1, "steps": 10**13}, DECAY, ["by 1, asked 0.367879"]),
        ("fp16", {"optimizer": "sgd", "momentum": 0.999}, "momentum*m + g", ["climbs from 0 to 768 g, asked 1000"]),
    ],
)
def test_consequences_have_the_right_numbers(
    fmt: str, asked: dict[str, Any], expression: str, words: list[str]
) -> None:
    consequence = audit_hyperparameters(fmt, **asked)[expression].consequence
    for word in words:
        assert word in consequence


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SMALL + [get_format(f) for f in ("e5m5", "e6m4", "e8m2")]), st.floats(1e-9, 1e3))
@example(get_format("fp6_e3m2fn"), 2.0)  # the largest is clamped, the second even: the third moves
def test_the_largest_weight_that_lr_moves(fmt: FloatFormat, lr: float) -> None:
    finding = audit_hyperparameters(fmt, lr=lr)["lr"]
    stored = Fraction(finding.stored) if math.isfinite(finding.stored) else None
    if not stored:
        return
    values = finite_values(fmt)
    moved = [v for v in values if rounded(Fraction(v) + stored, fmt) != v]
    if moved[-1] == values[-1]:
        assert "lost on weights" not in finding.consequence
    elif "clamped" not in finding.consequence:
        assert f"lost on weights above {moved[-1]:.6g}" in finding.consequence


def test_decay_over_many_steps_is_exact() -> None:
    finding = audit_hyperparameters("bf16", lr=0.01, weight_decay=0.3, steps=1000)[DECAY]
    with localcontext(prec=100):
        asked = (1 - Decimal.from_float(0.01) * Decimal.from_float(0.3)) ** 1000
        stored = Decimal(finding.stored) ** 1000
    assert f"by {float(stored):.6g}, asked {float(asked):.6g}" in finding.consequence


@pytest.mark.parametrize("steps", [1, 10**9, 10**40])
def test_any_number_of_steps(steps: int) -> None:
    result = audit_hyperparameters("fp32", steps=steps, beta2=1 - 2**-12, lr=1e-300)
    assert f"t = {steps:,}" in result["1 - beta2^t, t = 1"].consequence
    assert result["1 - beta2^t, t = 1"].stored == 2**-12
