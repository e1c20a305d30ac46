"""What a training step costs under storage configurations, as ratios to a plain float32 step in NumPy (plain.py).

The digits MLP, batches of 64, Adam. Beside it: the same MLP in torch in bf16 on the CPU, and our step with the rounding
of activations and gradients done by the peers, one operation after the other (the optimizer keeps ours, which flatters
them). Then the transformer, batches of 32 windows, in two configurations. All take turns (timing.py), on one thread.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import platform
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import plain
from rich.console import Console
from rich.table import Table
from timing import Function, interleaved

from precision_lab.training.config import TrainingConfig, load_data
from precision_lab.training.datasets import digits
from precision_lab.training.models import MLP, Model, Transformer, places
from precision_lab.training.optimizers import Adam
from precision_lab.training.step import Recipe, begin, training_step
from precision_lab.training.storage import CONFIGURATIONS

AT_MOST = {"master_bf16": "0.8", "transformer, fp32": "1.2", "transformer, master_bf16": "1.2"}
MODEL = MLP((64, 64, 10))
INPUTS, LABELS = digits().inputs[:64], digits().labels[:64]
PLAIN = "plain float32 NumPy"


def ours(name: str, model: Model = MODEL, inputs: np.ndarray = INPUTS, targets: np.ndarray = LABELS) -> Function:
    parameters = model.init()
    recipe = Recipe(
        model, Adam(1e-3, epsilon=1e-6), CONFIGURATIONS[name], {key: w.shape for key, w in parameters.items()}
    )
    state = begin(parameters, recipe)

    def step() -> None:
        nonlocal state
        state, _ = training_step(state, recipe, inputs, targets)

    return step


def by_peer(function: Callable[[np.ndarray], np.ndarray]) -> Function:
    """Put another rounding in the places of the model."""
    step = ours("master_bf16")

    def run() -> None:
        with places.separate_operations(), patch.object(places, "codec", lambda fmt: SimpleNamespace(round=function)):
            step()

    return run


def peers() -> dict[str, Function]:
    """What is installed of them."""
    found: dict[str, Function] = {}
    try:
        import torch

        torch.set_num_threads(1)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).bfloat16()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
        inputs, labels = torch.tensor(INPUTS).bfloat16(), torch.tensor(LABELS)

        def step() -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs).float(), labels).backward()
            optimizer.step()

        found[f"torch {version('torch')}, bf16 on the CPU"] = step
    except ImportError:
        print("torch is not installed: left out")
    try:
        import gfloat
        from gfloat.formats import format_info_bfloat16

        found[f"ours with gfloat {version('gfloat')}"] = by_peer(
            lambda x: gfloat.round_ndarray(format_info_bfloat16, x.astype(np.float64)).astype(np.float32)
        )
    except ImportError:
        print("gfloat is not installed: left out")
    try:
        import pychop

        pychop.backend("numpy")
        chop = pychop.Chop(exp_bits=8, sig_bits=7)
        found[f"ours with pychop {version('pychop')}"] = by_peer(lambda x: np.asarray(chop(x), np.float32))
    except ImportError:
        print("pychop is not installed: left out")
    return found


def transformers() -> tuple[Function, dict[str, Function]]:
    """The plain step of the transformer of one layer that reads documentation, and ours."""
    config = TrainingConfig(model="transformer", hidden=(32,), activation="gelu")
    data, _ = load_data(config)
    model, inputs, targets = config.build_model(data), data.inputs[:32], data.labels[:32]
    assert isinstance(model, Transformer)
    group = {f"transformer, {name}": ours(name, model, inputs, targets) for name in ("fp32", "master_bf16")}
    return plain.transformer(model, inputs, targets), group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for ours, and again for the peers")
    arguments = parser.parse_args()
    console = Console(width=100)
    console.print(f"Python {platform.python_version()}, numpy {version('numpy')}, {platform.machine()}")
    mine = {name: ours(name) for name in CONFIGURATIONS}
    table = Table(title="A training step: digits MLP 64-64-10, batch 64, Adam", title_justify="left", min_width=80)
    table.add_column("")
    for heading in ("microseconds", "x plain", "at most"):
        table.add_column(heading, justify="right")
    for baseline, group in (
        (plain.mlp(MODEL, INPUTS, LABELS), mine),
        (plain.mlp(MODEL, INPUTS, LABELS), peers()),
        transformers(),
    ):
        medians = interleaved({PLAIN: baseline} | group, arguments.seconds)
        table.add_section()
        for name, median in medians.items():
            table.add_row(name, f"{median * 1e6:,.0f}", f"{median / medians[PLAIN]:.2f}", AT_MOST.get(name, ""))
    console.print(table)


if __name__ == "__main__":
    main()
