"""Finished experiments: kept beside a digest of everything that they depend on, and reused as long as it fits.

A finished experiment is kept as ``NAME.json`` in the folder of the report, beside a digest of everything that it
depends on (its configuration, the source of every module of this package that it imports, the data that come with them,
the versions of what computes, the processor) and a digest of the result itself. As long as both fit the experiment is
not run again, so that a report that was interrupted goes on where it stopped. What was just run is read from the same
plain data as what was kept: the two cannot be told apart.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from precision_lab.experiments.registry import EXPERIMENTS, Experiment
from precision_lab.support.files import write_json
from precision_lab.support.jsontext import digest_of
from precision_lab.support.plain import header, to_plain
from precision_lab.support.reading import parse_json, read_small
from precision_lab.support.version import version

COMPUTING = ("numpy", "ml_dtypes", "numba")
"""The packages whose versions can change a result."""

_PACKAGE = Path(__file__).parents[1]
_SHOWING = "presentation"  # a result can show itself (`Shown`), which changes nothing in it


# --- what a result depends on -----------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Return the versions of this package, of what computes, and of Python."""
    computing = {name: importlib.metadata.version(name) for name in COMPUTING}
    return {"precision_lab": version(), **computing, "python": platform.python_version()}


def machine() -> dict[str, Any]:
    """Return the processor, the number of cores, and the platform: nothing that names a machine."""
    return {"cpu": _cpu(), "cores": os.cpu_count() or 1, "platform": f"{platform.system()} {platform.machine()}"}


def _cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model of the processor: on Linux as the kernel names it, by numbers on ARM; on macOS as sysctl does.

    On Windows ``platform.processor()`` has family, model and stepping.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    # of the first processor, where several are listed
    entries = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in reversed(text.splitlines()))}
    if name := entries.get("model name"):
        return name
    if parts := [f"{key.removeprefix('CPU ')} {entries[key]}" for key in _ARM if key in entries]:
        return ", ".join(parts)
    return _sysctl("machdep.cpu.brand_string") or platform.processor()


_ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")


def _sysctl(name: str) -> str:
    """Return what macOS says of itself under a name, nothing elsewhere."""
    if platform.system() != "Darwin":
        return ""
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


@cache
def sources(module: str) -> tuple[Path, ...]:
    """Return the files of the package that a module consists of and imports, in turn, wherever in them; sorted.

    The ``__init__.py`` of packages that are only passed on the way to a module are left out. Data files stand beside
    the modules that read them, in ``data/``.
    """
    files: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        file = _file(waiting.pop())
        if file is None or file in files:
            continue
        files[file] = None
        files |= dict.fromkeys(p for p in (file.parent / "data").glob("*") if p.is_file())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(sorted(files))


def _file(module: str) -> Path | None:
    """Return the file of a module of the package that can change a result; None for what is none."""
    first, *parts = module.split(".")
    if first != _PACKAGE.name or not parts or parts[0] == _SHOWING:
        return None
    place = _PACKAGE.joinpath(*parts)
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


def digest(experiment: Experiment, config: Any) -> str:
    """Return a digest of everything that the result depends on."""
    used = {key: value for key, value in machine().items() if key != "cores"}
    computing = {key: value for key, value in versions().items() if key != "precision_lab"}
    text = json.dumps([experiment.module, to_plain(config), computing, used], sort_keys=True)
    state = hashlib.sha256(text.encode())
    for file in sources(experiment.module):
        content = file.read_bytes()
        state.update(f"{file.relative_to(_PACKAGE).as_posix()} {len(content)}\n".encode())
        state.update(content)
    return state.hexdigest()


# --- finished experiments ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished experiment.

    Attributes
    ----------
    name : str
        Of `EXPERIMENTS`.
    data : dict
        The result's `to_dict`.
    seconds : float
        That it took when it was run.
    reused : bool
        Whether that was another time.
    result : object
        What `data` describes.

    """

    name: str
    data: dict[str, Any]
    seconds: float
    reused: bool
    result: Any = field(repr=False)

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        return str(self.result.answer)


def kept(name: str, folder: Path, config: Any) -> Finished | None:
    """Return the finished experiment that is kept in a folder; None where there is none, or it is another one."""
    try:
        data = parse_json(read_small(folder / f"{name}.json"))
        result, seconds = data["result"], float(data["seconds"])
        known = (data["digest"], data["result_digest"]) == (digest(EXPERIMENTS[name], config), digest_of(result))
        return _finished(name, result, seconds, reused=True) if known else None
    except Exception:  # not there, cut short, or something else, in any of the ways that a result can be misread
        return None


def _finished(name: str, data: dict[str, Any], seconds: float, *, reused: bool) -> Finished:
    return Finished(name, data, seconds, reused, EXPERIMENTS[name].result.from_dict(data))


def keep(name: str, folder: Path, state: str, data: dict[str, Any], seconds: float) -> Finished:
    """Write what was just run beside the digest of what it depended on, and read it."""
    data = json.loads(json.dumps(data, allow_nan=False))
    finished = _finished(name, data, seconds, reused=False)
    written = header("kept result") | {
        "digest": state,
        "result_digest": digest_of(data),
        "seconds": seconds,
        "result": data,
    }
    write_json(written, folder / f"{name}.json", indent=None)
    return finished
