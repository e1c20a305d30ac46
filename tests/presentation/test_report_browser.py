"""The pages in a headless Chromium: what can be moved moves, and says what Python says."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import scan
from precision_lab.analysis.histogram import Conversion, ExponentHistogram
from precision_lab.analysis.loss_scale_plan import plan_loss_scale
from precision_lab.numerics.formats import FORMATS, FloatFormat, get_format
from precision_lab.numerics.inspection import inspect_number, parse_number
from precision_lab.numerics.reference import decode
from precision_lab.presentation.report import write_scan_page
from precision_lab.presentation.tables.table import percent
from precision_lab.support.text import shown
from tests.presentation.pages import HOSTILE, result_of, small_scan, thousand_tensors, written

if importlib.util.find_spec("selenium") is not None:  # `make test` reads this file without it; the tests would fail
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.browser

FATES = ("flushed", "subnormal", "kept", "overflowed")
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,900"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


class Browser:
    """A Chromium with a page in it."""

    def __init__(self, driver: webdriver.Chrome, pages: dict[str, Path]) -> None:
        self.driver = driver
        self.pages = pages

    def open(self, page: str, *, width: int = 1280, dark: bool = False, media: str = "") -> None:
        """Open a page in a window of this width, with nothing remembered."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features.append({"name": "prefers-reduced-motion", "value": "reduce"})  # or clicks meet what is still moving
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(self.pages[page].as_uri())
        self.run("localStorage.clear()")
        self.driver.refresh()
        assert self.run("return document.documentElement.classList.contains('ready')")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def json(self, expression: str, *arguments: Any) -> Any:
        """Evaluate an expression over `a`; large answers are quicker as one text."""
        return json.loads(self.run(f"const a = arguments; return JSON.stringify({expression})", *arguments))

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def text(self, selector: str) -> str:
        found: str = self.run("return document.querySelector(arguments[0]).textContent", selector)
        return found

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.json("[...document.querySelectorAll(a[0])].map((e) => e.textContent)", selector)
        return found

    def choose(self, selector: str, text: str) -> None:
        """Choose from a menu as the keyboard would."""
        menu = self.one(selector)
        index = [option.get_attribute("textContent") for option in menu.find_elements(By.TAG_NAME, "option")].index(
            text
        )
        menu.send_keys(Keys.HOME, *[Keys.ARROW_DOWN] * index)

    def type(self, selector: str, text: str) -> None:
        element = self.one(selector)
        element.clear()
        element.send_keys(text)

    def problems(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("pages")
    pages = {name: folder / f"{name}.html" for name in ("report", "scan", "thousand")}
    written(pages["report"], "storage")
    write_scan_page(small_scan(), pages["scan"])
    write_scan_page(thousand_tensors(), pages["thousand"])
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for argument in (*ARGUMENTS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # driver and browser are named: nothing is looked for, and nothing fetched
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield Browser(driver, pages)
    finally:
        driver.quit()


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    """The browser; whatever a test does, the page must neither complain nor ask for anything but itself."""
    shared.problems()
    shared.requests()
    yield shared
    assert shared.problems() == []
    schemes = {address.split(":")[0] for address in shared.requests()}
    assert schemes <= {"file", "data", "chrome"}  # the browser's own first tab is chrome:


# ---- the loss scale and the format ----


def conversions(browser: Browser) -> list[list[list[list[int]]]]:
    """What the page's scripts count: per histogram, format and k in 0..24 the four fates."""
    found: list[list[list[list[int]]]] = browser.json(
        """lab.page.histograms.map((h) => lab.data.formats.map((f) => Array.from({length: 25}, (_, k) => {
          const c = lab.conversion(h, f, k);
          const rows = h.sums.map((_, row) => lab.rowFates(h, f, k, row));
          for (const fate of lab.FATES) {
            if (rows.reduce((sum, row) => sum + row[fate], 0) !== c[fate]) throw new Error(`bars of ${fate}`);
          }
          return lab.FATES.map((fate) => c[fate]);
        })))"""
    )
    return found


def fates(c: Conversion) -> list[int]:
    return [c.flushed, c.subnormal, c.kept, c.overflowed]


def scan_histograms() -> list[ExponentHistogram]:
    return [*(tensor.histogram for tensor in small_scan().tensors), small_scan().total]


def test_every_loss_scale_and_format_counts_as_in_python(browser: Browser) -> None:
    browser.open("scan")
    formats = [get_format(name) for name in browser.json("lab.data.formats.map((f) => f.name)")]
    assert [fmt.name for fmt in formats[:3]] == ["fp16", "bf16", "e6m9"]
    assert set(FORMATS.values()) < set(formats)
    expected = [[[fates(h.conversion(f, 2.0**k)) for k in range(25)] for f in formats] for h in scan_histograms()]
    assert conversions(browser) == expected


def report_histograms() -> list[ExponentHistogram]:
    return [
        histogram
        for stage in result_of("underflow").stages
        for group, tensors in stage.tensors.items()
        for histogram in (stage.histogram(group), *tensors.values())
    ]


def test_the_report_counts_as_the_experiment_did(browser: Browser) -> None:
    browser.open("report")
    found = conversions(browser)
    formats = browser.json("lab.data.formats.map((f) => f.name)")
    expected = [[[fates(h.conversion(f, 2.0**k)) for k in range(25)] for f in formats] for h in report_histograms()]
    assert found == expected


def test_the_safe_window_is_that_of_the_planner(browser: Browser) -> None:
    browser.open("scan")
    found = browser.json("lab.page.histograms.map((h) => lab.data.formats.map((f) => lab.safeWindow(h, f)))")
    names = browser.json("lab.data.formats.map((f) => f.name)")
    for histogram, windows in zip(scan_histograms(), found, strict=True):
        for name, window in zip(names, windows, strict=True):
            plan = plan_loss_scale(histogram, name)
            expected = (plan.smallest_sufficient, plan.largest_safe)
            assert tuple(None if k is None else 2.0**k for k in (window["least"], window["most"])) == expected, name


def shown_fates(browser: Browser) -> dict[str, str]:
    script = """Object.fromEntries(lab.FATES.flatMap((fate) => [
      [fate, document.querySelector(`#${fate}-share`).textContent],
      [`${fate}s`, document.querySelector(`#${fate}-count`).textContent],
    ]))"""
    found: dict[str, str] = browser.json(script)
    return found


def python_fates(c: Conversion) -> dict[str, str]:
    counts = dict(zip(FATES, fates(c), strict=True))
    return {fate: f"{percent(n / c.nonzero if c.nonzero else 0.0)} %" for fate, n in counts.items()} | {
        f"{fate}s": f"{n:,}" for fate, n in counts.items()
    }


def test_the_slider_moves_the_figures_to_what_python_computes(browser: Browser) -> None:
    browser.open("scan")
    histogram = small_scan().total
    slider = browser.one("#scale")
    bars = set()
    for k in range(25):
        assert browser.text("#scale-text") == f"S = 2^{k}"
        assert slider.get_attribute("aria-valuetext") == f"S = 2^{k}"
        c = histogram.conversion("fp16", 2.0**k)
        assert shown_fates(browser) == python_fates(c)
        assert browser.text("#flushed-of-all") == f"{percent(c.flushed_of_all)} %"
        assert browser.text("#zero-before") == f"{percent(c.zero / c.count)} %"
        assert browser.text("#zero-after") == f"{percent(c.zero_after_of_all)} %"
        bars.add(
            tuple(
                browser.json("lab.FATES.map((fate) => document.querySelector(`#chart path.${fate}`).getAttribute('d'))")
            )
        )
        slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.text("#scale-text") == "S = 2^24"  # and no further
    lost = [(c.flushed + c.overflowed, k) for k in range(25) for c in [histogram.conversion("fp16", 2.0**k)]]
    assert f"; at S = 2^{min(lost)[1]} the fewest are lost, {min(lost)[0]:,}." in browser.text("#window")
    assert len(bars) == 25, "the bars recolour at every step"
    assert browser.run("return [...document.querySelectorAll('#strip i')].findIndex((i) => i.matches('.here'))") == 24
    states = browser.json("[...document.querySelectorAll('#strip i')].map((i) => i.classList[0])")
    for k, state in enumerate(states):
        c = histogram.conversion("fp16", 2.0**k)
        expected = {(0, 0): "safe", (1, 0): "flushed", (0, 1): "overflowed", (1, 1): "both"}
        assert state == expected[bool(c.flushed), bool(c.overflowed)], k


def test_the_menus(browser: Browser) -> None:
    browser.open("report")
    labels = browser.texts("#group option")
    assert len(labels) == len(report_histograms())
    browser.one("#scale").send_keys(*[Keys.ARROW_RIGHT] * 7)
    for name, index in (("fp8_e4m3fn", 1), ("bf16", 0), ("fp8_e5m2", 4)):
        browser.choose("#group", labels[index])
        browser.choose("#format", name)
        assert browser.text("#group-name") == labels[index]
        assert shown_fates(browser) == python_fates(report_histograms()[index].conversion(name, 2.0**7))


def test_the_slider_begins_at_the_loss_scale_of_the_scan(browser: Browser, tmp_path: Path) -> None:
    from tests.presentation.pages import scanned

    path = tmp_path / "scaled.html"
    write_scan_page(scanned({"w": [2.0**-40, 1.0]}, formats=("fp8_e5m2",), loss_scale=2.0**30), path)
    browser.pages["scaled"] = path
    browser.open("scaled")
    assert browser.text("#scale-text") == "S = 2^30"
    assert browser.run("return document.querySelector('#format').value") == "fp8_e5m2"
    assert browser.text("#overflowed-share") == "50.00 %"
    assert "Nothing is flushed from S = 2^24 on; nothing overflows up to S = 2^15." in browser.text("#window")


def test_percentages_are_written_as_python_writes_them(browser: Browser) -> None:
    browser.open("scan")
    rng = random.Random(0)
    shares = (
        [k / 800 for k in range(801)] + [k / 10**5 for k in range(0, 10**5, 7)] + [rng.random() for _ in range(500)]
    )
    shares += [1e-9, 0.0001, 0.9999, math.nextafter(1, 0), 0.99995, 0.12125, 0.00125]
    assert browser.json("a[0].map(lab.percent)", shares) == [percent(share) for share in shares]


# ---- the number explorer ----


def hard_numbers(fmt: FloatFormat) -> list[str]:
    """Values, ties and what is a hair beside them, as text: thresholds, ends of the range, subnormals, and others."""
    rng = random.Random(fmt.name)
    codes = {0, 1, 2, 3, 2**fmt.mantissa_bits - 1, 2**fmt.mantissa_bits, 2**fmt.mantissa_bits + 1}
    codes |= {rng.randrange(2 ** (fmt.bits - 1)) for _ in range(30)} | {
        rng.randrange(2**fmt.mantissa_bits) for _ in range(8)
    }
    values = sorted({decode(code, fmt) for code in codes} - {math.inf})
    finite = [Fraction(value) for value in values if math.isfinite(value)]
    ulp = Fraction(fmt.smallest_subnormal)
    middles = [(a + b) / 2 for code in codes for a, b in [pair(code, fmt)] if b is not None]
    edges = [Fraction(e) for e in (fmt.flush_threshold, fmt.subnormal_threshold, fmt.overflow_threshold, fmt.max)]
    hair = Fraction(1, 2**60)
    numbers = (
        finite + [m * scale for m in (*middles, *edges) for scale in (1, 1 + hair, 1 - hair)] + [ulp / 3, ulp * 2 / 3]
    )
    texts = [f"{n.numerator}/{n.denominator}" for n in numbers]
    texts += [f"-{text}" for text in texts[::3]]
    texts += ["0", "-0", "inf", "-inf", "nan", "-nan", "1e-7", "0.1", "-1/3", "1e400", "1e-400", "-2^-9999", "2^9999"]
    texts += ["65519.99", "65520", "464", "465", "-464.0001", "1.5*2^-14", "0x1.8p-3", "0X.8P+1", "+.5", "3.", "1_000"]
    return [*texts, "2**-24", "1e5", "0.25*2^-24", "1/3*2^2", "6.0e-8"]


def pair(code: int, fmt: FloatFormat) -> tuple[Fraction, Fraction | None]:
    """The values of a code and of the next, where both are finite."""
    low, high = (decode(c, fmt) if c < 2 ** (fmt.bits - 1) else math.nan for c in (code, code + 1))
    if not math.isfinite(low):
        return Fraction(0), None
    return Fraction(low), Fraction(high) if math.isfinite(high) else None


INSPECT = """a[0].map((text) => {
  const f = lab.data.formats.find((f) => f.name === a[1]);
  const x = lab.numbers.parse(text);
  const i = lab.numbers.inspect(x, lab.numbers.encode(x, f), f);
  const text_of = (v) => (Object.is(v, -0) ? "-0" : String(v));
  const numbers = ["stored", "error", "relative", "below", "above", "ulp"].map((n) => text_of(i[n]));
  return [i.code, i.kind, i.lost, ...numbers];
})"""


def as_python(value: str) -> str:
    return repr(float(value.replace("Infinity", "inf")))


@pytest.mark.parametrize("name", FORMATS)
def test_hard_numbers_are_rounded_as_in_python(browser: Browser, name: str) -> None:
    fmt = get_format(name)
    texts = hard_numbers(fmt)
    assert len(texts) > 80
    if "numberExplorer" not in browser.run("return typeof lab === 'undefined' ? '' : Object.keys(lab).join()"):
        browser.open("scan")
    for text, found in zip(texts, browser.json(INSPECT, texts, name), strict=True):
        i = inspect_number(parse_number(text), fmt)
        numbers = (i.stored, i.error, i.relative_error, i.below, i.above, i.ulp)
        assert found[:3] == [i.code, i.kind, i.lost], text
        assert [as_python(value) for value in found[3:]] == [repr(float(v)) for v in numbers], text


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3fnuz", "fp6_e2m3fn"])
def test_every_code_means_what_it_means_in_python(browser: Browser, name: str) -> None:
    if "numberExplorer" not in browser.run("return typeof lab === 'undefined' ? '' : Object.keys(lab).join()"):
        browser.open("scan")
    fmt = get_format(name)
    script = """Array.from({length: 2 ** a[1]}, (_, code) => {
      const f = lab.data.formats.find((f) => f.name === a[0]);
      const value = lab.numbers.toDouble(lab.numbers.decode(code, f));
      return Object.is(value, -0) ? "-0" : String(value);
    })"""
    expected = [repr(abs(v) if math.isnan(v) else v) for v in (decode(code, fmt) for code in range(2**fmt.bits))]
    assert [as_python(value) for value in browser.json(script, name, fmt.bits)] == expected


def test_what_is_no_number_is_refused_as_in_python(browser: Browser) -> None:
    browser.open("scan")
    texts = [
        "",
        "x",
        "--1",
        "1/0",
        "1e",
        "0x",
        "0xg",
        "2^",
        "2^0.5",
        "1e10001",
        "2^99999",
        "1.5/3",
        "+-1",
        "infinit",
        ".",
    ]
    assert browser.json("a[0].map((text) => lab.numbers.parse(text))", texts) == [None] * len(texts)
    for text in texts:
        with pytest.raises(ValueError, match="cannot read"):
            parse_number(text)
    before = browser.text("#number-value")
    browser.type("#number", "1e")
    assert browser.one("#number").get_attribute("aria-invalid") == "true"
    assert "1.5*2^-14" in browser.text("#number-problem")
    assert browser.text("#number-value") != ""
    browser.type("#number", "0.1")
    assert browser.one("#number").get_attribute("aria-invalid") == "false"
    assert browser.text("#number-problem") == ""
    assert browser.text("#number-value") == before


def bits_of(browser: Browser) -> str:
    pressed = browser.json("[...document.querySelectorAll('#bits button')].map((b) => b.getAttribute('aria-pressed'))")
    digits = "".join(browser.texts("#bits button"))
    assert digits == "".join("1" if state == "true" else "0" for state in pressed)
    return digits


def test_flipped_bits(browser: Browser) -> None:
    browser.open("report")
    browser.choose("#number-format", "fp16")
    browser.type("#number", "1")
    assert bits_of(browser) == "0011110000000000"
    assert browser.text("#number-fate") == "exactly"
    buttons = browser.all("#bits button")
    assert [len(browser.all(f".field.{name} button")) for name in ("sign", "exponent", "mantissa")] == [1, 5, 10]
    assert buttons[0].accessible_name == "sign bit 1"
    assert buttons[-1].accessible_name == "mantissa bit 1"
    buttons[-1].click()  # the last bit: one ulp more
    assert browser.text("#number-value") == "1.0009765625"
    assert browser.text("#number-error") == browser.text("#number-ulp") == "0.0009765625"
    assert browser.text("#number-fate") == "not the rounding of what was typed"
    buttons[0].send_keys(Keys.SPACE)  # the sign
    assert browser.text("#number-value") == "-1.0009765625"
    assert (browser.text("#number-below"), browser.text("#number-above")) == ("-1.001953125", "-1")
    browser.one("#number-above").click()
    assert (browser.text("#number-value"), browser.text("#number-code")) == ("-1", "0xbc00")
    browser.one("#number-again").click()
    assert (browser.text("#number-value"), browser.text("#number-code")) == ("1", "0x3c00")
    for button in buttons[1:6]:
        if button.text == "0":
            button.click()
    assert (browser.text("#number-value"), browser.text("#number-kind")) == ("inf", "infinity")
    assert browser.text("#number-error") == browser.text("#number-above") == "–"
    assert browser.one("#number-above").get_attribute("disabled")
    buttons[-1].click()
    assert (browser.text("#number-value"), browser.text("#number-kind")) == ("NaN", "NaN")
    browser.choose("#number-format", "fp8_e4m3fn")  # rounded anew
    browser.type("#number", "465")
    assert (bits_of(browser), browser.text("#number-value")) == ("01111111", "NaN")
    assert browser.text("#number-fate") == "overflowed"


def test_every_bit_of_every_format_can_be_flipped(browser: Browser) -> None:
    browser.open("report")
    browser.type("#number", "0.1")
    for fmt in FORMATS.values():
        browser.run("const m = document.querySelector('#number-format'); m.value = arguments[0]", fmt.name)
        browser.run("document.querySelector('#number-format').dispatchEvent(new Event('change'))")
        code = inspect_number(parse_number("0.1"), fmt).code
        assert len(bits_of(browser)) == fmt.bits
        found = browser.json(
            """[...document.querySelectorAll('#bits button')].map((button) => {
              const show = () => document.querySelector('#number-code').textContent;
              button.click();
              const flipped = show();
              button.click();
              return [flipped, show()];
            })"""
        )
        for place, (flipped, back) in zip(range(fmt.bits - 1, -1, -1), found, strict=True):
            assert (int(flipped, 16), int(back, 16)) == (code ^ 1 << place, code), fmt


def test_one_number_in_every_format(browser: Browser) -> None:
    browser.open("report")
    browser.type("#number", "2^-25")
    browser.one("#numbers summary").click()
    script = (
        "[...document.querySelectorAll('#number-everywhere tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    rows = {row[0]: row for row in browser.json(script)}
    assert list(rows) == browser.json("lab.data.formats.map((f) => f.name)")
    assert rows["fp16"][1:] == ["0x0000", "0", "-2.9802322387695312e-8", "5.960464477539063e-8", "flushed to zero"]
    assert rows["bf16"][1:3] == ["0x3300", "2.9802322387695312e-8"]


# ---- the table of tensors ----


def shown_names(browser: Browser) -> list[str]:
    return browser.texts("#tensors tbody th")


def test_worst_first(browser: Browser) -> None:
    browser.open("scan")
    result = small_scan()

    def lost(i: int) -> float:
        c = result.tensors[i].histogram.conversion("fp16")
        return (c.flushed + c.overflowed) / c.nonzero if c.nonzero else 0.0

    order = sorted(range(len(result.tensors)), key=lambda i: (-lost(i), i))
    assert shown_names(browser) == [result.labels[i] for i in order]
    assert browser.texts("#tensors tbody td:nth-child(4)") == [percent(lost(i)) for i in order]
    total = result.total.conversion("fp16")
    for key in ("flushed", "subnormal", "overflowed"):
        assert browser.text(f"#total-{key}") == percent(getattr(total, f"{key}_of_nonzero"))
    assert browser.text("#total-count") == f"{total.count:,}"


def test_sorting_by_click_and_by_keyboard(browser: Browser) -> None:
    browser.open("scan")
    counts = [tensor.histogram.count for tensor in small_scan().tensors]

    def column() -> list[int]:
        return [int(text.replace(",", "")) for text in browser.texts("#tensors tbody td:nth-child(3)")]

    heading = browser.one("th[data-key=count]")
    heading.find_element(By.TAG_NAME, "button").click()
    assert column() == sorted(counts, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column() == sorted(counts)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert len(browser.all("#tensors [aria-sort]")) == 1
    browser.one("th[data-key=label] button").send_keys(Keys.SPACE)
    names = shown_names(browser)
    assert names == sorted(names, key=str.lower)
    for key in browser.json("[...document.querySelectorAll('#tensors th[data-key]')].map((th) => th.dataset.key)"):
        browser.one(f"th[data-key={key}] button").click()
        assert browser.one(f"th[data-key={key}]").get_attribute("aria-sort"), key


def test_searching(browser: Browser) -> None:
    browser.open("scan")
    browser.type("#search", "LAYERS .1")
    assert sorted(shown_names(browser)) == ["layers.1.weight", "layers.10.bias", "layers.11.weight"]
    assert browser.text("#found") == f"3 of {len(small_scan().tensors)} tensors"
    browser.type("#search", "<script>")
    assert sorted(shown_names(browser)) == sorted(name for name in HOSTILE if "<script>" in name)
    browser.type("#search", "nowhere")
    assert shown_names(browser) == []
    assert browser.text("#found").startswith("0 of")


def test_the_precision_is_that_of_the_formats_and_the_loss_scale_of_the_scan(browser: Browser) -> None:
    browser.open("scan")
    result = small_scan()

    def cells() -> list[list[str]]:
        return [browser.texts(f"#tensors tbody td:nth-child({i})") for i in (8, 9)]

    for number, fmt in enumerate(("fp16", "bf16", "e6m9")):
        browser.choose("#format", fmt)
        reports = [(result.tensors[result.labels.index(name)].precision or ())[number] for name in shown_names(browser)]
        assert cells() == [
            ["–" if math.isnan(r.sqnr_db) else f"{r.sqnr_db:.1f}" for r in reports],
            [percent(r.changed_of_finite) for r in reports],
        ]
        assert browser.text("#total-changed") == percent((result.totals[0].precision or ())[number].changed_of_finite)
    browser.one("th[data-key=sqnr] button").click()  # worst first, and what is not known last
    shown_ratios = [float(cell) for cell in cells()[0] if cell != "–"]
    assert shown_ratios == sorted(shown_ratios)
    assert len(shown_ratios) > 10
    browser.choose("#format", "fp8_e4m3fn")  # not asked about
    assert {*cells()[0], *cells()[1], browser.text("#total-sqnr")} == {"–"}
    browser.choose("#format", "fp16")
    assert {*cells()[1]} != {"–"}
    browser.one("#scale").send_keys(Keys.ARROW_RIGHT)
    assert {*cells()[0], *cells()[1]} == {"–"}


def test_totals_of_roles_can_be_chosen(browser: Browser, tmp_path: Path) -> None:
    result = scan(
        {
            "w": np.array([0.1, 2.0**-26], np.float32),
            "w.exp_avg": np.array([1e-9], np.float32),
            "w.step": np.array([5.0], np.float32),
        }
    )
    write_scan_page(result, tmp_path / "roles.html")
    browser.pages["roles"] = tmp_path / "roles.html"
    browser.open("roles")
    assert browser.text("#group-name") == "parameters, together"
    assert browser.text("#total-count") == "2"
    assert browser.text("#total-flushed-1") == "100"
    browser.one("#all-tensors-1").click()
    assert browser.text("#group-name") == "optimizer state, together"
    assert browser.one("#all-tensors").get_attribute("aria-pressed") == "false"
    assert browser.one("#all-tensors-1").get_attribute("aria-pressed") == "true"
    assert browser.text("#group-size").startswith("1 elements")


def test_choosing_a_row_shows_its_histogram(browser: Browser) -> None:
    browser.open("scan")
    result = small_scan()
    assert browser.text("#group-name") == "All tensors together"
    assert browser.one("#all-tensors").get_attribute("aria-pressed") == "true"
    names = shown_names(browser)
    for i, key in ((3, Keys.ENTER), (5, Keys.SPACE)):
        browser.all("#tensors tbody .name")[i].send_keys(key)
        histogram = result.tensors[result.labels.index(names[i])].histogram
        assert browser.text("#group-name") == names[i]
        assert shown_fates(browser) == python_fates(histogram.conversion("fp16"))
        assert browser.texts("#tensors tbody .chosen th") == [names[i]]
        assert browser.run("return document.activeElement.textContent") == names[i], "the focus stays"
        assert [b.text for b in browser.all("#tensors .name[aria-pressed=true]")] == [names[i]]
    browser.all("#tensors tbody tr")[1].click()
    assert browser.text("#group-name") == shown_names(browser)[1]
    browser.one("#all-tensors").click()
    assert shown_fates(browser) == python_fates(result.total.conversion("fp16"))
    assert not browser.all("#tensors tbody .chosen")


def test_slider_and_menu_move_the_table(browser: Browser) -> None:
    browser.open("scan")
    browser.choose("#format", "fp8_e4m3fn")
    browser.one("#scale").send_keys(*[Keys.ARROW_RIGHT] * 5)
    result = small_scan()
    rows = browser.json(
        "[...document.querySelectorAll('#tensors tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    shares = []
    for name, _, count, lost, flushed, subnormal, overflowed, _, _, zero, *_ in rows:
        index = next(i for i, label in enumerate(result.labels) if label == name)
        c = result.tensors[index].histogram.conversion("fp8_e4m3fn", 32)
        shares.append((c.flushed + c.overflowed) / c.nonzero if c.nonzero else 0.0)
        assert [count, flushed, subnormal, overflowed] == [
            f"{c.count:,}",
            *map(percent, (c.flushed_of_nonzero, c.subnormal_of_nonzero, c.overflowed_of_nonzero)),
        ]
        assert (lost, zero) == (percent(shares[-1]), percent(c.zero / c.count if c.count else 0.0))
    assert shares == sorted(shares, reverse=True)
    drawn = browser.json(
        "[...document.querySelectorAll('.small-chart')].map((s) => s.querySelectorAll('path[d*=M]').length)"
    )
    assert [bool(paths) for paths in drawn] == [row[10:] != [] and row[11] != "–" for row in rows]


def test_names_are_text_everywhere(browser: Browser) -> None:
    browser.open("scan")
    assert set(map(shown, HOSTILE)) <= set(shown_names(browser))
    assert browser.run("return document.title") == "precision_lab scan: gradients.npz"
    assert browser.run("return [document.scripts.length, document.images.length]") == [3, 0]
    for name in HOSTILE[:4]:
        browser.type("#search", name[:12])
        button = next(b for b in browser.all("#tensors tbody .name") if b.get_attribute("textContent") == name)
        assert button.get_attribute("title") == name
        button.click()
        assert browser.text("#group-name") == name
        assert name in (browser.one("#chart").get_attribute("aria-label") or "")
    assert browser.run("return document.title") == "precision_lab scan: gradients.npz"


def test_a_thousand_tensors_stay_responsive(browser: Browser) -> None:
    browser.open("thousand")
    assert browser.text("#found") == "1,000 of 1,000 tensors"
    timed = """
      const find = (name) => document.querySelector(name);
      const time = (act) => {
        const start = performance.now();
        act();
        document.documentElement.getBoundingClientRect();
        return performance.now() - start;
      };
      const search = (text) => {
        find('#search').value = text;
        find('#search').dispatchEvent(new Event('input'));
      };
      const sort = (key) => find(`th[data-key=${key}] button`).click();
      const move = (k) => {
        find('#scale').value = k;
        for (const event of ['input', 'change']) find('#scale').dispatchEvent(new Event(event));
      };
      const acts = [
        () => search('part_3'), () => search(''), () => search('9'), () => sort('count'), () => sort('label'),
        () => search(''), () => sort('max'), () => move(9), () => move(0),
      ];
      return acts.map(time);"""
    fastest = [math.inf] * 9
    for _ in range(20):  # others use this machine too: what is quick once is quick
        fastest = [min(times) for times in zip(fastest, browser.run(timed), strict=True)]
        if max(fastest) < 200:
            break
    assert max(fastest) < 200, fastest
    shown = len(shown_names(browser))
    assert shown == 100
    assert browser.text("#more") == "Show 100 more of 900"
    for more in (200, 400, 800, 1000):
        browser.one("#more").click()
        assert len(shown_names(browser)) == more
    browser.type("#search", "layers.12.")
    assert len(shown_names(browser)) == 8
    assert not browser.one("#more").is_displayed()


# ---- light and dark, small and printed ----


def test_light_and_dark(browser: Browser) -> None:
    def look() -> tuple[str, str, str]:
        colour = browser.run("return getComputedStyle(document.body).backgroundColor")
        return (
            browser.run("return document.documentElement.dataset.theme"),
            colour,
            str(browser.one("#theme").get_attribute("aria-pressed")),
        )

    browser.open("report")
    light = look()
    assert (light[0], light[2]) == ("light", "false")
    browser.one("#theme").click()
    dark = look()
    assert (dark[0], dark[2]) == ("dark", "true")
    assert dark[1] != light[1]
    browser.driver.refresh()
    assert look() == dark, "it is remembered"
    browser.one("#theme").send_keys(Keys.SPACE)
    assert look() == light
    browser.open("report", dark=True)
    assert look() == dark, "as the system has it"
    browser.one("#theme").click()
    assert look() == light


CONTRAST = """
const channels = (colour) => {
  const numbers = colour.match(/[\\d.]+/g).map(Number);
  const scale = colour.startsWith('color(srgb') ? 255 : 1;
  return [...numbers.slice(0, 3).map((c) => c * scale), numbers[3] ?? 1];
};
const linear = (c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const luminance = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(rgb[i]), 0);
const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
const back = (e) => channels(getComputedStyle(e).backgroundColor);
const ground = (e) => (e ? over(back(e), ground(e.parentElement)) : [255, 255, 255]);
const bad = new Set();
document.querySelectorAll('details').forEach((d) => { d.open = true; });
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.data.trim();
  const e = walker.currentNode.parentElement;
  if (!text || e.closest('script, noscript, option, [disabled]') || !e.getClientRects().length) continue;
  const { fill, color } = getComputedStyle(e);
  const behind = ground(e);
  const [a, b] = [over(channels(e.closest('svg') ? fill : color), behind), behind].map(luminance);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.add(`${ratio.toFixed(2)} ${e.tagName}.${e.className} ${text.slice(0, 30)}`);
}
return [...bad];
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("page", ["report", "scan"])
def test_every_text_can_be_read(browser: Browser, page: str, dark: bool) -> None:
    browser.open(page, dark=dark)
    if page == "scan":
        browser.all("#tensors tbody .name")[1].click()
    assert browser.run(CONTRAST) == []


def test_the_check_of_the_contrast_can_fail(browser: Browser) -> None:
    browser.open("scan")
    browser.run("document.querySelector('h1').style.color = '#999'")
    assert len(browser.run(CONTRAST)) == 1


NAMED = """
const bad = [];
const all = (selector) => [...document.querySelectorAll(selector)];
all('details').forEach((d) => { d.open = true; });
const ids = all('[id]').map((e) => e.id);
if (new Set(ids).size !== ids.length) bad.push('an id twice');
if (all('img').some((e) => !e.alt)) bad.push('a picture without words');
if (all('table').some((e) => !e.querySelector('thead th[scope=col]'))) bad.push('a table without headings');
if (all('tbody tr').some((e) => !e.querySelector('th[scope=row]'))) bad.push('a row without a heading');
if (all('[tabindex]').some((e) => e.tabIndex > 0)) bad.push('an order of its own');
const levels = all('h1, h2, h3').map((e) => Number(e.tagName[1]));
if (levels.some((level, i) => level > (levels[i - 1] ?? 0) + 1)) bad.push('a heading too deep');
for (const selector of ['main', 'h1', 'header', 'footer', 'html[lang=en]'])
  if (all(selector).length !== 1) bad.push(`not one ${selector}`);
if (all('[aria-live]').length !== 2) bad.push('who is read out?');
return bad;
"""


@pytest.mark.parametrize("page", ["report", "scan"])
def test_screen_readers_find_names_and_landmarks(browser: Browser, page: str) -> None:
    browser.open(page)
    assert browser.run(NAMED) == []
    for element in browser.all("button, select, input, summary, svg[role], [role=region], a"):
        assert element.accessible_name or not element.is_displayed(), element.get_attribute("outerHTML")
    browser.one("#scale").send_keys(Keys.ARROW_RIGHT)
    script = "const done = arguments[0]; setTimeout(() => done(document.querySelector('#spoken').textContent), 700)"
    assert "in fp16 at S = 2^1: " in browser.driver.execute_async_script(script)


@pytest.mark.parametrize("page", ["report", "scan"])
def test_with_the_keyboard_alone(browser: Browser, page: str) -> None:
    browser.open(page)
    active = browser.driver.switch_to.active_element
    active.send_keys(Keys.TAB)
    assert browser.run("return document.activeElement.textContent") == "Skip to the content"
    assert browser.run("return document.activeElement.getBoundingClientRect().left") >= 0, (
        "it shows when it has the focus"
    )
    outline = "const s = getComputedStyle(document.activeElement); return s.outlineStyle + parseFloat(s.outlineWidth)"
    assert browser.run(outline) == "solid3"
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "main"
    reached = set()
    for _ in range(25):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.run("const e = document.activeElement; return e.id || e.closest('[id]')?.id"))
    assert {"format", "scale"} | (
        {"search", "all-tensors"} if page == "scan" else {"group", "number", "bits"}
    ) <= reached | ({"all-tensors"} if page == "scan" else set())


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("page", ["report", "scan", "thousand"])
def test_a_phone_needs_no_scrolling_sideways(browser: Browser, page: str, dark: bool) -> None:
    browser.open(page, width=360, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.run("document.querySelector('#number-format').value = 'fp32'")
    browser.run("document.querySelector('#number-format').dispatchEvent(new Event('change'))")
    assert len(browser.all("#bits button")) == 32
    assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    wide = browser.json(
        """[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg, .unseen')
          && e.getBoundingClientRect().right > 364).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


@pytest.mark.parametrize("width", [1280, 375])
def test_the_first_screen_answers(browser: Browser, width: int) -> None:
    """No cell runs into the next, and on a desk the miniatures are seen without scrolling."""
    browser.open("report", width=width)
    cells = "[...document.querySelectorAll('.hero th, .hero td')]"
    assert browser.json(f"{cells}.filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.textContent)") == []
    bottoms = browser.json(
        "[...document.querySelectorAll('.hero tbody tr')].map((e) => e.getBoundingClientRect().bottom)"
    )
    assert len(bottoms) == 4
    assert width < 500 or bottoms[1] < 900
    browser.run("document.querySelector('.hero th').style.width = '1px'")
    browser.run("document.querySelector('.hero td').textContent = 'x'.repeat(200)")
    assert browser.json(f"{cells}.some((e) => e.scrollWidth > e.clientWidth)"), "the check can fail"


def test_printed(browser: Browser) -> None:
    browser.open("report", dark=True, media="print")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for selector in ("#theme", ".skip", "#scale"):
        assert not browser.one(selector).is_displayed()
    pdf = base64.b64decode(browser.driver.print_page())
    assert pdf.startswith(b"%PDF")


def test_nothing_can_be_fetched(shared: Browser) -> None:
    """The policy of the page, tried: no connection, no picture from elsewhere, no script that is not its own."""
    shared.open("scan")
    script = """
      const done = arguments[0];
      const refused = [];
      document.addEventListener('securitypolicyviolation', (e) => refused.push(e.effectiveDirective));
      fetch('http://127.0.0.1:9/').catch(() => {});
      new Image().src = 'http://127.0.0.1:9/x.png';
      document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title = "taken"'}));
      document.body.insertAdjacentHTML('beforeend', '<img src=data: onerror="document.title = 1">');
      setTimeout(() => done([refused.sort(), document.title]), 300);"""
    refused, title = shared.driver.execute_async_script(script)
    assert refused == ["connect-src", "img-src", "script-src-attr", "script-src-elem"]
    assert title == "precision_lab scan: gradients.npz"
    assert len(shared.problems()) >= 4, "and the other tests would have seen it"
