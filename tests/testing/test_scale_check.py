"""Casts to E8M0: the rule is found, what the format does not have is said, and what follows no rule is shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from precision_lab.testing.cast_report import CastReport
from precision_lab.testing.casts import assert_cast, check_cast
from precision_lab.testing.scale_check import RULES, codes_by

Array: TypeAlias = NDArray[Any]
Cast: TypeAlias = Callable[[Array], Any]
E8M0 = "float8_e8m0fnu"


def check(cast: Cast, source: str = "bf16", **options: Any) -> CastReport:
    return check_cast(cast, source, E8M0, **options)


def names(report: CastReport) -> list[str]:
    return [fault.name for fault in report.faults]


def by_hand(up: Callable[[Array, Array], Array], *, zero: int = 255, sign: bool = True, top: int = 254) -> Cast:
    """A cast on fraction and exponent; `up` of the fraction in 1..2 and of the lower code."""

    def cast(x: Array) -> Array:
        x = x.astype(np.float64)
        with np.errstate(all="ignore"):
            fraction, exponent = np.frexp(np.abs(x))
            low = exponent + 126
            code = np.clip(low + up(2 * fraction, low), 0, top)
        code = np.where(x == 0, zero, np.where(np.isfinite(x) & (sign | (x > 0)), code, 255))
        return code.astype(np.uint8)

    return cast


HANDS: dict[str, Cast] = {
    "toward_zero": by_hand(lambda m, low: 0 * low, zero=0),
    "toward_positive": by_hand(lambda m, low: m > 1, sign=False),
    "ties_to_even": by_hand(lambda m, low: (m > 1.5) | ((m == 1.5) & (low % 2 == 1))),
    "ties_to_away": by_hand(lambda m, low: m >= 1.5),
    "ties_to_zero": by_hand(lambda m, low: m > 1.5, top=255),
    "geometric": by_hand(lambda m, low: m > math.sqrt(2)),
}


@pytest.mark.parametrize("mode", HANDS)
def test_the_rule_is_named(mode: str) -> None:
    report = check(HANDS[mode])
    assert report.ok, report
    assert (report.mode, report.exhaustive, report.wrong) == (mode, True, 0)
    assert any(note.startswith("rounds ") for note in report.notes)
    assert_cast(HANDS[mode], "bf16", E8M0, mode=mode)


@pytest.mark.parametrize(("asked", "is_"), [("toward_zero", "ties_to_even"), ("rup", "toward_zero")])
def test_another_rule_than_the_one_that_was_asked_for(asked: str, is_: str) -> None:
    report = check(HANDS[is_], mode=asked)
    (fault,) = report.faults
    assert fault.name == f"rounds {is_}"
    assert "asked for was" in fault.text
    assert fault.count == report.wrong > 0


def test_three_in_every_rule() -> None:
    """3 is between 2 (code 128) and 4 (129), 6 between 4 and 8 (130); what the words of a rule say of them is so."""
    wide = np.array([3.0, 6.0, 2.8, 2.0])
    found = {rule.mode: codes_by(rule, wide).tolist() for rule in RULES}
    assert found == {
        "toward_zero": [128, 129, 128, 128],
        "toward_positive": [129, 130, 129, 128],
        "ties_to_even": [128, 130, 128, 128],
        "ties_to_away": [129, 130, 128, 128],
        "ties_to_zero": [128, 129, 128, 128],
        "geometric": [129, 130, 128, 128],
    }


def test_rules_against_fractions() -> None:
    draw = np.random.default_rng(3)
    for value in np.ldexp(draw.integers(2**8, 2**9, 300), draw.integers(-130, 110, 300)).tolist():
        k = math.floor(math.log2(value))
        above = Fraction(value) / Fraction(2) ** k
        middle = k + 127 + (above > Fraction(3, 2) or (above == Fraction(3, 2) and (k + 127) % 2 == 1))
        assert codes_by(RULES[0], np.array([value])) == k + 127
        assert codes_by(RULES[1], np.array([value])) == k + 127 + (above > 1)
        assert codes_by(RULES[2], np.array([value])) == middle


def test_what_it_does_not_have_is_said() -> None:
    notes = check(HANDS["toward_zero"]).notes
    assert "zero: 0x00 = 2^-127" in notes
    assert "infinity: 0xff = nan" in notes
    assert "below 2^-127: 0x00 = 2^-127" in notes
    assert "above 2^127, below 2^128: 0xfe = 2^127" in notes
    assert any(note.startswith("negative numbers: what the magnitude becomes, toward zero (floor)") for note in notes)
    assert "negative numbers: 0xff = nan" in check(HANDS["toward_positive"]).notes
    assert "above 2^127, below 2^128: not one code: 0xfe = 2^127, 0xff = nan" in check(HANDS["ties_to_zero"]).notes


def test_ml_dtypes() -> None:
    """Ties up, zero and negative numbers NaN; in the lowest binade, subnormal in float32, everything goes up."""

    def cast(x: Array) -> Array:
        return x.astype(ml_dtypes.float8_e8m0fnu)

    report = check(cast, "fp16")
    assert (report.ok, report.mode) == (True, "ties_to_away")
    assert "zero: 0xff = nan" in report.notes
    report = check(cast)
    assert names(report) == ["no one rule"]
    assert report.faults[0].text.endswith("these are not; inputs from 2^-127 to below 2^-126")
    just_above = np.array([2.0**-127 * 1.25], np.float32)
    assert just_above.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8) == 1, "1.25 * 2^-127 is nearer to 2^-127"
    assert np.float32(2.0**-127).astype(ml_dtypes.float8_e8m0fnu).view(np.uint8) == 0


def spoilt(where: Callable[[Array], Array], code: int) -> Cast:
    return lambda x: np.where(where(x.astype(np.float64)), code, HANDS["ties_to_away"](x)).astype(np.uint8)


def test_what_is_wrong_by_every_rule() -> None:
    assert names(check(spoilt(np.isnan, 127))) == ["NaN becomes a number"]
    assert names(check(spoilt(lambda x: x == 2.0**-127, 1))) == ["powers of two not kept"]
    assert names(check(spoilt(lambda x: x == 2, 129))) == ["powers of two not kept"]
    off = check(spoilt(lambda x: (x > 4) & (x < 4.5), 130))
    assert names(off) == ["no one rule"]
    assert off.unexplained == off.wrong > 0
    assert "0x81 = 4 or 0x82 = 8" in str(check(spoilt(lambda x: (x > 4) & (x < 4.5), 140)))


def test_values_in_float32() -> None:
    def cast(x: Array) -> Array:
        values: Array = HANDS["toward_zero"](x).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        return values

    assert check(cast).mode == "toward_zero"
    assert "a value that it cannot hold" in str(check(lambda x: np.where(x == 8, 3.0, cast(x)).astype(np.float32)))


def test_wide_sources_and_casts_that_fail() -> None:
    report = check(HANDS["geometric"], "fp32")
    assert (report.ok, report.exhaustive, report.mode) == (True, False, "geometric")

    def raises(x: Array) -> Any:
        raise ValueError("no scales")

    assert names(check(raises)) == ["raises"]
    assert names(check(lambda x: x.astype(np.float16))) == ["wrong dtype"]


@pytest.mark.parametrize("target", ["e8m0", "F8_E8M0", ml_dtypes.float8_e8m0fnu, np.dtype(ml_dtypes.float8_e8m0fnu)])
def test_its_names(target: Any) -> None:
    assert check_cast(HANDS["toward_zero"], "fp8_e4m3fn", target).target == E8M0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "stochastic"}, "mode must be None or one of toward_zero"),
        ({"mode": "nearest"}, "unknown rounding mode"),
        ({"saturate": True}, "takes no exhaustive, subnormals, saturate or nan"),
        ({"nan": "quiet"}, "takes no exhaustive"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(HANDS["toward_zero"], **options)
