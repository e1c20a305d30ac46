"""One check of a stochastic cast: every result a neighbour of its input, exact values kept, the choices judged.

First every hard input is cast, and each result compared with the two values that it may be. Then chosen inputs between
two values of the target, in all binades, at distances from 2^-1 to 2^-13 of a spacing from either, are cast many times:
copies stand at random places of a few large arrays, and one of the arrays is cast twice. chance.py judges the counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.codes import decode, encode
from precision_lab.numerics.rounding import Array, spacing
from precision_lab.testing.cast_check import MOST_KEPT, Check, range_text
from precision_lab.testing.cast_course import Call, Output, short_calls
from precision_lab.testing.cast_faults import meaning_of_values
from precision_lab.testing.cast_models import NO_VALUE, Codes, Mask, Rows, canonical
from precision_lab.testing.cast_report import CastReport, Fault
from precision_lab.testing.chance import Choices, judge
from precision_lab.testing.hard_inputs import hard_patterns
from precision_lab.testing.isolation import SLOT

_CALLS = 8  # arrays of SLOT elements
_SECONDS = 2.0  # for more of them than two
_BINADES = 24
_NEAREST = 13  # the smallest distance to a neighbour is 2^-13 of a spacing
_COPIES = 16  # of an input in one array, from which on they tell whether all go one way
_FAR = 8  # distances from which on half of all copies are: what is rare is seen only often


class _Points(NamedTuple):
    """Inputs between two neighbours: patterns, values, distance to the lower one, and codes of the two."""

    patterns: Array
    values: NDArray[np.float64]
    share: NDArray[np.float64]
    lower: Codes
    upper: Codes


class ChanceCheck(Check):
    """One run of `check_cast` of a stochastic cast."""

    latest: Codes  # of the last call

    def run(self, exhaustive: bool, seed: int) -> CastReport:
        """Go through the whole check."""
        source, target = self.spec.source, self.spec.target
        if self.first(np.repeat(source.patterns(np.ones(1)), 8)):
            first, rest = hard_patterns(source, target, seed)
            self.total = 2 * first.size + rest.size + (_CALLS + 1) * SLOT
            calls = (Call(first[i : i + 4096], (i // 4096) % 16) for i in range(0, first.size, 4096))
            if self.go(short_calls(first)) and self.go(calls) and self._hard(rest):
                self._choose(self._points(seed), seed)
        return self._report(False)

    # -- what a result may be --

    def _neighbours(self, patterns: Array) -> tuple[Codes, Codes]:
        """Return the codes of the two neighbours of each input, that nearer to zero first."""
        spec, x = self.spec, self.spec.source.carrier(patterns)

        def to(mode: str) -> Codes:
            codes = np.asarray(encode(x, spec.target, mode, subnormals=spec.subnormals, saturate=spec.saturate))
            return canonical(codes, spec.target)

        return to("toward_zero"), np.where(np.signbit(x), to("toward_negative"), to("toward_positive"))

    def _shares(self, patterns: Array) -> NDArray[np.float64]:
        """Return how far each input is from its neighbour nearer to zero, in spacings; 1 beyond the range."""
        size = np.abs(self.spec.source.values(patterns))
        finite = np.isfinite(size)
        size = np.where(finite, size, 0.0)
        below = decode(encode(size, self.spec.target, "toward_zero"), self.spec.target, np.float64)
        below = np.minimum(np.asarray(below), self.spec.target.max)
        share = (size - below) / np.asarray(spacing(below, self.spec.target))
        return np.where(finite, np.minimum(share, 1.0), 0.0)

    def compare(self, call: Call, result: Array, output: Output) -> None:
        """Keep the results that are none of the two neighbours."""
        self.checked += call.patterns.size
        lower, upper = self._neighbours(call.patterns)
        share = self._shares(call.patterns)
        lower, upper = np.where(share == 1, upper, lower), np.where(share == 0, lower, upper)
        rows = self._make_rows(call, np.arange(call.patterns.size), result, output)
        self.latest = rows.got
        rows = rows._replace(expected=np.where(rows.got == upper, upper, lower))
        wrong = self._wrong(rows)
        self.wrong += int(np.count_nonzero(wrong))
        if self.kept < MOST_KEPT and wrong.any():
            self.rows.append(rows.take(wrong))
            self.kept += int(np.count_nonzero(wrong))

    def _name(self, rows: Rows, wrong: Mask, restless: bool) -> tuple[list[Fault], int]:
        """Return the faults of results that no stochastic rounding gives."""
        nan = np.isnan(rows.values)
        faults = [
            Fault(name, text, int(np.count_nonzero(chosen)), self._examples(rows.take(chosen)))
            for name, text, chosen in self._nan_faults(rows, wrong & nan)
        ]
        rest = rows.take(wrong & ~nan)
        for name, text, chosen in self._kinds(rest):
            some = rest.take(chosen)
            faults.append(Fault(name, text + range_text(some), some.got.size, self._examples(some)))
        return faults, 0

    def _kinds(self, rows: Rows) -> Iterator[tuple[str, str, Mask]]:
        target = self.spec.target
        sign = 1 << (target.bits - 1)
        left = np.ones(rows.got.shape, np.bool_)
        share, largest = self._shares(rows.patterns), int(encode(target.max, target))
        zero = (rows.got & (sign - 1)) == 0
        size = np.abs(rows.values)
        alien = rows.got == NO_VALUE
        alien_name = meaning_of_values(rows.take(alien), self.spec) if alien.any() else ("", "")
        kinds = [
            (*alien_name, alien),
            (
                "loses the sign of zero",
                "results that are zero lose their sign",
                zero & ((rows.expected ^ sign) == rows.got),
            ),
            ("saturates", "turns overflow into the largest value", (share == 1) & ((rows.got & (sign - 1)) == largest)),
            ("flushes subnormal results", "subnormal results become zero", zero & (size < target.smallest_normal)),
            ("changes exact values", "values of the target are not kept", (share == 0) & np.isfinite(rows.values)),
            ("no neighbour", "results are neither of the two neighbours", left.copy()),
        ]
        for name, text, chosen in kinds:
            if (chosen & left).any():
                yield name, text, chosen & left
            left &= ~chosen

    # -- the choices --

    def _points(self, seed: int) -> _Points:
        """Return inputs at many distances between values in all binades."""
        source, target = self.spec.source, self.spec.target
        rng = np.random.default_rng(seed)
        fields = np.unique(np.linspace(0, 2**target.exponent_bits - 1, _BINADES).astype(np.int64))
        codes = fields << target.mantissa_bits | rng.integers(0, 2**target.mantissa_bits, (2, fields.size))
        values = np.asarray(decode(codes.reshape(-1), target, np.float64))
        values = np.append(values[np.isfinite(values)], target.max)
        near = 2.0 ** -np.arange(1, _NEAREST + 1)
        shares = np.concatenate([near, 1 - near, rng.random(6)])
        with np.errstate(over="ignore"):
            x = (values[:, None] + shares * np.asarray(spacing(values, target))[:, None]).reshape(-1)
        patterns = source.patterns(np.concatenate([x, -x]))
        patterns = np.unique(patterns[np.isfinite(source.values(patterns))])
        share = self._shares(patterns)
        lower, upper = self._neighbours(patterns)
        between = (share > 0) & (share < 1) & (lower != upper)
        points = _Points(patterns, source.values(patterns), share, lower, upper)
        return _Points(*(column[between] for column in points))

    def _choose(self, points: _Points, seed: int) -> None:
        """Cast copies of the points, and judge which neighbour they went to."""
        count = points.patterns.size
        rng = np.random.default_rng(seed)
        rare = np.flatnonzero(np.minimum(points.share, 1 - points.share) < 2.0**-_FAR)
        asked, up = np.zeros(count, np.int64), np.zeros(count, np.int64)
        alike = calls = 0
        steady, before = False, None
        started = self.seconds
        for number in range(_CALLS + 1 if count else 0):
            if number != 1:  # the first array is cast twice
                spread = [np.arange(count), rare] if rare.size else [np.arange(count)]
                chosen = rng.permutation(np.concatenate([np.resize(part, SLOT // len(spread)) for part in spread]))
            if number > 2 and self.seconds - started > _SECONDS:
                break
            went = self._went_up(points, chosen)
            if went is None:
                return
            if number == 1:
                steady = before is not None and bool(np.array_equal(before, went))
                continue
            before = went if before is None else before
            n, k = (np.bincount(chosen[which], minlength=count) for which in (went >= 0, went == 1))
            told = (n >= _COPIES) & (np.abs(points.share - 0.5) <= 0.25)
            calls += bool(told.any())
            alike += bool(told.any()) and bool(((k == 0) | (k == n))[told].all())
            asked, up = asked + n, up + k
        below = np.asarray(decode(points.lower, self.spec.target, np.float64))
        subnormal = np.abs(below) < self.spec.target.smallest_normal
        edge = np.abs(points.values) > self.spec.target.max
        wrong = np.concatenate([np.abs(rows.values) for rows in self.rows] or [np.empty(0)])
        # no choices to judge where results are wrong by a fault of their own
        asked = np.where(subnormal & (wrong < self.spec.target.smallest_normal).any(), 0, asked)
        asked = np.where(edge & (wrong > self.spec.target.max).any(), 0, asked)
        kinds = np.signbit(points.values), points.lower % 2 == 1, subnormal, edge
        choices = Choices(points.share, *kinds, asked, up, alike, calls, steady)
        verdict = judge(choices.take(asked > 0))
        self.notes.extend(verdict.notes)
        if verdict.name:
            self.faults.append(Fault(verdict.name, verdict.text, 0))

    def _went_up(self, points: _Points, chosen: Array) -> Array | None:
        """Cast these points; return 1 for those that went up, -1 for what is no neighbour; None if the call failed."""
        call = Call(points.patterns[chosen])
        if not self.go(iter([call])):
            return None
        codes = self.latest
        return np.where(codes == points.upper[chosen], 1, np.where(codes == points.lower[chosen], 0, -1))
