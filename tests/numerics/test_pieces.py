"""Arrays of any layout and size, onto themselves or not, on any number of threads: the same as one piece in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from precision_lab import round_to, threads
from precision_lab.numerics import plans, rounding
from precision_lab.numerics.formats import get_format
from precision_lab.numerics.modes import RoundingMode
from precision_lab.numerics.plans import Plan, by_fields, plan_of
from precision_lab.numerics.rounding import _chosen, each_piece
from precision_lab.support.threads import LEAST

Array: TypeAlias = NDArray[Any]
SIZE = LEAST + 20_321
MODES = ("ties_to_even", "toward_negative", "stochastic")
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "in a row": lambda x: x,
    "every third": lambda x: np.repeat(x, 3)[::3],
    "backwards": lambda x: x[::-1],
    "columns first": lambda x: np.asfortranarray(x[: 1001 * 1001].reshape(1001, 1001)),
    "a part": lambda x: x[: 1000 * 1001].reshape(1000, 1001)[:, :-1],
    "one long row": lambda x: np.repeat(x, 2).reshape(1, -1)[:, ::2],
    "three axes": lambda x: x[: 100 * 100 * 101].reshape(100, 101, 100).transpose(2, 0, 1),
}


def bits(x: Array) -> bytes:
    return np.ascontiguousarray(x).tobytes()


def numbers(dtype: Any, size: int = SIZE) -> Array:
    """Bit patterns of all kinds, NaNs among them."""
    rng = np.random.default_rng(7)
    drawn = np.frombuffer(rng.bytes(size * np.dtype(dtype).itemsize), dtype)
    few = (rng.standard_normal(size) * 1e-3).astype(dtype)
    return np.where(rng.random(size) < 0.5, drawn, few)


def in_one_piece(x: Array, fmt: str, mode: str) -> Array:
    """Round a copy in a row by the loop itself."""
    row = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(row)
    plan = plan_of(get_format(fmt), RoundingMode(mode), True, False, row.dtype == np.float64)
    if plan.seeded is None:
        plan.kernel(row, out, plan.constants, False)
    else:
        plan.seeded(row, out, plan.constants, np.array([5, 3], np.uint64))
    return out.reshape(x.shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_threads_change_nothing(layout: str, mode: str) -> None:
    x = LAYOUTS[layout](numbers(np.float32))
    assert x.size >= LEAST
    expected = in_one_piece(x, "fp16", mode)
    for count in (1, 2, 7):
        with threads(count):
            assert bits(round_to(x, "fp16", mode, rng=(5, 3))) == bits(expected)
            out = np.empty(x.shape[::-1], x.dtype).T  # not in a row where x is
            assert round_to(x, "fp16", mode, out=out, rng=(5, 3)) is out
            assert bits(out) == bits(expected)
            itself = x.copy(order="K")
            round_to(itself, "fp16", mode, out=itself, rng=(5, 3))
            assert bits(itself) == bits(expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ">f4", ">f8", np.float64, np.int64])
def test_what_is_converted_is_converted_as_a_whole(dtype: Any, mode: str) -> None:
    x = numbers(dtype)
    parts, start = [], 3
    for part in np.array_split(x, 21):  # each of them in one piece
        parts.append(round_to(part, "fp8_e5m2", mode, rng=(5, start)))
        start += part.size
    for count in (1, 2, 7):
        with threads(count):
            assert bits(round_to(x, "fp8_e5m2", mode, rng=(5, 3))) == bits(np.concatenate(parts))


def test_a_generator_is_drawn_from_in_order_on_any_number_of_threads() -> None:
    x = numbers(np.float32)
    results = set()
    for count in (1, 7):
        with threads(count):
            results.add(bits(round_to(x, "bf16", "stochastic", rng=np.random.default_rng(3))))
    assert len(results) == 1


@pytest.mark.parametrize("mode", RoundingMode)
@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp4_e2m1fn", "tf32", "e7m22"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_onto_itself_as_elsewhere(dtype: Any, fmt: str, mode: RoundingMode) -> None:
    x = numbers(dtype, 5000)
    for subnormals in (True, False):
        elsewhere = round_to(x, fmt, mode, subnormals=subnormals, rng=1)
        itself = x.copy()
        round_to(itself, fmt, mode, subnormals=subnormals, rng=1, out=itself)
        assert bits(itself) == bits(elsewhere)


DETERMINISTIC = [mode for mode in RoundingMode if mode is not RoundingMode.STOCHASTIC]


@pytest.mark.parametrize("mode", DETERMINISTIC)
@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp8_e4m3fnuz", "e5m21"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_past_the_caches_as_through_them(dtype: Any, fmt: str, mode: RoundingMode) -> None:
    """Of any size and to any address; nothing beside it is written."""
    x = numbers(dtype, 500)
    plan = plan_of(get_format(fmt), mode, True, False, dtype is np.float64)
    usual = np.empty_like(x)
    plan.kernel(x, usual, plan.constants, False)
    for size in (0, 1, 7, 127, 128, 129, 143, 144, 256, 300, 500):
        for offset in range(17):
            room = np.full(520, 7, dtype)
            plan.kernel(x[:size], room[offset : offset + size], plan.constants, True)
            assert bits(room[offset : offset + size]) == bits(usual[:size])
            assert (np.delete(room, slice(offset, offset + size)) == 7).all()


def test_past_the_caches_to_an_odd_address() -> None:
    x = numbers(np.float32, 500)
    out = np.frombuffer(bytearray(2001), np.float32, offset=1)
    plan = plan_of(get_format("fp16"), RoundingMode.TIES_TO_EVEN, True, False, False)
    plan.kernel(x, out, plan.constants, True)
    assert bits(out) == bits(round_to(x, "fp16"))


@pytest.mark.parametrize("mode", ["ties_to_even", "to_odd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_arrays_go_past_the_caches(dtype: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To where they are wanted only: new memory is in the caches already."""
    x, seen = numbers(dtype), set()
    expected = bits(in_one_piece(x, "fp16", mode))
    monkeypatch.setattr(plans, "_LARGER", x.nbytes)
    (kernel, constants, _), wide = _chosen("fp16", mode, True, False, dtype is np.float64)
    monkeypatch.setattr(rounding, "_chosen", lambda *_: (Plan(noting, constants), wide))

    def noting(x: Array, out: Array, constants: Array, past: bool) -> None:
        seen.add(past)
        kernel(x, out, constants, past)

    for count in (1, 3):
        for out, past in ((np.empty_like(x), True), (None, False), (np.empty(x.size + 1, dtype)[1:], True)):
            seen.clear()
            with threads(count):
                assert bits(round_to(x, "fp16", mode, out=out)) == expected
            assert seen == {past}
    monkeypatch.setattr(plans, "_LARGER", x.nbytes + 1)
    seen.clear()
    round_to(x, "fp16", mode, out=np.empty_like(x))
    assert seen == {False}


@pytest.mark.parametrize("mode", DETERMINISTIC)
@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp6_e3m2fn", "tf32", "e6m9", "e5m21"])
@pytest.mark.parametrize("wide", [False, True])
def test_each_loop_agrees_with_the_one_for_all(wide: bool, fmt: str, mode: RoundingMode) -> None:
    """By addition or by mask as by fields; a NaN may keep its payload in ties to even."""
    x = numbers(np.float64 if wide else np.float32, 20_000)
    for subnormals in (True, False):
        for saturate in (True, False):
            options = get_format(fmt), mode, subnormals, saturate, wide
            quick, general = plan_of(*options), by_fields(*options)
            results = [np.empty_like(x), np.empty_like(x)]
            for plan, out in zip((quick, general), results, strict=True):
                plan.kernel(x, out, plan.constants, False)
            if mode is RoundingMode.TIES_TO_EVEN:
                results = [np.where(np.isnan(out), np.copysign(out.dtype.type(np.nan), out), out) for out in results]
            assert bits(results[0]) == bits(results[1])


def test_pieces_make_up_the_whole_in_order() -> None:
    x = np.arange(2 * 70_000 * 9).reshape(2, 9, 70_000).transpose(1, 0, 2)[:, :, ::2]
    seen: list[tuple[int, Array]] = []
    with threads(3):
        each_piece(x, lambda piece, start: seen.append((start, piece)))
    seen.sort(key=lambda item: item[0])
    assert len(seen) > 1
    assert all(piece.dtype == np.float64 and piece.flags.c_contiguous for _, piece in seen)
    assert np.array_equal(np.concatenate([piece for _, piece in seen]), x.reshape(-1))
    assert [start for start, _ in seen] == np.cumsum([0, *(piece.size for _, piece in seen[:-1])]).tolist()
