"""The figures of a report: by the type of the result that they show, and by the name of their file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from precision_lab.presentation.topics import load_topics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

R = TypeVar("R")

_FIGURES: dict[type, dict[str, Callable[[Any], Figure]]] = {}


def figure_of_report(name: str) -> Callable[[Callable[[R], Figure]], Callable[[R], Figure]]:
    """Register a function that draws results of a type, that of its argument, as the file of this name."""

    def register(draw: Callable[[R], Figure]) -> Callable[[R], Figure]:
        kind, *_ = get_type_hints(draw).values()
        _FIGURES.setdefault(kind, {})[name] = draw
        return draw

    return register


def figures_of(kind: type[R]) -> Mapping[str, Callable[[R], Figure]]:
    """Return what draws results of a type, by the names of files without their ending; loads matplotlib."""
    load_topics("precision_lab.presentation.plots")
    return MappingProxyType(_FIGURES.get(kind, {}))
