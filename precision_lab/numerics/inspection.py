"""Look at one number in one format: its bits, what is stored, the error, the neighbours.

One number is rounded by `reference.py`: compiled loops would take a second to load, and give the same bits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from precision_lab.numerics import reference
from precision_lab.numerics.formats import FloatFormat, FormatLike, get_format
from precision_lab.numerics.inputs import is_number
from precision_lab.numerics.reference import floor_log2
from precision_lab.support.arguments import is_integer
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.shown import Shown


@dataclass(frozen=True)
class Inspection(Shown):
    """One number as a format stores it.

    Attributes
    ----------
    format : FloatFormat
        The format.
    sign, exponent, significand : str
        The fields of the code as binary digits; the significand without the implicit bit.
    code : int
        The code.
    stored : float
        The value that the code means (ties_to_even).
    kind : str
        ``zero``, ``subnormal``, ``normal``, ``infinity`` or ``nan``.
    lost : str
        What happened to the number: ``exact``, ``rounded``, ``flushed``, ``overflowed``, or ``nan``.
    error : float
        stored - number, correctly rounded to a double; NaN where one of them is not finite.
    relative_error : float
        error / number; NaN for zero and where the error is.
    below, above : float
        Neighbours of the stored value in the format; NaN where there is none.
    ulp : float
        Spacing of the format at the stored value.

    """

    format: FloatFormat
    sign: str
    exponent: str
    significand: str
    code: int
    stored: float
    kind: str
    lost: str
    error: float
    relative_error: float
    below: float
    above: float
    ulp: float


def parse_number(text: str) -> Fraction | float:
    """Read a number exactly.

    Accepted are decimals (``1e-7``), fractions (``1/3``), powers of two with an optional factor (``2^-25``,
    ``1.5*2^-14``, ``2**-24``), hexadecimal floats (``0x1.8p-3``) and ``inf``, ``-inf``, ``nan``.

    Returns
    -------
    Fraction or float
        A Fraction; for what a Fraction cannot hold (infinities, NaN, -0.0) a float.

    Raises
    ------
    ValueError
        It is none of these, or an exponent is beyond 10,000.

    """
    cleaned = text.strip().lower().replace("_", "").replace("**", "^")
    problem = ValueError(
        f"cannot read {text!r} as a number; write it like 1e-7, 1/3, 2^-25, 1.5*2^-14, 0x1.8p-3, inf or nan"
    )
    sign, magnitude = (cleaned[0], cleaned[1:]) if cleaned[:1] in ("+", "-") else ("+", cleaned)
    if not re.match(r"[\d.]|inf|nan", magnitude):  # a second sign, for one
        raise problem
    if magnitude in ("inf", "infinity", "nan"):
        return math.copysign(float(magnitude), -1.0 if sign == "-" else 1.0)
    marks = "p" if magnitude.startswith("0x") else "e^"
    exponents = re.findall(rf"[{marks}][+-]?0*(\d*)", magnitude)
    if any(len(digits) > 5 or int(digits or 0) > 10_000 for digits in exponents):  # the digits would fill the memory
        raise problem
    try:
        if match := re.fullmatch(r"(?:(.+)\*)?2\^([+-]?\d+)", magnitude):
            value = Fraction(match[1] or 1) * Fraction(2) ** int(match[2])
        elif match := re.fullmatch(r"0x([\da-f]*)\.?([\da-f]*)(?:p([+-]?\d+))?", magnitude):
            value = Fraction(int(match[1] + match[2], 16)) * Fraction(2) ** (int(match[3] or 0) - 4 * len(match[2]))
        else:
            value = Fraction(magnitude)
    except (ValueError, ZeroDivisionError):
        raise problem from None
    if sign == "-":
        return -value if value else -0.0
    return value


def to_double_by_odd(value: Fraction) -> float:
    """Round to a double, to odd: rounding that once more into a format rounds the value itself.

    The double has at least two bits more than any format, which is what the theorem asks for (Boldo and Melquiond
    2008). Beyond the range of the double, which is far beyond that of the formats, it is the largest or smallest one.
    """
    negative, magnitude = value < 0, abs(value)
    if magnitude == 0:
        return 0.0
    exponent = max(floor_log2(magnitude), -1022)
    spacing_here = Fraction(2) ** (exponent - 52)
    steps = math.floor(magnitude / spacing_here)
    if steps * spacing_here != magnitude:
        steps |= 1
    result = math.ldexp(steps, exponent - 52) if exponent <= 1023 else math.ldexp(2**53 - 1, 971)
    return -result if negative else result


def _to_float(value: Fraction) -> float:
    """Return the nearest double, beyond their range an infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _exactly(number: object) -> Fraction | float:
    """Return a number as a Fraction, but an infinity, NaN or -0.0, which a Fraction cannot hold, as a float."""
    if isinstance(number, Fraction):
        return number
    if isinstance(number, np.ndarray) and number.ndim == 0:
        number = number[()]
    if is_integer(number):
        return Fraction(int(number))
    if not is_number(number):
        raise ValueError(f"number must be a Fraction, an integer or a float, got {number!r}; parse_number reads text")
    if isinstance(number, np.longdouble) and np.isfinite(number):  # more digits than a float has
        return Fraction(*number.as_integer_ratio()) or float(number)
    return float(number)


def _above(value: float, fmt: FloatFormat) -> float:
    """Return the smallest value of the format strictly above, NaN where there is none: `rounding.neighbours`."""
    if math.isnan(value) or value == math.inf:
        return math.nan
    next_up = math.nextafter(value, math.inf)  # every value of the format is a double
    if next_up > fmt.max:
        return math.inf if fmt.has_infinity else math.nan
    return reference.round_to(next_up, fmt, "toward_positive") + 0.0  # no -0.0


def _spacing(value: float, fmt: FloatFormat) -> float:
    """Return the distance between the format's values around one of them: `rounding.spacing`."""
    if not math.isfinite(value):
        return math.nan
    exponent = math.frexp(value)[1] - 1 if value else fmt.emin
    return math.ldexp(1.0, max(exponent, fmt.emin) - fmt.mantissa_bits)


def inspect_number(number: Fraction | float | int | np.integer[Any] | np.floating[Any], fmt: FormatLike) -> Inspection:
    """Round one number (ties_to_even) into a format and take the result apart.

    Parameters
    ----------
    number : Fraction, int, float, NumPy integer or NumPy float
        Taken exactly.
    fmt : format spec
        See `get_format`.

    Raises
    ------
    ValueError
        Unknown format; `number` is none of these.

    Examples
    --------
    >>> seen = inspect_number(1e-8, "fp16")
    >>> seen.stored, seen.lost
    (0.0, 'flushed')

    """
    fmt = get_format(fmt)
    exact = _exactly(number)
    require_gradual_underflow()
    carried = to_double_by_odd(exact) if isinstance(exact, Fraction) else exact
    stored = reference.round_to(exact, fmt)
    code = reference.encode(stored, fmt)
    digits = f"{code:0{fmt.bits}b}"
    error = relative = math.nan
    difference = Fraction(0)
    if math.isfinite(carried) and math.isfinite(stored):
        difference = Fraction(stored) - Fraction(exact)
        error = _to_float(difference)
        relative = _to_float(difference / Fraction(exact)) if exact else math.nan
    if math.isnan(stored):
        kind = "nan"
    elif math.isinf(stored):
        kind = "infinity"
    else:
        kind = "zero" if stored == 0 else "subnormal" if abs(stored) < fmt.smallest_normal else "normal"
    if math.isnan(carried):
        lost = "nan"
    elif math.isfinite(carried) and (
        abs(carried) > fmt.overflow_threshold or (abs(carried) == fmt.overflow_threshold and fmt.overflow_inclusive)
    ):
        lost = "overflowed"
    elif math.isinf(carried):
        lost = "exact" if stored == carried else "overflowed"
    else:
        lost = "flushed" if stored == 0 != carried else "exact" if difference == 0 else "rounded"
    return Inspection(
        format=fmt,
        sign=digits[0],
        exponent=digits[1 : 1 + fmt.exponent_bits],
        significand=digits[1 + fmt.exponent_bits :],
        code=code,
        stored=stored,
        kind=kind,
        lost=lost,
        error=error,
        relative_error=relative,
        below=0.0 - _above(-stored, fmt),
        above=_above(stored, fmt),
        ulp=_spacing(stored, fmt),
    )
