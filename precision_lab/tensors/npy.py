"""Headers of ``.npy`` and of the members of ``.npz``, by the parser of NumPy."""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from precision_lab.tensors.info import Raw, Source, TensorInfo, blaming, checked_shape, refusal, skip_reason

_MAX_NPY_HEADER_BYTES = 1 << 14


def archive_of(file: Path) -> zipfile.ZipFile:
    """Open an ``.npz``, which reads its whole directory."""
    with blaming(file):
        return zipfile.ZipFile(file)


def npz_sources(file: Path, raw: Raw) -> list[Source]:
    """List the members of an ``.npz``."""
    with archive_of(file) as archive:
        sources = [_member_source(file, archive, member, raw) for member in archive.infolist()]
    seen: set[str] = set()
    for source in sources:
        if source.info.name in seen:
            raise refusal(file, "two members of this name", tensor=source.info.name)
        seen.add(source.info.name)
    return sources


def _member_source(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, raw: Raw) -> Source:
    name = member.filename.removesuffix(".npy")
    if name == member.filename:
        info = TensorInfo(file, name, "bytes", (member.file_size,), "not a .npy member")
        return Source(info, 0, member.file_size)
    with blaming(file, name):
        # zipfile bounds what it inflates, but not what it gets out of bzip2 and lzma
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refusal(file, "neither stored nor deflated", "save it again with np.savez_compressed", name)
        with archive.open(member) as stream:
            return _npy_source(file, name, stream, member.file_size, raw, member.filename)


def npy_sources(file: Path, raw: Raw) -> list[Source]:
    """Return the array of an ``.npy``."""
    with file.open("rb") as stream, blaming(file, file.stem):
        return [_npy_source(file, file.stem, stream, os.fstat(stream.fileno()).st_size, raw)]


def _npy_source(file: Path, name: str, stream: IO[bytes], size: int, raw: Raw, member: str | None = None) -> Source:
    head = io.BytesIO(stream.read(_MAX_NPY_HEADER_BYTES))
    shape, column_major, dtype = _npy_header(head)
    if dtype.hasobject:
        cure = "save it as a float array: np.save(FILE, array.astype(np.float32))"
        raise refusal(file, "object arrays hold pickled Python objects, which are never loaded", cure, name)
    if dtype.names is not None or dtype.subdtype is not None:
        raise refusal(file, "structured arrays are not tensors", "save each field as an array of its own", name)
    if dtype.type is np.void:
        if raw is None:
            likely = "fp8_e4m3fn" if dtype.itemsize == 1 else "bf16"
            cure = f"say what they are, for example dtype='{likely}' (--dtype {likely})"
            raise refusal(file, f"raw items of {dtype.itemsize} bytes (as np.save writes bf16 and fp8)", cure, name)
        if raw.itemsize != dtype.itemsize:
            what = f"raw items of {dtype.itemsize} bytes cannot be {raw.name}, which has {raw.itemsize}"
            raise refusal(file, what, "give the dtype (--dtype) it was saved from", name)
        dtype = raw
    word = sys.intern(dtype.name)  # NumPy makes another text each time
    info = TensorInfo(file, name, word, checked_shape(shape), skip_reason(word), column_major)
    expected, actual = info.count * dtype.itemsize, size - head.tell()
    if expected != actual:
        raise refusal(file, f"expected {expected} bytes of data, found {actual}", tensor=name)
    return Source(info, head.tell(), expected, not dtype.isnative, member)


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
        count = math.prod(checked_shape(shape))
        if dtype.hasobject or len(content) - head.tell() != count * dtype.itemsize:
            raise ValueError(f"{dtype} of shape {shape} does not fit {len(content)} bytes")
        flat = np.frombuffer(content, dtype, count, head.tell())
        return flat.reshape(shape, order="F" if column_major else "C")
    except Exception as error:  # NumPy's parser raises a dozen kinds
        raise ValueError(f"it is no .npy: {error}") from error
