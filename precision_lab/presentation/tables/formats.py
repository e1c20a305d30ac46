"""Tables of formats and of single numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.inspection import Inspection
from precision_lab.numerics.verification import Verification
from precision_lab.presentation.tables.table import (
    Table,
    number,
    power_of_two,
    tables_of,
)


def formats_table(formats: Iterable[FloatFormat]) -> Table:
    """One row a format: its bits and its limits."""
    rows = tuple(
        (
            fmt.name,
            f"{fmt.bits}",
            f"1+{fmt.exponent_bits}+{fmt.mantissa_bits}",
            f"{fmt.max:.6g}",
            power_of_two(fmt.smallest_normal),
            power_of_two(fmt.smallest_subnormal),
            power_of_two(fmt.eps),
            power_of_two(fmt.flush_threshold),
            f"{fmt.overflow_threshold:.6g}",
            {"ieee": "inf, NaN", "fn": "NaN", "fnuz": "NaN, no -0", "finite": "none"}[fmt.specials],
        )
        for fmt in formats
    )
    columns = ("format", "width", "s+e+m", "max", "min normal", "min subnormal", "eps", "flushed at", "overflow from")
    return Table(
        "Formats",
        (*columns, "specials"),
        rows,
        frozenset(range(1, 9)),
        note="flushed at: the largest magnitude that rounds to zero. overflow from: the smallest that does not stay "
        "finite, ties_to_even (fp8_e4m3fn: 464 itself stays 448; fp6, fp4: clamped).",
    )


@tables_of.register
def _(fmt: FloatFormat) -> tuple[Table, ...]:
    return (replace(formats_table([fmt]), title=f"{fmt.name}: {fmt.source}"),)


def sources_table(formats: Iterable[FloatFormat]) -> Table:
    """One row a format: where it is defined."""
    return Table("Where they are defined", ("format", "source"), tuple((fmt.name, fmt.source) for fmt in formats))


def inspection_table(text: str, inspections: Sequence[Inspection]) -> Table:
    """One row a format: what it stores for one number. The bits are in one cell, fields apart."""
    rows = tuple(
        (
            i.format.name,
            f"{i.sign} {i.exponent} {i.significand}".rstrip(),
            f"{i.code:#0{2 + math.ceil(i.format.bits / 4)}x}",
            f"{i.stored!r}",
            f"{i.lost}" if i.kind in ("normal", "zero", "infinity", "nan") else f"{i.lost}, {i.kind}",
            number(i.error),
            "–" if math.isnan(i.relative_error) else f"{i.relative_error:.2e}",
            number(i.ulp),
            f"{i.below!r}" if not math.isnan(i.below) else "–",
            f"{i.above!r}" if not math.isnan(i.above) else "–",
        )
        for i in inspections
    )
    columns = (
        "format",
        "bits",
        "code",
        "stored",
        "",
        "error",
        "relative",
        "ulp",
        "below",
        "above",
    )
    return Table(text, columns, rows, frozenset({2, 3, 5, 6, 7, 8, 9}))


@tables_of.register
def _(inspection: Inspection) -> tuple[Table, ...]:
    return (inspection_table(f"As {inspection.format} stores it", [inspection]),)


def verification_table(results: Iterable[Verification]) -> Table:
    """One row a check."""
    rows = tuple(
        (
            result.format.name,
            {"ml_dtypes": "ml_dtypes, ties_to_even", "reference": "exact arithmetic, all modes"}[result.against],
            f"{result.checked:,}",
            f"{result.mismatches:,}",
        )
        for result in results
    )
    return Table("Roundings compared", ("format", "against", "checked", "mismatches"), rows, frozenset({2, 3}))
