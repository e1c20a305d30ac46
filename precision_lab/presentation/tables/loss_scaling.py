"""Tables of loss scales: planned, replayed, and tried in trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precision_lab.analysis.loss_scale_plan import LossScalePlan, TensorPlans
from precision_lab.analysis.loss_scale_replay import ScaleTrace
from precision_lab.experiments.loss_scaling import LossScalingResult, ScaledRun
from precision_lab.numerics import fixed
from precision_lab.presentation.tables.histograms import fates_text
from precision_lab.presentation.tables.table import (
    Table,
    and_more,
    number,
    percent,
    power_of_two,
    tables_of,
    worst,
)
from precision_lab.support.text import shown


@tables_of.register
def loss_scale_tables(plans: TensorPlans) -> tuple[Table, ...]:
    """One row a tensor, worst first; and one row a loss scale that matters, or every fourth: what it does to all.

    And, if scales were asked about, a column for each: what it does to each tensor.
    """
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
        + and_more(len(plans.tensors))
        + f" {total.covers.sentence}",
    )
    marks = (
        (1.0, "no loss scaling"),
        (total.smallest_sufficient, "nothing flushed from here"),
        (total.largest_safe, "nothing overflows up to here"),
        (total.best.loss_scale, "loses least"),
        (None if total.recommended is None else total.recommended.loss_scale, "recommended"),
    )
    names = {scale: ", ".join(name for marked, name in marks if marked == scale) for scale, _ in marks}
    listed = [c for c in total.conversions if c.loss_scale in names or fixed.log2(c.loss_scale) % 4 == 0]
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
            for c in listed
        ),
        frozenset(range(5)),
        note=total.summary,
    )
    return (tensors, scales, _asked_table(plans)) if plans.asked else (tensors, scales)


@tables_of.register
def _(plan: LossScalePlan) -> tuple[Table, ...]:
    chosen = (plan.recommended or plan.best).loss_scale
    return loss_scale_tables(TensorPlans(plan, chosen, ()))[1:]


def _asked_table(plans: TensorPlans) -> Table:
    names = [name for name, _ in plans.asked[0].tensors]
    columns = ([c for _, c in asked.tensors] for asked in plans.asked)
    rows = list(zip(names, zip(*columns, strict=True), strict=True))
    rows.sort(key=lambda row: -max(c.flushed_of_nonzero + c.overflowed_of_nonzero for c in row[1]))
    return Table(
        f"What {'this scale does' if len(plans.asked) == 1 else 'these scales do'} in {plans.total.format}",
        ("tensor", *(f"S = {power_of_two(asked.total.loss_scale)}" for asked in plans.asked)),
        tuple((shown(name, 400), *map(fates_text, row)) for name, row in worst(rows)),
        frozenset(range(1, 1 + len(plans.asked))),
        totals=("total", *(fates_text(asked.total) for asked in plans.asked)),
        note="Flushed to zero / subnormal / overflowed, in percent of the nonzero finite elements; exact counts of S "
        "times each element, rounded once. Worst first." + and_more(len(names)),
    )


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


@tables_of.register
def _(trace: ScaleTrace) -> tuple[Table, ...]:
    return scale_trace_tables([trace])


def _outcome(trace: ScaleTrace) -> str:
    if trace.final.ended:
        return f"over after step {trace.steps - 1:,}"
    if trace.final.unanswered:
        return f"stuck {trace.final.unanswered:,} times"
    return "" if trace.floor_from is None else f"at its floor in step {trace.floor_from:,}"


def _changes_table(trace: ScaleTrace, most: int = 40) -> Table:
    changes = trace.changes
    listed = changes if len(changes) <= most else (*changes[: most // 2], *changes[-most // 2 :])
    rows = [
        (
            f"{change.step:,}",
            number(trace.max_abs[change.step]) if math.isfinite(trace.max_abs[change.step]) else "inf, NaN",
            "overflow" if trace.skipped[change.step] else "growth",
            power_of_two(change.before),
            power_of_two(change.after),
        )
        for change in listed
    ]
    if len(listed) < len(changes):
        rows.insert(most // 2, ("…", "", f"{len(changes) - len(listed):,} more", "", ""))
    columns = ("after step", "max |gradient|", "", "S", "next S")
    return Table(f"Where {trace.scaler.framework} moved the loss scale", columns, tuple(rows), frozenset({0, 1, 3, 4}))


@tables_of.register
def loss_scaling_tables(result: LossScalingResult) -> tuple[Table, ...]:
    """The recovery, a row for each product of loss factor and scale; the accidents, a row for each rule."""
    return _recovery_table(result), _accidents_table(result)


def _recovery_table(result: LossScalingResult) -> Table:
    config, judged = result.config, result.judged
    seeds = max(ratio.n for ratio in judged.values()) if judged else 1

    def row(k: int) -> tuple[str, ...]:
        runs, ratio = result.static[config.least][k], judged.get(k)
        return (
            power_of_two(2.0**k),
            *(_first_loss(result.static[c].get(k, ())) for c in config.factors),
            _skipped([int(run.skipped.sum()) for run in runs]),
            runs[0].outcome if ratio is None else ratio.text,
            "" if ratio is None else ratio.finding,
        )

    searches = [
        f"{ratio.text} from S = {power_of_two(2.0**start)} ({ratio.finding})"
        for start, ratio in result.searches.items()
    ]
    note = (
        f"Losses are those of the first seed; beside float32: the same seeds paired, {config.seeds} or, where they "
        f"scatter, {seeds}, or how the one run ended that there is. Untrained: {number(result.calm.initial_loss)}."
    )
    if searches:
        note += (
            f" A dynamic scale (torch's rule, window {config.window}) with c = {power_of_two(2.0**config.least)} ends "
            f"at {'; '.join(searches)}."
        )
    return Table(
        f"Final loss in {config.format} with a static loss scale S, the loss multiplied by c",
        (
            *("c · S", *(f"c = {power_of_two(2.0**c)}" for c in config.factors)),
            *(f"skipped of {config.steps:,}", "beside float32", ""),
        ),
        tuple(map(row, config.grid)),
        frozenset(range(1, 2 + len(config.factors))),
        totals=("float32", *(_first_loss(result.float32[c]) for c in config.factors), "", "", ""),
        note=note,
    )


def _first_loss(runs: Sequence[ScaledRun]) -> str:
    return number(runs[0].final_loss) if runs else ""


def _skipped(steps: Sequence[int]) -> str:
    """Write how many steps were skipped, with the fewest and the most of several seeds."""
    low, high = min(steps), max(steps)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _accidents_table(result: LossScalingResult) -> Table:
    names = [run.name for run in next(iter(result.accidents.values()), ())]
    by_name = [{run.name: run for run in runs} for runs in result.accidents.values()]
    return Table(
        f"Accidents: final loss, steps skipped from step {result.config.accident_at} on, outcome",
        ("rule", *result.accidents),
        tuple((name, *(_accident_cell(runs[name], result.config.accident_at) for runs in by_name)) for name in names),
        frozenset(range(1, 1 + len(by_name))),
        note=f"Without an accident float32 ends at {number(result.calm.final_loss)}. untrained: at half of the first "
        "loss or more. ruined: worse than untrained. stuck: skips every step. stopped: the scale fell to where it "
        "cannot be used, or the framework raises. loss inf or NaN: of the batch, in so many steps.",
    )


def _accident_cell(run: ScaledRun, since: int) -> str:
    """Write a final loss, how many steps were skipped and had no finite loss if any, and the outcome."""
    final = number(run.final_loss) if math.isfinite(run.final_loss) else "not finite"
    skipped = int(run.skipped[since:].sum())
    parts = [final, *([f"{skipped:,} skipped"] if skipped else [])]
    parts += [f"loss inf or NaN in {run.nonfinite_losses:,}"] if run.nonfinite_losses else []
    return ", ".join([*parts, run.outcome])
