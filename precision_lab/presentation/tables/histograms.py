"""Tables of histograms: what each format does to the elements of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.quantization import QuantizationReport
from precision_lab.analysis.recording import Movement, RecordedTensor, Recording, narrow_format
from precision_lab.analysis.scan import DEFAULT_FORMATS, ScannedTensor, ScanResult
from precision_lab.presentation.tables.table import (
    Table,
    and_more,
    facts_table,
    number,
    only_table,
    percent,
    power_of_two,
    steps_text,
    tables_of,
    worst,
)
from precision_lab.support.text import shown
from precision_lab.tensors.info import label_of, of_several_files
from precision_lab.tensors.roles import Role


def fates_text(conversion: Conversion) -> str:
    """Return the shares that are flushed, subnormal and overflowed, of all that is not zero."""
    shares = (conversion.flushed_of_nonzero, conversion.subnormal_of_nonzero, conversion.overflowed_of_nonzero)
    return " / ".join(percent(share) for share in shares)


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


@tables_of.register
def _(conversion: Conversion) -> tuple[Table, ...]:
    return (conversions_table(f"{conversion.count:,} elements in {conversion.format}", [conversion]),)


@only_table
def histogram_table(histogram: ExponentHistogram) -> Table:
    """One row a format: what it would do to the elements without loss scaling."""
    h = histogram
    title = f"{h.count:,} elements: {h.zero:,} zero, {h.nonfinite:,} inf or NaN"
    if h.nonzero:
        title += f", the others from {number(h.min_nonzero)} to {number(h.max_abs)}"
    return conversions_table(title, (h.conversion(fmt) for fmt in DEFAULT_FORMATS))


@tables_of.register
def scan_tables(result: ScanResult) -> tuple[Table, ...]:
    """What each format would do to the range of each tensor, and to its precision where that is known."""
    known = [tensor for tensor in result.tensors if tensor.precision]
    return (scan_table(result), _precision_table(result, known)) if known else (scan_table(result),)


def scan_table(result: ScanResult) -> Table:
    """One row a tensor: how much of it each format would flush, make subnormal and overflow."""

    def row(name: str, dtype: str, elements: int, histogram: ExponentHistogram) -> tuple[str, ...]:
        fates = [fates_text(histogram.conversion(fmt, result.loss_scale)) for fmt in result.formats]
        zero = histogram.zero / histogram.count if histogram.count else 0.0
        return (
            name,
            dtype,
            steps_text(elements, histogram.count),
            percent(zero),
            f"{histogram.nonfinite:,}",
            number(histogram.min_nonzero),
            number(histogram.max_abs),
            *fates,
        )

    def lost(tensor: ScannedTensor) -> float:
        h, scale = tensor.histogram, result.loss_scale
        return max(h.flushed(fmt, scale) + h.overflowed(fmt, scale) for fmt in result.formats) / max(h.nonzero, 1)

    listed = worst(result.tensors, lost)
    several = of_several_files(t.info for t in result.tensors)
    rows = tuple(row(label_of(t.info, several), t.info.dtype, t.info.count, t.histogram) for t in listed)
    totals = tuple(row(total.name, "", total.elements, total.histogram) for total in result.totals)
    columns = ("tensor", "dtype", "elements", "zero %", "inf, NaN", "min nonzero", "max")
    return Table(
        "What each format would do to the range",
        (*columns, *(fmt.name for fmt in result.formats)),
        rows,
        frozenset(range(2, len(columns) + len(result.formats))),
        totals=totals[0] if totals else None,
        other_totals=totals[1:],
        note="Under each format: flushed to zero / subnormal / overflowed, in percent of the nonzero finite elements"
        + _scale_note(result.loss_scale)
        + "."
        + _totals_note(result)
        + and_more(len(result.tensors), "flushed or overflowed, in the format that loses the largest share"),
    )


def _totals_note(result: ScanResult) -> str:
    """Say what is in no total, and of what the precision is not known."""
    steps = any(tensor.info.role is Role.STEP for tensor in result.tensors)
    recorded = any(tensor.run is not None for tensor in result.tensors)
    return (" Step counters are in no total." if steps else "") + (
        " Elements of a recording: those of the parameter x the gradients that were counted. What each format costs in "
        "precision is not known of recorded runs: only counts were recorded."
        if recorded
        else ""
    )


def _precision_table(result: ScanResult, known: Sequence[ScannedTensor]) -> Table:
    """One row a tensor, worst first: how much of it is noise in each format, and how many values are changed."""

    def row(name: str, precision: tuple[QuantizationReport, ...]) -> tuple[str, ...]:
        return name, f"{precision[0].count:,}", *map(precision_text, precision)

    def quality(tensor: ScannedTensor) -> float:
        ratios = (report.sqnr for report in tensor.precision or ())
        return min((ratio for ratio in ratios if not math.isnan(ratio)), default=math.inf)

    several = of_several_files(t.info for t in result.tensors)
    rows = tuple(row(label_of(t.info, several), t.precision or ()) for t in worst(sorted(known, key=quality)))
    totals = tuple(row(total.name, total.precision) for total in result.totals if total.precision)
    return Table(
        "What each format would do to the precision",
        ("tensor", "elements", *(fmt.name for fmt in result.formats)),
        rows,
        frozenset(range(1, 2 + len(result.formats))),
        totals=totals[0] if totals else None,
        other_totals=totals[1:],
        note="Under each format: signal-to-quantization-noise ratio (SQNR) in dB / changed, in percent; both over what "
        f"stays finite{_scale_note(result.loss_scale)}.\nSQNR: 10 log10(sum x^2 / sum (R(x) - x)^2); inf where nothing "
        "is changed, – where nothing but zeros stays finite. Worst first, by the format that is worst."
        + and_more(len(known)),
    )


def precision_text(report: QuantizationReport) -> str:
    """Return the SQNR in dB, and the share that is changed in percent."""
    return f"{decibels(report.sqnr_db)} / {percent(report.changed_of_finite)}"


def decibels(value: float) -> str:
    """Write decibels with one decimal, NaN as a dash."""
    return "–" if math.isnan(value) else f"{value:.1f}"


@only_table
def quantization_table(report: QuantizationReport) -> Table:
    """What a format costs in precision."""

    def bias(mean: float, error: float) -> str:
        return f"{number(mean)} +- {number(error)} ulp"

    facts = {
        "elements": f"{report.count:,}",
        "inf, NaN": f"{report.nonfinite:,}",
        "overflowed": f"{report.overflowed:,}",
        "changed, of those that stay finite": f"{report.changed:,} ({percent(report.changed_of_finite)} %)",
        "SQNR": f"{decibels(report.sqnr_db)} dB",
        "bias: mean of R(x) - x": bias(report.bias, report.bias_standard_error),
        "outward bias: mean of sign(x) (R(x) - x)": bias(report.outward_bias, report.outward_bias_standard_error),
    }
    return facts_table(f"Precision in {report.format}, {report.mode}", facts)


def _scale_note(loss_scale: float) -> str:
    return "" if loss_scale == 1 else f", after multiplication by {power_of_two(loss_scale)}"


def recording_text(recording: Recording) -> str:
    """Say in a line what a recording covers, and which share of the weights stood still."""
    made = f"{recording.steps:,} step{'' if recording.steps == 1 else 's'} of {shown(recording.model)}"
    steps = f"{made}, the gradients of {recording.recorded_steps:,} are counted"
    skipped = f"; {recording.skipped_steps:,} more were skipped by the loss scaler" if recording.skipped_steps else ""
    still = "; ".join(("", *_stood_still(recording.tensors, recording.recorded_steps)))
    return f"{steps}{skipped}{still}."


def narrow_text(recording: Recording) -> str:
    """Say what became of the weights in 16 bits or fewer that the optimizer had; nothing where there were none."""
    narrow = [t for t in recording.tensors if narrow_format(t.dtype) and (t.movement or t.not_measurable)]
    if not narrow:
        return ""
    names = ", ".join(dict.fromkeys(str(narrow_format(tensor.dtype)) for tensor in narrow))
    told = _stood_still(narrow, recording.recorded_steps)
    reasons = dict.fromkeys(tensor.not_measurable for tensor in narrow if tensor.not_measurable)
    lost = [f"how much of their updates was lost is {shown(reason)}" for reason in reasons]
    return f"Weights stored in {names}: {'; '.join([*told, *lost])}."


def _stood_still(tensors: Iterable[RecordedTensor], steps: int) -> list[str]:
    """Say which share of the weights stood still, of those that should have moved."""
    listed = list(tensors)
    total = Movement.total(filter(None, (tensor.movement for tensor in listed)))
    unknown = sum(tensor.unchanged for tensor in listed if tensor.movement is None)
    told = []
    if total.should_move:
        where = f"the {steps:,} recorded steps" if steps > 1 else "the recorded step"
        computed = any(tensor.updates is not None and narrow_format(tensor.dtype) for tensor in listed)
        which = "that should have moved did not" if computed else "with a gradient did not move"
        told.append(f"{percent(total.stood_still_share)} % of the weights {which}, in {where}")
    if unknown:  # by an earlier version
        told.append(f"{unknown:,} times a weight with a gradient stood still in a step, of an unknown number of times")
    return told
