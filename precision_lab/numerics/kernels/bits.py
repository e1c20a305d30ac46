"""Words, masks, and what LLVM does with bits that numba does not offer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

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


@intrinsic
def reinterpret(typing_context: Any, x: Any) -> Any:
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


shift_up, shift_down = _make_shift("shl"), _make_shift("lshr")
