"""What does a storage configuration cost in bytes? A ledger with a row for every buffer.

Sixteen bytes per parameter is what training with Adam takes, whether the weights are kept in fp32 (4 + 4 + 8) or in 16
bits with a float32 master copy (2 + 2 + 4 + 8): the master copy eats what the narrow weights save (Rajbhandari et al.
2020, section 3.1). What does save memory is to keep *everything* in 16 bits (8 bytes), and what that costs in loss is
what the experiments are for. The rows are those arrays that a run of `training.loop` really holds; the tests sum their
``nbytes``.

Resident and peak. *Resident* is what lives from step to step, gradients included. *Peak* is the most that has an
element for every parameter at one moment of a step, the gradients of an earlier micro-batch among it: what is cast from
the master copy in every step (autocast) lies there until the backward pass has used it, so that autocast holds 16 bytes
from step to step and 18 within one (6 for weights, 8 for moments, 4 for gradients in Hugging Face's guide to memory).
Where torch frees the gradients before a forward pass (``set_to_none``) and there is one micro-batch, gradients come as
casts go, and 16 is the peak too. Weights that are kept in 16 bits need no cast: there the peak is what is resident.

What lives tensor by tensor is in neither: a gradient in bf16 on its way into one in fp32 (`megatron_bf16`,
`bf16_fp32_grads`, autocast: Megatron's hook adds it and lets it go), and what an optimizer computes with (torch's
``foreach`` takes as much as the parameters, ``fused`` nothing). Nor are the 4 bytes *a tensor* that torch keeps for
``step``, and the third moment of ``amsgrad``: 4 bytes a parameter, 20 in all.

Several ranks. ZeRO divides what every data-parallel rank would hold alike: stage 1 the optimizer's state (moments,
master copy, compensations), stage 2 the gradients too, stage 3 the weights too, or the master copy where a rank casts
its weights from it in every step (autocast). What a step moves over the network, per rank and with ring algorithms:
DDP all-reduces the gradients, 2 (N - 1)/N of their bytes; FSDP (stage 3) gathers the weights twice, for forward and
backward, and reduce-scatters the gradients, (N - 1)/N of the bytes each time (Rajbhandari et al. 2020, section 7).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from precision_lab.numerics.codes import code_dtype
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData, header
from precision_lab.support.shown import Shown
from precision_lab.training.models import MLP, Transformer
from precision_lab.training.optimizer_state import buffers
from precision_lab.training.optimizers import OPTIMIZERS, Optimizer, by_symbol, make_optimizer, name_of, usual_values
from precision_lab.training.storage import StorageConfig, configuration_names

_FP32 = get_format("fp32")

ZERO_STAGES = (0, 1, 2, 3)
"""Nothing divided; optimizer state; and gradients; and weights."""

ACTIVATIONS = "activations"
"""The name of their row, which has no element a parameter."""


def bytes_of(fmt: FloatFormat) -> int:
    """Return the bytes of an element in memory: whole ones, so 1 for a 6-bit format and 4 for tf32."""
    return int(code_dtype(fmt).itemsize)


@dataclass(frozen=True)
class Buffer:
    """A row of the ledger.

    Attributes
    ----------
    name : str
        What it holds.
    format : FloatFormat
        Of its elements.
    elements : int
        How many.
    divided_from : int
        The first ZeRO stage that divides it among the ranks.

    """

    layout: ClassVar = Layout(derived=("bytes",))

    name: str
    format: FloatFormat
    elements: int
    divided_from: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of the whole buffer."""
        return self.elements * bytes_of(self.format)


@dataclass(frozen=True)
class MemoryLedger(PlainData, Shown):
    """The bytes of a run.

    Attributes
    ----------
    storage : StorageConfig
        Which formats.
    optimizer : str
        Its name.
    parameters : int
        Number of parameters.
    buffers : tuple of Buffer
        What lives from step to step; one element a parameter each.
    transient : tuple of Buffer
        What lives within a step only: cast weights, activations.

    """

    layout: ClassVar = Layout(derived=("bytes_per_parameter", "peak_bytes_per_parameter", "total", "peak_total"))

    storage: StorageConfig
    optimizer: str
    parameters: int
    buffers: tuple[Buffer, ...]
    transient: tuple[Buffer, ...]

    @property
    def bytes_per_parameter(self) -> int:
        """Of everything that lives from step to step."""
        return sum(bytes_of(buffer.format) for buffer in self.buffers)

    @property
    def peak_bytes_per_parameter(self) -> int:
        """At the fullest moment of a step, with the gradients of an earlier micro-batch; activations come on top."""
        return self.bytes_per_parameter + sum(bytes_of(buffer.format) for buffer in self.casts)

    @property
    def casts(self) -> tuple[Buffer, ...]:
        """What lives within a step only and has an element a parameter: the cast weights of autocast."""
        return tuple(buffer for buffer in self.transient if buffer.name != ACTIVATIONS)

    @property
    def total(self) -> int:
        """Bytes of everything that lives from step to step, on one device."""
        return sum(buffer.bytes for buffer in self.buffers)

    @property
    def peak_total(self) -> int:
        """Bytes at the fullest moment of a step, without activations, on one device."""
        return self.total + sum(buffer.bytes for buffer in self.casts)

    def per_rank(self, ranks: int, stage: int = 3) -> int:
        """Return the bytes that each of `ranks` holds from step to step; shares of a ZeRO stage are whole elements.

        Raises
        ------
        ValueError
            `ranks` below 1, or a `stage` that is none of `ZERO_STAGES`.

        """
        check_integer("ranks", ranks, 1)
        if stage not in ZERO_STAGES:
            raise ValueError(f"stage must be one of {', '.join(map(str, ZERO_STAGES))}; got {stage!r}")
        return sum(
            (-(-b.elements // ranks) if stage >= b.divided_from else b.elements) * bytes_of(b.format)
            for b in self.buffers
        )

    def traffic(self, ranks: int, sent: FormatLike | None = None) -> dict[str, float]:
        """Return the bytes that each rank sends in a step, by operation.

        ``DDP all-reduce`` of the gradients; ``FSDP all-gather`` of the weights, twice, in the format that forward and
        backward see; ``FSDP reduce-scatter`` of the gradients.

        Parameters
        ----------
        ranks : int
            How many there are.
        sent : str or FloatFormat, optional
            Of the gradients on the network. Default: that in which they are kept, as DDP sends them; FSDP's
            ``MixedPrecision(reduce_dtype=...)`` is another, and that of the parameters if only `param_dtype` is given.

        Raises
        ------
        ValueError
            `ranks` below 1, or an unknown format.

        """
        check_integer("ranks", ranks, 1)
        share = (ranks - 1) / ranks
        weights = self.parameters * bytes_of(self.storage.weights)
        gradients = self.parameters * bytes_of(self.storage.gradients if sent is None else get_format(sent))
        return {
            "DDP all-reduce": 2 * share * gradients,
            "FSDP all-gather": 2 * share * weights,
            "FSDP reduce-scatter": share * gradients,
        }


def memory_ledger(
    storage: StorageConfig, optimizer: Optimizer | str, parameters: int, *, activations: int = 0
) -> MemoryLedger:
    """Make the ledger of a run.

    Parameters
    ----------
    storage : StorageConfig
        The formats.
    optimizer : Optimizer or str
        Which buffers there are; or a name of `named_optimizers`.
    parameters : int
        Number of parameters, at least 1.
    activations : int
        Elements that forward keeps for backward, a row apart.

    Raises
    ------
    ValueError
        `parameters` below 1, `activations` below 0, or no optimizer of that name.

    Examples
    --------
    >>> memory_ledger(StorageConfig.parse("master_bf16"), "adamw", 7_000_000_000).bytes_per_parameter
    16

    """
    used = optimizer if isinstance(optimizer, Optimizer) else _named(optimizer)
    parameters = check_integer("parameters", parameters, 1)
    activations = check_integer("activations", activations, 0)
    # what every forward pass starts from is divided last: the master copy, if the weights are cast anew in each
    later = {"gradients": 2, "master" if storage.transient_weights else "weights": 3}
    rows = tuple(Buffer(name, fmt, parameters, later.get(name, 1)) for name, fmt in buffers(used, storage).items())
    transient = []
    if storage.transient_weights:
        transient.append(Buffer("cast weights", storage.weights, parameters))
    if activations:
        transient.append(Buffer(ACTIVATIONS, storage.activations, activations))
    return MemoryLedger(storage, name_of(used), parameters, rows, tuple(transient))


def kept_for_backward(model: MLP | Transformer, storage: StorageConfig, examples: int = 1) -> tuple[Buffer, ...]:
    """Return the arrays that a forward pass leaves for the backward pass, by name, with the formats that they are in.

    A sum over shapes; nothing is run. Not all of them are in the format of the activations: what layer norm and the
    loss hand to their backward passes is in that of `sensitive`, and GELU's slopes are float32. Cast weights come on
    top (`MemoryLedger.casts`). In elements a layer of a transformer has 16 s h + a s^2 for an example of s characters,
    width h and a heads, which is the count of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) without dropout:
    there all of them are in 16 bits.

    Parameters
    ----------
    model : MLP or Transformer
        What is trained.
    storage : StorageConfig
        In which formats.
    examples : int
        How many go forward at once: windows of the whole context, for a transformer.

    Raises
    ------
    ValueError
        `examples` below 1.

    """
    examples = check_integer("examples", examples, 1)
    rows = _of_mlp(model, storage) if isinstance(model, MLP) else _of_transformer(model, storage)
    return tuple(Buffer(name, fmt, examples * elements) for name, fmt, elements in rows)


def _of_mlp(model: MLP, storage: StorageConfig) -> Iterator[tuple[str, FloatFormat, int]]:
    stored = storage.activations
    yield "inputs", stored, model.sizes[0]
    for layer, width in enumerate(model.sizes[1:-1], start=1):
        if model.activation == "relu":
            yield f"layer{layer}.preactivation", stored, width
        yield f"layer{layer}.output", stored, width
    yield "probabilities of the classes", storage.sensitive, model.sizes[-1]


def _of_transformer(model: Transformer, storage: StorageConfig) -> Iterator[tuple[str, FloatFormat, int]]:
    rows, width, stored = model.context, model.context * model.width, storage.activations

    def norm(name: str) -> Iterator[tuple[str, FloatFormat, int]]:
        yield name, stored, width
        yield f"{name}, normalised", storage.sensitive, width
        yield f"{name}, deviations", _FP32, rows

    for layer in (f"layer{k}" for k in range(1, model.layers + 1)):
        yield from norm(f"{layer}.attention_norm")
        yield f"{layer}.qkv", stored, 3 * width
        yield f"{layer}.probabilities", stored, model.heads * rows * rows
        yield f"{layer}.mixed", stored, width
        yield from norm(f"{layer}.mlp_norm")
        relu = model.activation == "relu"
        yield (f"{layer}.up", stored, rows * model.hidden) if relu else (f"{layer}.slopes", _FP32, rows * model.hidden)
        yield f"{layer}.hidden", stored, rows * model.hidden
    yield from norm("norm")
    yield "probabilities of the classes", storage.sensitive, rows * model.vocabulary


def memory_report(by_name: Mapping[str, MemoryLedger], ranks: int) -> dict[str, Any]:
    """Return ledgers by name as plain JSON types, and what each of `ranks` holds and sends."""
    return {
        **header("memory"),
        "ranks": ranks,
        "ledgers": {name: ledger.to_dict() for name, ledger in by_name.items()},
        "per_rank": {
            name: {f"ZeRO-{stage}": ledger.per_rank(ranks, stage) for stage in ZERO_STAGES}
            for name, ledger in by_name.items()
        },
        "traffic": {name: ledger.traffic(ranks) for name, ledger in by_name.items()},
    }


def named_optimizers() -> dict[str, Optimizer]:
    """Return the optimizers of the registry, and SGD with ``momentum``; only which buffers they have matters."""
    plain = make_optimizer("sgd", usual_values("sgd"))
    named = {"sgd": plain, "momentum": make_optimizer("sgd", by_symbol(plain) | {"momentum": 0.9})}
    return named | {name: make_optimizer(name, usual_values(name)) for name in OPTIMIZERS}


def _named(optimizer: str) -> Optimizer:
    named = named_optimizers()
    if optimizer not in named:
        raise ValueError(f"optimizer must be one of {', '.join(named)}; got {optimizer!r}")
    return named[optimizer]


def ledgers(
    names: Sequence[str], optimizer: str, parameters: str | float, activations: str | float = 0
) -> dict[str, MemoryLedger]:
    """Make the ledgers of several storage configurations.

    Parameters
    ----------
    names : sequence of str
        Names and texts that `StorageConfig.parse` takes; none, or ``all``: every one of `CONFIGURATIONS`.
    optimizer : str
        One of `named_optimizers`.
    parameters, activations : str or float
        Their numbers, as ``7e9`` or ``124_000_000``.

    Raises
    ------
    ValueError
        Unknown names, or numbers that are no whole ones of at least 1 (activations: 0).

    """
    used = _named(optimizer)
    count, activation_count = _whole(parameters, "parameters", 1), _whole(activations, "activations", 0)
    return {
        name: memory_ledger(StorageConfig.parse(name), used, count, activations=activation_count)
        for name in configuration_names(names or ("all",))
    }


def _whole(number: str | float, what: str, least: int) -> int:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (least <= value < 2**53 and value == int(value)):
        raise ValueError(f"{what} must be a whole number of at least {least}, such as 7e9; got {number!r}")
    return int(value)
