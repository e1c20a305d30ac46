"""The updates that an Adam would make now, from its moments in a file.

Adam's state is two numbers a weight, the running averages of the gradient and of its square, and from them its next
update follows: u = -lr * m^ / (sqrt(v^) + eps), m^ and v^ being the moments over their bias corrections (Kingma and Ba
2015, algorithm 1). So a checkpoint of the optimizer says how large the updates really are, where the learning rate
alone says only how large they may be.

Moments belong to weights by name: ``NAME.exp_avg`` and ``NAME.exp_avg_sq`` (and ``NAME.step``), also inside
``state`` as torch's ``optimizer.state_dict()`` has them. torch numbers the parameters instead of naming them, unless
the optimizer was made from ``model.named_parameters()``; numbers are taken only where the order of the weights is known
to be the model's, and every shape fits: a moment paired with the wrong weight would go unnoticed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.numerics import fixed
from precision_lab.numerics.formats import FormatLike
from precision_lab.support.text import shown
from precision_lab.tensors import torch_files
from precision_lab.tensors.info import Chunks, TensorFileError, TensorInfo, TensorSource
from precision_lab.tensors.pairs import in_step
from precision_lab.tensors.reading import Tensors, list_tensors, mapped_tensors, open_tensors
from precision_lab.tensors.walk import CHUNK_BYTES
from precision_lab.training.optimizers import Adam

PARTS = ("exp_avg", "exp_avg_sq", "step")
STATE_NAME = re.compile(r"(?:^|\.)(?:exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|step)$")
"""What the tensors of an optimizer are called, where they lie beside weights."""


@dataclass(frozen=True)
class AdamState:
    """Where the moments of weights are.

    Attributes
    ----------
    source : Tensors
        All that is there.
    names : mapping of str to mapping
        For a weight's name the tensors' names by part: ``exp_avg``, ``exp_avg_sq`` and, if it is known, ``step``.

    """

    source: Tensors
    names: Mapping[str, Mapping[str, str]]


def find_adam_state(
    state: TensorSource, weights: Sequence[TensorInfo], *, in_order: bool, dtype: FormatLike | None = None
) -> AdamState:
    """Find the moments of weights.

    Parameters
    ----------
    state : path, mapping or optimizer
        A tensor file, an ``optimizer.state_dict()`` or a file of one, an optimizer.
    weights : sequence of TensorInfo
        Of tensors of floats.
    in_order : bool
        Whether the weights come in the order of the model's parameters, so that numbers are enough.
    dtype : str, dtype or FloatFormat, optional
        What the raw items of ``.npy`` and ``.npz`` files are.

    Raises
    ------
    TensorFileError
        It cannot be read; there are no moments, or some of no weight, or of another shape; numbers that say too little.

    """
    from_file = isinstance(state, str | Path)
    place = shown(state, 4096) if from_file else "the optimizer's state"
    content = _content(state)
    if content is None:
        source = open_tensors(state, dtype=dtype)
    elif from_file:
        source = mapped_tensors(Path(state), _flat(content))
    else:
        source = open_tensors(_flat(content))
    infos = {info.name: info for info in list_tensors(source)}
    moments: dict[str, dict[str, str]] = {}
    for name in infos:
        key, _, part = name.rpartition(".")
        if part in PARTS:
            moments.setdefault(key, {})[part] = name
    names = {info.name for info in weights}
    moments = {key if key in names else re.sub(r"^(?:.*\.)?state\.", "", key): parts for key, parts in moments.items()}
    moments = {key: parts for key, parts in moments.items() if {"exp_avg", "exp_avg_sq"} <= parts.keys()}
    if not moments:
        raise TensorFileError(
            f"{place}: no Adam moments: NAME.exp_avg and NAME.exp_avg_sq, or what torch calls optimizer.state_dict()"
        )
    if all(key.isdigit() for key in moments) and not names & moments.keys():
        moments = _numbered(place, moments, infos, weights, content, in_order)
    if strangers := [key for key in moments if key not in names]:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise TensorFileError(f"{place}: moments of '{shown(strangers[0], 100)}'{more}, which the weights do not have")
    for info in weights:
        for part in PARTS[:2] if info.name in moments else ():
            moment = infos[moments[info.name][part]]
            if moment.shape != info.shape or moment.skipped:
                what, name = moment.skipped or f"shape {moment.shape}", shown(info.name, 100)
                raise TensorFileError(
                    f"{place}, tensor '{shown(moment.name, 100)}': {what} is not what belongs to the weights "
                    f"'{name}' of shape {info.shape}"
                )
    return AdamState(source, moments)


def adam_updates(state: AdamState, adam: Adam) -> Callable[[str], Chunks]:
    """Return what gives the updates of a weight by its name, chunk by chunk in float32; computed in float64.

    Weight decay is not in them. Where the number of the step is not known, the moments are taken without bias
    corrections, as late in a run.
    """
    first, second, steps = (state.source.finder(CHUNK_BYTES) for _ in PARTS)

    def updates(name: str) -> Iterator[Any]:
        parts = state.names[name]
        step = next(iter(steps(parts["step"])), None) if "step" in parts else None
        t = 0.0 if step is None or not len(step) else float(step[0])
        known = 1 <= t < math.inf
        first_correction, second_correction = (
            (1 - fixed.power(beta, int(t)) if known else 1.0) for beta in (adam.beta1, adam.beta2)
        )
        for m, v in in_step(first(parts["exp_avg"]), second(parts["exp_avg_sq"])):
            with np.errstate(all="ignore"):
                root = np.sqrt(v.astype(np.float64) / second_correction) + adam.epsilon
                u = m.astype(np.float64) * (-adam.learning_rate / first_correction) / root
                u[m == 0] = 0  # also where v and eps are 0: a weight without gradients does not move
                yield u.astype(np.float32)

    return updates


def _content(state: TensorSource) -> Any:
    """Return what torch saved, None for a file of another kind."""
    if isinstance(state, str | Path):
        file = Path(state)
        if file.suffix.lower() not in torch_files.SUFFIXES:
            return None
        list_tensors(file)  # says what is wrong with the file, if anything
        return torch_files.load(file)
    return state.state_dict() if hasattr(state, "state_dict") else state


def _flat(content: Any) -> dict[str, Any]:
    """Return the tensors by name, and the numbers of steps, which old versions of torch kept as plain integers."""
    optimizer = _optimizer(content)
    if optimizer is None:
        return {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
    flat = {f"state.{name}": tensor for name, tensor in torch_files.named_tensors(optimizer["state"])}
    for key, entry in optimizer["state"].items():
        if isinstance(entry, Mapping) and type(entry.get("step")) in (int, float):
            flat[f"state.{key}.step"] = np.array([entry["step"]], np.float64)
    return flat


def _optimizer(content: Any) -> Mapping[str, Any] | None:
    """Return the dictionary with `state` and `param_groups`, which may lie one deeper."""
    if isinstance(content, Mapping):
        for inner in (content, *content.values()):
            if isinstance(inner, Mapping) and isinstance(inner.get("state"), Mapping) and "param_groups" in inner:
                return inner
    return None


def _numbered(
    place: object,
    moments: Mapping[str, dict[str, str]],
    infos: Mapping[str, TensorInfo],
    weights: Sequence[TensorInfo],
    content: Any,
    in_order: bool,
) -> dict[str, dict[str, str]]:
    """Give numbered parameters the names of their weights."""
    optimizer = _optimizer(content) or {}
    listed = optimizer.get("param_groups")
    groups = [g for g in (listed if isinstance(listed, list) else ()) if isinstance(g, Mapping)]
    groups = [g for g in groups if isinstance(g.get("params"), list)]
    named = {
        str(number): str(name)
        for group in groups
        if isinstance(group.get("param_names"), list)
        for number, name in zip(group["params"], group["param_names"], strict=False)
    }
    if moments.keys() <= named.keys():
        return {named[key]: parts for key, parts in moments.items()}
    cure = (
        "make the optimizer from model.named_parameters() (torch 2.6 or newer), or save its moments as NAME.exp_avg "
        "and NAME.exp_avg_sq"
    )
    if not in_order or len(groups) != 1:
        why = "the weights are not in the model's order" if not in_order else f"{len(groups)} groups of parameters"
        raise TensorFileError(f"{place}: its parameters are numbered, not named, and {why}; {cure}")
    if (n := len(groups[0]["params"])) != len(weights):
        raise TensorFileError(f"{place}: {n} numbered parameters for {len(weights)} tensors of weights; {cure}")
    numbers = {str(number): info for number, info in zip(groups[0]["params"], weights, strict=True)}
    for key, parts in moments.items():
        shape = infos[parts["exp_avg"]].shape
        if key not in numbers or numbers[key].shape != shape:
            raise TensorFileError(
                f"{place}: parameter {shown(key, 100)} of shape {shape} is not the weights in its place; {cure}"
            )
    return {numbers[key].name: parts for key, parts in moments.items()}
