"""Claims on the formats: beside what NumPy and ml_dtypes say of theirs, and with formats of which they are not true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab.experiments.claims import formats
from precision_lab.experiments.claims.claim import Arithmetic, Outcome, Verdict
from precision_lab.experiments.claims.experiment import CLAIMS
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.rounding import Array

HOLDS, ONLY_IF, FAILS = Outcome.HOLDS, Outcome.ONLY_IF, Outcome.FAILS
BF16: Any = ml_dtypes.finfo(ml_dtypes.bfloat16)  # type: ignore[no-untyped-call]


def finite_fp16() -> Array:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    return values[np.isfinite(values)]


def finite_bf16() -> Array:
    values = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    return values[np.isfinite(values)].astype(np.float64)


def verdict(key: str, arithmetic: Arithmetic | None = None) -> Verdict:
    return CLAIMS[key].check(arithmetic or Arithmetic())


def test_the_bits_are_those_that_numpy_and_ml_dtypes_know() -> None:
    found = verdict("bit-counts")
    for name, info in (
        ("fp32", np.finfo(np.float32)),
        ("fp16", np.finfo(np.float16)),
        ("bf16", BF16),
    ):
        assert [found.evidence[f"{name}_{part}"] for part in "sem"] == [1, info.nexp, info.nmant]
    assert found.outcome is HOLDS
    assert found.reason.startswith("fp32 1 + 8 + 23, fp16 1 + 5 + 10, bf16 1 + 8 + 7, ")


@pytest.mark.parametrize("name", ["fp8_e5m2", "e6m9", "fp16", "tf32"])
def test_bits_are_counted_in_codes(name: str) -> None:
    fmt = get_format(name)
    assert formats._fields(fmt) == (1, fmt.exponent_bits, fmt.mantissa_bits)


def test_other_bits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_fields", lambda _: (1, 5, 10))
    assert verdict("bit-counts").outcome is FAILS


def test_the_formula_is_that_of_normal_numbers() -> None:
    found = verdict("value-formula")
    finite = finite_fp16()
    assert found.outcome is ONLY_IF
    assert found.evidence["count"] == finite.size == 63_488
    assert found.evidence["other"] == np.count_nonzero(np.abs(finite) < np.finfo(np.float16).smallest_normal) == 2048
    assert found.evidence["least"] == 2.0**-15
    assert verdict("value-formula", Arithmetic(subnormals=False)).evidence["other"] == 2048  # zeros, all of them


def test_where_all_is_as_the_formula_says_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_the_formula(codes: np.ndarray, _fmt: FloatFormat) -> np.ndarray:
        field, fraction = codes >> 10 & 31, codes & 1023
        values = np.where(codes >> 15, -1.0, 1.0) * (1 + fraction / 1024.0) * np.exp2(field.astype(float) - 15)
        return np.where(field == 31, np.inf, values)

    def kept(_self: Arithmetic, x: np.ndarray, _fmt: FloatFormat) -> np.ndarray:
        return x

    monkeypatch.setattr(formats, "decode", by_the_formula)
    monkeypatch.setattr(Arithmetic, "round", kept)
    assert verdict("value-formula").outcome is HOLDS
    monkeypatch.setattr(formats, "decode", lambda codes, fmt: 2 * by_the_formula(codes, fmt))
    assert verdict("value-formula").outcome is FAILS  # of normal numbers, too


def test_the_smallest_numbers() -> None:
    normal, least = verdict("fp16-smallest-normal"), verdict("fp16-smallest")
    assert (normal.outcome, least.outcome) == (HOLDS, HOLDS)
    assert normal.evidence == {
        "fp16": float(np.finfo(np.float16).smallest_normal),
        "bf16": float(BF16.smallest_normal),
    }
    positive = finite_fp16()[finite_fp16() > 0]
    assert least.evidence == {"count": positive.size, "least": positive.min()}
    assert verdict("fp16-smallest", Arithmetic(subnormals=False)).outcome is FAILS


def test_binades_of_bf16() -> None:
    found = verdict("bf16-exponent-range")
    magnitudes = np.abs(finite_bf16())
    powers, normal = np.frexp(magnitudes)[0] == 0.5, magnitudes >= np.finfo(np.float32).smallest_normal
    assert found.outcome is HOLDS
    assert found.evidence["binades"] == np.count_nonzero(powers & normal) / 2
    assert found.evidence["top"] == 2.0 ** np.finfo(np.float32).maxexp / 2


def test_where_bf16_is_the_finer_one() -> None:
    found = verdict("bf16-coarser")
    assert found.outcome is HOLDS
    assert found.evidence["times"] == 2 ** (np.finfo(np.float16).nmant - BF16.nmant)
    finer = found.evidence["finer"]
    assert isinstance(finer, float)
    above = float(np.nextafter(np.float16(finer), np.float16(1)))
    assert above == 2.0**-17
    for x, less in ((finer, True), (above, False)):
        of_bf16 = BF16.eps * np.exp2(np.floor(np.log2(x)))
        assert bool(of_bf16 < np.spacing(np.float16(x))) is less


@pytest.mark.parametrize("key", ["bf16-exponent-range", "bf16-coarser", "fp16-smallest-normal"])
def test_of_another_format_they_are_not_true(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_BF16", get_format("fp16"))
    assert verdict(key).outcome is FAILS


def test_fp32_and_not_bf16_has_the_digits_that_are_claimed() -> None:
    fp32, bf16 = verdict("fp32-digits"), verdict("bf16-digits")
    assert (fp32.outcome, bf16.outcome) == (HOLDS, FAILS)
    assert fp32.evidence["mean"] == pytest.approx(24 * np.log10(2), rel=1e-12)
    assert (fp32.evidence["always"], bf16.evidence["always"]) == (6, 2)  # FLT_DIG; of p = 8 floor(7 log10 2)
    texts = [f"{n / 1e6:.6f}e{power:+03}" for n in range(10**6, 10**7, 9973) for power in (-20, -7, 3, 11)]
    back = np.mean([f"{np.float32(text):.6e}" == text for text in texts])
    assert fp32.evidence["back"] == pytest.approx(back, abs=0.003)
    assert 0.99 < back < 1


def claimed_digits(claimed: int) -> Callable[[Arithmetic], Verdict]:
    return lambda arithmetic: formats._digits(arithmetic, "fp16", claimed)


def test_digits_of_fp16() -> None:
    assert [claimed_digits(n)(Arithmetic()).outcome for n in (2, 3, 4)] == [FAILS, HOLDS, FAILS]
