"""Tables of sums."""

from __future__ import annotations

import math

from precision_lab.analysis.sums import SUM_METHODS, SummedTensor, SumsResult
from precision_lab.experiments.accumulation import AccumulationResult
from precision_lab.numerics.accumulation import AccumulationTrace, RoundedSum
from precision_lab.presentation.tables.table import (
    Table,
    and_more,
    facts_table,
    number,
    only_table,
    percent_or_more,
    power_of_two,
    tables_of,
    worst,
)
from precision_lab.tensors.info import label_of, of_several_files


@only_table
def trace_table(trace: AccumulationTrace) -> Table:
    """What became of a sum."""
    stopped = "–" if trace.stagnates_after is None else f"after {trace.stagnates_after:,} terms"
    error = "–" if math.isnan(trace.relative_error) else f"{percent_or_more(trace.relative_error)} %"
    return facts_table(
        f"{trace.count:,} terms, {trace.method}, {trace.mode}",
        {
            "format, accumulator": f"{trace.format}, {trace.accumulator}",
            "result": f"{trace.result:.10g}",
            "exact sum": f"{trace.exact_sum:.10g}",
            "relative error": error,
            "stands still": stopped,
            "the error cannot exceed": number(trace.worst_case_bound),
        },
    )


@only_table
def sums_table(result: SumsResult) -> Table:
    """One row a tensor: the exact sum, and what each way of adding makes of it."""

    def row(label: str, tensor: SummedTensor) -> tuple[str, ...]:
        return (label, f"{tensor.terms:,}", number(tensor.exact_sum), *map(_error, tensor.sums.values()))

    several = of_several_files(tensor.info for tensor in result.tensors)
    return Table(
        f"{'Norms, the roots of sums of squares' if result.squares else 'Sums of the elements'} in {result.format}: "
        "relative error in percent",
        ("tensor", "terms", "exact", *SUM_METHODS),
        tuple(row(label_of(tensor.info, several), tensor) for tensor in worst(result.tensors)),
        frozenset(range(1, 3 + len(SUM_METHODS))),
        note="A sum near zero has large relative errors however it is made. inf, NaN: the sum itself is. Every step is "
        "rounded once; blocks have 64 terms."
        + (" The root is rounded to the accumulator's format, then to the result's." if result.squares else "")
        + and_more(len(result.tensors), "the largest error of all ways"),
    )


def _error(computed: RoundedSum) -> str:
    if not math.isfinite(computed.result):
        return f"{computed.result}".replace("nan", "NaN")
    error = 100 * computed.relative_error
    return "–" if math.isnan(error) else "0" if error == 0 else f"{error:.2g}" if error < 1000 else f"{error:.1e}"


@tables_of.register
def accumulation_tables(result: AccumulationResult) -> tuple[Table, ...]:
    """The errors of the sums, a row for each number of terms; those of the matrix products."""
    counts = [2**k for k in result.config.exponents]
    sums = Table(
        f"Sums of n numbers from [0, 1) in {result.config.format}: relative error in percent",
        ("n", *result.errors, "worst case, sequential"),
        tuple(
            (
                power_of_two(n),
                *(percent_or_more(errors[i].median) for errors in result.errors.values()),
                percent_or_more(result.errors["sequential"][i].worst_case),
            )
            for i, n in enumerate(counts)
        ),
        frozenset(range(1, 2 + len(result.errors))),
        note=f"Medians over {result.config.seeds} draws. Every step is rounded once; blocks have 64 terms.",
    )
    kinds = list(dict.fromkeys((p.accumulator, p.products_rounded) for p in result.products))
    names = {p.product: p.length for p in result.products}
    product_errors = {(p.product, p.accumulator, p.products_rounded): p.error for p in result.products}
    products = Table(
        f"Products of the digits MLP, {result.config.format} in and out: relative error in percent (Frobenius)",
        ("accumulator", "products", *(f"{name}, {length:,} terms" for name, length in names.items())),
        tuple(
            (
                accumulator,
                "rounded" if rounded else "exact",
                *(percent_or_more(product_errors[name, accumulator, rounded]) for name in names),
            )
            for accumulator, rounded in kinds
        ),
        frozenset(range(2, 2 + len(names))),
    )
    return sums, products
