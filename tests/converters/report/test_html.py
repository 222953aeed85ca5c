"""The page of error reports in a real browser: what it shows, and that it asks for nothing."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from tests.converters.report import error_reports
from tests.converters.report.browser import Browser
from weightcast.converters.report.html import page
from weightcast.converters.report.schema import read_report

LAYERS, EXPERTS = 6, 4
KINDS_IN_LAYERS = len(error_reports.KINDS)
HOSTILE = '</script><!--<script><img src=http://example.org/x onerror="window.hacked=1">\'{{7*7}}'
LOSSY = "Q4_K_M"
MAX_PAGE_BYTES = 10_000_000
CELLS = "#map svg [aria-roledescription='rect mark']"

# Selenium opens a socket that it leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    window = Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


def saved(folder: Path, *values: error_reports.Json) -> Path:
    reports = []
    for number, value in enumerate(values):
        path = folder / f"{number}.json"
        path.write_text(json.dumps(value))
        reports.append(read_report(path))
    path = folder / "page.html"
    path.write_text(page(reports))
    return path


@pytest.fixture(scope="module")
def report() -> error_reports.Json:
    outputs = [
        error_reports.grok1_output("Q8_0", LAYERS, EXPERTS),
        error_reports.grok1_output(LOSSY, LAYERS, EXPERTS, imatrix="wiki.imatrix"),
        error_reports.grok1_output("Q2_K", LAYERS, EXPERTS),
    ]
    return error_reports.report(outputs)


@pytest.fixture
def lossy(report: error_reports.Json) -> list[error_reports.Json]:
    """The tensors that the page shows at first: those of the first output with an error."""
    tensors: list[error_reports.Json] = report["outputs"][1]["tensors"]
    return tensors


@pytest.fixture(scope="module")
def path(report: error_reports.Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("page"), report)


@pytest.fixture
def opened(browser: Browser, path: Path) -> Browser:
    browser.open(path)
    return browser


def choose(browser: Browser, selector: str, text: str) -> None:
    Select(browser.find(selector)).select_by_visible_text(text)
    settle(browser)


def settle(browser: Browser) -> None:
    """Wait until what was chosen last is drawn."""
    assert browser.driver.execute_async_script("drawing.then(arguments[0])") is None


def test_nothing_is_asked_for_and_nothing_goes_wrong(browser: Browser, path: Path) -> None:
    browser.requests(), browser.complaints()
    browser.open(path)
    for label in ("Q8_0", "Q2_K"):
        choose(browser, "#output", label)
    choose(browser, "#kind", "ffn_up_exps")
    browser.find("#theme").click()
    browser.pdf()
    assert browser.requests() == [path.as_uri()]
    assert browser.complaints() == []


def test_headline(opened: Browser) -> None:
    rows = opened.texts("#outputs tbody tr")
    assert "no error" in rows[0]
    assert "none: no error" in rows[0]
    assert re.search(r"\d\d\.\d\d dB", rows[1])
    assert "blk.0.attn_k.weight" in rows[1]
    assert opened.texts("#scatter svg text")[-3:] == ["Q8_0", LOSSY, "Q2_K"]


def test_heat_map_has_a_cell_for_each_layer_and_kind(
    opened: Browser, lossy: list[error_reports.Json]
) -> None:
    cells = found(opened, CELLS)
    assert len(cells) == LAYERS * KINDS_IN_LAYERS + 2 == len(lossy)
    colors = {cell.value_of_css_property("fill") for cell in cells}
    assert len(colors) > 10


def test_value_under_the_cursor(opened: Browser, lossy: list[error_reports.Json]) -> None:
    tensor = next(t for t in lossy if t["name"] == "blk.3.ffn_up_exps.weight")
    cell = opened.find(f"{CELLS}[aria-label^='{tensor['name']}']")
    ActionChains(opened.driver).move_to_element(cell).perform()
    opened.wait("document.querySelector('#vg-tooltip-element.visible')")
    tip = opened.find("#vg-tooltip-element").text
    for text in (
        tensor["name"],
        tensor["type"],
        f"{tensor['metrics']['sqnr_db']:.2f} dB",
        f"{100 * tensor['metrics']['relative_rms']:.2f} %",
        f"{tensor['metrics']['largest_error']:.5f}"[:6],
        "4.5",
    ):
        assert text in tip


def test_keys_move_in_the_heat_map(opened: Browser) -> None:
    opened.find("#map").send_keys(Keys.ARROW_DOWN)
    assert opened.find("#map-cell").text.startswith("token_embd.weight: Q6_K, SQNR 3")
    # The next row has no tensor without a layer: the one below it that has comes next.
    opened.find("#map").send_keys(Keys.ARROW_DOWN)
    assert opened.find("#map-cell").text.startswith("output_norm.weight: F32, SQNR no error")
    opened.find("#map").send_keys(Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert opened.find("#map-cell").text.startswith("token_embd.weight")
    opened.find("#map").send_keys(Keys.ENTER)
    assert opened.texts("#tensors tbody th") == ["token_embd.weight"]


def test_a_click_finds_the_tensor(opened: Browser) -> None:
    opened.find(f"{CELLS}[aria-label^='blk.2.attn_v.weight']").click()
    assert opened.texts("#tensors tbody th") == ["blk.2.attn_v.weight"]


def found(browser: Browser, selector: str) -> list[WebElement]:
    return browser.driver.find_elements(By.CSS_SELECTOR, selector)


def column_button(browser: Browser, title: str) -> None:
    browser.find("#tensors thead").find_element(By.XPATH, f".//button[.='{title}']").click()


def test_sorting(opened: Browser, lossy: list[error_reports.Json]) -> None:
    def sqnr(tensor: error_reports.Json) -> float:
        value = tensor["metrics"]["sqnr_db"]
        return float("inf") if value is None else float(f"{value:.6g}")  # as the page has it

    column_button(opened, "SQNR")
    rising = [t["name"] for t in sorted(lossy, key=sqnr)]
    assert opened.texts("#tensors tbody th") == rising
    assert opened.find("#tensors th[aria-sort]").get_attribute("aria-sort") == "ascending"
    column_button(opened, "SQNR")
    assert opened.texts("#tensors tbody th") == [
        t["name"] for t in sorted(lossy, key=sqnr, reverse=True)
    ]
    column_button(opened, "Layer")
    assert opened.texts("#tensors tbody tr td:nth-of-type(2)")[:3] == ["\u2013", "\u2013", "0"]


def test_filter(opened: Browser, lossy: list[error_reports.Json]) -> None:
    opened.find("#filter").send_keys("FFN_down q6_k")
    expected = [t["name"] for t in lossy if t["kind"] == "ffn_down_exps" and t["type"] == "Q6_K"]
    assert opened.texts("#tensors tbody th") == expected
    assert opened.find("#shown").text == f"{len(expected)} of {len(lossy)} tensors"
    assert 0 < len(expected) < LAYERS
    opened.find("#filter").send_keys(" nothing")
    assert opened.texts("#tensors tbody tr") == []


def test_output_selector(opened: Browser, report: error_reports.Json) -> None:
    choose(opened, "#output", "Q2_K")
    tensor = next(t for t in report["outputs"][2]["tensors"] if t["name"] == "blk.1.attn_q.weight")
    label = opened.find(f"{CELLS}[aria-label^='blk.1.attn_q.weight']").get_attribute("aria-label")
    assert f"Q2_K, SQNR {tensor['metrics']['sqnr_db']:.2f} dB" in label
    choose(opened, "#output", "Q8_0")
    labels = [cell.get_attribute("aria-label") for cell in found(opened, CELLS)]
    assert len(labels) == LAYERS * KINDS_IN_LAYERS + 2
    assert all("SQNR no error" in label for label in labels)
    assert opened.find("#experts").text == "No error in any expert."
    assert opened.find("#worst").text == "No error in any tensor."


def test_kind_selector(opened: Browser, lossy: list[error_reports.Json]) -> None:
    experts = "#experts svg [aria-roledescription='rect mark']"
    assert len(opened.texts(experts)) == 3 * LAYERS * EXPERTS
    choose(opened, "#kind", "ffn_gate_exps")
    assert len(opened.texts(experts)) == LAYERS * EXPERTS
    worst = min(
        (t for t in lossy if t["kind"] == "ffn_gate_exps"), key=lambda t: t["metrics"]["sqnr_db"]
    )
    assert opened.texts("#worst tbody th")[0] == worst["name"]
    before = {cell.value_of_css_property("fill") for cell in found(opened, experts)}
    opened.find("#differences").click()
    settle(opened)
    after = {cell.value_of_css_property("fill") for cell in found(opened, experts)}
    assert len(after) > 10
    assert not after & before
    choose(opened, "#kind", "attn_q")
    assert opened.find("#experts").text == "No experts in tensors of this kind."


def brightness(color: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", color)[:3]) / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened: Browser, scheme: str) -> None:
    def look() -> tuple[float, float, float]:
        places = ("section", "background-color"), ("body", "color"), ("#layers svg text", "fill")
        panel, text, axis = (
            brightness(opened.find(place).value_of_css_property(name)) for place, name in places
        )
        return panel, text, axis

    opened.media(scheme=scheme)
    panel, *inks = look()
    assert all(abs(panel - ink) > 150 for ink in inks)
    assert (panel < 60) == (scheme == "dark")
    opened.find("#theme").click()
    other_panel, *inks = look()
    assert all(abs(other_panel - ink) > 150 for ink in inks)
    assert (other_panel < 60) == (scheme == "light")
    opened.media(scheme=scheme, kind="print")  # paper is white
    _, *inks = look()
    assert all(ink < 80 for ink in inks)


def test_printing(opened: Browser) -> None:
    printed = opened.pdf()
    assert printed.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 12
    opened.media(kind="print")
    assert not opened.find("#tensors").is_displayed()
    assert opened.find("#outputs").is_displayed()
    width = opened.run("return document.querySelector('#map svg').getBoundingClientRect().width")
    assert width <= opened.run("return document.querySelector('#map').clientWidth")


def test_names_are_only_text(browser: Browser, report: error_reports.Json, tmp_path: Path) -> None:
    value = copy.deepcopy(report)
    for output in value["outputs"]:
        output["path"] = output["type"] = output["imatrix"] = HOSTILE
        output["recipe"] = {
            "base": HOSTILE,
            "pure": True,
            "rules": [error_reports.rule(*[HOSTILE] * 3)],
        }
        for part in (*output["kinds"], *output["tensors"]):
            part["kind"] = HOSTILE if part["kind"] == "attn_q" else part["kind"]
        for tensor in output["tensors"]:
            tensor["name"], tensor["type"] = f"{tensor['name']}{HOSTILE}", HOSTILE
    value["source"]["path"] = value["source"]["family"] = value["generator"] = HOSTILE
    path = saved(tmp_path, value)
    browser.requests(), browser.complaints()
    browser.open(path)
    cell = browser.find(f"{CELLS}[aria-label^='blk.3.attn_q.weight']")
    ActionChains(browser.driver).move_to_element(cell).perform()
    browser.wait("document.querySelector('#vg-tooltip-element.visible')")
    assert HOSTILE in browser.find("#vg-tooltip-element").text
    choose(browser, "#kind", HOSTILE)
    assert f"token_embd.weight{HOSTILE}" in browser.texts("#tensors tbody th")
    assert browser.run("return [window.hacked, document.images.length]") == [None, 0]
    assert browser.requests() == [path.as_uri()]
    assert browser.complaints() == []


def test_errors_that_are_not_finite(
    browser: Browser, report: error_reports.Json, tmp_path: Path
) -> None:
    value = copy.deepcopy(report)
    (tensor,) = (
        t for t in value["outputs"][1]["tensors"] if t["name"] == "blk.4.ffn_up_exps.weight"
    )
    for part in (tensor["metrics"], tensor["experts"][1], value["outputs"][1]["total"]):
        part.update(dict.fromkeys(NOT_FINITE))
    browser.open(saved(tmp_path, value))
    cell = browser.find(f"{CELLS}[aria-label^='blk.4.ffn_up_exps.weight']")
    assert "SQNR not finite" in cell.get_attribute("aria-label")
    assert cell.value_of_css_property("fill") == "rgb(209, 36, 47)"
    assert browser.texts("#worst tbody th")[0] == "blk.4.ffn_up_exps.weight"
    assert "Some errors are not finite" in browser.texts(".warning")[0]
    column_button(browser, "SQNR")
    assert browser.texts("#tensors tbody th")[0] == "blk.4.ffn_up_exps.weight"
    assert browser.complaints() == []


NOT_FINITE = ("error_squares", "relative_rms", "sqnr_db", "cosine", "mean_error", "largest_error")


def test_tensors_that_share_a_cell_are_summed_up(browser: Browser, tmp_path: Path) -> None:
    pair = [
        error_reports.tensor(f"experts.{n}.w1", "ffn_gate_exps", 0, type_name, (512, 256))
        for n, type_name in enumerate(("Q4_K", "Q8_0"))
    ]
    whole = error_reports.merged([tensor["metrics"] for tensor in pair])
    output = error_reports.output("a", "Q4_K", pair)
    browser.open(saved(tmp_path, error_reports.report([output])))
    (cell,) = found(browser, CELLS)
    assert cell.get_attribute("aria-label").startswith(
        f"experts.0.w1 and 1 more: Q4_K, Q8_0, SQNR {whole['sqnr_db']:.2f} dB"
    )
    assert cell.get_attribute("aria-label").endswith(" 6.5 bits per weight")


def test_several_reports_with_one_tensor_or_none(browser: Browser, tmp_path: Path) -> None:
    norm = error_reports.tensor("output_norm.weight", "output_norm", None, "Q4_K", (256,))
    one = error_reports.report([error_reports.output("a.gguf", "Q4_K", [norm])], source="elsewhere")
    browser.complaints()
    browser.open(saved(tmp_path, one, error_reports.report([])))
    assert len(browser.texts(CELLS)) == 1
    assert not browser.find("#compare").is_displayed()
    assert not browser.find("#experts-section").is_displayed()
    assert browser.find("#layers").text == "No tensors of this kind in a layer."
    browser.open(saved(tmp_path, one, one))
    assert Select(browser.find("#output")).options[1].text == "Q4_K a.gguf (2)"
    browser.driver.get(saved(tmp_path, error_reports.report([])).as_uri())
    assert browser.texts("h1") == ["Quantization errors"]
    assert browser.complaints() == []


def test_experts_by_the_hundred_are_summed_up(browser: Browser, tmp_path: Path) -> None:
    tensors = [
        error_reports.tensor(
            f"blk.{n}.ffn_up_exps.weight", "ffn_up_exps", n, "Q4_K", (1600, 4, 256)
        )
        for n in range(4)
    ]
    browser.complaints()
    browser.open(
        saved(tmp_path, error_reports.report([error_reports.output("a", "Q4_K", tensors)]))
    )
    bars = browser.texts("#experts svg [aria-roledescription='bar']")
    assert len(bars) == 4
    assert browser.complaints() == []


def test_the_whole_of_grok1_five_times(browser: Browser, tmp_path: Path) -> None:
    output = error_reports.grok1_output(LOSSY)
    path = saved(tmp_path, error_reports.report([output] * 5))
    assert path.stat().st_size < MAX_PAGE_BYTES
    browser.open(path)
    assert len(browser.texts(CELLS)) == 64 * KINDS_IN_LAYERS + 2
    assert len(browser.texts("#layers svg [aria-roledescription='line mark']")) == 5
