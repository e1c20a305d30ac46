"""`Shown`: what shows itself in a notebook.

A class says that its objects can be shown; how they are is written by the floor of presentation, far above, which is
loaded when a notebook asks for it. This is the one door of the package that leads up.
"""

from __future__ import annotations


class Shown:
    """An object that a notebook shows as its pictures and its tables."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return itself as HTML; Jupyter looks for a method of this name."""
        from precision_lab.presentation.notebook import to_html

        return to_html(self)
