"""What torch's own AdamW does with parameters in 16 bits (needs its CPU build: make test-all)."""

from __future__ import annotations

import math
from typing import Any

import pytest

from precision_lab import audit_hyperparameters

pytestmark = pytest.mark.torch


def trained(torch: Any, dtype: str, weight: float, gradient: float, steps: int) -> tuple[float, float, float]:
    """Return weight, m and v after steps of torch.optim.AdamW with a constant gradient."""
    w = torch.full((4,), weight, dtype=getattr(torch, dtype), requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=1e-4, weight_decay=0.1, foreach=True)
    for _ in range(steps):
        w.grad = torch.full_like(w, gradient)
        optimizer.step()
    state = optimizer.state[w]
    return w[0].item(), state["exp_avg"][0].item(), state["exp_avg_sq"][0].item()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_moments_settle_where_the_audit_says(torch: Any, dtype: str) -> None:
    result = audit_hyperparameters(dtype, lr=1e-4, weight_decay=0.1)
    _, m, v = trained(torch, dtype, 1.0, 1.0, 2000)
    assert m == result["beta1*m + (1 - beta1)*g"].stored
    assert v == result["beta2*v + (1 - beta2)*g^2"].stored


def test_weight_decay_in_bf16_does_nothing(torch: Any) -> None:
    assert audit_hyperparameters("bf16", lr=1e-4, weight_decay=0.1)["1 - lr*weight_decay"].stored == 1
    assert trained(torch, "bfloat16", 0.5, 0.0, 100)[0] == 0.5


def test_a_step_of_lr_in_bf16_is_lost(torch: Any) -> None:
    assert "lost on weights above 0.0311279" in audit_hyperparameters("bf16", lr=1e-4)["lr"].consequence
    assert trained(torch, "bfloat16", -0.0625, 1.0, 100)[0] == -0.0625
    assert trained(torch, "bfloat16", -0.03, 1.0, 100)[0] < -0.0301


def test_eps_in_fp16_makes_a_zero_gradient_nan(torch: Any) -> None:
    assert "0/0 = NaN" in audit_hyperparameters("fp16")["eps"].consequence
    assert math.isnan(trained(torch, "float16", 0.5, 0.0, 1)[0])
    assert not math.isnan(trained(torch, "bfloat16", 0.5, 0.0, 1)[0])
