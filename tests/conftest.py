from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pytest

from precision_lab.cli import main


@dataclass(frozen=True)
class Finished:
    status: int
    out: str
    err: str


CommandLine: TypeAlias = Callable[..., Finished]


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Run `precision-lab` with arguments as its console script does, in this process."""

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["precision-lab", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1 if exit_.code else 0
        captured = capsys.readouterr()
        return Finished(status, captured.out, captured.err)

    return run
