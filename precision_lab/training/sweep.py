"""Many runs: in this process or on any executor, and so that nothing is lost when the machine goes down.

A finished run is appended to a checkpoint file, one line of JSON each, and written through to the disk before the next
result is taken. A sweep that was killed is started again with the same configurations and the same file: what is in the
file is not run again. A last line that was cut short by the kill is dropped and its run repeated; a file that is
something else is refused and left as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from precision_lab.numerics.spread import completed
from precision_lab.training.loop import TrainingConfig, TrainingResult, train


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used, in one line: where, why, and the cure."""


def sweep(
    configs: Sequence[TrainingConfig],
    *,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TrainingResult]:
    """Train every configuration.

    Parameters
    ----------
    configs : sequence of TrainingConfig
        In any order; equal ones are run once.
    executor : concurrent.futures.Executor, optional
        Where the runs go; default: this process, one after the other. A run is the same bits wherever it is done.
    checkpoint : path, optional
        The file of finished runs; made if it is not there. One sweep at a time writes to it.
    progress : callable, optional
        Called with the number of runs done and of all runs: before the first, and after each.

    Returns
    -------
    list of TrainingResult
        In the order of `configs`. Without snapshots and parameters, as read back from their dictionaries: what comes
        from the checkpoint and what was just run cannot be told apart.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be read or written, or a line within it is no result.
    WorkersLostError
        The executor cannot go on; what was finished is in the checkpoint.
    FloatingPointError
        As `precision_lab.round_to`; in a worker, too.

    """
    places: dict[str, TrainingConfig] = {_key(config): config for config in configs}
    found: dict[str, TrainingResult] = {}
    if checkpoint is not None:
        found = {key: result for key, result in _read(Path(checkpoint)).items() if key in places}
    missing = [config for key, config in places.items() if key not in found]

    def tell() -> None:
        if progress is not None:
            progress(len(found), len(places))

    tell()
    with _appending(checkpoint) as file:
        for key, data in _results(missing, executor):
            if checkpoint is not None and file is not None:
                _write(file, data, checkpoint)
            found[key] = TrainingResult.from_dict(data)
            tell()
    return [found[_key(config)] for config in configs]


def _key(config: TrainingConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True)


def _run(data: dict[str, Any]) -> dict[str, Any]:
    """Train from a dictionary to a dictionary: what goes to another process is plain data."""
    return train(TrainingConfig.from_dict(data)).to_dict()


def _results(configs: list[TrainingConfig], executor: Executor | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the key and the result of each run, as they finish."""
    for number, data in completed(_run, [config.to_dict() for config in configs], executor):
        yield _key(configs[number]), data


def _read(path: Path) -> dict[str, TrainingResult]:
    """Return the results of a checkpoint by key; cut off a last line that has no end."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unusable(path, "cannot read", error) from error
    *lines, rest = content.split(b"\n")
    found = {}
    for number, line in enumerate(lines, start=1):
        try:
            result = TrainingResult.from_dict(json.loads(line))
        except ValueError as error:
            raise _foreign(path, number) from error
        found[_key(result.config)] = result
    if rest:  # cut off only what was begun here: this may be any file of the user's
        if rest[: len(_BEGINNING)] != _BEGINNING[: len(rest)]:
            raise _foreign(path, len(lines) + 1)
        try:
            os.truncate(path, len(content) - len(rest))
        except OSError as error:
            raise _unusable(path, "cannot write", error) from error
    return found


_BEGINNING = b'{"config": {'


def _foreign(path: Path, line: int) -> CheckpointError:
    return CheckpointError(f"{path}, line {line}: not a result of a sweep; choose another file, or delete this line")


def _unusable(path: str | Path, what: str, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: {what}: {error.strerror}; choose another file")


@contextmanager
def _appending(path: str | Path | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
        return
    try:
        # unbuffered, so that nothing is left to be written when it is closed
        file = Path(path).open("ab", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _unusable(path, "cannot write", error) from error
    with file:
        yield file


def _write(file: BinaryIO, data: dict[str, Any], path: str | Path) -> None:
    """Append a line and wait until the disk has it."""
    line = (json.dumps(data, allow_nan=False) + "\n").encode()
    try:
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise _unusable(path, "cannot write", error) from error
