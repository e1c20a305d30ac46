"""Tables and drawings are kept by topic, a module each; what is there is found by looking."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache


@cache
def load_topics(package: str) -> None:
    """Import every module of a package, so that each registers what it can show."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)
