"""Small real data sets, shipped with the package and read from it.

The one data set so far is the handwritten digits of Alpaydin and Kaynak: small enough to train on in seconds, real
enough that gradients spread over many binades as the training converges.
"""

import functools
import importlib.resources
import io
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

_DIGITS_SOURCE = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
    "doi:10.24432/C50P49 (CC BY 4.0); the 1,797 images of the test part, as scikit-learn distributes them"
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples; the arrays are read-only.

    Attributes
    ----------
    inputs : float32 array, shape (n, features)
        One example per row.
    labels : int64 array, shape (n,)
        The class of each example, counted from 0.
    name : str
        Short name, for tables and titles.
    source : str
        Citation of the data.

    Raises
    ------
    ValueError
        If the shapes or dtypes are others than these.

    """

    inputs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    name: str
    source: str

    def __post_init__(self) -> None:
        if self.inputs.ndim != 2 or self.inputs.dtype != np.float32:
            raise ValueError(f"inputs must be a float32 matrix, got {self.inputs.dtype} of shape {self.inputs.shape}")
        if self.labels.shape != self.inputs.shape[:1] or self.labels.dtype != np.int64:
            raise ValueError(
                f"labels must be int64 of shape {self.inputs.shape[:1]}, one per row of inputs, "
                f"got {self.labels.dtype} of shape {self.labels.shape}"
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
    file = importlib.resources.files("precision_lab.training").joinpath("data", "digits.npz")
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    inputs = images.reshape(len(images), -1).astype(np.float32) / np.float32(16)
    return Dataset(inputs, labels.astype(np.int64), "digits", _DIGITS_SOURCE)


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
