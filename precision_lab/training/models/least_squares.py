"""Linear regression: the smallest model in which an update can be lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precision_lab.training.models.interface import (
    Array,
    Gradients,
    Parameters,
    arithmetic,
    checked_dtype,
    checked_loss_scale,
)
from precision_lab.training.models.parts import mean_loss, residuals_of
from precision_lab.training.models.places import product, rounded, stored_inputs, weight_gradient
from precision_lab.training.storage import FP32, StorageConfig


@dataclass(frozen=True)
class LeastSquares:
    """Predict ``inputs @ weight``; the loss of an example is half the square of its residual.

    The places where a value is rounded, in their order:

    ====================================================  =================================
    value                                                 role
    ====================================================  =================================
    inputs                                                activations
    predictions                                           activations
    residuals (prediction - target), losses, their mean   sensitive
    gradient of the predictions                           activation_gradients
    gradient of the weight                                gradients (see `weight_gradient`)
    operands and sums of the matrix products              see `product`
    ====================================================  =================================

    Parameters
    ----------
    features : int
        Number of inputs.

    Raises
    ------
    ValueError
        If there is none.

    """

    features: int = 10

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"features must be at least 1, got {self.features!r}")

    def init(self, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
        """Return ``weight``, zeros of shape (features,), whatever the seed is: the problem is convex."""
        return {"weight": np.zeros(self.features, checked_dtype(dtype))}

    def forward(self, parameters: Parameters, inputs: Array, storage: StorageConfig | None = None) -> dict[str, Array]:
        """Compute the ``predictions``, shape (batch,); everything else is as in `MLP.forward`."""
        dtype, places = arithmetic(parameters, storage)
        return {"predictions": self._predict(parameters, stored_inputs(inputs, self.features, dtype, places), places)}

    def loss(self, parameters: Parameters, inputs: Array, targets: Array) -> float:
        """Mean over a batch of half the squared residuals, in the dtype of the parameters.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`.
        inputs : array, shape (batch, features)
            One example per row.
        targets : array, shape (batch,)
            What should have been predicted.

        Raises
        ------
        ValueError
            If inputs or targets do not fit.

        """
        return mean_loss(_losses(residuals_of(self.forward(parameters, inputs)["predictions"], targets), FP32))

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
        inputs = stored_inputs(inputs, self.features, dtype, places)
        residuals = residuals_of(self._predict(parameters, inputs, places), targets, places)
        gradient = rounded(residuals * dtype.type(scale / len(inputs)), places.activation_gradients)
        exact = product(inputs.T, gradient[:, np.newaxis], places, gradient="b")[:, 0]
        return Gradients(
            mean_loss(_losses(residuals, places), places),
            {"weight": weight_gradient(exact, places)},
            {"predictions": gradient},
        )

    def accuracy(self, parameters: Parameters, inputs: Array, targets: Array) -> None:
        """Return None: a predicted value is not right or wrong."""

    def _predict(self, parameters: Parameters, inputs: Array, storage: StorageConfig) -> Array:
        return rounded(product(inputs, parameters["weight"][:, np.newaxis], storage)[:, 0], storage.activations)


def _losses(residuals: Array, storage: StorageConfig) -> Array:
    return rounded(np.square(residuals) / 2, storage.sensitive)
