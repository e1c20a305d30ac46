"""What things cost: by size, threads, the length of a sum, and beside other libraries; writes docs/performance.md.

Each figure is a median over bursts of calls that take turns (timing.py), in nanoseconds an element or as a ratio to
what took its turns with it. The page belongs to the machine that it names: run it on your own.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import platform
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from timing import Function, interleaved, processor, turns

from precision_lab import (
    ExponentHistogram,
    accumulate,
    cast,
    decode,
    dot,
    encode,
    matmul,
    quantization_report,
    round_to,
    threads,
    update_report,
)
from precision_lab.support.processes import usable_cores

OUTPUT = Path(__file__).parents[1] / "docs" / "performance.md"
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7)
LENGTHS = (10, 100, 1_000, 10_000, 100_000)
SQUARES = (32, 64, 128, 256, 512)
MODES = ("ties_to_even", "toward_zero", "stochastic")


def numbers(size: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(size) * 1e-3).astype(np.float32)


def by_size(size: int) -> dict[str, Function]:
    """What is done with every element of an array."""
    x, out = numbers(size), np.empty(size, np.float32)
    codes, update = np.empty(size, np.uint16), numbers(size)[::-1] * np.float32(1e-3)
    coded = encode(x, "fp16")
    return {
        "np.copyto": partial(np.copyto, out, x),
        **{f"round_to fp16, {mode}": partial(round_to, x, "fp16", mode, rng=1, out=out) for mode in MODES},
        "round_to fp16, onto itself": partial(round_to, out, "fp16", out=out),
        "encode to fp16": partial(encode, x, "fp16", out=codes),
        "decode of fp16": partial(decode, coded, "fp16", out=out),
        "ExponentHistogram.of": partial(ExponentHistogram.of, x),
        "quantization_report bf16": partial(quantization_report, x, "bf16"),
        "update_report bf16": partial(update_report, x, update, "bf16"),
    }


def by_length(length: int) -> dict[str, Function]:
    """What is done with every term of a sum."""
    a, b = np.random.default_rng(0).standard_normal((2, length)).astype(np.float32)
    found: dict[str, Function] = {
        f"dot in fp16, {mode}": partial(dot, a, b, inputs="fp16", accumulator="fp16", mode=mode, rng=1)
        for mode in MODES
    }
    for method in ("sequential", "pairwise", "kahan"):
        found[f"accumulate in fp16, {method}"] = partial(accumulate, a, "fp16", method=method)
    return found


def by_square(n: int) -> dict[str, Function]:
    """Products of square matrices."""
    a, b = np.random.default_rng(0).standard_normal((2, n, n)).astype(np.float32)
    found: dict[str, Function] = {"float32 BLAS": partial(np.matmul, a, b)}
    for mode in MODES:
        found[f"matmul in fp16, {mode}"] = partial(matmul, a, b, inputs="fp16", accumulator="fp16", mode=mode, rng=1)
    return found


def same_work(size: int) -> dict[str, dict[str, Function]]:
    """What other libraries do too, ours first."""
    x = numbers(size)
    found: dict[str, dict[str, Function]] = {}
    dtypes: dict[str, Any] = {
        "bf16": ml_dtypes.bfloat16,
        "fp16": np.float16,
        "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "fp8_e5m2": ml_dtypes.float8_e5m2,
    }
    for name, dtype in dtypes.items():
        there, back = cast(x, name), np.empty(size, np.float32)
        peer = "NumPy" if dtype is np.float16 else "ml_dtypes"
        found[f"float32 to {name}"] = {
            "precision_lab": partial(cast, x, name, out=np.empty(size, dtype)),
            peer: partial(np.copyto, np.empty(size, dtype), x, casting="unsafe"),
        }
        found[f"{name} to float32"] = {
            "precision_lab": partial(decode, encode(x, name), name, out=back),
            peer: partial(np.copyto, back, there, casting="unsafe"),
        }
    try:
        import torch

        torch.set_num_threads(1)
        names = {"bf16": "bfloat16", "fp16": "float16", "fp8_e4m3fn": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
        for name, dtype in names.items():
            source, target = torch.from_numpy(x), torch.empty(size, dtype=getattr(torch, dtype))
            target.copy_(source)
            found[f"float32 to {name}"]["torch"] = partial(target.copy_, source)
            found[f"{name} to float32"]["torch"] = partial(torch.empty(size).copy_, target)
    except ImportError:
        print("torch is not installed: left out")
    for values in (_gfloat(x), _pychop(x)):
        for work, function in values.items():
            found.setdefault(work, {"precision_lab": partial(round_to, x, work.split()[-1])}).update(function)
    return found


def _gfloat(x: np.ndarray) -> dict[str, dict[str, Function]]:
    try:
        import gfloat
        from gfloat import formats
    except ImportError:
        print("gfloat is not installed: left out")
        return {}
    infos = {"bf16": formats.format_info_bfloat16, "fp16": formats.format_info_binary16}
    wide = x.astype(np.float64)
    return {f"values of {name}": {"gfloat": partial(gfloat.round_ndarray, info, wide)} for name, info in infos.items()}


def _pychop(x: np.ndarray) -> dict[str, dict[str, Function]]:
    try:
        import pychop
    except ImportError:
        print("pychop is not installed: left out")
        return {}
    pychop.backend("numpy")
    bits = {"bf16": (8, 7), "fp16": (5, 10)}
    return {
        f"values of {name}": {"pychop": partial(pychop.Chop(exp_bits=e, sig_bits=m), x)}
        for name, (e, m) in bits.items()
    }


def table(headings: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(headings) + " |"
    yield "|---|" + "---:|" * (len(headings) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def transposed(columns: dict[int, dict[str, float]], divisor: dict[int, float]) -> Iterator[list[str]]:
    """One row for each function, in nanoseconds."""
    for name in next(iter(columns.values())):
        yield [name, *(f"{seconds[name] * 1e9 / divisor[n]:,.2f}" for n, seconds in columns.items())]


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def page(seconds: float) -> Iterator[str]:
    packages = filter(None, map(installed, ("numpy", "numba", "ml_dtypes", "torch", "gfloat", "pychop")))
    yield "# What things cost"
    yield ""
    yield "Written by `python benchmarks/performance.py`: medians over bursts of calls that take turns, so that a"
    yield "machine that slows down slows all of them. Ratios carry over to other machines better than nanoseconds do."
    yield ""
    yield f"{usable_cores()} cores of {processor()}; Python {platform.python_version()}, {', '.join(packages)}."
    yield ""
    most = usable_cores()
    for count in (1, most) if most > 1 else (1,):
        with threads(count):
            columns = {n: interleaved(by_size(n), seconds) for n in SIZES}
        yield f"## By the number of elements, {count} thread{'s' if count > 1 else ''}"
        yield ""
        if count == 1:
            yield "Nanoseconds an element, float32. Small arrays pay for the call, large ones for memory."
        else:
            yield "The same; below 10^6 elements one thread does the work. `np.copyto` has one thread throughout."
        yield ""
        yield from table(["", *(f"{n:,}" for n in SIZES)], transposed(columns, {n: n for n in SIZES}))
    yield "## By the length of a sum"
    yield ""
    yield "Nanoseconds a term: every step waits for the one before, so a term costs the latency of its rounding."
    yield ""
    columns = {n: interleaved(by_length(n), seconds) for n in LENGTHS}
    yield from table(["", *(f"{n:,}" for n in LENGTHS)], transposed(columns, {n: n for n in LENGTHS}))
    yield "## By the size of a matrix product"
    yield ""
    yield "Nanoseconds a step (n^3 steps for n x n matrices), one thread."
    yield ""
    columns = {n: interleaved(by_square(n), seconds) for n in SQUARES}
    yield from table(["", *(f"{n} x {n}" for n in SQUARES)], transposed(columns, {n: n**3 for n in SQUARES}))
    yield "## Beside other libraries"
    yield ""
    yield "Milliseconds for 10^6 elements on one thread, into memory that is there already where the library can; in"
    yield "brackets how many times as long as ours, turn by turn. 'Values of' a format are float32 or float64 again."
    yield ""
    yield from table(["", "precision_lab", "others"], beside(seconds))


def beside(seconds: float) -> Iterator[list[str]]:
    with threads(1):
        for work, functions in same_work(10**6).items():
            taken = turns(functions, seconds)
            ours = taken.pop("precision_lab")
            others = [f"{name} {np.median(t) * 1e3:,.2f} ({np.median(t / ours):.2f})" for name, t in taken.items()]
            yield [work, f"{np.median(ours) * 1e3:.2f}", ", ".join(others)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each table's column")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    arguments.output.write_text("\n".join(page(arguments.seconds)).rstrip() + "\n", encoding="utf-8")
    print(arguments.output)


if __name__ == "__main__":
    main()
