"""Good files of every kind that is read: the fuzzer spoils them."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """Files that belong together: `main` is what is named on the command line, `write` gives their contents."""

    main: str
    write: Callable[[], dict[str, bytes]]


def _normal(seed: int, scale: float, *shape: int) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def weights() -> dict[str, NDArray[Any]]:
    bias = _normal(1, 1e-3, 8).astype(np.float16)
    return {"layer.weight": _normal(0, 0.05, 8, 4), "layer.bias": bias, "scale": np.array([2**-20, 1], np.float32)}


def moments() -> dict[str, NDArray[Any]]:
    """Adam's."""
    state: dict[str, NDArray[Any]] = {}
    for name, value in weights().items():
        state |= {f"{name}.exp_avg": value * value.dtype.type(0.1), f"{name}.exp_avg_sq": value * value}
    return state


def saved() -> dict[str, Any]:
    """A checkpoint: weights, and an AdamW of two groups whose parameters are numbered."""
    group = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
    state = {
        i: {"step": np.array(3.0), "exp_avg": value.astype(np.float32) / 8, "exp_avg_sq": value.astype(np.float32) ** 2}
        for i, value in enumerate(weights().values())
    }
    groups = [group | {"params": [0]}, group | {"weight_decay": 0.0, "params": [1, 2]}]
    return {"model": weights(), "optimizer": {"state": state, "param_groups": groups}, "epoch": 3}


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file without the time of day."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, content in members.items():
            zipped.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def npz(arrays: Arrays) -> bytes:
    return archive({f"{name}.npy": npy(array) for name, array in arrays.items()})


def headed(header: bytes, data: bytes) -> bytes:
    """A safetensors file."""
    return len(header).to_bytes(8, "little") + header + data


def safetensors(arrays: Arrays) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        word = {"float32": "F32", "float16": "F16", "int64": "I64", "float8_e4m3fn": "F8_E4M3"}[array.dtype.name]
        end = len(data) + array.nbytes
        header[name] = {"dtype": word, "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    return headed(json.dumps(header).encode(), data)


def torch_file(content: Any) -> bytes:
    """What torch.save writes, arrays as tensors."""
    import torch

    def tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())
        if isinstance(value, Mapping):
            return {key: tensors(inner) for key, inner in value.items()}
        return [tensors(inner) for inner in value] if isinstance(value, list) else value

    file = io.BytesIO()
    torch.save(tensors(content), file)
    return file.getvalue()


def _recording() -> bytes:
    from precision_lab.analysis.histogram import ExponentHistogram
    from precision_lab.analysis.recording import RecordedTensor, Recording
    from precision_lab.analysis.updates import update_report

    w, u, g = (_normal(seed, scale, 32).astype(float) for seed, scale in ((0, 0.1), (1, 1e-5), (2, 1e-7)))
    gradients, updates, ratios = (ExponentHistogram.of(values) for values in (g, u, u / w))
    reports = tuple(update_report(w, u, fmt) for fmt in ("bf16", "fp16"))
    tensors = (
        RecordedTensor("a", "float32", (8, 4), gradients, 2, "", ("b",), updates, ratios, 3, reports, 2, 60),
        RecordedTensor("c", "float32", (7,), ExponentHistogram.empty(), missing="frozen"),
        RecordedTensor("d", "bfloat16", (4,), gradients, 2, unchanged=5, steps=2, should_move=7, unmeasured="narrow"),
    )
    return json.dumps(Recording("Net", tensors, 3, 1, 2, 2).to_dict()).encode()


def _sharded() -> dict[str, bytes]:
    first, *rest = weights()
    shards = {"model-1.safetensors": [first], "model-2.safetensors": rest}
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    written = {f"m/{file}": safetensors({name: weights()[name] for name in names}) for file, names in shards.items()}
    return {"m/model.safetensors.index.json": json.dumps(index).encode(), **written}


def _codes() -> bytes:
    """Codes of fp8 with their scale, beside weights."""
    codes = np.ones((4, 4), ml_dtypes.float8_e4m3fn)
    return safetensors(weights() | {"q.weight": codes, "q.weight_scale_inv": np.ones((1, 1), np.float32)})


def _of_torch() -> dict[str, bytes]:
    """A folder of torch's files only: shards with their index, and what a trainer keeps besides."""
    first, *rest = weights()
    shards = {"model-1.bin": [first], "model-2.bin": rest}
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    written = {f"t/{file}": torch_file({name: weights()[name] for name in names}) for file, names in shards.items()}
    return {
        "t/pytorch_model.bin.index.json": json.dumps(index).encode(),
        **written,
        "t/optimizer.bin": torch_file({"state": moments(), "param_groups": [{"lr": 0.1}]}),
    }


def _trace() -> list[float]:
    return [float(x) for x in np.abs(_normal(3, 1.0, 20))]


@cache
def made_by(file: str, *arguments: str) -> bytes:
    """What the command line itself writes, but for the time that it took."""
    from precision_lab.cli import app

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        place = Path(folder, file)
        app.main([*arguments, str(place if "--checkpoint" in arguments else place.parent)], standalone_mode=False)
        lines = [signed(json.loads(line) | {"seconds": 1.0}) for line in place.read_bytes().splitlines()]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def signed(kept: dict[str, Any]) -> dict[str, Any]:
    """What the command line has written, with the digest that it would have written."""
    if "result_digest" in kept:
        return kept | {"result_digest": _digest(kept.get("result"))}
    if "digest" in kept and "result" not in kept:
        rest = {key: value for key, value in kept.items() if key != "digest"}
        return rest | {"digest": _digest(rest)}
    return kept


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


TRAIN = (
    "train",
    "--storage",
    "pure_bf16",
    "--model",
    "least_squares",
    "--steps",
    "1",
    "--seeds",
    "1",
    "--workers",
    "1",
)
UNDERFLOW = ("underflow", "--steps", "30")


def _kept(name: str) -> Kind:
    return Kind("r", lambda: {f"r/{name}.json": made_by(f"{name}.json", "report", name, "--workers", "1", "-o")})


def _one(file: str, write: Callable[[], bytes]) -> Kind:
    return Kind(file, lambda: {file: write()})


KINDS: dict[str, Kind] = {
    "safetensors": _one("w.safetensors", lambda: safetensors(weights() | {"steps": np.arange(3)})),
    "npz": _one("w.npz", lambda: npz(weights())),
    "npy": _one("w.npy", lambda: npy(weights()["layer.weight"])),
    "raw npy": _one("v.npy", lambda: npy(np.arange(6, dtype="<u2").view("V2"))),
    "pt": _one("w.pt", lambda: torch_file({"model": weights(), "epoch": 3, "list": [np.arange(3)]})),
    "ckpt": _one("w.ckpt", lambda: torch_file({"state_dict": weights(), "l._extra_state": io.BytesIO(b"bytes")})),
    "codes": _one("c.safetensors", _codes),
    "torch folder": Kind("t", _of_torch),
    "folder": Kind("f", lambda: {"f/a.safetensors": safetensors(weights()), "f/b.npz": npz({"x": np.ones(3)})}),
    "index": Kind("m", _sharded),
    "recording": _one("run.json", _recording),
    "moments npz": _one("o.npz", lambda: npz(moments())),
    "moments pt": _one("o.pt", lambda: torch_file({"state": moments(), "param_groups": [{"lr": 0.1}]})),
    "saved optimizer": _one("ck.pt", lambda: torch_file(saved())),
    "names": _one("names.txt", lambda: "\n".join(weights()).encode()),
    "trace": _one("trace.json", lambda: json.dumps({"max_abs": _trace()}).encode()),
    "trace npy": _one("trace.npy", lambda: npy(np.array(_trace()))),
    "text": _one("novel.txt", lambda: b"It was a bright cold day in April, and the clocks were striking.\n" * 20),
    "checkpoint": _one("runs.jsonl", lambda: made_by("runs.jsonl", *TRAIN, "--checkpoint")),
    "kept memory": _kept("memory"),
    "kept hyperparameters": _kept("hyperparameters"),
    "kept underflow": Kind("u", lambda: {"u/underflow.json": made_by("underflow.json", *UNDERFLOW, "-o")}),
}


@cache
def good(kind: str) -> dict[str, bytes]:
    """The files of a kind by their paths."""
    return KINDS[kind].write()
