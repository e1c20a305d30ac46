"""Drawings of results; this is where they are imported from.

Every ``plot_*`` function takes a result and draws it on the axes it is given, or on those of a new pyplot figure, and
returns the axes; every ``*_figure`` function lays out a page. Nothing is computed here but percentages and positions; a
colour means the same everywhere: what becomes of an element, kept, subnormal, flushed or overflowed, in the palette of
Okabe and Ito.

Importing this package loads matplotlib, and nothing else of precision_lab does; pyplot is loaded when a figure is asked
for.
"""

from precision_lab.presentation.plots.accumulation import (
    accumulation_figure,
    plot_product_errors,
    plot_running_sums,
    plot_sum_errors,
)
from precision_lab.presentation.plots.claims import claims_figure, plot_verdicts
from precision_lab.presentation.plots.comparison import comparison_figure, plot_both_losses, plot_distances
from precision_lab.presentation.plots.formats import plot_number_line, plot_spacing
from precision_lab.presentation.plots.histograms import plot_exponent_histogram, scan_figure
from precision_lab.presentation.plots.hyperparameters import (
    hyperparameters_figure,
    plot_betas,
    plot_severities,
    usual_settings_figure,
)
from precision_lab.presentation.plots.loss_scaling import (
    loss_scale_figure,
    plot_loss_scale,
    plot_loss_scale_plan,
    plot_loss_scale_windows,
    plot_scale_trace,
    scale_trace_figure,
)
from precision_lab.presentation.plots.loss_scaling_runs import (
    loss_scaling_figure,
    plot_accident,
    plot_outcomes,
    plot_recovery,
    plot_search,
)
from precision_lab.presentation.plots.memory import memory_figure, plot_memory, plot_ranks
from precision_lab.presentation.plots.storage import (
    descent_quality_figure,
    plot_bytes,
    plot_descent_curves,
    plot_final_losses,
    plot_learning_curves,
    plot_lost_updates,
    storage_figure,
    training_figure,
)
from precision_lab.presentation.plots.style import FATE_COLORS, SUFFIXES, check_figure_path, save_figure, say_quick
from precision_lab.presentation.plots.swamping import (
    plot_descent_quality,
    plot_frozen_fraction,
    plot_stopping_sums,
    plot_update_ratios,
    swamping_figure,
    swamping_scan_figure,
)
from precision_lab.presentation.plots.underflow import (
    gradient_histogram_figure,
    plot_flushed_table,
    plot_gradient_histogram,
    underflow_figure,
)

__all__ = [
    "FATE_COLORS",
    "SUFFIXES",
    "accumulation_figure",
    "check_figure_path",
    "claims_figure",
    "comparison_figure",
    "descent_quality_figure",
    "gradient_histogram_figure",
    "hyperparameters_figure",
    "loss_scale_figure",
    "loss_scaling_figure",
    "memory_figure",
    "plot_accident",
    "plot_betas",
    "plot_both_losses",
    "plot_bytes",
    "plot_descent_curves",
    "plot_descent_quality",
    "plot_distances",
    "plot_exponent_histogram",
    "plot_final_losses",
    "plot_flushed_table",
    "plot_frozen_fraction",
    "plot_gradient_histogram",
    "plot_learning_curves",
    "plot_loss_scale",
    "plot_loss_scale_plan",
    "plot_loss_scale_windows",
    "plot_lost_updates",
    "plot_memory",
    "plot_number_line",
    "plot_outcomes",
    "plot_product_errors",
    "plot_ranks",
    "plot_recovery",
    "plot_running_sums",
    "plot_scale_trace",
    "plot_search",
    "plot_severities",
    "plot_spacing",
    "plot_stopping_sums",
    "plot_sum_errors",
    "plot_update_ratios",
    "plot_verdicts",
    "save_figure",
    "say_quick",
    "scale_trace_figure",
    "scan_figure",
    "storage_figure",
    "swamping_figure",
    "swamping_scan_figure",
    "training_figure",
    "underflow_figure",
    "usual_settings_figure",
]
