"""How fast lost updates and the cost of a format in precision are counted, and how long running sums take to stop.

The former as ratios to copying the arrays. Each figure is a median over bursts of calls that take turns (timing.py).
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table
from timing import Function, interleaved

from precision_lab import Series, frozen_fraction, quantization_report, stagnation, update_report

SIZE = 10_000_000
SIZES = np.logspace(-8, 0, 33)


def ours(w: np.ndarray, u: np.ndarray) -> dict[str, tuple[str, Function]]:
    """Our functions, each with what it may take at most, in copies of both arrays."""
    doubles, scattered = w.astype(np.float64), w * np.exp2(np.random.default_rng(1).normal(0, 4, w.size))
    scattered = scattered.astype(np.float32)
    brain, sparse = w.astype(ml_dtypes.bfloat16), np.where(np.arange(u.size) % 8, np.float32(0), u)
    return {
        "update_report bf16": ("4", lambda: update_report(w, u, "bf16")),
        "update_report fp16": ("4", lambda: update_report(w, u, "fp16")),
        "update_report fp8_e4m3fn": ("4", lambda: update_report(w, u, "fp8_e4m3fn")),
        "update_report bf16, large updates": ("4", lambda: update_report(w, w, "bf16")),
        "update_report bf16, 7 of 8 updates zero": ("4", lambda: update_report(w, sparse, "bf16")),
        "update_report bf16, weights in bf16": ("4", lambda: update_report(brain, u, "bf16")),
        "update_report fp32, in float64": ("", lambda: update_report(w, u, "fp32")),
        "update_report bf16 stochastic": ("", lambda: update_report(w, u, "bf16", mode="stochastic", rng=1)),
        **{
            f"quantization_report {fmt}": ("2", partial(quantization_report, w, fmt))
            for fmt in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2")
        },
        "quantization_report fp16, many binades": ("2", lambda: quantization_report(scattered, "fp16")),
        "quantization_report bf16 stochastic": ("", lambda: quantization_report(w, "bf16", mode="stochastic", rng=1)),
        "quantization_report bf16, of float64": ("", lambda: quantization_report(doubles, "bf16")),
        "frozen_fraction bf16, 33 sizes": ("4", lambda: frozen_fraction(w, SIZES, "bf16")),
        "frozen_fraction fp16, 33 sizes": ("4", lambda: frozen_fraction(w, SIZES, "fp16")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="for all together")
    arguments = parser.parse_args()
    console = Console(width=100)
    rng = np.random.default_rng(0)
    w = (rng.standard_normal(SIZE) * 0.02).astype(np.float32)
    u = (rng.standard_normal(SIZE) * 1e-5).astype(np.float32)
    copies = np.empty_like(w), np.empty_like(u)

    def copy_both() -> None:
        np.copyto(copies[0], w)
        np.copyto(copies[1], u)

    mine = ours(w, u)
    copying: dict[str, Function] = {
        "np.copyto of both": copy_both,
        "np.copyto of the weights": lambda: np.copyto(copies[0], w),
    }
    medians = interleaved(copying | {name: function for name, (_, function) in mine.items()}, arguments.seconds)
    table = Table(title=f"{SIZE:,} float32 weights and updates", title_justify="left", min_width=90)
    table.add_column("")
    for heading in ("ms", "ns/element", "x copying both", "at most"):
        table.add_column(heading, justify="right")
    for name, median in medians.items():
        ratio = median / medians["np.copyto of both"]
        limit = mine[name][0] if name in mine else ""
        table.add_row(name, f"{median * 1e3:,.1f}", f"{median / SIZE * 1e9:.2f}", f"{ratio:.2f}", limit)
    console.print(table)

    sums = Table(title="Running sums until they stand still", title_justify="left", min_width=90)
    for heading in ("", "value", "terms", "seconds"):
        sums.add_column(heading, justify="right" if heading else "left")
    for fmt in ("bf16", "fp16", "fp32"):
        for series in (Series.counting(), Series.harmonic()):
            start = time.perf_counter()
            end = stagnation(series, fmt)
            sums.add_row(
                f"{series.name}, {fmt}", f"{end.value:g}", f"{end.terms:,}", f"{time.perf_counter() - start:.2f}"
            )
    console.print(sums)


if __name__ == "__main__":
    main()
