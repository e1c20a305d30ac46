"""What a claim is, what a verdict is, and the arithmetic that both are asked of."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

import numpy as np

from precision_lab.experiments.paired import PairedRatio
from precision_lab.numerics.codes import code_dtype, decode
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.rounding import Array, round_to
from precision_lab.training.config import TrainingConfig

FORUM_FP32 = "forum thread “Why to keep parameters in float32, why not in (b)float16?”"
FORUM_BF16 = "forum thread “Bfloat16 training”"
CHAPTER = "textbook chapter 10.11, “Mixed precision training”"
ARTICLE = "ZeroEntropy, “Mixed-Precision Training”"
LESSON = "lesson “Deriving the fixes”"

SUBNORMALS = "subnormals are left out"
STATE_BYTES = "the bytes of the master copy and the moments are left out"
BUFFER_BYTES = "a buffer is counted with the bytes of another format"
"""Root errors: what several statements get wrong for one reason, see `Claim.root`."""


class Ground(StrEnum):
    """What a verdict rests on."""

    ARITHMETIC = "arithmetic"
    ALL_VALUES = "arithmetic, on all values"
    RULES = "the rules as they are defined"
    LEDGER = "a ledger of bytes"
    TENSORS = "tensors of one run or model"
    RUNS = "runs"
    NOTHING = "nothing that can be run here"


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are rounded where a check rounds them.

    Attributes
    ----------
    mode : str
        A rounding mode of `round_to`, all but ``stochastic``: a verdict is not drawn by lot.
    subnormals : bool
        False: subnormal results become zero.

    Raises
    ------
    ValueError
        Another mode.

    """

    mode: str = "ties_to_even"
    subnormals: bool = True

    def __post_init__(self) -> None:
        mode = get_mode(self.mode)
        if mode is RoundingMode.STOCHASTIC:
            raise ValueError(f"mode of claims must be one of {', '.join(DETERMINISTIC_MODES)}; got {mode.value!r}")
        object.__setattr__(self, "mode", mode.value)

    def round(self, x: Any, fmt: FormatLike) -> Array:
        """Round every element once; float32 and float64 stay what they are, the rest counts as float64."""
        return np.asarray(round_to(x, fmt, self.mode, subnormals=self.subnormals))

    def one(self, x: float, fmt: FormatLike) -> float:
        """Round one number."""
        return float(self.round([x], fmt)[0])

    def flushed_up_to(self, fmt: FormatLike) -> float:
        """Return the largest float64 that becomes zero, found by bisection; 0 if no other does."""
        return self._last(lambda x: self.one(x, fmt) == 0)

    def finite_up_to(self, fmt: FormatLike) -> float:
        """Return the largest float64 that stays finite, found by bisection."""
        return self._last(lambda x: math.isfinite(self.one(x, fmt)))

    def below_one_up_to(self, fmt: FormatLike) -> float:
        """Return the largest float64 that does not become 1 or more, found by bisection."""
        return self._last(lambda x: self.one(x, fmt) < 1)

    @staticmethod
    def _last(holds: Callable[[float], bool]) -> float:
        """Return the largest finite float64, not negative, for which something monotone still holds."""
        low, high = 0, 0x7FF0_0000_0000_0000  # bit patterns, in the order of the values; infinity
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(float(np.int64(middle).view(np.float64))) else (low, middle)
        return float(np.int64(low).view(np.float64))


DETERMINISTIC_MODES = tuple(mode.value for mode in RoundingMode if mode is not RoundingMode.STOCHASTIC)
"""The accepted values of `Arithmetic.mode`."""


class Outcome(StrEnum):
    """What a referee says of a claim."""

    HOLDS = "holds"
    ONLY_IF = "holds only if ..."
    FAILS = "does not hold"
    UNDECIDED = "not decided with these runs"
    UNTESTED = "cannot be tested here"


Evidence: TypeAlias = float | PairedRatio
"""What words may name: a number, or losses beside those of a control, written with their interval and n."""


def _share_in_words(part: float, spec: str) -> str:
    """Write a share below 1: only nothing is none, and it does not look like nothing or like all by rounding.

    >>> [_share_in_words(part, ".1%") for part in (0, 1e-9, 0.25, 0.9999)]
    ['none', 'under 0.1%', '25.0%', 'over 99.9%']
    """
    text = format(part, spec)
    decimals = len(text.partition(".")[2].rstrip("%"))
    least = f"0.{'1':0>{decimals}}" if decimals else "1"
    if not part:
        return "none"
    if text == format(0.0, spec):
        return f"under {least}%"
    return f"over {100 - float(least):.{decimals}f}%" if text == format(1.0, spec) else text


class _Words(string.Formatter):
    """As `str.format`, but 1e-7 is written so, and no share is a bare 0%; ``power`` writes powers of two as such."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, PairedRatio):
            return value.text
        if format_spec.endswith("%") and 0 <= value < 1:
            return _share_in_words(value, format_spec)
        significand, exponent = math.frexp(value)
        if format_spec == "power" and significand == 0.5:
            return f"2^{exponent - 1}"
        text = str(super().format_field(value, ".3g" if format_spec == "power" else format_spec))
        return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", text)


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes
    ----------
    outcome : Outcome
        The verdict.
    words : str
        The reason, with a ``{name}`` or ``{name:format}`` for each number: there is no number in it that was not
        computed.
    evidence : mapping of str to float or PairedRatio
        The numbers.
    condition_words : str
        Likewise, what comes after "only if"; empty for other outcomes.
    settings : tuple of str
        What was run, where the verdict rests on runs; see `after`.

    """

    outcome: Outcome
    words: str
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    condition_words: str = ""
    settings: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """One or two sentences."""
        return _Words().format(self.words, **self.evidence)

    @property
    def condition(self) -> str:
        """Under which condition the claim holds; empty if it holds, or does not."""
        return _Words().format(self.condition_words, **self.evidence)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of how many seeds its ratios are, each number once, ascending."""
        return tuple(sorted({value.n for value in self.evidence.values() if isinstance(value, PairedRatio)}))

    def after(self, *runs: TrainingConfig | str) -> Verdict:
        """Return the verdict with the settings of the runs that it rests on, each once; a text says it in words."""
        texts = (run if isinstance(run, str) else setting(run) for run in runs)
        return replace(self, settings=tuple(dict.fromkeys(texts)))


def setting(config: TrainingConfig) -> str:
    """Write in what setting something was trained, wherever it is stored and whatever the seed.

    >>> setting(TrainingConfig(optimizer="adam", learning_rate=1e-3, steps=1000))
    'mlp, adam, lr 0.001, 1,000 steps'
    """
    usual = config.beta2 == TrainingConfig().beta2
    beta2 = "" if usual else f"beta2 {config.beta2:g}, "
    return f"{config.model}, {config.optimizer}, lr {config.learning_rate:g}, {beta2}{config.steps:,} steps"


class MakeVerdict(Protocol):
    """`holds`, `fails`, or `partial(only_if, condition)`."""

    def __call__(self, words: str, /, **evidence: Evidence) -> Verdict:
        """Return a verdict."""


def holds(words: str, /, **evidence: Evidence) -> Verdict:
    """Return the verdict that a claim holds."""
    return Verdict(Outcome.HOLDS, words, evidence)


def only_if(condition: str, words: str, /, **evidence: Evidence) -> Verdict:
    """Return the verdict that a claim holds under a condition that its source does not state."""
    return Verdict(Outcome.ONLY_IF, words, evidence, condition)


def fails(words: str, /, **evidence: Evidence) -> Verdict:
    """Return the verdict that a claim does not hold."""
    return Verdict(Outcome.FAILS, words, evidence)


def undecided(words: str, /, **evidence: Evidence) -> Verdict:
    """Return the verdict that the seeds that were run do not tell."""
    return Verdict(Outcome.UNDECIDED, words, evidence)


def untested(words: str, /, **evidence: Evidence) -> Verdict:
    """Return the verdict that no run here could tell; the words say what would."""
    return Verdict(Outcome.UNTESTED, words, evidence)


Answer: TypeAlias = bool | None
"""Yes, no, or not decided, as `PairedRatio.keeps`."""


def every(*answers: Answer) -> Answer:
    """Return whether all are yes: one no decides, else whatever is not decided leaves it open.

    >>> every(True, None), every(False, None)
    (None, False)
    """
    if any(answer is False for answer in answers):
        return False
    return None if any(answer is None for answer in answers) else True


def some(*answers: Answer) -> Answer:
    """Return whether one is yes: one decides, else whatever is not decided leaves it open."""
    return opposite(every(*map(opposite, answers)))


def opposite(answer: Answer) -> Answer:
    """Return no for yes, yes for no."""
    return None if answer is None else not answer


def decide(*cases: tuple[Answer, MakeVerdict], otherwise: MakeVerdict) -> MakeVerdict:
    """Return what makes the verdict of the first case that is so; of none, `otherwise`; `undecided` where it is open.

    A case that is not decided leaves everything open but where what comes after it makes the same verdict anyway.

    >>> decide((None, holds), otherwise=fails) is undecided
    True
    """
    for i, (answer, make) in enumerate(cases):
        if answer:
            return make
        if answer is None:
            rest = decide(*cases[i + 1 :], otherwise=otherwise)
            return make if rest is make else undecided
    return otherwise


Check: TypeAlias = Callable[[Arithmetic], Verdict]


@dataclass(frozen=True)
class Claim:
    """A statement that people make about mixed precision.

    Attributes
    ----------
    key : str
        Its name on the command line.
    subject : str
        What it is about.
    text : str
        The statement, in our words.
    source : str
        Who says so, and where.
    rests_on : Ground
        What the verdict rests on.
    check : callable
        Computes the verdict under an arithmetic.
    root : str
        The error that it goes back to if it does not hold, which others may share; empty: it stands alone.

    """

    key: str
    subject: str
    text: str
    source: str
    rests_on: Ground
    check: Check
    root: str = ""


def stated(
    key: str, subject: str, text: str, source: str, *, rests_on: Ground, root: str = ""
) -> Callable[[Check], Claim]:
    """Make a claim of the function that checks it."""
    return lambda check: Claim(key, subject, text, source, rests_on, check, root)


@dataclass(frozen=True)
class Judgement:
    """A claim and its verdict."""

    claim: Claim
    verdict: Verdict

    @property
    def wrong(self) -> bool:
        """Whether the claim does not hold, or only under a condition."""
        return self.verdict.outcome in (Outcome.FAILS, Outcome.ONLY_IF)

    @property
    def ground(self) -> str:
        """What the verdict rests on: of runs the setting, and of how many seeds they are."""
        seeds = self.verdict.seeds
        many = "n = " + " and ".join(map(str, seeds)) if seeds else ""
        details = "; ".join(filter(None, (*self.verdict.settings, many)))
        return f"{self.claim.rests_on}: {details}" if details else f"{self.claim.rests_on}"


def share(part: Any, whole: Any = None) -> float:
    """Return the mean of a boolean array, or part / whole; 0 of nothing."""
    if whole is None:
        return float(np.mean(part)) if np.size(part) else 0.0
    return float(part) / float(whole) if whole else 0.0


def positive_values(fmt: FormatLike) -> Array:
    """Return all finite positive values of a format of at most 16 bits, ascending, in float64."""
    float_format: FloatFormat = get_format(fmt)
    codes = np.arange(1, 2 ** (float_format.bits - 1), dtype=code_dtype(float_format))
    values = np.asarray(decode(codes, float_format), np.float64)
    positive: Array = np.sort(values[np.isfinite(values)])
    return positive
