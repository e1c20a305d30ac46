"""The commands `memory` and `train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from precision_lab.training.storage import CONFIGURATIONS
from tests.cli.helpers import cells
from tests.conftest import CommandLine, Finished, interrupted

SMALL = ("--steps", 40, "--seeds", 1, "--workers", 1)


def test_memory_of_all_configurations(command_line: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "ledger.json"
    finished = command_line("memory", "--parameters", "7.5e9", "--ranks", 64, "--json", out)
    assert finished.status == 0, finished.err
    data = json.loads(out.read_text())
    assert (data["kind"], data["ranks"]) == ("precision_lab memory", 64)
    assert list(data["ledgers"]) == list(data["per_rank"]) == list(CONFIGURATIONS)
    assert data["ledgers"]["master_bf16"]["total"] == 16 * 7_500_000_000
    # the figures of the ZeRO paper, in units of 10^9 bytes
    assert [round(size / 1e9, 1) for size in data["per_rank"]["master_bf16"].values()] == [120.0, 31.4, 16.6, 1.9]
    assert "ZeRO-3" in finished.out
    assert "FSDP all-gather" in finished.out


def test_memory_of_one_configuration_has_a_row_a_buffer(command_line: CommandLine) -> None:
    finished = command_line("memory", "--storage", "collage_plus", "--parameters", "1000", "--optimizer", "adam")
    assert finished.status == 0
    assert cells(finished.out, "collage_plus")[-3:] == ["12", "12", "11.7 KiB"]
    assert cells(finished.out, "second moment word") == ["second moment word", "bf16", "2", "1.95 KiB"]


def test_memory_puts_activations_apart(command_line: CommandLine) -> None:
    finished = command_line("memory", "--parameters", "1024", "--activations", "2048")
    assert finished.status == 0
    assert cells(finished.out, "fp32")[-4:] == ["16", "16", "16 KiB", "8 KiB"]
    assert cells(finished.out, "pure_bf16")[-4:] == ["8", "8", "8 KiB", "4 KiB"]
    assert cells(finished.out, "autocast_bf16")[-4:] == ["16", "18", "16 KiB", "4 KiB"]


def test_train_shows_the_control_and_what_was_asked(command_line: CommandLine, tmp_path: Path) -> None:
    out, figure, kept = tmp_path / "runs.json", tmp_path / "runs.png", tmp_path / "runs.jsonl"
    arguments = ("train", "--storage", "pure_bf16", "--storage", "weights=e6m9,master=fp32", *SMALL)
    finished = command_line(*arguments, "--json", out, "--figure", figure, "--checkpoint", kept)
    assert finished.status == 0, finished.err
    shown = [cells(finished.out, label) for label in ("fp32", "pure_bf16", "weights=e6m9,master=fp32")]
    assert [(row[1], row[4]) for row in shown] == [("control", "16"), ("not decided", "8"), ("not decided", "16")]
    assert "too short to tell" in finished.out
    assert len(json.loads(out.read_text())["outcomes"]["Adam, lr 0.001"]) == 3
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(kept.read_text().splitlines()) == 3
    again = command_line(*arguments, "--checkpoint", kept)
    assert again.out == finished.out
    assert len(kept.read_text().splitlines()) == 3


def test_train_on_processes_gives_the_same(command_line: CommandLine) -> None:
    arguments = ("train", "--storage", "bf16_stochastic", "--steps", 30, "--seeds", 2)
    assert command_line(*arguments, "--workers", 2).out == command_line(*arguments, "--workers", 1).out


def kept_configs(kept: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["config"] for line in kept.read_text().splitlines()]


def test_train_takes_a_schedule_and_constants(command_line: CommandLine, tmp_path: Path) -> None:
    kept = tmp_path / "runs.jsonl"
    options = ("--schedule", "cosine, warmup=3, final=0.1", "--beta2", "0.95", "--weight-decay", "0.1")
    small = ("--storage", "pure_bf16", "--optimizer", "adamw", *SMALL, "--checkpoint", kept)
    assert command_line("train", *options, *small).status == 0
    configs = kept_configs(kept)
    assert len(configs) == 2
    for config in configs:
        assert config["schedule"] == "cosine,warmup=3,final=0.1"
        assert (config["beta2"], config["weight_decay"]) == (0.95, 0.1)
        assert config["against_fp32"] is True
    kept.unlink()
    assert command_line("train", *small).status == 0
    assert {(c["schedule"], c["beta2"], c["weight_decay"]) for c in kept_configs(kept)} == {("constant", 0.999, 0.0)}


@pytest.mark.parametrize(("given", "seeds"), [((), 5), (("--seeds", 3), 3)])
def test_train_has_five_seeds_unless_it_is_told(
    command_line: CommandLine, tmp_path: Path, given: tuple[object, ...], seeds: int
) -> None:
    """Nothing scatters here: bf16 beside a master copy is fp32 with other gradients."""
    kept = tmp_path / "runs.jsonl"
    options = ("--storage", "autocast_bf16", "--steps", 30, "--workers", 1, "--checkpoint", kept)
    assert command_line("train", *options, *given).status == 0
    assert [config["seed"] for config in kept_configs(kept)] == [*range(seeds), *range(seeds)]


def test_train_other_models_and_data(command_line: CommandLine, tmp_path: Path) -> None:
    text = tmp_path / "novel.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 60, encoding="utf-8")
    common = ("--storage", "master_bf16", "--steps", 2, "--seeds", 1, "--batch", 8, "--workers", 1)
    assert command_line("train", "--model", "transformer", "--data", text, *common).status == 0
    finished = command_line("train", "--model", "least_squares", "--optimizer", "sgd", "--lr", "0.01", *common)
    assert finished.status == 0
    assert cells(finished.out, "fp32")[1] == "control"


def test_a_text_of_one_symbol_has_no_loss_to_compare(command_line: CommandLine, tmp_path: Path) -> None:
    """It is foretold for certain: the loss of fp32 is 0, and nothing is so many times as large."""
    (tmp_path / "a.txt").write_text("a" * 2000)
    finished = command_line(
        *("train", "--model", "transformer", "--data", tmp_path / "a.txt", "--storage", "pure_bf16", "--batch", 1),
        *("--steps", 1, "--seeds", 1, "--workers", 1, "--json", tmp_path / "out.json"),
    )
    assert finished.status == 0, finished.err
    outcomes = [one for found in json.loads((tmp_path / "out.json").read_text())["outcomes"].values() for one in found]
    found = [(one["final_loss"], one["paired"]["ratio"], one["finding"]) for one in outcomes]
    assert found == [(0, "nan", "not decided")] * 2
    assert "fp32 does not learn, 0 becomes 0" in finished.out


@pytest.mark.parametrize(("steps", "seeds"), [(5, 1), (20, 2), (60, 2)])
def test_nothing_is_judged_where_nobody_has_learned(command_line: CommandLine, steps: int, seeds: int) -> None:
    options = ("--storage", "pure_bf16", "--steps", steps, "--seeds", seeds, "--workers", 1)
    out = command_line("train", *options).out
    assert out.count("too short to tell: fp32 came from") == 2
    assert "--steps)" in out
    assert cells(out, "pure_bf16")[1] == "not decided"


def test_nothing_is_judged_of_a_text_that_nobody_has_read(command_line: CommandLine, tmp_path: Path) -> None:
    text = tmp_path / "novel.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 60, encoding="utf-8")
    data = ("--model", "transformer", "--data", text, "--batch", 8)
    out = command_line("train", *data, "--storage", "master_bf16", "--steps", 6, "--seeds", 2, "--workers", 1).out
    assert out.count("too short to tell") == 2
    assert cells(out, "master_bf16")[1] == "not decided"


def test_one_seed_decides_nothing(command_line: CommandLine) -> None:
    options = ("--storage", "master_bf16", "--steps", 200, "--workers", 1)
    out = command_line("train", *options, "--seeds", 1).out
    assert cells(out, "master_bf16")[1:4] == ["not decided", "1.00", "1"]
    assert "one seed decides nothing (give --seeds 5)" in out
    out = command_line("train", *options, "--seeds", 2).out
    verdict, ratio, n = cells(out, "master_bf16")[1:4]
    assert (verdict, n) == ("keeps", "2")
    assert ratio.startswith(("1.00 [", "1.000 [", "0.99", "1.0000 ["))


def test_a_control_that_gets_worse_is_none(command_line: CommandLine) -> None:
    """A learning rate with which nobody learns: more steps are no cure."""
    options = ("--storage", "master_bf16", "--optimizer", "sgd", "--lr", 30, "--steps", 100, "--seeds", 2)
    out = command_line("train", *options, "--workers", 1).out
    assert out.count("not decided: fp32 does not learn") == 2
    assert "--steps" not in out


def test_ctrl_c_stops_the_processes_and_keeps_what_is_done(tmp_path: Path) -> None:
    kept = tmp_path / "runs.jsonl"
    options = ("--storage", "all", "--steps", 300, "--seeds", 3, "--workers", 2, "--checkpoint", kept)
    finished = interrupted("train", *options, when=lambda: kept.exists() and kept.read_text().count("\n") >= 2)
    assert finished == Finished(130, "", "\nprecision-lab: interrupted\n")  # on a line of its own, after the ^C
    lines = kept.read_text().splitlines()
    assert len(lines) >= 2
    assert all(json.loads(line)["config"]["steps"] == 300 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["memory", "--parameters", "many"], "many"),
        (["memory", "--parameters", "0"], "parameters must be a whole number"),
        (["memory", "--activations", "-1"], "activations must be a whole number of at least 0"),
        (["memory", "--optimizer", "lion"], "sgd, momentum, adam, adamw"),
        (["memory", "--storage", "pure_bf17"], "pure_bf17"),
        (["memory", "--ranks", "0"], "--ranks"),
        (["memory", "--json", "/no/such/place.json"], "place.json"),
        (["train", "--storage", "weights=fp17"], "fp17"),
        (["train", "--optimizer", "lion"], "sgd, adam, adamw"),
        (["train", "--lr", "-1"], "learning_rate"),
        (["train", "--schedule", "step"], "'step' is no schedule: one of constant, linear, cosine"),
        (["train", "--schedule", "linear,warmup=many"], "warmup of a schedule must be a whole number"),
        (["train", "--schedule", "linear,warmup=5000"], "warmup of the schedule must be at most steps, 4000"),
        (["train", "--beta2", "1"], "beta2 of Adam must be at least 0 and below 1"),
        (["train", "--beta2", "0.9", "--optimizer", "sgd"], "sgd has no beta2; it has lr, momentum, weight_decay"),
        (["train", "--weight-decay", "-1"], "weight_decay of Adam must be at least 0"),
        (["train", "--steps", "0"], "steps"),
        (["train", "--batch", "9999", "--workers", "1"], "batch_size"),
        (["train", "--seeds", "0"], "seeds"),
        (["train", "--model", "cnn"], "mlp, least_squares, transformer, fine_tuning"),
        (["train", "--data", "topics"], "digits"),
        (["train", "--workers", "0"], "workers"),
        (["train", "--figure", "runs.bmp"], "runs.bmp"),
        (["train", "--checkpoint", "/no/such/place.jsonl", "--workers", "1"], "place.jsonl"),
    ],
)
def test_bad_input_gets_one_line(command_line: CommandLine, arguments: list[str], word: str) -> None:
    finished = command_line(*arguments)
    assert finished.status == 2
    assert finished.out == ""
    assert finished.err.count("\n") == 1, finished.err
    assert word in finished.err
