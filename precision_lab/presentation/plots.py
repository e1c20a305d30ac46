"""Drawings of results: histograms with format rulers, loss-scale curves, and the figure of the underflow experiment.

Every ``plot_*`` function takes a result and draws it on the axes it is given, or on those of a new pyplot figure, and
returns the axes. Nothing is computed here but percentages and positions; a colour means the same everywhere: what
becomes of an element, kept, subnormal, flushed or overflowed, in the palette of Okabe and Ito.

Importing this module loads matplotlib, and nothing else of the package does; pyplot is loaded when a figure is asked
for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from precision_lab.analysis.histogram import Conversion, ExponentHistogram, log2_of_power_of_two
from precision_lab.analysis.scan import ScanResult
from precision_lab.experiments.underflow import GROUPS, UnderflowResult
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.presentation.files import replacing

ShareOf: TypeAlias = Literal["all", "nonzero"]
Fate: TypeAlias = Literal["kept", "subnormal", "flushed", "overflowed"]

FATE_COLORS: dict[Fate, str] = {
    "kept": "#0072B2",
    "subnormal": "#56B4E9",
    "flushed": "#D55E00",
    "overflowed": "#CC79A7",
}
"""What becomes of an element, and its colour in every figure."""

SUFFIXES = (".png", ".svg", ".pdf")
"""What `save_figure` can write."""

_INK = "#222222"
_PALE = "#8a8a8a"
_OWN = "#5a5a5a"  # zeros, infinities and NaN
_PLAIN = "#7f93a3"  # bars whose fate depends on the format
_SMALL = 7.5  # points; the numbers in the format ruler
_ROW = 0.19  # inches; a row of the format ruler
_MARKERS = "os^Dv"


# --- style, axes, files -----------------------------------------------------------------------------------------------


@contextmanager
def _style() -> Iterator[None]:
    """Put the style of the lab in force, and matplotlib's defaults for the rest, whatever the user's own are."""
    with as_file(files("precision_lab.presentation") / "lab.mplstyle") as path, matplotlib.rc_context(fname=path):
        yield


@contextmanager
def _styled(ax: Axes | None) -> Iterator[Axes]:
    """Give the axes to draw on, new ones of a pyplot figure if there are none, with the style of the lab in force."""
    if ax is not None:
        with _style():
            yield ax
        return
    from matplotlib import pyplot  # heavy, and only for figures that are shown

    with _style():
        yield pyplot.figure(layout="constrained").add_subplot()


def _dress(ax: Axes, *, title: str | None, grid: Literal["x", "y", "both"] = "y") -> None:
    """Bring axes that were made elsewhere into the style."""
    rc = matplotlib.rcParams
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["bottom", "left"]].set(color=rc["axes.edgecolor"], linewidth=rc["axes.linewidth"])
    ax.tick_params(
        labelsize=rc["xtick.labelsize"], color=rc["xtick.color"], labelcolor=rc["xtick.labelcolor"], width=0.8
    )
    ax.grid(visible=True, axis=grid, color=rc["grid.color"], linewidth=rc["grid.linewidth"])
    ax.set_axisbelow(True)
    if title is not None:
        ax.set_title(title)


def check_figure_path(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if `save_figure` cannot write this kind of file."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a figure is saved as {', '.join(SUFFIXES)}; choose one of these endings")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a PNG, SVG or PDF file, whole or not at all, and the same bytes every time.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure; it stays open.
    path : path-like
        Where to; the suffix chooses the kind. The folder must exist.

    Raises
    ------
    ValueError
        The suffix is none of `SUFFIXES`.
    OutputError
        Nothing can be written there.

    """
    check_figure_path(path)
    suffix = Path(path).suffix.lower()
    undated = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    with replacing(Path(path)) as new, _style(), _layout_restored(figure):
        figure.savefig(new, format=suffix[1:], metadata=undated)


@contextmanager
def _layout_restored(figure: Figure) -> Iterator[None]:
    """Put the axes back where they were: a layout that starts from its own last outcome ends a trifle elsewhere."""
    places = [(ax, ax.get_position(original=True).frozen(), ax.get_in_layout()) for ax in figure.axes]
    try:
        yield
    finally:
        for ax, place, in_layout in places:
            ax.set_position(place)
            ax.set_in_layout(in_layout)


# --- powers of two ----------------------------------------------------------------------------------------------------


def _power(exponent: float) -> str:
    """Return 2^exponent for a label."""
    return f"$2^{{{exponent:.0f}}}$"


def _powers_between(low: float, high: float, room: float) -> list[int]:
    """Return exponents for ticks: multiples of a power of two, no more of them than fit."""
    step = 1
    while (high - low) / step > max(room, 1):
        step *= 2
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))


def _size(ax: Axes) -> tuple[float, float]:
    """Return width and height of the axes in inches (before a layout engine has had its say)."""
    box, figure = ax.get_position(), ax.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    return max(box.width * width, 0.1), max(box.height * height, 0.1)


def _inches(text: str) -> float:
    """Return about how wide a small text is."""
    return (len(text.translate(str.maketrans("", "", "${}^"))) + 0.5) * 0.62 * _SMALL / 72


# --- format ruler -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Limits:
    """Where a format begins, becomes normal and ends, as log2 of magnitudes before a loss scale is applied."""

    format: FloatFormat
    flush: float
    normal: float
    overflow: float
    end: str

    @classmethod
    def of(cls, fmt: FloatFormat, loss_scale: float) -> _Limits:
        k = log2_of_power_of_two(loss_scale)
        top = math.log2(fmt.overflow_threshold) - k
        threshold = fmt.overflow_threshold / loss_scale
        if 1 <= threshold < 10**6:
            end = f"{threshold:,.6g}"
        else:
            end = _power(round(top)) if abs(top - round(top)) < 0.01 else f"$2^{{{top:.2f}}}$"
        return cls(fmt, math.log2(fmt.flush_threshold) - k, fmt.emin - k, top, end)

    def fate(self, exponent: int) -> Fate:
        """Return what becomes of the binade [2^exponent, 2^(exponent+1)), at its low end if it is divided."""
        if exponent + 1 <= self.flush:
            return "flushed"
        if exponent + 1 <= self.normal and self.format.mantissa_bits:
            return "subnormal"
        return "overflowed" if exponent >= self.overflow else "kept"


@dataclass(frozen=True)
class _Ruler:
    """A row for each format: light where it is subnormal, solid where it is normal, empty where nothing survives.

    Attributes
    ----------
    ax : Axes
        x is log2 of the magnitude; y is taken in fractions of the axes.
    low, high : float
        What of the x axis the rows may cover; a format that goes on has an arrow there.
    left, right : float
        The ends of the x axis, for text.

    """

    ax: Axes
    low: float
    high: float
    left: float
    right: float

    def width(self, text: str) -> float:
        """Return about how wide a text is on the x axis."""
        return _inches(text) / _size(self.ax)[0] * (self.right - self.left)

    def text(
        self, x: float, y: float, text: str, side: Literal["left", "right"], color: str = _INK, *, backed: bool = False
    ) -> None:
        gap = self.width(".") / 3
        self.ax.text(
            x + gap if side == "left" else x - gap,
            y,
            text,
            transform=self.ax.get_xaxis_transform(),
            ha=side,
            va="center_baseline",
            fontsize=_SMALL,
            color=color,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4} if backed else None,
        )

    def bar(self, low: float, high: float, y: float, height: float, fate: Fate) -> None:
        low, high = max(low, self.low), min(high, self.high)
        if low < high:
            box = Rectangle(
                (low, y - height / 2),
                high - low,
                height,
                transform=self.ax.get_xaxis_transform(),
                facecolor=FATE_COLORS[fate],
                edgecolor="none",
                zorder=2,
            )
            self.ax.add_artist(box)  # an artist, not a patch of the axes: it does not count as data

    def row(self, limits: _Limits, y: float, height: float) -> None:
        self.ax.text(
            -0.008, y, limits.format.name, transform=self.ax.transAxes, ha="right", va="center_baseline", fontsize=8.5
        )
        if limits.overflow <= self.low:
            self.text(self.low, y, f"◂ ends at {limits.end}", "left")
            return
        if limits.flush >= self.high:
            self.text(self.high, y, f"begins above {_power(limits.flush)} ▸", "right")
            return
        self.bar(limits.flush, limits.normal, y, height, "subnormal")
        self.bar(limits.normal, limits.overflow, y, height, "kept")
        self.low_end(limits, y)
        self.high_end(limits, y)
        self.middle(limits, y)

    def low_end(self, limits: _Limits, y: float) -> None:
        label = _power(limits.flush)
        if limits.flush >= self.low:
            if limits.flush - self.width(label) >= self.left:
                self.text(limits.flush, y, label, "right", backed=True)
            return
        arrow = f"◂ {label}"
        dark = limits.normal > self.low
        fits = self.width(arrow) <= min(limits.normal if dark else limits.overflow, self.high) - self.low
        self.text(self.low, y, arrow if fits else "◂", "left", _INK if dark else "white")

    def high_end(self, limits: _Limits, y: float) -> None:
        if limits.overflow <= self.high:
            if limits.overflow + self.width(limits.end) <= self.right:
                self.text(limits.overflow, y, limits.end, "left", backed=True)
            return
        arrow = f"{limits.end} ▸"
        light = limits.normal < self.high
        fits = self.width(arrow) <= self.high - max(limits.normal if light else limits.flush, self.low)
        self.text(self.high, y, arrow if fits else "▸", "right", "white" if light else _INK)

    def middle(self, limits: _Limits, y: float) -> None:
        label = _power(limits.normal)
        room = min(limits.overflow, self.high) - limits.normal
        if limits.overflow > self.high:
            room -= self.width(f"{limits.end} ▸")
        if limits.normal >= self.low and self.width(label) <= room:
            self.text(limits.normal, y, label, "left", "white")

    def draw(self, formats: Sequence[_Limits], bottom: float, top: float) -> list[float]:
        """Draw the rows between two heights, the first on top, and return the height of each."""
        pitch = (top - bottom) / max(len(formats), 1)
        heights = [top - (row + 0.5) * pitch for row in range(len(formats))]
        for limits, y in zip(formats, heights, strict=True):
            self.row(limits, y, 0.74 * pitch)
        return heights


# --- histogram --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Span:
    """The parts of the x axis of a histogram, from left to right: zero, a gap, the binades, a gap, inf and NaN.

    Attributes
    ----------
    low, high : int
        The binades shown are those of [2^low, 2^high).
    bin : float
        Width of the bins of zero and of inf and NaN, in binades.
    zero, nonfinite : bool
        Whether they are shown.

    """

    low: int
    high: int
    bin: float
    zero: bool
    nonfinite: bool

    @classmethod
    def of(cls, ax: Axes, low: int, high: int, *, zero: bool, nonfinite: bool) -> _Span:
        return cls(low, high, max(1.0, 0.23 / _size(ax)[0] * (high - low)), zero, nonfinite)

    @classmethod
    def around(
        cls, ax: Axes, histogram: ExponentHistogram, formats: Sequence[_Limits], *, zero: bool, nonfinite: bool
    ) -> _Span:
        """Show all binades that occur, and those limits of formats that are not too far away."""
        binades = histogram.exponents if len(histogram.exponents) else range(0, 1)
        low, high = float(binades.start), float(binades.stop)
        widest = max(44.0, 1.5 * (high - low))
        for limit in sorted(
            (x for f in formats for x in (f.flush, f.normal, f.overflow)),
            key=lambda x: max(binades.start - x, x - binades.stop),
        ):
            if max(high, limit) - min(low, limit) <= widest:
                low, high = min(low, limit), max(high, limit)
        label = max(1.0, _inches("65,520 ") / _size(ax)[0] * (high - low) * 1.2)  # of a limit beyond the bars
        low -= label if low < binades.start else 1
        high += label if high > binades.stop else 1
        return cls.of(ax, math.floor(low), math.ceil(high), zero=zero, nonfinite=nonfinite)

    @property
    def zero_at(self) -> float:
        return self.low - 2.1 * self.bin

    @property
    def nonfinite_at(self) -> float:
        return self.high + 1.1 * self.bin

    @property
    def left(self) -> float:
        return self.zero_at - 0.3 * self.bin if self.zero else self.low

    @property
    def right(self) -> float:
        return self.nonfinite_at + 1.3 * self.bin if self.nonfinite else self.high


def plot_exponent_histogram(
    histogram: ExponentHistogram,
    *,
    formats: Sequence[object] = ("fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2"),
    loss_scale: float = 1,
    ax: Axes | None = None,
    title: str | None = None,
    share_of: ShareOf = "all",
    fate_in: object = None,
    exponents: tuple[int, int] | None = None,
    ruler: bool = True,
) -> Axes:
    """Draw what share of the elements lies in each binade, and below or above which of them a format loses them.

    A bar stands for the magnitudes of [2^e, 2^(e+1)); zeros have a bin of their own on the left, infinities and NaN one
    on the right where there are any. The ruler above has a row for each format: empty where it flushes, light where it
    is subnormal, solid where it is normal, ending where it overflows; dotted lines carry its ends down to the bars.

    Parameters
    ----------
    histogram : ExponentHistogram
        What to draw.
    formats : sequence of str, dtype or FloatFormat
        The rows of the ruler. A single format also colours the bars, see `fate_in`.
    loss_scale : float
        The power of two S by which elements are multiplied before they are stored: the limits are divided by it.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.
    share_of : {"all", "nonzero"}
        What 100 % is: all elements, or the finite ones that are not zero; the bins of their own are then left out.
    fate_in : str, dtype or FloatFormat, optional
        Colour the bars by what becomes of them in this format; the legend has the exact shares, and a binade that the
        overflow threshold divides is coloured as kept. Default: the format, if `formats` has one only.
    exponents : (int, int), optional
        Show 2^first to 2^last; what lies outside is said at the edge. Default: all that occurs, and the limits near it.
    ruler : bool
        Whether to draw the ruler; without it the dotted lines go all the way up.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    ValueError
        An unknown format or `share_of`, a loss scale that is no power of two, or `exponents` without a binade.

    """
    if share_of not in get_args(ShareOf):
        raise ValueError(f"share_of must be one of {', '.join(get_args(ShareOf))}, got {share_of!r}")
    if exponents is not None and exponents[0] >= exponents[1]:
        raise ValueError(f"exponents must be (low, high) with low < high, got {exponents!r}")
    names = (formats,) if isinstance(formats, str | FloatFormat) else tuple(formats)
    limits = [_Limits.of(get_format(f), loss_scale) for f in names]
    if fate_in is None and len(limits) == 1:
        fate_in = limits[0].format
    fate = None if fate_in is None else _Limits.of(get_format(fate_in), loss_scale)
    everything = share_of == "all"
    with _styled(ax) as ax:
        _dress(ax, title=title)
        bins = {"zero": everything, "nonfinite": everything and histogram.nonfinite > 0}
        span = _Span.around(ax, histogram, limits, **bins) if exponents is None else _Span.of(ax, *exponents, **bins)
        ax.set_xlim(span.left, span.right)
        _ticks_of_binades(ax, span)
        scaled = "" if loss_scale == 1 else f" before scaling by S = {_power(log2_of_power_of_two(loss_scale))}"
        ax.set_xlabel(f"magnitude |x|{scaled}, one bar per binade [$2^e$, $2^{{e+1}}$)")

        strip = min(0.6, (len(limits) * _ROW + 0.06) / _size(ax)[1]) if ruler and limits else 0.0
        shares = _Shares.of(histogram, everything)
        handles, heading = _explanation(histogram, fate, loss_scale, ruler=bool(strip))
        side, limit = _place_of_legend(ax, shares, span, 1 - strip, rows=len(handles) + (heading is not None))
        _bars(ax, shares, span, fate)
        _share_axis(ax, limit, 1 - strip, "all" if everything else "non-zero")
        _own_bins(ax, shares, span, limit, 1 - strip)
        heights = [1.0] * len(limits)
        if strip:
            heights = _Ruler(ax, span.low, span.high, span.left, span.right).draw(limits, 1 - strip + 0.02, 1.0)
        for f, height in zip(limits, heights, strict=True):
            _drop_lines(ax, f, height, span, normal=f == fate)
        _outside(ax, shares, span, 1 - strip)
        if handles:
            start = (span.low - span.left) / (span.right - span.left)
            anchor = (start, 0, (span.high - span.low) / (span.right - span.left), 1 - strip)
            corner: Literal["upper left", "upper right"] = "upper left" if side == "left" else "upper right"
            ax.legend(
                handles=handles,
                title=heading,
                loc=corner,
                bbox_to_anchor=anchor,
                alignment="left",
                borderaxespad=0.2,
            )
        if not histogram.nonzero:
            _say_that_it_is_empty(ax, histogram, span, 1 - strip)
    return ax


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


@dataclass(frozen=True)
class _Shares:
    """What the bars show, in percent."""

    binades: dict[int, float]
    zero: float
    nonfinite: float

    @classmethod
    def of(cls, histogram: ExponentHistogram, everything: bool) -> _Shares:
        whole = histogram.count if everything else histogram.nonzero
        return cls(
            {e: _percent(n, whole) for e, n in histogram.binades.items()},
            _percent(histogram.zero, whole),
            _percent(histogram.nonfinite, whole),
        )

    def tallest(self, low: float, high: float) -> float:
        return max((s for e, s in self.binades.items() if low < e + 1 and e < high), default=0.0)


def _bars(ax: Axes, shares: _Shares, span: _Span, fate: _Limits | None) -> None:
    drawn = {e: share for e, share in shares.binades.items() if share}
    container = ax.bar(
        list(drawn),
        list(drawn.values()),
        width=1,
        align="edge",
        color=[_PLAIN if fate is None else FATE_COLORS[fate.fate(e)] for e in drawn] or None,
        edgecolor="white",
        linewidth=0.4 if span.high - span.low < 150 else 0,
        label="_binades",
    )
    for box in container:
        box.set_in_layout(False)  # they lie within the axes, and float64 has two thousand binades


def _share_axis(ax: Axes, limit: float, top: float, denominator: str) -> None:
    """Scale the y axis so that `limit` percent lie at the height `top`, where the ruler begins, and label it."""
    ax.set_ylim(0, limit / top)
    room = max(2, min(6, int(_size(ax)[1] * top / 0.28)))
    ticks = [t for t in MaxNLocator(room, steps=[1, 2, 2.5, 5, 10]).tick_values(0, 0.95 * limit) if 0 <= t <= limit]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{t:g}" for t in ticks]))
    ax.set_ylabel(f"% of {denominator} elements", y=top / 2)


def _own_bins(ax: Axes, shares: _Shares, span: _Span, limit: float, top: float) -> None:
    """Draw the bins of zeros and of infinities and NaN with their shares; cut one that is too tall to show."""
    below_ruler = Rectangle((0, 0), 1, top, transform=ax.transAxes)
    for shown, share, at, side, label in (
        (span.zero, shares.zero, span.zero_at, "left", "_zero"),
        (span.nonfinite, shares.nonfinite, span.nonfinite_at, "right", "_nonfinite"),
    ):
        if not shown:
            continue
        (box,) = ax.bar([at], [share], width=span.bin, align="edge", color=_OWN, label=label)
        box.set_clip_path(below_ruler)
        middle, text = at + span.bin / 2, f"{_number(share)} %"
        if share > limit:
            for height in (0.92, 0.955):
                tilt = [(height - 0.012) * limit, (height + 0.012) * limit]
                ax.plot([at - 0.1 * span.bin, at + 1.1 * span.bin], tilt, color="white", linewidth=1.2, label="_cut")
            ax.text(middle, 0.86 * limit, text, ha="center", va="top", rotation=90, color="white", fontsize=_SMALL)
        elif share:
            ax.text(at if side == "left" else at + span.bin, share, text, ha=side, va="bottom", fontsize=_SMALL)


def _ticks_of_binades(ax: Axes, span: _Span) -> None:
    """Put ticks at powers of two and at the bins of their own, and break the axis between them."""
    powers = _powers_between(span.low, span.high, _size(ax)[0] / 0.5)
    places: list[float] = [float(e) for e in powers]
    labels = [_power(e) for e in powers]
    across = ax.get_xaxis_transform()
    for shown, at, label, gap in (
        (span.zero, span.zero_at, "0", (span.zero_at + span.bin, span.low)),
        (span.nonfinite, span.nonfinite_at, "inf\nNaN", (span.high, span.nonfinite_at)),
    ):
        if shown:
            places.append(at + span.bin / 2)
            labels.append(label)
            middle, half = sum(gap) / 2, 0.13 * (gap[1] - gap[0])
            style: dict[str, Any] = {"transform": across, "clip_on": False, "zorder": 5}
            ends = [middle - half, middle + half]
            ax.plot(ends, [0, 0], color="white", linewidth=3, solid_capstyle="butt", label="_gap", **style)
            slash = [(-0.5, -1), (0.5, 1)]
            ax.plot(ends, [0, 0], linestyle="none", marker=slash, color=_INK, markersize=7, label="_break", **style)
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.xaxis.set_minor_locator(NullLocator())


def _drop_lines(ax: Axes, limits: _Limits, height: float, span: _Span, *, normal: bool) -> None:
    """Carry the ends of a format (with `normal` its smallest normal too) down to the bars."""
    for what, x in (("flush", limits.flush), ("normal", limits.normal), ("overflow", limits.overflow)):
        if span.low <= x <= span.high and (normal or what != "normal"):
            ax.plot(
                [x, x],
                [0, height],
                transform=ax.get_xaxis_transform(),
                color=_INK,
                linewidth=0.8,
                linestyle=(0, (1, 2)),
                zorder=1.5,
                label=f"_{limits.format.name} {what}",
            )


def _outside(ax: Axes, shares: _Shares, span: _Span, top: float) -> None:
    """Say at the edges what share the chosen range leaves out."""
    below = sum(s for e, s in shares.binades.items() if e < span.low)
    above = sum(s for e, s in shares.binades.items() if e >= span.high)
    for share, x, text, side in (
        (below, span.low, f" ◂ {_number(below)} % further down", "left"),
        (above, span.high, f"{_number(above)} % further up ▸ ", "right"),
    ):
        if share:
            ax.text(x, 0.1 * top, text, transform=ax.get_xaxis_transform(), ha=side, fontsize=_SMALL)


def _explanation(
    histogram: ExponentHistogram, fate: _Limits | None, loss_scale: float, *, ruler: bool
) -> tuple[list[Patch], str | None]:
    """Return the entries of the legend and its heading: the exact shares where bars are coloured, else the ruler."""
    if fate is None:
        words: dict[Fate, str] = {"subnormal": "subnormal", "kept": "normal"} if ruler else {}
        return [Patch(color=FATE_COLORS[f], label=word) for f, word in words.items()], None
    c = histogram.conversion(fate.format, loss_scale)
    counts: dict[Fate, int] = {
        "flushed": c.flushed,
        "subnormal": c.subnormal,
        "kept": c.kept,
        "overflowed": c.overflowed,
    }
    handles = [
        Patch(color=FATE_COLORS[f], label=f"{f} {_number(_percent(n, c.nonzero))} %")
        for f, n in counts.items()
        if n or f != "overflowed"
    ]
    return handles, f"{fate.format.name}, of non-zero:"


def _place_of_legend(
    ax: Axes, shares: _Shares, span: _Span, top: float, *, rows: int
) -> tuple[Literal["left", "right"], float]:
    """Return the side with more room for a legend, and the percent at the top of the bars that make it enough."""
    tallest = shares.tallest(span.low, span.high) or max(shares.zero, shares.nonfinite) or 1.0
    width, height = _size(ax)
    covered = 1.7 / width * (span.right - span.left)
    under = {
        "left": shares.tallest(span.low, span.low + covered),
        "right": shares.tallest(span.high - covered, span.high),
    }
    side: Literal["left", "right"] = "left" if under["left"] < under["right"] else "right"
    free = 1 - min(0.6, (0.18 * rows + 0.12) / (height * top))
    return side, max(1.12 * tallest, under[side] / free)


def _number(percent: float) -> str:
    """Return a percentage of three digits that is 0 or 100 only where nothing or everything is meant."""
    if 0 < percent < 0.005:
        return "<0.01"
    if 99.95 <= percent < 100:
        return ">99.9"
    return f"{percent:.2f}" if percent < 1 and percent else f"{percent:.3g}"


def _say_that_it_is_empty(ax: Axes, histogram: ExponentHistogram, span: _Span, top: float) -> None:
    if not histogram.count:
        text = "no elements"
    elif not histogram.nonfinite:
        text = f"all {histogram.count:,} elements are zero"
    else:
        text = "no element is finite and non-zero"
    ax.text(
        (span.low + span.high) / 2,
        top / 2,
        text,
        transform=ax.get_xaxis_transform(),
        ha="center",
        va="center",
        fontsize=12,
        color=_PALE,
        bbox={"facecolor": "white", "edgecolor": "none"},
    )


# --- loss scale -------------------------------------------------------------------------------------------------------


def plot_loss_scale(
    conversions: Sequence[Conversion], *, ax: Axes | None = None, title: str | None = None, label: str | None = None
) -> Axes:
    """Draw what a format flushes, makes subnormal and overflows at each loss scale.

    The y axis is logarithmic from the share of a single element upwards, and 0 has a place of its own below. Shaded are
    the scales at which nothing overflows; rings mark S = 1 and the smallest scale that loses least.

    Parameters
    ----------
    conversions : sequence of Conversion
        The same tensor in the same format at several loss scales, as in ``UnderflowResult.conversions``.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure. Drawing on the same axes again gives the curves another marker.
    title : str, optional
        Title of the axes.
    label : str, optional
        What the curves are of, for the legend.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    ValueError
        There are no conversions, or they are of several formats.

    """
    if not conversions:
        raise ValueError("there are no conversions to draw")
    if len(names := sorted({c.format.name for c in conversions})) > 1:
        raise ValueError(f"the conversions must be of one format, got {', '.join(names)}")
    curves = sorted(conversions, key=lambda c: c.loss_scale)
    with _styled(ax) as ax:
        _dress(ax, title=title, grid="both")
        earlier = sum(line.get_label() == "_best" for line in ax.lines)
        _scale_axes(ax, curves)
        _window(ax, curves, label, earlier)
        scales = [c.loss_scale for c in curves]
        of = "" if label is None else f" ({label})"
        for fate, shares, width, dashes in (
            ("flushed", [c.flushed_of_nonzero for c in curves], 2.0, "-"),
            ("overflowed", [c.overflowed_of_nonzero for c in curves], 2.0, "-."),
            ("subnormal", [c.subnormal_of_nonzero for c in curves], 1.0, "--"),
        ):
            ax.plot(
                scales,
                [100 * s for s in shares],
                color=FATE_COLORS[fate],  # type: ignore[index]
                linewidth=width,
                linestyle=dashes,
                marker=_MARKERS[(earlier - 1) % len(_MARKERS)] if earlier else None,
                markevery=4,
                label=f"{fate}{of}",
            )
        _mark_scales(ax, curves)
        handles = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
        ax.legend(handles=handles, loc="best")
    return ax


def _scale_axes(ax: Axes, curves: Sequence[Conversion]) -> None:
    scales = [math.log2(c.loss_scale) for c in curves]
    low, high = min(scales), max(scales)
    ax.set_xscale("log", base=2)
    ax.set_xlim(2.0 ** (low - 0.7), 2.0 ** (high + 0.7))
    powers = _powers_between(low, high, _size(ax)[0] / 0.45)
    ax.xaxis.set_major_locator(FixedLocator([2.0**k for k in powers]))
    ax.xaxis.set_major_formatter(FixedFormatter([_power(k) for k in powers]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("loss scale S")

    most = max(max(c.nonzero for c in curves), 1)
    decade = min(max(math.floor(2 - math.log10(most)), -6), 1)  # no share but 0 is below 10^decade %
    ticks = [0.0, *(10.0**d for d in range(decade, 3))]
    ax.set_yscale("symlog", linthresh=ticks[1], linscale=0.6)
    ax.set_ylim(-0.75 * ticks[1], 400)  # room for what is said above and below the curves
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{t:g}" for t in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("% of non-zero elements")


def _window(ax: Axes, curves: Sequence[Conversion], label: str | None, earlier: int) -> None:
    """Shade the scales up to the last at which nothing overflows."""
    safe = [c.loss_scale for c in curves if not c.overflowed]
    if not safe:
        return
    low, high = min(safe), max(safe)
    ax.axvspan(low, high, color="#009E73", alpha=0.08, linewidth=0, label="_window")
    of = "" if label is None else f"{label}: "
    ax.text(
        math.sqrt(low * high),
        0.985 - 0.06 * earlier,
        f"{of}nothing overflows up to {_power(math.log2(high))}",
        transform=ax.get_xaxis_transform(),
        ha="center",
        va="top",
        fontsize=_SMALL,
        color="#00664a",
    )


def _mark_scales(ax: Axes, curves: Sequence[Conversion]) -> None:
    """Mark S = 1, and the smallest scale that flushes and overflows the fewest."""
    best = min(curves, key=lambda c: (c.flushed + c.overflowed, c.loss_scale))
    one = next((c for c in curves if c.loss_scale == 1), None)
    middle = math.sqrt(curves[0].loss_scale * curves[-1].loss_scale)
    if one is not None and one is not best:
        _mark(ax, one, "_S=1", f"S = 1: {_lost(one)}", side="left" if middle >= 1 else "right")
    text = f"S = {1 if best is one else _power(math.log2(best.loss_scale))} loses least: {_lost(best)}"
    _mark(ax, best, "_best", text, side="left" if best.loss_scale <= middle else "right")


def _lost(conversion: Conversion) -> str:
    return f"{_number(_percent(conversion.flushed + conversion.overflowed, conversion.nonzero))} %"


def _mark(ax: Axes, conversion: Conversion, label: str, text: str, *, side: Literal["left", "right"]) -> None:
    """Put a ring on the flushed curve, and a text below it."""
    x, y = conversion.loss_scale, 100 * conversion.flushed_of_nonzero
    ring: dict[str, Any] = {"marker": "o", "markersize": 6, "markerfacecolor": "white", "markeredgecolor": _INK}
    ax.add_line(Line2D([x], [y], linestyle="none", zorder=3, label=label, **ring))
    ax.annotate(
        text,
        (x, y),
        xytext=(4 if side == "left" else -4, -18 if y else -6),
        textcoords="offset points",
        ha=side,
        va="top",
        fontsize=_SMALL,
        arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": _INK} if y else None,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
    )


# --- the underflow experiment -----------------------------------------------------------------------------------------


def plot_flushed_table(result: UnderflowResult, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw a table of the shares that are flushed without loss scaling: formats by kind of gradient and stage.

    Parameters
    ----------
    result : UnderflowResult
        What to draw.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    """
    columns = [(group, stage.name) for group in GROUPS for stage in result.stages]
    formats = result.config.formats
    cells = [[100 * result.unscaled(stage, group, f).flushed_of_nonzero for group, stage in columns] for f in formats]
    paint = LinearSegmentedColormap.from_list("flushed", ["#f6f6f6", FATE_COLORS["flushed"]])
    with _styled(ax) as ax:
        _dress(ax, title=title)
        ax.grid(visible=False)
        ax.imshow(cells, cmap=paint, vmin=0, vmax=100, aspect="auto")
        for row, shares in enumerate(cells):
            for column, share in enumerate(shares):
                ax.text(
                    column,
                    row,
                    _number(share),
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if share > 80 else _INK,
                )
        for edge in range(1, len(formats)):
            ax.axhline(edge - 0.5, color="white", linewidth=2)
        for edge in range(1, len(columns)):
            ax.axvline(edge - 0.5, color="white", linewidth=8 if edge % len(result.stages) == 0 else 2)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_yticks(range(len(formats)), formats)
        middle = len(result.stages) // 2  # the stage that also carries the name of its group
        names = [
            f"{stage}\n{group if i % len(result.stages) == middle else ' '}" for i, (group, stage) in enumerate(columns)
        ]
        ax.set_xticks(range(len(columns)), names)
        ax.set_xlabel("stage of the training")
        ax.set_ylabel("format")
    return ax


def scan_figure(result: ScanResult) -> Figure:
    """Draw the histogram of all scanned elements together, under the ruler of the formats that were asked about."""
    with _style():
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        count = len(result.tensors)
        plot_exponent_histogram(
            result.total,
            formats=result.formats,
            loss_scale=result.loss_scale,
            ax=figure.add_subplot(),
            title=f"{count} tensor{'s' if count != 1 else ''}, {result.total.count:,} elements",
        )
    return figure


def underflow_figure(result: UnderflowResult) -> Figure:
    """Draw what the underflow experiment found on one page.

    Above, the activation gradients of the three stages under one format ruler, coloured by what becomes of them in the
    first format of the configuration; below, what loss scaling does to them in this format at the start and at the end,
    and the shares flushed without it.

    Parameters
    ----------
    result : UnderflowResult
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A figure that pyplot does not know of; `save_figure` writes it.

    """
    group, fmt = GROUPS[1], result.config.formats[0]
    with _style():
        figure = Figure(figsize=(11, 9), dpi=120, layout="constrained")
        figure.suptitle("Gradients of a digits MLP: what each format flushes to zero", x=0.01, ha="left")
        rows = figure.add_gridspec(2, 1, height_ratios=[6, 3.1])
        stages = len(result.stages)
        upper = rows[0].subgridspec(stages + 1, 1, height_ratios=[0.8] + [1.3] * stages)
        panels = [figure.add_subplot(upper[row + 1]) for row in range(stages)]
        _stages(panels, figure.add_subplot(upper[0]), result, group, fmt)
        figure.align_ylabels(panels)
        grid = rows[1].subgridspec(1, 3, wspace=0.04)
        for column, stage in enumerate((result.stages[0], result.stages[-1])):
            curves = plot_loss_scale(
                result.conversions[stage.name][group][fmt],
                ax=figure.add_subplot(grid[column]),
                title=f"Loss scaling in {fmt}, {stage.name}",
            )
            if column and (legend := curves.get_legend()) is not None:
                legend.remove()  # its neighbour has the same
        plot_flushed_table(result, ax=figure.add_subplot(grid[2]), title="Flushed at S = 1, % of non-zero")
    return figure


def _stages(panels: Sequence[Axes], ruler: Axes, result: UnderflowResult, group: str, fmt: str) -> None:
    """Draw the histogram of each stage on its panel, all over the same binades, and one ruler for all."""
    histograms = [stage.histogram(group) for stage in result.stages]
    limits = [_Limits.of(get_format(f), 1) for f in result.config.formats]
    low, high = _common_exponents(histograms, limits[0])
    for panel, histogram, stage in zip(panels, histograms, result.stages, strict=True):
        steps = f"steps {stage.steps.start:,}–{stage.steps.stop - 1:,}, loss {stage.loss:.2g}"
        plot_exponent_histogram(
            histogram,
            formats=result.config.formats,
            fate_in=fmt,
            exponents=(low, high),
            ruler=False,
            ax=panel,
            title=f"{group.capitalize()}, {stage.name} ({steps})",
        )
        panel.set_ylabel("% of elements")
        panel.label_outer()
    left, right = panels[0].get_xlim()
    ruler.set_xlim(left, right)
    ruler.set_axis_off()
    span = _Span.of(ruler, low, high, zero=True, nonfinite=False)
    for f, height in zip(limits, _Ruler(ruler, low, high, left, right).draw(limits, 0.0, 1.0), strict=True):
        _drop_lines(ruler, f, height, span, normal=f == limits[0])


def _common_exponents(histograms: Sequence[ExponentHistogram], limits: _Limits) -> tuple[int, int]:
    """Return a range with all but a half percent of each histogram's lower tail, all above, and the limits."""
    lows, highs = [math.floor(limits.flush)], [math.ceil(limits.overflow)]
    for histogram in histograms:
        tail = 0
        for exponent, n in histogram.binades.items():
            tail += n
            if tail > 0.005 * histogram.count:
                lows.append(exponent)
                break
        highs.append(histogram.exponents.stop)
    return min(lows) - 1, max(highs) + 6
