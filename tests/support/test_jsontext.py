"""Text of JSON: the bytes of json.dumps, whatever is in it, and never the whole of it at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab.support.jsontext import json_pieces

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_JSON = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
)


@given(_JSON, st.integers(1, 4))
def test_the_text_is_that_of_json_dumps(data: Any, indent: int) -> None:
    assert "".join(json_pieces(data, indent)) == json.dumps(data, indent=indent, allow_nan=False)


@pytest.mark.parametrize("indent", [1, 3])
def test_text_that_looks_like_what_is_between_entries(indent: int) -> None:
    hostile = ["},\n  {", "},{", "}", "{", ",\n", '"}, {"', "\\"]
    data = {"rows": [{text: text, "n": i} for i, text in enumerate(hostile)], "one": [{"a": 1}], "none": [{}, {"a": 1}]}
    assert "".join(json_pieces(data, indent)) == json.dumps(data, indent=indent)


def test_iterators_are_written_an_entry_at_a_time() -> None:
    asked = []

    def entries() -> Iterator[dict[str, Any]]:
        for i in range(3):
            asked.append(i)
            yield {"i": i, "shape": [i]}

    pieces = json_pieces({"a": {"b": entries()}, "c": iter(())})
    text = ""
    while '"i": 0' not in text:
        text += next(pieces)
    assert asked == [0]
    whole = {"a": {"b": [{"i": i, "shape": [i]} for i in range(3)]}, "c": []}
    assert text + "".join(pieces) == json.dumps(whole, indent=1)


@pytest.mark.parametrize("count", [4096, 4097, 8192, 8193, 10_000])
def test_a_long_list_is_written_in_parts(count: int) -> None:
    """Also in an entry of an iterator; of other things than scalars it stays whole."""
    data = [[None, True, 0.1, -7, "a, b\n"][i % 5] for i in range(count)]
    for whole in (data, {"a": data}, {"a": {"b": data, "c": []}}, {"a": [data]}, {"a": [[i] for i in range(count)]}):
        assert "".join(json_pieces(whole)) == json.dumps(whole, indent=1)
    entries = [{"n": i, "steps": data, "less": data[:3]} for i in range(2)]
    pieces = list(json_pieces(iter(entries)))
    assert "".join(pieces) == json.dumps(entries, indent=1)
    if count > 8000:
        assert max(map(len, pieces)) < 4096 * 16 < len("".join(pieces)) / 2


@pytest.mark.parametrize(
    "wrong", [float("nan"), {"a": float("inf")}, [[float("-inf")]], {"a": object()}, [*range(9000), float("nan")]]
)
def test_what_is_no_json_is_refused(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        "".join(json_pieces(wrong))
