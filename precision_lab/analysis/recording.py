"""A recorded training run: what its gradients and updates were, parameter by parameter, as histograms.

A run of a thousand steps makes a thousand gradients of every parameter. Nobody keeps them, and nobody has to: an
exponent histogram of them all answers every format and loss scale afterwards, and an update report says what would have
become of the updates, had the weights been stored in fewer bits. `precision_lab.torch.GradientRecorder` makes a
`Recording` while a PyTorch model trains; here it is a value without PyTorch, which a JSON file can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard

from precision_lab.analysis.histogram import ExponentHistogram, _count
from precision_lab.analysis.updates import UpdateReport
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.modes import get_mode
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.reading import read_small
from precision_lab.tensors.info import TensorInfo, blaming, checked_shape
from precision_lab.tensors.reading import INDEX_SUFFIX
from precision_lab.tensors.safetensors import json_object

KIND = "precision_lab recording 1"
"""What the JSON of a recording says it is."""

_COUNTS = ("count", "nonzero", "lost", "overflowed", "nonfinite", "zero_weights")


@dataclass(frozen=True)
class RecordedTensor:
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

    def info(self, file: Path) -> TensorInfo:
        """Return what a header of a tensor file would say about its gradients."""
        return TensorInfo(file, self.name, self.dtype, self.shape, self.missing or None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        data: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "times": self.times,
            "missing": self.missing,
            "shared": list(self.shared),
            "gradients": self.gradients.to_dict(),
        }
        if self.updates is not None and self.ratios is not None:
            data |= {
                "updates": self.updates.to_dict(),
                "ratios": self.ratios.to_dict(),
                "unchanged": self.unchanged,
                # the sums are integers of up to 2000 bits: as text, which every reader of JSON can hold
                "reports": [report.to_dict() | {"sums": list(map(str, report.sums))} for report in self.reports],
            }
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the tensor that `to_dict` described; raises ValueError, TypeError or KeyError."""
        recorded = "updates" in data
        return cls(
            _text(data["name"]),
            _text(data["dtype"]),
            checked_shape(data["shape"]),
            ExponentHistogram.from_dict(data["gradients"]),
            _count(data["times"]),
            _text(data["missing"]),
            tuple(map(_text, data["shared"])),
            ExponentHistogram.from_dict(data["updates"]) if recorded else None,
            ExponentHistogram.from_dict(data["ratios"]) if recorded else None,
            _count(data["unchanged"]) if recorded else 0,
            tuple(map(_report, data["reports"])) if recorded else (),
        )


@dataclass(frozen=True)
class Recording:
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

    model: str
    tensors: tuple[RecordedTensor, ...]
    steps: int = 0
    skipped_steps: int = 0
    recorded_steps: int = 0
    every: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, which `read_recording` reads back from a file."""
        return {
            "kind": KIND,
            "model": self.model,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "recorded_steps": self.recorded_steps,
            "every": self.every,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the recording that `to_dict` described.

        Raises
        ------
        ValueError
            The dictionary is not one of `to_dict`.

        """
        if not isinstance(data, Mapping) or data.get("kind") != KIND:
            found = data.get("kind") if isinstance(data, Mapping) else data
            raise ValueError(f"its kind must be {KIND!r}, as GradientRecorder.save writes it; got {found!r}")
        try:
            counts = [_count(data[key]) for key in ("steps", "skipped_steps", "recorded_steps", "every")]
            tensors = tuple(map(RecordedTensor.from_dict, data["tensors"]))
            if len({tuple(r.format for r in tensor.reports) for tensor in tensors if tensor.reports}) > 1:
                raise ValueError("the update reports of all tensors are on the same formats")
            return cls(_text(data["model"]), tensors, *counts)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            missing = isinstance(error, KeyError)
            raise ValueError(f"not a recording: {f'it has no {error}' if missing else error}") from error


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


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"names are text, got {value!r}")
    return value


def _report(data: Mapping[str, Any]) -> UpdateReport:
    """Return the report that `UpdateReport.to_dict` described, with its sums."""
    counts = {name: _count(data[name]) for name in _COUNTS}
    ratios, lost = ({int(e): _count(n) for e, n in data[key].items()} for key in ("log2_ratios", "lost_log2_ratios"))
    first, second, third = map(int, data["sums"])
    report = UpdateReport(
        get_format(data["format"]),
        get_mode(data["mode"]),
        **counts,
        ratios=ratios,
        lost_ratios=lost,
        sums=(first, second, third),
    )
    if min(first, second) < 0:
        raise ValueError("a sum of squares is not negative")
    if sum(ratios.values()) + report.zero_weights != report.nonzero or sum(lost.values()) > report.lost:
        raise ValueError("the counts of an update report do not add up")
    return report
