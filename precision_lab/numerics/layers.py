"""Layers of a model in one compiled call each: a product, what is added to it, and the rounding of what is stored.

Every function gives, bit for bit, what the functions of `precision_lab.numerics.fixed`, operations of NumPy and
`Codec.round` give one after the other: the formula of each says which. R is the rounding into `fmt`, ties to even.
All arrays are float32 where nothing else is said; results are new. Shapes are checked, dtypes are not: a wrong one is a
TypeError of the compiled loop. FloatingPointError as `precision_lab.round_to`.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from precision_lab.numerics.environment import load_layer_kernels
from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.plans import even_constants

Array = NDArray[Any]


def product(a: Array, b: Array, fmt: FloatFormat) -> Array:
    """Return R(a @ b), the sums as in `fixed.matmul`; shapes (m, k) and (k, n)."""
    kernels = load_layer_kernels()
    out = np.empty(_product_shape(a, b), np.float32)
    kernels.product(_aligned(a), _aligned(b), out, _constants(fmt))
    return out


def linear(x: Array, weight: Array, bias: Array, fmt: FloatFormat) -> Array:
    """Return R(x @ weight + bias), the sums as in `fixed.matmul`; shapes (m, k), (k, n) and (n,)."""
    kernels = load_layer_kernels()
    out = np.empty(_product_shape(x, weight), np.float32)
    if bias.shape != out.shape[1:]:
        raise ValueError(f"bias must have shape {out.shape[1:]}, got {bias.shape}")
    kernels.linear(_aligned(x), _aligned(weight), _aligned(_flat(bias)), out, _constants(fmt))
    return out


def linear_gradients(
    turned: Array, factor: Array, gradient: Array, first: FloatFormat, fmt: FloatFormat
) -> tuple[Array, Array]:
    """Return R(F(turned @ factor)) and R(F(the sum of the rows of the gradient)), F being the rounding into `first`.

    The derivatives of `linear` by weight and bias, from x.T and the gradient, which is given twice: as the product and
    as the sum have it. Shapes (k, m), (m, n) and (m, n); the sums are those of `fixed.matmul` and `fixed.sum`.
    """
    kernels = load_layer_kernels()
    by_weight, by_bias = np.empty(_product_shape(turned, factor), np.float32), np.empty(factor.shape[1], np.float32)
    _check_alike(factor, gradient)
    kernels.linear_gradients(
        _aligned(turned),
        _aligned(factor),
        _aligned(np.ascontiguousarray(gradient)),
        by_weight,
        by_bias,
        _constants(first),
        _constants(fmt),
    )
    return by_weight, by_bias


def relu_gradient(gradient: Array, x: Array) -> Array:
    """Return the gradient, +0 where x <= 0; of one shape, both float32 or both float64."""
    kernels = load_layer_kernels()
    _check_alike(gradient, x)
    out = np.empty(x.shape, x.dtype)
    kernels.relu_gradient(_flat(gradient), _flat(x), _flat(out))
    return out


def gelu(x: Array) -> tuple[Array, Array]:
    """Return the Gaussian error linear unit in its tanh form and its derivative, of float32 or float64.

    .5 x (1 + t) and .5 (1 + t) + .5 x (1 - t^2) s (1 + 3 c x^2) with t = tanh(s x (1 + c x^2)), s = sqrt(2 / pi) and
    c = .044715 (Hendrycks and Gimpel 2016, arXiv 1606.08415); nothing is rounded but by the arithmetic.
    """
    kernels = load_layer_kernels()
    value, slope = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    loop = kernels.gelu_32 if x.dtype == np.float32 else kernels.gelu_64
    loop(_flat(x), _flat(value), _flat(slope))
    return value, slope


def cross_entropy(
    logits: Array, labels: NDArray[np.integer[Any]], factor: float, inside: FloatFormat, fmt: FloatFormat
) -> tuple[float, Array] | None:
    """Return the mean cross-entropy of softmax of the m rows of logits, and its gradient times factor * m.

    None where a label is out of range. I being the rounding into `inside`: z = I(logits - their maximum), e =
    I(exp(z)), s = I(sum of e), losses I(log(s) - z[label]), the result I(`fixed.mean` of the losses); p = I(e / s), the
    gradient R((p - 1) * factor) at the label and R(p * factor) elsewhere.
    """
    kernels = load_layer_kernels()
    loss, gradient = np.empty(1, np.float32), np.empty(logits.shape, np.float32)
    fits = kernels.cross_entropy(
        np.ascontiguousarray(logits),
        labels.astype(np.int64, copy=False),
        factor,
        loss,
        gradient,
        _constants(inside),
        _constants(fmt),
    )
    return (float(loss[0]), gradient) if fits else None


def perceptron(
    parameters: Array,
    sizes: tuple[int, ...],
    inputs: Array,
    labels: NDArray[np.integer[Any]],
    factor: float,
    formats: PerceptronFormats,
) -> tuple[float, Array, Array] | None:
    """Return the mean loss of a perceptron with ReLU, and its gradients by parameters and activations times factor * m.

    None where a label is out of range. `linear`, the ReLU, `cross_entropy`, and for each layer from the last
    `linear_gradients`, `product` with the turned weight and `relu_gradient`. Parameters and both results are flat:
    weight and bias of each layer, one after the other; preactivation and output of each but the last, logits.
    """
    kernels = load_layer_kernels()
    rows, (widths, count, units) = len(inputs), _perceptron(sizes)
    if parameters.shape != (count,) or inputs.shape != (rows, sizes[0]) or labels.shape != (rows,):
        raise ValueError(
            f"must have shapes {(count,)}, {(rows, sizes[0])} and {(rows,)}, "
            f"got {parameters.shape}, {inputs.shape} and {labels.shape}"
        )
    loss, by_parameters = np.empty(1, np.float32), np.empty(count, np.float32)
    by_activations = np.empty(rows * units, np.float32)
    fits = kernels.perceptron(
        _aligned(_flat(parameters)),
        widths,
        _aligned(np.ascontiguousarray(inputs)),
        _aligned(labels.astype(np.int64, copy=False)),
        factor,
        loss,
        by_parameters,
        by_activations,
        *_constants_of(formats),
    )
    return (float(loss[0]), by_parameters, by_activations) if fits else None


@lru_cache(maxsize=256)
def _perceptron(sizes: tuple[int, ...]) -> tuple[Array, int, int]:
    """Return the widths of a perceptron as an array, the number of its parameters, and that of its activations."""
    count = sum((wide + 1) * narrow for wide, narrow in itertools.pairwise(sizes))
    return np.array(sizes, np.int64), count, 2 * sum(sizes[1:-1]) + sizes[-1]


class PerceptronFormats(NamedTuple):
    """Where `perceptron` rounds.

    `inside` as in `cross_entropy`, `first` and `gradients` as in `linear_gradients`; `operands` of products, and the
    gradient among them, as in `cast_operand`, None: they are not cast.
    """

    activations: FloatFormat
    inside: FloatFormat
    activation_gradients: FloatFormat
    first: FloatFormat
    gradients: FloatFormat
    operands: FloatFormat | None = None
    gradient_operands: FloatFormat | None = None


def layer_norm(
    x: Array, weight: Array, bias: Array, epsilon: float, inside: FloatFormat, fmt: FloatFormat
) -> tuple[Array, Array, Array]:
    """Return R(v * weight + bias), v, and the deviations d of the rows; shapes (m, n), (m, n) and (m, 1).

    I being the rounding into `inside`: centred = x - I(mean), d = sqrt(I(mean of centred^2) + epsilon), v =
    I(centred / d), with the means of `fixed.mean`.
    """
    kernels = load_layer_kernels()
    values, deviations, out = np.empty_like(x), np.empty(len(x), np.float32), np.empty_like(x)
    if not weight.shape == bias.shape == x.shape[1:]:
        raise ValueError(f"weight and bias must have shape {x.shape[1:]}, got {weight.shape} and {bias.shape}")
    kernels.layer_norm(
        np.ascontiguousarray(x),
        _aligned(weight),
        _aligned(bias),
        epsilon,
        values,
        deviations,
        out,
        _constants(inside),
        _constants(fmt),
    )
    return out, values, deviations[:, np.newaxis]


def layer_norm_gradients(
    gradient: Array, values: Array, deviations: Array, weight: Array, inside: FloatFormat
) -> tuple[Array, Array, Array]:
    """Return the derivatives of `layer_norm` by x, weight and bias, from that by its result.

    With scaled = gradient * weight: (scaled - I(mean of scaled) - v * I(mean of scaled * v)) / d, the sum of the rows
    of gradient * v, and that of the gradient.
    """
    kernels = load_layer_kernels()
    _check_alike(gradient, values)
    by_x, (by_weight, by_bias) = np.empty_like(values), np.empty((2, values.shape[1]), np.float32)
    kernels.layer_norm_gradients(
        np.ascontiguousarray(gradient),
        values,
        deviations[:, 0],
        _aligned(weight),
        by_x,
        by_weight,
        by_bias,
        _constants(inside),
    )
    return by_x, by_weight, by_bias


def causal_softmax(scores: Array, inside: FloatFormat, fmt: FloatFormat) -> Array:
    """Return the softmax of each row over its columns up to the diagonal, 0 beyond; shape (..., n, n).

    z = I(score - the maximum of those seen), e = I(exp(z)), s = I(sum of e); the result is R(e / s).
    """
    kernels = load_layer_kernels()
    out = np.empty(scores.shape, np.float32)
    kernels.causal_softmax(_stack(scores), _stack(out), _constants(inside), _constants(fmt))
    return out


def causal_softmax_gradient(gradient: Array, probabilities: Array, inside: FloatFormat, fmt: FloatFormat) -> Array:
    """Return R(p * (gradient - I(sum of gradient * p))), p being the probabilities; shape (..., n, n)."""
    kernels = load_layer_kernels()
    _check_alike(gradient, probabilities)
    out = np.empty(probabilities.shape, np.float32)
    kernels.causal_softmax_gradient(
        _stack(gradient), _stack(probabilities), _stack(out), _constants(inside), _constants(fmt)
    )
    return out


def cast_operand(x: Array, fmt: FloatFormat) -> Array:
    """Return 2^-k R(2^k x), either product rounded once too; with the k of `places.operand_scale`."""
    kernels = load_layer_kernels()
    out = x.flatten()
    kernels.cast_operand(out, _constants(fmt))
    return out.reshape(x.shape)


@lru_cache(maxsize=256)
def _constants(fmt: FloatFormat | None) -> Array:
    """Return what tells a loop a format; of None, where nothing is rounded, none."""
    return even_constants(fmt, payloads=True) if fmt else np.empty(0, np.uint32)


@lru_cache(maxsize=256)
def _constants_of(formats: tuple[FloatFormat | None, ...]) -> tuple[Array, ...]:
    return tuple(map(_constants, formats))


def _product_shape(a: Array, b: Array) -> tuple[int, int]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"the factors must have shapes (m, k) and (k, n), got {a.shape} and {b.shape}")
    return a.shape[0], b.shape[1]


def _check_alike(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(f"both must have one shape, got {a.shape} and {b.shape}")


def _aligned(x: Array) -> Array:
    return x if x.flags.aligned else x.copy()


def _flat(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(-1)


def _stack(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(-1, *x.shape[-2:])
