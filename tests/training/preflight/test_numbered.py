"""Which weights numbered parameters are, against all ways there are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import PreflightReport, TensorFileError, preflight
from precision_lab.training.preflight.numbered import deal, names_by_identity, pair, read_names
from precision_lab.training.preflight.report import BlockedUpdates

Shape = tuple[int, ...]


def all_ways(weights: list[Shape], groups: list[list[Shape | None]]) -> list[tuple[int, ...]]:
    """Every way to give each of the weights to a group so that each group gets its shapes in order."""
    ways = []
    for way in itertools.product(range(len(groups)), repeat=len(weights)):
        taken = [[shape for shape, g in zip(weights, way, strict=True) if g == group] for group in range(len(groups))]
        if all(
            len(got) == len(wanted) and all(w in (None, g) for g, w in zip(got, wanted, strict=True))
            for got, wanted in zip(taken, groups, strict=True)
        ):
            ways.append(way)
    return ways


def test_weights_are_dealt_out_in_as_many_ways_as_there_are() -> None:
    rng = np.random.default_rng(0)
    seen = {0: 0, 1: 0, 2: 0}
    for _ in range(300):
        n, kinds = int(rng.integers(1, 7)), int(rng.integers(1, 4))
        weights: list[Shape] = [(int(k),) for k in rng.integers(1, 4, n)]
        groups: list[list[Shape | None]] = [[] for _ in range(kinds)]
        for shape in weights:
            groups[rng.integers(kinds)].append(None if rng.random() < 0.1 else shape)
        if rng.random() < 0.3:
            groups[0] = groups[0][::-1]
        expected = all_ways(weights, groups)
        ways, dealt = deal(weights, groups)
        assert ways == min(2, len(expected))
        assert not ways or dealt in expected
        seen[ways] += 1
    assert min(seen.values()) > 10


def test_more_ways_than_can_be_looked_at_are_several() -> None:
    groups: list[list[Shape | None]] = [[(1,)] * 2 for _ in range(14)]
    assert deal([(1,)] * 28, groups)[0] == 2


def test_parameters_are_paired_by_shapes_that_stand_there_once() -> None:
    assert pair([(1,), (2,), (3,)], [(3,), (1,), (2,)]) == (1, {0: 2, 1: 0, 2: 1})
    assert pair([(1,), (2,), (3,)], [(3,), None, (2,)]) == (1, {0: 2, 2: 1, 1: 0})
    assert pair([(1,), (1,)], [(1,), (1,)])[0] == 2
    assert pair([(1,), (1,)], [(1,), None])[0] == 2
    assert pair([(1,), (2,)], [None, None])[0] == 2
    assert pair([(1,), (2,)], [(1,), (1,)])[0] == 0
    assert pair([(1,), (2,)], [(1,), (3,)])[0] == 0


# ---- Hugging Face's Trainer: parameters with weight decay, then those without, each in the model's order ----


class Trained:
    """Blocks of the same shapes, with layer norms; an AdamW of two groups, as Trainer makes it."""

    def __init__(self, torch: Any, groups: str = "decay") -> None:
        torch.manual_seed(3)
        layers = itertools.chain.from_iterable((torch.nn.Linear(6, 6), torch.nn.LayerNorm(6)) for _ in range(3))
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 6), *layers)
        named = list(self.model.named_parameters())
        first = [p for name, p in named if (p.ndim > 1 if groups == "decay" else name[0] in "024")]
        rest = [p for _, p in named if all(p is not other for other in first)]
        self.optimizer = torch.optim.AdamW([{"params": first, "weight_decay": 0.1}, {"params": rest}], lr=1e-4)
        for _ in range(3):
            self.optimizer.zero_grad()
            self.model(torch.randn(8, 4)).square().sum().backward()
            self.optimizer.step()
        names = {id(p): name for name, p in named}
        self.names = [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]
        states = [(names[id(p)], state) for p, state in self.optimizer.state.items()]
        self.by_name = {f"{name}.{part}": value for name, state in states for part, value in state.items()}

    def expected(self) -> dict[str, BlockedUpdates]:
        return counted(preflight(self.model, optimizer_state=self.by_name, lr=1e-4))


def counted(report: PreflightReport) -> dict[str, BlockedUpdates]:
    return {t.info.name: n for t in report.tensors for way, n in t.standstill.items() if str(way) == "bf16"}


@pytest.fixture
def trainer(torch: Any, tmp_path: Path) -> Trained:
    from safetensors.torch import save_file

    trained = Trained(torch)
    torch.save(trained.optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    save_file(trained.model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(trained.names) + "\n")
    (tmp_path / "names.json").write_text(json.dumps(trained.names))
    return trained


@pytest.mark.torch
def test_two_groups_in_the_models_order_can_be_dealt_out_in_one_way(trainer: Trained, tmp_path: Path) -> None:
    report = preflight(tmp_path / "model.pt", optimizer_state=tmp_path / "optimizer.pt")
    assert counted(report) == trainer.expected()
    assert len({n.frozen for n in counted(report).values()}) > 3  # a wrong assignment would be seen
    assert any("the model's order and their shapes leave one way only" in note for note in report.notes)
    assert [group.hyperparameters["weight_decay"] for group in report.groups] == [0.1, 0.01]
    assert [group.weights for group in report.groups] == [4 * 6 + 3 * 36, 6 + 3 * 6 + 3 * 12]


@pytest.mark.torch
def test_without_the_order_names_are_asked_for_and_taken(trainer: Trained, tmp_path: Path) -> None:
    weights, state = tmp_path / "model.safetensors", tmp_path / "optimizer.pt"
    with pytest.raises(TensorFileError, match=r"not in the model's order.* give parameter_names") as caught:
        preflight(weights, optimizer_state=state)
    cure = str(caught.value).partition("groups: ")[2]
    made, _, names = cure.partition("; ")
    scope: dict[str, Any] = {"model": trainer.model, "optimizer": trainer.optimizer}
    exec(made, scope)
    assert eval(names, scope) == trainer.names
    several: list[Any] = [trainer.names, tmp_path / "names.txt", tmp_path / "names.json"]
    for given in several:
        report = preflight(weights, optimizer_state=state, parameter_names=given)
        assert counted(report) == trainer.expected()
    with pytest.raises(TensorFileError, match="14 parameters, and 13 names"):
        preflight(weights, optimizer_state=state, parameter_names=trainer.names[1:])
    with pytest.raises(TensorFileError, match="is not what belongs to the weights"):
        preflight(weights, optimizer_state=state, parameter_names=trainer.names[::-1])
    with pytest.raises(TensorFileError, match="which the weights do not have"):
        preflight(weights, optimizer_state=state, parameter_names=["x", *trainer.names[1:]])


@pytest.mark.torch
def test_groups_that_can_be_dealt_out_in_several_ways_are_not_guessed(torch: Any) -> None:
    trained = Trained(torch, "every other layer")
    with pytest.raises(TensorFileError, match="2 groups can be dealt out to the weights in several ways; give"):
        preflight(trained.model.state_dict(), optimizer_state=trained.optimizer.state_dict())
    # module and optimizer in memory share their parameters, which tells
    assert counted(preflight(trained.model, optimizer_state=trained.optimizer)) == trained.expected()
    names = names_by_identity(trained.model, trained.optimizer)
    assert names == tuple(trained.names)
    assert names_by_identity(trained.model.state_dict(), trained.optimizer) is None
    assert names_by_identity(torch.nn.Linear(2, 2), trained.optimizer) is None


@pytest.mark.torch
def test_names_may_lack_what_stands_before_those_of_the_weights(torch: Any) -> None:
    trained = Trained(torch)
    weights = {f"module.net.{name}": p for name, p in trained.model.named_parameters()}
    report = preflight(weights, optimizer_state=trained.by_name, lr=1e-4)
    assert {name.removeprefix("module.net."): n for name, n in counted(report).items()} == trained.expected()
    twice = weights | {f"ema.{name}": p for name, p in trained.model.named_parameters()}
    with pytest.raises(TensorFileError, match="which the weights do not have"):
        preflight(twice, optimizer_state=trained.by_name, lr=1e-4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not names only"),
        (b'["a", 3]', "not names only"),
        (b"[]", "not names only"),
        (b'["a"', "cannot be read"),
        (b"\xff\xfe", "give a JSON list of names"),
        (b"a\nb\na\n", "'a' stands there twice"),
    ],
)
def test_what_is_no_list_of_names(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(TensorFileError, match=words) as caught:
        read_names(tmp_path / "names")
    assert "\n" not in str(caught.value)


def test_names_a_line_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "names").write_text(" a.b \r\n\nc\n")
    assert read_names(tmp_path / "names") == ("a.b", "c") == read_names(["a.b", "c"])
    (tmp_path / "names").write_text(' ["a.b", "c"]')
    assert read_names(str(tmp_path / "names")) == ("a.b", "c")
    with pytest.raises(TensorFileError, match="No such file"):
        read_names(tmp_path / "none")
