"""Tables of updates that are lost, and of sums that stop."""

from __future__ import annotations

from collections.abc import Sequence

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.recording import Movement, narrow_format
from precision_lab.analysis.stagnation import Stagnation, SwampingThresholds
from precision_lab.analysis.swamping_scan import FrozenScan, RecordedUpdates, UpdateScan
from precision_lab.analysis.updates import UpdateReport
from precision_lab.experiments.swamping import SwampingResult
from precision_lab.numerics.formats import FloatFormat
from precision_lab.presentation.tables.table import (
    Table,
    and_more,
    facts_table,
    number,
    only_table,
    percent,
    steps_text,
    tables_of,
    worst,
)
from precision_lab.support.text import shown
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
    """One row a tensor, worst first: what becomes of its updates in each format; in a recorded run what stood still."""
    if isinstance(result, RecordedUpdates):
        return _recorded_table(result)
    several = of_several_files(info for info, _ in result.tensors)
    rows = tuple(
        (label_of(info, several), info.dtype, f"{reports[0].count:,}", *_update_cells(reports))
        for info, reports in worst(result.tensors)
    )
    columns = ("tensor", "dtype", "elements", *_update_columns(result.formats))
    return Table(
        "What would become of the updates",
        columns,
        rows,
        frozenset(range(2, len(columns))),
        totals=("total", "", f"{result.total[0].count:,}", *_update_cells(result.total)),
        note=_UPDATES_NOTE + ", ties to even." + and_more(len(result.tensors), "lost updates in the first format"),
    )


_UPDATES_NOTE = (
    "Under each format: lost updates in percent of those that are not zero / imprecision, in percent of all elements / "
    "effective descent quality <d,u>/||u||^2 (1: the whole step, 0: standstill)"
)
_NARROW_NOTE = (
    " Weights in 16 bits or fewer: u is what the optimizer intended. In the format that they are stored in: what the "
    "step made of it; in another: what would have become of the same u."
)
_WIDE_NOTE = (
    " Weights in float32 or float64: u is what was measured, after the step minus before; an update that they lost "
    "themselves is not among them, and only the first column tells."
)


def _update_columns(formats: Sequence[FloatFormat]) -> tuple[str, ...]:
    return ("inf, NaN", "overflowed", "||u||", *(fmt.name for fmt in formats)) if formats else ()


def _update_cells(reports: Sequence[UpdateReport]) -> tuple[str, ...]:
    if not reports:
        return ()
    nonfinite, overflowed = (max(getattr(r, name) for r in reports) for name in ("nonfinite", "overflowed"))
    shares = (f"{percent(r.lost_of_nonzero)} / {percent(r.imprecision)} / {number(r.edq_ratio)}" for r in reports)
    return f"{nonfinite:,}", f"{overflowed:,}", number(reports[0].raw_update_norm), *shares


def _recorded_table(result: RecordedUpdates) -> Table:
    known = {info.name: (info, _update_cells(reports)) for info, reports in result.tensors}
    blank = ("–",) * len(_update_columns(result.formats))
    unknown = {info.name: (info, blank) for info in result.skipped}
    described = known | unknown
    listed = [name for name in result.movements if name in described]
    listed += [name for name in described if name not in result.movements]  # of earlier versions

    def moved(movement: Movement | None) -> tuple[str, str]:
        if movement is None:
            return "–", "–"
        still = percent(movement.stood_still_share) if movement.should_move else "–"
        return still, steps_text(movement.weights, movement.weight_steps)

    def row(name: str) -> tuple[str, ...]:
        info, cells = described[name]
        still, elements = moved(result.movements.get(name))
        return label_of(info), still, info.dtype, elements, *cells

    still, elements = moved(result.movement if result.movements else None)
    columns = ("tensor", "stood still %", "dtype", "weights x steps", *_update_columns(result.formats))
    narrow = [info for info, _ in known.values() if narrow_format(info.dtype)]
    parts = [
        "Stood still: of the weights that should have moved in a recorded step the share that did not. A weight should "
        "have moved where its intended update is not zero; where that is not computed, where its gradient is not.",
        f" {_UPDATES_NOTE}, of all recorded steps together, ties to even." if result.formats else "",
        _NARROW_NOTE if narrow and result.formats else "",
        _WIDE_NOTE if len(narrow) < len(known) and result.formats else "",
        *(f" –: {reason}." for reason in dict.fromkeys(shown(info.skipped) for info in result.skipped)),
        " The totals under formats are of the others." if known and result.skipped else "",
        and_more(len(listed), "the largest share that stood still, or of lost updates in the first format"),
    ]
    steps = f"{result.recorded_steps:,} recorded step{'' if result.recorded_steps == 1 else 's'}"
    return Table(
        f"What would become of the updates ({steps})",
        columns,
        tuple(row(name) for name in worst(listed)),
        frozenset({1, *range(3, len(columns))}),
        totals=("total", still, "", elements, *(_update_cells(result.total) if known else blank)),
        note="".join(parts),
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
