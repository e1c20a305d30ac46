"""The criterion: its arithmetic against scipy, its findings on cases whose answer is known, its rate of wrong ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab.experiments.paired import (
    EQUAL,
    Finding,
    PairedRatio,
    have_learned,
    student,
)

ONES = (1.0,) * 5


def of_logs(*logs: float) -> PairedRatio:
    return PairedRatio(tuple(math.exp(r) for r in logs), (1.0,) * len(logs))


def test_student_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 60), 99, 1000, 10**6):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.95, freedom), rel=2e-6), freedom
    with pytest.raises(ValueError, match="degrees of freedom"):
        student(0)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=12), st.floats(0.1, 10.0))
def test_the_interval_is_that_of_a_paired_t_test(ratios: list[float], control: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = PairedRatio(tuple(r * control for r in ratios), (control,) * len(ratios))
    logs = np.log(ratios)
    assert found.mean == pytest.approx(logs.mean(), abs=1e-12)
    assert found.deviation == pytest.approx(logs.std(ddof=1), rel=1e-9, abs=1e-12)
    if logs.std() > 1e-6:
        low, high = stats.t.interval(0.9, len(logs) - 1, logs.mean(), stats.sem(logs))
        assert (math.log(found.low), math.log(found.high)) == pytest.approx((low, high), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(
    ("logs", "finding"),
    [
        ((0.001, -0.001, 0.0, 0.002, -0.002), Finding.KEEPS),
        ((0.10, 0.11, 0.09, 0.10, 0.10), Finding.LOSES),
        ((-0.10, -0.11, -0.09, -0.10, -0.10), Finding.ENDS_LOWER),
        ((0.029, 0.031, 0.030, 0.028, 0.032), Finding.NOT_DECIDED),  # on the line
        ((0.5, -0.5, 0.4, -0.4, 0.0), Finding.NOT_DECIDED),  # nothing is known
        ((0.0,), Finding.NOT_DECIDED),  # one seed
        ((0.0, 0.0), Finding.KEEPS),
    ],
)
def test_findings(logs: tuple[float, ...], finding: Finding) -> None:
    assert of_logs(*logs).finding is finding
    assert of_logs(*logs).keeps is {Finding.LOSES: False, Finding.NOT_DECIDED: None}.get(finding, True)


def test_a_limit_that_is_touched_is_kept() -> None:
    assert PairedRatio((EQUAL, EQUAL), (1.0, 1.0)).finding is Finding.KEEPS
    assert PairedRatio((1.031, 1.031), (1.0, 1.0)).finding is Finding.LOSES


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_one_seed_that_breaks_is_enough(broken: float) -> None:
    found = PairedRatio((1.0, broken, 1.0), (1.0, 1.0, 1.0))
    assert found.finding is Finding.BREAKS
    assert found.keeps is False
    assert found.text == "inf or NaN in 1 of 3 seeds"


def test_nothing_is_judged_where_the_control_has_not_learned() -> None:
    assert PairedRatio.of(ONES, ONES, (2.1,) * 5).finding is Finding.KEEPS
    assert PairedRatio.of(ONES, ONES, (2.1,) * 4 + (2.0,)).finding is Finding.NOT_DECIDED
    assert PairedRatio.of((9.0,) * 5, ONES, (1.5,) * 5).finding is Finding.NOT_DECIDED
    assert PairedRatio.of((math.nan,) * 5, ONES, (1.5,) * 5).finding is Finding.BREAKS
    assert not have_learned([2.0], [math.nan])


def test_a_control_without_a_loss_decides_nothing() -> None:
    for control in (0.0, math.nan):
        found = PairedRatio(ONES, (1.0,) * 4 + (control,))
        assert found.finding is Finding.NOT_DECIDED
        assert found.text == "no ratio, n = 5"


def test_more_seeds_never_make_a_verdict_laxer() -> None:
    # each ratio 1.10: the range of the controls is not asked
    for n in (2, 3, 5, 10):
        assert PairedRatio((1.1,) * n, (1.0,) * n).finding is Finding.LOSES


def test_wrong_findings_are_as_rare_as_the_tests_promise() -> None:
    """At the limit itself `keeps` may be said in 5 of 100, and a ratio of one is hardly ever called a loss."""
    rng = np.random.default_rng(11)
    limit, tries = math.log(EQUAL), 1500
    for deviation in (0.005, 0.02):
        at_limit = [of_logs(*rng.normal(limit, deviation, 5)).finding for _ in range(tries)]
        # three standard errors above 5 %
        assert at_limit.count(Finding.KEEPS) <= 0.067 * tries
        assert at_limit.count(Finding.LOSES) <= 0.067 * tries
        equal = [of_logs(*rng.normal(0, deviation, 5)).finding for _ in range(tries)]
        assert equal.count(Finding.LOSES) + equal.count(Finding.ENDS_LOWER) <= 0.01 * tries
    assert equal.count(Finding.NOT_DECIDED) > 0  # the larger deviation is one of those that ask for more seeds


def test_s_alone_asks_for_more_seeds() -> None:
    assert not of_logs(0.0, 0.001, 0.002).needs_more
    assert of_logs(1.0, 1.1, 0.9).needs_more
    assert not of_logs(3.0).needs_more


def test_json() -> None:
    found = of_logs(0.1, 0.101)
    data = found.to_dict()
    assert data["n"] == 2
    assert data["finding"] == "loses"
    assert PairedRatio.from_dict(data) == found


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="as many"):
        PairedRatio((1.0,), ())
