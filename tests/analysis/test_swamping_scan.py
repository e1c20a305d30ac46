"""Checkpoints scanned tensor by tensor: the answers are those on the arrays, and files that do not fit are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from precision_lab import scan
from precision_lab.analysis import swamping_scan
from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.sums import sum_tensors
from precision_lab.analysis.swamping_scan import default_formats, scan_frozen, scan_updates
from precision_lab.analysis.updates import UpdateReport, update_report
from precision_lab.tensors import walk
from precision_lab.tensors.info import TensorFileError

Tensors = dict[str, NDArray[Any]]


@pytest.fixture
def weights() -> Tensors:
    rng = np.random.default_rng(0)
    return {
        "small": (rng.standard_normal((30, 20)) * 1e-3).astype(ml_dtypes.bfloat16),
        "large": (rng.standard_normal((50, 7)) * 10).astype(ml_dtypes.bfloat16),
        "none": np.zeros((0, 3), ml_dtypes.bfloat16),
        "step": np.arange(3),
    }


@pytest.fixture
def updates(weights: Tensors) -> Tensors:
    rng = np.random.default_rng(1)
    return {k: (rng.standard_normal(v.shape) * 1e-5).astype(np.float32) for k, v in weights.items() if k != "step"}


@pytest.fixture
def weights_file(weights: Tensors, tmp_path: Path) -> Path:
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture(params=["npz backwards", "safetensors", "folder"])
def updates_file(updates: Tensors, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The updates in another order, in the same, and scattered over files."""
    if request.param == "safetensors":
        save_file(updates, tmp_path / "updates.safetensors")
        return tmp_path / "updates.safetensors"
    if request.param == "npz backwards":
        np.savez(tmp_path / "updates.npz", **dict(reversed(updates.items())))  # type: ignore[arg-type]
        return tmp_path / "updates.npz"
    folder = tmp_path / "updates"
    folder.mkdir()
    np.savez(folder / "a.npz", large=updates["large"])
    np.savez(folder / "b.npz", none=updates["none"], small=updates["small"].astype(np.float64))
    return folder


def test_frozen_tensors_worst_first(weights: Tensors, weights_file: Path) -> None:
    result = scan_frozen(weights_file, [1e-6, 1e-2], formats=("bf16", "fp16"))
    assert [info.name for info, _ in result.tensors] == ["large", "small", "none"]
    assert [info.name for info in result.skipped] == ["step"]
    for info, gaps in result.tensors:
        assert gaps == tuple(WeightGaps.of(weights[info.name], fmt) for fmt in ("bf16", "fp16"))
    assert result.total[0].count == 600 + 350
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["tensors"][0]["name"] == "large"
    frozen = plain["tensors"][0]["formats"]["fp16"]["frozen"]
    assert [f["update_size"] for f in frozen] == [1e-6, 1e-2]
    assert frozen[0]["both"] == WeightGaps.of(weights["large"], "fp16").frozen(1e-6).both


@pytest.mark.parametrize("chunk_bytes", [1 << 22, 100])
def test_updates_find_their_weights(
    weights: Tensors,
    updates: Tensors,
    weights_file: Path,
    updates_file: Path,
    chunk_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By name, in whatever order and dtype, however both are cut."""
    monkeypatch.setattr(walk, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(swamping_scan, "CHUNK_BYTES", 2 * chunk_bytes)  # of the updates
    result = scan_updates(weights_file, updates_file)
    assert [info.name for info, _ in result.tensors] == ["large", "small", "none"]
    for info, (report,) in result.tensors:
        assert report == update_report(weights[info.name], updates[info.name], "bf16")
    total = sum((reports[0] for _, reports in result.tensors), UpdateReport.empty("bf16"))
    assert result.total == (total,)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["total"]["formats"]["bf16"]["count"] == 950
    assert [t["name"] for t in plain["tensors"]] == ["large", "small", "none"]


def test_progress_counts_elements(weights_file: Path, tmp_path: Path, updates: Tensors) -> None:
    seen: list[tuple[int, int]] = []
    scan_frozen(weights_file, [1.0], progress=lambda *done: seen.append(done))
    assert seen[-1] == (950, 950)
    np.savez(tmp_path / "u.npz", **updates)  # type: ignore[arg-type]
    seen.clear()
    scan_updates(weights_file, tmp_path / "u.npz", progress=lambda *done: seen.append(done))
    assert seen[-1] == (950, 950)


def test_the_default_format_is_that_of_the_file(tmp_path: Path) -> None:
    def named(**tensors: NDArray[Any]) -> list[str]:
        save_file(tensors, tmp_path / "x.safetensors")
        return [fmt.name for fmt in default_formats(tmp_path / "x.safetensors")]

    one = np.ones(2)
    assert named(a=one.astype(np.float16), b=one.astype(np.float32)) == ["fp16"]
    assert named(a=one.astype(ml_dtypes.bfloat16), b=one.astype(np.float16)) == ["fp16", "bf16"]
    assert named(a=one.astype(np.float32), b=np.arange(3)) == ["bf16"]
    np.save(tmp_path / "raw.npy", one.astype(ml_dtypes.bfloat16))
    assert [fmt.name for fmt in default_formats(tmp_path / "raw.npy", dtype="bf16")] == ["bf16"]


def test_orders_that_differ_are_refused(tmp_path: Path) -> None:
    """Else every element would be added to another."""
    square = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "w.npz", t=square)
    np.savez(tmp_path / "u.npz", t=np.asfortranarray(square))
    with pytest.raises(TensorFileError, match=r"'t': stored in another order .* np.ascontiguousarray"):
        scan_updates(tmp_path / "w.npz", tmp_path / "u.npz")
    assert scan_updates(tmp_path / "u.npz", tmp_path / "u.npz").total[0].edq_ratio > 0.9
    np.savez(tmp_path / "flat.npz", t=np.asfortranarray(square[:1]))
    np.savez(tmp_path / "flat2.npz", t=square[:1])
    assert scan_updates(tmp_path / "flat.npz", tmp_path / "flat2.npz").total[0].count == 3


@pytest.mark.parametrize(
    ("changed", "needle"),
    [
        ({"large": None}, "no tensor 'large', which .*weights.safetensors has"),
        ({"large": None, "small": None}, "no tensor .* and 1 more"),
        ({"more": np.ones(2)}, "weights.safetensors: no tensor 'more', which .*u.npz has"),
        ({"large": np.ones((7, 50))}, r"u.npz, tensor 'large': shape \(7, 50\) is not that of the weights, \(50, 7\)"),
        ({"large": np.arange(350).reshape(50, 7)}, "no tensor 'large'"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    changed: dict[str, Any], needle: str, updates: Tensors, weights_file: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "u.npz", **{k: v for k, v in (updates | changed).items() if v is not None})
    with pytest.raises(TensorFileError, match=needle) as caught:
        scan_updates(weights_file, tmp_path / "u.npz")
    assert str(caught.value).isprintable()


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        np.savez(tmp_path / "folder" / f"{name}.npz", t=np.ones(2))
    with pytest.raises(TensorFileError, match="two tensors are named 't'"):
        scan_updates(tmp_path / "folder", tmp_path / "folder")
    assert scan_frozen(tmp_path / "folder", [1e-9]).total[0].count == 4  # no matter without updates


@pytest.mark.parametrize("sizes", [[], [-1.0], [float("nan")], [1.0, float("inf")]])
def test_bad_sizes_are_refused(sizes: list[float], weights_file: Path) -> None:
    with pytest.raises(ValueError, match="update size"):
        scan_frozen(weights_file, sizes)


# ---- what is no weight ----


def stands_still(w: NDArray[Any], size: float) -> int:
    """Count by plain float32: bf16 of w + u and of w - u is w."""
    w = w.astype(ml_dtypes.bfloat16).astype(np.float32)
    both = [(w + np.float32(u)).astype(ml_dtypes.bfloat16).astype(np.float32) == w for u in (size, -size)]
    return int((both[0] & both[1]).sum())


def beside(prefix: str, w: NDArray[Any]) -> Tensors:
    """What a checkpoint may hold besides weights: all of it would move, were it counted."""
    tiny = np.full(w.shape, 1e-12, np.float32)
    return {
        f"{prefix}state.0.exp_avg": tiny,
        f"{prefix}state.0.exp_avg_sq": tiny,
        f"{prefix}state.0.step": np.array(20, np.float32),
        "bn.running_mean": tiny,
        "bn.running_var": tiny,
        "attn.bias": np.tril(np.ones((1, 1, 4, 4), np.float32)),
    }


@pytest.mark.parametrize("low", [1.0, 0.3, 1e-4], ids=["stands still", "in part", "moves"])
@pytest.mark.parametrize("prefix", ["optimizer.", ""])
def test_only_weights_are_counted(low: float, prefix: str, tmp_path: Path) -> None:
    w = np.random.default_rng(3).uniform(low, 1.9 * low, 4096).astype(np.float32)
    alone, together = {"model.w": w}, {"model.w": w, **beside(prefix, w)}
    expected = stands_still(w, 1e-3)
    assert (expected == 4096) == (low == 1)
    assert (expected == 0) == (low == 1e-4)
    save_file(together, tmp_path / "all.safetensors")
    for place in (alone, together, tmp_path / "all.safetensors"):
        result = scan_frozen(place, [1e-3], formats=["bf16"])
        assert [info.name for info, _ in result.tensors] == ["model.w"]
        assert result.total[0].count == 4096
        assert result.total[0].frozen(1e-3).both == expected
        if place is not alone:
            assert {info.name: info.skipped for info in result.skipped} == {
                **dict.fromkeys(list(beside(prefix, w))[:3], "state of the optimizer, no weights"),
                **dict.fromkeys(list(beside(prefix, w))[3:], "a buffer, no weights"),
            }


@pytest.mark.torch
@pytest.mark.parametrize(
    "kind", ["AdamW", "SGD", "Adagrad", "RMSprop", "Adadelta", "Rprop", "NAdam", "ASGD", "Adafactor"]
)
def test_a_training_checkpoint_of_torch(kind: str, tmp_path: Path) -> None:
    """Whatever its optimizer keeps, only the weights are counted; and from its file alone nothing is."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False)
    layer.weight.data.uniform_(1, 1.9)
    optimizer = getattr(torch.optim, kind)(layer.parameters(), lr=1e-3, **({"momentum": 0.9} if kind == "SGD" else {}))
    layer.weight.grad = torch.randn(64, 64)
    optimizer.step()
    torch.save({"model": layer.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "both.pt")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    expected = stands_still(layer.weight.detach().numpy(), 1e-3)
    result = scan_frozen(tmp_path / "both.pt", [1e-3], formats=["bf16"])
    assert [info.name for info, _ in result.tensors] == ["model.weight"]
    assert (result.total[0].count, result.total[0].frozen(1e-3).both) == (4096, expected)
    assert {info.skipped for info in result.skipped} == {"state of the optimizer, no weights"}
    with pytest.raises(TensorFileError, match=r"optimizer\.pt: no weights: .*state of the optimizer"):
        scan_frozen(tmp_path / "optimizer.pt", [1e-3])


def test_codes_are_counted_nowhere(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(0, 0.02, (128, 128)).astype(np.float32)
    scale = np.abs(w).max() / np.float32(448)
    codes = {"l.weight": (w / scale).astype(ml_dtypes.float8_e4m3fn), "l.weight_scale_inv": scale.reshape(1, 1)}
    save_file(codes | {"norm.weight": np.ones(3, np.float32)}, tmp_path / "some.safetensors")
    save_file(codes, tmp_path / "all.safetensors")
    result = scan_frozen(tmp_path / "some.safetensors", [1e-4], formats=["bf16"])
    assert [(info.name, gaps[0].count) for info, gaps in result.tensors] == [("norm.weight", 3)]
    for many in (
        lambda file: scan_frozen(file, [1e-4]),
        scan,
        lambda file: sum_tensors(file, "bf16"),
        lambda file: scan_updates(file, file),
    ):
        with pytest.raises(TensorFileError, match=r"no weights: .*codes: the values are code times 'weight_scale_inv'"):
            many(tmp_path / "all.safetensors")
    assert scan(tmp_path / "some.safetensors").total.max_abs == 1
    assert [one.info.name for one in sum_tensors(tmp_path / "some.safetensors", "bf16").tensors] == ["norm.weight"]


def test_codes_and_scales_in_different_shards(tmp_path: Path) -> None:
    save_file({"l.weight": np.ones((4, 4), ml_dtypes.float8_e4m3fn)}, tmp_path / "a.safetensors")
    save_file({"l.weight_scale_inv": np.ones((1, 1), np.float32), "n": np.ones(2)}, tmp_path / "b.safetensors")
    names = {"l.weight": "a.safetensors", "l.weight_scale_inv": "b.safetensors", "n": "b.safetensors"}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    result = scan_frozen(tmp_path, [1e-4])
    assert [info.name for info, _ in result.tensors] == ["n"]
    assert scan(tmp_path).total.count == 2  # without the scale
    with pytest.raises(TensorFileError, match="no weights: a tensor: scales of codes"):
        scan_frozen({"l.weight_scale_inv": np.ones(1)}, [1e-4])


def test_the_updates_of_weights_only(tmp_path: Path) -> None:
    """Buffers need no updates, and where they have some these count for nothing."""
    w = np.linspace(1, 1.9, 64, dtype=np.float32)
    weights = {"w": w, "bn.running_mean": w}
    for updates in (
        {"w": w * 1e-3},
        {"w": w * 1e-3, "bn.running_mean": w},
        {"bn.running_mean": w * 1e-9, "w": w * 1e-3},
    ):
        result = scan_updates(weights, updates, formats=["bf16"])
        assert [info.name for info, _ in result.tensors] == ["w"]
        assert result.total[0] == update_report(w, updates["w"], "bf16")
    with pytest.raises(TensorFileError, match="no tensor 'w'"):
        scan_updates(weights, {"bn.running_mean": w})


# ---- names that wrappers have changed ----

PLAIN = ("fc.weight", "fc.bias", "layers.0.weight")
WRAPPED = {
    "module": "module.{}.{}",
    "compiled": "_orig_mod.{}.{}",
    "both": "module._orig_mod.{}.{}",
    "both the other way": "_orig_mod.module.{}.{}",
    "twice": "module.module.{}.{}",
    "fsdp": "_fsdp_wrapped_module.{}._fsdp_wrapped_module.{}",
    "within": "module.{}._checkpoint_wrapped_module._orig_mod.{}",
}


def wrap(tensors: Tensors, pattern: str) -> Tensors:
    return {pattern.format(*name.rsplit(".", 1)): array for name, array in tensors.items()}


@pytest.mark.parametrize("pattern", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("wrapped", ["weights", "updates"])
def test_what_wrappers_put_into_names_is_noticed(pattern: str, wrapped: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weights: Tensors = {name: rng.uniform(1, 2, 50).astype(np.float32) for name in PLAIN}
    updates: Tensors = {name: rng.uniform(-1e-2, 1e-2, 50).astype(np.float32) for name in PLAIN}
    expected = scan_updates(weights, updates, formats=["bf16"])
    assert all(info.note is None for info, _ in expected.tensors)
    sides = {"weights": weights, "updates": updates}
    sides[wrapped] = wrap(sides[wrapped], pattern)
    for name, tensors in sides.items():
        np.savez(tmp_path / f"{name}.npz", **tensors)  # type: ignore[arg-type]
    for places in ((sides["weights"], sides["updates"]), (tmp_path / "weights.npz", tmp_path / "updates.npz")):
        result = scan_updates(*places, formats=["bf16"])
        assert result.total == expected.total
        assert {info.name for info, _ in result.tensors} == set(sides["weights"])
        assert [reports for _, reports in result.tensors] == [reports for _, reports in expected.tensors]
        for info, _ in result.tensors:
            assert info.note is not None
            assert info.note.startswith("its update: matched by name but for '")
            assert all(part in info.note for part in pattern.replace("{}", "").split(".") if part)


def test_it_is_not_guessed_which_of_two_names_is_meant() -> None:
    one = np.ones(3, np.float32)
    with pytest.raises(TensorFileError, match=r"'module\.w' and 'w' differ only by what wrappers put before names"):
        scan_updates({"module.w": one, "w": one}, {"w": one})
    with pytest.raises(TensorFileError, match=r"'module\.w' and '_orig_mod\.w' differ only by"):
        scan_updates({"w": one}, {"module.w": one, "_orig_mod.w": one})
    both = {"module.w": one, "w": one}
    assert scan_updates(both, both).total[0].count == 6  # where names agree nobody asks
    for other in ("model.w", "modules.w", "w.module", "_orig_mod_.w", "module"):
        with pytest.raises(TensorFileError, match="no tensor"):
            scan_updates({"w": one}, {other: one})
    with pytest.raises(TensorFileError, match=r"no tensor 'v'"):
        scan_updates({"w": one, "v": one}, {"module.w": one})
