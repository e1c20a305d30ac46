"""Where a matrix product and a gradient are rounded, one place at a time."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from precision_lab.numerics import fixed
from precision_lab.numerics.formats import FORMATS, get_format
from precision_lab.numerics.products import matmul
from precision_lab.numerics.rounding import is_representable, round_to
from precision_lab.training.models import MLP, weights_copy
from precision_lab.training.models.places import library_products, operand_scale, product, rounded, weight_gradient
from precision_lab.training.storage import CONFIGURATIONS, FP32, StorageConfig
from tests.flushing import in_a_thread
from tests.training.models.helpers import same_bits

RNG = np.random.default_rng(0)
A = RNG.normal(size=(5, 7)).astype(np.float32) * np.float32(1e-3)
B = RNG.normal(size=(7, 4)).astype(np.float32) * np.float32(1e3)
E4M3, E5M2, BF16 = get_format("fp8_e4m3fn"), get_format("fp8_e5m2"), get_format("bf16")


def test_fp32_leaves_the_array_itself() -> None:
    assert rounded(A, get_format("fp32")) is A
    assert product(A, B, FP32).tobytes() == fixed.matmul(A, B).tobytes()
    assert weight_gradient(A, FP32) is A


def test_a_storage_that_was_sent_to_another_process_is_the_same() -> None:
    model, inputs, labels = MLP((6, 5, 3)), RNG.normal(size=(4, 6)).astype(np.float32), np.array([0, 1, 2, 0])
    for storage in (FP32, CONFIGURATIONS["fp8_hybrid"]):
        sent = pickle.loads(pickle.dumps(storage))
        assert sent.accumulator is storage.accumulator  # places compare with `is`
        assert rounded(A, sent.accumulator) is A
        ours, theirs = (model.loss_and_gradients(model.init(), inputs, labels, storage=s) for s in (storage, sent))
        assert same_bits(ours.weights, theirs.weights)
    wide = RNG.normal(size=(20, 300)).astype(np.float32)
    sent = pickle.loads(pickle.dumps(FP32))
    assert product(wide, wide.T, sent).tobytes() == fixed.matmul(wide, wide.T).tobytes()


def test_sums_are_left_to_blas_only_where_that_is_asked_for() -> None:
    wide = RNG.normal(size=(40, 300)).astype(np.float32)
    with threadpool_limits(1, "blas"):
        blas = np.matmul(wide, wide.T)
    with library_products():
        assert product(wide, wide.T, FP32).tobytes() == blas.tobytes()
        in_another_thread = in_a_thread(lambda: product(wide, wide.T, FP32))
        assert {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"} == {1}
    exact = fixed.matmul(wide, wide.T).tobytes()
    assert in_another_thread.tobytes() == product(wide, wide.T, FP32).tobytes() == exact
    narrow = StorageConfig(accumulator=get_format("bf16"))
    with library_products():
        assert product(A, B, narrow).tobytes() == matmul(A, B, accumulator="bf16").tobytes()
    with pytest.raises(ZeroDivisionError), library_products():
        raise ZeroDivisionError
    assert product(wide, wide.T, FP32).tobytes() == exact


def test_the_copy_of_the_weights_has_their_format() -> None:
    parameters = MLP((6, 5, 3)).init(1)
    copy = weights_copy(parameters, CONFIGURATIONS["master_bf16"])
    assert list(copy) == list(parameters)
    for name, array in copy.items():
        np.testing.assert_array_equal(array, round_to(parameters[name], "bf16"))


def test_a_gradient_goes_through_the_cast_only_where_the_copy_is_cast_anew() -> None:
    kept = StorageConfig(weights=get_format("fp8_e5m2"), gradients=get_format("bf16"), master=get_format("fp32"))
    x = A.copy()
    np.testing.assert_array_equal(weight_gradient(x, kept), round_to(x, "bf16"))
    through = weight_gradient(x, replace(kept, transient_weights=True))
    np.testing.assert_array_equal(through, round_to(round_to(x, "fp8_e5m2"), "bf16"))
    assert not np.array_equal(through, round_to(x, "bf16"))
    np.testing.assert_array_equal(x, A)  # rounding makes a new array


@pytest.mark.parametrize("name", FORMATS)
@given(largest=st.floats(min_value=2.0**-149, max_value=float(np.finfo(np.float32).max)))
def test_the_scale_brings_the_largest_magnitude_into_the_upper_binade(name: str, largest: float) -> None:
    fmt = get_format(name)
    scaled = math.ldexp(largest, operand_scale(largest, fmt))
    assert fmt.max / 2 < scaled <= fmt.max


@pytest.mark.parametrize("largest", [0.0, math.inf, math.nan])
def test_nothing_and_infinity_are_not_scaled(largest: float) -> None:
    assert operand_scale(largest, E4M3) == 0


def cast_by_hand(x: np.ndarray, name: str) -> np.ndarray:
    """x as it comes back from being scaled and cast."""
    scale = 2.0 ** operand_scale(float(np.abs(x).max()), get_format(name))
    values = np.asarray(round_to(x * np.float32(scale), name))
    assert is_representable(values, name).all()
    return values / np.float32(scale)


@pytest.mark.parametrize(
    ("gradient", "of_a", "of_b"),
    [(None, "fp8_e4m3fn", "fp8_e4m3fn"), ("a", "fp8_e5m2", "fp8_e4m3fn"), ("b", "fp8_e4m3fn", "fp8_e5m2")],
)
def test_operands_are_cast_each_to_the_format_of_its_role(gradient: str, of_a: str, of_b: str) -> None:
    storage = CONFIGURATIONS["fp8_hybrid"]
    found = product(A, B, storage, gradient=gradient)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, cast_by_hand(A, of_a) @ cast_by_hand(B, of_b))
    assert not np.array_equal(found, A @ B)


@pytest.mark.parametrize("name", ["e6m9", "bf16"])
def test_wide_operands_are_cast_too(name: str) -> None:
    found = product(A, B, StorageConfig(operands=get_format(name)))
    np.testing.assert_array_equal(found, round_to(A, name) @ round_to(B, name))  # in whose range a scale is nothing


def test_gradients_are_taken_as_they_are_where_they_have_no_format() -> None:
    storage = StorageConfig(operands=E4M3)
    found = product(A, B, storage, gradient="a")
    np.testing.assert_array_equal(found, fixed.matmul(A, cast_by_hand(B, "fp8_e4m3fn")))


@pytest.mark.parametrize("exponent", [-100, -20, 30])
def test_a_power_of_two_is_all_the_same_to_a_scaled_cast(exponent: int) -> None:
    storage = CONFIGURATIONS["fp8_hybrid"]
    moved = product(np.ldexp(A, exponent), B, storage)
    np.testing.assert_array_equal(moved, np.ldexp(product(A, B, storage), exponent))


def test_infinities_and_nan_reach_the_product() -> None:
    a = A.copy()
    a[0, 0], a[1, 0] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        found = product(a, B, StorageConfig(operands=E5M2, gradient_operands=E5M2))
    assert not np.isfinite(found[:2]).any()
    assert np.isfinite(found[2:]).all()


@pytest.mark.parametrize("name", ["bf16", "fp16", "e6m9"])
def test_another_accumulator_rounds_each_step(name: str) -> None:
    storage = StorageConfig(accumulator=get_format(name))
    a, b = A.astype(np.float32), B.astype(np.float32)
    expected = matmul(a, b, accumulator=name)
    found = product(a, b, storage)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, round_to(a @ b, name))


def test_products_of_stacks_are_those_of_their_matrices() -> None:
    a, b = (RNG.normal(size=(2, 3, *shape)).astype(np.float32) for shape in ((5, 7), (7, 4)))
    for storage in (FP32, StorageConfig(accumulator=BF16)):
        found = product(a, b.swapaxes(-1, -2).copy().swapaxes(-1, -2), storage)
        assert found.shape == (2, 3, 5, 4)
        for i, j in np.ndindex(2, 3):
            np.testing.assert_array_equal(found[i, j], product(a[i, j], b[i, j], storage))


def test_with_a_storage_the_arithmetic_is_float32() -> None:
    model = MLP((4, 3))
    inputs, labels = np.zeros((2, 4)), np.array([0, 1])
    with pytest.raises(ValueError, match="with a storage the parameters must be float32, got float64"):
        model.loss_and_gradients(model.init(0, np.float64), inputs, labels, storage=FP32)


def test_a_step_leaves_parameters_and_inputs_alone() -> None:
    model = MLP((6, 5, 3), "sigmoid")
    parameters, inputs = model.init(2), RNG.normal(size=(4, 6)).astype(np.float32)
    before = {**{name: array.copy() for name, array in parameters.items()}, "inputs": inputs.copy()}
    for storage in (None, FP32, CONFIGURATIONS["fp8_hybrid"]):
        model.loss_and_gradients(parameters, inputs, np.array([0, 1, 2, 0]), storage=storage)
    assert same_bits({**parameters, "inputs": inputs}, before)
