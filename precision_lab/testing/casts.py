"""Is my cast right? Try it on everything that is hard to round, and name what is wrong with it.

`check_cast` takes any function from an array of one format (or of float64) to an array of another and compares it, bit
for bit, with a single rounding. It tries all inputs where the source has up to 20 bits; else every hard case of every
binade of both formats (hard_inputs.py), random ones, and, if asked, all 2^32 float32 patterns. The same inputs stand in
arrays of all lengths from 1 to 70, at changing places and addresses, because vectorised casts have a body and a tail.
What differs is explained by named mistakes (cast_faults.py): "truncates", "rounds twice, via fp32", "clamps", where it
shows, and the three simplest inputs that show it; what none explains is described by what it looks like.

The cast runs in a process of its own (isolation.py), where it may crash, hang or spoil its input without harm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.numerics.modes import RoundingMode, get_mode
from precision_lab.numerics.rounding import Array
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.testing.cast_check import Check
from precision_lab.testing.cast_course import Progress
from precision_lab.testing.cast_models import Spec
from precision_lab.testing.cast_report import CastReport
from precision_lab.testing.hard_inputs import get_source
from precision_lab.testing.isolation import isolation

NAN_RULES = ("any", "quiet", "payload", "ignore")
Cast = Callable[[Array], Any]


def assert_cast(cast: Cast, source: FormatLike, target: FormatLike, **options: Any) -> None:
    """Raise AssertionError, with the report as its text, unless `check_cast` finds nothing wrong.

    Parameters
    ----------
    cast, source, target, **options
        As in `check_cast`.

    """
    report = check_cast(cast, source, target, **options)
    if not report.ok:
        raise AssertionError(str(report))


def check_cast(
    cast: Cast,
    source: FormatLike,
    target: FormatLike,
    *,
    mode: str = "ties_to_even",
    subnormals: bool = True,
    saturate: bool = False,
    nan: str = "any",
    exhaustive: bool | None = None,
    seed: int = 0,
    time_limit: float = 2.0,
    isolate: bool | str = True,
    progress: Progress | None = None,
) -> CastReport:
    """Compare a cast with a single rounding, bit for bit, and name what is wrong.

    Parameters
    ----------
    cast : callable
        Takes a one-dimensional, contiguous array of the source's dtype (float32 where it has none: tf32, e6m9) and
        returns an array of the same shape: of the target's dtype, of its codes (unsigned, right-aligned, as `encode`
        gives them), or of values in float32 or float64.
    source : str, dtype or FloatFormat
        ``float64`` or any format, see `get_format`.
    target : str, dtype or FloatFormat
        Any format.
    mode : str
        How it should round, see `round_to`; not ``stochastic``.
    subnormals, saturate : bool
        Whether subnormal results should be kept and overflow be clamped, as in `round_to`.
    nan : str
        What NaN should become: ``any`` NaN; a ``quiet`` one; one with the sign and the leading bits of the ``payload``,
        made quiet, as processors do it; ``ignore``: anything. A target without NaN may do as it likes.
    exhaustive : bool or None
        True tries every input: all 2^32 of fp32. None and False try every input of sources of up to 20 bits.
    seed : int
        Of the random inputs.
    time_limit : float
        Seconds that a call may take (the first one, which may have to compile, 60).
    isolate : bool or str
        Run the cast in a process of its own: ``fork``, or ``spawn`` for what cannot be forked (CUDA), which starts
        an interpreter and imports the cast by its name. True forks on Linux; on macOS and Windows it spawns, if the
        cast can be imported, and else runs it here. False runs it here, without a time limit: the report says so.
    progress : callable, optional
        Called with the number of results compared and how many there will be.

    Returns
    -------
    CastReport
        A cast that raises, hangs, crashes, changes its input or returns something else gets a report that says so.

    Raises
    ------
    ValueError
        Unknown format, mode or rule for NaN; ``stochastic``; more inputs than can be tried; ``isolate='spawn'`` of a
        cast that cannot be imported.
    FloatingPointError
        This thread flushes subnormal numbers to zero, or does so since the cast was called in it (`isolate` False).

    Examples
    --------
    >>> import numpy as np
    >>> check_cast(lambda x: x.astype(np.float16), "fp32", "fp16").ok
    True

    """
    require_gradual_underflow()
    spec = _checked_spec(source, target, mode, subnormals, saturate, nan)
    if exhaustive and spec.source.bits > 32:
        raise ValueError(f"exhaustive tries every input, and {spec.source.name} has 2^{spec.source.bits}; use fp32")
    if not callable(cast):
        raise ValueError(f"cast must be a function of an array, got {type(cast).__name__}")
    if not time_limit > 0:
        raise ValueError(f"time_limit must be a number of seconds above 0, got {time_limit!r}")
    with closing(isolation(cast, spec.source.dtype, isolate)) as caller:
        return Check(spec, caller, time_limit, progress).run(bool(exhaustive), seed)


def _checked_spec(
    source: FormatLike, target: FormatLike, mode: str, subnormals: bool, saturate: bool, nan: str
) -> Spec:
    rounding = get_mode(mode)
    if rounding is RoundingMode.STOCHASTIC:
        raise ValueError(
            "mode stochastic has no one right result to compare with; choose one of "
            + ", ".join(m.value for m in RoundingMode if m is not RoundingMode.STOCHASTIC)
        )
    if nan not in NAN_RULES:
        raise ValueError(f"nan must be one of {', '.join(NAN_RULES)}, got {nan!r}")
    return Spec(get_source(source), get_format(target), rounding.value, subnormals, saturate, nan)
