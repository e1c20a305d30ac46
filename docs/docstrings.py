"""Docstrings as the reference shows them: they are read in editors first, and so are plain text, not Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_TABLE = re.compile(r"^(=+(?: +=+)+)\n.*?\n\1\n.*?\n\1$", flags=re.MULTILINE | re.DOTALL)
_ANGLES = re.compile(r"<(?=[\w, ]+>)")


class PlainText(griffe.Extension):
    """Keeps tables as they are drawn, and angle brackets from being tags."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of everything that has one."""
        if obj.docstring:
            text = _ANGLES.sub("&lt;", obj.docstring.value)
            obj.docstring.value = _TABLE.sub(lambda table: f"```text\n{table[0]}\n```", text)
