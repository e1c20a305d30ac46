"""That the hard inputs are the hard ones: what must be among them, for each source and target, in exact arithmetic.

Nothing of the numerics is used here: fields, values and neighbours are worked out with integers and fractions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
from precision_lab.testing.casts import check_cast
from precision_lab.testing.hard_inputs import all_patterns, get_source, hard_patterns, is_narrow, special_patterns

CUSTOM = ("e6m9", "e5m0", "e2m1_ieee")
SOURCES = ("float64", *FORMATS, *CUSTOM)
TARGETS = (*FORMATS, "e6m9", "e5m0")
WIDE = ("float64", "fp32")  # their patterns are too many: the carriers of all others


UNITS = 1200  # numbers are integers in units of 2^-1200: exact, below all that is asked for


@dataclass(frozen=True)
class Layout:
    """Patterns without sign, by the definition: fields of an exponent and of a fraction."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: str

    @property
    def sign(self) -> int:
        """The bit of the sign; so many patterns are without it."""
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @property
    def top(self) -> int:
        """The largest finite one."""
        infinity = (2**self.exponent_bits - 1) << self.mantissa_bits
        return infinity - 1 if self.specials == "ieee" else self.sign - (2 if self.specials == "fn" else 1)

    def value(self, pattern: int) -> int:
        """Of a pattern, or of one that would follow the last."""
        field, fraction = divmod(pattern, 1 << self.mantissa_bits)
        significand: int = fraction + ((1 << self.mantissa_bits) if field else 0)
        return significand << (max(field, 1) - self.bias - self.mantissa_bits + UNITS)

    def at_most(self, x: int) -> int:
        """The pattern of the largest finite value that is not above x."""
        exponent = max(x.bit_length() - 1 - UNITS, 1 - self.bias)
        significand = x >> (exponent - self.mantissa_bits + UNITS)  # with the leading bit, where it is a normal number
        return min(significand + ((exponent + self.bias - 1) << self.mantissa_bits), self.top)


def exactly(x: float) -> int:
    found = Fraction(x) * 2**UNITS
    assert found.denominator == 1
    return int(found.numerator)


def layout(name: str) -> Layout:
    if name == "float64":
        return Layout(11, 52, 1023, "ieee")
    fmt = get_format(name)
    return Layout(fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.specials)


def around(points: Iterable[int], source: Layout) -> NDArray[np.uint64]:
    """The points as the source has them, those before and those after; if it has them not, those on both sides."""
    at, one = np.fromiter(map(source.at_most, points), np.uint64), np.uint64(1)
    return np.concatenate([np.maximum(at, one) - one, at, np.minimum(at + one, np.uint64(source.top))])


def with_both_signs(patterns: set[int], source: Layout) -> set[int]:
    return patterns | {pattern | source.sign for pattern in patterns}


def decided_at(codes: set[int], target: Layout) -> Iterable[int]:
    """Values and midpoints, and halfway between the two; above the largest value, too, where overflow is decided."""
    for code in codes:
        if code <= target.top:
            low, high = target.value(code), target.value(code + 1)
            yield from (low + quarter * (high - low) // 4 for quarter in range(4))


def ends_of_binades(of: Layout) -> set[int]:
    """The first two and the last value of each binade, one inside, and the largest of all."""
    last = 2**of.mantissa_bits - 1
    fields = range(0, of.sign, 2**of.mantissa_bits)
    return {field | part for field in fields for part in {0, min(1, last), (last + 1) // 3, last}} | {of.top}


class Hard:
    """The hard inputs of a pair, those that are always tried and the others; sorted."""

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target, self.of, self.to = source, target, layout(source), layout(target)
        self.first, self.rest = map(np.sort, hard_patterns(get_source(source), get_format(target), 0))

    def lacks(self, needed: Iterable[int] | NDArray[np.uint64], *, rest: bool = False) -> list[str]:
        """Which patterns are not there, with one sign or the other."""
        wanted = np.array(needed if isinstance(needed, np.ndarray) else sorted(needed), self.first.dtype)
        wanted = np.concatenate([wanted, wanted | self.first.dtype.type(self.of.sign)])
        for there in (self.first, self.rest)[: 1 + rest]:
            wanted = wanted[there[np.searchsorted(there, wanted).clip(max=there.size - 1)] != wanted]
        return list(map(hex, wanted.tolist()))


def where_a_rounding_is_decided(pair: Hard) -> None:
    """Values and midpoints of each binade and at its ends, overflow's and underflow's among them, and what is next."""
    assert not pair.lacks(around(decided_at(ends_of_binades(pair.to), pair.to), pair.of))


def the_ends_of_the_source(pair: Hard) -> None:
    """Where its own binades begin and end, and its subnormals of one bit or of ones only."""
    of = pair.of
    last = 2**of.mantissa_bits - 1
    fields = range(0, (2**of.exponent_bits - 1) << of.mantissa_bits, 2**of.mantissa_bits)
    needed = {field | part for field in fields for part in (0, last)}
    assert not pair.lacks(needed | {2**bit - less for bit in range(of.mantissa_bits) for less in (0, 1)})


def specials_are_always_tried(pair: Hard) -> None:
    assert np.isin(special_patterns(get_source(pair.source)), pair.first).all()


def each_once_and_all_of_a_narrow_source(pair: Hard) -> None:
    assert np.all(pair.first[1:] > pair.first[:-1])
    assert np.all(pair.rest[1:] > pair.rest[:-1])
    assert is_narrow(get_source(pair.source)) == (pair.source not in WIDE)
    if pair.source not in WIDE:
        assert np.array_equal(pair.rest, np.arange(2 * pair.of.sign))


def thresholds_by_name(pair: Hard) -> None:
    """As the format itself calls them; the last one that the source has below, the threshold, the first above."""
    fmt, of = get_format(pair.target), pair.of
    ends = (fmt.smallest_subnormal, fmt.smallest_normal, fmt.max)
    for x in (*ends, fmt.flush_threshold, fmt.subnormal_threshold, fmt.overflow_threshold):
        assert not pair.lacks(around([exactly(x)], of))
        if x in ends or (of.mantissa_bits > fmt.mantissa_bits and x > 2.0**-120):
            assert of.value(of.at_most(exactly(x))) == exactly(x)  # a number of the source


@pytest.mark.parametrize("source", SOURCES)
def test_specials(source: str) -> None:
    """Both zeros and infinities; NaN with each bit of the payload alone, with all, with all but the quiet bit."""
    of = layout(source)
    bits, last = of.mantissa_bits, 2**of.mantissa_bits - 1
    infinity = (2**of.exponent_bits - 1) << bits
    if of.specials == "ieee":
        quiet = 2 ** (bits - 1) if bits else 0
        found = {0, infinity, *(infinity | 2**bit for bit in range(bits))}
        found |= {infinity | last, infinity | quiet | min(last, 1), infinity | (last - quiet)}
    else:
        found = {0, of.sign - 1} if of.specials == "fn" else {0}
    patterns = special_patterns(get_source(source))
    assert patterns.dtype == get_source(source).pattern_dtype
    assert patterns.tolist() == sorted(with_both_signs(found, of))


def test_specials_are_what_they_are_called() -> None:
    for name in SOURCES:
        source = get_source(name)
        values = source.values(special_patterns(source))
        assert np.all((values == 0) | ~np.isfinite(values))
        assert np.count_nonzero(values == 0) == (1 if layout(name).specials == "fnuz" else 2)
        assert np.isnan(values).any() == (source.format is None or source.format.has_nan)


def rounded(x: int, bits: int) -> int:
    """To a significand of so many bits, ties to even, whatever the exponent."""
    unit = 1 << (x.bit_length() - bits)
    return round(Fraction(x, unit)) * unit


def what_a_width_between_hides(pair: Hard) -> None:
    """Beside each midpoint, on both sides, an input that is rounded to it through fp16 or tf32, float32, or 38 bits."""
    of, to = pair.of, pair.to
    widths = [width for width in (11, 24, 38) if to.mantissa_bits + 1 < width <= of.mantissa_bits]
    first = set(pair.first.tolist())
    for code in ends_of_binades(to):
        midpoint = (to.value(code) + to.value(code + 1)) // 2
        if code <= to.top and of.value(2**of.mantissa_bits) <= midpoint <= of.value(of.top) // 2:
            for width in widths:
                for sign in (1, -1):
                    pattern = of.at_most(midpoint + sign * (midpoint >> (width + 2)))
                    beside = {pattern, pattern + 1} & first  # where it falls between two, either
                    assert beside
                    for x in map(of.value, beside):
                        assert (x - midpoint) * sign > 0
                        assert rounded(x, width) == midpoint


def every_distance_from_where_it_is_decided(pair: Hard) -> None:
    """In eight binades, or all but the last: 2^-k above and below a value and a midpoint, for each k of the source."""
    of, to, first = pair.of, pair.to, set(pair.first.tolist())

    def complete(code: int) -> bool:
        points = to.value(code), (to.value(code) + to.value(code + 1)) // 2
        widths = range(to.mantissa_bits + 1, of.mantissa_bits + 1)
        beside = [of.at_most(x + sign * (x >> k)) for x in points for k in widths for sign in (1, -1)]
        return all({pattern, pattern + 1} & first for pattern in beside)  # where it falls between two

    binades = range(1 << to.mantissa_bits, to.top - 1, 1 << to.mantissa_bits)
    assert sum(map(complete, binades)) >= min(8, len(binades) - 1)


def all_values_of_a_target_of_16_bits_and_more_of_wider_ones(pair: Hard) -> None:
    """Of wider ones those with a fraction of one bit, one less and one more, in each binade."""
    to = pair.to
    if 2 * to.sign <= 2**16:
        codes = set(range(to.sign))
    else:
        fractions = {2**bit + by for bit in range(to.mantissa_bits) for by in (-1, 0, 1)}
        codes = {field | part for field in range(0, to.sign, 2**to.mantissa_bits) for part in fractions}
    assert not pair.lacks(around(decided_at(codes, to), pair.of), rest=True)


ALWAYS = (where_a_rounding_is_decided, the_ends_of_the_source, specials_are_always_tried,
          each_once_and_all_of_a_narrow_source)  # fmt: skip
FROM_CARRIERS = (thresholds_by_name, what_a_width_between_hides, every_distance_from_where_it_is_decided,
                 all_values_of_a_target_of_16_bits_and_more_of_wider_ones)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_what_must_be_among_them(source: str, target: str) -> None:
    pair = Hard(source, target)
    for check in (*ALWAYS, *(FROM_CARRIERS if source in WIDE else ())):
        check(pair)


def test_narrow_is_up_to_20_bits() -> None:
    assert [is_narrow(get_source(name)) for name in ("e8m10", "e8m11", "e8m12")] == [True, True, False]
    source = get_source("e8m11")
    assert all_patterns(source).dtype == np.uint32
    assert all_patterns(source).tolist() == list(range(2**20))


def exponents(array: NDArray[Any], of: Layout, sign: int) -> NDArray[np.int64]:
    """How many of them have each exponent field, of those whose last 20 bits are neither few nor many."""
    array = array.astype(np.uint64)
    array = array[(array >> np.uint64(of.exponent_bits + of.mantissa_bits)) == sign]
    ones = np.bitwise_count(array & np.uint64(2**20 - 1))
    fields = (array[(ones > 5) & (ones < 15)] & np.uint64(of.sign - 1)) >> np.uint64(of.mantissa_bits)
    return np.bincount(fields.astype(np.int64), minlength=2**of.exponent_bits)


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize(("source", "target"), [("float64", "fp32"), ("float64", "fp16"), ("fp32", "bf16")])
def test_inputs_by_chance_in_every_binade(source: str, target: str, sign: int) -> None:
    """Of all patterns, whatever the target; and most in the target's own range, subnormals included."""
    hard = Hard(source, target)
    of, to = hard.of, hard.to
    counts = exponents(hard.rest, of, sign)
    every = 2**17 / 2**of.exponent_bits
    assert counts.min() > every / 2
    low = max(of.bias - to.bias + 1, 0)
    own = counts[low : low + 2**to.exponent_bits - 2]
    assert own.min() > every / 2 + 0.5 * 2**18 / 2**to.exponent_bits
    below = counts[max(low - to.mantissa_bits, 0) : low]
    assert below.sum() > every / 2 * below.size + (0.5 * 2**18 / 2**to.exponent_bits if below.size else 0)


def test_the_seed_changes_what_is_by_chance_and_the_order_alone() -> None:
    source, target = get_source("float64"), get_format("bf16")
    (first, rest), (other_first, other_rest) = (hard_patterns(source, target, seed) for seed in (0, 1))
    assert np.array_equal(np.sort(first), np.sort(other_first))
    assert not np.array_equal(first, other_first)
    assert not np.array_equal(np.sort(rest), np.sort(other_rest))
    assert not np.all(first[1:] >= first[:-1])  # what is alike does not stand together
    again, _ = hard_patterns.__wrapped__(source, target, 0)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_says_what_it_is(source: str) -> None:
    found, of = get_source(source), layout(source)
    assert (found.exponent_bits, found.mantissa_bits, 1 << (found.bits - 1)) == (
        of.exponent_bits,
        of.mantissa_bits,
        of.sign,
    )
    assert exactly(found.smallest_normal) == of.value(2**of.mantissa_bits)
    assert found.dtype == np.dtype(np.float64) if source == "float64" else found.dtype.itemsize <= 4
    patterns = np.array([0, 1, of.top // 2, of.top], found.pattern_dtype)
    values = [exactly(x) for x in found.values(patterns).tolist()]
    assert values == [of.value(int(pattern)) for pattern in patterns]
    assert found.patterns(found.values(patterns)).tolist() == patterns.tolist()
    between = found.values(patterns[2:3]) * (1 + 2.0**-40)
    assert found.patterns(between).tolist() == [of.at_most(exactly(float(between[0])))]  # toward zero


@pytest.mark.parametrize("name", ["fp64", "f64", "double", "binary64", float, np.float64, np.dtype(np.float64)])
def test_names_of_float64(name: FormatLike) -> None:
    assert get_source(name) == get_source("float64")


def test_a_source_without_mantissa_bits_can_be_checked() -> None:
    """It has an infinity and no NaN; the list of its payloads was once none."""
    fmt: FloatFormat = get_format("e5m0")
    report = check_cast(lambda x: x.astype(np.float16), fmt, "fp16", isolate=False)
    assert report.ok, str(report)


@pytest.mark.parametrize(("target", "source_bits"), [("fp32", 29), ("tf32", 42)])
def test_some_values_by_chance_in_every_binade_of_a_wide_target(target: str, source_bits: int) -> None:
    """Fractions that are nothing special, to the last bit of the target, with all that is around them."""
    hard, to = Hard("float64", target), layout(target)
    exact = hard.rest[(hard.rest & np.uint64(2**source_bits - 1)) == 0] >> np.uint64(source_bits)
    ones = np.bitwise_count(exact & np.uint64(2**to.mantissa_bits - 1))
    fields = (exact >> np.uint64(to.mantissa_bits)).astype(np.int64)[(ones > 3) & (ones < to.mantissa_bits - 3)]
    counts = np.bincount(fields, minlength=2**11)[1023 - 126 : 1023 + 128]
    assert counts.min() >= 4
