"""What torch makes of the same numbers, files and gradients (needs its CPU build: make test-all)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab import DynamicLossScale, ExponentHistogram, cast, decode, get_format, round_to, scan
from precision_lab.numerics.codes import code_dtype
from precision_lab.numerics.rounding import Array
from precision_lab.numerics.verification import hard_patterns
from precision_lab.training import optimizer_state
from precision_lab.training.models import MLP, Transformer
from precision_lab.training.optimizer_state import start, visible_weights
from precision_lab.training.optimizers import SGD, Adam, AdamW, Optimizer
from precision_lab.training.step import Recipe, begin, parameters_of, training_step
from precision_lab.training.storage import CONFIGURATIONS
from tests.torch.optimizers import has_fma, weights_of_torch

pytestmark = pytest.mark.torch


TORCH_NAMES = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8_e5m2": "float8_e5m2",
    "fp8_e4m3fn": "float8_e4m3fn",
}


def codes_of(tensor: Any, torch: Any) -> np.ndarray[Any, Any]:
    """The codes of a tensor of a 8- or 16-bit dtype."""
    wide = tensor.element_size() == 2
    return np.asarray(tensor.view(torch.int16 if wide else torch.uint8).numpy()).view(np.uint16 if wide else np.uint8)


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_casts_of_float32_agree_on_all_hard_patterns(torch: Any, name: str) -> None:
    fmt = get_format(name)
    x = hard_patterns().view(np.float32)
    # torch clamps overflow and infinities to 448, where ml_dtypes, without infinities, says NaN
    saturate = name == "fp8_e4m3fn"
    ours = cast(x, fmt, saturate=saturate).view(code_dtype(fmt))
    theirs = codes_of(torch.from_numpy(x).to(getattr(torch, TORCH_NAMES[name])), torch)
    nan = np.isnan(x)
    differing = (ours != theirs) & ~nan
    assert not np.any(differing), x[differing][:5]
    assert np.all(np.isnan(decode(theirs[nan], fmt)))


def test_files_written_by_torch_are_read_exactly(torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, generator=generator) * 1e-3
    tensors = {
        "half": x.half(),
        "brain": x.bfloat16(),
        "e4m3": x.to(torch.float8_e4m3fn),
        "e5m2": x.to(torch.float8_e5m2),
        "double": x.double(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    result = scan([tmp_path / "model.safetensors"])
    assert {tensor.info.name for tensor in result.tensors} == set(tensors)
    for tensor in result.tensors:
        assert tensor.histogram == ExponentHistogram.of(tensors[tensor.info.name].double().numpy())


def to_torch(torch: Any, parameters: Any) -> dict[str, Any]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in parameters.items()}


def torch_loss(torch: Any, parameters: dict[str, Any], inputs: Any, labels: Any) -> Any:
    hidden = torch.relu(inputs @ parameters["layer1.weight"] + parameters["layer1.bias"])
    logits = hidden @ parameters["layer2.weight"] + parameters["layer2.bias"]
    return torch.nn.functional.cross_entropy(logits, labels)


@pytest.fixture
def batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.random((32, 64)), rng.integers(0, 10, 32)


def test_gradients_equal_autograd(torch: Any, batch: tuple[Any, Any]) -> None:
    inputs, labels = batch
    parameters = MLP((64, 16, 10)).init(3, np.float64)
    ours = MLP((64, 16, 10)).loss_and_gradients(parameters, inputs, labels)
    theirs = to_torch(torch, parameters)
    value = torch_loss(torch, theirs, torch.tensor(inputs), torch.tensor(labels))
    value.backward()
    assert ours.loss == pytest.approx(value.item(), rel=1e-13)
    for name, gradient in ours.weights.items():
        np.testing.assert_allclose(gradient, theirs[name].grad.numpy(), rtol=1e-11, atol=1e-15)


UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}


def assert_near(ours: Any, theirs: Any, unit: float, name: str) -> None:
    """Equal but for the roundings on the way: fewer than 200, each of a unit of the whole tensor."""
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape, name
    assert np.linalg.norm(ours - theirs) <= 200 * unit * np.linalg.norm(theirs), name


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("sizes", [(64, 10), (64, 64, 10), (64, 20, 20, 20, 10)])
def test_the_perceptron_equals_autograd(torch: Any, sizes: tuple[int, ...], activation: str, dtype: Any) -> None:
    model = MLP(sizes, activation)
    rng = np.random.default_rng(2)
    parameters = {name: array + rng.normal(size=array.shape) * 0.1 for name, array in model.init(3, np.float64).items()}
    parameters = {name: array.astype(dtype) for name, array in parameters.items()}
    inputs, labels = rng.random((32, 64)).astype(dtype), rng.integers(0, 10, 32)
    ours = model.loss_and_gradients(parameters, inputs, labels, loss_scale=8.0)

    theirs, current, kept = to_torch(torch, parameters), torch.tensor(inputs), {}
    for layer in range(1, len(sizes)):
        current = current @ theirs[f"layer{layer}.weight"] + theirs[f"layer{layer}.bias"]
        kept["logits" if layer == len(sizes) - 1 else f"layer{layer}.preactivation"] = current
        if layer < len(sizes) - 1:
            current = kept[f"layer{layer}.output"] = getattr(torch, activation)(current)
    value = torch.nn.functional.cross_entropy(current, torch.tensor(labels))
    for array in kept.values():
        array.retain_grad()
    (8 * value).backward()
    assert ours.loss == pytest.approx(value.item(), rel=20 * UNIT[dtype])
    activations = model.forward(parameters, inputs)
    assert set(activations) == set(kept)
    for name, array in kept.items():
        assert_near(activations[name], array, UNIT[dtype], name)
        assert_near(ours.activations[name], array.grad, UNIT[dtype], name)
    for name, gradient in ours.weights.items():
        assert_near(gradient, theirs[name].grad, UNIT[dtype], name)


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize(
    ("layers", "activation", "tied"), [(1, "gelu", False), (2, "relu", False), (2, "gelu", False), (2, "gelu", True)]
)
def test_the_transformer_equals_autograd(torch: Any, layers: int, activation: str, tied: bool, dtype: Any) -> None:
    model = Transformer(40, context=24, width=32, heads=4, layers=layers, hidden=64, activation=activation, tied=tied)
    rng = np.random.default_rng(5)
    parameters = {name: array + rng.normal(size=array.shape) * 0.1 for name, array in model.init(3, np.float64).items()}
    parameters = {name: array.astype(dtype) for name, array in parameters.items()}
    inputs, targets = rng.integers(0, 40, (2, 5, 20))
    ours = model.loss_and_gradients(parameters, inputs, targets, loss_scale=8.0)

    functional, p, kept = torch.nn.functional, to_torch(torch, parameters), {}

    def linear(name: str, x: Any) -> Any:
        kept[name] = x @ p[f"{name}.weight"] + p[f"{name}.bias"]
        return kept[name]

    def norm(name: str, x: Any) -> Any:
        kept[name] = functional.layer_norm(x, (32,), p[f"{name}.weight"], p[f"{name}.bias"])
        return kept[name]

    x = kept["embedding"] = (p["token"][torch.tensor(inputs)] + p["position"][:20]).reshape(100, 32)
    for layer in (f"layer{k}." for k in range(1, layers + 1)):
        qkv = linear(layer + "qkv", norm(layer + "attention_norm", x)).reshape(5, 20, 3, 4, 8)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = kept[layer + "scores"] = q @ k.transpose(2, 3) / 8**0.5
        hidden = torch.triu(torch.ones(20, 20, dtype=torch.bool), 1)
        kept[layer + "probabilities"] = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=3)
        mixed = kept[layer + "mixed"] = (kept[layer + "probabilities"] @ v).transpose(1, 2).reshape(100, 32)
        x = kept[layer + "attention_sum"] = x + linear(layer + "projection", mixed)
        up = linear(layer + "up", norm(layer + "mlp_norm", x))
        kept[layer + "hidden"] = torch.relu(up) if activation == "relu" else functional.gelu(up, approximate="tanh")
        x = kept[layer + "output"] = x + linear(layer + "down", kept[layer + "hidden"])
    logits = kept["logits"] = norm("norm", x) @ (p["token"].T if tied else p["head.weight"])
    value = functional.cross_entropy(logits, torch.tensor(targets.reshape(-1)))
    for array in kept.values():
        array.retain_grad()
    (8 * value).backward()
    assert ours.loss == pytest.approx(value.item(), rel=20 * UNIT[dtype])
    activations = model.forward(parameters, inputs)
    assert set(activations) == set(kept)
    for name, array in kept.items():
        assert_near(activations[name], array, UNIT[dtype], name)
        assert_near(ours.activations[name], array.grad, UNIT[dtype], name)
    for name, gradient in ours.weights.items():
        assert_near(gradient, p[name].grad, UNIT[dtype], name)


def test_autograd_adds_the_gradients_of_two_uses_in_their_format(torch: Any) -> None:
    """As `Transformer` does with tied embeddings: each is rounded, and then their sum."""
    functional, generator = torch.nn.functional, torch.Generator().manual_seed(0)
    embedding, x, above, beside = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((7, 8), (40, 8), (40, 7), (40, 8))
    )
    codes = torch.arange(40) % 7
    embedding.requires_grad_()

    def uses() -> list[Any]:
        logits = (functional.linear(x, embedding) * above).sum()
        return [logits, (functional.embedding(codes, embedding) * beside).sum()]

    of_logits, of_inputs = (torch.autograd.grad(one, embedding)[0] for one in uses())
    (both,) = torch.autograd.grad(sum(uses()), embedding)
    assert both.dtype == torch.bfloat16
    assert torch.equal(both, of_logits + of_inputs)
    ours = round_to(of_logits.float().numpy() + of_inputs.float().numpy(), "bf16")
    np.testing.assert_array_equal(both.float().numpy(), ours)
    once = above.double().T @ x.double() + torch.zeros(7, 8).double().index_add(0, codes, beside.double())
    assert not torch.equal(both, once.bfloat16())


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (SGD(1e-2), {"lr": 1e-2}),
        (SGD(1e-2, momentum=0.9), {"lr": 1e-2, "momentum": 0.9}),
        (Adam(1e-3), {"lr": 1e-3}),
        (AdamW(1e-3, weight_decay=0.1), {"lr": 1e-3, "weight_decay": 0.1}),
    ],
    ids=["sgd", "momentum", "adam", "adamw"],
)
def test_training_steps_in_fp32_equal_those_of_torch(
    torch: Any, batch: tuple[Any, Any], optimizer: Optimizer, options: dict[str, float]
) -> None:
    """Backward pass and optimizer together, within a few roundings of float32 a step."""
    inputs, labels = batch[0].astype(np.float32), batch[1]
    model = MLP((64, 16, 10))
    parameters = model.init(3)
    theirs = to_torch(torch, parameters)
    reference = getattr(torch.optim, type(optimizer).__name__)(theirs.values(), **options)
    recipe = Recipe(model, optimizer, CONFIGURATIONS["fp32"], {k: v.shape for k, v in parameters.items()})
    state = begin(parameters, recipe)
    for _ in range(20):
        state, record = training_step(state, recipe, inputs, labels)
        reference.zero_grad()
        loss = torch_loss(torch, theirs, torch.tensor(inputs), torch.tensor(labels))
        assert record.loss == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        reference.step()
    for key, value in parameters_of(state, recipe).items():
        np.testing.assert_allclose(value, theirs[key].detach().numpy(), rtol=1e-4, atol=2e-6)


def test_bf16_of_a_double_is_rounded_once_here_and_twice_there(torch: Any) -> None:
    x = np.array([1 + 2.0**-8 + 2.0**-40])
    assert float(round_to(x, "bf16")[0]) == 129 / 128
    assert float(torch.from_numpy(x).to(torch.bfloat16)[0]) == 1.0
    assert float(x.astype(ml_dtypes.bfloat16)[0]) == 1.0


# ---- optimizers bit for bit: torch.optim's own loops, foreach=False and fused=False ----

STEPS = 120
# torch's last n mod 64 numbers take another path, see below
N = 4096

BIT_FOR_BIT: list[Optimizer] = [
    SGD(0.01),
    SGD(0.0123, weight_decay=0.1),
    SGD(0.0123, momentum=0.9),
    SGD(0.05, momentum=0.9, weight_decay=0.0123),
    Adam(1e-3),
    Adam(1e-3, weight_decay=0.01),
    AdamW(1e-3, weight_decay=0.01),
    AdamW(0.03, beta1=0.4, beta2=0.95, epsilon=1e-3, weight_decay=0.3),
]


def of_torch(torch: Any, optimizer: Optimizer, parameter: Any) -> Any:
    options: dict[str, Any] = {"lr": optimizer.learning_rate, "weight_decay": optimizer.weight_decay, "foreach": False}
    if isinstance(optimizer, SGD):
        return torch.optim.SGD([parameter], momentum=optimizer.momentum, **options)
    assert isinstance(optimizer, Adam)
    options |= {"betas": (optimizer.beta1, optimizer.beta2), "eps": optimizer.epsilon}
    return (torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam)([parameter], **options)


def problem(n: int = N) -> tuple[Array, list[Array]]:
    """Return weights, and gradients of all magnitudes."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal(n) * 0.3).astype(np.float32)
    magnitudes = (2.0 ** rng.uniform(-14, 2, n) * (rng.random(n) > 0.2) for _ in range(STEPS))
    return w, [(rng.standard_normal(n) * magnitude).astype(np.float32) for magnitude in magnitudes]


def steps_here(optimizer: Optimizer, name: str) -> Iterator[Array]:
    """Yield our weights after each step."""
    w, gradients = problem()
    storage = CONFIGURATIONS[name]
    state = start(w, optimizer, storage)
    for g in gradients:
        state, _ = optimizer_state.update(state, g, optimizer, storage)
        yield visible_weights(state, storage)


def steps_there(torch: Any, optimizer: Optimizer, name: str) -> Iterator[Array]:
    """Yield torch's weights after each step."""
    w, gradients = problem()
    dtype = {"pure_bf16": torch.bfloat16, "pure_fp16": torch.float16, "fp32": torch.float32}[name]
    parameter = torch.tensor(w).to(dtype).requires_grad_()
    theirs = of_torch(torch, optimizer, parameter)
    for g in gradients:
        parameter.grad = torch.tensor(g).to(dtype)
        theirs.step()
        yield parameter.detach().float().numpy()


def steps_by_hand(optimizer: Optimizer, name: str, *, fused: bool) -> Iterator[Array]:
    """Yield the weights after each step that torch's operations give, with an fma where it can be or without."""
    return weights_of_torch(optimizer, name.removeprefix("pure_"), *problem(), fused=fused)


def expected(torch: Any, optimizer: Optimizer, name: str) -> Iterator[Array]:
    """Yield what torch has to come to: our weights, where it has the fma that ours have."""
    return steps_here(optimizer, name) if has_fma(torch) else steps_by_hand(optimizer, name, fused=False)


def assert_same(steps: Iterator[Array], others: Iterator[Array]) -> None:
    """Equal bit for bit in each of the steps, but for the codes of NaN."""
    for one, other in zip(steps, others, strict=True):
        nan = np.isnan(one)
        np.testing.assert_array_equal(nan, np.isnan(other))
        np.testing.assert_array_equal(one[~nan].view(np.uint32), other[~nan].view(np.uint32))
    assert len(np.unique(one)) > 1000


@pytest.mark.parametrize("optimizer", BIT_FOR_BIT, ids=str)
@pytest.mark.parametrize("name", ["pure_bf16", "pure_fp16", "fp32"])
def test_our_optimizers_are_torch_s_operations_with_an_fma(name: str, optimizer: Optimizer) -> None:
    assert_same(steps_here(optimizer, name), steps_by_hand(optimizer, name, fused=True))


@pytest.mark.parametrize("optimizer", [o for o in BIT_FOR_BIT if isinstance(o, SGD)], ids=str)
@pytest.mark.parametrize("name", ["pure_bf16", "pure_fp16", "fp32"])
def test_without_the_fma_the_weights_are_others(name: str, optimizer: Optimizer) -> None:
    first, apart = (next(steps) for steps in (steps_here(optimizer, name), steps_by_hand(optimizer, name, fused=False)))
    assert np.any(first != apart)


@pytest.mark.parametrize("optimizer", BIT_FOR_BIT, ids=str)
@pytest.mark.parametrize("name", ["pure_bf16", "pure_fp16"])
def test_narrow_optimizers_equal_those_of_torch_bit_for_bit(torch: Any, name: str, optimizer: Optimizer) -> None:
    assert_same(steps_there(torch, optimizer, name), expected(torch, optimizer, name))


@pytest.mark.parametrize("optimizer", BIT_FOR_BIT, ids=str)
def test_fp32_optimizers_equal_those_of_torch_but_for_its_square_root(
    torch: Any, optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch takes float32 square roots from MKL, which do not round rightly: one in six is one step off."""
    if isinstance(optimizer, Adam):
        for ours, theirs in zip(steps_here(optimizer, "fp32"), steps_there(torch, optimizer, "fp32"), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: torch.from_numpy(np.sqrt(x.numpy())))
    assert_same(steps_there(torch, optimizer, "fp32"), expected(torch, optimizer, "fp32"))


def test_torch_adds_the_last_numbers_of_a_bf16_tensor_differently(torch: Any) -> None:
    """Whole vectors: R(w - lr * g), one fma. The rest: R(w - R(lr * g)). So a result depends on the place.

    Where torch has no vectors, all are the rest.
    """
    rng = np.random.default_rng(0)
    w, g = (cast(rng.standard_normal(64000).astype(np.float32), "bf16").astype(np.float32) for _ in range(2))
    rate = float(round_to(0.0123, "bf16"))
    fused = np.asarray(round_to(w.astype(np.float64) - rate * g.astype(np.float64), "bf16"))
    apart = np.asarray(
        round_to(w.astype(np.float64) - np.asarray(round_to(rate * g.astype(np.float64), "bf16")), "bf16")
    )
    different = np.flatnonzero(fused != apart)[:1]
    assert different.size
    for count, result in ((64, fused if has_fma(torch) else apart), (1, apart)):
        values = [np.repeat(x[different], count).astype(np.float32) for x in (w, g)]
        parameter = torch.tensor(values[0]).bfloat16().requires_grad_()
        parameter.grad = torch.tensor(values[1]).bfloat16()
        torch.optim.SGD([parameter], lr=0.0123, foreach=False).step()
        assert np.all(parameter.detach().float().numpy() == result[different])


def grad_scaler(torch: Any, scale: float, window: int, growth: float, backoff: float) -> Any:
    """A GradScaler whose scale has reached any value, also one that its constructor would not take."""
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=1.0, growth_interval=window, growth_factor=growth, backoff_factor=backoff
    )
    scaler.scale(torch.zeros(1))  # makes its tensors
    scaler._scale.fill_(scale)
    return scaler


def update(torch: Any, scaler: Any, found_inf: bool) -> float:
    """What `step` leaves behind and `update` reads, without the optimizer between them."""
    found = torch.tensor([float(found_inf)])
    scaler._per_optimizer_states[0]["found_inf_per_device"] = {torch.device("cpu"): found}
    scaler.update()
    return float(scaler.get_scale())


@pytest.mark.parametrize("seed", range(4))
def test_the_torch_loss_scale_is_that_of_grad_scaler_on_random_patterns(torch: Any, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(2500):
        scale = rng.choice([3.7, 2.0**16, 2.0**125, 1.5 * 2.0**127, 2.0**-126, 2.0**-147, 2.0**-149])
        window, growth, backoff = rng.choice([1, 2, 3]), rng.choice([2.0, 1.1, 1.0001]), rng.choice([0.5, 0.7, 0.999])
        theirs = grad_scaler(torch, scale, window, growth, backoff)
        ours = DynamicLossScale.torch(scale, window=window, growth_factor=growth, backoff_factor=backoff)
        often = rng.choice([0.05, 0.3, 0.8])
        for _ in range(rng.randint(1, 12)):
            found = rng.random() < often
            ours = ours.adjust(found)
            assert ours.loss_scale == update(torch, theirs, found)
            assert ours.clean_steps == theirs._growth_tracker.item()


def test_the_torch_loss_scale_grows_to_the_limit_of_fp32_and_decays_to_0_as_grad_scaler(torch: Any) -> None:
    for found, scales in ((False, [2.0**127] * 3), (True, [0.0] * 3)):
        theirs = grad_scaler(torch, 2.0**16, 1, 2.0, 0.5)
        ours = DynamicLossScale.torch(window=1)
        seen = []
        for _ in range(170):
            ours = ours.adjust(found)
            seen.append(ours.loss_scale)
            assert ours.loss_scale == update(torch, theirs, found)
        assert seen[-3:] == scales


def test_the_torch_loss_scale_with_the_defaults_over_a_long_run(torch: Any) -> None:
    theirs, ours = torch.amp.GradScaler("cpu"), DynamicLossScale.torch()
    theirs.scale(torch.zeros(1))
    for step in range(9000):
        found = step in (0, 1, 2500, 4499, 4500, 6501)
        ours = ours.adjust(found)
        assert ours.loss_scale == update(torch, theirs, found)
    assert ours.loss_scale == 2.0**13


def trained_step(torch: Any, scale: float, gradient: float) -> tuple[float, float]:
    """One real step of SGD under a GradScaler: the weight and the scale after it."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = grad_scaler(torch, scale, 2000, 2.0, 0.5)
    scaler.scale((weight * gradient).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return float(weight.detach()), float(scaler.get_scale())


def test_real_steps_are_skipped_and_halve_the_scale(torch: Any) -> None:
    assert trained_step(torch, 2.0**16, 0.25) == (0.75, 2.0**16)
    assert trained_step(torch, 2.0**16, float("inf")) == (1.0, 2.0**15)
    assert trained_step(torch, 2.0**127, 4.0) == (1.0, 2.0**126)  # the scaled gradient overflows fp32


def test_torch_writes_infinities_into_the_weights_where_we_say_that_the_scale_is_exhausted(torch: Any) -> None:
    """From 2^-128 down 1/S is infinite in fp32, and the gradients are not searched again once they are unscaled."""
    assert not DynamicLossScale.torch(2.0**-127).exhausted
    assert trained_step(torch, 2.0**-127, 2.0**127) == (1 - 2.0**127, 2.0**-127)
    for scale in (2.0**-128, 2.0**-149):
        assert DynamicLossScale.torch(scale).exhausted
        assert trained_step(torch, scale, 1.0) == (-float("inf"), scale)
    zero = DynamicLossScale.torch(2.0**-149).adjust(True)
    assert zero.exhausted
    weight, after = trained_step(torch, zero.loss_scale, 1.0)
    assert weight != weight
    assert after == 0
