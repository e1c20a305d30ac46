"""Tables of updates that are lost, and of sums that stop."""

from __future__ import annotations

from collections.abc import Sequence

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.stagnation import Stagnation, SwampingThresholds
from precision_lab.analysis.swamping_scan import FrozenScan, UpdateScan
from precision_lab.analysis.updates import UpdateReport
from precision_lab.experiments.swamping import SwampingResult
from precision_lab.presentation.tables.table import (
    Table,
    and_more,
    facts_table,
    number,
    only_table,
    percent,
    tables_of,
    worst,
)
from precision_lab.tensors.info import label_of, of_several_files


@only_table
def thresholds_table(thresholds: SwampingThresholds) -> Table:
    """From which ratio w/u on an update vanishes."""
    rows = tuple(
        (f"w {sign} u == w", *(f"{'>=' if t.inclusive else '>'} {t.ratio:g}" for t in pair))
        for sign, pair in (
            ("+", (thresholds.add_can, thresholds.add_must)),
            ("-", (thresholds.subtract_can, thresholds.subtract_must)),
        )
    )
    columns = ("", "can happen from w/u", "must happen from w/u")
    return Table(f"When an update vanishes in {thresholds.format}", columns, rows, frozenset({1, 2}))


@only_table
def stagnation_table(end: Stagnation) -> Table:
    """Where a running sum stopped."""
    stopped = f"{end.value:.10g}" if end.stopped else "does not stop"
    facts = {"stops at": stopped, "after terms": f"{end.terms:,}"}
    return facts_table(f"{end.series} in {end.format}, {end.mode}", facts)


@only_table
def update_report_table(report: UpdateReport) -> Table:
    """What became of updates."""
    shares = {
        "lost, of those that are not zero": f"{report.lost:,} ({percent(report.lost_of_nonzero)} %)",
        "imprecision: all with R(w + u) == w": f"{percent(report.imprecision)} %",
        "effective descent quality <d,u>/||u||^2": number(report.edq_ratio),
        "||u||, ||d||": f"{number(report.raw_update_norm)}, {number(report.effective_update_norm)}",
    }
    counts = {
        "elements": f"{report.count:,}",
        "updates that are not zero": f"{report.nonzero:,}",
        **shares,
        "overflowed": f"{report.overflowed:,}",
        "inf, NaN": f"{report.nonfinite:,}",
    }
    return facts_table(f"Updates of weights in {report.format}, {report.mode}", counts)


@only_table
def frozen_table(result: FrozenScan) -> Table:
    """One row a tensor, worst first: the shares that updates of each size cannot move in each format."""

    def cells(gaps: Sequence[WeightGaps]) -> tuple[str, ...]:
        shares = (g.frozen(size) for g in gaps for size in result.update_sizes)
        return tuple(" / ".join(map(percent, (f.up_fraction, f.down_fraction, f.fraction))) for f in shares)

    def counts(gaps: Sequence[WeightGaps]) -> tuple[str, str]:
        return f"{gaps[0].count + gaps[0].nonfinite:,}", f"{max(g.nonfinite for g in gaps):,}"

    several = of_several_files(info for info, _ in result.tensors)
    rows = tuple(
        (label_of(info, several), info.dtype, *counts(gaps), *cells(gaps)) for info, gaps in worst(result.tensors)
    )
    headings = tuple(f"{fmt} |u|={size:.3g}" for fmt in result.formats for size in result.update_sizes)
    return Table(
        "Which weights would stand still",
        ("tensor", "dtype", "elements", "inf, NaN", *headings),
        rows,
        frozenset(range(2, 4 + len(headings))),
        totals=("total", "", *counts(result.total), *cells(result.total)),
        note="Under each format and size of the update: cannot move up / cannot move down / can move neither way, in "
        "percent of the finite weights, ties to even. Sorted by the last figure of the first of these columns."
        + and_more(len(result.tensors)),
    )


@only_table
def updates_table(result: UpdateScan) -> Table:
    """One row a tensor, worst first: what becomes of its updates in each format."""

    def cells(reports: Sequence[UpdateReport]) -> tuple[str, ...]:
        return tuple(
            f"{percent(r.lost_of_nonzero)} / {percent(r.imprecision)} / {number(r.edq_ratio)}" for r in reports
        )

    def counts(reports: Sequence[UpdateReport]) -> tuple[str, ...]:
        nonfinite, overflowed = (max(getattr(r, name) for r in reports) for name in ("nonfinite", "overflowed"))
        return f"{reports[0].count:,}", f"{nonfinite:,}", f"{overflowed:,}", number(reports[0].raw_update_norm)

    several = of_several_files(info for info, _ in result.tensors)
    rows = tuple(
        (label_of(info, several), info.dtype, *counts(reports), *cells(reports))
        for info, reports in worst(result.tensors)
    )
    headings = tuple(fmt.name for fmt in result.formats)
    return Table(
        "What would become of the updates",
        ("tensor", "dtype", "elements", "inf, NaN", "overflowed", "||u||", *headings),
        rows,
        frozenset(range(2, 6 + len(headings))),
        totals=("total", "", *counts(result.total), *cells(result.total)),
        note="Under each format: lost updates in percent of those that are not zero / imprecision, in percent of all "
        "elements / effective descent quality <d,u>/||u||^2 (1: the whole step, 0: standstill), ties to even."
        + and_more(len(result.tensors), "lost updates in the first format"),
    )


@tables_of.register
def swamping_tables(result: SwampingResult) -> tuple[Table, ...]:
    """What becomes of the updates of each run and stage; and where running sums stop."""
    rows = []
    for look in result.looks:
        cells = []
        for fmt in result.config.formats:
            even, random = (look.reports[fmt][mode] for mode in ("ties_to_even", "stochastic"))
            frozen = look.gaps[fmt].frozen(look.learning_rate).fraction
            cells += [
                f"{percent(even.lost_of_nonzero)} / {percent(even.imprecision)}",
                f"{even.edq_ratio:.3f} / {random.edq_ratio:.3f}",
                percent(frozen) if look.optimizer == "adam" else "–",  # SGD's updates have not the size of its rate
            ]
        rows.append((look.optimizer, look.stage, f"{look.loss:.2e}", *cells))
    headings = (f"{fmt} {what}" for fmt in result.config.formats for what in ("lost / all", "EDQ", "frozen at lr"))
    updates = Table(
        "Updates of the digits MLP, if its weights were stored in 16 bits",
        ("optimizer", "stage", "loss", *headings),
        tuple(rows),
        frozenset(range(2, 3 + 3 * len(result.config.formats))),
        note="lost / all: lost updates in percent of those that are not zero, and imprecision, in percent of all "
        "elements, ties to even.\nEDQ: effective descent quality <d,u>/||u||^2 with ties to even / stochastic "
        "rounding. frozen at lr: percent of the weights that an update as large as Adam's learning rate cannot move.",
    )
    sums = Table(
        "Running sums",
        ("sum", "format", "rounding", "stops at", "after terms"),
        tuple(
            (
                end.series,
                end.format.name,
                end.mode.value,
                f"{end.value:.10g}" if end.stopped else "does not stop",
                f"{end.terms:,}",
            )
            for end in (s.end for s in result.sums)
        ),
        frozenset({3, 4}),
    )
    return updates, sums
