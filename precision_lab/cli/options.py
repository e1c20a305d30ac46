"""Options that several commands have, and what becomes of every file that a command reads or writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

TO_ERROR = "precision_lab.to_error"
"""In a context's `meta`: whether people read standard error, because the results go to standard output."""


class Input(click.Path):
    """A file or a folder that is read."""

    name = "input"

    def __init__(self, path_type: type[Path] | type[str] = Path) -> None:
        super().__init__(path_type=path_type)


class Output(click.Path):
    """A file that is written; ``-`` is standard output."""

    name = "output"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Tell the names of standard output from others."""
        from precision_lab.support.files import output

        return output(value) if isinstance(value, str) else value


class OutputFolder(click.Path):
    """A folder whose files are written; the command checks them, for it knows their names."""

    name = "folder"

    def __init__(self) -> None:
        super().__init__(path_type=Path)


class FigureOutput(Output):
    """A file whose ending says which kind of drawing it is."""


class Checkpoint(Output):
    """A file that is read and appended to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what cannot be read again."""
        if value == "-":
            self.fail("runs are kept in a file, not on standard output", param, ctx)
        return Path(value)


class Command(click.Command):
    """A command of ours: before it begins, its outputs are held against its inputs and each other."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the places, then do what it does."""
        given = [
            (param, place)
            for param in self.params
            for place in _places(ctx.params.get(param.name or ""))
            if isinstance(param.type, Input | Output)
        ]
        if any(isinstance(param.type, Output) for param, _ in given):  # what is only read needs no look here
            _check(ctx, given)
        return super().invoke(ctx)


command = partial(click.command, cls=Command)


def _places(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        yield from value
    elif value is not None:
        yield value


def _check(ctx: click.Context, given: Iterable[tuple[click.Parameter, Path]]) -> None:
    """Raise OutputError where an output is an input or another output; say where people look."""
    from precision_lab.support.files import STANDARD_OUTPUT, check_outputs
    from precision_lab.tensors.reading import files_read

    read, written = [], {}
    for param, place in given:
        if isinstance(param.type, Output):
            written[param.opts[0]] = place
        if isinstance(param.type, FigureOutput):
            from precision_lab.presentation.plots.style import check_figure_path

            check_figure_path(place)
        if isinstance(param.type, Input) and str(place):
            read += files_read(place)
    check_outputs(written, read)
    ctx.meta[TO_ERROR] = any(place is STANDARD_OUTPUT for place in written.values())


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
    type=OutputFolder(),
    default=Path("figures"),
    show_default=True,
    metavar="DIR",
    help="Folder for figures and JSON.",
)
json_option = click.option(
    "--json", "data", type=Output(), metavar="OUT", help="Write the results as JSON; - is standard output."
)
figure_option = click.option("--figure", type=FigureOutput(), metavar="OUT", help="Draw the results: .png, .svg, .pdf.")
dtype_option = click.option(
    "--dtype", metavar="D", help="What the raw |V2 items of .npy and .npz files are: bf16, fp8_e4m3fn ..."
)


class OptimizerOption(click.Option):
    """An option whose help names optimizers of the registry, which is asked when the help is."""

    def __init__(self, names: list[str], *, say: Callable[[], str], **settings: Any) -> None:
        super().__init__(names, **settings)
        self._say = say

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Name them."""
        self.help = self._say()
        return super().get_help_record(ctx)


def optimizer_names(*more: str, having: str = "", last: str = "or") -> str:
    """Return the names of optimizers, those that have a hyperparameter, in words and the latest first."""
    from precision_lab.training.optimizers import OPTIMIZERS, usual_values

    *names, end = [*(name for name in reversed(OPTIMIZERS) if not having or having in usual_values(name)), *more]
    return f"{', '.join(names)} {last} {end}" if names else end


def optimizer_option(default: str | None, *more: str) -> Callable[..., Any]:
    """Return the option of the name of an optimizer, or one of some more."""
    settings: dict[str, Any] = {"default": default, "show_default": True, "metavar": "O"}
    return click.option("--optimizer", cls=OptimizerOption, say=lambda: f"{optimizer_names(*more)}.", **settings)


def hyperparameter_option(symbol: str) -> Callable[..., Any]:
    """Return the option of a hyperparameter that not all optimizers have."""
    names = partial(optimizer_names, having=symbol, last="and")
    return click.option(f"--{symbol}", cls=OptimizerOption, say=lambda: f"Of {names()}.", type=float, metavar="X")


def optimizer_options(command: Callable[..., Any], default: str | None = "adamw") -> Callable[..., Any]:
    """Add the options of an optimizer's constants and of the length of its run."""
    options = (
        optimizer_option(default),
        click.option("--lr", type=float, metavar="X", help="Learning rate."),
        *map(hyperparameter_option, ("beta1", "beta2", "eps")),
        click.option("--weight-decay", type=float, metavar="X", help="0: none."),
        hyperparameter_option("momentum"),
        click.option("--steps", type=int, default=10_000, show_default=True, metavar="N", help="Length of the run."),
    )
    for option in reversed(options):
        command = option(command)
    return command
