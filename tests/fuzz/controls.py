"""Commands that break each promise once: the harness must object to every one of them.

`python -m tests.fuzz.controls` prints what it said to each, as JSON. It is a program of its own because it forks: a
test runner has threads.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from precision_lab.cli import app
from tests.fuzz.doors import Case
from tests.fuzz.harness import Limits, run, warm_up

LIMITS = Limits(mib=50, cpu=2, wall=10.0)


def _fine() -> None:
    click.echo("│ a table │")
    Path("out.json").write_text("{}", "utf-8")


def _refused() -> None:
    raise ValueError("bad input; give a good one")


def _traceback() -> None:
    raise KeyError("planted")


def _two_lines() -> None:
    click.echo("precision-lab: error: one line", err=True)
    raise ValueError("and another")


def _other_line() -> None:
    click.echo("error: not as it is promised", err=True)
    sys.exit(2)


def _escape() -> None:
    click.echo("a tensor's name\x1b[2J")


def _c1() -> None:
    click.echo("a tensor's name\x9b2J")


def _bidi() -> None:
    click.echo("precision-lab: error: the file '\u202egnp.exe'", err=True)
    sys.exit(2)


def _address() -> None:
    raise ValueError(f"malformed: {object()}")


def _no_utf8() -> None:
    sys.stdout.buffer.write(b"\xff\n")


def _left_file() -> None:
    Path(".out.json.part").touch()
    _refused()


def _changed_input() -> None:
    Path("w.txt").write_text("other", "utf-8")


def _removed_input() -> None:
    Path("w.txt").unlink()


def _half_json() -> None:
    Path("out.json").write_text('{"a": ', "utf-8")


def _nan_json() -> None:
    Path("out.json").write_text('{"a": NaN}', "utf-8")


def _no_json() -> None:
    pass


def _hang() -> None:
    time.sleep(3600)


def _computes() -> None:
    while True:
        pass


def _memory() -> None:
    click.echo(len(bytes(bytearray(b"x") * 200_000_000)) % 7)
    _fine()


def _all_memory() -> None:
    held = []
    while True:
        held.append(bytes(1 << 28))  # not touched: it costs room, and no time


def _status() -> None:
    sys.exit(3)


def _differs() -> None:
    sys.exit(1)


def _dies() -> None:
    os.abort()


def _half_said() -> None:
    click.echo("half a table")
    _refused()


def _warns() -> None:
    _fine()
    click.echo("RuntimeWarning: overflow encountered", err=True)


def _connects() -> None:
    _fine()
    with socket.socket() as it:
        it.settimeout(1)
        it.connect_ex(("127.0.0.1", 9))


def _starts() -> None:
    import subprocess

    _fine()
    subprocess.run(["true"], check=True)


def _shell() -> None:
    _fine()
    os.system("true")


def _outside() -> None:
    _fine()
    place = Path("..", "elsewhere")
    place.touch()
    place.unlink()


def _payload() -> None:
    _fine()
    Path("ran").mkdir()


def _process() -> None:
    _fine()
    sys.stdout.flush()
    if not os.fork():
        time.sleep(60)
        os._exit(0)


CONTROLS: dict[str, tuple[Callable[[], None], str]] = {
    "fine": (_fine, ""),
    "refused": (_refused, ""),
    "traceback": (_traceback, "a traceback: KeyError: 'planted'"),
    "two lines": (_two_lines, "not one line on stderr"),
    "another line": (_other_line, "not one line on stderr"),
    "escape": (_escape, r"stdout has ['\x1b']"),
    "C1": (_c1, r"stdout has ['\x9b']"),
    "bidi": (_bidi, r"stderr has ['\u202e']"),
    "address": (_address, "stderr has an address"),
    "no UTF-8": (_no_utf8, "stdout is not UTF-8"),
    "file left": (_left_file, "left: '.out.json.part'"),
    "input changed": (_changed_input, "changed: 'w.txt'"),
    "input removed": (_removed_input, "removed: 'w.txt'"),
    "half an output": (_half_json, "out.json: Expecting value"),
    "NaN in an output": (_nan_json, "out.json: invalid literal"),
    "no output": (_no_json, "out.json: [Errno 2]"),
    "hang": (_hang, "it hangs"),
    "computes for ever": (_computes, "it computes for ever"),
    "memory": (_memory, " MiB"),
    "all memory": (_all_memory, "a traceback: MemoryError"),
    "status": (_status, "status 3"),
    "status of verify": (_differs, "status 1"),
    "dies": (_dies, "ended by SIGABRT"),
    "half said": (_half_said, "something on stdout, and status 2"),
    "warning": (_warns, "something on stderr, and status 0"),
    "socket": (_connects, "it did: socket.connect"),
    "process": (_starts, "it did: subprocess.Popen"),
    "shell": (_shell, "it did: os.system"),
    "written elsewhere": (_outside, "it did: open"),
    "payload": (_payload, "left: 'ran'"),
    "process left": (_process, "a process is left"),
}
"""By a name: a command, and what must be objected to; nothing for one that is as it should be."""


def objections() -> dict[str, list[str]]:
    """Run every control in the place of `scan` and return what the harness objects to."""
    found: dict[str, Any] = {}
    for name, (body, _) in CONTROLS.items():
        app.commands["scan"] = click.Command(
            "scan",
            callback=lambda body=body, **_: body(),
            params=[click.Argument(["f"]), click.Option(["--json", "data"])],
        )
        case = Case(0, "control", name, ("scan", "w.txt", "--json", "out.json"), {"w.txt": b"good"}, ("out.json",))
        found[name] = run(case, limits=LIMITS).complaints
    return found


if __name__ == "__main__":
    warm_up(doors=False)
    print(json.dumps(objections()))
