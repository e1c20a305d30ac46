"""Whether a storage configuration loses what fp32 keeps.

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
   With updates in hand (a file of them, an optimizer's moments, gradients of SGD) the updates themselves are counted.
   Without, u is taken as large as lr: Adam's first updates are. Then all that is kept is kept *at the start*, and the
   same is asked at lr/`LATER`; weights in fp32 alone are known to keep later what fp32 keeps.
3. *hyperparameters*: a number of the optimizer is a ``warning`` or ``fatal`` in the format it is stored in, and worse
   than in fp32, its constants being doubles, as in torch. Of the moments: what beta does to them, and where the running
   average settles; epsilon, and the smallest gradients in the second. Of the weights: AdamW's 1 - lr*weight_decay where
   it is multiplied apart (`ties_to_even`), SGD's lr. What torch does not store (beta, 1 - beta, bias corrections, the
   step counter in float32) does not count. `collage_plus` keeps beta2 and the second moment in pairs of 2p bits, which
   settle to 2 * 2^(-2p)/(1 - beta2) (found by trying): 10 % for 3,277 steps.
4. *gradients*, if given: some are flushed or overflow in the format they leave the backward pass in, which fp32 keeps,
   and no loss scale (if the configuration has one) prevents it.

What is lost of updates, flushed, or lost of gradients is counted. Up to a share of `FEW` of them a configuration keeps
*all but few*, and their number is said; above, it loses. Overflow and hyperparameters are never few. A tolerance widens
what may be chosen, and is said as well.

It is *not known* whether it does where the answer is not in what was given: gradients in fp16 without gradients; matrix
products in fp8 or in a narrow accumulator. Neither is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.loss_scale_plan import plan_loss_scale
from precision_lab.analysis.loss_scalers import LossScale, NoLossScale, StaticLossScale
from precision_lab.analysis.scan import ScanResult
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.tensors.info import label_of
from precision_lab.training.hyperparameters import Finding, HyperparameterAudit, Severity, World, audit_hyperparameters
from precision_lab.training.memory import memory_ledger
from precision_lab.training.optimizers import promoted
from precision_lab.training.preflight.report import (
    FEW,
    LATER,
    Candidate,
    Outcome,
    PreflightTensor,
    RoleFinding,
    StoredUpdate,
)
from precision_lab.training.storage import StorageConfig
from precision_lab.training.update_rules import UPDATE_RULES

_FP32 = get_format("fp32")

# the numbers of an audit by where a configuration stores what they act on
ROLES: Mapping[str, tuple[str, ...]] = {
    "weights": ("lr", "weight_decay", "1 - lr*weight_decay"),
    "first moment": (
        *("share of m with R(beta1*m) = m", "beta1*m + (1 - beta1)*g"),
        *("share of m with R(momentum*m) = m", "momentum*m + g"),
    ),
    "second moment": (
        *("share of v with R(beta2*v) = v", "beta2*v + (1 - beta2)*g^2"),
        *("eps", "largest |g| lost in (1 - beta2)*g^2"),
    ),
}
_OF_BETA2 = ROLES["second moment"][:2]


@dataclass(frozen=True)
class Checkpoint:
    """All that was read, and the share of it that may be lost."""

    tensors: tuple[PreflightTensor, ...]
    tolerance: float
    gradients: ScanResult | None

    @cached_property
    def weights(self) -> ExponentHistogram:
        """All weights together."""
        return ExponentHistogram.total(tensor.histogram for tensor in self.tensors)

    @cached_property
    def count(self) -> int:
        """Number of weights."""
        return sum(tensor.info.count for tensor in self.tensors)

    @property
    def sizes(self) -> bool:
        """Whether only the size of the updates is known, and that of the first ones."""
        return self.tensors[0].later is not None

    @cached_property
    def _more(self) -> dict[tuple[StoredUpdate, bool], tuple[list[int], list[int]]]:
        return {}

    def more_lost(self, way: StoredUpdate, *, later: bool = False) -> tuple[list[int], list[int]]:
        """Return how many updates of each tensor are lost that fp32 would not lose, and out of how many."""
        if (way, later) not in self._more:
            in_fp32 = StoredUpdate(_FP32)
            counts = [(tensor.later if later else tensor.standstill) or {} for tensor in self.tensors]
            lost = [max(of[way].blocked - of[in_fp32].blocked, 0) for of in counts]
            self._more[way, later] = lost, [of[way].count for of in counts]
        return self._more[way, later]


@dataclass(frozen=True)
class _Loss:
    """What a configuration loses and fp32 keeps: how many out of how many; one of no number cannot be few."""

    words: str
    lost: int = 1
    count: int = 0

    def within(self, share: float) -> bool:
        return self.lost <= share * self.count


def judge(
    name: str,
    storage: StorageConfig,
    audits: Sequence[dict[FloatFormat, HyperparameterAudit]],
    checkpoint: Checkpoint,
    *,
    knows_lr: bool = True,
) -> Candidate:
    """Apply the criterion to a configuration; `audits` are those of each group of parameters, in fp32 at least."""
    way = StoredUpdate(storage.updated, storage.update)
    findings = _each_once(finding for of_group in audits for finding in _findings(storage, of_group))
    if not knows_lr:
        findings = tuple(f for f in findings if f.finding.name != "lr")
    of_gradients, unknown = _gradient_losses(storage, checkpoint)
    losses = [
        *_range_losses(storage, checkpoint),
        *_update_losses(way, checkpoint),
        *(
            _Loss(f"{f.finding.expression} in the {f.role}, {f.format}: {f.finding.consequence}")
            for f in findings
            if f.rejects
        ),
        *of_gradients,
    ]
    if storage.operands is not None:
        unknown.append(f"matrix products in {storage.operands}: only a training run tells")
    if storage.accumulator != _FP32 or storage.sensitive != _FP32:
        unknown.append("sums, softmax or norms below fp32: only a training run tells")
    few = max(checkpoint.tolerance, FEW)
    at_start = checkpoint.sizes and promoted(way.format, _FP32) != way.format
    if many := [loss.words for loss in losses if not loss.within(few)]:
        outcome, reasons = Outcome.LOSES, many
    elif unknown:
        outcome, reasons = Outcome.UNKNOWN, unknown + [loss.words for loss in losses]
    elif at_start:
        outcome = Outcome.FEW_AT_START if losses else Outcome.AT_START
        reasons = [*(loss.words for loss in losses), _later(way, checkpoint)]
    else:
        outcome, reasons = Outcome.FEW if losses else Outcome.KEEPS, [loss.words for loss in losses]
    lost, counts = map(sum, checkpoint.more_lost(way))
    later = sum(checkpoint.more_lost(way, later=True)[0]) if checkpoint.sizes else None
    ledger = memory_ledger(storage, audits[0][_FP32].configured, checkpoint.count)
    most = max(((loss.lost, loss.count) for loss in losses if loss.count), key=lambda x: x[0] / x[1], default=(0, 0))
    return Candidate(name, storage, ledger, outcome, tuple(reasons), findings, counts, lost, later, most)


def _each_once(findings: Iterable[RoleFinding]) -> tuple[RoleFinding, ...]:
    """Return the findings of several groups of parameters without those that are the same."""
    return tuple({(f.role, f.finding.expression, repr(f.finding.exact), f.rejects): f for f in findings}.values())


def _range_losses(storage: StorageConfig, checkpoint: Checkpoint) -> Iterator[_Loss]:
    fp32 = checkpoint.weights.conversion(_FP32)
    for fmt in dict.fromkeys((storage.updated, storage.weights)):
        overflowed = checkpoint.weights.conversion(fmt).overflowed
        if overflowed > fp32.overflowed:
            yield _Loss(f"{overflowed:,} weights overflow in {fmt}")
    flushed = checkpoint.weights.conversion(storage.updated).flushed - fp32.flushed
    if flushed > 0:
        yield _Loss(f"{flushed:,} weights become 0 in {storage.updated}", flushed, checkpoint.weights.count)


def _update_losses(way: StoredUpdate, checkpoint: Checkpoint) -> Iterator[_Loss]:
    lost, counts = checkpoint.more_lost(way)
    total, count = sum(lost), sum(counts)
    if total:
        can = "can lose" if way.two_words else "loses"
        worst = max(range(len(lost)), key=lambda i: lost[i] / max(counts[i], 1))
        where = f"'{label_of(checkpoint.tensors[worst].info)}' the most"
        if total <= FEW * count:
            where += f", {lost[worst]:,} of its {counts[worst]:,}"
        yield _Loss(
            f"{way} {can} the updates of {_some(total, count, 'weights')} that fp32 moves, {where}", total, count
        )


def _later(way: StoredUpdate, checkpoint: Checkpoint) -> str:
    """Say what would be lost of smaller updates, where only the size of the first ones is known."""
    lost, count = map(sum, checkpoint.more_lost(way, later=True))
    can = "can lose" if way.two_words else "loses"
    if not lost:
        return f"{way} keeps updates of lr/{LATER} too; smaller ones are not known"
    return f"{way} {can} {_some(lost, count, 'updates')} of lr/{LATER}"


def _some(lost: int, count: int, what: str) -> str:
    """Return how many of them: few by their number, more in percent."""
    if lost <= FEW * count:
        return f"{lost:,} of {count:,} {what}"
    share = lost / count
    return (f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.4g} %") + f" of the {what}"


def _findings(storage: StorageConfig, audits: dict[FloatFormat, HyperparameterAudit]) -> tuple[RoleFinding, ...]:
    """Return the numbers that are stored, each in its role's format; audits of formats are added as they are needed."""
    base = audits[_FP32]
    h, optimizer = base.hyperparameters, base.configured
    formats = {}
    if not optimizer.normalizes:  # lr is multiplied in the format in which torch adds the direction to the weights
        direction = storage.first_moment if "first_moment" in optimizer.moments else storage.read_gradients
        formats["lr"] = promoted(direction, storage.updated)
    if not optimizer.decoupled:
        formats["weight_decay"] = promoted(storage.read_gradients, storage.updated)
    elif UPDATE_RULES[storage.update].plain:  # any other rule adds the decay with the update, or in fp32
        formats["1 - lr*weight_decay"] = storage.updated
    formats |= dict.fromkeys(ROLES["first moment"], storage.first_moment)
    formats |= dict.fromkeys(ROLES["second moment"], storage.second_moment)
    roles = {expression: role for role, expressions in ROLES.items() for expression in expressions}
    in_pairs = UPDATE_RULES[storage.update].words_of("second_moment")
    role_findings = []
    for baseline in base.of(World.TORCH):
        if baseline.expression not in formats:
            continue
        fmt = formats[baseline.expression]
        if fmt not in audits:
            audits[fmt] = audit_hyperparameters(fmt, optimizer=base.optimizer, steps=base.steps, **h)
        finding = audits[fmt].torch(baseline.expression)
        assert finding is not None  # which numbers torch stores does not depend on the format
        rejects = finding.severity in (Severity.WARNING, Severity.FATAL) and _rank(finding) > _rank(baseline)
        if in_pairs and baseline.expression in _OF_BETA2:
            rejects = 1 - h["beta2"] < 20 * 4.0**-fmt.precision
        role_findings.append(RoleFinding(roles[baseline.expression], fmt, finding, rejects))
    return tuple(role_findings)


def _rank(finding: Finding) -> int:
    return list(Severity).index(finding.severity)


def _gradient_losses(storage: StorageConfig, checkpoint: Checkpoint) -> tuple[list[_Loss], list[str]]:
    """Return what is lost of the gradients, and what is not known about them."""
    losses, unknown = [], []
    leaving = storage.weights if storage.transient_weights else storage.gradients
    scaled_formats = (leaving, storage.activation_gradients, storage.gradients)
    formats = dict.fromkeys((fmt, storage.loss_scale) for fmt in scaled_formats)
    if storage.main_gradients is not None:
        formats[storage.main_gradients, NoLossScale()] = None
    for fmt, scaler in formats:
        if checkpoint.gradients is None:
            if fmt.emin > _FP32.emin or fmt.emax < _FP32.emax:
                unknown.append(f"gradients in {fmt}: give gradients to know which loss scale saves them")
            continue
        total = checkpoint.gradients.total
        fp32 = total.conversion(_FP32)
        best = _best(scaler, total, fmt)
        lost = best.flushed + best.overflowed - fp32.flushed - fp32.overflowed
        if lost > 0:
            scaled = "" if isinstance(scaler, NoLossScale) else f" at the best loss scale, {best.loss_scale:g}"
            infinite = best.overflowed > fp32.overflowed  # one is enough to spoil a step
            words = f"{_some(lost, total.count, 'gradients')} are lost in {fmt}{scaled}"
            losses.append(_Loss(words, lost, 0 if infinite else total.count))
    return losses, unknown


def _best(scaler: LossScale, total: ExponentHistogram, fmt: FloatFormat) -> Conversion:
    """Return what becomes of gradients at a loss scale; a dynamic one finds the best."""
    if isinstance(scaler, NoLossScale):
        return total.conversion(fmt)
    if isinstance(scaler, StaticLossScale):
        return plan_loss_scale(total, fmt).at(scaler.loss_scale)
    return plan_loss_scale(total, fmt).best
