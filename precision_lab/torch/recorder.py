"""Record the gradients and updates of a PyTorch model while it trains, as histograms.

    from precision_lab.torch import GradientRecorder

    with GradientRecorder(model, optimizer) as recorder:
        ...  # your training loop, as it is
    recorder.save("run.json")

What is recorded is **what the optimizer gets**, at the moment it gets it. Not every ``backward()``: with gradient
accumulation those are partial sums. Not before the clipping, and not multiplied by the loss scale: `GradScaler` divides
the scale out before it calls the optimizer, and where a fused optimizer is to do that itself, it is done here. The only
hooks are the optimizer's (``register_step_pre_hook``, ``register_step_post_hook``), none is on the model. With a
closure (LBFGS) every evaluation counts, as each hands the optimizer a gradient. Without an optimizer nobody but you
knows when a gradient is final: call `GradientRecorder.step` where ``optimizer.step()`` would be.

An *update* is the parameter after a step minus the parameter before it, whatever the optimizer did, rounded once in
float32 (float64 for float64). Of float32 weights that is the update that was intended, to the last bit or so, and the
update reports say how much of it weights in bf16 or fp16 would have lost. Of weights that are in 16 bits already it is
what was left after the loss: look at `RecordedTensor.unchanged` there.

What it costs: about 1 ns for each gradient, 3 ns more for each update, and 4 ns for each format that is asked what it
would lose, on one core (more threads here do not help: those of torch spin meanwhile). Of training steps of 1.3 million
parameters on two cores, gradients alone are 3 to 13 % with AdamW (7 and 16 ms) and with SGD of large batches (12 ms),
but half of an SGD step of 5 ms; ``every=4`` brings them below 15 % there too. All of it makes a recorded step two to
five times as long, and with ``every=30`` the training 8 to 23 % longer. `make bench-torch` measures it on your machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.loss_scale_plan import Covers, LossScalePlan, plan_loss_scale
from precision_lab.analysis.recording import RecordedTensor, Recording
from precision_lab.analysis.scan import DEFAULT_FORMATS, ScanResult, scan_recording
from precision_lab.analysis.swamping_scan import UpdateScan, recorded_updates
from precision_lab.analysis.updates import UpdateReport, update_report
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import converted
from precision_lab.support.arguments import check_integer
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.files import write_json
from precision_lab.support.threads import alone

Array: TypeAlias = NDArray[Any]

_CODES = {  # dtypes that torch does not hand to NumPy, and what they are there
    torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
}
_WAIT = 1 << 15  # updates of small parameters are reported together, when there are so many: a report has a fixed cost
_BLOCK = 1 << 20  # elements for which there is memory, used again and again: a histogram has a fixed cost too


class GradientRecorder:
    """Counts the gradients of a model, and with an optimizer its updates, over the steps of a training.

    Use it as a context manager, or with `attach` and `detach`; after that the model, the optimizer and the scaler are
    as they were. What was recorded stays, and a second `attach` adds to it.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are recorded, those of the start. A shared one is counted once, under its first name.
    optimizer : torch.optim.Optimizer, optional
        Any; its steps are recorded. Without one call `step` after the backward passes of a step.
    every : int
        Record every so many-th step, the first included.
    formats : sequence of format specs
        In which weights could be stored; there is an update report for each. ``()``: none, which is cheaper.
    scaler : torch.amp.GradScaler, optional
        Only to count the steps that it skips; gradients are right without. (Skipped steps of fused optimizers are
        counted in any case.)

    Raises
    ------
    ValueError
        The model has no parameters, or none that the optimizer updates; bad `every`; unknown format; a scaler without
        an optimizer.

    Notes
    -----
    Gradients on the CPU are counted where they lie, without a copy; from a GPU they are copied over in every recorded
    step. With an optimizer, a second copy of the weights is held until `detach`. A sparse gradient counts as the dense
    one that it stands for. Complex parameters are not recorded. A step that a scaler skips is counted as skipped, and
    its gradients are not counted: the optimizer never gets them.

    Where subnormal numbers are flushed to zero (``torch.set_flush_denormal(True)``) nothing can be counted: `attach`
    raises FloatingPointError, and if it is switched on later, the next recorded step does, before the optimizer has
    changed anything. What was recorded until then stays, and is right; switch it off to go on or to save.

    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 1,
        formats: Sequence[FormatLike] = ("bf16", "fp16"),
        scaler: Any = None,
    ) -> None:
        every = check_integer("every", every, 1)
        if scaler is not None and optimizer is None:
            raise ValueError("a scaler is asked about the steps of an optimizer: give the optimizer too")
        chosen_formats = tuple(dict.fromkeys(map(get_format, formats)))
        self._tallies = _tallies(model, chosen_formats)
        if not self._tallies:
            raise ValueError(f"the model, a {type(model).__name__}, has no parameters: there is nothing to record")
        if optimizer is not None:
            updated = _updated_by(optimizer)
            if not any(id(tally.parameter) in updated for tally in self._tallies):
                raise ValueError(
                    "the optimizer updates no parameter of this model: give the model that it was made for"
                )
        self._model, self._optimizer, self._scaler, self._every = type(model).__name__, optimizer, scaler, every
        self._handles: list[Callable[[], None]] = []
        self._steps = self._skipped = self._recorded = 0
        self._recording_now = False
        self._scratch = _Scratch()

    # ---- when ----

    def attach(self) -> Self:
        """Begin to record.

        Raises
        ------
        RuntimeError
            It is attached already: everything would be counted twice.
        FloatingPointError
            This thread flushes subnormal numbers to zero, as after ``torch.set_flush_denormal(True)``; see the notes
            of the class.

        """
        require_gradual_underflow()
        if self._handles:
            raise RuntimeError("this recorder is attached already: call detach() first, or use one `with` block")
        if self._optimizer is not None:
            self._handles = [
                self._optimizer.register_step_pre_hook(self._before).remove,
                self._optimizer.register_step_post_hook(self._after).remove,
            ]
            if self._scaler is not None:
                self._handles.append(_on_skip(self._scaler, self._optimizer, self._calls, self._skip))
        else:
            self._handles = [lambda: None]
        return self

    def detach(self) -> None:
        """Stop recording and leave no trace; what was recorded stays. Harmless where nothing is attached."""
        while self._handles:
            self._handles.pop()()
        for tally in self._tallies:
            tally.kept, tally.waits_for_step = None, False

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def step(self) -> None:
        """Record the gradients as they are now; only for a recorder without an optimizer.

        Raises
        ------
        RuntimeError
            It is not attached, or has an optimizer, whose own steps are recorded.
        FloatingPointError
            As `attach`; nothing of this step is counted then.

        """
        if self._optimizer is not None:
            raise RuntimeError("the steps of the optimizer are recorded by themselves: do not call step()")
        if not self._handles:
            raise RuntimeError("this recorder is not attached: use it in a `with` block, or call attach()")
        if self._steps % self._every == 0:
            self._count_gradients()
            self._recorded += 1
        self._steps += 1

    # ---- what ----

    @property
    def gradients(self) -> dict[str, ExponentHistogram]:
        """The histogram of all recorded gradients of each parameter that got one, by name."""
        return {tally.name: tally.gradients for tally in self._tallies if tally.times}

    @property
    def updates(self) -> dict[str, ExponentHistogram]:
        """Likewise of the updates."""
        return {tally.name: tally.updates for tally in self._counted() if tally.updates.count}

    @property
    def ratios(self) -> dict[str, ExponentHistogram]:
        """Likewise of |update / weight|; see `RecordedTensor`."""
        return {tally.name: tally.ratios for tally in self._counted() if tally.updates.count}

    def recording(self) -> Recording:
        """Return what was recorded so far, as a value."""
        return Recording(
            self._model,
            tuple(tally.frozen(self._recorded) for tally in self._counted()),
            self._steps,
            self._skipped,
            self._recorded,
            self._every,
        )

    def report(self, *, formats: Sequence[FormatLike] = DEFAULT_FORMATS, loss_scale: float = 1) -> ScanResult:
        """Say what each format would have done to the gradients; as `precision_lab.scan`, for tables and figures."""
        return scan_recording(self.recording(), formats=formats, loss_scale=loss_scale)

    def update_report(self) -> UpdateScan:
        """Say what would have become of the updates, parameter by parameter, worst first."""
        return recorded_updates(self.recording())

    def plan_loss_scale(self, fmt: FormatLike, *, margin: int = 1) -> LossScalePlan:
        """Plan a loss scale for all recorded gradients together; see `precision_lab.plan_loss_scale`.

        These are the gradients of the parameters. Those of activations, which a backward pass in fp16 also has to
        hold, are not seen here, and are often smaller; the summary says so.
        """
        total = sum(self.gradients.values(), ExponentHistogram.empty())
        return plan_loss_scale(total, fmt, margin=margin, covers=Covers.PARAMETERS)

    def save(self, path: str | Path) -> None:
        """Write the recording as JSON, whole or not at all; ``precision-lab scan FILE`` reads it.

        Raises
        ------
        OutputError
            Nothing can be written there.

        """
        write_json(self.recording().to_dict(), Path(path))

    def write(self, writer: Any, step: int) -> None:
        """Hand what was recorded since the last call to TensorBoard: ``gradients/NAME``, and ``updates/NAME``.

        The horizontal axis is log2 of the magnitude, one bar a binade: [-3, -2) holds the magnitudes from 2^-3 to
        2^-2. Zeros are a bar of their own at the far left, [-151, -150) (for float64 [-1076, -1075)), infinities and
        NaN one at the far right, [129, 130) ([1025, 1026)).

        Parameters
        ----------
        writer : torch.utils.tensorboard.SummaryWriter
            Yours; anything with its `add_histogram_raw`.
        step : int
            The global step.

        """
        for tally in self._counted():
            for tag, now in (("gradients", tally.gradients), ("updates", tally.updates)):
                bars = _bars(now, tally.written.get(tag, ExponentHistogram.empty()), tally.parameter.dtype)
                tally.written[tag] = now
                if bars:
                    _write_bars(writer, f"{tag}/{tally.name}", bars, step)

    # ---- hooks ----

    def _calls(self) -> int:
        return self._steps + self._skipped

    def _skip(self) -> None:
        self._skipped += 1

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Count the gradients and keep the weights; where there is a closure, count after each of its calls."""
        self._recording_now = False
        # a fused optimizer looks for these itself, and skips the step, or divides the scale out
        found_inf, scale = (getattr(optimizer, name, None) for name in ("found_inf", "grad_scale"))
        if found_inf is not None and float(found_inf):
            self._skipped += 1
            return None
        if self._steps % self._every == 0:
            require_gradual_underflow()  # before anything is counted, and before the optimizer changes anything
        self._recording_now = self._steps % self._every == 0
        self._steps += 1
        if not self._recording_now:
            return None
        self._recorded += 1
        updated = _updated_by(optimizer)
        for tally in self._tallies:
            if id(tally.parameter) in updated and not tally.parameter.is_complex():
                tally.keep()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._count_gradients(scale)
            return None

        @functools.wraps(closure)
        def counting() -> Any:
            value = closure()
            self._count_gradients()
            return value

        if len(args) > 1:
            return (args[0], counting, *args[2:]), kwargs
        return args, kwargs | {"closure": counting}

    def _after(self, _optimizer: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if self._recording_now:
            self._recording_now = False
            require_gradual_underflow()  # a closure may have switched it on
            for tally in self._tallies:
                tally.count_update(self._scratch)

    def _count_gradients(self, scale: Any = None) -> None:
        require_gradual_underflow()
        for tally in self._tallies:
            if tally.parameter.grad is not None:
                tally.count_gradient(tally.parameter.grad, scale)

    def _counted(self) -> Sequence[_Tally]:
        for tally in self._tallies:
            tally.count_waiting()
        return self._tallies


class _Tally:
    """What is counted of one parameter."""

    def __init__(self, names: Sequence[str], parameter: Any, formats: tuple[FloatFormat, ...]) -> None:
        self.name, *self.shared = names
        self.parameter = parameter
        self.dtype = _dtype_name(parameter)
        self.times = 0
        self.gradients, self.updates, self.ratios = (ExponentHistogram.empty() for _ in range(3))
        self.reports = [UpdateReport.empty(fmt) for fmt in formats]
        self.unchanged = 0
        self.kept: Any = None
        self.waits_for_step = False
        self.waiting: list[tuple[Array, Array]] = []  # weights and their updates, flat
        self.written: dict[str, ExponentHistogram] = {}

    @alone()  # the threads of the training have the cores
    def count_gradient(self, gradient: Any, scale: Any) -> None:
        gradient = gradient.detach()
        if gradient.is_complex():
            return
        self.times += 1
        self.dtype = _dtype_name(gradient)
        missing = 0
        if gradient.layout is not torch.strided:
            gradient = gradient.coalesce() if gradient.layout is torch.sparse_coo else gradient
            missing = gradient.numel() - gradient.values().numel()
            gradient = gradient.values()
        if scale is not None:
            gradient = gradient / scale.to(gradient.device, gradient.dtype)
        self.gradients += ExponentHistogram.of(_array(gradient))
        if missing:
            self.gradients += ExponentHistogram(missing, 0, None, 0.0, 0, self.gradients.table[:0])

    def keep(self) -> None:
        """Keep the weights as they are before a step."""
        parameter = self.parameter.detach()
        if self.kept is None or self.kept.dtype != parameter.dtype or self.kept.shape != parameter.shape:
            self.kept = parameter.clone()
        else:
            self.kept.copy_(parameter)  # no new memory, whose pages would have to be made first
        self.waits_for_step = True

    @alone()
    def count_update(self, scratch: _Scratch) -> None:
        if not self.waits_for_step:
            return
        self.waits_for_step = False
        pair = [self.kept, self.parameter.detach()]
        gradient = self.parameter.grad
        if gradient is not None:
            pair.append((gradient if gradient.layout is torch.strided else gradient.to_dense()).detach())
        if len({tensor.stride() for tensor in pair}) > 1:  # their elements are taken in the order of memory
            pair = [tensor.contiguous() for tensor in pair]
        before, after, *gradients = map(_array, pair)
        if before.dtype not in (np.float32, np.float64):
            before, after = converted(before, np.float32), converted(after, np.float32)
        waits = before.size < _WAIT
        updates = np.empty_like(before) if waits else scratch.of("updates", before.size, before.dtype)
        ratios = scratch.of("ratios", min(before.size, _BLOCK), before.dtype)
        with np.errstate(all="ignore"):
            np.subtract(after, before, out=updates)
            for start in range(0, before.size, _BLOCK):
                part = slice(start, start + _BLOCK)
                np.divide(updates[part], before[part], out=ratios[: updates[part].size])
                self.count_block(updates[part], ratios[: updates[part].size], [g[part] for g in gradients])
        if not self.reports:
            return
        if waits:
            self.waiting.append((before.copy(), updates))
            if sum(update.size for _, update in self.waiting) >= _WAIT:
                self.count_waiting()
        else:
            self.count_reports(before, updates)

    def count_block(self, updates: Array, ratios: Array, gradients: list[Array]) -> None:
        histogram = ExponentHistogram.of(updates)
        self.updates += histogram
        self.ratios += ExponentHistogram.of(ratios)
        if histogram.zero:
            self.unchanged += sum(int(np.count_nonzero((updates == 0) & (g != 0))) for g in gradients)

    def count_waiting(self) -> None:
        """Count the updates that wait."""
        if self.waiting:
            weights, updates = map(np.concatenate, zip(*self.waiting, strict=True))
            self.count_reports(weights, updates)
            self.waiting = []  # only now: it may be refused, see `require_gradual_underflow`

    def count_reports(self, weights: Array, updates: Array) -> None:
        self.reports = [report + update_report(weights, updates, report.format) for report in self.reports]

    def frozen(self, recorded_steps: int) -> RecordedTensor:
        recorded = self.updates.count > 0
        return RecordedTensor(
            self.name,
            self.dtype,
            tuple(self.parameter.shape),
            self.gradients,
            self.times,
            self.missing(recorded_steps),
            tuple(self.shared),
            self.updates if recorded else None,
            self.ratios if recorded else None,
            self.unchanged,
            tuple(self.reports) if recorded else (),
        )

    def missing(self, recorded_steps: int) -> str:
        if self.times:
            return ""
        if self.parameter.is_complex():
            return "complex parameter"
        if not self.parameter.requires_grad:
            return "frozen, requires_grad is False"
        if not recorded_steps:
            return "no step was recorded"
        return f"no gradient in any of {recorded_steps:,} recorded steps"


class _Scratch:
    """Memory that is used again and again."""

    def __init__(self) -> None:
        self.arrays: dict[Any, Array] = {}

    def of(self, name: str, size: int, dtype: Any) -> Array:
        held = self.arrays.get((name, dtype))
        if held is None or held.size < size:
            held = self.arrays[name, dtype] = np.empty(size, dtype)
        return held[:size]


def _tallies(model: Any, formats: tuple[FloatFormat, ...]) -> list[_Tally]:
    """Return a tally for each parameter; one of several names has one tally."""
    names: dict[int, list[str]] = {}
    parameters = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        parameters[id(parameter)] = parameter
    return [_Tally(names[key], parameter, formats) for key, parameter in parameters.items()]


def _updated_by(optimizer: Any) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _array(tensor: Any) -> Array:
    """Return the elements in the order of memory, flat; without a copy where the tensor is dense and on the CPU."""
    tensor = tensor.detach().cpu()
    codes, dtype = _CODES.get(tensor.dtype, (None, None))
    array: Array = tensor.numpy() if codes is None else tensor.view(codes).numpy().view(dtype)
    return array.ravel(order="K")


def _on_skip(scaler: Any, optimizer: Any, calls: Callable[[], int], skip: Callable[[], None]) -> Callable[[], None]:
    """Have `skip` called for each step of the optimizer that the scaler leaves out; return what ends that."""
    own = vars(scaler).get("step")  # of another recorder
    original = scaler.step

    @functools.wraps(original)
    def step(stepping: Any, *args: Any, **kwargs: Any) -> Any:
        before = calls()
        value = original(stepping, *args, **kwargs)
        if stepping is optimizer and watching and calls() == before:
            skip()
        return value

    def end() -> None:
        watching.clear()
        if vars(scaler).get("step") is not step:
            return  # somebody came after us; ours only passes on
        if own is None:
            del scaler.step
        else:
            scaler.step = own

    watching = [True]
    scaler.step = step
    return end


def _bars(now: ExponentHistogram, before: ExponentHistogram, dtype: Any) -> dict[int, int]:
    """Return the counts since `before` by the left edge of their bar, without gaps between the first and the last."""
    left, right = (-1076, 1025) if dtype is torch.float64 else (-151, 129)
    earlier = before.binades
    counts = {left: now.zero - before.zero, right: now.nonfinite - before.nonfinite}
    counts |= {e: n - earlier.get(e, 0) for e, n in now.binades.items()}
    filled = sorted(e for e, n in counts.items() if n)
    return {e: counts.get(e, 0) for e in range(filled[0], filled[-1] + 1)} if filled else {}


def _write_bars(writer: Any, tag: str, bars: dict[int, int], step: int) -> None:
    edges, counts = list(bars), list(bars.values())
    middles = np.array(edges) + 0.5
    writer.add_histogram_raw(
        tag,
        min=float(edges[0]),
        max=float(edges[-1] + 1),
        num=sum(counts),
        sum=float(middles @ counts),
        sum_squares=float(middles**2 @ counts),
        bucket_limits=[float(edge + 1) for edge in edges],
        bucket_counts=[float(n) for n in counts],
        global_step=step,
    )
