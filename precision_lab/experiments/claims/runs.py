"""The trainings that several checks look at: the digits, small, each run once, and each beside fp32 of the same seed.

They round ties to even, whatever the arithmetic that a verdict is asked of: a training has no such switch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np

from precision_lab.experiments.loss_scaling import Accident, LossScalingConfig, ScaledRun, run
from precision_lab.experiments.paired import MORE_SEEDS, SEEDS, PairedRatio
from precision_lab.numerics import fixed
from precision_lab.numerics.rounding import Array
from precision_lab.training.config import TrainingConfig, load_data
from precision_lab.training.datasets import Dataset
from precision_lab.training.loop import loss_in_float64, train
from precision_lab.training.models import MLP, Parameters
from precision_lab.training.result import TrainingResult
from precision_lab.training.storage import StorageConfig

STEPS = 1000
LATE_STEPS = 4000
LEARNING_RATES = {"sgd": 0.01, "adam": 1e-3}
SETTING = (
    f"a perceptron with one hidden layer on handwritten digits, {STEPS:,} steps of {TrainingConfig().batch_size} "
    f"examples, Adam with lr {LEARNING_RATES['adam']:g} and beta2 {TrainingConfig().beta2:g} or SGD with lr "
    f"{LEARNING_RATES['sgd']:g}, constant"
)
"""What a verdict on runs rests on, where its reason says nothing else."""

SEED_SETS: tuple[tuple[int, ...], ...] = (tuple(range(SEEDS)), tuple(range(MORE_SEEDS)))
"""The seeds of a comparison; the later ones where the deviation asks for more."""

Measure: TypeAlias = Literal["training loss", "test loss"]

KEEPS = 0.03
"""A run keeps fp32's result if its final loss is at most this share above fp32's."""

_LOOKS = {"start": range(10), "end": range(LATE_STEPS - 10, LATE_STEPS)}


def trained(storage: str, optimizer: str = "adam", seed: int = 0, **setting: Any) -> TrainingResult:
    """Return the run of a storage configuration; `setting` are arguments of `TrainingConfig` that are not the usual."""
    usual = {"learning_rate": LEARNING_RATES[optimizer], "steps": STEPS}
    return _trained(
        TrainingConfig(storage=StorageConfig.parse(storage), optimizer=optimizer, seed=seed, **(usual | setting))
    )


@cache
def _trained(config: TrainingConfig) -> TrainingResult:
    return train(config)


def paired(storage: str, optimizer: str = "adam", *, measure: Measure = "training loss", **setting: Any) -> PairedRatio:
    """Compare the final losses of a storage configuration with fp32's, seed by seed: the criterion of every claim.

    Parameters
    ----------
    storage, optimizer : str
        As `trained`.
    measure : str
        ``training loss`` or ``test loss``: over the whole of that part, everything but the parameters in float64.
    **setting
        Arguments of `TrainingConfig`, for the run and its control.

    Returns
    -------
    PairedRatio
        Of `SEEDS` seeds, or of `MORE_SEEDS` where they scatter.

    """
    for seeds in SEED_SETS:
        runs, controls = ([trained(name, optimizer, seed, **setting) for seed in seeds] for name in (storage, "fp32"))
        found = PairedRatio.of(
            [final_loss(run, measure) for run in runs],
            [final_loss(run, measure) for run in controls],
            [run.initial_loss for run in controls],
        )
        if not found.needs_more:
            break
    return found


def final_loss(result: TrainingResult, measure: Measure = "training loss") -> float:
    """Return the loss of a run over the training part or the test part, after its last step."""
    return result.final_loss if measure == "training loss" else _test_loss(result)


@cache
def _test_loss(result: TrainingResult) -> float:
    train_part, test_part = data()
    return loss_in_float64(result.config.build_model(train_part), result.parameters, test_part)


def ratio(storage: str, optimizer: str = "adam") -> float:
    """Return the final loss over that of fp32."""
    return trained(storage, optimizer).final_loss / trained("fp32", optimizer).final_loss


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


def displacement(storage: str, optimizer: str) -> float:
    """Return how far the parameters of a run have come from where they began, Euclidean."""
    end, start = flat(trained(storage, optimizer).parameters), flat(model().init(0))
    return fixed.norm(end - start)


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
