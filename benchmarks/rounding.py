"""How fast rounding and histograms are, as ratios to a memory copy of the same array and beside the peers.

Each figure is a median over bursts of calls that take turns (timing.py).
"""

from __future__ import annotations

import argparse
import functools
import platform
from importlib.metadata import version

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table
from timing import Function, against, processor, turns

from precision_lab import ExponentHistogram, get_format, round_to, threads
from precision_lab.support.threads import LEAST, in_slices

FORMATS = ("fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2")
SIZES = (1_000, 100_000, 10_000_000)
AT_MOST: dict[str, dict[int, str]] = {
    "round": {1_000: "2.5 us", 100_000: "2.0", 10_000_000: "1.2"},
    "mode": {10_000_000: "1.4"},
    "stochastic": {10_000_000: "1.6"},
    "stochastic, subnormal": {10_000_000: "2.0"},
    "in place": {10_000_000: "0.8"},
    "in place, two threads": {10_000_000: "0.65"},
    "fresh": {10_000_000: "1.35 x copy()"},
    "float64": {10_000_000: "2.2"},
    "histogram": {1_000: "8 us", 10_000_000: "2.2"},
    "histogram, two threads": {10_000_000: "1.4"},
    "two threads": {10_000_000: "1.1 x copyto"},
}


def peers(x: np.ndarray) -> dict[str, Function]:
    """The peers' rounding to fp16 and bf16, those that are installed."""
    found: dict[str, Function] = {
        "ml_dtypes astype bf16 and back": lambda: x.astype(ml_dtypes.bfloat16).astype(np.float32),
        "numpy astype fp16 and back": lambda: x.astype(np.float16).astype(np.float32),
        "ml_dtypes astype fp8_e4m3fn and back": lambda: x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32),
    }
    if x.size > 1_000_000:  # the next ones would take minutes
        return found
    try:
        import gfloat
        from gfloat.formats import format_info_bfloat16, format_info_binary16

        wide = x.astype(np.float64)
        found["gfloat fp16"] = lambda: gfloat.round_ndarray(format_info_binary16, wide)
        found["gfloat bf16"] = lambda: gfloat.round_ndarray(format_info_bfloat16, wide)
    except ImportError:
        print("gfloat is not installed: left out")
    try:
        import pychop

        pychop.backend("numpy")
        half, brain = pychop.Chop(exp_bits=5, sig_bits=10), pychop.Chop(exp_bits=8, sig_bits=7)
        found["pychop fp16"] = lambda: half(x)
        found["pychop bf16"] = lambda: brain(x)
    except ImportError:
        print("pychop is not installed: left out")
    return found


def ours(x: np.ndarray, out: np.ndarray) -> dict[str, tuple[str, Function]]:
    """Our functions, each with the name of its limit in AT_MOST."""

    def rounding(name: str, mode: str = "ties_to_even", x: np.ndarray = x, out: np.ndarray | None = out) -> Function:
        fmt = get_format(name)
        return lambda: round_to(x, fmt, mode, rng=1, out=out)

    def with_threads(function: Function) -> Function:
        def run() -> None:
            with threads(2):
                function()

        return run

    normal = np.copysign(np.clip(np.abs(x) * 1024, 0.05, 400), x)  # in all four formats
    mostly_zero = np.where(np.random.default_rng(1).random(x.size) < 0.67, np.float32(0), x)
    strided, brain = np.repeat(x, 2)[::2], x.astype(ml_dtypes.bfloat16)
    wide, wide_out, itself = x.astype(np.float64), np.empty(x.size), x.copy()
    modes = ("ties_to_away", "toward_zero", "toward_positive", "to_odd")
    found = {
        **{f"round_to {name}": ("round", rounding(name)) for name in FORMATS},
        **{f"round_to {name} {mode}": ("mode", rounding(name, mode)) for name in ("fp16", "bf16") for mode in modes},
        **{
            f"round_to {name} stochastic, normal": ("stochastic", rounding(name, "stochastic", normal))
            for name in FORMATS
        },
        "round_to fp16 stochastic, 5 % subnormal": ("stochastic, subnormal", rounding("fp16", "stochastic")),
        "round_to fp16 onto itself": ("in place", rounding("fp16", x=itself, out=itself)),
        "round_to fp16, new array": ("fresh", rounding("fp16", out=None)),
        "round_to fp16 of float64": ("float64", rounding("fp16", x=wide, out=wide_out)),
        "round_to fp16 of every second element": ("", rounding("fp16", x=strided)),
        "round_to fp16 of bf16": ("", rounding("fp16", x=brain)),
        "ExponentHistogram.of": ("histogram", lambda: ExponentHistogram.of(x)),
        "ExponentHistogram.of, 67 % zeros": ("histogram", lambda: ExponentHistogram.of(mostly_zero)),
    }
    if x.size >= LEAST:
        shared = {
            "np.copyto": ("", lambda: in_slices(lambda start, stop: np.copyto(out[start:stop], x[start:stop]), x.size)),
            "round_to fp16": ("two threads", rounding("fp16")),
            "round_to fp16 stochastic": ("", rounding("fp16", "stochastic")),
            "round_to fp16 onto itself": ("in place, two threads", rounding("fp16", x=itself, out=itself)),
            "round_to fp16, new array": ("", rounding("fp16", out=None)),
            "ExponentHistogram.of": ("histogram, two threads", lambda: ExponentHistogram.of(x)),
        }
        found |= {f"{name}, two threads": (limit, with_threads(f)) for name, (limit, f) in shared.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each array size, twice (ours, then the peers)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of elements")
    arguments = parser.parse_args()
    threads(1)
    console = Console(width=110)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "ml_dtypes"))
    console.print(f"Python {platform.python_version()}, {packages}, {platform.machine()}: {processor()}")
    console.print("One thread unless said; ratios: the median, and in brackets the largest of all turns.")
    for size in arguments.sizes:
        x = (np.random.default_rng(0).standard_normal(size) * 1e-3).astype(np.float32)
        out = np.empty_like(x)
        copy: dict[str, Function] = {"np.copyto": functools.partial(np.copyto, out, x), "x.copy()": x.copy}
        mine = ours(x, out)
        table = Table(title=f"{size:,} float32 elements", title_justify="left", min_width=100)
        table.add_column("")
        for heading in ("microseconds", "ns/element", "x copyto", "at most"):
            table.add_column(heading, justify="right")
        for group in ({name: function for name, (_, function) in mine.items()}, peers(x)):
            taken = turns(copy | group, arguments.seconds)
            table.add_section()
            for name, times in taken.items():
                limit, median = AT_MOST.get(mine[name][0] if name in mine else "", {}).get(size, ""), np.median(times)
                ratio = against(taken, name, "np.copyto")
                table.add_row(name, f"{median * 1e6:,.1f}", f"{median / size * 1e9:.3f}", ratio, limit)
        console.print(table)


if __name__ == "__main__":
    main()
