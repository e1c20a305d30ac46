"""Before the GPU hours: `preflight`."""

from __future__ import annotations

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
@optimizer_options
@click.option("--updates", type=Input(), metavar="U", help="Updates by the names of the weights.")
@click.option("--optimizer-state", type=Input(), metavar="O", help="Adam's moments: its updates.")
@click.option("--gradients", type=Input(), metavar="G", help="For the loss scale; needed for sgd.")
@click.option(
    "--tolerance", type=float, default=0.0, show_default=True, metavar="X", help="Share that may be lost after all."
)
@json_option
@dtype_option
def preflight(
    checkpoint: Path,
    chosen: tuple[str, ...],
    optimizer: str,
    steps: int,
    updates: Path | None,
    optimizer_state: Path | None,
    gradients: Path | None,
    tolerance: float,
    data: Path | None,
    dtype: str | None,
    **hyperparameters: float | None,
) -> None:
    """Say in which formats a model can be trained.

    Which storage configuration is the cheapest that loses nothing that fp32 keeps: how many weights of the checkpoint
    would stand still under Adam's updates (about lr, or from --updates, or from the moments of --optimizer-state),
    which numbers of the optimizer survive, how many bytes it takes, and why each cheaper one is not it. CKPT is read as
    by scan; .pt and .pth, also of an optimizer, need torch, and nothing in them is run. What is not given is torch's
    default.

    \b
    precision-lab preflight model.safetensors --storage pure_bf16 --lr 1e-5 --beta2 0.999 --weight-decay 0.1
    precision-lab preflight model.pt --optimizer-state optimizer.pt --lr 1e-4 --json report.json
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
            gradients=gradients,
            tolerance=tolerance,
            dtype=dtype,
            progress=progress,
            **hyperparameters,
        )
    for table in preflight_tables(report):
        show(table)
    say(f"\n{report.verdict}\n\nWhat this cannot know:")
    for sentence in report.unknown:
        say(f"- {sentence}")
    say_skipped(report.skipped)
    if data is not None:
        write_json(report.parts(), data)
