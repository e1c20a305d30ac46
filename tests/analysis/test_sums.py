"""Sums of tensors: each way against `accumulate`, files, limits, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab.analysis import sums
from precision_lab.analysis.sums import (
    SUM_METHODS,
    SummedTensor,
    SumsResult,
    norm_every_way,
    sum_every_way,
    sum_tensors,
)
from precision_lab.numerics.accumulation import accumulate
from precision_lab.numerics.rounding import round_to
from precision_lab.tensors import walk
from precision_lab.tensors.info import TensorFileError
from precision_lab.tensors.reading import list_tensors


def test_each_way_is_what_it_says() -> None:
    terms = np.random.default_rng(0).random(3000)
    found = sum_every_way(terms, "bf16", seed=5)
    assert list(found) == list(SUM_METHODS)
    expected = {
        "sequential": accumulate(terms, "bf16"),
        "stochastic": accumulate(terms, "bf16", mode="stochastic", rng=5),
        "blocked": accumulate(terms, "bf16", method="blocked", block=64),
        "kahan": accumulate(terms, "bf16", method="kahan"),
        "neumaier": accumulate(terms, "bf16", method="neumaier"),
        "pairwise": accumulate(terms, "bf16", method="pairwise"),
        "fp32 accumulator": accumulate(terms, "bf16", accumulator="fp32"),
    }
    assert {name: trace.result for name, trace in found.items()} == {n: t.result for n, t in expected.items()}
    assert len({trace.result for trace in found.values()}) > 2


def test_ones_by_hand() -> None:
    """4,096 ones in bf16: 256, twice that with Neumaier's compensation, all of them in pairs, with Kahan or in fp32."""
    found = {name: trace.result for name, trace in sum_every_way(np.ones(4096), "bf16").items()}
    del found["stochastic"]
    assert found == {
        "sequential": 256.0,
        "blocked": 4096.0,
        "kahan": 4096.0,
        "neumaier": 512.0,
        "pairwise": 4096.0,
        "fp32 accumulator": 4096.0,
    }


def test_numpy_adds_float16_in_float32_and_not_in_pairs() -> None:
    """Along the contiguous axis; from row to row it adds in float16, one after the other."""
    x = np.random.default_rng(0).uniform(0, 1, 1000).astype(np.float16)
    ways = {name: trace.result for name, trace in sum_every_way(x, "fp16").items()}
    assert float(np.sum(x)) == ways["fp32 accumulator"] == 517
    assert ways["pairwise"] == 516.5
    assert np.ones((4096, 2), np.float16).sum(0).tolist() == [2048, 2048]
    assert np.ones((2, 4096), np.float16).sum(1).tolist() == [4096, 4096]
    assert sum_every_way(np.ones(4096), "fp16")["sequential"].result == np.cumsum(np.ones(4096, np.float16))[-1] == 2048
    columns = np.random.default_rng(3).uniform(0, 1, (1000, 2)).astype(np.float16)
    assert columns.sum(0).tolist() == [accumulate(column, "fp16").result for column in columns.T]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    path = tmp_path / "model.safetensors"
    save_file(
        {
            "good": np.ones(8, np.float32),
            "stops": np.ones(1000, np.float16),
            "brain": rng.standard_normal(100).astype(ml_dtypes.bfloat16),
            "nan": np.array([1.0, np.nan], np.float32),
            "nothing": np.zeros((0, 3), np.float32),
            "steps": np.arange(4),
        },
        path,
    )
    return path


def test_tensors_come_worst_first_with_the_exact_sum(checkpoint: Path) -> None:
    result = sum_tensors(checkpoint, "bf16")
    assert [tensor.info.name for tensor in result.tensors][:2] == ["nan", "stops"]
    stops = result.tensors[1]
    assert stops.terms == 1000
    assert stops.sums["sequential"].result == 256
    assert stops.exact == Fraction(1000)
    assert stops.worst == 0.744
    assert [info.name for info in result.skipped] == ["steps"]
    nothing = next(tensor for tensor in result.tensors if tensor.info.name == "nothing")
    assert (nothing.terms, nothing.worst) == (0, 0.0)


def test_beyond_the_limit_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.ones(10, np.float32))
    (info,) = list_tensors(tmp_path / "a.npy")

    def chunks() -> Iterator[np.ndarray]:
        yield np.ones(4, np.float32)
        yield np.ones(4, np.float32)
        raise AssertionError("a third chunk was asked for")

    monkeypatch.setattr(walk, "stream_of", lambda *_, **__: [(info, chunks())])
    for limit in (5, 8):
        (tensor,) = sum_tensors(tmp_path / "a.npy", "fp32", limit=limit).tensors
        assert tensor.terms == tensor.sums["pairwise"].result == limit


def test_the_limit_takes_the_first_elements(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(1, 400_001, dtype=np.float64))  # several chunks
    for limit, expected in ((1, 1), (3, 6), (300_000, 300_000 * 300_001 // 2), (10**6, 400_000 * 400_001 // 2)):
        (tensor,) = sum_tensors(path, "fp32", limit=limit).tensors
        assert tensor.terms == min(limit, 400_000)
        assert tensor.exact == expected


def test_squares_are_exact_for_float32(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tensor,) = sum_tensors(tmp_path, "fp16", squares=True).tensors
    exact = sum(Fraction(float(v)) ** 2 for v in x)
    assert tensor.exact is not None
    assert abs(tensor.exact**2 / exact - 1) < Fraction(1, 2**198)
    assert tensor.exact_sum == pytest.approx(math.sqrt(exact), rel=1e-15)


# terms, format, norms: one after the other, and with a float32 accumulator; the exact norm
NORMS: dict[str, tuple[Any, str, float, float, float]] = {
    "the squares overflow": (np.full(64, 300.0), "fp16", math.inf, 2400, 2400),
    "the sum stands still": (np.ones(4096), "bf16", 16, 64, 64),
    "the squares are flushed": (np.full(64, 2.0**-13), "fp16", 0, 2.0**-10, 2.0**-10),
    "the sum stands still in fp8": (np.full(64, 2.0), "fp8_e4m3fn", 8, 16, 16),  # 64 + 4 is a tie, and stays
    "the root rounds": (np.full(2, 1.0), "bf16", 1.4140625, 1.4140625, math.sqrt(2)),
    "nothing": (np.zeros(0), "fp16", 0, 0, 0),
    "zeros": (np.zeros(3), "fp16", 0, 0, 0),
    "infinity": (np.array([1, math.inf]), "fp16", math.inf, math.inf, math.nan),
}


@pytest.mark.parametrize("case", NORMS)
def test_norms_by_hand(case: str) -> None:
    terms, fmt, sequential, accumulated, exact = NORMS[case]
    norms = norm_every_way(terms, fmt)
    assert list(norms) == list(SUM_METHODS)
    assert norms["sequential"].result == sequential
    assert norms["fp32 accumulator"].result == accumulated
    assert norms["pairwise"].exact_sum == pytest.approx(exact, rel=1e-15, nan_ok=True)
    if exact in (64, 2400):
        assert norms["fp32 accumulator"].relative_error == 0
        assert norms["sequential"].relative_error == (math.inf if math.isinf(sequential) else 0.75)


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp8_e5m2"])
def test_a_norm_is_the_root_of_the_rounded_sum_rounded_to_its_format(fmt: str) -> None:
    x = np.random.default_rng(4).standard_normal(500)
    norms = norm_every_way(x, fmt, seed=9)
    for name, way in SUM_METHODS.items():
        total = accumulate(
            x * x, way.accumulator or fmt, method=way.method, mode=way.mode, rng=9 if "sto" in name else None
        )
        root = round_to(math.sqrt(total.result), way.accumulator or fmt)
        assert norms[name].result == float(round_to(root, fmt)), name
    single = np.float32(0)
    for square in x * x:  # NumPy adds a float64 to a float32 in float64; then it is rounded
        single = np.float32(float(single) + square)
    assert norms["fp32 accumulator"].result == float(round_to(np.sqrt(single), fmt))


def test_roots_are_exact_where_they_can_be() -> None:
    assert sums._root(Fraction(0)) == 0
    for value in (Fraction(3), Fraction(5, 2**40), Fraction(2**300 + 1), Fraction(7, 3)):
        assert sums._root(value**2) == value or value == Fraction(7, 3)
    for value in (Fraction(2), Fraction(1, 2**601), Fraction(10**300 + 1), Fraction(7, 3)):
        assert abs(sums._root(value) ** 2 / value - 1) < Fraction(1, 2**198)


def test_the_seed_is_that_of_stochastic_rounding(checkpoint: Path) -> None:
    def sums(seed: int) -> list[float]:
        return [t.sums["stochastic"].result for t in sum_tensors(checkpoint, "bf16", seed=seed).tensors[1:]]

    assert sums(3) == sums(3)
    assert len({tuple(sums(seed)) for seed in range(5)}) > 1


def test_json_has_no_nan(checkpoint: Path) -> None:
    data = json.loads(json.dumps(sum_tensors(checkpoint, "bf16").to_dict(), allow_nan=False))
    assert data["format"] == "bf16"
    assert data["tensors"][0]["sums"]["kahan"] == {"result": "nan", "relative_error": "nan"}
    assert data["tensors"][1]["sums"]["sequential"] == {"result": 256.0, "relative_error": 0.744}
    assert data["skipped"][0]["reason"] == "integer tensor"


def test_progress_counts_tensors(checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    sum_tensors([checkpoint, checkpoint], "bf16", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limit": 0}, "limit must be an integer of at least 1, got 0"),
        ({"limit": True}, "limit"),
        ({"fmt": "fp17"}, "fp17"),
        ({"paths": []}, "nothing to add up"),
        ({"dtype": "bf17"}, "bf17"),
        ({"seed": -1}, "rng must be a seed"),
    ],
)
def test_bad_arguments(checkpoint: Path, changes: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"paths": checkpoint, "fmt": "bf16"} | changes
    with pytest.raises(ValueError, match=words):
        sum_tensors(arguments.pop("paths"), arguments.pop("fmt"), **arguments)  # type: ignore[arg-type]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match="absent"):
        sum_tensors(tmp_path / "absent.npy", "bf16")


def test_defaults(checkpoint: Path) -> None:
    """Seed 0: what is not asked for can be asked for and is the same."""
    terms = np.random.default_rng(2).random(2000)
    found, asked = sum_every_way(terms, "bf16"), sum_every_way(terms, "bf16", seed=0)
    assert found["stochastic"].result == asked["stochastic"].result
    assert len({sum_every_way(terms, "bf16", seed=seed)["stochastic"].result for seed in range(4)}) > 1
    assert sum_tensors(checkpoint, "bf16").to_dict() == sum_tensors(checkpoint, "bf16", seed=0).to_dict()


def test_the_error_of_no_sum_is_zero(checkpoint: Path) -> None:
    info = sum_tensors(checkpoint, "bf16").tensors[0].info
    assert SummedTensor(info, 0, Fraction(0), (0.0,) * len(SUM_METHODS)).worst == 0


def test_results_are_compared_by_what_they_are_and_stay_as_they_are(checkpoint: Path) -> None:
    """They hold arrays, whose equality is no truth value: two are equal if they are one, and so they have a hash."""
    result, again = sum_tensors(checkpoint, "bf16"), sum_tensors(checkpoint, "bf16")
    assert isinstance(result, SumsResult)
    for one, other, field in [(result, again, "skipped"), (result.tensors[0], again.tensors[0], "terms")]:
        assert one == one
        assert one != other
        assert len({one, other}) == 2
        with pytest.raises(FrozenInstanceError):
            setattr(one, field, 0)
