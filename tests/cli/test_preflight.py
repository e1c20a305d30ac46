"""The command `preflight`: what it prints, what it writes, what it says to bad input."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.helpers import row
from tests.conftest import CommandLine

HYPERPARAMETERS = ("--lr", "1e-3", "--beta2", "0.95", "--weight-decay", "0", "--eps", "1e-3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights: dict[str, np.ndarray] = {
        "firm": np.ones((2, 2), np.float32),
        "light": np.full(4, 2.0**-12, np.float32),
        "ids": np.arange(4),
    }
    save_file(weights, tmp_path / "model.safetensors")
    np.savez(tmp_path / "updates.npz", firm=np.full((2, 2), -(2.0**-5)), light=np.full(4, 2.0**-20))
    np.savez(tmp_path / "gradients.npz", firm=np.full((2, 2), 1e-9), light=np.full(4, 1e-3))
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "names.txt").write_text("firm\nlight\n")
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"a": 1}))
    return tmp_path


def test_the_verdict_and_its_tables(command_line: CommandLine, folder: Path) -> None:
    out = folder / "out.json"
    arguments = ("--storage", "pure_bf16", *HYPERPARAMETERS, "--gradients", folder / "gradients.npz", "--json", out)
    finished = command_line("preflight", folder / "model.safetensors", *arguments)
    assert finished.status == 0, finished.err
    assert "50.00" in row(finished.out, "pure_bf16 ")
    assert "loses" in row(finished.out, "pure_bf16 ")
    assert "keeps all at the start" in row(finished.out, "bf16_stochastic ")
    assert "> " not in finished.out
    assert finished.out.index("firm") < finished.out.index("light")
    assert "Loss scale for fp16" in finished.out
    assert "What this cannot know:" in finished.out
    assert finished.err == "skipped model.safetensors: 'ids': integer tensor\n"
    data = json.loads(out.read_text())
    assert data["cheapest"] is None
    assert finished.out.replace("\n", " ").startswith(data["verdict"])
    assert data["asked"] == ["pure_bf16"]


def test_recorded_updates(command_line: CommandLine, folder: Path) -> None:
    arguments = (*HYPERPARAMETERS, "--updates", folder / "updates.npz")
    finished = command_line("preflight", folder / "model.safetensors", *arguments)
    assert finished.status == 0, finished.err
    assert "lost updates %" in finished.out
    assert "keeps all" in row(finished.out, "> bf16_stochastic")
    assert finished.out.startswith("For these updates bf16_stochastic is the cheapest")
    assert "50.00" in row(finished.out, "pure_bf16 ")


def test_sgd(command_line: CommandLine, folder: Path) -> None:
    arguments = ("--optimizer", "sgd", "--lr", "0.1", "--momentum", "0.9", "--gradients", folder / "gradients.npz")
    finished = command_line("preflight", folder / "model.safetensors", *arguments, "--storage", "pure_bf16")
    assert finished.status == 0, finished.err
    assert "-lr times the gradients" in finished.out


MODEL = "{}/model.safetensors"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["CKPT"]),
        (["{}/missing.safetensors"], ["missing.safetensors", "no such file"]),
        (["{}/model.pt"], ["model.pt", "torch"]),
        ([MODEL, "--storage", "pure_bf17"], ["pure_bf17", "pure_bf16"]),
        ([MODEL, "--optimizer", "lion"], ["lion", "adamw"]),
        ([MODEL, "--momentum", "0.9"], ["momentum"]),
        ([MODEL, "--lr", "-1"], ["lr", "-1"]),
        ([MODEL, "--tolerance", "2"], ["tolerance", "2"]),
        ([MODEL, "--updates", "{}/other.npz", "--lr", "1"], ["other.npz", "'firm'"]),
        ([MODEL], ["lr is not known", "give lr"]),
        ([MODEL, "--updates", "{}/updates.npz"], ["lr is not known", "weight_decay"]),
        ([MODEL, "--lr", "1", "--parameter-names", "{}/no.txt"], ["no.txt"]),
        ([MODEL, "--lr", "1", "--parameter-names", "{}/names.txt"], ["optimizer_state"]),
        ([MODEL, "--optimizer-state", "{}/other.npz"], ["other.npz", "exp_avg"]),
        ([MODEL, "--updates", "{}/updates.npz", "--optimizer-state", "{}/other.npz"], ["not both"]),
        ([MODEL, "--optimizer", "sgd"], ["gradients"]),
        ([MODEL, "--gradients", "{}/no.npz"], ["no.npz"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_gets_one_line_status_2_and_writes_nothing(
    command_line: CommandLine, folder: Path, arguments: list[str], words: list[str]
) -> None:
    before = sorted(folder.rglob("*"))
    finished = command_line("preflight", *(a.format(folder) for a in arguments), "--json", folder / "out.json")
    assert finished.status == 2
    assert finished.err.startswith("precision-lab: error: ")
    assert finished.err.count("\n") == 1
    for word in words:
        assert word in finished.err
    assert finished.out == ""
    assert sorted(folder.rglob("*")) == before
