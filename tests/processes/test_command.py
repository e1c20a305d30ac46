"""Every way for the command to end has its status, and at most one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from precision_lab import cli
from precision_lab.support import ending
from tests.conftest import CommandLine, wait_until
from tests.processes.helpers import ROOT, command, left, linux, members

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "precision_lab", "scan", "--nothing"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("(see 'precision-lab scan --help')\n")
    assert done.stderr.count("\n") == 1


def test_workers_of_the_module_do_not_run_the_command_again() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *["precision_lab", "train", "--steps", "2", "--seeds", "1", "--storage", "pure_bf16", "--workers", "2"],
        ],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "pure_bf16" in done.stdout


# ---- the first second ----


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [(signal.SIGINT, 130, "\nprecision-lab: interrupted\n"), (signal.SIGTERM, 143, "precision-lab: terminated\n")],
)
@pytest.mark.parametrize("module", ["numpy", "click"])
def test_a_signal_while_the_package_is_imported(
    tmp_path: Path, module: str, how: signal.Signals, status: int, said: str
) -> None:
    # a stand-in, so that the signal comes in the midst of it on any machine
    (tmp_path / f"{module}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(1000)\n")
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.path.insert(0, {str(tmp_path)!r}); from precision_lab.__main__ import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "formats"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "importing\n"
        child.send_signal(how)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (status, said)


def test_the_command_loads_nothing_before_it_answers_signals() -> None:
    program = "import sys; before = set(sys.modules); import precision_lab.__main__; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    loaded = set(done.stdout.split())
    assert "precision_lab.support.ending" in loaded
    assert not {"numpy", "ml_dtypes", "click", "rich", "precision_lab.cli"} & loaded


# ---- SIGTERM ----


def test_sigterm_twice_is_answered_once(tmp_path: Path) -> None:
    """As `timeout` sends it: to the command, and to its group."""
    kept = tmp_path / "runs.jsonl"
    options = ("--storage", "all", "--steps", 300, "--seeds", 3, "--workers", 2, "--checkpoint", kept)
    with command("train", *options) as child:
        wait_until(lambda: kept.exists() and bool(kept.read_bytes()), 120)
        child.terminate()
        os.killpg(child.pid, signal.SIGTERM)
        out, err = child.communicate(timeout=60)
        assert left(child.pid) == []
    assert (child.returncode, out, err) == (143, "", "precision-lab: terminated\n")


def test_the_answer_to_sigterm_is_the_commands_only(command_line: CommandLine) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert command_line("formats").status == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_sigterm_stays_ignored_where_it_was() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ending.terminable():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_within_the_process() -> None:
    """The same, answered."""
    with pytest.raises(ending.Terminated), ending.terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_a_destructor_is_not_lost(how: signal.Signals) -> None:
    """Python can raise nothing there; without more ado nobody would hear of it."""

    class Dies:
        def __del__(self) -> None:
            os.kill(os.getpid(), how)
            sum(range(100))  # here it is answered

    def dies() -> None:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with ending.terminable():
                Dies()
                threading.Event().wait(30)
                pytest.fail("it was lost")
        finally:
            signal.signal(signal.SIGINT, before)

    with pytest.raises(KeyboardInterrupt) as caught:
        dies()
    assert isinstance(caught.value, ending.Terminated) == (how is signal.SIGTERM)


def test_the_command_runs_in_a_thread_too(command_line: CommandLine) -> None:
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(command_line, "formats").result().status == 0


# ---- what click would answer itself ----


def test_an_end_of_data_is_no_ctrl_c(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: object) -> NoReturn:
        raise EOFError("Ran out of input")

    monkeypatch.setattr("precision_lab.numerics.inspection.parse_number", ends)
    finished = command_line("inspect", "1")
    assert finished.status == 2
    assert finished.err == "precision-lab: error: something ended before it was whole: Ran out of input\n"


@pytest.mark.parametrize("call", ["raise SystemExit(7)", "import sys; sys.exit()", "raise SystemExit('stop')"])
def test_a_module_of_a_cast_that_exits(tmp_path: Path, call: str) -> None:
    (tmp_path / "leaving.py").write_text(call)
    with command("verify", "--cast", "leaving:f", "--source", "fp32", "--target", "bf16", cwd=tmp_path) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("precision-lab: error: cannot import leaving: SystemExit")


@linux
@pytest.mark.parametrize(
    "arguments", ["formats", "inspect 1 2 3", "--help", "scan --help", "--version", "verify -f e2m1 --cast numpy:f"]
)
def test_nobody_reads_the_output(arguments: str) -> None:
    """Whoever prints it, rich, click or Python at the end; the reader has gone before the first line."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "precision_lab", *arguments.split()],
            stdout=writes,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writes)
    if "--cast" in arguments:  # bad input is said all the same
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    else:
        assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_pipe_of_windows_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(22, "Invalid argument")
    assert not cli._nobody_reads(error)
    monkeypatch.setattr(os, "name", "nt")
    assert cli._nobody_reads(error)
    assert not cli._nobody_reads(OSError(22, "Invalid argument", "a:b"))  # a bad name


def test_more_processes_than_anybody_means(command_line: CommandLine) -> None:
    most = 4 * (os.cpu_count() or 1)
    clusters = [["train", "--dask", "local"]] if find_spec("distributed") else []
    for arguments in (["train"], ["report"], ["scan", "x.npy"], *clusters):
        finished = command_line(*arguments, "--workers", 100_000)
        assert finished.status == 2
        assert finished.err.startswith(f"precision-lab: error: workers must be at most {most} ")
        assert finished.err.count("\n") == 1


@linux
@pytest.mark.distributed
@pytest.mark.parametrize("when", ["starting", "training"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_local_cluster_ends_with_the_command(tmp_path: Path, when: str, how: signal.Signals) -> None:
    kept = tmp_path / "runs.jsonl"
    options = ("--steps", 3000, "--seeds", 4, "--dask", "local", "--workers", 2, "--checkpoint", kept)
    with command("train", *options) as child:
        if when == "starting":
            wait_until(lambda: len(members(child.pid)) > 1, 120)
        else:
            wait_until(lambda: kept.exists() and kept.stat().st_size > 0, 120)
        (os.killpg if how is signal.SIGINT else os.kill)(child.pid, how)
        out, err = child.communicate(timeout=120)
        assert left(child.pid, 60) == []
    if how is not signal.SIGKILL:
        said = {signal.SIGTERM: (143, "precision-lab: terminated"), signal.SIGINT: (130, "precision-lab: interrupted")}
        assert (child.returncode, err.strip()) == said[how]
    assert out == ""
