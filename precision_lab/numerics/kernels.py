"""The compiled inner loops.

Arrays are one-dimensional float32 or float64, the *carrier*; the loops work on its bit patterns. What a format and a
mode mean is data, one small array of constants a call (made in `rounding.py`), so that one compiled loop serves every
format. Two ways to round:

*by addition* (``add``). With q the spacing of the format at x, C = 1.5 * q * 2^(carrier mantissa bits) makes the
addition in (|x| + C) - C round |x| to a multiple of q, ties to even; taking the spacing at the smallest normal for
everything below it gives gradual underflow. Needs C in range and at least two discarded bits.

*by fields* (``mask``, ``directed``, ``random``). A format's normal values are the carrier's with zeros below bit d.
So adding a dither below 2^d to the bit pattern and clearing the d bits rounds up if and only if the discarded bits
plus the dither reach 2^d; the carry into the exponent, and from the largest value beyond, comes by itself. Each mode is
a dither: 0 truncates, 2^d - 1 rounds away from zero, 2^(d-1) sends ties away, one less sends them down, a random number
is stochastic rounding; which one may depend on the sign of x and on whether the value below is odd. Below the format's
smallest normal the same rule is applied to x in units of the smallest subnormal. Where the exponent range is the
carrier's own, the fields serve for everything.

The ``plain`` loops leave out what most formats do not need: flush to zero, a missing negative zero, a missing NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, types
from numba.extending import intrinsic

from precision_lab.numerics.compiled import compiled
from precision_lab.numerics.errors import CompilerDisabledError

if config.DISABLE_JIT:  # type: ignore[attr-defined]  # numba makes it; the loops reinterpret bits, Python cannot
    raise CompilerDisabledError(
        "numba's compiler is switched off, and these loops exist only compiled; unset NUMBA_DISABLE_JIT (or take "
        "disable_jit out of .numba_config.yaml)"
    )

U32 = np.uint32
U64 = np.uint64

SIGN = U32(0x80000000)
MAGNITUDE = U32(0x7FFFFFFF)
INFINITY = U32(0x7F800000)
QUIET = U32(0x00400000)

TILE = 1024  # elements whose random numbers or keys are held in the first-level cache at a time


@intrinsic
def _leading_zeros(typing_context: Any, x: Any) -> Any:
    """Count the leading zero bits of an unsigned integer (LLVM's ctlz; 0 counts its width)."""
    import llvmlite.ir as ir

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(x.bitwidth)
        count = builder.module.declare_intrinsic("llvm.ctlz", [word], ir.FunctionType(word, [word, ir.IntType(1)]))
        return builder.call(count, [args[0], ir.Constant(ir.IntType(1), 0)])

    return x(x), codegen


@intrinsic
def _reinterpret(typing_context: Any, x: Any) -> Any:
    """Reinterpret the bits of a float as an unsigned integer of its width, and back."""
    pairs: dict[Any, Any] = {types.uint32: types.float32, types.uint64: types.float64}
    pairs |= {to: of for of, to in pairs.items()}

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return pairs[x](x), codegen


def _make_shift(instruction: str) -> Any:
    """Build a shift of an unsigned integer by a count below its width, at its own width (numba's is 64 bits wide)."""

    def shift(typing_context: Any, x: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(args[0], args[1])

        return x(x, x), codegen

    return intrinsic(shift)


_shift_up, _shift_down = _make_shift("shl"), _make_shift("lshr")


# --- rounding --------------------------------------------------------------------------------------------------------
# Generic in the carrier: U is its unsigned and F its float type. numba widens uint32 arithmetic to uint64, which would
# halve the vector width: hence a cast around every operation.


@compiled()
def _finish(r, b, k, U, F):
    """Give the magnitude r the sign of b; flush what is below `smallest`; NaN and zero as the format has them."""
    sign, smallest, lost_zero, nan_keep, nan_flip = k
    r = F(0) if r < smallest else r
    out = U(_reinterpret(F(r)) | U(b & sign))
    out = U(0) if out == lost_zero else out
    return U(U(b & nan_keep) ^ nan_flip) if r != r else out


def _make_even(U: Any, F: Any, width: int, mantissa: int, plain: bool) -> Any:
    """Build the loop of ties_to_even for a carrier of `width` bits, `mantissa` of them fraction.

    U is the carrier's unsigned and F its float type.
    """
    SIGN_BIT = U(1 << (width - 1))
    ABS = U((1 << (width - 1)) - 1)
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))

    @compiled()
    def add_even(x, out, c):
        """Round by addition."""
        emin, emax, up, largest, overflow = c[0], c[1], c[2], _reinterpret(c[3]), _reinterpret(c[4])
        tail = (SIGN_BIT, _reinterpret(c[5]), c[6], c[7], c[8])
        for i in range(x.size):
            b = _reinterpret(x[i])
            a = U(b & ABS)
            C = _reinterpret(U(U(min(max(U(a & EXPONENT), emin), emax)) + up))
            r = F(F(_reinterpret(a) + C) - C)
            r = overflow if r > largest else r
            if plain:
                out[i] = _reinterpret(U(_reinterpret(F(r)) | U(b & SIGN_BIT)))
            else:
                out[i] = _reinterpret(_finish(r, b, tail, U, F))

    return add_even


add_even_plain_32 = _make_even(U32, np.float32, 32, 23, True)
add_even_32 = _make_even(U32, np.float32, 32, 23, False)
add_even_plain_64 = _make_even(U64, np.float64, 64, 52, True)
add_even_64 = _make_even(U64, np.float64, 64, 52, False)


def _make_directed(U: Any, F: Any, width: int, mantissa: int) -> Any:
    """Build the loop of all deterministic modes; parameters as in `_make_even`."""
    SIGN_BIT = U(1 << (width - 1))
    ABS = U((1 << (width - 1)) - 1)
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))

    @compiled()
    def directed(x, out, c):
        """Round by fields, with the dithers of a mode."""
        keep, odd_bits, scale, quantum = c[0], c[1], _reinterpret(c[2]), _reinterpret(c[3])
        smallest_normal, largest = _reinterpret(c[4]), _reinterpret(c[5])
        over_pos, over_neg, infinity = _reinterpret(c[6]), _reinterpret(c[7]), _reinterpret(c[8])
        tail = (SIGN_BIT, _reinterpret(c[9]), c[10], c[11], c[12])
        pos_even, pos_odd, neg_even, neg_odd = c[13], c[14], c[15], c[16]
        at_pos_even, at_pos_odd = _reinterpret(c[17]), _reinterpret(c[18])
        at_neg_even, at_neg_odd = _reinterpret(c[19]), _reinterpret(c[20])
        for i in range(x.size):
            b = _reinterpret(x[i])
            a = U(b & ABS)
            v = _reinterpret(a)
            negative = U(b & SIGN_BIT) != U(0)
            odd = U(U(a & keep) & odd_bits) != U(0)
            dither = (neg_odd if odd else neg_even) if negative else (pos_odd if odd else pos_even)
            normal = _reinterpret(U(U(a + dither) & keep))
            f = F(F(v if v < smallest_normal else F(0)) * scale)  # in units of the smallest subnormal
            k = np.int32(f)
            odd = (k & 1) != 0
            at = (at_neg_odd if odd else at_neg_even) if negative else (at_pos_odd if odd else at_pos_even)
            lo = F(k)
            subnormal = F(F(lo + (F(1) if F(f - lo) >= at else F(0))) * quantum)
            r = subnormal if v < smallest_normal else normal
            r = (over_neg if negative else over_pos) if r > largest else r
            r = infinity if a == EXPONENT else r
            r = v if v != v else r
            out[i] = _reinterpret(_finish(r, b, tail, U, F))

    return directed


directed_32 = _make_directed(U32, np.float32, 32, 23)
directed_64 = _make_directed(U64, np.float64, 64, 52)


@compiled()
def mask_even_plain(x, out, c):
    """Round by fields to even, where the format has float32's exponents."""
    keep, last, below_half, largest, overflow = c[0], c[1], c[2], c[3], c[4]
    for i in range(x.size):
        b = _reinterpret(x[i])
        a = U32(b & MAGNITUDE)
        r = U32(U32(U32(a + below_half) + (U32(1) if U32(a & last) != U32(0) else U32(0))) & keep)
        r = overflow if r > largest else r
        r = U32(a | QUIET) if a > INFINITY else r
        out[i] = _reinterpret(U32(r | U32(b & SIGN)))


# --- stochastic rounding ----------------------------------------------------------------------------------------------


@compiled()
def _mix(x, y, turn):
    """One round of Threefry on two words."""
    x = U32(x + y)
    return x, U32(U32(U32(y << U32(turn)) | U32(y >> U32(32 - turn))) ^ x)


@compiled()
def random_words(words, low, high, key0, key1):
    """Fill `words` with Threefry-2x32-13 (Salmon et al. 2011): two words a counter, from (low, high) on.

    13 rounds are the fewest that the paper found to pass BigCrush. The low word must not wrap within the call.
    """
    key2 = U32(U32(key0 ^ key1) ^ U32(0x1BD11BDA))
    for i in range(words.size // 2):
        x, y = U32(U32(low + U32(i)) + key0), U32(high + key1)
        x, y = _mix(x, y, 13)
        x, y = _mix(x, y, 15)
        x, y = _mix(x, y, 26)
        x, y = _mix(x, y, 6)
        x, y = U32(x + key1), U32(U32(y + key2) + U32(1))
        x, y = _mix(x, y, 17)
        x, y = _mix(x, y, 29)
        x, y = _mix(x, y, 16)
        x, y = _mix(x, y, 24)
        x, y = U32(x + key2), U32(U32(y + key0) + U32(2))
        x, y = _mix(x, y, 13)
        x, y = _mix(x, y, 15)
        x, y = _mix(x, y, 26)
        x, y = _mix(x, y, 6)
        x, y = U32(x + key0), U32(U32(y + key1) + U32(3))
        x, y = _mix(x, y, 17)
        words[2 * i] = x
        words[2 * i + 1] = y


@compiled()
def _random_tile(x, out, c, numbers, carrier, U, F, Signed):
    """Round stochastically with one number of 16 bits an element."""
    plain, sign, top = carrier
    keep, smallest_normal, largest, overflow = c[0], _reinterpret(c[1]), _reinterpret(c[2]), _reinterpret(c[3])
    scale, quantum = _reinterpret(c[4]), _reinterpret(c[5])
    shift = c[6]
    tail = (sign, _reinterpret(c[7]), c[8], c[9], c[10])
    for i in range(x.size):
        number = U(numbers[i])
        b = _reinterpret(x[i])
        a = U(b & U(~sign))
        v = _reinterpret(a)
        normal = _reinterpret(U(U(a + _shift_down(_shift_up(number, top), shift)) & keep))
        f = F(F(v if v < smallest_normal else F(0)) * scale)  # in units of 2^-16 smallest subnormals
        k = Signed(Signed(Signed(f) + Signed(number)) >> Signed(16))
        r = F(F(k) * quantum) if v < smallest_normal else normal
        r = overflow if r > largest else r
        r = v if v != v else r
        if plain:
            out[i] = _reinterpret(U(_reinterpret(F(r)) | U(b & sign)))
        else:
            out[i] = _reinterpret(_finish(r, b, tail, U, F))


def _make_random(U: Any, F: Any, Signed: Any, width: int, plain: bool) -> tuple[Any, Any]:
    """Build the stochastic loops; Signed holds 2^16 times the format's largest subnormal in units of the smallest."""
    CARRIER = (plain, U(1 << (width - 1)), U(width - 17))

    @compiled()
    def random(x, out, c, numbers):
        _random_tile(x, out, c, numbers, CARRIER, U, F, Signed)

    @compiled()
    def seeded(x, out, c, stream):
        """Use the numbers of a stream, [seed, index of the first element]."""
        seed, first = stream[0], stream[1]
        words = np.empty(TILE // 2, np.uint32)
        numbers = words.view(np.uint16)
        start = U64(0)
        while start < U64(x.size):
            # tiles lie at fixed places of the stream: it does not matter where x begins, and the low word never wraps
            counter = U64((first + start) // U64(TILE)) * U64(TILE // 4)
            skip = U64((first + start) % U64(TILE))
            stop = min(U64(x.size), U64(start + U64(TILE)) - skip)
            low, high = U32(counter & U64(0xFFFFFFFF)), U32(counter >> U64(32))
            random_words(words, low, high, U32(seed & U64(0xFFFFFFFF)), U32(seed >> U64(32)))
            _random_tile(x[start:stop], out[start:stop], c, numbers[skip:], CARRIER, U, F, Signed)
            start = stop

    return random, seeded


random_plain_32, seeded_plain_32 = _make_random(U32, np.float32, np.int32, 32, True)
random_32, seeded_32 = _make_random(U32, np.float32, np.int32, 32, False)
random_plain_64, seeded_plain_64 = _make_random(U64, np.float64, np.int64, 64, True)
random_64, seeded_64 = _make_random(U64, np.float64, np.int64, 64, False)


# --- codes -----------------------------------------------------------------------------------------------------------


def _make_encode(U: Any, F: Any, Signed: Any, width: int, mantissa: int) -> Any:
    SIGN_BIT = U(1 << (width - 1))
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))
    TO_CODE_SIGN = U(width - 1)

    @compiled()
    def encode(x, out, c):
        """Turn values that already are in the format into codes."""
        shift, offset, scale, smallest_normal = c[0], c[1], _reinterpret(c[2]), _reinterpret(c[3])
        infinity, nan, sign_shift = c[4], c[5], c[6]
        for i in range(x.size):
            b = _reinterpret(x[i])
            a = U(b & U(~SIGN_BIT))
            v = _reinterpret(a)
            units = Signed(F(F(v if v < smallest_normal else F(0)) * scale))
            code = U(_shift_down(a, shift) - offset) if v >= smallest_normal else U(units)
            code = infinity if a == EXPONENT else code
            code = nan if a > EXPONENT else code
            out[i] = U(code | _shift_up(U(b >> TO_CODE_SIGN), sign_shift))

    return encode


encode_32 = _make_encode(U32, np.float32, np.int32, 32, 23)
encode_64 = _make_encode(U64, np.float64, np.int64, 64, 52)


@compiled()
def decode_32(codes, out, c):
    """Turn codes into their values."""
    shift, scale, sign_shift, infinity, first_nan, negative_nan = c[0], _reinterpret(c[1]), c[2], c[3], c[4], c[5]
    magnitude = U32(_shift_up(U32(1), sign_shift) - U32(1))
    for i in range(codes.size):
        code = U32(codes[i])
        a = U32(code & magnitude)
        # the fields at float32's places are the value but for the bias, subnormals too
        r = _reinterpret(np.float32(_reinterpret(_shift_up(a, shift)) * scale))
        r = INFINITY if a == infinity else r
        r = U32(INFINITY | QUIET) if a >= first_nan or code == negative_nan else r
        out[i] = _reinterpret(U32(r | _shift_up(_shift_down(code, sign_shift), U32(31))))


# --- optimizers ------------------------------------------------------------------------------------------------------
# What training/optimizers.py computes, R being `_even` with the constants of codec.py. A sum with a product in it is
# one fma, as in torch's vectorised loops.


@intrinsic
def _fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Compute x * y + z, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return x(x, x, x), codegen


@compiled()
def _hoist(c):
    """Read the constants of `_even` once a call."""
    floats = (_reinterpret(c[3]), _reinterpret(c[4]), _reinterpret(c[5]), _reinterpret(c[6]))
    return c[0], c[1], c[2], floats, (SIGN, np.float32(0), c[7], c[8], c[9])


@compiled()
def _even(x, k):
    """Round one float32, ties to even: by fields, and by addition below the smallest normal; for any format."""
    keep, last, below_half, (smallest_normal, shift_out, largest, overflow), tail = k
    b = _reinterpret(np.float32(x))
    a = U32(b & MAGNITUDE)
    v = _reinterpret(a)
    odd = U32(1) if U32(a & last) != U32(0) else U32(0)
    r = _reinterpret(U32(U32(U32(a + below_half) + odd) & keep))
    r = np.float32(np.float32(v + shift_out) - shift_out) if v < smallest_normal else r
    r = overflow if r > largest else r
    r = v if v != v else r
    return _reinterpret(_finish(r, b, tail, U32, np.float32))


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


# --- histogram -------------------------------------------------------------------------------------------------------
# A key is 32 * (exponent field + ROW_OFFSET) + class. The classes split a binade at the significands where some
# format's thresholds lie: at 1; by the number of leading ones of the fraction; at 1.1101 (464 of fp8_e4m3fn).

ROW_OFFSET = 64  # the row of zero; below it there is room for the carrier's subnormals
HALF_NORMAL_CLASS = 31  # in zero's row, whose class 0 is taken: half the carrier's smallest normal
LANES = 16  # neighbouring elements count in different cells: no increment waits for the one before it


@compiled()
def _key(a, fraction_mask, to_top, to_row, split, U):
    """Key of a normal magnitude, less the row offset."""
    fraction = U(a & fraction_mask)
    # more than 24 leading ones decide nothing; only float64 has them
    ones = U(min(_leading_zeros(U(~U(a << to_top))), U(24)))
    position = U(U(ones + U(1)) + (U(1) if fraction > split else U(0)))
    return U(U(U(a >> to_row) & U(0xFFFFFFE0)) + (position if fraction != U(0) else U(0)))


def _make_histogram(U: Any, width: int, mantissa: int) -> Any:
    ABS = U((1 << (width - 1)) - 1)
    FRACTION = U((1 << mantissa) - 1)
    EXPONENT = U((1 << (width - 1)) - (1 << mantissa))
    TO_TOP, TO_ROW = U(width - mantissa), U(mantissa - 5)
    SPLIT = U(13 << (mantissa - 4))  # the fraction of 1.1101
    OFFSET = U(ROW_OFFSET << 5)
    HALF_NORMAL = U(1 << (mantissa - 1))
    LEADING = U(width - 1 - mantissa)  # zero bits above the leading bit of a normal's significand

    @compiled()
    def count(x, cells, extremes):
        """Add x to `cells` (LANES cells a key) and to `extremes`: least non-zero magnitude less one, largest finite."""
        keys = np.empty(TILE, np.uint32)
        least, largest = extremes[0], extremes[1]
        for start in range(0, x.size, TILE):
            tile = x[start : start + TILE]
            n = tile.size
            least_here = U(~U(0))
            for j in range(n):
                a = U(_reinterpret(tile[j]) & ABS)
                least_here = U(min(least_here, U(a - U(1))))  # zero wraps to the top
                largest = U(max(largest, a if a < EXPONENT else U(0)))
                keys[j] = U32(U(U(_key(a, FRACTION, TO_TOP, TO_ROW, SPLIT, U) + OFFSET) * U(LANES)))
            least = U(min(least, least_here))
            if least_here < FRACTION:  # subnormals
                for j in range(n):
                    a = U(_reinterpret(tile[j]) & ABS)
                    if U(a - U(1)) < FRACTION:
                        lift = U(_leading_zeros(a) - LEADING)
                        normal = U(a << lift)
                        row_drop = U(lift << U(5))
                        key = U(U(_key(normal, FRACTION, TO_TOP, TO_ROW, SPLIT, U) + OFFSET) - row_drop)
                        key = U(OFFSET + U(HALF_NORMAL_CLASS)) if a == HALF_NORMAL else key
                        keys[j] = U32(U(key * U(LANES)))
            whole = n - n % LANES
            for j in range(0, whole, LANES):
                for lane in range(LANES):
                    cells[U64(keys[j + lane]) + U64(lane)] += U32(1)
            for j in range(whole, n):
                cells[U64(keys[j])] += U32(1)
        extremes[0], extremes[1] = least, largest

    return count


count_32 = _make_histogram(U32, 32, 23)
count_64 = _make_histogram(U64, 64, 52)


# --- sums ------------------------------------------------------------------------------------------------------------
# A sum is rounded once: to odd in float64, then into the format (Boldo and Melquiond 2008). A format has at most 24
# significand bits, so its values, its midpoints and the 2^-16ths of its spacings that stochastic rounding compares with
# all end in zeros as doubles. A sum that is no double becomes the odd one of the two doubles around it, which lies
# strictly between the same two of those places as the sum itself: every mode then decides as it would on the sum.

LARGEST_64 = np.finfo(np.float64).max
_EVEN, _AWAY, _ZERO, _POSITIVE, _NEGATIVE, _ODD, _RANDOM = range(7)  # the order of RoundingMode


@compiled()
def _sum_to_odd(a, b, downward):
    """Round a + b to odd; an exact zero is -0 if both are, `downward` if either is; NaN is positive."""
    s = a + b
    large, small = (a, b) if abs(a) >= abs(b) else (b, a)
    error = small - (s - large)  # exact (Dekker 1971) where s is finite
    bits = _reinterpret(s)
    move = U64(1) if (error > 0.0) == (s > 0.0) else U64(0xFFFFFFFFFFFFFFFF)
    odd = _reinterpret(U64(bits + move)) if U64(bits & U64(1)) == U64(0) and error != 0.0 else s
    if abs(s) == np.inf:
        odd = s if abs(large) == np.inf else np.copysign(LARGEST_64, s)
    if downward and s == 0.0:
        odd = -0.0 if np.copysign(1.0, a) < 0.0 or np.copysign(1.0, b) < 0.0 else 0.0
    return odd if s == s else np.nan


@compiled()
def _power(exponent):
    return _reinterpret(U64(U64(exponent + 1023) << U64(52)))


@compiled()
def _round_one(x, c, number):
    """Round one double in any mode; c as `_constants` in accumulation.py lays it out."""
    mode, mantissa_bits, emin, largest = int(c[0]), int(c[1]), int(c[2]), c[3]
    negative = np.copysign(1.0, x) < 0.0
    a = abs(x)
    if x != x:
        return c[9]
    if a == np.inf:
        return c[7] if negative else c[6]
    if a == 0.0:
        return c[8] if negative else 0.0
    if a > 2 * largest:
        return c[5] if negative else c[4]
    exponent = max(np.int64(_reinterpret(a) >> U64(52)) - 1023, emin)
    scaled = a * _power(mantissa_bits - exponent)
    below = np.floor(scaled)
    rest = scaled - below
    odd = int(below) % 2 == 1
    if mode == _EVEN:
        away = rest > 0.5 or (rest == 0.5 and odd)
    elif mode == _AWAY:
        away = rest >= 0.5
    elif mode == _ZERO:
        away = False
    elif mode == _POSITIVE:
        away = rest > 0.0 and not negative
    elif mode == _NEGATIVE:
        away = rest > 0.0 and negative
    elif mode == _ODD:
        away = rest > 0.0 and not odd
    else:
        away = np.floor(rest * 65536.0) + number >= 65536.0
    r = (below + (1.0 if away else 0.0)) * _power(exponent - mantissa_bits)
    if r > largest:
        return c[5] if negative else c[4]
    if r == 0.0:
        return c[8] if negative else 0.0
    return -r if negative else r


@compiled()
def _add(a, b, c, numbers, i):
    """Add and round once, with the i-th random number where there are any."""
    number = numbers[i] if numbers.size else np.uint16(0)
    return _round_one(_sum_to_odd(a, b, int(c[0]) == _NEGATIVE), c, number)


@compiled()
def round_values(x, c, numbers):
    """Round in place."""
    for i in range(x.size):
        x[i] = _round_one(x[i], c, numbers[i] if numbers.size else np.uint16(0))


@compiled()
def sum_sequential(terms, sums, c, numbers):
    """Leave the running sums in `sums` and return after how many terms none changed it any more.

    -1 if the last that is not zero did, or where there are random numbers.
    """
    s, after, last = 0.0, 0, 0
    for i in range(terms.size):
        before, s = s, _add(s, terms[i], c, numbers, i)
        sums[i] = s
        if terms[i] != 0.0:
            last = i + 1
        if before != s and not (np.isnan(before) and np.isnan(s)):
            after = i + 1
    return after if after < last and not numbers.size else -1


@compiled()
def sum_blocks(terms, sums, c, numbers, block):
    """Leave the sum of each block of terms in `sums`."""
    s = 0.0
    for i in range(terms.size):
        s = _add(s if i % block else 0.0, terms[i], c, numbers, i)
        sums[i // block] = s


@compiled()
def sum_pairs(level, sums, c, numbers):
    """Add neighbours, level by level, in place; every sum also goes to `sums`."""
    count, done = level.size, 0
    while count > 1:
        for i in range(count // 2):
            level[i] = _add(level[2 * i], level[2 * i + 1], c, numbers, done)
            sums[done] = level[i]
            done += 1
        if count % 2:
            level[count // 2] = level[count - 1]
        count = (count + 1) // 2


@compiled()
def sum_kahan(terms, sums, c, numbers):
    """Leave the running sums in `sums`; a step takes four numbers."""
    s = compensation = 0.0
    for i in range(terms.size):
        y = _add(terms[i], -compensation, c, numbers, 4 * i)
        before, s = s, _add(s, y, c, numbers, 4 * i + 1)
        gained = _add(s, -before, c, numbers, 4 * i + 2)
        compensation = _add(gained, -y, c, numbers, 4 * i + 3)
        sums[i] = s


@compiled()
def sum_neumaier(terms, sums, c, numbers):
    """Leave the running sums in `sums` and return the sum with its compensation."""
    s = compensation = 0.0
    for i in range(terms.size):
        t = terms[i]
        before, s = s, _add(s, t, c, numbers, 4 * i)
        large, small = (before, t) if abs(before) >= abs(t) else (t, before)
        lost = _add(large, -s, c, numbers, 4 * i + 1)
        lost = _add(lost, small, c, numbers, 4 * i + 2)
        compensation = _add(compensation, lost, c, numbers, 4 * i + 3)
        sums[i] = s
    return _add(s, compensation, c, numbers, 4 * terms.size)


@compiled()
def multiply(column, row, out):
    """Write the exact products (of values that float32 holds); NaN is positive."""
    for i in range(column.size):
        for j in range(row.size):
            p = column[i] * row[j]
            out[i, j] = p if p == p else np.nan


@compiled()
def add_to_odd(sums, terms, out, downward):
    """Add element by element."""
    for i in range(sums.size):
        out[i] = _sum_to_odd(sums[i], terms[i], downward)


@compiled()
def add_products_to_odd(sums, column, row, out, downward):
    """Add the exact products of a column and a row (of values that float32 holds)."""
    for i in range(column.size):
        a, line, target = column[i], sums[i], out[i]
        for j in range(row.size):
            target[j] = _sum_to_odd(line[j], a * row[j], downward)


# Sums that need no rounding to odd, ties to even (when, is in accumulation.py): the sum in the carrier is rounded by
# addition. As there: C = c * q with q the power of two at or below |s|, but not below the smallest normal, and
# c = 1.5 * 2^(carrier mantissa bits - mantissa bits); s may be negative. q, C and the products of two inputs are exact,
# so that it does not matter whether the processor fuses what `_muladd` leaves to it.


@intrinsic
def _muladd(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z, fused where the processor can (LLVM's fmuladd)."""
    import llvmlite.ir as ir

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        real = args[0].type
        fmuladd = builder.module.declare_intrinsic("llvm.fmuladd", [real], ir.FunctionType(real, [real] * 3))
        return builder.call(fmuladd, args)

    return x(x, x, x), codegen


@compiled()
def _even_sum(s, k, U):
    """Round a finite s that does not overflow."""
    exponent, sign, emin, c = k
    bits = _reinterpret(s)
    q = _reinterpret(U(max(U(bits & exponent), emin)))
    r = _muladd(q, -c, _muladd(q, c, s))
    return _reinterpret(U(_reinterpret(r) | U(bits & sign)))


@compiled()
def fused_even(sums, left, right, smallest_normal, c):
    """Add left @ right to `sums` in float64: k ascending, each product exact, each sum rounded."""
    k = (U64(0x7FF0000000000000), U64(0x8000000000000000), _reinterpret(smallest_normal), c)
    for i in range(left.shape[0]):
        acc = sums[i]
        for step in range(left.shape[1]):
            a, b = np.float64(left[i, step]), right[step]
            for j in range(b.size):
                acc[j] = _even_sum(_muladd(a, b[j], acc[j]), k, U64)


@compiled()
def rounded_even(sums, left, right, smallest_normal, c):
    """Add left @ right to `sums` in float32: k ascending, each product and each sum rounded."""
    k = (INFINITY, SIGN, _reinterpret(smallest_normal), c)
    for i in range(left.shape[0]):
        acc = sums[i]
        for step in range(left.shape[1]):
            a, b = left[i, step], right[step]
            for j in range(b.size):
                acc[j] = _even_sum(np.float32(acc[j] + _even_sum(np.float32(a * b[j]), k, U32)), k, U32)


@compiled()
def _lowest_bit(a):
    """Return the value of the lowest set bit of a normal double that is not negative; infinite for 0."""
    bits = _reinterpret(a)
    rest = _reinterpret(U64(bits & U64(bits - U64(1)))) if U64(bits & U64(0xFFFFFFFFFFFFF)) != U64(0) else 0.0
    return a - rest if a > 0.0 else np.inf


@compiled()
def product_extents(left, largest, lowest, total, high, low):
    """Write of each row the sum and the maximum of |a| * largest and the minimum of (lowest bit of a) * lowest.

    Magnitudes are compared as integers, which the compiler may do in any order; NaN is the largest.
    """
    for i in range(left.shape[0]):
        row = left[i]
        s = 0.0
        for step in range(row.size):
            s += abs(np.float64(row[step])) * largest[step]
        h, g = U64(0), ~U64(0)
        for step in range(row.size):
            a = abs(np.float64(row[step]))
            h = U64(max(h, _reinterpret(a * largest[step])))
            g = U64(min(g, _reinterpret(_lowest_bit(a) * lowest[step])))
        total[i], high[i], low[i] = s, _reinterpret(h), _reinterpret(g)


@compiled()
def sum_exactly(terms, cells):
    """Add the significands of finite terms to `cells`, by sign and exponent field, in two halves of 27 and 26 bits."""
    for t in terms:
        bits = _reinterpret(t)
        field = U64(U64(bits >> U64(52)) & U64(0x7FF))
        significand = np.int64(U64(bits & U64(0xFFFFFFFFFFFFF)) | U64(min(field, U64(1)) << U64(52)))
        cell = cells[np.int64(bits >> U64(63)), np.int64(field)]
        cell[0] += significand >> 26
        cell[1] += significand & 0x3FFFFFF


# --- updates ---------------------------------------------------------------------------------------------------------
# Sums of products are exact. With all |x| <= 2^51 g and M = 1.5 * 2^52 g, x + M rounds x to a multiple of g, and the
# bit patterns of floats from 2^52 g to 2^53 g are consecutive: bits(x + M) - bits(M) is that multiple, and integers can
# be added in any order. What is left of x, at most g/2, is exact and goes round again, 51 bits lower.

UPDATE_TILE = 16 * TILE
RATIO_OFFSET = 1280  # the row of 2^0: below it there is room for 2^-1074 / 2^128
ZERO_UPDATE, NONFINITE, ZERO_WEIGHT = 0, 1, 2  # rows
LOST, OVERFLOWED = 1, 2  # columns, of four
NO_UPDATE, MOVED = 0, 2  # what may become of an update, beside LOST
LARGEST_UPDATE = 2.0**480  # its square can be added 2^62 times
MAGNITUDE_64 = U64(0x7FFFFFFFFFFFFFFF)


@compiled()
def _exponent_of_largest(x):
    """Biased exponent of the largest magnitude, -1 where all are zero."""
    largest = U64(0)
    for j in range(x.size):
        largest = max(largest, U64(_reinterpret(x[j]) & MAGNITUDE_64))
    return np.int64(largest >> U64(52)) if largest else np.int64(-1)


@compiled()
def _shift_to(unit):
    """1.5 * 2^52 units of 2^(unit - 1074)."""
    return _reinterpret(U64((unit + np.int64(1)) << np.int64(52))) * 1.5


@compiled()
def _add_integers(total, n, shift, unit, sums):
    """Add a total of n bit patterns, less those of the shift, in two halves that do not overflow."""
    total -= np.int64(n) * np.int64(_reinterpret(shift))
    sums[unit, 0] += total >> np.int64(32)
    sums[unit, 1] += total & np.int64(0xFFFFFFFF)


@compiled()
def _add_products(a, b, unit, rest, sums):
    """Add a[j] * b[j], each rounded to float64, to `sums`: the halves of integers, in units of 2^(unit - 1074).

    All finite, and no product beyond 2^51 units.
    """
    unit = max(unit, np.int64(0))
    shift = _shift_to(unit)
    total, left = np.int64(0), U64(0)
    for j in range(a.size):
        x = a[j] * b[j]
        t = x + shift
        total += np.int64(_reinterpret(t))
        r = x - (t - shift)
        rest[j] = r
        left |= _reinterpret(r)
    _add_integers(total, a.size, shift, unit, sums)
    while U64(left & MAGNITUDE_64) != U64(0):
        unit = max(unit - np.int64(51), np.int64(0))
        shift = _shift_to(unit)
        total, left = np.int64(0), U64(0)
        for j in range(a.size):
            x = rest[j]
            t = x + shift
            total += np.int64(_reinterpret(t))
            r = x - (t - shift)
            rest[j] = r
            left |= _reinterpret(r)
        _add_integers(total, a.size, shift, unit, sums)


def _make_updates(U: Any, F: Any, Signed: Any, width: int, mantissa: int, limit: float) -> tuple[Any, Any, Any]:
    """Build the loops for a carrier; updates of magnitude `limit` or more count as not finite."""
    ABS = U((1 << (width - 1)) - 1)
    INF = U((1 << (width - 1)) - (1 << mantissa))
    LIMIT = U(np.array(limit, F).view(U))
    SMALLEST_NORMAL = U(1 << mantissa)
    LIFT, LIFTED = F(2.0**64), Signed(64)
    SHIFT = Signed(mantissa)

    @compiled()
    def add_to_odd(w, u, out):
        """Add w and u, rounded to odd (Boldo and Melquiond 2008): one more rounding, two bits shorter, is exact."""
        for i in range(w.size):
            s = F(w[i] + u[i])
            t = F(s - w[i])
            error = F(F(w[i] - F(s - t)) + F(u[i] - t))  # Knuth's TwoSum
            bits = Signed(_reinterpret(s))
            overflow = U(U(bits) & ABS) == INF  # the error is NaN then
            inward = (Signed(Signed(_reinterpret(error)) ^ bits) < Signed(0)) | overflow
            inexact_and_even = (error != F(0)) & (Signed(bits & Signed(1)) == Signed(0))
            step = (Signed(-1) if inward else Signed(1)) if inexact_and_even else Signed(0)
            out[i] = _reinterpret(U(bits + step))

    @compiled()
    def count(w, u, rounded, cells, sums):
        """Add to `cells` (LANES a key, the key 4 * row + column) and to the sums of u^2, d^2 and d*u.

        The rows are floor(log2|u/w|) + RATIO_OFFSET, but for ZERO_UPDATE, NONFINITE and ZERO_WEIGHT.
        """
        keys = np.empty(TILE, np.uint32)
        updates, effective, rest = np.empty(TILE), np.empty(TILE), np.empty(TILE)
        for start in range(0, w.size, TILE):
            ws, us, rs = w[start : start + TILE], u[start : start + TILE], rounded[start : start + TILE]
            n = ws.size
            for j in range(n):
                a, b = U(_reinterpret(ws[j]) & ABS), U(_reinterpret(us[j]) & ABS)
                # subnormals have no leading bit: lift them among the normals
                a_low, b_low = a < SMALLEST_NORMAL, b < SMALLEST_NORMAL
                a_bits = Signed(_reinterpret(F(_reinterpret(a) * LIFT))) if a_low else Signed(a)
                b_bits = Signed(_reinterpret(F(_reinterpret(b) * LIFT))) if b_low else Signed(b)
                row = Signed(Signed(Signed(b_bits - a_bits) >> SHIFT) + Signed(RATIO_OFFSET))
                row = Signed(row + (LIFTED if a_low else Signed(0)) - (LIFTED if b_low else Signed(0)))
                row = Signed(ZERO_WEIGHT) if a == U(0) else row
                row = Signed(ZERO_UPDATE) if b == U(0) else row
                usable = (a < INF) & (b < LIMIT)
                row = row if usable else Signed(NONFINITE)
                finite = U(_reinterpret(rs[j]) & ABS) < INF
                column = (Signed(LOST) if rs[j] == ws[j] else Signed(0)) if finite else Signed(OVERFLOWED)
                keys[j] = U32(Signed(Signed(Signed(row << Signed(2)) + column) * Signed(LANES)))
                counted = usable & finite
                updates[j] = np.float64(us[j]) if counted else 0.0
                effective[j] = np.float64(rs[j]) - np.float64(ws[j]) if counted else 0.0
            whole = n - n % LANES
            for j in range(0, whole, LANES):
                for lane in range(LANES):
                    cells[U64(keys[j + lane]) + U64(lane)] += U32(1)
            for j in range(whole, n):
                cells[U64(keys[j])] += U32(1)
            # |u| < 2^(raw - 1022) and so on: the unit is 2^-51 of the bound of the product
            raw, changed = _exponent_of_largest(updates[:n]), _exponent_of_largest(effective[:n])
            if raw >= 0:
                _add_products(updates[:n], updates[:n], raw + raw - 1021, rest[:n], sums[0])
            if changed >= 0:
                _add_products(effective[:n], effective[:n], changed + changed - 1021, rest[:n], sums[1])
                _add_products(effective[:n], updates[:n], changed + raw - 1021, rest[:n], sums[2])

    @compiled()
    def tell(w, u, rounded, outcomes):
        """Write what became of each update: LOST, MOVED (or overflowed), or NO_UPDATE where `count` finds none."""
        for j in range(w.size):
            a, b = U(_reinterpret(w[j]) & ABS), U(_reinterpret(u[j]) & ABS)
            counts = (a < INF) & (b < LIMIT) & (b != U(0))
            outcomes[j] = (np.uint8(LOST) if rounded[j] == w[j] else np.uint8(MOVED)) if counts else np.uint8(NO_UPDATE)

    return add_to_odd, count, tell


_add_to_odd_32, _count_updates_32, _tell_32 = _make_updates(U32, np.float32, np.int32, 32, 23, np.inf)
_add_to_odd_64, _count_updates_64, _tell_64 = _make_updates(U64, np.float64, np.int64, 64, 52, LARGEST_UPDATE)

ROUNDINGS_32 = (mask_even_plain, add_even_plain_32, add_even_32, directed_32)
ROUNDINGS_64 = (add_even_plain_64, add_even_64, directed_64, seeded_plain_64, seeded_64)


@compiled()
def _round_32(kind, x, out, c, stream):
    if kind == 0:
        mask_even_plain(x, out, c)
    elif kind == 1:
        add_even_plain_32(x, out, c)
    elif kind == 2:
        add_even_32(x, out, c)
    else:
        directed_32(x, out, c)


@compiled()
def _round_64(kind, x, out, c, stream):
    if kind == 0:
        add_even_plain_64(x, out, c)
    elif kind == 1:
        add_even_64(x, out, c)
    elif kind == 2:
        directed_64(x, out, c)
    elif kind == 3:
        seeded_plain_64(x, out, c, stream)
    else:
        seeded_64(x, out, c, stream)


@compiled()
def _unhide(x, rounded):
    """Put a NaN wherever x is infinite or NaN."""
    for j in range(x.size):
        rounded[j] = rounded[j] if np.isfinite(x[j]) else np.nan


# twice the same: what a factory closes over, or what takes loops as arguments, is compiled in every process anew
@compiled()
def _step_32(w, u, storing, rounding, stream, hides, stored, total, rounded):
    _round_32(storing[0], w, stored, storing[1], stream)
    if hides:
        _unhide(w, stored)
    _add_to_odd_32(stored, u, total)
    _round_32(rounding[0], total, rounded, rounding[1], stream)
    stream[1] += U64(w.size)


@compiled()
def updates_32(w, u, storing, rounding, stream, hides, cells, sums):
    """Store float32 weights, add updates, round, and count, tile by tile.

    The roundings are pairs: an index into ROUNDINGS_32, and its constants. `stream` is a seed and the index of the
    first element, which moves on; `hides` says that storing makes something finite of an infinity or a NaN.
    """
    room = np.empty((3, UPDATE_TILE), np.float32)
    for start in range(0, w.size, UPDATE_TILE):
        ws, us = w[start : start + UPDATE_TILE], u[start : start + UPDATE_TILE]
        stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
        _step_32(ws, us, storing, rounding, stream, hides, stored, total, rounded)
        _count_updates_32(stored, us, rounded, cells, sums)


@compiled()
def outcomes_32(w, u, storing, rounding, stream, hides, outcomes):
    """Store, add and round as `updates_32`, and write what became of each update."""
    room = np.empty((3, UPDATE_TILE), np.float32)
    for start in range(0, w.size, UPDATE_TILE):
        ws, us = w[start : start + UPDATE_TILE], u[start : start + UPDATE_TILE]
        stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
        _step_32(ws, us, storing, rounding, stream, hides, stored, total, rounded)
        _tell_32(stored, us, rounded, outcomes[start : start + UPDATE_TILE])


@compiled()
def _step_64(w, u, storing, rounding, stream, hides, stored, total, rounded):
    _round_64(storing[0], w, stored, storing[1], stream)
    if hides:
        _unhide(w, stored)
    _add_to_odd_64(stored, u, total)
    _round_64(rounding[0], total, rounded, rounding[1], stream)
    stream[1] += U64(w.size)


@compiled()
def updates_64(w, u, storing, rounding, stream, hides, cells, sums):
    """The same for float64, with ROUNDINGS_64."""
    room = np.empty((3, UPDATE_TILE), np.float64)
    for start in range(0, w.size, UPDATE_TILE):
        ws, us = w[start : start + UPDATE_TILE], u[start : start + UPDATE_TILE]
        stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
        _step_64(ws, us, storing, rounding, stream, hides, stored, total, rounded)
        _count_updates_64(stored, us, rounded, cells, sums)


@compiled()
def outcomes_64(w, u, storing, rounding, stream, hides, outcomes):
    """Write outcomes for float64, with ROUNDINGS_64."""
    room = np.empty((3, UPDATE_TILE), np.float64)
    for start in range(0, w.size, UPDATE_TILE):
        ws, us = w[start : start + UPDATE_TILE], u[start : start + UPDATE_TILE]
        stored, total, rounded = room[0, : ws.size], room[1, : ws.size], room[2, : ws.size]
        _step_64(ws, us, storing, rounding, stream, hides, stored, total, rounded)
        _tell_64(stored, us, rounded, outcomes[start : start + UPDATE_TILE])


UPDATES = updates_32, updates_64
OUTCOMES = outcomes_32, outcomes_64

WEIGHT_CLASSES = 4  # power of two (or zero), even, odd, and the largest value of a format that saturates
WEIGHT_ROWS = 256


@compiled()
def count_weights(w, cells, c):
    """Add float32 values of a format to `cells` (LANES a key): 8 * row + 2 * class + (whether negative).

    The row is the exponent field, for subnormals and zero one less than the smallest normal's; infinity and NaN are in
    the last row.
    """
    smallest_normal, last_bit, largest = _reinterpret(c[0]), c[1], c[2]
    keys = np.empty(TILE, np.uint32)
    for start in range(0, w.size, TILE):
        tile = w[start : start + TILE]
        n = tile.size
        for j in range(n):
            b = _reinterpret(tile[j])
            a = U32(b & MAGNITUDE)
            v = _reinterpret(a)
            small = v < smallest_normal
            # beside the smallest normal, subnormals have their last bit where normals have theirs
            bits = _reinterpret(np.float32(v + smallest_normal)) if small else a
            row = U32(U32(bits >> U32(23)) - (U32(1) if small else U32(0)))
            kind = U32(2) if U32(bits & last_bit) != U32(0) else U32(1)
            kind = U32(0) if U32(bits & U32(0x7FFFFF)) == U32(0) else kind
            kind = U32(3) if a == largest else kind
            key = U32(U32(row << U32(3)) | U32(U32(kind << U32(1)) | U32(b >> U32(31))))
            keys[j] = U32(key * U32(LANES))
        whole = n - n % LANES
        for j in range(0, whole, LANES):
            for lane in range(LANES):
                cells[U64(keys[j + lane]) + U64(lane)] += U32(1)
        for j in range(whole, n):
            cells[U64(keys[j])] += U32(1)


@compiled()
def add_in_turn(terms, numbers, state, c):
    """Add positive values of a format one by one to state[0]; return how many came before one that cannot change it.

    All of them if there is none. An infinity or NaN ends it too. `numbers`: of stochastic rounding, else empty.
    """
    mantissa_bits, lowest = np.int64(c[0]), np.int64(c[1]) + np.int64(1023)
    largest, beyond, at_even, at_odd = c[2], c[3], c[4], c[5]
    total = state[0]
    for i in range(terms.size):
        # rounded to odd in float64, as in add_to_odd, and then once more
        s = total + terms[i]
        t = s - total
        error = (total - (s - t)) + (terms[i] - t)
        bits = _reinterpret(s)
        if error != 0.0 and U64(bits & U64(1)) == U64(0):
            bits = U64(bits + U64(1)) if error > 0.0 else U64(bits - U64(1))
            s = _reinterpret(bits)
        field = max(np.int64(bits >> U64(52)), lowest) - mantissa_bits
        position = s * _reinterpret(U64(U64(2046 - field) << U64(52)))  # in spacings
        k = np.int64(position)
        rest = position - np.float64(k)
        if numbers.size:
            reach = np.floor(rest * 65536.0)
            away = reach + np.float64(numbers[i]) >= 65536.0
            certain = reach == 0.0
        else:
            away = rest >= (at_odd if k & np.int64(1) else at_even)
            certain = True
        rounded = np.float64(k + np.int64(away)) * _reinterpret(U64(U64(field) << U64(52)))
        rounded = beyond if rounded > largest else rounded
        if rounded == total and (certain or total == beyond):
            state[0] = total
            return i
        total = rounded
        if not total < np.inf:
            state[0] = total
            return i + 1
    state[0] = total
    return terms.size
