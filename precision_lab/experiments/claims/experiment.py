"""What people say about mixed precision, and what is left of it when it is computed.

The statements are those of five public texts: two forum threads, a chapter of a textbook, an encyclopaedic article
and a lesson. Each is put in our words, and each has a check that computes the numbers it is about with this package:
by rounding, by counting, from the memory ledger, from small trainings on handwritten digits. The verdict follows from
the numbers by a criterion in the check; nothing is written down in advance.

- **holds**: the numbers bear it out.
- **holds only if ...**: it is true under a condition that the source does not state: on the numbers, on the recipe.
- **does not hold**: there is a counterexample to what is said of all, or the effect is another one.
- **not decided with these runs**: it rests on runs, and their interval (`experiments.paired`) lies across the limit.
- **cannot be tested here**: it is about hardware or models that are not at hand; the reason says what would test it.

Each claim says what its verdict rests on (`Ground`): arithmetic is proof, a ledger is a sum, runs are a setting with
seeds. Statements that are wrong for one reason are grouped by that error (`Claim.root`): repeated five times it is one.

A verdict is asked of an `Arithmetic`. The default is that of IEEE 754: ties to even, gradual underflow. On hardware
that flushes subnormals 1e-7 *is* zero in fp16, and with truncation bf16 *is* fp32 with its low bits chopped off: ask
for these, and the verdicts that depend on them change. The trainings always round ties to even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from precision_lab.experiments.claims import formats, gradients, memory, operations, scaling, training, updates
from precision_lab.experiments.claims.claim import Arithmetic, Claim, Evidence, Judgement, Outcome, Verdict
from precision_lab.experiments.paired import PairedRatio
from precision_lab.support.plain import Layout, PlainData, from_plain, number, register
from precision_lab.support.shown import Shown

_SUBJECTS = (formats, gradients, scaling, updates, operations, training, memory)

CLAIMS: Mapping[str, Claim] = {
    claim.key: claim for subject in _SUBJECTS for claim in vars(subject).values() if isinstance(claim, Claim)
}
"""All claims by key, those on one subject together: what `stated` made of the functions of these modules."""


def judge(
    keys: Iterable[str] | None = None,
    *,
    arithmetic: Arithmetic | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Judgement, ...]:
    """Check claims.

    Parameters
    ----------
    keys : iterable of str, optional
        Of `CLAIMS`; default: all.
    arithmetic : Arithmetic, optional
        Default: ties to even, with subnormals.
    progress : callable, optional
        Called with the number of claims checked and of all asked for.

    Returns
    -------
    tuple of Judgement
        In the order of `keys`.

    Raises
    ------
    ValueError
        Unknown keys; the message names the most similar ones.

    """
    keys = list(dict.fromkeys(CLAIMS if keys is None else keys))
    for key in keys:
        if key not in CLAIMS:
            raise ValueError(f"no claim is called {key!r}; {_similar(key)}")
    judgements = []
    for key in keys:
        judgements.append(Judgement(CLAIMS[key], CLAIMS[key].check(arithmetic or Arithmetic())))
        if progress is not None:
            progress(len(judgements), len(keys))
    return tuple(judgements)


def _similar(key: str) -> str:
    import difflib

    close = difflib.get_close_matches(key, CLAIMS, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(CLAIMS)}"


@dataclass(frozen=True)
class ClaimsConfig(PlainData):
    """Which claims are judged, and in which arithmetic.

    Attributes
    ----------
    keys : tuple of str
        Of `CLAIMS`.
    arithmetic : Arithmetic
        How is rounded, but for the trainings.

    """

    keys: tuple[str, ...] = tuple(CLAIMS)
    arithmetic: Arithmetic = field(default_factory=Arithmetic)

    @classmethod
    def quick(cls) -> Self:
        """Return the claims that need next to no training."""
        subjects = ("Formats and casts", "Loss scaling", "Speed", "Memory")
        return cls(tuple(key for key, claim in CLAIMS.items() if claim.subject in subjects))


@dataclass(frozen=True)
class ClaimsResult(PlainData, Shown):
    """The verdicts.

    Attributes
    ----------
    config : ClaimsConfig
        What was asked.
    judgements : tuple of Judgement
        In the order of `config.keys`.

    """

    layout: ClassVar = Layout("experiment claims", version=2, derived=("errors",), names={"judgements": "claims"})

    config: ClaimsConfig
    judgements: tuple[Judgement, ...]

    @property
    def errors(self) -> dict[str, tuple[str, ...]]:
        """The root errors of these statements, with the keys of those that go back to each.

        One that does not hold and goes back to no root is an error of its own, under its key.
        """
        failing = {j.claim.root or j.claim.key for j in self.judgements if j.verdict.outcome is Outcome.FAILS}
        found: dict[str, tuple[str, ...]] = {}
        for judgement in filter(lambda judgement: judgement.wrong, self.judgements):
            error = judgement.claim.root or judgement.claim.key
            if error in failing:
                found[error] = (*found.get(error, ()), judgement.claim.key)
        return found

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        errors = list(self.errors.items())
        if not errors:
            return "none of these statements is wrong under every condition"
        start = f"what is wrong in these statements goes back to {len(errors)} {'errors' if errors[1:] else 'error'}"
        shared = [(root, len(keys)) for root, keys in errors if len(keys) > 1]
        if not shared:
            return f"{start}, each in one statement"
        texts = [f"{root} (in {count} of them)" for root, count in shared]
        if alone := len(errors) - len(shared):
            texts.append(f"and {alone} in one statement each")
        return f"{start}: {', '.join(texts)}"


def _written(judgement: Judgement) -> dict[str, Any]:
    """Return the claim and the verdict in words, with the numbers in them."""
    claim, verdict = judgement.claim, judgement.verdict
    return {
        "key": claim.key,
        "subject": claim.subject,
        "claim": claim.text,
        "source": claim.source,
        "rests_on": claim.rests_on.value,
        "settings": list(verdict.settings),
        "root": claim.root,
        "verdict": verdict.outcome.value,
        "condition": verdict.condition,
        "reason": verdict.reason,
        "evidence": {
            name: value.to_dict() if isinstance(value, PairedRatio) else number(float(value))
            for name, value in verdict.evidence.items()
        },
    }


def _read(data: Any) -> Judgement:
    """Return what `_written` described, the numbers in its words as they were written."""
    try:
        words, condition = (data[name].replace("{", "{{").replace("}", "}}") for name in ("reason", "condition"))
        evidence = {name: _read_evidence(value) for name, value in data["evidence"].items()}
        settings = from_plain(tuple[str, ...], data["settings"])
        return Judgement(CLAIMS[data["key"]], Verdict(Outcome(data["verdict"]), words, evidence, condition, settings))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a judgement: {error!r}") from error


def _read_evidence(data: Any) -> Evidence:
    return PairedRatio.from_dict(data) if isinstance(data, Mapping) else from_plain(float, data)


register(Judgement, _written, _read)


def run(config: ClaimsConfig | None = None, *, progress: Callable[[int, int], None] | None = None) -> ClaimsResult:
    """Judge claims, as `judge`; the default is all of them."""
    config = config or ClaimsConfig()
    return ClaimsResult(config, judge(config.keys, arithmetic=config.arithmetic, progress=progress))
