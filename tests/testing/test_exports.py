"""The names that `precision_lab.testing` gives, each loaded when it is asked for."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

from precision_lab import testing
from precision_lab.testing import casts, strategies
from tests.test_imports import heavy_modules_loaded_by


@pytest.mark.parametrize("name", testing.__all__)
def test_every_name_is_that_of_its_module(name: str) -> None:
    value = getattr(testing, name)
    assert getattr(importlib.import_module(value.__module__), name) is value
    assert name in dir(testing)


def test_type_checkers_see_the_same_names() -> None:
    source = inspect.getsource(testing)
    (only,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in only.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: getattr(testing, name).__module__ for name in testing.__all__}


def test_every_strategy_and_every_check_is_among_them() -> None:
    for module in (casts, strategies):
        public = {
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        }
        assert public <= set(testing.__all__)


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match=r"'precision_lab\.testing' has no attribute 'check_casts'"):
        _ = testing.check_casts  # type: ignore[attr-defined]
    assert not hasattr(testing, "_strategies")


@pytest.mark.parametrize(
    ("names", "hypothesis"),
    [("", False), ("check_cast, assert_cast, check_accumulator", False), ("hard_values", True), ("strategies", True)],
)
def test_what_is_loaded_for_a_name(names: str, hypothesis: bool) -> None:
    program = f"from precision_lab.testing import {names}" if names else "import precision_lab.testing"
    loaded = heavy_modules_loaded_by(program)
    assert ("hypothesis" in loaded) == hypothesis
    if not names:
        assert loaded == []
