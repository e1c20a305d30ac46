"""Tensors of torch as arrays, without importing torch: who has made one has imported it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.formats import get_format

_CODES = {1: "uint8", 2: "int16"}  # by the bytes of an element: what torch and NumPy both know


def is_tensor(value: object) -> bool:
    """Say whether something is a torch tensor."""
    return hasattr(value, "detach") and hasattr(value, "untyped_storage")


def dtype_name(tensor: Any) -> str:
    """Return what NumPy or ml_dtypes call the elements: ``bfloat16``."""
    return str(tensor.dtype).removeprefix("torch.")


def without_elements(tensor: Any) -> str | None:
    """Say why there are no elements one by one; None if there are."""
    if tensor.is_nested:
        return "nested tensor"
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        return "sparse or quantized tensor"
    if str(tensor.device) == "meta":
        return "a tensor without data (on the meta device)"
    return None


def array_of(tensor: Any) -> NDArray[Any]:
    """Return the elements of a tensor as an array of the same dtype, without a copy where they are in memory.

    The graph that a gradient would follow is left behind. bf16 and fp8 become the dtypes of ml_dtypes.

    Raises
    ------
    ValueError
        It has no elements to be had: sparse, quantized, nested, on the meta device; or of less than a byte each.

    """
    if why := without_elements(tensor):
        raise ValueError(f"cannot take a tensor of torch: {why}; pass one whose elements lie in memory")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    try:
        return np.asarray(plain.numpy())
    except TypeError:  # a dtype that NumPy itself does not know
        pass
    try:
        dtype = get_format(dtype_name(plain)).dtype
    except ValueError:
        dtype = None
    if dtype is None or dtype.itemsize != plain.element_size() or dtype_name(plain) != dtype.name:
        raise ValueError(f"cannot take a tensor of {dtype_name(plain)}; pass tensor.float()")
    return np.asarray(plain.view(getattr(sys.modules["torch"], _CODES[dtype.itemsize])).numpy()).view(dtype)
