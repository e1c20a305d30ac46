"""The transformer: slopes, what a position can see, and one layer with every rounding written out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab.numerics.formats import get_format
from precision_lab.numerics.rounding import is_representable, round_to
from precision_lab.training.datasets import text_dataset
from precision_lab.training.models import Array, Labels, Transformer
from precision_lab.training.models.parts import (
    causal_softmax,
    causal_softmax_gradient,
    gelu,
    gelu_slope,
    layer_norm,
)
from precision_lab.training.optimizers import Adam
from precision_lab.training.step import Recipe, begin, parameters_of, training_step
from precision_lab.training.storage import CONFIGURATIONS, FP32, StorageConfig
from tests.training.models.helpers import (
    CAST_ROLES,
    ROLES,
    assert_each_in_its_format,
    assert_slopes,
    differences,
    role,
    same_bits,
    stored_gradient,
    times,
)


def small(layers: int = 1, activation: str = "gelu", tied: bool = False) -> Transformer:
    return Transformer(5, context=4, width=4, heads=2, layers=layers, hidden=6, activation=activation, tied=tied)


def problem(model: Transformer, seed: int, dtype: type = np.float64) -> tuple[dict[str, Array], Labels, Labels]:
    """Parameters all far from 0 and 1, and windows one character shorter than they may be."""
    rng = np.random.default_rng((seed, 2))
    parameters: dict[str, Array] = {
        name: (array + rng.normal(size=array.shape) * 0.7).astype(dtype)
        for name, array in model.init(seed, np.float64).items()
    }
    codes = rng.integers(0, model.vocabulary, (2, 3, model.context - 1))
    return parameters, codes[0], codes[1]


def near_a_kink(model: Transformer, parameters: dict[str, Array], inputs: Labels) -> bool:
    ups = [x for name, x in model.forward(parameters, inputs).items() if name.endswith(".up")]
    return model.activation == "relu" and any(np.abs(up).min() < 1e-3 for up in ups)


# ---- gradients ----


@pytest.mark.parametrize(
    ("layers", "activation", "tied"),
    [(1, "relu", False), (1, "gelu", False), (2, "relu", False), (2, "gelu", False), (1, "gelu", True)],
)
def test_gradients_agree_with_central_differences(layers: int, activation: str, tied: bool) -> None:
    model = small(layers, activation, tied)
    tried = 0
    for seed in range(20):
        parameters, inputs, targets = problem(model, seed)
        if near_a_kink(model, parameters, inputs):
            continue
        tried += 1
        found = model.loss_and_gradients(parameters, inputs, targets)
        assert found.loss == model.loss(parameters, inputs, targets)
        assert list(found.weights) == list(parameters)
        for name, parameter in parameters.items():

            def loss(value: Array, name: str = name) -> float:
                return model.loss({**parameters, name: value}, inputs, targets)  # noqa: B023

            assert_slopes(loss, parameter, found.weights[name], name, largest=10.0)
        if tried == 2:
            return
    raise AssertionError("every seed is near a kink")


def test_gelu_is_near_the_normal_distribution_and_its_slope_is_one() -> None:
    x = np.linspace(-6, 6, 97)
    exact = [t * (1 + math.erf(t / math.sqrt(2))) / 2 for t in x]
    np.testing.assert_allclose(gelu(x), exact, atol=5e-4)  # the error of the tanh form
    tanh = [0.5 * t * (1 + math.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3))) for t in x]
    np.testing.assert_allclose(gelu(x), tanh, rtol=1e-12, atol=1e-15)
    assert_slopes(lambda value: float(gelu(value).sum()), x, gelu_slope(x), "gelu", largest=100.0)


def test_layer_norm_has_mean_0_and_variance_1() -> None:
    x = np.random.default_rng(0).normal(3, 2, (7, 50))
    result, _ = layer_norm(x, np.ones(50), np.zeros(50), FP32)
    np.testing.assert_allclose(result.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(result.var(axis=1), 1 / (1 + 1e-5 / x.var(axis=1)), rtol=1e-13)
    scaled, _ = layer_norm(x, np.full(50, 2.0), np.full(50, 3.0), FP32)
    np.testing.assert_allclose(scaled, 2 * result + 3, rtol=1e-14)


@pytest.mark.parametrize("fmt", ["fp32", "fp8_e4m3fn", "fp6_e2m3fn"])
def test_causal_softmax_sees_nothing_beyond_the_diagonal(fmt: str) -> None:
    """Also in formats without infinity."""
    storage = replace(FP32, sensitive=get_format(fmt))
    scores = np.random.default_rng(1).normal(size=(2, 5, 5)).astype(np.float32)
    probabilities = causal_softmax(scores, storage)
    assert (probabilities[:, ~np.tri(5, dtype=bool)] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=2e-7 if fmt == "fp32" else 0.2)
    changed = np.where(np.tri(5, dtype=bool), scores, np.float32(np.nan))
    assert causal_softmax(changed, storage).tobytes() == probabilities.tobytes()
    for value in (100.0, -100.0, 1e30):
        np.testing.assert_array_equal(causal_softmax(np.full((3, 3), value, np.float32), FP32)[2], np.float32(1 / 3))
    direction = np.random.default_rng(2).normal(size=scores.shape)
    wide = scores.astype(np.float64)
    slopes = differences(lambda value: float((causal_softmax(value, FP32) * direction).sum()), wide, 1e-5)
    found = causal_softmax_gradient(direction, causal_softmax(wide, FP32), FP32)
    np.testing.assert_allclose(found, slopes, atol=1e-9)


def test_the_relu_passes_nothing_at_0() -> None:
    model = small(1, "relu")
    parameters, inputs, targets = problem(model, 1, np.float32)
    parameters["layer1.up.weight"][:] = 0
    parameters["layer1.up.bias"][:] = 0
    found = model.loss_and_gradients(parameters, inputs, targets)
    assert found.activations["layer1.hidden"].all()
    assert found.activations["layer1.up"].tobytes() == bytes(found.activations["layer1.up"].nbytes)  # no -0.0 either


# ---- what it computes ----


@pytest.mark.parametrize("layers", [1, 2])
def test_a_position_sees_only_what_came_before(layers: int) -> None:
    model = small(layers)
    parameters, inputs, _ = problem(model, 3)
    before = model.forward(parameters, inputs)["logits"].reshape(3, 3, 5)
    changed = inputs.copy()
    changed[:, 2] = (changed[:, 2] + 1) % 5
    after = model.forward(parameters, changed)["logits"].reshape(3, 3, 5)
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert (before[:, 2] != after[:, 2]).all()
    changed[:, 0] = (changed[:, 0] + 1) % 5
    assert (model.forward(parameters, changed)["logits"].reshape(3, 3, 5)[:, 1] != before[:, 1]).all()


def test_windows_do_not_see_one_another() -> None:
    model = small(2)
    parameters, inputs, targets = problem(model, 4)
    together = model.forward(parameters, inputs)["logits"].reshape(3, -1)
    for row in range(3):
        alone = model.forward(parameters, inputs[row : row + 1])["logits"].reshape(-1)
        np.testing.assert_allclose(together[row], alone, rtol=1e-12)
    losses = [model.loss(parameters, inputs[r : r + 1], targets[r : r + 1]) for r in range(3)]
    assert model.loss(parameters, inputs, targets) == pytest.approx(float(np.mean(losses)), rel=1e-13)


def test_the_loss_of_many_windows_is_the_mean_of_its_chunks() -> None:
    model = small()
    parameters, inputs, targets = problem(model, 5)
    many = [np.tile(codes, (200, 1))[:-1] for codes in (inputs, targets)]  # 599: two chunks and a part
    right = model.forward(parameters, many[0])["logits"].argmax(axis=1) == many[1].reshape(-1)
    assert model.accuracy(parameters, *many) == right.mean()
    assert 0 < right.mean() < 1
    assert model.loss(parameters, *many) == pytest.approx(model.loss_and_gradients(parameters, *many).loss, rel=1e-14)


def test_it_starts_as_gpt_2_does_and_knows_nothing() -> None:
    model = Transformer(90, layers=2)
    parameters = model.init(1)
    assert parameters["token"].std() == pytest.approx(0.02, rel=0.05)
    assert parameters["layer1.up.weight"].std() == pytest.approx(0.02, rel=0.05)
    for name in ("layer1.projection", "layer2.down"):
        assert parameters[f"{name}.weight"].std() == pytest.approx(0.01, rel=0.05)
    for name, array in parameters.items():
        if array.ndim == 1:
            assert (array == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 90, (2, 20, 32))
    assert model.loss(parameters, *codes) == pytest.approx(math.log(90), rel=0.01)
    wide = model.init(1, np.float64)
    assert same_bits(parameters, {name: array.astype(np.float32) for name, array in wide.items()})
    assert not same_bits(parameters, model.init(2))


def test_it_learns_a_text_by_heart() -> None:
    data = text_dataset("the quick brown fox jumps over the lazy dog. " * 4, context=16)
    model = Transformer(len(data.vocabulary), context=16, width=16, hidden=32)
    parameters = model.init(0)
    recipe = Recipe(model, Adam(1e-2), FP32, {name: array.shape for name, array in parameters.items()})
    state = begin(parameters, recipe)
    for _ in range(150):
        state, _ = training_step(state, recipe, data.inputs, data.labels)
    parameters = dict(parameters_of(state, recipe))
    assert model.accuracy(parameters, data.inputs, data.labels) > 0.9
    assert model.loss(parameters, data.inputs, data.labels) < 0.5


# ---- tied embeddings ----


def test_a_tied_model_is_an_untied_one_whose_head_is_the_embedding() -> None:
    """Forward to the bit; backward the gradient of both uses."""
    tied, untied = small(2, tied=True), small(2)
    for storage in (None, FP32, CONFIGURATIONS["pure_bf16"]):
        parameters, inputs, targets = problem(tied, 6, np.float32)
        assert "head.weight" not in parameters
        twice = {**parameters, "head.weight": parameters["token"].T.copy()}
        assert same_bits(tied.forward(parameters, inputs, storage), untied.forward(twice, inputs, storage))
        assert tied.loss(parameters, inputs, targets) == untied.loss(twice, inputs, targets)
        assert tied.accuracy(parameters, inputs, targets) == untied.accuracy(twice, inputs, targets)
        ours, theirs = (
            model.loss_and_gradients(given, inputs, targets, loss_scale=4.0, storage=storage)
            for model, given in ((tied, parameters), (untied, twice))
        )
        assert ours.loss == theirs.loss
        assert same_bits(ours.activations, theirs.activations)
        both = theirs.weights["token"] + theirs.weights["head.weight"].T
        if storage is not None:
            both = np.asarray(round_to(both, storage.gradients))
        expected = {**theirs.weights, "token": both}
        del expected["head.weight"]
        assert same_bits(ours.weights, expected)


def test_a_tied_model_starts_as_the_untied_one_does() -> None:
    untied = Transformer(9, layers=2).init(3)
    tied = Transformer(9, layers=2, tied=True).init(3)
    del untied["head.weight"]
    assert same_bits(tied, untied)


def test_the_gradients_of_two_uses_are_rounded_before_they_are_added_and_after() -> None:
    """Where the sum of the exact gradients, rounded once, would be another number: as in torch."""
    model = small(tied=True)
    storage = StorageConfig.parse("weights=fp32,gradients=e6m2")
    parameters, inputs, targets = problem(model, 6, np.float32)
    found = model.loss_and_gradients(parameters, inputs, targets, storage=storage).weights["token"]
    exact = model.loss_and_gradients(parameters, inputs, targets).weights["token"]
    assert is_representable(found, "e6m2").all()
    assert not np.array_equal(found, round_to(exact, "e6m2"))
    np.testing.assert_allclose(found, exact, rtol=0.5, atol=0.2 * np.abs(exact).max())


# ---- the places ----


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("storage", [ROLES, CAST_ROLES], ids=["roles", "cast"])
def test_each_place_by_hand(storage: StorageConfig, tied: bool) -> None:
    """One layer of two heads, every rounding written out."""
    model = Transformer(7, context=6, width=8, heads=2, hidden=12, tied=tied)
    rng = np.random.default_rng(1)
    p: dict[str, Array] = {
        name: (array + rng.normal(size=array.shape) * 0.5).astype(np.float32) for name, array in model.init(0).items()
    }
    inputs, targets = rng.integers(0, 7, (2, 3, 6))
    ours, found = (
        model.forward(p, inputs, storage),
        model.loss_and_gradients(p, inputs, targets, loss_scale=2.0**10, storage=storage),
    )
    a: dict[str, Array] = {}
    g: dict[str, Array] = {}
    w: dict[str, Array] = {}

    def heads(x: Array) -> Array:
        return x.reshape(3, 6, 2, 4).transpose(0, 2, 1, 3)

    def rows(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(18, 8)

    def norm(name: str, x: Array) -> tuple[Array, Array]:
        centred = x - role("sensitive", x.mean(axis=1, keepdims=True))
        variance = role("sensitive", (centred**2).mean(axis=1, keepdims=True))
        deviation = np.sqrt(variance + np.float32(1e-5))
        normal = role("sensitive", centred / deviation)
        a[name] = role("activations", normal * p[f"{name}.weight"] + p[f"{name}.bias"])
        return normal, deviation

    def back_through_norm(name: str, normal: Array, deviation: Array) -> Array:
        w[f"{name}.weight"] = stored_gradient((g[name] * normal).sum(axis=0))
        w[f"{name}.bias"] = stored_gradient(g[name].sum(axis=0))
        by_normal = g[name] * p[f"{name}.weight"]
        mean = role("sensitive", by_normal.mean(axis=1, keepdims=True))
        slope = role("sensitive", (by_normal * normal).mean(axis=1, keepdims=True))
        return np.asarray((by_normal - mean - normal * slope) / deviation)

    def linear(name: str, x: Array) -> Array:
        return role("activations", times(storage, x, p[f"{name}.weight"]) + p[f"{name}.bias"])

    def back_through_linear(name: str, x: Array) -> Array:
        w[f"{name}.weight"] = stored_gradient(times(storage, x.T, g[name], "b"))
        w[f"{name}.bias"] = stored_gradient(g[name].sum(axis=0))
        return role("activation_gradients", times(storage, g[name], p[f"{name}.weight"].T, "a"))

    one = "layer1."
    a["embedding"] = role("activations", (p["token"][inputs] + p["position"]).reshape(18, 8))
    first = norm(one + "attention_norm", a["embedding"])
    a[one + "qkv"] = linear(one + "qkv", a[one + "attention_norm"])
    q, k, v = (heads(a[one + "qkv"][:, i : i + 8]) for i in (0, 8, 16))
    a[one + "scores"] = role("activations", times(storage, q, k.swapaxes(2, 3)) * 0.5)
    seen = np.tril(np.ones((6, 6), bool))
    highest = np.where(seen, a[one + "scores"], -np.inf).max(axis=3, keepdims=True)
    exponentials = role("sensitive", np.exp(role("sensitive", np.where(seen, a[one + "scores"] - highest, 0)))) * seen
    totals = role("sensitive", exponentials.sum(axis=3, keepdims=True))
    a[one + "probabilities"] = role("activations", exponentials / totals)
    a[one + "mixed"] = role("activations", rows(times(storage, a[one + "probabilities"], v)))
    a[one + "projection"] = linear(one + "projection", a[one + "mixed"])
    a[one + "attention_sum"] = role("activations", a["embedding"] + a[one + "projection"])
    second = norm(one + "mlp_norm", a[one + "attention_sum"])
    a[one + "up"] = linear(one + "up", a[one + "mlp_norm"])
    a[one + "hidden"] = role("activations", gelu(a[one + "up"]))
    a[one + "down"] = linear(one + "down", a[one + "hidden"])
    a[one + "output"] = role("activations", a[one + "attention_sum"] + a[one + "down"])
    third = norm("norm", a[one + "output"])
    head = p["token"].T if tied else p["head.weight"]
    a["logits"] = role("activations", times(storage, a["norm"], head))

    labels = targets.reshape(-1)
    shifted = role("sensitive", a["logits"] - a["logits"].max(axis=1, keepdims=True))
    powers = role("sensitive", np.exp(shifted))
    sums = role("sensitive", powers.sum(axis=1, keepdims=True))
    losses = role("sensitive", np.log(sums)[:, 0] - shifted[range(18), labels])
    error = role("sensitive", powers / sums)
    error[range(18), labels] -= 1
    g["logits"] = role("activation_gradients", error * np.float32(2**10 / 18))

    by_head = stored_gradient(times(storage, a["norm"].T, g["logits"], "b"))
    g["norm"] = role("activation_gradients", times(storage, g["logits"], head.T, "a"))
    g[one + "output"] = role("activation_gradients", back_through_norm("norm", *third))
    g[one + "down"] = g[one + "output"]
    g[one + "hidden"] = back_through_linear(one + "down", a[one + "hidden"])
    g[one + "up"] = role("activation_gradients", g[one + "hidden"] * gelu_slope(a[one + "up"]))
    g[one + "mlp_norm"] = back_through_linear(one + "up", a[one + "mlp_norm"])
    branch = back_through_norm(one + "mlp_norm", *second)
    g[one + "attention_sum"] = role("activation_gradients", g[one + "output"] + branch)
    g[one + "projection"] = g[one + "attention_sum"]
    g[one + "mixed"] = back_through_linear(one + "projection", a[one + "mixed"])
    mixed = heads(g[one + "mixed"])
    g[one + "probabilities"] = role("activation_gradients", times(storage, mixed, v.swapaxes(2, 3), "a"))
    weighted = role("sensitive", (g[one + "probabilities"] * a[one + "probabilities"]).sum(axis=3, keepdims=True))
    g[one + "scores"] = role("activation_gradients", a[one + "probabilities"] * (g[one + "probabilities"] - weighted))
    by_q, by_k = (
        times(storage, g[one + "scores"], k, "a") * 0.5,
        times(storage, g[one + "scores"].swapaxes(2, 3), q, "a") * 0.5,
    )
    by_v = times(storage, a[one + "probabilities"].swapaxes(2, 3), mixed, "b")
    g[one + "qkv"] = role("activation_gradients", np.concatenate([rows(by_q), rows(by_k), rows(by_v)], axis=1))
    g[one + "attention_norm"] = back_through_linear(one + "qkv", a[one + "attention_norm"])
    branch = back_through_norm(one + "attention_norm", *first)
    g["embedding"] = role("activation_gradients", g[one + "attention_sum"] + branch)
    token = np.zeros((7, 8), np.float32)
    for code, row in zip(inputs.reshape(-1), g["embedding"], strict=True):
        token[code] += row
    if tied:
        w["token"] = role("gradients", stored_gradient(token) + by_head.T)
    else:
        w["token"], w["head.weight"] = stored_gradient(token), by_head
    w["position"] = stored_gradient(g["embedding"].reshape(3, 6, 8).sum(axis=0))

    assert found.loss == float(role("sensitive", losses.mean()))
    for got, expected in ((ours, a), (found.activations, g), (found.weights, w)):
        assert set(got) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)
    assert_each_in_its_format(ours, found)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), layers=st.integers(1, 2), activation=st.sampled_from(["relu", "gelu"]))
def test_what_is_stored_has_the_format_of_its_role_and_fp32_rounds_nothing(
    seed: int, layers: int, activation: str
) -> None:
    model = small(layers, activation)
    parameters, inputs, targets = problem(model, seed, np.float32)
    found = model.loss_and_gradients(parameters, inputs, targets, loss_scale=16.0, storage=ROLES)
    assert_each_in_its_format(model.forward(parameters, inputs, ROLES), found)
    plain = model.loss_and_gradients(parameters, inputs, targets, loss_scale=16.0)
    fp32 = model.loss_and_gradients(parameters, inputs, targets, loss_scale=16.0, storage=FP32)
    assert fp32.loss == plain.loss
    assert same_bits(fp32.weights, plain.weights)
    assert same_bits(fp32.activations, plain.activations)
    for name, activation_ in model.forward(parameters, inputs).items():
        assert plain.activations[name].shape == activation_.shape
        assert plain.activations[name].dtype == activation_.dtype == np.float32
    for name, array in parameters.items():
        assert plain.weights[name].shape == array.shape
        assert plain.weights[name].dtype == np.float32


@pytest.mark.parametrize("name", [*CONFIGURATIONS, "fp32,accumulator=bf16"])
def test_every_configuration_computes_nearly_the_same(name: str) -> None:
    storage, model = StorageConfig.parse(name), small()
    parameters, inputs, targets = problem(model, 8, np.float32)
    found = model.loss_and_gradients(parameters, inputs, targets, loss_scale=4.0, storage=storage)
    exact = model.loss_and_gradients(parameters, inputs, targets, loss_scale=4.0)
    assert same_bits(found.weights, exact.weights) == (storage == FP32)
    for key, array in found.weights.items():
        if key != "position":
            assert np.linalg.norm(array - exact.weights[key]) < 0.4 * np.linalg.norm(exact.weights[key]), key


# ---- refusals ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 0}, "vocabulary must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"heads": 3}, r"width must be a multiple of heads \(3\), got 32"),
        ({"activation": "sigmoid"}, "activation must be one of relu, gelu"),
    ],
)
def test_bad_shapes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(**{"vocabulary": 5, **change})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 5), int), r"n in 1\.\.4, got int64 of shape \(2, 5\)"),
        (np.zeros((2, 0), int), "n in 1"),
        (np.zeros(4, int), "n in 1"),
        (np.zeros((2, 4)), "inputs must be integers"),
        (np.full((2, 4), 5), r"inputs must lie in 0\.\.4, the vocabulary, got 5\.\.5"),
        (np.full((2, 4), -1), r"inputs must lie in 0\.\.4"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().loss(small().init(), inputs, inputs)


def test_targets_that_do_not_fit_are_refused() -> None:
    codes = np.zeros((2, 4), int)
    for call in (small().loss, small().accuracy, small().loss_and_gradients):
        with pytest.raises(ValueError, match=r"targets must have shape \(2, 4\), one per character"):
            call(small().init(), codes, codes[:, :3])
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4"):
        small().loss(small().init(), codes, codes + 5)
