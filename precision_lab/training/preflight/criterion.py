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
            in_fp32 = StoredUpdate(_FP32)
            pairs = [(tensor.standstill[way], tensor.standstill[in_fp32]) for tensor in self.tensors]
            lost = [max(counts.blocked - least.blocked, 0) for counts, least in pairs]
            self._more[way] = lost, [counts.count for counts, _ in pairs]
        return self._more[way]


def judge(
    name: str, storage: StorageConfig, audits: dict[FloatFormat, HyperparameterAudit], checkpoint: Checkpoint
) -> Candidate:
    """Apply the criterion to a configuration."""
    findings = _findings(storage, audits)
    loses = [
        *_range_losses(storage, checkpoint),
        *_update_losses(StoredUpdate(storage.updated, storage.update), checkpoint),
        *(
            f"{f.finding.expression} in the {f.role}, {f.format}: {f.finding.consequence}"
            for f in findings
            if f.rejects
        ),
    ]
    more, unknown = _gradient_losses(storage, checkpoint)
    loses += more
    if storage.operands is not None:
        unknown.append(f"matrix products in {storage.operands}: only a training run tells")
    if storage.accumulator != _FP32 or storage.sensitive != _FP32:
        unknown.append("sums, softmax or norms below fp32: only a training run tells")
    lost = _lost_share(StoredUpdate(storage.updated, storage.update), checkpoint)
    outcome = Outcome.LOSES if loses else Outcome.UNKNOWN if unknown else Outcome.KEEPS
    ledger = memory_ledger(storage, audits[_FP32].configured, checkpoint.count)
    return Candidate(name, storage, ledger, outcome, tuple(loses or unknown), findings, lost)


def _range_losses(storage: StorageConfig, checkpoint: Checkpoint) -> Iterator[str]:
    fp32 = checkpoint.weights.conversion(_FP32)
    for fmt in dict.fromkeys((storage.updated, storage.weights)):
        if checkpoint.weights.conversion(fmt).overflowed > fp32.overflowed:
            yield f"{checkpoint.weights.conversion(fmt).overflowed:,} weights overflow in {fmt}"
    flushed = checkpoint.weights.conversion(storage.updated).flushed - fp32.flushed
    if flushed > checkpoint.tolerance * checkpoint.weights.count:
        yield f"{flushed:,} weights become 0 in {storage.updated}"


def _lost_share(way: StoredUpdate, checkpoint: Checkpoint) -> float:
    lost, counts = map(sum, checkpoint.more_lost(way))
    return lost / counts if counts else 0.0


def _update_losses(way: StoredUpdate, checkpoint: Checkpoint) -> Iterator[str]:
    share = _lost_share(way, checkpoint)
    if share > checkpoint.tolerance:
        shares = [lost / max(count, 1) for lost, count in zip(*checkpoint.more_lost(way), strict=True)]
        worst = label_of(checkpoint.tensors[shares.index(max(shares))].info)
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
    role_findings = []
    for baseline in base.findings:
        if baseline.expression not in formats:
            continue
        fmt = formats[baseline.expression]
        if fmt not in audits:
            audits[fmt] = audit_hyperparameters(fmt, optimizer=base.optimizer, steps=base.steps, **h)
        finding = audits[fmt][baseline.expression]
        rejects = finding.severity in (Severity.WARNING, Severity.FATAL) and _rank(finding) > _rank(baseline)
        if in_pairs and baseline.expression in _OF_BETA2:
            rejects = 1 - h["beta2"] < 20 * 4.0**-fmt.precision
        role_findings.append(RoleFinding(roles[baseline.expression], fmt, finding, rejects))
    return tuple(role_findings)


def _rank(finding: Finding) -> int:
    return list(Severity).index(finding.severity)


def _gradient_losses(storage: StorageConfig, checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Return what is lost of the gradients, and what is not known about them."""
    loses, unknown = [], []
    leaving = storage.weights if storage.transient_weights else storage.gradients
    for fmt in dict.fromkeys((leaving, storage.activation_gradients, storage.gradients)):
        if checkpoint.gradients is None:
            if fmt.emin > _FP32.emin or fmt.emax < _FP32.emax:
                unknown.append(f"gradients in {fmt}: give gradients to know which loss scale saves them")
            continue
        total = checkpoint.gradients.total
        fp32 = total.conversion(_FP32)
        best = _best(storage, total, fmt)
        lost = best.flushed + best.overflowed - fp32.flushed - fp32.overflowed
        if lost > checkpoint.tolerance * total.count:
            scaled = (
                "" if isinstance(storage.loss_scale, NoLossScale) else f" at the best loss scale, {best.loss_scale:g}"
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
