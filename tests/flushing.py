"""Threads that flush subnormal numbers to zero, for tests; the thread of pytest is never touched."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

Result = TypeVar("Result")

needs_glibc_x86 = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="the switches are set through glibc's fenv_t of x86-64",
)
SWITCHES = {"FTZ": 1 << 15, "DAZ": 1 << 6, "both": 1 << 15 | 1 << 6}  # bits of MXCSR
_AT = 28  # bytes before mxcsr in fenv_t, which has 32


def mxcsr() -> int:
    """Return the control word of this thread."""
    environment = (ctypes.c_ubyte * 32)()
    assert ctypes.CDLL(None).fegetenv(environment) == 0
    word: int = struct.unpack_from("<I", environment, _AT)[0]
    return word


def switch_on(bits: int) -> None:
    """Set bits in the control word of this thread."""
    environment = (ctypes.c_ubyte * 32)()
    library = ctypes.CDLL(None)
    assert library.fegetenv(environment) == 0
    struct.pack_into("<I", environment, _AT, mxcsr() | bits)
    assert library.fesetenv(environment) == 0


def reset() -> None:
    """Go back to the default, as the message of the error says."""
    ctypes.CDLL(None).fesetenv(ctypes.c_void_p(-1))


def in_a_thread(function: Callable[[], Result], bits: int = 0) -> Result:
    """Call a function in a thread of its own with these bits set, and return what it returns."""

    def run() -> Result:
        if bits:
            switch_on(bits)
        return function()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()
