"""What a loop over small arrays needs of a format, without the checks: round, encode, decode, and fused operations.

A training step on a few thousand parameters rounds some twenty arrays. There `round_to` and `encode` spend more time on
looking at their arguments than on the numbers. A `Codec` has looked once. Results are new arrays on purpose: a compiled
loop that reads and writes the same memory works on one element at a time, some five times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.environment import load_kernels, require_gradual_underflow
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.rounding import Array, RoundingMode, _encode_plan, _magnitude_bits, _plan, code_dtype

_FP32 = get_format("fp32")
_bits = partial(_magnitude_bits, False)


class Codec(NamedTuple):
    """Functions on contiguous one-dimensional arrays; nothing is checked but the environment of the thread.

    Each raises FloatingPointError where subnormal numbers are flushed to zero: a codec may be older than that.

    Attributes
    ----------
    round : callable
        float32 to the format's values in float32, ties to even. For fp32 this and the next two return their argument.
    encode : callable
        float32 values of the format to an array of `stored_dtype`.
    decode : callable
        An array of `stored_dtype` to float32.
    compute : callable
        ``compute(loop, *arguments)`` runs one of the loops of kernels/optimizers.py by name. The arguments are
        float32 numbers and then float32 arrays; the result is a float32 array.

    """

    round: Callable[[Array], Array]
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    compute: Callable[..., Array]


def stored_dtype(fmt: FloatFormat) -> np.dtype[Any]:
    """Return the dtype that a format is stored in: its own, or that of its codes where it has none (tf32, e6m9)."""
    return fmt.dtype or code_dtype(fmt)


@lru_cache(maxsize=256)
def codec(fmt: FloatFormat) -> Codec:
    """Return the codec of a format."""
    kernels = load_kernels()

    even = _even_constants(fmt)

    def compute(loop: str, *arguments: Any) -> Array:
        require_gradual_underflow()
        out = np.empty(arguments[-1].size, np.float32)
        getattr(kernels.optimizers, loop)(*arguments, out, even)
        return out

    if fmt == _FP32:
        return Codec(_same, _same, _same, compute)
    plan = _plan(fmt, RoundingMode.TIES_TO_EVEN, True, False, False)
    to_codes, encode_constants = _encode_plan(fmt, False)
    decode_constants = _decode_constants(fmt)
    codes_in, stored_in = code_dtype(fmt), stored_dtype(fmt)

    def round_(x: Array) -> Array:
        require_gradual_underflow()
        out = np.empty(x.size, np.float32)
        plan.kernel(x, out, plan.constants)
        return out

    def encode(x: Array) -> Array:
        require_gradual_underflow()
        codes = np.empty(x.size, codes_in)
        to_codes(x, codes, encode_constants)
        return codes.view(stored_in)

    def decode(stored: Array) -> Array:
        require_gradual_underflow()
        out = np.empty(stored.size, np.float32)
        kernels.codes.decode_32(stored.view(codes_in), out, decode_constants)
        return out

    return Codec(round_, encode, decode, compute)


def _same(x: Array) -> Array:
    require_gradual_underflow()  # what is done with it next would be flushed
    return x


def _even_constants(fmt: FloatFormat) -> Array:
    discarded = 23 - fmt.mantissa_bits
    last = 1 << discarded if discarded else 0
    if fmt.mantissa_bits == 0:
        last = 0x7F800000  # every significand but zero's is 1, odd
    # where the exponents are float32's own the fields serve for subnormals too
    smallest_normal = 0.0 if fmt.emin == -126 else fmt.smallest_normal
    shift_out = 2.0**23 * fmt.smallest_subnormal
    beyond = np.inf if fmt.has_infinity else np.nan if fmt.has_nan else fmt.max
    lost_zero = 0 if fmt.has_negative_zero else 1 << 31
    nan = (
        (0, 1 << 31 | _bits(np.nan)) if fmt.specials == "fnuz" else (1 << 31, _bits(np.nan) if fmt.has_nan else 1 << 31)
    )
    floats = map(_bits, (smallest_normal, shift_out, fmt.max, beyond))
    return np.array(
        [2**32 - (1 << discarded), last, max((1 << discarded >> 1) - 1, 0), *floats, lost_zero, *nan], np.uint32
    )


def _decode_constants(fmt: FloatFormat) -> Array:
    magnitudes = 2 ** (fmt.bits - 1)
    infinity = (2**fmt.exponent_bits - 1) << fmt.mantissa_bits if fmt.has_infinity else magnitudes
    first_nan = {"ieee": infinity + 1, "fn": magnitudes - 1}.get(fmt.specials, magnitudes)
    negative_nan = magnitudes if fmt.specials == "fnuz" else 2**32 - 1
    scale = _bits(2.0 ** (127 - fmt.bias))
    return np.array([23 - fmt.mantissa_bits, scale, fmt.bits - 1, infinity, first_nan, negative_nan], np.uint32)
