"""Call somebody's function so that nothing it does harms the caller: in a forked process, with a time limit.

A thread cannot be killed and a signal does not reach compiled code that never returns. A forked process can be killed,
and it has every function, lambdas too. Inputs and results lie in memory that both share, in two slots, so that the
caller looks at one result while the next is made.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import select
import signal
import struct
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from precision_lab.numerics.environment import require_gradual_underflow
from precision_lab.support.processes import end_with_forking_thread

Array = NDArray[Any]
SLOT = 1 << 18  # elements that a call may have
_ROOM = 128  # elements by which an array may be shifted in its slot
_WIDEST = 8  # bytes of an element
_REQUEST = struct.Struct("<qqqq")  # slot, shift, number of elements, of those in one call
_LENGTH = struct.Struct("<q")


class Answer(NamedTuple):
    """What became of a call.

    Attributes
    ----------
    status : str
        ``ok``, ``raised``, ``wrong type`` (no array, or another shape), ``hung`` or ``died``.
    message : str
        Of an exception, a wrong type, a signal.
    result : ndarray or None
        What it returned; it is overwritten by the next call but one.
    mutated : bool
        Whether the input was changed.
    seconds : float
        How long it took.

    """

    status: str
    message: str = ""
    result: Array | None = None
    mutated: bool = False
    seconds: float = 0.0


class Caller(Protocol):
    """Calls a function."""

    def submit(self, x: Array, shift: int = 0, piece: int = SLOT) -> None:
        """Ask for a call with this array, at an address shifted by so many elements; at most two at a time.

        Of a large array every piece may be a call of its own: pieces that fit into the caches are much faster.
        """

    def answer(self, limit: float) -> Answer:
        """Wait so many seconds for the answer to the first call that has had none."""

    def restart(self) -> None:
        """Forget all calls; after an answer that is not ``ok``."""

    def close(self) -> None:
        """End it."""


def call_once(function: Callable[[Array], Any], x: Array, before: Array | None = None) -> Answer:
    """Call it and look at what it returned, without a time limit; `before` is memory for a copy of x."""
    before = np.empty_like(x) if before is None else before
    before[...] = x
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            result = function(x)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Answer("raised", " ".join(f"{type(error).__name__}: {error}".split())[:300])
    seconds = time.perf_counter() - start
    bits = f"u{x.dtype.itemsize}"
    mutated = not np.array_equal(x.view(bits), before.view(bits))
    if not isinstance(result, np.ndarray):
        return Answer("wrong type", f"{type(result).__name__}, no numpy array", None, mutated, seconds)
    if result.shape != x.shape:
        return Answer("wrong type", f"shape {result.shape} for an input of shape {x.shape}", None, mutated, seconds)
    if result.dtype.itemsize > _WIDEST or result.dtype.hasobject:
        return Answer("wrong type", f"an array of {result.dtype}", None, mutated, seconds)
    return Answer("ok", "", result, mutated, seconds)


class InProcess:
    """Calls in this process, without a time limit."""

    def __init__(self, function: Callable[[Array], Any]) -> None:
        self._function = function
        self._waiting: deque[Array] = deque()

    def submit(self, x: Array, shift: int = 0, piece: int = SLOT) -> None:
        """See `Caller`."""
        memory = np.empty(x.size + shift, x.dtype)
        memory[shift:] = x
        self._waiting.append(memory[shift:])

    def answer(self, limit: float) -> Answer:
        """See `Caller`."""
        answer = call_once(self._function, self._waiting.popleft())
        # it may have switched it on, here, where its results are looked at
        require_gradual_underflow("since the function was called")
        return answer

    def restart(self) -> None:
        """See `Caller`."""
        self._waiting.clear()

    def close(self) -> None:
        """See `Caller`."""
        self._waiting.clear()


class Forked:
    """Calls in a process forked from this one; `limit` seconds a call, then it is killed.

    Libraries that compute in threads are held to one there: a forked process has no other threads, and some wait for
    them for ever.
    """

    def __init__(self, function: Callable[[Array], Any], dtype: np.dtype[Any]) -> None:
        self._function, self._dtype = function, dtype
        self._region = (SLOT + _ROOM) * _WIDEST
        self._memory = mmap.mmap(-1, 4 * self._region)  # two inputs, two results
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._start()

    def _start(self) -> None:
        self._waiting: deque[tuple[int, int]] = deque()
        self._next = 0
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        caller = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
            self._pid: int | None = os.fork()
        if self._pid == 0:
            try:
                end_with_forking_thread(caller)
                os.close(self._requests)
                os.close(self._answers)
                self._serve(requests, answers)
            finally:
                os._exit(0)
        os.close(requests)
        os.close(answers)

    def _serve(self, requests: int, answers: int) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to answer
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and so is what the caller does then
        faulthandler.disable()  # the caller reports a crash
        threadpool_limits(1)
        self._before = np.empty(SLOT, self._dtype)
        while len(request := os.read(requests, _REQUEST.size)) == _REQUEST.size:
            slot, shift, count, piece = _REQUEST.unpack(request)
            answer = self._call_in_pieces(slot, self._input(slot, shift, count), piece)
            text = json.dumps(answer._asdict()).encode()
            os.write(answers, _LENGTH.pack(len(text)) + text)

    def _call_in_pieces(self, slot: int, x: Array, piece: int) -> Answer:
        """Call the function and leave what it returns in the slot; `result` becomes the names of the dtype."""
        before = self._before[: x.size]
        names: tuple[str, str] | None = None
        mutated, seconds = False, 0.0
        for start in range(0, x.size, piece):
            part = slice(start, min(start + piece, x.size))
            answer = call_once(self._function, x[part], before[part])
            if answer.result is None:
                return answer
            dtype = answer.result.dtype
            here = dtype.name, dtype.str  # ml_dtypes have a name of their own only
            if names not in (None, here):
                return Answer("wrong type", f"arrays of {names[0] if names else ''} and of {here[0]}")
            names = here
            mutated, seconds = mutated or answer.mutated, seconds + answer.seconds
            self._output(slot, dtype.newbyteorder("="), x.size)[part] = answer.result
        return Answer("ok", "", names, mutated, seconds)  # type: ignore[arg-type]

    def _input(self, slot: int, shift: int, count: int) -> Array:
        start = slot * self._region + shift * self._dtype.itemsize
        raw = np.frombuffer(self._memory, np.uint8, count * self._dtype.itemsize, start)
        return raw.view(self._dtype)

    def _output(self, slot: int, dtype: np.dtype[Any], count: int) -> Array:
        raw = np.frombuffer(self._memory, np.uint8, count * dtype.itemsize, (2 + slot) * self._region)
        return raw.view(dtype)

    def submit(self, x: Array, shift: int = 0, piece: int = SLOT) -> None:
        """See `Caller`."""
        slot = self._next
        self._next = 1 - slot
        self._input(slot, shift, x.size)[...] = x
        self._waiting.append((slot, x.size))
        with suppress(BrokenPipeError):  # it died: `answer` says so
            os.write(self._requests, _REQUEST.pack(slot, shift, x.size, piece))

    def answer(self, limit: float) -> Answer:
        """See `Caller`."""
        slot, count = self._waiting.popleft()
        end = time.perf_counter() + limit
        length = self._read(_LENGTH.size, end)
        text = None if length is None else self._read(_LENGTH.unpack(length)[0], end) if length else b""
        if text is None:
            self._kill()
            return Answer("hung", f"no answer within {limit:g} s")
        if not text:
            return Answer("died", self._how_it_died())
        answer = json.loads(text)
        if answer["result"] is not None:
            answer["result"] = self._output(slot, self._named(*answer["result"]), count)
        return Answer(**answer)

    def _named(self, name: str, kind: str) -> np.dtype[Any]:
        if name not in self._dtypes:
            import ml_dtypes

            known = getattr(ml_dtypes, name, None)
            self._dtypes[name] = (np.dtype(kind) if known is None else np.dtype(known)).newbyteorder("=")
        return self._dtypes[name]

    def _read(self, count: int, end: float) -> bytes | None:
        """Read so many bytes; None if they do not come in time, nothing if there is nobody to send them."""
        data = b""
        while len(data) < count:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.perf_counter()))
            if not ready:
                return None
            part = os.read(self._answers, count - len(data))
            if not part:
                return b""
            data += part
        return data

    def _how_it_died(self) -> str:
        assert self._pid is not None
        _, status = os.waitpid(self._pid, 0)
        self._pid = None
        if os.WIFSIGNALED(status):
            return f"its process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"its process ended with status {os.WEXITSTATUS(status)}"

    def _kill(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = None

    def restart(self) -> None:
        """See `Caller`."""
        self.close()
        self._start()

    def close(self) -> None:
        """See `Caller`."""
        self._kill()
        os.close(self._requests)
        os.close(self._answers)
