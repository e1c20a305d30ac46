"""Configuration and results are frozen: nobody changes under another's hands what he was given."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import precision_lab

PACKAGE = Path(precision_lab.__file__).parent
GATHERS = {"training/loop.py: _Sums"}  # what is filled step by step, and seen by nobody else


def unfrozen(source: str) -> Iterator[str]:
    """Yield the names of classes that are dataclasses and may be written to."""
    for node in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)):
        for decorator in node.decorator_list:
            text = ast.unparse(decorator)
            if text.startswith("dataclass") and "frozen=True" not in text:
                yield node.name


def test_dataclasses_are_frozen() -> None:
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}: {name}"
        for path in PACKAGE.rglob("*.py")
        for name in unfrozen(path.read_text("utf-8"))
    }
    assert found == GATHERS


def test_one_that_is_not_is_seen() -> None:
    classes = [("A", ""), ("B", "(frozen=False, eq=True)"), ("C", "(frozen=True)")]
    source = "\n".join(f"@dataclass{arguments}\nclass {name}: ..." for name, arguments in classes)
    assert list(unfrozen(source)) == ["A", "B"]
