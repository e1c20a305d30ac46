"""With which optimizer and which hyperparameters: as given, else as a saved optimizer has them, else torch's defaults.

No default stands for lr: an answer depends on it more than on anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from precision_lab.numerics.formats import get_format
from precision_lab.training.hyperparameters import HyperparameterAudit, audit_hyperparameters
from precision_lab.training.optimizers import usual_values
from precision_lab.training.preflight.report import Origin, ParameterGroup
from precision_lab.training.preflight.saved_optimizer import FAMILY, SavedOptimizer

ASSUMED = "adamw"


@dataclass(frozen=True)
class Recipe:
    """What updates the weights.

    Attributes
    ----------
    optimizer : str
        Of `optimizers.OPTIMIZERS`.
    groups : tuple of ParameterGroup
        At least one; those of the saved optimizer, if there are any.
    audits : tuple of HyperparameterAudit
        Of each group in fp32; where lr is not known, with torch's default.
    notes : tuple of str
        What was assumed, and what contradicts: a line each.

    """

    optimizer: str
    groups: tuple[ParameterGroup, ...]
    audits: tuple[HyperparameterAudit, ...]
    notes: tuple[str, ...]

    @property
    def knows_lr(self) -> bool:
        """Whether all groups have one."""
        return all("lr" in group.hyperparameters for group in self.groups)


def recipe_of(optimizer: str | None, given: Mapping[str, Any], steps: int, saved: SavedOptimizer | None) -> Recipe:
    """Put together what is given (None: not) and what was saved.

    Raises
    ------
    ValueError
        Unknown optimizer; a hyperparameter that it does not have, or that is out of range.

    """
    told = None if saved is None else saved.name
    name = optimizer or told or ASSUMED
    flags = {symbol: value for symbol, value in given.items() if value is not None}
    of_same = saved is not None and saved.groups and saved.family == FAMILY.get(name)
    in_file = [group.values for group in saved.groups] if saved is not None and of_same else [{}]
    audits, groups = [], []
    for values in in_file:
        usual = usual_values(name) if name in FAMILY else {}
        saved_values = {symbol: value for symbol, value in values.items() if symbol in usual and symbol not in flags}
        audit = audit_hyperparameters(get_format("fp32"), optimizer=name, steps=steps, **saved_values, **flags)
        origins = {
            symbol: Origin.GIVEN if symbol in flags else Origin.FILE if symbol in saved_values else Origin.DEFAULT
            for symbol in audit.hyperparameters
        }
        if origins["lr"] is Origin.DEFAULT:
            del origins["lr"]
        groups.append(ParameterGroup({symbol: audit.hyperparameters[symbol] for symbol in origins}, origins))
        audits.append(audit)
    notes = (*_about_names(name, optimizer, saved), *_about_values(groups, in_file, saved))
    return Recipe(name, tuple(groups), tuple(audits), notes)


def _about_names(name: str, given: str | None, saved: SavedOptimizer | None) -> Iterator[str]:
    if saved is None:
        if given is None:
            yield f"{name} is assumed"
        return
    if given is None and saved.name is None:
        yield f"{name} is assumed: {saved.place} does not say whether it is Adam, AdamW or one like them"
    if given is not None and saved.name not in (None, name):
        unused = "" if saved.family == FAMILY.get(name) else ": its hyperparameters are not used"
        yield f"{name} as given; {saved.place} says {saved.name}{unused}"


def _about_values(
    groups: list[ParameterGroup], in_file: list[dict[str, float]], saved: SavedOptimizer | None
) -> Iterator[str]:
    if len(groups) > 1:
        yield f"{len(groups)} groups of parameters, each with its own hyperparameters"
    for symbol, origin in groups[0].origins.items():
        used = f"{groups[0].hyperparameters[symbol]:g}"
        others = dict.fromkeys(f"{values[symbol]:g}" for values in in_file if symbol in values)
        if origin is Origin.GIVEN and others.keys() - {used}:
            yield f"{symbol} {used} as given; the file says {' and '.join(others)}"
    if saved is not None and groups[0].origins.get("lr") is Origin.FILE:
        firsts = dict.fromkeys(f"{group.first_lr:g}" for group in saved.groups if group.first_lr is not None)
        if firsts.keys() - {f"{group.hyperparameters['lr']:g}" for group in groups if "lr" in group.hyperparameters}:
            yield f"lr is the one that was saved; its schedule began at {' and '.join(firsts)}"
