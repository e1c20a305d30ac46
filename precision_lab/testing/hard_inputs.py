"""Where casts go wrong: the inputs of a format (or of float64) that are hard to round into another.

A rounding is decided at the values of the target and at the midpoints between them, and goes wrong next to these: a
neighbour of a midpoint in the source shows whether all bits were looked at; a point a little further away shows whether
the number was first rounded to some width between (to float32, say, which turns it into a tie). Overflow and underflow
are decided in the same way at the ends of the range. So the hard inputs are those points and what surrounds them, in
every binade, with both signs; then zeros, infinities, NaNs with payloads in every place, and the source's subnormals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.codes import code_dtype, decode, encode
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.rounding import Array, as_carrier, spacing

_WIDTHS = (11, 24, 38)  # significand bits of fp16 and tf32, of float32, and something between that and float64
_RANDOM = 1 << 18


@dataclass(frozen=True)
class Source:
    """What a cast takes.

    Attributes
    ----------
    name : str
        A format's name, or ``float64``.
    format : FloatFormat or None
        None for float64.
    dtype : numpy.dtype
        Of the arrays that the cast gets; float32 where the format has none of its own.
    bits, mantissa_bits, exponent_bits : int
        Widths.
    smallest_normal : float
        Below it the source's numbers are subnormal.

    """

    name: str
    format: FloatFormat | None
    dtype: np.dtype[Any]
    bits: int
    mantissa_bits: int
    exponent_bits: int
    smallest_normal: float

    @property
    def pattern_dtype(self) -> np.dtype[Any]:
        """The unsigned dtype of its bit patterns."""
        return np.dtype(np.uint64) if self.format is None else code_dtype(self.format)

    def array(self, patterns: Array) -> Array:
        """Return the array that the cast gets."""
        patterns = patterns.astype(self.pattern_dtype, copy=False)
        if self.format is not None and self.format.dtype is None:
            return np.asarray(decode(patterns, self.format))
        return patterns.view(self.dtype)

    def carrier(self, patterns: Array) -> Array:
        """Return the values in float32 or float64."""
        return as_carrier(self.array(patterns))

    def values(self, patterns: Array) -> NDArray[np.float64]:
        """Return the values in float64."""
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return self.carrier(patterns).astype(np.float64)

    def patterns(self, values: NDArray[np.float64]) -> Array:
        """Return the bit patterns of values, rounded toward zero."""
        if self.format is None:
            return values.view(np.uint64)
        return np.asarray(encode(values, self.format, "toward_zero"))


def get_source(spec: FormatLike) -> Source:
    """Return the source that `spec` names: ``float64`` (``fp64``, ``double``) or a format (see `get_format`).

    Raises
    ------
    ValueError
        Nothing of that name.

    """
    if spec in ("float64", "fp64", "f64", "double", "binary64") or spec is float or spec == np.dtype(np.float64):
        return Source("float64", None, np.dtype(np.float64), 64, 52, 11, 2.0**-1022)
    try:
        fmt = get_format(spec)
    except ValueError as error:
        raise ValueError(f"{error}; a source may be float64 too") from None
    dtype = fmt.dtype or np.dtype(np.float32)
    return Source(fmt.name, fmt, dtype, fmt.bits, fmt.mantissa_bits, fmt.exponent_bits, fmt.smallest_normal)


def special_patterns(source: Source) -> Array:
    """Return the patterns of zeros, infinities and NaNs: each payload of one bit, all ones, quiet with one bit."""
    fields = source.exponent_bits, source.mantissa_bits
    sign = 1 << (source.bits - 1)
    specials = "ieee" if source.format is None else source.format.specials
    patterns = [0]
    if specials == "ieee":
        top = (2 ** fields[0] - 1) << fields[1]
        bits = [1 << k for k in range(fields[1])]  # of the payload; the last one is the quiet bit
        payloads = [0, *bits, sum(bits), bits[-1] | 1, sum(bits[:-1])] if bits else [0]
        patterns += [top | payload for payload in payloads]
    elif specials == "fn":
        patterns += [sign - 1]
    return _unique(np.array([*patterns, *(sign | pattern for pattern in patterns)], source.pattern_dtype))


def all_patterns(source: Source) -> Array:
    """Return every bit pattern of a source of few bits."""
    return np.arange(1 << source.bits).astype(source.pattern_dtype)


def is_narrow(source: Source) -> bool:
    """Return whether all inputs can be tried in no time."""
    return source.bits <= 20


@lru_cache(maxsize=8)
def hard_patterns(source: Source, target: FloatFormat, seed: int) -> tuple[Array, Array]:
    """Return the essential patterns, a few ten thousand with every binade of both, and all others, in random order.

    Of a source of up to 20 bits the others are all its patterns.
    """
    rng = np.random.default_rng(seed)
    fractions = [0, 1, 2**target.mantissa_bits // 3, 2**target.mantissa_bits - 1]
    essential = [_around(source, target, _codes(target, fractions)), _own(source), _near(source, target)]
    patterns = _signed(source, np.concatenate(essential))
    first = rng.permutation(_unique(np.concatenate([patterns, special_patterns(source)])))
    if is_narrow(source):
        return first, rng.permutation(all_patterns(source))
    if target.bits <= 16:
        codes = np.arange(2 ** (target.bits - 1))
    else:
        bits = [b + d for k in range(target.mantissa_bits) for b in (2**k,) for d in (-1, 0, 1)]
        codes = _codes(target, [*bits, *rng.integers(0, 2**target.mantissa_bits, 8).tolist()])
    within = decode(rng.integers(0, 2 ** (target.bits - 1), _RANDOM), target, np.float64)
    within = within[np.isfinite(within)]
    within = within + spacing(within, target) * rng.random(within.size)
    anything = rng.integers(0, 2**source.bits, _RANDOM, dtype=np.uint64, endpoint=False).astype(source.pattern_dtype)
    rest = _signed(source, np.concatenate([_around(source, target, codes), source.patterns(within)]))
    return first, rng.permutation(_unique(np.concatenate([rest, anything])))


def _codes(target: FloatFormat, fractions: list[int]) -> NDArray[np.int64]:
    """Return the codes with these fractions in every binade of the target."""
    fields = np.arange(2**target.exponent_bits)[:, None] << target.mantissa_bits
    chosen = _unique(np.array(fractions) % 2**target.mantissa_bits)
    codes: NDArray[np.int64] = (fields | chosen).reshape(-1)
    return codes


def _around(source: Source, target: FloatFormat, codes: Array) -> Array:
    """Return the patterns at and around target values, midpoints and quarters."""
    values = np.asarray(decode(codes, target, np.float64))
    values = np.append(values[np.isfinite(values)], target.max)
    step = np.asarray(spacing(values, target))
    exact = np.concatenate([values + part * step for part in (0, 0.25, 0.5, 0.75)])
    decisive = np.concatenate([values, values + step / 2])
    widths = [width for width in _WIDTHS if target.precision < width <= source.mantissa_bits]
    near = [decisive * (1 + sign * 2.0 ** -(width + 2)) for width in widths for sign in (1, -1)]
    patterns = source.patterns(exact)
    top = source.patterns(np.array([np.inf])) - 1 if source.format is None or source.format.has_infinity else None
    one = patterns.dtype.type(1)
    above = patterns + one if top is None else np.minimum(patterns + one, top)
    below = np.where(patterns > 0, patterns - one, patterns)
    return np.concatenate([patterns, above, below, *(source.patterns(points) for points in near)])


def _near(source: Source, target: FloatFormat) -> Array:
    """Return the patterns at every distance from some decisive points: to tell through which width a cast goes."""
    fields = np.linspace(0, 2**target.exponent_bits - 2, 12).astype(np.int64) << target.mantissa_bits
    values = np.asarray(decode(np.concatenate([fields, fields | 1]), target, np.float64))
    values = values[np.isfinite(values) & (values > 0)]
    decisive = np.concatenate([values, values + np.asarray(spacing(values, target)) / 2])
    widths = range(target.precision, source.mantissa_bits + 1)
    return np.concatenate(
        [source.patterns(decisive * (1 + sign * 2.0**-width)) for width in widths for sign in (1, -1)]
        + [source.patterns(decisive)]
    )


def _own(source: Source) -> Array:
    """Return the ends of every binade of the source, and subnormals of one bit and of ones only."""
    fields = np.arange(2**source.exponent_bits - 1, dtype=np.uint64) << np.uint64(source.mantissa_bits)
    ends = [fields, fields | np.uint64(2**source.mantissa_bits - 1)]
    bits = np.uint64(1) << np.arange(source.mantissa_bits, dtype=np.uint64)
    return np.concatenate([*ends, bits, bits - np.uint64(1)]).astype(source.pattern_dtype)


def _unique(patterns: Array) -> Array:
    """Return them sorted, each once; np.unique's own way is several times slower on millions."""
    ordered: Array = np.sort(patterns, axis=None)
    unique: Array = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return unique


def _signed(source: Source, patterns: Array) -> Array:
    """Return each pattern with both signs, those that fit."""
    sign = source.pattern_dtype.type(1 << (source.bits - 1))
    unsigned = _unique(patterns)
    unsigned = unsigned[unsigned < sign]
    return np.concatenate([unsigned, unsigned | sign])
