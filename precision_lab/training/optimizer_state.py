"""What an optimizer holds from step to step, and the step: which operations are rounded, and in which order.

The table in `optimizers` says what is computed; how the new weight is stored is the business of `update_rules`.
"""

from __future__ import annotations

import math
from collections.abc import KeysView, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from precision_lab.numerics.codec import Codec, codec, stored_dtype
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.rounding import Array
from precision_lab.training.optimizers import Optimizer, promoted
from precision_lab.training.storage import FP32, StorageConfig
from precision_lab.training.update_rules import UPDATE_RULES, Update, UpdateRule, rounded

_FP32 = get_format("fp32")


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """What a run holds between two steps.

    Attributes
    ----------
    step : int
        Number of updates made.
    buffers : mapping of str to array
        Those that `buffers` names, each a value a parameter, in the dtype of its format (in codes where it has none).
        Nobody writes to them: states share what did not change.

    """

    step: int
    buffers: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        """Memory of all buffers in bytes."""
        return sum(array.nbytes for array in self.buffers.values())


def buffers(optimizer: Optimizer, storage: StorageConfig) -> dict[str, FloatFormat]:
    """Return the format of every array that lives from one step to the next; each has a value a parameter.

    `weights` (unless they are transient), `gradients`, `main_gradients`, `master`, the optimizer's moments, and the
    words of the rule by which weights are stored (`update_rules`).
    """
    formats = {} if storage.transient_weights else {"weights": storage.weights}
    formats["gradients"] = storage.gradients
    if storage.main_gradients is not None:
        formats["main_gradients"] = storage.main_gradients
    if storage.master is not None:
        formats["master"] = storage.master
    formats |= {role: getattr(storage, role) for role in optimizer.moments}
    words = UPDATE_RULES[storage.update].words
    return formats | {word: formats[role] for word, role in words.items() if role in formats}


class Kept(NamedTuple):
    """What every step of a run looks up.

    Attributes
    ----------
    optimizer, storage
        Those of the run.
    names : keys view
        Those of `buffers`.
    updated, gradients, weights : Codec
        Of what is updated, of the gradients, and of the weights.
    rule : UpdateRule
        By which weights are stored,
    beside : tuple of str
        and the buffers that complete them then.

    """

    optimizer: Optimizer
    storage: StorageConfig
    names: KeysView[str]
    updated: Codec
    gradients: Codec
    weights: Codec
    rule: UpdateRule
    beside: tuple[str, ...]


@lru_cache(maxsize=256)
def kept(optimizer: Optimizer, storage: StorageConfig) -> Kept:
    """Look up what every step of a run needs."""
    rule = UPDATE_RULES[storage.update]
    return Kept(
        optimizer,
        storage,
        buffers(optimizer, storage).keys(),
        codec(storage.updated),
        codec(storage.gradients),
        codec(storage.weights),
        rule,
        rule.words_of("weights"),
    )


def start(parameters: Array, optimizer: Optimizer, storage: StorageConfig) -> OptimizerState:
    """Return the state before the first step: the parameters where they are kept, zero everywhere else.

    Parameters
    ----------
    parameters : float32 array, shape (n,)
        All parameters together, see `flatten`.
    optimizer : Optimizer
        What will update them.
    storage : StorageConfig
        Where they are kept.

    Raises
    ------
    ValueError
        `parameters` is no float32 array of one dimension.
    FloatingPointError
        As `precision_lab.round_to`.

    """
    updated = codec(storage.updated).round(_flat(parameters, "parameters"))
    held = {}
    for name, fmt in buffers(optimizer, storage).items():
        held[name] = np.zeros(parameters.size, stored_dtype(fmt))
        if name in ("weights", "master"):
            held[name][:] = codec(fmt).encode(codec(fmt).round(updated))
    return OptimizerState(0, held)


def updated_parameters(state: OptimizerState, storage: StorageConfig) -> Array:
    """Return the parameters that `update` updates, in float32: the master copy if there is one, else the weights.

    The array may be the state's own: do not write to it.
    """
    name = "weights" if storage.master is None else "master"
    return codec(storage.updated).decode(state.buffers[name])


def visible_weights(state: OptimizerState, storage: StorageConfig) -> Array:
    """Return what forward and backward see, in float32: the weights, or what is cast from the master copy.

    The array may be the state's own: do not write to it.
    """
    if storage.transient_weights:
        return codec(storage.weights).round(updated_parameters(state, storage))
    return codec(storage.weights).decode(state.buffers["weights"])


def update(
    state: OptimizerState,
    gradient: Array,
    optimizer: Optimizer,
    storage: StorageConfig,
    *,
    learning_rate: float | None = None,
    unscale: float = 1.0,
    seed: int = 0,
) -> tuple[OptimizerState, Array]:
    """Make one step. Infinities and NaN in the gradient go where IEEE arithmetic takes them.

    Parameters
    ----------
    state : OptimizerState
        Before the step; it stays as it is.
    gradient : float32 array, shape (n,)
        As the backward pass gives it, multiplied by the loss scale. It is rounded into `storage.gradients`.
    optimizer : Optimizer
        The one that the state was started with.
    storage : StorageConfig
        Likewise.
    learning_rate : float, optional
        In place of the optimizer's, for a schedule; not negative, finite.
    unscale : float
        One over the loss scale. The stored gradient is multiplied by it in float32 on its way into the step, and not
        rounded or stored again: with a master copy that is what apex and Megatron do.
    seed : int
        For the stochastic update: n parameters use the numbers [t * n, (t + 1) * n) of the seed's stream in the step
        after t others (see `round_to`).

    Returns
    -------
    state : OptimizerState
        After the step.
    intended : float32 array, shape (n,)
        What was to be added to the parameters, AdamW's decay included, before their format had a say.

    Raises
    ------
    ValueError
        `gradient` is no float32 array of n elements; the state holds other buffers; `learning_rate` out of range.
    FloatingPointError
        As `precision_lab.round_to`.

    """
    with np.errstate(all="ignore"):
        g = codec(storage.gradients).round(_flat(gradient, "gradient"))
        return advance(
            state,
            g.copy() if g is gradient else g,
            kept(optimizer, storage),
            learning_rate=learning_rate,
            unscale=unscale,
            seed=seed,
        )


def advance(
    state: OptimizerState,
    g: Array,
    run: Kept,
    *,
    learning_rate: float | None = None,
    unscale: float = 1.0,
    seed: int = 0,
) -> tuple[OptimizerState, Array]:
    """Make one step as `update` does, of a gradient that has its format already; the state may keep the array itself.

    Warnings of NumPy are the caller's to silence.
    """
    held, optimizer, storage, updated = state.buffers, run.optimizer, run.storage, run.updated
    if held.keys() != run.names:
        raise ValueError(
            f"the state holds {', '.join(held)}, but this optimizer and storage need "
            f"{', '.join(run.names)}: use what it was started with"
        )
    if g.size != held["gradients"].size:
        raise ValueError(f"gradient must have {held['gradients'].size} elements, as the parameters; got {g.size}")
    if learning_rate is None:
        learning_rate = optimizer.learning_rate
    elif not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate must be at least 0 and finite, got {learning_rate!r}")
    new_buffers = dict(held)
    new_buffers["gradients"] = run.gradients.encode(g)
    if unscale != 1:
        g = g * np.float32(unscale)
    if storage.main_gradients is not None:
        main = codec(storage.main_gradients)
        g = main.round(g if unscale != 1 else g.copy())  # the state may have the array itself already
        new_buffers["main_gradients"] = main.encode(g)
    w = updated.decode(held["weights" if storage.master is None else "master"])
    proposed, moments = _proposal(held, state.step + 1, w, g, run, learning_rate)
    new_buffers |= moments

    words = (w, *(updated.decode(held[word]) for word in run.beside))
    stream = (seed, state.step * w.size)
    w, *words_after = run.rule.add(words, proposed, storage.updated, stream)
    new_buffers |= {word: updated.encode(values) for word, values in zip(run.beside, words_after, strict=True)}
    if storage.master is None:
        new_buffers["weights"] = updated.encode(w)
    else:
        new_buffers["master"] = updated.encode(w)
        if not storage.transient_weights:
            new_buffers["weights"] = run.weights.encode(w if storage.weights is not _FP32 else w.copy())
    return OptimizerState(state.step + 1, new_buffers), proposed.intended


def _proposal(
    held: Mapping[str, Array], t: int, w: Array, g: Array, run: Kept, learning_rate: float
) -> tuple[Update, dict[str, Array]]:
    """Return what the step of number t wants to add to the weights, and the moments that it leaves."""
    optimizer = run.optimizer
    g = _decayed(w, g, run)
    decay = learning_rate * optimizer.weight_decay if optimizer.decoupled else 0.0
    scale, direction, moments = optimizer.direction(t, held, g, run.storage, learning_rate)
    intended = direction if scale == 1 else scale * direction
    if decay:
        intended = codec(_FP32).compute("scaled_sum_32", np.float32(-decay), w, intended)
    return Update(scale, direction, decay, intended), moments


def _decayed(w: Array, g: Array, run: Kept) -> Array:
    """Return the gradient with the weight decay that is added to it."""
    optimizer, storage = run.optimizer, run.storage
    if optimizer.decoupled or not optimizer.weight_decay:
        return g
    both = promoted(storage.read_gradients, storage.updated)
    return codec(both).compute("scaled_sum_32", rounded(optimizer.weight_decay, both), w, g)


@dataclass(frozen=True, eq=False)
class Fp32Moments:
    """What an optimizer with nothing rounded but by float32 arithmetic remembers of the gradients of another run.

    Warnings of NumPy are the caller's to silence, as with `advance`.

    Attributes
    ----------
    run : Kept
        Of the optimizer in fp32.
    step : int
        Number of updates made.
    moments : mapping of str to float32 array
        Its own, by role.

    """

    run: Kept
    step: int
    moments: Mapping[str, Array]

    @classmethod
    def start(cls, count: int, optimizer: Optimizer) -> Fp32Moments:
        """Return the state before the first step of a run of `count` parameters: zero."""
        return cls(kept(optimizer, FP32), 0, {role: np.zeros(count, np.float32) for role in optimizer.moments})

    def advance(
        self, before: OptimizerState, after: OptimizerState, run: Kept, *, learning_rate: float, unscale: float = 1.0
    ) -> tuple[Fp32Moments, Array]:
        """Return the successor, and the update that the fp32 optimizer makes of the gradients of a step.

        It gets the gradients as the run keeps them, rounded into `storage.gradients` and unscaled in float32: the two
        differ in what an optimizer makes of them, and not in the backward pass. The weights, which it needs for the
        decay alone, are those of the run.

        Parameters
        ----------
        before, after : OptimizerState
            The run's, before and after an update that was made.
        run : Kept
            Of the run.
        learning_rate, unscale : float
            Those of the update.

        Returns
        -------
        successor : Fp32Moments
        intended : float32 array, shape (n,)
            As `update` returns it.

        """
        t, w, g = self._asked(before, after, run, unscale)
        proposed, moments = _proposal(self.moments, t, w, g, self.run, learning_rate)
        return Fp32Moments(self.run, t, moments), proposed.intended

    def remember(
        self, before: OptimizerState, after: OptimizerState, run: Kept, *, unscale: float = 1.0
    ) -> Fp32Moments:
        """Return the successor alone, in less time than `advance`."""
        t, w, g = self._asked(before, after, run, unscale)
        moments = run.optimizer.remember(t, self.moments, _decayed(w, g, self.run), FP32)
        return Fp32Moments(self.run, t, moments)

    def _asked(
        self, before: OptimizerState, after: OptimizerState, run: Kept, unscale: float
    ) -> tuple[int, Array, Array]:
        g = run.gradients.decode(after.buffers["gradients"])
        if unscale != 1:
            g = g * np.float32(unscale)
        # without a decay nobody looks at the weights
        return self.step + 1, updated_parameters(before, run.storage) if run.optimizer.weight_decay else g, g


def _flat(x: Array, name: str) -> Array:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 1 or not x.flags.c_contiguous:
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(f"{name} must be a contiguous float32 array of one dimension (see flatten), got {got}")
    return x
