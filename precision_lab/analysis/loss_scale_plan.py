"""What every power of two would do to gradients as a loss scale, and which to choose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

from precision_lab.analysis.histogram import Conversion, ExponentHistogram, log2_of_power_of_two
from precision_lab.analysis.loss_scalers import power_text
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.support.arguments import check_integer
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.plain import PlainReport, header
from precision_lab.support.shown import Shown
from precision_lab.tensors.info import TensorInfo

_LEAST, _MOST = -126, 127  # exponents of loss scales: those of fp32's normal numbers


class Covers(StrEnum):
    """What the numbers of a plan are, and what may be missing among them: there is one loss scale for all."""

    GIVEN = "the numbers given; other gradients of the same backward pass may be smaller or larger"
    FILES = (
        "the tensors in these files, taken for gradients whatever they are; "
        "those of activations, if they are not among them, are often smaller"
    )
    PARAMETERS = "the parameters' gradients; those of activations, not seen here, are often smaller"
    BOTH = (
        "the tensors in these files and the parameters' gradients of recorded runs; "
        "those of activations, if they are not among them, are often smaller"
    )

    @property
    def sentence(self) -> str:
        """What is covered and what is not, as a sentence."""
        return f"This is of {self}."


@dataclass(frozen=True)
class LossScalePlan(Shown):
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
    covers : Covers
        What the numbers are.

    """

    histogram: ExponentHistogram
    format: FloatFormat
    margin: int
    covers: Covers = Covers.GIVEN

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
            marks.remove(sufficient)  # smaller scales would do, but are not reported
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
        ever traded for it. But 1 where nothing overflows without loss scaling, and the margin would flush more
        elements, or make more of them subnormal. None where something does and no scale has the margin.
        """
        one, choice = self._unscaled, self._roomy
        return one if not one.overflowed and (choice is None or _cost(one) < _cost(choice)) else choice

    @cached_property
    def _unscaled(self) -> Conversion:
        return self.at(1)

    @cached_property
    def _roomy(self) -> Conversion | None:
        return self._choice(self.margin)

    def _choice(self, margin: int) -> Conversion | None:
        """Return the best scale that has a margin, None where there is none."""
        highest = self._safe(margin)
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
        """Return the counts at a scale, a power of two.

        Raises
        ------
        ValueError
            It is none: at another scale `count_conversion` counts, which needs the numbers themselves.

        """
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
        one, best, choice, fmt = self._unscaled, self.best, self.recommended, self.format
        if not one.nonzero:
            yield "There is nothing to scale: no finite element is nonzero."
        elif not _lost(one):
            yield f"No loss scaling is needed: at S = 1 {fmt} flushes nothing and nothing overflows."
        elif self.window is not None:
            low, high = map(power_text, self.window)
            yield f"Without loss scaling {fmt} loses {_of(_lost(one), one)}."
            yield (
                f"Every loss scale from {low} to {high} saves them all."
                if low != high
                else f"Only {low} saves them all."
            )
        else:
            yield (
                f"No loss scale saves everything in {fmt}: at best, at S = {power_text(best.loss_scale)}, it loses "
                f"{_of(_lost(best), best)}, {best.flushed:,} flushed and {best.overflowed:,} overflowed; at S = 1 "
                f"{_lost(one):,}."
            )
        if one.nonzero and (_lost(one) or choice is not self._roomy or (choice and choice.loss_scale != 1)):
            yield from self._advice(one, best, choice)
        if one.nonfinite:
            yield f"inf or NaN already, at any loss scale: {one.nonfinite:,}."
        yield self.covers.sentence

    def _advice(self, one: Conversion, best: Conversion, choice: Conversion | None) -> Iterable[str]:
        """Say which scale to choose, and why where another one loses less; or that the margin costs too much."""
        margin = f"a margin of {self.margin} {'binade' if self.margin == 1 else 'binades'} below the overflow"
        roomy = self._roomy
        if choice is not None and (_lost(one) or choice.loss_scale != 1):
            having = "with" if choice is roomy else "without"
            yield (
                f"Recommended: S = {power_text(choice.loss_scale)}, {having} {margin}; "
                f"of {choice.nonzero:,} nonzero elements it flushes {choice.flushed:,} and makes {choice.subnormal:,} "
                f"subnormal (S = 1: {one.subnormal:,})."
            )
            rivals = (one, best) if best.loss_scale != 1 else (one,)
            if fewer := [c for c in rivals if c.overflowed and _lost(c) < choice.flushed]:
                scales = " and ".join(f"S = {power_text(c.loss_scale)}" for c in fewer)
                yield f"Fewer are lost at {scales}, but some of them overflow, and an overflow costs the whole step."
        if roomy is None:
            yield f"No loss scale from 2^{_LEAST} on leaves {margin}."
        elif choice is not roomy:
            yield f"At S = 1 there is no {margin[2:]}, and it would cost: {_costs(roomy)}, {_costs(one)}."
        if choice is not None and choice.flushed:
            free = self._choice(0)
            if free is not None and free.flushed < choice.flushed:
                yield f"Without a margin {_costs(free)}."

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
            "covers": str(self.covers),
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


def _cost(conversion: Conversion) -> tuple[int, int]:
    return conversion.flushed, conversion.subnormal


def _costs(conversion: Conversion) -> str:
    return (
        f"S = {power_text(conversion.loss_scale)} flushes {conversion.flushed:,} and makes {conversion.subnormal:,} "
        "subnormal"
    )


def _of(part: int, conversion: Conversion) -> str:
    whole = conversion.nonzero
    return f"{part:,} of {whole:,} nonzero elements ({100 * part / whole:.3g} %)"


def plan_loss_scale(
    histogram: ExponentHistogram, fmt: FormatLike, *, margin: int = 1, covers: Covers = Covers.GIVEN
) -> LossScalePlan:
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
    covers : Covers
        What the gradients are of, for the summary, which says so.

    Raises
    ------
    ValueError
        Unknown format; `margin` is negative or no integer; `histogram` or `covers` is none.
    FloatingPointError
        As `precision_lab.round_to`.

    Examples
    --------
    >>> plan = plan_loss_scale(ExponentHistogram.of([1e-8, 1e-3]), "fp16")
    >>> plan.recommended.loss_scale
    8192.0

    """
    if not isinstance(histogram, ExponentHistogram):
        raise ValueError(f"histogram must be an ExponentHistogram, made by ExponentHistogram.of, got {type(histogram)}")
    check_integer("margin", margin, 0)
    if not isinstance(covers, Covers):
        raise ValueError(f"covers must be one of {', '.join(map(repr, Covers.__members__))} of Covers, got {covers!r}")
    require_gradual_underflow()
    return LossScalePlan(histogram, get_format(fmt), margin, covers)


@dataclass(frozen=True)
class AskedScale:
    """What a loss scale that was asked about does.

    Attributes
    ----------
    total : Conversion
        To all elements together.
    tensors : tuple of (str, Conversion)
        To each tensor, in the order of the files.

    """

    total: Conversion
    tensors: tuple[tuple[str, Conversion], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "loss_scale": self.total.loss_scale,
            **_fates(self.total),
            "tensors": [{"name": name, **_fates(conversion)} for name, conversion in self.tensors],
        }


def _fates(c: Conversion) -> dict[str, int]:
    return {"flushed": c.flushed, "subnormal": c.subnormal, "overflowed": c.overflowed}


@dataclass(frozen=True)
class TensorPlans(PlainReport, Shown):
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
    asked : tuple of AskedScale
        Loss scales that were asked about, powers of two or not.
    left_out : tuple of TensorInfo
        Tensors of the files that are in no plan; their `skipped` says why.

    """

    total: LossScalePlan
    loss_scale: float
    tensors: tuple[tuple[str, LossScalePlan], ...]
    asked: tuple[AskedScale, ...] = ()
    left_out: tuple[TensorInfo, ...] = ()

    def parts(self) -> dict[str, Any]:
        """Return what `to_dict` does, with an iterator in place of the list: a file is written an entry at a time."""
        return {
            **header("loss-scale plan"),
            "total": self.total.to_dict(),
            "loss_scale": self.loss_scale,
            "asked": (one.to_dict() for one in self.asked),
            "left_out": (info.described() for info in self.left_out),
            # of copies: a plan keeps its conversions
            "tensors": ({"name": name} | replace(plan).to_dict() for name, plan in self.tensors),
        }


def plan_tensors(
    histograms: Iterable[tuple[str, ExponentHistogram]],
    fmt: FormatLike,
    *,
    margin: int = 1,
    covers: Covers = Covers.GIVEN,
) -> TensorPlans:
    """Plan one loss scale for named tensors; parameters and errors as `plan_loss_scale`."""
    plans = [(name, plan_loss_scale(histogram, fmt, margin=margin, covers=covers)) for name, histogram in histograms]
    total = plan_loss_scale(ExponentHistogram.total(p.histogram for _, p in plans), fmt, margin=margin, covers=covers)
    scale = (total.recommended or total.best).loss_scale

    def badness(named: tuple[str, LossScalePlan]) -> tuple[float, ...]:
        at, one = named[1].at(scale), named[1].at(1)
        return *(c.flushed_of_nonzero + c.overflowed_of_nonzero for c in (at, one)), at.subnormal_of_nonzero

    return TensorPlans(total, scale, tuple(sorted(plans, key=badness, reverse=True)))
