"""Tensors that belong together by name, weights and their updates, in step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from precision_lab.support.text import shown
from precision_lab.tensors.codes import is_code
from precision_lab.tensors.info import Chunks, TensorFileError, TensorInfo
from precision_lab.tensors.reading import Tensors
from precision_lab.tensors.roles import Role

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into the names of what they wrap, anywhere."""


def in_names_of(weights: Tensors, updates: Tensors) -> Tensors:
    """Return the updates under the names of the weights, where these differ only by what wrappers put into them.

    Besides `_WRAPPERS` that is ``module.`` at the beginning, of data parallel training. A note says so of each tensor.

    Raises
    ------
    TensorFileError
        Two tensors of a file differ only by that, so that it is not clear which is meant.

    """
    there = {source.info.name for source in updates.sources}
    if there >= {s.info.name for s in weights.sources if s.info.role is Role.PARAMETER and not s.info.skipped}:
        return updates
    by_plain = _by_plain_name(weights)
    _by_plain_name(updates)
    sources = []
    for source in updates.sources:
        name = by_plain.get(_unwrapped(source.info.name), source.info.name)
        if name != source.info.name:
            differ = set(name.split(".")) ^ set(source.info.name.split("."))
            note = "matched by name but for " + " and ".join(f"'{part}.'" for part in sorted(differ))
            source = replace(source, info=replace(source.info, name=name, note=note))
        sources.append(source)
    return Tensors(updates.place, sources)


def _unwrapped(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _by_plain_name(tensors: Tensors) -> dict[str, str]:
    """Return the names by what they are without wrappers."""
    names: dict[str, str] = {}
    for source in tensors.sources:
        name = source.info.name
        other = names.setdefault(_unwrapped(name), name)
        if other != name:
            both = f"'{shown(other, 100)}' and '{shown(name, 100)}'"
            raise TensorFileError(f"{tensors}: {both} differ only by what wrappers put before names; give one of them")
    return names


def check_partners(
    weights: Tensors, updates: Tensors, of_weights: Sequence[TensorInfo], of_updates: Sequence[TensorInfo]
) -> None:
    """Raise if the parameters of two files do not belong together one by one; the weights say which are parameters."""
    beside = _beside(of_weights)
    beside |= _beside(of_updates) - {info.name for info in of_weights}
    sides = []
    for path, infos in ((weights, of_weights), (updates, of_updates)):
        listed = [info for info in infos if not info.skipped and info.name not in beside]
        names = Counter(info.name for info in listed)
        if twice := [name for name, n in names.items() if n > 1]:
            raise TensorFileError(f"{path}: two tensors are named '{shown(twice[0], 100)}'; give one file of them")
        sides.append({info.name: info for info in listed})
    here, there = (weights, sides[0]), (updates, sides[1])
    for (path, present), (other_path, other) in ((here, there), (there, here)):
        if missing := [name for name in present if name not in other]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            first = shown(missing[0], 100)
            raise TensorFileError(
                f"{other_path}: no tensor '{first}'{more}, which {path} has; updates belong to weights by name"
            )
    for name, info in sides[0].items():
        update = sides[1][name]
        if info.shape != update.shape:
            raise TensorFileError(
                f"{updates}, tensor '{shown(name, 100)}': shape {update.shape} is not that of the weights, {info.shape}"
            )
        if info.column_major != update.column_major and sum(n > 1 for n in info.shape) > 1:
            raise TensorFileError(
                f"{updates}, tensor '{shown(name, 100)}': stored in another order (rows, columns) than the weights; "
                "save both with np.ascontiguousarray"
            )


def _beside(infos: Sequence[TensorInfo]) -> set[str]:
    """Return the names of what is no parameter, or has no values."""
    return {info.name for info in infos if info.role is not Role.PARAMETER or (info.skipped and is_code(info.skipped))}


def in_step(first: Chunks, second: Chunks) -> Iterator[tuple[Any, Any]]:
    """Cut two streams of chunks so that both have the same number of elements at a time."""
    b: Any = ()
    for a in first:
        while len(a):
            if not len(b):
                b = next(second)
            n = min(len(a), len(b))
            yield a[:n], b[:n]
            a, b = a[n:], b[n:]
