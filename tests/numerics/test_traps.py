"""The rounding traps that others fell into, one test each, by name; and facts about NumPy and ml_dtypes."""

import io
import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab.numerics.codes import cast, encode
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.kernels import rounding as deterministic
from precision_lab.numerics.kernels import stochastic
from precision_lab.numerics.modes import RoundingMode
from precision_lab.numerics.plans import by_fields, plan_of
from precision_lab.numerics.rounding import round_to
from tests.numerics.helpers import CARRIERS, MODES, DType, assert_same, bits_of

carriers = pytest.mark.parametrize("dtype", CARRIERS, ids=str)


def rounded(x: float, fmt: str, dtype: DType, **options: Any) -> float:
    return float(round_to(np.array([x], dtype), fmt, **options)[0])


# --- fp16 ------------------------------------------------------------------------------------------------------------


@carriers
def test_fp16_65519_99_is_65504_and_65520_is_infinity(dtype: DType) -> None:
    assert rounded(65519.99, "fp16", dtype) == 65504
    assert rounded(65520, "fp16", dtype) == np.inf
    assert rounded(-65520, "fp16", dtype) == -np.inf
    assert rounded(float(np.nextafter(dtype.type(65520), dtype.type(0))), "fp16", dtype) == 65504
    assert rounded(65520, "fp16", dtype, saturate=True) == 65504
    # pychop sends these to 0.0
    assert rounded(65536, "fp16", dtype) == rounded(131071, "fp16", dtype) == np.inf


@carriers
def test_fp16_2_to_the_minus_25_is_zero_and_all_above_it_is_not(dtype: DType) -> None:
    tie = dtype.type(2.0**-25)
    assert rounded(tie, "fp16", dtype) == 0
    assert rounded(float(np.nextafter(tie, dtype.type(1))), "fp16", dtype) == 2.0**-24
    assert rounded(float(-np.nextafter(tie, dtype.type(1))), "fp16", dtype) == -(2.0**-24)
    assert rounded(tie, "fp16", dtype, mode="ties_to_away") == 2.0**-24


@carriers
def test_fp16_the_largest_subnormal_tie_rounds_up_to_a_normal(dtype: DType) -> None:
    x = 2.0**-14 - 2.0**-25
    assert rounded(x, "fp16", dtype) == 2.0**-14
    # flush to zero looks at the result, which is normal
    assert rounded(x, "fp16", dtype, subnormals=False) == 2.0**-14
    assert rounded(float(np.nextafter(dtype.type(x), dtype.type(0))), "fp16", dtype, subnormals=False) == 0


# --- bf16 ------------------------------------------------------------------------------------------------------------


def test_bf16_makes_32768_positive_finite_float32_infinite() -> None:
    # all of the last two binades of float32, of which those from 0x7f7f8000 on overflow
    candidates = np.arange(0x7F000000, 0x7F800000, dtype=np.uint32)
    infinite = np.isinf(round_to(candidates.view(np.float32), "bf16"))
    assert np.count_nonzero(infinite) == 32_768
    assert candidates[infinite][0] == 0x7F7F8000


@pytest.mark.parametrize("mode", MODES)
@carriers
def test_bf16_minus_zero_keeps_its_sign(mode: str, dtype: DType) -> None:
    assert_same(round_to(np.array([-0.0, 0.0], dtype), "bf16", mode), np.array([-0.0, 0.0], dtype))
    assert encode(np.array([-0.0], dtype), "bf16", mode).tolist() == [0x8000]
    # what is rounded to zero keeps it too
    small = round_to(np.array([-(2.0**-149)], dtype), "bf16", mode, subnormals=False)
    assert np.signbit(small).all()
    assert mode in ("toward_negative", "to_odd") or not small.any()


@pytest.mark.parametrize("mode", [*MODES, "stochastic"])
@pytest.mark.parametrize("name", ["bf16", "fp16", "tf32", "fp8_e5m2", "fp8_e4m3fn"])
def test_nan_stays_nan_when_its_payload_is_truncated(mode: str, name: str) -> None:
    """The upper half of 0x7f800001 is that of infinity."""
    x = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(round_to(x, name, mode, rng=0)).all()
    codes = encode(x, name, mode, rng=0)
    assert codes[0] != codes[1]
    if (dtype := FORMATS[name].dtype) is not None:
        assert np.isnan(codes.view(dtype).astype(np.float32)).all()


def test_bf16_subnormals_are_kept() -> None:
    assert round_to(np.float32(2.0**-133), "bf16") == 2.0**-133
    assert round_to(np.float32(2.0**-133), "bf16", subnormals=False) == 0


def test_ties_go_to_even_and_not_away() -> None:
    assert round_to([1 + 2.0**-8, 1 + 3 * 2.0**-8], "bf16").tolist() == [1, 1 + 2.0**-6]
    assert round_to([2049.0, 2051.0], "fp16").tolist() == [2048, 2052]


# --- fp8 -------------------------------------------------------------------------------------------------------------


@carriers
def test_e4m3fn_464_is_448_and_above_it_nan(dtype: DType) -> None:
    assert rounded(464, "fp8_e4m3fn", dtype) == 448
    assert np.isnan(rounded(float(np.nextafter(dtype.type(464), dtype.type(500))), "fp8_e4m3fn", dtype))
    assert np.isnan(rounded(np.inf, "fp8_e4m3fn", dtype))
    assert np.isnan(rounded(464, "fp8_e4m3fn", dtype, mode="ties_to_away"))
    assert rounded(np.inf, "fp8_e4m3fn", dtype, saturate=True) == 448
    assert rounded(-1e9, "fp8_e4m3fn", dtype, saturate=True) == -448
    assert encode(np.array([448, 464, 465], dtype), "fp8_e4m3fn").tolist() == [0x7E, 0x7E, 0x7F]


@carriers
def test_e5m2_61440_is_infinity(dtype: DType) -> None:
    assert rounded(61440, "fp8_e5m2", dtype) == np.inf
    assert rounded(float(np.nextafter(dtype.type(61440), dtype.type(0))), "fp8_e5m2", dtype) == 57344
    assert rounded(61440, "fp8_e5m2", dtype, saturate=True) == 57344


# --- the fast path is what is tested ---------------------------------------------------------------------------------


def test_every_loop_is_reached_by_formats_that_the_other_tests_go_through() -> None:
    options = itertools.product(FORMATS.values(), RoundingMode, (True, False), (True, False), (True, False))
    plans = [plan for chosen in options for plan in (plan_of(*chosen), by_fields(*chosen))]
    serving = {loop for plan in plans for loop in (plan.kernel, plan.seeded) if loop is not None}
    loops = vars(deterministic) | vars(stochastic) | deterministic.ADD
    others = "copy", "finish", "first_block", "random_words"
    public = {name: x for name, x in loops.items() if not str(name).startswith("_") and name not in others}
    assert serving == {x for x in public.values() if hasattr(x, "py_func")}


# --- facts about NumPy and ml_dtypes: if one of these fails, it is a text of ours that needs a change ----------------


def test_fact_ml_dtypes_rounds_float64_twice() -> None:
    x = np.array([1 + 2.0**-8 + 2.0**-40])
    assert x.astype(ml_dtypes.bfloat16).astype(np.float64).tolist() == [1.0]
    assert cast(x, "bf16").astype(np.float64).tolist() == [129 / 128]
    for name, below in (("float8_e4m3fn", 2.0**-4), ("float8_e5m2", 2.0**-3), ("float6_e2m3fn", 2.0**-4)):
        x = np.array([1 + below + 2.0**-40])
        assert x.astype(getattr(ml_dtypes, name)).astype(np.float64).tolist() == [1.0]
        assert cast(x, name).astype(np.float64).tolist() == [1 + 2 * below]


def test_fact_numpy_rounds_float64_to_float16_once() -> None:
    x = np.array([1 + 2.0**-11 + 2.0**-40])
    assert x.astype(np.float16).tolist() == cast(x, "fp16").tolist() == [1 + 2.0**-10]


def test_fact_sums_of_ones() -> None:
    ones = np.ones(4096, np.float16)
    assert ones.sum() == 4096  # pairwise
    assert np.add.accumulate(ones)[-1] == 2048  # one after the other
    ones = np.ones(4096, ml_dtypes.bfloat16)
    assert ones.sum() == 256
    assert ones @ ones == 4096


def test_fact_bfloat16_and_python_float_make_float32() -> None:
    assert (ml_dtypes.bfloat16(1) + 1.0).dtype == np.float32
    assert (np.float16(1) + 1.0).dtype == np.float16


def test_fact_bf16_in_an_npz_comes_back_as_raw_bytes() -> None:
    file = io.BytesIO()
    np.savez(file, w=np.ones(3, ml_dtypes.bfloat16))
    file.seek(0)
    loaded = np.load(file)["w"]
    assert loaded.dtype == np.dtype("V2")
    assert loaded.view(ml_dtypes.bfloat16).tolist() == [1, 1, 1]


def test_fact_float16_casts_keep_nan_payloads_and_ours_drop_them() -> None:
    x = np.array([0x7FC02000], np.uint32).view(np.float32)
    assert bits_of(x.astype(np.float16)).tolist() == [0x7E01]
    assert encode(x, "fp16").tolist() == [0x7E00]
