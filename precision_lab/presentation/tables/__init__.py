"""Results as rows of text; whoever shows them chooses how."""

from precision_lab.presentation.tables.experiments import (
    accumulation_tables,
    loss_scaling_tables,
    storage_tables,
    swamping_tables,
    underflow_tables,
)
from precision_lab.presentation.tables.numbers import formats_table, inspection_table, sources_table, verification_table
from precision_lab.presentation.tables.table import Table, bytes_text, number, percent, percent_or_more, power_of_two
from precision_lab.presentation.tables.tensors import (
    frozen_table,
    loss_scale_tables,
    scale_trace_tables,
    scan_table,
    sums_table,
    updates_table,
)
from precision_lab.presentation.tables.training import hyperparameters_table, memory_tables

__all__ = [
    "Table",
    "accumulation_tables",
    "bytes_text",
    "formats_table",
    "frozen_table",
    "hyperparameters_table",
    "inspection_table",
    "loss_scale_tables",
    "loss_scaling_tables",
    "memory_tables",
    "number",
    "percent",
    "percent_or_more",
    "power_of_two",
    "scale_trace_tables",
    "scan_table",
    "sources_table",
    "storage_tables",
    "sums_table",
    "swamping_tables",
    "underflow_tables",
    "updates_table",
    "verification_table",
]
