"""Integers as arguments: Python's and NumPy's alike, and no bool."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precision_lab.support.arguments import check_integer, is_integer


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_python_and_of_numpy(value: Any) -> None:
    assert is_integer(value)
    checked = check_integer("n", value, 3, 3)
    assert checked == 3
    assert type(checked) is int


@pytest.mark.parametrize("value", [True, np.bool_(1), 3.0, np.float64(3), "3", None, [3], np.array([3])])
def test_what_is_no_integer(value: Any) -> None:
    assert not is_integer(value)
    with pytest.raises(ValueError, match=r"^n must be an integer of at least 0, got "):
        check_integer("n", value, 0)


@pytest.mark.parametrize(
    ("value", "least", "most", "accepted"),
    [
        (0, 1, None, "of at least 1"),
        (9, 1, 8, r"in 1\.\.8"),
        (0, 1, 8, r"in 1\.\.8"),
        (2**27 + 1, 1, 2**27, r"in 1\.\.2\^27"),
        (10**400, -5, 10**9, r"in -5\.\.1000000000"),
    ],
)
def test_the_range_is_said(value: int, least: int, most: int | None, accepted: str) -> None:
    with pytest.raises(ValueError, match=rf"^n must be an integer {accepted}, got {value}$"):
        check_integer("n", value, least, most)
