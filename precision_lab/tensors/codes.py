"""Which tensors hold codes of a scaled format: numbers that mean nothing without the scales that lie beside them.

====================  ==========================================  ====================================================
who                   codes                                       their scales
====================  ==========================================  ====================================================
DeepSeek, Qwen        ``X.weight`` (fp8)                          ``X.weight_scale_inv``; DeepSeek's own ``X.scale``
compressed-tensors    ``X.weight`` (fp8, int8),                   ``X.weight_scale``, for NVFP4 over
                      ``X.weight_packed`` (bytes, int32)          ``X.weight_global_scale``
ModelOpt              ``X.weight`` (fp8, or two a byte)           ``X.weight_scale``, for NVFP4 times
                                                                  ``X.weight_scale_2``
ComfyUI               ``X.weight`` (fp8)                          ``X.scale_weight``
gpt-oss               ``X_blocks`` (two a byte)                   ``X_scales``
experts               ``X`` (fp8)                                 ``X_scale``, ``X_scale_inv``
GPTQ, AWQ             ``X.qweight`` (int32)                       ``X.scales``
bitsandbytes          ``X.weight`` (int8; two a byte)             ``X.SCB``; ``X.weight.absmax``
torchao, quanto       ``X.weight_qdata``, ``X.weight._data``      ``X.weight_scale``, ``X.weight._scale``
====================  ==========================================  ====================================================

A tensor is taken for codes only where such a scale is there, with no more elements than it; integers only where they
are a matrix. Scales may lie in another shard of the same model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

FP8 = ("float8_e4m3", "float8_e5m2", "float8_e3m4")
_INTEGERS = ("int8", "uint8", "int32", "int4", "uint4", "float4", "F4", "F6")
_PACKED = ("_packed", "_blocks", "_qdata")
_COMPANIONS = (
    *("weight_scale_2", "weight_global_scale", "input_scale", "scale_input", "output_scale", "k_scale", "v_scale"),
    *("weight_zero_point", "input_zero_point", "output_zero_point", "input_global_scale"),
    *("weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
)
"""Scales, zero points and tables that lie beside codes, besides the scale that makes them codes."""
UNSCALED = "fp8 without a scale beside it: read as values"


class Named(Protocol):
    """What is asked of a tensor."""

    @property
    def name(self) -> str:
        """Its parts joined by dots, or by slashes."""

    @property
    def dtype(self) -> str:
        """The name of its elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""


@dataclass(frozen=True)
class Codes:
    """What was found of codes in a place, all by the numbers of its tensors.

    Attributes
    ----------
    reasons : mapping of int to str
        The tensors of codes, and why they are not read.
    scales : frozenset of int
        What scales them.
    unscaled : tuple of int
        Tensors of fp8 that nothing scales.

    """

    reasons: Mapping[int, str]
    scales: frozenset[int]
    unscaled: tuple[int, ...]


def find_codes(tensors: Sequence[Named]) -> Codes:
    """Find the codes among all tensors of a place, all shards together."""
    dtypes = {dtype for dtype in {tensor.dtype for tensor in tensors} if dtype.startswith((*FP8, *_INTEGERS))}
    if not dtypes:
        return Codes({}, frozenset(), ())
    narrow = [i for i, tensor in enumerate(tensors) if tensor.dtype in dtypes]
    numbers = {plain_name(tensor.name): i for i, tensor in enumerate(tensors)}
    reasons: dict[int, str] = {}
    scales: set[int] = set()
    for i in narrow:
        fp8 = tensors[i].dtype.startswith(FP8)
        if not fp8 and len(tensors[i].shape) < 2:
            continue
        name = plain_name(tensors[i].name)
        before, _, last = name.rpartition(".")
        before += "." * bool(before)
        there = (numbers[scale] for scale in _scales_of(name, before, last) if scale in numbers)
        scale = next((j for j in there if j != i and _size(tensors[j]) <= _size(tensors[i])), None)
        if scale is None:
            continue
        beside = [before + companion for companion in _COMPANIONS if before + companion in numbers]
        scales |= {scale, *(numbers[companion] for companion in beside)}
        used = plain_name(tensors[scale].name).rpartition(".")[2]
        reasons[i] = _reason(fp8, used, tuple(companion.rpartition(".")[2] for companion in beside[:2]))
    unscaled = (i for i in narrow if tensors[i].dtype.startswith(FP8) and i not in reasons and i not in scales)
    return Codes(reasons, frozenset(scales), tuple(unscaled))


def is_code(reason: str | None) -> bool:
    """Say whether that is why tensors of codes are not read."""
    return reason is not None and reason.startswith("codes: ")


def _scales_of(name: str, before: str, last: str) -> Iterator[str]:
    """Yield what the scale of codes of this name may be called."""
    stem = next((name.removesuffix(ending) for ending in _PACKED if last.endswith(ending)), name)
    yield from (f"{stem}_scale_inv", f"{stem}_scale", f"{stem}_scales", f"{stem}.absmax")
    if last == "weight":
        yield from (f"{before}scale_weight", f"{before}scale", f"{before}SCB")
    elif last == "qweight":
        yield f"{before}scales"
    elif last == "_data":
        yield f"{before}_scale"


def _size(tensor: Named) -> int:
    return math.prod(tensor.shape)


@lru_cache(maxsize=1 << 6)
def _reason(fp8: bool, scale: str, companions: tuple[str, ...]) -> str:
    """Return one text for all codes of a layout."""
    times = f"'{scale}'"
    if "weight_scale_2" in companions:
        times += " times 'weight_scale_2'"
    if "weight_global_scale" in companions:
        times += " over 'weight_global_scale'"
    value = "code times" if fp8 else "not known without"
    return f"codes: the values are {value} {times}, which is not computed here; dequantize them to bf16 and save that"


def plain_name(name: str) -> str:
    """Return a name with dots between its parts: keras writes ``batch_normalization/moving_mean:0``."""
    return name.replace("/", ".").removesuffix(":0") if "/" in name or ":" in name else name
