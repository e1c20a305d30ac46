"""What the storage experiment trains: groups of runs that differ in one thing only, the control first.

Miniatures of what people do (`MINIATURES`), and smaller questions asked of the digits, of least squares and of a
transformer (`SECTIONS`, `AXES`). The seeds are added when they are run: run number k has the seed of its configuration
plus k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from precision_lab.training.config import TrainingConfig
from precision_lab.training.schedule import Schedule
from precision_lab.training.storage import StorageConfig

Group: TypeAlias = dict[str, TrainingConfig]
"""Trainings by label, the control first."""

ANOTHER_SEED = 1000
"""What is added to a seed where the noise floor takes another."""

SECOND_IN_BF16 = "master_bf16,second_moment=bf16"

_DIGITS = TrainingConfig(optimizer="adam", learning_rate=1e-3)


def stored(base: TrainingConfig, texts: Mapping[str, str]) -> Group:
    """Return a training for each label, stored as a text says."""
    return {label: replace(base, storage=StorageConfig.parse(text)) for label, text in texts.items()}


def named(base: TrainingConfig, *texts: str) -> Group:
    """Return a training for each text, which is its label."""
    return stored(base, {text: text for text in texts})


# --- miniatures ---


def fine_tuning() -> Group:
    """Fine-tune a real matrix: the queries of MiniLM's first layer, with Adam, warm-up and linear decay."""
    base = TrainingConfig(
        model="fine_tuning",
        optimizer="adam",
        learning_rate=3e-5,
        schedule=Schedule("linear", warmup=30),
        steps=300,
        batch_size=64,
        against_fp32=True,
    )
    alone = ("pure_bf16", "bf16_fp32_moments")
    cured = ("bf16_stochastic", "bf16_stochastic_fp32_v", "bf16_kahan", "bf16_kahan_fp32_v", "collage_plus")
    return named(base, "fp32", "master_bf16", *alone, *cured)


def characters() -> Group:
    """Train a character transformer with tied embeddings: AdamW, decay of the weights, warm-up and cosine.

    Only what the weights are stored in differs.
    """
    base = TrainingConfig(
        model="transformer",
        tied=True,
        activation="relu",
        hidden=(64,),
        optimizer="adamw",
        learning_rate=1e-3,
        beta2=0.95,
        weight_decay=0.1,
        schedule=Schedule("cosine", warmup=100),
        steps=1000,
        batch_size=12,
    )
    alone = "weights=bf16,activations=fp32,gradients=fp32,moments=fp32"
    return stored(
        base, {"fp32": "fp32", "bf16 weights": alone, "bf16 weights, stochastic": f"{alone},update=stochastic"}
    )


MINIATURES: dict[str, tuple[Callable[[], Group], int]] = {
    "fine-tuning": (fine_tuning, 5),
    "characters": (characters, 3),
}
"""What is made of each, and how many seeds at first."""


# --- sections ---


def ablation(steps: int) -> Group:
    """Least squares with SGD, and noise on its targets: where does bf16 hurt? (Zamirai et al. 2020)."""
    base = TrainingConfig(
        model="least_squares", optimizer="sgd", learning_rate=0.01, steps=max(steps // 2, 1), batch_size=1
    )
    return stored(
        base,
        {
            "nothing rounded": "fp32",
            "forward and backward": "weights=bf16,gradients=fp32,master=fp32,transient_weights=yes",
            "weight update": "weights=bf16,activations=fp32,gradients=fp32,moments=fp32",
            "both": "pure_bf16",
            "both, stochastic": "bf16_stochastic",
            "both, Kahan": "bf16_kahan",
        },
    )


def range_or_precision(steps: int) -> Group:
    """The digits in 16 bits, spent on range or on precision; no loss scaling."""
    base = replace(_DIGITS, steps=max(steps // 2, 1), epsilon=1e-6)
    formats = ("e5m10", "e6m9", "e7m8", "e8m7")
    alone = {f: f"weights={f},loss_scale=none" for f in formats}
    masters = {f"{f}, fp32 master": f"weights={f},master=fp32,loss_scale=none" for f in formats}
    return stored(base, {"fp32": "fp32"} | alone | masters)


def sensitive(steps: int) -> Group:
    """The transformer with softmax, layer norm and loss in 16 bits."""
    base = TrainingConfig(
        model="transformer",
        hidden=(32,),
        activation="gelu",
        optimizer="adamw",
        learning_rate=2e-3,  # with half of it fp32 does not come below half of its first loss in these steps
        steps=max(steps // 4, 1),
        batch_size=16,
    )
    texts = {"all in bf16": "master_bf16,sensitive=bf16", "all in fp16": "master_fp16,sensitive=fp16"}
    return stored(base, {"fp32": "fp32"} | texts)


def accumulation(steps: int) -> Group:
    """The digits with the gradients of 1 and 64 micro-batches added up in bf16 and in fp32."""
    base = replace(_DIGITS, steps=max(steps // 4, 1), batch_size=64)
    return named(base, "fp32") | {
        f"{parts} in {fmt}": replace(base, storage=StorageConfig.parse(name), micro_batches=parts)
        for parts in (1, 64)
        for fmt, name in (("fp32", "megatron_bf16"), ("bf16", "master_bf16"))
    }


def noise_floor(steps: int) -> Group:
    """What a ratio means: fp32 with the rows of each batch in another order, and with another seed."""
    base = replace(_DIGITS, steps=max(steps // 2, 1))
    return {
        "fp32": base,
        "rows in another order": replace(base, permuted=True),
        "another seed": replace(base, seed=ANOTHER_SEED),
    }


def horizon(steps: int) -> Group:
    """A run twice as long, looked at on its way: how a ratio depends on the steps."""
    marks = tuple(sorted({max(1, steps * part // 8) for part in (1, 2, 4, 8, 16)}))
    base = replace(_DIGITS, steps=2 * steps, loss_steps=marks)
    return named(base, "fp32", "autocast_bf16", "pure_bf16", SECOND_IN_BF16)


SECTIONS: dict[str, tuple[Callable[[int], Group], int]] = {
    "ablation": (ablation, 5),
    "range": (range_or_precision, 5),
    "sensitive": (sensitive, 3),
    "accumulation": (accumulation, 5),
    "noise": (noise_floor, 5),
    "horizon": (horizon, 5),
}
"""The smaller questions: what makes each of a number of steps, and how many seeds at first."""


# --- axes ---


def of_beta2(beta2: float, steps: int) -> Group:
    """Where the second moment stands still, by beta2."""
    base = replace(_DIGITS, beta2=beta2, steps=steps)
    return named(base, "fp32", SECOND_IN_BF16, "bf16_stochastic", "pure_bf16")


def of_setting(steps: int, **changes: object) -> Group:
    """Whether what was found depends on learning rate, width or batch."""
    base = replace(_DIGITS, steps=steps, **changes)  # type: ignore[arg-type]
    return named(base, "fp32", "autocast_bf16", SECOND_IN_BF16, "pure_bf16", "bf16_stochastic_fp32_v")


AXES: dict[str, dict[str, Callable[[int], Group]]] = {
    "beta2": {f"{beta2:g}": partial(of_beta2, beta2) for beta2 in (0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)},
    "setting": {
        "as it is": of_setting,
        "lr 1e-4": partial(of_setting, learning_rate=1e-4),
        "lr 1e-2": partial(of_setting, learning_rate=1e-2),
        "width 16": partial(of_setting, hidden=(16,)),
        "width 128": partial(of_setting, hidden=(128,)),
        "batch 8": partial(of_setting, batch_size=8),
        "batch 128": partial(of_setting, batch_size=128),
        "lr 1e-2, beta2 .95": partial(of_setting, learning_rate=1e-2, beta2=0.95),
    },
}
"""Per axis its values, and what makes the group of each of a number of steps."""
