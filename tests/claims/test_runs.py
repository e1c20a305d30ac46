"""Claims on runs: what they compare, what three known cases come to, and that other seeds make no other verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16

from precision_lab.experiments.claims import operations, runs, training
from precision_lab.experiments.claims.claim import Arithmetic, Outcome, Verdict
from precision_lab.experiments.claims.experiment import CLAIMS
from precision_lab.experiments.paired import MORE_SEEDS, SEEDS, Finding, PairedRatio
from precision_lab.numerics.rounding import Array
from precision_lab.training.loop import train

HOLDS, ONLY_IF, FAILS, UNTESTED = Outcome.HOLDS, Outcome.ONLY_IF, Outcome.FAILS, Outcome.UNTESTED
UNDECIDED = Outcome.UNDECIDED
THREE = (0, 1, 2)
KEPT, LOST = PairedRatio((1.0, 1.001, 0.999), (1.0,) * 3), PairedRatio((2.0, 2.1, 1.9), (1.0,) * 3)
LOWER, OPEN = PairedRatio((0.5, 0.51, 0.49), (1.0,) * 3), PairedRatio((1.0, 1.1, 1.2, 1.0), (1.0,) * 4)


def verdict(key: str, arithmetic: Arithmetic | None = None) -> Verdict:
    return CLAIMS[key].check(arithmetic or Arithmetic())


# ---- what is compared ----


@pytest.mark.parametrize(
    ("storage", "optimizer", "finding"),
    [
        ("fp32", "sgd", Finding.KEEPS),
        ("autocast_bf16", "sgd", Finding.KEEPS),
        ("pure_bf16", "sgd", Finding.LOSES),
        ("pure_fp16", "adam", Finding.BREAKS),  # epsilon, 1e-8, is zero in fp16
    ],
)
def test_known_cases_get_their_findings(storage: str, optimizer: str, finding: Finding) -> None:
    found = runs.paired(storage, optimizer, seeds=THREE)
    assert found.finding is finding
    assert found.n == 3
    assert found.learned
    assert found.controls == tuple(runs.trained("fp32", optimizer, seed).final_loss for seed in THREE)
    if storage == "fp32":
        assert found.logs == (0.0,) * 3


def test_nothing_is_said_of_runs_that_have_not_learned() -> None:
    found = runs.paired("pure_bf16", "sgd", seeds=THREE, steps=10)
    assert not found.learned
    assert found.finding is Finding.NOT_DECIDED


def test_the_test_loss_is_another_loss() -> None:
    found = runs.paired("pure_bf16", "sgd", measure="test loss", seeds=THREE)
    assert found.losses == tuple(runs.trained("pure_bf16", "sgd", seed).test_loss for seed in THREE)
    assert found.losses != runs.paired("pure_bf16", "sgd", seeds=THREE).losses
    assert found.finding is Finding.LOSES


def test_what_is_trained() -> None:
    usual, other = runs.config(), runs.config("pure_bf16", "sgd", 3, learning_rate=0.1, steps=10)
    assert (usual.optimizer, usual.learning_rate, usual.steps, usual.seed) == ("adam", 1e-3, runs.STEPS, 0)
    assert (other.optimizer, other.learning_rate, other.steps, other.seed) == ("sgd", 0.1, 10, 3)
    assert str(other.storage) == "weights=bf16"
    result = runs.trained("fp32", steps=3)
    assert result is runs.trained("fp32", seed=0, steps=3, learning_rate=1e-3)  # the same configuration, trained once
    assert train(result.config).final_loss == result.final_loss


@pytest.mark.parametrize(("scatter", "n"), [(0.005, SEEDS), (0.02, MORE_SEEDS)])
def test_seeds_are_added_where_they_scatter(scatter: float, n: int) -> None:
    asked: list[int] = []

    def pair(seed: int) -> runs.Pair:
        asked.append(seed)
        return runs.Pair(1 + scatter * (-1) ** seed, 1.0, 3.0)

    found = runs.compared(pair)
    assert found.n == n
    assert set(asked) == set(range(n))


def test_the_order_of_a_batch_is_the_noise_floor() -> None:
    found = runs.paired("fp32", "sgd", seeds=THREE, steps=200, permuted=True)
    assert 0 < max(map(abs, found.logs)) < 1e-5
    far = runs.distance(runs.trained("fp32", "sgd", steps=200, permuted=True))
    assert 0 < far < 1e-5
    assert runs.distance(runs.trained("fp32", "sgd", steps=200)) == 0
    unmoved = replace(runs.trained("fp32", "sgd", steps=200), parameters=runs.model().init(0))
    assert runs.distance(unmoved) == 1


def test_a_mean_is_of_the_first_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SEED_SETS", ((2, 4), (0,)))
    assert runs.mean(lambda run: run.config.seed, "fp32", steps=1) == 3
    assert runs.mean(runs.lost, "fp32", steps=1) == runs.trained("fp32", steps=1, seed=2).updates.lost_of_nonzero


# ---- verdicts ----


@pytest.fixture(scope="module", params=[THREE, (7, 8, 9)], ids=["first", "last"])
def other_seeds(request: pytest.FixtureRequest) -> Iterator[tuple[int, ...]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SEED_SETS", (request.param,))
        yield request.param


@pytest.mark.parametrize("key", ["noise-washes-out-rounding", "weights-drift"])
def test_other_seeds_make_no_other_verdict(key: str, other_seeds: tuple[int, ...]) -> None:
    found = verdict(key)
    assert found.seeds == (len(other_seeds),)
    assert found.outcome is ONLY_IF


Paired = Callable[..., PairedRatio]


def fake(found: Mapping[str, PairedRatio], others: PairedRatio = KEPT) -> Paired:
    """What is found for storages whose names or settings begin so."""

    def paired(storage: str, optimizer: str = "adam", **setting: Any) -> PairedRatio:
        names = (f"{storage} {optimizer}", storage, *map("{0[0]}={0[1]}".format, setting.items()))
        return next((found[name] for name in names if name in found), others)

    return paired


CASES: dict[str, list[tuple[dict[str, PairedRatio], Outcome]]] = {
    "master-copy-needed": [
        ({"pure_bf16": LOST}, ONLY_IF),
        ({}, FAILS),
        ({"pure_bf16": LOST, "autocast_bf16": LOST}, FAILS),
        ({"pure_bf16": LOST, "bf16_kahan": LOST, "bf16_stochastic": LOST, "collage_plus": LOST}, HOLDS),
        ({"pure_bf16": LOST, "bf16_kahan": LOST, "bf16_stochastic": LOST, "collage_plus": OPEN}, UNDECIDED),
        ({"pure_bf16": OPEN}, UNDECIDED),
    ],
    "master-copy-not-universal": [
        ({"steps=2000": LOST}, HOLDS),
        ({}, FAILS),
        ({"pure_fp16": LOST}, FAILS),
        ({"steps=2000": OPEN}, UNDECIDED),
    ],
    "no-master-degrades-descent": [
        ({"bf16_fp32_moments": LOST, "beta2=0.95": LOST}, HOLDS),
        ({"beta2=0.95": OPEN, "bf16_fp32_moments adam": LOST}, HOLDS),
        ({}, FAILS),
        ({"bf16_fp32_moments": OPEN}, UNDECIDED),
    ],
    "weights-drift": [
        ({"pure_bf16": LOST}, ONLY_IF),
        ({"pure_bf16": LOST, "bf16_stochastic": LOST}, HOLDS),
        ({}, FAILS),
        ({"pure_bf16": LOST, "bf16_stochastic": OPEN}, UNDECIDED),
    ],
    "moments-need-fp32": [
        ({"master_bf16,second_moment=bf16": LOST}, ONLY_IF),
        ({"master_bf16,second_moment=bf16": LOST, "master_bf16,moments=bf16": LOST}, HOLDS),
        ({}, FAILS),
        ({"master_bf16,second_moment=bf16": OPEN}, UNDECIDED),
    ],
    "softmax-and-loss-in-fp32": [
        ({"steps=2000": LOST}, ONLY_IF),
        ({}, FAILS),
        ({"autocast_bf16,sensitive=bf16": LOST}, HOLDS),
        ({"steps=2000": OPEN}, UNDECIDED),
    ],
    "bf16-keeps-quality": [
        ({}, HOLDS),
        ({"pure_bf16": LOST}, HOLDS),
        ({"autocast_fp16": LOST}, FAILS),
        ({"autocast_bf16": OPEN}, UNDECIDED),
    ],
    "range-over-precision": [
        ({"autocast_fp16,loss_scale=2^-20": LOST, "pure_bf16": LOST, "weights=e8m2,master=fp32": OPEN}, ONLY_IF),
        ({"autocast_fp16,loss_scale=2^-20": LOST, "autocast_fp16,loss_scale=none": LOST}, HOLDS),
        ({}, FAILS),
        ({"autocast_fp16,loss_scale=2^-20": OPEN}, UNDECIDED),
    ],
    "noise-washes-out-rounding": [
        ({"pure_bf16": LOST}, ONLY_IF),
        ({}, HOLDS),
        ({"autocast_bf16": LOST}, FAILS),
        ({"pure_bf16": OPEN}, UNDECIDED),
    ],
}


@pytest.mark.parametrize(("key", "number"), [(key, i) for key, cases in CASES.items() for i in range(len(cases))])
def test_verdicts_follow_from_the_runs(key: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, outcome = CASES[key][number]
    monkeypatch.setattr(runs, "paired", fake(found))
    monkeypatch.setattr(
        runs, "mean", lambda _, storage, *__: {"autocast_bf16": 1.0, "bf16_fp32_moments": 0.7}.get(storage, 20)
    )
    monkeypatch.setattr(operations, "_stored_as_one", lambda *_, **__: 0.5)
    assert verdict(key).outcome is outcome


def test_where_fp32_itself_is_rough_it_is_only_if(monkeypatch: pytest.MonkeyPatch) -> None:
    for rough in (OPEN, KEPT, LOWER):
        monkeypatch.setattr(
            runs, "paired", lambda name, rough=rough, **s: rough if s else LOST if "moments" in name else KEPT
        )
        monkeypatch.setattr(runs, "mean", lambda _, storage, *__: 1.0 if storage == "autocast_bf16" else 0.7)
        assert verdict("no-master-degrades-descent").outcome is ONLY_IF


def test_two_claims_on_the_same_runs_do_not_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is found: if a master copy is always needed, it is not so that it is not."""
    monkeypatch.setattr(runs, "mean", lambda *_: 1.0)
    for every in (KEPT, LOST, OPEN):
        monkeypatch.setattr(runs, "paired", fake({"autocast_bf16": KEPT}, every))
        assert {verdict(key).outcome for key in ("master-copy-needed", "master-copy-not-universal")} != {HOLDS}


def test_what_is_learned_less_is_no_regularization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "paired", fake({"pure_bf16": LOST}))
    for equal, outcome in ((KEPT, UNTESTED), (LOST, UNTESTED), (OPEN, UNTESTED), (LOWER, HOLDS)):
        monkeypatch.setattr(training, "_test_loss_at_equal_training_loss", lambda _, equal=equal: equal)
        assert verdict("precision-regularizes").outcome is outcome


def test_runs_stopped_at_the_same_training_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 beside itself, longer: it is stopped at the same step, and so the same."""
    monkeypatch.setattr(runs, "SEED_SETS", ((0,),))
    monkeypatch.setattr(runs, "STEPS", 200)
    same = training._test_loss_at_equal_training_loss("fp32")
    assert same.losses == same.controls
    slow = training._test_loss_at_equal_training_loss("pure_bf16")
    assert slow.losses != slow.controls
    assert slow.ratio == pytest.approx(1, abs=0.2)


def test_how_many_pairs_it_takes() -> None:
    """Of s = d: t(4) = 2.132 is less than sqrt(5), t(3) = 2.353 more than sqrt(4)."""
    assert training._pairs_to_see(1e-3, 1e-3) == 5
    assert training._pairs_to_see(1e-3, 1e-6) == 2
    many = [training._pairs_to_see(1e-3, s) for s in (1e-4, 5e-4, 1e-3, 2e-3, 4e-3)]
    assert all(a <= b for a, b in pairwise(many))
    assert many[-1] == pytest.approx((1.6449 * 4) ** 2, rel=0.1)


def test_a_single_control_is_enough_where_pairs_do_not_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    calm, rough = (PairedRatio((1 + s, 1 - s, 1 + s, 1 - s), (1.0,) * 4) for s in (1e-6, 2e-3))
    for adam, sgd, outcome in ((calm, calm, HOLDS), (rough, calm, ONLY_IF), (rough, rough, FAILS)):
        monkeypatch.setattr(runs, "paired", fake({"autocast_bf16 adam": adam, "autocast_bf16 sgd": sgd}))
        assert verdict("fixed-seed-control").outcome is outcome


# ---- arithmetic ----


def test_a_probability_near_one_has_no_gradient_in_bf16() -> None:
    found = verdict("bf16-softmax-underflows")
    assert found.evidence["gradient"] == float(bfloat16(0.999)) - 1 == 0
    assert verdict("bf16-softmax-underflows", Arithmetic("toward_zero")).evidence["gradient"] == -(2.0**-8)


def test_the_share_of_probabilities_that_are_stored_as_one() -> None:
    digits, result = runs.data()[0], runs.trained("fp32", "sgd", steps=300, learning_rate=0.3)
    parameters = {name: array.astype(np.float64) for name, array in result.parameters.items()}
    logits = runs.model().forward(parameters, digits.inputs)["logits"]
    p = np.exp(logits)[np.arange(len(logits)), digits.labels] / np.exp(logits).sum(axis=1)
    expected = np.mean(p.astype(bfloat16) == 1)
    assert 0 < expected < 1
    assert operations._stored_as_one(Arithmetic(), optimizer="sgd", steps=300, learning_rate=0.3) == expected


def test_the_errors_of_losses() -> None:
    found = verdict("upcast-logits")
    logits = 5 * np.random.default_rng(0).standard_normal((500, 1000))

    def losses(z: Array) -> Array:
        result: Array = np.log(np.exp(z).sum(axis=1)) - z[:, 0]
        return result

    stored = logits.astype(np.float32).astype(bfloat16).astype(np.float64)
    assert found.evidence["small_up"] == pytest.approx(np.mean(np.abs(losses(stored) - losses(logits))), rel=1e-6)
    assert found.evidence["limit"] == pytest.approx(math.log(1.03))
    assert found.outcome is ONLY_IF
    assert verdict("upcast-logits", Arithmetic("toward_zero")).outcome is FAILS  # and there errors do not cancel


@pytest.mark.parametrize(("cpu", "outcome"), [("fp32", HOLDS), ("bf16", ONLY_IF)])
def test_defaults_that_differ_by_device(cpu: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {device: dict.fromkeys(operations.AUTOCAST["cuda"], f) for device, f in (("cuda", "fp32"), ("cpu", cpu))}
    monkeypatch.setattr(operations, "AUTOCAST", table)
    found = verdict("fp32-operations-by-default")
    assert found.outcome is outcome
    assert ("softmax" in found.reason) == (cpu == "bf16")
    table["cuda"]["softmax"] = "bf16"
    assert verdict("fp32-operations-by-default").outcome is FAILS
