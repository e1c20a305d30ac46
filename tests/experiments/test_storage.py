"""The storage experiment at a size for tests: its groups, its numbers against the runs, its sentences."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab.experiments.storage import (
    SECTIONS,
    ConfigurationSummary,
    Setting,
    StorageExperimentConfig,
    StorageResult,
    run,
)
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig

SMALL = StorageExperimentConfig(
    configurations=("pure_bf16", "master_bf16", "pure_fp16"),
    settings=(Setting("sgd", 0.01), Setting("adam", 1e-3)),
    seeds=2,
    steps=800,
    hidden=(24,),
    section_steps=40,
    sections=("ablation", "range", "accumulation"),
)


@pytest.fixture(scope="module")
def result() -> StorageResult:
    return run(SMALL)


def outcome(result: StorageResult, setting: str, label: str) -> ConfigurationSummary:
    return next(o for o in result.outcomes[setting] if o.label == label)


def test_the_control_comes_first_and_all_means_all() -> None:
    assert SMALL.configurations == ("fp32", "pure_bf16", "master_bf16", "pure_fp16")
    assert StorageExperimentConfig().configurations == tuple(CONFIGURATIONS)
    assert StorageExperimentConfig(configurations=("all", "weights=e6m9")).configurations[-1] == "weights=e6m9"


def test_every_setting_has_every_configuration_and_every_seed(result: StorageResult) -> None:
    assert list(result.outcomes) == ["SGD, lr 0.01", "Adam, lr 0.001"]
    for outcomes in result.outcomes.values():
        assert [o.label for o in outcomes] == list(SMALL.configurations)
        for o in outcomes:
            assert [r.config.seed for r in o.runs] == [0, 1]
            assert {str(r.config.storage) for r in o.controls} == {"weights=fp32"}
            assert [r.losses for r in o.controls] == [r.losses for r in outcomes[0].runs]


def test_a_run_is_the_one_that_train_makes(result: StorageResult) -> None:
    config = TrainingConfig(
        hidden=(24,), storage=CONFIGURATIONS["pure_bf16"], optimizer="sgd", learning_rate=0.01, steps=800, seed=1
    )
    expected = train(config)
    found = outcome(result, "SGD, lr 0.01", "pure_bf16").runs[1]
    assert found.config == config
    assert found.block == 20
    assert found.losses == tuple(expected.losses[i : i + 20].mean() for i in range(0, 800, 20))
    assert found.middles == [i + 10 for i in range(0, 800, 20)]
    assert [s.step for s in expected.by_step] == list(range(0, 800, 20))
    assert found.edq_ratios == tuple(s.product / s.intended for s in expected.by_step)
    assert found.final_loss == expected.final_loss
    assert found.updates.lost == expected.updates.lost


def test_an_outcome_averages_its_runs(result: StorageResult) -> None:
    o = outcome(result, "SGD, lr 0.01", "pure_bf16")
    losses = [r.final_loss for r in o.runs]
    assert o.final_loss == np.mean(losses)
    assert o.spread == max(losses) - min(losses)
    assert o.lost == np.mean([r.updates.lost_of_nonzero for r in o.runs])
    assert o.ratio == o.final_loss / np.mean([r.final_loss for r in o.controls])
    assert o.bytes_per_parameter == 4
    assert outcome(result, "Adam, lr 0.001", "master_bf16").bytes_per_parameter == 16


def test_lost_updates_are_named(result: StorageResult) -> None:
    o = outcome(result, "SGD, lr 0.01", "pure_bf16")
    assert o.lost > 0.5
    assert o.ratio > 1.03
    assert o.sentence.startswith(f"ends at {o.ratio:.2g} times fp32's loss; why: {o.lost:.0%} of the updates are lost")
    assert outcome(result, "SGD, lr 0.01", "master_bf16").sentence == "keeps fp32's result"
    assert outcome(result, "SGD, lr 0.01", "fp32").keeps


def test_epsilon_that_becomes_zero_breaks_fp16_and_is_named(result: StorageResult) -> None:
    o = outcome(result, "Adam, lr 0.001", "pure_fp16")
    assert not math.isfinite(o.final_loss)
    assert "epsilon = 1e-08 is 0 in fp16" in o.sentence


def test_the_second_moment_that_never_decays_is_named(result: StorageResult) -> None:
    assert "R(0.999*v) = v for 100% of all v in bf16" in outcome(result, "Adam, lr 0.001", "pure_bf16").sentence


def with_storage(result: StorageResult, text: str, **changes: Any) -> ConfigurationSummary:
    """Runs of Adam that are said to have been made otherwise."""
    o = outcome(result, "Adam, lr 0.001", "pure_bf16")
    storage = StorageConfig.parse(text)
    return replace(o, runs=tuple(replace(r, config=replace(r.config, storage=storage, **changes)) for r in o.runs))


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
def test_the_reason_is_what_the_optimizer_does(
    result: StorageResult, storage: str, beta2: float, reason: str | None
) -> None:
    sentence = with_storage(result, storage, beta2=beta2).sentence
    assert ("of all v" in sentence) is (reason is not None)
    assert reason is None or reason in sentence


def with_runs(result: StorageResult, **changes: object) -> ConfigurationSummary:
    o = outcome(result, "SGD, lr 0.01", "master_bf16")
    return replace(o, runs=tuple(replace(r, **changes) for r in o.runs))  # type: ignore[arg-type]


def test_sentences_of_runs_that_go_wrong(result: StorageResult) -> None:
    assert with_runs(result, final_loss=math.nan).sentence.startswith("breaks: the parameters become infinite or NaN")
    assert with_runs(result, final_loss=1e6, diverged=True).sentence.startswith("diverges")
    assert with_runs(result, stopped="it raised").sentence.startswith("stops: it raised")
    skipped = with_runs(result, final_loss=2.4, skipped=800).sentence
    assert "800 of 800 steps are skipped" in skipped


def judged(result: StorageResult, *, of_first: float, seeds: int = 2, final: float = 1.0) -> ConfigurationSummary:
    """Runs whose control ends at a share of a first loss of 2, and which end at a multiple of that themselves."""
    o = outcome(result, "SGD, lr 0.01", "master_bf16")
    control = tuple(replace(r, initial_loss=2.0, final_loss=2.0 * of_first) for r in o.controls[:seeds])
    runs = tuple(replace(r, initial_loss=2.0, final_loss=2.0 * of_first * final) for r in o.runs[:seeds])
    return replace(o, runs=runs, controls=control)


def test_a_verdict_takes_a_control_that_has_learned(result: StorageResult) -> None:
    assert judged(result, of_first=0.49).keeps is True
    assert judged(result, of_first=0.49, final=2).keeps is False
    for of_first, words in ((0.5, "too short to tell: fp32 came from 2 to 1 only"), (1.0, "fp32 does not learn, 2 be")):
        found = judged(result, of_first=of_first)
        assert found.keeps is None
        assert words in found.sentence
    one = judged(result, of_first=0.1, seeds=1)
    assert (one.keeps, one.sentence) == (None, "not decided with 1 seed, 1 times fp32's loss (give --seeds 3)")


def test_every_seed_has_to_learn(result: StorageResult) -> None:
    o = judged(result, of_first=0.1)
    lazy = replace(o, controls=(o.controls[0], replace(o.controls[1], final_loss=1.9)))
    assert lazy.sentence == "too short to tell: fp32 came from 2 to 1.9 only (give more --steps)"
    lost = replace(o, controls=(o.controls[0], replace(o.controls[1], final_loss=math.nan)))
    assert lost.sentence == "not decided: fp32 does not learn, 2 becomes nan (try another --lr)"


def test_what_breaks_is_broken_whoever_learns(result: StorageResult) -> None:
    o = judged(result, of_first=1.0, seeds=1)
    broken = replace(o, runs=tuple(replace(r, final_loss=math.nan) for r in o.runs))
    assert broken.keeps is False
    assert broken.sentence.startswith("breaks")


def test_the_answer_is_no_firmer_than_the_runs(result: StorageResult) -> None:
    few = replace(SMALL, settings=SMALL.settings[1:], steps=20, configurations=("pure_bf16",), sections=())
    assert run(few).answer.startswith("Adam, lr 0.001: too short to tell: fp32 came from")
    assert "the cheapest that keeps it is" in result.answer


def test_sections_answer_their_question(result: StorageResult) -> None:
    assert list(result.sections) == ["ablation", "range", "accumulation"]
    assert [o.label for o in result.sections["range"]][:5] == ["fp32", "e5m10", "e6m9", "e7m8", "e8m7"]
    loss = {o.label: o.final_loss for o in result.sections["ablation"]}
    assert loss["nothing rounded"] < loss["forward and backward"]
    micro = {o.label: {r.config.micro_batches for r in o.runs} for o in result.sections["accumulation"]}
    assert micro["64 in bf16"] == {64}
    assert set(SECTIONS) == {"ablation", "range", "sensitive", "accumulation"}


def test_executor_and_checkpoint_change_nothing(result: StorageResult, tmp_path: Path) -> None:
    config = replace(SMALL, sections=(), settings=SMALL.settings[:1])
    file = tmp_path / "runs.jsonl"
    with ThreadPoolExecutor(2) as executor:
        first = run(config, executor=executor, checkpoint=file)
    assert len(file.read_text().splitlines()) == 8
    again = run(config, checkpoint=file)
    for found in (first, again):
        for a, b in zip(found.outcomes["SGD, lr 0.01"], result.outcomes["SGD, lr 0.01"], strict=True):
            assert [r.losses for r in a.runs] == [r.losses for r in b.runs]


def test_json(result: StorageResult) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["kind"] == "precision_lab experiment storage"
    assert data["outcomes"]["SGD, lr 0.01"][0]["sentence"] == "keeps fp32's result"
    assert len(data["sections"]["ablation"]) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds must be an integer of at least 1"),
        ({"configurations": ("pure_bf17",)}, "pure_bf17"),
        ({"configurations": ()}, "at least one"),
        ({"settings": ()}, "at least one"),
        ({"settings": (Setting("rmsprop", 0.1),)}, "optimizer must be one of"),
        ({"sections": ("weather",)}, "sections must be among ablation"),
        ({"section_steps": 3}, "section_steps"),
        ({"steps": 0}, "steps"),
        ({"model": "cnn"}, "model must be one of"),
    ],
)
def test_bad_configurations(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)  # type: ignore[arg-type]
