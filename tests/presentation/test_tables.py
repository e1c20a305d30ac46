from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab import FORMATS
from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.loss_scale_plan import plan_tensors
from precision_lab.analysis.loss_scale_replay import replay_loss_scale
from precision_lab.analysis.loss_scalers import DynamicLossScale
from precision_lab.experiments.underflow import GROUPS, UnderflowConfig, UnderflowResult, run
from precision_lab.numerics.inspection import inspect_number
from precision_lab.presentation.tables.formats import formats_table, inspection_table, sources_table, verification_table
from precision_lab.presentation.tables.loss_scaling import loss_scale_tables, scale_trace_tables
from precision_lab.presentation.tables.table import Table, number, percent
from precision_lab.presentation.tables.underflow import underflow_tables

EMPTY = ExponentHistogram.empty()


def test_docstring_examples() -> None:
    result = doctest.testmod(importlib.import_module(Table.__module__))
    assert result.attempted > 0
    assert result.failed == 0


@given(st.floats(0, 1))
def test_only_nothing_looks_like_zero_and_only_all_looks_like_all(share: float) -> None:
    text = percent(share)
    assert (text == "0") == (share == 0)
    assert (text == "100") == (share == 1)
    assert text != "0.00"
    assert text != "100.00"


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (float("nan"), "–"), (1e-7, "1e-07"), (448.0, "448")])
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.fixture(scope="module")
def result() -> UnderflowResult:
    return run(UnderflowConfig(transformer_steps=2, steps=30, batches=2, seeds=2, more_seeds=3))


def test_every_table_is_rectangular(result: UnderflowResult) -> None:
    for table in (
        formats_table(FORMATS.values()),
        sources_table(FORMATS.values()),
        inspection_table("1", [inspect_number(1.0, fmt) for fmt in FORMATS.values()]),
        *underflow_tables(result),
        verification_table([]),
        *loss_scale_tables(plan_tensors([("a", ExponentHistogram.of([1.0])), ("b", EMPTY)], "fp16")),
        *scale_trace_tables([replay_loss_scale(DynamicLossScale.torch(), [1.0, 0.5], "fp16")]),
    ):
        assert {len(row) for row in table.rows} <= {len(table.columns)}
        assert all(0 <= column < len(table.columns) for column in table.numeric)
        assert table.totals is None or len(table.totals) == len(table.columns)


def test_the_table_of_underflow_says_what_the_result_holds(result: UnderflowResult) -> None:
    table, costs = underflow_tables(result)
    assert len(table.rows) == 3 * len(GROUPS)
    first = result.unscaled("start", "weight gradients", "fp16")
    assert table.rows[0][:3] == ("start", f"{result.stages[0].loss:.2e}", "weight gradients")
    assert table.rows[0][3].startswith(percent(first.flushed_of_nonzero))
    assert [row[4:] for row in costs.rows] == [(c.text, c.finding) for c in (result.cost, result.cost_of_small)]
    assert [row[:4] for row in costs.rows] == [
        ("as it is", "30", number(result.cost.losses[0]), number(result.cost.controls[0])),
        ("2^-20", "30", number(result.cost_of_small.losses[0]), number(result.cost_of_small.controls[0])),
    ]


def test_bits_of_a_format_without_mantissa() -> None:
    row = inspection_table("4", [inspect_number(4.0, "e4m0")]).rows[0]
    assert row[1] == "0 1001"


def test_a_share_of_nothing_is_zero() -> None:
    conversion = ExponentHistogram.of(np.zeros(3)).conversion("fp16")
    assert conversion.flushed_of_nonzero == 0
    assert conversion.zero_after_of_all == 1
