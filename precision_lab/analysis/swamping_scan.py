"""Scan checkpoints: which of their tensors would stand still, when updates of this size, or these, are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.recording import Movement, RecordedTensor, Recording
from precision_lab.analysis.updates import UpdateReport, update_report
from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.support.plain import PlainReport, header
from precision_lab.support.shown import Shown
from precision_lab.tensors.info import TensorInfo, TensorSource
from precision_lab.tensors.pairs import check_partners, in_names_of, in_step
from precision_lab.tensors.reading import list_tensors, open_tensors
from precision_lab.tensors.walk import CHUNK_BYTES, Progress, Walk


@dataclass(frozen=True)
class FrozenScan(PlainReport, Shown):
    """Tensors of weights and how far they can be pushed without moving.

    Attributes
    ----------
    tensors : tuple of (TensorInfo, tuple of WeightGaps)
        The parameters with their gaps in each format; those frozen most come first.
    skipped : tuple of TensorInfo
        The others; their `skipped` says why: no floats, codes, a buffer, state of an optimizer.
    formats : tuple of FloatFormat
        The formats that were asked about.
    update_sizes : tuple of float
        The magnitudes |u|.

    """

    tensors: tuple[tuple[TensorInfo, tuple[WeightGaps, ...]], ...]
    skipped: tuple[TensorInfo, ...]
    formats: tuple[FloatFormat, ...]
    update_sizes: tuple[float, ...]

    @cached_property
    def total(self) -> tuple[WeightGaps, ...]:
        """The gaps of all weights together, in each format."""
        return tuple(WeightGaps.total((gaps[i] for _, gaps in self.tensors), fmt) for i, fmt in enumerate(self.formats))

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with iterators for its long lists."""
        return {
            **header("frozen weights"),
            "update_sizes": list(self.update_sizes),
            "tensors": (info.described() | {"formats": self._counts(gaps)} for info, gaps in self.tensors),
            "total": {"formats": self._counts(self.total)},
            "skipped": (info.described() for info in self.skipped),
        }

    def _counts(self, gaps: Sequence[WeightGaps]) -> dict[str, Any]:
        return {
            fmt.name: {
                "nonfinite": g.nonfinite,
                "frozen": [asdict(f) | {"fraction": f.fraction} for f in map(g.frozen, self.update_sizes)],
            }
            for fmt, g in zip(self.formats, gaps, strict=True)
        }


@dataclass(frozen=True)
class UpdateScan(PlainReport, Shown):
    """Tensors of weights and what would become of their updates.

    Attributes
    ----------
    tensors : tuple of (TensorInfo, tuple of UpdateReport)
        The tensors of floats with a report for each format; those that lose the most come first.
    skipped : tuple of TensorInfo
        The others among the weights.
    formats : tuple of FloatFormat
        The formats that were asked about.

    """

    tensors: tuple[tuple[TensorInfo, tuple[UpdateReport, ...]], ...]
    skipped: tuple[TensorInfo, ...]
    formats: tuple[FloatFormat, ...]

    @cached_property
    def total(self) -> tuple[UpdateReport, ...]:
        """The report on all updates together, for each format."""
        return tuple(
            UpdateReport.total((reports[i] for _, reports in self.tensors), fmt, RoundingMode.TIES_TO_EVEN)
            for i, fmt in enumerate(self.formats)
        )

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with iterators for its long lists."""
        return {
            **header("updates"),
            "tensors": (info.described() | {"formats": _by_format(reports)} for info, reports in self.tensors),
            "total": {"formats": _by_format(self.total)},
            "skipped": (info.described() for info in self.skipped),
        }


@dataclass(frozen=True)
class RecordedUpdates(UpdateScan):
    """The updates of a recorded run, parameter by parameter; the parameters that stood still the most come first.

    Attributes
    ----------
    tensors, formats
        As of `UpdateScan`, of the parameters whose updates are known. In the format in which weights of 16 bits or
        fewer are stored a report says what the steps made of the updates.
    skipped : tuple of TensorInfo
        Parameters whose updates are not measurable; their `skipped` says why.
    movements : dict of str to Movement
        By the name of a parameter, in the same order: how many weights should have moved, and how many did not.
        Recordings of earlier versions have none.
    recorded_steps : int
        All counts are sums over so many steps.

    """

    movements: dict[str, Movement]
    recorded_steps: int

    @cached_property
    def movement(self) -> Movement:
        """That of all parameters together."""
        return Movement.total(self.movements.values())

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with iterators for its long lists."""
        parts = super().parts()
        return parts | {
            "recorded_steps": self.recorded_steps,
            "tensors": (tensor | self._moved(tensor["name"]) for tensor in parts["tensors"]),
            "total": parts["total"] | (self.movement.to_dict() if self.movements else {}),
            "skipped": (tensor | self._moved(tensor["name"]) for tensor in parts["skipped"]),
        }

    def _moved(self, name: str) -> dict[str, Any]:
        return self.movements[name].to_dict() if name in self.movements else {}


def _by_format(reports: Sequence[UpdateReport]) -> dict[str, Any]:
    return {report.format.name: report.to_dict() for report in reports}


def default_formats(weights: TensorSource, *, dtype: FormatLike | None = None) -> tuple[FloatFormat, ...]:
    """Return the 16-bit formats that the parameters are stored in, bf16 if there are none."""
    dtypes = {info.dtype for info in list_tensors(weights, dtype=dtype) if not info.left_out().skipped}
    return tuple(f for f in FORMATS.values() if f.dtype is not None and f.bits == 16 and f.dtype.name in dtypes) or (
        get_format("bf16"),
    )


def scan_frozen(
    weights: TensorSource,
    update_sizes: Sequence[float],
    *,
    formats: Sequence[FormatLike] = (),
    dtype: FormatLike | None = None,
    progress: Progress | None = None,
) -> FrozenScan:
    """Read every parameter once, in bounded memory, and ask which of them updates of given sizes cannot move.

    Parameters
    ----------
    weights : path, mapping or module
        A file, a folder or a model as `read_tensors` takes it.
    update_sizes : sequence of float
        Magnitudes |u|, at least one.
    formats : sequence of format specs
        Of the weights; default: `default_formats`.
    dtype : format spec, optional
        What the raw items of ``.npy`` and ``.npz`` files are.
    progress : callable, optional
        Called with the number of elements read and the number of all elements.

    Raises
    ------
    TensorFileError
        The file cannot be read, or has no parameters.
    ValueError
        No size, or one that is negative, infinite, NaN or no number; unknown format.

    """
    weights = open_tensors(weights, dtype=dtype)
    formats = _formats(weights, formats, dtype)
    sizes = tuple(dict.fromkeys(WeightGaps(formats[0]).frozen(size).update_size for size in update_sizes))
    if not sizes:
        raise ValueError("no update size is given")
    walk = Walk([weights], dtype=dtype, progress=progress, parameters=True)
    tensors: list[tuple[TensorInfo, tuple[WeightGaps, ...]]] = []
    for info, chunks in walk:
        gaps: list[WeightGaps] = []
        for chunk in chunks:
            chunk_gaps = [WeightGaps.of(chunk, fmt) for fmt in formats]
            gaps = [a + b for a, b in zip(gaps, chunk_gaps, strict=True)] if gaps else chunk_gaps
        tensors.append((info, tuple(gaps or map(WeightGaps, formats))))
    tensors.sort(key=lambda tensor: -tensor[1][0].frozen(sizes[0]).fraction)
    return FrozenScan(tuple(tensors), tuple(walk.skipped), formats, sizes)


def scan_updates(
    weights: TensorSource,
    updates: TensorSource,
    *,
    formats: Sequence[FormatLike] = (),
    dtype: FormatLike | None = None,
    progress: Progress | None = None,
) -> UpdateScan:
    """Read weights and their updates once, in bounded memory, and report what becomes of the updates; ties to even.

    Parameters
    ----------
    weights, updates : path, mapping or module
        Files, folders or models as `read_tensors` takes them. Tensors of floats belong together by name; each needs its
        partner, of the same shape. Their dtypes may differ, and so may what wrappers put into names (``module.``,
        ``_orig_mod.``, ``_fsdp_wrapped_module.``).
    formats, dtype, progress
        As for `scan_frozen`; elements are counted in pairs.

    Raises
    ------
    TensorFileError
        A file cannot be read, or a tensor has no partner, one of another shape, or one stored in another order.
    ValueError
        Unknown format.

    """
    weights = open_tensors(weights, dtype=dtype)
    updates = in_names_of(weights, open_tensors(updates, dtype=dtype))
    formats = _formats(weights, formats, dtype)
    check_partners(weights, updates, list_tensors(weights), list_tensors(updates))
    find = updates.finder(CHUNK_BYTES)
    notes = {info.name: f"its update: {info.note}" for info in list_tensors(updates) if info.note}
    walk = Walk([weights], dtype=dtype, progress=progress, parameters=True)
    tensors: list[tuple[TensorInfo, tuple[UpdateReport, ...]]] = []
    for info, chunks in walk:
        reports: list[UpdateReport] = []
        for w, u in in_step(chunks, find(info.name)):
            chunk_reports = [update_report(w, u, fmt) for fmt in formats]
            reports = [a + b for a, b in zip(reports, chunk_reports, strict=True)] if reports else chunk_reports
        note = "; ".join(filter(None, (info.note, notes.get(info.name)))) or None
        tensors.append((replace(info, note=note) if note else info, tuple(reports or map(UpdateReport.empty, formats))))
    tensors.sort(key=lambda tensor: -tensor[1][0].lost_of_nonzero)
    return UpdateScan(tuple(tensors), tuple(walk.skipped), formats)


def recorded_updates(recording: Recording, file: Path | None = None) -> RecordedUpdates:
    """Return what became of the updates of a recorded run: worst first.

    That is where the most weights stood still or, in the first format, would have.

    Parameters
    ----------
    recording : Recording
        From `GradientRecorder.recording` or `read_recording`. Where it has no updates, there are no tensors.
    file : Path, optional
        Where it comes from; default: the name of the model.

    """
    place = file or Path(recording.model)

    def badness(tensor: RecordedTensor) -> float:
        still = tensor.movement.stood_still_share if tensor.movement else 0.0
        return max(still, tensor.reports[0].lost_of_nonzero if tensor.reports and not tensor.not_measurable else 0.0)

    listed = sorted(recording.tensors, key=badness, reverse=True)
    known = [tensor for tensor in listed if tensor.updates is not None and not tensor.not_measurable]
    formats = next((tuple(r.format for r in tensor.reports) for tensor in known if tensor.reports), ())
    return RecordedUpdates(
        tuple((t.info(place), t.reports) for t in known if len(t.reports) == len(formats)),
        tuple(replace(t.info(place), skipped=t.not_measurable) for t in listed if t.not_measurable),
        formats,
        {tensor.name: tensor.movement for tensor in listed if tensor.movement},
        recording.recorded_steps,
    )


def _formats(weights: TensorSource, formats: Sequence[FormatLike], dtype: FormatLike | None) -> tuple[FloatFormat, ...]:
    return tuple(dict.fromkeys(map(get_format, formats))) or default_formats(weights, dtype=dtype)
