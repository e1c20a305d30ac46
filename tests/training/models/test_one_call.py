"""What is one compiled call of float32 has the bits of the operations that are written out, on every hard value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab.numerics import codec as codecs
from precision_lab.numerics import layers
from precision_lab.numerics.formats import FORMATS, get_format
from precision_lab.training.flat import Views, flatten
from precision_lab.training.models import MLP, Array, FineTuning, LeastSquares, Transformer, parts, places
from precision_lab.training.models.places import separate_operations
from precision_lab.training.optimizers import AdamW
from precision_lab.training.step import Recipe, begin, training_step
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig

FORMAT_NAMES = (*FORMATS, "e5m10", "e6m9", "e7m8", "e8m0_ieee", "e2m1_ieee", "e8m22", "e5m22")


@st.composite
def given_values(draw: st.DrawFn) -> tuple[str, StorageConfig]:
    """A kind of values and any format for every role.

    Where there are NaN, formats that have them: others make a zero of the opposite sign of it, and that of the larger
    of two numbers, one of which is NaN, is NumPy's choice.
    """
    kind = draw(st.sampled_from(KINDS))
    names = [name for name in FORMAT_NAMES if "special" not in kind or get_format(name).has_nan]
    roles: Any = {
        role: get_format(draw(st.sampled_from(names)))
        for role in ("weights", "activations", "activation_gradients", "gradients", "sensitive")
    }
    if operands := draw(st.sampled_from([None, None, "fp8_e4m3fn", "bf16", "e6m9", "fp32"])):
        roles |= {"operands": get_format(operands), "gradient_operands": get_format("fp8_e5m2")}
    return kind, StorageConfig(**roles, master=get_format("fp32"), transient_weights=draw(st.booleans()))


KINDS = ("usual", "spread", "some special", "special")
SPECIAL = np.array(
    [
        *(0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-127), 2.0**-126, 2.0**-24, 2.0**-25, 65519.0, 65520.0),
        *(3.4028235e38, -3.39e38, 448.0, 464.0, 465.0, 240.0, 1.0, -1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 88.8),
    ],
    np.float32,
)


def array(rng: np.random.Generator, kind: str, *shape: int) -> Array:
    """Normal numbers, numbers of every size, or hard ones, alone or among others."""
    x = rng.standard_normal(shape)
    if kind == "spread":
        x = np.ldexp(x, rng.integers(-145, 124, shape))  # normal numbers are below 16: float32 holds them
    x = x.astype(np.float32)
    if kind == "usual":
        return x
    share = {"spread": 0.0, "some special": 0.02, "special": 0.6}[kind]
    return np.where(rng.random(shape) < share, rng.choice(SPECIAL, shape), x)


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare the bits; which of two NaN comes out of an operation is the processor's choice."""
    if isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(ours, float):
        np.testing.assert_equal(ours, theirs)
    else:
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        alike = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
        assert alike.all(), (ours[~alike], theirs[~alike])


def apart(function: Callable[[], Any]) -> Any:
    with separate_operations():
        return function()


def both_ways(function: Callable[[], Any]) -> None:
    with np.errstate(all="ignore"):
        assert_same(function(), apart(function))


Case = Callable[[np.random.Generator, str, StorageConfig], Callable[[], Any]]


def _linear(rng: np.random.Generator, kind: str, storage: StorageConfig) -> Callable[[], Any]:
    m, k, n = rng.integers(1, 40, 3)
    x, w, b = array(rng, kind, m, k), array(rng, kind, k, n), array(rng, kind, n)
    return lambda: (places.linear(x, w, b, storage), places.linear(x, w.T.copy().T, None, storage))


def _linear_gradients(rng: np.random.Generator, kind: str, storage: StorageConfig) -> Callable[[], Any]:
    m, k, n = rng.integers(1, 40, 3)
    x, w, g = array(rng, kind, m, k), array(rng, kind, k, n), array(rng, kind, m, n)
    return lambda: (places.linear_weight_gradients(x, g, storage), places.linear_gradient(g, w, storage))


def _cross_entropy(rng: np.random.Generator, kind: str, storage: StorageConfig) -> Callable[[], Any]:
    m, n = rng.integers(1, 40, 2)
    logits, labels, scale = array(rng, kind, m, n), rng.integers(0, n, m), float(rng.choice([1.0, 1000.0, 2.0**16]))
    return lambda: parts.mean_cross_entropy(logits, labels, scale, storage)


def _perceptron(rng: np.random.Generator, kind: str, storage: StorageConfig) -> Callable[[], Any]:
    """None to three layers between inputs and logits.

    Where a format has no NaN, there is none: the sign of the zero that it makes of one would be the processor's choice.
    """
    formats = (storage.activations, storage.activation_gradients, storage.weights, storage.gradients, storage.sensitive)
    tame = not all(fmt.has_nan for fmt in formats)
    kind = "usual" if tame else kind
    model = MLP(tuple(int(width) for width in rng.integers(1, 40, rng.integers(2, 6))))
    shapes = {name: w.shape for name, w in model.init().items()}
    flat = array(rng, kind, sum(map(math.prod, shapes.values())))
    parameters = Views(flat / 8 if tame else flat, shapes)
    rows, scale = int(rng.integers(1, 40)), 1.0 if tame else float(rng.choice([1.0, 1000.0, 2.0**16]))
    inputs, labels = array(rng, kind, rows, model.sizes[0]), rng.integers(0, model.sizes[-1], rows)

    def run() -> Any:
        found = model.loss_and_gradients(parameters, inputs, labels, loss_scale=scale, storage=storage)
        assert list(found.weights) == list(shapes)
        return found.loss, (*found.weights.values(), *found.activations.values())

    return run


def _relu(rng: np.random.Generator, kind: str, storage: StorageConfig) -> Callable[[], Any]:
    g, x = array(rng, kind, 7, 9), array(rng, kind, 7, 9)
    return lambda: parts.relu_gradient(g, x)


def _gelu(rng: np.random.Generator, kind: str, storage: StorageConfig) -> Callable[[], Any]:
    x = array(rng, kind, int(rng.integers(1, 9)), 300)
    return lambda: parts.gelu_and_slope(x)


def _layer_norm(rng: np.random.Generator, kind: str, storage: StorageConfig) -> Callable[[], Any]:
    m, n = rng.integers(1, 40, 2)
    x, w, b, g = array(rng, kind, m, n), array(rng, kind, n), array(rng, kind, n), array(rng, kind, m, n)

    def both() -> Any:
        result, kept = parts.layer_norm(x, w, b, storage)
        return result, tuple(kept), parts.layer_norm_gradients(g, kept, w, storage)

    return both


def _attention(rng: np.random.Generator, kind: str, storage: StorageConfig) -> Callable[[], Any]:
    shape = (*rng.integers(1, 4, 2), n := rng.integers(1, 12), n)
    scores, g, p = (array(rng, kind, *shape) for _ in range(3))
    return lambda: (parts.causal_softmax(scores, storage), parts.causal_softmax_gradient(g, p, storage))


CASES: dict[str, Case] = {
    "linear": _linear,
    "gradients of linear": _linear_gradients,
    "cross-entropy": _cross_entropy,
    "perceptron": _perceptron,
    "relu": _relu,
    "gelu": _gelu,
    "layer norm": _layer_norm,
    "attention": _attention,
}


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 2**32), values=given_values())
@settings(max_examples=150, deadline=None)
def test_one_call_is_the_operations_one_after_the_other(
    case: str, seed: int, values: tuple[str, StorageConfig]
) -> None:
    both_ways(CASES[case](np.random.default_rng(seed), *values))


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_a_rounding_in_a_call_is_that_of_the_codec(name: str) -> None:
    """On patterns around every boundary, the bits of NaN included, which a product with 1 leaves as they are."""
    from precision_lab.numerics.verification import hard_patterns

    fmt = get_format(name)
    x = hard_patterns().view(np.float32)
    with np.errstate(invalid="ignore"):
        x = x + np.float32(-0.0)  # an operation makes every NaN quiet
    found, expected = layers.cast_operand(x, fmt), codecs.codec(fmt).round(x)  # beside a NaN nothing is scaled
    keeps = (
        fmt.specials == "ieee" and 0 < fmt.mantissa_bits < 22
    )  # of the others one loop or the other keeps no payload
    numbers = slice(None) if keeps else ~np.isnan(expected)
    np.testing.assert_array_equal(found.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e5m2", "bf16", "fp16", "e2m1_ieee", "e8m0_ieee"])
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), shift=st.integers(-160, 160))
@settings(max_examples=60, deadline=None)
def test_a_scaled_cast_is_that_of_ldexp(name: str, seed: int, kind: str, shift: int) -> None:
    fmt, x = get_format(name), array(np.random.default_rng(seed), kind, 5, 60)
    with np.errstate(all="ignore"):
        x = np.ldexp(x, shift)
        k = places.operand_scale(float(np.abs(x).max()), fmt)
        scaled = codecs.codec(fmt).round(np.ldexp(x, k).reshape(-1)).reshape(x.shape)
        assert_same(layers.cast_operand(x, fmt), np.ldexp(scaled, -k))


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_operand_is_cast_however_it_lies_in_memory(order: Any) -> None:
    x = np.asarray(array(np.random.default_rng(0), "spread", 6, 4), order=order)
    storage = CONFIGURATIONS["fp8_hybrid"]
    both_ways(lambda: places.product(x, x.T, storage))


MODELS: dict[str, tuple[Any, Any, Any]] = {
    "relu": (MLP((6, 9, 5)), np.random.default_rng(0).random((12, 6), np.float32), np.arange(12) % 5),
    "sigmoid": (MLP((6, 9, 7, 5), "sigmoid"), np.random.default_rng(1).random((12, 6), np.float32), np.arange(12) % 5),
    "least squares": (LeastSquares(3), np.random.default_rng(2).random((12, 3), np.float32), np.arange(12.0)),
    "fine-tuning": (
        FineTuning(np.random.default_rng(3).random((6, 4), np.float32), 0.1),
        np.random.default_rng(5).random((12, 6), np.float32),
        np.random.default_rng(6).random((12, 4), np.float32),
    ),
    **{
        f"transformer, {activation}": (
            Transformer(7, 8, 8, 2, 2, 12, activation),
            np.random.default_rng(3).integers(0, 7, (4, 6)),
            np.random.default_rng(4).integers(0, 7, (4, 6)),
        )
        for activation in ("relu", "gelu")
    },
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("model", MODELS)
def test_a_training_is_the_same_both_ways(model: str, name: str) -> None:
    of, inputs, targets = MODELS[model]
    for storage in (CONFIGURATIONS[name], replace(CONFIGURATIONS[name], sensitive=get_format("bf16"))):

        def steps(storage: StorageConfig = storage) -> list[Any]:
            parameters = of.init(5)
            recipe = Recipe(of, AdamW(1e-2, epsilon=1e-3), storage, {key: w.shape for key, w in parameters.items()})
            state, found = begin(parameters, recipe), []
            for _ in range(3):
                state, record = training_step(state, recipe, inputs, targets, micro_batches=2)
                arrays = {**record.gradients.weights, **record.gradients.activations, **state.optimizer.buffers}
                found.append((record.loss, record.max_abs, {key: a.tobytes() for key, a in arrays.items()}))
            return found

        assert steps() == apart(steps)


def test_apart_every_rounding_goes_through_the_codec_of_the_places() -> None:
    """So that another can be put there; and in one call none does but that of the inputs."""
    model, inputs, labels = MODELS["relu"]
    counts = []
    for context in (separate_operations, None):
        seen: list[int] = []

        def counting(fmt: Any, seen: list[int] = seen) -> Any:
            def rounded(x: Array) -> Array:
                seen.append(x.size)
                return codecs.codec(fmt).round(x)

            return codecs.codec(fmt)._replace(round=rounded)

        with patch.object(places, "codec", counting):

            def run() -> Any:
                return model.loss_and_gradients(model.init(), inputs, labels, storage=CONFIGURATIONS["master_bf16"])

            apart(run) if context else run()
        counts.append(seen)
    # inputs; preactivation, logits; gradients of logits, weight, bias, output, weight, bias
    assert counts[0] == [72, 108, 60, 60, 45, 5, 108, 54, 9]
    assert counts[1] == [72]


@pytest.mark.parametrize("spoil", ["label", "scale", "order", "inputs", "dtype"])
def test_what_a_single_call_does_not_take_is_found_as_ever(spoil: str) -> None:
    """An error has its words, and parameters in another order are taken by their names."""
    model, inputs, labels = MODELS["relu"]
    named, scale, storage = model.init(), 1.0, CONFIGURATIONS["fp32"]
    expected = model.loss_and_gradients(named, inputs, labels, storage=storage).loss
    if spoil == "order":
        named = dict(reversed(named.items()))
    flat = flatten(named).astype(np.float64 if spoil == "dtype" else np.float32)
    parameters = Views(flat, {name: w.shape for name, w in named.items()})
    if spoil == "label":
        labels = np.where(labels == 4, 5, labels)
    scale = math.inf if spoil == "scale" else scale
    inputs = inputs[:, :-1] if spoil == "inputs" else inputs

    def run() -> Any:
        return model.loss_and_gradients(parameters, inputs, labels, loss_scale=scale, storage=storage)

    if spoil == "order":
        assert run().loss == expected
        return
    with pytest.raises(ValueError, match=r"labels must lie|loss_scale must be|inputs must have|must be float32"):
        run()


def test_in_float64_nothing_is_one_call() -> None:
    assert not places.in_one_call(np.zeros(1))
    assert places.in_one_call(np.zeros(1, np.float32))
    with separate_operations():
        assert not places.in_one_call(np.zeros(1, np.float32))


def test_shapes_that_do_not_fit_are_refused() -> None:
    """A compiled loop would read what is not there."""
    a, fmt = np.ones((2, 3), np.float32), get_format("fp32")
    row = np.ones(2, np.float32)
    calls: dict[str, Callable[[], object]] = {
        "factors": lambda: layers.product(a, a, fmt),
        "bias must have shape": lambda: layers.linear(a, a.T, np.ones(3, np.float32), fmt),
        "one shape": lambda: layers.linear_gradients(a.T, a, a[:1], fmt, fmt),
        "weight and bias must": lambda: layers.layer_norm(a, row, row, 1e-5, fmt, fmt),
    }
    formats = layers.PerceptronFormats(fmt, fmt, fmt, fmt, fmt)
    labels = np.zeros(2, np.int64)
    for parameters, inputs, classes in ((7, a, labels), (8, a.T, labels), (8, a, labels[:1])):
        arguments = np.ones(parameters, np.float32), (3, 2), inputs, classes, 1.0, formats
        with pytest.raises(ValueError, match="must have shapes"):
            layers.perceptron(*arguments)
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            call()
    for function in (layers.relu_gradient, lambda x, y: layers.causal_softmax_gradient(x, y, fmt, fmt)):
        with pytest.raises(ValueError, match="one shape"):
            function(a, a.T)
