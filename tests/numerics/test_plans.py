"""Constants on their way into compiled loops: named where they are made, named where they are read."""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pytest
from numba import njit

from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.kernels import bits
from precision_lab.numerics.plans import packed

kernels = load_kernels()
by_name: Any = bits.named
OF_BITS = [
    kernels.rounding.ByAddition,
    kernels.rounding.ByFields,
    kernels.rounding.ByMask,
    kernels.stochastic.ByChance,
    kernels.codes.Encoding,
    kernels.codes.EvenEncoding,
    kernels.codes.SharedEncoding,
    kernels.codes.Decoding,
    kernels.codes.SharedDecoding,
    kernels.optimizers.EvenFields,
    kernels.weights.Spacing,
    kernels.sums.Accumulator,
    kernels.tiles.Rounding,
]
OF_DOUBLES = [kernels.sums.InTurn]
OF_LOOPS = [kernels.products.Room]  # made by a loop, for itself


class Mixed(NamedTuple):
    """Not a loop's: integers and floats in turns, with the ends of both."""

    first: int
    infinity: float
    high: int
    tiny: float
    last: int


@njit
def read(constants: Any) -> Any:
    return by_name(Mixed, constants)


@pytest.mark.parametrize(("wide", "high"), [(False, 2**32 - 1), (True, 2**64 - 1)])
def test_what_is_packed_is_read_by_name(wide: bool, high: int) -> None:
    tiny = float(np.finfo(np.float64 if wide else np.float32).smallest_subnormal)
    given = Mixed(1, np.inf, high, tiny, 5)
    assert read(packed(given, wide)) == given


def test_doubles_are_read_by_name() -> None:
    given = Mixed(-126, np.inf, 2**31, 5e-324, 0)
    seen = read(np.array(given))
    assert seen == given
    assert [type(x) for x in seen] == [int, float, int, float, int]


@pytest.mark.parametrize("layout", OF_BITS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("wide", [False, True])
def test_each_constant_has_a_place_of_its_own(layout: Any, wide: bool) -> None:
    kinds = get_type_hints(layout).values()
    array = packed(layout(*range(1, len(kinds) + 1)), wide)
    floats = array.view(np.float64 if wide else np.float32)
    assert [f if kind is float else i for kind, f, i in zip(kinds, floats, array, strict=True)] == list(
        range(1, len(kinds) + 1)
    )


def test_every_layout_is_here() -> None:
    """Those of the kernels, so that a new one is seen to be of ints and floats."""
    layouts = {
        value
        for part in kernels.__all__
        for value in vars(getattr(kernels, part)).values()
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields")
    }
    assert layouts == {*OF_BITS, *OF_DOUBLES, *OF_LOOPS}
    assert {kind for layout in layouts for kind in get_type_hints(layout).values()} == {int, float}
