"""Claims on loss scaling: which gradients it saves, what it leaves exact, and how the scale moves."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from precision_lab.analysis.loss_scale_replay import replay_loss_scale
from precision_lab.analysis.loss_scalers import DynamicLossScale
from precision_lab.experiments.claims import runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    LESSON,
    Arithmetic,
    Ground,
    Verdict,
    fails,
    holds,
    only_if,
    share,
    stated,
)
from precision_lab.experiments.loss_scaling import RULES
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.rounding import Array
from precision_lab.training.models import Gradients
from precision_lab.training.storage import FP32, StorageConfig

_claim = partial(stated, subject="Loss scaling", rests_on=Ground.ARITHMETIC)
_FP16, _FP32 = map(get_format, ("fp16", "fp32"))
_TYPICAL = 2.0**16


@_claim(
    "scaled-1e-7",
    text="A scale of 2^14 lifts 1e-7 to about 1.6e-3, well inside fp16's range.",
    source=f"{LESSON}, step 4",
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
    if not zero + small:
        return holds(words, **evidence)
    return fails(words, **evidence)


@_claim(
    "typical-scale",
    text="S is typically 2^16 or higher.",
    source=f"{CHAPTER}, “Loss scaling”; {ARTICLE}, “Why bf16 won”",
)
def _typical(arithmetic: Arithmetic) -> Verdict:
    largest = float(np.abs(runs.gradients("start", "weight_gradients")).max())
    highest = 2.0 ** (math.ceil(fixed.log2(_FP16.overflow_threshold / largest)) - 1)
    evidence = {"scale": _TYPICAL, "highest": highest, "largest": largest}
    words = (
        "The largest gradient in the first steps of the digits is {largest:.2f}. It overflows above {highest:power}: "
        "{scale:power} is right, and little more than that."
    )
    if highest < _TYPICAL:
        return fails(words, **evidence)
    return only_if("no gradient times S exceeds fp16's maximum; here up to S = {highest:power}", words, **evidence)


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
        "In fp32 {exact:.0%} of the gradients of a network are not exactly S times as large with S = {power:power}, "
        "but {rounded:.0%} with S = {other:.0f}; in fp16 it is {fp16:.0%} with {power:power}, since what was zero or "
        "subnormal comes back with more bits, which is the purpose."
    )
    if not evidence["exact"] + evidence["rounded"] + evidence["fp16"]:
        return holds(words, **evidence)
    if not evidence["exact"]:
        return only_if("S is a power of two and nothing underflows or overflows", words, **evidence)
    return fails(words, **evidence)


@_claim(
    "unscaling-is-exact",
    text="Dividing the scaled gradient by S restores the true gradient exactly.",
    source=f"{LESSON}, steps 4 and 5",
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
        "Of values that fp16 holds S = {scale:power} spoils {power:.0%}, {other:.0f} {three:.0%}, {huge:power} "
        "{over:.0%} by overflow. But fp16 rounds between the two steps: of the digits' gradients {same:.0%} come back "
        "as they were from {scale:power}, {zero:.1%} as zero, the normal ones with errors up to {error:.2%}."
    )
    if evidence["same"] == 1:
        return holds(words, **evidence)
    if evidence["power"] == 0:
        return only_if(
            "S is a power of two, nothing underflows or overflows, and the gradient was rounded to fp16 already",
            words,
            **evidence,
        )
    return fails(words, **evidence)


@_claim(
    "dynamic-rule",
    text="Dynamic loss scaling halves S at an overflow, skips that step, and raises S after N clean ones.",
    source=f"{CHAPTER}, “Loss scaling”",
)
def _rule(arithmetic: Arithmetic) -> Verdict:
    window = 50
    names = [name for name, scaler in RULES.items() if isinstance(scaler, DynamicLossScale)]
    frameworks: dict[str, DynamicLossScale] = {name: getattr(DynamicLossScale, name)(window=window) for name in names}
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
        f"At the first overflow {{halve}} of {{count}} rules halve S; {_and(patient)} wait for another. {{late}} "
        f"({_and(late)}) wait a clean step more than was asked before S grows.",
        **evidence,
    )


def _and(names: list[str]) -> str:
    return " and ".join(names) or "none"


@_claim(
    "scale-converges",
    text="The dynamic scale converges to a value just below the overflow threshold.",
    source=f"{CHAPTER}, “Loss scaling”",
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
)
def _ramp(arithmetic: Arithmetic) -> Verdict:
    (accident,) = runs.ramp().accidents.values()
    by_name = {run.name: run for run in accident}
    dynamic = [by_name[name] for name, scaler in RULES.items() if isinstance(scaler, DynamicLossScale)]
    nan = sum(run.outcome == "NaN" for run in dynamic)
    fallen = [run for run in dynamic if run.stopped and run.loss_scales[-1] < _FP32.smallest_normal]
    evidence = {
        "nan": nan,
        "rules": len(dynamic),
        "doublings": runs.ramp().config.accidents[0].steps,
        "fallen": len(fallen),
        "skipped": max((int(run.skipped.sum()) for run in fallen), default=0),
    }
    alone = "without loss scaling one gets in" if by_name["none"].outcome == "NaN" else "nor without loss scaling"
    control = "fp32 survives the ramp" if by_name["float32"].outcome == "trains" else "the ramp ruins fp32 too"
    words = (
        f"When the learning rate doubles {{doublings}} times, {{nan}} of {{rules}} dynamic scalers let a NaN into the "
        f"weights while they adapt ({alone}): a step with an infinity is skipped at whatever scale. {{fallen}} "
        f"({_and([run.name for run in fallen])}) would after {{skipped}} skipped steps, when S is so small that "
        f"dividing by it overflows; but {control}."
    )
    return (holds if nan else fails)(words, **evidence)


@_claim(
    "bf16-needs-no-scaling",
    text="bf16 needs no loss scaling.",
    source=f"{CHAPTER}, “Numerical formats”; {ARTICLE}, “Why bf16 won”; {LESSON}, step 5",
)
def _bf16_unscaled(arithmetic: Arithmetic) -> Verdict:
    result = runs.small_losses("bf16")
    (exponent,) = result.static
    fp32, bf16 = result.float32[exponent].final_loss, result.static[exponent][exponent].final_loss
    evidence = {
        "plain": runs.ratio("autocast_bf16"),
        "scaled": runs.ratio("autocast_bf16,loss_scale=2^16"),
        "typical": _TYPICAL,
        "factor": 2.0**exponent,
        "small": bf16 / fp32,
    }
    words = (
        "The digits end at {plain:.2f} times fp32's loss without it and {scaled:.2f} times with S = {typical:power}. "
        "Also when the loss is multiplied by {factor:power}, bf16 ends at {small:.2f} times fp32's."
    )
    good = max(evidence["plain"], evidence["small"]) <= 1 + runs.KEEPS
    return (holds if good else fails)(words, **evidence)
