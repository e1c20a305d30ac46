"""Read small files of the user's: regular files only, and never more than a bound."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from precision_lab.support.text import shown

MAX_BYTES = 100_000_000
"""What is read of a small file: the limit of the reference implementation of safetensors for its header."""


CHANGED = "it was changed while it was read; read it again when it is finished"


class InputError(ValueError):
    """A file that cannot be read, in one line: where, why, and the cure."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file, buffered; a FIFO does not make it wait, and no device is read.

    Raises
    ------
    InputError
        It is no regular file.
    OSError
        It cannot be opened.

    """
    # not blocking: a FIFO that nobody writes to would keep it waiting, before it could be seen that it is one
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InputError(f"{shown(path, 4096)}: not a regular file; give a file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def state_of(file: int | str | Path) -> tuple[int, int]:
    """Return what changes where a file is changed: its size, and when it was written last.

    Not the number of its inode: some network file systems give a file a new one each time they are asked. A file of
    the same size that is put in its place has another time.
    """
    status = os.stat(file)  # noqa: PTH116 - of a handle, too
    return status.st_size, status.st_mtime_ns


def read_small(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """Read a whole file of at most so many bytes.

    Raises
    ------
    InputError
        It is no regular file, or larger; it was changed while it was read.
    OSError
        It cannot be read.

    """
    with open_regular(path) as file:
        before = state_of(file.fileno())
        content = file.read(limit + 1)
        changed = state_of(file.fileno()) != before
    if len(content) > limit:
        raise InputError(f"{shown(path, 4096)}: too large; such a file has at most {limit} bytes")
    if changed:
        raise InputError(f"{shown(path, 4096)}: {CHANGED}")
    return content


def parse_json(
    content: bytes, *, constants: bool = False, lighter: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Parse JSON in UTF-8, and refuse what json.loads lets pass: duplicate keys, lone surrogates in them, NaN.

    Parameters
    ----------
    content : bytes
        The text.
    constants : bool
        Whether NaN, Infinity and -Infinity may stand for numbers.
    lighter : callable, optional
        Gives what is to stand for an object, of which there may be very many.

    Raises
    ------
    ValueError
        It is no such JSON, or nested too deeply; without the name of the file.

    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        members: dict[str, Any] = {}
        for key, value in pairs:
            key.encode()  # a lone surrogate is no text, and nobody could print it
            if key in members:
                raise ValueError(f"duplicate key '{shown(key, 100)}'")
            members[key] = value
        return members if lighter is None else lighter(members)

    def no_constant(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    refuse = None if constants else no_constant
    try:
        return json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("the JSON cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the JSON cannot be read: {error}") from error
