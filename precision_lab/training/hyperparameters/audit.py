"""`audit_hyperparameters`: all numbers of an optimizer in one format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import is_number
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.hyperparameters.finding import Finding, Severity, World
from precision_lab.training.hyperparameters.rows import Case, findings
from precision_lab.training.optimizers import (
    OPTIMIZERS,
    Optimizer,
    by_symbol,
    check_has,
    hyperparameters,
    make_optimizer,
    name_of,
    usual_values,
)


@dataclass(frozen=True)
class HyperparameterAudit(PlainData, Shown):
    """All numbers of an optimizer in one format, in two worlds.

    Attributes
    ----------
    format : FloatFormat
        The format.
    optimizer : str
        One of `optimizers.OPTIMIZERS`.
    hyperparameters : dict of str to float
        What was asked for, defaults included.
    steps : int
        Length of the run.
    findings : tuple of Finding
        In the order in which a step of the optimizer uses them: those of `World.HELD`, then those of `World.TORCH`,
        which are fewer, since torch stores fewer numbers.

    """

    layout: ClassVar = Layout(derived=("worst",))

    format: FloatFormat
    optimizer: str
    hyperparameters: dict[str, float]
    steps: int
    findings: tuple[Finding, ...]

    def of(self, world: World) -> tuple[Finding, ...]:
        """Return the findings of a world."""
        return tuple(finding for finding in self.findings if finding.world is world)

    def __getitem__(self, expression: str) -> Finding:
        """Return the finding about an expression held in the format; a KeyError lists those there are."""
        held = {finding.expression: finding for finding in self.of(World.HELD)}
        if expression not in held:
            raise KeyError(f"no finding about {expression!r}; there are {', '.join(held)}")
        return held[expression]

    def torch(self, expression: str) -> Finding | None:
        """Return the finding about an expression as torch has it; None where torch stores no such number."""
        self[expression]
        return next((finding for finding in self.of(World.TORCH) if finding.expression == expression), None)

    @property
    def configured(self) -> Optimizer:
        """The optimizer with these hyperparameters."""
        return make_optimizer(self.optimizer, self.hyperparameters)

    @property
    def worst(self) -> dict[World, Severity]:
        """The highest severity of each world."""
        levels = list(Severity)
        return {world: max((f.severity for f in self.of(world)), key=levels.index) for world in World}


def audit_hyperparameters(
    fmt: FormatLike,
    *,
    optimizer: Optimizer | str = "adamw",
    lr: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    momentum: float | None = None,
    steps: int = 10_000,
) -> HyperparameterAudit:
    """Say what each number that an optimizer stores or multiplies by becomes in a format, and what follows.

    Twice: with all constants held in the format, and as torch has it, with constants that are doubles.

    Parameters
    ----------
    fmt : format spec
        See `get_format`.
    optimizer : str or Optimizer
        A name of `optimizers.OPTIMIZERS`, which decides what hyperparameters there are, or one with its own values.
    lr : float, optional
        Above 0. Default: as for all hyperparameters that of torch.optim.
    beta1, beta2 : float, optional
        Of adam and adamw, in [0, 1).
    eps : float, optional
        The epsilon of adam and adamw (torch's name of it), at least 0.
    weight_decay : float, optional
        At least 0; where it is 0 nothing is said about it.
    momentum : float, optional
        Of sgd, in [0, 1); where it is 0 nothing is said about it.
    steps : int
        Length of the run, at least 1.

    Returns
    -------
    HyperparameterAudit
        A finding for each number.

    Raises
    ------
    ValueError
        Unknown format or optimizer, a hyperparameter that the optimizer does not have or that is out of range; a format
        (a custom one) that does not reach 1.
    FloatingPointError
        As `precision_lab.round_to`.

    Examples
    --------
    >>> audit = audit_hyperparameters("bf16", lr=1e-3, beta2=0.999)
    >>> audit["beta2"].stored, str(audit["beta2"].severity), audit.torch("beta2")
    (1.0, 'fatal', None)
    >>> audit.torch("share of v with R(beta2*v) = v").stored
    1.0

    """
    fmt = get_format(fmt)
    if fmt.max < 1:
        raise ValueError(f"{fmt} must hold 1 to hold the numbers of an optimizer, but ends at {fmt.max:g}")
    given = {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "weight_decay": weight_decay,
        "momentum": momentum,
    }
    made = _optimizer(optimizer, given)
    values = by_symbol(made)
    length = check_integer("steps", steps, 1)
    cases = (Case(fmt, world, made, values, length) for world in World)
    return HyperparameterAudit(fmt, name_of(made), values, length, tuple(f for case in cases for f in findings(case)))


def _optimizer(chosen: Optimizer | str, given: dict[str, float | None]) -> Optimizer:
    """Check what was given and fill in the defaults."""
    name = name_of(chosen) if isinstance(chosen, Optimizer) else chosen
    check_has(name, (symbol for symbol, value in given.items() if value is not None))
    values = by_symbol(chosen) if isinstance(chosen, Optimizer) else usual_values(name)
    ranges = {known.symbol: known.range for known in hyperparameters(OPTIMIZERS[name]).values()}
    for symbol, value in given.items():
        if value is None:
            continue
        number = _as_double(value)
        if not ranges[symbol].holds(number):
            raise ValueError(f"{symbol} must be {ranges[symbol].number}, got {value!r}")
        values[symbol] = number
    return make_optimizer(name, values)


def _as_double(value: object) -> float:
    """Return a number as a double, NaN for what is none."""
    if not is_number(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
