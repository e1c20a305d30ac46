"""The intended update beside torch itself: the same optimizer in float64, from the same state and gradient."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.torch

SGD: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "weight_decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "tensor lr": {"lr": 0.03125},
}
ADAM: dict[str, dict[str, Any]] = {
    "amsgrad": {"amsgrad": True},
    "weight_decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "betas": {"betas": (0.5, 0.7)},
    "eps": {"eps": 0.01},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "tensor lr": {"lr": 0.001953125},
    "differentiable": {"differentiable": True},
}
DECOUPLED = {"decoupled_weight_decay": {"decoupled_weight_decay": True, "weight_decay": 0.2}}
FLAGS = {"SGD": SGD | {"differentiable": {"differentiable": True}}, "Adam": ADAM | DECOUPLED, "AdamW": ADAM}
REFUSED = (
    *({"nesterov", "dampening"}, {"fused", "foreach"}, {"fused", "differentiable"}),
    *({"foreach", "tensor lr"}, {"foreach", "differentiable"}),
)
"""What torch does not take together."""


def combinations(name: str) -> Iterator[tuple[str, ...]]:
    """Every flag alone and in pairs, and none."""
    for n in range(3):
        yield from (chosen for chosen in itertools.combinations(FLAGS[name], n) if set(chosen) not in REFUSED)


def gradients_of(torch: Any, dtype: Any, steps: int, size: int) -> list[Any]:
    """Gradients of many magnitudes, the larger ones first for amsgrad's sake; some are zero."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for step in range(steps):
        g = torch.randn(size, generator=generator) * 10.0 ** (2 * torch.randn(size, generator=generator) - step)
        g[:: step + 5] = 0
        made.append(g.clamp(-1000, 1000).to(dtype))
    return made


def true_update(torch: Any, optimizer: Any, parameter: Any, **options: Any) -> tuple[Any, Any]:
    """Step the same optimizer in float64, from a copy of the state; return the update and how exact it is."""
    twin = torch.nn.Parameter(parameter.detach().double().clone(), requires_grad=False)
    twin.grad = parameter.grad.double()
    plain = {key: value for key, value in options.items() if key not in ("fused", "foreach", "differentiable")}
    other = type(optimizer)([twin], foreach=False, **plain)
    if optimizer.state[parameter]:
        state = optimizer.state[parameter]
        other.state[twin] = {k: v.clone() if k == "step" else v.double().clone() for k, v in state.items()}
    before = twin.detach().clone()
    other.step()
    return (twin - before).numpy(), before.abs().numpy() * 2.0**-51


def options_of(torch: Any, name: str, chosen: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of an optimizer, and those of its twin, whose learning rate is a number."""
    options: dict[str, Any] = {"lr": 0.1 if name == "SGD" else 1e-3}
    for flag in chosen:
        options |= FLAGS[name][flag]
    return options | ({"lr": torch.tensor(options["lr"])} if "tensor lr" in chosen else {}), options


@pytest.mark.parametrize("name", FLAGS)
def test_each_flag_alone_and_in_pairs(torch: Any, name: str) -> None:
    from precision_lab.torch.intended import intended_update

    tried = 0
    for chosen, dtype in zip(combinations(name), itertools.cycle((torch.bfloat16, torch.float16))):
        options, plain = options_of(torch, name, chosen)
        # in float16 Adam's epsilon is zero, and 0 / 0 would become of what has no gradient
        dtype = dtype if name == "SGD" else torch.bfloat16
        generator = torch.Generator().manual_seed(1)
        parameter = torch.nn.Parameter(torch.randn(200, generator=generator).to(dtype), requires_grad=False)
        optimizer = getattr(torch.optim, name)([parameter], **options)
        moved = 0.0
        for parameter.grad in gradients_of(torch, dtype, 3, 200):  # the first step has no state
            intended = intended_update(optimizer, optimizer.param_groups[0], parameter)
            expected, room = true_update(torch, optimizer, parameter, **plain)
            assert intended.dtype == np.float32
            assert (np.abs(intended - expected) <= np.abs(expected) * 2.0**-23.5 + room).all(), chosen
            moved = max(moved, np.abs(intended).max())
            optimizer.step()
        assert moved > 1e-4
        tried += 1
    assert tried > 30


def test_two_groups_have_their_own_values(torch: Any) -> None:
    from precision_lab.torch.intended import intended_update

    one, two = (torch.nn.Parameter(torch.full((4,), 2.0).bfloat16()) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [two], "lr": 0.5, "weight_decay": 0.25}], lr=0.1)
    one.grad = two.grad = torch.ones(4, dtype=torch.bfloat16)
    first, second = (intended_update(optimizer, group, group["params"][0]) for group in optimizer.param_groups)
    assert first.tolist() == [np.float32(-0.1)] * 4
    assert second.tolist() == [-0.75] * 4


def test_the_constants_are_doubles_and_the_sums_exact(torch: Any) -> None:
    """What float32 cannot hold on the way is in the update: squares that underflow, and 1 - beta2 after many steps."""
    from precision_lab.torch.intended import intended_update

    parameter = torch.nn.Parameter(torch.ones(1).bfloat16())
    parameter.grad = torch.full((1,), 2.0**-90).bfloat16()
    optimizer = torch.optim.Adam([parameter], lr=0.1, eps=0.0)
    assert intended_update(optimizer, optimizer.param_groups[0], parameter).tolist() == [np.float32(-0.1)]
    zero = torch.zeros(1).bfloat16()
    optimizer.state[parameter] = {"step": torch.tensor(9999.0), "exp_avg": zero, "exp_avg_sq": zero}
    expected = -0.1 / (1 - 0.9**10000) * (1 - 0.9) / ((1 - 0.999) / (1 - 0.999**10000)) ** 0.5
    found = intended_update(optimizer, optimizer.param_groups[0], parameter)
    assert found.tolist() == [pytest.approx(expected, rel=2.0**-23)]


def test_a_sparse_gradient_is_added_up_exactly(torch: Any) -> None:
    from precision_lab.torch.intended import intended_update

    parameter = torch.nn.Parameter(torch.ones(3, 2).bfloat16())
    values = torch.tensor([[1.0, 1], [2.0**-12, 0]]).bfloat16()  # bf16 has no 1 + 2^-12
    parameter.grad = torch.sparse_coo_tensor([[2, 2]], values, (3, 2), check_invariants=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    update = intended_update(optimizer, optimizer.param_groups[0], parameter)
    assert update.tolist() == [0, 0, 0, 0, -1 - 2.0**-12, -1]


def test_a_loss_scale_is_divided_out_and_no_gradient_means_no_update(torch: Any) -> None:
    from precision_lab.torch.intended import intended_update

    parameter = torch.nn.Parameter(torch.ones(2).bfloat16())
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.5)
    assert intended_update(optimizer, optimizer.param_groups[0], parameter).tolist() == [0, 0]
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    parameter.grad = torch.tensor([3.0, -6.0]).bfloat16()
    found = intended_update(optimizer, optimizer.param_groups[0], parameter, torch.tensor(3.0))
    assert found.tolist() == [-0.5, 1]


def test_nan_and_infinite_gradients_are_in_the_update(torch: Any) -> None:
    from precision_lab.torch.intended import intended_update

    parameter = torch.nn.Parameter(torch.ones(3).bfloat16())
    parameter.grad = torch.tensor([torch.nan, torch.inf, 0]).bfloat16()
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    update = intended_update(optimizer, optimizer.param_groups[0], parameter)
    assert np.isnan(update[0])
    assert update[1:].tolist() == [-np.inf, 0]


def test_elements_come_in_the_order_of_their_indices(torch: Any) -> None:
    """Longer than a block, transposed, with a gradient in another layout."""
    from precision_lab.torch.intended import intended_update

    parameter = torch.nn.Parameter(torch.arange(40_000).reshape(200, 200).bfloat16().T)
    parameter.grad = torch.arange(40_000).reshape(200, 200).bfloat16()
    optimizer = torch.optim.SGD([parameter], lr=1.0, weight_decay=2.0)
    expected = -(parameter.grad.double() + 2 * parameter.detach().double())
    assert np.array_equal(
        intended_update(optimizer, optimizer.param_groups[0], parameter).reshape(200, 200), expected.numpy()
    )


def test_which_optimizers_are_known(torch: Any) -> None:
    from precision_lab.torch.intended import KNOWN

    assert set(KNOWN) == {torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW}
