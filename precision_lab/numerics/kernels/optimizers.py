"""The arithmetic of optimizers, each operation rounded as it is done.

What training/optimizers.py computes, R being `_even` with the constants of codec.py. A sum with a product in it is
one fma, as in torch's vectorised loops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import MAGNITUDE, SIGN, U32, reinterpret
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.rounding import finish


@intrinsic
def _fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Compute x * y + z, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return x(x, x, x), codegen


@compiled()
def _hoist(c):
    """Read the constants of `_even` once a call."""
    floats = (reinterpret(c[3]), reinterpret(c[4]), reinterpret(c[5]), reinterpret(c[6]))
    return c[0], c[1], c[2], floats, (SIGN, np.float32(0), c[7], c[8], c[9])


@compiled()
def _even(x, k):
    """Round one float32, ties to even: by fields, and by addition below the smallest normal; for any format."""
    keep, last, below_half, (smallest_normal, shift_out, largest, overflow), tail = k
    b = reinterpret(np.float32(x))
    a = U32(b & MAGNITUDE)
    v = reinterpret(a)
    odd = U32(1) if U32(a & last) != U32(0) else U32(0)
    r = reinterpret(U32(U32(U32(a + below_half) + odd) & keep))
    r = np.float32(np.float32(v + shift_out) - shift_out) if v < smallest_normal else r
    r = overflow if r > largest else r
    r = v if v != v else r
    return reinterpret(finish(r, b, tail, U32, np.float32))


@compiled()
def scaled_sum_32(x, y, z, out, c):
    """Compute R(x * y + z) of a float32 number x and arrays."""
    k = _hoist(c)
    for i in range(y.size):
        out[i] = _even(_fma(x, y[i], z[i]), k)


@compiled()
def lerp_32(weight, m, g, out, c):
    """Compute R(m + weight * (g - m)) from the nearer end, as torch does."""
    k = _hoist(c)
    near = weight < np.float32(0.5)
    factor = weight if near else np.float32(weight - np.float32(1))
    for i in range(m.size):
        out[i] = _even(_fma(factor, np.float32(g[i] - m[i]), m[i] if near else g[i]), k)


@compiled()
def mean_square_32(beta, rest, v, g, out, c):
    """Compute R(R(beta * v) + (rest * g) * g)."""
    k = _hoist(c)
    for i in range(v.size):
        out[i] = _even(_fma(np.float32(rest * g[i]), g[i], _even(np.float32(beta * v[i]), k)), k)


@compiled(error_model="numpy")  # division by zero is no error
def adam_direction_32(scale, correction, epsilon, m, v, out, c):
    """Compute (scale * m) / R(R(R(sqrt(v)) / correction) + epsilon)."""
    k = _hoist(c)
    for i in range(m.size):
        root = _even(np.float32(np.sqrt(v[i])), k)
        d = _even(np.float32(_even(np.float32(root / correction), k) + epsilon), k)
        out[i] = np.float32(np.float32(scale * m[i]) / d)
