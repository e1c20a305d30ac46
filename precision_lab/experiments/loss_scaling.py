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
gradients that are left to full-size updates; a plateau, more than two dozen binades wide, that keeps float32's result;
and a cliff. The plateau is judged by losses paired with float32's of the same seed (`paired`), with five seeds a point,
or ten where they scatter. At its upper edge luck decides: with one seed no step overflows, with another every step, and
one binade further up no seed learns. The curves of different c fall on one another: in all but Adam's epsilon it is the
same arithmetic.

*Search.* A dynamic scale finds the plateau by itself, from below one doubling a window, from above one skipped step a
halving. In a run as short as these the way costs: the steps in which nothing, or too little, was learned are missing at
the end.

*Accidents.* A burst of gradients 2^12 times too large, and learning rates that double every step. The scalers differ in
how many steps they lose, but note what they protect: the arithmetic, not the model. A static scale refuses every step
of the burst and loses nothing else; a dynamic one skips until its scale is so low that the rest of the burst goes
through and spoils Adam's moments, as it does in float32. A ramp that float32 survives, to 2^8 times the learning rate,
every dynamic rule survives too, and no loss is infinite or NaN; a scale that cannot come down is stuck. A ramp to 2^26
times ruins float32 as well. There fp16's activations overflow: the loss that is logged is infinite or NaN, and no loss
scale helps, as the forward pass does not know it. Every step is skipped for good, so that the weights stay finite,
while the scale halves down to its floor (jmp, Megatron, flax), past every use (torch, apex), or until an error is
raised (DeepSpeed). Without loss scaling the weights become NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, takewhile
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from precision_lab.analysis.loss_scalers import SCALERS, DynamicLossScale, LossScale, NoLossScale, StaticLossScale
from precision_lab.experiments.paired import LEARNED, MORE_SEEDS, SEEDS, Finding, PairedRatio
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
    hidden, learning_rate, batch_size
        As in `TrainingConfig`; the optimizer is Adam.
    seed : int
        The first one.
    seeds, more_seeds : int
        How many there are where a product is judged, and for a dynamic scale; more where s asks for it, see `paired`.
    epsilon : float
        Of Adam; small beside the square roots of the second moments even for the smallest c.
    format : str
        Of weights, activations and gradients.
    steps : int
        Of each run of the recovery.
    factors : tuple of int
        The exponents of the factors c of the loss.
    products : tuple of int
        The exponents of the products c * S at which to train with every factor, with the first seed.
    judged : tuple of int
        The exponents of those at which to train with the smallest factor and several seeds, beside float32.
    starts : tuple of int
        The exponents of the scales S from which a dynamic scale starts, with the smallest factor c.
    window : int
        Its growth window: shorter than the frameworks', as the runs are.
    accident_steps : int
        Of each run with an accident, which begins after a third of them; with the first seed.
    accidents : tuple of Accident
        What goes wrong.

    """

    hidden: tuple[int, ...] = (64,)
    learning_rate: float = 1e-3
    batch_size: int = 64
    seed: int = 0
    seeds: int = SEEDS
    more_seeds: int = MORE_SEEDS
    epsilon: float = 1e-12
    format: str = "fp16"
    steps: int = 800
    factors: tuple[int, ...] = (-20, -10, 0)
    products: tuple[int, ...] = (-24, -20, -19, -18, -17, -16, -15, -14, -12, 0, 16, 20, 24)
    judged: tuple[int, ...] = (-13, -12, -11, -10, -8, -4, 0, 8, 16, 17, 18, 19, 20)
    starts: tuple[int, ...] = (0, 16, 60)
    window: int = 20
    accident_steps: int = 750
    accidents: tuple[Accident, ...] = (
        Accident("gradients 2^12 times larger for 30 steps", 30, loss_factor=2.0**12),
        Accident("learning rate doubles for 8 steps", 8, growth=2.0),
        Accident("learning rate doubles for 26 steps", 26, growth=2.0),
    )

    def __post_init__(self) -> None:
        for name in ("steps", "accident_steps"):
            check_integer(name, getattr(self, name), 3)
        check_integer("seeds", self.seeds, 1)
        check_integer("more_seeds", self.more_seeds, self.seeds)
        for name in ("factors", "products", "judged", "starts"):
            exponents = getattr(self, name)
            if (
                not isinstance(exponents, tuple)
                or not (exponents or name in ("judged", "starts"))
                or not all(type(k) is int and -60 <= k <= 60 for k in exponents)
            ):
                least = "" if name in ("judged", "starts") else ", at least one"
                raise ValueError(f"{name} must be a tuple of exponents in -60..60{least}, got {exponents!r}")
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
        return cls(
            seeds=3,
            more_seeds=3,
            steps=250,
            factors=(-20, 0),
            products=(-24, -20, -18, -16, -12, 0, 16, 20, 24),
            judged=(-12, -8, 0, 8, 16, 20),
            accident_steps=330,
        )

    @property
    def least(self) -> int:
        """The exponent of the smallest factor, which is looked at most closely."""
        return min(self.factors)

    @property
    def grid(self) -> tuple[int, ...]:
        """The exponents of all products, ascending."""
        return tuple(sorted({*self.products, *self.judged}))

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
    nonfinite_losses : int
        In how many steps the batch loss was infinite or NaN: what a log of the run shows, whatever the weights are.
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
    nonfinite_losses: int
    stopped: str
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    max_abs: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        if self.loss_scales.shape != self.skipped.shape:
            raise ValueError("loss scales and skipped steps are as many as there were steps")

    @property
    def outcome(self) -> str:
        """How it ended.

        ``trains``: the final loss is below `LEARNED` of the first; ``untrained``: it is not; ``ruined``: it is above
        the first; ``stuck``: the last `STUCK_AFTER` steps were all skipped; ``stopped``: the scaler ended the run,
        `stopped` says why; ``NaN``: the parameters are no longer finite.
        """
        if self.stopped:
            return "stopped"
        if not math.isfinite(self.final_loss):
            return "NaN"
        if len(self.skipped) >= STUCK_AFTER and self.skipped[-STUCK_AFTER:].all():
            return "stuck"
        if self.final_loss > self.initial_loss:
            return "ruined"
        return "trains" if self.final_loss < LEARNED * self.initial_loss else "untrained"


@dataclass(frozen=True, eq=False)
class LossScalingResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : LossScalingConfig
        What was asked.
    float32 : dict of int to tuple of ScaledRun
        Per factor exponent the runs in float32 without loss scaling, one a seed; of all but the smallest factor only
        that of the first seed.
    static : dict of int to dict of int to tuple of ScaledRun
        Per factor exponent and exponent of c * S the runs with this static scale, likewise.
    dynamic : dict of int to tuple of ScaledRun
        Per exponent of the first scale the runs with a dynamic scale and the smallest factor, one a seed.
    calm : ScaledRun
        The run in float32 that is as long as those with accidents, without one.
    accidents : dict of str to tuple of ScaledRun
        Per accident a run in float32, then one for each of `RULES`.

    """

    layout: ClassVar = Layout(
        "experiment loss_scaling", version=2, derived=("judged", "searches", "plateau", "undecided")
    )

    config: LossScalingConfig
    float32: dict[int, tuple[ScaledRun, ...]]
    static: dict[int, dict[int, tuple[ScaledRun, ...]]]
    dynamic: dict[int, tuple[ScaledRun, ...]]
    calm: ScaledRun
    accidents: dict[str, tuple[ScaledRun, ...]]

    @property
    def judged(self) -> dict[int, PairedRatio]:
        """Final losses beside float32's, by the exponents of c * S that were tried with several seeds, ascending."""
        runs = self.static[self.config.least]
        return {k: self._paired(runs[k]) for k in sorted(self.config.judged)}

    @property
    def searches(self) -> dict[int, PairedRatio]:
        """Likewise of dynamic scales, by the exponents of their first scale."""
        return {start: self._paired(runs) for start, runs in self.dynamic.items()}

    def _paired(self, runs: tuple[ScaledRun, ...]) -> PairedRatio:
        return beside(runs, self.float32[self.config.least])

    @property
    def plateau(self) -> tuple[int, int] | None:
        """The ends of the longest stretch of judged exponents that all keep float32's result, or None."""
        stretches = [
            [k for k, _ in group]
            for keeps, group in groupby(self.judged.items(), key=lambda item: bool(item[1].keeps))
            if keeps
        ]
        longest = max(stretches, key=lambda ks: ks[-1] - ks[0], default=None)
        return None if longest is None else (longest[0], longest[-1])

    @property
    def undecided(self) -> tuple[int, ...]:
        """The judged exponents of which nothing can be said."""
        return tuple(k for k, ratio in self.judged.items() if ratio.finding is Finding.NOT_DECIDED)

    @property
    def dead(self) -> int | None:
        """The exponent up to which no step moved a weight with the smallest factor, or None."""
        still = takewhile(lambda item: all(map(_stands_still, item[1])), sorted(self.static[self.config.least].items()))
        return max((k for k, _ in still), default=None)

    @property
    def cliff(self) -> int | None:
        """The exponent from which on every step was skipped with the smallest factor, or None."""
        falling = sorted(self.static[self.config.least].items(), reverse=True)
        lost = takewhile(lambda item: all(run.skipped.all() for run in item[1]), falling)
        return min((k for k, _ in lost), default=None)

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        config, bounds = self.config, self.plateau
        target, runs = self.float32[config.least][0], self.static[config.least]
        if bounds is None:
            text = f"no loss scale is known to keep float32's final loss of {target.final_loss:.2g} in {config.format}"
        else:
            n = sum(bounds[0] <= k <= bounds[1] for k in self.judged)
            text = (
                f"{config.format} keeps float32's final loss ({target.final_loss:.2g}) where loss factor times scale "
                f"is 2^{bounds[0]} to 2^{bounds[1]} ({n} tried)"
            )
        if self.undecided:
            text += f", not decided at {' and '.join(f'2^{k}' for k in self.undecided)}"
        if self.dead is not None:
            text += f"; up to 2^{self.dead} no weight moves"
        ruined = [run.final_loss for of_seeds in runs.values() for run in of_seeds if run.outcome == "ruined"]
        if ruined:
            text += f", above that it ends at up to {max(ruined):.2g} (untrained {target.initial_loss:.2g})"
        if self.cliff is not None:
            text += f"; from 2^{self.cliff} on every step overflows"
        searches = ", ".join(f"{ratio.text} from S = 2^{start}" for start, ratio in self.searches.items())
        return f"{text}; a dynamic scale: {searches}" if searches else text


def _stands_still(run: ScaledRun) -> bool:
    """Return whether every step was made, and none moved a weight."""
    return run.final_loss == run.initial_loss and not run.skipped.any()


def beside(runs: Sequence[ScaledRun], controls: Sequence[ScaledRun]) -> PairedRatio:
    """Compare final losses with those of controls that have the same seeds in the same order, of which may be more.

    A run that its scaler ended has none.
    """
    pairs = list(zip(runs, controls, strict=False))
    return PairedRatio.of(
        [math.nan if run.stopped else run.final_loss for run, _ in pairs],
        [control.final_loss for _, control in pairs],
        [control.initial_loss for _, control in pairs],
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
        seed: int,
        factor: float = 1.0,
        accident: Accident | None = None,
    ) -> ScaledRun:
        config, data = self.config, self.train_part
        model = MLP((data.inputs.shape[1], *config.hidden, int(data.labels.max()) + 1))
        parameters = model.init(seed)
        shapes = {name: array.shape for name, array in parameters.items()}
        recipe = Recipe(model, Adam(config.learning_rate, epsilon=config.epsilon), storage, shapes)
        state = begin(parameters, recipe, scaler)
        initial_loss = loss_in_float64(model, parameters, data)
        records: list[StepRecord] = []
        for step, rows in enumerate(batches(len(data.labels), config.batch_size, steps, seed)):
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
        losses = np.array([record.loss for record in records])
        return ScaledRun(
            name=name,
            factor=factor,
            losses=losses,
            loss_scales=np.array([record.loss_scale for record in records]),
            max_abs=np.array([record.max_abs for record in records]),
            skipped=np.array([record.skipped for record in records], bool),
            initial_loss=initial_loss,
            final_loss=loss_in_float64(model, final, data),
            test_accuracy=test_accuracy,
            nonfinite_losses=int(losses.size - np.isfinite(losses).sum()),
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
        Called with the number of runs done and of all runs; those of seeds that are not needed count as done.

    Raises
    ------
    ValueError
        The configuration is none that can be run; the message names the accepted values.

    """
    config = config or LossScalingConfig()
    trainer = _Trainer(config, *split(digits()))
    narrow = StorageConfig.parse(f"weights={config.format},gradients=fp32,master=fp32,transient_weights=yes")
    others = [c for c in config.factors if c != config.least]
    several = 1 + len(config.judged) + len(config.starts)
    total = several * config.more_seeds + len(set(config.products) - set(config.judged))
    total += len(others) * (1 + len(config.products)) + 1 + len(config.accidents) * (1 + len(RULES))
    done = 0

    def finished(runs: int = 1) -> None:
        nonlocal done
        done += runs
        if progress is not None:
            progress(done, total)

    def float32_run(seed: int, c: int = config.least) -> ScaledRun:
        return trainer.run("float32", FP32, NoLossScale(), config.steps, seed=seed, factor=2.0**c)

    def static_run(seed: int, k: int, c: int = config.least) -> ScaledRun:
        scaler = StaticLossScale(2.0 ** (k - c))
        return trainer.run(f"static 2^{k - c}", narrow, scaler, config.steps, seed=seed, factor=2.0**c)

    def dynamic_run(seed: int, start: int) -> ScaledRun:
        scaler = DynamicLossScale.torch(2.0**start, window=config.window)
        return trainer.run(f"torch from 2^{start}", narrow, scaler, config.steps, seed=seed, factor=2.0**config.least)

    controls: list[ScaledRun] = []

    def judged(train: Callable[[int], ScaledRun]) -> tuple[ScaledRun, ...]:
        """Train with so many seeds as it takes."""
        runs: list[ScaledRun] = []
        for seeds in (config.seeds, config.more_seeds):
            controls.extend(float32_run(config.seed + i) for i in range(len(controls), seeds))
            runs.extend(train(config.seed + i) for i in range(len(runs), seeds))
            if not beside(runs, controls).needs_more:
                break
        finished(config.more_seeds)
        return tuple(runs)

    def once(trained: ScaledRun) -> tuple[ScaledRun]:
        finished()
        return (trained,)

    static = {
        config.least: {
            k: judged(partial(static_run, k=k)) if k in config.judged else once(static_run(config.seed, k))
            for k in config.grid
        }
    }
    dynamic = {start: judged(partial(dynamic_run, start=start)) for start in config.starts}
    float32 = {config.least: tuple(controls)}
    finished(config.more_seeds)
    for c in others:
        float32[c] = once(float32_run(config.seed, c))
        static[c] = {k: once(static_run(config.seed, k, c)) for k in config.products}
    (calm,) = once(trainer.run("float32", FP32, NoLossScale(), config.accident_steps, seed=config.seed))
    accidents = {}
    for accident in config.accidents:
        rules = {"float32": (FP32, NoLossScale()), **{name: (narrow, rule) for name, rule in RULES.items()}}
        accidents[accident.name] = tuple(
            once(trainer.run(name, storage, rule, config.accident_steps, seed=config.seed, accident=accident))[0]
            for name, (storage, rule) in rules.items()
        )
    in_order = {c: float32[c] for c in config.factors}
    return LossScalingResult(config, in_order, {c: static[c] for c in config.factors}, dynamic, calm, accidents)
