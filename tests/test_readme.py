"""Every snippet of the README and of docs/ is run: Python as a doctest, commands in a folder with a gradient file."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import CommandLine

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").rglob("*.md"))}
WITH_PYTHON = [REPOSITORY / "README.md", *(path for path, text in PAGES.items() if ">>> " in text)]


def blocks(language: str) -> list[str]:
    text = "\n".join([README, *PAGES.values()])
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The lines that a person would type."""
    return [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]


def test_there_are_snippets_and_all_are_of_a_kind_that_is_run() -> None:
    assert set(re.findall(r"^```(\w+)$", README, flags=re.MULTILINE)) == {"console", "python"}
    for text in PAGES.values():
        assert set(re.findall(r"^```(\w+)$", text, flags=re.MULTILINE)) <= {"console", "python", "text"}
    assert len(blocks("python")) >= 8
    assert len(commands()) >= 5


@pytest.mark.parametrize("path", WITH_PYTHON, ids=lambda path: path.name)
def test_python_snippets_print_what_is_said(path: Path) -> None:
    result = doctest.testfile(str(path), module_relative=False, verbose=False)
    assert result.attempted >= 8
    assert result.failed == 0


@pytest.mark.parametrize("command", commands())
def test_commands_succeed(
    command: str, command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"layer.weight": np.array([[1e-7, 0.5], [0, 3e-9]], np.float32)}, "gradients.safetensors")
    program, *arguments = shlex.split(command)
    assert program == "precision-lab"
    finished = command_line(*arguments)
    assert finished.status == 0, finished.err
    assert finished.out


def test_make_targets_exist() -> None:
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    typed = [line for block in blocks("console") for line in block.splitlines() if line.startswith("make ")]
    targets = {line.split()[1] for line in typed} | set(re.findall(r"`make ([a-z-]+)`", README + contributing))
    assert {"lab", "test", "help"} <= targets
    make = shutil.which("make")
    assert make, "make is needed"
    for target in targets:
        done = subprocess.run([make, "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_table_of_commands_is_complete(command_line: CommandLine) -> None:
    from precision_lab.cli import app

    listed = set(re.findall(r"^\| `precision-lab ([\w-]+)", README, flags=re.MULTILINE))
    assert listed == set(app.commands)


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
