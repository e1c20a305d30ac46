"""What was found, one by one: each of these once ended in something else than one line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fuzz.doors import Case, Special
from tests.fuzz.seeds import TRAIN, good, headed, npz, safetensors, signed, torch_file

_ONE = np.ones(1, np.float32)


def _npy(header: str, data: bytes = bytes(8)) -> bytes:
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + data


def _shape(shape: str) -> bytes:
    return _npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n")


def _recording(change: Callable[[dict[str, Any]], object]) -> bytes:
    (content,) = good("recording").values()
    data = json.loads(content)
    change(data)
    return json.dumps(data).encode()


def _sums(data: dict[str, Any]) -> None:
    data["tensors"][0]["reports"][0]["sums"] = [str(1 << 2200)] * 3


def _call(name: str, data: dict[str, Any]) -> None:
    data["model"] = name
    data["tensors"][1]["missing"] = data["tensors"][2]["unmeasured"] = name


def _checkpoint(change: Callable[[dict[str, Any]], object]) -> bytes:
    (content,) = good("checkpoint").values()
    data = json.loads(content.splitlines()[0])
    change(data)
    return json.dumps(signed(data)).encode() + b"\n"


def _shared() -> bytes:
    """A list of ten times a list of ten times a list, twelve deep."""
    import torch

    shared: Any = [torch.ones(1)]
    for _ in range(12):
        shared = [shared] * 10
    file = io.BytesIO()
    torch.save(shared, file)
    return file.getvalue()


_ODD = ("\x1b[2J", "\x9b31m", "\u202egnp", "\u2028", "\xad")
_REPLAY, _TRAIN = ("loss-scale", "--replay"), (*TRAIN, "--checkpoint")


def regressions() -> list[Case]:
    """Return the inputs."""
    found: list[tuple[str, tuple[str, ...], str, bytes | Special]] = [
        ("deep JSON as a trace", _REPLAY, "t.json", b"[" * 100_000),
        ("a trace whose header ends within its dictionary", _REPLAY, "t.npy", _npy("{'descr': '<f8', 'shape': (")),
        ("a trace of 2^40 numbers", _REPLAY, "t.npy", _shape(f"({2**40},)")),
        ("a trace of a true number of steps", _REPLAY, "t.npy", _shape("(True,)")),
        ("a trace without end", _REPLAY, "t.json", "zeros"),
        ("a trace that nobody writes", _REPLAY, "t.json", "fifo"),
        ("a .npy trace that nobody writes", _REPLAY, "t.npy", "fifo"),
        ("a text without end", ("train", "--model", "transformer", "--workers", "1", "--data"), "t.txt", "zeros"),
        ("a text that nobody writes", ("train", "--model", "transformer", "--workers", "1", "--data"), "t.txt", "fifo"),
        ("runs without end", _TRAIN, "runs.jsonl", "zeros"),
        ("runs that nobody writes", _TRAIN, "runs.jsonl", "fifo"),
        ("deep JSON as runs", _TRAIN, "runs.jsonl", b'{"config": ' + b"[" * 100_000 + b"\n"),
        (
            "runs with 10^400 loss scales",
            _TRAIN,
            "runs.jsonl",
            _checkpoint(lambda run: run.update(loss_scales=[1.0, 10**400])),
        ),
        (
            "runs with a list for a sum",
            _TRAIN,
            "runs.jsonl",
            _checkpoint(lambda run: run["updates"].update(product=[1.0])),
        ),
        ("runs with a null for a time", _TRAIN, "runs.jsonl", _checkpoint(lambda run: run.update(seconds=None))),
        ("a call in an npy header", ("scan",), "w.npy", _npy("__import__('os').mkdir('ran')\n")),
        ("an index that nobody writes", ("scan",), "model.safetensors.index.json", "fifo"),
        ("a kept result that nobody writes", ("report", "memory", "--workers", "1", "-o"), "r/memory.json", "fifo"),
        ("a kept result that is a list", ("report", "memory", "--workers", "1", "-o"), "r/memory.json", b"[]"),
        ("deep JSON as a kept result", ("report", "memory", "--workers", "1", "-o"), "r/memory.json", b"[" * 100_000),
        ("a recording with sums beyond every format", ("scan",), "run.json", _recording(_sums)),
        ("a list of ten times the same list", ("scan",), "m.pt", _shared()),
    ]
    for text in _ODD:
        data: dict[str, NDArray[Any]] = {text: _ONE, "b": np.arange(2)}
        name = f"{text!a} in a name"
        found += [
            (f"{name}, safetensors", ("scan",), "m.safetensors", safetensors(data)),
            (f"{name}, npz", ("accumulation",), "m.npz", npz(data)),
            (f"{name}, pt", ("preflight",), "m.pt", torch_file(data)),
            (f"{name}, recording", ("scan",), "run.json", _recording(partial(_call, text))),
            (f"{name} of a file", ("loss-scale",), f"{text}m.safetensors", safetensors(data)),
            (f"{name} of a dtype", ("scan",), "m.safetensors", _dtype(text)),
            (f"{name} of a module", ("verify", "--source", "fp16", "--target", "fp16", "--cast"), f"a{text}:f", b""),
        ]
    return [
        Case(i, "regression", what, (*words, place.partition("/")[0]), {place: content}, ("r/", "runs.jsonl"))
        for i, (what, words, place, content) in enumerate(found)
    ]


def _dtype(text: str) -> bytes:
    return headed(json.dumps({"a": {"dtype": text, "shape": [], "data_offsets": [0, 0]}}).encode(), b"")
