"""What a training run came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.plain import counted, uncounted
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
class UpdateStatistics:
    """What became of the updates of some steps, measured on the arrays of the run.

    With u the update that was intended and d the one that took effect: the difference of the parameters, second words
    and compensations included, before and after.

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

    """

    count: int
    nonzero: int
    lost: int
    unchanged: int
    intended: float
    effective: float
    product: float
    ratios: ExponentHistogram

    @property
    def lost_of_nonzero(self) -> float:
        """Share lost / nonzero; 0 where nothing is nonzero."""
        return self.lost / self.nonzero if self.nonzero else 0.0

    @property
    def imprecision(self) -> float:
        """Share of all elements that did not change (Yu et al. 2024, there in percent); 0 of nothing."""
        return self.unchanged / self.count if self.count else 0.0

    @property
    def edq(self) -> float:
        """Effective descent quality <d, u> / ||u||, pooled over the measured steps; 0 without updates."""
        return self.product / math.sqrt(self.intended) if self.intended else 0.0

    @property
    def edq_ratio(self) -> float:
        """<d, u> / ||u||^2: 1 is perfect, 0 is standstill; 0 without updates."""
        return self.product / self.intended if self.intended else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**{f: getattr(self, f) for f in STATISTICS}, "ratios": self.ratios.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the statistics that `to_dict` described."""
        return cls(**{f: data[f] for f in STATISTICS}, ratios=ExponentHistogram.from_dict(data["ratios"]))


class StepUpdates(NamedTuple):
    """What became of the updates of one step: as in `UpdateStatistics`.

    Attributes
    ----------
    step : int
        Which.
    intended, product : float
        Sums of u^2 and d u.

    """

    step: int
    intended: float
    product: float


STATISTICS = ("count", "nonzero", "lost", "unchanged", "intended", "effective", "product")


@dataclass(frozen=True, eq=False)
class TrainingResult(Shown):
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
    stopped : str
        Why the loss scale ended the run before its last step, empty if it did not; the arrays are then shorter.
    by_step : tuple of StepUpdates
        What `updates` pools, one for each measured step.
    snapshots : tuple of Snapshot
        One for each of `config.snapshot_steps`; not part of `to_dict`.
    parameters : dict of str to float32 array
        After the last step; not part of `to_dict`.

    """

    config: TrainingConfig
    losses: npt.NDArray[np.float64]
    loss_scales: npt.NDArray[np.float64]
    skipped: npt.NDArray[np.bool_]
    initial_loss: float
    final_loss: float
    test_accuracy: float | None
    updates: UpdateStatistics
    histograms: dict[int, dict[str, ExponentHistogram]]
    bytes_per_parameter: float
    seconds: float
    stopped: str = ""
    by_step: tuple[StepUpdates, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    parameters: dict[str, Array] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether the final loss is not finite or exceeds `DIVERGENCE_FACTOR` times the initial loss.

        A network whose units all died has not diverged in this sense: it ends near the loss of guessing, with the
        accuracy of guessing.
        """
        # written so that a final loss of NaN counts
        return not self.final_loss <= DIVERGENCE_FACTOR * self.initial_loss

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; infinities and NaN as text."""
        return {
            "config": self.config.to_dict(),
            "losses": [_json(x) for x in self.losses.tolist()],
            "loss_scales": [_json(x) for x in counted(self.loss_scales.tolist())],
            "skipped": np.flatnonzero(self.skipped).tolist(),
            "initial_loss": _json(self.initial_loss),
            "final_loss": _json(self.final_loss),
            "test_accuracy": self.test_accuracy,
            "updates": {key: _json(value) for key, value in self.updates.to_dict().items()},
            "by_step": [[_json(x) for x in step] for step in self.by_step],
            "histograms": {
                str(step): {name: histogram.to_dict() for name, histogram in of_step.items()}
                for step, of_step in self.histograms.items()
            },
            "bytes_per_parameter": self.bytes_per_parameter,
            "seconds": self.seconds,
            "stopped": self.stopped,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the result that `to_dict` described, without snapshots and parameters; raises ValueError."""
        try:
            losses = np.array([_unjson(x) for x in data["losses"]], np.float64)
            scales = np.array([_unjson(x) for x in uncounted(data["loss_scales"], losses.size)], np.float64)
            skipped = np.zeros(losses.size, bool)
            skipped[data["skipped"]] = True
            return cls(
                config=TrainingConfig.from_dict(data["config"]),
                losses=losses,
                loss_scales=scales,
                skipped=skipped,
                initial_loss=_unjson(data["initial_loss"]),
                final_loss=_unjson(data["final_loss"]),
                test_accuracy=None if data["test_accuracy"] is None else _unjson(data["test_accuracy"]),
                updates=UpdateStatistics.from_dict(
                    {k: v if k == "ratios" else _unjson(v) for k, v in data["updates"].items()}
                ),
                histograms={
                    int(step): {name: ExponentHistogram.from_dict(h) for name, h in of_step.items()}
                    for step, of_step in data["histograms"].items()
                },
                bytes_per_parameter=_unjson(data["bytes_per_parameter"]),
                seconds=_unjson(data["seconds"]),
                stopped=str(data["stopped"]),
                by_step=tuple(StepUpdates(*map(_unjson, step)) for step in data["by_step"]),
            )
        except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            raise ValueError(f"this is no training result: {error!r}") from error


def _json(x: Any) -> Any:
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _unjson(x: Any) -> Any:
    """Return the number that `_json` wrote, no other value, and none that a float64 cannot be divided by."""
    if isinstance(x, str):
        return float(x)
    if type(x) not in (int, float) or (abs(x) >= 2**63 and type(x) is int):
        raise TypeError(f"no number: {str(x)[:40]}")
    return x
