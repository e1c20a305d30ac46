"""What the plan of a recorded run covers: beside it, the gradients of activations, which it does not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precision_lab.analysis.loss_scale_plan import Covers
from precision_lab.numerics.rounding import round_to

pytestmark = pytest.mark.torch


def test_the_plan_of_a_recorder_says_that_activations_are_not_in_it(torch: Any) -> None:
    """A run where every scale that the plan calls safe leaves gradients of activations at zero."""
    from precision_lab.torch import GradientRecorder

    generator = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)]
    model = torch.nn.Sequential(*layers)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    seen: list[Any] = []
    for layer in layers:
        layer.register_full_backward_hook(lambda _, __, out: seen.append(out[0].detach().numpy().ravel().copy()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with GradientRecorder(model, optimizer) as recorder:
        x = torch.randn((512, 8), generator=generator).requires_grad_()
        (1e-3 * model(x)).square().mean().backward()  # 512 examples share the gradient of one weight
        optimizer.step()
    plan = recorder.plan_loss_scale("fp16", margin=0)
    assert plan.covers is Covers.PARAMETERS
    assert plan.summary.endswith(
        "of the parameters' gradients; those of activations, not seen here, are often smaller."
    )
    assert plan.recommended is not None
    assert plan.recommended.flushed == 0
    activations = np.concatenate(seen)
    flushed = np.count_nonzero(round_to(activations * np.float32(plan.smallest_sufficient), "fp16") == 0)
    assert flushed > 0.01 * np.count_nonzero(activations)
