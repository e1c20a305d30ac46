"""What the tensors of a checkpoint are for, by their names."""

import numpy as np
import pytest

from precision_lab.tensors.reading import list_tensors
from precision_lab.tensors.roles import Role, role_of


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("layers.0.weight", Role.PARAMETER),
        ("running_var_head.weight", Role.PARAMETER),
        ("bn.running_mean", Role.BUFFER),
        ("optimizer.state.24.exp_avg", Role.MOMENT),
        ("optimizer.state.24.step", Role.STEP),
        ("l.weight_scale_inv", Role.SCALE),
    ],
)
def test_a_name_says_what_a_tensor_is_for(name, role):
    assert role_of(name) is role
    assert [info.role for info in list_tensors({name: np.ones(1)})] == [role]
