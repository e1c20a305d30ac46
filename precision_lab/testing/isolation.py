"""Call somebody's function so that nothing it does harms the caller: in a process of its own, with a time limit.

A thread cannot be killed and a signal does not reach compiled code that never returns; a process can be killed.

A forked one (Linux) has every function, lambdas too. Inputs and results lie in memory that both share, in two slots, so
that the caller looks at one result while the next is made. On macOS a forked process may hang or die within the
system's own libraries, and Windows has none: there a new interpreter imports the function by its name, and inputs and
results go through pipes. What has no name there, such as a lambda, runs in this process, without a time limit.
`isolation` chooses.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.processes import end_with_forking_thread, end_with_parent, wait_for_end_of
from precision_lab.testing.flush_watch import FlushWatch, Switch

Array = NDArray[Any]
SLOT = 1 << 18  # elements that a call may have
_ROOM = 128  # elements by which an array may be shifted in its slot
_WIDEST = 8  # bytes of an element
_REQUEST = struct.Struct("<qqqq")  # slot, shift, number of elements, of those in one call
_LENGTH = struct.Struct("<q")
_TO_START = 60.0  # seconds for a new interpreter and the imports of the function
_TO_SEND = 5.0  # seconds for a result that is ready


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
    switch : Switch or None
        How the call made its process flush subnormal numbers to zero, if it did.

    """

    status: str
    message: str = ""
    result: Array | None = None
    mutated: bool = False
    seconds: float = 0.0
    switch: Switch | None = None


class Caller(Protocol):
    """Calls a function.

    Attributes
    ----------
    limited : bool
        Whether it keeps to the limit of time, and survives a crash.

    """

    limited: bool

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


def call_watched(function: Callable[[Array], Any], x: Array, before: Array, watch: FlushWatch) -> Answer:
    """Call it as `call_once` does; if then the process flushes subnormal numbers, once more where it does not."""
    answer = call_once(function, x, before)
    if (seen := watch.look()) is None:
        return answer
    if not seen.undone:
        return answer._replace(switch=seen)
    bits = f"u{x.dtype.itemsize}"
    x.view(bits)[...] = before.view(bits)
    answer = call_once(function, x, before)
    return answer._replace(switch=seen._replace(again=watch.look() is not None))


def isolation(function: Callable[[Array], Any], dtype: np.dtype[Any], way: str | bool = True) -> Caller:
    """Return the caller of a function of arrays of this dtype.

    Parameters
    ----------
    function : callable
        What is called.
    dtype : dtype
        Of its inputs.
    way : str or bool
        ``fork``; ``spawn``: a new interpreter, which imports the function by its name; False: this process; True: the
        best there is here for this function.

    Raises
    ------
    ValueError
        Another way, or one that there is not, here or for this function.

    """
    if way is True:
        return Forked(function, dtype) if _fork_is_safe() else _spawned_or_here(function, dtype)
    if way is False:
        return InProcess(function)
    if way == "fork":
        if not hasattr(os, "fork"):
            raise ValueError("isolate='fork': this system has no fork; use 'spawn' or False")
        return Forked(function, dtype)
    if way != "spawn":
        raise ValueError(f"isolate must be True, False, 'fork' or 'spawn', got {way!r}")
    name = _name_of(function)
    if name is None:
        what = getattr(function, "__qualname__", type(function).__name__)
        raise ValueError(f"isolate='spawn' imports a function by its name, and {what} is not to be had by one")
    return Spawned(name, dtype)


def _fork_is_safe() -> bool:
    return hasattr(os, "fork") and sys.platform != "darwin"


def _spawned_or_here(function: Callable[[Array], Any], dtype: np.dtype[Any]) -> Caller:
    """Return the caller for where nothing can be forked: what cannot be imported elsewhere is called here."""
    if (name := _name_of(function)) is not None:
        caller = Spawned(name, dtype)
        if caller.failure is None:
            return caller
        caller.close()
    return InProcess(function)


def _name_of(function: Callable[[Array], Any]) -> tuple[str, str] | None:
    """Return the module and the name by which another interpreter can import a function, None if there are none."""
    module, name = (getattr(function, key, None) for key in ("__module__", "__qualname__"))
    # to import a script is to run it again
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__" or module not in sys.modules:
        return None
    target: Any = sys.modules[module]
    for part in name.split("."):
        target = getattr(target, part, None)
    return (module, name) if target is function else None


def call_in_pieces(
    function: Callable[[Array], Any],
    x: Array,
    piece: int,
    before: Array,
    room: Callable[[np.dtype[Any], int], Array],
    watch: FlushWatch,
) -> Answer:
    """Call it with every piece of an array and put together what it returns, in the array that `room` gives."""
    result: Array | None = None
    kind: np.dtype[Any] | None = None
    mutated, seconds, switch = False, 0.0, watch.taken()
    for start in range(0, x.size, piece):
        part = slice(start, min(start + piece, x.size))
        answer = call_watched(function, x[part], before[part], watch)
        switch = switch or answer.switch
        if answer.result is None:
            return answer._replace(switch=switch)
        if result is None:
            kind = answer.result.dtype
            result = room(kind.newbyteorder("="), x.size)
        elif answer.result.dtype != kind:
            return Answer("wrong type", f"arrays of {kind} and of {answer.result.dtype}", switch=switch)
        mutated, seconds = mutated or answer.mutated, seconds + answer.seconds
        result[part] = answer.result
    return Answer("ok", "", result, mutated, seconds, switch)


def _names(dtype: np.dtype[Any]) -> tuple[str, str]:
    return dtype.name, dtype.str  # ml_dtypes have a name of their own only


@cache
def _named(name: str, kind: str) -> np.dtype[Any]:
    import ml_dtypes

    known = getattr(ml_dtypes, name, None)
    return (np.dtype(kind) if known is None else np.dtype(known)).newbyteorder("=")


def _as_text(answer: Answer) -> bytes:
    """Write an answer down, of its result the dtype only."""
    result = None if answer.result is None else _names(answer.result.dtype)
    return json.dumps(answer._replace(result=None)._asdict() | {"result": result}).encode()


def _from_text(text: bytes) -> dict[str, Any]:
    """Read what `_as_text` wrote: the fields of an answer, of its result the dtype."""
    fields: dict[str, Any] = json.loads(text)
    return fields | {"switch": None if fields["switch"] is None else Switch(*fields["switch"])}


def _keep_quiet() -> None:
    """Leave to the caller what concerns both: Ctrl-C, and the report of a crash."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the caller does then is not to be done here
    faulthandler.disable()


def _ending(status: int) -> str:
    """Say how a process ended; a negative status is a signal's."""
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


class InProcess:
    """Calls in this process, without a time limit."""

    limited = False

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

    limited = True

    def __init__(self, function: Callable[[Array], Any], dtype: np.dtype[Any]) -> None:
        self._function, self._dtype = function, dtype
        self._region = (SLOT + _ROOM) * _WIDEST
        self._memory = mmap.mmap(-1, 4 * self._region)  # two inputs, two results
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
        _keep_quiet()
        threadpool_limits(1)
        before, watch = np.empty(SLOT, self._dtype), FlushWatch()
        while len(request := os.read(requests, _REQUEST.size)) == _REQUEST.size:
            slot, shift, count, piece = _REQUEST.unpack(request)
            x, room = self._input(slot, shift, count), partial(self._output, slot)
            text = _as_text(call_in_pieces(self._function, x, piece, before, room, watch))
            os.write(answers, _LENGTH.pack(len(text)) + text)

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
        answer = _from_text(text)
        if answer["result"] is not None:
            answer["result"] = self._output(slot, _named(*answer["result"]), count)
        return Answer(**answer)

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
        return _ending(os.waitstatus_to_exitcode(status))

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


# what the new interpreter runs: its path, too, comes from the caller
_PROGRAM = """
import json, sys
start = json.loads(sys.stdin.buffer.readline())
sys.path[:] = start.pop("path")
from precision_lab.testing.isolation import serve
serve(**start)
"""


class Spawned:
    """Calls in a new interpreter, which imports the function; `limit` seconds a call, then it is killed.

    A call waits for the answer to the one before: whoever writes to a process that hangs waits for ever. What the
    function prints goes to standard error. `failure` is how its import failed, if it did.
    """

    limited = True

    def __init__(self, name: tuple[str, str], dtype: np.dtype[Any]) -> None:
        self._name, self._dtype = name, dtype
        self._start()

    def _start(self) -> None:
        self._waiting: deque[tuple[Array, int, int]] = deque()
        self._answers: SimpleQueue[bytes | None] = SimpleQueue()
        module, name = self._name
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        threading.Thread(target=self._listen, args=(self._process, self._answers), daemon=True).start()
        start = {
            "path": _path_of(module),
            "module": module,
            "name": name,
            "dtype": _names(self._dtype),
            "caller": os.getpid(),
        }
        self._send(json.dumps(start).encode() + b"\n")
        self.failure = self._take(_TO_START)

    @staticmethod
    def _listen(process: subprocess.Popen[bytes], answers: SimpleQueue[bytes | None]) -> None:
        """Hand over what comes, in a thread: pipes of Windows cannot be waited for with a limit of time."""
        assert process.stdout is not None
        with process.stdout as source:
            while (part := _receive(source)) is not None:
                answers.put(part)
        answers.put(None)

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it died: `answer` says so
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _take(self, limit: float) -> Answer | None:
        """Wait for an answer's text; return it, None for `ok`, whose result is still to come."""
        try:
            text = self._answers.get(timeout=limit)
        except Empty:
            return Answer("hung", f"no answer within {limit:g} s")
        if text is None:
            return Answer("died", _ending(self._process.wait()))
        self._last = _from_text(text)
        return None if self._last["status"] == "ok" else Answer(**self._last)

    def submit(self, x: Array, shift: int = 0, piece: int = SLOT) -> None:
        """See `Caller`."""
        self._waiting.append((np.array(x), shift, piece))

    def answer(self, limit: float) -> Answer:
        """See `Caller`."""
        x, shift, piece = self._waiting.popleft()
        if self.failure is not None:
            return self.failure
        end = time.perf_counter() + limit
        self._send(_REQUEST.pack(x.nbytes, shift, x.size, piece) + x.tobytes())
        if (failure := self._take(limit)) is not None:
            return failure
        try:
            data = self._answers.get(timeout=max(0.0, end - time.perf_counter()) + _TO_SEND)
        except Empty:
            return Answer("hung", f"no result within {limit:g} s")
        if data is None:
            return Answer("died", _ending(self._process.wait()))
        return Answer(**self._last | {"result": np.frombuffer(data, np.uint8).view(_named(*self._last["result"]))})

    def restart(self) -> None:
        """See `Caller`."""
        self.close()
        self._start()

    def close(self) -> None:
        """See `Caller`."""
        assert self._process.stdin is not None
        self._process.kill()
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


def _path_of(module: str) -> list[str]:
    """Return where the new interpreter looks for modules: as here, and last where this one is from."""
    top = sys.modules[module.partition(".")[0]]
    files = [*getattr(top, "__path__", ()), getattr(top, "__file__", None)]
    return [str(Path(place).absolute()) for place in sys.path] + [str(Path(file).parent) for file in files[:1] if file]


def _receive(source: Any) -> bytes | None:
    """Read one part, its length first; None if the other side is gone."""
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    part: bytes = source.read(length)
    return part if len(part) == length else None


def serve(module: str, name: str, dtype: tuple[str, str], caller: int) -> None:
    """Import a function and call it as often as the caller asks for it: what the interpreter of `Spawned` does."""
    _keep_quiet()
    end_with_parent(lambda: wait_for_end_of(caller))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints is no answer

    def send(answer: Answer) -> None:
        parts = [_as_text(answer), *([answer.result.tobytes()] if answer.result is not None else [])]
        answers.write(b"".join(_LENGTH.pack(len(part)) + part for part in parts))
        answers.flush()

    watch = FlushWatch()
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:
        return send(Answer("raised", f"{type(error).__name__}: {error}, where {module} is imported anew"))
    send(Answer("ok"))
    watch.look(f"importing {module}")
    kind = _named(*dtype)
    before = np.empty(SLOT, kind)
    while len(request := sys.stdin.buffer.read(_REQUEST.size)) == _REQUEST.size:
        size, shift, count, piece = _REQUEST.unpack(request)
        x = np.empty(count + shift, kind)[shift:]
        x.view(np.uint8)[...] = np.frombuffer(sys.stdin.buffer.read(size), np.uint8)
        send(call_in_pieces(function, x, piece, before, lambda kind, length: np.empty(length, kind), watch))
