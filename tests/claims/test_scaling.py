"""Claims on loss scaling: with runs that are known to keep, to lose and to break, and with other rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from precision_lab.analysis.loss_scalers import DynamicLossScale
from precision_lab.experiments.claims import runs, scaling
from precision_lab.experiments.claims.claim import Arithmetic, Outcome, Verdict
from precision_lab.experiments.claims.experiment import CLAIMS
from precision_lab.experiments.loss_scaling import RULES, ScaledRun
from precision_lab.experiments.paired import PairedRatio

HOLDS, ONLY_IF, FAILS, UNDECIDED = Outcome.HOLDS, Outcome.ONLY_IF, Outcome.FAILS, Outcome.UNDECIDED
KEPT, LOST = PairedRatio((1.0, 1.001, 0.999), (1.0,) * 3), PairedRatio((2.0, 2.1, 1.9), (1.0,) * 3)
OPEN = PairedRatio((1.0, 1.1, 1.2, 1.0), (1.0,) * 4)


def verdict(key: str) -> Verdict:
    return CLAIMS[key].check(Arithmetic())


# ---- a ramp ----


def a_run(name: str, final: float = 0.1, nonfinite: int = 0) -> ScaledRun:
    steps = np.ones(runs.RAMP_STEPS)
    return ScaledRun(name, 1.0, steps, steps == 0, 2.5, final, 0.9, nonfinite, "")


def ramps(monkeypatch: pytest.MonkeyPatch, gentle: Mapping[str, ScaledRun], steep: Mapping[str, ScaledRun]) -> Verdict:
    """The verdict if all runs were good ones, but for some with the second of two seeds, and some of the steep ramp."""
    good = {name: a_run(name) for name in ("float32", *RULES)}

    def made_up(doublings: int, seeds: int = 2) -> tuple[tuple[ScaledRun, ...], ...]:
        odd = gentle if doublings < 20 else steep
        return (*((*good.values(),) for _ in range(seeds - 1)), (*{**good, **odd}.values(),))

    monkeypatch.setattr(runs, "ramp", made_up)
    return verdict("ramp-nan")


def test_a_ramp_that_ends_no_run_is_no_ground_for_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ramps(monkeypatch, {}, {})
    assert found.outcome is FAILS
    assert (found.evidence["runs"], found.evidence["logged"], found.evidence["weights"]) == (12, 0, 0)
    # a static scale that is stuck, and what fp16 does without one, are no rules that adapt
    bad = {name: a_run(name, math.nan, 9) for name in ("none", "static 2^16")}
    assert ramps(monkeypatch, bad, bad).outcome is FAILS


def test_what_a_ramp_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights become NaN; only losses do; only where fp32 is ruined; fp32 does not learn on the gentle one."""
    logged = {"jmp": a_run("jmp", 0.1, 3)}
    assert ramps(monkeypatch, {"jmp": a_run("jmp", math.nan, 9)}, {}).outcome is HOLDS
    assert ramps(monkeypatch, {}, {"jmp": a_run("jmp", math.nan, 9)}).outcome is HOLDS
    milder = ramps(monkeypatch, logged, {})
    assert (milder.outcome, milder.evidence["logged"]) == (ONLY_IF, 1)
    assert "ruins" not in milder.condition
    only_steep = ramps(monkeypatch, {}, logged)
    assert (only_steep.outcome, only_steep.evidence["least"], only_steep.evidence["most"]) == (ONLY_IF, 0, 3)
    assert "the ramp is one that ruins fp32 too" in only_steep.condition
    unlearned = ramps(monkeypatch, {"float32": a_run("float32", 1.3)}, logged)
    assert (unlearned.outcome, unlearned.evidence["learned"]) == (UNDECIDED, 1)


# ---- rules ----


def test_a_typical_scale_is_that_of_most_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict("typical-scale")
    assert (found.outcome, found.evidence["high"], found.evidence["count"]) == (HOLDS, 5, 9)
    low = {name: replace(rule, init_scale=2.0**15, loss_scale=2.0**15) for name, rule in scaling._DYNAMIC.items()}
    few = {**scaling._DYNAMIC, **{name: low[name] for name in ("torch", "apex")}}
    monkeypatch.setattr(scaling, "_DYNAMIC", few)
    assert verdict("typical-scale").outcome is FAILS
    assert "(megatron, deepspeed and flax)" in verdict("typical-scale").reason


def test_every_rule_of_a_framework_is_asked_what_it_does_at_an_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict("dynamic-rule")
    assert (found.outcome, found.evidence) == (ONLY_IF, {"count": 9, "halve": 7, "late": 2})
    assert "megatron and deepspeed wait" in found.reason
    monkeypatch.setattr(scaling, "_DYNAMIC", {"torch": DynamicLossScale.torch(), "jmp": DynamicLossScale.jmp()})
    assert verdict("dynamic-rule").outcome is HOLDS


# ---- losses beside float32's ----


@pytest.mark.parametrize(
    ("plain", "tiny", "outcome"),
    [
        (KEPT, KEPT, HOLDS),
        (LOST, KEPT, FAILS),
        (KEPT, LOST, FAILS),
        (KEPT, OPEN, UNDECIDED),
        (OPEN, KEPT, UNDECIDED),
        (OPEN, LOST, FAILS),
    ],
)
def test_bf16_needs_none_if_it_keeps_the_result_without(
    plain: PairedRatio, tiny: PairedRatio, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"autocast_bf16": plain, "autocast_bf16,loss_scale=2^-20": tiny}
    monkeypatch.setattr(runs, "paired", lambda storage: asked.get(storage, LOST))
    found = verdict("bf16-needs-no-scaling")
    assert found.outcome is outcome
    assert found.seeds == tuple(sorted({plain.n, tiny.n, LOST.n}))
