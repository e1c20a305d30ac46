"""SGD, Adam and AdamW with every value rounded where a real implementation stores it.

An optimizer in 16 bits is the float32 one with roundings in between, and which operations have one in between decides
what is lost. Here an operation computes in float32 and its result is rounded once, into the format of the buffer it is
written to; a temporary has the format of the buffer it is made from. (The float32 in between does no harm: for formats
of at most 11 significand bits, rounding +, -, *, / or sqrt to float32 first never changes the result; Figueroa 1995.)
The operations are those of torch.optim (2.13, foreach=False, fused=False) where its kernels use AVX2 or AVX-512, in its
order, R being the rounding:

=============  ======================================  =================================================================
optimizer      buffer or temporary                     is given
=============  ======================================  =================================================================
SGD, Adam      g, with weight decay                    R(g + R(weight_decay) * w), one fma
SGD            m, the first moment                     g in the first step; then R(R(momentum * m) + g)
SGD            w                                       R(w - R(learning_rate) * m), one fma; without momentum g for m
AdamW          w, before the rest                      R((1 - learning_rate * weight_decay) * w)
Adam, AdamW    m, the first moment                     R(m + (1 - beta1) * (g - m)), one fma after the subtraction
Adam, AdamW    v, the second moment                    R(beta2 * v), then R(v + ((1 - beta2) * g) * g), one fma
Adam, AdamW    d, the denominator, stored like v       R(sqrt(v)), R(d / sqrt(1 - beta2^t)), R(d + R(epsilon))
Adam, AdamW    w                                       R(w + (-learning_rate / (1 - beta1^t) * m) / d)
=============  ======================================  =================================================================

Torch rounds numbers to the tensor's format where a kernel adds (`add`), and keeps them in float32 where it multiplies,
divides, or does both at once (`mul`, `div`, `lerp`, `addcmul`, `addcdiv`). An `add` whose operands differ in format
takes place in the one that holds both (`promoted`).

Three things of torch's are not matched. Without vectors (``torch.backends.cpu.get_cpu_capability()`` is "DEFAULT": an
x86-64 without AVX2, or ``ATEN_CPU_CAPABILITY=default``) it has no fma: an `add` with a factor (SGD, L2 decay) rounds
the product to the tensor's format, R(w - R(lr * g)), and the moments round theirs to float32. With vectors, the last
numbers of a 16-bit tensor, n mod 64 at most, do not fill one, and an `add` treats them in the same way: there a result
depends on its place. And its float32 square roots come from MKL, one in six a step off; here they are right.

So in bf16 SGD's learning rate of .01 is .01001; in fp16 an epsilon of 1e-8 is zero; and with a second moment in bf16
R(.999 * v) is v, because what is taken away is less than half a spacing: it can only grow.

How the new weight is stored is the configuration's `update`: see `update_rules`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from precision_lab.numerics import fixed
from precision_lab.numerics.codec import adam, codec
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.rounding import Array
from precision_lab.training.storage import StorageConfig
from precision_lab.training.update_rules import grow, multiply, rounded

_FP32 = get_format("fp32")


@dataclass(frozen=True)
class Range:
    """The numbers that a hyperparameter may be.

    Attributes
    ----------
    holds : callable
        Whether a number is one of them; NaN never is.
    words : str
        What they are, of a number.
    number : str
        What such a number is called.

    """

    holds: Callable[[float], bool]
    words: str
    number: str


POSITIVE = Range(lambda x: 0 < x < math.inf, "positive and finite", "a number above 0")
BELOW_ONE = Range(lambda x: 0 <= x < 1, "at least 0 and below 1", "a number in [0, 1)")
NOT_NEGATIVE = Range(lambda x: 0 <= x < math.inf, "at least 0 and finite", "a number of at least 0")


@dataclass(frozen=True)
class Hyperparameter:
    """What is known of a field of an optimizer.

    Attributes
    ----------
    symbol : str
        What formulas, commands and torch.optim call it: ``lr`` for `learning_rate`.
    range : Range
        What it may be.
    usual : float
        The default of torch.optim.

    """

    symbol: str
    range: Range
    usual: float


def known(symbol: str, range_: Range, usual: float) -> dict[str, Hyperparameter]:
    """Return the metadata of a field."""
    return {"hyperparameter": Hyperparameter(symbol, range_, usual)}


class Direction(NamedTuple):
    """What an optimizer makes of a gradient.

    Attributes
    ----------
    scale : float32 number
        The update is scale * direction, multiplied and added to the weights at once.
    direction : float32 array
        See `scale`.
    moments : dict of str to array
        Those buffers that change, as they are stored.

    """

    scale: np.float32
    direction: Array
    moments: dict[str, Array]


class Optimizer(ABC):
    """A frozen dataclass whose fields are the hyperparameters, each with `known` as metadata.

    Its entry in `OPTIMIZERS` is all that training, the ledger of memory, the audit and pre-flight need to know.

    Attributes
    ----------
    decoupled : bool
        Whether weight decay shrinks the weights themselves; else it is added to the gradient.
    normalizes : bool
        Whether its updates are about as large as the learning rate, however large the gradients are; else they are
        taken to be learning rate times gradient.
    corrects_bias : bool
        Whether it divides its moments by 1 - beta^t.
    learning_rate, weight_decay : float
        Fields that every optimizer has.

    Raises
    ------
    ValueError
        A value is out of range.

    """

    decoupled: ClassVar[bool] = False
    normalizes: ClassVar[bool] = False
    corrects_bias: ClassVar[bool] = False

    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        for name, hyperparameter in hyperparameters(type(self)).items():
            value, range_ = getattr(self, name), hyperparameter.range
            if not range_.holds(value):
                raise ValueError(f"{name} of {type(self).__name__} must be {range_.words}, got {value!r}")

    @property
    @abstractmethod
    def moments(self) -> tuple[str, ...]:
        """The roles of a `StorageConfig` that it keeps from step to step: ``first_moment``, ``second_moment``."""

    @abstractmethod
    def direction(
        self, t: int, held: Mapping[str, Array], g: Array, storage: StorageConfig, learning_rate: float
    ) -> Direction:
        """Make the step of number t, from 1: say what to add to the weights, and bring the moments up to date.

        Parameters
        ----------
        t : int
            Number of the step.
        held : mapping of str to array
            The buffers as they are stored; nobody writes to them.
        g : float32 array
            The gradient, any decay that is added to it included. It may be the caller's: do not write to it.
        storage : StorageConfig
            Where what is held is kept.
        learning_rate : float
            In place of its own.

        """

    def remember(self, t: int, held: Mapping[str, Array], g: Array, storage: StorageConfig) -> dict[str, Array]:
        """Bring the moments up to date as `direction` does, where nobody asks for the direction."""
        return self.direction(t, held, g, storage, self.learning_rate).moments


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD without dampening.

    Attributes
    ----------
    learning_rate : float
        Positive and finite.
    momentum : float
        In [0, 1). With 0 there is no first moment.
    weight_decay : float
        Not negative, finite; this times the weights is added to the gradient.

    Raises
    ------
    ValueError
        A value is out of range.

    """

    learning_rate: float = field(metadata=known("lr", POSITIVE, 1e-3))
    momentum: float = field(default=0.0, metadata=known("momentum", BELOW_ONE, 0.0))
    weight_decay: float = field(default=0.0, metadata=known("weight_decay", NOT_NEGATIVE, 0.0))

    @property
    def moments(self) -> tuple[str, ...]:
        """The momentum, if there is one."""
        return ("first_moment",) if self.momentum else ()

    def direction(
        self, t: int, held: Mapping[str, Array], g: Array, storage: StorageConfig, learning_rate: float
    ) -> Direction:
        """Bring the first moment up to date; it is the direction."""
        fmt = storage.read_gradients
        moments: dict[str, Array] = {}
        if self.momentum:
            fmt = storage.first_moment
            first = codec(fmt)
            m = g.copy()
            if t > 1:
                m = first.round(first.decode(held["first_moment"]) * np.float32(self.momentum)) + g
            g = first.round(m)
            moments["first_moment"] = first.encode(g)
        return Direction(-rounded(learning_rate, promoted(fmt, storage.updated)), g, moments)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma, Ba 2015), as torch.optim.Adam: weight decay is added to the gradient.

    Attributes
    ----------
    learning_rate : float
        Positive and finite.
    beta1, beta2 : float
        In [0, 1).
    epsilon : float
        Not negative, finite.
    weight_decay : float
        Not negative, finite; this times the weights is added to the gradient.

    Raises
    ------
    ValueError
        A value is out of range.

    """

    normalizes: ClassVar[bool] = True
    corrects_bias: ClassVar[bool] = True

    learning_rate: float = field(metadata=known("lr", POSITIVE, 1e-3))
    beta1: float = field(default=0.9, metadata=known("beta1", BELOW_ONE, 0.9))
    beta2: float = field(default=0.999, metadata=known("beta2", BELOW_ONE, 0.999))
    epsilon: float = field(default=1e-8, metadata=known("eps", NOT_NEGATIVE, 1e-8))
    weight_decay: float = field(default=0.0, metadata=known("weight_decay", NOT_NEGATIVE, 0.0))

    @property
    def moments(self) -> tuple[str, ...]:
        """Both."""
        return ("first_moment", "second_moment")

    def direction(
        self, t: int, held: Mapping[str, Array], g: Array, storage: StorageConfig, learning_rate: float
    ) -> Direction:
        """Bring both moments up to date; the direction is the whole update."""
        first, second = codec(storage.first_moment), codec(storage.second_moment)
        weight, beta, rest = np.float32(1 - self.beta1), np.float32(self.beta2), np.float32(1 - self.beta2)
        step_size = np.float32(-learning_rate / (1 - fixed.power(self.beta1, t)))
        correction = np.float32(math.sqrt(1 - fixed.power(self.beta2, t)))
        last = step_size, correction, rounded(self.epsilon, storage.second_moment)
        m = first.decode(held["first_moment"])
        if "second_moment_word" in held:
            m = first.compute("lerp_32", weight, m, g)
            v, words = mean_square(held, g, self.beta2, storage.second_moment)
            u = second.compute("adam_direction_32", *last, m, v)
        else:
            m, v, u = adam(first, second, weight, beta, rest, *last, m, second.decode(held["second_moment"]), g)
            words = {"second_moment": second.encode(v)}
        return Direction(np.float32(1), u, {"first_moment": first.encode(m)} | words)

    def remember(self, t: int, held: Mapping[str, Array], g: Array, storage: StorageConfig) -> dict[str, Array]:
        """Bring both moments up to date, without the roots and the quotients."""
        first = codec(storage.first_moment)
        m = first.compute("lerp_32", np.float32(1 - self.beta1), first.decode(held["first_moment"]), g)
        return {"first_moment": first.encode(m)} | mean_square(held, g, self.beta2, storage.second_moment)[1]


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with the weight decay apart from the gradient (Loshchilov, Hutter 2019), as torch.optim.AdamW.

    As `Adam`, but the weights lose `learning_rate * weight_decay` of themselves in every step.
    """

    decoupled: ClassVar[bool] = True

    weight_decay: float = field(default=0.0, metadata=known("weight_decay", NOT_NEGATIVE, 1e-2))


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""By the names that configurations and commands take."""


def hyperparameters(kind: type[Optimizer]) -> dict[str, Hyperparameter]:
    """Return what is known of each field of an optimizer."""
    return {f.name: f.metadata["hyperparameter"] for f in fields(kind)}  # type: ignore[arg-type]  # all are dataclasses


def make_optimizer(name: str, values: Mapping[str, float]) -> Optimizer:
    """Return an optimizer of `OPTIMIZERS` with those of some values that are its own; by field, or by symbol."""
    kind: Any = OPTIMIZERS[name]
    symbols = {h.symbol: field for field, h in hyperparameters(kind).items()}
    by_field = {symbols.get(key, key): value for key, value in values.items()}
    return kind(**{key: by_field[key] for key in symbols.values() if key in by_field})  # type: ignore[no-any-return]


def check_has(name: str, symbols: Iterable[str]) -> None:
    """Refuse symbols of hyperparameters that an optimizer of `OPTIMIZERS` does not have."""
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    own = [known.symbol for known in hyperparameters(OPTIMIZERS[name]).values()]
    for symbol in symbols:
        if symbol not in own:
            raise ValueError(f"{name} has no {symbol}; it has {', '.join(own)}")


def usual_values(name: str) -> dict[str, float]:
    """Return torch's defaults for an optimizer of `OPTIMIZERS`, by symbol."""
    return {h.symbol: h.usual for h in hyperparameters(OPTIMIZERS[name]).values()}


def name_of(optimizer: Optimizer) -> str:
    """Return the name under which its class is in `OPTIMIZERS`; of another class its own, in small letters."""
    kinds = {kind: name for name, kind in OPTIMIZERS.items()}
    return kinds.get(type(optimizer), type(optimizer).__name__.lower())


def by_symbol(optimizer: Optimizer) -> dict[str, float]:
    """Return the hyperparameters of an optimizer by the names that torch has for them."""
    return {h.symbol: getattr(optimizer, name) for name, h in hyperparameters(type(optimizer)).items()}


def title(name: str) -> str:
    """Return what papers call an optimizer; a name that is not in `OPTIMIZERS` as it is."""
    return OPTIMIZERS[name].__name__ if name in OPTIMIZERS else name


def mean_square(held: Mapping[str, Array], g: Array, beta: float, fmt: FloatFormat) -> tuple[Array, dict[str, Array]]:
    """Bring the second moment up to date: in float32, and the buffers that it is stored in."""
    to = codec(fmt)
    v, rest = to.decode(held["second_moment"]), np.float32(1 - beta)
    if "second_moment_word" not in held:
        v = to.compute("mean_square_32", np.float32(beta), rest, v, g)
        return v, {"second_moment": to.encode(v)}
    v, r = multiply(v, to.decode(held["second_moment_word"]), beta, fmt)
    v, r = grow(v, r, to.round(rest * g * g), to)
    return v, {"second_moment": to.encode(v), "second_moment_word": to.encode(r)}


@lru_cache(maxsize=256)
def promoted(a: FloatFormat, b: FloatFormat) -> FloatFormat:
    """Return the format in which torch adds a tensor of each: the one that holds all values of both, else fp32."""
    for wide, narrow in ((a, b), (b, a)):
        if (
            wide.precision >= narrow.precision
            and wide.emax >= narrow.emax
            and wide.smallest_subnormal <= narrow.smallest_subnormal
        ):
            return wide
    return _FP32
