"""How a new weight is stored: what becomes of the part of an update that its rounding loses.

R is the rounding (ties to even) into the format of what is updated; u is what is added, with AdamW's decay in it but
for `ties_to_even`, which decays first:

=================  ===================================================================================================
`ties_to_even`     R(w + u)
`stochastic`       the same, rounded stochastically (and only that; AdamW's decay is not rounded on its own)
`kahan`            y = R(u + c); w' = R(w + y); c' = R(y - R(w' - w)) (Kahan 1965; Zamirai et al. 2020)
`collage_light`    (w, r) = Grow(w, r, R(u)): x = R(w + u); s = R(r + R(u - R(x - w))); w' = R(x + s);
                   r' = R(s - R(w' - x)) (Yu et al. 2024)
`collage_plus`     and v is a pair too: multiplied by beta2 as a pair (R(beta2), R(beta2 - R(beta2))), with the error of
                   the product kept; then Grow(v, r, R((1 - beta2) * g * g)) (Yu et al. 2024)
=================  ===================================================================================================

Collage is taken from the paper; its published optimizer differs in three places. The product with beta2 overwrites
what its error is then taken from (without harm where R(beta2) is 1). The second word of beta2 is what float32's
rounding leaves of it and not what bf16's does: next to nothing. And its figures, effective update and imprecision, are
of the leading word alone, so that what goes into the second word counts as lost; ours are with both words
(`result.UpdateStatistics`).

A rule stands in `UPDATE_RULES` once: its name, the words that it keeps beside others, how small an update may be that
it takes, and its arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

from precision_lab.numerics.codec import Codec, codec
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.rounding import Array, round_to

_FP32 = get_format("fp32")


class Update(NamedTuple):
    """What is to be added to the weights.

    Attributes
    ----------
    scale : float32 number
        The update is scale * direction, multiplied and added at once.
    direction : float32 array
        See `scale`.
    decay : float
        The share of itself that a weight loses besides, or 0.
    intended : float32 array
        All of it: scale * direction - decay * w.

    """

    scale: np.float32
    direction: Array
    decay: float
    intended: Array

    @property
    def factors(self) -> tuple[np.float32, Array]:
        """Two factors of all of it."""
        return (np.float32(1), self.intended) if self.decay else (self.scale, self.direction)


Words: TypeAlias = tuple[Array, ...]
"""A weight and the words beside it, in float32."""

Addition: TypeAlias = Callable[[Words, Update, FloatFormat, tuple[int, int]], Words]
"""Adds an update to weights that are kept in a format; the last is the seed and the first number of a stream."""


@dataclass(frozen=True)
class UpdateRule:
    """How a new weight is stored.

    Attributes
    ----------
    add : Addition
        Its arithmetic.
    words : mapping of str to str
        The buffers that keep what a rounding lost, each with the role that it completes and whose format it has.
    random_bits : int
        Of the numbers that it rounds with; 0: it rounds ties to even.

    """

    add: Addition
    words: Mapping[str, str] = field(default_factory=dict)
    random_bits: int = 0

    @property
    def plain(self) -> bool:
        """Whether nothing is done about what a rounding loses."""
        return not (self.words or self.random_bits)

    def words_of(self, role: str) -> tuple[str, ...]:
        """Return the buffers that complete a role."""
        return tuple(word for word, completed in self.words.items() if completed == role)

    def reach(self, fmt: FloatFormat) -> float:
        """Return by how much smaller an update may be than one that `ties_to_even` would need; a power of two.

        A second word is as large as half a gap at most, and loses what is half a gap of its own.
        """
        if self.words:
            return 2.0**fmt.precision
        return 2.0 ** (self.random_bits - 1) if self.random_bits else 1.0


def kahan(w: Array, y: Array, fmt: Codec) -> tuple[Array, Array]:
    """Add y, the compensation in it already, and return t = R(w + y) and the new compensation R(y - R(t - w))."""
    return fmt.compute_pair("kahan_32", w, y)


def grow(m: Array, r: Array, v: Array, fmt: Codec) -> tuple[Array, Array]:
    """Add v to the pair (m, r), every operation rounded; exact where abs(m) >= abs(v) (Dekker's Fast2Sum)."""
    return fmt.compute_pair("grow_32", m, r, v)


def multiply(m: Array, r: Array, factor: float, fmt: FloatFormat) -> tuple[Array, Array]:
    """Multiply the pair (m, r) by a number that is split into a pair too, every operation rounded."""
    high = rounded(factor, fmt)
    low = rounded(factor - float(high), fmt)
    return codec(fmt).compute_pair("pair_product_32", high, low, m, r)


@lru_cache(maxsize=256)
def rounded(number: float, fmt: FloatFormat) -> np.float32:
    """Return a number as a format has it."""
    value: np.float32 = codec(fmt).round(np.array([number], np.float32))[0]
    return value


def _once(words: Words, update: Update, fmt: FloatFormat, _: tuple[int, int]) -> Words:
    return (_sum(words[0], update, codec(fmt)),)


def _at_random(words: Words, update: Update, fmt: FloatFormat, stream: tuple[int, int]) -> Words:
    return (np.asarray(round_to(_sum(words[0], update, codec(_FP32)), fmt, "stochastic", rng=stream)),)


def _compensated(words: Words, update: Update, fmt: FloatFormat, _: tuple[int, int]) -> Words:
    w, c = words
    scale, direction = update.factors
    return kahan(w, codec(fmt).compute("scaled_sum_32", scale, direction, c), codec(fmt))


def _as_pair(words: Words, update: Update, fmt: FloatFormat, _: tuple[int, int]) -> Words:
    w, r = words
    scale, direction = update.factors
    return grow(w, r, codec(fmt).round(scale * direction), codec(fmt))


def _sum(w: Array, update: Update, fmt: Codec) -> Array:
    """Take the decay off w and add the rest."""
    if update.decay:
        w = fmt.round(w * np.float32(1 - update.decay))
    return fmt.compute("scaled_sum_32", update.scale, update.direction, w)


UPDATE_RULES: Mapping[str, UpdateRule] = {
    "ties_to_even": UpdateRule(_once),
    "stochastic": UpdateRule(_at_random, random_bits=16),
    "kahan": UpdateRule(_compensated, {"compensation": "weights"}),
    "collage_light": UpdateRule(_as_pair, {"second_word": "weights"}),
    "collage_plus": UpdateRule(_as_pair, {"second_word": "weights", "second_moment_word": "second_moment"}),
}
"""How a new weight is stored: rounded ties to even or stochastically, or with a second word for the rounding error."""
