"""Plans of files: what they cover, what is left out, and any scale counted by a pass over the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab.analysis.any_scale import count_conversion
from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.loss_scale_files import plan_files, plan_scan
from precision_lab.analysis.loss_scale_plan import Covers, plan_loss_scale, plan_tensors
from precision_lab.analysis.recording import RecordedTensor, Recording
from precision_lab.analysis.scan import scan
from precision_lab.tensors import walk
from precision_lab.tensors.info import TensorFileError
from tests.cli.helpers import cells, refusal
from tests.conftest import CommandLine

OFTEN_SMALLER = "are often smaller."


def gradients(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "fc.weight": (rng.standard_normal((60, 50)) * 1e-6).astype(np.float32),
        "fc.bias": (rng.standard_normal(50) * 30).astype(ml_dtypes.bfloat16),
        "none": np.zeros((0, 3), np.float32),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(gradients() | {"steps": np.arange(4)}, tmp_path / "g.safetensors")
    return tmp_path / "g.safetensors"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    tensor = RecordedTensor("fc.weight", "float32", (60, 50), ExponentHistogram.of(gradients()["fc.weight"]), 1)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(Recording("Net", (tensor,), 1, 0, 1, 1).to_dict()), encoding="utf-8")
    return path


@pytest.mark.parametrize("fmt", ["fp16", "fp8_e4m3fn", "fp8_e5m2"])
def test_any_scale_is_counted_and_a_power_of_two_is_that_of_the_histogram(file: Path, fmt: str) -> None:
    plans = plan_files(file, fmt, loss_scales=[1000, 1024, 0.3, 1000])
    assert [asked.total.loss_scale for asked in plans.asked] == [1000, 1024, 0.3]
    for asked in plans.asked:
        scale = asked.total.loss_scale
        expected = {name: count_conversion(x, fmt, loss_scale=scale) for name, x in gradients().items()}
        assert dict(asked.tensors) == expected
        everything = np.concatenate([x.astype(np.float64).reshape(-1) for x in gradients().values()])
        assert asked.total == count_conversion(everything, fmt, loss_scale=scale)
        assert asked.total.flushed > 0 or scale > 1
    assert plans.total == plan_files(file, fmt).total
    assert plan_files(file, fmt).asked == ()


def test_a_large_tensor_is_counted_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "CHUNK_BYTES", 1 << 10)
    x = np.random.default_rng(5).standard_normal(3000).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (asked,) = plan_files(tmp_path / "x.npy", "fp8_e4m3fn", loss_scales=[7]).asked
    assert asked.total == count_conversion(x, "fp8_e4m3fn", loss_scale=7)


def test_a_recording_answers_powers_of_two_only(file: Path, recording: Path) -> None:
    (asked,) = plan_files(recording, "fp16", loss_scales=[2.0**-2]).asked
    assert asked.total == count_conversion(gradients()["fc.weight"], "fp16", loss_scale=0.25)
    for places in (recording, [file, recording]):
        with pytest.raises(TensorFileError, match=r"run.json: .* S = 1000 moves numbers .* needs the data") as error:
            plan_files(places, "fp16", loss_scales=[2, 1000])
        assert str(error.value).isprintable()
    histogram = ExponentHistogram.of([1.0])
    refusing: tuple[Callable[[float], Any], ...] = (
        plan_loss_scale(histogram, "fp16").at,
        partial(histogram.conversion, "fp16"),
    )
    for ask in refusing:
        with pytest.raises(ValueError, match=r"needs the data .*count_conversion"):
            ask(1000)


def test_a_plan_says_what_it_covers(file: Path, recording: Path) -> None:
    for places, covers in (
        (file, Covers.FILES),
        (recording, Covers.PARAMETERS),
        ([file, recording], Covers.BOTH),
        ([], None),
    ):
        if covers is None:
            with pytest.raises(ValueError, match="nothing to scan"):
                plan_files(places, "fp16")
            continue
        plans = plan_files(places, "fp16")
        for plan in (plans.total, *(plan for _, plan in plans.tensors)):
            assert plan.covers is covers
            assert plan.summary.endswith(covers.sentence)
        assert json.loads(json.dumps(plans.to_dict()))["total"]["covers"] == covers
        assert OFTEN_SMALLER in covers.sentence
    assert plan_tensors([], "fp16").total.summary.endswith(Covers.GIVEN.sentence)
    with pytest.raises(ValueError, match="covers must be one of 'GIVEN', 'FILES', 'PARAMETERS', 'BOTH' of Covers"):
        plan_loss_scale(ExponentHistogram.of([1.0]), "fp16", covers="everything")  # type: ignore[arg-type]


def test_what_is_no_gradient_by_its_role_is_left_out_and_named() -> None:
    """Moments of 1e-12 would need 2^15 times the scale; a step counter of 70,000 overflows."""
    weight = np.array([1e-4, 0.5], np.float32)
    beside = {
        "w.exp_avg_sq": np.array([1e-12], np.float32),
        "state.0.step": np.array([70_000], np.float32),
        "bn.running_var": np.array([9e5], np.float32),
        "w.weight_scale_inv": np.array([1e-9], np.float32),
    }
    plans = plan_files({"w": weight} | beside, "fp16", loss_scales=[3])
    assert plans.total == plan_files({"w": weight}, "fp16").total
    assert [name for name, _ in plans.tensors] == [name for name, _ in plans.asked[0].tensors] == ["w"]
    assert plans.asked[0].total == count_conversion(weight, "fp16", loss_scale=3)
    assert {info.name: info.skipped for info in plans.left_out} == {
        "w.exp_avg_sq": "optimizer state, no gradient",
        "state.0.step": "step counter, no gradient",
        "bn.running_var": "buffer, no gradient",
        "w.weight_scale_inv": "scale, no gradient",
    }
    assert [one["name"] for one in plans.to_dict()["left_out"]] == [*beside]
    nothing = plan_scan(scan(beside), "fp16")
    assert "nothing to scale" in nothing.total.summary


def test_no_tensor_at_all(tmp_path: Path) -> None:
    save_file({"steps": np.arange(4)}, tmp_path / "none.safetensors")
    plans = plan_files(tmp_path / "none.safetensors", "fp16", loss_scales=[3])
    assert plans.asked[0].total == Conversion(plans.total.format, 3.0, 0, 0, 0, 0, 0, 0)
    assert [info.name for info in plans.left_out] == ["steps"]


# ---- the command ----


def test_the_command_counts_any_scale(command_line: CommandLine, file: Path, tmp_path: Path) -> None:
    finished = command_line("loss-scale", file, "--scale", 1000, "--scale", 1024, "--json", tmp_path / "plan.json")
    assert finished.status == 0, finished.err
    assert "What these scales do in fp16" in finished.out
    assert "exact counts of S times each element, rounded once" in finished.out
    (asked, power) = json.loads((tmp_path / "plan.json").read_text())["asked"]
    assert (asked["loss_scale"], power["loss_scale"]) == (1000, 1024)
    counted = count_conversion(gradients()["fc.bias"], "fp16", loss_scale=1000)
    assert next(one for one in asked["tensors"] if one["name"] == "fc.bias") == {
        "name": "fc.bias",
        **{fate: getattr(counted, fate) for fate in ("flushed", "subnormal", "overflowed")},
    }
    text = f"{100 * counted.overflowed_of_nonzero:.2f}"
    assert cells(finished.out.split("What these scales do")[1], "fc.bias")[1] == f"0 / 0 / {text}"


def test_the_command_says_what_it_covers(command_line: CommandLine, file: Path, recording: Path) -> None:
    for given, covers in ((file, Covers.FILES), (recording, Covers.PARAMETERS)):
        finished = command_line("loss-scale", given)
        assert " ".join(finished.out.split()).count(covers.sentence) == 2  # under both tables
    assert Covers.PARAMETERS.sentence in " ".join(command_line("scan", recording).out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("RUN", "--scale", "1000"), "needs the data"),
        (("FILE", "--scale", "-1"), "loss_scale must be a number above 0"),
        (("FILE", "--scale", "nan"), "loss_scale must be a number above 0"),
        (("FILE", "--scale", "many"), "--scale"),
        (("--replay", "RUN", "--scale", "2"), "--margin, --scale and --dtype are for FILEs"),
    ],
)
def test_bad_scales_are_one_line(
    command_line: CommandLine, file: Path, recording: Path, arguments: tuple[str, ...], words: str
) -> None:
    places: dict[str, Any] = {"FILE": file, "RUN": recording}
    finished = command_line("loss-scale", *(places.get(a, a) for a in arguments))
    assert words in refusal(finished)
    assert finished.out == ""
