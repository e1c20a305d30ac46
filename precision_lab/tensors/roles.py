"""What the tensors of a checkpoint are: parameters, or what lies beside them.

A file has no list of its parameters. But nobody calls a parameter ``running_var``, ``exp_avg_sq`` or
``weight_scale_inv``: what is named so is a buffer, a state of the optimizer, a scale, and belongs in no total and in no
verdict about weights. What no rule knows counts as a parameter (or what a file holds of one: a gradient, an update).
"""

from __future__ import annotations

import re
from enum import StrEnum


class Role(StrEnum):
    """What a tensor is for."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    MOMENT = "optimizer state"
    STEP = "step counter"
    SCALE = "scale"


_BUFFER = re.compile(r"(?:^|\.)(?:running_mean|running_var|num_batches_tracked|inv_freq)$")
_STEP = re.compile(r"(?:^|\.)step$")
_MOMENT = re.compile(r"(?:^|\.)(?:exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)$")
_SCALE = re.compile(r"(?:^|\.|_)(?:weight_scale(?:_inv|_2)?|scale_weight|weight_global_scale|input_scale)$")


def role_of(name: str) -> Role:
    """Return what a tensor of this name is, as far as the name says."""
    for pattern, role in ((_STEP, Role.STEP), (_MOMENT, Role.MOMENT), (_BUFFER, Role.BUFFER), (_SCALE, Role.SCALE)):
        if pattern.search(name):
            return role
    return Role.PARAMETER
