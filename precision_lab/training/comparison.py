"""Two trainings of one model held side by side: where do they first part, and how far apart do they end?

Two implementations of the same step never agree to the last bit for long: a matrix product that adds in another order
ends one unit in the last place away, and training magnifies that. So equal final losses prove little, and different
ones prove nothing. What can be held against an implementation is the *first* operation whose result differs: all that
went in was the same in both, so the difference is that operation's own.

The values of a step are compared in the order in which they are computed: what each layer puts out, the loss, the
gradients from the last layer back to the first, then what the optimizer makes of them. `precision_lab.torch` brings the
other side; nothing here needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from precision_lab.numerics import fixed
from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.rounding import round_to, spacing
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.models.interface import Array, Labels, Parameters

Values: TypeAlias = Mapping[str, Array]
LOSS = "loss"


@dataclass(frozen=True)
class Difference:
    """One value of a training step that is not the same on both sides.

    Attributes
    ----------
    step : int
        From 0.
    operation : str
        What computes it, in words.
    value : str
        Its name, as the models and optimizers here name it.
    format : FloatFormat
        In which it is stored.
    count, differing : int
        Its elements, and those that are not equal. (0.0 and -0.0 are equal, and so are two NaN.)
    index : tuple of int
        The first element that is not.
    ours, theirs : float
        That element.
    ulps : float
        The largest difference of all elements, in spacings of the format at the larger of the two; infinite where one
        side is.
    ours_right, theirs_right : int or None
        How many of the differing elements are the operation's exact result, rounded once (computed in float64 from
        our operands, so only for the first difference of a step it says who is right); None where there is no such
        thing.

    """

    step: int
    operation: str
    value: str
    format: FloatFormat
    count: int
    differing: int
    index: tuple[int, ...]
    ours: float
    theirs: float
    ulps: float
    ours_right: int | None = None
    theirs_right: int | None = None


@dataclass(frozen=True, eq=False)
class TrainingComparison(PlainData, Shown):
    """A training here and the same training elsewhere.

    Attributes
    ----------
    config : TrainingConfig
        What was trained.
    other : str
        With what else.
    losses, other_losses : float64 array, shape (steps,)
        Mean loss of the batch of each step.
    skipped, other_skipped : tuple of int
        Steps that the loss scale skipped.
    distances : float64 array, shape (steps,)
        After each step ||w - w'|| / ||w||, of all parameters.
    differences : tuple of Difference
        In the order of the computation, up to the first step in which more than the reported loss differs. (The
        backward pass starts from the logits: a loss that is added up in another order changes nothing else.) All but
        the first of a step may be nothing but its consequences.
    test_accuracy, other_test_accuracy : float
        Shares of the test part that are right after the last step.

    """

    layout: ClassVar = Layout("training comparison")

    config: TrainingConfig
    other: str
    losses: npt.NDArray[np.float64]
    other_losses: npt.NDArray[np.float64]
    skipped: tuple[int, ...]
    other_skipped: tuple[int, ...]
    distances: npt.NDArray[np.float64]
    differences: tuple[Difference, ...]
    test_accuracy: float
    other_test_accuracy: float

    @property
    def first(self) -> Difference | None:
        """The first difference of all; None if the two are the same to the last bit."""
        return self.differences[0] if self.differences else None

    @property
    def parting(self) -> Difference | None:
        """Where the two part: the first difference in a value that the weights depend on; None if there is none.

        The weights themselves may stay the same for many steps more: it may be lost on the way.
        """
        return next((d for d in self.differences if d.value != LOSS), None)


@dataclass(frozen=True, eq=False)
class StepValues:
    """What one step of a perceptron computes, all in float32.

    Attributes
    ----------
    parameters : dict of str to array
        What forward and backward see of them.
    activations : dict of str to array
        As `precision_lab.training.models.MLP.forward`.
    loss : float
        Mean loss.
    gradients, activation_gradients : dict of str to array
        As `precision_lab.training.models.Gradients`, multiplied by the loss scale.
    buffers : dict of str to dict of str to array
        What the optimizer keeps after the step: ``first_moment``, ``second_moment`` and ``weights`` (those it updates),
        each by parameter. Empty if the step was skipped.

    """

    parameters: Values
    activations: Values
    loss: float
    gradients: Values
    activation_gradients: Values
    buffers: Mapping[str, Values]


def first_differences(
    step: int, ours: StepValues, theirs: StepValues, config: TrainingConfig, inputs: Array, labels: Labels, scale: float
) -> tuple[Difference, ...]:
    """Compare what both sides computed in a step, in the order of the computation.

    Parameters
    ----------
    step : int
        To be put into the results.
    ours, theirs : StepValues
        Of one perceptron.
    config : TrainingConfig
        Its storage says in which format each value is.
    inputs, labels : arrays
        The batch.
    scale : float
        The loss scale of this step.

    """
    differences = []
    for operation, name, fmt, pair, exact in _operations(ours, theirs, config, inputs, labels, scale):
        difference = compared(step, operation, name, fmt, *pair, exact=exact)
        if difference is not None:
            differences.append(difference)
    return tuple(differences)


def compared(
    step: int, operation: str, value: str, fmt: FloatFormat, ours: Array, theirs: Array, *, exact: Array | None = None
) -> Difference | None:
    """Return how two arrays of one shape differ; None if they do not.

    Raises
    ------
    ValueError
        The shapes differ.

    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{value}: shapes {ours.shape} and {theirs.shape} cannot be compared")
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if same.all():
        return None
    differing = ~same
    a, b = ours[differing].astype(np.float64), theirs[differing].astype(np.float64)
    with np.errstate(all="ignore"):
        ulps = np.abs(a - b) / spacing(np.maximum(np.abs(a), np.abs(b)), fmt)
    worst = float(np.where(np.isfinite(ulps), ulps, np.inf).max())
    index = tuple(int(i) for i in np.argwhere(differing)[0])
    right: tuple[int | None, int | None] = (None, None)
    if exact is not None:
        rounded = np.asarray(round_to(exact.astype(np.float64), fmt))[differing]
        right = int(np.count_nonzero(a == rounded)), int(np.count_nonzero(b == rounded))
    return Difference(
        step,
        operation,
        value,
        fmt,
        ours.size,
        int(differing.sum()),
        index,
        float(ours[index]),
        float(theirs[index]),
        worst,
        *right,
    )


def _operations(
    ours: StepValues, theirs: StepValues, config: TrainingConfig, inputs: Array, labels: Labels, scale: float
) -> Iterator[tuple[str, str, FloatFormat, tuple[Array, Array], Array | None]]:
    """Yield what to compare: the operation, its value, the format, both results, the exact one where that is easy."""
    storage, depth = config.storage, sum(name.endswith(".weight") for name in ours.parameters)
    wide = _wide(ours.parameters)
    acts = _wide(ours.activations)
    flowing = _wide(ours.activation_gradients)
    below = {1: np.asarray(round_to(inputs.astype(np.float64), storage.activations))} | {
        k + 1: acts[f"layer{k}.output"] for k in range(1, depth)
    }
    for k in range(1, depth + 1):
        name = "logits" if k == depth else f"layer{k}.preactivation"
        exact = fixed.matmul(below[k], wide[f"layer{k}.weight"]) + wide[f"layer{k}.bias"]
        what = f"forward, layer {k}: matrix product and bias"
        yield what, name, storage.activations, _pair(ours.activations, theirs.activations, name), exact
        if k < depth:
            name, what = f"layer{k}.output", f"forward, layer {k}: activation function"
            yield what, name, storage.activations, _pair(ours.activations, theirs.activations, name), None

    logits = acts["logits"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = fixed.exp(shifted)
    totals = fixed.sum(exponentials, 1, keepdims=True)
    rows = np.arange(len(labels))
    mean = np.array([fixed.mean(fixed.log(totals[:, 0]) - shifted[rows, labels])])
    losses = np.array([ours.loss]), np.array([theirs.loss])
    yield "loss: softmax, cross-entropy, mean", LOSS, storage.sensitive, losses, mean
    probabilities = exponentials / totals
    probabilities[rows, labels] -= 1

    grads = storage.weights if storage.transient_weights else storage.gradients
    for k in range(depth, 0, -1):
        name = "logits" if k == depth else f"layer{k}.preactivation"
        pair = _pair(ours.activation_gradients, theirs.activation_gradients, name)
        if k == depth:
            what, start = "backward, loss: gradient of the logits", probabilities * (scale / len(labels))
            yield what, f"gradient of {name}", storage.activation_gradients, pair, start
        else:
            yield (
                f"backward, layer {k}: activation function",
                f"gradient of {name}",
                storage.activation_gradients,
                pair,
                None,
            )
        weight, bias = f"layer{k}.weight", f"layer{k}.bias"
        exact = fixed.matmul(below[k].T, flowing[name])
        pair = _pair(ours.gradients, theirs.gradients, weight)
        yield f"backward, layer {k}: matrix product for the weights", f"gradient of {weight}", grads, pair, exact
        pair = _pair(ours.gradients, theirs.gradients, bias)
        exact = fixed.sum(flowing[name], 0)
        yield f"backward, layer {k}: sum over the batch for the bias", f"gradient of {bias}", grads, pair, exact
        if k > 1:
            output = f"layer{k - 1}.output"
            exact = fixed.matmul(flowing[name], wide[weight].T)
            pair = _pair(ours.activation_gradients, theirs.activation_gradients, output)
            what = f"backward, layer {k}: matrix product for the layer below"
            yield what, f"gradient of {output}", storage.activation_gradients, pair, exact

    formats = {"first_moment": storage.first_moment, "second_moment": storage.second_moment}
    if ours.buffers.keys() != theirs.buffers.keys():
        zero, one = np.zeros(1), np.ones(1)
        pair = (one, zero) if ours.buffers else (zero, one)
        yield "loss scale: whether the step is made", "step made", storage.updated, pair, None
        return
    for buffer, values in ours.buffers.items():
        for name in values:
            pair = _pair(values, theirs.buffers[buffer], name)
            what = f"optimizer: {buffer.replace('_', ' ')}"
            yield what, f"{buffer} of {name}", formats.get(buffer, storage.updated), pair, None


def _pair(ours: Values, theirs: Values, name: str) -> tuple[Array, Array]:
    return ours[name], theirs[name]


def _wide(values: Parameters) -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in values.items()}


def relative_distance(ours: Values, theirs: Values) -> float:
    """Return ||w - w'|| / ||w|| of all parameters together; NaN where one of them is not finite."""
    with np.errstate(all="ignore"):
        apart = math.fsum(float(fixed.sum(np.square(a.astype(np.float64) - theirs[n]))) for n, a in ours.items())
        size = math.fsum(fixed.dot(wide, wide) for wide in _wide(ours).values())
    return math.sqrt(apart / size) if size and math.isfinite(apart) else math.nan
