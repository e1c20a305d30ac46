"""Train a small model under a storage configuration and measure what its roundings did.

`train` turns a `TrainingConfig` into a `TrainingResult` and does nothing else: a run that diverges is a result like any
other, and a bad configuration is a ValueError before anything is computed. Two runs whose configurations differ in the
storage alone start from the same parameters and see the same batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.numerics import fixed
from precision_lab.numerics.codec import codec
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.training.config import TrainingConfig, load_data
from precision_lab.training.datasets import Dataset
from precision_lab.training.flat import Views
from precision_lab.training.models import Array, Model, Parameters
from precision_lab.training.optimizer_state import Fp32Moments, OptimizerState, updated_parameters
from precision_lab.training.result import STATISTICS, Snapshot, StepUpdates, TrainingResult, UpdateStatistics
from precision_lab.training.step import (
    Recipe,
    StepRecord,
    TrainingState,
    begin,
    parameters_of,
    training_step,
    unscaling,
)
from precision_lab.training.storage import StorageConfig
from precision_lab.training.update_rules import UPDATE_RULES


@dataclass
class _Sums:
    """The statistics of updates while they are gathered."""

    count: int = 0
    nonzero: int = 0
    lost: int = 0
    unchanged: int = 0
    intended: float = 0.0
    effective: float = 0.0
    product: float = 0.0
    intended_fp32: float = 0.0
    product_fp32: float = 0.0
    ratios: ExponentHistogram = field(default_factory=ExponentHistogram.empty)
    by_step: list[StepUpdates] = field(default_factory=list)

    def add(self, step: int, before: Array, after: Array, update: Array, fp32: Array | None) -> None:
        with np.errstate(all="ignore"):
            d, u = after - before, update.astype(np.float64)
            still, moving = d == 0, u != 0
            ratio = np.abs(u / before)
            self.count += d.size
            self.nonzero += int(np.count_nonzero(moving))
            self.lost += int(np.count_nonzero(still & moving))
            self.unchanged += int(np.count_nonzero(still))
            beside = (math.nan, math.nan) if fp32 is None else _products(d, fp32.astype(np.float64))
            found = StepUpdates(step, *_products(d, u), *beside)
            self.by_step.append(found)
            self.intended += found.intended
            self.effective += fixed.dot(d, d)
            self.product += found.product
            self.intended_fp32 += found.intended_fp32
            self.product_fp32 += found.product_fp32
        self.ratios += ExponentHistogram.of(ratio[moving & (before != 0)])

    def frozen(self) -> UpdateStatistics:
        return UpdateStatistics(**{f: getattr(self, f) for f in STATISTICS}, ratios=self.ratios)


def _products(d: Array, u: Array) -> tuple[float, float]:
    return fixed.dot(u, u), fixed.dot(d, u)


def _values(state: OptimizerState, storage: StorageConfig) -> Array:
    """Return the parameters in float64, what is kept beside them added."""
    values = updated_parameters(state, storage).astype(np.float64)
    for word in UPDATE_RULES[storage.update].words_of("weights"):
        values += codec(storage.weights).decode(state.buffers[word])
    return values


def batches(
    count: int, batch_size: int, steps: int, seed: int, *, permuted: bool = False
) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of each step's batch: shuffled epochs, one after the other.

    Every epoch is a new permutation, cut into batches of `batch_size`; the rows left over at its end are dropped, so
    that every mean is over the same number of examples.

    Parameters
    ----------
    count : int
        Number of examples.
    batch_size : int
        Examples per batch, from 1 to `count`.
    steps : int
        Number of batches.
    seed : int
        The stream is that of `numpy.random.default_rng` for the pair (seed, 1), another one than the initialisation's.
    permuted : bool
        Whether the rows of each batch are put into another order, by the stream of the pair (seed, 2); which rows it
        has stays the same.

    Returns
    -------
    iterator of int64 arrays, each of shape (batch_size,)

    Raises
    ------
    ValueError
        If `batch_size` is out of range; at once, before the first batch is asked for.

    """
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must lie in 1..{count}, the number of training examples, got {batch_size}")
    rows = _shuffled_epochs(count, batch_size, steps, np.random.default_rng((seed, 1)))
    return map(np.random.default_rng((seed, 2)).permutation, rows) if permuted else rows


def train(config: TrainingConfig, *, progress: Callable[[int], None] | None = None) -> TrainingResult:
    """Train a model.

    The same configuration gives the same bits on every machine: products, sums and elementary functions are those of
    `precision_lab.numerics.fixed`. A run goes on to its last step even when its values are no longer finite, unless its
    loss scale has come to an end.

    Parameters
    ----------
    config : TrainingConfig
        What to train.
    progress : callable, optional
        Called after every step with the number of steps done, 1 to `config.steps`.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ValueError
        If `config.batch_size` exceeds the size of the training part.
    FloatingPointError
        As `precision_lab.round_to`.

    Examples
    --------
    >>> result = train(TrainingConfig(steps=20, storage="pure_bf16"))
    >>> result.bytes_per_parameter, len(result.losses)
    (4.0, 20)

    """
    train_part, test_part = load_data(config)
    model = config.build_model(train_part)
    every_batch = batches(
        len(train_part.labels), config.batch_size, config.steps, config.seed, permuted=config.permuted
    )
    parameters = model.init(config.seed)
    shapes = {name: array.shape for name, array in parameters.items()}
    recipe = Recipe(model, config.build_optimizer(), config.storage, shapes, config.seed)
    state = begin(parameters, recipe)
    initial_loss = loss_in_float64(model, parameters_of(state, recipe), train_part)

    inputs, labels = train_part.inputs, train_part.labels
    records: list[tuple[float, float, bool]] = []
    snapshots: list[Snapshot] = []
    histograms: dict[int, dict[str, ExponentHistogram]] = {}
    losses_after: dict[int, float] = {}
    sums = _Sums() if config.against_fp32 else _Sums(intended_fp32=math.nan, product_fp32=math.nan)
    size = sum(array.size for array in parameters.values())
    beside = Fp32Moments.start(size, recipe.optimizer) if config.against_fp32 else None
    started = time.perf_counter()
    for step, rows in enumerate(every_batch):
        if state.scaler.ended:
            break
        before = state
        rate = config.learning_rate * config.schedule.factor(step, config.steps)
        state, record = training_step(
            state,
            recipe,
            inputs.take(rows, axis=0),
            labels.take(rows, axis=0),
            micro_batches=config.micro_batches,
            learning_rate=rate,
        )
        if record.intended is not None:
            states, unscale = (before.optimizer, state.optimizer), unscaling(record.loss_scale)
            measured, fp32 = step % config.measure_every == 0, None
            if beside is not None:
                with np.errstate(all="ignore"):
                    if measured:
                        beside, fp32 = beside.advance(*states, recipe.kept, learning_rate=rate, unscale=unscale)
                    else:
                        beside = beside.remember(*states, recipe.kept, unscale=unscale)
            if measured:
                old, new = (_values(s, config.storage) for s in states)
                sums.add(step, old, new, record.intended, fp32)
        if step in config.snapshot_steps:
            snapshots.append(_snapshot(step, before, record, recipe))
        if step in config.histogram_steps:
            both = {**record.gradients.weights, **record.gradients.activations}
            histograms[step] = {name: ExponentHistogram.of(array) for name, array in both.items()}
        if step + 1 in config.loss_steps:
            losses_after[step + 1] = loss_in_float64(model, parameters_of(state, recipe), train_part)
        records.append((record.loss, record.loss_scale, record.skipped))
        if progress is not None:
            progress(step + 1)
    seconds = time.perf_counter() - started

    final = parameters_of(state, recipe)
    with np.errstate(over="ignore", invalid="ignore"):
        test_accuracy = model.accuracy(final, test_part.inputs, test_part.labels)
    return TrainingResult(
        config=config,
        losses=np.array([loss for loss, _, _ in records]),
        loss_scales=np.array([scale for _, scale, _ in records]),
        skipped=np.array([skipped for _, _, skipped in records], bool),
        initial_loss=initial_loss,
        final_loss=loss_in_float64(model, final, train_part),
        test_loss=loss_in_float64(model, final, test_part),
        test_accuracy=test_accuracy,
        updates=sums.frozen(),
        by_step=tuple(sums.by_step),
        histograms=histograms,
        losses_after=losses_after,
        bytes_per_parameter=state.optimizer.nbytes / size,
        seconds=seconds,
        stopped=state.scaler.reason if len(records) < config.steps else "",
        snapshots=tuple(snapshots),
        parameters=dict(final),
    )


def loss_in_float64(model: Model, parameters: Parameters, data: Dataset) -> float:
    """Return the mean loss over a data set, the parameters taken as they are, everything else in float64."""
    require_gradual_underflow()
    wide = {name: array.astype(np.float64) for name, array in parameters.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        return model.loss(wide, data.inputs, data.labels)


def _snapshot(step: int, before: TrainingState, record: StepRecord, recipe: Recipe) -> Snapshot:
    parameters = dict(parameters_of(before, recipe))
    if record.intended is None:
        updates: dict[str, Array] = {name: np.zeros_like(array) for name, array in parameters.items()}
    else:
        updates = dict(Views(record.intended, recipe.shapes))
    found = record.gradients
    return Snapshot(step, record.loss, dict(found.weights), dict(found.activations), parameters, updates)


def _shuffled_epochs(
    count: int, batch_size: int, steps: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    per_epoch = count // batch_size
    order = np.empty(0, np.int64)
    for step in range(steps):
        position = step % per_epoch
        if position == 0:
            order = rng.permutation(count)
        yield order[position * batch_size : (position + 1) * batch_size]
