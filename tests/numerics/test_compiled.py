"""Compiled loops are kept where there is a place, and no cache, damaged or missing, keeps anybody from computing."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, TypeAlias

import numpy as np
import pytest
from numba import float64
from numba.core.errors import TypingError

import precision_lab
from precision_lab.numerics.kernels import compiled
from precision_lab.numerics.kernels.compiled import _whole
from tests.conftest import wait_until

FILES: Any = compiled._Files  # numba has no types
PACKAGE = Path(precision_lab.__file__).parent
# needs loops of several factories, the last of which nothing else has been compiled into
AUDIT = ("hyperparameters", "-f", "bf16", "--optimizer", "sgd")


def start(
    *arguments: object,
    environment: Mapping[str, str],
    root: Path = PACKAGE.parent,
    user: tuple[str, ...] = (),
    program: tuple[str, ...] = ("-m", "precision_lab"),
) -> subprocess.Popen[str]:
    """Start `precision-lab`, or another program, with hardly an environment."""
    return subprocess.Popen(
        [*user, sys.executable, *program, *map(str, arguments)],
        env={"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=300)
    assert (child.returncode, err) == (0, "")
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A cache as it should be, and what the command prints."""
    place = tmp_path_factory.mktemp("cache")
    return place, output(start(*AUDIT, environment={"NUMBA_CACHE_DIR": str(place)}))


def kept(place: Path) -> dict[str, Path]:
    return {file.name: file for file in sorted(place.rglob("*")) if file.is_file()}


def test_what_is_kept_is_used(whole: tuple[Path, str]) -> None:
    place, said = whole
    before = {name: (file.stat().st_mtime_ns, _whole(str(file))) for name, file in kept(place).items()}
    assert {name.rpartition(".")[2] for name in before} == {"nbi", "nbc"}
    assert all(fine for _, fine in before.values())
    assert output(start(*AUDIT, environment={"NUMBA_CACHE_DIR": str(place)})) == said
    assert {name: (file.stat().st_mtime_ns, _whole(str(file))) for name, file in kept(place).items()} == before


def test_a_change_of_any_source_of_the_folder_makes_all_loops_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loops are compiled into those that call them, from other files: numba itself looks at the file of each alone."""
    shutil.copytree(PACKAGE, tmp_path / "precision_lab", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)  # `python -m` looks here first
    source = tmp_path / "precision_lab/numerics/kernels/bits.py"
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> dict[str, int]:
        output(start(*AUDIT, root=tmp_path, environment=environment))
        return {name: file.stat().st_mtime_ns for name, file in kept(tmp_path / "cache").items() if name[-4:] == ".nbi"}

    first = run()
    assert len(first) > 1
    os.utime(source)
    assert run() == first  # its content counts
    source.write_text(source.read_text() + "# changed\n")
    assert {name for name, when in run().items() if when > first[name]} == set(first)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


Damage: TypeAlias = Callable[[bytes], bytes]
DAMAGES: list[Damage] = [
    lambda _: b"",
    lambda content: content[:40],
    lambda content: content[:1000],
    lambda content: content[:-1],
    flipped,
    lambda _: np.random.default_rng(0).bytes(5000),
    lambda _: pickle.dumps({"a": 1}),
    lambda _: sealed(pickle.dumps({"a": 1})),  # whole, and something else
]


def assert_made_again(
    whole: tuple[Path, str], place: Path, damages: list[tuple[str, Damage]], processes: int, *command: str, **how: Any
) -> None:
    """Damage files of a cache, another each; the command says the same, and the cache is then as it was."""
    shutil.copytree(whole[0], place)
    before = kept(place)
    files = {kind: [file for file in before.values() if file.suffix == kind] for kind in (".nbi", ".nbc")}
    damaged = {}
    for kind, damage in damages:
        file = files[kind].pop()
        sound = file.read_bytes()
        file.write_bytes(damage(sound))
        damaged[file] = file.read_bytes()
        assert damaged[file] != sound
    children = [start(*command, environment={"NUMBA_CACHE_DIR": str(place)}, **how) for _ in range(processes)]
    assert [output(child) for child in children] == [whole[1]] * processes
    assert kept(place) == before  # replaced, and nothing beside them
    assert all(_whole(str(file)) for file in before.values())
    assert all(file.read_bytes() != content for file, content in damaged.items())


def test_a_damaged_cache_is_made_again(whole: tuple[Path, str], tmp_path: Path) -> None:
    damages = [(kind, damage) for kind in (".nbi", ".nbc") for damage in (flipped, DAMAGES[2])]
    assert_made_again(whole, tmp_path / "cache", damages, 1, *AUDIT)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The same of loops that are compiled in no time: one for each damage; and the program."""
    folder = tmp_path_factory.mktemp("small")
    place, program = folder / "cache", folder / "loops.py"
    loop = "@compiled()\ndef loop_{0}(x):\n    return x + {0}\n\nprint(loop_{0}(1.5))\n"
    loops = [loop.format(number) for number in range(len(DAMAGES))]
    program.write_text("\n".join(["from precision_lab.numerics.kernels.compiled import compiled\n", *loops]))
    said = output(start(program=(str(program),), environment={"NUMBA_CACHE_DIR": str(place)}))
    return place, said, str(program)


@pytest.mark.parametrize("kind", [".nbi", ".nbc"])
def test_whatever_the_damage_two_processes_make_it_again(
    small: tuple[Path, str, str], tmp_path: Path, kind: str
) -> None:
    damages = [(kind, damage) for damage in DAMAGES]
    assert_made_again(small[:2], tmp_path / "cache", damages, 2, program=(small[2],))


def nowhere(folder: Path) -> tuple[Path, dict[str, str]]:
    """Copy the package to where nothing can be written beside the loops, for root neither; and an environment so."""
    shutil.copytree(PACKAGE, folder / "precision_lab", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "precision_lab/numerics/kernels/__pycache__").write_text("a file where the folder would be")
    return folder, {"HOME": "/dev/null/home", "NUMBA_CACHE_DIR": "/dev/null/cache"}


@pytest.mark.parametrize("arguments", [AUDIT, ("scan", "x.npy", "-f", "fp16", "--workers", 2)])
def test_without_a_place_for_a_cache(
    whole: tuple[Path, str], tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, environment = nowhere(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.array([1e-7, 1.0, 1e6], np.float32))
    here = whole[1] if arguments == AUDIT else output(start(*arguments, environment={}))
    before = kept(root)
    assert output(start(*arguments, root=root, environment=environment)) == here
    assert kept(root) == before


def test_numba_itself_refuses_without_a_place(tmp_path: Path) -> None:
    """So that the test above is one."""
    root, environment = nowhere(tmp_path)
    module = root / "precision_lab/numerics/kernels/plain.py"
    module.write_text("import numba\n\n@numba.njit(cache=True)\ndef f(x):\n    return x\n")
    done = subprocess.run(
        [sys.executable, str(module)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "no locator available" in done.stderr


def test_another_user_without_a_home(tmp_path: Path, whole: tuple[Path, str]) -> None:
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root may become another user, with setpriv")
    user = (
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "env",
    )  # the second program has no privileges
    if subprocess.run([*user, sys.executable, "-c", ""], capture_output=True, cwd="/", check=False).returncode:
        pytest.skip("another user may not run this interpreter")
    assert output(start(*AUDIT, user=user, environment={"HOME": "/nonexistent"})) == whole[1]


# ---- many at once, on a small function ----

SMALL = """
import random, sys
from pathlib import Path
from precision_lab.numerics.kernels.compiled import compiled

place, seed = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)

def twice(x):
    return x + x

for _ in range(12):
    loop = compiled()(twice)
    for value in chance.sample([1, 1.5, 2 + 1j], 3):
        assert loop(value) == 2 * value and type(loop(value)) is type(value)
    files = sorted(place.rglob("*.nb?"))
    if files:
        file = chance.choice(files)
        try:
            chance.choice([lambda: file.write_bytes(file.read_bytes()[: chance.choice([0, 40, 1000])]), file.unlink])()
        except FileNotFoundError:
            pass
"""


def test_several_processes_damage_read_and_write_one_cache(tmp_path: Path) -> None:
    program, place = tmp_path / "small.py", tmp_path / "cache"
    program.write_text(SMALL)
    children = [
        subprocess.Popen(
            [sys.executable, str(program), str(place), str(seed)],
            env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "NUMBA_CACHE_DIR": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    assert [output(child) for child in children] == [""] * 3
    assert [file.suffix for file in kept(place).values() if file.suffix not in (".nbi", ".nbc")] == []


def test_two_that_add_at_once_give_no_common_name(tmp_path: Path) -> None:
    """numba counts the files of an index: of two processes that read it before either writes, one would win."""

    class Late(FILES):  # type: ignore[misc]
        def _load_index(self) -> dict[object, str]:
            return {}  # read before the other wrote

    late: Any = Late
    first, second = (late(str(tmp_path), "loop", b"stamp") for _ in range(2))
    first.save("float32", "code of float32")
    second.save("float64", "code of float64")
    files = FILES(str(tmp_path), "loop", b"stamp")
    assert files.load("float64") == "code of float64"
    assert files.load("float32") is None  # lost from the index, and made again
    files.save("float32", "code of float32")
    assert (files.load("float32"), files.load("float64")) == ("code of float32", "code of float64")
    assert len(kept(tmp_path)) == 3


FACTORY = """
import numpy as np
from precision_lab.numerics.kernels.compiled import compiled

def make(loop, number):
    @compiled()
    def call(x):
        return loop(x) + number
    return call

@compiled()
def once(x):
    return x

@compiled()
def twice(x):
    return 2 * x

inner = make(once, 1), make(twice, 1)
loops = make(once, 100), make(twice, 100), make(twice, np.uint32(100)), make(inner[0], 100), make(inner[1], 100)
print([int(loop(3)) for loop in loops], [sum(loop.stats.cache_hits.values()) for loop in loops])
"""


def test_loops_that_close_over_others_are_kept_apart_and_found_again(tmp_path: Path) -> None:
    (tmp_path / "factory.py").write_text(FACTORY)
    said = [of_program(tmp_path, FACTORY) for _ in range(2)]
    assert said == [f"[103, 106, 106, 104, 107] {[hits] * 5}\n" for hits in (0, 1)]


LONG = f"""
import sys
import numpy as np
from precision_lab.numerics.kernels.compiled import compiled

def make(number):
    @compiled()
    def inner(x):  # too long to become part of its caller
        total = 0.0
        for i in range(x.size):
            {"".join(f"x[i] = np.sin(x[i]) + {digit}; " for digit in range(40))}
            total += number
        return total

    @compiled()
    def outer(x):
        return inner(x) + inner(x)

    return outer

print([make(float(number))(np.zeros(3)) for number in sys.argv[1]])
"""


def test_loops_that_different_processes_kept_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """Each is the first that its process compiles, so that numba gives both the same number."""
    said = [of_program(tmp_path, LONG, numbers) for numbers in ("1", "2", "12", "21")]
    assert said == ["[6.0]\n", "[12.0]\n", "[6.0, 12.0]\n", "[12.0, 6.0]\n"]


def of_program(folder: Path, text: str, *arguments: str) -> str:
    """Return what a program says that keeps its loops in a folder."""
    program = folder / "program.py"
    if not program.exists() or program.read_text() != text:
        program.write_text(text)  # not again: to an older numba it would be another source
    environment = {"NUMBA_CACHE_DIR": str(folder / "cache")}
    return output(start(program=(str(program), *arguments), environment=environment))


def test_loops_with_signatures_are_compiled_for_these_when_they_are_called_first() -> None:
    def doubled(x: float) -> float:
        return 2 * x

    def twice(x: float) -> float:
        return float(inner(inner(x)))

    real = compiled.compiled(signatures=[float64(float64)])
    inner = real(doubled)
    outer = real(twice)
    assert not inner.overloads
    assert not outer.overloads
    together = Barrier(4)

    def call(x: int) -> float:
        together.wait(60)
        return float(outer(x))  # an integer is converted

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(call, range(4))) == [0, 4, 8, 12]
    assert inner(np.int64(3)) == 6
    assert list(inner.overloads) == list(outer.overloads) == [(float64,)]
    with pytest.raises(TypeError):
        outer(1j)
    assert list(outer.overloads) == [(float64,)]


# ---- one of several compiles ----

TURNS = """
import os, sys, time
from pathlib import Path
from numba.core import event
from precision_lab.numerics.kernels import compiled

folder = Path(sys.argv[1])
lock = compiled._lock

def asks(file):
    (folder / f"asks-{os.getpid()}").touch()
    lock(file)

class Slow(event.Listener):
    def on_start(self, _):
        if not (folder / "go").exists() and not os.fork():  # a child, who is none of those that compile
            os.closerange(0, 3)
            (folder / f"child-{os.getpid()}").touch()
            time.sleep(10**6)
        (folder / f"compiles-{os.getpid()}").touch()
        while not (folder / "go").exists():
            time.sleep(.01)

    def on_end(self, _):
        pass

compiled._lock = asks
event.register("numba:compile", Slow())

@compiled.compiled()
def loop(x):
    return x + 1

print(loop(1.5))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="each process compiles for itself")
def test_of_several_processes_one_compiles_and_if_it_is_killed_another_whoever_it_left_behind(tmp_path: Path) -> None:
    program, place = tmp_path / "program.py", tmp_path / "cache"
    program.write_text(TURNS)

    def pids(what: str) -> set[int]:
        return {int(file.name.removeprefix(f"{what}-")) for file in tmp_path.glob(f"{what}-*")}

    environment = {"NUMBA_CACHE_DIR": str(place)}
    children = [start(program=(str(program), str(tmp_path)), environment=environment) for _ in range(3)]
    try:
        wait_until(lambda: len(pids("asks")) == 3 and len(pids("compiles")) == 1, 120)
        (first,) = (child for child in children if child.pid in pids("compiles"))
        first.kill()
        wait_until(lambda: len(pids("compiles")) == 2, 30)
        assert [file.suffix for file in kept(place).values()] == [".lock"]
        (tmp_path / "go").touch()
        assert [output(child) for child in children if child is not first] == ["2.5\n"] * 2
    finally:
        for pid in pids("child"):
            os.kill(pid, signal.SIGKILL)
        for child in children:
            child.kill()
            child.communicate()
    assert len(pids("compiles")) == 2
    assert sorted(file.suffix for file in kept(place).values()) == [".nbc", ".nbi"]


@pytest.mark.skipif(sys.platform == "win32", reason="nobody waits there")
@pytest.mark.parametrize("error", [BlockingIOError(), OSError(errno.ENOLCK, "no locks here")])
def test_nobody_waits_for_ever(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def lockf(*_: object) -> None:
        tries.append(time.monotonic())
        raise error

    monkeypatch.setattr("fcntl.lockf", lockf)
    monkeypatch.setattr(compiled, "_PATIENCE", 0.05)
    with compiled._turn(tmp_path / "loop.lock"):
        assert (len(tries) > 1) == isinstance(error, BlockingIOError)
    with compiled._turn(tmp_path):  # cannot be written to
        pass
    assert not list(tmp_path.iterdir())


def test_a_loop_that_cannot_be_compiled_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @compiled.compiled()
    def wrong(x: Any) -> Any:
        return x.nothing

    lock = Path(f"{wrong._cache._cache_file._index_path}.lock")
    seen = []
    monkeypatch.setattr(compiled, "_lock", lambda file: seen.append((file, lock.exists())))
    with pytest.raises(TypingError):
        wrong(1.5)
    ((file, there),) = seen
    assert there
    assert file.closed
    assert not lock.exists()


def test_a_loop_closes_over_what_has_a_name() -> None:
    def closes_over(value: object) -> Callable[[], object]:
        return lambda: value

    names = {compiled._unique_name(closes_over((number, "a"))) for number in (np.uint32(1), np.uint64(1), np.uint64(2))}
    assert len(names) == 3
    with pytest.raises(TypeError, match="cannot close over <object"):
        compiled._unique_name(closes_over(object()))
