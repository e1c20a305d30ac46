"""One training step under a storage configuration, from the stored weights to the stored weights.

The order is that of the frameworks (torch.amp, apex, Megatron): forward and backward on the weights as they are
stored, with the loss multiplied by the loss scale; the gradients of the micro-batches added up in the format in which
gradients are kept; a look for infinities and NaN, if the loss is scaled; then the update, in which the gradients are
divided by the scale in float32, or no update at all; then the scaler is told (Micikevicius et al. 2018, sections 3.1
and 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from precision_lab.analysis.loss_scalers import LossScale, NoLossScale
from precision_lab.numerics.codec import codec, largest_magnitude
from precision_lab.training.flat import Views, flatten
from precision_lab.training.models import Array, Gradients, Model, Parameters
from precision_lab.training.optimizer_state import (
    Kept,
    OptimizerState,
    advance,
    kept,
    start,
    updated_parameters,
    visible_weights,
)
from precision_lab.training.optimizers import Optimizer
from precision_lab.training.storage import StorageConfig


@dataclass(frozen=True, eq=False)
class Recipe:
    """What does not change during a run.

    Attributes
    ----------
    model : Model
        What is trained.
    optimizer : Optimizer
        How.
    storage : StorageConfig
        In which formats.
    shapes : mapping of str to tuple of int
        Of the parameters.
    seed : int
        Of the stochastic update.

    """

    model: Model
    optimizer: Optimizer
    storage: StorageConfig
    shapes: Mapping[str, tuple[int, ...]]
    seed: int = 0

    @cached_property
    def kept(self) -> Kept:
        """What every step looks up."""
        return kept(self.optimizer, self.storage)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What one step hands to the next.

    Attributes
    ----------
    optimizer : OptimizerState
        Every array that a run holds, in its own dtype.
    scaler : LossScale
        Its `loss_scale` is that of the next step.

    """

    optimizer: OptimizerState
    scaler: LossScale


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What happened in a step.

    Attributes
    ----------
    loss : float
        Mean loss of the batch, without factor and scale.
    loss_scale : float
        The scale that was used.
    max_abs : float
        Largest magnitude among the gradients of the parameters, the scale divided out; infinity where one is infinite
        or NaN.
    skipped : bool
        Whether the update was left out.
    gradients : Gradients
        Of the last micro-batch, multiplied by factor and scale.
    intended : float32 array or None
        What was to be added to the parameters, flat; None in a skipped step.

    """

    loss: float
    loss_scale: float
    max_abs: float
    skipped: bool
    gradients: Gradients
    intended: Array | None


def begin(parameters: Parameters, recipe: Recipe, scaler: LossScale | None = None) -> TrainingState:
    """Return the state before the first step; the scaler is the storage's unless another is given."""
    scaler = recipe.storage.loss_scale if scaler is None else scaler
    return TrainingState(start(flatten(parameters), recipe.optimizer, recipe.storage), scaler)


def unscaling(loss_scale: float) -> float:
    """Return what gradients are multiplied by in float32 to divide the loss scale out."""
    return 1.0 if loss_scale == 1 else float(np.float32(1 / loss_scale))


def training_step(
    state: TrainingState,
    recipe: Recipe,
    inputs: Array,
    targets: Array,
    *,
    micro_batches: int = 1,
    learning_rate: float | None = None,
    loss_factor: float = 1.0,
) -> tuple[TrainingState, StepRecord]:
    """Make one step on a batch.

    Without loss scaling (`NoLossScale`) nobody looks for infinities: the update is made whatever the gradients are.

    Parameters
    ----------
    state : TrainingState
        Before the step; it stays as it is.
    recipe : Recipe
        The one that it was begun with.
    inputs, targets : arrays
        A batch, examples first.
    micro_batches : int
        Forward and backward are run on this many parts of the batch, of equal length, one after the other; their
        gradients are added up in the format of the gradients, every sum rounded.
    learning_rate : float, optional
        In place of the optimizer's, for a schedule.
    loss_factor : float
        Positive; the loss that is minimised is `loss_factor` times the model's. It stays in the gradients, unlike the
        loss scale.

    Raises
    ------
    ValueError
        The product of scale and factor is not positive or not finite in float32, or the batch cannot be divided.
    FloatingPointError
        As `precision_lab.round_to`.

    """
    if micro_batches < 1 or len(inputs) % micro_batches:
        raise ValueError(
            f"micro_batches must be at least 1 and divide the batch of {len(inputs)}, got {micro_batches!r}"
        )
    storage, scale = recipe.storage, state.scaler.loss_scale
    weights = Views(visible_weights(state.optimizer, storage), recipe.shapes)
    size = len(inputs) // micro_batches
    total: Array | None = None
    losses = []
    with np.errstate(all="ignore"):  # what overflows is found below
        for first in range(0, len(inputs), size):
            part = slice(first, first + size)
            gradients = recipe.model.loss_and_gradients(
                weights,
                inputs[part],
                targets[part],
                loss_scale=scale * loss_factor / micro_batches,
                storage=storage,
            )
            flat = flatten(gradients.weights)
            total = flat if total is None else codec(storage.gradients).round(total + flat)
            losses.append(gradients.loss)
        assert total is not None
        unscale = unscaling(scale)
        largest = largest_magnitude(total) * unscale
        max_abs = largest if math.isfinite(largest) else math.inf
        found_inf = math.isinf(max_abs)
        skipped = found_inf and not isinstance(state.scaler, NoLossScale)
        optimizer, intended = state.optimizer, None
        if not skipped:
            optimizer, intended = advance(
                optimizer,
                total,
                recipe.kept,
                learning_rate=learning_rate,
                unscale=unscale,
                seed=recipe.seed,
            )
    after = TrainingState(optimizer, state.scaler.adjust(found_inf))
    return after, StepRecord(math.fsum(losses) / micro_batches, scale, max_abs, skipped, gradients, intended)


def parameters_of(state: TrainingState, recipe: Recipe) -> Views:
    """Return the parameters that the optimizer updates, in float32: the master copy if there is one."""
    return Views(updated_parameters(state.optimizer, recipe.storage), recipe.shapes)
