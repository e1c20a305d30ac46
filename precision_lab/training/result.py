"""What a training run came to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.support.plain import COUNTED, Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.models import Array

DIVERGENCE_FACTOR = 10.0
"""A run diverged if it ends with this many times the training loss it began with."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One step seen closely.

    Attributes
    ----------
    step : int
        Number of updates made before.
    loss : float
        Mean loss of the batch of this step.
    weight_gradients, activation_gradients : dict of str to float32 array
        As `precision_lab.training.models.Gradients.weights` and `.activations`, multiplied by the loss scale; of the
        last micro-batch.
    parameters : dict of str to float32 array
        Before the update: the master copy if there is one.
    updates : dict of str to float32 array
        What the optimizer added to them, before the sum was rounded; zero in a skipped step.

    """

    step: int
    loss: float
    weight_gradients: dict[str, Array]
    activation_gradients: dict[str, Array]
    parameters: dict[str, Array]
    updates: dict[str, Array]


@dataclass(frozen=True, eq=False)
class UpdateStatistics(PlainData):
    """What became of the updates of some steps, measured on the arrays of the run.

    With u the update that was intended and d the effective update *with its words*: the difference of the parameters,
    second words and compensations included, before and after. (Collage's published optimizer counts the leading word
    alone; see `update_rules`.) u is what the run's own optimizer proposes, so <d, u> / ||u||^2 says what the stored
    weights lose of it, and nothing about moments that are wrong. For those there is u32: the update that the same
    optimizer proposes with everything in float32 and moments of its own, which gets the same gradients (as the storage
    keeps them, rounded, and unscaled in float32) in every step that is made.

    Attributes
    ----------
    count : int
        Elements of all measured steps.
    nonzero : int
        Of these the ones with u != 0.
    lost : int
        Of `nonzero` the ones with d == 0.
    unchanged : int
        All with d == 0.
    intended, effective, product : float
        Sums of u^2, d^2 and d u.
    ratios : ExponentHistogram
        Of |u/w| where neither is zero.
    intended_fp32, product_fp32 : float
        Sums of u32^2 and d u32; NaN where they were not measured (`TrainingConfig.against_fp32`).

    """

    layout: ClassVar = Layout(derived=("lost_of_nonzero", "imprecision", "edq_ratio", "edq_ratio_fp32"))

    count: int
    nonzero: int
    lost: int
    unchanged: int
    intended: float
    effective: float
    product: float
    ratios: ExponentHistogram
    intended_fp32: float = math.nan
    product_fp32: float = math.nan

    @property
    def lost_of_nonzero(self) -> float:
        """Share lost / nonzero; 0 where nothing is nonzero."""
        return self.lost / self.nonzero if self.nonzero else 0.0

    @property
    def imprecision(self) -> float:
        """Imprecision with its words: share of all elements with d == 0; 0 of nothing.

        Yu et al. 2024 give it in percent, of the leading word alone.
        """
        return self.unchanged / self.count if self.count else 0.0

    @property
    def edq(self) -> float:
        """Effective descent quality <d, u> / ||u||, pooled over the measured steps; 0 without updates."""
        return self.product / math.sqrt(self.intended) if self.intended else 0.0

    @property
    def edq_ratio(self) -> float:
        """EDQ ratio <d, u> / ||u||^2: 1 is perfect, 0 is standstill; 0 without updates.

        It judges the addition and says nothing of the moments, from which u is made.
        """
        return self.product / self.intended if self.intended else 0.0

    @property
    def edq_ratio_fp32(self) -> float:
        """<d, u32> / ||u32||^2: 1 where the weights go as far along u32 as it asks; NaN where it was not measured."""
        return self.product_fp32 / self.intended_fp32 if self.intended_fp32 else 0.0


class StepUpdates(NamedTuple):
    """What became of the updates of one step: as in `UpdateStatistics`.

    Attributes
    ----------
    step : int
        Which.
    intended, product : float
        Sums of u^2 and d u.
    intended_fp32, product_fp32 : float
        Sums of u32^2 and d u32, or NaN.

    """

    step: int
    intended: float
    product: float
    intended_fp32: float = math.nan
    product_fp32: float = math.nan


STATISTICS = (
    *("count", "nonzero", "lost", "unchanged", "intended", "effective", "product"),
    *("intended_fp32", "product_fp32"),
)


@dataclass(frozen=True, eq=False)
class TrainingResult(PlainData, Shown):
    """What a run came to.

    Attributes
    ----------
    config : TrainingConfig
        What was run.
    losses : float64 array, shape (steps,)
        Mean loss of the batch of each step, before its update.
    loss_scales : float64 array, shape (steps,)
        The loss scale of each step.
    skipped : bool array, shape (steps,)
        Steps without an update, because a gradient was infinite or NaN.
    initial_loss, final_loss : float
        Mean loss over the whole training part before the first and after the last step: the parameters that the
        optimizer updates (the master copy if there is one), taken as they are, everything else in float64.
    test_loss : float
        Mean loss over the test part after the last step, computed as `final_loss`.
    test_accuracy : float or None
        Share of the test part that is right after the last step; None where there is no such thing.
    updates : UpdateStatistics
        What updates did to the parameters.
    histograms : dict of int to dict of str to ExponentHistogram
        Per step of `config.histogram_steps` those of the gradients, of parameters and of activations, by name,
        multiplied by the loss scale; of the last micro-batch.
    bytes_per_parameter : float
        Of all arrays that live from step to step, measured.
    seconds : float
        Wall time of the steps.
    losses_after : dict of int to float
        Per number of steps of `config.loss_steps` the loss after them, taken as `final_loss` is; those that a run did
        not come to are missing.
    stopped : str
        Why the loss scale ended the run before its last step, empty if it did not; the arrays are then shorter.
    by_step : tuple of StepUpdates
        What `updates` pools, one for each measured step.
    snapshots : tuple of Snapshot
        One for each of `config.snapshot_steps`; not part of `to_dict`.
    parameters : dict of str to float32 array
        After the last step; not part of `to_dict`.

    """

    layout: ClassVar = Layout("training result", version=2, omitted=("snapshots", "parameters"))

    config: TrainingConfig
    losses: npt.NDArray[np.float64]
    loss_scales: Annotated[npt.NDArray[np.float64], COUNTED]
    skipped: Annotated[npt.NDArray[np.bool_], COUNTED]
    initial_loss: float
    final_loss: float
    test_loss: float
    test_accuracy: float | None
    updates: UpdateStatistics
    histograms: dict[int, dict[str, ExponentHistogram]]
    bytes_per_parameter: float
    seconds: float
    losses_after: dict[int, float] = field(default_factory=dict)
    stopped: str = ""
    by_step: tuple[StepUpdates, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    parameters: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.losses.shape == self.loss_scales.shape == self.skipped.shape:
            raise ValueError("losses, loss scales and skipped steps are as many as there were steps")

    @property
    def diverged(self) -> bool:
        """Whether the final loss is not finite or exceeds `DIVERGENCE_FACTOR` times the initial loss.

        A network whose units all died has not diverged in this sense: it ends near the loss of guessing, with the
        accuracy of guessing.
        """
        # written so that a final loss of NaN counts
        return not self.final_loss <= DIVERGENCE_FACTOR * self.initial_loss
