"""Tensor files as a stream of named chunks: ``.safetensors``, ``.npz``, ``.npy``, and folders of them.

Memory stays at the headers and one buffer of ``chunk_bytes``, however long the file is; nothing is ever unpickled
(PyTorch's ``.pt`` and ``.pth`` are left to ``torch.load(weights_only=True)``: see `torch_files`). A file is not
trusted: every header of a path is checked before the first tensor is handed out, and what does not add up becomes a
`TensorFileError` of one line. A model in memory, a mapping of names to arrays or anything with ``named_parameters``, is
read in the same way.

The safetensors library is not used, because its NumPy interface cannot load fp8 (``module 'numpy' has no attribute
'float8_e4m3fn'``) and maps the whole file, so that peak resident memory is the file (1.05 GiB for a 1 GiB file). The
format is small: an 8-byte little-endian header length, a JSON header, then the raw data of the tensors without gaps.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from precision_lab.analysis import torch_files
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.inputs import as_array, is_integer
from precision_lab.support.reading import CHANGED, MAX_BYTES, InputError, parse_json, read_small, state_of
from precision_lab.support.text import shown

Chunks: TypeAlias = Iterator[npt.NDArray[Any]]
TensorSource: TypeAlias = Any
"""A path, a mapping of names to arrays or torch tensors (a state_dict), or a module with ``named_parameters``."""

IN_MEMORY = Path("model")
"""What stands for the file of tensors that are in memory."""

_Raw: TypeAlias = np.dtype[Any] | None  # what the void items of .npy and .npz are

_MAX_JSON_BYTES = MAX_BYTES
_MAX_NPY_HEADER_BYTES = 1 << 14
_INDEX_SUFFIX = ".safetensors.index.json"
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pkl"}
_AGAIN = "download or save it again"
_LONGEST = 200  # characters of a name that are shown

# the dtypes of safetensors: the name of the elements and their width in bits
_SAFETENSORS_DTYPES = {
    **{"F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16)},
    **{"F8_E4M3": ("float8_e4m3fn", 8), "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E8M0": ("float8_e8m0fnu", 8)},
    **{"F8_E5M2": ("float8_e5m2", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8)},
    **{"F6_E2M3": ("F6_E2M3", 6), "F6_E3M2": ("F6_E3M2", 6), "F4": ("F4", 4)},
    **{f"I{bits}": (f"int{bits}", bits) for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (f"uint{bits}", bits) for bits in (8, 16, 32, 64)},
    **{"C64": ("complex64", 64), "BOOL": ("bool", 8)},
}
_STREAMED = {"float64"} | {known.dtype.name for known in FORMATS.values() if known.dtype is not None}
_PACKED = "packed elements of less than a byte"
_SKIPPED = {  # by the start of the dtype's name
    "float8_e8m0": "F8_E8M0 holds block scales, not values",
    "float4_e2m1fn_x2": _PACKED,
    **dict.fromkeys(("float80", "float96", "float128", "longdouble"), "extended precision (longdouble)"),
    **dict.fromkeys(("F6", "F4"), _PACKED),
    "bits": "raw bits, of no format",
    "bool": "boolean tensor",
    "int": "integer tensor",
    "uint": "integer tensor",
    "complex": "complex tensor",
}


class TensorFileError(ValueError):
    """A tensor file that cannot be read, in one line: where (file, tensor), what, and the cure."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header of a file says about one tensor.

    Attributes
    ----------
    file : Path
        The file that holds it; in a sharded model the shard.
    name : str
        Its name in the file: for ``.npz`` the member without ``.npy``, for ``.npy`` the file's stem.
    dtype : str
        The NumPy or ml_dtypes name of its elements (``float32``, ``bfloat16``); where there is none, the file's
        own word (``F4``).
    shape : tuple of int
        Its dimensions.
    skipped : str or None
        None for a tensor of floats, which can be streamed; else why it is not, in a few words.
    column_major : bool
        Whether its elements come column by column (a Fortran-ordered ``.npy``).

    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    skipped: str | None = None
    column_major: bool = False

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor and where its bytes are: `nbytes` from `offset` in the file, or in the `member` of the archive."""

    info: TensorInfo
    offset: int
    nbytes: int
    swapped: bool = False  # the bytes of an element are not in this machine's order
    member: str | None = None
    tensor: Any = field(default=None, compare=False, repr=False)  # in memory, or mapped there
    state: tuple[int, int] | None = None  # of the file when its header was read


class Tensors:
    """The tensors of a path, whose headers were read and checked; made by `open_tensors`.

    It may stand wherever a path does, and is then not read and checked again.
    """

    def __init__(self, place: TensorSource, sources: list[_Source]) -> None:
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
        archive = cache(_archive)

        def find(name: str) -> Chunks:
            source = by_name.get(name)
            if source is None:
                raise TensorFileError(f"{self}: no tensor of floats '{shown(name, 100)}'; updates belong by name")
            return _chunks(source, archive(source.info.file) if source.member else None, buffer, chunk_bytes)

        return find


def open_tensors(path: TensorSource, *, dtype: FloatFormat | np.dtype[Any] | str | None = None) -> Tensors:
    """Read and check all headers of a path once, for several `list_tensors` and `read_tensors` of it.

    Parameters and errors are those of `list_tensors`.
    """
    return path if isinstance(path, Tensors) else Tensors(path, _sources(path, _raw_dtype(dtype)))


def labels_of(infos: Iterable[TensorInfo]) -> tuple[str, ...]:
    """Return a name for each tensor to show: that of its file stands before it where there are several files.

    Names are other people's: they are escaped, and cut where they are very long, so that two may be the same.
    """
    listed = list(infos)
    several = of_several_files(listed)
    return tuple(label_of(info, several) for info in listed)


def names_of(infos: Iterable[TensorInfo]) -> tuple[str, ...]:
    """Return the names that `labels_of` shows as they are, for other programs."""
    listed = list(infos)
    several = of_several_files(listed)
    return tuple(f"{info.file.name}: {info.name}" if several else info.name for info in listed)


def of_several_files(infos: Iterable[TensorInfo]) -> bool:
    """Say whether tensors come from more than one file, so that a name alone does not say which it is."""
    return len({info.file for info in infos}) > 1


def label_of(info: TensorInfo, with_file: bool = False) -> str:
    """Return the name of a tensor to show, after that of its file if asked for."""
    name = shown(info.name, _LONGEST)
    return f"{shown(info.file.name, _LONGEST)}: {name}" if with_file else name


def read_tensors(
    path: TensorSource, *, dtype: FloatFormat | np.dtype[Any] | str | None = None, chunk_bytes: int = 1 << 20
) -> Iterator[tuple[TensorInfo, Chunks]]:
    """Read a tensor file, or a folder of them, tensor by tensor and chunk by chunk.

    Parameters
    ----------
    path : Path, str, mapping or module
        A ``.safetensors``, ``.npz`` or ``.npy`` file, a ``*.safetensors.index.json`` that names shards beside it, or
        a folder: with an index its shards are read, otherwise all tensor files of these kinds directly in it, sorted.
        Or a ``.pt`` or ``.pth`` file, of which torch reads the tensors and nothing else. Or a mapping of names to
        arrays or torch tensors, or a module: its ``named_parameters()``.
    dtype : str, numpy.dtype or FloatFormat, optional
        What the raw items of ``.npy`` and ``.npz`` are (``bf16``). NumPy saves bf16 and fp8 arrays as void items, and
        nothing in the file says which format they held. Arrays of a real dtype keep theirs.
    chunk_bytes : int
        Size of the buffer, and with it of a chunk; a chunk has at least one element.

    Yields
    ------
    info : TensorInfo
        One for every tensor, those that are skipped included, in the order of their data.
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
    return _stream(_sources(path, _raw_dtype(dtype)), chunk_bytes)


def list_tensors(path: TensorSource, *, dtype: FloatFormat | np.dtype[Any] | str | None = None) -> list[TensorInfo]:
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
    return [source.info for source in _sources(path, _raw_dtype(dtype))]


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
    source: _Source


def slice_tensors(
    path: TensorSource, *, elements: int, start: int = 0, dtype: FloatFormat | np.dtype[Any] | str | None = None
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
    sources = _sources(path, _raw_dtype(dtype))
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
        with _blaming(file):
            states[file] = state_of(file) if file.is_file() else None
        found = states[file] and states[file][0]
        if found != size:
            what = "not found by a worker" if found is None else f"has {found} bytes for a worker, and {size} at first"
            cure = "do not change files while they are read; with a cluster they must be on a file system shared by all"
            raise _error(file, what, cure)
    yield from zip(listed, (chunks for _, chunks in _stream(_filled(listed, states), chunk_bytes)), strict=True)


def _filled(slices: Sequence[TensorSlice], states: Mapping[Path, Any]) -> list[_Source]:
    """Give slices what is not sent: the state of their file here, and tensors of torch's files."""
    torchs = {s.source.info.file for s in slices if s.source.info.file.suffix.lower() in torch_files.SUFFIXES}
    tensors = {(source.info.file, source.info.name): source.tensor for f in torchs for source in _file_sources(f, None)}
    filled = []
    for s in slices:
        tensor = tensors.get((s.source.info.file, s.source.info.name))
        if tensor is not None:
            tensor = torch_files.part_of(tensor, s.first, s.count)
        filled.append(replace(s.source, tensor=tensor, state=states[s.source.info.file]))
    return filled


def check_unchanged(states: Mapping[Path, tuple[int, int] | None]) -> None:
    """Raise if a file is no longer what it was: `states` are those of `Tensors.states`."""
    for file, state in states.items():
        with _blaming(file):
            _check_unchanged(file, state)


def files_read(path: str | Path) -> list[Path]:
    """Return the files that reading a path would open, whether they can be read or not; none for what is not there.

    A file itself; for an index also all shards that may stand beside it; for a folder what of it is read.
    """
    path = Path(path)
    if path.name.endswith(_INDEX_SUFFIX):
        return [path, *sorted(path.parent.glob("*.safetensors"))]
    if not path.is_dir():
        return [path]
    return sorted(f for f in path.iterdir() if f.suffix.lower() in _IN_FOLDERS or f.name.endswith(_INDEX_SUFFIX))


def is_one_source(place: object) -> bool:
    """Say whether this is one place that tensors come from, and not several."""
    return isinstance(place, str | Path | Mapping | Tensors) or hasattr(place, "named_parameters")


# ---- messages ----


def _check_unchanged(file: Path | int, state: tuple[int, int] | None, name: Path | None = None) -> None:
    """Raise if a file, or an open one of this name, is no longer what it was when its header was read."""
    if state is not None and state_of(file) != state:
        what, _, cure = CHANGED.partition("; ")
        raise _error(name or Path(str(file)), what, cure)


def _error(file: Path, what: object, cure: str = _AGAIN, tensor: str | None = None) -> TensorFileError:
    where = shown(file, 4096) + (f", tensor '{shown(tensor, 100)}'" if tensor is not None else "")
    said = re.sub(r" object at 0x[0-9a-fA-F]+", "", str(what))  # NumPy's parser tells addresses, others each time
    return TensorFileError(f"{where}: {shown(said)}; {cure}")


@contextmanager
def _blaming(file: Path, tensor: str | None = None) -> Iterator[None]:
    """Turn all that is raised inside into a TensorFileError: zipfile and NumPy's header parser raise a dozen kinds."""
    try:
        yield
    except TensorFileError:
        raise
    except InputError as error:  # it names the file
        raise TensorFileError(str(error)) from error
    except OSError as error:
        raise _error(file, error.strerror or error, "check the path, the permissions and the disk", tensor) from error
    except Exception as error:
        raise _error(file, str(error) or type(error).__name__, tensor=tensor) from error


# ---- reading data ----


def _stream(sources: list[_Source], chunk_bytes: int) -> Iterator[tuple[TensorInfo, Chunks]]:
    buffer = _buffer(chunk_bytes)
    for file, group in itertools.groupby(sources, key=lambda source: source.info.file):
        # an archive stays open from tensor to tensor, because opening it reads its whole directory
        with _archive(file) if file.suffix.lower() == ".npz" else nullcontext() as archive:
            for source in group:
                yield source.info, iter(()) if source.info.skipped else _chunks(source, archive, buffer, chunk_bytes)


def _buffer(chunk_bytes: int) -> npt.NDArray[np.uint8]:
    return np.empty(max(chunk_bytes, 8), np.uint8)  # 8: at least one element of any dtype


def _archive(file: Path) -> zipfile.ZipFile:
    with _blaming(file):
        return zipfile.ZipFile(file)


def _chunks(
    source: _Source, archive: zipfile.ZipFile | None, buffer: npt.NDArray[np.uint8], chunk_bytes: int
) -> Chunks:
    """Stream one tensor through the buffer; it opens the file itself, so that tensors can be read in any order."""
    dtype = np.dtype(source.info.dtype)
    file = source.info.file
    if source.tensor is not None:
        yield from _memory_chunks(source, max(1, chunk_bytes // dtype.itemsize))
        return
    step = max(1, chunk_bytes // dtype.itemsize) * dtype.itemsize
    with _blaming(file, source.info.name), _opened(source, archive) as stream:
        handle = stream.fileno() if archive is None or archive.fp is None else archive.fp.fileno()
        _check_unchanged(handle, source.state, file)
        # a member is read up to its data, not sought: seeking may switch the CRC check off
        _ = stream.read(source.offset) if source.member else stream.seek(source.offset)
        for done in range(0, source.nbytes, step):
            part = buffer[: min(step, source.nbytes - done)]
            got = _fill(stream, part.data)
            if done + got == source.nbytes or got < part.size:  # before the last chunk: nobody need ask for more
                _check_unchanged(handle, source.state, file)
            if got < part.size:
                raise ValueError(f"expected {source.nbytes} bytes of data, found {done + got}")
            chunk: npt.NDArray[Any] = part.view(dtype)
            yield chunk.byteswap(inplace=True) if source.swapped else chunk


def _memory_chunks(source: _Source, elements: int) -> Chunks:
    with _blaming(source.info.file, source.info.name):
        if torch_files.is_tensor(source.tensor):
            for chunk in torch_files.chunks_of(source.tensor, elements, mapped=source.state is not None):
                _check_unchanged(source.info.file, source.state)
                yield chunk
            return
        flat = source.tensor.reshape(-1)
        for start in range(0, flat.size, elements):
            part = flat[start : start + elements]
            yield part if part.dtype.isnative else part.astype(part.dtype.newbyteorder("="))


def _opened(source: _Source, archive: zipfile.ZipFile | None) -> io.FileIO | zipfile.ZipExtFile:
    if archive is None or source.member is None:
        return source.info.file.open("rb", buffering=0)
    if archive.fp is None:
        cure = "read the chunks of a tensor before you ask for those of the next file"
        raise _error(source.info.file, "the archive was closed before this tensor was read", cure, source.info.name)
    return cast(zipfile.ZipExtFile, archive.open(source.member))


def _fill(stream: io.FileIO | zipfile.ZipExtFile, view: memoryview) -> int:
    """Read until the view is full or the stream ends; return the number of bytes."""
    done = 0
    while done < len(view) and (got := stream.readinto(view[done:])):
        done += got
    return done


# ---- finding the files ----


def _sources(place: TensorSource, raw: _Raw) -> list[_Source]:
    if isinstance(place, Tensors):
        return place.sources
    if not isinstance(place, str | Path):
        return _memory_sources(place)
    path = Path(place)
    with _blaming(path):
        if path.name.endswith(_INDEX_SUFFIX):
            return _indexed_sources(path)
        if not path.is_dir():
            return _file_sources(path, raw)
        entries = sorted(path.iterdir())
    indexes = [entry for entry in entries if entry.name.endswith(_INDEX_SUFFIX)]
    if len(indexes) > 1:
        names = ", ".join(index.name for index in indexes)
        raise _error(path, f"several models in one folder ({names})", "give the path of the index file to read")
    if indexes:
        return _sources(indexes[0], raw)
    files = [entry for entry in entries if entry.suffix.lower() in _IN_FOLDERS]
    if not files:
        raise _error(path, "folder without tensors", f"give a folder with {', '.join(_IN_FOLDERS)} files")
    return [source for file in files for source in _file_sources(file, raw)]


def _file_sources(file: Path, raw: _Raw) -> list[_Source]:
    with _blaming(file):
        suffix = file.suffix.lower()
        if not file.exists():
            raise _error(file, "no such file", "check the path")
        if suffix in _PICKLE_SUFFIXES:
            cure = "if you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'x.safetensors')"
            raise _error(file, f"{suffix} files are pickles, which are never loaded", cure)
        if suffix not in _READERS:
            raise _error(file, f"unknown kind of tensor file {suffix!r}", "convert it to .safetensors or .npz")
        if not file.is_file():
            raise _error(file, "not a regular file", f"give a folder or a {suffix} file")
        state = state_of(file)
        if state[0] == 0:
            raise _error(file, "the file is empty")
        sources = _READERS[suffix](file, raw)
        _check_unchanged(file, state)
        for i, source in enumerate(sources):  # in place: there may be very many
            sources[i] = replace(source, state=state)
        return sources


def _indexed_sources(index: Path) -> list[_Source]:
    """Read the shards that an index names; each must hold exactly the tensors that the index puts there."""
    content = json_object(read_small(index, _MAX_JSON_BYTES))
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise _error(index, "its weight_map must be an object of tensor names and shard files")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        # an index must not lead out of its folder
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise _error(index, f"shard '{shard}' is not a .safetensors file beside the index", "put it there")
        if not (index.parent / shard).exists():
            raise _error(index, f"shard '{shard}' is missing", "download it into the folder")
    sources = [source for shard in shards for source in _file_sources(index.parent / shard, None)]
    found, listed = {(source.info.name, source.info.file.name) for source in sources}, set(weight_map.items())
    for name, shard in sorted(found - listed):
        raise _error(index, f"it is in shard '{shard}' but not in the index", tensor=name)
    for name, shard in sorted(listed - found):
        raise _error(index, f"it is in the index but not in shard '{shard}'", tensor=name)
    return sources


# ---- tensors in memory ----


def _memory_sources(place: TensorSource) -> list[_Source]:
    """List the parameters of a module, or the arrays of a mapping."""
    content = dict(place.named_parameters()) if hasattr(place, "named_parameters") else place
    if not isinstance(content, Mapping):
        kind = type(place).__name__
        raise ValueError(f"tensors come from a path, a mapping of names to arrays, or a module; got a {kind}")
    return [_memory_source(IN_MEMORY, str(name), value) for name, value in content.items()]


def _memory_source(file: Path, name: str, value: Any) -> _Source:
    with _blaming(file, name):
        if torch_files.is_tensor(value):
            dtype, shape, cannot = torch_files.described(value)
            return _Source(TensorInfo(file, name, dtype, shape, cannot or _skip_reason(dtype)), 0, 0, tensor=value)
        try:
            array = as_array(value)
        except ValueError as error:
            what, _, cure = str(error).rpartition("; ")
            raise _error(file, what or error, cure if what else "give NumPy or torch arrays", name) from error
        if array.dtype.kind not in "biufcV" or array.dtype.names is not None:
            raise _error(file, f"a {type(value).__name__} is no array of numbers", "give NumPy or torch arrays", name)
        return _Source(
            TensorInfo(file, name, array.dtype.name, array.shape, _skip_reason(array.dtype.name)), 0, 0, tensor=array
        )


def _torch_sources(file: Path, _raw: _Raw) -> list[_Source]:
    """List the tensors of a file that torch reads; one that stands there under two names is read under the first."""
    try:
        found = list(torch_files.named_tensors(torch_files.load(file)))
    except ValueError as error:
        what, _, cure = str(error).rpartition("; ")
        raise _error(file, what, cure) from error
    sources: list[_Source] = []
    first: dict[Any, str] = {}
    seen: set[str] = set()
    for name, tensor in found:
        if name in seen:
            raise _error(file, "two tensors of this name", tensor=name)
        seen.add(name)
        source = _memory_source(file, name, tensor)
        if not source.info.skipped and source.info.count:
            same = first.setdefault((torch_files.identity(tensor), source.info.dtype), name)
            if same != name:
                source = replace(source, info=replace(source.info, skipped=f"the same data as '{shown(same, 100)}'"))
        sources.append(source)
    return sources


def mapped_tensors(file: Path, named: Mapping[str, Any]) -> Tensors:
    """Return tensors that `torch_files.load` gave of a file, and arrays, as if they had been found there."""
    state = state_of(file)
    return Tensors(file, [replace(_memory_source(file, name, value), state=state) for name, value in named.items()])


# ---- safetensors headers ----


def _safetensors_sources(file: Path, _raw: _Raw) -> list[_Source]:
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = 8 + int.from_bytes(stream.read(8), "little")
        if start > 8 + _MAX_JSON_BYTES:
            cure = f"{_AGAIN}; if it is a Git LFS pointer: git lfs pull"
            raise _error(file, f"a header of {start - 8} bytes is beyond the limit of {_MAX_JSON_BYTES}", cure)
        if start > size:
            raise _error(file, f"the header takes {start} bytes, the file ends after {size}")
        parsed = json_object(stream.read(start - 8), lighter=_lighter)
    header = dict(zip(_FIELDS, parsed, strict=True)) if isinstance(parsed, tuple) else parsed  # of one tensor alone
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _error(file, "__metadata__ must be an object of strings")
    # each entry makes room for what is made of it
    sources = [_safetensors_source(file, name, header.pop(name), start, size) for name in list(header)]
    sources.sort(key=lambda source: (source.offset, source.nbytes))
    end = start
    for source in sources:
        if source.offset != end:
            what = "overlaps the tensor before it" if source.offset < end else "has a hole before its data"
            raise _error(file, f"it {what}: starts at byte {source.offset}, not {end}", tensor=source.info.name)
        end += source.nbytes
    if end != size:
        raise _error(file, f"{size - end} trailing bytes that belong to no tensor")
    return sources


_FIELDS = ("dtype", "shape", "data_offsets")


def _lighter(found: dict[str, Any]) -> Any:
    """Hold the entry of a tensor in half the bytes, as a tuple; what is none stays as it is."""
    values = [found.get(field) for field in _FIELDS]
    if len(found) != len(_FIELDS) or [type(value) for value in values] != [str, list, list]:
        return found
    word, shape, offsets = cast(tuple[str, list[Any], list[Any]], values)
    return sys.intern(word), tuple(shape), tuple(offsets)


def _safetensors_source(file: Path, name: str, entry: object, start: int, size: int) -> _Source:
    with _blaming(file, name):
        if isinstance(entry, dict) and entry.keys() == set(_FIELDS):
            entry = tuple(entry[field] for field in _FIELDS)
        if not isinstance(entry, tuple):
            raise ValueError("its header entry must hold dtype, shape and data_offsets, and nothing else")
        word, shape, offsets = (list(value) if isinstance(value, tuple) else value for value in entry)
        shape = _shape(shape)
        if not isinstance(word, str) or word not in _SAFETENSORS_DTYPES:
            raise _error(file, f"unknown dtype {word!r}", f"save it as one of {', '.join(_SAFETENSORS_DTYPES)}", name)
        dtype, bits = _SAFETENSORS_DTYPES[word]
        if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
            raise ValueError(f"data_offsets must be two whole numbers, got {offsets!r}")
        begin, end = offsets
        if not 0 <= begin <= end <= size - start:
            raise ValueError(f"data_offsets {offsets} do not lie in order within the {size - start} bytes of data")
        if bits * math.prod(shape) != 8 * (end - begin):
            raise ValueError(f"{word} of shape {list(shape)} does not fit data_offsets {offsets}, {end - begin} bytes")
        info = TensorInfo(file, name, dtype, shape, _skip_reason(dtype))
        return _Source(info, start + begin, end - begin, swapped=sys.byteorder == "big")


def json_object(text: bytes, lighter: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse a JSON object; its first byte must be its brace, as the reference implementation demands."""
    if len(text) > _MAX_JSON_BYTES or not text.startswith(b"{"):
        raise ValueError(f"the JSON must start with {{ and have at most {_MAX_JSON_BYTES} bytes")
    return parse_json(text, lighter=lighter)


# ---- npy and npz headers ----


def _npz_sources(file: Path, raw: _Raw) -> list[_Source]:
    with _archive(file) as archive:
        sources = [_member_source(file, archive, member, raw) for member in archive.infolist()]
    seen: set[str] = set()
    for source in sources:
        if source.info.name in seen:
            raise _error(file, "two members of this name", tensor=source.info.name)
        seen.add(source.info.name)
    return sources


def _member_source(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, raw: _Raw) -> _Source:
    name = member.filename.removesuffix(".npy")
    if name == member.filename:
        info = TensorInfo(file, name, "bytes", (member.file_size,), "not a .npy member")
        return _Source(info, 0, member.file_size)
    with _blaming(file, name):
        # zipfile bounds what it inflates, but not what it gets out of bzip2 and lzma
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _error(file, "neither stored nor deflated", "save it again with np.savez_compressed", name)
        with archive.open(member) as stream:
            return _npy_source(file, name, stream, member.file_size, raw, member.filename)


def _npy_sources(file: Path, raw: _Raw) -> list[_Source]:
    with file.open("rb") as stream, _blaming(file, file.stem):
        return [_npy_source(file, file.stem, stream, os.fstat(stream.fileno()).st_size, raw)]


def _npy_source(file: Path, name: str, stream: IO[bytes], size: int, raw: _Raw, member: str | None = None) -> _Source:
    head = io.BytesIO(stream.read(_MAX_NPY_HEADER_BYTES))
    shape, column_major, dtype = _npy_header(head)
    if dtype.hasobject:
        cure = "save it as a float array: np.save(FILE, array.astype(np.float32))"
        raise _error(file, "object arrays hold pickled Python objects, which are never loaded", cure, name)
    if dtype.names is not None or dtype.subdtype is not None:
        raise _error(file, "structured arrays are not tensors", "save each field as an array of its own", name)
    if dtype.type is np.void:
        if raw is None:
            cure = f"say what they are, for example --dtype {'fp8_e4m3fn' if dtype.itemsize == 1 else 'bf16'}"
            raise _error(file, f"raw items of {dtype.itemsize} bytes (as np.save writes bf16 and fp8)", cure, name)
        if raw.itemsize != dtype.itemsize:
            what = f"raw items of {dtype.itemsize} bytes cannot be {raw.name}, which has {raw.itemsize}"
            raise _error(file, what, "give the --dtype it was saved from", name)
        dtype = raw
    word = sys.intern(dtype.name)  # NumPy makes another text each time
    info = TensorInfo(file, name, word, _shape(shape), _skip_reason(word), column_major)
    expected, found = info.count * dtype.itemsize, size - head.tell()
    if expected != found:
        raise _error(file, f"expected {expected} bytes of data, found {found}", tensor=name)
    return _Source(info, head.tell(), expected, not dtype.isnative, member)


def _npy_header(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the header with NumPy's own reader, leaving `head` behind it."""
    version = npy.read_magic(head)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"unknown .npy version {version}")
    # np.save writes ml_dtypes' float8_e5m2 as '<f1', which NumPy itself does not understand: raw items like its kin
    rest = io.BytesIO(head.read().replace(b"'<f1'", b"'|V1'", 1))
    # version 3 differs from 2 only in the encoding of field names, and arrays with fields are refused
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers of Python 2 warn, but read well
        shape, column_major, dtype = read(rest, max_header_size=_MAX_NPY_HEADER_BYTES)
    head.seek(npy.MAGIC_LEN + rest.tell())
    return shape, column_major, dtype


def npy_array(content: bytes) -> npt.NDArray[Any]:
    """Return the array of a whole ``.npy``; raises ValueError if it is none, or an array of objects."""
    head = io.BytesIO(content)
    try:
        shape, column_major, dtype = _npy_header(head)
        count = math.prod(_shape(shape))
        if dtype.hasobject or len(content) - head.tell() != count * dtype.itemsize:
            raise ValueError(f"{dtype} of shape {shape} does not fit {len(content)} bytes")
        flat = np.frombuffer(content, dtype, count, head.tell())
        return flat.reshape(shape, order="F" if column_major else "C")
    except Exception as error:  # NumPy's parser raises a dozen kinds
        raise ValueError(f"it is no .npy: {error}") from error


# ---- shared by the formats ----


def _shape(value: Any) -> tuple[int, ...]:
    """Check a shape: whole numbers, and no more elements than an array can have."""
    if not isinstance(value, (list, tuple)) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"shape must be a list of whole numbers, none negative, got {value!r}")
    return _possible(tuple(value))


@lru_cache(maxsize=1 << 10)
def _possible(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the same tuple for equal shapes, of which many tensors have few."""
    if len(shape) > 64 or max(shape, default=0) >= 2**63 or math.prod(filter(None, shape)) >= 2**63:
        raise ValueError(f"shape {list(shape)!r} is beyond what an array can hold")
    return shape


def _skip_reason(dtype: str) -> str | None:
    """Say why elements of this dtype are not streamed; None if they are."""
    if dtype in _STREAMED:
        return None
    return next((why for start, why in _SKIPPED.items() if dtype.startswith(start)), f"{dtype} tensor")


def _raw_dtype(spec: FloatFormat | np.dtype[Any] | str | None) -> _Raw:
    if spec is None:
        return None
    dtype = get_format(spec).dtype
    if dtype is None:
        raise ValueError(f"dtype {spec} is not a type that arrays are saved in; give bf16, fp16, fp8_e4m3fn ...")
    return dtype


_READERS: dict[str, Callable[[Path, _Raw], list[_Source]]] = {
    ".safetensors": _safetensors_sources,
    ".npz": _npz_sources,
    ".npy": _npy_sources,
    **dict.fromkeys(torch_files.SUFFIXES, _torch_sources),
}
_IN_FOLDERS = tuple(suffix for suffix in _READERS if suffix not in torch_files.SUFFIXES)
"""What is taken for the weights where a folder is given: ``.pt`` may be anything."""
