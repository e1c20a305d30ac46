"""The command `claims`: a table, JSON, a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from precision_lab.cli import show as shown
from precision_lab.experiments.claims.claim import Outcome
from precision_lab.experiments.claims.experiment import ClaimsConfig, run
from precision_lab.presentation.tables.claims import claims_page
from tests.conftest import CommandLine

KEYS = ("fp16-1e-7", "bf16-chopped", "halves-the-memory")


def test_it_says_what_is_said_and_why(command_line: CommandLine) -> None:
    done = command_line("claims", *KEYS)
    assert (done.status, done.err) == (0, "")
    for part in (*KEYS, "2^-25", "49.999%", "does not hold", "holds only if ...", "Formats and casts", "Memory"):
        assert part in done.out
    assert "Rounded: ties_to_even, with subnormals." in done.out


def test_it_fits_into_eighty_columns(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "console", lambda: Console(width=80, highlight=False))
    lines = command_line("claims", *KEYS).out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("verdict" in line for line in lines) == 2  # a table a subject, none in parts
    assert sum("Rests on" in line for line in lines) == len(KEYS)


def test_another_arithmetic(command_line: CommandLine) -> None:
    done = command_line("claims", *KEYS[:2], "--mode", "rtz", "--flush-subnormals")
    assert done.status == 0
    assert "1e-7 becomes 0" in done.out
    assert "Rounded: toward_zero, subnormals flushed to zero." in done.out


def test_files(command_line: CommandLine, tmp_path: Path) -> None:
    data, page = tmp_path / "claims.json", tmp_path / "claims.md"
    assert command_line("claims", *KEYS, "--json", data, "--markdown", page).status == 0
    written = json.loads(data.read_text(encoding="utf-8"))
    assert [claim["key"] for claim in written["claims"]] == list(KEYS)
    assert page.read_text(encoding="utf-8") == claims_page(run(ClaimsConfig(tuple(KEYS))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("claims", "halve-the-memory"), "no claim is called 'halve-the-memory'; did you mean halves-the-memory"),
        (("claims", "--mode", "sr"), "mode of claims must be one of ties_to_even"),
        (("claims", KEYS[0], "--json", "/nowhere/claims.json"), "cannot write"),
        (("claims", KEYS[0], "--markdown", "/nowhere/claims.md"), "cannot write"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: tuple[str, ...], message: str, command_line: CommandLine
) -> None:
    done = command_line(*arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_verdicts_have_colours() -> None:
    for text, style in (("does not hold", "bold red"), ("holds", "green"), ("not decided with these runs", "magenta")):
        cell = shown._cell("verdict", f"{text}\nThe reason holds.")
        assert cell.plain == f"{text}\nThe reason holds."
        assert [(span.start, span.end, str(span.style)) for span in cell.spans] == [(0, len(text), style)]
    assert {outcome.value for outcome in Outcome} <= shown._VERDICTS.keys()
