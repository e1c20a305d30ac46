from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from precision_lab.cli import main

# files that take longest, the longest first: begun last, one of them would keep one process busy alone
LONG = (
    *("testing/test_casts_zoo.py", "testing/test_casts.py", "numerics/test_compiled.py", "testing/test_strategies.py"),
    *("presentation/test_notebook.py", "testing/test_accumulators.py", "presentation/test_accumulation.py"),
    *("test_claims.py", "test_flush_to_zero.py", "numerics/test_verification.py", "presentation/test_plots.py"),
    *("processes/test_parents.py", "cli/test_names.py", "numerics/test_accumulation.py", "processes/test_kills.py"),
    *("analysis/test_histogram.py", "analysis/test_swamping.py", "numerics/test_products.py", "cli/test_report.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files; `--no-loadscope-reorder` keeps that order where several processes share the work."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """Look for garbage rarely: thousands of tests stay to the end, and would be looked at again and again."""
    gc.set_threshold(20_000, 20, 100)


@dataclass(frozen=True)
class Finished:
    status: int
    out: str
    err: str


CommandLine: TypeAlias = Callable[..., Finished]


@pytest.fixture(autouse=True, scope="session")
def colours_are_not_asked_for() -> Iterator[None]:
    """Some CI asks for colours in all output, and then tables are as wide as a terminal, too."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def torch() -> Any:
    import torch  # missing torch is an error here, not a skip

    return torch


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Run `precision-lab` with arguments as its console script does, in this process."""

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["precision-lab", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1 if exit_.code else 0
        captured = capsys.readouterr()
        return Finished(status, captured.out, captured.err)

    return run


# Where the tests run in the background (nohup, `&` in a script), SIGINT is ignored: children inherit that, and Python
# then installs no handler. This is the one that it installs otherwise.
_INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from precision_lab.cli import main; main()"
)


def interrupted(*arguments: object, when: Callable[[], bool]) -> Finished:
    """Run `precision-lab` in processes of their own and press Ctrl-C there; none of them must be left."""
    with subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    ) as child:
        try:
            wait_until(lambda: when() or child.poll() is not None, 120)
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGINT)  # what a terminal does: to all processes
            out, err = child.communicate(timeout=60)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise

    def all_gone() -> bool:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(all_gone, 30)
    return Finished(child.returncode, out, err)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.02)
