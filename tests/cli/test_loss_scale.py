"""The command loss-scale: what it prints, what it writes, what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.helpers import cells, refusal
from tests.conftest import CommandLine


@pytest.fixture
def gradients(tmp_path: Path) -> Path:
    """Four tensors whose windows can be told by hand: 2^-26 needs 2^2 in fp16, 1 stays finite up to 2^15."""
    path = tmp_path / "gradients.safetensors"
    tensors: dict[str, Any] = {
        "saved": np.array([2.0**-26, 1.0, 0.0], np.float32),
        "wide": np.array([2.0**-60, 1.0], np.float32),
        "fine": np.array([1.0, 0.5], np.float32),
        "nothing": np.zeros((0, 3), np.float32),
        "steps": np.arange(4),
    }
    save_file(tensors, path)
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    path.write_text('{"max_abs": [1.0, 0.1, null, 0.1, NaN, 1e30]}', encoding="utf-8")
    return path


def test_tensors_worst_first_and_one_scale_for_all(command_line: CommandLine, gradients: Path) -> None:
    finished = command_line("loss-scale", gradients)
    assert finished.status == 0, finished.err
    assert cells(finished.out, "saved")[4:6] == ["2^2", "2^15"]
    assert cells(finished.out, "wide")[4:6] == ["2^36", "2^15"]
    assert cells(finished.out, "nothing")[4:6] == ["any", "any"]
    assert cells(finished.out, "total")[6:] == ["33.33 / 0 / 0", "16.67 / 0 / 0"]
    order = [finished.out.index(f"│ {name} ") for name in ("wide", "saved", "fine", "nothing", "total")]
    assert order == sorted(order)
    assert "No loss scale saves everything in fp16" in finished.out
    assert "skipped gradients.safetensors: 'steps'" in finished.err


def test_the_scales_that_matter_are_named(command_line: CommandLine, gradients: Path) -> None:
    finished = command_line("loss-scale", gradients, "--margin", 3)
    assert cells(finished.out, "2^0")[-1] == "no loss scaling"
    assert cells(finished.out, "2^15")[-1] == "nothing overflows up to here"
    assert cells(finished.out, "2^36")[-1] == "nothing flushed from here"
    assert "a margin of 3 binades" in finished.out


def test_plans_for_every_format_and_no_data(command_line: CommandLine, gradients: Path, tmp_path: Path) -> None:
    from precision_lab import FORMATS

    save_file({"zeros": np.zeros(3, np.float32), "nan": np.array([np.nan], np.float32)}, tmp_path / "none.safetensors")
    for name in FORMATS:
        assert command_line("loss-scale", gradients, "-f", name).status == 0
        finished = command_line("loss-scale", tmp_path / "none.safetensors", "-f", name)
        assert "There is nothing to scale" in finished.out
        assert "inf or NaN already, at any loss scale: 1." in finished.out


def test_a_plan_is_written_and_drawn(command_line: CommandLine, gradients: Path, tmp_path: Path) -> None:
    finished = command_line(
        "loss-scale", gradients, "--json", tmp_path / "plan.json", "--figure", tmp_path / "plan.png"
    )
    assert finished.status == 0, finished.err
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["tensors"][0]["name"] == "wide"
    assert plan["total"]["largest_safe"] == 2**15
    assert plan["total"]["smallest_sufficient"] == 2**36
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_several_files_are_told_apart(command_line: CommandLine, tmp_path: Path) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.ones(2))
    finished = command_line("loss-scale", tmp_path / "a.npy", tmp_path / "b.npy")
    assert "a.npy: a" in finished.out
    assert "b.npy: b" in finished.out


def test_a_replay_shows_what_was_skipped_and_where_the_scale_moved(command_line: CommandLine, trace: Path) -> None:
    finished = command_line("loss-scale", "--replay", trace)
    assert finished.status == 0, finished.err
    assert cells(finished.out, "torch")[1:] == ["6", "4", "66.67", "2", "4", "2^16", "2^13", "2^16", "2^12", ""]
    assert "Where torch moved the loss scale" in finished.out
    assert cells(finished.out, "0") == ["0", "1", "overflow", "2^16", "2^15"]
    assert cells(finished.out, "2") == ["2", "inf, NaN", "overflow", "2^15", "2^14"]
    assert cells(finished.out, "5") == ["5", "1e+30", "overflow", "2^13", "2^12"]


def test_scalers_can_be_compared(command_line: CommandLine, trace: Path, tmp_path: Path) -> None:
    finished = command_line(
        *("loss-scale", "--replay", trace, "--scaler", "all", "--scaler", "1024", "--scaler", "torch"),
        *("--json", tmp_path / "traces.json", "--figure", tmp_path / "traces.svg"),
    )
    assert finished.status == 0, finished.err
    traces = json.loads((tmp_path / "traces.json").read_text())["traces"]
    names = ["none", "torch", "apex", "Megatron", "DeepSpeed", "jmp", "flax", "Keras 2", "Keras 3", "fairseq", "static"]
    assert [trace["scaler"] for trace in traces] == names
    for name in names:
        assert cells(finished.out, name)[1] == "6"
    assert "<svg" in (tmp_path / "traces.svg").read_text()


def test_a_scaler_at_the_end_of_the_road_says_so(command_line: CommandLine, tmp_path: Path) -> None:
    np.save(tmp_path / "trace.npy", np.full(300, np.inf))
    finished = command_line("loss-scale", "--replay", tmp_path / "trace.npy", "--scaler", "all")
    assert cells(finished.out, "DeepSpeed")[1] == "18"
    assert cells(finished.out, "DeepSpeed")[-1] == "over after step 17"
    assert cells(finished.out, "torch")[-1] == "over after step 143"
    assert cells(finished.out, "jmp")[-1] == cells(finished.out, "Keras 2")[-1] == "stuck 285 times"
    assert cells(finished.out, "fairseq")[-1] == "over after step 28"
    assert "fairseq: an overflow found the loss scale at its smallest, 2^-13: fairseq raises" in finished.out
    assert (
        "DeepSpeed: an overflow found the loss scale at its smallest, 1: DeepSpeed raises an error here."
        in finished.out
    )
    assert "torch: the loss scale has fallen to 2^-128, whose reciprocal is infinite" in finished.out


def test_long_lists_of_changes_are_cut_in_the_middle(command_line: CommandLine, tmp_path: Path) -> None:
    np.save(tmp_path / "trace.npy", np.full(120, np.inf))
    finished = command_line("loss-scale", "--replay", tmp_path / "trace.npy", "--scaler", "flax")
    assert "80 more" in finished.out
    assert cells(finished.out, "119")[-1] == "2^-104"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either FILEs of gradients or a trace"),
        (("GRADIENTS", "--replay", "TRACE"), "either FILEs of gradients or a trace"),
        (("GRADIENTS", "--scaler", "torch"), "--scaler is for --replay"),
        (("--replay", "TRACE", "--margin", "1"), "--margin, --scale and --dtype are for FILEs"),
        (("--replay", "TRACE", "--dtype", "bf16"), "--margin, --scale and --dtype are for FILEs"),
        (("GRADIENTS", "--margin", "-1"), "--margin"),
        (("GRADIENTS", "--margin", "0.5"), "--margin"),
        (("GRADIENTS", "-f", "fp17"), "fp16"),
        (("--replay", "TRACE", "-f", "fp17"), "fp16"),
        (("--replay", "TRACE", "--scaler", "pytorch"), "torch, apex, megatron"),
        (("--replay", "TRACE", "--scaler", "-2"), "positive number"),
        (("--replay", "MISSING"), "missing.json"),
        (("MISSING",), "missing.json"),
        (("--replay", "GRADIENTS"), "a trace is JSON"),
        (("GRADIENTS", "--figure", "FIGURE.txt"), ".png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_nothing_is_written(
    command_line: CommandLine, gradients: Path, trace: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    places = {"GRADIENTS": gradients, "TRACE": trace, "MISSING": tmp_path / "missing.json"}
    before = sorted(tmp_path.iterdir())
    given = [places.get(argument, argument) for argument in arguments]
    finished = command_line("loss-scale", *given, "--json", tmp_path / "out.json")
    assert words in refusal(finished)
    assert finished.out == ""
    assert sorted(tmp_path.iterdir()) == before
