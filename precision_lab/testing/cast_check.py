"""One check of a cast: ask it, compare, find the input on which it fails, and name its mistakes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from precision_lab.numerics.codes import code_dtype, decode, encode
from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.rounding import Array, round_to
from precision_lab.testing.cast_course import Call, Course, Output, Outputs, Progress, hexadecimal, short_calls
from precision_lab.testing.cast_faults import (
    Finding,
    explain,
    meaning_of_values,
    other_meaning,
    place_of,
    predict_all,
    refine,
    well_founded,
)
from precision_lab.testing.cast_models import NAN, NO_VALUE, Rows, Spec, canonical
from precision_lab.testing.cast_report import CastReport, Example, Fault, exact_text
from precision_lab.testing.hard_inputs import Source, hard_patterns, is_narrow
from precision_lab.testing.isolation import SLOT, Caller

_SECONDS = 2.0  # for the hard cases after the essential ones; a slow cast gets through a part of them
_PIECE = 1 << 16  # elements that are looked at together: they fit into the caches
MOST_KEPT = 1 << 16  # wrong results that are kept to be explained
_SAMPLED = 500  # calls of which some right results are kept, too
_FAR = 4  # binades without a wrong result, between two ranges that are told apart
_RANGES = 3  # more than these are no ranges
_STUDIED = 8_000  # rows of each kind, right and wrong, on which mistakes are tried


def _nan_codes(patterns: Array, source: Source, target: FloatFormat) -> Array:
    """Return the codes that keep the sign and the payload of NaNs, as processors do: quiet, with the leading bits."""
    quiet = np.asarray(encode(source.carrier(patterns), target)).astype(np.int64)
    ieee = source.format is None or source.format.specials == "ieee"
    if not ieee or target.specials != "ieee" or not target.has_nan:
        return quiet
    payload = patterns.astype(np.uint64) & np.uint64(2**source.mantissa_bits - 1)
    drop = source.mantissa_bits - target.mantissa_bits
    kept = payload >> np.uint64(drop) if drop >= 0 else payload << np.uint64(-drop)
    return quiet | kept.astype(np.int64)


def raw_codes(result: Array, output: Output, target: FloatFormat) -> tuple[Array, Array]:
    """Return the codes of results, -1 where there is none, and the values of results."""
    if output.kind == "values":
        with np.errstate(invalid="ignore"):
            values = result.astype(np.float64)
        codes = np.asarray(encode(values, target)).astype(np.int64)
        back = np.asarray(decode(codes, target, np.float64))
        nan = np.isnan(values)
        same = np.where(nan, np.isnan(back), (back == values) & (np.signbit(back) == np.signbit(values)))
        if target.specials == "ieee" and target.has_nan and nan.any():  # the payload is the leading bits
            wide = 52 if result.dtype == np.float64 else 23
            fraction = result.view(f"u{result.dtype.itemsize}").astype(np.uint64) & np.uint64(2**wide - 1)
            payload = (fraction >> np.uint64(wide - target.mantissa_bits)).astype(np.int64)
            sign = np.where(np.signbit(values), 1 << (target.bits - 1), 0)
            top = (2**target.exponent_bits - 1) << target.mantissa_bits
            codes = np.where(
                nan, sign | top | np.where(payload == 0, codes & (2**target.mantissa_bits - 1), payload), codes
            )
        return np.where(same, codes, -1), values
    codes = result.view(code_dtype(target)).astype(np.int64)
    if output.kind == "dtype":
        codes &= 2**target.bits - 1  # the unused bits of the byte mean nothing
    inside = codes < 2**target.bits
    values = np.where(inside, np.asarray(decode(np.where(inside, codes, 0), target, np.float64)), np.nan)
    return np.where(inside, codes, -1), values


class Check(Course):
    """One run of `check_cast`: what has been seen so far."""

    def __init__(self, spec: Spec, caller: Caller, time_limit: float, progress: Progress | None) -> None:
        accepted = Outputs(spec.target.dtype, code_dtype(spec.target))
        super().__init__(spec.source, accepted, caller, time_limit, progress)
        self.spec = spec
        self.wrong = self.kept = 0
        self.rows: list[Rows] = []

    # -- the course of events --

    def run(self, exhaustive: bool, seed: int) -> CastReport:
        """Go through the whole check."""
        source, target = self.spec.source, self.spec.target
        one = source.patterns(np.ones(1))
        complete = False
        if self.first(np.repeat(one, 8)):
            first, rest = hard_patterns(source, target, seed)
            swept = exhaustive and not is_narrow(source)  # of a narrow one all are among the rest
            self.total = 2 * first.size + rest.size + (2**source.bits if swept else 0)
            if self.go(short_calls(first)) and self._repeat(first):
                complete = self._hard(rest) and (is_narrow(source) or not exhaustive)
                if complete and is_narrow(source):
                    exhaustive = True
                elif exhaustive and not self.faults:
                    complete = self._sweep()
        return self._report(exhaustive and complete and not self.left_out)

    def _repeat(self, first: Array) -> bool:
        """Try the essential inputs twice; where the answers differ, the cast is not deterministic."""
        size = 4096
        calls = [Call(first[i : i + size], (i // size) % 16, True) for i in range(0, first.size, size)]
        before = len(self.rows)
        if not self.go(iter(calls)):
            return False
        middle = len(self.rows)
        if not self.go(iter(calls)):
            return False
        one, two = (
            Rows(*map(np.concatenate, zip(*part, strict=True)))
            for part in (self.rows[before:middle], self.rows[middle:])
        )
        if one.raw.size == two.raw.size:
            differ = (one.raw != two.raw) | ((one.stored != two.stored) & (one.raw < 0))
            if differ.any():
                text = "the same array gives other results when it is cast again"
                count = int(np.count_nonzero(differ))
                self.faults.append(Fault("differs from call to call", text, count, self._examples(one.take(differ))))
        return True

    def _hard(self, rest: Array) -> bool:
        """Try all other hard inputs, or as many of them as a slow cast gets through."""
        each = self.seconds / max(self.elements, 1)
        size = int(min(1 << 16, max(256, 0.25 / each if each else 1 << 16))) - 27  # neither even nor aligned
        end = math.inf if is_narrow(self.spec.source) else self.seconds + _SECONDS
        done = 0

        def calls() -> Iterator[Call]:
            nonlocal done
            while done < rest.size and (self.seconds < end or done == 0):
                yield Call(rest[done : done + size], done % 5)
                done += size

        complete = self.go(calls())
        if complete and done < rest.size:
            share = f"{done:,} of the {rest.size:,}"
            self.notes.append(f"the cast takes {each * 1e6:.3g} microseconds an element: {share} further inputs tried")
        return complete

    def _sweep(self) -> bool:
        """Try all patterns of the source."""
        every = 1 << self.spec.source.bits
        self.total = self.checked + every
        base = np.arange(min(SLOT, every)).astype(self.spec.source.pattern_dtype)
        starts = range(0, every, base.size)
        return self.go(Call(base + base.dtype.type(start), piece=_PIECE) for start in starts)

    # -- comparison --

    def _expected(self, patterns: Array) -> Array:
        spec = self.spec
        x = spec.source.carrier(patterns)
        return np.asarray(encode(x, spec.target, spec.mode, subnormals=spec.subnormals, saturate=spec.saturate))

    def _same_bits(self, patterns: Array, result: Array, output: Output) -> Array:
        """Return where a result has the very bits that are expected."""
        spec = self.spec
        same = np.empty(patterns.size, np.bool_)
        for start in range(0, patterns.size, _PIECE):
            part = slice(start, start + _PIECE)
            if output.kind == "values":
                x = spec.source.carrier(patterns[part])
                wanted = round_to(x, spec.target, spec.mode, subnormals=spec.subnormals, saturate=spec.saturate)
                with np.errstate(invalid="ignore"):  # signalling NaNs
                    wanted = np.asarray(wanted).astype(result.dtype, copy=False)
                bits = f"u{result.dtype.itemsize}"
                np.equal(result[part].view(bits), wanted.view(bits), out=same[part])
            else:
                np.equal(result[part].view(code_dtype(spec.target)), self._expected(patterns[part]), out=same[part])
        return same

    def compare(self, call: Call, result: Array, output: Output) -> None:
        """Compare results with a single rounding, and keep those that may tell something."""
        spec, patterns = self.spec, call.patterns
        self.checked += patterns.size
        if call.all_rows:
            chosen = np.arange(patterns.size)
        else:
            same = self._same_bits(patterns, result, output)
            if spec.nan == "payload":
                same &= ~np.isnan(spec.source.carrier(patterns))
            some = np.arange(0, patterns.size if len(self.rows) < _SAMPLED else 0, 997)  # right ones
            if same.all() and not some.size:
                return
            chosen = np.unique(np.concatenate([np.flatnonzero(~same), some]))
        rows = self._make_rows(call, chosen, result[chosen], output)
        wrong = self._wrong(rows)
        count = int(np.count_nonzero(wrong))
        self.wrong += count
        room = max(16, min(count, MOST_KEPT - self.kept))
        if count > room and not call.all_rows:
            excess = np.flatnonzero(wrong)
            keep = np.ones(wrong.size, np.bool_)
            keep[excess] = False
            keep[excess[:: -(-count // room)]] = True
            rows, count = rows.take(keep), int(np.count_nonzero(wrong & keep))
        self.kept += count
        self.rows.append(rows)

    def _make_rows(self, call: Call, chosen: Array, result: Array, output: Output) -> Rows:
        patterns = call.patterns[chosen]
        raw, stored = raw_codes(np.ascontiguousarray(result), output, self.spec.target)
        address = call.shift * self.spec.source.dtype.itemsize % 64
        return Rows(
            patterns,
            self.spec.source.values(patterns),
            canonical(self._expected(patterns), self.spec.target),
            np.where(raw < 0, NO_VALUE, canonical(np.maximum(raw, 0), self.spec.target)),
            raw,
            stored,
            chosen.astype(np.int64),
            np.full(chosen.shape, call.patterns.size),
            np.full(chosen.shape, address),
        )

    def _wrong(self, rows: Rows) -> Array:
        """Return which rows are wrong, NaNs judged by the rule that was asked for."""
        target, rule = self.spec.target, self.spec.nan
        nan = np.isnan(rows.values)
        wrong: Array = rows.got != rows.expected
        if not nan.any():
            return wrong
        if rule == "ignore" or not target.has_nan:
            return wrong & ~nan
        bad = rows.got != NAN
        if rule == "payload":
            bad = bad | (rows.raw != _nan_codes(rows.patterns, self.spec.source, target))
        elif rule == "quiet" and target.specials == "ieee":
            bad = bad | (rows.raw & (1 << (target.mantissa_bits - 1)) == 0)
        return np.where(nan, bad, wrong)

    # -- the report --

    def _report(self, exhaustive: bool) -> CastReport:
        spec = self.spec
        faults, unexplained, examined = list(self.faults), 0, 0
        if self.rows:
            rows = Rows(*map(np.concatenate, zip(*self.rows, strict=True)))
            wrong = self._wrong(rows)
            examined = int(np.count_nonzero(wrong))
            restless = any(fault.name == "differs from call to call" for fault in faults)
            named, unexplained = self._name(rows, wrong, restless)
            faults += named
            self._note_nans(rows, wrong)
        faults.sort(key=lambda fault: -fault.count if fault.count else -math.inf)
        return CastReport(
            *(spec.source.name, spec.target.name, spec.mode, spec.subnormals, spec.saturate, spec.nan),
            returns=self.output.text if self.output else "",
            checked=self.checked,
            wrong=self.wrong,
            examined=examined,
            exhaustive=exhaustive,
            faults=tuple(faults),
            unexplained=unexplained,
            notes=tuple(self.notes),
            isolated=self.caller.limited,
        )

    def _name(self, rows: Rows, wrong: Array, restless: bool) -> tuple[list[Fault], int]:
        """Return the faults that explain wrong rows, and how many rows none explains."""
        faults: list[Fault] = []
        nan = np.isnan(rows.values)
        alien = wrong & ~nan & (rows.got == NO_VALUE)
        if alien.any():
            some = rows.take(alien)
            name, text = meaning_of_values(some, self.spec)
            faults.append(Fault(name, text + range_text(some), some.got.size, self._examples(some)))
        rows, wrong, nan = rows.take(~alien), wrong[~alien], nan[~alien]
        all_at_once = other_meaning(rows, self.spec) if (wrong & ~nan).any() else None
        findings: list[Finding] = []
        if all_at_once is None and not restless and wrong.any():
            judged = rows.take(~nan | (self.spec.nan != "ignore" and self.spec.target.has_nan))
            findings = explain(_sample(judged), self.spec)
            findings = well_founded(refine(findings, judged, self.spec), judged, self.spec)
        predicted = self._predicted(findings, rows)
        unnamed = wrong & nan & ((predicted != rows.got) | (predicted == rows.expected))
        for name, text, chosen in self._nan_faults(rows, unnamed):
            faults.append(Fault(name, text, int(np.count_nonzero(chosen)), self._examples(rows.take(chosen))))
        if all_at_once is not None:
            mine = rows.take(wrong & ~nan)
            return [*faults, Fault(*all_at_once, int(mine.got.size), self._examples(mine))], 0
        bad = rows.take(wrong & ~unnamed)
        explained = predicted[wrong & ~unnamed] == bad.got
        left = explained.copy()
        parts = []
        for i, finding in enumerate(findings):
            others = [*findings[:i], *findings[i + 1 :]]
            mine = explained & (self._predicted(others, bad) != bad.got)
            parts.append((finding, mine))
            left &= ~mine
        for i, (finding, mine) in enumerate(parts):
            if i == 0:
                mine = mine | left  # each of several mistakes alone would do
            faults.append(self._fault_of(finding, bad.take(mine)))
        strange = bad.take(~explained)
        faults += self._unexplained(strange, rows.take(~nan), restless)
        return _merged(faults), int(strange.got.size)

    def _predicted(self, findings: list[Finding], rows: Rows) -> Array:
        return predict_all(findings, rows, self.spec)

    def _fault_of(self, finding: Finding, rows: Rows) -> Fault:
        suspect, condition = finding
        where = f", only {condition.text}" if condition.text else ""
        return Fault(
            suspect.name,
            suspect.text + where,
            int(rows.got.size),
            self._examples(rows, condition.text.startswith("in ")),
        )

    def _nan_faults(self, rows: Rows, wrong: Array) -> Iterator[tuple[str, str, Array]]:
        if not wrong.any():
            return
        infinite = wrong & np.isinf(rows.stored)
        number = wrong & ~infinite & (rows.got != NAN)
        if infinite.any():
            payloads = " where the payload is only in the low bits" if not infinite[np.isnan(rows.values)].all() else ""
            yield "NaN becomes infinity", f"turns NaN into infinity{payloads}", infinite
        if number.any():
            yield "NaN becomes a number", "turns NaN into a number", number
        payload = wrong & (rows.got == NAN)
        if payload.any():
            text = "the NaN is not quiet" if self.spec.nan == "quiet" else "sign, payload or quiet bit of NaN differ"
            yield ("NaN payload lost" if self.spec.nan == "payload" else "NaN not quiet"), text, payload

    def _note_nans(self, rows: Rows, wrong: Array) -> None:
        target = self.spec.target
        nan = np.isnan(rows.values) & (rows.got == NAN) & ~wrong
        if self.spec.nan != "any" or not nan.any() or target.specials not in ("ieee", "fn"):
            return
        raw = rows.raw[nan]
        negative = np.signbit(rows.values[nan])
        if ((raw >> (target.bits - 1) & 1).astype(np.bool_) != negative).any():
            self.notes.append("NaN does not keep its sign")
        if target.specials == "ieee":
            if (raw & (1 << max(target.mantissa_bits - 1, 0)) == 0).any():
                self.notes.append("NaN may come out signalling")
            if (raw != _nan_codes(rows.patterns[nan], self.spec.source, target)).any():
                self.notes.append("NaN payload lost: the leading bits of the payload are not kept")

    def _unexplained(self, strange: Rows, rows: Rows, restless: bool) -> Iterator[Fault]:
        """Describe what no mistake explains by what it looks like."""
        if not strange.got.size or restless:
            return
        right = rows.patterns[rows.got == rows.expected]
        wavering = np.isin(strange.patterns, right)
        if wavering.any():
            place = place_of(strange, rows.take(rows.got == rows.expected))
            if place is not None:
                wavering = np.ones(wavering.size, np.bool_)
            text = "the same input is right in one place and wrong in another" + (
                f": wrong {place.text}" if place else ""
            )
            chosen = strange.take(wavering)
            examples = self._examples(chosen, True)
            yield Fault("depends on position or length", text, int(np.count_nonzero(wavering)), examples)
        strange = strange.take(~wavering)
        near = np.abs(strange.got - strange.expected) == 1
        kinds = [
            ("wrong neighbour", "rounds to the other neighbour, by no rule known here", near),
            ("far off", "results far from the right one, by no rule known here", ~near),
        ]
        for name, text, chosen in kinds:
            for some in _apart(strange.take(chosen)):
                yield Fault(name, text + range_text(some), int(some.got.size), self._examples(some))

    def _examples(self, rows: Rows, places: bool = False) -> tuple[Example, ...]:
        """Return the three simplest rows in words."""
        bits = np.array([int(p).bit_count() for p in rows.patterns[:MOST_KEPT].tolist()])
        _, exponents = np.frexp(np.where(np.isfinite(rows.values[:MOST_KEPT]), rows.values[:MOST_KEPT], 0))
        order = np.lexsort((np.abs(exponents), bits))
        _, firsts = np.unique(rows.patterns[order], return_index=True)
        examples = []
        for i in order[np.sort(firsts)[:3]].tolist():
            row = rows.take(i)
            pattern, value = int(row.patterns), float(row.values)
            place = f"element {int(row.position)} of {int(row.length)}" if places else ""
            expected = self._code_text(int(self._expected(rows.patterns[i : i + 1])[0]), None)
            if math.isnan(value):
                expected = "NaN"
            shown = hexadecimal(pattern, self.spec.source.bits)
            got = self._code_text(int(row.raw), float(row.stored))
            examples.append(Example(shown, exact_text(value), expected, got, place))
        return tuple(examples)

    def _code_text(self, code: int, stored: float | None) -> str:
        target = self.spec.target
        if code < 0:
            return f"{stored!r}, which it cannot hold"
        value = float(decode(code, target, np.float64))
        return f"{hexadecimal(code, target.bits)} = {exact_text(value)}"


def _sample(rows: Rows) -> Rows:
    """Choose rows to try mistakes on: wrong and right ones, of every kind some."""
    kind = np.where(np.isinf(rows.values), 4, 0) + np.where(rows.expected == rows.got, 8, 0)
    kind += np.where(rows.values == 0, 2, 0) + np.where(np.isnan(rows.values), 16, 0)
    chosen = []
    rng = np.random.default_rng(0)
    for k in np.unique(kind):
        members = np.flatnonzero(kind == k)
        limit = _STUDIED if k in (0, 8) else 500
        chosen.append(members if members.size <= limit else rng.choice(members, limit, replace=False))
    return rows.take(np.sort(np.concatenate(chosen)))


def _merged(faults: list[Fault]) -> list[Fault]:
    """Drop findings that explain nothing of their own; the bounds of a clamp are one mistake."""
    clamps = [fault for fault in faults if fault.count and fault.name == "clamps"]
    others = [fault for fault in faults if fault.count and fault.name != "clamps"]
    if len(clamps) < 2:
        return [*clamps, *others]
    examples = [example for some in zip_longest(*(fault.examples for fault in clamps)) for example in some if example]
    text = ", and ".join(fault.text for fault in clamps)
    return [Fault("clamps", text, sum(fault.count for fault in clamps), tuple(examples[:3])), *others]


def _apart(rows: Rows) -> Iterator[Rows]:
    """Yield rows by ranges of magnitude, where these lie far apart: they need not have one cause."""
    if not rows.got.size:
        return
    _, exponents = np.frexp(np.where(np.isfinite(rows.values), np.abs(rows.values), 0.0))
    kinds = np.unique(exponents[np.isfinite(rows.values) & (rows.values != 0)])
    gaps = kinds[1:][np.diff(kinds) > _FAR]
    if not 0 < gaps.size < _RANGES:
        yield rows
        return
    ranges = np.digitize(exponents, gaps)
    for number in range(gaps.size + 1):
        if (ranges == number).any():
            yield rows.take(ranges == number)


def range_text(rows: Rows) -> str:
    """Say between which powers of two the inputs are."""
    values = np.abs(rows.values[np.isfinite(rows.values)])
    values = values[values > 0]
    if not values.size:
        return ""
    low, high = (math.frexp(float(v))[1] - 1 for v in (values.min(), values.max()))
    return f"; inputs from 2^{low} to below 2^{high + 1}"
