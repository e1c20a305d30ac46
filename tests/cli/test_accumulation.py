"""The command `accumulation` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CommandLine


@pytest.fixture
def ones(tmp_path: Path) -> Path:
    path = tmp_path / "ones.npz"
    np.savez(path, ones=np.ones(3000, np.float32), steps=np.arange(3))
    return path


def test_it_shows_where_the_sum_stops(command_line: CommandLine, ones: Path, tmp_path: Path) -> None:
    out = tmp_path / "sums.json"
    finished = command_line("accumulation", ones, "-f", "fp16", "--json", out)
    assert finished.status == 0, finished.err
    row = next(line for line in finished.out.splitlines() if "│ ones" in line)
    assert row.split("│")[4].strip() == "32"  # 2048 of 3000
    assert json.loads(out.read_text())["tensors"][0]["sums"]["sequential"]["result"] == 2048
    assert "steps" in finished.err


def test_squares_limit_and_seed(command_line: CommandLine, ones: Path) -> None:
    finished = command_line("accumulation", ones, "--squares", "-n", 100, "--seed", 3)
    assert finished.status == 0
    assert "Sums of squares in bf16" in finished.out
    assert "│   100 │" in finished.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["{}", "-f", "fp17"], "fp17"),
        (["{}", "-n", "0"], "limit"),
        (["{}", "--seed", "-1"], "seed"),
        (["{}", "--json", "/no/such/place.json"], "place.json"),
        (["absent.npy"], "absent.npy"),
        ([], "FILE"),
    ],
)
def test_bad_input_gets_one_line(command_line: CommandLine, ones: Path, arguments: list[str], word: str) -> None:
    finished = command_line("accumulation", *(a.format(ones) for a in arguments))
    assert finished.status == 2
    assert finished.out == ""
    assert finished.err.count("\n") == 1
    assert word in finished.err
