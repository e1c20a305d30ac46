"""How objects show themselves in a notebook: every result as its table, a histogram and a format with a small picture.

`Shown` sends here what a notebook asks. Pictures are images in the page itself, of SVG: an ``<img>`` survives where
notebooks that are not trusted lose inline SVG and styles. All text is escaped: the names in tensor files are other
people's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.presentation.tables.table import BIT_COLORS, tables_of

_BAR, _GREY = "#7f93a3", "#888888"  # readable on white and on black


def to_html(result: object) -> str:
    """Return an object that is `Shown` as HTML: its pictures and its tables."""
    pictures: list[str] = []
    if isinstance(result, FloatFormat):
        pictures.append(layout_picture(result))
    elif isinstance(result, ExponentHistogram):
        pictures.append(histogram_picture(result))
    return "\n".join([*pictures, *(table._repr_html_() for table in tables_of(result))])


def layout_picture(fmt: FloatFormat) -> str:
    """Return the fields of a format's code as an image: a box for each bit."""
    size = 18
    fields = (("sign", 1), ("exponent", fmt.exponent_bits), ("fraction", fmt.mantissa_bits))
    boxes, x = [], 0
    for (name, bits), color in zip(fields, BIT_COLORS, strict=True):
        boxes += [
            f'<rect x="{x + size * i}" y="1" width="{size - 2}" height="{size - 2}" rx="2" fill="{color}"/>'
            for i in range(bits)
        ]
        label = f"{bits} {name}" if size * bits >= 60 else f"{bits}"
        boxes.append(_text(x + size * bits / 2 - 1, size + 14, label) if bits else "")
        x += size * bits + 6
    words = ", ".join(f"{bits} {name}" for name, bits in fields)
    return _image(x, size + 20, boxes, f"The {fmt.bits} bits of {fmt.name}: {words}")


def histogram_picture(histogram: ExponentHistogram, fmt: FormatLike = "fp16") -> str:
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
        parts.append(f'<path d="M{x:g} {top - 2}V{bottom}" stroke="{BIT_COLORS[0]}" stroke-dasharray="3 2"/>')
        parts.append(_text(x, 9 if i % 2 else 20, f"{fmt.name} {name}", BIT_COLORS[0]))
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
