"""Lost updates, frozen weights, thresholds and running sums, each against exact rational arithmetic."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from precision_lab.analysis import counting, frozen_weights
from precision_lab.analysis import updates as updates_module
from precision_lab.analysis.frozen_weights import Frozen, Gaps, WeightGaps, frozen_fraction
from precision_lab.analysis.stagnation import (
    Series,
    Stagnation,
    Threshold,
    stagnation,
    swamping_thresholds,
)
from precision_lab.analysis.updates import (
    LOST,
    MOVED,
    NO_UPDATE,
    UpdateReport,
    step_report,
    update_outcomes,
    update_report,
)
from precision_lab.numerics import reference
from precision_lab.numerics.codes import decode
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.numerics.rounding import round_to
from precision_lab.support import threads as threads_module
from precision_lab.support.threads import threads
from tests.numerics.helpers import REGISTERED, UP_TO_8_BITS

Array = NDArray[Any]
MODES = tuple(mode.value for mode in RoundingMode)
CUSTOM = (
    *(get_format(name) for name in ("e2m0", "e5m0", "e8m0_ieee", "e3m1", "e6m9", "e8m21", "e8m22", "e8m20")),
    FloatFormat("finite without mantissa", 3, 0, 3, "finite"),
    FloatFormat("fnuz without mantissa", 3, 0, 3, "fnuz"),
)
FORMATS_AND_CUSTOM = st.sampled_from((*REGISTERED, *CUSTOM))


# ---- the oracle ----


def rounded(x: Fraction, fmt: FloatFormat, mode: str, number: int = 0) -> float:
    """R(x) of an exact number, which need not be a float."""
    return reference.round_to(x, fmt, mode, uniform=Fraction(number, 2**16))


@lru_cache(maxsize=2**16)
def stored(x: float, fmt: FloatFormat) -> float:
    """A number as a format stores it, which is asked again in every mode; the sign of a zero is whose came first."""
    return reference.round_to(x, fmt)


@lru_cache(maxsize=2**16)
def ratio_exponent(w: float, u: float) -> int:
    return reference.floor_log2(abs(Fraction(u) / Fraction(w)))


def units(x: float) -> int:
    """A number in units of 2^-1074, of which every float64 is a whole number."""
    numerator, denominator = x.as_integer_ratio()
    whole, rest = divmod(numerator << 1074, denominator)
    assert rest == 0
    return whole


def brute_report(weights: Array, updates: Array, fmt: FloatFormat, mode: str, seed: int = 0) -> UpdateReport:
    """The definitions, element by element."""
    nonzero = lost = overflowed = nonfinite = zero_weights = 0
    ratios: Counter[int] = Counter()
    lost_ratios: Counter[int] = Counter()
    sums = [0] * 3
    for i, (given_weight, u) in enumerate(zip(map(float, weights), map(float, updates), strict=True)):
        w = stored(given_weight, fmt)
        if not all(map(math.isfinite, (given_weight, w, u))) or abs(u) >= 2.0**480:
            nonfinite += 1
            continue
        if u == 0:
            continue
        number = reference.random_number(seed, i) if mode == "stochastic" else 0
        r = rounded(Fraction(w) + Fraction(u), fmt, mode, number)
        nonzero += 1
        lost += r == w
        if w == 0:
            zero_weights += 1
        else:
            exponent = ratio_exponent(w, u)
            ratios[exponent] += 1
            lost_ratios[exponent] += r == w
        if not math.isfinite(r):
            overflowed += 1
            continue
        d = float(Fraction(r) - Fraction(w))
        sums = [total + units(product) for total, product in zip(sums, (u * u, d * d, d * u), strict=True)]
    return UpdateReport(
        fmt,
        RoundingMode(mode),
        len(weights),
        nonzero,
        lost,
        overflowed,
        nonfinite,
        zero_weights,
        dict(ratios),
        {exponent: n for exponent, n in lost_ratios.items() if n},
        (sums[0], sums[1], sums[2]),
    )


def brute_frozen(weights: Array, size: float, fmt: FloatFormat) -> Frozen:
    up = down = both = count = 0
    for given_weight in map(float, weights):
        w = reference.round_to(given_weight, fmt)
        if not (math.isfinite(given_weight) and math.isfinite(w)):
            continue
        count += 1
        stays = [rounded(Fraction(w) + step, fmt, "ties_to_even") == w for step in (Fraction(size), -Fraction(size))]
        up, down, both = up + stays[0], down + stays[1], both + all(stays)
    return Frozen(size, count, up, down, both)


def half_gaps(fmt: FloatFormat) -> Array:
    """Half the gap in every binade, and half of that below the powers of two."""
    exponents = np.arange(fmt.emin - 1, fmt.emax + 1, dtype=np.int32)
    return np.ldexp(1.0, exponents - fmt.mantissa_bits - 1)


def values(fmt: FloatFormat) -> Array:
    """Every value of a small format: both zeros, infinities and NaN with them."""
    return np.asarray(decode(np.arange(2**fmt.bits), fmt, np.float64))


# ---- strategies ----


@st.composite
def weights_of(draw: st.DrawFn, fmt: FloatFormat) -> float:
    """A value of the format, a power of two, its edges, or any float."""
    kind = draw(st.sampled_from(("code", "power", "edge", "any")))
    sign = draw(st.sampled_from((1.0, -1.0)))
    if kind == "code":
        return reference.decode(draw(st.integers(0, 2**fmt.bits - 1)), fmt)
    if kind == "power":
        return sign * 2.0 ** draw(st.integers(fmt.emin - fmt.mantissa_bits, fmt.emax))
    if kind == "edge":
        edges = (0.0, fmt.max, fmt.smallest_normal, fmt.smallest_subnormal, fmt.overflow_threshold, math.inf, math.nan)
        return sign * draw(st.sampled_from(edges))
    return draw(st.floats(width=32))


@st.composite
def updates_of(draw: st.DrawFn, fmt: FloatFormat, w: float) -> float:
    """Ties and their neighbours, something near the weight, tiny, huge, or any float."""
    kind = draw(st.sampled_from(("tie", "tie", "multiple", "near", "any", "wide", "edge")))
    sign = draw(st.sampled_from((1.0, -1.0)))
    exponent = fmt.emin
    if math.isfinite(w) and w != 0:
        exponent = min(max(reference.floor_log2(abs(Fraction(w))), fmt.emin), fmt.emax)
    half = math.ldexp(1.0, exponent - fmt.mantissa_bits - 1)
    if kind in ("tie", "multiple"):
        base = half * (draw(st.sampled_from((0.5, 1, 2))) if kind == "tie" else draw(st.integers(1, 9)) / 2)
        nudge = draw(st.sampled_from((0, 0, 2.0**-23, -(2.0**-24), 2.0**-52, -(2.0**-53), 2.0**-30)))
        return sign * base * (1 + nudge)
    if kind == "near" and math.isfinite(w):
        return -w * draw(st.sampled_from((1.0, 0.5, 0.99, 1.5, 2.0)))
    if kind == "any":
        return draw(st.floats(width=32))
    if kind == "wide":
        return draw(st.floats())
    edges = (0.0, 5e-324, 2.0**-1074 * 3, 2.0**-149, 2.0**480, 2.0**479, fmt.max, math.inf, math.nan, 1e300)
    return sign * draw(st.sampled_from(edges))


@st.composite
def pairs(draw: st.DrawFn, fmt: FloatFormat) -> tuple[Array, Array]:
    drawn = []
    for _ in range(draw(st.integers(0, 12))):
        w = draw(weights_of(fmt))
        drawn.append((w, draw(updates_of(fmt, w))))
    weights, updates = (np.array([pair[i] for pair in drawn], np.float64) for i in (0, 1))
    with np.errstate(all="ignore"):
        dtypes = draw(st.tuples(*[st.sampled_from((np.float32, np.float64))] * 2))
        return weights.astype(dtypes[0]), updates.astype(dtypes[1])


# ---- update_report ----


@given(st.data(), FORMATS_AND_CUSTOM, st.sampled_from(MODES), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_a_report_equals_the_definitions(data: st.DataObject, fmt: FloatFormat, mode: str, seed: int) -> None:
    weights, updates = data.draw(pairs(fmt))
    assert update_report(weights, updates, fmt, mode=mode, rng=seed) == brute_report(weights, updates, fmt, mode, seed)


@given(st.data(), FORMATS_AND_CUSTOM)
@settings(max_examples=200, deadline=None)
def test_outcomes_equal_the_definitions_one_by_one(data: st.DataObject, fmt: FloatFormat) -> None:
    weights, updates = data.draw(pairs(fmt))
    expected = []
    for i in range(weights.size):
        one = brute_report(weights[i : i + 1], updates[i : i + 1], fmt, "ties_to_even", 0)
        expected.append(LOST if one.lost else MOVED if one.nonzero else NO_UPDATE)
    assert update_outcomes(weights, updates, fmt).tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp8_e4m3fn"])
def test_a_step_of_one_rounding_is_reported_as_that_rounding(fmt: str, dtype: type) -> None:
    """In every mode: the weights after the step are all that is known of it. Across tiles, and where some overflow."""
    rng = np.random.default_rng(8)
    weights: Any = np.asarray(round_to(rng.standard_normal(5000) * 2.0 ** rng.integers(-6, 9, 5000), fmt)).astype(dtype)
    updates: Any = (
        (weights * rng.standard_normal(5000) * 2.0 ** rng.integers(-14, 2, 5000)).astype(np.float32).astype(dtype)
    )
    weights[:9], updates[:9] = [0, 0, 1, 1, 1, np.nan, 2, np.inf, 0], [1e-3, -1, np.nan, np.inf, 0, 1, 2**20, 1, 0]
    found = []
    for mode in set(MODES) - {"stochastic"}:
        exact = weights.astype(np.float64) + updates  # of so many bits
        with np.errstate(all="ignore"):
            after: Any = np.asarray(round_to(exact, fmt, mode)).astype(dtype)
        expected = update_report(weights, updates, fmt, mode=mode)
        assert step_report(weights, after, updates, fmt) == replace(expected, mode=expected.mode.TIES_TO_EVEN), mode
        found.append(expected)
    assert min(report.lost for report in found) > 100
    assert any(report.overflowed for report in found) or fmt == "bf16"


def test_a_step_may_do_anything() -> None:
    """It is not taken for a rounding of w + u."""
    before, after = [1.0, 1.0, 1.0, -2.0, 0.0], [1.0, 3.0, np.nan, -2.0, 0.0]
    report = step_report(before, after, [0.5, -1.0, 1.0, 0.0, 2.0], "bf16")
    assert (report.count, report.nonzero, report.lost, report.overflowed, report.zero_weights) == (5, 4, 2, 1, 1)
    assert report.edq_ratio == (2 * -1) / (0.25 + 1 + 4)
    assert (report.ratios, report.lost_ratios) == ({-1: 1, 0: 2}, {-1: 1})
    with pytest.raises(ValueError, match="of one size, got 2, 1 and 2"):
        step_report([1, 2], [1], [1, 2], "bf16")


def test_outcomes_have_the_shape_of_the_weights_and_cross_tiles_and_blocks() -> None:
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((7, 11_000)).astype(np.float32)
    updates = (weights * 2.0 ** rng.integers(-12, -5, weights.shape)).astype(np.float32)
    updates[rng.random(weights.shape) < 0.1] = 0
    found = update_outcomes(weights, updates, "bf16")
    assert found.shape == weights.shape
    assert np.array_equal(found, update_outcomes(weights.astype(np.float64), updates, "bf16"))  # in blocks
    stored = np.asarray(round_to(weights, "bf16")).astype(np.float64)
    stays = np.asarray(round_to(stored + updates, "bf16")) == stored  # the sum of two float32 this close is exact
    assert np.array_equal(found, np.where(updates == 0, NO_UPDATE, np.where(stays, LOST, MOVED)))
    assert update_outcomes(1.0, 2.0**-9, "bf16").shape == ()
    with pytest.raises(ValueError, match="one shape"):
        update_outcomes(weights, updates.T, "bf16")


@pytest.mark.parametrize("fmt", [*UP_TO_8_BITS, *(f for f in CUSTOM if f.bits <= 6)], ids=str)
def test_all_weights_and_all_ties_of_small_formats(fmt: FloatFormat) -> None:
    """Every weight with every half gap, a little less and a little more, up and down; frozen fractions with them."""
    weights = values(fmt)
    finite = np.isfinite(weights)
    stays = {}
    ties = half_gaps(fmt)
    for i, size in enumerate(np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf)]).tolist()):
        moved = {w: rounded(Fraction(w) + Fraction(size), fmt, "ties_to_even") for w in set(weights[finite].tolist())}
        for u in (size, -size):
            # ties to even does not see the sign, and every finite weight has its negative: -w - u goes where w + u does
            stays[u] = np.array([moved[math.copysign(1, u) * w] * math.copysign(1, u) == w for w in weights[finite]])
            report = update_report(weights, np.full(weights.size, u), fmt)
            assert report.lost == stays[u].sum()
            if i % 9 == 0:
                assert report == brute_report(weights, np.full(weights.size, u), fmt, "ties_to_even")
    sizes = [u for u in stays if u > 0]
    for chosen in (slice(None), slice(0, 2 ** (fmt.bits - 1)), slice(2 ** (fmt.bits - 1), None), slice(1, None, 2)):
        part = np.flatnonzero(np.isin(np.flatnonzero(finite), np.arange(weights.size)[chosen]))
        for found in frozen_fraction(weights[chosen], sizes, fmt):
            up, down = stays[found.update_size][part], stays[-found.update_size][part]
            assert found == Frozen(found.update_size, part.size, up.sum(), down.sum(), (up & down).sum())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "fp8_e4m3fn", "fp6_e2m3fn", "fp8_e5m2fnuz"])
def test_long_arrays_of_every_kind(name: str, mode: str) -> None:
    """Longer than a tile of the loop, with everything that a tile can hold, and several units of the sums."""
    fmt = FORMATS[name]
    rng = np.random.default_rng(5)
    n = 2500
    weights = (rng.standard_normal(n) * 2.0 ** rng.integers(-20, 3, n)).astype(np.float32)
    updates = (rng.standard_normal(n) * 2.0 ** rng.integers(-60, 0, n)).astype(np.float32)
    updates[rng.integers(0, n, 300)] = 0
    weights[rng.integers(0, n, 50)] = 0
    weights[7], weights[2000], updates[100] = np.nan, np.inf, -np.inf
    weights[1500:1600] = rng.choice([1e-45, 1e-40, -1e-39, 3e38], 100)
    updates[1550:1650] = rng.choice([1e-45, -1e-41, 3e38, 65504], 100)
    expected = brute_report(weights, updates, fmt, mode, 3)
    assert update_report(weights, updates, fmt, mode=mode, rng=3) == expected
    assert update_report(weights, updates.astype(np.float64), fmt, mode=mode, rng=3) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [0, 16, 17, 18, 19, 20, 21, 40, 100])
def test_tiles_of_every_width(width: int, dtype: Any) -> None:
    """Exponents as far apart as the short sums allow, and farther; and a tile of one element."""
    rng = np.random.default_rng(width)
    for n, fmt in ((1023, "bf16"), (1025, "e8m21")):
        significands = rng.integers(2**52, 2**53, n) * 2.0**-52
        updates = np.ldexp(significands, rng.integers(-width, 1, n) - 6).astype(dtype)
        updates[n // 2] = np.nextafter(dtype(2.0 ** -(width + 6)), dtype(1))
        weights = (rng.standard_normal(n) * 2.0 ** rng.integers(-3, 3, n)).astype(dtype)
        assert update_report(weights, updates, fmt) == brute_report(weights, updates, get_format(fmt), "ties_to_even")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [5, 19, 20, 30, 40, 45, 60])
def test_effective_updates_farther_apart_than_updates(width: int, dtype: Any) -> None:
    """Away from zero a weight moves by its gap, however small the update."""
    rng = np.random.default_rng(width)
    weights = np.ldexp(1 + rng.random(1024), rng.integers(-11, width - 3, 1024)).astype(dtype)
    updates = np.ldexp(1 + rng.random(1024), -11).astype(dtype)
    weights[0] = 2.0 ** (width - 4)  # a gap of 2^(width - 11)
    expected = brute_report(weights, updates, FORMATS["bf16"], "toward_positive")
    assert update_report(weights, updates, "bf16", mode="toward_positive") == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_element_makes_a_tile_unusual(dtype: Any) -> None:
    """Whichever it is, the others of the tile, and the tiles beside it, are counted as they would be without it."""
    rng = np.random.default_rng(8)
    n, fmt = 3 * 1024, FORMATS["bf16"]
    usual_w, usual_u = (rng.standard_normal(n).astype(dtype), (rng.standard_normal(n) * 1e-3).astype(dtype))
    tiny = np.finfo(dtype).smallest_subnormal
    odd = [np.inf, np.nan, 3.3e38, 1e-45, tiny, 2.0**-126, -(2.0**-127), 0, 2.0**480, -(2.0**479), 1e-320, 5e-42]
    with np.errstate(all="ignore"):
        values = [dtype(value) for value in odd]
    whole = update_report(usual_w, usual_u, fmt)
    for value in values:
        for which in (0, 1):
            w, u = usual_w.copy(), usual_u.copy()
            (w, u)[which][1500] = value
            one = slice(1500, 1501)
            new = brute_report(w[one], u[one], fmt, "ties_to_even")
            assert update_report(w, u, fmt) + update_report(usual_w[one], usual_u[one], fmt) == whole + new


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bit_patterns_at_random(dtype: Any) -> None:
    rng = np.random.default_rng(11)
    uint = np.uint32 if dtype is np.float32 else np.uint64
    weights, updates = (rng.integers(0, 2 ** (8 * uint(0).itemsize), 1500, dtype=uint).view(dtype) for _ in range(2))
    for fmt in ("bf16", "fp16", "fp32"):
        for mode in MODES:
            expected = brute_report(weights, updates, FORMATS[fmt], mode, 5)
            assert update_report(weights, updates, fmt, mode=mode, rng=5) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_arrays_lie_changes_nothing(dtype: Any) -> None:
    """Roundings are called by their addresses, compiled for arrays that are aligned and may be written to."""
    rng = np.random.default_rng(65)
    w, u = rng.standard_normal(3000).astype(dtype), (rng.standard_normal(3000) * 1e-3).astype(dtype)
    odd_w, odd_u = (np.frombuffer(b"\0" + x.tobytes(), dtype, offset=1) for x in (w, u))
    pairs = [(odd_w, u), (w, odd_u), (odd_w, odd_u)]
    if dtype == np.float32:  # compiled once more
        read_only = w.copy()
        read_only.flags.writeable = False
        pairs.append((read_only, u))
    outcomes = update_outcomes(w, u, "fp16")
    assert all(np.array_equal(update_outcomes(*pair, "fp16"), outcomes) for pair in pairs[:3])
    for mode in MODES:
        expected = update_report(w, u, "fp16", mode=mode, rng=1)
        assert all(update_report(*pair, "fp16", mode=mode, rng=1) == expected for pair in pairs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_threads_change_nothing(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(12)
    weights = rng.standard_normal(70_001).astype(dtype)
    updates = (rng.standard_normal(70_001) * 1e-3).astype(np.float32)
    updates[rng.integers(0, 70_001, 30)] = 1e-40

    def found() -> list[object]:
        reports = [update_report(weights, updates, "bf16", mode=mode, rng=(4, 2**64 - 10)) for mode in MODES]
        return [*reports, update_outcomes(weights, updates, "fp16").tobytes(), WeightGaps.of(weights, "fp8_e5m2")]

    expected = found()
    for module, name in ((counting, "SLICE"), (threads_module, "SLICE")):
        monkeypatch.setattr(module, "LEAST", 1)
        monkeypatch.setattr(module, name, 9_999)
    for count in (1, 2, 7):
        with threads(count):
            assert found() == expected


def test_sums_are_those_of_fsum() -> None:
    rng = np.random.default_rng(1)
    weights = round_to(rng.standard_normal(100_000).astype(np.float32), "bf16")
    updates = (rng.standard_normal(100_000) * 10.0 ** rng.integers(-30, 0, 100_000)).astype(np.float32)
    report = update_report(weights, updates, "bf16")
    u = updates.astype(np.float64)
    d = np.asarray(round_to(weights + u, "bf16")) - weights  # exact enough: the sums agree to the last bit
    assert report.raw_update_norm == math.sqrt(math.fsum(u * u))
    assert report.effective_update_norm == math.sqrt(math.fsum(d * d))
    assert report.edq == math.fsum(d * u) / math.sqrt(math.fsum(u * u))
    assert report.edq_ratio == pytest.approx(math.fsum(d * u) / math.fsum(u * u), rel=1e-15)


@given(st.data(), st.sampled_from(MODES))
@settings(max_examples=50, deadline=None)
def test_chunks_add_up_to_the_whole(data: st.DataObject, mode: str) -> None:
    """To the last bit of the norms, in any grouping."""
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    n = data.draw(st.integers(1, 5000))
    weights = rng.standard_normal(n).astype(np.float32)
    updates = (rng.standard_normal(n) * 10.0 ** rng.integers(-20, 2, n)).astype(np.float32)
    whole = update_report(weights, updates, "bf16", mode=mode, rng=9)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, n), max_size=4))), n]
    parts = [update_report(weights[a:b], updates[a:b], "bf16", mode=mode, rng=(9, a)) for a, b in pairwise(cuts)]
    assert sum(parts, UpdateReport.empty("bf16", mode)) == whole
    assert sum(reversed(parts), UpdateReport.empty("bf16", mode)) == whole
    gaps = WeightGaps.of(weights, "bf16")
    assert sum((WeightGaps.of(weights[a:b], "bf16") for a, b in pairwise(cuts)), WeightGaps(gaps.format)) == gaps


def test_blocks_and_parts_of_large_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal(70_000).astype(ml_dtypes.bfloat16)
    updates = (rng.standard_normal(70_000) * 1e-3).astype(np.float32)
    reports = [update_report(weights, updates, "bf16", mode=mode, rng=4) for mode in MODES]
    same_dtype = update_report(weights.astype(np.float32), updates, "bf16")
    gaps = WeightGaps.of(weights, "bf16")
    assert same_dtype == reports[0]
    for module in (updates_module, frozen_weights):
        monkeypatch.setattr(module, "BLOCK", 1000)
    monkeypatch.setattr(counting, "MOST", 30_001)
    monkeypatch.setattr(counting, "LEAST", 1)
    assert [update_report(weights, updates, "bf16", mode=mode, rng=4) for mode in MODES] == reports
    assert update_report(weights.astype(np.float32), updates, "bf16") == same_dtype
    assert WeightGaps.of(weights, "bf16") == gaps


def test_a_report_by_hand() -> None:
    # gap at 1 is 2^-10: moved, lost, a tie that stays, an update of zero, an infinity
    weights = np.array([1, 1, 1, 1, np.inf, 0, 65504], np.float16)
    updates = np.array([2.0**-10, -(2.0**-13), 2.0**-11, 0, 1, 2.0**-25, 16], np.float32)
    report = update_report(weights, updates, "fp16")
    assert (report.count, report.nonzero, report.lost, report.nonfinite) == (7, 5, 3, 1)
    assert (report.overflowed, report.zero_weights) == (1, 1)
    assert report.ratios == {-13: 1, -12: 1, -11: 1, -10: 1}
    assert report.lost_ratios == {-13: 1, -11: 1}
    assert report.imprecision == 4 / 7
    assert report.lost_of_nonzero == 3 / 5
    squares = 2.0**-20 + 2.0**-26 + 2.0**-22 + 2.0**-50
    assert report.raw_update_norm == math.sqrt(squares)
    assert report.effective_update_norm == 2.0**-10
    assert report.edq == 2.0**-20 / math.sqrt(squares)
    assert report.edq_ratio == pytest.approx(2.0**-20 / squares, rel=1e-15)


def test_perfect_updates_and_standstill() -> None:
    weights = np.arange(1.0, 9.0)
    perfect = update_report(weights, weights, "bf16")
    assert (perfect.edq_ratio, perfect.imprecision, perfect.lost) == (1, 0, 0)
    assert perfect.raw_update_norm == perfect.effective_update_norm == math.sqrt(204)
    assert perfect.edq == 204 / math.sqrt(204)
    still = update_report(weights, weights * 2.0**-10, "bf16")
    assert (still.edq_ratio, still.edq, still.imprecision, still.lost_of_nonzero) == (0, 0, 1, 1)
    # a quarter of the gap either side of the middle: what is not lost is made twice as large
    assert update_report([1.0, 1.0], [0.75 * 2**-7, 0.25 * 2**-7], "bf16").edq_ratio == 0.75 / (0.75**2 + 0.25**2)


def test_nothing_and_no_updates() -> None:
    for report in (update_report([], [], "bf16"), UpdateReport.empty("bf16")):
        assert report == UpdateReport.empty("bf16")
        assert math.isnan(report.edq)
        assert report.imprecision == report.lost_of_nonzero == report.raw_update_norm == 0
    idle = update_report([1.0, -0.0], [0.0, -0.0], "bf16")
    assert (idle.imprecision, idle.nonzero, idle.lost) == (1, 0, 0)
    assert math.isnan(idle.edq_ratio)
    assert idle.to_dict()["edq_ratio"] == "nan"
    assert UpdateReport.empty("bf16") + idle == idle


def test_w_plus_u_is_rounded_once() -> None:
    """float64 addition first, and then bf16, would take the first to the tie and back to 1; the second likewise."""
    weights = np.ones(2)
    updates = np.array([2.0**-8 + 2.0**-60, -(2.0**-9) - 2.0**-60])
    assert update_report(weights, updates, "bf16").lost == 0
    assert np.all(np.asarray(round_to(weights + updates, "bf16")) == 1)  # the trap


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM], ids=str)
def test_a_trace_above_the_tie_moves_the_weight(fmt: FloatFormat) -> None:
    """Whatever the carrier: a trace far below its last bit still decides."""
    tie = np.float32(fmt.eps / 2)
    for trace in (2.0**-20, 2.0**-23):
        updates = np.array([tie * (1 + trace), tie * (1 - trace / 2)], np.float32)
        report = update_report(np.ones(2, np.float32), updates, fmt)
        assert report == brute_report(np.ones(2), updates, fmt, "ties_to_even")
        assert report.lost == 1


def test_sums_beyond_the_carrier() -> None:
    """float32 overflows at bf16's own limit: toward zero there is a largest value to come back to."""
    top = FORMATS["bf16"].max
    weights, updates = np.array([top, -top], np.float32), np.array([3e38, -3e38], np.float32)
    for mode in MODES:
        assert update_report(weights, updates, "bf16", mode=mode, rng=0) == brute_report(
            weights, updates, FORMATS["bf16"], mode
        )
    assert update_report(weights, updates, "bf16", mode="toward_zero").lost == 2


def test_infinities_count_where_the_format_has_none() -> None:
    for name in ("fp6_e3m2fn", "fp4_e2m1fn", "fp8_e4m3fn", "e5m0"):
        report = update_report([np.inf, np.nan, 1.0], [1.0, 1.0, 1.0], name)
        assert (report.count, report.nonfinite, report.nonzero) == (3, 2, 1)
        assert WeightGaps.of([np.inf, -np.inf, np.nan, 1.0], name).nonfinite == 3


def test_a_saturated_weight_is_lost_not_overflowed() -> None:
    report = update_report([28.0, 28.0, -28.0], [1e6, -1e6, -1e300], "fp6_e3m2fn")
    assert (report.lost, report.overflowed, report.nonfinite) == (1, 0, 1)


def test_a_report_is_json() -> None:
    report = update_report([1.0, 0.0, np.nan], [1e-3, 1e-9, 1.0], "fp16")
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain == report.to_dict()
    assert plain["format"] == "fp16"
    assert (plain["lost"], plain["lost_log2_ratios"], plain["zero_weights"]) == (1, {}, 1)


def test_shapes_are_kept_apart() -> None:
    square = np.ones((2, 2), np.float32)
    assert update_report(square, square.T, "bf16").count == 4
    order = np.arange(6.0).reshape(2, 3)
    assert update_report(np.asfortranarray(order), order, "bf16") == update_report(order, order, "bf16")
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(4,\)"):
        update_report(square, square.reshape(-1), "bf16")


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (([1.0], [1.0], "fp17"), "unknown format 'fp17'"),
        (([1.0], [1.0], "fp16"), "unknown rounding mode 'nearest'"),
        (([1.0], [1j], "fp16"), "complex"),
        ((["a"], [1.0], "fp16"), "cannot take"),
        (([1.0], [1.0, 2.0], "fp16"), "one shape"),
    ],
)
def test_reports_refuse_in_one_line(arguments: tuple[Any, ...], needle: str) -> None:
    with pytest.raises(ValueError, match=needle) as caught:
        update_report(*arguments, mode="nearest" if "rounding mode" in needle else "ties_to_even")
    assert str(caught.value).isprintable()


def test_bad_random_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="rng must be a seed"):
        update_report([1.0], [1.0], "fp16", mode="stochastic", rng=-1)
    fresh = [update_report(np.ones(1000), np.full(1000, 2.0**-9), "bf16", mode="sr").lost for _ in range(4)]
    assert len(set(fresh)) > 1


def test_reports_of_another_format_or_mode_do_not_add_up() -> None:
    with pytest.raises(ValueError, match=r"report on fp16 \(ties_to_even\)"):
        UpdateReport.empty("bf16") + UpdateReport.empty("fp16")
    with pytest.raises(ValueError, match="stochastic"):
        UpdateReport.empty("bf16") + UpdateReport.empty("bf16", "sr")
    with pytest.raises(ValueError, match="fp16"):
        WeightGaps.of([1.0], "bf16") + WeightGaps.of([1.0], "fp16")
    with pytest.raises(TypeError):
        UpdateReport.empty("bf16") + 1
    with pytest.raises(TypeError):
        WeightGaps.of([1.0], "bf16") + 1


# ---- frozen_fraction ----


@given(st.data(), FORMATS_AND_CUSTOM)
@settings(max_examples=120, deadline=None)
def test_frozen_weights_equal_the_definitions(data: st.DataObject, fmt: FloatFormat) -> None:
    weights, updates = data.draw(pairs(fmt))
    sizes = [abs(u) for u in updates.astype(float).tolist() if abs(u) < 2.0**480]
    assert list(frozen_fraction(weights, sizes, fmt)) == [brute_frozen(weights, size, fmt) for size in sizes]
    nonfinite = brute_report(weights, np.zeros(weights.size), fmt, "ties_to_even").nonfinite
    assert WeightGaps.of(weights, fmt).nonfinite == nonfinite


@pytest.mark.parametrize("name", ["fp16", "bf16", "e6m9", "e8m0_ieee"])
def test_frozen_weights_are_those_whose_updates_are_lost(name: str) -> None:
    """On all values of a format of 16 bits, by the other way: adding and rounding."""
    fmt = get_format(name)
    weights = np.asarray(decode(np.arange(2**fmt.bits), fmt))
    ties = half_gaps(fmt)[:: 1 if fmt.exponent_bits < 8 else 16]
    sizes = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf)])
    sizes = sizes[sizes < 2.0**127]
    for found in frozen_fraction(weights, sizes, fmt):
        up, down = (update_report(weights, np.full(weights.size, s * found.update_size), fmt).lost for s in (1, -1))
        assert (found.up, found.down) == (up, down)
        assert found.up == found.down  # the values are symmetric
        assert found.both <= found.up


def test_frozen_by_hand() -> None:
    # 1 has half gaps 2^-11 above and 2^-12 below, 1 + 2^-10 is odd, zero half the smallest subnormal
    weights = np.array([1, -1, 1 + 2**-10, 0, np.nan], np.float16)
    assert WeightGaps.of(weights, "fp16") == WeightGaps(
        FORMATS["fp16"],
        1,
        {
            Gaps(2.0**-25, True, 2.0**-25, True): 1,
            Gaps(2.0**-12, True, 2.0**-11, True): 1,
            Gaps(2.0**-11, False, 2.0**-11, False): 1,
            Gaps(2.0**-11, True, 2.0**-12, True): 1,
        },
    )
    tie, half_tie, nothing = frozen_fraction(weights, [2.0**-11, 2.0**-12, 0], "fp16")
    assert tie == Frozen(2.0**-11, 4, up=1, down=1, both=0)
    assert half_tie == Frozen(2.0**-12, 4, up=3, down=3, both=3)
    assert nothing.fraction == nothing.up_fraction == nothing.down_fraction == 1
    assert (tie.fraction, half_tie.up_fraction, half_tie.fraction) == (0, 0.75, 0.75)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_at_a_power_of_two_a_weight_may_move_inward_alone(fmt: str, sign: int) -> None:
    """Frozen is who moves neither way: between a quarter of the ulp, that of its binade, and half of it 1 is not."""
    ulp = get_format(fmt).eps
    sizes = [0.2 * ulp, 0.3 * ulp, 0.6 * ulp]
    (neither, inward, both), others = frozen_fraction([sign * 1.0], sizes, fmt), frozen_fraction([1.5], sizes, fmt)
    assert (neither.fraction, inward.fraction, both.fraction) == (1, 0, 0)
    outward, towards_zero = (inward.up, inward.down) if sign > 0 else (inward.down, inward.up)
    assert (outward, towards_zero) == (1, 0)
    assert [round_to(sign * (1 + side * 0.3 * ulp), fmt) == sign for side in (1, -1)] == [True, False]
    assert [found.fraction for found in others] == [1, 1, 0]  # elsewhere both gaps are the same


def test_frozen_weights_of_nothing() -> None:
    assert frozen_fraction([], [1.0], "fp16") == (Frozen(1.0, 0, 0, 0, 0),)
    assert frozen_fraction([1.0], [], "fp16") == ()
    assert frozen_fraction([np.inf], 1, "fp16")[0].fraction == 0


def test_a_saturated_weight_cannot_move_up() -> None:
    for name in ("fp6_e2m3fn", "fp6_e3m2fn", "fp4_e2m1fn"):
        top = FORMATS[name].max
        (found,) = frozen_fraction([top, -top, top], 1e30, name)
        assert (found.up, found.down, found.both) == (2, 1, 0)


@pytest.mark.parametrize("size", [-1.0, math.inf, math.nan])
def test_bad_sizes_are_refused_before_the_weights_are_read(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightGaps, "of", lambda *_: pytest.fail("they were read"))
    with pytest.raises(ValueError, match="an update size is a finite number that is not negative"):
        frozen_fraction([1.0], [1.0, size, 2.0], "fp16")


# ---- thresholds ----


def vanishes(significand: int, ratio: Fraction, fmt: FloatFormat, sign: int) -> bool:
    """Whether w + sign * w/ratio == w, for an integer significand of p bits, in the middle of the range."""
    w = Fraction(significand) * Fraction(2) ** ((fmt.emin + fmt.emax + 1) // 2 - fmt.mantissa_bits)
    return rounded(w + sign * w / ratio, fmt, "ties_to_even") == float(w)


@pytest.mark.parametrize("fmt", [f for f in (*REGISTERED, *CUSTOM) if f.precision <= 11], ids=str)
def test_thresholds_over_all_significands(fmt: FloatFormat) -> None:
    thresholds = swamping_thresholds(fmt)
    significands = range(2**fmt.mantissa_bits, 2**fmt.precision)
    tiny = Fraction(1, 2**60)
    for sign, can, must in (
        (1, thresholds.add_can, thresholds.add_must),
        (-1, thresholds.subtract_can, thresholds.subtract_must),
    ):
        for nudge in (-tiny, 0, tiny):
            for threshold, quantifier in ((can, any), (must, all)):
                ratio = Fraction(threshold.ratio) * (1 + nudge)
                found = quantifier(vanishes(s, ratio, fmt, sign) for s in significands)
                assert found == threshold.passed(ratio), (sign, threshold, nudge)


def vanishing(k: Array, numerator: int, denominator: int, sign: int) -> Array:
    """`vanishes` for many significands at once, in integers: k + sign * k * denominator / numerator rounded to k."""
    # below the first, a power of two, the spacing is half; in units of half a spacing it is even
    unit = np.ones_like(k)
    unit[0] = 2 if sign < 0 else 1
    twice = k * (2 * unit * denominator)
    result: Array = (twice < numerator) | ((twice == numerator) & ((k & 1) * (unit & 1) == 0))
    return result


@pytest.mark.parametrize("name", ["fp32", "fp16", "e8m20"])
def test_thresholds_over_all_significands_of_fp32(name: str) -> None:
    fmt = get_format(name)
    thresholds = swamping_thresholds(fmt)
    k = np.arange(2**fmt.mantissa_bits, 2**fmt.precision, dtype=np.int64)
    for sign, can, must in (
        (1, thresholds.add_can, thresholds.add_must),
        (-1, thresholds.subtract_can, thresholds.subtract_must),
    ):
        for nudge in (-1, 0, 1):
            for threshold, quantifier in ((can, np.any), (must, np.all)):
                ratio = Fraction(int(threshold.ratio) * (2**30 + nudge), 2**30)
                lost = vanishing(k, ratio.numerator, ratio.denominator, sign)
                assert bool(quantifier(lost)) == threshold.passed(ratio), (sign, threshold, nudge)
                some = np.random.default_rng(0).choice(k.size, 40)
                for i in (0, 1, 2, -1, -2, *some.tolist()):  # the integers say what the reference says
                    assert lost[i] == vanishes(int(k[i]), ratio, fmt, sign)


def test_thresholds_that_are_known() -> None:
    fp16 = swamping_thresholds("fp16")
    assert fp16.add_can == Threshold(2048, True)  # Micikevicius et al. 2018
    assert fp16.add_must == Threshold(4094, False)
    assert fp16.subtract_can == Threshold(2050, False)
    assert fp16.subtract_must == Threshold(4096, True)
    assert swamping_thresholds("bf16").add_can.ratio == 256
    assert swamping_thresholds("fp32").add_can.ratio == 2**24
    assert swamping_thresholds("fp4_e2m1fn").subtract_must == Threshold(8, True)


def test_thresholds_agree_with_reports() -> None:
    """The largest finite ratio that moves all, and the smallest that moves none, on every fp16 value of a binade."""
    weights = np.asarray(decode(np.arange(0x3C00, 0x4000), "fp16", np.float64))
    thresholds = swamping_thresholds("fp16")
    for sign, can, must in (
        (1, thresholds.add_can.ratio, thresholds.add_must.ratio),
        (-1, thresholds.subtract_can.ratio, thresholds.subtract_must.ratio),
    ):
        assert update_report(weights, sign * weights / (can - 1), "fp16").lost == 0
        assert 0 < update_report(weights, sign * weights / (can + 1), "fp16").lost < 1024
        assert 0 < update_report(weights, sign * weights / (must - 1), "fp16").lost < 1024
        assert update_report(weights, sign * weights / (must + 1), "fp16").lost == 1024


# ---- running sums ----


def brute_sum(fmt: FloatFormat, series: Series, mode: str, most: int, seed: int = 0) -> tuple[float, int, bool]:
    """Value, terms, stopped: add until a term changes nothing for sure."""
    total = 0.0
    terms = series.terms(np.arange(1.0, most + 1))
    for i, exact in enumerate(terms.tolist()):
        term = Fraction(stored(exact, fmt))
        results = {
            rounded(Fraction(total) + term, fmt, mode, number)
            for number in ([0, 2**16 - 1] if mode == "stochastic" else [0])
        }
        if results == {total}:
            return total, i, True
        total = rounded(Fraction(total) + term, fmt, mode, reference.random_number(seed, i))
        if not math.isfinite(total):
            return total, i + 1, True
    return total, most, False


def same(found: Stagnation, expected: tuple[float, int, bool]) -> bool:
    value, terms, stopped = expected
    values_agree = found.value == value or (math.isnan(found.value) and math.isnan(value))
    return values_agree and (found.terms, found.stopped) == (terms, stopped)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", [*UP_TO_8_BITS, *CUSTOM[:4], *CUSTOM[-2:]], ids=str)
@pytest.mark.parametrize("series", [Series.counting(), Series.counting(0.1), Series.harmonic()], ids=lambda s: s.name)
def test_running_sums_of_small_formats(fmt: FloatFormat, series: Series, mode: str) -> None:
    most = 400
    assert same(stagnation(series, fmt, mode=mode, most=most, rng=11), brute_sum(fmt, series, mode, most, 11))


@pytest.mark.parametrize("mode", ["ties_to_even", "ties_to_away", "toward_zero", "to_odd", "stochastic"])
@pytest.mark.parametrize("fmt", [FORMATS["fp16"], FORMATS["bf16"], FORMATS["tf32"]], ids=str)
def test_running_sums_of_16_bits(fmt: FloatFormat, mode: str) -> None:
    for series in (Series.counting(), Series.counting(0.1), Series.harmonic()):
        assert same(stagnation(series, fmt, mode=mode, most=2100, rng=1), brute_sum(fmt, series, mode, 2100, 1))


@pytest.mark.parametrize(
    ("name", "series", "value", "terms"),
    [
        ("bf16", Series.counting(), 256, 256),
        ("fp16", Series.counting(), 2048, 2048),
        ("tf32", Series.counting(), 2048, 2048),
        ("fp8_e4m3fn", Series.counting(), 16, 16),
        ("fp8_e5m2", Series.counting(), 8, 8),
        ("fp4_e2m1fn", Series.counting(), 4, 4),
        ("fp32", Series.counting(), 2**24, 2**24),
        ("bf16", Series.counting(0.1), 32, 276),
        ("fp16", Series.counting(0.1), 256, 2207),
        ("fp32", Series.counting(0.1), 2097152, 18073720),
        ("bf16", Series.harmonic(), 5.0625, 64),
        ("fp16", Series.harmonic(), 7.0859375, 512),
        ("fp32", Series.harmonic(), 15.403682708740234, 2097151),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_running_sums_that_are_known(name: str, series: Series, value: float, terms: int) -> None:
    found = stagnation(series, name)
    assert (found.value, found.terms, found.stopped) == (value, terms, True)
    assert found.first_lost == terms + 1
    assert not found.overflowed


@pytest.mark.parametrize(("dtype", "terms"), [(np.float32, 2_097_151), (np.float16, 512)])
def test_harmonic_sums_against_numpy(dtype: type, terms: int) -> None:
    """`add.accumulate` adds in turn in the dtype."""
    one_by_one = np.add.accumulate((1 / np.arange(1, terms + 100, dtype=np.float64)).astype(dtype))
    assert one_by_one[terms - 2] < one_by_one[terms - 1] == one_by_one[terms] == one_by_one[-1]
    assert stagnation(Series.harmonic(), dtype).value == one_by_one[-1]


def test_quotients_are_rounded_once() -> None:
    """The claim of `harmonic`, where it could fail: at many k, and where 1/k is near a middle in fp32."""
    k = np.unique(
        np.concatenate([2.0**28 - np.arange(1, 3000), np.arange(1.0, 3000), np.arange(2.0**24, 2.0**24 + 3000)])
    )
    for name in ("fp32", "bf16"):
        stored = np.asarray(round_to(Series.harmonic().terms(k), name)).tolist()
        for number, term in zip(k.tolist(), stored, strict=True):
            assert term == rounded(Fraction(1, int(number)), FORMATS[name], "ties_to_even")


def test_a_sum_that_does_not_stop() -> None:
    found = stagnation(Series.counting(), "fp32", mode="toward_positive", most=1000)
    assert (found.value, found.terms, found.stopped, found.first_lost) == (1000, 1000, False, None)
    blocks = stagnation(Series.counting(), "fp32", most=100_001)
    assert (blocks.value, blocks.terms, blocks.stopped) == (100_001, 100_001, False)


def test_a_sum_that_overflows() -> None:
    found = stagnation(Series.counting(), "fp16", mode="toward_positive")
    assert (found.value, found.stopped, found.overflowed) == (math.inf, True, True)
    assert stagnation(Series.counting(65504), "fp16", mode="toward_zero").value == 65504
    nan = stagnation(Series.counting(256), "fp8_e4m3fn")
    assert math.isnan(nan.value)
    assert nan.overflowed


def test_sixteen_random_bits_stop_too() -> None:
    """Stochastic rounding moves a sum until a term is less than 2^-16 of the spacing: 2^16 times as far."""
    assert stagnation(Series.counting(), "bf16", mode="stochastic", rng=0).value == 2.0**24
    assert stagnation(Series.counting(1e-3), "fp8_e5m2", mode="stochastic", rng=0).value == 2.0**-10 * 2.0**19
    assert stagnation(Series.harmonic(), "fp16", mode="stochastic", rng=0).stopped


def test_random_sums_repeat_by_seed() -> None:
    first, again, other = (
        stagnation(Series.counting(), "bf16", mode="sr", most=50_000, rng=seed).value for seed in (1, 1, 2)
    )
    assert first == again != other
    assert 40_000 < first < 60_000


def test_a_series_of_ones_own() -> None:
    found = stagnation(Series("squares", lambda k: 1 / k**2), "fp16")
    assert same(found, brute_sum(FORMATS["fp16"], Series("", lambda k: 1 / k**2), "ties_to_even", 1000))
    assert found.series == "squares"


@pytest.mark.parametrize(
    ("series", "options", "needle"),
    [
        (Series.counting(-1), {}, "terms must be positive, not growing"),
        (Series.counting(0), {}, "terms must be positive"),
        (Series.counting(math.nan), {}, "terms must be positive"),
        (Series.counting(1e6), {}, "finite in fp16"),
        (Series("growing", lambda k: k), {}, "growing: terms must be"),
        (Series("later", lambda k: np.where(k < 40_000, 1e-7, 1.0)), {"most": 50_000, "mode": "sr"}, "not growing"),
        (Series("one", lambda k: np.ones(1)), {}, "32768 terms are asked for"),
        (Series.counting(), {"most": 0}, r"most must be an integer in 1\.\.2\^27"),
        (Series.counting(), {"most": 2**28}, "most must be"),
        (Series.counting(), {"most": 1.5}, "most must be"),
        (Series.counting(), {"most": True}, "most must be"),
        (Series.counting(), {"mode": "nearest"}, "unknown rounding mode"),
        (Series.counting(), {"rng": -1}, "rng must be a seed"),
        (Series.counting(), {"rng": (1, 5)}, "begins at the first term"),
    ],
    ids=lambda value: getattr(value, "name", None) or str(value),
)
def test_bad_sums_are_refused_in_one_line(series: Series, options: dict[str, Any], needle: str) -> None:
    with pytest.raises(ValueError, match=needle) as caught:
        stagnation(series, "fp16", **options)
    assert str(caught.value).isprintable()
