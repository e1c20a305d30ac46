"""The parts that models are built of, each a forward and a backward function of arrays.

Sums and elementary functions are those of `precision_lab.numerics.fixed`. What is written out here is what happens; of
float32 it is one compiled call of `precision_lab.numerics.layers` with the same bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from precision_lab.numerics import fixed, layers
from precision_lab.training.models.interface import Array, Labels
from precision_lab.training.models.places import in_one_call, operations_are_separate, rounded
from precision_lab.training.storage import FP32, StorageConfig


def softmax_cross_entropy(logits: Array, labels: Labels, storage: StorageConfig = FP32) -> tuple[Array, Array]:
    """Cross-entropy of each example, and the probabilities, from shifted logits.

    The row maximum is subtracted first, so the exponentials lie in [0, 1] and their sum is at least 1: nothing
    overflows as long as the logits and their differences are finite. Rounded into ``storage.sensitive``: the shifted
    logits, the exponentials, their sums, the losses and the probabilities.

    Parameters
    ----------
    logits : array, shape (batch, classes)
        float32 or float64.
    labels : integer array, shape (batch,)
        Classes from 0.
    storage : StorageConfig
        Default: nothing is rounded.

    Returns
    -------
    losses : array, shape (batch,)
        ``log(sum(exp(logits))) - logits[label]`` of each row, in the dtype of the logits.
    probabilities : array, shape (batch, classes)
        Softmax of each row, in the dtype of the logits; a new array.

    Raises
    ------
    ValueError
        If the labels do not fit the logits.

    """
    batch, classes = logits.shape
    if labels.shape != (batch,):
        raise ValueError(f"labels must have shape ({batch},), one per example, got {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    fmt = storage.sensitive
    shifted = rounded(logits - logits.max(axis=1, keepdims=True), fmt)
    exponentials = rounded(fixed.exp(shifted), fmt)
    totals = rounded(fixed.sum(exponentials, 1, keepdims=True), fmt)
    losses = rounded(fixed.log(totals[:, 0]) - shifted[np.arange(batch), labels], fmt)
    return losses, rounded(exponentials / totals, fmt)


def residuals_of(predictions: Array, targets: Array, storage: StorageConfig = FP32) -> Array:
    """Return predictions less targets; raises a ValueError where these do not have the shape of those."""
    if targets.shape != predictions.shape:
        each = "one" if predictions.ndim == 1 else "one row"
        raise ValueError(f"targets must have shape {predictions.shape}, {each} per example, got {targets.shape}")
    return rounded(predictions - targets.astype(predictions.dtype, copy=False), storage.sensitive)


def mean_loss(losses: Array, storage: StorageConfig = FP32) -> float:
    """Return the mean of the losses, rounded into ``storage.sensitive``."""
    return float(rounded(fixed.mean(losses), storage.sensitive))


def logits_gradient(probabilities: Array, labels: Labels, loss_scale: float, storage: StorageConfig) -> Array:
    """Return ``(probabilities - onehot(labels)) * (loss_scale / batch)``; overwrites the probabilities.

    As the frameworks compute it. In float32 the entry of the right class is therefore a multiple of 2^-24 times that
    factor, and exactly 0 once its probability rounds to 1, while the other entries of its row can be far smaller and
    not 0. Rounded into ``storage.activation_gradients``, once.
    """
    batch = len(labels)
    probabilities[np.arange(batch), labels] -= 1
    probabilities *= probabilities.dtype.type(loss_scale / batch)
    return rounded(probabilities, storage.activation_gradients)


def mean_cross_entropy(logits: Array, labels: Labels, loss_scale: float, storage: StorageConfig) -> tuple[float, Array]:
    """Return the mean loss of a batch and its gradient by the logits, times the scale.

    `softmax_cross_entropy`, `mean_loss` and `logits_gradient`, whose roundings and errors it has.
    """
    if in_one_call(logits) and labels.shape == logits.shape[:1] and labels.dtype.kind in "iu":
        factor = loss_scale / len(labels)
        found = layers.cross_entropy(logits, labels, factor, storage.sensitive, storage.activation_gradients)
        if found is not None:
            return found
    losses, probabilities = softmax_cross_entropy(logits, labels, storage)
    return mean_loss(losses, storage), logits_gradient(probabilities, labels, loss_scale, storage)


def relu_gradient(gradient: Array, x: Array) -> Array:
    """Return the gradient where x is positive or NaN, else 0.

    A selection, not a product with 0 or 1: it leaves no -0.0 behind and lets a NaN through.
    """
    if in_one_call(x):
        return layers.relu_gradient(gradient, x)
    return np.where(x <= 0, x.dtype.type(0), gradient)


def gelu_and_slope(x: Array) -> tuple[Array, Array]:
    """Return `gelu` and `gelu_slope`."""
    return (gelu(x), gelu_slope(x)) if operations_are_separate() else layers.gelu(x)


def gelu(x: Array) -> Array:
    """Return the Gaussian error linear unit in its tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    result: Array = 0.5 * x * (1 + fixed.tanh(_GELU_SLOPE * x * (1 + _GELU_CUBE * np.square(x))))
    return result


def gelu_slope(x: Array) -> Array:
    """Return the derivative of `gelu`."""
    squares = np.square(x)
    tanh = fixed.tanh(_GELU_SLOPE * x * (1 + _GELU_CUBE * squares))
    inner = _GELU_SLOPE * (1 + 3 * _GELU_CUBE * squares)
    result: Array = 0.5 * (1 + tanh) + 0.5 * x * (1 - np.square(tanh)) * inner
    return result


_GELU_SLOPE, _GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


class Normalised(NamedTuple):
    """What `layer_norm` hands to its backward pass."""

    values: Array
    deviations: Array


def layer_norm(x: Array, weight: Array, bias: Array, storage: StorageConfig) -> tuple[Array, Normalised]:
    """Bring each row to mean 0 and variance 1, then scale and shift it (Ba, Kiros and Hinton 2016, arXiv 1607.06450).

    Rounded into ``storage.sensitive``: the means, the variances and the normalised rows ``(x - mean) / sqrt(variance +
    1e-5)``; the result into ``storage.activations``.

    Parameters
    ----------
    x : array, shape (rows, width)
        The rows.
    weight, bias : array, shape (width,)
        Scale and shift.
    storage : StorageConfig
        The formats.

    Returns
    -------
    result : array, shape (rows, width)
        In the dtype of x.
    normalised : Normalised
        For `layer_norm_gradients`.

    """
    fmt = storage.sensitive
    if in_one_call(x):
        result, *kept = layers.layer_norm(x, weight, bias, _EPSILON, fmt, storage.activations)
        return result, Normalised(*kept)
    centred = x - rounded(fixed.mean(x, -1, keepdims=True), fmt)
    variances = rounded(fixed.mean(np.square(centred), -1, keepdims=True), fmt)
    deviations = np.sqrt(variances + _EPSILON)
    values = rounded(centred / deviations, fmt)
    return rounded(values * weight + bias, storage.activations), Normalised(values, deviations)


_EPSILON = 1e-5


def layer_norm_gradients(
    gradient: Array, normalised: Normalised, weight: Array, storage: StorageConfig
) -> tuple[Array, Array, Array]:
    """Return the derivatives by x, weight and bias of `layer_norm`, from the one by its result.

    Rounded into ``storage.sensitive``: the two means over each row. The caller stores the results.
    """
    fmt = storage.sensitive
    values, deviations = normalised
    if in_one_call(gradient):
        return layers.layer_norm_gradients(gradient, values, deviations, weight, fmt)
    scaled = gradient * weight
    mean = rounded(fixed.mean(scaled, -1, keepdims=True), fmt)
    slope = rounded(fixed.mean(scaled * values, -1, keepdims=True), fmt)
    by_x: Array = (scaled - mean - values * slope) / deviations
    return by_x, fixed.sum(gradient * values, 0), fixed.sum(gradient, 0)


def causal_softmax(scores: Array, storage: StorageConfig) -> Array:
    """Return the softmax of each row over its columns up to the diagonal; what lies beyond is 0.

    Rounded into ``storage.sensitive``: the scores minus their maximum, the exponentials and their sums; the quotients
    into ``storage.activations``.

    Parameters
    ----------
    scores : array, shape (..., n, n)
        Row i is what position i asks of each position.
    storage : StorageConfig
        The formats.

    """
    fmt = storage.sensitive
    if in_one_call(scores):
        return layers.causal_softmax(scores, fmt, storage.activations)
    seen = np.tri(scores.shape[-1], dtype=bool)
    shifted = rounded(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf, where=seen), fmt)
    exponentials = rounded(np.where(seen, fixed.exp(shifted), shifted.dtype.type(0)), fmt)
    totals = rounded(fixed.sum(exponentials, -1, keepdims=True), fmt)
    return rounded(exponentials / totals, storage.activations)


def causal_softmax_gradient(gradient: Array, probabilities: Array, storage: StorageConfig) -> Array:
    """Return the derivative by the scores of `causal_softmax`, from the one by its result.

    Rounded into ``storage.sensitive``: the sum over each row; the result into ``storage.activation_gradients``.
    """
    if in_one_call(gradient):
        return layers.causal_softmax_gradient(gradient, probabilities, storage.sensitive, storage.activation_gradients)
    sums = rounded(fixed.sum(gradient * probabilities, -1, keepdims=True), storage.sensitive)
    return rounded(probabilities * (gradient - sums), storage.activation_gradients)
