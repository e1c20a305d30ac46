"""Multilayer perceptrons, of any depth; without a hidden layer one is softmax regression."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from precision_lab.numerics import fixed, layers
from precision_lab.training.flat import Views
from precision_lab.training.models.interface import (
    Array,
    Gradients,
    Labels,
    Parameters,
    arithmetic,
    checked_dtype,
    checked_loss_scale,
)
from precision_lab.training.models.parts import mean_cross_entropy, mean_loss, relu_gradient, softmax_cross_entropy
from precision_lab.training.models.places import (
    linear,
    linear_gradient,
    linear_weight_gradients,
    rounded,
    stored_inputs,
    sums_in_one_call,
)
from precision_lab.training.storage import FP32, StorageConfig

ACTIVATIONS = ("relu", "sigmoid")
"""The accepted values of `MLP.activation`."""


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron that classifies, with softmax and cross-entropy.

    Layer k computes ``preactivation = input @ weight + bias``; its ``output``, max(preactivation, 0) or
    1 / (1 + exp(-preactivation)), is the input of the next. The preactivation of the last layer is called ``logits``
    and has no activation function.

    The places where a value is rounded, in their order:

    =====================================================  =================================
    value                                                  role
    =====================================================  =================================
    inputs                                                 activations
    each preactivation, after the bias is added; logits    activations
    each output of a sigmoid (a ReLU's is stored already)  activations
    softmax and losses: see `softmax_cross_entropy`        sensitive
    gradient of the logits                                 activation_gradients
    gradient of each output                                activation_gradients
    gradient of each preactivation (behind a ReLU stored)  activation_gradients
    gradients of weights and biases                        gradients (see `weight_gradient`)
    operands and sums of the matrix products               see `product`
    =====================================================  =================================

    The sum over the batch in the gradient of a bias is float32, in order, whatever the accumulator is.

    Parameters
    ----------
    sizes : tuple of int
        Widths from the inputs to the classes, at least two. ``(64, 10)`` is softmax regression.
    activation : str
        ``relu`` or ``sigmoid``.

    Raises
    ------
    ValueError
        If `sizes` are not two or more positive integers, or the activation is another one.

    """

    sizes: tuple[int, ...] = (64, 64, 10)
    activation: str = "relu"

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or any(size < 1 for size in self.sizes):
            raise ValueError(
                f"sizes must be two or more positive integers, inputs first, classes last; got {self.sizes!r}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.sizes) - 1

    def init(self, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
        """Draw the parameters.

        Weights are normal with mean 0 and standard deviation ``sqrt(2 / inputs of the layer)``, drawn in float64 and
        rounded once to `dtype`, so that float32 and float64 models of one seed start at the same point; biases are 0.

        Parameters
        ----------
        seed : int
            Seed of `numpy.random.default_rng`.
        dtype : dtype
            float32 or float64.

        Returns
        -------
        dict of str to array
            ``layer<k>.weight`` of shape (inputs, outputs) and ``layer<k>.bias`` of shape (outputs,), for k from 1.

        Raises
        ------
        ValueError
            `dtype` is another one.

        References
        ----------
        K. He, X. Zhang, S. Ren and J. Sun, "Delving Deep into Rectifiers", ICCV 2015, equation 10.

        """
        target = checked_dtype(dtype)
        rng = np.random.default_rng(seed)
        parameters: dict[str, Array] = {}
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(self.sizes), start=1):
            weight = rng.standard_normal((inputs, outputs)) * math.sqrt(2.0 / inputs)
            parameters[f"layer{layer}.weight"] = weight.astype(target)
            parameters[f"layer{layer}.bias"] = np.zeros(outputs, target)
        return parameters

    def forward(self, parameters: Parameters, inputs: Array, storage: StorageConfig | None = None) -> dict[str, Array]:
        """Compute every activation.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`; taken as they are.
        inputs : array, shape (batch, features)
            Converted to the dtype of the parameters.
        storage : StorageConfig, optional
            The formats; default: nothing is rounded.

        Returns
        -------
        dict of str to array, each of shape (batch, width)
            ``layer1.preactivation``, ``layer1.output``, ..., ``logits``, in the order of the computation.

        Raises
        ------
        ValueError
            If the parameters are not all float32 (or all float64 without a storage), or the inputs do not fit.

        """
        dtype, places = arithmetic(parameters, storage)
        return self._forward(parameters, stored_inputs(inputs, self.sizes[0], dtype, places), places)

    def _forward(self, parameters: Parameters, inputs: Array, storage: StorageConfig) -> dict[str, Array]:
        activations: dict[str, Array] = {}
        current = inputs
        for layer in range(1, self.depth + 1):
            weight, bias = parameters[f"layer{layer}.weight"], parameters[f"layer{layer}.bias"]
            preactivation = linear(current, weight, bias, storage)
            if layer == self.depth:
                activations["logits"] = preactivation
            else:
                if self.activation == "relu":
                    current = np.maximum(preactivation, 0)
                else:
                    current = rounded(fixed.sigmoid(preactivation), storage.activations)
                activations[f"layer{layer}.preactivation"] = preactivation
                activations[f"layer{layer}.output"] = current
        return activations

    def loss(self, parameters: Parameters, inputs: Array, targets: Labels) -> float:
        """Mean softmax cross-entropy over a batch.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`; their dtype is that of the arithmetic.
        inputs : array, shape (batch, features)
            One example per row.
        targets : integer array, shape (batch,)
            Classes from 0.

        Returns
        -------
        float
            The mean, exactly as computed in the dtype of the parameters.

        Raises
        ------
        ValueError
            As `forward` and `softmax_cross_entropy`.

        """
        losses, _ = softmax_cross_entropy(self.forward(parameters, inputs)["logits"], targets)
        return mean_loss(losses)

    def loss_and_gradients(
        self,
        parameters: Parameters,
        inputs: Array,
        targets: Labels,
        *,
        loss_scale: float = 1.0,
        storage: StorageConfig | None = None,
    ) -> Gradients:
        """Mean softmax cross-entropy over a batch and its derivatives by all parameters and all activations.

        The backward pass starts from `logits_gradient`. The ReLU passes no gradient where its input is 0 or less.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`; taken as they are. Their dtype is that of the arithmetic and of the gradients.
        inputs : array, shape (batch, features)
            One example per row.
        targets : integer array, shape (batch,)
            Classes from 0.
        loss_scale : float
            Positive and finite in the dtype of the parameters. The gradients are those of ``loss_scale * mean loss``;
            a power of two changes no significand as long as nothing underflows or overflows.
        storage : StorageConfig, optional
            The formats; default: nothing is rounded.

        Returns
        -------
        Gradients
            The loss without the scale; the gradients with it.

        Raises
        ------
        ValueError
            If `loss_scale` is out of range, and as `forward` and `softmax_cross_entropy`.

        """
        if isinstance(parameters, Views) and storage is not None:
            found = self._in_one_call(parameters, inputs, targets, loss_scale, storage)
            if found is not None:
                return found
        dtype, places = arithmetic(parameters, storage)
        scale = checked_loss_scale(loss_scale, dtype)
        first = stored_inputs(inputs, self.sizes[0], dtype, places)
        activations = self._forward(parameters, first, places)
        loss, gradient = mean_cross_entropy(activations["logits"], targets, scale, places)

        weights: dict[str, Array] = {}
        gradients = {"logits": gradient}
        for layer in range(self.depth, 0, -1):
            below = activations[f"layer{layer - 1}.output"] if layer > 1 else first
            weights[f"layer{layer}.weight"], weights[f"layer{layer}.bias"] = linear_weight_gradients(
                below, gradient, places
            )
            if layer > 1:
                output_gradient = linear_gradient(gradient, parameters[f"layer{layer}.weight"], places)
                if self.activation == "relu":
                    gradient = relu_gradient(output_gradient, activations[f"layer{layer - 1}.preactivation"])
                else:
                    gradient = rounded(output_gradient * (below * (1 - below)), places.activation_gradients)
                gradients[f"layer{layer - 1}.output"] = output_gradient
                gradients[f"layer{layer - 1}.preactivation"] = gradient
        return Gradients(
            loss,
            {name: weights[name] for name in parameters},
            {name: gradients[name] for name in activations},
        )

    def _in_one_call(
        self, parameters: Views, inputs: Array, targets: Labels, loss_scale: float, storage: StorageConfig
    ) -> Gradients | None:
        """Do the same by one compiled call; None where there is none, or where there is an error to be found."""
        if (
            self.activation != "relu"
            or not sums_in_one_call(parameters.flat, storage)
            or list(parameters.shapes.items()) != _parameter_shapes(self.sizes)
            or inputs.shape != (*targets.shape, self.sizes[0])
            or not inputs.size
            or targets.dtype.kind not in "iu"
        ):
            return None
        formats = layers.PerceptronFormats(
            storage.activations,
            storage.sensitive,
            storage.activation_gradients,
            storage.weights if storage.transient_weights else FP32.weights,
            storage.gradients,
            storage.operands,
            storage.gradient_operands,
        )
        factor = checked_loss_scale(loss_scale, parameters.flat.dtype) / len(inputs)
        inputs = inputs.astype(np.float32, copy=False)
        found = layers.perceptron(parameters.flat, self.sizes, inputs, targets, factor, formats)
        if found is None:
            return None
        loss, by_parameters, by_activations = found
        return Gradients(
            loss,
            Views(by_parameters, parameters.shapes),
            Views(by_activations, _activation_shapes(self.sizes, len(inputs))),
        )

    def accuracy(self, parameters: Parameters, inputs: Array, targets: Labels) -> float:
        """Share of the examples whose largest logit is that of the right class.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`.
        inputs : array, shape (batch, features)
            One example per row.
        targets : integer array, shape (batch,)
            Classes from 0.

        Returns
        -------
        float
            Between 0 and 1; ties go to the lower class.

        Raises
        ------
        ValueError
            As `forward`, or if the labels are not one per example.

        """
        if targets.shape != inputs.shape[:1]:
            raise ValueError(f"labels must have shape {inputs.shape[:1]}, one per example, got {targets.shape}")
        return float(np.mean(self.forward(parameters, inputs)["logits"].argmax(axis=1) == targets))


@lru_cache(maxsize=256)
def _parameter_shapes(sizes: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
        shapes += [(f"layer{layer}.weight", (inputs, outputs)), (f"layer{layer}.bias", (outputs,))]
    return shapes


@lru_cache(maxsize=256)
def _activation_shapes(sizes: tuple[int, ...], rows: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, width in enumerate(sizes[1:-1], start=1):
        shapes |= {f"layer{layer}.{name}": (rows, width) for name in ("preactivation", "output")}
    return shapes | {"logits": (rows, sizes[-1])}
