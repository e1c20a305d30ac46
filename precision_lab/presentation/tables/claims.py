"""The table of claims, and the page of them."""

from __future__ import annotations

from itertools import groupby

from precision_lab.experiments.claims.claim import Arithmetic, Judgement, Outcome
from precision_lab.experiments.claims.experiment import ClaimsResult
from precision_lab.presentation.tables.table import Table, tables_of


@tables_of.register
def claims_tables(result: ClaimsResult) -> tuple[Table, ...]:
    """One table a subject, a row a claim: what is said, the verdict, why, and what it rests on; then the errors."""
    tables = [
        Table(
            subject,
            ("claim", "verdict"),
            tuple((f"{j.claim.key}\n{j.claim.text}", _verdict(j)) for j in group),
            prose=frozenset({0, 1}),
        )
        for subject, group in groupby(result.judgements, key=lambda j: j.claim.subject)
    ]
    return (*tables, _errors_table(result))


def _verdict(judgement: Judgement) -> str:
    """Write the verdict in a line, the reason, and what both rest on."""
    return f"{judgement.verdict.outcome.value}\n{explanation(judgement)}\nRests on {judgement.ground}."


def _errors_table(result: ClaimsResult) -> Table:
    return Table(
        "What is wrong, by error",
        ("error", "claims"),
        tuple((error, ", ".join(keys)) for error, keys in _errors(result)),
        prose=frozenset({0, 1}),
        note=f"Rounded: {_described(result.config.arithmetic)}. Trainings always round ties_to_even, with subnormals.",
    )


def _errors(result: ClaimsResult) -> list[tuple[str, tuple[str, ...]]]:
    """Return each error with its claims; those with an error of their own come last, together."""
    alone = tuple(key for key, keys in result.errors.items() if keys == (key,))
    shared = [(root, keys) for root, keys in result.errors.items() if keys != (root,)]
    return [*shared, ("an error of its own each", alone)] if alone else shared


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
        "computed, and with what it rests on: arithmetic is a proof, a ledger a sum, runs are trainings of one small "
        "network in one setting, with their seeds and an interval. A small network proves nothing for large ones.",
        "",
        f"Rounded: {_described(result.config.arithmetic)}. Trainings always round `ties_to_even`, with subnormals.",
        "",
        "Statements that are wrong for the same reason share one error, so how many of them there are says nothing.",
        "",
        "| error | claims |",
        "|---|---|",
        *(f"| {error} | {', '.join(map(_code, keys))} |" for error, keys in _errors(result)),
    ]
    for subject, group in groupby(result.judgements, key=lambda j: j.claim.subject):
        lines += ["", f"## {subject}"]
        for j in group:
            outcome = j.verdict.outcome.value
            words = f"holds only if {j.verdict.condition}" if j.verdict.condition else outcome
            lines += ["", f"### `{j.claim.key}`: {outcome}", "", f"> {_plain(j.claim.text)}", ">"]
            lines += [f"> {j.claim.source}", "", f"**{_sentence(words)}** {_plain(j.verdict.reason)}", ""]
            lines += [f"Rests on {_plain(j.ground)}."]
            if j.wrong and j.claim.root:
                lines[-1] += f" The error: {_plain(j.claim.root)}."
    return "\n".join(lines) + "\n"


def _sentence(words: str) -> str:
    """Make a sentence of a verdict."""
    return f"{'That is' if words == Outcome.UNDECIDED else 'It'} {_plain(words)}."


def _code(key: str) -> str:
    return f"`{key}`"


def _plain(text: str) -> str:
    """Keep Markdown from reading what is none of it."""
    for character in "<*_":
        text = text.replace(character, f"\\{character}")
    return text
