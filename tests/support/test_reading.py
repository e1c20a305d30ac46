from __future__ import annotations

import os
from pathlib import Path

import pytest

from precision_lab.support.reading import MAX_BYTES, InputError, open_regular, parse_json, read_small


def test_a_file_is_read_whole_up_to_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_small(path) == b"12345"
    assert read_small(path, 5) == b"12345"
    with pytest.raises(InputError, match=r"^.*/f: too large; such a file has at most 4 bytes$"):
        read_small(path, 4)
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match="too large"):
        read_small(path)


def test_only_regular_files(tmp_path: Path) -> None:
    places = [tmp_path, Path(os.devnull)]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")  # nobody writes to it: whoever waits here waits for ever
        (tmp_path / "link").symlink_to("fifo")
        places += [tmp_path / "fifo", tmp_path / "link"]
    for place in places:
        with pytest.raises((InputError, PermissionError), match=r"not a regular file|ermission denied"):
            open_regular(place)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nowhere")


def test_no_handle_is_left_open(tmp_path: Path) -> None:
    def lowest() -> int:
        handle = os.open(os.devnull, os.O_RDONLY)
        os.close(handle)
        return handle

    before = lowest()
    for _ in range(5):
        with pytest.raises((InputError, PermissionError)):
            open_regular(tmp_path)
    assert lowest() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"\\u001b": 1, "\\u001b": 2}', r"duplicate key '\\x1b'"),
        (b'{"\\ud800": 1}', "cannot be read"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[1e", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"", "cannot be read"),
        (b"[" + b"9" * 5000 + b"]", "cannot be read"),
    ],
)
def test_what_is_no_json(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_constants_where_they_may_stand() -> None:
    assert parse_json(b"[Infinity, -Infinity, 1]", constants=True) == [float("inf"), -float("inf"), 1]
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
