"""The updates that follow from an optimizer's state.

Adam's state is two numbers a weight, the running averages of the gradient and of its square, and from them its next
update follows: u = -lr * m^ / (sqrt(v^) + epsilon), m^ and v^ being the moments over their bias corrections (Kingma and
Ba 2015, algorithm 1); with amsgrad the largest v^ so far stands for the last. SGD's buffer of momentum times -lr is its
last update. So a checkpoint of the optimizer says how large the updates really are, where the learning rate alone says
only how large they may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from precision_lab.numerics import fixed
from precision_lab.tensors.info import Chunks
from precision_lab.tensors.pairs import in_step
from precision_lab.tensors.reading import Tensors
from precision_lab.tensors.walk import CHUNK_BYTES
from precision_lab.training.optimizers import SGD, Adam, Optimizer


@dataclass(frozen=True)
class WeightState:
    """What an optimizer keeps of some weights, and with which hyperparameters it uses it.

    Attributes
    ----------
    parts : mapping of str to str
        The names of the tensors by part: ``exp_avg`` ...
    optimizer : Optimizer
        Adam, AdamW or SGD.
    amsgrad : bool
        Whether ``max_exp_avg_sq`` stands for ``exp_avg_sq``.
    corrects_bias : bool
        Whether the moments are divided by 1 - beta^t.

    """

    parts: Mapping[str, str]
    optimizer: Optimizer
    amsgrad: bool = False
    corrects_bias: bool = True


def updates_of(states: Mapping[str, WeightState], source: Tensors) -> Callable[[str], Chunks]:
    """Return what gives the updates of weights by their name, chunk by chunk in float32; computed in float64.

    AdamW's weight decay is not in them. Where the number of the step is not known, the moments are taken without bias
    corrections, as late in a run.
    """
    first, second, steps = (source.finder(CHUNK_BYTES) for _ in range(3))

    def updates(name: str) -> Iterator[Any]:
        state = states[name]
        if isinstance(state.optimizer, SGD):
            for buffer in first(state.parts["momentum_buffer"]):
                with np.errstate(all="ignore"):
                    yield (buffer.astype(np.float64) * -state.optimizer.learning_rate).astype(np.float32)
            return
        adam = state.optimizer
        assert isinstance(adam, Adam)
        step = next(iter(steps(state.parts["step"])), None) if "step" in state.parts else None
        t = 0.0 if step is None or not len(step) else float(step[0])
        known = state.corrects_bias and 1 <= t < math.inf
        first_correction, second_correction = (
            (1 - fixed.power(beta, int(t)) if known else 1.0) for beta in (adam.beta1, adam.beta2)
        )
        largest = state.amsgrad and "max_exp_avg_sq" in state.parts
        squares = second(state.parts["max_exp_avg_sq" if largest else "exp_avg_sq"])
        for m, v in in_step(first(state.parts["exp_avg"]), squares):
            with np.errstate(all="ignore"):
                root = np.sqrt(v.astype(np.float64) / second_correction) + adam.epsilon
                u = m.astype(np.float64) * (-adam.learning_rate / first_correction) / root
                u[m == 0] = 0  # also where v and eps are 0: a weight without gradients does not move
                yield u.astype(np.float32)

    return updates
