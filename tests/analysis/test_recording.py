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
from precision_lab.analysis.recording import (
    Movement,
    RecordedTensor,
    Recording,
    is_recording,
    narrow_format,
    read_recording,
)
from precision_lab.analysis.scan import scan_recording
from precision_lab.analysis.swamping_scan import recorded_updates
from precision_lab.presentation.tables.histograms import narrow_text, recording_text
from precision_lab.presentation.tables.swamping import updates_table
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
            replace(
                first,
                updates=ExponentHistogram.of(u),
                ratios=ratios,
                reports=reports,
                unchanged=3,
                should_move=40,
                steps=2,
            ),
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


def narrow(name: str, still: int, **options: Any) -> RecordedTensor:
    """A parameter of ten bf16 weights that should have moved in each of two steps."""
    w, u = np.ones(20), np.where(np.arange(20) < still, 1e-3, 1e-1)
    histogram = ExponentHistogram.of(u)
    reports = tuple(update_report(w, u, fmt) for fmt in ("bf16", "fp16"))
    tensor = RecordedTensor(name, "bfloat16", (2, 5), histogram, 2, "", (), histogram, histogram, still, reports, 2, 20)
    return replace(tensor, **options)


UNKNOWN = "not measurable: stored in bf16 already, and what Own was to add is not known"


def test_where_the_most_stood_still_comes_first_and_before_all_else() -> None:
    blind = narrow("c", 9, updates=None, ratios=None, reports=(), unmeasured=UNKNOWN)
    recording = Recording("Net", (narrow("a", 5), narrow("b", 17), blind), 2, 0, 2)
    updates = recorded_updates(recording)
    assert [(info.name, report[0].lost) for info, report in updates.tensors] == [("b", 17), ("a", 5)]
    assert [(info.name, info.skipped) for info in updates.skipped] == [("c", UNKNOWN)]
    assert list(updates.movements) == ["b", "c", "a"]
    assert updates.movement == Movement(30, 60, 60, 31)
    table = updates_table(updates)
    assert table.columns[:4] == ("tensor", "stood still %", "dtype", "weights x steps")
    assert [row[:2] for row in table.rows] == [("b", "85.00"), ("c", "45.00"), ("a", "25.00")]
    assert [row[-1] == "–" for row in table.rows] == [False, True, False]
    assert table.totals is not None
    assert table.totals[:4] == ("total", "51.67", "", "30 x 2")
    assert table.totals[-2].startswith("55.00 / ")  # of what is known
    assert f"–: {UNKNOWN}. The totals under formats are of the others." in table.note
    plain = json.loads(json.dumps(updates.to_dict()))
    assert [entry["stood_still_share"] for entry in (*plain["tensors"], *plain["skipped"])] == [0.85, 0.25, 0.45]
    assert plain["total"] | {"formats": 0} == updates.movement.to_dict() | {"formats": 0}
    assert narrow_text(recording) == (
        "Weights stored in bf16: 51.67 % of the weights that should have moved did not, in the 2 recorded steps; "
        f"how much of their updates was lost is {UNKNOWN}."
    )


def old(recording: Recording) -> dict[str, Any]:
    """What an earlier version wrote: the last fields were not there."""
    data = recording.to_dict()
    for tensor in data["tensors"]:
        for name in ("steps", "should_move", "unmeasured"):
            del tensor[name]
    return data


def test_a_recording_of_an_earlier_version(path: Path, command_line: CommandLine) -> None:
    """Of float32 weights it says what it did; of narrow ones it had taken what was left for the update."""
    wide = replace(narrow("w", 3), dtype="float32")
    recording = read_recording(written(old(Recording("Net", (narrow("n", 17), wide), 2, 0, 2)), path))
    assert [(tensor.steps, tensor.unchanged, tensor.movement) for tensor in recording.tensors] == [
        (0, 17, None),
        (0, 3, None),
    ]
    updates = recorded_updates(recording)
    reason = "not measurable: stored in bf16 already, and recorded by an earlier version: record it again"
    assert [info.name for info, _ in updates.tensors] == ["w"]
    assert [(info.name, info.skipped) for info in updates.skipped] == [("n", reason)]
    assert updates.movements == {}
    assert updates.total == wide.reports
    assert "stood_still" not in updates.to_dict()["total"]
    assert {row[0]: (row[1], row[3], row[-1] == "–") for row in updates_table(updates).rows} == {
        "w": ("–", "–", False),
        "n": ("–", "–", True),
    }
    times = "17 times a weight with a gradient stood still in a step, of an unknown number of times"
    shown = command_line("scan", path)
    assert shown.status == 0, shown.err
    assert shown.out.startswith(
        f"run.json: Weights stored in bf16: {times}; how much of their updates was lost is {reason}."
    )


def test_two_recordings_are_two_runs(path: Path, command_line: CommandLine) -> None:
    """Each has its own table and its own sentence; nothing of one is added to the other."""
    for name, still in (("a", 5), ("b", 17)):
        written(Recording("Net", (narrow("w", still),), 2, 0, 2).to_dict(), path.with_name(f"{name}.json"))
    shown = command_line("scan", path.with_name("a.json"), path.with_name("b.json"))
    assert shown.status == 0, shown.err
    assert shown.out.splitlines()[:2] == [
        f"{name}.json: Weights stored in bf16: {share} % of the weights that should have moved did not, "
        "in the 2 recorded steps."
        for name, share in (("a", "25.00"), ("b", "85.00"))
    ]
    assert shown.out.count("What would become of the updates (2 recorded steps)") == 2
    totals = [line.split() for line in shown.out.splitlines() if "total" in line and "10 x 2" in line]
    assert [line[3] for line in totals[-2:]] == ["25.00", "85.00"]


def test_more_than_a_table_shows() -> None:
    """The worst hundred, those that stood still the most, are shown."""
    tensors = tuple(narrow(f"t{i}", i % 20) for i in range(140))
    table = updates_table(recorded_updates(Recording("Net", tensors, 2, 0, 2)))
    assert len(table.rows) == 100
    assert table.rows[0][:2] == ("t19", "95.00")
    assert "Shown are the worst 100, 40 more are not" in table.note
    assert table.totals is not None
    assert table.totals[3] == "1,400 x 2"


def test_no_formats_were_asked_about() -> None:
    tensor = narrow("a", 5, reports=())
    updates = recorded_updates(Recording("Net", (tensor,), 2, 0, 2))
    assert (updates.formats, updates.total) == ((), ())
    assert updates_table(updates).rows == (("a", "25.00", "bfloat16", "10 x 2"),)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("bfloat16", "bf16"), ("float16", "fp16"), ("float8_e5m2", "fp8_e5m2"), ("float32", None), ("complex64", None)],
)
def test_which_weights_are_narrow(dtype: str, name: str | None) -> None:
    fmt = narrow_format(dtype)
    assert (fmt and fmt.name) == name


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
    "more weights stood still than should have moved": lambda good: of_tensor(good, unchanged=41),
    "or more should have moved than there are": lambda good: of_tensor(good, should_move=51),
    "updates that are not measurable were measured": lambda good: of_tensor(good, unmeasured="stored in bf16"),
    "counts are not negative": lambda good: of_tensor(good, steps=-1),
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
    assert "7.50 % of the weights with a gradient did not move, in the 2 recorded steps" in finished.out
    assert "frozen" in finished.out + finished.err
    plan = command_line("loss-scale", path)
    assert plan.status == 0, plan.err


def test_a_recording_in_a_line() -> None:
    recording = example()
    assert recording_text(recording) == (
        "3 steps of Net, the gradients of 2 are counted; 4 more were skipped by the loss scaler; "
        "7.50 % of the weights with a gradient did not move, in the 2 recorded steps."
    )
    plain = replace(recording, skipped_steps=0, tensors=())
    assert recording_text(plain) == "3 steps of Net, the gradients of 2 are counted."


def test_a_recording_of_nothing() -> None:
    """Nothing was made or left out unless it is said, and every step was to be counted."""
    header = {"kind": "precision_lab recording", "version": 1}
    expected = {**header, "model": "Net", "steps": 0, "skipped_steps": 0, "recorded_steps": 0, "every": 1}
    assert Recording("Net", ()).to_dict() == expected | {"tensors": []}
