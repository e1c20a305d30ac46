"""Recordings without PyTorch: there and back, as a source of `scan`, and files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import ExponentHistogram, TensorFileError, UpdateReport, scan, update_report
from precision_lab.analysis.recording import RecordedTensor, Recording, is_recording, read_recording
from precision_lab.analysis.scan import scan_recording
from precision_lab.analysis.swamping_scan import recorded_updates
from precision_lab.presentation.tables.histograms import recording_text
from tests.conftest import CommandLine


def example() -> Recording:
    rng = np.random.default_rng(0)
    w, u, g = (rng.standard_normal(50) * scale for scale in (0.1, 1e-5, 1e-7))
    ratios = ExponentHistogram.of(u / w)
    reports = tuple(update_report(w, u, fmt) for fmt in ("bf16", "e6m9"))
    first = RecordedTensor("a", "float32", (5, 5), ExponentHistogram.of(g), 2)
    return Recording(
        "Net",
        (
            replace(first, updates=ExponentHistogram.of(u), ratios=ratios, reports=reports, unchanged=3),
            RecordedTensor("b", "bfloat16", (), ExponentHistogram.of([0.5, np.nan]), 2, shared=("c", "d")),
            RecordedTensor("e", "float32", (7,), ExponentHistogram.empty(), missing="frozen"),
        ),
        steps=3,
        skipped_steps=4,
        recorded_steps=2,
        every=2,
    )


def written(data: Any, path: Path) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.json"


def test_there_and_back(path: Path) -> None:
    recording = example()
    assert read_recording(written(recording.to_dict(), path)) == recording
    assert json.loads(json.dumps(recording.to_dict())) == recording.to_dict()
    assert isinstance(recording.tensors[0].reports[0], UpdateReport)


def test_a_recording_is_scanned_beside_files(path: Path) -> None:
    recording = example()
    written(recording.to_dict(), path)
    np.save(path.with_name("x.npy"), np.ones(2, np.float32))
    seen: list[tuple[int, int]] = []
    result = scan(
        [path, path.with_name("x.npy"), path],
        formats=["fp16"],
        loss_scale=2,
        progress=lambda done, of: seen.append((done, of)),
    )
    assert [t.info.name for t in result.tensors] == ["x", "a", "b", "a", "b"]  # recordings last
    assert [t.histogram for t in result.tensors[1:3]] == [t.gradients for t in recording.tensors[:2]]
    assert result.labels[1] == "run.json: a"
    assert [(info.name, info.skipped) for info in result.skipped] == [("e", "frozen")] * 2
    assert seen == [(2, 2)]
    alone = scan_recording(recording, path, formats=["fp16"], loss_scale=2)
    assert alone.to_dict() == scan(path, formats=["fp16"], loss_scale=2).to_dict()
    with pytest.raises(ValueError, match="power of two"):
        scan_recording(recording, loss_scale=3)


def test_recorded_updates() -> None:
    recording = example()
    updates = recorded_updates(recording)
    assert updates.total == recording.tensors[0].reports
    assert [info.name for info, _ in updates.tensors] == ["a"]
    assert recorded_updates(replace(recording, tensors=recording.tensors[1:])).tensors == ()


def test_what_is_named_like_a_recording() -> None:
    names = ["run.json", "RUN.JSON", "model.safetensors.index.json", "x.npy", "json"]
    assert [is_recording(name) for name in names] == [True, True, False, False, False]


def changed(good: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return good | parts


def of_tensor(good: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return good | {"tensors": [good["tensors"][0] | parts, *good["tensors"][1:]]}


def of_report(good: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return of_tensor(good, reports=[good["tensors"][0]["reports"][0] | parts])


# files that are no recordings, made of a good one, by the words of the message
BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the JSON must start with": lambda _: "",
    "the JSON must start with {": lambda _: "[1, 2]",
    "cannot be read": lambda good: json.dumps(good)[:-40],
    "duplicate key": lambda _: '{"kind": 1, "kind": 2}',
    "nested too deeply": lambda _: '{"a":' * 100_000,
    "NaN is not JSON": lambda _: '{"kind": NaN}',
    "its kind must be": lambda _: {"tensors": []},
    "got 'other'": lambda good: changed(good, kind="other"),
    "it has no 'steps'": lambda good: {k: v for k, v in good.items() if k != "steps"},
    "not negative": lambda good: changed(good, steps=-1),
    "Recording.model: expected text, got 3": lambda good: changed(good, model=3),
    "Recording.tensors: expected a list, got 3": lambda good: changed(good, tensors=3),
    "Recording.tensors[0]: an object is needed": lambda good: changed(good, tensors=[3]),
    "Recording.tensors[0].shape[0]: expected an integer": lambda good: of_tensor(good, shape=[1.5]),
    "Recording.tensors[0].gradients: not a histogram": lambda good: of_tensor(good, gradients={}),
    "shared[0]: expected text, got 1": lambda good: of_tensor(good, shared=[1]),
    "bf17": lambda good: of_report(good, format="bf17"),
    "do not add up": lambda good: of_report(good, nonzero=1),
    "reports[0].sums[2]: expected hexadecimal text": lambda good: of_report(good, sums=["0x1p0", "0x1p0", "x"]),
    "same formats": lambda good: changed(good, tensors=[good["tensors"][0], of_report(good)["tensors"][0]]),
}


@pytest.mark.parametrize("words", BROKEN)
def test_what_is_no_recording_gives_one_line(words: str, path: Path, command_line: CommandLine) -> None:
    written(BROKEN[words](example().to_dict()), path)
    with pytest.raises(TensorFileError) as caught:
        read_recording(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 800
    finished = command_line("scan", path)
    assert finished.status == 2
    assert finished.err.startswith(f"precision-lab: error: {path}")
    assert finished.err.count("\n") == 1


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    for name, words in (("none.json", "No such file"), ("folder.json", "not a regular file")):
        with pytest.raises(TensorFileError, match=words):
            scan(tmp_path / name)


def test_the_commands_read_recordings(path: Path, command_line: CommandLine) -> None:
    written(example().to_dict(), path)
    finished = command_line("scan", path, "-f", "fp16")
    assert finished.status == 0, finished.err
    assert "What each format would do" in finished.out
    assert "What would become of the updates" in finished.out
    assert "3 weights with a gradient stood still" in finished.out
    assert "frozen" in finished.out + finished.err
    plan = command_line("loss-scale", path)
    assert plan.status == 0, plan.err


def test_a_recording_in_a_line() -> None:
    recording = example()
    assert recording_text(recording) == (
        "3 steps of Net, the gradients of 2 are counted; 4 more were skipped by the loss scaler; "
        "3 weights with a gradient stood still."
    )
    plain = replace(recording, skipped_steps=0, tensors=())
    assert recording_text(plain) == "3 steps of Net, the gradients of 2 are counted."


def test_a_recording_of_nothing() -> None:
    """Nothing was made or left out unless it is said, and every step was to be counted."""
    header = {"kind": "precision_lab recording", "version": 1}
    expected = {**header, "model": "Net", "steps": 0, "skipped_steps": 0, "recorded_steps": 0, "every": 1}
    assert Recording("Net", ()).to_dict() == expected | {"tensors": []}
