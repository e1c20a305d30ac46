"""The doors of the first floor: `formats`, `inspect`, `verify`."""

from __future__ import annotations

import sys

import click

from precision_lab.cli.options import formats_option
from precision_lab.cli.show import progress_bar, show


@click.command()
def formats() -> None:
    """List the formats and their limits."""
    from precision_lab.numerics.formats import FORMATS
    from precision_lab.presentation.tables import formats_table, sources_table

    show(formats_table(FORMATS.values()))
    show(sources_table(FORMATS.values()))


@click.command(context_settings={"ignore_unknown_options": True})
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
    from precision_lab.numerics.inspection import inspect as inspect_number
    from precision_lab.numerics.inspection import parse_number
    from precision_lab.presentation.tables import inspection_table

    asked = [get_format(name) for name in chosen or FORMATS]
    numbers = [parse_number(text) for text in values]
    for text, number in zip(values, numbers, strict=True):
        show(inspection_table(text, [inspect_number(number, fmt) for fmt in asked]))


@click.command()
@formats_option
@click.option("--exhaustive", is_flag=True, help="All 2^32 float32 patterns instead of the 7 million hard ones.")
def verify(chosen: tuple[str, ...], exhaustive: bool) -> None:
    """Check this installation bit by bit.

    Compares the compiled roundings with ml_dtypes' casts (ties_to_even of float32) and with exact rational arithmetic
    (every mode, float32 and float64). Status 1 if anything differs.
    """
    from precision_lab.numerics.formats import FORMATS, get_format
    from precision_lab.numerics.verification import verify_against_ml_dtypes, verify_against_reference
    from precision_lab.presentation.tables import verification_table

    results = []
    for fmt in [get_format(name) for name in chosen or FORMATS]:
        if fmt.dtype is not None:
            with progress_bar(f"{fmt} against ml_dtypes") as progress:
                results.append(verify_against_ml_dtypes(fmt, exhaustive=exhaustive, progress=progress))
        with progress_bar(f"{fmt} against exact arithmetic") as progress:
            results.append(verify_against_reference(fmt, progress=progress))
    show(verification_table(results))
    wrong = [result for result in results if result.mismatches]
    for result in wrong:
        for example in result.examples:
            click.echo(f"{result.format}: {example}", err=True)
    if wrong:
        sys.exit(1)
