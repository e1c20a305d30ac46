"""What is drawn on axes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.container import BarContainer


def bars(ax: Axes, label: str = "_binades") -> dict[float, float]:
    """Return the heights of bars that are not empty, by their left end."""
    (container,) = (c for c in ax.containers if c.get_label() == label)
    assert isinstance(container, BarContainer)
    return {box.get_x(): box.get_height() for box in container.patches if box.get_height()}


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]
