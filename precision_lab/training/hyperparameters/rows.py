"""The catalogue: what is asked about each number, what follows in each world, and what helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from precision_lab.numerics.codec import codec
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.rounding import neighbours, round_to
from precision_lab.training.hyperparameters.arithmetic import (
    Average,
    as_float,
    average_decay,
    change,
    correction,
    decay_of,
    held_average,
    largest_value,
    last_count,
    power,
    root,
    settled,
    stored_value,
    torch_average,
)
from precision_lab.training.hyperparameters.finding import Finding, World, severity_of
from precision_lab.training.optimizers import Optimizer

_FP32 = get_format("fp32")


@dataclass(frozen=True)
class Case:
    """What the rows are about.

    Attributes
    ----------
    fmt : FloatFormat
        The format.
    world : World
        Where constants are kept.
    optimizer : Optimizer
        Whose numbers they are.
    values : mapping of str to float
        Its hyperparameters, by symbol.
    steps : int
        Length of the run.

    """

    fmt: FloatFormat
    world: World
    optimizer: Optimizer
    values: Mapping[str, float]
    steps: int

    @property
    def held(self) -> bool:
        """Whether constants are held in the format."""
        return self.world is World.HELD

    def average(self, name: str) -> Average:
        """Return the running average that a beta, or the momentum, belongs to."""
        return (held_average if self.held else torch_average)(self.fmt, name, self.values[name])


@dataclass(frozen=True)
class Row:
    """A number, before anybody has asked what helps; the fields are those of `Finding`.

    `effect_error` is the relative error where nothing else is said; `keep` is what helps whatever the values.
    """

    name: str
    expression: str
    exact: Fraction
    stored: float
    consequence: str
    keep: str = "keep it in fp32"
    effect_error: float = field(default=math.nan)

    @property
    def harmless(self) -> bool:
        """Whether there is nothing to be done."""
        return severity_of(self.effect_error).harmless


def _row(
    name: str, expression: str, exact: Fraction, stored: float, consequence: str, keep: str = "keep it in fp32"
) -> Row:
    """Return a row whose effect is the number itself."""
    return Row(name, expression, exact, stored, consequence, keep, change(stored, exact))


def findings(case: Case) -> Iterator[Finding]:
    """Describe the numbers that there are in a world, in the order in which a step of the optimizer uses them."""
    for group in _groups(case):
        for row in group(case):
            relative = change(row.stored, row.exact) if row.exact and math.isfinite(row.stored) else math.nan
            cure = None if row.harmless else cure_of(case, row, group)
            named = "" if cure is None else f"{row.name} = {cure:g}, or "
            advice = "" if row.harmless else named + row.keep
            severity, exact = severity_of(row.effect_error), as_float(row.exact)
            yield Finding(
                *(case.world, row.name, row.expression, exact, row.stored, relative, row.effect_error, severity),
                *(row.consequence, cure, advice),
            )


Group = Callable[[Case], Iterator[Row]]


def _groups(case: Case) -> Iterator[Group]:
    optimizer, values = case.optimizer, case.values
    yield _lr
    if optimizer.corrects_bias:
        yield _counter
    if values.get("momentum"):
        yield _moment("momentum")
    yield from (_moment(name) for name in ("beta1", "beta2") if name in values)
    if "eps" in values:
        yield _eps
    if optimizer.weight_decay:
        yield _decay


# ---- what helps ----

_SHORT = (0.99, 0.98, 0.95, 0.9)
USUAL: Mapping[str, tuple[float, ...]] = {
    "momentum": _SHORT,
    "beta1": _SHORT,
    "beta2": (0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.97, 0.95),
    "eps": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4),
}
"""Values that people train with, in the order in which they are tried; of lr and weight_decay there are none."""


def cure_of(case: Case, row: Row, group: Group) -> float | None:
    """Return a value that people use and that does in place of the one that was asked for; None if there is none.

    For a beta the largest below it with which *no* number that depends on it is a warning. For epsilon the smallest
    above it with which this one is none. Nobody takes another learning rate, or weight decay, because of a format.
    """
    asked, of_eps = case.values.get(row.name, 0.0), row.name == "eps"
    for value in USUAL.get(row.name, ()):
        if (value > asked) is of_eps and value != asked:
            rows = group(replace(case, values={**case.values, row.name: value}))
            if all(r.harmless for r in rows if r.name == row.name and (not of_eps or r.expression == row.expression)):
                return value
    return None


# ---- words ----


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


def _percent(share: float) -> str:
    return f"{min(100 * share, 99.9):.3g} %" if share < 1 else "100 %"


# ---- lr and the step counter ----


def _stored_itself(
    fmt: FloatFormat, name: str, value: float, if_zero: str, consequence: Callable[[float, float], str]
) -> Row:
    """Describe a number of at least 0 that the format holds, flushes or cannot reach."""
    stored = stored_value(Fraction(value), fmt)
    error = change(stored, Fraction(value))
    if stored == 0 < value:
        what = f"becomes 0: {if_zero}"
    elif not math.isfinite(stored):
        what = f"becomes {stored}: the largest value of {fmt} is {_text(fmt.max)}"
    else:
        what = "is clamped to the largest value, " if value > fmt.overflow_threshold else ""
        what += consequence(stored, error)
    return _row(name, name, Fraction(value), stored, what)


def _lr(case: Case) -> Iterator[Row]:
    """Describe the learning rate; torch rounds it where it adds lr times the direction, which is SGD."""
    fmt, lr = case.fmt, case.values["lr"]

    def lost(stored: float) -> str:
        largest = _largest_moved(fmt, stored)
        return "" if largest is None else f"a step of lr is lost on weights above {_text(largest)}"

    def consequence(stored: float, error: float) -> str:
        texts = [f"each step is {_off(error)}", lost(stored) if case.optimizer.normalizes else ""]
        return "; ".join(filter(None, texts))

    if case.held or not case.optimizer.normalizes:
        yield _stored_itself(fmt, "lr", lr, "no weight ever moves", consequence)
        return
    none_moves = _largest_moved(fmt, lr) == 0
    text = "a step of lr moves no weight" if none_moves else lost(lr) or "a step of lr moves every weight"
    yield Row("lr", "lr", Fraction(lr), lr, text, "keep the weights in fp32", -1.0 if none_moves else 0.0)


def _largest_moved(fmt: FloatFormat, update: float) -> float | None:
    """Return the largest weight w with R(w + update) != w, 0 if none moves; None where even the largest of all does.

    It is one of the three largest of a binade: at a tie only odd significands move, and the format's largest one may
    have nowhere to go.
    """
    tops = np.array([2.0 ** (e + 1) - 2.0 ** (e - fmt.mantissa_bits) for e in range(fmt.emin, fmt.emax)])
    largest = np.array([0.0, fmt.smallest_normal - fmt.smallest_subnormal, *tops, fmt.max])
    second = neighbours(largest[1:], fmt)[0]
    weights = np.concatenate([largest, second, neighbours(second, fmt)[0]])
    moved = float(weights[round_to(weights + update, fmt) != weights].max(initial=0.0))
    return moved if moved < fmt.max else None


def _counter(case: Case) -> Iterator[Row]:
    """Describe the step counter t, which goes up by 1; torch keeps it in float32."""
    kept_in = case.fmt if case.held else _FP32
    betas = {name: case.values[name] for name in ("beta1", "beta2") if name in case.values}
    end = last_count(kept_in)
    stored = float(min(end, case.steps)) if not math.isnan(end) else end

    def steps_at(t: float) -> float:
        """Return the size of a step of the bias corrections' making: sqrt(1 - beta2^t) / (1 - beta1^t)."""
        if not math.isfinite(t):
            return 1.0 if t == math.inf else math.nan
        first, second = (float(correction(betas.get(name, 0.0), int(t))) for name in ("beta1", "beta2"))
        return math.sqrt(second) / first

    if case.steps <= end:
        where = f"up to {int(end):,}" if math.isfinite(end) else "as far as it goes"
        consequence, effect = f"counts {where}" + ("" if case.held else ", in float32"), 0.0
    else:
        effect = steps_at(stored) / steps_at(float(case.steps)) - 1
        last = list(betas)[-1]
        stays, asked = (float(correction(betas[last], int(t))) for t in (stored, case.steps))
        consequence = f"stops at {_text(stored)}: 1 - {last}^t stays {stays:.3g} for ever, asked {asked:.3g} at " + (
            f"t = {case.steps:,}: steps are {_off(effect)}"
        )
    yield Row("steps", "t, the step counter", Fraction(case.steps), stored, consequence, effect_error=effect)


# ---- moments ----


_MOMENTS = {"momentum": ("m", "g"), "beta1": ("m", "g"), "beta2": ("v", "g^2")}
"""The moment of each average, and what it is fed."""


def _moment(name: str) -> Group:
    """Return the rows of a beta, or of the momentum."""

    def rows(case: Case) -> Iterator[Row]:
        if case.held:
            yield _beta(case, name)
            if name != "momentum":
                yield _share_of_the_new(case, name)
        yield _frozen(case, name)
        yield _average(case, name)
        if case.held and case.optimizer.corrects_bias:
            yield _bias_correction(case, name)
            yield _first_step(case) if name == "beta1" else _root_of_correction(case)

    return rows


def _window(beta: float) -> float:
    """Return the steps over which a running average reaches, 1/(1 - beta)."""
    return as_float(1 / (1 - Fraction(beta)))


def _beta(case: Case, name: str) -> Row:
    """Describe a beta by its window."""
    beta = case.values[name]
    stored = stored_value(Fraction(beta), case.fmt)
    if stored == 1:
        consequence = f"becomes 1, a window without end: asked {_text(_window(beta))} steps"
    else:
        consequence = f"averages over {_with_asked(_window(stored), _window(beta), ' steps')}"
    effect = change(1 - Fraction(stored), 1 - Fraction(beta))
    return Row(name, name, Fraction(beta), stored, consequence, effect_error=effect)


def _share_of_the_new(case: Case, name: str) -> Row:
    """Describe 1 - beta, by which a new gradient is multiplied."""
    fmt, beta = case.fmt, case.values[name]
    rate = 1 - Fraction(beta)
    stored = stored_value(rate, fmt)
    if stored == 0:
        consequence = f"becomes 0: new gradients count for nothing, {_MOMENTS[name][0]} stays 0"
    else:
        total = Fraction(stored_value(Fraction(beta), fmt)) + Fraction(stored)
        consequence = f"old and new together count {_with_asked(as_float(total), 1.0)}"
    return _row(name, f"1 - {name}", rate, stored, consequence)


def _keep_moment(case: Case, name: str) -> str:
    symbol = _MOMENTS[name][0]
    return f"keep {name} and {symbol} in fp32" if case.held else f"keep {symbol} in fp32"


def _frozen(case: Case, name: str) -> Row:
    """Describe what a beta does to a moment that is not fed: here it acts, whatever became of the number itself."""
    m, beta = _MOMENTS[name][0], case.values[name]
    found = average_decay(case.average(name))
    effect = change(found.rate, 1 - Fraction(beta))
    late = ": once gradients shrink, steps become too small" if name == "beta2" else ""
    if found.frozen:
        falls = "never decays" if found.frozen == 1 else "stops before it is halved"
        consequence = f"{_percent(found.frozen)} of all {m} stay what they are: {m} {falls}{late}"
    else:
        consequence = f"what {m} loses in a step is {_off(effect)} on average"
    effect = -1.0 if found.frozen else effect
    expression = f"share of {m} with R({name}*{m}) = {m}"
    return Row(name, expression, Fraction(0), found.frozen, consequence, _keep_moment(case, name), effect)


def _average(case: Case, name: str) -> Row:
    """Describe where a running average settles under the constant gradient 1."""
    m, unit = _MOMENTS[name]
    expression = f"momentum*m + {unit}" if name == "momentum" else f"{name}*{m} + (1 - {name})*{unit}"
    rate = 1 - Fraction(case.values[name])
    exact = 1 / rate if name == "momentum" else Fraction(1)
    stored = settled(case.average(name))
    if stored == 0:
        consequence = f"{m} stays 0"
    elif not math.isfinite(stored):
        consequence = f"{m} grows until it is {stored}"
    else:
        consequence = f"under a constant g = 1 {m} climbs from 0 to {_with_asked(stored, as_float(exact), f' {unit}')}"
        if name == "beta2" and (error := 1 / math.sqrt(stored) - 1):
            consequence += f": steps are {_off(error)}"
    return _row(name, expression, exact, stored, consequence, _keep_moment(case, name))


def _bias_correction(case: Case, name: str) -> Row:
    """Describe 1 - beta^t with the stored beta: at t = 1, where it is furthest off, and at the end."""
    fmt, beta, steps = case.fmt, case.values[name], case.steps
    exact = 1 - Fraction(beta)
    stored_beta = stored_value(Fraction(beta), fmt)
    stored = stored_value(1 - Fraction(stored_beta), fmt)
    if stored_beta == 1:
        moment, step = ("m", "infinite") if name == "beta1" else ("v", "0")
        consequence = f"1 - 1^t is 0 at every t: {moment}/0 makes the step {step}, 0/0 makes it NaN"
    else:
        end, exact_end = stored_value(correction(stored_beta, steps), fmt), as_float(correction(beta, steps))
        consequence = f"{_off(change(stored, exact))} at t = 1; at t = {steps:,} it is {_with_asked(end, exact_end)}"
    return _row(name, f"1 - {name}^t, t = 1", exact, stored, consequence)


def _first_step(case: Case) -> Row:
    """Describe the step size lr/(1 - beta1^t) at t = 1, with the stored beta1; it falls to lr."""
    lr, beta1 = Fraction(case.values["lr"]), Fraction(case.values["beta1"])
    exact, expression = lr / (1 - beta1), "lr/(1 - beta1^t), t = 1"
    rate = 1 - Fraction(stored_value(beta1, case.fmt))
    if rate == 0:
        return _row("beta1", expression, exact, math.inf, "lr/0 is infinite at every t")
    stored = stored_value(lr / rate, case.fmt)
    if stored == 0:
        consequence = "becomes 0: the first step moves nothing"
    elif not math.isfinite(stored):
        consequence = f"becomes {stored}: the first step is not finite"
    else:
        consequence = f"the first step is {_off(change(stored, exact))}"
    return _row("lr", expression, exact, stored, consequence)


def _root_of_correction(case: Case) -> Row:
    """Describe sqrt(1 - beta2^t) at t = 1, with the stored beta2."""
    beta2 = Fraction(case.values["beta2"])
    stored_beta = Fraction(stored_value(beta2, case.fmt))
    stored, exact = stored_value(root(1 - stored_beta), case.fmt), root(1 - beta2)
    if stored_beta == 1:
        consequence = "sqrt(0) at every t: sqrt(v)/0 is infinite, and the step 0"
    else:
        consequence = f"the first step is {_off(change(stored, exact))}"
    return _row("beta2", "sqrt(1 - beta2^t), t = 1", exact, stored, consequence)


# ---- eps ----


def _eps(case: Case) -> Iterator[Row]:
    """Describe epsilon, which torch rounds to v's format where it is added, and the gradients that leave only it."""
    eps = case.values["eps"]

    def consequence(stored: float, error: float) -> str:
        if eps == 0:
            return "0 as asked: a parameter whose gradient is 0 gets 0/0 = NaN in any format"
        return f"the floor under sqrt(v) is {_off(error)}"

    keep = "keep it in fp32" if case.held else "keep v in fp32"
    row = _stored_itself(case.fmt, "eps", eps, "a parameter whose gradient is 0 gets 0/0 = NaN", consequence)
    yield replace(row, keep=keep)
    if "beta2" in case.values:
        yield _lost_gradients(case)


def _new_v(case: Case) -> Callable[[float], float]:
    """Return the function that gives the v that a gradient of this size makes of v = 0."""
    fmt, beta2 = case.fmt, case.values["beta2"]
    if case.held:
        share = stored_value(1 - Fraction(beta2), fmt)

        def held(gradient: float) -> float:
            square = float(round_to(gradient * gradient, fmt))
            return float(round_to(share * square, fmt)) if math.isfinite(square) else square

        return held

    def in_torch(gradient: float) -> float:
        numbers = np.float32(beta2), np.float32(1 - beta2)
        zero, g = np.zeros((2, 1), np.float32)
        g[0] = gradient
        with np.errstate(over="ignore"):
            return float(codec(fmt).compute("mean_square_32", *numbers, zero, g)[0])

    return in_torch


def _lost_gradients(case: Case) -> Row:
    """Describe the gradients whose square adds nothing to v: there sqrt(v) + epsilon is epsilon alone."""
    fmt, eps, v = case.fmt, case.values["eps"], _new_v(case)
    largest_lost = largest_value(fmt, lambda g: v(g) == 0)
    floor = stored_value(Fraction(eps), fmt)
    # by how much lr*g/epsilon, stored, exceeds lr*g/(g + epsilon) for the largest gradient that is lost
    if not math.isfinite(floor):
        error, consequence = math.nan, "epsilon is not finite: no gradient moves anything"
    elif largest_lost == 0:
        error, consequence = 0.0, "every gradient counts"
    else:
        error = change(Fraction(largest_lost) + Fraction(eps), Fraction(floor))
        consequence = f"v stays 0 where |g| <= {_text(largest_lost)}, and the step "
        if math.isinf(error):
            consequence += "g/0 is infinite"
        else:
            size = "as asked to 1 %" if abs(error) <= 0.01 else f"up to {_off(error)}"
            consequence += f"lr*g/epsilon is {size}"
    finite = largest_value(fmt, lambda g: math.isfinite(v(g)))
    if finite < fmt.max:
        first = float(neighbours(finite, fmt)[1])
        consequence += f"; from |g| = {_text(first)} on v becomes {v(first)} at once"
    expression = "largest |g| lost in (1 - beta2)*g^2"
    keep = "keep v in fp32, or scale the gradients up"
    return Row("eps", expression, Fraction(0), largest_lost, consequence, keep, error)


# ---- weight decay ----


def _decay(case: Case) -> Iterator[Row]:
    """Describe the decay that is added to the gradient, and the one that weights see."""
    optimizer = case.optimizer
    if not optimizer.decoupled:  # torch rounds it to the format, too, where it adds weight_decay*w

        def consequence(_: float, error: float) -> str:
            return f"weight_decay*w, added to the gradient, is {_off(error)}"

        decay = optimizer.weight_decay
        yield _stored_itself(case.fmt, "weight_decay", decay, "no weight decay", consequence)
    if optimizer.decoupled or not optimizer.normalizes:  # Adam divides what L2 adds to the gradient by sqrt(v)
        yield _decay_of_weights(case)


def _decay_of_weights(case: Case) -> Row:
    """Describe the factor by which a step shrinks a weight; with momentum that of a buffer that has settled."""
    fmt, steps, momentum = case.fmt, case.steps, case.values.get("momentum", 0.0)
    rate = Fraction(case.values["lr"]) / (1 - Fraction(momentum)) * Fraction(case.optimizer.weight_decay)
    stored = stored_value(1 - rate, fmt if case.held else _FP32)
    expression = "1 - lr*weight_decay" + ("/(1 - momentum)" if momentum else "")
    keep = "keep the weights in fp32, or decay in a master copy"
    if not math.isfinite(stored):
        return Row("weight_decay", expression, 1 - rate, stored, f"becomes {stored}, and so do the weights", keep)
    if case.held:
        effect = change(1 - Fraction(stored), rate)
        decay = "becomes 1: no decay" if stored == 1 else f"the decay is {_off(effect)}"
        reached, exact = (float(power(factor, steps)) for factor in (Fraction(stored), 1 - rate))
        consequence = f"{decay}; {steps:,} steps multiply a weight by {_with_asked(reached, exact)}"
        return Row("weight_decay", expression, 1 - rate, stored, consequence, keep, effect)
    to, factor = codec(fmt), np.float32(stored)
    found = decay_of(fmt, lambda w: to.round(np.asarray(w, np.float32) * factor), 1 - stored)
    effect = -1.0 if found.frozen else change(found.rate, rate)
    if found.frozen:
        stays = "no decay" if found.frozen == 1 else "a weight stops before it is halved"
        consequence = f"R(({expression})*w) = w for {_percent(found.frozen)} of all w: {stays}"
    else:
        consequence = f"the decay is {_off(effect)} on average"
    return Row("weight_decay", expression, 1 - rate, stored, consequence, keep, effect)
