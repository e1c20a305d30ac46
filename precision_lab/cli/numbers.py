"""Commands about single numbers and formats: `formats`, `inspect`, `verify`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click

from precision_lab.cli.options import command, formats_option, json_option
from precision_lab.cli.show import progress_bar, say, show
from precision_lab.cli.workers import dask_option, executor, workers_option
from precision_lab.support.ending import DIFFERS
from precision_lab.support.text import shown


@command()
def formats() -> None:
    """List the formats and their limits."""
    from precision_lab.numerics.formats import FORMATS
    from precision_lab.presentation.tables.formats import formats_table, sources_table

    show(formats_table(FORMATS.values()))
    show(sources_table(FORMATS.values()))


@command(context_settings={"ignore_unknown_options": True})
@click.argument("values", nargs=-1, required=True, metavar="VALUE...")
@formats_option
def inspect(values: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    """Show how each format stores a number.

    Its bits, the stored value, the error, the neighbours and the ulp.

    A VALUE is read exactly: 1e-7, 1/3, 2^-25, 1.5*2^-14, 0x1.8p-3, inf, nan.

    \b
    precision-lab inspect 1e-7 65519.99 -f fp16 -f bf16
    """
    from precision_lab.numerics.formats import FORMATS, get_format
    from precision_lab.numerics.inspection import inspect_number, parse_number
    from precision_lab.presentation.tables.formats import inspection_table

    chosen_formats = [get_format(name) for name in chosen or FORMATS]
    numbers = [parse_number(text) for text in values]
    for text, number in zip(values, numbers, strict=True):
        show(inspection_table(shown(text, 100), [inspect_number(number, fmt) for fmt in chosen_formats]))


@command()
@formats_option
@click.option("--exhaustive", is_flag=True, help="All 2^32 float32 patterns instead of the 7 million hard ones.")
@click.option("--cast", "reference", metavar="MODULE:FUNCTION", help="Check this function instead of our roundings.")
@click.option("--source", metavar="F", help="What the cast takes: float64, fp32 or any format.")
@click.option("--target", metavar="F", help="What it should round to: any format, or float8_e8m0fnu (scales).")
@click.option("--mode", metavar="M", help="How it should round.  [default: ties_to_even; any one rule for E8M0]")
@click.option("--flush-subnormals", is_flag=True, help="It should flush subnormal results to zero.")
@click.option("--saturate", is_flag=True, help="It should clamp overflow and infinities to the largest value.")
@click.option("--nan", metavar="RULE", help="What NaN should become: any (NaN), quiet, payload, ignore.")
@json_option
@workers_option
@dask_option
def verify(chosen: tuple[str, ...], exhaustive: bool, processes: int | None, dask: str | None, **options: Any) -> None:
    """Check this installation bit by bit, or a cast of your own.

    Compares the compiled roundings with ml_dtypes' casts (ties_to_even of float32) and with exact rational arithmetic
    (every mode, float32 and float64). Status 1 if anything differs. --workers and --dask are for --exhaustive.

    With --cast, a function from an array of --source to an array of --target (its dtype, its codes, or values) is
    compared with a single rounding, and what is wrong with it is named. Modules that are not installed are looked for
    in the current folder.

    \b
    precision-lab verify -f bf16
    precision-lab verify --cast numpy:float16 --source fp32 --target fp16
    """
    if options["reference"] is not None:
        if chosen:
            raise click.UsageError("-f does not go with --cast; say --source and --target")
        if processes is not None or dask is not None:
            raise click.UsageError("--workers and --dask do not go with --cast")
        sys.exit(_verify_cast(exhaustive, **options))
    for name in ("source", "target", "mode", "flush_subnormals", "saturate", "nan", "data"):
        if options[name]:
            raise click.UsageError(f"--{'json' if name == 'data' else name.replace('_', '-')} goes with --cast only")
    _verify_installation(chosen, exhaustive, processes, dask)


def _verify_cast(exhaustive: bool, **options: Any) -> int:
    """Check a function of the user's; return the status."""
    from precision_lab.support.files import check_outputs, write_json
    from precision_lab.testing.casts import check_cast

    source, target = options["source"], options["target"]
    if source is None or target is None:
        raise click.UsageError("--cast needs --source and --target, such as --source fp32 --target bf16")
    cast = _load_function(options["reference"])
    if options["data"] is not None:
        check_outputs({"--json": options["data"]}, _source_of(cast))
    with progress_bar(f"{source} to {target}") as progress:
        report = check_cast(
            cast,
            source,
            target,
            mode=options["mode"],
            subnormals=not options["flush_subnormals"],
            saturate=options["saturate"],
            nan=options["nan"] or "any",
            exhaustive=exhaustive or None,
            progress=progress,
        )
    say(str(report))
    if options["data"] is not None:
        write_json(report.to_dict(), options["data"])
    return 0 if report.ok else DIFFERS


def _load_function(reference: str) -> Any:
    """Import what `module:function` names, of the current folder if it is not installed."""
    module_name, _, names = reference.partition(":")
    if not (module_name and names):
        raise click.UsageError(f"--cast takes MODULE:FUNCTION, such as mycasts:to_bf16; got {reference!r}")
    sys.path.append("")  # last: what is installed is not replaced by what lies here
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"cannot import {shown(module_name)}: {type(error).__name__}: {shown(error)}") from error
    finally:
        if "" in sys.path:  # or what is imported later would be looked for here, too
            del sys.path[-1 - sys.path[::-1].index("")]
    for name in names.split("."):
        if not hasattr(target, name):
            raise ValueError(f"{module_name} has no {names}")
        target = getattr(target, name)
    return target


def _source_of(cast: Any) -> list[Path]:
    """Return the file that a function comes from, where there is one: it has been read."""
    module = sys.modules.get(getattr(cast, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return [Path(file)] if isinstance(file, str) else []


def _verify_installation(chosen: tuple[str, ...], exhaustive: bool, processes: int | None, dask: str | None) -> None:
    from precision_lab.numerics.formats import FORMATS, get_format
    from precision_lab.numerics.verification import verify_against_ml_dtypes, verify_against_reference
    from precision_lab.presentation.tables.formats import verification_table

    if not exhaustive and (dask is not None or processes is not None):
        raise click.UsageError("--workers and --dask are for --exhaustive; the rest takes seconds")
    results = []
    with executor(processes, dask) as pool:
        for fmt in [get_format(name) for name in chosen or FORMATS]:
            if fmt.dtype is not None:
                with progress_bar(f"{fmt} against ml_dtypes") as progress:
                    results.append(
                        verify_against_ml_dtypes(fmt, exhaustive=exhaustive, executor=pool, progress=progress)
                    )
            with progress_bar(f"{fmt} against exact arithmetic") as progress:
                results.append(verify_against_reference(fmt, progress=progress))
    show(verification_table(results))
    wrong = [result for result in results if result.mismatches]
    for result in wrong:
        for example in result.examples:
            click.echo(f"{result.format}: {example}", err=True)
    if wrong:
        sys.exit(DIFFERS)
