"""Stochastic rounding: the stream, the rounding under given numbers, chunks and threads, exact probabilities."""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab.numerics import kernels, reference
from precision_lab.numerics.codes import cast, encode
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.numerics.modes import RoundingMode
from precision_lab.numerics.plans import plan_of
from precision_lab.numerics.rounding import round_to
from tests.numerics.helpers import CARRIERS, REGISTERED, Array, DType, Oracle, assert_same, hard_values, runs

carriers = pytest.mark.parametrize("dtype", CARRIERS, ids=str)
SEED = 0x9E3779B97F4A7C15
BLOCK = kernels.stochastic.BLOCK  # the stream is made in blocks of so many numbers
ALL_NUMBERS = np.arange(2**16, dtype=np.uint16)
STEP = 2.0**-16

# no registered format has so many fraction bits beside so few exponents
CUSTOM = [
    *(FloatFormat.ieee(e, m) for e, m in ((8, 0), (5, 0), (2, 1), (6, 9), (5, 14), (5, 15), (8, 15), (5, 16), (7, 20))),
    FloatFormat("ieee_small_subnormals", 6, 5, 106, "ieee"),
    FloatFormat("ieee_at_the_top", 3, 2, -1, "ieee"),
    FloatFormat("fnuz_with_exponents_of_float32", 7, 3, 127, "fnuz"),
]


def stream(seed: int, first: int, size: int) -> Array:
    """The numbers of the kernels, seen through a rounding: 1 + p goes up exactly from number 2^16 (1 - p) on.

    Sixteen roundings, one for each bit of the number, as in guessing by halves.
    """
    found = np.zeros(size, np.uint32)
    for bit in reversed(range(16)):
        guess = found + (1 << bit)
        # number >= guess if and only if the position (2^16 - guess)/2^16 goes up
        x = 1 + (2**16 - guess) * STEP
        up = round_to(x, FloatFormat.ieee(2, 0), "stochastic", rng=(seed, first)) == 2
        found = np.where(up, guess, found)
    return found


@lru_cache(maxsize=4)
def numbers_of(seed: int, first: int, size: int) -> Array:
    return np.array([reference.random_number(seed, first + i) for i in range(size)], np.int64)


# --- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", [0, 1, 3, BLOCK - 3, BLOCK, 7 * BLOCK - 1, 2**32 - 5, 2**32 + 2, 2**34 - 700, 2**40 + 11, 2**64 - 2**13]
)
@pytest.mark.parametrize("seed", [0, SEED, 2**64 - 1])
def test_the_stream_is_the_reference(seed: int, first: int) -> None:
    size = 1100 if seed == SEED else 50
    expected = [reference.random_number(seed, first + i) for i in range(size)]
    np.testing.assert_array_equal(stream(seed, first, size), expected)


@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
def test_random_words(high: int) -> None:
    words = np.empty(64, np.uint32)
    low, key = 0xFFFFFFFF - 31, (0x01234567, 0x89ABCDEF)
    kernels.stochastic.random_words(words, np.uint32(low), np.uint32(high), np.uint32(key[0]), np.uint32(key[1]))
    expected = [word for i in range(32) for word in reference.threefry_2x32((low + i, high), key)]
    assert words.tolist() == expected


def test_random_words_of_every_size() -> None:
    key, end = (0x01234567, 0x89ABCDEF), 2**32
    expected = [word for low in range(end - 100, end) for word in reference.threefry_2x32((low, 7), key)]
    for size in range(0, 202, 2):
        words = np.zeros(size + 2, np.uint32)
        low = (end - size // 2) % end
        kernels.stochastic.random_words(words[1:-1], np.uint32(low), np.uint32(7), *map(np.uint32, key))
        assert words.tolist() == [0, *expected[200 - size :], 0]


def test_a_seed_is_short_for_its_beginning() -> None:
    x = np.full(3000, 1.0002)
    assert_same(round_to(x, "fp16", "sr", rng=7), round_to(x, "fp16", "sr", rng=(7, 0)))
    # whatever counts as an integer
    sources: list[Any] = [np.int64(7), (np.uint8(7), np.int32(0))]
    for rng in sources:
        assert_same(round_to(x, "fp16", "sr", rng=rng), round_to(x, "fp16", "sr", rng=7))


# --- the rounding under given numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM], ids=str)
@carriers
def test_every_element_by_the_reference(fmt: FloatFormat, dtype: DType) -> None:
    codes = runs(fmt, 2 ** (fmt.bits - 5)) if fmt.bits > 16 else None
    rng = np.random.default_rng(50)
    hard = hard_values(fmt, dtype, codes)
    exponents = rng.uniform(fmt.emin - fmt.mantissa_bits - 3, min(fmt.emax + 1, 127.9), 400)
    uneven = (rng.choice([-1, 1], 400) * 2.0**exponents).astype(dtype)
    x = np.concatenate([rng.choice(hard[~np.isnan(hard)], 400), uneven, np.array([np.nan, -np.nan] * 3, dtype)])
    first = 2**32 - 300
    numbers = [Fraction(int(n), 2**16) for n in numbers_of(SEED, first, 806)]
    for subnormals, saturate in ((True, False), (False, True)):
        expected = [
            reference.round_to(
                float(v),
                fmt,
                "stochastic",
                subnormals=subnormals,
                saturate=saturate,
                uniform=number,
            )
            for v, number in zip(x, numbers, strict=True)
        ]
        actual = round_to(x, fmt, "stochastic", subnormals=subnormals, saturate=saturate, rng=(SEED, first))
        assert_same(actual, np.array(expected).astype(dtype), x)


def test_signalling_nan_into_fp32() -> None:
    x = np.array([0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(round_to(x, "fp32", "sr", rng=0)).all()


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2fnuz", "fp4_e2m1fn"])
@carriers
def test_hard_values_by_the_tables(name: str, dtype: DType) -> None:
    fmt = FORMATS[name]
    hard = hard_values(fmt, dtype)
    x = np.random.default_rng(51).choice(hard, 20_000)
    oracle = Oracle(x, fmt)
    numbers = numbers_of(SEED, 5, x.size)
    for subnormals in (True, False):
        for saturate in (True, False):
            actual = round_to(x, fmt, "sr", subnormals=subnormals, saturate=saturate, rng=(SEED, 5))
            assert_same(actual, oracle.round("stochastic", subnormals, saturate, numbers), x)


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp4_e2m1fn"])
@carriers
def test_one_element_decides_about_its_block(name: str, dtype: DType) -> None:
    """Each hard value in a block of normal ones, and in one with zeros and subnormals, at every place in turn."""
    fmt = FORMATS[name]
    rng = np.random.default_rng(63)
    hard = hard_values(fmt, dtype)
    hard = np.concatenate([hard[np.isnan(hard)][:4], rng.choice(hard[~np.isnan(hard)], 296)])
    x = (rng.choice([-1, 1], (600, BLOCK)) * 2.0 ** rng.uniform(fmt.emin, min(fmt.emax, 126), (600, BLOCK))).astype(
        dtype
    )
    x[300:, ::5], x[300:, 1::5] = fmt.smallest_subnormal * 0.625, -0.0
    x[np.arange(600), np.arange(600) % BLOCK] = np.tile(hard, 2)
    x = x.reshape(-1)
    oracle, numbers = Oracle(x, fmt), numbers_of(SEED, 0, x.size)
    for subnormals, saturate in itertools.product((True, False), repeat=2):
        expected = oracle.round("stochastic", subnormals, saturate, numbers)
        actual = round_to(x, fmt, "sr", subnormals=subnormals, saturate=saturate, rng=SEED)
        assert_same(actual, expected, x)
        plan = plan_of(fmt, RoundingMode.STOCHASTIC, subnormals, saturate, dtype.itemsize == 8)
        itself = x.copy()
        plan.kernel(itself, itself, plan.constants, numbers.astype(np.uint16))
        assert_same(itself, actual, x)


@pytest.mark.parametrize("fmt", REGISTERED, ids=str)
def test_values_of_the_format_never_move(fmt: FloatFormat) -> None:
    codes = runs(fmt, 2 ** (fmt.bits - 9)) if fmt.bits > 16 else range(2 ** (fmt.bits - 1))
    values = np.array([reference.decode(c, fmt) for c in codes])
    for dtype in CARRIERS:
        x = np.concatenate([values, -values]).astype(dtype)
        assert_same(round_to(x, fmt, "sr", rng=8), round_to(x, fmt, "rtz"), x)


def test_float32_and_float64_agree() -> None:
    x = np.random.default_rng(52).standard_normal(50_000).astype(np.float32)
    x[::3] *= np.float32(2.0**-16)
    for name in ("fp16", "bf16", "tf32", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp6_e3m2fn"):
        narrow = round_to(x, name, "sr", rng=(SEED, 9))
        assert_same(narrow.astype(np.float64), round_to(x.astype(np.float64), name, "sr", rng=(SEED, 9)), x)


def test_all_doors_use_the_same_numbers() -> None:
    x = np.random.default_rng(53).standard_normal(5000)
    expected = round_to(x, "bf16", "sr", rng=(4, 77))
    assert_same(cast(x, "bf16", "sr", rng=(4, 77)).astype(np.float64), expected)
    assert_same((encode(x, "bf16", "sr", rng=(4, 77)).astype(np.uint32) << 16).view(np.float32).astype("f8"), expected)


# --- exact probabilities ---------------------------------------------------------------------------------------------


def times_away(x: float, fmt: FloatFormat, dtype: DType) -> tuple[int, int]:
    """Of all 2^16 numbers, how many send x away from zero; and how many leave its two neighbours."""
    plan = plan_of(fmt, RoundingMode.STOCHASTIC, True, False, dtype.itemsize == 8)
    out = np.empty(2**16, dtype)
    plan.kernel(np.full(2**16, x, dtype), out, plan.constants, ALL_NUMBERS)
    low = reference.round_to(x, fmt, "toward_zero")
    high = reference.round_to(x, fmt, "toward_positive" if x > 0 else "toward_negative")
    return int(np.count_nonzero(out == high)), int(np.count_nonzero((out != low) & (out != high)))


@pytest.mark.parametrize("name", ["fp16", "bf16", "tf32", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp6_e2m3fn"])
@carriers
def test_the_probability_is_exact(name: str, dtype: DType) -> None:
    fmt = FORMATS[name]
    rng = np.random.default_rng(54)
    normal = 2.0 ** rng.uniform(fmt.emin, min(fmt.emax, 100), 20)
    subnormal = rng.uniform(0, fmt.smallest_normal, 20)
    below = fmt.smallest_subnormal * np.array([0.5, 2.0**-16, 2.0**-17, 1 - 2.0**-16, 0.75])
    overflowing = np.array([fmt.max + (fmt.overflow_threshold - fmt.max) * 0.75])
    x_all = np.concatenate([normal, -normal, subnormal, -subnormal, below, overflowing]).astype(dtype)
    for x in x_all[x_all != 0].tolist():  # float32 has nothing so far below bf16
        low = Fraction(reference.round_to(abs(x), fmt, "toward_zero"))
        spacing = Fraction(2) ** (max(reference.floor_log2(abs(Fraction(x))), fmt.emin) - fmt.mantissa_bits)
        p = (abs(Fraction(x)) - low) / spacing
        if p == 0:
            continue  # a value of the format: test_values_of_the_format_never_move
        away, elsewhere = times_away(x, fmt, dtype)
        if abs(x) > fmt.max:  # away from zero there is infinity, NaN or, where it saturates, the largest value again
            if fmt.has_infinity:
                assert (away, elsewhere) == (int(p * 2**16), 0)
            elif fmt.has_nan:
                assert (away, elsewhere) == (0, int(p * 2**16))
            continue
        assert elsewhere == 0
        assert away == int(p * 2**16), x.hex()
        if dtype == np.float32 and abs(x) >= fmt.smallest_normal and name in ("fp16", "bf16", "tf32"):
            assert (p * 2**16).denominator == 1  # nothing is lost to the 16 bits


@pytest.mark.parametrize("beside", [1.0, 2.0**-24, np.inf], ids=["normal", "subnormal", "infinite"])
@carriers
def test_all_numbers_are_taken(dtype: DType, beside: float) -> None:
    """A quarter of the way up goes up for the last quarter of the numbers, whatever else is in the block."""
    plan = plan_of(FORMATS["fp16"], RoundingMode.STOCHASTIC, True, False, dtype.itemsize == 8)
    numbers = np.repeat(ALL_NUMBERS, 2)
    for low, spacing in ((1.0, 2.0**-10), (3 * 2.0**-24, 2.0**-24)):
        x = np.full(2**17, low + spacing / 4, dtype)
        x[1::2] = beside
        out = np.empty_like(x)
        plan.kernel(x, out, plan.constants, numbers)
        np.testing.assert_array_equal(out[::2], np.where(ALL_NUMBERS >= 3 << 14, low + spacing, low))
        assert (out[1::2] == beside).all()


# --- chunks, threads, shapes -----------------------------------------------------------------------------------------

WHOLE = np.random.default_rng(55).standard_normal(5000) * 2.0**-10


@cache
def rounded(dtype: DType) -> Array:
    return np.asarray(round_to(WHOLE.astype(dtype), "fp16", "sr", rng=(SEED, 2**32 - 3000)))


@carriers
@given(cuts=st.lists(st.integers(0, WHOLE.size), max_size=6), backwards=st.booleans())
def test_any_split(dtype: DType, cuts: Sequence[int], backwards: bool) -> None:
    edges = [0, *sorted(cuts), WHOLE.size]
    parts = list(itertools.pairwise(edges))
    out = np.empty(WHOLE.size, dtype)
    for start, stop in reversed(parts) if backwards else parts:
        x = WHOLE[start:stop].astype(dtype)
        out[start:stop] = round_to(x, "fp16", "sr", rng=(SEED, 2**32 - 3000 + start))
    assert_same(out, rounded(dtype))


@carriers
def test_every_size_and_beginning_of_a_part(dtype: DType) -> None:
    whole = WHOLE.astype(dtype)
    memory = np.empty(whole.nbytes + 1, np.uint8)
    unaligned = memory[1:].view(dtype)
    numbers = numbers_of(SEED, 2**32 - 3000, whole.size).astype(np.uint16)
    plan = plan_of(FORMATS["fp16"], RoundingMode.STOCHASTIC, True, False, dtype.itemsize == 8)
    for size in range(2 * BLOCK + 3):
        start = 3000 - size if size % 2 else 2999 + size % 7  # 3000 is the first of a block
        part = slice(start, start + size)
        for room in (whole.copy(), unaligned):
            room[:] = whole
            round_to(room[part], "fp16", "sr", rng=(SEED, 2**32 - 3000 + start), out=room[part])
            assert_same(room[part], rounded(dtype)[part])
            room[part] = whole[part]
            plan.kernel(room[part], room[part], plan.constants, numbers[part])
            assert_same(room[part], rounded(dtype)[part])
            room[part] = whole[part]
            assert_same(room, whole)  # nothing else was written to


@carriers
def test_threads(dtype: DType) -> None:
    x = np.random.default_rng(56).standard_normal(300_000).astype(dtype)
    expected = round_to(x, "bf16", "sr", rng=SEED)
    out = np.empty_like(x)

    def chunk(start: int) -> None:
        part = out[start : start + 7919]
        round_to(x[start : start + 7919], "bf16", "sr", rng=(SEED, start), out=part)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(chunk, range(0, x.size, 7919)))
    assert_same(out, expected)


def test_shape_and_layout_do_not_matter() -> None:
    x = np.random.default_rng(57).standard_normal((6, 5, 40))
    flat = round_to(x.reshape(-1), "bf16", "sr", rng=12)
    assert_same(round_to(x, "bf16", "sr", rng=12), flat.reshape(x.shape))
    assert_same(round_to(np.asfortranarray(x), "bf16", "sr", rng=12), flat.reshape(x.shape))
    assert_same(round_to(x[:, ::2], "bf16", "sr", rng=12), round_to(x[:, ::2].copy(), "bf16", "sr", rng=12))
    out = np.empty_like(x)[:, :, ::-1]
    assert_same(round_to(x, "bf16", "sr", rng=12, out=out), flat.reshape(x.shape))


@pytest.mark.parametrize("name", ["bf16", "fp32"])  # fp32: by way of float64
@pytest.mark.parametrize("sizes", [(1, 1, 1, 99_997), (32_767, 1, 2, 67_230), (33_333, 33_333, 33_334), (100_000,)])
@carriers
def test_a_generator_whole_or_in_chunks(name: str, sizes: tuple[int, ...], dtype: DType) -> None:
    x = np.random.default_rng(58).standard_normal(100_000).astype(dtype)
    whole_rng, chunk_rng = np.random.default_rng(59), np.random.default_rng(59)
    whole = round_to(x, name, "sr", rng=whole_rng)
    stops = np.cumsum(sizes)
    chunks = [round_to(x[b - n : b], name, "sr", rng=chunk_rng) for n, b in zip(sizes, stops, strict=True)]
    assert_same(np.concatenate(chunks), whole)
    assert whole_rng.bit_generator.state == chunk_rng.bit_generator.state


def test_a_generator_is_drawn_from_as_documented() -> None:
    """32 bits an element in order, of which the high 16 are used."""
    x = np.random.default_rng(60).standard_normal(70_001)
    words = np.random.default_rng(61).integers(0, 2**32, x.size, dtype=np.uint32)
    expected = Oracle(x, FORMATS["bf16"]).round("stochastic", numbers=words >> 16)
    rng = np.random.default_rng(61)
    assert_same(round_to(x, "bf16", "sr", rng=rng), expected)
    assert_same(round_to(x, "bf16", "sr", rng=np.random.default_rng(61)), expected)
    again = np.random.default_rng(61)
    again.integers(0, 2**32, x.size, dtype=np.uint32)
    assert rng.integers(0, 2**60) == again.integers(0, 2**60)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_different_seeds_differ() -> None:
    x = np.full(1000, 1 + 2.0**-11)
    seeds = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    results = [round_to(x, "fp16", "sr", rng=seed) for seed in seeds]
    for i, one in enumerate(results):
        for other in results[:i]:
            # two fair coins agree half the time
            assert 400 < np.count_nonzero(one == other) < 600


def test_without_a_seed_it_differs_from_call_to_call() -> None:
    x = np.full(1000, 1 + 2.0**-11)
    assert (round_to(x, "fp16", "sr") != round_to(x, "fp16", "sr")).any()
    assert (round_to(x, "fp16", "sr", rng=None) != round_to(x, "fp16", "sr", rng=None)).any()


@pytest.mark.parametrize(
    "rng",
    [-1, 2**64, 1.0, "seed", (1, -1), (1, 2**64), (-1, 0), (1, 2, 3), (1,), (), [1, 2], (1.5, 0), np.array([1, 2])],
    ids=repr,
)
def test_bad_random_sources_are_refused(rng: Any) -> None:
    for function in (round_to, encode, cast):
        with pytest.raises(ValueError, match="rng must be a seed") as error:
            function([1.1, 1.2], "fp16", "stochastic", rng=rng)
        message = str(error.value)
        assert "\n" not in message
        assert all(word in message for word in ("2^64-1", "(seed, index of the first element)", "Generator", "None"))


def test_legacy_random_state_is_refused() -> None:
    with pytest.raises(ValueError, match="rng must be a seed"):
        round_to([1.1], "fp16", "sr", rng=np.random.RandomState(0))  # type: ignore[arg-type]


# --- the stream as randomness: fixed seeds, so these cannot fail by chance -------------------------------------------


def words_of(seed: int, size: int) -> Array:
    words = np.empty(size // 2, np.uint32)
    kernels.stochastic.random_words(words, np.uint32(0), np.uint32(0), np.uint32(seed % 2**32), np.uint32(seed >> 32))
    return words.view(np.uint16)


def chi_square(counts: Array) -> float:
    """In standard deviations from what is expected of a uniform distribution."""
    expected = counts.sum() / counts.size
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.size - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("seed", [0, 1, SEED])
def test_uniform(seed: int) -> None:
    numbers = words_of(seed, 1 << 22)
    # all 16 bits, each byte, and each of the four places within a counter
    assert abs(chi_square(np.bincount(numbers, minlength=2**16))) < 5
    assert abs(chi_square(np.bincount(numbers & 0xFF, minlength=256))) < 5
    for part in range(4):
        assert abs(chi_square(np.bincount(numbers[part::4] >> 8, minlength=256))) < 5


@pytest.mark.parametrize("seed", [0, 1, SEED])
def test_neighbours_are_independent(seed: int) -> None:
    numbers = words_of(seed, 1 << 20)
    centred = numbers.astype(np.float64) - (2**16 - 1) / 2
    for lag in (1, 2, 3, 4, 16, BLOCK, 8 * BLOCK):
        product = float((centred[lag:] * centred[:-lag]).mean() / (centred**2).mean())
        assert abs(product) < 5 / centred.size**0.5
        pairs = (numbers[lag:] >> 12).astype(np.int64) * 16 + (numbers[:-lag] >> 12)
        assert abs(chi_square(np.bincount(pairs, minlength=256))) < 5
    # the same place under neighbouring seeds
    other = words_of(seed + 1, 1 << 20).astype(np.float64) - (2**16 - 1) / 2
    assert abs(float((centred * other).mean() / (centred**2).mean())) < 5 / centred.size**0.5


def test_a_bad_generator_would_fail() -> None:
    """The checks above see a short period, a stuck bit and a counter."""
    counter = np.arange(1 << 20).astype(np.uint16)
    centred = counter.astype(np.float64) - (2**16 - 1) / 2
    assert float((centred[1:] * centred[:-1]).mean() / (centred**2).mean()) > 5 / centred.size**0.5
    good = words_of(0, 1 << 20)
    assert chi_square(np.bincount(good | 1, minlength=2**16)) > 5
    assert chi_square(np.bincount(np.tile(good[:4096], 256), minlength=2**16)) > 5
    assert chi_square(np.bincount(counter, minlength=2**16)) < -5  # too even


@pytest.mark.parametrize("p", [1 / 8, 1 / 2, 0.9, 2.0**-9])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_the_mean_is_unbiased(p: float, name: str) -> None:
    n = 1_000_000
    spacing = FORMATS[name].eps
    x = np.float32(1 + p * spacing)
    exact = (float(x) - 1) / spacing
    up = np.count_nonzero(round_to(np.full(n, x), name, "sr", rng=62) > 1)
    assert abs(up - n * exact) < 5 * (n * exact * (1 - exact)) ** 0.5
