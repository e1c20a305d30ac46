"""What a file says about the optimizer: which one, its hyperparameters by group, and where its moments are.

torch's ``optimizer.state_dict()`` is a dictionary of `state` and `param_groups`; a checkpoint holds it beside the
weights, under whatever key (``optimizer``, ``optimizer_state_dict``, ``optimizer_states`` of Lightning). It is found by
these two entries. Other files may hold moments by name alone: ``NAME.exp_avg``, ``NAME.exp_avg_sq``, ``NAME.step``.

Which optimizer it is follows from the entries of its groups. All that have ``betas`` and are not Adam are told apart:
RAdam lacks ``amsgrad``, NAdam has ``momentum_decay``, Adamax keeps no squares. Adam and AdamW differ in
``decoupled_weight_decay`` (torch 2.7 and newer); older files and other libraries do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.numerics.formats import FormatLike
from precision_lab.numerics.torch_arrays import is_tensor
from precision_lab.support.text import shown
from precision_lab.tensors import torch_files
from precision_lab.tensors.info import TensorFileError, TensorInfo, TensorSource
from precision_lab.tensors.reading import Tensors, list_tensors, mapped_tensors, open_tensors
from precision_lab.training.optimizers import OPTIMIZERS, hyperparameters

PARTS = {
    "adam": ("exp_avg", "exp_avg_sq", "step", "max_exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
"""What the tensors of a parameter's state are called, by family of optimizers."""
NEEDED = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""Those of them without which nothing is known about the updates."""
FAMILY = {"adam": "adam", "adamw": "adam", "sgd": "sgd"}
"""The optimizers whose state can be read."""
_DEEPEST = 4  # dictionaries and lists around that of an optimizer


@dataclass(frozen=True)
class SavedGroup:
    """One of `param_groups`.

    Attributes
    ----------
    keys : tuple of str or None
        Numbers or names of its parameters in their order; None where it does not say.
    names : tuple of str
        Their names, if it has them (torch 2.6 and newer).
    values : dict of str to float
        Its hyperparameters by symbol. One that says nothing, as an lr of 0, is not there.
    first_lr : float or None
        The lr with which its schedule began.
    amsgrad : bool
        Whether the largest second moment so far stands for the last one.
    corrects_bias : bool
        Whether its moments are divided by 1 - beta^t, which some libraries let one switch off.

    """

    keys: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    first_lr: float | None = None
    amsgrad: bool = False
    corrects_bias: bool = True


@dataclass(frozen=True)
class SavedOptimizer:
    """An optimizer as it was saved.

    Attributes
    ----------
    place : str
        Where, for messages.
    family : str or None
        ``adam`` or ``sgd``; None where neither groups nor moments say.
    name : str or None
        Of `OPTIMIZERS`; None where Adam and AdamW are not told apart.
    groups : tuple of SavedGroup
        Empty where there are moments only.
    source : Tensors
        All tensors of its state.
    parts : mapping of str to mapping
        For each parameter that has a state, by its number or name: the names of its tensors by part.

    """

    place: str
    family: str | None
    name: str | None
    groups: tuple[SavedGroup, ...]
    source: Tensors
    parts: Mapping[str, Mapping[str, str]]

    @cached_property
    def infos(self) -> dict[str, TensorInfo]:
        """The tensors of its state by name."""
        return {info.name: info for info in list_tensors(self.source)}


def saved_optimizer(state: TensorSource, *, dtype: FormatLike | None = None) -> SavedOptimizer | None:
    """Read what is known about the optimizer of a place; None where nothing is.

    Parameters
    ----------
    state : path, mapping, Tensors or optimizer
        A checkpoint, a tensor file, an ``optimizer.state_dict()``, an optimizer.
    dtype : format spec, optional
        What the raw items of ``.npy`` and ``.npz`` files are.

    Raises
    ------
    TensorFileError
        It cannot be read; it holds several optimizers, or one whose updates are not known here; a hyperparameter that
        cannot be.

    """
    path = state.place if isinstance(state, Tensors) else state
    from_file = isinstance(path, str | Path)
    place = shown(path, 4096) if from_file else "the optimizer's state"
    content = _content(state)
    found = list(_optimizers(content))
    if len(found) > 1:
        raise TensorFileError(
            f"{place}: {len(found)} optimizers; give the state_dict() of one as the optimizer's state"
        )
    if not found:
        source = open_tensors(state, dtype=dtype) if content is None or isinstance(content, Mapping) else None
        parts = {} if source is None else _parts(source)
        family = _family_of(parts)
        return None if source is None or family is None else SavedOptimizer(place, family, None, (), source, parts)
    flat = _flat(found[0])
    source = mapped_tensors(Path(path), flat) if from_file else open_tensors(flat)
    parts = _parts(source)
    listed = found[0]["param_groups"]
    groups = [group for group in listed if isinstance(group, Mapping)]
    families = {_family_of_group(place, group) for group in groups} - {None}
    if len(families) > 1:
        raise TensorFileError(f"{place}: groups of several optimizers; give the state_dict() of one")
    family = next(iter(families), None) or _family_of(parts)
    if family == "adam" and parts and _family_of(parts) != "adam":
        raise TensorFileError(f"{place}: an optimizer without exp_avg_sq, whose updates are not Adam's; give updates")
    name = _name(groups, family)
    if family is not None and FAMILY.get(own := type(state).__name__.lower()) == family:
        name = own  # an optimizer, and no file of one
    return SavedOptimizer(place, family, name, tuple(_group(place, group) for group in groups), source, parts)


def complete(saved: SavedOptimizer) -> dict[str, Mapping[str, str]]:
    """Return the parts of those parameters whose updates follow from them."""
    needed = set(NEEDED[saved.family]) if saved.family else {""}
    return {key: parts for key, parts in saved.parts.items() if needed <= parts.keys()}


def _content(state: TensorSource) -> Any:
    """Return what torch saved, or is in memory; None for a file of another kind."""
    if isinstance(state, Tensors):
        state = state.place
        if Path(state).suffix.lower() not in torch_files.SUFFIXES:
            return None
    if isinstance(state, str | Path):
        file = Path(state)
        if file.suffix.lower() not in torch_files.SUFFIXES:
            return None
        list_tensors(file)  # says what is wrong with the file, if anything
        return torch_files.load(file)
    return state.state_dict() if hasattr(state, "state_dict") else state


def _optimizers(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the dictionaries that have `state` and `param_groups`, each once."""
    entered: set[int] = set()  # by identity: a file may hold the same list a million times
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if not isinstance(value, Mapping | list | tuple) or id(value) in entered:
            continue
        entered.add(id(value))
        if (
            isinstance(value, Mapping)
            and isinstance(value.get("state"), Mapping)
            and isinstance(value.get("param_groups"), list | tuple)
        ):
            yield value
        elif depth < _DEEPEST:
            inner = value.values() if isinstance(value, Mapping) else value
            waiting += [(one, depth + 1) for one in inner]


def _flat(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors by name, and the numbers of steps, which old versions of torch kept as plain integers."""
    flat: dict[str, Any] = {}
    for key, entry in optimizer["state"].items():
        parts = entry.items() if isinstance(entry, Mapping) else [(None, entry)]
        for part, value in parts:
            if part == "step" and type(value) in (int, float):
                value = np.array([value], np.float64)
            if is_tensor(value) or isinstance(value, np.ndarray):
                flat[f"state.{key}" if part is None else f"state.{key}.{part}"] = value
    return flat


def _parts(source: Tensors) -> dict[str, dict[str, str]]:
    """Return the names of the tensors of each parameter by part; what stands before ``state.`` is no part of its name.

    Tensors of something else, which lie beside them, are not there.
    """
    known = {part for parts in PARTS.values() for part in parts}
    found: dict[str, dict[str, str]] = {}
    for info in list_tensors(source):
        key, _, part = info.name.rpartition(".")
        if key and part in known:
            found.setdefault(re.sub(r"^(?:.*\.)?state\.", "", key), {})[part] = info.name
    return found


def _family_of(parts: Mapping[str, Mapping[str, str]]) -> str | None:
    for family, needed in NEEDED.items():
        if any(set(needed) <= some.keys() for some in parts.values()):
            return family
    return None


def _family_of_group(place: str, group: Mapping[str, Any]) -> str | None:
    """Return the family of optimizers that have such groups; None where it holds too little to say."""
    if "betas" in group:
        radam = "decoupled_weight_decay" in group and "amsgrad" not in group
        if radam or "momentum_decay" in group or "eps" not in group:
            raise TensorFileError(
                f"{place}: an optimizer like RAdam or NAdam, whose updates are not Adam's; give updates"
            )
        return "adam"
    if "nesterov" in group or "dampening" in group:
        return "sgd"
    if {"alpha", "lr_decay", "rho", "etas", "lambd"} & group.keys():
        raise TensorFileError(f"{place}: neither SGD nor Adam, by the entries of its groups; give updates")
    return None


def _name(groups: list[Mapping[str, Any]], family: str | None) -> str | None:
    if family != "adam":
        return family
    decoupled = {group.get("decoupled_weight_decay") for group in groups}
    return {True: "adamw", False: "adam"}.get(decoupled.pop()) if len(decoupled) == 1 else None  # type: ignore[arg-type]


def _group(place: str, group: Mapping[str, Any]) -> SavedGroup:
    raw: dict[str, Any] = {
        symbol: group[symbol] for symbol in ("lr", "eps", "weight_decay", "momentum") if symbol in group
    }
    betas = group.get("betas")
    if isinstance(betas, list | tuple) and len(betas) == 2:
        raw |= {"beta1": betas[0], "beta2": betas[1]}
    values = {symbol: _number(place, symbol, value) for symbol, value in raw.items()}
    if values.get("lr") == 0:
        del values["lr"]  # the end of a schedule: it says nothing about other steps
    ranges = {h.symbol: h.range for kind in OPTIMIZERS.values() for h in hyperparameters(kind).values()}
    for symbol, value in values.items():
        if not ranges[symbol].holds(value):
            raise TensorFileError(f"{place}: {symbol} of a group must be {ranges[symbol].number}, got {value!r}")
    keys, names = group.get("params"), group.get("param_names")
    first = group.get("initial_lr")
    return SavedGroup(
        tuple(shown(key, 1000) for key in keys) if isinstance(keys, list | tuple) else None,
        tuple(map(str, names)) if isinstance(names, list | tuple) else (),
        values,
        None if first is None else _number(place, "initial_lr", first),
        group.get("amsgrad") is True,
        bool(group.get("correct_bias", group.get("bias_correction", True))),
    )


def _number(place: str, symbol: str, value: Any) -> float:
    """Return a hyperparameter as a double: torch takes tensors of one element, too."""
    try:
        if is_tensor(value):
            (value,) = torch_files.chunks_of(value, 2, mapped=True)
        if isinstance(value, bool | str):
            raise TypeError
        (number,) = np.asarray(value, np.float64).reshape(-1)
        return float(number)
    except (TypeError, ValueError, OverflowError):
        raise TensorFileError(f"{place}: {symbol} of a group must be a number, got {shown(value, 40)}") from None
