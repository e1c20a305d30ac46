"""Files of very many tiny tensors: what each of them costs, in calls and in bytes, and that shortcuts change no bit."""

from __future__ import annotations

import gc
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from fractions import Fraction
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import ExponentHistogram, accumulate, get_format, scan, update_report
from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.loss_scale_plan import plan_tensors
from precision_lab.analysis.sums import SUM_METHODS, sum_every_way, sum_tensors
from precision_lab.analysis.swamping_scan import scan_frozen, scan_updates
from precision_lab.analysis.updates import UpdateReport
from precision_lab.numerics.accumulation import exact_sum
from precision_lab.numerics.environment import load_kernels
from precision_lab.presentation.report import write_scan_page
from precision_lab.support.files import write_json
from precision_lab.training.preflight import preflight

MANY = 300  # as full as a dictionary of 1200 is, so that a tensor costs as many bytes


def magnitudes(count: int) -> Any:
    """Return float32 of all sizes, with zeros, subnormals, infinities and NaNs among them."""
    exponents = np.arange(count) * 37 % 250 - 135
    values = np.ldexp(1 + np.arange(count) * 0.618034 % 1, exponents).astype(np.float32) * (-1) ** (
        np.arange(count) % 3
    )
    values[::97], values[1::293], values[2::397] = 0, np.inf, np.nan
    return values.astype(np.float32)


def write(file: Path, values: Any) -> Path:
    head = {
        f"layer.{i}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i in range(values.size)
    }
    text = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + values.tobytes())
    return file


def plans(file: Path) -> Any:
    result = scan(file, formats=["fp16"], precision=False)
    return plan_tensors(zip(result.names, (t.histogram for t in result.tensors), strict=True), "fp16")


def page(file: Path) -> Any:
    result = scan(file)
    write_scan_page(result, file.with_suffix(".html"))
    return result


# what each command does with a file of weights and one of updates; the most calls and bytes a tensor
COMMANDS: dict[str, tuple[Callable[[Path, Path], Any], int, int]] = {
    "scan": (lambda w, _: scan(w), 1080, 2500),
    "scan --html": (lambda w, _: page(w), 1260, 2500),
    "loss-scale": (lambda w, _: plans(w), 1100, 740),
    "swamping --lr": (lambda w, _: scan_frozen(w, [1e-4]), 420, 900),
    "swamping --updates": (scan_updates, 750, 1200),
    "accumulation": (lambda w, _: sum_tensors(w, "bf16"), 820, 980),
    "preflight": (lambda w, _: preflight(w, lr=1e-4), 1100, 860),
    "preflight --updates": (lambda w, u: preflight(w, updates=u, lr=1e-4), 730, 1450),
}


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions are called, of Python and of C: the same on every machine, however loaded it is."""
    count = 0

    def seen(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def bytes_of(work: Callable[[], object]) -> int:
    """Return the most bytes that are held at a time."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measured(folder: Path) -> dict[str, tuple[float, float]]:
    """Return what a tensor costs each command, in calls and in bytes; what is written counts too.

    That is what files of two sizes differ by.
    """
    few, many = (
        [write(folder / f"{count}-{i}.safetensors", magnitudes(count) * np.float32(2.0**-i)) for i in (0, 9)]
        for count in (50, MANY)
    )
    load_kernels()  # or that would happen after so many tensors, somewhere
    costs = {}
    for command, (work, _, _) in COMMANDS.items():

        def run(files: list[Path], work: Callable[[Path, Path], Any] = work) -> None:
            write_json(work(*files).parts(), folder / "out.json")

        run(many)  # what is made once, or kept for tensors that are alike, has been made
        calls = [calls_of(lambda files=files, run=run: run(files)) for files in (few, many)]  # type: ignore[misc]
        held = [bytes_of(lambda files=files, run=run: run(files)) for files in (few, many)]  # type: ignore[misc]
        costs[command] = (calls[1] - calls[0]) / (MANY - 50), (held[1] - held[0]) / (MANY - 50)
    return costs


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    """What is measured in a process of its own: what other tests have left in memory and caches counts otherwise."""
    program = (
        "import json, sys; from pathlib import Path; from tests.analysis.test_many_tensors import measured; "
        "print(json.dumps(measured(Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path_factory.mktemp("tensors"))],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    found: dict[str, tuple[float, float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tensor_costs_few_calls_and_few_bytes(command: str, costs: dict[str, tuple[float, float]]) -> None:
    _, most_calls, most_bytes = COMMANDS[command]
    calls, held = costs[command]
    assert 0 < calls < most_calls
    assert 0 < held < most_bytes


def test_the_counts_see_what_they_count() -> None:
    assert 1000 <= calls_of(lambda: [abs(i) for i in range(1000)]) < 1100
    assert 8 * 10**6 <= bytes_of(lambda: np.zeros(10**6)) < 9 * 10**6


# --- shortcuts -------------------------------------------------------------------------------------------------------


def test_totals_are_the_sums_one_by_one() -> None:
    values = magnitudes(400)
    parts = [values[i : i + 1 + i % 3] for i in range(398)]
    fmt, mode = get_format("bf16"), update_report([1.0], [1.0], "bf16").mode
    histograms = [ExponentHistogram.of(part) for part in parts]
    assert ExponentHistogram.total(histograms) == reduce(add, histograms) == ExponentHistogram.of(np.concatenate(parts))
    gaps = [WeightGaps.of(part, fmt) for part in parts]
    assert WeightGaps.total(gaps, fmt) == reduce(add, gaps) == WeightGaps.of(np.concatenate(parts), fmt)
    reports = [update_report(part, part * np.float32(2.0**-9), fmt) for part in parts]
    whole = update_report(np.concatenate(parts), np.concatenate(parts) * np.float32(2.0**-9), fmt)
    assert UpdateReport.total(reports, fmt, mode) == reduce(add, reports) == whole
    assert list(whole.ratios) == sorted(whole.ratios)
    with pytest.raises(ValueError, match=r"to one on fp16 \(ties_to_even\)"):
        UpdateReport.total(reports, get_format("fp16"), mode)
    with pytest.raises(ValueError, match="not those of fp16"):
        WeightGaps.total(gaps, get_format("fp16"))


def test_results_without_a_dict_go_to_other_processes_and_back() -> None:
    histogram = ExponentHistogram.of(magnitudes(400))
    report = update_report(magnitudes(400), magnitudes(400) * np.float32(2.0**-9), "bf16")
    trace = accumulate([1.0, 2.0**-9], "bf16")
    for result in (histogram, report, trace):
        assert not hasattr(result, "__dict__")  # of very many, it would take most of the memory
        again = pickle.loads(pickle.dumps(result))
        for field in fields(result):
            assert np.array_equal(getattr(again, field.name), getattr(result, field.name))


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2", "fp4_e2m1fn", "fp32"])
def test_counts_at_each_scale_are_those_at_one(fmt: str) -> None:
    for values in (magnitudes(400), magnitudes(1), np.zeros(3), np.array([np.nan]), np.array([2.0**-149, 2.0**-24])):
        histogram = ExponentHistogram.of(values)
        found = histogram.at_each(get_format(fmt), range(-126, 128))
        one_by_one = [(k, histogram.conversion(fmt, 2.0**k)) for k in range(-126, 128)]
        assert found == [(k, c.flushed, c.subnormal, c.overflowed) for k, c in one_by_one]


def test_one_exact_sum_for_all_ways_is_that_of_each() -> None:
    for count in (0, 1, 2, 31, 32, 33, 500):
        terms = np.nan_to_num(magnitudes(count), nan=1, posinf=2).astype(np.float64)
        assert exact_sum(terms) == sum(map(Fraction, terms.tolist()))
        for name, trace in sum_every_way(terms, "bf16", seed=3).items():
            way = SUM_METHODS[name]
            rng = 3 if way.mode == "stochastic" else None
            alone = accumulate(terms, "bf16", method=way.method, mode=way.mode, accumulator=way.accumulator, rng=rng)
            for field in fields(alone):
                assert np.array_equal(getattr(trace, field.name), getattr(alone, field.name))
            assert trace.magnitudes == sum(map(abs, map(Fraction, terms.tolist())))
            error = abs(Fraction(trace.result) - exact_sum(terms))
            if exact_sum(terms):
                assert trace.relative_error == float(error / abs(exact_sum(terms)))


def test_cells_that_are_used_again_are_zeros_again() -> None:
    """Small and large arrays in turn find what they find in a thread that has counted nothing yet."""
    values = magnitudes(5000)
    parts = [values[: 1 + i * i % 4001] for i in range(60)]

    def found(part: Any) -> list[Any]:
        other = part[::-1].copy()
        doubles = update_report(part.astype(np.float64), other, "fp16", mode="stochastic", rng=1)
        return [WeightGaps.of(part, "fp8_e4m3fn"), update_report(part, other, "bf16"), doubles]

    def in_a_new_thread(part: Any) -> list[Any]:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(found, part).result()

    assert [found(part) for part in parts] == [in_a_new_thread(part) for part in parts]
    for part in parts:
        counts = WeightGaps.of(part, "bf16")
        assert counts.count + counts.nonfinite == part.size
        assert update_report(part, part, "bf16").count == part.size
