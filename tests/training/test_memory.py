"""The ledger is what a run holds in its arrays, and what is divided and sent is arithmetic done by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from precision_lab.numerics.codec import codec, stored_dtype
from precision_lab.numerics.formats import FORMATS, get_format
from precision_lab.numerics.rounding import is_representable, round_to
from precision_lab.training.datasets import digits
from precision_lab.training.flat import flatten
from precision_lab.training.memory import (
    ZERO_STAGES,
    bytes_of,
    kept_for_backward,
    ledgers,
    memory_ledger,
    memory_report,
)
from precision_lab.training.models import MLP, Gradients, Parameters, Transformer, weights_copy
from precision_lab.training.models.parts import softmax_cross_entropy
from precision_lab.training.optimizers import SGD, Adam, AdamW, Optimizer
from precision_lab.training.step import Recipe, TrainingState, begin, training_step
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(0.01),
    "momentum": SGD(0.01, momentum=0.9),
    "adam": Adam(1e-3),
    "adamw": AdamW(1e-3, weight_decay=0.1),
}
UNUSUAL = (
    "weights=tf32",
    "weights=e6m9,master=fp32,moments=fp8_e5m2",
    "weights=fp4_e2m1fn,gradients=fp6_e3m2fn,update=kahan",
    "weights=fp8_e4m3fn,update=collage_plus,second_moment=bf16",
    "weights=fp32,main_gradients=fp32",
)
MODEL = MLP((64, 3, 10))
COUNT = 64 * 3 + 3 + 3 * 10 + 10


def state_of_a_run(storage: StorageConfig, optimizer: Optimizer) -> TrainingState:
    parameters = MODEL.init(0)
    plan = Recipe(MODEL, optimizer, storage, {name: array.shape for name, array in parameters.items()})
    state = begin(parameters, plan)
    for _ in range(2):
        state, _ = training_step(state, plan, digits().inputs[:8], digits().labels[:8])
    return state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("text", [*CONFIGURATIONS, *UNUSUAL])
def test_the_ledger_is_what_the_arrays_hold(text: str, optimizer: str) -> None:
    storage, of = StorageConfig.parse(text), OPTIMIZERS[optimizer]
    held = state_of_a_run(storage, of).optimizer.buffers
    ledger = memory_ledger(storage, of, COUNT)
    assert {b.name: b.bytes for b in ledger.buffers} == {name: array.nbytes for name, array in held.items()}
    assert {b.name: stored_dtype(b.format) for b in ledger.buffers} == {n: array.dtype for n, array in held.items()}
    assert len({id(array) for array in held.values()}) == len(held)  # none is counted twice
    assert ledger.total == sum(array.nbytes for array in held.values()) == ledger.bytes_per_parameter * COUNT


class Watched(MLP):
    """Keeps what forward and backward see of the parameters."""

    def loss_and_gradients(self, parameters: Parameters, *arguments: Any, **options: Any) -> Gradients:
        SEEN.append(flatten(parameters))
        return super().loss_and_gradients(parameters, *arguments, **options)


SEEN: list[np.ndarray] = []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("text", [*CONFIGURATIONS, *UNUSUAL])
def test_the_peak_is_what_a_micro_batch_finds_and_what_is_cast_for_it(text: str, optimizer: str) -> None:
    """Weights that are kept are those that forward sees; those that are not take room of their own."""
    storage, of = StorageConfig.parse(text), OPTIMIZERS[optimizer]
    state = state_of_a_run(storage, of)
    model = Watched(MODEL.sizes)
    SEEN.clear()
    plan = Recipe(model, of, storage, {name: array.shape for name, array in model.init(0).items()})
    training_step(state, plan, digits().inputs[:8], digits().labels[:8], micro_batches=2)
    first, second = (codec(storage.weights).encode(flat) for flat in SEEN)
    assert first.tobytes() == second.tobytes()  # of one step
    held = state.optimizer.buffers
    there = any(first.dtype == array.dtype and first.tobytes() == array.tobytes() for array in held.values())
    ledger = memory_ledger(storage, of, COUNT)
    peak = sum(array.nbytes for array in held.values()) + (0 if there else first.nbytes)
    assert ledger.peak_total == peak == ledger.peak_bytes_per_parameter * COUNT


def test_no_two_arrays_of_a_run_share_their_memory() -> None:
    for storage in CONFIGURATIONS.values():
        for optimizer in OPTIMIZERS.values():
            held = list(state_of_a_run(storage, optimizer).optimizer.buffers.values())
            for i, one in enumerate(held):
                assert not any(np.shares_memory(one, other) for other in held[i + 1 :])


def test_the_peaks_of_the_named_configurations() -> None:
    """Those that cast their weights anew hold the casts beside all else: 6 + 8 + 4, Hugging Face's guide to memory."""
    more = {
        name: (ledger.bytes_per_parameter, ledger.peak_bytes_per_parameter)
        for name, ledger in ledgers((), "adam", 7).items()
        if ledger.casts
    }
    assert more == dict.fromkeys(("autocast_fp16", "autocast_bf16", "fp8_hybrid"), (16, 18))
    for ledger in ledgers((), "adam", 7, 1000).values():  # activations are no part of it
        assert ledger.peak_bytes_per_parameter == ledger.bytes_per_parameter + 2 * len(ledger.casts)
        assert ledger.peak_total == 7 * ledger.peak_bytes_per_parameter


BYTES = {  # with SGD, momentum, Adam
    "fp32": (8, 12, 16),
    "autocast_fp16": (8, 12, 16),
    "autocast_bf16": (8, 12, 16),
    "master_fp16": (8, 12, 16),
    "master_bf16": (8, 12, 16),
    "megatron_bf16": (10, 14, 18),
    "bf16_fp32_grads": (6, 10, 14),
    "bf16_fp32_moments": (4, 8, 12),
    "pure_bf16": (4, 6, 8),
    "pure_fp16": (4, 6, 8),
    "bf16_stochastic": (4, 6, 8),
    "bf16_kahan": (6, 8, 10),
    "collage_light": (6, 8, 10),
    "collage_plus": (6, 8, 12),
    "fp8_hybrid": (8, 12, 16),
    "megatron_fp16": (12, 16, 20),
    "bf16_stochastic_fp32_v": (4, 6, 10),
    "bf16_kahan_fp32_v": (6, 8, 12),
}


def test_bytes_per_parameter_of_the_named_configurations() -> None:
    assert {
        name: tuple(memory_ledger(storage, OPTIMIZERS[o], 7).bytes_per_parameter for o in ("sgd", "momentum", "adam"))
        for name, storage in CONFIGURATIONS.items()
    } == BYTES
    for storage in CONFIGURATIONS.values():
        adam, adamw = (memory_ledger(storage, OPTIMIZERS[o], 7) for o in ("adam", "adamw"))
        assert adam.buffers == adamw.buffers


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_an_element_takes_whole_bytes(fmt: Any) -> None:
    assert bytes_of(fmt) == np.zeros(1, stored_dtype(fmt)).nbytes == {32: 4, 19: 4, 16: 2}.get(fmt.bits, 1)


def test_an_element_of_a_format_without_dtype() -> None:
    assert [bytes_of(get_format(name)) for name in ("e5m2", "e3m4", "e4m4", "e6m9", "e7m9", "e8m23")] == [
        1,
        1,
        2,
        2,
        4,
        4,
    ]


# ---- what forward leaves for backward ----


class Reads(dict[str, Any]):
    """Knows which of its values were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)


class ReadMLP(MLP):
    """Its backward pass is watched."""

    def _forward(self, *arguments: Any) -> Any:
        FORWARD[:] = [Reads(super()._forward(*arguments))]
        return FORWARD[0]


class ReadTransformer(Transformer):
    """Its backward pass is watched."""

    def _forward(self, *arguments: Any) -> Any:
        activations, kept = super()._forward(*arguments)
        FORWARD[:] = [Reads(part) for part in (activations, kept.normalised, kept.slopes)]
        return FORWARD[0], kept._replace(normalised=FORWARD[1], slopes=FORWARD[2])


FORWARD: list[Reads] = []


def left_for_backward(model: MLP | Transformer, inputs: Any, targets: Any, storage: StorageConfig) -> dict[str, Any]:
    """Every array of the forward pass that the backward pass asks for, under the names of the ledger."""
    weights = weights_copy(model.init(0), storage)
    model.loss_and_gradients(weights, inputs, targets, storage=storage)
    activations, *others = FORWARD
    found = {name: activations[name] for name in activations.names}
    logits = found.pop("logits")  # the loss turns them into probabilities, and backward starts from these
    found["probabilities of the classes"] = softmax_cross_entropy(logits, targets.reshape(-1), storage)[1]
    if not others:
        found["inputs"] = np.asarray(round_to(inputs, storage.activations))
        return found
    normalised, slopes = others
    for name in normalised.names:
        found |= {f"{name}, normalised": normalised[name].values, f"{name}, deviations": normalised[name].deviations}
    return found | {f"{layer}.slopes": slopes[layer] for layer in slopes.names}


WINDOW = np.random.default_rng(0).integers(0, 7, (3, 5))


@pytest.mark.parametrize("storage", ["fp32", "autocast_bf16", "autocast_bf16,sensitive=fp16"])
@pytest.mark.parametrize(
    ("model", "inputs", "targets"),
    [
        (ReadMLP((64, 5, 4, 10)), digits().inputs[:6], digits().labels[:6]),
        (ReadMLP((64, 5, 10), "sigmoid"), digits().inputs[:6], digits().labels[:6]),
        (ReadMLP((64, 10)), digits().inputs[:6], digits().labels[:6]),
        (ReadTransformer(7, 5, 4, 2, 2, 8), WINDOW, (WINDOW + 1) % 7),
        (ReadTransformer(7, 5, 4, 2, 1, 8, "relu"), WINDOW, (WINDOW + 1) % 7),
    ],
    ids=["relu", "sigmoid", "no hidden layer", "transformer", "transformer with relu"],
)
def test_what_is_kept_is_what_the_backward_pass_asks_for(
    model: MLP | Transformer, inputs: Any, targets: Any, storage: str
) -> None:
    stored = StorageConfig.parse(storage)
    held = left_for_backward(model, inputs, targets, stored)
    ledger = kept_for_backward(model, stored, len(inputs))
    assert {row.name: row.elements for row in ledger} == {name: array.size for name, array in held.items()}
    for row in ledger:
        assert np.all(is_representable(held[row.name], row.format)), row.name
    wide = [row.name for row in ledger if row.format == get_format("fp32")]
    for name in wide if storage != "fp32" else []:  # and they are no narrow numbers that are counted as wide
        assert not np.all(is_representable(held[name], "bf16")), name


def test_the_count_of_korthikanti() -> None:
    """2022: s b h (34 + 5 a s / h) bytes a layer in 16 bits, of which dropout has s b h (2 + 3 a s / h)."""
    for batch, s, h, a, layers in ((1, 1024, 768, 12, 12), (3, 10, 8, 2, 5)):
        model = Transformer(11, s, h, a, layers, 4 * h)
        rows = kept_for_backward(model, StorageConfig(), batch)
        of_layers = [row for row in rows if row.name.startswith("layer") and "deviations" not in row.name]
        assert 2 * sum(row.elements for row in of_layers) == layers * (batch * s * h * 32 + 2 * a * s * s * batch)


def test_half_of_nothing_wide() -> None:
    """Where norms and loss are stored narrowly as well, and there is no GELU, everything but deviations is halved."""
    model = Transformer(7, 5, 4, 2, 1, 8, "relu")
    wide, narrow = (
        kept_for_backward(model, StorageConfig.parse(text), 2) for text in ("fp32", "autocast_bf16,sensitive=bf16")
    )
    halved = [a.bytes / b.bytes for a, b in zip(wide, narrow, strict=True) if "deviations" not in a.name]
    assert set(halved) == {2.0}


def test_examples_are_counted() -> None:
    with pytest.raises(ValueError, match=r"^examples must be an integer of at least 1, got 0"):
        kept_for_backward(MODEL, StorageConfig(), 0)


# ---- several ranks ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 2 + 2 + 12: each stage divides more of it by 8 (Rajbhandari et al. 2020, figure 1)
        ("master_bf16", (16, 2 + 2 + 12 / 8, 2 + 14 / 8, 2)),
        ("fp32", (16, 4 + 4 + 8 / 8, 4 + 12 / 8, 2)),
        # float32 parameters that every rank casts for itself are not the optimizer's
        ("autocast_bf16", (16, 4 + 4 + 8 / 8, 4 + 12 / 8, 2)),
        ("megatron_bf16", (18, 2 + 4 + 12 / 8, 2 + 16 / 8, 18 / 8)),
        # 4 + 16/8: main gradients are the optimizer's (Megatron Core's guide, "Distributed Optimizer")
        ("megatron_fp16", (20, 4 + 16 / 8, 2 + 18 / 8, 20 / 8)),
        ("pure_bf16", (8, 2 + 2 + 4 / 8, 2 + 6 / 8, 1)),
        ("bf16_kahan", (10, 2 + 2 + 6 / 8, 2 + 8 / 8, 10 / 8)),
        ("collage_plus", (12, 2 + 2 + 8 / 8, 2 + 10 / 8, 12 / 8)),
    ],
)
def test_what_each_of_8_ranks_holds(name: str, expected: tuple[float, ...]) -> None:
    ledger = memory_ledger(CONFIGURATIONS[name], AdamW(1e-3), 8000)
    assert tuple(ledger.per_rank(8, stage) / 8000 for stage in ZERO_STAGES) == expected
    assert ledger.per_rank(8) == ledger.per_rank(8, 3)
    assert {ledger.per_rank(1, stage) for stage in ZERO_STAGES} == {ledger.total}


def test_the_numbers_of_the_paper() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5e9 parameters, 64 ranks, Adam; 120, 31.4, 16.6 and 1.9 GB."""
    ledger = memory_ledger(CONFIGURATIONS["master_fp16"], Adam(1e-3), 7_500_000_000)
    held = [round(ledger.per_rank(64, stage) / 1e9, 1) for stage in ZERO_STAGES]
    assert held == [120.0, 31.4, 16.6, 1.9]


def test_shares_are_whole_elements() -> None:
    ledger = memory_ledger(CONFIGURATIONS["master_bf16"], AdamW(1e-3), 9)
    assert ledger.per_rank(8, 3) == 2 * 16
    assert ledger.per_rank(9, 3) == ledger.per_rank(100, 3) == 16


@pytest.mark.parametrize(
    ("name", "weights", "gradients"),
    [("fp32", 4, 4), ("master_bf16", 2, 2), ("megatron_bf16", 2, 4), ("autocast_bf16", 2, 4), ("pure_bf16", 2, 2)],
)
def test_what_a_step_sends(name: str, weights: int, gradients: int) -> None:
    ledger = memory_ledger(CONFIGURATIONS[name], Adam(1e-3), 1000)
    assert ledger.traffic(8) == {
        "DDP all-reduce": 2 * 7 / 8 * gradients * 1000,
        "FSDP all-gather": 2 * 7 / 8 * weights * 1000,
        "FSDP reduce-scatter": 7 / 8 * gradients * 1000,
    }
    assert set(ledger.traffic(1).values()) == {0.0}
    assert ledger.traffic(8, "fp8_e5m2") == ledger.traffic(8) | {
        "DDP all-reduce": 2 * 7 / 8 * 1000,
        "FSDP reduce-scatter": 7 / 8 * 1000,
    }


# ---- the rows ----


def test_the_rows_of_a_ledger() -> None:
    ledger = memory_ledger(CONFIGURATIONS["autocast_fp16"], AdamW(1e-3), 10, activations=33)
    assert memory_report({"mine": ledger}, 2) == {
        "kind": "precision_lab memory",
        "version": 1,
        "ranks": 2,
        "ledgers": {"mine": ledger.to_dict()},
        "per_rank": {"mine": {"ZeRO-0": 160, "ZeRO-1": 120, "ZeRO-2": 100, "ZeRO-3": 80}},
        "traffic": {"mine": {"DDP all-reduce": 40.0, "FSDP all-gather": 20.0, "FSDP reduce-scatter": 20.0}},
    }
    assert ledger.to_dict() == {
        "storage": str(CONFIGURATIONS["autocast_fp16"]),
        "optimizer": "adamw",
        "parameters": 10,
        "bytes_per_parameter": 16,
        "peak_bytes_per_parameter": 18,
        "total": 160,
        "peak_total": 180,
        "buffers": [
            {"name": name, "format": "fp32", "elements": 10, "bytes": 40, "divided_from": stage}
            for name, stage in (("gradients", 2), ("master", 3), ("first_moment", 1), ("second_moment", 1))
        ],
        "transient": [
            {"name": "cast weights", "format": "fp16", "elements": 10, "bytes": 20, "divided_from": 1},
            {"name": "activations", "format": "fp16", "elements": 33, "bytes": 66, "divided_from": 1},
        ],
    }
    json.dumps(ledger.to_dict())
    assert memory_ledger(CONFIGURATIONS["pure_bf16"], SGD(0.1), 10).transient == ()


@pytest.mark.parametrize("count", [0, -1, 1.5, 7e9, True, "7"])
def test_refusals(count: Any) -> None:
    ledger = memory_ledger(CONFIGURATIONS["fp32"], SGD(0.1), 1)
    with pytest.raises(ValueError, match=r"^parameters must be an integer of at least 1, got "):
        memory_ledger(CONFIGURATIONS["fp32"], SGD(0.1), count)
    for ask in (ledger.per_rank, ledger.traffic):
        with pytest.raises(ValueError, match=r"^ranks must be an integer of at least 1, got "):
            ask(count)
    if count != 0:
        with pytest.raises(ValueError, match=r"^activations must be an integer of at least 0, got "):
            memory_ledger(CONFIGURATIONS["fp32"], SGD(0.1), 1, activations=count)


@pytest.mark.parametrize("stage", [-1, 4, 1.5, "3"])
def test_a_stage_that_is_none(stage: Any) -> None:
    with pytest.raises(ValueError, match=r"^stage must be one of 0, 1, 2, 3; got "):
        memory_ledger(CONFIGURATIONS["fp32"], SGD(0.1), 1).per_rank(2, stage)
