"""Parameters and gradients as one flat array, and by name: optimizers take the first, models the second, or both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from precision_lab.numerics.rounding import Array


class Views(Mapping[str, Array]):
    """Arrays by name that lie one after the other in a flat array; all are cut out when the first is asked for.

    Attributes
    ----------
    flat : array, shape (n,)
        All of them.
    shapes : mapping of str to tuple of int
        Theirs, in order.

    Raises
    ------
    ValueError
        Then, if the shapes do not make up the array.

    """

    def __init__(self, flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.flat, self.shapes = flat, shapes
        self._views: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        self._views = self._views or self._cut()
        return self._views[name]

    def _cut(self) -> dict[str, Array]:
        size = sum(map(math.prod, self.shapes.values()))
        if size != self.flat.size:
            raise ValueError(f"shapes hold {size} elements, but the array has {self.flat.size}")
        views, start = {}, 0
        for name, shape in self.shapes.items():
            end = start + math.prod(shape)
            views[name] = self.flat[start:end].reshape(shape)
            start = end
        return views

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def flatten(arrays: Mapping[str, Array]) -> Array:
    """Return all elements in one float32 array, in the order of the mapping: a new one, but of `Views` theirs."""
    if isinstance(arrays, Views):
        return arrays.flat
    return np.concatenate([array.reshape(-1) for array in arrays.values()], dtype=np.float32)
