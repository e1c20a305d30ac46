"""The elementary functions of float32 on all 2^32 patterns: each the exact value, rounded once.

The judge is the C library's long double, of 64 significand bits (or more): its functions err by a few units in the last
place at most (glibc's manual, "Known Maximum Errors in Math Functions": 2 for expl, 1 for logl, 3 for tanhl). Where a
value is not within 64 such units of a midpoint between two float32 numbers, it decides; the few others are decided in
exact rational arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from precision_lab.numerics import fixed, reference
from precision_lab.numerics.formats import get_format

Array = NDArray[Any]
FP32 = get_format("fp32")
CHUNK = 1 << 22
MARGIN = np.longdouble(2.0) ** -57


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    result: Array = np.where(x < 0, e, np.longdouble(1)) / (1 + e)
    return result


WIDE: dict[str, Callable[[Array], Array]] = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "sigmoid": _sigmoid}


def _right(name: str, x: float, y: float) -> bool:
    if name == "log":
        return reference.is_log(y, x, FP32)
    return y == {"exp": reference.exp, "tanh": reference.tanh, "sigmoid": reference.sigmoid}[name](x, FP32)


def check(name: str, first: int, function: Callable[[Array], Array] | None = None) -> tuple[int, int, list[str]]:
    """Check a chunk of patterns; return how many were wrong, how many needed exact arithmetic, and some that failed."""
    x = np.arange(first, first + CHUNK, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ours = (function or getattr(fixed, name))(x)
    with np.errstate(all="ignore"):
        wide = WIDE[name](x.astype(np.longdouble))
        low, high = ((wide * (1 + m)).astype(np.float32) for m in (-MARGIN, MARGIN))
    decided = (low == high) | np.isnan(wide)
    good = np.where(np.isnan(wide), np.isnan(ours), ours == low)
    if name == "tanh":
        good &= np.isnan(wide) | (np.signbit(ours) == np.signbit(x))
    bad = [float(t).hex() for t in x[decided & ~good][:3]]
    wrong = int(np.count_nonzero(decided & ~good))
    for i in np.flatnonzero(~decided):
        if not _right(name, float(x[i]), float(ours[i])):
            wrong += 1
            bad.append(float(x[i]).hex())
    return wrong, int(np.count_nonzero(~decided)), bad[:3]


def _check(task: tuple[str, int]) -> tuple[int, int, list[str]]:
    return check(*task)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", WIDE)
def test_all_patterns(name: str) -> None:
    wrong = near = 0
    examples: list[str] = []
    tasks = [(name, first) for first in range(0, 1 << 32, CHUNK)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        for bad, exact, some in executor.map(_check, tasks):
            wrong, near, examples = wrong + bad, near + exact, examples + some
    print(f"{name}: {wrong} wrong of 2^32, {near} decided in exact arithmetic")
    assert wrong == 0, examples[:5]


CHUNKS_THAT_MATTER = {"exp": 0x3F800000, "log": 0x3F800000, "tanh": 0x3F000000, "sigmoid": 0xC0000000}


@pytest.mark.parametrize("name", WIDE)
def test_a_chunk_of_them(name: str) -> None:
    wrong, _, examples = check(name, CHUNKS_THAT_MATTER[name])
    assert wrong == 0, examples


@pytest.mark.parametrize("name", WIDE)
def test_the_check_sees_a_function_that_is_rounded_twice_or_wrong(name: str) -> None:
    """NumPy's own functions of float32 are not all correctly rounded; one unit more in one element is seen, too."""
    first = CHUNKS_THAT_MATTER[name]

    def off(x: Array) -> Array:
        y = np.array(getattr(fixed, name)(x))
        y[77] = np.nextafter(y[77], np.float32(np.inf))
        return y

    assert check(name, first, off)[0] == 1
