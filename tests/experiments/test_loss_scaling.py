"""The experiment at a size for tests: the dead zone, the plateau, the cliff, and the accidents, each for its reason."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from precision_lab.analysis.loss_scalers import DynamicLossScale, NoLossScale
from precision_lab.experiments.loss_scaling import (
    RULES,
    STUCK_AFTER,
    Accident,
    LossScalingConfig,
    LossScalingResult,
    ScaledRun,
    beside,
    run,
)
from precision_lab.experiments.paired import Finding
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train

BURST = Accident("burst", 20, loss_factor=2.0**12)
RAMP = Accident("ramp", 26, growth=4.0)
SMALL = LossScalingConfig(
    hidden=(16,),
    learning_rate=2e-3,
    seeds=3,
    more_seeds=4,
    steps=200,
    factors=(-20, 0),
    products=(-24, -18, 6, 24),
    judged=(-4, 6, 24),
    starts=(0, 40),
    window=5,
    accident_steps=330,
    accidents=(BURST, RAMP),
)


@pytest.fixture(scope="module")
def result() -> LossScalingResult:
    return run(SMALL)


def accident(result: LossScalingResult, name: str, rule: str) -> ScaledRun:
    return next(run for run in result.accidents[name] if run.name == rule)


def first(result: LossScalingResult, c: int, k: int) -> ScaledRun:
    return result.static[c][k][0]


# ---- recovery ----


def test_too_small_a_product_learns_nothing_and_too_large_a_one_skips_everything(result: LossScalingResult) -> None:
    for c in SMALL.factors:
        dead, cliff = first(result, c, -24), first(result, c, 24)
        assert dead.final_loss == dead.initial_loss  # every gradient was flushed: Adam did not move a weight
        assert not dead.skipped.any()
        assert set(dead.max_abs) == {0.0}
        assert dead.outcome == "untrained"
        assert cliff.final_loss == cliff.initial_loss
        assert cliff.skipped.all()
        assert np.isinf(cliff.max_abs).all()
        assert cliff.outcome == "stuck"
    assert (result.dead, result.cliff) == (-24, 24)


def test_a_product_is_judged_by_several_seeds_and_all_others_by_none(result: LossScalingResult) -> None:
    assert list(result.static[-20]) == [-24, -18, -4, 6, 24]
    assert list(result.static[0]) == [-24, -18, 6, 24]
    # the losses of the runs that skip every step scatter as float32's do, so there are more of them
    assert {k: len(runs) for k, runs in result.static[-20].items()} == {-24: 1, -18: 1, -4: 3, 6: 3, 24: 4}
    assert {len(runs) for runs in result.static[0].values()} == {1}
    assert [len(runs) for runs in result.float32.values()] == [4, 1]
    assert len({r.final_loss for r in result.float32[-20]}) == 4


def test_what_keeps_what_loses_and_what_breaks_is_told(result: LossScalingResult) -> None:
    """A scale that is known to be right, one that skips every step, and a run that becomes NaN."""
    assert all(r.final_loss < 0.5 * r.initial_loss for r in result.float32[-20])
    assert {k: ratio.finding for k, ratio in result.judged.items()} == {
        -4: Finding.KEEPS,
        6: Finding.KEEPS,
        24: Finding.LOSES,
    }
    assert result.judged[6].losses == tuple(r.final_loss for r in result.static[-20][6])
    assert result.judged[6].controls == tuple(r.final_loss for r in result.float32[-20][:3])
    assert (result.plateau, result.undecided) == ((-4, 6), ())
    nan, ended = accident(result, "ramp", "none"), accident(result, "ramp", "torch")
    assert math.isfinite(ended.final_loss)
    for broken in (nan, ended):
        assert beside([broken], [result.calm]).finding is Finding.BREAKS
    assert beside([result.calm], [result.calm]).finding is Finding.NOT_DECIDED  # a single seed


def test_the_plateau_ends_where_a_judged_product_loses_or_is_not_decided(result: LossScalingResult) -> None:
    keep, lose = result.static[-20][6], result.static[-20][24][:3]
    mixed = (keep[0], lose[1], keep[2])

    def judged(*runs: tuple[ScaledRun, ...]) -> LossScalingResult:
        products = dict(zip((-9, -4, 0, 6, 9), runs, strict=True))
        return replace(
            result,
            config=replace(SMALL, products=(-9,), judged=(9, 6, 0, -4, -9)),
            static={-20: products, 0: products},
        )

    assert judged(keep, mixed, keep, keep, lose).plateau == (0, 6)
    assert judged(keep, mixed, keep, keep, lose).undecided == (-4,)
    assert judged(keep, keep, keep, lose, keep).plateau == (-9, 0)
    assert judged(lose, lose, lose, lose, mixed).plateau is None
    assert "not decided at 2^9;" in judged(lose, lose, lose, lose, mixed).answer
    assert "no loss scale is known to keep" in judged(lose, lose, lose, lose, mixed).answer
    assert judged(lose, lose, lose, lose, lose).cliff == -9
    assert judged(lose, lose, lose, mixed, lose).cliff == 9
    assert judged(lose, lose, lose, lose, keep).cliff is None


def test_only_the_product_of_factor_and_scale_decides_what_fp16_sees(result: LossScalingResult) -> None:
    """The scaled gradients are the same bits; what differs is epsilon's weight beside them."""
    small, one = first(result, -20, 6), first(result, 0, 6)
    assert small.max_abs[0] == one.max_abs[0] * 2.0**-20
    assert small.losses[0] == one.losses[0]
    assert small.loss_scales[0] == one.loss_scales[0] * 2.0**20 == 2.0**26


@pytest.mark.parametrize(("epsilon", "same"), [(1e-30, True), (1e-12, False)])
def test_but_for_epsilon_a_factor_changes_no_bit(epsilon: float, same: bool) -> None:
    """That is why one factor is looked at closely and the others in passing: runs of another one are no news."""
    config = replace(SMALL, steps=40, epsilon=epsilon, products=(-16, 6), judged=(), starts=(0,), accidents=())
    found = run(config)
    for k in config.products:
        small, one = (found.static[c][k][0] for c in (-20, 0))
        assert (small.losses.tolist() == one.losses.tolist()) is same
    coarse, other, control = found.static[-20][-16][0], found.static[0][-16][0], found.float32[0][0]
    assert abs(coarse.final_loss - other.final_loss) < 0.1 * abs(coarse.final_loss - control.final_loss)
    assert (found.float32[-20][0].final_loss == found.float32[0][0].final_loss) is same


def test_float32_does_not_mind_the_factor() -> None:
    config = TrainingConfig(hidden=(16,), optimizer="adam", learning_rate=SMALL.learning_rate, steps=120)
    plain = train(config)
    changes = {"steps": 120, "factors": (0,), "products": (0,), "judged": (), "starts": (0,), "accidents": ()}
    (ours,) = run(replace(SMALL, seeds=1, more_seeds=1, epsilon=1e-8, **changes)).float32[0]  # type: ignore[arg-type]
    assert ours.losses.tolist() == plain.losses.tolist()
    assert ours.final_loss == plain.final_loss
    assert ours.test_accuracy == plain.test_accuracy


def test_a_dynamic_scale_climbs_and_comes_down(result: LossScalingResult) -> None:
    low, high = result.dynamic[0][0], result.dynamic[40][0]
    assert low.loss_scales[:11].tolist() == [1.0] * 5 + [2.0] * 5 + [4.0]
    begin = int(np.flatnonzero(~high.skipped)[0])
    assert high.loss_scales[: begin + 1].tolist() == [2.0 ** (40 - k) for k in range(begin + 1)]
    assert high.final_loss < 0.7 * high.initial_loss
    assert low.factor == high.factor == 2.0**-20


def test_a_search_is_judged_too(result: LossScalingResult) -> None:
    """In 200 steps nothing makes up for the hundred in which the scale was too small."""
    assert list(result.searches) == [0, 40]
    assert result.searches[0].finding is Finding.LOSES
    assert result.searches[0].ratio > 1.2
    assert result.searches[0].losses == tuple(r.final_loss for r in result.dynamic[0])
    assert f"{result.searches[0].text} from S = 2^0" in result.answer


# ---- accidents ----


def test_every_rule_meets_every_accident(result: LossScalingResult) -> None:
    assert list(result.accidents) == ["burst", "ramp"]
    for runs in result.accidents.values():
        assert [r.name for r in runs] == ["float32", *RULES]
    assert isinstance(RULES["none"], NoLossScale)
    assert {"torch", "apex", "megatron", "deepspeed", "jmp", "flax", "static 2^16"} < set(RULES)


def test_before_the_accident_nothing_differs(result: LossScalingResult) -> None:
    at = SMALL.accident_at
    for runs in result.accidents.values():
        calm = runs[0]
        assert calm.losses[:at].tolist() == result.calm.losses[:at].tolist()
        assert calm.max_abs[:at].tolist() == result.calm.max_abs[:at].tolist()


def test_a_static_scale_refuses_the_burst_and_a_dynamic_one_lets_its_end_through(result: LossScalingResult) -> None:
    at = SMALL.accident_at
    burst = slice(at, at + BURST.steps)
    static, torch = accident(result, "burst", "static 2^16"), accident(result, "burst", "torch")
    assert static.skipped.nonzero()[0].tolist() == list(range(burst.start, burst.stop))
    skipped = int(torch.skipped[burst].sum())
    assert 5 < skipped < BURST.steps
    assert torch.loss_scales[burst.stop] == 2.0 ** (16 - skipped)
    # what got through is 2^12 times too large
    through = torch.max_abs[burst][~torch.skipped[burst]]
    assert through.min() > 100 * torch.max_abs[at - 50 : at].max()
    assert static.final_loss < torch.final_loss


def test_a_hysteresis_of_two_loses_one_step_more(result: LossScalingResult) -> None:
    at = SMALL.accident_at
    torch, deepspeed = (accident(result, "burst", name) for name in ("torch", "deepspeed"))
    assert torch.loss_scales[at : at + 3].tolist() == [2.0**16, 2.0**15, 2.0**14]
    assert deepspeed.loss_scales[at : at + 3].tolist() == [2.0**16, 2.0**16, 2.0**15]


def test_megatron_comes_down_from_2_to_the_32_at_the_start(result: LossScalingResult) -> None:
    megatron = accident(result, "burst", "megatron")
    begin = int(megatron.skipped[: SMALL.accident_at].sum())
    assert megatron.loss_scales[0] == megatron.loss_scales[1] == 2.0**32  # the first overflow is forgiven
    assert megatron.loss_scales[SMALL.accident_at] == 2.0 ** (33 - begin)


def test_the_ramp_ends_as_each_rule_ends(result: LossScalingResult) -> None:
    none = accident(result, "ramp", "none")
    assert none.outcome == "NaN"
    assert not none.skipped.any()
    assert not math.isfinite(none.final_loss)
    for name in ("torch", "apex"):
        run_ = accident(result, "ramp", name)
        assert run_.outcome == "stopped"
        assert "reciprocal" in run_.stopped
        assert len(run_.losses) < SMALL.accident_steps
        assert run_.skipped[-100:].all()
    deepspeed = accident(result, "ramp", "deepspeed")
    assert deepspeed.outcome == "stopped"
    assert "DeepSpeed raises" in deepspeed.stopped
    assert deepspeed.loss_scales[-1] == 1.0
    for name, floor in (("megatron", 1.0), ("jmp", 1.0), ("flax", float(np.finfo(np.float32).tiny))):
        run_ = accident(result, "ramp", name)
        assert run_.outcome == "stuck"
        assert run_.loss_scales[-1] == floor
        assert math.isfinite(run_.final_loss)


def test_a_ramp_that_float32_survives_ends_no_run(result: LossScalingResult) -> None:
    """The control of the one above: no loss is infinite or NaN, and every rule that can come down trains on."""
    survived = Accident("gentle", 8, growth=2.0)
    few = run(replace(SMALL, products=(0,), judged=(), starts=(0,), steps=3, accidents=(survived,)))
    for r in few.accidents["gentle"]:
        assert r.nonfinite_losses == 0
        assert r.name == "static 2^16" or r.outcome == "trains", r.name


def test_losses_that_are_not_finite_are_counted_also_where_the_weights_are(result: LossScalingResult) -> None:
    for r in result.accidents["ramp"]:
        assert r.nonfinite_losses == int((~np.isfinite(r.losses)).sum())
    flax = accident(result, "ramp", "flax")
    assert math.isfinite(flax.final_loss)
    assert flax.nonfinite_losses > 100
    assert accident(result, "ramp", "float32").outcome == "ruined"
    assert accident(result, "ramp", "float32").nonfinite_losses == 0
    assert {r.nonfinite_losses for r in result.accidents["burst"]} == {0}


def test_a_rule_skips_what_replaying_it_says(result: LossScalingResult) -> None:
    """The scales of a run follow from its overflows alone."""
    for runs in result.accidents.values():
        for r in runs:
            rule = RULES.get(r.name)
            if isinstance(rule, DynamicLossScale):
                scaler = rule
                for scale, infinite, skipped in zip(r.loss_scales, np.isinf(r.max_abs), r.skipped, strict=True):
                    assert scale == scaler.loss_scale
                    assert skipped == infinite
                    scaler = scaler.adjust(bool(infinite))


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "trains"),
        ({"final_loss": 1.24}, "trains"),
        ({"final_loss": 1.25}, "untrained"),
        ({"final_loss": 2.5}, "untrained"),
        ({"final_loss": 2.6}, "ruined"),
        ({"final_loss": math.nan}, "NaN"),
        ({"skipped": np.ones(STUCK_AFTER, bool)}, "stuck"),
        ({"skipped": np.arange(STUCK_AFTER) > 0}, "trains"),
        ({"stopped": "it raised"}, "stopped"),
    ],
)
def test_outcomes(changes: dict[str, object], outcome: str) -> None:
    nothing = np.zeros(STUCK_AFTER)
    base = ScaledRun("r", 1.0, nothing + 1, nothing > 0, 2.5, 0.1, 0.9, 0, "")
    assert replace(base, **changes).outcome == outcome  # type: ignore[arg-type]


# ---- the result and the configuration ----


def test_json_holds_everything_and_no_nan(result: LossScalingResult) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["kind"] == "precision_lab experiment loss_scaling"
    assert data["config"]["accidents"][0]["name"] == "burst"
    assert data["static"]["-20"]["6"][2]["final_loss"] == result.static[-20][6][2].final_loss
    assert data["judged"]["6"]["finding"] == "keeps"
    assert (data["plateau"], data["undecided"]) == ([-4, 6], [])
    none = next(r for r in data["accidents"]["ramp"] if r["name"] == "none")
    assert none["final_loss"] == "nan"
    static = next(r for r in data["accidents"]["burst"] if r["name"] == "static 2^16")
    after = SMALL.accident_steps - SMALL.accident_at - 20
    assert static["skipped"] == [False, SMALL.accident_at, True, 20, False, after]


def test_the_same_configuration_gives_the_same_result(result: LossScalingResult) -> None:
    small = replace(SMALL, factors=(-20,), products=(6,), judged=(), starts=(0,), accidents=())
    assert first(run(small), -20, 6).losses.tolist() == first(result, -20, 6).losses.tolist()


def test_progress_counts_the_runs() -> None:
    seen: list[tuple[int, int]] = []
    small = replace(SMALL, steps=3, accident_steps=3, accidents=(Accident("a", 1),), products=(0, 2), judged=(2,))
    run(replace(small, starts=(0,)), progress=lambda done, total: seen.append((done, total)))
    total = (1 + 1 + 1) * 4 + 1 + (1 + 2) + 1 + (1 + len(RULES))
    assert {of for _, of in seen} == {total}
    done = [n for n, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == total


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 2}, "steps must be an integer of at least 3"),
        ({"accident_steps": 1.5}, "accident_steps"),
        ({"factors": ()}, "factors must be a tuple of exponents in -60..60"),
        ({"products": (0.5,)}, "products"),
        ({"judged": (0.5,)}, r"judged must be a tuple of exponents in -60..60, got"),
        ({"seeds": 0}, "seeds must be an integer of at least 1"),
        ({"more_seeds": 2}, "more_seeds must be an integer of at least 3"),
        ({"starts": (61,)}, "starts"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"format": "fp17"}, "fp17"),
        ({"accident_steps": 30}, "three times the steps of each accident"),
        ({"window": 0}, "window"),
        ({"hidden": (0,)}, "hidden"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_configurations(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"loss_factor": 0.0}, {"growth": math.inf}, {"loss_factor": math.nan}]
)
def test_bad_accidents(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(BURST, **changes)  # type: ignore[arg-type]
