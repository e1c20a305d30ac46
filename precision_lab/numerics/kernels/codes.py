"""Values of a format to their bit patterns, and back.

*By addition.* As in rounding.py, |x| + C with a C that depends on the exponent of x rounds |x| to the spacing q there.
Here C is a power of two, so that the bits of the sum are those of C plus |x| / q, which is the significand of the
result with its implicit bit, in the place that it has in a code; the exponent is added. In the lowest bits all of that
is one addition, for C itself adds nothing there but what has been put into its lowest bits: minus what the
smallest exponent would add. Below the smallest normal C stays what it is there, and the significand is the code.

Blocks of 32 elements (lanes.py) serve what is usual; a block with something else in it, and what is left at the end,
go through the loop beside it, one element at a time.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import (
    INFINITY,
    MAGNITUDE,
    QUIET,
    SIGN,
    U32,
    U64,
    named,
    reinterpret,
    shift_down,
    shift_up,
)
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.lanes import BLOCK, Lanes, first_block, of_blocks, on_blocks, select

QUIET_NAN = U32(INFINITY | QUIET)


def _in_blocks(layout: Any, one: Any, unusual: Any, block: Any) -> Any:
    """Build the loop that does blocks with `block`, and with `one` the elements of an unusual block and of the ends."""

    @compiled()
    def loop(x, out, c, past_caches):
        k = named(layout, c)
        start, stop, past = first_block(out, past_caches)
        while start < x.size:
            for i in range(start, stop):
                out[i] = one(x[i], k)
            start = stop
            while start + BLOCK <= x.size and not unusual(x, start, k):
                block(x, out, start, k, past)
                start += BLOCK
            stop = min(start + BLOCK, x.size)

    return loop


# --- from values of the format ---------------------------------------------------------------------------------------


class Encoding(NamedTuple):
    """The constants of `encode`."""

    shift: int  # from the carrier's fraction to the format's
    offset: int  # between the biases, in a code's exponent field
    scale: float  # to units of the smallest subnormal
    smallest_normal: float
    infinity: int  # codes
    nan: int
    sign_shift: int


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


# --- from float32 or bf16, ties to even ------------------------------------------------------------------------------


@intrinsic
def _bits(typing_context: Any, x: Any) -> Any:
    """Return the bits of a float32, or those of the float32 that a bf16 is of which the bits are given."""
    import llvmlite.ir as ir

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        if x == types.float32:
            return builder.bitcast(args[0], word)
        return builder.shl(builder.zext(args[0], word), word(16))

    return types.uint32(x), codegen


class EvenEncoding(NamedTuple):
    """The constants of `encode_even` and `encode_half`."""

    largest: int  # the bits of the last value that matters: beyond it everything has its code
    lowest_exponent: int  # of a normal, in its place in float32
    up: int  # from the exponent of x to C
    shift: int  # from float32's fraction to the format's
    keep: int  # the bits of an element of the codes
    nan: int  # a code
    sign_shift: int  # from float32's sign to that of a code,
    sign_down: int  # and from the highest bit of an element
    zero_keep: int  # the bits that the sign of a zero keeps
    nan_flip: int  # the bits of a NaN that are turned over


@compiled()
def _even_code(x, k):
    b = _bits(x)
    a = U32(b & MAGNITUDE)
    v = U32(min(a, k.largest))
    exponent = U32(max(U32(v & INFINITY), k.lowest_exponent))
    total = reinterpret(np.float32(reinterpret(v) + reinterpret(U32(exponent + k.up))))
    code = U32(U32(total + shift_down(exponent, k.shift)) & k.keep)
    code = k.nan if a > INFINITY else code
    b = U32(b ^ k.nan_flip) if a > INFINITY else b
    sign = shift_down(U32(b & SIGN), k.sign_shift)
    return U32(code | U32(sign & (k.keep if code != U32(0) else k.zero_keep)))


@on_blocks
def _even_block(x: Lanes, k: SimpleNamespace, bits: int) -> Lanes:
    """Do the same, without NaN."""
    b = x.as_float32().as_bits()
    v = (b & int(MAGNITUDE)).at_most(k.largest)
    exponent = (v & int(INFINITY)).at_least(k.lowest_exponent)
    total = v.as_float().plus((exponent + k.up).as_float()).as_bits()
    code = (total + (exponent >> k.shift)).narrowed(bits)
    sign = b.clamped(bits) & 1 << bits - 1  # of narrow lanes, which costs less
    result: Lanes = code | (sign >> k.sign_down & select(code.equals(0), code.same(k.zero_keep), -1))
    return result


@of_blocks
def _has_nan(x: Lanes, k: SimpleNamespace) -> Any:
    lower, upper = x.as_float32().halves()
    return lower.either_nan(upper)


encode_even = _in_blocks(EvenEncoding, _even_code, _has_nan, _even_block)
"""Round to codes of at most 16 bits."""


@on_blocks
def _half_block(x: Lanes, k: SimpleNamespace, bits: int) -> Lanes:
    # all bits stay; without that LLVM converts and stores at once, which does not go past the caches
    result: Lanes = x.as_float32().to_half() & k.keep
    return result


encode_half = _in_blocks(EvenEncoding, _even_code, _has_nan, _half_block)
"""Round to codes of fp16, where the processor does it."""


class SharedEncoding(NamedTuple):
    """The constants of `encode_shared`."""

    shift: int  # from float32's fraction to the format's
    below_half: int  # of the last bit that stays


@compiled()
def _shared_code(x, k):
    b = _bits(x)
    r = U32(U32(b + k.below_half) + U32(shift_down(b, k.shift) & U32(1)))
    r = U32(U32(b & SIGN) | QUIET_NAN) if U32(b & MAGNITUDE) > INFINITY else r
    return shift_down(r, k.shift)


@on_blocks
def _shared_block(x: Lanes, k: SimpleNamespace, bits: int) -> Lanes:
    """Do the same, without NaN."""
    b = x.as_float32().as_bits()
    result: Lanes = (b + k.below_half + (b >> k.shift & 1) >> k.shift).narrowed(bits)
    return result


encode_shared = _in_blocks(SharedEncoding, _shared_code, _has_nan, _shared_block)
"""Round to codes of a format with float32's exponents, infinities and NaN: to float32's highest bits."""


# --- to float32 ------------------------------------------------------------------------------------------------------


class Decoding(NamedTuple):
    """The constants of `decode` and `decode_by_half`."""

    shift: int  # from the format's fraction to float32's
    offset: int  # between the biases, in float32's exponent field
    smallest_normal: int  # a code
    unit: int  # the bits of 2^23 smallest subnormals
    sign_shift: int
    infinity: int  # codes; out of reach where there is none
    first_nan: int
    negative_nan: int
    half_up: int  # from the highest bit of a code to that of fp16
    half_down: int  # from there to fp16's exponent,
    half_keep: int  # where these bits are the number
    half_scale: float  # but for the bias
    before: int  # a code minus this has in the bits of `magnitude`
    magnitude: int
    first_special: int  # this or more, where it is infinity or NaN


@compiled()
def _value(element, k):
    code = U32(element)
    a = U32(code & U32(shift_up(U32(1), k.sign_shift) - U32(1)))
    # subnormals as a difference: a multiplication of what would be subnormal in float32, too, takes some 100 cycles
    subnormal = reinterpret(np.float32(reinterpret(U32(a | k.unit)) - reinterpret(k.unit)))
    r = subnormal if a < k.smallest_normal else U32(shift_up(a, k.shift) + k.offset)
    r = INFINITY if a == k.infinity else r
    r = QUIET_NAN if a >= k.first_nan or code == k.negative_nan else r
    return reinterpret(U32(r | shift_up(shift_down(code, k.sign_shift), U32(31))))


@compiled()
def decode(codes, out, c, past_caches):
    """Turn codes into their values."""
    k = named(Decoding, c)
    for i in range(codes.size):
        out[i] = _value(codes[i], k)


@of_blocks
def _is_special(codes: Lanes, k: SimpleNamespace) -> Any:
    lower, upper = (codes - k.before & k.magnitude).halves()
    largest = lower.at_least(upper)
    return largest.at_least(k.first_special).equals(largest)


@on_blocks
def _block_by_half(codes: Lanes, k: SimpleNamespace, bits: int) -> Lanes:
    """Do what `_value` does, without infinity and NaN: but for a power of two, fp16 has all values."""
    half = (codes.widened(16) << k.half_up).shift_signed(k.half_down) & k.half_keep
    result: Lanes = half.from_half().times(k.half_scale)
    return result


decode_by_half = _in_blocks(Decoding, _value, _is_special, _block_by_half)
"""Turn codes into their values, where the processor converts fp16."""


class SharedDecoding(NamedTuple):
    """The constants of `decode_shared`."""

    shift: int  # from the format's fraction to float32's
    before: int  # these three as in `Decoding`
    magnitude: int
    first_special: int
    nan_keep: int  # the bits of a NaN that stay,
    nan_set: int  # and those that are set then


@compiled()
def _shared_value(code, k):
    b = shift_up(U32(code), k.shift)
    b = U32(U32(b & k.nan_keep) | k.nan_set) if U32(b & MAGNITUDE) > INFINITY else b
    return reinterpret(b)


@on_blocks
def _shared_value_block(codes: Lanes, k: SimpleNamespace, bits: int) -> Lanes:
    """Do the same, without NaN."""
    result: Lanes = (codes.widened(32) << k.shift).as_float()
    return result


decode_shared = _in_blocks(SharedDecoding, _shared_value, _is_special, _shared_value_block)
"""Turn codes of a format with float32's exponents, infinities and NaN into their values."""


@compiled()
def widen(x, out):
    """Convert float32 to float64."""
    for i in range(x.size):
        out[i] = np.float64(x[i])
