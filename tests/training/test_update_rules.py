"""The additions that lose less, against exact arithmetic; and what is known of each rule."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab.numerics import reference
from precision_lab.numerics.codec import codec
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.rounding import Array
from precision_lab.training.storage import StorageConfig
from precision_lab.training.update_rules import UPDATE_RULES, grow, kahan, multiply
from tests.training.helpers import exact_grow, exact_product

WORDS = st.sampled_from(["bf16", "fp16", "e6m9"]).map(get_format)


def values_of(fmt: FloatFormat) -> st.SearchStrategy[float]:
    """Values of a format well inside its range."""
    return st.builds(
        lambda sign, k, e: sign * math.ldexp(k, e),
        st.sampled_from([-1, 1]),
        st.integers(0, 2**fmt.precision - 1),
        st.integers(-fmt.precision - 3, 3 - fmt.precision),
    )


def array(value: float) -> Array:
    return np.array([value], np.float32)


@settings(deadline=None)  # the first example loads compiled code
@given(data=st.data(), fmt=WORDS)
def test_grow_and_kahan_round_every_operation_once(data: st.DataObject, fmt: FloatFormat) -> None:
    """Once, into the format, and not to float32 before: that makes no difference to so few bits."""
    m, r, v = (data.draw(values_of(fmt)) for _ in range(3))

    def to(x: Fraction) -> Fraction:
        return Fraction(reference.round_to(x, fmt))

    grown = [Fraction(float(x[0])) for x in grow(array(m), array(r), array(v), codec(fmt))]
    assert grown == list(exact_grow(Fraction(m), Fraction(r), Fraction(v), to))
    added = [Fraction(float(x[0])) for x in kahan(array(m), codec(fmt).round(array(v) + array(r)), codec(fmt))]
    y = to(Fraction(v) + Fraction(r))
    total = to(Fraction(m) + y)
    assert added == [total, to(y - to(total - Fraction(m)))]


@settings(deadline=None)
@given(data=st.data(), fmt=WORDS)
def test_a_pair_loses_nothing_of_a_smaller_term(data: st.DataObject, fmt: FloatFormat) -> None:
    m, v = sorted((data.draw(values_of(fmt)) for _ in range(2)), key=abs, reverse=True)
    total, lost = (Fraction(float(x[0])) for x in grow(array(m), array(0.0), array(v), codec(fmt)))
    assert total == Fraction(reference.round_to(Fraction(m) + Fraction(v), fmt))
    assert total + lost == Fraction(m) + Fraction(v)
    compensated = tuple(Fraction(float(x[0])) for x in kahan(array(m), array(v), codec(fmt)))
    assert compensated == (total, lost)


@settings(deadline=None)
@given(data=st.data(), fmt=WORDS, factor=st.sampled_from([0.999, 0.95, 0.9, 0.5]))
def test_a_product_of_pairs(data: st.DataObject, fmt: FloatFormat, factor: float) -> None:
    m = data.draw(values_of(fmt))
    r = reference.round_to(Fraction(m) * Fraction(data.draw(st.floats(-1, 1))) * Fraction(fmt.unit_roundoff), fmt)
    pair = [Fraction(float(x[0])) for x in multiply(array(m), array(r), factor, fmt)]
    assert pair == list(exact_product(Fraction(m), Fraction(r), factor, fmt))
    exact = Fraction(factor) * (Fraction(m) + Fraction(r))
    # a few roundings of the second word, each at most u * abs(second word); that is at most u * abs(exact) or so
    assert abs(sum(pair) - exact) <= 8 * Fraction(fmt.unit_roundoff) ** 2 * abs(exact) + fmt.smallest_subnormal


# ---- what is known of a rule ----


def test_what_each_rule_keeps_and_reaches() -> None:
    facts = {
        name: (rule.plain, rule.words_of("weights"), rule.words_of("second_moment"), rule.reach(get_format("bf16")))
        for name, rule in UPDATE_RULES.items()
    }
    assert facts == {
        "ties_to_even": (True, (), (), 1.0),
        "stochastic": (False, (), (), 2.0**15),
        "kahan": (False, ("compensation",), (), 2.0**8),
        "collage_light": (False, ("second_word",), (), 2.0**8),
        "collage_plus": (False, ("second_word",), ("second_moment_word",), 2.0**8),
    }


@pytest.mark.parametrize("name", UPDATE_RULES)
def test_a_second_word_takes_the_place_of_a_master_copy(name: str) -> None:
    if UPDATE_RULES[name].words:
        with pytest.raises(ValueError, match=f"update={name} is for weights without a master copy"):
            StorageConfig.parse(f"weights=bf16,master=fp32,update={name}")
    else:
        assert StorageConfig.parse(f"weights=bf16,master=fp32,update={name}").update == name
