"""What round_to, encode and cast take and give: dtypes, layouts, scalars, `out`, errors of one line."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab.numerics.codes import cast, code_dtype, encode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.rounding import round_to
from tests.numerics.helpers import CARRIERS, WITH_DTYPE, Array, DType, Oracle, assert_same, hard_values

carriers = pytest.mark.parametrize("dtype", CARRIERS, ids=str)
X = np.array([0.1, -1 / 3, 2.0**-26, 1e9, -0.0, 1 + 2.0**-12])
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def grid(dtype: DType) -> Array:
    return (np.random.default_rng(70).standard_normal((4, 6, 5)) * 100).astype(dtype)


# --- dtypes ----------------------------------------------------------------------------------------------------------


@carriers
def test_carriers_keep_their_dtype(dtype: DType) -> None:
    x = X.astype(dtype)
    assert_same(round_to(x, "fp16"), Oracle(x, FORMATS["fp16"]).round("ties_to_even"))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2"])
def test_foreign_byte_order(dtype: str) -> None:
    x = X[[0, 1, 2, 4, 5]].astype(dtype)
    native = np.dtype(dtype).newbyteorder("=")
    result = round_to(x, "bf16")
    assert result.dtype.isnative
    assert_same(result, round_to(x.astype(native), "bf16"))
    np.testing.assert_array_equal(encode(x, "bf16"), encode(x.astype(native), "bf16"))


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
def test_narrow_floats_become_float32(fmt: FloatFormat) -> None:
    x = np.array([0.5, -1.5, 3]).astype(fmt.dtype)
    result = round_to(x, "fp16")
    assert result.dtype == np.float32
    assert result.tolist() == [0.5, -1.5, 3]
    assert round_to(x, "fp4_e2m1fn", "rtz").tolist() == [0.5, -1.5, 3]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_become_float64(dtype: str) -> None:
    x = np.array([0, 1, 77, 127], dtype)
    result = round_to(x, "fp8_e4m3fn")
    assert result.dtype == np.float64
    assert result.tolist() == [0, 1, 80, 128]  # 77 is between 72 and 80
    assert encode(np.array([100], dtype), "fp16").tolist() == [0x5640]
    assert cast(x, "fp16").dtype == np.float16


def test_integers_at_the_ends_of_their_range() -> None:
    assert round_to(np.array([2**63 - 1, -(2**63)]), "fp32").tolist() == [2.0**63, -(2.0**63)]
    assert round_to(np.array([2**64 - 1], np.uint64), "fp16").tolist() == [np.inf]
    assert round_to(2049, "fp16") == 2048


def test_lists_and_python_numbers_become_float64() -> None:
    examples: list[Any] = [[1.1, 2], (1.1, 2), [[1.1], [2]], [np.float64(1.1), 2]]
    for x in examples:
        result = round_to(x, "bf16")
        assert result.dtype == np.float64
        assert result.reshape(-1).tolist() == [1.1015625, 2]
    assert round_to([np.float32(1.1)] * 2, "bf16").dtype == np.float32  # as NumPy makes of it


@pytest.mark.parametrize(
    "x",
    [
        np.array([True]),
        True,
        1j,
        np.array([1], np.complex64),
        np.longdouble(1),
        "1.0",
        ["1"],
        None,
        [None, 1.0],
        [2**1024],
        np.array([1], object),
        np.datetime64("2020-01-01"),
        np.array([(1.0,)], [("a", "f4")]),
    ],
    ids=repr,
)
def test_other_dtypes_are_refused_with_the_list(x: Any) -> None:
    for function in (round_to, encode, lambda y, f: cast(y, f)):
        with pytest.raises(ValueError, match=r"cannot .* an array of") as error:
            function(x, "fp16")
        message = str(error.value)
        assert "\n" not in message
        assert all(word in message for word in ("float32", "float64", "float16", "ml_dtypes", "integers", "list"))


@pytest.mark.parametrize("function", [round_to, encode, cast])
def test_unknown_formats_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="unknown format 'fp17'") as error:
        function(1.0, "fp17")
    assert "\n" not in str(error.value)


def test_every_spelling_of_a_format() -> None:
    for spelling in ("bf16", "BFloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16), FORMATS["bf16"]):
        assert_same(round_to(X, spelling), round_to(X, "bf16"))
        assert cast(X, spelling).dtype == ml_dtypes.bfloat16


# --- shapes and layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [1.1, 7, np.float32(1.1), np.float64(1.1), np.float16(1.1), ml_dtypes.bfloat16(1.1)])
def test_scalars_give_numpy_scalars(x: Any) -> None:
    result: Any = round_to(x, "bf16")
    wide = isinstance(x, float | int)  # np.float64 is a float
    assert type(result) is (np.float64 if wide else np.float32)
    assert float(result) == float(np.asarray(round_to([float(x)], "bf16"))[0])
    code: Any = encode(x, "bf16")
    assert type(code) is np.uint16
    assert isinstance(cast(x, "bf16"), ml_dtypes.bfloat16)
    assert isinstance(cast(x, "fp16"), np.float16)
    assert np.float32(cast(x, "bf16")) == result


@carriers
def test_0d_arrays(dtype: DType) -> None:
    x = np.array(1.1, dtype)
    assert type(round_to(x, "bf16")) is dtype.type
    out = np.empty((), dtype)
    assert round_to(x, "bf16", out=out) is out
    assert float(out) == 1.1015625
    assert round_to(x, "bf16", out=x) is x
    assert float(x) == 1.1015625


@pytest.mark.parametrize("mode", ["rne", "rtz", "sr"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4), (1,), (1, 1, 1), (3, 4), (2, 3, 4, 5)])
@carriers
def test_shapes(shape: tuple[int, ...], dtype: DType, mode: str) -> None:
    x = np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype) / 7
    for name in ("bf16", "fp32", "fp8_e4m3fnuz"):
        result = round_to(x, name, mode, rng=1)
        assert result.shape == shape
        assert result.dtype == dtype
        assert_same(result.reshape(-1), round_to(x.reshape(-1), name, mode, rng=1))
        codes = encode(x, name, mode, rng=1)
        assert (codes.shape, codes.dtype) == (shape, code_dtype(name))
        assert cast(x, name, mode, rng=1).shape == shape
    assert round_to([], "fp16").shape == (0,)


LAYOUTS: dict[str, Any] = {
    "strided": lambda a: a[::2, :, ::3],
    "reversed": lambda a: a[::-1, ::-1, ::-1],
    "transposed": lambda a: a.T,
    "fortran": np.asfortranarray,
    "broadcast": lambda a: np.broadcast_to(a[0], a.shape),
    "offset": lambda a: a[1:, 1:, 1:],
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["rne", "rup", "sr"])
@carriers
def test_layouts(layout: str, mode: str, dtype: DType) -> None:
    x = LAYOUTS[layout](grid(dtype))
    before = x.copy()
    result = round_to(x, "fp8_e5m2", mode, rng=2)
    assert_same(result, round_to(x.copy(order="C"), "fp8_e5m2", mode, rng=2))
    assert not np.shares_memory(result, x)
    np.testing.assert_array_equal(
        encode(x, "fp8_e5m2", mode, rng=2), encode(x.copy(order="C"), "fp8_e5m2", mode, rng=2)
    )
    assert_same(x, before)


@pytest.mark.parametrize("mode", ["rne", "rna", "sr"])
@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32", "fp6_e2m3fn"])
@carriers
def test_read_only_input(name: str, mode: str, dtype: DType) -> None:
    x = grid(dtype)
    expected = round_to(x, name, mode, rng=3)
    x.flags.writeable = False
    result = round_to(x, name, mode, rng=3)
    assert_same(result, expected)
    assert result.flags.writeable
    np.testing.assert_array_equal(encode(x, name, mode, rng=3), encode(x.copy(), name, mode, rng=3))


def test_the_input_is_never_modified() -> None:
    for dtype in CARRIERS:
        x = hard_values(FORMATS["fp8_e5m2"], dtype)
        before = x.tobytes()
        for mode in ("rne", "rtz", "sr"):
            for function in (round_to, encode, cast):
                function(x, "fp8_e5m2", mode, rng=0)
                assert x.tobytes() == before


def test_the_result_is_new_even_where_nothing_changes() -> None:
    x = np.array([1.0, 2.0], np.float32)
    for name in ("fp32", "fp16"):
        result = round_to(x, name)
        assert not np.shares_memory(result, x)


def test_subclasses_come_back_as_plain_arrays() -> None:
    class Labelled(np.ndarray[Any, Any]):
        pass

    result = round_to(np.array([1.1, 2.2]).view(Labelled), "bf16")
    assert type(result) is np.ndarray
    assert_same(result, round_to([1.1, 2.2], "bf16"))


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rne", "rdn", "sr"])
@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32", "fp8_e4m3fnuz"])
@carriers
def test_out(name: str, mode: str, dtype: DType) -> None:
    x = grid(dtype)
    expected = round_to(x, name, mode, rng=4)
    for out in (np.full_like(x, 9), np.full_like(x, 9, order="F"), np.full((8, 12, 5), 9, dtype)[::2, ::-2]):
        before = x.copy()
        assert round_to(x, name, mode, rng=4, out=out) is out
        assert_same(out, expected)
        assert_same(x, before)
    wide = np.full((8, 12, 5), 9, dtype)
    round_to(x, name, mode, rng=4, out=wide[::2, ::2])
    assert (wide[1::2] == 9).all()  # nothing beside the view is written
    assert (wide[:, 1::2] == 9).all()


@pytest.mark.parametrize("mode", ["rne", "rdn", "sr"])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("name", ["bf16", "fp32"])
@carriers
def test_in_place(name: str, layout: str, mode: str, dtype: DType) -> None:
    x = grid(dtype)[:, ::2] if layout == "strided" else grid(dtype).copy(order=layout)  # type: ignore[arg-type]
    expected = round_to(x.copy(), name, mode, rng=5)
    assert round_to(x, name, mode, rng=5, out=x) is x
    assert_same(x, expected)


@pytest.mark.parametrize("mode", ["rne", "rdn", "sr"])
@pytest.mark.parametrize("shift", [-3, -1, 1, 2, 700])
@carriers
def test_overlapping_views(mode: str, shift: int, dtype: DType) -> None:
    memory = np.random.default_rng(71).standard_normal(3000).astype(dtype)
    length = 2000
    x, out = memory[max(0, -shift) :][:length], memory[max(0, shift) :][:length]
    expected = round_to(x.copy(), "bf16", mode, rng=6)
    assert round_to(x, "bf16", mode, rng=6, out=out) is out
    assert_same(out, expected)


def test_out_may_be_the_reverse_of_x() -> None:
    x = np.random.default_rng(72).standard_normal(101)
    expected = round_to(x.copy(), "fp16")
    out = x[::-1]
    round_to(x, "fp16", out=out)
    assert_same(out, expected)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty(5, np.float32), r"out must be an array of float32 \(6,\), got float32 \(5,\)"),
        (np.empty((2, 3), np.float32), r"got float32 \(2, 3\)"),
        (np.empty(6), r"got float64 \(6,\)"),
        (np.empty(6, np.float16), r"got float16 \(6,\)"),
        (np.empty(6, ">f4"), r"got >f4 \(6,\)"),
        ([0.0] * 6, "got list"),
        (np.float32(1), "got float32"),
        (np.broadcast_to(np.float32(1), 6), "out is read-only"),
    ],
)
@pytest.mark.parametrize("mode", ["rne", "sr"])
def test_out_that_does_not_fit_is_refused(out: Any, message: str, mode: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        round_to(X.astype(np.float32), "bf16", mode, out=out)
    assert "\n" not in str(error.value)


def test_a_read_only_array_in_place_is_refused() -> None:
    x = X.copy()
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        round_to(x, "bf16", out=x)
    assert_same(x, X)


def test_out_for_integers_and_narrow_floats_has_the_carrier_dtype() -> None:
    out = np.empty(2)
    assert round_to([2049, 5], "fp16", out=out) is out
    assert out.tolist() == [2048, 5]
    narrow = np.array([1.5, 2.5], np.float16)
    wide = np.empty(2, np.float32)
    assert round_to(narrow, "fp4_e2m1fn", out=wide).tolist() == [1.5, 2]
    with pytest.raises(ValueError, match="out must be an array of float32"):
        round_to(narrow, "fp4_e2m1fn", out=narrow)
