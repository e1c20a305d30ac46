"""Histograms of magnitudes under a ruler of formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from precision_lab.analysis.histogram import ExponentHistogram, log2_of_power_of_two
from precision_lab.analysis.scan import ScanResult
from precision_lab.numerics import fixed
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.presentation.plots.style import (
    FATE_COLORS,
    INK,
    OWN,
    PALE,
    PLAIN,
    SMALL,
    Fate,
    dress,
    percent_label,
    percent_of,
    plain_text,
    power,
    powers_between,
    size_in_inches,
    style,
    styled,
    text_inches,
)

ShareOf: TypeAlias = Literal["all", "nonzero"]

_ROW = 0.19  # inches; a row of the format ruler


# --- format ruler -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Where a format begins, becomes normal and ends, as log2 of magnitudes before a loss scale is applied."""

    format: FloatFormat
    flush: float
    normal: float
    overflow: float
    end: str

    @classmethod
    def of(cls, fmt: FloatFormat, loss_scale: float) -> Limits:
        k = log2_of_power_of_two(loss_scale)
        top = fixed.log2(fmt.overflow_threshold) - k
        threshold = fmt.overflow_threshold / loss_scale
        if 1 <= threshold < 10**6:
            end = f"{threshold:,.6g}"
        else:
            end = power(round(top)) if abs(top - round(top)) < 0.01 else f"$2^{{{top:.2f}}}$"
        return cls(fmt, fixed.log2(fmt.flush_threshold) - k, fmt.emin - k, top, end)

    def fate(self, exponent: int) -> Fate:
        """Return what becomes of the binade [2^exponent, 2^(exponent+1)), at its low end if it is divided."""
        if exponent + 1 <= self.flush:
            return "flushed"
        if exponent + 1 <= self.normal and self.format.mantissa_bits:
            return "subnormal"
        return "overflowed" if exponent >= self.overflow else "kept"


@dataclass(frozen=True)
class Ruler:
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
        return text_inches(text) / size_in_inches(self.ax)[0] * (self.right - self.left)

    def text(
        self, x: float, y: float, text: str, side: Literal["left", "right"], color: str = INK, *, backed: bool = False
    ) -> None:
        gap = self.width(".") / 3
        self.ax.text(
            x + gap if side == "left" else x - gap,
            y,
            text,
            transform=self.ax.get_xaxis_transform(),
            ha=side,
            va="center_baseline",
            fontsize=SMALL,
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

    def row(self, limits: Limits, y: float, height: float) -> None:
        self.ax.text(
            -0.008, y, limits.format.name, transform=self.ax.transAxes, ha="right", va="center_baseline", fontsize=8.5
        )
        if limits.overflow <= self.low:
            self.text(self.low, y, f"◂ ends at {limits.end}", "left")
            return
        if limits.flush >= self.high:
            self.text(self.high, y, f"begins above {power(limits.flush)} ▸", "right")
            return
        self.bar(limits.flush, limits.normal, y, height, "subnormal")
        self.bar(limits.normal, limits.overflow, y, height, "kept")
        self.low_end(limits, y)
        self.high_end(limits, y)
        self.middle(limits, y)

    def low_end(self, limits: Limits, y: float) -> None:
        label = power(limits.flush)
        if limits.flush >= self.low:
            if limits.flush - self.width(label) >= self.left:
                self.text(limits.flush, y, label, "right", backed=True)
            return
        arrow = f"◂ {label}"
        dark = limits.normal > self.low
        fits = self.width(arrow) <= min(limits.normal if dark else limits.overflow, self.high) - self.low
        self.text(self.low, y, arrow if fits else "◂", "left", INK if dark else "white")

    def high_end(self, limits: Limits, y: float) -> None:
        if limits.overflow <= self.high:
            if limits.overflow + self.width(limits.end) <= self.right:
                self.text(limits.overflow, y, limits.end, "left", backed=True)
            return
        arrow = f"{limits.end} ▸"
        light = limits.normal < self.high
        fits = self.width(arrow) <= self.high - max(limits.normal if light else limits.flush, self.low)
        self.text(self.high, y, arrow if fits else "▸", "right", "white" if light else INK)

    def middle(self, limits: Limits, y: float) -> None:
        label = power(limits.normal)
        room = min(limits.overflow, self.high) - limits.normal
        if limits.overflow > self.high:
            room -= self.width(f"{limits.end} ▸")
        if limits.normal >= self.low and self.width(label) <= room:
            self.text(limits.normal, y, label, "left", "white")

    def draw(self, formats: Sequence[Limits], bottom: float, top: float) -> list[float]:
        """Draw the rows between two heights, the first on top, and return the height of each."""
        pitch = (top - bottom) / max(len(formats), 1)
        heights = [top - (row + 0.5) * pitch for row in range(len(formats))]
        for limits, y in zip(formats, heights, strict=True):
            self.row(limits, y, 0.74 * pitch)
        return heights


# --- histogram --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
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
    def of(cls, ax: Axes, low: int, high: int, *, zero: bool, nonfinite: bool) -> Span:
        return cls(low, high, max(1.0, 0.23 / size_in_inches(ax)[0] * (high - low)), zero, nonfinite)

    @classmethod
    def around(
        cls, ax: Axes, histogram: ExponentHistogram, formats: Sequence[Limits], *, zero: bool, nonfinite: bool
    ) -> Span:
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
        label = max(
            1.0, text_inches("65,520 ") / size_in_inches(ax)[0] * (high - low) * 1.2
        )  # of a limit beyond the bars
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
    formats: Sequence[FormatLike] = ("fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2"),
    loss_scale: float = 1,
    ax: Axes | None = None,
    title: str | None = None,
    share_of: ShareOf = "all",
    fate_in: FormatLike | None = None,
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
    limits = [Limits.of(get_format(f), loss_scale) for f in names]
    if fate_in is None and len(limits) == 1:
        fate_in = limits[0].format
    fate = None if fate_in is None else Limits.of(get_format(fate_in), loss_scale)
    everything = share_of == "all"
    with styled(ax) as ax:
        dress(ax, title=title)
        bins = {"zero": everything, "nonfinite": everything and histogram.nonfinite > 0}
        span = Span.around(ax, histogram, limits, **bins) if exponents is None else Span.of(ax, *exponents, **bins)
        ax.set_xlim(span.left, span.right)
        _ticks_of_binades(ax, span)
        scaled = "" if loss_scale == 1 else f" before scaling by S = {power(log2_of_power_of_two(loss_scale))}"
        ax.set_xlabel(f"magnitude |x|{scaled}, one bar per binade [$2^e$, $2^{{e+1}}$)")

        strip = min(0.6, (len(limits) * _ROW + 0.06) / size_in_inches(ax)[1]) if ruler and limits else 0.0
        shares = _Shares.of(histogram, everything)
        handles, heading = _explanation(histogram, fate, loss_scale, ruler=bool(strip))
        side, limit = _place_of_legend(ax, shares, span, 1 - strip, rows=len(handles) + (heading is not None))
        _bars(ax, shares, span, fate)
        _share_axis(ax, limit, 1 - strip, "all" if everything else "non-zero")
        _own_bins(ax, shares, span, limit, 1 - strip)
        heights = [1.0] * len(limits)
        if strip:
            heights = Ruler(ax, span.low, span.high, span.left, span.right).draw(limits, 1 - strip + 0.02, 1.0)
        for f, height in zip(limits, heights, strict=True):
            drop_lines(ax, f, height, span, normal=f == fate)
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
            {e: percent_of(n, whole) for e, n in histogram.binades.items()},
            percent_of(histogram.zero, whole),
            percent_of(histogram.nonfinite, whole),
        )

    def tallest(self, low: float, high: float) -> float:
        return max((s for e, s in self.binades.items() if low < e + 1 and e < high), default=0.0)


def _bars(ax: Axes, shares: _Shares, span: Span, fate: Limits | None) -> None:
    drawn = {e: share for e, share in shares.binades.items() if share}
    container = ax.bar(
        list(drawn),
        list(drawn.values()),
        width=1,
        align="edge",
        color=[PLAIN if fate is None else FATE_COLORS[fate.fate(e)] for e in drawn] or None,
        edgecolor="white",
        linewidth=0.4 if span.high - span.low < 150 else 0,
        label="_binades",
    )
    for box in container:
        box.set_in_layout(False)  # they lie within the axes, and float64 has two thousand binades


def _share_axis(ax: Axes, limit: float, top: float, denominator: str) -> None:
    """Scale the y axis so that `limit` percent lie at the height `top`, where the ruler begins, and label it."""
    ax.set_ylim(0, limit / top)
    room = max(2, min(6, int(size_in_inches(ax)[1] * top / 0.28)))
    ticks = [t for t in MaxNLocator(room, steps=[1, 2, 2.5, 5, 10]).tick_values(0, 0.95 * limit) if 0 <= t <= limit]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{t:g}" for t in ticks]))
    ax.set_ylabel(f"% of {denominator} elements", y=top / 2)


def _own_bins(ax: Axes, shares: _Shares, span: Span, limit: float, top: float) -> None:
    """Draw the bins of zeros and of infinities and NaN with their shares; cut one that is too tall to show."""
    below_ruler = Rectangle((0, 0), 1, top, transform=ax.transAxes)
    for shown, share, at, side, label in (
        (span.zero, shares.zero, span.zero_at, "left", "_zero"),
        (span.nonfinite, shares.nonfinite, span.nonfinite_at, "right", "_nonfinite"),
    ):
        if not shown:
            continue
        (box,) = ax.bar([at], [share], width=span.bin, align="edge", color=OWN, label=label)
        box.set_clip_path(below_ruler)
        middle, text = at + span.bin / 2, f"{percent_label(share)} %"
        if share > limit:
            for height in (0.92, 0.955):
                tilt = [(height - 0.012) * limit, (height + 0.012) * limit]
                ax.plot([at - 0.1 * span.bin, at + 1.1 * span.bin], tilt, color="white", linewidth=1.2, label="_cut")
            ax.text(middle, 0.86 * limit, text, ha="center", va="top", rotation=90, color="white", fontsize=SMALL)
        elif share:
            ax.text(at if side == "left" else at + span.bin, share, text, ha=side, va="bottom", fontsize=SMALL)


def _ticks_of_binades(ax: Axes, span: Span) -> None:
    """Put ticks at powers of two and at the bins of their own, and break the axis between them."""
    powers = powers_between(span.low, span.high, size_in_inches(ax)[0] / 0.5)
    places: list[float] = [float(e) for e in powers]
    labels = [power(e) for e in powers]
    across = ax.get_xaxis_transform()
    for shown, at, label, gap in (
        (span.zero, span.zero_at, "0", (span.zero_at + span.bin, span.low)),
        (span.nonfinite, span.nonfinite_at, "inf\nNaN", (span.high, span.nonfinite_at)),
    ):
        if shown:
            places.append(at + span.bin / 2)
            labels.append(label)
            middle, half = sum(gap) / 2, 0.13 * (gap[1] - gap[0])
            line: dict[str, Any] = {"transform": across, "clip_on": False, "zorder": 5}
            ends = [middle - half, middle + half]
            ax.plot(ends, [0, 0], color="white", linewidth=3, solid_capstyle="butt", label="_gap", **line)
            slash = [(-0.5, -1), (0.5, 1)]
            ax.plot(ends, [0, 0], linestyle="none", marker=slash, color=INK, markersize=7, label="_break", **line)
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.xaxis.set_minor_locator(NullLocator())


def drop_lines(ax: Axes, limits: Limits, height: float, span: Span, *, normal: bool) -> None:
    """Carry the ends of a format (with `normal` its smallest normal too) down to the bars."""
    for what, x in (("flush", limits.flush), ("normal", limits.normal), ("overflow", limits.overflow)):
        if span.low <= x <= span.high and (normal or what != "normal"):
            ax.plot(
                [x, x],
                [0, height],
                transform=ax.get_xaxis_transform(),
                color=INK,
                linewidth=0.8,
                linestyle=(0, (1, 2)),
                zorder=1.5,
                label=f"_{limits.format.name} {what}",
            )


def _outside(ax: Axes, shares: _Shares, span: Span, top: float) -> None:
    """Say at the edges what share the chosen range leaves out."""
    below = sum(s for e, s in shares.binades.items() if e < span.low)
    above = sum(s for e, s in shares.binades.items() if e >= span.high)
    for share, x, text, side in (
        (below, span.low, f" ◂ {percent_label(below)} % further down", "left"),
        (above, span.high, f"{percent_label(above)} % further up ▸ ", "right"),
    ):
        if share:
            ax.text(x, 0.1 * top, text, transform=ax.get_xaxis_transform(), ha=side, fontsize=SMALL)


def _explanation(
    histogram: ExponentHistogram, fate: Limits | None, loss_scale: float, *, ruler: bool
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
        Patch(color=FATE_COLORS[f], label=f"{f} {percent_label(percent_of(n, c.nonzero))} %")
        for f, n in counts.items()
        if n or f != "overflowed"
    ]
    return handles, f"{fate.format.name}, of non-zero:"


def _place_of_legend(
    ax: Axes, shares: _Shares, span: Span, top: float, *, rows: int
) -> tuple[Literal["left", "right"], float]:
    """Return the side with more room for a legend, and the percent at the top of the bars that make it enough."""
    tallest = shares.tallest(span.low, span.high) or max(shares.zero, shares.nonfinite) or 1.0
    width, height = size_in_inches(ax)
    covered = 1.7 / width * (span.right - span.left)
    under = {
        "left": shares.tallest(span.low, span.low + covered),
        "right": shares.tallest(span.high - covered, span.high),
    }
    side: Literal["left", "right"] = "left" if under["left"] < under["right"] else "right"
    free = 1 - min(0.6, (0.18 * rows + 0.12) / (height * top))
    return side, max(1.12 * tallest, under[side] / free)


def _say_that_it_is_empty(ax: Axes, histogram: ExponentHistogram, span: Span, top: float) -> None:
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
        color=PALE,
        bbox={"facecolor": "white", "edgecolor": "none"},
    )


# --- scanned files ---


def scan_figure(result: ScanResult) -> Figure:
    """Draw a histogram of all elements that add up, one for each total, under the ruler of the formats asked about."""
    with style():
        totals = result.totals
        figure = Figure(figsize=(10, 4.5 * len(totals)), layout="constrained")
        count = len(result.tensors)
        for ax, total in zip(figure.subplots(len(totals), squeeze=False)[:, 0], totals, strict=True):
            what = f"{count} tensor{'s' if count != 1 else ''}" if len(totals) == 1 else plain_text(total.name)
            plot_exponent_histogram(
                total.histogram,
                formats=result.formats,
                loss_scale=result.loss_scale,
                ax=ax,
                title=f"{what}, {total.histogram.count:,} elements",
            )
    return figure
