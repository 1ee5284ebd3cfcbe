"""The pages name files, tests and links that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#]*)(#[^)]*)?\)")
TEST_FILE = re.compile(r"`((?:\w+/)*test_\w+\.py)`")
SOURCE_FILE = re.compile(r"`((?:src/celeriac/)?[a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.py)?)`")


def page_id(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_pages_and_headings(page):
    for path, heading in LINK.findall(page.read_text()):
        if path.startswith("http"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if heading:
            anchors = {anchor(line) for line in target.read_text().splitlines() if line.startswith("#")}
            assert heading in anchors, heading


def anchor(heading: str) -> str:
    words = re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower())
    return "#" + words.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_tests_exist(page):
    names = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert [name for name in TEST_FILE.findall(page.read_text()) if Path(name).name not in names] == []


def test_the_architecture_names_files_that_exist():
    named = SOURCE_FILE.findall((ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 50
    assert [
        name for name in named if not (ROOT / "src" / "celeriac" / name).exists() and not (ROOT / name).exists()
    ] == []


def test_every_thread_is_on_the_page_of_threads():
    page = (ROOT / "docs" / "threads.md").read_text()
    sources = (ROOT / "src" / "celeriac").rglob("*.py")
    starts = r"name=|THREAD = |in_thread\(|Survivor\(|SurvivingLoop\(|DeadlineThread(?:\[[^(]*\])?\("
    started = re.compile(rf'(?:{starts})"(celeriac-[a-z-]+)"')
    names = {name for source in sources for name in started.findall(source.read_text())}
    assert len(names) > 10
    assert {name for name in names if f"`{name}`" not in page} == set()
