"""A walk passes every tensor of floats once, says what it skipped, and how far it has come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from precision_lab.tensors.info import TensorFileError
from precision_lab.tensors.walk import Walk


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    np.savez(
        tmp_path / "a.npz", x=np.arange(10.0), count=np.arange(3), empty=np.zeros(0), y=np.ones((2, 3), np.float16)
    )
    np.save(tmp_path / "b.npy", np.full(5, 2, np.float32))
    return [tmp_path / "a.npz", tmp_path / "b.npy"]


def test_every_tensor_is_passed_once_and_progress_counts_elements(places: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    walk = Walk(places, progress=lambda *done: seen.append(done), chunk_bytes=32)
    assert (walk.tensors, walk.elements, walk.skipped) == (4, 21, [])
    for _ in range(2):  # it can be begun again
        seen.clear()
        passed = [(info.name, [chunk.tolist() for chunk in chunks]) for info, chunks in walk]
        assert [name for name, _ in passed] == ["x", "empty", "y", "b"]
        assert [x for chunk in passed[0][1] for x in chunk] == list(range(10))
        assert seen == [(done, 21) for done in (4, 8, 10, 16, 21)]
        assert [info.name for info in walk.skipped] == ["count"]


def test_what_is_left_of_a_tensor_is_done_with_the_next(places: list[Path]) -> None:
    seen: list[int] = []
    for info, chunks in Walk(places, progress=lambda done, _: seen.append(done), chunk_bytes=32):
        if info.name == "x":
            next(chunks)
    assert seen == [10, 16, 21]


def test_all_headers_are_checked_before_the_first_tensor(places: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(TensorFileError, match=r"bad\.npy"):
        Walk([*places, tmp_path / "bad.npy"])
