"""Tables of what storing takes."""

from __future__ import annotations

from collections.abc import Mapping

from precision_lab.experiments.memory import MemoryResult
from precision_lab.presentation.tables.storage import storage_text
from precision_lab.presentation.tables.table import (
    Table,
    bytes_text,
    tables_of,
)
from precision_lab.training.memory import ACTIVATIONS, MemoryLedger, bytes_of


def memory_tables(ledgers: Mapping[str, MemoryLedger], ranks: int) -> tuple[Table, ...]:
    """One row a storage configuration; for a single one also a row for each of its buffers."""
    first = next(iter(ledgers.values()))
    stages = ("ZeRO-1", "ZeRO-2", "ZeRO-3") if ranks > 1 else ()
    apart = tuple(b.name for b in first.transient if b.name == ACTIVATIONS)
    names = list(dict.fromkeys(buffer.name for ledger in ledgers.values() for buffer in ledger.buffers))

    def row(name: str, ledger: MemoryLedger) -> tuple[str, ...]:
        held = {buffer.name: bytes_of(buffer.format) for buffer in ledger.buffers}
        return (
            name,
            *(f"{held[n]}" if n in held else "–" for n in names),
            f"{ledger.bytes_per_parameter}",
            f"{ledger.peak_bytes_per_parameter}",
            bytes_text(ledger.total),
            *(bytes_text(b.bytes) for b in ledger.transient if b.name == ACTIVATIONS),
            *(bytes_text(ledger.per_rank(ranks, stage)) for stage in range(1, 1 + len(stages))),
            *(bytes_text(moved) for moved in (ledger.traffic(ranks).values() if ranks > 1 else ())),
        )

    traffic = tuple(first.traffic(ranks)) if ranks > 1 else ()
    note = (
        "Bytes per parameter of each buffer; resident: their sum, from step to step, and what it comes to; peak: with "
        "the cast weights that autocast holds until the backward pass, beside gradients of an earlier micro-batch. "
        "Activations come on top."
    )
    if "second_moment" in names:
        note += " Not counted is what torch keeps besides: 4 bytes a tensor for step, 4 a parameter for amsgrad."
    if ranks > 1:
        note += (
            f" ZeRO: resident bytes on each of {ranks} ranks. The rest: bytes that each rank sends in a step (ring)."
        )
    columns = ("storage", *(n.replace("_", " ") for n in names), "resident", "peak", "total", *apart, *stages, *traffic)
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


@tables_of.register
def _(ledger: MemoryLedger) -> tuple[Table, ...]:
    return memory_tables({storage_text(ledger.storage): ledger}, 1)


@tables_of.register
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
