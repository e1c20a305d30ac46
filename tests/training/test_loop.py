"""Training runs: the same bits again, what a result says against a count, every configuration, JSON and back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.numerics.rounding import is_representable
from precision_lab.training import config as configuration
from precision_lab.training.config import MODELS, TOPICS_WINDOWS, TrainingConfig, load_data
from precision_lab.training.datasets import digits, query_matrix, split, text_dataset
from precision_lab.training.loop import batches, loss_in_float64, train
from precision_lab.training.memory import bytes_of, memory_ledger
from precision_lab.training.models import MLP, Array, Transformer
from precision_lab.training.result import DIVERGENCE_FACTOR, TrainingResult, UpdateStatistics
from precision_lab.training.schedule import Schedule
from precision_lab.training.step import Recipe, begin, training_step
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig

SHORT = TrainingConfig(hidden=(16,), steps=12, batch_size=32, seed=3, snapshot_steps=(0, 5, 11))


def bits(result: TrainingResult) -> list[bytes]:
    """Every number of a result."""
    arrays = [result.losses, *result.parameters.values()]
    for snapshot in result.snapshots:
        arrays += [*snapshot.weight_gradients.values(), *snapshot.activation_gradients.values()]
    scalars = np.array([result.initial_loss, result.final_loss, result.test_accuracy], np.float64)
    return [array.tobytes() for array in (*arrays, scalars)]


@pytest.mark.parametrize(
    "change", [{}, {"momentum": 0.9}, {"optimizer": "adam", "learning_rate": 1e-3}, {"hidden": ()}]
)
def test_the_same_config_gives_the_same_bits(change: dict[str, Any]) -> None:
    config = dataclasses.replace(SHORT, **change)
    assert bits(train(config)) == bits(train(config))


@pytest.mark.parametrize("change", [{"seed": 4}, {"learning_rate": 0.2}, {"momentum": 0.9}, {"optimizer": "adam"}])
def test_another_config_gives_other_bits(change: dict[str, Any]) -> None:
    assert bits(train(SHORT)) != bits(train(dataclasses.replace(SHORT, **change)))


@given(count=st.integers(1, 60), data=st.data(), steps=st.integers(0, 30), seed=st.integers(0, 2**32))
def test_every_epoch_visits_an_example_at_most_once(count: int, data: st.DataObject, steps: int, seed: int) -> None:
    batch_size = data.draw(st.integers(1, count))
    rows = list(batches(count, batch_size, steps, seed))
    assert [batch.shape for batch in rows] == [(batch_size,)] * steps
    per_epoch = count // batch_size
    for start in range(0, steps, per_epoch):
        seen = np.concatenate(rows[start : start + per_epoch]).tolist()
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(count))


def test_batches_are_shuffled_anew_in_every_epoch_and_by_the_seed() -> None:
    first, second = batches(40, 40, 2, 0)
    (other,) = batches(40, 40, 1, 1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


@given(count=st.integers(1, 40), data=st.data(), steps=st.integers(0, 12), seed=st.integers(0, 2**64 - 1))
def test_permuted_batches_have_the_same_examples(count: int, data: st.DataObject, steps: int, seed: int) -> None:
    batch_size = data.draw(st.integers(1, count))
    plain = list(batches(count, batch_size, steps, seed))
    permuted = list(batches(count, batch_size, steps, seed, permuted=True))
    assert [sorted(rows.tolist()) for rows in permuted] == [sorted(rows.tolist()) for rows in plain]


def test_permuted_batches_have_another_order_each() -> None:
    plain, permuted = list(batches(40, 20, 4, 0)), list(batches(40, 20, 4, 0, permuted=True))
    places = [np.argsort(rows)[np.argsort(np.argsort(other))] for rows, other in zip(plain, permuted, strict=True)]
    assert len({tuple(order.tolist()) for order in (np.arange(20), *places)}) == 5
    assert not np.array_equal(permuted[0], next(batches(40, 20, 1, 1, permuted=True)))


@pytest.mark.parametrize("batch_size", [0, 41])
def test_batches_refuses_a_bad_size_before_the_first_batch(batch_size: int) -> None:
    with pytest.raises(ValueError, match=r"batch_size must lie in 1\.\.40"):
        batches(40, batch_size, 1, 0)


@pytest.mark.parametrize(
    "config",
    [
        TrainingConfig(learning_rate=0.5),
        TrainingConfig(momentum=0.9),
        TrainingConfig(optimizer="adam", learning_rate=3e-3),
        TrainingConfig(hidden=(64, 64, 64)),
    ],
    ids=["sgd", "momentum", "adam", "deep"],
)
def test_training_learns_the_digits(config: TrainingConfig) -> None:
    result = train(config)
    assert not result.diverged
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.95
    assert result.final_loss < 0.02
    assert result.initial_loss > 2
    assert result.losses.shape == (config.steps,)
    assert result.losses[-100:].mean() < 0.02


def test_the_arithmetic_of_a_run_is_float32() -> None:
    result = train(SHORT)
    assert {array.dtype for array in result.parameters.values()} == {np.dtype(np.float32)}
    for snapshot in result.snapshots:
        gradients = (*snapshot.weight_gradients.values(), *snapshot.activation_gradients.values())
        assert {array.dtype for array in gradients} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(result.losses, result.losses.astype(np.float32))


def test_the_losses_before_and_after_are_float64_means_over_the_training_part() -> None:
    result = train(SHORT)
    part, _ = split(digits())
    for parameters, ours in ((MLP((64, 16, 10)).init(3), result.initial_loss), (result.parameters, result.final_loss)):
        w1, b1, w2, b2 = (array.astype(np.float64) for array in parameters.values())
        logits = np.maximum(part.inputs @ w1 + b1, 0) @ w2 + b2
        each = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), part.labels]
        assert ours == pytest.approx(each.mean(), rel=1e-13)


@pytest.mark.parametrize("storage", ["fp32", "master_bf16"])
def test_losses_on_the_way_are_those_of_shorter_runs(storage: str) -> None:
    config = stored(SHORT, storage, loss_steps=(1, 7, 12))
    result = train(config)
    assert list(result.losses_after) == [1, 7, 12]
    assert result.losses_after[12] == result.final_loss
    for steps in (1, 7):
        shorter = train(stored(SHORT, storage, steps=steps, snapshot_steps=()))
        assert result.losses_after[steps] == shorter.final_loss
        assert shorter.losses_after == {}
    np.testing.assert_array_equal(result.losses, train(stored(SHORT, storage)).losses)


def test_permuted_rows_change_the_order_of_sums_and_nothing_else() -> None:
    """The floor of the noise: in the third digit nothing, in the last bits nearly everything; another seed is no floor.

    With a batch of one there is no order, and nothing changes.
    """
    plain, permuted, other = (train(dataclasses.replace(SHORT, **c)) for c in ({}, {"permuted": True}, {"seed": 4}))
    assert bits(plain) != bits(permuted)
    np.testing.assert_allclose(permuted.losses, plain.losses, rtol=1e-5)
    assert permuted.final_loss == pytest.approx(plain.final_loss, rel=1e-6)
    assert permuted.initial_loss == plain.initial_loss
    assert abs(other.final_loss / plain.final_loss - 1) > 1e-3
    alone = dataclasses.replace(SHORT, batch_size=1)
    assert bits(train(alone)) == bits(train(dataclasses.replace(alone, permuted=True)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_snapshots_hold_the_gradients_of_their_batch_before_the_update(optimizer: str) -> None:
    config = dataclasses.replace(SHORT, optimizer=optimizer)
    result = train(config)
    part, _ = split(digits())
    rows = list(batches(len(part.labels), config.batch_size, config.steps, config.seed))
    assert [snapshot.step for snapshot in result.snapshots] == [0, 5, 11]
    for snapshot in result.snapshots:
        step = snapshot.step
        # The parameters before step k are those that a run of k steps ends with.
        parameters = MLP((64, 16, 10)).init(config.seed)
        if step > 0:
            parameters = train(dataclasses.replace(config, steps=step, snapshot_steps=())).parameters
        expected = MLP((64, 16, 10)).loss_and_gradients(parameters, part.inputs[rows[step]], part.labels[rows[step]])
        assert snapshot.loss == expected.loss == result.losses[step]
        assert list(snapshot.weight_gradients) == list(expected.weights)
        assert list(snapshot.activation_gradients) == ["layer1.preactivation", "layer1.output", "logits"]
        for name, gradient in expected.weights.items():
            np.testing.assert_array_equal(snapshot.weight_gradients[name], gradient)
        for name, gradient in expected.activations.items():
            np.testing.assert_array_equal(snapshot.activation_gradients[name], gradient)


def test_snapshots_do_not_change_the_run() -> None:
    plain = train(dataclasses.replace(SHORT, snapshot_steps=()))
    assert plain.snapshots == ()
    np.testing.assert_array_equal(plain.losses, train(SHORT).losses)


def test_progress_is_called_once_per_step() -> None:
    done: list[int] = []
    train(SHORT, progress=done.append)
    assert done == list(range(1, 13))


@pytest.mark.parametrize(
    ("learning_rate", "hidden", "optimizer", "finite"),
    [
        (1e6, (64,), "sgd", True),
        (1e6, (64, 64, 64), "sgd", False),
        (1e6, (64,), "adam", True),
        (1e20, (64,), "sgd", False),
        (1e300, (64,), "sgd", False),
        (1e300, (64,), "adam", False),
    ],
)
def test_divergence_is_recorded_and_not_raised(
    learning_rate: float, hidden: tuple[int, ...], optimizer: str, finite: bool
) -> None:
    config = TrainingConfig(
        hidden=hidden, optimizer=optimizer, learning_rate=learning_rate, steps=100, snapshot_steps=(99,)
    )
    result = train(config)
    assert result.diverged
    assert result.losses.shape == (100,)
    assert len(result.snapshots) == 1
    assert math.isfinite(result.final_loss) == finite
    if finite:
        assert result.final_loss > DIVERGENCE_FACTOR * result.initial_loss
    else:
        assert math.isnan(result.final_loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (64, 0)}, "hidden must be a tuple of positive integers"),
        ({"hidden": [64]}, "hidden must be a tuple of positive integers"),
        ({"hidden": (6.5,)}, "hidden must be a tuple of positive integers"),
        ({"tied": True}, "tied must be True or False, and False unless model is 'transformer'; got True"),
        ({"model": "transformer", "tied": 1}, "tied must be True or False, and False unless .*; got 1"),
        ({"model": "rnn"}, "model must be one of mlp, least_squares, transformer, fine_tuning; got 'rnn'"),
        ({"model": "transformer", "hidden": ()}, "hidden of a transformer must have an entry for each layer"),
        ({"activation": "gelu"}, "activation of mlp must be one of relu, sigmoid; got 'gelu'"),
        (
            {"model": "transformer", "activation": "sigmoid"},
            "activation of transformer must be one of relu, gelu; got 'sigmoid'",
        ),
        ({"storage": "pure_bf17"}, "'pure_bf17' is no storage configuration"),
        ({"storage": None}, "storage must be a StorageConfig or its text, got None"),
        ({"optimizer": "rmsprop"}, "optimizer must be one of sgd, adam, adamw; got 'rmsprop'"),
        ({"learning_rate": 0.0}, "learning_rate of SGD must be positive and finite"),
        ({"learning_rate": -0.1}, "learning_rate of SGD must be positive and finite"),
        ({"learning_rate": math.inf}, "learning_rate of SGD must be positive and finite"),
        ({"learning_rate": math.nan}, "learning_rate of SGD must be positive and finite"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, got '0.1'"),
        ({"learning_rate": None}, "learning_rate must be a number, got None"),
        ({"epsilon": True}, "epsilon must be a number, got True"),
        ({"momentum": 1.0}, "momentum of SGD must be at least 0 and below 1"),
        ({"momentum": -0.1}, "momentum of SGD must be at least 0 and below 1"),
        ({"optimizer": "adam", "beta2": 1.0}, "beta2 of Adam must be at least 0 and below 1"),
        ({"optimizer": "adamw", "weight_decay": -1.0}, "weight_decay of AdamW must be at least 0 and finite"),
        ({"momentum": 0.9, "optimizer": "adam"}, "momentum must be 0 unless optimizer is 'sgd'"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"steps": 10.0}, "steps must be an integer of at least 1"),
        ({"steps": True}, "steps must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"seed": 2**64}, r"seed must be below 2\^64, got 18446744073709551616"),
        ({"measure_every": 0}, "measure_every must be an integer of at least 1"),
        ({"micro_batches": 0}, "micro_batches must be an integer of at least 1"),
        ({"micro_batches": 5}, "micro_batches must divide batch_size, 32, got 5"),
        ({"histogram_steps": (12,)}, r"histogram_steps must be an ascending tuple of different integers in 0\.\.11"),
        ({"snapshot_steps": (12,)}, r"snapshot_steps must be an ascending tuple of different integers in 0\.\.11"),
        ({"snapshot_steps": (-1,)}, "snapshot_steps must be an ascending tuple"),
        ({"snapshot_steps": (5, 0)}, "snapshot_steps must be an ascending tuple"),
        ({"snapshot_steps": (5, 5)}, "snapshot_steps must be an ascending tuple"),
        ({"snapshot_steps": [0, 5]}, "snapshot_steps must be an ascending tuple"),
        ({"loss_steps": (0, 12)}, r"loss_steps must be an ascending tuple of different integers in 1\.\.12"),
        ({"loss_steps": (13,)}, "loss_steps must be an ascending tuple"),
        ({"permuted": 1}, "permuted must be True or False, got 1"),
        ({"against_fp32": "yes"}, "against_fp32 must be True or False, got 'yes'"),
    ],
)
def test_a_bad_config_names_the_accepted_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHORT, **change)


def test_a_batch_larger_than_the_training_part_is_refused_before_the_first_step() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match=r"batch_size must lie in 1\.\.1438"):
        train(TrainingConfig(batch_size=1439), progress=done.append)
    assert not done


def test_a_config_can_be_compared_hashed_and_replaced() -> None:
    assert TrainingConfig() == TrainingConfig()
    assert hash(TrainingConfig()) == hash(TrainingConfig())
    assert dataclasses.replace(TrainingConfig(), seed=1) != TrainingConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().seed = 1  # type: ignore[misc]


def test_a_config_in_json_and_back() -> None:
    assert TrainingConfig.from_dict({}) == TrainingConfig()
    for name in CONFIGURATIONS:
        config = TrainingConfig(
            model="transformer",
            hidden=(8, 8),
            activation="gelu",
            storage=StorageConfig.parse(name),
            optimizer="adamw",
            weight_decay=0.1,
            micro_batches=2,
            snapshot_steps=(0, 3),
            histogram_steps=(1,),
            loss_steps=(2, 2000),
            schedule=Schedule("linear", 30),
            permuted=True,
            against_fp32=True,
        )
        data = config.to_dict()
        assert json.loads(json.dumps(data)) == data
        assert TrainingConfig.from_dict(data) == config
    with pytest.raises(ValueError, match="TrainingConfig: nothing here is called 'learning_rat'"):
        TrainingConfig.from_dict({"learning_rat": 0.1})


def test_numbers_of_numpy_become_plain_ones() -> None:
    ours: Any = TrainingConfig(
        hidden=(np.int64(4),),  # type: ignore[arg-type]
        learning_rate=1,
        epsilon=np.float32(0.5),  # type: ignore[arg-type]
        steps=np.int32(6),  # type: ignore[arg-type]
        seed=np.uint8(2),  # type: ignore[arg-type]
        snapshot_steps=(np.int64(3),),  # type: ignore[arg-type]
        loss_steps=(np.int64(6),),  # type: ignore[arg-type]
    )
    steps: dict[str, Any] = {"snapshot_steps": (3,), "loss_steps": (6,)}
    assert ours == TrainingConfig(hidden=(4,), learning_rate=1.0, epsilon=0.5, steps=6, seed=2, **steps)
    chosen = (*ours.hidden, *ours.snapshot_steps, *ours.loss_steps)
    for value in (*chosen, ours.learning_rate, ours.epsilon, ours.steps, ours.seed):
        assert type(value) in (int, float)


def test_a_storage_may_be_given_as_text() -> None:
    assert TrainingConfig(storage="pure_bf16").storage == CONFIGURATIONS["pure_bf16"]  # type: ignore[arg-type]


# ---- under a storage ----


def stored(config: TrainingConfig, text: str, **change: Any) -> TrainingConfig:
    return dataclasses.replace(config, storage=StorageConfig.parse(text), **change)


TINY = TrainingConfig(hidden=(2,), steps=3, batch_size=16, histogram_steps=(1,), measure_every=1)


@pytest.fixture
def few_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text, because the loss over all windows of the help texts takes seconds."""
    text = text_dataset("to be or not to be, that is the question. " * 9, context=8)
    monkeypatch.setattr(configuration, "python_topics", lambda: text)


@pytest.fixture
def small_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corner of the matrix: a sum of 384 terms in another accumulator takes seconds."""
    corner = query_matrix()[:12, :5]
    monkeypatch.setattr(configuration, "query_matrix", lambda: corner)


@pytest.mark.usefixtures("few_topics", "small_matrix")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("text", [*CONFIGURATIONS, "weights=fp8_e5m2,accumulator=bf16,sensitive=bf16,update=kahan"])
def test_every_model_runs_under_every_storage(model: str, optimizer: str, text: str) -> None:
    config = stored(TINY, text, model=model, hidden=(4, 4), optimizer=optimizer, learning_rate=0.01)
    result = train(config)
    assert result.losses.shape == result.loss_scales.shape == result.skipped.shape == (3,)
    assert np.isfinite(result.losses[0])  # in fp16 AdamW's epsilon is 0, and the second may be NaN
    assert (result.test_accuracy is None) == (model in ("least_squares", "fine_tuning"))
    assert result.updates.count == sum(a.size for a in result.parameters.values()) * np.count_nonzero(~result.skipped)
    updated = config.storage.updated
    for array in result.parameters.values():
        assert array.dtype == np.float32
        assert np.all(is_representable(array, updated) | np.isnan(array))
    assert bits(train(config)) == bits(result)


@pytest.mark.usefixtures("few_topics")
def test_a_transformer_is_tied_only_where_that_is_asked_for() -> None:
    config = dataclasses.replace(TINY, model="transformer", activation="gelu", hidden=(4,))
    tied = dataclasses.replace(config, tied=True)
    assert not config.tied
    assert TrainingConfig.from_dict(tied.to_dict()) == tied
    results = {chosen.tied: train(chosen) for chosen in (config, tied)}
    assert "head.weight" not in results[True].parameters
    assert results[False].parameters.keys() == {*results[True].parameters, "head.weight"}
    assert results[True].final_loss != results[False].final_loss


@pytest.mark.usefixtures("few_topics")
def test_a_transformer_has_the_activation_that_was_asked_for() -> None:
    config = dataclasses.replace(TINY, model="transformer", hidden=(4, 4))
    for activation in ("relu", "gelu"):
        chosen = dataclasses.replace(config, activation=activation)
        model = chosen.build_model(load_data(chosen)[0])
        assert isinstance(model, Transformer)
        assert (model.activation, model.width, model.layers, model.context) == (activation, 4, 2, 8)


def test_runs_of_different_storages_see_the_same() -> None:
    """Only the storage differs: with stochastic rounding to fp32, which changes nothing, every bit is the same."""
    plain, other = train(SHORT), train(stored(SHORT, "weights=fp32,update=stochastic"))
    assert bits(plain) == bits(other)


def test_the_final_loss_is_that_of_the_master_copy() -> None:
    result = train(stored(SHORT, "master_bf16"))
    values = np.concatenate([array.ravel() for array in result.parameters.values()])
    assert not np.all(is_representable(values, "bf16"))
    part, _ = split(digits())
    wide = {name: array.astype(np.float64) for name, array in result.parameters.items()}
    assert result.final_loss == MLP((64, 16, 10)).loss(wide, part.inputs, part.labels)
    started = train(stored(SHORT, "pure_bf16")).initial_loss
    assert started != result.initial_loss == train(SHORT).initial_loss  # bf16 weights start from rounded ones


def test_micro_batches_are_those_of_the_step() -> None:
    whole, parts = (train(stored(SHORT, "weights=fp32,gradients=fp8_e5m2", micro_batches=n)) for n in (1, 32))
    assert whole.losses[0] == pytest.approx(parts.losses[0], rel=1e-6)
    assert bits(whole) != bits(parts)


BYTES = {
    "fp32": 16,
    "autocast_fp16": 16,
    "autocast_bf16": 16,
    "master_fp16": 16,
    "master_bf16": 16,
    "megatron_bf16": 18,
    "bf16_fp32_grads": 14,
    "bf16_fp32_moments": 12,
    "pure_bf16": 8,
    "pure_fp16": 8,
    "bf16_stochastic": 8,
    "bf16_kahan": 10,
    "collage_light": 10,
    "collage_plus": 12,
    "fp8_hybrid": 16,
    "megatron_fp16": 20,
    "bf16_stochastic_fp32_v": 10,
    "bf16_kahan_fp32_v": 12,
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_measured_bytes_per_parameter(name: str) -> None:
    storage = CONFIGURATIONS[name]
    moments = bytes_of(storage.first_moment), bytes_of(storage.second_moment)
    less = {"adam": 0, "adamw": 0, "momentum": moments[1], "sgd": sum(moments)}
    for optimizer, missing in less.items():
        if name == "collage_plus" and optimizer in ("momentum", "sgd"):
            missing += moments[1]  # the second word of the second moment
        change: dict[str, Any] = {"optimizer": optimizer}
        if optimizer == "momentum":
            change = {"optimizer": "sgd", "momentum": 0.9}
        result = train(stored(TINY, name, **change))
        assert result.bytes_per_parameter == BYTES[name] - missing
        ledger = memory_ledger(
            storage, result.config.build_optimizer(), sum(a.size for a in result.parameters.values())
        )
        assert result.bytes_per_parameter == ledger.bytes_per_parameter


# ---- what updates did ----


def states(config: TrainingConfig) -> Iterator[tuple[Array, Array, Array | None, bool]]:
    """Parameters before and after each step, with what is kept beside them, and the intended update."""
    part, _ = load_data(config)
    model = config.build_model(part)
    parameters = model.init(config.seed)
    shapes = {name: array.shape for name, array in parameters.items()}
    recipe = Recipe(model, config.build_optimizer(), config.storage, shapes, config.seed)
    state = begin(parameters, recipe)

    def values() -> Array:
        held = state.optimizer.buffers
        total = held["master" if "master" in held else "weights"].astype(np.float64)
        for word in ("compensation", "second_word"):
            if word in held:
                total = total + held[word].astype(np.float64)
        return total

    for rows in batches(len(part.labels), config.batch_size, config.steps, config.seed):
        before = values()
        state, record = training_step(state, recipe, part.inputs[rows], part.labels[rows])
        yield before, values(), record.intended, record.skipped


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("pure_bf16", {"learning_rate": 0.01}),
        ("pure_bf16", {"optimizer": "adam", "learning_rate": 1e-4}),
        ("bf16_kahan", {"learning_rate": 0.01}),
        ("bf16_kahan", {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.1}),
        ("collage_plus", {"optimizer": "adam", "learning_rate": 1e-4}),
        ("master_bf16", {"learning_rate": 0.01}),
        ("autocast_fp16", {"learning_rate": 0.01}),
    ],
)
@pytest.mark.parametrize("every", [1, 3])
def test_the_statistics_of_updates_against_a_count(text: str, change: dict[str, Any], every: int) -> None:
    config = stored(SHORT, text, snapshot_steps=(), hidden=(3,), measure_every=every, **change)
    count = nonzero = lost = unchanged = 0
    intended: list[float] = []
    effective: list[float] = []
    ratios: list[float] = []
    for step, (before, after, update, _) in enumerate(states(config)):
        if step % every:
            continue
        assert update is not None
        for old, new, u in zip(before.tolist(), after.tolist(), update.tolist(), strict=True):
            count += 1
            nonzero += u != 0
            lost += u != 0 and new == old
            unchanged += new == old
            intended.append(u)
            effective.append(new - old)
            if u != 0 and old != 0:
                ratios.append(abs(u / old))
    found = train(config).updates
    assert (found.count, found.nonzero, found.lost, found.unchanged) == (count, nonzero, lost, unchanged)
    assert nonzero > count / 4
    assert found.ratios == ExponentHistogram.of(np.array(ratios))
    product = math.fsum(u * d for u, d in zip(intended, effective, strict=True))
    squares = math.fsum(u * u for u in intended)
    assert found.product == pytest.approx(product, rel=1e-12)
    assert found.intended == pytest.approx(squares, rel=1e-12)
    assert found.effective == pytest.approx(math.fsum(d * d for d in effective), rel=1e-12)
    assert found.edq == pytest.approx(product / math.sqrt(squares), rel=1e-12)
    assert found.edq_ratio == pytest.approx(product / squares, rel=1e-12)
    assert found.lost_of_nonzero == lost / nonzero
    assert found.imprecision == unchanged / count
    if text == "pure_bf16":
        assert found.lost_of_nonzero > 0.05
    else:
        assert found.lost_of_nonzero < 0.01
        assert found.edq_ratio == pytest.approx(1, abs=0.01)


# ---- beside the fp32 optimizer ----

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.01},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9},
    "L2": {"optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("text", ["fp32", "master_bf16", "autocast_fp16"])
def test_the_fp32_optimizer_beside_itself_proposes_the_same_bits(text: str, optimizer: str) -> None:
    """Float32 moments and weights: nothing is different, and what is measured is one to the rounding of the weights."""
    config = stored(SHORT, text, **OPTIMIZERS[optimizer], schedule=Schedule("linear", 3), against_fp32=True)
    result = train(dataclasses.replace(config, measure_every=2))
    assert len(result.by_step) == 6
    for step in result.by_step:
        assert (step.intended_fp32, step.product_fp32) == (step.intended, step.product)
        assert step.intended > 0
    assert result.updates.edq_ratio_fp32 == result.updates.edq_ratio == pytest.approx(1, abs=1e-6)


def adam_in_float64(
    t: int, m: Array, v: Array, g: Array, lr: float, config: TrainingConfig
) -> tuple[Array, Array, Array]:
    """Return the moments and the update (Kingma, Ba 2015, algorithm 1)."""
    m = config.beta1 * m + (1 - config.beta1) * g
    v = config.beta2 * v + (1 - config.beta2) * g * g
    corrected = m / (1 - config.beta1**t), v / (1 - config.beta2**t)
    return m, v, -lr * corrected[0] / (np.sqrt(corrected[1]) + config.epsilon)


@pytest.mark.parametrize(
    "text", ["pure_bf16", "bf16_kahan", "pure_fp16,moments=fp32,loss_scale=megatron", "master_bf16,moments=bf16"]
)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_beside_adam_in_float64_with_moments_of_its_own(text: str, decay: float) -> None:
    """What is measured, against the formulas in float64 on the gradients that the run stored."""
    config = stored(
        *(SHORT, text),
        hidden=(3,),
        steps=40,
        snapshot_steps=(),
        optimizer="adamw",
        learning_rate=1e-3,
        epsilon=1e-6,
        weight_decay=decay,
        schedule=Schedule("cosine", 5, 0.5),
        measure_every=3,
        against_fp32=True,
    )
    part, _ = load_data(config)
    model = config.build_model(part)
    parameters = model.init(config.seed)
    shapes = {name: array.shape for name, array in parameters.items()}
    recipe = Recipe(model, config.build_optimizer(), config.storage, shapes, config.seed)
    state = begin(parameters, recipe)
    found = train(config)
    measured = {step.step: step for step in found.by_step}
    m = v = np.zeros(sum(array.size for array in parameters.values()))
    words = ("master" if "master" in state.optimizer.buffers else "weights", "compensation", "second_word")
    made = 0
    sums = [0.0, 0.0]
    for step, rows in enumerate(batches(len(part.labels), config.batch_size, config.steps, config.seed)):
        before, scale = state.optimizer.buffers, state.scaler.loss_scale
        lr = config.learning_rate * config.schedule.factor(step, config.steps)
        state, record = training_step(state, recipe, part.inputs[rows], part.labels[rows], learning_rate=lr)
        assert record.skipped == found.skipped[step]
        assert (step in measured) == (step % 3 == 0 and not record.skipped)
        if record.skipped:
            continue
        made += 1
        after = state.optimizer.buffers
        gradient = after["gradients"].astype(np.float64) / scale
        m, v, u = adam_in_float64(made, m, v, gradient, lr, config)
        u -= lr * decay * before[words[0]].astype(np.float64)
        values = [np.asarray(sum(held[w].astype(np.float64) for w in words if w in held)) for held in (before, after)]
        if step in measured:
            products = math.fsum((u * u).tolist()), math.fsum((u * (values[1] - values[0])).tolist())
            assert measured[step].intended_fp32 == pytest.approx(products[0], rel=1e-4)
            assert measured[step].product_fp32 == pytest.approx(products[1], rel=1e-3, abs=1e-5 * products[0])
            sums = [total + one for total, one in zip(sums, products, strict=True)]
    assert made == 40 - np.count_nonzero(found.skipped)
    assert made > 10
    assert (made < 40) == text.startswith("pure_fp16")
    assert found.updates.edq_ratio_fp32 == pytest.approx(sums[1] / sums[0], rel=1e-4)
    assert found.updates.intended_fp32 == sum(step.intended_fp32 for step in found.by_step)


@pytest.fixture(scope="module")
def long_runs() -> dict[tuple[str, float], UpdateStatistics]:
    """A thousand steps of Adam, by storage and beta2."""
    config = TrainingConfig(
        hidden=(16,), batch_size=32, steps=1000, optimizer="adam", learning_rate=1e-3, against_fp32=True
    )
    storages = ("master_bf16,second_moment=bf16", "bf16_kahan", "bf16_kahan,second_moment=fp32", "bf16_fp32_moments")
    runs = {(text, 0.999): stored(config, text) for text in storages}
    runs["bf16_kahan", 0.95] = stored(config, "bf16_kahan", beta2=0.95)
    return {key: train(run).updates for key, run in runs.items()}


@pytest.mark.parametrize("text", ["master_bf16,second_moment=bf16", "bf16_kahan"])
def test_a_second_moment_that_cannot_fall_shows_beside_fp32_and_not_beside_itself(
    text: str, long_runs: dict[tuple[str, float], UpdateStatistics]
) -> None:
    """R(.999 * v) = v in bf16: v is too large, the updates are too small, and the weights do get all of those."""
    found = long_runs[text, 0.999]
    assert found.edq_ratio == pytest.approx(1, abs=1e-3)
    assert found.edq_ratio_fp32 < 0.98


def test_where_the_moments_are_right_both_say_the_same(long_runs: dict[tuple[str, float], UpdateStatistics]) -> None:
    for key in (("bf16_kahan,second_moment=fp32", 0.999), ("bf16_kahan", 0.95)):
        assert long_runs[key].edq_ratio == pytest.approx(1, abs=1e-3)
        assert long_runs[key].edq_ratio_fp32 == pytest.approx(1, abs=5e-3)
    lost = long_runs["bf16_fp32_moments", 0.999]
    assert lost.edq_ratio_fp32 == lost.edq_ratio < 0.9


def test_of_sgd_without_momentum_only_the_rounding_of_the_learning_rate_differs() -> None:
    updates = train(stored(SHORT, "pure_bf16", learning_rate=0.01, against_fp32=True, measure_every=1)).updates
    stored_rate = 0.010009765625  # .01 in bf16
    assert updates.edq_ratio_fp32 / updates.edq_ratio == pytest.approx(stored_rate / 0.01, rel=1e-6)


@pytest.mark.parametrize("text", ["pure_bf16", "pure_fp16,moments=fp32,loss_scale=megatron"])
def test_measuring_beside_fp32_changes_nothing_and_does_not_depend_on_how_often(text: str) -> None:
    change = {"steps": 40, "snapshot_steps": (39,), "measure_every": 1}
    config = stored(SHORT, text, optimizer="adam", learning_rate=1e-3, weight_decay=0.1, **change)
    plain, every, third = (
        train(dataclasses.replace(config, **change))
        for change in ({}, {"against_fp32": True}, {"against_fp32": True, "measure_every": 3})
    )
    assert bits(plain) == bits(every) == bits(third)
    assert [step[:3] for step in plain.by_step] == [step[:3] for step in every.by_step]
    assert third.by_step == tuple(step for step in every.by_step if step.step % 3 == 0)
    assert len(third.by_step) > 3
    assert np.isnan([plain.updates.intended_fp32, plain.updates.product_fp32]).all()
    assert np.isnan([step[3:] for step in plain.by_step]).all()
    assert math.isnan(plain.updates.edq_ratio_fp32)
    assert plain.to_dict()["updates"]["edq_ratio_fp32"] == "nan"


def test_snapshots_hold_the_parameters_and_the_updates_of_each_step() -> None:
    config = stored(SHORT, "master_bf16", snapshot_steps=tuple(range(12)))
    result = train(config)
    for snapshot, (before, _, update, _) in zip(result.snapshots, states(config), strict=True):
        np.testing.assert_array_equal(np.concatenate([a.ravel() for a in snapshot.parameters.values()]), before)
        assert update is not None
        np.testing.assert_array_equal(np.concatenate([a.ravel() for a in snapshot.updates.values()]), update)
        assert [a.shape for a in snapshot.updates.values()] == [(64, 16), (16,), (16, 10), (10,)]
        assert list(snapshot.parameters) == list(snapshot.updates) == list(result.parameters)


def test_a_skipped_step_has_no_update_and_is_not_measured() -> None:
    config = stored(
        SHORT, "pure_fp16,loss_scale=2^40", hidden=(3,), snapshot_steps=(0, 11), histogram_steps=(0,), measure_every=1
    )
    config = dataclasses.replace(config, against_fp32=True)
    result = train(config)
    assert result.skipped.all()
    assert result.stopped == ""  # a static scale goes on for ever
    assert result.updates.count == 0
    for share in ("lost_of_nonzero", "imprecision", "edq", "edq_ratio", "edq_ratio_fp32"):
        assert getattr(result.updates, share) == 0.0
    for snapshot in result.snapshots:
        assert not any(array.any() for array in snapshot.updates.values())
    assert sum(histogram.nonfinite for histogram in result.histograms[0].values()) > 0
    assert result.final_loss == result.initial_loss


def test_histograms_are_those_of_the_gradients() -> None:
    config = stored(SHORT, "autocast_fp16", snapshot_steps=(0, 7), histogram_steps=(0, 7))
    result = train(config)
    assert list(result.histograms) == [0, 7]
    for snapshot in result.snapshots:
        both = snapshot.weight_gradients | snapshot.activation_gradients
        assert len(both) == 4 + 3
        assert result.histograms[snapshot.step] == {n: ExponentHistogram.of(array) for n, array in both.items()}


# ---- the loss scale ----


@pytest.mark.parametrize(("rule", "last"), [("deepspeed", 1.0), ("torch", 2.0**-127)])
def test_a_run_whose_loss_scale_ends(rule: str, last: float) -> None:
    """Weights that became infinite let every step overflow, until the scale cannot come down any more."""
    config = stored(TINY, f"pure_fp16,loss_scale={rule}", learning_rate=1e8, steps=200, histogram_steps=(0, 199))
    done: list[int] = []
    result = train(config, progress=done.append)
    steps = len(result.losses)
    assert 10 < steps < 200
    assert done == list(range(1, steps + 1))
    assert result.loss_scales.shape == result.skipped.shape == (steps,)
    assert result.loss_scales[-1] == last
    assert result.skipped[-10:].all()
    assert result.stopped.startswith({"deepspeed": "an overflow found", "torch": "the loss scale has fallen"}[rule])
    assert result.diverged
    assert list(result.histograms) == [0]
    assert list(train(dataclasses.replace(config, loss_steps=(1, steps, steps + 1))).losses_after) == [1, steps]
    same(TrainingResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))), result)
    whole = train(dataclasses.replace(config, steps=steps, histogram_steps=()))
    assert whole.stopped == ""  # nothing was left to do
    assert bits(whole) == bits(result)


def test_loss_scales_are_written_with_their_run_lengths() -> None:
    result = train(stored(SHORT, "pure_fp16,loss_scale=megatron"))
    data = result.to_dict()
    runs = [(value, len(list(group))) for value, group in itertools.groupby(result.loss_scales.tolist())]
    assert len(runs) > 3
    assert data["loss_scales"] == [x for run in runs for x in run]
    runs_of_skips = [(skipped, len(list(group))) for skipped, group in itertools.groupby(result.skipped.tolist())]
    assert data["skipped"] == [x for run in runs_of_skips for x in run]
    assert result.skipped.sum() > 3


# ---- a result in JSON ----


def same(a: TrainingResult, b: TrainingResult) -> None:
    """All that is part of `to_dict`."""
    for name in ("losses", "loss_scales", "skipped"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for name in ("config", "test_accuracy", "histograms", "bytes_per_parameter", "seconds", "stopped"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("initial_loss", "final_loss", "losses_after"):
        np.testing.assert_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_equal(a.updates.to_dict(), b.updates.to_dict())
    np.testing.assert_equal(a.by_step, b.by_step)
    assert a.diverged == b.diverged


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"storage": "pure_fp16", "optimizer": "adam"},
        {"schedule": Schedule("cosine", 2, 0.1), "permuted": True, "loss_steps": (1, 12), "against_fp32": True},
        {"model": "least_squares", "storage": "pure_bf16"},
        {"learning_rate": 1e300, "loss_steps": (12,)},
        {"storage": "bf16_kahan", "learning_rate": 1e30, "measure_every": 1, "against_fp32": True},
    ],
)
def test_a_result_in_json_and_back(change: dict[str, Any]) -> None:
    result = train(dataclasses.replace(SHORT, histogram_steps=(0, 11), **change))
    data = result.to_dict()
    text = json.dumps(data, allow_nan=False)
    again = TrainingResult.from_dict(json.loads(text))
    same(again, result)
    assert again.to_dict() == data
    assert again.snapshots == ()
    assert again.parameters == {}


numbers = st.floats() | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan])


@given(
    losses=st.lists(st.tuples(numbers, st.sampled_from([1.0, 2.0**-149, 3.7, 2.0**16]), st.booleans()), max_size=9),
    ends=st.tuples(numbers, numbers),
    sums=st.tuples(numbers, numbers, numbers),
    accuracy=st.none() | st.floats(0, 1),
)
def test_any_numbers_survive(
    losses: list[tuple[float, float, bool]],
    ends: tuple[float, float],
    sums: tuple[float, float, float],
    accuracy: float | None,
) -> None:
    columns = list(zip(*losses, strict=True)) or [(), (), ()]
    result = TrainingResult(
        config=SHORT,
        losses=np.array(columns[0], np.float64),
        loss_scales=np.array(columns[1], np.float64),
        skipped=np.array(columns[2], bool),
        initial_loss=ends[0],
        final_loss=ends[1],
        test_loss=ends[0],
        test_accuracy=accuracy,
        updates=UpdateStatistics(4, 3, 2, 1, *sums, ratios=ExponentHistogram.of(np.array([1.0, 0.0, np.inf]))),
        histograms={0: {"logits": ExponentHistogram.empty()}},
        bytes_per_parameter=16.0,
        seconds=0.1,
    )
    same(TrainingResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))), result)


@pytest.mark.parametrize(
    "change",
    [
        {"losses": None},
        {"losses": ["many"]},
        {"kind": "precision_lab scan"},
        {"version": 1},
        {"version": 3},
        {"losses": [1.0]},
        {"loss_scales": [1.0]},
        {"skipped": [12]},
        {"updates": {}},
        {"histograms": {"x": {}}},
        {"config": {"storage": "bf17"}},
        {"config": {"colour": "red"}},
    ],
)
def test_what_is_no_result_is_refused(change: dict[str, Any]) -> None:
    data = train(SHORT).to_dict()
    with pytest.raises(ValueError, match=r"."):
        TrainingResult.from_dict(data | change)
    for key in data.keys() - {"kind", "version"}:
        with pytest.raises(ValueError, match=f"^TrainingResult: it has no '{key}'$"):
            TrainingResult.from_dict({k: v for k, v in data.items() if k != key})


# ---- data ----


def test_each_model_has_its_data_and_takes_no_other() -> None:
    assert len(load_data(TrainingConfig())[0].labels) == 1438
    with pytest.raises(ValueError, match="dataset of mlp must be 'digits', got 'topics'"):
        TrainingConfig(dataset="topics")
    windows, _ = load_data(TrainingConfig(model="transformer", activation="gelu", hidden=(8,)))
    assert windows.inputs.shape == (round(0.8 * TOPICS_WINDOWS), 32)


def test_a_text_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("It was a dark and stormy night; the rain fell in torrents. " * 20, encoding="utf-8")
    config = TrainingConfig(
        model="transformer", dataset=str(path), activation="gelu", hidden=(8,), steps=3, batch_size=4
    )
    assert load_data(config)[0].name == "novel.txt/train"
    assert np.isfinite(train(config).final_loss)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"\xff\xfe\xfa", "not a UTF-8 text"), (b"short", "context")]
)
def test_a_text_that_cannot_be_used(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_data(TrainingConfig(model="transformer", dataset=str(path), activation="gelu"))


def test_the_test_loss_is_that_of_the_test_part() -> None:
    result = train(SHORT)
    _, test = load_data(SHORT)
    model = SHORT.build_model(test)
    assert result.test_loss == loss_in_float64(model, result.parameters, test)
    assert result.test_loss != result.final_loss


def test_least_squares_cannot_come_to_nothing() -> None:
    """Its targets have noise, so that a ratio to the control's loss means something."""
    final = train(TrainingConfig(model="least_squares", learning_rate=0.01, steps=2000, batch_size=1)).final_loss
    assert 0.004 < final < 0.01
