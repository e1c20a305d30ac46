"""The trainings that several checks look at: the digits, small, each run once.

They round ties to even, whatever the arithmetic that a verdict is asked of: a training has no such switch.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from precision_lab.experiments.loss_scaling import Accident, LossScalingConfig, LossScalingResult, run
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
KEEPS = 0.03
"""A run keeps fp32's result if its final loss is at most this share above fp32's."""

_LOOKS = {"start": range(10), "end": range(LATE_STEPS - 10, LATE_STEPS)}


@cache
def trained(storage: str, optimizer: str = "adam", seed: int = 0) -> TrainingResult:
    """Return the run of a storage configuration."""
    return train(
        TrainingConfig(
            storage=StorageConfig.parse(storage),
            optimizer=optimizer,
            learning_rate=LEARNING_RATES[optimizer],
            steps=STEPS,
            seed=seed,
        )
    )


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


@cache
def small_losses(fmt: str) -> LossScalingResult:
    """Return runs in fp32 and in a format without loss scaling, the loss multiplied by 2^-20."""
    return run(
        LossScalingConfig(
            format=fmt, steps=600, factors=(-20,), products=(-20,), starts=(0,), accident_steps=3, accidents=()
        )
    )


@cache
def ramp() -> LossScalingResult:
    """Return runs under every rule of loss scaling in which the learning rate doubles 26 times."""
    return run(
        LossScalingConfig(
            steps=3,
            factors=(0,),
            products=(0,),
            starts=(0,),
            accident_steps=600,
            accidents=(Accident("learning rate doubles for 26 steps", 26, growth=2.0),),
        )
    )
