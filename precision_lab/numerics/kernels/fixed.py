"""The compiled loops of `precision_lab.numerics.fixed`: products, sums, and elementary functions of stated bits.

Nothing here calls BLAS or libm, lets a product and a sum be fused, or adds in an order that the compiler or the
processor may choose: every operation is an IEEE 754 addition, multiplication, division or square root in a written
order. LLVM contracts nothing unless it is asked to, and it is not.

An elementary function is computed as the sum of two doubles, high + low, some 60 bits together. Rounding the pair to
odd (the last bit of high tells whether something follows) and once more to float32 is one correct rounding (Boldo and
Melquiond 2008), wherever the error of the pair is smaller than its distance from the nearest midpoint of two float32
values; that this is so for every float32 is proven by trying them all (tests/numerics/test_fixed_exhaustive.py).
"""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from precision_lab.numerics.kernels.bits import reinterpret
from precision_lab.numerics.kernels.compiled import compiled

I64 = np.int64
U64 = np.uint64

# --- products --------------------------------------------------------------------------------------------------------
# Four rows of the result and one vector of its columns stay in registers while k ascends: each element has one
# accumulator, to which one rounded product after the other is added. The vectors are explicit, since LLVM's own
# vectoriser keeps accumulators in memory; where a processor's are shorter, LLVM cuts them up.

VECTOR_BYTES = 64
ROWS = 4


@intrinsic
def _address(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return a pointer to the element at an offset, counted in elements, from the first of an array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.gep(made.data, [args[1]])

    return types.CPointer(array.dtype)(array, types.intp), codegen


def _make_multiply(rows: int) -> Any:
    """Build the product of `rows` rows and one vector of columns."""

    def multiply(
        typing_context: Any,
        left: Any,
        right: Any,
        out: Any,
        steps: Any,
        row: Any,
        step: Any,
        right_row: Any,
        out_row: Any,
    ) -> Any:
        """Write to `out`; `row` and `step` are the strides of `left`, the others those of rows, all in elements."""
        import llvmlite.ir as ir

        bytes_each = left.dtype.bitwidth // 8
        lanes = VECTOR_BYTES // bytes_each

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            left, right, out, steps, row, step, right_row, out_row = args
            real, index = context.get_value_type(signature.args[0].dtype), ir.IntType(32)
            vector = ir.VectorType(real, lanes)
            undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0.0] * lanes)
            everywhere = ir.Constant(ir.VectorType(index, lanes), [0] * lanes)

            def at(pointer: Any, stride: Any, count: Any) -> Any:
                count = count if isinstance(count, ir.Value) else ir.Constant(stride.type, count)
                return builder.gep(pointer, [builder.mul(stride, count)])

            def spread(x: Any) -> Any:
                first = builder.insert_element(undefined, x, ir.Constant(index, 0))
                return builder.shuffle_vector(first, undefined, everywhere)

            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(rows)]  # LLVM makes registers of them
            with cgutils.for_range(builder, steps) as loop:
                place = builder.bitcast(at(right, right_row, loop.index), vector.as_pointer())
                b = builder.load(place, align=bytes_each)
                for i, total in enumerate(sums):
                    a = builder.load(at(at(left, row, i), step, loop.index))
                    builder.store(builder.fadd(builder.load(total), builder.fmul(spread(a), b)), total)
            for i, total in enumerate(sums):
                place = builder.bitcast(at(out, out_row, i), vector.as_pointer())
                builder.store(builder.load(total), place, align=bytes_each)
            return context.get_dummy_value()

        return types.void(left, right, out, *[types.intp] * 5), codegen

    return intrinsic(multiply)


_multiply_rows, _multiply_row = _make_multiply(ROWS), _make_multiply(1)
FEW_ROWS = 64  # up to here it does not pay to bring the columns together first


@compiled()
def _multiply(left, right, out, panel, tile):
    """Write left @ right to `out`, which is contiguous; panel and tile are scratch."""
    rows, steps, columns = left.shape[0], left.shape[1], right.shape[1]
    row, step, lanes = left.strides[0] // left.itemsize, left.strides[1] // left.itemsize, panel.shape[1]
    in_place = rows <= FEW_ROWS and right.strides[1] == right.itemsize
    for column in range(0, columns, lanes):
        width = min(lanes, columns - column)
        if in_place and width == lanes:
            source, source_row = _address(right, column), right.strides[0] // right.itemsize
        else:
            for k in range(steps):
                for j in range(width):
                    panel[k, j] = right[k, column + j]
            source, source_row = _address(panel, 0), lanes
        for start in range(0, rows, ROWS):
            # the last group begins early, so that it is whole: what is computed twice is computed the same
            i = max(min(start, rows - ROWS), 0)
            count = min(ROWS, rows)
            first = _address(left, i * row)
            if count == ROWS and width == lanes:
                target = _address(out, i * columns + column)
                _multiply_rows(first, source, target, steps, row, step, source_row, columns)
                continue
            if count == ROWS:
                _multiply_rows(first, source, _address(tile, 0), steps, row, step, source_row, lanes)
            else:
                for part in range(count):
                    one, target = _address(left, (i + part) * row), _address(tile, part * lanes)
                    _multiply_row(one, source, target, steps, row, step, source_row, lanes)
            for part in range(count):
                for j in range(width):
                    out[i + part, column + j] = tile[part, j]


@compiled()
def _multiply_any(left, right, out, panel, tile):
    """Write left @ right to `out`; where its columns do not fill half a vector, by the product of the transposed."""
    rows, columns = out.shape
    if 2 * columns <= panel.shape[1] and columns < rows:
        turned = np.empty((columns, rows), out.dtype)
        _multiply(right.T, left.T, turned, panel, tile)
        for i in range(rows):
            for j in range(columns):
                out[i, j] = turned[j, i]
    else:
        _multiply(left, right, out, panel, tile)


def _products(dimensions: int) -> Any:
    """Return signatures: matrices however they lie in memory, so that no layout is compiled apart."""
    given = [types.Array(real, dimensions, "A", readonly=True) for real in (types.float32, types.float64)]
    return [types.void(matrix, matrix, types.Array(matrix.dtype, dimensions, "C")) for matrix in given]


@compiled(signatures=_products(2))
def matmul(left, right, out):
    """Write left @ right to `out`: k ascending from +0, each product and each sum rounded."""
    lanes = VECTOR_BYTES // left.itemsize
    panel, tile = np.zeros((left.shape[1], lanes), left.dtype), np.empty((ROWS, lanes), left.dtype)
    _multiply_any(left, right, out, panel, tile)


@compiled(signatures=_products(3))
def matmul_each(left, right, out):
    """Write left[i] @ right[i] to out[i], for every i, as `matmul`."""
    lanes = VECTOR_BYTES // left.itemsize
    panel, tile = np.zeros((left.shape[2], lanes), left.dtype), np.empty((ROWS, lanes), left.dtype)
    for i in range(left.shape[0]):
        _multiply_any(left[i], right[i], out[i], panel, tile)


# --- sums ------------------------------------------------------------------------------------------------------------


@compiled()
def sum_middle(x, out):
    """Add up the middle one of three dimensions: ascending, from +0."""
    for i in range(x.shape[0]):
        if x.shape[2] == 1:
            total = out[i, 0]
            for k in range(x.shape[1]):
                total += x[i, k, 0]
            out[i, 0] = total
        else:
            sums = out[i]
            for k in range(x.shape[1]):
                row = x[i, k]
                for j in range(sums.size):
                    sums[j] += row[j]


@compiled()
def sum_by_group(rows, groups, sums):
    """Add row after row to the sums of its group."""
    for i in range(groups.size):
        total, row = sums[groups[i]], rows[i]
        for j in range(row.size):
            total[j] += row[j]


# --- elementary functions --------------------------------------------------------------------------------------------
# The constants are defined, not measured: Taylor's coefficients, and tables that `decimal` computes to 50 digits
# (its exp and ln are correctly rounded) and that are split into two doubles.

_CONTEXT = Context(prec=50)
_LN2 = _CONTEXT.ln(Decimal(2))


def _split(x: Decimal, unit: float = 0.0) -> tuple[float, float]:
    """Return x as the sum of two doubles; the first a multiple of `unit`, a power of two, where one is given."""
    high = round(Fraction(x) / Fraction(unit)) * unit if unit else float(x)
    return high, float(Fraction(x) - Fraction(high))


EXP_PARTS = 64  # the table has 2^(j/64)
_EXP_TABLE = np.array([_split(_CONTEXT.exp(_CONTEXT.divide(_LN2 * j, Decimal(EXP_PARTS)))) for j in range(EXP_PARTS)])
_EXP_HIGH, _EXP_LOW = _EXP_TABLE[:, 0].copy(), _EXP_TABLE[:, 1].copy()
# a multiple of the unit times any count of parts is exact
_PART_HIGH, _PART_LOW = _split(_CONTEXT.divide(_LN2, Decimal(EXP_PARTS)), 2.0**-40)
_PARTS_PER_UNIT = float(_CONTEXT.divide(Decimal(EXP_PARTS), _LN2))
_TO_INTEGER = 1.5 * 2.0**52  # x + this - this is x rounded to an integer, which is in the low bits of x + this

LOG_PARTS = 128
_LOG_FIRST = I64(0x3FE6000000000000)  # 0.6875: significands are taken from [0.6875, 1.375)
_TOP_28 = U64(0xFFFFFFFFFE000000)  # of a double's 53 significand bits, 28
_TOP_26 = U64(0xFFFFFFFFF8000000)  # 26: products of two such are exact


def _log_table() -> tuple[Any, Any, Any]:
    """Return for each part of [0.6875, 1.375) a number c near the inverses of its values, and -log(c) as two doubles.

    Beside 1 it is 1: there the logarithm is small, and nothing may be lost to cancellation.
    """
    inverses, logs = [], []
    for j in range(LOG_PARTS):
        ends = [int(_LOG_FIRST) + ((j + end) << 45) for end in (0, 1)]
        below, above = np.array(ends, I64).view(np.float64).tolist()
        c = 1.0 if 1.0 in (below, above) else round(2 / (below + above) * 2**20) / 2**20
        inverses.append(c)
        logs.append(_split(-_CONTEXT.ln(Decimal(c)), 2.0**-42))
    high, low = zip(*logs, strict=True)
    return np.array(inverses), np.array(high), np.array(low)


_INVERSE, _LOG_HIGH, _LOG_LOW = _log_table()
_LN2_HIGH, _LN2_LOW = _split(_LN2, 2.0**-42)
_PER_LN2 = _split(_CONTEXT.divide(Decimal(1), _LN2))
_PER_LN10 = _split(_CONTEXT.divide(Decimal(1), _CONTEXT.ln(Decimal(10))))


def _tangent_coefficients(count: int) -> list[float]:
    """Return the coefficients of x^3, x^5, ... in tanh x, from tanh' = 1 - tanh^2."""
    series = [Fraction(1)]
    for n in range(1, count + 1):
        square = sum((series[i] * series[n - 1 - i] for i in range(n)), Fraction(0))
        series.append(-square / (2 * n + 1))
    return [float(c) for c in series[1:]]


_T3, _T5, _T7, _T9, _T11, _T13, _T15, _T17, _T19 = _tangent_coefficients(9)
_TANH_SMALL = 0.125  # below it the series
_TANH_LARGE = 22.0  # from here on 1 is nearer than its neighbour, in float64 too


@compiled()
def _add_small(large, small):
    """Return the sum and its error (Dekker 1971), for abs(large) >= abs(small)."""
    total = large + small
    return total, (large - total) + small


@compiled()
def _cut(x, mask):
    """Clear low bits of a double."""
    return reinterpret(U64(reinterpret(x) & mask))


@compiled()
def _to_odd(high, low):
    """Round high + low to odd, so that one more rounding, to a narrower format, is exact."""
    bits = reinterpret(high)
    outward = (low > 0.0) == (high > 0.0)
    step = U64(1) if outward else U64(0xFFFFFFFFFFFFFFFF)
    return reinterpret(U64(bits + step)) if low != 0.0 and U64(bits & U64(1)) == U64(0) else high


@compiled(error_model="numpy")  # without a branch at every division
def _divide(high, low, by_high, by_low):
    """Divide a pair of positive doubles by another, to some 75 bits."""
    divisor = _cut(by_high, _TOP_26)
    rest = (by_high - divisor) + by_low
    quotient = _cut(high / by_high, _TOP_26)
    remainder = ((high - quotient * divisor) - quotient * rest) + low
    return _add_small(quotient, remainder / by_high)


@compiled()
def _exp(x):
    """Return exp(x) = (high + low) * 2^power for a finite x of at most 2^10 in magnitude; 1 <= high < 2 or nearly."""
    shifted = x * _PARTS_PER_UNIT + _TO_INTEGER
    k = shifted - _TO_INTEGER
    parts = I64(reinterpret(shifted)) - I64(reinterpret(_TO_INTEGER))
    r, error = _add_small(x - k * _PART_HIGH, -(k * _PART_LOW))  # the first difference is exact
    p = r * r * (0.5 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720)))))
    j = parts & I64(EXP_PARTS - 1)
    base = _EXP_HIGH[j]
    high, low = _add_small(base, base * (r + (p + error)) + _EXP_LOW[j])
    return high, low, parts >> I64(6)


@compiled()
def _two_to(power):
    """Return 2^power, for the powers of normal doubles."""
    return reinterpret(U64((power + I64(1023)) << I64(52)))


@compiled()
def exp(x, out):
    """Write the exponentials, of float32 correctly rounded."""
    narrow = out.itemsize == 4
    for i in range(x.size):
        v = np.float64(x[i])
        # beyond these both types have their infinity and their zero
        high, low, power = _exp(min(max(v, -750.0), 710.0))
        value = _to_odd(high, low) if narrow else high
        half = power >> I64(1)  # 2^power itself may be out of range
        value = value * _two_to(half) * _two_to(power - half)
        out[i] = value if v == v else v


@compiled()
def _log(v):
    """Return log(v) as a pair, for positive finite v."""
    tiny = v < 2.0**-1022
    bits = I64(reinterpret(v * 2.0**54 if tiny else v))
    offset = bits - _LOG_FIRST
    exponent = offset >> I64(52)
    j = (offset >> I64(45)) & I64(LOG_PARTS - 1)
    z = reinterpret(U64(bits - (exponent << I64(52))))
    e = np.float64(exponent - (I64(54) if tiny else I64(0)))
    c = _INVERSE[j]
    top = _cut(z, _TOP_28)
    r, error = _add_small(top * c - 1.0, (z - top) * c)  # the first product and the difference are exact
    high, low = _add_small(e * _LN2_HIGH + _LOG_HIGH[j], r)
    p = r * r * (-0.5 + r * (1 / 3 + r * (-0.25 + r * (0.2 + r * (-1 / 6 + r * (1 / 7 + r * (-0.125 + r * (1 / 9))))))))
    return _add_small(high, p + (low + (error + (e * _LN2_LOW + _LOG_LOW[j]))))


@compiled()
def _log_of_any(high, v):
    """Return the logarithm, where v is neither positive nor finite too."""
    high = np.inf if v == np.inf else high
    high = -np.inf if v == 0.0 else high
    return high if v >= 0.0 else np.nan


@compiled()
def log(x, out):
    """Write the natural logarithms, of float32 correctly rounded."""
    narrow = out.itemsize == 4
    for i in range(x.size):
        v = np.float64(x[i])
        high, low = _log(v if (v > 0.0) & (v < np.inf) else 1.0)
        out[i] = _log_of_any(_to_odd(high, low) if narrow else high, v)


@compiled()
def log_to_base(x, out, factor_high, factor_low):
    """Write log(x) times a pair of numbers, one over the logarithm of the base; powers of the base come out exact."""
    factor = _cut(factor_high, _TOP_26)
    rest = (factor_high - factor) + factor_low
    for i in range(x.size):
        v = np.float64(x[i])
        high, low = _log(v if (v > 0.0) & (v < np.inf) else 1.0)
        top = _cut(high, _TOP_26)
        value = top * factor + (top * rest + ((high - top) + low) * factor_high)
        out[i] = _log_of_any(value, v)


PER_LN2, PER_LN10 = _PER_LN2, _PER_LN10


@compiled(error_model="numpy")  # without a branch at every division
def tanh(x, out):
    """Write the hyperbolic tangents, of float32 correctly rounded."""
    narrow = out.itemsize == 4
    for i in range(x.size):
        v = np.float64(x[i])
        a = abs(v)
        b = min(a, _TANH_LARGE)
        s = b * b
        tail = _T9 + s * (_T11 + s * (_T13 + s * (_T15 + s * (_T17 + s * _T19))))
        small_high, small_low = _add_small(b, b * s * (_T3 + s * (_T5 + s * (_T7 + s * tail))))
        # 1 - 2 / (exp(2 a) + 1)
        high, low, power = _exp(max(b, _TANH_SMALL) * 2.0)
        scale = _two_to(power)
        by_high, by_low = _add_small(high * scale, 1.0)
        quotient, rest = _divide(2.0, 0.0, by_high, by_low + low * scale)
        high, low = _add_small(1.0, -quotient)
        high, low = _add_small(high, low - rest)
        is_small = b < _TANH_SMALL
        high, low = (small_high, small_low) if is_small else (high, low)
        value = _to_odd(high, low) if narrow else high
        out[i] = np.copysign(value, v) if v == v else v


@compiled(error_model="numpy")  # without a branch at every division
def sigmoid(x, out):
    """Write 1 / (1 + exp(-x)), of float32 correctly rounded."""
    narrow = out.itemsize == 4
    for i in range(x.size):
        v = np.float64(x[i])
        # exp(-|x|) is at most 1: for x below 0 it is the numerator too
        high, low, power = _exp(max(-abs(v), -750.0))
        half = power >> I64(1)
        high, low = high * _two_to(half) * _two_to(power - half), low * _two_to(half) * _two_to(power - half)
        by_high, by_low = _add_small(1.0, high)
        negative = v < 0.0
        quotient, rest = _divide(high if negative else 1.0, low if negative else 0.0, by_high, by_low + low)
        value = _to_odd(quotient, rest) if narrow else quotient
        out[i] = value if v == v else v
