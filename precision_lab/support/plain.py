"""Results and configurations as JSON types, and back, by one converter.

A dataclass becomes an object of its fields, a tuple or an array a list, an enumeration its value, a range its two ends.
An infinity or NaN is the text ``"inf"``, ``"-inf"`` or ``"nan"``: JSON has no number for it, and null would say neither
which nor why. What is read is held against the annotations of the fields: an integer is no text, no bool and no float,
nothing is missing and nothing is unknown; the one error names the place, as in ``runs[3].loss``.

A class of its own form registers a pair of functions (`register`); a dataclass says with a `Layout` what else is to be
written. The converter itself is cattrs', which is loaded with the first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache, partial
from itertools import groupby, repeat
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Self,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from precision_lab.support.text import shown

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")

VALUES = 10_000_000
"""The most that `COUNTED` may stand for: a few bytes of JSON must not fill the memory."""

HEXADECIMAL = "hexadecimal"
"""``Annotated[int, HEXADECIMAL]``: an integer of any size, as text without the zeros at its end: 0x1p3 is 8."""

COUNTED = "counted"
"""``Annotated[array or tuple, COUNTED]``: equal neighbours once, each followed by how many there are."""


class PlainDataError(ValueError):
    """What was read is not what a class writes."""


def header(kind: str, version: int = 1) -> dict[str, Any]:
    """Return what the object in every file begins with: what it is, and in which version of its form."""
    return {"kind": f"precision_lab {kind}", "version": version}


@dataclass(frozen=True)
class Layout:
    """What a dataclass writes besides its fields, and instead.

    Attributes
    ----------
    kind : str
        The name of what stands in a file by itself; see `header`, which is written first and required when read.
    version : int
        Of the form; one more whenever what was written before cannot be read.
    derived : tuple of str
        Properties that are written for whoever reads the file; they are not read back.
    omitted : tuple of str
        Fields that are not written; they have a default.
    names : dict of str to str
        Other names for fields or properties.
    partial : bool
        Whether fields that have a default may be missing: people write configurations by hand.

    """

    kind: str = ""
    version: int = 1
    derived: tuple[str, ...] = ()
    omitted: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False

    @property
    def header(self) -> dict[str, Any]:
        """What stands first."""
        return header(self.kind, self.version) if self.kind else {}


class PlainData:
    """Gives a dataclass `to_dict` and `from_dict`."""

    __slots__ = ()
    layout: ClassVar[Layout] = Layout()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; an infinity or NaN is text."""
        data: dict[str, Any] = to_plain(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return what `to_dict` described; raises PlainDataError, a ValueError that names the place."""
        return from_plain(cls, data)


class PlainReport:
    """Gives `to_dict` to what is written for people and other programs, an entry at a time, and never read back."""

    __slots__ = ()

    def parts(self) -> dict[str, Any]:
        """Return JSON types, with iterators for long lists."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; an infinity or NaN is text."""
        return {key: list(value) if isinstance(value, Iterator) else value for key, value in self.parts().items()}


def number(x: float) -> float | str:
    """Return what JSON can hold of a number: an infinity or NaN is text.

    >>> number(0.5), number(float("-inf"))
    (0.5, '-inf')
    """
    return x if math.isfinite(x) else str(float(x))


# --- types of their own form ---

_Write: TypeAlias = Callable[[Any], Any]
_Read: TypeAlias = Callable[[Any], Any]
_forms: dict[type, tuple[_Write, _Read]] = {}


def register(kind: type[T], write: Callable[[T], Any], read: Callable[[Any], T]) -> None:
    """Say how objects of a class become JSON types, and how they are read; ValueErrors are blamed on the data."""
    _forms[kind] = write, read


# --- the converter ---


def to_plain(value: Any) -> Any:
    """Return JSON types for a dataclass, or for anything that a field of one may be."""
    return _converter().unstructure(value)


def from_plain(kind: type[T], data: Any) -> T:
    """Return the object that `to_plain` described; raises PlainDataError."""
    from cattrs import BaseValidationError

    try:
        return _converter().structure(data, kind)
    except BaseValidationError as error:
        place, why = _first(error)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        place, why = "", error
    what = f"it has no {why}" if isinstance(why, KeyError) else str(why)
    raise PlainDataError(f"{kind.__name__}{place}: {shown(what)}") from why


def _first(error: BaseException, place: str = "") -> tuple[str, BaseException]:
    """Return where the first mistake is, and which: cattrs notes the field or the entry on each level."""
    from cattrs.errors import AttributeValidationNote, IterableValidationNote

    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            place += f".{note.name}"
        elif isinstance(note, IterableValidationNote):
            place += f"[{shown(note.index, 40)!r}]" if isinstance(note.index, str) else f"[{note.index}]"
    inner = getattr(error, "exceptions", ())
    return _first(inner[0], place) if inner else (place, error)


@cache
def _converter() -> Converter:
    from cattrs import Converter

    converter = Converter(unstruct_collection_overrides={tuple: list})
    written, read = converter.register_unstructure_hook_factory, converter.register_structure_hook_factory
    write_as, read_as = converter.register_unstructure_hook_func, converter.register_structure_hook_func

    converter.register_unstructure_hook(float, number)
    converter.register_unstructure_hook(int, int)  # of NumPy's, Python's
    converter.register_unstructure_hook(bool, bool)
    for kind, of in ((float, _float), (int, _int), (bool, _bool), (str, _str)):
        converter.register_structure_hook(kind, partial(_scalar, of))

    read_as(lambda kind: isinstance(kind, type) and issubclass(kind, Enum), _enumerated)
    read(_is_tuple, partial(_tuple_reader, converter))
    read(_is_named_tuple, partial(_named_tuple_reader, converter))
    read(_is_dict, partial(_dict_reader, converter))
    written(_is_dict, lambda kind: partial(_mapping, converter))
    write_as(_is_named_tuple, lambda value: [converter.unstructure(entry) for entry in value])
    written(_is_tuple, lambda kind: partial(_entries, converter, get_args(kind)))
    write_as(lambda kind: kind is range, lambda value: [value.start, value.stop])
    read_as(lambda kind: kind is range, lambda data, _: range(*converter.structure(data, tuple[int, int])))
    write_as(_is_array, lambda array: [number(x) if isinstance(x, float) else x for x in array.tolist()])
    read_as(_is_array, partial(_array, converter))
    write_as(lambda kind: _is_annotated(kind, HEXADECIMAL), _hexadecimal)
    read_as(lambda kind: _is_annotated(kind, HEXADECIMAL), lambda text, _: _from_hexadecimal(text))
    write_as(lambda kind: _is_annotated(kind, COUNTED), lambda values: _counted(converter, values))
    read_as(lambda kind: _is_annotated(kind, COUNTED), partial(_uncounted, converter))

    written(lambda kind: is_dataclass(kind) and isinstance(kind, type), partial(_writer, converter))
    read(lambda kind: is_dataclass(kind) and isinstance(kind, type), partial(_reader, converter))
    write_as(lambda kind: kind in _forms, lambda value: _forms[type(value)][0](value))
    read_as(lambda kind: kind in _forms, lambda data, kind: _forms[kind][1](data))
    return converter


def _writer(converter: Converter, kind: type) -> _Write:
    """Return how a dataclass is written: its header, its fields, what it derives from them."""
    from cattrs.gen import make_dict_unstructure_fn

    layout = _layout_of(kind)
    names = {name: layout.names.get(name, name) for name in layout.derived}
    own: _Write = make_dict_unstructure_fn(kind, converter, **_overrides(kind))

    def write(value: Any) -> dict[str, Any]:
        derived = {key: converter.unstructure(getattr(value, name)) for name, key in names.items()}
        return {**layout.header, **own(value), **derived}

    return write


def _reader(converter: Converter, kind: type) -> Callable[[Any, Any], Any]:
    """Return how a dataclass is read: its header is as it must be, and nothing is in it that it does not write."""
    from cattrs.gen import make_dict_structure_fn

    layout = _layout_of(kind)
    needed = [layout.names.get(f.name, f.name) for f in fields(kind) if f.name not in layout.omitted and f.init]
    known = {*needed, *layout.header, *(layout.names.get(name, name) for name in layout.derived)}
    own: Callable[[Any, Any], Any] = make_dict_structure_fn(kind, converter, **_overrides(kind))

    def read(data: Any, _: Any) -> Any:
        if not isinstance(data, Mapping):
            raise PlainDataError(f"an object is needed, got {_named(data)}")
        for key, value in layout.header.items():
            if key not in data or data[key] != value or isinstance(data[key], bool):
                raise PlainDataError(f"its {key} must be {value!r}, got {_named(data.get(key))}")
        if unknown := data.keys() - known:
            raise PlainDataError(f"nothing here is called {_named(min(unknown, key=str))}")
        if not layout.partial and (missing := [name for name in needed if name not in data]):
            raise PlainDataError(f"it has no {missing[0]!r}")
        return own(data, kind)

    return read


def _layout_of(kind: type) -> Layout:
    """Return what a dataclass says of itself, its annotations resolved: cattrs would drop `Annotated`."""
    hints = get_type_hints(kind, include_extras=True)
    for f in fields(kind):
        f.type = hints[f.name]
    return cast(Layout, getattr(kind, "layout", Layout()))


def _overrides(kind: type) -> dict[str, Any]:
    from cattrs.gen import override

    layout, names = _layout_of(kind), {f.name for f in fields(kind)}
    renamed = {name: override(rename=key) for name, key in layout.names.items() if name in names}
    return renamed | {name: override(omit=True) for name in layout.omitted}


# --- single types ---


def _named(value: Any) -> str:
    return shown(repr(value), 60)


def _scalar(of: _Read, value: Any, kind: Any) -> Any:
    return _enumerated(value, kind) if issubclass(kind, Enum) else of(value)  # an enumeration of texts is a text


def _float(value: Any) -> float:
    if isinstance(value, str) and value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or (type(value) is int and abs(value) >= 2**63):
        raise PlainDataError(f"expected a number, got {_named(value)}")
    return value  # a whole number is written as it came


def _int(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise PlainDataError(f"expected an integer of 64 bits, got {_named(value)}")
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise PlainDataError(f"expected true or false, got {_named(value)}")
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise PlainDataError(f"expected text, got {_named(value)}")
    return value


def _enumerated(value: Any, kind: Any) -> Any:
    if value not in (known := [member.value for member in kind]):
        raise PlainDataError(f"expected one of {', '.join(map(str, known))}; got {_named(value)}")
    return kind(value)


def _from_text(text: Any) -> int:
    value = int(text) if isinstance(text, str) and len(text) < 20 and text.lstrip("-").isdecimal() else None
    if str(value) != text:  # no other spelling: two names shall not mean the same
        raise PlainDataError(f"expected an integer as text, got {_named(text)}")
    return cast(int, value)


def _hexadecimal(value: int) -> str:
    zeros = (value & -value).bit_length() - 1 if value else 0
    return f"{value >> zeros:#x}p{zeros}"


def _from_hexadecimal(text: Any) -> int:
    mantissa, _, zeros = _str(text).partition("p")
    if not zeros.isdecimal() or int(zeros) > 10_000:
        raise PlainDataError(f"expected hexadecimal text such as 0x1p3, got {_named(text)}")
    return int(mantissa, 16) << int(zeros)


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple or kind is tuple


def _is_named_tuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _is_dict(kind: Any) -> bool:
    return get_origin(kind) is dict or kind is dict


def _is_array(kind: Any) -> bool:
    import numpy as np

    return kind is np.ndarray or get_origin(kind) is np.ndarray


def _is_annotated(kind: Any, note: str) -> bool:
    return get_origin(kind) is Annotated and note in get_args(kind)[1:]


def _entries(converter: Converter, kinds: tuple[Any, ...], values: tuple[Any, ...]) -> list[Any]:
    """Write a tuple, each entry as its annotation says."""
    each = repeat(kinds[0]) if kinds[1:] == (Ellipsis,) else kinds or map(type, values)
    return [converter.unstructure(value, kind) for kind, value in zip(each, values, strict=False)]


def _mapping(converter: Converter, values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): converter.unstructure(value) for key, value in values.items()}


def _tuple_reader(converter: Converter, kind: Any) -> Callable[[Any, Any], tuple[Any, ...]]:
    kinds = get_args(kind)
    endless = kinds[1:] == (Ellipsis,)

    def read(data: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(data, list | tuple) or not (endless or len(data) == len(kinds)):
            raise PlainDataError(f"expected a list{'' if endless else f' of {len(kinds)}'}, got {_named(data)}")
        each = repeat(kinds[0]) if endless else kinds
        return tuple(_at(converter, i, value, of) for i, (value, of) in enumerate(zip(data, each, strict=False)))

    return read


def _named_tuple_reader(converter: Converter, kind: Any) -> Callable[[Any, Any], Any]:
    read = _tuple_reader(converter, tuple[tuple(get_type_hints(kind).values())])  # type: ignore[misc]
    return lambda data, of: kind(*read(data, of))


def _dict_reader(converter: Converter, kind: Any) -> Callable[[Any, Any], dict[Any, Any]]:
    keys, values = get_args(kind)
    key_of = _from_text if keys is int else _str  # JSON has only text as keys

    def read(data: Any, _: Any) -> dict[Any, Any]:
        if not isinstance(data, Mapping):
            raise PlainDataError(f"an object is needed, got {_named(data)}")
        return {key_of(key): _at(converter, key, value, values) for key, value in data.items()}

    return read


def _at(converter: Converter, place: Any, value: Any, kind: Any) -> Any:
    """Read an entry; a mistake in it is noted as cattrs notes its own."""
    from cattrs.errors import IterableValidationError, IterableValidationNote

    try:
        return converter.structure(value, kind)
    except Exception as error:
        error.add_note(IterableValidationNote("", place, kind))
        raise IterableValidationError("", [error], kind) from error


def _of_array(kind: Any) -> tuple[Any, Any]:
    """Return the dtype of an annotated array, and a tuple of its elements as Python has them."""
    import numpy as np

    dtype = np.dtype(get_args(get_args(kind)[1])[0])
    return dtype, _ELEMENTS[dtype.kind]


_ELEMENTS = {"f": tuple[float, ...], "i": tuple[int, ...], "b": tuple[bool, ...]}


def _array(converter: Converter, data: Any, kind: Any) -> Any:
    import numpy as np

    dtype, elements = _of_array(kind)
    return np.array(converter.structure(data, elements), dtype)


def _counted(converter: Converter, values: Any) -> list[Any]:
    values = values.tolist() if hasattr(values, "tolist") else values
    return [part for value, same in groupby(converter.unstructure(list(values))) for part in (value, len(list(same)))]


def _uncounted(converter: Converter, data: Any, kind: Any) -> Any:
    import numpy as np

    dtype, elements = _of_array(get_args(kind)[0])
    if not isinstance(data, list) or len(data) % 2:
        raise PlainDataError("expected values, each followed by how many there are")
    counts = [_int(count) for count in data[1::2]]
    if min(counts, default=1) < 1 or sum(counts) > VALUES:
        raise PlainDataError(f"expected counts of 1 and more that come to at most {VALUES:,}")
    return np.repeat(np.array(converter.structure(data[::2], elements), dtype), counts)
