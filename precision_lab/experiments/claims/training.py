"""Claims on what comes out in the end, and on what no run here can tell."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from precision_lab.experiments.claims import runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    FORUM_FP32,
    LESSON,
    Arithmetic,
    Ground,
    Verdict,
    fails,
    holds,
    only_if,
    share,
    stated,
    untested,
)
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import get_format
from precision_lab.training.loop import loss_in_float64, train
from precision_lab.training.memory import bytes_of
from precision_lab.training.storage import FP32, StorageConfig

_claim = partial(stated, subject="Results", rests_on=Ground.RUNS)
_GOOD = 1 + runs.KEEPS
_SEEDS = 12
_STUDENT = 2.201  # 95 % of Student's t with 11 degrees of freedom lie within it


@_claim(
    "bf16-keeps-quality",
    text="Mixed precision trains with minimal loss of accuracy: bf16's mantissa is poor, but adequate.",
    source=f"{CHAPTER}; {ARTICLE}, “Why bf16 won”",
)
def _quality(arithmetic: Arithmetic) -> Verdict:
    fp32, bf16 = (runs.trained(name) for name in ("fp32", "autocast_bf16"))
    assert fp32.test_accuracy is not None
    assert bf16.test_accuracy is not None
    evidence = {
        "bf16": runs.ratio("autocast_bf16"),
        "fp16": runs.ratio("autocast_fp16"),
        "pure": runs.ratio("pure_bf16"),
        "accuracy": bf16.test_accuracy,
        "control": fp32.test_accuracy,
    }
    words = (
        "With fp32 master weights bf16 ends at {bf16:.2f} times fp32's loss and fp16 at {fp16:.2f}; {accuracy:.1%} of "
        "the test digits are right, in fp32 {control:.1%}. With weights and moments in bf16 as well it is {pure:.1f} "
        "times the loss."
    )
    good = max(evidence["bf16"], evidence["fp16"]) <= _GOOD and abs(bf16.test_accuracy - fp32.test_accuracy) < 0.01
    return (holds if good else fails)(words, **evidence)


@_claim(
    "range-over-precision",
    text="Training is much more sensitive to range than to precision.",
    source=f"{ARTICLE}, “Why bf16 won” and “Why bf16 over fp16?”",
)
def _range(arithmetic: Arithmetic) -> Verdict:
    exponent = -20
    small = {fmt: runs.trained(f"autocast_{fmt},loss_scale=2^{exponent}") for fmt in ("fp16", "bf16")}
    evidence = {
        "mantissa": 2,
        "coarse": runs.ratio("weights=e8m2,master=fp32"),
        "factor": 2.0**exponent,
        "fp16": small["fp16"].final_loss / small["fp16"].initial_loss,
        "bf16": small["bf16"].final_loss / small["bf16"].initial_loss,
        "pure_fp16": runs.ratio("weights=e5m10,loss_scale=none", "sgd"),
        "pure_bf16": runs.ratio("weights=e8m7,loss_scale=none", "sgd"),
    }
    words = (
        "With a master copy and only {mantissa} mantissa bits the digits end at {coarse:.1f} times fp32's loss; but "
        "multiply the loss by {factor:power}, and fp16 ends at {fp16:.0%} of the loss it began with, bf16 at "
        "{bf16:.0%}. Without a master copy (SGD) precision counts: fp16 ends at {pure_fp16:.2f} times "
        "fp32's loss, bf16 at {pure_bf16:.1f}."
    )
    by_range = evidence["coarse"] < 2 and evidence["fp16"] > 0.9 > evidence["bf16"]
    by_precision = evidence["pure_bf16"] > 2 * evidence["pure_fp16"]
    if by_range and by_precision:
        return only_if("the weights have an fp32 master copy", words, **evidence)
    return (holds if by_range else fails)(words, **evidence)


@_claim(
    "noise-washes-out-rounding",
    text="Coarser rounding is tolerable, since the noise of stochastic gradients washes it out anyway.",
    source=f"{LESSON}, the last section",
)
def _noise(arithmetic: Arithmetic) -> Verdict:
    digits, model, batch = runs.data()[0], runs.model(), 64
    parameters = {name: np.asarray(array, np.float32) for name, array in runs.trained("fp32", "sgd").parameters.items()}

    def gradient(rows: slice, storage: StorageConfig) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        gradients = model.loss_and_gradients(parameters, digits.inputs[rows], digits.labels[rows], storage=storage)
        return runs.flat(gradients.weights)

    full = gradient(slice(None), FP32)
    parts = [slice(first, first + batch) for first in range(0, 16 * batch, batch)]
    exact = [gradient(rows, FP32) for rows in parts]
    narrow = [gradient(rows, StorageConfig.parse("autocast_bf16")) for rows in parts]
    noise = float(np.mean([fixed.norm(g - full) for g in exact]))
    rounding = float(np.mean([fixed.norm(b - g) for b, g in zip(narrow, exact, strict=True)]))
    evidence = {
        "times": noise / rounding,
        "batch": batch,
        "compute": runs.ratio("autocast_bf16", "sgd"),
        "weights": runs.ratio("pure_bf16", "sgd"),
    }
    words = (
        "Between batches of {batch} the gradient differs {times:.0f} times as much as by computing it in bf16, and "
        "that costs nothing: {compute:.2f} times fp32's loss. But the rounding of bf16 weights is no noise, it repeats "
        "in every step, and ends at {weights:.1f} times fp32's loss."
    )
    if evidence["times"] < 2 or evidence["compute"] > _GOOD:
        return fails(words, **evidence)
    if evidence["weights"] > _GOOD:
        return only_if("it is computing that is rounded, not the stored weights", words, **evidence)
    return holds(words, **evidence)


@_claim(
    "precision-regularizes",
    text="bf16's limited precision acts as a regularization: such models generalize better.",
    source=FORUM_FP32,
)
def _regularizes(arithmetic: Arithmetic) -> Verdict:
    test, model = runs.data()[1], runs.model()

    def test_losses(storage: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        results = [runs.trained(storage, "adam", seed) for seed in range(_SEEDS)]
        return np.array([loss_in_float64(model, run.parameters, test) for run in results])

    fp32, mixed, pure = (test_losses(name) for name in ("fp32", "autocast_bf16", "pure_bf16"))

    def gain(losses: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, float]:
        """Return by how much the test loss is lower than fp32's, and the standard error of that."""
        differences = (fp32 - losses) / fp32.mean()
        return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(_SEEDS))

    (mixed_gain, mixed_error), (pure_gain, pure_error) = gain(mixed), gain(pure)
    evidence = {
        "examples": len(test.labels),
        "seeds": _SEEDS,
        "mixed": math.ceil(100 * abs(mixed_gain)) / 100,
        "pure": 1 - pure_gain,
    }
    beyond = "more than by chance" if abs(mixed_gain) > _STUDENT * mixed_error else "no more than by chance"
    words = (
        "On {examples} test digits and with {seeds} seeds the test loss differs from fp32's by less than {mixed:.0%} "
        f"where master weights are fp32, {beyond}; with everything in bf16 it is {{pure:.1f}} times fp32's."
    )
    if mixed_gain > _STUDENT * mixed_error and pure_gain > _STUDENT * pure_error:
        return holds(words, **evidence)
    if mixed_gain > _STUDENT * mixed_error or pure_gain > _STUDENT * pure_error:
        return only_if("a part of the values is rounded", words, **evidence)
    if pure_gain < -_STUDENT * pure_error:
        return fails(words, **evidence)
    return untested(words + " It takes a model that overfits, and many seeds.", **evidence)


@_claim(
    "not-bit-equivalent",
    text="Mixed precision is not bit-equivalent to fp32: runs differ in the trailing few digits of every metric.",
    source=f"{ARTICLE}, “Where it goes wrong”",
)
def _bits(arithmetic: Arithmetic) -> Verdict:
    fp32, bf16 = (runs.trained(name) for name in ("fp32", "autocast_bf16"))
    again = train(fp32.config)
    a, b = runs.flat(fp32.parameters), runs.flat(bf16.parameters)
    moved = fixed.norm(a - runs.flat(runs.model().init(0)))
    assert fp32.test_accuracy is not None
    assert bf16.test_accuracy is not None
    evidence = {
        "repeated": share(runs.flat(again.parameters) != a),
        "differ": share(a != b),
        "far": fixed.norm(a - b) / moved,
        "loss": math.ceil(100 * abs(bf16.final_loss / fp32.final_loss - 1)) / 100,
        "accuracy": abs(bf16.test_accuracy - fp32.test_accuracy),
    }
    words = (
        "Repeated, fp32 differs in {repeated:.0%} of the weights, autocast to bf16 in {differ:.0%}, by {far:.0%} of "
        "the way they came. The loss differs by less than {loss:.0%}, the test accuracy by {accuracy:.1%}."
    )
    if evidence["repeated"] or not evidence["differ"]:
        return fails(words, **evidence)
    if evidence["accuracy"]:
        return holds(words, **evidence)
    return only_if("the metric is fine enough to show it", words, **evidence)


_hardware = partial(stated, subject="Speed", rests_on=Ground.NOTHING)


@_hardware(
    "tensor-cores",
    text="Operations in 16 bits run 2 to 8 times faster than in fp32 on tensor cores.",
    source=f"{CHAPTER}; {ARTICLE}, introduction",
)
def _tensor_cores(arithmetic: Arithmetic) -> Verdict:
    return untested(
        "NumPy on a CPU has no tensor cores, and a simulated format no speed. What would test it: a matrix product of "
        "a few thousand rows in fp32, tf32 and {bits} bits on the GPU in question, timed with its own events.",
        bits=get_format("bf16").bits,
    )


@_hardware(
    "twice-the-throughput",
    text="16-bit training has twice the throughput, nearly for free.",
    source=f"{LESSON}, introduction; {ARTICLE}, “Where it goes wrong”",
)
def _throughput(arithmetic: Arithmetic) -> Verdict:
    return untested(
        "What is limited by memory moves {times:.0f} times as many elements, {narrow} bytes each and not {wide}; how "
        "much of a training is, only its profile on the hardware in question can tell.",
        times=bytes_of(get_format("fp32")) / bytes_of(get_format("bf16")),
        narrow=bytes_of(get_format("bf16")),
        wide=bytes_of(get_format("fp32")),
    )
