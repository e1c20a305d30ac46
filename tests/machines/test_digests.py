"""What the digests cover, that a changed bit changes one, and that nothing below them depends on the processor."""

from __future__ import annotations

import ast
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import precision_lab
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.presentation.plots.figures import figures_of
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.models.places import library_products
from tests.machines import digests
from tests.machines.digests import LIBRARY_CALLS, LibraryCallError, digest, of_json, of_training, refuse_libraries

ROOT = Path(precision_lab.__file__).parent
COMMITTED: dict[str, str] = json.loads(digests.FILE.read_text(encoding="utf-8"))


def test_every_run_experiment_and_figure_has_a_digest() -> None:
    figures = [picture for experiment in EXPERIMENTS.values() for picture in figures_of(experiment.result)]
    expected = [
        *digests.RUNS,
        *(f"experiment {name}" for name in EXPERIMENTS),
        *(f"figure {name}" for name in (*figures, "number line", "spacing")),
    ]
    assert sorted(expected) == list(COMMITTED)


def test_a_bit_of_the_data_and_the_last_one_of_a_run_change_a_digest() -> None:
    x = np.array([1.0, 2.0])
    assert digest([x.tobytes()]) != digest([np.nextafter(x, [1, 3]).tobytes()])
    assert digest([b"a", b"b"]) != digest([b"ab"])
    assert of_json({"a": 0.1, "seconds": 1}) == of_json({"seconds": 2, "a": 0.1})
    assert of_json({"a": 0.1}) != of_json({"a": float(np.nextafter(0.1, 1))})
    config = TrainingConfig(hidden=(4,), steps=2)
    again = TrainingConfig(hidden=(4,), steps=2, learning_rate=float(np.nextafter(0.1, 1)))
    assert of_training(config) == of_training(config) != of_training(again)


# ---- nothing that depends on the processor, at run time ----


def _call(expression: str) -> Any:
    return eval(expression, {"np": np, "math": __import__("math")})


def _trained_by_blas() -> None:
    with library_products():
        train(TrainingConfig(steps=1))


def test_the_processes_of_the_digests_refuse_blas_and_libm() -> None:
    """The digests are computed in such processes; that they really refuse is seen here."""
    with ProcessPoolExecutor(1, get_context("spawn"), refuse_libraries) as executor:
        for expression in ("np.exp(1.0)", "np.matmul([[1.0]], [[1.0]])", "np.linalg.norm([1.0])", "math.log(2.0)"):
            with pytest.raises(LibraryCallError, match="was called"):
                executor.submit(_call, expression).result()
        with pytest.raises(LibraryCallError, match=r"numpy\.matmul was called"):
            executor.submit(_trained_by_blas).result()
        assert executor.submit(_call, "np.sqrt(4.0)").result() == 2


@pytest.mark.parametrize("name", ["transformer, adamw, collage_plus", "sigmoid, sgd, fp32", "functions of float32"])
def test_some_digests_as_it_is(name: str) -> None:
    """All of them under every level: test_levels.py."""
    assert digests.RUNS[name]() == COMMITTED[name]


# ---- and in the sources: operators, which cannot be made to refuse ----

FLOORS = ("training", "experiments", "claims", "presentation")
EXEMPT = {
    "training/storage.py": {"Fraction(base) ** int(exponent)"},
    "training/models/places.py": {"np.matmul"},  # library_products, for comparisons with libraries
}
_CALLS = {f"{module}.{name}" for module, names in LIBRARY_CALLS.items() for name in names}
_CALLS |= {name.replace("numpy", "np", 1) for name in _CALLS}


def _is_exact_power(node: ast.BinOp) -> bool:
    """Whether a power is one of 2 or 4, a fraction, or an integer to the power of what is no quotient."""
    if ast.unparse(node.left) == "Fraction(2)":
        return True
    base = node.left.value if isinstance(node.left, ast.Constant) else None
    whole = isinstance(base, int) and not any(isinstance(part, ast.Div) for part in ast.walk(node.right))
    return base in (2, 4) or whole


def _name(node: ast.AST) -> str:
    """Return what a node does that depends on the processor, nothing for one that does not."""
    text = ast.unparse(node) if isinstance(node, ast.expr) else ""
    match node:
        case ast.Attribute(attr=attribute) if text in _CALLS or (attribute == "dot" and text != "fixed.dot"):
            return text
        case ast.BinOp(op=ast.MatMult()):
            return "@"
        case ast.BinOp(op=ast.Pow()) if not _is_exact_power(node):
            return text
        case ast.Call(func=ast.Name(id="pow")):
            return text
    return ""


def dependent(source: str) -> set[str]:
    """Return what in a source depends on the processor: calls by their names, matrix products, powers."""
    return set(filter(None, map(_name, ast.walk(ast.parse(source)))))


@pytest.mark.parametrize("floor", FLOORS)
def test_nothing_below_training_experiments_claims_and_figures_depends_on_the_processor(floor: str) -> None:
    for file in sorted((ROOT / floor).rglob("*.py")):
        allowed = EXEMPT.get(file.relative_to(ROOT).as_posix(), set())
        assert dependent(file.read_text(encoding="utf-8")) == allowed, file


@pytest.mark.parametrize("floor", ["numerics", "tensors", "analysis"])
def test_what_they_are_built_on_neither(floor: str) -> None:
    exempt = {
        "numerics/accumulation.py": {"(self.count * u_r) ** 2"},  # a Fraction
        "numerics/products.py": {"np.matmul"},  # matmul_fp32_accumulate is about BLAS
    }
    for file in sorted((ROOT / floor).rglob("*.py")):
        if file.name != "reference.py":  # exact arithmetic, and powers of two as fractions
            assert dependent(file.read_text(encoding="utf-8")) == exempt.get(str(file.relative_to(ROOT)), set()), file


def test_a_dependence_is_seen() -> None:
    assert dependent("np.exp(x) + a @ b") == {"np.exp", "@"}
    assert dependent("x ** 0.5 + 10 ** (a / b) + np.linalg.norm(x) + x.dot(y)") == {
        *("x ** 0.5", "10 ** (a / b)", "np.linalg.norm", "x.dot")
    }
    assert dependent("2.0 ** k + 10 ** 6 + fixed.dot(x, x) + math.sqrt(2) + pow(2, x)") == {"pow(2, x)"}
