"""Trees of additions: the order in which the terms of a sum are added, and its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

Tree: TypeAlias = "int | tuple[Tree, ...]"
"""The place of a term, or the sums that are added, two or, in one operation of several terms, more."""


def leaves_of(tree: Tree) -> frozenset[int]:
    """Return the places below."""
    return frozenset([tree]) if isinstance(tree, int) else frozenset().union(*map(leaves_of, tree))


def sorted_tree(tree: Tree) -> Tree:
    """Write the summands of each sum in the order of their first terms."""
    if isinstance(tree, int):
        return tree
    return tuple(sorted(map(sorted_tree, tree), key=_leftmost))


def _leftmost(tree: Tree) -> int:
    """Return the first term of a tree that is sorted."""
    while not isinstance(tree, int):
        tree = tree[0]
    return tree


def nodes_of(tree: Tree) -> list[tuple[Tree, ...]]:
    """List the sums, each after its summands."""
    if isinstance(tree, int):
        return []
    return [*(node for part in tree for node in nodes_of(part)), tree]


def one_by_one(items: Sequence[Tree]) -> Tree:
    """Add one after the other."""
    tree = items[0]
    for item in items[1:]:
        tree = (tree, item)
    return tree


def in_pairs(items: Sequence[Tree]) -> Tree:
    """Add neighbours, then their sums."""
    level = list(items)
    while len(level) > 1:
        pairs: list[Tree] = [(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


def in_halves(items: Sequence[Tree]) -> Tree:
    """Add the sums of the two halves, made the same way."""
    if len(items) == 1:
        return items[0]
    return (in_halves(items[: len(items) // 2]), in_halves(items[len(items) // 2 :]))


def folded(items: Sequence[Tree]) -> Tree:
    """Add the second half to the first, again and again."""
    level = list(items)
    while len(level) > 1:
        half = (len(level) + 1) // 2
        level = [(a, b) for a, b in zip(level[:half], level[half:], strict=False)] + level[len(level) - half : half]
    return level[0]


_SHAPES: tuple[tuple[str, Callable[[Sequence[Tree]], Tree]], ...] = (
    ("sequential", one_by_one),
    ("reversed", lambda items: one_by_one(items[::-1])),
    ("pairwise", in_pairs),
    ("pairwise from halves", in_halves),
    ("folded in half", folded),
    ("all in one operation", tuple),
)


def _turned(items: Sequence[Tree], size: int) -> list[Tree]:
    return [item for start in range(0, len(items), size) for item in reversed(items[start : start + size])]


def _in_groups(items: Sequence[Tree], size: int) -> Tree:
    tree: Tree = tuple(items[:size])
    for start in range(size, len(items), size):
        tree = (tree, *items[start : start + size])
    return tree


def describe(tree: Tree) -> str:
    """Name the order of a tree of additions over the places 0..n-1.

    ``sequential``, ``reversed``, ``pairwise`` (neighbours, then their sums), ``folded in half`` (i and i + n/2, again
    and again), blocks, lanes (element i in lane i mod k, as vector registers do), groups that are added in one
    operation, combinations of these, or its depth.

    >>> describe((((0, 1), 2), 3)), describe(((0, 2), (1, 3)))
    ('sequential', 'folded in half')
    """
    return _words(sorted_tree(tree), sorted(leaves_of(tree))) or f"another tree, {_depth(tree)} additions deep"


def _depth(tree: Tree) -> int:
    return 0 if isinstance(tree, int) else 1 + max(map(_depth, tree))


def _words(tree: Tree, items: Sequence[Tree]) -> str | None:
    """Name a tree over these items, which may be sums themselves."""
    return next(iter(_all_words(tree, items)), None)


def _all_words(tree: Tree, items: Sequence[Tree]) -> list[str]:
    """List the names of a tree, the plainest first; of the composed ones the first only."""
    if names := _plain_words(tree, items):
        return names
    bodies, left = [tree], len(items)  # without the last, the last two ... if these were added one by one
    while left > 3 and isinstance(bodies[-1], tuple) and bodies[-1][1:] == (items[left - 1],):
        bodies, left = [*bodies, bodies[-1][0]], left - 1
    for find in (_plain_words, _in_blocks):
        for tail, body in enumerate(bodies):
            if words := find(body, items[: len(items) - tail]):
                return [f"{words[0]}; the last {tail} sequential" if tail else words[0]]
    return []


def _plain_words(tree: Tree, items: Sequence[Tree]) -> list[str]:
    n = len(items)
    if n <= 1:
        return ["alone"]
    names = [name for name, make in _SHAPES if tree == sorted_tree(make(items))]
    for size in range(2, n + 1):
        if size < n and tree == sorted_tree(_in_groups(items, size)):
            names.append(f"groups of {size}, each in one operation with the sum so far")
        if tree == sorted_tree(one_by_one(_turned(items, size))):
            names.append(f"sequential, but each {size} reversed")
    for k in range(n // 2 if not names else 0, 1, -1):
        if words := _parts(tree, [items[start::k] for start in range(k)]):
            return [f"{k} lanes, each {words[0]}; the lanes {words[1]}"]
    return names


def _in_blocks(tree: Tree, items: Sequence[Tree]) -> list[str]:
    n = len(items)
    for size in range(2, n):
        if words := _parts(tree, [items[start : start + size] for start in range(0, n, size)]):
            return [f"blocks of {size}, each {words[0]}; the blocks {words[1]}"]
    return []


def _parts(tree: Tree, parts: Sequence[Sequence[Tree]]) -> tuple[str, str] | None:
    """Name the trees within the parts, the last of which may be shorter, and that of the parts."""
    nodes: dict[frozenset[int], Tree] = {leaves_of(node): node for node in nodes_of(tree)}
    sums: list[Tree] = []
    for part in parts:
        leaves = frozenset().union(*map(leaves_of, part))
        if len(part) > 1 and leaves not in nodes:
            return None
        sums.append(nodes[leaves] if len(part) > 1 else part[0])
    common: list[str] | None = None
    for total, part in zip(sums, parts, strict=True):
        if len(part) > 2:  # two are added in any order
            names = _all_words(total, part)
            common = names if common is None else [name for name in common if name in names]
            if not common:
                return None
    outer = _words(tree, sums)
    if outer is None:
        return None
    inner, outer = (f"({words})" if ";" in words else words for words in ((common or ["sequential"])[0], outer))
    return inner, outer
