"""Who is started ends with who started it: killed outright, while it computes, hangs, or is only beginning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes.helpers import ROOT, command, left, linux, members

pytestmark = linux

WORKERS = """
import time
from precision_lab.cli.workers import workers

if __name__ == "__main__":
    with workers(2) as executor:
        print("started", flush=True)
        {then}
        for _ in range(2):
            executor.submit(time.sleep, 1000)
        executor.submit(int).result()
"""
STARTING = "pass"
BUSY = "list(executor.map(time.sleep, [1, 1])); print('busy', flush=True)"


@pytest.mark.parametrize(("then", "says"), [(STARTING, "started"), (BUSY, "busy")])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path: Path, then: str, says: str, how: signal.Signals) -> None:
    (tmp_path / "program.py").write_text(WORKERS.format(then=then))
    with subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        while child.stdout.readline().strip() != says:
            assert child.poll() is None
        assert len(members(child.pid)) >= 3
        child.send_signal(how)  # to this process alone: nobody answers SIGTERM in a program that is not the command
        assert left(child.pid) == []


CASTS = """
import ctypes, time

def sleeps(x):
    print("called", flush=True)
    time.sleep(10**6)

def keeps_the_lock(x):  # as compiled code that does not let go of it: no thread of Python's runs meanwhile
    print("called", flush=True)
    ctypes.PyDLL(None).sleep(10**6)

def spins(x):
    import numba, numpy
    print("called", flush=True)

    @numba.njit
    def spin(state):
        while state[0] == 0:
            state[1] += 1

    spin.compile("(int64[:],)")
    print("spins", flush=True)
    spin(numpy.zeros(2, numpy.int64))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("cast", "says"), [("sleeps", "called"), ("keeps_the_lock", "called"), ("spins", "spins")])
def test_a_cast_that_hangs_ends_with_the_command(tmp_path: Path, cast: str, says: str, how: signal.Signals) -> None:
    (tmp_path / "hanging.py").write_text(CASTS)
    options = ("--cast", f"hanging:{cast}", "--source", "fp32", "--target", "bf16")
    with command("verify", *options, cwd=tmp_path) as child:
        assert child.stdout is not None
        while child.stdout.readline().strip() != says:
            assert child.poll() is None
        assert len(members(child.pid)) == 2
        child.send_signal(how)
        assert left(child.pid) == []
        _, err = child.communicate(timeout=20)
    status, said = {
        signal.SIGKILL: (-signal.SIGKILL, ""),
        signal.SIGTERM: (143, "precision-lab: terminated"),
        signal.SIGINT: (130, "precision-lab: interrupted"),
    }[how]
    assert (child.returncode, err.strip()) == (status, said)


def test_a_cast_in_a_new_interpreter_ends_with_a_killed_caller(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(
        "import time\ndef sleeps(x):\n    open('called', 'w').close()\n    time.sleep(10**6)\n"
    )
    (tmp_path / "program.py").write_text(
        "import hanging\nfrom precision_lab.testing.casts import check_cast\n"
        "check_cast(hanging.sleeps, 'bf16', 'bf16', isolate='spawn')\n"
    )
    with subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as child:
        while not (tmp_path / "called").exists():
            assert child.poll() is None
            time.sleep(0.02)
        assert len(members(child.pid)) == 2
        child.kill()
        assert left(child.pid) == []


def test_who_is_left_is_seen() -> None:
    """A process that outlives the one that started it, and is ended here."""
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])"
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as child:
        child.wait(timeout=60)
    time.sleep(0.1)
    (line,) = left(child.pid, 0.1)
    assert "time.sleep(1000)" in line
    assert left(child.pid) == []
