"""Schedules: the shares against exact arithmetic and against transformers' formulas, texts there and back, refusals."""

from __future__ import annotations

import decimal
import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab.support.plain import PlainDataError
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.schedule import KINDS, Schedule
from precision_lab.training.step import training_step

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")


def exact_cosine(share: Fraction) -> Fraction:
    """Return cos(pi * share) to 80 digits, by the series around 0 in decimal arithmetic."""
    with decimal.localcontext(prec=100):
        x = PI * share.numerator / share.denominator
        total, term, n = Decimal(0), Decimal(1), 0
        while abs(term) > Decimal("1e-95"):
            total += term
            n += 2
            term *= -x * x / (n * (n - 1))
        return Fraction(total)


def exact_factor(schedule: Schedule, step: int, steps: int) -> Fraction:
    """Return a share as the table of the module has it."""
    if step < schedule.warmup:
        return Fraction(step + 1, schedule.warmup)
    p, final = Fraction(step - schedule.warmup, steps - schedule.warmup), Fraction(schedule.final)
    if schedule.kind == "constant":
        return Fraction(1)
    falling = 1 - p if schedule.kind == "linear" else (1 + exact_cosine(p)) / 2
    return final + (1 - final) * falling


@given(
    kind=st.sampled_from(KINDS),
    warmup=st.integers(0, 2000),
    after=st.integers(0, 10**6),
    final=st.floats(0, 1),
    data=st.data(),
)
def test_a_share_is_the_exact_one_rounded_once(
    kind: str, warmup: int, after: int, final: float, data: st.DataObject
) -> None:
    schedule = Schedule(kind, warmup, 0.0 if kind == "constant" else final)
    steps = max(warmup + after, 1)
    step = data.draw(st.integers(0, steps - 1))
    assert schedule.factor(step, steps) == float(exact_factor(schedule, step, steps))


@pytest.mark.parametrize("final", [0.0, 0.1, 0.3, math.nextafter(0.1, 1), 1.0, 5e-324])
def test_where_the_wave_is_rational_a_tie_is_rounded_to_even(final: float) -> None:
    shares = {0: Fraction(1), 4: Fraction(3, 4), 6: Fraction(1, 2), 8: Fraction(1, 4)}
    for step, wave in shares.items():
        exact = Fraction(final) + (1 - Fraction(final)) * wave
        assert Schedule("cosine", final=final).factor(step, 12) == float(exact)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("steps", [7, 8, 100])
def test_beside_the_formulas_of_transformers(warmup: int, steps: int) -> None:
    """Theirs as they are written there; after the warm-up the same share, in it what theirs takes a step later."""

    def theirs(kind: str, step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        progress = (step - warmup) / max(1, steps - warmup)
        if kind == "linear":
            return max(0.0, (steps - step) / max(1, steps - warmup))
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))

    for kind in ("linear", "cosine"):
        for step in range(steps):
            ours = Schedule(kind, warmup).factor(step, steps)
            later = step + 1 if step < warmup else step
            if later < steps:
                assert ours == pytest.approx(theirs(kind, later), rel=1e-15 if kind == "linear" else 1e-11)
            assert 0 < ours <= 1


@given(kind=st.sampled_from(["linear", "cosine"]), warmup=st.integers(0, 20), after=st.integers(1, 60))
def test_it_rises_falls_and_never_is_nothing(kind: str, warmup: int, after: int) -> None:
    shares = [Schedule(kind, warmup).factor(step, warmup + after) for step in range(warmup + after)]
    assert shares[:warmup] == sorted(shares[:warmup])
    assert shares[warmup] == 1
    assert all(later < earlier for earlier, later in zip(shares[warmup:], shares[warmup + 1 :], strict=False))
    assert shares[-1] > 0
    if kind == "linear":
        assert shares[-1] == 1 / after


@given(
    kind=st.sampled_from(KINDS),
    warmup=st.integers(0, 10**9 - 1) | st.just(0),
    final=st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.1, 5e-324]),
)
def test_a_text_there_and_back(kind: str, warmup: int, final: float) -> None:
    schedule = Schedule(kind, warmup, 0.0 if kind == "constant" else final)
    assert Schedule.parse(str(schedule)) == schedule
    config = TrainingConfig(schedule=schedule, steps=10**9)
    assert config.to_dict()["schedule"] == str(schedule)
    assert TrainingConfig.from_dict(config.to_dict()) == config


def test_texts() -> None:
    assert str(Schedule()) == "constant"
    assert str(Schedule("linear", 30)) == "linear,warmup=30"
    assert str(Schedule("cosine", 100, 0.1)) == "cosine,warmup=100,final=0.1"
    assert Schedule.parse(" cosine , final = 1e-1, warmup=100") == Schedule("cosine", 100, 0.1)
    whole: Any = Schedule("linear", np.int64(3), 1)  # type: ignore[arg-type]
    assert (type(whole.warmup), type(whole.final)) == (int, float)
    assert str(whole) == "linear,warmup=3,final=1.0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no schedule: one of constant, linear, cosine"),
        ("Linear", "'Linear' is no schedule"),
        ("warmup=3", "'warmup=3' is no schedule"),
        ("linear,30", "'30' is nothing of a schedule: after linear may come warmup=N and final=X"),
        ("linear,", "'' is nothing of a schedule"),
        ("linear,steps=30", "'steps=30' is nothing of a schedule"),
        ("linear,warmup=3,warmup=4", "warmup of a schedule must be given once"),
        ("linear,warmup=-1", r"warmup of a schedule must be a whole number below 10\^9, got '-1'"),
        ("linear,warmup=1.5", "warmup of a schedule must be a whole number"),
        ("linear,warmup=1_0", "warmup of a schedule must be a whole number"),
        ("linear,warmup=²", "warmup of a schedule must be a whole number"),
        ("linear,warmup=1000000000", "warmup of a schedule must be a whole number"),
        ("linear,warmup=", "warmup of a schedule must be a whole number"),
        ("cosine,final=much", "final of a schedule must be a number from 0 to 1, got 'much'"),
        ("cosine,final=1.5", "final must be a number from 0 to 1, got 1.5"),
        ("cosine,final=nan", "final must be a number from 0 to 1, got nan"),
        ("cosine,final=-0.1", "final must be a number from 0 to 1"),
        ("constant,final=0.5", "final is for linear and cosine"),
    ],
)
def test_a_text_that_is_none_names_what_is_accepted(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule.parse(text)
    with pytest.raises(ValueError, match=words):
        TrainingConfig(schedule=text)  # type: ignore[arg-type]
    with pytest.raises(PlainDataError, match=rf"^TrainingConfig\.schedule: .*{words}"):
        TrainingConfig.from_dict({"schedule": text})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("steps",), "kind of a schedule must be one of constant, linear, cosine; got 'steps'"),
        (("linear", 1.0), "warmup must be an integer of at least 0"),
        (("linear", True), "warmup must be an integer of at least 0"),
        (("linear", -1), "warmup must be an integer of at least 0"),
        (("linear", 0, "0.1"), "final must be a number from 0 to 1, got '0.1'"),
        (("linear", 0, True), "final must be a number from 0 to 1, got True"),
        (("linear", 0, None), "final must be a number from 0 to 1, got None"),
    ],
)
def test_a_bad_schedule_names_what_is_accepted(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule(*arguments)


@pytest.mark.parametrize("step", [-1, 10, 1.0, True])
def test_a_step_is_one_of_the_run(step: Any) -> None:
    with pytest.raises(ValueError, match=r"step must be an integer in 0\.\.9"):
        Schedule("linear").factor(step, 10)
    with pytest.raises(ValueError, match="steps must be an integer of at least warmup, 11, got 10"):
        Schedule("linear", 11).factor(0, 10)


# ---- in a run ----

SHORT = TrainingConfig(hidden=(4,), steps=6, batch_size=16, optimizer="adamw", learning_rate=0.01)


@pytest.mark.parametrize("text", ["constant", "constant,warmup=3", "linear,warmup=2", "cosine,warmup=2,final=0.1"])
def test_each_step_is_made_with_its_share(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def step(*arguments: Any, **options: Any) -> Any:
        rates.append(options["learning_rate"])
        return training_step(*arguments, **options)

    monkeypatch.setattr("precision_lab.training.loop.training_step", step)
    train(replace(SHORT, schedule=Schedule.parse(text)))
    assert rates == [0.01 * float(exact_factor(Schedule.parse(text), t, 6)) for t in range(6)]


def test_what_a_constant_learning_rate_does_a_schedule_does_step_by_step() -> None:
    """SGD without momentum keeps nothing: a run whose rate changes is runs of one step, one after the other."""
    config = replace(SHORT, optimizer="sgd", learning_rate=0.5, schedule=Schedule("constant", 2), steps=2)
    slow, fast = (train(replace(config, schedule=Schedule(), learning_rate=lr, steps=1)) for lr in (0.25, 0.5))
    both = train(config)
    assert both.losses[1] == train(replace(config, schedule=Schedule(), learning_rate=0.25)).losses[1]
    assert both.final_loss not in (slow.final_loss, fast.final_loss)


def test_a_warm_up_that_is_longer_than_the_run_is_refused() -> None:
    assert replace(SHORT, schedule=Schedule("linear", 6)).schedule.warmup == 6
    with pytest.raises(ValueError, match="warmup of the schedule must be at most steps, 6, got 7"):
        replace(SHORT, schedule=Schedule("linear", 7))
    with pytest.raises(ValueError, match="schedule must be a Schedule or its text, got None"):
        replace(SHORT, schedule=None)  # type: ignore[arg-type]
