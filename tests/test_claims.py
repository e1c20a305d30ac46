"""The claims: their verdicts follow from numbers, and change where the arithmetic is broken.

All of them are judged once; the trainings are then there for every other test.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab.analysis.stagnation import swamping_thresholds
from precision_lab.experiments.claims import memory, runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    DETERMINISTIC_MODES,
    FORUM_BF16,
    FORUM_FP32,
    LESSON,
    Arithmetic,
    Judgement,
    Outcome,
    Verdict,
    fails,
)
from precision_lab.experiments.claims.experiment import CLAIMS, ClaimsConfig, ClaimsResult, judge, run
from precision_lab.numerics import reference
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.rounding import Array
from precision_lab.presentation.tables.claims import claims_page

PAGE = Path(__file__).parents[1] / "docs" / "claims.md"
FTZ, TRUNCATION = Arithmetic(subnormals=False), Arithmetic("toward_zero")
HOLDS, ONLY_IF, FAILS, UNTESTED = Outcome.HOLDS, Outcome.ONLY_IF, Outcome.FAILS, Outcome.UNTESTED
SUBJECTS = ["Formats and casts", "Gradients and weights", "Loss scaling", "Weights, updates, moments", "Results"]
SUBJECTS += ["Speed", "Memory"]

NAMES = re.compile(r"\b(fp32|fp16|bf16|tf32|beta2)\b")  # have a digit and are no number


@pytest.fixture(scope="module")
def found() -> tuple[Judgement, ...]:
    seen: list[tuple[int, int]] = []
    judged = judge(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(CLAIMS)) for i in range(len(CLAIMS))]
    return judged


@pytest.fixture(scope="module")
def verdicts(found: tuple[Judgement, ...]) -> Mapping[str, Verdict]:
    return {judgement.claim.key: judgement.verdict for judgement in found}


def result_of(found: Sequence[Judgement], arithmetic: Arithmetic | None = None) -> ClaimsResult:
    """The result that `run` would have made of them."""
    keys = tuple(judgement.claim.key for judgement in found)
    return ClaimsResult(ClaimsConfig(keys, arithmetic or Arithmetic()), tuple(found))


@cache
def judged_in(arithmetic: Arithmetic) -> tuple[Judgement, ...]:
    """All claims in another arithmetic: asked for by several tests."""
    return judge(arithmetic=arithmetic)


def changed(verdicts: Mapping[str, Verdict], arithmetic: Arithmetic) -> dict[str, tuple[Outcome, Outcome]]:
    """The verdicts that are others in this arithmetic."""
    others = {j.claim.key: j.verdict.outcome for j in judged_in(arithmetic)}
    assert others.keys() == verdicts.keys()
    return {k: (verdicts[k].outcome, o) for k, o in others.items() if verdicts[k].outcome is not o}


# ---- every claim ----


@pytest.mark.parametrize("key", CLAIMS)
def test_each_claim_is_complete(key: str) -> None:
    claim = CLAIMS[key]
    assert claim.key == key
    assert re.fullmatch(r"[a-z0-9^-]+", key)
    assert claim.text.endswith(".")
    assert claim.source.startswith((FORUM_FP32, FORUM_BF16, CHAPTER, ARTICLE, LESSON))
    assert callable(claim.check)


def test_the_claims_are_those_of_all_subjects() -> None:
    assert len(CLAIMS) >= 30
    assert list(dict.fromkeys(claim.subject for claim in CLAIMS.values())) == SUBJECTS
    assert len({claim.text for claim in CLAIMS.values()}) == len(CLAIMS)
    for source in (FORUM_FP32, FORUM_BF16, CHAPTER, ARTICLE, LESSON):  # each of the five texts
        assert sum(source in claim.source for claim in CLAIMS.values()) >= 5


def test_every_number_in_a_reason_is_evidence(verdicts: Mapping[str, Verdict]) -> None:
    for key, verdict in verdicts.items():
        words = verdict.words + verdict.condition_words
        parts = list(string.Formatter().parse(words))
        assert {name for _, name, _, _ in parts if name} == verdict.evidence.keys(), key
        assert not re.search(r"\d", NAMES.sub("", "".join(text for text, _, _, _ in parts))), key
        assert all(np.isfinite(value) for value in verdict.evidence.values()), key
        assert (verdict.outcome is ONLY_IF) == bool(verdict.condition), key
        assert verdict.evidence or verdict.outcome is UNTESTED, key
        assert 40 < len(verdict.reason) < 400, key


def test_all_verdicts_occur(verdicts: Mapping[str, Verdict]) -> None:
    assert {verdict.outcome for verdict in verdicts.values()} == set(Outcome)


def test_numbers_are_written_for_people() -> None:
    verdict = fails("{a:g} {b:power} {c:power} {d:.3g} {e:.0e} {f:.2f}", a=1e-7, b=2.0**-25, c=3e-10, d=3e38, e=0, f=1)
    assert verdict.reason == "1e-7 2^-25 3e-10 3e38 0e0 1.00"


# ---- broken arithmetic ----


def test_the_verdicts_that_rest_on_subnormals(verdicts: Mapping[str, Verdict]) -> None:
    assert changed(verdicts, FTZ) == {
        "fp16-1e-7": (FAILS, HOLDS),
        "fp16-2^-24": (FAILS, HOLDS),
        "fp16-range": (ONLY_IF, HOLDS),
        "fp16-floor": (FAILS, HOLDS),
        "many-gradients-underflow": (FAILS, HOLDS),
    }


def test_the_verdicts_that_rest_on_ties_to_even(verdicts: Mapping[str, Verdict]) -> None:
    assert changed(verdicts, TRUNCATION) == {
        "fp16-2^-24": (FAILS, HOLDS),
        "bf16-never-overflows": (FAILS, HOLDS),
        "bf16-chopped": (ONLY_IF, HOLDS),
        "tiny-updates-round-away": (HOLDS, ONLY_IF),  # subtracting moves the weight by a whole spacing
    }


@pytest.mark.parametrize("mode", sorted({*DETERMINISTIC_MODES} - {"ties_to_even", "toward_zero"}))
def test_every_arithmetic_has_its_verdicts(mode: str, verdicts: Mapping[str, Verdict]) -> None:
    """Also where nothing becomes zero, or nothing overflows."""
    for judgement in judged_in(Arithmetic(mode)):
        assert judgement.verdict.reason
        result_of([judgement], Arithmetic(mode)).to_dict()
    if mode == "toward_positive":
        assert changed(verdicts, Arithmetic(mode))["right-shift"] == (HOLDS, FAILS)


def test_the_arithmetic_is_asked_for_every_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rounding that rounds nothing no claim on a cast is the same."""

    def nothing(_self: Arithmetic, x: Any, _fmt: object) -> Array:
        return np.asarray(x)

    monkeypatch.setattr(Arithmetic, "round", nothing)
    (judgement,) = judge(["right-shift"])
    assert judgement.verdict.outcome is FAILS
    (judgement,) = judge(["unscaling-is-exact"])
    assert judgement.verdict.outcome is HOLDS
    assert judge(["updates-underflow"])[0].verdict.outcome is FAILS


def test_an_arithmetic_is_a_deterministic_mode() -> None:
    assert Arithmetic("rtz") == TRUNCATION
    with pytest.raises(ValueError, match=r"mode of claims must be one of ties_to_even, .*; got 'stochastic'"):
        Arithmetic("sr")
    with pytest.raises(ValueError, match="unknown rounding mode 'up'"):
        Arithmetic("up")


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32", "fp8_e5m2"])
def test_thresholds_are_found(name: str) -> None:
    fmt = get_format(name)
    ieee = Arithmetic()
    assert ieee.flushed_up_to(fmt) == fmt.flush_threshold
    assert TRUNCATION.flushed_up_to(fmt) == np.nextafter(fmt.smallest_subnormal, 0)
    last = ieee.finite_up_to(fmt)
    assert np.nextafter(last, np.inf) == fmt.overflow_threshold
    assert reference.round_to(last, fmt) == fmt.max
    assert TRUNCATION.finite_up_to(fmt) == np.finfo(np.float64).max
    assert 1 - ieee.below_one_up_to(fmt) == pytest.approx(fmt.unit_roundoff / 2, abs=2.0**-52)


# ---- numbers from elsewhere ----


def test_the_numbers_of_casts(verdicts: Mapping[str, Verdict]) -> None:
    assert verdicts["bf16-never-overflows"].evidence["over"] == 0x7F7FFFFF - 0x7F7F7FFF == 32768
    assert verdicts["bf16-range"].evidence["flushed"] == 32768  # up to 2^-134, in units of 2^-149
    chopped = verdicts["bf16-chopped"].evidence
    assert chopped["differ"] == 255 * (32768 + 32767)  # half and more is rounded up, half itself to even
    assert verdicts["fp16-1e-7"].evidence["stored"] == float(np.float16(1e-7))
    assert verdicts["fp16-range"].evidence["least"] == float(np.finfo(np.float16).smallest_subnormal)


def test_the_numbers_of_the_shift(verdicts: Mapping[str, Verdict]) -> None:
    thresholds, evidence = swamping_thresholds("fp16"), verdicts["right-shift"].evidence
    assert evidence["can"] == thresholds.add_can.ratio
    assert evidence["must"] == thresholds.add_must.ratio


# ---- nothing is written down in advance ----


def test_verdicts_of_trainings_follow_the_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing cost anything, other claims would hold."""
    monkeypatch.setattr(runs, "ratio", lambda *_: 1.0)
    keys = ("master-copy-needed", "moments-need-fp32", "no-master-degrades-descent", "noise-washes-out-rounding")
    assert [j.verdict.outcome for j in judge(keys)] == [FAILS, FAILS, FAILS, HOLDS]
    monkeypatch.setattr(runs, "ratio", lambda *_: 2.0)
    keys = ("bf16-needs-no-scaling", "bf16-keeps-quality", "moments-need-fp32", "softmax-and-loss-in-fp32")
    assert [j.verdict.outcome for j in judge(keys)] == [FAILS, FAILS, HOLDS, HOLDS]


def test_verdicts_of_bytes_follow_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"fp32": 8, "autocast_bf16": 4, "master_bf16": 4}
    monkeypatch.setattr(memory, "_bytes", lambda storage: wide.get(storage, 7))
    keys = ("sixteen-bytes", "fourteen-bytes", "less-than-fp32", "halves-the-memory")
    assert [j.verdict.outcome for j in judge(keys)] == [FAILS, FAILS, HOLDS, HOLDS]


def test_a_single_seed_more_or_less_is_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that do not differ show nothing, and the verdict says that they cannot."""
    from precision_lab.experiments.claims import training

    real = runs.trained
    monkeypatch.setattr(training, "_SEEDS", 2)
    monkeypatch.setattr(runs, "trained", lambda _, optimizer, seed: real("fp32", optimizer, seed))
    (judgement,) = judge(["precision-regularizes"])
    assert judgement.verdict.outcome is UNTESTED


# ---- asking ----


def test_some_can_be_asked_for() -> None:
    assert [j.claim.key for j in judge(["fourteen-bytes", "fp16-1e-7", "fourteen-bytes"])] == [
        "fourteen-bytes",
        "fp16-1e-7",
    ]
    assert judge([]) == ()


def test_an_unknown_key_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(ValueError, match=r"no claim is called 'fp16-1e7'; did you mean .*fp16-1e-7"):
        judge([*CLAIMS, "fp16-1e7"])
    with pytest.raises(ValueError, match=r"no claim is called '%'; there are fp16-1e-7, "):
        judge(["%"])


def test_plain_json(found: tuple[Judgement, ...]) -> None:
    data = result_of(found, FTZ).to_dict()
    assert data["config"]["arithmetic"] == {"mode": "ties_to_even", "subnormals": False}
    assert sum(data["verdicts"].values()) == len(data["claims"]) == len(CLAIMS)
    assert list(data["verdicts"]) == [outcome.value for outcome in Outcome]
    first = data["claims"][0]
    assert first["key"] == "fp16-1e-7"
    assert first["verdict"] == "does not hold"
    assert first["evidence"]["last"] == 2.0**-25


def test_the_page_is_what_the_code_of_today_writes(found: tuple[Judgement, ...]) -> None:
    """If not: `precision-lab claims --markdown docs/claims.md`, and read the difference."""
    assert PAGE.read_text(encoding="utf-8") == claims_page(result_of(found))


def test_the_readme_counts_them_right(verdicts: Mapping[str, Verdict]) -> None:
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    held = sum(verdict.outcome is HOLDS for verdict in verdicts.values())
    assert len(verdicts) == 52  # in words there
    assert f"computed: {held} hold." in readme.replace("\n", " ")


def test_the_page_says_how_was_rounded(found: tuple[Judgement, ...]) -> None:
    assert "Rounded: toward_zero, subnormals flushed to zero." in claims_page(
        result_of(found[:2], replace(FTZ, mode="rtz"))
    )


def test_a_result_is_read_back(found: tuple[Judgement, ...]) -> None:
    result = result_of(found, FTZ)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    again = ClaimsResult.from_dict(data)
    assert again.to_dict() == data
    assert again.answer == result.answer
    assert claims_page(again) == claims_page(result)
    with pytest.raises(ValueError, match="ClaimsResult: its kind must be"):
        ClaimsResult.from_dict({"claims": [{"key": "fp16-1e-7"}]})


def test_the_quick_claims_are_some_of_all() -> None:
    quick = run(ClaimsConfig.quick())
    assert 20 < len(quick.judgements) < len(CLAIMS)
    counts = quick.verdicts
    assert sum(counts.values()) == len(quick.judgements)
    assert quick.answer.startswith(f"of {len(quick.judgements)} common statements {counts[HOLDS]} hold, ")
