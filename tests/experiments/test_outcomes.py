"""Summaries of runs: their findings and sentences on runs whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from precision_lab.experiments.outcomes import ConfigurationSummary, Run, beside_control, settled
from precision_lab.experiments.paired import Finding
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig


@pytest.fixture(scope="module")
def run() -> Run:
    return Run.of(
        train(TrainingConfig(hidden=(4,), steps=40, loss_steps=(20, 40), storage=CONFIGURATIONS["pure_bf16"]))
    )


def of(run: Run, *losses: float, first: float = 2.0, **changes: Any) -> tuple[Run, ...]:
    """Runs that are said to have ended at some losses."""
    return tuple(replace(run, initial_loss=first, final_loss=loss, **changes) for loss in losses)


def judged(run: Run, losses: tuple[float, ...], controls: tuple[float, ...], **changes: Any) -> ConfigurationSummary:
    control = ConfigurationSummary("fp32", of(run, *controls))
    return beside_control((control, ConfigurationSummary("narrow", of(run, *losses, **changes))))[1]


def test_a_run_is_kept_in_blocks() -> None:
    config = TrainingConfig(
        hidden=(4,), steps=200, optimizer="sgd", learning_rate=0.01, storage=CONFIGURATIONS["pure_bf16"]
    )
    result = train(config)
    found = Run.of(result)
    assert (found.config, found.block, found.steps) == (config, 20, 200)
    assert found.losses == tuple(result.losses[i : i + 20].mean() for i in range(0, 200, 20))
    assert found.middles == [i + 10 for i in range(0, 200, 20)]
    assert found.edq_ratios == tuple(s.product / s.intended for s in result.by_step)
    assert (found.final_loss, found.updates.lost) == (result.final_loss, result.updates.lost)


@pytest.mark.parametrize(
    ("losses", "finding", "words"),
    [
        ((0.1, 0.1, 0.1), Finding.KEEPS, "keeps fp32's result: 1.0000 times [1.0000, 1.0000], n = 3"),
        ((0.30, 0.31, 0.30), Finding.LOSES, "loses: 3.03 times [2.94, 3.13], n = 3"),
        ((0.05, 0.05, 0.0501), Finding.ENDS_LOWER, "ends lower than fp32: 0.5003 times"),
        ((0.1, math.nan, 0.1), Finding.BREAKS, "breaks in 1 of 3 seeds: the parameters become infinite or NaN"),
        ((0.1, 0.103, 0.106), Finding.NOT_DECIDED, "not decided with 3 seeds: 1.03 times"),
    ],
)
def test_sentences(run: Run, losses: tuple[float, ...], finding: Finding, words: str) -> None:
    found = judged(run, losses, (0.1, 0.1, 0.1))
    assert found.finding is finding
    assert found.sentence.startswith(words)


def test_a_run_that_was_ended_is_broken(run: Run) -> None:
    found = judged(run, (0.1, 0.1), (0.1, 0.1), stopped="the loss scale raised")
    assert found.finding is Finding.BREAKS
    assert found.sentence.startswith("breaks in 2 of 2 seeds: the loss scale raised")


def test_what_breaks_is_broken_whoever_learns(run: Run) -> None:
    found = judged(run, (math.inf,), (1.9,))
    assert (found.finding, found.keeps) == (Finding.BREAKS, False)


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (1.0, "too short to tell: fp32 came from 2 to 1 only (give more --steps)"),
        (1.9, "too short to tell: fp32 came from 2 to 1.9 only"),
        (2.0, "not decided: fp32 does not learn, 2 becomes 2 (try another --lr)"),
        (math.nan, "not decided: fp32 does not learn, 2 becomes nan"),
    ],
)
def test_a_verdict_takes_controls_that_have_learned(run: Run, control: float, words: str) -> None:
    found = judged(run, (0.1, 0.1), (0.1, control))
    assert (found.finding, found.keeps) == (Finding.NOT_DECIDED, None)
    assert found.sentence.startswith(words)


def test_one_seed_decides_nothing(run: Run) -> None:
    assert judged(run, (0.3,), (0.1,)).sentence == "not decided with 1 seed: 3.00 times, n = 1 (give --seeds 5)"


def test_runs_are_paired_in_the_order_of_their_seeds(run: Run) -> None:
    control = ConfigurationSummary("fp32", of(run, 0.1, 0.2, 0.3))
    _, narrow = beside_control((control, ConfigurationSummary("narrow", of(run, 0.2, 0.4))))
    assert narrow.paired.ratio == pytest.approx(2)
    assert (narrow.paired.n, narrow.paired.controls) == (2, (0.1, 0.2))
    with pytest.raises(ValueError, match="a run for each seed"):
        beside_control((narrow, control))
    with pytest.raises(ValueError, match="control"):
        beside_control(())


def test_ratios_on_the_way(run: Run) -> None:
    early = replace(run, losses_after={20: 1.0, 40: 0.5}, initial_loss=4.0)
    late = replace(run, losses_after={20: 1.0, 40: 2.0}, initial_loss=4.0)
    group = (ConfigurationSummary("fp32", (early, early)), ConfigurationSummary("narrow", (late, late)))
    found = beside_control(group)[1].paired_after
    assert {step: ratio.ratio for step, ratio in found.items()} == pytest.approx({20: 1.0, 40: 4.0})
    stopped = replace(late, losses_after={20: 1.0})
    broken = beside_control((group[0], ConfigurationSummary("narrow", (late, stopped))))[1].paired_after
    assert broken[40].finding is Finding.BREAKS


def curve(run: Run, *losses: float, steps: int = 800) -> Run:
    return replace(run, losses=losses, steps=steps, block=20)


def test_where_a_curve_has_settled(run: Run) -> None:
    falling = [2.0 * 0.9**k for k in range(40)]
    still = [2.0 * 0.8**k for k in range(10)] + [0.25] * 30
    found = settled([curve(run, *still)])
    assert found is not None
    assert found.loss == 0.25
    assert 140 <= found.step <= 240
    assert (end := settled([curve(run, *falling)])) is None or end.step > 600
    assert settled([curve(run, *[math.nan] * 40)]) is None
    assert settled([curve(run, *still[:20])]) is None  # too few blocks to tell
    assert settled([curve(run, *still), curve(run, *still[:30])]) is None


def test_a_stall_is_named_with_its_loss(run: Run) -> None:
    still = curve(replace(run, final_loss=0.25), *[2.0 * 0.8**k for k in range(10)], *[0.25] * 30)
    falls = curve(replace(run, final_loss=0.05), *[2.0 * 0.9**k for k in range(40)])
    narrow = ConfigurationSummary("narrow", (still, still), (falls, falls))
    assert narrow.stalls
    assert narrow.sentence.endswith("on it stays at 0.25")
    both = ConfigurationSummary("narrow", (still, still), (still, still))
    assert not both.stalls


@pytest.mark.parametrize(
    ("storage", "beta2", "reason"),
    [
        ("pure_bf16", 0.998, "R(0.998*v) = v for 95.3% of all v in bf16"),  # which bf16 stores as 0.99609375, not as 1
        ("pure_bf16", 0.997, "R(0.997*v) = v for 29.7% of all v in bf16"),
        ("pure_bf16", 0.996, None),
        ("pure_bf16", 0.95, None),
        ("pure_fp16", 0.999, None),
        ("pure_fp16", 0.9999, "R(0.9999*v) = v for 100% of all v in fp16"),
        ("bf16_stochastic", 0.999, "R(0.999*v) = v for 100% of all v in bf16"),
        ("bf16_stochastic,second_moment=fp32", 0.999, None),
        ("collage_plus", 0.999, None),  # a pair of words
    ],
)
def test_the_reason_is_what_the_optimizer_does(run: Run, storage: str, beta2: float, reason: str | None) -> None:
    config = replace(run.config, storage=StorageConfig.parse(storage), beta2=beta2, optimizer="adam")
    sentence = judged(run, (0.3, 0.3), (0.1, 0.1), config=config).sentence
    assert ("of all v" in sentence) is (reason is not None)
    assert reason is None or reason in sentence
