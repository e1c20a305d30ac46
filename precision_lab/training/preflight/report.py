"""What a pre-flight found out, by tensor and by storage configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.loss_scale_plan import TensorPlans
from precision_lab.numerics.formats import FloatFormat
from precision_lab.support.plain import PlainReport, header
from precision_lab.support.shown import Shown
from precision_lab.tensors.info import TensorInfo, labels_of
from precision_lab.training.hyperparameters import Finding, Severity
from precision_lab.training.memory import MemoryLedger
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig
from precision_lab.training.update_rules import UPDATE_RULES, UpdateRule


class Outcome(StrEnum):
    """What is known about a storage configuration."""

    KEEPS = "keeps all"
    LOSES = "loses"
    UNKNOWN = "not known"


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

    """

    info: TensorInfo
    histogram: ExponentHistogram
    standstill: Mapping[StoredUpdate, BlockedUpdates]


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
    def way(self) -> StoredUpdate:
        """How the new weight is stored."""
        return StoredUpdate(self.storage.updated, self.storage.update)


@dataclass(frozen=True)
class PreflightReport(PlainReport, Shown):
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
    def total(self) -> dict[StoredUpdate, BlockedUpdates]:
        """All tensors together."""
        ways = self.tensors[0].standstill
        return {way: BlockedUpdates.total(tensor.standstill[way] for tensor in self.tensors) for way in ways}

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
            sentences = [
                f"Nothing cheaper than fp32 ({most} bytes per parameter) is known to keep all that fp32 keeps."
            ]
            if same := [name for name in ("fp32", *others) if name != "fp32"]:
                sentences.append(f"For as many bytes, with narrow weights in forward and backward: {', '.join(same)}.")
        else:
            what = f"{best.name} is the cheapest that loses nothing that fp32 keeps"
            sentences = [f"{what}: {size} bytes per parameter, fp32 {most}."]
            if others:
                sentences.append(f"So do, for as many: {', '.join(others)}.")
            if best.way.rule.random_bits:
                sure = next(c for c in self.candidates if c.outcome is Outcome.KEEPS and not c.way.rule.random_bits)
                bytes_ = sure.ledger.bytes_per_parameter
                sentences.append(f"It does so on average, with noise; without chance: {sure.name}, {bytes_} bytes.")
        nearly = [c for c in self.candidates if 0 < c.lost < 1e-3 and len(c.reasons) == 1]
        if cheaper := [c for c in nearly if c.ledger.bytes_per_parameter <= size]:
            few = "; ".join(f"{c.name} ({c.ledger.bytes_per_parameter} bytes), but {c.reasons[0]}" for c in cheaper)
            sentences.append(f"Nearly so: {few}.")
        if fatal := [f for f in fp32.findings if f.finding.severity is Severity.FATAL]:
            sentences.append(
                f"fp32 itself loses: {'; '.join(f'{f.finding.expression} {f.finding.consequence}' for f in fatal)}."
            )
        sentences += [
            f"{name} is not it: {'; '.join(self[name].reasons)}."
            for name in self.asked
            if self[name].outcome is not Outcome.KEEPS
        ]
        return " ".join(sentences)

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with iterators for its long lists."""
        total = self.total
        names = {way: str(way) for way in total}
        return {
            **header("preflight"),
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
                    **t.info.described(),
                    "min_nonzero": t.histogram.min_nonzero,
                    "max_abs": t.histogram.max_abs,
                    "nonfinite": t.histogram.nonfinite,
                    "standstill": {names[way]: _counts(counts) for way, counts in t.standstill.items()},
                }
                for t in self.tensors
            ),
            "gradients": None if self.gradients is None else self.gradients.parts(),
            "skipped": (info.described() for info in self.skipped),
            "unknown": list(self.unknown),
        }


def _counts(updates: BlockedUpdates) -> dict[str, Any]:
    return {"count": updates.count, "blocked": updates.blocked, "frozen": updates.frozen, "fraction": updates.fraction}
