"""The floating-point environment of this thread: subnormal numbers must be what IEEE 754 says.

Processors have switches that make zeros of subnormal results (flush to zero, FTZ) or operands (denormals are zero,
DAZ). They belong to a thread, and new threads and forked processes inherit them. Where one is on, NumPy and the
compiled loops lose every subnormal number, without a word. So whatever computes asks here first, which takes less than
100 ns.

The question is asked by arithmetic, not by reading a register: it is the same on every processor, and an answer about
the very thread that computes.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

# from its bits: under flush to zero the compiler of Python reads 5e-324 as 0.0, and keeps that in the .pyc
(_SUBNORMAL,) = struct.unpack("=d", struct.pack("=Q", 1))
_ONE = 1.0  # a variable, so that the product is taken when it is asked for


_ROOM = 256  # bytes for an fenv_t, which has 8 to 32


def flushes_subnormals() -> bool:
    """Return whether this thread flushes subnormal numbers to zero."""
    product: float = _SUBNORMAL * _ONE
    return product == 0.0


def keep_environment() -> Callable[[], None] | None:
    """Return a function that makes the switches of this thread what they are at this call; None where C has none."""
    kept = (ctypes.c_ubyte * _ROOM)()
    try:
        library = ctypes.CDLL(None)
        get, put = library.fegetenv, library.fesetenv
    except (AttributeError, OSError, TypeError):  # Windows
        return None
    if get(kept) != 0:
        return None
    return lambda: put(kept) and None


def require_gradual_underflow(since: str = "") -> None:
    """Raise FloatingPointError where this thread flushes subnormal numbers to zero.

    Parameters
    ----------
    since : str
        For the message, where it is known: ``since the function was called``.

    Raises
    ------
    FloatingPointError
        With who does such a thing and the cure, in one line.

    """
    if flushes_subnormals():
        raise FloatingPointError(
            f"subnormal numbers are flushed to zero in this thread{f' {since}' if since else ''}, and every answer "
            "could be wrong: torch.set_flush_denormal(True) or a library built with -ffast-math has switched it on; "
            "switch it off with torch.set_flush_denormal(False), or without torch on Linux with "
            "ctypes.CDLL(None).fesetenv(ctypes.c_void_p(-1)), in the thread that computes"
        )
