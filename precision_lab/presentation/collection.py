"""All experiments together: run what is missing, keep what is finished, and put it into one file.

A finished experiment is kept as ``NAME.json`` in the folder of the report, beside a digest of everything that it
depends on (its configuration, the source of every module of this package that it imports, the data that come with them,
the versions of what computes, the processor) and a digest of the result itself. As long as both fit the experiment is
not run again, so that a report that was interrupted goes on where it stopped. What was just run is read from the same
plain data as what was kept: the two cannot be told apart.

Another experiment is a line in `EXPERIMENTS`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

from precision_lab.analysis.plain import plain
from precision_lab.support.files import write_json
from precision_lab.support.jsontext import digest_of
from precision_lab.support.reading import parse_json, read_small

COMPUTING = ("numpy", "ml_dtypes", "numba")
"""The packages whose versions can change a result."""

_PACKAGE = Path(__file__).parents[1]
_SHOWING = "presentation"  # a result can show itself (`Shown`), which changes nothing in it


@dataclass(frozen=True)
class Experiment:
    """Where the parts of an experiment are; nothing of it is imported before it is needed.

    Attributes
    ----------
    module : str
        Its module: has `run` or what `call` names, ``call(config, *, progress) -> result``.
    config, result : str
        Its classes there: ``config()``, ``config.quick()``; ``result.to_dict()``, ``result.from_dict(data)``,
        ``result.answer``.
    call : str
        The function that runs it.
    spread : bool
        Whether it takes ``executor=`` and spreads its own work over processes; else it is run in one of them.

    """

    module: str
    config: str
    result: str
    call: str = "run"
    spread: bool = False

    def find(self, name: str) -> Any:
        """Return what the module has under a name."""
        return getattr(importlib.import_module(self.module), name)

    def configuration(self, *, quick: bool = False) -> Any:
        """Return the configuration of the documentation, or the quick one."""
        config = self.find(self.config)
        return config.quick() if quick else config()


EXPERIMENTS: dict[str, Experiment] = {
    "underflow": Experiment(
        "precision_lab.experiments.underflow",
        "UnderflowConfig",
        "UnderflowResult",
    ),
    "swamping": Experiment(
        "precision_lab.experiments.swamping",
        "SwampingConfig",
        "SwampingResult",
    ),
    "accumulation": Experiment(
        "precision_lab.experiments.accumulation",
        "AccumulationConfig",
        "AccumulationResult",
    ),
    "loss_scaling": Experiment(
        "precision_lab.experiments.loss_scaling",
        "LossScalingConfig",
        "LossScalingResult",
    ),
    "storage": Experiment(
        "precision_lab.experiments.storage",
        "StorageExperimentConfig",
        "StorageResult",
        spread=True,
    ),
    "hyperparameters": Experiment(
        "precision_lab.experiments.hyperparameters",
        "HyperparametersConfig",
        "HyperparametersResult",
    ),
    "memory": Experiment(
        "precision_lab.experiments.memory",
        "MemoryConfig",
        "MemoryResult",
    ),
    "claims": Experiment("precision_lab.claims", "ClaimsConfig", "ClaimsResult"),
}
"""The experiments of the report, in its order."""


# --- what a result depends on -----------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Return the versions of this package, of what computes, and of Python."""
    names = {"precision_lab": "precision-lab", **dict.fromkeys(COMPUTING)}
    found = {name: importlib.metadata.version(package or name) for name, package in names.items()}
    return {**found, "python": platform.python_version()}


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
    found = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in reversed(text.splitlines()))}
    if name := found.get("model name"):
        return name
    if parts := [f"{key.removeprefix('CPU ')} {found[key]}" for key in _ARM if key in found]:
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
    found: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        file = _file(waiting.pop())
        if file is None or file in found:
            continue
        found[file] = None
        found |= dict.fromkeys(p for p in (file.parent / "data").glob("*") if p.is_file())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(sorted(found))


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
    text = json.dumps([experiment.module, experiment.call, plain(config), computing, used], sort_keys=True)
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
    experiment = EXPERIMENTS[name]
    return Finished(name, data, seconds, reused, experiment.find(experiment.result).from_dict(data))


def _keep(name: str, folder: Path, state: str, data: dict[str, Any], seconds: float) -> Finished:
    """Write what was just run beside the digest of what it depended on, and read it."""
    data = json.loads(json.dumps(data, allow_nan=False))
    finished = _finished(name, data, seconds, reused=False)
    written = {"digest": state, "result_digest": digest_of(data), "seconds": seconds, "result": data}
    write_json(written, folder / f"{name}.json", indent=None)
    return finished


# --- running ----------------------------------------------------------------------------------------------------------

Progress = Callable[[str, int, int], None]
"""Called with the name of an experiment, what of it is done, and all of it."""

_listener: Any = None  # in a process of its own: where progress is put


def listen(queue: Any) -> None:
    """Say where a process that runs experiments puts (name, done, of how many): anything with a ``put``."""
    global _listener
    _listener = queue


def _work(name: str, config: Any, progress: Progress | None = None) -> tuple[dict[str, Any], float]:
    """Run an experiment in this process; what goes back is plain data."""
    experiment, last = EXPERIMENTS[name], 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if progress is not None:
            progress(name, done, total)
        elif _listener is not None and (done == total or time.monotonic() > last + 0.2):
            last = time.monotonic()
            _listener.put((name, done, total))

    started = time.perf_counter()
    result = experiment.find(experiment.call)(config, progress=tell)
    return result.to_dict(), time.perf_counter() - started


def _spread(name: str, config: Any, executor: Executor, progress: Progress) -> tuple[dict[str, Any], float]:
    """Run an experiment that spreads its own work over the processes."""
    experiment = EXPERIMENTS[name]
    started = time.perf_counter()
    result = experiment.find(experiment.call)(
        config, executor=executor, progress=lambda done, total: progress(name, done, total)
    )
    return result.to_dict(), time.perf_counter() - started


def _in_a_thread(call: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call in a thread that nobody waits for when the program ends."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def run(
    configs: Mapping[str, Any],
    folder: Path,
    *,
    executor: Executor | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Iterator[Finished]:
    """Run experiments, keep each when it is finished, and yield it.

    Parameters
    ----------
    configs : mapping of str to configuration
        By names of `EXPERIMENTS`.
    folder : Path
        Where they are kept.
    executor : concurrent.futures.Executor, optional
        Where the work goes, all experiments at once; default: this process, one after the other. Its processes tell
        their progress to where `listen` says.
    progress : callable
        As `Progress`, for what runs in this process, and for what has come to its end.

    Raises
    ------
    OutputError
        Nothing can be kept in the folder.

    """
    # before the work: who edits a source while it runs shall not have the result taken for that of the new one
    states = {name: digest(EXPERIMENTS[name], config) for name, config in configs.items()}
    if executor is None:
        for name, config in configs.items():
            yield _keep(name, folder, states[name], *_work(name, config, progress))
        return
    # the long work in small pieces comes last: it fills what the others leave
    futures = {
        _in_a_thread(_spread, name, configs[name], executor, progress)
        if EXPERIMENTS[name].spread
        else executor.submit(_work, name, configs[name]): name
        for name in sorted(configs, key=lambda name: EXPERIMENTS[name].spread)
    }
    for future in as_completed(futures):
        name = futures[future]
        finished = _keep(name, folder, states[name], *future.result())
        progress(name, 1, 1)
        yield finished


# --- one file ---------------------------------------------------------------------------------------------------------


def results(finished: Sequence[Finished], *, quick: bool) -> dict[str, Any]:
    """Put finished experiments together: the content of ``results.json``.

    Returns
    -------
    dict
        Plain JSON types::

            {
              "experiments": {name: the result's to_dict()},   # configuration and seeds among it, under "config"
              "configs": {name: its configuration},
              "answers": {name: what came out, in a line},
              "seconds": {name: what it took when it was run},
              "versions": {"precision_lab": ..., "numpy": ..., "ml_dtypes": ..., "numba": ..., "python": ...},
              "machine": {"cpu": model, "cores": number, "platform": system and processor},
              "quick": whether these are the quick configurations,
            }

        Names in the order of `EXPERIMENTS`. None stands for infinity and NaN; no host name, no path.

    """
    by_name = {one.name: one for one in finished}
    ordered = [by_name[name] for name in EXPERIMENTS if name in by_name]
    return {
        "experiments": {one.name: one.data for one in ordered},
        "configs": {one.name: one.data["config"] for one in ordered},
        "answers": {one.name: one.answer for one in ordered},
        "seconds": {one.name: round(one.seconds, 1) for one in ordered},
        "versions": versions(),
        "machine": machine(),
        "quick": quick,
    }
