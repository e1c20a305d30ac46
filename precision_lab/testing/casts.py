"""Is my cast right? Try it on everything that is hard to round, and name what is wrong with it.

`check_cast` takes any function from an array of one format (or of float64) to an array of another and compares it, bit
for bit, with a single rounding. It tries all inputs where the source has up to 20 bits; else every hard case of every
binade of both formats (hard_inputs.py), random ones, and, if asked, all 2^32 float32 patterns. The same inputs stand in
arrays of all lengths from 1 to 70, at changing places and addresses, because vectorised casts have a body and a tail.
What differs is explained by named mistakes (cast_faults.py): "truncates", "rounds twice, via fp32", "clamps", where it
shows, and the three simplest inputs that show it; what none explains is described by what it looks like. A stochastic
cast is asked again and again (cast_chance.py).

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
from precision_lab.testing.cast_chance import ChanceCheck
from precision_lab.testing.cast_check import Check
from precision_lab.testing.cast_course import Progress
from precision_lab.testing.cast_models import Spec
from precision_lab.testing.cast_report import CastReport
from precision_lab.testing.hard_inputs import get_source
from precision_lab.testing.isolation import isolation
from precision_lab.testing.scale_check import NAME as SCALE
from precision_lab.testing.scale_check import RULES, ScaleCheck, is_scale

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
    mode: str | None = None,
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
        Any format; or ``float8_e8m0fnu``, the scales of MX formats, which have neither zero nor sign: the report names
        the rule by which they are rounded and says what becomes of all that they do not have.
    mode : str or None
        How it should round, see `round_to`; None is ``ties_to_even``, and any one rule for E8M0. With ``stochastic``
        every result has to be one of the two neighbours of its input, the nearer the more often: inputs between two
        are cast many times, in arrays with many copies of each. A right cast fails with a probability below 1e-9. Few
        random bits are right within them; the notes say how many.
    subnormals, saturate : bool
        Whether subnormal results should be kept and overflow be clamped, as in `round_to`.
    nan : str
        What NaN should become: ``any`` NaN; a ``quiet`` one; one with the sign and the leading bits of the ``payload``,
        made quiet, as processors do it; ``ignore``: anything. A target without NaN may do as it likes.
    exhaustive : bool or None
        True tries every input: all 2^32 of fp32. None and False try every input of sources of up to 20 bits. Nothing
        is exhaustive of a ``stochastic`` cast.
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
        Unknown format, mode or rule for NaN; more inputs than can be tried; ``isolate='spawn'`` of a
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
    if not callable(cast):
        raise ValueError(f"cast must be a function of an array, got {type(cast).__name__}")
    if not time_limit > 0:
        raise ValueError(f"time_limit must be a number of seconds above 0, got {time_limit!r}")
    if is_scale(target):
        rule = _checked_rule(mode, exhaustive, subnormals, saturate, nan)
        of = get_source(source)
        with closing(isolation(cast, of.dtype, isolate)) as caller:
            return ScaleCheck(of, rule, caller, time_limit, progress).run(seed)
    spec = _checked_spec(source, target, mode or "ties_to_even", subnormals, saturate, nan)
    if exhaustive and spec.source.bits > 32:
        raise ValueError(f"exhaustive tries every input, and {spec.source.name} has 2^{spec.source.bits}; use fp32")
    check = ChanceCheck if spec.mode == RoundingMode.STOCHASTIC.value else Check
    with closing(isolation(cast, spec.source.dtype, isolate)) as caller:
        return check(spec, caller, time_limit, progress).run(bool(exhaustive), seed)


def _checked_rule(mode: str | None, exhaustive: bool | None, subnormals: bool, saturate: bool, nan: str) -> str | None:
    """Return the rule by which scales should be rounded, None for any."""
    if exhaustive or not subnormals or saturate or nan != "any":
        raise ValueError(
            f"{SCALE} takes no exhaustive, subnormals, saturate or nan: the report says what it makes of each"
        )
    rules = [rule.mode for rule in RULES]
    rounding = mode if mode is None or mode in rules else get_mode(mode).value
    if rounding is not None and rounding not in rules:
        raise ValueError(f"mode must be None or one of {', '.join(rules)} for {SCALE}, got {mode!r}")
    return rounding


def _checked_spec(
    source: FormatLike, target: FormatLike, mode: str, subnormals: bool, saturate: bool, nan: str
) -> Spec:
    rounding = get_mode(mode)
    if nan not in NAN_RULES:
        raise ValueError(f"nan must be one of {', '.join(NAN_RULES)}, got {nan!r}")
    return Spec(get_source(source), get_format(target), rounding.value, subnormals, saturate, nan)
