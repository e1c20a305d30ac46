"""Rounding by the readable reference, names of rows, formats."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

from precision_lab import FORMATS, FloatFormat, get_format
from precision_lab.numerics import reference
from precision_lab.training.hyperparameters import Finding, HyperparameterAudit

V = "beta2*v + (1 - beta2)*g^2"
M = "beta1*m + (1 - beta1)*g"
DECAY = "1 - lr*weight_decay"
LOST = "largest |g| lost in (1 - beta2)*g^2"
FROZEN = "share of v with R(beta2*v) = v"
COUNTER = "t, the step counter"
SMALL = [fmt for fmt in FORMATS.values() if fmt.bits <= 8]
ALL = [*FORMATS.values(), get_format("e6m9"), get_format("e8m0_ieee"), get_format("e2m0"), get_format("e5m23")]


def rounded(x: Fraction, fmt: FloatFormat) -> float:
    """Ties to even of any rational number, by the readable reference: independent of the code under test."""
    if x == 0:
        return 0.0
    c = reference.candidates(abs(x), fmt)
    magnitude = (c.k + reference.rounds_away(c, x < 0, "ties_to_even", None)) * c.spacing
    if magnitude > Fraction(fmt.max):
        special = math.inf if fmt.has_infinity else math.nan if fmt.has_nan else fmt.max
        return math.copysign(special, x)
    return math.copysign(float(magnitude), x)


@cache
def finite_values(fmt: FloatFormat) -> tuple[float, ...]:
    """Those of the reference, which decodes one after the other: of 16 bits that takes a while."""
    return tuple(reference.finite_values(fmt))


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def in_torch(result: HyperparameterAudit, expression: str) -> Finding:
    found = result.torch(expression)
    assert found is not None
    return found
