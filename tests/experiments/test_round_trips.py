"""Every result is read back from its JSON: the same dictionary, and the same figures to the byte."""

from __future__ import annotations

import json
import zlib
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.updates import UpdateReport, update_report
from precision_lab.experiments.accumulation import AccumulationConfig
from precision_lab.experiments.averages import AveragesConfig
from precision_lab.experiments.claims.claim import Arithmetic
from precision_lab.experiments.claims.experiment import ClaimsConfig
from precision_lab.experiments.hyperparameters import SETTINGS, HyperparametersConfig
from precision_lab.experiments.loss_scaling import Accident, LossScalingConfig
from precision_lab.experiments.memory import MemoryConfig
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.experiments.storage import Setting, StorageExperimentConfig
from precision_lab.experiments.swamping import SwampingConfig
from precision_lab.experiments.underflow import UnderflowConfig
from precision_lab.presentation.plots.figures import figures_of
from precision_lab.presentation.tables.table import tables_of
from precision_lab.training.config import TrainingConfig

mpl.use("Agg")

VERSIONS = {"claims": 2, "loss_scaling": 2, "storage": 2, "underflow": 2}  # of the others 1

SMALL: dict[str, Any] = {
    "underflow": UnderflowConfig(hidden=(8,), steps=30, batches=2, transformer_steps=2, seeds=2, more_seeds=2),
    "swamping": SwampingConfig(hidden=(8,), steps=30, batches=2, most_terms=2**12),
    "accumulation": AccumulationConfig(exponents=(2, 9), seeds=2, shown=1201, hidden=4),
    "loss_scaling": LossScalingConfig(
        hidden=(8,),
        steps=20,
        factors=(-20, 0),
        products=(-24, 0, 24),
        judged=(0, 20),
        seeds=2,
        more_seeds=3,
        starts=(0, 40),
        window=5,
        accident_steps=130,
        accidents=(Accident("gradients 2^12 times larger", 5, loss_factor=2.0**12), Accident("ramp", 26, growth=4.0)),
    ),
    "storage": StorageExperimentConfig(
        configurations=("pure_bf16", "pure_fp16", "collage_plus"),
        settings=(Setting("sgd", 0.01), Setting("adam", 1e-3)),
        base=TrainingConfig(steps=60, hidden=(8,), against_fp32=True),
        seeds=2,
        more_seeds=3,
        miniatures=(),
        section_steps=20,
        sections=("ablation", "horizon"),
        axes=(),
    ),
    "averages": AveragesConfig(hidden=(4,), steps=20, decays=(0.9, 0.999), decay_steps=20),
    "hyperparameters": HyperparametersConfig(settings=SETTINGS[::2]),
    "memory": MemoryConfig(sizes=(("small", 1000), ("odd", 1001)), configurations=("fp32", "collage_plus"), ranks=3),
    "claims": ClaimsConfig(
        ("fp16-1e-7", "bf16-chopped", "four-times-four"), Arithmetic("toward_zero", subnormals=False)
    ),
}


@pytest.fixture(scope="module", params=list(EXPERIMENTS))
def case(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """The name and the result of an experiment."""
    name: str = request.param
    return name, EXPERIMENTS[name].run(SMALL[name])


def read_back(name: str, result: Any) -> Any:
    return EXPERIMENTS[name].result.from_dict(json.loads(json.dumps(result.to_dict())))


def picture(figure: Figure) -> bytes:
    """Its pixels, drawn once: `savefig` draws everything twice."""
    figure.set_layout_engine("none")  # it takes most of the time, and has nothing to do with the numbers
    figure.set_dpi(50)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return bytes(canvas.buffer_rgba())  # type: ignore[no-untyped-call]


def test_every_experiment_is_here() -> None:
    assert list(SMALL) == list(EXPERIMENTS)


def test_a_dictionary_is_read_and_written_again(case: tuple[str, Any]) -> None:
    name, result = case
    written = result.to_dict()
    data = json.loads(json.dumps(written, allow_nan=False))
    assert data == written  # nothing that JSON changes: no tuples, no keys that are numbers
    assert (data["kind"], data["version"]) == (f"precision_lab experiment {name}", VERSIONS.get(name, 1))
    again = read_back(name, result)
    assert again.to_dict() == data
    assert again.config == result.config == SMALL[name]
    assert data["config"] == SMALL[name].to_dict()


def test_tables_and_the_answer_are_the_same(case: tuple[str, Any]) -> None:
    name, result = case
    again = read_back(name, result)
    assert tables_of(again) == tables_of(result)
    assert again.answer == result.answer
    assert result.answer.count("\n") == 0


def test_figures_are_the_same_bytes(case: tuple[str, Any]) -> None:
    name, result = case
    again = read_back(name, result)
    for draw in figures_of(type(result)).values():
        drawn = picture(draw(result))
        assert picture(draw(again)) == drawn
        assert len(zlib.compress(drawn)) > 5000  # there is something on it


def test_something_else_is_refused(case: tuple[str, Any]) -> None:
    name, result = case
    read = EXPERIMENTS[name].result.from_dict
    for wrong in (
        {},
        {"config": 3},
        {**result.to_dict(), "config": {"steps": []}},
        dict.fromkeys(result.to_dict()),
    ):
        with pytest.raises(ValueError, match=r"its kind must be|expected|nothing here is called|it has no|must be"):
            read(wrong)


def test_quick_asks_the_same_but_of_the_transformer_which_learns_too_slowly() -> None:
    for experiment in EXPERIMENTS.values():
        quick, full = experiment.configuration(quick=True), experiment.configuration()
        assert type(quick) is type(full)
        assert list(quick.to_dict()) == list(full.to_dict())
    storage = EXPERIMENTS["storage"]
    assert storage.configuration(quick=True).settings == storage.configuration().settings
    assert {*storage.configuration(quick=True).sections} == {"ablation", "accumulation", "noise"}
    assert storage.configuration(quick=True).miniatures == ("fine-tuning",)


# ---- the parts ----


def test_update_reports_keep_their_exact_sums() -> None:
    rng = np.random.default_rng(5)
    weights, updates = rng.normal(size=200), 10.0 ** rng.uniform(-9, 1, 200)
    updates[:3] = 0, np.nan, 1e-300
    report = update_report(weights, updates, "bf16")
    again = UpdateReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert report.sums[0] > 2**1000  # in units of 2^-1074: more than a float holds
    assert UpdateReport.from_dict(UpdateReport.empty("fp16").to_dict()) == UpdateReport.empty("fp16")
    negative = update_report([1.0], [-1e-3], "bf16") + update_report([1.0], [5e-3], "bf16")
    assert UpdateReport.from_dict(negative.to_dict()) == negative
    with pytest.raises(ValueError, match="UpdateReport: it has no 'mode'"):
        UpdateReport.from_dict({"format": "bf16"})


def test_gaps_of_weights_keep_their_ties_and_infinities() -> None:
    for fmt in ("bf16", "fp6_e2m3fn", "fp8_e5m2"):
        gaps = WeightGaps.of(np.array([0.0, 1, 1.125, -1.25, 7.5, -7.5, 3e-5, np.nan]), fmt)
        again = WeightGaps.from_dict(json.loads(json.dumps(gaps.to_dict())))
        assert again == gaps
        assert [again.frozen(2.0**k) for k in range(-9, 3)] == [gaps.frozen(2.0**k) for k in range(-9, 3)]
    with pytest.raises(ValueError, match="not the gaps"):
        WeightGaps.from_dict({"gaps": []})
