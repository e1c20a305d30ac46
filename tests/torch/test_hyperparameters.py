"""What torch's own optimizers do with tensors in 16 bits, step by step (needs its CPU build: make test-all).

On a GPU the same questions would be asked with ``device="cuda"`` and ``foreach=None``; nothing here claims an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from precision_lab import Severity, audit_hyperparameters, get_format, neighbours
from precision_lab.numerics.codec import codec
from precision_lab.numerics.rounding import Array
from precision_lab.training.hyperparameters import held_average, torch_average
from precision_lab.training.update_rules import rounded
from tests.torch.optimizers import has_fma

pytestmark = pytest.mark.torch

LOOPS = {"foreach": False, "fused": False}
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
GRADIENTS = [1.0] * 900 + [0.0] * 300
"""v climbs, and is then left alone."""

V = "beta2*v + (1 - beta2)*g^2"
FROZEN = "share of v with R(beta2*v) = v"


def trained(torch: Any, dtype: str, weight: float, gradient: float, steps: int, **how: Any) -> tuple[float, ...]:
    """Return weight, m and v after steps of torch.optim.AdamW with a constant gradient."""
    w = torch.full((4,), weight, dtype=getattr(torch, dtype), requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=1e-4, weight_decay=0.1, **how)
    for _ in range(steps):
        w.grad = torch.full_like(w, gradient)
        optimizer.step()
    state = optimizer.state[w]
    return w[0].item(), state["exp_avg"][0].item(), state["exp_avg_sq"][0].item()


def moments(torch: Any, fmt: str, beta2: float, gradients: list[float], **how: Any) -> tuple[list[float], list[float]]:
    """Return m and v of torch.optim.AdamW after each gradient."""
    w = torch.ones(64, dtype=getattr(torch, DTYPES[fmt]), requires_grad=True)
    optimizer = torch.optim.AdamW([w], betas=(0.9, beta2), weight_decay=0.0, **how)
    m, v = [], []
    for gradient in gradients:
        w.grad = torch.full_like(w, gradient)
        optimizer.step()
        m.append(optimizer.state[w]["exp_avg"][0].item())
        v.append(optimizer.state[w]["exp_avg_sq"][0].item())
    return m, v


def followed(step: Callable[[Array, bool], Array], gradients: list[float]) -> list[float]:
    """Return what our step makes of 0, gradient by gradient."""
    value, values = np.zeros(1), []
    for gradient in gradients:
        value = np.asarray(step(value, gradient != 0), np.float64)
        values.append(float(value[0]))
    return values


BETAS = [0.95, 0.99, 0.996, 0.997, 0.998, 0.999, 0.9999]


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("beta2", BETAS)
def test_moments_are_torchs_to_the_bit(torch: Any, fmt: str, beta2: float) -> None:
    """Up with g = 1, and then left alone; of these gradients an fma makes no difference."""
    m, v = moments(torch, fmt, beta2, GRADIENTS, **LOOPS)
    assert m == followed(torch_average(fmt, "beta1", 0.9).step, GRADIENTS)
    assert v == followed(torch_average(fmt, "beta2", beta2).step, GRADIENTS)
    assert moments(torch, fmt, beta2, GRADIENTS[:50]) == (m[:50], v[:50])  # what torch does if nobody says how


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("beta2", BETAS)
def test_moments_settle_where_the_audit_says(torch: Any, fmt: str, beta2: float) -> None:
    m, v = moments(torch, fmt, beta2, [1.0] * 4000, **LOOPS)
    audit = audit_hyperparameters(fmt, beta2=beta2)
    first, second = audit.torch("beta1*m + (1 - beta1)*g"), audit.torch(V)
    assert first is not None
    assert second is not None
    assert m[-1] == first.stored
    assert v[-1] == second.stored or v[-1] != v[-100]  # 0.9999 is on its way
    if v[-1] != second.stored:
        assert beta2 == 0.9999
        assert v[-1] < second.stored


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("beta2", BETAS)
def test_constants_held_in_the_format(torch: Any, fmt: str, beta2: float) -> None:
    """A program of one's own whose constants are tensors of the dtype: every product and every sum is rounded."""
    dtype = getattr(torch, DTYPES[fmt])
    decay, gain, v = (torch.full((64,), x, dtype=dtype) for x in (beta2, 1 - beta2, 0.0))
    seen = []
    for gradient in GRADIENTS:
        v = decay * v + gain * (gradient * gradient)
        seen.append(v[0].item())
    assert seen == followed(held_average(fmt, "beta2", beta2).step, GRADIENTS)


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("beta2", BETAS)
def test_foreach_on_a_cpu_rounds_beta2_to_the_format(torch: Any, fmt: str, beta2: float) -> None:
    to = codec(get_format(fmt))
    decay, rest = rounded(beta2, get_format(fmt)), np.float32(1 - beta2)

    def step(v: Array, fed: bool) -> Array:
        return to.round(to.round(np.asarray(v, np.float32) * decay) + (rest if fed else np.float32(0)))

    m, v = moments(torch, fmt, beta2, GRADIENTS, foreach=True)
    assert v == followed(step, GRADIENTS)
    assert m == followed(torch_average(fmt, "beta1", 0.9).step, GRADIENTS)
    held = audit_hyperparameters(fmt, beta2=beta2)["beta2"].stored
    assert (v[-1] == v[900]) is (held == 1)  # which never decays


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("beta2", BETAS)
def test_fused_rounds_once_a_step(torch: Any, fmt: str, beta2: float) -> None:
    to = codec(get_format(fmt))
    decay, rest = np.float32(beta2), np.float32(1 - beta2)

    def step(v: Array, fed: bool) -> Array:  # in float32, no fma
        return to.round(np.asarray(v, np.float32) * decay + (rest if fed else np.float32(0)))

    _, v = moments(torch, fmt, beta2, GRADIENTS, fused=True)
    assert v == followed(step, GRADIENTS)


def test_fused_settles_elsewhere_and_keeps_eps(torch: Any) -> None:
    assert trained(torch, "bfloat16", 1.0, 1.0, 2000, fused=True)[2] == 0.25
    assert trained(torch, "bfloat16", 1.0, 1.0, 2000, **LOOPS)[2] == 0.5
    assert not math.isnan(trained(torch, "float16", 0.5, 0.0, 1, fused=True)[0])


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("beta2", BETAS)
def test_the_share_of_v_that_stays(torch: Any, fmt: str, beta2: float) -> None:
    """All significands at once, in a state of the optimizer's, with gradients of 0."""
    count = 2 ** get_format(fmt).mantissa_bits
    dtype = getattr(torch, DTYPES[fmt])
    w = torch.ones(count, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.AdamW([w], betas=(0.9, beta2), **LOOPS)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    start = (1 + torch.arange(count) / count).to(dtype)
    optimizer.state[w]["exp_avg_sq"].copy_(start)
    optimizer.step()
    after = optimizer.state[w]["exp_avg_sq"]
    found = audit_hyperparameters(fmt, beta2=beta2).torch(FROZEN)
    assert found is not None
    assert found.stored == (after == start).double().mean().item()


def test_where_v_gets_to_from_above(torch: Any) -> None:
    """At 0.998 bf16 has 0.9765625 for 1, and keeps 1.5; at 0.95 both decay to next to nothing."""
    for beta2, expected in ((0.999, (1.0, 1.5)), (0.998, (0.9765625, 1.5)), (0.997, (0.6484375, 1.296875))):
        step = torch_average("bf16", "beta2", beta2).step
        values = np.array([1.0, 1.5])
        for _ in range(3000):
            values = np.asarray(step(values, False), np.float64)
        assert tuple(values) == expected
        v = torch.tensor([1.0, 1.5], dtype=torch.bfloat16)
        for _ in range(3000):
            v.mul_(beta2)
        assert tuple(v.tolist()) == expected
    v = torch.tensor([1.0, 1.5], dtype=torch.bfloat16)
    for _ in range(3000):
        v.mul_(0.95)
    assert v.max() < 1e-30


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("rate", [0.004, 0.003, 0.002, 0.0005, 2e-6])
def test_the_share_of_weights_that_do_not_decay(torch: Any, fmt: str, rate: float) -> None:
    count = 2 ** get_format(fmt).mantissa_bits
    start = (1 + torch.arange(count) / count).to(getattr(torch, DTYPES[fmt]))
    w = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([w], lr=0.01, eps=1e-3, weight_decay=100 * rate, **LOOPS)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    still = (w.detach() == start).double().mean().item()
    found = audit_hyperparameters(fmt, lr=0.01, weight_decay=100 * rate).torch("1 - lr*weight_decay")
    assert found is not None
    assert (found.severity is Severity.FATAL) is (still > 0)
    if still:
        assert f"for {100 * still:.3g} % of all w" in found.consequence


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
def test_the_buffer_of_sgd_is_torchs_to_the_bit(torch: Any, fmt: str, momentum: float) -> None:
    w = torch.ones(64, dtype=getattr(torch, DTYPES[fmt]), requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1e-3, momentum=momentum, **LOOPS)
    seen = []
    for gradient in GRADIENTS:
        w.grad = torch.full_like(w, gradient)
        optimizer.step()
        seen.append(optimizer.state[w]["momentum_buffer"][0].item())
    assert seen == followed(torch_average(fmt, "momentum", momentum).step, GRADIENTS)


def test_the_step_counter_is_a_float32(torch: Any) -> None:
    for how in ({}, {"foreach": True}, {"fused": True}):
        w = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
        optimizer = torch.optim.AdamW([w], **how)
        for _ in range(300):
            w.grad = torch.ones_like(w)
            optimizer.step()
        step = optimizer.state[w]["step"]
        assert (step.dtype, step.item()) == (torch.float32, 300)


@pytest.mark.parametrize("beta2", [0.95, 0.999])
@pytest.mark.parametrize("fmt", DTYPES)
def test_the_gradients_that_are_lost(torch: Any, fmt: str, beta2: float) -> None:
    found = audit_hyperparameters(fmt, beta2=beta2).torch("largest |g| lost in (1 - beta2)*g^2")
    assert found is not None
    above = float(neighbours(found.stored, fmt)[1])
    assert moments(torch, fmt, beta2, [found.stored], **LOOPS)[1] == [0]
    assert moments(torch, fmt, beta2, [above], **LOOPS)[1][0] > 0


def test_a_square_that_is_not_stored_does_not_overflow(torch: Any) -> None:
    found = audit_hyperparameters("fp16").torch("largest |g| lost in (1 - beta2)*g^2")
    assert found is not None
    assert "from |g| = 8096 on v becomes inf at once" in found.consequence
    assert [moments(torch, "fp16", 0.999, [g], **LOOPS)[1][0] == math.inf for g in (8092, 8096)] == [False, True]


def test_weight_decay_in_bf16_does_nothing(torch: Any) -> None:
    assert audit_hyperparameters("bf16", lr=1e-4, weight_decay=0.1)["1 - lr*weight_decay"].stored == 1
    assert trained(torch, "bfloat16", 0.5, 0.0, 100)[0] == 0.5


def test_a_step_of_lr_in_bf16_is_lost(torch: Any) -> None:
    assert "lost on weights above 0.0311279" in audit_hyperparameters("bf16", lr=1e-4)["lr"].consequence
    assert trained(torch, "bfloat16", -0.0625, 1.0, 100)[0] == -0.0625
    assert trained(torch, "bfloat16", -0.03, 1.0, 100)[0] < -0.0301


def test_sgd_rounds_lr_to_the_format(torch: Any) -> None:
    """0.01 is 0.010009765625 in bf16: the row about lr is about torch, too."""
    found = audit_hyperparameters("bf16", optimizer="sgd", lr=0.01).torch("lr")
    assert found is not None
    if not has_fma(torch):
        pytest.skip("without vectors the product with lr is rounded, not lr")
    w = torch.zeros(64, dtype=torch.bfloat16, requires_grad=True)
    w.grad = torch.ones_like(w)
    torch.optim.SGD([w], lr=0.01, **LOOPS).step()
    assert w[0].item() == -found.stored


def test_eps_in_fp16_makes_a_zero_gradient_nan(torch: Any) -> None:
    for finding in (audit_hyperparameters("fp16")["eps"], audit_hyperparameters("fp16").torch("eps")):
        assert finding is not None
        assert "0/0 = NaN" in finding.consequence
    assert math.isnan(trained(torch, "float16", 0.5, 0.0, 1)[0])
    assert not math.isnan(trained(torch, "bfloat16", 0.5, 0.0, 1)[0])
