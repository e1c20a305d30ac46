"""Tensor files as a stream of named chunks: ``.safetensors``, ``.npz``, ``.npy``, and folders of them.

Memory stays at the headers and one buffer of ``chunk_bytes``, however long the file is; nothing is ever unpickled
(PyTorch's ``.pt`` and ``.pth`` are left to ``torch.load(weights_only=True)``: see `torch_files`). A file is not
trusted: every header of a path is checked before the first tensor is handed out, and what does not add up becomes a
`TensorFileError` of one line. A model in memory, a mapping of names to arrays or anything with ``named_parameters``, is
read in the same way.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from precision_lab.numerics.formats import FormatLike
from precision_lab.numerics.torch_arrays import is_tensor
from precision_lab.support.arguments import is_integer
from precision_lab.support.reading import read_small, state_of
from precision_lab.support.text import shown
from precision_lab.support.threads import LEAST
from precision_lab.tensors import torch_files
from precision_lab.tensors.codes import UNSCALED, Codes, find_codes
from precision_lab.tensors.in_memory import buffer_sources, memory_source, memory_sources, torch_sources
from precision_lab.tensors.info import (
    IN_MEMORY,
    Chunks,
    Raw,
    Source,
    TensorFileError,
    TensorInfo,
    TensorSource,
    blaming,
    check_state,
    raw_dtype,
    refusal,
)
from precision_lab.tensors.npy import archive_of, npy_sources, npz_sources
from precision_lab.tensors.roles import Role, find_roles
from precision_lab.tensors.safetensors import MAX_JSON_BYTES, json_object, safetensors_sources

INDEX_SUFFIX = ".index.json"
_INDEXED = (".safetensors", ".bin")  # what shards are
MISSING = "the shard is missing: all totals are of the shards that are there"
PIECE_BYTES = 1 << 20
"""What a thread reads at a time: it stays in the second-level cache until it is counted."""


class Tensors:
    """The tensors of a path, whose headers were read and checked; made by `open_tensors`.

    It may stand wherever a path does, and is then not read and checked again.
    """

    def __init__(self, place: TensorSource, sources: list[Source]) -> None:
        self.place = place if isinstance(place, str | Path) else IN_MEMORY
        self.sources = sources

    def __str__(self) -> str:
        """Return the path, for messages."""
        return shown(self.place, 4096)

    @property
    def states(self) -> dict[Path, tuple[int, int] | None]:
        """What each of the files was when its header was read."""
        return {source.info.file: source.state for source in self.sources}

    def finder(self, chunk_bytes: int) -> Callable[[str], Chunks]:
        """Return what gives the chunks of a tensor of floats by its name, in any order; as `read_tensors` else."""
        by_name = {source.info.name: source for source in reversed(self.sources) if not source.info.skipped}
        buffer = _buffer(chunk_bytes)
        archive = cache(archive_of)

        def find(name: str) -> Chunks:
            source = by_name.get(name)
            if source is None:
                raise TensorFileError(f"{self}: no tensor of floats '{shown(name, 100)}'; updates belong by name")
            return _chunks(source, archive(source.info.file) if source.member else None, buffer, chunk_bytes)

        return find


def open_tensors(path: TensorSource, *, dtype: FormatLike | None = None) -> Tensors:
    """Read and check all headers of a path once, for several `list_tensors` and `read_tensors` of it.

    Parameters and errors are those of `list_tensors`.
    """
    return path if isinstance(path, Tensors) else Tensors(path, sources_of(path, raw_dtype(dtype)))


def read_tensors(
    path: TensorSource, *, dtype: FormatLike | None = None, chunk_bytes: int = 1 << 20
) -> Iterator[tuple[TensorInfo, Chunks]]:
    """Read a tensor file, or a folder of them, tensor by tensor and chunk by chunk.

    Parameters
    ----------
    path : Path, str, mapping or module
        A ``.safetensors``, ``.npz`` or ``.npy`` file; a ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.pkl`` file, of
        which torch reads the tensors and nothing else; a ``*.safetensors.index.json`` or ``*.bin.index.json`` that
        names shards beside it; or a folder: with an index its shards are read, otherwise all tensor files directly in
        it, sorted. Files of torch are read where a folder has no others. Or a mapping of names to arrays or torch
        tensors, which may hold mappings and lists of more, or a module: its ``named_parameters()``.
    dtype : str, numpy.dtype or FloatFormat, optional
        What the raw items of ``.npy`` and ``.npz`` are (``bf16``). NumPy saves bf16 and fp8 arrays as void items, and
        nothing in the file says which format they held. Arrays of a real dtype keep theirs.
    chunk_bytes : int
        Size of the buffer, and with it of a chunk; a chunk has at least one element.

    Yields
    ------
    info : TensorInfo
        One for every tensor, those that are skipped included, in the order of their data; and one for each tensor
        that an index promises and no shard holds, and for each file of a folder that is not read, as skipped.
    chunks : iterator of numpy.ndarray
        Its elements as one-dimensional arrays in native byte order and in the order of memory (so a Fortran-ordered
        array comes column by column); empty for a skipped tensor. All chunks are views of one buffer, overwritten by
        the next chunk of any tensor: copy what you keep, and write to none. Chunks may be left unread, or read later,
        but those of an ``.npz`` must be begun before the next file is asked for.

    Raises
    ------
    TensorFileError
        At once where any header is wrong; while reading where the data is (a file cut short meanwhile, a bad CRC in
        an ``.npz``, which shows with the last chunk of the array).
    ValueError
        `dtype` or `chunk_bytes` is not usable.

    """
    if not is_integer(chunk_bytes) or chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be at least 1, got {chunk_bytes!r}")
    return stream_of(sources_of(path, raw_dtype(dtype)), chunk_bytes)


def list_tensors(path: TensorSource, *, dtype: FormatLike | None = None) -> list[TensorInfo]:
    """List the tensors of a path in the order of `read_tensors`; checks all headers and reads no data.

    Parameters
    ----------
    path, dtype
        As for `read_tensors`.

    Raises
    ------
    TensorFileError
        A header is wrong.

    """
    return [source.info for source in sources_of(path, raw_dtype(dtype))]


def check_unchanged(states: Mapping[Path, tuple[int, int] | None]) -> None:
    """Raise if a file is no longer what it was: `states` are those of `Tensors.states`."""
    for file, state in states.items():
        with blaming(file):
            check_state(file, state)


def files_read(path: str | Path) -> list[Path]:
    """Return the files that reading a path would open, whether they can be read or not; none for what is not there.

    A file itself; for an index also all shards that may stand beside it; for a folder all that may be tensors.
    """
    path = Path(path)
    if shards := _shards_of(path):
        return [path, *sorted(path.parent.glob(f"*{shards}"))]
    if not path.is_dir():
        return [path]
    return sorted(f for f in path.iterdir() if f.suffix.lower() in _READERS or _shards_of(f))


def is_one_source(place: object) -> bool:
    """Say whether this is one place that tensors come from, and not several."""
    return isinstance(place, str | Path | Mapping | Tensors) or hasattr(place, "named_parameters")


def stream_of(sources: list[Source], chunk_bytes: int) -> Iterator[tuple[TensorInfo, Chunks]]:
    """Read tensors, all through one buffer; see `read_tensors`."""
    buffer = _buffer(chunk_bytes)
    for file, group in itertools.groupby(sources, key=lambda source: source.info.file):
        # an archive stays open from tensor to tensor, because opening it reads its whole directory
        with archive_of(file) if file.suffix.lower() == ".npz" else nullcontext() as archive:
            for source in group:
                yield source.info, iter(()) if source.info.skipped else _chunks(source, archive, buffer, chunk_bytes)


def _buffer(chunk_bytes: int) -> npt.NDArray[np.uint8]:
    return np.empty(max(chunk_bytes, 8), np.uint8)  # 8: at least one element of any dtype


def _chunks(
    source: Source,
    archive: zipfile.ZipFile | None,
    buffer: npt.NDArray[np.uint8],
    chunk_bytes: int,
    numbers: Iterator[int] | None = None,
) -> Chunks:
    """Stream one tensor through the buffer, or the chunks of these numbers.

    It opens the file itself, so that tensors can be read in any order.
    """
    dtype = np.dtype(source.info.dtype)
    file = source.info.file
    if source.tensor is not None:
        yield from _memory_chunks(source, max(1, chunk_bytes // dtype.itemsize), numbers)
        return
    step = max(1, chunk_bytes // dtype.itemsize) * dtype.itemsize
    with blaming(file, source.info.name), _opened(source, archive) as stream:
        handle = stream.fileno() if archive is None or archive.fp is None else archive.fp.fileno()
        check_state(handle, source.state, file)
        # a member is read up to its data, not sought: seeking may switch the CRC check off
        _ = stream.read(source.offset) if source.member else stream.seek(source.offset)
        for done in range(0, source.nbytes, step) if numbers is None else (number * step for number in numbers):
            if numbers is not None:
                stream.seek(source.offset + done)
            part = buffer[: min(step, source.nbytes - done)]
            got = _fill(stream, part.data)
            # before the last chunk: nobody need ask for more; and which of some numbers is the last one nobody knows
            if done + got == source.nbytes or got < part.size or numbers is not None:
                check_state(handle, source.state, file)
            if got < part.size:
                raise ValueError(f"expected {source.nbytes} bytes of data, found {done + got}")
            chunk: npt.NDArray[Any] = part.view(dtype)
            yield chunk.byteswap(inplace=True) if source.swapped else chunk


def pieces_of(source: Source) -> range:
    """Return the numbers of the pieces of a tensor that several threads can read; of others one number, or none."""
    if source.info.skipped or not source.info.count:
        return range(0)
    if source.member or is_tensor(source.tensor) or source.info.count < LEAST:
        return range(1)
    return range(-(-source.info.count // (PIECE_BYTES // np.dtype(source.info.dtype).itemsize)))


def read_pieces(source: Source, numbers: Iterator[int]) -> Chunks:
    """Read pieces of a tensor, through a buffer for these alone; other threads may read others meanwhile."""
    return _chunks(source, None, _buffer(PIECE_BYTES), PIECE_BYTES, numbers)


def _memory_chunks(source: Source, elements: int, numbers: Iterator[int] | None) -> Chunks:
    with blaming(source.info.file, source.info.name):
        if is_tensor(source.tensor):
            for chunk in torch_files.chunks_of(source.tensor, elements, mapped=source.state is not None):
                check_state(source.info.file, source.state)
                yield chunk
            return
        flat = source.tensor.reshape(-1)
        for start in range(0, flat.size, elements) if numbers is None else (number * elements for number in numbers):
            part = flat[start : start + elements]
            yield part if part.dtype.isnative else part.astype(part.dtype.newbyteorder("="))


def _opened(source: Source, archive: zipfile.ZipFile | None) -> io.FileIO | zipfile.ZipExtFile:
    if archive is None or source.member is None:
        return source.info.file.open("rb", buffering=0)
    if archive.fp is None:
        cure = "read the chunks of a tensor before you ask for those of the next file"
        raise refusal(source.info.file, "the archive was closed before this tensor was read", cure, source.info.name)
    return cast(zipfile.ZipExtFile, archive.open(source.member))


def _fill(stream: io.FileIO | zipfile.ZipExtFile, view: memoryview) -> int:
    """Read until the view is full or the stream ends; return the number of bytes."""
    done = 0
    while done < len(view) and (got := stream.readinto(view[done:])):
        done += got
    return done


def sources_of(place: TensorSource, raw: Raw) -> list[Source]:
    """List the tensors of a place, and what each is for; see `read_tensors`."""
    if isinstance(place, Tensors):
        return place.sources
    if isinstance(place, str | Path):
        return _with_roles(_sources_at(Path(place), raw))
    sources = memory_sources(place)
    if not hasattr(place, "named_parameters"):
        return _with_roles(sources)
    found = find_codes([source.info for source in (*sources, *buffer_sources(place))])
    return _with_codes(sources, found)  # all else that a module calls a parameter is one


def _with_roles(sources: list[Source]) -> list[Source]:
    infos = [source.info for source in sources]
    found = find_codes(infos)
    for i, role in find_roles(infos):  # in place: there may be very many
        sources[i] = replace(sources[i], info=replace(infos[i], role=role))
    return _with_codes(sources, found)


def _with_codes(sources: list[Source], found: Codes) -> list[Source]:
    for i, reason in found.reasons.items():
        if i < len(sources):
            sources[i] = replace(sources[i], info=replace(sources[i].info, skipped=reason))
    for i in found.scales:
        if i < len(sources):
            sources[i] = replace(sources[i], info=replace(sources[i].info, role=Role.SCALE))
    for i in found.unscaled:
        if i < len(sources) and sources[i].info.role is Role.PARAMETER:
            sources[i] = replace(sources[i], info=replace(sources[i].info, note=UNSCALED))
    return sources


def _sources_at(path: Path, raw: Raw) -> list[Source]:
    with blaming(path):
        if _shards_of(path):
            return _indexed_sources(path)
        if not path.is_dir():
            return file_sources(path, raw)
        entries = sorted(path.iterdir())
    of_torch = [entry for entry in entries if entry.suffix.lower() in torch_files.SUFFIXES]
    for shards, kinds in zip(_INDEXED, (_PLAIN, torch_files.SUFFIXES), strict=True):  # those of torch come last
        indexes = [entry for entry in entries if _shards_of(entry) == shards]
        if len(indexes) > 1:
            names = ", ".join(index.name for index in indexes)
            raise refusal(path, f"several models in one folder ({names})", "give the path of the index file to read")
        if indexes:
            sources = _indexed_sources(indexes[0])
            read = {source.info.file for source in sources}
            return sources + [_left(file, "not in the index, and not read") for file in of_torch if file not in read]
        files = [entry for entry in entries if entry.suffix.lower() in kinds]
        if files and kinds is _PLAIN:
            sources = [source for file in files for source in file_sources(file, raw)]
            return sources + [_left(file, f"not read beside {files[-1].suffix} files") for file in of_torch]
        if files:
            return _torch_folder(files)
    raise refusal(path, "folder without tensors", f"give a folder with {', '.join(_READERS)} files")


def _torch_folder(files: list[Path]) -> list[Source]:
    """Read the files of torch in a folder, but for those with something else in them: a trainer's arguments."""
    sources: list[Source] = []
    refused: list[TensorFileError] = []
    for file in files:
        try:
            sources += file_sources(file, None)
        except TensorFileError as error:
            if not isinstance(error.__cause__, torch_files.NotTensorsError):
                raise
            refused.append(error)
            sources.append(_left(file, str(error.__cause__).partition(", and torch.load")[0]))
    if len(refused) == len(files):
        raise refused[0]
    return sources


def _left(file: Path, why: str) -> Source:
    """Return what stands for a file that is not read."""
    return Source(TensorInfo(file, file.name, "bytes", (file.stat().st_size,), why), 0, 0)


def file_sources(file: Path, raw: Raw) -> list[Source]:
    """List the tensors of one file, with the state in which it was when they were."""
    with blaming(file):
        suffix = file.suffix.lower()
        if not file.exists():
            raise refusal(file, "no such file", "check the path")
        if suffix not in _READERS:
            raise refusal(file, f"unknown kind of tensor file {suffix!r}", "convert it to .safetensors or .npz")
        if not file.is_file():
            raise refusal(file, "not a regular file", f"give a folder or a {suffix} file")
        state = state_of(file)
        if state[0] == 0:
            raise refusal(file, "the file is empty")
        sources = _READERS[suffix](file, raw)
        check_state(file, state)
        for i, source in enumerate(sources):  # in place: there may be very many
            sources[i] = replace(source, state=state)
        return sources


def _shards_of(path: Path) -> str | None:
    """Return which kind of shards a path is an index of, if it is one."""
    return next((kind for kind in _INDEXED if path.name.endswith(kind + INDEX_SUFFIX)), None)


def _indexed_sources(index: Path) -> list[Source]:
    """Read the shards that an index names, and note where they and the index do not agree.

    What is promised and nowhere is skipped. A shard that is not there is no reason to refuse the others, but none to
    pass for the whole model.
    """
    with blaming(index):
        weight_map = json_object(read_small(index, MAX_JSON_BYTES)).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise refusal(index, "its weight_map must be an object of tensor names and shard files")
        shards = sorted(set(weight_map.values()))
        suffix = cast(str, _shards_of(index))
        for shard in shards:
            # an index must not lead out of its folder
            if Path(shard).name != shard or not shard.endswith(suffix):
                raise refusal(index, f"shard '{shard}' is not a {suffix} file beside the index", "put it there")
        there = [shard for shard in shards if (index.parent / shard).exists()]
        if shards and not there:
            raise refusal(index, f"shard '{shards[0]}' is missing, as all others are", "download it into the folder")
    sources = [source for shard in there for source in file_sources(index.parent / shard, None)]
    places = {(source.info.name, source.info.file.name) for source in sources}
    for i, source in enumerate(sources):
        info = source.info
        listed = weight_map.get(info.name)
        if listed == info.file.name:
            continue
        if (info.name, listed) in places:
            info = replace(info, skipped="the index has it in another shard, which holds it, too")
        else:
            info = replace(info, note="not in the index" if listed is None else "the index has it in another shard")
        sources[i] = replace(source, info=info)
    names = {name for name, _ in places}
    for name, shard in sorted(weight_map.items()):
        if name not in names:
            why = "in the index, but in no shard" if shard in there else MISSING
            sources.append(Source(TensorInfo(index.parent / shard, name, "unknown", (0,), why), 0, 0))
    return sources


def mapped_tensors(file: Path, named: Mapping[str, Any]) -> Tensors:
    """Return tensors that `torch_files.load` gave of a file, and arrays, as if they had been found there."""
    state = state_of(file)
    return Tensors(file, [replace(memory_source(file, name, value), state=state) for name, value in named.items()])


_READERS: dict[str, Callable[[Path, Raw], list[Source]]] = {
    ".safetensors": safetensors_sources,
    ".npz": npz_sources,
    ".npy": npy_sources,
    **dict.fromkeys(torch_files.SUFFIXES, torch_sources),
}

_PLAIN = tuple(suffix for suffix in _READERS if suffix not in torch_files.SUFFIXES)
"""What is taken for the weights where a folder has it: files of torch may be anything."""
