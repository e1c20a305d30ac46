import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from precision_lab.numerics import fixed
from precision_lab.numerics.rounding import is_representable
from precision_lab.training.models import MLP, Array, Labels, Parameters
from precision_lab.training.models.interface import parameter_dtype
from precision_lab.training.models.parts import softmax_cross_entropy
from precision_lab.training.storage import CONFIGURATIONS, FP32, StorageConfig
from tests.training.models.helpers import (
    CAST_ROLES,
    ROLES,
    assert_each_in_its_format,
    assert_slopes,
    role,
    same_bits,
    stored_gradient,
    times,
)

SIZES = st.lists(st.integers(1, 6), min_size=2, max_size=5).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)


def problem(
    sizes: tuple[int, ...], seed: int, batch: int, dtype: type = np.float64
) -> tuple[dict[str, Array], Array, Labels]:
    """Parameters with biases that are not zero, inputs and labels."""
    rng = np.random.default_rng((seed, 2))
    parameters = MLP(sizes).init(seed, dtype)
    for name in parameters:
        if name.endswith("bias"):
            parameters[name] = rng.normal(size=parameters[name].shape).astype(dtype)
    inputs: Array = rng.normal(size=(batch, sizes[0])).astype(dtype)
    return parameters, inputs, rng.integers(0, sizes[-1], batch)


def model_of(parameters: Parameters, activation: str = "relu") -> MLP:
    weights = [array for name, array in parameters.items() if name.endswith("weight")]
    return MLP((len(weights[0]), *(weight.shape[1] for weight in weights)), activation)


def plain_loss(logits: Array, labels: Labels) -> float:
    """Mean cross-entropy by another route than the module's."""
    return float(np.mean([np.logaddexp.reduce(row) - row[label] for row, label in zip(logits, labels, strict=True)]))


def activate(value: Array, activation: str) -> Array:
    return np.maximum(value, 0.0) if activation == "relu" else 1 / (1 + np.exp(-value))


def loss_from(parameters: Parameters, activation: str, name: str, value: Array, labels: Labels) -> float:
    """The loss of what follows once activation `name` has this value."""
    depth = len(parameters) // 2
    if name != "logits":
        layer, kind = name.split(".")
        following = int(layer.removeprefix("layer")) + 1
        value = activate(value, activation) if kind == "preactivation" else value
        for k in range(following, depth + 1):
            value = value @ parameters[f"layer{k}.weight"] + parameters[f"layer{k}.bias"]
            value = activate(value, activation) if k < depth else value
    return plain_loss(value, labels)


def assert_gradients_are_slopes(
    parameters: dict[str, Array], inputs: Array, labels: Labels, activation: str = "relu"
) -> None:
    model = model_of(parameters, activation)
    activations = model.forward(parameters, inputs)
    gradients = model.loss_and_gradients(parameters, inputs, labels)
    assert gradients.loss == pytest.approx(plain_loss(activations["logits"], labels), rel=1e-12, abs=1e-14)
    assert gradients.loss == model.loss(parameters, inputs, labels)
    assert list(gradients.weights) == list(parameters)
    assert list(gradients.activations) == list(activations)
    largest = max(1.0, *(float(np.abs(array).max()) for array in activations.values()))
    for name, parameter in parameters.items():

        def loss_of_parameter(value: Array, name: str = name) -> float:
            return model.loss({**parameters, name: value}, inputs, labels)

        assert_slopes(loss_of_parameter, parameter, gradients.weights[name], name, largest)
    for name, value in activations.items():

        def loss_of_activation(value: Array, name: str = name) -> float:
            return loss_from(parameters, activation, name, value, labels)

        assert_slopes(loss_of_activation, value, gradients.activations[name], name, largest)


def keeps_off_the_kinks(parameters: Parameters, inputs: Array) -> bool:
    """Whether no preactivation is so near to 0 that a difference would cross the kink of its ReLU."""
    activations = model_of(parameters).forward(parameters, inputs)
    hidden = [array for name, array in activations.items() if name.endswith("preactivation")]
    return all(np.abs(array).min() > 1e-3 for array in hidden)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("sizes", [(5, 4), (5, 8, 4), (5, 7, 6, 4), (3, 6, 6, 6, 6, 3)])
@pytest.mark.parametrize("seed", [1, 4])
def test_gradients_agree_with_central_differences(sizes: tuple[int, ...], activation: str, seed: int) -> None:
    parameters, inputs, labels = problem(sizes, seed, batch=3)
    if activation == "relu":
        assert keeps_off_the_kinks(parameters, inputs)
    assert_gradients_are_slopes(parameters, inputs, labels, activation)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, seed=SEEDS, batch=st.integers(1, 4))
def test_gradients_agree_with_central_differences_for_any_shape(sizes: tuple[int, ...], seed: int, batch: int) -> None:
    parameters, inputs, labels = problem(sizes, seed, batch)
    assume(keeps_off_the_kinks(parameters, inputs))
    assert_gradients_are_slopes(parameters, inputs, labels)


@given(sizes=SIZES, seed=SEEDS, batch=st.integers(1, 8), dtype=st.sampled_from([np.float32, np.float64]))
def test_names_shapes_and_dtypes_are_those_of_the_parameters_and_activations(
    sizes: tuple[int, ...], seed: int, batch: int, dtype: type
) -> None:
    parameters, inputs, labels = problem(sizes, seed, batch, dtype)
    activations = model_of(parameters).forward(parameters, inputs)
    # Also when the loss scale is a NumPy float64, which would widen a float32 array.
    gradients = model_of(parameters).loss_and_gradients(parameters, inputs, labels, loss_scale=np.float64(8.0))
    for ours, theirs in ((gradients.weights, parameters), (gradients.activations, activations)):
        assert {name: array.shape for name, array in ours.items()} == {n: array.shape for n, array in theirs.items()}
    for array in (*parameters.values(), *activations.values(), *gradients.weights.values()):
        assert array.dtype == dtype
    assert all(array.dtype == dtype for array in gradients.activations.values())
    depth = len(sizes) - 1
    hidden = [f"layer{k}.{kind}" for k in range(1, depth) for kind in ("preactivation", "output")]
    assert list(activations) == [*hidden, "logits"]
    assert float(dtype(gradients.loss)) == gradients.loss


def test_inputs_of_another_dtype_do_not_change_that_of_the_arithmetic() -> None:
    parameters, inputs, labels = problem((5, 4, 3), seed=0, batch=6, dtype=np.float32)
    wide = model_of(parameters).loss_and_gradients(parameters, inputs.astype(np.float64), labels)
    narrow = model_of(parameters).loss_and_gradients(parameters, inputs, labels)
    for name, gradient in narrow.weights.items():
        assert wide.weights[name].dtype == np.float32
        np.testing.assert_array_equal(wide.weights[name], gradient)


@given(sizes=SIZES, seed=SEEDS)
def test_float32_gradients_lie_near_those_of_float64(sizes: tuple[int, ...], seed: int) -> None:
    parameters, inputs, labels = problem(sizes, seed, 4, np.float32)
    wide = {name: array.astype(np.float64) for name, array in parameters.items()}
    assume(keeps_off_the_kinks(wide, inputs))
    ours = model_of(parameters).loss_and_gradients(parameters, inputs, labels)
    theirs = model_of(wide).loss_and_gradients(wide, inputs, labels)
    for name in ours.weights:
        np.testing.assert_allclose(ours.weights[name], theirs.weights[name], rtol=1e-3, atol=1e-4)


@given(sizes=SIZES, seed=SEEDS, exponent=st.integers(-40, 60))
def test_a_power_of_two_as_loss_scale_only_shifts_the_exponents(
    sizes: tuple[int, ...], seed: int, exponent: int
) -> None:
    parameters, inputs, labels = problem(sizes, seed, 4)
    plain = model_of(parameters).loss_and_gradients(parameters, inputs, labels)
    scaled = model_of(parameters).loss_and_gradients(parameters, inputs, labels, loss_scale=2.0**exponent)
    assert scaled.loss == plain.loss
    for ours, theirs in ((scaled.weights, plain.weights), (scaled.activations, plain.activations)):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], np.ldexp(theirs[name], exponent))


def test_a_loss_scale_saves_what_would_be_flushed() -> None:
    # An example that is all but certain, with a small input: exp(-80) * 2^-40 lies below the subnormals of float32.
    parameters: dict[str, Array] = {
        "layer1.weight": np.array([[80 * 2.0**40, 0.0]], np.float32),
        "layer1.bias": np.zeros(2, np.float32),
    }
    inputs, labels = np.array([[2.0**-40]], np.float32), np.array([0])
    plain = model_of(parameters).loss_and_gradients(parameters, inputs, labels).weights["layer1.weight"][0, 1]
    scaled = (
        model_of(parameters)
        .loss_and_gradients(parameters, inputs, labels, loss_scale=2.0**60)
        .weights["layer1.weight"][0, 1]
    )
    assert plain == 0
    assert scaled == pytest.approx(math.exp(-80) * 2.0**20, rel=1e-5)


def test_the_relu_passes_nothing_at_0_and_leaves_no_negative_zero() -> None:
    parameters, inputs, labels = problem((4, 5, 3), seed=3, batch=6, dtype=np.float32)
    parameters["layer1.weight"][:] = 0
    parameters["layer1.bias"][:] = 0
    gradients = model_of(parameters).loss_and_gradients(parameters, inputs, labels)
    assert (gradients.activations["layer1.output"] < 0).any()
    blocked = gradients.activations["layer1.preactivation"]
    assert not blocked.any()
    assert not np.signbit(blocked).any()


def test_a_nan_is_handed_on_to_every_gradient_below_it() -> None:
    parameters, inputs, labels = problem((4, 5, 3), seed=3, batch=6)
    parameters["layer1.bias"][2] = np.nan
    gradients = model_of(parameters).loss_and_gradients(parameters, inputs, labels)
    assert math.isnan(gradients.loss)
    assert np.isnan(gradients.weights["layer1.weight"][:, 2]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_cross_entropy_is_stable_far_from_0(dtype: type) -> None:
    logits: Array = np.array([[1e30, -1e30, 0], [-1e4, -1e4 - 1, -2e4], [1e4, 1e4, 1e4]], dtype)
    losses, probabilities = softmax_cross_entropy(logits, np.array([0, 1, 2]))
    np.testing.assert_allclose(losses, [0, 1 + math.log1p(math.exp(-1)), math.log(3)], rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    wrong, _ = softmax_cross_entropy(logits[:1], np.array([1]))
    assert wrong[0] == dtype(2e30)
    assert losses.dtype == probabilities.dtype == dtype


@given(seed=SEEDS, offset=st.integers(-1000, 1000))
def test_softmax_cross_entropy_does_not_see_a_common_offset(seed: int, offset: int) -> None:
    rng = np.random.default_rng(seed)
    # Multiples of 2^-10 keep the sums exact.
    logits = rng.integers(-5000, 5000, (4, 6)) / 1024
    labels = rng.integers(0, 6, 4)
    for plain, shifted in zip(
        softmax_cross_entropy(logits, labels), softmax_cross_entropy(logits + offset, labels), strict=True
    ):
        np.testing.assert_array_equal(plain, shifted)


def test_initialisation_has_the_variance_of_he_and_no_biases() -> None:
    parameters = MLP((400, 300, 200)).init(5)
    assert list(parameters) == ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"]
    for layer, inputs in ((1, 400), (2, 300)):
        weight = parameters[f"layer{layer}.weight"]
        assert weight.std() == pytest.approx(math.sqrt(2 / inputs), rel=0.02)
        assert abs(weight.mean()) < 0.02 * weight.std()
        assert not parameters[f"layer{layer}.bias"].any()


@given(sizes=SIZES, seed=SEEDS)
def test_initialisation_depends_on_the_seed_alone(sizes: tuple[int, ...], seed: int) -> None:
    narrow, again, wide = (MLP(sizes).init(seed, dtype) for dtype in (np.float32, np.float32, np.float64))
    for name in narrow:
        np.testing.assert_array_equal(narrow[name], again[name])
        np.testing.assert_array_equal(narrow[name], wide[name].astype(np.float32))
    assert not np.array_equal(narrow["layer1.weight"], MLP(sizes).init(seed + 1)["layer1.weight"])


def test_the_default_is_64_64_10_in_float32() -> None:
    parameters = MLP().init()
    assert [array.shape for array in parameters.values()] == [(64, 64), (64,), (64, 10), (10,)]
    assert parameter_dtype(parameters) == np.float32


def test_accuracy_counts_the_right_ones_and_gives_ties_to_the_lower_class() -> None:
    parameters = {"layer1.weight": np.eye(3), "layer1.bias": np.zeros(3)}
    inputs = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 1]])
    assert model_of(parameters).accuracy(parameters, inputs, np.array([0, 1, 2, 0])) == 0.75


@pytest.mark.parametrize("sizes", [(), (4,), (4, 0), (4, -1, 3)])
def test_init_refuses_bad_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sizes must be two or more positive integers"):
        MLP(sizes)


@pytest.mark.parametrize("dtype", [np.float16, np.int64])
def test_parameters_of_another_dtype_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="must be float32 or float64"):
        MLP((4, 3)).init(dtype=dtype)
    with pytest.raises(ValueError, match="must be float32 or float64"):
        MLP((2, 2)).forward(
            {"layer1.weight": np.ones((2, 2), dtype), "layer1.bias": np.ones(2, dtype)}, np.ones((1, 2))
        )


def test_parameters_of_two_dtypes_are_refused() -> None:
    parameters: dict[str, Array] = {"layer1.weight": np.ones((2, 2)), "layer1.bias": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match=r"share one dtype, got \['float32', 'float64'\]"):
        model_of(parameters).loss(parameters, np.ones((1, 2)), np.array([0]))


@pytest.mark.parametrize("shape", [(4,), (3, 5), (0, 4)])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs must have shape \(batch, 4\)"):
        MLP((4, 3)).forward(MLP((4, 3)).init(), np.zeros(shape))


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 1, 2], "one per example"), ([0, 3], r"lie in 0\.\.2"), ([-1, 0], r"lie in 0\.\.2")]
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP((4, 3)).loss_and_gradients(MLP((4, 3)).init(), np.zeros((2, 4)), np.array(labels))


def test_accuracy_refuses_labels_of_another_length() -> None:
    with pytest.raises(ValueError, match="one per example"):
        MLP((4, 3)).accuracy(MLP((4, 3)).init(), np.zeros((2, 4)), np.array([0]))


@pytest.mark.parametrize("loss_scale", [0.0, -1.0, math.inf, math.nan, 2.0**128])
def test_a_loss_scale_out_of_range_is_refused(loss_scale: float) -> None:
    with pytest.raises(ValueError, match="loss_scale must be positive and at most"):
        MLP((4, 3)).loss_and_gradients(MLP((4, 3)).init(), np.zeros((2, 4)), np.array([0, 1]), loss_scale=loss_scale)


def test_another_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation must be one of relu, sigmoid; got 'tanh'"):
        MLP((4, 3), "tanh")


# ---- the places ----


@pytest.mark.parametrize("storage", [ROLES, CAST_ROLES], ids=["roles", "cast"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_each_place_by_hand(activation: str, storage: StorageConfig) -> None:
    """Two layers, every rounding written out."""
    model = MLP((6, 5, 3), activation)
    parameters, inputs, labels = problem(model.sizes, 1, 8, np.float32)
    w1, b1, w2, b2 = parameters.values()
    found = model.loss_and_gradients(parameters, inputs, labels, loss_scale=64.0, storage=storage)

    x = role("activations", inputs)
    before = role("activations", times(storage, x, w1) + b1)
    hidden = np.maximum(before, 0) if activation == "relu" else role("activations", fixed.sigmoid(before))
    logits = role("activations", times(storage, hidden, w2) + b2)
    shifted = role("sensitive", logits - logits.max(axis=1, keepdims=True))
    exponentials = role("sensitive", np.exp(shifted))
    totals = role("sensitive", exponentials.sum(axis=1, keepdims=True))
    losses = role("sensitive", np.log(totals)[:, 0] - shifted[range(8), labels])
    error = role("sensitive", exponentials / totals)
    error[range(8), labels] -= 1
    by_logits = role("activation_gradients", error * np.float32(64 / 8))
    by_hidden = role("activation_gradients", times(storage, by_logits, w2.T, "a"))
    by_before = by_hidden * (before > 0)
    if activation == "sigmoid":
        by_before = role("activation_gradients", by_hidden * (hidden * (1 - hidden)))

    np.testing.assert_array_equal(softmax_cross_entropy(logits, labels, ROLES)[0], losses)
    assert found.loss == float(role("sensitive", losses.mean()))
    activations = {"layer1.preactivation": before, "layer1.output": hidden, "logits": logits}
    gradients = {"layer1.preactivation": by_before, "layer1.output": by_hidden, "logits": by_logits}
    weights = {
        "layer1.weight": stored_gradient(times(storage, x.T, by_before, "b")),
        "layer1.bias": stored_gradient(by_before.sum(axis=0)),
        "layer2.weight": stored_gradient(times(storage, hidden.T, by_logits, "b")),
        "layer2.bias": stored_gradient(by_logits.sum(axis=0)),
    }
    for ours, theirs in (
        (model.forward(parameters, inputs, storage), activations),
        (found.activations, gradients),
        (found.weights, weights),
    ):
        assert list(ours) == list(theirs)
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)


@given(sizes=SIZES, seed=SEEDS, activation=st.sampled_from(["relu", "sigmoid"]))
def test_what_is_stored_has_the_format_of_its_role(sizes: tuple[int, ...], seed: int, activation: str) -> None:
    parameters, inputs, labels = problem(sizes, seed, 4, np.float32)
    model = MLP(sizes, activation)
    found = model.loss_and_gradients(parameters, inputs, labels, loss_scale=16.0, storage=ROLES)
    assert_each_in_its_format(model.forward(parameters, inputs, ROLES), found)


@given(sizes=SIZES, seed=SEEDS, activation=st.sampled_from(["relu", "sigmoid"]))
def test_fp32_rounds_nothing(sizes: tuple[int, ...], seed: int, activation: str) -> None:
    parameters, inputs, labels = problem(sizes, seed, 4, np.float32)
    model = MLP(sizes, activation)
    plain = model.loss_and_gradients(parameters, inputs, labels, loss_scale=8.0)
    ours = model.loss_and_gradients(parameters, inputs, labels, loss_scale=8.0, storage=FP32)
    assert ours.loss == plain.loss
    assert same_bits(ours.weights, plain.weights)
    assert same_bits(ours.activations, plain.activations)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_trains_and_stores_what_it_says(name: str) -> None:
    storage, model = CONFIGURATIONS[name], MLP((6, 8, 3))
    parameters, inputs, labels = problem(model.sizes, 5, 16, np.float32)
    found = model.loss_and_gradients(parameters, inputs, labels, loss_scale=4.0, storage=storage)
    exact = model.loss_and_gradients(parameters, inputs, labels, loss_scale=4.0)
    for group, fmt in ((found.weights, storage.gradients), (found.activations, storage.activation_gradients)):
        assert all(is_representable(array, fmt).all() for array in group.values())
    for array, target in zip(found.weights.values(), exact.weights.values(), strict=True):
        assert np.linalg.norm(array - target) < 0.25 * np.linalg.norm(target)  # fp8: 2^-3 an operand
