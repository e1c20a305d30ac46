"""PyTorch's own files, ``.pt`` and ``.pth``, without running what is in them.

Such a file is a pickle, and a pickle is a program: loading one from a stranger runs the stranger's code. There is one
way in that does not, ``torch.load(weights_only=True)``: it knows tensors, containers and numbers, and refuses the rest
before anything of it is called. No other way is used here. torch is imported when a file asks for it, and not before.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".pt", ".pth")
_DEEPEST = 16  # dictionaries within dictionaries


def load(file: Path) -> Any:
    """Load a file as torch.save wrote it, tensors mapped from the disk where the file allows it (torch 1.6 and later).

    Raises
    ------
    ValueError
        There is no torch; the file holds more than tensors, containers and numbers; it is corrupt. One line with the
        cure behind a semicolon. Nothing of the file was run.

    """
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{file.suffix} files are read by torch, which is not installed; pip install 'precision-lab[torch]', or "
            "save it as .safetensors"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch deprecates is not the reader's business
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a dozen kinds, by what is wrong
        refused = re.search(r"GLOBAL (\w[\w.]*)", str(error))
        if refused:
            raise ValueError(
                f"it holds {refused[1].rstrip('.')}, not tensors only, and torch.load(weights_only=True) refuses it; "
                "nothing of it was run; save the state_dict() alone"
            ) from error
        said = str(error).rpartition("error: ")[2].strip().partition("\n")[0]
        what = f"torch cannot read it as tensors only ({type(error).__name__}: {said[:160]})"
        raise ValueError(f"{what}; download or save it again") from error


def is_tensor(value: object) -> bool:
    """Say whether something is a torch tensor, without importing torch."""
    return hasattr(value, "detach") and hasattr(value, "untyped_storage")


def named_tensors(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested dictionaries and lists, their keys joined by dots; what else is there is left out.

    Raises
    ------
    ValueError
        Nested too deeply, or in a circle.

    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        keys, value = waiting.pop()
        if is_tensor(value):
            yield ".".join(keys) or "tensor", value
        elif isinstance(value, Mapping | list | tuple):
            if len(keys) >= _DEEPEST:
                raise ValueError(f"more than {_DEEPEST} dictionaries within each other; save the state_dict() alone")
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [((*keys, str(key)), v) for key, v in reversed(list(inner))]


def dtype_name(tensor: Any) -> str:
    """Return what NumPy or ml_dtypes call the elements: ``bfloat16``."""
    return str(tensor.dtype).removeprefix("torch.")


def cannot_be_read(tensor: Any) -> str | None:
    """Say why the elements of a tensor are not to be had one by one; None if they are."""
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        return "sparse or quantized tensor"
    if str(tensor.device) == "meta":
        return "a tensor without data (on the meta device)"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "an expanded view: it has more elements than are stored"
    return None


def identity(tensor: Any) -> tuple[Any, ...]:
    """Return what two tensors that are the same data under two names have in common."""
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))


def chunks_of(tensor: Any, elements: int) -> Iterator[NDArray[Any]]:
    """Yield the elements in order, so many at a time: float64 as they are, all others as float32, exactly."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), elements):
        part = flat[start : start + elements].cpu()
        yield np.asarray((part.double() if dtype_name(part) == "float64" else part.float()).numpy())
