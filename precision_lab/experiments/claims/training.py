"""Claims on what comes out in the end, and on what no run here can tell."""

from __future__ import annotations

import math
from functools import partial
from itertools import count

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
    decide,
    every,
    fails,
    holds,
    only_if,
    opposite,
    share,
    some,
    stated,
    untested,
)
from precision_lab.experiments.paired import Finding, PairedRatio, student
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.rounding import Array
from precision_lab.training.loop import train
from precision_lab.training.memory import bytes_of
from precision_lab.training.storage import FP32, StorageConfig

_claim = partial(stated, subject="Results", rests_on=Ground.RUNS)


@_claim(
    "bf16-keeps-quality",
    text="Mixed precision trains with minimal loss of accuracy: bf16's mantissa is poor, but adequate.",
    source=f"{CHAPTER}; {ARTICLE}, “Why bf16 won”",
)
def _quality(arithmetic: Arithmetic) -> Verdict:
    bf16, fp16, pure = (
        runs.paired(name, measure="test loss") for name in ("autocast_bf16", "autocast_fp16", "pure_bf16")
    )
    words = (
        "On digits that were not trained on the loss, beside fp32's, is {bf16} in bf16 and {fp16} in fp16, both with "
        "fp32 master weights. With weights and moments in bf16 as well it is {pure}."
    )
    verdict = decide((every(bf16.keeps, fp16.keeps), holds), otherwise=fails)
    return verdict(words, bf16=bf16, fp16=fp16, pure=pure).after(runs.config())


@_claim(
    "range-over-precision",
    text="Training is much more sensitive to range than to precision.",
    source=f"{ARTICLE}, “Why bf16 won” and “Why bf16 over fp16?”",
)
def _range(arithmetic: Arithmetic) -> Verdict:
    exponent = -20
    narrow, wide = (runs.paired(f"autocast_{f},loss_scale=2^{exponent}") for f in ("fp16", "bf16"))
    fp16, bf16 = (runs.paired(f"autocast_{f},loss_scale=none") for f in ("fp16", "bf16"))
    coarse, pure = runs.paired("weights=e8m2,master=fp32"), runs.paired("pure_bf16", "sgd")
    words = (
        "With the loss times {factor:power}, training ends, beside fp32's loss, at {narrow} in fp16 and at {wide} in "
        "bf16; without, at {fp16} and {bf16}. With {mantissa} mantissa bits: {coarse}. And weights without a master "
        "copy need precision: bf16 {pure} (SGD)."
    )
    by_range, tie = every(opposite(narrow.keeps), wide.keeps), every(fp16.keeps, bf16.keeps)
    small = partial(only_if, "gradients are so small that fp16 flushes them, and the weights have an fp32 master copy")
    verdict = decide((every(by_range, some(tie, opposite(pure.keeps))), small), (by_range, holds), otherwise=fails)
    return verdict(
        words,
        factor=2.0**exponent,
        narrow=narrow,
        wide=wide,
        fp16=fp16,
        bf16=bf16,
        mantissa=2,
        coarse=coarse,
        pure=pure,
    ).after(runs.config(), runs.config(optimizer="sgd"))


@_claim(
    "noise-washes-out-rounding",
    text="Coarser rounding is tolerable, since the noise of stochastic gradients washes it out anyway.",
    source=f"{LESSON}, the last section",
)
def _noise(arithmetic: Arithmetic) -> Verdict:
    digits, model, batch = runs.data()[0], runs.model(), 64
    parameters = {name: np.asarray(array, np.float32) for name, array in runs.trained("fp32", "sgd").parameters.items()}

    def gradient(rows: slice, storage: StorageConfig) -> Array:
        gradients = model.loss_and_gradients(parameters, digits.inputs[rows], digits.labels[rows], storage=storage)
        return runs.flat(gradients.weights)

    full = gradient(slice(None), FP32)
    parts = [slice(first, first + batch) for first in range(0, 16 * batch, batch)]
    exact = [gradient(rows, FP32) for rows in parts]
    narrow = [gradient(rows, StorageConfig.parse("autocast_bf16")) for rows in parts]
    noise = float(np.mean([fixed.norm(g - full) for g in exact]))
    rounding = float(np.mean([fixed.norm(b - g) for b, g in zip(narrow, exact, strict=True)]))
    compute, weights = (runs.paired(storage, "sgd") for storage in ("autocast_bf16", "pure_bf16"))
    words = (
        "Between batches of {batch} the gradient differs {times:.0f} times as much as by computing it in bf16, and "
        "that costs nothing: beside fp32's the loss is {compute}. But the rounding of bf16 weights is no noise, it "
        "repeats in every step, and the loss is {weights}."
    )
    times = noise / rounding
    washed = every(times >= 2, compute.keeps)
    not_weights = partial(only_if, "it is computing that is rounded, not the stored weights")
    return decide(
        (every(washed, weights.keeps), holds), (every(washed, opposite(weights.keeps)), not_weights), otherwise=fails
    )(words, batch=batch, times=times, compute=compute, weights=weights).after(runs.config(optimizer="sgd"))


def _test_loss_at_equal_training_loss(storage: str) -> PairedRatio:
    """Compare test losses with those of fp32 runs that were stopped where their training loss is nearest."""

    def pair(seed: int) -> runs.Pair:
        run = runs.trained(storage, seed=seed)
        steps = tuple(range(10, runs.STEPS + 1, 10))
        losses = runs.trained("fp32", seed=seed, loss_steps=steps).losses_after
        stop = min(steps, key=lambda step: abs(losses[step] - run.final_loss))
        control = runs.trained("fp32", seed=seed, steps=stop)
        loss, beside = (runs.final_loss(result, "test loss") for result in (run, control))
        return runs.Pair(loss, beside, control.initial_loss)

    return runs.compared(pair)


@_claim(
    "precision-regularizes",
    text="bf16's limited precision acts as a regularization: such models generalize better.",
    source=FORUM_FP32,
)
def _regularizes(arithmetic: Arithmetic) -> Verdict:
    train, test = (runs.paired("pure_bf16", measure=measure) for measure in ("training loss", "test loss"))
    equal = _test_loss_at_equal_training_loss("pure_bf16")
    mixed = runs.paired("autocast_bf16", measure="test loss")
    words = (
        "Everything in bf16 learns less: beside fp32's the training loss is {train}, the test loss {test}. Beside that "
        "of fp32 stopped at the same training loss it is {equal}; with fp32 master weights, {mixed}. To tell takes a "
        "model that overfits."
    )
    better = Finding.ENDS_LOWER in (equal.finding, mixed.finding)
    return (holds if better else untested)(words, train=train, test=test, equal=equal, mixed=mixed).after(runs.config())


@_claim(
    "not-bit-equivalent",
    text="Mixed precision is not bit-equivalent to fp32: runs differ in the trailing few digits of every metric.",
    source=f"{ARTICLE}, “Where it goes wrong”",
)
def _bits(arithmetic: Arithmetic) -> Verdict:
    fp32 = runs.trained("fp32")
    again = train(fp32.config)
    floor, far = (
        runs.mean(runs.distance, storage, permuted=permuted)
        for storage, permuted in (("fp32", True), ("autocast_bf16", False))
    )
    order, loss = runs.paired("fp32", permuted=True), runs.paired("autocast_bf16", seeds=runs.SEED_SETS[-1])
    most = max(map(abs, loss.logs))
    evidence = {
        "repeated": share(runs.flat(again.parameters) != runs.flat(fp32.parameters)),
        "floor": floor,
        "far": far,
        "most": most,
    }
    words = (
        "Repeated, fp32 differs in {repeated:.0%} of the weights; with the rows of each batch in another order they "
        "end {floor:.0e} of their way apart, and the loss is {order}. In autocast to bf16 they end {far:.0%} of it "
        "apart and the loss is {loss}, though of one seed it is {most:.2%} off."
    )
    differ = not evidence["repeated"] and far > floor
    early = partial(only_if, "all but the first few digits count as trailing")
    verdict = decide((not differ, fails), (far > 1e-4, early), otherwise=holds)
    return verdict(words, **evidence, order=order, loss=loss).after(runs.config())


def _pairs_to_see(difference: float, deviation: float) -> int:
    """Return how many pairs it takes until their interval is no wider, to either side, than a difference."""
    return next(n for n in count(2) if student(n - 1) * deviation <= difference * math.sqrt(n))


@_claim(
    "fixed-seed-control",
    text="To detect differences of 0.1 % in quality, run an fp32 control with the same seed.",
    source=f"{ARTICLE}, “Where it goes wrong”",
)
def _control(arithmetic: Arithmetic) -> Verdict:
    difference = 0.001
    adam, sgd = (
        runs.paired("autocast_bf16", optimizer, measure="test loss", seeds=runs.SEED_SETS[-1])
        for optimizer in ("adam", "sgd")
    )
    words = (
        "Autocast to bf16 neither gains nor loses, but its test loss over that of a control with the same seed "
        "scatters by {adam_scatter:.2%} with Adam ({adam}) and by {sgd_scatter:.3%} with SGD ({sgd}). To see "
        "{difference:.1%} takes one pair there, but about {pairs} with Adam."
    )
    one_is_enough = {ratio: student(ratio.n - 1) * ratio.deviation < difference for ratio in (adam, sgd)}
    little = partial(only_if, "pairs scatter by much less than that, which a single pair does not tell")
    verdict = decide((all(one_is_enough.values()), holds), (any(one_is_enough.values()), little), otherwise=fails)
    return verdict(
        words,
        adam_scatter=adam.deviation,
        adam=adam,
        sgd_scatter=sgd.deviation,
        sgd=sgd,
        difference=difference,
        pairs=_pairs_to_see(difference, adam.deviation),
    ).after(runs.config(), runs.config(optimizer="sgd"))


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
