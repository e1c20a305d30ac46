"""Scalers against plain models of each framework's algorithm; plans and replays against brute force."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.loss_scale_plan import LossScalePlan, plan_loss_scale, plan_tensors
from precision_lab.analysis.loss_scale_replay import read_trace, replay_loss_scale
from precision_lab.analysis.loss_scalers import (
    SCALERS,
    DynamicLossScale,
    LossScale,
    NoLossScale,
    StaticLossScale,
    get_scaler,
)
from precision_lab.numerics import reference
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.rounding import round_to

FP32 = np.float32
FORMATS_AND_CUSTOM = (*FORMATS.values(), FloatFormat.ieee(6, 9), FloatFormat.ieee(2, 0))


# ---- plain models: what each framework documents, written as such --------------------------------------------------


class Torch:
    """S an fp32 tensor, factors doubles, the tracker an integer."""

    def __init__(self, init: float, window: int, growth: float, backoff: float) -> None:
        self.scale, self.window, self.growth, self.backoff = FP32(init), window, growth, backoff
        self.tracker = 0

    def update(self, found: bool) -> None:
        if found:
            self.scale, self.tracker = FP32(float(self.scale) * self.backoff), 0
            return
        self.tracker += 1
        if self.tracker == self.window:
            self.tracker = 0
            with np.errstate(over="ignore"):
                grown = FP32(float(self.scale) * self.growth)
            if np.isfinite(grown):
                self.scale = grown


class Apex:
    """S a Python float; halved without end, doubled up to a cap."""

    def __init__(self, init: float, window: int, floor: float | None, cap: float) -> None:
        self.scale, self.window, self.floor, self.cap, self.unskipped = init, window, floor, cap, 0

    def update(self, found: bool) -> None:
        if found:
            self.scale /= 2
            if self.floor:
                self.scale = max(self.floor, self.scale)
            self.unskipped = 0
        else:
            self.unskipped += 1
        if self.unskipped == self.window:
            self.scale, self.unskipped = min(self.cap, 2 * self.scale), 0


class Megatron:
    """S and the factors fp32 tensors; the hysteresis counts down and is refilled by growth alone."""

    def __init__(self, init: float, window: int, growth: float, backoff: float, hysteresis: int, floor: float) -> None:
        self.scale, self.floor, self.window = FP32(init), FP32(floor), window
        self.growth, self.backoff = FP32(growth), FP32(backoff)
        self.full = self.left = hysteresis
        self.tracker = 0

    def update(self, found: bool) -> None:
        if found:
            self.tracker, self.left = 0, self.left - 1
            if self.left <= 0:
                self.scale = np.maximum(self.scale * self.backoff, self.floor)
            return
        self.tracker += 1
        if self.tracker == self.window:
            self.tracker, self.left = 0, self.full
            with np.errstate(over="ignore"):
                self.scale = self.scale * self.growth


class DeepSpeed:
    """S a Python float; counts by the number of the iteration; raises at the floor."""

    def __init__(
        self, init: float, window: int, hysteresis: int, floor: float, consecutive: bool, raises: bool
    ) -> None:
        self.scale, self.window, self.floor = init, window, floor
        self.full = self.left = hysteresis
        self.consecutive, self.raises = consecutive, raises
        self.iteration, self.last_overflow = 0, -1

    def update(self, found: bool) -> None:
        if found:
            if self.left == 1:
                if self.raises and self.scale == self.floor:
                    raise RuntimeError("at minimum")
                self.scale = max(self.scale / 2, self.floor)
            else:
                self.left -= 1
            self.last_overflow = self.iteration
        else:
            stable = self.iteration - self.last_overflow - 1
            grows = stable > 0 and stable % self.window == 0
            if self.consecutive or grows:
                self.left = self.full
            if grows:
                self.scale *= 2
        self.iteration += 1


class Jmp:
    """S an fp32 array, the counter modulo the period."""

    def __init__(self, init: float, window: int, floor: float) -> None:
        self.scale, self.window, self.floor, self.counter = FP32(init), window, FP32(floor), 0

    def update(self, found: bool) -> None:
        if found:
            self.scale, self.counter = max(self.floor, FP32(self.scale / FP32(2))), 0
            return
        with np.errstate(over="ignore"):
            doubled = self.scale * FP32(2)
        if self.counter == self.window - 1 and np.isfinite(doubled):
            self.scale = doubled
        self.counter = (self.counter + 1) % self.window


class Flax:
    """S and factors fp32; the steps are compared before they are counted."""

    def __init__(self, init: float, window: int, growth: float, backoff: float, floor: float) -> None:
        self.scale, self.window, self.floor = FP32(init), window, FP32(floor)
        self.growth, self.backoff, self.steps = FP32(growth), FP32(backoff), 0

    def update(self, found: bool) -> None:
        grow = self.steps == self.window
        if found:
            self.scale = np.maximum(self.scale * self.backoff, self.floor)
        elif grow:
            with np.errstate(over="ignore"):
                self.scale = np.minimum(self.scale * self.growth, np.finfo(FP32).max)
        self.steps = 0 if grow or found else self.steps + 1


class Keras2:
    """S an fp32 variable between 1 and what is finite; after so many finite steps in a row it doubles."""

    def __init__(self, init: float, window: int) -> None:
        self.scale, self.window, self.good = FP32(init), window, 0

    def update(self, found: bool) -> None:
        if found:
            self.good, self.scale = 0, np.maximum(self.scale / FP32(2), FP32(1))
        elif self.good + 1 < self.window:
            self.good += 1
        else:
            self.good = 0
            with np.errstate(over="ignore"):
                larger = self.scale * FP32(2)
            self.scale = larger if np.isfinite(larger) else self.scale


class Keras3:
    """S an fp32 variable without floor and cap."""

    def __init__(self, init: float, window: int) -> None:
        self.scale, self.window, self.counter = FP32(init), window, 0

    def update(self, found: bool) -> None:
        if found:
            self.counter, self.scale = 0, self.scale / FP32(2)
        elif self.counter == self.window - 1:
            with np.errstate(over="ignore"):
                self.counter, self.scale = 0, self.scale * FP32(2)
        else:
            self.counter += 1


class Fairseq:
    """By the numbers of the iterations: of the last overflow, and of the last step after which S moved."""

    def __init__(self, init: float, window: int, tolerance: float, threshold: float | None, least: float) -> None:
        self.scale, self.window, self.tolerance, self.threshold, self.least = init, window, tolerance, threshold, least
        self.now, self.last_overflow, self.last_move, self.overflows = 0, -1, -1, 0

    def update(self, found: bool) -> None:
        if not found:
            if (self.now - self.last_overflow) % self.window == 0:
                self.scale, self.last_move = self.scale * 2, self.now
            self.now += 1
            return
        self.last_overflow = self.now
        self.overflows += 1
        if self.overflows / (self.now - self.last_move) >= self.tolerance:
            halved = self.scale / 2
            if self.threshold is not None and halved < self.threshold:
                halved = self.threshold
            if halved <= self.least:
                raise RuntimeError("at minimum")
            self.scale, self.last_move, self.overflows = halved, self.now, 0
        self.now += 1


Draw = Callable[[list[Any]], Any]
Pair = tuple[DynamicLossScale, Any]
INITS: list[Any] = [1.0, 2.0, 3.7, 2.0**4, 2.0**16, 2.0**24, 2.0**32, 2.0**126, 1.5 * 2.0**127]
FACTORS: list[Any] = [(2.0, 0.5), (2.0, 0.5), (1.1, 0.7), (4.0, 0.25), (1.0001, 0.999)]


def torch_pair(draw: Draw) -> Pair:
    init, window, (growth, backoff) = draw([*INITS, 2.0**-147, 2.0**-126]), draw([1, 2, 3, 5]), draw(FACTORS)
    scaler = DynamicLossScale.torch(init, window=window, growth_factor=growth, backoff_factor=backoff)
    return scaler, Torch(init, window, growth, backoff)


def apex_pair(draw: Draw) -> Pair:
    init, window, floor, cap = draw([1.0, 3.7, 2.0**16, 2.0**23]), draw([1, 2, 3, 5]), draw([None, 0.3]), draw([24, 40])
    scaler = DynamicLossScale.apex(init, window=window, min_scale=floor or 0.0, max_scale=2.0**cap)
    return scaler, Apex(init, window, floor, 2.0**cap)


def megatron_pair(draw: Draw) -> Pair:
    init, window, (growth, backoff) = draw(INITS), draw([1, 2, 3, 5]), draw(FACTORS)
    hysteresis, floor = draw([1, 2, 3, 4]), draw([0.1, 1.0])
    scaler = DynamicLossScale.megatron(
        init, window=window, growth_factor=growth, backoff_factor=backoff, hysteresis=hysteresis, min_scale=floor
    )
    return scaler, Megatron(init, window, growth, backoff, hysteresis, floor)


def deepspeed_pair(draw: Draw) -> Pair:
    init, window, hysteresis = draw([1.0, 3.7, 2.0**4, 2.0**16]), draw([1, 2, 3, 5]), draw([1, 2, 3, 4])
    floor, consecutive, raises = draw([0.25, 1.0]), draw([False, True]), draw([False, True])
    scaler = DynamicLossScale.deepspeed(
        init,
        window=window,
        hysteresis=hysteresis,
        min_scale=floor,
        consecutive_hysteresis=consecutive,
        raises_at_min_scale=raises,
    )
    return scaler, DeepSpeed(init, window, hysteresis, floor, consecutive, raises)


def jmp_pair(draw: Draw) -> Pair:
    init, window, floor = draw(INITS), draw([1, 2, 3, 5]), draw([0.1, 1.0])
    return DynamicLossScale.jmp(init, window=window, min_scale=floor), Jmp(init, window, floor)


def flax_pair(draw: Draw) -> Pair:
    init, window, (growth, backoff) = draw([*INITS, 2.0**-124]), draw([1, 2, 3, 5]), draw(FACTORS)
    scaler = DynamicLossScale.flax(init, window=window, growth_factor=growth, backoff_factor=backoff)
    return scaler, Flax(init, window, growth, backoff, 2.0**-126)


def keras_pair(draw: Draw) -> Pair:
    init, window = draw(INITS), draw([1, 2, 3, 5])
    return DynamicLossScale.keras(init, window=window), Keras2(init, window)


def keras3_pair(draw: Draw) -> Pair:
    init, window = draw([*INITS, 2.0**-147, 2.0**-126]), draw([1, 2, 3, 5])
    return DynamicLossScale.keras3(init, window=window), Keras3(init, window)


def fairseq_pair(draw: Draw) -> Pair:
    init, window, tolerance = draw([1.0, 3.7, 2.0**4, 2.0**-12]), draw([1, 2, 3, 5]), draw([0.0, 0.05, 0.3, 0.5, 1.0])
    threshold, least = draw([None, 2.0**-13, 2.0**-12]), draw([1e-4, 2.0**-13, 2.0**-30])
    if threshold is not None and threshold > init:
        threshold = None
    scaler = DynamicLossScale.fairseq(
        init, window=window, tolerance=tolerance, threshold=threshold or 0.0, raises_at=least
    )
    return scaler, Fairseq(init, window, tolerance, threshold, least)


PAIRS: dict[str, Callable[[Draw], Pair]] = {
    "torch": torch_pair,
    "apex": apex_pair,
    "megatron": megatron_pair,
    "deepspeed": deepspeed_pair,
    "jmp": jmp_pair,
    "flax": flax_pair,
    "keras": keras_pair,
    "keras3": keras3_pair,
    "fairseq": fairseq_pair,
}


@pytest.mark.parametrize("name", PAIRS)
def test_ten_thousand_random_patterns_step_for_step(name: str) -> None:
    rng = random.Random(name)
    for _ in range(10_000):
        scaler, model = PAIRS[name](rng.choice)
        often = rng.choice([0.05, 0.2, 0.5, 0.9])
        for _ in range(rng.randint(1, 16)):
            found = rng.random() < often
            try:
                model.update(found)
            except RuntimeError:
                assert not scaler.ended
                assert scaler.adjust(found).ended
                break
            scaler = scaler.adjust(found)
            assert scaler.loss_scale == float(model.scale), (scaler, model.scale)


# ---- invariants ----------------------------------------------------------------------------------------------------


class ScalerMachine(RuleBasedStateMachine):
    """Any sequence of overflows and clean steps; a subclass for each variant says which."""

    pair: Callable[[Draw], Pair]

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.scaler, self.model = type(self).pair(lambda choices: data.draw(st.sampled_from(choices)))
        self.clean, self.running = 0, True

    @rule()
    def overflow(self) -> None:
        self.step(True)

    @rule(steps=st.integers(1, 14))
    def clean_steps(self, steps: int) -> None:
        for _ in range(steps):
            self.step(False)

    def step(self, found: bool) -> None:
        before, fields = self.scaler, dataclasses.asdict(self.scaler)
        after = before.adjust(found)
        assert dataclasses.asdict(before) == fields, "a scaler is a value"
        assert after == before.adjust(found)
        if self.running:
            try:
                self.model.update(found)
                assert after.loss_scale == float(self.model.scale)
            except RuntimeError:
                self.running = False
                assert after.ended
        self.clean = 0 if found else self.clean + 1
        if after.loss_scale > before.loss_scale:
            assert self.clean >= before.window
        if after.loss_scale < before.loss_scale:
            assert found
            assert after.overflows == after.hysteresis
        assert after.unanswered in (before.unanswered, before.unanswered + found)
        assert before.unanswered == 0 or after.exhausted, "what was exhausted is not forgotten"
        self.scaler = after

    @invariant()
    def within_bounds_and_honest(self) -> None:
        s = self.scaler
        assert s.min_scale <= s.loss_scale <= s.max_scale
        assert s.exhausted == bool(s.reason)
        assert not s.ended or s.exhausted
        halved = max(s.loss_scale * s.backoff_factor, s.min_scale)
        assert s.at_floor == (s.loss_scale == s.min_scale or halved <= s.raises_at > 0)
        if s.scale_dtype == "float32":
            assert s.loss_scale == float(FP32(s.loss_scale))
        if not s.exhausted:
            assert 0 < s.loss_scale < math.inf
            assert np.isfinite(FP32(1 / s.loss_scale))


def _machine(name: str) -> Any:
    machine = type(f"{name}Machine", (ScalerMachine,), {"pair": staticmethod(PAIRS[name])})
    case = machine.TestCase  # type: ignore[attr-defined]
    case.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
    return case


TestTorch, TestApex, TestMegatron = _machine("torch"), _machine("apex"), _machine("megatron")
TestDeepSpeed, TestJmp, TestFlax = _machine("deepspeed"), _machine("jmp"), _machine("flax")
TestFairseq = _machine("fairseq")  # the rules of Keras are no others


# ---- golden traces -------------------------------------------------------------------------------------------------


def trace_of(scaler: LossScale, pattern: str) -> list[float]:
    """Exponents of the scales after each step; x is an overflow."""
    exponents = []
    for step in pattern:
        scaler = scaler.adjust(step == "x")
        exponents.append(math.log2(scaler.loss_scale))
    return exponents


@pytest.mark.parametrize(
    ("scaler", "pattern", "exponents"),
    [
        # torch: two clean steps grow, an overflow halves and starts the count again
        (DynamicLossScale.torch(window=2), "..x.x..xx...", [16, 17, 16, 16, 15, 15, 16, 15, 14, 14, 15, 15]),
        # apex: the same up to 2^24
        (DynamicLossScale.apex(2.0**23, window=2), "......x..", [23, 24, 24, 24, 24, 24, 23, 23, 24]),
        # Megatron: the first overflow is forgiven, the next are not, clean steps between or not; growth forgives
        (DynamicLossScale.megatron(window=3), "x.x.x...xx", [32, 32, 31, 31, 30, 30, 30, 31, 31, 30]),
        # DeepSpeed: three clean steps for the first growth with a window of two, then two
        (DynamicLossScale.deepspeed(window=2), "...x.x....x", [16, 16, 17, 17, 17, 16, 16, 16, 17, 17, 17]),
        (DynamicLossScale.deepspeed(window=2), ".......", [16, 16, 17, 17, 18, 18, 19]),
        (DynamicLossScale.deepspeed(window=1), "....x..", [16, 17, 18, 19, 19, 19, 20]),
        # a clean step between two overflows refills the hysteresis
        (DynamicLossScale.deepspeed(window=9, consecutive_hysteresis=True), "x.x.xxx.x", [16] * 5 + [15, 14, 14, 14]),
        # before the delay of one: two clean steps, always
        (dataclasses.replace(DynamicLossScale.deepspeed(window=2), delay=0), "....", [16, 17, 17, 18]),
        # jmp: stands still at 1
        (DynamicLossScale.jmp(2.0**2, window=2), "xxxx...x", [1, 0, 0, 0, 0, 1, 1, 0]),
        # flax: a window of two takes three steps, each time
        (DynamicLossScale.flax(window=2), "......x...", [16, 16, 17, 17, 17, 18, 17, 17, 17, 18]),
        # Keras 2: as jmp; Keras 3 goes on below 1
        (DynamicLossScale.keras(2.0**2, window=2), "xxxx...x", [1, 0, 0, 0, 0, 1, 1, 0]),
        (DynamicLossScale.keras3(2.0**2, window=2), "xxxx...x", [1, 0, -1, -2, -2, -1, -1, -2]),
        # fairseq: two clean steps grow; an overflow halves
        (DynamicLossScale.fairseq(window=2), "..x.x..xx...", [15, 16, 15, 15, 14, 14, 15, 14, 13, 13, 14, 14]),
        # a third of the steps since S moved may overflow; from then on one of one, one of two, one of three
        (DynamicLossScale.fairseq(window=9, tolerance=0.34), "..x.xx.x..x", [15] * 4 + [14, 13, 13, 12, 12, 12, 12]),
        # growth does not forget the overflow before it: two of four
        (DynamicLossScale.fairseq(window=3, tolerance=0.5), "..x...xx", [15, 15, 15, 15, 15, 16, 15, 14]),
        (NoLossScale(), "x.x", [0, 0, 0]),
        (StaticLossScale(2**10), "x.x", [10, 10, 10]),
    ],
    ids=str,
)
def test_golden_traces(scaler: LossScale, pattern: str, exponents: list[float]) -> None:
    assert trace_of(scaler, pattern) == exponents


@pytest.mark.parametrize(
    ("name", "init", "window"),
    [
        *[("torch", 16, 2000), ("apex", 16, 2000), ("megatron", 32, 1000), ("deepspeed", 16, 1000), ("jmp", 15, 2000)],
        *[("keras", 15, 2000), ("keras3", 15, 2000), ("fairseq", 15, 2000)],
    ],
)
def test_defaults_of_the_frameworks(name: str, init: int, window: int) -> None:
    scaler = SCALERS[name]
    assert isinstance(scaler, DynamicLossScale)
    assert (scaler.loss_scale, scaler.window) == (2.0**init, window)
    assert scaler.hysteresis == (2 if name in ("megatron", "deepspeed") else 1)
    assert scaler.max_scale == (2.0**24 if name == "apex" else math.inf)
    assert scaler.min_scale == (0 if name in ("torch", "apex", "keras3", "fairseq") else 1)
    assert scaler.raises_at == (1e-4 if name == "fairseq" else 0)


def test_flax_grows_after_2001_clean_steps() -> None:
    assert trace_of(DynamicLossScale.flax(), "." * 2001)[-2:] == [16, 17]


# ---- the ends of the road ------------------------------------------------------------------------------------------


def overflowing(scaler: DynamicLossScale, steps: int) -> DynamicLossScale:
    for _ in range(steps):
        scaler = scaler.adjust(True)
    return scaler


def test_torch_halves_to_a_scale_without_reciprocal_and_on_to_zero() -> None:
    start = DynamicLossScale.torch(2.0**16)
    usable = overflowing(start, 16 + 127)
    assert usable.loss_scale == 2.0**-127
    assert not usable.exhausted
    lost = usable.adjust(True)
    assert lost.loss_scale == 2.0**-128
    assert lost.ended
    assert "2^-128, whose reciprocal is infinite in fp32" in lost.reason
    smallest = overflowing(start, 16 + 149)
    assert smallest.loss_scale == 2.0**-149
    assert not smallest.at_floor
    zero = smallest.adjust(True)
    assert zero.loss_scale == 0
    assert zero.at_floor
    assert "become 0" in zero.reason
    assert zero.adjust(True).unanswered == 1
    assert dataclasses.replace(zero, window=1).adjust(False).loss_scale == 0


def test_torch_and_jmp_stop_growing_before_infinity_megatron_does_not() -> None:
    for variant in (DynamicLossScale.torch, DynamicLossScale.jmp):
        assert trace_of(variant(2.0**126, window=1), "...") == [127, 127, 127]
    infinite = DynamicLossScale.megatron(2.0**127, window=1, hysteresis=1).adjust(False)
    assert infinite.loss_scale == math.inf
    assert infinite.ended
    assert "infinity" in infinite.reason
    assert infinite.adjust(True).loss_scale == math.inf


def test_flax_stays_between_the_smallest_normal_and_the_largest_value_of_fp32() -> None:
    largest = DynamicLossScale.flax(2.0**127, window=1).adjust(False).adjust(False)
    assert largest.loss_scale == float(np.finfo(np.float32).max)
    smallest = overflowing(DynamicLossScale.flax(), 200)
    assert smallest.loss_scale == 2.0**-126
    assert smallest.exhausted
    assert not smallest.ended
    assert smallest.unanswered == 200 - 16 - 126


def test_deepspeed_has_ended_where_it_raises_and_stays_as_it_is() -> None:
    at_floor = overflowing(DynamicLossScale.deepspeed(4.0, window=1), 3)
    assert (at_floor.loss_scale, at_floor.at_floor, at_floor.exhausted) == (1.0, True, False)
    ended = at_floor.adjust(True)
    assert ended.ended
    assert ended.reason == "an overflow found the loss scale at its smallest, 1: DeepSpeed raises an error here"
    assert ended.adjust(False) is ended
    assert ended.adjust(True) is ended
    silent = overflowing(DynamicLossScale.deepspeed(4.0, window=1, raises_at_min_scale=False), 9)
    assert silent.exhausted
    assert not silent.ended


def test_fairseq_halves_above_a_ten_thousandth_and_raises_at_the_overflow_that_would_not() -> None:
    smallest = overflowing(DynamicLossScale.fairseq(), 28)
    assert (smallest.loss_scale, smallest.at_floor, smallest.exhausted) == (2.0**-13, True, False)
    assert smallest.loss_scale > 1e-4 > smallest.loss_scale / 2
    assert not overflowing(DynamicLossScale.fairseq(), 27).at_floor
    ended = smallest.adjust(True)
    assert (ended.loss_scale, ended.ended, ended.adjust(False)) == (2.0**-13, True, ended)
    assert ended.reason == "an overflow found the loss scale at its smallest, 2^-13: fairseq raises an error here"
    at_threshold = overflowing(DynamicLossScale.fairseq(threshold=1.0), 40)
    assert (at_threshold.loss_scale, at_threshold.unanswered, at_threshold.ended) == (1.0, 25, False)
    assert overflowing(DynamicLossScale.fairseq(1.0, raises_at=0.5), 1).ended  # at the limit itself


def test_keras_2_is_jmp_and_keras_3_has_no_floor_and_no_cap() -> None:
    ours = dataclasses.replace(DynamicLossScale.keras(), framework="jmp")
    assert ours == DynamicLossScale.jmp()
    assert overflowing(DynamicLossScale.keras(), 99).loss_scale == 1
    assert overflowing(DynamicLossScale.keras3(), 15 + 150).loss_scale == 0
    assert DynamicLossScale.keras3(2.0**127, window=1).adjust(False).loss_scale == math.inf


def test_what_was_stuck_and_has_grown_since_says_so() -> None:
    stuck = DynamicLossScale.jmp(1.0, window=1).adjust(True)
    assert "the step is skipped and nothing changes" in stuck.reason
    grown = stuck.adjust(False)
    assert grown.loss_scale == 2
    assert grown.reason.endswith("it has grown since")


def test_a_backoff_that_rounds_to_the_same_scale_is_stuck_too() -> None:
    scaler = DynamicLossScale.torch(2.0**-149, backoff_factor=0.9).adjust(True)
    assert (scaler.loss_scale, scaler.unanswered) == (2.0**-149, 1)


def test_fixed_scalers_are_never_exhausted() -> None:
    for scaler in (NoLossScale(), StaticLossScale(8)):
        assert scaler.adjust(True) is scaler
        assert not any((scaler.exhausted, scaler.ended, scaler.at_floor, scaler.reason, scaler.unanswered))


# ---- arguments -----------------------------------------------------------------------------------------------------

FRAMEWORKS = tuple(name for name, scaler in SCALERS.items() if isinstance(scaler, DynamicLossScale))
NUMBERS_REFUSED = (0, -1.0, math.nan, math.inf, "2", None, True, 10**400)


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        call()
    message = str(error.value)
    assert message.isprintable()
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("scale", NUMBERS_REFUSED)
def test_a_scale_is_positive_and_finite(scale: Any) -> None:
    refused(lambda: StaticLossScale(scale), "loss_scale must be a number above 0 and finite")
    for variant in FRAMEWORKS:
        refused(lambda v=variant: getattr(DynamicLossScale, v)(scale), "init_scale must be a number above 0")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window must be an integer of at least 1, got 0"),
        ({"window": 2.0}, "window must be an integer"),
        ({"window": True}, "window must be an integer"),
        ({"growth_factor": 1.0}, "growth_factor must be a number above 1 and finite, got 1.0"),
        ({"growth_factor": math.inf}, "growth_factor must be"),
        ({"growth_factor": math.nan}, "growth_factor must be"),
        ({"backoff_factor": 0.0}, "backoff_factor must be a number above 0 and below 1, got 0.0"),
        ({"backoff_factor": 1.0}, "backoff_factor must be"),
        ({"hysteresis": 0}, "hysteresis must be an integer of at least 1"),
        ({"delay": -1}, "delay must be an integer of at least 0"),
        ({"min_scale": -1.0}, "min_scale must be from 0 to init_scale = 65536"),
        ({"min_scale": 2.0**17}, "min_scale must be from 0 to init_scale = 65536"),
        ({"min_scale": math.nan}, "min_scale must be"),
        ({"min_scale": "1"}, "min_scale must be a number"),
        ({"max_scale": 2.0**15}, "max_scale from there on"),
        ({"max_scale": math.nan}, "max_scale"),
        ({"scale_dtype": "float16"}, "scale_dtype must be 'float32' or 'float64'"),
        ({"init_scale": 1e39}, "2^-149 to below 2^128"),
        ({"init_scale": 1e-46}, "2^-149 to below 2^128"),
        ({"loss_scale": -1.0}, "loss_scale must be from min_scale to max_scale"),
        ({"loss_scale": math.nan}, "loss_scale must be"),
        ({"window": 3, "clean_steps": 3}, "clean_steps must be an integer in 0..2"),
        ({"overflows": 2}, "overflows must be an integer in 0..1"),
        ({"unanswered": -1}, "unanswered must be"),
        ({"since_moved": -1}, "since_moved must be"),
        ({"raises_at": 2.0**16}, "raises_at must be a number from 0 to below init_scale = 65536"),
        ({"raises_at": math.nan}, "raises_at must be"),
        ({"tolerance": -0.1}, "tolerance must be a number from 0 on and finite, got -0.1"),
        ({"tolerance": "0"}, "tolerance must be"),
    ],
)
def test_wrong_parameters_are_refused(options: dict[str, Any], words: str) -> None:
    refused(lambda: DynamicLossScale(**options), words)


def test_a_factor_that_is_1_in_fp32_is_refused_where_the_framework_keeps_it_in_fp32() -> None:
    almost = 1 + 2.0**-40
    assert DynamicLossScale.torch(growth_factor=almost).growth_factor == almost
    for variant in (DynamicLossScale.megatron, DynamicLossScale.flax):
        refused(lambda v=variant: v(growth_factor=almost), "growth_factor must be a number above 1")  # type: ignore[misc]
        refused(lambda v=variant: v(growth_factor="2"), "growth_factor must be")  # type: ignore[misc]
    refused(lambda: DynamicLossScale.flax(window=0), "window must be an integer of at least 1, got 0")


def test_scalers_by_name() -> None:
    assert get_scaler("torch") == DynamicLossScale.torch()
    assert get_scaler("none") == NoLossScale()
    assert get_scaler("1024") == StaticLossScale(1024.0)
    assert get_scaler("keras") == DynamicLossScale.keras()
    assert get_scaler("DeepSpeed") == DynamicLossScale.deepspeed()
    assert get_scaler("fairseq") == DynamicLossScale.fairseq()
    for wrong in ("pytorch", "-1", "nan", "0", ""):
        refused(lambda w=wrong: get_scaler(w), ", ".join(SCALERS), "positive number")  # type: ignore[misc]


# ---- plans ---------------------------------------------------------------------------------------------------------

EXPONENTS = range(-126, 128)
magnitudes = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.builds(math.ldexp, st.sampled_from([1.0, 1.25, 1.5, 1.8125, 1.9375, 1.99951171875]), st.integers(-160, 160)),
    st.just(0.0),
)


def counts_of(h: ExponentHistogram, fmt: FloatFormat) -> dict[int, tuple[int, int, int]]:
    """Flushed, subnormal and overflowed at every scale, each asked for by itself."""
    return {k: (h.flushed(fmt, 2.0**k), h.subnormal(fmt, 2.0**k), h.overflowed(fmt, 2.0**k)) for k in EXPONENTS}


@settings(max_examples=80, deadline=None)
@given(st.lists(magnitudes, max_size=6), st.sampled_from(FORMATS_AND_CUSTOM), st.integers(0, 3))
def test_plans_equal_brute_force_over_all_scales(values: list[float], fmt: FloatFormat, margin: int) -> None:
    h = ExponentHistogram.of(values)
    plan = plan_loss_scale(h, fmt, margin=margin)
    every = counts_of(h, fmt)
    safe = [2.0**k for k, (_, _, overflowed) in every.items() if not overflowed]
    enough = [2.0**k for k, (flushed, _, _) in every.items() if not flushed]
    assert plan.largest_safe == max(safe, default=None)
    assert plan.smallest_sufficient == min(enough, default=None)
    both = sorted(set(safe) & set(enough))
    assert plan.window == ((both[0], both[-1]) if both else None)
    if not h.nonzero:
        assert [c.loss_scale for c in plan.conversions] == [1]
        assert plan.best.loss_scale == 1
        assert "nothing to scale" in plan.summary
        return
    for c in plan.conversions:
        assert (c.flushed, c.subnormal, c.overflowed) == every[int(math.log2(c.loss_scale))]
    best = min(EXPONENTS, key=lambda k: (every[k][0] + every[k][2], abs(k), -k))
    lost = every[best][0] + every[best][2]
    assert plan.best.flushed + plan.best.overflowed == lost
    assert plan.best.loss_scale in (2.0**best, 2.0**-best)
    with_headroom = [k for k in EXPONENTS if not h.overflowed(fmt, 2.0 ** (k + margin))]
    least = min((every[k][:2] for k in with_headroom), default=None)
    if every[0][2] == 0 and (least is None or every[0][:2] < least):
        assert plan.recommended == plan.at(1)  # what is not scaled needs no margin that costs
    elif not with_headroom:
        assert plan.recommended is None
    else:
        chosen = min(with_headroom, key=lambda k: (*every[k][:2], -k if every[k][1] else abs(k)))
        assert plan.recommended is not None
        assert plan.recommended.overflowed == 0
        assert (plan.recommended.flushed, plan.recommended.subnormal) == every[chosen][:2]
        assert plan.recommended.loss_scale in (2.0**chosen, 2.0**-chosen)  # two may be as close to 1
    assert ("No loss scaling is needed" in plan.summary) == (every[0][0] + every[0][2] == 0)
    assert ("No loss scale saves everything" in plan.summary) == (lost > 0)


@pytest.mark.parametrize("fmt", FORMATS_AND_CUSTOM, ids=str)
def test_the_ends_of_the_window_are_those_of_the_rounding(fmt: FloatFormat) -> None:
    """Both thresholds of every format at both sides, ties included, against exact arithmetic."""
    for edge in (fmt.flush_threshold, fmt.overflow_threshold):
        for x in (math.nextafter(edge, 0), edge, math.nextafter(edge, math.inf)):
            plan = plan_loss_scale(ExponentHistogram.of([x * 2.0**-3]), fmt)
            survives = [k for k in EXPONENTS if rounded(Fraction(x) * Fraction(2) ** (k - 3), fmt) > 0]
            fits = [k for k in EXPONENTS if not does_overflow(Fraction(x) * Fraction(2) ** (k - 3), fmt)]
            assert plan.smallest_sufficient == 2.0 ** min(survives)
            assert plan.largest_safe == 2.0 ** max(fits)


def rounded(exact: Fraction, fmt: FloatFormat) -> Fraction:
    """ties_to_even without an end of the exponents above."""
    if not exact:
        return exact
    c = reference.candidates(exact, fmt)
    if (
        not fmt.mantissa_bits and exact < fmt.smallest_subnormal
    ):  # no subnormals: the first value is the smallest normal
        return Fraction(fmt.smallest_subnormal) if exact > Fraction(fmt.smallest_subnormal) / 2 else Fraction(0)
    return (c.k + reference.rounds_away(c, False, "ties_to_even", None)) * c.spacing


def does_overflow(exact: Fraction, fmt: FloatFormat) -> bool:
    return rounded(exact, fmt) > Fraction(fmt.max)


def summary(values: list[float], fmt: str = "fp16", margin: int = 1) -> str:
    return plan_loss_scale(ExponentHistogram.of(values), fmt, margin=margin).summary


GIVEN = " This is of the numbers given; other gradients of the same backward pass may be smaller or larger."


def test_summaries() -> None:
    assert summary([1.0, 0.5]) == (
        "No loss scaling is needed: at S = 1 fp16 flushes nothing and nothing overflows." + GIVEN
    )
    assert summary([]) == "There is nothing to scale: no finite element is nonzero." + GIVEN
    assert summary([0.0, math.inf, math.nan]).endswith("inf or NaN already, at any loss scale: 2." + GIVEN)
    assert summary([2.0**-26, 1.0]) == (
        "Without loss scaling fp16 loses 1 of 2 nonzero elements (50 %). Every loss scale from 2^2 to 2^15 saves them "
        "all. Recommended: S = 2^12, with a margin of 1 binade below the overflow; of 2 nonzero elements it flushes 0 "
        "and makes 0 subnormal (S = 1: 0)." + GIVEN
    )
    assert summary([2.0**-40, 2.0**-40, 2.0**10]) == (
        "No loss scale saves everything in fp16: at best, at S = 2^16, it loses 1 of 3 nonzero elements (33.3 %), 0 "
        "flushed and 1 overflowed; at S = 1 2. Recommended: S = 1, with a margin of 1 binade below the overflow; of 3 "
        "nonzero elements it flushes 2 and makes 0 subnormal (S = 1: 0). Fewer are lost at S = 2^16, but some of them "
        "overflow, and an overflow costs the whole step." + GIVEN
    )
    assert "Only 2^1 saves them all." in summary([0.25, 2.0], "fp4_e2m1fn")
    assert "with a margin of 0 binades" in summary([2.0**-26, 1.0], margin=0)
    assert "No loss scale from 2^-126 on leaves a margin of 1 binade" in summary([1e300])


def test_a_margin_that_costs_is_not_recommended_where_nothing_needs_to_be_scaled() -> None:
    values = [448, 1, 2.0**-9, float(np.float32(0.1))]
    plan = plan_loss_scale(ExponentHistogram.of(values), "fp8_e4m3fn")
    assert plan.recommended == plan.at(1)
    assert plan.summary == (
        "No loss scaling is needed: at S = 1 fp8_e4m3fn flushes nothing and nothing overflows. At S = 1 there is no "
        "margin of 1 binade below the overflow, and it would cost: S = 2^-1 flushes 1 and makes 0 subnormal, S = 1 "
        "flushes 0 and makes 1 subnormal." + GIVEN
    )
    # a subnormal number is a cost, too: 2^-6 is normal at S = 1
    assert plan_loss_scale(ExponentHistogram.of([448, 2.0**-6]), "fp8_e4m3fn").recommended == plan_loss_scale(
        ExponentHistogram.of([448, 2.0**-6]), "fp8_e4m3fn"
    ).at(1)
    # one that costs nothing is kept
    roomy = plan_loss_scale(ExponentHistogram.of([448, 1]), "fp8_e4m3fn")
    assert roomy.recommended == roomy.at(0.5)
    # S = 1 flushes one, the margin two
    plan = plan_loss_scale(ExponentHistogram.of([448, 2.0**-9, 2.0**-12]), "fp8_e4m3fn")
    assert plan.recommended == plan.at(1)
    assert "Recommended: S = 1, without a margin of 1 binade" in plan.summary
    # it overflows at S = 1: then no flushed element is a reason against a smaller scale, but it is said
    plan = plan_loss_scale(ExponentHistogram.of([2.0**17, *[2.0**-24] * 9]), "fp16")
    assert plan.recommended == plan.at(2.0**-3)
    assert plan.recommended is not None
    assert plan.recommended.flushed == 9
    assert "Fewer are lost at S = 1, but some of them overflow" in plan.summary
    # no scale has such a margin
    plan = plan_loss_scale(ExponentHistogram.of([1.0]), "fp16", margin=300)
    assert plan.recommended == plan.at(1)
    assert "No loss scale from 2^-126 on leaves a margin of 300 binades below the overflow." in plan.summary


_FATES = r"flushes ([\d,]+) and makes ([\d,]+) subnormal"
EDGES = ("fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3fnuz", "fp6_e2m3fn", "fp4_e2m1fn", "e5m0")


def edge_magnitudes(fmt: FloatFormat) -> list[float]:
    """Where something changes, and a little further."""
    ends = [fmt.flush_threshold, fmt.smallest_normal / 2, fmt.smallest_normal, fmt.max, fmt.overflow_threshold]
    return [*ends, math.nextafter(fmt.flush_threshold, 1), fmt.flush_threshold / 4, 1.0, 4 * fmt.max]


@pytest.mark.parametrize("name", EDGES)
def test_no_two_sentences_of_a_plan_contradict_each_other_or_the_data(name: str) -> None:
    """All multisets of up to three magnitudes at the edges, with each margin: each number in words is counted anew."""
    fmt = get_format(name)
    lists = [list(m) for n in (1, 2, 3) for m in itertools.combinations_with_replacement(edge_magnitudes(fmt), n)]
    of_scale: dict[tuple[float, float], tuple[bool, bool, bool]] = {}

    def fate(x: float, scale: float) -> tuple[bool, bool, bool]:
        if (x, scale) not in of_scale:
            y = float(round_to(x * scale, fmt))  # a power of two: exact
            clamped = scale * x > fmt.overflow_threshold or (
                fmt.overflow_inclusive and scale * x == fmt.overflow_threshold
            )
            of_scale[x, scale] = y == 0, 0 < y < fmt.smallest_normal, clamped or not math.isfinite(y)
        return of_scale[x, scale]

    def counted(values: list[float], scale: float) -> tuple[int, int, int]:
        flushed, subnormal, overflowed = (sum(f) for f in zip(*(fate(x, scale) for x in values), strict=True))
        return flushed, subnormal, overflowed

    for values, margin in itertools.product(lists, (0, 1, 4)):
        plan = plan_loss_scale(ExponentHistogram.of(values), fmt, margin=margin)
        said, choice = plan.summary, plan.recommended
        one = counted(values, 1.0)
        # every pair of counts in words is that of the scale before it
        for text, *numbers in re.findall(rf"S = (\S+?),? {_FATES}", said):
            assert [int(n) for n in numbers] == list(counted(values, scale_of(text)))[:2], said
        needed = "No loss scaling is needed" not in said
        assert needed == bool(one[0] + one[2]), said
        assert ("saves them all" in said or "saves everything" in said) == needed
        if choice is None:
            assert one[2], said
            assert "Recommended" not in said
            assert "No loss scale from" in said
            continue
        lost = counted(values, choice.loss_scale)
        assert lost == (choice.flushed, choice.subnormal, choice.overflowed)
        assert not choice.overflowed
        if choice.loss_scale != 1 or needed:
            text, *numbers = re.search(rf"Recommended: S = (\S+), .*? it {_FATES}", said).groups()  # type: ignore[union-attr]
            assert scale_of(text) == choice.loss_scale
            assert tuple(map(int, numbers)) == lost[:2]
        else:
            assert "Recommended" not in said
        roomy = not counted(values, choice.loss_scale * 2.0**margin)[2]
        assert ("without a margin" in said or "there is no margin" in said or "No loss scale from" in said) == (
            not roomy
        )
        if not one[2]:
            assert lost[:2] <= one[:2], said  # never worse than without loss scaling, subnormals counted
        elif lost[0] > one[0] + one[2]:
            assert "Fewer are lost at S = 1" in said  # and why: it overflows there
        if lost[0] > plan.best.flushed + plan.best.overflowed:
            assert "Fewer are lost at" in said or "Without a margin" in said or not roomy, said
        if plan.window is not None and lost[0]:
            assert "margin" in said.split("Recommended", 1)[-1].split(";", 1)[1], said  # it is what costs


def scale_of(text: str) -> float:
    return 2.0 ** int(text.removeprefix("2^")) if text.startswith("2^") else float(text)


@pytest.mark.parametrize("margin", [-1, 1.0, math.nan, "1", True, None])
def test_a_margin_is_an_integer_that_is_not_negative(margin: Any) -> None:
    refused(lambda: plan_loss_scale(ExponentHistogram.of([1.0]), "fp16", margin=margin), "integer of at least 0")


def test_other_arguments_of_plans() -> None:
    refused(lambda: plan_loss_scale(np.ones(3), "fp16"), "ExponentHistogram.of")  # type: ignore[arg-type]
    refused(lambda: plan_loss_scale(ExponentHistogram.of([1.0]), "fp17"), "fp16")


def test_each_binade_of_margin_costs_one_of_scale() -> None:
    h = ExponentHistogram.of([2.0**-e for e in range(60)])
    scales = [plan_loss_scale(h, "fp16", margin=m).recommended for m in range(5)]
    assert [c.loss_scale for c in scales if c] == [2.0**15, 2.0**14, 2.0**13, 2.0**12, 2.0**11]


def test_plans_are_plain_json() -> None:
    for values in ([], [1.0, 2.0**-30], [1e300, 1e-300], [math.nan]):
        plan = plan_loss_scale(ExponentHistogram.of(values), "fp16")
        data = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
        assert [s["loss_scale"] for s in data["scales"]] == [c.loss_scale for c in plan.conversions]
        assert data["largest_safe"] == plan.largest_safe
        assert data["summary"] == plan.summary


def test_tensors_share_a_scale_and_come_worst_first() -> None:
    tensors = {
        "fine": [1.0, 0.5],
        "tiny": [2.0**-45] * 4,
        "half": [2.0**-45, 1.0],
        "subnormal": [2.0**-30, 1.0],
        "none": [],
    }
    plans = plan_tensors([(name, ExponentHistogram.of(x)) for name, x in tensors.items()], "fp16")
    assert plans.total == plan_loss_scale(
        sum(map(ExponentHistogram.of, tensors.values()), ExponentHistogram.empty()), "fp16"
    )
    assert plans.loss_scale == 2.0**14
    assert [name for name, _ in plans.tensors] == ["tiny", "half", "subnormal", "fine", "none"]
    assert json.loads(json.dumps(plans.to_dict(), allow_nan=False))["loss_scale"] == 2.0**14
    hopeless = plan_tensors([("a", ExponentHistogram.of([1e300]))], "fp16")
    assert hopeless.total.recommended is None
    assert hopeless.loss_scale == hopeless.total.best.loss_scale


def test_the_scales_that_are_listed_reach_a_little_further_than_those_that_matter() -> None:
    def exponents(values: list[float], margin: int = 1) -> tuple[float, float]:
        scales = [
            c.loss_scale for c in plan_loss_scale(ExponentHistogram.of(values), "fp16", margin=margin).conversions
        ]
        return math.log2(scales[0]), math.log2(scales[-1])

    assert exponents([2.0**-26, 1.0]) == (-2, 17)
    assert exponents([2.0**-60, 1.0]) == (-2, 38)
    assert exponents([1.0]) == (-2, 17)  # that 2^-24 would do is of no interest
    assert exponents([2.0**20]) == (-8, 2)
    assert exponents([2.0**20], margin=9) == (-16, 2)
    assert exponents([1e300]) == (-126, 2)
    assert exponents([1e-300]) == (-2, 127)


def test_no_tensors_are_nothing_to_scale() -> None:
    assert plan_tensors([], "fp16").loss_scale == 1


# ---- replays -------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FORMATS_AND_CUSTOM),
    st.one_of(st.floats(2.0**-130, 2.0**130), st.integers(-40, 40).map(lambda k: 2.0**k)),
    st.sampled_from([0, 1, -1, 5]),
    st.floats(0.5, 2),
)
def test_a_step_overflows_as_the_exact_product_rounds(fmt: FloatFormat, scale: float, ulps: int, near: float) -> None:
    """Magnitudes at the threshold divided by the scale, and a few ulps beside it."""
    magnitude = fmt.overflow_threshold / scale
    assume(0 < magnitude < 1e300)
    for _ in range(abs(ulps)):
        magnitude = math.nextafter(magnitude, math.inf if ulps > 0 else 0)
    for m in (magnitude, magnitude * near):
        trace = replay_loss_scale(StaticLossScale(scale), [m], fmt)
        assert trace.skipped == (does_overflow(Fraction(scale) * Fraction(m), fmt),)


def test_a_product_that_float64_rounds_onto_the_threshold_is_decided_exactly() -> None:
    fp16 = get_format("fp16")
    found = set()
    for i in range(1, 400):
        scale = 1 + i / 1009
        for m in (fp16.overflow_threshold / scale, math.nextafter(fp16.overflow_threshold / scale, 0)):
            if scale * m == fp16.overflow_threshold:
                exact = Fraction(scale) * Fraction(m)
                found.add(exact < fp16.overflow_threshold)
                assert replay_loss_scale(StaticLossScale(scale), [m], fp16).skipped == (
                    exact >= fp16.overflow_threshold,
                )
    assert found == {True, False}, "the test has seen both sides"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(PAIRS)),
    st.lists(st.one_of(st.floats(0, 1e8), st.sampled_from([0.0, math.inf, math.nan, 1e30])), min_size=1, max_size=40),
    st.sampled_from(["fp16", "bf16", "fp8_e4m3fn", "fp4_e2m1fn"]),
)
def test_a_replay_is_the_scaler_run_by_hand(name: str, steps: list[float], fmt: str) -> None:
    start = PAIRS[name](lambda choices: choices[min(2, len(choices) - 1)])[0]
    trace = replay_loss_scale(start, steps, fmt)
    now, scales, skipped = start, [], []
    for m in steps:
        if now.ended:
            break
        scales.append(now.loss_scale)
        skipped.append(not math.isfinite(m) or does_overflow(Fraction(now.loss_scale) * Fraction(m), get_format(fmt)))
        now = now.adjust(skipped[-1])
    assert (trace.loss_scales, trace.skipped, trace.final) == (tuple(scales), tuple(skipped), now)
    assert trace.skipped_steps == sum(skipped)
    assert trace.steps == len(scales)
    runs = "".join("x" if s else " " for s in skipped).split()
    assert len(trace.longest_skip) == max(map(len, runs), default=0)
    assert all(skipped[step] for step in trace.longest_skip)
    changed = [i for i, (a, b) in enumerate(zip(scales, [*scales[1:], now.loss_scale], strict=True)) if a != b]
    assert [c.step for c in trace.changes] == changed
    assert all((c.after < c.before) == skipped[c.step] for c in trace.changes)
    data = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    assert data["skipped"] == list(trace.skipped)


def test_a_replay_says_what_happened() -> None:
    trace = replay_loss_scale(DynamicLossScale.torch(window=2), [1.0, 0.1, 0.1, math.nan, math.inf, 0.0], "fp16")
    assert trace.loss_scales == (2.0**16, 2.0**15, 2.0**15, 2.0**16, 2.0**15, 2.0**14)
    assert trace.skipped == (True, False, False, True, True, False)
    assert trace.nonfinite_steps == 2
    assert trace.longest_skip == range(3, 5)
    assert trace.summary == (
        "torch: 3 of 6 steps skipped, at most 2 in a row (from step 3); S = 2^16 at the start, 2^14 at the end."
    )
    assert not trace.exhausted
    assert trace.floor_from is None
    equally_long = replay_loss_scale(NoLossScale(), [1e6, 1e6, 1.0, 1e6, 1e6], "fp16")
    assert equally_long.longest_skip == range(2)
    assert replay_loss_scale(StaticLossScale(3.0), [1.0], "fp16").summary == (
        "static: 0 of 1 steps skipped; S = 3 at the start, 3 at the end."
    )


def test_a_replay_ends_where_deepspeed_raises_and_surfaces_it() -> None:
    trace = replay_loss_scale(DynamicLossScale.deepspeed(2.0, hysteresis=1), [1e6] * 10, "fp16")
    assert trace.loss_scales == (2.0, 1.0)
    assert trace.floor_from == 1
    assert trace.exhausted
    assert trace.summary.endswith("DeepSpeed raises an error here. No training goes on after step 1 of 10.")
    assert trace.to_dict()["ended"]


def test_a_replay_surfaces_a_floor_where_steps_are_skipped_for_ever() -> None:
    trace = replay_loss_scale(DynamicLossScale.jmp(2.0), [math.nan] * 10, "fp16")
    assert trace.skipped_steps == trace.steps == 10
    assert trace.floor_from == 1
    assert trace.final.unanswered == 9
    assert "Exhausted: an overflow found the loss scale at its smallest, 1" in trace.summary


def test_a_replay_stops_before_a_scale_is_used_that_cannot_be_undone() -> None:
    trace = replay_loss_scale(DynamicLossScale.torch(), [math.nan] * 400, "fp16")
    assert trace.loss_scales[-1] == 2.0**-127
    assert trace.final.loss_scale == 2.0**-128
    assert trace.steps == 144
    infinite = replay_loss_scale(DynamicLossScale.megatron(2.0**127, window=1), [0.0] * 5, "fp16")
    assert infinite.steps == 1
    assert infinite.to_dict()["final_loss_scale"] == "inf"


@pytest.mark.parametrize(
    "steps",
    [[], [[1.0]], 3.0, [-1.0], [1.0, -1e-300], ["a"], None, [True], [1j], [[1], [1, 2]], [None], {}, np.zeros((0,))],
    ids=repr,
)
def test_traces_that_are_refused(steps: Any) -> None:
    refused(lambda: replay_loss_scale(NoLossScale(), steps, "fp16"), "one number for each step, not negative")


def test_other_arguments_of_replays() -> None:
    refused(lambda: replay_loss_scale("torch", [1.0], "fp16"), "DynamicLossScale")  # type: ignore[arg-type]
    refused(lambda: replay_loss_scale(NoLossScale(), [1.0], "half a format"), "fp16")
    assert replay_loss_scale(NoLossScale(), np.array([1, 70000], np.int32), "fp16").skipped == (False, True)
    assert replay_loss_scale(NoLossScale(), np.array([65520], np.float32), "fp16").skipped == (True,)
    assert replay_loss_scale(NoLossScale(), [-0.0], "fp16").skipped == (False,)


# ---- trace files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("[1, 0.5]", [1.0, 0.5]),
        ('{"max_abs": [1e3], "more": 1}', [1000.0]),
        ("[null, NaN, Infinity, 1e999]", [math.nan, math.nan, math.inf, math.inf]),
        ('["nan", "inf"]', [math.nan, math.inf]),
    ],
)
def test_traces_are_read_from_json(tmp_path: Path, text: str, steps: list[float]) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_trace(path), steps)


def test_what_a_replay_writes_can_be_replayed(tmp_path: Path) -> None:
    trace = replay_loss_scale(DynamicLossScale.torch(), [1.0, math.inf, 0.5], "fp16")
    (tmp_path / "trace.json").write_text(json.dumps(trace.to_dict()), encoding="utf-8")
    again = replay_loss_scale(DynamicLossScale.torch(), read_trace(tmp_path / "trace.json"), "fp16")
    assert again.skipped == trace.skipped


def test_traces_are_read_from_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "trace.npy", np.array([1, 2], np.float32))
    assert read_trace(tmp_path / "trace.npy") == (1.0, 2.0)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        "1",
        '"ab"',
        '["a"]',
        "[true]",
        "[[1]]",
        '{"max_abs": 3}',
        "[-1]",
        "[]",
        "[" * 100_000,
        "[1" + "0" * 400 + "]",
    ],
    ids=lambda text: text[:12],
)
def test_files_that_are_no_trace(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content, encoding="utf-8")
    refused(lambda: read_trace(path), str(path))


def test_npy_files_that_are_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.npy"
    for content in (np.ones((2, 2)), np.array(["a"]), np.array([-1.0])):
        np.save(path, content)
        refused(lambda: read_trace(path), str(path))
    np.save(path, np.array([object()]), allow_pickle=True)
    refused(lambda: read_trace(path), str(path))
    path.write_bytes(b"")
    refused(lambda: read_trace(path), str(path))
    path.write_bytes(b"\x93NUMPY\x01\x00")
    refused(lambda: read_trace(path), str(path))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    refused(lambda: read_trace(tmp_path / "binary.json"), "binary.json")


def test_plans_are_made_of_public_parts() -> None:
    plan = plan_loss_scale(ExponentHistogram.of([1.0]), "fp16")
    assert plan == LossScalePlan(plan.histogram, get_format("fp16"), 1)
    assert plan.at(4.0) == plan.histogram.conversion("fp16", 4.0)
