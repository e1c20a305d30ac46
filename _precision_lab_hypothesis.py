"""What Hypothesis runs when it is imported: `st.from_type(ml_dtypes.bfloat16)` works, in every project, without asking.

It stands beside the package because importing the package would cost every user of Hypothesis a quarter of a second,
where ml_dtypes and NumPy cost a tenth. The strategies are loaded when one of them is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NAMES = (
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float4_e2m1fn",
)


def _values(scalar_type: type[Any]) -> SearchStrategy[Any]:
    from precision_lab.testing.strategies import values

    return values(scalar_type)


def register() -> None:
    """Tell Hypothesis how to draw the scalars of ml_dtypes."""
    import ml_dtypes
    from hypothesis import strategies as st

    for name in NAMES:
        st.register_type_strategy(getattr(ml_dtypes, name), _values)
