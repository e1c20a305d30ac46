"""Tables of running averages of weights, and of weights that decay."""

from __future__ import annotations

from precision_lab.experiments.averages import BEGINNINGS, AveragesResult
from precision_lab.presentation.tables.table import Table, number, percent, tables_of


@tables_of.register
def averages_tables(result: AveragesResult) -> tuple[Table, ...]:
    """Which averages never move and how far off they end; which 1 - d would move them; what decay leaves of weights."""
    config = result.config
    by_decay = {(name, decay): result.of(name, decay) for name in BEGINNINGS for decay in config.decays}

    def cell(name: str, keeping: object, decay: float) -> str:
        found = next(f for k, f in by_decay[name, decay].items() if k == keeping)
        return f"{percent(found.still)} / {number(found.off)}"

    followed = Table(
        "Running averages of the weights of a digits MLP",
        ("from", "kept in", *(f"d = {decay:g}" for decay in config.decays)),
        tuple(
            (name, keeping.text, *(cell(name, keeping, decay) for decay in config.decays))
            for name in BEGINNINGS
            for keeping in config.keepings
        ),
        frozenset(range(2, 2 + len(config.decays))),
        note="Under each decay: averages that never move, in percent of those whose weight does / how far the averages "
        "end from the exact ones, by how far these went (0: exact, 1: as far off as standing still).\n"
        "One interpolation a step, R(e + (1 - d) (w - e)), as torch.lerp; mul_add: R(R(d e) + R(1 - d) w).",
    )
    reaches = Table(
        "The smallest 1 - d that moves an average",
        ("from", "format", "half of them move from 1 - d =", "that is up to d ="),
        tuple((r.beginning, r.format, number(r.median), f"{1 - r.median:.7g}") for r in result.reaches),
        frozenset({2, 3}),
        note="Told by the gap beside the first value and by how far its weight went, with no average computed.",
    )
    rates = config.weight_decays
    norms = {(d.keeping, d.rate): number(d.norms[-1]) for d in result.decayed}
    exact = {d.rate: number(d.exact) for d in result.decayed}
    decayed = Table(
        f"What {config.decay_steps:,} steps of AdamW's decay leave of the norm of weights",
        ("kept in", *(f"lr*weight_decay = {rate:g}" for rate in rates)),
        tuple((keeping.text, *(norms[keeping, rate] for rate in rates)) for keeping in config.decay_keepings),
        frozenset(range(1, 1 + len(rates))),
        totals=("exact", *(exact[rate] for rate in rates)),
        note="Weights without gradients; 1: the decay never took anything off.",
    )
    return followed, reaches, decayed
