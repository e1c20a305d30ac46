"""The command `hyperparameters`: what it prints and writes, and what it says to bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from precision_lab import audit_hyperparameters
from precision_lab.support.plain import header
from tests.cli.helpers import in_a_terminal, one_line
from tests.conftest import CommandLine


def test_a_table_a_format(command_line: CommandLine) -> None:
    finished = command_line(
        *("hyperparameters", "-f", "bf16", "-f", "half", "-f", "fp16", "--lr", "1e-4", "--beta2", "0.999"),
        *("--optimizer", "adamw", "--eps", "1e-8", "--weight-decay", "0.1", "--steps", "10000"),
    )
    assert finished.status == 0  # also with fatal findings
    assert finished.err == ""
    assert "adamw in bf16: lr 0.0001, beta1 0.9, beta2 0.999, eps 1e-08, weight_decay 0.1, 10,000 steps" in finished.out
    assert "adamw in fp16: " in finished.out
    rows = [line for line in finished.out.splitlines() if "│ beta2  " in line]
    assert len(rows) == 2
    assert "│              1 │ fatal    │     not stored │ –" in rows[0]
    assert "0.999023438 │ note" in rows[1]
    assert "beta2 = 0.98, or keep it in fp32" in finished.out
    assert "fatal a tenth or less" in finished.out
    assert "Torch itself" not in " ".join(finished.out.split())


def test_a_step_counter_in_bf16(command_line: CommandLine) -> None:
    text = " ".join(command_line("hyperparameters", "-f", "bf16").out.replace("│", " ").split())
    assert "t, the step counter 10000 256 warning 10000 ok held: stops at 256: 1 - beta2^t stays 0.226" in text


def test_of_fp8_it_says_that_torch_has_no_arithmetic_in_it(command_line: CommandLine) -> None:
    out = " ".join(command_line("hyperparameters", "-f", "fp8_e4m3fn").out.split())
    assert "Torch itself has no arithmetic in fp8_e4m3fn: what its operations would give." in out


def test_the_defaults(command_line: CommandLine) -> None:
    finished = command_line("hyperparameters")
    assert finished.status == 0
    for fmt in ("fp16", "bf16"):
        title = f"adamw in {fmt}: lr 0.001, beta1 0.9, beta2 0.999, eps 1e-08, weight_decay 0.01, 10,000 steps"
        assert title in finished.out


def test_sgd(command_line: CommandLine) -> None:
    finished = command_line("hyperparameters", "-f", "e6m9", "--optimizer", "sgd", "--momentum", "0.9")
    assert finished.status == 0
    assert "sgd in e6m9: lr 0.001, momentum 0.9, weight_decay 0, 10,000 steps" in finished.out
    assert "momentum*m + g" in finished.out
    assert "beta2" not in finished.out


def test_json_and_a_figure(command_line: CommandLine, tmp_path: Path) -> None:
    data, figure = tmp_path / "findings.json", tmp_path / "findings.png"
    finished = command_line(
        "hyperparameters", "-f", "fp8_e4m3fn", "-f", "fp32", "--steps", 5, "--json", data, "--figure", figure
    )
    assert finished.status == 0
    expected = [audit_hyperparameters(fmt, steps=5).to_dict() for fmt in ("fp8_e4m3fn", "fp32")]
    assert json.loads(data.read_text()) == header("hyperparameter audits") | {"audits": expected}
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_sentences_are_broken_at_words(columns: int) -> None:
    output = in_a_terminal("hyperparameters", "-f", "bf16", columns=columns)
    assert "\x1b[1;31mfatal" in output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert max(map(len, plain.splitlines())) <= columns
    words = set(plain.split())
    for finding in audit_hyperparameters("bf16").findings:
        assert set(finding.consequence.split()) <= words
        assert set(finding.advice.split()) <= words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-f", "fp17"], ["fp17", "bf16"]),
        (["--optimizer", "lion"], ["lion", "sgd, adam, adamw"]),
        (["--lr", "0"], ["lr", "above 0"]),
        (["--lr", "nan"], ["lr", "above 0"]),
        (["--lr", "much"], ["much", "--lr"]),
        (["--beta2", "1"], ["beta2", "[0, 1)"]),
        (["--eps", "-1"], ["eps", "at least 0"]),
        (["--momentum", "0.9"], ["adamw has no momentum"]),
        (["--optimizer", "sgd", "--beta1", "0.9"], ["sgd has no beta1"]),
        (["--steps", "0"], ["steps", "at least 1"]),
        (["--figure", "x.bmp"], ["x.bmp", ".png"]),
        (["--json", "no/such/folder.json"], ["folder.json", "cannot write"]),
        (["surplus"], ["surplus", "--help"]),
    ],
)
def test_bad_input_gets_one_line_and_status_2(
    command_line: CommandLine, arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = [] if "--json" in arguments else ["--json", "out.json"]
    finished = command_line("hyperparameters", *arguments, *outputs)
    assert finished.status == 2
    line = one_line(finished.err)
    for word in words:
        assert word in line
    assert finished.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_help_has_examples_that_run(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = command_line("hyperparameters", "--help").out
    assert "status is 0 also where a finding is fatal" in " ".join(text.split())
    examples = [line.split()[1:] for line in text.splitlines() if line.strip().startswith("precision-lab ")]
    assert len(examples) == 3
    for arguments in examples:
        assert command_line(*arguments).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["findings.json", "findings.png"]
