"""Tables of what training takes and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from precision_lab.experiments.hyperparameters import HyperparametersResult
from precision_lab.experiments.memory import MemoryResult
from precision_lab.presentation.tables.table import Table, bytes_text
from precision_lab.training.comparison import TrainingComparison
from precision_lab.training.hyperparameters import HyperparameterAudit
from precision_lab.training.memory import MemoryLedger, bytes_of
from precision_lab.training.storage import StorageConfig


def storage_text(storage: StorageConfig) -> str:
    """Write a configuration as `StorageConfig.parse` reads it, or its weights and the kind of its loss scale."""
    try:
        return str(storage)
    except ValueError:  # a dynamic loss scale with parameters of its own has no text
        return f"weights={storage.weights}, ..., loss_scale={type(storage.loss_scale).__name__}"


def hyperparameters_table(audit: HyperparameterAudit) -> Table:
    """One row a number of the optimizer: what it becomes, what follows, what to do."""
    rows = tuple(
        (f.expression, f"{f.exact:.7g}", f"{f.stored:.9g}", str(f.severity), f.consequence, f.advice or "–")
        for f in audit.findings
    )
    asked = ", ".join(f"{name} {value:g}" for name, value in audit.hyperparameters.items())
    return Table(
        f"{audit.optimizer} in {audit.format}: {asked}, {audit.steps:,} steps",
        ("number", "asked", f"in {audit.format}", "severity", "what follows", "what helps"),
        rows,
        frozenset({1, 2}),
        note="Severity, by how far the effect is from the one asked: ok up to 1 %, note up to 10 %, warning more, "
        "fatal a tenth or less, ten times or more.",
        prose=frozenset({4, 5}),
    )


def memory_tables(ledgers: Mapping[str, MemoryLedger], ranks: int) -> tuple[Table, ...]:
    """One row a storage configuration; for a single one also a row for each of its buffers."""
    first = next(iter(ledgers.values()))
    stages = ("ZeRO-1", "ZeRO-2", "ZeRO-3") if ranks > 1 else ()
    apart = tuple(b.name for b in first.transient if b.name == "activations")
    names = list(dict.fromkeys(buffer.name for ledger in ledgers.values() for buffer in ledger.buffers))

    def row(name: str, ledger: MemoryLedger) -> tuple[str, ...]:
        held = {buffer.name: bytes_of(buffer.format) for buffer in ledger.buffers}
        return (
            name,
            *(f"{held[n]}" if n in held else "–" for n in names),
            f"{ledger.bytes_per_parameter}",
            bytes_text(ledger.total),
            *(bytes_text(b.bytes) for b in ledger.transient if b.name == "activations"),
            *(bytes_text(ledger.per_rank(ranks, stage)) for stage in range(1, 1 + len(stages))),
            *(bytes_text(moved) for moved in (ledger.traffic(ranks).values() if ranks > 1 else ())),
        )

    traffic = tuple(first.traffic(ranks)) if ranks > 1 else ()
    note = "Bytes per parameter of each buffer, their sum, and what they come to; activations come on top."
    if ranks > 1:
        note += f" ZeRO: bytes on each of {ranks} ranks. The rest: bytes that each rank sends in a step (ring)."
    columns = ("storage", *(n.replace("_", " ") for n in names), "bytes/parameter", "total", *apart, *stages, *traffic)
    overview = Table(
        f"Memory of {first.parameters:,} parameters with {first.optimizer}",
        columns,
        tuple(row(name, ledger) for name, ledger in ledgers.items()),
        frozenset(range(1, len(columns))),
        note=note,
    )
    if len(ledgers) > 1:
        return (overview,)
    rows = [
        (b.name.replace("_", " "), b.format.name, f"{bytes_of(b.format)}", bytes_text(b.bytes)) for b in first.buffers
    ]
    rows += [
        (f"{b.name} (within a step)", b.format.name, f"{bytes_of(b.format)}", bytes_text(b.bytes))
        for b in first.transient
    ]
    columns = ("buffer", "format", "bytes", "total")
    return overview, Table(storage_text(first.storage), columns, tuple(rows), frozenset({2, 3}))


def usual_settings_tables(result: HyperparametersResult) -> tuple[Table, ...]:
    """One table a setting, a row a number: what it becomes in each format, and how far that is from what was asked."""
    return tuple(_audits_table(name, audits) for name, audits in result.audits.items())


def _audits_table(name: str, audits: Sequence[HyperparameterAudit]) -> Table:
    rows = tuple(
        (
            finding.expression,
            f"{finding.exact:.6g}",
            *(
                cell
                for a in audits
                for cell in (f"{a[finding.expression].stored:.6g}", f"{a[finding.expression].severity}")
            ),
        )
        for finding in audits[0].findings
    )
    asked = ", ".join(f"{key} {value:g}" for key, value in audits[0].hyperparameters.items())
    return Table(
        f"{name}: {asked}",
        ("number", "asked", *(heading for a in audits for heading in (f"in {a.format}", f"{a.format}"))),
        rows,
        frozenset({1, *range(2, 2 + 2 * len(audits), 2)}),
    )


def ledgers_tables(result: MemoryResult) -> tuple[Table, ...]:
    """The ledgers of the last size; the totals of all sizes."""
    sizes = list(result.ledgers)
    totals = Table(
        f"All sizes with {result.config.optimizer}, one device",
        ("storage", *sizes),
        tuple((name, *(bytes_text(result.ledgers[size][name].total) for size in sizes)) for name in result.shown),
        frozenset(range(1, 1 + len(sizes))),
    )
    return (*memory_tables(result.shown, result.config.ranks), totals)


def comparison_tables(results: Mapping[str, TrainingComparison]) -> tuple[Table, ...]:
    """One row a comparison: where it parts and how far; of a single one also a row a difference up to there."""

    def row(name: str, result: TrainingComparison) -> tuple[str, ...]:
        parting, last = result.parting, len(result.losses) - 1
        where = ("–", "they are the same") if parting is None else (f"{parting.step:,}", parting.operation)
        losses = (f"{curve[last]:.6g}" for curve in (result.losses, result.other_losses))
        return (name, *where, *losses, f"{result.distances[last]:.2g}")

    other = next(iter(results.values())).other
    overview = Table(
        f"precision_lab and {other}, side by side",
        ("training", "part at step", "operation", "last loss, ours", "theirs", "||w - w'||/||w||"),
        tuple(row(name, result) for name, result in results.items()),
        frozenset({1, 3, 4, 5}),
        note="The first difference in a value that the weights depend on; the reported loss alone may differ before.",
    )
    if len(results) > 1:
        return (overview,)
    (result,) = results.values()
    rows = tuple(
        (
            f"{d.step:,}",
            d.operation,
            d.value,
            d.format.name,
            f"{d.differing:,} of {d.count:,}",
            f"{d.ours:.9g}",
            f"{d.theirs:.9g}",
            f"{d.ulps:.3g}",
            "–" if d.ours_right is None else f"{d.ours_right:,} / {d.theirs_right:,}",
        )
        for d in result.differences
    )
    columns = ("step", "operation", "value", "format", "differ", "ours", "theirs", "ulps", "right")
    return overview, Table(
        "Every difference up to there, in the order of the computation",
        columns,
        rows,
        frozenset({0, 4, 5, 6, 7, 8}),
        note="ours, theirs: the first element that differs. ulps: the largest difference, in spacings of the format. "
        "right: how many of the differing elements, ours / theirs, are our operands' exact result rounded once.",
    )
