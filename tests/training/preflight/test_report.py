"""The verdict, and why."""

from __future__ import annotations

import numpy as np

from precision_lab import PreflightReport, StorageConfig, preflight
from precision_lab.training.preflight.report import Outcome
from precision_lab.training.storage import CONFIGURATIONS
from tests.training.preflight.helpers import ask


def outcomes(report: PreflightReport) -> set[str]:
    return {c.name for c in report.candidates if c.outcome is Outcome.KEEPS}


def test_small_weights_stay_in_bf16() -> None:
    report = ask({"w": np.full(8, 2.0**-10)})
    assert report.cheapest.name == "pure_bf16"
    assert report.verdict.startswith(
        "pure_bf16 is the cheapest that loses nothing that fp32 keeps: 8 bytes per parameter"
    )
    assert outcomes(report) == {name for name in CONFIGURATIONS if "fp16" not in name and "fp8" not in name}


def test_large_weights_need_help_and_which_depends_on_beta2() -> None:
    report = ask({"w": np.ones(8)})
    assert report["pure_bf16"].reasons == (
        "bf16 loses the updates of 100 % of the weights that fp32 moves, 'w' the most",
    )
    assert report.cheapest.name == "bf16_stochastic"
    assert "on average, with noise; without chance: bf16_kahan, 10 bytes" in report.verdict
    report = ask({"w": np.ones(8)}, beta2=0.999, storage="pure_bf16")
    assert report.cheapest.name == "collage_plus"  # as the experiment `storage` finds
    assert "pure_bf16 is not it: bf16 loses" in report.verdict
    assert "never decays" in report.verdict


def test_where_only_fp32_will_do() -> None:
    report = ask({"w": np.ones(8)}, lr=1e-7)
    assert report.cheapest.name == "fp32"
    assert report.verdict.startswith("Nothing cheaper than fp32 (16 bytes per parameter)")
    assert "autocast_bf16, master_bf16" in report.verdict


def test_the_range_of_the_weights() -> None:
    fp16 = ask({"w": np.array([1e5, 1e-9, 0.5, np.inf], np.float32)})["pure_fp16"]
    assert fp16.outcome is Outcome.LOSES
    assert fp16.reasons[:2] == ("1 weights overflow in fp16", "1 weights become 0 in fp16")
    # the copy that forward sees may flush, but not overflow
    assert "1 weights overflow in fp16" in ask({"w": [1e5]})["master_fp16"].reasons
    assert ask({"w": [1e-9]})["master_fp16"].outcome is Outcome.UNKNOWN


def test_gradients_decide_about_fp16() -> None:
    w = {"w": np.full(4, 2.0**-10)}
    assert ask(w)["master_fp16"].reasons == ("gradients in fp16: give gradients to know which loss scale saves them",)
    good = ask(w, gradients={"w": np.array([1e-9, 1e-4, 0, 1e-3], np.float32)})
    assert good["master_fp16"].outcome is Outcome.KEEPS
    assert good.gradients is not None
    wide = ask(w, gradients={"w": np.array([1e-12, 1e4, 0, 1], np.float32)})
    assert wide["master_fp16"].reasons == ("25 % of the gradients are lost in fp16 at the best loss scale, 1",)
    assert wide["pure_bf16"].outcome is Outcome.KEEPS
    unscaled = StorageConfig.parse("master_fp16,loss_scale=none")
    lost = ask(w, gradients={"w": np.array([1e-9, 1e-4, 0, 1e-3], np.float32)}, storage=unscaled)
    assert lost[lost.asked[0]].reasons == ("25 % of the gradients are lost in fp16",)


def test_a_tolerance_is_a_share_of_all_weights() -> None:
    w = {"small": np.full(9, 2.0**-10), "large": np.ones(1)}
    assert ask(w).cheapest.name == "bf16_stochastic"
    assert ask(w, tolerance=0.1).cheapest.name == "pure_bf16"
    assert ask(w)["pure_bf16"].lost == 0.1
    assert "'large' the most" in ask(w)["pure_bf16"].reasons[0]


def test_what_nearly_does_is_said() -> None:
    w = {"w": np.concatenate([np.full(9999, 2.0**-10), [1.0]])}
    assert "Nearly so: pure_bf16 (8 bytes), but bf16 loses the updates of 0.01 %" in ask(w, lr=1e-5, beta2=0.95).verdict


def test_fp8_and_narrow_sums_are_not_known() -> None:
    storage = StorageConfig.parse("weights=bf16,accumulator=bf16")
    report = ask({"w": [2.0**-10]}, storage=storage)
    assert report["fp8_hybrid"].outcome is report[report.asked[0]].outcome is Outcome.UNKNOWN


def test_memory_is_that_of_the_ledger() -> None:
    report = ask({"a": np.zeros((3, 4)), "b": np.ones(5)})
    assert report.parameters == 17
    assert {c.name: c.ledger.total for c in report.candidates}["collage_plus"] == 12 * 17
    assert [c.ledger.bytes_per_parameter for c in report.candidates] == sorted(
        c.ledger.bytes_per_parameter for c in report.candidates
    )
    sgd = preflight({"w": [1.0]}, optimizer="sgd", lr=0.1, gradients={"w": [0.5]})
    assert sgd["fp32"].ledger.bytes_per_parameter == 8
