"""The score of mutants itself, on a module of two functions: what is killed, what survives, what hangs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests import mutants

MODULE = """\
def rise(n: int, *, to: int = 10) -> int:
    while n < to:
        n += 1
    return n


def unseen(n: int) -> int:
    return n * 2
"""
TESTS = """\
from precision_lab.numerics.toy import rise


def test_rise() -> None:
    assert rise(3) == 10
"""
KILLED = ["while n < to:` → `while n <= to:", "int = 10) -> int:` → `def rise(n: int, *, to: int = 11) -> int:"]
HANG = ["n += 1` → `n += 0", "n += 1` → `n -= 1"]
SURVIVE = ["return n * 2` → `return n + 2", "return n * 2` → `return n * 1", "return n * 2` → `return n * 3"]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A repository of one module and one test."""
    for name, text in {
        "precision_lab/__init__.py": "",
        "precision_lab/numerics/__init__.py": "",
        "precision_lab/numerics/toy.py": MODULE,
        "tests/__init__.py": "",
        "tests/numerics/__init__.py": "",
        "tests/numerics/test_toy.py": TESTS,
        "docs/mutants.md": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copy(mutants.__file__, tmp_path / "tests")
    return tmp_path


def score(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.mutants", "--patience", "2", *arguments],
        cwd=folder,
        # the toy hides the package, and what Hypothesis would load of it
        env=os.environ | {"PYTHONPATH": str(folder), "HYPOTHESIS_NO_PLUGINS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.mutants
def test_what_is_killed_what_survives_and_what_hangs(toy: Path) -> None:
    done = score(toy)
    assert done.returncode == 1, done.stderr  # some survive that are not explained
    results = [json.loads(line) for line in (toy / ".mutants" / "results.jsonl").read_text("utf-8").splitlines()]
    by = {result["name"]: result["by"] for result in results}

    def only(part: str) -> str:
        (found,) = (str(by[name]) for name in by if part in name)
        return found

    assert len(by) == 8
    for part in KILLED:
        assert only(part).startswith("FAILED tests/numerics/test_toy.py::test_rise")
    for part in HANG:
        assert only(part).startswith("hangs")
    for part in SURVIVE:
        assert only(part) == ""
        assert f"- `numerics/toy.py`: `{part}`" in done.stdout
    assert "| numerics | 8 | 5 | 0 | 3 | 62.5% |" in done.stdout
    assert (toy / "precision_lab/numerics/toy.py").read_text("utf-8") == MODULE

    # those that are explained change no result; what is known is not run again
    (toy / "docs" / "mutants.md").write_text(done.stdout, encoding="utf-8")
    again = score(toy)
    assert again.returncode == 0, again.stderr
    assert "| all | 8 | 5 | 3 | 0 | 100.0% |" in again.stdout
    assert "killed  " not in again.stdout

    # with a test that sees them only the survivors are run again, and only where they are not explained
    (toy / "docs" / "mutants.md").write_text("", encoding="utf-8")
    test = toy / "tests/numerics/test_toy.py"
    test.write_text(f"{TESTS}\n\ndef test_unseen() -> None:\n    from precision_lab.numerics.toy import unseen\n\n"
                    "    assert unseen(5) == 10\n", encoding="utf-8")  # fmt: skip
    last = score(toy)
    assert last.stdout.count("killed  ") == 3
    assert "| all | 8 | 8 | 0 | 0 | 100.0% |" in last.stdout


def test_tests_that_fail_without_a_mutant_are_said(toy: Path) -> None:
    (toy / "tests/numerics/test_toy.py").write_text(TESTS.replace("10", "11"), encoding="utf-8")
    done = score(toy)
    assert done.returncode == 1
    assert "test_toy.py fails without a mutant: FAILED" in done.stderr


@pytest.fixture(scope="module")
def remembered() -> Callable[[str], list[mutants.Mutant]]:
    """The mutants of every module, which take a while to be found."""
    return cache(mutants.mutants_of)


def test_the_same_seed_takes_the_same_mutants(
    remembered: Callable[[str], list[mutants.Mutant]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(seed: int) -> list[str]:
        return [mutant.name() for mutant in mutants.sample(50, seed)]

    anew = names(0)
    monkeypatch.setattr(mutants, "mutants_of", remembered)
    assert anew == names(0) != names(1)


SOURCE = """\
x: int | None = 3
def f(a: int = 1, b: str = "c", *, d: bool = True) -> int | None:
    if not a or b and -a <= 2.5 is not d:
        a += ~a % (1)
    for a in f"{1 + 1}":
        continue
    return a not in (0x10,)
"""


def test_one_token_is_changed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / "precision_lab/numerics/toy.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(mutants, "PACKAGE", toy / "precision_lab")
    found = {mutant.name().split(": ", 1)[1] for mutant in mutants.mutants_of("numerics/toy.py")}
    head, test = (
        'def f(a: int = 1, b: str = "c", *, d: bool = True) -> int | None:',
        "if not a or b and -a <= 2.5 is not d:",
    )

    def of(line: str, *changed: str) -> set[str]:
        return {f"`{line}` → `{' '.join(other.split())}`" for other in changed}

    assert found == (
        of("x: int | None = 3", "x: int | None = 4", "x: int | None = 2")
        | of(head, head.replace("= 1", "= 0"), head.replace('"c"', "None"), head.replace("True", "False"))
        | of(test, test.replace("not a", "a"), test.replace("or", "and"), test.replace("and", "or"))
        | of(test, test.replace("-a", "a"), test.replace("<=", "<"), test.replace("is not", "is"))
        | of(test, test.replace("2.5", "3.5"), test.replace("2.5", "1.5"))
        | of("a += ~a % (1)", "a -= ~a % (1)", "a += a % (1)", "a += ~a * (1)", "a += ~a % (0)")
        | of("continue", "break")
        | of("return a not in (0x10,)", "return a in (0x10,)", "return a not in (17,)", "return a not in (15,)")
    )


def test_every_module_has_tests(
    remembered: Callable[[str], list[mutants.Mutant]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "mutants_of", remembered)
    modules = {mutant.module for mutant in mutants.sample(10**9, 0)}
    assert len(modules) > 30
    of_each = {module: [path for path in mutants.tests_of(module) if path.name != mutants.ALL] for module in modules}
    assert [module for module, files in of_each.items() if not files] == []


def test_what_is_explained_is_a_mutant_of_today() -> None:
    quoted = re.findall(
        r"^- (`([\w/]+\.py)`: `.*?` → `.*?`):", mutants.DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert quoted
    made = {module: {mutant.name() for mutant in mutants.mutants_of(module)} for _, module in quoted}
    assert [name for name, module in quoted if name not in made[module]] == []
