"""In which order a dot product adds: the tree of its additions from what is lost (FPRev: Xie et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from precision_lab.testing.accumulator_probe import Probe, Scale, mask_exponent
from precision_lab.testing.addition_trees import Tree, describe, leaves_of, nodes_of, sorted_tree


def order_of(probe: Probe, bits: int | None, scale: Scale, seed: int) -> tuple[Tree | None, str]:
    """Return the tree of additions, if it shows, and the order in words."""
    if bits is None:
        return None, "does not show"
    top = mask_exponent(scale, bits)
    size = _sizes(probe, top, bits)
    if size is None:
        return None, f"does not show: products of {probe.fmt} do not reach far enough"
    tree = _find_tree(size, probe.length)
    if not _is_confirmed(probe, tree, top, bits, seed):
        return None, "no tree of additions: what is lost depends on more"
    return tree, describe(tree)


def _sizes(probe: Probe, top: int, bits: int) -> Callable[[int, int], int] | None:
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


def _leaks(probe: Probe, mask: float, one: float) -> bool:
    """Whether a mask that swallows 1 changes: in the modes that do not round to the nearest."""
    n = probe.length
    for places in ((0, 1, 2), (0, n // 2, n - 1), (n - 1, 1, 0), (n // 2, n - 1, 1), (1, 0, n - 1), (2, 1, 0)):
        for sign in (1, -1):
            i, j, k = places
            if probe({i: sign * mask, j: one, k: -sign * mask}) not in (0, one):
                return True
    return False


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


def _is_confirmed(probe: Probe, tree: Tree, top: int, bits: int, seed: int) -> bool:
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
