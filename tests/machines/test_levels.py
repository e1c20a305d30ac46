"""The digests of every level are the committed ones: ``make test-machines``, and of the combined level in CI."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.machines.levels import AS_IT_IS, COMBINED, LEVELS, WORKERS
from tests.machines.test_digests import COMMITTED

ROOT = Path(__file__).parents[2]


def run(level: str, folder: Path, runs: str = "") -> dict[str, Any]:
    """Compute digests in a process of this level, with a cache of compiled loops of its own where it needs one."""
    environment = os.environ | LEVELS[level] | {"PYTHONPATH": str(ROOT)}
    if "NUMBA_CPU_NAME" in LEVELS[level]:
        environment["NUMBA_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-m", "tests.machines.digests", "--runs", runs, "--workers", str(WORKERS.get(level, 2))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.fixture(scope="module")
def as_it_is(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the libraries say, and the witnesses, without a level."""
    return run(AS_IT_IS, tmp_path_factory.mktemp("cache"), "functions of float32")


@pytest.mark.machines
@pytest.mark.parametrize("level", LEVELS)
def test_the_digests_of_a_level(level: str, as_it_is: dict[str, Any], tmp_path: Path) -> None:
    printed = run(level, tmp_path)
    differing = [name for name, digest in COMMITTED.items() if printed["digests"].get(name) != digest]
    print(f"\n{level}: {printed['processor']}; {len(COMMITTED) - len(differing)} of {len(COMMITTED)} digests equal")
    assert differing == []
    assert list(printed["digests"]) == list(COMMITTED)
    _check_in_force(level, printed, as_it_is)


def _check_in_force(level: str, printed: dict[str, Any], plain: dict[str, Any]) -> None:
    """The level is in force: the libraries say so, and where it changed theirs, the witnesses are others."""
    changed, here = LEVELS[level], printed["processor"]
    if "NUMBA_CPU_NAME" in changed:
        assert here["numba"] == "generic"
    if platform.machine() != "x86_64":
        return  # the other names are those of x86-64
    if "NPY_DISABLE_CPU_FEATURES" in changed:
        assert not set(here["NumPy"]) & set(changed["NPY_DISABLE_CPU_FEATURES"].split())
    if "OPENBLAS_NUM_THREADS" in changed:
        assert here["threads"] == [int(changed["OPENBLAS_NUM_THREADS"])]
    for library in ("BLAS", "NumPy"):
        if here[library] != plain["processor"][library] and level != "NumPy without AVX-512":
            assert printed["witnesses"][library] != plain["witnesses"][library], library
    if "OPENBLAS_CORETYPE" in changed:  # Prescott calls itself Katmai
        assert here["BLAS"] in ([changed["OPENBLAS_CORETYPE"]], ["Katmai"], ["Nehalem"])
    if level == COMBINED and "GLIBC_TUNABLES" not in os.environ and "fma" in _flags():
        assert printed["witnesses"]["libm"] != plain["witnesses"]["libm"]


def _flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
