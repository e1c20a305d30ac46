"""All models can be used in the same way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from precision_lab.training.datasets import CHANGE, Dataset, digits, fine_tuning_task, linear_regression, text_dataset
from precision_lab.training.models import MLP, FineTuning, LeastSquares, Model, Transformer, weights_copy
from precision_lab.training.storage import CONFIGURATIONS
from tests.training.models.helpers import same_bits


def of_text() -> tuple[Model, Dataset]:
    text = text_dataset("to be or not to be, that is the question " * 20, context=8)
    return Transformer(len(text.vocabulary), context=8, width=8, hidden=16), text


def of_a_matrix() -> tuple[Model, Dataset]:
    start = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)
    return FineTuning(start, CHANGE), fine_tuning_task(start)[0]


PROBLEMS: dict[str, Callable[[], tuple[Model, Dataset]]] = {
    "least squares": lambda: (LeastSquares(), linear_regression()),
    "fine-tuning": of_a_matrix,
    "softmax regression": lambda: (MLP((64, 10)), digits()),
    "perceptron": lambda: (MLP((64, 8, 8, 10), "sigmoid"), digits()),
    "transformer": of_text,
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_step_downhill_under_every_configuration(name: str) -> None:
    model, data = PROBLEMS[name]()
    inputs, targets = data.inputs[:32], data.labels[:32]
    parameters = model.init(1)
    before = model.loss(parameters, inputs, targets)
    for storage in CONFIGURATIONS.values():
        copy = weights_copy(parameters, storage)
        found = model.loss_and_gradients(copy, inputs, targets, loss_scale=4.0, storage=storage)
        assert list(found.weights) == list(parameters)
        assert list(found.activations) == list(model.forward(copy, inputs, storage))
        after = {key: array - np.float32(0.01 / 4) * found.weights[key] for key, array in parameters.items()}
        assert model.loss(after, inputs, targets) < before
    share = model.accuracy(parameters, inputs, targets)
    assert (share is None) == (name in ("least squares", "fine-tuning"))
    assert share is None or 0 <= share <= 1
    wide = model.init(1, np.float64)
    assert same_bits(parameters, {key: array.astype(np.float32) for key, array in wide.items()})
