"""Check the compiled roundings of this installation against two others: ml_dtypes' casts and exact arithmetic.

ml_dtypes' casts (for fp16 NumPy's) are the definition of ties_to_even for float32 input. `reference.py` is the
definition of every other mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics import reference
from precision_lab.numerics.codes import cast, code_dtype, decode
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.numerics.rounding import round_to, spacing

if TYPE_CHECKING:
    from concurrent.futures import Executor
from precision_lab.support.executors import completed

Patterns = NDArray[np.uint32]
_CHUNK = 1 << 22
_ALL = 1 << 32
_TASK = 1 << 26  # patterns that are sent to a worker at a time: about a second


@dataclass(frozen=True)
class Verification:
    """What a check found.

    Attributes
    ----------
    format : FloatFormat
        The format.
    against : str
        ``ml_dtypes`` or ``reference``.
    checked, mismatches : int
        Roundings compared, and how many differ.
    examples : tuple of str
        The first few that differ, in words.

    """

    format: FloatFormat
    against: str
    checked: int
    mismatches: int
    examples: tuple[str, ...] = ()


def hard_patterns() -> Patterns:
    """Return the float32 bit patterns near which roundings go wrong: all upper halves with chosen lower halves.

    The lower halves are the 8 settings of their three high bits, alone (a code of fp16) and with the next bit set (a
    midpoint of fp16), and all powers of two and their complements, each with both neighbours. So the patterns hold all
    codes of the formats of up to 16 bits, all midpoints between them, and the float32 neighbours of both.
    """
    thirteen = [high << 13 | tie for high in range(8) for tie in (0, 1 << 12)]
    powers = [sign * 2**k for k in range(16) for sign in (1, -1)]
    lower = sorted({(centre + step) & 0xFFFF for centre in thirteen + powers for step in (-1, 0, 1)})
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    return (upper[:, None] | np.array(lower, np.uint32)).reshape(-1)


def all_patterns() -> Iterator[Patterns]:
    """Yield all 2^32 float32 bit patterns in chunks."""
    for start in range(0, 2**32, _CHUNK):
        yield np.arange(start, start + _CHUNK, dtype=np.uint32)


def differing_patterns(fmt: FloatFormat, patterns: Patterns) -> Patterns:
    """Return the float32 patterns that `cast` or `round_to` rounds otherwise than ml_dtypes does.

    NaNs compare equal if both are NaN and have the same sign.
    """
    assert fmt.dtype is not None
    x = patterns.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(fmt.dtype)
    codes = code_dtype(fmt)
    got, wanted = cast(x, fmt).view(codes), expected.view(codes)
    value, wanted_value = round_to(x, fmt).view(np.uint32), decode(wanted, fmt).view(np.uint32)
    differs = (got != wanted) | (value != wanted_value)
    suspects = np.flatnonzero(differs)
    if suspects.size:  # NaN codes may differ in their payload
        a, b = decode(got[suspects], fmt), decode(wanted[suspects], fmt)
        c = value[suspects].view(np.float32)
        same_nan = (
            np.isnan(a)
            & np.isnan(b)
            & np.isnan(c)
            & (np.signbit(a) == np.signbit(b))
            & (np.signbit(c) == np.signbit(b))
        )
        suspects = suspects[~same_nan]
    return patterns[suspects]


def verify_against_ml_dtypes(
    fmt: FormatLike,
    *,
    exhaustive: bool = False,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare ties_to_even of float32 input with ml_dtypes (fp16: NumPy), on hard patterns or on all 2^32.

    Parameters
    ----------
    fmt : format spec
        A format with a dtype.
    exhaustive : bool
        All 2^32 patterns instead of about 7 million hard ones.
    executor : concurrent.futures.Executor, optional
        Where the exhaustive check goes, range by range; the result is the same. Default: this process.
    progress : callable, optional
        Called with the number of patterns done and of all patterns.

    Raises
    ------
    ValueError
        The format has no dtype to compare with.
    WorkersLostError
        The executor cannot go on.
    FloatingPointError
        This thread, or a worker's, flushes subnormal numbers to zero.

    """
    fmt = get_format(fmt)
    if fmt.dtype is None:
        raise ValueError(
            f"{fmt} has no NumPy or ml_dtypes dtype to compare with; it is checked against the reference only"
        )
    if exhaustive and executor is not None:
        return _spread(fmt, executor, progress)
    hard = hard_patterns()
    chunks = all_patterns() if exhaustive else iter(np.split(hard, range(_CHUNK, hard.size, _CHUNK)))
    everything = 2**32 if exhaustive else hard.size
    checked = mismatches = 0
    examples: list[str] = []
    for patterns in chunks:
        wrong = differing_patterns(fmt, patterns)
        checked += patterns.size
        mismatches += wrong.size
        examples += [_example(fmt, pattern) for pattern in wrong[: 3 - len(examples)]]
        if progress is not None:
            progress(checked, everything)
    return Verification(fmt, "ml_dtypes", checked, mismatches, tuple(examples))


def _example(fmt: FloatFormat, pattern: np.uint32) -> str:
    x = np.array(pattern).view(np.float32)
    with np.errstate(all="ignore"):
        return f"{pattern:#010x} ({x!s}): got {cast(x, fmt)}, expected {x.astype(fmt.dtype)}"


def _check_range(task: tuple[FloatFormat, int, int]) -> tuple[int, int, list[str]]:
    """Return how many patterns of a range were checked and differ, and the first few of these."""
    fmt, start, stop = task
    mismatches, examples = 0, list[str]()
    for first in range(start, stop, _CHUNK):
        wrong = differing_patterns(fmt, np.arange(first, min(first + _CHUNK, stop), dtype=np.uint32))
        mismatches += wrong.size
        examples += [_example(fmt, pattern) for pattern in wrong[: 3 - len(examples)]]
    return stop - start, mismatches, examples


def _spread(fmt: FloatFormat, executor: Executor, progress: Callable[[int, int], None] | None) -> Verification:
    """Check all patterns on an executor; the examples are the first, whichever range is done first."""
    tasks = [(fmt, start, start + _TASK) for start in range(0, _ALL, _TASK)]
    results: dict[int, tuple[int, int, list[str]]] = {}
    for number, result in completed(_check_range, tasks, executor):
        results[number] = result
        if progress is not None:
            progress(sum(checked for checked, _, _ in results.values()), _ALL)
    checked = sum(result[0] for result in results.values())
    mismatches = sum(result[1] for result in results.values())
    examples = [example for number in sorted(results) for example in results[number][2]]
    return Verification(fmt, "ml_dtypes", checked, mismatches, tuple(examples[:3]))


def verify_against_reference(
    fmt: FormatLike, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Compare all modes, both carriers and both switches with exact arithmetic.

    All codes of formats of up to 8 bits, else a sample of codes that holds both ends of the range; each with the
    midpoint to the next and the doubles beside both.
    """
    fmt = get_format(fmt)
    points = _points(fmt, seed)
    checked = mismatches = rounds = 0
    examples: list[str] = []
    for dtype in (np.float64, np.float32):
        with np.errstate(over="ignore"):
            x = np.unique(points.astype(dtype))
        x = np.concatenate([x, -x, np.array([np.nan, -np.nan], dtype)])
        for mode in RoundingMode:
            for subnormals, saturate in ((True, False), (False, True)):
                got = round_to(x, fmt, mode, subnormals=subnormals, saturate=saturate, rng=seed)
                for i, number in enumerate(x.tolist()):
                    uniform = Fraction(reference.random_number(seed, i), 2**16) if mode == "stochastic" else None
                    wanted = reference.round_to(
                        number, fmt, mode, subnormals=subnormals, saturate=saturate, uniform=uniform
                    )
                    checked += 1
                    if not _same(float(got[i]), wanted):
                        mismatches += 1
                        if len(examples) < 3:
                            examples.append(f"{number.hex()} {mode}: got {got[i]}, expected {wanted}")
                rounds += 1
                if progress is not None:
                    progress(rounds, 4 * len(RoundingMode))
    return Verification(fmt, "reference", checked, mismatches, tuple(examples))


def _points(fmt: FloatFormat, seed: int) -> NDArray[np.float64]:
    """Return values that are not negative: codes, midpoints, and the doubles beside both."""
    codes = 2 ** (fmt.bits - 1)
    chosen = np.arange(min(codes, 2**8))
    if codes > chosen.size:
        inner = np.random.default_rng(seed).integers(0, codes, 96)
        ends = np.arange(16)
        chosen = np.concatenate([ends, ends + 2**fmt.mantissa_bits - 8, codes - 1 - np.arange(128), inner])
    values = decode(chosen, fmt, np.float64)
    values = values[np.isfinite(values)]
    middles = values + spacing(values, fmt) / 2
    beyond = np.array([fmt.max, fmt.overflow_threshold, 2 * fmt.max, 4 * fmt.max, fmt.flush_threshold, np.inf])
    points = np.concatenate([values, middles, beyond])
    return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points[points > 0], 0)])


def _same(a: float, b: float) -> bool:
    return math.copysign(1, a) == math.copysign(1, b) and (a == b or (math.isnan(a) and math.isnan(b)))
