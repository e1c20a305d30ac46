"""Why keep the parameters in float32, why not in 16 bits? The same training, stored in fifteen ways.

The same model, data, seed and optimizer; only *where* values are rounded differs. Every run has its float32 control of
the same seed beside it, so that a difference is never mistaken for noise.

What to look for
----------------
*It is the update that is lost.* With SGD at a learning rate of .01 nearly every update is smaller than half a spacing
of a bf16 weight: R(w + u) is w, and `pure_bf16` stands still well above float32. Keeping the moments in float32 as well
does not help, a float32 master copy does, and so does anything that keeps what the rounding lost: Kahan's compensation,
Collage's second word, stochastic rounding on average. Least squares says it once more (the ablation of Zamirai et al.
2020): rounding the weight update costs a hundred times what rounding forward and backward costs, and compensation or
stochastic rounding take most of it back.

*Adam's second moment.* In bf16 R(.999*v) = v, whatever v is: the second moment never decays. Once gradients shrink,
steps become too small, and the repaired weight update alone is not enough; `collage_plus` keeps the second moment in
two words too.

*Range against precision.* Sixteen bits can be spent in other ways than fp16 (e5m10) and bf16 (e8m7).

*What did not hurt.* fp16 without loss scaling, with a float32 master copy, learns the digits as well as float32. So do
gradients of 64 micro-batches added up in bf16, and the transformer's softmax, layer norm and loss in 16 bits, at this
size and length. And a high imprecision does not imply a low descent quality: with stochastic rounding nine in ten
updates leave their weight alone, and the step is made all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.hyperparameters import frozen_share, stored_value
from precision_lab.training.optimizers import title
from precision_lab.training.result import StepUpdates, TrainingResult, UpdateStatistics
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig, configuration_names
from precision_lab.training.sweep import sweep
from precision_lab.training.update_rules import UPDATE_RULES

TOLERANCE = 0.03
"""A configuration keeps float32's result if its mean final loss is within this share of float32's, or its spread."""

LEARNED = 0.5
"""Nothing is judged where a control ends at this share of its first loss or more: nobody has learned anything yet."""


@dataclass(frozen=True)
class Setting:
    """An optimizer and its learning rate."""

    optimizer: str
    learning_rate: float

    def __str__(self) -> str:
        """Return a name for tables."""
        return f"{title(self.optimizer)}, lr {self.learning_rate:g}"


@dataclass(frozen=True)
class StorageExperimentConfig(PlainData):
    """What to train.

    Attributes
    ----------
    model, dataset : str
        As in `TrainingConfig`.
    configurations : tuple of str
        Names of `CONFIGURATIONS` or texts; ``all`` stands for all names. The control, ``fp32``, is put first.
    settings : tuple of Setting
        Optimizers and learning rates.
    seeds : int
        Runs of each, with the seeds 0, 1, ...
    steps, batch_size, hidden
        As in `TrainingConfig`.
    sections : tuple of str
        Which of the smaller questions to ask as well: ``ablation``, ``range``, ``sensitive``, ``accumulation``.
    section_steps : int
        Steps of their runs; a quarter for the micro-batches, two fifths for the transformer.

    """

    model: str = "mlp"
    dataset: str = ""
    configurations: tuple[str, ...] = ("all",)
    settings: tuple[Setting, ...] = (Setting("sgd", 0.01), Setting("adam", 1e-4), Setting("adam", 1e-3))
    seeds: int = 3
    steps: int = 8000
    batch_size: int = 64
    hidden: tuple[int, ...] = (64,)
    sections: tuple[str, ...] = ("ablation", "range", "sensitive", "accumulation")
    section_steps: int = 2000

    def __post_init__(self) -> None:
        check_integer("seeds", self.seeds, 1)
        if not self.configurations or not self.settings:
            raise ValueError("configurations and settings must have at least one member")
        if unknown := [name for name in self.sections if name not in SECTIONS]:
            raise ValueError(f"sections must be among {', '.join(SECTIONS)}; got {unknown[0]!r}")
        check_integer("section_steps", self.section_steps, 10)
        object.__setattr__(self, "configurations", configuration_names(("fp32", *self.configurations)))
        for setting in self.settings:
            for name in self.configurations:
                self.training(setting, name, 0)

    @classmethod
    def quick(cls) -> Self:
        """Return a smaller configuration: fewer ways of storing, two seeds, no transformer, which learns too slowly."""
        return cls(
            configurations=(
                *("master_bf16", "master_fp16", "pure_bf16", "pure_fp16"),
                *("bf16_stochastic", "bf16_kahan", "collage_light", "collage_plus"),
            ),
            seeds=2,
            steps=1000,
            sections=("ablation", "range", "accumulation"),
            section_steps=500,
        )

    def training(self, setting: Setting, storage: str, seed: int) -> TrainingConfig:
        """Return the configuration of one run; raises its ValueErrors."""
        return TrainingConfig(
            model=self.model,
            dataset=self.dataset,
            hidden=self.hidden,
            activation="gelu" if self.model == "transformer" else "relu",
            storage=StorageConfig.parse(storage),
            optimizer=setting.optimizer,
            learning_rate=setting.learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=seed,
        )


def _ablation(config: StorageExperimentConfig) -> dict[str, TrainingConfig]:
    """Least squares with SGD: where does bf16 hurt? (Zamirai et al. 2020)."""
    base = TrainingConfig(
        model="least_squares", optimizer="sgd", learning_rate=0.01, steps=config.section_steps, batch_size=1
    )
    return _stored(
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


def _range(config: StorageExperimentConfig) -> dict[str, TrainingConfig]:
    """The digits in 16 bits, spent on range or on precision; no loss scaling."""
    base = TrainingConfig(
        hidden=config.hidden, optimizer="adam", learning_rate=1e-3, steps=config.section_steps, epsilon=1e-6
    )
    formats = {"fp32": "fp32"} | {f: f"weights={f},loss_scale=none" for f in ("e5m10", "e6m9", "e7m8", "e8m7")}
    masters = {
        f"{f}, fp32 master": f"weights={f},master=fp32,loss_scale=none" for f in ("e5m10", "e6m9", "e7m8", "e8m7")
    }
    return _stored(base, formats | masters)


def _sensitive(config: StorageExperimentConfig) -> dict[str, TrainingConfig]:
    """The transformer with softmax, layer norm and loss in 16 bits."""
    base = TrainingConfig(
        model="transformer",
        hidden=(32,),
        activation="gelu",
        optimizer="adamw",
        learning_rate=1e-3,
        steps=config.section_steps * 2 // 5,  # a tenth of it is too short: fp32 ends above half of its first loss
        batch_size=16,
    )
    return _stored(
        base,
        {
            "fp32": "fp32",
            "master_bf16": "master_bf16",
            "all in bf16": "master_bf16,sensitive=bf16",
            "master_fp16": "master_fp16",
            "all in fp16": "master_fp16,sensitive=fp16",
        },
    )


def _accumulation(config: StorageExperimentConfig) -> dict[str, TrainingConfig]:
    """The digits with the gradients of 1, 8 and 64 micro-batches added up in bf16 and in fp32."""
    base = TrainingConfig(
        hidden=config.hidden,
        optimizer="adam",
        learning_rate=1e-3,
        steps=max(config.section_steps // 4, 1),
        batch_size=64,
    )
    control = {"fp32": replace(base, storage=CONFIGURATIONS["fp32"])}
    return control | {
        f"{parts} in {fmt}": replace(base, storage=CONFIGURATIONS[name], micro_batches=parts)
        for parts in (1, 8, 64)
        for fmt, name in (("fp32", "megatron_bf16"), ("bf16", "master_bf16"))
    }


def _stored(base: TrainingConfig, texts: Mapping[str, str]) -> dict[str, TrainingConfig]:
    return {label: replace(base, storage=StorageConfig.parse(text)) for label, text in texts.items()}


SECTIONS: dict[str, Callable[[StorageExperimentConfig], dict[str, TrainingConfig]]] = {
    "ablation": _ablation,
    "range": _range,
    "sensitive": _sensitive,
    "accumulation": _accumulation,
}
"""The smaller questions: per name what is trained, by label; the first is the control."""


BLOCKS = 80
"""Of a run's steps the losses, and what became of the updates, are kept as means over about so many blocks."""


@dataclass(frozen=True, eq=False)
class Run:
    """Summary of a training run: a `TrainingResult` without its per-step series.

    Attributes
    ----------
    config, initial_loss, final_loss, test_accuracy, updates, bytes_per_parameter, seconds, stopped, diverged
        As in `TrainingResult`.
    steps : int
        Steps that were made: fewer than asked where the loss scale ended the run.
    skipped : int
        How many steps were skipped.
    block : int
        Steps of a block.
    losses : tuple of float
        Mean batch loss of each block.
    edq_ratios : tuple of float
        Effective descent quality <d, u> / ||u||^2 pooled over the measured steps of each block; NaN where there were
        no updates.

    """

    config: TrainingConfig
    steps: int
    initial_loss: float
    final_loss: float
    test_accuracy: float | None
    updates: UpdateStatistics
    bytes_per_parameter: float
    seconds: float
    stopped: str
    diverged: bool
    skipped: int
    block: int
    losses: tuple[float, ...]
    edq_ratios: tuple[float, ...]

    @classmethod
    def of(cls, result: TrainingResult) -> Self:
        """Return what is kept of a result."""
        steps, measured = result.losses.size, result.config.measure_every
        block = measured * max(1, math.ceil(steps / BLOCKS / measured))
        starts = range(0, steps, block)
        with np.errstate(all="ignore"):
            losses = [float(result.losses[start : start + block].mean()) for start in starts]
        return cls(
            result.config,
            steps,
            result.initial_loss,
            result.final_loss,
            result.test_accuracy,
            result.updates,
            result.bytes_per_parameter,
            result.seconds,
            result.stopped,
            result.diverged,
            int(result.skipped.sum()),
            block,
            tuple(losses),
            tuple(_edq_ratio([s for s in result.by_step if start <= s.step < start + block]) for start in starts),
        )

    @property
    def middles(self) -> list[float]:
        """The middle of each block, as a step."""
        return [(start + min(start + self.block, self.steps)) / 2 for start in range(0, self.steps, self.block)]


def _edq_ratio(steps: list[StepUpdates]) -> float:
    intended = sum(step.intended for step in steps)
    return sum(step.product for step in steps) / intended if intended else math.nan


@dataclass(frozen=True, eq=False)
class ConfigurationSummary:
    """A configuration under one setting, over all seeds.

    Attributes
    ----------
    label : str
        Its name.
    runs, controls : tuple of Run
        One a seed; those of the control with the same seeds, which `StorageResult` adds.

    """

    layout: ClassVar = Layout(
        derived=(
            *("storage", "sentence", "keeps", "bytes_per_parameter", "final_loss", "spread", "ratio", "accuracy"),
            *("lost", "imprecision", "edq_ratio", "skipped"),
        ),
        omitted=("controls",),
        names={"lost": "lost_of_nonzero"},
    )

    label: str
    runs: tuple[Run, ...]
    controls: tuple[Run, ...] = ()

    @property
    def storage(self) -> str:
        """The text of the configuration."""
        return str(self.runs[0].config.storage)

    @property
    def final_loss(self) -> float:
        """Mean over the seeds."""
        return _mean(run.final_loss for run in self.runs)

    @property
    def spread(self) -> float:
        """Largest less smallest final loss."""
        losses = [run.final_loss for run in self.runs]
        return max(losses) - min(losses) if all(map(math.isfinite, losses)) else math.nan

    @property
    def accuracy(self) -> float | None:
        """Mean over the seeds; None where there is no such thing."""
        accuracies = [run.test_accuracy for run in self.runs if run.test_accuracy is not None]
        return _mean(accuracies) if accuracies else None

    @property
    def lost(self) -> float:
        """Mean share of the nonzero updates that were lost."""
        return _mean(run.updates.lost_of_nonzero for run in self.runs)

    @property
    def imprecision(self) -> float:
        """Mean share of all elements that did not change in a step."""
        return _mean(run.updates.imprecision for run in self.runs)

    @property
    def edq_ratio(self) -> float:
        """Mean ratio of the effective descent quality."""
        return _mean(run.updates.edq_ratio for run in self.runs)

    @property
    def skipped(self) -> float:
        """Mean number of skipped steps."""
        return _mean(float(run.skipped) for run in self.runs)

    @property
    def bytes_per_parameter(self) -> float:
        """Measured."""
        return self.runs[0].bytes_per_parameter

    @property
    def ratio(self) -> float:
        """Mean final loss over that of the controls; NaN where theirs is 0 (of a text of one symbol, say)."""
        control_loss = _mean(run.final_loss for run in self.controls)
        return self.final_loss / control_loss if control_loss else math.nan

    @property
    def broken(self) -> str:
        """What a run has come to that has no final loss to compare; empty where all have one."""
        if any(run.stopped for run in self.runs):
            return f"stops: {next(run.stopped for run in self.runs if run.stopped)}"
        if not math.isfinite(self.final_loss):
            return "breaks: the parameters become infinite or NaN"
        return "diverges" if any(run.diverged for run in self.runs) else ""

    @property
    def undecided(self) -> str:
        """Why final losses are not compared, and what it would take; empty where they can be."""
        least = max(self.controls, key=_left)
        first, last = least.initial_loss, least.final_loss
        if not last < first:
            return f"not decided: fp32 does not learn, {first:.3g} becomes {last:.3g} (try another --lr)"
        if not last < LEARNED * first:
            return f"too short to tell: fp32 came from {first:.3g} to {last:.3g} only (give more --steps)"
        if len(self.runs) == 1:
            return f"not decided with 1 seed, {times(self.ratio)} fp32's loss (give --seeds 3)"
        return ""

    @property
    def keeps(self) -> bool | None:
        """Whether the final loss is within `TOLERANCE`, or the controls' own spread, of theirs, or below.

        None where that is not decided, see `undecided`; a run that is broken keeps nothing in any case.
        """
        if self.broken or self.undecided:
            return False if self.broken else None
        control = ConfigurationSummary("", self.controls, self.controls)
        return self.final_loss <= control.final_loss + max(TOLERANCE * control.final_loss, control.spread)

    @property
    def sentence(self) -> str:
        """What came out, in plain words, and why as far as the numbers say it."""
        if self.broken:
            return self.broken + self._why()
        if self.undecided:
            return self.undecided
        if self.keeps:
            return "keeps fp32's result"
        return f"ends at {times(self.ratio)} fp32's loss{self._why()}"

    def _why(self) -> str:
        """Return the reasons that can be computed from the configuration and its measurements."""
        config = self.runs[0].config
        rule = UPDATE_RULES[config.storage.update]
        reasons = []
        if self.lost > 0.2 and rule.plain:
            reasons.append(f"{self.lost:.0%} of the updates are lost")
        if "second_moment" in config.build_optimizer().moments:
            second = config.storage.second_moment
            frozen = 0.0 if rule.words_of("second_moment") else frozen_share(second, config.beta2)
            if frozen:
                reasons.append(f"R({config.beta2:g}*v) = v for {100 * frozen:.3g}% of all v in {second}")
            if stored_value(Fraction(config.epsilon), second) == 0:
                reasons.append(f"epsilon = {config.epsilon:g} is 0 in {second}")
        if self.skipped > 0.1 * config.steps:
            reasons.append(f"{self.skipped:,.0f} of {config.steps:,} steps are skipped")
        return f"; why: {'; '.join(reasons)}" if reasons else ""


def times(ratio: float) -> str:
    """Write how many times something is.

    >>> times(6.94), times(423.4)
    ('6.9 times', '423 times')
    """
    return f"{ratio:.2g} times" if ratio < 100 else f"{ratio:,.0f} times"


def _left(run: Run) -> float:
    """Return the share of a run's first loss that it ends with, infinite where there is no such thing."""
    share = run.final_loss / run.initial_loss if run.initial_loss else math.inf
    return math.inf if math.isnan(share) else share


def _mean(values: Iterator[float] | list[float]) -> float:
    return float(np.mean(list(values)))


@dataclass(frozen=True, eq=False)
class StorageResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : StorageExperimentConfig
        What was asked.
    outcomes : dict of str to tuple of ConfigurationSummary
        Per setting one for each configuration.
    sections : dict of str to tuple of ConfigurationSummary
        Per smaller question one for each of its configurations.

    """

    layout: ClassVar = Layout("experiment storage")

    config: StorageExperimentConfig
    outcomes: dict[str, tuple[ConfigurationSummary, ...]]
    sections: dict[str, tuple[ConfigurationSummary, ...]]

    def __post_init__(self) -> None:
        for groups in (self.outcomes, self.sections):  # the first of each is the control of all
            if not all(groups.values()):
                raise ValueError("a setting or section has at least one configuration")
            controlled = {
                name: tuple(replace(o, controls=group[0].runs) for o in group) for name, group in groups.items()
            }
            object.__setattr__(self, "outcomes" if groups is self.outcomes else "sections", controlled)

    @property
    def answer(self) -> str:
        """What came out, in a line: can parameters be stored in bf16?"""
        sentences = []
        for name, outcomes in self.outcomes.items():
            narrow = next((o for o in outcomes if o.label == "pure_bf16"), outcomes[-1])
            if outcomes[0].undecided:
                sentences.append(f"{name}: {outcomes[0].undecided}")
                continue
            keep = [o for o in outcomes if o.keeps and o is not outcomes[0]]
            cheapest = min(keep, key=lambda o: o.bytes_per_parameter, default=outcomes[0])
            ends = f"{times(narrow.ratio)} float32's loss" if math.isfinite(narrow.ratio) else "inf or NaN"
            sentences.append(
                f"{name}: {narrow.label} ({narrow.bytes_per_parameter:g} bytes a parameter) ends at {ends}, "
                f"{narrow.lost:.0%} of its updates lost; the cheapest that keeps it is {cheapest.label} "
                f"({cheapest.bytes_per_parameter:g} bytes)"
            )
        return ". ".join(sentences)


def run(
    config: StorageExperimentConfig | None = None,
    *,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StorageResult:
    """Train everything.

    Parameters
    ----------
    config : StorageExperimentConfig, optional
        Default: the runs of the documentation.
    executor, checkpoint, progress
        As for `sweep`.

    Raises
    ------
    ValueError
        The configuration is none that can be run; as `sweep`.

    """
    config = config or StorageExperimentConfig()
    seeds = range(config.seeds)
    labelled = {
        str(setting): {name: config.training(setting, name, 0) for name in config.configurations}
        for setting in config.settings
    }
    sectioned = {name: SECTIONS[name](config) for name in config.sections}
    every = [
        replace(training, seed=seed)
        for group in (labelled, sectioned)
        for trainings in group.values()
        for training in trainings.values()
        for seed in seeds
    ]
    by_config = dict(zip(every, sweep(every, executor=executor, checkpoint=checkpoint, progress=progress), strict=True))

    def outcomes(trainings: dict[str, TrainingConfig]) -> tuple[ConfigurationSummary, ...]:
        results = {
            label: tuple(Run.of(by_config[replace(t, seed=seed)]) for seed in seeds) for label, t in trainings.items()
        }
        return tuple(ConfigurationSummary(label, runs) for label, runs in results.items())

    return StorageResult(
        config,
        {name: outcomes(trainings) for name, trainings in labelled.items()},
        {name: outcomes(trainings) for name, trainings in sectioned.items()},
    )
