"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

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
