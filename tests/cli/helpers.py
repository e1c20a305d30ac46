"""What commands say, taken apart, and what they say in a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from tests.conftest import Finished


def one_line(error: str) -> str:
    """Assert that an error is one line of ours, and return it."""
    assert error.count("\n") == 1, error
    assert error.startswith("precision-lab: error: ")
    assert "Traceback" not in error
    return error


def refusal(finished: Finished) -> str:
    """Assert status 2 and one line, and return it."""
    assert finished.status == 2
    return one_line(finished.err)


def row(output: str, name: str) -> str:
    """The first line of a table that holds a name."""
    return next(line for line in output.splitlines() if f" {name} " in line)


def cells(output: str, name: str) -> list[str]:
    """The cells of the row of a table that begins with a name."""
    line = next(line for line in output.splitlines() if line.strip("│ ").startswith(f"{name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def in_a_terminal(*arguments: str, columns: int = 160) -> str:
    """Run `precision-lab` with a pseudo-terminal as its output and return what it wrote there."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "50"}
    environment |= {"PYTHONIOENCODING": "utf-8"}  # what a terminal shows depends on the locale
    command = [sys.executable, "-c", "from precision_lab.cli import main; main()", *arguments]
    with subprocess.Popen(
        command, stdout=follower, stderr=follower, stdin=subprocess.DEVNULL, env=environment
    ) as child:
        os.close(follower)
        chunks = []
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
    os.close(leader)
    assert child.returncode == 0
    return b"".join(chunks).decode()
