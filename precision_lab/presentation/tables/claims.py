"""The table of claims, and the page of them."""

from __future__ import annotations

from itertools import groupby

from precision_lab.experiments.claims.claim import Arithmetic, Judgement
from precision_lab.experiments.claims.experiment import ClaimsResult
from precision_lab.experiments.claims.runs import LATE_STEPS, STEPS
from precision_lab.presentation.tables.table import Table, tables_of


@tables_of.register
def claims_tables(result: ClaimsResult) -> tuple[Table, ...]:
    """One table a subject, a row a claim: what is said, the verdict, and why."""
    tables = [
        Table(
            subject,
            ("claim", "verdict", "why"),
            tuple((f"{j.claim.key}\n{j.claim.text}", j.verdict.outcome.value, explanation(j)) for j in group),
            prose=frozenset({0, 2}),
        )
        for subject, group in groupby(result.judgements, key=lambda j: j.claim.subject)
    ]
    return (*tables, _verdicts_table(result))


def _verdicts_table(result: ClaimsResult) -> Table:
    return Table(
        "Verdicts",
        ("verdict", "claims"),
        tuple((outcome.value, f"{count}") for outcome, count in result.verdicts.items()),
        frozenset({1}),
        note=f"Rounded: {_described(result.config.arithmetic)}. Trainings always round ties_to_even, with subnormals.",
    )


def _described(arithmetic: Arithmetic) -> str:
    return f"{arithmetic.mode}, {'with subnormals' if arithmetic.subnormals else 'subnormals flushed to zero'}"


def explanation(judgement: Judgement) -> str:
    """Return the condition, if there is one, and the reason."""
    verdict = judgement.verdict
    return f"Only if {verdict.condition}. {verdict.reason}" if verdict.condition else verdict.reason


def claims_page(result: ClaimsResult) -> str:
    """Return the claims as a page of Markdown."""
    lines = [
        "# What people say about mixed precision",
        "",
        "<!-- Written by `precision-lab claims --markdown`; do not edit. -->",
        "",
        f"{len(result.judgements)} statements of five public texts, in our words, each with a verdict that is "
        f"computed: by rounding, by counting, from the memory ledger, from trainings of {STEPS:,} steps on handwritten "
        "digits (the "
        f"gradients are those of one of {LATE_STEPS:,}). A small network proves nothing for large ones; where a "
        "verdict rests on it, the reason says so.",
        "",
        f"Rounded: {_described(result.config.arithmetic)}. Trainings always round `ties_to_even`, with subnormals.",
        "",
        "| verdict | claims |",
        "|---|---:|",
        *(f"| {outcome.value} | {count} |" for outcome, count in result.verdicts.items()),
    ]
    for subject, group in groupby(result.judgements, key=lambda j: j.claim.subject):
        lines += ["", f"## {subject}"]
        for j in group:
            outcome = j.verdict.outcome.value
            words = f"holds only if {j.verdict.condition}" if j.verdict.condition else outcome
            lines += ["", f"### `{j.claim.key}`: {outcome}", "", f"> {_plain(j.claim.text)}", ">"]
            lines += [f"> {j.claim.source}", "", f"**It {_plain(words)}.** {_plain(j.verdict.reason)}"]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Keep Markdown from reading what is none of it."""
    for character in "<*_":
        text = text.replace(character, f"\\{character}")
    return text
