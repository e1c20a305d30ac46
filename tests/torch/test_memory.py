"""What torch really holds while it trains: every live storage counted, against the ledger."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from precision_lab.experiments.claims.experiment import judge
from precision_lab.experiments.claims.memory import GPT_LIKE, parameters_of
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


# ---- what autograd saves ----


def saved(torch: Any, net: Any, inputs: Any, targets: Any, *, autocast: bool) -> dict[str, int]:
    """Bytes that autograd saves for the backward pass, each storage once: casts of weights, and all else.

    Parameters themselves are saved too, but are there anyway.
    """
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    shapes = {shape for p in net.parameters() if p.ndim == 2 for shape in (tuple(p.shape), tuple(p.shape)[::-1])}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other gets its address
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = net(inputs)
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    del loss
    found = {"casts": 0, "rest": 0}
    for tensor in kept.values():
        is_cast = tuple(tensor.shape) in shapes and tensor.dtype is torch.bfloat16
        found["casts" if is_cast else "rest"] += tensor.untyped_storage().nbytes()
    return found


def gpt(torch: Any, *, fused: bool) -> Any:
    """Make a transformer of the shapes of `GPT_LIKE`, with attention in one operation or in three."""
    nn, width, heads = torch.nn, GPT_LIKE.width, GPT_LIKE.heads

    class Block(torch.nn.Module):  # type: ignore[misc]  # without torch it is Any
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, GPT_LIKE.hidden), nn.Linear(GPT_LIKE.hidden, width)

        def forward(self, x: Any) -> Any:
            batch, n, _ = x.shape
            q, k, v = self.qkv(self.first(x)).view(batch, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
            if fused:
                mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                later = torch.ones(n, n, dtype=torch.bool).triu(1)
                scores = (q @ k.transpose(-1, -2)) / (width // heads) ** 0.5
                mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
            x = x + self.projection(mixed.transpose(1, 2).reshape(batch, n, width))
            return x + self.down(nn.functional.gelu(self.up(self.second(x))))

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(GPT_LIKE.vocabulary, width)
            self.position = nn.Embedding(GPT_LIKE.context, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(GPT_LIKE.layers)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, GPT_LIKE.vocabulary, bias=False)

        def forward(self, characters: Any) -> Any:
            x = self.token(characters) + self.position(torch.arange(characters.shape[1]))
            return self.head(self.norm(self.blocks(x)))

    return Decoder()


def test_what_autograd_saves_of_the_digits_network_is_more_than_half(torch: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    inputs, targets = torch.randn(64, 64), torch.randint(10, (64,))
    wide, narrow = (sum(saved(torch, net, inputs, targets, autocast=on).values()) for on in (False, True))
    assert wide / narrow == pytest.approx(1.73, abs=0.03)


@pytest.mark.parametrize(("fused", "without", "with_casts"), [(False, 1.71, 1.33), (True, 1.69, 1.28)])
def test_what_autograd_saves_of_a_transformer_is_more_than_half(
    torch: Any, fused: bool, without: float, with_casts: float
) -> None:
    net = gpt(torch, fused=fused)
    assert sum(p.numel() for p in net.parameters()) == parameters_of(GPT_LIKE, tied=False)
    inputs, targets = (torch.randint(GPT_LIKE.vocabulary, (4, GPT_LIKE.context)) for _ in range(2))
    wide, narrow = (saved(torch, net, inputs, targets, autocast=on) for on in (False, True))
    assert wide["casts"] == 0
    assert wide["rest"] / narrow["rest"] == pytest.approx(without, abs=0.03)
    assert wide["rest"] / sum(narrow.values()) == pytest.approx(with_casts, abs=0.03)
    evidence = judge(["halves-activations"])[0].verdict.evidence
    assert evidence["input"] == pytest.approx(without, abs=0.03)  # and so says the sum over shapes
