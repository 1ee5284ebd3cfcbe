"""`celeriac report`: real runs, and their pages in a real Chromium."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.cli_runner import Ended, jobs, run, run_in_process, started, until

LEDGER = ("--ledger", "ledger.db")
SCRIPT = "<script>window.ran = 1</script>"
IMAGE = "<img src=x onerror='window.ran = 2'>"
BREAKOUT = "\"'></title></style></svg><svg onload='window.ran = 3'>"
MAX_SIZE = 500_000  # bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has hostile texts, retries, failures and a skipped task."""
    folder = tmp_path_factory.mktemp("report")
    file = jobs(
        folder,
        {"key": "good", "command": "echo fine"},
        {"key": SCRIPT, "command": f'echo "{SCRIPT}"; printf \'\\033[31m%s\' "{IMAGE}" >&2; exit 3', "queue": BREAKOUT},
        {"key": BREAKOUT, "command": ["sh", "-c", "exit 4", IMAGE], "env": {"TOKEN": {"secret": "hunter2hunter2"}}},
        {"key": "flaky", "command": "[ $CELERIAC_ATTEMPT = 2 ]", "retries": 1, "retry_delay": 0},
        {"key": "shown", "command": "echo $TOKEN; exit 5", "env": {"TOKEN": {"secret": "hunter2hunter2"}}},
        {"key": "skipped", "command": "true", "needs": [SCRIPT]},
    )
    assert run("run", file, *LEDGER, "--name", f"run {IMAGE}", cwd=folder).status == 1
    return folder


def make(folder: Path, *arguments: str) -> Ended:
    return run_in_process("report", *arguments, *LEDGER, cwd=folder)


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    ended = make(folder, "-o", "page.html")
    assert (ended.status, ended.out) == (0, "page.html\n")
    return folder / "page.html"


# — in a browser —


def test_no_text_of_a_run_becomes_a_part_of_the_page(browser: Browser, page: Path):
    browser.open(page)
    driver = browser.driver
    assert driver.execute_script("return window.ran") is None
    assert driver.execute_script("return document.querySelectorAll('script, img, link, iframe, [onload]').length") == 0
    assert driver.title == f"run {IMAGE} – run report"
    text = driver.execute_script("return document.body.textContent")
    for part in (SCRIPT, IMAGE, BREAKOUT, "exit code 3", "exit code 4"):
        assert part in text, part
    assert "\x1b" not in text
    assert browser.console() == []


def test_the_policy_of_the_page_forbids_scripts_and_the_network(browser: Browser, page: Path):
    browser.open(page)
    inject = """
        const script = document.createElement('script'); script.textContent = 'window.ran = 4';
        const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/x.png';
        document.body.append(script, image); return window.ran"""
    assert browser.driver.execute_script(inject) is None
    until(lambda: "127.0.0.1:9" in str(browser.console()), "a refusal in the console")


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, False), (1400, True), (2500, True)])
def test_a_page_has_no_serious_fault_at_any_width(browser: Browser, page: Path, width: int, dark: bool):
    browser.open(page)
    browser.view(width, 900, dark=dark)
    assert browser.serious_faults() == []
    assert browser.overflow() == 0


def test_print_shows_what_is_folded(browser: Browser, page: Path):
    browser.open(page)
    browser.driver.execute_script("document.querySelectorAll('details').forEach(each => each.open = false)")
    is_shown = "return document.querySelector('details pre').checkVisibility()"
    assert browser.driver.execute_script(is_shown) is False
    browser.view(1000, 900, media="print")
    assert browser.driver.execute_script(is_shown) is True


# — what it says —


def test_a_report_has_the_numbers_of_the_run_and_no_secret(page: Path):
    text = page.read_text()
    tiles = {label: value for value, label in re.findall(r"<li class=\"\w*\"><b>([^<]*)</b><span>([^<]*)", text)}
    del tiles["run time of all attempts"]
    assert tiles == {"tasks": "6", "succeeded": "2", "failed": "3", "skipped": "1", "retries": "1"}
    assert "3 tasks failed" in text
    assert "hunter2" not in text
    assert "******" in text


def test_a_run_that_goes_on_gets_a_report_so_far(tmp_path):
    busy = "touch began; until [ -e go ]; do sleep 0.05; done"
    file = jobs(tmp_path, {"key": "done", "command": "true"}, {"key": "busy", "command": busy})
    with started("run", file, "-j1", *LEDGER, cwd=tmp_path) as celeriac:
        until((tmp_path / "began").exists, "the start of the second task")
        until(lambda: "busy: running" in make(tmp_path, "-o", "-").out, "the task in the report")
        so_far = make(tmp_path, "-o", "-").out
        celeriac.kill()
    interrupted = make(tmp_path, "-o", "-").out
    assert "It has not ended: this is how it stood at" in so_far
    assert "It was interrupted, and no process runs it" in interrupted


def test_a_run_without_any_attempt_has_a_page(tmp_path, browser):
    file = jobs(tmp_path, {"key": "a", "command": "true"})
    assert run_in_process("submit", file, *LEDGER, cwd=tmp_path).status == 0
    assert make(tmp_path).out == "jobs.html\n"
    browser.open(tmp_path / "jobs.html")
    assert "waits for a service" in browser.driver.execute_script("return document.body.textContent")
    assert browser.serious_faults() == []


def test_a_malformed_row_is_left_out_with_a_line(folder, tmp_path):
    with (
        closing(sqlite3.connect(folder / "ledger.db")) as source,
        closing(sqlite3.connect(tmp_path / "ledger.db")) as copy,
    ):
        source.backup(copy)
        with copy:
            copy.execute("UPDATE celeriac_task SET execution = '{' WHERE key = 'good'")
    ended = run("report", "-o", "-", *LEDGER, cwd=tmp_path)
    assert (ended.status, ended.out.count("<b>1</b><span>succeeded")) == (0, 1)
    assert "'good' is malformed" in ended.err


# — the file —


def test_only_a_report_is_overwritten(folder, tmp_path):
    for name in ("jobs.jsonl", "ledger.db"):
        before = (folder / name).read_bytes()
        ended = make(folder, "-o", name)
        assert (ended.status, ended.err) == (
            2, f"celeriac: --output: {name} exists and is no report; remove it, or name another file\n",
        )  # fmt: skip
        assert (folder / name).read_bytes() == before
    assert make(folder, "-o", "twice.html").status == make(folder, "-o", "twice.html").status == 0
    assert [file.name for file in folder.iterdir() if file.name.startswith(".celeriac")] == []


def test_the_default_name_is_that_of_the_run_and_names_no_other_folder(folder):
    ended = make(folder)
    (name,) = [file.name for file in folder.glob("run*.html")]
    assert (ended.status, ended.out) == (0, f"{name}\n")
    assert "/" not in name


@pytest.mark.parametrize("target", ["missing/page.html", "."])
def test_a_file_that_cannot_be_written_is_one_line(folder, target):
    ended = make(folder, "-o", target)
    assert ended.status == 2
    assert re.fullmatch(rf"celeriac: --output: {re.escape(target)}.*; name a file .*\n", ended.err)


def test_a_report_can_be_written_to_a_pipe_and_to_standard_output(folder):
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with started("report", "-o", "pipe", *LEDGER, cwd=folder) as celeriac:
            until(lambda: b"<!doctype html>" in (read_some(reader, 100) or b""), "the beginning of the page")
            until(lambda: read_some(reader, 65_536) == b"", "the end of the page")
            assert celeriac.wait().status == 0
    finally:
        os.close(reader)
    assert make(folder, "-o", "-").out.endswith("</html>")


def read_some(reader: int, size: int) -> bytes | None:
    """Return what a pipe has; b"" after its end, None while it has nothing."""
    try:
        return os.read(reader, size)
    except BlockingIOError:
        return None


def test_a_large_run_has_a_small_page(tmp_path):
    file = jobs(tmp_path, {"key": "k", "command": "echo '\"<&>\"' >&2; exit 3"})
    assert run("run", file, *LEDGER, cwd=tmp_path).status == 1
    columns = "id, digest, payload, priority, arrived, state, attempt, lost, moved, revoking, reason, detail, execution"
    copies = f"""
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 5000)
        INSERT INTO celeriac_task (run, key, place, {columns})
        SELECT run, 'k<' || n, n, {columns} FROM celeriac_task, numbers WHERE key = 'k'"""
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger, ledger:
        ledger.execute(copies)
        ledger.execute("UPDATE celeriac_run SET counts = NULL")
    assert make(tmp_path).status == 0
    text = (tmp_path / "jobs.html").read_text()
    assert "The first 100 of 5,001 failed tasks" in text
    assert len(text) < MAX_SIZE
