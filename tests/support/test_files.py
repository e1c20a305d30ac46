from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from precision_lab.support.files import (
    PART,
    STANDARD_OUTPUT,
    OutputError,
    check_outputs,
    check_writable,
    make_folder,
    only_one,
    output,
    replacing,
    write_json,
)

ROOT = Path(__file__).parents[2]


def test_json_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json({"a": [1, None, "ü"]}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, None, "ü"]}
    assert path.stat().st_mode & 0o044, "readable as any file is, not private as a temporary one"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as new:
            new.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_nan_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json({"a": float("nan")}, tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_check_writable_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    check_writable(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"


@pytest.mark.parametrize("place", ["missing/result.json", "."])
def test_places_that_cannot_be_written_to(tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputError, match="cannot write") as caught:
        check_writable(tmp_path / place)
    assert "\n" not in str(caught.value)


def test_folders_are_made_and_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        make_folder(tmp_path / "file")


# ---- part files ----


def test_what_a_kill_has_left_is_removed_by_the_next_output(tmp_path: Path) -> None:
    """The real thing: a process that is killed in the middle of its output."""
    path = tmp_path / "result.json"
    path.write_text("old")
    program = f"""
        import os, signal
        from precision_lab.support.files import replacing
        with replacing({str(path)!r}) as new:
            new.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", "if True:" + program], cwd=ROOT, check=False, timeout=60)
    left = [p for p in tmp_path.iterdir() if p != path]
    assert len(left) == 1
    assert left[0].name.startswith(PART)
    assert path.read_text() == "old"
    write_json([1], tmp_path / "another.json")
    assert not left[0].exists()


def test_a_part_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first:
        first.write_text("a")
        with replacing(tmp_path / "b") as second:
            second.write_text("b")
        assert first.read_text() == "a"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_many_writers_in_one_folder(tmp_path: Path) -> None:
    """None removes what another is writing, and the last one wins whole."""

    def write(number: int) -> None:
        for i in range(40):
            write_json([number] * 1000, tmp_path / f"{i % 4}.json")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    for i in range(4):
        found = json.loads((tmp_path / f"{i}.json").read_text())
        assert len(found) == 1000
        assert len(set(found)) == 1
    assert len(list(tmp_path.iterdir())) == 4


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")
    write_json([1], path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everything")
def test_a_protected_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(OutputError, match="protected"):
        check_writable(path)
    assert path.read_text() == "old"


def test_sockets_and_null_characters(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(OutputError, match="a device or a socket"):
            check_writable(tmp_path / "s")
    with pytest.raises(OutputError, match="null character"):
        check_writable("a\0b")


# ---- places ----


def test_outputs_are_compared_with_inputs_and_each_other(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("a")
    check_outputs({"--json": b}, [a])  # the control: these are two
    check_outputs({"--json": b, "--html": tmp_path / "c"}, [a])
    with pytest.raises(OutputError, match=r"^--json .*/a is the file .*/a, which is read; choose another place$"):
        check_outputs({"--json": a}, [a])
    with pytest.raises(OutputError, match=r"^--html .*/b is what --json writes; choose another place$"):
        check_outputs({"--json": b, "--html": b}, [a])
    with pytest.raises(OutputError, match="what --json writes"):
        check_outputs({"--json": STANDARD_OUTPUT, "--html": STANDARD_OUTPUT})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        check_outputs({"--json": tmp_path / "folder"})
    # links to what is not there yet, too
    (tmp_path / "link").symlink_to(b)
    with pytest.raises(OutputError, match="what --json writes"):
        check_outputs({"--json": b, "--html": tmp_path / "link"})


def test_the_dash_of_the_command_line_and_the_file_of_that_name(tmp_path: Path) -> None:
    assert output("-") is STANDARD_OUTPUT
    assert output("./-") is not STANDARD_OUTPUT
    assert output(str(tmp_path / "new")) == tmp_path / "new"


def test_what_fails_leaves_standard_output_empty(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(float("nan"), STANDARD_OUTPUT)
    assert capfdbinary.readouterr().out == b""


# ---- one at a time ----


def test_only_one_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inside: list[int] = []
    most = []

    def work(number: int) -> None:
        with only_one(tmp_path):
            inside.append(number)
            time.sleep(0.05)
            most.append(len(inside))
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert most == [1] * 4
    assert "another process works here; waiting" in caplog.text
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot write"), only_one(tmp_path / "nowhere"):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = f"""
        import time
        from precision_lab.support.files import only_one
        with only_one({str(tmp_path)!r}):
            print("in", flush=True)
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", "if True:" + program], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        other.kill()
    with only_one(tmp_path):
        pass
