"""The course of a check of a cast: call it, take what it returns, find the input on which it fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from precision_lab.numerics.rounding import Array
from precision_lab.testing.cast_report import Fault, exact_text
from precision_lab.testing.hard_inputs import Source
from precision_lab.testing.isolation import SLOT, Answer, Caller

Progress = Callable[[int, int], None]
_FIRST_CALL = 60.0  # seconds: it may compile
_LENGTHS = range(1, 71)


class Call(NamedTuple):
    """Inputs of a call, and how it is made."""

    patterns: Array
    shift: int = 0  # elements by which it is moved in memory
    all_rows: bool = False  # keep right results too
    piece: int = SLOT  # elements of one call


class Output(NamedTuple):
    """What a cast returns."""

    kind: str  # dtype, codes or values
    text: str


class Outputs(NamedTuple):
    """What a cast may return: the dtype of the target, where there is one, codes, and values."""

    dtype: np.dtype[Any] | None
    codes: np.dtype[Any]

    def meaning(self, dtype: np.dtype[Any]) -> Output | None:
        """Return what an array of this dtype means, None if nothing."""
        if self.dtype is not None and dtype == self.dtype and dtype not in (np.float32, np.float64):
            return Output("dtype", f"an array of {dtype}")
        if dtype == self.codes:
            return Output("codes", f"codes in {dtype}")
        if dtype in (np.float32, np.float64):
            return Output("values", f"values in {dtype}")
        return None

    def __str__(self) -> str:
        own = [f"{self.dtype}"] if self.dtype is not None else []
        return ", ".join([*own, f"{self.codes} (codes)", "float32 or float64 (values)"])


class Course:
    """The calls of one check, and what has been seen so far; what a result is worth is for a subclass to say."""

    def __init__(
        self, source: Source, accepted: Outputs, caller: Caller, time_limit: float, progress: Progress | None
    ) -> None:
        self.source, self.accepted = source, accepted
        self.caller, self.time_limit, self.progress = caller, time_limit, progress
        self.checked = 0
        self.seconds = 0.0  # that the cast took, for so many elements
        self.elements = 0
        self.output: Output | None = None
        self.faults: list[Fault] = []  # of calls, not of results
        self.notes: list[str] = []
        self.left_out: set[str] = set()  # kinds of inputs on which it raises
        self.total = 0

    def compare(self, call: Call, result: Array, output: Output) -> None:
        """Take the results of a call into account."""
        raise NotImplementedError

    def first(self, patterns: Array) -> bool:
        """Make the first call, on ones: it may compile, and shows what the cast returns."""
        answer = self._ask(patterns, _FIRST_CALL)
        if answer.status == "ok":
            return self._accept(Call(patterns), answer)
        alone = answer.status in ("died", "hung")
        hint = "; if it works outside, pass isolate='spawn' or isolate=False" if alone else ""
        self._broken(answer, patterns, f"already for ones{hint}")
        return False

    def _ask(self, patterns: Array, limit: float, shift: int = 0) -> Answer:
        self.caller.submit(self.source.array(patterns), shift)
        answer = self._answer(limit)
        if answer.status != "ok":
            self.caller.restart()
        return answer

    def _answer(self, limit: float) -> Answer:
        answer = self.caller.answer(limit)
        if answer.switch is not None:
            self._note_once(answer.switch.name, answer.switch.text)
        return answer

    def _note_once(self, name: str, text: str) -> None:
        if not any(fault.name == name for fault in self.faults):
            self.faults.append(Fault(name, text, 0))

    def go(self, calls: Iterable[Call]) -> bool:
        """Make calls, looking at each result while the next is made; False if the check must end."""
        queue: list[Call] = []
        source = iter(calls)
        while True:
            while len(queue) < 2 and (call := next(source, None)) is not None:
                call = self._without_left_out(call)
                if call.patterns.size:
                    self.caller.submit(self.source.array(call.patterns), call.shift, call.piece)
                    queue.append(call)
            if not queue:
                return True
            answer = self._answer(self.time_limit)
            call = queue.pop(0)
            if answer.status != "ok":
                self.caller.restart()
                pending, queue = queue, []
                if not self._locate(call, answer):
                    return False
                for again in (call, *pending):
                    if not self.go(iter([again])):
                        return False
                continue
            if not self._accept(call, answer):
                return False

    def _accept(self, call: Call, answer: Answer) -> bool:
        """Take a result into account; False if it is of no use."""
        assert answer.result is not None
        self.seconds += answer.seconds
        self.elements += call.patterns.size
        output = self.accepted.meaning(answer.result.dtype)
        if output is None:
            got = f"returns an array of {answer.result.dtype}; accepted are {self.accepted}"
            self.faults.append(Fault("wrong dtype", got, 0))
            return False
        if self.output is None:
            self.output = output
        elif output != self.output:
            text = f"returns {self.output.text} at first, and {output.text} for {call.patterns.size} elements"
            self._note_once("changing dtype", text)
        if answer.mutated:
            text = f"writes to the array that it is given (first seen with {call.patterns.size} elements)"
            self._note_once("changes its input", text)
        self.compare(call, answer.result, output)
        if self.progress is not None and self.total:
            self.progress(min(self.checked, self.total), self.total)
        return True

    def _without_left_out(self, call: Call) -> Call:
        if not self.left_out:
            return call
        values = self.source.values(call.patterns)
        out = np.isnan(values) if "NaN" in self.left_out else np.zeros(values.shape, np.bool_)
        if "infinity" in self.left_out:
            out = out | np.isinf(values)
        return call._replace(patterns=call.patterns[~out])

    def _locate(self, call: Call, answer: Answer) -> bool:
        """Find the input on which a call fails; return whether the check can go on without its kind."""
        # a call that hangs is waited for again and again: much longer than it should take is long enough
        usual = self.seconds / max(self.elements, 1) * call.patterns.size
        limit = min(self.time_limit, max(0.25, 20 * usual)) if answer.status == "hung" else self.time_limit
        patterns = call.patterns
        while patterns.size > 1:
            half = patterns.size // 2
            for part in (patterns[:half], patterns[half:]):
                other = self._ask(part, limit)
                if other.status == answer.status:
                    patterns, answer = part, other._replace(message=other.message)
                    break
            else:
                break
        if patterns.size > 1:
            self.time_limit *= 5
            if self._ask(call.patterns, self.time_limit).status == "ok":
                return True  # a busy machine, perhaps
            self._broken(answer, patterns[:0], f"for an array of {patterns.size} elements, but for neither half of it")
            return False
        value = float(self.source.values(patterns)[0])
        kind = "NaN" if math.isnan(value) else "infinity" if math.isinf(value) else ""
        self._broken(answer, patterns, f"for the input {input_text(patterns[0], value, self.source)}")
        if not kind or kind in self.left_out:
            self.notes.append("the check ended there: what else is wrong is not known")
            return False
        self.left_out.add(kind)
        self.notes.append(f"the check went on without {kind}")
        return True

    def _broken(self, answer: Answer, patterns: Array, where: str) -> None:
        name = {"raised": "raises", "hung": "hangs", "died": "crashes", "wrong type": "wrong result"}[answer.status]
        message = f"no answer, {where}" if answer.status == "hung" else f"{answer.message}, {where}"
        if answer.status == "wrong type":
            message = f"returns {message}"
        self.faults.append(Fault(name, message, 0))


def hexadecimal(pattern: int, bits: int) -> str:
    """Write the bits of an input or of a code."""
    return f"{pattern:#0{2 + -(-bits // 4)}x}"


def input_text(pattern: Any, value: float, source: Source) -> str:
    """Write an input, bits and value."""
    return f"{hexadecimal(int(pattern), source.bits)} = {exact_text(value)}"


def short_calls(patterns: Array) -> Iterator[Call]:
    """Yield arrays of every small length, three times, at changing addresses and with changing inputs."""
    start = 0
    for turn in range(3):
        for length in _LENGTHS:
            chosen = np.take(patterns, np.arange(start, start + length), mode="wrap")
            yield Call(chosen, (5 * length + 7 * turn) % 32, True)
            start += length
