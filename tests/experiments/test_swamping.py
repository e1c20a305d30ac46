"""The swamping experiment at a size for tests: its reports against the training itself, its refusals, its JSON."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.stagnation import Series, stagnation
from precision_lab.analysis.updates import UpdateReport, update_report
from precision_lab.experiments.swamping import MODES, STAGES, SwampingConfig, SwampingResult, run
from precision_lab.presentation.tables.swamping import swamping_tables
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.result import Snapshot

SMALL = SwampingConfig(
    hidden=(8,),
    steps=60,
    batches=3,
    update_exponents=(-20, -10, -5),
    sums=(("bf16", "ties_to_even"), ("bf16", "toward_positive"), ("fp8_e4m3fn", "toward_positive")),
    most_terms=5000,
)


@pytest.fixture(scope="module")
def result() -> SwampingResult:
    return run(SMALL)


def snapshots(optimizer: str, rate: float) -> list[Snapshot]:
    config = TrainingConfig(
        hidden=(8,), optimizer=optimizer, learning_rate=rate, steps=60, snapshot_steps=tuple(range(60))
    )
    return list(train(config).snapshots)


def test_stages() -> None:
    assert SMALL.stages == {"start": range(0, 3), "middle": range(28, 31), "end": range(57, 60)}
    assert tuple(SMALL.stages) == STAGES


@pytest.mark.parametrize(("optimizer", "rate"), SMALL.runs)
def test_reports_are_those_of_the_updates(result: SwampingResult, optimizer: str, rate: float) -> None:
    every = snapshots(optimizer, rate)
    for stage, steps in SMALL.stages.items():
        look = result.look(optimizer, stage)
        seen = [every[step] for step in steps]
        assert look.loss == pytest.approx(np.mean([s.loss for s in seen]), rel=1e-12)
        for fmt in SMALL.formats:
            weights = np.concatenate([s.parameters[name].reshape(-1) for s in seen for name in s.updates])
            updates = np.concatenate([u.reshape(-1) for s in seen for u in s.updates.values()])
            for mode in MODES:
                assert look.reports[fmt][mode] == update_report(weights, updates, fmt, mode=mode, rng=SMALL.seed)
            whole = sum(look.tensors[fmt].values(), UpdateReport.empty(fmt))
            assert whole == look.reports[fmt]["ties_to_even"]
            first = np.concatenate([array.reshape(-1) for array in seen[0].parameters.values()])
            assert look.gaps[fmt] == WeightGaps.of(first, fmt)


@pytest.mark.parametrize(("optimizer", "rate"), SMALL.runs)
def test_the_updates_are_those_that_were_made(optimizer: str, rate: float) -> None:
    """Weight plus update, in float32, is the next weight: bit for bit, or with SGD's one operation to a last place."""
    every = snapshots(optimizer, rate)
    for now, then in pairwise(every):
        for name, update in now.updates.items():
            assert update.dtype == np.float32
            found, expected = now.parameters[name] + update, then.parameters[name]
            largest = np.maximum(np.abs(expected), np.maximum(np.abs(update), np.abs(now.parameters[name])))
            within = np.spacing(largest) if optimizer == "sgd" else 0
            assert (np.abs(found - expected) <= within).all()


def test_stochastic_rounding_makes_the_whole_step(result: SwampingResult) -> None:
    for look in result.looks:
        for fmt in SMALL.formats:
            even, random = (look.reports[fmt][mode] for mode in MODES)
            assert random.edq_ratio == pytest.approx(1, abs=0.2)
            assert even.raw_update_norm == random.raw_update_norm


def test_running_sums(result: SwampingResult) -> None:
    ones = [s for s in result.sums if s.end.series == "counting by 1"]
    assert [(s.end.terms, s.end.stopped) for s in ones[:2]] == [(256, True), (5000, False)]
    assert ones[0].end.value == 256
    assert ones[2].end.overflowed
    assert len(result.sums) == 6
    for s in ones[:2]:
        assert (s.terms[0], s.terms[-1]) == (1, s.end.terms)
        assert list(s.terms) == sorted(set(s.terms))
        for n, value in zip(s.terms, s.values, strict=True):
            assert value == stagnation(Series.counting(), s.end.format, mode=s.end.mode, most=n).value


def test_the_result_is_json(result: SwampingResult) -> None:
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["kind"] == "precision_lab experiment swamping"
    assert len(plain["looks"]) == 6
    look = plain["looks"][0]
    assert (look["optimizer"], look["stage"], look["steps"]) == ("adam", "start", [0, 3])
    assert look["reports"]["bf16"]["ties_to_even"]["lost"] == result.looks[0].reports["bf16"]["ties_to_even"].lost
    assert [f["update_size"] for f in plain["frozen"][0]["bf16"]] == [2.0**-20, 2.0**-10, 2.0**-5]
    assert plain["sums"][2]["end"]["value"] == "nan"
    assert plain["sums"][0]["end"]["value"] == 256


def test_the_tables_say_what_was_found(result: SwampingResult) -> None:
    updates, sums = swamping_tables(result)
    assert [row[:2] for row in updates.rows[:3]] == [("adam", "start"), ("adam", "middle"), ("adam", "end")]
    report = result.looks[0].reports["bf16"]
    assert f"{report['ties_to_even'].edq_ratio:.3f} / {report['stochastic'].edq_ratio:.3f}" == updates.rows[0][4]
    assert all(len(row) == len(updates.columns) for row in updates.rows)
    assert sums.rows[0] == ("counting by 1", "bf16", "ties_to_even", "256", "256")
    assert sums.rows[1][3] == "does not stop"


def test_progress_goes_through_all_runs() -> None:
    seen: list[tuple[int, int]] = []
    config = SwampingConfig(hidden=(4,), steps=6, batches=1, sums=(("bf16", "ties_to_even"),))
    run(config, progress=lambda *done: seen.append(done))
    assert seen == [(step, 12) for step in range(1, 13)]


def test_a_run_that_diverges_is_a_result() -> None:
    config = SwampingConfig(runs=(("sgd", 1e38),), steps=12, batches=2, sums=(("bf16", "ties_to_even"),))
    found = run(config)
    assert found.look("sgd", "end").reports["bf16"]["ties_to_even"].nonfinite > 0
    assert math.isnan(found.look("sgd", "end").loss) or math.isinf(found.look("sgd", "end").loss)
    json.dumps(found.to_dict(), allow_nan=False)
    swamping_tables(found)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"steps": 2}, "steps must be an integer of at least 3"),
        ({"batches": 21}, r"batches must be an integer in 1\.\.20"),
        ({"batches": True}, "batches must be"),
        ({"runs": ()}, "runs must be a tuple"),
        ({"runs": (("rmsprop", 1e-3),)}, "optimizer must be one of"),
        ({"runs": (("adam", 0.0),)}, "learning_rate of .* must be positive"),
        ({"formats": ()}, "formats must be a tuple"),
        ({"formats": ("fp17",)}, "unknown format"),
        ({"sums": (("fp17", "rne"),)}, "unknown format"),
        ({"most_terms": 0}, "most_terms must be"),
        ({"update_exponents": ()}, "update_exponents must be"),
        ({"update_exponents": (0.5,)}, "update_exponents must be"),
        ({"seed": -1}, "seed must be"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(options: dict[str, Any], needle: str) -> None:
    with pytest.raises(ValueError, match=needle) as caught:
        SwampingConfig(**({"steps": 60, "batches": 3} | options))
    assert str(caught.value).isprintable()
