"""Which loss scale saves a training in fp16, and what happens when it has to change in a hurry?

A multilayer perceptron learns the handwritten digits in mixed precision: weights, activations and gradients in fp16,
master copy and Adam (epsilon 1e-12) in float32. Adam divides by the size of the gradients, so in exact arithmetic it
does not matter if the loss is multiplied by a constant c. In fp16 it does: with c = 2^-20 the gradients lie below the
smallest subnormal. Multiplying by a loss scale S and dividing by it after the backward pass is the cure, and only the
product c * S decides what fp16 sees.

What to look for
----------------
*Recovery.* Final loss against c * S: a dead zone in which every gradient is flushed and nothing is learned; a narrow
stretch in which some survive, where training can end worse than it began, because Adam blows up the few coarse
gradients that are left to full-size updates; a plateau as good as float32, dozens of binades wide; and a cliff, beyond
which every step overflows and is skipped. The curves of different c fall on one another. A dynamic scale finds the
plateau by itself, from below one doubling a window, from above one skipped step a halving.

*Accidents.* A burst of gradients 2^12 times too large, and learning rates that double every step. The scalers differ in
how many steps they lose, but note what they protect: the arithmetic, not the model. A static scale refuses every step
of the burst and loses nothing else; a dynamic one skips until its scale is so low that the rest of the burst goes
through and spoils Adam's moments, as it does in float32. When the weights have grown until fp16's activations overflow,
no loss scale helps: every step is skipped for good, while the scale halves down to its floor (jmp, Megatron, flax),
past every use (torch, apex), or until an error is raised (DeepSpeed). Without loss scaling the run ends in NaN. Who
survives the shorter ramp is luck: another seed, another winner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from precision_lab.analysis.loss_scalers import SCALERS, DynamicLossScale, LossScale, NoLossScale, StaticLossScale
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import get_format
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import COUNTED, Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.datasets import Dataset, digits, split
from precision_lab.training.loop import batches, loss_in_float64
from precision_lab.training.models import MLP
from precision_lab.training.optimizers import Adam
from precision_lab.training.step import Recipe, StepRecord, begin, parameters_of, training_step
from precision_lab.training.storage import FP32, StorageConfig

_MET = ("none", "torch", "apex", "megatron", "deepspeed", "jmp", "flax")
RULES: Mapping[str, LossScale] = {name: SCALERS[name] for name in _MET} | {"static 2^16": StaticLossScale(2.0**16)}
"""The rules that meet with the accidents, with their frameworks' defaults; those of Keras and fairseq do as these."""

STUCK_AFTER = 100
"""A run is stuck if it skips this many last steps in a row."""


@dataclass(frozen=True)
class Accident:
    """Something that goes wrong for a few steps in the middle of a run.

    Attributes
    ----------
    name : str
        What it is.
    steps : int
        How many steps it lasts.
    loss_factor : float
        The loss of each of them is multiplied by this.
    growth : float
        The learning rate is multiplied by this from each of them to the next; afterwards it is the old one again.

    """

    name: str
    steps: int
    loss_factor: float = 1.0
    growth: float = 1.0

    def __post_init__(self) -> None:
        check_integer("the steps of an accident", self.steps, 1)
        for name in ("loss_factor", "growth"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}")


@dataclass(frozen=True)
class LossScalingConfig(PlainData):
    """What to train and what to do to it.

    Attributes
    ----------
    hidden, learning_rate, batch_size, seed
        As in `TrainingConfig`; the optimizer is Adam.
    epsilon : float
        Of Adam; small beside the square roots of the second moments even for the smallest c.
    format : str
        Of weights, activations and gradients.
    steps : int
        Of each run of the recovery.
    factors : tuple of int
        The exponents of the factors c of the loss.
    products : tuple of int
        The exponents of the products c * S at which to train.
    starts : tuple of int
        The exponents of the scales S from which a dynamic scale starts, with the smallest factor c.
    window : int
        Its growth window: shorter than the frameworks', as the runs are.
    accident_steps : int
        Of each run with an accident, which begins after a third of them.
    accidents : tuple of Accident
        What goes wrong.

    """

    hidden: tuple[int, ...] = (64,)
    learning_rate: float = 1e-3
    batch_size: int = 64
    seed: int = 0
    epsilon: float = 1e-12
    format: str = "fp16"
    steps: int = 1000
    factors: tuple[int, ...] = (-20, -10, 0)
    products: tuple[int, ...] = tuple(range(-24, 25, 2))
    starts: tuple[int, ...] = (0, 16, 60)
    window: int = 20
    accident_steps: int = 1500
    accidents: tuple[Accident, ...] = (
        Accident("gradients 2^12 times larger for 30 steps", 30, loss_factor=2.0**12),
        Accident("learning rate doubles for 12 steps", 12, growth=2.0),
        Accident("learning rate doubles for 26 steps", 26, growth=2.0),
    )

    def __post_init__(self) -> None:
        for name in ("steps", "accident_steps"):
            check_integer(name, getattr(self, name), 3)
        for name in ("factors", "products", "starts"):
            exponents = getattr(self, name)
            if (
                not isinstance(exponents, tuple)
                or not exponents
                or not all(type(k) is int and -60 <= k <= 60 for k in exponents)
            ):
                raise ValueError(f"{name} must be a tuple of exponents in -60..60, at least one, got {exponents!r}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be positive and finite, got {self.epsilon!r}")
        get_format(self.format)
        DynamicLossScale.torch(window=self.window)
        TrainingConfig(hidden=self.hidden, learning_rate=self.learning_rate, batch_size=self.batch_size, seed=self.seed)
        for accident in self.accidents:
            if accident.steps > self.accident_steps // 3:
                raise ValueError(
                    f"accident_steps must be at least three times the steps of each accident, got "
                    f"{self.accident_steps} for {accident.steps} ({accident.name})"
                )

    @classmethod
    def quick(cls) -> Self:
        """Return a smaller configuration that asks the same."""
        return cls(steps=250, factors=(-20, 0), products=tuple(range(-24, 25, 4)), accident_steps=450)

    @property
    def accident_at(self) -> int:
        """The first step of an accident."""
        return self.accident_steps // 3


@dataclass(frozen=True, eq=False)
class ScaledRun:
    """A run under one scaler.

    Attributes
    ----------
    name : str
        Of the rule.
    factor : float
        The c by which the loss was multiplied (outside of an accident).
    losses, loss_scales : float64 array, shape (steps,)
        Per step the batch loss, without factor and scale, and the scale; shorter than asked where the run stopped.
        The losses are not part of `to_dict`.
    max_abs : float64 array, shape (steps,)
        Per step the largest unscaled gradient of a parameter, infinity where one was not finite; not part of `to_dict`.
    skipped : bool array, shape (steps,)
        Where the update was left out.
    initial_loss, final_loss : float
        Mean loss over the training part of the master parameters, in float64.
    test_accuracy : float
        Of the master parameters.
    stopped : str
        Why the run could not go on to its last step, empty if it did.

    """

    layout: ClassVar = Layout(derived=("outcome",), omitted=("losses", "max_abs"))

    name: str
    factor: float
    loss_scales: Annotated[NDArray[np.float64], COUNTED]
    skipped: Annotated[NDArray[np.bool_], COUNTED]
    initial_loss: float
    final_loss: float
    test_accuracy: float
    stopped: str
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    max_abs: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        if self.loss_scales.shape != self.skipped.shape:
            raise ValueError("loss scales and skipped steps are as many as there were steps")

    @property
    def outcome(self) -> str:
        """How it ended.

        ``trains``; ``ruined``: the final loss is above that of the untrained network; ``stuck``: the last
        `STUCK_AFTER` steps were all skipped; ``stopped``: the scaler ended the run, `stopped` says why; ``NaN``: the
        parameters are no longer finite.
        """
        if self.stopped:
            return "stopped"
        if not math.isfinite(self.final_loss):
            return "NaN"
        if len(self.skipped) >= STUCK_AFTER and self.skipped[-STUCK_AFTER:].all():
            return "stuck"
        return "ruined" if self.final_loss > self.initial_loss else "trains"


@dataclass(frozen=True, eq=False)
class LossScalingResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : LossScalingConfig
        What was asked.
    float32 : dict of int to ScaledRun
        Per factor exponent the run in float32 without loss scaling.
    static : dict of int to dict of int to ScaledRun
        Per factor exponent and exponent of c * S the run with this static scale.
    dynamic : dict of int to ScaledRun
        Per exponent of the first scale the run with a dynamic scale and the smallest factor.
    calm : ScaledRun
        The run in float32 that is as long as those with accidents, without one.
    accidents : dict of str to tuple of ScaledRun
        Per accident a run in float32, then one for each of `RULES`.

    """

    layout: ClassVar = Layout("experiment loss_scaling")

    config: LossScalingConfig
    float32: dict[int, ScaledRun]
    static: dict[int, dict[int, ScaledRun]]
    dynamic: dict[int, ScaledRun]
    calm: ScaledRun
    accidents: dict[str, tuple[ScaledRun, ...]]

    def plateau(self, factor: int, tolerance: float = 0.02) -> tuple[int, int] | None:
        """Return the first and last exponent of c * S whose final loss is within `tolerance` of float32's, or None."""
        target = self.float32[factor].final_loss * (1 + tolerance)
        good = [k for k, run in self.static[factor].items() if run.final_loss <= target]
        return (min(good), max(good)) if good else None

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        least = min(self.config.factors)
        fmt, target, runs = self.config.format, self.float32[least].final_loss, self.static[least]
        bounds = self.plateau(least)
        if bounds is None:
            return f"no loss scale brings {fmt} within 2 % of float32's final loss of {target:.2g}"
        ruined = max((run.final_loss for run in runs.values() if run.outcome == "ruined"), default=None)
        note = "" if ruined is None else f" (untrained {self.calm.initial_loss:.2g}, ruined up to {ruined:.2g})"
        dynamic = [run.final_loss for run in self.dynamic.values()]
        return (
            f"{fmt} trains as well as float32 (loss {target:.2g}) where loss factor times scale is 2^{bounds[0]} to "
            f"2^{bounds[1]}{note}; a dynamic scale finds it: {min(dynamic):.2g} to {max(dynamic):.2g} from S = "
            f"2^{min(self.dynamic)} to 2^{max(self.dynamic)}"
        )


@dataclass(frozen=True)
class _Trainer:
    """Everything that all runs share."""

    config: LossScalingConfig
    train_part: Dataset
    test_part: Dataset

    def run(
        self,
        name: str,
        storage: StorageConfig,
        scaler: LossScale,
        steps: int,
        *,
        factor: float = 1.0,
        accident: Accident | None = None,
    ) -> ScaledRun:
        config, data = self.config, self.train_part
        model = MLP((data.inputs.shape[1], *config.hidden, int(data.labels.max()) + 1))
        parameters = model.init(config.seed)
        shapes = {name: array.shape for name, array in parameters.items()}
        recipe = Recipe(model, Adam(config.learning_rate, epsilon=config.epsilon), storage, shapes)
        state = begin(parameters, recipe, scaler)
        initial_loss = loss_in_float64(model, parameters, data)
        records: list[StepRecord] = []
        for step, rows in enumerate(batches(len(data.labels), config.batch_size, steps, config.seed)):
            if state.scaler.ended:
                break
            loss_factor, learning_rate = factor, config.learning_rate
            if accident is not None and 0 <= (into := step - config.accident_at) < accident.steps:
                loss_factor *= accident.loss_factor
                learning_rate *= fixed.power(accident.growth, into + 1)
            state, record = training_step(
                state,
                recipe,
                data.inputs[rows],
                data.labels[rows],
                learning_rate=learning_rate,
                loss_factor=loss_factor,
            )
            records.append(record)
        final = parameters_of(state, recipe)
        with np.errstate(over="ignore", invalid="ignore"):
            test_accuracy = model.accuracy(final, self.test_part.inputs, self.test_part.labels)
        return ScaledRun(
            name=name,
            factor=factor,
            losses=np.array([record.loss for record in records]),
            loss_scales=np.array([record.loss_scale for record in records]),
            max_abs=np.array([record.max_abs for record in records]),
            skipped=np.array([record.skipped for record in records], bool),
            initial_loss=initial_loss,
            final_loss=loss_in_float64(model, final, data),
            test_accuracy=test_accuracy,
            stopped=state.scaler.reason if len(records) < steps else "",
        )


def run(
    config: LossScalingConfig | None = None, *, progress: Callable[[int, int], None] | None = None
) -> LossScalingResult:
    """Train under every scale, let dynamic scales search, and cause the accidents.

    Parameters
    ----------
    config : LossScalingConfig, optional
        Default: the runs of the documentation.
    progress : callable, optional
        Called with the number of runs done and of all runs.

    Raises
    ------
    ValueError
        The configuration is none that can be run; the message names the accepted values.

    """
    config = config or LossScalingConfig()
    trainer = _Trainer(config, *split(digits()))
    narrow = StorageConfig.parse(f"weights={config.format},gradients=fp32,master=fp32,transient_weights=yes")
    runs = len(config.factors) * (1 + len(config.products)) + len(config.starts)
    runs += 1 + len(config.accidents) * (1 + len(RULES))
    done = 0

    def finished(result: ScaledRun) -> ScaledRun:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, runs)
        return result

    float32, static = {}, {}
    for c in config.factors:
        factor = 2.0**c
        float32[c] = finished(trainer.run("float32", FP32, NoLossScale(), config.steps, factor=factor))
        static[c] = {
            k: finished(
                trainer.run(f"static 2^{k - c}", narrow, StaticLossScale(2.0 ** (k - c)), config.steps, factor=factor)
            )
            for k in config.products
        }
    least = min(config.factors)
    dynamic = {}
    for start in config.starts:
        scaler = DynamicLossScale.torch(2.0**start, window=config.window)
        dynamic[start] = finished(trainer.run(f"torch from 2^{start}", narrow, scaler, config.steps, factor=2.0**least))
    calm = finished(trainer.run("float32", FP32, NoLossScale(), config.accident_steps))
    accidents = {}
    for accident in config.accidents:
        rules = {"float32": (FP32, NoLossScale()), **{name: (narrow, rule) for name, rule in RULES.items()}}
        accidents[accident.name] = tuple(
            finished(trainer.run(name, storage, rule, config.accident_steps, accident=accident))
            for name, (storage, rule) in rules.items()
        )
    return LossScalingResult(config, float32, static, dynamic, calm, accidents)
