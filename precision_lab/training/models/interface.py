"""What all models have in common: their methods, what these return, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from precision_lab.training.storage import FP32, StorageConfig

Array: TypeAlias = npt.NDArray[Any]
Labels: TypeAlias = npt.NDArray[np.integer[Any]]
Parameters: TypeAlias = Mapping[str, Array]

_LARGEST = {np.dtype(real): float(np.finfo(real).max) for real in (np.float32, np.float64)}


@dataclass(frozen=True, eq=False)
class Gradients:
    """The mean loss of a batch and its derivatives.

    Attributes
    ----------
    loss : float
        Mean loss over the batch, without the loss scale.
    weights : mapping of str to array
        Derivative of ``loss_scale * mean loss`` by each parameter, biases included; names, shapes and dtype are those
        of the parameters.
    activations : mapping of str to array
        Derivative of ``loss_scale * mean loss`` by each activation, of its name and shape. The mean is part of it: the
        row of an example is 1/batch of the derivative of that example's own loss.

    """

    loss: float
    weights: Parameters
    activations: Mapping[str, Array]


class Model(Protocol):
    """A model: a description of its shape, whose methods take the parameters.

    `inputs` and `targets` are what the data set of the model has: rows of features and classes (`MLP`) or values
    (`LeastSquares`), windows of characters and the next ones (`Transformer`).
    """

    def init(self, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
        """Draw the parameters, by name; float32 and float64 ones of a seed start at the same point."""
        ...

    def forward(self, parameters: Parameters, inputs: Array, storage: StorageConfig | None = None) -> dict[str, Array]:
        """Compute every activation, by name, in the order of the computation."""
        ...

    def loss(self, parameters: Parameters, inputs: Array, targets: Array) -> float:
        """Mean loss, computed in the dtype of the parameters and rounded nowhere else."""
        ...

    def loss_and_gradients(
        self,
        parameters: Parameters,
        inputs: Array,
        targets: Array,
        *,
        loss_scale: float = 1.0,
        storage: StorageConfig | None = None,
    ) -> Gradients:
        """Mean loss and its derivatives by all parameters and all activations.

        The parameters are taken as they are (`weights_copy` rounds them); with a `storage` they are float32, without
        one nothing is rounded.
        """
        ...

    def accuracy(self, parameters: Parameters, inputs: Array, targets: Array) -> float | None:
        """Share of the predictions that are right; None where predictions are values and not classes."""
        ...


def parameter_dtype(parameters: Parameters) -> np.dtype[Any]:
    """Return the one dtype of all parameters, which is that of the arithmetic.

    Raises
    ------
    ValueError
        If they differ, or are neither float32 nor float64. A narrower format is stored as float32 values that it can
        represent: NumPy's own float16 arithmetic rounds at places that have no name.

    """
    dtypes = {array.dtype for array in parameters.values()}
    if len(dtypes) != 1:
        raise ValueError(f"the parameters must share one dtype, got {sorted(map(str, dtypes))}")
    return checked_dtype(dtypes.pop())


def checked_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the dtype if parameters can have it, else raise a ValueError."""
    dtype = np.dtype(dtype)
    if dtype not in _LARGEST:
        raise ValueError(f"the dtype of the parameters must be float32 or float64, got {dtype}")
    return dtype


def arithmetic(parameters: Parameters, storage: StorageConfig | None) -> tuple[np.dtype[Any], StorageConfig]:
    """Return the dtype to compute in and the formats to store in; None for the latter: whatever the dtype holds.

    Raises
    ------
    ValueError
        The parameters are not all float32, or, without a storage, all float64.

    """
    dtype = parameter_dtype(parameters)
    if storage is None:
        return dtype, FP32  # which rounds nothing
    if dtype != np.float32:
        raise ValueError(f"with a storage the parameters must be float32, got {dtype}; leave storage out for float64")
    return dtype, storage


def checked_loss_scale(loss_scale: float, dtype: np.dtype[Any]) -> float:
    """Return the scale if it is positive and finite in the dtype, else raise a ValueError."""
    largest = _LARGEST[dtype]
    if not 0.0 < loss_scale <= largest:
        raise ValueError(f"loss_scale must be positive and at most {largest} (the largest {dtype}), got {loss_scale!r}")
    return float(loss_scale)
