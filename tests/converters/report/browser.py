"""A headless Chromium that keeps a record of what a page asked for and complained about."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--window-size=1240,1000",
)  # fmt: skip
_PATIENCE_SECONDS = 30


class Browser:
    """A browser window. Raises pytest's skip where there is no Chromium with its driver."""

    def __init__(self, profile: Path) -> None:
        driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
        if not driver or not browser:
            pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))

    def open(self, path: Path) -> None:
        """Open a page, in light colours, and wait until its charts are drawn."""
        self.media()
        self.driver.get(path.as_uri())
        self.wait("document.documentElement.dataset.drawn === 'yes'")

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        self.until(lambda: bool(self.run(f"return {condition}")), condition)

    def until(self, is_true: Callable[[], bool], condition: str = "") -> None:
        """Wait until a condition is true."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not is_true():
            assert time.monotonic() < end, f"never came true: {condition or is_true}"
            time.sleep(0.05)

    @contextmanager
    def sized(self, width: int, height: int) -> Iterator[None]:
        """Give the page a size, that of a phone for example."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def downloads(self, folder: Path) -> None:
        """Save what pages let one download in a folder."""
        settings = {"behavior": "allow", "downloadPath": str(folder)}
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", settings)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    def media(self, *, scheme: str = "light", kind: str = "screen") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        arguments = {"media": kind, "features": features}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", arguments)

    def pdf(self) -> bytes:
        printed = self.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
        return base64.b64decode(printed["data"])

    def complaints(self) -> list[str]:
        """What the page wrote to the console since the last time."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last time."""
        events = [json.loads(each["message"]) for each in self.driver.get_log("performance")]
        return [
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
            # The browser's own pictures, such as that which clears a field, need no request.
            and not event["message"]["params"]["request"]["url"].startswith(("chrome://", "data:"))
        ]

    def close(self) -> None:
        self.driver.quit()
