"""A result of the storage experiment without its trainings: the groups are the real ones, the numbers are made up.

What is known beforehand: plain rounding into 16 bits loses and stands still (fp16: breaks), a second moment in bf16
loses unless beta2 is small, `fp8_hybrid` is not decided, what is made of it at lr 1e-2 and beta2 .95 ends lower, and
everything else keeps.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.experiments.outcomes import BLOCKS, ConfigurationSummary, Run, beside_control
from precision_lab.experiments.questions import ANOTHER_SEED
from precision_lab.experiments.storage import StorageExperimentConfig, StorageResult
from precision_lab.training.config import TrainingConfig
from precision_lab.training.result import UpdateStatistics
from precision_lab.training.storage import CONFIGURATIONS
from precision_lab.training.update_rules import UPDATE_RULES


def made_up(config: StorageExperimentConfig | None = None) -> StorageResult:
    """Return a result of a configuration."""
    found: dict[tuple[str, ...], tuple[ConfigurationSummary, ...]] = {}
    for place, (group, seeds) in (config or StorageExperimentConfig()).groups().items():
        found[place] = group_of(
            {label: [run_of(replace(one, seed=one.seed + k)) for k in range(seeds)] for label, one in group.items()}
        )

    def of(*kind: str) -> dict[str, tuple[ConfigurationSummary, ...]]:
        return {place[-1]: group for place, group in found.items() if place[:-1] == kind}

    config = config or StorageExperimentConfig()
    axes = {name: of("axes", name) for name in config.axes}
    return StorageResult(config, of("miniatures"), of("outcomes"), of("sections"), axes)


def group_of(runs: Mapping[str, Iterable[Run]]) -> tuple[ConfigurationSummary, ...]:
    """Return what is said of some runs, the control's first."""
    return beside_control(ConfigurationSummary(label, tuple(found)) for label, found in runs.items())


def judged(**ratios: tuple[float, ...]) -> tuple[ConfigurationSummary, ...]:
    """Return trainings of the digits with Adam that end at these times the loss of their control, a ratio a seed."""
    base = TrainingConfig(optimizer="adam", learning_rate=1e-3, steps=2000)
    seeds = range(max(map(len, ratios.values())))
    runs = {"fp32": [made(replace(base, seed=k), 2.5, [0.05, 0.05]) for k in seeds]}
    for label, found in ratios.items():
        stored = replace(base, storage=CONFIGURATIONS[label])
        runs[label] = [made(replace(stored, seed=k), 2.5, [0.05, 0.05 * r], lost=0.5) for k, r in enumerate(found)]
    return group_of(runs)


LOSES, KEEPS, LOWER = (3.0, 3.1, 2.9), (1.0, 1.001, 0.999), (0.5, 0.51, 0.49)
UNDECIDED, BREAKS = (1.0, 1.05, 1.1), (1.0, math.nan, 1.0)
"""Ratios of three seeds for each finding."""


def run_of(config: TrainingConfig) -> Run:
    """Return a run as it is said above."""
    ratio, lost, edq, second = _known(config)
    rng = np.random.default_rng((config.seed, zlib.crc32(str(config.storage).encode())))
    ratio *= 1 + rng.uniform(-0.001, 0.001)
    control = 0.05 * (1 + 0.1 * math.sin(config.seed)) * 1000 / config.steps
    first = 1.0 if config.model == "fine_tuning" else 2.5
    return made(config, first, [control, ratio * control], lost=lost, edq=edq, second=second)


def _known(config: TrainingConfig) -> tuple[float, float, float, float]:
    """Return the ratio, the share of lost updates and both qualities."""
    storage = config.storage
    if storage.updated.bits < 32 and UPDATE_RULES[storage.update].plain:
        if storage.updated.name == "fp16":
            return math.nan, 0.9, 0.1, math.nan
        if config.learning_rate == 1e-2 and config.beta2 == 0.95:
            return 0.4, 0.49, 0.98, 0.97
        return 3.0, 0.86, 0.55, 0.4
    if storage == CONFIGURATIONS["fp8_hybrid"]:
        return 1 + 0.1 * math.sin(config.seed), 0.01, 1.0, 0.99
    v = storage.second_moment.bits < 32 and not UPDATE_RULES[storage.update].words_of("second_moment")
    if v and config.optimizer != "sgd" and config.beta2 > 0.98:
        return 1.37, 0.8, 1.0, 0.8
    if config.seed >= ANOTHER_SEED:
        return 1 + 0.1 * math.cos(config.seed), 0.01, 1.0, 1.0
    return 1.0, 0.01, 1.0, 1.0


def made(
    config: TrainingConfig,
    first: float,
    ends: list[float],
    *,
    lost: float = 0.0,
    edq: float = 1.0,
    second: float = math.nan,
) -> Run:
    """Return a run that falls like a hyperbola to the first of the ends, and stands still at the second."""
    control, last = ends
    block = config.measure_every * max(1, math.ceil(config.steps / BLOCKS / config.measure_every))
    x = np.minimum(1, np.arange(block, config.steps + block, block) / config.steps)
    falling = first / (1 + (first / control - 1) * x)
    curve = np.maximum(falling, last) if math.isfinite(last) else np.where(x > 0.5, np.nan, falling)
    updates = UpdateStatistics(
        count=1000,
        nonzero=1000,
        lost=round(1000 * lost),
        unchanged=round(1000 * lost),
        intended=1.0,
        effective=1.0,
        product=edq,
        ratios=ExponentHistogram.empty(),
        intended_fp32=1.0,
        product_fp32=second,
    )
    fading = 1 - (1 - edq) * np.minimum(1, 2 * x)
    on_the_way = {step: first / (1 + (first / control - 1) * step / config.steps) for step in config.loss_steps}
    marks = {step: max(loss, last) for step, loss in on_the_way.items()}
    return Run(
        config=config,
        steps=config.steps,
        initial_loss=first,
        final_loss=last,
        test_loss=1.2 * last,
        test_accuracy=0.97,
        losses_after=marks,
        updates=updates,
        bytes_per_parameter=_bytes(config),
        seconds=0.0,
        stopped="",
        diverged=not math.isfinite(last),
        skipped=0,
        block=block,
        losses=tuple(map(float, curve)),
        edq_ratios=tuple(map(float, fading)),
        edq_ratios_fp32=tuple(float(second / edq * one) for one in fading),
    )


def _bytes(config: TrainingConfig) -> float:
    storage, two = config.storage, len(config.build_optimizer().moments)
    bits = storage.updated.bits + storage.gradients.bits + (storage.first_moment.bits if two else 0)
    bits += storage.second_moment.bits if two == 2 else 0
    bits += 16 * len(UPDATE_RULES[storage.update].words)
    return bits / 8 + (2 if storage.master is not None and not storage.transient_weights else 0)
