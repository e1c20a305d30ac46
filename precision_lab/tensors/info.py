"""What is known of a tensor before its data is read, and errors of one line that say where."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from precision_lab.numerics.formats import FORMATS, FormatLike, get_format
from precision_lab.support.reading import CHANGED, InputError, state_of
from precision_lab.support.text import shown
from precision_lab.tensors.roles import Role

Chunks: TypeAlias = Iterator[npt.NDArray[Any]]

TensorSource: TypeAlias = Any
"""A path, a mapping of names to arrays or torch tensors (a state_dict), or a module with ``named_parameters``."""

IN_MEMORY = Path("model")
"""What stands for the file of tensors that are in memory."""

Raw: TypeAlias = np.dtype[Any] | None  # what the void items of .npy and .npz are
AGAIN = "download or save it again"
_LONGEST = 200  # characters of a name that are shown
_STREAMED = {"float64"} | {known.dtype.name for known in FORMATS.values() if known.dtype is not None}
_PACKED = "packed elements of less than a byte"
_SKIPPED = {  # by the start of the dtype's name
    "float8_e8m0": "F8_E8M0 holds block scales, not values",
    "float4_e2m1fn_x2": _PACKED,
    **dict.fromkeys(("float80", "float96", "float128", "longdouble"), "extended precision (longdouble)"),
    **dict.fromkeys(("F6", "F4"), _PACKED),
    "bits": "raw bits, of no format",
    "bool": "boolean tensor",
    "int": "integer tensor",
    "uint": "integer tensor",
    "complex": "complex tensor",
}


class TensorFileError(ValueError):
    """A tensor file that cannot be read, in one line: where (file, tensor), what, and the cure."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header of a file says about one tensor.

    Attributes
    ----------
    file : Path
        The file that holds it; in a sharded model the shard.
    name : str
        Its name in the file: for ``.npz`` the member without ``.npy``, for ``.npy`` the file's stem.
    dtype : str
        The NumPy or ml_dtypes name of its elements (``float32``, ``bfloat16``); where there is none, the file's
        own word (``F4``).
    shape : tuple of int
        Its dimensions.
    skipped : str or None
        None for a tensor of floats, which can be streamed; else why it is not, in a few words.
    column_major : bool
        Whether its elements come column by column (a Fortran-ordered ``.npy``).
    role : Role
        What it is for, as far as its name and what lies beside it say.
    note : str or None
        What is to be said of it although it is read, in a few words.

    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    skipped: str | None = None
    column_major: bool = False
    role: Role = Role.PARAMETER
    note: str | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def described(self) -> dict[str, Any]:
        """Return plain JSON types: where the tensor is, what it is, and why it was skipped if it was."""
        place = {"file": str(self.file), "name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        if self.role is not Role.PARAMETER:
            place["role"] = self.role.value
        if self.note:
            place["note"] = self.note
        return place | {"reason": self.skipped} if self.skipped else place

    def left_out(self) -> TensorInfo:
        """Return it as skipped, where weights are asked for and it is something else; else itself."""
        if self.skipped or self.role is Role.PARAMETER:
            return self
        return replace(self, skipped=self.role.beside_weights)


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor and where its bytes are: `nbytes` from `offset` in the file, or in the `member` of the archive."""

    info: TensorInfo
    offset: int
    nbytes: int
    swapped: bool = False  # the bytes of an element are not in this machine's order
    member: str | None = None
    tensor: Any = field(default=None, compare=False, repr=False)  # in memory, or mapped there
    state: tuple[int, int] | None = None  # of the file when its header was read


def labels_of(infos: Iterable[TensorInfo]) -> tuple[str, ...]:
    """Return a name for each tensor to show: that of its file stands before it where there are several files.

    Names are other people's: they are escaped, and cut where they are very long, so that two may be the same.
    """
    listed = list(infos)
    several = of_several_files(listed)
    return tuple(label_of(info, several) for info in listed)


def names_of(infos: Iterable[TensorInfo]) -> tuple[str, ...]:
    """Return the names that `labels_of` shows as they are, for other programs."""
    listed = list(infos)
    several = of_several_files(listed)
    return tuple(f"{info.file.name}: {info.name}" if several else info.name for info in listed)


def of_several_files(infos: Iterable[TensorInfo]) -> bool:
    """Say whether tensors come from more than one file, so that a name alone does not say which it is."""
    return len({info.file for info in infos}) > 1


def label_of(info: TensorInfo, with_file: bool = False) -> str:
    """Return the name of a tensor to show, after that of its file if asked for."""
    name = shown(info.name, _LONGEST)
    return f"{shown(info.file.name, _LONGEST)}: {name}" if with_file else name


def lines_of(infos: Iterable[TensorInfo], said: Callable[[TensorInfo], str | None]) -> Iterator[str]:
    """Yield a line for all tensors of a file of which the same is said: the file, which or how many, and what."""
    groups: dict[tuple[Path, str], list[TensorInfo]] = {}
    for info in infos:
        if what := said(info):
            groups.setdefault((info.file, what), []).append(info)
    for (file, what), group in groups.items():
        who = f"'{label_of(group[0])}'" if len(group) == 1 else how_many(len(group))
        yield f"{shown(file.name, _LONGEST)}: {who}: {shown(what)}"


def how_many(tensors: int) -> str:
    """Return their number in words."""
    return "a tensor" if tensors == 1 else f"{tensors:,} tensors"


def name_of(place: TensorSource) -> str:
    """Return what to call a place in a message."""
    if hasattr(place, "sources"):
        return str(place)  # of `Tensors`
    return shown(place if isinstance(place, str | Path) else IN_MEMORY, 4096)


def check_state(file: Path | int, state: tuple[int, int] | None, name: Path | None = None) -> None:
    """Raise if a file, or an open one of this name, is no longer what it was when its header was read."""
    if state is not None and state_of(file) != state:
        what, _, cure = CHANGED.partition("; ")
        raise refusal(name or Path(str(file)), what, cure)


def refusal(file: Path, what: object, cure: str = AGAIN, tensor: str | None = None) -> TensorFileError:
    """Return the error that says in one line where, what, and the cure."""
    where = shown(file, 4096) + (f", tensor '{shown(tensor, 100)}'" if tensor is not None else "")
    reason = re.sub(r" object at 0x[0-9a-fA-F]+", "", str(what))  # NumPy's parser tells addresses, others each time
    return TensorFileError(f"{where}: {shown(reason)}; {cure}")


@contextmanager
def blaming(file: Path, tensor: str | None = None) -> Iterator[None]:
    """Turn all that is raised inside into a TensorFileError: zipfile and NumPy's header parser raise a dozen kinds."""
    try:
        yield
    except TensorFileError:
        raise
    except InputError as error:  # it names the file
        raise TensorFileError(str(error)) from error
    except OSError as error:
        raise refusal(file, error.strerror or error, "check the path, the permissions and the disk", tensor) from error
    except Exception as error:
        raise refusal(file, str(error) or type(error).__name__, tensor=tensor) from error


def checked_shape(value: Any) -> tuple[int, ...]:
    """Check a shape: whole numbers, and no more elements than an array can have."""
    if not isinstance(value, (list, tuple)) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"shape must be a list of whole numbers, none negative, got {value!r}")
    return _possible(tuple(value))


@lru_cache(maxsize=1 << 10)
def _possible(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the same tuple for equal shapes, of which many tensors have few."""
    if len(shape) > 64 or max(shape, default=0) >= 2**63 or math.prod(filter(None, shape)) >= 2**63:
        raise ValueError(f"shape {list(shape)!r} is beyond what an array can hold")
    return shape


def skip_reason(dtype: str) -> str | None:
    """Say why elements of this dtype are not streamed; None if they are."""
    if dtype in _STREAMED:
        return None
    return next((why for start, why in _SKIPPED.items() if dtype.startswith(start)), f"{dtype} tensor")


def raw_dtype(spec: FormatLike | None) -> Raw:
    """Return what the raw items of ``.npy`` and ``.npz`` are."""
    if spec is None:
        return None
    dtype = get_format(spec).dtype
    if dtype is None:
        raise ValueError(f"dtype {spec} is not a type that arrays are saved in; give bf16, fp16, fp8_e4m3fn ...")
    return dtype
