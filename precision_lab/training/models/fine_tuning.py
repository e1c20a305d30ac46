"""Fine-tuning one matrix: weights that are large beside what is still to be learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from precision_lab.numerics import fixed
from precision_lab.training.models.interface import (
    Array,
    Gradients,
    Parameters,
    arithmetic,
    checked_dtype,
    checked_loss_scale,
)
from precision_lab.training.models.parts import mean_loss, residuals_of
from precision_lab.training.models.places import linear, product, rounded, stored_inputs, weight_gradient
from precision_lab.training.storage import FP32, StorageConfig


@dataclass(frozen=True, eq=False)
class FineTuning:
    """Predict ``inputs @ weight``, starting from a matrix that is there; the loss is the share of the change left.

    The loss of an example is its squared residual, summed over the outputs, divided by the squared Frobenius norm of
    the change that is to be learned. Over n inputs X with X.T @ X = n times the identity, such as those of
    `precision_lab.training.datasets.fine_tuning_task`, the mean loss is the squared distance that is left:
    ``||weight - target||^2 / ||start - target||^2``, 1 at the start and 0 at the target.

    The places where a value is rounded, in their order:

    ========================================================  =================================
    value                                                     role
    ========================================================  =================================
    inputs                                                    activations
    predictions                                               activations
    residuals (prediction - target), losses, their mean       sensitive
    gradient of the predictions                               activation_gradients
    gradient of the weight                                    gradients (see `weight_gradient`)
    operands and sums of the matrix products                  see `product`
    ========================================================  =================================

    The sum of the squares in a loss is float32, in order, and rounded once.

    Parameters
    ----------
    start : array, shape (inputs, outputs)
        The weight at the start; float32.
    change : float
        Frobenius norm of target - start, as a share of that of start.

    Raises
    ------
    ValueError
        If `start` is no matrix of float32 or `change` is not positive and finite.

    """

    start: Array
    change: float

    def __post_init__(self) -> None:
        if self.start.ndim != 2 or not self.start.size or self.start.dtype != np.float32:
            raise ValueError(f"start must be a float32 matrix, got {self.start.dtype} of shape {self.start.shape}")
        if not 0.0 < self.change < np.inf:
            raise ValueError(f"change must be positive and finite, got {self.change!r}")

    def init(self, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
        """Return ``weight``, a copy of the start, whatever the seed is."""
        return {"weight": self.start.astype(checked_dtype(dtype))}

    def forward(self, parameters: Parameters, inputs: Array, storage: StorageConfig | None = None) -> dict[str, Array]:
        """Compute the ``predictions``, shape (batch, outputs); everything else is as in `MLP.forward`."""
        dtype, places = arithmetic(parameters, storage)
        inputs = stored_inputs(inputs, len(self.start), dtype, places)
        return {"predictions": linear(inputs, parameters["weight"], None, places)}

    def loss(self, parameters: Parameters, inputs: Array, targets: Array) -> float:
        """Mean over a batch of the losses, in the dtype of the parameters.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`.
        inputs : array, shape (batch, inputs)
            One example per row.
        targets : array, shape (batch, outputs)
            What should have been predicted.

        Raises
        ------
        ValueError
            If inputs or targets do not fit.

        """
        residuals = residuals_of(self.forward(parameters, inputs)["predictions"], targets)
        return mean_loss(self._losses(residuals, FP32))

    def loss_and_gradients(
        self,
        parameters: Parameters,
        inputs: Array,
        targets: Array,
        *,
        loss_scale: float = 1.0,
        storage: StorageConfig | None = None,
    ) -> Gradients:
        """Mean loss and its derivatives by ``weight`` and ``predictions``; arguments and errors as of `MLP`'s."""
        dtype, places = arithmetic(parameters, storage)
        scale = checked_loss_scale(loss_scale, dtype)
        inputs = stored_inputs(inputs, len(self.start), dtype, places)
        residuals = residuals_of(linear(inputs, parameters["weight"], None, places), targets, places)
        factor = dtype.type(2 * scale / (len(inputs) * self._square))
        gradient = rounded(residuals * factor, places.activation_gradients)
        exact = product(inputs.T, gradient, places, gradient="b")
        return Gradients(
            mean_loss(self._losses(residuals, places), places),
            {"weight": weight_gradient(exact, places)},
            {"predictions": gradient},
        )

    def accuracy(self, parameters: Parameters, inputs: Array, targets: Array) -> None:
        """Return None: a predicted value is not right or wrong."""

    def _losses(self, residuals: Array, storage: StorageConfig) -> Array:
        squares = fixed.sum(np.square(residuals), 1)
        return rounded(squares / residuals.dtype.type(self._square), storage.sensitive)

    @cached_property
    def _square(self) -> float:
        """Squared Frobenius norm of what is to be learned."""
        wide = self.start.astype(np.float64)
        return self.change * self.change * fixed.dot(wide, wide)
