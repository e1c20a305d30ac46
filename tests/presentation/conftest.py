from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def figures_are_closed() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:  # most tables and pages draw nothing
        sys.modules["matplotlib.pyplot"].close("all")
