"""How fast products, sums and functions of stated bits are, as ratios to NumPy's with BLAS on one thread.

Products have the shapes of the models. Each figure is a median over bursts of calls that take turns (timing.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_info, threadpool_limits
from timing import interleaved

from precision_lab.numerics import fixed

SHAPES = (
    *((64, 64, 64), (64, 64, 10), (64, 10, 64), (10, 64, 64), (64, 10, 1)),
    *((1024, 32, 96), (1024, 32, 128), (1024, 128, 32), (32, 1024, 96), (1437, 64, 64), (256, 256, 256)),
)
ELEMENTS = 100_000
AT_MOST = "2"  # of products


def pairs() -> dict[str, tuple[str, Callable[[], object], Callable[[], object]]]:
    """Each with what it may take at most in times NumPy's, ours and NumPy's."""
    rng = np.random.default_rng(0)
    found: dict[str, tuple[str, Callable[[], object], Callable[[], object]]] = {}
    for m, k, n in SHAPES:
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        found[f"product {m} x {k} x {n}"] = AT_MOST, partial(fixed.matmul, a, b), partial(np.matmul, a, b)
    heads = rng.standard_normal((32, 2, 32, 16), np.float32)
    turned = heads.swapaxes(-1, -2)
    found["64 products 32 x 16 x 32"] = AT_MOST, partial(fixed.matmul, heads, turned), partial(np.matmul, heads, turned)
    rows = rng.standard_normal((1024, 32), np.float32)
    for axis in (0, 1):
        found[f"sum of 1024 x 32, axis {axis}"] = "", partial(fixed.sum, rows, axis), partial(np.sum, rows, axis)
    x = rng.standard_normal(ELEMENTS, np.float32) * np.float32(4)
    functions: dict[str, Callable[[Any], Any]] = {"exp": np.exp, "log": np.log, "tanh": np.tanh}
    for name, theirs in functions.items():
        ours: Callable[[Any], Any] = getattr(fixed, name)
        y = abs(x) if name == "log" else x
        found[f"{name} of {ELEMENTS:,} float32"] = "", partial(ours, y), partial(theirs, y)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair")
    arguments = parser.parse_args()
    console = Console(width=100)
    with threadpool_limits(1, "blas"):
        blas = {info["architecture"] for info in threadpool_info() if info["user_api"] == "blas"}
        table = Table(title=f"float32; BLAS: {', '.join(blas)}", title_justify="left", min_width=90)
        table.add_column("")
        for heading in ("ours, µs", "NumPy's, µs", "x NumPy's", "at most"):
            table.add_column(heading, justify="right")
        for name, (limit, ours, theirs) in pairs().items():
            medians = interleaved({"ours": ours, "theirs": theirs}, arguments.seconds)
            ratio = medians["ours"] / medians["theirs"]
            table.add_row(
                name, f"{medians['ours'] * 1e6:,.1f}", f"{medians['theirs'] * 1e6:,.1f}", f"{ratio:.2f}", limit
            )
    console.print(table)


if __name__ == "__main__":
    main()
