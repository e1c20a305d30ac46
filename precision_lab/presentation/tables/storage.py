"""Tables of storage configurations and of trainings with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from precision_lab.experiments.outcomes import ConfigurationSummary, mean
from precision_lab.experiments.paired import PairedRatio
from precision_lab.experiments.storage import Groups, StorageResult, alone, cheapest
from precision_lab.presentation.tables.table import (
    Table,
    facts_table,
    number,
    only_table,
    percent,
    tables_of,
)
from precision_lab.training.config import MODELS, TrainingConfig
from precision_lab.training.optimizers import title
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


def training_text(config: TrainingConfig) -> str:
    """Write what is trained, and how, but for the storage and the seed: ``mlp on digits, Adam, lr 0.001, ...``."""
    named = [f"{config.model} on {config.dataset or MODELS[config.model]}", title(config.optimizer)]
    named.append(f"lr {config.learning_rate:g}")
    if "second_moment" in config.build_optimizer().moments:
        named.append(f"beta2 {config.beta2:g}")
    if config.weight_decay:
        named.append(f"decay {config.weight_decay:g}")
    if str(config.schedule) != "constant":
        named.append(str(config.schedule).replace(",", " ").replace("=", " "))
    return ", ".join((*named, f"{config.steps:,} steps"))


@only_table
def training_table(result: TrainingResult) -> Table:
    """What a run came to."""
    updates, config = result.updates, result.config
    end = result.stopped or ("yes" if result.diverged else "no")
    return facts_table(
        f"{training_text(config)}, {storage_text(config.storage)}",
        {
            "loss, first and last": f"{number(result.initial_loss)}, {number(result.final_loss)}",
            "test accuracy": "–" if result.test_accuracy is None else f"{100 * result.test_accuracy:.0f} %",
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
    """What came out of each training in a row; one table a training, a row a configuration; one for each axis.

    Of a single training there is no more than its table.
    """
    trainings = {**result.miniatures, **result.outcomes}
    tables = [
        *([verdicts_table(trainings)] if len(trainings) > 1 else []),
        *(_outcomes_table(f"Miniature, {name}", group) for name, group in result.miniatures.items()),
        *(_outcomes_table("", group) for group in result.outcomes.values()),
        *(axis_table(name, groups) for name, groups in result.axes.items()),
    ]
    for name, group in result.sections.items():
        if name == "noise":
            tables.append(noise_table({"": group, **result.outcomes}))
        elif group[0].paired_after:
            tables += horizon_tables(group)
        else:
            tables.append(_outcomes_table(name.capitalize(), group))
    return tuple(tables)


_RATIO_NOTE = (
    "Times fp32's: final losses over those of fp32 with the same seeds, geometric mean and 90 % interval of n. keeps: "
    "the interval lies within 3 %; loses: above; ends lower: below; else not decided."
)


def verdicts_table(trainings: Groups) -> Table:
    """One row a training: what becomes of bf16 alone, and what is the cheapest that is not worse than fp32."""
    return Table(
        "Can parameters be stored in bf16, of those ways that were tried?",
        ("training", "bf16 alone", "times fp32's", "n", "lost %", "cheapest that keeps", "bytes", "its ratio", "its n"),
        tuple(_verdict_row(name, group) for name, group in trainings.items()),
        frozenset({3, 4, 6, 8}),
        note=f"{_RATIO_NOTE} bf16 alone: no master copy, plain rounding. lost: of its nonzero updates. "
        f"Cheapest: in bytes per parameter{beta2_text(trainings.values())}.",
    )


def _verdict_row(name: str, group: tuple[ConfigurationSummary, ...]) -> tuple[str, ...]:
    narrow, best = alone(group) or group[-1], cheapest(group)
    row = (name, narrow.finding.value, narrow.paired.cell, f"{narrow.paired.n}", percent(narrow.lost))
    if best is None:
        return (*row, "none is known", "–", "–", "–")
    return (*row, best.label, f"{best.bytes_per_parameter:g}", best.paired.cell, f"{best.paired.n}")


def beta2_text(groups: Iterable[Sequence[ConfigurationSummary]]) -> str:
    """Write with which beta2 all of some trainings were made: ``, at beta2 = 0.999``; nothing of SGD."""
    configs = [group[0].runs[0].config for group in groups]
    found = sorted({c.beta2 for c in configs if "second_moment" in c.build_optimizer().moments}, reverse=True)
    return f", at beta2 = {' and '.join(f'{beta2:g}' for beta2 in found)}" if found else ""


def _outcomes_table(name: str, outcomes: Sequence[ConfigurationSummary]) -> Table:
    """One row a configuration; the title is the name, if there is one, and how the control was trained."""
    rows = tuple(
        (
            o.label,
            verdict_word(o, outcomes),
            "–" if o is outcomes[0] else o.paired.cell,
            f"{len(o.runs)}",
            f"{o.bytes_per_parameter:g}",
            number(o.final_loss),
            "–" if o is outcomes[0] else o.paired_test.cell,
            percent(o.lost),
            _share(o.edq_ratio),
            _share(o.edq_ratio_fp32),
            o.reason or "–",
        )
        for o in outcomes
    )
    return Table(
        f"{name}{': ' if name else ''}{training_text(outcomes[0].runs[0].config)}",
        (
            *("storage", "verdict", "times fp32's", "n", "bytes", "final loss", "its test loss", "lost %"),
            *("EDQ", "EDQ, fp32's step", "why"),
        ),
        rows,
        frozenset({3, 4, 5, 7, 8, 9}),
        note=f"{_RATIO_NOTE} bytes: per parameter, measured. Its test loss: likewise, times fp32's. lost: of the "
        "nonzero updates. EDQ: <d,u>/||u||^2, 1 is perfect, 0 is standstill, with u what the narrow optimizer "
        "proposes; beside it with the step that fp32's makes of the same gradients.",
        prose=frozenset({10}),
    )


def verdict_word(outcome: ConfigurationSummary, group: Sequence[ConfigurationSummary]) -> str:
    """Return the finding of a member of a group, of the control that it is one."""
    return "control" if outcome is group[0] else outcome.finding.value


def _share(x: float) -> str:
    return "–" if math.isnan(x) else f"{x:.3f}"


def axis_table(name: str, groups: Mapping[str, Sequence[ConfigurationSummary]]) -> Table:
    """One row a value of an axis, one column a configuration."""
    columns = list(dict.fromkeys(o.label for group in groups.values() for o in group[1:]))
    usual = usual_count(o.paired for group in groups.values() for o in group[1:])
    rows = []
    for value, group in groups.items():
        found = {o.label: ratio_cell(o.paired, usual) for o in group[1:]}
        rows.append((value, number(group[0].final_loss), *(found.get(column, "–") for column in columns)))
    config = next(iter(groups.values()))[0].runs[0].config
    heading = f"By {name}: {config.model} on {config.dataset or MODELS[config.model]}, {config.steps:,} steps"
    return Table(
        heading, (name, "fp32's loss", *columns), tuple(rows), frozenset({1}), note=f"{_RATIO_NOTE} {_count(usual)}"
    )


def usual_count(ratios: Iterable[PairedRatio]) -> int:
    """Return the number of seeds that most of some ratios have."""
    return Counter(ratio.n for ratio in ratios).most_common(1)[0][0]


def ratio_cell(ratio: PairedRatio, usual: int) -> str:
    """Write a finding with its ratio and interval, and n where it is not the usual number."""
    return f"{ratio.finding}: {ratio.cell}{f', n = {ratio.n}' if ratio.n != usual else ''}"


def _count(usual: int) -> str:
    return f"n = {usual} where it is not said."


def horizon_tables(group: Sequence[ConfigurationSummary]) -> tuple[Table, Table]:
    """One row a configuration, one column a number of steps: the ratios; the losses, and where they stand still."""
    config = group[0].runs[0].config
    marks = list(group[0].paired_after)
    after = {o.label: {**o.paired_after, config.steps: o.paired} for o in group}
    steps = list(dict.fromkeys((*marks, config.steps)))
    usual = usual_count(o.paired for o in group[1:])
    rows = tuple((o.label, *(ratio_cell(after[o.label][step], usual) for step in steps)) for o in group[1:])
    columns = tuple(f"{step:,} steps" for step in steps)
    ratios = Table(
        f"Ratio by steps: {training_text(config)}",
        ("storage", *columns),
        rows,
        note=f"{_RATIO_NOTE} {_count(usual)} Each is of the loss over the whole training part after so many steps.",
    )
    losses = Table(
        f"Loss by steps: {training_text(config)}",
        ("storage", *columns, "stands still"),
        tuple((o.label, *(number(mean(after[o.label][s].losses)) for s in steps), _stall(o)) for o in group),
        frozenset(range(1, len(columns) + 1)),
        note="Mean over the seeds, of the whole training part. Stands still: from where on the batch loss stays within "
        "10 % of its last tenth, if that is before three quarters of the run, and fp32's falls on.",
    )
    return ratios, losses


def _stall(outcome: ConfigurationSummary) -> str:
    settled = outcome.settled if outcome.stalls else None
    return "–" if settled is None else f"from step {settled.step:,} at {settled.loss:.2g}"


def noise_table(groups: Mapping[str, Sequence[ConfigurationSummary]]) -> Table:
    """What a ratio is worth: the same recipe with other sums and other luck, and beside them master copies in bf16."""
    shown = {
        f"{o.label}{f', {name}' if name else ''}": o.paired
        for name, group in groups.items()
        for o in (group[1:] if not name else [o for o in group if o.label == "master_bf16"])
    }
    rows = tuple((label, ratio.cell, f"{ratio.n}", _percent_of(ratio)) for label, ratio in shown.items())
    return Table(
        "Noise floor: what a ratio means",
        ("what differs from fp32", "times fp32's", "n", "s %"),
        rows,
        frozenset({2, 3}),
        note="s: the standard deviation of the log ratios, in percent. Rows in another order: only the order of sums "
        "differs. Another seed: start and batches differ, so that nothing cancels.",
    )


def _percent_of(ratio: PairedRatio) -> str:
    return "–" if math.isnan(ratio.deviation) else f"{100 * ratio.deviation:.2g}"
