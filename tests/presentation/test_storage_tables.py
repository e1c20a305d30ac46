"""Tables of the storage experiment: verdict first, every ratio with interval and n, one word for one finding."""

from __future__ import annotations

import pytest
from rich.console import Console

from precision_lab.cli import show as shown
from precision_lab.experiments.outcomes import ConfigurationSummary
from precision_lab.experiments.paired import Finding
from precision_lab.experiments.storage import Setting, StorageExperimentConfig, StorageResult, alone, cheapest
from precision_lab.presentation.tables.storage import (
    axis_table,
    horizon_tables,
    noise_table,
    ratio_cell,
    storage_tables,
    training_text,
    verdicts_table,
)
from precision_lab.presentation.tables.table import Table
from precision_lab.training.config import TrainingConfig
from precision_lab.training.schedule import Schedule
from tests.presentation.stored import BREAKS, KEEPS, LOSES, LOWER, UNDECIDED, judged, made_up


@pytest.fixture(scope="module")
def result() -> StorageResult:
    return made_up(
        StorageExperimentConfig(("pure_bf16", "master_bf16", "pure_fp16", "fp8_hybrid", "bf16_kahan_fp32_v"))
    )


@pytest.fixture(scope="module")
def tables(result: StorageResult) -> tuple[Table, ...]:
    return storage_tables(result)


def groups(result: StorageResult) -> list[tuple[ConfigurationSummary, ...]]:
    plain = [group for name, group in result.sections.items() if name not in ("noise", "horizon")]
    return [*result.miniatures.values(), *result.outcomes.values(), *plain]


def test_the_first_table_is_the_verdict_of_each_training(result: StorageResult, tables: tuple[Table, ...]) -> None:
    trainings = {**result.miniatures, **result.outcomes}
    assert [row[0] for row in tables[0].rows] == list(trainings)
    for row, group in zip(tables[0].rows, trainings.values(), strict=True):
        narrow, best = alone(group), cheapest(group)
        assert narrow is not None
        assert best is not None
        assert row[1:4] == (narrow.finding, narrow.paired.cell, str(narrow.paired.n))
        assert row[5:] == (best.label, f"{best.bytes_per_parameter:g}", best.paired.cell, str(best.paired.n))
    assert "beta2 = 0.999 and 0.95" in tables[0].note
    assert "that were tried" in tables[0].title


def test_where_nothing_is_known_to_keep_nothing_is_named() -> None:
    row = verdicts_table({"training": judged(pure_bf16=LOSES, master_bf16=UNDECIDED)}).rows[0]
    assert row[:2] == ("training", "loses")
    assert row[5:] == ("none is known", "–", "–", "–")


def test_of_one_training_there_is_its_table_only() -> None:
    config = StorageExperimentConfig(("pure_bf16",), (Setting("adam", 1e-3),), miniatures=(), sections=(), axes=())
    (table,) = storage_tables(made_up(config))
    assert table.title == "mlp on digits, Adam, lr 0.001, beta2 0.999, 2,000 steps"


def test_a_row_says_what_the_runs_say(result: StorageResult, tables: tuple[Table, ...]) -> None:
    rows = [row for table in tables if table.columns[:2] == ("storage", "verdict") for row in table.rows]
    members = [(o, o is group[0]) for group in groups(result) for o in group]
    assert len(rows) == len(members)
    for row, (o, control) in zip(rows, members, strict=True):
        ratios = ("–", "–") if control else (o.paired.cell, o.paired_test.cell)
        assert row[0] == o.label
        assert row[1] == ("control" if control else o.finding)
        assert (row[2], row[6]) == ratios
        assert row[3] == str(len(o.runs))
        assert row[10] == (o.reason or "–")
    assert {row[1] for row in rows} == {"control", *Finding} - {Finding.ENDS_LOWER}


def test_every_finding_has_its_word_and_its_reason() -> None:
    found = judged(
        pure_bf16=LOSES, master_bf16=KEEPS, collage_plus=LOWER, bf16_kahan=UNDECIDED, pure_fp16=BREAKS
    )  # fmt: skip
    words = {o.label: (o.finding.value, o.reason) for o in found[1:]}
    assert words["master_bf16"] == ("keeps", "")
    assert words["collage_plus"] == ("ends lower", "")
    assert words["bf16_kahan"] == ("not decided", "the interval reaches past 3 %")
    assert words["pure_fp16"][0] == "breaks"
    assert words["pure_fp16"][1].startswith("the parameters become infinite or NaN")
    assert words["pure_bf16"][0] == "loses"
    assert words["pure_bf16"][1].startswith("50% of the updates are lost; R(0.999*v) = v for 100% of all v in bf16")
    assert "it stays at" in words["pure_bf16"][1]
    for o in found[1:]:
        if o.reason and o.finding is not Finding.NOT_DECIDED:
            assert o.sentence.endswith(o.reason)
    (_, one) = judged(pure_bf16=(3.0,))
    assert one.reason == "one seed decides nothing (give --seeds 5)"


def test_an_axis_has_a_column_for_each_configuration(result: StorageResult, tables: tuple[Table, ...]) -> None:
    table = next(table for table in tables if table.columns[0] == "beta2")
    axis = result.axes["beta2"]
    assert [row[0] for row in table.rows] == list(axis)
    for row, group in zip(table.rows, axis.values(), strict=True):
        for column, cell in zip(table.columns[2:], row[2:], strict=True):
            o = next(o for o in group if o.label == column)
            assert cell == f"{o.finding}: {o.paired.cell}"
    assert "n = 5 where it is not said" in table.note
    lower = next(table for table in tables if table.columns[0] == "setting").rows[-1]
    assert lower[0] == "lr 1e-2, beta2 .95"
    assert any(cell.startswith("ends lower: 0.4") for cell in lower)  # the honest negative
    mixed = {"a": judged(pure_bf16=LOSES), "b": judged(pure_bf16=LOSES), "c": judged(pure_bf16=(*LOSES, 3.0))}
    last = axis_table("letter", mixed).rows[-1][-1]
    assert last.endswith(", n = 4")


def test_ratio_cells() -> None:
    (_, o) = judged(pure_bf16=LOSES)
    assert ratio_cell(o.paired, 3) == f"loses: {o.paired.cell}"
    assert ratio_cell(o.paired, 5) == f"loses: {o.paired.cell}, n = 3"


def test_the_horizon_has_ratios_and_losses(result: StorageResult) -> None:
    group = result.sections["horizon"]
    ratios, losses = horizon_tables(group)
    steps = dict.fromkeys((*group[0].paired_after, group[0].runs[0].config.steps))
    assert ratios.columns[1:] == losses.columns[1:-1] == tuple(f"{step:,} steps" for step in steps)
    pure = next(row for row in ratios.rows if row[0] == "pure_bf16")
    o = next(o for o in group if o.label == "pure_bf16")
    assert pure[-1] == f"loses: {o.paired.cell}"
    assert o.settled is not None
    stalled = {row[0]: row[-1] for row in losses.rows}
    assert stalled["pure_bf16"] == f"from step {o.settled.step:,} at {o.settled.loss:.2g}"
    assert stalled["fp32"] == stalled["autocast_bf16"] == "–"


def test_the_noise_floor_stands_beside_what_a_master_copy_does(result: StorageResult) -> None:
    table = noise_table({"": result.sections["noise"], **result.outcomes})
    labels = [row[0] for row in table.rows]
    assert labels[:2] == ["rows in another order", "another seed"]
    assert "master_bf16, Adam, lr 0.001" in labels
    deviations = {row[0]: float(row[3]) for row in table.rows}
    assert deviations["rows in another order"] < deviations["master_bf16, Adam, lr 0.001"] < deviations["another seed"]


def test_no_accuracy_finer_than_its_steps(tables: tuple[Table, ...]) -> None:
    assert not [table.title for table in tables if any("accuracy" in column for column in table.columns)]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (TrainingConfig(optimizer="sgd", learning_rate=0.01), "mlp on digits, SGD, lr 0.01, 2,000 steps"),
        (
            TrainingConfig(
                optimizer="adamw",
                learning_rate=1e-3,
                weight_decay=0.1,
                schedule=Schedule("cosine", 100, 0.1),
                steps=400,
            ),
            "mlp on digits, AdamW, lr 0.001, beta2 0.999, decay 0.1, cosine warmup 100 final 0.1, 400 steps",
        ),
    ],
)
def test_what_is_trained(config: TrainingConfig, text: str) -> None:
    assert training_text(config) == text


def test_the_verdict_is_in_the_first_part_on_a_narrow_terminal(
    tables: tuple[Table, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shown, "console", lambda: Console(highlight=False, width=80))
    for table in tables:
        shown.show(table)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        if table.columns[:2] == ("storage", "verdict"):
            first = next(line for line in lines if line.startswith("┃"))
            assert "verdict" in first
            assert "times fp32's" in first
