"""Tables of two trainings side by side."""

from __future__ import annotations

from collections.abc import Mapping

from precision_lab.presentation.tables.table import (
    Table,
    tables_of,
)
from precision_lab.training.comparison import TrainingComparison


def comparison_tables(results: Mapping[str, TrainingComparison]) -> tuple[Table, ...]:
    """One row a comparison: where it parts and how far; of a single one also a row a difference up to there."""

    def row(name: str, result: TrainingComparison) -> tuple[str, ...]:
        parting, last = result.parting, len(result.losses) - 1
        where = ("–", "they are the same") if parting is None else (f"{parting.step:,}", parting.operation)
        losses = (f"{curve[last]:.6g}" for curve in (result.losses, result.other_losses))
        return (name, *where, *losses, f"{result.distances[last]:.2g}")

    other = next(iter(results.values())).other
    overview = Table(
        f"precision_lab and {other}, side by side",
        ("training", "part at step", "operation", "last loss, ours", "theirs", "||w - w'||/||w||"),
        tuple(row(name, result) for name, result in results.items()),
        frozenset({1, 3, 4, 5}),
        note="The first difference in a value that the weights depend on; the reported loss alone may differ before.",
    )
    if len(results) > 1:
        return (overview,)
    (result,) = results.values()
    rows = tuple(
        (
            f"{d.step:,}",
            d.operation,
            d.value,
            d.format.name,
            f"{d.differing:,} of {d.count:,}",
            f"{d.ours:.9g}",
            f"{d.theirs:.9g}",
            f"{d.ulps:.3g}",
            "–" if d.ours_right is None else f"{d.ours_right:,} / {d.theirs_right:,}",
        )
        for d in result.differences
    )
    columns = ("step", "operation", "value", "format", "differ", "ours", "theirs", "ulps", "right")
    return overview, Table(
        "Every difference up to there, in the order of the computation",
        columns,
        rows,
        frozenset({0, 4, 5, 6, 7, 8}),
        note="ours, theirs: the first element that differs. ulps: the largest difference, in spacings of the format. "
        "right: how many of the differing elements, ours / theirs, are our operands' exact result rounded once.",
    )


@tables_of.register
def _(comparison: TrainingComparison) -> tuple[Table, ...]:
    return comparison_tables({"this training": comparison})
