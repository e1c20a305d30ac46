"""What a mapping of arrays may hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precision_lab import TensorFileError, scan


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
