"""Tables of what was found in tensor files."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.loss_scale_plan import LossScalePlan, TensorPlans
from precision_lab.analysis.loss_scale_replay import ScaleTrace
from precision_lab.analysis.recording import Recording
from precision_lab.analysis.scan import ScannedTensor, ScanResult
from precision_lab.analysis.sums import WAYS, SummedTensor, SumsResult
from precision_lab.analysis.swamping_scan import FrozenScan, UpdateScan
from precision_lab.analysis.updates import UpdateReport
from precision_lab.numerics import fixed
from precision_lab.numerics.accumulation import RoundedSum
from precision_lab.presentation.tables.table import Table, and_more, number, percent, power_of_two, worst
from precision_lab.support.text import shown
from precision_lab.tensors.info import label_of, of_several_files


def fates_text(conversion: Conversion) -> str:
    """Return the shares that are flushed, subnormal and overflowed, of all that is not zero."""
    shares = (conversion.flushed_of_nonzero, conversion.subnormal_of_nonzero, conversion.overflowed_of_nonzero)
    return " / ".join(percent(share) for share in shares)


def _scale_note(loss_scale: float) -> str:
    return "" if loss_scale == 1 else f", after multiplication by {power_of_two(loss_scale)}"


def scan_table(result: ScanResult) -> Table:
    """One row a tensor: how much of it each format would flush, make subnormal and overflow."""

    def row(name: str, dtype: str, histogram: ExponentHistogram) -> tuple[str, ...]:
        fates = [fates_text(histogram.conversion(fmt, result.loss_scale)) for fmt in result.formats]
        zero = histogram.zero / histogram.count if histogram.count else 0.0
        return (
            name,
            dtype,
            f"{histogram.count:,}",
            percent(zero),
            f"{histogram.nonfinite:,}",
            number(histogram.min_nonzero),
            number(histogram.max_abs),
            *fates,
        )

    def lost(tensor: ScannedTensor) -> float:
        h, scale = tensor.histogram, result.loss_scale
        return max(h.flushed(fmt, scale) + h.overflowed(fmt, scale) for fmt in result.formats) / max(h.nonzero, 1)

    told = worst(result.tensors, lost)
    several = of_several_files(t.info for t in result.tensors)
    rows = tuple(row(label_of(t.info, several), t.info.dtype, t.histogram) for t in told)
    columns = ("tensor", "dtype", "elements", "zero %", "inf, NaN", "min nonzero", "max")
    return Table(
        "What each format would do",
        (*columns, *(fmt.name for fmt in result.formats)),
        rows,
        frozenset(range(2, len(columns) + len(result.formats))),
        totals=row("total", "", result.total),
        note="Under each format: flushed to zero / subnormal / overflowed, in percent of the nonzero finite elements"
        + _scale_note(result.loss_scale)
        + "."
        + and_more(len(result.tensors), "flushed or overflowed, in the format that loses the largest share"),
    )


def sums_table(result: SumsResult) -> Table:
    """One row a tensor: the exact sum, and what each way of adding makes of it."""

    def row(label: str, tensor: SummedTensor) -> tuple[str, ...]:
        return (label, f"{tensor.terms:,}", number(tensor.exact_sum), *map(_error, tensor.sums.values()))

    several = of_several_files(tensor.info for tensor in result.tensors)
    return Table(
        f"Sums of {'squares' if result.squares else 'the elements'} in {result.format}: relative error in percent",
        ("tensor", "terms", "exact", *WAYS),
        tuple(row(label_of(tensor.info, several), tensor) for tensor in worst(result.tensors)),
        frozenset(range(1, 3 + len(WAYS))),
        note="A sum near zero has large relative errors however it is made. inf, NaN: the sum itself is. Every step is "
        "rounded once; blocks have 64 terms." + and_more(len(result.tensors), "the largest error of all ways"),
    )


def _error(found: RoundedSum) -> str:
    if not math.isfinite(found.result):
        return f"{found.result}".replace("nan", "NaN")
    error = 100 * found.relative_error
    return "–" if math.isnan(error) else "0" if error == 0 else f"{error:.2g}" if error < 1000 else f"{error:.1e}"


def loss_scale_tables(plans: TensorPlans) -> tuple[Table, Table]:
    """One row a tensor, worst first; and one row a loss scale that matters, or every fourth: what it does to all."""
    total, chosen = plans.total, plans.loss_scale

    def row(name: str, plan: LossScalePlan) -> tuple[str, ...]:
        return (
            name,
            f"{plan.histogram.count:,}",
            number(plan.histogram.min_nonzero),
            number(plan.histogram.max_abs),
            *(_limit(s, plan) for s in (plan.smallest_sufficient, plan.largest_safe)),
            fates_text(plan.at(1)),
            fates_text(plan.at(chosen)),
        )

    tensors = Table(
        f"Loss scale for {total.format}",
        (
            *("tensor", "elements", "min nonzero", "max", "nothing flushed from", "nothing overflows up to", "S = 1"),
            f"S = {power_of_two(chosen)}",
        ),
        tuple(row(shown(name, 400), plan) for name, plan in worst(plans.tensors)),
        frozenset(range(1, 8)),
        totals=row("total", total),
        note="Under each loss scale: flushed to zero / subnormal / overflowed, in percent of the nonzero finite "
        f"elements. Worst first at S = {power_of_two(chosen)}. A dash: no scale from 2^-126 to 2^127."
        + and_more(len(plans.tensors)),
    )
    names = {
        1.0: "no loss scaling",
        total.smallest_sufficient: "nothing flushed from here",
        total.largest_safe: "nothing overflows up to here",
        total.best.loss_scale: "loses least",
        None if total.recommended is None else total.recommended.loss_scale: "recommended",
    }
    told = [c for c in total.conversions if c.loss_scale in names or fixed.log2(c.loss_scale) % 4 == 0]
    scales = Table(
        f"What each loss scale does in {total.format}",
        ("S", "flushed %", "subnormal %", "overflowed %", "lost", ""),
        tuple(
            (
                power_of_two(c.loss_scale),
                percent(c.flushed_of_nonzero),
                percent(c.subnormal_of_nonzero),
                percent(c.overflowed_of_nonzero),
                f"{c.flushed + c.overflowed:,}",
                names.get(c.loss_scale, ""),
            )
            for c in told
        ),
        frozenset(range(5)),
        note=total.summary,
    )
    return tensors, scales


def _limit(loss_scale: float | None, plan: LossScalePlan) -> str:
    if not plan.histogram.nonzero:
        return "any"
    return "–" if loss_scale is None else power_of_two(loss_scale)


def scale_trace_tables(traces: Sequence[ScaleTrace]) -> tuple[Table, ...]:
    """One row a scaler; of one or two scalers also one row a change of the loss scale."""
    summary = Table(
        f"Replayed in {traces[0].format}: {len(traces[0].max_abs):,} steps",
        ("scaler", "steps", "skipped", "%", "in a row", "from step", "S at first", "lowest", "highest", "at last", ""),
        tuple(
            (
                trace.scaler.framework,
                f"{trace.steps:,}",
                f"{trace.skipped_steps:,}",
                percent(trace.skipped_steps / trace.steps),
                f"{len(trace.longest_skip):,}",
                f"{trace.longest_skip.start:,}" if trace.longest_skip else "–",
                *map(power_of_two, (trace.scaler.loss_scale, min(trace.loss_scales), max(trace.loss_scales))),
                power_of_two(trace.final.loss_scale),
                _outcome(trace),
            )
            for trace in traces
        ),
        frozenset(range(1, 10)),
        note="\n".join(
            [
                "skipped: the largest gradient, times S, is not finite in the format. in a row: the longest run.",
                *(f"{trace.scaler.framework}: {trace.reason}." for trace in traces if trace.exhausted),
            ]
        ),
    )
    return (summary, *(_changes_table(trace) for trace in traces if trace.changes and len(traces) < 3))


def _outcome(trace: ScaleTrace) -> str:
    if trace.final.ended:
        return f"over after step {trace.steps - 1:,}"
    if trace.final.unanswered:
        return f"stuck {trace.final.unanswered:,} times"
    return "" if trace.floor_from is None else f"at its floor in step {trace.floor_from:,}"


def _changes_table(trace: ScaleTrace, most: int = 40) -> Table:
    changes = trace.changes
    told = changes if len(changes) <= most else (*changes[: most // 2], *changes[-most // 2 :])
    rows = [
        (
            f"{change.step:,}",
            number(trace.max_abs[change.step]) if math.isfinite(trace.max_abs[change.step]) else "inf, NaN",
            "overflow" if trace.skipped[change.step] else "growth",
            power_of_two(change.before),
            power_of_two(change.after),
        )
        for change in told
    ]
    if len(told) < len(changes):
        rows.insert(most // 2, ("…", "", f"{len(changes) - len(told):,} more", "", ""))
    columns = ("after step", "max |gradient|", "", "S", "next S")
    return Table(f"Where {trace.scaler.framework} moved the loss scale", columns, tuple(rows), frozenset({0, 1, 3, 4}))


def recording_text(recording: Recording) -> str:
    """Say in a line what a recording covers."""
    made = f"{recording.steps:,} step{'' if recording.steps == 1 else 's'} of {shown(recording.model)}"
    steps = f"{made}, the gradients of {recording.recorded_steps:,} are counted"
    skipped = f"; {recording.skipped_steps:,} more were skipped by the loss scaler" if recording.skipped_steps else ""
    unchanged = sum(tensor.unchanged for tensor in recording.tensors)
    stood = f"; {unchanged:,} weights with a gradient stood still" if unchanged else ""
    return f"{steps}{skipped}{stood}."


def frozen_table(result: FrozenScan) -> Table:
    """One row a tensor, worst first: the shares that updates of each size cannot move in each format."""

    def cells(gaps: Sequence[WeightGaps]) -> tuple[str, ...]:
        found = (g.frozen(size) for g in gaps for size in result.update_sizes)
        return tuple(" / ".join(map(percent, (f.up_fraction, f.down_fraction, f.fraction))) for f in found)

    def counts(gaps: Sequence[WeightGaps]) -> tuple[str, str]:
        return f"{gaps[0].count + gaps[0].nonfinite:,}", f"{max(g.nonfinite for g in gaps):,}"

    several = of_several_files(info for info, _ in result.tensors)
    rows = tuple(
        (label_of(info, several), info.dtype, *counts(gaps), *cells(gaps)) for info, gaps in worst(result.tensors)
    )
    asked = tuple(f"{fmt} |u|={size:.3g}" for fmt in result.formats for size in result.update_sizes)
    return Table(
        "Which weights would stand still",
        ("tensor", "dtype", "elements", "inf, NaN", *asked),
        rows,
        frozenset(range(2, 4 + len(asked))),
        totals=("total", "", *counts(result.total), *cells(result.total)),
        note="Under each format and size of the update: cannot move up / cannot move down / can move neither way, in "
        "percent of the finite weights, ties to even. Sorted by the last figure of the first of these columns."
        + and_more(len(result.tensors)),
    )


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
    asked = tuple(fmt.name for fmt in result.formats)
    return Table(
        "What would become of the updates",
        ("tensor", "dtype", "elements", "inf, NaN", "overflowed", "||u||", *asked),
        rows,
        frozenset(range(2, 6 + len(asked))),
        totals=("total", "", *counts(result.total), *cells(result.total)),
        note="Under each format: lost updates in percent of those that are not zero / imprecision, in percent of all "
        "elements / effective descent quality <d,u>/||u||^2 (1: the whole step, 0: standstill), ties to even."
        + and_more(len(result.tensors), "lost updates in the first format"),
    )
