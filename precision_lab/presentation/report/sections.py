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
from precision_lab.experiments.outcomes import ConfigurationSummary
from precision_lab.experiments.paired import Finding
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.experiments.storage import StorageResult, alone, cheapest
from precision_lab.presentation.plots.figures import figures_of
from precision_lab.presentation.tables.storage import beta2_text, training_text
from precision_lab.presentation.tables.table import Table, number, tables_of
from precision_lab.training.optimizers import title

_FIRST = ("storage", "underflow", "loss_scaling")  # of the page; the others follow in the order of the registry

_MASTER = "master_bf16"


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

_TRAINED = {
    "fine_tuning": "Fine-tuning a real matrix",
    "transformer": "A character transformer",
    "mlp": "The digits",
    "least_squares": "Least squares",
}


def hero(result: StorageResult) -> dict[str, Any] | None:
    """Return the answer to "Can I store my parameters in bf16?", None where nobody has tried it.

    The miniatures come first, and are what is said in words; where there are none, the first and the last setting.
    """
    tried = {name: g for name, g in {**result.miniatures, **result.outcomes}.items() if alone(g) is not None}
    if not tried:
        return None
    narrow = [_alone(group) for group in tried.values()]
    named = [name for name in tried if name in result.miniatures] or [next(iter(tried)), list(tried)[-1]]
    sentences = [_sentence(tried[name]) for name in dict.fromkeys(named)]
    return {
        "verdict": _verdict([one.keeps for one in narrow]),
        "reason": " ".join([*sentences, *_master_sentence(list(tried.values()))]),
        "caption": "Final loss over fp32's of the same seed, with its 90 % interval over n seeds; share of the updates "
        f"that are lost; bytes per parameter. Of those ways that were tried{beta2_text(tried.values())}.",
        "columns": ("weights in bf16 alone", "with an fp32 master copy", "cheapest of those tried that keeps"),
        "rows": [
            {
                "label": _TRAINED[group[0].runs[0].config.model],
                "meaning": training_text(group[0].runs[0].config),
                "cells": [
                    _hero_cell(_alone(group), f", fp32's {_loss(group[0])}"),
                    _hero_cell(_mastered(group), missing="not tried here"),
                    _hero_cell(cheapest(group), missing="none is known to"),
                ],
            }
            for group in tried.values()
        ],
        "others": _others(tried.values()),
    }


def _alone(group: tuple[ConfigurationSummary, ...]) -> ConfigurationSummary:
    narrow = alone(group)
    assert narrow is not None
    return narrow


def _mastered(group: tuple[ConfigurationSummary, ...]) -> ConfigurationSummary | None:
    return next((o for o in group[1:] if o.label == _MASTER), None)


def _verdict(keeps: list[bool | None]) -> str:
    """Say in a word what became of bf16 alone in some trainings."""
    if all(keeps):
        return "Yes, here."
    if False not in keeps:
        return "Not decided by these runs."
    return "Not always." if True in keeps or None in keeps else "Not on their own."


def _sentence(group: tuple[ConfigurationSummary, ...]) -> str:
    """Say what becomes of a training in bf16 alone."""
    narrow, config = _alone(group), group[0].runs[0].config
    trained = f"{_TRAINED[config.model]} ({title(config.optimizer)}, lr {config.learning_rate:g})"
    times = f"{narrow.paired.cell} times fp32's loss"
    what = {
        Finding.KEEPS: f"keeps fp32's result, {times}",
        Finding.LOSES: f"loses: it ends at {times}, and {_lost(narrow)} of its updates are lost",
        Finding.ENDS_LOWER: f"ends lower: at {times}, though {_lost(narrow)} of its updates are lost",
        Finding.BREAKS: f"breaks: {narrow.paired.cell}",
        Finding.NOT_DECIDED: f"is not decided{f', at {times}' if narrow.paired.comparable else ''}: {narrow.reason}",
    }[narrow.finding]
    return f"{trained} with weights in bf16 alone {what}."


def _lost(outcome: ConfigurationSummary) -> str:
    """Write the share of the updates that were lost."""
    percent = 100 * outcome.lost
    return "none" if not percent else "under 1 %" if percent < 0.5 else f"{percent:.0f} %"


def _master_sentence(groups: list[tuple[ConfigurationSummary, ...]]) -> list[str]:
    """Say what an fp32 master copy keeps, nothing where none was tried."""
    mastered = [o for o in map(_mastered, groups) if o is not None]
    if not mastered:
        return []
    control = next(group[0] for group in groups if _mastered(group) is mastered[0])
    taken = f"{mastered[0].bytes_per_parameter:g} bytes per parameter where fp32 takes {control.bytes_per_parameter:g}"
    copy = f"an fp32 master copy of the weights, {taken},"
    keeps = [o.keeps for o in mastered]
    if all(keeps):
        return [f"With {copy} the result is fp32's."]
    if False not in keeps:
        return [f"What {copy} would keep is not decided by all of these runs."]
    return [f"Even with {copy} not every run gets fp32's result."]


def _others(groups: Iterable[tuple[ConfigurationSummary, ...]]) -> str:
    """Name the other ways that were not worse in any training, if there are any."""
    found: dict[str, list[bool | None]] = {}
    for group in groups:
        for o in group[1:]:
            found.setdefault(o.label, []).append(o.keeps)
    kept = [label for label, keeps in found.items() if all(keeps) and label not in ("pure_bf16", _MASTER)]
    return f"What also kept fp32's result in each training in which it was tried: {', '.join(kept)}." if kept else ""


def _hero_cell(outcome: ConfigurationSummary | None, beside: str = "", *, missing: str = "") -> dict[str, Any]:
    if outcome is None:
        return {"verdict": "–", "kind": "undecided", "lines": [missing], "label": ""}
    kind = {True: "keeps", False: "loses", None: "undecided"}[outcome.keeps]
    lines = [outcome.paired.text, f"loss {_loss(outcome)}{beside}; {_lost(outcome)} lost"]
    storage = f"{outcome.label}, {outcome.bytes_per_parameter:g} bytes"
    return {"verdict": outcome.finding.value, "kind": kind, "lines": lines, "label": storage}


def _loss(outcome: ConfigurationSummary) -> str:
    return number(outcome.final_loss) if math.isfinite(outcome.final_loss) else "inf or NaN"


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
