"""What a training run is: data, model, optimizer, storage, and how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from precision_lab.support.arguments import check_integer, is_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.reading import read_small
from precision_lab.support.text import shown
from precision_lab.training.datasets import (
    CHANGE,
    Dataset,
    digits,
    fine_tuning_task,
    linear_regression,
    python_topics,
    query_matrix,
    split,
    text_dataset,
)
from precision_lab.training.models import MLP, FineTuning, LeastSquares, Model, Transformer
from precision_lab.training.models.mlp import ACTIVATIONS as MLP_ACTIVATIONS
from precision_lab.training.models.transformer import ACTIVATIONS as TRANSFORMER_ACTIVATIONS
from precision_lab.training.optimizers import OPTIMIZERS, Optimizer, hyperparameters, make_optimizer
from precision_lab.training.schedule import CONSTANT, Schedule
from precision_lab.training.storage import FP32, StorageConfig

MODELS = {"mlp": "digits", "least_squares": "regression", "transformer": "topics", "fine_tuning": "minilm"}
"""The accepted values of `TrainingConfig.model`, and the data that each is trained on unless it is told otherwise."""

TOPICS_WINDOWS = 2048
"""The transformer sees this many windows of `python_topics`: a final loss over all of them would take seconds."""

_ACTIVATIONS = {"mlp": MLP_ACTIVATIONS, "transformer": TRANSFORMER_ACTIVATIONS}
_NUMBERS = tuple(dict.fromkeys(name for kind in OPTIMIZERS.values() for name in hyperparameters(kind)))
_INTEGERS = {"steps": 1, "batch_size": 1, "micro_batches": 1, "seed": 0, "measure_every": 1}  # and the least of each

_STEPS = {"snapshot_steps": 0, "histogram_steps": 0, "loss_steps": 1}  # and what they count from
_FLAGS = ("permuted", "against_fp32")

# one test part for every run, so that runs of different seeds can be compared
_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


@dataclass(frozen=True)
class TrainingConfig(PlainData):
    """What to train, where its values are stored, and when to look.

    Attributes
    ----------
    model : str
        ``mlp`` on the handwritten digits, ``least_squares`` on a linear function of ten variables with some noise,
        ``transformer`` on the characters of a text, or ``fine_tuning`` of a matrix of a language model.
    dataset : str
        ``digits`` for the MLP, ``regression`` for least squares, ``minilm`` (`query_matrix`; what is to be learned is
        drawn from the seed) for fine-tuning; for the transformer ``topics``, `python_topics`
        (the first `TOPICS_WINDOWS` windows), or the path of a UTF-8 text file. Default: the first that the model takes.
    hidden : tuple of int
        Widths of the hidden layers of the MLP; ``()`` is softmax regression. Of the transformer: the number of layers
        is their count, and the first is its width.
    activation : str
        ``relu`` or ``sigmoid`` (transformer: ``relu`` or ``gelu``).
    tied : bool
        Whether the transformer's logits come from its embeddings; False for the others.
    storage : StorageConfig
        The formats; a text is parsed.
    optimizer : str
        One of `optimizers.OPTIMIZERS`.
    learning_rate : float
        Positive and finite.
    schedule : Schedule
        Which share of it each step takes, multiplied in float64; a text is parsed. Default: all of it, always.
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
    permuted : bool
        Whether the rows of each batch are put into another order, drawn from a stream of its own: the batches have the
        same examples, so what differs from the run without is the order of sums, and how much is the noise floor.
    snapshot_steps : tuple of int
        Steps whose gradients, parameters and updates are kept, ascending, from 0 (the first batch, at the
        initialisation) to ``steps - 1`` (the last batch, before the last update).
    histogram_steps : tuple of int
        Likewise, steps whose gradients are kept as histograms.
    measure_every : int
        What updates do to the weights is measured in every so many-th step, the first included.
    loss_steps : tuple of int
        Numbers of steps, ascending, from 1 to `steps`, after which the loss over the whole training part is taken too.
    against_fp32 : bool
        Whether the updates are held also against those of an optimizer in float32 with moments of its own, which gets
        the same gradients (`UpdateStatistics.edq_ratio_fp32`).

    Raises
    ------
    ValueError
        If a value is none of the accepted ones.

    """

    layout: ClassVar = Layout(partial=True)

    model: str = "mlp"
    dataset: str = ""
    hidden: tuple[int, ...] = (64,)
    activation: str = "relu"
    tied: bool = False
    storage: StorageConfig = FP32
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: Schedule = CONSTANT
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    steps: int = 2000
    batch_size: int = 64
    micro_batches: int = 1
    seed: int = 0
    permuted: bool = False
    snapshot_steps: tuple[int, ...] = ()
    histogram_steps: tuple[int, ...] = ()
    measure_every: int = 20
    loss_steps: tuple[int, ...] = ()
    against_fp32: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.storage, str):
            object.__setattr__(self, "storage", StorageConfig.parse(self.storage))
        if not isinstance(self.storage, StorageConfig):
            raise ValueError(f"storage must be a StorageConfig or its text, got {self.storage!r}")
        if isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", Schedule.parse(self.schedule))
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule must be a Schedule or its text, got {self.schedule!r}")
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
        if not isinstance(self.tied, bool) or (self.tied and self.model != "transformer"):
            raise ValueError(f"tied must be True or False, and False unless model is 'transformer'; got {self.tied!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not is_integer(value) and not isinstance(value, float | np.floating):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if self.momentum and "momentum" not in hyperparameters(OPTIMIZERS[self.optimizer]):
            owners = [repr(name) for name, kind in OPTIMIZERS.items() if "momentum" in hyperparameters(kind)]
            raise ValueError(f"momentum must be 0 unless optimizer is {' or '.join(owners)}, got {self.momentum!r}")
        self.build_optimizer()
        for name, lowest in _INTEGERS.items():
            check_integer(name, getattr(self, name), lowest)
        if self.seed >= 2**64:  # the limit of stochastic rounding
            raise ValueError(f"seed must be below 2^64, got {self.seed!r}")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"micro_batches must divide batch_size, {self.batch_size}, got {self.micro_batches!r}")
        if self.schedule.warmup > self.steps:
            raise ValueError(f"warmup of the schedule must be at most steps, {self.steps}, got {self.schedule.warmup}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, first in _STEPS.items():
            chosen, last = getattr(self, name), self.steps - 1 + first
            if (
                not isinstance(chosen, tuple)
                or not all(is_integer(step) and first <= step <= last for step in chosen)
                or list(chosen) != sorted(set(chosen))
            ):
                raise ValueError(
                    f"{name} must be an ascending tuple of different integers in {first}..{last}, got {chosen!r}"
                )
        # equal configurations shall have one text: no 1 beside 1.0, and nothing of NumPy, which JSON does not take
        for name in _NUMBERS:
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in _INTEGERS:
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("hidden", *_STEPS):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))

    def build_optimizer(self) -> Optimizer:
        """Return the optimizer; raises its ValueErrors."""
        return make_optimizer(self.optimizer, vars(self))

    def build_model(self, data: Dataset) -> Model:
        """Return the model for a data set; raises its ValueErrors."""
        if self.model == "least_squares":
            return LeastSquares(data.inputs.shape[1])
        if self.model == "fine_tuning":
            return FineTuning(query_matrix(), CHANGE)
        if self.model == "transformer":
            return Transformer(
                len(data.vocabulary),
                context=data.inputs.shape[1],
                width=self.hidden[0],
                layers=len(self.hidden),
                activation=self.activation,
                tied=self.tied,
            )
        return MLP((data.inputs.shape[1], *self.hidden, int(data.labels.max()) + 1), self.activation)


def load_data(config: TrainingConfig) -> tuple[Dataset, Dataset]:
    """Return the training part and the test part of the configuration's data set.

    Raises
    ------
    ValueError
        The text file cannot be read, is no UTF-8, or is shorter than two windows.

    """
    if config.model == "fine_tuning":
        return fine_tuning_task(query_matrix(), seed=config.seed)
    sets: dict[str, Callable[[], Dataset]] = {"digits": digits, "regression": _regression, "topics": _topics}
    name = config.dataset or MODELS[config.model]
    data = sets[name]() if name in sets else _text_file(Path(name))
    return split(data, test_fraction=_TEST_FRACTION, seed=_SPLIT_SEED)


def _regression() -> Dataset:
    # with noise: a control that comes to a loss of 1e-9 is no measure of anything
    return linear_regression(noise=0.1)


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
