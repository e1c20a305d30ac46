"""The updates that follow from Adam's moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.training.preflight.helpers import adam_files, ask


def test_adams_moments_give_its_updates(tmp_path: Path) -> None:
    data = adam_files(tmp_path)
    h: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3}
    report = ask(tmp_path / "w.safetensors", optimizer_state=tmp_path / "state.npz", **h)
    for tensor in report.tensors:
        m, v = (data[f"{tensor.info.name}.{part}"].astype(np.float64) for part in ("exp_avg", "exp_avg_sq"))
        u = -1e-3 * (m / (1 - 0.9**7)) / (np.sqrt(v / (1 - 0.95**7)) + 1e-3)
        recorded = ask({"w": data[tensor.info.name]}, updates={"w": u.astype(np.float32)})
        assert dict(tensor.standstill) == recorded.total
    assert "moments" in report.updates


def test_without_the_step_there_are_no_bias_corrections(tmp_path: Path) -> None:
    state = {"state.w.exp_avg": np.full(2, 0.5), "state.w.exp_avg_sq": np.full(2, 0.25)}
    plain = ask({"w": [1.0, 2.0**-10]}, optimizer_state=state, eps=0.0)
    assert plain.total == ask({"w": [1.0, 2.0**-10]}, updates={"w": np.full(2, -1e-3, np.float32)}).total


def test_weights_without_moments_are_left_out_and_said(tmp_path: Path) -> None:
    weights = {"w": np.ones(2), "table": np.ones(3)}
    report = ask(weights, optimizer_state={"w.exp_avg": np.ones(2), "w.exp_avg_sq": np.ones(2)})
    assert [(i.name, i.skipped) for i in report.skipped] == [
        ("table", "no optimizer state: a buffer, or never trained")
    ]
    assert report.parameters == 2


def test_state_that_lies_beside_the_weights_is_no_weight() -> None:
    content = {"model.w": np.ones(2), "optimizer.state.0.exp_avg": np.ones(2), "optimizer.state.0.step": np.ones(1)}
    report = ask(content)
    assert [t.info.name for t in report.tensors] == ["model.w"]
    assert report.sizes  # without exp_avg_sq nothing follows from it
    assert [note for note in report.notes if note.startswith("no weights but")] == [
        "no weights but optimizer state: 'optimizer.state.0.exp_avg'",
        "no weights but step counter: 'optimizer.state.0.step'",
    ]
