"""What torch.optim does to parameters of one dtype, an operation of torch at a time, in plain NumPy.

Torch compiles its kernels for several kinds of processors and chooses when it starts. Those with vectors make one fma
of a product and the sum that follows; those of its default build for x86-64 round them apart.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from precision_lab import FloatFormat, round_to
from precision_lab.numerics.codec import Codec, codec
from precision_lab.numerics.rounding import Array
from precision_lab.training.optimizers import SGD, Adam, AdamW, Optimizer

F = np.float32


def has_fma(torch: Any) -> bool:
    """Whether torch's kernels make an fma where they can; of other processors than x86-64 we only know that some do."""
    return platform.machine() not in ("x86_64", "AMD64") or torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def fma(a: Array | np.float32, b: Array, c: Array) -> Array:
    """Return a * b + c, rounded once to float32: the sum in float64 is rounded to odd (Boldo, Melquiond 2008)."""
    product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)  # exact
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = total.view(np.int64) & 1 == 0
    return np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total).astype(F)


class Kernels:
    """Torch's operations on numbers of a format; what is not stored is float32."""

    def __init__(self, fmt: str | FloatFormat, fused: bool) -> None:
        self.fmt, self.fused = fmt, fused

    def stored(self, x: Array) -> Array:
        return np.asarray(round_to(x, self.fmt), F)

    def multiply_add(self, a: Array | np.float32, b: Array, c: Array) -> Array:
        return fma(a, b, c) if self.fused else a * b + c

    def add(self, x: Array, other: Array, alpha: float = 1.0) -> Array:
        if alpha == 1:
            return self.stored(x + other)
        factor = self.stored(np.full_like(other, alpha))
        if self.fused:
            return self.stored(fma(factor, other, x))
        return self.stored(x + self.stored(factor * other))

    def mul(self, x: Array, factor: float) -> Array:
        return self.stored(x * F(factor))

    def div(self, x: Array, divisor: float) -> Array:
        return self.stored(x / F(divisor))

    def sqrt(self, x: Array) -> Array:
        return self.stored(np.sqrt(x))

    def lerp(self, start: Array, end: Array, weight: float) -> Array:
        difference = end - start
        if F(weight) < 0.5:
            return self.stored(self.multiply_add(F(weight), difference, start))
        return self.stored(self.multiply_add(F(weight) - 1, difference, end))

    def addcmul(self, x: Array, a: Array, b: Array, value: float) -> Array:
        return self.stored(self.multiply_add(F(value) * a, b, x))

    def addcdiv(self, x: Array, a: Array, b: Array, value: float) -> Array:
        return self.stored(x + F(value) * a / b)


def weights_of_torch(
    optimizer: Optimizer, fmt: str, weights: Array, gradients: Iterable[Array], *, fused: bool
) -> Iterator[Array]:
    """Yield the weights after each step of torch's own loops (foreach=False, fused=False)."""
    o, k = optimizer, Kernels(fmt, fused)
    w = k.stored(weights)
    m = v = np.zeros_like(w)
    for t, gradient in enumerate(gradients, 1):
        with np.errstate(all="ignore"):
            g = k.stored(gradient)
            if isinstance(o, AdamW):
                w = k.mul(w, 1 - o.learning_rate * o.weight_decay)
            elif o.weight_decay:
                g = k.add(g, w, o.weight_decay)
            if isinstance(o, SGD):
                if o.momentum:
                    g = m = g if t == 1 else k.add(k.mul(m, o.momentum), g)
                w = k.add(w, g, -o.learning_rate)
            else:
                assert isinstance(o, Adam)
                m = k.lerp(m, g, 1 - o.beta1)
                v = k.addcmul(k.mul(v, o.beta2), g, g, 1 - o.beta2)
                d = k.div(k.sqrt(v), (1 - o.beta2**t) ** 0.5)
                d = k.add(d, k.stored(np.full_like(d, o.epsilon)))
                w = k.addcdiv(w, m, d, -o.learning_rate / (1 - o.beta1**t))
        yield w


def codec_without_fma(fmt: FloatFormat) -> Codec:
    """Return the codec that our optimizers use, its products and sums rounded apart as torch's are without vectors."""
    ours, k = codec(fmt), Kernels(fmt, fused=False)

    def compute(loop: str, *arguments: Any) -> Array:
        match loop, arguments:
            case "scaled_sum_32", (factor, x, other):
                return k.add(other, x, factor)
            case "lerp_32", (weight, m, g):
                return k.lerp(m, g, weight)
            case "mean_square_32", (beta, rest, v, g):
                return k.addcmul(k.mul(v, beta), g, g, rest)
        return ours.compute(loop, *arguments)

    return ours._replace(compute=compute)
