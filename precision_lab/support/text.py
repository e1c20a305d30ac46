"""Text of other people, as it may be shown."""

from __future__ import annotations


def shown(text: object, limit: int = 300) -> str:
    r"""Make any text fit for one line of a terminal, a page or a figure.

    Names in files are other people's. What is not printable (control characters, C1 among them, marks that turn the
    direction of writing, lone surrogates) is written as an escape, ``\x1b``; what is longer than `limit` characters is
    cut, and ends in three dots.
    """
    whole = str(text)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in whole[:limit]) + "..." * (len(whole) > limit)
