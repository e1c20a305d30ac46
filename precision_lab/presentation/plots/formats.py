"""The formats themselves: which numbers there are, and how far apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from precision_lab.numerics import fixed
from precision_lab.numerics.codes import decode
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.rounding import spacing
from precision_lab.presentation.plots.style import FATE_COLORS, dress, power, powers_between, styled

_MOST_BITS = 16


def plot_number_line(
    formats: Sequence[FormatLike] = ("fp8_e4m3fn", "fp8_e5m2", "fp6_e2m3fn", "fp4_e2m1fn"),
    *,
    span: tuple[float, float] = (0.0, 4.0),
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw every value that formats have in an interval, a row each; subnormals in a lighter colour.

    Parameters
    ----------
    formats : sequence of format specs
        Of at most 16 bits.
    span : (float, float)
        The interval.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Raises
    ------
    ValueError
        An unknown format, or one of more than 16 bits.

    """
    chosen_formats = [get_format(fmt) for fmt in formats]
    if wide := [fmt for fmt in chosen_formats if fmt.bits > _MOST_BITS]:
        raise ValueError(f"formats must have at most {_MOST_BITS} bits: every value is drawn; got {wide[0]}")
    with styled(ax) as ax:
        dress(ax, title=title, grid="x")
        for row, fmt in enumerate(chosen_formats):
            values = np.asarray(decode(np.arange(2**fmt.bits, dtype=np.uint16), fmt), np.float64)
            inside = values[(values >= span[0]) & (values <= span[1])]
            subnormal = (inside != 0) & (np.abs(inside) < fmt.smallest_normal)
            for chosen, color in ((~subnormal, FATE_COLORS["kept"]), (subnormal, FATE_COLORS["subnormal"])):
                ax.vlines(inside[chosen], row - 0.3, row + 0.3, color=color, linewidth=1.0)
        ax.set_yticks(range(len(chosen_formats)), [fmt.name for fmt in chosen_formats])
        ax.set_ylim(len(chosen_formats) - 0.5, -0.5)
        ax.set_xlim(*span)
        ax.set_xlabel("value")
    return ax


def plot_spacing(
    formats: Sequence[FormatLike] = ("fp32", "bf16", "fp16"),
    *,
    exponents: tuple[int, int] = (-30, 20),
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the distance to the next value outward (the ulp) against the value, both as powers of two.

    Parameters
    ----------
    formats : sequence of format specs
        Each has a line, from its smallest value to its largest.
    exponents : (int, int)
        The first and the last power of two.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new pyplot figure.
    title : str, optional
        Title of the axes.

    Raises
    ------
    ValueError
        An unknown format.

    """
    values = 2.0 ** np.arange(exponents[0], exponents[1] + 1)
    with styled(ax) as ax:
        dress(ax, title=title, grid="both")
        for fmt in map(get_format, formats):
            held = values[(values >= fmt.smallest_subnormal) & (values <= fmt.max)]
            gaps = np.asarray(spacing(held, fmt), np.float64)
            ax.step(fixed.log2(held), fixed.log2(gaps), where="post", label=fmt.name)
        low, high = ax.get_ylim()
        for axis, first, last in ((ax.xaxis, *exponents), (ax.yaxis, low, high)):
            ticks = powers_between(first, last, 8)
            axis.set_ticks(ticks, [power(k) for k in ticks])
            axis.set_minor_locator(NullLocator())
        ax.set_xlabel("value")
        ax.set_ylabel("distance to the next value")
        ax.legend(loc="upper left")
    return ax
