"""Tables of the experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precision_lab.experiments.accumulation import AccumulationResult
from precision_lab.experiments.loss_scaling import LossScalingResult, ScaledRun
from precision_lab.experiments.storage import Outcome, StorageResult
from precision_lab.experiments.swamping import SwampingResult
from precision_lab.experiments.underflow import GROUPS, UnderflowResult
from precision_lab.presentation.collection import Finished
from precision_lab.presentation.tables.table import Table, number, percent, percent_or_more, power_of_two
from precision_lab.presentation.tables.tensors import fates_text


def underflow_tables(result: UnderflowResult) -> tuple[Table, ...]:
    """One row a stage and group: what each format does without loss scaling, and the best loss scale for fp16."""
    formats = result.config.formats
    rows = []
    for stage in result.stages:
        for group in GROUPS:
            best = result.best_loss_scale(stage.name, group, formats[0])
            left = percent((best.flushed + best.overflowed) / best.nonzero if best.nonzero else 0.0)
            fates = (fates_text(result.unscaled(stage.name, group, fmt)) for fmt in formats)
            rows.append(
                (stage.name, f"{stage.loss:.2e}", group, *fates, f"S = {power_of_two(best.loss_scale)}, {left} % lost")
            )
    table = Table(
        "Gradients of the digits MLP without loss scaling",
        ("stage", "loss", "gradients", *formats, f"best loss scale for {formats[0]}"),
        tuple(rows),
        frozenset({1, *range(3, 3 + len(formats))}),
        note="Under each format: flushed to zero / subnormal / overflowed, in percent of the nonzero elements. "
        "lost: flushed or overflowed.\n"
        f"float32 run: final loss {result.final_loss:.2e}, test accuracy {result.test_accuracy:.1%}.",
    )
    return (table,)


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
    found = {(p.product, p.accumulator, p.products_rounded): p.error for p in result.products}
    products = Table(
        f"Products of the digits MLP, {result.config.format} in and out: relative error in percent (Frobenius)",
        ("accumulator", "products", *(f"{name}, {length:,} terms" for name, length in names.items())),
        tuple(
            (
                accumulator,
                "rounded" if rounded else "exact",
                *(percent_or_more(found[name, accumulator, rounded]) for name in names),
            )
            for accumulator, rounded in kinds
        ),
        frozenset(range(2, 2 + len(names))),
    )
    return sums, products


def loss_scaling_tables(result: LossScalingResult) -> tuple[Table, ...]:
    """The recovery, a row for each product of loss factor and scale; the accidents, a row for each rule."""
    factors = result.config.factors
    recovery = Table(
        f"Final loss in {result.config.format} with a static loss scale S, the loss multiplied by c",
        ("c · S", *(f"c = {power_of_two(2.0**c)}" for c in factors)),
        tuple(
            (power_of_two(2.0**k), *(_run_cell(result.static[c][k]) for c in factors)) for k in result.config.products
        ),
        frozenset(range(1, 1 + len(factors))),
        totals=("float32", *(number(result.float32[c].final_loss) for c in factors)),
        note="A dynamic scale (torch's rule, window "
        f"{result.config.window}) with c = {power_of_two(2.0 ** min(factors))} ends at "
        + ", ".join(f"{_run_cell(run)} from S = {power_of_two(2.0**start)}" for start, run in result.dynamic.items())
        + f". Untrained: {number(result.calm.initial_loss)}.",
    )
    names = [run.name for run in next(iter(result.accidents.values()))]
    by_name = [{run.name: run for run in runs} for runs in result.accidents.values()]
    accidents = Table(
        f"Accidents: final loss, steps skipped from step {result.config.accident_at} on, outcome",
        ("rule", *result.accidents),
        tuple(
            (name, *(_run_cell(runs[name], result.config.accident_at) + f", {runs[name].outcome}" for runs in by_name))
            for name in names
        ),
        frozenset(range(1, 1 + len(by_name))),
        note=f"Without an accident float32 ends at {number(result.calm.final_loss)}. ruined: worse than untrained. "
        "stuck: skips every step. stopped: the scale fell to where it cannot be used, or the framework raises.",
    )
    return recovery, accidents


def _run_cell(run: ScaledRun, since: int = 0) -> str:
    """Write a final loss, and how many steps were skipped if any were."""
    final = number(run.final_loss) if math.isfinite(run.final_loss) else "not finite"
    skipped = int(run.skipped[since:].sum())
    return f"{final}, {skipped:,} skipped" if skipped else final


def storage_tables(result: StorageResult) -> tuple[Table, ...]:
    """One table a setting, a row a configuration; then one for each of the smaller questions."""
    found = [_outcomes_table(f"{result.config.model}, {name}", outcomes) for name, outcomes in result.outcomes.items()]
    return (*found, *(_outcomes_table(name.capitalize(), outcomes) for name, outcomes in result.sections.items()))


def _outcomes_table(title: str, outcomes: Sequence[Outcome]) -> Table:
    rows = tuple(
        (
            o.label,
            f"{o.bytes_per_parameter:g}",
            number(o.final_loss),
            number(o.spread),
            "–" if o.accuracy is None else f"{100 * o.accuracy:.1f}",
            percent(o.lost),
            percent(o.imprecision),
            f"{o.edq_ratio:.3f}",
            f"{o.skipped:,.0f}",
            o.sentence,
        )
        for o in outcomes
    )
    return Table(
        title,
        (
            "storage",
            "bytes",
            "final loss",
            "spread",
            "accuracy %",
            "lost %",
            "unchanged %",
            "EDQ ratio",
            "skipped",
            "what came out",
        ),
        rows,
        frozenset(range(1, 9)),
        note="bytes: per parameter, measured. spread: between the seeds. lost: of the non-zero updates. unchanged: of "
        "all elements (imprecision). EDQ ratio: 1 is perfect, 0 is standstill.",
        prose=frozenset({9}),
    )


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


def summary_table(finished: Sequence[Finished], *, quick: bool) -> Table:
    """One row an experiment: what came out, what it took, and whether it was run or reused."""
    return Table(
        "What came out" + (" (quick run: fewer steps, seeds and configurations)" if quick else ""),
        ("experiment", "what came out", "seconds", ""),
        tuple((one.name, one.answer, f"{one.seconds:.1f}", "reused" if one.reused else "run") for one in finished),
        frozenset({2}),
        prose=frozenset({1}),
    )
