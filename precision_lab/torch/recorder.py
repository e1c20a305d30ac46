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

An *update* of weights in float32 or float64 is the parameter after a step minus the parameter before it, whatever the
optimizer did. That is what was intended but for what float32 itself loses, and the update reports say how much of it
weights in bf16 or fp16 would have lost. Of weights that are in 16 bits or fewer such a difference is what was left
after the loss. There an update is what the optimizer **intended**, computed from the gradient and its state before the
step, and the report on the format of the weights says what the step made of it. That is known of exactly torch's SGD,
Adam and AdamW (see `precision_lab.torch.intended`); of a subclass or another optimizer updates of narrow weights are
*not measurable*, and nothing is said of them but how many weights with a gradient stood still.

What it costs: about 1 ns for each gradient, 3 ns more for each update, and 4 ns for each format that is asked what it
would lose, on one core (more threads here do not help: those of torch spin meanwhile). Of training steps of 1.3 million
parameters on two cores, gradients alone are 3 to 13 % with AdamW (7 and 16 ms) and with SGD of large batches (12 ms),
but half of an SGD step of 5 ms; ``every=4`` brings them below 15 % there too. All of it makes a recorded step two to
five times as long, and with ``every=30`` the training 8 to 23 % longer. To compute what was intended takes 4 ns more
with SGD and 15 with Adam. `make bench-torch` measures it on your machine.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.analysis.loss_scale_plan import Covers, LossScalePlan, plan_loss_scale
from precision_lab.analysis.recording import Recording, narrow_format
from precision_lab.analysis.scan import DEFAULT_FORMATS, ScanResult, scan_recording
from precision_lab.analysis.swamping_scan import RecordedUpdates, recorded_updates
from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.torch_arrays import dtype_name
from precision_lab.support.arguments import check_integer
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.files import write_json
from precision_lab.torch.hooks import call_on_skip, groups_of, stepping_optimizers
from precision_lab.torch.intended import KNOWN
from precision_lab.torch.tally import Scratch, Tally, tallies_of


class GradientRecorder:
    """Counts the gradients of a model, and with an optimizer its updates, over the steps of a training.

    Use it as a context manager, or with `attach` and `detach`; after that the model, the optimizer and the scaler are
    as they were. What was recorded stays, and a second `attach` adds to it.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters are recorded, those of the start. A shared one is counted once, under its first name. With an
        optimizer only those that are in one of its groups when it steps; the others are named as missing.
    optimizer : torch.optim.Optimizer, optional
        Any; its steps are recorded. Of one that wraps another and has no hooks of its own (as accelerate's) those of
        the optimizer inside, its `optimizer`. Without one call `step` after the backward passes of a step.
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
        The model has no parameters, or none that the optimizer updates; no optimizer with hooks, or several; bad
        `every`; unknown format; a scaler without an optimizer.

    Notes
    -----
    Gradients on the CPU are counted where they lie, without a copy; from a GPU they are copied over in every recorded
    step. With an optimizer, a second copy of the weights is held until `detach`, and during a recorded step the
    intended update of narrow weights in float32. Hooks of your own that change gradients before a step are registered
    before `attach`, or the gradients are recorded without what they do. A sparse gradient counts as the dense one that
    it stands for. Complex parameters are not recorded. A step that a scaler skips is counted as skipped, and
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
        self._tallies = tallies_of(model, chosen_formats)
        if not self._tallies:
            raise ValueError(f"the model, a {type(model).__name__}, has no parameters: there is nothing to record")
        self._optimizers = () if optimizer is None else stepping_optimizers(optimizer)
        if self._optimizers and all(tally.outside(groups_of(self._optimizers[-1])) for tally in self._tallies):
            raise ValueError("the optimizer updates no parameter of this model: give the model that it was made for")
        self._model, self._scaler, self._every = type(model).__name__, scaler, every
        self._handles: list[Callable[[], None]] = []
        self._steps = self._skipped = self._recorded = 0
        self._recording_now = False
        self._scratch = Scratch()

    # ---- when ----

    def attach(self) -> Self:
        """Begin to record.

        Warns where weights in 16 bits or fewer are what the optimizer updates, without a master copy in float32.

        Raises
        ------
        RuntimeError
            It is attached already: everything would be counted twice.
        FloatingPointError
            This thread flushes subnormal numbers to zero, as after ``torch.set_flush_denormal(True)``; see the notes
            of the class.

        """
        return self._attach()

    def _attach(self) -> Self:
        require_gradual_underflow()
        if self._handles:
            raise RuntimeError("this recorder is attached already: call detach() first, or use one `with` block")
        if not self._optimizers:
            self._handles = [lambda: None]
            return self
        stepping = self._optimizers[-1]
        if warning := self._about_narrow_weights():
            warnings.warn(warning, stacklevel=3)
        self._handles = [
            stepping.register_step_pre_hook(self._before).remove,
            stepping.register_step_post_hook(self._after).remove,
        ]
        if self._scaler is not None:
            self._handles.append(call_on_skip(self._scaler, self._optimizers, self._calls, self._skip))
        return self

    def _about_narrow_weights(self) -> str:
        """Say how many of the weights that the optimizer has are narrow, and what to do; nothing if none is."""
        groups = groups_of(self._optimizers[-1])
        updated = [tally.parameter for tally in self._tallies if not tally.outside(groups)]
        narrow = {fmt.name: 0 for fmt in filter(None, map(_narrow, updated))}
        if not narrow:
            return ""
        share = sum(p.numel() for p in updated if _narrow(p)) / max(1, sum(p.numel() for p in updated))
        optimizer = type(self._optimizers[-1])
        blind = "" if optimizer in KNOWN else f", and how many cannot be measured with {optimizer.__name__}"
        return (
            f"{100 * share:.4g} % of the weights that the optimizer updates are stored in {', '.join(narrow)}, without "
            f"a master copy: updates below half the gap to the next value are lost{blind}; keep the weights in float32 "
            "(model.float()) and compute in 16 bits under torch.autocast"
        )

    def detach(self) -> None:
        """Stop recording and leave no trace; what was recorded stays. Harmless where nothing is attached."""
        while self._handles:
            self._handles.pop()()
        for tally in self._tallies:
            tally.forget()

    def __enter__(self) -> Self:
        return self._attach()

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
        if self._optimizers:
            raise RuntimeError("the steps of the optimizer are recorded by themselves: do not call step()")
        if not self._handles:
            raise RuntimeError("this recorder is not attached: use it in a `with` block, or call attach()")
        if self._steps % self._every == 0:
            self._count_gradients(self._tallies)
            self._recorded += 1
        self._steps += 1

    # ---- what ----

    @property
    def gradients(self) -> dict[str, ExponentHistogram]:
        """The histogram of all recorded gradients of each parameter that got one, by name."""
        return {tally.name: tally.gradients for tally in self._tallies if tally.times}

    @property
    def updates(self) -> dict[str, ExponentHistogram]:
        """Likewise of the updates; those that are not measurable are not there, see `RecordedTensor`."""
        return {tally.name: tally.updates for tally in self._counted() if tally.has_updates}

    @property
    def ratios(self) -> dict[str, ExponentHistogram]:
        """Likewise of |update / weight|; see `RecordedTensor`."""
        return {tally.name: tally.ratios for tally in self._counted() if tally.has_updates}

    def recording(self) -> Recording:
        """Return what was recorded so far, as a value."""
        groups = groups_of(self._optimizers[-1]) if self._optimizers else None
        return Recording(
            self._model,
            tuple(tally.frozen(self._recorded, groups) for tally in self._counted()),
            self._steps,
            self._skipped,
            self._recorded,
            self._every,
        )

    def report(self, *, formats: Sequence[FormatLike] = DEFAULT_FORMATS, loss_scale: float = 1) -> ScanResult:
        """Say what each format would have done to the gradients; as `precision_lab.scan`, for tables and figures."""
        return scan_recording(self.recording(), formats=formats, loss_scale=loss_scale)

    def update_report(self) -> RecordedUpdates:
        """Say which weights stood still and what would have become of the updates, parameter by parameter."""
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
        groups = groups_of(optimizer)
        stepping = [tally for tally in self._tallies if tally.keep(groups)]
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._count_gradients(stepping, scale)
            for tally in stepping:
                tally.expect(optimizer, groups, scale)
            return None

        @functools.wraps(closure)
        def counting() -> Any:
            value = closure()
            self._count_gradients(stepping)
            for tally in stepping:
                tally.expect(optimizer, groups)
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

    def _count_gradients(self, tallies: Sequence[Tally], scale: Any = None) -> None:
        require_gradual_underflow()
        for tally in tallies:
            if tally.parameter.grad is not None:
                tally.count_gradient(tally.parameter.grad, scale)

    def _counted(self) -> Sequence[Tally]:
        for tally in self._tallies:
            tally.count_waiting()
        return self._tallies


def _narrow(parameter: Any) -> Any:
    return narrow_format(dtype_name(parameter))


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
