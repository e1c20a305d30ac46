"""The pre-flight itself: reads a checkpoint once, and judges every named storage configuration by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from precision_lab.analysis.loss_scale_files import plan_scan
from precision_lab.analysis.loss_scale_plan import TensorPlans
from precision_lab.analysis.scan import ScanResult, scan
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.inputs import is_number
from precision_lab.tensors.info import TensorFileError, TensorInfo, TensorSource
from precision_lab.tensors.reading import list_tensors, open_tensors
from precision_lab.tensors.torch_files import SUFFIXES
from precision_lab.tensors.walk import Walk
from precision_lab.training.hyperparameters import audit_hyperparameters
from precision_lab.training.optimizers import Adam
from precision_lab.training.preflight.adam_state import STATE_NAME
from precision_lab.training.preflight.criterion import Checkpoint, judge
from precision_lab.training.preflight.report import PreflightReport, StoredUpdate
from precision_lab.training.preflight.updates import Sizes, Stream, find_updates
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig

_FP32 = get_format("fp32")


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
    dtype: FormatLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreflightReport:
    """Say which storage configuration is the cheapest that loses nothing that fp32 keeps, and why no cheaper one does.

    The criterion is in the docstring of `criterion`.

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

    Examples
    --------
    >>> import numpy as np
    >>> preflight({"w": np.array([1.0, 0.1], np.float32)}, lr=1e-3).cheapest.name
    'collage_plus'

    """
    if not (is_number(tolerance) and 0 <= tolerance < 1):
        raise ValueError(f"tolerance must be a share in [0, 1), got {tolerance!r}")
    if updates is not None and optimizer_state is not None:
        raise ValueError("give updates or an optimizer state, not both")
    given = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    base = audit_hyperparameters(_FP32, optimizer=optimizer, steps=steps, **given)
    used = base.configured
    if optimizer_state is not None and not isinstance(used, Adam):
        instead = "updates" if used.normalizes else "gradients or updates"
        raise ValueError(f"an optimizer state says what Adam's updates are; for {optimizer} give {instead}")
    if not used.normalizes and updates is None and gradients is None:
        raise ValueError(f"{optimizer}'s updates are lr times the gradients: give gradients, or updates")
    chosen = _by_name(storage)
    candidates = {**CONFIGURATIONS, **chosen}
    ways = tuple(dict.fromkeys(StoredUpdate(s.updated, s.update) for s in candidates.values()))

    in_order = not isinstance(weights, str | Path) or Path(weights).suffix.lower() in SUFFIXES
    weights = open_tensors(weights, dtype=dtype)
    infos = [_without_state(info) for info in list_tensors(weights)]
    floats = [info for info in infos if not info.skipped]
    if not any(info.count for info in floats):
        raise TensorFileError(f"{weights}: no weights: there is no tensor of floats that has elements")
    gradients = None if gradients is None else open_tensors(gradients, dtype=dtype)
    source = find_updates(weights, in_order, floats, base, updates, optimizer_state, gradients, dtype)
    recorded = None if gradients is None else scan(gradients, formats=(_FP32,), dtype=dtype)
    skipped = [info for info in infos if info.skipped]

    def parameters() -> Stream:
        for info, chunks in Walk([weights], dtype=dtype, progress=progress):
            if _without_state(info).skipped:
                continue
            if source.missing(info.name):
                skipped.append(_skipping(info, "no optimizer state: a buffer, or never trained"))
                continue
            yield info, chunks

    checkpoint = Checkpoint(tuple(source.read(parameters(), ways)), tolerance, recorded)
    audits = {_FP32: base}
    judged = [judge(name, s, audits, checkpoint) for name, s in candidates.items()]
    judged.sort(key=lambda candidate: candidate.ledger.bytes_per_parameter)
    return PreflightReport(
        optimizer,
        base.hyperparameters,
        source.words,
        isinstance(source, Sizes),
        tolerance,
        checkpoint.tensors,
        tuple(skipped),
        tuple(judged),
        tuple(chosen),
        None if recorded is None else _plans(recorded),
        _unknown(isinstance(source, Sizes), optimizer_state is not None, recorded is None),
    )


def _by_name(storage: str | StorageConfig | Sequence[str | StorageConfig]) -> dict[str, StorageConfig]:
    several = [storage] if isinstance(storage, str | StorageConfig) else list(storage)
    configs = [StorageConfig.parse(one) if isinstance(one, str) else one for one in several]
    names = {config: name for name, config in CONFIGURATIONS.items()}
    return {names.get(config, str(config)): config for config in configs}


def _skipping(info: TensorInfo, why: str) -> TensorInfo:
    return TensorInfo(info.file, info.name, info.dtype, info.shape, why, info.column_major)


def _without_state(info: TensorInfo) -> TensorInfo:
    """Mark what an optimizer left beside the weights of a checkpoint."""
    if not info.skipped and STATE_NAME.search(info.name):
        return _skipping(info, "state of the optimizer, no weights")
    return info


def _plans(recorded: ScanResult) -> TensorPlans:
    return plan_scan(recorded, "fp16")


def _unknown(sizes: bool, moments: bool, no_gradients: bool) -> tuple[str, ...]:
    """Say what is not in a checkpoint."""
    sentences = []
    if sizes:
        sentences.append(
            "Adam's updates are about as large as lr at first and smaller later, and lr itself mostly falls: what "
            "moves now may stand still then. Ask again with the schedule's smallest lr, or give updates or moments."
        )
    else:
        sentences.append("Updates are those of one moment; later ones are mostly smaller.")
    if moments:
        sentences.append(
            "Moments say what Adam would add now, without weight decay, if the next gradient were the average one."
        )
    if no_gradients:
        sentences.append(
            "Without gradients nothing is known about theirs; bf16, with fp32's exponents, is taken to hold them."
        )
    return (
        *sentences,
        "Weights are those of this checkpoint, and change while they train.",
        "Rounding what forward and backward see is not counted as a loss. Whether the model learns as well with it, "
        "only training tells: precision-lab train, on something small.",
        "What stochastic rounding keeps it keeps on average; second words (kahan, collage) lose it in the worst case.",
    )
