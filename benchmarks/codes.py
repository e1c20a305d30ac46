"""How fast values become codes and codes values, as ratios to a memory copy of the float32 and beside the peers.

Each figure is a median over bursts of calls that take turns (timing.py), all on one thread.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table
from timing import Function, against, processor, turns

from precision_lab import cast, decode, encode, get_format, threads

SIZES = (1_000, 100_000, 10_000_000)
TO, BACK = "fp32 to {}", "{} to fp32"
AT_MOST = {  # for the largest size
    **{TO.format(name): "0.8" for name in ("bf16", "fp16")},
    **{TO.format("fp8_e4m3fn"): "0.95", TO.format("fp8_e5m2"): "1.0"},
    **{BACK.format(name): "0.8" for name in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2")},
}
TORCH = {"bf16": "bfloat16", "fp16": "float16", "fp8_e4m3fn": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


def ours(x: np.ndarray) -> Iterator[tuple[str, Function]]:
    """Our casts by name: with `out`, into new arrays, from other sources and in another mode."""
    back = np.empty_like(x)
    for name in TORCH:
        fmt = get_format(name)
        stored = cast(x, fmt)
        codes = encode(x, fmt)
        yield TO.format(name), functools.partial(cast, x, fmt, out=stored)
        yield BACK.format(name), functools.partial(decode, codes, fmt, out=back)
    every_other = np.repeat(x, 2)[::2]
    stored, codes, half = cast(x, "fp8_e4m3fn"), encode(x, "fp8_e4m3fn"), x.astype(ml_dtypes.bfloat16)
    yield "fp32 to fp8_e4m3fn, a new array", lambda: cast(x, "fp8_e4m3fn")
    yield "fp8_e4m3fn to fp32, a new array", lambda: decode(codes, "fp8_e4m3fn")
    yield "fp32 to fp8_e4m3fn, strided", lambda: cast(every_other, "fp8_e4m3fn", out=stored)
    yield "bf16 to fp8_e4m3fn", lambda: cast(half, "fp8_e4m3fn", out=stored)
    yield "fp32 to fp8_e4m3fn, toward_zero", lambda: cast(x, "fp8_e4m3fn", "toward_zero", out=stored)
    yield "fp32 to fp8_e4m3fn, stochastic", lambda: cast(x, "fp8_e4m3fn", "stochastic", rng=1, out=stored)


def peers(x: np.ndarray) -> Iterator[tuple[str, Function]]:
    """The same by NumPy and ml_dtypes, which make new arrays, and by torch, if it is installed, onto given ones."""
    for name in TORCH:
        stored = cast(x, name)
        library = "numpy" if name == "fp16" else "ml_dtypes"
        yield f"{library} {TO.format(name)}", functools.partial(x.astype, stored.dtype)
        yield f"{library} {BACK.format(name)}", functools.partial(stored.astype, np.float32)
    try:
        import torch
    except ImportError:
        print("torch is not installed: left out")
        return
    torch.set_num_threads(1)
    values = torch.from_numpy(x)
    back = torch.empty_like(values)
    for name, dtype in TORCH.items():
        narrow = values.to(getattr(torch, dtype))
        yield f"torch {TO.format(name)}", functools.partial(torch.empty_like(narrow).copy_, values)
        yield f"torch {BACK.format(name)}", functools.partial(back.copy_, narrow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each array size, twice (ours, then the peers)")
    arguments = parser.parse_args()
    console = Console(width=100)
    console.print(processor())
    for size in SIZES:
        x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        copy: dict[str, Function] = {"np.copyto": functools.partial(np.copyto, np.empty_like(x), x)}
        table = Table(title=f"{size:,} elements", title_justify="left", min_width=90)
        table.add_column("")
        for heading in ("microseconds", "ns/element", "x copyto (largest)", "at most"):
            table.add_column(heading, justify="right")
        for group in (ours, peers):
            with threads(1):
                taken = turns(copy | dict(group(x)), arguments.seconds)
            table.add_section()
            for name, times in taken.items():
                each, ratio = float(np.median(times)), against(taken, name, "np.copyto")
                limit = AT_MOST.get(name, "") if size == SIZES[-1] else ""
                table.add_row(name, f"{each * 1e6:,.1f}", f"{each / size * 1e9:.3f}", ratio, limit)
        console.print(table)


if __name__ == "__main__":
    main()
