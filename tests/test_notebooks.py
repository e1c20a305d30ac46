"""Every notebook of the folder runs, shows today what is committed, and is committed as it should be."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import precision_lab

pytestmark = pytest.mark.notebooks

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LESSONS = (
    *("formats", "underflow", "swamping", "loss_scaling", "storage_configurations", "your_own_tensors"),
    "verify_your_kernel",
)
HEADINGS = ("## The question", "## Your prediction", "## The experiment", "## What came out", "## An exercise")
MOST_BYTES = 400_000


@pytest.fixture(scope="module")
def notebooks() -> ModuleType:
    from tests import notebooks  # needs the extra `notebooks`, which `make test` does not have

    return notebooks


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def read(notebooks: ModuleType, name: str) -> Any:
    return notebooks.nbformat.read(FOLDER / name, as_version=4)


def test_the_lessons_are_there_in_order() -> None:
    assert [name[3:-6] for name in NAMES][: len(LESSONS)] == list(LESSONS)
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(1, 1 + len(NAMES))]


# what Jupyter and asyncio warn about is not ours to mend
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_it_shows_what_is_committed(notebooks: ModuleType, home: Path, name: str) -> None:
    committed, fresh = read(notebooks, name), notebooks.run(FOLDER / name, home)
    for before, now in zip(committed.cells, fresh.cells, strict=True):
        assert notebooks.same(before, now), (
            f"{name}: run `python -m tests.notebooks`, look at what changed, and commit it\n{before.source}\n"
            f"committed: {notebooks.texts(before)}\nnow: {notebooks.texts(now)}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_as_it_should_be(notebooks: ModuleType, name: str) -> None:
    committed = read(notebooks, name)
    notebooks.nbformat.validate(committed)
    assert committed == notebooks.normalised(committed)
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(home|tmp|root|work|Users)/", text)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, 1 + len(code)))
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) >= 3
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_lesson(notebooks: ModuleType, name: str) -> None:
    words = "\n".join(cell.source for cell in read(notebooks, name).cells if cell.cell_type == "markdown")
    assert [heading for heading in HEADINGS if heading not in words] == []
    places = [words.index(heading) for heading in HEADINGS]
    assert places == sorted(places)
    assert words.count("<details>") == words.count("</details>") >= 1
    assert words.index("<details>") > places[-1]
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", words):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_hidden_answers_are_right(notebooks: ModuleType, name: str) -> None:
    answers = "\n".join(c.source for c in read(notebooks, name).cells if "<details>" in c.source)
    example = doctest.DocTestParser().get_doctest(answers, {"np": np, "pl": precision_lab}, name, name, 0)
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_drawing_is_shown(notebooks: ModuleType) -> None:
    """The second figure of a notebook was not, once."""
    cells = [c for name in NAMES for c in read(notebooks, name).cells if c.cell_type == "code"]
    drawing = [c for c in cells if re.search(r"plot_\w+\(", c.source)]
    assert [c.source for c in drawing if not any(text.startswith("image/png") for text in notebooks.texts(c))] == []


def cell(notebooks: ModuleType, text: str, *tags: str) -> Any:
    output = notebooks.nbformat.v4.new_output("stream", name="stdout", text=text)
    return notebooks.nbformat.v4.new_code_cell("", outputs=[output], metadata={"tags": list(tags)} if tags else {})


@pytest.mark.parametrize(
    ("before", "now", "exactly", "nearly"),
    [
        ("loss 0.50", "loss 0.50", True, True),
        ("loss 0.50", "loss 0.51", False, True),
        ("loss 0.50", "loss 0.56", False, False),
        ("loss 1,000", "loss 1,099", False, True),
        ("1e-07 of 3", "1.05e-07 of 3", False, True),
        ("1e-07", "1e-06", False, False),
        ("-1", "1", False, False),
        ("loss 0.50", "gain 0.50", False, False),
        ("1 2", "1", False, False),
        ("bf16 1", "fp16 1", False, False),
    ],
)
def test_the_comparison(notebooks: ModuleType, before: str, now: str, exactly: bool, nearly: bool) -> None:
    assert notebooks.same(cell(notebooks, before), cell(notebooks, now)) == exactly
    committed = cell(notebooks, before, notebooks.VARIES)
    assert notebooks.same(committed, cell(notebooks, now)) == nearly


def test_the_build_may_be_another_where_its_numbers_may(notebooks: ModuleType) -> None:
    here, there = (cell(notebooks, f"torch 2.13, {kernels}", notebooks.VARIES) for kernels in ("AVX512", "AVX2"))
    assert notebooks.same(here, there)
    assert not notebooks.same(cell(notebooks, "torch 2.13, AVX512"), there)
