"""Results as rows of text; whoever shows them chooses how."""

from precision_lab.presentation.tables.claims import claims_page, claims_tables
from precision_lab.presentation.tables.experiments import (
    accumulation_tables,
    loss_scaling_tables,
    storage_tables,
    summary_table,
    swamping_tables,
    underflow_tables,
)
from precision_lab.presentation.tables.numbers import formats_table, inspection_table, sources_table, verification_table
from precision_lab.presentation.tables.objects import (
    conversions_table,
    histogram_table,
    stagnation_table,
    storage_config_table,
    thresholds_table,
    trace_table,
    training_table,
    update_report_table,
)
from precision_lab.presentation.tables.preflight import preflight_tables
from precision_lab.presentation.tables.table import Table, bytes_text, number, percent, percent_or_more, power_of_two
from precision_lab.presentation.tables.tensors import (
    frozen_table,
    loss_scale_tables,
    recording_text,
    scale_trace_tables,
    scan_table,
    sums_table,
    updates_table,
)
from precision_lab.presentation.tables.training import (
    comparison_tables,
    hyperparameters_table,
    ledgers_tables,
    memory_tables,
    storage_text,
    usual_settings_tables,
)

__all__ = [
    "Table",
    "accumulation_tables",
    "bytes_text",
    "claims_page",
    "claims_tables",
    "comparison_tables",
    "conversions_table",
    "formats_table",
    "frozen_table",
    "histogram_table",
    "hyperparameters_table",
    "inspection_table",
    "ledgers_tables",
    "loss_scale_tables",
    "loss_scaling_tables",
    "memory_tables",
    "number",
    "percent",
    "percent_or_more",
    "power_of_two",
    "preflight_tables",
    "recording_text",
    "scale_trace_tables",
    "scan_table",
    "sources_table",
    "stagnation_table",
    "storage_config_table",
    "storage_tables",
    "storage_text",
    "summary_table",
    "sums_table",
    "swamping_tables",
    "thresholds_table",
    "trace_table",
    "training_table",
    "underflow_tables",
    "update_report_table",
    "updates_table",
    "usual_settings_tables",
    "verification_table",
]
