"""Plain data: what is written is read back, to the bit; what is wrong is refused at its place."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, field, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import precision_lab
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.support.plain import (
    COUNTED,
    HEXADECIMAL,
    VALUES,
    Layout,
    PlainData,
    PlainDataError,
    PlainReport,
    from_plain,
    header,
    number,
    register,
    to_plain,
)


class Colour(StrEnum):
    RED = "red"


class Point(NamedTuple):
    step: int
    value: float


@dataclass(frozen=True)
class Part:
    loss: float
    limit: float | None = None


@dataclass(frozen=True, eq=False)
class Whole(PlainData):
    layout: ClassVar = Layout(
        "thing", version=3, derived=("twice",), omitted=("cache",), names={"big": "large", "twice": "double"}
    )

    big: Annotated[int, HEXADECIMAL]
    series: NDArray[np.float64]
    mask: Annotated[NDArray[np.bool_], COUNTED]
    pair: tuple[int, str]
    values: tuple[float, ...]
    steps: range
    colour: Colour
    points: tuple[Point, ...]
    parts: dict[int, tuple[Part, ...]]
    named: dict[str, dict[str, bool]]
    format: FloatFormat
    best: Part | None
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def twice(self) -> list[float]:
        return [2 * x for x in self.values]


WHOLE = Whole(
    3 << 900,
    np.array([1.5, math.inf, math.nan]),
    np.array([True, True, False]),
    (1, "a"),
    (0.1, -math.inf, -0.0),
    range(2, 5),
    Colour.RED,
    (Point(1, math.nan),),
    {-3: (Part(1.0), Part(2.0, 3.0))},
    {"a": {"b": True}},
    get_format("bf16"),
    None,
    {"not": "written"},
)
WRITTEN = {
    "kind": "precision_lab thing",
    "version": 3,
    "large": "0x3p900",
    "series": [1.5, "inf", "nan"],
    "mask": [True, 2, False, 1],
    "pair": [1, "a"],
    "values": [0.1, "-inf", -0.0],
    "steps": [2, 5],
    "colour": "red",
    "points": [[1, "nan"]],
    "parts": {"-3": [{"loss": 1.0, "limit": None}, {"loss": 2.0, "limit": 3.0}]},
    "named": {"a": {"b": True}},
    "format": "bf16",
    "best": None,
    "double": [0.2, "-inf", -0.0],
}


def test_every_kind_of_field_is_written_and_read() -> None:
    data = WHOLE.to_dict()
    assert data == WRITTEN
    assert json.loads(json.dumps(data, allow_nan=False)) == data  # nothing that JSON changes
    again = Whole.from_dict(data)
    assert again.to_dict() == data
    assert (again.big, again.pair, again.steps, again.colour) == (WHOLE.big, WHOLE.pair, WHOLE.steps, Colour.RED)
    assert math.copysign(1, again.values[2]) == -1
    assert again.series.dtype == np.float64
    assert again.mask.tolist() == [True, True, False]
    assert isinstance(again.points[0], Point)
    assert again.format is WHOLE.format
    assert again.cache == {}
    assert from_plain(Whole, WRITTEN | {"best": {"loss": 1, "limit": None}}).best == Part(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "precision_lab other"}, "Whole: its kind must be 'precision_lab thing', got 'precision_lab other'"),
        ({"version": 2}, "Whole: its version must be 3, got 2"),
        ({"version": "3"}, "Whole: its version must be 3, got '3'"),
        ({"colours": 1}, "Whole: nothing here is called 'colours'"),
        ({"cache": {}}, "Whole: nothing here is called 'cache'"),
        ({"large": 3}, "Whole.big: expected text, got 3"),
        ({"large": "3"}, "Whole.big: expected hexadecimal text such as 0x1p3, got '3'"),
        ({"large": "0x1p99999"}, "Whole.big: expected hexadecimal text"),
        ({"series": [1, "x"]}, "Whole.series[1]: expected a number, got 'x'"),
        ({"series": [None]}, "Whole.series[0]: expected a number, got None"),
        ({"series": [10**400]}, "Whole.series[0]: expected a number, got 1000"),
        ({"series": 1.0}, "Whole.series: expected a list, got 1.0"),
        ({"mask": [1, 2]}, "Whole.mask[0]: expected true or false, got 1"),
        ({"mask": [True]}, "Whole.mask: expected values, each followed by how many there are"),
        ({"mask": [True, -1, False, 2]}, "Whole.mask: expected counts of 1 and more that come to at most"),
        ({"mask": [True, VALUES + 1]}, "Whole.mask: expected counts"),
        ({"mask": [True, 10**400]}, "Whole.mask: expected an integer of 64 bits"),
        ({"pair": [1]}, "Whole.pair: expected a list of 2, got [1]"),
        ({"pair": [True, "a"]}, "Whole.pair[0]: expected an integer of 64 bits, got True"),
        ({"pair": [1.0, "a"]}, "Whole.pair[0]: expected an integer of 64 bits, got 1.0"),
        ({"values": "ab"}, "Whole.values: expected a list, got 'ab'"),
        ({"steps": [1]}, "Whole.steps: expected a list of 2, got [1]"),
        ({"colour": "blue"}, "Whole.colour: expected one of red; got 'blue'"),
        ({"points": [[1, 2], [1]]}, "Whole.points[1]: expected a list of 2, got [1]"),
        ({"parts": {"x": []}}, "Whole.parts: expected an integer as text, got 'x'"),
        ({"parts": {"03": []}}, "Whole.parts: expected an integer as text, got '03'"),
        ({"parts": {"3": [{"loss": 1, "limit": 0}, {"loss": "q", "limit": 0}]}}, "Whole.parts['3'][1].loss: expected"),
        ({"parts": {"3": [{"loss": 1}]}}, "Whole.parts['3'][0]: it has no 'limit'"),
        ({"parts": []}, "Whole.parts: an object is needed, got []"),
        ({"named": {"a": {"b": 1}}}, "Whole.named['a']['b']: expected true or false, got 1"),
        ({"format": "fp17"}, "Whole.format: unknown format 'fp17'"),
        ({"format": 3}, "Whole.format: "),
        ({"best": 3}, "Whole.best: an object is needed, got 3"),
        ({"colour": "\x1b[2J"}, r"got '\x1b[2J'"),
    ],
)
def test_mistakes_are_named_with_their_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlainDataError) as caught:
        Whole.from_dict(WRITTEN | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "double"])
def test_nothing_may_be_missing(name: str) -> None:
    with pytest.raises(PlainDataError, match=r"it has no|its kind must be|its version must be"):
        Whole.from_dict({key: value for key, value in WRITTEN.items() if key != name})
    # what follows from the rest is for whoever reads the file
    assert Whole.from_dict({k: v for k, v in WRITTEN.items() if k != "double"}).to_dict() == WRITTEN


@pytest.mark.parametrize("data", [None, 3, "text", [], [WRITTEN]])
def test_something_else_is_refused(data: Any) -> None:
    with pytest.raises(PlainDataError, match="Whole: an object is needed"):
        Whole.from_dict(data)


@given(st.lists(st.floats(allow_nan=False) | st.just(math.nan), max_size=40))
def test_floats_keep_their_bits(values: list[float]) -> None:
    data = json.loads(json.dumps(to_plain(tuple(values)), allow_nan=False))
    again = np.array(from_plain(tuple[float, ...], data))
    assert again.tobytes() == np.array(values).tobytes()  # the one NaN that there is in JSON is the positive quiet one


@given(st.lists(st.sampled_from([0.0, 1.0, math.inf, math.nan, 65536.0]), max_size=40))
def test_counted_values_are_those_that_were_counted(values: list[float]) -> None:
    kind: Any = Annotated[NDArray[np.float64], COUNTED]
    data = json.loads(json.dumps(_written_as(np.array(values, np.float64), kind), allow_nan=False))
    assert len(data) % 2 == 0
    assert all(a != b for a, b in zip(data[::2], data[2::2], strict=False))
    assert np.array_equal(from_plain(kind, data), np.array(values), equal_nan=True)


@given(st.integers(-(2**2000), 2**2000))
def test_integers_of_any_size(value: int) -> None:
    kind: Any = Annotated[int, HEXADECIMAL]
    text = _written_as(value, kind)
    mantissa, zeros = text.split("p")
    assert int(mantissa, 16) * 2 ** int(zeros) == value
    assert from_plain(kind, text) == value


def _written_as(value: Any, kind: Any) -> Any:
    """Write a value as a field of that annotation would be."""

    @dataclass
    class Holder:
        value: kind

    Holder.__annotations__["value"] = kind
    return to_plain(Holder(value))["value"]


def test_numbers_and_headers() -> None:
    assert [number(x) for x in (1, 0.5, math.inf, -math.inf, math.nan)] == [1, 0.5, "inf", "-inf", "nan"]
    assert header("scan") == {"kind": "precision_lab scan", "version": 1}


def test_a_class_of_its_own_form() -> None:
    class Celsius:
        def __init__(self, degrees: float) -> None:
            self.degrees = degrees

    def read(data: Any) -> Celsius:
        if not str(data).endswith(" C"):
            raise ValueError("no temperature")
        return Celsius(float(data[:-2]))

    register(Celsius, lambda value: f"{value.degrees} C", read)
    assert to_plain((Celsius(20.5),)) == ["20.5 C"]
    assert from_plain(Celsius, "20.5 C").degrees == 20.5
    with pytest.raises(PlainDataError, match=r"Celsius: no temperature"):
        from_plain(Celsius, "20.5 F")


def test_a_report_is_its_parts_with_lists() -> None:
    class Report(PlainReport):
        def parts(self) -> dict[str, Any]:
            return header("x") | {"rows": iter([1, 2])}

    assert Report().to_dict() == {"kind": "precision_lab x", "version": 1, "rows": [1, 2]}
    with pytest.raises(NotImplementedError):
        PlainReport().to_dict()


# ---- the whole package ----


def test_the_converter_is_loaded_with_the_first_json() -> None:
    program = """
        import sys
        import precision_lab
        histogram = precision_lab.ExponentHistogram.of([1.0])
        assert "cattrs" not in sys.modules
        histogram.to_dict()
        assert "cattrs" in sys.modules
    """
    subprocess.run([sys.executable, "-c", "if True:" + program], check=True, timeout=60)


def test_plain_data_is_written_in_one_place() -> None:
    sources = Path(precision_lab.__file__).parent.rglob("*.py")
    assert [p.name for p in sources if "def from_dict" in p.read_text(encoding="utf-8")] == ["plain.py"]


def _below(kind: type[PlainData]) -> list[type[PlainData]]:
    return [deeper for below in kind.__subclasses__() for deeper in (below, *_below(below))]


def test_what_is_written_by_itself_has_a_kind_of_its_own() -> None:
    assert all(hasattr(precision_lab, name) for name in precision_lab.__all__)  # loads them
    for name in EXPERIMENTS:
        assert EXPERIMENTS[name].result.layout.kind == f"experiment {name}"
    kinds = [kind.layout.kind for kind in _below(PlainData) if kind.__module__.startswith("precision_lab.")]
    named = [kind for kind in kinds if kind]
    assert len(named) == len(set(named)) >= 10
    assert all(is_dataclass(kind) for kind in _below(PlainData) if kind.__module__.startswith("precision_lab."))
