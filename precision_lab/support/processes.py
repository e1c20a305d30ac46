"""Processes: how many there should be, and that they end when their parent does."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from precision_lab.support.reading import InputError, read_small

_PER_CORE = 4  # processes that anybody may ask for
_WINDOWS = 61  # handles that Windows waits for at once
_PR_SET_PDEATHSIG = 1


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: by its affinity and by the quotas of its control groups.

    Parameters
    ----------
    root : Path
        Where proc and sys are.

    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    cores = min([cores, *(max(math.ceil(quota), 1) for quota in _quotas(root))])
    return min(cores, _WINDOWS) if os.name == "nt" else cores


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the groups that this process is in, and of those that they are in."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers
        folder = base / group.lstrip("/")
        # in a container the group's name may be the host's; the container's own is at the base then
        for place in (folder, *folder.parents):
            if controllers:
                quota, period = _text(place / "cpu.cfs_quota_us"), _text(place / "cpu.cfs_period_us")
            else:
                quota, _, period = _text(place / "cpu.max").partition(" ")
            with suppress(ValueError, ZeroDivisionError):  # 'max', nothing
                if (cores := int(quota) / int(period)) > 0:  # -1: none
                    yield cores
            if place == base:
                break


def _text(path: Path) -> str:
    try:
        return read_small(path, 1 << 16).decode(errors="replace").strip()
    except (OSError, InputError):
        return ""


def number_of_processes(count: int | None) -> int:
    """Return how many processes to start where so many are asked for, None one for each core.

    Raises
    ------
    ValueError
        Fewer than one, or more than this machine can be meant to run.

    """
    if count is None:
        return usable_cores()
    if count < 1:
        raise ValueError(f"workers must be an integer of at least 1, got {count}")
    cores = os.cpu_count() or 1
    most = min(_PER_CORE * cores, _WINDOWS) if os.name == "nt" else _PER_CORE * cores
    if count > most:
        raise ValueError(
            f"workers must be at most {most} on this machine of {cores} cores, got {count}; take {usable_cores()}"
        )
    return count


def end_with_parent(wait: Callable[[], object]) -> None:
    """End this process when its parent does, in the middle of whatever it computes.

    A thread waits. Compiled code that holds Python's lock keeps it waiting, too: our own does not.

    Parameters
    ----------
    wait : callable
        Returns when the parent has ended.

    """

    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def end_with_forking_thread(parent: int) -> None:
    """End this forked process when the thread of `parent` that forked it does, in whatever code it is.

    On Linux the kernel does that. Elsewhere a thread looks for a new parent, which only code that holds Python's lock
    for ever can prevent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != parent:  # it ended before that
            os._exit(1)
    else:
        end_with_parent(lambda: wait_for_end_of(parent))


def wait_for_end_of(parent: int) -> None:
    """Return when this process has another parent; on Windows, where it keeps its number, never."""
    while os.getppid() == parent:
        time.sleep(0.5)
