"""How a command ends: by which signal, with which status, and with which line.

Nothing heavy is imported here: a command can be ended from its first moment.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

DIFFERS = 1
"""`verify` found something that is not as it should be."""
REFUSED = 2
"""Bad input, a file that cannot be read or written, no compiler: one line on standard error says what and the cure."""
INTERRUPTED = 130
"""Ctrl-C (128 + SIGINT), in one line."""
NOBODY_READS = 141
"""The reader of the output has gone, as in ``| head`` (128 + SIGPIPE), without a word."""
TERMINATED = 143
"""SIGTERM (128 + SIGTERM), in one line: a batch system, ``timeout``, a container that is stopped."""


class Terminated(KeyboardInterrupt):  # no error, as KeyboardInterrupt is none
    """SIGTERM has come: everything that cleans up after Ctrl-C does after this."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends two; the cleaning up goes on
    raise Terminated


def _again(unraisable: Any) -> None:
    """Send a signal once more whose exception Python had to drop: one that came within a destructor or a callback.

    Imports have many callbacks, and the command would go on as if nobody had asked it to end.
    """
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGINT
    if isinstance(unraisable.exc_value, Terminated):
        number = signal.SIGTERM
        signal.signal(number, _terminate)
    main_thread = threading.get_ident()  # only there are signals answered

    def send() -> None:
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main_thread, number)
        else:
            _thread.interrupt_main(number)

    timer = threading.Timer(0.02, send)  # by then the destructor has ended; if not, once more
    timer.daemon = True
    timer.start()


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` where SIGTERM would end the process, and lose no Ctrl-C, as long as the block runs."""
    answer = signal.getsignal(signal.SIGTERM)
    # somebody ignores it, or answers it already; and threads cannot
    if answer is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    hook, sys.unraisablehook = sys.unraisablehook, _again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, answer)


def stopped(why: KeyboardInterrupt) -> NoReturn:
    """Say in one line that the command was stopped, and exit."""
    terminated = isinstance(why, Terminated)
    # Ctrl-C leaves a ^C on the terminal's line
    message = "precision-lab: terminated" if terminated else "\nprecision-lab: interrupted"
    print(message, file=sys.stderr)  # noqa: T201
    sys.exit(TERMINATED if terminated else INTERRUPTED)
