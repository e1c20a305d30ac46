"""How the loops are compiled and where machine code is kept; only this folder imports numba.

numba keeps what it compiles in files, and takes them for whole: one that was cut or overwritten ends the program, now
and every time. And where no folder can be written to, it refuses to compile. Here each file ends with a digest of what
is before it, so that any damage is a miss: the loop is compiled again and the file replaced. Without a place nothing is
kept. Only the folders that numba itself would take are used: what lies there is code, so they must be nobody else's.

Of several processes that need a loop at the same time one compiles it, and the others take what it has kept.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import IO, Any

import numpy as np
from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

from precision_lab.numerics.errors import CompilerDisabledError

if sys.platform != "win32":  # there each process compiles for itself
    import fcntl

if config.DISABLE_JIT:  # type: ignore[attr-defined]  # numba makes it; the loops reinterpret bits, Python cannot
    raise CompilerDisabledError(
        "numba's compiler is switched off, and these loops exist only compiled; unset NUMBA_DISABLE_JIT (or take "
        "disable_jit out of .numba_config.yaml)"
    )

_DIGEST = hashlib.sha256
_PATIENCE = 60.0  # seconds for which a process waits for another that compiles the same loop


def compiled(*, signatures: Sequence[Any] = (), **options: Any) -> Callable[[Any], Any]:
    """Compile the decorated function when it is first called, and keep the result where there is a place.

    Parameters
    ----------
    signatures : sequence
        Compile it for these when it is first called, and for no others.
    options
        Others of `numba.njit`.

    """

    def decorate(function: Any) -> Any:
        function.__qualname__ = _unique_name(function)
        dispatcher = njit(nogil=True, **options)(function)
        with suppress(RuntimeError, OSError):  # no place can be written to
            dispatcher._cache = _Cache(function)
            _compile_in_turn(dispatcher)
        if signatures:
            _compile_when_called(dispatcher, signatures)
        return dispatcher

    return decorate


def _compile_when_called(dispatcher: Any, signatures: Sequence[Any]) -> None:
    """Compile a loop for its signatures when Python or another loop first asks for it; of many a command needs few."""

    def after_compiling(ask: Callable[..., Any]) -> Callable[..., Any]:
        def first(*arguments: Any, **others: Any) -> Any:
            with global_compiler_lock:  # of two threads the second finds it done
                if "get_call_template" in vars(dispatcher):
                    for signature in signatures:
                        dispatcher.compile(signature)
                    dispatcher.disable_compile()
                    del dispatcher._compile_for_args, dispatcher.get_call_template
            return ask(*arguments, **others)

        return first

    dispatcher._compile_for_args = after_compiling(lambda *_, **__: dispatcher)  # numba calls what it returns
    dispatcher.get_call_template = after_compiling(dispatcher.get_call_template)


def _compile_in_turn(dispatcher: Any) -> None:
    """Let go of a loop's turn when it is compiled, or cannot be."""
    compile_, cache = dispatcher.compile, dispatcher._cache

    def compile_and_let_go(signature: Any) -> Any:
        # a turn is its process's: of all threads only the one that compiles may have it
        with global_compiler_lock, ExitStack() as cache.turn:
            return compile_(signature)

    dispatcher.compile = compile_and_let_go


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait until no other process compiles the loop of this lock file; where it cannot be locked nobody waits.

    The kernel opens a lock of `fcntl` when its process ends, and children do not inherit it. Who waits holds turns of
    loops that call this one, and of no others, so that no two wait for each other.
    """
    try:
        file = path.open("ab")
    except OSError:
        yield
        return
    with file:
        try:
            _lock(file)
            yield
        finally:
            with suppress(OSError):  # it is only a sign: who has opened it may still wait for it
                path.unlink()


def _lock(file: IO[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while sys.platform != "win32" and time.monotonic() < end:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
            continue
        except OSError:  # a file system without locks
            pass
        return


class _Cache(FunctionCache):
    """numba's, whose failures cost time and nothing else."""

    turn: ExitStack  # ends when the loop is compiled

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        impl = self._impl
        stamp = impl.locator.get_source_stamp(), _folder()
        self._cache_file = _Files(self._cache_path, impl.filename_base, stamp)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        # numba adds a pickle of what a function closes over, which differs in each process; the name has it already
        return sig, codegen.magic_tuple()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        kept = self._kept(sig, target_context)
        if kept is None:
            self.turn.enter_context(_turn(Path(f"{self._cache_file._index_path}.lock")))
            kept = self._kept(sig, target_context)  # another process may have made it
        return kept

    def _kept(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever was kept, it cannot be used
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk, a folder that may no longer be written to
            super().save_overload(sig, data)


def _unique_name(function: Any) -> str:
    """Return a qualified name that no other loop of the same factory has: with a digest of what it closes over.

    By their names machine code from the cache is linked. numba tells the loops of a factory apart by a number, in the
    order in which a process compiles them: two loops from two processes may have the same one, and the code of one of
    them is then taken for both.

    Raises
    ------
    TypeError
        It closes over something else than numbers, types, texts, functions, other loops, and tuples of them.

    """
    name: str = function.__qualname__
    cells = [_written(cell.cell_contents) for cell in function.__closure__ or ()]
    return f"{name}.{_DIGEST(repr(cells).encode()).hexdigest()[:16]}" if cells else name


def _written(value: Any) -> Any:
    if isinstance(value, Dispatcher):
        return value.py_func.__module__, value.py_func.__qualname__
    if isinstance(value, _Intrinsic):
        return _written(value._defn)
    if isinstance(value, FunctionType):
        return value.__module__, _unique_name(value)
    if isinstance(value, tuple):
        return type(value).__qualname__, *map(_written, value)
    if isinstance(value, bool | int | float | str | np.generic | type):
        return repr(value)
    raise TypeError(f"a compiled loop cannot close over {value!r}: it would have no name in the cache")


@cache
def _folder() -> str:
    """Return a digest of all sources beside this one: a loop that is called is compiled into the one that calls it."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return _DIGEST(b"".join(source.read_bytes() for source in sources)).hexdigest()


class _Files(IndexDataCacheFile):
    """An index and, for each signature, a file of code; each is replaced at once by `_open_for_write`."""

    def save(self, key: Any, data: Any) -> None:
        # its name depends on the signature: two processes that each add one give them no common name
        # (their names are all there is to types: their pickles depend on which of their parts are one object)
        name = self._data_name(int.from_bytes(_DIGEST(repr(key).encode()).digest()[:6]))
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + _DIGEST(content.getvalue()).digest())

    def _load_index(self) -> dict[Any, str]:
        with suppress(Exception):  # it may be damaged between the two
            if _whole(self._index_path):
                index: dict[Any, str] = super()._load_index()
                return index
        return {}

    def _load_data(self, name: str) -> Any:
        if not _whole(self._data_path(name)):
            raise OSError(f"{name} is damaged")  # like one that is missing
        return super()._load_data(name)


def _whole(path: str) -> bool:
    """Whether a file ends with the digest of the rest, which unpickling leaves alone."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    size = len(content) - _DIGEST().digest_size
    return content[size:] == _DIGEST(content[:size]).digest() if size > 0 else False
