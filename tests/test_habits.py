"""What a stranger's tools read says the same as the Makefile and pyproject.toml, and asks for nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from precision_lab.analysis.frozen_weights import Frozen
from precision_lab.experiments.paired import Finding
from precision_lab.numerics.modes import RoundingMode

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(text("pyproject.toml"))["project"]


def expanded(line: str) -> str:
    """A line of the Makefile, its variables read."""
    variables = dict(re.findall(r"^(\w+) :?= (.*)$", text("Makefile"), re.MULTILINE))
    while found := re.search(r"\$\((\w+)\)", line):
        line = line.replace(found[0], variables[found[1]])
    return line


def test_the_workflow_runs_make_test() -> None:
    workflow = text(".github/workflows/tests.yml")
    assert "run: make test" in workflow
    assert f"pytest {expanded('$(TESTS)')}\n" in workflow  # for Windows
    pythons = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert "python: [{}]".format(", ".join(f'"{p}"' for p in pythons)) in workflow
    assert workflow.startswith("# Not run where nobody could")


def test_the_checks_before_a_commit_are_those_of_make_check() -> None:
    hooks = re.findall(r"entry: (.*)", text(".pre-commit-config.yaml"))
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", text("Makefile"), re.MULTILINE)
    assert recipe is not None
    commands = [expanded(line.strip()) for line in recipe[1].splitlines()]
    assert [hook.replace(" --force-exclude", "") for hook in hooks] == commands
    assert re.findall(r"repo: (.*)", text(".pre-commit-config.yaml")) == ["local"]  # nothing is fetched


def test_the_citation_is_that_of_the_project() -> None:
    """In Citation File Format 1.2.0: what it requires, and only fields that it has."""
    fields = dict(re.findall(r"^([a-z-]+):(?: (.*))?$", text("CITATION.cff"), re.MULTILINE))
    assert {"cff-version", "message", "title", "authors"} <= fields.keys()
    assert fields.keys() <= {"cff-version", "message", "title", "type", "authors", "license", "keywords"}
    assert (fields["cff-version"], fields["license"]) == ("1.2.0", PROJECT["license"])
    assert re.findall(r"^  - name: (.*)$", text("CITATION.cff"), re.MULTILINE) == [
        a["name"] for a in PROJECT["authors"]
    ]
    assert re.findall(r"^  - (?!name:)(.*)$", text("CITATION.cff"), re.MULTILINE) == PROJECT["keywords"]


def test_the_tests_of_test_all_have_their_markers() -> None:
    markers = {
        m.partition(":")[0] for m in tomllib.loads(text("pyproject.toml"))["tool"]["pytest"]["ini_options"]["markers"]
    }
    assert markers == {*expanded("$(ELSEWHERE)").split(" or "), "exhaustive", "machines", "kills"}


# ---- words ----

BARRED = {
    "a percentage of underflow": re.compile(r"\d ?%[^.\"]{0,20}\bunderflow|underflow percentage of|\bunderflow rate"),
    "u for the unit roundoff": re.compile(
        r"sqrt\{n\}\$ u\b|\b(?:[nk]|sqrt\([nk]\)) u\b|unit roundoff\*? u\b|\bu = eps"
    ),
    "eps for Adam's constant in a formula": re.compile(r"sqrt\(v\^?\) \+ eps\b|/eps\b(?! ?=)"),
}
"""What the glossary has other words for, and that is simple to find."""


def speaking_files() -> list[Path]:
    """Where words are for people: the package, the pages, the README; not the quotations of notebooks and claims."""
    found = [*(ROOT / "precision_lab").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    return [path for path in found if "claims" not in str(path.relative_to(ROOT))]


@pytest.mark.parametrize("what", BARRED)
def test_a_word_means_one_thing(what: str) -> None:
    for path in speaking_files():
        found = BARRED[what].search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found[0]!r}: {what}; see docs/glossary.md"


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("a percentage of underflow", "In fp16 67 % underflow."),
        ("u for the unit roundoff", "The bound n u is vacuous; u = eps/2."),
        ("u for the unit roundoff", "The *unit roundoff* u is half of it"),
        ("eps for Adam's constant in a formula", "m / (sqrt(v) + eps)"),
    ],
)
def test_words_with_two_meanings_are_found(what: str, sentence: str) -> None:
    assert BARRED[what].search(sentence)


def test_the_glossary_has_the_words_that_results_use() -> None:
    glossary = text("docs/glossary.md")
    terms = {term for line in re.findall(r"^(.+)\n:   ", glossary, re.MULTILINE) for term in re.split(r", ", line)}
    assert terms >= {finding.value for finding in Finding}
    assert terms >= {
        "underflow",
        "flushed",
        "subnormal",
        "overflowed",
        "saturated",
        "eps",
        "ulp",
        "control",
        "interval",
    }
    assert terms >= {
        "frozen",
        "imprecision",
        "effective update",
        "paired ratio",
        "noise floor",
        "EDQ ratio against fp32",
    }
    assert {mode.value for mode in RoundingMode} == set(re.findall(r"^\| `(\w+)` \| `\w+` \|", glossary, re.MULTILINE))
    assert (Frozen.fraction.__doc__ or "").endswith("can move neither way.")
    assert "it can move neither up nor down" in glossary
