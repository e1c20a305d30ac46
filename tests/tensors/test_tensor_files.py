"""Real files of every kind read as chunks, and every lie a file can tell, each answered by one line."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from precision_lab import scan
from precision_lab.tensors import reading
from precision_lab.tensors.codes import UNSCALED
from precision_lab.tensors.info import TensorFileError, TensorInfo
from precision_lab.tensors.reading import list_tensors, read_tensors

Array = npt.NDArray[Any]

FLOATS = ("float64", "float32", "float16", "bfloat16")
FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
SAVEZ: Any = np.savez  # Any: mypy takes **arrays for its options
SAVEZ_COMPRESSED: Any = np.savez_compressed
RNG = np.random.default_rng(20240607)


def array_of(dtype: str, *shape: int) -> Array:
    """Every bit pattern is as good as another, NaN and -0.0 included."""
    item = np.dtype(dtype).itemsize
    return RNG.integers(0, 256, (*shape[:-1], shape[-1] * item), np.uint8).view(dtype)


def bits(array: Array) -> bytes:
    return array.tobytes()


def read_all(path: Path, **options: Any) -> dict[str, Array]:
    """All tensors that are streamed, flat, in memory."""
    found = {}
    for info, chunks in read_tensors(path, **options):
        parts = [chunk.copy() for chunk in chunks]
        assert all(part.ndim == 1 and part.size and part.dtype == np.dtype(info.dtype) for part in parts)
        if info.skipped:
            assert not parts
        else:
            found[info.name] = np.concatenate(parts) if parts else np.empty(0, info.dtype)
            assert found[info.name].size == info.count
    return found


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def npy_bytes(descr: object, shape: object, data: bytes = b"", *, version: int = 1, fortran: object = False) -> bytes:
    return raw_npy(repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode(), data, version=version)


def raw_npy(header: bytes, data: bytes = b"", *, version: int = 1) -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def saved(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zip_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def chunk_sizes(tensors: Iterator[tuple[TensorInfo, Iterator[Array]]], into: list[int] | None = None) -> list[int]:
    """Read everything; `into` keeps what was seen before an error."""
    sizes = [] if into is None else into
    for _, chunks in tensors:
        for chunk in chunks:
            sizes.append(chunk.size)
    return sizes


def reference_accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


def refusal(path: Path, *needles: str, **options: Any) -> str:
    """Reading is refused with one line that holds all the needles; return it."""
    with pytest.raises(TensorFileError) as caught:
        chunk_sizes(read_tensors(path, **options))
    message = str(caught.value)
    assert message.isprintable()  # so no newline either
    assert len(message) < 1000
    for needle in needles:
        assert needle in message, message
    what, cure = message.split(": ", 1)[1].rsplit("; ", 1)
    assert what
    assert cure
    return message


# ---- reading what is right ----


@pytest.mark.parametrize("dtype", FLOATS + FP8)
def test_safetensors_round_trip(tmp_path: Path, dtype: str) -> None:
    arrays = {"a.weight": array_of(dtype, 7, 5), "b": array_of(dtype, 1001), "scalar": array_of(dtype, 1).reshape(())}
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "np"})
    found = read_all(tmp_path / "m.safetensors", chunk_bytes=256)
    assert {name: bits(array) for name, array in found.items()} == {name: bits(a) for name, a in arrays.items()}
    infos = {info.name: info for info in list_tensors(tmp_path / "m.safetensors")}
    note = UNSCALED if dtype in FP8 else None
    assert infos["a.weight"] == TensorInfo(tmp_path / "m.safetensors", "a.weight", dtype, (7, 5), note=note)
    assert infos["scalar"].shape == ()
    assert infos["scalar"].count == 1


@pytest.mark.parametrize("save", [SAVEZ, SAVEZ_COMPRESSED])
@pytest.mark.parametrize("dtype", FLOATS[:3])
def test_npy_and_npz_round_trip(tmp_path: Path, dtype: str, save: Callable[..., None]) -> None:
    arrays = {"layer/0": array_of(dtype, 7, 5), "b": array_of(dtype, 10_001), "scalar": array_of(dtype, 1).reshape(())}
    save(tmp_path / "m.npz", **arrays)
    for file, content in (("m.npz", arrays), ("one.npy", {"one": arrays["b"]})):
        np.save(tmp_path / "one.npy", arrays["b"])
        found = read_all(tmp_path / file, chunk_bytes=256)
        assert {name: bits(array) for name, array in found.items()} == {name: bits(a) for name, a in content.items()}
        assert [info.shape for info in list_tensors(tmp_path / file)] == [a.shape for a in content.values()]


@pytest.mark.parametrize(
    ("dtype", "spec"),
    [(name, name) for name in ("bfloat16", *FP8, "float8_e4m3", "float6_e2m3fn", "float4_e2m1fn")]
    + [("bfloat16", "bf16"), ("float8_e4m3fn", "fp8_e4m3fn"), ("float8_e5m2", "fp8_e5m2")],
)
def test_raw_arrays_are_read_as_the_dtype_that_is_named(tmp_path: Path, dtype: str, spec: str) -> None:
    array, single = array_of(dtype, 33), array_of("float32", 3)
    np.save(tmp_path / "a.npy", array)
    SAVEZ(tmp_path / "a.npz", a=array, single=single)
    assert bits(read_all(tmp_path / "a.npy", dtype=spec)["a"]) == bits(array)
    assert bits(read_all(tmp_path / "a.npy", dtype=np.dtype(dtype))["a"]) == bits(array)
    found = read_all(tmp_path / "a.npz", dtype=spec)
    assert bits(found["a"]) == bits(array)
    assert bits(found["single"]) == bits(single)  # real dtypes keep theirs


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("chunk_bytes", [1, 24, 1 << 20])
def test_big_endian_chunks_are_native(tmp_path: Path, dtype: str, chunk_bytes: int) -> None:
    array = array_of(dtype, 100)
    swapped = array.astype(array.dtype.newbyteorder(">"))
    np.save(tmp_path / "a.npy", swapped)
    SAVEZ_COMPRESSED(tmp_path / "a.npz", a=swapped)
    for file in ("a.npy", "a.npz"):
        found = read_all(tmp_path / file, chunk_bytes=chunk_bytes)["a"]
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, array)


def test_fortran_order_comes_in_memory_order(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_all(tmp_path / "a.npy")["a"], array.ravel(order="F"))
    assert list_tensors(tmp_path / "a.npy")[0].shape == (3, 4)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_npy_versions(tmp_path: Path, version: int) -> None:
    array = np.arange(5, dtype=np.float32)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns that old readers do not know version 2 and 3
        np.lib.format.write_array(stream, array, version=(version, 0))
    (tmp_path / "a.npy").write_bytes(stream.getvalue())
    np.testing.assert_array_equal(read_all(tmp_path / "a.npy")["a"], array)


def test_a_header_of_python_2_reads_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(raw_npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }", bytes(8)))
    assert read_all(tmp_path / "a.npy")["a"].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_empty_tensors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    empty, full = np.empty(shape, np.float32), np.ones(3, np.float32)
    save_file({"empty": empty, "full": full, "void": empty}, tmp_path / "a.safetensors")
    SAVEZ(tmp_path / "a.npz", empty=empty, full=full)
    np.save(tmp_path / "empty.npy", empty)
    for file in ("a.safetensors", "a.npz", "empty.npy"):
        assert read_all(tmp_path / file)["empty"].size == 0
        assert {info.shape for info in list_tensors(tmp_path / file)} <= {shape, (3,)}


def test_files_without_any_tensor_are_empty_lists(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    SAVEZ(tmp_path / "a.npz")
    assert list_tensors(tmp_path / "a.safetensors") == list_tensors(tmp_path / "a.npz") == []


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [(f"{sign}int{width}", "integer") for sign in ("", "u") for width in (8, 16, 32, 64)]
    + [("bool", "boolean"), ("complex64", "complex")],
)
def test_what_is_not_a_float_is_skipped_with_its_reason(tmp_path: Path, dtype: str, reason: str) -> None:
    arrays = {"before": np.ones(2, np.float32), "it": array_of("uint8", 16).view(dtype), "z": np.ones(1, np.float16)}
    save_file(arrays, tmp_path / "a.safetensors")
    SAVEZ(tmp_path / "a.npz", **arrays)
    for file in ("a.safetensors", "a.npz"):
        assert sorted(read_all(tmp_path / file)) == ["before", "z"]
        (info,) = (info for info in list_tensors(tmp_path / file) if info.name == "it")
        assert (info.dtype, info.skipped) == (dtype, f"{reason} tensor")


@pytest.mark.parametrize(
    ("word", "count", "nbytes", "dtype", "reason"),
    [
        ("F4", 6, 3, "F4", "packed"),
        ("F6_E2M3", 4, 3, "F6_E2M3", "packed"),
        ("F6_E3M2", 8, 6, "F6_E3M2", "packed"),
        ("F8_E8M0", 5, 5, "float8_e8m0fnu", "F8_E8M0 holds block scales"),
    ],
)
def test_safetensors_dtypes_without_an_array_are_skipped(
    tmp_path: Path, word: str, count: int, nbytes: int, dtype: str, reason: str
) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(safetensors_bytes({"w": entry(word, [count], [0, nbytes])}, bytes(nbytes)))
    (info,) = list_tensors(file)
    assert (info.dtype, info.count) == (dtype, count)
    assert reason in str(info.skipped)
    assert read_all(file) == {}
    file.write_bytes(safetensors_bytes({"w": entry(word, [count + 1], [0, nbytes])}, bytes(nbytes)))
    refusal(file, "'w'", word, "save it again")


def test_other_npy_kinds_are_skipped_too(tmp_path: Path) -> None:
    kinds = {"text": np.array(["a"]), "bytes": np.array([b"a"]), "date": np.array(["2024-01-01"], "M8[D]")}
    kinds |= {"wide": np.ones(1, complex)}
    SAVEZ(tmp_path / "a.npz", **kinds)
    assert all(info.skipped for info in list_tensors(tmp_path / "a.npz"))
    assert read_all(tmp_path / "a.npz") == {}


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="longdouble is float64 here")
def test_longdouble_is_skipped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3, np.longdouble))
    assert "longdouble" in str(list_tensors(tmp_path / "a.npy")[0].skipped)


def test_members_that_are_no_npy_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(zip_bytes({"README": b"hello", "w.npy": saved(np.ones(2))}))
    assert list_tensors(tmp_path / "a.npz")[0] == TensorInfo(
        tmp_path / "a.npz", "README", "bytes", (5,), "not a .npy member"
    )
    assert list(read_all(tmp_path / "a.npz")) == ["w"]


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    header = {"late": entry("F32", [1], [4, 8]), "early": entry("F32", [1], [0, 4])}
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(header, bytes(8)))
    assert [info.name for info in list_tensors(tmp_path / "a.safetensors")] == ["early", "late"]


# ---- chunks, the buffer, open files ----


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Path]:
    """The same three tensors in a file of each kind."""
    arrays = {name: np.arange(n, n + 1000, dtype=np.float32) for n, name in enumerate("abc")}
    save_file(arrays, tmp_path / "t.safetensors")
    SAVEZ(tmp_path / "t.npz", **arrays)
    SAVEZ_COMPRESSED(tmp_path / "packed.npz", **arrays)
    (tmp_path / "folder").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "folder" / name, array)
    return {name: tmp_path / name for name in ("t.safetensors", "t.npz", "packed.npz", "folder")}


KINDS = pytest.mark.parametrize("kind", ["t.safetensors", "t.npz", "packed.npz", "folder"])


@KINDS
@pytest.mark.parametrize("chunk_bytes", [1, 3, 4, 5, 8, 400, 3999, 4000, 4001, 1 << 20])
def test_chunk_sizes(three: dict[str, Path], kind: str, chunk_bytes: int) -> None:
    step = max(1, chunk_bytes // 4)
    for n, (_, chunks) in enumerate(read_tensors(three[kind], chunk_bytes=chunk_bytes)):
        parts = [chunk.copy() for chunk in chunks]
        assert [part.size for part in parts] == [min(step, 1000 - at) for at in range(0, 1000, step)]
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(n, n + 1000))


@pytest.mark.parametrize("chunk_bytes", [0, -1])
def test_chunks_have_bytes(three: dict[str, Path], chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="chunk_bytes must be at least 1"):
        read_tensors(three["folder"], chunk_bytes=chunk_bytes)


@KINDS
def test_all_chunks_are_views_of_one_buffer(three: dict[str, Path], kind: str) -> None:
    kept = [chunk for _, chunks in read_tensors(three[kind], chunk_bytes=1000) for chunk in chunks]
    assert len(kept) == 12
    assert all(np.shares_memory(kept[0], chunk) for chunk in kept)


@KINDS
def test_half_read_tensors_do_not_disturb_the_next(three: dict[str, Path], kind: str) -> None:
    first = []
    for _, chunks in read_tensors(three[kind], chunk_bytes=40):
        next(chunks)
        first.append(next(chunks)[0])
    assert first == [10, 11, 12]


@pytest.mark.parametrize("kind", ["t.safetensors", "folder"])
def test_chunks_may_be_read_after_the_walk(three: dict[str, Path], kind: str) -> None:
    walked = list(read_tensors(three[kind]))
    assert [next(chunks)[0] for _, chunks in reversed(walked)] == [2, 1, 0]


@pytest.mark.parametrize("kind", ["t.npz", "packed.npz"])
def test_members_are_read_while_their_archive_is_open(three: dict[str, Path], kind: str) -> None:
    walk = read_tensors(three[kind], chunk_bytes=40)
    (_, a), (_, b) = next(walk), next(walk)
    assert [next(b)[0], next(a)[0], next(b)[0]] == [1, 0, 11]
    late = next(chunks for _, chunks in walk)
    assert next(walk, None) is None
    with pytest.raises(TensorFileError, match=f"{kind}, tensor 'c': .*closed.*; read the chunks of a tensor before"):
        next(late)
    assert next(a)[0] == 10  # once begun, a member can be read to its end


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@KINDS
@pytest.mark.parametrize("consume", ["none", "first tensor", "half a chunk", "all"])
def test_no_file_stays_open(three: dict[str, Path], kind: str, consume: str) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    walk = read_tensors(three[kind], chunk_bytes=40)
    if consume != "none":
        _, chunks = next(walk)
    if consume == "half a chunk":
        next(chunks)
    if consume == "all":
        assert len(list(chunks)) == 100
        assert sum(len(list(rest)) for _, rest in walk) == 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del walk
        chunks = iter(())
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_short_reads_are_continued() -> None:
    class Slow(io.BytesIO):
        def readinto(self, view: Any) -> int:
            return super().readinto(view[:3])

    whole = bytearray(10)
    assert reading._fill(Slow(b"0123456789"), memoryview(whole)) == 10  # type: ignore[arg-type]
    assert whole == b"0123456789"
    assert reading._fill(Slow(b"01234"), memoryview(whole)) == 5  # type: ignore[arg-type]


def test_listing_reads_no_data(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    file.write_bytes(npy_bytes("<f4", (1 << 38,)))
    os.truncate(file, file.stat().st_size + (1 << 40))
    assert list_tensors(file)[0].count == 1 << 38


# ---- memory ----

SIZE = 200 << 20


def sparse(folder: Path, kind: str) -> Path:
    """200 MB of zeros that take no room on the disk."""
    file = folder / f"zeros.{kind}"
    if kind == "npz":
        deflated = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with deflated as archive, archive.open("w.npy", "w") as stream:
            stream.write(npy_bytes("<f4", (SIZE // 4,)))
            for _ in range(SIZE >> 20):
                stream.write(bytes(1 << 20))
        return file
    head = safetensors_bytes({"w": entry("F32", [SIZE // 4], [0, SIZE])})
    file.write_bytes(head if kind == "safetensors" else npy_bytes(">f4", (SIZE // 4,)))
    os.truncate(file, file.stat().st_size + SIZE)
    return file


def peak_while(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["safetensors", "npy", "npz"])
def test_memory_is_bounded_by_the_buffer(tmp_path: Path, kind: str) -> None:
    file = sparse(tmp_path, kind)
    count = []

    def walk() -> None:
        count.append(sum(chunk.size for _, chunks in read_tensors(file) for chunk in chunks))

    assert peak_while(walk) < 8 << 20
    assert count == [SIZE // 4]
    if kind == "npy":  # the measurement can fail
        assert peak_while(lambda: np.load(file)) > SIZE


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_file_is_not_mapped_either(tmp_path: Path) -> None:
    sparse(tmp_path, "safetensors")
    sparse(tmp_path, "npy")
    script = """
import sys
from precision_lab.tensors.reading import read_tensors
def peak():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
before = peak()
total = sum(chunk.size for _, chunks in read_tensors(sys.argv[1]) for chunk in chunks)
print(total, peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    total, growth = map(int, run.stdout.split())
    assert total == SIZE // 2
    assert growth < 16 << 10  # KiB


# ---- what is wrong: safetensors ----

# the cases below that the reference lets pass; it refuses all others as well
STRICTER = {"leading space", "metadata is null", "field too many", "shape of too many dimensions"}

NESTED = b"[" * 200_000

BAD_HEADERS: dict[str, tuple[bytes, list[str]]] = {
    "shorter than its length": (b"\x10\0\0", ["header"]),
    "length 0": (bytes(8), ["must start with {"]),
    "length beyond the file": (b"\xff\0\0\0\0\0\0\0{}", ["header takes 263 bytes", "ends after 10"]),
    "length beyond 100 MB": (b"\xff" * 8 + b"{}", ["limit of 100000000"]),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    "not utf-8": (safetensors_bytes(b'{"\xff": 1}'), ["utf-8"]),
    "not json": (safetensors_bytes(b"{'a': 1}"), ["JSON cannot be read"]),
    "leading space": (safetensors_bytes(b" {}"), ["must start with {"]),
    "byte order mark": (safetensors_bytes(b"\xef\xbb\xbf{}"), ["must start with {"]),
    "two documents": (safetensors_bytes(b"{}{}"), ["JSON cannot be read"]),
    "not an object": (safetensors_bytes(b"[1, 2]"), ["must start with {"]),
    "duplicate key": (safetensors_bytes(b'{"w": 1, "w": 2}'), ["duplicate key 'w'"]),
    "duplicate field": (safetensors_bytes(b'{"w": {"dtype": "F32", "dtype": "F16"}}'), ["duplicate key 'dtype'"]),
    "lone surrogate": (safetensors_bytes(b'{"\\ud800": 1}'), ["surrogates not allowed"]),
    "deep nesting": (safetensors_bytes(b'{"w": ' + NESTED), ["nested too deeply"]),
    "nan": (safetensors_bytes(b'{"w": NaN}'), ["NaN is not JSON"]),
    "infinity": (safetensors_bytes(b'{"w": -Infinity}'), ["-Infinity is not JSON"]),
    "a number of 5000 digits": (safetensors_bytes(b'{"w": ' + b"9" * 5000 + b"}"), ["JSON cannot be read"]),
    "metadata is a list": (safetensors_bytes({"__metadata__": []}), ["__metadata__"]),
    "metadata is null": (safetensors_bytes({"__metadata__": None}), ["__metadata__"]),
    "metadata holds a number": (safetensors_bytes({"__metadata__": {"a": 1}}), ["__metadata__"]),
    "trailing bytes": (safetensors_bytes({"w": entry()}, bytes(9)), ["1 trailing bytes"]),
    "trailing bytes alone": (safetensors_bytes({}, b"x"), ["1 trailing bytes"]),
}

BAD_ENTRIES: dict[str, tuple[object, list[str]]] = {
    "not an object": (1, ["must hold dtype, shape and data_offsets"]),
    "null": (None, ["must hold dtype"]),
    "field missing": ({"dtype": "F32", "shape": [2]}, ["must hold dtype"]),
    "dtype unknown": (entry("F128"), ["'F128'", "save it as one of F64, F32"]),
    "dtype lower case": (entry("f32"), ["'f32'"]),
    "dtype a list": (entry(["F32"]), ["['F32']"]),
    "dtype null": (entry(None), ["None"]),
    "shape a number": (entry(shape=2), ["shape must be"]),
    "shape null": (entry(shape=None), ["shape must be"]),
    "shape negative": (entry(shape=[-2]), ["shape must be", "-2"]),
    "shape doubly negative": (entry(shape=[-2, -1]), ["none negative"]),
    "shape a bool": (entry("F64", [True]), ["shape must be", "True"]),
    "shape a float": (entry(shape=[2.0]), ["shape must be"]),
    "shape a string": (entry(shape="2"), ["shape must be"]),
    "shape absurd": (entry(shape=[2**62, 2**62]), ["beyond what an array can hold"]),
    "shape wraps to the size": (entry(shape=[2**63, 2]), ["beyond"]),
    "shape wraps to 0": (entry(shape=[2**32, 2**32, 4], offsets=[0, 0]), ["beyond"]),
    "shape absurd and empty": (entry(shape=[2**62, 4, 0], offsets=[0, 0]), ["beyond"]),
    "shape of too many dimensions": (entry(shape=[2] + [1] * 64), ["beyond"]),
    "offsets missing one": (entry(offsets=[0]), ["data_offsets must be two"]),
    "offsets three": (entry(offsets=[0, 4, 8]), ["data_offsets must be two"]),
    "offsets floats": (entry(offsets=[0, 8.0]), ["data_offsets must be two"]),
    "offsets bools": (entry("U8", [1], [False, True]), ["data_offsets must be two"]),
    "offsets an object": (entry(offsets={}), ["data_offsets must be two"]),
    "offsets backwards": (entry(offsets=[8, 0]), ["in order"]),
    "offsets negative": (entry(offsets=[-8, 0]), ["in order"]),
    "offsets outside": (entry(shape=[3], offsets=[0, 12]), ["within the 8 bytes"]),
    "offsets huge": (entry(offsets=[2**70, 2**70 + 8]), ["within the 8 bytes"]),
    "size too small": (entry(shape=[1]), ["F32 of shape [1] does not fit"]),
    "size too large": (entry(shape=[3]), ["F32 of shape [3] does not fit"]),
    "half a byte": (entry("F4", [15]), ["F4 of shape [15] does not fit"]),
}


def test_tensors_may_be_called_as_the_fields_of_an_entry(tmp_path: Path) -> None:
    """Entries are made lighter while the header is read, before it is known which object is an entry."""
    names = ("dtype", "shape", "data_offsets")
    file = tmp_path / "odd.safetensors"
    file.write_bytes(safetensors_bytes({n: entry(offsets=[8 * i, 8 * i + 8]) for i, n in enumerate(names)}, bytes(24)))
    assert [info.name for info in list_tensors(file)] == list(names)
    file.write_bytes(safetensors_bytes(entry(), bytes(8)))  # the entry of a tensor alone
    refusal(file, "odd.safetensors, tensor 'dtype': ", "must hold dtype", "again")
    file.write_bytes(safetensors_bytes({"__metadata__": entry(), "w": entry()}, bytes(8)))
    refusal(file, "odd.safetensors: ", "__metadata__ must be an object of strings")


@pytest.mark.parametrize("more", [{"stride": [1]}, {"x": None, "y": {"dtype": "F16"}}, {"Dtype": "F16"}])
def test_what_a_header_entry_holds_besides_is_left_alone(tmp_path: Path, more: dict[str, object]) -> None:
    content = safetensors_bytes(
        {"w": entry() | more, "v": entry(offsets=[8, 16])}, np.array([1, 2, 3, 4], np.float32).tobytes()
    )
    assert reference_accepts(content)
    (tmp_path / "a.safetensors").write_bytes(content)
    assert {name: array.tolist() for name, array in read_all(tmp_path / "a.safetensors").items()} == {
        "w": [1, 2],
        "v": [3, 4],
    }


BAD_LAYOUTS: dict[str, tuple[dict[str, object], list[str]]] = {
    "overlap": ({"w": entry(), "v": entry(offsets=[4, 12])}, ["'v'", "overlaps"]),
    "the same bytes twice": ({"v": entry(offsets=[0, 8]), "w": entry(offsets=[0, 8])}, ["overlaps"]),
    "hole": ({"w": entry(), "v": entry("F32", [1], [12, 16])}, ["'v'", "hole"]),
    "hole at the start": ({"w": entry(offsets=[8, 16])}, ["'w'", "hole"]),
    "empty tensor inside another": ({"w": entry(), "v": entry(shape=[0], offsets=[4, 4])}, ["'v'", "overlaps"]),
    "end not covered": ({"w": entry()}, ["8 trailing bytes"]),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_safetensors_header_lies(tmp_path: Path, case: str) -> None:
    content, needles = BAD_HEADERS[case]
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    assert reference_accepts(content) == (case in STRICTER)
    refusal(file, "bad.safetensors: ", "again", *needles)
    with pytest.raises(TensorFileError):
        list_tensors(file)


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_safetensors_entry_lies(tmp_path: Path, case: str) -> None:
    bad, needles = BAD_ENTRIES[case]
    file, content = tmp_path / "bad.safetensors", safetensors_bytes({"the.w": bad}, bytes(8))
    file.write_bytes(content)
    assert reference_accepts(content) == (case in STRICTER)
    message = refusal(file, "bad.safetensors, tensor 'the.w': ", *needles)
    assert "again" in message or "save it as" in message
    with pytest.raises(TensorFileError):
        list_tensors(file)


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_safetensors_layout_lies(tmp_path: Path, case: str) -> None:
    header, needles = BAD_LAYOUTS[case]
    file, content = tmp_path / "bad.safetensors", safetensors_bytes(header, bytes(16))
    file.write_bytes(content)
    assert not reference_accepts(content)
    refusal(file, "bad.safetensors", "again", *needles)


def test_names_cannot_break_the_line(tmp_path: Path) -> None:
    name = "two\nlines\r\x1b[31m\u2028" + "long" * 1000
    (tmp_path / "odd\nname.safetensors").write_bytes(safetensors_bytes({name: entry(shape=[1])}, bytes(8)))
    refusal(tmp_path / "odd\nname.safetensors", r"odd\nname", r"'two\nlines\r\x1b[31m\u2028long", "...'")
    (tmp_path / "good.safetensors").write_bytes(safetensors_bytes({name: entry()}, bytes(8)))
    assert list_tensors(tmp_path / "good.safetensors")[0].name == name


# ---- what is wrong: npy and npz ----


def object_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


GOOD = saved(np.arange(4, dtype=np.float32))

BAD_NPY: dict[str, tuple[bytes, list[str]]] = {
    "magic": (b"\x93NUMPX" + GOOD[6:], ["magic string", "again"]),
    "only a magic": (GOOD[:6], ["magic string", "again"]),
    "version 4": (raw_npy(b"{}", version=4), ["unknown .npy version (4, 0)"]),
    "header cut": (GOOD[:50], ["EOF", "again"]),
    "header of 4 GiB": (b"\x93NUMPY\x02\0\xff\xff\xff\xff{}", ["EOF", "again"]),
    "header too long": (npy_bytes("<f4", (4,), bytes(16), version=2).replace(b"}", b"}" + b" " * 20_000), ["again"]),
    "header no literal": (raw_npy(b"__import__('os').abort()"), ["malformed", "again"]),
    "header no dictionary": (raw_npy(b"[1]"), ["not a dictionary"]),
    "header without shape": (raw_npy(b"{'descr': '<f4', 'fortran_order': False}"), ["correct keys"]),
    "header deep": (raw_npy(b"-" * 16_000 + b"1"), ["again"]),
    "header long sum": (raw_npy(b"1+" * 8000 + b"1"), ["again"]),
    "header many brackets": (raw_npy(b"[" * 16_000), ["again"]),
    "header full of bad escapes": (raw_npy(b"{'descr': " + b"'\\q'" * 3000), ["again"]),
    "descr nonsense": (npy_bytes("<q9z", (4,), bytes(16)), ["again"]),
    "descr a number": (npy_bytes(7, (4,), bytes(16)), ["again"]),
    "shape a list": (npy_bytes("<f4", [4], bytes(16)), ["shape is not valid"]),
    "shape negative": (npy_bytes("<f4", (-4,), bytes(16)), ["none negative"]),
    "shape a bool": (npy_bytes("<f4", (True,), bytes(4)), ["whole numbers"]),
    "shape absurd": (npy_bytes("<f4", (2**40, 2**40)), ["beyond what an array can hold"]),
    "data cut": (GOOD[:-1], ["expected 16 bytes of data, found 15", "again"]),
    "no data": (GOOD[:-16], ["expected 16 bytes of data, found 0"]),
    "data too long": (GOOD + b"x", ["expected 16 bytes of data, found 17"]),
    "two arrays in one file": (GOOD + GOOD, ["expected 16 bytes of data"]),
    "object": (object_npy(), ["pickled Python objects, which are never loaded", "save it as a float array"]),
    "structured": (saved(np.zeros(2, "f4,f4")), ["structured", "save each field"]),
    "structured in utf-8": (
        raw_npy("{'descr': [('\xe9', '<f4')], 'fortran_order': False, 'shape': (1,)}".encode(), bytes(4), version=3),
        ["structured"],
    ),
    "subarrays": (npy_bytes(("<f4", (2,)), (1,), bytes(8)), ["structured"]),
    "raw of 2 bytes": (npy_bytes("|V2", (2,), bytes(4)), ["raw items of 2 bytes", "--dtype bf16"]),
    "raw of 1 byte": (npy_bytes("|V1", (2,), bytes(2)), ["raw items of 1 bytes", "--dtype fp8_e4m3fn"]),
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_npy_lies(tmp_path: Path, case: str) -> None:
    content, needles = BAD_NPY[case]
    (tmp_path / "bad.npy").write_bytes(content)
    refusal(tmp_path / "bad.npy", "bad.npy, tensor 'bad': ", *needles)
    (tmp_path / "bad.npz").write_bytes(zip_bytes({"good.npy": GOOD, "w.npy": content}))
    message = refusal(tmp_path / "bad.npz", "bad.npz, tensor 'w': ", *needles)
    assert "allow_pickle" not in message
    with pytest.raises(TensorFileError):
        list_tensors(tmp_path / "bad.npz")


def test_pickles_are_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "boom",))

    pickle.loads(pickle.dumps(Bomb()))
    (tmp_path / "boom").unlink()  # the bomb works
    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    for file in ("a.npy", "a.pt", "b.npy"):
        refusal(tmp_path / file)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(("dtype", "size"), [("bf16", 1), ("fp8_e5m2", 2), ("fp32", 2)])
def test_raw_items_must_have_the_size_of_the_dtype(tmp_path: Path, dtype: str, size: int) -> None:
    (tmp_path / "a.npy").write_bytes(npy_bytes(f"|V{size}", (4,), bytes(4 * size)))
    refusal(tmp_path / "a.npy", "a.npy, tensor 'a'", f"raw items of {size} bytes", "--dtype", dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "tf32", "e6m9", "nonsense", "float8_e8m0fnu"])
def test_dtype_must_be_a_float_that_arrays_are_saved_in(three: dict[str, Path], dtype: str) -> None:
    with pytest.raises(ValueError, match=r"bf16|the format of block scales") as caught:
        read_tensors(three["folder"], dtype=dtype)
    assert not isinstance(caught.value, TensorFileError)


def damaged(content: bytes, old: bytes, new: bytes) -> bytes:
    """Overwrite bytes where `old` starts."""
    at = content.index(old)
    return content[:at] + new + content[at + len(new) :]


STORED = zip_bytes({"w.npy": GOOD})
LONG = zip_bytes({"w.npy": saved(np.zeros(40_000, np.float32))})
BAD_NPZ: dict[str, tuple[bytes, list[str]]] = {
    "not a zip": (b"PK\x03\x04" + bytes(100), ["not a zip file", "again"]),
    "an npy in disguise": (GOOD, ["not a zip file"]),
    "cut": (STORED[:-30], ["not a zip file"]),
    "other name in the local header": (STORED.replace(b"w.npy", b"v.npy", 1), ["'w'", "differ"]),
    "bad crc of a short member": (damaged(STORED, GOOD[-16:], bytes(16)), ["'w'", "Bad CRC-32"]),
    "bad crc at the end of a long one": (damaged(LONG, bytes(40_000), b"x" + bytes(39_999)), ["'w'", "Bad CRC-32"]),
    "bzip2": (zip_bytes({"w.npy": GOOD}, zipfile.ZIP_BZIP2), ["'w'", "savez_compressed"]),
    "lzma": (zip_bytes({"w.npy": GOOD}, zipfile.ZIP_LZMA), ["'w'", "savez_compressed"]),
    "encrypted": (damaged(STORED, b"PK\x01\x02\x14\x03\x14\0", b"PK\x01\x02\x14\x03\x14\0\x01"), ["'w'", "encrypted"]),
    "a member twice": (STORED, ["'w'", "two members"]),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_lies(tmp_path: Path, case: str) -> None:
    content, needles = BAD_NPZ[case]
    (tmp_path / "bad.npz").write_bytes(content)
    if case == "a member twice":
        with zipfile.ZipFile(tmp_path / "bad.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("w.npy", GOOD)
    refusal(tmp_path / "bad.npz", "bad.npz", *needles)


def test_a_bad_crc_shows_with_the_last_chunk(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(BAD_NPZ["bad crc at the end of a long one"][0])
    sizes: list[int] = []
    with pytest.raises(TensorFileError, match="Bad CRC"):
        chunk_sizes(read_tensors(tmp_path / "a.npz", chunk_bytes=40_000), sizes)
    assert sizes == [10_000] * 3


# ---- paths and folders ----


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "c.safetensors")
    SAVEZ(tmp_path / "b.npz", w=np.ones(3, np.float32), v=np.ones(4, np.float32))
    np.save(tmp_path / "a.npy", np.ones(5, np.float32))
    (tmp_path / "README.md").write_text("no tensors here")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    (tmp_path / "deeper").mkdir()
    found = [(info.file.name, info.name, sum(map(len, chunks))) for info, chunks in read_tensors(tmp_path)]
    assert found == [
        *(("a.npy", "a", 5), ("b.npz", "w", 3), ("b.npz", "v", 4), ("c.safetensors", "w", 2)),
        ("pytorch_model.bin", "pytorch_model.bin", 0),
    ]
    assert list_tensors(tmp_path)[-1].skipped == "not read beside .safetensors files"
    assert list_tensors(str(tmp_path)) == [info for info, _ in read_tensors(str(tmp_path))]


def test_every_header_is_checked_before_the_first_tensor(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(5, np.float32))
    (tmp_path / "z.safetensors").write_bytes(b"")
    with pytest.raises(TensorFileError, match=r"z\.safetensors: the file is empty; download or save it again"):
        read_tensors(tmp_path)  # already here: nothing has been asked for


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    SAVEZ(tmp_path / "a.npz", w=np.ones(3))
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert read_all(tmp_path / "A.NPZ")["w"].size == 3


@pytest.mark.parametrize(
    ("file", "needles"),
    [
        ("missing.npy", ["no such file", "check the path"]),
        ("missing.safetensors.index.json", ["No such file", "check the path"]),
        ("nothing", ["folder without tensors", ".safetensors, .npz, .npy"]),
        ("empty.safetensors", ["the file is empty"]),
        ("empty.npz", ["the file is empty"]),
        ("empty.npy", ["the file is empty"]),
        ("model.gguf", ["unknown kind", "'.gguf'", "convert it to .safetensors or .npz"]),
        ("plain", ["unknown kind", "convert"]),
        ("model.pt", ["torch"]),  # what it says with torch and without: test_torch_files.py
        ("model.bin", ["torch"]),
        ("model.PTH", ["torch"]),
        ("outer", ["inner.safetensors", "not a regular file", "give a folder"]),
    ],
)
def test_paths_that_cannot_be_read(tmp_path: Path, file: str, needles: list[str]) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "outer" / "inner.safetensors").mkdir(parents=True)
    for name in ("empty.safetensors", "empty.npz", "empty.npy"):
        (tmp_path / name).touch()
    for name in ("model.gguf", "plain", "model.pt", "model.bin", "model.PTH"):
        (tmp_path / name).write_bytes(b"content")
    refusal(tmp_path / file, file, *needles)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    refusal(tmp_path / "a.npy", "a.npy", "not a regular file")


@pytest.mark.parametrize("file", ["t.safetensors", "t.npz", "folder"])
def test_files_without_permission(three: dict[str, Path], file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(zipfile, "ZipFile", forbidden)
    refusal(three[file], file, "Permission denied", "the permissions")


@pytest.mark.parametrize("kind", ["t.safetensors", "packed.npz", "folder"])
@pytest.mark.parametrize("change", ["gone", "cut short"])
def test_files_that_change_while_they_are_read(three: dict[str, Path], kind: str, change: str) -> None:
    walk = read_tensors(three[kind])
    for file in three[kind].iterdir() if kind == "folder" else [three[kind]]:
        os.truncate(file, file.stat().st_size - 4000)
        if change == "gone":
            file.unlink()
    with pytest.raises(TensorFileError, match=str(three[kind])) as caught:
        chunk_sizes(walk)
    assert len(str(caught.value).splitlines()) == 1


def test_an_error_of_the_disk_names_the_file(three: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(reading, "_fill", broken)
    refusal(three["t.safetensors"], "t.safetensors, tensor 'a'", "Input/output error", "the disk")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sharded model; beside it a file that the index does not name."""
    shards = {"one.safetensors": ["a", "b"], "two.safetensors": ["c"], "unlisted.safetensors": ["x"]}
    for shard, names in shards.items():
        save_file({name: np.ones(4, np.float32) for name in names}, tmp_path / shard)
    weight_map = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    write_index(tmp_path, {"metadata": {"total_size": 48}, "weight_map": weight_map})
    return tmp_path


def write_index(folder: Path, content: object, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_sharded_model(model: Path) -> None:
    for path in (model, model / "model.safetensors.index.json"):
        assert sorted(read_all(path)) == ["a", "b", "c"]
        assert {info.file.name for info in list_tensors(path)} == {"one.safetensors", "two.safetensors"}


def test_several_indexes_are_told_apart_by_their_path(model: Path) -> None:
    write_index(model, {"weight_map": {"c": "two.safetensors"}}, "small.safetensors.index.json")
    message = refusal(model, "several models in one folder", "give the path of the index file")
    assert "model.safetensors.index.json, small.safetensors.index.json" in message
    assert list(read_all(model / "small.safetensors.index.json")) == ["c"]


GOOD_MAP = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
BAD_INDEXES: dict[str, tuple[object, list[str]]] = {
    "not json": ("{", ["JSON cannot be read"]),
    "a list": ("[]", ["must start with {"]),
    "nested": ('{"a":' + "[" * 100_000, ["nested too deeply"]),
    "no weight_map": ({"metadata": {}}, ["weight_map"]),
    "weight_map a list": ({"weight_map": []}, ["weight_map"]),
    "shard a number": ({"weight_map": {"a": 1}}, ["weight_map"]),
    "duplicate": ('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', ["duplicate key 'a'"]),
    "all shards missing": ({"weight_map": {"d": "gone.safetensors"}}, ["'gone.safetensors' is missing", "download"]),
    "shard above": ({"weight_map": GOOD_MAP | {"d": "../one.safetensors"}}, ["'../one.safetensors'", "put it there"]),
    "shard absolute": ({"weight_map": {"d": "/one.safetensors"}}, ["'/one.safetensors'", "put it there"]),
    "shard below": ({"weight_map": {"d": "sub/one.safetensors"}}, ["'sub/one.safetensors'"]),
    "shard empty": ({"weight_map": {"d": ""}}, ["''", "put it there"]),
    "shard a pickle": ({"weight_map": {"d": "pytorch_model.bin"}}, ["'pytorch_model.bin'"]),
    "shard a surrogate": ({"weight_map": {"d": "\ud800.safetensors"}}, [r"'\ud800.safetensors' is missing"]),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_index_lies(model: Path, case: str) -> None:
    content, needles = BAD_INDEXES[case]
    write_index(model, content)
    refusal(model, str(model), *needles)


# the weight_map | what is read, and the note | what is skipped, and why
ODD_INDEXES: dict[str, tuple[dict[str, str], dict[str, str | None], dict[str, str]]] = {
    "as it should be": (GOOD_MAP, dict.fromkeys("abc"), {}),
    "a name too many": (
        GOOD_MAP | {"d": "two.safetensors"},
        dict.fromkeys("abc"),
        {"d": "in the index, but in no shard"},
    ),
    "a name left out": (
        {"a": "one.safetensors", "c": "two.safetensors"},
        {"a": None, "b": "not in the index", "c": None},
        {},
    ),
    "in the other shard": (
        GOOD_MAP | {"c": "one.safetensors", "b": "two.safetensors"},
        {"a": None, "b": "the index has it in another shard", "c": "the index has it in another shard"},
        {},
    ),
    "a shard missing": (
        GOOD_MAP | {"d": "gone.safetensors", "e": "gone.safetensors"},
        dict.fromkeys("abc"),
        dict.fromkeys("de", "the shard is missing: all totals are of the shards that are there"),
    ),
    "a shard missing, and its tensors elsewhere": (
        GOOD_MAP | {"c": "gone.safetensors", "x": "unlisted.safetensors"},
        dict.fromkeys("abx"),
        {"c": "the shard is missing: all totals are of the shards that are there"},
    ),
}


@pytest.mark.parametrize("case", ODD_INDEXES)
@pytest.mark.parametrize("kind", ["safetensors", pytest.param("bin", marks=pytest.mark.torch)])
def test_an_index_that_is_not_quite_right(model: Path, case: str, kind: str) -> None:
    """What is there is read; what does not agree is said; nothing passes for the whole."""
    weight_map, notes, skipped = ODD_INDEXES[case]
    if kind == "bin":
        as_torch(model)
    write_index(model, {"weight_map": weight_map}, "model.safetensors.index.json")
    if kind == "bin":
        text = (model / "model.safetensors.index.json").read_text().replace(".safetensors", ".bin")
        (model / "model.safetensors.index.json").unlink()
        write_index(model, text, "pytorch_model.bin.index.json")
    found = [info for info in list_tensors(model) if info.dtype != "bytes"]
    assert {info.name: info.note for info in found if not info.skipped} == notes
    assert {info.name: info.skipped for info in found if info.skipped} == skipped
    assert scan(model).total.count == 4 * len(notes)


def as_torch(folder: Path) -> None:
    """Turn all .safetensors of a folder into .bin."""
    import torch
    from safetensors.torch import load_file

    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()


def test_a_tensor_in_two_shards_is_counted_once(model: Path) -> None:
    save_file({"c": np.ones(4, np.float32), "d": np.ones(4, np.float32)}, model / "one.safetensors")
    write_index(model, {"weight_map": {"c": "two.safetensors", "d": "one.safetensors"}})
    found = {(info.name, info.file.name): info.skipped for info in list_tensors(model)}
    assert found == {
        ("c", "one.safetensors"): "the index has it in another shard, which holds it, too",
        ("d", "one.safetensors"): None,
        ("c", "two.safetensors"): None,
    }
    assert scan(model).total.count == 8


def test_an_index_has_the_size_limit_of_a_header(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 50)
    refusal(model, "model.safetensors.index.json", "at most 50 bytes")


# ---- anything at all ----

FUZZED_TENSORS: dict[str, Array] = {
    "w": np.arange(40, dtype=np.float32).reshape(5, 8),
    "bias": np.ones(3, np.float16),
    "n": np.arange(3),
}


def _fuzzed_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_file(FUZZED_TENSORS, Path(folder, "f.safetensors"), metadata={"format": "np"})
        SAVEZ(Path(folder, "f.npz"), **FUZZED_TENSORS)
        SAVEZ_COMPRESSED(Path(folder, "packed.npz"), **FUZZED_TENSORS)
        np.save(Path(folder, "f.npy"), FUZZED_TENSORS["w"])
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


FUZZED = _fuzzed_files()
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "truncate"]),
        st.integers(0, 1200),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\0" * 4, b"\xff" * 8, b"9" * 30, b"[", b"-1"])),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, piece in edits:
        at = place % (len(content) + 1)
        head, tail = content[:at], content[at:]
        content = {
            "replace": head + piece + tail[len(piece) :],
            "insert": head + piece + tail,
            "delete": head + tail[len(piece) :],
            "truncate": head,
        }[kind]
    return content


def read_or_refuse(name: str, content: bytes, **options: Any) -> bool:
    """Whether the content can be read; anything but a TensorFileError of one line passes through as a failure."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        try:
            read_all(file, chunk_bytes=64, **options)
        except TensorFileError as error:
            message = str(error)
        else:
            return True
    assert message.isprintable()
    assert name in message
    return False


@pytest.mark.parametrize("name", sorted(FUZZED))
def test_the_files_before_they_are_damaged(name: str) -> None:
    assert read_or_refuse(name, FUZZED[name])


@pytest.mark.parametrize("name", sorted(FUZZED))
@settings(max_examples=250, deadline=None)
@given(edits=EDITS, dtype=st.sampled_from([None, "bf16"]))
def test_damaged_files_are_read_or_refused(name: str, edits: list[tuple[str, int, bytes]], dtype: str | None) -> None:
    content = edited(FUZZED[name], edits)
    if read_or_refuse(name, content, dtype=dtype) and name.endswith(".safetensors"):
        assert reference_accepts(content)  # never more lenient than the reference


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SMALL = st.integers(0, 8)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F4", "F8_E4M3", "F8_E8M0", "BOOL", "F128"]) | JSON_VALUES,
        "shape": st.lists(SMALL, max_size=2) | JSON_VALUES,
        "data_offsets": st.tuples(SMALL, SMALL) | JSON_VALUES,
    }
)


@settings(max_examples=250, deadline=None)
@given(header=st.dictionaries(st.text(max_size=5), ENTRIES | JSON_VALUES, max_size=3), data=st.binary(max_size=9))
def test_invented_safetensors_headers_are_read_or_refused(header: dict[str, object], data: bytes) -> None:
    content = safetensors_bytes(header, data)
    if read_or_refuse("f.safetensors", content):
        assert reference_accepts(content)


@settings(max_examples=250, deadline=None)
@given(header=st.binary(max_size=60) | JSON_VALUES.map(lambda value: repr(value).encode("utf-8", "replace")))
def test_invented_npy_headers_are_read_or_refused(header: bytes) -> None:
    read_or_refuse("f.npy", raw_npy(header))


@settings(max_examples=250, deadline=None)
@given(
    descr=st.text(max_size=6) | JSON_VALUES, shape=st.lists(SMALL, max_size=2).map(tuple), data=st.binary(max_size=9)
)
def test_invented_npy_dtypes_are_read_or_refused(descr: object, shape: tuple[int, ...], data: bytes) -> None:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode("utf-8", "replace")
    read_or_refuse("f.npy", raw_npy(header, data, version=3))
