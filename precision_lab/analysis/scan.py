"""Scan tensor files: an exponent histogram of every tensor, and what each format would do to its range and precision.

Counts and sums are exact, in any order. So the files can be cut into slices that are counted by any number of workers,
in any order and again where one was lost, and the result is the same to the last bit.

Not all that a file holds is of one kind. Parameters have a total; optimizer state, buffers and scales have theirs, and
step counters none. Recorded runs do not add up: each has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

from precision_lab.analysis.binades import compile_for
from precision_lab.analysis.histogram import ExponentHistogram, log2_of_power_of_two
from precision_lab.analysis.quantization import QuantizationReport, Quantizations
from precision_lab.analysis.recording import Recording, is_recording, read_recording
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.executors import completed
from precision_lab.support.plain import PlainReport, header, number
from precision_lab.support.shown import Shown
from precision_lab.support.text import shown
from precision_lab.tensors.info import Chunks, TensorFileError, TensorInfo, TensorSource, labels_of, names_of
from precision_lab.tensors.reading import check_unchanged, is_one_source, open_tensors
from precision_lab.tensors.roles import Role
from precision_lab.tensors.slices import TensorSlice, read_slices, slice_tensors
from precision_lab.tensors.walk import CHUNK_BYTES, Progress, Walk

DEFAULT_FORMATS = ("fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2")


_OTHERS = {Role.MOMENT: "optimizer state", Role.BUFFER: "buffers", Role.SCALE: "scales"}  # that have a total


@dataclass(frozen=True, slots=True)
class ScannedTensor:
    """A tensor of floats, and what was counted of it.

    Attributes
    ----------
    info : TensorInfo
        What the file says of it.
    histogram : ExponentHistogram
        Of its magnitudes.
    precision : tuple of QuantizationReport or None
        What each format costs it; None where that is not known: of a recorded run there are histograms only.
    run : int or None
        Of a recorded run its number among those that were scanned.

    """

    info: TensorInfo
    histogram: ExponentHistogram
    precision: tuple[QuantizationReport, ...] | None = None
    run: int | None = None


@dataclass(frozen=True)
class ScanTotal:
    """What tensors of one kind come to together.

    Attributes
    ----------
    name : str
        Of the kind; "total" where there is no other.
    elements : int
        Of the tensors; a recording has counted each of them several times.
    histogram : ExponentHistogram
        Of all of them.
    precision : tuple of QuantizationReport or None
        As for `ScannedTensor`.

    """

    name: str
    elements: int
    histogram: ExponentHistogram
    precision: tuple[QuantizationReport, ...] | None


@dataclass(frozen=True)
class ScanResult(PlainReport, Shown):
    """All tensors of some files.

    Attributes
    ----------
    tensors : tuple of ScannedTensor
        The tensors of floats, in the order of the files and of their data; recorded runs come last.
    skipped : tuple of TensorInfo
        The others; their `skipped` says why.
    formats : tuple of FloatFormat
        The formats that were asked about.
    loss_scale : float
        The power of two by which every element is multiplied before it is rounded.

    """

    tensors: tuple[ScannedTensor, ...]
    skipped: tuple[TensorInfo, ...]
    formats: tuple[FloatFormat, ...]
    loss_scale: float

    @property
    def total(self) -> ExponentHistogram:
        """The histogram of all parameters of the files, or of a recorded run.

        Raises
        ------
        ValueError
            There are several recorded runs and nothing else: they do not add up. See `totals`.

        """
        if self._parameters is None:
            names = ", ".join(shown(run.name) for run in self._runs)
            raise ValueError(f"recordings of several runs do not add up ({names}): scan one, or look at `totals`")
        return self._parameters.histogram

    @cached_property
    def totals(self) -> tuple[ScanTotal, ...]:
        """What adds up, each by itself: parameters, recorded runs, optimizer state, buffers, scales; no step counters.

        The first stands for nothing only where nothing was scanned.
        """
        totals = ([] if self._parameters is None else [self._parameters]) + self._others
        listed = [total for total in totals if total.histogram.count] or totals[:1]
        return (
            (replace(listed[0], name="total"),) if len(listed) == 1 and listed[0] is self._parameters else tuple(listed)
        )

    @cached_property
    def _runs(self) -> list[ScanTotal]:
        runs = sorted({tensor.run for tensor in self.tensors if tensor.run is not None})
        by_run = [[tensor for tensor in self.tensors if tensor.run == run] for run in runs]
        return [self._sum(tensors[0].info.file.name, tensors) for tensors in by_run]

    @cached_property
    def _parameters(self) -> ScanTotal | None:
        of_files = [tensor for tensor in self.tensors if tensor.run is None]
        if of_files or not self._runs:
            return self._sum("parameters", [tensor for tensor in of_files if tensor.info.role is Role.PARAMETER])
        return self._runs[0] if len(self._runs) == 1 else None

    @cached_property
    def _others(self) -> list[ScanTotal]:
        """The totals but that of the parameters."""
        of_files = [tensor for tensor in self.tensors if tensor.run is None]
        by_role = {name: [tensor for tensor in of_files if tensor.info.role is role] for role, name in _OTHERS.items()}
        runs = [run for run in self._runs if run is not self._parameters]
        return runs + [self._sum(name, tensors) for name, tensors in by_role.items() if tensors]

    def _sum(self, name: str, tensors: Sequence[ScannedTensor]) -> ScanTotal:
        elements = sum(tensor.info.count for tensor in tensors)
        histogram = ExponentHistogram.total(tensor.histogram for tensor in tensors)
        known = [tensor.precision for tensor in tensors if tensor.precision is not None]
        precision = _sums(known, self.formats) if len(known) == len(tensors) else None
        return ScanTotal(name, elements, histogram, precision)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each tensor to show: that of its file stands before it where there are several files."""
        return labels_of(tensor.info for tensor in self.tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """The same names as they are in the files."""
        return names_of(tensor.info for tensor in self.tensors)

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with iterators for its long lists."""
        return {
            **header("scan"),
            "tensors": (
                t.info.described() | {"role": t.info.role.value} | self._counts(t.histogram, t.precision)
                for t in self.tensors
            ),
            "total": None if self._parameters is None else self._described(self._parameters),
            "other_totals": [{"name": total.name} | self._described(total) for total in self._others],
            "loss_scale": self.loss_scale,
            "skipped": (info.described() for info in self.skipped),
        }

    def _described(self, total: ScanTotal) -> dict[str, Any]:
        return self._counts(total.histogram, total.precision)

    def _counts(self, histogram: ExponentHistogram, precision: tuple[QuantizationReport, ...] | None) -> dict[str, Any]:
        conversions = [histogram.conversion(fmt, self.loss_scale) for fmt in self.formats]
        costs = [None] * len(conversions) if precision is None else [_cost(report) for report in precision]
        return {
            "count": histogram.count,
            "zero": histogram.zero,
            "nonfinite": histogram.nonfinite,
            "min_nonzero": histogram.min_nonzero,
            "max_abs": histogram.max_abs,
            "formats": {
                c.format.name: {
                    "flushed": c.flushed,
                    "subnormal": c.subnormal,
                    "overflowed": c.overflowed,
                    "precision": cost,
                }
                for c, cost in zip(conversions, costs, strict=True)
            },
        }


def _cost(report: QuantizationReport) -> dict[str, Any]:
    return {"finite": report.finite, "changed": report.changed} | {
        name: number(getattr(report, name))
        for name in (
            "sqnr_db",
            "bias",
            "bias_standard_error",
            "outward_bias",
            "outward_bias_standard_error",
        )
    }


def _sums(
    listed: Sequence[tuple[QuantizationReport, ...]], formats: Sequence[FloatFormat]
) -> tuple[QuantizationReport, ...]:
    """Add up the reports on each format."""
    if len(listed) == 1:
        return listed[0]
    even = RoundingMode.TIES_TO_EVEN
    return tuple(QuantizationReport.total((r[i] for r in listed), fmt, even) for i, fmt in enumerate(formats))


def scan(
    paths: TensorSource | Iterable[TensorSource],
    *,
    formats: Sequence[FormatLike] = DEFAULT_FORMATS,
    loss_scale: float = 1,
    dtype: FormatLike | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
    precision: bool = True,
) -> ScanResult:
    """Read every tensor of the files once, in bounded memory.

    Parameters
    ----------
    paths : path, mapping or module, or iterable of them
        Files, folders and models as `read_tensors` takes them, and ``.json`` files of `GradientRecorder.save`: recorded
        gradients, whose histograms are there already; they come last.
    formats : sequence of format specs
        What to ask about; see `get_format`.
    loss_scale : float
        A power of two.
    dtype : format spec, optional
        What the raw items of ``.npy`` and ``.npz`` files are.
    executor : concurrent.futures.Executor, optional
        Where slices of the files are counted; its workers must find the files under the same paths. The result is the
        same. Default: this process, one file after the other.
    progress : callable, optional
        Called with the number of elements read and the number of all elements.
    precision : bool
        Whether to count what each format costs in precision, too, which takes longer than the histograms: every element
        is rounded into each of them.

    Raises
    ------
    TensorFileError
        A file cannot be read; all headers of all paths are checked before the first element is read.
    ValueError
        Unknown format; no power of two; no paths.
    WorkersLostError
        The executor cannot go on.
    FloatingPointError
        As `ExponentHistogram.of`; in a worker, too.

    Examples
    --------
    >>> import numpy as np
    >>> result = scan({"gradient": np.array([1e-8, 1e-3, 7e4], np.float32)}, formats=["fp16"])
    >>> fp16 = result.to_dict()["total"]["formats"]["fp16"]
    >>> fp16["flushed"], fp16["subnormal"], fp16["overflowed"]
    (1, 0, 1)
    >>> fp16["precision"]["changed"], round(fp16["precision"]["sqnr_db"], 1)
    (2, 67.9)

    """
    require_gradual_underflow()
    chosen_formats = tuple(dict.fromkeys(map(get_format, formats)))
    log2_of_power_of_two(loss_scale)
    places = [paths] if is_one_source(paths) else list(paths)
    if not places:
        raise ValueError("nothing to scan; name a file or a folder")
    recordings = [(Path(place), read_recording(place)) for place in places if is_recording(place)]
    files = [place for place in places if not is_recording(place)]
    walk = Walk(files, dtype=dtype, progress=progress)
    count = partial(_counted, formats=chosen_formats if precision else (), loss_scale=float(loss_scale))
    if executor is None:
        compile_for(walk.elements)
        found = [(info, _together(parts, count)) for info, parts in walk.map(count)]
        skipped = list(walk.skipped)
    else:
        found, skipped = _spread(walk.places, dtype, executor, walk.elements, progress, count)
    tensors = [ScannedTensor(info, histogram, costs if precision else None) for info, (histogram, costs) in found]
    for run, (place, recording) in enumerate(recordings):
        recorded = scan_recording(recording, place)
        tensors += (replace(tensor, run=run) for tensor in recorded.tensors)
        skipped += recorded.skipped
    return ScanResult(tuple(tensors), tuple(skipped), chosen_formats, float(loss_scale))


_Counted: TypeAlias = tuple[ExponentHistogram, tuple[QuantizationReport, ...]]
_Count: TypeAlias = Callable[[Chunks], _Counted]


def _counted(chunks: Chunks, *, formats: Sequence[FloatFormat], loss_scale: float) -> _Counted:
    """Count the elements of chunks, each of which may be overwritten by the next."""
    costs = Quantizations(formats, loss_scale=loss_scale)

    def each() -> Chunks:
        for chunk in chunks:
            costs.add(chunk)
            yield chunk

    return ExponentHistogram.of_chunks(each()), costs.reports()


def _together(parts: Sequence[_Counted], count: _Count) -> _Counted:
    """Add up what was counted of the parts of a tensor."""
    if len(parts) == 1:
        return parts[0]
    nothing = count(iter(()))
    histograms, costs = zip(nothing, *parts, strict=True)
    return ExponentHistogram.total(histograms), _sums(costs, [report.format for report in nothing[1]])


def scan_recording(
    recording: Recording,
    file: Path | None = None,
    *,
    formats: Sequence[FormatLike] = DEFAULT_FORMATS,
    loss_scale: float = 1,
) -> ScanResult:
    """Return the gradients of a recorded run as if they had been scanned; those that were never there as skipped.

    Parameters
    ----------
    recording : Recording
        From `GradientRecorder.recording` or `read_recording`.
    file : Path, optional
        Where it comes from; default: the name of the model.
    formats, loss_scale
        As for `scan`.

    Raises
    ------
    ValueError
        Unknown format; no power of two.

    """
    log2_of_power_of_two(loss_scale)
    listed = [(tensor.info(file or Path(recording.model)), tensor.gradients) for tensor in recording.tensors]
    return ScanResult(
        tuple(ScannedTensor(info, histogram, run=0) for info, histogram in listed if not info.skipped),
        tuple(info for info, _ in listed if info.skipped),
        tuple(dict.fromkeys(map(get_format, formats))),
        float(loss_scale),
    )


def _spread(
    places: Sequence[TensorSource],
    dtype: FormatLike | None,
    executor: Executor,
    everything: int,
    progress: Progress | None,
    count: _Count,
) -> tuple[list[tuple[TensorInfo, _Counted]], list[TensorInfo]]:
    """Count all tensors on an executor, slice by slice; return those of floats, and the others."""
    elements = _elements_per_task(everything)
    infos: list[TensorInfo] = []
    slices: list[TensorSlice] = []
    states: dict[Path, tuple[int, int] | None] = {}
    for place in places:
        opened = open_tensors(place, dtype=dtype)
        more, cut = slice_tensors(opened, elements=elements, start=len(infos))
        infos += more
        slices += cut
        states |= opened.states
    parts: list[list[_Counted]] = [[] for _ in infos]
    done = 0
    for _, results in completed(partial(_count, count), list(_tasks(slices, elements)), executor):
        for tensor, counted in results.items():
            parts[tensor] = [_together([*parts[tensor], counted], count)]
            done += counted[0].count
        if progress is not None:
            progress(done, everything)
    check_unchanged(states)
    found: list[tuple[TensorInfo, _Counted]] = []
    skipped: list[TensorInfo] = []
    for info, some in zip(infos, parts, strict=True):
        if info.skipped:
            skipped.append(info)
            continue
        counted = _together(some, count)
        if counted[0].count != info.count:
            what = f"{counted[0].count} of {info.count} elements were counted"
            where = f"{shown(info.file, 4096)}, tensor '{shown(info.name, 100)}'"
            raise TensorFileError(f"{where}: {what}; do not change files while they are read")
        found.append((info, counted))
    return found, skipped


def _elements_per_task(everything: int) -> int:
    """Return how many elements are sent to a worker at a time.

    A thousand tasks are enough for any cluster, and fewer than 2^21 elements take less time than sending them costs
    (see docs/scaling.md). More than 2^26, and too much would be done again where a worker is lost.
    """
    return min(max(everything // 1024, 1 << 21), 1 << 26)


def _tasks(slices: Iterable[TensorSlice], elements: int) -> Iterator[tuple[TensorSlice, ...]]:
    """Put small slices together."""
    task: list[TensorSlice] = []
    size = 0
    for s in slices:
        if task and size + s.count > elements:
            yield tuple(task)
            task, size = [], 0
        task.append(s)
        size += s.count
    if task:
        yield tuple(task)


def _count(count: _Count, task: tuple[TensorSlice, ...]) -> dict[int, _Counted]:
    """Return what was counted of the slices, by the number of their tensor."""
    counted: dict[int, _Counted] = {}
    for s, chunks in read_slices(task, chunk_bytes=CHUNK_BYTES):
        part = count(chunks)
        counted[s.tensor] = _together([counted[s.tensor], part], count) if s.tensor in counted else part
    return counted
