"""Objects show themselves in a notebook: every result as its table, a histogram and a format with a small picture.

`attach` gives the classes their ``_repr_html_``, the method that Jupyter looks for. They do not have it of their own,
because a floor imports no floor below it and tables are far below formats; a user need not do anything either way.
Pictures are images in the page itself, of SVG: an ``<img>`` survives where notebooks that are not trusted lose inline
SVG and styles. All text is escaped: the names in tensor files are other people's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.loss_scale_plan import LossScalePlan, TensorPlans
from precision_lab.analysis.loss_scale_replay import ScaleTrace
from precision_lab.analysis.scan import ScanResult
from precision_lab.analysis.stagnation import Stagnation, SwampingThresholds
from precision_lab.analysis.sums import SumsResult
from precision_lab.analysis.swamping_scan import FrozenScan, UpdateScan
from precision_lab.analysis.updates import UpdateReport
from precision_lab.claims import ClaimsResult
from precision_lab.experiments.accumulation import AccumulationResult
from precision_lab.experiments.hyperparameters import HyperparametersResult
from precision_lab.experiments.loss_scaling import LossScalingResult
from precision_lab.experiments.memory import MemoryResult
from precision_lab.experiments.storage import StorageResult
from precision_lab.experiments.swamping import SwampingResult
from precision_lab.experiments.underflow import UnderflowResult
from precision_lab.numerics.accumulation import AccumulationTrace
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.inspection import Inspection
from precision_lab.training.comparison import TrainingComparison
from precision_lab.training.hyperparameters import HyperparameterAudit
from precision_lab.training.memory import MemoryLedger
from precision_lab.training.preflight import PreflightReport
from precision_lab.training.result import TrainingResult
from precision_lab.training.storage import StorageConfig

if TYPE_CHECKING:
    from precision_lab.presentation.tables import Table

SHOWN: tuple[type, ...] = (
    *(AccumulationResult, AccumulationTrace, ClaimsResult, Conversion, ExponentHistogram, FloatFormat, FrozenScan),
    *(HyperparameterAudit, HyperparametersResult, Inspection, LossScalePlan, LossScalingResult, MemoryLedger),
    *(MemoryResult, PreflightReport, ScaleTrace, ScanResult, Stagnation, StorageConfig, StorageResult, SumsResult),
    *(SwampingResult, SwampingThresholds, TensorPlans, TrainingComparison, TrainingResult, UnderflowResult),
    *(UpdateReport, UpdateScan),
)
"""The classes whose objects show themselves."""

_BITS = ("#D55E00", "#009E73", "#0072B2")  # sign, exponent, fraction
_SEVERITIES = {"note": "#0072B2", "warning": "#E69F00", "fatal": "#D55E00"}
_BAR, _GREY = "#7f93a3", "#888888"  # readable on white and on black


def attach() -> None:
    """Give every class of `SHOWN` the method that notebooks look for."""
    for shown in SHOWN:
        shown._repr_html_ = to_html  # type: ignore[attr-defined]


def to_html(result: object) -> str:
    """Return an object of one of the classes `SHOWN` as HTML: its pictures and its tables."""
    pictures: list[str] = []
    if isinstance(result, FloatFormat):
        pictures.append(layout_picture(result))
    elif isinstance(result, ExponentHistogram):
        pictures.append(histogram_picture(result))
    return "\n".join([*pictures, *map(table_html, tables_of(result))])


def tables_of(result: Any) -> Sequence[Table]:
    """Return the tables of an object of one of the classes `SHOWN`.

    Raises
    ------
    TypeError
        It is of none of them.

    """
    from precision_lab.presentation import tables as t  # loaded when something is shown, not with the package

    match result:
        case FloatFormat():
            return (replace(t.formats_table([result]), title=f"{result.name}: {result.source}"),)
        case Inspection():
            return (t.inspection_table(f"As {result.format} stores it", [result]),)
        case ExponentHistogram():
            return (t.histogram_table(result),)
        case Conversion():
            return (t.conversions_table(f"{result.count:,} elements in {result.format}", [result]),)
        case ScanResult():
            return (t.scan_table(result),)
        case SumsResult():
            return (t.sums_table(result),)
        case FrozenScan():
            return (t.frozen_table(result),)
        case UpdateScan():
            return (t.updates_table(result),)
        case UpdateReport():
            return (t.update_report_table(result),)
        case SwampingThresholds():
            return (t.thresholds_table(result),)
        case Stagnation():
            return (t.stagnation_table(result),)
        case AccumulationTrace():
            return (t.trace_table(result),)
        case TensorPlans():
            return t.loss_scale_tables(result)
        case LossScalePlan():
            chosen = (result.recommended or result.best).loss_scale
            return t.loss_scale_tables(TensorPlans(result, chosen, ()))[1:]
        case ScaleTrace():
            return t.scale_trace_tables([result])
        case HyperparameterAudit():
            return (t.hyperparameters_table(result),)
        case StorageConfig():
            return (t.storage_config_table(result),)
        case MemoryLedger():
            return t.memory_tables({t.storage_text(result.storage): result}, 1)
        case TrainingResult():
            return (t.training_table(result),)
        case UnderflowResult():
            return t.underflow_tables(result)
        case SwampingResult():
            return t.swamping_tables(result)
        case AccumulationResult():
            return t.accumulation_tables(result)
        case LossScalingResult():
            return t.loss_scaling_tables(result)
        case StorageResult():
            return t.storage_tables(result)
        case HyperparametersResult():
            return t.usual_settings_tables(result)
        case MemoryResult():
            return t.ledgers_tables(result)
        case ClaimsResult():
            return t.claims_tables(result)
        case PreflightReport():
            return t.preflight_tables(result)
        case TrainingComparison():
            return t.comparison_tables({"this training": result})
    raise TypeError(f"there is no table of a {type(result).__name__}; there are those of the classes SHOWN")


def table_html(table: Table) -> str:
    """Return a table as HTML, all its text escaped."""
    headings = "".join(_cell("th", heading, i, table) for i, heading in enumerate(table.columns))
    rows = "\n".join(f"<tr>{''.join(_cell('td', cell, i, table) for i, cell in enumerate(r))}</tr>" for r in table.rows)
    caption = f'<caption style="text-align:left">{escape(table.title)}</caption>'
    parts = [f"<table>\n{caption}\n<thead><tr>{headings}</tr></thead>"]
    parts.append(f"<tbody>\n{rows}\n</tbody>")
    if table.totals:
        totals = "".join(_cell("th", cell, i, table) for i, cell in enumerate(table.totals))
        parts.append(f"<tfoot><tr>{totals}</tr></tfoot>")
    parts.append("</table>")
    if table.note:
        parts.append(f"<p><small>{escape(table.note).replace(chr(10), '<br>')}</small></p>")
    return "\n".join(parts)


def _cell(tag: str, text: str, column: int, table: Table) -> str:
    """Write a cell; the fields of a code and severities have colours, as on a terminal."""
    heading, inner = table.columns[column], escape(text)
    if tag == "td" and heading == "bits":
        fields = zip(text.split(" "), _BITS, strict=False)
        inner = " ".join(f'<code style="color:{color}">{escape(field)}</code>' for field, color in fields)
    elif tag == "td" and heading == "severity" and text in _SEVERITIES:
        inner = f'<b style="color:{_SEVERITIES[text]}">{inner}</b>'
    style = "text-align:right;white-space:nowrap" if column in table.numeric else "text-align:left"
    style += ";min-width:16em" * (column in table.prose)
    return f'<{tag} style="{style}">{inner}</{tag}>'


def layout_picture(fmt: FloatFormat) -> str:
    """Return the fields of a format's code as an image: a box for each bit."""
    size = 18
    fields = (("sign", 1), ("exponent", fmt.exponent_bits), ("fraction", fmt.mantissa_bits))
    boxes, x = [], 0
    for (name, bits), color in zip(fields, _BITS, strict=True):
        boxes += [
            f'<rect x="{x + size * i}" y="1" width="{size - 2}" height="{size - 2}" rx="2" fill="{color}"/>'
            for i in range(bits)
        ]
        label = f"{bits} {name}" if size * bits >= 60 else f"{bits}"
        boxes.append(_text(x + size * bits / 2 - 1, size + 14, label) if bits else "")
        x += size * bits + 6
    words = ", ".join(f"{bits} {name}" for name, bits in fields)
    return _image(x, size + 20, boxes, f"The {fmt.bits} bits of {fmt.name}: {words}")


def histogram_picture(histogram: ExponentHistogram, fmt: object = "fp16") -> str:
    """Return a histogram as an image: a bar for each binade, zeros apart on the left, the limits of a format marked."""
    fmt = get_format(fmt)
    binades = histogram.binades
    if not binades:
        return ""
    marks = ("flushes below", "normal from", "overflows")
    edges = zip((fmt.flush_threshold, fmt.smallest_normal, 2.0 ** (fmt.emax + 1)), marks, strict=True)
    first = min(*binades, fmt.emin - fmt.mantissa_bits - 2)
    last = max(*binades, fmt.emax + 1)
    bar = max(3.0, min(9.0, 560 / (last - first + 1)))
    top, bottom, left = 26, 116, 44
    scale = (bottom - top) / max(*binades.values(), histogram.zero)

    def place(exponent: float) -> float:
        return left + bar * (exponent - first)

    parts = [_rect(10, bar, histogram.zero * scale, bottom, _GREY), _text(14, bottom + 13, "zero")]
    parts += [_rect(place(e), bar - 1, n * scale, bottom, _BAR) for e, n in binades.items() if n]
    right = place(last + 1)
    parts.append(f'<path d="M0 {bottom}.5H{left - 12}M{left - 4} {bottom}.5H{right:g}" stroke="{_GREY}"/>')
    step = 8 if last - first < 80 else 32
    for e in range(-(-first // step) * step, last + 1, step):
        parts.append(_text(place(e), bottom + 13, f"2^{e}"))
    for i, (edge, name) in enumerate(edges):
        x = place(math.frexp(edge)[1] - 1)
        parts.append(f'<path d="M{x:g} {top - 2}V{bottom}" stroke="{_BITS[0]}" stroke-dasharray="3 2"/>')
        parts.append(_text(x, 9 if i % 2 else 20, f"{fmt.name} {name}", _BITS[0]))
    words = f"Histogram of the magnitudes of {histogram.count:,} elements by powers of two"
    return _image(right + 40, bottom + 18, parts, words)


def _rect(x: float, width: float, height: float, bottom: float, color: str) -> str:
    """Draw a bar; one that is there at all can be seen."""
    tall = max(height, 1.0) if height else 0.0
    return f'<rect x="{x:g}" y="{bottom - tall:.1f}" width="{width:g}" height="{tall:.1f}" fill="{color}"/>'


def _text(x: float, y: float, text: str, color: str = _GREY) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" fill="{color}">{escape(text)}</text>'


def _image(width: float, height: float, parts: Sequence[str], words: str) -> str:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="sans-serif" font-size="10">{"".join(parts)}</svg>'
    )
    return f'<img alt="{escape(words)}" src="data:image/svg+xml,{quote(svg, safe=" =:/,;.-")}">'
