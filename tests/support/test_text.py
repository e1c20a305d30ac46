"""Names in files are other people's: a terminal, a page and a figure show them, and obey none."""

from __future__ import annotations

import sys
import unicodedata

from precision_lab.support.text import printable, shown


def test_every_character_that_could_be_an_order_is_an_escape() -> None:
    """All of Unicode: what is left is ASCII, or a letter, mark, number, punctuation or symbol."""
    for code in range(sys.maxunicode + 1):
        c = chr(code)
        kind = unicodedata.category(c)
        left = printable(c)
        if c == "\n":
            assert left == c
        elif c == " " or kind[0] in "LMNPS":
            assert left == c, hex(code)
        else:  # controls, C1, directions, surrogates, private use, separators
            assert left.isascii(), hex(code)
            assert left.startswith("\\"), hex(code)


def test_text_of_one_line_is_cut() -> None:
    assert shown("a\nb\x1b[2J") == r"a\nb\x1b[2J"
    assert shown("x" * 300) == "x" * 300
    assert shown("x" * 301) == "x" * 300 + "..."
    assert shown("\x1b" * 9, 3) == r"\x1b" * 3 + "..."
    assert shown(5) == "5"
    assert printable("a\nb") == "a\nb"
