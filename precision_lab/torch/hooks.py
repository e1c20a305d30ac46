"""Where steps are heard: the optimizer whose hooks are called, its groups, and the steps that a scaler leaves out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch


def stepping_optimizers(optimizer: Any) -> tuple[Any, ...]:
    """Return an optimizer and those inside it, down to the first one with hooks for its steps, which is the last.

    Wrappers that never call `Optimizer.__init__` have no hooks; what they wrap is their `optimizer`.

    Raises
    ------
    ValueError
        There is none, or it is something else that was given.

    """
    what = type(optimizer).__name__
    if isinstance(optimizer, list | tuple | set | Mapping):
        raise ValueError(
            f"one recorder is for one optimizer, got a {what} of {len(optimizer)}: make a recorder for each, of the "
            "same model, and each counts what its optimizer updates"
        )
    if isinstance(optimizer, torch.nn.Module):
        raise ValueError(f"the optimizer is a module, a {what}: the order is GradientRecorder(model, optimizer)")
    if hasattr(optimizer, "get_last_lr"):
        raise ValueError(f"the optimizer is a scheduler, a {what}: give the optimizer whose learning rate it sets")
    chain = [optimizer]
    while not _has_hooks(chain[-1]):
        inner = getattr(chain[-1], "optimizer", None)
        if inner is None or any(inner is outer for outer in chain):
            raise ValueError(
                f"a {what} has no hooks for its steps, and no optimizer inside it has: give the torch.optim.Optimizer "
                "whose step() is called, or none, and call the recorder's step() before it"
            )
        chain.append(inner)
    return tuple(chain)


def _has_hooks(optimizer: Any) -> bool:
    if isinstance(optimizer, torch.optim.Optimizer):
        return "_optimizer_step_pre_hooks" in vars(optimizer)  # made by Optimizer.__init__
    return callable(getattr(optimizer, "register_step_pre_hook", None)) and hasattr(optimizer, "param_groups")


def groups_of(optimizer: Any) -> dict[int, Mapping[str, Any]]:
    """Return the group of each parameter that the optimizer has, by the parameter's id."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def call_on_skip(
    scaler: Any, optimizers: Iterable[Any], calls: Callable[[], int], skip: Callable[[], None]
) -> Callable[[], None]:
    """Have `skip` called for each step of one of the optimizers that the scaler leaves out; return what ends that."""
    own = vars(scaler).get("step")  # of another recorder
    original = scaler.step

    @functools.wraps(original)
    def step(stepping: Any, *args: Any, **kwargs: Any) -> Any:
        before = calls()
        value = original(stepping, *args, **kwargs)
        if watching and calls() == before and any(stepping is optimizer for optimizer in optimizers):
            skip()
        return value

    def end() -> None:
        watching.clear()
        if vars(scaler).get("step") is not step:
            return  # somebody came after us; ours only passes on
        if own is None:
            del scaler.step
        else:
            scaler.step = own

    watching = [True]
    scaler.step = step
    return end
