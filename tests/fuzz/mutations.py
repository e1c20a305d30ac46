"""What is done to good files: to bytes, and to what the bytes mean, with lengths and checksums made right again."""

from __future__ import annotations

import ast
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import PurePath
from random import Random
from typing import Any

from tests.fuzz.seeds import archive, headed, signed

NAMES = (
    *("\x1b[2J\x1b]0;title\x07", "\x9b31m", "\u202egnp.exe", "\u2066\u2069", "\u200f", "\u061c", "\ud800", "\udc80"),
    *("a\nb", "a\r", "\x00", "\u2028", "\x7f", "\xad", "\ufeff", "\U000e0001", "", " ", "../../x", "/etc/passwd", "."),
    *("$x^{$", "$\\frac{1}{2}$", "\\", "[red]x[/red]", "[/]", "<script>alert(1)</script>", "</script>", "%s%n", "{0}"),
    *("é" * 3, "模型", "١٢", "e\u0301\u0301\u0301", "👩\u200d👩", "x" * 10_000, "a.b.c", "__metadata__", "weight_map"),
)
"""What names in files may be."""

_HUGE, _DEEP, _LONG = "@huge@", "@deep@", "@long@"  # written out only as text
_RAW: dict[str, Callable[[], str]] = {
    _HUGE: lambda: "9" * 5000,
    _DEEP: lambda: "[" * 100_000 + "]" * 100_000,
    _LONG: lambda: "1e400",
}
_NUMBERS = (
    *(0, 1, -1, 2, 255, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400, 1 << 2100),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
)


def nasty(rng: Random) -> str:
    """A name, perhaps with something printable around it."""
    name = rng.choice(NAMES)
    return rng.choice((name, f"a{name}b", name + rng.choice(NAMES)))


# ---- bytes ----


def spoil_bytes(content: bytes, rng: Random) -> bytes:
    """Flip, cut, insert, repeat, overwrite with what is special in binary."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0:
                data[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                del data[at:]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = rng.randbytes(length)
            case 4:
                start = rng.randrange(len(data) + 1)
                data[at:at] = data[start : start + length]
            case 5:
                data[at : at + length] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
            case _:
                if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


# ---- JSON ----


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested JSON."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict | list):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            found += [(inner, key) for key in keys]
            waiting += [inner[key] for key in keys]
    return found


def _value(rng: Random) -> Any:
    kinds: tuple[Callable[[], Any], ...] = (
        *(
            lambda: rng.choice(_NUMBERS),
            lambda: rng.choice(_NUMBERS),
            lambda: nasty(rng),
            lambda: rng.choice(tuple(_RAW)),
        ),
        *(lambda: rng.choice((None, True, False, [], {}, [[]], "", [1], {"a": 1})), lambda: [rng.choice(_NUMBERS)] * 3),
    )
    return rng.choice(kinds)()


def _spoil_json_value(value: Any, rng: Random) -> Any:
    holder = [value]
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, key = rng.choice(_places(holder))
        match rng.randrange(8):
            case 0 | 1 | 2:
                place[key] = _value(rng)
            case 3 if place is not holder:
                del place[key]
            case 4 if isinstance(place, dict):
                place[nasty(rng)] = place.pop(key)
            case 5 if isinstance(place, list):
                place[key:key] = [place[key]] * rng.choice((1, 2, 100))
            case 6:
                other, its = rng.choice(_places(holder))
                place[key] = json.loads(json.dumps(other[its]))  # a copy: what holds itself is no JSON
            case _:
                old = place[key]
                if isinstance(old, int | float):
                    place[key] = rng.choice((-old, old + 1, old * 2, str(old), [old], rng.choice(_NUMBERS)))
                else:
                    place[key] = rng.choice(([old], {"a": old}, str(old)[:50], None))
        if not holder:
            holder = [None]
    return holder[0]


def _dumped(value: Any, rng: Random) -> bytes:
    if isinstance(value, dict) and rng.random() < 0.5:
        value = signed(value)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    for word, write in _RAW.items():
        text = text.replace(f'"{word}"', write())
    if rng.random() < 0.05:  # a key twice
        keys = re.findall(r'"\w+"(?=:)', text)
        if len(keys) > 1:
            text = text.replace(rng.choice(keys) + ":", rng.choice(keys) + ":", 1)
    return text.encode("utf-8", "surrogatepass")


def spoil_json(content: bytes, rng: Random) -> bytes:
    return _dumped(_spoil_json_value(json.loads(content), rng), rng)


def spoil_lines(content: bytes, rng: Random) -> bytes:
    """JSON, one to a line."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            lines.insert(at, lines[at])
        case 1:
            lines[at] = spoil_bytes(lines[at], rng)
        case 2:
            lines.append(lines[at][: rng.randrange(len(lines[at]))])
        case _:
            lines[at] = spoil_json(lines[at], rng) + b"\n"
    return b"".join(lines)


# ---- arrays and archives ----


def spoil_safetensors(content: bytes, rng: Random) -> bytes:
    """The header, with its length right mostly."""
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), content[start:]
    if rng.random() < 0.2:  # a name that is well formed otherwise
        name = rng.choice([name for name in header if name != "__metadata__"])
        header[nasty(rng)] = header.pop(name)
        return headed(_dumped(header, rng), data)
    if rng.random() < 0.3:
        place = rng.choice([entry for entry in header.values() if "dtype" in entry])
        place["dtype"] = rng.choice(("F64", "F16", "BF16", "F8_E4M3", "F8_E8M0", "F4", "BOOL", "C64", "U64", "\x1b[m"))
        return headed(_dumped(header, rng), data)
    spoilt = headed(_dumped(_spoil_json_value(header, rng), rng), data)
    return spoilt if rng.random() < 0.9 else spoil_bytes(spoilt[:16], rng) + spoilt[16:]


def spoil_npy(content: bytes, rng: Random) -> bytes:
    """The header: its version, its length, its dictionary."""
    length = int.from_bytes(content[8:10], "little")
    version, text, data = content[6:8], content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    entries: dict[str, Any] = ast.literal_eval(text.strip())
    match rng.randrange(8):
        case 0:
            entries["shape"] = tuple(rng.choice(_NUMBERS) for _ in range(rng.choice((0, 1, 2, 70))))
        case 1:
            numbers = (2**40, 0, -1, 1, 2, 2**62, True)
            entries["shape"] = tuple(rng.choice(numbers) for _ in range(rng.choice((1, 2, 3))))
        case 2 | 3:
            types = ("<f8", "<f2", "|V2", "|V1", "|O", "<c8", "<i4", "<g", "<M8[s]", "<U7", "|S3", "|b1", ">f4", "<f1")
            entries["descr"] = rng.choice((*types, [("a", "<f4")], "x" * 300, nasty(rng), 3, None, ("<f4", (2,))))
        case 4:
            entries["fortran_order"] = rng.choice((True, 1, None, "yes"))
        case 5:
            entries[nasty(rng)] = 1
        case 6:
            del entries[rng.choice(list(entries))]
        case _:
            text = spoil_bytes(text.encode("latin-1"), rng).decode("latin-1")
            entries = {}
    if rng.random() < 0.1:
        text, entries = "__import__('os').mkdir('ran')", {}
    header = (repr(entries) if entries else text).encode("utf-8", "surrogatepass") + b"\n"
    if rng.random() < 0.05:
        version = rng.choice((b"\2\0", b"\3\0", b"\0\0", b"\xff\xff"))
    size = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**16 - 1))
    return content[:6] + version + min(size, 2**16 - 1).to_bytes(2, "little") + header + data


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as zipped:
        return {member.filename: zipped.read(member) for member in zipped.infolist()}


def _zip_name(rng: Random) -> str:
    return nasty(rng).encode("utf-8", "replace").decode()[:30_000]  # zipfile writes UTF-8


def spoil_npz(content: bytes, rng: Random) -> bytes:
    """A member, with the right checksum."""
    members = _members(content)
    name = rng.choice(list(members))
    match rng.randrange(6):
        case 0 | 1:
            members[_zip_name(rng) + rng.choice((".npy", ".npy", ""))] = members.pop(name)
        case 2 | 3:
            members[name] = spoil_npy(members[name], rng)
        case 4:
            members[name] = spoil_bytes(members[name], rng)
        case _:
            del members[name]
    method = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    spoilt = archive(members, method)
    return spoilt if rng.random() < 0.8 else _spoil_directory(spoilt, rng)


def _spoil_directory(content: bytes, rng: Random) -> bytes:
    """The end of a zip file: sizes, offsets, flags, counts."""
    at = content.find(b"PK\1\2")
    return content[:at] + spoil_bytes(content[at:], rng)


_PAYLOADS = (b"cos\nmkdir\n(S'ran'\ntR.", b'cbuiltins\neval\n(S\'__import__("os").mkdir("ran")\'\ntR.')
_PIECES = (
    *(
        b"N",
        b"]",
        b"}",
        b")",
        b"(",
        b"t",
        b"u",
        b"e",
        b"a",
        b"s",
        b"R",
        b"0",
        b"2",
        b"1",
        b"Q",
        b"q\0",
        b"h\0",
        b"b",
        b".",
    ),
    *(b"K\1", b"J\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"G\x7f\xf0\0\0\0\0\0\0", b"\x88", b"l."),
    *(b"ctorch\nload\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    b"]q\xf0"
    + b"(h\xf0h\xf0h\xf0e"
    + b"".join(b"]q%c(" % (i + 0xF1) + b"h%c" % (i + 0xF0) * 10 + b"e" for i in range(12)),
)
"""Opcodes that fit somewhere, and a list of ten times a list of ten times ..."""


def spoil_pickle(content: bytes, rng: Random) -> bytes:
    """Its operations, one by one."""
    if rng.random() < 0.05:
        return rng.choice(_PAYLOADS)
    starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    operations = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    texts = [i for i, operation in enumerate(operations) if operation[:1] == b"X"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(operations))
        match rng.randrange(7):
            case 0:
                del operations[at]
            case 1:
                operations.insert(at, operations[at])
            case 2:
                operations[at] = rng.choice(operations)
            case 3:
                operations.insert(at, rng.choice(_PIECES))
            case 4 if texts:
                text = nasty(rng).encode("utf-8", "surrogatepass")
                operations[rng.choice(texts)] = b"X" + len(text).to_bytes(4, "little") + text
            case 5 if operations[at][:1] in b"KMJ":
                operations[at] = rng.choice(
                    (b"K\0", b"K\xff", b"J\xff\xff\xff\xff", b"J\0\0\0\x7f", b"\x8a\x05\0\0\0\0\1")
                )
            case _:
                operations[at] = rng.choice(_PIECES)
        if not operations:
            return b"."
        texts = [i for i, operation in enumerate(operations) if operation[:1] == b"X"]
    return b"".join(operations)


def spoil_pt(content: bytes, rng: Random) -> bytes:
    """The pickle or another member, with the right checksum."""
    members = _members(content)
    pickle = next(name for name in members if name.endswith("data.pkl"))
    name = rng.choice(list(members))
    match rng.randrange(10):
        case 0:
            members[name] = spoil_bytes(members[name], rng)
        case 1:
            del members[name]
        case 2:
            members[_zip_name(rng)] = members.pop(name)
        case 3:
            return rng.choice(_PAYLOADS)  # a pickle alone
        case _:
            members[pickle] = spoil_pickle(members[pickle], rng)
    return archive(members) if members else b""


# ---- text ----


def spoil_text(content: bytes, rng: Random) -> bytes:
    text = content.decode()
    return spoil_word(text, rng).encode("utf-8", "surrogatepass")


def spoil_word(text: str, rng: Random, words: tuple[str, ...] = ()) -> str:
    """Some text: characters left out, put in, repeated; others' words; what numbers may look like."""
    numbers = ("0", "-1", "1e400", "nan", "inf", "9" * 5000, "1/0", "0x1p9999", "1_000", "٣", "½", "1e-5000", "+", ".5")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(8):
            case 0:
                text = text[:at] + text[at + 1 :]
            case 1:
                text = text[:at] + chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x2FF)))) + text[at:]
            case 2:
                text = text[:at] + nasty(rng) + text[at:]
            case 3:
                text = rng.choice(numbers)
            case 4:
                text = text[:at] + rng.choice(numbers) + text[at:]
            case 5:
                text = text * rng.choice((2, 100))
            case 6:
                text = text[:at] + rng.choice((*words, "=", ",", ":", "e5m2", "*2^-24", "--", "/")) + text[at:]
            case _:
                text = text[:at]
        text = text[:100_000]
    return text


_BY_SUFFIX: dict[str, Callable[[bytes, Random], bytes]] = {
    ".safetensors": spoil_safetensors,
    ".npz": spoil_npz,
    ".npy": spoil_npy,
    **dict.fromkeys((".pt", ".bin", ".ckpt"), spoil_pt),
    ".json": spoil_json,
    ".jsonl": spoil_lines,
    ".txt": spoil_text,
}


def spoil_file(path: str, content: bytes, rng: Random) -> tuple[str, bytes]:
    """Spoil a file by what it is, or by its bytes alone; return what was done, too."""
    if rng.random() < 0.25:
        return "bytes", spoil_bytes(content, rng)
    return "structure", _BY_SUFFIX[PurePath(path).suffix](content, rng)
