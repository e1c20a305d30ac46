"""Claims on the operations that are said to need fp32: softmax, layer norm, loss, sums of products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from precision_lab.experiments.claims import runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
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
    stated,
)
from precision_lab.experiments.paired import EQUAL
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.rounding import Array

AUTOCAST: Mapping[str, Mapping[str, str]] = {
    "cuda": {"softmax": "fp32", "log_softmax": "fp32", "layer_norm": "fp32", "cross_entropy": "fp32"},
    "cpu": {"softmax": "bf16", "log_softmax": "bf16", "layer_norm": "bf16", "cross_entropy": "fp32"},
}
"""The format of what torch's autocast to bf16 makes of bf16 inputs, by device (torch 2.13)."""

TERMS = 1024
"""How many terms the sums of these claims have."""

_claim = partial(stated, subject="Softmax, loss, products")
_BF16 = get_format("bf16")


def _sum_of_ones(arithmetic: Arithmetic) -> float:
    """Return what as many ones come to that are added one after the other in bf16."""
    total = np.zeros(1)
    for _ in range(TERMS):
        total = arithmetic.round(total + 1, _BF16)
    return float(total[0])


@_claim(
    "bf16-softmax-underflows",
    text="A softmax in bf16 silently underflows on the small probabilities.",
    source=f"{ARTICLE}, “What stays in fp32”",
    rests_on=Ground.ARITHMETIC,
)
def _softmax(arithmetic: Arithmetic) -> Verdict:
    flushed = {f: arithmetic.flushed_up_to(f) for f in ("fp16", "bf16", "fp32")}
    behind = {f: -float(fixed.log(last)) if last else math.inf for f, last in flushed.items()}
    sure = 0.999
    evidence = behind | {"sure": sure, "gradient": arithmetic.one(sure, _BF16) - 1}
    words = (
        "A probability becomes zero when its logit is {fp16:.1f} behind in fp16, {bf16:.1f} in bf16, {fp32:.1f} in "
        "fp32. What bf16 loses is at the other end: a right token that is given p = {sure:g} has, with p stored in "
        "bf16, the gradient p minus one = {gradient:.2g}."
    )
    if behind["bf16"] < behind["fp32"] / 2:
        return holds(words, **evidence)
    return fails(words, **evidence)


def _stored_as_one(arithmetic: Arithmetic, **setting: Any) -> float:
    """Return the share of the training digits whose right class has a probability in fp32 that bf16 makes one of."""
    digits, result = runs.data()[0], runs.trained("fp32", **setting)
    parameters = {name: np.asarray(array, np.float64) for name, array in result.parameters.items()}
    logits = runs.model().forward(parameters, digits.inputs)["logits"]
    behind = logits - logits[np.arange(len(logits)), digits.labels][:, np.newaxis]
    return share(arithmetic.round(1 / fixed.sum(fixed.exp(behind), axis=1), _BF16) == 1)


@_claim(
    "softmax-and-loss-in-fp32",
    text="Softmax and loss must be computed in fp32.",
    source=f"{ARTICLE}, “What stays in fp32”",
    rests_on=Ground.RUNS,
)
def _sensitive(arithmetic: Arithmetic) -> Verdict:
    storage = "autocast_bf16,sensitive=bf16"
    long: dict[str, Any] = {"learning_rate": 0.01, "steps": 2000}
    usual, late = runs.paired(storage), runs.paired(storage, **long)
    words = (
        "With both in bf16 the loss beside fp32's is {usual}, while {few:.0%} of the probabilities are stored as one; "
        "after {steps:,} steps at lr {rate:g}, when {many:.0%} are and leave no gradient, it is {late}. That {terms:,} "
        "equal exponentials added in bf16 come to {stops:.0f} is a thought experiment: no library adds so."
    )
    learned = partial(only_if, "the training goes on until most probabilities are stored as one")
    return decide((opposite(usual.keeps), holds), (opposite(late.keeps), learned), otherwise=fails)(
        words,
        usual=usual,
        few=_stored_as_one(arithmetic),
        late=late,
        steps=long["steps"],
        rate=long["learning_rate"],
        many=_stored_as_one(arithmetic, **long),
        terms=TERMS,
        stops=_sum_of_ones(arithmetic),
    ).after(runs.config(), runs.config(**long))


@_claim(
    "fp32-operations-by-default",
    text="Softmax, layer norm and loss are performed in fp32 by default in modern AMP libraries.",
    source=f"{CHAPTER}, “FP32 master weights and accumulation”",
    rests_on=Ground.RULES,
)
def _by_default(arithmetic: Arithmetic) -> Verdict:
    wide = {device: sum(name == "fp32" for name in made.values()) for device, made in AUTOCAST.items()}
    count = len(AUTOCAST["cuda"])
    narrow = [name for name, made in AUTOCAST["cpu"].items() if made != "fp32"]
    words = (
        "On CUDA torch's autocast makes fp32 of bf16 inputs in {cuda} of {count} such operations, on a CPU in {cpu}"
        f"{'; bf16 stays in ' * bool(narrow)}{', '.join(narrow)}."
    )
    device = partial(only_if, "the device is CUDA, not a CPU")
    verdict = decide((wide["cuda"] == wide["cpu"] == count, holds), (wide["cuda"] == count, device), otherwise=fails)
    return verdict(words, cuda=wide["cuda"], cpu=wide["cpu"], count=count)


def _losses(logits: Array) -> Array:
    """Return the cross-entropy of each row in float64, the first class being right."""
    top = logits.max(axis=1, keepdims=True)
    losses: Array = fixed.log(fixed.sum(fixed.exp(logits - top), axis=1)) + (top - logits[:, :1])[:, 0]
    return losses


def _losses_in_bf16(arithmetic: Arithmetic, logits: Array) -> Array:
    """Return the same, each result rounded to bf16; the sum is rounded once."""
    stored = arithmetic.round(logits, _BF16)
    behind = arithmetic.round(stored - stored.max(axis=1, keepdims=True), _BF16)
    total = arithmetic.round(fixed.sum(arithmetic.round(fixed.exp(behind), _BF16), axis=1), _BF16)
    return arithmetic.round(arithmetic.round(fixed.log(total), _BF16) - behind[:, 0], _BF16)


@_claim(
    "upcast-logits",
    text="A bf16 cross-entropy loss is fine if the logits are upcast before the log-softmax.",
    source=f"{ARTICLE}, “What stays in fp32”",
    rests_on=Ground.ARITHMETIC,
)
def _upcast(arithmetic: Arithmetic) -> Verdict:
    classes, small, large, limit = 1000, 5.0, 20.0, float(fixed.log(EQUAL))
    drawn = np.random.default_rng(0).standard_normal((500, classes))
    evidence = {"classes": classes, "small": small, "large": large, "perplexity": EQUAL - 1, "limit": limit}
    for name, deviation in (("small", small), ("large", large)):
        logits = deviation * drawn
        exact = _losses(logits)
        evidence[f"{name}_up"] = float(fixed.mean(np.abs(_losses(arithmetic.round(logits, _BF16)) - exact)))
        evidence[f"{name}_all"] = float(fixed.mean(np.abs(_losses_in_bf16(arithmetic, logits) - exact)))
    fine = {name: evidence[name] <= limit for name in ("small_up", "large_up")}
    words = (
        "Of {classes:,} classes with normal logits a loss is off by {small_up:.3f} on average if their standard "
        "deviation is {small:g}, by {large_up:.3f} if it is {large:g}: the logits were rounded before. All of it in "
        "bf16 it would be {small_all:.3f} and {large_all:.3f}; a perplexity within {perplexity:.0%} allows "
        "{limit:.3f}."
    )
    logits_small = partial(only_if, "the logits are small, of a standard deviation of {small:g} and not {large:g}")
    return decide((every(*fine.values()), holds), (fine["small_up"], logits_small), otherwise=fails)(words, **evidence)


@_claim(
    "matmul-results-in-bf16",
    text="Intermediate results of matrix products live in bf16.",
    source=f"{ARTICLE}, “What stays in fp32”",
    rests_on=Ground.ARITHMETIC,
)
def _products(arithmetic: Arithmetic) -> Verdict:
    evidence = {"terms": TERMS, "narrow": _sum_of_ones(arithmetic), "wide": arithmetic.one(TERMS, _BF16)}
    words = (
        "Their outputs do. Of {terms:,} products of ones a sum that lived in bf16 would come to {narrow:,.0f}; kept in "
        "fp32, as tensor cores and torch keep it, and stored in bf16 at the end, it is {wide:,.0f}."
    )
    outputs = partial(only_if, "the outputs are meant: the sums that they come from are kept in fp32")
    return decide((evidence["narrow"] == evidence["wide"], holds), otherwise=outputs)(words, **evidence)
