"""Headers of ``.safetensors``: an 8-byte little-endian length, a JSON object, then the raw data without gaps.

The safetensors library is not used, because its NumPy interface cannot load fp8 (``module 'numpy' has no attribute
'float8_e4m3fn'``) and maps the whole file, so that peak resident memory is the file (1.05 GiB for a 1 GiB file).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from precision_lab.support.reading import MAX_BYTES, parse_json
from precision_lab.tensors.info import AGAIN, Raw, Source, TensorInfo, blaming, checked_shape, refusal, skip_reason

MAX_JSON_BYTES = MAX_BYTES
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


def safetensors_sources(file: Path, _raw: Raw) -> list[Source]:
    """List the tensors of a file, in the order of their data."""
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = 8 + int.from_bytes(stream.read(8), "little")
        if start > 8 + MAX_JSON_BYTES:
            cure = f"{AGAIN}; if it is a Git LFS pointer: git lfs pull"
            raise refusal(file, f"a header of {start - 8} bytes is beyond the limit of {MAX_JSON_BYTES}", cure)
        if start > size:
            raise refusal(file, f"the header takes {start} bytes, the file ends after {size}")
        parsed = json_object(stream.read(start - 8), lighter=_lighter)
    header = dict(zip(_FIELDS, parsed, strict=True)) if isinstance(parsed, tuple) else parsed  # of one tensor alone
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal(file, "__metadata__ must be an object of strings")
    # each entry makes room for what is made of it
    sources = [_safetensors_source(file, name, header.pop(name), start, size) for name in list(header)]
    sources.sort(key=lambda source: (source.offset, source.nbytes))
    end = start
    for source in sources:
        if source.offset != end:
            what = "overlaps the tensor before it" if source.offset < end else "has a hole before its data"
            raise refusal(file, f"it {what}: starts at byte {source.offset}, not {end}", tensor=source.info.name)
        end += source.nbytes
    if end != size:
        raise refusal(file, f"{size - end} trailing bytes that belong to no tensor")
    return sources


_FIELDS = ("dtype", "shape", "data_offsets")


def _lighter(entry: dict[str, Any]) -> Any:
    """Hold the entry of a tensor in half the bytes, as a tuple; what is none stays as it is."""
    values = [entry.get(field) for field in _FIELDS]
    if len(entry) != len(_FIELDS) or [type(value) for value in values] != [str, list, list]:
        return entry
    word, shape, offsets = cast(tuple[str, list[Any], list[Any]], values)
    return sys.intern(word), tuple(shape), tuple(offsets)


def _safetensors_source(file: Path, name: str, entry: object, start: int, size: int) -> Source:
    with blaming(file, name):
        if isinstance(entry, dict) and entry.keys() >= set(_FIELDS):  # the reference implementation ignores others
            entry = tuple(entry[field] for field in _FIELDS)
        if not isinstance(entry, tuple):
            raise ValueError("its header entry must hold dtype, shape and data_offsets")
        word, shape, offsets = (list(value) if isinstance(value, tuple) else value for value in entry)
        shape = checked_shape(shape)
        if not isinstance(word, str) or word not in _SAFETENSORS_DTYPES:
            raise refusal(file, f"unknown dtype {word!r}", f"save it as one of {', '.join(_SAFETENSORS_DTYPES)}", name)
        dtype, bits = _SAFETENSORS_DTYPES[word]
        if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
            raise ValueError(f"data_offsets must be two whole numbers, got {offsets!r}")
        begin, end = offsets
        if not 0 <= begin <= end <= size - start:
            raise ValueError(f"data_offsets {offsets} do not lie in order within the {size - start} bytes of data")
        if bits * math.prod(shape) != 8 * (end - begin):
            raise ValueError(f"{word} of shape {list(shape)} does not fit data_offsets {offsets}, {end - begin} bytes")
        info = TensorInfo(file, name, dtype, shape, skip_reason(dtype))
        return Source(info, start + begin, end - begin, swapped=sys.byteorder == "big")


def json_object(text: bytes, lighter: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse a JSON object; its first byte must be its brace, as the reference implementation demands."""
    if len(text) > MAX_JSON_BYTES or not text.startswith(b"{"):
        raise ValueError(f"the JSON must start with {{ and have at most {MAX_JSON_BYTES} bytes")
    return parse_json(text, lighter=lighter)
