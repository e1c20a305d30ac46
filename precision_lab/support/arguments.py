"""What is asked of arguments alike everywhere."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np


def is_integer(value: object) -> TypeGuard[int | np.integer[Any]]:
    """Return whether it is an integer; a bool is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an integer, Python's or NumPy's, as Python's.

    Raises
    ------
    ValueError
        It is none, or out of range; the message names the argument and what is accepted.

    """
    if not is_integer(value) or value < least or (most is not None and value > most):
        accepted = f"of at least {least}" if most is None else f"in {least}..{_text(most)}"
        raise ValueError(f"{name} must be an integer {accepted}, got {value!r}")
    return int(value)


def _text(most: int) -> str:
    """Write large powers of two as such."""
    return f"2^{most.bit_length() - 1}" if most > 2**20 and most.bit_count() == 1 else str(most)
