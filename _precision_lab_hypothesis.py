"""What Hypothesis runs when it is imported: `st.from_type(ml_dtypes.bfloat16)` works, in every project, without asking.

It stands beside the package because importing the package would cost every user of Hypothesis a fifth of a second more:
of the package only the file of the formats is run here. The strategies are loaded when one of them is first asked for.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_NAME = "_precision_lab_formats"


def scalar_types() -> list[type[Any]]:
    """Return the scalars of ml_dtypes that a registered format has, without importing the package."""
    path = Path(__file__).with_name("precision_lab") / "numerics" / "formats.py"
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    formats = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = formats  # where dataclasses look for their module
    try:
        spec.loader.exec_module(formats)
    finally:
        del sys.modules[_NAME]
    types = [fmt.dtype.type for fmt in formats.FORMATS.values() if fmt.dtype is not None]
    return [scalar for scalar in types if scalar.__module__ == "ml_dtypes"]


def _values(scalar_type: type[Any]) -> SearchStrategy[Any]:
    from precision_lab.testing.strategies import values

    return values(scalar_type)


def register() -> None:
    """Tell Hypothesis how to draw the scalars of ml_dtypes."""
    from hypothesis import strategies as st

    for scalar in scalar_types():
        st.register_type_strategy(scalar, _values)
