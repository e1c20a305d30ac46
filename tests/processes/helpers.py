"""Run `precision-lab` in a session of its own, and see who is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# as in tests/conftest.py: in the background SIGINT is ignored, and children inherit that
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from precision_lab.__main__ import main; {}main()"
)
BEGINS = "print('begins', flush=True); "
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")


def members(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, its, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            except (OSError, ValueError):  # it has just ended
                continue
            if int(its) == session and state not in "ZX":
                found.append(int(folder.name))
    return found


def left(session: int, seconds: float = 20) -> list[str]:
    """Return the command lines of who is left of a session after so many seconds, and end them."""
    end = time.monotonic() + seconds
    while (pids := members(session)) and time.monotonic() < end:
        time.sleep(0.02)
    lines = []
    for pid in pids:
        lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        os.kill(pid, signal.SIGKILL)
    return lines


@contextmanager
def command(
    *arguments: object, cwd: Path | None = None, says_when_it_begins: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Start it; at the end of the block nothing of it is left, whatever happens."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(BEGINS if says_when_it_begins else ""), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            for pid in members(child.pid):
                os.kill(pid, signal.SIGKILL)


def without_seconds(data: Any) -> Any:
    """Leave out what depends on the clock."""
    if isinstance(data, dict):
        return {key: without_seconds(value) for key, value in data.items() if key != "seconds"}
    return [without_seconds(value) for value in data] if isinstance(data, list) else data
