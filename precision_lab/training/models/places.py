"""The places of a training step where a value is rounded: what is stored, what a matrix product casts, what it sums in.

Between two places the arithmetic is float32. What is stored in fp32 is left as it is, without a copy. Where it can be,
what lies between two places is one compiled call (`precision_lab.numerics.layers`), which gives the same bits as the
operations that are written out beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from precision_lab.numerics import fixed, layers
from precision_lab.numerics.codec import codec
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.products import matmul
from precision_lab.numerics.rounding import round_to
from precision_lab.training.models.interface import Array, Parameters
from precision_lab.training.storage import StorageConfig

_FP32 = get_format("fp32")


def rounded(x: Array, fmt: FloatFormat) -> Array:
    """Return a float32 array as it comes back from being stored in the format; x itself where that is fp32."""
    return x if fmt is _FP32 else codec(fmt).round(x.reshape(-1)).reshape(x.shape)


def stored_inputs(inputs: Array, features: int, dtype: np.dtype[Any], storage: StorageConfig) -> Array:
    """Return rows of features in the dtype of the arithmetic, rounded to where activations are stored.

    Raises
    ------
    ValueError
        They are no matrix of that many columns, or it has no row.

    """
    if inputs.ndim != 2 or inputs.shape[1] != features or not len(inputs):
        raise ValueError(f"inputs must have shape (batch, {features}) with batch >= 1, got {inputs.shape}")
    return rounded(inputs.astype(dtype, copy=False), storage.activations)


def weights_copy(parameters: Parameters, storage: StorageConfig) -> dict[str, Array]:
    """Return what forward and backward see of the parameters: their values in the format of the weights."""
    return {name: rounded(array, storage.weights) for name, array in parameters.items()}


def weight_gradient(x: Array, storage: StorageConfig) -> Array:
    """Return the gradient of a parameter as it is kept for the optimizer.

    Where the weights are cast anew in every step (``transient_weights``), the gradient first takes the format of the
    copy, as it does when autograd goes back through the cast.
    """
    if storage.transient_weights:
        x = rounded(x, storage.weights)
    return rounded(x, storage.gradients)


def product(a: Array, b: Array, storage: StorageConfig, *, gradient: Literal["a", "b"] | None = None) -> Array:
    """Return the matrix product a @ b as the storage wants it computed; nothing is rounded afterwards.

    1. Each operand is cast to ``storage.operands``, the one that is a gradient to ``storage.gradient_operands``; None:
       it is taken as it is. The whole tensor is multiplied by the power of two that brings its largest magnitude into
       the upper binade of the format, without overflow (`operand_scale`), rounded, and divided by it again
       (Micikevicius et al. 2022, section 3; their scales come from earlier steps, ours from the tensor itself, and
       the sums there see the values before the division, which makes a difference only to narrow accumulators).
    2. The sums are in the dtype of a and b if ``storage.accumulator`` is fp32, in a stated order, each product and each
       sum rounded (`precision_lab.numerics.fixed.matmul`; see `library_products`). In any other format the product is
       exact and each sum rounded to the format (`precision_lab.numerics.accumulation.matmul`), which is slow.

    Parameters
    ----------
    a, b : array, shapes (..., m, k) and (..., k, n)
        The same leading dimensions.
    storage : StorageConfig
        Its operands, gradient operands and accumulator.
    gradient : "a", "b" or None
        Which of the two is a gradient.

    Returns
    -------
    array, shape (..., m, n)
        In the dtype of a and b.

    """
    a, b = _operands(a, b, storage, gradient)
    if storage.accumulator is _FP32:
        result: Array = np.matmul(a, b) if _by_library.get() else fixed.matmul(a, b)
        return result
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True)
    sums = [matmul(left, right, accumulator=storage.accumulator) for left, right in pairs]
    return np.stack(sums).reshape(*a.shape[:-1], b.shape[-1])


def linear(x: Array, weight: Array, bias: Array | None, storage: StorageConfig) -> Array:
    """Return x @ weight + bias (see `product`), rounded once into ``storage.activations``."""
    if sums_in_one_call(x, storage):
        x, weight = _operands(x, weight, storage)
        if bias is None:
            return layers.product(x, weight, storage.activations)
        return layers.linear(x, weight, bias, storage.activations)
    exact = product(x, weight, storage)
    if bias is not None:
        exact += bias
    return rounded(exact, storage.activations)


def linear_gradient(gradient: Array, weight: Array, storage: StorageConfig) -> Array:
    """Return the derivative of `linear` by x, gradient @ weight.T, rounded into ``storage.activation_gradients``."""
    if sums_in_one_call(gradient, storage):
        gradient, turned = _operands(gradient, weight.T, storage, "a")
        return layers.product(gradient, turned, storage.activation_gradients)
    return rounded(product(gradient, weight.T, storage, gradient="a"), storage.activation_gradients)


def linear_weight_gradients(x: Array, gradient: Array, storage: StorageConfig) -> tuple[Array, Array]:
    """Return the derivatives of `linear` by weight and bias as `weight_gradient` has them.

    x.T @ gradient, and the sum of the gradient over its rows, which is float32, in order, whatever the accumulator is.
    """
    if sums_in_one_call(x, storage):
        first = storage.weights if storage.transient_weights else _FP32
        turned, factor = _operands(x.T, gradient, storage, "b")
        return layers.linear_gradients(turned, factor, gradient, first, storage.gradients)
    exact = product(x.T, gradient, storage, gradient="b")
    return weight_gradient(exact, storage), weight_gradient(fixed.sum(gradient, 0), storage)


_separately = ContextVar("whether operations are done one after the other", default=False)


@contextmanager
def separate_operations() -> Iterator[None]:
    """Do one after the other, within this context, what else is one compiled call.

    The results are the same; every rounding then goes through `rounded`.
    """
    token = _separately.set(True)
    try:
        yield
    finally:
        _separately.reset(token)


def operations_are_separate() -> bool:
    """Whether this is the context of `separate_operations`."""
    return _separately.get()


def in_one_call(x: Array) -> bool:
    """Whether what is done to an array between two places is one compiled call: of float32 it is."""
    return x.dtype.char == "f" and not operations_are_separate()


def sums_in_one_call(x: Array, storage: StorageConfig) -> bool:
    """Whether a product and what is done to it is one compiled call."""
    return in_one_call(x) and storage.accumulator is _FP32 and not _by_library.get()


def _operands(
    a: Array, b: Array, storage: StorageConfig, gradient: Literal["a", "b"] | None = None
) -> tuple[Array, Array]:
    """Return the operands of a product as they are cast."""
    if storage.operands is None:
        return a, b
    return (
        _cast(a, storage.gradient_operands if gradient == "a" else storage.operands),
        _cast(b, storage.gradient_operands if gradient == "b" else storage.operands),
    )


_by_library = ContextVar("whether float32 sums are left to BLAS", default=False)


@contextmanager
def library_products() -> Iterator[None]:
    """Leave the sums that `fixed.matmul` would do to NumPy's BLAS, held to one thread, within this context.

    For comparisons with what libraries compute. The bits are then those of this BLAS on this processor.
    """
    token = _by_library.set(True)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        _by_library.reset(token)


def operand_scale(largest: float, fmt: FloatFormat) -> int:
    """Return the k for which largest * 2^k lies in (max / 2, max] of the format; 0 if largest is 0, infinite or NaN."""
    if not 0 < largest < math.inf:
        return 0
    significand, exponent = math.frexp(largest)
    top, top_exponent = math.frexp(fmt.max)
    return top_exponent - exponent - (significand > top)


def _cast(x: Array, fmt: FloatFormat | None) -> Array:
    if fmt is None or fmt is _FP32:
        return x
    if x.T.flags.c_contiguous and not x.flags.c_contiguous:
        return _cast(x.T, fmt).T
    if in_one_call(x):
        return layers.cast_operand(x, fmt)
    k = operand_scale(float(np.abs(x).max()), fmt)
    cast: Array = np.ldexp(round_to(np.ldexp(x, k), fmt), -k)
    return cast
