"""Which optimizer's hooks are heard: wrappers as accelerate makes them, and what is no optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def recorder_of(torch: Any) -> Any:
    from precision_lab.torch import GradientRecorder

    return GradientRecorder


@pytest.fixture
def model(torch: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 6)


def accelerated(torch: Any) -> Any:
    """A class as accelerate's: an Optimizer that never calls `Optimizer.__init__`, and steps every so many-th time."""

    class Accelerated(torch.optim.Optimizer):  # type: ignore[misc]
        def __init__(self, optimizer: Any, scaler: Any = None, every: int = 1) -> None:
            self.optimizer, self.scaler, self.every, self.calls = optimizer, scaler, every, 0

        @property
        def param_groups(self) -> Any:
            return self.optimizer.param_groups

        def zero_grad(self, set_to_none: bool = True) -> None:
            if self.calls % self.every == 0:
                self.optimizer.zero_grad(set_to_none)

        def step(self, closure: Any = None) -> None:
            self.calls += 1
            if self.calls % self.every:
                return
            if self.scaler is None:
                self.optimizer.step(closure)
            else:
                self.scaler.step(self.optimizer, closure)
                self.scaler.update()

    return Accelerated


class Plain:
    """A wrapper that is no Optimizer, and has nothing but a step."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)


class Forwarding(Plain):
    """One that hands on whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)


@pytest.mark.parametrize("how", ["accelerated", "twice", "plain", "three times", "forwarding"])
def test_the_steps_of_the_optimizer_inside_are_recorded(torch: Any, recorder_of: Any, model: Any, how: str) -> None:
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    wrap = accelerated(torch)
    ways: dict[str, Callable[[], Any]] = {
        "accelerated": lambda: wrap(inner),
        "twice": lambda: wrap(wrap(inner)),
        "plain": lambda: Plain(inner),
        "three times": lambda: Plain(wrap(Plain(inner))),
        "forwarding": lambda: Forwarding(inner),
    }
    wrapped = ways[how]()
    with recorder_of(model, wrapped) as recorder:
        for _ in range(3):
            inner.zero_grad()
            model(torch.randn(4, 5)).square().mean().backward()
            wrapped.step()
    assert recorder.recording().steps == 3
    assert recorder.updates["weight"].count == 90
    assert not inner._optimizer_step_pre_hooks


def test_accumulation_inside_a_wrapper(torch: Any, recorder_of: Any, model: Any) -> None:
    wrapped = accelerated(torch)(torch.optim.SGD(model.parameters(), lr=0.1), every=4)
    with recorder_of(model, wrapped) as recorder:
        for _ in range(12):
            model(torch.randn(4, 5)).square().mean().backward()
            wrapped.step()
            wrapped.zero_grad()
    assert recorder.recording().steps == 3


@pytest.mark.parametrize("outside", [False, True])
def test_skipped_steps_are_counted_whoever_is_given_to_the_scaler(
    torch: Any, recorder_of: Any, model: Any, outside: bool
) -> None:
    scaler = torch.amp.GradScaler("cpu")
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = accelerated(torch)(inner, None if outside else scaler)
    with recorder_of(model, wrapped, scaler=scaler) as recorder:
        for step in range(3):
            inner.zero_grad()
            scaler.scale(model(torch.randn(4, 5)).mean()).backward()
            if step == 1:
                model.weight.grad[0, 0] = torch.nan
            if outside:
                scaler.step(wrapped)
                scaler.update()
            else:
                wrapped.step()
    assert (recorder.recording().steps, recorder.recording().skipped_steps) == (2, 1)


@pytest.mark.filterwarnings("ignore:.*master copy")
def test_what_is_intended_is_that_of_the_optimizer_inside(torch: Any, recorder_of: Any, model: Any) -> None:
    """Of a wrapper with steps of its own nothing is known but what it did."""

    class Lookahead(torch.optim.Optimizer):  # type: ignore[misc]
        def __init__(self, optimizer: Any) -> None:
            super().__init__(optimizer.param_groups, {})
            self.optimizer = optimizer

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step(closure)

    model.bfloat16()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrapper, known in ((accelerated(torch), True), (Plain, True), (Forwarding, True), (Lookahead, False)):
        wrapped = wrapper(inner)
        with recorder_of(model, wrapped) as recorder:
            model.weight.grad = torch.ones_like(model.weight)
            wrapped.step()
        assert (recorder.recording().tensors[0].unmeasured == "") is known


def test_what_is_no_optimizer_is_refused_in_a_line(torch: Any, recorder_of: Any, model: Any) -> None:
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    circle = Plain(None)
    circle.optimizer = Plain(circle)
    schedulers = (
        torch.optim.lr_scheduler.StepLR(sgd, 3),
        torch.optim.lr_scheduler.ReduceLROnPlateau(sgd),
    )
    cases = [
        ([sgd, sgd], r"one recorder is for one optimizer, got a list of 2: make a recorder for each"),
        ({"g": sgd}, r"one optimizer, got a dict of 1"),
        ((sgd,), r"one optimizer, got a tuple of 1"),
        (torch.nn.Linear(1, 1), r"the order is GradientRecorder\(model, optimizer\)"),
        *((s, f"is a scheduler, a {type(s).__name__}: give the optimizer") for s in schedulers),
        (Plain(None), "a Plain has no hooks for its steps, and no optimizer inside it has: give the torch.optim.Optim"),
        (circle, "a Plain has no hooks"),
        (accelerated(torch)(Plain(None)), "a Accelerated has no hooks"),
        (model.parameters(), "a generator has no hooks"),
        (object(), "call the recorder's step"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            recorder_of(model, given)
        assert "\n" not in str(caught.value)


def test_the_cures_cure(torch: Any, recorder_of: Any, model: Any) -> None:
    """A recorder each for two optimizers of one model; a recorder without one for what has no hooks."""
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in model.parameters()]
    with (
        recorder_of(model, optimizers[0]) as one,
        recorder_of(model, optimizers[1]) as two,
        recorder_of(model) as by_hand,
    ):
        model(torch.randn(4, 5)).square().mean().backward()
        by_hand.step()
        for optimizer in optimizers:
            optimizer.step()
    assert (set(one.updates), set(two.updates)) == ({"weight"}, {"bias"})
    assert set(by_hand.gradients) == {"weight", "bias"}
