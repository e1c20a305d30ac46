"""Tables of what one object has to say: two columns, or a row a format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields

from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.scan import DEFAULT_FORMATS
from precision_lab.analysis.stagnation import Stagnation, SwampingThresholds
from precision_lab.analysis.updates import UpdateReport
from precision_lab.numerics.accumulation import AccumulationTrace
from precision_lab.presentation.tables.table import Table, number, percent, percent_or_more, power_of_two
from precision_lab.presentation.tables.training import storage_text
from precision_lab.training.result import TrainingResult
from precision_lab.training.storage import StorageConfig


def conversions_table(title: str, conversions: Iterable[Conversion]) -> Table:
    """One row a conversion: what becomes of the elements."""
    rows = tuple(
        (
            c.format.name,
            power_of_two(c.loss_scale),
            *(
                f"{part:,} ({percent(part / c.nonzero)} %)" if c.nonzero else f"{part:,}"
                for part in (c.flushed, c.subnormal, c.overflowed, c.kept)
            ),
        )
        for c in conversions
    )
    columns = ("format", "S", "flushed", "subnormal", "overflowed", "kept")
    return Table(title, columns, rows, frozenset(range(1, 6)), note="In parentheses: of the nonzero finite elements.")


def histogram_table(histogram: ExponentHistogram) -> Table:
    """One row a format: what it would do to the elements without loss scaling."""
    h = histogram
    title = f"{h.count:,} elements: {h.zero:,} zero, {h.nonfinite:,} inf or NaN"
    if h.nonzero:
        title += f", the others from {number(h.min_nonzero)} to {number(h.max_abs)}"
    return conversions_table(title, (h.conversion(fmt) for fmt in DEFAULT_FORMATS))


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
    return _facts(f"Updates of weights in {report.format}, {report.mode}", counts)


def trace_table(trace: AccumulationTrace) -> Table:
    """What became of a sum."""
    stopped = "–" if trace.stagnates_after is None else f"after {trace.stagnates_after:,} terms"
    error = "–" if math.isnan(trace.relative_error) else f"{percent_or_more(trace.relative_error)} %"
    return _facts(
        f"{trace.count:,} terms, {trace.method}, {trace.mode}",
        {
            "format, accumulator": f"{trace.format}, {trace.accumulator}",
            "result": f"{trace.result:.10g}",
            "exact sum": f"{trace.exact_sum:.10g}",
            "relative error": error,
            "stands still": stopped,
            "the error cannot exceed": number(trace.worst_case_bound),
        },
    )


def stagnation_table(end: Stagnation) -> Table:
    """Where a running sum stopped."""
    stopped = f"{end.value:.10g}" if end.stopped else "does not stop"
    facts = {"stops at": stopped, "after terms": f"{end.terms:,}"}
    return _facts(f"{end.series} in {end.format}, {end.mode}", facts)


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


def storage_config_table(storage: StorageConfig) -> Table:
    """One row a role of a training step."""
    values = {f.name: getattr(storage, f.name) for f in fields(storage)}
    words = {True: "yes", False: "no", None: "none"}
    texts = {key: words[v] if v is None or isinstance(v, bool) else str(v) for key, v in values.items()}
    texts["loss_scale"] = type(storage.loss_scale).__name__
    return _facts(storage_text(storage), {key.replace("_", " "): text for key, text in texts.items()})


def training_table(result: TrainingResult) -> Table:
    """What a run came to."""
    updates, config = result.updates, result.config
    end = result.stopped or ("yes" if result.diverged else "no")
    asked = f"{config.model}, {config.optimizer}, lr {config.learning_rate:g}, {config.steps:,} steps"
    return _facts(
        f"{asked}, {storage_text(config.storage)}",
        {
            "loss, first and last": f"{number(result.initial_loss)}, {number(result.final_loss)}",
            "test accuracy": "–" if result.test_accuracy is None else f"{100 * result.test_accuracy:.1f} %",
            "lost updates, of those that are not zero": f"{percent(updates.lost_of_nonzero)} %",
            "imprecision: of all elements": f"{percent(updates.imprecision)} %",
            "effective descent quality <d,u>/||u||^2": f"{updates.edq_ratio:.3f}",
            "skipped steps": f"{int(result.skipped.sum()):,}",
            "diverged or stopped": end,
            "bytes per parameter, measured": f"{result.bytes_per_parameter:g}",
        },
    )


def _facts(title: str, facts: Mapping[str, str]) -> Table:
    return Table(title, ("", "value"), tuple(facts.items()), frozenset({1}))
