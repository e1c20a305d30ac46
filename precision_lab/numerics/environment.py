"""The compiled loops, loaded at the first call and only where the floating-point environment is what IEEE 754 says."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

from precision_lab.support.environment import require_gradual_underflow


def load_kernels() -> ModuleType:
    """Return the compiled loops (the folder kernels), which are loaded at the first call and not at import.

    Raises
    ------
    FloatingPointError
        As `require_gradual_underflow`: so no loop is found, and no constants are made for one, that would flush.

    """
    require_gradual_underflow()
    return _kernels()


def kernels_are_loaded() -> bool:
    """Return whether the compiled loops are loaded, which takes a third of a second with their first call."""
    return "precision_lab.numerics.kernels" in sys.modules


def load_fixed_kernels() -> ModuleType:
    """Return the compiled loops of fixed.py, as `load_kernels` does the others."""
    require_gradual_underflow()
    return _fixed_kernels()


def load_layer_kernels() -> ModuleType:
    """Return the compiled loops of layers.py, as `load_kernels` does the others."""
    require_gradual_underflow()
    return _layer_kernels()


@cache  # an import statement that finds its module takes longer than the question
def _kernels() -> ModuleType:
    from precision_lab.numerics import kernels

    return kernels


@cache
def _fixed_kernels() -> ModuleType:
    from precision_lab.numerics.kernels import fixed

    return fixed


@cache
def _layer_kernels() -> ModuleType:
    from precision_lab.numerics.kernels import layers

    return layers
