"""Tables of a pre-flight."""

from __future__ import annotations

from collections.abc import Mapping

from precision_lab.presentation.tables.loss_scaling import loss_scale_tables
from precision_lab.presentation.tables.table import (
    Table,
    and_more,
    bytes_text,
    listed,
    number,
    percent,
    tables_of,
    worst,
)
from precision_lab.tensors.info import label_of, of_several_files
from precision_lab.training.hyperparameters import Severity
from precision_lab.training.preflight.report import LATER, BlockedUpdates, Candidate, PreflightReport, StoredUpdate
from precision_lab.training.storage import StorageConfig


@tables_of.register
def preflight_tables(report: PreflightReport) -> tuple[Table, ...]:
    """One row a configuration, cheapest first; one a tensor; one a number of the optimizer; the loss scale, if any."""
    tables = [_candidates(report), _tensors(report)]
    if findings := _findings(report):
        tables.append(findings)
    if report.gradients is not None:
        tables += loss_scale_tables(report.gradients)
    return tuple(tables)


def _candidates(report: PreflightReport) -> Table:
    later = report.later

    def row(candidate: Candidate) -> tuple[str, ...]:
        return (
            ("> " if candidate is report.cheapest else "") + candidate.name,
            f"{candidate.ledger.bytes_per_parameter}",
            bytes_text(candidate.ledger.total),
            percent(report.total[candidate.way].fraction),
            *(() if later is None else (percent(later[candidate.way].fraction),)),
            candidate.answer,
            "; ".join(candidate.reasons) or "–",
        )

    shares = ("lost updates %",) if later is None else ("frozen % at lr", f"at lr/{LATER}")
    recipe = f"{report.optimizer}, {listed(report.hyperparameters)}" if report.hyperparameters else report.optimizer
    more = f"; {len(report.groups)} groups of parameters" if len(report.groups) > 1 else ""
    start = "at the start of training" if report.sizes else "of these updates"
    frozen = " Frozen: such an update moves the weight neither way." if report.sizes else ""
    return Table(
        f"What keeps all that fp32 keeps {start}: {report.parameters:,} weights, {recipe}{more}",
        ("storage", "bytes/parameter", "total", *shares, "verdict", "why"),
        tuple(map(row, report.candidates)),
        frozenset(range(1, 3 + len(shares))),
        note=f"Least bytes first. Updates: {report.updates}.{frozen} {report.taken_from}".rstrip(),
        prose=frozenset({4 + len(shares)}),
    )


def _tensors(report: PreflightReport) -> Table:
    shortest = report.cheapest or report["pure_bf16"]
    names = report.asked or (shortest.name, "pure_bf16")
    ways = tuple(dict.fromkeys((*(report[name].way for name in names), StoredUpdate(StorageConfig().updated))))
    order = sorted(report.tensors, key=lambda tensor: -tensor.standstill[ways[0]].fraction)
    several = of_several_files(t.info for t in order)

    def cells(standstill: Mapping[StoredUpdate, BlockedUpdates]) -> tuple[str, ...]:
        return tuple(percent(standstill[way].fraction) for way in ways)

    rows = tuple(
        (
            label_of(t.info, several),
            t.info.dtype,
            f"{t.info.count:,}",
            number(t.histogram.min_nonzero),
            number(t.histogram.max_abs),
            *cells(t.standstill),
        )
        for t in worst(order)
    )
    what = "Frozen weights at |u| = lr" if report.sizes else "Lost updates"
    second = " With a second word (kahan, collage): in the worst case." if any(way.two_words for way in ways) else ""
    return Table(
        f"{what} in percent, by how a new weight is stored",
        ("tensor", "dtype", "elements", "min nonzero", "max", *map(str, ways)),
        rows,
        frozenset(range(2, 5 + len(ways))),
        totals=("total", "", f"{report.parameters:,}", "", "", *cells(report.total)),
        note=f"Updates: {report.updates}." + second + and_more(len(order), f"the largest share, {ways[0]}"),
    )


def _findings(report: PreflightReport) -> Table | None:
    """Return the numbers that a configuration that was asked about does not keep to 1 %."""
    rows = [
        (
            name,
            role_finding.role,
            role_finding.format.name,
            role_finding.finding.expression,
            f"{role_finding.finding.exact:.7g}",
            f"{role_finding.finding.stored:.9g}",
            str(role_finding.finding.severity),
            role_finding.finding.consequence,
            role_finding.finding.advice or "–",
        )
        for name in report.asked
        for role_finding in report[name].findings
        if role_finding.finding.severity is not Severity.OK
    ]
    if not rows:
        return None
    return Table(
        "Numbers of the optimizer that change by more than 1 % where they are stored",
        ("storage", "role", "format", "number", "asked", "stored", "severity", "what follows", "what helps"),
        tuple(rows),
        frozenset({4, 5}),
        prose=frozenset({7, 8}),
    )
