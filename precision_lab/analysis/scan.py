"""Scan tensor files: an exponent histogram of every tensor, and what each format would do to it.

Counts add up exactly, in any order. So the files can be cut into slices that are counted by any number of workers, in
any order and again where one was lost, and the result is the same to the last count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from precision_lab.analysis.binades import compile_for
from precision_lab.analysis.histogram import ExponentHistogram, log2_of_power_of_two
from precision_lab.analysis.recording import Recording, is_recording, read_recording
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.executors import completed
from precision_lab.support.plain import PlainReport, header
from precision_lab.support.shown import Shown
from precision_lab.support.text import shown
from precision_lab.tensors.info import TensorFileError, TensorInfo, TensorSource, labels_of, names_of
from precision_lab.tensors.reading import check_unchanged, is_one_source, open_tensors
from precision_lab.tensors.slices import TensorSlice, read_slices, slice_tensors
from precision_lab.tensors.walk import CHUNK_BYTES, Progress, Walk

DEFAULT_FORMATS = ("fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2")


@dataclass(frozen=True, slots=True)
class ScannedTensor:
    """A tensor of floats and the histogram of its magnitudes."""

    info: TensorInfo
    histogram: ExponentHistogram


@dataclass(frozen=True)
class ScanResult(PlainReport, Shown):
    """All tensors of some files.

    Attributes
    ----------
    tensors : tuple of ScannedTensor
        The tensors of floats, in the order of the files and of their data.
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

    @cached_property
    def total(self) -> ExponentHistogram:
        """The histogram of all elements together."""
        return ExponentHistogram.total(tensor.histogram for tensor in self.tensors)

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
            "tensors": (tensor.info.described() | self._counts(tensor.histogram) for tensor in self.tensors),
            "total": self._counts(self.total),
            "loss_scale": self.loss_scale,
            "skipped": (info.described() for info in self.skipped),
        }

    def _counts(self, histogram: ExponentHistogram) -> dict[str, Any]:
        conversions = [histogram.conversion(fmt, self.loss_scale) for fmt in self.formats]
        return {
            "count": histogram.count,
            "zero": histogram.zero,
            "nonfinite": histogram.nonfinite,
            "min_nonzero": histogram.min_nonzero,
            "max_abs": histogram.max_abs,
            "formats": {
                c.format.name: {"flushed": c.flushed, "subnormal": c.subnormal, "overflowed": c.overflowed}
                for c in conversions
            },
        }


def scan(
    paths: TensorSource | Iterable[TensorSource],
    *,
    formats: Sequence[FormatLike] = DEFAULT_FORMATS,
    loss_scale: float = 1,
    dtype: FormatLike | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
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
    >>> result.to_dict()["total"]["formats"]
    {'fp16': {'flushed': 1, 'subnormal': 0, 'overflowed': 1}}

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
    if executor is None:
        compile_for(walk.elements)
        tensors = [ScannedTensor(info, ExponentHistogram.total(h)) for info, h in walk.map(ExponentHistogram.of_chunks)]
        skipped = list(walk.skipped)
    else:
        tensors, skipped = _spread(walk.places, dtype, executor, walk.elements, progress)
    for place, recording in recordings:
        recorded = scan_recording(recording, place)
        tensors += recorded.tensors
        skipped += recorded.skipped
    return ScanResult(tuple(tensors), tuple(skipped), chosen_formats, float(loss_scale))


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
        tuple(ScannedTensor(info, histogram) for info, histogram in listed if not info.skipped),
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
) -> tuple[list[ScannedTensor], list[TensorInfo]]:
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
    histograms = [ExponentHistogram.empty() for _ in infos]
    done = 0
    for _, counted in completed(_count, list(_tasks(slices, elements)), executor):
        for tensor, histogram in counted.items():
            histograms[tensor] += histogram
            done += histogram.count
        if progress is not None:
            progress(done, everything)
    check_unchanged(states)
    tensors: list[ScannedTensor] = []
    skipped: list[TensorInfo] = []
    for info, histogram in zip(infos, histograms, strict=True):
        if info.skipped:
            skipped.append(info)
            continue
        if histogram.count != info.count:
            what = f"{histogram.count} of {info.count} elements were counted"
            where = f"{shown(info.file, 4096)}, tensor '{shown(info.name, 100)}'"
            raise TensorFileError(f"{where}: {what}; do not change files while they are read")
        tensors.append(ScannedTensor(info, histogram))
    return tensors, skipped


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


def _count(task: tuple[TensorSlice, ...]) -> dict[int, ExponentHistogram]:
    """Return the histograms of the slices, by the number of their tensor."""
    counted: dict[int, ExponentHistogram] = {}
    for s, chunks in read_slices(task, chunk_bytes=CHUNK_BYTES):
        counted[s.tensor] = counted.get(s.tensor, ExponentHistogram.empty()) + ExponentHistogram.of_chunks(chunks)
    return counted
