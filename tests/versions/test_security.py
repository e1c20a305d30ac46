"""SECURITY.md: what it names is there, and nothing else in the package starts a program or opens a connection."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "subprocess",
    "pty",
    "socket",
    "urllib.request",
    "http",
    "ftplib",
    "smtplib",
    "requests",
    "ssl",
    "webbrowser",
}
STARTING = re.compile(r"system|popen|exec[lv]\w*|(posix_)?spawn\w+")  # of os


def starting(source: str) -> set[str]:
    """What of a source starts programs or opens connections."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name for alias in node.names for name in PROGRAMS if f"{alias.name}.".startswith(f"{name}.")}
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}." for alias in node.names]
            found |= {name for name in PROGRAMS if any(text.startswith(f"{name}.") for text in whole)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            found |= {f"os.{node.attr}"} if STARTING.fullmatch(node.attr) else set()
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            found.add("shell")
    return found


def test_two_modules_start_a_program_and_none_connects() -> None:
    package = ROOT / "precision_lab"
    found = {
        file.relative_to(package).as_posix(): names
        for file in package.rglob("*.py")
        if (names := starting(file.read_text(encoding="utf-8")))
    }
    assert found == {"testing/isolation.py": {"subprocess"}, "experiments/kept.py": {"subprocess"}}


@pytest.mark.parametrize(
    "source",
    ["import subprocess", "def f():\n    from urllib import request", "import os\nos.system('x')", "run(shell=True)"],
)
def test_what_starts_something_is_seen(source: str) -> None:
    assert starting(source)
    assert not starting("import os, platform\nplatform.system()\nos.replace('a', 'b')")


def test_the_tests_that_are_named_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"(tests/[\w/]+(?:\.py)?)(?:: `(\w+)`)?", text)
    assert len(named) > 5
    for path, function in named:
        assert (ROOT / path).exists(), path
        assert not function or f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), function
