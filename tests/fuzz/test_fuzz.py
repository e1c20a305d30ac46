"""The fuzzer: its list of doors, what its harness objects to, and two thousand inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from precision_lab.cli.options import Checkpoint, Input, Output, OutputFolder
from tests.fuzz.controls import CONTROLS
from tests.fuzz.doors import DOORS, LEFT_OUT, OUTPUTS, parameters
from tests.fuzz.seeds import KINDS

REPOSITORY = Path(__file__).parents[2]

linux = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and asks /proc")


def _run(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a part of the fuzzer in a process of its own: it forks, and a test runner has threads."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=3600,
    )


# ---- the doors ----


def test_every_parameter_has_a_door_or_is_none() -> None:
    doors = {(door.command, door.option) for door in DOORS}
    assert len(doors) > 70
    given = {
        place
        for place, parameter in parameters().items()
        if not getattr(parameter, "is_flag", False) and place[1] not in OUTPUTS and place[1] not in LEFT_OUT
    }
    assert given - doors == set(), "options without a door: see tests/fuzz/doors.py"
    assert doors - given == set(), "doors of no option"


def test_every_parameter_that_reads_a_file_gets_files() -> None:
    reading = {p for p, it in parameters().items() if isinstance(it.type, Input | Checkpoint | OutputFolder)}
    reading.add(("train", "--data"))  # a file, or the name of a data set
    assert reading == {(door.command, door.option) for door in DOORS if door.kinds}
    assert {kind for door in DOORS for kind in door.kinds} == KINDS.keys()


def test_what_is_left_out_are_outputs() -> None:
    for (command, option), parameter in parameters().items():
        writes = isinstance(parameter.type, Output) and not isinstance(parameter.type, Checkpoint)
        assert writes == (option in OUTPUTS), (command, option)


# ---- the harness ----


@pytest.fixture(scope="module")
def objections() -> dict[str, list[str]]:
    finished = _run("tests.fuzz.controls")
    assert finished.returncode == 0, finished.stderr
    found: dict[str, list[str]] = json.loads(finished.stdout)
    return found


@linux
@pytest.mark.fuzz
@pytest.mark.parametrize("control", CONTROLS)
def test_the_harness_objects(objections: dict[str, list[str]], control: str) -> None:
    _, expected = CONTROLS[control]
    said = objections[control]
    assert any(expected in one for one in said) if expected else not said


# ---- the inputs ----


def _outcomes(log: Path) -> dict[int, dict[str, Any]]:
    found = (json.loads(line) for line in log.read_text("utf-8").splitlines())
    return {one["number"]: one for one in found}


@linux
@pytest.mark.fuzz
def test_good_inputs_are_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    finished = _run("tests.fuzz", "--set", "good", "--log", log)
    assert finished.returncode == 0, finished.stdout
    outcomes = _outcomes(log)
    read = {(one["what"], one["kind"]) for one in outcomes.values() if one["status"] == 0}
    assert {kind for _, kind in read} == KINDS.keys()
    assert {what for what, _ in read} == {f"{door.command} {door.option}" for door in DOORS if door.kinds}


@linux
@pytest.mark.fuzz
def test_what_was_found_is_found_no_more() -> None:
    finished = _run("tests.fuzz", "--set", "regressions")
    assert finished.returncode == 0, finished.stdout


@linux
@pytest.mark.fuzz
def test_two_thousand_inputs() -> None:
    finished = _run("tests.fuzz", "--count", 2000)
    print(finished.stdout)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "2000 inputs" in finished.stdout


@linux
@pytest.mark.fuzz
def test_commands_in_new_processes_say_the_same_as_forks(tmp_path: Path) -> None:
    numbers = ("--first", 2000, "--count", 60)
    for place, new in (("new", ("--new",)), ("fork", ())):
        finished = _run("tests.fuzz", *numbers, *new, "--log", tmp_path / place)
        assert finished.returncode == 0, finished.stdout + finished.stderr
    said = [
        {number: (one["status"], one["out"], one["err"]) for number, one in _outcomes(tmp_path / place).items()}
        for place in ("new", "fork")
    ]
    assert len(said[0]) == 60
    assert said[0] == said[1]


@linux
@pytest.mark.fuzz
def test_an_input_is_one_function_of_its_numbers() -> None:
    program = (
        "import hashlib; from tests.fuzz.doors import case; "
        "print(*(hashlib.sha256(repr((one, one.files)).encode()).hexdigest() for one in (case(1, n) for n in {})))"
    )

    def digests(numbers: str, seed: str) -> list[str]:
        finished = subprocess.run(
            [sys.executable, "-c", program.format(numbers)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        return finished.stdout.split()

    there = digests("range(300)", "0")
    assert len(set(there)) > 290
    assert digests("reversed(range(300))", "1")[::-1] == there
