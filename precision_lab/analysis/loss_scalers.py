"""Loss scaling: the factor S that lifts small gradients into a narrow format, and the rules by which S is moved.

The smallest positive number of fp16 is 2^-24, and many gradients are smaller. Multiply the loss by S and the chain rule
multiplies every gradient by S; divide by S in fp32 before the update and nothing has changed, except that the backward
pass ran higher up in the format (Micikevicius et al. 2018, section 3.2). Too small an S leaves gradients at zero, too
large an S makes the largest of them infinite, and the window between the two moves while a model learns.

So frameworks search for S as they go. All do the same two things: after an overflow (an inf or NaN among the gradients)
the step is skipped and S shrinks; after a while without one S grows. They differ in the details, and the details decide
what a gradient spike costs: how many overflows it takes until S moves (hysteresis), how many clean steps until it grows
(window), and what happens when S is at its floor. There jmp's S stands still at 1 and every step is skipped, DeepSpeed
and fairseq raise, and torch's S halves on towards 0. It does harm before it gets there: from 2^-128 on 1/S is infinite
in fp32, the gradients are unscaled to inf and NaN *after* they were searched for them, and the step is taken. Here each
of these is a recorded outcome: a scaler that is `exhausted` says so and gives the `reason`.

Scalers are values: `adjust` leaves a scaler as it is and returns the next one. `loss_scale_plan` says what every S
would do to a histogram of gradients and which to choose; `loss_scale_replay` what a scaler would have done to a
recorded run.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeAlias, cast

import numpy as np

from precision_lab.analysis.histogram import log2_of_power_of_two
from precision_lab.support.arguments import check_integer
from precision_lab.support.environment import require_gradual_underflow

ScaleDtype: TypeAlias = Literal["float32", "float64"]
_FP32 = struct.Struct("f")
_FP32_MAX = float(np.finfo(np.float32).max)
_FP32_TINY = float(np.finfo(np.float32).tiny)


class _Fixed:
    """What the scalers that never move have in common."""

    at_floor: ClassVar[bool] = False
    exhausted: ClassVar[bool] = False
    ended: ClassVar[bool] = False
    unanswered: ClassVar[int] = 0
    reason: ClassVar[str] = ""

    def adjust(self, found_inf: bool) -> Self:
        """Return the scaler itself, whatever was found."""
        return self


@dataclass(frozen=True)
class NoLossScale(_Fixed):
    """No loss scaling: S = 1."""

    framework: ClassVar[str] = "none"
    loss_scale: ClassVar[float] = 1.0


@dataclass(frozen=True)
class StaticLossScale(_Fixed):
    """A loss scale that stays as it is.

    Attributes
    ----------
    loss_scale : float
        S, positive and finite.

    Raises
    ------
    ValueError
        `loss_scale` is something else.

    """

    framework: ClassVar[str] = "static"
    loss_scale: float

    def __post_init__(self) -> None:
        _check_number("loss_scale", self.loss_scale, above=0)
        object.__setattr__(self, "loss_scale", float(self.loss_scale))


@dataclass(frozen=True)
class DynamicLossScale:
    """A loss scale that shrinks after overflows and grows after a while without.

    One rule whose parameters hold what the frameworks do; `torch`, `apex`, `megatron`, `deepspeed`, `jmp`, `flax`,
    `keras`, `keras3` and `fairseq` fill them in. After each step::

        overflow:    clean_steps = 0;  overflows += 1
                     if overflows >= hysteresis:  S = max(S * backoff_factor, min_scale)
                     but an error is raised, and S stays, where it would become <= raises_at
        no overflow: clean_steps += 1;  if consecutive_hysteresis: overflows = 0
                     if clean_steps == window + delay:
                         S = min(S * growth_factor, max_scale);  clean_steps = delay;  overflows = 0

    Products are taken in float64 and rounded to `scale_dtype`, as in the frameworks.

    Attributes
    ----------
    init_scale : float
        S at the start.
    window : int
        Steps in a row without overflow after which S grows.
    growth_factor, backoff_factor : float
        Above 1; between 0 and 1.
    hysteresis : int
        Which overflow shrinks S, counted from the last growth; 1 is the first. All later ones shrink it too.
    consecutive_hysteresis : bool
        Every step without overflow refills the hysteresis, not only growth.
    min_scale, max_scale : float
        Floor and cap of S; 0 and infinity are none.
    delay : int
        Clean steps that do not count, at the start and after each overflow.
    keeps_finite : bool
        S does not grow if it would become infinite.
    raises_at_min_scale : bool
        The framework raises an error at an overflow that finds S at its floor.
    raises_at : float
        The framework raises an error at an overflow that would leave S at this or below; 0: it does not.
    tolerance : float
        S shrinks only where the overflows since it last shrank are this share, or more, of the steps since it last
        moved; 0: always.
    scale_dtype : {"float32", "float64"}
        How S is stored.
    framework : str
        Whose rule it is, for messages.
    loss_scale : float
        State: S for the next step. Default: `init_scale`.
    clean_steps, overflows, unanswered : int
        State: steps without overflow that count; overflows since the hysteresis was refilled, at most `hysteresis`;
        overflows so far that should have made S smaller and could not.
    since_shrunk, since_moved : int
        State where there is a `tolerance`, else 0: overflows since S last shrank, and steps since it last moved.

    Raises
    ------
    ValueError
        A parameter is not as said above; the message names the accepted values.

    """

    init_scale: float = 2.0**16
    window: int = 2000
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    hysteresis: int = 1
    consecutive_hysteresis: bool = False
    min_scale: float = 0.0
    max_scale: float = math.inf
    delay: int = 0
    keeps_finite: bool = True
    raises_at_min_scale: bool = False
    raises_at: float = 0.0
    tolerance: float = 0.0
    scale_dtype: ScaleDtype = "float32"
    framework: str = "custom"
    loss_scale: float = field(default=cast(float, None), kw_only=True)
    clean_steps: int = field(default=0, kw_only=True)
    overflows: int = field(default=0, kw_only=True)
    unanswered: int = field(default=0, kw_only=True)
    since_shrunk: int = field(default=0, kw_only=True)
    since_moved: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.scale_dtype not in ("float32", "float64"):
            raise ValueError(f"scale_dtype must be 'float32' or 'float64', got {self.scale_dtype!r}")
        _check_number("init_scale", self.init_scale, above=0)
        _check_number("growth_factor", self.growth_factor, above=1)
        _check_number("backoff_factor", self.backoff_factor, above=0, below=1)
        check_integer("window", self.window, 1)
        check_integer("hysteresis", self.hysteresis, 1)
        check_integer("delay", self.delay, 0)
        if cast(object, self.loss_scale) is None:
            object.__setattr__(self, "loss_scale", self.init_scale)
        for name in ("init_scale", "min_scale", "max_scale", "loss_scale"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
            object.__setattr__(self, name, self._stored(getattr(self, name)))
        if not 0 < self.init_scale < math.inf:
            raise ValueError(f"init_scale must be from 2^-149 to below 2^128 in float32, got {self.init_scale:g}")
        if not 0 <= self.min_scale <= self.init_scale <= self.max_scale:
            raise ValueError(
                f"min_scale must be from 0 to init_scale = {self.init_scale:g}, and max_scale from there on, "
                f"got {self.min_scale:g} and {self.max_scale:g}"
            )
        if not self.min_scale <= self.loss_scale <= self.max_scale:
            raise ValueError(
                f"loss_scale must be from min_scale to max_scale, {self.min_scale:g} to {self.max_scale:g}, "
                f"got {self.loss_scale:g}"
            )
        for name, limit in (("raises_at", self.init_scale), ("tolerance", math.inf)):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < limit:
                below = "on and finite" if limit == math.inf else f"to below init_scale = {limit:g}"
                raise ValueError(f"{name} must be a number from 0 {below}, got {value!r}")
        check_integer("clean_steps", self.clean_steps, 0, self.window + self.delay - 1)
        check_integer("overflows", self.overflows, 0, self.hysteresis)
        for name in ("unanswered", "since_shrunk", "since_moved"):
            check_integer(name, getattr(self, name), 0)

    @classmethod
    def torch(
        cls,
        init_scale: float = 2.0**16,
        *,
        window: int = 2000,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
    ) -> Self:
        """Build the rule of ``torch.amp.GradScaler``; `window` is its ``growth_interval``.

        S is an fp32 tensor, factors are doubles. S grows only where it stays finite, and has no floor: it halves down
        to 2^-149 and then to 0, and stays there. (aten/src/ATen/native/cpu/AmpGradScalerKernels.cpp,
        ``_amp_update_scale_cpu_kernel``; cuda/AmpKernels.cu is the same. ``torch/amp/grad_scaler.py`` unscales by
        ``scale.double().reciprocal().float()``, infinite from S = 2^-128 down, after which nothing is searched again.)
        """
        return cls(init_scale, window, growth_factor, backoff_factor, framework="torch")

    @classmethod
    def apex(
        cls,
        init_scale: float = 2.0**16,
        *,
        window: int = 2000,
        min_scale: float = 0.0,
        max_scale: float = 2.0**24,
    ) -> Self:
        """Build the rule of NVIDIA apex amp (apex/amp/scaler.py, ``LossScaler.update_scale``).

        S is a Python float; it grows to ``min(max_loss_scale, 2 S)`` and falls to ``S / 2`` (``scale_factor`` is not
        used). There is no floor unless ``min_loss_scale`` is given. `window` is its ``scale_window``.
        """
        return cls(
            init_scale,
            window,
            min_scale=min_scale,
            max_scale=max_scale,
            scale_dtype="float64",
            framework="apex",
        )

    @classmethod
    def megatron(
        cls,
        init_scale: float = 2.0**32,
        *,
        window: int = 1000,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        hysteresis: int = 2,
        min_scale: float = 1.0,
    ) -> Self:
        """Build the rule of Megatron-LM (megatron/core/optimizer/grad_scaler.py, ``DynamicGradScaler.update``).

        S and the factors are fp32 tensors. Only growth refills the hysteresis: where its docstring says overflows "in a
        row", the code counts any since S last grew. Growth has no cap: from 2^127 S becomes infinite and stays so.
        `window` is its ``growth_interval`` (``loss_scale_window``).
        """
        return cls(
            init_scale,
            window,
            _factor_in_fp32(growth_factor),
            _factor_in_fp32(backoff_factor),
            hysteresis,
            min_scale=min_scale,
            keeps_finite=False,
            framework="Megatron",
        )

    @classmethod
    def deepspeed(
        cls,
        init_scale: float = 2.0**16,
        *,
        window: int = 1000,
        hysteresis: int = 2,
        min_scale: float = 1.0,
        consecutive_hysteresis: bool = False,
        raises_at_min_scale: bool = True,
    ) -> Self:
        """Build the rule of DeepSpeed 0.19 (deepspeed/runtime/fp16/loss_scaler.py, ``DynamicLossScaler.update_scale``).

        S is a Python float. The first growth after the start or an overflow takes ``window + 1`` clean steps and the
        next ones `window` each (``stable_interval = cur_iter - last_overflow_iter - 1``, a multiple of the window and
        above 0): a delay of 1. Older versions, without the ``- 1``, have none: ``replace(..., delay=0)``. An overflow
        that finds S at ``min_scale`` raises an Exception there; here the scaler has `ended` and stays as it is.
        `window` is its ``loss_scale_window``, `hysteresis` its ``delayed_shift``; the fused ``FP16_Optimizer`` ignores
        both the hysteresis and the raising: ``hysteresis=1, raises_at_min_scale=False``.
        """
        return cls(
            init_scale,
            window,
            hysteresis=hysteresis,
            consecutive_hysteresis=consecutive_hysteresis,
            min_scale=min_scale,
            delay=1,
            keeps_finite=False,
            raises_at_min_scale=raises_at_min_scale,
            scale_dtype="float64",
            framework="DeepSpeed",
        )

    @classmethod
    def jmp(cls, init_scale: float = 2.0**15, *, window: int = 2000, min_scale: float = 1.0) -> Self:
        """Build the rule of jmp (jmp/_src/loss_scale.py, ``DynamicLossScale.adjust``), with its factor of 2.

        S is an fp32 array; it falls to ``max(min_loss_scale, S / 2)`` and grows to 2 S where that is finite. (The
        default of `init_scale` is that of its documentation, the argument itself has none. Its ``tree_flatten`` drops
        ``min_loss_scale``: under ``jax.jit`` the floor is 1 whatever was asked for.) `window` is its ``period``.
        """
        return cls(init_scale, window, min_scale=min_scale, framework="jmp")

    @classmethod
    def flax(
        cls,
        init_scale: float = 2.0**16,
        *,
        window: int = 2000,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        min_scale: float = _FP32_TINY,
    ) -> Self:
        """Build the rule of flax (flax/training/dynamic_scale.py, ``DynamicScale.value_and_grad``).

        S and the factors are fp32; S stays between fp32's smallest normal 2^-126 and its largest value. ``fin_steps``
        is compared before it is incremented, so that each growth takes ``growth_interval + 1`` clean steps: `window` is
        that interval, and the field of the result is one more.
        """
        check_integer("window", window, 1)
        return cls(
            init_scale,
            window + 1,
            _factor_in_fp32(growth_factor),
            _factor_in_fp32(backoff_factor),
            min_scale=min_scale,
            max_scale=_FP32_MAX,
            framework="flax",
        )

    @classmethod
    def keras(cls, init_scale: float = 2.0**15, *, window: int = 2000) -> Self:
        """Build the rule of Keras 2 (tf_keras/mixed_precision/loss_scale_optimizer.py, ``_DynamicLossScaleState``).

        S is an fp32 variable; it falls to ``max(S / 2, 1)`` and grows to 2 S where that is finite: the rule of `jmp`.
        `window` is its ``dynamic_growth_steps``. Keras 3 has another one, `keras3`.
        """
        return cls(init_scale, window, min_scale=1.0, framework="Keras 2")

    @classmethod
    def keras3(cls, init_scale: float = 2.0**15, *, window: int = 2000) -> Self:
        """Build the rule of Keras 3 (keras/src/optimizers/loss_scale_optimizer.py, ``LossScaleOptimizer``).

        S is an fp32 variable that is halved and doubled without floor and cap: it can become 0, or infinite, and stays
        so. `window` is its ``dynamic_growth_steps``.
        """
        return cls(init_scale, window, keeps_finite=False, framework="Keras 3")

    @classmethod
    def fairseq(
        cls,
        init_scale: float = 2.0**15,
        *,
        window: int = 2000,
        tolerance: float = 0.0,
        threshold: float = 0.0,
        raises_at: float = 1e-4,
    ) -> Self:
        """Build the rule of fairseq (fairseq/optim/dynamic_loss_scaler.py, ``DynamicLossScaler``).

        S is a Python float. An overflow that would leave S at ``min_loss_scale`` or below raises a FloatingPointError;
        here the scaler has `ended` and stays as it is. `window` is its ``scale_window``, `raises_at` its
        ``min_loss_scale``, `threshold` (0 for its None) a floor at which S stays. Its ``tolerance`` is that of the
        class above; growth does not forget the overflows. These are the defaults of the class; fairseq-train hands it
        ``fp16_init_scale``, 2^7, and a window of 2^14 / (GPUs * ``update_freq``).
        """
        return cls(
            init_scale,
            window,
            min_scale=threshold,
            keeps_finite=False,
            raises_at=raises_at,
            tolerance=tolerance,
            scale_dtype="float64",
            framework="fairseq",
        )

    @property
    def at_floor(self) -> bool:
        """S is as small as it can become: the next overflow that should shrink it will not."""
        return self.loss_scale == self.min_scale or self._smaller() <= self.raises_at > 0

    @property
    def ended(self) -> bool:
        """No training goes on from here: the framework has raised, or S can neither be used nor come back."""
        return (self.unanswered > 0 and self._raises) or not self._usable

    @property
    def exhausted(self) -> bool:
        """S could not become smaller when it should have, or cannot be used; `reason` says how."""
        return self.unanswered > 0 or not self._usable

    @property
    def reason(self) -> str:
        """Why the scaler is `exhausted`, in words; empty if it is not."""
        if self.loss_scale == 0:
            return "the loss scale has become 0, and 0 it stays: every gradient is scaled to 0 and unscaled to NaN"
        if self.loss_scale == math.inf:
            return "the loss scale has grown to infinity, and no backoff brings it back: every step overflows"
        if not self._usable:
            return (
                f"the loss scale has fallen to {scale_text(self.loss_scale)}, whose reciprocal is infinite in fp32: "
                "gradients are unscaled to inf and NaN"
            )
        if not self.unanswered:
            return ""
        stuck = f"an overflow found the loss scale at its smallest, {scale_text(self.loss_scale)}"
        if self.ended:
            return f"{stuck}: {self.framework} raises an error here"
        if self.at_floor:
            return f"{stuck}: the step is skipped and nothing changes"
        return "an overflow found the loss scale at its smallest; it has grown since"

    @property
    def _raises(self) -> bool:
        """The framework raises an error at an overflow that should shrink S as it is."""
        return (self.raises_at_min_scale and self.loss_scale == self.min_scale) or (
            self.raises_at > 0 and self._smaller() <= self.raises_at
        )

    def _smaller(self) -> float:
        """Return what S shrinks to."""
        return max(self._stored(self.loss_scale * self.backoff_factor), self.min_scale)

    @property
    def _usable(self) -> bool:
        return 0 < self.loss_scale < math.inf and _to_fp32(1 / self.loss_scale) < math.inf

    def adjust(self, found_inf: bool) -> Self:
        """Return the scaler for the next step.

        Parameters
        ----------
        found_inf : bool
            Whether the gradients of this step, scaled by `loss_scale`, had an inf or NaN; the step is then skipped.

        """
        if (self.raises_at_min_scale or self.raises_at) and self.ended:
            return self
        moved = self.since_moved + 1 if self.tolerance else 0
        if found_inf:
            overflows = min(self.overflows + 1, self.hysteresis)
            shrunk = self.since_shrunk + 1 if self.tolerance else 0
            if overflows < self.hysteresis or (self.tolerance and shrunk / moved < self.tolerance):
                return self._with(clean_steps=0, overflows=overflows, since_shrunk=shrunk, since_moved=moved)
            smaller = self.loss_scale if self._raises else self._smaller()
            stuck = smaller == self.loss_scale
            return self._with(
                loss_scale=smaller,
                clean_steps=0,
                overflows=overflows,
                unanswered=self.unanswered + stuck,
                since_shrunk=0,
                since_moved=0,
            )
        overflows = 0 if self.consecutive_hysteresis else self.overflows
        if self.clean_steps + 1 < self.window + self.delay:
            return self._with(clean_steps=self.clean_steps + 1, overflows=overflows, since_moved=moved)
        larger = min(self._stored(self.loss_scale * self.growth_factor), self.max_scale)
        if self.keeps_finite and larger == math.inf:
            larger = self.loss_scale
        return self._with(loss_scale=larger, clean_steps=self.delay, overflows=0, since_moved=0)

    def _with(self, **changes: Any) -> Self:
        """Return a copy in another state; what is right need not be checked again, a million times."""
        new = object.__new__(type(self))
        vars(new).update(vars(self), **changes)
        return new

    def _stored(self, value: float) -> float:
        return _to_fp32(value) if self.scale_dtype == "float32" else float(value)


def _to_fp32(value: float) -> float:
    """Round to fp32, ties_to_even; without numpy's warnings, and several times faster on one number."""
    try:
        stored = float(_FP32.unpack(_FP32.pack(value))[0])
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    if value and abs(stored) < _FP32_TINY:  # all others are right anyway; some are made when the package is imported
        require_gradual_underflow()
    return stored


def _factor_in_fp32(factor: float) -> float:
    """Round a factor to fp32; anything else is left for the checks of the class."""
    return _to_fp32(factor) if _is_number(factor) else factor


def _is_number(value: object) -> bool:
    return isinstance(value, float | np.floating) or (type(value) is int and abs(value) < 2**1023)


def _check_number(name: str, value: Any, *, above: float, below: float = math.inf) -> None:
    if not _is_number(value) or not above < value < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name} must be a number above {above:g} and {limit}, got {value!r}")


LossScale: TypeAlias = NoLossScale | StaticLossScale | DynamicLossScale
"""Any scaler."""

SCALERS: dict[str, LossScale] = {
    "none": NoLossScale(),
    "torch": DynamicLossScale.torch(),
    "apex": DynamicLossScale.apex(),
    "megatron": DynamicLossScale.megatron(),
    "deepspeed": DynamicLossScale.deepspeed(),
    "jmp": DynamicLossScale.jmp(),
    "flax": DynamicLossScale.flax(),
    "keras": DynamicLossScale.keras(),
    "keras3": DynamicLossScale.keras3(),
    "fairseq": DynamicLossScale.fairseq(),
}
"""The scalers by name, each as its framework starts it."""


def get_scaler(spec: str) -> LossScale:
    """Return the scaler of a name in `SCALERS`, in letters of any case, or for a number the static one.

    Raises
    ------
    ValueError
        It is neither.

    """
    if spec.lower() in SCALERS:
        return SCALERS[spec.lower()]
    try:
        return StaticLossScale(float(spec))
    except ValueError:
        raise ValueError(
            f"a scaler is one of {', '.join(SCALERS)}, or a positive number for a static one, got {spec!r}"
        ) from None


def power_text(scale: float) -> str:
    """Return a power of two as text: 2^-3."""
    return "1" if scale == 1 else f"2^{log2_of_power_of_two(scale)}"


def scale_text(scale: float) -> str:
    """Write a power of two as such, any other scale as it is."""
    return power_text(scale) if math.frexp(scale)[0] == 0.5 else f"{scale:.6g}"
