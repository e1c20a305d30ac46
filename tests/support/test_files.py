from __future__ import annotations

import json
from pathlib import Path

import pytest

from precision_lab.support.files import OutputError, check_writable, make_folder, replacing, write_json


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
