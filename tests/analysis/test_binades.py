"""NumPy and the compiled loops count the same, cell by cell; and when which of them does."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from precision_lab.analysis import binades
from precision_lab.analysis.binades import Counts, count_plainly
from tests.analysis.test_histogram import CARRIERS, arrays, boundaries

Array = NDArray[Any]


def count_compiled(x: Array) -> Counts:
    tally = binades._Tally.taken(x.dtype)
    tally.add(x)
    return tally.end()


def assert_same(x: Array) -> None:
    plain, compiled = count_plainly(x), count_compiled(x)
    assert plain == compiled._replace(table=plain.table)
    assert plain.table.dtype == compiled.table.dtype == np.int64
    assert np.array_equal(plain.table, compiled.table)
    assert plain.nonzero == plain.table.sum()
    assert plain.zero + plain.nonfinite + plain.nonzero == x.size


def patterns(dtype: np.dtype[Any], count: int, seed: int) -> Array:
    """Random bits: every class of a binade is as likely as it is among the floats."""
    return np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
def test_all_boundaries(dtype: np.dtype[Any]) -> None:
    x = boundaries(dtype)
    assert_same(x)
    for start in range(0, x.size, 997):  # and the extremes of parts
        assert_same(x[start : start + 5])


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_all_16_bit_patterns(narrow: str, dtype: np.dtype[Any]) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16).view(getattr(ml_dtypes, narrow, narrow))
    with np.errstate(invalid="ignore"):
        x = codes.astype(np.float32).astype(dtype)
    assert_same(x)
    for start in range(0, x.size, 1 << 12):
        assert_same(x[start : start + (1 << 12)])


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 200_000])
def test_random_bits(size: int, dtype: np.dtype[Any]) -> None:
    """Sizes around the blocks of the loop, whose last ones are filled up with zeros."""
    x = patterns(dtype, size, seed=size)
    assert_same(x)
    with np.errstate(all="ignore"):
        assert_same(x * dtype.type(np.finfo(dtype).tiny))  # subnormals
        assert_same(np.where(np.arange(size) % 3 == 0, x, dtype.type(0)))


@pytest.mark.parametrize("dtype", CARRIERS, ids=str)
def test_every_pattern_of_the_top_bits(dtype: np.dtype[Any]) -> None:
    """Signs, exponents, the leading bits of the fraction; what follows is nothing, one, or all ones."""
    shift = 8 * dtype.itemsize - 18
    top = np.arange(1 << 18).astype(f"u{dtype.itemsize}") << shift
    for low in (0, 1, 2, (1 << shift) - 2, (1 << shift) - 1):
        assert_same((top | low).view(dtype))


@settings(deadline=None, max_examples=200)
@given(arrays())
def test_any_array(x: Array) -> None:
    assert_same(x)


def test_one_after_the_other_leaves_nothing_behind() -> None:
    first = count_compiled(np.array([1e30, 1e-40, np.nan, 0], np.float32))
    assert (first.zero, first.nonfinite, first.table.sum()) == (1, 1, 2)
    empty = count_compiled(np.zeros(0, np.float32))
    assert (empty.zero, empty.nonfinite, empty.min_nonzero, empty.max_abs, empty.table.size) == (0, 0, None, None, 0)


def test_signalling_nans_do_not_warn() -> None:
    x = np.array([0x7F800001, 0xFF800001, 0x7FC00000], np.uint32).view(np.float32)
    with np.errstate(all="raise"):
        assert count_plainly(x).nonfinite == 3


def loads_the_compiler(program: str) -> bool:
    """Run a program in a fresh interpreter; return whether it loaded numba."""
    begin = "import sys\nimport numpy as np\nfrom precision_lab import ExponentHistogram\n"
    end = "\nprint('numba' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", begin + program + end], capture_output=True, text=True, check=True, timeout=120
    )
    return {"True": True, "False": False}[done.stdout.splitlines()[-1]]


@pytest.mark.parametrize(
    ("program", "loaded"),
    [
        ("ExponentHistogram.of(np.ones(100_000))", False),
        ("ExponentHistogram.of_chunks([np.ones(1000)] * 100)", False),
        ("ExponentHistogram.of(np.ones(5_000_000, np.float32))", True),
        ("for _ in range(10): ExponentHistogram.of(np.ones(600_000, np.float32))", True),  # together it is much
        ("for _ in range(5000): ExponentHistogram.of(1.5)", True),
    ],
)
def test_little_needs_no_compiler(program: str, loaded: bool) -> None:
    assert loads_the_compiler(program) is loaded
