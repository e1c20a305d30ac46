"""Would the weights stand still if they were stored in 16 bits?

A multilayer perceptron is trained in float32 on the handwritten digits, once with Adam and once with plain SGD. At the
start, in the middle and near convergence the weights are stored in bf16 and in fp16 and the updates of the optimizer
are added: how many are lost, and how much of the step is made? Nothing is rounded during the training: these are the
updates of a healthy run, and what a format would do to them.

What to look for
----------------
The ratio u/w decides and nothing else: see the histogram, where the updates left of 1/510 are lost in bf16. At the
start Adam's updates are as large as its learning rate, and few are lost. But they do not stay so: near convergence the
gradients are mostly noise whose mean is small beside its root mean square, and almost all of Adam's updates are lost in
bf16, more than of SGD's. What is known of the weights alone, the share that is frozen at |u| = learning rate, is
therefore the least that will be lost. A format with more significand bits loses less: fp16 loses less than bf16, the
other way round than with the gradients (`underflow`).

The effective descent quality says what that does to the step. With ties to even, what is lost is gone; what is not lost
is rounded to whole gaps, so that the ratio can come out above 1 as well as below it. With stochastic rounding it is 1
on average: a lost update has become a small chance of a large one. The running sums show the same without a network:
they stop where a term is half a gap. Stochastic rounding goes on, but even it stops where its random bits run out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from precision_lab.analysis.frozen_weights import Frozen, WeightGaps
from precision_lab.analysis.stagnation import MOST_TERMS, Series, Stagnation, stagnation
from precision_lab.analysis.updates import UpdateReport, update_report
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import get_format
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.optimizers import title
from precision_lab.training.result import Snapshot

STAGES = ("start", "middle", "end")
MODES = ("ties_to_even", "stochastic")
"""The roundings of w + u that are compared."""


@dataclass(frozen=True)
class SwampingConfig(PlainData):
    """What to train, when to look, and what to add up.

    Attributes
    ----------
    runs : tuple of (str, float)
        Optimizers and their learning rates.
    hidden, steps, batch_size, seed
        As in `TrainingConfig`; the seed is that of stochastic rounding, too.
    batches : int
        Consecutive updates that are pooled at each of the three looks.
    formats : tuple of str
        Formats of the weights.
    update_exponents : tuple of int
        The k of the sizes 2^k between which frozen fractions are asked for: they change at powers of two only.
    sums : tuple of (str, str)
        Formats and modes of the running sums.
    most_terms : int
        Where to give up a running sum.

    """

    runs: tuple[tuple[str, float], ...] = (("adam", 1e-3), ("sgd", 0.1))
    hidden: tuple[int, ...] = (64,)
    steps: int = 8000
    batch_size: int = 64
    seed: int = 0
    batches: int = 10
    formats: tuple[str, ...] = ("bf16", "fp16")
    update_exponents: tuple[int, ...] = tuple(range(-26, 0))
    sums: tuple[tuple[str, str], ...] = (
        ("bf16", "ties_to_even"),
        ("fp16", "ties_to_even"),
        ("fp32", "ties_to_even"),
        ("bf16", "stochastic"),
    )
    most_terms: int = 2**25

    @classmethod
    def quick(cls) -> Self:
        """Return a smaller configuration that asks the same."""
        return cls(steps=1500, most_terms=2**22)

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 3)
        check_integer("batches", self.batches, 1, self.steps // 3)
        if not isinstance(self.runs, tuple) or not self.runs:
            raise ValueError(f"runs must be a tuple of (optimizer, learning rate), at least one, got {self.runs!r}")
        if not isinstance(self.formats, tuple) or not self.formats:
            raise ValueError(f"formats must be a tuple of names, at least one, got {self.formats!r}")
        check_integer("most_terms", self.most_terms, 1, MOST_TERMS)
        exponents = self.update_exponents
        if not exponents or not all(type(k) is int and -149 <= k <= 127 for k in exponents):
            raise ValueError(f"update_exponents must be a tuple of integers in -149..127, got {exponents!r}")
        for fmt in (*self.formats, *(fmt for fmt, _ in self.sums)):
            get_format(fmt)
        for run_ in self.runs:
            self.training(*run_)

    def training(self, optimizer: str, learning_rate: float) -> TrainingConfig:
        """Return the configuration of a training run; raises its ValueErrors."""
        return TrainingConfig(
            hidden=self.hidden,
            optimizer=optimizer,
            learning_rate=learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            snapshot_steps=tuple(step for steps in self.stages.values() for step in steps),
        )

    @property
    def stages(self) -> dict[str, range]:
        """The steps that are looked at, by name."""
        starts = (0, (self.steps - self.batches) // 2, self.steps - self.batches)
        return {name: range(start, start + self.batches) for name, start in zip(STAGES, starts, strict=True)}


@dataclass(frozen=True)
class Look:
    """The weights and updates of some steps of a run.

    Attributes
    ----------
    optimizer : str
        Of the run.
    learning_rate : float
        Of the run.
    stage : str
        ``start``, ``middle`` or ``end``.
    steps : range
        The steps whose updates are pooled.
    loss : float
        Mean batch loss over these steps.
    reports : dict of str to dict of str to UpdateReport
        Per format and mode of `MODES`, all tensors together.
    tensors : dict of str to dict of str to UpdateReport
        Per format and tensor, ties to even.
    gaps : dict of str to WeightGaps
        Per format the weights of the first of these steps.

    """

    optimizer: str
    learning_rate: float
    stage: str
    steps: range
    loss: float
    reports: dict[str, dict[str, UpdateReport]]
    tensors: dict[str, dict[str, UpdateReport]]
    gaps: dict[str, WeightGaps]


@dataclass(frozen=True)
class RunningSum:
    """A running sum on its way and where it stopped.

    Attributes
    ----------
    terms, values : tuple
        Numbers of terms, and the sum after so many.
    end : Stagnation
        Where it stopped.

    """

    terms: tuple[int, ...]
    values: tuple[float, ...]
    end: Stagnation


@dataclass(frozen=True)
class SwampingResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : SwampingConfig
        What was asked.
    looks : tuple of Look
        Three for each run, in their order.
    sums : tuple of RunningSum
        Counting by one, and the harmonic series, in each format and mode of ``config.sums``.

    """

    layout: ClassVar = Layout("experiment swamping", derived=("frozen",))

    config: SwampingConfig
    looks: tuple[Look, ...]
    sums: tuple[RunningSum, ...]

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        (optimizer, _), end = self.config.runs[0], STAGES[-1]
        reports = self.look(optimizer, end).reports
        shares = ", ".join(f"{fmt} {reports[fmt][MODES[0]].lost_of_nonzero:.1%}" for fmt in self.config.formats)
        first = self.config.formats[0]
        even, random = (reports[first][mode].edq_ratio for mode in MODES)
        name = title(optimizer)
        return (
            f"near convergence weights would lose these shares of {name}'s non-zero updates: {shares}; the step made "
            f"in {first} is {even:.0%} of the one intended, {random:.0%} with stochastic rounding"
        )

    @property
    def frozen(self) -> tuple[dict[str, tuple[Frozen, ...]], ...]:
        """What each look's weights say, per format, of updates of each of the sizes that the configuration asks for."""
        sizes = [2.0**k for k in self.config.update_exponents]
        return tuple({fmt: tuple(map(gaps.frozen, sizes)) for fmt, gaps in look.gaps.items()} for look in self.looks)

    def look(self, optimizer: str, stage: str) -> Look:
        """Return the look at a stage of a run."""
        return next(look for look in self.looks if (look.optimizer, look.stage) == (optimizer, stage))


def run(config: SwampingConfig | None = None, *, progress: Callable[[int, int], None] | None = None) -> SwampingResult:
    """Train, look at the updates, and add up.

    Parameters
    ----------
    config : SwampingConfig, optional
        Default: the run of the documentation.
    progress : callable, optional
        Called with the number of training steps done and of all steps, those of all runs.

    Raises
    ------
    ValueError
        The configuration is none that can be run; the message names the accepted values.

    """
    config = config or SwampingConfig()
    everything = config.steps * len(config.runs)
    looks = []
    for i, (optimizer, learning_rate) in enumerate(config.runs):

        def report(step: int, before: int = i * config.steps) -> None:
            if progress is not None:
                progress(before + step, everything)

        training = train(config.training(optimizer, learning_rate), progress=report)
        for stage, steps in config.stages.items():
            snapshots = [snapshot for snapshot in training.snapshots if snapshot.step in steps]
            looks.append(_look(config, optimizer, learning_rate, stage, steps, snapshots))
    sums = [
        _running_sum(config, series, *which)
        for series in (Series.counting(), Series.harmonic())
        for which in config.sums
    ]
    return SwampingResult(config, tuple(looks), tuple(sums))


def _look(
    config: SwampingConfig, optimizer: str, learning_rate: float, stage: str, steps: range, snapshots: list[Snapshot]
) -> Look:
    reports: dict[str, dict[str, UpdateReport]] = {}
    tensors: dict[str, dict[str, UpdateReport]] = {}
    for fmt in config.formats:
        by_mode = {mode: {name: UpdateReport.empty(fmt, mode) for name in snapshots[0].updates} for mode in MODES}
        first = 0  # every element has a random number of its own
        for snapshot in snapshots:
            for name, updates in snapshot.updates.items():
                for mode in MODES:
                    rng = (config.seed, first)
                    by_mode[mode][name] += update_report(snapshot.parameters[name], updates, fmt, mode=mode, rng=rng)
                first += updates.size
        reports[fmt] = {
            mode: sum(by_tensor.values(), UpdateReport.empty(fmt, mode)) for mode, by_tensor in by_mode.items()
        }
        tensors[fmt] = by_mode["ties_to_even"]
    gaps = {
        fmt: sum(
            (WeightGaps.of(weights, fmt) for weights in snapshots[0].parameters.values()), WeightGaps(get_format(fmt))
        )
        for fmt in config.formats
    }
    loss = sum(snapshot.loss for snapshot in snapshots) / len(snapshots)
    return Look(optimizer, learning_rate, stage, steps, loss, reports, tensors, gaps)


def _running_sum(config: SwampingConfig, series: Series, fmt: str, mode: str) -> RunningSum:
    """Add up, once to the end and once to each of some numbers of terms, about eight a factor of ten."""
    end = stagnation(series, fmt, mode=mode, most=config.most_terms, rng=config.seed)
    number = 1 + math.ceil(8 * float(fixed.log10(max(end.terms, 2))))
    points = np.unique(fixed.geomspace(1, end.terms, number).round().astype(int))
    values = [stagnation(series, fmt, mode=mode, most=n, rng=config.seed).value for n in points.tolist()]
    return RunningSum(tuple(points.tolist()), tuple(values), end)
