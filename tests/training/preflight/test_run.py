"""What a pre-flight takes, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab import TensorFileError, preflight
from precision_lab.training.preflight.run import preflight as run
from precision_lab.training.storage import CONFIGURATIONS
from tests.training.preflight.helpers import adam_files, ask


def test_the_name_of_the_package_is_that_of_the_function() -> None:
    assert preflight is run


class Module:
    """Looks like torch.nn.Module where it matters."""

    def named_parameters(self) -> Any:
        return iter([("layer.weight", np.ones((2, 2), np.float32)), ("layer.bias", np.zeros(2, ml_dtypes.bfloat16))])


def test_a_module_is_its_named_parameters() -> None:
    report = ask(Module())
    assert [(t.info.name, t.info.dtype, t.info.shape) for t in report.tensors] == [
        ("layer.weight", "float32", (2, 2)),
        ("layer.bias", "bfloat16", (2,)),
    ]
    assert report.labels == ("layer.weight", "layer.bias")


def test_progress_and_json(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    adam_files(tmp_path)
    report = ask(tmp_path / "w.safetensors", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (90, 90)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["verdict"] == report.verdict == str(report)
    assert data["cheapest"] is None
    assert data["groups"][0]["origins"]["beta1"] == "torch's default"
    assert {c["name"] for c in data["candidates"]} == set(CONFIGURATIONS)
    with pytest.raises(KeyError, match="pure_bf16"):
        report["nonsense"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"storage": "pure_bf17"}, "pure_bf17"),
        ({"lr": -1.0}, "lr must be a number above 0"),
        ({"optimizer": "lion"}, "adamw"),
        ({"momentum": 0.9}, "adamw has no momentum"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"updates": {"w": np.ones(3)}}, "shape"),
        ({"updates": {"v": np.ones(2)}}, "'w'"),
        ({"updates": {"w": np.ones(2)}, "optimizer_state": {}}, "not both"),
        ({"optimizer_state": {"w": np.ones(2)}}, "no Adam moments"),
        ({"optimizer_state": {"v.exp_avg": np.ones(2), "v.exp_avg_sq": np.ones(2)}}, "moments of 'v'"),
        ({"optimizer_state": {"w.exp_avg": np.ones(3), "w.exp_avg_sq": np.ones(2)}}, "shape"),
        ({"optimizer_state": {"0.exp_avg": np.ones(3), "0.exp_avg_sq": np.ones(3)}}, "numbered, not named"),
        ({"parameter_names": ["w"]}, "give optimizer_state"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        ask({"w": np.ones(2)}, **options)
    assert "\n" not in str(caught.value)


def test_sgd_needs_to_know_the_updates() -> None:
    with pytest.raises(ValueError, match="give gradients, or updates"):
        preflight({"w": np.ones(2)}, optimizer="sgd", lr=0.1)
    with pytest.raises(ValueError, match="no momentum of SGD"):
        preflight({"w": np.ones(2)}, optimizer="sgd", lr=0.1, optimizer_state={})


@pytest.mark.parametrize("weights", [{}, {"w": np.arange(3)}, {"w": np.zeros(0)}])
def test_no_weights(weights: Any) -> None:
    with pytest.raises(TensorFileError, match="no weights"):
        ask(weights)


@pytest.mark.parametrize("weights", [3, None, {"w": "text"}, {"w": [None]}])
def test_what_is_no_model(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"mapping of names|array of numbers"):
        ask(weights)


def test_codes_are_no_weights() -> None:
    fp8 = ml_dtypes.float8_e4m3fn
    codes = {"l.weight": np.ones((4, 4), fp8), "l.weight_scale_inv": np.ones((1, 1), np.float32)}
    with pytest.raises(TensorFileError, match=r"no weights: a tensor: codes: .* dequantize them to bf16"):
        ask(codes)
    report = ask(codes | {"norm.weight": np.ones(3, np.float32)})
    assert [tensor.info.name for tensor in report.tensors] == ["norm.weight"]
    assert [info.name for info in report.skipped] == ["l.weight"]


def test_updates_and_gradients_under_names_that_wrappers_have_changed() -> None:
    w = np.linspace(1, 2, 64, dtype=np.float32)
    plain, wrapped = {"a.w": w, "b.w": w}, {"module.a.w": w * 1e-3, "module.b._orig_mod.w": w * 1e-3}
    unwrapped = {"a.w": w * 1e-3, "b.w": w * 1e-3}
    for kind, options in (("updates", {}), ("gradients", {"optimizer": "sgd", "beta2": None, "eps": None})):
        expected = ask(plain, **{kind: unwrapped}, **options)
        report = ask(plain, **{kind: wrapped}, **options)
        assert report.total == expected.total
        assert "matched by name but for '_orig_mod.' and 'module.'" in report.updates
        assert "matched" not in expected.updates
    with pytest.raises(TensorFileError, match="differ only by what wrappers"):
        ask({"a.w": w}, updates={"module.a.w": w, "_orig_mod.a.w": w})
