"""Several numbers at once, where LLVM does not find the best instructions by itself.

`Lanes` are a vector of LLVM, written as NumPy arrays are. They serve to write an intrinsic: a block of a loop of which
the rest is numba's. LLVM makes of them whatever the processor has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

from numba import types
from numba.core.cgutils import alloca_once, get_or_insert_function, unpack_tuple
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from precision_lab.numerics.kernels.compiled import compiled

BLOCK = 32
"""Elements of a block."""
TILE = 4 * BLOCK
"""Elements that are computed at a time where what comes next is fetched meanwhile."""
LINE = 64
"""Bytes that are fetched at once."""
AHEAD = 4096
"""Bytes from what is computed to what is fetched: less leaves too little time, and more gains nothing."""
ALIGNMENT = 64
"""Bytes that the address of a block is a multiple of, where it is written past the caches."""


class Lanes:
    """A vector in the making: integers (unsigned, if nothing else is said) or floats.

    A number beside them, of Python or of the loop's constants, stands in every lane.
    """

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @property
    def width(self) -> int:
        """The bits of an integer."""
        width: int = self.value.type.element.width
        return width

    def _new(self, value: Any) -> Lanes:
        return Lanes(self.builder, value)

    def _vector(self, element: Any, count: int | None = None) -> Any:
        import llvmlite.ir as ir

        return ir.VectorType(element, count or self.value.type.count)

    def same(self, number: Any) -> Lanes:
        """Return lanes of this kind that all hold a number; lanes as they are."""
        import llvmlite.ir as ir

        kind = self.value.type
        if isinstance(number, Lanes):
            return number
        if isinstance(number, int | float):
            return self._new(ir.Constant(kind, [number] * kind.count))
        if number.type != kind.element:  # constants are as wide as the carrier
            number = self.builder.trunc(number, kind.element)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
        places = ir.Constant(self._vector(ir.IntType(32)), [0] * kind.count)
        return self._new(self.builder.shuffle_vector(first, nothing, places))

    def _with(self, operation: Any, other: Any) -> Lanes:
        return self._new(operation(self.value, self.same(other).value))

    def __and__(self, other: Any) -> Lanes:
        return self._with(self.builder.and_, other)

    def __or__(self, other: Any) -> Lanes:
        return self._with(self.builder.or_, other)

    def __xor__(self, other: Any) -> Lanes:
        return self._with(self.builder.xor, other)

    def __sub__(self, other: Any) -> Lanes:
        return self._with(self.builder.sub, other)

    def __add__(self, other: Any) -> Lanes:
        return self._with(self.builder.add, other)

    def __lshift__(self, other: Any) -> Lanes:
        return self._with(self.builder.shl, other)

    def __rshift__(self, other: Any) -> Lanes:
        return self._with(self.builder.lshr, other)

    def shift_signed(self, other: Any) -> Lanes:
        """Shift down, copies of the highest bit coming after it."""
        return self._with(self.builder.ashr, other)

    def rotated(self, count: int) -> Lanes:
        """Shift up, what is shifted out coming in from below."""
        return self << count | self >> self.width - count

    def plus(self, other: Any) -> Lanes:
        """Add floats."""
        return self._with(self.builder.fadd, other)

    def minus(self, other: Any) -> Lanes:
        """Subtract floats."""
        return self._with(self.builder.fsub, other)

    def times(self, other: Any) -> Lanes:
        """Multiply floats."""
        return self._with(self.builder.fmul, other)

    def times_plus(self, factor: Any, addend: Lanes) -> Lanes:
        """Multiply floats and add, fused where the processor can: for what is the same in both cases."""
        import llvmlite.ir as ir

        kind = self.value.type
        name = f"llvm.fmuladd.v{kind.count}{kind.element.intrinsic_name}"
        function = get_or_insert_function(self.builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return self._new(self.builder.call(function, [self.value, self.same(factor).value, addend.value]))

    def equals(self, other: Any) -> Any:
        """Return where integers are equal."""
        return self.builder.icmp_unsigned("==", self.value, self.same(other).value)

    def is_negative(self) -> Any:
        """Return where the highest bit is set."""
        return self.builder.icmp_signed("<", self.value, self.same(0).value)

    def exceeds(self, other: Any) -> Any:
        """Return where signed integers, or floats, are larger than others."""
        is_float = not hasattr(self.value.type.element, "width")
        compare = self.builder.fcmp_ordered if is_float else self.builder.icmp_signed
        return compare(">", self.value, self.same(other).value)

    def at_most(self, other: Any) -> Lanes:
        """Return the smaller of two integers."""
        other = self.same(other)
        return select(self.builder.icmp_unsigned("<", self.value, other.value), self, other)

    def at_least(self, other: Any) -> Lanes:
        """Return the larger of two integers."""
        other = self.same(other)
        return select(self.builder.icmp_unsigned(">", self.value, other.value), self, other)

    def or_larger(self, other: Any) -> Lanes:
        """Return the larger of two signed integers."""
        other = self.same(other)
        return select(self.exceeds(other), self, other)

    def narrowed(self, bits: int) -> Lanes:
        """Keep the lowest bits of integers."""
        import llvmlite.ir as ir

        return self._new(self.builder.trunc(self.value, self._vector(ir.IntType(bits))))

    def clamped(self, bits: int) -> Lanes:
        """Return signed integers as narrower ones: of those that do not fit the closest that does."""
        low, high = (self.same(end) for end in (-(1 << bits - 1), (1 << bits - 1) - 1))
        inner = select(self.builder.icmp_signed(">", self.value, low.value), self, low)
        return select(self.builder.icmp_signed("<", inner.value, high.value), inner, high).narrowed(bits)

    def widened(self, bits: int) -> Lanes:
        """Put zeros before integers."""
        import llvmlite.ir as ir

        kind = self._vector(ir.IntType(bits))
        return self if kind == self.value.type else self._new(self.builder.zext(self.value, kind))

    def as_bits(self) -> Lanes:
        """Reinterpret floats as their bits."""
        return self._new(self.builder.bitcast(self.value, self._vector(_counterpart(self.value.type.element))))

    def as_float(self) -> Lanes:
        """Reinterpret bits as floats."""
        return self._new(self.builder.bitcast(self.value, self._vector(_counterpart(self.value.type.element))))

    def truncated(self) -> Lanes:
        """Convert floats to signed integers of their width; what does not fit becomes anything."""
        return self._new(self.builder.fptosi(self.value, self._vector(_counterpart(self.value.type.element))))

    def converted(self) -> Lanes:
        """Convert signed integers to floats of their width."""
        return self._new(self.builder.sitofp(self.value, self._vector(_counterpart(self.value.type.element))))

    def split(self) -> Lanes:
        """Return each integer as two, the lower half first."""
        import llvmlite.ir as ir

        kind = self._vector(ir.IntType(self.width // 2), 2 * self.value.type.count)
        return self._new(self.builder.bitcast(self.value, kind))

    def joined(self) -> Lanes:
        """Return two integers after the other as one."""
        import llvmlite.ir as ir

        kind = self._vector(ir.IntType(2 * self.width), self.value.type.count // 2)
        return self._new(self.builder.bitcast(self.value, kind))

    def interleaved(self, other: Any) -> tuple[Lanes, Lanes]:
        """Take lanes of both in turns, of every 128 bits: those of their lower and of their upper half."""
        import llvmlite.ir as ir

        count, part = self.value.type.count, 128 // self.width
        other = self.same(other)

        def half(first: int) -> Lanes:
            pairs = ((start + i, count + start + i) for start in range(first, count, part) for i in range(part // 2))
            places = ir.Constant(self._vector(ir.IntType(32)), [place for pair in pairs for place in pair])
            return self._new(self.builder.shuffle_vector(self.value, other.value, places))

        return half(0), half(part // 2)

    def as_float32(self) -> Lanes:
        """Return float32 of itself, or of the bits of bf16."""
        return self if self.value.type.element != _short() else (self.widened(32) << 16).as_float()

    def halves(self) -> tuple[Lanes, Lanes]:
        """Return the lower and the upper half of the lanes."""
        import llvmlite.ir as ir

        middle = self.value.type.count // 2

        def half(first: int) -> Lanes:
            places = ir.Constant(self._vector(ir.IntType(32), middle), list(range(first, first + middle)))
            return self._new(self.builder.shuffle_vector(self.value, self.value, places))

        return half(0), half(middle)

    def either_nan(self, other: Lanes) -> Any:
        """Return where one of two floats is a NaN."""
        return self.builder.fcmp_unordered("uno", self.value, other.value)

    def to_half(self) -> Lanes:
        """Round float32 to the bits of fp16, ties to even; NaN becomes what the processor makes of it."""
        import llvmlite.ir as ir

        half = self.builder.fptrunc(self.value, self._vector(ir.HalfType()))
        return self._new(self.builder.bitcast(half, self._vector(ir.IntType(16))))

    def from_half(self) -> Lanes:
        """Return the values of the bits of fp16 in float32; NaN becomes what the processor makes of it."""
        import llvmlite.ir as ir

        half = self.builder.bitcast(self.value, self._vector(ir.HalfType()))
        return self._new(self.builder.fpext(half, self._vector(ir.FloatType())))


def _counterpart(element: Any) -> Any:
    """Return the integer type as wide as a float type, and the other way."""
    import llvmlite.ir as ir

    pairs = (ir.FloatType(), ir.IntType(32)), (ir.DoubleType(), ir.IntType(64))
    return {real: bits for pair in pairs for real, bits in (pair, pair[::-1])}[element]


def _short() -> Any:
    import llvmlite.ir as ir

    return ir.IntType(16)


def select(condition: Any, yes: Lanes, no: Any) -> Lanes:
    """Choose by lanes."""
    return Lanes(yes.builder, yes.builder.select(condition, yes.value, yes.same(no).value))


@compiled()
def first_block(out, past_caches):
    """Return where the elements before the first block begin and end, and whether blocks may go past the caches."""
    beyond = out.ctypes.data % ALIGNMENT
    if not past_caches or beyond % out.itemsize != 0:
        return 0, 0, False
    return 0, min((ALIGNMENT - beyond) % ALIGNMENT // out.itemsize, out.size), True


def on_blocks(function: Callable[[Lanes, SimpleNamespace, int], Lanes]) -> Any:
    """Make an intrinsic ``f(x, out, start, k, past_caches)`` for use in loops, which writes a block of `out`.

    `function` makes it of the block of x that begins there, the constants k, and the bits of an element of `out`. Past
    the caches goes what is larger than they are: it need not be read to be written; the block must be aligned then.
    """

    def write(typing_context: Any, x: Any, out: Any, start: Any, k: Any, past_caches: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            block = Place(context, builder, x, args[0], args[2]).load(0, BLOCK)
            result = function(block, constants(builder, k, args[3]), out.dtype.bitwidth)
            _put(builder, Place(context, builder, out, args[1], args[2]), [result], args[4])
            return context.get_dummy_value()

        return types.none(x, out, start, k, past_caches), codegen

    return intrinsic(write)


def _put(builder: Any, target: Place, blocks: list[Lanes], past_caches: Any) -> None:
    """Write blocks that follow each other."""
    import llvmlite.ir as ir

    with builder.if_else(past_caches) as (past, usual):
        with past:
            for i, block in enumerate(blocks):
                store = builder.store(block.value, target.address(i * BLOCK, BLOCK), align=ALIGNMENT)
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        with usual:
            for i, block in enumerate(blocks):
                target.store(i * BLOCK, block)


@intrinsic
def tile_for(typing_context: Any, out: Any) -> Any:
    """Return an array of TILE elements like those of another; it is gone when the function that calls returns."""
    kind = types.Array(out.dtype, 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        element = context.get_data_type(kind.dtype)
        data = alloca_once(builder, ir.ArrayType(element, TILE))
        data.align = ALIGNMENT
        size, itemsize = (ir.IntType(64)(n) for n in (TILE, kind.dtype.bitwidth // 8))
        tile = context.make_array(kind)(context, builder)
        first = builder.bitcast(data, element.as_pointer())
        populate_array(tile, first, shape=[size], strides=[itemsize], itemsize=itemsize, meminfo=None)
        return tile._getvalue()

    return kind(out), codegen


@intrinsic
def put_tile(typing_context: Any, tile: Any, out: Any, start: Any, past_caches: Any) -> Any:
    """Write a tile to where it belongs in an array; past the caches as `on_blocks` makes it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        source = Place(context, builder, tile, args[0], ir.IntType(64)(0))
        blocks = [source.load(first, BLOCK) for first in range(0, TILE, BLOCK)]
        _put(builder, Place(context, builder, out, args[1], args[2]), blocks, args[3])
        return context.get_dummy_value()

    return types.none(tile, out, start, past_caches), codegen


@intrinsic
def fetch_ahead(typing_context: Any, array: Any, start: Any) -> Any:
    """Have the tile AHEAD bytes later, or what lies there beyond the end, fetched into the caches meanwhile."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        import llvmlite.ir as ir

        word, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        fetch = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        first = builder.bitcast(Place(context, builder, array, *args).first, pointer)
        for line in range(AHEAD, AHEAD + TILE * array.dtype.bitwidth // 8, LINE):
            address = builder.gep(first, [ir.Constant(ir.IntType(64), line)])
            builder.call(fetch, [address, word(0), word(3), word(1)])  # to be read, into all of them, data
        return context.get_dummy_value()

    return types.none(array, start), codegen


def of_blocks(function: Callable[[Lanes, SimpleNamespace], Any]) -> Any:
    """Make an intrinsic ``f(x, start, k)`` for use in loops: whether `function` holds in some lane of a block."""

    def holds(typing_context: Any, x: Any, start: Any, k: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            block = Place(context, builder, x, args[0], args[1]).load(0, BLOCK)
            return some(builder, function(block, constants(builder, k, args[2])))

        return types.boolean(x, start, k), codegen

    return intrinsic(holds)


def some(builder: Any, condition: Any) -> Any:
    """Return whether a condition holds in some lane."""
    import llvmlite.ir as ir

    mask = builder.bitcast(condition, ir.IntType(condition.type.count))
    return builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0))


def constants(builder: Any, kind: Any, value: Any) -> SimpleNamespace:
    """Return the members of a NamedTuple, as `bits.named` makes it."""
    return SimpleNamespace(**dict(zip(kind.fields, unpack_tuple(builder, value), strict=True)))


class Place:
    """An element of a contiguous array, from which lanes are read or written."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any, start: Any) -> None:
        if kind.layout != "C":
            raise TypingError("blocks are of contiguous arrays")
        self.builder, self.element = builder, context.get_value_type(kind.dtype)
        self.first = builder.gep(context.make_array(kind)(context, builder, array).data, [start])
        self.alignment = kind.dtype.bitwidth // 8 if kind.aligned else 1

    def address(self, offset: int, count: int) -> Any:
        """Return where so many lanes are, an offset of elements further."""
        import llvmlite.ir as ir

        first = self.builder.gep(self.first, [ir.Constant(ir.IntType(64), offset)])
        return self.builder.bitcast(first, ir.VectorType(self.element, count).as_pointer())

    def load(self, offset: int, count: int) -> Lanes:
        """Read lanes."""
        return Lanes(self.builder, self.builder.load(self.address(offset, count), align=self.alignment))

    def store(self, offset: int, lanes: Lanes) -> None:
        """Write lanes."""
        self.builder.store(lanes.value, self.address(offset, lanes.value.type.count), align=self.alignment)


@cache
def has_half() -> bool:
    """Return whether the processor that numba compiles for converts fp16: where it does not, LLVM calls a function."""
    import llvmlite.binding as llvm

    target: Any = cpu_target
    codegen = target.target_context.codegen()
    source = f"""
        target triple = "{codegen.magic_tuple()[0]}"
        define half @narrow(float %x) {{ %r = fptrunc float %x to half
                                         ret half %r }}"""
    return "__truncsfhf2" not in codegen._tm.emit_assembly(llvm.parse_assembly(source))
