"""Do the numbers of an optimizer survive in 16 bits or fewer?

An optimizer has a handful of constants: lr, beta1, beta2, eps, weight_decay. In float32 nobody looks at them. A format
of few bits has few values near 1 and an early end near 0, and these constants sit exactly there:

- **Near 1** the values are 2^-p apart. bf16 (p = 8) goes from 0.99609375 to 1 in one step, so that beta2 = 0.999
  becomes 1 and the second moment never decays; 1 - lr*weight_decay = 0.99999 becomes 1: there is no weight decay.
- **Near 0** fp16 ends at 2^-24. eps = 1e-8 becomes 0, and a parameter whose gradient is 0 gets 0/0. The square of a
  gradient is twice as far down as the gradient: half of the format's exponents are lost to the second moment.
- **In between** a running average beta2*v + (1 - beta2)*g^2 adds a small number to a large one. The sum is rounded back
  to v before v reaches g^2 (*swamping*), even where beta2 itself survives: with 0.999 in fp16 v stops at 0.75 g^2 for
  g = 1, and for other g, depending on where g^2 lies in its binade, anywhere between 0.61 and 1.02.

`audit_hyperparameters` asks all of this about one format. The rule behind every row: each number is computed exactly
from the hyperparameters and rounded **once** (ties_to_even), which is the kindest that an implementation in this
format can be. There are two exceptions: bias corrections are those of the *stored* beta, and running averages round
each product and each sum. "Exactly" means from the doubles that were given: 0.999 is the double closest to 0.999.

Frameworks often keep the constants in float32 and round only what they compute. That spares the bias corrections, but
not the rest: 0.999*v and 0.99999*w are rounded back to v and w, and on bfloat16 parameters torch.optim.AdamW comes to
the same v = 0.5 g^2, without any decay.

A severity says how far the *effect* is from the one that was asked for (`severity_of`). The effect of beta2 is its
window of 1/(1 - beta2) steps, so that 0.999 becoming 1 is a relative error of 0.1 %, and fatal.

What helps is nearly always the same: keep the optimizer's constants, its moments and a copy of the weights in float32
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).

Sources: Kingma and Ba 2015, arXiv 1412.6980 (Adam, algorithm 1); Loshchilov and Hutter 2019, arXiv 1711.05101 (AdamW);
the defaults are those of torch.optim.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from precision_lab.numerics.codes import decode, encode
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import converted, is_number
from precision_lab.numerics.inspection import to_double_by_odd
from precision_lab.numerics.rounding import as_carrier, neighbours, round_to
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.optimizers import (
    OPTIMIZERS,
    Optimizer,
    by_symbol,
    hyperparameters,
    make_optimizer,
    name_of,
    usual_values,
)

# sixty digits and no end of exponents: powers for any number of steps, far more exact than a double
_DECIMAL = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


class Severity(StrEnum):
    """How far an effect is from the one that was asked for, in rising order; see `severity_of`."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FATAL = "fatal"


def severity_of(effect_error: float) -> Severity:
    """Return the severity of a relative change of an effect.

    ``ok`` is up to 1 %, ``note`` up to 10 %, ``warning`` more; ``fatal`` is a tenth or less, ten times or more, or NaN:
    the hyperparameter no longer has its effect.

    Examples
    --------
    >>> [str(severity_of(error)) for error in (0.01, -0.1, 0.5, -0.9, math.inf)]
    ['ok', 'note', 'warning', 'fatal', 'fatal']

    """
    if not -0.9 < effect_error < 9:
        return Severity.FATAL
    size = abs(effect_error)
    return Severity.OK if size <= 0.01 else Severity.NOTE if size <= 0.1 else Severity.WARNING


@dataclass(frozen=True)
class Finding(PlainData):
    """What becomes of one number of an optimizer.

    Attributes
    ----------
    name : str
        The hyperparameter to change: ``beta2``.
    expression : str
        The number: ``beta2``, ``1 - beta2``, ``1 - lr*weight_decay`` ...
    exact : float
        What it is in exact arithmetic on the doubles that were given, as the closest double.
    stored : float
        What the format makes of it: one of its values, an infinity or NaN.
    relative_error : float
        (stored - exact) / exact; NaN where exact is 0 and where one of them is not finite.
    effect_error : float
        Relative change of what the number is for (of 1 - beta for a beta, of lr*weight_decay for 1 - lr*weight_decay,
        else `relative_error`); infinite or NaN where nothing sensible is left.
    severity : Severity
        `severity_of` the effect error.
    consequence : str
        What follows, in words and numbers.
    survives : float or None
        The closest value of the hyperparameter that does its work here: a value of the format for what is stored
        itself, a double for what goes into an expression. None: there is none, keep it in fp32.
    advice : str
        What to do, empty where all is well.

    """

    name: str
    expression: str
    exact: float
    stored: float
    relative_error: float
    effect_error: float
    severity: Severity
    consequence: str
    survives: float | None
    advice: str


@dataclass(frozen=True)
class HyperparameterAudit(PlainData, Shown):
    """All numbers of an optimizer in one format.

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
        In the order in which a step of the optimizer uses them.

    """

    layout: ClassVar = Layout(derived=("worst",))

    format: FloatFormat
    optimizer: str
    hyperparameters: dict[str, float]
    steps: int
    findings: tuple[Finding, ...]

    def __getitem__(self, expression: str) -> Finding:
        """Return the finding about an expression; a KeyError lists those there are."""
        for finding in self.findings:
            if finding.expression == expression:
                return finding
        raise KeyError(f"no finding about {expression!r}; there are {', '.join(f.expression for f in self.findings)}")

    @property
    def configured(self) -> Optimizer:
        """The optimizer with these hyperparameters."""
        return make_optimizer(self.optimizer, self.hyperparameters)

    @property
    def worst(self) -> Severity:
        """The highest severity of all."""
        return max((finding.severity for finding in self.findings), key=list(Severity).index)


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
        Of adam and adamw, at least 0.
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
    >>> audit["beta2"].stored, str(audit["beta2"].severity)
    (1.0, 'fatal')

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
    return HyperparameterAudit(fmt, name_of(made), values, length, tuple(_findings(fmt, made, values, length)))


def _findings(fmt: FloatFormat, optimizer: Optimizer, values: dict[str, float], steps: int) -> Iterator[Finding]:
    """Describe the numbers that there are, in the order in which a step uses them."""
    lr, beta2, eps, momentum = (values.get(symbol, 0.0) for symbol in ("lr", "beta2", "eps", "momentum"))
    yield _lr(fmt, lr, optimizer)
    if momentum:
        yield _beta(fmt, "momentum", momentum, "the buffer")
        yield _average(fmt, "momentum", momentum, "momentum*m + g")
    if "beta1" in values:
        yield from _moment(fmt, "beta1", values["beta1"], "m")
        if optimizer.corrects_bias:
            yield _bias_correction(fmt, "beta1", values["beta1"], "m", steps)
            yield _first_step(fmt, lr, values["beta1"])
    if "beta2" in values:
        yield from _moment(fmt, "beta2", beta2, "v")
        if optimizer.corrects_bias:
            yield _bias_correction(fmt, "beta2", beta2, "v", steps)
            yield _root_of_correction(fmt, beta2)
    if "eps" in values:
        yield _eps(fmt, eps)
        if "beta2" in values:
            yield _lost_gradients(fmt, beta2, eps)
    if decay := optimizer.weight_decay:
        if not optimizer.decoupled:
            yield _l2(fmt, decay)
        if optimizer.decoupled or not optimizer.normalizes:  # Adam divides what L2 adds to the gradient by sqrt(v)
            yield _decay(fmt, lr, decay, momentum, steps)


def _optimizer(chosen: Optimizer | str, given: dict[str, float | None]) -> Optimizer:
    """Check what was given and fill in the defaults."""
    name = name_of(chosen) if isinstance(chosen, Optimizer) else chosen
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    values = by_symbol(chosen) if isinstance(chosen, Optimizer) else usual_values(name)
    ranges = {known.symbol: known.range for known in hyperparameters(OPTIMIZERS[name]).values()}
    for symbol, value in given.items():
        if value is None:
            continue
        if symbol not in ranges:
            raise ValueError(f"{name} has no {symbol}; it has {', '.join(ranges)}")
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


# ---- the arithmetic ----


def stored_value(value: Fraction, fmt: FormatLike) -> float:
    """Return an exact number rounded once into the format (ties_to_even)."""
    return float(round_to(to_double_by_odd(value), fmt))


def stored_rates(rates: ArrayLike, fmt: FormatLike) -> NDArray[np.float64]:
    """Return 1 - beta as the format has it for each asked 1 - beta: the staircase that ends in 0, where beta becomes 1.

    Parameters
    ----------
    rates : array_like
        Values of 1 - beta in (0, 1].
    fmt : format spec
        See `get_format`.

    Raises
    ------
    ValueError
        `rates` of a dtype that `round_to` does not take; unknown format.

    """
    with np.errstate(invalid="ignore"):  # a signalling NaN
        betas = 1 - converted(as_carrier(rates), np.float64)
    return 1 - np.asarray(round_to(betas, fmt), np.float64)


def settling_value(fmt: FormatLike, decay: float, gain: float) -> float:
    """Return where a running average stops that starts at 0 and is fed a constant.

    Parameters
    ----------
    fmt : format spec
        See `get_format`.
    decay, gain : float
        Positive values of the format, `decay` at most 1. A step is a <- R(R(decay*a) + gain), R being ties_to_even.

    Returns
    -------
    float
        The smallest value of the format that a step does not raise; exact arithmetic goes to gain / (1 - decay). Beyond
        the largest value: what the format makes of that (infinity, NaN).

    Notes
    -----
    A step never gives less for a larger a, so the sequence climbs to exactly this value. It is searched for, not
    iterated: with unit roundoff u a step raises every a below gain*(1 - u) / (1 - decay*(1 - u)^2), so the search
    begins there. Products of two values are exact in float64, and their sums are rounded twice without harm because
    53 >= 2p + 2 (Figueroa 1995, "When is double rounding innocuous?").

    """
    fmt = get_format(fmt)
    if gain == 0:
        return 0.0
    u = fmt.unit_roundoff
    bound = gain * (1 - u) / (1 - decay * (1 - u) * (1 - u)) * (1 - 2**-20)  # the last factor: for errors of this line
    first, jump = (int(encode(min(x, fmt.max), fmt, "toward_zero")) for x in (gain, bound))
    last, size = int(encode(fmt.max, fmt)), 1 << 10
    after = np.array([fmt.max])
    while first <= last:
        if decay * float(decode(first, fmt)) >= fmt.smallest_normal:  # from here on the relative error is u
            first = max(first, jump)
        values = decode(np.arange(first, min(first + size, last + 1)), fmt, np.float64)
        after = round_to(round_to(decay * values, fmt) + gain, fmt)
        still = np.flatnonzero(after <= values)
        if still.size:
            return float(values[still[0]])
        first, size = first + size, min(2 * size, 1 << 18)
    return float(after[-1])


def _power(base: Fraction, exponent: int) -> Decimal:
    size = _DECIMAL.divide(Decimal(abs(base.numerator)), Decimal(base.denominator))
    power = _DECIMAL.power(size, Decimal(exponent))
    return power.copy_negate() if base < 0 and exponent % 2 else power


def _correction(beta: float, t: int) -> Fraction:
    """Return 1 - beta^t."""
    return Fraction(_DECIMAL.subtract(Decimal(1), _power(Fraction(beta), t)))


def _change(new: Fraction | float, old: Fraction) -> float:
    """Return new / old - 1; 0 where both are 0, infinite where only `old` is, `new` where that is not finite."""
    if isinstance(new, float) and not math.isfinite(new):
        return new
    if old == 0:
        return 0.0 if new == 0 else math.inf
    return _as_float(Fraction(new) / Fraction(old) - 1)


def _as_float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _finding(
    name: str,
    expression: str,
    value: float,
    exact: Fraction,
    stored: float,
    consequence: str,
    survives: float | None,
    *,
    effect_error: float | None = None,
    remark: str = "",
    advice: str | None = None,
) -> Finding:
    """Fill in what follows from the rest; without `effect_error` and `advice`: the relative error, what survives."""
    error = _change(stored, exact)
    effect = error if effect_error is None else effect_error
    severity = severity_of(effect)
    if severity in (Severity.OK, Severity.NOTE):
        advice = ""
    elif advice is None:
        advice = _KEEP if survives in (None, value) else f"{name} = {survives!r}{remark}, or {_KEEP}"
    relative = error if exact and math.isfinite(stored) else math.nan
    return Finding(
        name, expression, _as_float(exact), stored, relative, effect, severity, consequence, survives, advice
    )


def _closest(refused: float, accepted: float, works: Callable[[float], bool]) -> float | None:
    """Return the double next to those that do not work, between two that are not negative; None if `accepted` is none.

    `works` changes once between the two.
    """
    if works(refused):
        return refused
    if not works(accepted):
        return None
    bad, good = (int(np.float64(x).view(np.int64)) for x in (refused, accepted))
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        bad, good = (bad, middle) if works(float(np.int64(middle).view(np.float64))) else (middle, good)
    return float(np.int64(good).view(np.float64))


def _largest_value(fmt: FloatFormat, holds: Callable[[float], bool]) -> float:
    """Return the largest finite value of the format up to which a condition holds; it does for 0."""
    low, high = 0, int(encode(fmt.max, fmt)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(float(decode(middle, fmt))) else (low, middle)
    return float(decode(low, fmt))


# ---- what is said ----


def _text(value: float) -> str:
    return f"{value:.6g}"


def _off(error: float) -> str:
    """Write a relative change in words.

    Examples
    --------
    >>> _off(0.996), _off(-0.017), _off(0.0), _off(12.4), _off(-1e-9)
    ('100 % too large', '1.7 % too small', 'as asked', '13.4 times as large', 'less than 0.01 % too small')

    """
    if error == 0:
        return "as asked"
    if error >= 1:
        return f"{1 + error:.4g} times as large"
    percent = abs(100 * error)
    size = "less than 0.01" if percent < 0.01 else f"{percent:.2g}" if percent < 10 else f"{percent:.0f}"
    return f"{size} % too {'large' if error > 0 else 'small'}"


def _with_asked(stored: float, exact: float, unit: str = "") -> str:
    """Write a number, and the one that was asked for if it looks different."""
    written, wanted = _text(stored), _text(exact)
    return f"{written}{unit}" + ("" if written == wanted else f", asked {wanted}")


_KEEP = "keep it in fp32"


def _stored_itself(
    fmt: FloatFormat, name: str, value: float, if_zero: str, consequence: Callable[[float, float], str]
) -> Finding:
    """Describe a number of at least 0 that the format holds, flushes or cannot reach."""
    stored = stored_value(Fraction(value), fmt)
    error = _change(stored, Fraction(value))
    if stored == 0 < value:
        what, survives = f"becomes 0: {if_zero}", fmt.smallest_subnormal
        remark = f" (anything above {_text(fmt.flush_threshold)} is not flushed)"
    elif not math.isfinite(stored):
        what, survives = f"becomes {stored}: the largest value of {fmt} is {_text(fmt.max)}", fmt.max
        remark = " (the largest)"
    else:
        what = "is clamped to the largest value, " if value > fmt.overflow_threshold else ""
        what, survives, remark = what + consequence(stored, error), stored, f" (a value of {fmt})"
    return _finding(name, name, value, Fraction(value), stored, what, survives, remark=remark)


def _lr(fmt: FloatFormat, lr: float, optimizer: Optimizer) -> Finding:
    def consequence(stored: float, error: float) -> str:
        text = f"each step is {_off(error)}"
        if not optimizer.normalizes:
            return text
        largest = _largest_moved(fmt, stored)
        return text if largest is None else f"{text}; a step of lr is lost on weights above {_text(largest)}"

    return _stored_itself(fmt, "lr", lr, "no weight ever moves", consequence)


def _largest_moved(fmt: FloatFormat, update: float) -> float | None:
    """Return the largest weight w with R(w + update) != w; None where even the format's largest one moves.

    It is one of the three largest of a binade: at a tie only odd significands move, and the format's largest one may
    have nowhere to go.
    """
    tops = np.array([2.0 ** (e + 1) - 2.0 ** (e - fmt.mantissa_bits) for e in range(fmt.emin, fmt.emax)])
    largest = np.array([0.0, fmt.smallest_normal - fmt.smallest_subnormal, *tops, fmt.max])
    second = neighbours(largest[1:], fmt)[0]
    weights = np.concatenate([largest, second, neighbours(second, fmt)[0]])
    moved = weights[round_to(weights + update, fmt) != weights].max()
    return float(moved) if moved < fmt.max else None


def _closest_beta(fmt: FloatFormat, beta: float) -> float | None:
    """Return the stored beta, or the largest value below 1 where it becomes 1; None if that is 0."""
    stored = stored_value(Fraction(beta), fmt)
    if stored < 1:
        return stored
    return float(neighbours(1.0, fmt)[0]) or None


def _window(beta: float) -> float:
    """Return the steps over which a running average reaches, 1/(1 - beta)."""
    return _as_float(1 / (1 - Fraction(beta)))


def _beta(fmt: FloatFormat, name: str, beta: float, what: str) -> Finding:
    """Describe a beta by its window."""
    stored = stored_value(Fraction(beta), fmt)
    survives = _closest_beta(fmt, beta)
    if stored == 1:
        consequence = f"becomes 1: {what} never decays, asked a window of {_text(_window(beta))} steps"
    else:
        consequence = f"averages over {_with_asked(_window(stored), _window(beta), ' steps')}"
    remark = "" if survives is None else f" (window {_text(_window(survives))} steps)"
    effect = _change(1 - Fraction(stored), 1 - Fraction(beta))
    return _finding(name, name, beta, Fraction(beta), stored, consequence, survives, effect_error=effect, remark=remark)


def _moment(fmt: FloatFormat, name: str, beta: float, moment: str) -> list[Finding]:
    what, power = ("the first moment", "g") if moment == "m" else ("the second moment", "g^2")
    return [
        _beta(fmt, name, beta, what),
        _share_of_the_new(fmt, name, beta, moment),
        _average(fmt, name, beta, f"{name}*{moment} + (1 - {name})*{power}"),
    ]


def _share_of_the_new(fmt: FloatFormat, name: str, beta: float, moment: str) -> Finding:
    """Describe 1 - beta, by which a new gradient is multiplied."""
    rate = 1 - Fraction(beta)
    stored = stored_value(rate, fmt)
    if stored == 0:
        consequence = f"becomes 0: new gradients count for nothing, {moment} stays 0"
    else:
        total = Fraction(stored_value(Fraction(beta), fmt)) + Fraction(stored)
        consequence = f"old and new together count {_with_asked(_as_float(total), 1.0)}"
    survives = _closest(beta, 0.0, lambda x: stored_value(1 - Fraction(x), fmt) > 0)
    return _finding(name, f"1 - {name}", beta, rate, stored, consequence, survives)


def _average(fmt: FloatFormat, name: str, beta: float, expression: str) -> Finding:
    """Describe where a running average settles under the constant gradient 1."""
    moment, unit = {"beta1": ("m", " g"), "beta2": ("v", " g^2"), "momentum": ("m", " g")}[name]

    def settled(beta: float) -> tuple[float, Fraction]:
        """Return where it settles in the format, and in exact arithmetic."""
        gain = Fraction(1) if name == "momentum" else 1 - Fraction(beta)
        stored = settling_value(fmt, stored_value(Fraction(beta), fmt), stored_value(gain, fmt))
        return stored, gain / (1 - Fraction(beta))

    stored, exact = settled(beta)
    if stored == 0:
        consequence = f"{moment} stays 0"
    elif not math.isfinite(stored):
        consequence = f"{moment} grows until it is {stored}"
    else:
        consequence = f"under a constant g = 1 {moment} settles at {_with_asked(stored, _as_float(exact), unit)}"
        if name == "beta2" and (error := 1 / math.sqrt(stored) - 1):
            consequence += f": steps are {_off(error)}"

    survives = None
    candidate = _closest_beta(fmt, beta) or 0.0
    while candidate > 0 and survives is None:
        if severity_of(_change(*settled(candidate))) in (Severity.OK, Severity.NOTE):
            survives = candidate
        candidate = float(neighbours(candidate, fmt)[0])
    return _finding(name, expression, beta, exact, stored, consequence, survives, remark=" (settles within 10 %)")


def _bias_correction(fmt: FloatFormat, name: str, beta: float, moment: str, steps: int) -> Finding:
    """Describe 1 - beta^t with the stored beta: at t = 1, where it is furthest off, and at the end."""
    exact = 1 - Fraction(beta)
    stored_beta = stored_value(Fraction(beta), fmt)
    stored = stored_value(1 - Fraction(stored_beta), fmt)
    if stored_beta == 1:
        step = "infinite" if moment == "m" else "0"
        consequence = f"1 - 1^t is 0 at every t: {moment}/0 makes the step {step}, 0/0 makes it NaN"
    else:
        end, exact_end = stored_value(_correction(stored_beta, steps), fmt), _as_float(_correction(beta, steps))
        consequence = f"{_off(_change(stored, exact))} at t = 1; at t = {steps:,} it is {_with_asked(end, exact_end)}"
    return _finding(name, f"1 - {name}^t, t = 1", beta, exact, stored, consequence, _closest_beta(fmt, beta))


def _first_step(fmt: FloatFormat, lr: float, beta1: float) -> Finding:
    """Describe the step size lr/(1 - beta1^t) at t = 1, with the stored beta1; it falls to lr."""
    exact = Fraction(lr) / (1 - Fraction(beta1))
    expression = "lr/(1 - beta1^t), t = 1"
    rate = 1 - Fraction(stored_value(Fraction(beta1), fmt))
    if rate == 0:
        consequence = "lr/0 is infinite at every t"
        return _finding("beta1", expression, beta1, exact, math.inf, consequence, _closest_beta(fmt, beta1))
    stored = stored_value(Fraction(lr) / rate, fmt)
    if stored == 0:
        consequence = "becomes 0: the first step moves nothing"
    elif not math.isfinite(stored):
        consequence = f"becomes {stored}: the first step is not finite"
    else:
        consequence = f"the first step is {_off(_change(stored, exact))}"
    # at lr = 1 - beta1 the quotient is 1
    survives = _closest(lr, float(rate), lambda x: 0 < stored_value(Fraction(x) / rate, fmt) < math.inf)
    return _finding("lr", expression, lr, exact, stored, consequence, survives)


def _root_of_correction(fmt: FloatFormat, beta2: float) -> Finding:
    """Describe sqrt(1 - beta2^t) at t = 1, with the stored beta2."""

    def root(beta: float) -> Fraction:
        rate = 1 - Fraction(beta)
        return Fraction(_DECIMAL.sqrt(_DECIMAL.divide(Decimal(rate.numerator), Decimal(rate.denominator))))

    stored_beta = stored_value(Fraction(beta2), fmt)
    stored, exact = stored_value(root(stored_beta), fmt), root(beta2)
    if stored_beta == 1:
        consequence = "sqrt(0) at every t: sqrt(v)/0 is infinite, and the step 0"
    else:
        consequence = f"the first step is {_off(_change(stored, exact))}"
    return _finding("beta2", "sqrt(1 - beta2^t), t = 1", beta2, exact, stored, consequence, _closest_beta(fmt, beta2))


def _eps(fmt: FloatFormat, eps: float) -> Finding:
    def consequence(stored: float, error: float) -> str:
        if eps == 0:
            return "0 as asked: a parameter whose gradient is 0 gets 0/0 = NaN in any format"
        return f"the floor under sqrt(v) is {_off(error)}"

    return _stored_itself(fmt, "eps", eps, "a parameter whose gradient is 0 gets 0/0 = NaN", consequence)


def _lost_gradients(fmt: FloatFormat, beta2: float, eps: float) -> Finding:
    """Describe the gradients whose square adds nothing to v: there sqrt(v) + eps is eps alone."""
    share = stored_value(1 - Fraction(beta2), fmt)

    def square(gradient: float) -> float:
        return float(round_to(gradient * gradient, fmt))

    largest_lost = _largest_value(fmt, lambda g: bool(round_to(share * square(g), fmt) == 0))

    def inflation(eps: float) -> float:
        """Return by how much lr*g/eps, eps stored, exceeds lr*g/(g + eps) for the largest gradient that is lost."""
        floor = stored_value(Fraction(eps), fmt)
        if not math.isfinite(floor):
            return math.nan
        return 0.0 if largest_lost == 0 else _change(Fraction(largest_lost) + Fraction(eps), Fraction(floor))

    error = inflation(eps)
    if math.isnan(error):
        consequence = "eps is not finite: no gradient moves anything"
    elif largest_lost == 0:
        consequence = "every gradient counts"
    elif math.isinf(error):
        consequence = f"v stays 0 where |g| <= {_text(largest_lost)}, and the step g/0 is infinite"
    else:
        size = "as asked to 1 %" if severity_of(error) is Severity.OK else f"up to {_off(error)}"
        consequence = f"v stays 0 where |g| <= {_text(largest_lost)}, and the step lr*g/eps is {size}"
    finite = _largest_value(fmt, lambda g: math.isfinite(square(g)))
    if finite < fmt.max:
        first = float(neighbours(finite, fmt)[1])
        consequence += f"; from |g| = {_text(first)} on v becomes {square(first)} for good"

    survives: float | None = stored_value(Fraction(eps), fmt)
    if math.isnan(error):
        survives = fmt.max
    elif severity_of(error) is Severity.FATAL:
        # among values of the format the inflation falls with eps
        below = _largest_value(fmt, lambda x: severity_of(inflation(x)) is Severity.FATAL)
        survives = float(neighbours(below, fmt)[1]) if below < fmt.max else None
    advice = "keep v in fp32, or scale the gradients up"
    if survives is not None:
        advice += f", or eps = {survives!r}"
    expression = "largest |g| lost in (1 - beta2)*g^2"
    return _finding(
        "eps", expression, eps, Fraction(0), largest_lost, consequence, survives, effect_error=error, advice=advice
    )


def _l2(fmt: FloatFormat, weight_decay: float) -> Finding:
    def consequence(_: float, error: float) -> str:
        return f"weight_decay*w, added to the gradient, is {_off(error)}"

    return _stored_itself(fmt, "weight_decay", weight_decay, "no weight decay", consequence)


def _decay(fmt: FloatFormat, lr: float, weight_decay: float, momentum: float, steps: int) -> Finding:
    """Describe the factor by which a step shrinks a weight; with momentum that of a buffer that has settled."""
    per_unit = Fraction(lr) / (1 - Fraction(momentum))
    rate = per_unit * Fraction(weight_decay)
    stored = stored_value(1 - rate, fmt)
    effect = _change(1 - Fraction(stored), rate) if math.isfinite(stored) else stored
    if not math.isfinite(stored):
        consequence = f"becomes {stored}, and so do the weights"
    else:
        decay = "becomes 1: no decay" if stored == 1 else f"the decay is {_off(effect)}"
        reached, exact = (float(_power(factor, steps)) for factor in (Fraction(stored), 1 - rate))
        consequence = f"{decay}; {steps:,} steps multiply a weight by {_with_asked(reached, exact)}"

    whole = min(_as_float(1 / per_unit), sys.float_info.max)  # takes all of the weight at once
    survives = _closest(weight_decay, whole, lambda x: stored_value(1 - per_unit * Fraction(x), fmt) < 1)
    advice = "keep the weights in fp32"
    if survives is not None and survives != weight_decay:
        every = math.ceil(Fraction(survives) / Fraction(weight_decay))
        advice += f", or decay once in {every:,} steps" if every <= steps else ""
        advice += f", or weight_decay = {survives!r}"
    expression = "1 - lr*weight_decay" + ("/(1 - momentum)" if momentum else "")
    return _finding(
        "weight_decay",
        expression,
        weight_decay,
        1 - rate,
        stored,
        consequence,
        survives,
        effect_error=effect,
        advice=advice,
    )
