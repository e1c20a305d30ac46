"""How much of a sum survives in 16 bits, and does it matter how it is added up?

Two sums. Numbers drawn evenly from [0, 1) and stored in bf16, up to a quarter of a million of them: what a mean or a
loss over a long sequence is. And the products of a real network, the digits MLP: its activations and the gradients of
its weights, once with an exact sum and once with every step of the accumulator rounded.

What to look for
----------------
*Stagnation.* One term after the other, the running sum in bf16 stops near 2^8: half its spacing is then larger than any
term, and whatever is added is lost. Ten terms or ten million, the answer is the same. The worst-case bound n u_r,
u_r being the unit roundoff, has been above 100 % since n = 256, so the bound is vacuous.

*Order.* Pairs need log2(n) additions in a row instead of n, and do nearly as well as a float32 accumulator. Blocks only
put the problem off: their totals are summed one after the other too.

*Compensation is no magic in 8 bits.* Kahan's sum carries about 2 p = 16 bits, and stops near 2^16; Neumaier's
compensation is a running sum in bf16 itself, and stops hardly later than the plain one.

*Stochastic rounding* does not stop: on average every term counts. Its error grows like sqrt(n) u_r, the price of a
random walk.

*Matrix products.* The error of a rounded accumulator grows with the length of the sum; rounding the product as well
matters little beside it. With a float32 accumulator what remains is the rounding of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from precision_lab.analysis.sums import SUM_METHODS, sum_every_way
from precision_lab.numerics import fixed
from precision_lab.numerics.accumulation import AccumulationTrace
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.products import matmul
from precision_lab.numerics.rounding import round_to
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.datasets import digits, split
from precision_lab.training.models import MLP, Array


@dataclass(frozen=True)
class AccumulationConfig(PlainData):
    """What to add up.

    Attributes
    ----------
    format : str
        Of terms, partial sums and results.
    exponents : tuple of int
        The numbers of terms are 2^k for these k.
    seeds : int
        Draws of the terms (and of stochastic rounding) for each number of terms.
    shown : int
        The number of terms whose running sums are kept.
    accumulators : tuple of str
        Formats of the accumulators of the matrix products.
    hidden : int
        Width of the network.

    """

    format: str = "bf16"
    exponents: tuple[int, ...] = tuple(range(2, 19))
    seeds: int = 5
    shown: int = 4000
    accumulators: tuple[str, ...] = ("bf16", "fp16", "fp32")
    hidden: int = 64

    def __post_init__(self) -> None:
        get_format(self.format)
        if (
            not isinstance(self.exponents, tuple)
            or not self.exponents
            or not all(type(k) is int and 0 <= k <= 24 for k in self.exponents)
            or list(self.exponents) != sorted(set(self.exponents))
        ):
            raise ValueError(f"exponents must be an ascending tuple of integers in 0..24, got {self.exponents!r}")
        for name in ("seeds", "shown", "hidden"):
            check_integer(name, getattr(self, name), 1)
        for accumulator in self.accumulators:
            get_format(accumulator)

    @classmethod
    def quick(cls) -> Self:
        """Return a smaller configuration that asks the same."""
        return cls(exponents=tuple(range(2, 17, 2)), seeds=3)

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of terms after which running sums are kept: some five hundred, evenly, and the last."""
        return tuple(dict.fromkeys([*range(1, self.shown + 1, max(1, self.shown // 500)), self.shown]))

    def terms(self, count: int, seed: int) -> NDArray[np.float64]:
        """Return `count` numbers drawn evenly from [0, 1), stored in the format."""
        return np.asarray(round_to(np.random.default_rng((seed, count)).random(count), self.format))


@dataclass(frozen=True)
class RunningSum:
    """One way of adding the first `shown` terms.

    Attributes
    ----------
    result : float
        The sum in the end.
    exact : float
        What it should be.
    relative_error : float
        Of the result.
    stagnates_after : int or None
        The number of terms after which no other one changed the sum, as in `AccumulationTrace`.
    values : tuple of float
        The sum after each of the `counts` of the configuration; empty for ways that have none after every term.

    """

    result: float
    exact: float
    relative_error: float
    stagnates_after: int | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, trace: AccumulationTrace, counts: tuple[int, ...]) -> Self:
        """Return what is kept of a trace."""
        whole = trace.partial_sums.size == trace.count
        values = tuple(trace.partial_sums[np.array(counts) - 1].tolist()) if whole else ()
        return cls(trace.result, trace.exact_sum, trace.relative_error, trace.stagnates_after, values)


@dataclass(frozen=True)
class SumErrors:
    """One way of adding at one number of terms.

    Attributes
    ----------
    count : int
        Number of terms n.
    errors : tuple of float
        Relative error of the sum for each seed.
    worst_case, probabilistic : float
        The bounds of `AccumulationTrace`, relative to the exact sum, for the first seed.

    """

    layout: ClassVar = Layout(derived=("median",))

    count: int
    errors: tuple[float, ...]
    worst_case: float
    probabilistic: float

    @property
    def median(self) -> float:
        """Median of the errors."""
        return float(np.median(self.errors))


@dataclass(frozen=True)
class ProductError:
    """A matrix product of the network with a rounded accumulator.

    Attributes
    ----------
    product : str
        Which one: ``activations`` or ``weight gradient``.
    length : int
        Terms of each of its sums.
    accumulator : str
        Format of the accumulator.
    products_rounded : bool
        Whether each product was rounded to the accumulator's format before it was added.
    error : float
        ||C - exact|| / ||exact|| in the Frobenius norm, where the operands are those of the rounded product.

    """

    product: str
    length: int
    accumulator: str
    products_rounded: bool
    error: float


@dataclass(frozen=True, eq=False)
class AccumulationResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : AccumulationConfig
        What was asked.
    running : dict of str to RunningSum
        Per way (`analysis.sums.SUM_METHODS`) the sum of the first `shown` terms of the first seed.
    exact : tuple of float
        The exact sums after each of the `counts` of the configuration.
    errors : dict of str to tuple of SumErrors
        Per way one for each number of terms.
    products : tuple of ProductError
        The matrix products.

    """

    layout: ClassVar = Layout("experiment accumulation")

    config: AccumulationConfig
    running: dict[str, RunningSum]
    exact: tuple[float, ...]
    errors: dict[str, tuple[SumErrors, ...]]
    products: tuple[ProductError, ...]

    @property
    def format(self) -> FloatFormat:
        """The format of the sums."""
        return get_format(self.config.format)

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        fmt, most = self.config.format, self.config.exponents[-1]
        stops = self.running["sequential"]
        text = f"one after the other, {self.config.shown:,} numbers from [0, 1) come to {stops.result:g} in {fmt}"
        text += f" instead of {stops.exact:,.0f}"
        errors = ", ".join(f"{way} {self.errors[way][-1].median:.2g}" for way in _NAMED)
        return f"{text}; relative errors of sums of 2^{most}: {errors}"


_NAMED = ("sequential", "kahan", "pairwise", "fp32 accumulator")  # in the one-line answer


def run(
    config: AccumulationConfig | None = None, *, progress: Callable[[int, int], None] | None = None
) -> AccumulationResult:
    """Add up.

    Parameters
    ----------
    config : AccumulationConfig, optional
        Default: the sums of the documentation.
    progress : callable, optional
        Called with the number of sums done and of all sums.

    """
    config = config or AccumulationConfig()
    everything = len(config.exponents) * config.seeds
    errors: dict[str, list[SumErrors]] = {name: [] for name in SUM_METHODS}
    done = 0
    for k in config.exponents:
        traces = []
        for seed in range(config.seeds):
            traces.append(sum_every_way(config.terms(2**k, seed), config.format, seed=seed))
            done += 1
            if progress is not None:
                progress(done, everything)
        for name, series in errors.items():
            first = traces[0][name]
            series.append(
                SumErrors(
                    count=2**k,
                    errors=tuple(trace[name].relative_error for trace in traces),
                    worst_case=first.worst_case_bound / first.exact_sum if first.exact_sum else math.nan,
                    probabilistic=first.probabilistic_bound() / first.exact_sum if first.exact_sum else math.nan,
                )
            )
    terms = config.terms(config.shown, 0)
    running = sum_every_way(terms, config.format)
    return AccumulationResult(
        config,
        {name: RunningSum.of(trace, config.counts) for name, trace in running.items()},
        tuple(np.cumsum(terms)[np.array(config.counts) - 1].tolist()),  # 53 bits are plenty
        {name: tuple(series) for name, series in errors.items()},
        _matrix_products(config),
    )


def _matrix_products(config: AccumulationConfig) -> tuple[ProductError, ...]:
    """Compute two products of the untrained network over the whole training part: (name, a, b), a @ b."""
    data, _ = split(digits())
    model = MLP((data.inputs.shape[1], config.hidden, int(data.labels.max()) + 1))
    parameters = model.init()
    activations = model.forward(parameters, data.inputs)
    gradients = model.loss_and_gradients(parameters, data.inputs, data.labels)
    operands = {
        "activations": (data.inputs, parameters["layer1.weight"]),
        "weight gradient": (activations["layer1.output"].T, gradients.activations["logits"]),
    }
    errors = []
    for name, (a, b) in operands.items():
        left, right = (np.asarray(round_to(x, config.format)) for x in (a, b))
        exact = fixed.matmul(left.astype(np.float64), right.astype(np.float64))
        length = left.shape[1]
        for accumulator in config.accumulators:
            for round_products in (False, True):
                c = matmul(left, right, accumulator=accumulator, output=config.format, round_products=round_products)
                errors.append(ProductError(name, length, accumulator, round_products, _distance(c, exact)))
    return tuple(errors)


def _distance(c: Array, exact: Array) -> float:
    """Return ||c - exact|| / ||exact||; the exact product is good to float64, far beyond what is measured."""
    return fixed.norm(c - exact) / fixed.norm(exact)
