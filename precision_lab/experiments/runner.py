"""Run what is missing, here or in other processes, keep what is finished, and put all of it into one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from pathlib import Path
from threading import Thread
from typing import Any

from precision_lab.experiments.kept import Finished, digest, keep, machine, versions
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.support.plain import header

Progress = Callable[[str, int, int], None]
"""Called with the name of an experiment, what of it is done, and all of it."""

_listener: Any = None  # in a process of its own: where progress is put


def listen(queue: Any) -> None:
    """Say where a process that runs experiments puts (name, done, of how many): anything with a ``put``."""
    global _listener
    _listener = queue


def _work(name: str, config: Any, progress: Progress | None = None) -> tuple[dict[str, Any], float]:
    """Run an experiment in this process; what goes back is plain data."""
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if progress is not None:
            progress(name, done, total)
        elif _listener is not None and (done == total or time.monotonic() > last + 0.2):
            last = time.monotonic()
            _listener.put((name, done, total))

    started = time.perf_counter()
    result = EXPERIMENTS[name].run(config, progress=tell)
    return result.to_dict(), time.perf_counter() - started


def _spread(name: str, config: Any, executor: Executor, progress: Progress) -> tuple[dict[str, Any], float]:
    """Run an experiment that spreads its own work over the processes."""
    started = time.perf_counter()
    result = EXPERIMENTS[name].run(config, executor=executor, progress=lambda done, total: progress(name, done, total))
    return result.to_dict(), time.perf_counter() - started


def _in_a_thread(call: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call in a thread that nobody waits for when the program ends."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def run(
    configs: Mapping[str, Any],
    folder: Path,
    *,
    executor: Executor | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Iterator[Finished]:
    """Run experiments, keep each when it is finished, and yield it.

    Parameters
    ----------
    configs : mapping of str to configuration
        By names of `EXPERIMENTS`.
    folder : Path
        Where they are kept.
    executor : concurrent.futures.Executor, optional
        Where the work goes, all experiments at once; default: this process, one after the other. Its processes tell
        their progress to where `listen` says.
    progress : callable
        As `Progress`, for what runs in this process, and for what has come to its end.

    Raises
    ------
    OutputError
        Nothing can be kept in the folder.

    """
    # digest before running, so that an edit during the run invalidates the result
    states = {name: digest(EXPERIMENTS[name], config) for name, config in configs.items()}
    if executor is None:
        for name, config in configs.items():
            yield keep(name, folder, states[name], *_work(name, config, progress))
        return
    # the long work in small pieces comes last: it fills what the others leave
    futures = {
        _in_a_thread(_spread, name, configs[name], executor, progress)
        if EXPERIMENTS[name].spread
        else executor.submit(_work, name, configs[name]): name
        for name in sorted(configs, key=lambda name: EXPERIMENTS[name].spread)
    }
    for future in as_completed(futures):
        name = futures[future]
        finished = keep(name, folder, states[name], *future.result())
        progress(name, 1, 1)
        yield finished


def results(finished: Sequence[Finished], *, quick: bool) -> dict[str, Any]:
    """Put finished experiments together: the content of ``results.json``.

    Returns
    -------
    dict
        Plain JSON types::

            {
              "kind": "precision_lab report", "version": 1,
              "experiments": {name: the result's to_dict()},   # configuration and seeds among it, under "config"
              "configs": {name: its configuration},
              "answers": {name: what came out, in a line},
              "seconds": {name: what it took when it was run},
              "versions": {"precision_lab": ..., "numpy": ..., "ml_dtypes": ..., "numba": ..., "python": ...},
              "machine": {"cpu": model, "cores": number, "platform": system and processor},
              "quick": whether these are the quick configurations,
            }

        Names in the order of `EXPERIMENTS`. An infinity or NaN is text; no host name, no path.

    """
    by_name = {one.name: one for one in finished}
    ordered = [by_name[name] for name in EXPERIMENTS if name in by_name]
    return {
        **header("report"),
        "experiments": {one.name: one.data for one in ordered},
        "configs": {one.name: one.data["config"] for one in ordered},
        "answers": {one.name: one.answer for one in ordered},
        "seconds": {one.name: round(one.seconds, 1) for one in ordered},
        "versions": versions(),
        "machine": machine(),
        "quick": quick,
    }
