from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from precision_lab import FORMATS, decode
from precision_lab.presentation.plots.formats import plot_number_line, plot_spacing
from precision_lab.presentation.plots.style import style


def axes() -> Any:
    return Figure().add_subplot()


def test_every_value_has_a_line() -> None:
    ax = plot_number_line(("fp4_e2m1fn", "fp8_e4m3fn"), span=(0, 2), ax=axes(), title="values")
    drawn = [np.sort([line[0][0] for line in lines.get_segments()]) for lines in ax.collections]  # type: ignore[attr-defined]
    assert drawn[0].tolist() == [0, 0, 1, 1.5, 2]  # 0 and -0
    assert drawn[1].tolist() == [0.5]  # the only subnormal of fp4
    values = np.asarray(decode(np.arange(256, dtype=np.uint8), "fp8_e4m3fn"))
    assert sum(map(len, drawn[2:])) == ((values >= 0) & (values <= 2)).sum()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fp4_e2m1fn", "fp8_e4m3fn"]


def test_wide_formats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 16 bits.*got fp32"):
        plot_number_line(("fp32",), ax=axes())


def test_the_distance_is_eps_at_one() -> None:
    names = ("fp32", "bf16", "fp16", "fp8_e5m2")
    ax = plot_spacing(names, ax=axes())
    for name, line in zip(names, ax.lines, strict=True):
        at, gap = (np.asarray(data) for data in line.get_data())
        fmt = FORMATS[name]
        assert gap[at == 0] == np.log2(fmt.eps)
        assert at.max() == min(20, fmt.emax)
        assert gap.min() >= np.log2(fmt.smallest_subnormal)


def test_the_style_leaves_interactive_mode_alone() -> None:
    """A notebook's backend switches it on with the first figure, which is made in our style."""
    was = matplotlib.is_interactive()
    try:
        for wanted in (True, False):
            with style():
                matplotlib.interactive(wanted)
            assert matplotlib.is_interactive() == wanted
    finally:
        matplotlib.interactive(was)
