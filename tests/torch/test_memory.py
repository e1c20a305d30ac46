"""What torch really holds while it trains: every live storage counted, against the ledger."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from precision_lab.training.memory import memory_ledger
from precision_lab.training.storage import CONFIGURATIONS

pytestmark = pytest.mark.torch

DEPTH, WIDTH = 16, 32
COUNT = DEPTH * WIDTH * WIDTH


class Held(NamedTuple):
    """Bytes between two steps, the gradients included, and the most within the next."""

    resident: int
    peak: int


def live_bytes(torch: Any) -> Any:
    """Make a mode that counts the bytes of all live storages that were made in it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Live(TorchDispatchMode):  # type: ignore[misc]  # without torch it is Any
        def __init__(self) -> None:
            super().__init__()
            self.storages: dict[int, int] = {}
            self.now = self.peak = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(found):
                if isinstance(tensor, torch.Tensor):
                    self._add(tensor.untyped_storage())
            return found

        def _add(self, storage: Any) -> None:
            if storage._cdata not in self.storages:
                self.storages[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, storage._cdata)

        def _drop(self, key: int) -> None:
            self.now -= self.storages.pop(key)

    return Live()


def trained(torch: Any, name: str, *, micro_batches: int = 1, to_none: bool = False, **options: Any) -> Held:
    """Train a chain of matrices as a configuration says, and count in the third step."""
    with live_bytes(torch) as live:
        torch.manual_seed(0)
        net = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH)))
        x = torch.randn(1, WIDTH)
        weights = updated = list(net.parameters())
        if not name.startswith(("fp32", "autocast")):
            net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
        if name == "megatron_bf16":
            updated = [w.detach().float() for w in weights]
            for w, main in zip(weights, updated, strict=True):
                main.grad = torch.zeros_like(main)
                w.register_post_accumulate_grad_hook(_adds_to(main))
        optimizer = torch.optim.Adam(updated, 1e-3, fused=True, **options)  # foreach takes more within the step
        others = x.untyped_storage().nbytes()
        resident = 0
        for _ in range(3):
            live.peak = live.now
            for _ in range(micro_batches):
                with torch.autocast("cpu", torch.bfloat16, enabled=name.startswith("autocast")):
                    loss = net(x).float().square().mean()
                loss.backward()
                del loss
            optimizer.step()
            if name == "megatron_bf16":
                with torch.no_grad():
                    for w, main in zip(weights, updated, strict=True):
                        w.copy_(main)
            resident = live.now - others
            optimizer.zero_grad(set_to_none=to_none)
        return Held(resident, live.peak - others)


def _adds_to(main: Any) -> Callable[[Any], None]:
    """As the hook of Megatron's DistributedDataParallel: one gradient at a time is there in bf16."""

    def hook(w: Any) -> None:
        main.grad.add_(w.grad)
        w.grad = None

    return hook


@pytest.mark.parametrize("name", ["fp32", "autocast_bf16", "megatron_bf16", "pure_bf16"])
def test_torch_holds_what_the_ledger_says(torch: Any, name: str) -> None:
    """Resident to the byte, but for the 4 of each tensor's step; the peak to less than a tensor more or less.

    The first matrix is not cast for the backward pass, which does not go through it; a gradient is there twice while it
    is converted.
    """
    ledger = memory_ledger(CONFIGURATIONS[name], "adam", COUNT)
    held = trained(torch, name)
    assert held.resident == ledger.total + 4 * DEPTH
    tensor = WIDTH * WIDTH
    assert (
        ledger.peak_total - 2 * tensor <= held.peak <= ledger.peak_total + 6 * tensor + 4 * DEPTH + 16 * DEPTH * WIDTH
    )


def test_casts_lie_beside_the_gradients_of_an_earlier_micro_batch_and_else_make_room_for_them(torch: Any) -> None:
    peaks = {
        "one, gradients freed": trained(torch, "autocast_bf16", to_none=True).peak / COUNT,
        "two, gradients freed": trained(torch, "autocast_bf16", micro_batches=2, to_none=True).peak / COUNT,
        "one, gradients kept": trained(torch, "autocast_bf16").peak / COUNT,
    }
    assert {key: round(peak) for key, peak in peaks.items()} == {
        "one, gradients freed": 16,
        "two, gradients freed": 18,
        "one, gradients kept": 18,
    }


def test_amsgrad_takes_four_more(torch: Any) -> None:
    assert trained(torch, "fp32", amsgrad=True).resident == 20 * COUNT + 4 * DEPTH
