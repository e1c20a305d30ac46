"""Claims on storing weights and moments: what a master copy is for, and what else would do."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from precision_lab.experiments.claims import runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    FORUM_BF16,
    FORUM_FP32,
    LESSON,
    Arithmetic,
    Ground,
    Verdict,
    fails,
    holds,
    only_if,
    positive_values,
    share,
    stated,
)
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.training.hyperparameters import frozen_share

_claim = partial(stated, subject="Weights, updates, moments", rests_on=Ground.RUNS)
_FP16, _BF16 = map(get_format, ("fp16", "bf16"))
_GOOD = 1 + runs.KEEPS


@_claim(
    "tiny-updates-round-away",
    text="Many updates that are each far smaller than the weight round away to nothing when they are added in 16 bits.",
    source=f"{LESSON}, step 3",
)
def _round_away(arithmetic: Arithmetic) -> Verdict:
    update, count = 1e-4, 2000

    def after(fmt: FormatLike, sign: int) -> float:
        weight = np.ones(1)
        for _ in range(count):
            weight = arithmetic.round(weight + sign * update, fmt)
        return float(weight[0])

    evidence = {"update": update, "count": count, "exact": 1 + count * update, "down": 1 - count * update}
    evidence |= {f"{f}_{name}": after(f, s) for f in ("fp16", "bf16", "fp32") for name, s in (("up", 1), ("less", -1))}
    words = (
        "Adding {update:g} to one {count:,} times gives {fp16_up:.4g} in fp16, {bf16_up:.4g} in bf16 and {fp32_up:.4g} "
        "in fp32 (exactly {exact:.4g}); subtracting gives {fp16_less:.4g}, {bf16_less:.4g} and {fp32_less:.4g} "
        "(exactly {down:.4g})."
    )
    lost = [evidence[f"{f}_{name}"] == 1 for f in ("fp16", "bf16") for name in ("up", "less")]
    if all(lost):
        return holds(words, **evidence)
    if any(lost):
        return only_if("the update points away from where the arithmetic rounds", words, **evidence)
    return fails(words, **evidence)


@_claim(
    "right-shift",
    text="An update that fp16 can represent may still vanish when the addition aligns it with the weight.",
    source=f"{FORUM_FP32}, quoting Micikevicius et al. 2018, section 3.1",
)
def _shift(arithmetic: Arithmetic) -> Verdict:
    values = positive_values(_FP16)
    weights = values[(values >= 1) & (values < 2)]
    updates = values[(values >= 2.0**-13) & (values < 2.0**-8)]
    total = weights[:, None] + updates
    ratio, lost = weights[:, None] / updates, arithmetic.round(total, _FP16) == weights[:, None]
    if not lost.any():
        return fails("None of {count:,} pairs is lost.", count=lost.size)
    return holds(
        "Of {count:,} pairs of fp16 values {share:.0%} are lost. It can happen from a ratio of {can:,.0f} on, and "
        "always does beyond {must:,.0f}.",
        count=lost.size,
        share=share(lost),
        can=ratio[lost].min(),
        must=ratio[~lost].max(),
    )


@_claim(
    "updates-underflow",
    text="Updates, gradients times learning rate, become too small to be represented in fp16.",
    source=f"{FORUM_FP32}, quoting Micikevicius et al. 2018, section 3.1",
)
def _underflow(arithmetic: Arithmetic) -> Verdict:
    evidence = {}
    for optimizer in ("sgd", "adam"):
        last = runs.observed(optimizer).snapshots[-1]
        update, weights = runs.flat(last.updates), runs.flat(last.parameters)
        moving = update != 0
        stored = arithmetic.round(weights, _FP16)
        evidence[optimizer] = share(arithmetic.round(update[moving], _FP16) == 0)
        evidence[f"{optimizer}_lost"] = share((arithmetic.round(stored + update, _FP16) == stored)[moving])
    words = (
        "Of SGD's last updates {sgd:.0%} become zero in fp16. Far more are lost in the addition to the weight: "
        "{sgd_lost:.0%}, and with Adam, whose updates are larger, {adam_lost:.0%}."
    )
    evidence.pop("adam")
    return (holds if evidence["sgd"] >= 0.01 else fails)(words, **evidence)


@_claim(
    "master-copy-needed",
    text="To match fp32's accuracy an fp32 master copy of the weights is needed.",
    source=f"{FORUM_FP32}, quoting Micikevicius et al. 2018; {LESSON}, step 3; {ARTICLE}, “What stays in fp32”",
)
def _master(arithmetic: Arithmetic) -> Verdict:
    names = {"pure": "pure_bf16", "master": "master_bf16", "kahan": "bf16_kahan", "stochastic": "bf16_stochastic"}
    evidence = {name: runs.ratio(storage, "sgd") for name, storage in names.items()}
    evidence |= {"fp16": runs.ratio("pure_fp16", "sgd"), "collage": runs.ratio("collage_plus", "adam")}
    words = (
        "With SGD bf16 weights end at {pure:.1f} times fp32's loss (fp16: {fp16:.2f}), with a master copy at "
        "{master:.2f}; but at {kahan:.2f} with Kahan's compensation and {stochastic:.2f} with stochastic rounding, no "
        "fp32 copy kept. With Adam a second bf16 word of weights and moments ends at {collage:.2f}."
    )
    if evidence["pure"] <= _GOOD or evidence["master"] > _GOOD:
        return fails(words, **evidence)
    if min(evidence["kahan"], evidence["stochastic"], evidence["collage"]) <= _GOOD:
        return only_if("nothing else makes up for what the rounding of the weights loses", words, **evidence)
    return holds(words, **evidence)


@_claim(
    "fp32-master-loses-nothing",
    text="With fp32 master weights tiny updates are not lost to rounding.",
    source=f"{LESSON}, the summary",
)
def _fp32_loses(arithmetic: Arithmetic) -> Verdict:
    sgd, adam = (runs.trained("master_bf16", optimizer).updates for optimizer in ("sgd", "adam"))
    words = (
        "An update smaller than {least:power} of its weight is lost in fp32 too: {sgd:.2%} of SGD's updates of the "
        "digits and {adam:.0%} of Adam's. They do not matter: the effective step is {edq:.4f} of the intended one."
    )
    evidence = {
        "least": get_format("fp32").unit_roundoff / 2,
        "sgd": sgd.lost_of_nonzero,
        "adam": adam.lost_of_nonzero,
        "edq": min(sgd.edq_ratio, adam.edq_ratio),
    }
    if not adam.lost + sgd.lost:
        return holds(words, **evidence)
    return (fails if evidence["edq"] < 0.99 else partial(only_if, "updates that do not matter are not counted"))(
        words, **evidence
    )


@_claim(
    "no-master-degrades-descent",
    text="Without a master copy descent quality and results get worse, even with fp32 optimizer states.",
    source=f"{FORUM_BF16}, the first answer",
)
def _descent(arithmetic: Arithmetic) -> Verdict:
    without, with_copy = (runs.trained(name).updates for name in ("bf16_fp32_moments", "master_bf16"))
    evidence = {
        "without": without.edq_ratio,
        "copy": with_copy.edq_ratio,
        "lost": without.lost_of_nonzero,
        "loss": runs.ratio("bf16_fp32_moments"),
        "copy_loss": runs.ratio("master_bf16"),
    }
    words = (
        "Adam's effective step is {without:.2f} of the intended one (<d,u>/||u||²) without the copy and {copy:.2f} "
        "with it; {lost:.0%} of the updates are lost, and the loss ends at {loss:.1f} times fp32's, not "
        "{copy_loss:.2f}."
    )
    worse = evidence["without"] < evidence["copy"] - runs.KEEPS and evidence["loss"] > _GOOD
    return (holds if worse else fails)(words, **evidence)


@_claim(
    "weights-drift",
    text="Without a master copy accumulated noise from low-precision updates makes the weights drift.",
    source=f"{ARTICLE}, “What stays in fp32” and “What does the master-weights pattern actually do?”",
)
def _drift(arithmetic: Arithmetic) -> Verdict:
    fp32 = runs.displacement("fp32", "sgd")
    evidence = {
        "pure": runs.displacement("pure_bf16", "sgd") / fp32,
        "lost": runs.trained("pure_bf16", "sgd").updates.lost_of_nonzero,
        "noisy": runs.displacement("bf16_stochastic", "sgd") / fp32,
        "noisy_loss": runs.ratio("bf16_stochastic", "sgd"),
    }
    words = (
        "They stand still: with SGD {lost:.0%} of the updates are lost and bf16 weights come only {pure:.2f} times as "
        "far from their start as in fp32. Stochastic rounding, which does add noise, comes {noisy:.2f} times as far "
        "and ends at {noisy_loss:.2f} times fp32's loss."
    )
    return (holds if evidence["pure"] > 1 + runs.KEEPS else fails)(words, **evidence)


@_claim(
    "moments-need-fp32",
    text="Adam's first and second moments need fp32 to accumulate correctly.",
    source=f"{CHAPTER}, “FP32 master weights and accumulation”; {ARTICLE}, “What stays in fp32”",
)
def _moments(arithmetic: Arithmetic) -> Verdict:
    evidence = {
        "first": runs.ratio("master_bf16,first_moment=bf16"),
        "second": runs.ratio("master_bf16,second_moment=bf16"),
        "pair": runs.ratio("collage_plus"),
        "beta": 0.999,
        "stays": frozen_share(_BF16, 0.999),
    }
    words = (
        "Beside a master copy a first moment in bf16 ends at {first:.2f} times fp32's loss, a second moment at "
        "{second:.2f}: multiplied by beta2 = {beta}, {stays:.0%} of all v in bf16 stay what they are. Two bf16 words "
        "for it end at {pair:.2f}, without any fp32."
    )
    if min(evidence["first"], evidence["second"]) > _GOOD and evidence["pair"] > _GOOD:
        return holds(words, **evidence)
    if evidence["second"] > _GOOD:
        return only_if("it is the second moment, kept in a single word", words, **evidence)
    return fails(words, **evidence)


@_claim(
    "bf16-softmax-underflows",
    text="A softmax in bf16 silently underflows on the small probabilities.",
    source=f"{ARTICLE}, “What stays in fp32”",
)
def _softmax(arithmetic: Arithmetic) -> Verdict:
    flushed = {f: arithmetic.flushed_up_to(f) for f in ("fp16", "bf16", "fp32")}
    behind = {f: -float(fixed.log(last)) if last else math.inf for f, last in flushed.items()}
    evidence = behind | {"one": 1 - arithmetic.below_one_up_to(_BF16)}
    words = (
        "A probability becomes zero when its logit is {fp16:.1f} behind in fp16, {bf16:.1f} in bf16, {fp32:.1f} in "
        "fp32. What bf16 loses is at the other end: a probability {one:.2g} short of one is stored as one."
    )
    if behind["bf16"] < behind["fp32"] / 2:
        return holds(words, **evidence)
    return fails(words, **evidence)


@_claim(
    "softmax-and-loss-in-fp32",
    text="Softmax and loss must be computed in fp32.",
    source=f"{CHAPTER}, “FP32 master weights and accumulation”; {ARTICLE}, “What stays in fp32”",
)
def _sensitive(arithmetic: Arithmetic) -> Verdict:
    def total(terms: int) -> float:
        running_sum = np.zeros(1)
        for _ in range(terms):
            running_sum = arithmetic.round(running_sum + 1, _BF16)
        return float(running_sum[0])

    evidence = {"loss": runs.ratio("autocast_bf16,sensitive=bf16"), "classes": 10, "many": 5000, "stops": total(5000)}
    words = (
        "With both in bf16 the digits, {classes} classes, end at {loss:.2f} times fp32's loss. But {many:,} equal "
        "exponentials that are added one after the other in bf16 come to {stops:.0f} times one of them."
    )
    if evidence["loss"] > _GOOD:
        return holds(words, **evidence)
    if evidence["stops"] < 0.9 * evidence["many"]:
        return only_if("there are many classes, and the sum over them is kept in bf16", words, **evidence)
    return fails(words, **evidence)
