"""Every tensor of floats of some places, once: how all that looks at whole checkpoints goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from precision_lab.numerics.formats import FormatLike
from precision_lab.tensors.info import Chunks, TensorInfo, TensorSource, raw_dtype
from precision_lab.tensors.reading import list_tensors, open_tensors, read_tensors

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

    Attributes
    ----------
    places : list
        The places; one that is alone is read and checked once.
    tensors, elements : int
        How many there are to go through.
    skipped : list of TensorInfo
        The tensors that were passed on the way and are none of floats.

    Raises
    ------
    TensorFileError
        A file cannot be read: all headers are checked before the first element is read.
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
    ) -> None:
        self._dtype = raw_dtype(dtype)
        self.places = list(places)
        if len(self.places) == 1:  # of several the headers are read twice, so that not all of them are kept
            self.places = [open_tensors(self.places[0], dtype=self._dtype)]
        self._chunk_bytes = CHUNK_BYTES if chunk_bytes is None else chunk_bytes
        self._progress, self._done = progress, 0
        infos = (info for place in self.places for info in list_tensors(place, dtype=self._dtype) if not info.skipped)
        self.tensors = self.elements = 0
        for info in infos:
            self.tensors += 1
            self.elements += info.count
        self.skipped: list[TensorInfo] = []

    def __iter__(self) -> Iterator[tuple[TensorInfo, Chunks]]:
        """Begin with the first tensor of the first place."""
        self._done, self.skipped = 0, []
        for place in self.places:
            for info, chunks in read_tensors(place, dtype=self._dtype, chunk_bytes=self._chunk_bytes):
                if info.skipped:
                    self.skipped.append(info)
                    continue
                end = self._done + info.count
                yield info, self._each(chunks)
                if self._done < end:
                    self._go_on(end)

    def _each(self, chunks: Chunks) -> Chunks:
        for chunk in chunks:
            yield chunk
            self._go_on(self._done + chunk.size)

    def _go_on(self, done: int) -> None:
        self._done = done
        if self._progress is not None:
            self._progress(done, self.elements)
