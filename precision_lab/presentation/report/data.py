"""What the scripts of a page are given: formats and histograms as plain data, small and still exact.

An `ExponentHistogram` counts 27 classes a binade, so that every format can be asked about. A page knows its formats
beforehand: classes between which none of them has a threshold are added up, and what is left answers all of them, at
every power-of-two loss scale, with the same counts.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from precision_lab.analysis.binades import CLASSES
from precision_lab.analysis.histogram import ExponentHistogram, place_of
from precision_lab.analysis.quantization import QuantizationReport
from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.support.plain import number


def menu(first: Iterable[FloatFormat] = ()) -> tuple[FloatFormat, ...]:
    """Return the formats of a page's menu: those that were asked for, and then all registered ones."""
    return tuple(dict.fromkeys([*first, *FORMATS.values()]))


def _places(fmt: FloatFormat) -> dict[str, tuple[int, int] | None]:
    """Return where the three thresholds cut a histogram; without mantissa bits there are no subnormals."""
    return {
        "flush": place_of(fmt.flush_threshold, inclusive=True),
        "normal": place_of(fmt.subnormal_threshold, inclusive=False) if fmt.mantissa_bits else None,
        "overflow": place_of(fmt.overflow_threshold, inclusive=not fmt.overflow_inclusive),
    }


def cuts_of(formats: Iterable[FloatFormat]) -> list[int]:
    """Return the classes at which a threshold of one of the formats lies."""
    return sorted({place[1] for fmt in formats for place in _places(fmt).values() if place and place[1]})


def format_data(fmt: FloatFormat, cuts: Sequence[int]) -> dict[str, Any]:
    """Return a format: its fields, and for each threshold the binade and how many cells of that binade lie below."""
    places = {name: place and (place[0], bisect(cuts, place[1])) for name, place in _places(fmt).items()}
    return {
        "name": fmt.name,
        "bits": fmt.bits,
        "exponentBits": fmt.exponent_bits,
        "mantissaBits": fmt.mantissa_bits,
        "bias": fmt.bias,
        "specials": fmt.specials,
        "places": places,
        "limits": {
            "flush": fmt.flush_threshold,
            "normal": fmt.smallest_normal,
            "max": fmt.max,
        },
    }


def histogram_data(histogram: ExponentHistogram, cuts: Sequence[int]) -> list[Any]:
    """Return zero, nonfinite, smallest and largest magnitude, first exponent, and a row of cells for each binade."""
    starts = [0, *(cut for cut in cuts if cut < CLASSES)]
    cells = np.add.reduceat(histogram.table, starts, axis=1) if len(histogram.table) else histogram.table
    return [
        histogram.zero,
        histogram.nonfinite,
        histogram.min_nonzero,
        histogram.max_abs,
        histogram.first_exponent,
        [np.trim_zeros(row, "b").tolist() for row in cells],
    ]


def precision_data(report: QuantizationReport) -> list[float | str | None]:
    """Return the SQNR in dB ("inf" where nothing is changed, None without a signal) and the share that is changed."""
    decibels = report.sqnr_db
    return [None if math.isnan(decibels) else number(decibels), report.changed_of_finite]
