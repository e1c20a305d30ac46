"""What a format costs in precision, against fractions, against ml_dtypes, and against what is known beforehand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import precision_lab
from precision_lab import FORMATS, FloatFormat, QuantizationReport, get_format, quantization_report, round_to, spacing
from precision_lab.analysis import quantization
from precision_lab.analysis.quantization import Quantizations
from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.modes import RoundingMode
from precision_lab.presentation.tables.table import tables_of
from tests.machines.levels import NUMBA_GENERIC

Array = np.ndarray[Any, np.dtype[Any]]
MODES = [mode.value for mode in RoundingMode]
EVERY = [*FORMATS, "e6m9", "e8m0_ieee", "e5m0", "e8m22", "e5m23"]
COSTS = ("sqnr_db", "bias", "bias_standard_error", "outward_bias", "outward_bias_standard_error")


def report(x: Any, fmt: Any, mode: str = "ties_to_even") -> QuantizationReport:
    return quantization_report(x, fmt, mode=mode, rng=7 if mode == "stochastic" else None)


# --- against fractions -----------------------------------------------------------------------------------------------


def overflows(x: Fraction, fmt: FloatFormat, mode: str) -> bool:
    """Whether x, rounded as if there were larger numbers, is larger than the largest; by chance: whether it must be."""
    largest, beyond = Fraction(fmt.max), Fraction(fmt.max) + Fraction(2) ** (fmt.emax - fmt.mantissa_bits)
    magnitude, middle = abs(x), (largest + beyond) / 2
    odd = fmt.max_significand % 2 == 1
    if magnitude <= largest or magnitude >= beyond:
        return magnitude > largest
    if mode in ("ties_to_even", "ties_to_away"):
        return magnitude > middle or (magnitude == middle and (odd or mode == "ties_to_away"))
    if mode == "to_odd":
        return not odd
    return {"toward_positive": x > 0, "toward_negative": x < 0}.get(mode, False)


def by_fractions(x: Array, fmt: FloatFormat, mode: str) -> QuantizationReport:
    """Count one element after the other."""
    if mode == "stochastic" and fmt.mantissa_bits > 14:
        x = x.astype(np.float64)  # as it is rounded
    rounded = np.asarray(round_to(x, fmt, mode, rng=7 if mode == "stochastic" else None))
    counts, sums, ulps = dict.fromkeys(("nonfinite", "overflowed", "changed"), 0), [Fraction(0)] * 2, [0] * 3
    for v, r, ulp in zip(x, rounded, np.asarray(spacing(x, fmt)), strict=True):
        if not np.isfinite(v):
            counts["nonfinite"] += 1
        elif overflows(Fraction(float(v)), fmt, mode) or not np.isfinite(r):
            counts["overflowed"] += 1
        else:
            error = Fraction(float(r - v))  # exact, but where v far below a subnormal is rounded up to it
            counts["changed"] += error != 0
            units = round(error / Fraction(float(ulp)) * 2**22)
            ulps = [ulps[0] + units, ulps[1] + (-units if v < 0 else units), ulps[2] + units**2]
            sums = [sums[0] + Fraction(float(v) * float(v)), sums[1] + Fraction(float(error) * float(error))]
    signal, noise = (int(total * 2**1074) for total in sums)
    return QuantizationReport(
        fmt, RoundingMode(mode), x.size, **counts, sums=(signal, noise), ulps=(ulps[0], ulps[1], ulps[2])
    )


def awkward(fmt: FloatFormat, dtype: Any) -> Array:
    """Every threshold of the format, a hair below and above it, zeros, infinities, NaN, and numbers of all sizes."""
    largest, middle = fmt.max, fmt.overflow_threshold
    ends = [largest, middle, 2 * middle - largest, fmt.flush_threshold, fmt.subnormal_threshold]
    ends += [fmt.smallest_normal, fmt.smallest_subnormal, 1, 1.5, 2.0**-126, 2.0**-149, 3e38]
    with np.errstate(all="ignore"):
        at = np.array(ends).astype(dtype)
        around = np.concatenate([np.nextafter(at, dtype(0)), at, np.nextafter(at, dtype(np.inf)), [0, np.inf, np.nan]])
    rng = np.random.default_rng(3)
    wild = rng.standard_normal(60) * 2.0 ** rng.integers(-40, 40, 60)
    tame = rng.standard_normal(60)
    return np.concatenate([around, -around, wild, tame]).astype(dtype)


@pytest.mark.parametrize("fmt", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_number_is_that_of_fractions(fmt: str, dtype: Any) -> None:
    chosen = get_format(fmt)
    x = awkward(chosen, dtype)
    small = x[np.abs(x) < 1e-3][:40]
    for mode in MODES:
        assert report(x, fmt, mode) == by_fractions(x, chosen, mode)
        # of few exponents, with zeros among them: other loops add up the squares
        high = np.array([4.5, 5.1, -6.3, 0, -0.0])  # in bf16 the factor of a zero's 1/ulp would be infinite
        for some in (x[-60:], np.append(x[-9:], [0, -0.0]), high, small, x[:1], np.zeros(3, dtype)):
            part = some.astype(dtype)
            assert report(part, fmt, mode) == by_fractions(part, chosen, mode)


def test_errors_of_doubles_far_below_others() -> None:
    """The last bit of a double is an error that lies 73 binades below another."""
    for low in range(-60, 0, 3):
        x = np.array([1.7, 1 + 2.0**-9, 2.0**low * (1 + 2.0**-52), 2.0**low])
        for fmt in ("bf16", "fp8_e5m2", "tf32"):
            assert report(x, fmt) == by_fractions(x, get_format(fmt), "ties_to_even")


@pytest.mark.parametrize("fmt", EVERY)
def test_numpy_alone_finds_the_same(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (np.float32, np.float64):
        x = awkward(get_format(fmt), dtype)
        compiled = report(x, fmt)
        plain = Quantizations([get_format(fmt)])
        with monkeypatch.context() as unloaded:
            unloaded.setattr(quantization, "plainly", lambda *_: True)
            unloaded.setattr(quantization, "_loop", None)
            plain.add(x[:50])
            plain.add(x[50:])
        assert plain.reports() == (compiled,)


@pytest.mark.parametrize("scale", [2.0**-1074, 2.0**-130, 2.0**-20, 2.0, 2.0**24, 2.0**127, 2.0**1000])
@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp8_e4m3fn", "fp4_e2m1fn", "fp32"])
def test_with_a_loss_scale_it_is_that_of_the_product(fmt: str, scale: float) -> None:
    """Also where the product is in the range of no double."""
    chosen = get_format(fmt)
    for dtype in (np.float32, np.float64):
        x = awkward(chosen, dtype)
        x = np.concatenate([x, np.array([1e300, -1e-300], dtype)]) if dtype == np.float64 else x
        tally = Quantizations([chosen], loss_scale=scale)
        tally.add(x)
        (found,) = tally.reports()
        exact = [Fraction(v) * Fraction(scale) for v in x[np.isfinite(x)].tolist()]
        stays = [v for v in exact if not overflows(v, chosen, "ties_to_even")]
        spaces = [Fraction(2) ** (max(exponent(v), chosen.emin) - chosen.mantissa_bits) for v in stays]
        errors = [round(v / ulp) * ulp - v for v, ulp in zip(stays, spaces, strict=True)]
        assert (found.finite, found.overflowed) == (len(stays), len(exact) - len(stays))
        assert found.nonfinite == x.size - len(exact)
        assert found.changed == sum(error != 0 for error in errors)
        units = [round(error / ulp * 2**22) for error, ulp in zip(errors, spaces, strict=True)]
        assert found.ulps[0] == sum(units)
        assert found.ulps[2] == sum(n * n for n in units)


def exponent(x: Fraction) -> int:
    """floor(log2(abs(x))), of zero a very small one."""
    if not x:
        return -10000
    guess = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= abs(x) else guess - 1


# --- against what is known beforehand --------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", EVERY)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_changed_of_what_the_format_has(fmt: str, mode: str) -> None:
    values = np.unique(np.asarray(round_to(awkward(get_format(fmt), np.float32), fmt)))
    values = values[np.isfinite(values)]
    found = report(values, fmt, mode)
    assert found.finite == values.size
    assert (found.changed, found.changed_of_finite, found.sqnr_db) == (0, 0.0, math.inf)
    assert (found.bias, found.outward_bias, found.bias_standard_error) == (0, 0, 0)


def symmetric() -> Array:
    """Numbers of both signs, 2^17 of them, spread evenly over the binades from 2^-8 to 1."""
    rng = np.random.default_rng(11)
    magnitudes = rng.uniform(1, 2, 2**17) * 2.0 ** rng.integers(-8, 0, 2**17)
    signed: Array = (magnitudes * rng.choice([-1, 1], 2**17)).astype(np.float32)
    return signed


def test_truncation_shows_away_from_zero_only() -> None:
    found = report(symmetric(), "bf16", "toward_zero")
    assert abs(found.bias) < 4 * found.bias_standard_error
    # of 16 bits that are cut off: half an ulp less half a unit of the last of them
    assert abs(found.outward_bias + 0.5 - 2.0**-17) < 4 * found.outward_bias_standard_error
    assert found.outward_bias_standard_error == pytest.approx(12**-0.5 / 2**8.5, rel=0.01)
    assert found.bias_standard_error == pytest.approx(3**-0.5 / 2**8.5, rel=0.01)


@pytest.mark.parametrize(
    ("mode", "bias", "outward"),
    [
        ("ties_to_even", 0, 0),
        ("ties_to_away", 0, 2.0**-17),
        ("stochastic", 0, 0),
        ("toward_positive", 0.5, 0),
        ("toward_negative", -0.5, 0),
    ],
)
def test_the_other_modes_show_what_they_do(mode: str, bias: float, outward: float) -> None:
    found = report(symmetric(), "bf16", mode)
    assert abs(found.bias - bias) < 4 * found.bias_standard_error
    assert abs(found.outward_bias - outward) < 4 * found.outward_bias_standard_error


@pytest.mark.parametrize("fmt", ["bf16", "tf32", "fp16", "fp8_e5m2", "fp8_e4m3fn", "e8m4"])
def test_uniform_numbers_of_a_binade(fmt: str) -> None:
    """Errors are uniform in half an ulp, so that the ratio is 28 * 4^m: 6.02 m + 14.47 dB, here of m fraction bits."""
    found = report(np.random.default_rng(5).uniform(1, 2, 2**16).astype(np.float32), fmt)
    assert found.sqnr_db == pytest.approx(10 * math.log10(28 * 4.0 ** get_format(fmt).mantissa_bits), abs=0.05)


def test_what_overflows_is_left_out() -> None:
    calm = report([1.1, -2.3], "fp16")
    found = report([1.1, 65520.0, np.nan, -2.3, -np.inf, -1e9], "fp16")
    assert (found.nonfinite, found.overflowed, found.finite) == (2, 2, 2)
    assert (found.changed, found.sums, found.ulps) == (calm.changed, calm.sums, calm.ulps)
    for fmt in ("fp4_e2m1fn", "fp8_e4m3fn", "fp8_e4m3fnuz"):  # clamped, or NaN
        assert report([1.0, 1e9], fmt).overflowed == 1
    assert report([1.0, 1e9], "fp16", "toward_zero").overflowed == 1


def test_where_there_is_no_answer() -> None:
    for nothing in ([], [0.0, -0.0], [np.nan], [1e9]):
        found = report(nothing, "fp16")
        assert math.isnan(found.sqnr_db)
        assert found.changed == 0
        assert found.changed_of_finite == 0
    assert math.isnan(report([], "fp16").bias)
    assert math.isnan(report([1.0], "fp16").bias_standard_error)
    assert report([0.0, 0.0], "fp16").bias == 0
    flushed = report([1e-9, -1e-9], "fp16")  # all noise
    assert flushed.sqnr_db == 0
    assert flushed.changed_of_finite == 1


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3fnuz"])
def test_what_ml_dtypes_changes(fmt: str) -> None:
    x = (np.random.default_rng(8).standard_normal(20000) * 0.05).astype(np.float32)
    errors = x.astype(get_format(fmt).dtype).astype(np.float64) - x
    found = report(x, fmt)
    assert found.changed == np.count_nonzero(errors)
    assert found.sqnr == pytest.approx((x.astype(np.float64) ** 2).sum() / (errors**2).sum(), rel=1e-12)
    assert found.sqnr_db == pytest.approx(10 * math.log10(found.sqnr), rel=1e-14)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2fnuz", "float6_e2m3fn"])
def test_narrow_inputs_count_as_their_values(stored: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, stored, stored))
    with np.errstate(all="ignore"):
        x = awkward(get_format(dtype), np.float32).astype(dtype)
    for fmt in ("bf16", "fp8_e5m2", "fp4_e2m1fn"):
        assert report(x, fmt) == report(x.astype(np.float32), fmt)
        assert report(x.astype(">f8"), fmt) == report(x.astype(np.float64), fmt)


# --- sums and chunks -------------------------------------------------------------------------------------------------


def large() -> Array:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal(2**18 + 77) * 2.0 ** rng.normal(-6, 5, 2**18 + 77)).astype(np.float32)
    x[::1001], x[5::40001], x[7::90001] = 0, np.inf, 1e30
    return x


@pytest.mark.parametrize("mode", ["ties_to_even", "stochastic"])
def test_where_it_is_cut_does_not_matter(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = large()
    for array in (x, x[:30000].astype(np.float64), x[:30000].astype(ml_dtypes.bfloat16)):
        whole = report(array, "fp16", mode)
        for places in ([1], [3, 1023, 1024, 1025], list(range(997, array.size, 5003)), [array.size - 1]):
            starts = [0, *places]
            chunks = zip(starts, [*places, array.size], strict=True)
            seeds: Iterator[Any] = ((7, i) if mode == "stochastic" else None for i in starts)
            parts = [
                quantization_report(array[i:j], "fp16", mode=mode, rng=seed)
                for (i, j), seed in zip(chunks, seeds, strict=True)
            ]
            assert reduce(add, parts) == whole
            assert QuantizationReport.total(parts[::-1], get_format("fp16"), RoundingMode(mode)) == whole
    monkeypatch.setattr(precision_lab.analysis.counting, "LEAST", 1000)
    monkeypatch.setattr(precision_lab.analysis.counting, "SLICE", 3001)
    whole = report(x, "bf16", mode)
    for count in (1, 2, 5):
        with precision_lab.threads(count):
            assert report(x, "bf16", mode) == whole


def test_the_order_of_the_elements_does_not_matter() -> None:
    x = large()[:50000]
    shuffled = np.random.default_rng(1).permutation(x)
    for fmt in ("bf16", "fp8_e4m3fn"):
        assert report(shuffled, fmt) == report(x, fmt)
        assert report(x.reshape(50, 1000).T, fmt) == report(x, fmt)
        assert report(np.repeat(x, 2)[::2], fmt) == report(x, fmt)


def test_several_threads_of_the_caller() -> None:
    parts = np.array_split(large(), 8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: report(part, "bf16"), parts))
    assert reduce(add, found) == report(large(), "bf16")


PROGRAM = """
import json, numpy as np, precision_lab as pl
from tests.analysis.test_quantization import large
x = large()[:40000]
found = [pl.quantization_report(a, f, mode=m).to_dict() for a in (x, x[:4000].astype(float))
         for f in ("fp16", "bf16", "fp8_e4m3fn") for m in ("ties_to_even", "toward_positive")]
print(json.dumps(found))
"""


@pytest.mark.machines
def test_another_processor_finds_the_same(tmp_path: Path) -> None:
    """Machine code for any x86: no vectors of more than two doubles, nothing fused."""
    root = Path(__file__).parents[2]
    env = {**os.environ, **NUMBA_GENERIC, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, env=env, capture_output=True, text=True, check=True, timeout=300
    )
    x = large()[:40000]
    assert json.loads(done.stdout) == [
        report(a, f, m).to_dict()
        for a in (x, x[:4000].astype(float))
        for f in ("fp16", "bf16", "fp8_e4m3fn")
        for m in ("ties_to_even", "toward_positive")
    ]


def test_reports_of_other_formats_do_not_add_up() -> None:
    one = report([0.1], "bf16")
    for other in (report([0.1], "fp16"), report([0.1], "bf16", "toward_zero")):
        with pytest.raises(ValueError, match="reports of one format and mode add up"):
            one + other
        with pytest.raises(ValueError, match=r"to one on bf16 \(ties_to_even\)"):
            QuantizationReport.total([one, other], one.format, one.mode)
    with pytest.raises(TypeError):
        one + 1
    assert one + QuantizationReport.empty("bf16") == one


# --- what it looks like ----------------------------------------------------------------------------------------------


def test_as_json_and_back() -> None:
    for x in (large()[:3000], [], [0.0], [np.nan, 1e9], [1.0]):
        found = report(x, "fp16", "toward_zero")
        data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert QuantizationReport.from_dict(data) == found
        assert data["changed_of_finite"] == found.changed_of_finite
        assert {*COSTS} <= data.keys()
    assert report([1.0, 2.0], "fp16").to_dict()["sqnr_db"] == "inf"
    assert report([], "fp16").to_dict()["sqnr_db"] == "nan"


def test_as_a_table() -> None:
    (table,) = tables_of(report([1.1, 65520.0, np.nan, -2.3], "fp16"))
    cells = {row[0]: row[1] for row in table.rows}
    assert table.title == "Precision in fp16, ties_to_even"
    assert cells["changed, of those that stay finite"] == "2 (100 %)"
    assert cells["overflowed"] == "1"
    assert cells["SQNR"] == "69.3 dB"
    (empty,) = tables_of(report([], "fp16"))
    assert {row[0]: row[1] for row in empty.rows}["SQNR"] == "– dB"


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (([1.0], "fp17"), "unknown format 'fp17'"),
        (([1.0], "fp16", "nearest"), "unknown rounding mode 'nearest'"),
        ((["a"], "fp16"), "cannot take an array of"),
        (([1j], "fp16"), "cannot take an array of complex128"),
        ((np.ma.array([1.0], mask=[True]), "fp16"), "masked"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: tuple[Any, ...], needle: str) -> None:
    with pytest.raises(ValueError, match=needle):
        report(*arguments)


def test_the_units_are_those_of_the_loops() -> None:
    assert load_kernels().quantization.ULP_BITS == quantization._ULP_BITS
