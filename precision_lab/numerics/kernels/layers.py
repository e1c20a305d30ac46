"""The compiled loops of `precision_lab.numerics.layers`: what stands between two places of a model where it rounds.

Each does in one call what the loops of fixed.py, operations of NumPy and a rounding do one after the other, with the
same operations in the same order on each element. The constants of a rounding are `optimizers.EvenFields`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from precision_lab.numerics.kernels.bits import TILE, copy, named
from precision_lab.numerics.kernels.compiled import compiled
from precision_lab.numerics.kernels.fixed import exp, log, matmul, tanh
from precision_lab.numerics.kernels.optimizers import EvenFields, _even, largest_magnitude_32, round_even


def _read(dimensions: int, layout: Any = "C", of: Any = types.float32) -> Any:
    """Return the type of an array that is not written to."""
    return types.Array(of, dimensions, layout, readonly=True)


# "A": however it lies in memory, so that no layout is compiled apart
_ANY_VECTOR, _ANY_MATRIX = _read(1, "A"), _read(2, "A")
_LABELS, _FORMAT = _read(1, "A", types.int64), _read(1, of=types.uint32)
_VECTOR, _MATRIX, _STACK = (types.Array(types.float32, dimensions, "C") for dimensions in (1, 2, 3))
_REALS = types.float32, types.float64


# --- products --------------------------------------------------------------------------------------------------------


@compiled(signatures=[types.void(_ANY_MATRIX, _ANY_MATRIX, _MATRIX, _FORMAT)])
def product(a, b, out, c):
    """Write R(a @ b)."""
    matmul(a, b, out)
    round_even(out.reshape(out.size), named(EvenFields, c))


@compiled(signatures=[types.void(_ANY_MATRIX, _ANY_MATRIX, _read(1), _MATRIX, _FORMAT)])
def linear(x, weight, bias, out, c):
    """Write R(x @ weight + bias)."""
    matmul(x, weight, out)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] += bias[j]
    round_even(out.reshape(out.size), named(EvenFields, c))


@compiled(signatures=[types.void(_ANY_MATRIX, _ANY_MATRIX, _read(2), _MATRIX, _VECTOR, _FORMAT, _FORMAT)])
def linear_gradients(turned, factor, gradient, by_weight, by_bias, c_first, c_kept):
    """Write R(turned @ factor) and R of the sum of the rows of the gradient, R being two roundings."""
    first, kept = named(EvenFields, c_first), named(EvenFields, c_kept)
    matmul(turned, factor, by_weight)
    by_bias[:] = 0
    for i in range(gradient.shape[0]):
        for j in range(by_bias.size):
            by_bias[j] += gradient[i, j]
    for array in (by_weight.reshape(by_weight.size), by_bias):
        round_even(array, first)
        round_even(array, kept)


@compiled(signatures=[types.void(_VECTOR, _FORMAT)])
def cast_operand(x, c):
    """Write R(x * 2^k) / 2^k in place of x, R being a rounding, or none where `c` is empty; products are rounded, too.

    k brings the largest magnitude below the format's, and no further than needs be; 0 where that is 0 or not finite.
    """
    if c.size == 0:
        return
    fmt = named(EvenFields, c)
    k, largest = 0, np.float64(largest_magnitude_32(x))
    if 0.0 < largest < np.inf:
        significand, exponent = math.frexp(largest)
        top, top_exponent = math.frexp(np.float64(fmt.largest))
        k = top_exponent - exponent - (1 if significand > top else 0)
    up, down = math.ldexp(1.0, k), math.ldexp(1.0, -k)
    for i in range(x.size):
        x[i] = np.float64(x[i]) * up
    round_even(x, fmt)
    for i in range(x.size):
        x[i] = np.float64(x[i]) * down


# --- activations -----------------------------------------------------------------------------------------------------


@compiled(signatures=[types.void(_read(1, of=real), _read(1, of=real), types.Array(real, 1, "C")) for real in _REALS])
def relu_gradient(gradient, x, out):
    """Write the gradient, or +0 where x is 0 or less."""
    for i in range(x.size):
        out[i] = 0 if x[i] <= 0 else gradient[i]


def _make_gelu(real: Any, number: Any) -> Any:
    """Build the loop of GELU for a type."""
    SLOPE, CUBE, THREE_CUBES = number(math.sqrt(2 / math.pi)), number(0.044715), number(3 * 0.044715)
    HALF, ONE = number(0.5), number(1)

    @compiled(signatures=[types.void(_read(1, of=real), *[types.Array(real, 1, "C")] * 2)])
    def gelu(x, out, slope):
        """Write the Gaussian error linear unit in its tanh form, and its derivative."""
        inner, curve = np.empty(TILE, x.dtype), np.empty(TILE, x.dtype)
        for start in range(0, x.size, TILE):
            tile, values, slopes = x[start : start + TILE], out[start : start + TILE], slope[start : start + TILE]
            for i in range(tile.size):
                v = tile[i]
                inner[i] = SLOPE * v * (ONE + CUBE * (v * v))
            tanh(inner[: tile.size], curve[: tile.size])
            for i in range(tile.size):
                v, t = tile[i], curve[i]
                values[i] = HALF * v * (ONE + t)
                slopes[i] = HALF * (ONE + t) + HALF * v * (ONE - t * t) * (SLOPE * (ONE + THREE_CUBES * (v * v)))

    return gelu


gelu_32, gelu_64 = _make_gelu(types.float32, np.float32), _make_gelu(types.float64, np.float64)


# --- rows ------------------------------------------------------------------------------------------------------------


@compiled()
def _sum(row):
    """Add up a row, ascending, from +0."""
    total = np.float32(0)
    for j in range(row.size):
        total += row[j]
    return total


@compiled()
def _largest(row):
    """Return the largest of a row; NaN where there is one."""
    largest = row[0]
    for j in range(1, row.size):
        largest = row[j] if row[j] > largest or row[j] != row[j] else largest
    return largest


# --- cross-entropy ---------------------------------------------------------------------------------------------------


@compiled(
    signatures=[types.boolean(_read(2), _LABELS, types.float32, _VECTOR, _MATRIX, _FORMAT, _FORMAT)],
    error_model="numpy",
)
def cross_entropy(logits, labels, factor, mean, gradient, c_inside, c_gradient):
    """Write the mean loss, one number, and its gradient times factor * rows; return whether the labels are in range."""
    inside = named(EvenFields, c_inside)
    rows, classes = logits.shape
    shifted, totals, losses = np.empty_like(logits), np.empty(rows, np.float32), np.empty(rows, np.float32)
    flat = gradient.reshape(gradient.size)
    for i in range(rows):
        if not 0 <= labels[i] < classes:
            return False
        largest = _largest(logits[i])
        for j in range(classes):
            shifted[i, j] = logits[i, j] - largest
    round_even(shifted.reshape(shifted.size), inside)
    exp(shifted.reshape(shifted.size), flat)
    round_even(flat, inside)
    for i in range(rows):
        totals[i] = _sum(gradient[i])
    round_even(totals, inside)
    log(totals, losses)
    for i in range(rows):
        losses[i] -= shifted[i, labels[i]]
        for j in range(classes):
            gradient[i, j] /= totals[i]
    round_even(losses, inside)
    round_even(flat, inside)
    mean[0] = _even(_sum(losses) / np.float32(rows), inside)
    for i in range(rows):
        gradient[i, labels[i]] -= np.float32(1)
        for j in range(classes):
            gradient[i, j] *= factor
    round_even(flat, named(EvenFields, c_gradient))
    return True


# --- perceptron ------------------------------------------------------------------------------------------------------


@compiled(
    signatures=[
        types.boolean(
            *[_read(1), _read(1, of=types.int64), _read(2), _LABELS, types.float32],
            *[_VECTOR, _VECTOR, _VECTOR, *[_FORMAT] * 7],
        )
    ]
)
def perceptron(
    parameters,
    sizes,
    inputs,
    labels,
    factor,
    mean,
    by_parameters,
    by_activations,
    c_activations,
    c_inside,
    c_gradients,
    c_first,
    c_kept,
    c_operands,
    c_gradient_operands,
):
    """Write mean loss and gradients of a perceptron with ReLU; return whether the labels are in range.

    Weight and bias of each layer lie one after the other, and so do preactivation and output.
    """
    rows, depth = len(inputs), len(sizes) - 1
    seen = np.empty(parameters.size, np.float32)
    copy(parameters, seen)
    cast = np.empty(by_activations.size if c_gradient_operands.size else 0, np.float32)  # a gradient as an operand
    values = np.empty(rows * sizes[0] + by_activations.size, np.float32)
    end, used = rows * sizes[0], 0
    x = values[:end].reshape(rows, sizes[0])
    copy(inputs.reshape(inputs.size), values)
    round_even(values[:end], named(EvenFields, c_activations))
    for layer in range(depth):
        wide, narrow = sizes[layer], sizes[layer + 1]
        weight = seen[used : used + wide * narrow]
        cast_operand(x.reshape(x.size), c_operands)
        cast_operand(weight, c_operands)
        used += (wide + 1) * narrow
        start, end = end, end + rows * narrow
        preactivation = values[start:end].reshape(rows, narrow)
        linear(x, weight.reshape(wide, narrow), seen[used - narrow : used], preactivation, c_activations)
        if layer < depth - 1:
            flat, output = values[start:end], values[end : end + rows * narrow]
            start, end = end, end + rows * narrow
            for i in range(output.size):
                output[i] = np.float32(0) if flat[i] <= 0 else flat[i]
            x = output.reshape(rows, narrow)
    logits = values[start:end].reshape(rows, narrow)
    gradient = by_activations[by_activations.size - logits.size :].reshape(rows, narrow)
    if not cross_entropy(logits, labels, factor, mean, gradient, c_inside, c_gradients):
        return False
    below = end - logits.size  # where the output of the layer before ends, among the values
    for layer in range(depth - 1, -1, -1):
        wide, narrow = sizes[layer], sizes[layer + 1]
        used -= (wide + 1) * narrow
        x = values[below - rows * wide : below].reshape(rows, wide)
        by_weight = by_parameters[used : used + wide * narrow].reshape(wide, narrow)
        by_bias = by_parameters[used + wide * narrow : used + (wide + 1) * narrow]
        operand = gradient
        if cast.size:
            flat = cast[: gradient.size]
            copy(gradient.reshape(gradient.size), flat)
            cast_operand(flat, c_gradient_operands)
            operand = flat.reshape(rows, narrow)
        linear_gradients(x.T, operand, gradient, by_weight, by_bias, c_first, c_kept)
        if layer:
            end = below - rows * sizes[0]  # the same place among the gradients of activations
            by_output, by_preactivation = end - rows * wide, end - 2 * rows * wide
            weight = seen[used : used + wide * narrow].reshape(wide, narrow)
            product(operand, weight.T, by_activations[by_output:end].reshape(rows, wide), c_gradients)
            relu_gradient(
                by_activations[by_output:end],
                values[below - 2 * rows * wide : below - rows * wide],
                by_activations[by_preactivation:by_output],
            )
            gradient = by_activations[by_preactivation:by_output].reshape(rows, wide)
            below -= 2 * rows * wide
    return True


# --- layer norm ------------------------------------------------------------------------------------------------------


@compiled(
    signatures=[
        types.void(_read(2), _ANY_VECTOR, _ANY_VECTOR, types.float32, _MATRIX, _VECTOR, _MATRIX, _FORMAT, _FORMAT)
    ],
    error_model="numpy",
)
def layer_norm(x, weight, bias, epsilon, values, deviations, out, c_inside, c_result):
    """Write the normalised rows, the roots of their variances, and the rows scaled and shifted."""
    inside = named(EvenFields, c_inside)
    rows, width = x.shape
    count = np.float32(width)
    squares = np.empty(width, np.float32)
    for i in range(rows):
        row = values[i]
        mean = _even(_sum(x[i]) / count, inside)
        for j in range(width):
            row[j] = x[i, j] - mean
            squares[j] = row[j] * row[j]
        deviation = np.sqrt(_even(_sum(squares) / count, inside) + epsilon)
        for j in range(width):
            row[j] /= deviation
        deviations[i] = deviation
    round_even(values.reshape(values.size), inside)
    for i in range(rows):
        for j in range(width):
            out[i, j] = values[i, j] * weight[j] + bias[j]
    round_even(out.reshape(out.size), named(EvenFields, c_result))


@compiled(
    signatures=[types.void(_read(2), _read(2), _ANY_VECTOR, _ANY_VECTOR, _MATRIX, _VECTOR, _VECTOR, _FORMAT)],
    error_model="numpy",
)
def layer_norm_gradients(gradient, values, deviations, weight, by_x, by_weight, by_bias, c_inside):
    """Write the derivatives of `layer_norm` by x, weight and bias, from that by its result."""
    inside = named(EvenFields, c_inside)
    rows, width = gradient.shape
    count = np.float32(width)
    products = np.empty(width, np.float32)
    by_weight[:] = 0
    by_bias[:] = 0
    for i in range(rows):
        scaled, normal, g = by_x[i], values[i], gradient[i]
        for j in range(width):
            scaled[j] = g[j] * weight[j]
            products[j] = scaled[j] * normal[j]
            by_weight[j] += g[j] * normal[j]
            by_bias[j] += g[j]
        mean, slope = _even(_sum(scaled) / count, inside), _even(_sum(products) / count, inside)
        deviation = deviations[i]
        for j in range(width):
            scaled[j] = (scaled[j] - mean - normal[j] * slope) / deviation


# --- attention -------------------------------------------------------------------------------------------------------


@compiled(signatures=[types.void(_read(3), _STACK, _FORMAT, _FORMAT)], error_model="numpy")
def causal_softmax(scores, probabilities, c_inside, c_result):
    """Write the softmax of each row of each matrix over its columns up to the diagonal; beyond it is 0."""
    inside = named(EvenFields, c_inside)
    n = scores.shape[1]
    shifted, exponentials = np.empty(n * (n + 1) // 2, np.float32), np.empty(n * (n + 1) // 2, np.float32)
    for matrix in range(scores.shape[0]):
        start = 0  # of a row, when what is seen is put together
        for i in range(n):
            row = scores[matrix, i]
            largest = _largest(row[: i + 1])
            for j in range(i + 1):
                shifted[start + j] = row[j] - largest
            start += i + 1
        round_even(shifted, inside)
        exp(shifted, exponentials)
        round_even(exponentials, inside)
        start = 0
        for i in range(n):
            row, seen = probabilities[matrix, i], exponentials[start : start + i + 1]
            total = _even(_sum(seen), inside)
            for j in range(i + 1):
                row[j] = seen[j] / total
            row[i + 1 :] = np.float32(0) / total  # NaN where that is
            start += i + 1
    round_even(probabilities.reshape(probabilities.size), named(EvenFields, c_result))


@compiled(signatures=[types.void(_read(3), _read(3), _STACK, _FORMAT, _FORMAT)])
def causal_softmax_gradient(gradient, probabilities, out, c_inside, c_result):
    """Write the derivative of `causal_softmax` by the scores, from that by its result."""
    inside = named(EvenFields, c_inside)
    n = gradient.shape[1]
    products = np.empty(n, np.float32)
    for matrix in range(gradient.shape[0]):
        for i in range(n):
            g, p = gradient[matrix, i], probabilities[matrix, i]
            for j in range(n):
                products[j] = g[j] * p[j]
            total = _even(_sum(products), inside)
            for j in range(n):
                out[matrix, i, j] = p[j] * (g[j] - total)
    round_even(out.reshape(out.size), named(EvenFields, c_result))
