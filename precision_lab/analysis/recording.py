"""A recorded training run: what its gradients and updates were, parameter by parameter, as histograms.

A run of a thousand steps makes a thousand gradients of every parameter. Nobody keeps them, and nobody has to: an
exponent histogram of them all answers every format and loss scale afterwards, and an update report says what would have
become of the updates, had the weights been stored in fewer bits. `precision_lab.torch.GradientRecorder` makes a
`Recording` while a PyTorch model trains; here it is a value without PyTorch, which a JSON file can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeGuard

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.updates import UpdateReport
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.reading import read_small
from precision_lab.tensors.info import TensorInfo, blaming, checked_shape
from precision_lab.tensors.reading import INDEX_SUFFIX
from precision_lab.tensors.safetensors import json_object

_COUNTS = ("count", "nonzero", "lost", "overflowed", "nonfinite", "zero_weights")


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
        Why there are none, empty if there are some: it is frozen, or it never got one.
    shared : tuple of str
        Other names of the same parameter; it is counted once, under the first.
    updates, ratios : ExponentHistogram or None
        Of what the optimizer's steps added to the weights, and of |update / weight|, which is infinite or NaN where the
        weight is zero. None where no updates were recorded.
    unchanged : int
        Weights that a step left as they were although their gradient was not zero.
    reports : tuple of UpdateReport
        What would have become of these updates, had the weights been stored in a format.

    """

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

    def __post_init__(self) -> None:
        _check(self)

    def info(self, file: Path) -> TensorInfo:
        """Return what a header of a tensor file would say about its gradients."""
        return TensorInfo(file, self.name, self.dtype, self.shape, self.missing or None)


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
    counts = [tensor.times, tensor.unchanged, *(getattr(report, name) for report in reports for name in _COUNTS)]
    counts += [n for report in reports for part in (report.ratios, report.lost_ratios) for n in part.values()]
    if min(counts) < 0:
        raise ValueError("counts are not negative")
    if any(min(report.sums[:2]) < 0 for report in reports):
        raise ValueError("a sum of squares is not negative")
    if any(
        sum(r.ratios.values()) + r.zero_weights != r.nonzero or sum(r.lost_ratios.values()) > r.lost for r in reports
    ):
        raise ValueError("the counts of an update report do not add up")
