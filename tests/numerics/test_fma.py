"""x * y + z rounded once, with the processor's instruction and without: the same bits, those of exact arithmetic."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.kernels import optimizers
from precision_lab.numerics.plans import even_constants

FP32 = FORMATS["fp32"]
TINY, LARGEST = 2.0**-149, FP32.max
singles = st.floats(width=32, allow_nan=False, allow_infinity=False)
near = st.builds(lambda k, e: math.ldexp(k, e), st.integers(-(2**24), 2**24), st.integers(-149, 100))


def exactly(x: float, y: float, z: float) -> float:
    """By rationals; the sign of an exact zero as IEEE 754 has it."""
    total = Fraction(x) * Fraction(y) + Fraction(z)
    if total:
        return float(reference.round_to(total, FP32))
    product_negative = math.copysign(1, x) * math.copysign(1, y) < 0
    both = x * y == 0 == z and product_negative and math.copysign(1, z) < 0
    return -0.0 if both else 0.0


def in_doubles(x: float, y: float, z: float) -> np.float32:
    found: np.float32 = np.float32(optimizers._fma_in_doubles(np.float32(x), np.float32(y), np.float32(z)))
    return found


@given(singles | near, singles | near, singles | near)
@example(1 + 2.0**-23, 1 + 2.0**-23, -(1 + 2.0**-22))  # all but 2^-46 cancels
@example(1.0, 1 + 2.0**-23, 2.0**-24)  # a tie
@example(1.0, 1 + 2.0**-23, 2.0**-24 + 2.0**-47)  # a tie but for a little, which float64 keeps
@example(2.0**-75, 2.0**-75, 1 + 2.0**-23)  # beside a weight that is odd
@example(1 + 2.0**-12, 2.0**-24 * (1 + 2.0**-12), 1.0)
@example(TINY, TINY, TINY)
@example(TINY, -0.5, TINY)
@example(LARGEST, LARGEST, -LARGEST)
@example(-0.0, 1.0, -0.0)
@example(1.0, 1.0, -1.0)
def test_in_doubles_it_is_exact(x: float, y: float, z: float) -> None:
    x, y, z = (float(np.float32(value)) for value in (x, y, z))
    found, expected = in_doubles(x, y, z), np.float32(exactly(x, y, z))
    assert found.tobytes() == expected.tobytes(), (x, y, z)


@pytest.mark.parametrize("infinite", [(0, 1, 2), (0,), (1,), (2,)])
def test_infinities_and_nan(infinite: tuple[int, ...]) -> None:
    for special in (math.inf, -math.inf, math.nan):
        x, y, z = (special if i in infinite else 0.5 for i in range(3))
        np.testing.assert_equal(in_doubles(x, y, z), np.float32(x * y + z))


def test_the_instruction_gives_the_same() -> None:
    """As the loops do it, on every processor: sums that cancel, ties, and all sizes."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    y[::2] = rng.standard_normal(100_000)
    x = np.float32(1 + 2.0**-11)
    with np.errstate(all="ignore"):
        z = np.nextafter(-(x * y), np.float32(0))
    z[1::4] = rng.permutation(y)[1::4]
    loop, wide = np.empty_like(y), np.empty_like(y)
    optimizers.scaled_sum_32(x, y, z, loop, even_constants(FP32))
    for i in range(0, y.size, 50):
        wide[i] = in_doubles(float(x), float(y[i]), float(z[i]))
    same = (loop[::50].view(np.uint32) == wide[::50].view(np.uint32)) | (np.isnan(loop[::50]) & np.isnan(wide[::50]))
    assert same.all()


@pytest.mark.parametrize("name", ["", "generic"])
def test_which_of_the_two_is_compiled(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_CPU")}
    environment |= {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""} if name else {}
    program = "from precision_lab.numerics.kernels.optimizers import HAS_FMA, _TRIPLE; print(HAS_FMA, _TRIPLE)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    has, triple = done.stdout.split()
    if name and triple.startswith("x86_64"):
        assert has == "False"
