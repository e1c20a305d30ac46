"""A cast that flushes, one whose process flushes, one that makes it do so: each is named as what it is."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from precision_lab.support.environment import flushes_subnormals, keep_environment
from precision_lab.testing import flush_watch
from precision_lab.testing.cast_report import CastReport
from precision_lab.testing.casts import assert_cast, check_cast
from precision_lab.testing.flush_watch import FlushWatch, Switch
from tests.flushing import SWITCHES, in_a_thread, needs_glibc_x86, switch_on
from tests.testing.functions import brain

pytestmark = needs_glibc_x86
Array: TypeAlias = NDArray[Any]
PROCESS, SETS, OWN = "the process flushes", "switches flush to zero on", "flushes subnormal results"


def by_itself(x: Array) -> Array:
    """Of subnormal inputs it makes zeros, whatever the process does."""
    x = x.astype(np.float32)
    return brain(np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x))


def by_arithmetic(x: Array) -> Array:
    """Right, unless the process flushes."""
    return brain(x.astype(np.float32) * np.float32(1))


def names(report: CastReport) -> list[str]:
    return [fault.name for fault in report.faults]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two libraries: one whose constructor sets the switch, as crtfastmath.o does, and one that does nothing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    source = (
        "#include <xmmintrin.h>\n__attribute__((constructor)) void set(void) { _mm_setcsr(_mm_getcsr() | 0x8040); }"
    )
    for name, text in (("libfast", source), ("libcalm", "int nothing;")):
        (folder / f"{name}.c").write_text(text + "\n")
        command = [compiler, "-shared", "-fPIC", f"{name}.c", "-o", f"{name}.so"]
        subprocess.run(command, cwd=folder, check=True, timeout=60)
    return {name: folder / f"{name}.so" for name in ("libfast", "libcalm")}


def check(cast: Callable[[Array], Any], source: str = "bf16") -> CastReport:
    return check_cast(cast, source, "bf16", nan="ignore")


# ---- what is no fault of a process ----


def test_a_cast_that_flushes_by_itself() -> None:
    assert names(check(by_itself)) == [OWN]


def test_a_cast_that_sets_it_and_puts_it_back() -> None:
    """As compilers do around a function: it is the cast that flushes, nothing else does."""

    def cast(x: Array) -> Array:
        put_back = keep_environment()
        assert put_back is not None
        switch_on(SWITCHES["both"])
        y = by_arithmetic(x)
        put_back()
        return y

    assert names(check(cast)) == [OWN]


# ---- libraries ----


def loads(library: Path, cast: Callable[[Array], Array], at: Callable[[Array], bool] = lambda x: True) -> Any:
    def loading(x: Array) -> Array:
        if at(x):
            ctypes.CDLL(str(library))
        return cast(x)

    return loading


def test_a_library_that_makes_its_process_flush(libraries: dict[str, Path]) -> None:
    report = check(loads(libraries["libfast"], by_arithmetic))
    assert names(report) == [PROCESS]
    assert "since a call loaded libfast.so, as a library built with -ffast-math does" in str(report)
    assert "all that follows is with the switch off" in str(report)
    assert report.wrong == 0
    with pytest.raises(AssertionError, match="libfast"):
        assert_cast(loads(libraries["libfast"], by_arithmetic), "bf16", "bf16", nan="ignore")


def test_a_library_that_is_loaded_late(libraries: dict[str, Path]) -> None:
    report = check(loads(libraries["libfast"], by_arithmetic, lambda x: bool((x == 3).any())))
    assert names(report) == [PROCESS]


def test_a_library_that_does_not(libraries: dict[str, Path]) -> None:
    assert check(loads(libraries["libcalm"], by_arithmetic)).ok


def test_what_is_the_casts_own_is_named_too(libraries: dict[str, Path]) -> None:
    """Truncation and flushing of its own, in a process that flushes."""

    def truncates(x: Array) -> Array:
        codes: Array = ((x * np.float32(1)).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return codes

    assert names(check(loads(libraries["libfast"], truncates), "fp32")) == [PROCESS, "truncates"]
    assert names(check(loads(libraries["libfast"], by_itself))) == [PROCESS, OWN]


@pytest.fixture
def importable(
    tmp_path: Path, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Array], Array]]:
    """A module that loads the library when it is imported, but for here."""
    text = f"""import ctypes, sys, ml_dtypes, numpy
if "pytest" not in sys.modules:
    ctypes.CDLL({str(libraries["libfast"])!r})
def cast(x):
    return (x.astype(numpy.float32) * numpy.float32(1)).astype(ml_dtypes.bfloat16)
"""
    (tmp_path / "module_of_a_fast_library.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import module_of_a_fast_library as module  # type: ignore[import-not-found]

    yield module.cast
    del sys.modules[module.__name__]


def test_a_module_that_makes_its_process_flush(importable: Callable[[Array], Array]) -> None:
    report = check_cast(importable, "bf16", "bf16", isolate="spawn")
    assert names(report) == [PROCESS]
    assert "importing module_of_a_fast_library loaded" in str(report)
    assert "libfast.so" in str(report)


# ---- casts that set it themselves ----


def test_a_cast_that_sets_it_in_every_call() -> None:
    def cast(x: Array) -> Array:
        switch_on(SWITCHES["FTZ"])
        return by_arithmetic(x)

    report = check(cast)
    assert names(report) == [SETS, OWN]
    assert "after every call subnormal numbers are flushed to zero in the whole process" in str(report)


def test_a_cast_that_sets_it_once() -> None:
    done: list[Any] = []

    def cast(x: Array) -> Array:
        if not done:
            done.append(True)
            switch_on(SWITCHES["both"])
        return by_arithmetic(x)

    report = check(cast)
    assert names(report) == [SETS]
    assert "no library was loaded" in str(report)
    assert report.wrong == 0


@pytest.mark.torch
def test_torch_sets_it() -> None:
    import torch

    def cast(x: Array) -> Array:
        torch.set_flush_denormal(True)
        return by_arithmetic(x)

    assert names(check(cast))[0] == SETS


def test_it_is_told_of_a_cast_that_raises() -> None:
    def cast(x: Array) -> Array:
        switch_on(SWITCHES["both"])
        raise ValueError("never")

    assert {*names(check(cast))} == {SETS, "raises"}


# ---- the watch ----


def test_the_watch_puts_it_back() -> None:
    def program() -> list[Switch | None]:
        watch = FlushWatch()
        seen = [watch.look()]
        for bits in SWITCHES.values():
            switch_on(bits)
            assert flushes_subnormals()
            seen.append(watch.look())
            assert not flushes_subnormals()
        return seen

    assert in_a_thread(program) == [None, *[Switch("a call", "", True)] * len(SWITCHES)]


def test_where_it_cannot_be_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report does not say then whose the faults are."""
    monkeypatch.setattr(flush_watch, "keep_environment", lambda: None)

    def cast(x: Array) -> Array:
        switch_on(SWITCHES["both"])
        return by_arithmetic(x)

    report = check(cast)
    assert names(report)[0] == SETS
    assert "it cannot be undone here: which faults are the cast's own is not known" in str(report)


def test_where_libraries_have_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flush_watch, "_MAPPED", tmp_path / "nowhere")
    assert flush_watch._libraries() == frozenset()


def test_many_libraries_are_counted() -> None:
    assert flush_watch._in_words(frozenset("edcba")) == "a, b, c and 2 more"
    assert flush_watch._in_words(frozenset("ba")) == "a, b"
