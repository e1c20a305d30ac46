"""Real files from end to end: the counts against those of the arrays that were saved, the schema key by key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.quantization import quantization_report
from precision_lab.analysis.scan import DEFAULT_FORMATS, ScanResult, scan
from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike
from precision_lab.support.plain import header, number
from precision_lab.tensors import walk
from precision_lab.tensors.info import TensorFileError
from precision_lab.tensors.reading import stream_of

Array = NDArray[Any]
SAVEZ: Any = np.savez  # Any: mypy takes **arrays for its options

TOTAL_KEYS = {"count", "zero", "nonfinite", "min_nonzero", "max_abs", "formats"}
TENSOR_KEYS = {"file", "name", "dtype", "shape", "role"} | TOTAL_KEYS


def gradients(*shape: int, seed: int = 0) -> Array:
    """Normally distributed logarithms, so that every format loses something; zeros of both signs."""
    rng = np.random.default_rng(seed)
    x: Array = (np.exp2(rng.normal(-8, 12, shape)) * rng.choice([-1, 1], shape)).astype(np.float32)
    x.reshape(-1)[:3] = [0, -0.0, 2.0**-25]
    return x


FLOATS: dict[str, Array] = {
    "weight": gradients(30, 7, seed=1),
    "bias": gradients(40, seed=2).clip(-6e4, 6e4).astype(np.float16),
    "brain": gradients(5, 2, 3, seed=3).astype(ml_dtypes.bfloat16),
    "scalar": np.array(2.0**-26, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "special": np.array([np.inf, -np.inf, np.nan, -0.0], np.float32),
    "zeros": np.zeros(6, np.float32),
}
OTHERS: dict[str, Array] = {"steps": np.arange(5), "mask": np.ones(3, bool)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file(FLOATS | OTHERS, file)
    return file


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("data was read")


def strict_json(result: ScanResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found == result.to_dict()  # plain types only: nothing changed on the way
    return found


def expected_counts(x: Array, formats: tuple[str, ...], loss_scale: float) -> dict[str, Any]:
    h = ExponentHistogram.of(x)
    with np.errstate(all="ignore"):
        scaled = x.astype(np.float64) * loss_scale
    return {
        "count": x.size,
        "zero": int((x == 0).sum()),
        "nonfinite": int((~np.isfinite(x)).sum()),
        "min_nonzero": h.min_nonzero,
        "max_abs": h.max_abs,
        "formats": {
            name: {
                "flushed": h.flushed(name, loss_scale),
                "subnormal": h.subnormal(name, loss_scale),
                "overflowed": h.overflowed(name, loss_scale),
                "precision": expected_precision(scaled, name),
            }
            for name in formats
        },
    }


def expected_precision(x: Array, name: str) -> dict[str, Any]:
    report = quantization_report(x, name)
    return {"finite": report.finite, "changed": report.changed} | {
        key: number(getattr(report, key))
        for key in ("sqnr_db", "bias", "bias_standard_error", "outward_bias", "outward_bias_standard_error")
    }


# ---- what is found ----


@pytest.mark.parametrize("loss_scale", [1, 2.0**-10, 2.0**16])
@pytest.mark.parametrize("formats", [DEFAULT_FORMATS, ("fp16",), ("tf32", "e6m9", "fp4_e2m1fn")])
def test_the_counts_are_those_of_the_arrays(model: Path, formats: tuple[str, ...], loss_scale: float) -> None:
    found = strict_json(scan([model], formats=formats, loss_scale=loss_scale))
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert tensors.keys() == FLOATS.keys()
    for name, x in FLOATS.items():
        place = {"file": str(model), "name": name, "dtype": x.dtype.name, "shape": list(x.shape)}
        described = place | {"role": "parameter"}
        assert tensors[name] == described | expected_counts(x, formats, loss_scale)
    assert found["loss_scale"] == loss_scale


def test_by_hand(tmp_path: Path) -> None:
    # fp16: 2^-25 is flushed, 2^-24 subnormal, 65520 overflows
    x = np.array([[0, 2**-25, 2**-24], [1, 65520, np.nan]], np.float32)
    save_file({"x": x}, tmp_path / "x.safetensors")
    # what stays finite: 0, 2^-25, of which half a spacing is lost, 2^-24 and 1
    by_hand = {
        "finite": 4,
        "changed": 1,
        "sqnr_db": pytest.approx(10 * math.log10(2.0**50 + 5), rel=1e-15),
        "bias": -0.5 / 4,
        "bias_standard_error": 0.125,
        "outward_bias": -0.5 / 4,
        "outward_bias_standard_error": 0.125,
    }
    counts = {
        "count": 6,
        "zero": 1,
        "nonfinite": 1,
        "min_nonzero": 2.0**-25,
        "max_abs": 65520.0,
        "formats": {"fp16": {"flushed": 1, "subnormal": 1, "overflowed": 1, "precision": by_hand}},
    }
    assert strict_json(scan([tmp_path / "x.safetensors"], formats=["fp16"])) == {
        **header("scan"),
        "tensors": [
            {"file": str(tmp_path / "x.safetensors"), "name": "x", "dtype": "float32", "shape": [2, 3]}
            | {"role": "parameter"}
            | counts
        ],
        "total": counts,
        "other_totals": [],
        "loss_scale": 1.0,
        "skipped": [],
    }


def test_the_schema(model: Path) -> None:
    found = strict_json(scan([model]))
    assert found.keys() == {"kind", "version", "tensors", "total", "other_totals", "loss_scale", "skipped"}
    for counts, keys in [*((tensor, TENSOR_KEYS) for tensor in found["tensors"]), (found["total"], TOTAL_KEYS)]:
        assert counts.keys() == keys
        assert tuple(counts["formats"]) == DEFAULT_FORMATS
        for losses in counts["formats"].values():
            assert losses.keys() == {"flushed", "subnormal", "overflowed", "precision"}
            precision = losses.pop("precision")
            assert all(type(n) is int for n in losses.values())
            assert all(type(precision.pop(name)) is int for name in ("finite", "changed"))
            assert all(type(x) is float or x in ("inf", "nan") for x in precision.values())
        assert all(type(counts[key]) is int for key in ("count", "zero", "nonfinite"))
    assert type(found["loss_scale"]) is float


def test_the_total_is_the_sum(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "more.npy", gradients(1000, seed=9))
    found = strict_json(scan([model, tmp_path / "more.npy"], loss_scale=4))
    tensors, total = found["tensors"], found["total"]
    assert len(tensors) == len(FLOATS) + 1
    for key in ("count", "zero", "nonfinite"):
        assert total[key] == sum(tensor[key] for tensor in tensors)
    for name in DEFAULT_FORMATS:
        for key in ("flushed", "subnormal", "overflowed"):
            assert total["formats"][name][key] == sum(tensor["formats"][name][key] for tensor in tensors)
    assert total["min_nonzero"] == min(t["min_nonzero"] for t in tensors if t["min_nonzero"] is not None)
    assert total["max_abs"] == max(t["max_abs"] for t in tensors if t["max_abs"] is not None)
    # something is lost everywhere, or the sums would prove little
    assert all(total["formats"]["fp16"].values())


def test_what_is_no_float_is_skipped(model: Path) -> None:
    skipped = strict_json(scan([model]))["skipped"]
    assert {entry["name"]: entry for entry in skipped} == {
        "steps": {"file": str(model), "name": "steps", "dtype": "int64", "shape": [5], "reason": "integer tensor"},
        "mask": {"file": str(model), "name": "mask", "dtype": "bool", "shape": [3], "reason": "boolean tensor"},
    }


@pytest.mark.parametrize("name", ["empty", "special", "zeros"])
def test_extremes_that_json_cannot_write_are_none(tmp_path: Path, name: str) -> None:
    save_file({name: FLOATS[name]}, tmp_path / "x.safetensors")
    (tensor,) = strict_json(scan([tmp_path / "x.safetensors"]))["tensors"]
    assert tensor["min_nonzero"] is None
    assert tensor["max_abs"] == (None if name == "empty" else 0.0)
    for losses in tensor["formats"].values():
        assert [losses[what] for what in ("flushed", "subnormal", "overflowed")] == [0, 0, 0]
        assert losses["precision"]["changed"] == 0
        assert losses["precision"]["sqnr_db"] == "nan"


def test_only_skipped_tensors(tmp_path: Path) -> None:
    save_file(OTHERS, tmp_path / "x.safetensors")
    found = strict_json(scan([tmp_path / "x.safetensors"]))
    assert found["tensors"] == []
    assert found["total"]["count"] == 0
    assert len(found["skipped"]) == 2


def test_the_order_is_that_of_the_paths(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        save_file({name: gradients(4)}, tmp_path / f"{name}.safetensors")
    places = [tmp_path / f"{name}.safetensors" for name in ("c", "a", "b")]
    result = scan(iter(map(str, places)))  # any iterable, of strings too
    assert [tensor.info.name for tensor in result.tensors] == ["c", "a", "b"]


# ---- kinds of files ----


def test_npz(tmp_path: Path) -> None:
    SAVEZ(tmp_path / "x.npz", a=gradients(6, 6), big=gradients(9).astype(">f8"), n=np.arange(3))
    found = strict_json(scan([tmp_path / "x.npz"], formats=["fp16", "bf16"]))
    assert [tensor["name"] for tensor in found["tensors"]] == ["a", "big"]
    assert found["tensors"][0]["shape"] == [6, 6]
    for tensor, x in zip(found["tensors"], (gradients(6, 6), gradients(9).astype(np.float64)), strict=True):
        assert tensor | expected_counts(x, ("fp16", "bf16"), 1) == tensor
    assert [entry["name"] for entry in found["skipped"]] == ["n"]


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", FORMATS["bf16"], np.dtype(ml_dtypes.bfloat16)], ids=str)
def test_raw_items_need_a_dtype(tmp_path: Path, dtype: FormatLike) -> None:
    x = gradients(50).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", x)
    (tensor,) = strict_json(scan([tmp_path / "x.npy"], dtype=dtype))["tensors"]
    assert (tensor["dtype"], tensor["shape"]) == ("bfloat16", [50])
    assert tensor | expected_counts(x, DEFAULT_FORMATS, 1) == tensor
    with pytest.raises(TensorFileError, match="say what they are"):
        scan([tmp_path / "x.npy"])


def test_a_sharded_folder(tmp_path: Path) -> None:
    shards = {"1.safetensors": {"a": gradients(8, seed=1), "n": np.arange(2)}, "2.safetensors": {"b": gradients(9)}}
    weight_map: dict[str, str] = {}
    for shard, tensors in shards.items():
        save_file(tensors, tmp_path / shard)
        weight_map |= dict.fromkeys(tensors, shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    from_folder = strict_json(scan([tmp_path]))
    assert [(t["file"], t["name"]) for t in from_folder["tensors"]] == [
        (str(tmp_path / "1.safetensors"), "a"),
        (str(tmp_path / "2.safetensors"), "b"),
    ]
    assert from_folder["total"]["count"] == 17
    assert [entry["name"] for entry in from_folder["skipped"]] == ["n"]
    assert strict_json(scan([index])) == from_folder


@pytest.mark.parametrize("chunk_bytes", [1, 64, 1 << 22])
def test_chunks_do_not_show(model: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    expected = scan([model]).to_dict()
    monkeypatch.setattr(walk, "CHUNK_BYTES", chunk_bytes)
    assert scan([model]).to_dict() == expected


# ---- progress ----


@pytest.mark.parametrize("chunk_bytes", [12, 1 << 22])
def test_progress_counts_elements(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(walk, "CHUNK_BYTES", chunk_bytes)
    np.save(tmp_path / "more.npy", gradients(100))
    seen: list[tuple[int, int]] = []
    result = scan([model, tmp_path / "more.npy"], progress=lambda done, of: seen.append((done, of)))
    everything = sum(x.size for x in FLOATS.values()) + 100  # skipped tensors are not read
    assert {of for _, of in seen} == {everything}
    assert seen[-1] == (everything, everything)
    steps = [done for done, _ in seen]
    assert steps == sorted(set(steps))
    assert steps[0] > 0
    assert result.total.count == everything
    if chunk_bytes == 12:  # three float32 or six narrow elements at a time
        assert max(b - a for a, b in zip([0, *steps], steps, strict=False)) == 6


# ---- refusals ----


def refused(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert message.isprintable()
    assert message
    return message


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"formats": ["fp16", "fp17"]}, "unknown format 'fp17'"),
        ({"formats": [None]}, "unknown format None"),
        ({"loss_scale": 3}, "power of two"),
        ({"loss_scale": 0}, "power of two"),
        ({"loss_scale": math.nan}, "power of two"),
        ({"loss_scale": "2"}, "power of two"),
        ({"loss_scale": True}, "power of two"),
        ({"dtype": "fp17"}, "unknown format 'fp17'"),
        ({"dtype": "tf32"}, "tf32 is not a type that arrays are saved in"),
        ({"paths": []}, "nothing to scan"),
        ({"paths": ["no/such/file.npy"]}, "no such file"),
    ],
    ids=repr,
)
def test_bad_arguments_fail_before_anything_is_read(
    model: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], needle: str
) -> None:
    monkeypatch.setattr(walk, "stream_of", never)
    paths = options.pop("paths", [model])
    with pytest.raises(ValueError, match=needle) as caught:
        scan(paths, progress=never, **options)
    refused(caught)


def test_the_format_is_looked_at_before_the_files() -> None:
    with pytest.raises(ValueError, match="unknown format"):
        scan(["no/such/file.npy"], formats=["fp17"])
    with pytest.raises(ValueError, match="power of two"):
        scan(["no/such/file.npy"], loss_scale=3)


def broken(tmp_path: Path) -> dict[str, Path]:
    text, short, pickled = tmp_path / "text.safetensors", tmp_path / "short.npy", tmp_path / "pickled.pt"
    text.write_text("this is no tensor file")
    np.save(short, gradients(10))
    short.write_bytes(short.read_bytes()[:-1])
    pickled.write_bytes(b"\x80\x04N.")
    return {"text": text, "short": short, "pickled": pickled, "missing": tmp_path / "missing.npy"}


@pytest.mark.parametrize("kind", ["text", "short", "pickled", "missing"])
def test_a_bad_second_file_fails_before_the_first_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    bad = broken(tmp_path)[kind]
    monkeypatch.setattr(walk, "stream_of", never)
    monkeypatch.setattr(ExponentHistogram, "of", never)
    with pytest.raises(TensorFileError) as caught:
        scan([model, bad], progress=never)
    assert str(bad) in refused(caught)


def test_these_traps_can_close(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`never` is called where the arguments are good: the tests above can fail."""
    with pytest.raises(AssertionError, match="data was read"):
        scan([model], progress=never)
    monkeypatch.setattr(walk, "stream_of", never)
    with pytest.raises(AssertionError, match="data was read"):
        scan([model])


# ---- the result ----


def test_formats_by_any_name_and_each_once(model: Path) -> None:
    mine = FloatFormat.ieee(6, 9, "mine")
    result = scan([model], formats=["half", np.float16, "fp16", "e6m9", mine])
    assert [fmt.name for fmt in result.formats] == ["fp16", "e6m9", "mine"]
    assert tuple(result.to_dict()["total"]["formats"]) == ("fp16", "e6m9", "mine")


def test_the_result_holds_the_histograms(model: Path) -> None:
    result = scan([model], loss_scale=2)
    for tensor in result.tensors:
        assert tensor.histogram == ExponentHistogram.of(FLOATS[tensor.info.name])
    assert result.total == ExponentHistogram.of_chunks(FLOATS.values())
    assert {info.name for info in result.skipped} == OTHERS.keys()
    assert isinstance(result.loss_scale, float)


def test_a_folder_and_a_file_may_repeat(model: Path) -> None:
    """Nothing is merged behind the user's back."""
    once, twice = scan([model]), scan([model, model.parent])
    assert twice.total == once.total + once.total


def count_calls(function: Callable[..., Any], into: list[Any]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        into.append(args[0])
        return function(*args, **options)

    return counted


def test_each_file_is_read_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "more.npy", gradients(10))
    read: list[Any] = []
    monkeypatch.setattr(walk, "stream_of", count_calls(stream_of, read))
    scan([model, tmp_path / "more.npy"])
    assert [sources[0].info.file for sources in read] == [model, tmp_path / "more.npy"]


def test_one_path_needs_no_list(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    assert scan(str(tmp_path / "x.npy")).total == scan([tmp_path / "x.npy"]).total
