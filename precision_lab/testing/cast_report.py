"""What a check of a cast found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from precision_lab.support.plain import Layout, PlainData

_NO_LIMIT = "the cast ran in this process, without a time limit; a crash would have ended it"


@dataclass(frozen=True)
class Example:
    """One input that goes wrong.

    Attributes
    ----------
    pattern : str
        The input's bits in hexadecimal.
    value : str
        Its exact value, an integer times a power of two.
    expected, got : str
        Code and value.
    place : str
        Where it stood, if that matters.

    """

    pattern: str
    value: str
    expected: str
    got: str
    place: str = ""

    def __str__(self) -> str:
        at = f" ({self.place})" if self.place else ""
        return f"{self.pattern} = {self.value}: expected {self.expected}, got {self.got}{at}"


@dataclass(frozen=True)
class Fault:
    """One mistake of a cast.

    Attributes
    ----------
    name : str
        In few words: ``truncates``, ``rounds twice, via fp32``, ``flushes subnormal results`` ...
    text : str
        What that means, and where it shows.
    count : int
        Wrong results that it explains, of those that were examined (`CastReport.examined`).
    examples : tuple of Example
        The three simplest inputs.

    """

    name: str
    text: str
    count: int
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class CastReport(PlainData):
    """What a check of a cast found.

    Attributes
    ----------
    source, target, mode : str
        What was checked.
    subnormals, saturate : bool
        As in `precision_lab.round_to`.
    nan : str
        What was asked of NaN.
    returns : str
        What the cast returns: an array of the target's dtype, its codes, or values.
    checked, wrong : int
        Results compared (an input may be tried in several places), and how many of them are wrong.
    examined : int
        Wrong results that were kept to be explained: all of them, or a sample of some 65,000.
    exhaustive : bool
        Whether every input of the source was tried.
    faults : tuple of Fault
        The mistakes, those first that explain most.
    unexplained : int
        Examined results that no named mistake explains; they are among the faults, by what they look like.
    notes : tuple of str
        What is no fault but worth knowing.
    isolated : bool
        Whether the cast ran in a process of its own, with a time limit.

    """

    layout: ClassVar = Layout("cast report", derived=("ok",))

    source: str
    target: str
    mode: str
    subnormals: bool
    saturate: bool
    nan: str
    returns: str = ""
    checked: int = 0
    wrong: int = 0
    examined: int = 0
    exhaustive: bool = False
    faults: tuple[Fault, ...] = ()
    unexplained: int = 0
    notes: tuple[str, ...] = ()
    isolated: bool = True

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def __str__(self) -> str:
        switches = [self.mode, *["flush to zero"] * (not self.subnormals), *["saturating"] * self.saturate]
        lines = [f"cast {self.source} -> {self.target}, {', '.join(switches)}: {self._verdict()}"]
        for i, fault in enumerate(self.faults, 1):
            count = f" [{fault.count:,}]" if fault.count else ""
            lines += [f"{i}. {fault.name}: {fault.text}{count}", *(f"     {example}" for example in fault.examples)]
        if self.examined < self.wrong:
            lines.append(f"counts in brackets are of {self.examined:,} wrong results that were examined")
        lines += [f"note: {note}" for note in (*self.notes, *[_NO_LIMIT] * (not self.isolated))]
        return "\n".join(lines)

    def _verdict(self) -> str:
        what = "all inputs" if self.exhaustive else "hard and random inputs"
        compared = f"{self.checked:,} results compared ({what}{', ' if self.returns else ''}{self.returns})"
        if self.ok:
            return f"nothing wrong; {compared}"
        kinds = f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)}"
        return f"{kinds}; {self.wrong:,} wrong of {compared}"


def exact_text(value: float) -> str:
    """Write a double exactly and short: as a small integer, or as an integer times a power of two.

    >>> exact_text(3.0), exact_text(2.0**-24), exact_text(1 + 2.0**-8), exact_text(-0.0)
    ('3', '2^-24', '257*2^-8', '-0.0')
    """
    if not math.isfinite(value) or value == 0:
        return str(value)
    sign = "-" if value < 0 else ""
    exact = abs(Fraction(value))
    odd, power = exact.numerator, -(exact.denominator.bit_length() - 1)
    if power == 0 and odd < 1000:
        return f"{sign}{odd}"
    while odd % 2 == 0:
        odd, power = odd // 2, power + 1
    if power == 0:
        return f"{sign}{odd}"
    return f"{sign}{f'{odd}*' if odd > 1 else ''}2^{power}"


def short_text(value: float) -> str:
    """Write a double exactly: a power of two as that, others in decimal where six digits are enough.

    >>> short_text(10000.0), short_text(2.0**-23), short_text(448.0), short_text(1 + 2.0**-10)
    ('10000', '2^-23', '448', '1025*2^-10')
    """
    exact = exact_text(value)
    return exact if exact.lstrip("-").startswith("2^") or float(f"{value:g}") != value else f"{value:g}"
