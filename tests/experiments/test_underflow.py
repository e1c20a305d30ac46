"""The experiment at a size for tests: its histograms against the gradients themselves, its refusals, its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.experiments import underflow
from precision_lab.experiments.paired import Finding
from precision_lab.experiments.underflow import GROUPS, UnderflowConfig, UnderflowResult, run
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.result import Snapshot, TrainingResult
from precision_lab.training.storage import StorageConfig

small = partial(UnderflowConfig, transformer_steps=2, seeds=1, more_seeds=1)
SMALL = small(steps=60, batches=3, loss_scale_exponents=(0, 3, 10, 16, 24, 32))
STAGES = ("start", "middle", "end")
DIVERGING = small(optimizer="sgd", learning_rate=1e38, steps=12, batches=2)


@cache
def trained(config: TrainingConfig) -> TrainingResult:
    return train(config)


@pytest.fixture(autouse=True, scope="module")
def transformers_are_trained_once() -> Iterator[None]:
    """Nearly all runs have the same one, of two steps, and measure its losses over all the text for seconds."""

    def train_or_remember(config: TrainingConfig, *, progress: Callable[[int], None]) -> TrainingResult:
        if config.model != "transformer":
            return train(config, progress=progress)
        for step in range(1, config.steps + 1):
            progress(step)
        return trained(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(underflow, "train", train_or_remember)
        yield


@pytest.fixture
def transformer_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(underflow, "train", train)


@pytest.fixture(scope="module")
def result() -> UnderflowResult:
    return run(SMALL)


@pytest.fixture(scope="module")
def snapshots() -> dict[int, Snapshot]:
    """The gradients of the same run, of every step, from the training alone."""
    config = TrainingConfig(
        hidden=SMALL.hidden,
        optimizer=SMALL.optimizer,
        learning_rate=SMALL.learning_rate,
        steps=SMALL.steps,
        batch_size=SMALL.batch_size,
        seed=SMALL.seed,
        snapshot_steps=tuple(range(SMALL.steps)),
    )
    return {snapshot.step: snapshot for snapshot in train(config).snapshots}


def gradients(snapshot: Snapshot, group: str) -> dict[str, Any]:
    return dict(zip(GROUPS, (snapshot.weight_gradients, snapshot.activation_gradients), strict=True))[group]


# ---- when it looks ----


@pytest.mark.parametrize(
    ("steps", "batches", "expected"),
    [
        (60, 3, (range(0, 3), range(28, 31), range(57, 60))),
        (8000, 10, (range(0, 10), range(3995, 4005), range(7990, 8000))),
        (3, 1, (range(0, 1), range(1, 2), range(2, 3))),
        (13, 3, (range(0, 3), range(5, 8), range(10, 13))),
    ],
)
def test_stages_by_hand(steps: int, batches: int, expected: tuple[range, ...]) -> None:
    stages = UnderflowConfig(steps=steps, batches=batches).stages
    assert tuple(stages) == STAGES
    assert tuple(stages.values()) == expected


def test_the_result_tells_its_stages(result: UnderflowResult) -> None:
    assert result.config == SMALL
    assert {stage.name: stage.steps for stage in result.stages} == SMALL.stages
    assert tuple(stage.name for stage in result.stages) == STAGES


def test_the_smallest_run() -> None:
    config = UnderflowConfig(
        transformer_steps=2,
        seeds=1,
        more_seeds=1,
        hidden=(),
        steps=3,
        batches=1,
        batch_size=4,
        loss_scale_exponents=(0,),
        formats=("fp16",),
    )
    found = run(config)
    assert [stage.steps for stage in found.stages] == [range(0, 1), range(1, 2), range(2, 3)]
    assert found.unscaled("end", "weight gradients", "fp16").count == 65 * 10  # 64 pixels and a bias for each digit


# ---- what it sees ----


@pytest.mark.parametrize("group", GROUPS)
def test_histograms_are_those_of_the_gradients(
    result: UnderflowResult, snapshots: dict[int, Snapshot], group: str
) -> None:
    for stage in result.stages:
        seen = [gradients(snapshots[step], group) for step in stage.steps]
        assert stage.tensors[group].keys() == seen[0].keys()
        for name, histogram in stage.tensors[group].items():
            pooled = np.concatenate([tensors[name].reshape(-1) for tensors in seen])
            assert pooled.size == SMALL.batches * seen[0][name].size
            assert histogram == ExponentHistogram.of(pooled), (stage.name, name)
        whole = np.concatenate([array.reshape(-1) for tensors in seen for array in tensors.values()])
        assert stage.histogram(group) == ExponentHistogram.of(whole)
        # by brute force, in float16 itself
        with np.errstate(over="ignore", under="ignore"):
            halves = np.abs(whole.astype(np.float16))
        unscaled = result.unscaled(stage.name, group, "fp16")
        assert unscaled.flushed == ((halves == 0) & (whole != 0)).sum()
        assert unscaled.subnormal == ((halves > 0) & (halves < 2.0**-14)).sum()
        assert unscaled.zero == (whole == 0).sum()


def test_the_loss_is_the_mean_over_the_steps(result: UnderflowResult, snapshots: dict[int, Snapshot]) -> None:
    for stage in result.stages:
        losses = [snapshots[step].loss for step in stage.steps]
        assert stage.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert result.stages[0].loss > result.stages[2].loss


def test_the_training_is_that_of_the_loop(result: UnderflowResult) -> None:
    trained = train(TrainingConfig(optimizer="adam", learning_rate=1e-3, steps=60))
    assert (result.final_loss, result.test_accuracy) == (trained.final_loss, trained.test_accuracy)


def test_conversions_are_the_histograms_answers(result: UnderflowResult) -> None:
    assert tuple(result.conversions) == STAGES
    for stage in result.stages:
        assert tuple(result.conversions[stage.name]) == GROUPS
        for group in GROUPS:
            histogram = stage.histogram(group)
            found = result.conversions[stage.name][group]
            assert tuple(found) == SMALL.formats
            for name, conversions in found.items():
                scales = [2.0**k for k in SMALL.loss_scale_exponents]
                assert conversions == tuple(histogram.conversion(name, scale) for scale in scales)
                assert all(c.format.name == name for c in conversions)


@pytest.mark.parametrize("field", ["hidden", "optimizer", "learning_rate", "batch_size", "seed"])
def test_every_field_reaches_the_training(result: UnderflowResult, field: str) -> None:
    others: dict[str, Any] = {"hidden": (8,), "optimizer": "sgd", "learning_rate": 1e-2, "batch_size": 32, "seed": 1}
    changed = run(replace(SMALL, **{field: others[field]}))
    assert changed.final_loss != result.final_loss


def test_formats_and_exponents_in_the_order_asked() -> None:
    config = UnderflowConfig(
        transformer_steps=2,
        seeds=1,
        more_seeds=1,
        hidden=(4,),
        steps=6,
        batches=1,
        formats=("bf16", "e5m3", "fp16"),
        loss_scale_exponents=(3, 0, -2),
    )
    conversions = run(config).conversions["end"]["weight gradients"]
    assert tuple(conversions) == ("bf16", "e5m3", "fp16")
    assert [c.loss_scale for c in conversions["e5m3"]] == [8, 1, 0.25]


# ---- what it answers ----


def test_unscaled_is_the_scale_of_one(result: UnderflowResult) -> None:
    for stage in result.stages:
        for group in GROUPS:
            unscaled = result.unscaled(stage.name, group, "fp16")
            assert unscaled == stage.histogram(group).conversion("fp16")
            assert unscaled.loss_scale == 1


def test_the_best_loss_scale_loses_the_fewest(result: UnderflowResult) -> None:
    for stage in STAGES:
        for group in GROUPS:
            for name in SMALL.formats:
                conversions = result.conversions[stage][group][name]
                best = result.best_loss_scale(stage, group, name)
                assert best in conversions
                lost = best.flushed + best.overflowed
                assert lost == min(c.flushed + c.overflowed for c in conversions)
                # and of those that lose as few it is the smallest
                assert not [
                    c for c in conversions if c.flushed + c.overflowed == lost and c.loss_scale < best.loss_scale
                ]


def test_the_smallest_of_the_best_whatever_the_order() -> None:
    config = UnderflowConfig(
        transformer_steps=2,
        seeds=1,
        more_seeds=1,
        hidden=(4,),
        steps=6,
        batches=1,
        formats=("bf16",),
        loss_scale_exponents=(5, 0, 9, -1),
    )
    found = run(config)
    best = found.best_loss_scale("start", "weight gradients", "bf16")
    assert (best.flushed + best.overflowed, best.loss_scale) == (0, 0.5)
    assert found.unscaled("start", "weight gradients", "bf16").loss_scale == 1


def test_too_large_a_scale_is_not_the_best() -> None:
    """Both kinds of loss count: at 2^0 fp8 flushes, at 2^100 everything overflows."""
    found = run(replace(SMALL, formats=("fp8_e4m3fn",), loss_scale_exponents=(0, 10, 100)))
    least, middle, most = found.conversions["start"]["weight gradients"]["fp8_e4m3fn"]
    assert most.overflowed == most.nonzero
    assert least.flushed > middle.flushed
    assert found.best_loss_scale("start", "weight gradients", "fp8_e4m3fn") == middle


# ---- the same again, and as JSON ----


@pytest.mark.usefixtures("transformer_is_trained")
def test_the_same_seed_gives_the_same_result(result: UnderflowResult) -> None:
    again = run(SMALL)
    assert again.to_dict() == result.to_dict()
    assert again.conversions == result.conversions


def vars_of(conversion: Conversion) -> dict[str, object]:
    return {f.name: getattr(conversion, f.name) for f in fields(conversion)}


def test_json(result: UnderflowResult) -> None:
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["kind"] == "precision_lab experiment underflow"
    assert found["config"] == json.loads(json.dumps(vars(SMALL)))
    assert [stage["name"] for stage in found["stages"]] == [*STAGES]
    for stage, described in zip(result.stages, found["stages"], strict=True):
        assert range(*described["steps"]) == stage.steps
        assert described["loss"] == stage.loss
        assert tuple(described["tensors"]) == GROUPS
        for group, content in described["tensors"].items():
            assert {name: ExponentHistogram.from_dict(data) for name, data in content.items()} == stage.tensors[group]
            for name, rows in found["conversions"][stage.name][group].items():
                for row, c in zip(rows, result.conversions[stage.name][group][name], strict=True):
                    assert row == {**vars_of(c), "format": name}


@pytest.mark.usefixtures("transformer_is_trained")
def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    config = UnderflowConfig(
        transformer_steps=2,
        seeds=1,
        more_seeds=1,
        hidden=(4,),
        steps=9,
        batches=2,
        formats=("fp16",),
        loss_scale_exponents=(0,),
    )
    run(config, progress=lambda done, of: seen.append((done, of)))
    total = 2 + 2 * (9 + 9)  # the transformer; in float32 and in fp16, as it is and with small gradients
    assert seen == [(step, total) for step in range(1, total + 1)]


def test_progress_of_runs_that_scatter() -> None:
    """More seeds are more steps; a control that is there already is not trained again."""
    seen: list[tuple[int, int]] = []
    config = UnderflowConfig(transformer_steps=2, hidden=(4,), steps=60, batches=2, seeds=2, more_seeds=3)
    found = run(config, progress=lambda done, of: seen.append((done, of)))
    extra = [ratio.n - 2 for ratio in (found.cost, found.cost_of_small)]
    assert 1 in extra
    assert seen[-1] == (2 + 4 * (60 + 60) + 2 * 60 * sum(extra),) * 2
    assert [done for done, _ in seen] == list(range(1, seen[-1][0] + 1))
    assert all(done <= of for done, of in seen)


# ---- what flushing costs ----


@pytest.fixture(scope="module")
def learned() -> UnderflowResult:
    return run(
        UnderflowConfig(
            transformer_steps=2, hidden=(16,), learning_rate=4e-3, steps=200, batches=3, seeds=3, more_seeds=3
        )
    )


def test_what_keeps_and_what_loses_is_told(learned: UnderflowResult) -> None:
    """Gradients as they are, of which next to none is flushed, and gradients that are all flushed."""
    assert learned.unscaled("end", "activation gradients", "fp16").flushed_of_nonzero < 0.01
    assert (learned.cost.finding, learned.cost_of_small.finding) == (Finding.KEEPS, Finding.LOSES)
    assert learned.cost.controls[0] == learned.final_loss
    assert learned.cost.losses != learned.cost.controls
    untrained = [train(TrainingConfig(hidden=(16,), steps=3, seed=seed)).initial_loss for seed in range(3)]
    assert learned.cost_of_small.losses == tuple(untrained)
    assert learned.cost_of_small.controls == learned.cost.controls  # as many steps: float32 does not mind the factor
    assert "flushing costs here: nothing; " in learned.answer
    assert learned.cost.text in learned.answer


def test_what_breaks_is_told() -> None:
    broken = run(DIVERGING)
    assert broken.cost.finding is Finding.BREAKS
    assert "flushing costs here: the run; " in broken.answer


def test_runs_that_learn_nothing_tell_nothing(result: UnderflowResult) -> None:
    assert result.cost.finding is Finding.NOT_DECIDED
    assert "flushing costs here: not decided; " in result.answer


def test_the_costly_runs_are_in_the_first_format() -> None:
    config = UnderflowConfig(steps=600, formats=("fp8_e5m2", "fp16"), batches=3, small_steps=50)
    assert config.narrow("none", 600).storage == StorageConfig.parse(
        "weights=fp8_e5m2,gradients=fp32,master=fp32,transient_weights=yes,loss_scale=none"
    )
    assert UnderflowConfig().narrow("none", 9).storage == StorageConfig.parse("autocast_fp16,loss_scale=none")
    assert run(replace(config, transformer_steps=2, seeds=1, more_seeds=1, steps=60)).cost_of_small.n == 1


def test_no_configuration_is_the_documented_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainingConfig] = []

    def stop(config: TrainingConfig, **_: Any) -> Any:
        asked.append(config)
        raise InterruptedError

    monkeypatch.setattr(underflow, "train", stop)
    with pytest.raises(InterruptedError):
        run()
    assert (asked[0].steps, asked[0].optimizer, asked[0].learning_rate) == (8000, "adam", 1e-3)
    assert len(asked[0].snapshot_steps) == 30


def test_a_run_that_diverges_is_a_result() -> None:
    found = run(DIVERGING)
    end = found.unscaled("end", "weight gradients", "fp16")
    assert end.nonfinite > 0
    assert end.flushed + end.subnormal + end.overflowed + end.kept == end.nonzero


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"seeds": 0}, "seeds must be an integer of at least 1"),
        ({"seeds": 3, "more_seeds": 2}, "more_seeds must be an integer of at least 3"),
        ({"small_exponent": 61}, r"small_exponent must be an integer in -60\.\.60"),
        ({"small_steps": 0}, "small_steps must be an integer of at least 1"),
        ({"batches": 0}, r"batches must be an integer in 1\.\.\d+"),
        ({"batches": -1}, "batches must be an integer"),
        ({"batches": 21}, "batches must be an integer"),
        ({"batches": 2.0}, "batches must be an integer"),
        ({"batches": "3"}, "batches must be an integer"),
        ({"steps": 2, "batches": 1}, "steps must be an integer of at least 3"),
        ({"formats": ()}, "formats must be a tuple of names, at least one"),
        ({"loss_scale_exponents": ()}, "loss_scale_exponents must be a tuple of integers"),
        ({"loss_scale_exponents": (1, 2)}, "with 0 among them"),
        ({"loss_scale_exponents": (0, 128)}, r"integers in -126\.\.127"),
        ({"loss_scale_exponents": (-127, 0)}, r"integers in -126\.\.127"),
        ({"formats": ("fp16", "fp17")}, "unknown format 'fp17'"),
        ({"formats": "fp16"}, "formats must be a tuple"),
        ({"optimizer": "sdg"}, "optimizer must be one of sgd, adam"),
        ({"hidden": [64]}, "hidden must be a tuple"),
        ({"hidden": (0,)}, "hidden must be a tuple"),
        ({"learning_rate": 0.0}, "learning_rate of .* must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate of .* must be positive"),
        ({"seed": -1}, "seed must be an integer"),
        ({"batch_size": 0}, "batch_size must be an integer"),
        ({"formats": (None,)}, "unknown format None"),
    ],
    ids=repr,
)
def test_bad_configurations_are_refused_at_once(options: dict[str, Any], needle: str) -> None:
    with pytest.raises(ValueError, match=needle) as caught:
        UnderflowConfig(**({"steps": 60, "batches": 3} | options))
    assert str(caught.value).isprintable()


def test_what_only_the_data_can_tell_is_refused_before_the_first_step() -> None:
    seen: list[int] = []
    config = small(steps=60, batches=3, batch_size=10**6)
    with pytest.raises(ValueError, match="batch_size must lie in") as caught:
        run(config, progress=lambda *_: seen.append(1))
    assert str(caught.value).isprintable()
    assert not seen


# ---- what went wrong once ----


@pytest.mark.parametrize(("steps", "batches"), [(60, 16), (60, 20), (6, 2), (9, 3)])
def test_the_stages_do_not_overlap(steps: int, batches: int) -> None:
    """Either the configuration is refused, in its own words, or it can be run."""
    try:
        config = small(hidden=(4,), steps=steps, batches=batches)
    except ValueError as error:
        assert "batches" in str(error)  # noqa: PT017
        return
    start, middle, end = config.stages.values()
    assert start.stop <= middle.start
    assert middle.stop <= end.start
    run(config)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_scale_exponents": (0.5,)},
        {"loss_scale_exponents": (2000,)},
        {"loss_scale_exponents": (-2000,)},
        {"loss_scale_exponents": ("a",)},
        {"loss_scale_exponents": 5},
        {"steps": 60.0},
        {"steps": None},
        {"batches": True},
    ],
    ids=repr,
)
def test_other_bad_configurations_are_refused_before_the_first_step(options: dict[str, Any]) -> None:
    seen: list[int] = []
    small: dict[str, Any] = {"steps": 6, "batches": 1, "hidden": (4,)}
    with pytest.raises(ValueError, match="must be"):
        run(UnderflowConfig(**(small | options)), progress=lambda *_: seen.append(1))
    assert not seen


def test_a_run_that_diverges_is_json() -> None:
    found = run(DIVERGING)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["final_loss"] == "nan"
    assert plain["stages"][-1]["loss"] == "nan"


def test_the_transformer_is_looked_at_over_its_whole_training() -> None:
    config = UnderflowConfig(transformer_steps=40, hidden=(4,), steps=3, batches=1)
    assert config.transformer().histogram_steps == (2, 6, 10, 14, 18, 22, 26, 30, 34, 38)
    few = run(replace(config, transformer_steps=2, seeds=1, more_seeds=1))
    training = train(replace(config, transformer_steps=2, seeds=1, more_seeds=1).transformer())
    assert len(training.histograms) == 2
    # every tensor that is no parameter: the embedding is one of them, a weight is not
    names = [name for name in training.histograms[0] if name not in training.parameters]
    assert "layer1.qkv" in names
    assert "layer1.qkv.weight" not in names
    counts = [of_step[name].count for of_step in training.histograms.values() for name in names]
    assert few.transformer.count == sum(counts)
    assert few.transformer.zero > 0.05 * few.transformer.count  # ReLU and the causal mask
    with pytest.raises(ValueError, match="transformer_steps must be an integer of at least 1"):
        replace(config, transformer_steps=0)
