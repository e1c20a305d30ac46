"""The version of the package, which pyproject.toml alone states."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def version() -> str:
    """Return it: in a source tree, installed or not, that of its pyproject.toml, else that of the installed package."""
    import tomllib
    from importlib import metadata

    try:
        stated = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):  # what lies beside an installed package is other people's
        stated = {}
    number = stated["version"] if stated.get("name") == "precision-lab" else metadata.version("precision-lab")
    return str(number)
