"""One input in a process of its own, and what must be so afterwards."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import click

from precision_lab.cli import main
from tests.fuzz.doors import DOORS, Case, Special
from tests.fuzz.seeds import KINDS, good

REPOSITORY = Path(__file__).parents[2]
MIB = 1 << 20
_NOWHERE = "nowhere"


@dataclass(frozen=True)
class Limits:
    """What an input may take: MiB beside the warm process, seconds of the processor, seconds until it hangs."""

    mib: int = 300
    cpu: int = 20
    wall: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of an input; `complaints` is empty if all is well."""

    number: int
    kind: str
    what: str
    status: int
    complaints: list[str] = field(default_factory=list)
    mib: float = 0.0
    seconds: float = 0.0
    out: str = ""
    err: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# ---- the folder ----


def _make_special(path: Path, special: Special) -> None:
    match special:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "zeros" | "null" | "full":
            path.symlink_to({"zeros": "/dev/zero", "null": "/dev/null", "full": "/dev/full"}[special])
        case "dangling":
            path.symlink_to(_NOWHERE)
        case "loop":
            path.symlink_to(path.name)
        case "empty" | "unreadable":
            path.touch(0 if special == "unreadable" else 0o644)
        case "socket":
            here = os.open(path.parent, os.O_RDONLY)  # the address has room for a short name only
            try:
                with socket.socket(socket.AF_UNIX) as it:
                    it.bind(f"/proc/self/fd/{here}/{path.name}")
            finally:
                os.close(here)


def lay_out(case: Case, folder: Path) -> None:
    """Write the files of an input."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            _make_special(path, content)


def _inventory(folder: Path) -> dict[str, str]:
    """Return what is in a folder, links as links: by its path what it is."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            state = path.lstat()
            what = stat.filemode(state.st_mode)
            if stat.S_ISLNK(state.st_mode):
                what += str(path.readlink())
            elif stat.S_ISREG(state.st_mode):
                what += hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = what
    return found


# ---- in the child ----

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ON_PATHS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_NEVER = (
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"),
)


def _watch(folder: Path, report: int) -> None:
    """Write down what an input has no business to do."""
    home = f"{folder.resolve()}/"

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        place = os.path.realpath(os.fsdecode(path)) + "/"
        return not (place.startswith((home, "/dev/", "/proc/")) or "/__pycache__/" in place)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            said = flags & _WRITING and outside(path)
        elif event in _ON_PATHS:
            path, said = arguments[:2], any(map(outside, arguments[:2]))
        else:
            path, said = arguments, event in _NEVER
        if said:
            os.write(report, f"{event} {path!r}"[:300].encode("utf-8", "replace") + b"\n")

    sys.addaudithook(hook)


def _child(case: Case, folder: Path, logs: tuple[int, int, int], limits: Limits, *, new: bool) -> NoReturn:
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limits.wall)
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        for descriptor, log in enumerate((os.open(os.devnull, os.O_RDONLY), *logs[:2])):
            os.dup2(log, descriptor)
        if new:
            python = (sys.executable, "-c", "from precision_lab.cli import main; main()")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
            os.execv(python[0], [*python, *case.words])
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2048 * MIB,) * 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8", "strict")
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8", "backslashreplace")
        vars(click.utils)["should_strip_ansi"] = lambda *_: False  # what a terminal would be sent
        _watch(folder, logs[2])
        sys.argv = ["precision-lab", *case.words]
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


# ---- in the parent ----


@cache
def _resident() -> float:
    """Return the MiB that a fork of this process has from the start: files in memory are not among them."""
    child = os.fork()
    if not child:
        os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss / 1024


def _left(group: int) -> bool:
    """Return whether a process of the group is left after a moment, and end it."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return True


def run(case: Case, *, limits: Limits = Limits(), new: bool = False, keep: Path | None = None) -> Outcome:
    """Run an input, in a fork of this process or in a new one, and judge it.

    `keep` is an empty folder where its files stay.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder = keep or Path(scratch, "folder")
        folder.mkdir(exist_ok=True)
        lay_out(case, folder)
        before = _inventory(folder)
        places = [Path(scratch, name) for name in ("out", "err", "watch")]
        logs = [os.open(place, os.O_RDWR | os.O_CREAT, 0o600) for place in places]
        resident = 0.0 if new else _resident()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
            child = os.fork()
        if not child:
            _child(case, folder, (logs[0], logs[1], logs[2]), limits, new=new)
        _, ended, usage = os.wait4(child, 0)
        for log in logs:
            os.close(log)
        status = os.waitstatus_to_exitcode(ended)
        out, err, watched = (place.read_bytes()[:10_000_000] for place in places)
        mib = usage.ru_maxrss / 1024 - resident  # of a new process with all it has imported
        seconds = usage.ru_utime + usage.ru_stime
        complaints = list(_complaints(case, status, out, err, folder, before))
        complaints += [f"it did: {line}" for line in watched.decode().splitlines()]
        if _left(child):
            complaints.append("a process is left")
        if mib > limits.mib + 500 * new:
            complaints.append(f"{mib:.0f} MiB")
        if folder == keep:
            for place in places[:2]:
                shutil.copy(place, f"{keep}.{place.name}")
    texts = [text.decode("utf-8", "replace") for text in (out, err)]
    said = [text if complaints else text[:200] for text in texts]
    return Outcome(case.number, case.kind, case.what, status, complaints, round(mib, 1), round(seconds, 2), *said)


def _complaints(case: Case, status: int, out: bytes, err: bytes, folder: Path, before: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with what a command said and left."""
    if status < 0:
        signals = {signal.SIGALRM: "it hangs", signal.SIGXCPU: "it computes for ever"}
        yield signals.get(signal.Signals(-status), f"ended by {signal.Signals(-status).name}")
    elif status not in ((0, 1, 2) if case.words[0] == "verify" else (0, 2)):
        yield f"status {status}"
    for name, said in (("stdout", out), ("stderr", err)):
        try:
            text = said.decode()
        except UnicodeDecodeError as error:
            yield f"{name} is not UTF-8: {error}"
            continue
        if "Traceback (most recent call last)" in text:
            yield f"a traceback: {text.strip().splitlines()[-1][:200]}"
        if " object at 0x" in text:
            yield f"{name} has an address, which is another each time"
        if odd := sorted({c for c in text if not c.isprintable() and c != "\n"}):
            yield f"{name} has {odd!r}"
    lines = err.decode("utf-8", "replace").split("\n")
    if status == 2 and not (len(lines) == 2 and lines[0].startswith("precision-lab: error: ") and not lines[1]):
        yield "not one line on stderr"
    elif status == 0 and not all(line.startswith(("skipped ", "note: ")) for line in lines[:-1]):
        yield "something on stderr, and status 0"
    shows_kept = "what is kept there cannot be shown" in err.decode("utf-8", "replace")  # found after the tables
    if status == 2 and out and not shows_kept:
        yield "something on stdout, and status 2"
    followed = [_NOWHERE for name, content in case.files.items() if content == "dangling" and name in case.writes]
    allowed = [f"{place.rstrip('/')}/" for place in (*case.writes, *followed)]
    after = _inventory(folder)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            what = "removed" if name not in after else "changed" if name in before else "left"
            kept = status == 0 or (shows_kept and what != "removed")
            if not kept or not f"{name}/".startswith(tuple(allowed)):
                yield f"{what}: {name!r}"
    if status == 0:
        yield from _broken(case, folder)


def _broken(case: Case, folder: Path) -> Iterator[str]:
    """Yield what is wrong with the outputs."""
    for word in case.words:
        path = folder / word
        if word == "out.json":
            try:
                json.loads(path.read_text("utf-8"), parse_constant=int)  # no NaN
            except (OSError, ValueError) as error:
                yield f"out.json: {error}"
        elif word in ("out.html", "out.svg", "out.md"):
            try:
                text = path.read_text("utf-8")
            except (OSError, ValueError) as error:
                yield f"{word}: {error}"
            else:
                if odd := sorted({c for c in text if not c.isprintable() and c not in "\n\t\xa0\u202f\u2009"}):
                    yield f"{word} has {odd!r}"


# ---- warm, and many ----


def warm_up(doors: bool = True) -> None:
    """Import everything and load the compiled loops, once, so that a fork has them."""
    if find_spec("torch"):  # the controls need none
        import torch

        torch.set_num_threads(1)  # threads do not outlive a fork
    path = list(sys.path)
    if doors:
        for kind in KINDS:
            good(kind)
        seen = set()
        for door in DOORS:
            if door.kinds and (door.command, door.option) not in seen:
                seen.add((door.command, door.option))
                _quietly(door.command, *_warm_words(door.words, door.kinds[0]))
        for words in (("inspect", "1"), ("claims", "fp16-1e-7"), ("hyperparameters",), ("memory",)):
            _quietly(*words)
    sys.path[:] = path
    gc.collect()
    gc.freeze()


def _warm_words(words: tuple[str, ...], kind: str) -> Iterator[str]:
    yield from (f"{{{kind}}}" if word == "{}" else word for word in words)


def _quietly(*words: str) -> None:
    """Run a command in this process, ``{npz}`` being a good file of that kind; it must succeed."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _nothing_shown(), warnings.catch_warnings():
        said = []
        for word in words:
            if word.startswith("{"):
                for name, content in good(word[1:-1]).items():
                    path = Path(folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                said.append(str(Path(folder, KINDS[word[1:-1]].main)))
            else:
                said.append(word)
        arguments, sys.argv = sys.argv, ["precision-lab", *said]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"a good input is refused: {said}") from end
        finally:
            sys.argv = arguments


@contextmanager
def _nothing_shown() -> Iterator[None]:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def run_all(cases: Callable[[int], Case], numbers: list[int], workers: int, *, new: bool = False) -> Iterator[Outcome]:
    """Run inputs in forks of this process, every so-many-th in each, and yield what became of them as it comes."""
    children, read = [], []
    sys.stdout.flush()
    for worker in range(workers):
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(ours)
                with os.fdopen(theirs, "w", encoding="utf-8") as pipe:
                    for number in numbers[worker::workers]:
                        pipe.write(json.dumps(run(cases(number), new=new).to_dict()) + "\n")
                        pipe.flush()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(theirs)
        children.append(child)
        read.append(ours)
    yield from _as_they_come(read)
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("a worker of the fuzzer failed")


def _as_they_come(pipes: list[int]) -> Iterator[Outcome]:
    import selectors

    begun = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                pipe = key.fd
                if not (got := os.read(pipe, 1 << 16)):
                    selector.unregister(pipe)
                    os.close(pipe)
                    continue
                *lines, begun[pipe] = (begun[pipe] + got).split(b"\n")
                yield from (Outcome(**json.loads(line)) for line in lines)
