"""A character transformer: small, but with everything that large ones are careful with, layer norm and attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precision_lab.numerics import fixed
from precision_lab.training.models.interface import (
    Array,
    Gradients,
    Labels,
    Parameters,
    arithmetic,
    checked_dtype,
    checked_loss_scale,
    parameter_dtype,
)
from precision_lab.training.models.parts import (
    Normalised,
    causal_softmax,
    causal_softmax_gradient,
    gelu_and_slope,
    layer_norm,
    layer_norm_gradients,
    mean_cross_entropy,
    mean_loss,
    relu_gradient,
    softmax_cross_entropy,
)
from precision_lab.training.models.places import (
    linear,
    linear_gradient,
    linear_weight_gradients,
    product,
    rounded,
    weight_gradient,
)
from precision_lab.training.storage import FP32, StorageConfig

ACTIVATIONS = ("relu", "gelu")
"""The accepted values of `Transformer.activation`."""

# windows that are evaluated at a time: what belongs to them stays in the caches
_CHUNK = 32


class Kept(NamedTuple):
    """What the forward pass keeps for the way back, beside the activations.

    Attributes
    ----------
    normalised : dict of str to Normalised
        By layer norm.
    slopes : dict of str to array
        Those of GELU, by layer.

    """

    normalised: dict[str, Normalised]
    slopes: dict[str, Array]


@dataclass(frozen=True)
class Transformer:
    """A decoder that guesses each next character of a window from those before it.

    Embeddings of characters and positions are added; each layer adds to them what causal attention makes of their layer
    norm, then what a perceptron with one hidden layer makes of theirs (pre-norm: Xiong et al. 2020, arXiv 2002.04745;
    Radford et al. 2019); a last layer norm and a product give the logits.

    Parameters, for layer k from 1: ``token``, ``position``; ``layer<k>.attention_norm``, ``.qkv``, ``.projection``,
    ``.mlp_norm``, ``.up``, ``.down``, each with ``.weight`` and ``.bias``; ``norm.weight``, ``norm.bias``;
    ``head.weight``, which a tied model does not have: its logits are products with the embeddings of the characters,
    ``token.T`` (Press and Wolf 2017, arXiv 1608.05859). Activations, one row per character of each window, are named
    after what computes them.

    The places where a value is rounded, in their order; what has a name is an activation:

    ==========================================================  =================================
    value                                                       role
    ==========================================================  =================================
    ``embedding``: sum of the two embeddings                    activations
    ``layer<k>.attention_norm``: see `layer_norm`               activations; inside: sensitive
    ``layer<k>.qkv``: queries, keys, values after the bias      activations
    ``layer<k>.scores``: products divided by sqrt(head width)   activations
    ``layer<k>.probabilities``: see `causal_softmax`            activations; inside: sensitive
    ``layer<k>.mixed``: the values, mixed by them               activations
    ``layer<k>.projection``, after the bias                     activations
    ``layer<k>.attention_sum``: with what was there before      activations
    ``layer<k>.mlp_norm``, ``layer<k>.up``, ``layer<k>.down``   as above
    ``layer<k>.hidden``: ReLU (stored already) or GELU          activations
    ``layer<k>.output``: with what was there before             activations
    ``norm``, ``logits``                                        as above
    softmax and losses: see `softmax_cross_entropy`             sensitive
    gradient of each activation                                 activation_gradients
    gradients of the parameters                                 gradients (see `weight_gradient`)
    of a tied ``token``: of each use, and their sum             as above; the sum: gradients
    operands and sums of the matrix products                    see `product`
    ==========================================================  =================================

    What is handed on two ways, beside a branch and into it, gets its gradient from both: their sum is rounded once, as
    a fused layer norm does it. Of a parameter that is used twice autograd makes two gradients and adds them up in their
    format: so it is here. Sums over rows, in the gradients of biases, of layer norms and of the embeddings, are
    float32, in order, whatever the accumulator is.

    Parameters
    ----------
    vocabulary : int
        Number of different characters.
    context : int
        The longest window.
    width : int
        Of the embeddings, a multiple of `heads`.
    heads : int
        Of the attention.
    layers : int
        One or two are enough here.
    hidden : int
        Width of the hidden layer of each perceptron.
    activation : str
        Its activation function, ``relu`` or ``gelu`` (in the tanh form).
    tied : bool
        Whether the logits come from the embeddings of the characters.

    Raises
    ------
    ValueError
        If one of these is none of the accepted values.

    """

    vocabulary: int
    context: int = 32
    width: int = 32
    heads: int = 2
    layers: int = 1
    hidden: int = 128
    activation: str = "gelu"
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "width", "heads", "layers", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")

    def init(self, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
        """Draw the parameters, as GPT-2 does (Radford et al. 2019, section 2.3, and its code).

        Weights and embeddings are normal with standard deviation 0.02, those that end a branch (``projection`` and
        ``down``) 0.02 / sqrt(2 * layers); layer norms start at scale 1, biases at 0. Drawn in float64 and rounded once.
        Tied or not, all but the head start at the same values.

        Parameters
        ----------
        seed : int
            Seed of `numpy.random.default_rng`.
        dtype : dtype
            float32 or float64.

        Returns
        -------
        dict of str to array
            Matrices have the shape (inputs, outputs).

        Raises
        ------
        ValueError
            `dtype` is another one.

        """
        target = checked_dtype(dtype)
        rng = np.random.default_rng(seed)
        width, hidden = self.width, self.hidden
        ending = 0.02 / math.sqrt(2 * self.layers)

        def normal(rows: int, columns: int, deviation: float = 0.02) -> Array:
            return (rng.standard_normal((rows, columns)) * deviation).astype(target)

        parameters = {"token": normal(self.vocabulary, width), "position": normal(self.context, width)}

        def add(name: str, weight: Array) -> None:
            parameters[f"{name}.weight"] = weight
            parameters[f"{name}.bias"] = np.zeros(weight.shape[-1], target)

        for layer in (f"layer{k}" for k in range(1, self.layers + 1)):
            add(f"{layer}.attention_norm", np.ones(width, target))
            add(f"{layer}.qkv", normal(width, 3 * width))
            add(f"{layer}.projection", normal(width, width, ending))
            add(f"{layer}.mlp_norm", np.ones(width, target))
            add(f"{layer}.up", normal(width, hidden))
            add(f"{layer}.down", normal(hidden, width, ending))
        add("norm", np.ones(width, target))
        return parameters if self.tied else {**parameters, "head.weight": normal(width, self.vocabulary)}

    def forward(self, parameters: Parameters, inputs: Array, storage: StorageConfig | None = None) -> dict[str, Array]:
        """Compute every activation.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`; taken as they are.
        inputs : integer array, shape (batch, n)
            Windows of characters, each from 0 to vocabulary - 1; n is at most `context`.
        storage : StorageConfig, optional
            The formats; default: nothing is rounded.

        Returns
        -------
        dict of str to array
            By name, in the order of the computation; shape (batch * n, width), the windows one after the other, or for
            ``scores`` and ``probabilities`` (batch, heads, n, n). Scores of later positions are computed, not used.

        Raises
        ------
        ValueError
            If the parameters are not all float32 (or all float64 without a storage), or the inputs do not fit.

        """
        _, places = arithmetic(parameters, storage)
        activations, _ = self._forward(parameters, inputs, places)
        return activations

    def loss(self, parameters: Parameters, inputs: Labels, targets: Labels) -> float:
        """Mean cross-entropy over all characters of all windows, in the dtype of the parameters.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`; their dtype is that of the arithmetic.
        inputs, targets : integer array, shape (batch, n)
            Windows of characters, and the next character of each.

        Raises
        ------
        ValueError
            As `forward`, or if the targets do not fit.

        """
        losses = [
            softmax_cross_entropy(logits, after)[0] for logits, after in self._logits(parameters, inputs, targets)
        ]
        return mean_loss(np.concatenate(losses))

    def accuracy(self, parameters: Parameters, inputs: Labels, targets: Labels) -> float:
        """Share of the characters whose largest logit is that of the next one; ties go to the lower code."""
        right = [logits.argmax(axis=1) == after for logits, after in self._logits(parameters, inputs, targets)]
        return float(np.mean(np.concatenate(right)))

    def loss_and_gradients(
        self,
        parameters: Parameters,
        inputs: Labels,
        targets: Labels,
        *,
        loss_scale: float = 1.0,
        storage: StorageConfig | None = None,
    ) -> Gradients:
        """Mean cross-entropy and its derivatives by all parameters and all activations.

        The backward pass starts from `logits_gradient`, the mean being over all characters of all windows.

        Parameters
        ----------
        parameters : mapping of str to array
            As from `init`; taken as they are. Their dtype is that of the arithmetic and of the gradients.
        inputs, targets : integer array, shape (batch, n)
            Windows of characters, and the next character of each.
        loss_scale : float
            Positive and finite in the dtype of the parameters.
        storage : StorageConfig, optional
            The formats; default: nothing is rounded.

        Returns
        -------
        Gradients
            The loss without the scale; the gradients with it.

        Raises
        ------
        ValueError
            If `loss_scale` is out of range, and as `loss`.

        """
        dtype, places = arithmetic(parameters, storage)
        scale = checked_loss_scale(loss_scale, dtype)
        _check_targets(inputs, targets)
        activations, kept = self._forward(parameters, inputs, places)
        loss, gradient = mean_cross_entropy(activations["logits"], targets.reshape(-1), scale, places)

        weights: dict[str, Array] = {}
        gradients = {"logits": gradient}

        def back(name: str, below: str) -> Array:
            """Go back through ``x @ weight + bias``, where x is the activation `below`."""
            gradient = gradients[name]
            weights[f"{name}.weight"], weights[f"{name}.bias"] = linear_weight_gradients(
                activations[below], gradient, places
            )
            return linear_gradient(gradient, parameters[f"{name}.weight"], places)

        def norm(name: str) -> Array:
            """Go back through a layer norm; the result is not rounded yet."""
            by_x, by_weight, by_bias = layer_norm_gradients(
                gradients[name], kept.normalised[name], parameters[f"{name}.weight"], places
            )
            weights[f"{name}.weight"] = weight_gradient(by_weight, places)
            weights[f"{name}.bias"] = weight_gradient(by_bias, places)
            return by_x

        exact = product(activations["norm"].T, gradients["logits"], places, gradient="b")
        head = weight_gradient(exact, places)
        gradients["norm"] = linear_gradient(gradients["logits"], self._head(parameters), places)
        gradients[f"layer{self.layers}.output"] = rounded(norm("norm"), places.activation_gradients)
        for k in range(self.layers, 0, -1):
            layer = f"layer{k}"
            gradients[f"{layer}.down"] = gradients[f"{layer}.output"]
            gradients[f"{layer}.hidden"] = back(f"{layer}.down", f"{layer}.hidden")
            gradients[f"{layer}.up"] = self._activate_backward(layer, gradients, activations, kept, places)
            gradients[f"{layer}.mlp_norm"] = back(f"{layer}.up", f"{layer}.mlp_norm")
            both = gradients[f"{layer}.output"] + norm(f"{layer}.mlp_norm")
            gradients[f"{layer}.attention_sum"] = rounded(both, places.activation_gradients)
            gradients[f"{layer}.projection"] = gradients[f"{layer}.attention_sum"]
            gradients[f"{layer}.mixed"] = back(f"{layer}.projection", f"{layer}.mixed")
            gradients |= self._attend_backward(gradients[f"{layer}.mixed"], activations, layer, places)
            gradients[f"{layer}.attention_norm"] = back(f"{layer}.qkv", f"{layer}.attention_norm")
            both = gradients[f"{layer}.attention_sum"] + norm(f"{layer}.attention_norm")
            gradients[f"layer{k - 1}.output" if k > 1 else "embedding"] = rounded(both, places.activation_gradients)
        token, position = self._embed_backward(gradients["embedding"], inputs)
        weights["token"] = weight_gradient(token, places)
        weights["position"] = weight_gradient(position, places)
        if self.tied:
            weights["token"] = rounded(weights["token"] + head.T, places.gradients)
        else:
            weights["head.weight"] = head
        return Gradients(
            loss,
            {name: weights[name] for name in parameters},
            {name: gradients[name] for name in activations},
        )

    def _forward(self, parameters: Parameters, inputs: Labels, storage: StorageConfig) -> tuple[dict[str, Array], Kept]:
        """Return the activations, and what is kept for the way back."""
        self._check_inputs(inputs)
        activations: dict[str, Array] = {}
        kept = Kept({}, {})

        def forth(name: str, x: Array) -> Array:
            activations[name] = linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], storage)
            return activations[name]

        def norm(name: str, x: Array) -> Array:
            activations[name], kept.normalised[name] = layer_norm(
                x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], storage
            )
            return activations[name]

        embedded = parameters["token"][inputs] + parameters["position"][: inputs.shape[1]]
        x = activations["embedding"] = rounded(embedded.reshape(-1, self.width), storage.activations)
        for layer in (f"layer{k}" for k in range(1, self.layers + 1)):
            forth(f"{layer}.qkv", norm(f"{layer}.attention_norm", x))
            activations |= self._attend(activations[f"{layer}.qkv"], len(inputs), layer, storage)
            x = rounded(x + forth(f"{layer}.projection", activations[f"{layer}.mixed"]), storage.activations)
            activations[f"{layer}.attention_sum"] = x
            up = forth(f"{layer}.up", norm(f"{layer}.mlp_norm", x))
            if self.activation == "relu":
                hidden = np.maximum(up, 0)
            else:
                exact, kept.slopes[layer] = gelu_and_slope(up)
                hidden = rounded(exact, storage.activations)
            activations[f"{layer}.hidden"] = hidden
            x = rounded(x + forth(f"{layer}.down", activations[f"{layer}.hidden"]), storage.activations)
            activations[f"{layer}.output"] = x
        activations["logits"] = linear(norm("norm", x), self._head(parameters), None, storage)
        return activations, kept

    def _head(self, parameters: Parameters) -> Array:
        """Return what the last layer norm is multiplied by."""
        return parameters["token"].T if self.tied else parameters["head.weight"]

    def _activate_backward(
        self, layer: str, gradients: Parameters, activations: Parameters, kept: Kept, storage: StorageConfig
    ) -> Array:
        """Return the gradient by ``up`` from that by ``hidden``."""
        gradient = gradients[f"{layer}.hidden"]
        if self.activation == "relu":
            return relu_gradient(gradient, activations[f"{layer}.up"])
        return rounded(gradient * kept.slopes[layer], storage.activation_gradients)

    def _heads(self, qkv: Array, batch: int) -> Array:
        """Return queries, keys and values, shape (3, batch, heads, n, width of a head)."""
        return qkv.reshape(batch, -1, 3, self.heads, self.width // self.heads).transpose(2, 0, 3, 1, 4)

    def _rows(self, heads: Array) -> Array:
        """Return (batch, heads, n, width of a head) as one row per character."""
        return heads.transpose(0, 2, 1, 3).reshape(-1, self.width)

    @property
    def _shrink(self) -> float:
        return 1 / math.sqrt(self.width // self.heads)

    def _attend(self, qkv: Array, batch: int, layer: str, storage: StorageConfig) -> dict[str, Array]:
        """Return scores, probabilities and the values mixed by them, by name."""
        queries, keys, values = self._heads(qkv, batch)
        exact = product(queries, keys.swapaxes(-1, -2), storage)
        scores = rounded(exact * self._shrink, storage.activations)
        probabilities = causal_softmax(scores, storage)
        mixed = rounded(self._rows(product(probabilities, values, storage)), storage.activations)
        return {f"{layer}.scores": scores, f"{layer}.probabilities": probabilities, f"{layer}.mixed": mixed}

    def _attend_backward(
        self, gradient: Array, activations: Parameters, layer: str, storage: StorageConfig
    ) -> dict[str, Array]:
        """Return the gradients of probabilities, scores and qkv, by name, from that of the mixed values."""
        fmt = storage.activation_gradients
        probabilities = activations[f"{layer}.probabilities"]
        batch, n = len(probabilities), probabilities.shape[-1]
        queries, keys, values = self._heads(activations[f"{layer}.qkv"], batch)
        mixed = gradient.reshape(batch, n, self.heads, -1).transpose(0, 2, 1, 3)
        by_probabilities = rounded(product(mixed, values.swapaxes(-1, -2), storage, gradient="a"), fmt)
        by_scores = causal_softmax_gradient(by_probabilities, probabilities, storage)
        by_queries = product(by_scores, keys, storage, gradient="a") * self._shrink
        by_keys = product(by_scores.swapaxes(-1, -2), queries, storage, gradient="a") * self._shrink
        by_values = product(probabilities.swapaxes(-1, -2), mixed, storage, gradient="b")
        by_qkv = np.concatenate([self._rows(part) for part in (by_queries, by_keys, by_values)], axis=1)
        return {
            f"{layer}.probabilities": by_probabilities,
            f"{layer}.scores": by_scores,
            f"{layer}.qkv": rounded(by_qkv, fmt),
        }

    def _embed_backward(self, gradient: Array, inputs: Labels) -> tuple[Array, Array]:
        """Return the gradients of the embeddings of characters and of positions."""
        token = fixed.sum_by_group(gradient, inputs.reshape(-1), self.vocabulary)
        position = np.zeros((self.context, self.width), gradient.dtype)
        position[: inputs.shape[1]] = fixed.sum(gradient.reshape(*inputs.shape, -1), 0)
        return token, position

    def _logits(self, parameters: Parameters, inputs: Labels, targets: Labels) -> Iterator[tuple[Array, Labels]]:
        """Go through the windows in chunks: their logits and their targets."""
        parameter_dtype(parameters)
        _check_targets(inputs, targets)
        for start in range(0, len(inputs), _CHUNK):
            part = slice(start, start + _CHUNK)
            activations, _ = self._forward(parameters, inputs[part], FP32)
            yield activations["logits"], targets[part].reshape(-1)

    def _check_inputs(self, inputs: Labels) -> None:
        if inputs.ndim != 2 or not inputs.size or inputs.shape[1] > self.context or inputs.dtype.kind not in "iu":
            raise ValueError(
                f"inputs must be integers of shape (batch, n), batch >= 1, n in 1..{self.context}, got {inputs.dtype} "
                f"of shape {inputs.shape}"
            )
        if inputs.min() < 0 or inputs.max() >= self.vocabulary:
            raise ValueError(
                f"inputs must lie in 0..{self.vocabulary - 1}, the vocabulary, got {inputs.min()}..{inputs.max()}"
            )


def _check_targets(inputs: Labels, targets: Labels) -> None:
    if targets.shape != inputs.shape:
        raise ValueError(f"targets must have shape {inputs.shape}, one per character, got {targets.shape}")
