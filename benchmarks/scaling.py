"""How the cost of a scan grows with workers and files, for a process pool and for a Dask cluster on this machine.

Contenders take turns, and the shortest of each one's times is shown: that is what others on the machine disturb least.
The files are read from the memory of the operating system after the first turn: what storage adds is not measured here
(docs/scaling.md estimates it).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from precision_lab import ExponentHistogram, list_tensors, scan, threads
from precision_lab.support.executors import completed

ELEMENTS = 1 << 21  # float32 in a file: 8 MiB
FILES = (1, 8, 64)
ALONE, THREADS = "one thread", "a thread for each core"


@contextmanager
def dask(count: int) -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    quiet = {
        "processes": True,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.CRITICAL,
    }
    with LocalCluster(n_workers=count, **quiet) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(count)
        yield client.get_executor()


def make(folder: Path) -> dict[int, list[Path]]:
    rng = np.random.default_rng(0)
    data = rng.standard_normal(ELEMENTS, np.float32) * np.float32(2) ** rng.integers(-20, 0, ELEMENTS, np.int32)
    files = [folder / f"shard-{i:02}.safetensors" for i in range(max(FILES))]
    for file in files:
        save_file({"w": data.astype(np.float32)}, file)
    return {n: files[:n] for n in FILES}


def nothing(number: int) -> int:
    return number


def seconds(name: str, executor: Executor | None, files: list[Path]) -> float:
    start = time.perf_counter()
    with threads(1 if name == ALONE else None):
        result = scan(files, executor=executor, precision=False)
    elapsed = time.perf_counter() - start
    assert result.total.count == ELEMENTS * len(files)
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=1000, help="empty ones, for what a task costs")
    arguments = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = make(Path(folder))
        data = np.fromfile(files[1][0], np.float32)[-ELEMENTS:]
        executors: dict[str, Executor | None] = {ALONE: None, THREADS: None}
        for count in (1, 2):
            pool = stack.enter_context(ProcessPoolExecutor(count, get_context("spawn")))
            executors[f"process pool, {count}"] = pool
            executors[f"Dask, {count}"] = stack.enter_context(dask(count))
        for name, executor in executors.items():  # imports, compiled code, the operating system's memory
            seconds(name, executor, files[max(FILES)])
        times: dict[tuple[str, int], list[float]] = {(name, n): [] for name in executors for n in FILES}
        empty: dict[str, list[float]] = {name: [] for name in executors}
        counting: list[float] = []
        headers: list[float] = []
        for _ in range(arguments.rounds):
            for n in FILES:
                for name, executor in executors.items():
                    times[name, n].append(seconds(name, executor, files[n]))
            for name, executor in executors.items():
                start = time.perf_counter()
                assert len(list(completed(nothing, range(arguments.tasks), executor))) == arguments.tasks
                empty[name].append((time.perf_counter() - start) / arguments.tasks)
            start = time.perf_counter()
            with threads(1):
                ExponentHistogram.of(data)
            counting.append((time.perf_counter() - start) / data.size)
            start = time.perf_counter()
            for file in files[max(FILES)]:
                list_tensors(file)
            headers.append((time.perf_counter() - start) / max(FILES))

    table = Table(title=f"Files of {ELEMENTS:,} float32: ms", title_justify="left")
    table.add_column("")
    for n in FILES:
        table.add_column(f"{n} file{'s' if n > 1 else ''}", justify="right")
    table.add_column("ns/element", justify="right")
    table.add_column("x one thread", justify="right")
    table.add_column("µs an empty task", justify="right")
    base = float(min(times[ALONE, max(FILES)]))
    for name in executors:
        least = [float(min(times[name, n])) for n in FILES]
        table.add_row(
            name,
            *(f"{t * 1e3:,.0f}" for t in least),
            f"{least[-1] / max(FILES) / ELEMENTS * 1e9:.2f}",
            f"{base / least[-1]:.2f}",
            f"{float(min(empty[name])) * 1e6:,.0f}",
        )
    console.print(table)
    console.print(f"counting alone: {float(min(counting)) * 1e9:.2f} ns/element")
    console.print(f"the header of a file: {float(min(headers)) * 1e6:,.0f} µs")


if __name__ == "__main__":
    main()
