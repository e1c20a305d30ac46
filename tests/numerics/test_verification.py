"""The check that users run on their own machine: it passes here, and it finds every bug that is planted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from precision_lab.numerics import codes, modes, reference, rounding, verification
from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.verification import (
    Patterns,
    Verification,
    all_patterns,
    differing_patterns,
    hard_patterns,
    verify_against_ml_dtypes,
    verify_against_reference,
)
from tests.numerics.helpers import REGISTERED, UP_TO_8_BITS, WITH_DTYPE, Array, finite_values

Rounding = Callable[[Array, FloatFormat], Array]
NARROW = tuple(f for f in WITH_DTYPE if f.bits <= 16)


@pytest.fixture(autouse=True, scope="module")
def _exact_answers_are_kept() -> Iterator[None]:
    """The reference is asked the same again and again: in every mode, in both carriers, for every bug."""
    round_to, candidates = reference.round_to, lru_cache(2**13)(reference.candidates)

    @lru_cache(2**17)
    def kept(x: float, _sign: float, fmt: FloatFormat, mode: str, options: tuple[Any, ...]) -> float:
        subnormals, saturate, uniform = options
        return round_to(x, fmt, mode, subnormals=subnormals, saturate=saturate, uniform=uniform)

    def rounded(x: float, fmt: FloatFormat, mode: str, *, subnormals: bool, saturate: bool, uniform: Any) -> float:
        return kept(x, math.copysign(1, x), fmt, mode, (subnormals, saturate, uniform))  # 0.0 and -0.0 are equal

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "candidates", candidates)
        patch.setattr(reference, "round_to", rounded)
        yield


# ---- the patterns ----


@pytest.fixture(scope="module")
def hard() -> Patterns:
    return hard_patterns()


def holds(hard: Patterns, patterns: Array) -> bool:
    places = np.minimum(np.searchsorted(hard, patterns), hard.size - 1)
    return bool((hard[places] == patterns).all())


@pytest.mark.parametrize("fmt", [f for f in REGISTERED if f.bits <= 16], ids=str)
def test_hard_patterns_hold_all_codes_ties_and_neighbours(fmt: FloatFormat, hard: Patterns) -> None:
    values = finite_values(fmt)
    middles = (values[:-1] + values[1:]) / 2
    beyond = np.array([fmt.overflow_threshold])
    # what float32 cannot hold (below bf16's smallest subnormals it can) is not asked for
    wanted = np.concatenate([values, middles, beyond]).astype(np.float32)
    assert (wanted.astype(np.float64) == np.concatenate([values, middles, beyond])).all()
    wanted = np.concatenate([wanted, np.nextafter(wanted, np.float32(np.inf)), np.nextafter(wanted[1:], np.float32(0))])
    bits = np.concatenate([wanted, -wanted]).view(np.uint32)
    assert holds(hard, bits)


def test_hard_patterns_hold_the_specials(hard: Patterns) -> None:
    assert hard.dtype == np.uint32
    assert (hard[1:] > hard[:-1]).all()  # none twice, and `holds` may search
    wanted = [0, 1, 0x80000000, 0x80000001, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]
    assert holds(hard, np.array([*wanted, *(p ^ 0x80000000 for p in wanted)], np.uint32))
    assert not holds(hard, np.array([0x3F801234], np.uint32))


def test_all_patterns_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = itertools.islice(all_patterns(), 2)
    assert first.dtype == second.dtype == np.uint32
    assert (np.diff(np.concatenate([first, second])) == 1).all()
    # the rest without making it: chunk after chunk up to 2^32
    bounds = SimpleNamespace(arange=lambda start, stop, dtype: (start, stop), uint32=np.uint32)
    monkeypatch.setattr(verification, "np", bounds)
    chunks: list[Any] = list(all_patterns())
    assert chunks[0][0] == 0
    assert chunks[-1][1] == 2**32
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chunks))


# ---- it passes ----


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
def test_ml_dtypes_agrees(fmt: FloatFormat, hard: Patterns) -> None:
    assert verify_against_ml_dtypes(fmt) == Verification(fmt, "ml_dtypes", hard.size, 0)


@pytest.mark.parametrize("fmt", REGISTERED, ids=str)
def test_the_reference_agrees(fmt: FloatFormat) -> None:
    found = verify_against_reference(fmt)
    assert (found.format, found.against, found.mismatches, found.examples) == (fmt, "reference", 0, ())
    # a dozen points a code, two carriers, seven modes, two switches
    assert found.checked > 2 ** min(fmt.bits, 8) * 90


@pytest.mark.parametrize("name", ["e2m0", "e2m1_ieee", "e4m1", "e8m0_ieee", "e6m9", "e4m23", "e8m22"])
def test_the_reference_agrees_on_custom_formats(name: str) -> None:
    found = verify_against_reference(name, seed=3)
    assert (str(found.format), found.mismatches) == (name, 0)
    assert found.checked > 500


@pytest.mark.parametrize(
    "fmt",
    [
        FloatFormat("fn_wide", 4, 4, 7, "fn"),
        FloatFormat("fnuz_without_fraction", 4, 0, 8, "fnuz"),
        FloatFormat("finite_without_fraction", 3, 0, 3, "finite"),
        FloatFormat("shifted_up", 4, 2, 40),
        FloatFormat("shifted_down", 4, 2, -1),
    ],
    ids=str,
)
def test_the_reference_agrees_on_other_kinds(fmt: FloatFormat) -> None:
    assert verify_against_reference(fmt).mismatches == 0


def test_seeds_choose_other_samples() -> None:
    one, same, other = (verify_against_reference("fp16", seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.mismatches == other.mismatches == 0


def test_a_format_by_any_name() -> None:
    assert verify_against_ml_dtypes("half").format is FORMATS["fp16"]
    assert verify_against_reference(np.dtype("float4_e2m1fn")).format is FORMATS["fp4_e2m1fn"]


@pytest.mark.parametrize("fmt", ["tf32", "e6m9", FloatFormat.ieee(3, 4, "mine")], ids=str)
def test_without_a_dtype_there_is_nothing_to_compare(fmt: FormatLike) -> None:
    with pytest.raises(ValueError, match="no NumPy or ml_dtypes dtype to compare with") as caught:
        verify_against_ml_dtypes(fmt)
    assert str(caught.value).isprintable()


def test_progress(hard: Patterns) -> None:
    seen: list[tuple[int, int]] = []
    verify_against_ml_dtypes("bf16", progress=lambda done, of: seen.append((done, of)))
    steps = [done for done, _ in seen]
    assert {of for _, of in seen} == {hard.size}
    assert steps == sorted(set(steps))
    assert len(steps) > 1
    assert steps[-1] == hard.size


def test_progress_beside_the_reference() -> None:
    seen: list[tuple[int, int]] = []
    verify_against_reference("fp4_e2m1fn", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]
    assert len(seen) == 4 * len(modes.RoundingMode)


def test_exhaustive_takes_all_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    def few() -> Any:
        yield np.arange(5, dtype=np.uint32)
        yield np.arange(100, 107, dtype=np.uint32)

    monkeypatch.setattr(verification, "all_patterns", few)
    seen: list[tuple[int, int]] = []
    found = verify_against_ml_dtypes("bf16", exhaustive=True, progress=lambda *step: seen.append(step))
    assert seen == [(5, 2**32), (12, 2**32)]
    assert (found.checked, found.mismatches) == (12, 0)


@pytest.mark.parametrize("name", ["bf16", "fp16", "tf32", "fp8_e4m3fn", "e6m9"])
def test_what_is_tried_beside_the_reference(name: str) -> None:
    """Around zero, the smallest normal and the end of the range: values, ties, and the doubles beside both."""
    fmt = get_format(name)
    codes, smallest_normal = 2 ** (fmt.bits - 1), 2**fmt.mantissa_bits
    chosen = {*range(16), *range(codes - 128, codes), *range(smallest_normal - 8, smallest_normal + 8)}
    values = {code: x for code in chosen if math.isfinite(x := reference.decode(code, fmt))}
    ties = [(x + values[code + 1]) / 2 for code, x in values.items() if code + 1 in values]
    beyond = [fmt.max, fmt.overflow_threshold, 2 * fmt.max, 4 * fmt.max, fmt.flush_threshold]
    centres = [*values.values(), *ties, *beyond]
    wanted = {*centres, *(math.nextafter(x, to) for x in centres for to in (0, math.inf))}
    assert wanted <= set(verification._points(fmt, 0).tolist())


# ---- it finds what is planted ----

right = rounding.round_to  # before anything is planted


def quantum(x: Array, fmt: FloatFormat) -> Array:
    """The spacing at x by the definition, in float64."""
    _, exponent = np.frexp(np.where(x == 0, 1, x))
    floor = np.where(x == 0, fmt.emin, np.maximum(exponent - 1, fmt.emin))
    spacing: Array = np.ldexp(1.0, floor - fmt.mantissa_bits)
    return spacing


def truncation(x: Array, fmt: FloatFormat) -> Array:
    return right(x, fmt, "toward_zero")


def ties_away(x: Array, fmt: FloatFormat) -> Array:
    return right(x, fmt, "ties_to_away")


def flushed_subnormals(x: Array, fmt: FloatFormat) -> Array:
    return right(x, fmt, subnormals=False)


def lost_sign_of_zero(x: Array, fmt: FloatFormat) -> Array:
    rounded = right(x, fmt)
    return np.where(rounded == 0, rounded.dtype.type(0), rounded)


def nan_becomes_infinity(x: Array, fmt: FloatFormat) -> Array:
    return np.where(np.isnan(x), x.dtype.type(np.inf), right(x, fmt))


def nan_loses_its_sign(x: Array, fmt: FloatFormat) -> Array:
    rounded = right(x, fmt)
    return np.where(np.isnan(rounded), np.abs(rounded), rounded)


def saturated(x: Array, fmt: FloatFormat) -> Array:
    return right(x, fmt, saturate=True)


def rounded_twice(x: Array, fmt: FloatFormat) -> Array:
    """Through a format with the same exponents and two bits more."""
    return right(right(x, FloatFormat("between", fmt.exponent_bits, fmt.mantissa_bits + 2, fmt.bias)), fmt)


def one_binade_off_by_one(x: Array, fmt: FloatFormat) -> Array:
    """Right but for the topmost binade."""
    rounded = right(x, fmt)
    with np.errstate(invalid="ignore"):
        top = (np.abs(rounded) >= 2.0**fmt.emax) & (np.abs(rounded) < fmt.max)
    return np.where(top, rounded + np.copysign(quantum(rounded, fmt), rounded), rounded).astype(x.dtype)


def one_code_wrong(x: Array, fmt: FloatFormat) -> Array:
    """One negative value alone."""
    rounded = right(x, fmt)
    return np.where(rounded == -1.5, rounded.dtype.type(-1), rounded)


def zero_becomes_one(x: Array, fmt: FloatFormat) -> Array:
    return np.where(x == 0, x.dtype.type(1), right(x, fmt))


# for everybody; where there is an infinity or NaN to lose; where zeros have signs
EVERYWHERE: list[Rounding] = [truncation, ties_away, flushed_subnormals, one_binade_off_by_one, zero_becomes_one]
EVERYWHERE += [rounded_twice]
BUGS: list[tuple[Rounding, FloatFormat]] = [
    *((bug, f) for f in NARROW for bug in EVERYWHERE),
    *((saturated, f) for f in NARROW if not f.saturates),
    *((nan_becomes_infinity, f) for f in NARROW if f.has_infinity),
    *((nan_loses_its_sign, f) for f in NARROW if f.has_nan and f.specials != "fnuz"),
    *((lost_sign_of_zero, f) for f in NARROW if f.has_negative_zero),
    *((one_code_wrong, f) for f in NARROW),
    (lost_sign_of_zero, FORMATS["fp32"]),
    (flushed_subnormals, FORMATS["fp32"]),
    (nan_becomes_infinity, FORMATS["fp32"]),
]
named = pytest.mark.parametrize(("bug", "fmt"), BUGS, ids=lambda v: getattr(v, "__name__", str(v)))


def codes_of(broken: Rounding) -> Callable[[Array, FloatFormat], Array]:
    """A cast that rounds by `broken`."""
    return lambda x, fmt: codes.cast(broken(np.asarray(x), fmt), fmt)


def values_of(broken: Rounding) -> Callable[..., Array]:
    """A round_to that is broken for ties_to_even alone, the other modes and switches right."""

    def round_to(x: Array, fmt: FloatFormat, mode: str = "ties_to_even", **options: Any) -> Array:
        usual = mode == "ties_to_even" and options.get("subnormals", True) and not options.get("saturate", False)
        return broken(x, fmt) if usual else right(x, fmt, mode, **options)

    return round_to


def assert_found(found: Verification) -> None:
    assert found.mismatches > 0
    assert 1 <= len(found.examples) <= 3
    assert all("got" in example and "expected" in example and example.isprintable() for example in found.examples)


@pytest.fixture(scope="module")
def some(hard: Patterns) -> Patterns:
    """Every 21st of the hard patterns, the specials and -1.5: enough for these bugs, and quicker."""
    return np.concatenate([hard[::21], np.array([0, 0x80000000, 0x7FC00000, 0xFFC00000, 0xBFC00000], np.uint32)])


@named
def test_a_broken_cast_is_found(
    bug: Rounding, fmt: FloatFormat, some: Patterns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "cast", codes_of(bug))
    wrong = differing_patterns(fmt, some)
    assert wrong.size > 0
    x = wrong[:200].view(np.float32)
    assert not (bug(x, fmt).view(np.uint32) == right(x, fmt).view(np.uint32)).any()  # and nothing else is accused


@named
def test_a_broken_rounding_is_found(
    bug: Rounding, fmt: FloatFormat, some: Patterns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "round_to", values_of(bug))
    assert differing_patterns(fmt, some).size > 0


@pytest.mark.parametrize("bug", [truncation, ties_away, lost_sign_of_zero, rounded_twice, one_binade_off_by_one])
@pytest.mark.parametrize("name", ["cast", "round_to"])
def test_the_report_counts_and_shows_them(bug: Rounding, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, name, codes_of(bug) if name == "cast" else values_of(bug))
    found = verify_against_ml_dtypes("bf16")
    assert_found(found)
    assert found.checked == hard_patterns().size
    assert found.mismatches < found.checked
    pattern = int(found.examples[0].split()[0], 16)
    assert differing_patterns(found.format, np.array([pattern], np.uint32)).size == 1


def test_bf16_through_tf32_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def through_tf32(x: Array, fmt: FloatFormat) -> Array:
        return right(right(x, "tf32"), fmt)

    monkeypatch.setattr(verification, "cast", codes_of(through_tf32))
    assert_found(verify_against_ml_dtypes("bf16"))


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e5m2", "fp8_e3m4", "fp6_e2m3fn"])
def test_fp8_through_fp16_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def through_fp16(x: Array, fmt: FloatFormat) -> Array:
        return right(right(x, "fp16"), fmt)

    monkeypatch.setattr(verification, "cast", codes_of(through_fp16))
    assert_found(verify_against_ml_dtypes(name))


def test_one_wrong_pattern_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_at_one(x: Array, fmt: FloatFormat) -> Array:
        return np.where(x.view(np.uint32) == 0x3F810001, np.float32(1), right(x, fmt))

    monkeypatch.setattr(verification, "cast", codes_of(wrong_at_one))
    found = verify_against_ml_dtypes("bf16")
    assert found.mismatches == 1
    assert len(found.examples) == 1
    assert found.examples[0].startswith("0x3f810001 (1.0078126): got 1")


def test_payloads_of_nan_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_payload(x: Array, fmt: FloatFormat) -> Array:
        encoded = codes.encode(x, fmt)
        changed = np.where(np.isnan(x), encoded | 0x7F, encoded).astype(np.uint16)
        assert (changed != encoded).any()
        return changed.view(np.dtype("bfloat16"))

    monkeypatch.setattr(verification, "cast", other_payload)
    assert verify_against_ml_dtypes("bf16").mismatches == 0


@pytest.mark.parametrize("fmt", [f for f in UP_TO_8_BITS if f.bits <= 6] + [FloatFormat.ieee(3, 2)], ids=str)
@pytest.mark.parametrize("bug", EVERYWHERE, ids=lambda bug: bug.__name__)
def test_the_reference_finds_a_broken_rounding(
    bug: Rounding, fmt: FloatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "round_to", values_of(bug))
    assert_found(verify_against_reference(fmt))


@pytest.mark.parametrize(
    "bug", [saturated, nan_becomes_infinity, nan_loses_its_sign, lost_sign_of_zero], ids=lambda bug: bug.__name__
)
@pytest.mark.parametrize("name", ["e3m1", "fp8_e5m2"])
def test_the_reference_finds_broken_specials(bug: Rounding, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "round_to", values_of(bug))
    assert_found(verify_against_reference(name))


@pytest.mark.parametrize("name", ["fp4_e2m1fn", "bf16"])
def test_the_reference_finds_a_detour_through_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ml_dtypes rounds doubles that way; float32 input cannot show it."""

    def detour(x: Array, fmt: FloatFormat) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return right(x.astype(np.float32), fmt).astype(x.dtype)

    monkeypatch.setattr(verification, "round_to", values_of(detour))
    found = verify_against_reference(name)
    assert_found(found)
    # each of them is between two float32 numbers
    numbers = [float.fromhex(example.split()[0]) for example in found.examples]
    assert all(float(np.float32(number)) != number for number in numbers)


@pytest.mark.parametrize("mode", [m.value for m in modes.RoundingMode])
@pytest.mark.parametrize("switch", [{}, {"subnormals": False}, {"saturate": True}], ids=str)
def test_the_reference_looks_at_every_mode_and_switch(
    mode: str, switch: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break one mode at a time, and one switch: ignored, or always on."""

    def broken(x: Array, fmt: FloatFormat, asked: str, **options: Any) -> Array:
        if asked != mode:
            return right(x, fmt, asked, **options)
        if not switch:
            return right(x, fmt, "toward_negative" if mode == "toward_zero" else "toward_zero", **options)
        ignored = {name: not value for name, value in switch.items()}
        return right(x, fmt, asked, **(options | ignored))

    monkeypatch.setattr(verification, "round_to", broken)
    # modes that never overflow do not saturate either, but for infinities
    assert_found(verify_against_reference("e3m1"))


def test_the_reference_finds_another_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(x: Array, fmt: FloatFormat, mode: str, rng: int, **options: Any) -> Array:
        return right(x, fmt, mode, rng=(rng, 1), **options)

    monkeypatch.setattr(verification, "round_to", shifted)
    found = verify_against_reference("fp8_e4m3fn")
    assert_found(found)
    assert all("stochastic" in example for example in found.examples)


def test_what_is_planted_is_broken() -> None:
    """The list above is not padded: each bug changes something, and `right` is what it was."""
    x = np.array([0x3F800001, 0x3F808000, 0x3F818000, 1, 0x80000000, 0xFFC00000, 0x7F000000, 0xBFC00000], np.uint32)
    for bug, fmt in BUGS:
        assert bug(x.view(np.float32), fmt).dtype == np.float32
        assert fmt.dtype is not None
    assert vars(verification)["round_to"] is right
