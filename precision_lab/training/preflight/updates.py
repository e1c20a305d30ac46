"""What stands for the updates of a checkpoint, and which of them each way of storing a weight loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from precision_lab.analysis.frozen_weights import Gaps, WeightGaps
from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.updates import MOVED, NO_UPDATE, update_outcomes
from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.inputs import converted
from precision_lab.numerics.rounding import as_carrier, round_to
from precision_lab.tensors.info import Chunks, TensorInfo
from precision_lab.tensors.pairs import check_partners, in_names_of, in_step
from precision_lab.tensors.reading import Tensors, list_tensors
from precision_lab.tensors.roles import Role
from precision_lab.tensors.walk import CHUNK_BYTES
from precision_lab.training.preflight.report import LATER, BlockedUpdates, PreflightTensor, StoredUpdate

Stream: TypeAlias = Iterator[tuple[TensorInfo, Chunks]]


@dataclass(frozen=True)
class Sizes:
    """Updates of which only the size is known, by the names of their weights."""

    size_of: Callable[[str], float]
    words: str

    def missing(self, _name: str) -> bool:
        """Return False: a size stands for the updates of all weights."""
        return False

    def read(self, stream: Stream, ways: tuple[StoredUpdate, ...]) -> Iterator[PreflightTensor]:
        """Count the weights of each tensor that an update of this size does not move, and one `LATER` times smaller."""
        formats = tuple(dict.fromkeys(way.format for way in ways))
        by_way = _ByWay(ways)
        for info, chunks in stream:
            histogram: ExponentHistogram | None = None
            gaps: dict[FloatFormat, WeightGaps] = {}
            for chunk in chunks:
                chunk_histogram = ExponentHistogram.of(chunk)
                histogram = chunk_histogram if histogram is None else histogram + chunk_histogram
                more = {fmt: WeightGaps.of(chunk, fmt) for fmt in formats}
                gaps = {fmt: gaps[fmt] + more[fmt] for fmt in formats} if gaps else more
            gaps = gaps or {fmt: WeightGaps(fmt) for fmt in formats}
            size = self.size_of(info.name)
            classes = {fmt: tuple(some.gaps.items()) for fmt, some in gaps.items()}
            standstill, later = (
                by_way.shared(tuple([_standing_still(classes[kind.format], kind, u) for kind in by_way.kinds]))
                for u in (size, size / LATER)
            )
            yield PreflightTensor(info, histogram or ExponentHistogram.empty(), standstill, later)


@lru_cache(maxsize=1 << 12)
def _standing_still(classes: tuple[tuple[Gaps, int], ...], kind: _Kind, size: float) -> tuple[int, int, int]:
    """Return how many weights there are, how many do not move one way or the other, and how many move neither way.

    Of many small tensors most have the same few classes of gaps.
    """
    gaps = WeightGaps(kind.format, 0, dict(classes))
    if kind.two_words and size <= kind.format.flush_threshold:
        return gaps.count, gaps.count, gaps.count
    frozen = gaps.frozen(size * kind.reach)
    return frozen.count, frozen.up + frozen.down - frozen.both, frozen.both


@dataclass(frozen=True)
class RecordedUpdates:
    """Updates one by one, by the names of their weights."""

    find: Callable[[str], Chunks]
    words: str
    names: frozenset[str]

    def missing(self, name: str) -> bool:
        """Whether there are no updates of these weights."""
        return name not in self.names

    def read(self, stream: Stream, ways: tuple[StoredUpdate, ...]) -> Iterator[PreflightTensor]:
        """Count the updates of each tensor that are lost."""
        read: list[tuple[TensorInfo, ExponentHistogram]] = []
        losses = _Losses(ways)
        for info, chunks in stream:
            histogram = ExponentHistogram.empty()
            for w, u in in_step(chunks, self.find(info.name)):
                histogram += ExponentHistogram.of(w)
                losses.add(len(read), w, u)
            read.append((info, histogram))
        losses.count()
        nothing = dict.fromkeys(ways, BlockedUpdates())
        for number, (info, histogram) in enumerate(read):
            yield PreflightTensor(info, histogram, losses.by_tensor.get(number, nothing))


class _Kind(NamedTuple):
    """What of a `StoredUpdate` decides which updates it loses."""

    format: FloatFormat
    reach: float
    two_words: bool


class _ByWay:
    """What is counted once for each kind of way, as mappings by way, which tensors with the same counts share."""

    def __init__(self, ways: tuple[StoredUpdate, ...]) -> None:
        self._of_way = {way: _Kind(way.format, way.reach, way.two_words) for way in ways}
        self.kinds = tuple(dict.fromkeys(self._of_way.values()))
        self.shared = lru_cache(maxsize=1 << 12)(self._mapping)

    def _mapping(self, counts: tuple[tuple[int, int, int], ...]) -> Mapping[StoredUpdate, BlockedUpdates]:
        """Return the counts of a tensor, given those of `BlockedUpdates` for each of `kinds`."""
        of_kind = {kind: BlockedUpdates(*some) for kind, some in zip(self.kinds, counts, strict=True)}
        return {way: of_kind[kind] for way, kind in self._of_way.items()}


_TOGETHER = 1 << 12  # elements of small tensors


class _Losses:
    """Counts the updates that are lost, for certain or in the worst case; those of small tensors together."""

    def __init__(self, ways: tuple[StoredUpdate, ...]) -> None:
        self.by_way = _ByWay(ways)
        self.size = 0
        self.pieces: list[tuple[int, Any, Any]] = []
        self.by_tensor: dict[int, Mapping[StoredUpdate, BlockedUpdates]] = {}

    def add(self, tensor: int, w: Any, u: Any) -> None:
        """Take a chunk of a tensor and its updates; both may be overwritten afterwards."""
        w, u = as_carrier(w), as_carrier(u)
        self.size += w.size
        if self.size < _TOGETHER:
            self.pieces.append((tensor, w.copy(), u.copy()))
        else:
            self.pieces.append((tensor, w, u))
            self.count()

    def count(self) -> None:
        """Count what was taken: `by_tensor` has what is known of each tensor that has elements."""
        if not self.pieces:
            return
        tensors, ws, us = (list(column) for column in zip(*self.pieces, strict=True))
        self.pieces, self.size = [], 0
        starts = np.cumsum([0, *map(len, ws[:-1])])
        with np.errstate(all="ignore"):  # a signalling NaN may become a float64
            w, u = np.concatenate(ws), np.concatenate(us)
        plain = {kind.format: update_outcomes(w, u, kind.format) for kind in self.by_way.kinds}
        columns = []
        for kind in self.by_way.kinds:
            outcomes = plain[kind.format] if kind.reach == 1 else update_outcomes(w, _reached(u, kind), kind.format)
            there, moved = (
                np.add.reduceat(mask, starts, dtype=np.int64)
                for mask in (plain[kind.format] != NO_UPDATE, outcomes == MOVED)
            )
            lost = (there - moved).tolist()
            columns.append(zip(there.tolist(), lost, lost, strict=True))
        for tensor, *counts in zip(tensors, *columns, strict=True):
            blocked = self.by_way.shared(tuple(counts))
            before = self.by_tensor.get(tensor)
            self.by_tensor[tensor] = {way: before[way] + blocked[way] for way in blocked} if before else blocked


def _reached(u: Any, kind: _Kind) -> Any:
    """Return updates so much larger that ties_to_even makes of them what a kind makes of these."""
    stored = round_to(u, kind.format) if kind.two_words else u
    with np.errstate(all="ignore"):  # infinities and NaNs are counted as such
        return converted(np.asarray(stored), np.float64) * kind.reach


def given_updates(
    weights: Tensors, infos: Sequence[TensorInfo], given: Tensors, words: str, lr: Callable[[str], float] | None = None
) -> RecordedUpdates:
    """Return updates that are given, or, of gradients, their products with -lr.

    Raises
    ------
    TensorFileError
        They do not belong to the weights one by one.

    """
    given = in_names_of(weights, given)
    partners = [info for info in list_tensors(given) if info.role is Role.PARAMETER]
    notes = sorted({info.note for info in partners if info.note})
    check_partners(weights, given, infos, partners)
    find = given.finder(CHUNK_BYTES)

    def scaled(name: str) -> Iterator[Any]:
        assert lr is not None
        for g in find(name):
            with np.errstate(all="ignore"):  # infinities and NaNs are counted as such
                update = converted(g, np.float64) * -lr(name)
            yield update

    words = f"{words} ({'; '.join(notes)})" if notes else words
    return RecordedUpdates(find if lr is None else scaled, words, frozenset(info.name for info in infos))
