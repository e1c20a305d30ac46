"""Words, masks, and what LLVM does with bits that numba does not offer."""

from __future__ import annotations

from typing import Any, get_type_hints

import numpy as np
from numba import types
from numba.extending import intrinsic

from precision_lab.numerics.kernels.compiled import compiled

U32 = np.uint32
U64 = np.uint64

SIGN = U32(0x80000000)
MAGNITUDE = U32(0x7FFFFFFF)
INFINITY = U32(0x7F800000)
QUIET = U32(0x00400000)

TILE = 1024  # elements whose random numbers or keys are held in the first-level cache at a time


@intrinsic
def leading_zeros(typing_context: Any, x: Any) -> Any:
    """Count the leading zero bits of an unsigned integer (LLVM's ctlz; 0 counts its width)."""
    import llvmlite.ir as ir

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(x.bitwidth)
        count = builder.module.declare_intrinsic("llvm.ctlz", [word], ir.FunctionType(word, [word, ir.IntType(1)]))
        return builder.call(count, [args[0], ir.Constant(ir.IntType(1), 0)])

    return x(x), codegen


_FLOATS: dict[Any, Any] = {types.uint32: types.float32, types.uint64: types.float64}
_BY_WIDTH = _FLOATS | {real: bits for bits, real in _FLOATS.items()}


@intrinsic
def reinterpret(typing_context: Any, x: Any) -> Any:
    """Reinterpret the bits of a float as an unsigned integer of its width, and back."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return _BY_WIDTH[x](x), codegen


@intrinsic
def named(typing_context: Any, layout: Any, constants: Any) -> Any:
    """Return the elements of an array by the names of a NamedTuple, as `plans.packed` laid them out.

    In an array of bit patterns what the NamedTuple annotates as float is one of a float of that width; in an array of
    float64 what it annotates as int is an integer.
    """
    packed, kind = constants.dtype, layout.instance_class
    of_bits = packed in _FLOATS
    real, integer = (_FLOATS[packed], packed) if of_bits else (packed, types.int64)
    members = [real if hint is float else integer for hint in get_type_hints(kind).values()]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        items = []
        for i, member in enumerate(members):
            item = builder.load(builder.gep(data, [ir.Constant(ir.IntType(32), i)]))
            value = context.get_value_type(member)
            if of_bits:
                items.append(builder.bitcast(item, value))
            else:
                items.append(item if member is packed else builder.fptosi(item, value))
        return context.make_tuple(builder, signature.return_type, items)

    return types.BaseTuple.from_types(members, kind)(layout, constants), codegen


@intrinsic
def borrowed(typing_context: Any, array: Any) -> Any:
    """Return an array that takes no share in its memory, which must be held as long by who calls.

    To count who shares in it would take longer than many a loop over a tile: each slice does so several times.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = context.make_array(array)(context, builder, args[0])
        made.meminfo = made.meminfo.type(None)
        return made._getvalue()

    return array(array), codegen


@compiled()
def copy(x, out):
    """Copy a vector. Numba's own assignment of arrays compiles what it would say of other shapes, too: for seconds."""
    for i in range(x.size):
        out[i] = x[i]


@intrinsic
def any_order(typing_context: Any, total: Any, x: Any) -> Any:
    """Return total + x; LLVM may add up in another order: for sums that are exact in every one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args, flags=["reassoc"])

    return x(x, x), codegen


def _make_shift(instruction: str) -> Any:
    """Build a shift of an unsigned integer by a count below its width, at its own width (numba's is 64 bits wide)."""

    def shift(typing_context: Any, x: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(args[0], args[1])

        return x(x, x), codegen

    return intrinsic(shift)


shift_up, shift_down = _make_shift("shl"), _make_shift("lshr")
