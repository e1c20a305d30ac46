"""What a loop over small arrays needs of a format, without the checks: round, encode, decode, and fused operations.

A training step on a few thousand parameters rounds some twenty arrays. There `round_to` and `encode` spend more time on
looking at their arguments than on the numbers. A `Codec` has looked once. Results are new arrays on purpose: a compiled
loop that reads and writes the same memory works on one element at a time, some five times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.codes import code_dtype
from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.numerics.plans import Array, decode_plan, encode_plan, even_constants, even_encode_plan, plan_of
from precision_lab.support.environment import require_gradual_underflow

_FP32 = get_format("fp32")


class Codec(NamedTuple):
    """Functions on contiguous one-dimensional arrays; nothing is checked but the environment of the thread.

    Each raises FloatingPointError where subnormal numbers are flushed to zero: a codec may be older than that.

    Attributes
    ----------
    round : callable
        float32 to the format's values in float32, ties to even. For fp32 this and the next two return their argument.
    encode : callable
        float32, rounded ties to even, to an array of `stored_dtype`.
    decode : callable
        An array of `stored_dtype` to float32.
    compute : callable
        ``compute(loop, *arguments)`` runs one of the loops of kernels/optimizers.py by name. The arguments are
        float32 numbers and then float32 arrays; the result is a float32 array.
    compute_pair : callable
        The same of the loops that have two results.
    constants : array
        What `compute` gives the loops beside their arguments.

    """

    round: Callable[[Array], Array]
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    compute: Callable[..., Array]
    compute_pair: Callable[..., tuple[Array, Array]]
    constants: Array


def stored_dtype(fmt: FloatFormat) -> np.dtype[Any]:
    """Return the dtype that a format is stored in: its own, or that of its codes where it has none (tf32, e6m9)."""
    return fmt.dtype or code_dtype(fmt)


@lru_cache(maxsize=256)
def codec(fmt: FloatFormat) -> Codec:
    """Return the codec of a format."""
    kernels = load_kernels()

    keeping_payloads = even_constants(fmt, payloads=True)
    even = keeping_payloads if fmt == _FP32 else even_constants(fmt)  # then nothing is left to be done

    def compute(loop: str, *arguments: Any) -> Array:
        require_gradual_underflow()
        out = np.empty(arguments[-1].size, np.float32)
        getattr(kernels.optimizers, loop)(*arguments, out, even)
        return out

    def compute_pair(loop: str, *arguments: Any) -> tuple[Array, Array]:
        require_gradual_underflow()
        first, second = np.empty((2, arguments[-1].size), np.float32)
        getattr(kernels.optimizers, loop)(*arguments, first, second, keeping_payloads)
        return first, second

    if fmt == _FP32:
        return Codec(_same, _same, _same, compute, compute_pair, even)
    plan = plan_of(fmt, RoundingMode.TIES_TO_EVEN, True, False, False)
    straight, (to_codes, encode_constants) = even_encode_plan(fmt, False), encode_plan(fmt, False)
    from_codes, decode_constants = decode_plan(fmt)
    codes_in, stored_in = code_dtype(fmt), stored_dtype(fmt)

    def round_(x: Array) -> Array:
        require_gradual_underflow()
        out = np.empty(x.size, np.float32)
        plan.kernel(x, out, plan.constants, False)
        return out

    def encode(x: Array) -> Array:
        require_gradual_underflow()
        codes = np.empty(x.size, codes_in)
        if straight is None:
            to_codes(round_(x), codes, encode_constants)
        else:
            straight[0](x, codes, straight[1], False)
        return codes.view(stored_in)

    def decode(stored: Array) -> Array:
        require_gradual_underflow()
        out = np.empty(stored.size, np.float32)
        from_codes(stored.view(codes_in), out, decode_constants, False)
        return out

    return Codec(round_, encode, decode, compute, compute_pair, even)


def adam(first: Codec, second: Codec, *arguments: Any) -> tuple[Array, Array, Array]:
    """Return the moments of Adam, which the codecs are for, and its direction: `Codec.compute` of three loops at once.

    The arguments are the numbers of ``lerp_32``, ``mean_square_32`` and ``adam_direction_32``, the moments as they
    were, and the gradient.
    """
    kernels = load_kernels()
    m, v, direction = np.empty((3, arguments[-1].size), np.float32)
    kernels.optimizers.adam_32(*arguments, m, v, direction, first.constants, second.constants)
    return m, v, direction


def largest_magnitude(x: Array) -> float:
    """Return the largest magnitude of a contiguous float32 array of one dimension; NaN where there is one."""
    return float(load_kernels().optimizers.largest_magnitude_32(x))


def _same(x: Array) -> Array:
    require_gradual_underflow()  # what is done with it next would be flushed
    return x
