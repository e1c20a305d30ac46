"""JSON as text, piece by piece, so that a long result need not be there as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

_LONG = 1 << 12  # entries of a list that are written at a time
_SCALARS = {str, int, float, bool, type(None)}
_NESTED = (dict, list, tuple)
_dumps = json.JSONEncoder(allow_nan=False).encode


def digest_of(data: Any) -> str:
    """Return a digest of plain JSON, by which something that was kept is known for what was written."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def json_pieces(data: Any, indent: int = 1, depth: int = 0) -> Iterator[str]:
    """Yield the text of ``json.dumps(data, indent=indent, allow_nan=False)``, and write iterators as arrays.

    What is innermost is written by the compiled encoder, which json.dumps leaves out where it indents; of a long list
    of scalars some thousand entries at a time. Iterators may be values of dictionaries, or of dictionaries in them.
    """
    inner, outer = _breaks(indent, depth)
    if isinstance(data, dict) and data:
        between = "{"
        for key, value in data.items():
            yield f"{between}{inner}{_key(key)}"
            yield from json_pieces(value, indent, depth + 1)
            between = ","
        yield outer + "}"
    elif isinstance(data, Iterator):
        between = "["
        for value in data:
            if isinstance(value, dict) and any(map(_is_long, value.values())):
                yield between + inner
                yield from json_pieces(value, indent, depth + 1)
            else:
                yield f"{between}{inner}{_text(value, indent, depth + 1)}"
            between = ","
        yield outer + "]" if between == "," else "[]"
    elif _is_long(data) and _SCALARS.issuperset(map(type, data)):
        between = "["
        for start in range(0, len(data), _LONG):
            yield f"{between}{inner}{_flat(inner)(data[start : start + _LONG])[1:-1]}"
            between = ","
        yield outer + "]"
    else:
        yield _text(data, indent, depth)


def _text(data: Any, indent: int, depth: int) -> str:
    if not isinstance(data, _NESTED) or not data:
        return _dumps(data)
    inner, outer = _breaks(indent, depth)
    named = isinstance(data, dict)
    if not named and all(map(_is_flat, data)):  # all at once: there are no line breaks within text
        deeper, _ = _breaks(indent, depth + 1)
        text = _flat(deeper)(data)[2:-2].replace(f"}},{deeper}{{", f"{inner}}},{inner}{{{deeper}")
        return f"[{inner}{{{deeper}{text}{inner}}}{outer}]"
    if any(isinstance(value, _NESTED) for value in (data.values() if isinstance(data, dict) else data)):
        parts = (
            [_key(key) + _text(value, indent, depth + 1) for key, value in data.items()]
            if isinstance(data, dict)
            else [_text(value, indent, depth + 1) for value in data]
        )
        text = f",{inner}".join(parts)
    else:
        text = _flat(inner)(data)[1:-1]
    return f"{'{' if named else '['}{inner}{text}{outer}{'}' if named else ']'}"


def _is_long(data: Any) -> bool:
    return isinstance(data, list) and len(data) > _LONG


def _is_flat(data: Any) -> bool:
    return type(data) is dict and bool(data) and _SCALARS.issuperset(map(type, data.values()))


@cache
def _breaks(indent: int, depth: int) -> tuple[str, str]:
    return "\n" + " " * indent * (depth + 1), "\n" + " " * indent * depth


@cache
def _flat(inner: str) -> Any:
    return json.JSONEncoder(allow_nan=False, separators=("," + inner, ": ")).encode


@lru_cache(maxsize=256, typed=True)
def _key(key: Any) -> str:
    return _dumps({key: 0})[1:-2]
