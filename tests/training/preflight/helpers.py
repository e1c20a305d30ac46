"""Weights, moments, and hyperparameters of which nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from precision_lab import PreflightReport, preflight, round_to
from precision_lab.training.storage import CONFIGURATIONS

BF16 = CONFIGURATIONS["pure_bf16"].weights


def ask(weights: Any, **options: Any) -> PreflightReport:
    """With hyperparameters of which bf16 and fp16 lose nothing themselves, if not said otherwise."""
    return preflight(weights, **({"lr": 1e-3, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.0} | options))


def ask_steps(weights: dict[str, Any], size: float, **options: Any) -> PreflightReport:
    """With updates of this size, one by one."""
    return ask(weights, updates={name: np.full(np.shape(w), size) for name, w in weights.items()}, **options)


def spread(count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(1)
    w = (rng.standard_normal(count) * 2.0 ** rng.integers(-14, 6, count)).astype(np.float32)
    w[: count // 2] = round_to(w[: count // 2], "bf16")
    w[:40] = 2.0 ** np.arange(-20, 20)
    w[40:44] = 0
    return w


def adam_files(folder: Path, **extra: Any) -> dict[str, np.ndarray]:
    w = {"a": spread(60).reshape(6, 10), "b": spread(90)[60:]}
    save_file(w, folder / "w.safetensors")
    rng = np.random.default_rng(5)
    state: dict[str, np.ndarray] = {}
    for name, value in w.items():
        state[f"{name}.exp_avg"] = (rng.standard_normal(value.shape) * 1e-3).astype(np.float32)
        state[f"{name}.exp_avg_sq"] = (rng.random(value.shape) * 1e-6).astype(np.float32)
        state[f"{name}.step"] = np.array(7, np.float32)
    np.savez(folder / "state.npz", **(state | extra))
    return w | state


def to_bf16(x: Any) -> np.ndarray:
    """Doubles to the nearest of 8 bits, ties to even: by division through the gap, with nothing of the lab's in it."""
    x = np.asarray(x, np.float64)
    gap = np.ldexp(1.0, np.frexp(x)[1] - 8)
    return np.asarray(np.where(x == 0, 0.0, np.rint(x / gap) * gap))


def lost_in_bf16(w: Any, u: Any) -> int:
    """How many updates that are not zero leave the weights as they are; w + u is exact in float64 where it matters."""
    w, u = to_bf16(w), np.asarray(u, np.float64)
    return int(((to_bf16(w + u) == w) & (u != 0)).sum())
