"""Running averages as torch keeps them in 16 bits: `torch.optim.swa_utils`, and mul_ with add_, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precision_lab.experiments.averages import Keeping, averages
from precision_lab.numerics.rounding import round_to
from tests.torch.optimizers import has_fma

pytestmark = pytest.mark.torch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def walk(fmt: str) -> Any:
    """Weights of every size that wander, in a format: torch averages tensors of one dtype."""
    rng = np.random.default_rng(11)
    first = rng.normal(size=512) * 2.0 ** rng.integers(-6, 3, 512)
    steps = np.cumsum(rng.normal(size=(60, 512)), axis=0) * np.abs(first) / 4
    return round_to(np.vstack([first, first + steps]).astype(np.float32), fmt)


@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("order", ["lerp", "mul_add"])
def test_averages_are_those_of_torch(torch: Any, fmt: str, decay: float, order: str) -> None:
    if not has_fma(torch):
        pytest.skip("torch's default build rounds products and sums apart")
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    rows = walk(fmt)
    tensors = [torch.tensor(row, dtype=getattr(torch, DTYPES[fmt])) for row in rows]
    average, interpolate = tensors[0].clone(), get_ema_multi_avg_fn(decay)
    ours = averages(rows, Keeping(fmt, order=order), decay)
    np.testing.assert_array_equal(next(ours), average.float().numpy())
    for kept, w in zip(ours, tensors[1:], strict=True):
        if order == "lerp":
            interpolate([average], [w], 0)
        else:
            average.mul_(decay).add_(w, alpha=1 - decay)
        np.testing.assert_array_equal(kept, average.float().numpy())
