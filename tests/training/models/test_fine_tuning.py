from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from precision_lab.numerics.rounding import is_representable
from precision_lab.training.config import TrainingConfig, load_data
from precision_lab.training.datasets import CHANGE, fine_tuning_target, fine_tuning_task, query_matrix
from precision_lab.training.loop import loss_in_float64, train
from precision_lab.training.models import Array, FineTuning
from precision_lab.training.storage import CONFIGURATIONS, FP32, StorageConfig
from tests.training.models.helpers import (
    CAST_ROLES,
    ROLES,
    assert_each_in_its_format,
    assert_slopes,
    role,
    same_bits,
    stored_gradient,
    times,
)

START = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
MODEL = FineTuning(START, CHANGE)
DATA, _ = fine_tuning_task(START, (2, 1), rank=2, seed=3)
TARGET = fine_tuning_target(START, 2, seed=3)


def weight(seed: int, dtype: type = np.float64) -> dict[str, Array]:
    return {"weight": (START + 0.1 * np.random.default_rng(seed).normal(size=START.shape)).astype(dtype)}


def distance(w: Array, start: Array, target: Array) -> float:
    """The squared Frobenius distance that is left, with NumPy's own norm."""
    return float(np.linalg.norm(w - target) ** 2 / np.linalg.norm(start - target) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_agree_with_central_differences(seed: int) -> None:
    parameters = weight(seed)
    found = MODEL.loss_and_gradients(parameters, DATA.inputs, DATA.labels)
    predictions = MODEL.forward(parameters, DATA.inputs)["predictions"]
    assert found.loss == MODEL.loss(parameters, DATA.inputs, DATA.labels)

    def loss_of_weight(value: Array) -> float:
        return MODEL.loss({"weight": value}, DATA.inputs, DATA.labels)

    def loss_of_predictions(value: Array) -> float:
        squares = ((value - DATA.labels) ** 2).sum(axis=1)
        return float(squares.mean() / (CHANGE * np.linalg.norm(START.astype(np.float64))) ** 2)

    assert found.loss == pytest.approx(loss_of_predictions(predictions), rel=1e-12)
    assert_slopes(loss_of_weight, parameters["weight"], found.weights["weight"], "weight", largest=1e3)
    assert_slopes(loss_of_predictions, predictions, found.activations["predictions"], "predictions", largest=1e3)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_over_a_part_is_the_squared_distance_that_is_left(seed: int) -> None:
    for parts in fine_tuning_task(START, (2, 1), rank=2, seed=3):
        for parameters in (weight(seed), MODEL.init(dtype=np.float64), {"weight": TARGET}):
            expected = distance(parameters["weight"], START, TARGET)
            # the labels are rounded to float32: 2^-24 of a few, squared or beside a residual, against CHANGE
            assert MODEL.loss(parameters, parts.inputs, parts.labels) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert distance(START, START, TARGET) == 1


def test_it_starts_at_the_matrix_whatever_the_seed() -> None:
    for dtype in (np.float32, np.float64):
        assert same_bits(MODEL.init(5, dtype), {"weight": START.astype(dtype)})
    MODEL.init()["weight"][:] = 0  # a copy
    assert MODEL.start.any()


@pytest.mark.parametrize("storage", [ROLES, CAST_ROLES], ids=["roles", "cast"])
@pytest.mark.parametrize("row", range(0, 24, 6))
def test_each_place_by_hand(row: int, storage: StorageConfig) -> None:
    """On two examples at a time, and with inputs that a format can spoil: the mean of many would hide a rounding."""
    parameters = weight(7, np.float32)
    labels = DATA.labels[row : row + 2]
    inputs = DATA.inputs[row : row + 2] * np.float32(1.3)
    found = MODEL.loss_and_gradients(parameters, inputs, labels, loss_scale=4.0, storage=storage)
    x = role("activations", inputs)
    predictions = role("activations", times(storage, x, parameters["weight"]))
    residuals = role("sensitive", predictions - labels)
    whole = (CHANGE * float(np.linalg.norm(START.astype(np.float64)))) ** 2
    gradient = role("activation_gradients", residuals * np.float32(2 * 4 / (2 * whole)))
    forward = MODEL.forward(parameters, inputs, storage)
    assert same_bits(forward, {"predictions": predictions})
    assert same_bits(found.activations, {"predictions": gradient})
    assert same_bits(found.weights, {"weight": stored_gradient(times(storage, x.T, gradient, "b"))})
    losses = role("sensitive", np.add.accumulate(residuals**2, axis=1)[:, -1] / np.float32(whole))
    assert found.loss == float(role("sensitive", losses.mean()))
    assert_each_in_its_format(forward, found)


def test_fp32_rounds_nothing() -> None:
    parameters = weight(1, np.float32)
    plain, ours = (
        MODEL.loss_and_gradients(parameters, DATA.inputs, DATA.labels, loss_scale=8.0, storage=storage)
        for storage in (None, FP32)
    )
    assert ours.loss == plain.loss
    assert same_bits(ours.weights, plain.weights)
    assert same_bits(ours.activations, plain.activations)


def test_there_is_no_accuracy() -> None:
    MODEL.accuracy(MODEL.init(), DATA.inputs, DATA.labels)  # None; mypy would not let it be used


@pytest.mark.parametrize(
    ("start", "change", "message"),
    [
        (START[0], 0.1, r"start must be a float32 matrix, got float32 of shape \(5,\)"),
        (START.astype(np.float64), 0.1, "start must be a float32 matrix, got float64"),
        (START[:0], 0.1, "start must be a float32 matrix"),
        (START, 0.0, "change must be positive and finite, got 0.0"),
        (START, math.inf, "change must be positive and finite"),
    ],
)
def test_a_bad_model_is_refused(start: Array, change: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuning(start, change)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs must have shape \(batch, 12\)"):
        MODEL.loss(MODEL.init(), DATA.inputs[:, :9], DATA.labels)
    with pytest.raises(ValueError, match=r"targets must have shape \(24, 5\), one row per example"):
        MODEL.loss_and_gradients(MODEL.init(), DATA.inputs, DATA.labels[:, 0])
    with pytest.raises(ValueError, match="loss_scale must be positive"):
        MODEL.loss_and_gradients(MODEL.init(), DATA.inputs, DATA.labels, loss_scale=math.nan)


# ---- of the matrix that is shipped ----


CONFIG = TrainingConfig(model="fine_tuning", optimizer="adam", learning_rate=5e-5, steps=60, batch_size=64)


def test_the_shipped_matrix_loses_nothing_in_bf16_at_the_start_and_each_seed_has_its_own_change() -> None:
    (train_part, test_part), (other, _) = load_data(CONFIG), load_data(replace(CONFIG, seed=1))
    model = CONFIG.build_model(train_part)
    parameters = model.init(0)
    assert parameters["weight"].shape == (384, 384)
    assert is_representable(parameters["weight"], "bf16").all()
    assert not is_representable(parameters["weight"], "fp16").all()
    for part in (train_part, test_part):
        assert loss_in_float64(model, parameters, part) == pytest.approx(1, abs=1e-8)
    assert not np.array_equal(train_part.labels, other.labels)
    assert not np.array_equal(train_part.inputs, other.inputs)
    again, _ = load_data(CONFIG)
    assert again.labels.tobytes() == train_part.labels.tobytes()


def test_fine_tuning_in_fp32_learns_and_in_bf16_stands_still() -> None:
    """The control and its opposite: 60 steps of Adam, whose updates are below half a spacing of most weights."""
    found: dict[str, Any] = {
        name: train(replace(CONFIG, storage=CONFIGURATIONS[name])) for name in ("fp32", "pure_bf16")
    }
    target = fine_tuning_target(query_matrix(), seed=0)
    for result in found.values():
        assert result.initial_loss == pytest.approx(1, abs=1e-8)
        left = distance(result.parameters["weight"], query_matrix(), target)
        assert result.final_loss == pytest.approx(left, rel=1e-6)
        assert result.test_accuracy is None
    assert found["fp32"].final_loss < 0.5
    assert found["pure_bf16"].final_loss > 0.9
    assert found["fp32"].updates.lost_of_nonzero < 0.01
    assert found["pure_bf16"].updates.lost_of_nonzero > 0.9  # the first step, where |u| = lr, is one of three
