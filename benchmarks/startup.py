"""How long the first answer takes: whole processes as ratios to `import ml_dtypes` and `import numpy`.

Each figure is a median over processes that take turns, so that a machine that slows down slows them all. Nothing is
written beside the sources: compiled modules are kept in a folder of their own, which a first turn fills.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
NUMPY, THEIRS = "import numpy", "import ml_dtypes"
COMMAND = "import sys; sys.argv[1:] = {}; from precision_lab.__main__ import main; main()"
PROGRAMS = {
    NUMPY: NUMPY,
    THEIRS: THEIRS,
    "import precision_lab": "import precision_lab",
    "from precision_lab import round_to": "from precision_lab import round_to",
    "precision-lab --help": COMMAND.format(["--help"]),
    "precision-lab inspect 1e-7": COMMAND.format(["inspect", "1e-7"]),
    "precision-lab scan SMALL.npy": COMMAND.format(["scan", "small.npy"]),
    "the first histogram": "from precision_lab import ExponentHistogram; ExponentHistogram.of([1.0] * 1000)",
}
# in times another: the seconds that are asked for are .25, .45 and .6 where NumPy takes .13, and .15 for the histogram
# after the import of what has it
AT_MOST = {
    "import precision_lab": (THEIRS, 1.25),
    "from precision_lab import round_to": (THEIRS, 1.25),
    "precision-lab --help": (NUMPY, 0.25 / 0.13),
    "precision-lab inspect 1e-7": (NUMPY, 0.45 / 0.13),
    "precision-lab scan SMALL.npy": (NUMPY, 0.6 / 0.13),
    "the first histogram": (NUMPY, 3.0),
}


def seconds(program: str, environment: dict[str, str], folder: str) -> float:
    """How long a new interpreter takes from its start to its end."""
    start = time.perf_counter()
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=True, timeout=120)
    return time.perf_counter() - start


def medians(turns: int) -> dict[str, float]:
    """Median seconds of each program."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": cache}
        np.save(Path(cache) / "small.npy", np.random.default_rng(0).standard_normal(10_000, np.float32))
        for program in PROGRAMS.values():  # compile
            seconds(program, environment, cache)
        times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        for _ in range(turns):
            for name, program in PROGRAMS.items():
                times[name].append(seconds(program, environment, cache))
    return {name: median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    measured = medians(parser.parse_args().turns)
    table = Table(title="Whole processes", title_justify="left", min_width=90)
    table.add_column("")
    for heading in ("ms", "x numpy", "x ml_dtypes", "at most"):
        table.add_column(heading, justify="right")
    for name, time_taken in measured.items():
        base, limit = AT_MOST.get(name, ("", 0))
        table.add_row(
            name,
            f"{time_taken * 1e3:,.0f}",
            f"{time_taken / measured[NUMPY]:.2f}",
            f"{time_taken / measured[THEIRS]:.2f}",
            f"{limit:.2f} x {base.removeprefix('import ')}" if base else "",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
