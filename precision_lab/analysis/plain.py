"""Results as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any


def finite_or_none(x: float) -> float | None:
    """Return what JSON can hold of a number: None stands for infinity and NaN."""
    return x if math.isfinite(x) else None


def plain(value: Any) -> Any:
    """Return JSON types for a configuration: dataclasses as dictionaries, tuples as lists, keys as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def tuples(value: Any) -> Any:
    """Return what `plain` wrote with tuples for its lists; the dictionaries in it stay as they are."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def number_or(value: float | None, otherwise: float) -> float:
    """Return what `finite_or_none` wrote: None is read as `otherwise`, an infinity or NaN."""
    return otherwise if value is None else value


def counted(values: Iterable[float]) -> list[float]:
    """Write equal neighbours once, each value followed by how many there are.

    >>> counted([2.0, 2.0, 1.0])
    [2.0, 2, 1.0, 1]
    """
    found: list[float] = []
    for value in values:
        if found and found[-2] == value:
            found[-1] += 1
        else:
            found += [value, 1]
    return found


def uncounted(pairs: Sequence[Any], length: int) -> list[Any]:
    """Return what `counted` wrote of so many values; raises ValueError, and makes nothing, where there are others."""
    counts = [int(count) for count in pairs[1::2]]
    if sum(counts) != length or min(counts, default=0) < 0:
        raise ValueError(f"the counts do not come to {length} values")
    return [value for value, count in zip(pairs[::2], counts, strict=True) for _ in range(count)]


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Write ascending integers as ranges: the first of each, and the one after its last.

    >>> ranges([0, 1, 2, 7])
    [[0, 3], [7, 8]]
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, number + 1])
    return found


def whole(parts: dict[str, Any]) -> dict[str, Any]:
    """Return a result whose iterators have become lists; a file is written from the iterators, an entry at a time."""
    return {key: list(value) if isinstance(value, Iterator) else value for key, value in parts.items()}
