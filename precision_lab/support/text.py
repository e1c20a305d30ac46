"""Text of other people, as it may be shown."""

from __future__ import annotations


def printable(text: object) -> str:
    r"""Write what is not printable as an escape, ``\x1b``; line breaks stay.

    Names in files are other people's: control characters, C1 among them, and marks that turn the direction of writing
    would be orders to a terminal, and lone surrogates can be written nowhere.
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in whole)


def shown(text: object, limit: int = 300) -> str:
    """Make any text fit for a line: escapes as `printable`, for line breaks too, and after `limit` characters a cut."""
    whole = str(text)
    return printable(whole[:limit]).replace("\n", "\\n") + "..." * (len(whole) > limit)
