"""Small models in NumPy with backward passes written by hand.

A model is a frozen description (`MLP`, `LeastSquares`, `FineTuning`, `Transformer`) whose methods take the parameters:
a mapping from names to arrays; all models have the same ones (`Model`). Everything that a training step computes and
keeps has a name, and the names are the places where it can be stored in another format (`places`):

- parameters and their gradients: ``layer1.weight``, ``layer1.bias``, ...;
- activations and their gradients: ``layer1.preactivation``, ``layer1.output``, ..., ``logits``.

The arithmetic happens in the dtype of the parameters. Without a `StorageConfig` nothing is rounded, so that a backward
pass can be checked against differences in float64; with one the arithmetic is float32 and each value is rounded where
it is stored, once. Overflow is not hidden: a caller who expects it, as the training loop does, says so with
`numpy.errstate`.
"""

from precision_lab.training.models.fine_tuning import FineTuning
from precision_lab.training.models.interface import Array, Gradients, Labels, Model, Parameters
from precision_lab.training.models.least_squares import LeastSquares
from precision_lab.training.models.mlp import MLP
from precision_lab.training.models.places import weights_copy
from precision_lab.training.models.transformer import Transformer

__all__ = [
    "MLP",
    "Array",
    "FineTuning",
    "Gradients",
    "Labels",
    "LeastSquares",
    "Model",
    "Parameters",
    "Transformer",
    "weights_copy",
]
