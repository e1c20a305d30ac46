"""PyTorch's own files, ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` and ``.pkl``, without running what is in them.

Such a file is a pickle, and a pickle is a program: loading one from a stranger runs the stranger's code. There is one
way in that does not, ``torch.load(weights_only=True)``: it knows tensors, containers and numbers, and refuses the rest
before anything of it is called. No other way is used here. One more class is let through, ``io.BytesIO``, which holds
bytes and does nothing: TransformerEngine keeps the extra state of its layers in it. torch is imported when a file asks
for it, and not before.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.torch_arrays import dtype_name, without_elements

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_LATER_PROTOCOLS = range(0x8C, 0x98)  # the instructions that pickle's protocols 4 and 5 added
_MAPPED = {b"_rebuild_tensor_v2", b"_rebuild_tensor_v3", b"_rebuild_parameter"}
"""What makes tensors in torch.load without a look at their elements."""
_BUFFER = 1 << 16  # bytes that a pipe takes at a time
_UNFOLDED = 10**7  # entries of what a call in a pickle is given, were it written out
_CALLS = {"REDUCE", "NEWOBJ", "BINPERSID"}  # instructions of which torch writes out what they are given
_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}


class NotTensorsError(ValueError):
    """A whole file, which holds something else besides tensors, containers and numbers."""


def load(file: Path) -> Any:
    """Load a file as torch.save wrote it, tensors mapped from the disk where the file allows it (torch 1.6 and later).

    Raises
    ------
    NotTensorsError
        The file holds more than tensors, containers and numbers. Nothing of it was run.
    ValueError
        There is no torch; the file is corrupt. One line with the cure behind a semicolon.

    """
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{file.suffix} files are read by torch, which is not installed; pip install 'precision-lab[torch]', or "
            "save it as .safetensors"
        ) from None
    try:
        with warnings.catch_warnings(), _let_through(torch):
            warnings.simplefilter("ignore")  # what torch deprecates is not the reader's business
            return torch.load(file, map_location="cpu", weights_only=True, mmap=_can_be_mapped(file))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a dozen kinds, by what is wrong
        refused = re.search(r"GLOBAL (\w[\w.]*)", str(error))
        if refused:
            raise NotTensorsError(
                f"it holds {refused[1].rstrip('.')}, not tensors only, and torch.load(weights_only=True) refuses it; "
                "nothing of it was run; save the state_dict() alone"
            ) from error
        operand = re.search(r"Unsupported operand (\d+)", str(error))
        if operand and int(operand[1]) in _LATER_PROTOCOLS:
            raise ValueError(
                "it is pickled by protocol 4 or 5, which torch.load(weights_only=True) does not read; save it with "
                "pickle_protocol=2, the default of torch.save"
            ) from error
        reason = str(error).rpartition("error: ")[2].strip().partition("\n")[0]
        what = f"torch cannot read it as tensors only ({type(error).__name__}: {reason[:160]})"
        raise ValueError(f"{what}; download or save it again") from error


def _let_through(torch: Any) -> AbstractContextManager[object]:
    listed = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    return nullcontext() if listed is None else cast(AbstractContextManager[object], listed([io.BytesIO]))


def _can_be_mapped(file: Path) -> bool:
    """Say whether torch.load will map the file and not touch the data: what is mapped may be cut short meanwhile.

    Touched are the numbers of sparse tensors, which are checked, and those in another byte order, which are turned. A
    file of either is read into memory.
    """
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            if not stream.peek(1).startswith((b"PK", b"\x80")):
                raise ValueError("torch.save writes other files")
            for _ in range(4):  # the old format: a number, a version, the machine, the content
                _refuse_unfolding(stream)
        return False
    with zipfile.ZipFile(file) as archive:
        records = {Path(record.filename).name: record for record in archive.infolist()[::-1]}
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("a part of it is compressed, which torch.save never does")
        if "data.pkl" not in records:
            return True  # torch says what it is
        pickle = archive.read(records["data.pkl"])
        _refuse_unfolding(io.BytesIO(pickle))
        made = set(re.findall(rb"_rebuild\w+", pickle))
        order = archive.read(records["byteorder"]) if "byteorder" in records else b"little"
        return made <= _MAPPED and order == sys.byteorder.encode()


def _refuse_unfolding(pickle: IO[bytes]) -> None:
    """Raise ValueError where a call is given lists that hold the same lists again and again.

    torch refuses such a call with a message that writes them all out. Instructions are read here, and none is followed;
    corrupt ones are left to torch.
    """
    leaf: list[Any] = []  # stands for all that holds nothing
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    given: list[list[Any]] = []
    shared = False
    try:
        for instruction, argument, _ in pickletools.genops(pickle):
            name, takes = instruction.name, instruction.stack_before
            if name.endswith("PUT"):
                memo[argument] = stack[-1]
            elif name.endswith("GET"):
                stack.append(memo[argument])
                shared |= memo[argument] is not leaf
            elif name == "MARK":
                stack.append(None)
            else:
                taken = []
                if pickletools.markobject in takes:
                    while (top := stack.pop()) is not None:
                        taken.append(top)
                    takes = takes[: takes.index(pickletools.markobject)]
                taken += [stack.pop() for _ in takes]
                if name in _CALLS:
                    given += taken
                if name in _FILLS:
                    stack.append(taken.pop())
                    stack[-1].extend(part for part in taken if part is not leaf)
                elif instruction.stack_after:
                    parts = [part for part in taken if part is not leaf]
                    can_be_filled = name in _CALLS or name.startswith("EMPTY")
                    stack.append(parts if parts or can_be_filled else leaf)
    except (ValueError, LookupError, AttributeError):
        return
    if not shared:  # a tree, no larger than the file
        return
    within: dict[int, list[Any]] = {}  # all that calls are given, by identity
    while given:
        node = given.pop()
        if id(node) not in within:
            within[id(node)] = node
            given += node
    size: dict[int, int] = {}
    try:
        for place in TopologicalSorter({n: map(id, parts) for n, parts in within.items()}).static_order():
            size[place] = 1 + sum(size[id(part)] for part in within[place])
    except CycleError:
        size[0] = _UNFOLDED
    if max(size.values(), default=0) >= _UNFOLDED:
        raise ValueError("a call in it is given lists without end")


def described(tensor: Any) -> tuple[str, tuple[int, ...], str | None]:
    """Return the dtype of a tensor, its shape, and why its elements are not to be had; whatever torch says to that."""
    try:
        why = cannot_be_read(tensor)
        return dtype_name(tensor), () if tensor.is_nested else tuple(tensor.shape), why
    except Exception as error:  # some kinds of tensors answer to nothing
        return dtype_name(tensor), (), f"torch cannot say what is in it ({type(error).__name__})"


def cannot_be_read(tensor: Any) -> str | None:
    """Say why the elements of a tensor are not to be had one by one; None if they are."""
    if why := without_elements(tensor):
        return why
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "an expanded view: it has more elements than are stored"
    return None


def identity(tensor: Any) -> tuple[Any, ...]:
    """Return what two tensors that are the same data under two names have in common."""
    place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
    return (*place, tensor.is_neg())


def chunks_of(tensor: Any, elements: int, *, mapped: bool = False) -> Iterator[NDArray[Any]]:
    """Yield the elements in order, so many at a time: float64 as they are, all others as float32, exactly.

    Where they are `mapped` from a file, a ValueError says that it was cut short meanwhile.
    """
    flat = tensor.detach()
    if not (flat.is_contiguous() and not flat.is_neg()):
        flat = (_in_memory(flat) if mapped else flat).resolve_neg()
        mapped = False
    flat = flat.reshape(-1)
    buffer = flat.new_empty(min(elements, flat.numel())) if mapped else None
    for start in range(0, flat.numel(), elements):
        part = flat[start : start + elements]
        part = part.cpu() if buffer is None else _copied(part, buffer[: len(part)])
        yield np.asarray((part.double() if dtype_name(part) == "float64" else part.float()).numpy())


def part_of(tensor: Any, first: int, count: int) -> Any:
    """Return some elements of a tensor in a mapped file, in order."""
    flat = tensor.detach()
    return (flat if flat.is_contiguous() else _in_memory(flat)).reshape(-1)[first : first + count]


def _in_memory(tensor: Any) -> Any:
    """Copy a view in a mapped file: the elements that it lies among, and the same view of them."""
    import torch

    if not tensor.numel():
        return torch.empty_like(tensor)
    span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    raw = torch.empty(0, dtype=tensor.dtype)  # without the negative bit
    raw.set_(tensor.untyped_storage(), tensor.storage_offset(), (span,), (1,))
    view = _copied(raw, torch.empty_like(raw)).as_strided(tensor.shape, tensor.stride())
    return -view if tensor.is_neg() else view


def _copied(mapped: Any, new: Any) -> Any:
    """Copy elements that lie next to each other in a mapped file, which may have been cut short.

    A look at what is no longer there would end the process (SIGBUS). So the kernel looks: the bytes go through a pipe,
    and it says EFAULT. Where there is no such signal, a mapped file cannot be cut.
    """
    import torch

    if os.name != "posix":
        return new.copy_(mapped)
    source, target = (memoryview(x.view(torch.uint8).numpy()) for x in (mapped, new))
    out, into = os.pipe()
    try:
        os.set_blocking(into, False)  # it takes what it has room for
        done = 0
        while done < len(source):
            size = os.write(into, source[done : done + _BUFFER])
            while size:
                got = os.readv(out, [target[done : done + size]])
                done, size = done + got, size - got
    except OSError as error:
        raise ValueError("the file was cut short while it was read") from error
    finally:
        os.close(out)
        os.close(into)
    return new
