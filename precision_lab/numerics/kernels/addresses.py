"""Loops called by the address of their machine code: of many roundings only those that are asked for are compiled."""

from __future__ import annotations

from typing import Any

from numba import typeof, types
from numba.core.cgutils import unpack_tuple
from numba.extending import intrinsic


def address(loop: Any, *arguments: Any) -> int:
    """Return where the machine code of a loop for such arguments begins, for `call`; it lives as long as the loop."""
    kinds = tuple(map(typeof, arguments))
    loop.compile(kinds)
    made = loop.overloads[kinds]
    place: int = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    return place


@intrinsic
def call(typing_context: Any, place: Any, arguments: Any) -> Any:
    """Call a loop by its address: of many roundings only those that are asked for are compiled, and not once more here.

    Arrays are contiguous and aligned; whether they may be written to is not compared.
    """
    kinds = [types.Array(kind.dtype, 1, "C") if isinstance(kind, types.Array) else kind for kind in arguments]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        convention = context.call_conv
        loop = builder.inttoptr(args[0], convention.get_function_type(types.none, kinds).as_pointer())
        convention.call_function(builder, loop, types.none, kinds, unpack_tuple(builder, args[1]))  # raises nothing
        return context.get_dummy_value()

    return types.none(place, arguments), codegen
