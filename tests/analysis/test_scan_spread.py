"""Scans on executors: the same counts as in one process, bit for bit, however the work is cut and whoever does it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab import TensorFileError, scan
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
