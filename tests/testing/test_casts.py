"""`check_cast` itself: what it tries, what it expects, and what it says of casts that do not behave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import precision_lab as pl
from precision_lab.numerics import reference
from precision_lab.testing.cast_models import Model, Spec, canonical, predict
from precision_lab.testing.cast_report import CastReport, exact_text
from precision_lab.testing.casts import check_cast
from precision_lab.testing.hard_inputs import get_source, hard_patterns, special_patterns
from tests.testing.functions import brain, dies_on_three, hangs_on_three, raises_for_three

Array: TypeAlias = NDArray[Any]


def only_fault(report: CastReport) -> tuple[str, str]:
    (fault,) = report.faults
    assert not report.ok
    assert fault.count == 0  # it is about no single results
    return fault.name, fault.text


# ---- casts that do not behave ----


def crashes_on_three(x: Array) -> Array:
    if (x == 3).any():
        os.kill(os.getpid(), signal.SIGSEGV)
    return brain(x)


@pytest.mark.parametrize(
    ("cast", "name", "text"),
    [
        (raises_for_three, "raises", "OverflowError: three is too much, for the input 0x40400000 = 3"),
        (hangs_on_three, "hangs", "no answer, for the input 0x40400000 = 3"),
        (crashes_on_three, "crashes", "its process was ended by SIGSEGV, for the input 0x40400000 = 3"),
        (dies_on_three, "crashes", "its process ended with status 7, for the input 0x40400000 = 3"),
    ],
)
def test_the_input_on_which_a_cast_fails_is_found(cast: Callable[[Array], Array], name: str, text: str) -> None:
    report = check_cast(cast, "fp32", "bf16", time_limit=0.5)
    assert only_fault(report) == (name, text)
    assert "the check ended there: what else is wrong is not known" in report.notes
    assert text in str(report)


def test_the_check_goes_on_without_nans() -> None:
    def cast(x: Array) -> Array:
        if np.isnan(x).any():
            raise ValueError("cannot convert NaN")
        return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)

    report = check_cast(cast, "fp32", "bf16")
    assert {fault.name for fault in report.faults} == {"raises", "truncates"}
    assert "the check went on without NaN" in report.notes


def test_a_cast_that_fails_for_a_length() -> None:
    def cast(x: Array) -> Array:
        if x.size == 23:
            raise ValueError("no prime numbers")
        return brain(x)

    text = "ValueError: no prime numbers, for an array of 23 elements, but for neither half of it"
    assert only_fault(check_cast(cast, "fp32", "bf16")) == ("raises", text)


@pytest.mark.parametrize(
    ("cast", "name", "text"),
    [
        (lambda x: brain(x)[:-1], "wrong result", "returns shape (7,) for an input of shape (8,), already for ones"),
        (lambda x: brain(x).tolist(), "wrong result", "returns list, no numpy array, already for ones"),
        (lambda x: None, "wrong result", "returns NoneType, no numpy array, already for ones"),
        (lambda x: 1 / 0, "raises", "ZeroDivisionError: division by zero, already for ones"),
        (lambda x: os._exit(3), "crashes", "its process ended with status 3, already for ones; if it works outside, "
         "pass isolate='spawn' or isolate=False"),
        (
            lambda x: brain(x).view(np.int16),
            "wrong dtype",
            "returns an array of int16; accepted are bfloat16, uint16 (codes), float32 or float64 (values)",
        ),
        (
            lambda x: x.astype(np.float16),
            "wrong dtype",
            "returns an array of float16; accepted are bfloat16, uint16 (codes), float32 or float64 (values)",
        ),
    ],
)  # fmt: skip
def test_what_is_no_cast_at_all(cast: Callable[[Array], Any], name: str, text: str) -> None:
    report = check_cast(cast, "fp32", "bf16")
    assert only_fault(report) == (name, text)
    assert report.checked == 0


def test_inputs_that_are_changed() -> None:
    def cast(x: Array) -> Array:
        y = brain(x)
        x[np.isnan(x)] = 0
        return y

    name, text = only_fault(check_cast(cast, "fp32", "bf16"))
    assert name == "changes its input"
    assert "writes to the array that it is given" in text


def test_results_of_changing_dtype() -> None:
    def cast(x: Array) -> Array:
        return brain(x) if x.size > 5 else brain(x).astype(np.float32)

    name, text = only_fault(check_cast(cast, "fp32", "bf16"))
    assert (name, text) == (
        "changing dtype",
        "returns an array of bfloat16 at first, and values in float32 for 1 elements",
    )


ENDED = """
import os, signal, threading
from precision_lab.testing.casts import check_cast
from tests.testing.functions import hangs_on_three

before = threading.active_count(), signal.getsignal(signal.SIGINT)
report = check_cast(hangs_on_three, "fp32", "bf16", time_limit=0.3)
assert [fault.name for fault in report.faults] == ["hangs"]
assert (threading.active_count(), signal.getsignal(signal.SIGINT)) == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child is left")
"""


def test_a_process_that_hangs_is_ended() -> None:
    """Nothing is left running, and the caller's own signals and threads are as they were."""
    done = subprocess.run([sys.executable, "-c", ENDED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("no child is left\n", "")


def test_in_this_process() -> None:
    calls = []

    def cast(x: Array) -> Array:
        calls.append(x.size)
        return raises_for_three(x)

    text = "OverflowError: three is too much, for the input 0x40400000 = 3"
    assert only_fault(check_cast(cast, "fp32", "bf16", isolate=False)) == ("raises", text)
    assert {*range(1, 71)} <= {*calls}


def test_from_a_thread() -> None:
    reports = []
    thread = threading.Thread(target=lambda: reports.append(check_cast(brain, "fp16", "bf16")))
    thread.start()
    thread.join()
    assert reports[0].ok


def test_a_slow_cast_gets_through_a_part() -> None:
    def cast(x: Array) -> Array:
        time.sleep(2e-5 * x.size)
        return brain(x)

    report = check_cast(cast, "fp32", "bf16")
    assert report.ok
    assert "further inputs tried" in report.notes[0]
    assert 70_000 < report.checked < 300_000


# ---- what it tries ----


def test_it_tries_every_length_at_changing_addresses() -> None:
    seen = set()

    def cast(x: Array) -> Array:
        seen.add((x.size, x.ctypes.data % 64))
        return brain(x)

    check_cast(cast, "fp32", "bf16", isolate=False)
    lengths = {length for length, _ in seen}
    assert {*range(1, 71)} <= lengths
    assert len({address for length, address in seen if length <= 70}) == 16


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2fnuz", "fp6_e2m3fn"])
def test_narrow_sources_are_tried_completely(name: str) -> None:
    seen: list[Array] = []

    def cast(x: Array) -> Array:
        seen.append(x.view(np.uint16 if x.dtype.itemsize == 2 else np.uint8).copy())
        return np.asarray(pl.encode(x, "fp8_e5m2"))

    report = check_cast(cast, name, "fp8_e5m2", isolate=False)
    assert report.ok
    assert report.exhaustive
    assert np.unique(np.concatenate(seen)).size == 2 ** pl.get_format(name).bits


@pytest.mark.parametrize(("source", "target"), [("fp32", "fp8_e4m3fn"), ("float64", "fp8_e5m2"), ("fp32", "fp16")])
def test_values_midpoints_and_neighbours_are_tried(source: str, target: str) -> None:
    fmt, of = pl.get_format(target), get_source(source)
    tried = np.concatenate(hard_patterns(of, fmt, 0)).astype(np.uint64)
    values = np.array([*reference.finite_values(fmt)])
    middles = np.append((values[:-1] + values[1:]) / 2, fmt.overflow_threshold)
    wanted = [special_patterns(of).astype(np.uint64)]
    for exact in (values[1:], middles):
        patterns = of.patterns(exact)
        assert np.array_equal(of.values(patterns), exact)
        around = [patterns.astype(np.uint64) + np.uint64(step) - np.uint64(1) for step in (0, 1, 2)]
        wanted += [*around, *(pattern | np.uint64(1 << (of.bits - 1)) for pattern in around)]
    tried, all_wanted = np.sort(tried), np.concatenate(wanted)
    assert np.array_equal(tried[np.minimum(np.searchsorted(tried, all_wanted), tried.size - 1)], all_wanted)


def test_midpoints_that_a_detour_hides_are_tried() -> None:
    """Values that become a tie in float32 but are none."""
    of, fmt = get_source("float64"), pl.get_format("bf16")
    x = of.values(np.concatenate(hard_patterns(of, fmt, 0)))
    with np.errstate(all="ignore"):
        narrow = x.astype(np.float32)
    u = narrow.view(np.uint32)
    ties = np.isfinite(x) & (u & np.uint32(0xFFFF) == 0x8000) & (narrow != x)
    assert np.unique((u[ties] >> np.uint32(23)) & np.uint32(255)).size >= 254  # in every binade


# ---- what it expects ----

SPECS = [
    ("fp32", "bf16", "ties_to_even", True, False),
    ("fp32", "fp16", "ties_to_away", False, False),
    ("float64", "fp8_e4m3fn", "ties_to_even", True, False),
    ("float64", "fp8_e4m3fn", "toward_positive", True, True),
    ("fp32", "fp8_e5m2fnuz", "toward_negative", True, False),
    ("fp16", "fp4_e2m1fn", "to_odd", True, False),
    ("float64", "fp16", "toward_zero", True, False),
    ("bf16", "e5m0", "ties_to_even", True, False),
]


@pytest.mark.parametrize(("source", "target", "mode", "subnormals", "saturate"), SPECS)
def test_the_model_of_the_right_cast_is_exact(
    source: str, target: str, mode: str, subnormals: bool, saturate: bool
) -> None:
    """Three ways to the same codes: the model, the compiled rounding, exact arithmetic."""
    of, fmt = get_source(source), pl.get_format(target)
    spec = Spec(of, fmt, mode, subnormals, saturate, "any")
    patterns = hard_patterns(of, fmt, 0)[0]
    x = of.values(patterns[:20_000])
    x = x[~np.isnan(x)]
    codes = canonical(np.asarray(pl.encode(x, fmt, mode, subnormals=subnormals, saturate=saturate)), fmt)
    assert np.array_equal(predict(Model(), x, spec), codes)
    some = slice(None, None, max(1, x.size // 1500))
    for value, code in zip(x[some].tolist(), codes[some].tolist(), strict=True):
        exact = reference.round_to(value, fmt, mode, subnormals=subnormals, saturate=saturate)
        assert canonical(np.asarray(pl.encode([exact], fmt)), fmt)[0] == code


def test_payloads_as_processors_keep_them() -> None:
    def cast(x: Array) -> Array:
        u = x.view(np.uint32)
        right = brain(x).view(np.uint16)
        return np.where(np.isnan(x), (u >> np.uint32(16)) | np.uint32(0x40), right).astype(np.uint16)

    assert check_cast(cast, "fp32", "bf16", nan="payload").notes == ()
    report = check_cast(brain, "fp32", "bf16", nan="payload")
    assert [fault.name for fault in report.faults] == ["NaN payload lost"]
    assert check_cast(brain, "fp32", "bf16", nan="quiet").ok
    assert "NaN payload lost: the leading bits of the payload are not kept" in check_cast(brain, "fp32", "bf16").notes


def test_values_must_be_values_of_the_target() -> None:
    report = check_cast(lambda x: np.asarray(pl.round_to(x, "fp16")) * np.float32(1.0009765625), "fp32", "fp16")
    assert "no value of the target" in {fault.name for fault in report.faults}


def test_negative_zero_in_a_format_without() -> None:
    report = check_cast(lambda x: np.copysign(pl.round_to(x, "fp8_e4m3fnuz"), x), "fp16", "fp8_e4m3fnuz")
    assert "which it cannot hold" in str(report)


# ---- the report ----


@pytest.mark.parametrize("n", [4, 8, 16, 32, 64])
def test_from_which_length_on_it_is_wrong(n: int) -> None:
    def wrong(x: Array) -> Array:
        return np.negative(brain(x))

    short = check_cast(lambda x: wrong(x) if x.size < n else brain(x), "fp16", "bf16")
    assert any(f"in arrays of less than {n} elements" in fault.text for fault in short.faults), short
    long = check_cast(lambda x: wrong(x) if x.size >= n else brain(x), "fp16", "bf16")
    assert any(f"in arrays of {n} elements or more" in fault.text for fault in long.faults), long


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32, 64])
def test_in_which_places_it_is_wrong(width: int) -> None:
    """What vectorised loops get wrong: what is left over, the groups themselves, arrays that are not aligned."""

    def wrong_where(place: Callable[[Array], Any]) -> str:
        return str(check_cast(lambda x: np.where(place(x), -brain(x), brain(x)), "fp16", "bf16"))

    def left_over(x: Array) -> Any:
        return np.arange(x.size) >= x.size - x.size % width

    assert f"in the last n mod {width} elements of an array of n" in wrong_where(left_over)
    assert f"in whole groups of {width} elements, not in what is left over" in wrong_where(lambda x: ~left_over(x))
    if width > 4:  # those of fp16 begin at even addresses
        text = f"in arrays that do not begin at a multiple of {width} bytes"
        assert text in wrong_where(lambda x: np.full(x.size, x.ctypes.data % width != 0))


def test_the_report_can_be_read() -> None:
    report = check_cast(lambda x: x.astype(ml_dtypes.bfloat16), "float64", "bf16")
    lines = str(report).splitlines()
    assert lines[0].startswith("cast float64 -> bf16, ties_to_even: 1 fault; ")
    assert lines[1].startswith("1. rounds twice, via fp32: to fp32 first, then to bf16 [")
    assert "0x4000100000000001 = 4521191813414913*2^-51: expected 0x4001 = 129*2^-6, got 0x4000 = 2" in lines[2]
    data = json.loads(json.dumps(report.to_dict()))
    assert data["wrong"] == report.wrong
    assert data["faults"][0]["examples"][0]["pattern"] == "0x4000100000000001"
    assert report == check_cast(lambda x: x.astype(ml_dtypes.bfloat16), "float64", "bf16")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0"), (-0.0, "-0.0"), (6.0, "6"), (999.0, "999"), (1024.0, "2^10"), (1001.0, "1001"), (-0.75, "-3*2^-2"),
     (5e-324, "2^-1074"), (float("inf"), "inf"), (float("nan"), "nan")],
)  # fmt: skip
def test_exact_text(value: float, text: str) -> None:
    assert exact_text(value) == text


@pytest.mark.parametrize("exhaustive", [False, True])
def test_progress_is_told(exhaustive: bool) -> None:
    seen: list[tuple[int, int]] = []
    check_cast(brain, "fp16", "bf16", exhaustive=exhaustive, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1


def test_progress_counts_all_patterns_from_the_beginning() -> None:
    def stop(_done: int, total: int) -> None:
        raise KeyboardInterrupt(total)

    with pytest.raises(KeyboardInterrupt) as stopped:
        check_cast(brain, "fp32", "bf16", exhaustive=True, progress=stop)
    assert 2**32 < stopped.value.args[0] < 2**32 + 2**23


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("fp33", "bf16"), {}, "unknown format 'fp33'"),
        (("fp32", "float64"), {}, "unknown format 'float64'"),
        (("fp32", "bf16"), {"mode": "nearest"}, "unknown rounding mode 'nearest'"),
        (("fp32", "bf16"), {"nan": "loud"}, "nan must be one of any, quiet, payload, ignore, got 'loud'"),
        (("float64", "bf16"), {"exhaustive": True}, "float64 has 2^64"),
        (("fp32", "bf16"), {"time_limit": 0}, "time_limit must be a number of seconds above 0"),
    ],
)
def test_bad_arguments(arguments: tuple[str, str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("^", r"\^")) as raised:
        check_cast(brain, *arguments, **options)
    assert "\n" not in str(raised.value)


# ---- all 2^32 ----


SWEEP = """
import json, resource, time
import numpy as np
from precision_lab.testing.casts import check_cast
from tests.testing.functions import brain

x = np.arange(1 << 24, dtype=np.uint32).view(np.float32)
start = time.process_time()
for _ in range(16):
    brain(x)
alone = (time.process_time() - start) * 16
start = time.process_time()
report = check_cast(brain, "fp32", "bf16", exhaustive=True)
here, cast = time.process_time() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
with open("/proc/self/status") as status:  # ru_maxrss is also that of the process that started this one
    here_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
kib = here_kib + cast.ru_maxrss
print(json.dumps([report.to_dict(), alone, here, cast.ru_utime + cast.ru_stime, kib]))
"""


@pytest.mark.exhaustive
def test_all_patterns_of_fp32() -> None:
    """As long as eight casts and ten seconds, in less than 500 MiB; in processor time, for others may use it too."""
    done = subprocess.run([sys.executable, "-c", SWEEP], capture_output=True, text=True, check=True)
    report, alone, here, there, kib = json.loads(done.stdout)
    assert (report["ok"], report["exhaustive"]) == (True, True)
    assert report["checked"] > 2**32
    assert max(here, there) <= 8 * alone + 10  # the two work at the same time
    assert kib < 500 * 1024


@pytest.mark.exhaustive
def test_one_wrong_pattern_of_all_is_found() -> None:
    def cast(x: Array) -> Array:
        y = brain(x).view(np.uint16)
        y[x.view(np.uint32) == 0x3F9D5A21] += 1
        return y

    report = check_cast(cast, "fp32", "bf16", exhaustive=True)
    assert report.wrong == 1
    assert report.faults[0].examples[0].pattern == "0x3f9d5a21"


# ---- what no rule explains ----


def scattered(numbers: Array) -> Array:
    """One in eight, by no rule that is known."""
    mixed: Array = (numbers.astype(np.uint64) * np.uint64(2654435761) >> np.uint64(13)) & np.uint64(7)
    chosen: Array = mixed == 0
    return chosen


def off_for_some_inputs(x: Array) -> Array:
    y: Array = brain(x).view(np.uint16)
    return np.where(scattered(x.view(np.uint32)) & np.isfinite(x), y ^ np.uint16(1), y)


def off_in_some_places(x: Array) -> Array:
    y = brain(x).view(np.uint16)
    return np.where(scattered(np.arange(x.size) + 1000 * x.size) & np.isfinite(x), y ^ np.uint16(1), y)


def test_wrong_for_some_inputs_wherever_they_stand() -> None:
    """Each of them is wrong everywhere: that is no matter of places."""
    report = check_cast(off_for_some_inputs, "fp32", "bf16")
    names = {fault.name for fault in report.faults}
    assert "wrong neighbour" in names, str(report)
    assert "depends on position or length" not in names, str(report)


def test_wrong_in_some_places_whatever_stands_there() -> None:
    """The same input is right in one place and wrong in another: those that are so are named."""
    report = check_cast(off_in_some_places, "fp32", "bf16")
    (fault,) = (fault for fault in report.faults if fault.name == "depends on position or length")
    assert fault.text.startswith("the same input is right in one place and wrong in another")
    for example in fault.examples:
        pattern = np.array([int(example.pattern, 16)], np.uint32)
        right = np.resize(brain(pattern.view(np.float32)).view(np.uint16), 70)
        got = [off_in_some_places(np.resize(pattern.view(np.float32), size)) for size in range(1, 71)]
        assert {bool(codes[i] == right[0]) for codes in got for i in range(codes.size)} == {True, False}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lost", [0, 1, 3, 6])
def test_the_payload_of_a_nan_among_values_is_its_leading_bits(dtype: type[np.floating[Any]], lost: int) -> None:
    """A cast to bf16 that returns values: sign and payload of seven bits are kept, or one of these is lost."""

    def cast(x: Array) -> Array:
        patterns = x.view(np.uint32)
        nan = np.isnan(x)
        payload = (patterns & np.uint32(0xFFFF0000)) | np.uint32(0x400000)
        payload &= ~np.uint32(1 << (15 + lost)) if lost else ~np.uint32(0)
        kept = np.where(nan, payload, brain(x).astype(np.float32).view(np.uint32))
        wide: Array = kept.view(np.float32)
        if dtype is np.float32:
            return wide
        bits = (kept.astype(np.uint64) & np.uint64(0x7FFFFF)) << np.uint64(29)
        sign = (kept >> np.uint32(31)).astype(np.uint64) << np.uint64(63)
        with np.errstate(invalid="ignore"):
            return np.where(nan, (sign | np.uint64(0x7FF << 52) | bits).view(np.float64), wide.astype(np.float64))

    report = check_cast(cast, "fp32", "bf16", nan="payload")
    assert [fault.name for fault in report.faults] == (["NaN payload lost"] if lost else []), str(report)
