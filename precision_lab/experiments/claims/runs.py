"""The trainings that several checks look at: the digits, small, each run once, and each beside fp32 of the same seed.

They round ties to even, whatever the arithmetic that a verdict is asked of: a training has no such switch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from precision_lab.experiments.loss_scaling import Accident, LossScalingConfig, ScaledRun, run
from precision_lab.experiments.paired import MORE_SEEDS, SEEDS, PairedRatio
from precision_lab.numerics import fixed
from precision_lab.numerics.rounding import Array
from precision_lab.training.config import TrainingConfig, load_data
from precision_lab.training.datasets import Dataset
from precision_lab.training.loop import train
from precision_lab.training.models import MLP, Parameters
from precision_lab.training.result import TrainingResult
from precision_lab.training.storage import StorageConfig

STEPS = 1000
LATE_STEPS = 4000
LEARNING_RATES = {"sgd": 0.01, "adam": 1e-3}

SEED_SETS: tuple[tuple[int, ...], ...] = (tuple(range(SEEDS)), tuple(range(MORE_SEEDS)))
"""The seeds of a comparison; the later ones where the deviation asks for more."""

Measure: TypeAlias = Literal["training loss", "test loss"]

_LOOKS = {"start": range(10), "end": range(LATE_STEPS - 10, LATE_STEPS)}


def config(storage: str = "fp32", optimizer: str = "adam", seed: int = 0, **setting: Any) -> TrainingConfig:
    """Return what is trained: `setting` are arguments of `TrainingConfig` that are not the usual ones here."""
    usual = {"learning_rate": LEARNING_RATES[optimizer], "steps": STEPS}
    return TrainingConfig(storage=StorageConfig.parse(storage), optimizer=optimizer, seed=seed, **(usual | setting))


def trained(storage: str, optimizer: str = "adam", seed: int = 0, **setting: Any) -> TrainingResult:
    """Return the run of `config`, which is made once."""
    return _trained(config(storage, optimizer, seed, **setting))


@cache
def _trained(config: TrainingConfig) -> TrainingResult:
    return train(config)


def paired(
    storage: str,
    optimizer: str = "adam",
    *,
    measure: Measure = "training loss",
    seeds: Sequence[int] | None = None,
    permuted: bool = False,
    **setting: Any,
) -> PairedRatio:
    """Compare the final losses of a storage configuration with fp32's, seed by seed: what every claim on runs asks.

    Parameters
    ----------
    storage, optimizer : str
        As `config`.
    measure : str
        ``training loss`` or ``test loss``: over the whole of that part, everything but the parameters in float64.
    seeds : sequence of int, optional
        Default: the first of `SEED_SETS`, or the next where they scatter.
    permuted : bool
        Of the run, not of its control.
    **setting
        As of `config`, for the run and its control.

    """

    def pair(seed: int) -> Pair:
        run = trained(storage, optimizer, seed, permuted=permuted, **setting)
        control = trained("fp32", optimizer, seed, **setting)
        return Pair(final_loss(run, measure), final_loss(control, measure), control.initial_loss)

    return compared(pair) if seeds is None else _ratio(map(pair, seeds))


class Pair(NamedTuple):
    """A loss, that of the control with the same seed, and the loss that the control began with."""

    loss: float
    control: float
    first: float


def compared(pair: Callable[[int], Pair]) -> PairedRatio:
    """Compare losses seed by seed, with as many seeds as it takes."""
    found = _ratio(map(pair, SEED_SETS[0]))
    for seeds in SEED_SETS[1:]:
        if found.needs_more:
            found = _ratio(map(pair, seeds))
    return found


def _ratio(pairs: Iterable[Pair]) -> PairedRatio:
    return PairedRatio.of(*zip(*pairs, strict=True))


def final_loss(result: TrainingResult, measure: Measure = "training loss") -> float:
    """Return the loss of a run over the training part or the test part, after its last step."""
    return result.final_loss if measure == "training loss" else result.test_loss


def mean(what: Callable[[TrainingResult], float], storage: str, optimizer: str = "adam", **setting: Any) -> float:
    """Return the mean of a number over the runs of the first seeds."""
    seeds = SEED_SETS[0]
    return math.fsum(what(trained(storage, optimizer, seed, **setting)) for seed in seeds) / len(seeds)


def lost(result: TrainingResult) -> float:
    """Return the share of the nonzero updates that a run loses."""
    return result.updates.lost_of_nonzero


def distance(result: TrainingResult) -> float:
    """Return how far weights end from where fp32's end, in units of the way that fp32's have come, Euclidean."""
    used = result.config
    control = _trained(replace(used, storage=StorageConfig.parse("fp32"), permuted=False))
    end = flat(control.parameters)
    return fixed.norm(flat(result.parameters) - end) / fixed.norm(end - flat(model().init(used.seed)))


@cache
def observed(optimizer: str = "adam") -> TrainingResult:
    """Return an fp32 run with snapshots of its first and last steps."""
    steps = tuple(step for look in _LOOKS.values() for step in look)
    return train(
        TrainingConfig(
            optimizer=optimizer, learning_rate=LEARNING_RATES[optimizer], steps=LATE_STEPS, snapshot_steps=steps
        )
    )


@cache
def gradients(when: str, kind: str = "activation_gradients") -> Array:
    """Return the nonzero gradients of the ``start`` or the ``end`` of an fp32 run, flat, in float32."""
    taken = [s for s in observed().snapshots if s.step in _LOOKS[when]]
    flat = np.concatenate([array.reshape(-1) for s in taken for array in getattr(s, kind).values()])
    nonzero: Array = flat[flat != 0]
    return nonzero


@cache
def data() -> tuple[Dataset, Dataset]:
    """Return the training part and the test part of the digits."""
    return load_data(TrainingConfig())


def model() -> MLP:
    """Return the network that all runs train."""
    built = TrainingConfig().build_model(data()[0])
    assert isinstance(built, MLP)
    return built


def flat(parameters: Parameters) -> Array:
    """Return all parameters in one float64 array."""
    return np.concatenate([array.reshape(-1) for array in parameters.values()]).astype(np.float64)


RAMP_STEPS = 300
"""Of each run of `ramp`, which begins after a third of them."""


@cache
def ramp(doublings: int, seeds: int = SEEDS) -> tuple[tuple[ScaledRun, ...], ...]:
    """Return runs in which the learning rate doubles some times: per seed one in fp32, then one for each of `RULES`."""
    accident = Accident("ramp", doublings, growth=2.0)
    nothing_else = LossScalingConfig(
        steps=3, factors=(0,), products=(0,), judged=(), starts=(), accident_steps=RAMP_STEPS, accidents=(accident,)
    )
    return tuple(run(replace(nothing_else, seed=seed)).accidents[accident.name] for seed in range(seeds))
