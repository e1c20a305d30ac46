"""Optimizers against their definitions in exact arithmetic, and the promises about memory, purity and bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab.numerics.codec import codec, stored_dtype
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.rounding import Array, round_to
from precision_lab.training.flat import Views, flatten
from precision_lab.training.optimizer_state import (
    OptimizerState,
    buffers,
    start,
    update,
    visible_weights,
)
from precision_lab.training.optimizers import SGD, Adam, AdamW, Optimizer, promoted
from precision_lab.training.storage import CONFIGURATIONS, FP32, StorageConfig
from tests.training.helpers import FP32_FORMAT, Exact, exact_grow, exact_product, f32

BF16 = get_format("bf16")
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(0.01),
    "sgd with decay": SGD(0.01, weight_decay=0.1),
    "momentum": SGD(0.01, momentum=0.9),
    "adam": Adam(1e-3),
    "adam with decay": Adam(1e-3, weight_decay=0.1),
    "adamw": AdamW(1e-3, weight_decay=0.1),
    "short memory": AdamW(1e-3, beta1=0.25, beta2=0.5, weight_decay=0.1),
}


def numbers(n: int, seed: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def run(
    parameters: Array, gradients: list[Array], optimizer: Optimizer, storage: StorageConfig, **options: Any
) -> tuple[OptimizerState, list[Array]]:
    state = start(parameters, optimizer, storage)
    intended = []
    for gradient in gradients:
        state, u = update(state, gradient, optimizer, storage, **options)
        intended.append(u)
    return state, intended


def test_states_are_compared_by_identity() -> None:
    """Arrays have no one answer; nobody is to ask them by accident."""
    state = OptimizerState(0, {"weights": np.ones(2)})
    assert state == state
    assert state != OptimizerState(0, state.buffers)
    assert len({state, OptimizerState(0, state.buffers)}) == 2


def bits(state: OptimizerState) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.buffers.items()}


# ---- the definition, a number at a time, in exact arithmetic ----


def wider(a: FloatFormat, b: FloatFormat) -> FloatFormat:
    """Of the formats in these tests: equal, fp8_e5m2 in bf16, or else one is fp32, or e6m9 is beside bf16."""
    return a if a == b else BF16 if {a.name, b.name} == {"fp8_e5m2", "bf16"} else FP32_FORMAT


def exact_step(
    t: int, held: dict[str, Fraction], gradient: float, o: Optimizer, s: StorageConfig
) -> dict[str, Fraction]:
    """The table of the module's docstring."""
    held = dict(held)
    to_updated, to_first, to_second = Exact(s.updated), Exact(s.first_moment), Exact(s.second_moment)
    g = held["gradients"] = Exact(s.gradients)(gradient)
    if s.main_gradients:
        g = held["main_gradients"] = Exact(s.main_gradients)(g)
    of_g = s.main_gradients or s.gradients
    w = held["master" if s.master else "weights"]
    lr, decay = o.learning_rate, o.weight_decay
    if decay and not isinstance(o, AdamW):
        to_both = Exact(wider(of_g, s.updated))
        g = to_both(to_both(decay) * w + g)
    before = w
    if isinstance(o, AdamW) and s.update == "ties_to_even":
        w = to_updated(w * f32(1 - lr * decay))
    if isinstance(o, Adam):
        m, v = held["first_moment"], held["second_moment"]
        weight, difference = f32(1 - o.beta1), f32(g - m)
        m = to_first(weight * difference + m if o.beta1 > 0.5 else f32(weight - 1) * difference + g)
        held["first_moment"] = m
        scaled = f32(f32(1 - o.beta2) * g)
        if s.update == "collage_plus":
            pair = exact_product(v, held["second_moment_word"], o.beta2, s.second_moment)
            v, held["second_moment_word"] = exact_grow(*pair, to_second(scaled * g), to_second)
        else:
            v = to_second(v * f32(o.beta2))
            v = to_second(scaled * g + v)
        held["second_moment"] = v
        d = to_second(math.sqrt(v))
        d = to_second(d / f32((1 - o.beta2**t) ** 0.5))
        d = to_second(d + to_second(o.epsilon))
        u = f32(f32(f32(-lr / (1 - o.beta1**t)) * m) / d)
        added: Callable[[Fraction], Fraction] = lambda base: base + u  # noqa: E731
    else:
        assert isinstance(o, SGD)
        fmt = of_g
        if o.momentum:
            fmt = s.first_moment
            first = held["first_moment"]
            g = to_first(g if t == 1 else to_first(first * f32(o.momentum)) + g)
            held["first_moment"] = g
        rate = Exact(wider(fmt, s.updated))(lr)
        added = lambda base: base - rate * g  # noqa: E731
    if isinstance(o, AdamW) and s.update != "ties_to_even":
        total = f32(added(Fraction(0)) - f32(lr * decay) * before)
        added = lambda base: base + total  # noqa: E731
    match s.update:
        case "ties_to_even":
            w = to_updated(added(w))
        case "kahan":
            y = to_updated(added(held["compensation"]))
            new = to_updated(w + y)
            w, held["compensation"] = new, to_updated(y - to_updated(new - w))
        case _:
            w, held["second_word"] = exact_grow(w, held["second_word"], to_updated(added(Fraction(0))), to_updated)
    if s.master:
        held["master"] = w
    held["weights"] = Exact(s.weights)(w)
    return held


STORAGES = [
    *("pure_bf16", "pure_fp16", "master_bf16", "megatron_bf16", "bf16_fp32_grads", "bf16_fp32_moments"),
    *("bf16_kahan", "collage_light", "collage_plus", "weights=e6m9", "weights=fp16,update=kahan"),
    *("bf16_kahan_fp32_v", "megatron_fp16", "weights=bf16,gradients=fp32,main_gradients=fp8_e5m2"),
    *("weights=bf16,gradients=e6m9", "weights=fp8_e5m2,gradients=fp8_e5m2,master=bf16", "fp32"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("text", STORAGES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_every_buffer_is_what_exact_arithmetic_says(text: str, optimizer: Optimizer, data: st.DataObject) -> None:
    storage = StorageConfig.parse(text)
    if isinstance(optimizer, Adam):
        optimizer = replace(optimizer, epsilon=1e-3)  # not zero in any of the formats
    magnitudes = st.floats(2.0**-8, 4, width=32)
    signed = magnitudes | magnitudes.map(lambda x: -x) | st.just(0.0)
    weights = data.draw(st.lists(signed, min_size=3, max_size=3))
    gradients = data.draw(st.lists(st.lists(signed, min_size=3, max_size=3), min_size=3, max_size=3))
    state = start(np.array(weights, np.float32), optimizer, storage)
    names = buffers(optimizer, storage)
    exact = []
    for weight in weights:
        updated = Exact(storage.updated)(weight)
        kept = dict.fromkeys(names, Fraction(0)) | {"weights": Exact(storage.weights)(updated)}
        exact.append(kept | ({"master": updated} if storage.master else {}))
    for t, gradient in enumerate(gradients):
        state, _ = update(state, np.array(gradient, np.float32), optimizer, storage)
        exact = [exact_step(t + 1, kept, g, optimizer, storage) for kept, g in zip(exact, gradient, strict=True)]
        for name, fmt in names.items():
            ours = codec(fmt).decode(state.buffers[name])
            assert [Fraction(float(x)) for x in ours] == [kept[name] for kept in exact], name


# ---- the series 1 + 1000 * bf16(.001) ----

TERM = float(round_to(0.001, "bf16"))
RIGHT = float(round_to(1 + 1000 * TERM, "bf16"))  # 1 + 1000 * TERM is a double


def after_a_thousand(name: str, n: int = 3) -> Array:
    """Minus .001 is the gradient and the learning rate is 1: R(1) * R(.001) is added in every step."""
    storage = CONFIGURATIONS[name]
    state, _ = run(np.ones(n, np.float32), [np.full(n, -0.001, np.float32)] * 1000, SGD(1.0), storage, seed=7)
    return visible_weights(state, storage)


def test_the_series_in_plain_bf16_stays_where_it_is() -> None:
    assert RIGHT == 2.0
    assert after_a_thousand("pure_bf16").tolist() == [1.0] * 3


@pytest.mark.parametrize("name", ["bf16_kahan", "collage_light", "collage_plus", "master_bf16"])
def test_the_series_with_a_second_word_ends_at_the_right_value(name: str) -> None:
    assert after_a_thousand(name).tolist() == [RIGHT] * 3


def test_the_series_rounded_stochastically_is_right_in_the_mean() -> None:
    """By Freedman's inequality this fails with a probability below 1e-9, were the numbers truly random.

    Every step adds TERM in expectation, exactly. What it adds instead differs by at most q = 2^-6 (the spacing beyond
    2) and has a variance of at most TERM * (q - TERM), given the past. So the sum over all n elements and 1000 steps
    exceeds its mean by x with a probability of at most exp(-x^2 / (2 * (V + q * x / 3))), and likewise below.
    """
    n, q = 5000, 2.0**-6
    variance = n * 1000 * TERM * (q - TERM)
    weights = after_a_thousand("bf16_stochastic", n).astype(np.float64)
    x = n * 0.012
    assert 2 * math.exp(-(x**2) / (2 * (variance + q * x / 3))) < 1e-9
    assert abs(weights.mean() - (1 + 1000 * TERM)) < 0.012
    # and it is spread as independent roundings are: a random walk, not one number
    assert 0.3 < weights.var() / (variance / n) < 1


# ---- memory ----

BYTES_WITH_ADAM = {
    **{"fp32": 16, "autocast_fp16": 16, "autocast_bf16": 16, "master_fp16": 16, "master_bf16": 16, "megatron_bf16": 18},
    **{"bf16_fp32_grads": 14, "bf16_fp32_moments": 12, "pure_bf16": 8, "pure_fp16": 8, "bf16_stochastic": 8},
    **{"bf16_kahan": 10, "collage_light": 10, "collage_plus": 12, "fp8_hybrid": 16},
    **{"megatron_fp16": 20, "bf16_stochastic_fp32_v": 10, "bf16_kahan_fp32_v": 12},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_bytes_per_parameter_with_adam(name: str) -> None:
    state = start(numbers(10, 0), Adam(1e-3), CONFIGURATIONS[name])
    assert state.nbytes == 10 * BYTES_WITH_ADAM[name]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    "text",
    [*CONFIGURATIONS, "weights=e6m9", "weights=tf32", "weights=fp32,master=fp32", "weights=fp32,main_gradients=fp32"],
)
def test_a_state_holds_what_buffers_names_in_its_own_dtype(text: str, optimizer: Optimizer) -> None:
    storage = StorageConfig.parse(text)
    gradient = numbers(17, 2)
    state = start(numbers(17, 1), optimizer, storage)
    for _ in range(3):
        expected = buffers(optimizer, storage)
        assert list(state.buffers) == list(expected)
        for name, fmt in expected.items():
            assert state.buffers[name].dtype == stored_dtype(fmt)
            assert state.buffers[name].shape == (17,)
        assert state.nbytes == sum(17 * stored_dtype(fmt).itemsize for fmt in expected.values())
        held = [*state.buffers.values(), gradient]
        assert not any(np.shares_memory(a, b) for i, a in enumerate(held) for b in held[:i])
        state, _ = update(state, gradient, optimizer, storage)


def test_buffers_of_an_optimizer_without_moments() -> None:
    assert list(buffers(SGD(0.1), FP32)) == ["weights", "gradients"]
    assert list(buffers(SGD(0.1, momentum=0.9), FP32)) == ["weights", "gradients", "first_moment"]
    assert list(buffers(SGD(0.1), CONFIGURATIONS["collage_plus"])) == ["weights", "gradients", "second_word"]
    assert buffers(AdamW(0.1), CONFIGURATIONS["collage_plus"]) == dict.fromkeys(
        ("weights", "gradients", "first_moment", "second_moment", "second_word", "second_moment_word"), BF16
    )
    assert buffers(SGD(0.1), CONFIGURATIONS["autocast_bf16"]) == {"gradients": FP32_FORMAT, "master": FP32_FORMAT}


def test_bf16_is_held_as_bfloat16_and_a_custom_format_as_codes() -> None:
    state = start(np.array([1.0, -2.0], np.float32), SGD(0.1), StorageConfig.parse("weights=e6m9,gradients=bf16"))
    assert state.buffers["gradients"].dtype == ml_dtypes.bfloat16
    assert state.buffers["weights"].dtype == np.uint16
    assert state.buffers["weights"].tolist() == [31 << 9, 1 << 15 | 32 << 9]


# ---- bits ----


def all_in_fp32(storage: StorageConfig) -> StorageConfig:
    return StorageConfig(
        master=None if storage.master is None else FP32_FORMAT,
        transient_weights=storage.transient_weights,
        update=storage.update,
    )


@pytest.mark.parametrize("name", [n for n, c in CONFIGURATIONS.items() if c.update in ("ties_to_even", "stochastic")])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_with_all_formats_fp32_it_is_fp32_bit_for_bit(name: str, data: st.DataObject) -> None:
    storage = all_in_fp32(CONFIGURATIONS[name])
    optimizer = data.draw(st.sampled_from(list(OPTIMIZERS.values())))
    arrays = st.lists(st.floats(width=32), min_size=4, max_size=4).map(lambda x: np.array(x, np.float32))
    weights, gradients = data.draw(arrays), data.draw(st.lists(arrays, min_size=1, max_size=4))
    ours, intended = run(weights, gradients, optimizer, storage, seed=data.draw(st.integers(0, 9)))
    plain, expected = run(weights, gradients, optimizer, FP32)
    np.testing.assert_array_equal(visible_weights(ours, storage), visible_weights(plain, FP32))
    for a, b in zip(intended, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    for buffer, values in plain.buffers.items():
        if buffer in ours.buffers:
            np.testing.assert_array_equal(ours.buffers[buffer].view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("rule", ["kahan", "collage_light", "collage_plus"])
def test_a_second_word_helps_fp32_too(rule: str) -> None:
    """So these are not fp32 bit for bit: they are better."""
    w, g = np.ones(1, np.float32), np.full(1, -1e-8, np.float32)
    compensated, _ = run(w, [g] * 100, SGD(1.0), StorageConfig(update=rule))
    plain, _ = run(w, [g] * 100, SGD(1.0), FP32)
    assert plain.buffers["weights"][0] == 1
    assert compensated.buffers["weights"][0] == np.float32(1 + 1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_update_leaves_all_it_was_given_alone(name: str, optimizer: Optimizer) -> None:
    storage = CONFIGURATIONS[name]
    weights, gradient = numbers(33, 0), numbers(33, 1)
    originals = weights.copy(), gradient.copy()
    state, _ = run(weights, [gradient], optimizer, storage, seed=3)
    before = bits(state)
    first, u = update(state, gradient, optimizer, storage, seed=3)
    second, again = update(state, gradient, optimizer, storage, seed=3)
    assert bits(state) == before != bits(first)
    assert bits(first) == bits(second)
    assert u.tobytes() == again.tobytes()
    assert (state.step, first.step) == (1, 2)
    np.testing.assert_array_equal((weights, gradient), originals)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("text", STORAGES)
def test_what_is_remembered_is_what_a_step_leaves(text: str, optimizer: Optimizer) -> None:
    storage = StorageConfig.parse(text)
    held = dict(start(numbers(50, 1), optimizer, storage).buffers)
    for t in range(1, 6):
        g = codec(storage.gradients).round(numbers(50, t, 10.0 ** (2 - t)))
        moments = optimizer.direction(t, held, g, storage, 0.1).moments
        remembered = optimizer.remember(t, held, g, storage)
        assert {name: array.tobytes() for name, array in remembered.items()} == {
            name: array.tobytes() for name, array in moments.items()
        }
        assert remembered.keys() <= held.keys()
        held |= moments


def test_the_stochastic_update_reads_the_stream_of_its_step() -> None:
    storage, optimizer = CONFIGURATIONS["bf16_stochastic"], AdamW(0.1, weight_decay=0.1)
    n = 1000
    state, _ = run(numbers(n, 0), [numbers(n, 1)] * 2, optimizer, storage, seed=5)
    w = visible_weights(state, storage)
    plain = update(OptimizerState(2, state.buffers), numbers(n, 2), optimizer, storage, seed=5)
    other = update(OptimizerState(2, state.buffers), numbers(n, 2), optimizer, storage, seed=6)
    # the decay of the update u, undone: u alone is added, to the decayed weight, in float32
    u = update(state, numbers(n, 2), optimizer, storage, seed=5)[1]
    decayed = w * np.float32(1 - 0.1 * 0.1)
    neighbourhood = np.abs(visible_weights(plain[0], storage) - (decayed + u + np.float32(0.01) * w))
    assert np.all(neighbourhood <= 2.0**-7 * np.maximum(np.abs(w), 1))
    assert not np.array_equal(visible_weights(plain[0], storage), visible_weights(other[0], storage))
    for name in ("gradients", "first_moment", "second_moment"):
        assert plain[0].buffers[name].tobytes() == other[0].buffers[name].tobytes()

    w, g = numbers(n, 3), numbers(n, 4)
    state, _ = run(w, [g] * 3, SGD(0.01), storage, seed=9)
    expected = np.asarray(round_to(w, "bf16"))
    g, rate = np.asarray(round_to(g, "bf16")), float(round_to(0.01, "bf16"))
    for t in range(3):
        exact = (expected.astype(np.float64) - rate * g.astype(np.float64)).astype(np.float32)
        expected = np.asarray(round_to(exact, "bf16", "stochastic", rng=(9, t * n)))
    np.testing.assert_array_equal(visible_weights(state, storage), expected)


# ---- numbers that an optimizer is given ----


@pytest.mark.parametrize("optimizer", [SGD(0.5, momentum=0.5), Adam(0.5), AdamW(0.5)])
def test_a_learning_rate_for_one_step(optimizer: SGD | Adam) -> None:
    w, g = numbers(9, 0), numbers(9, 1)
    state = start(w, optimizer, FP32)
    scheduled, _ = update(state, g, optimizer, FP32, learning_rate=0.125)
    assert bits(scheduled) == bits(update(state, g, replace(optimizer, learning_rate=0.125), FP32)[0])
    still, u = update(state, g, optimizer, FP32, learning_rate=0.0)
    assert np.array_equal(still.buffers["weights"], w)
    assert not u.any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_loss_scale_is_taken_out_in_float32(optimizer: Optimizer) -> None:
    storage = StorageConfig.parse("weights=fp16,master=fp32")
    w = numbers(50, 0)
    small = np.asarray(round_to(numbers(50, 1, 2.0**-20), "bf16"))  # subnormal in fp16, but not times 2^16
    scaled, _ = run(w, [small * 2**16], optimizer, storage, unscale=2.0**-16)
    plain, _ = run(w, [small], optimizer, FP32)
    np.testing.assert_array_equal(scaled.buffers["master"], plain.buffers["weights"])
    lost, _ = run(w, [small], optimizer, storage)
    assert not np.array_equal(lost.buffers["gradients"].astype(np.float32), small)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_main_gradients_are_what_is_stored_over_the_loss_scale_and_change_no_digit_in_fp32(
    optimizer: Optimizer,
) -> None:
    w, g = numbers(50, 0), numbers(50, 1, 2.0**-3)
    scaled = {}
    for text in ("master_fp16", "megatron_fp16", "master_fp16,main_gradients=fp8_e5m2"):
        scaled[text], _ = run(w, [g * 3000, g * 1000], optimizer, StorageConfig.parse(text), unscale=1e-3)
    main = scaled["megatron_fp16"].buffers["main_gradients"]
    stored = np.asarray(round_to(g * 1000, "fp16"))
    np.testing.assert_array_equal(main, stored * np.float32(1e-3))
    assert not np.array_equal(main, np.asarray(round_to(main, "fp16")))  # it is no fp16 number any more
    without = bits(scaled["master_fp16"])
    assert bits(scaled["megatron_fp16"]) == without | {"main_gradients": main.tobytes()}
    narrow = scaled["master_fp16,main_gradients=fp8_e5m2"].buffers
    np.testing.assert_array_equal(narrow["main_gradients"].astype(np.float32), round_to(main, "fp8_e5m2"))
    assert narrow["master"].tobytes() != without["master"]


def test_what_is_visible_of_a_master_copy() -> None:
    w = numbers(50, 0)
    for name in ("master_bf16", "autocast_bf16"):
        storage = CONFIGURATIONS[name]
        state = start(w, SGD(0.1), storage)
        np.testing.assert_array_equal(visible_weights(state, storage), round_to(w, "bf16"))
        np.testing.assert_array_equal(state.buffers["master"], w)
        state, u = update(state, numbers(50, 1), SGD(0.1), storage)
        np.testing.assert_array_equal(visible_weights(state, storage), round_to(state.buffers["master"], "bf16"))
        np.testing.assert_allclose(state.buffers["master"], w + u, rtol=1e-6)


def test_what_is_intended_has_the_decay_in_it() -> None:
    w, g = numbers(50, 0), numbers(50, 1)
    optimizer = AdamW(1e-3, weight_decay=0.5)
    for name in ("pure_bf16", "bf16_stochastic", "bf16_kahan", "collage_light", "fp32", "master_bf16"):
        storage = CONFIGURATIONS[name]
        _, (u,) = run(np.asarray(round_to(w, "bf16")), [g], optimizer, storage)
        sign = -1e-3 * np.sign(g)  # Adam's first step, but for epsilon
        np.testing.assert_allclose(u, sign - 5e-4 * np.asarray(round_to(w, "bf16")), rtol=0.01, atol=2e-5)


def test_the_format_in_which_two_are_added() -> None:
    fp16, e6m9, e5m2 = (get_format(name) for name in ("fp16", "e6m9", "fp8_e5m2"))
    for a, b, expected in [
        (BF16, BF16, BF16),
        (BF16, FP32_FORMAT, FP32_FORMAT),
        (fp16, BF16, FP32_FORMAT),
        (e6m9, BF16, FP32_FORMAT),
        (e5m2, fp16, fp16),
        (e5m2, BF16, BF16),
    ]:
        assert promoted(a, b) == promoted(b, a) == expected
    for a in FORMATS.values():
        assert promoted(a, FP32_FORMAT) == FP32_FORMAT


# ---- what the formats do to the numbers of an optimizer ----


def test_a_second_moment_in_bf16_never_decays() -> None:
    """R(.999 * v) = v for every positive finite v."""
    every = codec(BF16).decode(np.arange(1, 0x7F80, dtype=np.uint16).view(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(round_to(every * np.float32(0.999), "bf16"), every)
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    moments = {}
    for name in ("pure_bf16", "collage_light", "collage_plus", "fp32"):
        storage = CONFIGURATIONS[name]
        state, _ = run(one, [one] + [zero] * 500, Adam(1e-3), storage)
        pair = [state.buffers[b] for b in ("second_moment", "second_moment_word") if b in state.buffers]
        moments[name] = sum(float(word[0]) for word in pair)
    assert moments["pure_bf16"] == moments["collage_light"] == float(round_to(0.001, "bf16"))
    assert moments["fp32"] == pytest.approx(0.001 * 0.999**500, rel=1e-4)
    assert moments["collage_plus"] == pytest.approx(moments["fp32"], rel=0.01)


def test_epsilon_is_zero_in_fp16_and_a_parameter_without_gradient_becomes_nan() -> None:
    storage = CONFIGURATIONS["pure_fp16"]
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    state, _ = run(one, [zero], Adam(1e-3), storage)
    assert np.isnan(visible_weights(state, storage)[0])
    state, _ = run(one, [zero], Adam(1e-3, epsilon=1e-7), storage)
    assert visible_weights(state, storage)[0] == 1


def test_infinities_and_nan_go_where_ieee_sends_them() -> None:
    g = np.array([np.inf, -np.inf, np.nan, 1.0], np.float32)
    for name in CONFIGURATIONS:
        storage = CONFIGURATIONS[name]
        weights = [
            visible_weights(run(np.ones(4, np.float32), [g], o, storage)[0], storage) for o in (SGD(0.5), Adam(0.5))
        ]
        assert np.isnan(weights[1]).tolist() == [True, True, True, False], name  # inf / inf
        if storage.update.startswith("collage"):
            assert np.isnan(weights[0]).tolist() == [True, True, True, False]  # inf - inf in Fast2Sum
        else:
            assert np.isnan(weights[0]).tolist() == [False, False, True, False]
            assert weights[0][:2].tolist() == [-np.inf, np.inf]
        assert weights[0][3] == 0.5
    # a gradient that fp16 cannot hold is infinite before it is unscaled
    state, _ = run(
        np.ones(1, np.float32), [np.full(1, 1e6, np.float32)], SGD(0.5), CONFIGURATIONS["master_fp16"], unscale=1e-6
    )
    assert state.buffers["master"][0] == -np.inf


# ---- arguments ----


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0.0), "learning_rate of SGD must be positive and finite, got 0.0"),
        (lambda: Adam(math.inf), "learning_rate of Adam must be positive and finite"),
        (lambda: AdamW(math.nan), "learning_rate of AdamW must be positive"),
        (lambda: SGD(0.1, momentum=1.0), "momentum of SGD must be at least 0 and below 1, got 1.0"),
        (lambda: Adam(0.1, beta1=-0.1), "beta1 of Adam must be at least 0 and below 1"),
        (lambda: AdamW(0.1, beta2=1.0), "beta2 of AdamW must be at least 0 and below 1"),
        (lambda: Adam(0.1, epsilon=-1e-8), "epsilon of Adam must be at least 0 and finite"),
        (lambda: SGD(0.1, weight_decay=math.inf), "weight_decay of SGD must be at least 0 and finite"),
    ],
)
def test_hyperparameters_out_of_range(make: Callable[[], Optimizer], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        make()


def test_arguments_of_start_and_update() -> None:
    w = np.ones(3, np.float32)
    state = start(w, SGD(0.1), FP32)
    for wrong in (w.astype(np.float64), w.reshape(3, 1), np.ones(6, np.float32)[::2], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="parameters must be a contiguous float32 array of one dimension"):
            start(wrong, SGD(0.1), FP32)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="gradient must be a contiguous float32 array of one dimension"):
            update(state, wrong, SGD(0.1), FP32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gradient must have 3 elements, as the parameters; got 4"):
        update(state, np.ones(4, np.float32), SGD(0.1), FP32)
    with pytest.raises(ValueError, match=r"the state holds weights, gradients, but .* need .* second_moment"):
        update(state, w, Adam(0.1), FP32)
    for rate in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="learning_rate must be at least 0 and finite"):
            update(state, w, SGD(0.1), FP32, learning_rate=rate)


def test_a_flat_array_and_its_views() -> None:
    arrays = {"w": numbers(6, 0).reshape(2, 3), "b": numbers(1, 1).reshape(()), "e": np.empty((0, 2), np.float32)}
    flat = flatten(arrays)
    assert flat.dtype == np.float32
    shapes = {name: array.shape for name, array in arrays.items()}
    back = Views(flat, shapes)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)
        assert array.size == 0 or np.shares_memory(back[name], flat)
    with pytest.raises(ValueError, match="shapes hold 6 elements, but the array has 7"):
        Views(flat, {"w": (2, 3)})["w"]
