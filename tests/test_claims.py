"""The claims: their verdicts follow from numbers, and change where the arithmetic is broken.

All of them are judged once; the trainings are then there for every other test.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from precision_lab.analysis.stagnation import swamping_thresholds
from precision_lab.experiments.claims import memory
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    DETERMINISTIC_MODES,
    FORUM_BF16,
    FORUM_FP32,
    LESSON,
    SUBNORMALS,
    Answer,
    Arithmetic,
    Ground,
    Judgement,
    Outcome,
    Verdict,
    decide,
    every,
    fails,
    holds,
    only_if,
    opposite,
    some,
    undecided,
)
from precision_lab.experiments.claims.experiment import CLAIMS, ClaimsConfig, ClaimsResult, judge, run
from precision_lab.experiments.paired import PairedRatio
from precision_lab.numerics import reference
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.rounding import Array
from precision_lab.presentation.plots.claims import plot_verdicts, shared_errors
from precision_lab.presentation.tables.claims import claims_page
from precision_lab.training.config import TrainingConfig
from precision_lab.training.storage import StorageConfig

PAGE = Path(__file__).parents[1] / "docs" / "claims.md"
FTZ, TRUNCATION = Arithmetic(subnormals=False), Arithmetic("toward_zero")
HOLDS, ONLY_IF, FAILS, UNTESTED = Outcome.HOLDS, Outcome.ONLY_IF, Outcome.FAILS, Outcome.UNTESTED
UNDECIDED = Outcome.UNDECIDED
SUBJECTS = ["Formats and casts", "Gradients and weights", "Loss scaling", "Weights, updates, moments"]
SUBJECTS += ["Softmax, loss, products", "Results", "Speed", "Memory"]

NAMES = re.compile(r"\b(fp32|fp16|bf16|tf32|beta2|GPT-2)\b")  # have a digit and are no number


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
        assert all(isinstance(value, PairedRatio) or np.isfinite(value) for value in verdict.evidence.values()), key
        assert " 0%" not in verdict.reason, key
        assert (verdict.outcome is ONLY_IF) == bool(verdict.condition), key
        assert verdict.evidence or verdict.outcome is UNTESTED, key
        assert 40 < len(verdict.reason) < 400, key


def test_all_verdicts_occur(verdicts: Mapping[str, Verdict]) -> None:
    assert {verdict.outcome for verdict in verdicts.values()} >= set(Outcome) - {UNDECIDED}


def test_each_verdict_says_what_it_rests_on(found: tuple[Judgement, ...]) -> None:
    for judgement in found:
        ground, verdict = judgement.claim.rests_on, judgement.verdict
        assert (ground is Ground.NOTHING) <= (verdict.outcome is UNTESTED), judgement.claim.key
        assert bool(verdict.seeds or verdict.settings) <= (ground in (Ground.RUNS, Ground.TENSORS)), judgement.claim.key
        assert judgement.ground.startswith(ground.value)


def test_numbers_are_written_for_people() -> None:
    verdict = fails("{a:g} {b:power} {c:power} {d:.3g} {e:.0e} {f:.2f}", a=1e-7, b=2.0**-25, c=3e-10, d=3e38, e=0, f=1)
    assert verdict.reason == "1e-7 2^-25 3e-10 3e38 0e0 1.00"


def test_no_share_is_a_bare_zero() -> None:
    """Nothing is none; what only rounds to nothing is said to be there."""
    verdict = fails(
        "{a:.0%} {b:.0%} {c:.0%} {d:.0%} {e:.2%} {f:.0%} {g:.0%}", a=0, b=4e-3, c=6e-3, d=1, e=1e-6, f=0.1, g=-0.2
    )
    assert verdict.reason == "none under 1% 1% 100% under 0.01% 10% -20%"
    assert (
        fails("{a:.0%} {b:.1%} {c:.2%} {d:.0%}", a=0.999, b=0.9999, c=0.99, d=3).reason
        == "over 99% over 99.9% 99.00% 300%"
    )


# ---- runs ----

KEPT, LOST = PairedRatio((1.0, 1.001, 0.999), (1.0,) * 3), PairedRatio((2.0, 2.1, 1.9), (1.0,) * 3)
OPEN = PairedRatio((1.0, 1.1, 1.2, 1.0), (1.0,) * 4)


def test_a_ratio_is_written_with_its_interval() -> None:
    verdict = holds("{lost}, not {kept}.", lost=LOST, kept=KEPT)
    assert verdict.reason == f"{LOST.text}, not {KEPT.text}."
    assert "n = 3" in verdict.reason
    assert verdict.seeds == (3,)
    assert holds("{lost} {open}", lost=LOST, open=OPEN).seeds == (3, 4)


def test_a_verdict_on_runs_says_where_they_ran() -> None:
    config = TrainingConfig(optimizer="adam", learning_rate=1e-3, steps=1000)
    verdict = holds("{kept}", kept=KEPT).after(
        config, replace(config, seed=3, storage=StorageConfig.parse("pure_bf16"))
    )
    assert verdict.settings == ("mlp, adam, lr 0.001, 1,000 steps",)
    claim = replace(CLAIMS["fp16-1e-7"], rests_on=Ground.RUNS)
    assert Judgement(claim, verdict).ground == "runs: mlp, adam, lr 0.001, 1,000 steps; n = 3"
    assert Judgement(claim, holds("")).ground == "runs"


@pytest.mark.parametrize("a", [True, False, None])
@pytest.mark.parametrize("b", [True, False, None])
def test_what_is_open_stays_open(a: Answer, b: Answer) -> None:
    """As if each open answer were once yes and once no: an outcome only where both agree."""
    worlds = list(product(*((True, False) if answer is None else (answer,) for answer in (a, b))))
    assert every(a, b) is one_of({all(world) for world in worlds})
    assert some(a, b) is one_of({any(world) for world in worlds})
    assert opposite(a) is (None if a is None else not a)
    if_b = partial(only_if, "b")
    chosen = {holds if first else if_b if second else fails for first, second in worlds}
    assert decide((a, holds), (b, if_b), otherwise=fails) is (chosen.pop() if len(chosen) == 1 else undecided)


def one_of(answers: set[bool]) -> Answer:
    return answers.pop() if len(answers) == 1 else None


def test_what_is_not_decided_is_no_verdict() -> None:
    assert [ratio.keeps for ratio in (KEPT, LOST, OPEN)] == [True, False, None]
    outcomes = [decide((r.keeps, holds), otherwise=fails)("{r}", r=r).outcome for r in (KEPT, LOST, OPEN)]
    assert outcomes == [HOLDS, FAILS, UNDECIDED]
    undecided_claim = Judgement(CLAIMS["fp16-1e-7"], undecided("{r}", r=OPEN))
    assert not undecided_claim.wrong
    assert "**That is not decided with these runs.**" in claims_page(result_of([undecided_claim]))


# ---- errors ----


def judged(*outcomes: tuple[str, str, Outcome]) -> ClaimsResult:
    """Claims with keys, roots and verdicts."""
    claim = CLAIMS["fp16-1e-7"]
    return result_of([Judgement(replace(claim, key=k, root=r), Verdict(o, "Words.")) for k, r, o in outcomes])


def test_what_is_wrong_for_one_reason_is_one_error() -> None:
    result = judged(
        ("a", "bytes", FAILS), ("b", "bytes", ONLY_IF), ("c", "bytes", HOLDS), ("d", "", FAILS), ("e", "", ONLY_IF),
        ("f", "other", ONLY_IF), ("g", "", UNDECIDED),
    )  # fmt: skip
    assert result.errors == {"bytes": ("a", "b"), "d": ("d",)}
    start = "what is wrong in these statements goes back to"
    assert result.answer == f"{start} 2 errors: bytes (in 2 of them), and 1 in one statement each"
    assert judged(("d", "", FAILS), ("e", "", FAILS)).answer == f"{start} 2 errors, each in one statement"
    assert judged(("d", "x", FAILS)).answer == f"{start} 1 error, each in one statement"
    assert judged(("a", "x", FAILS), ("b", "x", FAILS)).answer == f"{start} 1 error: x (in 2 of them)"
    assert judged(("a", "", HOLDS)).answer == "none of these statements is wrong under every condition"


def test_the_error_that_leaves_subnormals_out(found: tuple[Judgement, ...]) -> None:
    """With subnormals flushed to zero it is none."""
    keys = ("fp16-1e-7", "fp16-2^-24", "fp16-range", "fp16-floor", "value-formula", "many-gradients-underflow")
    assert result_of(found).errors[SUBNORMALS] == keys
    assert SUBNORMALS not in result_of(judged_in(FTZ), FTZ).errors


def test_the_figure_gives_those_of_one_error_one_letter(found: tuple[Judgement, ...]) -> None:
    result = result_of(found)
    axes = plot_verdicts(result, ax=Figure().add_subplot())
    drawn = Counter(text.get_text() for text in axes.texts)
    roots = shared_errors(result)
    assert SUBNORMALS in roots
    assert drawn == Counter(
        {letter: len(result.errors[root]) for letter, root in zip("ABCDEFGH", roots, strict=False)}
        | {"": len(found) - sum(len(result.errors[root]) for root in roots)}
    )
    legend = axes.get_legend()
    assert legend is not None
    assert f"A: {roots[0]}" in [text.get_text() for text in legend.get_texts()]
    assert len(axes.patches) == len(found)


# ---- broken arithmetic ----


def test_the_verdicts_that_rest_on_subnormals(verdicts: Mapping[str, Verdict]) -> None:
    assert changed(verdicts, FTZ) == {
        "fp16-1e-7": (FAILS, HOLDS),
        "fp16-2^-24": (FAILS, HOLDS),
        "fp16-range": (ONLY_IF, HOLDS),
        "fp16-floor": (FAILS, HOLDS),
        "fp16-smallest": (HOLDS, FAILS),
        "many-gradients-underflow": (FAILS, HOLDS),
    }


def test_the_verdicts_that_rest_on_ties_to_even(verdicts: Mapping[str, Verdict]) -> None:
    assert changed(verdicts, TRUNCATION) == {
        "fp16-2^-24": (FAILS, HOLDS),
        "bf16-never-overflows": (FAILS, HOLDS),
        "bf16-chopped": (ONLY_IF, HOLDS),
        "tiny-updates-round-away": (HOLDS, ONLY_IF),  # subtracting moves the weight by a whole spacing
        "upcast-logits": (ONLY_IF, FAILS),  # errors of one sign do not cancel
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
    assert chopped["share"] == (32768 + 32767) / (2 * 65536)  # half and more is rounded up, half itself to even
    assert verdicts["fp16-1e-7"].evidence["stored"] == float(np.float16(1e-7))
    assert verdicts["fp16-range"].evidence["least"] == float(np.finfo(np.float16).smallest_subnormal)


def test_the_numbers_of_the_shift(verdicts: Mapping[str, Verdict]) -> None:
    thresholds, evidence = swamping_thresholds("fp16"), verdicts["right-shift"].evidence
    assert evidence["can"] == thresholds.add_can.ratio
    assert evidence["must"] == thresholds.add_must.ratio


def test_the_controls_of_loss_scaling(verdicts: Mapping[str, Verdict]) -> None:
    """fp32 survives one ramp and not the other; without loss scaling fp16 loses where bf16 keeps."""
    ramp, small = verdicts["ramp-nan"], verdicts["bf16-needs-no-scaling"].evidence
    assert ramp.outcome is ONLY_IF
    assert ramp.evidence["learned"] == ramp.evidence["seeds"] == 5
    assert (ramp.evidence["logged"], ramp.evidence["weights"]) == (0, 0)
    assert [ramp.evidence[name] != 0 for name in ("least", "most", "skips")] == [True] * 3
    kept, lost = small["tiny"], small["narrow"]
    assert isinstance(kept, PairedRatio)
    assert isinstance(lost, PairedRatio)
    assert (kept.keeps, lost.keeps) == (True, False)
    assert lost.ratio > 20
    assert "already none change" in verdicts["unscaling-is-exact"].reason
    assert "none are off" in verdicts["scaling-is-linear"].reason


# ---- nothing is written down in advance ----


def test_verdicts_of_bytes_follow_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"fp32": 8, "autocast_bf16": 4, "master_bf16": 4}
    monkeypatch.setattr(memory, "_bytes", lambda storage: wide.get(storage, 7))
    keys = ("sixteen-bytes", "fourteen-bytes", "less-than-fp32", "halves-the-memory")
    monkeypatch.setattr(memory, "_bill", lambda windows: 2.0)
    assert [j.verdict.outcome for j in judge(keys)] == [FAILS, FAILS, HOLDS, HOLDS]


def test_autocast_keeps_the_loss_and_so_do_ten_bytes(verdicts: Mapping[str, Verdict]) -> None:
    """One that is known to keep it, two that are known to lose; the rest is what the answer hangs on."""
    found = verdicts["stick-with-autocast"]
    kept = {name: value.keeps for name, value in found.evidence.items() if isinstance(value, PairedRatio)}
    assert kept == {"autocast": True, "moments": False, "pure": False, "kahan": True, "stochastic": True}
    assert [found.evidence[f"{name}_bytes"] for name in kept] == [16, 12, 8, 12, 10]
    assert found.outcome is ONLY_IF


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
    assert len(data["claims"]) == len(CLAIMS)
    assert {key for keys in data["errors"].values() for key in keys} <= CLAIMS.keys()
    assert all(claim["rests_on"] in [ground.value for ground in Ground] for claim in data["claims"])
    first = data["claims"][0]
    assert first["key"] == "fp16-1e-7"
    assert first["verdict"] == "does not hold"
    assert first["evidence"]["last"] == 2.0**-25


def test_the_page_is_what_the_code_of_today_writes(found: tuple[Judgement, ...]) -> None:
    """If not: `precision-lab claims --markdown docs/claims.md`, and read the difference."""
    assert PAGE.read_text(encoding="utf-8") == claims_page(result_of(found))


def test_nobody_counts_verdicts(found: tuple[Judgement, ...]) -> None:
    """A count says what was selected: five statements that are wrong for one reason are one error."""
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    result = result_of(found)
    for text in (readme, claims_page(result), result.answer):
        assert not re.search(r"\b\d+ (of them )?(hold|do not|fail|cannot be tested)", text.replace("\n", " "))


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
    ratio = result_of([Judgement(found[0].claim, holds("{r} {x}", r=OPEN, x=np.inf).after(TrainingConfig()))])
    read = ClaimsResult.from_dict(json.loads(json.dumps(ratio.to_dict(), allow_nan=False))).judgements[0]
    assert read.verdict.evidence == {"r": OPEN, "x": np.inf}
    assert read.ground == ratio.judgements[0].ground
    assert read.verdict.reason == ratio.judgements[0].verdict.reason
    with pytest.raises(ValueError, match="its version must be 2, got 1"):
        ClaimsResult.from_dict(data | {"version": 1})
    with pytest.raises(ValueError, match="ClaimsResult: its kind must be"):
        ClaimsResult.from_dict({"claims": [{"key": "fp16-1e-7"}]})


def test_the_quick_claims_are_some_of_all() -> None:
    quick = run(ClaimsConfig.quick())
    assert 20 < len(quick.judgements) < len(CLAIMS)
    assert quick.answer.startswith(f"what is wrong in these statements goes back to {len(quick.errors)} errors: ")
    assert f"{SUBNORMALS} (in 5 of them), " in quick.answer
