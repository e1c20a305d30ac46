"""The command line, on real files: what it prints, what it writes, what it says to bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab.experiments.underflow import UnderflowConfig
from precision_lab.numerics.verification import hard_patterns
from tests.cli.helpers import in_a_terminal, one_line
from tests.conftest import CommandLine

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def gradients(tmp_path: Path) -> Path:
    """A checkpoint whose answers can be counted by hand."""
    path = tmp_path / "gradients.safetensors"
    save_file(
        {
            "layer.weight": np.array([[2.0**-25, 2.0**-24], [65519.99, 65520.0], [0.0, -0.0]], np.float32),
            "layer.bias": np.array([464.0, 465.0, np.inf, np.nan], np.float32),
            "half": np.array([1.0, 2.0**-24], np.float16),
            "brain": np.array([1e-30, 1e30, 0.0], ml_dtypes.bfloat16),
            "steps": np.arange(4),
            "nothing": np.zeros((0, 3), np.float32),
        },
        path,
    )
    return path


def test_formats_lists_every_registered_format(command_line: CommandLine) -> None:
    from precision_lab import FORMATS

    finished = command_line("formats")
    assert finished.status == 0
    for name, fmt in FORMATS.items():
        row = next(line for line in finished.out.splitlines() if f" {name} " in line)
        assert f"1+{fmt.exponent_bits}+{fmt.mantissa_bits}" in row
    assert "65504" in finished.out
    assert "2^-149" in finished.out
    assert "IEEE 754-2019" in finished.out


def test_inspect_shows_bits_value_error_and_neighbours(command_line: CommandLine) -> None:
    finished = command_line("inspect", "1e-7", "-f", "fp16", "-f", "bfloat16")
    assert finished.status == 0
    assert "0 00000 0000000010" in finished.out
    assert "0x0002" in finished.out
    assert "1.1920928955078125e-07" in finished.out
    assert "subnormal" in finished.out
    assert "0 01100111 1010111" in finished.out


def test_inspect_takes_negative_numbers_powers_of_two_and_all_formats(command_line: CommandLine) -> None:
    finished = command_line("inspect", "-1.5", "2^-25", "65520", "nan")
    assert finished.status == 0
    assert finished.out.count("fp8_e4m3b11fnuz") == 4
    assert "1 01111 1000000000" in finished.out
    assert "flushed" in finished.out
    assert "overflowed" in finished.out


def test_inspect_in_a_terminal_colours_sign_exponent_and_significand() -> None:
    output = in_a_terminal("inspect", "-1.5", "-f", "fp16")
    assert "\x1b[31m1\x1b[0m" in output
    assert "\x1b[32m01111\x1b[0m" in output
    assert "\x1b[36m1000000000\x1b[0m" in output


def test_a_narrow_terminal_gets_a_wide_table_in_parts() -> None:
    output = re.sub(r"\x1b\[[0-9;]*m", "", in_a_terminal("inspect", "1e-7", "-f", "fp16", "-f", "bf16", columns=80))
    assert max(map(len, output.splitlines())) <= 80
    assert output.count("│ fp16   │") == output.count("format") > 1
    for whole in ("0 00000 0000000010", "1.1920928955078125e-07", "1.7881393432617188e-07"):
        assert whole in output


def test_scan_prints_a_row_a_tensor_and_a_total(command_line: CommandLine, gradients: Path) -> None:
    finished = command_line("scan", gradients, "-f", "fp16")
    assert finished.status == 0
    row = next(line for line in finished.out.splitlines() if "layer.weight" in line)
    # 2^-25 flushed, 2^-24 subnormal, 65520 overflowed, of four nonzero elements
    assert "25.00 / 25.00 / 25.00" in row
    assert "total" in finished.out
    assert "nothing" in finished.out
    assert finished.err == "skipped gradients.safetensors: 'steps': integer tensor\n"


def test_scan_json_has_the_documented_schema_and_exact_counts(
    command_line: CommandLine, gradients: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scan.json"
    assert command_line("scan", gradients, "--json", out, "--format", "fp16", "--format", "fp8_e4m3fn").status == 0
    data = json.loads(out.read_text())
    assert (data["kind"], data["version"]) == ("precision_lab scan", 1)
    assert set(data) == {"kind", "version", "tensors", "total", "other_totals", "loss_scale", "skipped"}
    assert data["loss_scale"] == 1
    by_name = {tensor["name"]: tensor for tensor in data["tensors"]}
    costs = [counts.pop("precision") for counts in by_name["layer.weight"]["formats"].values()]
    # 2^-25 and 65519.99 are changed in fp16; in fp8, where 65519.99 overflows, 2^-25 and 2^-24
    assert [(cost["finite"], cost["changed"]) for cost in costs] == [(5, 2), (4, 2)]
    assert by_name["layer.weight"] == {
        "file": str(gradients),
        "name": "layer.weight",
        "dtype": "float32",
        "shape": [3, 2],
        "role": "parameter",
        "count": 6,
        "zero": 2,
        "nonfinite": 0,
        "min_nonzero": 2.0**-25,
        "max_abs": 65520.0,
        "formats": {
            "fp16": {"flushed": 1, "subnormal": 1, "overflowed": 1},
            "fp8_e4m3fn": {"flushed": 2, "subnormal": 0, "overflowed": 2},
        },
    }
    assert by_name["layer.bias"]["nonfinite"] == 2
    assert by_name["layer.bias"]["formats"]["fp8_e4m3fn"]["overflowed"] == 1  # 465, not 464
    assert by_name["nothing"]["count"] == 0
    assert by_name["nothing"]["min_nonzero"] is None
    assert data["total"]["count"] == sum(tensor["count"] for tensor in data["tensors"])
    for fmt in ("fp16", "fp8_e4m3fn"):
        for fate in ("flushed", "subnormal", "overflowed"):
            assert data["total"]["formats"][fmt][fate] == sum(t["formats"][fmt][fate] for t in data["tensors"])


def test_scan_with_a_loss_scale(command_line: CommandLine, gradients: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    finished = command_line("scan", gradients, "--loss-scale", "2", "--json", out, "-f", "fp16")
    assert finished.status == 0
    assert "2^1" in finished.out
    weight = json.loads(out.read_text())["tensors"]
    counts = next(t for t in weight if t["name"] == "layer.weight")["formats"]["fp16"]
    assert counts.pop("precision") == dict.fromkeys(
        ("bias", "bias_standard_error", "outward_bias", "outward_bias_standard_error"), 0.0
    ) | {"finite": 4, "changed": 0, "sqnr_db": "inf"}
    assert counts == {
        "flushed": 0,
        "subnormal": 2,
        "overflowed": 2,
    }


def test_scan_several_files_folders_and_raw_bf16(command_line: CommandLine, gradients: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", np.ones(5, ml_dtypes.bfloat16))
    folder = tmp_path / "folder"
    folder.mkdir()
    np.savez(folder / "more.npz", a=np.ones(3), b=np.float16(2))
    finished = command_line("scan", gradients, tmp_path / "raw.npy", folder, "--dtype", "bf16")
    assert finished.status == 0
    for expected in ("gradients.safetensors: half", "raw.npy: raw", "more.npz: a", "more.npz: b"):
        assert expected in finished.out


def test_scan_draws_a_figure(command_line: CommandLine, gradients: Path, tmp_path: Path) -> None:
    figure = tmp_path / "histogram.png"
    assert command_line("scan", gradients, "--figure", figure).status == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gradients.safetensors", "histogram.png"]


def test_a_tensor_name_is_text_not_markup(command_line: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"[red]bold[/red] <script>": np.ones(2, np.float32)}, path)
    finished = command_line("scan", path)
    assert finished.status == 0
    assert "[red]bold[/red] <script>" in finished.out


def test_progress_is_shown_on_a_terminal_only(command_line: CommandLine, gradients: Path) -> None:
    assert "Scanning" not in command_line("scan", gradients).err
    assert "Scanning" in in_a_terminal("scan", str(gradients))


def bad_scans() -> list[tuple[str, list[str], list[str]]]:
    """Name, arguments after `scan` ({} is a folder with good.npy), words that the line must have."""
    return [
        ("missing file", ["{}/missing.safetensors"], ["missing.safetensors"]),
        ("folder without tensors", ["{}/empty"], ["empty", "safetensors"]),
        ("truncated header", ["{}/short.safetensors"], ["short.safetensors"]),
        ("huge header", ["{}/huge.safetensors"], ["huge.safetensors"]),
        ("outside of the file", ["{}/outside.safetensors"], ["outside.safetensors", "'t'"]),
        ("overlap", ["{}/overlap.safetensors"], ["overlap.safetensors"]),
        ("unknown dtype", ["{}/dtype.safetensors"], ["dtype.safetensors", "'t'", "Q7"]),
        ("object arrays", ["{}/object.npz"], ["object.npz", "never"]),
        ("bad zip", ["{}/bad.npz"], ["bad.npz"]),
        ("raw void", ["{}/raw.npy"], ["raw.npy", "--dtype bf16"]),
        ("empty pickle", ["{}/model.ckpt"], ["model.ckpt", "torch"]),
        ("unknown format", ["{}/good.npy", "-f", "fp17"], ["fp17", "fp16", "bf16"]),
        ("unknown dtype option", ["{}/good.npy", "--dtype", "bf17"], ["bf17"]),
        ("no power of two", ["{}/good.npy", "-s", "1000"], ["1000", "power of two"]),
        ("negative loss scale", ["{}/good.npy", "-s", "-2"], ["-2", "power of two"]),
        ("loss scale that is no number", ["{}/good.npy", "-s", "many"], ["many"]),
        ("unwritable json", ["{}/good.npy", "--json", "{}/no/such/place.json"], ["place.json", "cannot write"]),
        ("json onto a folder", ["{}/good.npy", "--json", "{}/empty"], ["empty", "cannot write"]),
        ("unwritable figure", ["{}/good.npy", "--figure", "{}/no/such/place.png"], ["place.png", "cannot write"]),
        ("unknown kind of figure", ["{}/good.npy", "--figure", "{}/figure.bmp"], ["figure.bmp", "png"]),
        ("unknown option", ["{}/good.npy", "--nonsense"], ["--nonsense", "--help"]),
        ("no file", [], ["FILE", "--help"]),
    ]


def lying_safetensors(header: dict[str, object], data: bytes = bytes(16)) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def bad_files(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "good.npy", np.ones(3))
    np.save(tmp_path / "raw.npy", np.ones(3, ml_dtypes.bfloat16))
    np.savez(tmp_path / "object.npz", a=np.array([None, {}], object))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "short.safetensors").write_bytes((100).to_bytes(8, "little") + b"{}")
    (tmp_path / "huge.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")

    def tensor(begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
        return {"dtype": dtype, "shape": [(end - begin) // 4], "data_offsets": [begin, end]}

    (tmp_path / "outside.safetensors").write_bytes(lying_safetensors({"t": tensor(0, 400)}))
    (tmp_path / "overlap.safetensors").write_bytes(lying_safetensors({"t": tensor(0, 12), "u": tensor(8, 16)}))
    (tmp_path / "dtype.safetensors").write_bytes(lying_safetensors({"t": tensor(0, 16, "Q7")}))
    return tmp_path


@pytest.mark.parametrize(("arguments", "words"), [pytest.param(a, w, id=name) for name, a, w in bad_scans()])
def test_bad_input_gets_one_line_status_2_and_writes_nothing(
    command_line: CommandLine, bad_files: Path, arguments: list[str], words: list[str]
) -> None:
    before = sorted(bad_files.rglob("*"))
    outputs = [] if "--json" in arguments else ["--json", f"{bad_files}/out.json"]
    finished = command_line("scan", *(a.format(bad_files) for a in arguments), *outputs)
    assert finished.status == 2
    line = one_line(finished.err)
    for word in words:
        assert word in line
    assert finished.out == ""
    assert sorted(bad_files.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["inspect", "seven"], "seven"),
        (["inspect", "1", "-f", "fp17"], "fp17"),
        (["inspect", "--bogus"], "--bogus"),
        (["verify", "-f", "fp17"], "fp17"),
        (["nonsense"], "nonsense"),
        (["underflow", "--steps", "9"], "batches must be an integer in 1..3"),
        (["underflow", "--seed", "-1"], "seed"),
        (["report", "-o", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_other_commands_refuse_bad_input_in_one_line(
    command_line: CommandLine, arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = command_line(*arguments)
    assert finished.status == 2
    assert word in one_line(finished.err)


def test_verify_says_how_much_it_compared(command_line: CommandLine) -> None:
    finished = command_line("verify", "-f", "bf16", "-f", "tf32")
    assert finished.status == 0
    row = next(line for line in finished.out.splitlines() if "bf16" in line and "ml_dtypes" in line)
    assert f"{hard_patterns().size:,}" in row
    assert finished.out.count("exact arithmetic") == 2  # tf32 has no dtype to compare with


def test_verify_fails_with_examples_where_rounding_is_wrong(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precision_lab.numerics import verification

    monkeypatch.setattr(verification, "cast", lambda x, fmt: np.zeros(np.shape(x), fmt.dtype))
    finished = command_line("verify", "-f", "fp8_e5m2")
    assert finished.status == 1
    assert "got 0" in finished.err


def test_underflow_writes_a_figure_and_json(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # two steps of the transformer, the last field: they take most of the time, and no option is about them
    init = UnderflowConfig.__init__
    monkeypatch.setattr(init, "__defaults__", (*(init.__defaults__ or ())[:-1], 2))
    folder = tmp_path / "new" / "figures"
    finished = command_line("underflow", "--steps", 60, "-o", folder)
    assert finished.status == 0, finished.err
    kinds = [f"{name}.{kind}" for name in ("gradient_histogram", "underflow") for kind in ("json", "png", "svg")]
    assert sorted(p.name for p in folder.iterdir()) == kinds[1:]
    assert json.loads((folder / "underflow.json").read_text())["result"]["config"]["steps"] == 60
    assert json.loads((folder / "underflow.json").read_text())["result"]["config"]["transformer_steps"] == 2
    assert "activation gradients" in finished.out


def test_ctrl_c_leaves_nothing_behind(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("precision_lab.experiments.underflow.run", interrupted)
    finished = command_line("underflow", "-o", tmp_path)
    assert finished.status == 130
    assert finished.err.strip() == "precision-lab: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_help_of_every_command(command_line: CommandLine) -> None:
    for command in ("formats", "inspect", "scan", "underflow", "report", "verify"):
        finished = command_line(command, "--help")
        assert finished.status == 0
        assert "Usage" in finished.out
    assert command_line().status in (0, 2)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -c 'from precision_lab.cli import main; main()' inspect 1 2 3 4 5 6 7 8 9 | head -1"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert finished.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_a_question_mark_and_no_error(encoding: str) -> None:
    """The table comes after the work, which a dash shall not undo."""
    done = subprocess.run(
        [sys.executable, "-c", "from precision_lab.cli import main; main()", "memory"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        encoding=encoding,
        check=False,
        cwd=REPOSITORY,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\| +\? +\|", done.stdout)
