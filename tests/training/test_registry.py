"""An optimizer that nobody knew is trained, weighed, audited and flown with, by its entry in the registry alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

import click
import numpy as np
import pytest

from precision_lab import (
    CONFIGURATIONS,
    Adam,
    StorageConfig,
    TrainingConfig,
    World,
    audit_hyperparameters,
    memory_ledger,
    preflight,
    train,
)
from precision_lab.cli.training import hyperparameters as command
from precision_lab.experiments.storage import Setting
from precision_lab.numerics.codec import codec
from precision_lab.numerics.rounding import Array
from precision_lab.training.memory import ledgers
from precision_lab.training.optimizers import (
    BELOW_ONE,
    NOT_NEGATIVE,
    OPTIMIZERS,
    POSITIVE,
    Direction,
    Optimizer,
    by_symbol,
    hyperparameters,
    known,
    make_optimizer,
    mean_square,
    usual_values,
)
from precision_lab.training.update_rules import rounded


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """Without momentum (Tieleman, Hinton 2012)."""

    normalizes: ClassVar[bool] = True

    learning_rate: float = field(metadata=known("lr", POSITIVE, 1e-2))
    beta2: float = field(default=0.99, metadata=known("beta2", BELOW_ONE, 0.99))
    epsilon: float = field(default=1e-8, metadata=known("eps", NOT_NEGATIVE, 1e-8))
    weight_decay: float = field(default=0.0, metadata=known("weight_decay", NOT_NEGATIVE, 0.0))

    @property
    def moments(self) -> tuple[str, ...]:
        return ("second_moment",)

    def direction(
        self, t: int, held: Mapping[str, Array], g: Array, storage: StorageConfig, learning_rate: float
    ) -> Direction:
        v, moments = mean_square(held, g, self.beta2, storage.second_moment)
        to = codec(storage.second_moment)
        d = to.round(to.round(np.sqrt(v)) + rounded(self.epsilon, storage.second_moment))
        return Direction(np.float32(-learning_rate), g / d, moments)


@pytest.fixture
def rmsprop(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", RMSProp)
    return "rmsprop"


@pytest.mark.parametrize("storage", ["fp32", "pure_bf16", "collage_plus", "autocast_bf16"])
def test_it_trains(rmsprop: str, storage: str) -> None:
    config = TrainingConfig(optimizer=rmsprop, learning_rate=1e-3, beta2=0.9, epsilon=1e-6, steps=60, storage=storage)  # type: ignore[arg-type]
    assert config.build_optimizer() == RMSProp(1e-3, 0.9, 1e-6)
    result = train(config)
    assert result.final_loss < 0.7 * result.initial_loss
    (ledger,) = ledgers([storage], rmsprop, 100).values()
    assert result.bytes_per_parameter == ledger.bytes_per_parameter


def test_it_has_a_row_in_the_ledger(rmsprop: str) -> None:
    ledger = ledgers(["collage_plus"], rmsprop, "7e9")["collage_plus"]
    assert ledger.optimizer == rmsprop
    assert [buffer.name for buffer in ledger.buffers] == [
        *("weights", "gradients", "second_moment", "second_word", "second_moment_word")
    ]
    with pytest.raises(ValueError, match="sgd, momentum, adam, adamw, rmsprop"):
        ledgers([], "lion", 1)


def test_it_is_audited(rmsprop: str) -> None:
    found = audit_hyperparameters("bf16", optimizer=rmsprop, beta2=0.999, weight_decay=0.1)
    assert found.hyperparameters == {"lr": 1e-2, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    assert found.configured == RMSProp(1e-2, 0.999, 1e-8, 0.1)
    assert [finding.expression for finding in found.of(World.HELD)] == [
        *("lr", "beta2", "1 - beta2", "share of v with R(beta2*v) = v", "beta2*v + (1 - beta2)*g^2", "eps"),
        *("largest |g| lost in (1 - beta2)*g^2", "weight_decay"),
    ]
    assert "a step of lr is lost on weights above" in found["lr"].consequence
    with pytest.raises(ValueError, match="rmsprop has no beta1; it has lr, beta2, eps, weight_decay"):
        audit_hyperparameters("bf16", optimizer=rmsprop, beta1=0.9)


def test_it_is_flown_with(rmsprop: str) -> None:
    report = preflight({"w": np.ones(8)}, optimizer=rmsprop, lr=1e-4, beta2=0.9)
    assert report["fp32"].ledger.bytes_per_parameter == 12
    assert report["pure_bf16"].reasons[0].startswith("bf16 loses the updates of 100 %")
    assert report.sizes
    with pytest.raises(ValueError, match="what Adam's and SGD's updates are; for rmsprop give updates"):
        preflight({"w": np.ones(8)}, optimizer=rmsprop, optimizer_state={})


def test_it_is_named(rmsprop: str) -> None:
    assert str(Setting(rmsprop, 0.1)) == "RMSProp, lr 0.1"
    told = command.get_help(click.Context(command))
    assert "rmsprop, adamw, adam or sgd." in told
    assert "Of rmsprop, adamw and adam." in told
    with pytest.raises(ValueError, match="optimizer must be one of sgd, adam, adamw, rmsprop; got 'lion'"):
        TrainingConfig(optimizer="lion")
    with pytest.raises(ValueError, match="momentum must be 0 unless optimizer is 'sgd', got"):
        TrainingConfig(optimizer=rmsprop, momentum=0.5)
    with pytest.raises(ValueError, match="beta2 of RMSProp must be at least 0 and below 1, got"):
        TrainingConfig(optimizer=rmsprop, beta2=1.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_can_be_made_of_its_symbols(name: str) -> None:
    made = make_optimizer(name, usual_values(name))
    assert type(made) is OPTIMIZERS[name]
    assert by_symbol(made) == usual_values(name)
    by_field = {field: getattr(made, field) for field in hyperparameters(type(made))}
    assert make_optimizer(name, by_field | {"steps": 3}) == made


def test_what_is_written_out_by_hand_has_every_hyperparameter() -> None:
    """Signatures and options are for people to read; they are held to the registry here."""
    symbols = {symbol for name in OPTIMIZERS for symbol in usual_values(name)}
    names = {name for kind in OPTIMIZERS.values() for name in hyperparameters(kind)}
    assert names <= {f.name for f in fields(TrainingConfig)}
    for function in (audit_hyperparameters, preflight):
        assert symbols <= inspect.signature(function).parameters.keys()
    assert symbols <= {parameter.name for parameter in command.params}


def test_an_optimizer_is_given_by_name_or_as_it_is() -> None:
    adam = Adam(1e-4, beta2=0.99)
    assert memory_ledger(CONFIGURATIONS["fp32"], adam, 10) == memory_ledger(CONFIGURATIONS["fp32"], "adam", 10)
    with pytest.raises(ValueError, match=r"^optimizer must be one of sgd, momentum, adam, adamw; got 'rmsprop'$"):
        memory_ledger(CONFIGURATIONS["fp32"], "rmsprop", 10)
    named = audit_hyperparameters("bf16", optimizer="adam", lr=1e-4, beta2=0.99)
    assert audit_hyperparameters("bf16", optimizer=adam).to_dict() == named.to_dict()  # NaN is text there
    assert audit_hyperparameters("bf16", optimizer=adam, beta2=0.5).hyperparameters["beta2"] == 0.5
