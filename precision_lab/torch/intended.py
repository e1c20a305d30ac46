"""The update that an optimizer of torch intends, before the format of the weights rounds it.

Of weights in 16 bits or fewer the difference after a step is what was left of the update after the loss. What was to be
added has to be computed, from the gradient and the state that the optimizer has **before** the step. That can be said
of exactly torch's SGD, Adam and AdamW: what a subclass or another optimizer adds is not known from outside.

The intended update is that of exact arithmetic: constants and bias corrections are doubles, as torch has them, and so
is what is computed with them; one rounding to float32 ends it. Weights, gradient and moments are read as they are:
where moments are stored in bf16, what bf16 has made of them is in the intended update, and is not counted as lost. A
learning rate that is a tensor counts as its value.

The formulas are those of the documentation of torch.optim: SGD with momentum (Sutskever et al. 2013, in torch's form,
whose first step takes the gradient whole), Adam (Kingma and Ba 2015) with AMSGrad (Reddi et al. 2018), AdamW
(Loshchilov and Hutter 2019). `foreach`, `fused`, `capturable` and `differentiable` choose who computes, not what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from precision_lab.numerics.inputs import converted
from precision_lab.numerics.torch_arrays import array_of

Array: TypeAlias = NDArray[Any]
_Rule: TypeAlias = Callable[..., Array]

KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""The optimizers whose intended update is known; no subclass of them."""

_BLOCK = 1 << 15  # elements whose temporary doubles stay in the caches


def in_memory_order(tensor: Any) -> Array:
    """Return the elements in the order of memory, flat; without a copy where the tensor is dense and on the CPU."""
    return array_of(tensor).ravel(order="K")


def intended_update(optimizer: Any, group: Mapping[str, Any], parameter: Any, scale: Any = None) -> Array:
    """Return what a step is to add to a parameter, as float32, flat in the order of its indices.

    Parameters
    ----------
    optimizer : torch.optim.SGD, Adam or AdamW
        Before the step.
    group : mapping
        The one of its `param_groups` that has the parameter.
    parameter : torch.Tensor
        With its gradient; without one the step leaves it as it is, and the update is zero.
    scale : torch.Tensor, optional
        The loss scale that is still in the gradient (`grad_scale` of a fused optimizer).

    """
    gradient = parameter.grad
    if gradient is None:
        return np.zeros(parameter.numel(), np.float32)
    rule: _Rule = _sgd if type(optimizer) is torch.optim.SGD else _adam
    state = optimizer.state.get(parameter, {})
    block = partial(rule, group, state, type(optimizer) is torch.optim.AdamW)
    names = [name for name in _MOMENTS[rule] if state.get(name) is not None]
    arrays = [_in_order(tensor) for tensor in (parameter, gradient, *(state[name] for name in names))]
    factor = 1.0 if scale is None else float(scale)
    update = np.empty(parameter.numel(), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, update.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            w, g, *moments = (converted(array[part], np.float64) for array in arrays)
            update[part] = block(w, g / factor, dict(zip(names, moments, strict=True)))
    return update


def _in_order(tensor: Any) -> Array:
    """Return the elements in the order of their indices; those of a sparse tensor, added up exactly, and its zeros."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to(torch.float64).to_dense()
    return in_memory_order(tensor.contiguous())


def _sgd(group: Mapping[str, Any], state: Any, _: bool, w: Array, g: Array, moments: dict[str, Array]) -> Array:
    rate, momentum, decay = (float(group[name]) for name in ("lr", "momentum", "weight_decay"))
    if group["maximize"]:
        g = -g
    if decay:
        g = g + decay * w
    if momentum:
        before = moments.get("momentum_buffer")
        buffer = g if before is None else momentum * before + (1 - float(group["dampening"])) * g
        g = g + momentum * buffer if group["nesterov"] else buffer
    return -rate * g


def _adam(group: Mapping[str, Any], state: Any, is_adamw: bool, w: Array, g: Array, moments: dict[str, Array]) -> Array:
    rate, decay, epsilon = (float(group[name]) for name in ("lr", "weight_decay", "eps"))
    beta1, beta2 = map(float, group["betas"])
    step = float(state.get("step", 0)) + 1
    decoupled = group.get("decoupled_weight_decay", is_adamw)  # older versions of torch have it for no optimizer
    m, v, largest = (moments.get(name, np.zeros_like(g)) for name in _MOMENTS[_adam])
    if group["maximize"]:
        g = -g
    if decay and not decoupled:
        g = g + decay * w
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    if group["amsgrad"]:
        v = np.maximum(largest, v)
    direction = m / (np.sqrt(v) / (1 - beta2**step) ** 0.5 + epsilon)
    update: Array = -rate / (1 - beta1**step) * direction
    return update - rate * decay * w if decay and decoupled else update


_MOMENTS: dict[_Rule, tuple[str, ...]] = {
    _sgd: ("momentum_buffer",),
    _adam: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
}
