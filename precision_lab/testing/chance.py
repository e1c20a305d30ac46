"""Is a choice between two neighbours made with the right probabilities? Bounds that hold for certain, not nearly.

The number of times that independent choices go up, of n with probabilities of mean p, is k with a probability of at
most exp(-n D), D = q log(q/p) + (1-q) log((1-q)/(1-p)), q = k/n, and so are all that are further from n p on that side
(Hoeffding 1963, theorem 1, which does not ask for equal probabilities). So a right cast can be told how improbable it
is that it fails: `RISK` for all comparisons of one check together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

RISK = 1e-9  # of naming a right cast
_MOST_BITS = 24
_NEARLY = 0.1  # of the results that should go the other way


def log_tail(n: float, k: float, p: float) -> float:
    """Return the logarithm of the bound on the probability of k of n, or of what is further from n p.

    >>> round(log_tail(100, 90, 0.5), 3), log_tail(10, 0, 0.0), log_tail(10, 1, 0.0)
    (-36.806, 0.0, -inf)
    """
    q = k / n
    parts = ((q, p), (1 - q, 1 - p))
    if any(a > 0 and b <= 0 for a, b in parts):
        return -math.inf
    return 0.0 - n * max(sum(a * math.log(a / b) for a, b in parts if a > 0), 0.0)


class Choices(NamedTuple):
    """What became of inputs between two neighbours.

    Attributes
    ----------
    share : ndarray
        How far each input is from the neighbour nearer to zero, in spacings: with this probability it should go up,
        away from zero.
    negative, odd, subnormal, edge : ndarray of bool
        Whether it is negative, the neighbour below has an odd significand, the result is subnormal, and the neighbour
        above is beyond the largest value.
    asked, up : ndarray of int
        How often it was cast, and how often it went up.
    alike, calls : int
        Of the calls with enough copies of an input, how many saw all copies of every input go one way.
    steady : bool
        Whether the same array gave the same results again.

    """

    share: Floats
    negative: Mask
    odd: Mask
    subnormal: Mask
    edge: Mask
    asked: Counts
    up: Counts
    alike: int
    calls: int
    steady: bool

    def take(self, chosen: Mask) -> Choices:
        """Return some of the inputs."""
        return self._replace(**{name: getattr(self, name)[chosen] for name in self._fields[:7]})


@dataclass(frozen=True)
class Verdict:
    """What the choices of a cast are.

    Attributes
    ----------
    name, text : str
        Of the mistake, empty if there is none.
    notes : tuple of str
        What was seen, with its bounds.

    """

    name: str
    text: str
    notes: tuple[str, ...]


def _groups(choices: Choices) -> dict[str, Mask]:
    """Return the groups of inputs whose means are compared, by name."""
    share = choices.share
    exponents = np.frexp(np.minimum(share, 1 - share))[1]
    groups = {
        "all": np.ones(share.shape, np.bool_),
        **_regions(choices),
        "low": share < 0.5,
        "high": share > 0.5,
        **{f"near zero {k}": (share < 0.5) & (exponents == k) for k in np.unique(exponents).tolist()},
        **{f"near one {k}": (share > 0.5) & (exponents == k) for k in np.unique(exponents).tolist()},
    }
    return {name: group for name, group in groups.items() if choices.asked[group].sum()}


def _regions(choices: Choices) -> dict[str, Mask]:
    """Return the inputs among which a mistake may be confined to some."""
    return {
        "for negative inputs": choices.negative,
        "for positive inputs": ~choices.negative,
        "for subnormal results": choices.subnormal,
        "for normal results": ~choices.subnormal,
        "beyond the largest value": choices.edge,
    }


def refutes(choices: Choices, probabilities: Floats, risk: float = RISK) -> bool:
    """Return whether the choices are not made with these probabilities; wrongly with a probability below `risk`."""
    groups = _groups(choices)
    limit = math.log(risk / (2 * max(len(groups), 1)))
    for group in groups.values():
        asked = choices.asked[group]
        n, k = int(asked.sum()), int(choices.up[group].sum())
        if log_tail(n, k, float(asked @ probabilities[group]) / n) < limit:
            return True
    return False


def with_bits(share: Floats, bits: int, rule: str) -> Floats:
    """Return the probabilities of a cast that has so many random bits."""
    rounding: Mapping[str, Callable[[Floats], Floats]] = {
        "down": np.floor,
        "to nearest": lambda x: np.floor(x + 0.5),
        "up": np.ceil,
    }
    return np.ldexp(rounding[rule](np.ldexp(share, bits)), -bits)


def judge(choices: Choices) -> Verdict:
    """Say whether the choices are right, right within few random bits, or wrong in a way that has a name."""
    if not choices.asked.size:
        return Verdict("", "", ("no input lies between two neighbours: there is no choice to make",))
    n = int(choices.asked.sum())
    means = (choices.up.sum() - choices.asked @ choices.share) / n
    bound = math.sqrt(math.log(2 * len(_groups(choices)) / RISK) / (2 * n))
    seen = f"{n:,} results between two neighbours are on average {means:+.2g} spacings away from zero"
    right = f"unbiased is 0 within {bound:.2g}, and fails this check with a probability below {RISK:g}"
    notes: tuple[str, ...] = (f"{seen}; {right}",)
    always = _direction(choices, np.ones(choices.share.shape, np.bool_))
    if choices.alike == choices.calls and choices.calls and not (always and always[1] == 1):
        if choices.steady:
            text = "the same input goes the same way each time, by no rule known here: there is no chance in it"
            return Verdict("always the same choice", text, ())
        text = "in one call all copies of an input go the same way; the mean is not judged"
        return Verdict("one random number for a whole array", text, ())
    if choices.steady and not (always and always[1] == 1):
        notes += ("the same array gives the same results again: the random numbers are those of a fixed seed",)
    if not refutes(choices, choices.share):
        return Verdict("", "", (*notes, f"random bits: {_resolved(choices)} or more"))
    for bits in range(1, _MOST_BITS):
        for rule in ("down", "to nearest", "up"):
            if not refutes(choices, with_bits(choices.share, bits, rule)):
                text = (
                    f"{bits} random bit{'s' * (bits > 1)}: right within them; probabilities are multiples of 2^-{bits}"
                )
                return Verdict("", "", (*notes, f"{text}, rounded {rule}"))
    where, place = _confined(choices)
    name, text = _named(choices, where)
    return Verdict(name, text + (f", only {place}" if place else ""), notes)


def _resolved(choices: Choices) -> int:
    """Return how many random bits there are at least: with fewer, some inputs would never go up."""
    limit = math.log(2 * len(_groups(choices)) / RISK)
    exponents = 1 - np.frexp(choices.share)[1]
    expected = np.bincount(exponents, choices.asked * choices.share)
    shown = np.flatnonzero(expected < limit)
    return int(min(shown[shown > 0], default=expected.size)) - 1


def _confined(choices: Choices) -> tuple[Mask, str]:
    """Return the inputs among which the choices are wrong, and their name, as few as do; all, if they have none."""
    for place, region in sorted(_regions(choices).items(), key=lambda item: int(item[1].sum())):
        if region.any() and not region.all() and not refutes(choices.take(~region), choices.share[~region]):
            return region, place
    return np.ones(choices.share.shape, np.bool_), ""


def _directions(choices: Choices) -> dict[str, Mask]:
    """Return, for each rule without chance, which inputs go up."""
    share, negative = choices.share, choices.negative
    return {
        "toward zero": np.zeros(share.shape, np.bool_),
        "away from zero": np.ones(share.shape, np.bool_),
        "up, toward +infinity": ~negative,
        "down, toward -infinity": negative,
        "to nearest": (share > 0.5) | ((share == 0.5) & choices.odd),
    }


def _direction(choices: Choices, where: Mask) -> tuple[str, float, float] | None:
    """Return the rule without chance that most choices follow, their share, and what it should be."""
    asked, best = choices.asked[where].sum(), None
    for name, up in _directions(choices).items():
        follows = np.where(up, choices.up, choices.asked - choices.up)[where].sum() / asked
        right = float(choices.asked[where] @ np.where(up, choices.share, 1 - choices.share)[where]) / asked
        if 1 - follows <= _NEARLY * (1 - right) and (best is None or follows > best[1]):
            best = name, float(follows), right
    return best


def _named(choices: Choices, where: Mask) -> tuple[str, str]:
    if (found := _direction(choices, where)) is not None:
        name, share, right = found
        often = "always" if share == 1 else "nearly always"
        followed = "every one" if share == 1 else f"{share:.2%}"
        return (
            f"{often} rounds {name}",
            f"{followed} of the results between two neighbours, where {right:.1%} would be right",
        )
    part = choices.take(where)
    if not refutes(part, np.full(part.share.shape, 0.5)):
        return "even odds", "both neighbours come equally often, however near one of them is"
    if not refutes(part, 1 - part.share):
        return "probabilities exchanged", "the neighbour that is further away is the one that comes more often"
    mean = float(part.up.sum() - part.asked @ part.share) / part.asked.sum()
    return "biased", f"results are on average {mean:+.3g} spacings away from zero, or wrong for some distances"
