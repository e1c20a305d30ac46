"""What is known about updates, against real runs and updates computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import (
    CONFIGURATIONS,
    Adam,
    PreflightReport,
    StorageConfig,
    TensorFileError,
    TrainingConfig,
    preflight,
    train,
)
from precision_lab.training.datasets import digits
from precision_lab.training.optimizer_state import start, update, updated_parameters
from precision_lab.training.preflight.evidence import may_hold_optimizer
from precision_lab.training.preflight.report import Origin, Outcome, StoredUpdate
from tests.training.preflight.helpers import BF16, ask, ask_steps, lost_in_bf16

PLAIN = StoredUpdate(BF16)


def of_each(report: PreflightReport) -> dict[str, tuple[int, int]]:
    """Updates, and lost ones, of each tensor in bf16."""
    return {
        t.info.name.rpartition("model.")[2]: (t.standstill[PLAIN].count, t.standstill[PLAIN].frozen)
        for t in report.tensors
    }


# ---- what weights and lr cannot know ----


def test_a_run_that_was_cleared_at_the_start_and_loses_more_than_half_of_its_updates() -> None:
    config = TrainingConfig(
        optimizer="adam",
        learning_rate=3e-3,
        beta2=0.95,
        steps=1000,
        snapshot_steps=(0, 999),
        storage=CONFIGURATIONS["pure_bf16"],
    )
    run, control = train(config), train(replace(config, storage=CONFIGURATIONS["fp32"]))
    assert run.updates.lost_of_nonzero > 0.5
    assert run.final_loss > 2 * control.final_loss
    first, last = run.snapshots
    h: dict[str, Any] = {"optimizer": "adam", "lr": 3e-3, "beta2": 0.95, "weight_decay": 0.0, "storage": "pure_bf16"}
    report = preflight(first.parameters, **h)
    pure = report["pure_bf16"]
    assert (pure.outcome, pure.lost) == (Outcome.AT_START, 0)
    assert pure.later is not None
    assert pure.later > 0.5 * pure.updates
    assert report.cheapest is None
    assert "not known later" in report.verdict
    # its own updates tell, at either end
    assert preflight(first.parameters, updates=first.updates, **h)["pure_bf16"].share < 0.01
    late = preflight(last.parameters, updates=last.updates, **h)
    assert late["pure_bf16"].outcome is Outcome.LOSES
    assert late.total[PLAIN].frozen == sum(lost_in_bf16(last.parameters[name], u) for name, u in last.updates.items())
    # and the control's updates, of size lr at first, become small
    medians = [np.median(np.abs(np.concatenate([u.ravel() for u in s.updates.values()]))) for s in control.snapshots]
    assert medians[0] > 0.99 * 3e-3
    assert medians[1] < 0.2 * medians[0]


@pytest.mark.parametrize(("weight", "moves"), [(1.0, False), (2.0**-10, True)])
def test_what_stands_still_and_what_moves_do_so(weight: float, moves: bool) -> None:
    storage, adam = StorageConfig.parse("pure_bf16"), Adam(1e-3, beta2=0.95)
    w = np.full(4, weight, np.float32)
    state = start(w, adam, storage)
    for _ in range(20):
        state, _ = update(state, np.full(4, -0.1, np.float32), adam, storage)
    assert bool((updated_parameters(state, storage) != w).any()) is moves
    pure = ask_steps({"w": w}, 1e-3)["pure_bf16"]
    assert pure.outcome is (Outcome.KEEPS if moves else Outcome.LOSES)
    assert ask({"w": w})["pure_bf16"].outcome is (Outcome.AT_START if moves else Outcome.LOSES)


@pytest.mark.parametrize("last", [0.0, 1e-3])
def test_of_updates_that_are_all_zero_nothing_is_known(last: float) -> None:
    w, u = {"w": np.full(4, 0.5)}, {"w": np.array([0, 0, 0, last])}
    moments = {"w.exp_avg": u["w"], "w.exp_avg_sq": np.full(4, 1e-6)}
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0}
    for given in ("updates", u), ("optimizer_state", moments):
        report = preflight(w, **options | dict([given]))
        assert report.verdict.startswith("All updates are zero") is (last == 0)
        assert (report.cheapest is None) is (last == 0)
    assert not ask(w, lr=1e-3).all_zero


# ---- checkpoints of torch ----


class Run:
    """A perceptron on the digits in torch, with the sizes of its updates."""

    def __init__(self, torch: Any, steps: int = 120) -> None:
        torch.manual_seed(0)
        data = digits()
        x, y = torch.tensor(data.inputs[:512]).float(), torch.tensor(data.labels[:512])
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3, betas=(0.9, 0.95), eps=1e-7)
        self.medians = []
        for _ in range(steps):
            some = torch.randint(0, 512, (16,))
            self.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(x[some]), y[some]).backward()
            before = [p.detach().clone() for p in self.model.parameters()]
            self.optimizer.step()
            u = torch.cat(
                [
                    (p.detach() - b * (1 - 2e-3 * 1e-2)).flatten()[p.grad.flatten() != 0]
                    for p, b in zip(self.model.parameters(), before, strict=True)
                ]
            )
            self.medians.append(float(u.abs().median()) / 2e-3)

    def by_hand(self, lr: float, step: float | None = None) -> dict[str, np.ndarray]:
        """Adam's next updates, in float64."""
        names = [name for name, _ in self.model.named_parameters()]
        updates = {}
        for name, s in zip(names, self.optimizer.state_dict()["state"].values(), strict=True):
            t = float(s["step"])
            m, v = s["exp_avg"].double().numpy(), s["exp_avg_sq"].double().numpy()
            u = -lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-7)
            updates[name] = np.where(m == 0, 0, u).astype(np.float32)
        return updates

    def counted(self, updates: dict[str, np.ndarray]) -> dict[str, tuple[int, int]]:
        """Updates and lost ones in bf16, by a brute force."""
        weights = {name: p.detach().numpy() for name, p in self.model.named_parameters()}
        return {name: (int((u != 0).sum()), lost_in_bf16(weights[name], u)) for name, u in updates.items()}


@pytest.fixture(scope="module")
def run() -> Run:
    import torch

    return Run(torch)


@pytest.mark.torch
def test_updates_are_as_large_as_lr_in_the_first_step_only(run: Run) -> None:
    assert run.medians[0] == pytest.approx(1, abs=0.01)
    late = run.medians[100:]
    assert max(late) < 0.5


@pytest.mark.torch
@pytest.mark.parametrize(
    "keys", [("model", "optimizer"), ("model_state_dict", "optimizer_state_dict"), ("state_dict", "optimizer_states")]
)
def test_moments_beside_the_weights_are_used_as_if_given(
    torch: Any, run: Run, tmp_path: Path, keys: tuple[str, str]
) -> None:
    state: Any = run.optimizer.state_dict()
    content = {
        keys[0]: run.model.state_dict(),
        keys[1]: [state] if keys[1] == "optimizer_states" else state,
        "epoch": 3,
    }
    torch.save(content, tmp_path / "ck.pt")
    torch.save(run.model.state_dict(), tmp_path / "w.pt")
    torch.save(state, tmp_path / "o.pt")
    beside = preflight(tmp_path / "ck.pt", storage="pure_bf16")
    given = preflight(tmp_path / "w.pt", storage="pure_bf16", optimizer_state=tmp_path / "o.pt")
    both = preflight(tmp_path / "ck.pt", storage="pure_bf16", optimizer_state=tmp_path / "ck.pt")
    in_memory = preflight(run.model, storage="pure_bf16", optimizer_state=run.optimizer)
    nested = preflight(content, storage="pure_bf16")
    expected = run.counted(run.by_hand(2e-3))
    prefix = f"{keys[0]}."
    assert {name.removeprefix(prefix): counts for name, counts in of_each(beside).items()} == expected
    assert of_each(given) == of_each(in_memory) == expected
    assert 0.1 < sum(lost for _, lost in expected.values()) / sum(n for n, _ in expected.values()) < 1
    for report in (given, both, in_memory, nested):
        assert report.groups == beside.groups
        assert report.total == beside.total
        assert [c.answer for c in report.candidates] == [c.answer for c in beside.candidates]
    assert beside.optimizer == "adamw"
    assert beside.hyperparameters == {"lr": 2e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-7, "weight_decay": 0.01}
    assert beside.notes == ("4 x 3 tensors of the optimizer used for the updates",)
    assert beside.skipped == ()
    assert beside.parameters == given.parameters == sum(p.numel() for p in run.model.parameters())
    assert not beside.sizes
    assert beside.verdict.startswith("For these updates")


@pytest.mark.torch
def test_lr_is_that_of_the_file_unless_it_is_given_and_then_both_are_said(run: Run) -> None:
    shares = set()
    for lr in (None, 1e-3, 2e-5, 2e-3):
        report = preflight(run.model, optimizer_state=run.optimizer, lr=lr)
        expected = run.counted(run.by_hand(lr or 2e-3))
        assert of_each(report) == expected
        shares.add(sum(lost for _, lost in expected.values()))
        said = [note for note in report.notes if "as given" in note]
        assert said == ([f"lr {lr:g} as given; the file says 0.002"] if lr in (1e-3, 2e-5) else [])
        assert report.groups[0].origins["lr"] is (Origin.FILE if lr is None else Origin.GIVEN)
        assert report.hyperparameters["lr"] == (lr or 2e-3)
    assert len(shares) == 3
    report = preflight(run.model, optimizer_state=run.optimizer, beta2=0.9, optimizer="adam")
    assert "beta2 0.9 as given; the file says 0.95" in report.notes
    assert "adam as given; the optimizer's state says adamw" in report.notes


@pytest.mark.torch
def test_each_group_has_its_own_lr_and_a_fresh_optimizer_has_one_too(torch: Any, run: Run, tmp_path: Path) -> None:
    first, second = [list(layer.parameters()) for layer in (run.model[0], run.model[2])]
    slow = torch.optim.Adam([{"params": first}, {"params": second, "lr": 1e-5, "initial_lr": 1e-3}], lr=2e-3)
    with pytest.raises(ValueError, match="lr is not known: the groups of the optimizer differ"):
        preflight(run.model, optimizer_state=slow.state_dict())  # numbers without shapes
    fresh = preflight(run.model, optimizer_state=slow)
    assert fresh.sizes
    assert fresh.optimizer == "adam"
    for tensor in fresh.tensors:
        lr = 2e-3 if tensor.info.name.startswith("0.") else 1e-5
        alone = preflight({"w": dict(run.model.named_parameters())[tensor.info.name]}, lr=lr)
        assert tensor.standstill == alone.tensors[0].standstill
        assert tensor.later == alone.tensors[0].later
    sizes = [sum(p.numel() for p in group) for group in (first, second)]
    assert [group.weights for group in fresh.groups] == sizes
    assert "lr" not in fresh.hyperparameters
    assert "2 groups of parameters, each with its own hyperparameters" in fresh.notes
    assert "lr is the one that was saved; its schedule began at 0.001" in fresh.notes
    state = run.optimizer.state_dict()
    state["param_groups"] = slow.state_dict()["param_groups"]
    for group in state["param_groups"]:
        group |= {"betas": (0.9, 0.95), "eps": 1e-7}
    torch.save({"model": run.model.state_dict(), "optimizer": state}, tmp_path / "ck.pt")
    report = preflight(tmp_path / "ck.pt")
    fast, slowly = (run.counted(run.by_hand(lr)) for lr in (2e-3, 1e-5))
    assert of_each(report) == {name: (fast if name.startswith("0.") else slowly)[name] for name in fast}
    assert preflight(tmp_path / "ck.pt", lr=1e-5).total[PLAIN].frozen == sum(lost for _, lost in slowly.values())


@pytest.mark.torch
def test_the_momentum_of_sgd_is_its_last_update(torch: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = torch.nn.Linear(40, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 40)).square().mean().backward()
        before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "ck.pt")
    report = preflight(tmp_path / "ck.pt")
    assert report.optimizer == "sgd"
    assert report.hyperparameters == {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.0}
    for name, p in model.named_parameters():
        buffer = optimizer.state[p]["momentum_buffer"].double().numpy()
        u = (buffer * -0.02).astype(np.float32)
        moved = p.detach().double().numpy() - before[name]
        assert np.allclose(u, moved, rtol=1e-3, atol=1e-7)
        assert of_each(report)[name] == (int((u != 0).sum()), lost_in_bf16(p.detach().numpy(), u))
    plain = torch.optim.SGD(model.parameters(), lr=0.02)
    with pytest.raises(ValueError, match="give gradients, or updates"):
        preflight(model, optimizer_state=plain)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert preflight(model, optimizer_state=plain, gradients=gradients).hyperparameters["lr"] == 0.02


@pytest.mark.torch
def test_what_cannot_be_used_beside_the_weights_is_said_and_its_lr_is_used(
    torch: Any, run: Run, tmp_path: Path
) -> None:
    """An average of the weights lies beside them; two optimizers; one that is not known."""
    model, state = run.model.state_dict(), run.optimizer.state_dict()
    torch.save({"model": model, "ema": {k: v * 1.5 for k, v in model.items()}, "optimizer": state}, tmp_path / "ema.pt")
    report = preflight(tmp_path / "ema.pt")
    assert report.sizes
    assert report.hyperparameters["lr"] == 2e-3
    (note,) = [note for note in report.notes if "not used" in note]
    assert "there are 4 for 8 tensors of weights" in note
    with pytest.raises(TensorFileError, match="there are 4 for 8 tensors"):
        preflight(tmp_path / "ema.pt", optimizer_state=tmp_path / "ema.pt")
    torch.save({"model": model, "a": state, "b": {**state}}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="lr is not known"):
        preflight(tmp_path / "two.pt")
    assert "2 optimizers" in preflight(tmp_path / "two.pt", lr=1e-3).notes[0]
    with pytest.raises(TensorFileError, match="2 optimizers"):
        preflight(run.model, optimizer_state=tmp_path / "two.pt")
    torch.save({"w": torch.ones(2), "optimizer": state}, tmp_path / "other.pt")
    sgd = preflight(tmp_path / "other.pt", optimizer="sgd", lr=0.1, updates={"w": np.ones(2)})
    assert "hyperparameters are not used" in sgd.notes[0]
    assert sgd.hyperparameters["lr"] == 0.1


@pytest.mark.torch
def test_buffers_are_no_weights_of_a_state_dict_as_they_are_none_of_the_module(torch: Any, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 8, 3))
    for p in net.parameters():
        p.data.mul_(1e-3)
    net[1].running_var.fill_(900.0)
    net[1].running_mean.fill_(40.0)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    options: dict[str, Any] = {"storage": "pure_bf16", "lr": 1e-3, "beta2": 0.95, "weight_decay": 0.0}
    reports = [preflight(model, **options) for model in (net, net.state_dict(), tmp_path / "net.pt")]
    for report in reports:
        pure = report["pure_bf16"]
        assert (pure.outcome, pure.lost, report.parameters) == (Outcome.AT_START, 0, 824)
        assert pure.reasons == reports[0]["pure_bf16"].reasons
        assert report.skipped == ()
    assert [info.name for info in reports[1].apart] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert "no weights but buffer: '1.running_mean' and 2 more" in reports[1].notes


@pytest.mark.torch
def test_codes_whose_scales_lie_beside_them_are_no_weights(torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    w = torch.randn(128, 128, generator=torch.Generator().manual_seed(0)) * 0.02
    scale = w.abs().max() / 448
    codes = {"l.weight": (w / scale).to(torch.float8_e4m3fn), "l.weight_scale_inv": scale.reshape(1, 1)}
    save_file(codes, tmp_path / "codes.safetensors")
    save_file(codes | {"norm.weight": w[0].contiguous()}, tmp_path / "more.safetensors")
    with pytest.raises(TensorFileError, match=r"no weights: .*weight_scale_inv"):
        ask(tmp_path / "codes.safetensors", lr=1e-4)
    report = ask(tmp_path / "more.safetensors", lr=1e-4)
    assert [t.info.name for t in report.tensors] == ["norm.weight"]
    assert [info.name for info in report.skipped] == ["l.weight"]
    assert [info.name for info in report.apart] == ["l.weight_scale_inv"]
    assert report.parameters == 128
    assert "All this is of 128 weights; of a tensor there are codes only, and nothing is known" in report.verdict
    assert "codes" not in ask({"norm.weight": w[0]}, lr=1e-4).verdict


def test_which_questions_need_lr() -> None:
    w, u = {"w": np.full(4, 0.5)}, {"w": np.full(4, 1e-3)}
    needs: list[dict[str, Any]] = [
        {},
        {"optimizer": "adam"},
        {"updates": u},  # of AdamW, whose decay takes lr * weight_decay
        {"updates": u, "weight_decay": 0.1},
        {"optimizer_state": {"w.exp_avg": np.ones(4), "w.exp_avg_sq": np.ones(4)}},
        {"optimizer": "sgd", "gradients": u},
    ]
    for options in needs:
        with pytest.raises(ValueError, match=r"lr is not known, and no default stands for it: .*give lr"):
            preflight(w, **options)
        assert preflight(w, lr=1e-3, **options).groups[0].origins["lr"] is Origin.GIVEN
    for options in ({"optimizer": "sgd"}, {"optimizer": "adam"}, {"weight_decay": 0.0}):
        without, with_lr = (preflight(w, updates=u, lr=lr, **options) for lr in (None, 1e-3))
        assert "lr" not in without.hyperparameters
        assert without.total == with_lr.total
        assert all(f.finding.name != "lr" for c in without.candidates for f in c.findings)


def test_where_an_optimizer_may_lie() -> None:
    class Module:
        def named_parameters(self) -> Any:
            return iter([])

    assert not may_hold_optimizer(Module(), ())
    assert may_hold_optimizer({}, ())
    assert may_hold_optimizer("w.pt", ())
    assert not may_hold_optimizer("w.npz", ())


def test_moments_by_name_beside_the_weights_of_any_file(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"w": np.full(3, 0.5), "w.exp_avg": np.full(3, 1e-3), "w.exp_avg_sq": np.full(3, 1e-2)}
    np.savez(tmp_path / "all.npz", **arrays)
    for place in (tmp_path / "all.npz", arrays):
        report = preflight(place, lr=1e-3, eps=0.0)
        assert report.total == preflight({"w": np.full(3, 0.5)}, lr=1e-3, updates={"w": np.full(3, -1e-5)}).total
        assert report.notes[-1] == "1 x 2 tensors of the optimizer used for the updates"
        assert report.parameters == 3
