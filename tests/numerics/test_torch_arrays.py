"""Tensors of torch wherever arrays are taken: the answers are those on the array of the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import precision_lab as pl
from precision_lab.analysis.sums import sum_every_way
from precision_lab.analysis.updates import update_outcomes
from precision_lab.numerics.accumulation import rounded_sum
from precision_lab.numerics.fixed import exp
from precision_lab.numerics.inputs import as_array
from precision_lab.numerics.torch_arrays import array_of

pytestmark = pytest.mark.torch
BF16, FP8 = (pl.get_format(name).dtype for name in ("bf16", "fp8_e5m2"))

VALUES = [0.1, -2.5, 1e-8, 300.0, 0.0, -0.0, 1.0, 3e-3]
CALLS: dict[str, Callable[[Any], Any]] = {
    "round_to": lambda x: pl.round_to(x, "fp8_e4m3fn"),
    "encode": lambda x: pl.encode(x, "bf16"),
    "cast": lambda x: pl.cast(x, "fp16"),
    "decode": lambda x: pl.decode(pl.encode(x, "fp16"), "fp16"),
    "spacing": lambda x: pl.spacing(x, "fp16"),
    "neighbours": lambda x: pl.neighbours(x, "fp16"),
    "is_representable": lambda x: pl.is_representable(x, "fp8_e5m2"),
    "accumulate": lambda x: pl.accumulate(x, "bf16").result,
    "exact_sum": pl.exact_sum,
    "rounded_sum": lambda x: rounded_sum(x, "bf16").result,
    "sum_every_way": lambda x: [trace.result for trace in sum_every_way(x, "fp16").values()],
    "dot": lambda x: pl.dot(x, x, accumulator="bf16", inputs="bf16"),
    "matmul": lambda x: pl.matmul(x[None, :], x[:, None], accumulator="bf16", inputs="bf16"),
    "matmul_fp32_accumulate": lambda x: pl.matmul_fp32_accumulate(x[None, :], x[:, None], inputs="bf16"),
    "update_report": lambda x: pl.update_report(x, x, "bf16").to_dict(),
    "update_outcomes": lambda x: update_outcomes(x, x, "bf16"),
    "WeightGaps": lambda x: pl.WeightGaps.of(x, "bf16").frozen(1e-3),
    "frozen_fraction": lambda x: pl.frozen_fraction(x, [1e-3], "bf16"),
    "ExponentHistogram": lambda x: (pl.ExponentHistogram.of(x).to_dict(), pl.ExponentHistogram.of_chunks([x, x])),
    "replay_loss_scale": lambda x: pl.replay_loss_scale(pl.DynamicLossScale.torch(), abs(x), "fp16").to_dict(),
    "scan": lambda x: pl.scan({"w": x}).to_dict()["total"],
    "preflight": lambda x: pl.preflight({"w": x}, lr=1e-3).verdict,
    "exp": exp,
}


KINDS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]] = {  # a tensor, and an array of its numbers
    "float32": (lambda torch, x: x, lambda a: a),
    "float64": (lambda torch, x: x.double(), lambda a: a.astype(np.float64)),
    "requires grad": (lambda torch, x: torch.nn.Parameter(x), lambda a: a),
    "bf16": (lambda torch, x: x.bfloat16(), lambda a: a.astype(BF16)),
    "bf16 with grad": (lambda torch, x: torch.nn.Parameter(x.bfloat16()), lambda a: a.astype(BF16)),
    "fp16": (lambda torch, x: x.half(), lambda a: a.astype(np.float16)),
    "fp8": (lambda torch, x: x.to(torch.float8_e5m2), lambda a: a.astype(FP8)),
    "strided": (lambda torch, x: x.repeat_interleave(2)[::2], lambda a: a),
    "strided bf16": (lambda torch, x: x.repeat_interleave(2).bfloat16()[::2], lambda a: a.astype(BF16)),
    "negative bit": (lambda torch, x: torch.complex(x, x).conj().imag, lambda a: -a),
    "expanded": (lambda torch, x: x[:1].expand(8), lambda a: a[:1].repeat(8)),
    "integers": (lambda torch, x: torch.tensor([1, 2, 300]), lambda a: np.array([1, 2, 300])),
    "empty": (lambda torch, x: x[:0].bfloat16(), lambda a: a[:0].astype(BF16)),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_the_answer_is_that_on_the_array(torch: Any, name: str, kind: str) -> None:
    make_tensor, make_array = KINDS[kind]
    tensor, array = make_tensor(torch, torch.tensor(VALUES)), make_array(np.array(VALUES, np.float32))
    assert tensor.is_neg() == (kind == "negative bit")
    if kind == "fp8" and name in ("replay_loss_scale", "matmul", "matmul_fp32_accumulate"):
        tensor, array = tensor.float(), array.astype(np.float32)  # neither library multiplies fp8
    if name == "replay_loss_scale":
        tensor = tensor.detach()
    if kind == "expanded" and name in ("scan", "preflight"):
        tensor = tensor.clone()  # of a file such a tensor may have elements without end, and is skipped

    def answer(x: Any) -> Any:
        try:
            return CALLS[name](x)
        except ValueError as error:
            return str(error)

    assert same(answer(tensor), answer(array))


def test_what_comes_back_is_an_array_with_the_values_of_the_tensor(torch: Any) -> None:
    rounded = pl.round_to(torch.ones(3, dtype=torch.bfloat16), "fp16")
    assert type(rounded) is np.ndarray
    assert rounded.tolist() == [1, 1, 1]
    assert pl.round_to(torch.tensor(0.1), "bf16") == np.float32(0.10009765625)
    assert pl.round_to([torch.tensor(0.1), torch.tensor(1.0)], "bf16").tolist() == [0.10009765625, 1.0]
    assert as_array([torch.tensor(1.5).bfloat16(), torch.tensor(2.0).bfloat16()]).tolist() == [1.5, 2.0]
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz):
        codes = torch.arange(256, dtype=torch.uint8)
        tensor = (codes.to(torch.int16) * 257).view(dtype) if dtype is torch.bfloat16 else codes.view(dtype)
        array = array_of(tensor)
        assert array.dtype == pl.get_format(dtype).dtype
        assert np.array_equal(array.astype(np.float32), tensor.float().numpy(), equal_nan=True)


def test_memory_is_shared_and_the_tensor_stays_as_it_is(torch: Any) -> None:
    tensor = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    array = array_of(tensor)
    assert array.ctypes.data == tensor.data_ptr()
    pl.round_to(tensor, "fp8_e4m3fn")
    assert tensor.requires_grad
    assert tensor.dtype is torch.bfloat16
    assert array_of(tensor.detach()[::2]).strides == (4,)


@pytest.mark.filterwarnings("ignore")  # torch's, of what is a prototype
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda torch: torch.ones(3, device="meta"), "without data"),
        (lambda torch: torch.eye(3).to_sparse(), "sparse"),
        (lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda torch: torch.zeros(4, dtype=torch.uint8).view(torch.float8_e8m0fnu), "float8_e8m0fnu"),
        (lambda torch: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
        (lambda torch: torch.zeros(4, dtype=torch.complex64), "complex64"),
        (lambda torch: torch.zeros(4, dtype=torch.bool), "bool"),
    ],
)
@pytest.mark.parametrize("call", ["round_to", "ExponentHistogram", "encode", "update_report", "exact_sum"])
def test_what_has_no_numbers_gets_one_line(torch: Any, call: str, tensor: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        CALLS[call](tensor(torch))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"])
def test_a_dtype_of_torch_names_a_format(torch: Any, name: str) -> None:
    dtype = getattr(torch, name)
    fmt = pl.get_format(dtype)
    assert fmt is pl.get_format(name) is pl.get_format(f"torch.{name}")
    assert fmt.max == torch.finfo(dtype).max
    assert fmt.smallest_normal == torch.finfo(dtype).smallest_normal
    assert pl.round_to(0.1, dtype) == torch.tensor(0.1).to(dtype).float().item()
