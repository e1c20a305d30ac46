"""Write results so that nothing half-written stays behind."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from precision_lab.numerics.environment import require_gradual_underflow
from precision_lab.support.jsontext import json_pieces


class OutputError(ValueError):
    """A place that cannot be written to, in one line: where, why, and the cure."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a new file beside `path` to write to, and move it there if the block succeeds.

    If it does not (an error, Ctrl-C), `path` is as it was and the new file is gone.

    Raises
    ------
    OutputError
        Nothing can be written there.

    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        Path(name).chmod(0o666 & ~_umask())  # mkstemp makes it private
    except OSError as error:
        raise OutputError(
            f"{target}: cannot write: {error.strerror or error}; choose another place with -o or --json"
        ) from error
    try:
        yield Path(name)
        Path(name).replace(target)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot write: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


class _LeaveItError(Exception):
    """Leaves `replacing` without moving anything."""


def check_writable(path: str | Path) -> None:
    """Raise OutputError if a file could not be written there: found out before the work, not after it."""
    with suppress(_LeaveItError), replacing(path):
        raise _LeaveItError


def write_json(data: Any, path: str | Path, *, indent: int | None = 1) -> None:
    """Write plain JSON (no NaN) atomically, for people or, without indentation, in one line; raises OutputError.

    And FloatingPointError where subnormal numbers are flushed to zero: Python would write 0.0 for them.
    """
    require_gradual_underflow()
    with replacing(path) as new, new.open("w", encoding="utf-8") as file:
        file.writelines(json_pieces(data, indent) if indent else [json.dumps(data, allow_nan=False)])
        file.write("\n")


def make_folder(path: str | Path) -> Path:
    """Make a folder for results if there is none; raises OutputError."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make this folder: {error.strerror}; choose another with -o") from error
    return folder
