"""Lost updates and frozen weights against a brute force."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab import StorageConfig, preflight, round_to, update_report
from precision_lab.training.preflight.report import BlockedUpdates, StoredUpdate
from tests.training.preflight.helpers import BF16, ask, spread


@pytest.mark.parametrize("size", [1e-3, 2.0**-9, 1e-5, 3e-7])
def test_frozen_weights_are_those_that_a_brute_force_finds(size: float) -> None:
    w = spread()
    total = ask({"w": w}, lr=size).total
    for name in ("bf16", "fp16", "fp32"):
        stored = np.asarray(round_to(w.astype(np.float64), name))
        up, down = (np.asarray(round_to(stored + u, name)) == stored for u in (size, -size))
        way = next(way for way in total if str(way) == name)
        fits = np.isfinite(stored)
        assert total[way] == BlockedUpdates(
            int(fits.sum()), int(((up | down) & fits).sum()), int((up & down & fits).sum())
        )


def test_recorded_updates_are_counted_one_by_one() -> None:
    w = spread()
    u = (np.random.default_rng(2).standard_normal(w.size) * 1e-3).astype(np.float32)
    u[::7] = 0
    report = ask({"w": w}, updates={"w": u})
    stored = np.asarray(round_to(w.astype(np.float64), "bf16"))
    lost = int(((np.asarray(round_to(stored + u, "bf16")) == stored) & (u != 0)).sum())
    assert report.total[StoredUpdate(BF16)] == BlockedUpdates(int((u != 0).sum()), lost, lost)
    assert not report.sizes
    # the other ways lose less, and what they lose is lost by ties_to_even too
    others = [report.total[StoredUpdate(BF16, name)].frozen for name in ("stochastic", "kahan", "collage_light")]
    assert others[1] == others[2]
    assert all(n < lost for n in others)


def test_tensors_that_are_counted_together_have_the_counts_that_each_has_alone() -> None:
    """Empty, tiny, large and in two dtypes; some begin in one lot and end in the next."""
    rng = np.random.default_rng(4)
    sizes = [0, 1, 1, 3, 4000, 0, 90, 30, 10_000, 0, 1, 4095, 1, *[1] * 200, 1 << 21, 5, 0]
    weights: dict[str, Any] = {}
    for i, size in enumerate(sizes):
        w = rng.standard_normal(size).astype(np.float32)
        weights[f"t{i}"] = w.astype(ml_dtypes.bfloat16) if i % 3 == 1 else w.astype(np.float64) if i % 7 == 2 else w
    updates = {
        name: (w.astype(np.float64) * 2.0 ** rng.integers(-30, -3, w.size)).astype(np.float32)
        for name, w in weights.items()
    }
    weights["t3"][1] = np.array(0x7F800001, np.uint32).view(np.float32)  # a signalling NaN, counted beside float64
    report = ask(weights, updates=updates, storage="weights=fp16,update=kahan")
    assert [tensor.info.name for tensor in report.tensors] == list(weights)
    for tensor in report.tensors:
        w, u = weights[tensor.info.name], updates[tensor.info.name]
        for way, found in tensor.standstill.items():
            far = (np.asarray(round_to(u, way.format)) if way.two_words else u).astype(np.float64) * way.reach
            counted, reached = (update_report(w, x, way.format) for x in (u, far))
            lost = counted.nonzero - (reached.nonzero - reached.lost)
            assert found == BlockedUpdates(counted.nonzero, lost, lost)
            if way.update == "ties_to_even":
                assert lost == counted.lost


def test_an_update_that_the_second_word_flushes_is_lost() -> None:
    storage = StorageConfig.parse("weights=fp16,update=kahan")
    tiny = 2.0**-26
    by_size = ask({"w": np.full(3, 2.0**-20)}, storage=storage, lr=tiny).total[StoredUpdate(storage.weights, "kahan")]
    one_by_one = ask({"w": np.full(3, 2.0**-20)}, storage=storage, updates={"w": np.full(3, tiny)})
    assert by_size == one_by_one.total[StoredUpdate(storage.weights, "kahan")] == BlockedUpdates(3, 3, 3)


def test_sgd_takes_the_gradients() -> None:
    w, g = np.ones(3), np.array([1.0, 0.1, 0.0], np.float32)
    report = preflight({"w": w}, optimizer="sgd", lr=0.01, gradients={"w": g})
    assert report.total[StoredUpdate(BF16)] == BlockedUpdates(2, 1, 1)  # 0.01 moves 1 in bf16, 0.001 does not
