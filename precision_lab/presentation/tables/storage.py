"""Tables of storage configurations and of trainings with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from precision_lab.experiments.storage import ConfigurationSummary, StorageResult
from precision_lab.presentation.tables.table import (
    Table,
    facts_table,
    number,
    only_table,
    percent,
    tables_of,
)
from precision_lab.training.result import TrainingResult
from precision_lab.training.storage import StorageConfig


def storage_text(storage: StorageConfig) -> str:
    """Write a configuration as `StorageConfig.parse` reads it, or its weights and the kind of its loss scale."""
    try:
        return str(storage)
    except ValueError:  # a dynamic loss scale with parameters of its own has no text
        return f"weights={storage.weights}, ..., loss_scale={type(storage.loss_scale).__name__}"


@only_table
def storage_config_table(storage: StorageConfig) -> Table:
    """One row a role of a training step."""
    values = {f.name: getattr(storage, f.name) for f in fields(storage)}
    words = {True: "yes", False: "no", None: "none"}
    texts = {key: words[v] if v is None or isinstance(v, bool) else str(v) for key, v in values.items()}
    texts["loss_scale"] = type(storage.loss_scale).__name__
    return facts_table(storage_text(storage), {key.replace("_", " "): text for key, text in texts.items()})


@only_table
def training_table(result: TrainingResult) -> Table:
    """What a run came to."""
    updates, config = result.updates, result.config
    end = result.stopped or ("yes" if result.diverged else "no")
    training = f"{config.model}, {config.optimizer}, lr {config.learning_rate:g}, {config.steps:,} steps"
    return facts_table(
        f"{training}, {storage_text(config.storage)}",
        {
            "loss, first and last": f"{number(result.initial_loss)}, {number(result.final_loss)}",
            "test accuracy": "–" if result.test_accuracy is None else f"{100 * result.test_accuracy:.1f} %",
            "lost updates, of those that are not zero": f"{percent(updates.lost_of_nonzero)} %",
            "imprecision: of all elements": f"{percent(updates.imprecision)} %",
            "effective descent quality <d,u>/||u||^2": f"{updates.edq_ratio:.3f}",
            "skipped steps": f"{int(result.skipped.sum()):,}",
            "diverged or stopped": end,
            "bytes per parameter, measured": f"{result.bytes_per_parameter:g}",
        },
    )


@tables_of.register
def storage_tables(result: StorageResult) -> tuple[Table, ...]:
    """One table a setting, a row a configuration; then one for each of the smaller questions."""
    tables = [_outcomes_table(f"{result.config.model}, {name}", outcomes) for name, outcomes in result.outcomes.items()]
    return (*tables, *(_outcomes_table(name.capitalize(), outcomes) for name, outcomes in result.sections.items()))


def _outcomes_table(title: str, outcomes: Sequence[ConfigurationSummary]) -> Table:
    rows = tuple(
        (
            o.label,
            f"{o.bytes_per_parameter:g}",
            number(o.final_loss),
            number(o.spread),
            "–" if o.accuracy is None else f"{100 * o.accuracy:.1f}",
            percent(o.lost),
            percent(o.imprecision),
            f"{o.edq_ratio:.3f}",
            f"{o.skipped:,.0f}",
            o.sentence,
        )
        for o in outcomes
    )
    return Table(
        title,
        (
            "storage",
            "bytes",
            "final loss",
            "spread",
            "accuracy %",
            "lost %",
            "unchanged %",
            "EDQ ratio",
            "skipped",
            "what came out",
        ),
        rows,
        frozenset(range(1, 9)),
        note="bytes: per parameter, measured. spread: between the seeds. lost: of the non-zero updates. unchanged: of "
        "all elements (imprecision). EDQ ratio: 1 is perfect, 0 is standstill. Nothing is judged with one seed, or "
        "where fp32 does not end below half of its first loss.",
        prose=frozenset({9}),
    )
