"""Do my gradients underflow in 16 bits or fewer, and which loss scale saves them?

A multilayer perceptron is trained in float32 on the handwritten digits, and its gradients are looked at three times: at
the start, in the middle and near convergence. Nothing is rounded during the training: the histograms say what storing
*these* gradients in each format would have done to them.

What to look for
----------------
Gradients shrink while the loss falls. At the start almost nothing lies below fp16's smallest subnormal, near
convergence a large share of the activation gradients does; bf16, with float32's exponents, loses nothing. The weight
gradients are sums over the batch and stay larger: few are flushed, but many become subnormal and lose bits.
Multiplying the loss by S = 2^k moves the whole histogram k binades up (Micikevicius et al. 2018, section 3.2): what was
flushed comes back, until the largest values overflow. The window between the two differs between the start and the
end, which is why loss scales are dynamic.

*What it costs.* Nothing, here. The same training in fp16 with a float32 master copy and without loss scaling, in which
these gradients really are flushed, keeps float32's result: many are flushed, but they are the smallest, and the sums
over the batch that move the weights hardly notice. It costs where gradients are smaller: with the loss multiplied by
2^-20 nothing is learned. Both are judged by losses paired with float32's of the same seed (`paired`).

*The classic.* Micikevicius et al. (2018, figure 3) drew the activation gradients of a detection network over its whole
training: two thirds were zero, and a large share lay below fp16's reach. A small transformer with ReLU gives the same
picture in miniature: zeros come from ReLU and from the causal mask of the attention, and no format and no loss scale
changes anything about those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.experiments.paired import MORE_SEEDS, SEEDS, Finding, PairedRatio
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import get_format
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.result import TrainingResult
from precision_lab.training.storage import FP32, StorageConfig

GROUPS = ("weight gradients", "activation gradients")
"""The two kinds of gradients that are looked at."""


@dataclass(frozen=True)
class UnderflowConfig(PlainData):
    """What to train, when to look, and what to ask.

    Attributes
    ----------
    hidden, optimizer, learning_rate, steps, batch_size, seed
        As in `TrainingConfig`; the first seed is that of the run that is looked at.
    seeds, more_seeds : int
        How many seeds there are of the runs that show what flushing costs; more where s asks for it, see `paired`.
    batches : int
        Consecutive batches whose gradients are pooled at each of the three looks.
    formats : tuple of str
        Names of the formats.
    loss_scale_exponents : tuple of int
        The k of the loss scales 2^k.
    small_exponent, small_steps : int
        The runs with small gradients have the loss multiplied by 2 to this, and so many steps, at most `steps`.
    transformer_steps : int
        Training steps of the transformer whose activation gradients are pooled over its whole training.

    """

    hidden: tuple[int, ...] = (64,)
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    steps: int = 8000
    batch_size: int = 64
    seed: int = 0
    seeds: int = SEEDS
    more_seeds: int = MORE_SEEDS
    batches: int = 10
    formats: tuple[str, ...] = ("fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2")
    loss_scale_exponents: tuple[int, ...] = field(default=tuple(range(33)))
    small_exponent: int = -20
    small_steps: int = 400
    transformer_steps: int = 300

    @classmethod
    def quick(cls) -> Self:
        """Return a smaller configuration that asks the same."""
        return cls(steps=2000, seeds=3, more_seeds=3, transformer_steps=60, small_steps=200)

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 3)
        check_integer("batches", self.batches, 1, self.steps // 3)
        exponents = self.loss_scale_exponents
        if (
            not isinstance(exponents, tuple)
            or not all(type(k) is int and -126 <= k <= 127 for k in exponents)
            or 0 not in exponents
        ):
            raise ValueError(
                f"loss_scale_exponents must be a tuple of integers in -126..127 with 0 among them, got {exponents!r}"
            )
        if not isinstance(self.formats, tuple) or not self.formats:
            raise ValueError(f"formats must be a tuple of names, at least one, got {self.formats!r}")
        for fmt in self.formats:
            get_format(fmt)
        check_integer("seeds", self.seeds, 1)
        check_integer("more_seeds", self.more_seeds, self.seeds)
        check_integer("transformer_steps", self.transformer_steps, 1)
        check_integer("small_exponent", self.small_exponent, -60, 60)
        check_integer("small_steps", self.small_steps, 1)
        self.training()

    def training(self) -> TrainingConfig:
        """Return the configuration of the training run; raises its ValueErrors."""
        return TrainingConfig(
            hidden=self.hidden,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            snapshot_steps=tuple(step for steps in self.stages.values() for step in steps),
        )

    def narrow(self, loss_scale: str, steps: int) -> TrainingConfig:
        """Return the configuration of a run in the first format, with a master copy in float32."""
        storage = f"weights={self.formats[0]},gradients=fp32,master=fp32,transient_weights=yes,loss_scale={loss_scale}"
        return replace(
            self.training(),
            storage=StorageConfig.parse(storage),
            steps=steps,
            snapshot_steps=(),
            measure_every=steps,  # not used
        )

    def transformer(self) -> TrainingConfig:
        """Return the configuration of the transformer, which is looked at ten times."""
        looks = sorted({(2 * i + 1) * self.transformer_steps // 20 for i in range(10)})
        return TrainingConfig(
            model="transformer",
            hidden=(32, 32),
            activation="relu",
            optimizer="adamw",
            learning_rate=1e-3,
            steps=self.transformer_steps,
            batch_size=16,
            seed=self.seed,
            histogram_steps=tuple(looks),
            measure_every=self.transformer_steps,  # not used
        )

    @property
    def stages(self) -> dict[str, range]:
        """The steps that are looked at, by name."""
        middle = (self.steps - self.batches) // 2
        return {
            "start": range(self.batches),
            "middle": range(middle, middle + self.batches),
            "end": range(self.steps - self.batches, self.steps),
        }


@dataclass(frozen=True)
class Stage:
    """The gradients of one look.

    Attributes
    ----------
    name : str
        ``start``, ``middle`` or ``end``.
    steps : range
        The steps whose gradients are pooled.
    loss : float
        Mean batch loss over these steps.
    tensors : dict of str to dict of str to ExponentHistogram
        Per group (`GROUPS`) and tensor the histogram of its gradients.

    """

    name: str
    steps: range
    loss: float
    tensors: dict[str, dict[str, ExponentHistogram]]

    def histogram(self, group: str) -> ExponentHistogram:
        """Return the histogram of all tensors of a group together."""
        return sum(self.tensors[group].values(), ExponentHistogram.empty())


@dataclass(frozen=True)
class UnderflowResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : UnderflowConfig
        What was asked.
    stages : tuple of Stage
        Start, middle and end.
    final_loss, test_accuracy : float
        Of the float32 training run.
    conversions : dict
        ``conversions[stage][group][format]`` is a tuple of `Conversion`, one for each loss scale of the config.
    transformer : ExponentHistogram
        The activation gradients of a transformer with ReLU, ten steps of its training and all tensors pooled.
    cost : PairedRatio
        Final losses in the first format, with a float32 master copy and without loss scaling, beside float32's.
    cost_of_small : PairedRatio
        Likewise with the loss multiplied by 2^`small_exponent`, after `small_steps`.

    """

    layout: ClassVar = Layout("experiment underflow", version=2)

    config: UnderflowConfig
    stages: tuple[Stage, ...]
    final_loss: float
    test_accuracy: float
    conversions: dict[str, dict[str, dict[str, tuple[Conversion, ...]]]]
    transformer: ExponentHistogram
    cost: PairedRatio
    cost_of_small: PairedRatio

    @property
    def cost_in_words(self) -> str:
        """What flushing costs, in a line."""
        fmt = self.config.formats[0]
        found = {
            Finding.KEEPS: "nothing",
            Finding.ENDS_LOWER: "nothing",
            Finding.LOSES: "some of the result",
            Finding.BREAKS: "the run",
            Finding.NOT_DECIDED: "not decided",
        }[self.cost.finding]
        return (
            f"what flushing costs here: {found}; without loss scaling {fmt} with a float32 master copy ends, beside "
            f"float32's loss, at {self.cost.text}, and where the loss is multiplied by 2^{self.config.small_exponent} "
            f"at {self.cost_of_small.text}"
        )

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        fmt, other = self.config.formats[0], "bf16"
        end = self.stages[-1].name
        lost = self.unscaled(end, GROUPS[1], fmt).flushed_of_nonzero
        best = self.best_loss_scale(end, GROUPS[1], fmt)
        left = (best.flushed + best.overflowed) / best.nonzero if best.nonzero else 0.0
        text = f"near convergence {fmt} flushes {_share(lost, 1)} of the non-zero activation gradients"
        if other in self.config.formats:
            text += f", {other} {_share(self.unscaled(end, GROUPS[1], other).flushed_of_nonzero, 1)}"
        text += f"; with a loss scale of 2^{fixed.log2(best.loss_scale):.0f} {fmt} loses {_share(left, 2)}"
        return f"{text}; {self.cost_in_words}"

    def unscaled(self, stage: str, group: str, fmt: str) -> Conversion:
        """Return the conversion without loss scaling (S = 1)."""
        return next(c for c in self.conversions[stage][group][fmt] if c.loss_scale == 1)

    def best_loss_scale(self, stage: str, group: str, fmt: str) -> Conversion:
        """Return the conversion of the smallest loss scale that flushes and overflows the fewest elements."""
        return min(self.conversions[stage][group][fmt], key=lambda c: (c.flushed + c.overflowed, c.loss_scale))


def _share(part: float, decimals: int) -> str:
    """Write a share; only nothing is none."""
    return f"{part:.{decimals}%}" if part else "none"


def run(
    config: UnderflowConfig | None = None, *, progress: Callable[[int, int], None] | None = None
) -> UnderflowResult:
    """Train, look at the gradients, and ask.

    Parameters
    ----------
    config : UnderflowConfig, optional
        Default: the run of the documentation.
    progress : callable, optional
        Called with the number of training steps done and of all steps, those of the transformer included.

    Raises
    ------
    ValueError
        The configuration is none that can be run; the message names the accepted values.

    """
    config = config or UnderflowConfig()
    training_config, small_steps = config.training(), min(config.steps, config.small_steps)
    done, total = 0, 2 * config.seeds * (config.steps + small_steps) + config.transformer_steps

    def trained(one: TrainingConfig) -> TrainingResult:
        nonlocal done
        before = done

        def report(step: int) -> None:
            if progress is not None:
                progress(before + step, total)

        result = train(one, progress=report)
        done += one.steps
        return result

    def beside_float32(narrow: TrainingConfig, first: tuple[TrainingResult, ...] = ()) -> PairedRatio:
        """Compare a run with float32, over as many seeds as it takes; `first` are controls that there are already."""
        nonlocal total
        control, controls = replace(narrow, storage=FP32), list(first)
        runs: list[TrainingResult] = []
        for seeds in (config.seeds, config.more_seeds):
            for i in range(len(runs), seeds):
                if i == len(controls):
                    controls.append(trained(replace(control, seed=config.seed + i)))
                runs.append(trained(replace(narrow, seed=config.seed + i)))
            found = PairedRatio.of(*zip(*map(_losses, runs, controls), strict=True))
            if not found.needs_more or seeds == config.more_seeds:
                break
            total += 2 * (config.more_seeds - seeds) * narrow.steps
        return found

    training = trained(training_config)
    classic = trained(config.transformer())
    cost = beside_float32(config.narrow("none", config.steps), (training,))
    cost_of_small = beside_float32(config.narrow(f"2^{config.small_exponent}", small_steps))
    transformer = sum(
        (h for looked in classic.histograms.values() for name, h in looked.items() if name not in classic.parameters),
        ExponentHistogram.empty(),
    )
    stages = []
    for name, steps in config.stages.items():
        snapshots = [snapshot for snapshot in training.snapshots if snapshot.step in steps]
        gradients = {
            "weight gradients": [snapshot.weight_gradients for snapshot in snapshots],
            "activation gradients": [snapshot.activation_gradients for snapshot in snapshots],
        }
        tensors = {
            group: {tensor: ExponentHistogram.of_chunks(batch[tensor] for batch in batches) for tensor in batches[0]}
            for group, batches in gradients.items()
        }
        loss = sum(snapshot.loss for snapshot in snapshots) / len(snapshots)
        stages.append(Stage(name, steps, loss, tensors))
    conversions: dict[str, dict[str, dict[str, tuple[Conversion, ...]]]] = {}
    for stage in stages:
        pooled = {group: stage.histogram(group) for group in GROUPS}
        conversions[stage.name] = {
            group: {
                fmt: tuple(histogram.conversion(fmt, 2.0**k) for k in config.loss_scale_exponents)
                for fmt in config.formats
            }
            for group, histogram in pooled.items()
        }
    accuracy = training.test_accuracy
    assert accuracy is not None  # digits are classes
    return UnderflowResult(
        config, tuple(stages), training.final_loss, accuracy, conversions, transformer, cost, cost_of_small
    )


def _losses(run: TrainingResult, control: TrainingResult) -> tuple[float, float, float]:
    """Return the final losses of both, and the one that the control began with."""
    return math.nan if run.stopped else run.final_loss, control.final_loss, control.initial_loss
