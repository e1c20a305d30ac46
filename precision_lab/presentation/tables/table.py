"""What all tables share: `Table`, and how numbers are written."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from html import escape
from typing import Any, TypeVar, get_type_hints

from precision_lab.presentation.topics import load_topics
from precision_lab.support.text import printable

T = TypeVar("T")
R = TypeVar("R")

BIT_COLORS = ("#D55E00", "#009E73", "#0072B2")
"""Of sign, exponent and fraction."""

_SEVERITIES = {"note": "#0072B2", "warning": "#E69F00", "fatal": "#D55E00"}


@dataclass(frozen=True)
class Table:
    """A table of text; what is not printable in it, such as a name in somebody's file, is written as an escape.

    Attributes
    ----------
    title : str
        What it shows.
    columns : tuple of str
        Headings.
    rows : tuple of tuple of str
        Cells.
    numeric : frozenset of int
        Columns that are aligned to the right.
    totals : tuple of str or None
        A last row, set apart.
    other_totals : tuple of tuple of str
        More of them below, of what is not part of the first.
    note : str
        What the figures mean.
    prose : frozenset of int
        Columns of whole sentences, which may be broken into lines.

    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    totals: tuple[str, ...] | None = None
    note: str = ""
    prose: frozenset[int] = frozenset()
    other_totals: tuple[tuple[str, ...], ...] = ()

    @property
    def last_rows(self) -> tuple[tuple[str, ...], ...]:
        """All rows that are set apart."""
        return (() if self.totals is None else (self.totals,)) + self.other_totals

    def __post_init__(self) -> None:
        def line(cells: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(map(printable, cells))

        for name, text in (
            *(("title", printable(self.title)), ("note", printable(self.note)), ("columns", line(self.columns))),
            *(("rows", tuple(map(line, self.rows))), ("totals", self.totals and line(self.totals))),
            ("other_totals", tuple(map(line, self.other_totals))),
        ):
            object.__setattr__(self, name, text)  # it is frozen for everybody else

    def _repr_html_(self) -> str:
        """Return itself as HTML for a notebook, all its text escaped."""
        headings = "".join(self._cell("th", heading, i) for i, heading in enumerate(self.columns))
        rows = "\n".join(
            f"<tr>{''.join(self._cell('td', cell, i) for i, cell in enumerate(r))}</tr>" for r in self.rows
        )
        caption = f'<caption style="text-align:left">{escape(self.title)}</caption>'
        parts = [f"<table>\n{caption}\n<thead><tr>{headings}</tr></thead>"]
        parts.append(f"<tbody>\n{rows}\n</tbody>")
        if self.last_rows:
            cells = ("".join(self._cell("th", cell, i) for i, cell in enumerate(row)) for row in self.last_rows)
            parts.append(f"<tfoot>{''.join(f'<tr>{row}</tr>' for row in cells)}</tfoot>")
        parts.append("</table>")
        if self.note:
            parts.append(f"<p><small>{escape(self.note).replace(chr(10), '<br>')}</small></p>")
        return "\n".join(parts)

    def _cell(self, tag: str, text: str, column: int) -> str:
        """Write a cell; the fields of a code and severities have colours, as on a terminal."""
        heading, inner = self.columns[column], escape(text).replace("\n", "<br>")
        if tag == "td" and heading == "bits":
            fields = zip(text.split(" "), BIT_COLORS, strict=False)
            inner = " ".join(f'<code style="color:{color}">{escape(field)}</code>' for field, color in fields)
        elif tag == "td" and heading == "severity" and text in _SEVERITIES:
            inner = f'<b style="color:{_SEVERITIES[text]}">{inner}</b>'
        style = "text-align:right;white-space:nowrap" if column in self.numeric else "text-align:left"
        style += ";min-width:16em" * (column in self.prose)
        return f'<{tag} style="{style}">{inner}</{tag}>'


@singledispatch
def tables_of(result: object) -> tuple[Table, ...]:
    """Return the tables of a result: a function beside the others of its topic makes them, registered for its type.

    Raises
    ------
    TypeError
        There is no table of it.

    """
    load_topics("precision_lab.presentation.tables")  # nobody had asked for one of these yet
    make = tables_of.dispatch(type(result))
    if make is tables_of.dispatch(object):
        raise TypeError(f"there is no table of a {type(result).__name__}")
    return make(result)


def only_table(make: Callable[[R], Table]) -> Callable[[R], Table]:
    """Register a function that makes the only table of a type, which is that of its argument."""
    kind, *_ = get_type_hints(make).values()
    tables_of.register(kind, lambda result: (make(result),))
    return make


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Return a table of two columns: what is said of one object."""
    return Table(title, ("", "value"), tuple(facts.items()), frozenset({1}))


MOST_ROWS = 100
"""Rows of a table of tensors: what a person reads, and a terminal still prints at once."""


def worst(items: Sequence[T], badness: Callable[[T], Any] | None = None) -> Sequence[T]:
    """Return the items themselves, or where there are more than `MOST_ROWS` the worst of them, worst first.

    Those that are listed worst first already need no `badness`.
    """
    if len(items) <= MOST_ROWS:
        return items
    return items[:MOST_ROWS] if badness is None else heapq.nlargest(MOST_ROWS, items, badness)


def and_more(count: int, meaning: str = "") -> str:
    """Return the sentence of a note that says how many of so many items are not shown; nothing if all are."""
    if count <= MOST_ROWS:
        return ""
    sentence = f"Shown are the worst {MOST_ROWS}, {count - MOST_ROWS:,} more are not"
    return f" {sentence}{f' (worst: {meaning})' if meaning else ''}; totals are of all, and so is --json."


def percent(share: float) -> str:
    """Write a share as a percentage of two decimals; only nothing looks like 0, only all of it like 100.

    Examples
    --------
    >>> percent(0.0), percent(1e-7), percent(0.12345), percent(0.99999999), percent(1.0)
    ('0', '<0.01', '12.35', '>99.99', '100')

    """
    if share in (0, 1):
        return "100" if share else "0"
    if share < 0.0001:
        return "<0.01"
    if share > 0.9999:
        return ">99.99"
    return f"{100 * share:.2f}"


def percent_or_more(share: float) -> str:
    """Write a share that may exceed 100 % with three significant digits.

    Examples
    --------
    >>> percent_or_more(0.00164), percent_or_more(40.96), percent_or_more(float("inf"))
    ('0.164', '4.1e+03', 'inf')

    """
    return f"{100 * share:.3g}"


def number(value: float | None) -> str:
    """Write a magnitude with three significant digits, a value that is not there as a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def steps_text(weights: int, weight_steps: int) -> str:
    """Write how many elements were counted in several steps: those of one step times the steps, where that is so.

    Examples
    --------
    >>> steps_text(5824, 34944), steps_text(5824, 5824), steps_text(5824, 35000)
    ('5,824 x 6', '5,824', '35,000 in all steps')

    """
    if weights == weight_steps:
        return f"{weights:,}"
    steps, rest = divmod(weight_steps, weights or 1)
    return f"{weight_steps:,} in all steps" if rest or not weights else f"{weights:,} x {steps:,}"


def listed(values: Mapping[str, float]) -> str:
    """Write numbers after their names: ``lr 0.001, eps 1e-08``."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def power_of_two(value: float) -> str:
    """Write a power of two as such, anything else as it is.

    Examples
    --------
    >>> power_of_two(65536), power_of_two(2.0**-24), power_of_two(448)
    ('2^16', '2^-24', '448')

    """
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 else f"{value:.6g}"


def bytes_text(size: float) -> str:
    """Write a number of bytes in the largest binary unit that it fills.

    Examples
    --------
    >>> bytes_text(16), bytes_text(2048), bytes_text(7e9 * 16)
    ('16 B', '2 KiB', '104 GiB')

    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError
