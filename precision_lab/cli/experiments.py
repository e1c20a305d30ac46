"""The experiments: `report`, `underflow`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precision_lab.cli.options import OutputFolder, command, output_option
from precision_lab.cli.show import progress_bars, say, show
from precision_lab.cli.workers import workers

if TYPE_CHECKING:
    from precision_lab.experiments.kept import Finished


KINDS = ("png", "svg")  # of every figure


def _known(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no experiment; their list is loaded when one is given."""
    from precision_lab.experiments.registry import EXPERIMENTS

    for name in names:
        if name not in EXPERIMENTS:
            raise click.BadParameter(f"{name!r} is no experiment; choose from {', '.join(EXPERIMENTS)}", ctx, param)
    return names


@command()
@output_option
@click.option("--steps", type=int, default=8000, show_default=True, metavar="N", help="Training steps.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of initialisation and batches.")
def underflow(output: Path, steps: int, seed: int) -> None:
    """Which gradients would each format lose?

    Trains a small network in float32 on handwritten digits and asks at the start, in the middle and near convergence.
    Writes underflow and gradient_histogram (.png and .svg), and underflow.json, which `report` reuses.
    """
    from precision_lab.experiments.underflow import UnderflowConfig
    from precision_lab.support.files import only_one

    config = UnderflowConfig(steps=steps, seed=seed)  # refused before a folder is made
    pictures = _pictures(["underflow"])
    _check(output, "underflow.json", *pictures)
    with only_one(output):
        finished = _collect({"underflow": config}, output)
        _show_tables(finished, output)
        _draw(finished, output, quick=False)
    say(f"wrote {', '.join(str(output / file) for file in ('underflow.json', *pictures))}")


@command()
@click.argument("names", nargs=-1, callback=_known, metavar="[EXPERIMENT]...")
@click.option(
    "-o",
    "--output",
    type=OutputFolder(),
    metavar="DIR",
    help="Folder for figures and JSON.  [default: figures; figures/quick for --quick]",
)
@click.option("--quick", is_flag=True, help="Fewer steps, seeds and configurations: under a minute on two cores.")
@click.option("--workers", "processes", type=int, metavar="N", help="Processes; default: one per core.")
def report(names: tuple[str, ...], output: Path | None, quick: bool, processes: int | None) -> None:
    """Run every experiment, or those that are named.

    Prints their tables and a line for each, and writes the figures (.png and .svg), results.json, with all numbers,
    configurations, versions and the machine, and report.html, all of it on one page that needs no network. A finished
    experiment is kept in DIR and not run again until something that it depends on has changed: an interrupted report
    goes on where it stopped.

    \b
    precision-lab report
    precision-lab report --quick -o results
    precision-lab report underflow storage -o results
    """
    from precision_lab.experiments.kept import kept
    from precision_lab.experiments.registry import EXPERIMENTS
    from precision_lab.experiments.runner import results
    from precision_lab.presentation.report import write_report
    from precision_lab.presentation.tables.summary import summary_table
    from precision_lab.support.files import only_one, write_json
    from precision_lab.support.processes import number_of_processes
    from precision_lab.support.reading import read_small

    output = output or Path("figures/quick" if quick else "figures")
    chosen = list(dict.fromkeys(names)) or list(EXPERIMENTS)
    pictures = _pictures(chosen)
    number_of_processes(processes)  # refused before a folder is made
    _check(output, "results.json", "report.html", *(f"{name}.json" for name in chosen), *pictures)
    configs = {name: experiment.configuration(quick=quick) for name, experiment in EXPERIMENTS.items()}
    with only_one(output):
        by_name = {one.name: one for one in _collect({name: configs[name] for name in chosen}, output, processes)}
        finished = [by_name[name] for name in chosen]
        others = [one for name in configs if name not in by_name and (one := kept(name, output, configs[name]))]
        _show_tables(finished, output)
        _draw(finished, output, quick=quick)
        shown = [*finished, *others]
        with _blaming_kept(shown, output):
            everything = results(shown, quick=quick)
            write_json(everything, output / "results.json", indent=None)
            drawn = [output / picture for picture in _pictures(one.name for one in shown) if picture.endswith(".svg")]
            svgs = {file.stem: read_small(file).decode() for file in drawn if file.exists()}
            made_with = everything["versions"] | everything["machine"]
            write_report(shown, output / "report.html", figures=svgs, quick=quick, made_with=made_with)
            show(summary_table(finished, quick=quick))
    say(f"wrote {output / 'report.html'}, results.json and {len(pictures)} figures in {output}")


def _check(folder: Path, *names: str) -> None:
    """Make the folder, and raise before the work if a file cannot be written there."""
    from precision_lab.support.files import check_outputs, make_folder

    make_folder(folder)
    check_outputs({name: folder / name for name in names})


def _collect(configs: Mapping[str, Any], folder: Path, processes: int | None = None) -> list[Finished]:
    """Take what is kept, run the rest, all at once, with a progress bar for each."""
    from precision_lab.experiments import runner
    from precision_lab.experiments.kept import kept
    from precision_lab.experiments.registry import EXPERIMENTS

    stored = {name: kept(name, folder, config) for name, config in configs.items()}
    finished = [one for one in stored.values() if one is not None]
    missing = {name: configs[name] for name, one in stored.items() if one is None}
    if not missing:
        return finished
    alone = len(missing) == 1 and not any(EXPERIMENTS[name].spread for name in missing)
    with (
        progress_bars({name: name.replace("_", " ").capitalize() for name in missing}) as bars,
        _progress_of_processes(bars) as queue,
        workers(1 if alone else processes, runner.listen, queue) as executor,
    ):
        return finished + list(runner.run(missing, folder, executor=executor, progress=bars))


@contextmanager
def _progress_of_processes(bars: Callable[[str, int, int], None]) -> Iterator[Any]:
    """Give a queue whose (name, done, of how many) move the bars."""
    from multiprocessing import get_context
    from threading import Event, Thread

    queue, over = get_context("spawn").SimpleQueue(), Event()

    def read() -> None:
        while not over.wait(0.1):
            while not queue.empty():
                bars(*queue.get())

    Thread(target=read, daemon=True).start()  # nobody waits for it: a process that is ended may leave half a message
    try:
        yield queue
    finally:
        over.set()


def _pictures(names: Iterable[str]) -> list[str]:
    """Return the files of the figures of experiments."""
    from precision_lab.experiments.registry import EXPERIMENTS
    from precision_lab.presentation.plots.figures import figures_of

    pictures = (picture for name in names for picture in figures_of(EXPERIMENTS[name].result))
    return [f"{picture}.{kind}" for picture in pictures for kind in KINDS]


@contextmanager
def _blaming_kept(finished: Sequence[Finished], folder: Path) -> Iterator[None]:
    """Say in one line that kept results cannot be shown: somebody wrote them who knew how their digest is made."""
    from precision_lab.support.files import OutputError
    from precision_lab.support.reading import InputError
    from precision_lab.support.text import shown

    reused = [f"{one.name}.json" for one in finished if one.reused]
    try:
        yield
    except (InputError, OutputError):
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ZeroDivisionError, OverflowError) as error:
        if not reused:
            raise
        what = f"what is kept there cannot be shown ({type(error).__name__}: {shown(error, 100)})"
        raise InputError(f"{shown(folder, 4096)}: {what}; remove {' and '.join(reused)}, and run it again") from error


def _show_tables(finished: Sequence[Finished], folder: Path) -> None:
    """Show the tables of all experiments, or none."""
    from precision_lab.presentation.tables.table import Table, tables_of

    made: list[Table] = []
    for one in finished:
        with _blaming_kept([one], folder):
            made += tables_of(one.result)
    for table in made:
        show(table)


def _draw(finished: Sequence[Finished], folder: Path, *, quick: bool) -> None:
    """Draw every figure, as PNG and as SVG."""
    from precision_lab.experiments.registry import EXPERIMENTS
    from precision_lab.presentation.plots.figures import figures_of
    from precision_lab.presentation.plots.style import save_figure, say_quick

    for one in finished:
        for picture, draw in figures_of(type(one.result)).items():
            with _blaming_kept([one], folder):
                figure = draw(one.result)
            if quick and EXPERIMENTS[one.name].configuration(quick=True) != EXPERIMENTS[one.name].configuration():
                say_quick(figure)
            for kind in KINDS:
                save_figure(figure, folder / f"{picture}.{kind}")
