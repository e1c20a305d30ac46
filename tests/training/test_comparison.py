"""What counts as a difference between two trainings, without the other side."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from precision_lab import TrainingConfig, get_format
from precision_lab.numerics import fixed
from precision_lab.presentation.plots.comparison import comparison_figure, plot_both_losses, plot_distances
from precision_lab.presentation.tables.comparison import comparison_tables
from precision_lab.training.comparison import (
    LOSS,
    StepValues,
    TrainingComparison,
    compared,
    first_differences,
    relative_distance,
)
from precision_lab.training.models import MLP

BF16, FP32 = get_format("bf16"), get_format("fp32")


def f32(*values: float) -> Any:
    return np.array(values, np.float32)


def test_equal_values_do_not_differ() -> None:
    a = f32(1, 0.0, math.nan, math.inf)
    assert compared(0, "", "", FP32, a, f32(1, -0.0, -math.nan, math.inf)) is None


def test_a_difference_is_counted_placed_and_measured() -> None:
    ours = f32(1, 2, 3, 4).reshape(2, 2)
    theirs = f32(1, 2, 3 + 2**-6, 4 - 3 * 2**-6).reshape(2, 2)
    exact = np.array([[1, 2], [3 + 2**-7 + 2**-40, 4 + 2**-20]])
    found = compared(7, "sum", "x", BF16, ours, theirs, exact=exact)
    assert found is not None
    assert (found.step, found.operation, found.value, found.format) == (7, "sum", "x", BF16)
    assert (found.count, found.differing, found.index) == (4, 2, (1, 0))
    assert (found.ours, found.theirs) == (3.0, 3 + 2**-6)
    assert found.ulps == 1.5  # 3 * 2^-6 below 4, where the spacing of bf16 is 2^-5
    assert (found.ours_right, found.theirs_right) == (1, 1)


def test_without_an_exact_result_nobody_is_right() -> None:
    found = compared(0, "", "", FP32, f32(1), f32(math.inf))
    assert found is not None
    assert found.ulps == math.inf
    assert found.ours_right is found.theirs_right is None


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"w: shapes \(1,\) and \(2,\)"):
        compared(0, "", "w", FP32, f32(1), f32(1, 2))


def test_the_distance_is_relative_and_of_all_parameters() -> None:
    ours = {"a": f32(3, 0), "b": f32(4)}
    assert relative_distance(ours, {"a": f32(3, 1), "b": f32(4)}) == 0.2
    assert relative_distance(ours, ours) == 0
    assert math.isnan(relative_distance(ours, {"a": f32(math.nan, 0), "b": f32(4)}))


MODEL = MLP((5, 4, 3))
CONFIG = TrainingConfig(steps=3)


def values(inputs: Any, labels: Any) -> StepValues:
    parameters = MODEL.init(0)
    gradients = MODEL.loss_and_gradients(parameters, inputs, labels)
    return StepValues(
        parameters,
        MODEL.forward(parameters, inputs),
        gradients.loss,
        gradients.weights,
        gradients.activations,
        {"first_moment": gradients.weights, "weights": parameters},
    )


def test_differences_come_in_the_order_of_the_computation() -> None:
    rng = np.random.default_rng(0)
    inputs, labels = rng.random((6, 5)).astype(np.float32), rng.integers(0, 3, 6)
    ours = values(inputs, labels)
    assert first_differences(0, ours, ours, CONFIG, inputs, labels, 1.0) == ()

    def off(arrays: Any) -> Any:
        return {name: np.nextafter(array, np.float32(9)) for name, array in arrays.items()}

    theirs = StepValues(
        ours.parameters,
        off(ours.activations),
        ours.loss + 1e-6,
        off(ours.gradients),
        off(ours.activation_gradients),
        {name: off(arrays) for name, arrays in ours.buffers.items()},
    )
    found = first_differences(0, ours, theirs, CONFIG, inputs, labels, 1.0)
    names = ("layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias")
    assert [difference.value for difference in found] == [
        "layer1.preactivation",
        "layer1.output",
        "logits",
        LOSS,
        "gradient of logits",
        "gradient of layer2.weight",
        "gradient of layer2.bias",
        "gradient of layer1.output",
        "gradient of layer1.preactivation",
        "gradient of layer1.weight",
        "gradient of layer1.bias",
        *(f"first_moment of {name}" for name in names),
        *(f"weights of {name}" for name in names),
    ]
    # what is called exact is: whoever gives it is right everywhere
    flowing, weight = ours.activation_gradients["logits"], ours.parameters["layer2.weight"]
    exact = fixed.matmul(flowing.astype(np.float64), weight.astype(np.float64).T).astype(np.float32)
    below = next(difference for difference in found if difference.value == "gradient of layer1.output")
    mine = ours.activation_gradients["layer1.output"]
    assert below.ours_right == np.count_nonzero(mine == exact)
    right = replace(theirs, activation_gradients={**theirs.activation_gradients, "layer1.output": exact})
    found = first_differences(0, ours, right, CONFIG, inputs, labels, 1.0)
    below = next(difference for difference in found if difference.value == "gradient of layer1.output")
    assert (below.ours_right, below.theirs_right) == (0, below.differing)
    assert below.differing == np.count_nonzero(mine != exact)
    (skipped,) = first_differences(0, ours, replace(ours, buffers={}), CONFIG, inputs, labels, 1.0)
    assert skipped.operation == "loss scale: whether the step is made"
    assert (skipped.ours, skipped.theirs) == (1, 0)


@pytest.mark.parametrize("apart", [True, False])
def test_tables_figures_and_json(apart: bool) -> None:
    difference = compared(1, "forward", "logits", FP32, f32(1), f32(2), exact=np.ones(1))
    loss = compared(0, "loss", LOSS, FP32, f32(1), f32(2))
    assert difference is not None
    assert loss is not None
    result = TrainingComparison(
        CONFIG,
        "torch 9",
        np.array([3.0, 2, 1]),
        np.array([3, 2, math.nan]),
        (),
        (2,),
        np.array([0, 1e-7, 1e-6]) if apart else np.zeros(3),
        (loss, difference) if apart else (loss,),
        0.5,
        0.6,
    )
    assert result.first == loss
    assert result.parting == (difference if apart else None)
    overview, rows = comparison_tables({"fp32": result})
    assert overview.rows[0][:3] == (("fp32", "1", "forward") if apart else ("fp32", "–", "they are the same"))
    assert len(rows.rows) == 1 + apart
    assert rows.rows[-1][-1] == ("1 / 0" if apart else "–")
    assert len(comparison_tables({"a": result, "b": result})) == 1
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["other_losses"] == [3, 2, "nan"]
    assert len(data["differences"]) == 1 + apart
    comparison_figure(result)
    assert len(plot_both_losses(result).lines) == 2
    ax = plot_distances(result)
    assert len(ax.lines) == 1 + apart
    assert np.size(ax.lines[0].get_xdata()) == 2 * apart
    pyplot.close("all")
