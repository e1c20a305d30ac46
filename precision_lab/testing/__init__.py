"""For people who test their own rounding and sums: strategies for Hypothesis, checks of casts and dot products.

    from precision_lab.testing import assert_cast, check_accumulator, check_cast, hard_values

Each name is loaded from its module when it is first asked for: only the strategies need Hypothesis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precision_lab.testing.accumulator_report import AccumulatorReport as AccumulatorReport
    from precision_lab.testing.accumulators import check_accumulator as check_accumulator
    from precision_lab.testing.cast_report import CastReport as CastReport
    from precision_lab.testing.casts import assert_cast as assert_cast
    from precision_lab.testing.casts import check_cast as check_cast
    from precision_lab.testing.strategies import arrays as arrays
    from precision_lab.testing.strategies import codes as codes
    from precision_lab.testing.strategies import formats as formats
    from precision_lab.testing.strategies import hard_values as hard_values
    from precision_lab.testing.strategies import midpoints as midpoints
    from precision_lab.testing.strategies import near_midpoints as near_midpoints
    from precision_lab.testing.strategies import rounding_modes as rounding_modes
    from precision_lab.testing.strategies import values as values
else:  # or every misspelled name would be right

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


_STRATEGIES = ("arrays", "codes", "formats", "hard_values", "midpoints", "near_midpoints", "rounding_modes", "values")
_MODULES = {
    "AccumulatorReport": "accumulator_report",
    "CastReport": "cast_report",
    "assert_cast": "casts",
    "check_accumulator": "accumulators",
    "check_cast": "casts",
    **dict.fromkeys(_STRATEGIES, "strategies"),
}

__all__ = [*_MODULES]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
