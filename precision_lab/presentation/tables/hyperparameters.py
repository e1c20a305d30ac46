"""Tables of an optimizer's numbers, as formats store them."""

from __future__ import annotations

from collections.abc import Sequence

from precision_lab.experiments.hyperparameters import HyperparametersResult
from precision_lab.presentation.tables.table import (
    Table,
    listed,
    only_table,
    tables_of,
)
from precision_lab.training.hyperparameters import HyperparameterAudit


@only_table
def hyperparameters_table(audit: HyperparameterAudit) -> Table:
    """One row a number of the optimizer: what it becomes, what follows, what to do."""
    rows = tuple(
        (f.expression, f"{f.exact:.7g}", f"{f.stored:.9g}", str(f.severity), f.consequence, f.advice or "–")
        for f in audit.findings
    )
    return Table(
        f"{audit.optimizer} in {audit.format}: {listed(audit.hyperparameters)}, {audit.steps:,} steps",
        ("number", "asked", f"in {audit.format}", "severity", "what follows", "what helps"),
        rows,
        frozenset({1, 2}),
        note="Severity, by how far the effect is from the one asked: ok up to 1 %, note up to 10 %, warning more, "
        "fatal a tenth or less, ten times or more.",
        prose=frozenset({4, 5}),
    )


@tables_of.register
def usual_settings_tables(result: HyperparametersResult) -> tuple[Table, ...]:
    """One table a setting, a row a number: what it becomes in each format, and how far that is from what was asked."""
    return tuple(_audits_table(name, audits) for name, audits in result.audits.items())


def _audits_table(name: str, audits: Sequence[HyperparameterAudit]) -> Table:
    rows = tuple(
        (
            finding.expression,
            f"{finding.exact:.6g}",
            *(
                cell
                for a in audits
                for cell in (f"{a[finding.expression].stored:.6g}", f"{a[finding.expression].severity}")
            ),
        )
        for finding in audits[0].findings
    )
    return Table(
        f"{name}: {listed(audits[0].hyperparameters)}",
        ("number", "asked", *(heading for a in audits for heading in (f"in {a.format}", f"{a.format}"))),
        rows,
        frozenset({1, *range(2, 2 + 2 * len(audits), 2)}),
    )
