"""Open pages in a real headless Chromium: take screenshots, and find what axe-core and the console complain about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from axe_core_python.selenium import Axe
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.support.servers import program

SERIOUS = {"serious", "critical"}  # the impacts of axe-core that a page must not have
PAGE_TIMEOUT = 60.0  # seconds for a page or a script, on a busy machine
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",  # nothing beyond this machine
]


class Browser:
    """A Chromium. `driver` is selenium's, for clicks and keys."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, page: str | Path) -> None:
        """Open an address or a file, and wait until it is loaded."""
        self.driver.get(page.absolute().as_uri() if isinstance(page, Path) else page)

    def view(self, width: int, height: int, *, dark: bool = False, media: str = "") -> None:
        """Set the size of the page in pixels, its colours, and its medium: `print`, or that of a screen."""
        size: dict[str, object] = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._tell("Emulation.setDeviceMetricsOverride", size)  # a window cannot be narrower than 500 pixels
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._tell("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})

    def screenshot(self, file: Path, width: int = 1400, height: int = 900, *, dark: bool = False) -> Path:
        """Write a PNG of the page at this size."""
        self.view(width, height, dark=dark)
        assert self.driver.save_screenshot(str(file))
        return file

    def serious_faults(self) -> list[str]:
        """Return the serious and critical faults that axe-core finds in the page, each with the elements."""
        found = Axe().run(self.driver)
        assert found["passes"], "axe-core checked nothing"
        return [
            f"{fault['id']}: {fault['help']}: " + "; ".join(node["html"] for node in fault["nodes"][:3])
            for fault in found["violations"]
            if fault["impact"] in SERIOUS
        ]

    def overflow(self) -> int:
        """Return how many pixels the page is wider than its window: 0 if all of it fits."""
        script = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
        pixels: int = self.driver.execute_script(script)
        return pixels

    def console(self) -> list[str]:
        """Return the lines of the console since the last call: errors, and what the policy of the page refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def forget(self) -> None:
        """Leave the page, and lose cookies, sizes and lines of the console."""
        self.driver.get("about:blank")
        self._tell("Storage.clearCookies", {})
        self._tell("Emulation.clearDeviceMetricsOverride", {})
        self._tell("Emulation.setEmulatedMedia", {"media": "", "features": []})
        self.console()

    def _tell(self, command: str, arguments: dict[str, object]) -> None:
        self.driver.execute_cdp_cmd(command, arguments)


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start a Chromium whose profile is this empty folder. Skip the test if it is not installed; in CI, fail it."""
    options = ChromeOptions()
    options.binary_location = program("chromium")
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(program("chromedriver")))
    try:
        driver.set_page_load_timeout(PAGE_TIMEOUT)
        driver.set_script_timeout(PAGE_TIMEOUT)
        yield Browser(driver)
    finally:
        driver.quit()
