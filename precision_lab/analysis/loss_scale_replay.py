"""What a loss scaler would have done to a recorded run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from precision_lab.analysis.loss_scalers import LossScale, scale_text
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import as_array, converted
from precision_lab.numerics.rounding import as_carrier
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.plain import number
from precision_lab.support.reading import InputError, parse_json, read_small
from precision_lab.support.shown import Shown
from precision_lab.support.text import shown
from precision_lab.tensors.npy import npy_array


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
class ScaleTrace(Shown):
    """What a scaler would have done to a run; made by `replay_loss_scale`.

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
        text = f"{self.scaler.framework}: {n:,} of {self.steps:,} steps skipped"
        if n:
            text += f", at most {len(longest):,} in a row (from step {longest.start:,})"
        text += (
            f"; S = {scale_text(self.scaler.loss_scale)} at the start, {scale_text(self.final.loss_scale)} at the end."
        )
        if self.exhausted:
            text += f" Exhausted: {self.reason}."
        if self.final.ended:
            text += f" No training goes on after step {self.steps - 1:,} of {len(self.max_abs):,}."
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; an infinity or NaN is text."""
        return {
            "format": self.format.name,
            "scaler": self.scaler.framework,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "nonfinite_steps": self.nonfinite_steps,
            "longest_skip": [self.longest_skip.start, self.longest_skip.stop],
            "final_loss_scale": number(self.final.loss_scale),
            "floor_from": self.floor_from,
            "unanswered": self.final.unanswered,
            "exhausted": self.exhausted,
            "ended": self.final.ended,
            "reason": self.reason,
            "max_abs": [number(m) for m in self.max_abs],
            "loss_scales": [number(s) for s in self.loss_scales],
            "skipped": list(self.skipped),
        }


def replay_loss_scale(scaler: LossScale, max_abs_per_step: ArrayLike, fmt: FormatLike) -> ScaleTrace:
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

    Examples
    --------
    >>> from precision_lab.analysis.loss_scalers import DynamicLossScale
    >>> replay_loss_scale(DynamicLossScale.torch(), [0.5, 2.0, 0.5], "fp16").loss_scales
    (65536.0, 65536.0, 32768.0)

    """
    if not isinstance(scaler, LossScale):
        raise ValueError(
            f"scaler must be a NoLossScale, StaticLossScale or DynamicLossScale, got {type(scaler).__name__}"
        )
    require_gradual_underflow()
    fmt, magnitudes = get_format(fmt), _magnitudes(max_abs_per_step)
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
        skipped.append(_overflows(now.loss_scale, magnitude, fmt))
        now = now.adjust(skipped[-1])
    return ScaleTrace(fmt, scaler, now, magnitudes, tuple(scales), tuple(skipped), floor_from)


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


_OVERFLOWS = (None, "nan", "inf")  # as JSON may say it


def read_trace(path: str | Path) -> tuple[float, ...]:
    """Read the largest gradient of each step from a file, for `replay_loss_scale`.

    Parameters
    ----------
    path : path-like
        JSON: a list of numbers, or an object with such a list as ``max_abs``; NaN, Infinity, null and the texts "nan"
        and "inf" stand for an overflow. Or ``.npy``: one dimension, floats or integers.

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
            if not isinstance(data, list) or not all(
                v in (None, "nan", "inf") or type(v) in (int, float) for v in data
            ):
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
