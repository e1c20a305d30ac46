"""One loss scale for the gradients of some files, and what any other would do to them.

Planned is what may be a gradient: moments, step counters, buffers and scales, which lie in a training checkpoint beside
the rest, are left out by their role. What else a file holds is taken for gradients, and the plans say so: weights need
no loss scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from precision_lab.analysis.any_scale import count_conversions
from precision_lab.analysis.histogram import Conversion
from precision_lab.analysis.loss_scale_plan import AskedScale, Covers, TensorPlans, plan_tensors
from precision_lab.analysis.loss_scalers import StaticLossScale, scale_text
from precision_lab.analysis.recording import is_recording
from precision_lab.analysis.scan import ScannedTensor, ScanResult, scan
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.support.text import shown
from precision_lab.tensors.info import TensorFileError, TensorSource, names_of
from precision_lab.tensors.reading import is_one_source
from precision_lab.tensors.roles import Role
from precision_lab.tensors.walk import Walk


def plan_files(
    paths: TensorSource | Iterable[TensorSource],
    fmt: FormatLike,
    *,
    margin: int = 1,
    loss_scales: Sequence[float] = (),
    dtype: FormatLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TensorPlans:
    """Plan one loss scale for the tensors of some files, and say what others would do.

    Parameters
    ----------
    paths : path, mapping or module, or iterable of them
        As for `scan`.
    fmt, margin
        As for `plan_loss_scale`.
    loss_scales : sequence of float
        Scales to ask about, any positive numbers. Powers of two are answered by the histograms; others take another
        pass over the files.
    dtype, progress
        As for `scan`.

    Raises
    ------
    TensorFileError
        A file cannot be read; a scale that is no power of two is asked about a recording, which has no numbers.
    ValueError
        Unknown format; no paths; no such margin or scale.

    """
    places = [paths] if is_one_source(paths) else list(paths)
    scales = list(dict.fromkeys(StaticLossScale(s).loss_scale for s in loss_scales))
    moving = [s for s in scales if math.frexp(s)[0] != 0.5]  # within their binades
    if moving and (recorded := next(filter(is_recording, places), None)):
        raise TensorFileError(
            f"{shown(recorded, 4096)}: a recording holds counts by binade, and S = {scale_text(moving[0])} moves "
            "numbers within theirs: that needs the data, the gradients in a file of tensors; a power of two needs none"
        )
    result = scan(places, formats=[fmt], dtype=dtype, progress=progress, precision=False)
    plans = plan_scan(result, fmt, margin=margin)
    if not scales:
        return plans
    fmt, tensors = get_format(fmt), _gradients(result)
    names = names_of(tensor.info for tensor in tensors)
    counted = dict(zip(moving, _counted(places, fmt, moving, dtype), strict=True)) if moving else {}
    counted |= {s: [t.histogram.conversion(fmt, s) for t in tensors] for s in scales if s not in counted}
    asked = (AskedScale(_total(counted[s], fmt, s), tuple(zip(names, counted[s], strict=True))) for s in scales)
    return replace(plans, asked=tuple(asked))


def plan_scan(result: ScanResult, fmt: FormatLike, *, margin: int = 1) -> TensorPlans:
    """Plan one loss scale for the tensors of a scan; errors as `plan_loss_scale`."""
    tensors = _gradients(result)
    names = names_of(tensor.info for tensor in tensors)
    histograms = zip(names, (tensor.histogram for tensor in tensors), strict=True)
    plans = plan_tensors(histograms, fmt, margin=margin, covers=_covers(tensors))
    others = [tensor.info for tensor in result.tensors if tensor.info.role is not Role.PARAMETER]
    left_out = (replace(info, skipped=f"{info.role}, no gradient") for info in others)
    return replace(plans, left_out=(*result.skipped, *left_out))


def _gradients(result: ScanResult) -> list[ScannedTensor]:
    return [tensor for tensor in result.tensors if tensor.info.role is Role.PARAMETER]


def _covers(tensors: Sequence[ScannedTensor]) -> Covers:
    recorded = {is_recording(tensor.info.file) for tensor in tensors}
    return {(True,): Covers.PARAMETERS, (False, True): Covers.BOTH}.get(tuple(sorted(recorded)), Covers.FILES)


def _counted(
    places: Sequence[TensorSource], fmt: FloatFormat, scales: Sequence[float], dtype: FormatLike | None
) -> list[list[Conversion]]:
    """Return what each scale does to each tensor, by a pass over the numbers."""
    columns: list[list[Conversion]] = [[] for _ in scales]
    for info, parts in Walk(places, dtype=dtype).map(partial(count_conversions, fmt=fmt, loss_scales=scales)):
        if info.role is Role.PARAMETER:
            for column, scale, conversions in zip(columns, scales, zip(*parts, strict=True), strict=True):
                column.append(_total(conversions, fmt, scale))
    return columns


def _total(conversions: Sequence[Conversion], fmt: FloatFormat, scale: float) -> Conversion:
    names = ("count", "zero", "nonfinite", "flushed", "subnormal", "overflowed")
    return Conversion(fmt, scale, *(sum(getattr(c, name) for c in conversions) for name in names))
