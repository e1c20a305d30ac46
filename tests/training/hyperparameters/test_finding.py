"""How bad a change is."""

from __future__ import annotations

import doctest
import math

import pytest

from precision_lab.training.hyperparameters import arithmetic, audit, finding, rows
from precision_lab.training.hyperparameters.finding import Severity, severity_of


@pytest.mark.parametrize(
    ("error", "severity"),
    [
        (0.0, Severity.OK),
        (0.01, Severity.OK),
        (-0.01, Severity.OK),
        (math.nextafter(0.01, 1), Severity.NOTE),
        (-0.1, Severity.NOTE),
        (math.nextafter(0.1, 1), Severity.WARNING),
        (-0.89, Severity.WARNING),
        (-0.9, Severity.FATAL),
        (8.99, Severity.WARNING),
        (9.0, Severity.FATAL),
        (-1.0, Severity.FATAL),
        (-3.0, Severity.FATAL),
        (math.inf, Severity.FATAL),
        (-math.inf, Severity.FATAL),
        (math.nan, Severity.FATAL),
    ],
)
def test_severity(error: float, severity: Severity) -> None:
    assert severity_of(error) is severity


def test_the_docstrings_tell_the_truth() -> None:
    results = [doctest.testmod(module) for module in (arithmetic, audit, finding, rows)]
    assert sum(result.attempted for result in results) >= 5
    assert sum(result.failed for result in results) == 0
