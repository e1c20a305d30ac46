"""A dot product says what it is: every width, order and rounding that was built in is found, and nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import precision_lab as pl
from precision_lab.numerics import reference
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.testing import accumulator_questions, addition_trees
from precision_lab.testing.accumulator_probe import Dot
from precision_lab.testing.accumulator_report import AccumulatorReport
from precision_lab.testing.accumulators import check_accumulator
from precision_lab.testing.addition_trees import Tree, describe

MODES = [mode.value for mode in RoundingMode if mode is not RoundingMode.STOCHASTIC]


def products(x: Any, y: Any) -> Any:
    return x.astype(np.float64) * y.astype(np.float64)


def added(tree: Tree, terms: Sequence[Any]) -> Any:
    """Add numbers of a NumPy type in the order of a tree."""
    if isinstance(tree, int):
        return terms[tree]
    left, right = tree
    return added(left, terms) + added(right, terms)


def dot_of(make: Callable[[int], Tree], dtype: Any = np.float32) -> Dot:
    """Products in another type, exact for narrow sources, added in the order of a tree."""
    trees: dict[int, Tree] = {}

    def dot(x: Any, y: Any) -> Any:
        tree = trees.setdefault(x.size, make(x.size))
        return added(tree, list(products(x, y).astype(dtype)))

    return dot


def random_tree(leaves: list[int], draw: random.Random) -> Tree:
    if len(leaves) == 1:
        return leaves[0]
    draw.shuffle(leaves)
    cut = draw.choice([1, draw.randrange(1, len(leaves))])
    return (random_tree(leaves[:cut], draw), random_tree(leaves[cut:], draw))


def check(dot: Dot, source: str = "fp16", length: int = 32, lengths: Sequence[int] = ()) -> AccumulatorReport:
    report = check_accumulator(dot, source, length=length, lengths=lengths)
    assert report.failure is None, report.failure
    return report


# ---- our own, told every width and mode ----


@pytest.mark.parametrize("source", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulator", ["fp32", "tf32", "fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2", "e6m9"])
def test_the_accumulator_that_dot_was_told(source: str, accumulator: str) -> None:
    fmt = get_format(accumulator)
    for mode, round_products in [("ties_to_even", False), ("toward_zero", True)]:

        def dot(x: Any, y: Any, mode: str = mode, round_products: bool = round_products) -> Any:
            return pl.dot(x, y, accumulator=fmt, mode=mode, round_products=round_products)

        report = check(dot, source, 16)
        width = report.accumulator
        assert width is not None
        assert (width.bits, width.overflows, width.largest) == (fmt.precision, fmt.emax + 1, fmt.emax)
        assert width.name == (accumulator if accumulator != "e6m9" else "")
        assert report.output == width
        assert report.output_mode is None
        assert (report.mode, report.order, report.explained) == (mode, "sequential", True)
        if 2 * get_format(source).precision <= fmt.precision:
            assert report.products == "exact"
        else:
            assert report.products.startswith(
                f"rounded before they are added, to {width}" if round_products else "fused"
            )
        assert (report.subnormal_inputs, report.deterministic) == ("kept", True)
        if width.name:
            assert report.subnormal_sums == "kept"


@pytest.mark.parametrize("mode", MODES)
def test_every_rounding_mode(mode: str) -> None:
    report = check(lambda x, y: pl.dot(x, y, accumulator="fp32", output="bf16", mode=mode), "fp16", 16)
    assert (report.mode, report.output_mode, report.explained) == (mode, mode, True)
    assert report.output is not None
    assert (report.output.bits, report.output.name) == (8, "bf16")
    assert report.accumulator is not None
    assert (report.accumulator.bits, report.accumulator.name) == (24, "fp32")


def test_the_modes_are_told_apart() -> None:
    assert len({accumulator_questions.signature(mode) for mode in MODES}) == len(MODES)


def blocks(n: int, size: int) -> list[Tree]:
    return [addition_trees.one_by_one(range(i, min(i + size, n))) for i in range(0, n, size)]


def lanes(n: int, k: int) -> list[Tree]:
    return [addition_trees.one_by_one(range(start, n, k)) for start in range(k)]


@pytest.mark.parametrize(
    ("method", "order"), [("pairwise", "pairwise"), ("blocked", "blocks of 5, each sequential; the blocks sequential")]
)
def test_the_orders_of_accumulate(method: str, order: str) -> None:
    def dot(x: Any, y: Any) -> float:
        return pl.accumulate(products(x, y), "bf16", method=method, block=5).result

    report = check(dot, "bf16", 13)
    assert (report.order, report.explained, report.mode) == (order, True, "ties_to_even")


@pytest.mark.parametrize("fmt", ["fp32", "fp16", "fp8_e4m3fn"])
@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda n: addition_trees.one_by_one(range(n)), "sequential"),
        (lambda n: addition_trees.in_pairs(range(n)), "pairwise"),
        (lambda n: addition_trees.one_by_one(blocks(n, 5)), "blocks of 5, each sequential; the blocks sequential"),
    ],
)
def test_orders_of_any_width(fmt: str, make: Callable[[int], Tree], order: str) -> None:
    """With four bits one cannot count to 32: there every triple of places is asked."""
    report = check(dot_of(make, get_format(fmt).dtype), "fp8_e4m3fn", 32)
    assert (report.order, report.explained, report.mode) == (order, True, "ties_to_even")
    assert report.accumulator is not None
    assert report.accumulator.name == fmt


def test_orders_are_found_whatever_the_mode() -> None:
    """Where M - 1 is not M, a mask of it leaks."""
    for mode in ("toward_negative", "to_odd"):  # the latter never overflows

        def dot(x: Any, y: Any, mode: str = mode) -> float:
            return pl.accumulate(products(x, y), "bf16", method="pairwise", mode=mode).result

        report = check(dot, "bf16", 9)
        assert (report.order, report.mode, report.explained) == ("pairwise", mode, True)


# ---- other orders ----


@pytest.mark.parametrize("number", range(6))
def test_any_tree_is_found(number: int) -> None:
    tree = random_tree(list(range(24)), random.Random(number))
    report = check(dot_of(lambda n: tree), "fp16", 24)
    assert report.tree == addition_trees.sorted_tree(tree)
    assert report.explained


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (addition_trees.one_by_one(range(20)), "sequential"),
        (addition_trees.one_by_one(range(20)[::-1]), "reversed"),
        (addition_trees.in_pairs(range(20)), "pairwise"),
        (addition_trees.in_halves(range(20)), "pairwise from halves"),
        (addition_trees.folded(range(20)), "folded in half"),
        (addition_trees.one_by_one(lanes(20, 4)), "4 lanes, each sequential; the lanes sequential"),
        (addition_trees.in_pairs(lanes(37, 8)), "8 lanes, each sequential; the lanes pairwise"),
        (
            addition_trees.one_by_one([addition_trees.in_pairs(lanes(32, 8)), 32, 33, 34]),
            "8 lanes, each sequential; the lanes pairwise; the last 3 sequential",
        ),
        (
            addition_trees.folded([addition_trees.one_by_one(lanes(64, 16)[i::4]) for i in range(4)]),
            "16 lanes, each sequential; the lanes (4 lanes, each sequential; the lanes folded in half)",
        ),
        (
            addition_trees.in_pairs(blocks(20, 6)),
            "blocks of 6, each sequential; the blocks pairwise",
        ),
        (addition_trees.one_by_one(addition_trees._turned(range(20), 4)), "sequential, but each 4 reversed"),
        (addition_trees._in_groups(range(20), 4), "groups of 4, each in one operation with the sum so far"),
        (tuple(range(20)), "all in one operation"),
        ((((0, 3), (1, 4)), ((2, 5), 6)), "another tree, 3 additions deep"),
    ],
)
def test_the_words_for_a_tree(tree: Tree, words: str) -> None:
    assert describe(tree) == words


def test_lanes_in_double_precision() -> None:
    report = check(dot_of(lambda n: addition_trees.in_pairs(lanes(n, 4)), np.float64), "fp16", 30, [8])
    assert report.order == "4 lanes, each sequential; the lanes pairwise"
    assert report.accumulator is not None
    assert (report.accumulator.bits, report.accumulator.name) == (53, "fp64")
    assert report.orders == ((8, 53, report.order),)
    assert not report.depends_on_length


def test_two_widths() -> None:
    """Blocks in fp16, their sums in fp32."""

    def dot(x: Any, y: Any) -> Any:
        sums = [
            added(addition_trees.one_by_one(range(4)), list(products(x, y)[i : i + 4].astype(np.float16)))
            for i in range(0, x.size, 4)
        ]
        return added(addition_trees.one_by_one(range(len(sums))), [np.float32(total) for total in sums])

    report = check(dot, "fp16", 32)
    assert report.widths == ((11, 24), (24, 6))
    assert report.order == "blocks of 4, each sequential; the blocks sequential"
    assert "24 additions with 11 bits, 6 additions with 24 bits" in str(report)


def test_another_order_for_other_lengths() -> None:
    small = dot_of(lambda n: addition_trees.one_by_one(range(n)))
    large = dot_of(lambda n: addition_trees.in_pairs(range(n)))
    report = check(lambda x, y: (small if x.size < 16 else large)(x, y), "fp16", 32, [8, 24])
    assert report.orders == ((8, 24, "sequential"), (24, 24, "pairwise"))
    assert report.depends_on_length
    assert "n = 8: sequential" in str(report)


# ---- what tensor cores do ----


def truncated(x: Fraction, spacing: Fraction) -> Fraction:
    return (abs(x) // spacing) * spacing * (1 if x >= 0 else -1)


def tensor_core(x: Any, y: Any, group: int = 4, bits: int = 24) -> float:
    """Groups of products and the sum so far, aligned to the largest, cut off, added exactly and cut off again."""
    total = Fraction(0)
    terms = [Fraction(p) for p in products(x, y).tolist()]
    for start in range(0, len(terms), group):
        some = [total, *terms[start : start + group]]
        top = max((reference.floor_log2(abs(t)) for t in some if t), default=0)
        total = sum((truncated(t, Fraction(2) ** (top - bits + 1)) for t in some), Fraction(0))
        if total:
            total = truncated(total, Fraction(2) ** (reference.floor_log2(abs(total)) - bits + 1))
    return float(total)


def test_a_tensor_core() -> None:
    report = check(tensor_core, "fp16", 16)
    assert report.accumulator is not None
    assert report.accumulator.bits == 24
    assert report.mode == "toward_zero"
    assert report.products == "aligned and truncated to 24 bits below the largest, of products"
    # the first group starts from zero
    assert report.order == "groups of 4, each in one operation with the sum so far"
    assert report.explained


# ---- results, subnormals ----


def test_the_result_is_rounded_apart() -> None:
    def dot(x: Any, y: Any) -> Any:
        return pl.round_to(added(addition_trees.one_by_one(range(x.size)), list(products(x, y))), "fp16", "toward_zero")

    report = check(dot, "bf16", 16)
    assert report.output is not None
    assert report.accumulator is not None
    assert (report.output.name, report.output.overflows, report.output_mode) == ("fp16", 16, "toward_zero")
    assert (report.accumulator.bits, report.mode, report.explained) == (53, "ties_to_even", True)


def test_flushing() -> None:
    def flushes_sums(x: Any, y: Any) -> Any:
        total = 0.0
        for term in products(x, y):
            total = float(pl.round_to(total + term, "fp32", subnormals=False))
        return np.float32(total)

    def flushes_inputs(x: Any, y: Any) -> Any:
        x, y = (pl.round_to(v.astype(np.float32), "bf16", subnormals=False) for v in (x, y))
        return dot_of(lambda n: addition_trees.one_by_one(range(n)))(x, y)

    for dot, inputs, sums in [(flushes_sums, "kept", "flushed"), (flushes_inputs, "flushed", "kept")]:
        report = check(dot, "bf16", 8)
        assert (report.subnormal_inputs, report.subnormal_sums) == (inputs, sums)
        assert report.accumulator is not None
        assert report.accumulator.name == "fp32"


def test_an_exact_sum_has_no_order() -> None:
    report = check(lambda x, y: math.fsum(products(x, y).tolist()))
    assert report.accumulator is not None
    assert report.accumulator.bits is None
    assert report.accumulator.at_least > 53
    assert (report.tree, report.mode, report.explained) == (None, None, True)
    assert "nothing is lost" in report.order


def kahan(x: Any, y: Any) -> Any:
    total = lost = np.float16(0)
    for term in products(x, y).astype(np.float16):
        corrected = term - lost
        after = total + corrected
        total, lost = after, (after - total) - corrected
    return total


def neumaier(x: Any, y: Any) -> Any:
    total = lost = np.float16(0)
    for term in products(x, y).astype(np.float16):
        after = total + term
        lost += (total - after) + term if abs(total) >= abs(term) else (term - after) + total
        total = after
    return total + lost


def test_compensation_is_not_taken_for_a_plain_sum() -> None:
    """Kahan's sum is no tree of additions; Neumaier's of so few terms is as good as exact: it looks much wider."""
    report = check(kahan, "fp16", 24)
    assert not report.explained
    assert "there is more to it" in str(report).splitlines()[1]
    report = check(neumaier, "fp16", 24)
    assert report.accumulator is not None
    assert report.accumulator.bits is None or report.accumulator.bits > 30
    assert report.order != "sequential"


def test_what_the_source_cannot_reach() -> None:
    report = check(lambda x, y: np.float32(products(x, y).sum()), "fp4_e2m1fn", 16)
    assert report.accumulator is not None
    assert report.accumulator.bits is None
    assert report.accumulator.at_least < 8
    report = check(lambda x, y: pl.dot(x, y, accumulator="fp8_e4m3fn"), "fp6_e3m2fn", 16)
    assert report.accumulator is not None
    assert report.accumulator.bits == 4


# ---- what is no dot product ----


def raises(x: Any, y: Any) -> Any:
    raise TypeError("no such\nkernel")


@pytest.mark.parametrize(
    ("dot", "why"),
    [
        (raises, "it raised TypeError: no such kernel for two float16 vectors of length 16"),
        (lambda x, y: x * y, "it returned an array of shape (16,), not a number"),
        (lambda x, y: np.dot(x, y).reshape(1), "it returned an array of shape (1,), not a number"),
        (lambda x, y: "1", "it is no dot product: 0.0"),
        (lambda x, y: None, "it returned NoneType None, not a number"),
        (lambda x, y: 0.0, "it is no dot product: 1.0 at i = 0 gives 0.0, not 1.0"),
        (lambda x, y: math.nan, "gives nan, not 1.0"),
        (lambda x, y: np.sum(x), "it is no dot product: (1.0, 0.0) at i = 0 gives 1.0, not 0.0"),
        (lambda x, y: np.dot(x[:-1], y[:-1]), "it is no dot product: 1.0 at i = 15"),
        (lambda x, y: np.abs(np.dot(x, y)), "-1.0 at i = 0 gives 1.0"),
    ],
)
def test_what_is_no_dot_product(dot: Dot, why: str) -> None:
    report = check_accumulator(dot, "fp16", length=16)
    assert report.failure is not None
    if why.endswith("0.0") and "shape" not in why and "gives" not in why:
        why = "it is no dot product"
    assert why in report.failure
    assert str(report).splitlines()[1] == f"could not be probed: {report.failure}"
    assert not report.explained


def test_it_may_change_its_arguments() -> None:
    def dot(x: Any, y: Any) -> Any:
        x *= y
        return added(addition_trees.one_by_one(range(x.size)), list(x.astype(np.float32)))

    assert check(dot, "fp16", 16).order == "sequential"


def test_chance_is_noticed() -> None:
    report = check(lambda x, y: pl.dot(x, y, accumulator="bf16", mode="stochastic"), "bf16", 16)
    assert not report.deterministic
    assert not report.explained
    assert "another result for the same vectors" in str(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "fp17"}, "unknown format"),
        ({"source": "e5m0"}, "source must have a mantissa bit"),
        ({"length": 4}, r"integers in 5..256, got 4"),
        ({"lengths": (8, 1000)}, r"integers in 5..256, got 1000"),
        ({"length": 8.0}, "must be integers"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_accumulator(np.dot, **arguments)


# ---- what libraries do ----


def test_numpy() -> None:
    report = check(np.dot, "fp16")
    assert report.accumulator is not None
    assert report.output is not None
    assert (report.accumulator.name, report.output.name, report.result_type) == ("fp32", "fp16", "float16")
    assert (report.order, report.products, report.output_mode) == ("sequential", "exact", "ties_to_even")
    assert report.explained
    # float32 is the BLAS library's: its own order
    report = check(np.dot, "fp32", 64)
    assert report.accumulator is not None
    assert report.accumulator.bits == 24
    assert report.explained


def test_numpy_sum_of_products() -> None:
    """Products in fp16, then pairs of eight lanes in fp32."""
    report = check(lambda x, y: np.sum(x * y), "fp16", 64)
    assert report.order == "8 lanes, each sequential; the lanes pairwise"
    assert report.products.startswith("rounded before they are added, to fp16: 11 bits; 2^16 overflows")
    assert report.accumulator is not None
    assert (report.accumulator.bits, report.explained) == (24, True)


def test_bfloat16_sums_are_sequential() -> None:
    report = check(lambda x, y: np.sum(x * y), "bf16")
    assert report.accumulator is not None
    assert (report.accumulator.name, report.order, report.explained) == ("bf16", "sequential", True)


@pytest.mark.torch
@pytest.mark.parametrize("source", ["fp32", "fp16", "bf16"])
def test_torch(source: str) -> None:
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[source]

    def dot(x: Any, y: Any) -> Any:
        return torch.dot(*(torch.from_numpy(v.astype(np.float32)).to(dtype) for v in (x, y)))

    report = check(dot, source, 64)
    assert report.output is not None
    assert report.accumulator is not None
    assert (report.output.name, report.result_type) == (source, "Tensor")
    assert report.accumulator.bits is None or report.accumulator.bits >= get_format(source).precision
    assert report.deterministic
    assert report.explained


def test_the_text() -> None:
    text = str(check_accumulator(lambda x, y: pl.dot(x, y, accumulator="bf16"), "bf16", length=16, lengths=(8,)))
    assert text.splitlines() == [
        "dot product of bf16 vectors, n = 16",
        "  accumulator  bf16: 8 bits; 2^128 overflows",
        "  additions    ties_to_even",
        "  products     fused: exact, then added and rounded once",
        "  order        sequential (also n = 8)",
        "  result       float32, bf16: 8 bits; 2^128 overflows",
        "  subnormals   inputs kept, sums kept",
        "  repeated     the same result",
        "  checked      50 of 50 random dot products come out like this, bit for bit",
    ]
