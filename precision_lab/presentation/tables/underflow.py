"""The table of the underflow experiment."""

from __future__ import annotations

from precision_lab.experiments.underflow import GROUPS, UnderflowResult
from precision_lab.presentation.tables.histograms import fates_text
from precision_lab.presentation.tables.table import (
    Table,
    number,
    percent,
    power_of_two,
    tables_of,
)


@tables_of.register
def underflow_tables(result: UnderflowResult) -> tuple[Table, ...]:
    """One row a stage and group: what each format does without loss scaling, and the best loss scale for fp16.

    And what it costs: final losses beside float32's.
    """
    return _fates_table(result), _cost_table(result)


def _cost_table(result: UnderflowResult) -> Table:
    config = result.config
    fmt, small_steps = config.formats[0], min(config.steps, config.small_steps)
    rows = (("as it is", config.steps, result.cost), (f"2^{config.small_exponent}", small_steps, result.cost_of_small))
    return Table(
        f"What flushing costs: {fmt} with a float32 master copy, without loss scaling",
        ("the loss times", "steps", f"{fmt} ends at", "float32 at", "beside float32", ""),
        tuple(
            (factor, f"{steps:,}", number(ratio.losses[0]), number(ratio.controls[0]), ratio.text, ratio.finding)
            for factor, steps, ratio in rows
        ),
        frozenset({1, 2, 3}),
        note="Losses of the first seed; beside float32: n seeds, each paired with float32 of the same seed, with an "
        "interval of 90 %.",
    )


def _fates_table(result: UnderflowResult) -> Table:
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
    return Table(
        "Gradients of the digits MLP without loss scaling",
        ("stage", "loss", "gradients", *formats, f"best loss scale for {formats[0]}"),
        tuple(rows),
        frozenset({1, *range(3, 3 + len(formats))}),
        note="Under each format: flushed to zero / subnormal / overflowed, in percent of the nonzero elements. "
        "lost: flushed or overflowed.\n"
        f"float32 run: final loss {result.final_loss:.2e}, test accuracy {result.test_accuracy:.1%}.",
    )
