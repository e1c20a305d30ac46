"""Pre-flight: can these parameters be kept in 16 bits? Asked before the GPU hours, of the checkpoint itself.

Most of what 16 bits lose can be counted from the weights and the hyperparameters alone. Adam's updates are about as
large as the learning rate, whatever the gradients are, so which weights would stand still follows from the gaps around
them (`analysis.updates`). Which constants survive follows from their formats (`analysis.hyperparameters`). What it
costs in bytes follows from the optimizer (`training.memory`). `preflight` asks all of it of every named storage
configuration and says which is the cheapest that loses nothing that float32 keeps.

**The criterion.** A configuration *loses* something if any of this is so:

1. *range*: a weight overflows in a format that it is kept in, or is flushed to zero in the one that the optimizer
   updates, which in fp32 it is not. (That the copy which forward sees is rounded is not held against it, or there would
   be nothing but fp32.)
2. *updates*: a weight that fp32 would move stays where it is, up, down or both. The way in which the new weight is
   stored decides from which size |u| of the update on it moves for certain, h being half the gap to the next value:

   ===================  ======  ==================================================================================
   ties_to_even         h       R(w + u) == w below
   stochastic           h/2^15  below it no random number of 16 bits moves w; above, right on average, with noise
   kahan, collage       h/2^p   what is lost is kept in a second word, as large as h at most, and is lost there
                                when it is half a gap of *its* format; p is the format's precision (bf16: 8)
   ===================  ======  ==================================================================================

   The last line is a worst case, and one that happens: a second word that has grown to h stays there, and w with it.
   With updates in hand (a file of them, Adam's moments, gradients of SGD) the updates themselves are counted.
3. *hyperparameters*: a number of the optimizer is a ``warning`` or ``fatal`` in the format it is stored in, and worse
   than in fp32. Of the moments: beta, 1 - beta, the running average; eps, and the smallest gradients in the second. Of
   the weights: AdamW's 1 - lr*weight_decay where it is multiplied apart (`ties_to_even`), SGD's lr. Bias corrections
   are computed in double precision by every framework and do not count. `collage_plus` keeps beta2 and the second
   moment in pairs of 2p bits, which settle to 2 * 2^(-2p)/(1 - beta2) (found by trying): 10 % for 3,277 steps.
4. *gradients*, if given: some are flushed or overflow in the format they leave the backward pass in, which fp32 keeps,
   and no loss scale (if the configuration has one) prevents it.

It is *not known* whether it does where the answer is not in what was given: gradients in fp16 without gradients; matrix
products in fp8 or in a narrow accumulator. Neither is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from precision_lab.analysis.frozen_weights import WeightGaps
from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.hyperparameters import Finding, HyperparameterAudit, Severity, audit
from precision_lab.analysis.loss_scale_plan import TensorPlans, plan_loss_scale, plan_tensors
from precision_lab.analysis.loss_scalers import NoLossScale, StaticLossScale
from precision_lab.analysis.scan import ScanResult, scan
from precision_lab.analysis.updates import MOVED, NO_UPDATE, update_outcomes
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.inputs import converted, is_number
from precision_lab.numerics.rounding import as_carrier, round_to
from precision_lab.support.plain import whole
from precision_lab.support.text import shown
from precision_lab.tensors.info import Chunks, TensorFileError, TensorInfo, TensorSource, label_of, labels_of
from precision_lab.tensors.pairs import check_partners, in_step
from precision_lab.tensors.reading import Tensors, list_tensors, open_tensors
from precision_lab.tensors.torch_files import SUFFIXES
from precision_lab.tensors.walk import CHUNK_BYTES, Walk
from precision_lab.training.adam_state import STATE_NAME, adam_updates, find_adam_state
from precision_lab.training.memory import MemoryLedger, memory
from precision_lab.training.optimizers import SGD, Adam, AdamW, Optimizer, promoted
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig

_FP32 = get_format("fp32")
_Stream: TypeAlias = Iterator[tuple[TensorInfo, Chunks]]
_RANDOM_BITS = 16  # of the stochastic rounding

# the numbers of an audit by where a configuration stores them; those of the bias corrections are stored nowhere
ROLES: Mapping[str, tuple[str, ...]] = {
    "weights": ("lr", "weight_decay", "1 - lr*weight_decay"),
    "first moment": ("beta1", "1 - beta1", "beta1*m + (1 - beta1)*g", "momentum", "momentum*m + g"),
    "second moment": (
        *("beta2", "1 - beta2", "beta2*v + (1 - beta2)*g^2"),
        *("eps", "largest |g| lost in (1 - beta2)*g^2"),
    ),
}
_OF_BETA2 = ROLES["second moment"][:3]


class Outcome(StrEnum):
    """What is known about a storage configuration."""

    KEEPS = "keeps all"
    LOSES = "loses"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Way:
    """How the new weight is stored: a format and one of `storage.UPDATES`."""

    format: FloatFormat
    update: str = "ties_to_even"

    @property
    def reach(self) -> float:
        """By how much smaller an update may be than one that ties_to_even would need; a power of two."""
        if self.update == "ties_to_even":
            return 1.0
        return 2.0 ** (_RANDOM_BITS - 1 if self.update == "stochastic" else self.format.precision)

    @property
    def two_words(self) -> bool:
        """Whether what is lost is kept in a second word."""
        return self.update not in ("ties_to_even", "stochastic")

    def __str__(self) -> str:
        """Return the format, and what is done about lost updates."""
        return self.format.name if self.update == "ties_to_even" else f"{self.format} {self.update}"


@dataclass(frozen=True, slots=True)
class Standstill:
    """How many weights of a tensor do not take their updates; exact counts.

    Attributes
    ----------
    count : int
        Finite weights; or, with updates in hand, those that are not zero.
    blocked : int
        Weights that cannot go up, or cannot go down; or updates that are lost.
    frozen : int
        Weights that can go neither way; or again the updates that are lost.

    """

    count: int = 0
    blocked: int = 0
    frozen: int = 0

    @property
    def fraction(self) -> float:
        """Frozen fraction; or the share of lost updates."""
        return self.frozen / self.count if self.count else 0.0

    def __add__(self, other: object) -> Standstill:
        """Add up two tensors."""
        return self.total((self, other)) if isinstance(other, Standstill) else NotImplemented

    @staticmethod
    def total(found: Iterable[Standstill]) -> Standstill:
        """Add up any number of tensors, which takes less time than to add one after the other."""
        count = blocked = frozen = 0
        for one in found:
            count += one.count
            blocked += one.blocked
            frozen += one.frozen
        return Standstill(count, blocked, frozen)


@dataclass(frozen=True, slots=True)
class PreflightTensor:
    """A tensor of weights.

    Attributes
    ----------
    info : TensorInfo
        Its name, dtype and shape.
    histogram : ExponentHistogram
        Of its magnitudes.
    standstill : mapping of Way to Standstill
        By how new weights are stored.

    """

    info: TensorInfo
    histogram: ExponentHistogram
    standstill: Mapping[Way, Standstill]


@dataclass(frozen=True)
class RoleFinding:
    """A number of the optimizer where a configuration stores it.

    Attributes
    ----------
    role : str
        One of `ROLES`.
    format : FloatFormat
        Of that role.
    finding : Finding
        What the format makes of it.
    rejects : bool
        Whether it is worse than in fp32, and a warning or fatal.

    """

    role: str
    format: FloatFormat
    finding: Finding
    rejects: bool


@dataclass(frozen=True)
class Candidate:
    """A storage configuration and what is known about it.

    Attributes
    ----------
    name : str
        Its name, or its text.
    storage : StorageConfig
        The formats.
    ledger : MemoryLedger
        Its bytes, for all parameters that were read.
    outcome : Outcome
        Whether it loses anything that fp32 keeps.
    reasons : tuple of str
        Why it loses, or why that is not known.
    findings : tuple of RoleFinding
        The numbers of the optimizer, each in its role's format.
    lost : float
        The share of the weights' updates that it can lose and fp32 does not.

    """

    name: str
    storage: StorageConfig
    ledger: MemoryLedger
    outcome: Outcome
    reasons: tuple[str, ...]
    findings: tuple[RoleFinding, ...]
    lost: float

    @property
    def way(self) -> Way:
        """How the new weight is stored."""
        return Way(self.storage.updated, self.storage.update)


@dataclass(frozen=True)
class PreflightReport:
    """What could be found out before the first step.

    Attributes
    ----------
    optimizer : str
        ``adamw``, ``adam`` or ``sgd``.
    hyperparameters : dict of str to float
        Defaults included.
    updates : str
        What stood for the updates, in words.
    sizes : bool
        Whether that is a size, and not updates one by one.
    tolerance : float
        The share of all weights (and of gradients) that may be lost without a configuration being said to lose.
    tensors : tuple of PreflightTensor
        In the order in which they were read.
    skipped : tuple of TensorInfo
        What was not, and why.
    candidates : tuple of Candidate
        All named configurations and those that were asked about; the cheapest first.
    asked : tuple of str
        The names of the latter.
    gradients : TensorPlans or None
        The loss scale that the gradients need, if they were given.
    unknown : tuple of str
        What this cannot know, a sentence each.

    """

    optimizer: str
    hyperparameters: dict[str, float]
    updates: str
    sizes: bool
    tolerance: float
    tensors: tuple[PreflightTensor, ...]
    skipped: tuple[TensorInfo, ...]
    candidates: tuple[Candidate, ...]
    asked: tuple[str, ...]
    gradients: TensorPlans | None
    unknown: tuple[str, ...]

    def __getitem__(self, name: str) -> Candidate:
        """Return a candidate by its name; a KeyError lists them."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(f"no candidate {name!r}; there are {', '.join(c.name for c in self.candidates)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each tensor to show."""
        return labels_of(tensor.info for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.info.count for tensor in self.tensors)

    @cached_property
    def total(self) -> dict[Way, Standstill]:
        """All tensors together."""
        ways = self.tensors[0].standstill
        return {way: Standstill.total(tensor.standstill[way] for tensor in self.tensors) for way in ways}

    @property
    def cheapest(self) -> Candidate:
        """The cheapest named configuration that keeps all that fp32 keeps; fp32 itself does."""
        return next(c for c in self.candidates if c.outcome is Outcome.KEEPS and c.name in CONFIGURATIONS)

    @property
    def verdict(self) -> str:
        """The answer in a few sentences."""
        best, fp32 = self.cheapest, self["fp32"]
        size, most = best.ledger.bytes_per_parameter, fp32.ledger.bytes_per_parameter
        others = [
            c.name
            for c in self.candidates
            if c.outcome is Outcome.KEEPS and c.ledger.bytes_per_parameter == size and c is not best
        ]
        if size >= most:
            said = [f"Nothing cheaper than fp32 ({most} bytes per parameter) is known to keep all that fp32 keeps."]
            if same := [name for name in ("fp32", *others) if name != "fp32"]:
                said.append(f"For as many bytes, with narrow weights in forward and backward: {', '.join(same)}.")
        else:
            what = f"{best.name} is the cheapest that loses nothing that fp32 keeps"
            said = [f"{what}: {size} bytes per parameter, fp32 {most}."]
            if others:
                said.append(f"So do, for as many: {', '.join(others)}.")
            if best.storage.update == "stochastic":
                sure = next(
                    c for c in self.candidates if c.outcome is Outcome.KEEPS and c.storage.update != "stochastic"
                )
                bytes_ = sure.ledger.bytes_per_parameter
                said.append(f"It does so on average, with noise; without chance: {sure.name}, {bytes_} bytes.")
        nearly = [c for c in self.candidates if 0 < c.lost < 1e-3 and len(c.reasons) == 1]
        if cheaper := [c for c in nearly if c.ledger.bytes_per_parameter <= size]:
            few = "; ".join(f"{c.name} ({c.ledger.bytes_per_parameter} bytes), but {c.reasons[0]}" for c in cheaper)
            said.append(f"Nearly so: {few}.")
        if lost := [f for f in fp32.findings if f.finding.severity is Severity.FATAL]:
            said.append(
                f"fp32 itself loses: {'; '.join(f'{f.finding.expression} {f.finding.consequence}' for f in lost)}."
            )
        said += [
            f"{name} is not it: {'; '.join(self[name].reasons)}."
            for name in self.asked
            if self[name].outcome is not Outcome.KEEPS
        ]
        return " ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        gradients = None if self.gradients is None else self.gradients.to_dict()
        return whole(self.parts() | {"gradients": gradients})

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with iterators in place of long lists: a file is written an entry at a time."""
        total = self.total
        names = {way: str(way) for way in total}
        return {
            "verdict": self.verdict,
            "cheapest": self.cheapest.name,
            "optimizer": self.optimizer,
            "hyperparameters": self.hyperparameters,
            "updates": self.updates,
            "tolerance": self.tolerance,
            "parameters": self.parameters,
            "asked": list(self.asked),
            "candidates": [
                {
                    "name": c.name,
                    "storage": str(c.storage),
                    "bytes_per_parameter": c.ledger.bytes_per_parameter,
                    "bytes": c.ledger.total,
                    "outcome": str(c.outcome),
                    "reasons": list(c.reasons),
                    "standstill": _counts(total[c.way]),
                    "lost": c.lost,
                    "findings": [
                        {"role": f.role, "format": f.format.name, "rejects": f.rejects, **f.finding.to_dict()}
                        for f in c.findings
                    ],
                }
                for c in self.candidates
            ],
            "tensors": (
                {
                    "file": str(t.info.file),
                    "name": t.info.name,
                    "dtype": t.info.dtype,
                    "shape": list(t.info.shape),
                    "min_nonzero": t.histogram.min_nonzero,
                    "max_abs": t.histogram.max_abs,
                    "nonfinite": t.histogram.nonfinite,
                    "standstill": {names[way]: _counts(found) for way, found in t.standstill.items()},
                }
                for t in self.tensors
            ),
            "gradients": None if self.gradients is None else self.gradients.parts(),
            "skipped": ({"file": str(i.file), "name": i.name, "reason": i.skipped} for i in self.skipped),
            "unknown": list(self.unknown),
        }


def _counts(found: Standstill) -> dict[str, Any]:
    return {"count": found.count, "blocked": found.blocked, "frozen": found.frozen, "fraction": found.fraction}


def preflight(
    weights: TensorSource,
    *,
    storage: str | StorageConfig | Sequence[str | StorageConfig] = (),
    optimizer: str = "adamw",
    lr: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    momentum: float | None = None,
    steps: int = 10_000,
    updates: TensorSource | None = None,
    optimizer_state: TensorSource | None = None,
    gradients: TensorSource | None = None,
    tolerance: float = 0.0,
    dtype: object = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreflightReport:
    """Say which storage configuration is the cheapest that loses nothing that fp32 keeps, and why no cheaper one does.

    The criterion is in the docstring of this module.

    Parameters
    ----------
    weights : path, mapping or module
        A checkpoint as `read_tensors` takes it, a ``state_dict()``, or a model with ``named_parameters()``. Read once.
    storage : str, StorageConfig, or a sequence of them
        What you mean to use, as `StorageConfig.parse` takes it; all of `CONFIGURATIONS` are looked at in any case.
    optimizer : {"adamw", "adam", "sgd"}
        Which optimizer.
    lr, beta1, beta2, eps, weight_decay, momentum : float, optional
        Its hyperparameters; what is left out is torch's default.
    steps : int
        Length of the run, for the audit.
    updates : path or mapping, optional
        The updates u that were added to these weights (with their sign), by the same names.
    optimizer_state : path, mapping or optimizer, optional
        Adam's moments, from which its next updates follow: see `adam_state`. At most one of the two; without either
        Adam's updates are taken to be of size lr.
    gradients : path or mapping, optional
        Of these weights, unscaled; needed for what fp16 does to gradients, and for SGD's updates, lr * g.
    tolerance : float
        The share of all weights (and of gradients) that may be lost without a configuration being said to lose.
    dtype : format spec, optional
        What the raw items of ``.npy`` and ``.npz`` files are.
    progress : callable, optional
        Called with the number of weights read and the number of all weights.

    Raises
    ------
    TensorFileError
        A file cannot be read, or has no tensors of floats; tensors do not belong together.
    ValueError
        Unknown names, hyperparameters out of range, both `updates` and `optimizer_state`, SGD without either `updates`
        or `gradients`.
    FloatingPointError
        As `precision_lab.round_to`.

    """
    if not (is_number(tolerance) and 0 <= tolerance < 1):
        raise ValueError(f"tolerance must be a share in [0, 1), got {tolerance!r}")
    if updates is not None and optimizer_state is not None:
        raise ValueError("give updates or an optimizer state, not both")
    if optimizer == "sgd" and optimizer_state is not None:
        raise ValueError("an optimizer state says what Adam's updates are; for sgd give gradients or updates")
    if optimizer == "sgd" and updates is None and gradients is None:
        raise ValueError("sgd's updates are lr times the gradients: give gradients, or updates")
    raw = None if dtype is None else get_format(dtype)
    given = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    base = audit(_FP32, optimizer=optimizer, steps=steps, **given)
    asked = _asked(storage)
    candidates = {**CONFIGURATIONS, **asked}
    ways = tuple(dict.fromkeys(Way(s.updated, s.update) for s in candidates.values()))

    in_order = not isinstance(weights, str | Path) or Path(weights).suffix.lower() in SUFFIXES
    weights = open_tensors(weights, dtype=raw)
    infos = [_without_state(info) for info in list_tensors(weights)]
    floats = [info for info in infos if not info.skipped]
    if not any(info.count for info in floats):
        raise TensorFileError(f"{weights}: no weights: there is no tensor of floats that has elements")
    gradients = None if gradients is None else open_tensors(gradients, dtype=raw)
    source = _updates(weights, in_order, floats, base, updates, optimizer_state, gradients, raw)
    recorded = None if gradients is None else scan(gradients, formats=(_FP32,), dtype=raw)
    skipped = [info for info in infos if info.skipped]

    def parameters() -> _Stream:
        for info, chunks in Walk([weights], dtype=dtype, progress=progress):
            if _without_state(info).skipped:
                continue
            if source.missing(info.name):
                skipped.append(_skipping(info, "no optimizer state: a buffer, or never trained"))
                continue
            yield info, chunks

    found = _Checkpoint(tuple(source.read(parameters(), ways)), tolerance, recorded)
    audits = {_FP32: base}
    judged = [_judged(name, s, audits, found) for name, s in candidates.items()]
    judged.sort(key=lambda candidate: candidate.ledger.bytes_per_parameter)
    return PreflightReport(
        optimizer,
        base.hyperparameters,
        source.words,
        isinstance(source, _Sizes),
        tolerance,
        found.tensors,
        tuple(skipped),
        tuple(judged),
        tuple(asked),
        None if recorded is None else _plans(recorded),
        _unknown(isinstance(source, _Sizes), optimizer_state is not None, recorded is None),
    )


def _asked(storage: str | StorageConfig | Sequence[str | StorageConfig]) -> dict[str, StorageConfig]:
    several = [storage] if isinstance(storage, str | StorageConfig) else list(storage)
    configs = [StorageConfig.parse(one) if isinstance(one, str) else one for one in several]
    names = {config: name for name, config in CONFIGURATIONS.items()}
    return {names.get(config, str(config)): config for config in configs}


def _place(source: TensorSource) -> str:
    return shown(source, 4096) if isinstance(source, str | Path) else "model"


def _skipping(info: TensorInfo, why: str) -> TensorInfo:
    return TensorInfo(info.file, info.name, info.dtype, info.shape, why, info.column_major)


def _without_state(info: TensorInfo) -> TensorInfo:
    """Mark what an optimizer left beside the weights of a checkpoint."""
    if not info.skipped and STATE_NAME.search(info.name):
        return _skipping(info, "state of the optimizer, no weights")
    return info


# ---- updates, and what becomes of them ----


@dataclass(frozen=True)
class _Sizes:
    """Updates of which only the size is known."""

    size: float
    words: str

    def missing(self, _name: str) -> bool:
        return False

    def read(self, stream: _Stream, ways: tuple[Way, ...]) -> Iterator[PreflightTensor]:
        formats = tuple(dict.fromkeys(way.format for way in ways))
        by_way = _ByWay(ways)
        for info, chunks in stream:
            histogram: ExponentHistogram | None = None
            gaps: dict[FloatFormat, WeightGaps] = {}
            for chunk in chunks:
                found = ExponentHistogram.of(chunk)
                histogram = found if histogram is None else histogram + found
                more = {fmt: WeightGaps.of(chunk, fmt) for fmt in formats}
                gaps = {fmt: gaps[fmt] + more[fmt] for fmt in formats} if gaps else more
            gaps = gaps or {fmt: WeightGaps(fmt) for fmt in formats}
            standstill = by_way.shared(tuple(self._counts(gaps[kind.format], kind) for kind in by_way.kinds))
            yield PreflightTensor(info, histogram or ExponentHistogram.empty(), standstill)

    def _counts(self, gaps: WeightGaps, kind: _Kind) -> tuple[int, int, int]:
        if kind.two_words and self.size <= kind.format.flush_threshold:
            return gaps.count, gaps.count, gaps.count
        frozen = gaps.frozen(self.size * kind.reach)
        return frozen.count, frozen.up + frozen.down - frozen.both, frozen.both


@dataclass(frozen=True)
class _Recorded:
    """Updates one by one, by the names of their weights."""

    find: Callable[[str], Chunks]
    words: str
    names: frozenset[str]

    def missing(self, name: str) -> bool:
        return name not in self.names

    def read(self, stream: _Stream, ways: tuple[Way, ...]) -> Iterator[PreflightTensor]:
        read: list[tuple[TensorInfo, ExponentHistogram]] = []
        losses = _Losses(ways)
        for info, chunks in stream:
            histogram = ExponentHistogram.empty()
            for w, u in in_step(chunks, self.find(info.name)):
                histogram += ExponentHistogram.of(w)
                losses.add(len(read), w, u)
            read.append((info, histogram))
        losses.count()
        nothing = dict.fromkeys(ways, Standstill())
        for number, (info, histogram) in enumerate(read):
            yield PreflightTensor(info, histogram, losses.found.get(number, nothing))


class _Kind(NamedTuple):
    """What of a `Way` decides which updates it loses."""

    format: FloatFormat
    reach: float
    two_words: bool


class _ByWay:
    """What is counted once for each kind of way, as mappings by way, which tensors with the same counts share."""

    def __init__(self, ways: tuple[Way, ...]) -> None:
        self._of_way = {way: _Kind(way.format, way.reach, way.two_words) for way in ways}
        self.kinds = tuple(dict.fromkeys(self._of_way.values()))
        self.shared = lru_cache(maxsize=1 << 12)(self._mapping)

    def _mapping(self, counts: tuple[tuple[int, int, int], ...]) -> Mapping[Way, Standstill]:
        """Return the counts of a tensor, given those of `Standstill` for each of `kinds`."""
        of_kind = {kind: Standstill(*some) for kind, some in zip(self.kinds, counts, strict=True)}
        return {way: of_kind[kind] for way, kind in self._of_way.items()}


_TOGETHER = 1 << 12  # elements of small tensors


class _Losses:
    """Counts the updates that are lost, for certain or in the worst case; those of small tensors together."""

    def __init__(self, ways: tuple[Way, ...]) -> None:
        self.by_way = _ByWay(ways)
        self.size = 0
        self.pieces: list[tuple[int, Any, Any]] = []
        self.found: dict[int, Mapping[Way, Standstill]] = {}

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
        """Count what was taken: `found` has what is known of each tensor that has elements."""
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
            found = self.by_way.shared(tuple(counts))
            before = self.found.get(tensor)
            self.found[tensor] = {way: before[way] + found[way] for way in found} if before else found


def _reached(u: Any, kind: _Kind) -> Any:
    """Return updates so much larger that ties_to_even makes of them what a kind makes of these."""
    stored = round_to(u, kind.format) if kind.two_words else u
    with np.errstate(all="ignore"):  # infinities and NaNs are counted as such
        return converted(np.asarray(stored), np.float64) * kind.reach


def _updates(
    weights: Tensors,
    in_order: bool,
    floats: Sequence[TensorInfo],
    base: HyperparameterAudit,
    updates: TensorSource | None,
    optimizer_state: TensorSource | None,
    gradients: TensorSource | None,
    raw: FloatFormat | None,
) -> _Sizes | _Recorded:
    """Find what stands for the updates."""
    lr = base.hyperparameters["lr"]
    names = frozenset(info.name for info in floats)
    if optimizer_state is not None:
        state = find_adam_state(optimizer_state, floats, in_order=in_order, dtype=raw)
        constants = {key: base.hyperparameters[key] for key in ("lr", "beta1", "beta2", "eps")}
        words = f"what Adam would add now, by its moments in {_place(optimizer_state)}"
        return _Recorded(adam_updates(state, **constants), words, frozenset(state.names))
    if updates is not None:
        given = open_tensors(updates, dtype=raw)
        check_partners(weights, given, floats, list_tensors(given))
        return _Recorded(given.finder(CHUNK_BYTES), f"the updates in {_place(updates)}", names)
    if base.optimizer == "sgd":
        given = open_tensors(gradients, dtype=raw)
        check_partners(weights, given, floats, list_tensors(given))
        find = given.finder(CHUNK_BYTES)

        def scaled(name: str) -> Iterator[Any]:
            for g in find(name):
                with np.errstate(all="ignore"):  # infinities and NaNs are counted as such
                    update = converted(g, np.float64) * -lr
                yield update

        return _Recorded(scaled, f"-lr times the gradients in {given}", names)
    return _Sizes(lr, f"of size lr = {lr:g}, as Adam's are at first")


# ---- the criterion ----


@dataclass(frozen=True)
class _Checkpoint:
    """All that was read."""

    tensors: tuple[PreflightTensor, ...]
    tolerance: float
    gradients: ScanResult | None

    @cached_property
    def weights(self) -> ExponentHistogram:
        return ExponentHistogram.total(tensor.histogram for tensor in self.tensors)

    @cached_property
    def count(self) -> int:
        return sum(tensor.info.count for tensor in self.tensors)

    @cached_property
    def _more(self) -> dict[Way, tuple[list[int], list[int]]]:
        return {}

    def more_lost(self, way: Way) -> tuple[list[int], list[int]]:
        """Return how many updates of each tensor are lost that fp32 would not lose, and out of how many."""
        if way not in self._more:
            theirs = Way(_FP32)
            pairs = [(tensor.standstill[way], tensor.standstill[theirs]) for tensor in self.tensors]
            lost = [max(found.blocked - least.blocked, 0) for found, least in pairs]
            self._more[way] = lost, [found.count for found, _ in pairs]
        return self._more[way]


def _judged(
    name: str, storage: StorageConfig, audits: dict[FloatFormat, HyperparameterAudit], found: _Checkpoint
) -> Candidate:
    """Apply the criterion to a configuration."""
    optimizer = _optimizer(audits[_FP32])
    findings = _findings(storage, audits)
    loses = [
        *_range_losses(storage, found),
        *_update_losses(Way(storage.updated, storage.update), found),
        *(
            f"{f.finding.expression} in the {f.role}, {f.format}: {f.finding.consequence}"
            for f in findings
            if f.rejects
        ),
    ]
    more, unknown = _gradient_losses(storage, found)
    loses += more
    if storage.operands is not None:
        unknown.append(f"matrix products in {storage.operands}: only a training run tells")
    if storage.accumulator != _FP32 or storage.sensitive != _FP32:
        unknown.append("sums, softmax or norms below fp32: only a training run tells")
    lost = _lost_share(Way(storage.updated, storage.update), found)
    outcome = Outcome.LOSES if loses else Outcome.UNKNOWN if unknown else Outcome.KEEPS
    ledger = memory(storage, optimizer, found.count)
    return Candidate(name, storage, ledger, outcome, tuple(loses or unknown), findings, lost)


def _optimizer(base: HyperparameterAudit) -> Optimizer:
    h = base.hyperparameters
    if base.optimizer == "sgd":
        return SGD(h["lr"], h["momentum"], h["weight_decay"])
    return {"adam": Adam, "adamw": AdamW}[base.optimizer](h["lr"], h["beta1"], h["beta2"], h["eps"], h["weight_decay"])


def _range_losses(storage: StorageConfig, found: _Checkpoint) -> Iterator[str]:
    fp32 = found.weights.conversion(_FP32)
    for fmt in dict.fromkeys((storage.updated, storage.weights)):
        if found.weights.conversion(fmt).overflowed > fp32.overflowed:
            yield f"{found.weights.conversion(fmt).overflowed:,} weights overflow in {fmt}"
    flushed = found.weights.conversion(storage.updated).flushed - fp32.flushed
    if flushed > found.tolerance * found.weights.count:
        yield f"{flushed:,} weights become 0 in {storage.updated}"


def _lost_share(way: Way, found: _Checkpoint) -> float:
    lost, counts = map(sum, found.more_lost(way))
    return lost / counts if counts else 0.0


def _update_losses(way: Way, found: _Checkpoint) -> Iterator[str]:
    share = _lost_share(way, found)
    if share > found.tolerance:
        shares = [lost / max(count, 1) for lost, count in zip(*found.more_lost(way), strict=True)]
        worst = label_of(found.tensors[shares.index(max(shares))].info)
        can = "can lose" if way.two_words else "loses"
        yield f"{way} {can} the updates of {_percent(share)} of the weights that fp32 moves, '{worst}' the most"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.4g} %"


def _findings(storage: StorageConfig, audits: dict[FloatFormat, HyperparameterAudit]) -> tuple[RoleFinding, ...]:
    """Return the numbers that are stored, each in its role's format; audits of formats are added as they are needed."""
    base = audits[_FP32]
    h = base.hyperparameters
    sgd = base.optimizer == "sgd"
    if sgd:  # lr is multiplied in the format in which torch adds the direction to the weights
        direction = storage.first_moment if h["momentum"] else storage.gradients
        formats = {"lr": promoted(direction, storage.updated)}
        formats["weight_decay"] = promoted(storage.gradients, storage.updated)
    elif base.optimizer == "adam":
        formats = {"weight_decay": promoted(storage.gradients, storage.updated)}
    else:  # any other way of storing adds the decay with the update, or in fp32
        apart = storage.update == "ties_to_even"
        formats = {"1 - lr*weight_decay": storage.updated} if apart else {}
    formats |= dict.fromkeys(ROLES["first moment"], storage.first_moment)
    formats |= dict.fromkeys(ROLES["second moment"], storage.second_moment)
    roles = {expression: role for role, expressions in ROLES.items() for expression in expressions}
    told = []
    for theirs in base.findings:
        if theirs.expression not in formats:
            continue
        fmt = formats[theirs.expression]
        if fmt not in audits:
            audits[fmt] = audit(fmt, optimizer=base.optimizer, steps=base.steps, **h)
        ours = audits[fmt][theirs.expression]
        rejects = ours.severity in (Severity.WARNING, Severity.FATAL) and _rank(ours) > _rank(theirs)
        if storage.update == "collage_plus" and theirs.expression in _OF_BETA2:
            rejects = 1 - h["beta2"] < 20 * 4.0**-fmt.precision
        told.append(RoleFinding(roles[theirs.expression], fmt, ours, rejects))
    return tuple(told)


def _rank(finding: Finding) -> int:
    return list(Severity).index(finding.severity)


def _gradient_losses(storage: StorageConfig, found: _Checkpoint) -> tuple[list[str], list[str]]:
    """Return what is lost of the gradients, and what is not known about them."""
    loses, unknown = [], []
    leaving = storage.weights if storage.transient_weights else storage.gradients
    for fmt in dict.fromkeys((leaving, storage.activation_gradients, storage.gradients)):
        if found.gradients is None:
            if fmt.emin > _FP32.emin or fmt.emax < _FP32.emax:
                unknown.append(f"gradients in {fmt}: give gradients to know which loss scale saves them")
            continue
        total = found.gradients.total
        fp32 = total.conversion(_FP32)
        kept = _best(storage, total, fmt)
        lost = kept.flushed + kept.overflowed - fp32.flushed - fp32.overflowed
        if lost > found.tolerance * total.count:
            scaled = (
                "" if isinstance(storage.loss_scale, NoLossScale) else f" at the best loss scale, {kept.loss_scale:g}"
            )
            loses.append(f"{_percent(lost / total.count)} of the gradients are lost in {fmt}{scaled}")
    return loses, unknown


def _best(storage: StorageConfig, total: ExponentHistogram, fmt: FloatFormat) -> Conversion:
    """Return what becomes of gradients at the loss scale of a configuration; a dynamic one finds the best."""
    if isinstance(storage.loss_scale, NoLossScale):
        return total.conversion(fmt)
    if isinstance(storage.loss_scale, StaticLossScale):
        return plan_loss_scale(total, fmt).at(storage.loss_scale.loss_scale)
    return plan_loss_scale(total, fmt).best


def _plans(recorded: ScanResult) -> TensorPlans:
    histograms = zip(recorded.names, (tensor.histogram for tensor in recorded.tensors), strict=True)
    return plan_tensors(histograms, "fp16")


def _unknown(sizes: bool, moments: bool, no_gradients: bool) -> tuple[str, ...]:
    """Say what is not in a checkpoint."""
    said = []
    if sizes:
        said.append(
            "Adam's updates are about as large as lr at first and smaller later, and lr itself mostly falls: what "
            "moves now may stand still then. Ask again with the schedule's smallest lr, or give updates or moments."
        )
    else:
        said.append("Updates are those of one moment; later ones are mostly smaller.")
    if moments:
        said.append(
            "Moments say what Adam would add now, without weight decay, if the next gradient were the average one."
        )
    if no_gradients:
        said.append(
            "Without gradients nothing is known about theirs; bf16, with fp32's exponents, is taken to hold them."
        )
    return (
        *said,
        "Weights are those of this checkpoint, and change while they train.",
        "Rounding what forward and backward see is not counted as a loss. Whether the model learns as well with it, "
        "only training tells: precision-lab train, on something small.",
        "What stochastic rounding keeps it keeps on average; second words (kahan, collage) lose it in the worst case.",
    )
