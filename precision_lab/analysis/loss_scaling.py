"""Loss scaling: the factor S that lifts small gradients into a narrow format, and the rules by which S is moved.

The smallest positive number of fp16 is 2^-24, and many gradients are smaller. Multiply the loss by S and the chain rule
multiplies every gradient by S; divide by S in fp32 before the update and nothing has changed, except that the backward
pass ran higher up in the format (Micikevicius et al. 2018, section 3.2). Too small an S leaves gradients at zero, too
large an S makes the largest of them infinite, and the window between the two moves while a model learns.

So frameworks search for S as they go. All do the same two things: after an overflow (an inf or NaN among the gradients)
the step is skipped and S shrinks; after a while without one S grows. They differ in the details, and the details decide
what a gradient spike costs: how many overflows it takes until S moves (hysteresis), how many clean steps until it grows
(window), and what happens at the end of the road. There jmp's S stands still at 1 and every step is skipped, DeepSpeed
raises, and torch's S halves on towards 0. It does harm before it gets there: from 2^-128 on 1/S is infinite in fp32,
the gradients are unscaled to inf and NaN *after* they were searched for them, and the step is taken. Here each of these
is a recorded outcome: a scaler that is `exhausted` says so and gives the `reason`.

Scalers are values: `adjust` leaves a scaler as it is and returns the next one. `plan_loss_scale` says what every S
would do to a histogram of gradients and which to choose; `replay` what a scaler would have done to a recorded run.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike

from precision_lab.analysis.histogram import Conversion, ExponentHistogram, log2_of_power_of_two
from precision_lab.analysis.plain import finite_or_none, whole
from precision_lab.analysis.tensor_files import npy_array
from precision_lab.numerics.environment import require_gradual_underflow
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.numerics.inputs import as_array, converted
from precision_lab.numerics.rounding import as_carrier
from precision_lab.support.reading import InputError, parse_json, read_small
from precision_lab.support.text import shown

ScaleDtype: TypeAlias = Literal["float32", "float64"]

_FP32 = struct.Struct("f")
_FP32_MAX = float(np.finfo(np.float32).max)
_FP32_TINY = float(np.finfo(np.float32).tiny)


# --- scalers ----------------------------------------------------------------------------------------------------------


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

    One rule whose parameters hold what the frameworks do; `torch`, `apex`, `megatron`, `deepspeed`, `jmp` and `flax`
    fill them in. After each step::

        overflow:    clean_steps = 0;  overflows += 1
                     if overflows >= hysteresis:  S = max(S * backoff_factor, min_scale)
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
    scale_dtype : {"float32", "float64"}
        How S is stored.
    framework : str
        Whose rule it is, for messages.
    loss_scale : float
        State: S for the next step. Default: `init_scale`.
    clean_steps, overflows, unanswered : int
        State: steps without overflow that count; overflows since the hysteresis was refilled, at most `hysteresis`;
        overflows so far that should have made S smaller and could not.

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
    scale_dtype: ScaleDtype = "float32"
    framework: str = "custom"
    loss_scale: float = field(default=cast(float, None), kw_only=True)
    clean_steps: int = field(default=0, kw_only=True)
    overflows: int = field(default=0, kw_only=True)
    unanswered: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.scale_dtype not in ("float32", "float64"):
            raise ValueError(f"scale_dtype must be 'float32' or 'float64', got {self.scale_dtype!r}")
        _check_number("init_scale", self.init_scale, above=0)
        _check_number("growth_factor", self.growth_factor, above=1)
        _check_number("backoff_factor", self.backoff_factor, above=0, below=1)
        _check_integer("window", self.window, 1)
        _check_integer("hysteresis", self.hysteresis, 1)
        _check_integer("delay", self.delay, 0)
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
        _check_integer("clean_steps", self.clean_steps, 0, self.window + self.delay - 1)
        _check_integer("overflows", self.overflows, 0, self.hysteresis)
        _check_integer("unanswered", self.unanswered, 0)

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
        _check_integer("window", window, 1)
        return cls(
            init_scale,
            window + 1,
            _factor_in_fp32(growth_factor),
            _factor_in_fp32(backoff_factor),
            min_scale=min_scale,
            max_scale=_FP32_MAX,
            framework="flax",
        )

    @property
    def at_floor(self) -> bool:
        """S is as small as it can become: the next overflow that should shrink it will not."""
        return self.loss_scale == self.min_scale

    @property
    def ended(self) -> bool:
        """No training goes on from here: the framework has raised, or S can neither be used nor come back."""
        return (self.raises_at_min_scale and self.unanswered > 0 and self.at_floor) or not self._usable

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
                f"the loss scale has fallen to {_scale(self.loss_scale)}, whose reciprocal is infinite in fp32: "
                "gradients are unscaled to inf and NaN"
            )
        if not self.unanswered:
            return ""
        stuck = f"an overflow found the loss scale at its smallest, {_scale(self.loss_scale)}"
        if self.ended:
            return f"{stuck}: {self.framework} raises an error here"
        if self.at_floor:
            return f"{stuck}: the step is skipped and nothing changes"
        return "an overflow found the loss scale at its smallest; it has grown since"

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
        if self.raises_at_min_scale and self.ended:
            return self
        if found_inf:
            overflows = min(self.overflows + 1, self.hysteresis)
            if overflows < self.hysteresis:
                return self._with(clean_steps=0, overflows=overflows)
            smaller = max(self._stored(self.loss_scale * self.backoff_factor), self.min_scale)
            stuck = smaller == self.loss_scale
            return self._with(
                loss_scale=smaller, clean_steps=0, overflows=overflows, unanswered=self.unanswered + stuck
            )
        overflows = 0 if self.consecutive_hysteresis else self.overflows
        if self.clean_steps + 1 < self.window + self.delay:
            return self._with(clean_steps=self.clean_steps + 1, overflows=overflows)
        larger = min(self._stored(self.loss_scale * self.growth_factor), self.max_scale)
        if self.keeps_finite and larger == math.inf:
            larger = self.loss_scale
        return self._with(loss_scale=larger, clean_steps=self.delay, overflows=0)

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


def _check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    if type(value) is not int or value < least or (most is not None and value > most):
        accepted = f"of at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} must be an integer {accepted}, got {value!r}")


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
}
"""The scalers by name, each as its framework starts it."""


def get_scaler(spec: str) -> LossScale:
    """Return the scaler of a name in `SCALERS`, or for a number the static one.

    Raises
    ------
    ValueError
        It is neither.

    """
    if spec in SCALERS:
        return SCALERS[spec]
    try:
        return StaticLossScale(float(spec))
    except ValueError:
        raise ValueError(
            f"a scaler is one of {', '.join(SCALERS)}, or a positive number for a static one, got {spec!r}"
        ) from None


# --- planning ---------------------------------------------------------------------------------------------------------

_LEAST, _MOST = -126, 127  # exponents of loss scales: those of fp32's normal numbers


@dataclass(frozen=True)
class LossScalePlan:
    """What each power of two would do to some gradients as a loss scale for a format; made by `plan_loss_scale`.

    The larger S, the fewer elements are flushed and the more overflow. So the scales at which nothing overflows reach
    up to `largest_safe`, and those at which nothing is flushed begin at `smallest_sufficient`. If they meet, every
    scale between the two saves everything. All of this holds for scales of 2^-126 to 2^127.

    Attributes
    ----------
    histogram : ExponentHistogram
        The magnitudes of the gradients.
    format : FloatFormat
        The format in which they are stored.
    margin : int
        Headroom of `recommended` in binades: a gradient may grow by 2^margin before it overflows.

    """

    histogram: ExponentHistogram
    format: FloatFormat
    margin: int

    @property
    def largest_safe(self) -> float | None:
        """The largest scale at which nothing overflows; None where there is none."""
        return self._safe(0)

    @property
    def smallest_sufficient(self) -> float | None:
        """The smallest scale at which nothing is flushed; None where there is none."""
        require_gradual_underflow()  # `frexp` may find nothing in a subnormal extreme
        least = self.histogram.min_nonzero
        if least is None:
            return 2.0**_LEAST
        (mantissa, exponent), (edge, at) = math.frexp(least), math.frexp(self.format.flush_threshold)
        k = at - exponent + (mantissa <= edge)  # the tie is flushed
        return 2.0 ** max(k, _LEAST) if k <= _MOST else None

    @property
    def window(self) -> tuple[float, float] | None:
        """Smallest and largest scale at which nothing is flushed and nothing overflows; None where there is none."""
        low, high = self.smallest_sufficient, self.largest_safe
        return None if low is None or high is None or low > high else (low, high)

    @cached_property
    def conversions(self) -> tuple[Conversion, ...]:
        """The counts at each scale from a little below to a little above those that matter, S = 1 among them."""
        return tuple(map(self._conversion, self._counts))

    @cached_property
    def _counts(self) -> list[_Counts]:
        """What `conversions` are made of; of many tensors, they themselves would take too long."""
        return self.histogram.at_each(self.format, self._scales())

    def _conversion(self, counts: _Counts) -> Conversion:
        k, *fates = counts
        h = self.histogram
        return Conversion(self.format, 2.0**k, h.count, h.zero, h.nonfinite, *fates)

    def _scales(self) -> range:
        if not self.histogram.nonzero:
            return range(1)
        highest, sufficient = self.largest_safe, self.smallest_sufficient
        marks = [1.0, *(s for s in (highest, self._safe(self.margin), sufficient) if s is not None)]
        if sufficient is not None and sufficient < 1:
            marks.remove(sufficient)  # smaller scales would do, but nobody asks
        low = _LEAST if highest is None else max(log2_of_power_of_two(min(marks)) - 2, _LEAST)
        high = _MOST if sufficient is None else min(log2_of_power_of_two(max(marks)) + 2, _MOST)
        return range(low, high + 1)

    @cached_property
    def best(self) -> Conversion:
        """The scale at which the fewest elements are lost, flushed or overflowed; of several, that closest to 1.

        All elements count the same, as in a step with saturation; a step with an overflow is usually skipped.
        """
        return self._conversion(min(self._counts, key=lambda c: (c[1] + c[3], abs(c[0]))))

    @cached_property
    def recommended(self) -> Conversion | None:
        """The scale to choose: nothing overflows, with `margin` binades to spare, and the fewest elements are flushed.

        Of several, that with the fewest subnormals; of these the largest, where subnormals have most bits, or without
        any that closest to 1. An overflow costs a whole step and a flushed element only itself, so that no overflow is
        ever traded for it. None where no scale has the margin.
        """
        highest = self._safe(self.margin)
        most = -math.inf if highest is None else log2_of_power_of_two(highest)
        safe = [c for c in self._counts if c[0] <= most]
        # k, flushed, subnormal, overflowed
        least = min(safe, key=lambda c: (c[1], c[2], -c[0] if c[2] else abs(c[0])), default=None)
        return None if least is None else self._conversion(least)

    @property
    def summary(self) -> str:
        """What to do, in words."""
        return " ".join(self._sentences())

    def at(self, loss_scale: float) -> Conversion:
        """Return the counts at a scale, a power of two."""
        return self.histogram.conversion(self.format, loss_scale)

    def _safe(self, margin: int) -> float | None:
        """Return the largest scale at which nothing overflows even if it becomes 2^margin times as large."""
        require_gradual_underflow()
        largest = self.histogram.max_abs
        if not largest:
            return 2.0**_MOST
        (mantissa, exponent), (edge, at) = math.frexp(largest), math.frexp(self.format.overflow_threshold)
        beyond = mantissa >= edge if self.format.overflow_inclusive else mantissa > edge
        k = at - exponent - beyond - margin
        return 2.0 ** min(k, _MOST) if k >= _LEAST else None

    def _sentences(self) -> Iterable[str]:
        one, best, choice, fmt = self.at(1), self.best, self.recommended, self.format
        if not one.nonzero:
            yield "There is nothing to scale: no finite element is nonzero."
        elif not _lost(one):
            yield f"No loss scaling is needed: at S = 1 {fmt} flushes nothing and nothing overflows."
        elif self.window is not None:
            low, high = map(_power, self.window)
            yield f"Without loss scaling {fmt} loses {_of(_lost(one), one)}."
            yield (
                f"Every loss scale from {low} to {high} saves them all."
                if low != high
                else f"Only {low} saves them all."
            )
        else:
            yield (
                f"No loss scale saves everything in {fmt}: at best, at S = {_power(best.loss_scale)}, it loses "
                f"{_of(_lost(best), best)}, {best.flushed:,} flushed and {best.overflowed:,} overflowed; at S = 1 "
                f"{_lost(one):,}."
            )
        margin = f"{self.margin} {'binade' if self.margin == 1 else 'binades'}"
        if choice is None:
            yield f"No loss scale from 2^{_LEAST} on leaves a margin of {margin} below the overflow."
        elif one.nonzero and (_lost(one) or choice.loss_scale != 1):
            yield (
                f"Recommended: S = {_power(choice.loss_scale)}, with a margin of {margin} below the overflow; of "
                f"{choice.nonzero:,} nonzero elements it flushes {choice.flushed:,} and makes {choice.subnormal:,} "
                f"subnormal (S = 1: {one.subnormal:,})."
            )
        if one.nonfinite:
            yield f"inf or NaN already, at any loss scale: {one.nonfinite:,}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; ``scales`` holds the counts at each scale."""
        best, choice = self.best, self.recommended
        return {
            "format": self.format.name,
            "margin": self.margin,
            "count": self.histogram.count,
            "zero": self.histogram.zero,
            "nonfinite": self.histogram.nonfinite,
            "min_nonzero": self.histogram.min_nonzero,
            "max_abs": self.histogram.max_abs,
            "smallest_sufficient": self.smallest_sufficient,
            "largest_safe": self.largest_safe,
            "best": best.loss_scale,
            "recommended": None if choice is None else choice.loss_scale,
            "summary": self.summary,
            "scales": [
                {"loss_scale": 2.0**k, "flushed": flushed, "subnormal": subnormal, "overflowed": overflowed}
                for k, flushed, subnormal, overflowed in self._counts
            ],
        }


_Counts: TypeAlias = tuple[int, int, int, int]  # k of the loss scale 2^k, flushed, subnormal, overflowed


def _lost(conversion: Conversion) -> int:
    return conversion.flushed + conversion.overflowed


def _power(scale: float) -> str:
    return "1" if scale == 1 else f"2^{log2_of_power_of_two(scale)}"


def _of(part: int, conversion: Conversion) -> str:
    whole = conversion.nonzero
    return f"{part:,} of {whole:,} nonzero elements ({100 * part / whole:.3g} %)"


def plan_loss_scale(histogram: ExponentHistogram, fmt: object, *, margin: int = 1) -> LossScalePlan:
    """Ask what every power of two would do as a loss scale, and which to choose.

    Parameters
    ----------
    histogram : ExponentHistogram
        The magnitudes of the gradients, not scaled.
    fmt : format spec
        The format in which the scaled gradients are stored; see `get_format`.
    margin : int
        Headroom in binades, at least 0: the recommended scale does not overflow before the largest gradient has grown
        by 2^margin.

    Raises
    ------
    ValueError
        Unknown format; `margin` is negative or no integer; `histogram` is none.
    FloatingPointError
        As `precision_lab.round_to`.

    """
    if not isinstance(histogram, ExponentHistogram):
        raise ValueError(f"histogram must be an ExponentHistogram, made by ExponentHistogram.of, got {type(histogram)}")
    _check_integer("margin", margin, 0)
    require_gradual_underflow()
    return LossScalePlan(histogram, get_format(fmt), margin)


@dataclass(frozen=True)
class TensorPlans:
    """One loss scale for several tensors, and what it does to each; made by `plan_tensors`.

    Attributes
    ----------
    total : LossScalePlan
        The plan for all elements together. There is one loss, and so one loss scale.
    loss_scale : float
        The scale of `tensors`: the recommended one of the total, its best where no scale has the margin.
    tensors : tuple of (str, LossScalePlan)
        Names and plans of the tensors, the one that loses the largest share of its elements at `loss_scale` first; of
        several, the one that loses more without loss scaling, then the one that has more subnormals.

    """

    total: LossScalePlan
    loss_scale: float
    tensors: tuple[tuple[str, LossScalePlan], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: ``total``, ``loss_scale``, ``tensors``."""
        return whole(self.parts())

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with an iterator in place of the list: a file is written an entry at a time."""
        return {
            "total": self.total.to_dict(),
            "loss_scale": self.loss_scale,
            # of copies: a plan keeps its conversions
            "tensors": ({"name": name} | replace(plan).to_dict() for name, plan in self.tensors),
        }


def plan_tensors(histograms: Iterable[tuple[str, ExponentHistogram]], fmt: object, *, margin: int = 1) -> TensorPlans:
    """Plan one loss scale for named tensors; parameters and errors as `plan_loss_scale`."""
    plans = [(name, plan_loss_scale(histogram, fmt, margin=margin)) for name, histogram in histograms]
    total = plan_loss_scale(ExponentHistogram.total(p.histogram for _, p in plans), fmt, margin=margin)
    scale = (total.recommended or total.best).loss_scale

    def badness(named: tuple[str, LossScalePlan]) -> tuple[float, ...]:
        at, one = named[1].at(scale), named[1].at(1)
        return *(c.flushed_of_nonzero + c.overflowed_of_nonzero for c in (at, one)), at.subnormal_of_nonzero

    return TensorPlans(total, scale, tuple(sorted(plans, key=badness, reverse=True)))


# --- replaying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleChange:
    """The scale moved.

    Attributes
    ----------
    step : int
        The step after which it moved, from 0.
    before, after : float
        The scale of this step and of the next.

    """

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class ScaleTrace:
    """What a scaler would have done to a run; made by `replay`.

    Attributes
    ----------
    format : FloatFormat
        The format of the scaled gradients.
    scaler, final : NoLossScale, StaticLossScale or DynamicLossScale
        The scaler at the start and after the last step that was replayed.
    max_abs : tuple of float
        The largest unscaled magnitude of each step that was given.
    loss_scales : tuple of float
        The scale of each step, up to the one after which the scaler had `ended`: no longer than `max_abs`.
    skipped : tuple of bool
        Whether a step overflowed and was skipped.
    floor_from : int or None
        The first step at which the scale was at its floor.

    """

    format: FloatFormat
    scaler: LossScale
    final: LossScale
    max_abs: tuple[float, ...]
    loss_scales: tuple[float, ...]
    skipped: tuple[bool, ...]
    floor_from: int | None

    @property
    def steps(self) -> int:
        """Steps that were replayed."""
        return len(self.loss_scales)

    @property
    def skipped_steps(self) -> int:
        """How many of them were skipped."""
        return sum(self.skipped)

    @property
    def nonfinite_steps(self) -> int:
        """How many of them had an inf or NaN among the unscaled gradients: skipped at any scale."""
        return sum(not math.isfinite(m) for m in self.max_abs[: self.steps])

    @property
    def longest_skip(self) -> range:
        """The longest run of skipped steps, the first of several; empty if none was."""
        longest, start = range(0), 0
        for step, skipped in enumerate(self.skipped):
            if not skipped:
                start = step + 1
            elif step + 1 - start > len(longest):
                longest = range(start, step + 1)
        return longest

    @property
    def changes(self) -> tuple[ScaleChange, ...]:
        """Where the scale moved."""
        after = (*self.loss_scales[1:], self.final.loss_scale)
        pairs = enumerate(zip(self.loss_scales, after, strict=True))
        return tuple(ScaleChange(step, before, then) for step, (before, then) in pairs if before != then)

    @property
    def exhausted(self) -> bool:
        """The scale could not become smaller when it should have, or was of no use any more; `reason` says how."""
        return self.final.exhausted

    @property
    def reason(self) -> str:
        """Why the scaler is exhausted, in words; empty if it is not."""
        return self.final.reason

    @property
    def summary(self) -> str:
        """What happened, in words."""
        n, longest = self.skipped_steps, self.longest_skip
        told = f"{self.scaler.framework}: {n:,} of {self.steps:,} steps skipped"
        if n:
            told += f", at most {len(longest):,} in a row (from step {longest.start:,})"
        told += f"; S = {_scale(self.scaler.loss_scale)} at the start, {_scale(self.final.loss_scale)} at the end."
        if self.exhausted:
            told += f" Exhausted: {self.reason}."
        if self.final.ended:
            told += f" No training goes on after step {self.steps - 1:,} of {len(self.max_abs):,}."
        return told

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; an infinity or NaN becomes null."""
        return {
            "format": self.format.name,
            "scaler": self.scaler.framework,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "nonfinite_steps": self.nonfinite_steps,
            "longest_skip": [self.longest_skip.start, self.longest_skip.stop],
            "final_loss_scale": finite_or_none(self.final.loss_scale),
            "floor_from": self.floor_from,
            "unanswered": self.final.unanswered,
            "exhausted": self.exhausted,
            "ended": self.final.ended,
            "reason": self.reason,
            "max_abs": [finite_or_none(m) for m in self.max_abs],
            "loss_scales": [finite_or_none(s) for s in self.loss_scales],
            "skipped": list(self.skipped),
        }


def _scale(scale: float) -> str:
    """Write a power of two as such, any other scale as it is."""
    return _power(scale) if math.frexp(scale)[0] == 0.5 else f"{scale:.6g}"


def replay(scaler: LossScale, max_abs_per_step: ArrayLike, fmt: object) -> ScaleTrace:
    """Say what a scaler would have done to a run whose largest gradients were recorded.

    A step overflows, and is skipped, if S times its largest magnitude does not stay finite in the format, ties_to_even:
    what `ExponentHistogram.overflowed` counts (where a format clamps, what is clamped). The comparison is that of the
    exact product, also if S is no power of two. An inf or NaN overflows at every scale.

    What the replay cannot know: a step that is skipped leaves the weights as they are, and from there on a real run
    would have had other gradients.

    Parameters
    ----------
    scaler : NoLossScale, StaticLossScale or DynamicLossScale
        The scaler at the start of the run.
    max_abs_per_step : array_like, (steps,)
        The largest magnitude among the *unscaled* gradients of each step; not negative. inf and NaN are accepted.
    fmt : format spec
        The format of the scaled gradients; see `get_format`.

    Raises
    ------
    ValueError
        The trace is empty, has another shape, or holds what is no magnitude, or an integer that is no float64; a masked
        array; unknown format; no scaler.
    FloatingPointError
        As `precision_lab.round_to`.

    """
    if not isinstance(scaler, LossScale):
        raise ValueError(
            f"scaler must be a NoLossScale, StaticLossScale or DynamicLossScale, got {type(scaler).__name__}"
        )
    require_gradual_underflow()
    asked, magnitudes = get_format(fmt), _magnitudes(max_abs_per_step)
    scales: list[float] = []
    skipped: list[bool] = []
    floor_from = None
    now = scaler
    seen = None
    for step, magnitude in enumerate(magnitudes):
        if (now.loss_scale, now.unanswered) != seen:  # nothing else ends it
            seen = now.loss_scale, now.unanswered
            if now.ended:
                break
            if floor_from is None and now.at_floor:
                floor_from = step
        scales.append(now.loss_scale)
        skipped.append(_overflows(now.loss_scale, magnitude, asked))
        now = now.adjust(skipped[-1])
    return ScaleTrace(asked, scaler, now, magnitudes, tuple(scales), tuple(skipped), floor_from)


def _magnitudes(max_abs_per_step: ArrayLike) -> tuple[float, ...]:
    accepted = "one number for each step, not negative; inf and NaN stand for an overflow"
    given: Any = max_abs_per_step
    if isinstance(given, tuple) and given and all(type(m) is float and not m < 0 for m in given):
        return given  # as `read_trace` returns it: several scalers share it
    try:
        array = as_array(max_abs_per_step)
        numbers = array.dtype.kind in "iuf" and array.dtype != np.longdouble
        magnitudes = converted(as_carrier(array), np.float64) if numbers else None
    except (TypeError, ValueError) as error:
        raise ValueError(f"a trace has {accepted}; got {type(max_abs_per_step).__name__}: {error}") from error
    if magnitudes is None or magnitudes.ndim != 1 or not magnitudes.size:
        raise ValueError(f"a trace has {accepted}; got shape {array.shape} of {array.dtype}")
    if (negative := np.flatnonzero(magnitudes < 0)).size:
        raise ValueError(f"a trace has {accepted}; got {magnitudes[negative[0]]:g} at step {negative[0]}")
    return tuple(magnitudes.tolist())


def _overflows(scale: float, magnitude: float, fmt: FloatFormat) -> bool:
    if not (math.isfinite(magnitude) and math.isfinite(scale)):
        return True
    product, threshold = scale * magnitude, fmt.overflow_threshold
    if product != threshold:  # rounding is monotone: the exact product is on the same side
        return product > threshold
    exact = Fraction(scale) * Fraction(magnitude)
    return exact >= threshold if fmt.overflow_inclusive else exact > threshold


def read_trace(path: str | Path) -> tuple[float, ...]:
    """Read the largest gradient of each step from a file, for `replay`.

    Parameters
    ----------
    path : path-like
        JSON: a list of numbers, or an object with such a list as ``max_abs``; the tokens NaN and Infinity and null
        stand for an overflow. Or ``.npy``: one dimension, floats or integers.

    Raises
    ------
    ValueError
        The file is neither.
    OSError
        It cannot be read.

    """
    place = Path(path)
    accepted = 'JSON, a list of numbers or {"max_abs": [...]}, or a one-dimensional .npy'
    try:
        content = read_small(place)
        if place.suffix.lower() == ".npy":
            data: Any = npy_array(content)
        else:
            data = parse_json(content, constants=True)
            if isinstance(data, dict):
                data = data["max_abs"]
            if not isinstance(data, list) or not all(v is None or type(v) in (int, float) for v in data):
                raise ValueError("no list of numbers")
            data = [math.nan if v is None else float(v) for v in data]
    except InputError:
        raise
    except (ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{shown(place, 4096)}: no trace; a trace is {accepted}") from error
    try:
        return _magnitudes(data)
    except ValueError as error:
        raise ValueError(f"{shown(place, 4096)}: {error}") from error
