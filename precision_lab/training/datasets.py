"""Small data sets: real ones, shipped with the package, and one that is drawn.

- `digits`, the handwritten digits of Alpaydin and Kaynak: small enough to train on in seconds, real enough that
  gradients spread over many binades as the training converges;
- `python_topics`, help texts of Python 3.11.7, or any other text (`text_dataset`), in windows of characters;
- `linear_regression`, whose answer is known;
- `fine_tuning_task`, to change `query_matrix`, a matrix of a language model, by a few percent.
"""

import functools
import importlib.resources
import io
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.numerics import fixed
from precision_lab.numerics.codes import decode

_DIGITS_SOURCE = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
    "doi:10.24432/C50P49 (CC BY 4.0); the 1,797 images of the test part, as scikit-learn distributes them"
)
_TOPICS_SOURCE = (
    "Python Software Foundation, help texts of Python 3.11.7 (pydoc_data.topics), the topics from assert to "
    "specialattrs (PSF License Version 2)"
)
_QUERY_SOURCE = (
    "Sentence Transformers (Reimers and Gurevych 2019), all-MiniLM-L6-v2, query matrix of the first layer, rounded to "
    "bf16 (Apache License 2.0); fine-tuned from MiniLM (Wang et al. 2020, MIT License)"
)

CHANGE = 0.03
"""Frobenius norm of what fine-tuning is to change, as a share of that of the matrix."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples and what is to be learned of them; the arrays are read-only.

    Attributes
    ----------
    inputs : float32 array, shape (n, features), or int64 array, shape (n, context)
        One example per row: features, or characters as numbers.
    labels : int64 array, shape (n,), float32 array, shape (n,) or (n, outputs), or int64 array, shape (n, context)
        The class of each example, counted from 0; a value or several; or of each character the next one.
    name : str
        Short name, for tables and titles.
    source : str
        Citation of the data.
    vocabulary : str
        The characters that the numbers stand for, in their order; empty if inputs are features.

    Raises
    ------
    ValueError
        If the shapes or dtypes are others than these.

    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    name: str
    source: str
    vocabulary: str = ""

    def __post_init__(self) -> None:
        if self.inputs.ndim != 2 or self.inputs.dtype not in (np.float32, np.int64):
            raise ValueError(
                f"inputs must be a float32 matrix or an int64 matrix, got {self.inputs.dtype} of shape "
                f"{self.inputs.shape}"
            )
        windows = self.inputs.dtype == np.int64
        shape = self.inputs.shape if windows else self.inputs.shape[:1]
        several = self.labels.ndim == 2 and self.labels.dtype == np.float32 and not windows
        if self.labels.shape[: 1 if several else None] != shape or self.labels.dtype not in (
            (np.int64,) if windows else (np.int64, np.float32)
        ):
            raise ValueError(
                f"labels must be {'int64' if windows else 'int64 or float32'} of shape {shape}, one per "
                f"{'character' if windows else 'row of inputs'}, got {self.labels.dtype} of shape {self.labels.shape}"
            )
        # Views, so that an array of the caller's stays as writable as it was.
        for name in ("inputs", "labels"):
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)


@functools.cache
def digits() -> Dataset:
    """The handwritten digits: 1,797 images of 8 x 8 pixels in ten classes.

    Each pixel of the original counts the dark pixels in a 4 x 4 block of a scanned bitmap, 0 to 16; here it is
    divided by 16, which is exact, so every input is a multiple of 1/16 in [0, 1].

    Returns
    -------
    Dataset
        `inputs` float32 of shape (1797, 64), `labels` int64 of shape (1797,); the same object on every call.

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
    doi:10.24432/C50P49, CC BY 4.0.

    """
    with np.load(io.BytesIO(_data("digits.npz")), allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    inputs = images.reshape(len(images), -1).astype(np.float32) / np.float32(16)
    return Dataset(inputs, labels.astype(np.int64), "digits", _DIGITS_SOURCE)


def linear_regression(features: int = 10, count: int = 1000, *, noise: float = 0.0, seed: int = 0) -> Dataset:
    """Examples of a linear function: standard normal inputs, and weights that are uniform in [0, 100).

    The weights are large beside the updates near the solution, which is where a rounded update is lost.

    Parameters
    ----------
    features, count : int
        Shape of the inputs.
    noise : float
        Standard deviation of the normal noise on the targets. Without any a loss of 0 can be reached, but for the
        rounding of the targets.
    seed : int
        Seed of `numpy.random.default_rng`, which draws the weights, the inputs and the noise, in this order.

    Returns
    -------
    Dataset
        `inputs` float32 of shape (count, features), `labels` float32 of shape (count,): the inputs as stored times
        the weights, plus noise, in float64, rounded once.

    Raises
    ------
    ValueError
        If a number is below 1 or the noise is negative or not finite.

    """
    if features < 1 or count < 1:
        raise ValueError(f"features and count must be at least 1, got {features!r} and {count!r}")
    if not 0.0 <= noise < math.inf:
        raise ValueError(f"noise must be at least 0 and finite, got {noise!r}")
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.0, 100.0, features)
    inputs = rng.standard_normal((count, features)).astype(np.float32)
    labels = fixed.matmul(inputs.astype(np.float64), weights[:, np.newaxis])[:, 0] + noise * rng.standard_normal(count)
    return Dataset(inputs, labels.astype(np.float32), "linear regression", f"drawn from the seed {seed}")


def text_dataset(text: str, context: int = 32, *, name: str = "text", source: str = "a text of the user") -> Dataset:
    """Cut a text into windows of characters, to learn the next character of each.

    Parameters
    ----------
    text : str
        Longer than one window.
    context : int
        Characters per window. The windows follow one another without overlap; what is left at the end is dropped.
    name, source : str
        As in `Dataset`.

    Returns
    -------
    Dataset
        `inputs` and `labels` int64 of shape (windows, context), the labels one character further; `vocabulary` the
        characters of the text in the order of their code points.

    Raises
    ------
    ValueError
        If `context` is below 1 or the text has not more characters than that.

    """
    if context < 1 or len(text) <= context:
        raise ValueError(
            f"context must be at least 1 and less than the length of the text ({len(text)} characters), got {context!r}"
        )
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    present, codes = np.unique(points, return_inverse=True)
    windows = (len(codes) - 1) // context
    inputs, labels = (codes[start : start + windows * context].reshape(windows, context) for start in (0, 1))
    vocabulary = "".join(map(chr, present.tolist()))
    return Dataset(inputs.astype(np.int64), labels.astype(np.int64), name, source, vocabulary)


@functools.cache
def query_matrix() -> npt.NDArray[np.float32]:
    """The query matrix of the first layer of all-MiniLM-L6-v2, a small language model.

    Returns
    -------
    float32 array, shape (384, 384), read-only
        A row for each input. Every value is one of bf16: that of the model, rounded once. Always the same object.

    References
    ----------
    N. Reimers and I. Gurevych, "Sentence-BERT", EMNLP 2019, arXiv 1908.10084; W. Wang et al., "MiniLM", NeurIPS 2020,
    arXiv 2002.10957.

    """
    codes = np.load(io.BytesIO(_data("minilm_query.npy")), allow_pickle=False)
    matrix = np.ascontiguousarray(decode(codes, "bf16", np.float32).T)
    matrix.flags.writeable = False
    return matrix


def fine_tuning_target(start: npt.NDArray[np.float32], rank: int = 8, *, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return a matrix, and a low-rank change of `CHANGE` times its Frobenius norm added to it.

    Parameters
    ----------
    start : float32 array, shape (inputs, outputs)
        The matrix.
    rank : int
        Of the change: the product of two matrices of standard normal numbers, scaled.
    seed : int
        They are drawn by `numpy.random.default_rng` for the pair (seed, 2).

    Returns
    -------
    float64 array, shape (inputs, outputs)

    Raises
    ------
    ValueError
        If the rank is below 1.

    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank!r}")
    rng = np.random.default_rng((seed, 2))
    inputs, outputs = start.shape
    change = fixed.matmul(rng.standard_normal((inputs, rank)), rng.standard_normal((rank, outputs)))
    wide = start.astype(np.float64)
    result: npt.NDArray[np.float64] = wide + change * (CHANGE * fixed.norm(wide) / fixed.norm(change))
    return result


def fine_tuning_task(
    start: npt.NDArray[np.float32], blocks: tuple[int, int] = (4, 1), *, rank: int = 8, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """What `fine_tuning_target` makes of inputs: to be learned from `start`.

    The inputs are 1 and -1: blocks of as many rows as there are inputs, which are orthogonal to one another. So X.T @ X
    is exactly n times the identity for the n rows X of a part, and the mean of ||x @ W - label||^2 over a part is, but
    for the rounding of the labels, the squared distance ||W - target||^2 itself. A row has mean square 1, as one that
    comes out of a layer norm.

    Parameters
    ----------
    start : float32 array, shape (inputs, outputs)
        The matrix; its inputs are 12, or 1, times a power of two.
    blocks : tuple of int
        How many the training part and the test part have.
    rank, seed : int
        As in `fine_tuning_target`. The signs of each block are drawn by `numpy.random.default_rng` for (seed, 3).

    Returns
    -------
    train, test : Dataset
        `inputs` float32 of shape (n, inputs), `labels` float32 of shape (n, outputs), rounded once.

    Raises
    ------
    ValueError
        If there are other inputs, a part without a block, or a rank below 1.

    """
    if min(blocks) < 1:
        raise ValueError(f"each part must have at least 1 block, got {blocks!r}")
    rows = orthogonal_signs(len(start))
    target = fine_tuning_target(start, rank, seed=seed)
    signs = 2.0 * np.random.default_rng((seed, 3)).integers(0, 2, (sum(blocks), 1, len(start))) - 1.0
    inputs = rows * signs
    labels = np.stack([fixed.matmul(block, target) for block in inputs])
    parts = zip(("train", "test"), (slice(blocks[0]), slice(blocks[0], None)), strict=True)
    train, test = (
        Dataset(
            inputs[part].reshape(-1, len(start)).astype(np.float32),
            labels[part].reshape(-1, start.shape[1]).astype(np.float32),
            f"minilm/{name}",
            f"{_QUERY_SOURCE}; inputs and change drawn from the seed {seed}",
        )
        for name, part in parts
    )
    return train, test


def orthogonal_signs(order: int) -> npt.NDArray[np.float64]:
    """Return a Hadamard matrix: 1 and -1, its rows orthogonal to one another, and its columns.

    Parameters
    ----------
    order : int
        A power of two, or 12 times one. That of 12 is Paley's, from the squares modulo 11; doubled as by Sylvester.

    Returns
    -------
    float64 array, shape (order, order)

    Raises
    ------
    ValueError
        Of another order.

    References
    ----------
    R. E. A. C. Paley, "On Orthogonal Matrices", Journal of Mathematics and Physics 12 (1933), 311-320.

    """
    least = 12 if order >= 12 and order % 12 == 0 else 1
    doublings = (order // least).bit_length() - 1
    if order < 1 or least << doublings != order:
        raise ValueError(f"a matrix of orthogonal signs has an order of 2^k or 12 * 2^k, got {order!r}")
    result = np.ones((1, 1))
    if least == 12:
        squares = np.isin(np.arange(11), [k * k % 11 for k in range(1, 11)])
        square = np.where(squares, 1.0, -1.0)
        result = np.ones((12, 12))
        result[1:, 0] = -1
        result[1:, 1:] = square[np.subtract.outer(np.arange(11), np.arange(11)) % 11]
        # 0 on the diagonal of Paley's matrix, and the identity added
        np.fill_diagonal(result, 1)
    for _ in range(doublings):
        result = np.block([[result, result], [result, -result]])
    return result


@functools.cache
def python_topics(context: int = 32) -> Dataset:
    """Help texts on Python's language reference: 267,935 characters, 102 different ones.

    They are those of Python 3.11.7, the topics from "assert" to "specialattrs", and come with this package: every
    Python has other help texts, and everybody shall learn from the same.

    Parameters
    ----------
    context : int
        As in `text_dataset`.

    Returns
    -------
    Dataset
        As from `text_dataset`; the same object on every call.

    """
    return text_dataset(_data("topics.txt").decode("utf-8"), context, name="topics", source=_TOPICS_SOURCE)


def _data(name: str) -> bytes:
    return importlib.resources.files("precision_lab.training").joinpath("data", name).read_bytes()


def split(dataset: Dataset, *, test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a data set at random into a training part and a test part.

    The examples are shuffled once by `numpy.random.default_rng(seed)`, so the same seed gives the same parts. The
    split is by example: in the digits, the same writers appear in both parts.

    Parameters
    ----------
    dataset : Dataset
        At least two examples.
    test_fraction : float
        Share of the examples in the test part, between 0 and 1; the count is rounded to the nearest whole number.
    seed : int
        Seed of the shuffle.

    Returns
    -------
    train, test : Dataset
        Disjoint, together the whole data set; named after it with "/train" and "/test".

    Raises
    ------
    ValueError
        If `test_fraction` leaves one of the parts empty.

    """
    count = len(dataset.labels)
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction must lie between 0 and 1, both excluded, got {test_fraction!r}")
    test_count = round(count * test_fraction)
    if not 0 < test_count < count:
        raise ValueError(
            f"test_fraction={test_fraction!r} leaves {test_count} of {count} examples for the test part; "
            "both parts need at least one"
        )
    order = np.random.default_rng(seed).permutation(count)
    return _part(dataset, order[test_count:], "train"), _part(dataset, order[:test_count], "test")


def _part(dataset: Dataset, rows: npt.NDArray[np.int64], part: str) -> Dataset:
    return replace(dataset, inputs=dataset.inputs[rows], labels=dataset.labels[rows], name=f"{dataset.name}/{part}")
