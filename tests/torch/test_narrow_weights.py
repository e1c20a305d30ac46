"""Recorded updates of weights that are stored in 16 bits or fewer, beside counts by torch itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import ExponentHistogram, scan, update_report
from precision_lab.analysis.recording import RecordedTensor, Recording, read_recording
from precision_lab.presentation.plots.swamping import swamping_scan_figure
from precision_lab.presentation.tables.histograms import narrow_text, recording_text, scan_table
from precision_lab.presentation.tables.swamping import updates_table
from tests.conftest import CommandLine

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:.*master copy")]
UNKNOWN = "not measurable: stored in bf16 already, and what {} was to add is not known"


@pytest.fixture(scope="module")
def recorder_of(torch: Any) -> Any:
    from precision_lab.torch import GradientRecorder

    return GradientRecorder


def twin_of(torch: Any, optimizer: Any, scale: float = 1.0) -> tuple[Any, dict[Any, Any]]:
    """A copy of the optimizer in float64 with its state and gradients, and its parameters by those of the original."""
    parameters = {}
    groups = []
    for group in optimizer.param_groups:
        own = []
        for p in group["params"]:
            parameters[p] = torch.nn.Parameter(p.detach().double().clone())
            if p.grad is not None:
                parameters[p].grad = p.grad.to_dense().double() / scale
            own.append(parameters[p])
        groups.append({**group, "params": own, "fused": False, "foreach": False})
    twin = type(optimizer)(groups, lr=0.0)
    for p, state in optimizer.state.items():
        copied = {k: v if k == "step" or v is None else v.double() for k, v in copy.deepcopy(dict(state)).items()}
        twin.state[parameters[p]] = copied
    return twin, parameters


class Counted:
    """What a step intends, by torch in float64, and what it does, by the bits."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.should_move = self.stood_still = self.count = self.doubtful = 0
        self.squares = self.products = 0.0
        self.updates: list[Any] = []

    def step(self, optimizer: Any, step: Callable[[], Any] | None = None, scale: float = 1.0) -> None:
        twin, parameters = twin_of(self.torch, optimizer, scale)
        before = {p: (p.detach().clone(), q.detach().clone()) for p, q in parameters.items()}
        twin.step()
        (step or optimizer.step)()
        for p, q in parameters.items():
            narrow, wide = before[p]
            intended = (q.detach() - wide).float()
            same = p.detach().view(self.torch.int16) == narrow.view(self.torch.int16)
            self.count += p.numel()
            # gradient and decay cancel: whether what is left is zero depends on the last bit of a double
            if p.grad is not None:
                self.doubtful += int(((intended.abs() < 2**-45 * wide.abs()) & (p.grad.to_dense() != 0)).sum())
            self.should_move += int((intended != 0).sum())
            self.stood_still += int(((intended != 0) & same).sum())
            effective = p.detach().double() - narrow.double()
            self.squares += float(intended.double().square().sum())
            self.products += float((effective * intended.double()).sum())
            self.updates.append(intended)


def agrees(recorder: Any, counted: Counted, fmt: str = "bf16") -> None:
    total = recorder.update_report().total[("bf16", "fp16").index(fmt)]
    recording = recorder.recording()
    assert total.format.name == fmt
    assert total.count == counted.count
    assert counted.doubtful < 4
    assert abs(total.nonzero - counted.should_move) <= counted.doubtful
    assert abs(total.lost - counted.stood_still) <= counted.doubtful
    assert total.edq_ratio == pytest.approx(counted.products / counted.squares, rel=1e-6)
    assert sum(tensor.should_move for tensor in recording.tensors) == total.nonzero
    assert sum(tensor.unchanged for tensor in recording.tensors) == total.lost
    movement = recorder.update_report().movement
    assert movement.stood_still_share == total.lost_of_nonzero == total.lost / total.nonzero
    assert movement.weight_steps == counted.count
    assert sum(h.count for h in recorder.updates.values()) == counted.count
    largest = max(float(update.abs().max()) for update in counted.updates)
    assert max(h.max_abs for h in recorder.updates.values()) == pytest.approx(largest, rel=1e-6)


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.01}),
    "momentum": ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": ("Adam", {"lr": 1e-3, "amsgrad": True, "weight_decay": 0.01}),
    "adamw": ("AdamW", {"lr": 1e-3, "weight_decay": 0.1}),
    "adamw, fused": ("AdamW", {"lr": 1e-3, "weight_decay": 0.1, "fused": True}),
    "adamw, tiny": ("AdamW", {"lr": 1e-7}),
}


def model_of(torch: Any, dtype: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(20, 200), torch.nn.Tanh(), torch.nn.LayerNorm(200), torch.nn.Linear(200, 170))
    return torch.nn.Sequential(*layers).to(dtype)


def backward(torch: Any, model: Any, scaled: Callable[[Any], Any] = lambda loss: loss) -> None:
    model.zero_grad()
    scaled(model(torch.randn(8, 20).to(model[0].weight.dtype)).float().square().mean()).backward()


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "bfloat16") for name in RUNS), ("sgd", "float16"), ("momentum", "float16")]
)
def test_lost_is_what_stood_still_and_edq_what_was_made(torch: Any, recorder_of: Any, name: str, dtype: str) -> None:
    """Of a small parameter, whose reports wait, and of a large one."""
    model = model_of(torch, getattr(torch, dtype))
    kind, options = RUNS[name]
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    counted = Counted(torch)
    with recorder_of(model, optimizer) as recorder:
        for _ in range(4):
            backward(torch, model)
            counted.step(optimizer)
    agrees(recorder, counted, {"bfloat16": "bf16", "float16": "fp16"}[dtype])
    assert counted.stood_still > 0


def test_what_the_step_made_of_it_is_not_what_one_rounding_would_have(torch: Any, recorder_of: Any) -> None:
    """AdamW's decay is rounded apart in torch. The other format's column is about the same intended updates."""
    parameter = torch.nn.Parameter(torch.linspace(1, 2, 5000).bfloat16())
    optimizer = torch.optim.AdamW([parameter], lr=0.003, weight_decay=1.0)
    before = parameter.detach().float().numpy().copy()
    counted = Counted(torch)
    with recorder_of(torch.nn.ParameterList([parameter]), optimizer) as recorder:
        parameter.grad = torch.ones_like(parameter)
        counted.step(optimizer)
    agrees(recorder, counted)
    made, other = recorder.recording().tensors[0].reports
    update = counted.updates[0].numpy()
    assert made.lost != update_report(before, update, "bf16").lost
    assert other == update_report(before, recorder_update(torch, before, 0.003, 1.0), "fp16")


def recorder_update(torch: Any, before: Any, rate: float, decay: float) -> Any:
    """What the first step of AdamW intends where all gradients are 1."""
    return (
        -rate / (1 - 0.9) * ((1 - 0.9) / (1 / (1 - 0.999) ** 0.5 * (1 - 0.999) ** 0.5 + 1e-8))
        - rate * decay * before.astype(np.float64)
    ).astype(np.float32)


def test_a_step_that_moves_all_and_one_that_moves_nothing(torch: Any, recorder_of: Any) -> None:
    for rate, lost in ((0.25, 0.0), (1e-4, 1.0)):
        parameter = torch.nn.Parameter(torch.linspace(1, 1.99, 999).bfloat16())
        optimizer = torch.optim.SGD([parameter], lr=rate)
        with recorder_of(torch.nn.ParameterList([parameter]), optimizer) as recorder:
            parameter.grad = parameter.detach().clone()
            optimizer.step()
        (report,) = (r for r in recorder.update_report().total if r.format.name == "bf16")
        assert report.lost_of_nonzero == lost
        assert report.edq_ratio == pytest.approx(1 - lost, abs=1e-3)
        assert recorder.update_report().movement.stood_still_share == lost
        assert recorder.updates["0"].max_abs == pytest.approx(rate * 1.99, rel=0.01)
        assert recorder.ratios["0"].max_abs == pytest.approx(rate)


def language_model(torch: Any) -> Any:
    torch.manual_seed(0)
    width = 48
    block = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
    return torch.nn.Sequential(torch.nn.Embedding(64, width), block, torch.nn.Linear(width, 64))


def test_a_run_that_stands_still_and_its_twin_in_float32_agree(torch: Any, recorder_of: Any) -> None:
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = language_model(torch).to(dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        with recorder_of(model, optimizer, every=3, formats=["bf16"]) as recorder:
            for _ in range(10):
                tokens = torch.randint(0, 64, (8, 13))
                optimizer.zero_grad()
                logits = model(tokens[:, :-1]).float().flatten(0, 1)
                torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
                optimizer.step()
        found[dtype] = recorder
    narrow, wide = (found[dtype].update_report() for dtype in (torch.bfloat16, torch.float32))
    assert narrow.total[0].lost_of_nonzero > 0.6
    assert narrow.total[0].lost_of_nonzero == pytest.approx(wide.total[0].lost_of_nonzero, abs=0.03)
    assert narrow.total[0].edq_ratio == pytest.approx(wide.total[0].edq_ratio, abs=0.05)
    assert narrow.movement.stood_still_share == narrow.total[0].lost_of_nonzero
    assert wide.movement.stood_still_share < 0.001
    assert narrow_text(found[torch.float32].recording()) == ""
    share = f"{100 * narrow.movement.stood_still_share:.2f}"
    expected = f"{share} % of the weights that should have moved did not, in the 4 recorded steps."
    assert narrow_text(found[torch.bfloat16].recording()) == f"Weights stored in bf16: {expected}"
    assert recording_text(found[torch.bfloat16].recording()).endswith(f"; {expected}")


# ---- how the gradient comes ----


@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_fused_optimizer_under_a_scaler(torch: Any, recorder_of: Any, unscale_first: bool) -> None:
    """Gradients are unscaled first, by whom ever; steps that are skipped intend nothing."""
    model = model_of(torch, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0 * 2**10)  # no power of two: what is divided is not what was
    counted = Counted(torch)
    with recorder_of(model, optimizer, scaler=scaler) as recorder:
        for step in range(4):
            backward(torch, model, scaler.scale)
            if step == 1:
                model[0].weight.grad[0, 0] = torch.inf
            if unscale_first:
                scaler.unscale_(optimizer)
            scale = 1.0 if unscale_first else scaler.get_scale()
            if step == 1:
                scaler.step(optimizer)
            else:
                counted.step(optimizer, lambda: scaler.step(optimizer), scale)
            scaler.update(3.0 * 2**9)
    assert recorder.recording().skipped_steps == 1
    agrees(recorder, counted)


def test_accumulated_clipped_and_sparse_gradients_closures_and_groups(torch: Any, recorder_of: Any) -> None:
    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(50, 20, sparse=True)
            self.out = torch.nn.Linear(20, 30)
            self.late = torch.nn.Parameter(torch.ones(30))

    torch.manual_seed(0)
    model = Model().bfloat16()
    groups = [{"params": model.table.parameters()}, {"params": model.out.parameters(), "lr": 0.5, "momentum": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.01, maximize=True)
    counted = Counted(torch)

    def closure() -> Any:
        optimizer.zero_grad()
        for rows in ([1, 1, 3], [3, 7, 9]):  # accumulated
            loss = (model.out(model.table(torch.tensor(rows))) * model.late).square().mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.out.parameters(), 0.01)
        return loss

    def step() -> None:
        closure()
        counted.step(optimizer, lambda: optimizer.step(closure))

    with recorder_of(model, optimizer) as recorder:
        step()
        optimizer.add_param_group({"params": [model.late], "lr": 0.3})
        step()
    agrees(recorder, counted)
    assert [tensor.steps for tensor in recorder.recording().tensors] == [1, 2, 2, 2]


def test_weights_in_another_layout(torch: Any, recorder_of: Any) -> None:
    parameter = torch.nn.Parameter(torch.rand(30, 40).add(1).bfloat16().T)
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    counted = Counted(torch)
    with recorder_of(torch.nn.ParameterList([parameter]), optimizer) as recorder:
        parameter.grad = torch.rand(40, 30).bfloat16()
        counted.step(optimizer)
    agrees(recorder, counted)


def test_weights_without_a_gradient_are_not_meant_to_move(torch: Any, recorder_of: Any) -> None:
    model = model_of(torch, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    with recorder_of(model, optimizer) as recorder:
        backward(torch, model)
        model[0].weight.grad = None
        optimizer.step()
    first = recorder.recording().tensors[0]
    assert (first.should_move, first.unchanged, first.steps, first.unmeasured) == (0, 0, 1, "")
    assert first.updates is not None
    assert first.updates.zero == 4000


def test_a_model_that_becomes_narrow_and_wide_again(torch: Any, recorder_of: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(100))
    optimizer = torch.optim.SGD([parameter], lr=1e-4)
    with recorder_of(torch.nn.ParameterList([parameter]), optimizer) as recorder:
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            parameter.data = parameter.data.to(dtype)
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    (tensor,) = recorder.recording().tensors
    assert (tensor.should_move, tensor.unchanged) == (300, 100)
    assert (tensor.reports[0].count, tensor.reports[0].lost) == (300, 300)
    assert tensor.updates is not None
    assert tensor.updates.binades == {-14: 300}


# ---- what cannot be known ----


def subclass_of(torch: Any) -> Any:
    class MyAdamW(torch.optim.AdamW):  # type: ignore[misc]
        pass

    return MyAdamW


OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "MyAdamW": lambda torch, p: subclass_of(torch)(p, lr=1e-4),
    "RMSprop": lambda torch, p: torch.optim.RMSprop(p, lr=1e-4),
    "Adagrad": lambda torch, p: torch.optim.Adagrad(p, lr=1e-4),
    "NAdam": lambda torch, p: torch.optim.NAdam(p, lr=1e-4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_updates_of_other_optimizers_are_not_measurable(
    torch: Any, recorder_of: Any, name: str, tmp_path: Path, command_line: CommandLine
) -> None:
    model = model_of(torch, torch.bfloat16)
    optimizer = OTHERS[name](torch, model.parameters())
    due = still = 0
    with recorder_of(model, optimizer) as recorder:
        for _ in range(3):
            backward(torch, model)
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            for old, p in zip(before, model.parameters(), strict=True):
                due += int((p.grad != 0).sum())
                still += int(((p.grad != 0) & (old == p.detach())).sum())
    assert still > 1000
    assert recorder.updates == recorder.ratios == {}
    report, reason = recorder.update_report(), UNKNOWN.format(name)
    assert (report.tensors, report.total, report.formats) == ((), (), ())
    assert {info.skipped for info in report.skipped} == {reason}
    assert len(report.skipped) == 6
    assert (report.movement.should_move, report.movement.stood_still) == (due, still)
    table = updates_table(report)
    assert table.columns == ("tensor", "stood still %", "dtype", "weights x steps")
    assert table.totals == (
        "total",
        f"{100 * still / due:.2f}",
        "",
        f"{sum(p.numel() for p in model.parameters()):,} x 3",
    )
    assert reason in table.note
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["tensors"] == []
    assert {entry["reason"] for entry in plain["skipped"]} == {reason}
    assert plain["total"]["stood_still_share"] == still / due
    assert plain["total"]["formats"] == {}
    with pytest.raises(ValueError, match="nothing to draw"):
        swamping_scan_figure(report)

    path = tmp_path / "run.json"
    recorder.save(path)
    recording = read_recording(path)
    assert recording == recorder.recording()
    assert all((t.updates, t.ratios, t.reports, t.unmeasured) == (None, None, (), reason) for t in recording.tensors)
    shown = command_line("scan", path)
    assert shown.status == 0, shown.err
    first, *_, last = shown.out.splitlines()
    words = f"{100 * still / due:.2f} % of the weights with a gradient did not move, in the 3 recorded steps"
    assert first == f"run.json: Weights stored in bf16: {words}; how much of their updates was lost is {reason}."
    assert last.startswith(f"run.json: 3 steps of Sequential, the gradients of 3 are counted; {words}.")


def test_weights_in_8_bits_of_an_optimizer_of_ones_own(torch: Any, recorder_of: Any) -> None:
    class Own(torch.optim.Optimizer):  # type: ignore[misc]
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

        @torch.no_grad()  # type: ignore[untyped-decorator]
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.copy_((p.float() - 0.01 * p.grad.float()).to(p.dtype))

    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz):
        parameter = torch.nn.Parameter(torch.linspace(0, 2, 50).to(dtype))
        with recorder_of(torch.nn.ParameterList([parameter]), Own([parameter])) as recorder:
            parameter.grad = torch.ones(50).to(dtype)
            before = parameter.detach().float()
            recorder._optimizers[-1].step()
        (tensor,) = recorder.recording().tensors
        assert tensor.unmeasured.startswith(f"not measurable: stored in fp8_{str(dtype).split('_', 1)[1]} already")
        assert (tensor.should_move, tensor.unchanged) == (50, int((before == parameter.detach().float()).sum()))
        assert 0 < tensor.unchanged < 50


def test_known_and_unknown_rows_in_one_table_worst_first(torch: Any, recorder_of: Any) -> None:
    model = torch.nn.ParameterDict(
        {
            "wide": torch.nn.Parameter(torch.ones(10)),
            "moves": torch.nn.Parameter(torch.ones(20).bfloat16()),
            "stands": torch.nn.Parameter(torch.ones(30).bfloat16()),
        }
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with recorder_of(model, optimizer) as recorder:
        for name, size in (("wide", 1e-3), ("moves", 0.5), ("stands", 1e-3)):
            model[name].grad = torch.full_like(model[name], size)
        optimizer.step()
    table = updates_table(recorder.update_report())
    assert [row[:4] for row in table.rows] == [
        ("stands", "100", "bfloat16", "30"),
        ("wide", "0", "float32", "10"),
        ("moves", "0", "bfloat16", "20"),
    ]
    assert [row[7].split(" / ")[0] for row in table.rows] == ["100", "100", "0"]
    assert table.totals is not None
    assert table.totals[:4] == ("total", "50.00", "", "60")
    assert "float32 or float64: u is what was measured" in table.note
    assert "16 bits or fewer: u is what the optimizer intended" in table.note


# ---- the warning ----


@pytest.mark.filterwarnings("error")
def test_narrow_weights_without_a_master_copy_are_warned_of_and_the_cure_cures(torch: Any, recorder_of: Any) -> None:
    model = model_of(torch, torch.bfloat16)
    with pytest.warns(UserWarning, match="100 % of the weights .* stored in bf16, without a master copy") as caught:
        recorder_of(model, torch.optim.AdamW(model.parameters(), lr=1e-4)).attach()
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert "\n" not in message
    assert "model.float()" in message
    with (
        pytest.warns(UserWarning, match="how many cannot be measured with RMSprop") as caught,
        recorder_of(model, torch.optim.RMSprop(model.parameters())),
    ):
        pass
    assert caught[0].filename == __file__
    half = torch.nn.ModuleList([torch.nn.Linear(9, 10), torch.nn.Linear(9, 10).half()])
    with pytest.warns(UserWarning, match="50 % .* fp16"):
        recorder_of(half, torch.optim.SGD(half.parameters(), lr=0.1)).attach()
    recorder_of(half, torch.optim.SGD(half[0].parameters(), lr=0.1)).attach()  # the narrow ones are not updated
    recorder_of(half).attach()

    model.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with recorder_of(model, optimizer) as recorder:
        with torch.autocast("cpu", torch.bfloat16):
            backward(torch, model)
        optimizer.step()
    assert recorder.update_report().movement.stood_still_share < 0.01


def test_elements_are_written_times_steps(torch: Any, recorder_of: Any) -> None:
    model = model_of(torch, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder_of(model, optimizer) as recorder:
        for _ in range(6):
            backward(torch, model)
            optimizer.step()
    rows = {row[0]: row for row in scan_table(recorder.report()).rows}
    assert rows["3.weight"][2] == "34,000 x 6"
    assert {row[0]: row[3] for row in updates_table(recorder.update_report()).rows}["3.weight"] == "34,000 x 6"
    assert "parameter x the gradients that were counted" in scan_table(recorder.report()).note
    assert scan_table(scan({"x": np.ones(3, np.float32)})).rows[0][2] == "3"
    assert recorder.update_report().to_dict()["total"]["weights"] == sum(p.numel() for p in model.parameters())


def test_a_recording_says_nothing_of_weights_that_no_step_was_to_change() -> None:
    tensor = RecordedTensor("a", "bfloat16", (2,), ExponentHistogram.of([1.0, 2.0]), 1)
    assert narrow_text(Recording("Net", (tensor,), 1, 0, 1)) == ""
