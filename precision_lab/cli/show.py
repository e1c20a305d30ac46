"""What every command does with its output: tables, bars, files that must be writable; rich is loaded by the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from precision_lab.cli.options import TO_ERROR
from precision_lab.support.text import printable

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.progress import Progress
    from rich.text import Text

    from precision_lab.presentation.tables.table import Table
    from precision_lab.tensors.info import TensorInfo


_SAID = 20  # lines about tensors

_WIDE = 200  # columns where nobody sees them: a pipe or a file


_VERDICTS = {
    "holds": "green",
    "holds only if ...": "yellow",
    "does not hold": "bold red",
    "not decided with these runs": "magenta",
    "cannot be tested here": "cyan",
    "keeps": "green",
    "ends lower": "green",
    "not decided": "yellow",
    "loses": "bold red",
    "breaks": "bold red",
}

_PROSE = 30  # columns in which sentences can still be read


def console() -> Console:
    """Return the terminal; a wide one where nobody sees it."""
    from rich.console import Console

    console = Console(highlight=False, stderr=_to_error())
    return console if console.is_terminal else Console(highlight=False, stderr=_to_error(), width=_WIDE)


def _to_error() -> bool:
    """Say whether people read standard error, because the results themselves go to standard output."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(TO_ERROR))


def say(text: str, *, error: bool = False) -> None:
    """Print lines for people, what other people named in them as escapes."""
    click.echo(printable(text), err=error or _to_error())


def show(table: Table) -> None:
    """Print a table; one that is too wide for the terminal in parts, each beginning with its first column."""
    from rich.table import Table as RichTable
    from rich.text import Text

    terminal = console()
    totals = ["\n".join(row[i] for row in table.last_rows) for i in range(len(table.columns))]
    for part in _parts(table, terminal.width):
        printed = RichTable(
            title=Text(table.title),
            title_justify="left",
            show_footer=bool(table.last_rows),
            show_lines=not table.prose.isdisjoint(part),
        )
        for i in part:
            justify: JustifyMethod = "right" if i in table.numeric else "left"
            least = _PROSE if i in table.prose else None
            printed.add_column(
                Text(table.columns[i]), footer=Text(totals[i]), justify=justify, overflow="fold", min_width=least
            )
        for row in table.rows:
            printed.add_row(*(_cell(table.columns[i], row[i]) for i in part))
        terminal.print(printed)
    if table.note:
        terminal.print(Text(table.note, style="dim"))


def _parts(table: Table, width: int) -> list[list[int]]:
    """Distribute the columns over tables that fit; the first column stands in each."""
    lines = [table.columns, *table.rows, *table.last_rows]
    widths = [3 + max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    widths = [min(w, 3 + _PROSE) if i in table.prose else w for i, w in enumerate(widths)]
    first = min(widths[0], width // 2)  # a longer name is folded
    parts = [[0]]
    for i in range(1, len(widths)):
        if len(parts[-1]) > 1 and first + sum(widths[k] for k in parts[-1][1:]) + widths[i] + 1 > width:
            parts.append([0])
        parts[-1].append(i)
    return parts


def _cell(heading: str, cell: str) -> Text:
    """Colour the fields of a code (sign, exponent, significand), severities and verdicts."""
    from rich.text import Text

    if heading == "verdict":
        first, *rest = cell.split("\n")
        return Text("\n").join([Text(first, style=_VERDICTS.get(first, "")), *map(Text, rest)])
    if heading == "severity":
        return Text(cell, style={"note": "cyan", "warning": "yellow", "fatal": "bold red"}.get(cell, ""))
    if heading != "bits":
        return Text(cell)
    styles = ("red", "green", "cyan")
    return Text(" ").join(Text(field, style=style) for field, style in zip(cell.split(" "), styles, strict=False))


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a callable (done, of how many) that moves a bar on a terminal; None where nobody would see it."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with _bars(console) as bar:
        task = bar.add_task(printable(description))
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bars(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


@contextmanager
def progress_bars(descriptions: Mapping[str, str]) -> Iterator[Callable[[str, int, int], None]]:
    """Give a callable (which, done, of how many) that moves one of several bars; it does nothing off a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda which, done, total: None
        return
    with _bars(console) as bars:
        tasks = {which: bars.add_task(text, total=None) for which, text in descriptions.items()}
        yield lambda which, done, total: bars.update(tasks[which], completed=done, total=total)


def say_skipped(skipped: Sequence[TensorInfo], read: Iterable[TensorInfo] = ()) -> None:
    """Say on standard error which tensors were left out, and why, and what is to be said of those that were read.

    Those of one file and one reason are one line; of very many lines the first are said.
    """
    from precision_lab.tensors.info import lines_of

    for start, lines in (
        ("skipped ", list(lines_of(skipped, lambda info: info.skipped))),
        ("note: ", list(lines_of(read, lambda info: info.note))),
    ):
        for line in lines[:_SAID]:
            say(start + line, error=True)
        if len(lines) > _SAID:
            say(f"{start}{len(lines) - _SAID:,} more such lines", error=True)
