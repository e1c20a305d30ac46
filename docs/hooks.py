"""What the documentation takes from the repository instead of saying it again.

The figures are those of `figures/`, the lessons those of `notebooks/` with their outputs, the reference has a page for
each floor of the package with the docstrings of its modules. A page takes the N-th output of tables of a lesson with
``[[table LESSON N]]``: the tests run the lessons, and so the numbers of these pages are today's. A section of the
README is taken with ``[[readme HEADING]]``.
"""

from __future__ import annotations

import base64
import json
import re
import runpy
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FLOORS = ("support", "numerics", "tensors", "analysis", "training", "experiments", "presentation")
DOORS = ("torch", "testing")
HIDDEN = "numerics.kernels."  # compiled loops
OPTIONAL = {  # written by the lab itself, or of what it measured
    "claims.md": "The folklore, checked",
    "peers.md": "Other people's casts",
    "machines.md": "The same on every machine",
    "versions.md": "Versions and systems",
    "performance.md": "What things cost",
    "scaling.md": "Past one machine",
    "mutants.md": "What the tests see",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages that there are."""
    written = [{title: page} for page, title in OPTIONAL.items() if (DOCS / page).exists()]
    config["nav"] = [
        {"Start": ["index.md", "tour.md", "files.md", "glossary.md"]},
        {"Lessons": [f"lessons/{path.stem}.md" for path in notebooks()]},
        {"Experiments": [*(f"experiments/{name}.md" for name in experiments()), "figures.md"]},
        {"Verdicts": [*written, {"Security": "SECURITY.md"}]},
        {"Reference": [f"reference/{floor}.md" for floor in floors()]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made of the repository."""
    for figure in figures():
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    files.append(File.generated(config, "figures.md", content=all_figures()))
    files.append(File.generated(config, "SECURITY.md", content=(ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    for name in experiments():
        if not (DOCS / "experiments" / f"{name}.md").exists():
            files.append(File.generated(config, f"experiments/{name}.md", content=experiment(name)))
    for path in notebooks():
        text, images = lesson(path)
        files.append(File.generated(config, f"lessons/{path.stem}.md", content=text))
        files.append(File.generated(config, f"lessons/{path.name}", abs_src_path=str(path)))
        for name, image in images.items():
            files.append(File.generated(config, f"lessons/{name}", content=image))
    for floor, modules in floors().items():
        files.append(File.generated(config, f"reference/{floor}.md", content=reference(floor, modules)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the tables of lessons and the sections of the README where pages ask for them."""
    if page.file.src_uri.startswith(("lessons/", "experiments/")):
        page.meta["hide"] = ["toc"]  # room for tables and figures
    markdown = re.sub(r"^\[\[readme (.+)\]\]$", lambda m: readme(m[1]), markdown, flags=re.MULTILINE)
    return re.sub(r"^\[\[table (\w+) (\d+)\]\]$", lambda m: table(m[1], int(m[2])), markdown, flags=re.MULTILINE)


def readme(heading: str) -> str:
    """Return a section of the README, its links as seen from here."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"the README has no section {heading!r}")
    return re.sub(r"\]\(notebooks/(\w+)\.ipynb\)", r"](lessons/\1.md)", found[1].replace("](docs/", "](")).strip()


# --- experiments ------------------------------------------------------------------------------------------------------


def experiments() -> list[str]:
    """Return the experiments in the order of the report, but for what has a page of its own."""
    registry = ROOT / "precision_lab" / "experiments" / "registry.py"  # imports nothing of the package
    names = runpy.run_path(str(registry))["EXPERIMENTS"] if registry.exists() else ()
    return [name for name in names if f"{name}.md" not in OPTIONAL]


def experiment(name: str) -> str:
    """Return a page of an experiment for which nobody has written one."""
    title = name.replace("_", " ").capitalize()
    figure = f"![{title}](../figures/{name}.png)\n\n" if (ROOT / "figures" / f"{name}.png").exists() else ""
    options = "    options:\n      members: []\n      show_root_heading: false\n"
    return f"# {title}\n\n{figure}::: precision_lab.experiments.{name}\n{options}"


def all_figures() -> str:
    """Return a page with every figure."""
    parts = [f"## {path.stem.replace('_', ' ').capitalize()}\n\n![](figures/{path.name})" for path in figures()]
    return "\n\n".join(["# All figures", *parts]) + "\n"


def figures() -> list[Path]:
    """Return the figures of the lab."""
    return sorted((ROOT / "figures").glob("*.png"))


# --- lessons ----------------------------------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    """Return the notebooks in their order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def lesson(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its images by name."""
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            # answers are Markdown, and notebooks are pages here
            parts.append(re.sub(r"\((\w+)\.ipynb\)", r"(\1.md)", source.replace("<details>", "<details markdown>")))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(images) + 1}.png"
                images[name] = base64.b64decode(_text(data["image/png"]))
                parts.append(f"![{_title(source)}]({name})")
            elif "text/html" in data:
                parts.append(_output(_text(data["text/html"])))
            else:
                parts.append(f"```text\n{_text(output.get('text') or data['text/plain']).rstrip()}\n```")
    parts.append(f"[This lesson as a notebook]({path.name})")
    return "\n\n".join(parts) + "\n", images


def table(stem: str, number: int) -> str:
    """Return the `number`-th HTML output of a notebook, counted from 1, and where it is from."""
    cells = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = [o["data"]["text/html"] for c in cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    return _output(_text(found[number - 1]))


def _output(html: str) -> str:
    # without empty lines, which would end the block
    lines = [line for line in html.splitlines() if line.strip()]
    return "\n".join(['<div class="output">', *lines, "</div>"])


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def _title(source: str) -> str:
    """Return what a cell calls its drawing."""
    found = re.search(r'title="([^"]*)"|set_title\("([^"]*)"', source)
    return (found[1] or found[2]) if found else "What the cell above draws"


# --- reference --------------------------------------------------------------------------------------------------------


def floors() -> dict[str, list[str]]:
    """Return the modules of each floor that there is, by their dotted names; a package stands before its modules."""
    package = ROOT / "precision_lab"
    found: dict[str, list[str]] = {}
    for floor in (*FLOORS, *DOORS):
        files = [path for path in (package / f"{floor}.py", *sorted((package / floor).rglob("*.py"))) if path.exists()]
        names = (".".join(path.relative_to(package).with_suffix("").parts) for path in files)
        if modules := [name for name in names if not name.startswith(HIDDEN)]:
            found[floor] = modules
    return found


def reference(floor: str, modules: list[str]) -> str:
    """Return the page of a floor: of packages their docstrings, of modules everything."""
    parts = [f"# {floor.capitalize()}"]
    for name in modules:
        module = f"::: precision_lab.{name.removesuffix('.__init__')}"
        parts.append(f"{module}\n    options:\n      members: []" if name.endswith(".__init__") else module)
    return "\n\n".join(parts) + "\n"
