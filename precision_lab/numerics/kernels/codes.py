"""Values of a format to their bit patterns, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.kernels.bits import INFINITY, QUIET, U32, U64, named, reinterpret, shift_down, shift_up
from precision_lab.numerics.kernels.compiled import compiled


class Encoding(NamedTuple):
    """The constants of `encode`."""

    shift: int  # from the carrier's fraction to the format's
    offset: int  # between the biases, in a code's exponent field
    scale: float  # to units of the smallest subnormal
    smallest_normal: float
    infinity: int  # codes
    nan: int
    sign_shift: int


class Decoding(NamedTuple):
    """The constants of `decode_32`."""

    shift: int  # from the format's fraction to float32's
    scale: float  # between the biases
    sign_shift: int
    infinity: int  # codes; out of reach where there is none
    first_nan: int
    negative_nan: int


def _make_encode(U: Any, F: Any, Signed: Any, width: int, mantissa: int) -> Any:
    SIGN_BIT = U(1 << (width - 1))
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))
    TO_CODE_SIGN = U(width - 1)

    @compiled()
    def encode(x, out, c):
        """Turn values that already are in the format into codes."""
        k = named(Encoding, c)
        for i in range(x.size):
            b = reinterpret(x[i])
            a = U(b & U(~SIGN_BIT))
            v = reinterpret(a)
            units = Signed(F(F(v if v < k.smallest_normal else F(0)) * k.scale))
            code = U(shift_down(a, k.shift) - k.offset) if v >= k.smallest_normal else U(units)
            code = k.infinity if a == EXPONENT else code
            code = k.nan if a > EXPONENT else code
            out[i] = U(code | shift_up(U(b >> TO_CODE_SIGN), k.sign_shift))

    return encode


encode_32 = _make_encode(U32, np.float32, np.int32, 32, 23)
encode_64 = _make_encode(U64, np.float64, np.int64, 64, 52)


@compiled()
def decode_32(codes, out, c):
    """Turn codes into their values."""
    k = named(Decoding, c)
    magnitude = U32(shift_up(U32(1), k.sign_shift) - U32(1))
    for i in range(codes.size):
        code = U32(codes[i])
        a = U32(code & magnitude)
        # the fields at float32's places are the value but for the bias, subnormals too
        r = reinterpret(np.float32(reinterpret(shift_up(a, k.shift)) * k.scale))
        r = INFINITY if a == k.infinity else r
        r = U32(INFINITY | QUIET) if a >= k.first_nan or code == k.negative_nan else r
        out[i] = reinterpret(U32(r | shift_up(shift_down(code, k.sign_shift), U32(31))))
