"""The documentation builds without a warning and without the network, and everything in it leads somewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import precision_lab
from precision_lab.experiments import underflow
from precision_lab.experiments.registry import EXPERIMENTS

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """What a page loads, where it leads, and what can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found.get("href", ""))
        elif "src" in found:
            self.loaded.append(found["src"])

    def handle_data(self, data: str) -> None:
        self.text += data


def build(folder: Path, *, source: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does, where no proxy would let anything out."""
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(source)}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    loaded = {address for page in pages.values() for address in page.loaded}
    assert [address for address in loaded if urlsplit(address).scheme not in ("", "data")] == []


def test_every_link_and_picture_leads_somewhere(pages: dict[Path, Page]) -> None:
    lost = []
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses are those of a server
            continue
        for address in (*page.links, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            there = target.exists() and (
                not parts.fragment or target.suffix != ".html" or parts.fragment in pages[target].ids
            )
            if not there and parts.fragment != "__skip":
                lost.append((path.name, address))
    assert lost == []


def test_every_public_name_is_in_the_reference(pages: dict[Path, Page]) -> None:
    ids = {name for page in pages.values() for name in page.ids}
    # where it is defined; a constant does not say
    homes = {n: getattr(getattr(precision_lab, n), "__module__", "") for n in precision_lab.__all__}
    names = [f"{home or f'precision_lab.{precision_lab._MODULES[name]}'}.{name}" for name, home in homes.items()]
    assert [name for name in names if name not in ids] == []


def test_every_experiment_figure_and_lesson_has_its_page(site: Path, pages: dict[Path, Page]) -> None:
    assert {path.stem for path in (site / "experiments").glob("*.html")} >= EXPERIMENTS.keys() - {"claims"}
    assert (site / "claims.html").exists()
    shown = {Path(address).name for page in pages.values() for address in page.loaded}
    for figure in (ROOT / "figures").glob("*.png"):
        assert figure.name in shown
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = pages[site / "lessons" / f"{notebook.stem}.html"]
        assert "An exercise" in page.text
        assert (site / "lessons" / notebook.name).exists()


def test_what_pages_take_from_elsewhere_is_there(pages: dict[Path, Page]) -> None:
    """Tables of lessons, sections of the README, docstrings of the experiments."""
    text = {path.name: page.text for path, page in pages.items()}
    assert not any("[[" in found for name, found in text.items() if name in ("tour.html", "storage.html"))
    assert "R(0.999*v) = v" in text["storage.html"]
    assert "precision-lab inspect" in text["tour.html"]
    lesson = (underflow.__doc__ or "").split("\n\n")[0]
    assert " ".join(lesson.split()) in " ".join(text["underflow.html"].split())


def test_angle_brackets_of_docstrings_are_text(pages: dict[Path, Page]) -> None:
    assert any("<d, u> / ||u||" in page.text for page in pages.values())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with little in it, so that it is built quickly."""
    for name in ("docs", "notebooks", "figures", "precision_lab"):
        (tmp_path / name).mkdir()
    for name in ("mkdocs.yml", "README.md", "SECURITY.md", "docs/hooks.py", "docs/docstrings.py", "docs/extra.css"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("index.md", "tour.md", "files.md", "glossary.md"):
        (tmp_path / "docs" / name).write_text("# A page\n", encoding="utf-8")
    output = {"output_type": "execute_result", "data": {"text/html": ["<table><tr><td>seven</td></tr></table>"]}}
    cell = {"cell_type": "code", "source": ["7"], "outputs": [output]}
    (tmp_path / "notebooks" / "01_a.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    return tmp_path


def test_what_the_lab_writes_later_is_taken_up(copy: Path) -> None:
    """Claims, peers, a new experiment with its figure, a table of a lesson."""
    for name in ("claims.md", "peers.md"):
        (copy / "docs" / name).write_text(f"# All about {name}\n\n[[table 01_a 1]]\n", encoding="utf-8")
    (copy / "precision_lab" / "experiments").mkdir()
    for package in ("precision_lab", "precision_lab/experiments"):
        (copy / package / "__init__.py").write_text('"""A package."""\n', encoding="utf-8")
    (copy / "precision_lab" / "experiments" / "registry.py").write_text(
        'EXPERIMENTS = {"new": "?"}\n', encoding="utf-8"
    )
    (copy / "precision_lab" / "experiments" / "new.py").write_text('"""What is new?"""\n', encoding="utf-8")
    shutil.copy(next((ROOT / "figures").glob("*.png")), copy / "figures" / "new.png")
    done = build(copy / "site", source=copy)
    assert done.returncode == 0, done.stderr
    found = {path.name: Page(path.read_text(encoding="utf-8")) for path in (copy / "site").rglob("*.html")}
    assert "seven" in found["claims.html"].text
    assert "What is new?" in found["new.html"].text
    assert {"claims.html", "peers.html", "experiments/new.html"} <= {*found["index.html"].links}
    assert "../figures/new.png" in found["new.html"].loaded


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[nowhere](nowhere.md)", "nowhere.md"),
        ("[nowhere](glossary.md#nowhere)", "nowhere"),
        ("![no figure](figures/none.png)", "figures/none.png"),
        ("::: precision_lab.nothing", "precision_lab.nothing"),
        ("[[table 01_a 2]]", "IndexError"),
        ("[[readme Nothing]]", "no section 'Nothing'"),
    ],
)
def test_a_mistake_ends_the_build(copy: Path, text: str, complaint: str) -> None:
    (copy / "docs" / "tour.md").write_text(f"# A page\n\n{text}\n", encoding="utf-8")
    done = build(copy / "site", source=copy)
    assert done.returncode != 0
    assert complaint in done.stderr
