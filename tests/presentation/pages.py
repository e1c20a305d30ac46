"""The pages that the tests look at: results of tiny runs, and tensors with every threshold of every format in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.quantization import quantization_report
from precision_lab.analysis.scan import ScannedTensor, ScanResult
from precision_lab.experiments import accumulation, storage, underflow
from precision_lab.experiments.kept import Finished
from precision_lab.numerics.formats import FORMATS, get_format
from precision_lab.presentation.report import write_report
from precision_lab.tensors.info import TensorInfo
from tests.presentation.stored import made_up

FIGURE = (
    '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 80 30" width="80" height="30">'
    '<rect style="fill: #0072b2" width="80" height="30"/></svg>'
)
HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    "\"'><img src=x onerror=\"document.title = 'taken'\">",
    "<!--<script>",
    "{{ 7 * 7 }} &lt;b&gt; &amp;",
    "line\u2028separator \u2029 and half a pair \ud800",
)


@dataclass(frozen=True)
class Answered(Finished):
    """A finished experiment with an answer of the test's own."""

    said: str = ""

    @property
    def answer(self) -> str:
        return self.said


@cache
def finished() -> tuple[Finished, ...]:
    """Runs that take a second."""
    trainings = storage.StorageExperimentConfig(
        configurations=("pure_bf16", "master_bf16", "collage_plus"),
        settings=(storage.Setting("sgd", 0.01), storage.Setting("adam", 1e-3)),
        sections=("noise",),
        axes=("beta2",),
    )
    found: dict[str, Any] = {
        "underflow": underflow.run(
            underflow.UnderflowConfig(transformer_steps=2, steps=30, batches=3, hidden=(8,), seeds=1, more_seeds=1)
        ),
        "storage": made_up(trainings),
        "accumulation": accumulation.run(accumulation.AccumulationConfig(exponents=(2, 3), seeds=1, shown=50)),
    }
    answers = {"storage": "Not without a master copy.", "underflow": "fp16 <b>flushes</b> some & keeps others."}
    return tuple(Answered(name, {}, 1.0, False, result, answers.get(name, "")) for name, result in found.items())


def result_of(name: str) -> Any:
    return next(one.result for one in finished() if one.name == name)


def written(path: Path, *figures: str) -> None:
    """Write the report of all of them."""
    made_with = {"numpy": np.__version__, "processor": "<i>a</i> & b"}
    write_report(finished(), path, figures=dict.fromkeys(figures, FIGURE), quick=True, made_with=made_with)


def thresholds() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Every threshold of every format, a hair below and above it, for loss scales from 2^-8 to 2^30."""
    formats = [*FORMATS.values(), get_format("e6m9")]
    edges = {e for f in formats for e in (f.flush_threshold, f.subnormal_threshold, f.overflow_threshold)}
    at = np.array(sorted(edges))
    around = np.concatenate([np.nextafter(at, 0), at, np.nextafter(at, np.inf), -at])
    scaled = np.ldexp(around[:, None], -np.arange(-8, 31)).ravel()
    return np.concatenate([scaled, [0.0, -0.0, 0.0, np.inf, -np.inf, np.nan]])


def scanned(
    arrays: dict[str, Any],
    *,
    formats: tuple[str, ...] = ("fp16", "bf16", "e6m9"),
    loss_scale: float = 1.0,
    precision: bool = False,
) -> ScanResult:
    """Return what `scan` finds of a file of these arrays; the precision, if asked for, without a loss scale."""
    tensors = []
    for name, values in arrays.items():
        array = np.asarray(values)
        info = TensorInfo(Path("folder/gradients.npz"), name, array.dtype.name, array.shape)
        costs = tuple(quantization_report(array, fmt) for fmt in formats) if precision else None
        tensors.append(ScannedTensor(info, ExponentHistogram.of(array), costs))
    left_out = TensorInfo(Path("folder/gradients.npz"), "steps <b>", "int64", (3,), "integers <b>")
    return ScanResult(tuple(tensors), (left_out,), tuple(map(get_format, formats)), loss_scale)


@cache
def small_scan() -> ScanResult:
    """Tensors that differ in every column, hostile names among them."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"thresholds": thresholds(), "empty": np.zeros((0, 3)), "zeros": np.zeros(7, np.float32)}
    for i in range(12):
        values = rng.standard_normal(100 + i) * 2.0 ** (-3 * i)
        arrays[f"layers.{i}.{'weight' if i % 2 else 'bias'}"] = values.astype(np.float32)
    arrays |= {name: np.array([2.0**-30, i + 1], np.float32) for i, name in enumerate(HOSTILE)}
    return scanned(arrays, precision=True)


@cache
def thousand_tensors() -> ScanResult:
    """As many as a large model has, each with many binades."""
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((1000, 4000)).astype(np.float32)
    scales = np.exp2(-rng.integers(0, 30, (1000, 1)), dtype=np.float32)
    names = [f"model.layers.{i // 8}.part_{i % 8}.weight" for i in range(1000)]
    return scanned(dict(zip(names, draws * scales, strict=True)))
