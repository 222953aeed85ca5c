"""The page of error reports in a real browser: what it shows, and that it asks for nothing."""

from __future__ import annotations

import copy
import csv
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
    # Few layers are down and kinds across.
    opened.find("#map").send_keys(Keys.ARROW_RIGHT)
    assert opened.find("#map-cell").text.startswith("token_embd.weight: Q6_K, SQNR 3")
    # The next column has no tensor without a layer: the one after it that has comes next.
    opened.find("#map").send_keys(Keys.ARROW_RIGHT)
    assert opened.find("#map-cell").text.startswith("output_norm.weight: F32, SQNR no error")
    opened.find("#map").send_keys(Keys.ARROW_LEFT, Keys.ARROW_DOWN)
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
    assert not found(browser, "#compare, #difference, #experts-section, #layers-section")
    linked = browser.run("return [...document.querySelectorAll('nav a')].map((a) => a.hash)")
    assert all(found(browser, link) for link in linked)
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


def test_verdict_first(opened: Browser, report: error_reports.Json) -> None:
    assert opened.texts("main h2")[0] == "Verdict"
    verdicts = opened.texts(".verdict")
    assert len(verdicts) == 3
    assert verdicts[0].startswith("Q8_0 loses nothing: every weight is what it was, at 8.5")
    total = report["outputs"][1]["total"]
    sqnr = f"(SQNR {total['sqnr_db']:.2f} dB, weighted {total['weighted']['sqnr_db']:.2f} dB)"
    assert sqnr in verdicts[1].replace("\u00a0", " ")
    assert "The share of the signal that is kept is 1 - " in opened.find("#verdict .hint").text


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_options_are_copied(opened: Browser, has_clipboard: bool) -> None:
    if not has_clipboard:  # as where a browser takes pages of files for unsafe
        opened.run("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    assert not opened.find(".command").is_displayed()  # several outputs: folded
    summary = opened.find("article summary")
    summary.send_keys(Keys.ENTER)
    command = opened.texts("article .command code")[0]
    assert command.startswith("--tensor-type '^blk")
    button = opened.find(".copy")
    button.send_keys(Keys.ENTER)
    opened.wait("document.querySelector('.copy').textContent === 'Copied these options'")
    opened.find("#filter").send_keys(Keys.CONTROL, "v")
    pasted = opened.run("return document.querySelector('#filter').value")
    assert pasted.split() == command.split()
    opened.wait("document.querySelector('.copy').textContent === 'Copy these options'")


def test_differences_of_two_outputs(opened: Browser, report: error_reports.Json) -> None:
    """The first two with an error are chosen; any others can be."""
    one, other = report["outputs"][1:]
    check_differences(opened, one, other)
    totals = one["total"]["sqnr_db"], other["total"]["sqnr_db"]
    text = opened.find("#difference-text").text
    assert text.startswith(
        f"Q2_K against Q4_K_M: SQNR {totals[0]:.2f} dB became {totals[1]:.2f} dB"
    )
    opened.find("#swap").click()
    settle(opened)
    check_differences(opened, other, one)
    bars = opened.texts("#differences-chart svg [aria-roledescription='bar']")
    pairs = zip(one["tensors"], other["tensors"], strict=True)
    assert len(bars) == sum(sqnr_of(a) != sqnr_of(b) for a, b in pairs) > 20
    choose(opened, "#from", "Q8_0")
    assert opened.find("#differences-chart").text == (
        "No tensor has an error in both, and a different one."
    )
    assert "worse" in opened.texts("#differences-table tbody td:nth-of-type(4)")


def sqnr_of(tensor: error_reports.Json) -> float:
    value = tensor["metrics"]["sqnr_db"]
    return float("inf") if value is None else float(f"{value:.6g}")


def check_differences(browser: Browser, one: error_reports.Json, other: error_reports.Json) -> None:
    after = {tensor["name"]: tensor for tensor in other["tensors"]}
    expected = {}
    for tensor in one["tensors"]:
        pair = sqnr_of(tensor), sqnr_of(after[tensor["name"]])
        difference = 0.0 if pair[0] == pair[1] else pair[1] - pair[0]
        more = after[tensor["name"]]["bytes"] - tensor["bytes"]
        expected[tensor["name"]] = (difference, more)
    names = browser.texts("#differences-table tbody th")
    assert set(names) == set(expected)
    sizes = [abs(expected[name][0]) for name in names]
    assert sizes == sorted(sizes, reverse=True)
    for name, text in zip(
        names, browser.texts("#differences-table td:nth-of-type(4)"), strict=True
    ):
        difference = round(expected[name][0], 2)
        sign = "\u2212" if difference < 0 else "+"
        assert text == (f"{sign}{abs(difference):.2f} dB" if difference else "0")
    sizes_shown = browser.texts("#differences-table td:nth-of-type(7)")
    for name, text in zip(names, sizes_shown, strict=True):
        more = expected[name][1]
        assert text[0] == ("+" if more > 0 else "\u2212" if more else "0")


def test_outputs_with_other_names_are_paired_by_kind_and_layer(
    browser: Browser, tmp_path: Path
) -> None:
    """Else not: several tensors of one kind and layer cannot be told apart."""

    def made(prefix: str, type_name: str, names: list[str]) -> error_reports.Json:
        tensors = [
            error_reports.tensor(f"{prefix}{name}", name[0], 0, type_name, (64, 256))
            for name in names
        ]
        return error_reports.output(f"{prefix}.gguf", type_name, tensors)

    names = ["a", "b", "c1", "c2", "d"]
    one, other = made("one", "Q4_K", names), made("other", "Q6_K", names[:-1])
    browser.open(saved(tmp_path, error_reports.report([one, other])))
    assert sorted(browser.texts("#differences-table tbody th")) == ["onea", "oneb"]
    assert browser.find("#difference-text").text.endswith("; 5 are in one of them only.")


def test_types_by_layer_and_kind(opened: Browser, lossy: list[error_reports.Json]) -> None:
    cells = found(opened, "#types svg [aria-roledescription='rect mark']")
    colors: dict[str, set[str]] = {}
    for cell in cells:
        name, text = (cell.get_attribute("aria-label") or "").split(": ", 1)
        tensor = next(each for each in lossy if each["name"] == name)
        assert text.startswith(f"{tensor['type']}, ")
        colors.setdefault(tensor["type"], set()).add(cell.value_of_css_property("fill"))
    assert len(cells) == len(lossy)
    assert all(len(each) == 1 for each in colors.values())
    assert len(set.union(*colors.values())) == len(colors) == 3


def test_tables_are_saved_as_csv(
    opened: Browser, lossy: list[error_reports.Json], tmp_path: Path
) -> None:
    opened.downloads(tmp_path)
    opened.find("#filter").send_keys("ffn_down")
    column_button(opened, "SQNR")
    opened.find("#csv").click()
    rows = csv_rows(opened, tmp_path / "grok-1-Q4_K_M.gguf.csv")
    expected = [each for each in lossy if each["kind"] == "ffn_down_exps"]
    expected.sort(key=lambda each: each["metrics"]["sqnr_db"])
    assert [row["tensor"] for row in rows] == [each["name"] for each in expected]
    for row, tensor in zip(rows, expected, strict=True):
        assert (row["type"], int(row["bytes"])) == (tensor["type"], tensor["bytes"])
        assert row["shape"] == "x".join(map(str, tensor["shape"]))
        for key in ("sqnr_db", "relative_rms", "largest_error"):
            assert float(row[key]) == pytest.approx(tensor["metrics"][key], rel=1e-5)
        weighted = tensor["metrics"]["weighted"]["sqnr_db"]
        assert float(row["weighted_sqnr_db"]) == pytest.approx(weighted, rel=1e-5)
    opened.find("#difference-filter").send_keys("blk.1.attn_q")
    opened.find("#difference-csv").click()
    (row,) = csv_rows(opened, tmp_path / "grok-1-Q4_K_M.gguf to grok-1-Q2_K.gguf.csv")
    assert (row["tensor"], row["type_from"], row["type_to"]) == (
        "blk.1.attn_q.weight", "Q4_K", "Q2_K",
    )  # fmt: skip
    assert opened.complaints() == []


def csv_rows(browser: Browser, path: Path) -> list[dict[str, str]]:
    browser.until(path.exists)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cells_of_csv_are_no_formulas(browser: Browser, tmp_path: Path) -> None:
    names = ['=HYPERLINK("http://example.org")', "+1", "@SUM(A1)", 'a "quoted", name', "\tx"]
    tensors = [error_reports.tensor(name, "k", None, "Q4_K", (1, 256)) for name in names]
    path = saved(tmp_path, error_reports.report([error_reports.output("a", "Q4_K", tensors)]))
    browser.open(path)
    browser.downloads(tmp_path)
    browser.find("#csv").click()
    rows = csv_rows(browser, tmp_path / "a.csv")
    safe = [f"'{name}" if name[0] in "=+@\t" else name for name in names]
    assert [row["tensor"] for row in rows] == safe


@pytest.mark.parametrize("outputs", [1, 12])
def test_phones_scroll_down_only(browser: Browser, tmp_path: Path, outputs: int) -> None:
    values = [error_reports.grok1_output(LOSSY, LAYERS, EXPERTS) for _ in range(outputs)]
    for number, value in enumerate(values):
        value["path"] = f"out/{'a-very-long-name-of-an-output-' * 4}{number}.gguf"
        value["tensors"][3]["name"] = "a.tensor.with.a.name.without.an.end." * 5
    with browser.sized(400, 900):
        browser.open(saved(tmp_path, error_reports.report(values)))
        width = "return document.documentElement.scrollWidth"
        assert browser.run(width) == 400
        browser.find("article summary").click()
        assert browser.run(width) == 400
        # Layers are across where there is no room for kinds.
        browser.find("#map").send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
        assert browser.find("#map-cell").text.startswith("output_norm.weight")
        small = browser.run("return document.querySelector('#layers svg').clientWidth")
    browser.wait(f"document.querySelector('#layers svg').clientWidth > {2 * small}")


def test_small_models_fill_the_page(browser: Browser, tmp_path: Path) -> None:
    tensors = [
        error_reports.tensor(f"t{n}.weight", f"t{n}", None, "Q4_K", (256, 256)) for n in range(12)
    ]
    models = {
        "two layers": error_reports.grok1_output(LOSSY, 2, EXPERTS),
        "twelve tensors": error_reports.output("a", "Q4_K", tensors),
    }
    for name, output in models.items():
        browser.open(saved(tmp_path, error_reports.report([output])))
        for chart in ("map", "types", "kinds", "histogram"):
            share = browser.run(
                "const chart = document.getElementById(arguments[0]);"
                "return chart.querySelector('svg').clientWidth / chart.clientWidth", chart,
            )  # fmt: skip
            assert 0.85 < share <= 1, (name, chart)
        written = browser.texts("#types svg .mark-text.role-mark text")
        assert len(written) == len(output["tensors"])


def test_labels_of_outputs_do_not_collide(browser: Browser, tmp_path: Path) -> None:
    outputs = []
    for number in range(14):
        output = error_reports.grok1_output(LOSSY, 1, 2)
        output["path"] = f"out/grok-1-{'a-name-that-takes-room-' * (number % 3)}{number}.gguf"
        output["bytes"] += number // 2 * 10_000_000
        outputs.append(output)
    path = saved(tmp_path, error_reports.report(outputs))
    for width in (1240, 1920):
        with browser.sized(width, 1000):
            browser.open(path)
            boxes = browser.run(
                "const area = document.querySelector('#scatter svg').getBoundingClientRect();"
                "const labels = '#scatter svg .role-mark:not([aria-hidden]) text';"
                "return [...document.querySelectorAll(labels)].map((each) => {"
                " const { left, right, top, bottom } = each.getBoundingClientRect();"
                " return [left - area.left, right - area.left, top, bottom, area.width]; })"
            )
        assert len(boxes) == len(outputs)
        for number, (left, right, top, bottom, room) in enumerate(boxes):
            assert 0 <= left < right <= room
            for other in boxes[number + 1 :]:
                apart = (
                    left >= other[1] or right <= other[0] or top >= other[3] or bottom <= other[2]
                )
                assert apart


def test_links_lead_to_sections_and_follow_them(opened: Browser) -> None:
    links = found(opened, "nav a")
    assert [link.text for link in links][:4] == ["Verdict", "Outputs", "Size", "Compare"]
    for link in (links[4], links[-1], links[0]):
        link.send_keys(Keys.ENTER)
        opened.wait(f"document.querySelector('nav a[aria-current]').hash === '{hash_of(link)}'")
        section = opened.find(hash_of(link))
        top = opened.run("return arguments[0].getBoundingClientRect().top", section)
        bar = opened.run("return document.querySelector('#bar').getBoundingClientRect().bottom")
        is_last = link == links[-1]
        assert top >= bar - 1 or is_last
        assert top < bar + 60 or is_last or link == links[0]


def hash_of(link: WebElement) -> str:
    return "#" + (link.get_attribute("href") or "").partition("#")[2]


def test_everything_is_named_and_reached_by_keys(opened: Browser) -> None:
    unnamed = opened.run(
        "return [...document.querySelectorAll('button, select, input, nav, [role], section')]"
        ".filter((each) => each.closest('svg') === null && !each.textContent.trim()"
        " && !each.ariaLabel && !each.labels?.length && !each.getAttribute('aria-labelledby')"
        " && each.getAttribute('role') !== 'status').map((each) => each.outerHTML.slice(0, 99))"
    )
    assert unnamed == []
    scrolling = opened.run(
        "return [...document.querySelectorAll('.tall, pre')].filter((each) => each.tabIndex !== 0)"
        ".length"
    )
    assert scrolling == 0
    charts = opened.run(
        "return [...document.querySelectorAll('.chart')].filter((each) => each.querySelector('svg')"
        " && !each.ariaLabel).map((each) => each.id)"
    )
    assert charts == []


def luminance(color: str) -> float:
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened: Browser, scheme: str) -> None:
    """Text has the contrast of WCAG's level AA, 4.5 to 1, in cells of the maps too."""
    opened.media(scheme=scheme)
    panel = luminance(opened.find("section").value_of_css_property("background-color"))
    for selector in (".verdict", ".hint", "thead th", "#outputs .lossless", "nav a", "h2 span"):
        text = luminance(opened.find(selector).value_of_css_property("color"))
        low, high = sorted((panel, text))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector
    for chart in ("map", "types"):
        words = found(opened, f"#{chart} svg .mark-text.role-mark text")
        cells = found(opened, f"#{chart} svg [aria-roledescription='rect mark']")
        for word, cell in zip(words, cells, strict=True):
            pair = [luminance(each.value_of_css_property("fill")) for each in (word, cell)]
            assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5, (chart, word.text)


def test_limits_that_were_set(browser: Browser, tmp_path: Path) -> None:
    value = error_reports.report([error_reports.grok1_output(LOSSY, LAYERS, EXPERTS)])
    value["limits"] = [
        {"metric": "sqnr_db", "limit": 22.0, "kind": None},
        {"metric": "relative_rms", "limit": 0.5, "kind": "attn_v"},
    ]
    browser.open(saved(tmp_path, value))
    failed, passed = browser.texts(".limits li")
    tensors = value["outputs"][0]["tensors"]
    sqnr = sorted(s for s in map(sqnr_of, tensors) if s < 22)
    assert failed.startswith("Limit sqnr_db at least 22: failed, beyond it blk.0.attn_k.weight (2")
    assert failed.endswith(f" and {len(sqnr) - 10} more.")
    assert passed == "Limit attn_v:relative_rms at most 0.5: passed."


def test_gains_of_a_search(browser: Browser, tmp_path: Path) -> None:
    gains = {"a": (0.25, None), "b": (-0.125, 0.5), "c": None}
    tensors = [error_reports.tensor(name, "k", None, "Q4_K", (1, 256)) for name in gains]
    value = error_reports.output("a", "Q4_K", tensors)
    for tensor, gain in zip(tensors, gains.values(), strict=True):
        if gain is not None:
            tensor["metrics"]["search"] = error_reports.search_gain(*gain)
    value["total"]["search"] = error_reports.search_gain(0.1, None)
    browser.open(saved(tmp_path, error_reports.report([value])))
    told = browser.texts("#verdict")[0].replace("\u00a0", " ")
    assert "Least-error search: 0.10 dB better than ggml's rule." in told
    assert browser.texts("#outputs tbody td")[4] == "+0.10 dB"
    column_button(browser, "Gain of the search")
    assert browser.texts("#tensors tbody th") == ["c", "a", "b"]
    assert browser.texts("#tensors tbody td:last-child") == ["", "+0.25 dB", "+0.50 dB"]
    browser.downloads(tmp_path)
    browser.find("#csv").click()
    found = [
        (r["gained_db"], r["weighted_gained_db"]) for r in csv_rows(browser, tmp_path / "a.csv")
    ]
    assert found == [("", ""), ("0.25", ""), ("-0.125", "0.5")]
    assert browser.complaints() == []
