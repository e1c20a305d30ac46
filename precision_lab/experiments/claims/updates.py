"""Claims on storing weights and moments: what a master copy is for, and what else would do."""

from __future__ import annotations

from functools import partial
from typing import Any

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
    decide,
    every,
    fails,
    holds,
    only_if,
    opposite,
    positive_values,
    share,
    some,
    stated,
    untested,
)
from precision_lab.experiments.paired import Finding
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.training.hyperparameters import frozen_share

_claim = partial(stated, subject="Weights, updates, moments")
_FP16, _BF16 = map(get_format, ("fp16", "bf16"))
_WITH_COPY = "autocast_bf16"  # the same numbers as master_bf16, and other claims train it anyway


@_claim(
    "tiny-updates-round-away",
    text="Many updates that are each far smaller than the weight round away to nothing when they are added in 16 bits.",
    source=f"{LESSON}, step 3",
    rests_on=Ground.ARITHMETIC,
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
    rests_on=Ground.ALL_VALUES,
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
    rests_on=Ground.TENSORS,
)
def _underflow(arithmetic: Arithmetic) -> Verdict:
    evidence: dict[str, float] = {"step": runs.LATE_STEPS}
    for optimizer in ("sgd", "adam"):
        last = runs.observed(optimizer).snapshots[-1]
        update, weights = runs.flat(last.updates), runs.flat(last.parameters)
        moving = update != 0
        stored = arithmetic.round(weights, _FP16)
        evidence[optimizer] = share(arithmetic.round(update[moving], _FP16) == 0)
        evidence[f"{optimizer}_lost"] = share((arithmetic.round(stored + update, _FP16) == stored)[moving])
    evidence.pop("adam")
    words = (
        "In step {step:,} {sgd:.0%} of SGD's updates become zero in fp16. More are lost where they are added to the "
        "weight: {sgd_lost:.0%} of SGD's, and {adam_lost:.0%} of Adam's, which are larger."
    )
    settings = [runs.observed(optimizer).config for optimizer in ("sgd", "adam")]
    return (holds if evidence["sgd"] >= 0.01 else fails)(words, **evidence).after(*settings)


@_claim(
    "master-copy-needed",
    text="To match fp32's accuracy an fp32 master copy of the weights is needed.",
    source=f"{LESSON}, step 3; {ARTICLE}, “What stays in fp32”",
    rests_on=Ground.RUNS,
)
def _master(arithmetic: Arithmetic) -> Verdict:
    pure, master, kahan, stochastic = (
        runs.paired(storage, "sgd") for storage in ("pure_bf16", _WITH_COPY, "bf16_kahan", "bf16_stochastic")
    )
    collage = runs.paired("collage_plus", "adam")
    words = (
        "Beside fp32's loss that of bf16 weights is {pure} (SGD); with a master copy {master}; but without one {kahan} "
        "with Kahan's compensation, {stochastic} with stochastic rounding, and, with Adam, {collage} where weights and "
        "second moment have a second bf16 word."
    )
    matters = every(opposite(pure.keeps), master.keeps)
    alone = every(matters, opposite(some(kahan.keeps, stochastic.keeps, collage.keeps)))
    instead = partial(only_if, "nothing else makes up for what the rounding of the weights loses")
    verdict = decide((alone, holds), (matters, instead), otherwise=fails)
    return verdict(words, pure=pure, master=master, kahan=kahan, stochastic=stochastic, collage=collage).after(
        runs.config(optimizer="sgd"), runs.config()
    )


@_claim(
    "master-copy-not-universal",
    text="The need for fp32 master weights is not universal, but a number of networks require them.",
    source=f"{FORUM_FP32}, quoting Micikevicius et al. 2018, section 3.1",
    rests_on=Ground.RUNS,
)
def _not_universal(arithmetic: Arithmetic) -> Verdict:
    quick, steps = 0.1, 2000
    fast, slow = runs.paired("pure_fp16", "sgd", learning_rate=quick), runs.paired("pure_fp16", "sgd", steps=steps)
    words = (
        "SGD with fp16 weights and no copy, beside fp32's loss: {fast}, at lr {quick:g}; {slow}, at lr {usual:g} and "
        "after {steps:,} steps."
    )
    verdict = decide((every(fast.keeps, opposite(slow.keeps)), holds), otherwise=fails)
    return verdict(words, fast=fast, slow=slow, quick=quick, usual=runs.LEARNING_RATES["sgd"], steps=steps).after(
        runs.config(optimizer="sgd", learning_rate=quick), runs.config(optimizer="sgd", steps=steps)
    )


@_claim(
    "fp32-master-loses-nothing",
    text="With fp32 master weights tiny updates are not lost to rounding.",
    source=f"{LESSON}, the summary",
    rests_on=Ground.TENSORS,
)
def _fp32_loses(arithmetic: Arithmetic) -> Verdict:
    sgd, adam = (runs.trained(_WITH_COPY, optimizer).updates for optimizer in ("sgd", "adam"))
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
    matter = partial(only_if, "updates that do not matter are not counted")
    none_lost = not adam.lost + sgd.lost
    verdict = decide((none_lost, holds), (evidence["edq"] >= 0.99, matter), otherwise=fails)
    return verdict(words, **evidence).after(runs.config(optimizer="sgd"), runs.config())


@_claim(
    "no-master-degrades-descent",
    text="Without a master copy descent quality and results get worse, even with fp32 optimizer states.",
    source=f"{FORUM_BF16}, the first answer",
    rests_on=Ground.RUNS,
)
def _descent(arithmetic: Arithmetic) -> Verdict:
    storage = "bf16_fp32_moments"
    rough: dict[str, Any] = {"learning_rate": 0.01, "beta2": 0.95}
    without, with_copy = (runs.mean(lambda run: run.updates.edq_ratio, name) for name in (storage, _WITH_COPY))
    loss, copy, noisy = runs.paired(storage), runs.paired(_WITH_COPY), runs.paired(storage, **rough)
    words = (
        "Adam's effective step is {without:.2f} of the intended one (<d,u>/||u||²) without the copy, {copy_edq:.2f} "
        "with it; {lost:.0%} of the updates are lost. The loss beside fp32's is {loss}; with the copy {copy}. At lr "
        "{rate:g} and beta2 {beta:g}, where fp32's own differs {spread:.0f}-fold between seeds, it is {noisy}: too "
        "rough to tell."
    )
    worse = every(without < 0.95 * with_copy, opposite(loss.keeps), copy.keeps)
    everywhere = every(worse, noisy.finding is Finding.LOSES)
    settles = partial(only_if, "fp32's loss settles at that learning rate")
    return decide((everywhere, holds), (worse, settles), otherwise=fails)(
        words,
        without=without,
        copy_edq=with_copy,
        lost=runs.mean(runs.lost, storage),
        loss=loss,
        copy=copy,
        noisy=noisy,
        spread=max(noisy.controls) / min(noisy.controls),
        rate=rough["learning_rate"],
        beta=rough["beta2"],
    ).after(runs.config(), runs.config(**rough))


@_claim(
    "weights-drift",
    text="Without a master copy accumulated noise from low-precision updates makes the weights drift.",
    source=f"{ARTICLE}, “What stays in fp32” and “What does the master-weights pattern actually do?”",
    rests_on=Ground.RUNS,
)
def _drift(arithmetic: Arithmetic) -> Verdict:
    evidence = {
        "sgd": runs.mean(runs.distance, "pure_bf16", "sgd"),
        "adam": runs.mean(runs.distance, "pure_bf16"),
        "copy": runs.mean(runs.distance, _WITH_COPY),
        "lost": runs.mean(runs.lost, "pure_bf16", "sgd"),
        "noise": runs.mean(runs.distance, "bf16_stochastic", "sgd"),
    }
    pure, noisy = (runs.paired(storage, "sgd") for storage in ("pure_bf16", "bf16_stochastic"))
    words = (
        "bf16 weights end {sgd:.2f} of fp32's way from fp32's weights with SGD, {adam:.2f} with Adam; with a master "
        "copy {copy:.2f}. But that is no noise: {lost:.0%} of SGD's updates are lost, and the loss beside fp32's is "
        "{pure}. Stochastic rounding, which is noise, ends {noise:.2f} of the way off, its loss at {noisy}."
    )
    drifts = every(min(evidence["sgd"], evidence["adam"]) > 10 * evidence["copy"], opposite(pure.keeps))
    by_noise = every(drifts, opposite(noisy.keeps))
    biased = partial(only_if, "drift is a bias that repeats in every step, and not noise")
    verdict = decide((by_noise, holds), (drifts, biased), otherwise=fails)
    return verdict(words, **evidence, pure=pure, noisy=noisy).after(runs.config(optimizer="sgd"), runs.config())


@_claim(
    "moments-need-fp32",
    text="Adam's first and second moments need fp32 to accumulate correctly.",
    source=f"{CHAPTER}, “FP32 master weights and accumulation”; {ARTICLE}, “What stays in fp32”; the contrary: "
    "DeepSeek-AI 2024, “DeepSeek-V3 Technical Report”, section 3.3.3, both in bf16 without a loss",
    rests_on=Ground.RUNS,
)
def _moments(arithmetic: Arithmetic) -> Verdict:
    beta, small = runs.config().beta2, 0.95
    first, second = (runs.paired(f"master_bf16,{moment}=bf16") for moment in ("first_moment", "second_moment"))
    both = runs.paired("master_bf16,moments=bf16", beta2=small)
    words = (
        "Beside a master copy and with beta2 = {beta:g} the loss over fp32's is {first}, where the first moment is "
        "bf16; {second}, where the second is: multiplied by beta2 {stays:.0%} of all v in bf16 stay what they are. "
        "With beta2 = {small:g} {leaves:.0%} do, and with both moments in bf16 it is {both}."
    )
    needed = every(opposite(second.keeps), opposite(both.keeps))
    condition = "it is the second moment, and beta2 is near one ({beta:g}; at {small:g} bf16 is enough)"
    return decide((needed, holds), (opposite(second.keeps), partial(only_if, condition)), otherwise=fails)(
        words,
        beta=beta,
        small=small,
        first=first,
        second=second,
        both=both,
        stays=frozen_share(_BF16, beta),
        leaves=frozen_share(_BF16, small),
    ).after(runs.config(), runs.config(beta2=small))


@_claim(
    "millions-of-steps",
    text="Kept in fp32, parameters and moments accumulate correctly over millions of steps.",
    source=f"{CHAPTER}, “FP32 master weights and accumulation”",
    rests_on=Ground.RUNS,
)
def _millions(arithmetic: Arithmetic) -> Verdict:
    few, storage = runs.STEPS // 2, "master_bf16,second_moment=bf16"
    return untested(
        "No run here is longer than {longest:,} steps. What is too coarse shows more, the longer it is: where a second "
        "moment is bf16, the loss beside fp32's is {early} after {few:,} steps, but {late} after {steps:,}. Whether "
        "fp32's own rounding shows after {millions:,} takes a run that long, beside one in wider numbers.",
        longest=runs.LATE_STEPS,
        early=runs.paired(storage, steps=few),
        few=few,
        late=runs.paired(storage),
        steps=runs.STEPS,
        millions=10**6,
    ).after(runs.config(steps=few), runs.config())
