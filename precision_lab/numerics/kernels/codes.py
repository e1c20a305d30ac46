"""Values of a format to their bit patterns, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from precision_lab.numerics.kernels.bits import INFINITY, QUIET, U32, U64, reinterpret, shift_down, shift_up
from precision_lab.numerics.kernels.compiled import compiled


def _make_encode(U: Any, F: Any, Signed: Any, width: int, mantissa: int) -> Any:
    SIGN_BIT = U(1 << (width - 1))
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))
    TO_CODE_SIGN = U(width - 1)

    @compiled()
    def encode(x, out, c):
        """Turn values that already are in the format into codes."""
        shift, offset, scale, smallest_normal = c[0], c[1], reinterpret(c[2]), reinterpret(c[3])
        infinity, nan, sign_shift = c[4], c[5], c[6]
        for i in range(x.size):
            b = reinterpret(x[i])
            a = U(b & U(~SIGN_BIT))
            v = reinterpret(a)
            units = Signed(F(F(v if v < smallest_normal else F(0)) * scale))
            code = U(shift_down(a, shift) - offset) if v >= smallest_normal else U(units)
            code = infinity if a == EXPONENT else code
            code = nan if a > EXPONENT else code
            out[i] = U(code | shift_up(U(b >> TO_CODE_SIGN), sign_shift))

    return encode


encode_32 = _make_encode(U32, np.float32, np.int32, 32, 23)
encode_64 = _make_encode(U64, np.float64, np.int64, 64, 52)


@compiled()
def decode_32(codes, out, c):
    """Turn codes into their values."""
    shift, scale, sign_shift, infinity, first_nan, negative_nan = c[0], reinterpret(c[1]), c[2], c[3], c[4], c[5]
    magnitude = U32(shift_up(U32(1), sign_shift) - U32(1))
    for i in range(codes.size):
        code = U32(codes[i])
        a = U32(code & magnitude)
        # the fields at float32's places are the value but for the bias, subnormals too
        r = reinterpret(np.float32(reinterpret(shift_up(a, shift)) * scale))
        r = INFINITY if a == infinity else r
        r = U32(INFINITY | QUIET) if a >= first_nan or code == negative_nan else r
        out[i] = reinterpret(U32(r | shift_up(shift_down(code, sign_shift), U32(31))))
