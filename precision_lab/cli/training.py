"""What training takes and costs: `hyperparameters`, `memory`, `train`."""

from __future__ import annotations

from pathlib import Path

import click

from precision_lab.cli.options import (
    Checkpoint,
    Input,
    command,
    figure_option,
    formats_option,
    hyperparameter_option,
    json_option,
    optimizer_option,
    optimizer_options,
)
from precision_lab.cli.show import progress_bar, show
from precision_lab.cli.workers import dask_option, executor

_STORAGE_HELP = "A name such as pure_bf16, or weights=bf16,master=fp32 ...; as often as you like."


@command()
@formats_option
@optimizer_options
@json_option
@figure_option
def hyperparameters(
    chosen: tuple[str, ...],
    optimizer: str,
    steps: int,
    data: Path | None,
    figure: Path | None,
    **constants: float | None,
) -> None:
    """Report what an optimizer's constants become.

    Whether lr, beta1, beta2, epsilon (--eps), 1 - lr*weight_decay, the step counter and the bias corrections survive in
    a format, what follows if they do not, and what helps: where all of them are held in it, and as torch has them, most
    as doubles. What is not given is torch's default; without -f: fp16 and bf16. The status is 0 also where a finding is
    fatal.

    \b
    precision-lab hyperparameters -f bf16 --lr 1e-4 --beta2 0.999 --weight-decay 0.1
    precision-lab hyperparameters -f fp16 --optimizer sgd --lr 0.1 --momentum 0.99
    precision-lab hyperparameters --eps 1e-6 --json findings.json --figure findings.png
    """
    from precision_lab.numerics.formats import get_format
    from precision_lab.presentation.tables.hyperparameters import hyperparameters_table
    from precision_lab.support.files import write_json
    from precision_lab.support.plain import header
    from precision_lab.training.hyperparameters import audit_hyperparameters

    formats = dict.fromkeys(map(get_format, chosen or ("fp16", "bf16")))
    audits = [audit_hyperparameters(fmt, optimizer=optimizer, steps=steps, **constants) for fmt in formats]
    for one in audits:
        show(hyperparameters_table(one))
    if data is not None:
        write_json(header("hyperparameter audits") | {"audits": [one.to_dict() for one in audits]}, data)
    if figure is not None:
        from precision_lab.presentation.plots.hyperparameters import hyperparameters_figure
        from precision_lab.presentation.plots.style import save_figure

        save_figure(hyperparameters_figure(audits), figure)


@command()
@click.option(
    "--parameters", default="7e9", show_default=True, metavar="N", help="Number of parameters: 7e9, 124_000_000."
)
@optimizer_option("adamw", "momentum")
@click.option("--storage", "chosen", multiple=True, metavar="S", help=_STORAGE_HELP)
@click.option("--activations", default="0", metavar="N", help="Elements that forward keeps for backward.")
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Data-parallel ranks, for ZeRO.",
)
@json_option
def memory(
    parameters: str, optimizer: str, chosen: tuple[str, ...], activations: str, ranks: int, data: Path | None
) -> None:
    """Report what each storage configuration takes in bytes.

    Every buffer that training holds from step to step, by format, and the peak within a step; with --ranks also what
    ZeRO leaves on each and what a step sends over the network. Activations come on top, in the format that each
    configuration keeps them in.

    \b
    precision-lab memory --parameters 7e9 --optimizer adamw
    precision-lab memory --parameters 1.3e9 --storage master_bf16 --storage pure_bf16 --ranks 8
    """
    from precision_lab.presentation.tables.memory import memory_tables
    from precision_lab.support.files import write_json
    from precision_lab.training.memory import ledgers, memory_report

    memory_ledgers = ledgers(chosen, optimizer, parameters, activations)
    for table in memory_tables(memory_ledgers, ranks):
        show(table)
    if data is not None:
        write_json(memory_report(memory_ledgers, ranks), data)


@command()
@click.option(
    "--storage", "chosen", multiple=True, default=("all",), metavar="S", help=_STORAGE_HELP + " Default: all."
)
@click.option(
    "--model", default="mlp", show_default=True, metavar="M", help="mlp, least_squares, transformer, fine_tuning."
)
@click.option(
    "--data",
    "dataset",
    type=Input(str),
    default="",
    metavar="D",
    help="digits, regression, topics, minilm, or a text file.",
)
@optimizer_option("adam")
@click.option("--lr", type=float, default=1e-3, show_default=True, metavar="X", help="Learning rate.")
@click.option(
    "--schedule",
    default="constant",
    show_default=True,
    metavar="S",
    help="Its shares: constant, linear or cosine, then warmup=N and final=X, as in cosine,warmup=100,final=0.1.",
)
@hyperparameter_option("beta2")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, metavar="X", help="0: none.")
@click.option("--steps", type=int, default=4000, show_default=True, metavar="N", help="Updates of each run.")
@click.option("--batch", type=int, default=64, show_default=True, metavar="N", help="Examples per step.")
@click.option(
    "--seeds", type=int, metavar="N", help="Runs of each, seeds 0, 1, ...; default: 5, and 10 of what scatters."
)
@click.option("--workers", "processes", type=int, metavar="N", help="Processes; default: one per core.")
@dask_option
@click.option("--checkpoint", type=Checkpoint(), metavar="FILE", help="Keep finished runs, and go on.")
@json_option
@figure_option
def train(
    chosen: tuple[str, ...],
    model: str,
    dataset: str,
    optimizer: str,
    lr: float,
    schedule: str,
    beta2: float | None,
    weight_decay: float,
    steps: int,
    batch: int,
    seeds: int | None,
    processes: int | None,
    dask: str | None,
    checkpoint: Path | None,
    data: Path | None,
    figure: Path | None,
) -> None:
    """Train a small model under storage configurations.

    The same model, data, seeds and optimizer; only where values are rounded differs. A float32 control of each seed is
    always among the runs. Nothing is judged with one seed, or where the control does not come below half of its first
    loss. An interrupted command with --checkpoint goes on where it stopped.

    \b
    precision-lab train --storage all --optimizer adam --lr 1e-3 --steps 4000 --json runs.json
    precision-lab train --storage pure_bf16 --storage weights=bf16,master=fp32 --optimizer sgd --lr 0.01
    precision-lab train --model transformer --data novel.txt --steps 500 --seeds 2
    precision-lab train --optimizer adamw --beta2 0.95 --weight-decay 0.1 --schedule cosine,warmup=100
    """
    from precision_lab.experiments.storage import Setting, StorageExperimentConfig, run
    from precision_lab.presentation.tables.storage import storage_tables
    from precision_lab.support.files import write_json
    from precision_lab.training.config import TrainingConfig
    from precision_lab.training.optimizers import check_has
    from precision_lab.training.schedule import Schedule

    check_has(optimizer, () if beta2 is None else ("beta2",))
    base = TrainingConfig(
        model=model,
        dataset=dataset,
        activation="gelu" if model == "transformer" else "relu",
        optimizer=optimizer,
        learning_rate=lr,
        schedule=Schedule.parse(schedule),
        beta2=TrainingConfig.beta2 if beta2 is None else beta2,
        weight_decay=weight_decay,
        steps=steps,
        batch_size=batch,
        against_fp32=True,
    )
    config = StorageExperimentConfig(
        configurations=chosen,
        settings=(Setting(optimizer, lr),),
        base=base,
        **({} if seeds is None else {"seeds": seeds, "more_seeds": seeds}),
        miniatures=(),
        sections=(),
        axes=(),
    )
    with executor(processes, dask, default=None) as pool, progress_bar("Training") as progress:
        result = run(config, executor=pool, checkpoint=checkpoint, progress=progress)
    for table in storage_tables(result):
        show(table)
    if data is not None:
        write_json(result.to_dict(), data)
    if figure is not None:
        from precision_lab.presentation.plots.storage import training_figure
        from precision_lab.presentation.plots.style import save_figure

        save_figure(training_figure(result), figure)
