"""GradientRecorder on real training loops, against brute-force counts of the same gradients."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab import ExponentHistogram, scan, update_report
from precision_lab.analysis.recording import Recording, read_recording
from precision_lab.presentation.plots.histograms import scan_figure
from precision_lab.presentation.plots.swamping import swamping_scan_figure
from precision_lab.presentation.tables.histograms import scan_table
from precision_lab.presentation.tables.swamping import updates_table
from tests.flushing import in_a_thread

pytestmark = pytest.mark.torch

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def recorder_of(torch: Any) -> Any:
    from precision_lab.torch import GradientRecorder

    return GradientRecorder


@pytest.fixture(autouse=True)
def seeded(torch: Any) -> None:
    torch.manual_seed(0)


def network(torch: Any, *sizes: int) -> Any:
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))


def loss_of(torch: Any, model: Any, n: int = 16) -> Any:
    weight = next(model.parameters())
    return model(torch.randn(n, weight.shape[1]).to(weight.dtype)).square().mean()


def train(torch: Any, model: Any, optimizer: Any, steps: int, seen: list[Any] | None = None) -> None:
    """A plain loop; `seen` gets copies of the gradients and of the weights before and after each step."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(torch, model).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        if seen is not None:
            seen.append((gradients, before, {name: p.detach().clone() for name, p in model.named_parameters()}))


def brute_force(arrays: list[Any]) -> dict[str, Any]:
    """Count by NumPy and Python alone, in float64."""
    x = np.abs(np.concatenate([np.asarray(a.double()).ravel() for a in arrays]))
    finite = x[np.isfinite(x) & (x > 0)]
    binades, counts = np.unique(np.frexp(finite)[1] - 1, return_counts=True)
    return {
        "zero": int((x == 0).sum()),
        "nonfinite": int((~np.isfinite(x)).sum()),
        "binades": dict(zip(binades.tolist(), counts.tolist(), strict=True)),
        "flushed in fp16": int((finite.astype(np.float16) == 0).sum()),
        "flushed in fp8_e5m2": int((finite.astype(ml_dtypes.float8_e5m2) == 0).sum()),
        "min": finite.min() if finite.size else None,
        "max": x[np.isfinite(x)].max() if np.isfinite(x).any() else None,
    }


def counted(histogram: ExponentHistogram) -> dict[str, Any]:
    return {
        "zero": histogram.zero,
        "nonfinite": histogram.nonfinite,
        "binades": {e: n for e, n in histogram.binades.items() if n},
        "flushed in fp16": histogram.flushed("fp16"),
        "flushed in fp8_e5m2": histogram.flushed("fp8_e5m2"),
        "min": histogram.min_nonzero,
        "max": histogram.max_abs,
    }


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda torch, p: torch.optim.SGD(p, lr=0.1, foreach=False),
    "momentum, foreach": lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adamw, fused": lambda torch, p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adam": lambda torch, p: torch.optim.Adam(p, lr=1e-3),
    "adagrad": lambda torch, p: torch.optim.Adagrad(p),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:.*master copy")
def test_histograms_equal_a_brute_force_count_and_the_recorder_changes_nothing(
    torch: Any, recorder_of: Any, name: str, dtype: str
) -> None:
    seen: list[Any] = []
    weights = []
    for recorded in (False, True):
        torch.manual_seed(1)
        model = network(torch, 20, 30, 7).to(getattr(torch, dtype))
        optimizer = OPTIMIZERS[name](torch, model.parameters())
        if recorded:
            with recorder_of(model, optimizer) as recorder:
                train(torch, model, optimizer, 5, seen)
        else:
            train(torch, model, optimizer, 5)
        weights.append(np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()]))
    np.testing.assert_array_equal(weights[0], weights[1])  # Adam in fp16 makes NaN of some: its epsilon is 0 there

    recording = recorder.recording()
    assert (recording.steps, recording.recorded_steps, recording.skipped_steps) == (5, 5, 0)
    for tensor in recording.tensors:
        gradients = [g[tensor.name] for g, _, _ in seen]
        assert counted(tensor.gradients) == brute_force(gradients)
        assert tensor.gradients == recorder.gradients[tensor.name]
        assert (tensor.dtype, tensor.times) == (dtype, 5)
        if dtype in ("bfloat16", "float16"):
            continue  # test_narrow_weights.py
        wide = torch.float64 if dtype == "float64" else torch.float32
        befores, afters = ([step[i][tensor.name].to(wide) for step in seen] for i in (1, 2))
        updates = [after - before for before, after in zip(befores, afters, strict=True)]
        assert tensor.updates is not None
        assert counted(tensor.updates) == brute_force(updates)
        unchanged = sum(int(((u == 0) & (g != 0)).sum()) for u, g in zip(updates, gradients, strict=True))
        assert tensor.unchanged == unchanged
        assert tensor.should_move == sum(int((g != 0).sum()) for g in gradients)
        w, u = (np.concatenate([np.asarray(x).ravel() for x in xs]) for xs in (befores, updates))
        assert tensor.reports == tuple(update_report(w, u, fmt) for fmt in ("bf16", "fp16"))
        with np.errstate(all="ignore"):
            ratio = u / w
        assert tensor.ratios == recorder.ratios[tensor.name] == ExponentHistogram.of(ratio)


def test_large_and_small_parameters_are_counted_alike(torch: Any, recorder_of: Any) -> None:
    """Updates of small parameters wait; asking in between neither loses nor doubles them."""
    model = network(torch, 200, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[Any] = []
    with recorder_of(model, optimizer) as recorder:
        for _ in range(3):
            train(torch, model, optimizer, 2, seen)
            asked = recorder.updates
    assert asked == recorder.updates
    for name, histogram in asked.items():
        assert counted(histogram) == brute_force([after[name] - before[name] for _, before, after in seen])


def test_weights_in_any_layout(torch: Any, recorder_of: Any) -> None:
    """Transposed and strided parameters: the weight and the update of an element stay together."""
    whole = torch.randn(6, 40)
    for value in (whole.T, whole[:, ::2], whole.T[::2], whole):
        parameter = torch.nn.Parameter(value)
        model = torch.nn.ParameterList([parameter])
        optimizer = torch.optim.SGD([parameter], lr=1e-3)
        before = parameter.detach().clone()
        with recorder_of(model, optimizer) as recorder:
            parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
        update = parameter.detach() - before
        expected = update_report(before.contiguous().numpy(), update.contiguous().numpy(), "bf16")
        assert recorder.recording().tensors[0].reports[0] == expected
        assert counted(recorder.gradients["0"]) == brute_force([parameter.grad])


def test_a_gradient_in_another_layout_than_its_weights(torch: Any, recorder_of: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(6, 40).T)
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    with recorder_of(torch.nn.ParameterList([parameter]), optimizer) as recorder:
        parameter.grad = torch.ones(40, 6)
        parameter.grad[0] = 0  # stands still with reason
        parameter.grad[1:5, 0] = 1e-6  # stand still for nothing
        optimizer.step()
    assert recorder.recording().tensors[0].unchanged == 4


def test_every_second_step(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[Any] = []
    with recorder_of(model, optimizer, every=2, formats=()) as recorder:
        train(torch, model, optimizer, 5, seen)
    recording = recorder.recording()
    assert (recording.steps, recording.recorded_steps, recording.every) == (5, 3, 2)
    for name, histogram in recorder.gradients.items():
        assert counted(histogram) == brute_force([g[name] for g, _, _ in seen[::2]])
        assert counted(recorder.updates[name]) == brute_force([a[name] - b[name] for _, b, a in seen[::2]])
    assert all(tensor.reports == () for tensor in recording.tensors)


def test_gradient_accumulation_counts_the_sum_and_not_its_parts(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder_of(model, optimizer) as recorder:
        for _ in range(4):
            loss_of(torch, model).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
    assert {name: counted(h) for name, h in recorder.gradients.items()} == {
        name: brute_force([g]) for name, g in gradients.items()
    }


def test_without_an_optimizer_you_say_when_gradients_are_final(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    seen = []
    with recorder_of(model, every=2) as recorder:
        for _ in range(3):
            model.zero_grad()
            loss_of(torch, model).backward()
            loss_of(torch, model).backward()
            seen.append({name: p.grad.clone() for name, p in model.named_parameters()})
            recorder.step()
    for name, histogram in recorder.gradients.items():
        assert counted(histogram) == brute_force([g[name] for g in seen[::2]])
    assert recorder.updates == recorder.ratios == {}
    assert recorder.recording().steps == 3
    with pytest.raises(RuntimeError, match="not attached"):
        recorder.step()


@pytest.mark.parametrize("options", [{}, {"line_search_fn": "strong_wolfe"}], ids=["plain", "line search"])
def test_a_closure_hands_over_a_gradient_at_each_evaluation(torch: Any, recorder_of: Any, options: Any) -> None:
    model = network(torch, 5, 6)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, **options)
    seen = []
    inputs = torch.randn(8, 5)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        seen.append({name: p.grad.clone() for name, p in model.named_parameters()})
        return loss

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with recorder_of(model, optimizer) as recorder:
        assert optimizer.step(closure) > 0
        optimizer.step(closure=closure)
        middle = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert len(seen) >= 4
    assert recorder.recording().steps == 2
    for name, histogram in recorder.gradients.items():
        assert counted(histogram) == brute_force([g[name] for g in seen])
        assert recorder.updates[name].count == 2 * before[name].numel()
    assert any(not torch.equal(before[name], middle[name]) for name in before)


# ---- GradScaler ----


def scaled_steps(
    torch: Any, recorder_of: Any, bad: tuple[int, ...], *, fused: bool, scaler_known: bool, unscale_first: bool = False
) -> tuple[Any, list[dict[str, Any]]]:
    """Six steps under a GradScaler, those of `bad` with an infinite gradient; the true gradients of the others."""
    model = network(torch, 5, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    true = []
    with recorder_of(model, optimizer, scaler=scaler if scaler_known else None) as recorder:
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(torch, model)).backward()
            scale = scaler.get_scale()
            if step in bad:
                next(model.parameters()).grad[0, 0] = torch.inf
            else:
                true.append({name: p.grad / scale for name, p in model.named_parameters()})
            if unscale_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert "step" not in vars(scaler)
    return recorder, true


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize(("fused", "scaler_known"), [(False, False), (False, True), (True, False), (True, True)])
def test_gradients_are_unscaled_and_skipped_steps_counted(
    torch: Any, recorder_of: Any, fused: bool, scaler_known: bool, unscale_first: bool
) -> None:
    recorder, true = scaled_steps(
        torch, recorder_of, (1, 4), fused=fused, scaler_known=scaler_known, unscale_first=unscale_first
    )
    recording = recorder.recording()
    assert recording.steps == recording.recorded_steps == 4
    assert recording.skipped_steps == (2 if fused or scaler_known else 0)  # otherwise nobody tells us
    for name, histogram in recorder.gradients.items():
        assert counted(histogram) == brute_force([g[name] for g in true])
        assert histogram.nonfinite == 0
        assert recorder.updates[name].count == histogram.count


def test_two_recorders_of_one_scaler_end_in_any_order(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    recorders = [recorder_of(model, optimizer, scaler=scaler) for _ in range(2)]

    def bad_step() -> None:
        scaler.scale(loss_of(torch, model)).backward()
        model[0].weight.grad[0, 0] = torch.nan
        scaler.step(optimizer)
        scaler.update()

    for recorder in recorders:
        recorder.attach()
    bad_step()
    recorders[0].detach()
    bad_step()
    recorders[1].detach()
    bad_step()
    assert [recorder.recording().skipped_steps for recorder in recorders] == [1, 2]


def test_clipped_gradients_are_recorded_as_the_optimizer_gets_them(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder_of(model, optimizer) as recorder:
        (1000 * loss_of(torch, model)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-6)
        optimizer.step()
    assert all(histogram.max_abs <= 1e-6 for histogram in recorder.gradients.values())


# ---- all kinds of parameters ----


def test_a_parameter_without_gradients_is_a_row_that_says_so(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6, 4)
    model[2].weight.requires_grad_(False)
    model.never = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder_of(model, optimizer) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.Sequential(*list(model.children())[:4])(torch.randn(8, 5)).mean().backward()
            optimizer.step()
    reasons = {info.name: info.skipped for info in recorder.report().skipped}
    assert reasons == {"never": "no gradient in any of 3 recorded steps", "2.weight": "frozen, requires_grad is False"}
    assert set(recorder.gradients) == {"0.weight", "0.bias", "2.bias"}
    # both stand still, and that is counted too: the optimizer was to update them
    assert recorder.updates["never"].zero == recorder.updates["never"].count == 18


def test_a_model_without_any_gradient(torch: Any, recorder_of: Any, tmp_path: Path) -> None:
    model = network(torch, 5, 6).requires_grad_(False)
    with recorder_of(model) as recorder:
        recorder.step()
    assert {info.skipped for info in recorder.report().skipped} == {"frozen, requires_grad is False"}
    assert recorder.report().tensors == ()
    recorder.save(tmp_path / "run.json")
    assert len(scan(tmp_path / "run.json").skipped) == 2
    idle = recorder_of(network(torch, 5, 6))
    assert {info.skipped for info in idle.report().skipped} == {"no step was recorded"}
    with pytest.raises(ValueError, match="a ReLU, has no parameters"):
        recorder_of(torch.nn.ReLU())


def test_a_sparse_gradient_counts_as_the_dense_one_that_it_stands_for(torch: Any, recorder_of: Any) -> None:
    found = []
    for sparse in (False, True):
        torch.manual_seed(3)
        model = torch.nn.Embedding(50, 4, sparse=sparse)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with recorder_of(model, optimizer) as recorder:
            for rows in ([1, 1, 7], [2]):
                optimizer.zero_grad()
                model(torch.tensor(rows)).square().sum().backward()
                optimizer.step()
        found.append(recorder.recording().tensors[0])
    assert found[0].gradients == found[1].gradients
    assert found[0].gradients.zero == 400 - 12
    # torch rounds the updates of the two apart
    assert [t.updates.nonzero for t in found] == [12, 12]
    assert [t.unchanged for t in found] == [0, 0]


def test_shared_weights_are_counted_once(torch: Any, recorder_of: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 5))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder_of(model, optimizer) as recorder:
        train(torch, model, optimizer, 2)
    assert [(t.name, t.shared, t.gradients.count) for t in recorder.recording().tensors] == [
        ("0.weight", ("1.weight",), 50),
        ("0.bias", (), 10),
        ("1.bias", (), 10),
    ]


def test_nan_and_infinite_gradients_are_counted_as_such(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder_of(model, optimizer) as recorder:
        loss_of(torch, model).backward()
        model[0].weight.grad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        optimizer.step()
    assert recorder.gradients["0.weight"].nonfinite == recorder.updates["0.weight"].nonfinite == 3
    assert recorder.recording().tensors[0].reports[0].nonfinite == 3


def test_only_what_is_in_a_group_of_the_optimizer_is_counted(torch: Any, recorder_of: Any) -> None:
    """Groups that are added later are seen; what is in none is named."""
    model = network(torch, 5, 6, 4)
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.1}], lr=0.2)
    with recorder_of(model, optimizer) as recorder:
        train(torch, model, optimizer, 1)
        assert {info.name for info in recorder.report().skipped} == {"2.weight", "2.bias"}
        optimizer.add_param_group({"params": [model[2].weight]})
        train(torch, model, optimizer, 1)
    for counted_ in (recorder.gradients, recorder.updates):
        assert {name: h.count for name, h in counted_.items()} == {"0.weight": 60, "0.bias": 12, "2.weight": 24}
    assert {info.name: info.skipped for info in recorder.report().skipped} == {"2.bias": "in no group of the optimizer"}
    assert [tensor.steps for tensor in recorder.recording().tensors] == [2, 2, 1, 0]


def test_the_other_network_of_a_gan_is_not_counted(torch: Any, recorder_of: Any) -> None:
    """What the generator's step leaves in the discriminator's gradients is nobody's gradient."""
    model = torch.nn.ModuleDict({"g": torch.nn.Linear(4, 8), "d": torch.nn.Linear(8, 1)})
    optimizers = {name: torch.optim.Adam(model[name].parameters()) for name in "gd"}
    recorders = {name: recorder_of(model, optimizer) for name, optimizer in optimizers.items()}
    seen: dict[str, list[Any]] = {"g": [], "d": []}
    for recorder in recorders.values():
        recorder.attach()
    for name in "gdgd":
        model.zero_grad()
        (model["d"](model["g"](torch.randn(16, 4))).mean() * (1.0 if name == "d" else 1e-6)).backward()
        seen[name] += [p.grad.clone() for p in model[name].parameters() if p.grad is not None]
        optimizers[name].step()
    for name, recorder in recorders.items():
        recorder.detach()
        assert counted(recorder.report().total) == brute_force(seen[name])
        assert {info.skipped for info in recorder.report().skipped} == {"in no group of the optimizer"}
        assert {info.name[0] for info in recorder.report().skipped} == {"g", "d"} - {name}


def test_a_complex_parameter_is_a_row(torch: Any, recorder_of: Any) -> None:
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder_of(model, optimizer) as recorder:
        (model[0] * model[0].conj()).real.sum().backward()
        optimizer.step()
    assert [info.skipped for info in recorder.report().skipped] == ["complex parameter"]


# ---- attaching and detaching ----


def test_bad_arguments(torch: Any, recorder_of: Any) -> None:
    model, other = network(torch, 5, 6), network(torch, 5, 6)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for arguments, options, message in (
        ((model, optimizer), {}, "updates no parameter of this model"),
        ((model,), {"every": 0}, "every must be an integer of at least 1, got 0"),
        ((model,), {"every": True}, "every must be"),
        ((model,), {"formats": ["fp17"]}, "fp17"),
        ((model,), {"scaler": object()}, "give the optimizer too"),
    ):
        with pytest.raises(ValueError, match=message):
            recorder_of(*arguments, **options)


def test_attached_twice(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for recorder in (recorder_of(model, optimizer), recorder_of(model)):
        with recorder, pytest.raises(RuntimeError, match="attached already: call detach"):
            recorder.attach()
    recorder = recorder_of(model, optimizer)
    with pytest.raises(RuntimeError, match="do not call step"), recorder:
        recorder.step()
    with recorder:
        train(torch, model, optimizer, 1)
    train(torch, model, optimizer, 1)
    recorder.attach()
    train(torch, model, optimizer, 1)
    recorder.detach()
    recorder.detach()
    train(torch, model, optimizer, 1)
    assert recorder.recording().steps == 2


def test_nothing_is_left_behind(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    before = {**vars(optimizer)}, set(vars(model)), set(vars(scaler))
    recorder = recorder_of(model, optimizer, scaler=scaler)

    def broken_off() -> None:
        with recorder:
            train(torch, model, optimizer, 1)
            copy.deepcopy(model)  # also in between
            pickle.dumps(model)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert (set(vars(optimizer)), set(vars(model)), set(vars(scaler))) == (set(before[0]), before[1], before[2])
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [*again.state_dict()] == [*model.state_dict()]
    train(torch, model, optimizer, 1)
    assert recorder.recording().steps == 1


def test_a_step_that_raises_is_not_taken_for_an_update(torch: Any, recorder_of: Any) -> None:
    model = network(torch, 5, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> Any:
        raise OverflowError

    with recorder_of(model, optimizer) as recorder:
        with pytest.raises(OverflowError):
            optimizer.step(closure)
        train(torch, model, optimizer, 1)
    assert recorder.updates["0.bias"].count == 6


# ---- what becomes of it ----


@pytest.fixture
def recorded(torch: Any, recorder_of: Any) -> Any:
    model = network(torch, 20, 30, 7)
    model.never = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with recorder_of(model, optimizer) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            (torch.nn.Sequential(*list(model.children()))(torch.randn(8, 20)).mean() * 1e-4).backward()
            optimizer.step()
    return recorder


def test_a_saved_recording_is_read_back_and_scanned(recorded: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    recorded.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    recording = read_recording(path)
    assert recording == recorded.recording() == Recording.from_dict(json.loads(json.dumps(recording.to_dict())))
    live, read = recorded.report(), scan(path)
    assert [t.histogram for t in live.tensors] == [t.histogram for t in read.tensors]
    assert [(i.name, i.skipped) for i in read.skipped] == [("never", "no gradient in any of 4 recorded steps")]
    assert scan_table(live).rows == scan_table(read).rows
    assert read.total.flushed("fp16") > 0
    plan = recorded.plan_loss_scale("fp16")
    assert plan.histogram == live.total
    assert plan.recommended is not None
    assert plan.recommended.loss_scale > 1


def test_tables_and_figures_take_it(recorded: Any) -> None:
    from matplotlib import pyplot

    updates = recorded.update_report()
    assert updates_table(updates).columns[-2:] == ("bf16", "fp16")
    assert updates.total[0].lost > 0
    for figure in (scan_figure(recorded.report()), swamping_scan_figure(updates)):
        pyplot.close(figure)


def test_tensorboard_gets_our_bins(torch: Any, recorder_of: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(8))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    steps = [[0.0, 0, 1, -1.5, 0.25, 2**-20, torch.inf, torch.nan], [0.0, 0, 0, 0, 0, 0, 0, 2], []]
    with SummaryWriter(tmp_path) as writer, recorder_of(model, optimizer) as recorder:
        for step, gradient in enumerate(steps):
            if gradient:
                model[0].grad = torch.tensor(gradient)
                optimizer.step()
            recorder.write(writer, step)
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    assert set(events.Tags()["histograms"]) == {"gradients/0", "updates/0"}
    found = [
        (e.step, e.histogram_value.min, {right - 1: n for right, n in _buckets(e.histogram_value)}, e.histogram_value)
        for e in events.Histograms("gradients/0")
    ]
    assert [(step, left, bars) for step, left, bars, _ in found] == [
        (0, -151, {-151: 2, 0: 2, -2: 1, -20: 1, 129: 2}),
        (1, -151, {-151: 7, 1: 1}),
    ]
    assert (found[0][3].max, found[0][3].num, len(found[0][3].bucket)) == (130, 8, 281)
    assert found[1][3].sum == 7 * -150.5 + 1.5


def _buckets(histogram: Any) -> list[tuple[float, float]]:
    return [(right, n) for right, n in zip(histogram.bucket_limit, histogram.bucket, strict=True) if n]


def test_the_lines_of_the_readme(torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    lines = next(block for block in blocks if "GradientRecorder" in block)
    monkeypatch.chdir(tmp_path)
    model = network(torch, 5, 6)
    optimizer = torch.optim.AdamW(model.parameters())
    names = {
        "model": model,
        "optimizer": optimizer,
        "train": lambda model, optimizer: train(torch, model, optimizer, 3),
    }
    exec(lines, names)
    assert len(scan(tmp_path / "run.json").tensors) == 2


# ---- flush to zero ----


def test_nothing_is_counted_where_subnormal_numbers_are_flushed(torch: Any, recorder_of: Any) -> None:
    """Not at the start, not in the middle; what was recorded until then stays, also the updates that wait."""

    def program() -> None:
        model = network(torch, 4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recorder = recorder_of(model, optimizer)
        assert torch.set_flush_denormal(True)
        with pytest.raises(FloatingPointError, match=r"torch.set_flush_denormal\(False\)"):
            recorder.attach()
        torch.set_flush_denormal(False)
        with recorder:
            train(torch, model, optimizer, 2)
            torch.set_flush_denormal(True)
            weights = copy.deepcopy(model.state_dict())
            with pytest.raises(FloatingPointError):
                train(torch, model, optimizer, 1)
            assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
            with pytest.raises(FloatingPointError):
                recorder.recording()
            torch.set_flush_denormal(False)
            before = recorder.recording()
            train(torch, model, optimizer, 1)
        assert before.recorded_steps == 2
        assert recorder.recording().recorded_steps == 3
        for tensor, later in zip(before.tensors, recorder.recording().tensors, strict=True):
            assert tensor.gradients.count == 2 * math.prod(tensor.shape) == tensor.reports[0].count
            assert later.gradients.count == 3 * math.prod(tensor.shape) == later.reports[0].count

    in_a_thread(program)


def test_a_step_by_hand_is_refused_whole(torch: Any, recorder_of: Any) -> None:
    def program() -> None:
        model = network(torch, 4, 3)
        loss_of(torch, model).backward()
        with recorder_of(model) as recorder:
            torch.set_flush_denormal(True)
            with pytest.raises(FloatingPointError):
                recorder.step()
            torch.set_flush_denormal(False)
            assert recorder.recording().steps == recorder.recording().recorded_steps == 0
            recorder.step()
        assert recorder.recording().recorded_steps == 1

    in_a_thread(program)


def test_a_closure_that_switches_it_on(torch: Any, recorder_of: Any) -> None:
    def program() -> None:
        model = network(torch, 4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = loss_of(torch, model)
            loss.backward()
            torch.set_flush_denormal(True)
            return loss

        with recorder_of(model, optimizer) as recorder, pytest.raises(FloatingPointError):
            optimizer.step(closure)
        torch.set_flush_denormal(False)
        assert not any(tensor.gradients.count for tensor in recorder.recording().tensors)

    in_a_thread(program)
