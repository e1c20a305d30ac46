"""The storage experiment at a size for tests: its groups, its numbers against the runs, its answer."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precision_lab.experiments.outcomes import ConfigurationSummary, Run
from precision_lab.experiments.paired import Finding
from precision_lab.experiments.questions import AXES, MINIATURES, SECTIONS, Group
from precision_lab.experiments.storage import DISTINCT, Setting, StorageExperimentConfig, StorageResult, run
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.storage import CONFIGURATIONS

SMALL = StorageExperimentConfig(
    configurations=("pure_bf16", "master_bf16", "pure_fp16"),
    settings=(Setting("sgd", 0.01), Setting("adam", 1e-3)),
    base=TrainingConfig(steps=800, hidden=(24,), against_fp32=True),
    seeds=2,
    more_seeds=2,
    miniatures=(),
    sections=("ablation", "accumulation", "noise"),
    axes=(),
    section_steps=40,
)


@pytest.fixture(scope="module")
def result() -> StorageResult:
    return run(SMALL)


def outcome(result: StorageResult, setting: str, label: str) -> ConfigurationSummary:
    return next(o for o in result.outcomes[setting] if o.label == label)


def test_the_control_comes_first_and_all_means_all() -> None:
    assert SMALL.configurations == ("fp32", "pure_bf16", "master_bf16", "pure_fp16")
    assert StorageExperimentConfig(configurations=("all",)).configurations == tuple(CONFIGURATIONS)
    assert StorageExperimentConfig(configurations=("all", "weights=e6m9")).configurations[-1] == "weights=e6m9"


def test_what_is_left_out_is_the_same_in_every_digit() -> None:
    assert StorageExperimentConfig().configurations == DISTINCT
    base = TrainingConfig(hidden=(8,), steps=30, optimizer="adam", learning_rate=3e-3)
    losses = {name: train(replace(base, storage=s)).losses.tobytes() for name, s in CONFIGURATIONS.items()}
    assert {*losses.values()} == {losses[name] for name in DISTINCT}
    assert len({*losses.values()}) == len(DISTINCT)  # and nothing more could be


def test_every_setting_has_every_configuration_and_every_seed(result: StorageResult) -> None:
    assert list(result.outcomes) == ["SGD, lr 0.01", "Adam, lr 0.001"]
    for outcomes in result.outcomes.values():
        assert [o.label for o in outcomes] == list(SMALL.configurations)
        for o in outcomes:
            assert [r.config.seed for r in o.runs] == [0, 1]
            assert o.controls == outcomes[0].runs


def test_a_run_is_the_one_that_train_makes(result: StorageResult) -> None:
    config = replace(SMALL.base, storage=CONFIGURATIONS["pure_bf16"], optimizer="sgd", learning_rate=0.01, seed=1)
    found = outcome(result, "SGD, lr 0.01", "pure_bf16").runs[1]
    expected = Run.of(train(config))
    assert found.config == config
    assert (found.losses, found.edq_ratios, found.final_loss) == (
        expected.losses,
        expected.edq_ratios,
        expected.final_loss,
    )


@pytest.mark.parametrize(
    ("setting", "label", "finding", "words"),
    [
        ("SGD, lr 0.01", "master_bf16", Finding.KEEPS, "keeps fp32's result: "),
        ("Adam, lr 0.001", "master_bf16", Finding.KEEPS, "n = 2"),
        ("SGD, lr 0.01", "pure_bf16", Finding.LOSES, "% of the updates are lost"),
        ("Adam, lr 0.001", "pure_bf16", Finding.LOSES, "R(0.999*v) = v for 100% of all v in bf16"),
        ("Adam, lr 0.001", "pure_fp16", Finding.BREAKS, "epsilon = 1e-08 is 0 in fp16"),
    ],
)
def test_what_is_known_to_keep_to_lose_and_to_break_does(
    result: StorageResult, setting: str, label: str, finding: Finding, words: str
) -> None:
    found = outcome(result, setting, label)
    assert found.finding is finding
    assert words in found.sentence


def test_the_second_descent_quality_sees_the_moments(result: StorageResult) -> None:
    assert outcome(result, "Adam, lr 0.001", "fp32").edq_ratio_fp32 == pytest.approx(1, abs=1e-6)
    pure = outcome(result, "Adam, lr 0.001", "pure_bf16")
    assert pure.edq_ratio_fp32 < pure.edq_ratio < 1


def test_more_seeds_where_they_deviate(result: StorageResult) -> None:
    config = replace(SMALL, sections=(), settings=SMALL.settings[1:], more_seeds=4)
    found = {o.label: o for o in run(config).outcomes["Adam, lr 0.001"]}
    few = {o.label: o for o in result.outcomes["Adam, lr 0.001"]}
    for label, o in found.items():
        assert len(o.runs) == (4 if few[label].paired.needs_more or label == "fp32" else 2)
        assert [repr(r.losses) for r in o.runs[:2]] == [repr(r.losses) for r in few[label].runs]
    assert len(found["master_bf16"].runs) == 2
    assert len(found["pure_bf16"].runs) == 4


def test_the_answer_is_no_firmer_than_the_runs(result: StorageResult) -> None:
    few = replace(
        SMALL,
        settings=SMALL.settings[1:],
        base=replace(SMALL.base, steps=20),
        configurations=("pure_bf16",),
        sections=(),
    )
    assert run(few).answer.startswith("Adam, lr 0.001: too short to tell: fp32 came from")
    assert "of those tried that keeps it is" in result.answer
    assert "n = 2" in result.answer


def test_sections_answer_their_question(result: StorageResult) -> None:
    assert list(result.sections) == ["ablation", "accumulation", "noise"]
    micro = {o.label: {r.config.micro_batches for r in o.runs} for o in result.sections["accumulation"]}
    assert micro["64 in bf16"] == {64}
    noise = {o.label: o for o in result.sections["noise"]}
    assert [r.config.seed for r in noise["another seed"].runs] == [1000, 1001]
    order, luck = (math.fsum(map(abs, noise[k].paired.logs)) for k in ("rows in another order", "another seed"))
    assert 0 < order < luck / 1000  # the order of the sums is nothing beside the luck of a seed


def groups() -> dict[str, Group]:
    made = {name: make() for name, (make, _) in MINIATURES.items()}
    made |= {name: make(2000) for name, (make, _) in SECTIONS.items()}
    return made | {f"{axis} {v}": make(1000) for axis, values in AXES.items() for v, make in values.items()}


@pytest.mark.parametrize("name", groups())
def test_a_group_differs_from_its_control_in_one_thing(name: str) -> None:
    control, *others = groups()[name].values()
    assert control.storage == CONFIGURATIONS["fp32"]
    for training in others:
        changed = {k for k, v in vars(training).items() if v != getattr(control, k)}
        assert changed in ({"storage"}, {"storage", "micro_batches"}, {"permuted"}, {"seed"})


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
    assert (data["kind"], data["version"]) == ("precision_lab experiment storage", 2)
    control = data["outcomes"]["SGD, lr 0.01"][0]
    assert (control["finding"], control["paired"]["n"]) == ("keeps", 2)
    assert len(data["sections"]["ablation"]) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds must be an integer of at least 1"),
        ({"more_seeds": 1}, "more_seeds must be an integer of at least 2"),
        ({"configurations": ("pure_bf17",)}, "pure_bf17"),
        ({"configurations": ()}, "at least one"),
        ({"settings": ()}, "at least one"),
        ({"settings": (Setting("rmsprop", 0.1),)}, "optimizer must be one of"),
        ({"sections": ("weather",)}, "sections must be among ablation"),
        ({"miniatures": ("castles",)}, "miniatures must be among fine-tuning"),
        ({"axes": ("z",)}, "axes must be among beta2"),
        ({"section_steps": 3}, "section_steps"),
        ({"axis_steps": 3}, "axis_steps"),
    ],
)
def test_bad_configurations(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)
