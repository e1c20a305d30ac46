"""The command line: parse, run, show. It computes nothing."""

from __future__ import annotations

import io
import os
import sys

import click

from precision_lab.cli.claims import claims
from precision_lab.cli.experiments import report, underflow
from precision_lab.cli.numbers import formats, inspect, verify
from precision_lab.cli.preflight import preflight
from precision_lab.cli.tensors import accumulation, loss_scale, scan, swamping
from precision_lab.cli.training import hyperparameters, memory, train
from precision_lab.numerics.errors import CompilerDisabledError
from precision_lab.support.text import printable


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="precision-lab")
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
    """Run the command line: status 2 and one line on standard error for bad input or no compiler, 130 after Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a dash that the terminal lacks must not cost the results
    try:
        sys.exit(app.main(prog_name="precision-lab", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else "precision-lab"
        _fail(f"{error.format_message()} (see '{place} --help')")
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        click.echo("precision-lab: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (ValueError, FloatingPointError, CompilerDisabledError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    """Say what is wrong in one line; of one that quotes a book the middle is left out, not the cure."""
    line = printable(" ".join(message.split()))
    line = line if len(line) < 5000 else f"{line[:2000]} ... {line[-300:]}"
    click.echo(f"precision-lab: error: {line}", err=True)
    sys.exit(2)
