"""What a mapping of arrays may hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from precision_lab import TensorFileError, list_tensors, scan
from precision_lab.tensors.roles import Role


@pytest.mark.parametrize(
    "value",
    [np.zeros(2, "f4,f4"), np.array(["1", "2"]), np.zeros(2, "M8[s]"), np.zeros(2, "m8[s]"), np.zeros(2, "S3")],
    ids=str,
)
def test_what_is_no_array_of_numbers_is_refused(value: Any) -> None:
    with pytest.raises(TensorFileError, match=r"'x': a ndarray is no array of numbers; give NumPy or torch arrays"):
        scan({"x": value}, formats=["fp16"])


def test_arrays_of_numbers_are_read() -> None:
    result = scan({"x": np.ones(3, np.float32), "n": np.arange(3)}, formats=["fp16"])
    assert [tensor.info.name for tensor in result.tensors] == ["x"]
    assert [info.name for info in result.skipped] == ["n"]


# ---- mappings within mappings ----


class AdamState(NamedTuple):
    """As optax has it."""

    count: Any
    mu: Any
    nu: Any


def test_the_trees_of_flax_are_read_by_the_paths_of_their_leaves() -> None:
    kernel, bias = np.ones((2, 3), np.float32), np.zeros(3, np.float32)
    params = {"Dense_0": {"kernel": kernel, "bias": bias}}
    assert [info.name for info in list_tensors({"params": params})] == ["params.Dense_0.kernel", "params.Dense_0.bias"]
    assert scan({"params": params}).total == scan({"kernel": kernel, "bias": bias}).total
    adam = AdamState(np.array(7), {"w": bias}, {"w": bias})
    state = {"params": params, "batch_stats": {"BatchNorm_0": {"mean": bias}}, "opt_state": (adam,)}
    roles = {info.name: info.role for info in list_tensors(state)}
    assert roles == {
        "params.Dense_0.kernel": Role.PARAMETER,
        "params.Dense_0.bias": Role.PARAMETER,
        "batch_stats.BatchNorm_0.mean": Role.BUFFER,
        "opt_state.0.count": Role.STEP,
        "opt_state.0.mu.w": Role.MOMENT,
        "opt_state.0.nu.w": Role.MOMENT,
    }


def test_lists_of_arrays_are_entered_and_lists_of_numbers_are_arrays() -> None:
    one = np.ones(3, np.float32)
    found = list_tensors({"w": [1.0, 2.0], "m": [[1.0, 2.0], [3.0, 4.0]], "layers": [one, {"b": one}], "s": 2.5})
    assert [(info.name, info.shape) for info in found] == [
        *(("w", (2,)), ("m", (2, 2)), ("layers.0", (3,)), ("layers.1.b", (3,)), ("s", ())),
    ]
    assert [info.name for info in list_tensors({"a": {"x": one, "text": "adam", "lr": 0.1, "none": None}})] == ["a.x"]
    with pytest.raises(TensorFileError, match="no array of numbers"):
        list_tensors({"a": "text"})


def test_trees_are_bounded() -> None:
    one = np.ones(3, np.float32)
    endless: dict[str, Any] = {"w": one}
    endless["again"] = endless
    assert [info.name for info in list_tensors({"a": endless})] == ["a.w"]
    listed: list[Any] = [one]
    listed.append(listed)
    assert [info.name for info in list_tensors({"a": listed})] == ["a.0"]
    deep: Any = {"w": one}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(TensorFileError, match="within each other"):
        list_tensors(deep)
    with pytest.raises(TensorFileError, match="two tensors of this name"):
        list_tensors({"a.b": one, "a": {"b": one}})
