"""Scans on executors: the same counts as in one process, bit for bit, however the work is cut and whoever does it."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import precision_lab
from precision_lab import ExponentHistogram, TensorFileError, scan
from precision_lab.tensors import reading
from precision_lab.tensors.slices import read_slices, slice_tensors
from tests.conftest import CommandLine
from tests.support.test_executors import Shuffled

scan_module: Any = importlib.import_module("precision_lab.analysis.scan")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind, with tensors of every size."""
    rng = np.random.default_rng(3)
    wild = (rng.standard_normal(5000) * 2.0 ** rng.integers(-60, 60, 5000)).astype(np.float32)
    wild[:5] = [np.inf, -np.inf, np.nan, 0.0, -0.0]
    tensors: dict[str, Any] = {"wild": wild, "brain": wild[:999].astype(ml_dtypes.bfloat16), "ids": np.arange(7)}
    tensors |= {
        "none": np.zeros((0, 3), np.float32),
        "one": np.array(2.5, np.float32),
        "double": rng.standard_normal(1500),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", x=wild.reshape(50, 100), y=wild[:3].astype(np.float16))
    np.savez_compressed(tmp_path / "c.npz", z=wild[::-1])
    np.save(tmp_path / "d.npy", np.asfortranarray(wild.reshape(100, 50)).astype(">f4"))
    return tmp_path


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "_elements_per_task", lambda _: 700)


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("workers", [1, 3])
def test_threads(folder: Path, workers: int) -> None:
    expected = scan(folder)
    told: list[tuple[int, int]] = []
    with ThreadPoolExecutor(workers) as threads:
        found = scan(folder, executor=threads, progress=lambda *step: told.append(step))
    assert found == expected
    assert json.dumps(found.to_dict()) == json.dumps(expected.to_dict())
    assert [t.info for t in found.tensors] == [t.info for t in expected.tensors]
    assert [done for done, _ in told] == sorted({done for done, _ in told})  # nothing twice
    assert told[-1] == (expected.total.count, expected.total.count)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of 20 elements are large, and threads read 100 bytes at a time."""
    monkeypatch.setattr(reading, "LEAST", 20)
    monkeypatch.setattr(reading, "PIECE_BYTES", 100)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("count", [1, 2, 7])
def test_threads_of_this_process(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are counted by whoever takes them; progress is told by the caller, and nothing is told twice."""
    with monkeypatch.context() as whole:
        whole.setattr(reading, "LEAST", 10**9)
        expected = scan(folder)
    in_memory = {"w": np.load(folder / "d.npy").T, "x": np.arange(99.0)[::-2]}
    told: list[tuple[int, int]] = []
    me, tellers = threading.get_ident(), set()

    def tell(*step: int) -> None:
        told.append(step)  # type: ignore[arg-type]
        tellers.add(threading.get_ident())

    with precision_lab.threads(count):
        found = scan(folder, progress=tell)
        assert scan(in_memory).tensors[0].histogram == ExponentHistogram.of(in_memory["w"])
        assert scan(in_memory).tensors[1].histogram == ExponentHistogram.of(in_memory["x"])
    assert found == expected
    assert json.dumps(found.to_dict()) == json.dumps(expected.to_dict())
    steps = [done for done, _ in told]
    assert steps == sorted(set(steps))
    assert told[-1] == (expected.total.count, expected.total.count)
    assert tellers == {me}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("count", [1, 3])
def test_a_file_that_is_cut_under_threads(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "d.npy"
    content = file.read_bytes()
    fill = reading._fill
    for piece in (0, 50, 199):
        before = iter(range(1000))

        def cut(stream: Any, view: memoryview, piece: int = piece, before: Iterator[int] = before) -> int:
            if next(before) == piece:
                file.write_bytes(content[:-1000])
            return fill(stream, view)

        monkeypatch.setattr(reading, "_fill", cut)
        with precision_lab.threads(count), pytest.raises(TensorFileError, match=r"d\.npy.*changed while it was read"):
            scan(file)
        file.write_bytes(content)
    monkeypatch.undo()
    with precision_lab.threads(count):
        assert scan(file).total.count == 5000


@pytest.mark.usefixtures("small_pieces")
def test_who_is_interrupted_waits_for_no_other_piece(folder: Path) -> None:
    def interrupt(done: int, _: int) -> None:
        raise KeyboardInterrupt

    with precision_lab.threads(3), pytest.raises(KeyboardInterrupt):
        scan(folder / "d.npy", progress=interrupt)
    assert scan(folder / "d.npy").total.count == 5000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("small_tasks")
def test_the_order_does_not_matter(folder: Path, seed: int) -> None:
    paths = [folder / "b.npz", folder / "a.safetensors", folder / "d.npy", folder / "a.safetensors"]
    assert scan(paths, executor=Shuffled(seed)) == scan(paths)


def test_small_files_go_together(folder: Path) -> None:
    assert len(list(scan_module._tasks(slice_tensors(folder, elements=10**9)[1], 10**9))) == 1


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        yield pool


@pytest.mark.usefixtures("small_tasks")
def test_processes(folder: Path, processes: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # the workers are elsewhere
    assert scan(".", executor=processes) == scan(".")


@pytest.mark.parametrize(
    ("everything", "task"), [(0, 1 << 21), (1 << 22, 1 << 21), (10**10, 9765625), (5 * 10**11, 1 << 26)]
)
def test_the_size_of_a_task(everything: int, task: int) -> None:
    assert scan_module._elements_per_task(everything) == task


def test_slices_are_the_tensors(folder: Path) -> None:
    for elements in (1, 7, 700, 10**9):
        infos, slices = slice_tensors(folder, elements=elements)
        parts: dict[int, list[np.ndarray]] = {}
        for s, chunks in read_slices(slices[:3000], chunk_bytes=64):
            values = [np.array(chunk) for chunk in chunks]
            assert sum(v.size for v in values) == s.count
            assert s.count <= elements or infos[s.tensor].file.suffix == ".npz"
            parts.setdefault(s.tensor, []).extend(values)
        if elements == 700:
            whole = np.concatenate(parts[[i.name for i in infos].index("wild")])
            assert whole.tobytes() == np.load(folder / "b.npz")["x"].tobytes()


def test_a_file_that_is_not_there_for_a_worker(folder: Path) -> None:
    _, slices = slice_tensors(folder / "d.npy", elements=1000)
    (folder / "d.npy").rename(folder / "e.npy")
    with pytest.raises(TensorFileError, match=r"d\.npy: not found by a worker; .*shared by all"):
        list(read_slices(slices))
    (folder / "d.npy").write_bytes(b"another file")
    with pytest.raises(TensorFileError, match="has 12 bytes for a worker"):
        list(read_slices(slices))


@pytest.mark.usefixtures("small_tasks")
def test_an_error_of_a_task_names_the_tensor(folder: Path) -> None:
    file = folder / "c.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with ThreadPoolExecutor(2) as threads, pytest.raises(TensorFileError, match=r"c\.npz, tensor 'z'"):
        scan(folder, executor=threads)


def test_tensors_in_memory_stay_here() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(TensorFileError, match="in memory"):
        scan({"w": np.ones(3)}, executor=threads)


@pytest.mark.torch
@pytest.mark.usefixtures("small_tasks")
def test_files_of_torch(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    import torch

    w = torch.randn(40, 50)
    torch.save({"w": w, "tied": w, "turned": torch.randn(30, 60).bfloat16().T}, tmp_path / "a.pt")
    assert scan(tmp_path / "a.pt", executor=processes) == scan(tmp_path / "a.pt")


def test_the_command(command_line: CommandLine, folder: Path) -> None:
    alone = command_line("scan", folder)
    assert alone.status == 0
    assert command_line("scan", folder, "--workers", 2) == alone


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan", "{}", "--workers", "0"], "at least 1"),
        (["verify", "--workers", "2"], "--exhaustive"),
        (["verify", "--dask", "local"], "--exhaustive"),
        (["scan", "{}", "--workers", "2", "--dask", "tcp://x:1"], "--workers is for this machine"),
    ],
)
def test_bad_options(command_line: CommandLine, folder: Path, arguments: list[str], words: str) -> None:
    finished = command_line(*(argument.format(folder) for argument in arguments))
    assert finished.status == 2
    assert words in finished.err
    assert finished.err.count("\n") == 1


def test_without_dask_the_cure_is_named(
    command_line: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    finished = command_line("scan", folder, "--dask", "local")
    assert finished.status == 2
    assert finished.err == "precision-lab: error: --dask needs Dask: pip install 'precision-lab[distributed]'\n"
