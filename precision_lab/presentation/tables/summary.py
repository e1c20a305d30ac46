"""The table of a whole report."""

from __future__ import annotations

from collections.abc import Sequence

from precision_lab.experiments.kept import Finished
from precision_lab.presentation.tables.table import (
    Table,
)


def summary_table(finished: Sequence[Finished], *, quick: bool) -> Table:
    """One row an experiment: what came out, what it took, and whether it was run or reused."""
    return Table(
        "What came out" + (" (quick run: fewer steps, seeds and configurations)" if quick else ""),
        ("experiment", "what came out", "seconds", ""),
        tuple((one.name, one.answer, f"{one.seconds:.1f}", "reused" if one.reused else "run") for one in finished),
        frozenset({2}),
        prose=frozenset({1}),
    )
