"""Digests of named runs, of all bits and not of rounded losses: ``python -m tests.machines.digests``.

Prints, as JSON, what the libraries say of the processor, witnesses (results that are known to depend on it), and the
digest of each run. ``--write`` puts the digests into digests.json beside this file, where the tests look for them.

The runs are computed in processes whose NumPy and ``math`` refuse everything that BLAS, LAPACK or libm would do; only
the figures are drawn outside of them, since matplotlib needs some of it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.numerics import fixed
from precision_lab.numerics.codes import encode
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.modes import RoundingMode
from precision_lab.numerics.rounding import round_to, spacing
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.result import TrainingResult
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig

FILE = Path(__file__).with_name("digests.json")

_MODELS: dict[str, dict[str, Any]] = {
    "relu": {"hidden": (24,), "steps": 40},
    "sigmoid": {"hidden": (24, 12), "activation": "sigmoid", "steps": 40},
    "least squares": {"model": "least_squares", "steps": 60},
    "fine-tuning": {"model": "fine_tuning", "steps": 5},
    "transformer": {"model": "transformer", "hidden": (16, 16), "activation": "gelu", "steps": 3, "batch_size": 24},
}
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "learning_rate": 3e-3},
    "adamw": {"optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1},
}
_STORAGES = ("fp32", "pure_bf16", "collage_plus")


def digest(parts: Iterable[bytes]) -> str:
    """Return the first half of the SHA-256 of all parts, each with its length."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()[:32]


def without_times(data: Any) -> Any:
    """Leave out what a clock says."""
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key != "seconds"}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def of_json(data: Any) -> str:
    """Return the digest of plain JSON types; Python writes every bit of a float."""
    return digest([json.dumps(without_times(data), sort_keys=True).encode()])


def bits(array: Any) -> bytes:
    """Return the bits of an array; NaN is NaN: its sign is the processor's (x86's is negative, ARM's positive)."""
    array = np.asarray(array)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    content: bytes = array.tobytes()
    return content


def of_training(config: TrainingConfig) -> str:
    """Return the digest of all that a training gives back."""

    def parts(result: TrainingResult) -> Iterator[bytes]:
        yield bits(result.losses)
        for name, array in result.parameters.items():
            yield name.encode()
            yield bits(array)
        for snapshot in result.snapshots:
            for kind in (snapshot.weight_gradients, snapshot.activation_gradients, snapshot.updates):
                yield from map(bits, kind.values())
        yield of_json(result.to_dict()).encode()

    return digest(parts(train(config)))


def _values(real: Any, count: int = 20_000) -> Any:
    """Draw numbers of every size with every sign, and the special ones."""
    rng = np.random.default_rng(7)
    top = 120 if real is np.float32 else 1000
    x = np.ldexp(rng.standard_normal(count), rng.integers(-top - 20, top, count)).astype(real)
    near = rng.standard_normal(count).astype(real) * real(4)
    return np.concatenate([x, near, np.array([0.0, -0.0, np.inf, -np.inf, np.nan], real)])


def of_functions(real: Any) -> str:
    """Return the digest of the elementary functions, products and sums."""
    x = _values(real)
    results = [getattr(fixed, name)(x) for name in ("exp", "log", "tanh", "sigmoid", "log2", "log10")]
    rng = np.random.default_rng(8)
    for m, k, n in ((64, 64, 64), (64, 64, 10), (7, 33, 1), (130, 17, 40)):
        a, b = rng.standard_normal((m, k)).astype(real), rng.standard_normal((k, n)).astype(real)
        results += [fixed.matmul(a, b), fixed.sum(a, 0), fixed.mean(a, 1), np.array(fixed.norm(b))]
    results.append(np.array([fixed.power(b, t) for b in (0.9, 0.999) for t in range(1, 300)]))
    return digest(map(bits, results))


def of_roundings(real: Any) -> str:
    """Return the digest of every format and mode."""
    x = _values(real)
    results = []
    for fmt in FORMATS.values():
        results += [round_to(x, fmt, mode, rng=5) for mode in RoundingMode]
        results += [encode(x, fmt), spacing(x, fmt)]
    return digest(map(bits, results))


RUNS: dict[str, Callable[[], str]] = {
    **{f"functions of {real.__name__}": partial(of_functions, real) for real in (np.float32, np.float64)},
    **{f"roundings of {real.__name__}": partial(of_roundings, real) for real in (np.float32, np.float64)},
    **{
        f"storage {name}": partial(
            of_training,
            TrainingConfig(
                storage=storage, hidden=(32,), steps=60, optimizer="adam", learning_rate=2e-3, snapshot_steps=(59,)
            ),
        )
        for name, storage in CONFIGURATIONS.items()
    },
    **{
        f"{model}, {optimizer}, {storage}": partial(
            of_training, TrainingConfig(**of_model, **of_optimizer, storage=StorageConfig.parse(storage), seed=3)
        )
        for model, of_model in _MODELS.items()
        for optimizer, of_optimizer in _OPTIMIZERS.items()
        for storage in _STORAGES
    },
}
"""All but the experiments, which bring their figures with them."""


LIBRARY_CALLS: dict[str, tuple[str, ...]] = {
    "numpy": (
        *("matmul", "dot", "vdot", "inner", "tensordot", "einsum", "convolve", "correlate", "polyfit", "interp"),
        *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "logaddexp2", "power", "float_power"),
        *("sin", "cos", "tan", "arcsin", "arccos", "arctan", "arctan2", "sinh", "cosh", "tanh", "arctanh", "hypot"),
        *("cbrt", "geomspace", "logspace"),
    ),
    "numpy.linalg": ("norm", "inv", "solve", "lstsq", "svd", "eigh", "det", "matrix_power", "multi_dot", "qr"),
    "math": (
        *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "cbrt", "hypot", "gamma", "lgamma", "erf"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
    ),
}
"""What is done by BLAS, LAPACK or libm, or by loops that NumPy chooses by the processor: by module."""


class LibraryCallError(AssertionError):
    """Something that depends on the processor was called."""


def refuse_libraries() -> None:
    """Make the calls of `LIBRARY_CALLS` raise in this process, for good."""
    fixed.exp(1.0)  # numba looks at NumPy's functions when it compiles or loads its first
    for module, names in LIBRARY_CALLS.items():
        for name in names:
            if hasattr(sys.modules[module], name):
                setattr(sys.modules[module], name, partial(_refused, f"{module}.{name}"))


def _refused(name: str, *arguments: Any, **options: Any) -> None:
    raise LibraryCallError(f"{name} was called: its bits are those of one processor")


def _run(name: str) -> str:
    return RUNS[name]()


def of_experiments(executor: ProcessPoolExecutor) -> Iterator[tuple[str, str]]:
    """Yield the digest of every experiment's quick result, and of every figure of it as SVG."""
    from precision_lab.experiments.registry import EXPERIMENTS
    from precision_lab.experiments.runner import run
    from precision_lab.presentation.plots.figures import figures_of
    from precision_lab.presentation.plots.style import save_figure

    configs = {name: experiment.configuration(quick=True) for name, experiment in EXPERIMENTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        for finished in run(configs, Path(folder), executor=executor):
            yield f"experiment {finished.name}", of_json(finished.data)
            for picture, draw in figures_of(type(finished.result)).items():
                file = Path(folder) / f"{picture}.svg"
                save_figure(draw(finished.result), file)
                yield f"figure {picture}", digest([file.read_bytes()])


def of_formats() -> Iterator[tuple[str, str]]:
    """Yield the digests of the drawings that show formats and not results."""
    from matplotlib.figure import Figure

    from precision_lab.presentation.plots.formats import plot_number_line, plot_spacing
    from precision_lab.presentation.plots.style import save_figure, style

    with tempfile.TemporaryDirectory() as folder:
        drawings: dict[str, Callable[..., Any]] = {"number line": plot_number_line, "spacing": plot_spacing}
        for name, draw in drawings.items():
            with style():
                figure = Figure()
                draw(["fp16", "bf16", "fp8_e4m3fn"], ax=figure.add_subplot())
            file = Path(folder) / "drawn.svg"
            save_figure(figure, file)
            yield f"figure {name}", digest([file.read_bytes()])


def digests(workers: int, chosen: Callable[[str], bool] = lambda name: True) -> dict[str, str]:
    """Compute the digests of the runs that are chosen by the beginning of their names, sorted by name.

    Without workers in this process, which then refuses the calls of libraries for good, and without experiments.
    """
    names = [name for name in RUNS if chosen(name)]
    if not workers:
        refuse_libraries()
        return dict(sorted((name, _run(name)) for name in names))
    with ProcessPoolExecutor(workers, get_context("spawn"), refuse_libraries) as executor:
        found = dict(zip(names, executor.map(_run, names), strict=True))
        if chosen("experiment") or chosen("figure"):
            found |= dict(of_experiments(executor)) | dict(of_formats())
    return dict(sorted(found.items()))


def witnesses() -> dict[str, str]:
    """Return digests of what is known to depend on the processor: that a level is in force can be seen by them."""
    rng = np.random.default_rng(9)
    a = rng.standard_normal((64, 64)).astype(np.float32)
    x = rng.standard_normal(20_000).astype(np.float32)
    return {
        "BLAS": digest([np.matmul(a, a).tobytes()]),
        "NumPy": digest([np.exp(x).tobytes()]),
        "libm": digest([np.array([math.tanh(t) for t in x.tolist()]).tobytes()]),
    }


def processor() -> dict[str, Any]:
    """Return what the libraries say that they compute with."""
    import numba
    import threadpoolctl

    libraries = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    config: Any = numba.config
    return {
        "BLAS": sorted({str(library.get("architecture")) for library in libraries}),
        "NumPy": list(np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])),
        "numba": config.CPU_NAME or "host",
        "threads": sorted({library["num_threads"] for library in libraries}),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "numba", "matplotlib")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.machines.digests", description=__doc__)
    parser.add_argument("--runs", default="", metavar="NAME,...", help="only those whose names begin so")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes; 0: this one, no experiments")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--alone", action="store_true", help="print the digests alone")
    options = parser.parse_args()
    beginnings = tuple(options.runs.split(","))
    others = {} if options.alone else {"processor": processor(), "witnesses": witnesses()}
    found = digests(options.workers, lambda name: name.startswith(beginnings))
    if options.write:
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    json.dump({**others, "digests": found}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
