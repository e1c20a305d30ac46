"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

formats_option = click.option(
    "-f",
    "--format",
    "chosen",
    multiple=True,
    metavar="F",
    help="A format, as often as you like: fp16, bf16, fp8_e4m3fn, e6m9 (any e..m..) ...",
)


output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    metavar="DIR",
    help="Folder for figures and JSON.",
)
json_option = click.option(
    "--json", "data", type=click.Path(path_type=Path), metavar="OUT", help="Write the results as JSON."
)
figure_option = click.option(
    "--figure", type=click.Path(path_type=Path), metavar="OUT", help="Draw the results: .png, .svg, .pdf."
)
dtype_option = click.option(
    "--dtype", metavar="D", help="What the raw |V2 items of .npy and .npz files are: bf16, fp8_e4m3fn ..."
)


def optimizer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of an optimizer's constants and of the length of its run."""
    options = (
        click.option("--optimizer", default="adamw", show_default=True, metavar="O", help="adamw, adam or sgd."),
        click.option("--lr", type=float, metavar="X", help="Learning rate."),
        click.option("--beta1", type=float, metavar="X", help="Of adamw and adam."),
        click.option("--beta2", type=float, metavar="X", help="Of adamw and adam."),
        click.option("--eps", type=float, metavar="X", help="Of adamw and adam."),
        click.option("--weight-decay", type=float, metavar="X", help="0: none."),
        click.option("--momentum", type=float, metavar="X", help="Of sgd."),
        click.option("--steps", type=int, default=10_000, show_default=True, metavar="N", help="Length of the run."),
    )
    for option in reversed(options):
        command = option(command)
    return command
