"""Run the notebooks: `python -m tests.notebooks` writes their outputs anew, tests/test_notebooks.py compares them.

What is committed does not depend on when, where and by whom it was run: no times, no paths of the machine, and of what
an object can show of itself only the richest form.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from matplotlib.image import imread
from nbclient import NotebookClient

REPOSITORY = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

SHOWN = ("image/png", "text/html", "text/plain")
"""The forms of an output; the first that there is, is kept."""

VARIES = "varies"
"""The tag of cells that show what PyTorch computes, in lesson 8: another build, or processor, adds in another order."""


def run(path: Path, home: Path) -> Any:
    """Return the notebook with the outputs of today's code, from a kernel of this interpreter and this checkout.

    Nothing outside is read or written: the kernel works in `home`, and its settings and caches are there.
    """
    notebook = nbformat.read(path, as_version=4)
    places = ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
    env = {**os.environ, **{name: str(home / name.lower()) for name in places}, "PYTHONPATH": str(REPOSITORY)}
    env.pop("MPLBACKEND", None)
    for name in places:
        Path(env[name]).mkdir(exist_ok=True)

    class Kernel(AsyncKernelManager):  # type: ignore[misc]  # jupyter_client has no types here
        def __init__(self, **options: Any) -> None:
            # without folders to look in it knows one kernel, that of the interpreter that runs this; no network either
            kernels = KernelSpecManager(kernel_dirs=[])
            connection = str(home / f"{path.stem}.json")
            super().__init__(kernel_spec_manager=kernels, connection_file=connection, transport="ipc", **options)

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        kernel_manager_class=Kernel,
        timeout=600,
        resources={"metadata": {"path": str(home)}},
    )
    client.execute(env=env)
    return normalised(notebook)


def normalised(notebook: Any) -> Any:
    """Return a notebook as it is committed."""
    cells = []
    for i, cell in enumerate(notebook.cells):
        plain: dict[str, Any] = {"cell_type": cell.cell_type, "id": f"cell-{i}", "source": cell.source}
        plain["metadata"] = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            plain["execution_count"] = cell.execution_count
            plain["outputs"] = [_plain_output(output) for output in _joined(cell.outputs)]
        cells.append(plain)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def _plain_output(output: Any) -> dict[str, Any]:
    if output.output_type == "stream":
        return {"output_type": "stream", "name": output.name, "text": output.text}
    kind = next(kind for kind in SHOWN if kind in output.data)
    plain = {"output_type": output.output_type, "metadata": {}, "data": {kind: output.data[kind]}}
    if output.output_type == "execute_result":
        plain["execution_count"] = output.execution_count
    return plain


def _joined(outputs: list[Any]) -> Iterator[Any]:
    """Put the pieces of one stream together: where it is cut is chance."""
    last = None
    for output in outputs:
        if last is not None and output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
            continue
        if last is not None:
            yield last
        last = output
    if last is not None:
        yield last


def texts(cell: Any) -> list[str]:
    """Return what a cell shows, in words: of an image the digest of its pixels, the file depends on the compressor."""
    shown = []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            shown.append(f"{output.name}: {output.text}")
        else:
            kind, data = next(iter(output.data.items()))
            shown.append(f"{kind}: {pixels(data) if kind == 'image/png' else data}")
    return shown


def pixels(png: str) -> str:
    """Return the digest of what a PNG shows."""
    image = imread(io.BytesIO(base64.b64decode(png)))
    return f"{image.shape} {hashlib.sha256(image.tobytes()).hexdigest()}"


_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def same(committed: Any, fresh: Any) -> bool:
    """Return whether a cell shows what is committed: exactly, or if it is tagged, each number within a tenth."""
    before, now = texts(committed), texts(fresh)
    if VARIES not in committed.metadata.get("tags", ()):
        return before == now
    # nor are pictures compared, and the line that names the build
    before, now = ([t for t in shown if not t.startswith(("image/png", "stdout: torch "))] for shown in (before, now))
    if [_NUMBER.sub("#", text) for text in before] != [_NUMBER.sub("#", text) for text in now]:
        return False
    old, new = ([float(n.replace(",", "")) for text in shown for n in _NUMBER.findall(text)] for shown in (before, now))
    return all(abs(a - b) <= 0.1 * max(abs(a), abs(b)) for a, b in zip(old, new, strict=True))


def write(notebook: Any, path: Path) -> None:
    """Write a notebook as git likes it."""
    path.write_text(nbformat.writes(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for notebook in map(Path, sys.argv[1:] or NOTEBOOKS):
            write(run(notebook, Path(folder)), notebook)
            print(f"wrote {notebook}")
