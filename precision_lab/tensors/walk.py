"""Every tensor of floats of some places, once: how all that looks at whole checkpoints goes through them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias, TypeVar

from precision_lab.numerics.formats import FormatLike
from precision_lab.support.threads import in_threads
from precision_lab.tensors.codes import is_code
from precision_lab.tensors.info import (
    Chunks,
    Source,
    TensorFileError,
    TensorInfo,
    TensorSource,
    how_many,
    name_of,
    raw_dtype,
)
from precision_lab.tensors.reading import list_tensors, open_tensors, pieces_of, read_pieces, stream_of
from precision_lab.tensors.roles import Role

Result = TypeVar("Result")
Progress: TypeAlias = Callable[[int, int], None]
CHUNK_BYTES = 1 << 22  # large enough to hide what is done once a chunk, small enough for the caches


class Walk:
    """Iterate over the tensors of floats, as `read_tensors` gives them.

    Parameters
    ----------
    places : iterable of path, mapping or module
        Each as `read_tensors` takes it.
    dtype : format spec, optional
        What the raw items of ``.npy`` and ``.npz`` files are.
    progress : callable, optional
        Called with the number of elements that are done, and that of all. A chunk is done when the next one is asked
        for, and what is left of a tensor when the next tensor is.
    chunk_bytes : int, optional
        As for `read_tensors`; default `CHUNK_BYTES`.
    parameters : bool
        Whether only parameters are asked for: buffers, scales and what an optimizer keeps are passed as skipped.

    Attributes
    ----------
    places : list
        The places; one that is alone is read and checked once.
    tensors, elements : int
        How many there are to go through.
    skipped : list of TensorInfo
        The tensors that were passed on the way: none of floats, codes, or no parameters.

    Raises
    ------
    TensorFileError
        A file cannot be read: all headers are checked before the first element is read. There are tensors, but codes
        only; or parameters are asked for, and what there is of floats is something else.
    ValueError
        Unknown format.

    """

    def __init__(
        self,
        places: Iterable[TensorSource],
        *,
        dtype: FormatLike | None = None,
        progress: Progress | None = None,
        chunk_bytes: int | None = None,
        parameters: bool = False,
    ) -> None:
        self._dtype = raw_dtype(dtype)
        self.places = list(places)
        if len(self.places) == 1:  # of several the headers are read twice, so that not all of them are kept
            self.places = [open_tensors(self.places[0], dtype=self._dtype)]
        self._chunk_bytes = CHUNK_BYTES if chunk_bytes is None else chunk_bytes
        self._progress, self._done, self._told = progress, 0, 0
        self._lock, self._caller = threading.Lock(), 0
        self._parameters = parameters
        self.tensors = self.elements = 0
        values = False  # whether there are any but scales
        left_out: Counter[str] = Counter()
        for place in self.places:
            for given in list_tensors(place, dtype=self._dtype):
                info = given.left_out() if parameters and given.role is not Role.PARAMETER else given
                if info.skipped is None:
                    self.tensors += 1
                    self.elements += info.count
                    values = values or info.role is not Role.SCALE
                elif given.skipped is None or is_code(info.skipped):
                    left_out[info.skipped] += 1
        if left_out and not values:
            reason, number = max(left_out.items(), key=lambda item: (is_code(item[0]), item[1]))
            others = " and others" if len(self.places) > 1 else ""
            raise TensorFileError(f"{name_of(self.places[0])}{others}: no weights: {how_many(number)}: {reason}")
        self.skipped: list[TensorInfo] = []

    def __iter__(self) -> Iterator[tuple[TensorInfo, Chunks]]:
        """Begin with the first tensor of the first place."""
        for source, chunks in self._sources():
            end = self._done + source.info.count
            yield source.info, self._each(chunks)
            self._done = end
            self._tell()

    def map(self, work: Callable[[Chunks], Result]) -> Iterator[tuple[TensorInfo, list[Result]]]:
        """Let `work` take the chunks of each tensor, and yield what it returned.

        Threads share the chunks of a large tensor, in any order: `work` is called and returns in each of them.
        """
        for source, chunks in self._sources():
            pieces = pieces_of(source)
            if len(pieces) > 1:
                results = in_threads(partial(self._share, work, source), pieces)
                self._tell()
            else:
                results = [work(self._each(chunks))]
            yield source.info, results

    def _share(self, work: Callable[[Chunks], Result], source: Source, pieces: Iterator[int]) -> Result:
        return work(self._each(read_pieces(source, pieces)))

    def _sources(self) -> Iterator[tuple[Source, Chunks]]:
        self._done = self._told = 0
        self._caller, self.skipped = threading.get_ident(), []
        for place in self.places:
            sources = open_tensors(place, dtype=self._dtype).sources
            for source, (_, chunks) in zip(sources, stream_of(sources, self._chunk_bytes), strict=True):
                info = source.info
                if self._parameters and info.role is not Role.PARAMETER:
                    info = info.left_out()
                if info.skipped:
                    self.skipped.append(info)
                else:
                    yield source, chunks

    def _each(self, chunks: Chunks) -> Chunks:
        for chunk in chunks:
            yield chunk
            with self._lock:
                self._done += chunk.size
            if threading.get_ident() == self._caller:
                self._tell()

    def _tell(self) -> None:
        if self._progress is not None and self._told < self._done:
            self._told = self._done
            self._progress(self._told, self.elements)
