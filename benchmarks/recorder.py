"""What GradientRecorder costs, as a share of the training steps that it watches (needs torch: make test-all's .venv).

Plain and recorded steps of one model and optimizer take turns, so that a machine that slows down slows both; each
figure is the ratio of the lower quartiles of means of 30 steps. On a busy machine use --threads 1,
which measures the time of the CPU: threads of torch that wait for each other measure the neighbours.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from precision_lab.torch import GradientRecorder

BURST = 30  # steps: one recorded one with every=30
SIZES = (784, 1024, 512, 10)
BATCHES = (64, 256)
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-4),
}


def network() -> Any:
    layers: list[Any] = []
    for inputs, outputs in itertools.pairwise(SIZES):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def recorders(model: Any, optimizer: Any) -> dict[str, tuple[Any, bool]]:
    """Recorders by what they record, and whether `step` is to be called."""
    return {
        "gradients": (GradientRecorder(model), True),
        "gradients, updates": (GradientRecorder(model, optimizer, formats=()), False),
        "and what bf16 loses of them": (GradientRecorder(model, optimizer, formats=("bf16",)), False),
        "and what bf16 and fp16 lose": (GradientRecorder(model, optimizer), False),
        "gradients, every=4": (GradientRecorder(model, every=4), True),
        "all of it, every=30": (GradientRecorder(model, optimizer, every=30), False),
    }


def measure(batch: int, name: str, seconds: float) -> tuple[int, float, dict[str, float]]:
    """Return the number of parameters, the median milliseconds a plain step, and what each recorder adds to it."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    inputs, labels = torch.randn(batch, SIZES[0]), torch.randint(0, SIZES[-1], (batch,))

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def step(recorder: Any = None) -> float:
        start = clock()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if recorder is not None:
            recorder.step()
        return clock() - start

    contenders = recorders(model, optimizer)
    times: dict[str, list[float]] = {what: [] for what in ("", *contenders)}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[""]) < 12:
        for what, (recorder, by_hand) in contenders.items():
            step()
            times[""].append(sum(step() for _ in range(BURST)) / BURST)
            with recorder:
                step(recorder if by_hand else None)  # what is made once
                times[what].append(sum(step(recorder if by_hand else None) for _ in range(BURST)) / BURST)
    quartiles = {what: float(np.quantile(found, 0.25)) for what, found in times.items()}
    plain = quartiles.pop("")
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, plain * 1e3, {what: found / plain - 1 for what, found in quartiles.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all together")
    parser.add_argument("--threads", type=int, help="of torch; with 1 CPU time is measured, not wall time")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    results = {
        (name, batch): measure(batch, name, arguments.seconds / (len(OPTIMIZERS) * len(BATCHES)))
        for name in OPTIMIZERS
        for batch in BATCHES
    }
    parameters = next(iter(results.values()))[0]
    threads = torch.get_num_threads()
    title = f"What a recorded step takes more than a plain one; {parameters:,} parameters, {threads} threads"
    table = Table(title=title, title_justify="left", min_width=90)
    table.add_column("")
    for (name, batch), (_, milliseconds, _) in results.items():
        table.add_column(f"{name}, batch {batch}\n{milliseconds:.1f} ms", justify="right")
    for what in next(iter(results.values()))[2]:
        table.add_row(what, *(f"{100 * found[what]:.0f} %" for _, _, found in results.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
