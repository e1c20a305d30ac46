"""The verdict, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precision_lab import PreflightReport, StorageConfig, preflight, round_to
from precision_lab.presentation.tables.preflight import preflight_tables
from precision_lab.presentation.tables.table import percent
from precision_lab.training.preflight.report import Outcome
from precision_lab.training.storage import CONFIGURATIONS
from tests.training.preflight.helpers import ask, ask_steps


def outcomes(report: PreflightReport, outcome: Outcome = Outcome.KEEPS) -> set[str]:
    return {c.name for c in report.candidates if c.outcome is outcome}


def test_small_weights_stay_in_bf16_under_these_updates() -> None:
    report = ask_steps({"w": np.full(8, 2.0**-10)}, 1e-3)
    assert report.cheapest is report["pure_bf16"]
    assert report.verdict.startswith(
        "For these updates pure_bf16 is the cheapest that keeps all that fp32 keeps: 8 bytes per parameter"
    )
    assert outcomes(report) == {name for name in CONFIGURATIONS if "fp16" not in name and "fp8" not in name}


def test_large_weights_need_help_and_which_depends_on_beta2() -> None:
    report = ask_steps({"w": np.ones(8)}, 1e-3)
    assert report["pure_bf16"].reasons == (
        "bf16 loses the updates of 100 % of the weights that fp32 moves, 'w' the most",
    )
    assert report.cheapest is report["bf16_stochastic"]
    assert "on average, with noise; without chance: bf16_kahan, 10 bytes" in report.verdict
    report = ask_steps({"w": np.ones(8)}, 1e-3, beta2=0.999, storage="pure_bf16")
    assert report.cheapest is report["bf16_stochastic_fp32_v"]
    assert "without chance: bf16_kahan_fp32_v, 12 bytes" in report.verdict
    assert report["collage_plus"].outcome is report["bf16_kahan_fp32_v"].outcome is Outcome.KEEPS
    assert "pure_bf16: loses: bf16 loses" in report.verdict
    assert "never decays" in report.verdict


def test_where_only_fp32_will_do() -> None:
    report = ask_steps({"w": np.ones(8)}, 1e-7)
    assert report.cheapest is report["fp32"]
    assert report.verdict.startswith("For these updates nothing cheaper than fp32 (16 bytes per parameter)")
    assert "autocast_bf16, master_bf16" in report.verdict


ALWAYS = {"fp32", "autocast_bf16", "master_bf16", "megatron_bf16"}


@pytest.mark.parametrize("storage", [(), "pure_bf16", "master_bf16", "fp8_hybrid"])
def test_weights_and_lr_alone_tell_of_the_start_and_name_no_cheapest(storage: Any) -> None:
    report = ask({"w": np.full(8, 2.0**-10)}, storage=storage)
    assert report.cheapest is None
    assert report.to_dict()["cheapest"] is None
    assert "cheapest that" not in report.verdict
    assert "updates or the optimizer's state (moments) tell" in report.verdict
    # weights in fp32 lose nothing that fp32 keeps, however small updates become; of no other is that known
    assert outcomes(report) == ALWAYS
    assert report["pure_bf16"].outcome is Outcome.AT_START
    for name in report.asked:
        candidate = report[name]
        later = "not known later" in report.verdict.partition(f"{name}: ")[2].partition(". ")[0]
        assert later is (candidate.outcome is Outcome.AT_START)


def test_a_uniform_matrix_is_not_cleared_and_both_shares_are_those_of_a_brute_force() -> None:
    """The weights whose gap in bf16 is at most twice |u| move: all at lr, those below 2^-7 at lr/30."""
    w = np.random.default_rng(0).uniform(-0.2, 0.2, (64, 64)).astype(np.float32)
    report = ask({"w": w}, storage="pure_bf16")
    stored = np.asarray(round_to(w, "bf16"), np.float64)
    stays = [[np.asarray(round_to(stored + s * u, "bf16")) == stored for s in (1, -1)] for u in (1e-3, 1e-3 / 30)]
    either, both = ([int(of.sum()) for of in (up | down for up, down in stays)], [int((a & b).sum()) for a, b in stays])
    pure = report["pure_bf16"]
    assert pure.outcome is Outcome.AT_START
    assert [pure.lost, pure.later] == either
    assert either[0] == 0
    assert either[1] > 0.9 * w.size
    assert "bf16 loses 93 % of the updates of lr/30" in report.verdict
    table = preflight_tables(report)[0]
    assert table.columns[3:5] == ("frozen % at lr", "at lr/30")
    assert next(row[3:6] for row in table.rows if row[0] == "pure_bf16") == (
        *("0", percent(both[1] / w.size)),
        "keeps all at the start",
    )


def test_what_stands_still_at_the_start_is_lost_without_more_evidence() -> None:
    pure = ask({"w": np.ones(8)})["pure_bf16"]
    assert (pure.outcome, pure.lost, pure.later) == (Outcome.LOSES, 8, 8)


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
    assert wide["pure_bf16"].outcome is Outcome.AT_START
    unscaled = StorageConfig.parse("master_fp16,loss_scale=none")
    lost = ask(w, gradients={"w": np.array([1e-9, 1e-4, 0, 1e-3], np.float32)}, storage=unscaled)
    assert lost[lost.asked[0]].reasons == ("25 % of the gradients are lost in fp16",)
    for fmt, reasons in (("fp16", lost[lost.asked[0]].reasons), ("fp32", ())):  # a copy has no loss scale any more
        main = StorageConfig.parse(f"master_fp16,main_gradients={fmt}")
        copied = ask(w, gradients={"w": np.array([1e-9, 1e-4, 0, 1e-3], np.float32)}, storage=main)
        assert copied[copied.asked[0]].reasons == reasons


def test_a_tolerance_is_a_share_of_all_weights_and_does_not_make_them_all() -> None:
    w = {"small": np.full(9, 2.0**-10), "large": np.ones(1)}
    assert ask_steps(w, 1e-3).cheapest is not ask_steps(w, 1e-3)["pure_bf16"]
    tolerant = ask_steps(w, 1e-3, tolerance=0.1)
    pure = tolerant["pure_bf16"]
    assert tolerant.cheapest is pure
    assert (pure.outcome, pure.answer, pure.lost, pure.updates) == (Outcome.FEW, "all but 1 of 10", 1, 10)
    assert "keeps all but 1 of 10, as tolerated: 8 bytes" in tolerant.verdict
    assert "'large' the most" in pure.reasons[0]
    assert ask_steps(w, 1e-3, tolerance=0.09)["pure_bf16"].outcome is Outcome.LOSES


@pytest.mark.parametrize(
    ("lost", "outcome"), [(0, Outcome.KEEPS), (1, Outcome.FEW), (5, Outcome.FEW), (6, Outcome.LOSES)]
)
def test_few_are_one_in_ten_thousand_and_counted(lost: int, outcome: Outcome) -> None:
    w = np.full(50_000, 2.0**-10)
    w[:lost] = 1
    report = ask_steps({"a": w[: lost + 2], "b": w[lost + 2 :]}, 1e-3, storage="pure_bf16")
    pure = report["pure_bf16"]
    assert (pure.outcome, pure.lost, pure.updates) == (outcome, lost, 50_000)
    if outcome is Outcome.FEW:
        assert pure.reasons == (
            f"bf16 loses the updates of {lost} of 50,000 weights that fp32 moves, "
            f"'a' the most, {lost} of its {lost + 2}",
        )
        assert pure.answer == f"all but {lost} of 50,000"
        assert f"All but few: pure_bf16 (8 bytes), all but {lost} of 50,000." in report.verdict
        row = next(row for row in preflight_tables(report)[0].rows if row[0] == "pure_bf16")
        assert pure.answer in row
        data = next(c for c in report.to_dict()["candidates"] if c["name"] == "pure_bf16")
        assert (data["answer"], data["lost"], data["updates"]) == (pure.answer, lost, 50_000)
        at_start = ask({"w": w}, storage="pure_bf16")["pure_bf16"]
        assert at_start.outcome is Outcome.FEW_AT_START
        assert at_start.answer == f"all but {lost} of 50,000 at the start"
    assert report.cheapest is report["pure_bf16" if not lost else "bf16_stochastic"]


def test_few_that_become_zero_and_few_gradients_are_counted_too_but_one_infinity_is_not_few() -> None:
    w = np.full(20_000, 2.0**-10, np.float32)
    g = np.full(20_000, 1e-3, np.float32)
    w[0], g[0] = 1e-9, 1e-12
    gradients = {"w": g}
    storage = "weights=fp16,moments=fp32,gradients=fp32,loss_scale=1"
    report = ask_steps({"w": w}, 1e-3, gradients=gradients, storage=storage)
    fp16 = report[report.asked[0]]
    assert (fp16.outcome, fp16.answer) == (Outcome.FEW, "all but 1 of 20,000")
    assert fp16.reasons == (
        "1 weights become 0 in fp16",
        "1 of 20,000 gradients are lost in fp16 at the best loss scale, 1",
    )
    g[1] = 1e6
    assert ask_steps({"w": w}, 1e-3, gradients=gradients, storage=storage)[fp16.name].outcome is Outcome.LOSES
    w[1], g[1] = 1e6, 1e-3
    assert ask_steps({"w": w}, 1e-3, gradients=gradients, storage=storage)[fp16.name].outcome is Outcome.LOSES


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
