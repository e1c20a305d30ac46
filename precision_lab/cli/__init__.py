"""The command line: parse, run, show. It computes nothing."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from precision_lab.cli.claims import claims
from precision_lab.cli.experiments import report, underflow
from precision_lab.cli.numbers import formats, inspect, verify
from precision_lab.cli.preflight import preflight
from precision_lab.cli.tensors import accumulation, loss_scale, scan, swamping
from precision_lab.cli.training import hyperparameters, memory, train
from precision_lab.numerics.errors import CompilerDisabledError
from precision_lab.support.ending import NOBODY_READS, REFUSED, stopped, terminable
from precision_lab.support.text import printable
from precision_lab.support.version import version


class _Ended(BaseException):
    """Holds what click would answer in its own way: an interruption, a reader that has gone, an end of data."""

    def __init__(self, why: BaseException) -> None:
        self.why = why


@contextmanager
def _unanswered() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, EOFError, OSError) as why:
        raise _Ended(why) from why


class _App(click.Group):
    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _unanswered():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _unanswered():
            return super().invoke(ctx)


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"precision-lab, version {version()}")
        context.exit()


@click.group(cls=_App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
def app() -> None:
    """What happens to numbers when they are stored in 16 bits or fewer.

    \b
    precision-lab inspect 1e-7                          one number in every format
    precision-lab scan gradients.safetensors            what each format would do to your tensors
    precision-lab loss-scale gradients.safetensors      which loss scale they need
    precision-lab preflight model.safetensors           in which formats it can be trained
    precision-lab report                                the experiments, with figures
    """


for command in (
    *(formats, inspect, scan, loss_scale, accumulation, swamping),
    *(hyperparameters, memory, preflight, train, claims, underflow, report, verify),
):
    app.add_command(command)


def main() -> None:
    """Run the command line, and exit.

    Status 0: done. 1: `verify` found a difference. 2 and one line on standard error: bad input, a place that cannot be
    written to, no compiler. 130 and one line: Ctrl-C. 143 and one line: SIGTERM. 141: nobody reads the output any more.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a dash that the terminal lacks must not cost the results
    try:
        with terminable():
            _run()
    except KeyboardInterrupt as why:
        stopped(why)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(REFUSED)
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else "precision-lab"
        _fail(f"{error.format_message()} (see '{place} --help')")
    except click.ClickException as error:
        _fail(error.format_message())
    except OSError as error:
        if _nobody_reads(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
            sys.exit(NOBODY_READS)
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except EOFError as error:
        _fail(f"something ended before it was whole: {error or 'no more data'}")
    except (ValueError, FloatingPointError, CompilerDisabledError) as error:
        _fail(str(error))


def _run() -> NoReturn:
    """Do what the arguments say and exit, with all output written; raise whatever is in the way."""
    try:
        status = app.main(prog_name="precision-lab", standalone_mode=False)
    except _Ended as end:
        raise end.why from end.why.__cause__
    except SystemExit as exit_:
        if isinstance(exit_.__context__, BrokenPipeError):  # rich's answer to one
            raise exit_.__context__ from None
        status = exit_.code
    if sys.stdout is not None:
        sys.stdout.flush()
    sys.exit(status)


def _nobody_reads(error: OSError) -> bool:
    """Whether this is a pipe that nobody reads; Windows calls that an invalid argument."""
    windows = os.name == "nt" and error.errno == errno.EINVAL and error.filename is None
    return windows or isinstance(error, BrokenPipeError)


def _fail(message: str) -> NoReturn:
    """Say what is wrong in one line; of one that quotes a book the middle is left out, not the cure."""
    line = printable(" ".join(message.split()))
    line = line if len(line) < 5000 else f"{line[:2000]} ... {line[-300:]}"
    click.echo(f"precision-lab: error: {line}", err=True)
    sys.exit(REFUSED)
