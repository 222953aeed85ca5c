"""The page of an evaluation in a real browser: what it shows, and that it asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver.support.select import Select

from tests.converters.report.browser import Browser
from tests.evaluation.report.evaluations import ARTIFACTS, evaluation
from weightcast.evaluation.evaluate import Evaluation
from weightcast.evaluation.report import Pieces, write_evaluation

HOSTILE = '</script><!--<script><img src=http://example.org/x onerror="window.hacked=1">\'{{7*7}}'
POINTS = "svg [aria-roledescription='point']"
LINES = "svg [aria-roledescription='line mark']"

# Selenium opens a socket that it leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    window = Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


def opened(browser: Browser, folder: Path, found: Evaluation, pieces: Pieces | None = None) -> Path:
    path = folder / "page.html"
    write_evaluation(path, found, pieces)
    browser.requests(), browser.complaints()
    browser.open(path)
    return path


def test_a_point_and_lines_for_each_artifact(browser: Browser, tmp_path: Path) -> None:
    path = opened(browser, tmp_path, evaluation(isolated=True), lambda each: f"<{each}>")
    assert browser.texts("#artifacts tbody th") == list(ARTIFACTS)
    assert len(browser.texts(f"#scatter {POINTS}")) == len(ARTIFACTS)
    assert set(browser.texts("#scatter svg text")) >= set(ARTIFACTS)
    assert len(browser.texts(f"#layers {LINES}")) == len(ARTIFACTS)
    assert len(browser.texts(f"#routing {LINES}")) == len(ARTIFACTS)
    before = browser.texts("#layers svg text")
    Select(browser.find("#measure")).select_by_value("alone")
    assert browser.driver.execute_async_script("drawing.then(arguments[0])") is None
    assert browser.texts("#layers svg text") != before
    worst = evaluation().artifacts[0].worst[0]
    assert browser.texts(".tokens tbody mark")[0] == f"<{worst.token}>"
    browser.find("#theme").click()
    assert browser.pdf().startswith(b"%PDF")
    assert browser.requests() == [path.as_uri()]
    assert browser.complaints() == []


def test_links_lead_to_sections_that_are_there(browser: Browser, tmp_path: Path) -> None:
    for found in (evaluation(), evaluation(routed=False), evaluation(n_layers=0, routed=False)):
        opened(browser, tmp_path, found)
        linked = browser.run("return [...document.querySelectorAll('nav a')].map((a) => a.hash)")
        assert all(browser.texts(link) for link in linked)
        has_routing = bool(found.artifacts[0].layers and found.artifacts[0].layers[0].same_experts)
        assert bool(browser.texts("#routing")) == has_routing
        assert browser.complaints() == []


def test_what_is_not_finite_and_what_is_equal_is_left_out_of_charts(
    browser: Browser, tmp_path: Path
) -> None:
    found = evaluation()
    first, second, third = found.artifacts
    broken = replace(first, statistics=replace(first.statistics, kld_mean=float("nan")))
    equal = replace(second, statistics=replace(second.statistics, kld_mean=0.0, kld_mean_se=0.0))
    opened(browser, tmp_path, replace(found, artifacts=(broken, equal, third)))
    assert len(browser.texts(f"#scatter {POINTS}")) == 1
    assert "not finite" in browser.texts("#artifacts tbody tr")[0]
    opened(browser, tmp_path, replace(found, artifacts=(broken, equal)))
    assert browser.find("#scatter").text.startswith("No artifact has a divergence")
    assert browser.complaints() == []


def test_names_and_tokens_are_only_text(browser: Browser, tmp_path: Path) -> None:
    found = evaluation({f"{HOSTILE}{n}": (4.0 + n, 0.1 * n) for n in (1, 2)})
    source = replace(found.source, name=HOSTILE)
    path = opened(browser, tmp_path, replace(found, source=source), lambda each: HOSTILE)
    assert browser.texts("#artifacts tbody th") == [f"{HOSTILE}1", f"{HOSTILE}2"]
    assert browser.texts(".tokens mark")[0] == HOSTILE
    assert browser.run("return [window.hacked, document.images.length]") == [None, 0]
    assert browser.requests() == [path.as_uri()]
    assert browser.complaints() == []


def test_a_source_alone(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_evaluation(path, evaluation({}))
    browser.requests(), browser.complaints()
    browser.driver.get(path.as_uri())
    assert "perplexity" in browser.find("header").text
    assert browser.texts("#artifacts tbody tr") == []
    assert browser.complaints() == []
