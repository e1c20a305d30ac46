"""The claims on bytes: counts that are known from outside, and ledgers in which the opposite would be true."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from precision_lab.experiments.claims import memory, runs
from precision_lab.experiments.claims.claim import BUFFER_BYTES, STATE_BYTES, Ground, Outcome, Verdict
from precision_lab.experiments.claims.experiment import CLAIMS, ClaimsConfig, ClaimsResult, judge
from precision_lab.experiments.paired import PairedRatio
from precision_lab.training.memory import Buffer, kept_for_backward
from precision_lab.training.models import MLP, Transformer
from precision_lab.training.storage import StorageConfig

HOLDS, ONLY_IF, FAILS, UNDECIDED = Outcome.HOLDS, Outcome.ONLY_IF, Outcome.FAILS, Outcome.UNDECIDED


def outcome(key: str) -> Outcome:
    return verdict(key).outcome


def verdict(key: str) -> Verdict:
    return judge([key])[0].verdict


# ---- shapes ----


def test_the_parameters_of_gpt2() -> None:
    """Those of the released model, whose head is its embedding."""
    assert memory.parameters_of(memory.GPT2, tied=True) == 124_439_808
    assert memory.parameters_of(memory.GPT_LIKE, tied=False) == 3_704_320


@pytest.mark.parametrize("model", [memory.GPT_LIKE, Transformer(7, 5, 4, 2, 3, 9)], ids=["3.7 million", "tiny"])
def test_parameters_are_those_that_a_model_draws(model: Transformer) -> None:
    assert memory.parameters_of(model, tied=False) == sum(array.size for array in model.init(0).values())


# ---- verdicts ----


def test_what_is_said_of_the_total_and_of_activations() -> None:
    keys = ("halves-the-memory", "does-not-halve-the-total", "activations-dominate", "halves-activations")
    assert [outcome(key) for key in keys] == [ONLY_IF, HOLDS, ONLY_IF, ONLY_IF]
    bill = verdict("halves-the-memory").evidence
    # (16 P + 4 A) / (16 P + 2 A), with P and A of GPT-2 and a window of 1,024: Korthikanti's count, norm and logits
    p, a = 124_439_808, 12 * (16 * 1024 * 768 + 12 * 1024**2 + 2 * 1024) + 1024 * (2 * 768 + 1 + 50257)
    assert bill["least"] == (16 * p + 4 * a) / (16 * p + 2 * a)
    assert bill["most"] == (16 * p + 4 * 32 * a) / (16 * p + 2 * 32 * a)
    assert (round(float(bill["least"]), 2), round(float(bill["most"]), 2)) == (1.26, 1.92)


def test_a_bill_without_state_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_bill", lambda windows: 2.0)
    assert [outcome(key) for key in ("halves-the-memory", "does-not-halve-the-total")] == [HOLDS, FAILS]
    monkeypatch.setattr(memory, "_bill", lambda windows: 1.0)
    assert [outcome(key) for key in ("halves-the-memory", "does-not-halve-the-total")] == [FAILS, HOLDS]


def test_narrow_shapes_have_little_beside_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow model of long windows keeps more than it has; one of a single position never does."""
    monkeypatch.setattr(memory, "GPT2", Transformer(100, 1024, 16, 2, 12, 64))
    assert outcome("activations-dominate") is HOLDS
    monkeypatch.setattr(memory, "GPT2", Transformer(100, 1, 256, 2, 12, 1024))
    assert outcome("activations-dominate") is FAILS


def kept_in(everywhere: str) -> object:
    def kept(model: MLP | Transformer, storage: StorageConfig, examples: int = 1) -> tuple[Buffer, ...]:
        narrow = storage.activations if everywhere == "bf16" else StorageConfig().activations
        return tuple(Buffer(b.name, narrow, b.elements) for b in kept_for_backward(model, storage, examples))

    return kept


def test_activations_are_halved_where_all_of_them_are_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    real = memory._times_less
    monkeypatch.setattr(memory, "kept_for_backward", kept_in("bf16"))
    assert outcome("halves-activations") is ONLY_IF  # the casts
    monkeypatch.setattr(memory, "_times_less", lambda model, examples, *, casts=0, **options: real(model, examples))
    assert outcome("halves-activations") is HOLDS
    monkeypatch.setattr(memory, "kept_for_backward", kept_in("fp32"))
    assert outcome("halves-activations") is FAILS


def test_what_goes_over_the_network() -> None:
    found = verdict("traffic-halves")
    assert (found.outcome, set(found.evidence.values())) == (ONLY_IF, {2.0, 1.0})


def test_bf16_and_fp16_take_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome("same-memory-as-fp16") is HOLDS
    real = memory._bytes
    monkeypatch.setattr(memory, "_bytes", lambda storage: real(storage) + storage.endswith("fp16"))
    assert outcome("same-memory-as-fp16") is FAILS


def test_the_other_sums_stand() -> None:
    signed: Mapping[str, Outcome] = {
        **dict.fromkeys(("sixteen-bytes", "sixteen-bit-parameters-save-more"), HOLDS),
        "fourteen-bytes": ONLY_IF,
        **dict.fromkeys(("fourteen-is-sixteen", "four-times-four", "less-than-fp32", "resident-state-halves"), FAILS),
    }
    assert {key: outcome(key) for key in signed} == signed


def test_sums_that_are_wrong_for_one_reason_are_one_error() -> None:
    keys = tuple(key for key, claim in CLAIMS.items() if claim.rests_on is Ground.LEDGER)
    errors = ClaimsResult(ClaimsConfig(keys), judge(keys)).errors
    assert errors[STATE_BYTES] == ("fourteen-bytes", "less-than-fp32", "halves-the-memory", "resident-state-halves")
    assert errors[BUFFER_BYTES] == ("fourteen-is-sixteen", "four-times-four")


# ---- autocast ----

SAME = PairedRatio((1.0, 1.001, 0.999), (1.0,) * 3)
MORE = PairedRatio((2.0, 2.1, 1.9), (1.0,) * 3)
OPEN = PairedRatio((1.0, 1.1, 1.2, 1.0), (1.0,) * 4)
KAHAN, STOCHASTIC, PLAIN = "bf16_kahan_fp32_v", "bf16_stochastic_fp32_v", ("bf16_fp32_moments", "pure_bf16")


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> dict[str, PairedRatio]:
    found = {"autocast_bf16": SAME, KAHAN: SAME, STOCHASTIC: SAME, **dict.fromkeys(PLAIN, MORE)}
    monkeypatch.setattr(runs, "paired", lambda storage: found[storage])
    return found


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, ONLY_IF),
        ({KAHAN: MORE, STOCHASTIC: MORE}, HOLDS),
        ({KAHAN: MORE}, ONLY_IF),
        ({KAHAN: OPEN}, ONLY_IF),  # the other is enough
        ({KAHAN: OPEN, STOCHASTIC: MORE}, UNDECIDED),
        ({"autocast_bf16": MORE}, FAILS),
        ({"autocast_bf16": OPEN}, UNDECIDED),
        (dict.fromkeys(PLAIN, SAME), FAILS),
        ({"pure_bf16": OPEN}, UNDECIDED),
    ],
)
def test_whether_to_stick_with_autocast_is_asked_of_the_losses(
    ratios: dict[str, PairedRatio], others: dict[str, PairedRatio], expected: Outcome
) -> None:
    ratios |= others
    assert outcome("stick-with-autocast") is expected
