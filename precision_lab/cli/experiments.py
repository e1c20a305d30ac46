"""The experiments: `report`, `underflow`."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from precision_lab.cli.options import output_option
from precision_lab.cli.show import progress_bar, show
from precision_lab.cli.workers import workers

_EXPERIMENTS = ("underflow", "swamping", "accumulation", "loss_scaling", "storage")  # modules of `experiments`
_PARALLEL = ("storage",)  # experiments whose runs are spread over processes


@click.command()
@output_option
@click.option("--steps", type=int, default=8000, show_default=True, metavar="N", help="Training steps.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of initialisation and batches.")
def underflow(output: Path, steps: int, seed: int) -> None:
    """Which gradients would each format lose?

    Trains a small network in float32 on handwritten digits and asks at the start, in the middle and near convergence.
    Writes underflow.png and underflow.json.
    """
    from precision_lab.experiments.underflow import UnderflowConfig

    _run_experiment("underflow", output, UnderflowConfig(steps=steps, seed=seed))


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(_EXPERIMENTS), metavar="[EXPERIMENT]...")
@output_option
def report(names: tuple[str, ...], output: Path) -> None:
    """Run every experiment, or those that are named.

    Prints the tables and writes EXPERIMENT.png and EXPERIMENT.json for each: underflow, swamping, accumulation,
    loss_scaling, storage.

    \b
    precision-lab report
    precision-lab report underflow -o results
    """
    for name in names or _EXPERIMENTS:
        _run_experiment(name, output)


def _run_experiment(name: str, output: Path, config: object = None) -> None:
    """Run a module of `experiments`; its figure and its tables go by its name."""
    from precision_lab.presentation import plots, tables
    from precision_lab.presentation.files import check_writable, make_folder, write_json

    experiment = importlib.import_module(f"precision_lab.experiments.{name}")
    picture, data = make_folder(output) / f"{name}.png", output / f"{name}.json"
    check_writable(picture)
    check_writable(data)
    with progress_bar(name.replace("_", " ").capitalize()) as progress:
        if name in _PARALLEL:
            with workers(None) as executor:
                result = experiment.run(config, executor=executor, progress=progress)
        else:
            result = experiment.run(config, progress=progress)
    for table in getattr(tables, f"{name}_tables")(result):
        show(table)
    plots.save_figure(getattr(plots, f"{name}_figure")(result), picture)
    write_json(result.to_dict(), data)
    click.echo(f"wrote {picture} and {data}")
