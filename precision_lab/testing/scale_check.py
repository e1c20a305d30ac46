"""One check of a cast to E8M0, the scales of MX formats: 256 codes, 2^(code - 127) and NaN, and a rule of rounding.

E8M0 is no floating-point format like the others: it has neither zero nor sign nor fraction (OCP Microscaling Formats
1.0, 5.4.1). So the one right result of a number is a matter of rule: of the two powers of two around it the lower, the
upper, or the nearer, and 1.5 * 2^k, in the middle, may go to either, to the even code, or with sqrt(2) as the middle.
The rule that a cast follows is found and named; what it makes of all that E8M0 does not have is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.rounding import Array
from precision_lab.testing.cast_course import Call, Course, Output, Outputs, Progress, hexadecimal, short_calls
from precision_lab.testing.cast_report import CastReport, Example, Fault, exact_text
from precision_lab.testing.hard_inputs import Source, all_patterns, is_narrow, special_patterns
from precision_lab.testing.isolation import Caller

NAME = "float8_e8m0fnu"
NAMES = (NAME, "e8m0", "e8m0fnu", "fp8_e8m0fnu", "F8_E8M0")
_DTYPE = np.dtype(ml_dtypes.float8_e8m0fnu)
_NAN, _BIAS, _TOP = 255, 127, 254
_RANDOM = 1 << 14
_NO_CODE = -1

Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Rule(NamedTuple):
    """A rule of rounding: its name and words, and where a number, 2^k times something in 1..2, goes to 2^(k+1)."""

    mode: str
    text: str
    goes_up: Callable[[NDArray[np.float64], Codes], Mask]


RULES = (
    Rule("toward_zero", "toward zero (floor): 3 becomes 2", lambda m, k: m < 0),
    Rule("toward_positive", "up (ceil): 3 becomes 4", lambda m, k: m > 1),
    Rule("ties_to_even", "to nearest, ties to the even code: 3 becomes 2, 6 becomes 8", lambda m, k: _even(m, k)),
    Rule("ties_to_away", "to nearest, ties up: 3 becomes 4", lambda m, k: m >= 1.5),
    Rule("ties_to_zero", "to nearest, ties down: 3 becomes 2", lambda m, k: m > 1.5),
    Rule("geometric", "to nearest by ratio, from sqrt(2) on up: 3 becomes 4, 2.8 becomes 2", lambda m, k: m * m > 2),
)


def _even(m: NDArray[np.float64], k: Codes) -> Mask:
    above: Mask = (m > 1.5) | ((m == 1.5) & ((k + _BIAS) % 2 == 1))
    return above


def is_scale(target: object) -> bool:
    """Return whether a target is meant to be E8M0."""
    if isinstance(target, str):
        return target in NAMES
    return target is ml_dtypes.float8_e8m0fnu or (isinstance(target, np.dtype) and target == _DTYPE)


def codes_by(rule: Rule, values: NDArray[np.float64]) -> Codes:
    """Return the codes of positive numbers by a rule, below 0 and above 254 where they are out of range."""
    fraction, exponent = np.frexp(values)
    k = exponent.astype(np.int64) - 1
    codes: Codes = k + rule.goes_up(2 * fraction, k) + _BIAS
    return codes


class _Seen(NamedTuple):
    patterns: Array
    values: NDArray[np.float64]
    codes: Codes


class ScaleCheck(Course):
    """One run of `check_cast` with E8M0 as its target; `mode` is a rule that is asked for, None for any."""

    def __init__(
        self, source: Source, mode: str | None, caller: Caller, time_limit: float, progress: Progress | None
    ) -> None:
        super().__init__(source, Outputs(_DTYPE, np.dtype(np.uint8)), caller, time_limit, progress)
        self.mode = mode
        self.seen: list[_Seen] = []

    def run(self, seed: int) -> CastReport:
        """Go through the whole check."""
        if self.first(np.repeat(self.source.patterns(np.ones(1)), 8)):
            patterns = np.random.default_rng(seed).permutation(self._inputs(seed))
            self.total = patterns.size
            calls = (Call(patterns[i : i + 4001], (i // 4001) % 16) for i in range(0, patterns.size, 4001))
            if self.go(short_calls(patterns)):
                self.go(calls)
        return self._report()

    def _inputs(self, seed: int) -> Array:
        """Return the powers of two, what is decisive between them, their neighbours, and what E8M0 does not have."""
        source, rng = self.source, np.random.default_rng(seed)
        if is_narrow(source):
            return all_patterns(source)
        powers = np.ldexp(1.0, np.arange(-160, 130))
        decisive = np.concatenate([powers * m for m in (1, 1.25, math.sqrt(2), 1.5, 1.75)])
        patterns = source.patterns(decisive)
        one = patterns.dtype.type(1)
        near = np.concatenate([patterns, patterns + one, np.maximum(patterns, one) - one])
        with np.errstate(invalid="ignore"):
            near = near[np.isfinite(source.values(near))]
        sign = source.pattern_dtype.type(1 << (source.bits - 1))
        anything = rng.integers(0, 2**source.bits, _RANDOM, dtype=np.uint64).astype(source.pattern_dtype)
        every: Array = np.unique(np.concatenate([near, near[::7] | sign, anything, special_patterns(source)]))
        return every

    def compare(self, call: Call, result: Array, output: Output) -> None:
        """Keep the codes of all results."""
        values = self.source.values(call.patterns)
        self.checked += call.patterns.size
        self.seen.append(_Seen(call.patterns.copy(), values, _codes_of(result, output)))

    def _report(self) -> CastReport:
        faults, rule = list(self.faults), ""
        wrong = np.zeros(0, np.bool_)
        if self.seen:
            seen = _Seen(*(np.concatenate(column) for column in zip(*self.seen, strict=True)))
            rule, wrong, named = self._judged(seen)
            faults += named
            self.notes += [f"{what}: {becomes}" for what, becomes in _lacking(seen)]
        count = int(np.count_nonzero(wrong))
        return CastReport(
            *(self.source.name, NAME, rule or self.mode or "any rule", True, False, "any"),
            returns=self.output.text if self.output else "",
            checked=self.checked,
            wrong=count,
            examined=count,
            exhaustive=is_narrow(self.source)
            and not self.left_out
            and bool(self.seen)
            and self.checked >= self.total > 0,
            faults=tuple(faults),
            unexplained=sum(fault.count for fault in faults if fault.name == "no one rule"),
            notes=tuple(self.notes),
            isolated=self.caller.limited,
        )

    def _judged(self, seen: _Seen) -> tuple[str, Mask, list[Fault]]:
        """Return the rule that the cast follows, which results are wrong, and the faults."""
        nan = np.isnan(seen.values) & (seen.codes != _NAN)
        exact = np.isfinite(seen.values) & (seen.values > 0) & (np.frexp(seen.values)[0] == 0.5)
        exponent = np.frexp(np.where(exact, seen.values, 1.0))[1] - 1
        exact &= (exponent >= -_BIAS) & (exponent <= _BIAS)
        moved = exact & (seen.codes != exponent + _BIAS)
        inside = (seen.values > 2.0**-_BIAS) & (seen.values < 2.0**_BIAS) & ~exact
        chosen = next((r for r in RULES if r.mode == self.mode), None) or self._nearest(seen, inside)
        off = inside & (seen.codes != codes_by(chosen, np.where(inside, seen.values, 1.0)))
        faults = [
            self._fault("NaN becomes a number", "NaN has a code of its own, 0xff", seen, nan),
            self._fault("powers of two not kept", "a power of two from 2^-127 to 2^127 has a code", seen, moved),
        ]
        actual = self._nearest(seen, inside)
        one_rule = not (inside & (seen.codes != codes_by(actual, np.where(inside, seen.values, 1.0)))).any()
        if one_rule:
            text = f"it rounds {actual.text}" + (f"; asked for was {chosen.text}" if self.mode else "")
            faults.append(self._fault(f"rounds {actual.mode}", text, seen, off))
            self.notes.append(f"rounds {actual.text}")
        else:
            faults.append(
                self._fault(
                    "no one rule",
                    f"most results are rounded {actual.text}; these are not{_range(seen, off)}",
                    seen,
                    off,
                )
            )
        return (actual.mode if one_rule else ""), nan | moved | off, [fault for fault in faults if fault.count]

    def _nearest(self, seen: _Seen, inside: Mask) -> Rule:
        """Return the rule that gives most results."""
        values, codes = seen.values[inside], seen.codes[inside]
        return max(RULES, key=lambda rule: int(np.count_nonzero(codes == codes_by(rule, values))))

    def _fault(self, name: str, text: str, seen: _Seen, where: Mask) -> Fault:
        _, first = np.unique(seen.patterns[where], return_index=True)
        simple = sorted(np.flatnonzero(where)[first].tolist(), key=lambda i: int(seen.patterns[i]).bit_count())
        examples = []
        for i in simple[:3]:
            pattern, value, code = int(seen.patterns[i]), float(seen.values[i]), int(seen.codes[i])
            wanted = next((rule for rule in RULES if rule.mode == self.mode), None)
            expected = "0xff = nan" if math.isnan(value) else _around(value, wanted)
            shown = _code_text(code)
            examples.append(Example(hexadecimal(pattern, self.source.bits), exact_text(value), expected, shown))
        return Fault(name, text, int(np.count_nonzero(where)), tuple(examples))


def _range(seen: _Seen, where: Mask) -> str:
    """Say between which powers of two the inputs are."""
    if not where.any():
        return ""
    low, high = (math.frexp(float(f(seen.values[where])))[1] - 1 for f in (np.min, np.max))
    return f"; inputs from 2^{low} to below 2^{high + 1}"


def _codes_of(result: Array, output: Output) -> Codes:
    """Return the codes of results, -1 for floats that are no power of two in range."""
    if output.kind != "values":
        return result.view(np.uint8).astype(np.int64)
    with np.errstate(invalid="ignore"):
        values = result.astype(np.float64)
    fraction, exponent = np.frexp(np.where(np.isfinite(values), values, 3.0))
    codes = exponent.astype(np.int64) - 1 + _BIAS
    held = (fraction == 0.5) & (codes >= 0) & (codes <= _TOP)
    return np.where(np.isnan(values), _NAN, np.where(held, codes, _NO_CODE))


def _code_text(code: int) -> str:
    if code == _NO_CODE:
        return "a value that it cannot hold"
    return f"{code:#04x} = " + ("nan" if code == _NAN else exact_text(2.0 ** (code - _BIAS)))


def _around(value: float, rule: Rule | None) -> str:
    """Return the code that is expected: by a rule, or one of two."""
    rules = (RULES[0], RULES[1]) if rule is None else (rule,)
    codes = dict.fromkeys(int(codes_by(each, np.array([value]))[0]) for each in rules)
    return " or ".join(_code_text(min(max(code, 0), _TOP)) for code in codes)


def _lacking(seen: _Seen) -> Iterator[tuple[str, str]]:
    """Yield what becomes of all that E8M0 does not have."""
    x = seen.values
    size = np.where(np.isfinite(x), x, 1.0)
    kinds: dict[str, Mask] = {
        "zero": (x == 0) & ~np.signbit(x),
        "-0.0": (x == 0) & np.signbit(x),
        "negative numbers": np.isfinite(x) & (size < 0),
        "infinity": np.isposinf(x),
        "-infinity": np.isneginf(x),
        "below 2^-127": (size > 0) & (size < 2.0**-_BIAS),
        "above 2^127, below 2^128": (size > 2.0**_BIAS) & (size < 2.0 ** (_BIAS + 1)),
        "from 2^128 on": np.isfinite(x) & (size >= 2.0 ** (_BIAS + 1)),
    }
    for what, where in kinds.items():
        if where.any():
            yield what, _becomes(x[where], seen.codes[where])


def _becomes(values: NDArray[np.float64], codes: Codes) -> str:
    kinds = np.unique(codes)
    if kinds.size == 1:
        return _code_text(int(kinds[0]))
    with np.errstate(invalid="ignore"):
        magnitudes = np.where(np.isfinite(values) & (values != 0), np.abs(values), 1.0)
    for rule in RULES:
        if (codes == np.clip(codes_by(rule, magnitudes), 0, _TOP)).all():
            return f"what the magnitude becomes, {rule.text}, within 2^-127 to 2^127"
    listed = ", ".join(_code_text(int(code)) for code in kinds[:3])
    return f"not one code: {listed}{' ...' if kinds.size > 3 else ''}"
