import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab.training.datasets import digits, split
from precision_lab.training.loop import (
    DIVERGENCE_FACTOR,
    TrainingConfig,
    TrainingResult,
    adam_state,
    adam_step,
    batches,
    sgd_state,
    sgd_step,
    train,
)
from precision_lab.training.models import Array, init_mlp, loss_and_gradients

SHORT = TrainingConfig(hidden=(16,), steps=12, batch_size=32, seed=3, snapshot_steps=(0, 5, 11))


def bits(result: TrainingResult) -> list[bytes]:
    """Every number of a result."""
    arrays = [result.losses, *result.parameters.values()]
    for snapshot in result.snapshots:
        arrays += [*snapshot.weight_gradients.values(), *snapshot.activation_gradients.values()]
    scalars = np.array([result.initial_loss, result.final_loss, result.test_accuracy])
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


def a_few_steps(dtype: type) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    rng = np.random.default_rng(11)
    shapes = {"layer1.weight": (3, 4), "layer1.bias": (4,)}
    parameters: dict[str, Array] = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    gradients: list[dict[str, Array]] = [
        {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()} for _ in range(5)
    ]
    return parameters, gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_follows_its_definition(dtype: type, tolerance: float, momentum: float) -> None:
    parameters, steps = a_few_steps(dtype)
    start, state = parameters, sgd_state(parameters)
    for gradients in steps:
        parameters, state = sgd_step(
            parameters, gradients, state, learning_rate=np.float64(0.1), momentum=np.float64(momentum)
        )
    assert state.step == len(steps)
    for name in start:
        expected, velocity = start[name].astype(np.float64), np.zeros(start[name].shape)
        for gradients in steps:
            velocity = momentum * velocity + gradients[name]
            expected = expected - 0.1 * velocity
        np.testing.assert_allclose(parameters[name], expected, rtol=tolerance, atol=tolerance)
        assert parameters[name].dtype == state.slots["velocity"][name].dtype == dtype


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_adam_follows_its_definition(dtype: type, tolerance: float) -> None:
    parameters, steps = a_few_steps(dtype)
    start, state = parameters, adam_state(parameters)
    for gradients in steps:
        parameters, state = adam_step(parameters, gradients, state, learning_rate=np.float64(0.1))
    assert state.step == len(steps)
    for name in start:
        expected = start[name].astype(np.float64)
        m = v = np.zeros(expected.shape)
        for t, gradients in enumerate(steps, start=1):
            m = 0.9 * m + 0.1 * gradients[name].astype(np.float64)
            v = 0.999 * v + 0.001 * gradients[name].astype(np.float64) ** 2
            expected = expected - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(parameters[name], expected, rtol=tolerance, atol=tolerance)
        for slot in ("first_moment", "second_moment"):
            assert parameters[name].dtype == state.slots[slot][name].dtype == dtype


def test_the_first_step_of_adam_is_the_learning_rate_whatever_the_gradient() -> None:
    parameters, (gradients, *_) = a_few_steps(np.float64)
    updated, _ = adam_step(parameters, gradients, adam_state(parameters), learning_rate=0.01)
    for name in parameters:
        np.testing.assert_allclose(parameters[name] - updated[name], 0.01 * np.sign(gradients[name]), rtol=1e-5)


def test_a_step_leaves_its_arguments_as_they_were() -> None:
    parameters, (gradients, *_) = a_few_steps(np.float32)
    before = {name: array.copy() for name, array in parameters.items()}
    state = adam_state(parameters)
    adam_step(parameters, gradients, state, learning_rate=0.1)
    sgd_step(parameters, gradients, sgd_state(parameters), learning_rate=0.1, momentum=0.9)
    for name, array in before.items():
        np.testing.assert_array_equal(parameters[name], array)
        assert not state.slots["first_moment"][name].any()


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
    for parameters, ours in ((init_mlp((64, 16, 10), 3), result.initial_loss), (result.parameters, result.final_loss)):
        w1, b1, w2, b2 = (array.astype(np.float64) for array in parameters.values())
        logits = np.maximum(part.inputs @ w1 + b1, 0) @ w2 + b2
        each = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), part.labels]
        assert ours == pytest.approx(each.mean(), rel=1e-13)


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
        parameters = init_mlp((64, 16, 10), config.seed)
        if step > 0:
            parameters = train(dataclasses.replace(config, steps=step, snapshot_steps=())).parameters
        expected = loss_and_gradients(parameters, part.inputs[rows[step]], part.labels[rows[step]])
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
        ({"optimizer": "adamw"}, "optimizer must be one of sgd, adam; got 'adamw'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite"),
        ({"learning_rate": -0.1}, "learning_rate must be positive and finite"),
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"momentum": -0.1}, "momentum must be at least 0 and below 1"),
        ({"momentum": 0.9, "optimizer": "adam"}, "momentum must be 0 unless optimizer is 'sgd'"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"steps": 10.0}, "steps must be an integer of at least 1"),
        ({"steps": True}, "steps must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"snapshot_steps": (12,)}, r"snapshot_steps must be an ascending tuple of different integers in 0\.\.11"),
        ({"snapshot_steps": (-1,)}, "snapshot_steps must be an ascending tuple"),
        ({"snapshot_steps": (5, 0)}, "snapshot_steps must be an ascending tuple"),
        ({"snapshot_steps": (5, 5)}, "snapshot_steps must be an ascending tuple"),
        ({"snapshot_steps": [0, 5]}, "snapshot_steps must be an ascending tuple"),
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
