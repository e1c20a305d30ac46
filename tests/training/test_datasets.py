import hashlib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from precision_lab.numerics.rounding import is_representable
from precision_lab.training.datasets import (
    CHANGE,
    Dataset,
    digits,
    fine_tuning_target,
    fine_tuning_task,
    linear_regression,
    orthogonal_signs,
    python_topics,
    query_matrix,
    split,
    text_dataset,
)

REPOSITORY = Path(__file__).parents[2]
DATA = resources.files("precision_lab.training").joinpath("data")


def small_dataset(count: int) -> Dataset:
    inputs = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return Dataset(inputs, np.arange(count, dtype=np.int64), "small", "made here")


def test_digits_are_those_of_scikit_learn() -> None:
    theirs = load_digits()
    ours = digits()
    np.testing.assert_array_equal(ours.inputs * 16, theirs.data)
    np.testing.assert_array_equal(ours.labels, theirs.target)


def test_digits_have_the_promised_shapes_dtypes_and_range() -> None:
    ours = digits()
    assert ours.inputs.shape == (1797, 64)
    assert ours.inputs.dtype == np.float32
    assert ours.labels.shape == (1797,)
    assert ours.labels.dtype == np.int64
    assert (ours.inputs.min(), ours.inputs.max()) == (0, 1)
    assert set(ours.labels.tolist()) == set(range(10))


def test_the_file_is_small_and_carries_its_licence() -> None:
    assert len(DATA.joinpath("digits.npz").read_bytes()) < 60_000
    licence = DATA.joinpath("LICENSE-digits.txt").read_text(encoding="utf-8")
    for words in ("E. Alpaydin and C. Kaynak", "1998", "10.24432/C50P49", "CC BY 4.0", "1,797"):
        assert words in licence
    for words in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0"):
        assert words in digits().source


@pytest.mark.parametrize("name", ["inputs", "labels"])
def test_the_arrays_are_read_only(name: str) -> None:
    train, test = split(digits())
    for dataset in (digits(), train, test):
        with pytest.raises(ValueError, match="read-only"):
            getattr(dataset, name)[0] = 0


def test_a_dataset_leaves_the_array_it_was_made_from_writeable() -> None:
    inputs = np.zeros((2, 3), np.float32)
    Dataset(inputs, np.zeros(2, np.int64), "mine", "made here")
    inputs[0] = 1


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2, np.int64), "inputs must be a float32 matrix"),
        (np.zeros(2, np.float32), np.zeros(2, np.int64), "inputs must be a float32 matrix"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64), "labels must be int64 or float32 of shape"),
        (
            np.zeros((2, 3), np.int64),
            np.zeros(2, np.int64),
            r"labels must be int64 of shape \(2, 3\), one per character",
        ),
        (np.zeros((2, 3), np.int64), np.zeros((2, 3), np.float32), "labels must be int64 of shape"),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.int32), "labels must be int64 or float32 of shape"),
        (
            np.zeros((2, 3), np.float32),
            np.zeros((3, 2), np.float32),
            r"labels must be int64 or float32 of shape \(2,\)",
        ),
        (np.zeros((2, 3), np.float32), np.zeros((2, 2), np.int64), "labels must be int64 or float32 of shape"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 2, 2), np.float32), "labels must be int64 or float32 of shape"),
    ],
)
def test_a_dataset_refuses_other_shapes_and_dtypes(inputs: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset(inputs, labels, "wrong", "made here")


@given(count=st.integers(2, 200), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_the_parts_are_disjoint_whole_and_the_same_every_time(count: int, fraction: float, seed: int) -> None:
    dataset = small_dataset(count)
    if not 0 < round(count * fraction) < count:
        with pytest.raises(ValueError, match="both parts need at least one"):
            split(dataset, test_fraction=fraction, seed=seed)
        return
    train, test = split(dataset, test_fraction=fraction, seed=seed)
    assert len(test.labels) == round(count * fraction)
    assert sorted([*train.labels, *test.labels]) == list(range(count))
    for part in (train, test):
        # The inputs of example k are (2k, 2k + 1).
        np.testing.assert_array_equal(part.inputs, 2 * part.labels[:, np.newaxis] + [0, 1])
    again, _ = split(dataset, test_fraction=fraction, seed=seed)
    np.testing.assert_array_equal(again.labels, train.labels)


def test_another_seed_splits_otherwise_and_the_parts_keep_the_source() -> None:
    train, test = split(digits(), seed=0)
    other, _ = split(digits(), seed=1)
    assert not np.array_equal(train.labels, other.labels)
    assert (len(train.labels), len(test.labels)) == (1438, 359)
    assert (train.name, test.name) == ("digits/train", "digits/test")
    assert train.source == test.source == digits().source


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_a_fraction_outside_of_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="test_fraction must lie between 0 and 1"):
        split(digits(), test_fraction=fraction)


# ---- a linear function ----


def test_the_regression_is_that_of_its_weights() -> None:
    data = linear_regression(10, 500, seed=4)
    assert data.inputs.shape == (500, 10)
    assert data.labels.shape == (500,)
    assert data.inputs.dtype == data.labels.dtype == np.float32
    weights, residual, _, _ = np.linalg.lstsq(data.inputs.astype(np.float64), data.labels.astype(np.float64))
    np.testing.assert_allclose(weights, np.random.default_rng(4).uniform(0, 100, 10), rtol=1e-6)
    # each label is rounded to float32 once, to half a spacing of at most 2^-15 below 1024
    assert residual[0] < 500 * 2.0**-32
    assert abs(data.inputs.mean()) < 0.05
    assert data.inputs.std() == pytest.approx(1, abs=0.05)


def test_the_noise_is_added_to_the_same_examples() -> None:
    plain, noisy = (linear_regression(4, 2000, noise=noise, seed=1) for noise in (0.0, 0.5))
    np.testing.assert_array_equal(plain.inputs, noisy.inputs)
    noise = (noisy.labels - plain.labels).astype(np.float64)
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    assert not np.array_equal(noisy.labels, linear_regression(4, 2000, noise=0.5, seed=2).labels)
    np.testing.assert_array_equal(noisy.labels, linear_regression(4, 2000, noise=0.5, seed=1).labels)


@pytest.mark.parametrize("arguments", [{"features": 0}, {"count": 0}, {"noise": -1.0}, {"noise": float("nan")}])
def test_a_bad_regression_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        linear_regression(**arguments)


# ---- a matrix to be fine-tuned ----


def test_the_query_matrix_is_these_bytes_and_bf16() -> None:
    """That they are the model's: tests/test_checkpoint.py."""
    content = DATA.joinpath("minilm_query.npy").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "d1587fb5506790dafa6051f15fec29e7fce6a99873f12cb64955327c3800e481"
    matrix = query_matrix()
    assert matrix is query_matrix()
    assert matrix.shape == (384, 384)
    assert matrix.dtype == np.float32
    assert is_representable(matrix, "bf16").all()
    codes = np.frombuffer(content[-2 * 384 * 384 :], "<u2").astype(np.uint32).reshape(384, 384)
    np.testing.assert_array_equal(matrix.T, (codes << 16).view(np.float32))  # a code is the upper half of a float32
    with pytest.raises(ValueError, match="read-only"):
        matrix[0] = 0


def test_the_query_matrix_carries_its_licence() -> None:
    licence = DATA.joinpath("LICENSE-minilm_query.txt").read_text(encoding="utf-8")
    for words in (
        "sentence-transformers/all-MiniLM-L6-v2",
        "N. Reimers and I. Gurevych",
        "Apache License, Version 2.0",
        "What was changed",
        "nreimers/MiniLM-L6-H384-uncased",
        "W. Wang, F. Wei, L. Dong",
        "The MIT License (MIT)\n\nCopyright (c) Microsoft Corporation",
    ):
        assert words in licence
    source = fine_tuning_task(np.ones((2, 2), np.float32))[0].source
    for words in ("Reimers and Gurevych 2019", "all-MiniLM-L6-v2", "Apache License 2.0", "Wang et al. 2020"):
        assert words in source


@pytest.mark.parametrize("order", [1, 2, 4, 12, 24, 48, 384])
def test_rows_and_columns_of_signs_are_orthogonal(order: int) -> None:
    signs = orthogonal_signs(order)
    assert set(np.unique(signs)) <= {-1.0, 1.0}
    for product in (signs @ signs.T, signs.T @ signs):
        np.testing.assert_array_equal(product, order * np.eye(order))


@pytest.mark.parametrize("order", [-1, 0, 3, 6, 10, 20, 36, 120])
def test_signs_of_other_orders_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match=rf"an order of 2\^k or 12 \* 2\^k, got {order}"):
        orthogonal_signs(order)


@pytest.mark.parametrize(("rank", "seed"), [(1, 0), (3, 0), (3, 1)])
def test_the_change_has_its_rank_and_its_size(rank: int, seed: int) -> None:
    start = np.random.default_rng(9).normal(size=(24, 16)).astype(np.float32)
    target = fine_tuning_target(start, rank, seed=seed)
    change = target - start
    assert np.linalg.norm(change) == pytest.approx(CHANGE * np.linalg.norm(start.astype(np.float64)), rel=1e-12)
    singular = np.linalg.svd(change, compute_uv=False)
    assert singular[rank - 1] > 0.05 * singular[0]
    assert singular[rank] < 1e-12 * singular[0]
    np.testing.assert_array_equal(target, fine_tuning_target(start, rank, seed=seed))
    assert not np.array_equal(target, fine_tuning_target(start, rank, seed=seed + 1))


def test_both_parts_of_a_task_are_orthogonal_and_of_one_target() -> None:
    start = np.random.default_rng(9).normal(size=(24, 16)).astype(np.float32)
    target = fine_tuning_target(start, 3, seed=5)
    parts = fine_tuning_task(start, (3, 2), rank=3, seed=5)
    for part, blocks, name in zip(parts, (3, 2), ("minilm/train", "minilm/test"), strict=True):
        assert part.name == name
        assert part.inputs.dtype == part.labels.dtype == np.float32
        assert (part.inputs.shape, part.labels.shape) == ((24 * blocks, 24), (24 * blocks, 16))
        np.testing.assert_array_equal(part.inputs.T @ part.inputs, 24 * blocks * np.eye(24))
        np.testing.assert_allclose(part.labels, part.inputs.astype(np.float64) @ target, rtol=2**-24, atol=1e-14)
    every = np.concatenate([part.inputs for part in parts])
    assert len(np.unique(every, axis=0)) > 110  # of 120: blocks have signs of their own
    other, _ = fine_tuning_task(start, (3, 2), rank=3, seed=6)
    assert not np.array_equal(other.inputs, parts[0].inputs)


def test_a_bad_task_is_refused() -> None:
    start = np.ones((4, 3), np.float32)
    for blocks in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="each part must have at least 1 block"):
            fine_tuning_task(start, blocks)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        fine_tuning_task(start, rank=0)
    with pytest.raises(ValueError, match="an order of"):
        fine_tuning_task(np.ones((3, 4), np.float32))


# ---- text ----


@given(text=st.text(min_size=2, max_size=60), context=st.integers(1, 59))
def test_windows_spell_the_text_and_labels_what_follows(text: str, context: int) -> None:
    if len(text) <= context:
        with pytest.raises(ValueError, match=f"context must be at least 1 and less than the length.*got {context}"):
            text_dataset(text, context)
        return
    data = text_dataset(text, context)
    windows = (len(text) - 1) // context
    assert data.inputs.shape == data.labels.shape == (windows, context)
    assert list(data.vocabulary) == sorted(set(text))
    for first, codes in ((0, data.inputs), (1, data.labels)):
        spelled = "".join(data.vocabulary[code] for code in codes.reshape(-1))
        assert spelled == text[first : first + windows * context]


def test_the_context_is_at_least_one_character() -> None:
    with pytest.raises(ValueError, match="context must be at least 1"):
        text_dataset("abc", 0)


def test_the_topics_of_python_are_these_bytes_on_every_python_and_platform() -> None:
    content = DATA.joinpath("topics.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "3b4e102eb78e57057e48e9246e7c5221bc58b7769826affff9ce44fba4d11b87"
    text = content.decode("utf-8")
    data = python_topics()
    assert f"{len(text):,} characters, {len(data.vocabulary)} different ones" in str(python_topics.__doc__)
    assert data is python_topics()
    assert data.inputs.shape == data.labels.shape == ((len(text) - 1) // 32, 32)
    assert "".join(data.vocabulary[code] for code in data.inputs[:50].reshape(-1)) == text[: 50 * 32]
    assert list(data.vocabulary) == sorted(set(text))


def test_the_topics_carry_their_licence_and_are_whole() -> None:
    licence = DATA.joinpath("LICENSE-topics.txt").read_text(encoding="utf-8")
    for words in (
        "Python 3.11.7",
        "Copyright (c) 2001-2023 Python Software Foundation",
        "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
        "2021, 2022, 2023 Python Software Foundation;\nAll Rights Reserved",
        "8. By copying, installing or otherwise using Python, Licensee",
        "What was changed",
        "ZERO-CLAUSE BSD LICENSE FOR CODE IN THE PYTHON DOCUMENTATION",
    ):
        assert words in licence
    for words in ("Python 3.11.7", "Python Software Foundation", "PSF License Version 2"):
        assert words in python_topics().source
    text = DATA.joinpath("topics.txt").read_text(encoding="utf-8")
    assert text.startswith('The "assert" statement\n')
    assert text.endswith("\n")


def test_every_data_file_is_packaged_and_has_its_licence() -> None:
    """A wheel has them, too: setuptools takes what these patterns of pyproject.toml match."""
    package = REPOSITORY / "precision_lab"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["precision_lab"]
    packaged = {file for pattern in patterns for file in package.glob(pattern)}
    data = package / "training" / "data"
    names = {file.name for file in data.iterdir() if not file.name.startswith("LICENSE")}
    assert names == {"digits.npz", "topics.txt", "minilm_query.npy"}
    for name in names:
        licence = data / f"LICENSE-{Path(name).stem}.txt"
        assert {licence, licence.with_name(name)} <= packaged
        assert any(licence in REPOSITORY.glob(pattern) for pattern in project["project"]["license-files"])


def test_a_split_of_a_text_keeps_its_vocabulary() -> None:
    data = python_topics()
    train, test = split(data)
    assert train.vocabulary == test.vocabulary == data.vocabulary
    assert len(train.inputs) + len(test.inputs) == len(data.inputs)
