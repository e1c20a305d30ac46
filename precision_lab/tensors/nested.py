"""Dictionaries and lists within each other, as checkpoints and the models of flax are: what is in them, by name."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_DEEPEST = 16  # dictionaries within dictionaries
MOST = 10**6
"""Tensors and containers that are taken: ten times what the largest models and their optimizers have."""


class Leaf(NamedTuple):
    """What was looked for: its keys joined by dots, and whether it lies in the state of an optimizer of torch."""

    name: str
    value: Any
    of_optimizer: bool


class _Open(NamedTuple):
    """A container on the way to a leaf."""

    prefix: str
    of_optimizer: bool
    entries: Iterator[tuple[Any, Any]]


def leaves(content: Any, is_leaf: Callable[[Any], bool]) -> Iterator[Leaf]:
    """Yield the leaves of nested dictionaries and lists; what else is there is left out.

    A container that stands in several places, also within itself, is entered once, under its first name: a file of a
    few lines can hold a list of ten times the same list, twelve deep. The fields of a named tuple have their names.

    Raises
    ------
    ValueError
        Nested too deeply, or too much of it.

    """
    entered: set[int] = set()  # by identity: all of them live as long as `content` does
    count = 0
    waiting = [_Open("", False, iter([("", content)]))]
    while waiting:
        prefix, of_optimizer, entries = waiting[-1]
        for key, value in entries:
            found = is_leaf(value)
            if not (found or isinstance(value, Mapping | list | tuple)) or id(value) in entered:
                continue
            count += 1
            if count > MOST:
                raise ValueError(f"more than {MOST:,} tensors, lists and dictionaries; save the state_dict() alone")
            name = prefix + _text(key)
            if found:
                yield Leaf(name, value, of_optimizer)
                continue
            if len(waiting) > _DEEPEST:
                raise ValueError(f"more than {_DEEPEST} dictionaries within each other; save the state_dict() alone")
            entered.add(id(value))
            inside = of_optimizer or _is_optimizer(value)
            waiting.append(_Open(name + "." * (len(waiting) > 1), inside, _entries(value)))
            break
        else:
            waiting.pop()


def _is_optimizer(value: Any) -> bool:
    """Say whether it is the state_dict() of an optimizer of torch."""
    return isinstance(value, Mapping) and isinstance(value.get("state"), Mapping) and "param_groups" in value


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return iter(value.items())
    fields = getattr(value, "_fields", None)
    return iter(zip(fields, value, strict=False)) if isinstance(fields, tuple) else enumerate(value)


_short = reprlib.Repr()
_short.maxlevel = 2


def _text(key: Any) -> str:
    """Return a key as text; a tuple may hold the same tuple ten times, and that one ten others."""
    return str(key) if isinstance(key, str | int | float | None) else _short.repr(key)
