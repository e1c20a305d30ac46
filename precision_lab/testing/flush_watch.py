"""Notice that a call makes its process flush subnormal numbers to zero, say what did it, and undo it.

A cast that flushes and a cast in a process that flushes give the same results. They are told apart by arithmetic that
is not the cast's: where a product of a subnormal number and 1 is 0 after a call, the process flushes. Then the switch
is put back and the call made again: a library built with -ffast-math sets it once, when it is loaded; a function that
sets it itself does so again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from precision_lab.support.environment import flushes_subnormals, keep_environment

_MAPPED = Path("/proc/self/maps")  # Linux only: elsewhere no library is named
_NAMED = 3


class Switch(NamedTuple):
    """How a process came to flush subnormal numbers to zero.

    Attributes
    ----------
    during : str
        What was going on: ``a call``, or an import.
    loaded : str
        The libraries that were loaded meanwhile, in words; empty if none was.
    undone : bool
        Whether it could be switched off.
    again : bool
        Whether the call, made again, switched it on again.

    """

    during: str
    loaded: str
    undone: bool
    again: bool = False

    @property
    def name(self) -> str:
        """Of the fault: whose doing it is."""
        return "the process flushes" if self.loaded and not self.again else "switches flush to zero on"

    @property
    def text(self) -> str:
        """What did it, and what that means for the results."""
        left = "subnormal numbers are flushed to zero in the whole process"
        if self.name == "the process flushes":
            what = f"{left} since {self.during} loaded {self.loaded}, as a library built with -ffast-math does"
        elif self.again:
            what = f"after every call {left}: the cast sets the switch itself, as torch.set_flush_denormal(True) does"
        else:
            what = f"since {self.during} {left}, and no library was loaded: the switch was set, as by "
            what += "torch.set_flush_denormal(True)"
        if not self.undone:
            return f"{what}; it cannot be undone here: which faults are the cast's own is not known"
        return what if self.again else f"{what}; all that follows is with the switch off"


class FlushWatch:
    """Looks, in the process of a function, whether it flushes subnormal numbers to zero."""

    def __init__(self) -> None:
        self._put_back = keep_environment()
        self._loaded = _libraries()
        self._seen: Switch | None = None

    def look(self, during: str = "a call") -> Switch | None:
        """Return what has happened, after undoing it, if this process flushes; None if not."""
        if not flushes_subnormals():
            return None
        before, self._loaded = self._loaded, _libraries()
        if self._put_back is not None:
            self._put_back()
        self._seen = Switch(during, _in_words(self._loaded - before), not flushes_subnormals())
        return self._seen

    def taken(self) -> Switch | None:
        """Return, once, what happened outside of calls."""
        seen, self._seen = self._seen, None
        return seen if seen is not None and seen.during != "a call" else None


def _libraries() -> frozenset[str]:
    try:
        lines = _MAPPED.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    names = (Path(line.split(maxsplit=5)[-1]).name for line in lines)  # the last of six fields, if there are six
    return frozenset(name for name in names if ".so" in name)


def _in_words(libraries: frozenset[str]) -> str:
    named = sorted(libraries)
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more
