"""What a recorder counts of one parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.recording import RecordedTensor, narrow_format, not_measurable_in
from precision_lab.analysis.updates import UpdateReport, step_report, update_report
from precision_lab.numerics.formats import FloatFormat
from precision_lab.numerics.inputs import converted
from precision_lab.numerics.torch_arrays import dtype_name
from precision_lab.support.threads import alone
from precision_lab.torch.intended import KNOWN, in_memory_order, intended_update

Array: TypeAlias = NDArray[Any]
Groups: TypeAlias = Mapping[int, Mapping[str, Any]]

_WAIT = 1 << 15  # updates of small parameters are reported together, when there are so many: a report has a fixed cost
_BLOCK = 1 << 20  # elements for which there is memory, used again and again: a histogram has a fixed cost too


class Tally:
    """What is counted of one parameter."""

    def __init__(self, names: Sequence[str], parameter: Any, formats: tuple[FloatFormat, ...]) -> None:
        self.name, *self.shared = names
        self.parameter = parameter
        self.dtype = dtype_name(parameter)
        self.times = 0
        self.gradients, self.updates, self.ratios = (ExponentHistogram.empty() for _ in range(3))
        self.reports = [UpdateReport.empty(fmt) for fmt in formats]
        self.steps = self.should_move = self.unchanged = 0
        self.unmeasured = ""
        self.narrow: FloatFormat | None = None  # what the weights are stored in, in the step that is made
        self.kept: Any = None
        self.intended: Array | None = None
        self.waits_for_step = False
        self.waiting: list[tuple[Array, ...]] = []  # weights and their updates, flat; narrow ones also after the step
        self.written: dict[str, ExponentHistogram] = {}

    @alone()  # the threads of the training have the cores
    def count_gradient(self, gradient: Any, scale: Any) -> None:
        """Count a gradient as the optimizer gets it, divided by a scale that is still in it."""
        gradient = gradient.detach()
        if gradient.is_complex():
            return
        self.times += 1
        self.dtype = dtype_name(gradient)
        missing = 0
        if gradient.layout is not torch.strided:
            gradient = gradient.coalesce() if gradient.layout is torch.sparse_coo else gradient
            missing = gradient.numel() - gradient.values().numel()
            gradient = gradient.values()
        if scale is not None:
            gradient = gradient / scale.to(gradient.device, gradient.dtype)
        self.gradients += ExponentHistogram.of(in_memory_order(gradient))
        if missing:
            self.gradients += ExponentHistogram(missing, 0, None, 0.0, 0, self.gradients.table[:0])

    def keep(self, groups: Groups) -> bool:
        """Keep the weights as they are before a step; return whether the step is to change them."""
        parameter = self.parameter.detach()
        if self.outside(groups) or parameter.is_complex():
            return False
        if self.kept is None or self.kept.dtype != parameter.dtype or self.kept.shape != parameter.shape:
            self.count_waiting()
            self.kept = parameter.clone()
        else:
            self.kept.copy_(parameter)  # no new memory, whose pages would have to be made first
        self.narrow, self.intended = narrow_format(dtype_name(parameter)), None
        self.waits_for_step = True
        return True

    @alone()
    def expect(self, optimizer: Any, groups: Groups, scale: Any = None) -> None:
        """Compute what the step is to add to narrow weights, or note that nobody can."""
        if self.narrow is None:
            return
        if type(optimizer) in KNOWN:
            self.intended = intended_update(optimizer, groups[id(self.parameter)], self.parameter, scale)
        else:
            what = f"what {type(optimizer).__name__} was to add is not known"
            self.unmeasured = f"{not_measurable_in(self.narrow)}, and {what}"

    def forget(self) -> None:
        """Drop what is kept between the beginning and the end of a step."""
        self.kept, self.intended, self.waits_for_step = None, None, False

    @alone()
    def count_update(self, scratch: Scratch) -> None:
        """Count what a step has done, if it was to do anything."""
        if not self.waits_for_step:
            return
        self.waits_for_step = False
        self.steps += 1
        tensors = [self.kept, self.parameter.detach()]
        gradient = self.parameter.grad
        if gradient is not None and self.intended is None:
            tensors.append((gradient if gradient.layout is torch.strided else gradient.to_dense()).detach())
        if self.narrow or len({tensor.stride() for tensor in tensors}) > 1:
            tensors = [tensor.contiguous() for tensor in tensors]  # else they are taken in the order of memory
        before, after, *gradients = map(in_memory_order, tensors)
        if self.narrow:
            before, after, *gradients = (converted(array, np.float32) for array in (before, after, *gradients))
        if self.narrow and self.unmeasured:  # what was left is no update
            self.count_still(after == before, gradients)
            return
        self.count_known(before, after, gradients, scratch)

    def count_known(self, before: Array, after: Array, gradients: list[Array], scratch: Scratch) -> None:
        """Count updates that are known: computed, or measured."""
        waits = before.size < _WAIT
        updates = self.intended
        if updates is None:
            updates = np.empty_like(before) if waits else scratch.of("updates", before.size, before.dtype)
            with np.errstate(all="ignore"):
                np.subtract(after, before, out=updates)
        self.intended = None
        ratios = scratch.of("ratios", min(before.size, _BLOCK), before.dtype)
        for start in range(0, before.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            u, w = updates[part], before[part]
            with np.errstate(all="ignore"):
                np.divide(u, w, out=ratios[: u.size])
            histogram = ExponentHistogram.of(u)
            self.updates += histogram
            self.ratios += ExponentHistogram.of(ratios[: u.size])
            if self.narrow:
                self.count_still(after[part] == w, [(u != 0) & np.isfinite(u) & np.isfinite(w)])
            else:
                self.count_still(u == 0 if histogram.zero else None, [g[part] for g in gradients])
        if not self.reports:
            return
        more = (after,) if self.narrow else ()
        if waits:
            self.waiting.append((before.copy(), updates, *more))
            if sum(update.size for _, update, *_ in self.waiting) >= _WAIT:
                self.count_waiting()
        else:
            self.count_reports(before, updates, *more)

    def count_still(self, still: Array | None, causes: list[Array]) -> None:
        """Count the weights with a cause to move that is not zero, if there is one, and of them those that did not."""
        for cause in causes:
            self.should_move += int(np.count_nonzero(cause))
            if still is not None:
                self.unchanged += int(np.count_nonzero(cause[still]))

    def count_waiting(self) -> None:
        """Count the updates that wait."""
        if self.waiting:
            self.count_reports(*map(np.concatenate, zip(*self.waiting, strict=True)))
            self.waiting = []  # only now: it may be refused, see `require_gradual_underflow`

    def count_reports(self, weights: Array, updates: Array, after: Array | None = None) -> None:
        """Count what becomes of updates in each format; in that of narrow weights, what the step made of them."""

        def report_in(fmt: FloatFormat) -> UpdateReport:
            if after is not None and fmt == self.narrow:
                return step_report(weights, after, updates, fmt)
            return update_report(weights, updates, fmt)

        self.reports = [report + report_in(report.format) for report in self.reports]

    @property
    def has_updates(self) -> bool:
        """Whether updates were counted, and all of them are known."""
        return self.updates.count > 0 and not self.unmeasured

    def outside(self, groups: Groups) -> bool:
        """Whether the optimizer with these groups does not have the parameter."""
        return id(self.parameter) not in groups

    def frozen(self, recorded_steps: int, groups: Groups | None) -> RecordedTensor:
        """Return what was counted so far, as a value."""
        known = self.has_updates
        return RecordedTensor(
            self.name,
            self.dtype,
            tuple(self.parameter.shape),
            self.gradients,
            self.times,
            self.missing(recorded_steps, groups),
            tuple(self.shared),
            self.updates if known else None,
            self.ratios if known else None,
            self.unchanged,
            tuple(self.reports) if known else (),
            self.steps,
            self.should_move,
            self.unmeasured,
        )

    def missing(self, recorded_steps: int, groups: Groups | None) -> str:
        """Say why there are no gradients; nothing if there are."""
        if self.times:
            return ""
        if self.parameter.is_complex():
            return "complex parameter"
        if not self.parameter.requires_grad:
            return "frozen, requires_grad is False"
        if groups is not None and self.outside(groups):
            return "in no group of the optimizer"
        if not recorded_steps:
            return "no step was recorded"
        return f"no gradient in any of {recorded_steps:,} recorded steps"


class Scratch:
    """Memory that is used again and again."""

    def __init__(self) -> None:
        self.arrays: dict[Any, Array] = {}

    def of(self, name: str, size: int, dtype: Any) -> Array:
        """Return memory of a name, which nobody else uses at the time."""
        held = self.arrays.get((name, dtype))
        if held is None or held.size < size:
            held = self.arrays[name, dtype] = np.empty(size, dtype)
        return held[:size]


def tallies_of(model: Any, formats: tuple[FloatFormat, ...]) -> list[Tally]:
    """Return a tally for each parameter; one of several names has one tally."""
    names: dict[int, list[str]] = {}
    parameters = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        parameters[id(parameter)] = parameter
    return [Tally(names[key], parameter, formats) for key, parameter in parameters.items()]
