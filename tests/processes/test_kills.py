"""Ended at random moments: nobody is left, nothing half-written, and the next run goes on to the same results.

A few kills in `make test`, fifty in `make kills`, of the same seed each time.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes.helpers import command, left, linux, without_seconds

pytestmark = linux

PART = ".precision-lab-part-"  # what KILL may leave of an output, and the next run removes
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
SAID = {
    signal.SIGTERM: "precision-lab: terminated\n",
    signal.SIGINT: "\nprecision-lab: interrupted\n",
    signal.SIGKILL: "",
}


@dataclass
class Work:
    """A command that is killed again and again in one folder."""

    name: str
    arguments: tuple[object, ...]
    folder: Path
    result: str | None  # the file that is compared; None: the command is too long to be waited for
    longest: float  # seconds within which it is killed
    expected: Any = None
    kills: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds until nobody was left

    def finish(self) -> None:
        """Run it to its end: the results are those of a run that nobody disturbed, and parts are gone."""
        if self.result is None:
            return
        start = time.monotonic()
        with command(*self.arguments, cwd=self.folder) as child:
            _, err = child.communicate(timeout=600)
            assert (child.returncode, err) == (0, "")
        found = without_seconds(json.loads((self.folder / self.result).read_bytes()))
        if self.expected is None:
            self.expected, self.longest = found, time.monotonic() - start
        assert found == self.expected
        assert [file.name for file in self.folder.rglob("*") if file.name.startswith(PART)] == []
        self.clear()

    def clear(self) -> None:
        for file in self.folder.rglob("*"):
            if file.is_file() and not file.name.startswith("input"):
                file.unlink()

    def kill(self, how: signal.Signals, moment: float, *, group: bool) -> bool:
        """Kill it then; return whether it was in time."""
        with command(*self.arguments, cwd=self.folder, says_when_it_begins=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "begins\n"
            time.sleep(moment)
            in_time = child.poll() is None
            if in_time:
                (os.killpg if group else os.kill)(child.pid, how)
            start = time.monotonic()
            assert left(child.pid) == [], f"{self.name}: left after {how.name} at {moment:.2f} s"
            self.slowest = max(self.slowest, time.monotonic() - start)
            _, err = child.communicate(timeout=60)
        if how is signal.SIGKILL and "resource_tracker: There appear to be" in err:
            err = ""  # Python's own, which has removed the semaphores
        if child.returncode == 0:  # it came when all was done
            assert err == ""
            self.finish()
            return False
        assert (child.returncode, err) == (STATUS[how], SAID[how]), f"{self.name}: {how.name} at {moment:.2f} s"
        self.look(parts=how is signal.SIGKILL)
        print(f"{self.name}: {how.name} at {moment:.2f} s", flush=True)
        self.kills.append(how.name)
        return True

    def look(self, *, parts: bool) -> None:
        """Every file is whole, of the names of a finished run, or a part where there may be one."""
        for file in self.folder.rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            if file.name.startswith(PART):
                assert parts, f"{self.name}: {file.name}"
            elif file.is_file() and not file.name.startswith("input"):
                assert whole(file.suffix, content), f"{self.name}: half of {file.name}"


def whole(suffix: str, content: bytes) -> bool:
    if suffix == ".json":
        try:
            json.loads(content)
        except ValueError:
            return False
        return True
    ends = {".png": b"IEND\xaeB`\x82", ".svg": b"</svg>", ".html": b"</html>"}
    if suffix == ".jsonl":  # a line is added at a time, and one that was cut is left out by the next run
        for line in content.split(b"\n")[:-1]:
            json.loads(line)
        return True
    return content.rstrip().endswith(ends[suffix])


def scan(folder: Path, size: int = 1 << 22) -> Work:
    rng = np.random.default_rng(0)
    np.savez(folder / "input.npz", *(rng.standard_normal(size).astype(np.float32) for _ in range(4)))
    arguments = ("scan", "input.npz", "--workers", 2, "--json", "found.json")
    return Work("scan", arguments, folder, "found.json", 10)


def train(folder: Path, steps: int = 400) -> Work:
    arguments = ("train", "--storage", "pure_bf16", "--storage", "bf16_kahan", "--steps", steps, "--seeds", 3)
    files = ("--checkpoint", "runs.jsonl", "--json", "found.json")
    return Work("train", (*arguments, *files, "--workers", 2), folder, "found.json", 10)


def report(folder: Path) -> Work:
    arguments = ("report", "--quick", "storage", "memory", "accumulation", "--workers", 2, "-o", "out")
    return Work("report", arguments, folder, "out/results.json", 10)


def verify(folder: Path) -> Work:
    return Work("verify", ("verify", "-f", "bf16", "--exhaustive", "--workers", 2), folder, None, 15)


def attack(works: list[Work], kills: int, seed: int) -> None:
    """Kill them in turns, and let them finish in the end."""
    chance = random.Random(seed)
    for work in works:
        work.finish()
    turns = itertools.cycle(itertools.product(works, STATUS))
    done = 0
    for work, how in itertools.islice(turns, 4 * kills):
        # one half at the beginning, where processes are started
        moment = chance.uniform(0.02, work.longest if chance.random() < 0.5 else min(3.0, work.longest))
        group = how is signal.SIGINT or (how is signal.SIGTERM and chance.random() < 0.5)  # as a terminal, as `timeout`
        done += work.kill(how, moment, group=group)
        if done == kills:
            break
    for work in works:
        work.finish()
        counts = ", ".join(f"{work.kills.count(how.name)} {how.name}" for how in STATUS)
        print(f"{work.name}: {counts}; nobody left after {work.slowest:.2f} s at most")
    assert done == kills


def folders(tmp_path: Path, *makers: Callable[[Path], Work]) -> list[Work]:
    works = []
    for maker in makers:
        (folder := tmp_path / maker.__name__).mkdir()
        works.append(maker(folder))
    return works


def small_scan(folder: Path) -> Work:
    return scan(folder, 1 << 20)


def short_train(folder: Path) -> Work:
    return train(folder, 60)


def test_a_few_kills(tmp_path: Path) -> None:
    """Of commands that take little more than their processes take to start."""
    attack(folders(tmp_path, small_scan, short_train), 4, seed=1)


@pytest.mark.kills
def test_fifty_kills(tmp_path: Path) -> None:
    attack(folders(tmp_path, scan, report, train, verify), 50, seed=0)


@pytest.mark.parametrize(
    ("suffix", "content", "fine"),
    [
        (".json", b'{"a": 1}\n', True),
        (".json", b'{"a": ', False),
        (".json", b"", False),
        (".svg", b"<svg><g>", False),
        (".svg", b"<svg></svg>\n", True),
        (".html", b"<html>", False),
        (".png", b"\x89PNG", False),
    ],
)
def test_half_a_file_is_seen(suffix: str, content: bytes, fine: bool) -> None:
    assert whole(suffix, content) == fine
