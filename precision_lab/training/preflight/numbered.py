"""Which weights the numbered parameters of an optimizer are.

torch numbers the parameters of an optimizer instead of naming them, unless it was made from
``model.named_parameters()``. A moment paired with the wrong weight would go unnoticed, so nothing is guessed: numbers
are taken where names are given for them, or where shapes and order leave one way only:

- Where the order of the weights is the model's (a module, a ``state_dict()``), the parameters of each group are taken
  to come in that order, as they do where groups were made by a pass over ``named_parameters()`` (one group; those with
  weight decay and those without, of Hugging Face's Trainer). The ways to deal the weights out are counted.
- Where it is not (a ``.safetensors`` file sorts its tensors by name), only a shape that one weight and one parameter
  have tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from precision_lab.support.reading import InputError, parse_json, read_small
from precision_lab.support.text import shown
from precision_lab.tensors.info import TensorFileError, TensorInfo, blaming
from precision_lab.training.preflight.saved_optimizer import SavedOptimizer, complete

Shape: TypeAlias = tuple[int, ...]
_MOST = 1 << 13  # ways that are looked at side by side
CURE = (
    "give parameter_names (--parameter-names FILE), the names of its parameters in the order of its groups: "
    "ids = {id(p): name for name, p in model.named_parameters()}; "
    "[ids[id(p)] for group in optimizer.param_groups for p in group['params']]"
)


def read_names(names: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return names of parameters: those of a file, a JSON list or one a line, or as they are.

    Raises
    ------
    TensorFileError
        It cannot be read, or is no list of names.

    """
    if isinstance(names, str | Path):
        path = Path(names)
        with blaming(path):
            content = read_small(path)
            try:
                listed = parse_json(content) if content.lstrip()[:1] == b"[" else content.decode().split("\n")
            except ValueError as error:
                raise InputError(
                    f"{shown(path, 4096)}: {error}; give a JSON list of names, or a name a line"
                ) from error
            names = listed
            if all(isinstance(name, str) for name in names):
                names = [name.strip() for name in names if name.strip()]
    if not names or not all(isinstance(name, str) for name in names):
        raise TensorFileError("parameter_names: not names only; give a JSON list of names, or a name a line")
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise TensorFileError(
            f"parameter_names: '{shown(twice[0], 100)}' stands there twice; every parameter has one name"
        )
    return tuple(names)


def names_by_identity(model: object, optimizer: object) -> tuple[str, ...] | None:
    """Return the names of an optimizer's parameters where both it and their module are in memory, else None."""
    if not (hasattr(model, "named_parameters") and hasattr(optimizer, "param_groups")):
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    return tuple(names[one] for one in parameters) if names.keys() >= set(parameters) else None


def weights_of(
    saved: SavedOptimizer, weights: Sequence[TensorInfo], *, in_order: bool, names: Sequence[str] | None = None
) -> tuple[dict[str, str], str]:
    """Say which weights the parameters of an optimizer are.

    Parameters
    ----------
    saved : SavedOptimizer
        The optimizer.
    weights : sequence of TensorInfo
        Those of a model.
    in_order : bool
        Whether they come in the order of its parameters.
    names : sequence of str, optional
        Of the parameters, in the order of the groups.

    Returns
    -------
    dict of str to str
        For the number or the name of a parameter that of its weights.
    str
        How that is known, if it was worked out; else empty.

    Raises
    ------
    TensorFileError
        It is not known; shapes differ; weights are missing.

    """
    place, states = saved.place, complete(saved)
    groups = [group.keys for group in saved.groups if group.keys is not None] or [tuple(states)]
    keys = [key for group in groups for key in group]
    present = {info.name: info for info in weights}
    how = ""
    if names is not None:
        numbers = sorted(keys, key=int) if all(key.isdecimal() for key in keys) else keys
        if len(numbers) != len(names):
            raise TensorFileError(
                f"{place}: {len(numbers)} parameters, and {len(names)} names for them; give one for each"
            )
        found = dict(zip(numbers, names, strict=True))
    else:
        found = {key: name for group in saved.groups for key, name in zip(group.keys or (), group.names, strict=False)}
        if not set(keys) <= found.keys():
            found = {key: key for key in keys}
            if all(key.isdecimal() for key in keys) and not present.keys() & states.keys():
                shapes = [[_shape(saved, states, key) for key in group] for group in groups]
                found, how = _by_shape(place, groups, shapes, weights, in_order)
    found = _with_prefix(found, present)
    if strangers := [
        name for key, name in found.items() if name not in present and (key in states or names is not None)
    ]:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise TensorFileError(
            f"{place}: moments of '{shown(strangers[0], 100)}'{more}, which the weights do not have; "
            "moments belong to weights by name"
        )
    for key, parts in states.items():
        info = present[found[key]]
        for part, tensor in parts.items():
            moment = saved.infos[tensor]
            if part != "step" and (moment.shape != info.shape or moment.skipped):
                raise TensorFileError(
                    f"{place}, tensor '{shown(moment.name, 100)}': {moment.skipped or f'shape {moment.shape}'} is not "
                    f"what belongs to the weights '{shown(info.name, 100)}' of shape {info.shape}"
                )
    return {key: name for key, name in found.items() if name in present}, how


def _shape(saved: SavedOptimizer, states: Mapping[str, Mapping[str, str]], key: str) -> Shape | None:
    """Return the shape of a parameter; None where it has no state."""
    tensors = (saved.infos[name] for part, name in states.get(key, {}).items() if part != "step")
    return next((tensor.shape for tensor in tensors), None)


def _with_prefix(found: Mapping[str, str], present: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Put before all names what the weights have before theirs (``model.``), where there is one such thing only."""
    name = next((name for name in found.values()), None)
    if name is None or any(name in present for name in found.values()):
        return dict(found)
    prefixes = {weight.removesuffix(name) for weight in present if weight.endswith(f".{name}")}
    fitting = [prefix for prefix in prefixes if all(prefix + name in present for name in found.values())]
    return {key: fitting[0] + name for key, name in found.items()} if len(fitting) == 1 else dict(found)


def deal(weights: Sequence[Shape], groups: Sequence[Sequence[Shape | None]]) -> tuple[int, tuple[int, ...]]:
    """Deal weights out to groups that each take theirs in order.

    Parameters
    ----------
    weights : sequence of tuple of int
        Their shapes.
    groups : sequence of sequences
        Of each parameter of each group its shape; None for any.

    Returns
    -------
    int
        In how many ways that can be done: 0, 1, or 2 for more than one (or more than are looked at).
    tuple of int
        The group of each of the weights, in one of these ways.

    """
    start = (0,) * len(groups)
    levels: list[dict[tuple[int, ...], tuple[int, int]]] = [{start: (1, 0)}]  # by what each took: ways, the last taker
    for shape in weights:
        level: dict[tuple[int, ...], tuple[int, int]] = {}
        for taken, (ways, _) in levels[-1].items():
            for group, wanted in enumerate(groups):
                n = taken[group]
                if n < len(wanted) and wanted[n] in (None, shape):
                    after = (*taken[:group], n + 1, *taken[group + 1 :])
                    level[after] = min(2, ways + level.get(after, (0, 0))[0]), group
        if len(level) > _MOST:
            return 2, ()
        levels.append(level)
    taken = tuple(map(len, groups))
    ways, _ = levels[-1].get(taken, (0, 0))
    dealt: list[int] = []
    for level in reversed(levels[1:] if ways else []):
        dealt.append(group := level[taken][1])
        taken = (*taken[:group], taken[group] - 1, *taken[group + 1 :])
    return ways, tuple(reversed(dealt))


def pair(weights: Sequence[Shape], parameters: Sequence[Shape | None]) -> tuple[int, dict[int, int]]:
    """Pair parameters with weights by shape alone: the number of ways as `deal`, and places of weights by parameter."""
    known = {i: shape for i, shape in enumerate(parameters) if shape is not None}
    there, wanted = Counter(weights), Counter(known.values())
    if any(n > there[shape] for shape, n in wanted.items()):
        return 0, {}
    rest = len(parameters) - len(known)
    if rest > 1 or any(there[shape] > 1 for shape in wanted):
        return 2, {}
    places = {shape: i for i, shape in enumerate(weights)}
    found = {i: places[shape] for i, shape in known.items()}
    left = set(range(len(weights))) - set(found.values())
    return 1, found | dict(zip(set(range(len(parameters))) - known.keys(), left, strict=True))


def _by_shape(
    place: str,
    groups: Sequence[Sequence[str]],
    shapes: Sequence[Sequence[Shape | None]],
    weights: Sequence[TensorInfo],
    in_order: bool,
) -> tuple[dict[str, str], str]:
    """Give each number the name of its weights, where there is one way only; and say how that is known."""
    numbered = f"{place}: its parameters are numbered, not named, and"
    if (count := sum(map(len, shapes))) != len(weights):
        raise TensorFileError(f"{numbered} there are {count} for {len(weights)} tensors of weights; {CURE}")
    of_weights = [info.shape for info in weights]
    if in_order:
        ways, dealt = deal(of_weights, shapes)
        takers = [iter(group) for group in groups]
        found = {next(takers[group]): info.name for group, info in zip(dealt, weights, strict=bool(dealt))}
        how = "the model's order and their shapes leave one way only" if len(groups) > 1 else ""
        why = f"their {len(groups)} groups can be dealt out to the weights in several ways"
    else:
        ways, paired = pair(of_weights, [shape for group in shapes for shape in group])
        keys = [key for group in groups for key in group]
        found = {keys[i]: weights[place].name for i, place in paired.items()}
        how = "no two of them have the same shape"
        why = "the weights are not in the model's order, and some have the same shape"
    if not ways:
        raise TensorFileError(f"{numbered} their shapes are not those of the weights in their places; {CURE}")
    if ways > 1:
        raise TensorFileError(f"{numbered} {why}; {CURE}")
    return found, how
