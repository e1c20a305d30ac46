"""What a few terms show of an accumulator: its bits and range, the roundings of sums, products and the result."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from fractions import Fraction

from precision_lab.numerics import reference
from precision_lab.numerics.modes import RoundingMode
from precision_lab.testing.accumulator_probe import Probe, Scale, mask_exponent
from precision_lab.testing.accumulator_report import Width, emin_of
from precision_lab.testing.addition_trees import Tree, leaves_of, nodes_of

DETERMINISTIC = tuple(mode.value for mode in RoundingMode if mode is not RoundingMode.STOCHASTIC)
_POSITIONS = [
    (negative, k, Fraction(quarters, 4)) for negative in (False, True) for k in (0, 1) for quarters in (1, 2, 3)
]


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest k in low..high at which it holds, by bisection; `low` is taken for granted."""
    while low < high:
        k = (low + high + 1) // 2
        low, high = (k, high) if holds(k) else (low, k - 1)
    return low


def largest_power(probe: Probe) -> int:
    """Return the largest k at which 2^k - 4 * 2^(k-2) is 0: beyond it the accumulator overflows.

    Five terms, because saturated sums and products cancel in pairs.
    """

    def fits(k: int) -> bool:
        return probe({0: 2.0**k, **dict.fromkeys(range(1, 5), -(2.0 ** (k - 2)))}) == 0

    return _last(fits, 0, 2 * probe.fmt.emax)


def is_lost(probe: Probe, scale: Scale, t: int, places: tuple[int, int, int]) -> bool:
    """Whether 2^b + 2^(b-t) - 2^b, at three places, is not 2^(b-t)."""
    large, small, cancels = places
    b = min(scale.top, scale.ceiling + t)
    return probe({large: 2.0**b, small: 2.0 ** (b - t), cancels: -(2.0**b)}) != 2.0 ** (b - t)


def bits_kept(probe: Probe, scale: Scale, *orders: tuple[int, int, int]) -> int | None:
    """Return the fewest bits that are kept in one of these orders of three places; None: all in reach."""
    steps = range(1, scale.top - 2 * probe.fmt.emin + 1)
    return next((t for t in steps if any(is_lost(probe, scale, t, places) for places in orders)), None)


def accumulator_bits(probe: Probe, scale: Scale) -> tuple[int, int] | None:
    """Return the fewest and the most bits that some triples of places show; None where nothing is lost."""
    n = probe.length
    triples = dict.fromkeys([(0, 1, 2), (0, n // 2, n - 1), (n - 3, n - 2, n - 1), (0, n - 2, n - 1)])
    widths = [bits_kept(probe, scale, *itertools.permutations(places, 3)) for places in triples]
    known = [bits for bits in widths if bits is not None]
    return (min(known), max(known)) if known else None


def widths_of_additions(probe: Probe, tree: Tree, scale: Scale) -> dict[frozenset[int], int]:
    """Return the bits of every addition but the last: by the terms below it."""
    widths = {}
    for parent in nodes_of(tree):
        for node in parent:
            if isinstance(node, tuple):
                first, second = (min(leaves_of(part)) for part in node[:2])
                outside = min(leaves_of(parent) - leaves_of(node))
                bits = bits_kept(probe, scale, (first, second, outside))
                if bits is not None:
                    widths[leaves_of(node)] = bits
    return widths


def signature(mode: str) -> tuple[bool, ...]:
    """Return for each of the twelve positions whether a mode goes away from zero."""
    return tuple(
        reference.rounds_away(reference.Candidates(k, Fraction(1), position), negative, mode, None)
        for negative, k, position in _POSITIONS
    )


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
    return next((mode for mode in DETERMINISTIC if signature(mode) == tuple(seen)), None)


def addition_mode(probe: Probe, tree: Tree, scale: Scale, by_node: Mapping[frozenset[int], int]) -> str | None:
    """Name the mode of the deepest addition to a sum of two terms that is itself added to something."""
    for node in nodes_of(tree):
        for middle in node:
            for inner in middle if isinstance(middle, tuple) else ():
                bits = by_node.get(leaves_of(middle))
                if isinstance(inner, tuple) and bits is not None:
                    first, second = (min(leaves_of(part)) for part in inner[:2])
                    third, last = min(leaves_of(middle) - leaves_of(inner)), min(leaves_of(node) - leaves_of(middle))
                    return _mode_at(probe, (first, second, third, last), bits, mask_exponent(scale, bits))
    return None


def _mode_at(probe: Probe, places: tuple[int, int, int, int], bits: int, top: int) -> str | None:
    """Name the mode in which the third term is added to the sum of the first two; the fourth cancels the first."""
    first, second, third, last = places
    large, spacing = 2.0**top, 2.0 ** (top - bits + 1)
    if not probe.reaches(spacing / 4):
        return None

    def sums(sign: int, k: int, share: float) -> float:
        small = {second: sign * k * spacing, third: sign * share * spacing}
        return probe({first: sign * large, **small, last: -sign * large})

    return _mode(sums, bits, top)


def bits_of_products(probe: Probe, tree: Tree, bits: int) -> int | None:
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


def output_rounding(probe: Probe, bits: int | None) -> tuple[int | None, str | None]:
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


def result_range(probe: Probe) -> tuple[int, int]:
    """Return the exponents of the smallest and the largest power of two that come back as they are."""
    low, high = 2 * probe.fmt.emin, 2 * probe.fmt.emax
    largest = _last(lambda k: probe({0: 2.0**k}) == 2.0**k, 0, high)
    return -_last(lambda k: probe({0: 2.0**-k}) == 2.0**-k, 0, -low), largest


def subnormals(probe: Probe, smallest: int, output: Width) -> tuple[str, str]:
    """Say of inputs and of results below the normal range whether they are kept, flushed or not reached."""
    fmt = probe.fmt
    power = min(fmt.emax, 1 - fmt.emin)
    product = probe({0: (fmt.smallest_normal / 2, 2.0**power)})
    inputs = "kept" if product == 2.0 ** (fmt.emin - 1 + power) else "flushed"
    if smallest <= 2 * fmt.emin:
        return inputs, "not reached"
    emin = emin_of(output)
    if emin is None:
        return inputs, "not reached"
    difference = probe({0: 1.5 * 2.0**emin, 1: -(2.0**emin)})
    return inputs, "kept" if difference == 2.0 ** (emin - 1) else "flushed"
