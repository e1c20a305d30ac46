"""Names in files are other people's: a terminal, a page and a figure show them, and obey none."""

from __future__ import annotations

import sys
import unicodedata

from precision_lab.support.text import printable, shown


def test_every_character_that_could_be_an_order_is_an_escape() -> None:
    """All of Unicode: what is left is ASCII, or a letter, mark, number, punctuation or symbol."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if chr(code) != "\n"]
    left = printable("\n".join(characters)).split("\n")  # line breaks stay
    for c, line in zip(characters, left, strict=True):
        if c == " " or unicodedata.category(c)[0] in "LMNPS":
            assert line == c, hex(ord(c))
        else:  # controls, C1, directions, surrogates, private use, separators
            assert line.isascii(), hex(ord(c))
            assert line.startswith("\\"), hex(ord(c))


def test_text_of_one_line_is_cut() -> None:
    assert shown("a\nb\x1b[2J") == r"a\nb\x1b[2J"
    assert shown("x" * 300) == "x" * 300
    assert shown("x" * 301) == "x" * 300 + "..."
    assert shown("\x1b" * 9, 3) == r"\x1b" * 3 + "..."
    assert shown(5) == "5"
    assert printable("a\nb") == "a\nb"
