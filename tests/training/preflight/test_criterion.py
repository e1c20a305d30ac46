"""The criterion, against what the optimizers do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from precision_lab import StorageConfig, World, audit_hyperparameters, round_to
from precision_lab.numerics.codec import codec
from precision_lab.training.optimizer_state import start, update, updated_parameters
from precision_lab.training.optimizers import OPTIMIZERS, SGD
from precision_lab.training.preflight.criterion import ROLES
from precision_lab.training.preflight.report import Outcome, StoredUpdate
from precision_lab.training.update_rules import grow, multiply
from tests.training.preflight.helpers import BF16, ask, ask_steps


@pytest.mark.parametrize("way", ["kahan", "collage_light"])
@pytest.mark.parametrize("weight", [1.0, 1.0078125, 1.5, -1.25, 0.15625])
def test_two_words_take_updates_from_half_a_gap_over_2_to_the_p_on(way: str, weight: float) -> None:
    """Constant updates move w for ever above the threshold; below it an even w stands still after half a gap."""
    storage = StorageConfig.parse(f"weights=bf16,update={way}")
    half = 2.0 ** (math.frexp(weight)[1] - 1 - 8)

    def distance(u: float, steps: int) -> float:
        state = start(np.array([weight], np.float32), SGD(u), storage)
        for _ in range(steps):
            state, _ = update(state, np.array([-math.copysign(1, weight)], np.float32), SGD(u), storage)
        return float(abs(updated_parameters(state, storage)[0] - np.float32(weight)))

    steps = 800
    above, below = 1.5 * half * 2.0**-8, half * 2.0**-9
    assert distance(above, steps) > 0.8 * steps * above
    blocked = [
        ask({"w": [weight]}, storage=storage, lr=u).total[StoredUpdate(BF16, way)].blocked for u in (above, below)
    ]
    assert blocked == [0, 1]
    assert distance(below, 2 * steps) <= 2 * half  # a gap at most, where 1600 steps come to three half gaps


def test_stochastic_rounding_moves_nothing_below_2_to_minus_16_of_a_gap() -> None:
    half = 2.0**-8  # of 1 in bf16
    for u, moves in ((half * 2.0**-14, True), (half * 2.0**-16, False)):
        rounded = round_to(np.full(1 << 18, 1 + u), "bf16", "stochastic", rng=3)
        assert bool((rounded != 1).any()) is moves
        found = ask({"w": [1.0]}, lr=u).total[StoredUpdate(BF16, "stochastic")]
        assert found.frozen == (0 if moves else 1)


@pytest.mark.parametrize(("rate", "settles"), [(1e-3, True), (3.1e-4, True), (2e-5, False)])
def test_the_second_moment_in_two_words_settles_where_the_criterion_says(rate: float, settles: bool) -> None:
    to = codec(BF16)
    g2 = np.linspace(1, 2, 8, endpoint=False, dtype=np.float32)
    v, r = to.round(np.float32(0.85) * g2), np.zeros(8, np.float32)
    for _ in range(int(1.5 / rate) if settles else 3000):
        v, r = multiply(v, r, 1 - rate, BF16)
        v, r = grow(v, r, to.round(np.float32(rate) * g2), to)
    reached = (v.astype(np.float64) + r) / g2
    assert bool((abs(reached - 1) < 0.1).all()) is settles
    rejected = [f for f in ask({"w": [0.5]}, beta2=1 - rate)["collage_plus"].findings if f.rejects]
    assert bool(rejected) is not settles


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_number_that_torch_stores_has_a_role(optimizer: str) -> None:
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.1} if optimizer == "sgd" else {"weight_decay": 0.1}
    audit = audit_hyperparameters("bf16", optimizer=optimizer, **options)
    expressions = {finding.expression for finding in audit.of(World.TORCH)}
    rest = expressions - {expression for role in ROLES.values() for expression in role}
    # sgd adds the decay with the gradient: it is part of the update; torch's step counter is a float32
    assert rest <= {"1 - lr*weight_decay/(1 - momentum)", "t, the step counter"}


def test_constants_are_judged_in_the_format_of_their_role() -> None:
    report = ask({"w": [0.5]}, storage=("bf16_fp32_moments", "pure_bf16"), beta2=0.999, weight_decay=0.1)
    assert {f.finding.expression for f in report["pure_bf16"].findings if f.rejects} == {
        *("share of v with R(beta2*v) = v", "beta2*v + (1 - beta2)*g^2", "1 - lr*weight_decay")
    }
    assert {f.finding.expression for f in report["bf16_fp32_moments"].findings if f.rejects} == {"1 - lr*weight_decay"}
    assert not [f for f in report["master_bf16"].findings if f.rejects]
    # stochastically rounded, the decay is not rounded apart
    assert not [f for f in report["bf16_stochastic"].findings if f.role == "weights"]


def test_what_is_fatal_in_fp32_too_rejects_nothing_and_is_said() -> None:
    report = ask_steps({"w": [2.0**-20]}, 1e-7, lr=1e-7, weight_decay=1e-3)
    assert report["pure_bf16"].outcome is Outcome.KEEPS
    assert "fp32 itself loses: 1 - lr*weight_decay R((1 - lr*weight_decay)*w) = w for 100 % of all w" in report.verdict


@pytest.mark.parametrize(("beta2", "rejected"), [(0.998, True), (0.997, True), (0.99, False), (0.95, False)])
def test_constants_are_torchs_doubles(beta2: float, rejected: bool) -> None:
    """0.997 is not 1 in bf16, and freezes v all the same; 0.99 is 0.98828125 there, which torch never looks at."""
    report = ask({"w": [0.5]}, storage="pure_bf16", beta2=beta2)
    findings = [f for f in report["pure_bf16"].findings if f.role == "second moment"]
    assert {f.finding.world for f in findings} == {World.TORCH}
    assert any(f.rejects for f in findings) is rejected
    assert not {"beta2", "1 - beta2"} & {f.finding.expression for f in findings}
