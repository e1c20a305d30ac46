"""Many runs: in this process or on any executor, and so that nothing is lost when the machine goes down.

A finished run is appended to a checkpoint file, one line of JSON each with a digest of itself, and written through to
the disk before the next result is taken. A sweep that was killed is started again with the same configurations and the
same file: what is in the file is not run again. A last line that was cut short by the kill is dropped and its run
repeated, and so is the run of a line that was changed; a file that is something else is refused and left as it is. Two
sweeps with one file work one after the other, and the second finds what the first has done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from precision_lab.support.executors import completed
from precision_lab.support.files import only_one
from precision_lab.support.jsontext import digest_of
from precision_lab.support.reading import MAX_BYTES, InputError, open_regular, parse_json
from precision_lab.support.text import shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.result import TrainingResult


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
        The file of finished runs; made if it is not there. Where another sweep writes to it, this one waits.
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
    results: dict[str, TrainingResult] = {}

    def tell() -> None:
        if progress is not None:
            progress(len(results), len(places))

    with _appending(checkpoint) as file:
        if checkpoint is not None:
            results |= {key: result for key, result in _read(Path(checkpoint)).items() if key in places}
        missing = [config for key, config in places.items() if key not in results]
        tell()
        for key, data in _results(missing, executor):
            if checkpoint is not None and file is not None:
                _write(file, data, checkpoint)
            results[key] = TrainingResult.from_dict(data)
            tell()
    return [results[_key(config)] for config in configs]


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
    results = {}
    end = 0  # of the whole lines
    try:
        with open_regular(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES), b""), start=1):
                if not line.endswith(b"\n"):
                    # cut off only what was begun here: this may be any file of the user's
                    if line[: len(_BEGINNING)] != _BEGINNING[: len(line)] or len(line) == MAX_BYTES:
                        raise _foreign(path, number)
                    os.truncate(path, end)
                    break
                end += len(line)
                result = _result(path, number, line)
                if result is not None:
                    results[_key(result.config)] = result
    except OSError as error:
        raise _unusable(path, "cannot read", error) from error
    except InputError as error:
        raise CheckpointError(str(error)) from error
    return results


_BEGINNING = b'{"kind": "precision_lab training result"'


def _result(path: Path, number: int, line: bytes) -> TrainingResult | None:
    """Return the result of a line; None if it is not as it was written, and must be made again."""
    try:
        data = parse_json(line)
        if not isinstance(data, dict) or not data.keys() >= {"config", "digest"}:
            raise ValueError("this is no training result")
        digest = data.pop("digest")
        return TrainingResult.from_dict(data) if digest == digest_of(data) else None
    except ValueError as error:
        raise _foreign(path, number) from error


def _foreign(path: Path, line: int) -> CheckpointError:
    what = "not a result of a sweep; choose another file, or delete this line"
    return CheckpointError(f"{shown(path, 4096)}, line {line}: {what}")


def _unusable(path: str | Path, what: str, error: OSError) -> CheckpointError:
    return CheckpointError(f"{shown(path, 4096)}: {what}: {error.strerror}; choose another file")


@contextmanager
def _appending(path: str | Path | None) -> Iterator[BinaryIO | None]:
    """Open a checkpoint to append to, made if it is not there, when no other sweep works with it."""
    if path is None:
        yield None
        return
    try:
        if Path(path).exists():
            open_regular(path).close()  # a FIFO or a device is refused before it is opened for writing
        # unbuffered, so that nothing is left to be written when it is closed
        file = Path(path).open("ab", buffering=0)  # noqa: SIM115
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise _unusable(path, "cannot write", error) from error
    with file, only_one(path):
        yield file


def _write(file: BinaryIO, data: dict[str, Any], path: str | Path) -> None:
    """Append a line and wait until the disk has it."""
    line = (json.dumps(data | {"digest": digest_of(data)}, allow_nan=False) + "\n").encode()
    try:
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise _unusable(path, "cannot write", error) from error
