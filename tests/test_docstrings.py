"""Examples in docstrings print what they say, and the functions that people call first have one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import precision_lab
from precision_lab import testing

ROOT = Path(precision_lab.__file__).parent
MODULES = sorted(
    ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
    for file in ROOT.rglob("*.py")
    if "    >>> " in file.read_text(encoding="utf-8") and "torch" not in file.parts
)
FIRST = (
    *("round_to", "cast", "encode", "decode", "inspect_number", "accumulate", "dot", "matmul", "scan", "update_report"),
    *("frozen_fraction", "stagnation", "plan_loss_scale", "replay_loss_scale", "audit_hyperparameters"),
    *("memory_ledger", "preflight", "train"),
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    with np.errstate(all="ignore"):
        failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0
    assert tried > 0


@pytest.mark.parametrize("function", [*(getattr(precision_lab, name) for name in FIRST), testing.check_cast])
def test_what_people_call_first_has_an_example(function: Callable[..., Any]) -> None:
    text = inspect.getdoc(function)  # without the indent, which Python keeps until 3.13
    assert text is not None
    assert "Examples\n--------\n>>> " in text


def test_a_wrong_example_is_seen() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    said: list[str] = []
    assert doctest.DocTestRunner(verbose=False).run(example, out=said.append).failed == 1
    assert said
