"""The command `report`: files, reuse, quick runs, the end after Ctrl-C."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from precision_lab.cli import experiments
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.presentation.plots.figures import figures_of
from precision_lab.support.files import OutputError
from precision_lab.support.jsontext import digest_of
from precision_lab.support.reading import InputError
from tests.conftest import CommandLine, Finished, interrupted, wait_until

REPOSITORY = Path(__file__).parents[2]


def test_a_second_report_reuses_everything_and_changes_no_byte(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("report", "memory", "-o", tmp_path, "--workers", 1)
    first = command_line(*arguments)
    assert first.status == 0, first.err
    files = {"memory.json", "memory.png", "memory.svg", "report.html", "results.json"}
    assert {file.name for file in tmp_path.iterdir()} == files
    assert len(re.findall(r"│ run +│", first.out)) == 1
    data = json.loads((tmp_path / "results.json").read_text())
    assert list(data["experiments"]) == ["memory"]
    assert data["quick"] is False
    assert data["answers"]["memory"].split(": ")[0] in first.out
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    second = command_line(*arguments)
    assert len(re.findall(r"│ reused +│", second.out)) == 1
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert second.out.partition("What came out")[0] == first.out.partition("What came out")[0]
    # another one: shown is what was asked for, but the results have what was finished before; its figure is no matter
    monkeypatch.setattr(experiments, "_draw", lambda *_, **__: None)
    third = command_line("report", "hyperparameters", "-o", tmp_path)
    assert list(json.loads((tmp_path / "results.json").read_text())["experiments"]) == ["hyperparameters", "memory"]
    assert "GiB" not in third.out
    check_svg((tmp_path / "memory.svg").read_text())


def check_svg(text: str) -> None:
    """No date, nothing superfluous."""
    assert text.startswith("<?xml")
    assert "dc:date" not in text
    assert not re.search(r"(?m)^ ", text)
    assert not re.search(r"translate\([^)]*\.\d{3}", text)
    assert "scale(0.015625)" in text  # the glyphs keep their size


def test_quick_says_so_and_has_a_folder_of_its_own(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = command_line("report", "--quick", "accumulation", "memory", "--workers", 1)
    assert finished.status == 0, finished.err
    folder = tmp_path / "figures" / "quick"
    assert "What came out (quick run" in finished.out
    data = json.loads((folder / "results.json").read_text())
    assert data["quick"] is True
    assert data["configs"]["accumulation"]["seeds"] == 3
    assert "(quick run) -->" in (folder / "accumulation.svg").read_text()
    assert "quick" not in (folder / "memory.svg").read_text()  # it is no smaller than the other


def test_an_unknown_experiment_is_refused_with_the_list(command_line: CommandLine, tmp_path: Path) -> None:
    finished = command_line("report", "alchemy", "-o", tmp_path / "new")
    assert finished.status == 2
    assert "'alchemy' is no experiment; choose from underflow, swamping" in finished.err
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_written_is_found_before_the_work(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "memory.svg").mkdir()
    finished = command_line("report", "memory", "-o", tmp_path)
    assert finished.status == 2
    assert "memory.svg: cannot write" in finished.err
    assert not (tmp_path / "memory.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("underflow", "--steps", -1),
        ("underflow", "--seed", -1),
        ("report", "memory", "--workers", -1),
        ("report", "memory", "--workers", 10**6),
    ],
)
def test_what_is_refused_leaves_no_folder(
    command_line: CommandLine, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    refused = command_line(*arguments, "-o", tmp_path / "a" / "b")
    assert refused.status == 2
    assert list(tmp_path.iterdir()) == []


def test_kept_results_that_cannot_be_shown_are_named(command_line: CommandLine, tmp_path: Path) -> None:
    """Written by somebody who knew how the digest is made; the cure is tried."""
    arguments = ("report", "memory", "-o", tmp_path, "--workers", 1)
    assert command_line(*arguments).status == 0
    file = tmp_path / "memory.json"
    kept = json.loads(file.read_text())

    kept["result"]["ledgers"] = {}  # of the right types, but nothing to show
    kept["result_digest"] = digest_of(kept["result"])
    file.write_text(json.dumps(kept))
    refused = command_line(*arguments)
    assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert f"{tmp_path}: what is kept there cannot be shown (" in refused.err
    assert "remove memory.json, and run it again" in refused.err
    file.unlink()
    assert command_line(*arguments).status == 0


def test_nobody_reading_is_no_fault_of_what_is_kept(tmp_path: Path) -> None:
    one = SimpleNamespace(name="memory", reused=True)
    for error in (BrokenPipeError(), FloatingPointError("flushed"), OutputError("full"), InputError("gone")):
        with pytest.raises(type(error)) as caught, experiments._blaming_kept([one], tmp_path):  # type: ignore[list-item]
            raise error
        assert caught.value is error
    with pytest.raises(TypeError), experiments._blaming_kept([SimpleNamespace(name="a", reused=False)], tmp_path):  # type: ignore[list-item]
        raise TypeError  # of our own making
    with pytest.raises(InputError, match=r"remove memory.json"), experiments._blaming_kept([one], tmp_path):  # type: ignore[list-item]
        raise TypeError


def test_progress_of_other_processes_moves_the_bars() -> None:
    seen: list[tuple[str, int, int]] = []
    with experiments._progress_of_processes(lambda *at: seen.append(at)) as queue:
        queue.put(("memory", 1, 3))
        queue.put(("storage", 2, 3))
        wait_until(lambda: len(seen) == 2, 30)
    assert seen == [("memory", 1, 3), ("storage", 2, 3)]


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(tmp_path: Path) -> None:
    arguments = ("report", "--quick", "storage", "memory", "-o", tmp_path, "--workers", 2)
    finished = interrupted(*arguments, when=(tmp_path / "memory.json").exists)
    assert finished == Finished(130, "", "\nprecision-lab: interrupted\n")  # on a line of its own, after the ^C
    assert {file.name for file in tmp_path.iterdir()} == {"memory.json"}


def test_the_gallery_is_whole() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for experiment in EXPERIMENTS.values():
        for picture in figures_of(experiment.result):
            assert f"](figures/{picture}.png)" in readme
            for kind, limit in (("png", 350_000), ("svg", 450_000)):  # 60 bytes a letter: the audit's table has 4,000
                size = (REPOSITORY / "figures" / f"{picture}.{kind}").stat().st_size
                assert 20_000 < size < limit, (picture, kind)
