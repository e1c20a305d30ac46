"""The pre-flight itself: reads a checkpoint once, and judges every named storage configuration by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from precision_lab.analysis.loss_scale_files import plan_scan
from precision_lab.analysis.scan import scan
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.inputs import is_number
from precision_lab.support.text import shown
from precision_lab.tensors.info import TensorFileError, TensorInfo, TensorSource
from precision_lab.tensors.reading import list_tensors, open_tensors
from precision_lab.tensors.roles import Role
from precision_lab.tensors.torch_files import SUFFIXES
from precision_lab.tensors.walk import Walk
from precision_lab.training.preflight.criterion import Checkpoint, judge
from precision_lab.training.preflight.evidence import Given, find_evidence, may_hold_optimizer
from precision_lab.training.preflight.numbered import names_by_identity, read_names
from precision_lab.training.preflight.report import LATER, PreflightReport, StoredUpdate
from precision_lab.training.preflight.updates import Sizes, Stream
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig

_FP32 = get_format("fp32")


def preflight(
    weights: TensorSource,
    *,
    storage: str | StorageConfig | Sequence[str | StorageConfig] = (),
    optimizer: str | None = None,
    lr: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    momentum: float | None = None,
    steps: int = 10_000,
    updates: TensorSource | None = None,
    optimizer_state: TensorSource | None = None,
    parameter_names: str | Path | Sequence[str] | None = None,
    gradients: TensorSource | None = None,
    tolerance: float = 0.0,
    dtype: FormatLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreflightReport:
    """Say what storage configurations lose that fp32 keeps, of given updates or of those at the start of training.

    The criterion is in the docstring of `criterion`. From weights and lr alone no configuration is called the cheapest:
    that Adam's updates are as large as lr holds for its first steps only.

    Parameters
    ----------
    weights : path, mapping or module
        A checkpoint as `read_tensors` takes it, a ``state_dict()``, or a model with ``named_parameters()``. Read once.
        What its names say to be buffers, moments, steps or scales are no weights. An optimizer that was saved beside
        them is used as if it were given as `optimizer_state`.
    storage : str, StorageConfig, or a sequence of them
        What you mean to use, as `StorageConfig.parse` takes it; all of `CONFIGURATIONS` are looked at in any case.
    optimizer : {"adamw", "adam", "sgd"}, optional
        Which optimizer. Default: the one that was saved; adamw where none was.
    lr : float, optional
        Learning rate. Default: that of the saved optimizer. Nothing else stands for it where an answer needs it: all
        but those about `updates` do, and AdamW's about its weight decay.
    beta1, beta2, eps, weight_decay, momentum : float, optional
        The other hyperparameters. Default: those of the saved optimizer, each group's for its own parameters; else
        torch's. What is given overrides what was saved, and `notes` of the report say so.
    steps : int
        Length of the run, for the audit.
    updates : path or mapping, optional
        The updates u that were added to these weights (with their sign), by the same names.
    optimizer_state : path, mapping or optimizer, optional
        The optimizer as it was saved: its hyperparameters, and moments of Adam or buffers of SGD, from which updates
        follow: see `saved_optimizer`, `adam_state`. At most one of the two; without either Adam's updates are taken to
        be of size lr, and of lr/30.
    parameter_names : path or sequence of str, optional
        The names of numbered parameters of an optimizer in the order of its groups, where they do not follow from
        shapes: a text file with a name a line, or a JSON list. See `numbered`.
    gradients : path or mapping, optional
        Of these weights, unscaled; needed for what fp16 does to gradients, and for SGD's updates, lr * g, where there
        are no buffers of momentum.
    tolerance : float
        The share of all weights (and of gradients) that may be lost without a configuration being said to lose.
    dtype : format spec, optional
        What the raw items of ``.npy`` and ``.npz`` files are.
    progress : callable, optional
        Called with the number of weights read and the number of all weights.

    Raises
    ------
    TensorFileError
        A file cannot be read, or has no tensors of floats; tensors do not belong together, or it is not known which do.
    ValueError
        Unknown names, hyperparameters out of range, no lr where it is needed, both `updates` and `optimizer_state`, SGD
        without `updates`, `gradients` or buffers.
    FloatingPointError
        As `precision_lab.round_to`.

    Examples
    --------
    >>> import numpy as np
    >>> weights, updates = np.array([1.0, 0.1], np.float32), np.array([1e-3, 1e-3], np.float32)
    >>> preflight({"w": weights}, lr=1e-3, storage="pure_bf16", beta2=0.95)["pure_bf16"].lost
    1
    >>> preflight({"w": weights}, updates={"w": updates}, lr=1e-3).cheapest.name
    'bf16_stochastic_fp32_v'

    """
    if not (is_number(tolerance) and 0 <= tolerance < 1):
        raise ValueError(f"tolerance must be a share in [0, 1), got {tolerance!r}")
    if updates is not None and optimizer_state is not None:
        raise ValueError("give updates or an optimizer state, not both")
    given = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    names = names_by_identity(weights, optimizer_state) if parameter_names is None else read_names(parameter_names)
    chosen = _by_name(storage)
    candidates = {**CONFIGURATIONS, **chosen}
    ways = tuple(dict.fromkeys(StoredUpdate(s.updated, s.update) for s in candidates.values()))

    tensors = open_tensors(weights, dtype=dtype)
    infos = list_tensors(tensors)
    walk = Walk([tensors], dtype=dtype, progress=progress, parameters=True)
    floats = [info for info in infos if info.role is Role.PARAMETER and not info.skipped]
    apart = tuple(info for info in infos if info.role is not Role.PARAMETER)
    if not any(info.count for info in floats):
        raise TensorFileError(f"{tensors}: no weights: there is no tensor of floats that has elements")
    in_order = not isinstance(weights, str | Path) or Path(weights).suffix.lower() in SUFFIXES
    gradients = None if gradients is None else open_tensors(gradients, dtype=dtype)
    beside = weights if optimizer_state is None and may_hold_optimizer(weights, apart) else None
    evidence = find_evidence(
        Given(tensors, floats, in_order, optimizer_state, beside, updates, gradients, names, dtype),
        optimizer,
        given,
        steps,
    )
    source, recipe = evidence.source, evidence.recipe
    recorded = None if gradients is None else scan(gradients, formats=(_FP32,), dtype=dtype, precision=False)
    skipped = [info for info in infos if info.role is Role.PARAMETER and info.skipped]

    def parameters() -> Stream:
        for info, chunks in walk:
            if source.missing(info.name):
                skipped.append(replace(info, skipped="no optimizer state: a buffer, or never trained"))
                continue
            yield info, chunks

    checkpoint = Checkpoint(tuple(source.read(parameters(), ways)), tolerance, recorded)
    audits = [{_FP32: audit} for audit in recipe.audits]
    judged = [judge(name, s, audits, checkpoint, knows_lr=recipe.knows_lr) for name, s in candidates.items()]
    judged.sort(key=lambda candidate: candidate.ledger.bytes_per_parameter)
    sizes = isinstance(source, Sizes)
    return PreflightReport(
        recipe.optimizer,
        evidence.counted(tensor.info for tensor in checkpoint.tensors),
        source.words,
        sizes,
        tolerance,
        checkpoint.tensors,
        apart,
        tuple(skipped),
        tuple(judged),
        tuple(chosen),
        None if recorded is None else plan_scan(recorded, "fp16"),
        (*evidence.notes, *_left_out(apart, evidence.uses_moments and beside is not None)),
        _unknown(sizes, evidence.uses_moments, recorded is None),
    )


def _by_name(storage: str | StorageConfig | Sequence[str | StorageConfig]) -> dict[str, StorageConfig]:
    several = [storage] if isinstance(storage, str | StorageConfig) else list(storage)
    configs = [StorageConfig.parse(one) if isinstance(one, str) else one for one in several]
    names = {config: name for name, config in CONFIGURATIONS.items()}
    return {names.get(config, str(config)): config for config in configs}


def _left_out(apart: Sequence[TensorInfo], moments_used: bool) -> Iterator[str]:
    """Say in a line for each role what lies beside the weights and is not used."""
    by_role: dict[Role, list[TensorInfo]] = {}
    for info in apart:
        by_role.setdefault(info.role, []).append(info)
    for role, infos in by_role.items():
        if not (moments_used and role in (Role.MOMENT, Role.STEP)):
            more = f" and {len(infos) - 1:,} more" if len(infos) > 1 else ""
            yield f"no weights but {role}: '{shown(infos[0].name, 100)}'{more}"


def _unknown(sizes: bool, moments: bool, no_gradients: bool) -> tuple[str, ...]:
    """Say what is not in a checkpoint."""
    sentences = []
    if sizes:
        sentences.append(
            f"Updates of size lr are those of Adam's first steps. Later ones are smaller, often by {LATER} and more, "
            "and lr itself mostly falls: what moves at the start may stand still then."
        )
    else:
        sentences.append("Updates are those of one moment; later ones are mostly smaller.")
    if moments:
        sentences.append(
            "Moments say what the optimizer would add now, without AdamW's weight decay, if the next gradient were the "
            "average one."
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
