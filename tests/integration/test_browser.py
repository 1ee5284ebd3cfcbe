"""The Chromium of the tests itself: what it reports of a page with faults, and of one without."""

from __future__ import annotations

from pathlib import Path

from tests.support.browser import Browser

HEAD = "<!doctype html><html lang=en><title>a page</title><meta name=viewport content='width=device-width'>"
STYLE = "<style>@media (prefers-color-scheme: dark) { body { background: rgb(1, 2, 3); } }</style>"


def page(folder: Path, text: str) -> Path:
    file = folder / "page.html"
    file.write_text(f"{HEAD}{STYLE}<main><h1>A page</h1>{text}</main></html>")
    return file


def test_serious_faults_and_overflow_are_found(browser: Browser, tmp_path):
    browser.open(
        page(tmp_path, "<img src='none.png'><p style='width: 700px'>wide</p><script>console.error(7)</script>")
    )
    browser.view(400, 600)
    assert [fault.split(":")[0] for fault in browser.serious_faults()] == ["image-alt"]
    assert browser.overflow() > 200
    assert any("7" in line for line in browser.console())


def test_a_page_without_faults_has_none(browser: Browser, tmp_path):
    browser.open(page(tmp_path, "<p>text</p>"))
    assert browser.serious_faults() == []
    assert browser.console() == []
    picture = browser.screenshot(tmp_path / "page.png", 400, 300, dark=True)
    assert picture.read_bytes()[16:24] == (400).to_bytes(4, "big") + (300).to_bytes(4, "big")
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert browser.driver.execute_script(colour) == "rgb(1, 2, 3)"
    browser.view(400, 300)
    assert browser.overflow() == 0
    assert browser.driver.execute_script(colour) != "rgb(1, 2, 3)"
