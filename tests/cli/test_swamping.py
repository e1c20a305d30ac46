"""The command `swamping`: what it prints, what it writes, what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.helpers import row
from tests.conftest import CommandLine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose answers can be counted by hand: the gap at 1 is 2^-7 in bf16."""
    weights = {
        "firm": np.array([[1, 1], [-1, 1]], ml_dtypes.bfloat16),
        "half": np.array([1, 2.0**-20], ml_dtypes.bfloat16),
        "steps": np.arange(4),
    }
    save_file(weights, tmp_path / "weights.safetensors")
    np.savez(tmp_path / "updates.npz", half=np.full(2, 2.0**-10), firm=np.full((2, 2), -(2.0**-10)))
    np.savez(tmp_path / "others.npz", half=np.ones(3), firm=np.ones((2, 2)))
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_sizes_worst_first(command_line: CommandLine, folder: Path) -> None:
    finished = command_line(
        "swamping", "--weights", folder / "weights.safetensors", "--update-size", "1e-3", "--update-size", 2.0**-8
    )
    assert finished.status == 0, finished.err
    assert finished.out.index("firm") < finished.out.index("half")
    assert "bf16 |u|=0.001" in finished.out
    assert "bf16 |u|=0.00391" in finished.out
    # 1 comes back from a tie above, and -1 from one below
    assert "100 / 100 / 100 " in row(finished.out, "firm")
    assert "75.00 / 25.00 / 0 " in row(finished.out, "firm")
    assert "50.00 / 50.00 / 50.00 " in row(finished.out, "half")
    assert finished.err == "skipped weights.safetensors: 'steps': integer tensor\n"


def test_what_is_no_weight_is_one_line_for_each_reason(command_line: CommandLine, tmp_path: Path) -> None:
    state = {f"state.{i}.{part}": np.ones(()) for i in range(28) for part in ("exp_avg", "exp_avg_sq", "step")}
    more = {"bn.running_mean": np.ones(3), "ids": np.arange(3), "x": np.ones(4, ml_dtypes.float8_e5m2)}
    save_file({"w": np.ones(3, np.float32), **state, **more}, tmp_path / "w.safetensors")
    finished = command_line("swamping", "--weights", tmp_path / "w.safetensors", "--lr", "1e-3")
    assert finished.status == 0
    assert sorted(finished.err.splitlines()) == [
        "note: w.safetensors: 'x': fp8 without a scale beside it: read as values",
        "skipped w.safetensors: 'bn.running_mean': a buffer, no weights",
        "skipped w.safetensors: 'ids': integer tensor",
        "skipped w.safetensors: 84 tensors: state of the optimizer, no weights",
    ]
    assert "state." not in finished.out


def test_a_prefix_on_one_side_is_one_line(command_line: CommandLine, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3), b=np.ones(3))
    updates: dict[str, Any] = {"module.a": np.ones(3), "module.b": np.ones(3)}
    np.savez(tmp_path / "u.npz", **updates)
    finished = command_line("swamping", "--weights", tmp_path / "w.npz", "--updates", tmp_path / "u.npz")
    assert finished.status == 0
    assert finished.err == "note: w.npz: 2 tensors: its update: matched by name but for 'module.'\n"


def test_a_learning_rate_is_a_size_with_a_warning(command_line: CommandLine, folder: Path) -> None:
    finished = command_line("swamping", "--weights", folder / "weights.safetensors", "--lr", "1e-3", "-f", "fp16")
    assert finished.status == 0
    assert "fp16 |u|=0.001" in finished.out
    assert "Adam" in finished.out
    assert "Adam" not in command_line("swamping", "--weights", folder / "weights.safetensors", "--update-size", "1").out


def test_real_updates_json_and_figure(command_line: CommandLine, folder: Path) -> None:
    out, figure = folder / "out.json", folder / "out.png"
    files = ("--weights", folder / "weights.safetensors", "--updates", folder / "updates.npz")
    finished = command_line("swamping", *files, "--json", out, "--figure", figure, "-f", "bf16", "-f", "fp16")
    assert finished.status == 0, finished.err
    assert "100 / 100 / 0 " in row(finished.out, "firm")
    assert "50.00 / 50.00 / 0.5 " in row(finished.out, "half")
    data = json.loads(out.read_text())
    assert [t["name"] for t in data["tensors"]] == ["firm", "half"]
    assert data["total"]["formats"]["bf16"]["lost"] == 5
    assert data["total"]["formats"]["fp16"]["lost"] == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_sizes(command_line: CommandLine, folder: Path) -> None:
    figure = folder / "out.png"
    arguments = ("--weights", folder / "weights.safetensors", "--lr", "1e-3", "--figure", figure)
    assert command_line("swamping", *arguments).status == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


WEIGHTS = ["--weights", "{}/weights.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*WEIGHTS], ["--updates U", "--update-size X", "--lr X"]),
        ([*WEIGHTS, "--updates", "{}/updates.npz", "--lr", "1"], ["either --updates"]),
        (["--lr", "1"], ["--weights"]),
        ([*WEIGHTS, "--lr", "-1"], ["update size", "-1"]),
        ([*WEIGHTS, "--update-size", "nan"], ["update size", "nan"]),
        ([*WEIGHTS, "--update-size", "small"], ["small"]),
        ([*WEIGHTS, "--lr", "1", "-f", "fp17"], ["fp17"]),
        ([*WEIGHTS, "--lr", "1", "--figure", "{}/x.bmp"], ["x.bmp", "png"]),
        ([*WEIGHTS, "--lr", "1", "--figure", "{}/no/x.png"], ["cannot write"]),
        ([*WEIGHTS, "--updates", "{}/others.npz"], ["others.npz", "'half'", "shape"]),
        ([*WEIGHTS, "--updates", "{}/missing.npz"], ["missing.npz", "no such file"]),
        (["--weights", "{}/missing.npz", "--lr", "1"], ["missing.npz", "no such file"]),
        (["--weights", "{}/empty", "--lr", "1"], ["folder without tensors"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_gets_one_line_status_2_and_writes_nothing(
    command_line: CommandLine, folder: Path, arguments: list[str], words: list[str]
) -> None:
    before = sorted(folder.rglob("*"))
    finished = command_line("swamping", *(a.format(folder) for a in arguments), "--json", folder / "out.json")
    assert finished.status == 2
    assert finished.err.startswith("precision-lab: error: ")
    assert finished.err.count("\n") == 1
    for word in words:
        assert word in finished.err
    assert finished.out == ""
    assert sorted(folder.rglob("*")) == before
