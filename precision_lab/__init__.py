"""precision_lab: what happens to numbers when they are stored in 16 bits or fewer.

formats -> rounding -> what is lost -> where it happens in training -> what people see.

Names are loaded when they are first asked for (SPEC 1 of scientific Python): who rounds need not wait for trainings.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precision_lab.analysis.any_scale import count_conversion
    from precision_lab.analysis.frozen_weights import Frozen, WeightGaps, frozen_fraction
    from precision_lab.analysis.histogram import Conversion, ExponentHistogram
    from precision_lab.analysis.loss_scale_files import plan_files
    from precision_lab.analysis.loss_scale_plan import Covers, LossScalePlan, plan_loss_scale, plan_tensors
    from precision_lab.analysis.loss_scale_replay import ScaleTrace, replay_loss_scale
    from precision_lab.analysis.loss_scalers import SCALERS, DynamicLossScale, NoLossScale, StaticLossScale, get_scaler
    from precision_lab.analysis.quantization import QuantizationReport, quantization_report
    from precision_lab.analysis.scan import ScanResult, scan
    from precision_lab.analysis.stagnation import (
        Series,
        Stagnation,
        SwampingThresholds,
        stagnation,
        swamping_thresholds,
    )
    from precision_lab.analysis.updates import UpdateReport, update_report
    from precision_lab.numerics.accumulation import METHODS, AccumulationTrace, accumulate, exact_sum
    from precision_lab.numerics.codes import cast, decode, encode
    from precision_lab.numerics.formats import FORMATS, FloatFormat, FormatLike, get_format
    from precision_lab.numerics.inspection import Inspection, inspect_number
    from precision_lab.numerics.modes import RoundingMode, get_mode
    from precision_lab.numerics.products import dot, matmul, matmul_fp32_accumulate
    from precision_lab.numerics.rounding import is_representable, neighbours, round_to, spacing
    from precision_lab.support.threads import threads
    from precision_lab.tensors.info import TensorFileError, TensorInfo
    from precision_lab.tensors.reading import list_tensors, read_tensors
    from precision_lab.training.config import TrainingConfig
    from precision_lab.training.hyperparameters import (
        Finding,
        HyperparameterAudit,
        Severity,
        World,
        audit_hyperparameters,
    )
    from precision_lab.training.loop import train
    from precision_lab.training.memory import MemoryLedger, memory_ledger
    from precision_lab.training.optimizers import SGD, Adam, AdamW
    from precision_lab.training.preflight import PreflightReport, preflight
    from precision_lab.training.result import TrainingResult
    from precision_lab.training.storage import CONFIGURATIONS, StorageConfig
    from precision_lab.training.sweep import sweep

    __version__: str

__all__ = [
    "CONFIGURATIONS",
    "FORMATS",
    "METHODS",
    "SCALERS",
    "SGD",
    "AccumulationTrace",
    "Adam",
    "AdamW",
    "Conversion",
    "Covers",
    "DynamicLossScale",
    "ExponentHistogram",
    "Finding",
    "FloatFormat",
    "FormatLike",
    "Frozen",
    "HyperparameterAudit",
    "Inspection",
    "LossScalePlan",
    "MemoryLedger",
    "NoLossScale",
    "PreflightReport",
    "QuantizationReport",
    "RoundingMode",
    "ScaleTrace",
    "ScanResult",
    "Series",
    "Severity",
    "Stagnation",
    "StaticLossScale",
    "StorageConfig",
    "SwampingThresholds",
    "TensorFileError",
    "TensorInfo",
    "TrainingConfig",
    "TrainingResult",
    "UpdateReport",
    "WeightGaps",
    "World",
    "accumulate",
    "audit_hyperparameters",
    "cast",
    "count_conversion",
    "decode",
    "dot",
    "encode",
    "exact_sum",
    "frozen_fraction",
    "get_format",
    "get_mode",
    "get_scaler",
    "inspect_number",
    "is_representable",
    "list_tensors",
    "matmul",
    "matmul_fp32_accumulate",
    "memory_ledger",
    "neighbours",
    "plan_files",
    "plan_loss_scale",
    "plan_tensors",
    "preflight",
    "quantization_report",
    "read_tensors",
    "replay_loss_scale",
    "round_to",
    "scan",
    "spacing",
    "stagnation",
    "swamping_thresholds",
    "sweep",
    "threads",
    "train",
    "update_report",
]

# of each module; the tests hold it against what type checkers read above
_NAMES = {
    "analysis.any_scale": ("count_conversion",),
    "analysis.frozen_weights": ("Frozen", "WeightGaps", "frozen_fraction"),
    "analysis.histogram": ("Conversion", "ExponentHistogram"),
    "analysis.loss_scale_files": ("plan_files",),
    "analysis.loss_scale_plan": ("Covers", "LossScalePlan", "plan_loss_scale", "plan_tensors"),
    "analysis.loss_scale_replay": ("ScaleTrace", "replay_loss_scale"),
    "analysis.loss_scalers": ("SCALERS", "DynamicLossScale", "NoLossScale", "StaticLossScale", "get_scaler"),
    "analysis.quantization": ("QuantizationReport", "quantization_report"),
    "analysis.scan": ("ScanResult", "scan"),
    "analysis.stagnation": (
        "Series",
        "Stagnation",
        "SwampingThresholds",
        "stagnation",
        "swamping_thresholds",
    ),
    "analysis.updates": ("UpdateReport", "update_report"),
    "numerics.accumulation": ("METHODS", "AccumulationTrace", "accumulate", "exact_sum"),
    "numerics.codes": ("cast", "decode", "encode"),
    "numerics.formats": ("FORMATS", "FloatFormat", "FormatLike", "get_format"),
    "numerics.inspection": ("Inspection", "inspect_number"),
    "numerics.modes": ("RoundingMode", "get_mode"),
    "numerics.products": ("dot", "matmul", "matmul_fp32_accumulate"),
    "numerics.rounding": ("is_representable", "neighbours", "round_to", "spacing"),
    "support.threads": ("threads",),
    "tensors.info": ("TensorFileError", "TensorInfo"),
    "tensors.reading": ("list_tensors", "read_tensors"),
    "training.config": ("TrainingConfig",),
    "training.hyperparameters": ("Finding", "HyperparameterAudit", "Severity", "World", "audit_hyperparameters"),
    "training.loop": ("train",),
    "training.memory": ("MemoryLedger", "memory_ledger"),
    "training.optimizers": ("SGD", "Adam", "AdamW"),
    "training.preflight": ("PreflightReport", "preflight"),
    "training.result": ("TrainingResult",),
    "training.storage": ("CONFIGURATIONS", "StorageConfig"),
    "training.sweep": ("sweep",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from precision_lab.support.version import version

            value: object = version()
        elif name in _MODULES:
            from importlib import import_module

            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})
