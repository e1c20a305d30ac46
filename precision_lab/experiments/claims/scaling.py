"""Claims on loss scaling: which gradients it saves, what it leaves exact, and how the scale moves."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from precision_lab.analysis.loss_scale_replay import replay_loss_scale
from precision_lab.analysis.loss_scalers import SCALERS, DynamicLossScale
from precision_lab.experiments.claims import runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    LESSON,
    Arithmetic,
    Ground,
    Verdict,
    decide,
    every,
    fails,
    holds,
    only_if,
    share,
    stated,
)
from precision_lab.experiments.loss_scaling import RULES, ScaledRun
from precision_lab.experiments.paired import have_learned
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.rounding import Array
from precision_lab.training.models import Gradients
from precision_lab.training.storage import FP32, StorageConfig

_claim = partial(stated, subject="Loss scaling")
_FP16 = get_format("fp16")
_TYPICAL = 2.0**16
_DYNAMIC = {name: scaler for name, scaler in SCALERS.items() if isinstance(scaler, DynamicLossScale)}


@_claim(
    "scaled-1e-7",
    text="A scale of 2^14 lifts 1e-7 to about 1.6e-3, well inside fp16's range.",
    source=f"{LESSON}, step 4",
    rests_on=Ground.ARITHMETIC,
)
def _scaled(arithmetic: Arithmetic) -> Verdict:
    x, scale = 1e-7, 2.0**14
    stored = arithmetic.one(scale * x, _FP16)
    error = abs(stored - scale * x) / (scale * x)
    words = "{scale:power} times {x:g} is {product:.4g}; fp16 stores it with a relative error of {error:.0e}."
    good = f"{scale * x:.1e}" == "1.6e-03" and error <= _FP16.eps
    return (holds if good else fails)(words, scale=scale, x=x, product=scale * x, error=error)


@_claim(
    "2^16-lifts-every-gradient",
    text="S = 2^16 shifts every gradient above fp16's floor.",
    source=f"{ARTICLE}, the figure; {CHAPTER}, “Loss scaling”",
    rests_on=Ground.TENSORS,
)
def _lifts(arithmetic: Arithmetic) -> Verdict:
    magnitudes = np.abs(runs.gradients("end")).astype(np.float64)
    scaled = arithmetic.round(magnitudes * _TYPICAL, _FP16)
    zero, small = share(scaled == 0), share((scaled > 0) & (scaled < _FP16.smallest_normal))
    evidence = {
        "scale": _TYPICAL,
        "zero": zero,
        "small": small,
        "last": arithmetic.flushed_up_to(_FP16) / _TYPICAL,
        "first": arithmetic.finite_up_to(_FP16) / _TYPICAL,
    }
    words = (
        "With {scale:power} whatever is at most {last:power} still becomes zero, and above {first:.4g} gradients "
        "overflow. Near the end of a training {zero:.1%} of the digits' activation gradients stay zero and {small:.1%} "
        "subnormal."
    )
    return (fails if zero + small else holds)(words, **evidence).after(runs.observed().config)


@_claim(
    "typical-scale",
    text="S is typically 2^16 or higher.",
    source=f"{CHAPTER}, “Loss scaling”; {ARTICLE}, “Why bf16 won”",
    rests_on=Ground.RULES,
)
def _typical(arithmetic: Arithmetic) -> Verdict:
    first = {name: scaler.loss_scale for name, scaler in _DYNAMIC.items()}
    high = [name for name, scale in first.items() if scale >= _TYPICAL]
    words = (
        f"{{high}} of the {{count}} rules that frameworks have start there or higher ({_and(high)}), the highest at "
        "{highest:power}, the lowest at {lowest:power}. From there each goes where the gradients let it."
    )
    return (holds if 2 * len(high) > len(first) else fails)(
        words, high=len(high), count=len(first), highest=max(first.values()), lowest=min(first.values())
    )


def _loss_gradients(storage: StorageConfig, scale: float) -> Gradients:
    """Return the gradients of a trained network on a batch of 64 examples."""
    digits = runs.data()[0]
    parameters = {name: np.asarray(array, np.float32) for name, array in runs.observed().parameters.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        return runs.model().loss_and_gradients(
            parameters, digits.inputs[:64], digits.labels[:64], loss_scale=scale, storage=storage
        )


def _not_scaled(storage: StorageConfig, scale: float) -> float:
    """Return the share of the gradients (of weights and activations) that are not exactly `scale` times those of 1."""
    one, scaled = (_loss_gradients(storage, s) for s in (1.0, scale))
    pairs: list[tuple[Array, Array]] = [
        (a.astype(np.float64), b.astype(np.float64))
        for before, after in ((one.weights, scaled.weights), (one.activations, scaled.activations))
        for a, b in zip(before.values(), after.values(), strict=True)
    ]
    return share(np.concatenate([(a * scale != b).reshape(-1) for a, b in pairs]))


@_claim(
    "scaling-is-linear",
    text="By linearity every gradient is scaled by the same S.",
    source=f"{LESSON}, step 4",
    rests_on=Ground.TENSORS,
)
def _linear(arithmetic: Arithmetic) -> Verdict:
    power, other = 2.0**14, 3000.0
    fp16 = StorageConfig.parse("autocast_fp16")
    evidence = {
        "power": power,
        "other": other,
        "exact": _not_scaled(FP32, power),
        "rounded": _not_scaled(FP32, other),
        "fp16": round(_not_scaled(fp16, power), 1),
    }
    words = (
        "Of the gradients of a network in fp32 {exact:.0%} are off with S = {power:power}. With {other:.0f}, which is "
        "no power of two, {rounded:.0%} are rounded. In fp16 {fp16:.0%} are not {power:power} times what they were: "
        "what was zero or subnormal comes back with more bits, which is the purpose."
    )
    if not evidence["exact"] + evidence["rounded"] + evidence["fp16"]:
        verdict = holds(words, **evidence)
    elif not evidence["exact"]:
        verdict = only_if("S is a power of two and nothing is flushed, subnormal or overflows", words, **evidence)
    else:
        verdict = fails(words, **evidence)
    return verdict.after(runs.observed().config)


@_claim(
    "unscaling-is-exact",
    text="Dividing the scaled gradient by S restores the true gradient exactly.",
    source=f"{LESSON}, steps 4 and 5",
    rests_on=Ground.TENSORS,
)
def _unscaled(arithmetic: Arithmetic) -> Verdict:
    nonzero = runs.gradients("end").astype(np.float64)

    def wrong(scale: float) -> float:
        """Return the share of fp16's own values that S, the cast and the division do not give back."""
        stored = arithmetic.round(nonzero, _FP16)
        stored = stored[(stored != 0) & np.isfinite(stored)]
        again = arithmetic.round(arithmetic.round(stored * scale, _FP16) / scale, "fp32")
        return share(again != stored)

    back = arithmetic.round(arithmetic.round(nonzero * _TYPICAL, _FP16) / _TYPICAL, "fp32")
    normal = np.abs(nonzero) * _TYPICAL >= _FP16.smallest_normal
    evidence = {
        "scale": _TYPICAL,
        "other": 3000.0,
        "huge": 2.0**26,
        "same": share(back == nonzero),
        "zero": share(back == 0),
        "error": float(np.max(np.abs(back - nonzero)[normal] / np.abs(nonzero)[normal])),
        "power": wrong(_TYPICAL),
        "three": wrong(3000.0),
        "over": wrong(2.0**26),
    }
    words = (
        "Of gradients that are fp16's already {power:.0%} change on the way through S = {scale:power} and back; "
        "{three:.0%} change with {other:.0f}, by rounding, and {over:.0%} with {huge:power}, by overflow. Of unrounded "
        "ones {same:.0%} come back from {scale:power} as they were and {zero:.1%} as zero, the normal ones with errors "
        "up to {error:.2%}."
    )
    if evidence["same"] == 1:
        verdict = holds(words, **evidence)
    elif evidence["power"] == 0:
        verdict = only_if(
            "S is a power of two, nothing is flushed, subnormal or overflows, and the gradient was rounded to fp16 "
            "already",
            words,
            **evidence,
        )
    else:
        verdict = fails(words, **evidence)
    return verdict.after(runs.observed().config)


@_claim(
    "dynamic-rule",
    text="Dynamic loss scaling halves S at an overflow, skips that step, and raises S after N clean ones.",
    source=f"{CHAPTER}, “Loss scaling”",
    rests_on=Ground.RULES,
)
def _rule(arithmetic: Arithmetic) -> Verdict:
    window = 50
    frameworks: dict[str, DynamicLossScale] = {n: getattr(DynamicLossScale, n)(window=window) for n in _DYNAMIC}
    halve = [n for n, s in frameworks.items() if s.adjust(found_inf=True).loss_scale == s.loss_scale / 2]

    def steps_until_growth(scaler: DynamicLossScale) -> int:
        first = scaler.loss_scale
        for step in range(1, 2 * window):
            scaler = scaler.adjust(found_inf=False)
            if scaler.loss_scale > first:
                return step
        return 0

    late = [n for n, s in frameworks.items() if steps_until_growth(s) == window + 1]
    patient = [n for n in frameworks if n not in halve]
    evidence = {"count": len(frameworks), "halve": len(halve), "late": len(late)}
    if len(halve) == len(frameworks) and not late:
        return holds("All {count} rules do, {halve} at once, {late} a step late.", **evidence)
    return only_if(
        "the rule has no hysteresis",
        f"At the first overflow {{halve}} of the {{count}} rules of frameworks halve S; {_and(patient)} wait for "
        f"another. All skip the step. {{late}} of them ({_and(late)}) raise S a clean step later than was asked.",
        **evidence,
    )


def _and(names: list[str]) -> str:
    *others, last = names or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


@_claim(
    "scale-converges",
    text="The dynamic scale converges to a value just below the overflow threshold.",
    source=f"{CHAPTER}, “Loss scaling”",
    rests_on=Ground.RULES,
)
def _converges(arithmetic: Arithmetic) -> Verdict:
    gradient, window, steps = 0.7, 20, 4000
    trace = replay_loss_scale(DynamicLossScale.torch(2.0**10, window=window), [gradient] * steps, _FP16)
    last = np.array(trace.loss_scales[steps // 2 :])
    skipped = share(np.array(trace.skipped[steps // 2 :]))
    evidence = {
        "gradient": gradient,
        "threshold": _FP16.overflow_threshold / gradient,
        "low": last.min(),
        "high": last.max(),
        "skipped": skipped,
        "window": window,
    }
    words = (
        "Under a constant gradient of {gradient} fp16 overflows from S = {threshold:,.0f} on; torch's rule goes "
        "back and forth between {low:power} and {high:power} for ever, and with a window of {window} skips "
        "{skipped:.1%} of the steps."
    )
    if last.min() == last.max():
        return holds(words, **evidence)
    if 2 * last.min() > evidence["threshold"] >= last.min():
        return only_if("“just below” means within a factor of two, and gradients keep their size", words, **evidence)
    return fails(words, **evidence)


@_claim(
    "ramp-nan",
    text="Runs silently become NaN because the loss scaler does not adapt fast enough during a learning-rate ramp.",
    source=f"{ARTICLE}, “Why bf16 won”",
    rests_on=Ground.RUNS,
)
def _ramp(arithmetic: Arithmetic) -> Verdict:
    gentle, steep = 8, 26
    seeds = [{run.name: run for run in of_seed} for of_seed in runs.ramp(gentle)]
    ((ruined, *_),) = controls = runs.ramp(steep, 1)
    survivors = [of_seed["float32"] for of_seed in seeds]
    tame, wild = [run for of_seed in seeds for run in _by_dynamic_rules(of_seed.values())], _by_dynamic_rules(*controls)
    weights = sum(run.outcome == "NaN" for run in (*tame, *wild))
    logged = sum(run.nonfinite_losses > 0 for run in tame)
    words = (
        "Where the learning rate grows to {gentle:power} times, fp32 learns with {learned} of {seeds} seeds, and of "
        "{runs} runs under {rules} dynamic rules {logged} log an inf or NaN; they skip up to {skips} steps. Where it "
        "grows to {steep:power} times, fp32 ends at a loss of {loss:,.0f}; there activations overflow, whatever S is, "
        "and {least} to {most} losses are inf or NaN. {weights} runs end with NaN weights."
    )
    survived = have_learned([run.initial_loss for run in survivors], [run.final_loss for run in survivors])
    loss = partial(only_if, "the loss that is logged is meant, not the weights")
    ruin = partial(
        only_if, "the loss that is logged is meant, not the weights, and the ramp is one that ruins fp32 too"
    )
    verdict = decide(
        (weights > 0, holds),
        (logged > 0 if survived else None, loss),
        (any(run.nonfinite_losses for run in wild), ruin),
        otherwise=fails,
    )
    return verdict(
        words,
        gentle=2.0**gentle,
        learned=sum(run.outcome == "trains" for run in survivors),
        seeds=len(seeds),
        runs=len(tame),
        rules=len(wild),
        logged=logged,
        skips=max(int(run.skipped[runs.RAMP_STEPS // 3 :].sum()) for run in tame),
        steep=2.0**steep,
        loss=ruined.final_loss,
        least=min(run.nonfinite_losses for run in wild),
        most=max(run.nonfinite_losses for run in wild),
        weights=weights,
    ).after(f"mlp, adam, {runs.RAMP_STEPS} steps, n = {len(seeds)}, of the steep ramp 1")


def _by_dynamic_rules(of_seed: Iterable[ScaledRun]) -> list[ScaledRun]:
    """Return the runs whose loss scale moves."""
    return [run for run in of_seed if isinstance(RULES.get(run.name), DynamicLossScale)]


@_claim(
    "bf16-needs-no-scaling",
    text="bf16 needs no loss scaling.",
    source=f"{CHAPTER}, “Numerical formats”; {ARTICLE}, “Why bf16 won”; {LESSON}, step 5",
    rests_on=Ground.RUNS,
)
def _bf16_unscaled(arithmetic: Arithmetic) -> Verdict:
    small = "2^-20"  # as a loss scale: what is multiplied is the same, and Adam's epsilon does not see it
    plain, scaled = runs.paired("autocast_bf16"), runs.paired("autocast_bf16,loss_scale=2^16")
    tiny, narrow = (runs.paired(f"autocast_{fmt},loss_scale={small}") for fmt in ("bf16", "fp16"))
    words = (
        "Final losses beside fp32's: {plain} without it, {scaled} with S = {typical:power}. Where the loss is "
        "multiplied by {factor:power} bf16 ends at {tiny}, and fp16 at {narrow}."
    )
    verdict = decide((every(plain.keeps, tiny.keeps), holds), otherwise=fails)
    return verdict(
        words, plain=plain, scaled=scaled, typical=_TYPICAL, factor=2.0**-20, tiny=tiny, narrow=narrow
    ).after(runs.trained("fp32").config)
