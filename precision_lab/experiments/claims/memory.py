"""Claims on bytes: each is a sum over the rows of the ledger."""

from __future__ import annotations

from functools import cache, partial

from precision_lab.experiments.claims import runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    CHAPTER,
    FORUM_BF16,
    FORUM_FP32,
    LESSON,
    Arithmetic,
    Ground,
    Verdict,
    fails,
    holds,
    only_if,
    stated,
)
from precision_lab.training.memory import MemoryLedger, bytes_of, memory_ledger
from precision_lab.training.optimizers import Adam
from precision_lab.training.storage import StorageConfig

_claim = partial(stated, subject="Memory", rests_on=Ground.LEDGER)
_PARAMETERS = 10**9
_RANKS = 8


def _ledger(storage: str, *, parameters: int = _PARAMETERS, activations: int = 0) -> MemoryLedger:
    return memory_ledger(StorageConfig.parse(storage), Adam(1e-3), parameters, activations=activations)


def _bytes(storage: str) -> int:
    """Return the bytes per parameter with Adam."""
    return _ledger(storage).bytes_per_parameter


def _rows(storage: str) -> dict[str, int]:
    return {b.name: bytes_of(b.format) for b in _ledger(storage).buffers}


@_claim(
    "sixteen-bytes",
    text="bf16 weights and gradients, fp32 master copy and moments: 16 bytes a parameter; 12 without the copy.",
    source=f"{FORUM_BF16}, the question, options 1 and 3",
)
def _sixteen(arithmetic: Arithmetic) -> Verdict:
    evidence = {"master": _bytes("master_bf16"), "without": _bytes("bf16_fp32_moments"), "fp32": _bytes("fp32")}
    words = "The ledger has {master} and {without} bytes; fp32 alone takes {fp32}."
    return (holds if (evidence["master"], evidence["without"]) == (16, 12) else fails)(words, **evidence)


@_claim(
    "fourteen-bytes",
    text="bf16 weights with fp32 gradient accumulation and fp32 optimizer state, as in Megatron, take 14 bytes.",
    source=f"{FORUM_BF16}, the question, option 2",
)
def _fourteen(arithmetic: Arithmetic) -> Verdict:
    evidence = {"plain": _bytes("bf16_fp32_grads"), "megatron": _bytes("megatron_bf16")}
    words = "Without a master copy they take {plain} bytes; with it, which Megatron's optimizer keeps, {megatron}."
    if evidence["plain"] != 14:
        return fails(words, **evidence)
    if evidence["megatron"] != 14:
        return only_if("there is no master copy", words, **evidence)
    return holds(words, **evidence)


@_claim(
    "fourteen-is-sixteen",
    text="That configuration is not 14 but 16 bytes: weights 2, master copy 4, gradients 2, optimizer state 8.",
    source=f"{FORUM_BF16}, the first answer",
)
def _not_fourteen(arithmetic: Arithmetic) -> Verdict:
    rows = _rows("megatron_bf16")
    evidence = {
        "gradients": rows["gradients"],
        "total": _bytes("megatron_bf16"),
        "narrow": _rows("master_bf16")["gradients"],
        "other": _bytes("master_bf16"),
        "plain": _bytes("bf16_fp32_grads"),
    }
    words = (
        "The question was of gradients in fp32, {gradients} bytes: {plain} in all without a master copy, {total} with "
        "it. {other} is the sum with gradients of {narrow} bytes, another configuration."
    )
    return (holds if evidence["total"] == 16 else fails)(words, **evidence)


@_claim(
    "four-times-four",
    text="Master weight, fp16 weight, first and second moment take 4 + 4 + 4 + 4 = 16 bytes.",
    source=f"{CHAPTER}, “Memory savings”",
)
def _four_times_four(arithmetic: Arithmetic) -> Verdict:
    rows = _rows("master_fp16")
    listed = [rows[name] for name in ("master", "weights", "first_moment", "second_moment")]
    evidence = dict(zip(("master", "weight", "first", "second"), listed, strict=True)) | {
        "sum": sum(listed),
        "gradient": rows["gradients"],
        "total": sum(rows.values()),
    }
    words = (
        "An fp16 weight has {weight} bytes: {master} + {weight} + {first} + {second} = {sum}. It is {total} with the "
        "gradients, {gradient} more, which the list leaves out."
    )
    return (holds if listed == [4, 4, 4, 4] else fails)(words, **evidence)


@_claim(
    "less-than-fp32",
    text="With Adam these 16 bytes are only modestly less than the 8 bytes of training in fp32 alone.",
    source=f"{CHAPTER}, “Memory savings”",
)
def _less(arithmetic: Arithmetic) -> Verdict:
    fp32 = _rows("fp32")
    evidence = {
        "mixed": _bytes("master_fp16"),
        "fp32": _bytes("fp32"),
        "kept": sum(fp32.values()) - fp32["gradients"],
        "claimed": 8,
    }
    words = (
        "{mixed} is not less than {claimed}; and fp32 alone takes {fp32} bytes, {kept} without the gradients: weight "
        "and two moments. Mixed precision saves nothing per parameter."
    )
    return (holds if evidence["mixed"] < evidence["fp32"] == evidence["claimed"] else fails)(words, **evidence)


@_claim(
    "halves-the-memory",
    text="Mixed precision halves the memory bill.",
    source=f"{ARTICLE}, “Where it goes wrong”; {LESSON}, introduction",
)
def _halves(arithmetic: Arithmetic) -> Verdict:
    evidence = {
        "master": _bytes("master_bf16"),
        "autocast": _bytes("autocast_bf16"),
        "fp32": _bytes("fp32"),
        "pure": _bytes("pure_bf16"),
        "activations": _activation_ratio("autocast_bf16"),
    }
    words = (
        "Per parameter it takes {master} bytes with a master copy and {autocast} with autocast, as fp32 does: {fp32}. "
        "{activations:.0f} times less is true of activations, and of {pure} bytes with everything in bf16."
    )
    return (holds if 2 * max(evidence["master"], evidence["autocast"]) <= evidence["fp32"] else fails)(
        words, **evidence
    )


@cache
def _activations_of_the_digits() -> int:
    """Return how many numbers forward keeps for backward, an example."""
    model = runs.model()
    kept = model.forward(model.init(0), runs.data()[0].inputs[:1])
    return model.sizes[0] + sum(array.size for array in kept.values())


def _activation_ratio(storage: str) -> float:
    wide, narrow = (_ledger(s, activations=1).transient[-1].bytes for s in ("fp32", storage))
    return wide / narrow


@_claim(
    "halves-activations",
    text="Mixed precision halves activation memory.",
    source=f"{CHAPTER}, “Memory savings”; {ARTICLE}, introduction",
)
def _activations(arithmetic: Arithmetic) -> Verdict:
    evidence = {"times": _activation_ratio("autocast_bf16"), "values": _activations_of_the_digits()}
    words = (
        "The {values} numbers that the digits network keeps of an example take {times:.1f} times less. What a "
        "framework keeps in fp32 (the inputs of softmax and loss, norms) is not halved."
    )
    return (holds if evidence["times"] == 2 else fails)(words, **evidence)


@_claim(
    "sixteen-bit-parameters-save-more",
    text="Keeping the parameters themselves in 16 bits saves even more memory than mixed precision.",
    source=f"{FORUM_FP32}, the question",
)
def _save_more(arithmetic: Arithmetic) -> Verdict:
    evidence = {
        "mixed": _bytes("autocast_bf16"),
        "weights": _bytes("weights=bf16,gradients=fp32,moments=fp32"),
        "gradients": _bytes("bf16_fp32_moments"),
        "pure": _bytes("pure_bf16"),
    }
    words = (
        "{weights} bytes per parameter with bf16 weights, {gradients} with their gradients too, {pure} with "
        "everything, against {mixed} with autocast. What it costs is another claim: see no-master-degrades-descent."
    )
    return (holds if evidence["pure"] < evidence["weights"] < evidence["mixed"] else fails)(words, **evidence)


@_claim(
    "traffic-halves",
    text="bf16 halves FSDP's all-gather and reduce-scatter volume, and the gradient all-reduce.",
    source=f"{ARTICLE}, “What it composes with”",
)
def _traffic(arithmetic: Arithmetic) -> Verdict:
    fp32, master, autocast = (_ledger(s).traffic(_RANKS) for s in ("fp32", "master_bf16", "autocast_bf16"))
    operations = {"reduce": "DDP all-reduce", "gather": "FSDP all-gather", "scatter": "FSDP reduce-scatter"}
    evidence = {name: fp32[operation] / master[operation] for name, operation in operations.items()}
    evidence["autocast"] = autocast[operations["reduce"]] / fp32[operations["reduce"]]
    words = (
        "All-gather {gather:.0f}, reduce-scatter {scatter:.0f} and all-reduce {reduce:.0f} times less with bf16 "
        "weights and gradients; with autocast gradients are kept and sent in fp32, {autocast:.0%} of its volume."
    )
    if min(evidence["reduce"], evidence["gather"], evidence["scatter"]) == 2 and evidence["autocast"] == 0.5:
        return holds(words, **evidence)
    if min(evidence["reduce"], evidence["gather"], evidence["scatter"]) == 2:
        return only_if("the gradients, too, are kept in bf16", words, **evidence)
    return fails(words, **evidence)


@_claim(
    "resident-state-halves",
    text="With bf16 the resident sharded state of FSDP is halved as well.",
    source=f"{ARTICLE}, “What it composes with”",
)
def _resident(arithmetic: Arithmetic) -> Verdict:
    fp32, master, pure = (_ledger(s).per_rank(_RANKS, 3) / 1e9 for s in ("fp32", "master_bf16", "pure_bf16"))
    words = (
        "A billion parameters on {ranks} ranks leave {fp32:.1f} GB on each in fp32 and {master:.1f} GB in bf16 with "
        "master weights and fp32 moments; {pure:.1f} GB only where all of it is bf16."
    )
    return (holds if 2 * master <= fp32 else fails)(words, ranks=_RANKS, fp32=fp32, master=master, pure=pure)
