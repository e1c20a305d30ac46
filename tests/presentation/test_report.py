"""The pages as files: what they hold, that they need nothing else, that names are text. The browser comes after."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from precision_lab.analysis.binades import CLASSES
from precision_lab.analysis.histogram import ExponentHistogram
from precision_lab.experiments import memory
from precision_lab.experiments.claims import experiment as claims
from precision_lab.experiments.kept import Finished
from precision_lab.experiments.paired import Finding
from precision_lab.experiments.registry import EXPERIMENTS
from precision_lab.experiments.storage import alone, cheapest
from precision_lab.numerics.formats import FORMATS, get_format
from precision_lab.presentation.report import write_report, write_scan_page
from precision_lab.presentation.report.data import cuts_of, format_data, histogram_data, menu
from precision_lab.presentation.report.pages import embed
from precision_lab.presentation.report.sections import hero, lesson, sections
from precision_lab.presentation.tables.memory import ledgers_tables
from precision_lab.presentation.tables.storage import training_text
from precision_lab.support.files import OutputError
from precision_lab.support.text import shown
from tests.conftest import CommandLine
from tests.presentation.pages import (
    HOSTILE,
    finished,
    result_of,
    scanned,
    small_scan,
    thousand_tensors,
    thresholds,
    written,
)
from tests.presentation.stored import BREAKS, KEEPS, LOSES, LOWER, UNDECIDED, judged


class Page(HTMLParser):
    """Elements, ids and the data of a page; what is no text raises."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.inside = ""
        self.data: Any = None
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script" and self.elements[-1][1].get("type") == "application/json":
            self.data = json.loads(data)
        elif self.inside not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def prose(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    written(path, "storage", "gradient_histogram")
    return Page(path)


@pytest.fixture(scope="module")
def scan_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("scan") / "scan.html"
    write_scan_page(small_scan(), path)
    return Page(path)


# ---- needs nothing else ----


@pytest.mark.parametrize("name", ["report", "scan_page"])
def test_a_page_is_one_file(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name)
    for tag, attributes in page.elements:
        for attribute in ("src", "href", "srcset", "action", "data", "poster"):
            if attribute in attributes:
                assert attributes[attribute].startswith(("#", "data:")), (tag, attributes)
        assert not [key for key in attributes if key.startswith("on") or key == "style"], (tag, attributes)
    assert not {"iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    assert "@import" not in page.text
    assert "url(" not in page.text
    assert len(page.all("script")) == 3
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize("name", ["report", "scan_page"])
def test_every_id_occurs_once_and_every_reference_is_there(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        named = [attributes.get(key, "") for key in ("for", "aria-labelledby", "aria-describedby")]
        targets = {target for names in named for target in names.split()}
        if tag == "a":
            targets.add(attributes["href"].removeprefix("#"))
        assert targets <= set(ids), (tag, attributes)


# ---- the report ----


def test_the_first_screen_answers_with_numbers_of_the_results(report: Page) -> None:
    """Miniatures first, then the digits; every ratio with its interval and n."""
    first = report.prose[: report.prose.index("All questions")]
    assert first.index("Can I store my parameters in bf16?") < first.index("A character transformer (AdamW")
    stored = result_of("storage")
    groups = [*stored.miniatures.values(), *stored.outcomes.values()]
    for group in groups:
        narrow = alone(group)
        mastered = next((o for o in group if o.label == "master_bf16"), None)
        for o in (narrow, mastered, cheapest(group)):
            assert o is None or f"{o.finding} {o.paired.text} loss {o.final_loss:.3g}" in first
            assert o is None or f"{o.label}, {o.bytes_per_parameter:g} bytes" in first
        assert f"fp32's {group[0].final_loss:.3g}" in first
    places = [first.index(training_text(group[0].runs[0].config)) for group in groups]
    assert places == sorted(places)
    assert "at beta2 = 0.999 and 0.95" in first
    assert "quick runs" in first


def answer_of(*groups: tuple[Any, ...], miniatures: int = 0) -> dict[str, Any]:
    """Return the first screen of some trainings, the first of them miniatures."""
    named = {f"training {i}": group for i, group in enumerate(groups)}
    small = dict(list(named.items())[:miniatures])
    result = SimpleNamespace(miniatures=small, outcomes={k: v for k, v in named.items() if k not in small})
    answer = hero(result)  # type: ignore[arg-type]
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((KEEPS, KEEPS), "Yes, here."),
        ((KEEPS, LOWER), "Yes, here."),
        ((KEEPS, LOSES), "Not always."),
        ((UNDECIDED, BREAKS), "Not always."),
        ((LOSES, BREAKS), "Not on their own."),
        ((KEEPS, UNDECIDED), "Not decided by these runs."),
        ((UNDECIDED, UNDECIDED), "Not decided by these runs."),
    ],
)
def test_the_verdict_follows_the_results(ratios: tuple[tuple[float, ...], ...], verdict: str) -> None:
    groups = [judged(pure_bf16=ratio, master_bf16=KEEPS, collage_plus=KEEPS) for ratio in ratios]
    answer = answer_of(*groups)
    assert answer["verdict"] == verdict
    assert "the result is fp32's" in answer["reason"]
    assert answer["others"].endswith("was tried: collage_plus.")
    for group, row in zip(groups, answer["rows"], strict=True):
        finding = group[1].finding
        assert row["cells"][0]["verdict"] == finding
        assert row["cells"][0]["kind"] == {True: "keeps", False: "loses", None: "undecided"}[group[1].keeps]
        assert group[1].paired.cell in answer["reason"]
        for word in set(Finding) - {finding, Finding.KEEPS}:  # what is said and what the cells say is one
            others = [g[1].finding for g in groups]
            assert word in others or f"weights in bf16 alone {word}" not in answer["reason"]


@pytest.mark.parametrize(
    ("master", "words", "verdict"),
    [
        (BREAKS, "not every run", "breaks"),
        (LOSES, "not every run", "loses"),
        (UNDECIDED, "is not decided by all of these runs", "not decided"),
    ],
)
def test_a_master_copy_is_judged_like_anything_else(master: tuple[float, ...], words: str, verdict: str) -> None:
    answer = answer_of(
        judged(pure_bf16=LOSES, master_bf16=KEEPS), judged(pure_bf16=LOSES, master_bf16=master), miniatures=1
    )
    assert words in answer["reason"]
    mastered, best = answer["rows"][1]["cells"][1:]
    assert mastered["verdict"] == verdict
    assert best["lines"] == ["none is known to"]
    assert mastered["lines"][1].startswith("loss inf or NaN") is (verdict == "breaks")


def test_where_there_are_miniatures_they_are_what_is_said() -> None:
    groups = [judged(pure_bf16=LOSES), judged(pure_bf16=KEEPS), judged(pure_bf16=LOWER), judged(pure_bf16=BREAKS)]
    assert answer_of(*groups, miniatures=1)["reason"].count("weights in bf16 alone") == 1
    assert "ends lower" not in answer_of(*groups)["reason"]  # the first and the last setting
    assert "loses: it ends at" in answer_of(*groups)["reason"]
    assert "breaks: inf or NaN in 1 of 3 seeds" in answer_of(*groups)["reason"]
    assert "master" not in answer_of(*groups)["reason"]


def test_nobody_has_tried() -> None:
    result = SimpleNamespace(miniatures={}, outcomes={"Adam": judged(collage_plus=KEEPS)})
    assert hero(result) is None  # type: ignore[arg-type]


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    write_report([one for one in finished() if one.name == "underflow"], tmp_path / "one.html", figures={})
    one = Page(tmp_path / "one.html")
    assert "bf16?" not in one.prose
    assert [section["id"] for section in one.all("section") if "id" in section] == [
        "loss-scale",
        "numbers",
        "underflow",
    ]
    write_report([], tmp_path / "none.html", figures={})
    assert Page(tmp_path / "none.html").data["groups"] == []


def test_every_experiment_has_a_place() -> None:
    """Tables and figures are those of the command line."""
    config = memory.MemoryConfig()
    found = {"claims": claims.run(claims.ClaimsConfig(("fp16-1e-7",))), "memory": memory.run(config)}
    done = [Finished(name, {}, 1.0, False, result) for name, result in found.items()]
    shown = {section.name: section for section in sections(done, {"memory": "data:x", "gone": "y"})}
    assert list(shown) == ["memory", "claims"]
    assert "1e-7" in shown["claims"].tables[0].rows[0][0]
    assert shown["memory"].tables == ledgers_tables(memory.run(config))
    assert [figure["source"] for figure in shown["memory"].figures] == ["data:x"]


def test_answers_figures_tables_and_lessons_are_in_their_sections(report: Page) -> None:
    assert "Not without a master copy." in report.prose
    assert "fp16 <b>flushes</b> some & keeps others." in report.prose  # as text
    assert "<i>a</i> & b" in report.prose
    images = report.all("img")
    assert [image["alt"] for image in images] == [
        f"{EXPERIMENTS['storage'].question} (storage)",
        f"{EXPERIMENTS['underflow'].question} (gradient histogram)",
    ]
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    assert "The share" not in report.prose
    for title in ("SGD, lr 0.01", "Sums of n numbers from [0, 1)"):
        assert title in report.prose


def test_the_lesson_is_the_docstring() -> None:
    paragraphs = lesson("precision_lab.experiments.storage")
    assert ("code", "fine_tuning") in paragraphs[2]
    assert ("em", "It is the update that is lost.") in paragraphs[2]
    joined = ["".join(text for _, text in paragraph) for paragraph in paragraphs]
    assert "What to look for" in joined
    assert not any("`" in text or "---" in text for text in joined)
    scale = ["".join(text for _, text in paragraph) for paragraph in lesson("precision_lab.experiments.loss_scaling")]
    assert any("only the product c * S decides" in text for text in scale)  # a product is no emphasis


# ---- the scan page ----


def test_names_are_text(scan_page: Page) -> None:
    labels = [tensor["label"] for tensor in scan_page.data["tensors"]]
    assert labels[-len(HOSTILE) :] == list(map(shown, HOSTILE))
    assert all(map(str.isprintable, labels))
    assert "onerror" not in {key for _, attributes in scan_page.elements for key in attributes}
    assert "integers <b>" in scan_page.prose
    assert "</script><script>document" not in scan_page.text
    assert "\u2028" not in scan_page.text


def test_embedded_json_cannot_end_its_element() -> None:
    data = {"</script>": ["<!--", "&lt;", "\u2028\u2029", "]]>", "\ud800"]}
    hostile = data["</script>"]
    embedded = "".join(embed({**data, "entries": iter(hostile), "none": iter(())}))
    assert not {"<", ">", "&", "\u2028", "\u2029"} & set(embedded)
    assert json.loads(embedded) == {**data, "entries": hostile, "none": []}
    for wrong in (float("nan"), iter([float("nan")])):
        with pytest.raises(ValueError, match="JSON"):
            list(embed({"wrong": wrong}))


def test_a_file_of_a_name_that_no_encoding_can_write(tmp_path: Path) -> None:
    result = scanned({"w": np.ones(1, np.float32)})
    info = result.tensors[0].info
    object.__setattr__(info, "file", Path("bad\udcff<x>.npz"))
    write_scan_page(result, tmp_path / "scan.html")
    assert "<x>" not in (tmp_path / "scan.html").read_text(encoding="utf-8")


def test_a_thousand_tensors_are_small_enough_to_send(tmp_path: Path) -> None:
    write_scan_page(thousand_tensors(), tmp_path / "scan.html")
    assert (tmp_path / "scan.html").stat().st_size < 5 * 2**20


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_scan_page(small_scan(), tmp_path / "no" / "scan.html")


def test_nothing_scanned(tmp_path: Path) -> None:
    write_scan_page(scanned({}), tmp_path / "scan.html")
    assert "0 tensors, 0 elements" in Page(tmp_path / "scan.html").prose


# ---- what the scripts are given answers as the histogram does ----


def count_below(data: list[Any], place: tuple[int, int], k: int) -> int:
    """The rule of fates.js, in Python."""
    exponent, cells = place
    return sum(
        sum(row) if e < exponent - k else sum(row[:cells]) if e == exponent - k else 0
        for e, row in enumerate(data[5], start=data[4])
    )


def test_merged_classes_still_answer_every_format_exactly() -> None:
    formats = menu([get_format("e6m9"), get_format("e3m0")])
    cuts = cuts_of(formats)
    assert len(cuts) < 16 < CLASSES
    histogram = ExponentHistogram.of(thresholds())
    data = histogram_data(histogram, cuts)
    assert data[:2] == [histogram.zero, histogram.nonfinite]
    assert sum(map(sum, data[5])) == histogram.nonzero
    for fmt in formats:
        places = format_data(fmt, cuts)["places"]
        for k in range(25):
            c = histogram.conversion(fmt, 2.0**k)
            flushed = count_below(data, places["flush"], k)
            small = count_below(data, places["normal"], k) if places["normal"] else flushed
            overflowed = histogram.nonzero - count_below(data, places["overflow"], k)
            assert (flushed, small - flushed, overflowed) == (c.flushed, c.subnormal, c.overflowed), (fmt, k)


def test_the_menu_begins_with_what_was_asked_for() -> None:
    asked = [get_format("e6m9"), get_format("bf16")]
    assert [fmt.name for fmt in menu(asked)][:3] == ["e6m9", "bf16", "fp32"]
    assert len(menu(asked)) == len(FORMATS) + 1


def test_nothing_is_packed_to_nothing() -> None:
    assert histogram_data(ExponentHistogram.empty(), [1, 2]) == [0, 0, None, None, 0, []]


# ---- the command ----


def test_scan_writes_a_page(command_line: CommandLine, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {HOSTILE[0].replace("/", ""): np.array([2**-30, 1], np.float32), "b": np.zeros(1)}
    np.savez(tmp_path / "gradients.npz", **arrays)
    page = tmp_path / "page.html"
    finished = command_line("scan", tmp_path / "gradients.npz", "-f", "bf16", "--loss-scale", "16", "--html", page)
    assert finished.status == 0, finished.err
    data = Page(page).data
    assert (data["formats"][0]["name"], data["k"], len(data["tensors"])) == ("bf16", 4, 2)
    assert re.search("What each format would do to gradients.npz", Page(page).prose)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_scan_says_before_the_work_that_a_page_cannot_be_written(command_line: CommandLine, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(1, np.float32))
    finished = command_line("scan", tmp_path / "x.npy", "--html", tmp_path / "no" / "page.html")
    assert finished.status != 0
    assert "cannot write" in finished.err
    assert finished.out == ""
