"""Timing in turns: all contenders in one run, so that a machine that slows down slows them all."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Function: TypeAlias = Callable[[], object]


def turns(functions: dict[str, Function], seconds: float) -> dict[str, NDArray[np.float64]]:
    """Seconds a call of each function in each turn; they take turns until the time is up, at least five times.

    A turn is a burst of calls after one that is not counted: it brings the arrays back into the caches.
    """
    calls = {}
    for name, function in functions.items():
        function()  # compile
        calls[name] = max(1, int(5e-4 / min(timeit.repeat(function, number=1, repeat=3))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, function in functions.items():
            function()
            times[name].append(timeit.timeit(function, number=calls[name]) / calls[name])
    return {name: np.array(t) for name, t in times.items()}


def interleaved(functions: dict[str, Function], seconds: float) -> dict[str, float]:
    """Median seconds a call of each function, as `turns` takes them."""
    return {name: float(np.median(t)) for name, t in turns(functions, seconds).items()}


def against(taken: dict[str, NDArray[np.float64]], name: str, base: str) -> str:
    """How many times as long as another a function took, turn by turn: the median, and the largest in brackets."""
    ratios = taken[name] / taken[base]
    return f"{np.median(ratios):.2f} ({ratios.max():.2f})"


def processor() -> str:
    """What the figures belong to: the processor as numba compiles for it, and the vectors that it has."""
    from numba.core.registry import cpu_target

    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    wide = [part for part in ("sse4.2", "avx2", "fma", "f16c", "avx512f", "neon") if f"+{part}" in features.split(",")]
    return f"{name} ({', '.join(wide) or 'its own features'})"
