"""Tensors in slices that can be read by other processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from precision_lab.numerics.formats import FormatLike
from precision_lab.support.reading import state_of
from precision_lab.tensors import torch_files
from precision_lab.tensors.info import (
    IN_MEMORY,
    Chunks,
    Source,
    TensorFileError,
    TensorInfo,
    TensorSource,
    blaming,
    raw_dtype,
    refusal,
)
from precision_lab.tensors.reading import file_sources, sources_of, stream_of


@dataclass(frozen=True)
class TensorSlice:
    """Elements of a tensor in a file that follow each other, to be read in another process.

    Attributes
    ----------
    tensor : int
        The number of the tensor in the list of all.
    first, count : int
        Which elements.
    size : int
        Bytes of the file: what is read elsewhere under its name must have as many.

    """

    tensor: int
    first: int
    count: int
    size: int
    source: Source


def slice_tensors(
    path: TensorSource, *, elements: int, start: int = 0, dtype: FormatLike | None = None
) -> tuple[list[TensorInfo], list[TensorSlice]]:
    """List the tensors of a path, and cut those of floats into slices that can be sent to other processes.

    Parameters
    ----------
    path, dtype
        As for `read_tensors`, but files only.
    elements : int
        How many a slice has at most; tensors of an ``.npz``, which can be read from the beginning only, stay whole.
    start : int
        The number of the first tensor.

    Raises
    ------
    TensorFileError
        A header is wrong; the tensors are in memory.

    """
    sources = sources_of(path, raw_dtype(dtype))
    absolute = cache(Path.absolute)
    slices = []
    sizes: dict[Path, int] = {}
    for number, source in enumerate(sources, start):
        if source.info.skipped or not source.info.count:
            continue
        if source.info.file is IN_MEMORY:
            raise TensorFileError("tensors in memory cannot be read by other processes; save them, or leave them out")
        file = absolute(source.info.file)  # workers may be in another folder
        if file not in sizes:
            sizes[file] = file.stat().st_size
        size = sizes[file]
        width = source.nbytes // source.info.count
        sent = replace(source, info=replace(source.info, file=file), tensor=None, state=None)
        step = source.info.count if source.member else max(1, elements)
        for first in range(0, source.info.count, step):
            count = min(step, source.info.count - first)
            part = sent if source.member else replace(sent, offset=sent.offset + first * width, nbytes=count * width)
            slices.append(TensorSlice(number, first, count, size, part))
    return [source.info for source in sources], slices


def read_slices(slices: Iterable[TensorSlice], *, chunk_bytes: int = 1 << 20) -> Iterator[tuple[TensorSlice, Chunks]]:
    """Read slices as `read_tensors` reads tensors.

    Raises
    ------
    TensorFileError
        A file is not there, or not the one that was cut.

    """
    listed = list(slices)
    states: dict[Path, Any] = {}  # not those of the process that cut: another machine may see times more coarsely
    for file, size in {s.source.info.file: s.size for s in listed}.items():
        with blaming(file):
            states[file] = state_of(file) if file.is_file() else None
        current = states[file] and states[file][0]
        if current != size:
            what = (
                "not found by a worker" if current is None else f"has {current} bytes for a worker, and {size} at first"
            )
            cure = "do not change files while they are read; with a cluster they must be on a file system shared by all"
            raise refusal(file, what, cure)
    yield from zip(listed, (chunks for _, chunks in stream_of(_filled(listed, states), chunk_bytes)), strict=True)


def _filled(slices: Sequence[TensorSlice], states: Mapping[Path, Any]) -> list[Source]:
    """Give slices what is not sent: the state of their file here, and tensors of torch's files."""
    torchs = {s.source.info.file for s in slices if s.source.info.file.suffix.lower() in torch_files.SUFFIXES}
    tensors = {(source.info.file, source.info.name): source.tensor for f in torchs for source in file_sources(f, None)}
    filled = []
    for s in slices:
        tensor = tensors.get((s.source.info.file, s.source.info.name))
        if tensor is not None:
            tensor = torch_files.part_of(tensor, s.first, s.count)
        filled.append(replace(s.source, tensor=tensor, state=states[s.source.info.file]))
    return filled
