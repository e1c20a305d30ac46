"""The look of every figure, and how one is saved; the parts that several drawings share."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from precision_lab.numerics import fixed
from precision_lab.support.files import replacing
from precision_lab.support.text import printable, shown

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

INK = "#222222"
PALE = "#8a8a8a"
OWN = "#5a5a5a"  # zeros, infinities and NaN
PLAIN = "#7f93a3"  # bars whose fate depends on the format
SMALL = 7.5  # points; the numbers in the format ruler
MARKERS = "os^Dv"


# --- style, axes, files -----------------------------------------------------------------------------------------------


@contextmanager
def style() -> Iterator[None]:
    """Put the style of the lab in force, and matplotlib's defaults for the rest, whatever the user's own are."""
    with as_file(files("precision_lab.presentation.plots") / "lab.mplstyle") as path, matplotlib.rc_context(fname=path):
        yield
        interactive = matplotlib.is_interactive()
    # in a notebook the first figure loads the backend, and this switch with it: without it no second figure is shown
    matplotlib.interactive(interactive)


@contextmanager
def styled(ax: Axes | None) -> Iterator[Axes]:
    """Give the axes to draw on, new ones of a pyplot figure if there are none, with the style of the lab in force."""
    if ax is not None:
        with style():
            yield ax
        return
    from matplotlib import pyplot  # heavy, and only for figures that are shown

    with style():
        yield pyplot.figure(layout="constrained").add_subplot()


def dress(ax: Axes, *, title: str | None, grid: Literal["x", "y", "both"] = "y") -> None:
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
    for text in figure.findobj(Text):  # names of other people's among them
        text.set_text(printable(text.get_text()))
    with replacing(path) as new, style(), _layout_restored(figure):
        figure.savefig(new, format=suffix[1:], metadata=undated)
        if suffix == ".svg":
            _shorten(new)


def _shorten(path: Path) -> None:
    """Leave out of an SVG what nobody sees, and what depends on the processor.

    That is the indentation, digits of places behind the second (of outlines the third), and names that matplotlib makes
    of all bits of a place, which it takes from NumPy's logarithm.
    """
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?<=translate\()[^)]*", lambda places: re.sub(r"(\.\d\d)\d+", r"\1", places[0]), text)
    text = re.sub(r'(?<= d=")[^"]*', lambda outline: re.sub(r"-?\d+\.\d{4,}", _thousandths, outline[0]), text)
    made = dict.fromkeys(re.findall(r'id="([mp][0-9a-f]{10})"', text))
    names = {name: f"{name[0]}{number}" for number, name in enumerate(made)}
    text = re.sub(r"\b[mp][0-9a-f]{10}\b", lambda name: names.get(name[0], name[0]), text)
    path.write_text(re.sub(r"(?m)^ +", "", text), encoding="utf-8")


def _thousandths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.3f}".rstrip("0").removesuffix(".")


def say_quick(figure: Figure) -> None:
    """Add to the title of a figure that the numbers are those of a quick run."""
    title = figure._suptitle  # type: ignore[attr-defined]  # there is no other way to its text and its place
    title.set_text(f"{title.get_text()} (quick run)")


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


def plain_text(name: str, limit: int = 60) -> str:
    """Return a name from somebody's file as a text that is drawn as it is: a dollar sign begins no formula."""
    return shown(name, limit).replace("$", r"\$")


# --- powers of two ----------------------------------------------------------------------------------------------------


def power(exponent: float) -> str:
    """Return 2^exponent for a label."""
    return f"$2^{{{exponent:.0f}}}$"


def powers_between(low: float, high: float, room: float) -> list[int]:
    """Return exponents for ticks: multiples of a power of two, no more of them than fit."""
    step = 1
    while (high - low) / step > max(room, 1):
        step *= 2
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))


def plain_ticks(axis: Axis, low: float, high: float, most: int = 5) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10 ... if so many fit between the limits, else with powers of ten."""
    decades = fixed.log10(high / low)
    step = max(1, math.ceil(decades / most))
    factors = (1, 2, 5) if 3 * decades <= most else (1, 3) if 2 * decades <= most else (1,)
    marks = [m * float(f"1e{k}") for k in range(-30, 31) for m in factors if k % step == 0]
    ticks = [tick for tick in marks if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(
        FixedFormatter([f"{t:g}" if 1e-4 <= t < 1e5 else f"$10^{{{fixed.log10(t):.0f}}}$" for t in ticks])
    )
    axis.set_minor_formatter(NullFormatter())


def size_in_inches(ax: Axes) -> tuple[float, float]:
    """Return width and height of the axes in inches (before a layout engine has had its say)."""
    box, figure = ax.get_position(), ax.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    return max(box.width * width, 0.1), max(box.height * height, 0.1)


def text_inches(text: str) -> float:
    """Return about how wide a small text is."""
    return (len(text.translate(str.maketrans("", "", "${}^"))) + 0.5) * 0.62 * SMALL / 72


def percent_of(part: float, whole: float) -> float:
    """Return a share in percent; 0 of nothing."""
    return 100 * part / whole if whole else 0.0


def percent_label(percent: float) -> str:
    """Return a percentage of three digits that is 0 or 100 only where nothing or everything is meant."""
    if 0 < percent < 0.005:
        return "<0.01"
    if 99.95 <= percent < 100:
        return ">99.9"
    return f"{percent:.2f}" if percent < 1 and percent else f"{percent:.3g}"
