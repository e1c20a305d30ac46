"""A recorded training run: what its gradients and updates were, parameter by parameter, as histograms.

A run of a thousand steps makes a thousand gradients of every parameter. Nobody keeps them, and nobody has to: an
exponent histogram of them all answers every format and loss scale afterwards, and an update report says what would have
become of the updates, had the weights been stored in fewer bits. `precision_lab.torch.GradientRecorder` makes a
`Recording` while a PyTorch model trains; here it is a value without PyTorch, which a JSON file can hold.

Counts go on from step to step: their unit is a *weight-step*, one weight in one recorded step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeGuard

from precision_lab.analysis.counting import share
from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.updates import UpdateReport
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.reading import read_small
from precision_lab.tensors.info import TensorInfo, blaming, checked_shape
from precision_lab.tensors.reading import INDEX_SUFFIX
from precision_lab.tensors.safetensors import json_object

_COUNTS = ("count", "nonzero", "lost", "overflowed", "nonfinite", "zero_weights")


NARROW = 16
"""Bits of a format in which an update that is too small for its weight is common."""


@dataclass(frozen=True)
class Movement:
    """How many weights should have moved in the recorded steps, and how many of them stood still.

    Attributes
    ----------
    weights : int
        Of the parameters.
    weight_steps : int
        A weight in a recorded step in which the optimizer had it.
    should_move : int
        Of these the ones whose intended update is not zero or, where that is not computed, whose gradient is not zero.
    stood_still : int
        Of these the ones that the step left as they were.

    """

    weights: int
    weight_steps: int
    should_move: int
    stood_still: int

    @classmethod
    def total(cls, movements: Iterable[Movement]) -> Self:
        """Return those of several parameters of one run together."""
        listed = list(movements)
        return cls(*(sum(getattr(m, name) for m in listed) for name in cls.__dataclass_fields__))

    @property
    def stood_still_share(self) -> float:
        """Share stood_still / should_move; 0 where nothing should have moved."""
        return share(self.stood_still, self.should_move)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {**vars(self), "stood_still_share": self.stood_still_share}


@dataclass(frozen=True)
class RecordedTensor(PlainData):
    """One parameter of a recorded run.

    Attributes
    ----------
    name, dtype, shape
        Of the parameter; the dtype is that of its gradients where there are any.
    gradients : ExponentHistogram
        Of all gradients that were recorded, together.
    times : int
        How many gradients these were.
    missing : str
        Why there are none, empty if there are some: it is frozen, it never got one, or it is in no group of the
        optimizer.
    shared : tuple of str
        Other names of the same parameter; it is counted once, under the first.
    updates, ratios : ExponentHistogram or None
        Of the updates, and of |update / weight|, which is infinite or NaN where the weight is zero. None where no
        updates were recorded, or they are not measurable. In weights of more than 16 bits an update is what was
        measured, the weight after the step minus the weight before it: what they lost themselves is not among them. In
        weights of 16 bits or fewer it is what the optimizer intended.
    unchanged : int
        Weight-steps of `should_move` that left the weight as it was.
    reports : tuple of UpdateReport
        What would have become of these updates, had the weights been stored in a format; in the format in which weights
        of 16 bits or fewer are stored, what the step made of them.
    steps : int
        Recorded steps in which the optimizer had it. Earlier versions did not write it: with 0, `unchanged` counts
        gradients that are not zero, and nobody knows of how many.
    should_move : int
        Weight-steps whose intended update is not zero; where that is not computed, whose gradient is not zero.
    unmeasured : str
        Why its updates are not known although the optimizer had it; empty where they are.

    """

    layout: ClassVar = Layout(partial=True)  # earlier versions did not write the last three

    name: str
    dtype: str
    shape: tuple[int, ...]
    gradients: ExponentHistogram
    times: int = 0
    missing: str = ""
    shared: tuple[str, ...] = ()
    updates: ExponentHistogram | None = None
    ratios: ExponentHistogram | None = None
    unchanged: int = 0
    reports: tuple[UpdateReport, ...] = ()
    steps: int = 0
    should_move: int = 0
    unmeasured: str = ""

    def __post_init__(self) -> None:
        _check(self)

    def info(self, file: Path) -> TensorInfo:
        """Return what a header of a tensor file would say about its gradients."""
        return TensorInfo(file, self.name, self.dtype, self.shape, self.missing or None)

    @property
    def not_measurable(self) -> str:
        """Why its updates cannot be known; empty where they are, or where none were recorded."""
        fmt = narrow_format(self.dtype)
        if fmt is None or self.unmeasured or self.steps or self.updates is None:
            return self.unmeasured
        return f"{not_measurable_in(fmt)}, and recorded by an earlier version: record it again"

    @property
    def movement(self) -> Movement | None:
        """How many of its weights should have moved and did not; None where nobody counted."""
        weights = math.prod(self.shape)
        return Movement(weights, weights * self.steps, self.should_move, self.unchanged) if self.steps else None


@dataclass(frozen=True)
class Recording(PlainData):
    """What was recorded of a training run.

    Attributes
    ----------
    model : str
        The name of the model's class.
    tensors : tuple of RecordedTensor
        Its parameters, in its order.
    steps : int
        Steps of the optimizer that were made.
    skipped_steps : int
        Steps that a loss scaler left out, because a gradient was infinite or NaN; not among `steps`.
    recorded_steps : int
        Of `steps` those whose gradients were counted.
    every : int
        Every so many-th step was to be counted, the first included.

    """

    layout: ClassVar = Layout("recording")

    model: str
    tensors: tuple[RecordedTensor, ...]
    steps: int = 0
    skipped_steps: int = 0
    recorded_steps: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.skipped_steps, self.recorded_steps, self.every) < 0:
            raise ValueError("steps are not negative")
        if len({tuple(r.format for r in tensor.reports) for tensor in self.tensors if tensor.reports}) > 1:
            raise ValueError("the update reports of all tensors are on the same formats")


def narrow_format(dtype: str) -> FloatFormat | None:
    """Return the format of a dtype of 16 bits or fewer, of others None.

    >>> narrow_format("bfloat16").name, narrow_format("float32")
    ('bf16', None)
    """
    try:
        fmt = get_format(dtype)
    except ValueError:
        return None
    return fmt if fmt.bits <= NARROW else None


def not_measurable_in(fmt: FloatFormat) -> str:
    """Say that what was left after a step does not tell what was lost in it."""
    return f"not measurable: stored in {fmt} already"


def is_recording(path: object) -> TypeGuard[str | Path]:
    """Return whether a path is named as recordings are: ``.json``, and no index of safetensors shards."""
    if not isinstance(path, str | Path):
        return False
    path = Path(path)
    return path.suffix.lower() == ".json" and not path.name.endswith(INDEX_SUFFIX)


def read_recording(path: str | Path) -> Recording:
    """Read a recording that `GradientRecorder.save` wrote.

    Raises
    ------
    TensorFileError
        The file cannot be read or is no recording, in one line.
    FloatingPointError
        This thread flushes subnormal numbers to zero: they would be read as zeros.

    """
    require_gradual_underflow()
    path = Path(path)
    with blaming(path):
        return Recording.from_dict(json_object(read_small(path)))


def _check(tensor: RecordedTensor) -> None:
    """Raise a ValueError for what no recorder writes."""
    checked_shape(tensor.shape)
    reports = tensor.reports
    counts = [tensor.times, tensor.unchanged, tensor.steps, tensor.should_move]
    counts += (getattr(report, name) for report in reports for name in _COUNTS)
    counts += [n for report in reports for part in (report.ratios, report.lost_ratios) for n in part.values()]
    if min(counts) < 0:
        raise ValueError("counts are not negative")
    if tensor.steps and not tensor.unchanged <= tensor.should_move <= tensor.steps * math.prod(tensor.shape):
        raise ValueError("more weights stood still than should have moved, or more should have moved than there are")
    if tensor.unmeasured and (tensor.updates or tensor.ratios or reports):
        raise ValueError("updates that are not measurable were measured")
    if any(min(report.sums[:2]) < 0 for report in reports):
        raise ValueError("a sum of squares is not negative")
    if any(
        sum(r.ratios.values()) + r.zero_weights != r.nonzero or sum(r.lost_ratios.values()) > r.lost for r in reports
    ):
        raise ValueError("the counts of an update report do not add up")
