"""Before the GPU hours: `preflight`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from precision_lab.cli.options import Input, command, dtype_option, json_option, optimizer_options
from precision_lab.cli.show import progress_bar, say, say_skipped, show


@command()
@click.argument("checkpoint", type=Input(), metavar="CKPT")
@click.option(
    "--storage",
    "chosen",
    multiple=True,
    metavar="S",
    help="What you mean to use: a name such as pure_bf16, or weights=bf16,master=fp32 ...; as often as you like.",
)
@partial(optimizer_options, default=None)
@click.option("--updates", type=Input(), metavar="U", help="Updates by the names of the weights.")
@click.option(
    "--optimizer-state",
    type=Input(),
    metavar="O",
    help="The saved optimizer: its hyperparameters, and moments, from which its updates follow.",
)
@click.option(
    "--parameter-names",
    type=Input(),
    metavar="P",
    help="Names of its numbered parameters in the order of its groups: one a line, or a JSON list.",
)
@click.option("--gradients", type=Input(), metavar="G", help="For the loss scale; and for sgd without momentum.")
@click.option(
    "--tolerance", type=float, default=0.0, show_default=True, metavar="X", help="Share that may be lost after all."
)
@json_option
@dtype_option
def preflight(
    checkpoint: Path,
    chosen: tuple[str, ...],
    optimizer: str | None,
    steps: int,
    updates: Path | None,
    optimizer_state: Path | None,
    parameter_names: Path | None,
    gradients: Path | None,
    tolerance: float,
    data: Path | None,
    dtype: str | None,
    **hyperparameters: float | None,
) -> None:
    """Say what storing a model in 16 bits loses of its updates.

    For every storage configuration: how many weights of the checkpoint would stand still where they move in fp32, which
    numbers of the optimizer survive, how many bytes it takes. With --updates, or with the moments of an optimizer (from
    --optimizer-state, or beside the weights in a file of torch), the answer is about these updates, and the cheapest
    that keeps them is named. From weights and --lr alone it is about the start of training, where Adam's updates are as
    large as lr; they shrink, so lr/30 is asked, too, and what holds later is not known.

    CKPT is read as by scan; files of torch need it, and nothing in them is run. Hyperparameters that are not given
    are those of the saved optimizer, else torch's defaults; for lr there is none.

    \b
    precision-lab preflight model.safetensors --storage pure_bf16 --lr 1e-5 --beta2 0.999 --weight-decay 0.1
    precision-lab preflight checkpoint.pt
    precision-lab preflight model.pt --optimizer-state optimizer.pt --json report.json
    """
    from precision_lab.presentation.tables.preflight import preflight_tables
    from precision_lab.support.files import write_json
    from precision_lab.training.preflight import preflight as ask

    with progress_bar("Reading") as progress:
        report = ask(
            checkpoint,
            storage=chosen,
            optimizer=optimizer,
            steps=steps,
            updates=updates,
            optimizer_state=optimizer_state,
            parameter_names=parameter_names,
            gradients=gradients,
            tolerance=tolerance,
            dtype=dtype,
            progress=progress,
            **hyperparameters,
        )
    say("\n".join((*report.sentences, "", *report.notes, report.taken_from)).rstrip() + "\n")
    for table in preflight_tables(report):
        show(table)
    say("\nWhat this cannot know:")
    for sentence in report.unknown:
        say(f"- {sentence}")
    say_skipped(report.skipped, (tensor.info for tensor in report.tensors))
    if data is not None:
        write_json(report.parts(), data)
