"""Tensors in memory: arrays, models, and what torch reads of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from precision_lab.numerics.inputs import as_array
from precision_lab.support.text import shown
from precision_lab.tensors import torch_files
from precision_lab.tensors.info import IN_MEMORY, Raw, Source, TensorInfo, TensorSource, blaming, refusal, skip_reason


def memory_sources(place: TensorSource) -> list[Source]:
    """List the parameters of a module, or the arrays of a mapping."""
    content = dict(place.named_parameters()) if hasattr(place, "named_parameters") else place
    if not isinstance(content, Mapping):
        kind = type(place).__name__
        raise ValueError(f"tensors come from a path, a mapping of names to arrays, or a module; got a {kind}")
    return [memory_source(IN_MEMORY, str(name), value) for name, value in content.items()]


def memory_source(file: Path, name: str, value: Any) -> Source:
    """Return an array or a torch tensor as if it were in a file."""
    with blaming(file, name):
        if torch_files.is_tensor(value):
            dtype, shape, cannot = torch_files.described(value)
            return Source(TensorInfo(file, name, dtype, shape, cannot or skip_reason(dtype)), 0, 0, tensor=value)
        try:
            array = as_array(value)
        except ValueError as error:
            what, _, cure = str(error).rpartition("; ")
            raise refusal(file, what or error, cure if what else "give NumPy or torch arrays", name) from error
        if array.dtype.kind not in "biufcV" or array.dtype.names is not None:
            raise refusal(file, f"a {type(value).__name__} is no array of numbers", "give NumPy or torch arrays", name)
        return Source(
            TensorInfo(file, name, array.dtype.name, array.shape, skip_reason(array.dtype.name)), 0, 0, tensor=array
        )


def torch_sources(file: Path, _raw: Raw) -> list[Source]:
    """List the tensors of a file that torch reads; one that stands there under two names is read under the first."""
    try:
        tensors = list(torch_files.named_tensors(torch_files.load(file)))
    except ValueError as error:
        what, _, cure = str(error).rpartition("; ")
        raise refusal(file, what, cure) from error
    sources: list[Source] = []
    first: dict[Any, str] = {}
    seen: set[str] = set()
    for name, tensor in tensors:
        if name in seen:
            raise refusal(file, "two tensors of this name", tensor=name)
        seen.add(name)
        source = memory_source(file, name, tensor)
        if not source.info.skipped and source.info.count:
            same = first.setdefault((torch_files.identity(tensor), source.info.dtype), name)
            if same != name:
                source = replace(source, info=replace(source.info, skipped=f"the same data as '{shown(same, 100)}'"))
        sources.append(source)
    return sources
