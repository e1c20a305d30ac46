"""encode, cast, decode: exhaustive where the domain is finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba.core.errors import TypingError

from precision_lab.numerics import reference
from precision_lab.numerics.codes import cast, code_dtype, decode, encode
from precision_lab.numerics.environment import load_kernels
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.plans import decode_exactly, decode_plan, encode_plan, even_encode_plan
from precision_lab.numerics.rounding import _PIECE, as_carrier, round_to
from precision_lab.support.threads import threads
from tests.numerics.helpers import (
    CARRIERS,
    CUSTOM,
    MODES,
    REGISTERED,
    SWITCHES,
    WITH_DTYPE,
    Array,
    DType,
    Oracle,
    as_dtype,
    assert_same,
    bits_of,
    hard_values,
    runs,
)

carriers = pytest.mark.parametrize("dtype", CARRIERS, ids=str)


def some_codes(fmt: FloatFormat) -> Array:
    if fmt.bits <= 16:
        return np.arange(2**fmt.bits, dtype=code_dtype(fmt))
    positive = {*runs(fmt, 2 ** (fmt.bits - 10)), *(2 ** (fmt.bits - 1) - np.arange(1, 5))}
    sign = 2 ** (fmt.bits - 1)
    return np.array(sorted(positive | {c + sign for c in positive}), code_dtype(fmt))


@pytest.mark.parametrize(("width", "bits"), [(np.uint8, range(3, 9)), (np.uint16, range(9, 17)), (np.uint32, [17, 32])])
def test_code_dtype(width: Any, bits: Any) -> None:
    for fmt in (*REGISTERED, *CUSTOM):
        if fmt.bits in bits:
            assert code_dtype(fmt) == width


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM], ids=str)
def test_decode_every_code(fmt: FloatFormat) -> None:
    codes = some_codes(fmt)
    expected = np.array([reference.decode(int(code), fmt) for code in codes])
    assert_same(decode(codes, fmt, np.float64), expected)
    assert_same(decode(codes, fmt), expected.astype(np.float32))
    assert_same(decode(codes.astype(np.int64), fmt, "float32"), expected.astype(np.float32))


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM], ids=str)
@carriers
def test_encode_undoes_decode(fmt: FloatFormat, dtype: DType) -> None:
    codes = some_codes(fmt)
    values = decode(codes, fmt, dtype)
    back = encode(values, fmt)
    assert back.dtype == code_dtype(fmt)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(back[numbers], codes[numbers])
    # a value of the format is a fixed point of every mode
    for mode in MODES:
        assert_same(round_to(values, fmt, mode), values)
    if fmt.has_nan:
        nans = back[~numbers]
        assert np.isnan(decode(nans, fmt)).all()
        np.testing.assert_array_equal(np.signbit(decode(nans, fmt)), np.signbit(values[~numbers]))


@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [
        ("fp32", 0x7FC00000, 0xFFC00000),
        ("tf32", 0x3FE00, 0x7FE00),
        ("fp16", 0x7E00, 0xFE00),
        ("bf16", 0x7FC0, 0xFFC0),
        ("fp8_e4m3fn", 0x7F, 0xFF),
        ("fp8_e5m2", 0x7E, 0xFE),
        ("fp8_e4m3", 0x7C, 0xFC),
        ("fp8_e3m4", 0x78, 0xF8),
        ("fp8_e4m3fnuz", 0x80, 0x80),
        ("fp8_e5m2fnuz", 0x80, 0x80),
        ("fp8_e4m3b11fnuz", 0x80, 0x80),
        ("fp6_e2m3fn", 0x20, 0x00),  # no NaN: the zero of the other sign
        ("fp6_e3m2fn", 0x20, 0x00),
        ("fp4_e2m1fn", 0x8, 0x0),
    ],
)
@carriers
def test_nan_codes(name: str, positive: int, negative: int, dtype: DType) -> None:
    assert encode(np.array([np.nan, -np.nan], dtype), name).tolist() == [positive, negative]


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
def test_cast_and_back(fmt: FloatFormat) -> None:
    """An array of the format's own dtype comes back as it is, by every door."""
    codes = some_codes(fmt)
    stored = as_dtype(codes, fmt)
    values = decode(codes, fmt)
    assert_same(round_to(stored, fmt), values)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(cast(stored, fmt)[numbers].view(codes.dtype), codes[numbers])


@pytest.mark.parametrize("fmt", [FORMATS["tf32"], FloatFormat.ieee(5, 10)], ids=str)
def test_cast_needs_a_dtype(fmt: FloatFormat) -> None:
    with pytest.raises(ValueError, match="no NumPy or ml_dtypes dtype") as error:
        cast([1.0], fmt)
    assert fmt.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("codes", "fmt", "message"),
    [
        ([256], "fp8_e5m2", "0..0xff"),
        ([-1], "fp16", "0..0xffff"),
        ([0, 16], "fp4_e2m1fn", "0..0xf"),
        ([64], "fp6_e3m2fn", "0..0x3f"),
        ([1 << 19], "tf32", "0..0x7ffff"),
        ([2**32], "fp32", "0..0xffffffff"),
        (np.array([2**63], np.uint64), "fp32", "0..0xffffffff"),
        ([1.0], "fp16", "codes must be integers, got float64"),
        ([True], "fp16", "codes must be integers, got bool"),
        (["1"], "fp16", "codes must be integers"),
    ],
)
def test_decode_refuses(codes: Any, fmt: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        decode(codes, fmt)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float16, "int32", np.complex64, ">f4"])
def test_decode_refuses_other_dtypes(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        decode([1], "fp16", dtype)


def test_decode_shapes() -> None:
    assert decode(np.uint16(0x3C00), "fp16") == 1
    assert isinstance(decode(0x3C00, "fp16"), np.float32)
    assert isinstance(decode(0x3F800000, "fp32", np.float64), np.float64)
    assert decode(np.zeros((2, 0, 3), np.uint8), "fp16").shape == (2, 0, 3)
    assert decode([[0x3C00], [0xC000]], "fp16").tolist() == [[1], [-2]]
    codes = np.arange(24, dtype=np.uint8).reshape(4, 6)[::-2, ::3]
    np.testing.assert_array_equal(decode(codes, "fp8_e5m2"), decode(codes.copy(), "fp8_e5m2"))


# --- in one pass -----------------------------------------------------------------------------------------------------

codes_loops = load_kernels().codes
FORMATS_HERE = [*REGISTERED, *CUSTOM]
PATTERNS = np.arange(1 << 16, dtype=np.uint16)
FP16_VALUES = PATTERNS.view(np.float16).astype(np.float32)
BF16_VALUES = (PATTERNS.astype(np.uint32) << 16).view(np.float32)


def through_values(x: Array, fmt: FloatFormat, mode: str = "ties_to_even", **options: Any) -> Array:
    """Codes of what `round_to` gives: two loops that `encode` does not use where it has one."""
    rounded = np.asarray(round_to(x, fmt, mode, **options))
    codes = np.empty(rounded.shape, code_dtype(fmt))
    kernel, constants = encode_plan(fmt, rounded.dtype == np.float64)
    kernel(rounded.reshape(-1), codes.reshape(-1), constants)
    return codes


@pytest.mark.parametrize("fmt", FORMATS_HERE, ids=str)
@carriers
def test_encode_hard_values_in_every_mode(fmt: FloatFormat, dtype: DType) -> None:
    codes = runs(fmt, 2 ** (fmt.bits - 8)) if fmt.bits > 16 else None
    x = hard_values(fmt, dtype, codes)
    oracle = Oracle(x, fmt, codes)
    for mode in MODES:
        for subnormals, saturate in SWITCHES:
            options: dict[str, Any] = {"subnormals": subnormals, "saturate": saturate}
            encoded = encode(x, fmt, mode, **options)
            assert_same(decode(encoded, fmt, dtype), oracle.round(mode, subnormals, saturate), x)
            np.testing.assert_array_equal(encoded, through_values(x, fmt, mode, **options))
        if fmt.dtype is not None:
            stored = cast(x, fmt, mode)
            assert stored.dtype == fmt.dtype
            np.testing.assert_array_equal(stored.view(encoded.dtype), encode(x, fmt, mode))


@pytest.mark.parametrize("fmt", FORMATS_HERE, ids=str)
@pytest.mark.parametrize("saturate", [False, True])
def test_encode_every_fp16_and_bf16(fmt: FloatFormat, saturate: bool) -> None:
    for x in (FP16_VALUES, BF16_VALUES):
        np.testing.assert_array_equal(encode(x, fmt, saturate=saturate), through_values(x, fmt, saturate=saturate))
    of_bf16 = as_dtype(PATTERNS, FORMATS["bf16"])
    np.testing.assert_array_equal(encode(of_bf16, fmt, saturate=saturate), encode(BF16_VALUES, fmt, saturate=saturate))
    np.testing.assert_array_equal(encode(of_bf16, fmt, "rup"), encode(BF16_VALUES, fmt, "rup"))


@pytest.mark.parametrize("fmt", [f for f in FORMATS_HERE if f.bits <= 19], ids=str)
def test_decode_every_code_to_the_last_bit(fmt: FloatFormat) -> None:
    codes = np.arange(2**fmt.bits).astype(code_dtype(fmt))
    for dtype in CARRIERS:
        expected = decode_exactly(codes, fmt).astype(dtype)
        np.testing.assert_array_equal(bits_of(decode(codes, fmt, dtype)), bits_of(expected))


def straight_loop(fmt: FloatFormat) -> tuple[Any, Array]:
    """What encodes float32 at once, ties to even, and its constants."""
    plan = even_encode_plan(fmt, False)
    assert plan is not None
    return plan


def test_what_is_encoded_in_one_loop() -> None:
    without = {f.name for f in FORMATS_HERE if even_encode_plan(f, False) is None}
    assert without == {
        *("fp32", "tf32", "e8m22", "e7m23", "e5m22", "ieee_small_subnormals"),
        *("e8m0_ieee", "e5m0", "e2m0", "fnuz_without_fraction", "finite_without_fraction"),
    }
    assert even_encode_plan(FORMATS["bf16"], True) is None


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp6_e3m2fn", "e6m9"])
@pytest.mark.parametrize("past_caches", [False, True])
def test_what_is_special_may_stand_anywhere(name: str, past_caches: bool) -> None:
    """Blocks with and without it, at every address and of every length."""
    fmt = get_format(name)
    (to_codes, constants), (from_codes, decoding) = straight_loop(fmt), decode_plan(fmt)
    rng = np.random.default_rng(5)
    for place in (None, *range(0, 140, 7)):
        x = rng.standard_normal(140).astype(np.float32)
        if place is not None:
            x[place] = rng.choice([np.nan, -np.nan, np.inf, -np.inf, -0.0])
        expected = through_values(x, fmt)
        values = decode_exactly(expected, fmt).astype(np.float32)
        for first, last in ((0, 140), (0, 64), (1, 140), (5, 138), (17, 31), (33, 97), (9, 9)):
            part = slice(first, last)
            codes, back = np.zeros(142, code_dtype(fmt)), np.zeros(142, np.float32)
            to_codes(x[part], codes[1:141][part], constants, past_caches)
            np.testing.assert_array_equal(codes[1:141][part], expected[part])
            from_codes(codes[1:141][part], back[1:141][part], decoding, past_caches)
            np.testing.assert_array_equal(bits_of(back[1:141][part]), bits_of(values[part]))
            assert not codes[: 1 + first].any()  # nothing beside it is written
            assert not codes[1 + last :].any()
            assert not back[: 1 + first].any()
            assert not back[1 + last :].any()


def test_loops_for_processors_without_fp16() -> None:
    """They are not used where the processor has it, and give the same."""
    _, constants = straight_loop(FORMATS["fp16"])
    x = np.concatenate([hard_values(FORMATS["fp16"], CARRIERS[0]), FP16_VALUES, BF16_VALUES])
    codes = np.empty(x.size, np.uint16)
    codes_loops.encode_even(x, codes, constants, False)
    np.testing.assert_array_equal(codes, through_values(x, FORMATS["fp16"]))
    for fmt in FORMATS_HERE:
        kernel, constants = decode_plan(fmt)
        if kernel is codes_loops.decode_by_half:
            every = np.arange(2**fmt.bits).astype(code_dtype(fmt))
            values = np.empty(every.size, np.float32)
            codes_loops.decode(every, values, constants, False)
            np.testing.assert_array_equal(bits_of(values), bits_of(decode_exactly(every, fmt).astype(np.float32)))


def test_blocks_are_of_contiguous_arrays() -> None:
    kernel, constants = straight_loop(FORMATS["fp16"])
    with pytest.raises(TypingError, match="blocks are of contiguous arrays"):
        kernel(np.zeros(100, np.float32)[::2], np.zeros(50, np.uint16), constants, False)


# --- large arrays ----------------------------------------------------------------------------------------------------

LARGE = 2 * _PIECE + 321


def normal(size: int, dtype: Any = np.float32) -> Array:
    return (np.random.default_rng(7).standard_normal(size) * 1e-3).astype(dtype)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8_e5m2", "tf32"])
@pytest.mark.parametrize("mode", ["rne", "rdn"])
def test_every_kind_of_a_large_source(name: str, mode: str) -> None:
    fmt = get_format(name)
    x = normal(2 * LARGE)
    for dtype in ("float32", "float64", "float16", "bfloat16", "float8_e5m2", "float4_e2m1fn", ">f4"):
        with np.errstate(all="ignore"):
            source = (x * 1e3).astype(np.dtype(dtype))
        values = as_carrier(source.copy())
        for part in (slice(0, LARGE), slice(None, None, 2), slice(None, None, -2)):
            expected = through_values(np.ascontiguousarray(values[part]), fmt, mode)
            np.testing.assert_array_equal(encode(source[part], fmt, mode), expected)
    square = normal(400 * 400).reshape(400, 400)
    np.testing.assert_array_equal(encode(square.T, fmt, mode), encode(square.T.copy(), fmt, mode))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_stochastic_codes_do_not_depend_on_pieces(name: str, dtype: Any) -> None:
    x = normal(LARGE, dtype)
    fmt = get_format(name)
    for rng in (3, (3, 12345), (3, 2**64 - 5)):
        np.testing.assert_array_equal(encode(x, fmt, "sr", rng=rng), through_values(x, fmt, "sr", rng=rng))
    one, other = (function(x, fmt, "sr", rng=np.random.default_rng(3)) for function in (encode, through_values))
    np.testing.assert_array_equal(one, other)
    pairs = np.repeat(x, 2)
    np.testing.assert_array_equal(encode(pairs[::2], fmt, "sr", rng=3), encode(x, fmt, "sr", rng=3))


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp16", "fp6_e2m3fn", "e6m9"])
def test_large_codes_of_every_layout(name: str) -> None:
    fmt = get_format(name)
    every = np.random.default_rng(8).integers(0, 2**fmt.bits, 2 * LARGE)
    narrow = every.astype(code_dtype(fmt))
    for dtype in CARRIERS:
        expected = decode_exactly(every, fmt).astype(dtype)
        for source in (every, narrow):
            for part in (slice(0, LARGE), slice(None, None, 2), slice(None, None, -1)):
                np.testing.assert_array_equal(bits_of(decode(source[part], fmt, dtype)), bits_of(expected[part].copy()))


@pytest.mark.parametrize("mode", ["rne", "rtz", "sr"])
def test_results_do_not_depend_on_threads(mode: str) -> None:
    x = normal(1_234_567)
    results = []
    for count in (1, 2, 7):
        with threads(count):
            encoded = cast(x, "bf16", mode, rng=4)
            results.append((encoded.view(np.uint16), decode(encoded.view(np.uint16), "bf16", np.float64)))
    for codes, values in results[1:]:
        np.testing.assert_array_equal(codes, results[0][0])
        np.testing.assert_array_equal(values, results[0][1])


# --- out -------------------------------------------------------------------------------------------------------------


def calls(size: int) -> list[tuple[Any, Array, DType]]:
    """Functions of a source and `out`, with a source and the dtype of the result."""
    x = normal(size)
    return [
        (lambda a, **o: encode(a, "fp8_e5m2", **o), x, np.dtype(np.uint8)),
        (lambda a, **o: encode(a, "tf32", "rup", **o), x, np.dtype(np.uint32)),
        (lambda a, **o: cast(a, "bf16", **o), x.astype(np.float64), FORMATS["bf16"].dtype),  # type: ignore[list-item]
        (lambda a, **o: cast(a, "fp16", "sr", rng=1, **o), x, np.dtype(np.float16)),
        (lambda a, **o: decode(a, "fp16", **o), encode(x, "fp16"), np.dtype(np.float32)),
        (lambda a, **o: decode(a, "bf16", np.float64, **o), encode(x, "bf16"), np.dtype(np.float64)),
    ]


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("size", [24, LARGE - LARGE % 24])
def test_out(which: int, size: int) -> None:
    function, source, dtype = calls(size)[which]
    source = source.reshape(4, 6, -1)
    expected = function(source)
    assert expected.dtype == dtype
    double = np.zeros((8, 6, source.shape[2]), dtype)
    for out in (np.empty(source.shape, dtype), np.empty(source.shape, dtype, order="F"), double[::-2]):
        before = source.copy()
        assert function(source, out=out) is out
        np.testing.assert_array_equal(out.tobytes(), expected.tobytes())
        np.testing.assert_array_equal(source, before)
    assert not double[::2].view(f"u{dtype.itemsize}").any()  # nothing beside the view is written


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("shift", [0, 1, 3, 64])
def test_out_may_share_memory(which: int, shift: int) -> None:
    function, source, dtype = calls(500)[which]
    expected = function(source)
    memory = np.zeros(8192, np.uint8)
    x = memory[1024 : 1024 + source.nbytes].view(source.dtype)
    x[:] = source
    begin = 1024 + shift * dtype.itemsize
    out = memory[begin : begin + 500 * dtype.itemsize].view(dtype)
    assert function(x, out=out) is out
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "fp8_e4m3fn"])
@pytest.mark.parametrize("mode", ["rne", "rup"])
def test_out_may_be_the_source(name: str, mode: str) -> None:
    fmt = get_format(name)
    x = as_dtype(encode(hard_values(FORMATS["fp8_e5m2"], CARRIERS[0]), fmt), fmt)
    expected = cast(x, fmt, mode)
    assert cast(x, fmt, mode, out=x) is x
    assert x.tobytes() == expected.tobytes()


def test_out_without_dimensions() -> None:
    out = np.empty((), np.uint16)
    assert encode(1.5, "fp16", out=out) is out
    assert out == 0x3E00
    value = np.empty((), np.float32)
    assert decode(out, "fp16", out=value) is value
    assert value == 1.5


def test_the_dtype_of_decode_is_that_of_out() -> None:
    assert decode([0x3C00], "fp16").dtype == np.float32
    assert decode([0x3C00], "fp16", out=np.empty(1)).dtype == np.float64
    with pytest.raises(ValueError, match=r"out must be an array of float32 \(1,\), got float64 \(1,\)"):
        decode([0x3C00], "fp16", np.float32, out=np.empty(1))


@pytest.mark.parametrize("which", range(6))
def test_out_that_does_not_fit_is_refused(which: int) -> None:
    function, source, dtype = calls(24)[which]
    read_only = np.empty(24, dtype)
    read_only.flags.writeable = False
    wrong = np.dtype(np.int16)
    for out, message in (
        (np.empty(23, dtype), rf"out must be an array of {dtype} \(24,\), got {dtype} \(23,\)"),
        (np.empty((24, 1), dtype), rf"got {dtype} \(24, 1\)"),
        (np.empty(24, wrong), r"got int16 \(24,\)"),
        ([0] * 24, "got list"),
        (read_only, "out is read-only"),
        (np.ma.masked_array(np.empty(24, dtype)), "masked array"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            function(source, out=out)
        assert "\n" not in str(error.value)
