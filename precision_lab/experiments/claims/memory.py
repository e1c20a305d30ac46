"""Claims on bytes: each is a sum over the rows of the ledger, or over the shapes of what backward needs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from precision_lab.experiments.claims import runs
from precision_lab.experiments.claims.claim import (
    ARTICLE,
    BUFFER_BYTES,
    CHAPTER,
    FORUM_BF16,
    FORUM_FP32,
    LESSON,
    STATE_BYTES,
    Arithmetic,
    Ground,
    Verdict,
    decide,
    every,
    fails,
    holds,
    only_if,
    opposite,
    share,
    some,
    stated,
    untested,
)
from precision_lab.numerics.formats import FloatFormat
from precision_lab.training.config import TrainingConfig
from precision_lab.training.memory import MemoryLedger, bytes_of, kept_for_backward, memory_ledger
from precision_lab.training.models import MLP, Transformer
from precision_lab.training.optimizers import Adam
from precision_lab.training.storage import StorageConfig

_claim = partial(stated, subject="Memory", rests_on=Ground.LEDGER)
_PARAMETERS = 10**9
_RANKS = 8
_BATCHES = (1, 32)
_WIDE, _NARROW = StorageConfig.parse("fp32"), StorageConfig.parse("autocast_bf16")
_HALF = 1.95
"""From here on a ratio is rounded to two."""

GPT2 = Transformer(50257, context=1024, width=768, heads=12, layers=12, hidden=3072)
"""The shapes of the smallest GPT-2 (Radford et al. 2019); its head is the matrix of the embeddings."""

GPT_LIKE = Transformer(1000, context=128, width=256, heads=4, layers=4, hidden=1024)
"""The shapes of a transformer of 3.7 million parameters, head of its own, that the tests let torch train."""

_GPT_WINDOWS = 4


def parameters_of(model: Transformer, *, tied: bool) -> int:
    """Return the number of parameters; with tied embeddings the head has none of its own."""
    width, hidden = model.width, model.hidden
    layer = 4 * width + (width + 1) * 3 * width + (width + 1) * width + (width + 1) * hidden + (hidden + 1) * width
    embeddings = (model.vocabulary + model.context) * width
    return embeddings + model.layers * layer + 2 * width + (0 if tied else model.vocabulary * width)


def _ledger(storage: str, *, parameters: int = _PARAMETERS) -> MemoryLedger:
    return memory_ledger(StorageConfig.parse(storage), Adam(1e-3), parameters)


def _bytes(storage: str) -> int:
    """Return the bytes per parameter with Adam."""
    return _ledger(storage).bytes_per_parameter


def _rows(storage: str) -> dict[str, int]:
    return {b.name: bytes_of(b.format) for b in _ledger(storage).buffers}


@_claim(
    "same-speed-as-fp16",
    subject="Speed",
    text="bf16 is as fast as fp16.",
    source=f"{LESSON}, step 5",
    rests_on=Ground.NOTHING,
)
def _same_speed(arithmetic: Arithmetic) -> Verdict:
    return untested(
        "How long a processor takes is not arithmetic: the same program in both formats, on each kind of tensor core "
        "that is meant, would tell."
    )


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
    root=STATE_BYTES,
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
    root=BUFFER_BYTES,
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
    root=BUFFER_BYTES,
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
    root=STATE_BYTES,
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


def _times_less(model: MLP | Transformer, examples: int, *, casts: int = 0, slopes: FloatFormat | None = None) -> float:
    """Return how many times less backward needs with autocast, with `casts` of weights; slopes in a format or as is."""
    wide = sum(buffer.bytes for buffer in kept_for_backward(model, _WIDE, examples))
    narrow = sum(
        buffer.elements * bytes_of(slopes if slopes and buffer.name.endswith(".slopes") else buffer.format)
        for buffer in kept_for_backward(model, _NARROW, examples)
    )
    return wide / (narrow + casts * bytes_of(_NARROW.weights))


def _elements(model: Transformer, windows: int) -> int:
    """Return how many numbers forward leaves for backward."""
    return sum(buffer.elements for buffer in kept_for_backward(model, StorageConfig(), windows))


def _bill(windows: int) -> float:
    """Return how many times less GPT-2 takes with autocast: the state, and all that backward needs in 16 bits."""
    parameters, kept = parameters_of(GPT2, tied=True), _elements(GPT2, windows)
    bills = [
        memory_ledger(storage, Adam(1e-3), parameters).total + kept * bytes_of(storage.activations)
        for storage in (_WIDE, _NARROW)
    ]
    return bills[0] / bills[1]


def _bills() -> dict[str, float]:
    one, many = _BATCHES
    return {"one": one, "many": many, "least": _bill(one), "most": _bill(many)}


@_claim(
    "halves-the-memory",
    text="Mixed precision halves the memory bill.",
    source=f"{ARTICLE}, “Where it goes wrong”; {LESSON}, introduction",
    root=STATE_BYTES,
)
def _halves(arithmetic: Arithmetic) -> Verdict:
    evidence = {"autocast": _bytes("autocast_bf16"), "fp32": _bytes("fp32"), **_bills()}
    words = (
        "The state takes {autocast} bytes per parameter, as in fp32: {fp32}. Only what is kept for the backward pass "
        "shrinks, to a half at best: GPT-2 takes {least:.2f} times less in all at a batch of {one}, {most:.2f} times "
        "at {many}."
    )
    if evidence["least"] >= _HALF:
        return holds(words, **evidence)
    if 2 > evidence["most"] > evidence["least"]:
        return only_if("nearly all of it is activations", words, **evidence)
    return fails(words, **evidence)


@_claim(
    "does-not-halve-the-total",
    text="It does not halve total memory, because the fp32 master weights and the optimizer state remain.",
    source=f"{CHAPTER}, “Memory savings”",
)
def _total_remains(arithmetic: Arithmetic) -> Verdict:
    rows = _rows("master_bf16")
    evidence = {
        "remain": sum(rows[name] for name in ("master", "first_moment", "second_moment")),
        "state": sum(rows.values()),
        "fp32": _bytes("fp32"),
        **_bills(),
    }
    words = (
        "Master copy and moments are {remain} of {state} bytes per parameter, and fp32 alone takes {fp32}. All of "
        "GPT-2 takes {least:.2f} times less at a batch of {one}, {most:.2f} times at {many}; at no batch is it a half."
    )
    remains = 2 * evidence["state"] > evidence["fp32"] and 2 * evidence["remain"] > evidence["state"]
    return (holds if remains and max(evidence["least"], evidence["most"]) < 2 else fails)(words, **evidence)


@_claim(
    "activations-dominate",
    text="Activations dominate memory in deep models.",
    source=f"{CHAPTER}, “Memory savings”",
)
def _dominate(arithmetic: Arithmetic) -> Verdict:
    one, many = _BATCHES
    deeper = replace(GPT2, layers=4 * GPT2.layers)

    def beside_state(model: Transformer, windows: int) -> float:
        kept = _elements(model, windows) * bytes_of(StorageConfig().activations)
        return kept / _ledger("fp32", parameters=parameters_of(model, tied=True)).total

    evidence = {
        "one": one,
        "many": many,
        "least": beside_state(GPT2, one),
        "most": beside_state(GPT2, many),
        "layers": GPT2.layers,
        "more": deeper.layers,
        "deep": beside_state(deeper, one),
        "tokens": GPT2.context / beside_state(GPT2, one),
    }
    words = (
        "In fp32 they are {least:.2f} times as large as the state of GPT-2 at a batch of {one}, {most:.0f} times at "
        "{many}. Depth multiplies both: {more} layers in place of {layers} make {deep:.2f} of {least:.2f}."
    )
    if min(evidence["least"], evidence["deep"]) > 1:
        return holds(words, **evidence)
    if evidence["most"] > 1:
        return only_if("a batch has many tokens, for GPT-2 more than {tokens:,.0f}", words, **evidence)
    return fails(words, **evidence)


@_claim(
    "halves-activations",
    text="Mixed precision halves activation memory.",
    source=f"{CHAPTER}, “Memory savings”; {ARTICLE}, introduction",
)
def _activations(arithmetic: Arithmetic) -> Verdict:
    digits, batch = runs.model(), TrainingConfig().batch_size
    of_digits = sum(array.size for array in digits.init(0).values())
    of_gpt = parameters_of(GPT_LIKE, tied=False)
    pairs = zip(*(kept_for_backward(GPT_LIKE, storage, _GPT_WINDOWS) for storage in (_WIDE, _NARROW)), strict=True)
    shrunk = [(wide, narrow) for wide, narrow in pairs if narrow.bytes < wide.bytes]
    evidence = {
        "digits": _times_less(digits, batch),
        "digits_casts": _times_less(digits, batch, casts=of_digits),
        "gpt": _times_less(GPT_LIKE, _GPT_WINDOWS),
        "gpt_casts": _times_less(GPT_LIKE, _GPT_WINDOWS, casts=of_gpt),
        "input": _times_less(GPT_LIKE, _GPT_WINDOWS, slopes=_NARROW.activations),
        "share": share(sum(wide.elements for wide, _ in shrunk), _elements(GPT_LIKE, _GPT_WINDOWS)),
        "rest": share(sum(wide.bytes for wide, _ in shrunk), sum(narrow.bytes for _, narrow in shrunk)),
    }
    words = (
        "What backward reads of a batch takes {digits:.2f} times less in the digits network, {gpt:.2f} times in a "
        "transformer, whose norms, GELU's slopes and loss keep fp32 ({input:.2f} if GELU's input is kept); with "
        "the casts of the weights {digits_casts:.2f} and {gpt_casts:.2f}. The other {share:.0%} take {rest:.0f} times "
        "less."
    )
    if min(evidence[name] for name in ("digits", "gpt", "digits_casts", "gpt_casts")) >= _HALF:
        return holds(words, **evidence)
    if evidence["rest"] >= _HALF:
        return only_if("norms, softmax inputs and the cast weights are not counted", words, **evidence)
    return fails(words, **evidence)


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
    fp32 = _ledger("fp32").traffic(_RANKS)
    ddp = _ledger("autocast_bf16").traffic(_RANKS)
    fsdp = _ledger("autocast_bf16").traffic(_RANKS, "bf16")
    evidence = {
        "gather": fp32["FSDP all-gather"] / fsdp["FSDP all-gather"],
        "scatter": fp32["FSDP reduce-scatter"] / fsdp["FSDP reduce-scatter"],
        "reduce": fp32["DDP all-reduce"] / fsdp["DDP all-reduce"],
        "autocast": ddp["DDP all-reduce"] / fp32["DDP all-reduce"],
    }
    words = (
        "FSDP's MixedPrecision keeps fp32 parameters and gathers {gather:.0f} and scatters {scatter:.0f} times less; "
        "an all-reduce of bf16 gradients is {reduce:.0f} times less. DDP under autocast sends the fp32 gradients, "
        "{autocast:.0%} of fp32's volume."
    )
    sent = min(evidence["gather"], evidence["scatter"], evidence["reduce"]) == 2
    if sent and evidence["autocast"] == 0.5:
        return holds(words, **evidence)
    if sent:
        return only_if(
            "the gradients are sent in bf16, as FSDP does and DDP under autocast does not", words, **evidence
        )
    return fails(words, **evidence)


@_claim(
    "resident-state-halves",
    text="With bf16 the resident sharded state of FSDP is halved as well.",
    source=f"{ARTICLE}, “What it composes with”",
    root=STATE_BYTES,
)
def _resident(arithmetic: Arithmetic) -> Verdict:
    fp32, master, pure = (_ledger(s).per_rank(_RANKS, 3) / 1e9 for s in ("fp32", "master_bf16", "pure_bf16"))
    words = (
        "A billion parameters on {ranks} ranks leave {fp32:.1f} GB on each in fp32 and {master:.1f} GB in bf16 with "
        "master weights and fp32 moments; {pure:.1f} GB only where all of it is bf16."
    )
    return (holds if 2 * master <= fp32 else fails)(words, ranks=_RANKS, fp32=fp32, master=master, pure=pure)


@_claim(
    "same-memory-as-fp16",
    text="bf16 takes the same memory as fp16.",
    source=f"{LESSON}, step 5",
)
def _same_memory(arithmetic: Arithmetic) -> Verdict:
    pairs = [[_bytes(f"{kind}_{fmt}") for fmt in ("bf16", "fp16")] for kind in ("autocast", "master", "pure")]
    evidence = {
        **{kind: bf16 for kind, (bf16, _) in zip(("autocast", "master", "pure"), pairs, strict=True)},
        "bf16": _bytes("megatron_bf16"),
        "fp16": _bytes("megatron_fp16"),
        "copy": _rows("megatron_fp16")["main_gradients"],
    }
    words = (
        "{autocast} bytes per parameter with autocast, {master} with a master copy, {pure} without, in either. "
        "Megatron's {bf16} and {fp16} are two recipes: gradients of bf16 weights are kept in fp32, those of fp16 ones "
        "beside a copy of {copy} bytes."
    )
    return (holds if all(bf16 == fp16 for bf16, fp16 in pairs) else fails)(words, **evidence)


@_claim(
    "stick-with-autocast",
    text="For training in bf16 it is best to stick with autocast.",
    source=f"{FORUM_BF16}, both answers",
    rests_on=Ground.RUNS,
)
def _stick(arithmetic: Arithmetic) -> Verdict:
    names = {
        "autocast": "autocast_bf16",
        "moments": "bf16_fp32_moments",
        "pure": "pure_bf16",
        "kahan": "bf16_kahan_fp32_v",
        "stochastic": "bf16_stochastic_fp32_v",
    }
    ratios = {name: runs.paired(storage) for name, storage in names.items()}
    sizes = {f"{name}_bytes": _bytes(storage) for name, storage in names.items()}
    words = (
        "Of fp32's loss autocast ({autocast_bytes} bytes per parameter) makes {autocast}, bf16 weights without a copy "
        "{moments} ({moments_bytes} bytes) and {pure} ({pure_bytes}); but with a second moment in fp32 Kahan's "
        "compensation {kahan} ({kahan_bytes}), stochastic rounding {stochastic} ({stochastic_bytes})."
    )
    keeps = {name: ratio.keeps for name, ratio in ratios.items()}
    others_lose = every(*(opposite(keeps[name]) for name in ("moments", "pure")))
    smaller = some(keeps["kahan"], keeps["stochastic"])
    best = every(keeps["autocast"], others_lose)
    return decide(
        (every(best, opposite(smaller)), holds),
        (best, partial(only_if, "the choice is between it and bf16 weights that are rounded ties to even")),
        otherwise=fails,
    )(words, **ratios, **sizes).after(runs.trained("autocast_bf16").config)
