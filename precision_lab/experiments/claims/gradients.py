"""Claims on what a format does to gradients and weights: looked at in a network that learns handwritten digits.

One small network proves nothing for all: where a claim says "many" or "never", the verdict says how many there were
here, and what the number would have to be.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from precision_lab.experiments.claims import runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    FORUM_BF16,
    FORUM_FP32,
    LESSON,
    SUBNORMALS,
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
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.rounding import Array
from precision_lab.training.optimizer_state import start, update, updated_parameters
from precision_lab.training.optimizers import SGD, Adam, Optimizer
from precision_lab.training.storage import FP32

_claim = partial(stated, subject="Gradients and weights", rests_on=Ground.TENSORS)
_FP16, _BF16 = map(get_format, ("fp16", "bf16"))
_KINDS = ("activation_gradients", "weight_gradients")


def _flushed(arithmetic: Arithmetic, x: Array, fmt: FormatLike) -> float:
    return share(arithmetic.round(x, fmt) == 0)


@_claim(
    "many-gradients-underflow",
    text="Many gradients lie between 1e-7 and 1e-4; in fp16 these underflow to zero.",
    source=f"{CHAPTER}, “Loss scaling”; {ARTICLE}, “Why bf16 won”",
    root=SUBNORMALS,
)
def _many(arithmetic: Arithmetic) -> Verdict:
    low, high = 1e-7, 1e-4
    nonzero = runs.gradients("end")
    inside = nonzero[(np.abs(nonzero) >= low) & (np.abs(nonzero) <= high)]
    zero, below = _flushed(arithmetic, inside, _FP16), nonzero[np.abs(nonzero) < low]
    words = (
        "Near the end of a training {inside:.0%} of the activation gradients lie there, and fp16 makes zeros of "
        "{zero:.0%} of these; below {low:g} lie {below:.0%}, and {lost:.0%} of those become zero."
    )
    evidence = {
        "inside": share(inside.size, nonzero.size),
        "zero": zero,
        "low": low,
        "below": share(below.size, nonzero.size),
        "lost": _flushed(arithmetic, below, _FP16),
    }
    if evidence["inside"] >= 0.1 and zero >= 0.9:
        return holds(words, **evidence)
    return fails(words, **evidence)


@_claim(
    "fp16-gradients-underflow",
    text="fp16's range is so narrow that gradients can underflow.",
    source=f"{CHAPTER}, “Numerical formats”; {LESSON}, step 2",
)
def _fp16_underflows(arithmetic: Arithmetic) -> Verdict:
    early, late = (_flushed(arithmetic, runs.gradients(when), _FP16) for when in ("start", "end"))
    weights = _flushed(arithmetic, runs.gradients("end", "weight_gradients"), _FP16)
    words = (
        "Of the activation gradients of the digits {early:.2%} become zero at the start of a training and {late:.0%} "
        "near its end, of the weights' gradients {weights:.1%}."
    )
    return (holds if late > 0 else fails)(words, early=early, late=late, weights=weights)


@_claim(
    "bf16-gradients-never-underflow",
    text="Gradients essentially never underflow or overflow in bf16.",
    source=f"{ARTICLE}, “Why bf16 won”; {CHAPTER}, “Numerical formats”; {LESSON}, step 5",
)
def _bf16_never_underflows(arithmetic: Arithmetic) -> Verdict:
    magnitudes = np.abs(np.concatenate([runs.gradients(when, kind) for when in ("start", "end") for kind in _KINDS]))
    rounded = arithmetic.round(magnitudes, _BF16)
    lost = int(np.count_nonzero((rounded == 0) | ~np.isfinite(rounded)))
    words = (
        "{lost} of some {count:,} nonzero gradients become zero or infinite; the smallest is {least:.0e}, and zero "
        "begins at {last:.0e}."
    )
    evidence = {
        "lost": lost,
        "count": round(magnitudes.size, -3),
        "least": magnitudes.min(),
        "last": arithmetic.flushed_up_to(_BF16),
    }
    return (holds if share(lost, magnitudes.size) < 1e-4 else fails)(words, **evidence)


@_claim(
    "bf16-represents-1e-7",
    text="bf16 represents 1e-7 fine; of fp32, fp16 and bf16 only fp16 has that disease.",
    source=f"{LESSON}, step 2",
)
def _bf16_represents(arithmetic: Arithmetic) -> Verdict:
    x = 1e-7
    fp32, bf16, fp16 = (abs(arithmetic.one(x, f) - x) / x for f in ("fp32", "bf16", "fp16"))
    words = "{x:g} is stored with a relative error of {fp32:.0e} in fp32, {bf16:.2%} in bf16 and {fp16:.0%} in fp16."
    good = max(fp32, bf16) <= _BF16.eps < fp16
    return (holds if good else fails)(words, x=x, fp32=fp32, bf16=bf16, fp16=fp16)


def _moves_on(arithmetic: Arithmetic, optimizer: Optimizer) -> float:
    """Return how far a parameter still moves after its gradient underflowed, in steps as large as the last before."""
    state = start(np.ones(1, np.float32), optimizer, FP32)
    where = [1.0]
    for gradient in (*(1e-3,) * 50, *(1e-8,) * 500):
        stored = arithmetic.round(np.full(1, gradient, np.float32), _FP16)
        state, _ = update(state, stored, optimizer, FP32)
        where.append(float(updated_parameters(state, FP32)[0]))
    return (where[50] - where[-1]) / (where[49] - where[50])


@_claim(
    "underflow-stops-learning",
    text="A gradient that underflows to zero contributes no update: the parameter silently stops learning.",
    source=f"{LESSON}, step 2",
)
def _stops(arithmetic: Arithmetic) -> Verdict:
    evidence = {
        "plain": _moves_on(arithmetic, SGD(1e-3)),
        "momentum": _moves_on(arithmetic, SGD(1e-3, momentum=0.9)),
        "adam": _moves_on(arithmetic, Adam(1e-5)),
    }
    words = (
        "After its gradient became zero a parameter still moves {plain:.0f} steps with SGD, {momentum:.1f} with "
        "momentum, {adam:.1f} with Adam: the moments remember."
    )
    if max(evidence.values()) < 0.5:
        return holds(words, **evidence)
    if evidence["plain"] < 0.5:
        return only_if("the optimizer is SGD without momentum", words, **evidence)
    return fails(words, **evidence)


@_claim(
    "weights-become-zero",
    text="A significant number of weight values become zero when they are cast to bf16 or fp16.",
    source=f"{FORUM_BF16}, the last answer",
)
def _weights_become_zero(arithmetic: Arithmetic) -> Verdict:
    weights = runs.flat(runs.observed().parameters)
    weights = weights[weights != 0]
    bf16, fp16 = (int(np.count_nonzero(arithmetic.round(weights, f) == 0)) for f in (_BF16, _FP16))
    words = (
        "Of {count:,} trained weights {bf16} become zero in bf16 and {fp16} in fp16: bf16 makes zeros of magnitudes up "
        "to {last:.0e} only. What a cast does is to round: bf16 changes {changed:.1%} of them."
    )
    evidence = {
        "count": weights.size,
        "bf16": bf16,
        "fp16": fp16,
        "last": arithmetic.flushed_up_to(_BF16),
        "changed": share(arithmetic.round(weights.astype(np.float32), _BF16) != weights),
    }
    return (holds if min(bf16, fp16) >= 0.01 * weights.size else fails)(words, **evidence)


@_claim(
    "big-models-small-weights",
    text="In a model of more than a billion parameters many values are very small, below fp16's smallest normal.",
    source=FORUM_FP32,
)
def _small_weights(arithmetic: Arithmetic) -> Verdict:
    weights = np.abs(runs.flat(runs.observed().parameters))
    weights = weights[weights != 0]
    return untested(
        "No such model is at hand; of the {count:,} weights of the digits network {small:.1%} lie below {normal:.3g}. "
        "To test it: precision-lab scan CHECKPOINT.",
        count=weights.size,
        small=share(weights < _FP16.smallest_normal),
        normal=_FP16.smallest_normal,
    )
