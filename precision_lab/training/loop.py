"""Train a small model under a storage configuration and measure what its roundings did.

`train` turns a `TrainingConfig` into a `TrainingResult` and does nothing else: a run that diverges is a result like any
other, and a bad configuration is a ValueError before anything is computed. Two runs whose configurations differ in the
storage alone start from the same parameters and see the same batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.plain import counted, uncounted
from precision_lab.numerics import fixed
from precision_lab.numerics.codec import codec
from precision_lab.numerics.environment import require_gradual_underflow
from precision_lab.numerics.inputs import is_integer
from precision_lab.support.reading import read_small
from precision_lab.support.text import shown
from precision_lab.training.datasets import Dataset, digits, linear_regression, python_topics, split, text_dataset
from precision_lab.training.models import MLP, Array, Gradients, LeastSquares, Model, Parameters, Transformer
from precision_lab.training.models.mlp import ACTIVATIONS as MLP_ACTIVATIONS
from precision_lab.training.models.transformer import ACTIVATIONS as TRANSFORMER_ACTIVATIONS
from precision_lab.training.optimizers import SGD, Adam, AdamW, Optimizer, OptimizerState, unflatten, updated_parameters
from precision_lab.training.step import Recipe, StepRecord, TrainingState, begin, parameters_of, training_step
from precision_lab.training.storage import FP32, StorageConfig

OPTIMIZERS = ("sgd", "adam", "adamw")
"""The accepted values of `TrainingConfig.optimizer`."""

MODELS = {"mlp": "digits", "least_squares": "regression", "transformer": "topics"}
"""The accepted values of `TrainingConfig.model`, and the data that each is trained on unless it is told otherwise."""

TOPICS_WINDOWS = 2048
"""The transformer sees this many windows of `python_topics`: a final loss over all of them would take seconds."""

DIVERGENCE_FACTOR = 10.0
"""A run diverged if it ends with this many times the training loss it began with."""

_NOTHING = Gradients(0.0, {}, {})
_ACTIVATIONS = {"mlp": MLP_ACTIVATIONS, "transformer": TRANSFORMER_ACTIVATIONS}
_NUMBERS = ("learning_rate", "momentum", "beta1", "beta2", "epsilon", "weight_decay")
_INTEGERS = {"steps": 1, "batch_size": 1, "micro_batches": 1, "seed": 0, "measure_every": 1}  # and the least of each

# One test part for every run, so that runs of different seeds can be compared.
_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


@dataclass(frozen=True)
class TrainingConfig:
    """What to train, where its values are stored, and when to look.

    Attributes
    ----------
    model : str
        ``mlp`` on the handwritten digits, ``least_squares`` on a linear function of ten variables, or ``transformer``
        on the characters of a text.
    dataset : str
        ``digits`` for the MLP, ``regression`` for least squares; for the transformer ``topics``, `python_topics`
        (the first `TOPICS_WINDOWS` windows), or the path of a UTF-8 text file. Default: the first that the model takes.
    hidden : tuple of int
        Widths of the hidden layers of the MLP; ``()`` is softmax regression. Of the transformer: the number of layers
        is their count, and the first is its width.
    activation : str
        ``relu`` or ``sigmoid`` (transformer: ``relu`` or ``gelu``).
    storage : StorageConfig
        The formats; a text is parsed.
    optimizer : str
        One of `OPTIMIZERS`.
    learning_rate : float
        Positive and finite.
    momentum : float
        At least 0 and below 1; only ``sgd`` has one.
    beta1, beta2, epsilon : float
        Of ``adam`` and ``adamw``.
    weight_decay : float
        Not negative.
    steps : int
        Number of updates, at least 1.
    batch_size : int
        Examples per step, at least 1 and at most the size of the training part.
    micro_batches : int
        Parts of a batch whose gradients are added up in the format of the gradients; divides `batch_size`.
    seed : int
        Of the initialisation, the batches and stochastic rounding, from 0 to 2^64 - 1.
    snapshot_steps : tuple of int
        Steps whose gradients, parameters and updates are kept, ascending, from 0 (the first batch, at the
        initialisation) to ``steps - 1`` (the last batch, before the last update).
    histogram_steps : tuple of int
        Likewise, steps whose gradients are kept as histograms.
    measure_every : int
        What updates do to the weights is measured in every so many-th step, the first included.

    Raises
    ------
    ValueError
        If a value is none of the accepted ones.

    """

    model: str = "mlp"
    dataset: str = ""
    hidden: tuple[int, ...] = (64,)
    activation: str = "relu"
    storage: StorageConfig = FP32
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    steps: int = 2000
    batch_size: int = 64
    micro_batches: int = 1
    seed: int = 0
    snapshot_steps: tuple[int, ...] = ()
    histogram_steps: tuple[int, ...] = ()
    measure_every: int = 20

    def __post_init__(self) -> None:
        if isinstance(self.storage, str):
            object.__setattr__(self, "storage", StorageConfig.parse(self.storage))
        if not isinstance(self.storage, StorageConfig):
            raise ValueError(f"storage must be a StorageConfig or its text, got {self.storage!r}")
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}; got {self.model!r}")
        if not isinstance(self.dataset, str) or (
            self.model != "transformer" and self.dataset not in ("", MODELS[self.model])
        ):
            raise ValueError(f"dataset of {self.model} must be {MODELS[self.model]!r}, got {self.dataset!r}")
        if not isinstance(self.hidden, tuple) or not all(is_integer(width) and width >= 1 for width in self.hidden):
            raise ValueError(f"hidden must be a tuple of positive integers, got {self.hidden!r}")
        if self.model == "transformer" and not self.hidden:
            raise ValueError("hidden of a transformer must have an entry for each layer, at least one; got ()")
        accepted = _ACTIVATIONS.get(self.model, (self.activation,))
        if self.activation not in accepted:
            raise ValueError(
                f"activation of {self.model} must be one of {', '.join(accepted)}; got {self.activation!r}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not is_integer(value) and not isinstance(value, float | np.floating):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum must be 0 unless optimizer is 'sgd', got {self.momentum!r}")
        self.build_optimizer()
        for name, lowest in _INTEGERS.items():
            value = getattr(self, name)
            if not is_integer(value) or value < lowest:
                raise ValueError(f"{name} must be an integer of at least {lowest}, got {value!r}")
        if self.seed >= 2**64:  # the limit of stochastic rounding
            raise ValueError(f"seed must be below 2^64, got {self.seed!r}")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"micro_batches must divide batch_size, {self.batch_size}, got {self.micro_batches!r}")
        for name in ("snapshot_steps", "histogram_steps"):
            chosen = getattr(self, name)
            if (
                not isinstance(chosen, tuple)
                or not all(is_integer(step) and 0 <= step < self.steps for step in chosen)
                or list(chosen) != sorted(set(chosen))
            ):
                raise ValueError(
                    f"{name} must be an ascending tuple of different integers in 0..{self.steps - 1}, got {chosen!r}"
                )
        # equal configurations shall have one text: no 1 beside 1.0, and nothing of NumPy, which JSON does not take
        for name in _NUMBERS:
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in _INTEGERS:
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("hidden", "snapshot_steps", "histogram_steps"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))

    def build_optimizer(self) -> Optimizer:
        """Return the optimizer; raises its ValueErrors."""
        if self.optimizer == "sgd":
            return SGD(self.learning_rate, self.momentum, self.weight_decay)
        kind = Adam if self.optimizer == "adam" else AdamW
        return kind(self.learning_rate, self.beta1, self.beta2, self.epsilon, self.weight_decay)

    def build_model(self, data: Dataset) -> Model:
        """Return the model for a data set; raises its ValueErrors."""
        if self.model == "least_squares":
            return LeastSquares(data.inputs.shape[1])
        if self.model == "transformer":
            return Transformer(
                len(data.vocabulary),
                context=data.inputs.shape[1],
                width=self.hidden[0],
                layers=len(self.hidden),
                activation=self.activation,
            )
        return MLP((data.inputs.shape[1], *self.hidden, int(data.labels.max()) + 1), self.activation)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, the storage as its text."""
        plain = {**asdict(replace(self, storage=FP32)), "storage": str(self.storage)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the configuration that `to_dict` described; raises ValueError."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        try:
            return cls(**arguments)
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"this is no training configuration: {error}") from error


def load_data(config: TrainingConfig) -> tuple[Dataset, Dataset]:
    """Return the training part and the test part of the configuration's data set.

    Raises
    ------
    ValueError
        The text file cannot be read, is no UTF-8, or is shorter than two windows.

    """
    sets: dict[str, Callable[[], Dataset]] = {"digits": digits, "regression": linear_regression, "topics": _topics}
    name = config.dataset or MODELS[config.model]
    data = sets[name]() if name in sets else _text_file(Path(name))
    return split(data, test_fraction=_TEST_FRACTION, seed=_SPLIT_SEED)


def _topics() -> Dataset:
    data = python_topics()
    return replace(data, inputs=data.inputs[:TOPICS_WINDOWS], labels=data.labels[:TOPICS_WINDOWS])


def _text_file(path: Path) -> Dataset:
    try:
        text = read_small(path).decode("utf-8")
    except UnicodeDecodeError as error:
        why = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{shown(path)}: not a UTF-8 text: {why}; convert it first") from error
    except OSError as error:
        raise ValueError(f"{shown(path)}: {error.strerror}; dataset is 'topics' or the path of a text file") from error
    return text_dataset(text, name=path.name, source=f"the file {path.name}")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One step seen closely.

    Attributes
    ----------
    step : int
        Number of updates made before.
    loss : float
        Mean loss of the batch of this step.
    weight_gradients, activation_gradients : dict of str to float32 array
        As `precision_lab.training.models.Gradients.weights` and `.activations`, multiplied by the loss scale; of the
        last micro-batch.
    parameters : dict of str to float32 array
        Before the update: the master copy if there is one.
    updates : dict of str to float32 array
        What the optimizer added to them, before the sum was rounded; zero in a skipped step.

    """

    step: int
    loss: float
    weight_gradients: dict[str, Array]
    activation_gradients: dict[str, Array]
    parameters: dict[str, Array]
    updates: dict[str, Array]


@dataclass(frozen=True, eq=False)
class UpdateStatistics:
    """What became of the updates of some steps, measured on the arrays of the run.

    With u the update that was intended and d the one that took effect: the difference of the parameters, second words
    and compensations included, before and after.

    Attributes
    ----------
    count : int
        Elements of all measured steps.
    nonzero : int
        Of these the ones with u != 0.
    lost : int
        Of `nonzero` the ones with d == 0.
    unchanged : int
        All with d == 0.
    intended, effective, product : float
        Sums of u^2, d^2 and d u.
    ratios : ExponentHistogram
        Of |u/w| where neither is zero.

    """

    count: int
    nonzero: int
    lost: int
    unchanged: int
    intended: float
    effective: float
    product: float
    ratios: ExponentHistogram

    @property
    def lost_of_nonzero(self) -> float:
        """Share lost / nonzero; 0 where nothing is nonzero."""
        return self.lost / self.nonzero if self.nonzero else 0.0

    @property
    def imprecision(self) -> float:
        """Share of all elements that did not change (Yu et al. 2024, there in percent); 0 of nothing."""
        return self.unchanged / self.count if self.count else 0.0

    @property
    def edq(self) -> float:
        """Effective descent quality <d, u> / ||u||, pooled over the measured steps; 0 without updates."""
        return self.product / math.sqrt(self.intended) if self.intended else 0.0

    @property
    def edq_ratio(self) -> float:
        """<d, u> / ||u||^2: 1 is perfect, 0 is standstill; 0 without updates."""
        return self.product / self.intended if self.intended else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**{f: getattr(self, f) for f in _STATISTICS}, "ratios": self.ratios.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the statistics that `to_dict` described."""
        return cls(**{f: data[f] for f in _STATISTICS}, ratios=ExponentHistogram.from_dict(data["ratios"]))


class StepUpdates(NamedTuple):
    """What became of the updates of one step: as in `UpdateStatistics`.

    Attributes
    ----------
    step : int
        Which.
    intended, product : float
        Sums of u^2 and d u.

    """

    step: int
    intended: float
    product: float


_STATISTICS = ("count", "nonzero", "lost", "unchanged", "intended", "effective", "product")


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What a run came to.

    Attributes
    ----------
    config : TrainingConfig
        What was run.
    losses : float64 array, shape (steps,)
        Mean loss of the batch of each step, before its update.
    loss_scales : float64 array, shape (steps,)
        The loss scale of each step.
    skipped : bool array, shape (steps,)
        Steps without an update, because a gradient was infinite or NaN.
    initial_loss, final_loss : float
        Mean loss over the whole training part before the first and after the last step: the parameters that the
        optimizer updates (the master copy if there is one), taken as they are, everything else in float64.
    test_accuracy : float or None
        Share of the test part that is right after the last step; None where there is no such thing.
    updates : UpdateStatistics
        What updates did to the parameters.
    histograms : dict of int to dict of str to ExponentHistogram
        Per step of `config.histogram_steps` those of the gradients, of parameters and of activations, by name,
        multiplied by the loss scale; of the last micro-batch.
    bytes_per_parameter : float
        Of all arrays that live from step to step, measured.
    seconds : float
        Wall time of the steps.
    stopped : str
        Why the loss scale ended the run before its last step, empty if it did not; the arrays are then shorter.
    by_step : tuple of StepUpdates
        What `updates` pools, one for each measured step.
    snapshots : tuple of Snapshot
        One for each of `config.snapshot_steps`; not part of `to_dict`.
    parameters : dict of str to float32 array
        After the last step; not part of `to_dict`.

    """

    config: TrainingConfig
    losses: npt.NDArray[np.float64]
    loss_scales: npt.NDArray[np.float64]
    skipped: npt.NDArray[np.bool_]
    initial_loss: float
    final_loss: float
    test_accuracy: float | None
    updates: UpdateStatistics
    histograms: dict[int, dict[str, ExponentHistogram]]
    bytes_per_parameter: float
    seconds: float
    stopped: str = ""
    by_step: tuple[StepUpdates, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    parameters: dict[str, Array] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether the final loss is not finite or exceeds `DIVERGENCE_FACTOR` times the initial loss.

        A network whose units all died has not diverged in this sense: it ends near the loss of guessing, with the
        accuracy of guessing.
        """
        # written so that a final loss of NaN counts
        return not self.final_loss <= DIVERGENCE_FACTOR * self.initial_loss

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; infinities and NaN as text."""
        return {
            "config": self.config.to_dict(),
            "losses": [_json(x) for x in self.losses.tolist()],
            "loss_scales": [_json(x) for x in counted(self.loss_scales.tolist())],
            "skipped": np.flatnonzero(self.skipped).tolist(),
            "initial_loss": _json(self.initial_loss),
            "final_loss": _json(self.final_loss),
            "test_accuracy": self.test_accuracy,
            "updates": {key: _json(value) for key, value in self.updates.to_dict().items()},
            "by_step": [[_json(x) for x in step] for step in self.by_step],
            "histograms": {
                str(step): {name: histogram.to_dict() for name, histogram in of_step.items()}
                for step, of_step in self.histograms.items()
            },
            "bytes_per_parameter": self.bytes_per_parameter,
            "seconds": self.seconds,
            "stopped": self.stopped,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the result that `to_dict` described, without snapshots and parameters; raises ValueError."""
        try:
            losses = np.array([_unjson(x) for x in data["losses"]], np.float64)
            scales = np.array([_unjson(x) for x in uncounted(data["loss_scales"], losses.size)], np.float64)
            skipped = np.zeros(losses.size, bool)
            skipped[data["skipped"]] = True
            return cls(
                config=TrainingConfig.from_dict(data["config"]),
                losses=losses,
                loss_scales=scales,
                skipped=skipped,
                initial_loss=_unjson(data["initial_loss"]),
                final_loss=_unjson(data["final_loss"]),
                test_accuracy=None if data["test_accuracy"] is None else _unjson(data["test_accuracy"]),
                updates=UpdateStatistics.from_dict(
                    {k: v if k == "ratios" else _unjson(v) for k, v in data["updates"].items()}
                ),
                histograms={
                    int(step): {name: ExponentHistogram.from_dict(h) for name, h in of_step.items()}
                    for step, of_step in data["histograms"].items()
                },
                bytes_per_parameter=_unjson(data["bytes_per_parameter"]),
                seconds=_unjson(data["seconds"]),
                stopped=str(data["stopped"]),
                by_step=tuple(StepUpdates(*map(_unjson, step)) for step in data["by_step"]),
            )
        except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            raise ValueError(f"this is no training result: {error!r}") from error


def _json(x: Any) -> Any:
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _unjson(x: Any) -> Any:
    """Return the number that `_json` wrote, no other value, and none that a float64 cannot be divided by."""
    if isinstance(x, str):
        return float(x)
    if type(x) not in (int, float) or (abs(x) >= 2**63 and type(x) is int):
        raise TypeError(f"no number: {str(x)[:40]}")
    return x


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
    ratios: ExponentHistogram = field(default_factory=ExponentHistogram.empty)
    by_step: list[StepUpdates] = field(default_factory=list)

    def add(self, step: int, before: Array, after: Array, update: Array) -> None:
        with np.errstate(all="ignore"):
            d, u = after - before, update.astype(np.float64)
            still, moving = d == 0, u != 0
            ratio = np.abs(u / before)
            self.count += d.size
            self.nonzero += int(np.count_nonzero(moving))
            self.lost += int(np.count_nonzero(still & moving))
            self.unchanged += int(np.count_nonzero(still))
            self.by_step.append(StepUpdates(step, fixed.dot(u, u), fixed.dot(d, u)))
            self.intended += self.by_step[-1].intended
            self.effective += fixed.dot(d, d)
            self.product += self.by_step[-1].product
        self.ratios += ExponentHistogram.of(ratio[moving & (before != 0)])

    def frozen(self) -> UpdateStatistics:
        return UpdateStatistics(**{f: getattr(self, f) for f in _STATISTICS}, ratios=self.ratios)


_WORDS = ("compensation", "second_word")


def _values(state: OptimizerState, storage: StorageConfig) -> Array:
    """Return the parameters in float64, what is kept beside them added."""
    values = updated_parameters(state, storage).astype(np.float64)
    for word in _WORDS:
        if word in state.buffers:
            values += codec(storage.weights).decode(state.buffers[word])
    return values


def batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
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
    return _shuffled_epochs(count, batch_size, steps, np.random.default_rng((seed, 1)))


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

    """
    train_part, test_part = load_data(config)
    model = config.build_model(train_part)
    schedule = batches(len(train_part.labels), config.batch_size, config.steps, config.seed)
    parameters = model.init(config.seed)
    shapes = {name: array.shape for name, array in parameters.items()}
    recipe = Recipe(model, config.build_optimizer(), config.storage, shapes, config.seed)
    state = begin(parameters, recipe)
    initial_loss = loss_in_float64(model, parameters_of(state, recipe), train_part)

    records: list[StepRecord] = []
    snapshots: list[Snapshot] = []
    histograms: dict[int, dict[str, ExponentHistogram]] = {}
    sums = _Sums()
    started = time.perf_counter()
    for step, rows in enumerate(schedule):
        if state.scaler.ended:
            break
        before = state
        state, record = training_step(
            state, recipe, train_part.inputs[rows], train_part.labels[rows], micro_batches=config.micro_batches
        )
        if step % config.measure_every == 0 and record.intended is not None:
            old, new = (_values(s.optimizer, config.storage) for s in (before, state))
            sums.add(step, old, new, record.intended)
        if step in config.snapshot_steps:
            snapshots.append(_snapshot(step, before, record, recipe))
        if step in config.histogram_steps:
            both = record.gradients.weights | record.gradients.activations
            histograms[step] = {name: ExponentHistogram.of(array) for name, array in both.items()}
        records.append(replace(record, gradients=_NOTHING, intended=None))
        if progress is not None:
            progress(step + 1)
    seconds = time.perf_counter() - started

    final = parameters_of(state, recipe)
    with np.errstate(over="ignore", invalid="ignore"):
        test_accuracy = model.accuracy(final, test_part.inputs, test_part.labels)
    return TrainingResult(
        config=config,
        losses=np.array([record.loss for record in records]),
        loss_scales=np.array([record.loss_scale for record in records]),
        skipped=np.array([record.skipped for record in records], bool),
        initial_loss=initial_loss,
        final_loss=loss_in_float64(model, final, train_part),
        test_accuracy=test_accuracy,
        updates=sums.frozen(),
        by_step=tuple(sums.by_step),
        histograms=histograms,
        bytes_per_parameter=state.optimizer.nbytes / sum(array.size for array in parameters.values()),
        seconds=seconds,
        stopped=state.scaler.reason if len(records) < config.steps else "",
        snapshots=tuple(snapshots),
        parameters=final,
    )


def loss_in_float64(model: Model, parameters: Parameters, data: Dataset) -> float:
    """Return the mean loss over a data set, the parameters taken as they are, everything else in float64."""
    require_gradual_underflow()
    wide = {name: array.astype(np.float64) for name, array in parameters.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        return model.loss(wide, data.inputs, data.labels)


def _snapshot(step: int, before: TrainingState, record: StepRecord, recipe: Recipe) -> Snapshot:
    parameters = parameters_of(before, recipe)
    if record.intended is None:
        updates: dict[str, Array] = {name: np.zeros_like(array) for name, array in parameters.items()}
    else:
        updates = unflatten(record.intended, recipe.shapes)
    return Snapshot(step, record.loss, record.gradients.weights, record.gradients.activations, parameters, updates)


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
