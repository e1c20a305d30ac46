"""What may be asked, and what an audit is."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab import FloatFormat, audit_hyperparameters, get_format
from precision_lab.training.hyperparameters.finding import Finding, Severity, World, severity_of
from precision_lab.training.optimizers import OPTIMIZERS
from tests.training.hyperparameters.helpers import (
    ALL,
    DECAY,
)

ANY = st.floats(0, exclude_min=True, allow_infinity=False)
ANY_BETA = st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 5e-324, 1 - 2.0**-53]))
NARROW = [fmt for fmt in ALL if fmt.mantissa_bits < 20]  # the others take a second each at beta = 1


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NARROW), ANY, ANY_BETA, ANY_BETA, ANY, ANY, st.integers(1, 10**18))
def test_any_numbers_get_an_answer(
    fmt: FloatFormat, lr: float, beta1: float, beta2: float, eps: float, decay: float, steps: int
) -> None:
    for result in (
        audit_hyperparameters(fmt, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay, steps=steps),
        audit_hyperparameters(fmt, optimizer="sgd", lr=lr, momentum=beta1, weight_decay=decay, steps=steps),
    ):
        assert all(f.severity is severity_of(f.effect_error) for f in result.findings)
        assert all(len(f.consequence + f.advice) < 300 for f in result.findings)
        json.dumps(result.to_dict(), allow_nan=False)


def test_enormous_and_tiny_numbers() -> None:
    result = audit_hyperparameters(
        "fp16", lr=1e300, weight_decay=1e300, steps=10**9 + 1, eps=5e-324, beta1=5e-324, beta2=math.nextafter(1, 0)
    )
    assert result[DECAY].stored == -math.inf
    assert result["beta1"].stored == 0
    assert result["beta1"].severity is Severity.OK
    json.dumps(result.to_dict(), allow_nan=False)


# ---- arguments and results ----


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"optimizer": "lion"}, ["lion", "sgd, adam, adamw"]),
        ({"optimizer": None}, ["None", "adamw"]),
        ({"lr": 0}, ["lr", "above 0"]),
        ({"lr": -1e-3}, ["lr", "-0.001"]),
        ({"lr": math.nan}, ["lr", "nan"]),
        ({"lr": math.inf}, ["lr", "inf"]),
        ({"lr": "0.1"}, ["lr", "'0.1'"]),
        ({"lr": True}, ["lr", "True"]),
        ({"lr": 10**400}, ["lr", "above 0"]),
        ({"beta1": 1.0}, ["beta1", "[0, 1)"]),
        ({"beta1": math.nan}, ["beta1", "[0, 1)"]),
        ({"beta2": -0.1}, ["beta2", "[0, 1)"]),
        ({"beta2": 1.5}, ["beta2", "1.5"]),
        ({"eps": -1e-8}, ["eps", "at least 0"]),
        ({"weight_decay": -1}, ["weight_decay", "at least 0"]),
        ({"weight_decay": math.inf}, ["weight_decay", "at least 0"]),
        ({"momentum": 0.9}, ["adamw has no momentum", "beta1"]),
        ({"optimizer": "sgd", "beta2": 0.9}, ["sgd has no beta2", "lr, momentum, weight_decay"]),
        ({"optimizer": "sgd", "momentum": 1}, ["momentum", "[0, 1)"]),
        ({"steps": 0}, ["steps", "at least 1"]),
        ({"steps": 1.5}, ["steps", "1.5"]),
        ({"steps": True}, ["steps", "True"]),
    ],
)
def test_bad_arguments(asked: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as raised:
        audit_hyperparameters("bf16", **asked)
    for word in words:
        assert word in str(raised.value)


def test_bad_formats() -> None:
    with pytest.raises(ValueError, match="fp17"):
        audit_hyperparameters("fp17")
    with pytest.raises(ValueError, match="must hold 1"):
        audit_hyperparameters(FloatFormat("tiny", 3, 2, 12))


def test_a_custom_format() -> None:
    assert audit_hyperparameters(FloatFormat.ieee(6, 9), beta2=0.999)["beta2"].stored == 1 - 2**-10


@pytest.mark.parametrize("fmt", ALL, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_format_gets_an_answer(fmt: FloatFormat, optimizer: str) -> None:
    result = audit_hyperparameters(fmt, optimizer=optimizer, lr=1e-5, weight_decay=0.1)
    assert result.format is fmt
    assert set(result.worst) == set(World)
    expressions = [f.expression for f in result.of(World.HELD)]
    assert {f.expression for f in result.of(World.TORCH)} <= set(expressions)


def test_the_dictionary() -> None:
    result = audit_hyperparameters("fp8_e4m3fn", lr=1e6, steps=7)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(data) == {"format", "optimizer", "hyperparameters", "steps", "worst", "findings"}
    assert data["format"] == "fp8_e4m3fn"
    assert data["steps"] == 7
    assert data["hyperparameters"]["lr"] == 1e6
    assert data["worst"] == {"held": "fatal", "torch": "fatal"}
    assert {f["world"] for f in data["findings"]} == {"held", "torch"}
    lr = data["findings"][0]
    assert set(lr) == set(Finding.__dataclass_fields__)
    assert lr["stored"] == "nan"
    assert lr["effect_error"] == "nan"
    assert lr["severity"] == "fatal"
    assert lr["cure"] is None
    assert lr["advice"] == "keep it in fp32"


def test_findings_are_found_by_expression() -> None:
    result = audit_hyperparameters("bf16")
    assert result["beta2"].name == "beta2"
    with pytest.raises(KeyError, match=r"beta3.*beta2"):
        result["beta3"]


def test_results_are_frozen() -> None:
    result = audit_hyperparameters("bf16")
    with pytest.raises(AttributeError):
        result.steps = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        result.findings[0].stored = 3  # type: ignore[misc]
    same = audit_hyperparameters(get_format("bf16"), optimizer="adamw", lr=np.float64(1e-3), steps=np.int64(10_000))  # type: ignore[arg-type]
    assert result.to_dict() == same.to_dict()  # where there is a NaN, Python 3.13 calls no two results equal
