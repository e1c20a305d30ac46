"""What a file says about the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import TensorFileError, preflight
from precision_lab.training.preflight.report import StoredUpdate
from precision_lab.training.preflight.saved_optimizer import complete, saved_optimizer
from tests.training.preflight.helpers import BF16

ADAM = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False, "params": [0]}
MOMENTS = {0: {"exp_avg": np.ones(2), "exp_avg_sq": np.ones(2), "step": 3}}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "family", "name"),
    [("Adam", "adam", "adam"), ("AdamW", "adam", "adamw"), ("SGD", "sgd", "sgd")],
)
def test_which_optimizer_of_torch_it_is(torch: Any, tmp_path: Path, kind: str, family: str, name: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    for state in (optimizer, optimizer.state_dict(), tmp_path / "o.pt", {"x": [{"y": optimizer.state_dict()}]}):
        saved = saved_optimizer(state)
        assert saved is not None
        assert (saved.family, saved.name) == (family, name)
        assert saved.groups[0].values["lr"] == 0.1
        assert saved.groups[0].keys == ("0", "1")
        assert len(complete(saved)) == (0 if kind == "SGD" else 2)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["RAdam", "NAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop", "ASGD"])
def test_other_optimizers_are_refused_however_their_state_looks(torch: Any, kind: str) -> None:
    """RAdam's and NAdam's have the names of Adam's."""
    model = torch.nn.Linear(3, 2)
    optimizer = getattr(torch.optim, kind)(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with pytest.raises(TensorFileError, match="give updates"):
        preflight(model, optimizer_state=optimizer, lr=1e-3)


def test_a_file_that_does_not_tell_adam_from_adamw() -> None:
    saved = saved_optimizer({"state": MOMENTS, "param_groups": [ADAM]})
    assert saved is not None
    assert (saved.family, saved.name) == ("adam", None)
    report = preflight({"w": np.ones(2)}, optimizer_state={"state": MOMENTS, "param_groups": [ADAM]})
    assert (
        "adamw is assumed: the optimizer's state does not say whether it is Adam, AdamW or one like them"
        in report.notes
    )
    told = preflight({"w": np.ones(2)}, optimizer="adam", optimizer_state={"state": MOMENTS, "param_groups": [ADAM]})
    assert not any("assumed" in note for note in told.notes)
    assert report.hyperparameters == {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.torch
def test_numbers_may_be_tensors_and_an_lr_of_0_says_nothing(torch: Any, tmp_path: Path) -> None:
    tensors = {key: torch.tensor(ADAM[key], dtype=torch.float64) for key in ("lr", "eps", "weight_decay")}
    tensors["betas"] = (torch.tensor(0.9, dtype=torch.float64), torch.tensor([0.99], dtype=torch.float64))
    torch.save({"state": {}, "param_groups": [ADAM | tensors]}, tmp_path / "o.pt")
    saved = saved_optimizer(tmp_path / "o.pt")
    assert saved is not None
    assert saved.groups[0].values == {"lr": 1e-3, "eps": 1e-8, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99}
    over = {"state": MOMENTS, "param_groups": [ADAM | {"lr": 0.0, "initial_lr": 1e-3}]}
    with pytest.raises(ValueError, match="lr is not known"):
        preflight({"w": np.ones(2)}, optimizer_state=over)
    assert preflight({"w": np.ones(2)}, optimizer_state=over, lr=1e-3).hyperparameters["lr"] == 1e-3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr": "fast"}, "lr of a group must be a number"),
        ({"lr": -1.0}, "lr of a group must be a number above 0, got -1"),
        ({"betas": (0.9, 1.0)}, r"beta2 of a group must be a number in \[0, 1\)"),
        ({"eps": [1e-8, 1e-8]}, "eps of a group must be a number"),
        ({"weight_decay": float("nan")}, "weight_decay of a group must be a number"),
        ({"momentum_decay": 0.004}, "RAdam or NAdam"),
    ],
)
def test_hyperparameters_that_cannot_be(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(TensorFileError, match=words) as caught:
        saved_optimizer({"state": MOMENTS, "param_groups": [ADAM | changed]})
    assert "\n" not in str(caught.value)


def test_moments_by_name_and_nothing() -> None:
    saved = saved_optimizer({"optimizer.state.w.exp_avg": np.ones(2), "optimizer.state.w.exp_avg_sq": np.ones(2)})
    assert saved is not None
    assert set(complete(saved)) == {"w"}
    assert saved_optimizer({"w": np.ones(2)}) is None
    assert saved_optimizer({"w.exp_avg": np.ones(2)}) is None


def test_the_largest_second_moment_stands_for_the_last_with_amsgrad() -> None:
    state = {0: MOMENTS[0] | {"max_exp_avg_sq": np.full(2, 4.0)}}
    weights = {"w": np.full(2, 0.5)}
    for amsgrad, v in ((False, 1.0), (True, 4.0)):
        given = {"state": state, "param_groups": [ADAM | {"amsgrad": amsgrad, "eps": 0.0, "betas": (0.0, 0.0)}]}
        u = np.full(2, -1e-3 / np.sqrt(v), np.float32)
        assert preflight(weights, optimizer_state=given).total == preflight(weights, lr=1e-3, updates={"w": u}).total


@pytest.mark.parametrize("switch", ["correct_bias", "bias_correction"])
def test_bias_corrections_that_were_switched_off(switch: str) -> None:
    """As in older transformers and in apex, whose groups have no amsgrad."""
    group = {key: value for key, value in ADAM.items() if key != "amsgrad"} | {"eps": 0.0}
    weights, given = {"w": np.full(2, 0.5)}, {"state": MOMENTS}
    for on in (True, False):
        u = -1e-3 * ((1 / (1 - 0.9**3)) / np.sqrt(1 / (1 - 0.99**3)) if on else 1)
        found = preflight(weights, optimizer_state=given | {"param_groups": [group | {switch: on}]})
        assert found.total == preflight(weights, lr=1e-3, updates={"w": np.full(2, u, np.float32)}).total
        assert found.total[StoredUpdate(BF16)].frozen == 2 * on


def test_the_same_list_a_million_times_is_looked_into_once() -> None:
    inner: list[Any] = [0]
    for _ in range(60):
        inner = [inner] * 10
    saved = saved_optimizer({"a": inner, "b": {"state": MOMENTS, "param_groups": [ADAM]}})
    assert saved is not None
    assert set(complete(saved)) == {"0"}
