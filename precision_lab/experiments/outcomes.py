"""Trainings beside their control: what is kept of a run, and what a way of storing comes to over all seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from precision_lab.experiments.paired import LEARNED, SEEDS, Finding, PairedRatio
from precision_lab.support.plain import Layout
from precision_lab.training.config import TrainingConfig
from precision_lab.training.hyperparameters import frozen_share, stored_value
from precision_lab.training.result import TrainingResult, UpdateStatistics
from precision_lab.training.update_rules import UPDATE_RULES

BLOCKS = 80
"""Of a run's steps the losses, and what became of the updates, are kept as means over about so many blocks."""

SETTLED, REMAINDER = 1.1, 0.01
"""A run has settled within this factor of its level and this share of the way it came, whichever is closer."""

LOSES_MANY = 0.2
"""Lost updates are named as a reason from this share on."""


@dataclass(frozen=True, eq=False)
class Run:
    """Summary of a training run: a `TrainingResult` without its per-step series.

    Attributes
    ----------
    config, initial_loss, final_loss, test_loss, test_accuracy, losses_after, updates, bytes_per_parameter, seconds
        As in `TrainingResult`.
    stopped, diverged
        Likewise.
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
    edq_ratios_fp32 : tuple of float
        Likewise against the step of the fp32 optimizer; NaN where it was not measured.

    """

    config: TrainingConfig
    steps: int
    initial_loss: float
    final_loss: float
    test_loss: float
    test_accuracy: float | None
    losses_after: dict[int, float]
    updates: UpdateStatistics
    bytes_per_parameter: float
    seconds: float
    stopped: str
    diverged: bool
    skipped: int
    block: int
    losses: tuple[float, ...]
    edq_ratios: tuple[float, ...]
    edq_ratios_fp32: tuple[float, ...]

    @classmethod
    def of(cls, result: TrainingResult) -> Self:
        """Return what is kept of a result."""
        steps, measured = result.losses.size, result.config.measure_every
        block = measured * max(1, math.ceil(steps / BLOCKS / measured))
        starts = range(0, steps, block)
        measured_in = [[s for s in result.by_step if start <= s.step < start + block] for start in starts]
        with np.errstate(all="ignore"):
            losses = [float(result.losses[start : start + block].mean()) for start in starts]
        return cls(
            result.config,
            steps,
            result.initial_loss,
            result.final_loss,
            result.test_loss,
            result.test_accuracy,
            result.losses_after,
            result.updates,
            result.bytes_per_parameter,
            result.seconds,
            result.stopped,
            result.diverged,
            int(result.skipped.sum()),
            block,
            tuple(losses),
            tuple(_pooled((s.product, s.intended) for s in some) for some in measured_in),
            tuple(_pooled((s.product_fp32, s.intended_fp32) for s in some) for some in measured_in),
        )

    @property
    def middles(self) -> list[float]:
        """The middle of each block, as a step."""
        return [(start + min(start + self.block, self.steps)) / 2 for start in range(0, self.steps, self.block)]


def _pooled(pairs: Iterable[tuple[float, float]]) -> float:
    """Return a sum of products over the sum of what was intended; NaN where nothing was."""
    found = list(pairs)
    intended = math.fsum(pair[1] for pair in found)
    return math.fsum(pair[0] for pair in found) / intended if intended else math.nan


@dataclass(frozen=True)
class Settled:
    """Where a training has come to its level.

    Attributes
    ----------
    step : int
        From this step on the loss stays near the level, see `SETTLED`.
    loss : float
        The level: the mean batch loss of the last tenth of the blocks.

    """

    step: int
    loss: float


@dataclass(frozen=True, eq=False)
class ConfigurationSummary:
    """A way of storing under one setting, over all seeds.

    Attributes
    ----------
    label : str
        Its name.
    runs, controls : tuple of Run
        One a seed; those of the control with the same seeds, which `beside_control` adds.

    """

    layout: ClassVar = Layout(
        derived=(
            *("storage", "sentence", "finding", "paired", "paired_test", "paired_after", "bytes_per_parameter"),
            *("final_loss", "accuracy", "lost", "imprecision", "edq_ratio", "edq_ratio_fp32", "skipped", "settled"),
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

    @cached_property
    def paired(self) -> PairedRatio:
        """Final losses beside the controls'."""
        return PairedRatio.of(
            [math.nan if run.stopped else run.final_loss for run in self.runs],
            [run.final_loss for run in self.controls],
            [run.initial_loss for run in self.controls],
        )

    @cached_property
    def paired_test(self) -> PairedRatio:
        """Likewise, of the losses on the test part."""
        learned = self.paired.learned
        return PairedRatio(
            tuple(math.nan if run.stopped else run.test_loss for run in self.runs),
            tuple(run.test_loss for run in self.controls),
            learned,
        )

    @cached_property
    def paired_after(self) -> dict[int, PairedRatio]:
        """Likewise, of the losses after so many steps as the runs were asked to look."""
        first = [run.initial_loss for run in self.controls]
        marks = [step for step in self.runs[0].losses_after if all(step in run.losses_after for run in self.controls)]
        return {
            step: PairedRatio.of(
                [run.losses_after.get(step, math.nan) for run in self.runs],
                [run.losses_after[step] for run in self.controls],
                first,
            )
            for step in marks
        }

    @property
    def finding(self) -> Finding:
        """What may be said of the final loss."""
        return self.paired.finding

    @property
    def keeps(self) -> bool | None:
        """Whether the result is not worse than the control's; None if that is not decided."""
        return self.paired.keeps

    @property
    def final_loss(self) -> float:
        """Mean over the first `SEEDS` seeds, which all members of a group have."""
        return mean(run.final_loss for run in self.runs[:SEEDS])

    @property
    def accuracy(self) -> float | None:
        """Mean over the seeds; None where there is no such thing."""
        accuracies = [run.test_accuracy for run in self.runs if run.test_accuracy is not None]
        return mean(accuracies) if accuracies else None

    @property
    def lost(self) -> float:
        """Mean share of the nonzero updates that were lost."""
        return mean(run.updates.lost_of_nonzero for run in self.runs)

    @property
    def imprecision(self) -> float:
        """Mean share of all elements that did not change in a step, second words included."""
        return mean(run.updates.imprecision for run in self.runs)

    @property
    def edq_ratio(self) -> float:
        """Mean ratio of the effective descent quality."""
        return mean(run.updates.edq_ratio for run in self.runs)

    @property
    def edq_ratio_fp32(self) -> float:
        """Likewise against the step that the fp32 optimizer makes of the same gradients; NaN if not measured."""
        return mean(run.updates.edq_ratio_fp32 for run in self.runs)

    @property
    def skipped(self) -> float:
        """Mean number of skipped steps."""
        return mean(float(run.skipped) for run in self.runs)

    @property
    def bytes_per_parameter(self) -> float:
        """Measured."""
        return self.runs[0].bytes_per_parameter

    @cached_property
    def settled(self) -> Settled | None:
        """Where the mean curve of the seeds has come to its level; None if a run breaks, or it falls to the end."""
        return settled(self.runs)

    @property
    def undecided(self) -> str:
        """Why final losses are not judged, and what it would take; empty where they are."""
        least = max(self.controls, key=_left)
        first, last = least.initial_loss, least.final_loss
        if not last < first:
            return f"not decided: fp32 does not learn, {first:.3g} becomes {last:.3g} (try another --lr)"
        if not last < LEARNED * first:
            return f"too short to tell: fp32 came from {first:.3g} to {last:.3g} only (give more --steps)"
        if self.finding is not Finding.NOT_DECIDED:
            return ""
        if self.paired.n == 1:
            return f"not decided with 1 seed: {self.paired.text} (give --seeds 5)"
        return f"not decided with {self.paired.n} seeds: {self.paired.text}"

    @property
    def sentence(self) -> str:
        """What came out, in plain words, and why as far as the numbers say it."""
        if self.finding is Finding.BREAKS:
            return f"breaks in {self.paired.broken} of {self.paired.n} seeds: {self.reason}"
        if self.undecided:
            return self.undecided
        if self.finding is Finding.KEEPS:
            return f"keeps fp32's result: {self.paired.text}"
        if self.finding is Finding.ENDS_LOWER:
            return f"ends lower than fp32: {self.paired.text}"
        return f"loses: {self.paired.text}{'; why: ' if self.reason else ''}{self.reason}"

    @property
    def reason(self) -> str:
        """Why, as far as the numbers say it, and where it stands still; empty of what is not worse than the control."""
        if self.finding is Finding.BREAKS:
            stopped = next((run.stopped for run in self.runs if run.stopped), "")
            return "; ".join((stopped or "the parameters become infinite or NaN", *self._reasons()))
        if self.finding is Finding.LOSES:
            return "; ".join(filter(None, (*self._reasons(), self._stall())))
        if self.finding is not Finding.NOT_DECIDED:
            return ""
        if not self.paired.learned or not self.paired.comparable:
            return self.undecided
        return "one seed decides nothing (give --seeds 5)" if self.paired.n == 1 else "the interval reaches past 3 %"

    def _stall(self) -> str:
        """Say where the run stands still while its control goes on."""
        if not self.stalls:
            return ""
        narrow = self.settled
        assert narrow is not None
        return f"from step {narrow.step:,} on it stays at {narrow.loss:.2g}"

    @property
    def stalls(self) -> bool:
        """Whether it loses updates, has come to its level in three quarters of the run, and the control falls on."""
        if self.lost < LOSES_MANY:
            return False
        narrow, control = self.settled, settled(self.controls)
        if narrow is None or narrow.step > 0.75 * self.runs[0].steps:
            return False
        return control is None or control.step > narrow.step

    def _reasons(self) -> list[str]:
        """Return the reasons that can be computed from the configuration and its measurements."""
        config = self.runs[0].config
        rule = UPDATE_RULES[config.storage.update]
        reasons = []
        if any(run.diverged for run in self.runs):
            reasons.append("it diverges")
        if self.lost > LOSES_MANY and rule.plain:
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
        return reasons


def settled(runs: Sequence[Run]) -> Settled | None:
    """Return where the mean loss curve of some runs has come to its level; None if one breaks, or it falls to the end.

    The level is the mean of the last tenth of the blocks; it has been reached at the first block from which on no mean
    of three blocks is farther above it than `SETTLED` and `REMAINDER` say.
    """
    if len({len(run.losses) for run in runs}) > 1:
        return None
    curve = np.array([run.losses for run in runs]).mean(axis=0)
    if not np.isfinite(curve).all() or curve.size < 30:
        return None
    level = float(curve[-(curve.size // 10) :].mean())
    smooth = (curve[:-2] + curve[1:-1] + curve[2:]) / 3
    near = min(SETTLED * level, level + REMAINDER * (float(curve[0]) - level))
    above = np.flatnonzero(smooth > near)
    first = int(above[-1]) + 1 if above.size else 0
    if first >= smooth.size:
        return None
    return Settled(first * runs[0].block, level)


def beside_control(group: Iterable[ConfigurationSummary]) -> tuple[ConfigurationSummary, ...]:
    """Give each member of a group the runs of the first, seed by seed.

    Raises
    ------
    ValueError
        The group is empty, or its first member has fewer runs than another.

    """
    members = tuple(group)
    if not members or len(members[0].runs) < max(len(o.runs) for o in members):
        raise ValueError("a group must have a control, its first member, with a run for each seed of the others")
    return tuple(replace(o, controls=members[0].runs[: len(o.runs)]) for o in members)


def mean(values: Iterable[float]) -> float:
    """Return the mean of some numbers."""
    return float(np.mean(list(values)))


def _left(run: Run) -> float:
    """Return the share of a run's first loss that it ends with, infinite where there is no such thing."""
    share = run.final_loss / run.initial_loss if run.initial_loss else math.inf
    return math.inf if math.isnan(share) else share
