"""Every option that reads and every option that writes: nothing of the user's is lost, nothing half-written stays."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from precision_lab.cli import app, experiments
from precision_lab.cli.options import Checkpoint, Input, Output, OutputFolder
from precision_lab.experiments.kept import kept
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.support.files import PART
from tests.conftest import CommandLine

READ = {  # what each command reads, by the name of the option
    "scan": {"files"},
    "loss-scale": {"files", "recorded"},
    "accumulation": {"files"},
    "swamping": {"weights", "updates"},
    "preflight": {"checkpoint", "updates", "optimizer_state", "parameter_names", "gradients"},
    "train": {"dataset", "checkpoint"},
}
WRITTEN = {
    "scan": {"data", "figure", "page"},
    "loss-scale": {"data", "figure"},
    "accumulation": {"data"},
    "swamping": {"data", "figure"},
    "preflight": {"data"},
    "train": {"data", "figure", "checkpoint"},
    "hyperparameters": {"data", "figure"},
    "memory": {"data"},
    "claims": {"data", "page"},
    "verify": {"data"},
    "report": {"output"},
    "underflow": {"output"},
}
OF_FILES = (Input, Output, OutputFolder)


def declared(*kinds: type) -> dict[str, set[str]]:
    """The parameters of these kinds by command."""
    found = {
        name: {param.name or "" for param in command.params if isinstance(param.type, kinds)}
        for name, command in app.commands.items()
    }
    return {name: names for name, names in found.items() if names}


def parameter(command: str, name: str) -> click.Parameter:
    return next(param for param in app.commands[command].params if param.name == name)


def test_all_options_that_read_and_write_are_known() -> None:
    assert declared(Input, Checkpoint) == READ
    assert declared(Output, OutputFolder) == WRITTEN
    # no file goes past the rules: whoever adds one uses these kinds
    assert declared(click.Path, click.File) == declared(*OF_FILES)


def test_another_kind_of_path_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    option = click.Option(["--log"], type=click.Path())
    monkeypatch.setattr(app.commands["scan"], "params", [*app.commands["scan"].params, option])
    assert declared(click.Path, click.File) != declared(*OF_FILES)


# ---- an output is no input, and no other output ----

READING = [(command, name) for command, names in READ.items() for name in sorted(names)]
WRITING = [(c, name) for c, names in WRITTEN.items() for name in sorted(names) if name != "output"]


def word(command: str, name: str) -> list[str]:
    """The option's own word, as it stands before its value."""
    param = parameter(command, name)
    return [param.opts[0]] if isinstance(param, click.Option) else []


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("g.npy", np.array([1e-7, 1.0, 2.0], np.float32))
    return tmp_path


def content(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder: the bytes of files, the kind of the rest."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if stat.S_ISREG(p.lstat().st_mode) else oct(p.lstat().st_mode)
        for p in folder.rglob("*")
    }


def same(name: str, place: str) -> str:
    """Another name of a file."""
    match name:
        case "itself":
            return place
        case "dotted":
            return f"./{place}"
        case "absolute":
            return str(Path(place).absolute())
        case "link":
            Path("link.png").symlink_to(place)
            return "link.png"
        case "hard link":
            Path("hard.png").hardlink_to(place)
            return "hard.png"
    raise AssertionError(name)


def arguments(command: str, name: str) -> list[str]:
    """What a command needs beside the file that it reads."""
    return (
        ["--weights", "w.npy"]
        if (command, name) == ("swamping", "updates")
        else (["w.npy"] if command == "preflight" and name != "checkpoint" else [])
    )


@pytest.mark.parametrize("name", ["itself", "dotted", "absolute", "link", "hard link"])
@pytest.mark.parametrize(("command", "reading"), READING)
def test_no_output_is_an_input(command: str, reading: str, name: str, here: Path, command_line: CommandLine) -> None:
    place = "in.png"  # an ending that a figure may have, so that nothing else refuses it
    Path(place).write_bytes(b"what must not be lost")
    np.save("w.npy", np.ones(3, np.float32))
    for writing in sorted(WRITTEN[command] - {reading, "checkpoint"}):
        for link in ("link.png", "hard.png"):
            Path(link).unlink(missing_ok=True)
        out = same(name, place)
        before = content(here)
        finished = command_line(
            command, *arguments(command, reading), *word(command, reading), place, *word(command, writing), out
        )
        assert finished.status == 2, (writing, finished)
        assert finished.err.count("\n") == 1
        assert f"{word(command, writing)[0]} {Path(out)} is " in finished.err
        assert "choose another place" in finished.err
        assert content(here) == before


@pytest.mark.parametrize("output", ["folder/a.npy", "folder/../folder/a.npy", "x.json"])
def test_no_output_is_a_member_of_a_folder_that_is_read(output: str, here: Path, command_line: CommandLine) -> None:
    Path("folder").mkdir()
    np.save("folder/a.npy", np.ones(3, np.float32))
    Path("x.json").hardlink_to("folder/a.npy")
    before = content(here)
    finished = command_line("scan", "folder", "--json", output)
    assert finished.status == 2
    assert "which is read" in finished.err
    assert content(here) == before
    # a new file may lie there, also the second time, for it is none of those that are read
    for _ in range(2):
        assert command_line("scan", "folder", "--json", "folder/counts.json").status == 0


def test_no_output_is_a_shard(here: Path, command_line: CommandLine) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3, np.float32)}, "shard-1.safetensors")
    index = Path("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"a": "shard-1.safetensors"}}))
    before = content(here)
    for place in ("shard-1.safetensors", index.name):
        finished = command_line("scan", index, "--json", place)
        assert finished.status == 2
        assert f"--json {place} is " in finished.err
    assert content(here) == before
    assert command_line("scan", index, "--json", "out.json").status == 0


@pytest.mark.parametrize(
    ("command", "first", "second"),
    [(c, a, b) for c, names in WRITTEN.items() for a in sorted(names) for b in sorted(names) if a < b],
)
def test_no_output_is_another_output(
    command: str, first: str, second: str, here: Path, command_line: CommandLine
) -> None:
    for existing in (False, True):
        for name in ("out.png", "./out.png"):
            given = ["g.npy"] if command in ("scan", "loss-scale") else []
            if command == "swamping":
                given = ["--weights", "g.npy", "--lr", "1e-3"]
            if existing:
                Path("out.png").write_bytes(b"old")
            before = content(here)
            finished = command_line(command, *given, *word(command, first), "out.png", *word(command, second), name)
            assert finished.status == 2
            assert "choose another place" in finished.err, finished.err
            assert content(here) == before


def test_the_module_of_a_cast_is_an_input(here: Path, command_line: CommandLine) -> None:
    source = "import numpy\ndef cast(x):\n    return x.astype(numpy.float16)\n"
    Path("my_cast_here.py").write_text(source)
    asked = ["verify", "--cast", "my_cast_here:cast", "--source", "fp32", "--target", "fp16", "--json"]
    finished = command_line(*asked, "my_cast_here.py")
    assert finished.status == 2
    assert "my_cast_here.py, which is read" in finished.err
    assert Path("my_cast_here.py").read_text() == source


# ---- places that are no files ----


@pytest.fixture
def null(here: Path) -> Path:
    """A copy of the null device: a test must not risk the machine's own."""
    try:
        os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        Path("null").write_bytes(b"")
    except (AttributeError, PermissionError):
        pytest.skip("makes a device, which only root may do")
    return Path("null")


def written_to(place: str, command: str) -> list[str]:
    """A quick run that writes to every output of a command."""
    quick = {
        "scan": ["scan", "g.npy", "--json", place],
        "page": ["scan", "g.npy", "--html", place],
        "loss-scale": ["loss-scale", "g.npy", "--json", place],
        "replay": ["loss-scale", "--replay", "g.npy", "--json", place],
        "accumulation": ["accumulation", "g.npy", "--json", place],
        "swamping": ["swamping", "--weights", "g.npy", "--lr", "1e-3", "--json", place],
        "preflight": ["preflight", "g.npy", "--lr", "1e-3", "--json", place],
        "hyperparameters": ["hyperparameters", "--json", place],
        "memory": ["memory", "--json", place],
        "claims": ["claims", "fp16-1e-7", "--json", place],
        "claims page": ["claims", "fp16-1e-7", "--markdown", place],
        "verify": ["verify", "--cast", "numpy:float16", "--source", "bf16", "--target", "fp16", "--json", place],
        "train": ["train", "--storage", "pure_bf16", "--seeds", "1", "--steps", "2", "--workers", "1", "--json", place],
    }
    return quick[command]


QUICK = (
    *("scan", "page", "loss-scale", "replay", "accumulation", "swamping", "preflight", "hyperparameters"),
    *("memory", "claims", "claims page", "verify", "train"),
)


def test_a_device_stays_a_device(null: Path, here: Path, command_line: CommandLine) -> None:
    device = null.stat().st_rdev
    for command in QUICK:
        finished = command_line(*written_to("null", command))
        assert finished.status in (0, 1), finished.err
        found = null.lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == device
    # it takes any number of outputs
    assert command_line("scan", "g.npy", "--json", "null", "--html", "null").status == 0
    assert sorted(p.name for p in here.iterdir()) == ["g.npy", "null"]


@pytest.mark.parametrize("command", QUICK)
def test_standard_output(command: str, here: Path, command_line: CommandLine) -> None:
    """The results alone; what is for people goes to standard error."""
    finished = command_line(*written_to("-", command))
    assert finished.status in (0, 1), finished.err
    if command in ("page", "claims page"):
        assert finished.out.startswith("<!doctype html>" if command == "page" else "# ")
    else:
        json.loads(finished.out)
    assert finished.err.strip()
    to_file = command_line(*written_to("out", command))
    assert to_file.status == finished.status
    if command != "train":  # which says how long it took
        assert Path("out").read_text(encoding="utf-8") == finished.out
        assert to_file.out.split() == finished.err.split()


def test_a_file_called_dash_can_be_written(here: Path, command_line: CommandLine) -> None:
    finished = command_line("memory", "--json", "./-")
    assert finished.status == 0
    assert json.loads(Path("-").read_text())
    assert "{" not in finished.out


def test_runs_are_not_kept_on_standard_output(here: Path, command_line: CommandLine) -> None:
    finished = command_line("train", "--checkpoint", "-")
    assert (finished.status, finished.out) == (2, "")
    assert "runs are kept in a file" in finished.err


def test_standard_output_by_another_name(here: Path) -> None:
    """The shell has opened the very file: it is not replaced under the shell's hands."""
    with Path("all.txt").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", "from precision_lab.cli import main; main()", "memory", "--json", "all.txt"],
            stdout=out,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            check=True,
            timeout=120,
        )
    assert json.loads(Path("all.txt").read_text())
    assert b"bytes" in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_gets_the_results_and_stays_one(here: Path, command_line: CommandLine) -> None:
    os.mkfifo("fifo")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(Path("fifo").read_bytes()), daemon=True)
    reader.start()
    finished = command_line("memory", "--json", "fifo")
    reader.join(60)
    assert finished.status == 0, finished.err
    assert json.loads(got[0])
    assert stat.S_ISFIFO(Path("fifo").lstat().st_mode)
    finished = command_line("memory", "--json", "fifo")
    assert finished.status == 2
    assert finished.err == "precision-lab: error: fifo: cannot write: nobody reads from it; choose another place\n"


def test_a_link_is_followed(here: Path, command_line: CommandLine) -> None:
    Path("elsewhere").mkdir()
    for target in ("elsewhere/old.json", "elsewhere/new.json"):
        Path("link").unlink(missing_ok=True)
        Path("link").symlink_to(target)
        if "old" in target:
            Path(target).write_text("old")
        assert command_line("memory", "--json", "link").status == 0
        assert Path("link").is_symlink()
        assert json.loads(Path(target).read_text())
    Path("circle").symlink_to("circle")
    finished = command_line("memory", "--json", "circle")
    assert finished.status == 2
    assert finished.err.startswith("precision-lab: error: circle: cannot write: ")


def test_the_permissions_of_a_file_stay(here: Path, command_line: CommandLine) -> None:
    Path("private.json").write_text("old")
    Path("private.json").chmod(0o600)
    assert command_line("memory", "--json", "private.json").status == 0
    assert stat.S_IMODE(Path("private.json").stat().st_mode) == 0o600


# ---- what is read is a regular file, and not too much of it ----


@pytest.fixture(params=["fifo", "folder", "null"])
def no_file(request: pytest.FixtureRequest, here: Path) -> str:
    """What is no regular file, under a name that each reader takes."""
    kind: str = request.param
    if kind == "fifo" and not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs here")
    return kind


def make(kind: str, place: str) -> None:
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        Path(place).mkdir()
    else:
        Path(place).symlink_to(os.devnull)


SMALL_FILES = {
    "trace": ("t.json", ["loss-scale", "--replay", "t.json"]),
    "npy trace": ("t.npy", ["loss-scale", "--replay", "t.npy"]),
    "text": ("t.txt", ["train", "--model", "transformer", "--data", "t.txt", "--steps", "1", "--workers", "1"]),
    "checkpoint": ("runs", ["train", "--steps", "1", "--checkpoint", "runs", "--workers", "1"]),
    "index": ("m.safetensors.index.json", ["scan", "m.safetensors.index.json"]),
    "index of a folder": ("d/m.safetensors.index.json", ["scan", "d"]),
    "recording": ("run.json", ["scan", "run.json"]),
    "tensors": ("m.safetensors", ["scan", "m.safetensors"]),
    "npz": ("m.npz", ["scan", "m.npz"]),
    "pt": ("m.pt", ["scan", "m.pt"]),
}


@pytest.mark.parametrize("reader", SMALL_FILES)
def test_what_is_no_file_is_refused_in_a_line(reader: str, no_file: str, here: Path, command_line: CommandLine) -> None:
    place, asked = SMALL_FILES[reader]
    Path("d").mkdir()
    make(no_file, place)
    finished = command_line(*asked)
    if (reader, no_file) == ("index of a folder", "folder"):
        assert "several" not in finished.err
    assert finished.status == 2, finished
    assert finished.err.count("\n") == 1
    assert place in finished.err
    assert finished.out == ""


def test_a_file_without_end_is_not_read(here: Path, command_line: CommandLine) -> None:
    """A regular one, with holes: it takes no room on the disk."""
    for reader in ("trace", "text", "checkpoint", "index", "recording"):
        place, asked = SMALL_FILES[reader]
        with Path(place).open("wb") as file:
            file.truncate(1 << 40)
        finished = command_line(*asked)
        assert finished.status == 2, finished
        assert finished.err.count("\n") == 1
        assert place in finished.err


@pytest.fixture
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a report take most of its time; where what is kept is the question, they are none of it."""
    monkeypatch.setattr(experiments, "_draw", lambda *_, **__: None)


@pytest.mark.usefixtures("nothing_is_drawn")
@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_a_kept_result_that_is_no_file(kind: str, here: Path, command_line: CommandLine) -> None:
    Path("out").mkdir()
    if kind == "fifo":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no FIFOs here")
        os.mkfifo("out/memory.json")
    elif kind == "folder":
        Path("out/memory.json").mkdir()
    else:
        Path("out/memory.json").symlink_to(os.devnull)
    finished = command_line("report", "memory", "--quick", "-o", "out")
    assert "Traceback" not in finished.err
    assert finished.status == (0 if kind == "device" else 2)  # the device takes what is written, and keeps nothing
    assert len(list(Path("out").glob(f"{PART}*"))) == 0


# ---- what is kept is not believed ----


@pytest.mark.usefixtures("nothing_is_drawn")
def test_a_kept_result_that_was_changed_is_made_again(here: Path, command_line: CommandLine) -> None:
    def report() -> dict[str, Any]:
        finished = command_line("report", "memory", "--quick", "-o", "out")
        assert finished.status == 0, finished.err
        found: dict[str, Any] = json.loads(Path("out/results.json").read_text())["experiments"]["memory"]
        return found

    expected = report()
    kept_file = Path("out/memory.json")
    whole = json.loads(kept_file.read_text())
    assert report() == expected
    assert json.loads(kept_file.read_text()) == whole  # control: what fits is taken

    def changed(value: Any) -> Any:
        """One number is another."""
        if isinstance(value, dict):
            return {key: changed(v) if i == 0 else v for i, (key, v) in enumerate(value.items())}
        if isinstance(value, list) and value:
            return [changed(value[0]), *value[1:]]
        return "other"

    kept_file.write_text(json.dumps(whole | {"result": changed(whole["result"])}))
    assert report() == expected
    assert json.loads(kept_file.read_text()) | {"seconds": 0} == whole | {"seconds": 0}

    config = EXPERIMENTS["memory"].configuration(quick=True)
    assert kept("memory", Path("out"), config) is not None  # control
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    wrong: Any
    for wrong in (
        *(whole | {"result": None}, whole | {"result": deep}, whole | {"result_digest": None}),
        *({}, [], None, whole | {"digest": "0"}, whole | {"seconds": None}),
        {key: value for key, value in whole.items() if key != "result_digest"},
    ):
        kept_file.write_text(json.dumps(wrong))
        assert kept("memory", Path("out"), config) is None, wrong
    for text in ("", "[" * 100_000, "\0", "{", json.dumps(whole)[:-5]):
        kept_file.write_text(text)
        assert kept("memory", Path("out"), config) is None


def test_two_reports_into_one_folder_do_the_work_once(here: Path) -> None:
    program = "from precision_lab.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    asked = [sys.executable, "-c", program, "report", "memory", "--quick", "-o", "out"]
    both = [
        subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    reused = sorted(out.count("reused") + out.count("kept") for out, _ in said)
    assert json.loads(Path("out/memory.json").read_text())["seconds"] > 0
    assert reused[0] < reused[1], said
