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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.loss_scale_plan import plan_loss_scale
from precision_lab.analysis.loss_scalers import NoLossScale, StaticLossScale
from precision_lab.analysis.scan import ScanResult
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.tensors.info import label_of
from precision_lab.training.hyperparameters import Finding, HyperparameterAudit, Severity, audit_hyperparameters
from precision_lab.training.memory import memory_ledger
from precision_lab.training.optimizers import promoted
from precision_lab.training.preflight.report import Candidate, Outcome, PreflightTensor, RoleFinding, StoredUpdate
from precision_lab.training.storage import StorageConfig
from precision_lab.training.update_rules import UPDATE_RULES

_FP32 = get_format("fp32")

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

    @cached_property
    def _more(self) -> dict[StoredUpdate, tuple[list[int], list[int]]]:
        return {}

    def more_lost(self, way: StoredUpdate) -> tuple[list[int], list[int]]:
        """Return how many updates of each tensor are lost that fp32 would not lose, and out of how many."""
        if way not in self._more:
            theirs = StoredUpdate(_FP32)
            pairs = [(tensor.standstill[way], tensor.standstill[theirs]) for tensor in self.tensors]
            lost = [max(found.blocked - least.blocked, 0) for found, least in pairs]
            self._more[way] = lost, [found.count for found, _ in pairs]
        return self._more[way]


def judge(
    name: str, storage: StorageConfig, audits: dict[FloatFormat, HyperparameterAudit], found: Checkpoint
) -> Candidate:
    """Apply the criterion to a configuration."""
    findings = _findings(storage, audits)
    loses = [
        *_range_losses(storage, found),
        *_update_losses(StoredUpdate(storage.updated, storage.update), found),
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
    lost = _lost_share(StoredUpdate(storage.updated, storage.update), found)
    outcome = Outcome.LOSES if loses else Outcome.UNKNOWN if unknown else Outcome.KEEPS
    ledger = memory_ledger(storage, audits[_FP32].configured, found.count)
    return Candidate(name, storage, ledger, outcome, tuple(loses or unknown), findings, lost)


def _range_losses(storage: StorageConfig, found: Checkpoint) -> Iterator[str]:
    fp32 = found.weights.conversion(_FP32)
    for fmt in dict.fromkeys((storage.updated, storage.weights)):
        if found.weights.conversion(fmt).overflowed > fp32.overflowed:
            yield f"{found.weights.conversion(fmt).overflowed:,} weights overflow in {fmt}"
    flushed = found.weights.conversion(storage.updated).flushed - fp32.flushed
    if flushed > found.tolerance * found.weights.count:
        yield f"{flushed:,} weights become 0 in {storage.updated}"


def _lost_share(way: StoredUpdate, found: Checkpoint) -> float:
    lost, counts = map(sum, found.more_lost(way))
    return lost / counts if counts else 0.0


def _update_losses(way: StoredUpdate, found: Checkpoint) -> Iterator[str]:
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
    h, optimizer = base.hyperparameters, base.configured
    formats = {}
    if not optimizer.normalizes:  # lr is multiplied in the format in which torch adds the direction to the weights
        direction = storage.first_moment if "first_moment" in optimizer.moments else storage.gradients
        formats["lr"] = promoted(direction, storage.updated)
    if not optimizer.decoupled:
        formats["weight_decay"] = promoted(storage.gradients, storage.updated)
    elif UPDATE_RULES[storage.update].plain:  # any other rule adds the decay with the update, or in fp32
        formats["1 - lr*weight_decay"] = storage.updated
    formats |= dict.fromkeys(ROLES["first moment"], storage.first_moment)
    formats |= dict.fromkeys(ROLES["second moment"], storage.second_moment)
    roles = {expression: role for role, expressions in ROLES.items() for expression in expressions}
    in_pairs = UPDATE_RULES[storage.update].words_of("second_moment")
    told = []
    for theirs in base.findings:
        if theirs.expression not in formats:
            continue
        fmt = formats[theirs.expression]
        if fmt not in audits:
            audits[fmt] = audit_hyperparameters(fmt, optimizer=base.optimizer, steps=base.steps, **h)
        ours = audits[fmt][theirs.expression]
        rejects = ours.severity in (Severity.WARNING, Severity.FATAL) and _rank(ours) > _rank(theirs)
        if in_pairs and theirs.expression in _OF_BETA2:
            rejects = 1 - h["beta2"] < 20 * 4.0**-fmt.precision
        told.append(RoleFinding(roles[theirs.expression], fmt, ours, rejects))
    return tuple(told)


def _rank(finding: Finding) -> int:
    return list(Severity).index(finding.severity)


def _gradient_losses(storage: StorageConfig, found: Checkpoint) -> tuple[list[str], list[str]]:
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
