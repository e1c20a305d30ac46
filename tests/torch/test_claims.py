"""What claims say of torch is asked of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from precision_lab.experiments.claims.operations import AUTOCAST, TERMS

pytestmark = pytest.mark.torch

NAMES = {"float32": "fp32", "bfloat16": "bf16"}


def operation(torch: Any, name: str) -> Callable[[Any, Any], Any]:
    functions = torch.nn.functional
    by_name: dict[str, Callable[[Any, Any], Any]] = {
        "softmax": lambda x, _: functions.softmax(x, -1),
        "log_softmax": lambda x, _: functions.log_softmax(x, -1),
        "layer_norm": lambda x, _: functions.layer_norm(x, x.shape[-1:]),
        "cross_entropy": functions.cross_entropy,
        "linear": lambda x, _: functions.linear(x, x),
    }
    return by_name[name]


@contextmanager
def autocast(torch: Any, device: str) -> Iterator[None]:
    """Autocast to bf16 without asking whether there is such a device."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    try:
        torch.set_autocast_enabled(device, True)
        torch.set_autocast_dtype(device, torch.bfloat16)
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


@pytest.mark.parametrize("device", AUTOCAST)
def test_the_formats_that_autocast_gives(device: str, torch: Any) -> None:
    """On tensors without data, which need no device; only their formats are computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), autocast(torch, device):
        x = torch.empty(4, 8, device=device, dtype=torch.bfloat16)
        labels = torch.zeros(4, device=device, dtype=torch.long)
        found = {name: operation(torch, name)(x, labels).dtype for name in (*AUTOCAST[device], "linear")}
    formats = {name: NAMES[str(dtype).removeprefix("torch.")] for name, dtype in found.items()}
    assert formats.pop("linear") == "bf16"  # else autocast was not on
    assert formats == AUTOCAST[device]


def test_the_formats_that_autocast_gives_on_this_cpu(torch: Any) -> None:
    x, labels = torch.ones(4, 8, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        found = {name: operation(torch, name)(x, labels).dtype for name in AUTOCAST["cpu"]}
    assert {name: NAMES[str(dtype).removeprefix("torch.")] for name, dtype in found.items()} == AUTOCAST["cpu"]


@pytest.mark.parametrize("deviation", [0, 1, 5])
def test_a_softmax_of_torch_does_not_add_in_bf16(deviation: int, torch: Any) -> None:
    """The sum over 50,000 classes would stop at a few hundred terms."""
    logits = deviation * np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    probabilities = torch.softmax(torch.from_numpy(logits).to(torch.bfloat16), 0)
    assert probabilities.dtype is torch.bfloat16
    assert float(probabilities.double().sum()) == pytest.approx(1, abs=2e-3)


def test_a_product_of_torch_does_not_add_in_bf16(torch: Any) -> None:
    ones = torch.ones(1, TERMS, dtype=torch.bfloat16)
    assert float(ones @ ones.T) == TERMS
    one_by_one = torch.zeros((), dtype=torch.bfloat16)
    for one in ones[0]:
        one_by_one = one_by_one + one
    assert float(one_by_one) == 256


def test_the_gradient_of_a_well_learned_token_is_zero_in_bf16(torch: Any) -> None:
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)  # p = .99966
    torch.nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    assert logits.grad[0, 0] == 0
    upcast = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    torch.nn.functional.cross_entropy(upcast.float(), torch.tensor([0])).backward()
    assert upcast.grad[0, 0] < 0
