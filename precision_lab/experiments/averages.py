"""Does a running average of the weights follow them in 16 bits?

Many trainings keep a running average of their weights, ``e' = d e + (1 - d) w``, and use that in the end (Polyak and
Juditsky 1992). A multilayer perceptron is trained in float32 with Adam on the handwritten digits; averages of its
weights are kept in several formats and for several decays d, from the initialisation on and from the middle of the run
on. Nothing of this comes back into the training. And one more product of the same kind: AdamW takes
``lr * weight_decay`` of itself off every weight, in every step.

What to look for
----------------
What is added in a step is (1 - d) (w - e), and half the gap beside e, which it must exceed, is between 2^-(p+1) and
2^-p of e. So *no average moves whose weight stays within 2^-(p+1) / (1 - d) of its size*: in bf16 (p = 8) that is 20 %
with d = 0.99, 39 % with 0.995, and nearly twice its size with 0.999. How far each weight ever goes, and the gap, tell
the smallest 1 - d that moves its average, with no average computed: the curves of the figure. The marks are averages
that were computed.

So the decay alone does not decide it, but together with *how far the weights travel*. From the initialisation on many
small weights become several times larger, and their averages move (those of biases, which begin at 0, always do); in
the second half of the run fewer do; in a fine-tuning that changes weights by 3 % of their size none would move in bf16
with a decay of 0.95. Those that move stop on
their way: the averages *end off* by a large part of the way that they should have made. In fp16, with three more bits,
the same happens to decays that are eight times nearer to 1. Stochastic rounding, with its noise, and a second word
(Kahan's) follow in bf16 too; float32 follows for all of these decays. (With 0.9999 the exact average has hardly left
its beginning: there the rounding of its first value is not small beside its way, whatever keeps it afterwards.)

The order of the operations moves the limits, and does not take them away. With one interpolation,
``R(e + (1 - d) (w - e))`` (torch's ``lerp_``, in `torch.optim.swa_utils`), the weights that leave an average where it
is lie around it on both sides. Multiplied first and added then, ``R(R(d e) + R(1 - d) w)`` (``mul_`` and ``add_``), the
first rounding is off by up to half a gap, which is the same as long as e is: the range of such weights is as wide, but
lies to one side, and the average comes to stand there. Where 1 - d is at most 2^-(p+1), R(d e) is e, and (1 - d) w is
added whatever e is: weights of its own sign can make such an average larger and never smaller.

*Weight decay.* A factor of 1 - lr * weight_decay that is nearer to 1 than 2^-(p+1), 2^-9 in bf16, takes nothing off any
weight: with 1e-4 a step the norm is after 5,000 steps what it was, where it should be 61 %. With 3e-3 it falls until
the significands are so small that nothing comes off any more, and stands still there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics import fixed
from precision_lab.numerics.codec import codec
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.rounding import neighbours, round_to
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.loop import train
from precision_lab.training.update_rules import UPDATE_RULES, Update, Words
from precision_lab.training.update_rules import rounded as rounded_number

Floats: TypeAlias = NDArray[np.float32]

ORDERS = ("lerp", "mul_add")
"""Of the operations: R(e + (1 - d) (w - e)), rounded once; R(R(d e) + R(1 - d) w), rounded twice, with a constant."""

BEGINNINGS = ("initialisation", "middle")
"""Where averages begin: with the first weights, with those in the middle of the run."""

_RULES = ("ties_to_even", "stochastic", "kahan")
_ASKED = 0.999  # the decay that the answer speaks of, or the nearest


class Keeping(NamedTuple):
    """How an average is kept.

    Attributes
    ----------
    format : str
        Of the average.
    rule : str
        ``ties_to_even``, ``stochastic`` or ``kahan``: see `training.update_rules`.
    order : str
        One of `ORDERS`; the second is of ``ties_to_even`` only.

    """

    format: str
    rule: str = "ties_to_even"
    order: str = "lerp"

    @property
    def text(self) -> str:
        """What it is called."""
        return " ".join(
            [self.format, *[self.rule] * (self.rule != "ties_to_even"), *[self.order] * (self.order != "lerp")]
        )


@dataclass(frozen=True)
class AveragesConfig(PlainData):
    """What to average, and how.

    Attributes
    ----------
    decays : tuple of float
        The d, above 0 and below 1.
    keepings : tuple of Keeping
        How each average is kept.
    rates : tuple of float
        The 1 - d, ascending, for which the gaps are asked.
    learning_rate, hidden, steps, batch_size, seed
        As in `TrainingConfig`, of a run with Adam; the seed is that of stochastic rounding, too.
    weight_decays : tuple of float
        The lr * weight_decay of the second question.
    decay_steps : int
        How often a decay is taken off.
    decay_keepings : tuple of Keeping
        How the weights are kept then; the order says nothing there.

    """

    decays: tuple[float, ...] = (0.9, 0.99, 0.995, 0.999, 0.9999)
    keepings: tuple[Keeping, ...] = (
        *(Keeping(fmt, "ties_to_even", order) for fmt in ("bf16", "fp16", "fp32") for order in ORDERS),
        Keeping("bf16", "stochastic"),
        Keeping("bf16", "kahan"),
    )
    rates: tuple[float, ...] = tuple(float(x) for x in fixed.geomspace(2.0**-26, 0.5, 76))
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (64,)
    steps: int = 1000
    batch_size: int = 64
    seed: int = 0
    weight_decays: tuple[float, ...] = (1e-4, 1e-3, 3e-3)
    decay_steps: int = 5000
    decay_keepings: tuple[Keeping, ...] = (
        *map(Keeping, ("bf16", "fp16", "fp32")),
        Keeping("bf16", "stochastic"),
        Keeping("bf16", "kahan"),
    )

    @classmethod
    def quick(cls) -> Self:
        """Return a smaller configuration that asks the same."""
        return cls(steps=400, decay_steps=1000)

    def __post_init__(self) -> None:
        for name in ("decays", "rates", "weight_decays"):
            shares = getattr(self, name)
            if not isinstance(shares, tuple) or not shares or not all(0 < share < 1 for share in shares):
                raise ValueError(f"{name} must be a tuple of numbers between 0 and 1, at least one, got {shares!r}")
        for name in ("keepings", "decay_keepings"):
            if not isinstance(getattr(self, name), tuple) or not getattr(self, name):
                raise ValueError(f"{name} must be a tuple of Keeping, at least one, got {getattr(self, name)!r}")
        for keeping in (*self.keepings, *self.decay_keepings):
            _check(keeping)
        check_integer("decay_steps", self.decay_steps, 10)
        check_integer("steps", self.steps, 2)
        self.training()

    def training(self) -> TrainingConfig:
        """Return the configuration of the training run; raises its ValueErrors."""
        return TrainingConfig(
            hidden=self.hidden,
            optimizer="adam",
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            snapshot_steps=tuple(range(self.steps)),
            measure_every=self.steps,
        )


def _check(keeping: Keeping) -> None:
    get_format(keeping.format)
    if keeping.rule not in _RULES:
        raise ValueError(f"rule must be one of {', '.join(_RULES)}; got {keeping.rule!r}")
    if keeping.order not in ORDERS or (keeping.order != ORDERS[0] and keeping.rule != _RULES[0]):
        raise ValueError(f"order must be one of {ORDERS}, with {keeping.rule} {ORDERS[0]!r}; got {keeping.order!r}")


@dataclass(frozen=True)
class Followed(PlainData):
    """What became of an average of each weight.

    Attributes
    ----------
    beginning : str
        One of `BEGINNINGS`.
    keeping : Keeping
        How it was kept.
    decay : float
        Its d.
    still : float
        Share of the averages that never left their first value, of those whose weight did.
    off : float
        How far the averages end from the exact ones, by how far these went: 0 is exact, 1 as far off as if they had
        stayed.

    """

    beginning: str
    keeping: Keeping
    decay: float
    still: float
    off: float


@dataclass(frozen=True)
class Reach(PlainData):
    """Which averages gaps keep where they are: told by the weights and the format, with no average computed.

    Attributes
    ----------
    beginning : str
        One of `BEGINNINGS`.
    format : str
        Of the average; one interpolation a step, ties to even.
    rates : tuple of float
        Some 1 - d.
    still : tuple of float
        Share of the averages that never move, of those whose weight does, for each.
    median : float
        The smallest 1 - d with which half of them move.

    """

    beginning: str
    format: str
    rates: tuple[float, ...]
    still: tuple[float, ...]
    median: float


@dataclass(frozen=True)
class Decayed(PlainData):
    """What AdamW's decay leaves of weights without gradients.

    Attributes
    ----------
    keeping : Keeping
        How they are kept.
    rate : float
        lr * weight_decay.
    steps : tuple of int
        After so many steps ...
    norms : tuple of float
        ... the norm of the weights is this share of what it was.
    exact : float
        What it should be after the last.

    """

    keeping: Keeping
    rate: float
    steps: tuple[int, ...]
    norms: tuple[float, ...]
    exact: float


@dataclass(frozen=True)
class AveragesResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : AveragesConfig
        What was asked.
    followed : tuple of Followed
        One for each beginning, keeping and decay.
    reaches : tuple of Reach
        One for each beginning and format.
    decayed : tuple of Decayed
        One for each lr * weight_decay and keeping.

    """

    layout: ClassVar = Layout("experiment averages")

    config: AveragesConfig
    followed: tuple[Followed, ...]
    reaches: tuple[Reach, ...]
    decayed: tuple[Decayed, ...]

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        decay = min(self.config.decays, key=lambda d: abs(d - _ASKED))
        first, last = (self.of(beginning, decay) for beginning in BEGINNINGS)
        plain = [k for k in self.config.keepings if k.rule == _RULES[0] and k.order == ORDERS[0]] or first
        stands = ", ".join(f"{k.text} {_percent(first[k].still)} ({_percent(last[k].still)})" for k in plain)
        ends = ", ".join(f"{k.text} {found.off:.2g}" for k, found in first.items() if k.order == ORDERS[0])
        text = (
            f"of averages with a decay of {decay:g} these shares never move though their weights do, from the "
            f"initialisation on (from the middle of the run on): {stands}; they end off by this part of the way from "
            f"the initialisation: {ends}"
        )
        rate = min(self.config.weight_decays)
        norms = [d for d in self.decayed if d.rate == rate]
        left = ", ".join(f"{d.keeping.text} {d.norms[-1]:.3f}" for d in norms)
        return (
            f"{text}; {self.config.decay_steps:,} decays of {rate:g} leave of the norm of weights (exactly "
            f"{norms[0].exact:.3f}): {left}"
        )

    def of(self, beginning: str, decay: float) -> dict[Keeping, Followed]:
        """Return what became of the averages with a beginning and a decay."""
        return {f.keeping: f for f in self.followed if (f.beginning, f.decay) == (beginning, decay)}


def run(config: AveragesConfig | None = None, *, progress: Callable[[int, int], None] | None = None) -> AveragesResult:
    """Train, average the weights, and let weights decay.

    Parameters
    ----------
    config : AveragesConfig, optional
        Default: the run of the documentation.
    progress : callable, optional
        Called with the number of training steps done and of all, and then with what follows, counted as steps.

    Raises
    ------
    ValueError
        The configuration is none that can be run; the message names the accepted values.

    """
    config = config or AveragesConfig()
    rest = len(BEGINNINGS) * len(config.keepings) + len(config.weight_decays) * len(config.decay_keepings)
    done = 0

    def tell(step: int) -> None:
        nonlocal done
        done = step
        if progress is not None:
            progress(done, config.steps + rest)

    weights = _weights(config, tell)
    parts = dict(zip(BEGINNINGS, (weights, weights[config.steps // 2 :]), strict=True))
    followed = []
    for beginning, part in parts.items():
        exact = {decay: exact_average(part, decay) for decay in config.decays}
        for keeping in config.keepings:
            for decay in config.decays:
                still, off = follow(part, keeping, decay, exact[decay], config.seed)
                followed.append(Followed(beginning, keeping, decay, still, off))
            tell(done + 1)
    formats = dict.fromkeys(keeping.format for keeping in config.keepings)
    reaches = tuple(_reach(config, beginning, part, fmt) for beginning, part in parts.items() for fmt in formats)
    decayed = []
    for rate in config.weight_decays:
        for keeping in config.decay_keepings:
            decayed.append(decay_weights(weights[-1], keeping, rate, config.decay_steps, config.seed))
            tell(done + 1)
    return AveragesResult(config, tuple(followed), reaches, tuple(decayed))


def _weights(config: AveragesConfig, tell: Callable[[int], None]) -> Floats:
    """Return the weights before each step and after the last, a row each."""
    training = train(config.training(), progress=tell)
    every = [*(snapshot.parameters for snapshot in training.snapshots), training.parameters]
    return np.stack([np.concatenate([array.reshape(-1) for array in parameters.values()]) for parameters in every])


# ---- averages ----


def exact_average(weights: Floats, decay: float) -> NDArray[np.float64]:
    """Return the running average of rows, begun with the first, in float64."""
    average: NDArray[np.float64] = weights[0].astype(np.float64)
    for row in weights[1:]:
        average += (1 - decay) * (row - average)
    return average


def averages(weights: Floats, keeping: Keeping, decay: float, seed: int = 0) -> Iterator[Floats]:
    """Yield the running average of rows as it is kept: the first row as stored, then what the others make of it.

    The constants are what torch makes of them: float32 numbers, but for the factor of `add_`, which is rounded into the
    format. Sums and products are taken in float32 and rounded into the format where `ORDERS` says so.
    """
    fmt = get_format(keeping.format)
    rule, rounded = UPDATE_RULES[keeping.rule], codec(fmt)
    kept, new = np.float32(decay), np.float32(1 - decay)
    added = rounded_number(1 - decay, fmt)
    first = np.ascontiguousarray(round_to(weights[0], fmt), np.float32)
    words: Words = (first, *(np.zeros_like(first) for _ in rule.words))
    yield first
    for step, row in enumerate(weights[1:]):
        if keeping.order == ORDERS[0]:
            away = row - words[0]
            words = rule.add(words, Update(new, away, 0.0, away), fmt, (seed, step * row.size))
        else:
            words = (rounded.compute("scaled_sum_32", added, row, rounded.round(kept * words[0])),)
        yield words[0]


def follow(
    weights: Floats, keeping: Keeping, decay: float, exact: NDArray[np.float64], seed: int = 0
) -> tuple[float, float]:
    """Return `Followed.still` and `Followed.off` of an average; `exact` is what it should end at."""
    every = averages(weights, keeping, decay, seed)
    first = last = next(every)
    moved = np.zeros(first.size, bool)
    for last in every:
        moved |= last != first
    travels = (weights != weights[0]).any(axis=0)
    way = fixed.norm(exact - weights[0])
    off = fixed.norm(last - exact) / way if way else 0.0
    return _share(~moved & travels, travels), off


def least_rates(weights: Floats, fmt: FormatLike) -> NDArray[np.float64]:
    """Return for each column the smallest 1 - d that moves an average of it which begins with the first row.

    That is half of the gap above the first value, by how far the others are above it at most, or the same below if that
    is less; infinite where nothing is. At exactly this rate a tie decides.
    """
    first = np.asarray(round_to(weights[0], fmt), np.float64)
    below, above = neighbours(first, fmt)
    up, down = weights.max(axis=0) - first, first - weights.min(axis=0)
    with np.errstate(divide="ignore"):
        rates = [np.where(far > 0, gap / 2 / far, np.inf) for gap, far in ((above - first, up), (first - below, down))]
    return np.minimum(*rates)


def _reach(config: AveragesConfig, beginning: str, weights: Floats, fmt: str) -> Reach:
    least = np.sort(least_rates(weights, fmt)[(weights != weights[0]).any(axis=0)])
    still = (least.size - np.searchsorted(least, config.rates)) / max(least.size, 1)
    median = float(least[least.size // 2]) if least.size else np.inf
    return Reach(beginning, fmt, config.rates, tuple(still.tolist()), median)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share else "none"


def _share(some: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    return int(some.sum()) / max(int(of.sum()), 1)


# ---- decay ----


def decay_weights(weights: Floats, keeping: Keeping, rate: float, steps: int, seed: int = 0) -> Decayed:
    """Take AdamW's decay off weights that get no gradient, `rate` of itself in each step."""
    fmt = get_format(keeping.format)
    rule = UPDATE_RULES[keeping.rule]
    first = np.ascontiguousarray(round_to(weights, fmt), np.float32)
    words: Words = (first, *(np.zeros_like(first) for _ in rule.words))
    nothing = np.zeros_like(first)
    before, looks, norms = fixed.norm(first), {steps * k // 10 for k in range(11)}, []
    for step in range(steps + 1):
        if step in looks:
            norms.append(fixed.norm(words[0]) / before if before else 0.0)
        decayed = np.float32(-rate) * words[0]
        words = rule.add(words, Update(np.float32(0), nothing, rate, decayed), fmt, (seed, step * first.size))
    return Decayed(keeping, rate, tuple(sorted(looks)), tuple(norms), fixed.power(1 - rate, steps))
