"""Names in files are other people's: no command, page or figure obeys them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.recording import RecordedTensor, Recording
from precision_lab.cli import app
from tests.cli.test_files import READ
from tests.conftest import CommandLine

CLEAR, TITLE, C1, RIGHT_TO_LEFT = "\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\u202e"
ORDERS = (CLEAR, TITLE, C1, RIGHT_TO_LEFT, "\u2067", "\u200f", "\x00", "\x7f", "\x85", "\u2028", "\r")
HOSTILE = [f"w{order}x" for order in ORDERS] + ["a\nb", r"$\frac{x$", "_hidden", "[red]markup[/red]", "y" * 5000]


def obeyed(text: str) -> list[str]:
    """What in a text is neither printable nor a line break."""
    return sorted({c for c in text if not c.isprintable() and c != "\n"})


def write_safetensors(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """With any name that JSON can hold."""
    header, data = {}, b""
    for name, array in arrays.items():
        kind = {"f": "F32", "i": "I32"}[array.dtype.kind]
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Names of tensors that are counted, and of those that are skipped; names of files; of a recording."""
    monkeypatch.chdir(tmp_path)
    numbers = np.array([1e-7, 1.0, -2.0], np.float32)
    write_safetensors(
        tmp_path / "m.safetensors",
        {name: numbers if i % 4 else np.ones(3, np.int32) for i, name in enumerate(HOSTILE)},
    )
    named: dict[str, Any] = {name.replace("\x00", ""): numbers for name in HOSTILE}
    np.savez(tmp_path / "m.npz", **named)
    (tmp_path / "folder").mkdir()
    for name in HOSTILE[:6]:
        np.save(tmp_path / "folder" / f"{name}.npy", numbers)
    histogram = ExponentHistogram.of(numbers)
    tensors = tuple(
        RecordedTensor(name, "float32", (3,), histogram, 1)
        if i
        else RecordedTensor(name, "float32", (3,), ExponentHistogram.empty(), missing=f"frozen{CLEAR}\nx")
        for i, name in enumerate(HOSTILE)
    )
    recording = Recording(f"Model{CLEAR}", tensors, 1, 1, 0, 1)
    (tmp_path / "run.json").write_text(json.dumps(recording.to_dict()))
    return tmp_path


COMMANDS = {
    "scan": ["scan", "m.safetensors", "--figure", "f.svg", "--html", "p.html"],
    "npz": ["scan", "m.npz", "m.safetensors", "--figure", "f.svg", "--html", "p.html"],
    "folder": ["scan", "folder", "--figure", "f.svg", "--html", "p.html"],
    "recording": ["scan", "run.json", "--figure", "f.svg", "--html", "p.html"],
    "loss-scale": ["loss-scale", "m.safetensors", "--figure", "f.svg"],
    "accumulation": ["accumulation", "m.safetensors"],
    "swamping": ["swamping", "--weights", "m.safetensors", "--lr", "1e-3", "--figure", "f.svg"],
    "swamping pairs": ["swamping", "--weights", "m.npz", "--updates", "m.npz", "--figure", "f.svg"],
    "preflight": ["preflight", "m.safetensors", "--lr", "1e-3", "--gradients", "m.npz"],
    "missing updates": ["swamping", "--weights", "m.npz", "--updates", "m.safetensors"],
}


TRAIN = ["train", "--steps", "1", "--seeds", "1", "--workers", "1"]


def test_every_command_that_reads_tensors_is_here() -> None:
    """A trace and the lines of a checkpoint hold no names; a text file's own name is in a message at most."""
    assert {asked[0] for asked in COMMANDS.values()} == READ.keys() - {"train"}
    assert READ.keys() <= app.commands.keys()


@pytest.mark.parametrize("which", COMMANDS)
def test_no_name_is_obeyed(which: str, here: Path, command_line: CommandLine) -> None:
    finished = command_line(*COMMANDS[which])
    assert finished.status == (2 if which == "missing updates" else 0), finished.err
    assert obeyed(finished.out + finished.err) == []
    if finished.status == 2:
        assert finished.err.count("\n") == 1
    else:
        assert r"\x1b" in finished.out + finished.err  # so that it is known which it was
    if Path("f.svg").exists():
        text = Path("f.svg").read_text(encoding="utf-8")
        assert obeyed(text) == []
        ET.fromstring(text)  # a control character makes it no XML
    if Path("p.html").exists():
        assert obeyed(Path("p.html").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", [f"{CLEAR}.npy", f"{RIGHT_TO_LEFT}.safetensors", f"{C1}.json", f"{TITLE}.txt", "a\nb"])
def test_no_name_of_a_file_is_obeyed_in_a_message(name: str, here: Path, command_line: CommandLine) -> None:
    """Where it is missing, a folder, and broken."""
    for kind in ("nothing", "folder", "broken"):
        if kind == "folder":
            Path(name).mkdir()
        elif kind == "broken":
            Path(name).rmdir()
            Path(name).write_text("x")
        asked_for = [
            *(["scan", name], ["loss-scale", "--replay", name], ["preflight", name], ["swamping", "--weights", name]),
            *(["memory", "--json", f"m.npz/{name}"], ["scan", "m.npz", "--figure", name], ["inspect", name]),
            *(["report", "memory", "-o", f"m.npz/{name}"], ["memory", "--parameters", name], ["claims", name]),
            *(["verify", "--cast", f"{name}:f", "--source", "fp32", "--target", "fp16"], [*TRAIN, "--data", name]),
            *([*TRAIN, "--storage", name], ["hyperparameters", "-f", name], ["scan", "m.npz", "--dtype", name]),
        ]
        if kind != "nothing":  # or it is begun
            asked_for.append([*TRAIN, "--checkpoint", name])
        for asked in asked_for:
            finished = command_line(*asked)
            assert finished.status == 2, asked
            assert finished.err.count("\n") == 1, finished.err
            assert obeyed(finished.err + finished.out) == [], asked


def test_a_long_argument_is_not_echoed_in_full(command_line: CommandLine) -> None:
    for asked in (
        ["inspect", "1" + "x" * 100_000],
        ["claims", "x" * 100_000],
        ["memory", "--parameters", "x" * 100_000],
    ):
        finished = command_line(*asked)
        assert finished.status == 2
        assert len(finished.err) < 6_000
    finished = command_line("inspect", "1" + "0" * 3_000, "-f", "fp16")
    assert finished.status == 0
    assert "0" * 200 not in finished.out


END = "<the next command>"  # written between them
ON_A_TERMINAL = """
import sys
from precision_lab.cli import main
for arguments in {}:
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit:
        pass
    print({!r}, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudoterminals there")
def test_no_name_is_obeyed_on_a_terminal(here: Path) -> None:
    """Where colours and bars are orders to the terminal, and only ours."""
    import pty

    leader, follower = pty.openpty()
    asked = ("scan", "recording", "missing updates")
    program = ON_A_TERMINAL.format([COMMANDS[which] for which in asked], END)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "COLUMNS": "80"},
    ) as child:
        os.close(follower)
        said = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the last one has closed it
                break
            if not part:
                break
            said += part
        child.wait(60)
    os.close(leader)
    *texts, rest = said.decode().split(END)
    assert rest.strip() in ("", "\x1b[0m")  # colours are reset at the end
    for which, text in zip(asked, texts, strict=True):
        for order in (CLEAR, TITLE, C1, *ORDERS[3:10]):
            assert order not in text, which
        assert r"\x1b" in text or which == "missing updates"
