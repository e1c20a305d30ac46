"""How the learning rate moves in a run: which share of it each step takes.

Of a run of `steps` steps, step t counted from 0, with `warmup` steps of warm-up and the share `final` (F) at the end:

=============  ==================================  =====================================================================
steps          share of the learning rate          kind
=============  ==================================  =====================================================================
t < warmup     (t + 1) / warmup                    every kind: the last of these steps takes all of it
t >= warmup    1                                   `constant`
t >= warmup    F + (1 - F) * (1 - p)               `linear`
t >= warmup    F + (1 - F) * (1 + cos(pi * p)) / 2  `cosine` (Loshchilov, Hutter 2017, equation 5, one cycle)
=============  ==================================  =====================================================================

with p = (t - warmup) / (steps - warmup). So the first step after the warm-up takes all of the learning rate again, and
F is what the step after the last one would take: the last takes F + (1 - F) / (steps - warmup) (`linear`), and no step
takes nothing. Every step counts, also one that the loss scale skips.

Beside others: after the warm-up these are the shares of ``get_linear_schedule_with_warmup`` and
``get_cosine_schedule_with_warmup`` of transformers (whose F is 0), and of ``torch.optim.lr_scheduler.LinearLR`` and
``CosineAnnealingLR`` (``end_factor`` or ``eta_min`` for F, ``total_iters`` or ``T_max`` for steps - warmup). In the
warm-up those of transformers are t / warmup: their first step takes nothing, and each of ours takes what the next
takes there. ``torch.optim.lr_scheduler.LambdaLR`` of `Schedule.factor` gives torch the same learning rates to the last
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from precision_lab.support.arguments import check_integer, is_integer
from precision_lab.support.plain import register

KINDS = ("constant", "linear", "cosine")
"""The accepted values of `Schedule.kind`."""


@dataclass(frozen=True)
class Schedule:
    """Which share of the learning rate each step takes.

    Attributes
    ----------
    kind : str
        One of `KINDS`: after the warm-up the share stays 1, or falls along a line or half a cosine wave.
    warmup : int
        Steps in which the share rises to 1, at least 0.
    final : float
        The share that it falls to, from 0 to 1; ``constant`` has none (0).

    Raises
    ------
    ValueError
        A value is none of the accepted ones.

    Examples
    --------
    >>> [Schedule("linear", warmup=2).factor(step, 6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    >>> str(Schedule.parse("cosine, warmup=100, final=0.1"))
    'cosine,warmup=100,final=0.1'

    """

    kind: str = "constant"
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of a schedule must be one of {', '.join(KINDS)}; got {self.kind!r}")
        check_integer("warmup", self.warmup, 0)
        number = is_integer(self.final) or isinstance(self.final, float | np.floating)
        if not number or not 0 <= self.final <= 1:  # NaN is not between them
            raise ValueError(f"final must be a number from 0 to 1, got {self.final!r}")
        if self.final and self.kind == "constant":
            raise ValueError(f"final is for linear and cosine: a constant learning rate stays, got {self.final!r}")
        object.__setattr__(self, "warmup", int(self.warmup))
        object.__setattr__(self, "final", float(self.final))

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Return the schedule of a text: a kind, then what it needs, as in ``cosine,warmup=100,final=0.1``.

        Raises
        ------
        ValueError
            The text is none; the message names what is accepted.

        """
        kind, *pairs = (part.strip() for part in text.split(","))
        if kind not in KINDS:
            raise ValueError(
                f"{kind!r} is no schedule: one of {', '.join(KINDS)}, then warmup=N or final=X, "
                "as in cosine,warmup=100,final=0.1"
            )
        chosen: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = (x.strip() for x in pair.partition("="))
            if not equals or key not in _READERS:
                raise ValueError(f"{pair!r} is nothing of a schedule: after {kind} may come warmup=N and final=X")
            if key in chosen:
                raise ValueError(f"{key} of a schedule must be given once, got {text!r}")
            try:
                chosen[key] = _READERS[key](value)
            except ValueError:
                raise ValueError(f"{key} of a schedule must be {_NUMBERS[key]}, got {value!r}") from None
        return cls(kind, **chosen)

    def __str__(self) -> str:
        """Return the text that `parse` makes this schedule of."""
        warmup = f",warmup={self.warmup}" if self.warmup else ""
        return f"{self.kind}{warmup}{f',final={self.final!r}' if self.final else ''}"

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the learning rate that a step takes, rounded once to a float64.

        Exactly rounded but for `cosine`, which is computed from 250 bits: there in one of 2^190 cases it is the
        neighbour.

        Parameters
        ----------
        step : int
            From 0 to ``steps - 1``.
        steps : int
            Of the whole run, at least `warmup`.

        Raises
        ------
        ValueError
            One of them is out of range.

        """
        if not is_integer(steps) or steps < self.warmup:
            raise ValueError(f"steps must be an integer of at least warmup, {self.warmup}, got {steps!r}")
        if not is_integer(step) or not 0 <= step < steps:
            raise ValueError(f"step must be an integer in 0..{steps - 1}, got {step!r}")
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "constant":
            return 1.0
        left, whole = int(steps - step), int(steps - self.warmup)
        if self.kind == "cosine":
            left, whole = _half_wave(left, whole)
        final, one = self.final.as_integer_ratio()
        return (final * whole + (one - final) * left) / (one * whole)  # Python divides integers with one rounding


register(Schedule, str, Schedule.parse)

CONSTANT = Schedule()
"""Every step takes all of the learning rate."""


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError
    return int(text)


_READERS: Mapping[str, Callable[[str], float]] = {"warmup": _whole_number, "final": float}
_NUMBERS = {"warmup": "a whole number below 10^9", "final": "a number from 0 to 1"}

_BITS = 256
_PI = 0x3_243F6A88_85A308D3_13198A2E_03707344_A4093822_299F31D0_082EFA98_EC4E6C89  # of 2^_BITS, rounded down
_SIXTHS = {2: 1, 3: 2, 4: 3, 6: 4}  # where the wave is rational (Niven 1956), in quarters: else no tie can come up


@lru_cache(maxsize=1 << 15)  # the runs of a sweep take the same steps
def _half_wave(left: int, whole: int) -> tuple[int, int]:
    """Return (1 - cos(pi * left / whole)) / 2 as numerator and denominator, with an error below 2^-245."""
    sixths, rest = divmod(6 * left, whole)
    if not rest and sixths in _SIXTHS:
        return _SIXTHS[sixths], 4
    if 2 * left > whole:  # cos(pi - x) = -cos(x): the series is short up to pi / 2
        below, one = _half_wave(whole - left, whole)
        return one - below, one
    angle = _PI * left // whole
    square = angle * angle >> _BITS
    total, term, n = 0, square >> 1, 2
    while term:
        total += term if n % 4 else -term
        n += 2
        term = (term * square >> _BITS) // (n * (n - 1))
    return total, 2 << _BITS
