"""The experiment at a size for tests: what its docstring claims, against `accumulate` and `matmul` themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from precision_lab.analysis.sums import SUM_METHODS, sum_every_way
from precision_lab.experiments.accumulation import AccumulationConfig, AccumulationResult, run
from precision_lab.numerics import fixed
from precision_lab.numerics.products import matmul
from precision_lab.numerics.rounding import is_representable, round_to
from precision_lab.training.datasets import digits, split
from precision_lab.training.models import MLP

SMALL = AccumulationConfig(exponents=(0, 3, 8, 12), seeds=3, shown=1200, hidden=8)


@pytest.fixture(scope="module")
def result() -> AccumulationResult:
    return run(SMALL)


def test_terms_are_stored_numbers_from_0_to_1() -> None:
    terms = SMALL.terms(1000, 2)
    assert is_representable(terms, "bf16").all()
    assert 0 <= terms.min() < 0.05 < 0.95 < terms.max() <= 1
    assert not np.array_equal(terms, SMALL.terms(1000, 1))


def test_errors_are_those_of_the_sums(result: AccumulationResult) -> None:
    assert list(result.errors) == list(SUM_METHODS)
    for i, k in enumerate(SMALL.exponents):
        traces = [sum_every_way(SMALL.terms(2**k, seed), "bf16", seed=seed) for seed in range(3)]
        for name, errors in result.errors.items():
            assert errors[i].count == 2**k
            assert errors[i].errors == tuple(trace[name].relative_error for trace in traces)
            assert errors[i].median == sorted(errors[i].errors)[1]
            assert errors[i].worst_case == traces[0][name].worst_case_bound / traces[0][name].exact_sum


def test_one_after_the_other_stops_and_the_rest_does_not(result: AccumulationResult) -> None:
    traces = result.running
    assert traces["sequential"].result == 256
    assert traces["sequential"].stagnates_after is not None
    for name in ("stochastic", "blocked", "kahan", "pairwise", "fp32 accumulator"):
        assert traces[name].relative_error < 0.15, name
    at_the_end = {name: errors[-1].median for name, errors in result.errors.items()}
    assert at_the_end["sequential"] > 0.8
    assert at_the_end["neumaier"] > 0.7
    assert max(at_the_end[name] for name in ("kahan", "pairwise", "fp32 accumulator", "blocked")) < 0.02


def test_no_error_exceeds_its_worst_case_bound(result: AccumulationResult) -> None:
    for errors in result.errors.values():
        for at in errors:
            assert at.errors[0] <= at.worst_case


def test_products_are_those_of_the_network(result: AccumulationResult) -> None:
    data, _ = split(digits())
    a = np.asarray(round_to(data.inputs, "bf16"))
    b = np.asarray(round_to(MLP((64, 8, 10)).init()["layer1.weight"], "bf16"))
    exact = fixed.matmul(a.astype(np.float64), b.astype(np.float64))
    c = matmul(a, b, accumulator="bf16", output="bf16")
    first = result.products[0]
    assert (first.product, first.accumulator, first.products_rounded, first.length) == (
        "activations",
        "bf16",
        False,
        64,
    )
    assert first.error == fixed.norm(c - exact) / fixed.norm(exact)


def test_a_longer_sum_loses_more_and_a_wide_accumulator_nothing(result: AccumulationResult) -> None:
    error = {(p.product, p.accumulator, p.products_rounded): p.error for p in result.products}
    assert error["weight gradient", "bf16", False] > 10 * error["activations", "bf16", False]
    assert (
        error["activations", "bf16", False] > error["activations", "fp16", False] > error["activations", "fp32", False]
    )
    for product in ("activations", "weight gradient"):
        assert error[product, "fp32", False] < 2**-8
    assert len(result.products) == 2 * 2 * len(SMALL.accumulators)


def test_json(result: AccumulationResult) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["kind"] == "precision_lab experiment accumulation"
    assert data["running"]["sequential"]["result"] == 256
    assert data["errors"]["sequential"][3]["errors"] == list(result.errors["sequential"][3].errors)
    assert data["products"][0]["accumulator"] == "bf16"


def test_progress_counts_sums() -> None:
    seen: list[tuple[int, int]] = []
    run(AccumulationConfig(exponents=(1, 2), seeds=2, shown=3, hidden=2), progress=lambda *at: seen.append(at))
    assert seen == [(i, 4) for i in range(1, 5)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "fp17"}, "fp17"),
        ({"exponents": ()}, "exponents must be an ascending tuple of integers in 0..24"),
        ({"exponents": (3, 2)}, "exponents"),
        ({"exponents": (25,)}, "exponents"),
        ({"seeds": 0}, "seeds must be an integer of at least 1"),
        ({"shown": 1.5}, "shown"),
        ({"hidden": True}, "hidden"),
        ({"accumulators": ("fp99",)}, "fp99"),
    ],
)
def test_bad_configurations(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)  # type: ignore[arg-type]
