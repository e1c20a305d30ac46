"""What a report says and shows of each experiment: results in, text and tables out.

Nothing is worked out here: every figure is one that the results hold, or the share of two counts that they hold.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from precision_lab.experiments.kept import Finished
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.experiments.storage import ConfigurationSummary, StorageExperimentConfig, StorageResult, times
from precision_lab.presentation.plots.figures import figures_of
from precision_lab.presentation.tables.table import Table, number, percent, tables_of
from precision_lab.training.config import MODELS

_FIRST = ("storage", "underflow", "loss_scaling")  # of the page; the others follow in the order of the registry

_ASKED = {
    "pure_bf16": "bf16 alone",
    "master_bf16": "bf16, fp32 master copy",
    "fp32": "fp32, the control",
}


@dataclass(frozen=True)
class Section:
    """An experiment on the page.

    Attributes
    ----------
    name, question, answer : str
        Its name, what it asks, and what came out in a line.
    figures : tuple of dict
        ``source`` and ``text`` of each image.
    tables : tuple of Table
        The first is shown, the others are folded up.
    lesson : tuple of list of (str, str)
        Paragraphs: pieces of text, each with its style, ``em``, ``code`` or nothing.

    """

    name: str
    question: str
    answer: str
    figures: tuple[dict[str, str], ...]
    tables: tuple[Table, ...]
    lesson: tuple[list[tuple[str, str]], ...]


def sections(finished: Iterable[Finished], figures: Mapping[str, str]) -> list[Section]:
    """Return what there is, an experiment each, with the tables that the command line shows."""
    by_name = {one.name: one for one in finished}
    return [_section(by_name[name], figures) for name in dict.fromkeys((*_FIRST, *EXPERIMENTS)) if name in by_name]


def _section(one: Finished, figures: Mapping[str, str]) -> Section:
    experiment = EXPERIMENTS[one.name]
    shown = tuple(
        {"source": figures[figure], "text": f"{experiment.question} ({figure.replace('_', ' ')})"}
        for figure in figures_of(type(one.result))
        if figure in figures
    )
    return Section(one.name, experiment.question, one.answer, shown, tables_of(one.result), lesson(experiment.module))


# --- the answer of the first screen ---


def hero(result: StorageResult) -> dict[str, Any] | None:
    """Return the answer to "Can I store my parameters in bf16?", None where nobody has tried it."""
    by_label = {setting: {o.label: o for o in summaries} for setting, summaries in result.outcomes.items()}
    if not by_label or not all(summaries.keys() >= _ASKED.keys() for summaries in by_label.values()):
        return None
    keeps = {
        label: [summaries[label].keeps for summaries in by_label.values()] for label in next(iter(by_label.values()))
    }
    alone, mastered = keeps["pure_bf16"], keeps["master_bf16"]
    verdict = "Yes, here." if all(alone) else "Not on their own." if not any(alone) else "Not always."
    if None in alone:
        verdict = "Not decided by these runs."
    ends = list(dict.fromkeys((next(iter(by_label)), list(by_label)[-1])))  # the first optimizer and the last
    shown = [by_label[setting] for setting in ends]
    reason = "In bf16 alone, " + "; ".join(map(_sentence, ends, shown)) + ". "
    taken = (" and ".join(f"{summaries[label].bytes_per_parameter:g}" for summaries in shown) for label in _ASKED)
    pure, master, control = taken
    reason += f"That takes {pure} bytes per parameter, fp32 {control}. "
    if all(mastered):
        reason += f"With an fp32 master copy of the weights, {master} bytes, the result is fp32's."
    elif None in mastered:
        reason += f"What an fp32 master copy of the weights, {master} bytes, would keep is not decided by these runs."
    else:
        reason += f"Even with an fp32 master copy of the weights, {master} bytes, not every run gets fp32's result."
    others = [label for label, kept in keeps.items() if all(kept) and label not in _ASKED]
    return {
        "verdict": verdict,
        "reason": reason,
        "caption": _runs_text(result.config),
        "settings": list(by_label),
        "rows": [
            {
                "label": label,
                "meaning": meaning,
                "cells": [_hero_cell(summaries[label]) for summaries in by_label.values()],
            }
            for label, meaning in _ASKED.items()
        ],
        "others": f"What kept fp32's result under every optimizer besides: {', '.join(others)}." if others else "",
    }


def _sentence(setting: str, summaries: Mapping[str, ConfigurationSummary]) -> str:
    """Say what becomes of a training in bf16 alone under one optimizer."""
    pure = summaries["pure_bf16"]
    return (
        f"{setting.replace(', lr', ' at lr')} loses {percent(pure.lost)} % of its updates and ends at a loss of "
        f"{_loss(pure)}, where fp32 gets to {_loss(summaries['fp32'])}"
    )


def _loss(outcome: ConfigurationSummary) -> str:
    return number(outcome.final_loss) if math.isfinite(outcome.final_loss) else "inf or NaN"


def _hero_cell(outcome: ConfigurationSummary) -> dict[str, Any]:
    loses = f"{times(outcome.ratio)} fp32's" if math.isfinite(outcome.ratio) else "not fp32's result"
    verdicts = {True: "as good as fp32", False: loses, None: "not decided"}
    return {
        "verdict": "the control" if outcome.label == "fp32" else verdicts[outcome.keeps],
        "loss": _loss(outcome),
        "keeps": outcome.keeps,
        "lost": f"{percent(outcome.lost)} % lost",
        "bytes": f"{outcome.bytes_per_parameter:g} bytes",
    }


def _runs_text(config: StorageExperimentConfig) -> str:
    return (
        f"Final loss, share of the updates that are lost, bytes per parameter. {config.model} on "
        f"{config.dataset or MODELS[config.model]}, "
        f"{config.steps:,} steps, {config.seeds} seed{'s' if config.seeds != 1 else ''}."
    )


# --- prose ---


def lesson(module: str) -> tuple[list[tuple[str, str]], ...]:
    """Return the docstring of an experiment's module in paragraphs, without its first line."""
    text = importlib.import_module(module).__doc__ or ""
    paragraphs = [" ".join(part.split()) for part in re.sub(r"\n[-=]{3,}\n", "\n\n", text).split("\n\n")]
    return tuple(list(_pieces(paragraph)) for paragraph in paragraphs[1:] if paragraph)


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Split a paragraph at its `code` and *emphasis*."""
    end = 0
    for match in re.finditer(r"``(?P<double>[^`]+)``|`(?P<code>[^`]+)`|(?<!\S)\*(?P<em>\S[^*]*)\*(?!\w)", text):
        yield "", text[end : match.start()]
        yield ("em", match["em"]) if match["em"] else ("code", match["double"] or match["code"])
        end = match.end()
    yield "", text[end:]
