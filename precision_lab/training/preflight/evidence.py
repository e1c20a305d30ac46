"""What is known about the updates: given ones, an optimizer's moments, SGD's gradients, or only their first size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precision_lab.numerics.formats import FormatLike
from precision_lab.support.text import shown
from precision_lab.tensors.info import TensorFileError, TensorInfo, TensorSource
from precision_lab.tensors.reading import Tensors, open_tensors
from precision_lab.tensors.roles import Role
from precision_lab.tensors.torch_files import SUFFIXES
from precision_lab.training.optimizers import OPTIMIZERS
from precision_lab.training.preflight.adam_state import WeightState, updates_of
from precision_lab.training.preflight.numbered import weights_of
from precision_lab.training.preflight.recipe import Recipe, recipe_of
from precision_lab.training.preflight.report import LATER, ParameterGroup
from precision_lab.training.preflight.saved_optimizer import (
    FAMILY,
    SavedGroup,
    SavedOptimizer,
    complete,
    saved_optimizer,
)
from precision_lab.training.preflight.updates import RecordedUpdates, Sizes, given_updates


@dataclass(frozen=True)
class Given:
    """What a pre-flight was given.

    Attributes
    ----------
    weights : Tensors
        The checkpoint.
    infos : sequence of TensorInfo
        Of its weights.
    in_order : bool
        Whether these come in the order of the model's parameters.
    state, beside : path, mapping, optimizer or None
        A saved optimizer; or the checkpoint itself, if it may hold one.
    updates : path, mapping or None
        Updates.
    gradients : Tensors or None
        Gradients.
    names : sequence of str or None
        Of the optimizer's parameters.
    dtype : format spec or None
        Of raw items.

    """

    weights: Tensors
    infos: Sequence[TensorInfo]
    in_order: bool
    state: TensorSource | None
    beside: TensorSource | None
    updates: TensorSource | None
    gradients: Tensors | None
    names: Sequence[str] | None
    dtype: FormatLike | None


@dataclass(frozen=True)
class Evidence:
    """What is known about the updates.

    Attributes
    ----------
    source : Sizes or RecordedUpdates
        The updates.
    recipe : Recipe
        The optimizer.
    group_of : mapping of str to int, or None
        The group of each of the weights; None where there are several and it is not known.
    uses_moments : bool
        Whether the updates follow from an optimizer's state.
    notes : tuple of str
        What was taken from where, a line each.

    """

    source: Sizes | RecordedUpdates
    recipe: Recipe
    group_of: Mapping[str, int] | None
    uses_moments: bool
    notes: tuple[str, ...]

    def counted(self, read: Iterable[TensorInfo]) -> tuple[ParameterGroup, ...]:
        """Return the groups with the number of weights that were read of each."""
        if self.group_of is None:
            return self.recipe.groups
        weights = dict.fromkeys(range(len(self.recipe.groups)), 0)
        for info in read:
            weights[self.group_of.get(info.name, 0)] += info.count
        return tuple(replace(group, weights=weights[i]) for i, group in enumerate(self.recipe.groups))


def may_hold_optimizer(weights: TensorSource, apart: Sequence[TensorInfo]) -> bool:
    """Say whether an optimizer may lie beside weights: torch's files and dictionaries, and where there are moments."""
    if hasattr(weights, "named_parameters") or isinstance(weights, Tensors):
        return False
    of_torch = not isinstance(weights, str | Path) or Path(weights).suffix.lower() in SUFFIXES
    return of_torch or any(info.role is Role.MOMENT for info in apart)


def find_evidence(given: Given, optimizer: str | None, hyperparameters: Mapping[str, Any], steps: int) -> Evidence:
    """Find what is known about the updates.

    Raises
    ------
    TensorFileError
        Something cannot be read, or does not belong to the weights.
    ValueError
        Unknown optimizer, hyperparameters out of range; something is missing.

    """
    if given.state is not None and optimizer in OPTIMIZERS and optimizer not in FAMILY:
        raise ValueError(f"an optimizer state says what Adam's and SGD's updates are; for {optimizer} give updates")
    notes: list[str] = []
    saved = _saved(given, notes)
    recipe = recipe_of(optimizer, hyperparameters, steps, saved)
    notes += recipe.notes
    if saved is not None and saved.family != FAMILY.get(recipe.optimizer):
        if given.state is not None:
            raise ValueError(f"{saved.place}: not the state of {recipe.optimizer}; give that optimizer, or updates")
        saved = None
    if given.names is not None and saved is None:
        raise ValueError("parameter_names name the parameters of a saved optimizer; give optimizer_state")
    states = complete(saved) if saved is not None and given.updates is None else {}
    owners = _owners(given, saved, states, notes)
    group_of = _group_of(saved, owners, recipe)
    if states and owners is not None and saved is not None:
        _check_lr(recipe, group_of, "updates follow from moments by it")
        notes.append(_used(states))
        source: Sizes | RecordedUpdates = _from_state(saved, states, owners, recipe, group_of or {})
        return Evidence(source, recipe, group_of, True, tuple(notes))
    source = _given_or_sizes(given, recipe, group_of)
    return Evidence(source, recipe, group_of, False, tuple(notes))


def _saved(given: Given, notes: list[str]) -> SavedOptimizer | None:
    """Read a saved optimizer: one that was asked for must be there, one beside the weights may be of no use."""
    if given.state is not None:
        saved = saved_optimizer(given.state, dtype=given.dtype)
        if saved is None:
            raise TensorFileError(
                f"{_place(given.state)}: no Adam moments (NAME.exp_avg and NAME.exp_avg_sq), no momentum of SGD "
                "(NAME.momentum_buffer), and not what torch calls optimizer.state_dict()"
            )
        if saved.groups and not saved.parts:
            notes.append(f"{saved.place}: an optimizer without moments: it has made no step, or keeps none")
        return saved
    if given.beside is None:
        return None
    try:
        return saved_optimizer(given.beside, dtype=given.dtype)
    except TensorFileError as error:
        notes.append(f"the optimizer beside the weights is not used: {error}")
        return None


def _owners(
    given: Given, saved: SavedOptimizer | None, states: Mapping[str, Mapping[str, str]], notes: list[str]
) -> dict[str, str] | None:
    """Return which weights the parameters of an optimizer are, where that is asked for and known."""
    if saved is None or not (states or len(saved.groups) > 1):
        return None
    try:
        owners, how = weights_of(saved, given.infos, in_order=given.in_order, names=given.names)
    except TensorFileError as error:
        if given.names is not None or (given.state is not None and states):
            raise
        notes.append(f"the moments beside the weights are not used: {error}" if states else str(error))
        return None
    if how:
        notes.append(f"the numbered parameters of the optimizer belong to weights as {how}")
    return owners


def _group_of(saved: SavedOptimizer | None, owners: Mapping[str, str] | None, recipe: Recipe) -> dict[str, int] | None:
    """Return the group of each of the weights; of one group there is nothing to say."""
    if len(recipe.groups) == 1:
        return {}
    if saved is None or owners is None:
        return None
    return {owners[key]: i for i, group in enumerate(saved.groups) for key in group.keys or () if key in owners}


def _check_lr(recipe: Recipe, group_of: Mapping[str, int] | None, reason: str) -> None:
    """Raise if the lr of some weights is not known."""
    if not recipe.knows_lr:
        raise ValueError(f"lr is not known, and no default stands for it: {reason}; give lr")
    if group_of is None and len({group.hyperparameters["lr"] for group in recipe.groups}) > 1:
        raise ValueError(
            "lr is not known: the groups of the optimizer differ, and it is not known which weights are in which; "
            "give lr, or parameter_names"
        )


def _from_state(
    saved: SavedOptimizer,
    states: Mapping[str, Mapping[str, str]],
    owners: Mapping[str, str],
    recipe: Recipe,
    group_of: Mapping[str, int],
) -> RecordedUpdates:
    """Return the updates that follow from moments."""
    of_weights = {}
    for key, parts in states.items():
        group = group_of.get(owners[key], 0)
        of = saved.groups[group] if saved.groups else SavedGroup()
        of_weights[owners[key]] = WeightState(parts, recipe.audits[group].configured, of.amsgrad, of.corrects_bias)
    what = (
        "-lr times the momentum of SGD, its last update,"
        if saved.family == "sgd"
        else "what Adam would add now, by its moments"
    )
    return RecordedUpdates(updates_of(of_weights, saved.source), f"{what} in {saved.place}", frozenset(of_weights))


def _given_or_sizes(given: Given, recipe: Recipe, group_of: Mapping[str, int] | None) -> Sizes | RecordedUpdates:
    """Return updates that are given, or follow from gradients; else their first size."""
    used = recipe.audits[0].configured
    if given.updates is not None:
        decays = used.decoupled and any(group.hyperparameters.get("weight_decay") for group in recipe.groups)
        if decays and not recipe.knows_lr:
            reason = f"{recipe.optimizer}'s decay takes lr*weight_decay of every weight"
            raise ValueError(f"lr is not known, and no default stands for it: {reason}; give lr, or weight_decay=0")
        updates = open_tensors(given.updates, dtype=given.dtype)
        return given_updates(given.weights, given.infos, updates, f"the updates in {_place(given.updates)}")
    if not used.normalizes and given.gradients is None:
        raise ValueError(f"{recipe.optimizer}'s updates are lr times the gradients: give gradients, or updates")
    updates_are = "as large as it at the start" if used.normalizes else "lr times the gradients"
    _check_lr(recipe, group_of, f"the updates of {recipe.optimizer} are {updates_are}")

    def lr_of(name: str) -> float:
        return recipe.groups[(group_of or {}).get(name, 0)].hyperparameters["lr"]

    if given.gradients is not None and not used.normalizes:
        words = f"-lr times the gradients in {given.gradients}"
        return given_updates(given.weights, given.infos, given.gradients, words, lr_of)
    values = dict.fromkeys(f"{group.hyperparameters['lr']:g}" for group in recipe.groups)
    return Sizes(
        lr_of, f"of size lr = {' and '.join(values)}, as Adam's are at the start of training; and of lr/{LATER}"
    )


def _used(states: Mapping[str, Mapping[str, str]]) -> str:
    """Say how many tensors stand for the updates."""
    counts = {len(parts) for parts in states.values()}
    if len(counts) == 1:
        return f"{len(states)} x {counts.pop()} tensors of the optimizer used for the updates"
    return (
        f"{sum(map(len, states.values()))} tensors of the optimizer used for the updates, of {len(states)} parameters"
    )


def _place(source: TensorSource) -> str:
    return shown(source, 4096) if isinstance(source, str | Path) else "memory"
