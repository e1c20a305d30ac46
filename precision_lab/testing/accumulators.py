"""How does this dot product add? Width, order and rounding of an accumulator, found out from its results alone.

"fp32 accumulation" in a data sheet says little. Tensor cores truncate where IEEE 754 rounds, libraries add in lanes or
in pairs, some round each product to the input's format before they add it, and the order changes with the length. All
of it can be measured through `dot(x, y)`, with vectors that are zero but for a few elements:

- *Width.* 2^b + 2^(b-t) - 2^b gives back 2^(b-t) as long as the accumulator has more than t bits. The large number
  cancels before the result is rounded for the caller, so this sees the accumulator, not the type of the result.
- *Order.* M and -M, so large that 1 is lost beside them, at places i and j, and 1 at place k: the 1 survives only if it
  is added after M and -M have met, so the result tells whether k is below the node of the tree of additions where i and
  j meet. From these nodes the whole tree follows (FPRev: Xie, Gao, Wang and Xue 2025, arXiv 2411.00442).
- *Rounding.* Sums a quarter, a half and three quarters of the way between two neighbours of the accumulator, even and
  odd, positive and negative, are told apart by each rounding mode in its own way.
- *Products.* (1 + 2^-a)(1 + 2^-b) - (1 + 2^-a + 2^-b) leaves 2^-(a+b) only if the product came whole to the addition.

Fasi, Higham, Mikaitis and Pranesh 2021 (PeerJ Computer Science 7:e330) asked tensor cores such questions. At last all
that was found is put together again in exact arithmetic, and has to reproduce random dot products to the last bit: only
then can the answers be believed for other numbers than those that were asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.testing.accumulator_report import AccumulatorReport, Width
from precision_lab.testing.addition_trees import Tree, describe, leaves_of, nodes_of, sorted_tree

Array: TypeAlias = NDArray[Any]
Dot: TypeAlias = Callable[[Any, Any], Any]
Terms: TypeAlias = "Mapping[int, float | tuple[float, float]]"

_DETERMINISTIC = tuple(mode.value for mode in RoundingMode if mode is not RoundingMode.STOCHASTIC)
_TRIALS = 50


def check_accumulator(
    dot: Dot, source: object = "fp32", *, length: int = 64, lengths: Sequence[int] = (8, 17, 33), seed: int = 0
) -> AccumulatorReport:
    """Find out how a dot product adds.

    Parameters
    ----------
    dot : callable
        ``dot(x, y)`` takes two one-dimensional arrays and returns a number: a scalar, or anything without dimensions
        that `float` takes. It is called some thousand times.
    source : str, dtype or FloatFormat
        Of the elements: arrays of its dtype (float32 for formats without one). It has to have a mantissa bit. What its
        products do not reach, no vector shows: the widest accumulator that fp16 can tell from an exact one has some 50
        bits, fp8_e4m3fn 26, fp4 none.
    length : int
        Of the vectors, 5..256.
    lengths : sequence of int
        Other lengths, of which the order is found out too.
    seed : int
        For the random vectors of the last check.

    Raises
    ------
    ValueError
        A length or format that is not possible.
    FloatingPointError
        This thread flushes subnormal numbers to zero, or does so since `dot` was called.

    """
    require_gradual_underflow()
    fmt = get_format(source)
    if fmt.mantissa_bits == 0 or not 2 * fmt.emin <= 0 <= 2 * fmt.emax - 2:
        raise ValueError(f"source must have a mantissa bit and 1 well inside its range, got {fmt}")
    for n in (length, *lengths):
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 5 <= n <= 256:
            raise ValueError(f"lengths must be integers in 5..256, got {n!r}")
    probe = _Probe(dot, fmt, length)
    try:
        _check_it_is_a_dot(probe)
        return _report(probe, lengths, seed)
    except _NoAnswerError as error:
        return AccumulatorReport(fmt, length, failure=str(error))


class _NoAnswerError(Exception):
    """The function raised, or returned no number."""


@dataclass(frozen=True)
class _Probe:
    """The dot product of vectors that are zero but for a few terms."""

    dot: Dot
    fmt: FloatFormat
    length: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.fmt.dtype or np.dtype(np.float32)

    def reaches(self, *values: float) -> bool:
        """Whether each of these few-bit numbers is a product of two normal numbers of the source."""
        low, high = 2 * self.fmt.emin, 2 * self.fmt.emax - 1
        return all(low <= math.frexp(value)[1] - 1 <= high for value in values)

    def __call__(self, terms: Terms) -> float:
        x, y = np.zeros(self.length), np.zeros(self.length)
        for place, term in terms.items():
            x[place], y[place] = term if isinstance(term, tuple) else _factors(term)
        return self.number(x, y)

    def number(self, x: Array, y: Array) -> float:
        """Return the result as a Python float."""
        result = self.ask(x, y)
        if shape := tuple(getattr(result, "shape", ())):
            raise _NoAnswerError(f"it returned an array of shape {shape}, not a number, for vectors of length {x.size}")
        try:
            return float(result)
        except (TypeError, ValueError):
            raise _NoAnswerError(f"it returned {type(result).__name__} {result!r:.60}, not a number") from None

    def ask(self, x: Array, y: Array) -> Any:
        with np.errstate(all="ignore"):
            left, right = x.astype(self.dtype), y.astype(self.dtype)
            try:
                return self.dot(left, right)
            except Exception as error:
                text = " ".join(str(error).split())
                raise _NoAnswerError(
                    f"it raised {type(error).__name__}: {text[:200]} for two {self.dtype} vectors of length {x.size}"
                ) from error
            finally:  # it may have switched it on, here, where the next vectors are made
                require_gradual_underflow("since the function was called")


def _factors(value: float) -> tuple[float, float]:
    """Return two numbers with half of the exponent each."""
    if value == 0:
        return 0.0, 0.0
    exponent = math.frexp(value)[1] - 1
    half = exponent // 2
    return math.ldexp(value, half - exponent), 2.0 ** (exponent - half)


def _check_it_is_a_dot(probe: _Probe) -> None:
    for i in range(probe.length):
        for terms, wanted in (({i: 1.0}, 1.0), ({i: (1.0, 0.0)}, 0.0), ({i: (0.0, 1.0)}, 0.0), ({i: -1.0}, -1.0)):
            got = probe(terms)
            if got != wanted:
                raise _NoAnswerError(f"it is no dot product: {terms[i]} at i = {i} gives {got}, not {wanted}")


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest k in low..high at which it holds, by bisection; `low` is taken for granted."""
    while low < high:
        k = (low + high + 1) // 2
        low, high = (k, high) if holds(k) else (low, k - 1)
    return low


def _top(probe: _Probe) -> int:
    """Return the largest k at which 2^k - 4 * 2^(k-2) is 0: beyond it the accumulator overflows.

    Five terms, because saturated sums and products cancel in pairs.
    """

    def fits(k: int) -> bool:
        return probe({0: 2.0**k, **dict.fromkeys(range(1, 5), -(2.0 ** (k - 2)))}) == 0

    return _last(fits, 0, 2 * probe.fmt.emax)


class _Scale(NamedTuple):
    """Exponents: of the largest number to use, and of the largest that the result should have."""

    top: int
    ceiling: int


def _is_lost(probe: _Probe, scale: _Scale, t: int, places: tuple[int, int, int]) -> bool:
    """Whether 2^b + 2^(b-t) - 2^b, at three places, is not 2^(b-t)."""
    large, small, cancels = places
    b = min(scale.top, scale.ceiling + t)
    return probe({large: 2.0**b, small: 2.0 ** (b - t), cancels: -(2.0**b)}) != 2.0 ** (b - t)


def _bits(probe: _Probe, scale: _Scale, *orders: tuple[int, int, int]) -> int | None:
    """Return the fewest bits that are kept in one of these orders of three places; None: all in reach."""
    steps = range(1, scale.top - 2 * probe.fmt.emin + 1)
    return next((t for t in steps if any(_is_lost(probe, scale, t, places) for places in orders)), None)


_KNOWN: tuple[tuple[str, int, int, int], ...] = (
    ("fp64", 53, -1022, 1023),
    *((f.name, f.precision, f.emin, f.emax) for f in FORMATS.values() if f.bits > 4),
)


def _width(bits: int | None, at_least: int, largest: int, reach: int, smallest: int | None = None) -> Width:
    """Name a format by its bits, the largest and, where it is known, the smallest power of two."""
    overflows = largest + 1 if largest < reach else None
    names = [
        name
        for name, precision, emin, emax in _KNOWN
        if precision == bits
        and (emax == largest if overflows is not None else emax >= largest)
        and (smallest is None or smallest in (emin, emin - precision + 1))
    ]
    return Width(bits, at_least, " or ".join(names) if bits else "", overflows, largest)


def _find_tree(size: Callable[[int, int], int], length: int) -> Tree:
    """Build the tree from the number of terms below the node where two meet (FPRev)."""

    def build(places: list[int]) -> Tree:
        first, *rest = places
        groups: dict[int, list[int]] = {}
        for place in rest:
            groups.setdefault(size(first, place), []).append(place)
        tree: Tree = first
        for count in sorted(groups):
            tree = (tree, *children(groups[count], count))
        return tree

    def children(places: list[int], count: int) -> list[Tree]:
        """Split what hangs on one node, of which `count` terms are below, into its summands."""
        first, *rest = places
        together = [first, *(place for place in rest if size(first, place) < count)]
        others = [place for place in rest if place not in together]
        return [build(together), *(children(others, count) if others else [])]

    return sorted_tree(build(list(range(length))))


def _mask(scale: _Scale, bits: int) -> int:
    """Return the exponent of a number with spacings that the result can hold."""
    return min(scale.top, scale.ceiling + bits - 2)


def _sizes(probe: _Probe, top: int, bits: int) -> Callable[[int, int], int] | None:
    """Return a function of two places: how many terms are below the node where they meet."""
    n, mask = probe.length, 2.0**top
    known: dict[tuple[int, int], int] = {}
    one = 2.0 ** (top - bits - 2)
    if not probe.reaches(one):
        return None
    # all other places at once, if their number can be counted and if what is lost is wholly lost
    unit = 2.0 ** (top - bits - 1 - n.bit_length())
    at_once = n <= 2**bits and probe.reaches(unit) and not _leaks(probe, mask, one)

    def size(i: int, j: int) -> int:
        key = (min(i, j), max(i, j))
        if key not in known:
            others = [k for k in range(n) if k not in key]
            if at_once:
                kept = probe({i: mask, j: -mask, **dict.fromkeys(others, unit)}) / unit
                known[key] = n - int(kept) if kept in range(n) else n
            else:
                known[key] = n - sum(probe({i: mask, j: -mask, k: one}) == one for k in others)
        return known[key]

    return size


def _leaks(probe: _Probe, mask: float, one: float) -> bool:
    """Whether a mask that swallows 1 changes: in the modes that do not round to the nearest."""
    n = probe.length
    for places in ((0, 1, 2), (0, n // 2, n - 1), (n - 1, 1, 0), (n // 2, n - 1, 1), (1, 0, n - 1), (2, 1, 0)):
        for sign in (1, -1):
            i, j, k = places
            if probe({i: sign * mask, j: one, k: -sign * mask}) not in (0, one):
                return True
    return False


def _is_confirmed(probe: _Probe, tree: Tree, top: int, bits: int, seed: int) -> bool:
    """Ask some triples, one by one, whether they agree with the tree."""
    below = {node: leaves_of(node) for node in nodes_of(tree)}
    mask, one = 2.0**top, 2.0 ** (top - bits - 2)
    draw = np.random.default_rng(seed)
    for _ in range(100):
        i, j, k = (int(place) for place in draw.permutation(probe.length)[:3])
        meeting = min((leaves for leaves in below.values() if {i, j} <= leaves), key=len)
        if (probe({i: mask, j: -mask, k: one}) == one) != (k not in meeting):
            return False
    return True


def _signature(mode: str) -> tuple[bool, ...]:
    """Return for each of the twelve positions whether a mode goes away from zero."""
    return tuple(
        reference.rounds_away(reference.Candidates(k, Fraction(1), position), negative, mode, None)
        for negative, k, position in _POSITIONS
    )


_POSITIONS = [
    (negative, k, Fraction(quarters, 4)) for negative in (False, True) for k in (0, 1) for quarters in (1, 2, 3)
]


def _mode(sums: Callable[[int, int, float], float], bits: int, top: int) -> str | None:
    """Name the mode of `sums`, which rounds sign * (2^top + k q + share q), q the spacing, and takes 2^top off."""
    spacing = 2.0 ** (top - bits + 1)
    seen = []
    for negative, k, position in _POSITIONS:
        sign = -1 if negative else 1
        steps = sums(sign, k, float(position)) * sign / spacing - k
        if steps not in (0, 1):
            return None
        seen.append(steps == 1)
    return next((mode for mode in _DETERMINISTIC if _signature(mode) == tuple(seen)), None)


def _addition_mode(probe: _Probe, tree: Tree, scale: _Scale, by_node: Mapping[frozenset[int], int]) -> str | None:
    """Name the mode of the deepest addition to a sum of two terms that is itself added to something."""
    for node in nodes_of(tree):
        for middle in node:
            for inner in middle if isinstance(middle, tuple) else ():
                bits = by_node.get(leaves_of(middle))
                if isinstance(inner, tuple) and bits is not None:
                    first, second = (min(leaves_of(part)) for part in inner[:2])
                    third, last = min(leaves_of(middle) - leaves_of(inner)), min(leaves_of(node) - leaves_of(middle))
                    return _mode_at(probe, (first, second, third, last), bits, _mask(scale, bits))
    return None


def _mode_at(probe: _Probe, places: tuple[int, int, int, int], bits: int, top: int) -> str | None:
    """Name the mode in which the third term is added to the sum of the first two; the fourth cancels the first."""
    first, second, third, last = places
    large, spacing = 2.0**top, 2.0 ** (top - bits + 1)
    if not probe.reaches(spacing / 4):
        return None

    def sums(sign: int, k: int, share: float) -> float:
        small = {second: sign * k * spacing, third: sign * share * spacing}
        return probe({first: sign * large, **small, last: -sign * large})

    return _mode(sums, bits, top)


def _widths(probe: _Probe, tree: Tree, scale: _Scale) -> dict[frozenset[int], int]:
    """Return the bits of every addition but the last: by the terms below it."""
    found = {}
    for parent in nodes_of(tree):
        for node in parent:
            if isinstance(node, tuple):
                first, second = (min(leaves_of(part)) for part in node[:2])
                outside = min(leaves_of(parent) - leaves_of(node))
                bits = _bits(probe, scale, (first, second, outside))
                if bits is not None:
                    found[leaves_of(node)] = bits
    return found


def _product_bits(probe: _Probe, tree: Tree, bits: int) -> int | None:
    """Return to how many bits, at least 3, a product is rounded before it is added, None if it is not."""
    node = next(node for node in nodes_of(tree) if isinstance(node[-1], int))
    place, other = max(part for part in node if isinstance(part, int)), min(leaves_of(node))
    most = min(probe.fmt.precision, bits) - 1
    for s in range(3, 2 * most + 1):  # 1.5 * 1.5 would be in the next binade
        a, b = s // 2, s - s // 2
        rest = 1 + 2.0**-a + 2.0**-b
        if probe({other: (-rest, 1.0), place: (1 + 2.0**-a, 1 + 2.0**-b)}) != 2.0**-s:
            return s
    return None


def _output(probe: _Probe, bits: int | None) -> tuple[int | None, str | None]:
    """Return the bits of the result and how it is rounded, if it has fewer than the accumulator."""

    def kept(t: int) -> bool:
        return probe({0: 1.0, 1: 2.0**-t}) == 1 + 2.0**-t

    reach = min(-2 * probe.fmt.emin, 52)
    seen = next((t for t in range(1, reach + 1) if not kept(t)), None)
    if seen is None or (bits is not None and seen >= bits):
        return None, None
    spacing = 2.0 ** (1 - seen)
    if not probe.reaches(spacing / 4) or (bits is not None and bits < seen + 2):
        return seen, None

    def sums(sign: int, k: int, share: float) -> float:
        return probe({0: sign, 1: sign * k * spacing, 2: sign * share * spacing}) - sign

    return seen, _mode(sums, seen, 0)


def _result_range(probe: _Probe) -> tuple[int, int]:
    """Return the exponents of the smallest and the largest power of two that come back as they are."""
    low, high = 2 * probe.fmt.emin, 2 * probe.fmt.emax
    largest = _last(lambda k: probe({0: 2.0**k}) == 2.0**k, 0, high)
    return -_last(lambda k: probe({0: 2.0**-k}) == 2.0**-k, 0, -low), largest


def _subnormals(probe: _Probe, smallest: int, output: Width) -> tuple[str, str]:
    fmt = probe.fmt
    power = min(fmt.emax, 1 - fmt.emin)
    product = probe({0: (fmt.smallest_normal / 2, 2.0**power)})
    inputs = "kept" if product == 2.0 ** (fmt.emin - 1 + power) else "flushed"
    if smallest <= 2 * fmt.emin:
        return inputs, "not reached"
    emins = {emin for name, _, emin, _ in _KNOWN if name in output.name.split(" or ")}
    if not emins:
        return inputs, "not reached"
    emin = max(emins)
    difference = probe({0: 1.5 * 2.0**emin, 1: -(2.0**emin)})
    return inputs, "kept" if difference == 2.0 ** (emin - 1) else "flushed"


class _Model(NamedTuple):
    """What was found, to be computed in exact arithmetic."""

    tree: Tree | None
    bits: Mapping[frozenset[int], int]
    default_bits: int | None
    mode: str
    product_bits: int | None
    output_bits: int | None
    output_mode: str
    emin: int
    output_emin: int


def _rounded(x: Fraction, bits: int | None, mode: str, emin: int) -> Fraction:
    if bits is None or x == 0:
        return x
    spacing = Fraction(2) ** (max(reference.floor_log2(abs(x)), emin) - bits + 1)
    k = math.floor(abs(x) / spacing)
    position = reference.Candidates(k, spacing, abs(x) / spacing - k)
    magnitude = (k + reference.rounds_away(position, x < 0, mode, None)) * spacing
    return -magnitude if x < 0 else magnitude


def _computed(model: _Model, terms: Sequence[Fraction], first: Callable[[Iterable[int]], int] | None) -> float:
    """Add as the model says; of two products that are added, `first` is the one that was in the accumulator, if any."""

    def value(tree: Tree) -> Fraction:
        if isinstance(tree, int):
            return _rounded(terms[tree], model.product_bits, model.mode, model.emin)
        bits = model.bits.get(leaves_of(tree), model.default_bits)
        parts = [value(part) for part in tree]
        if len(parts) > 2:  # aligned to the largest, the rest cut off (Fasi et al. 2021)
            spacing = Fraction(2) ** max((reference.floor_log2(abs(x)) for x in parts if x), default=0)
            spacing *= Fraction(2) ** (1 - (bits or 1))
            cut = [abs(x) // spacing * spacing * (1 if x > 0 else -1) for x in parts]
            return _rounded(sum(cut, Fraction(0)), bits, "toward_zero", model.emin)
        if first is not None and all(isinstance(part, int) for part in tree):
            at = tree.index(first(part for part in tree if isinstance(part, int)))
            parts[at] = _rounded(parts[at], bits, model.mode, model.emin)
        return _rounded(parts[0] + parts[1], bits, model.mode, model.emin)

    total = sum(terms, Fraction(0)) if model.tree is None else value(model.tree)
    result = _rounded(total, model.output_bits, model.output_mode, model.output_emin)
    return float(result)


def _reproduced(probe: _Probe, model: _Model, largest: int, seed: int) -> int:
    """Count the random dot products that the model gives to the last bit."""
    draw = np.random.default_rng(seed)
    fmt, n = probe.fmt, probe.length
    high = max(min(2, (largest - n.bit_length()) // 2, fmt.emax - 1), fmt.emin)
    low = max(high - 4, fmt.emin)
    results = []
    for _ in range(_TRIALS):
        x, y = (
            np.ldexp(
                draw.integers(2**fmt.mantissa_bits, 2**fmt.precision, n),
                draw.integers(low, high + 1, n) - fmt.mantissa_bits,
            )
            * draw.choice([-1, 1], n)
            for _ in range(2)
        )
        terms = [Fraction(a) * Fraction(b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        results.append((probe.number(x, y), terms))
    return max(sum(got == _computed(model, terms, first) for got, terms in results) for first in (min, max, None))


def _report(probe: _Probe, lengths: Sequence[int], seed: int) -> AccumulatorReport:
    fmt, n = probe.fmt, probe.length
    reach = 2 * fmt.emax
    vectors = np.random.default_rng(seed).standard_normal((8, 2, n))
    again = [len({probe.number(*pair) for _ in range(4)}) for pair in vectors]
    result_type = type(probe.ask(*vectors[0])).__name__

    largest = _top(probe)
    smallest, out_largest = _result_range(probe)
    scale = _Scale(max(largest - 1, 0), out_largest - 1)
    seen = _accumulator_bits(probe, scale)
    bits, widest = seen or (None, None)
    tree, order = _order(probe, widest, scale, seed)
    orders = []
    for other in lengths:
        shorter = _Probe(probe.dot, fmt, other)
        fewest, most = _accumulator_bits(shorter, scale) or (None, None)
        orders.append((other, fewest, _order(shorter, most, scale, seed)[1]))

    by_node = {} if tree is None else _widths(probe, tree, scale)
    counts = {width: list(by_node.values()).count(width) for width in sorted(set(by_node.values()))}
    mode = None if tree is None or bits is None else _addition_mode(probe, tree, scale, by_node)
    product_bits, products = None, "not seen"
    if tree is not None and bits is not None and min(bits, fmt.precision) > 2:
        product_bits = _product_bits(probe, tree, bits)
        products = "exact" if 2 * fmt.precision <= bits else "fused: exact, then added and rounded once"
    output_bits, output_mode = _output(probe, bits)
    at_least = scale.top - 2 * fmt.emin
    output = _width(output_bits or bits, at_least, out_largest, reach, smallest if smallest > 2 * fmt.emin else None)
    accumulator = _width(bits, at_least, largest, reach)
    if output_bits is None and bits is not None:
        accumulator = output
    if product_bits is not None:
        of_products = accumulator if product_bits == bits else _width(product_bits, 0, largest, reach)
        products = f"rounded before they are added, to {of_products}"
        if product_bits != bits and largest < reach:  # it was the products that overflowed
            accumulator = _width(bits, at_least, largest, largest)
    inputs, sums = _subnormals(probe, smallest, output)
    model = _Model(
        tree,
        by_node,
        bits,
        mode or "ties_to_even",
        product_bits,
        output_bits,
        output_mode or "ties_to_even",
        _emin(accumulator),
        _emin(output),
    )
    known = tree is not None or bits is None
    return AccumulatorReport(
        source=fmt,
        length=n,
        result_type=result_type,
        accumulator=accumulator,
        widths=tuple(counts.items()),
        mode=mode,
        products=products,
        tree=tree,
        order=order,
        orders=tuple(orders),
        output=output,
        output_mode=output_mode,
        subnormal_inputs=inputs,
        subnormal_sums=sums,
        deterministic=max(again) == 1,
        reproduced=_reproduced(probe, model, min(largest, out_largest), seed) if known else 0,
        trials=_TRIALS,
    )


def _emin(width: Width) -> int:
    return max((emin for name, _, emin, _ in _KNOWN if name in width.name.split(" or ")), default=-100000)


def _accumulator_bits(probe: _Probe, scale: _Scale) -> tuple[int, int] | None:
    """Return the fewest and the most bits that some triples of places show; None where nothing is lost."""
    n = probe.length
    triples = dict.fromkeys([(0, 1, 2), (0, n // 2, n - 1), (n - 3, n - 2, n - 1), (0, n - 2, n - 1)])
    found = [_bits(probe, scale, *itertools.permutations(places, 3)) for places in triples]
    known = [bits for bits in found if bits is not None]
    return (min(known), max(known)) if known else None


def _order(probe: _Probe, bits: int | None, scale: _Scale, seed: int) -> tuple[Tree | None, str]:
    if bits is None:
        return None, "does not show: nothing is lost"
    top = _mask(scale, bits)
    size = _sizes(probe, top, bits)
    if size is None:
        return None, f"does not show: products of {probe.fmt} do not reach far enough"
    tree = _find_tree(size, probe.length)
    if not _is_confirmed(probe, tree, top, bits, seed):
        return None, "no tree of additions: what is lost depends on more"
    return tree, describe(tree)
