"""Where a step rounds, what a skipped one leaves alone, and that with fp32 everywhere it is the plain one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from precision_lab.analysis.loss_scalers import DynamicLossScale, LossScale, NoLossScale, StaticLossScale
from precision_lab.numerics.codec import codec, stored_dtype
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.rounding import is_representable, round_to
from precision_lab.training.config import TrainingConfig
from precision_lab.training.datasets import digits, split
from precision_lab.training.flat import flatten
from precision_lab.training.loop import batches, train
from precision_lab.training.models import MLP, Array, LeastSquares
from precision_lab.training.models.parts import softmax_cross_entropy
from precision_lab.training.optimizer_state import buffers, start, update, visible_weights
from precision_lab.training.optimizers import SGD, Adam, AdamW, Optimizer
from precision_lab.training.step import Recipe, StepRecord, TrainingState, begin, parameters_of, training_step
from precision_lab.training.storage import CONFIGURATIONS, FP32, StorageConfig

MODEL = MLP((64, 16, 10))
TRAIN, _ = split(digits())
INPUTS, LABELS = TRAIN.inputs[:32], TRAIN.labels[:32]
FP32_FORMAT = get_format("fp32")
OPTIMIZERS: dict[str, SGD | Adam] = {
    "sgd": SGD(0.1),
    "momentum": SGD(0.1, momentum=0.9),
    "adam": Adam(1e-3),
    "adamw": AdamW(1e-3, weight_decay=0.1),
}


def recipe(
    storage: StorageConfig | str, optimizer: Optimizer = OPTIMIZERS["adam"], model: MLP = MODEL, seed: int = 0
) -> Recipe:
    storage = StorageConfig.parse(storage) if isinstance(storage, str) else storage
    shapes = {name: array.shape for name, array in model.init(0).items()}
    return Recipe(model, optimizer, storage, shapes, seed)


def steps(
    plan: Recipe, count: int, scaler: LossScale | None = None, *, start: int = 3, **options: Any
) -> tuple[TrainingState, list[StepRecord]]:
    state = begin(plan.model.init(start), plan, scaler)
    records = []
    for rows in batches(len(TRAIN.labels), 64, count, 0):
        state, record = training_step(state, plan, TRAIN.inputs[rows], TRAIN.labels[rows], **options)
        records.append(record)
    return state, records


def bits(arrays: Mapping[str, Array]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


# ---- a step ----


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_stored_is_in_its_format(name: str, optimizer: Optimizer) -> None:
    plan = recipe(name, optimizer)
    storage = plan.storage
    state, (record,) = steps(plan, 1, StaticLossScale(256.0))
    assert not record.skipped
    assert record.intended is not None
    held = buffers(optimizer, storage)
    assert {n: array.dtype for n, array in state.optimizer.buffers.items()} == {
        n: stored_dtype(fmt) for n, fmt in held.items()
    }
    for array in record.gradients.weights.values():
        assert np.all(is_representable(array, storage.gradients))
        if storage.transient_weights:  # it came back through the cast
            assert np.all(is_representable(array, storage.weights))
    for array in record.gradients.activations.values():
        assert np.all(is_representable(array, storage.activation_gradients))
    assert np.all(is_representable(visible_weights(state.optimizer, storage), storage.weights))
    assert all(np.all(is_representable(a, storage.updated)) for a in parameters_of(state, plan).values())
    # of the gradients, the buffer holds those of the whole step, the scale included
    np.testing.assert_array_equal(
        codec(storage.gradients).decode(state.optimizer.buffers["gradients"]), flatten(record.gradients.weights)
    )


@pytest.mark.parametrize("name", ["fp32", "master_bf16", "autocast_fp16", "pure_bf16", "bf16_kahan", "fp8_hybrid"])
@pytest.mark.parametrize("scale", [256.0, 1000.0])
def test_a_step_by_hand(name: str, scale: float) -> None:
    """The weights are rounded, the model runs with the scaled loss, the optimizer divides by the scale."""
    plan = recipe(name, AdamW(0.01, epsilon=1e-6, weight_decay=0.1))
    storage, parameters = plan.storage, MODEL.init(3)
    state = begin(parameters, plan, StaticLossScale(scale))
    after, record = training_step(state, plan, INPUTS, LABELS)

    weights = {n: round_to(round_to(a, storage.updated), storage.weights) for n, a in parameters.items()}
    scaled = MODEL.loss_and_gradients(weights, INPUTS, LABELS, loss_scale=scale, storage=storage)
    one_over = float(np.float32(1 / scale))
    expected, intended = update(
        state.optimizer, flatten(scaled.weights), plan.optimizer, storage, unscale=one_over, seed=0
    )
    assert bits(after.optimizer.buffers) == bits(expected.buffers)
    assert after.optimizer.step == 1
    updated = expected.buffers["weights" if storage.master is None else "master"]
    np.testing.assert_array_equal(flatten(parameters_of(after, plan)), updated.astype(np.float32))
    assert record.intended is not None
    assert record.intended.tobytes() == intended.tobytes()
    assert record.loss == scaled.loss
    assert record.loss_scale == scale
    assert record.max_abs == max(float(np.abs(array).max()) for array in scaled.weights.values()) * one_over
    assert bits(record.gradients.weights) == bits(scaled.weights)
    assert bits(record.gradients.activations) == bits(scaled.activations)


def test_sgd_on_float32_in_numpy() -> None:
    """The same without any function of ours but the model's."""
    state, records = steps(recipe(FP32, SGD(0.125)), 5)
    parameters: dict[str, Array] = MODEL.init(3)
    for rows, record in zip(batches(len(TRAIN.labels), 64, 5, 0), records, strict=True):
        found = MODEL.loss_and_gradients(parameters, TRAIN.inputs[rows], TRAIN.labels[rows])
        # the learning rate is a power of two: no fused multiply-add to think of
        parameters = {name: w - np.float32(0.125) * found.weights[name] for name, w in parameters.items()}
        assert record.loss == found.loss
    assert bits(parameters_of(state, recipe(FP32, SGD(0.125)))) == bits(parameters)


def test_a_run_is_a_chain_of_steps() -> None:
    plain = train(TrainingConfig(hidden=(16,), optimizer="adam", learning_rate=1e-3, steps=30, storage=FP32))
    plan = recipe(FP32)
    state, records = steps(plan, 30, start=0)
    assert bits(parameters_of(state, plan)) == bits(plain.parameters)
    assert [record.loss for record in records] == plain.losses.tolist()
    assert not any(record.skipped for record in records)


@pytest.mark.parametrize("exponent", [1, 16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_power_of_two_changes_no_bit_in_float32(exponent: int, optimizer: Optimizer) -> None:
    plan = recipe(FP32, optimizer)
    plain, unscaled = steps(plan, 10)
    state, records = steps(plan, 10, StaticLossScale(2.0**exponent))
    assert bits(parameters_of(state, plan)) == bits(parameters_of(plain, plan))
    assert [record.max_abs for record in records] == [record.max_abs for record in unscaled]
    assert {record.loss_scale for record in records} == {2.0**exponent}


def test_the_factor_stays_in_the_gradients() -> None:
    plan = recipe(FP32, SGD(0.125))
    _, (one,) = steps(plan, 1)
    _, (half,) = steps(plan, 1, loss_factor=0.5)
    assert half.max_abs == one.max_abs / 2
    assert half.loss == one.loss
    assert half.intended is not None
    assert one.intended is not None
    np.testing.assert_array_equal(half.intended, one.intended / 2)


def test_a_learning_rate_for_one_step() -> None:
    plan = recipe(FP32, SGD(0.125))
    usual, _ = steps(plan, 3)
    other, _ = steps(replace(plan, optimizer=SGD(0.5)), 3, learning_rate=0.125)
    assert bits(other.optimizer.buffers) == bits(usual.optimizer.buffers)


def test_the_seed_is_that_of_the_stochastic_update() -> None:
    ends = [steps(recipe("bf16_stochastic", SGD(0.01), seed=seed), 2)[0].optimizer.buffers for seed in (0, 0, 1)]
    assert bits(ends[0]) == bits(ends[1]) != bits(ends[2])


def test_the_state_before_stays_as_it_was() -> None:
    for name in CONFIGURATIONS:
        plan = recipe(name)
        state = begin(MODEL.init(3), plan, NoLossScale())
        before = bits(state.optimizer.buffers)
        training_step(state, plan, INPUTS, LABELS)
        assert bits(state.optimizer.buffers) == before


# ---- micro-batches ----


@pytest.mark.parametrize("text", ["pure_bf16", "bf16_fp32_grads", "weights=bf16,gradients=fp8_e5m2", "autocast_bf16"])
@pytest.mark.parametrize("parts", [1, 2, 4, 32])
def test_micro_batches_are_added_up_in_the_format_of_the_gradients(text: str, parts: int) -> None:
    plan = recipe(text, SGD(0.01))
    state = begin(MODEL.init(3), plan)
    after, record = training_step(state, plan, INPUTS, LABELS, micro_batches=parts)
    fmt, weights = plan.storage.gradients, {n: round_to(a, plan.storage.weights) for n, a in MODEL.init(3).items()}
    sums: dict[str, Array] = {}
    losses = []
    for inputs, labels in zip(np.split(INPUTS, parts), np.split(LABELS, parts), strict=True):
        found = MODEL.loss_and_gradients(weights, inputs, labels, loss_scale=1 / parts, storage=plan.storage)
        losses.append(found.loss)
        for name, gradient in found.weights.items():
            sums[name] = round_to(sums[name] + gradient, fmt) if name in sums else gradient
    kept = codec(fmt).decode(after.optimizer.buffers["gradients"])
    np.testing.assert_array_equal(kept, flatten(sums))
    assert record.loss == math.fsum(losses) / parts
    assert record.max_abs == float(np.abs(kept).max())
    assert bits(record.gradients.weights) == bits(found.weights)  # of the last


def test_sums_of_64_micro_batches_stop_in_fp8() -> None:
    """So that the test above tests something: in a narrow format the sum is not that of the whole batch."""
    whole, parts = (
        steps(recipe("weights=fp32,gradients=fp8_e5m2", SGD(0.01)), 1, micro_batches=n)[0].optimizer.buffers
        for n in (1, 64)
    )
    assert bits(whole)["gradients"] != bits(parts)["gradients"]


def test_an_overflow_in_the_first_of_the_micro_batches_is_found() -> None:
    plan = recipe("master_fp16")
    state = begin(MODEL.init(3), plan)
    inputs = INPUTS.copy()
    inputs[0] = np.inf
    _, record = training_step(state, plan, inputs, LABELS, micro_batches=4)
    assert record.skipped
    assert all(np.isfinite(array).all() for array in record.gradients.weights.values())


@pytest.mark.parametrize("parts", [0, -1, 5, 64])
def test_a_batch_that_cannot_be_divided_is_refused(parts: int) -> None:
    plan = recipe(FP32)
    with pytest.raises(ValueError, match=f"divide the batch of 32, got {parts}$"):
        training_step(begin(MODEL.init(3), plan), plan, INPUTS, LABELS, micro_batches=parts)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_none_is_refused(factor: float) -> None:
    plan = recipe(FP32)
    with pytest.raises(ValueError, match="loss_scale must be positive and at most"):
        training_step(begin(MODEL.init(3), plan), plan, INPUTS, LABELS, loss_factor=factor)


# ---- overflow ----


def test_an_overflow_skips_the_step_and_is_told_to_the_scaler() -> None:
    scaler, plan = DynamicLossScale.torch(), recipe("autocast_fp16")
    assert plan.storage.loss_scale == scaler
    state = begin(MODEL.init(3), plan)
    after, record = training_step(state, plan, INPUTS, LABELS, loss_factor=2.0**20)
    assert record.skipped
    assert record.intended is None
    assert math.isinf(record.max_abs)
    assert after.optimizer is state.optimizer  # Adam does not count it either
    assert after.scaler == scaler.adjust(True)
    calm, record = training_step(state, plan, INPUTS, LABELS)
    assert not record.skipped
    assert calm.scaler == scaler.adjust(False)


def test_a_nan_is_told_too_and_its_magnitude_is_infinite() -> None:
    plan = recipe("pure_fp16")
    inputs = INPUTS.copy()
    inputs[3, 3] = np.nan
    after, record = training_step(begin(MODEL.init(3), plan), plan, inputs, LABELS)
    assert record.skipped
    assert record.max_abs == math.inf
    assert after.scaler.loss_scale == 2.0**15


def test_a_static_scale_skips_for_ever() -> None:
    plan = recipe("autocast_fp16")
    state, records = steps(plan, 5, StaticLossScale(2.0**40))
    assert all(record.skipped for record in records)
    assert bits(parameters_of(state, plan)) == bits(MODEL.init(3))


def test_without_loss_scaling_nobody_looks_and_nan_gets_in() -> None:
    plan = recipe("autocast_fp16")
    state, records = steps(plan, 3, NoLossScale(), loss_factor=2.0**40)
    assert not any(record.skipped for record in records)
    assert math.isinf(records[0].max_abs)
    assert any(np.isnan(array).any() for array in parameters_of(state, plan).values())


def test_a_dynamic_scale_comes_down_until_nothing_overflows() -> None:
    _, records = steps(recipe("autocast_fp16"), 12, loss_factor=2.0**10)
    scales = [record.loss_scale for record in records]
    first = [record.skipped for record in records].index(False)
    assert 0 < first < 12
    assert scales[: first + 1] == [2.0 ** (16 - k) for k in range(first + 1)]
    assert not any(record.skipped for record in records[first:])


# ---- with all formats fp32 ----


def all_in_fp32(storage: StorageConfig) -> StorageConfig:
    """Every role in fp32; what is not a format stays."""
    return StorageConfig(
        master=None if storage.master is None else FP32_FORMAT,
        operands=None if storage.operands is None else FP32_FORMAT,
        gradient_operands=None if storage.gradient_operands is None else FP32_FORMAT,
        transient_weights=storage.transient_weights,
        update=storage.update,
        loss_scale=storage.loss_scale,
    )


WORDS = {"compensation", "second_word"}
ROUNDED_ONCE = [name for name, c in CONFIGURATIONS.items() if c.update in ("ties_to_even", "stochastic")]
COMPENSATED = [name for name in CONFIGURATIONS if name not in ROUNDED_ONCE]
SMALL = MLP((64, 3, 10))


def least_product(plan: Recipe, start: int, parts: int) -> float:
    """The smallest magnitude, but zero, that the backward passes of three steps may come to in a product.

    Sums add nothing to it: where one is subnormal, it is exact.
    """
    state, model, least = begin(plan.model.init(start), plan), plan.model, math.inf
    for rows in batches(len(TRAIN.labels), 64, 3, 0):
        inputs, labels, weights = TRAIN.inputs[rows], TRAIN.labels[rows], parameters_of(state, plan)
        values = model.forward(weights, inputs)
        _, probabilities = softmax_cross_entropy(values["logits"], labels)
        gradients = model.loss_and_gradients(weights, inputs, labels).activations
        smallest = smallest_magnitude(probabilities / np.float64(64), *gradients.values())
        least = min(least, smallest * min(1.0, smallest_magnitude(inputs, *values.values(), *weights.values())))
        state, _ = training_step(state, plan, inputs, labels, micro_batches=parts)
    return least


def smallest_magnitude(*arrays: Array) -> float:
    return min(float(np.abs(array[array != 0]).min(initial=np.inf)) for array in arrays)


def with_and_without(name: str, of: Optimizer, seed: int, parts: int) -> tuple[Any, Any]:
    """Return everything that three steps come to, in fp32 and in a configuration all of whose formats are fp32."""
    runs = []
    for storage in (FP32, all_in_fp32(CONFIGURATIONS[name])):
        plan = recipe(storage, of, SMALL, seed)
        state, records = steps(plan, 3, start=seed, micro_batches=parts)
        runs.append(
            (
                bits(parameters_of(state, plan)),
                visible_weights(state.optimizer, storage).tobytes(),
                [(r.loss, r.max_abs, r.skipped, None if r.intended is None else r.intended.tobytes()) for r in records],
                {n: a.tobytes() for n, a in state.optimizer.buffers.items() if n.endswith("moment")},
            )
        )
    return runs[0], runs[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ROUNDED_ONCE)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), parts=st.sampled_from([1, 2, 64]), rate=st.floats(1e-5, 1.0))
def test_every_configuration_is_fp32_bit_for_bit(name: str, optimizer: str, seed: int, parts: int, rate: float) -> None:
    """The loss scale included, a power of two, where no product is subnormal without it.

    Of the seed of the stochastic update nothing is left: a float32 number is a value of fp32, and stays what it is.
    """
    of = replace(OPTIMIZERS[optimizer], learning_rate=rate)
    assume(least_product(recipe(FP32, of, SMALL, seed), seed, parts) >= FP32_FORMAT.smallest_normal)
    plain, other = with_and_without(name, of, seed, parts)
    assert plain == other


def test_a_loss_scale_keeps_what_fp32_itself_loses() -> None:
    """Learning rates near 1 make probabilities so small that their products are subnormal: the condition is needed."""
    of = replace(OPTIMIZERS["adam"], learning_rate=0.98828125)
    assert least_product(recipe(FP32, of, SMALL, 4096), 4096, 1) < FP32_FORMAT.smallest_normal
    plain, other = with_and_without("autocast_fp16", of, 4096, 1)
    assert plain != other


def first_step(name: str, of: Optimizer, weights: Array, gradient: Array) -> tuple[Array, Array, Array, Array]:
    """Return, all in fp32, weight and second word after the first step, the plain weight after it, and the update."""
    plain, storage = FP32, all_in_fp32(CONFIGURATIONS[name])
    expected, u = update(start(weights, of, plain), gradient, of, plain)
    ours, same = update(start(weights, of, storage), gradient, of, storage)
    np.testing.assert_array_equal(u, same)
    (word,) = WORDS & ours.buffers.keys()
    return ours.buffers["weights"], ours.buffers[word], expected.buffers["weights"], u


@pytest.mark.parametrize("of", [OPTIMIZERS["adam"], AdamW(1e-3)], ids=["adam", "adamw"])
@pytest.mark.parametrize("name", ["bf16_kahan", "collage_light"])
@settings(deadline=None)  # the first example loads compiled code
@given(data=st.data())
def test_the_first_weights_of_adam_are_those_of_fp32_with_a_second_word_too(
    name: str, of: Optimizer, data: st.DataObject
) -> None:
    """What was lost in the first step is added in the second: until then there is no difference.

    But for Collage where the update is the larger: its Fast2Sum is exact for abs(w) >= abs(u) only.
    """
    sizes = st.floats(2.0**-12, 2.0**-6, width=32)  # the updates are of the size of the learning rate
    weights = data.draw(st.lists(sizes.flatmap(lambda x: st.sampled_from([x, -x])), min_size=8, max_size=8))
    gradient = data.draw(st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8))
    w = np.array(weights, np.float32)
    new, word, plain, u = first_step(name, of, w, np.array(gradient, np.float32))
    total = w + u
    np.testing.assert_array_equal(plain, total)
    if name == "bf16_kahan":
        np.testing.assert_array_equal(new, plain)
        np.testing.assert_array_equal(word, u - (total - w))
        return
    rest = u - (total - w)
    np.testing.assert_array_equal(new, total + rest)
    np.testing.assert_array_equal(word, rest - (new - total))
    covered = np.abs(w) >= np.abs(u)
    np.testing.assert_array_equal(new[covered], plain[covered])
    exact = w.astype(np.float64) + u
    np.testing.assert_array_equal((new.astype(np.float64) + word)[covered], exact[covered])


def test_where_the_update_is_larger_collage_may_miss_the_rounded_sum() -> None:
    w, u = (np.array([float.fromhex(x)], np.float32) for x in ("-0x1.7a66a6p-11", "-0x1.0624e2p-10"))
    new, _, plain, intended = first_step("collage_light", SGD(1.0), w, -u)
    assert intended == u
    assert (new.item(), plain.item()) == (float.fromhex("-0x1.c35836p-10"), float.fromhex("-0x1.c35834p-10"))
    swapped, _, same, _ = first_step("collage_light", SGD(1.0), u, -w)
    assert swapped == same == plain


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", COMPENSATED)
def test_a_second_word_makes_fp32_better_than_fp32(name: str, optimizer: str) -> None:
    """So these cannot be fp32 bit for bit: their sums of updates are nearer to the exact ones."""
    errors = []
    for storage in (FP32, all_in_fp32(CONFIGURATIONS[name])):
        plan = recipe(storage, OPTIMIZERS[optimizer])
        state, records = steps(plan, 40)
        exact = flatten(MODEL.init(3)).astype(np.float64)
        for record in records:
            assert record.intended is not None
            exact += record.intended
        held = state.optimizer.buffers["weights"].astype(np.float64)
        held += sum(state.optimizer.buffers[word] for word in WORDS if word in state.optimizer.buffers)
        errors.append(float(np.sqrt(np.mean(np.square(held - exact)))))
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize("name", COMPENSATED)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_where_no_sum_is_rounded_a_second_word_changes_nothing(name: str, data: st.DataObject) -> None:
    """Small integers and a learning rate that is a power of two: all that a second word could hold is zero."""
    whole = st.integers(-8, 8)
    inputs = np.array(data.draw(st.lists(whole, min_size=8, max_size=8)), np.float32).reshape(4, 2)
    targets = np.array(data.draw(st.lists(whole, min_size=4, max_size=4)), np.float32)
    model, ends = LeastSquares(2), []
    for storage in (FP32, all_in_fp32(CONFIGURATIONS[name])):
        plan = Recipe(model, SGD(2.0**-3), storage, {"weight": (2,)})
        state = begin(model.init(), plan)
        for _ in range(2):
            state, _ = training_step(state, plan, inputs, targets)
        ends.append(bits(parameters_of(state, plan)))
        for word in WORDS:
            assert not np.any(state.optimizer.buffers.get(word, np.zeros(1)))
    assert ends[0] == ends[1]


# ---- names that compute the same ----


@pytest.mark.parametrize(
    ("optimizer", "same"),
    [
        ("adam", [{"autocast_fp16", "master_fp16", "megatron_fp16"}, {"autocast_bf16", "master_bf16"}]),
        (
            "momentum",
            [
                {"autocast_fp16", "master_fp16", "megatron_fp16"},
                {"autocast_bf16", "master_bf16"},
                {"bf16_stochastic", "bf16_stochastic_fp32_v"},
                {"bf16_kahan", "bf16_kahan_fp32_v"},
                {"collage_light", "collage_plus"},
            ],
        ),
    ],
)
def test_which_names_compute_the_same(optimizer: str, same: list[set[str]]) -> None:
    """Every digit of the weights that forward sees, after 20 steps; all other pairs differ."""
    by_bits: dict[bytes, set[str]] = {}
    for name in CONFIGURATIONS:
        plan = recipe(name, OPTIMIZERS[optimizer])
        state, records = steps(plan, 20, StaticLossScale(256.0))
        losses = np.array([record.loss for record in records])
        seen = visible_weights(state.optimizer, plan.storage).tobytes() + losses.tobytes()
        by_bits.setdefault(seen, set()).add(name)
    assert [names for names in by_bits.values() if len(names) > 1] == same


def test_micro_batches_tell_autocast_from_master_weights() -> None:
    """The parts are added up in the format of the gradients: fp32 here, bf16 there."""
    ends = {}
    for name in ("autocast_bf16", "master_bf16", "autocast_fp16", "master_fp16", "megatron_fp16"):
        state, _ = steps(recipe(name), 20, StaticLossScale(256.0), micro_batches=4)
        ends[name] = state.optimizer.buffers["master"].tobytes()
    assert ends["autocast_bf16"] != ends["master_bf16"]
    assert ends["autocast_fp16"] != ends["master_fp16"] == ends["megatron_fp16"]
