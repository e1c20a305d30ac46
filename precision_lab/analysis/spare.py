"""Zeros for compiled loops to count in: making a megabyte of them costs more than counting a small array."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_kept = threading.local()


def take_zeros(name: str, shape: int | tuple[int, ...], dtype: type) -> NDArray[Any]:
    """Return zeros, those that this thread gave back under the name if there are any.

    Nobody else has them meanwhile; after an error nobody gets them again.
    """
    found: NDArray[Any] | None = vars(_kept).pop(name, None)
    return np.zeros(shape, dtype) if found is None else found


def give_back(name: str, zeros: NDArray[Any]) -> None:
    """Keep an array of a name's shape and dtype, all zeros again, for the next call."""
    setattr(_kept, name, zeros)
