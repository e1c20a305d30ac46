"""Tables of an optimizer's numbers, as formats store them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from precision_lab.experiments.hyperparameters import HyperparametersResult
from precision_lab.presentation.tables.table import (
    Table,
    listed,
    only_table,
    tables_of,
)
from precision_lab.training.hyperparameters import Finding, HyperparameterAudit, World

NOT_STORED = "not stored"
"""What stands for a number that torch keeps as a double."""

HAS_ARITHMETIC = ("fp32", "fp16", "bf16")
"""Formats whose tensors torch.optim can update."""


@only_table
def hyperparameters_table(audit: HyperparameterAudit) -> Table:
    """One row a number of the optimizer: what it becomes in each world, what follows, what to do."""
    rows = tuple(
        (
            held.expression,
            f"{held.exact:.7g}",
            *_cells(held),
            *_cells(torch),
            _both(held.consequence, None if torch is None else torch.consequence),
            _both(held.advice, None if torch is None else torch.advice),
        )
        for held, torch in _pairs(audit)
    )
    note = (
        "Held: constants are kept in the format, too. As torch: constants are doubles (not stored), and only tensors "
        "have the format; its loops on a CPU, foreach=False, fused=False (those of a GPU, by default foreach=True, are "
        "not known here). Severity, by how far the effect is from the one asked: ok up to 1 %, note up to 10 %, "
        "warning more, fatal a tenth or less, ten times or more."
    )
    if "eps" in audit.hyperparameters:
        note += " eps: epsilon, by torch's name."
    if audit.format.name not in HAS_ARITHMETIC:
        note += f" Torch itself has no arithmetic in {audit.format}: what its operations would give."
    return Table(
        f"{audit.optimizer} in {audit.format}: {listed(audit.hyperparameters)}, {audit.steps:,} steps",
        (
            "number",
            "asked",
            f"held in {audit.format}",
            "severity",
            "as torch",
            "severity",
            "what follows",
            "what helps",
        ),
        rows,
        frozenset({1, 2, 4}),
        note=note,
        prose=frozenset({6, 7}),
    )


def _pairs(audit: HyperparameterAudit) -> Iterator[tuple[Finding, Finding | None]]:
    for held in audit.of(World.HELD):
        yield held, audit.torch(held.expression)


def _cells(finding: Finding | None) -> tuple[str, str]:
    return (NOT_STORED, "–") if finding is None else (f"{finding.stored:.9g}", str(finding.severity))


def _both(held: str, torch: str | None) -> str:
    """Write what is said in both worlds once."""
    if torch is None or torch == held:
        return held or "–"
    return f"held: {held or 'nothing'} / torch: {torch or 'nothing'}"


@tables_of.register
def usual_settings_tables(result: HyperparametersResult) -> tuple[Table, ...]:
    """One table a setting, a row a number: what it becomes in each format and world, and how far that is off."""
    return tuple(_audits_table(name, audits) for name, audits in result.audits.items())


def _audits_table(name: str, audits: Sequence[HyperparameterAudit]) -> Table:
    def cells(finding: Finding | None) -> tuple[str, str]:
        return (NOT_STORED, "–") if finding is None else (f"{finding.stored:.6g}", str(finding.severity))

    rows = tuple(
        (
            held.expression,
            f"{held.exact:.6g}",
            *(
                cell
                for a in audits
                for finding in (a[held.expression], a.torch(held.expression))
                for cell in cells(finding)
            ),
        )
        for held in audits[0].of(World.HELD)
    )
    headings = tuple(
        heading for a in audits for heading in (f"held in {a.format}", f"{a.format}", f"{a.format}, torch", "torch")
    )
    return Table(
        f"{name}: {listed(audits[0].hyperparameters)}",
        ("number", "asked", *headings),
        rows,
        frozenset({1, *range(2, 2 + 4 * len(audits), 2)}),
        note="Held: constants are kept in the format, too; torch: constants are doubles (not stored).",
    )
