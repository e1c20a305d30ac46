"""Write results so that nothing is lost: whole or not at all, never over what is read, and nothing half-written stays.

Every output goes through `replacing`. What is written is a part file beside its place, moved there when it is whole;
one that a kill has left is removed by the next output into that folder. A link is followed. A device and a FIFO are
written into and stay what they are.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.jsontext import json_pieces
from precision_lab.support.text import shown

if sys.platform != "win32":  # there a file that is open cannot be removed, which is lock enough for part files
    import fcntl

STANDARD_OUTPUT = Path("-")
"""What stands for standard output. It is known by identity: a file of this name can be written to."""

PART = ".precision-lab-part-"
"""How the names of part files begin."""


class OutputError(ValueError):
    """A place that cannot be written to, in one line: where, why, and the cure."""


# ---- places ----


def output(name: str) -> Path:
    """Return the place that a command line names: ``-``, or the file or FIFO that standard output is, is that."""
    path = Path(name)
    if name == "-":
        return STANDARD_OUTPUT
    with suppress(OSError, ValueError):  # not there; no standard output
        if os.path.samestat(path.stat(), os.fstat(1)) and not _is_sink(path):
            return STANDARD_OUTPUT
    return path


def check_outputs(outputs: Mapping[str, Path], inputs: Iterable[Path] = ()) -> None:
    """Raise before the work, not after it, if an output cannot be written, or is an input or another output.

    Parameters
    ----------
    outputs : mapping of str to Path
        The places, by what they are called in a message.
    inputs : iterable of Path
        All files that are read. Files are compared after links, hard links too, whether they are there or not.

    Raises
    ------
    OutputError
        In one line.

    """
    taken = {_identity(path): f"the file {shown(path, 4096)}, which is read" for path in inputs}
    for name, path in outputs.items():
        same = taken.get(_identity(path))
        if same is not None and not _is_sink(path):
            raise OutputError(f"{name} {shown(path, 4096)} is {same}; choose another place")
        taken[_identity(path)] = f"what {name} writes"
        check_writable(path)


def _identity(path: Path) -> tuple[int, int] | str:
    """Return what two names of one file have in common."""
    if path is STANDARD_OUTPUT:
        return "-"
    with suppress(OSError, ValueError):
        status = path.stat()
        return (status.st_dev, status.st_ino)
    with suppress(OSError, ValueError):  # not there
        return os.path.normcase(os.path.realpath(path))
    return str(path)  # no name that a file could have


def _mode(path: Path) -> int | None:
    """Return the kind of a file, links followed; None if it is not there."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _is_sink(path: Path) -> bool:
    """Say whether it is a device such as the null device or a terminal, which takes any number of outputs."""
    with suppress(OSError, ValueError):
        return stat.S_ISCHR(_mode(path) or 0)
    return False


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OutputError if nothing could be written there: found out before the work, not after it."""
    place = path if isinstance(path, Path) else Path(path)
    with _blaming(place, "choose another place"):
        if _stream(place):
            return
        part, handle = _new_part(Path(os.path.realpath(place)))
        _remove(part, handle)


@contextmanager
def _blaming(path: Path, cure: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # who read our output has gone, and needs no word
        raise
    except OSError as error:
        raise OutputError(f"{shown(path, 4096)}: cannot write: {error.strerror or error}; {cure}") from error


def _stream(path: Path) -> bool:
    """Say whether it is written into, and not replaced; raise OSError if it is neither."""
    if path is STANDARD_OUTPUT:
        return True
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a name holds no null character")
    mode = _mode(path)
    if mode is None:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "it is a device or a socket")
    if not os.access(path, os.W_OK):  # a file that is protected is not replaced either
        raise PermissionError(errno.EACCES, "it is protected against writing")
    return not stat.S_ISREG(mode)


# ---- writing ----


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new file to write to, which becomes `path` if the block succeeds.

    If it does not (an error, Ctrl-C), `path` is as it was and the new file is gone. What stands in the way is replaced
    and its permissions are kept; a link is followed; a device or a FIFO gets the content at the end.

    Raises
    ------
    OutputError
        Nothing can be written there.

    """
    place = path if isinstance(path, Path) else Path(path)
    with _blaming(place, "choose another place"):
        stream = _stream(place)
        if not stream:
            target = Path(os.path.realpath(place))
            part, handle = _new_part(target)
    if stream:
        with tempfile.TemporaryDirectory(prefix="precision-lab-") as folder:
            content = Path(folder, "output")
            yield content
            with _blaming(place, "choose another place"):
                _pour(content.read_bytes(), place)
        return
    try:
        with _blaming(place, "free some space or choose another place"):
            yield part
            os.fsync(handle)  # or a machine that goes down could leave an empty file under the new name
            mode = _mode(target)
            if mode is not None:
                part.chmod(stat.S_IMODE(mode))
            if sys.platform == "win32":  # it moves no file that is open
                os.close(handle)
                handle = -1
            part.replace(target)
    finally:
        _remove(part, handle)


def _pour(content: bytes, path: Path) -> None:
    """Write into what is no regular file."""
    if path is STANDARD_OUTPUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:  # not blocking: a FIFO that nobody reads would keep us waiting for ever
        handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads from it") from error
        raise
    with os.fdopen(handle, "wb") as file:
        if hasattr(os, "set_blocking"):
            os.set_blocking(handle, True)
        file.write(content)


def _new_part(target: Path) -> tuple[Path, int]:
    """Make a file beside the target that is locked as long as its handle is open; remove those of the dead."""
    _remove_left_parts(target.parent)
    while True:
        part = target.parent / f"{PART}{secrets.token_hex(8)}"
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if _lock(handle, wait=False) is not False and part.exists():
            return part, handle
        os.close(handle)  # somebody took it for one of the dead before it was locked


def _remove(part: Path, handle: int) -> None:
    if sys.platform == "win32" and handle >= 0:
        os.close(handle)
    part.unlink(missing_ok=True)
    if sys.platform != "win32":
        os.close(handle)


def _remove_left_parts(folder: Path) -> None:
    """Remove part files whose process was killed: those that nobody has locked."""
    with os.scandir(folder) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(PART)]
    for path in left:
        with suppress(OSError):
            if sys.platform == "win32":
                path.unlink()
                continue
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _lock(handle, wait=False):
                    path.unlink()
            finally:
                os.close(handle)


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
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"{shown(folder, 4096)}: cannot make this folder: {why}; choose another place") from error
    return folder


# ---- locks ----


def _lock(handle: int, *, wait: bool) -> bool | None:
    """Lock an open file or folder until it is closed; False if somebody else has, None where nothing can be locked."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


@contextmanager
def only_one(place: str | Path) -> Iterator[None]:
    """Wait until no other process does work that is kept in this file or folder, which must be there; say so once.

    So that what two are asked for is done once: who waited finds it done. The lock goes with its process, however that
    ends, and leaves nothing. Where the system or the file system has no locks (Windows), nobody waits.

    Raises
    ------
    OutputError
        It cannot be opened.

    """
    if sys.platform == "win32":
        yield
        return
    path = Path(place)
    with _blaming(path, "choose another place"):
        handle = os.open(path, os.O_RDONLY)
    try:
        if _lock(handle, wait=False) is False:
            logging.getLogger("precision_lab").warning("%s: another process works here; waiting", shown(path, 4096))
            _lock(handle, wait=True)
        yield
    finally:
        os.close(handle)
