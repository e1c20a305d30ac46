"""Averages and decays against iteration, exact fractions and real 16-bit types."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab import FloatFormat, audit_hyperparameters, get_format, round_to
from precision_lab.training import hyperparameters as package
from precision_lab.training.hyperparameters import arithmetic
from precision_lab.training.hyperparameters.arithmetic import (
    frozen_share,
    held_average,
    settling_value,
    stored_rates,
    stored_value,
    torch_average,
)
from precision_lab.training.hyperparameters.finding import Severity
from tests.training.hyperparameters.helpers import (
    DECAY,
    FROZEN,
    SMALL,
    V,
    finite_values,
    in_torch,
    rounded,
    same,
)

BETAS = st.one_of(st.floats(0, 1, exclude_max=True), st.integers(1, 20).map(lambda k: 1 - 2.0**-k))

# ---- running averages ----


@cache
def decayed(fmt: FloatFormat, decay: float, value: float) -> Fraction:
    return Fraction(rounded(Fraction(decay) * Fraction(value), fmt))


def iterated(fmt: FloatFormat, decay: float, gain: float) -> float:
    """Follow the average step by step, in rational arithmetic rounded by the reference."""
    value = 0.0
    while True:
        following = rounded(decayed(fmt, decay, value) + Fraction(gain), fmt)
        if following == value or not math.isfinite(following):
            return following
        value = following


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_averages_settle_where_iteration_does(fmt: FloatFormat) -> None:
    values = [v for v in finite_values(fmt) if v]
    for decay in [v for v in values if 0.4 < v <= 1]:
        for gain in values[:: max(1, len(values) // 24)]:
            assert same(settling_value(fmt, decay, gain), iterated(fmt, decay, gain)), (decay, gain)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([get_format(f) for f in ("bf16", "fp16", "e6m9", "e5m9", "e4m9", "e4m5", "e8m0_ieee")]),
    BETAS,
    BETAS,
)
def test_averages_settle_where_iteration_does_in_16_bits(fmt: FloatFormat, decay: float, gain: float) -> None:
    kept, added = (rounded(Fraction(x), fmt) for x in (decay, 1 - gain))
    if kept and added:
        assert settling_value(fmt, kept, added) == iterated(fmt, kept, added)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999])
@pytest.mark.parametrize(("fmt", "scalar"), [("bf16", ml_dtypes.bfloat16), ("fp16", np.float16), ("fp32", np.float32)])
def test_averages_settle_where_real_arithmetic_does(fmt: str, scalar: Any, beta: float) -> None:
    """The types of NumPy and ml_dtypes round every product and every sum, as the audit does."""
    value, decay, gain = scalar(0), scalar(beta), scalar(1 - beta)
    for _ in range(400_000):
        before, value = value, decay * value + gain
        if value == before:
            break
    else:
        raise AssertionError("it did not settle")
    assert audit_hyperparameters(fmt, beta2=beta)[V].stored == float(value)


def test_where_v_settles_depends_on_the_gradient() -> None:
    """The range that the lesson names, over every g of fp16 in [1, 2); one of 2g gives four times the same."""
    decay, share = (stored_value(x, "fp16") for x in (Fraction(0.999), 1 - Fraction(0.999)))
    gradients = 1 + np.arange(1024) / 1024
    gains = np.float16(share) * (gradients**2).astype(np.float16)
    settled = [settling_value("fp16", decay, float(gain)) for gain in gains] / gradients**2
    assert settled[0] == 0.75
    assert f"between {settled.min():.2f} and {settled.max():.2f}" in " ".join((package.__doc__ or "").split())


def test_an_average_may_overflow_or_stay_zero() -> None:
    assert settling_value("fp16", 1.0, 65504.0) == math.inf
    assert math.isnan(settling_value("fp8_e4m3fn", 1.0, 448.0))
    assert settling_value("fp4_e2m1fn", 1.0, 6.0) == 6.0
    assert settling_value("bf16", 1.0, 0.0) == 0.0


# ---- what does not decay ----

NARROW_ENOUGH = [get_format(fmt) for fmt in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2", "fp6_e2m3fn")]
DECAYS = [0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.996, 0.997, 0.998, 0.999, 0.9995, 0.9999, 1 - 2.0**-9, 1 - 2.0**-8]


def a_binade(fmt: FloatFormat) -> list[float]:
    """One whose lower neighbour is normal, too."""
    bottom = max(1.0, 2.0 ** (fmt.emin + 1))
    return [v for v in finite_values(fmt) if bottom <= v < 2 * bottom]


@pytest.mark.parametrize("fmt", NARROW_ENOUGH, ids=str)
@pytest.mark.parametrize("beta", DECAYS)
def test_the_share_that_stays_is_counted_over_all_significands(fmt: FloatFormat, beta: float) -> None:
    """By exact fractions: what is held rounds a product once, torch into float32 before."""
    held, double = Fraction(rounded(Fraction(beta), fmt)), Fraction(float(np.float32(beta)))
    single = get_format("fp32")
    values = [Fraction(v) for v in a_binade(fmt)]
    result = audit_hyperparameters(fmt, beta2=beta)
    assert len(values) == 2**fmt.mantissa_bits
    assert result[FROZEN].stored == sum(rounded(held * v, fmt) == v for v in values) / len(values)
    of_torch = [rounded(Fraction(rounded(double * v, single)), fmt) for v in values]
    assert in_torch(result, FROZEN).stored == sum(map(Fraction.__eq__, values, map(Fraction, of_torch))) / len(values)
    assert frozen_share(fmt, beta) == in_torch(result, FROZEN).stored
    if not frozen_share(fmt, beta):
        fallen = sum((v - Fraction(after)) / v for v, after in zip(values, of_torch, strict=True)) / len(values)
        expected = float(fallen / (1 - Fraction(beta)) - 1)
        assert in_torch(result, FROZEN).effect_error == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("fmt", NARROW_ENOUGH[:4], ids=str)
@pytest.mark.parametrize("beta", [0.9, 0.95, 0.99, 0.996, 0.997, 0.998, 0.999])
@pytest.mark.parametrize("average", [held_average, torch_average])
def test_where_any_stays_none_is_halved(fmt: FloatFormat, beta: float, average: Any) -> None:
    moment = average(fmt, "beta2", beta)
    start = np.array(a_binade(fmt)) * 4  # two binades above: what is below is normal where it comes to lie
    values, before = start, None
    while before is None or not np.array_equal(values, before):
        before, values = values, np.asarray(moment.step(values, False), np.float64)
        if (values < start / 2).all():
            break
    stays = arithmetic.average_decay(moment).frozen > 0
    assert (values > start / 2).all() if stays else (values < start / 2).all()


def test_a_wide_format_is_sampled_where_nothing_can_stay() -> None:
    """fp32 has 2^23 significands; what can stay there is counted, the mean of the rest is of some thousands."""
    assert frozen_share("fp32", 0.999) == 0
    assert frozen_share("fp32", 1 - 2.0**-40) == 1
    assert frozen_share("fp32", 1 - 2.0**-24) == 0  # one below 1: whatever is not rounded up, falls


def test_what_can_stay_is_counted_to_the_last_in_a_wide_format_too() -> None:
    fmt, beta = FloatFormat.ieee(8, 15), 1 - 0.7 * 2.0**-16
    values = 1 + np.arange(2**15) / 2**15
    after = round_to((values * float(np.float32(beta))).astype(np.float32), fmt)
    share = float(np.mean(after == values))
    assert 0 < share < 1
    assert (share * 4096) % 1  # no sample of some thousands has it
    assert frozen_share(fmt, beta) == share


@pytest.mark.parametrize("name", ["beta1", "momentum"])
def test_other_averages_stay_too(name: str) -> None:
    """beta1 = 0.9 is far from 1 in bf16, 0.999 is not; 0.95 in fp8 is it for some."""
    kind = {"optimizer": "sgd"} if name == "momentum" else {"optimizer": "adam"}
    expression = f"share of m with R({name}*m) = m"
    cases = [("bf16", 0.9, 0), ("bf16", 0.999, 1), ("fp8_e4m3fn", 0.95, 1 / 4), ("fp8_e5m2", 0.95, 1)]
    # fp8_e4m3fn: 1.125, and 1.25, of which float32 makes the tie 1.1875
    for fmt, beta, share in cases:
        assert in_torch(audit_hyperparameters(fmt, **kind, **{name: beta}), expression).stored == share  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.5, 0.01, 0.004, 0.003, 0.002, 0.001, 0.0005, 2e-6])
@pytest.mark.parametrize("fmt", NARROW_ENOUGH[:3], ids=str)
def test_the_share_of_weights_that_do_not_decay(fmt: FloatFormat, rate: float) -> None:
    factor = Fraction(float(np.float32(1 - rate)))
    values = [Fraction(v) for v in a_binade(fmt)]
    after = [Fraction(rounded(Fraction(rounded(factor * v, get_format("fp32"))), fmt)) for v in values]
    still = sum(map(Fraction.__eq__, values, after)) / len(values)
    finding = in_torch(audit_hyperparameters(fmt, lr=1.0, weight_decay=rate), DECAY)
    assert (finding.severity is Severity.FATAL) is (still > 0)
    if still:
        assert f"for {100 * still:.3g} % of all w" in finding.consequence
    else:
        fallen = sum((v - a) / v for v, a in zip(values, after, strict=True)) / len(values)
        assert finding.effect_error == pytest.approx(float(fallen / Fraction(rate) - 1), abs=1e-6)


# ---- the staircase ----


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp32", "fp4_e2m1fn"])
def test_the_staircase(fmt: str) -> None:
    rates = np.array([1, 0.5, 0.1, 0.01, 2.0**-9, 0.001, 2.0**-12, 2.0**-25, 1e-9])
    expected = [1 - rounded(1 - Fraction(float(rate)), get_format(fmt)) for rate in rates]
    assert stored_rates(rates, fmt).tolist() == expected
    assert all(a >= b for a, b in pairwise(expected))
    assert expected[-1] == 0


def test_stored_value_rounds_a_fraction_once() -> None:
    assert stored_value(1 + Fraction(1, 2**8) + Fraction(1, 2**200), "bf16") == 129 / 128
    assert stored_value(Fraction(1, 3), "fp16") == float(np.float16(1 / 3))
