"""From results to a file of HTML: templates filled, data embedded, everything else forbidden.

What comes from a user's file, above all the names of tensors, is text: jinja2 escapes it in HTML, `embed` in JSON, and
the scripts write it as text. Should all of that fail, the policy of the page runs only the scripts whose hashes it has.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from precision_lab.analysis.histogram import log2_of_power_of_two
from precision_lab.analysis.scan import ScannedTensor, ScanResult, ScanTotal
from precision_lab.experiments.kept import Finished
from precision_lab.experiments.storage import StorageResult
from precision_lab.experiments.underflow import UnderflowResult
from precision_lab.numerics.formats import get_format
from precision_lab.presentation.report.data import cuts_of, format_data, histogram_data, menu, precision_data
from precision_lab.presentation.report.sections import hero, sections
from precision_lab.support.files import replacing
from precision_lab.support.text import shown
from precision_lab.support.version import version

_FIRST_SCRIPT = "theme.js"  # before anything is drawn
_SCRIPTS = ("fates.js", "chart.js", "explorer.js", "numbers.js", "tensors.js", "start.js")

_SCAN_COLUMNS = (
    ("label", "tensor", "Name of the tensor"),
    ("", "histogram", ""),
    ("count", "elements", "Number of elements"),
    ("lost", "lost %", "Flushed or overflowed, of the nonzero finite elements"),
    ("flushed", "flushed %", "Flushed to zero, of the nonzero finite elements"),
    ("subnormal", "subnormal %", "Subnormal in the format, of the nonzero finite elements"),
    ("overflowed", "overflowed %", "Overflowed, of the nonzero finite elements"),
    ("sqnr", "SQNR dB", "Signal-to-quantization-noise ratio of what stays finite; known of the formats of the scan"),
    ("changed", "changed %", "Changed by rounding, of what stays finite; known of the formats of the scan"),
    ("zero", "zero %", "Zero already, of all elements"),
    ("nonfinite", "inf, NaN", "Infinite or NaN already"),
    ("min", "min nonzero", "Smallest magnitude that is not zero"),
    ("max", "max", "Largest finite magnitude"),
    ("dtype", "stored as", "dtype and shape in the file"),
)


def write_report(
    finished: Sequence[Finished],
    path: str | os.PathLike[str],
    *,
    figures: Mapping[str, str],
    quick: bool = False,
    made_with: Mapping[str, object] | None = None,
) -> None:
    """Write experiments as one page that needs nothing else.

    Parameters
    ----------
    finished : sequence of Finished
        What there is; other experiments are left out.
    path : path-like
        Where to; written whole or not at all.
    figures : mapping of str to str
        Text of SVG files by the names that `figures_of` gives them; those that are missing are left out.
    quick : bool
        Whether these are the quick configurations.
    made_with : mapping of str to object, optional
        Versions and the machine, for the foot of the page.

    Raises
    ------
    OutputError
        Nothing can be written there.

    """
    results = {one.name: one.result for one in finished}
    gradients: UnderflowResult | None = results.get("underflow")
    stored: StorageResult | None = results.get("storage")
    formats = menu(map(get_format, gradients.config.formats if gradients else ["fp16"]))
    cuts = cuts_of(formats)
    groups: list[dict[str, Any]] = []
    headings: list[tuple[str, list[dict[str, Any]]]] = []
    for stage in gradients.stages if gradients else ():
        for group, tensors in stage.tensors.items():
            options = []
            for name, histogram in [("all together", stage.histogram(group)), *tensors.items()]:
                label = f"{stage.name}, {group}: {name}"
                options.append({"index": len(groups), "text": label, "chosen": False})
                groups.append({"label": label, "histogram": histogram_data(histogram, cuts)})
            headings.append((f"{stage.name}, {group}", options))
    chosen = headings[-1][1][0] if headings else None  # the gradients near the end, where most is lost
    if chosen is not None:
        chosen["chosen"] = True
    data = {
        "formats": [format_data(fmt, cuts) for fmt in formats],
        "groups": groups,
        "chosen": chosen["index"] if chosen else 0,
        "k": 0,
    }
    _write(
        "report.html.j2",
        path,
        data,
        title="precision_lab: what happens to numbers in 16 bits or fewer",
        hero=hero(stored) if stored else None,
        sections=sections(finished, {name: svg_source(text) for name, text in figures.items()}),
        groups=headings,
        quick=quick,
        colophon=list((made_with or {}).items()),
    )


def write_scan_page(result: ScanResult, path: str | os.PathLike[str]) -> None:
    """Write the tensors of some files as one page: a table to search and sort, and a histogram to ask.

    Parameters
    ----------
    result : ScanResult
        What `scan` found. Its formats come first in the menu, its loss scale is where the slider starts.
    path : path-like
        Where to; written whole or not at all.

    Raises
    ------
    OutputError
        Nothing can be written there.

    """
    formats = menu(result.formats)
    cuts = cuts_of(formats)
    labels = [shown(label) for label in result.labels]
    alone = len(result.totals) == 1
    totals = ["All tensors together" if alone else f"{shown(total.name)}, together" for total in result.totals]
    counted: Iterator[ScannedTensor | ScanTotal] = chain(result.tensors, result.totals)
    data = {
        "formats": [format_data(fmt, cuts) for fmt in formats],
        "groups": (
            {
                "label": label,
                "histogram": histogram_data(one.histogram, cuts),
                "precision": one.precision and [precision_data(report) for report in one.precision],
            }
            for label, one in zip([*labels, *totals], counted, strict=True)
        ),
        "chosen": len(labels),
        "k": log2_of_power_of_two(result.loss_scale),
        "tensors": (
            {"label": label, "dtype": tensor.info.dtype, "shape": "×".join(map(str, tensor.info.shape)) or "scalar"}
            for label, tensor in zip(labels, result.tensors, strict=True)
        ),
    }
    files = list(dict.fromkeys(tensor.info.file.name for tensor in result.tensors))
    heading = shown(files[0]) if len(files) == 1 else f"the tensors of {len(files)} files"
    count, elements = len(result.tensors), sum(tensor.histogram.count for tensor in result.tensors)
    _write(
        "scan.html.j2",
        path,
        data,
        title=f"precision_lab scan: {heading}",
        heading=heading,
        size=f"{count:,} tensor{'s' if count != 1 else ''}, {elements:,} elements",
        totals=["all together"] if alone else [shown(total.name) for total in result.totals],
        columns=_SCAN_COLUMNS,
        skipped=[": ".join(map(shown, (info.file.name, info.name, info.skipped))) for info in result.skipped],
    )


def svg_source(svg: str) -> str:
    """Return an SVG as the address of an image: apart from the page, its names meet with no others."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def embed(data: dict[str, Any]) -> Iterator[Markup]:
    """Yield JSON that can stand in a script element: nothing in it ends the element, or starts another.

    Iterators may be values: their entries are written one by one.
    """
    between = "{"
    for key, value in data.items():
        yield _embedded(between, key, ":")
        yield from _entries(value) if isinstance(value, Iterator) else [_embedded("", value)]
        between = ","
    yield Markup("}")


def _entries(values: Iterator[Any]) -> Iterator[Markup]:
    between = "["
    for value in values:
        yield _embedded(between, value)
        between = ","
    yield Markup("]" if between == "," else "[]")


def _embedded(before: str, value: Any, after: str = "") -> Markup:
    text = _encode(value).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(f"{before}{text}{after}")


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # ASCII: U+2028 and the like are escaped


@cache
def _environment() -> Environment:
    loader = PackageLoader("precision_lab.presentation.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _write(template: str, path: str | os.PathLike[str], data: Any, **shown: Any) -> None:
    style, first = _source("page.css"), _source(_FIRST_SCRIPT)
    script = "\n".join(map(_source, _SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_hash(first)} {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = (
        _environment()
        .get_template(template)
        .generate(
            policy=policy,
            style=Markup(style),
            first_script=Markup(first),
            script=Markup(script),
            data=embed(data),
            version=version(),
            **shown,
        )
    )
    # names of files may hold what no encoding can write
    with replacing(path) as new, new.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(page)
