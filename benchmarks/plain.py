"""Training steps in float32 NumPy as one writes them without this package: forward, backward, Adam; nothing rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from precision_lab.training.models import MLP, Transformer

Array: TypeAlias = np.ndarray[Any, Any]
Arrays: TypeAlias = dict[str, Array]


def mlp(model: MLP, inputs: Array, labels: Array) -> Callable[[], float]:
    """Return the step of a perceptron with one hidden layer of ReLU; it returns the loss."""
    p = model.init()

    def gradients() -> tuple[float, Arrays]:
        hidden = inputs @ p["layer1.weight"] + p["layer1.bias"]
        output = np.maximum(hidden, 0)
        logits = output @ p["layer2.weight"] + p["layer2.bias"]
        loss, gradient = cross_entropy(logits, labels)
        below = np.where(hidden <= 0, np.float32(0), gradient @ p["layer2.weight"].T)
        return loss, {
            "layer1.weight": inputs.T @ below,
            "layer1.bias": below.sum(axis=0),
            "layer2.weight": output.T @ gradient,
            "layer2.bias": gradient.sum(axis=0),
        }

    return adam(p, gradients)


def transformer(model: Transformer, inputs: Array, targets: Array) -> Callable[[], float]:
    """Return the step of a transformer of one layer with GELU; it returns the loss."""
    p = model.init()
    batch, n = inputs.shape
    heads, width = model.heads, model.width
    seen = np.tri(n, dtype=bool)
    shrink = 1 / math.sqrt(width // heads)
    slope, cube = math.sqrt(2 / math.pi), 0.044715

    def norm(x: Array, name: str) -> tuple[Array, tuple[Array, Array]]:
        centred = x - x.mean(axis=1, keepdims=True)
        deviations = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5)
        values = centred / deviations
        return values * p[f"{name}.weight"] + p[f"{name}.bias"], (values, deviations)

    def norm_backward(g: Array, kept: tuple[Array, Array], name: str, found: Arrays) -> Array:
        values, deviations = kept
        found[f"{name}.weight"], found[f"{name}.bias"] = (g * values).sum(axis=0), g.sum(axis=0)
        scaled = g * p[f"{name}.weight"]
        inner = scaled - scaled.mean(axis=1, keepdims=True)
        by_x: Array = (inner - values * (scaled * values).mean(axis=1, keepdims=True)) / deviations
        return by_x

    def linear(x: Array, name: str) -> Array:
        result: Array = x @ p[f"layer1.{name}.weight"] + p[f"layer1.{name}.bias"]
        return result

    def linear_backward(g: Array, x: Array, name: str, found: Arrays) -> Array:
        found[f"layer1.{name}.weight"], found[f"layer1.{name}.bias"] = x.T @ g, g.sum(axis=0)
        result: Array = g @ p[f"layer1.{name}.weight"].T
        return result

    def gradients() -> tuple[float, Arrays]:
        embedding = (p["token"][inputs] + p["position"][:n]).reshape(-1, width)
        first, first_kept = norm(embedding, "layer1.attention_norm")
        queries, keys, values = linear(first, "qkv").reshape(batch, n, 3, heads, -1).transpose(2, 0, 3, 1, 4)
        scores = np.where(seen, queries @ keys.swapaxes(-1, -2) * shrink, np.float32(-np.inf))
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
        mixed = (probabilities @ values).transpose(0, 2, 1, 3).reshape(-1, width)
        attended = embedding + linear(mixed, "projection")
        second, second_kept = norm(attended, "layer1.mlp_norm")
        up = linear(second, "up")
        tanh = np.tanh(slope * up * (1 + cube * np.square(up)))
        hidden = 0.5 * up * (1 + tanh)
        last, last_kept = norm(attended + linear(hidden, "down"), "norm")
        loss, g = cross_entropy(last @ p["head.weight"], targets.reshape(-1))

        found = {"head.weight": last.T @ g}
        g = norm_backward(g @ p["head.weight"].T, last_kept, "norm", found)
        by_up = linear_backward(g, hidden, "down", found)
        inner = slope * (1 + 3 * cube * np.square(up))
        by_up = by_up * (0.5 * (1 + tanh) + 0.5 * up * (1 - np.square(tanh)) * inner)
        g = g + norm_backward(linear_backward(by_up, second, "up", found), second_kept, "layer1.mlp_norm", found)
        by_mixed = linear_backward(g, mixed, "projection", found).reshape(batch, n, heads, -1).transpose(0, 2, 1, 3)
        by_probabilities = by_mixed @ values.swapaxes(-1, -2)
        sums = (by_probabilities * probabilities).sum(axis=-1, keepdims=True)
        by_scores = probabilities * (by_probabilities - sums) * shrink
        parts = (by_scores @ keys, by_scores.swapaxes(-1, -2) @ queries, probabilities.swapaxes(-1, -2) @ by_mixed)
        by_qkv = np.concatenate([part.transpose(0, 2, 1, 3).reshape(-1, width) for part in parts], axis=1)
        g = g + norm_backward(linear_backward(by_qkv, first, "qkv", found), first_kept, "layer1.attention_norm", found)
        found["token"], found["position"] = np.zeros_like(p["token"]), np.zeros_like(p["position"])
        np.add.at(found["token"], inputs.reshape(-1), g)
        found["position"][:n] = g.reshape(batch, n, width).sum(axis=0)
        return loss, found

    return adam(p, gradients)


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean loss and its gradient."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    loss = float((np.log(totals[:, 0]) - shifted[rows, labels]).mean())
    gradient = exponentials / totals
    gradient[rows, labels] -= 1
    gradient *= np.float32(1 / len(labels))
    return loss, gradient


def adam(parameters: Arrays, gradients: Callable[[], tuple[float, Mapping[str, Array]]]) -> Callable[[], float]:
    """Return a step that updates the parameters, each by itself."""
    first = {name: np.zeros_like(w) for name, w in parameters.items()}
    second = {name: np.zeros_like(w) for name, w in parameters.items()}
    time = 0

    def step() -> float:
        nonlocal time
        time += 1
        loss, found = gradients()
        for name, g in found.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            corrected = first[name] / (1 - 0.9**time)
            parameters[name] = parameters[name] - 1e-3 * corrected / (np.sqrt(second[name] / (1 - 0.999**time)) + 1e-8)
        return loss

    return step
