"""How fast sums and products with rounded accumulators are: matrix products as ratios to float32 BLAS on one thread.

The peers have no such product. Their time is that of one step, acc = round(acc + column x row) in float64, times the
steps. Each figure is a median over bursts of calls that take turns (timing.py).
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import functools
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from timing import Function, interleaved

from precision_lab import accumulate, dot, matmul, round_to
from precision_lab.numerics import reference
from precision_lab.numerics.accumulation import METHODS
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.modes import RoundingMode

AT_MOST = {False: 8.0, True: 22.0}
OTHER_MODES_AT_MOST = 40.0


def products(a: np.ndarray, b: np.ndarray, fmt: str, accumulator: str, **options: Any) -> Function:
    return functools.partial(matmul, a, b, inputs=fmt, accumulator=accumulator, **options)


def peers(a: np.ndarray, b: np.ndarray, sums: np.ndarray) -> dict[str, Function]:
    """One step of each peer that is installed."""
    found: dict[str, Function] = {}
    column, row = a[:, :1].astype(np.float64), b[:1].astype(np.float64)

    def step(rounding: Callable[[np.ndarray], object]) -> Function:
        return lambda: rounding(sums + column * row)

    try:
        import gfloat
        from gfloat.formats import format_info_bfloat16, format_info_binary16

        for name, info in (("fp16", format_info_binary16), ("bf16", format_info_bfloat16)):
            found[f"gfloat {version('gfloat')} {name}"] = step(functools.partial(gfloat.round_ndarray, info))
    except ImportError:
        print("gfloat is not installed: left out")
    try:
        import pychop

        pychop.backend("numpy")
        for name, exponent, mantissa in (("fp16", 5, 10), ("bf16", 8, 7)):
            chop = pychop.Chop(exp_bits=exponent, sig_bits=mantissa)
            found[f"pychop {version('pychop')} {name}"] = step(chop)
    except ImportError:
        print("pychop is not installed: left out")
    return found


def check(a: np.ndarray, b: np.ndarray, fmt: str, round_products: bool) -> None:
    """Compare some elements with the readable loop: a fast wrong answer is none."""
    result = matmul(a, b, inputs=fmt, accumulator=fmt, round_products=round_products)
    x, y = (np.asarray(round_to(v, fmt)) for v in (a, b))
    for i, j in zip(range(0, a.shape[0], 60), range(0, b.shape[1], 60), strict=True):
        expected = reference.dot(x[i].tolist(), y[:, j].tolist(), get_format(fmt), round_products=round_products)
        if result[i, j] != expected:
            raise SystemExit(f"{fmt}: element {i}, {j} is {result[i, j]}, the reference has {expected}")


def small_products(rng: np.random.Generator, seconds: float) -> Table:
    """Of matrices that are small or thin, beside large ones: what a call costs and what narrow loops do."""
    table = Table(title="matmul in fp16, ns/step", title_justify="left", min_width=90)
    shapes = ((512, 512, 512), (64, 64, 64), (16, 4096, 16))
    for heading in ("", *(" x ".join(map(str, shape)) for shape in shapes), "at most"):
        table.add_column(heading, justify="right" if heading else "left")
    for mode in ("ties_to_even", "toward_zero", "stochastic"):
        functions: dict[str, Function] = {}
        for m, k, n in shapes:
            a, b = (rng.standard_normal(shape).astype(np.float16).astype(np.float32) for shape in ((m, k), (k, n)))
            functions[str((m, k, n))] = functools.partial(matmul, a, b, accumulator="fp16", mode=mode, rng=0)
        medians = interleaved(functions, seconds)
        each = [median / np.prod(shape) * 1e9 for median, shape in zip(medians.values(), shapes, strict=True)]
        table.add_row(mode, *(f"{ns:.3f}" for ns in each), f"{1.5 * each[0]:.3f}")
    return table


def sums(rng: np.random.Generator, seconds: float) -> Table:
    """Of sums and dot products: each term waits for the one before."""
    terms, factors = rng.standard_normal((2, 100_000)).astype(np.float16).astype(np.float32)
    rows: dict[str, tuple[float | None, float, Function]] = {}  # at most, what the seconds are divided by, function
    for mode in RoundingMode:
        limit = {RoundingMode.TIES_TO_EVEN: 6.0, RoundingMode.STOCHASTIC: 10.0}.get(mode, 8.0)
        options: dict[str, Any] = {"mode": mode, "rng": 0}
        rows[f"dot, {mode}, ns/term"] = (
            limit,
            1e-4,
            functools.partial(dot, terms, factors, accumulator="fp16", **options),
        )
        rows[f"accumulate, {mode}, ns/term"] = 8.0, 1e-4, functools.partial(accumulate, terms, "fp16", **options)
    for method in METHODS[1:]:
        limits = {"pairwise": 3.0}
        run = functools.partial(accumulate, terms, "fp16", method=method)
        rows[f"accumulate, {method}, ns/term"] = limits.get(method), 1e-4, run
    rows["accumulate, ten terms, us"] = 20.0, 1e-6, functools.partial(accumulate, terms[:10], "fp16")
    table = Table(title="Sums in fp16", title_justify="left", min_width=90)
    for heading in ("", "measured", "at most"):
        table.add_column(heading, justify="right" if heading else "left")
    medians = interleaved({name: function for name, (_, _, function) in rows.items()}, seconds)
    for name, (most, unit, _) in rows.items():
        table.add_row(name, f"{medians[name] / unit:.2f}", f"{most:g}" if most else "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="for ours, and again for the peers")
    parser.add_argument("--size", type=int, default=512, help="of the square matrices")
    arguments = parser.parse_args()
    n = arguments.size
    console = Console(width=100)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba"))
    console.print(f"Python {platform.python_version()}, {packages}, {platform.machine()}")

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    blas: dict[str, Function] = {"float32 BLAS, one thread": lambda: np.matmul(a, b)}
    ours: dict[str, tuple[float | None, Function]] = {}
    for round_products, what in ((False, "sums"), (True, "products and sums")):
        for fmt in ("fp16", "bf16"):
            check(a, b, fmt, round_products)
            run = products(a, b, fmt, fmt, round_products=round_products)
            ours[f"{fmt}, {what} rounded"] = AT_MOST[round_products], run
    ours["bf16 inputs, fp32 sums rounded"] = None, products(a, b, "bf16", "fp32")
    ours["fp8_e4m3fn inputs, fp16 sums rounded"] = None, products(a, b, "fp8_e4m3fn", "fp16")
    ours["fp16, sums toward_zero"] = OTHER_MODES_AT_MOST, products(a, b, "fp16", "fp16", mode="toward_zero")
    ours["bf16, sums stochastic"] = OTHER_MODES_AT_MOST, products(a, b, "bf16", "bf16", mode="stochastic", rng=0)

    table = Table(title=f"matmul {n} x {n} x {n}", title_justify="left", min_width=90)
    table.add_column("")
    for heading in ("milliseconds", "ns/step", "x BLAS", "at most"):
        table.add_column(heading, justify="right")
    groups = ({name: function for name, (_, function) in ours.items()}, 1), (peers(a, b, np.matmul(a, b) * 1.0), n)
    for group, steps in groups:
        medians = interleaved(blas | group, arguments.seconds)
        table.add_section()
        for name, median in medians.items():
            seconds = median * (1 if name in blas else steps)
            limit = ours[name][0] if name in ours else None
            ratio = f"{seconds / medians['float32 BLAS, one thread']:,.1f}"
            each = f"{seconds / n**3 * 1e9:.3f}"
            table.add_row(name, f"{seconds * 1e3:,.1f}", each, ratio, f"{limit:g}" if limit else "")
    console.print(table)

    console.print(small_products(rng, 3.0))
    console.print(sums(rng, 6.0))


if __name__ == "__main__":
    main()
