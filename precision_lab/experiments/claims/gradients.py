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
    share,
    stated,
    untested,
)
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.rounding import Array
from precision_lab.training.datasets import query_matrix
from precision_lab.training.optimizer_state import start, update, updated_parameters
from precision_lab.training.optimizers import SGD, Adam, Optimizer
from precision_lab.training.storage import FP32

_claim = partial(stated, subject="Gradients and weights", rests_on=Ground.TENSORS)
_FP16, _BF16 = map(get_format, ("fp16", "bf16"))
_KINDS = ("activation_gradients", "weight_gradients")


def _quantile(x: Array, share_below: float) -> float:
    """Return the magnitude that a share of all lies below: one of them, so that nothing is interpolated."""
    magnitudes = np.sort(np.abs(x))
    return float(magnitudes[min(int(share_below * x.size), x.size - 1)])


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
    zero = _flushed(arithmetic, inside, _FP16)
    words = (
        "Near the end of a training {inside:.0%} of the activation gradients lie there, and fp16 makes zeros of "
        "{zero:.0%} of these: only what is at most {last:.0e} becomes zero."
    )
    evidence = {"inside": share(inside.size, nonzero.size), "zero": zero, "last": arithmetic.flushed_up_to(_FP16)}
    good = evidence["inside"] >= 0.1 and zero >= 0.9
    return (holds if good else fails)(words, **evidence).after(runs.observed().config)


@_claim(
    "fp16-gradients-underflow",
    text="fp16's range is so narrow that gradients can underflow.",
    source=f"{CHAPTER}, “Numerical formats”; {LESSON}, step 2",
)
def _fp16_underflows(arithmetic: Arithmetic) -> Verdict:
    early, late = (_flushed(arithmetic, runs.gradients(when), _FP16) for when in ("start", "end"))
    cost = runs.paired("autocast_fp16,loss_scale=none", steps=runs.LATE_STEPS)
    says = {True: "Here that costs nothing", False: "That costs", None: "What that costs these runs do not tell"}
    words = (
        "Of the activation gradients of the digits {early:.0%} become zero at the start of a training, {late:.0%} near "
        f"its end. {says[cost.keeps]}: beside fp32's loss fp16 without loss scaling ends at {{cost}}."
    )
    verdict = (holds if late > 0 else fails)(words, early=early, late=late, cost=cost)
    return verdict.after(runs.observed().config)


_MIDDLE, _MANY = 0.98, 4.0  # of all gradients; orders of magnitude


@_claim(
    "gradients-span",
    text="Gradients regularly span many orders of magnitude.",
    source=f"{ARTICLE}, “Why bf16 over fp16?”",
)
def _span(arithmetic: Arithmetic) -> Verdict:
    def orders(x: Array) -> float:
        low, high = (_quantile(x, (1 + sign * _MIDDLE) / 2) for sign in (-1, 1))
        return fixed.log10(high / low)

    early, late = (orders(runs.gradients(when)) for when in ("start", "end"))
    words = (
        "The middle {middle:.0%} of the activation gradients span {early:.1f} orders of magnitude at the start of a "
        "training and {late:.1f} near its end; all of fp16's normal numbers span {fp16:.1f}."
    )
    fp16 = fixed.log10(_FP16.max / _FP16.smallest_normal)
    verdict = (holds if late >= _MANY else fails)(words, middle=_MIDDLE, early=early, late=late, fp16=fp16)
    return verdict.after(runs.observed().config)


@_claim(
    "late-gradients-small",
    text="Late in training gradients are small.",
    source=f"{LESSON}, step 2",
)
def _late(arithmetic: Arithmetic) -> Verdict:
    early, late = (_quantile(runs.gradients(when), 0.5) for when in ("start", "end"))
    zero = [_flushed(arithmetic, runs.gradients(when), _FP16) for when in ("start", "end")]
    words = (
        "The median activation gradient falls from {early:.0e} to {late:.0e} in the training; fp16 makes zeros of "
        "{none:.0%} of them at its start, of {some:.0%} near its end."
    )
    verdict = (holds if late < early / 2 else fails)(words, early=early, late=late, none=zero[0], some=zero[1])
    return verdict.after(runs.observed().config)


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
        "Of the nonzero gradients of the digits {lost:.0%} become zero or infinite: the smallest is {least:.0e}, and "
        "zero begins at {last:.0e}."
    )
    evidence = {
        "lost": share(lost, magnitudes.size),
        "least": magnitudes.min(),
        "last": arithmetic.flushed_up_to(_BF16),
    }
    return (holds if evidence["lost"] < 1e-4 else fails)(words, **evidence).after(runs.observed().config)


@_claim(
    "bf16-represents-1e-7",
    text="bf16 represents 1e-7 fine; of fp32, fp16 and bf16 only fp16 has that disease.",
    source=f"{LESSON}, step 2",
    rests_on=Ground.ARITHMETIC,
)
def _bf16_represents(arithmetic: Arithmetic) -> Verdict:
    x = 1e-7
    fp32, bf16, fp16 = (abs(arithmetic.one(x, f) - x) / x for f in ("fp32", "bf16", "fp16"))
    words = "{x:g} is stored with a relative error of {fp32:.0e} in fp32, {bf16:.2%} in bf16 and {fp16:.0%} in fp16."
    good = max(fp32, bf16) <= _BF16.eps < fp16
    return (holds if good else fails)(words, x=x, fp32=fp32, bf16=bf16, fp16=fp16)


def _moves_on(arithmetic: Arithmetic, optimizer: Optimizer) -> tuple[float, bool]:
    """Return how far a parameter still moves after its gradient underflowed, and whether it stands in the end.

    How far is counted in steps as large as the last before.
    """
    state = start(np.zeros(1, np.float32), optimizer, FP32)  # at one the weight would swamp what is not zero, too
    where = [0.0]
    for gradient in (*(1e-3,) * 50, *(1e-8,) * 500):
        stored = arithmetic.round(np.full(1, gradient, np.float32), _FP16)
        state, _ = update(state, stored, optimizer, FP32)
        where.append(float(updated_parameters(state, FP32)[0]))
    return (where[50] - where[-1]) / (where[49] - where[50]), where[-1] == where[-100]


@_claim(
    "underflow-stops-learning",
    text="A gradient that underflows to zero contributes no update: the parameter silently stops learning.",
    source=f"{LESSON}, step 2",
    rests_on=Ground.ARITHMETIC,
)
def _stops(arithmetic: Arithmetic) -> Verdict:
    optimizers = {"plain": SGD(1e-3), "momentum": SGD(1e-3, momentum=0.9), "adam": Adam(1e-5)}
    found = {name: _moves_on(arithmetic, optimizer) for name, optimizer in optimizers.items()}
    evidence = {name: steps for name, (steps, _) in found.items()}
    if all(stands for _, stands in found.values()):
        return holds(
            "It moves on by {plain:.0f} steps with SGD, {momentum:.0f} with momentum and {adam:.0f} with Adam, until "
            "the moments have died away; then it stands still.",
            **evidence,
        )
    return fails(
        "It moves on: {plain:.0f} steps with SGD, {momentum:.0f} with momentum, {adam:.0f} with Adam.", **evidence
    )


@_claim(
    "weights-become-zero",
    text="A significant number of weight values become zero when they are cast to bf16 or fp16.",
    source=f"{FORUM_BF16}, the last answer",
)
def _weights_become_zero(arithmetic: Arithmetic) -> Verdict:
    weights = query_matrix()[query_matrix() != 0]
    trained = runs.flat(runs.observed().parameters).astype(np.float32)
    bf16, fp16 = _flushed(arithmetic, trained[trained != 0], _BF16), _flushed(arithmetic, weights, _FP16)
    words = (
        "In bf16 a weight must be at most {last:.0e} to become zero: of the digits' weights {bf16:.0%} do. In fp16 "
        "{fp16:.2%} of the matrix of a language model do. What a cast does is to round: bf16 changes {changed:.1%}."
    )
    evidence = {
        "bf16": bf16,
        "fp16": fp16,
        "last": arithmetic.flushed_up_to(_BF16),
        "changed": share(arithmetic.round(trained, _BF16) != trained),
    }
    verdict = (holds if min(bf16, fp16) >= 0.01 else fails)(words, **evidence)
    return verdict.after("MiniLM's first query matrix", runs.observed().config)


@_claim(
    "scaling-for-small-weights",
    text="As many weights are small, fp16 may require additional scaling.",
    source=FORUM_FP32,
)
def _scaling_weights(arithmetic: Arithmetic) -> Verdict:
    scaled, plain = (runs.trained(f"autocast_fp16{rest}") for rest in ("", ",loss_scale=none"))
    evidence = {
        "times": fixed.norm(runs.flat(scaled.parameters)) / fixed.norm(runs.flat(plain.parameters)),
        "normal": _FP16.smallest_normal,
        "small": share(np.abs(query_matrix()) < _FP16.smallest_normal),
        "zero": _flushed(arithmetic, query_matrix(), _FP16),
    }
    words = (
        "Loss scaling multiplies gradients: with it the digits' weights are {times:.3f} times as large as without. Few "
        "need any: below {normal:.2e} lie {small:.2%} of a language model's matrix, and {zero:.0%} become zero."
    )
    verdict = (holds if evidence["times"] > 2 else fails)(words, **evidence)
    return verdict.after(scaled.config, "MiniLM's first query matrix")


@_claim(
    "big-models-small-weights",
    text="In a model of more than a billion parameters many values are very small, below fp16's smallest normal.",
    source=FORUM_FP32,
    rests_on=Ground.NOTHING,
)
def _small_weights(arithmetic: Arithmetic) -> Verdict:
    digits, matrix = (
        share(np.abs(x[x != 0]) < _FP16.smallest_normal)
        for x in (runs.flat(runs.observed().parameters), query_matrix())
    )
    return untested(
        "No such model is at hand; of the digits network's weights {digits:.1%} and of a matrix of a small "
        "language model {matrix:.2%} lie below {normal:.3g}. To test it: precision-lab scan CHECKPOINT.",
        digits=digits,
        matrix=matrix,
        normal=_FP16.smallest_normal,
    )
