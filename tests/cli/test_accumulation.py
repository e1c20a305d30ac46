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
    assert "Norms, the roots of sums of squares in bf16" in finished.out
    assert "│   100 │" in finished.out


def test_squares_are_those_of_a_norm(command_line: CommandLine, tmp_path: Path) -> None:
    """64 times 300: the norm is 2400, which fp16 holds; the sum of the squares, 5,760,000, it does not."""
    np.savez(tmp_path / "g.npz", g=np.full(64, 300, np.float16))
    out = tmp_path / "norms.json"
    finished = command_line("accumulation", tmp_path / "g.npz", "--squares", "-f", "fp16", "--json", out)
    row = [cell.strip() for cell in next(line for line in finished.out.splitlines() if "│ g " in line).split("│")[1:-1]]
    assert row == ["g", "64", "2.4e+03", "inf", "inf", "inf", "NaN", "NaN", "inf", "0"]
    (norm,) = json.loads(out.read_text())["tensors"]
    assert norm["exact"] == 2400
    assert norm["sums"]["fp32 accumulator"] == {"result": 2400, "relative_error": 0}
    assert "in the accumulator's format, before the cast" in " ".join(
        command_line("accumulation", "--help").out.split()
    )


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
