"""Tensors in memory: arrays, models, and what torch reads of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from precision_lab.numerics.inputs import as_array
from precision_lab.numerics.torch_arrays import is_tensor
from precision_lab.support.text import shown
from precision_lab.tensors import torch_files
from precision_lab.tensors.info import IN_MEMORY, Raw, Source, TensorInfo, TensorSource, blaming, refusal, skip_reason
from precision_lab.tensors.nested import Leaf, leaves
from precision_lab.tensors.roles import role_in_optimizer


def memory_sources(place: TensorSource) -> list[Source]:
    """List the parameters of a module, or the arrays of a mapping, which may hold mappings and lists of more.

    At the top a list of numbers is an array, and what is no array is refused. What lies deeper and is neither an array
    nor a torch tensor is left out, as of a file: an optimizer's state has texts and numbers, too.
    """
    content = dict(place.named_parameters()) if hasattr(place, "named_parameters") else place
    if not isinstance(content, Mapping):
        kind = type(place).__name__
        raise ValueError(f"tensors come from a path, a mapping of names to arrays, or a module; got a {kind}")
    with blaming(IN_MEMORY):
        content = {key: value if _holds_arrays(value) else _Whole(value) for key, value in content.items()}
        found = leaves(content, lambda value: isinstance(value, _Whole) or _is_array(value))
        return _checked(IN_MEMORY, found)


class _Whole(NamedTuple):
    """What stands at the top of a mapping and is not looked into."""

    value: Any


def buffer_sources(module: Any) -> list[Source]:
    """List the buffers of a module."""
    buffers = module.named_buffers() if hasattr(module, "named_buffers") else ()
    return [memory_source(IN_MEMORY, name, value) for name, value in buffers]


def _is_array(value: Any) -> bool:
    return is_tensor(value) or (hasattr(value, "dtype") and hasattr(value, "shape"))


def _holds_arrays(value: Any) -> bool:
    """Say whether a value is a mapping, or a list with arrays in it; a list of numbers is an array itself."""
    if isinstance(value, Mapping):
        return True
    if not isinstance(value, list | tuple) or set(map(type, value)) <= {int, float}:
        return False
    return any(tuple(leaf.value.shape) for leaf in leaves(value, _is_array))


def _checked(file: Path, found: Iterable[Leaf]) -> list[Source]:
    """Return the leaves as sources, each under a name of its own."""
    sources: list[Source] = []
    seen: set[str] = set()
    for name, value, of_optimizer in found:
        if name in seen:
            raise refusal(file, "two tensors of this name", tensor=name)
        seen.add(name)
        source = memory_source(file, name, value.value if isinstance(value, _Whole) else value)
        if of_optimizer:
            source = replace(source, info=replace(source.info, role=role_in_optimizer(name)))
        sources.append(source)
    return sources


def memory_source(file: Path, name: str, value: Any) -> Source:
    """Return an array or a torch tensor as if it were in a file."""
    with blaming(file, name):
        if is_tensor(value):
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
        found = list(leaves(torch_files.load(file), is_tensor))
    except ValueError as error:
        what, _, cure = str(error).rpartition("; ")
        raise refusal(file, what, cure) from error
    sources = _checked(file, (leaf._replace(name=leaf.name or "tensor") for leaf in found))
    first: dict[Any, str] = {}
    for i, source in enumerate(sources):
        info = source.info
        if not info.skipped and info.count:
            same = first.setdefault((torch_files.identity(source.tensor), info.dtype), info.name)
            if same != info.name:
                sources[i] = replace(source, info=replace(info, skipped=f"the same data as '{shown(same, 100)}'"))
    return sources
