"""What adds up in a scan and what does not: parameters, what lies beside them in a checkpoint, and recorded runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import ExponentHistogram, quantization_report, scan
from precision_lab.analysis.scan import ScanResult, scan_recording
from precision_lab.presentation.plots.histograms import scan_figure
from precision_lab.presentation.report import write_scan_page
from precision_lab.presentation.tables.histograms import scan_tables
from precision_lab.presentation.tables.table import MOST_ROWS, tables_of
from tests.analysis.test_recording import example, written
from tests.conftest import CommandLine
from tests.presentation.pages import scanned

SAVEZ: Any = np.savez


def checkpoint() -> dict[str, np.ndarray[Any, Any]]:
    """Weights of about 1e-2, whose total something of every other role would spoil."""
    rng = np.random.default_rng(4)

    def normal(scale: float, *shape: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return {
        "model.conv.weight": normal(1e-2, 8, 9),
        "model.bn.weight": np.ones(8, np.float32),
        "model.bn.running_mean": normal(40, 8),
        "model.bn.running_var": np.full(8, 900, np.float32),
        "model.bn.num_batches_tracked": np.array(70000.0, np.float32),
        "model.rope.inv_freq": normal(1e-4, 4),
        "model.fc.weight": normal(1e-2, 4, 8),
        "model.fc.weight_scale_inv": np.full((1, 1), 3e-5, np.float32),
        "optimizer.state.0.step": np.array(70000.0, np.float32),
        "optimizer.state.0.exp_avg": normal(1e-6, 8, 9),
        "optimizer.state.0.exp_avg_sq": normal(1e-12, 8, 9) ** 2,
        "optimizer.state.1.momentum_buffer": normal(1e-5, 8),
    }


PARAMETERS = ("model.conv.weight", "model.bn.weight", "model.fc.weight")
OTHERS = {
    "optimizer state": ("exp_avg", "exp_avg_sq", "momentum_buffer"),
    "buffers": ("running_mean", "running_var", "num_batches_tracked", "inv_freq"),
    "scales": ("weight_scale_inv",),
}


def of(names: tuple[str, ...]) -> list[np.ndarray[Any, Any]]:
    return [x for name, x in checkpoint().items() if name in names or name.rpartition(".")[2] in names]


def test_each_role_has_its_total() -> None:
    result = scan(checkpoint(), formats=["fp16", "bf16"])
    assert result.total == ExponentHistogram.of_chunks(of(PARAMETERS))
    assert [total.name for total in result.totals] == ["parameters", *OTHERS]
    for total, names in zip(result.totals, [PARAMETERS, *OTHERS.values()], strict=True):
        together = np.concatenate([x.ravel() for x in of(names)])
        assert total.histogram == ExponentHistogram.of(together)
        assert total.precision == tuple(quantization_report(together, fmt) for fmt in ("fp16", "bf16"))
    assert sum(total.histogram.count for total in result.totals) == sum(x.size for x in checkpoint().values()) - 1
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["total"]["max_abs"] == 1  # neither 900 nor 70000
    assert data["total"]["formats"]["fp16"]["flushed"] == data["total"]["formats"]["fp16"]["overflowed"] == 0
    assert [total["name"] for total in data["other_totals"]] == [*OTHERS]
    assert {t["name"]: t["role"] for t in data["tensors"]}["optimizer.state.0.step"] == "step counter"


@pytest.mark.parametrize("left", ["parameters", "moments", "steps"])
def test_a_file_of_one_role(left: str) -> None:
    """Where nothing is beside them, parameters are the total, by that name; of others there are none."""
    chosen = {"parameters": PARAMETERS, "moments": OTHERS["optimizer state"], "steps": ("step",)}[left]
    some = {name: x for name, x in checkpoint().items() if name in chosen or name.rpartition(".")[2] in chosen}
    result = scan(some)
    (total,) = result.totals
    assert total.name == {"parameters": "total", "moments": "optimizer state", "steps": "total"}[left]
    assert total.histogram.count == (0 if left == "steps" else sum(x.size for x in some.values()))
    assert result.total.count == (total.histogram.count if left == "parameters" else 0)
    assert scan_tables(result)[0].other_totals == ()


def test_parameters_of_several_files_add_up(tmp_path: Path) -> None:
    for i in range(3):
        SAVEZ(tmp_path / f"{i}.npz", **checkpoint())
    result = scan(sorted(tmp_path.iterdir()), formats=["bf16"])
    one = scan(checkpoint(), formats=["bf16"])
    assert [t.name for t in result.totals] == [t.name for t in one.totals]
    for three, single in zip(result.totals, one.totals, strict=True):
        assert three.histogram == single.histogram + single.histogram + single.histogram
        assert three.precision is not None
        assert single.precision is not None
        assert three.precision[0] == single.precision[0] + single.precision[0] + single.precision[0]


# --- recorded runs ---------------------------------------------------------------------------------------------------


def run(folder: Path, name: str, scale: float = 1.0) -> Path:
    data = example().to_dict()
    data["steps"] = int(3 * scale)
    return written(data, folder / name)


def test_runs_do_not_add_up(tmp_path: Path) -> None:
    a, b = run(tmp_path, "a.json"), run(tmp_path, "b.json", 2)
    one = scan(a)
    assert [total.name for total in one.totals] == ["total"]
    both = scan([a, b])
    assert [total.name for total in both.totals] == ["a.json", "b.json"]
    assert all(total.histogram == one.total for total in both.totals)
    with pytest.raises(ValueError, match=r"several runs do not add up \(a\.json, b\.json\): scan one"):
        _ = both.total
    data = both.to_dict()
    assert data["total"] is None
    assert [total["name"] for total in data["other_totals"]] == ["a.json", "b.json"]
    twice = scan([a, a])  # nor does a run with itself
    assert [total.histogram for total in twice.totals] == [one.total, one.total]
    np.save(tmp_path / "w.npy", np.ones(2, np.float32))
    beside = scan([a, tmp_path / "w.npy", b])
    assert [(t.name, t.histogram.count) for t in beside.totals] == [
        ("parameters", 2),
        ("a.json", one.total.count),
        ("b.json", one.total.count),
    ]
    assert beside.total.count == 2


def test_what_only_counts_were_recorded_of_is_not_known(tmp_path: Path) -> None:
    """Never a 0, never an infinity."""
    alone = scan(run(tmp_path, "a.json"), formats=["bf16"])
    assert alone.tensors[0].precision is None
    assert alone.totals[0].precision is None
    data = alone.to_dict()
    assert all(t["formats"]["bf16"]["precision"] is None for t in [*data["tensors"], data["total"]])
    (table,) = scan_tables(alone)
    assert "not known of recorded runs: only counts were recorded" in table.note
    assert [t.precision for t in scan_recording(example()).tensors] == [None, None]
    np.save(tmp_path / "w.npy", np.array([0.1, 0.3], np.float32))
    beside, precision = scan_tables(scan([tmp_path / "a.json", tmp_path / "w.npy"], formats=["bf16"]))
    assert "not known" in beside.note
    assert [row[0] for row in precision.rows] == ["w.npy: w"]
    assert precision.totals is not None
    assert precision.totals[0] == "parameters"
    assert precision.other_totals == ()


def test_what_was_not_asked_for_is_not_known() -> None:
    result = scan(checkpoint(), formats=["fp16"], precision=False)
    assert {t.precision for t in result.tensors} == {None}
    assert len(scan_tables(result)) == 1
    assert "recorded" not in scan_tables(result)[0].note
    asked = scan(checkpoint(), formats=["fp16"])
    assert [t.histogram for t in result.tensors] == [t.histogram for t in asked.tensors]


# --- what it looks like ----------------------------------------------------------------------------------------------


def test_the_tables() -> None:
    result = scan(checkpoint(), formats=["fp16", "bf16"])
    for_range, for_precision = tables_of(result)
    assert for_range.totals is not None
    assert [row[0] for row in (for_range.totals, *for_range.other_totals)] == ["parameters", *OTHERS]
    assert for_range.totals[2] == "112"
    assert for_range.totals[8] == "0 / 0 / 0"
    assert "Step counters are in no total." in for_range.note
    assert for_precision.columns == ("tensor", "elements", "fp16", "bf16")
    cells = {row[0]: row[2:] for row in for_precision.rows}
    by_hand = quantization_report(checkpoint()["model.conv.weight"], "bf16")
    assert cells["model.conv.weight"][1] == f"{by_hand.sqnr_db:.1f} / {100 * by_hand.changed_of_finite:.0f}"
    assert 50 < by_hand.sqnr_db < 60
    assert cells["model.bn.running_var"] == ("inf / 0", "inf / 0")
    assert cells["optimizer.state.0.exp_avg_sq"][0] == "0.0 / 100"
    ratios = [min(t.precision[0].sqnr, t.precision[1].sqnr) for t in result.tensors if t.precision]
    assert for_precision.rows[0][0] == result.tensors[int(np.nanargmin(ratios))].info.name
    zeros = scan({"z": np.zeros(3, np.float32)}, formats=["bf16"])
    assert scan_tables(zeros)[1].rows[0][2] == "– / 0"


def test_of_very_many_tensors_the_worst_are_shown() -> None:
    rng = np.random.default_rng(0)
    many = {f"t{i}": (rng.standard_normal(20) * 2.0**-i).astype(np.float32) for i in range(MOST_ROWS + 5)}
    result = scan(many, formats=["fp16"])
    table = scan_tables(result)[1]
    assert len(table.rows) == MOST_ROWS
    assert float(table.rows[0][2].split(" / ")[0]) == 0
    assert float(table.rows[-1][2].split(" / ")[0]) > 70
    assert "Shown are the worst 100, 5 more are not" in table.note


def test_the_figure_has_one_histogram_a_total(tmp_path: Path) -> None:
    titles = [ax.get_title("left") or ax.get_title() for ax in scan_figure(scan(checkpoint())).axes]
    assert [title.split(",")[0] for title in titles] == ["parameters", *OTHERS]
    alone = scan_figure(scan({"w": np.ones(3)})).axes
    assert [ax.get_title("left") or ax.get_title() for ax in alone] == ["1 tensor, 3 elements"]
    both = scan_figure(scan([run(tmp_path, "a$b$.json"), run(tmp_path, "b.json")]))
    assert len(both.axes) == 2
    both.draw_without_rendering()


def data_of(result: ScanResult, path: Path) -> tuple[dict[str, Any], str]:
    write_scan_page(result, path)
    page = path.read_text()
    text = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    return json.loads(text), page


def test_the_page_has_both(tmp_path: Path) -> None:
    result = scan(checkpoint(), formats=["fp16", "bf16"])
    data, page = data_of(result, tmp_path / "page.html")
    assert [group["label"] for group in data["groups"][len(result.tensors) :]] == [
        f"{name}, together" for name in ("parameters", *OTHERS)
    ]
    assert data["chosen"] == len(result.tensors)
    for suffix, there in (("", True), ("-3", True), ("-4", False)):
        assert (f'id="total-sqnr{suffix}"' in page) == there
    counted = [one.precision for one in result.tensors] + [total.precision for total in result.totals]
    for group, precision in zip(data["groups"], counted, strict=True):
        assert precision is not None
        for (decibels, changed), report in zip(group["precision"], precision, strict=True):
            assert (math.nan if decibels is None else float(decibels)) == pytest.approx(report.sqnr_db, nan_ok=True)
            assert changed == report.changed_of_finite
    unknown, _ = data_of(scanned({"a": [0.1], "b": [0.0]}), tmp_path / "unknown.html")
    assert {group["precision"] for group in unknown["groups"]} == {None}


def test_on_the_command_line(command_line: CommandLine, tmp_path: Path) -> None:
    SAVEZ(tmp_path / "ck.npz", **checkpoint())
    finished = command_line("scan", tmp_path / "ck.npz", "-f", "bf16")
    assert finished.status == 0
    assert finished.out.count("optimizer state") == 2
    assert "What each format would do to the precision" in finished.out
    plan = command_line("loss-scale", tmp_path / "ck.npz", "--json", tmp_path / "plan.json")
    assert plan.status == 0
    for line in ("4 tensors: buffer", "'optimizer.state.0.step': step counter", "3 tensors: optimizer state"):
        assert f"{line}, no gradient" in plan.err
    assert {plan["name"] for plan in json.loads((tmp_path / "plan.json").read_text())["tensors"]} == {*PARAMETERS}
    plain = command_line("loss-scale", run(tmp_path, "a.json"))
    assert "no gradient" not in plain.err
