"""Casts that a new interpreter imports by their names: with as few imports as it needs."""

from __future__ import annotations

import os
import time
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


def brain(x: Array) -> Array:
    return x.astype(ml_dtypes.bfloat16)


def hangs_on_three(x: Array) -> Array:
    while (x == 3).any():
        time.sleep(1)  # a loop would be busy until it is ended
    return brain(x)


def dies_on_three(x: Array) -> Array:
    if (x == 3).any():
        os._exit(7)
    return brain(x)


def raises_for_three(x: Array) -> Array:
    if (x == 3).any():
        raise OverflowError("three is\ntoo much")
    return brain(x)


def changes_its_input(x: Array) -> Array:
    y = brain(x)
    x[x == 3] = 0
    return y


def prints(x: Array) -> Array:
    print("a number of numbers")
    return brain(x)


def two_dtypes(x: Array) -> Array:
    return x.astype(np.float64) if x[0] == 3 else brain(x)
