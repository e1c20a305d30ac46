"""What a pre-flight found out, by tensor and by storage configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.loss_scale_plan import TensorPlans
from precision_lab.numerics.formats import FloatFormat
from precision_lab.support.plain import PlainReport, header
from precision_lab.support.shown import Shown
from precision_lab.support.text import shown
from precision_lab.tensors.codes import is_code
from precision_lab.tensors.info import TensorInfo, how_many, labels_of
from precision_lab.training.hyperparameters import Finding, Severity
from precision_lab.training.memory import MemoryLedger
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig
from precision_lab.training.update_rules import UPDATE_RULES, UpdateRule

FEW = 1e-4
"""Up to this share of what there is, *few* are lost: one weight in ten thousand. One more, and a configuration loses.

Few may still be all of something: a whole tensor of gains is smaller. So it is said which tensor loses the most."""

LATER = 30
"""Updates of Adam, as large as lr at first, are asked about again this much smaller.

In a run on the digits the median of |u|/lr fell from 1 to .08 within 1,000 steps, and to .04 within 3,000."""


class Outcome(StrEnum):
    """What is known about a storage configuration."""

    KEEPS = "keeps all"
    FEW = "keeps all but few"
    AT_START = "keeps all at the start"
    FEW_AT_START = "keeps all but few at the start"
    LOSES = "loses"
    UNKNOWN = "not known"


class Origin(StrEnum):
    """Where a hyperparameter was taken from."""

    GIVEN = "given"
    FILE = "saved optimizer"
    DEFAULT = "torch's default"


@dataclass(frozen=True)
class StoredUpdate:
    """How the new weight is stored: a format and one of `update_rules.UPDATE_RULES`."""

    format: FloatFormat
    update: str = "ties_to_even"

    @property
    def rule(self) -> UpdateRule:
        """The rule of that name."""
        return UPDATE_RULES[self.update]

    @property
    def reach(self) -> float:
        """By how much smaller an update may be than one that ties_to_even would need; a power of two."""
        return self.rule.reach(self.format)

    @property
    def two_words(self) -> bool:
        """Whether what is lost is kept in a second word."""
        return bool(self.rule.words)

    def __str__(self) -> str:
        """Return the format, and what is done about lost updates."""
        return self.format.name if self.rule.plain else f"{self.format} {self.update}"


@dataclass(frozen=True, slots=True)
class BlockedUpdates:
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

    def __add__(self, other: object) -> BlockedUpdates:
        """Add up two tensors."""
        return self.total((self, other)) if isinstance(other, BlockedUpdates) else NotImplemented

    @staticmethod
    def total(parts: Iterable[BlockedUpdates]) -> BlockedUpdates:
        """Add up any number of tensors, which takes less time than to add one after the other."""
        count = blocked = frozen = 0
        for one in parts:
            count += one.count
            blocked += one.blocked
            frozen += one.frozen
        return BlockedUpdates(count, blocked, frozen)


@dataclass(frozen=True, slots=True)
class PreflightTensor:
    """A tensor of weights.

    Attributes
    ----------
    info : TensorInfo
        Its name, dtype and shape.
    histogram : ExponentHistogram
        Of its magnitudes.
    standstill : mapping of StoredUpdate to BlockedUpdates
        By how new weights are stored.
    later : mapping of StoredUpdate to BlockedUpdates, or None
        Likewise for updates that are `LATER` times smaller, where only the size of updates is known.

    """

    info: TensorInfo
    histogram: ExponentHistogram
    standstill: Mapping[StoredUpdate, BlockedUpdates]
    later: Mapping[StoredUpdate, BlockedUpdates] | None = None


@dataclass(frozen=True)
class ParameterGroup:
    """Weights that are updated with the same hyperparameters.

    Attributes
    ----------
    hyperparameters : dict of str to float
        By symbol; lr is not there where it is not known, and nothing asked for it.
    origins : dict of str to Origin
        Where each was taken from.
    weights : int or None
        How many weights; None where it is not known which are in which group.

    """

    hyperparameters: dict[str, float]
    origins: dict[str, Origin]
    weights: int | None = None


@dataclass(frozen=True)
class RoleFinding:
    """A number of the optimizer where a configuration stores it.

    Attributes
    ----------
    role : str
        One of `criterion.ROLES`.
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
        Why it loses, or what is lost where it is little, or what is not known.
    findings : tuple of RoleFinding
        The numbers of the optimizer, each in its role's format.
    updates : int
        How many updates there are (where only their size is known, how many weights).
    lost : int
        Those of them that it can lose and fp32 does not.
    later : int or None
        Likewise for updates that are `LATER` times smaller.
    most : tuple of int
        Of what it loses the most (updates, weights in the range, gradients): how many, and out of how many.

    """

    name: str
    storage: StorageConfig
    ledger: MemoryLedger
    outcome: Outcome
    reasons: tuple[str, ...]
    findings: tuple[RoleFinding, ...]
    updates: int
    lost: int
    later: int | None
    most: tuple[int, int]

    @property
    def way(self) -> StoredUpdate:
        """How the new weight is stored."""
        return StoredUpdate(self.storage.updated, self.storage.update)

    @property
    def answer(self) -> str:
        """The outcome, with counts where few are lost."""
        lost, count = self.most
        return str(self.outcome).replace("keeps all but few", f"all but {lost:,} of {count:,}")

    @property
    def share(self) -> float:
        """The largest share that it loses of anything."""
        return self.most[0] / self.most[1] if self.most[1] else 0.0


@dataclass(frozen=True)
class PreflightReport(PlainReport, Shown):
    """What could be found out before the first step.

    Attributes
    ----------
    optimizer : str
        ``adamw``, ``adam`` or ``sgd``.
    groups : tuple of ParameterGroup
        The hyperparameters, by the groups of the optimizer; mostly one.
    updates : str
        What stood for the updates, in words.
    sizes : bool
        Whether that is a size, and not updates one by one.
    tolerance : float
        The share of all weights (and of gradients) that may be lost without a configuration being said to lose.
    tensors : tuple of PreflightTensor
        In the order in which they were read.
    apart : tuple of TensorInfo
        What lies beside the weights and is none: buffers, moments, steps, scales.
    skipped : tuple of TensorInfo
        What else was not read, and why.
    candidates : tuple of Candidate
        All named configurations and those that were asked about; the cheapest first.
    asked : tuple of str
        The names of the latter.
    gradients : TensorPlans or None
        The loss scale that the gradients need, if they were given.
    notes : tuple of str
        What was taken from where, what was assumed, what contradicts: a line each.
    unknown : tuple of str
        What this cannot know, a sentence each.

    """

    optimizer: str
    groups: tuple[ParameterGroup, ...]
    updates: str
    sizes: bool
    tolerance: float
    tensors: tuple[PreflightTensor, ...]
    apart: tuple[TensorInfo, ...]
    skipped: tuple[TensorInfo, ...]
    candidates: tuple[Candidate, ...]
    asked: tuple[str, ...]
    gradients: TensorPlans | None
    notes: tuple[str, ...]
    unknown: tuple[str, ...]

    def __getitem__(self, name: str) -> Candidate:
        """Return a candidate by its name; a KeyError lists them."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(f"no candidate {name!r}; there are {', '.join(c.name for c in self.candidates)}")

    def __str__(self) -> str:
        """Return the verdict."""
        return self.verdict

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each tensor to show."""
        return labels_of(tensor.info for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.info.count for tensor in self.tensors)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Those that are the same in all groups."""
        first, *others = (group.hyperparameters for group in self.groups)
        return {symbol: x for symbol, x in first.items() if all(other.get(symbol) == x for other in others)}

    @cached_property
    def total(self) -> dict[StoredUpdate, BlockedUpdates]:
        """All tensors together."""
        ways = self.tensors[0].standstill
        return {way: BlockedUpdates.total(tensor.standstill[way] for tensor in self.tensors) for way in ways}

    @cached_property
    def later(self) -> dict[StoredUpdate, BlockedUpdates] | None:
        """All tensors together, with updates that are `LATER` times smaller; None with updates one by one."""
        parts = [tensor.later for tensor in self.tensors if tensor.later is not None]
        return {way: BlockedUpdates.total(part[way] for part in parts) for way in parts[0]} if parts else None

    @property
    def cheapest(self) -> Candidate | None:
        """The cheapest named configuration that loses no larger share of these updates than is tolerated.

        None where only the size of updates is known: such a size is that of the first steps. Nor where all updates are
        zero: every configuration keeps those.
        """
        if self.sizes or self.all_zero:
            return None
        return next(
            c
            for c in self.candidates
            if c.name in CONFIGURATIONS and c.outcome in (Outcome.KEEPS, Outcome.FEW) and c.share <= self.tolerance
        )

    @property
    def all_zero(self) -> bool:
        """Whether there are updates one by one, and none of them is other than zero."""
        return not (self.sizes or any(counts.count for counts in self.total.values()))

    @property
    def verdict(self) -> str:
        """The answer in a few sentences."""
        return " ".join(self.sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Those of the verdict."""
        best = self.cheapest
        if self.all_zero:
            sentences = ["All updates are zero: none is lost in any format, and of others nothing is known."]
        else:
            sentences = list(self._at_start() if best is None else self._for_these_updates(best))
        if fatal := [f for f in self["fp32"].findings if f.finding.severity is Severity.FATAL]:
            sentences.append(
                f"fp32 itself loses: {'; '.join(f'{f.finding.expression} {f.finding.consequence}' for f in fatal)}."
            )
        if codes := [info for info in self.skipped if is_code(info.skipped)]:
            sentences.append(
                f"All this is of {self.parameters:,} weights; of {how_many(len(codes))} there are codes only, and "
                f"nothing is known: {shown(codes[0].skipped).partition('; ')[2]}."
            )
        return tuple(sentences)

    def _at_start(self) -> Iterator[str]:
        """Say what weights and lr tell."""
        for candidate in (self[name] for name in self.asked):
            reasons = "; ".join(candidate.reasons)
            match candidate.outcome:
                case Outcome.KEEPS:
                    yield f"{candidate.name} keeps all that fp32 keeps, whatever the updates are."
                case Outcome.AT_START | Outcome.FEW_AT_START:
                    yield f"{candidate.name}: {candidate.answer} of training, not known later: {reasons}."
                case _:
                    yield f"{candidate.name}: {candidate.answer}: {reasons}."
        start = [c for c in self.candidates if c.outcome is Outcome.AT_START]
        always = [c for c in self.candidates if c.outcome is Outcome.KEEPS and c.name != "fp32"]
        if start:
            yield (
                "With updates as large as lr, as at the start of training, all that fp32 keeps is kept by "
                f"{_named(start)}; not known later, when updates are smaller."
            )
        else:
            yield "No way of storing weights in 16 bits is known to keep all, not even updates as large as lr."
        if always:
            yield f"Whatever the updates: {_named(always)}."
        yield "What is cheapest, updates or the optimizer's state (moments) tell: give either."

    def _for_these_updates(self, best: Candidate) -> Iterator[str]:
        """Say what updates tell."""
        fp32 = self["fp32"]
        size, most = best.ledger.bytes_per_parameter, fp32.ledger.bytes_per_parameter
        kept = [c for c in self.candidates if c.outcome in (Outcome.KEEPS, Outcome.FEW) and c.share <= self.tolerance]
        others = [c.name for c in kept if c.ledger.bytes_per_parameter == size and c.name not in (best.name, "fp32")]
        if size >= most:
            yield (
                f"For these updates nothing cheaper than fp32 ({most} bytes per parameter) is known to keep all that "
                "fp32 keeps."
            )
            if best is not fp32:
                others.insert(0, best.name)
            if others:
                yield f"For as many bytes, with narrow weights in forward and backward: {', '.join(others)}."
        else:
            what = (
                "keeps all that fp32 keeps" if best.outcome is Outcome.KEEPS else f"keeps {best.answer}, as tolerated"
            )
            yield f"For these updates {best.name} is the cheapest that {what}: {size} bytes per parameter, fp32 {most}."
            if others:
                yield f"So do, for as many: {', '.join(others)}."
            if best.way.rule.random_bits:
                sure = next(c for c in kept if not c.way.rule.random_bits)
                bytes_ = sure.ledger.bytes_per_parameter
                yield f"It does so on average, with noise; without chance: {sure.name}, {bytes_} bytes."
        nearly = [c for c in self.candidates if c.outcome is Outcome.FEW and c not in kept]
        if cheaper := [c for c in nearly if c.ledger.bytes_per_parameter <= size]:
            yield f"All but few: {'; '.join(f'{_named([c])}, {c.answer}' for c in cheaper)}."
        for candidate in (self[name] for name in self.asked):
            if candidate not in kept:
                yield f"{candidate.name}: {candidate.answer}: {'; '.join(candidate.reasons)}."

    @property
    def taken_from(self) -> str:
        """What is not given of the hyperparameters: what was saved, and what torch's defaults stand for."""
        parts = []
        for origin, words in (
            (Origin.FILE, "From the saved optimizer"),
            (Origin.DEFAULT, "Not given, so torch's defaults"),
        ):
            values: dict[str, dict[str, None]] = {}
            for group in self.groups:
                for symbol, value in group.hyperparameters.items():
                    if group.origins[symbol] is origin:
                        values.setdefault(symbol, {})[f"{value:g}"] = None
            if values:
                listed = (f"{symbol} {' and '.join(some)}" for symbol, some in values.items())
                parts.append(f"{words}: {', '.join(listed)}.")
        return " ".join(parts)

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with iterators for its long lists."""
        total, later = self.total, self.later
        names = {way: str(way) for way in total}
        return {
            **header("preflight", 2),
            "verdict": self.verdict,
            "cheapest": None if self.cheapest is None else self.cheapest.name,
            "optimizer": self.optimizer,
            "hyperparameters": self.hyperparameters,
            "groups": [
                {
                    "hyperparameters": group.hyperparameters,
                    "origins": {symbol: str(origin) for symbol, origin in group.origins.items()},
                    "weights": group.weights,
                }
                for group in self.groups
            ],
            "updates": self.updates,
            "later": 1 / LATER if self.sizes else None,
            "tolerance": self.tolerance,
            "few": FEW,
            "parameters": self.parameters,
            "asked": list(self.asked),
            "candidates": [
                {
                    "name": c.name,
                    "storage": str(c.storage),
                    "bytes_per_parameter": c.ledger.bytes_per_parameter,
                    "bytes": c.ledger.total,
                    "outcome": str(c.outcome),
                    "answer": c.answer,
                    "reasons": list(c.reasons),
                    "standstill": _counts(total[c.way]),
                    "standstill_later": None if later is None else _counts(later[c.way]),
                    "updates": c.updates,
                    "lost": c.lost,
                    "lost_later": c.later,
                    "findings": [
                        {"role": f.role, "format": f.format.name, "rejects": f.rejects, **f.finding.to_dict()}
                        for f in c.findings
                    ],
                }
                for c in self.candidates
            ],
            "tensors": (
                {
                    **t.info.described(),
                    "min_nonzero": t.histogram.min_nonzero,
                    "max_abs": t.histogram.max_abs,
                    "nonfinite": t.histogram.nonfinite,
                    "standstill": {names[way]: _counts(counts) for way, counts in t.standstill.items()},
                    "standstill_later": (
                        None if t.later is None else {names[way]: _counts(counts) for way, counts in t.later.items()}
                    ),
                }
                for t in self.tensors
            ),
            "gradients": None if self.gradients is None else self.gradients.parts(),
            "notes": list(self.notes),
            "apart": ({**info.described(), "role": str(info.role)} for info in self.apart),
            "skipped": (info.described() for info in self.skipped),
            "unknown": list(self.unknown),
        }


def _named(candidates: Sequence[Candidate]) -> str:
    """Return the first names, each with its bytes for a parameter; the table has all."""
    first = ", ".join(f"{c.name} ({c.ledger.bytes_per_parameter} bytes)" for c in candidates[:3])
    return first + f" and {len(candidates) - 3} more" * (len(candidates) > 3)


def _counts(updates: BlockedUpdates) -> dict[str, Any]:
    return {"count": updates.count, "blocked": updates.blocked, "frozen": updates.frozen, "fraction": updates.fraction}
