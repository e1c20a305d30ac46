"""What Hypothesis runs when it is imported: `st.from_type(ml_dtypes.bfloat16)` works, in every project, without asking.

Of the package only the formats are loaded here; the strategies when one of them is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precision_lab.numerics.formats import FORMATS

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def scalar_types() -> list[type[Any]]:
    """Return the scalars of ml_dtypes that a registered format has."""
    types = [fmt.dtype.type for fmt in FORMATS.values() if fmt.dtype is not None]
    return [scalar for scalar in types if scalar.__module__ == "ml_dtypes"]


def _values(scalar_type: type[Any]) -> SearchStrategy[Any]:
    from precision_lab.testing.strategies import values

    return values(scalar_type)


def register() -> None:
    """Tell Hypothesis how to draw the scalars of ml_dtypes."""
    from hypothesis import strategies as st

    for scalar in scalar_types():
        st.register_type_strategy(scalar, _values)
