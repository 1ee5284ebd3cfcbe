"""The page in a real Chromium: what it shows, what it lets hostile texts do, and how it is used by keys."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from celeriac.airflow.page.rendering import STATIC as AIRFLOW_STATIC
from celeriac.airflow.page.rendering import make_templates, moment
from celeriac.airflow.page.wording import Place, TaskFacts, sentence
from celeriac.cluster.status_parts import WorkerStatus
from celeriac.web.page.rendering import STATIC
from tests.support.browser import Browser
from tests.support.cli_runner import jobs, run, until
from tests.support.page_data import ABSENT, EVIL_KEYS, EVIL_QUEUE, IMAGE, SCRIPT, write_evil, write_mixed
from tests.support.web_host import web_server

VENDOR = STATIC / "vendor"
PAGES = [
    "/",
    "/runs",
    "/run?run=mixed&text=good-00",
    "/run?run=mixed&state=failed",
    "/task?run=mixed&key=bad",
    "/run?run=none",
    "/none",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_mixed(folder)
    write_evil(folder)
    with web_server(folder, "--ledger", "ledger.db") as (url, _):
        yield url


def address(path: str, **parameters: str) -> str:
    return f"{path}?{urlencode(parameters)}"


def text_of(browser: Browser, selector: str) -> str:
    return browser.driver.find_element(By.CSS_SELECTOR, selector).text


def keys_shown(browser: Browser) -> list[str]:
    rows = "return [...document.querySelectorAll('#results tbody tr')].map((row) => row.dataset.key)"
    keys: list[str] = browser.driver.execute_script(rows)
    return keys


def wait_until_live(browser: Browser) -> None:
    until(lambda: text_of(browser, "#live") == "live", "the first event of the stream")


def check_clean(browser: Browser, *, status: int = 200) -> None:
    """Fail if the page has broken its policy, if a script has failed, or if a text has run."""
    refused = [line for line in browser.console() if status == 200 or f"status of {status}" not in line]
    assert refused == []
    assert browser.driver.execute_script("return window.hacked") is None


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_serious_fault_and_fits_its_window(browser, url, page):
    for width, dark in ((400, True), (768, False), (1400, False), (2500, True)):
        browser.view(width, 900, dark=dark)
        browser.open(url + page)
        assert browser.overflow() == 0, width
        if width < 2500:
            assert browser.serious_faults() == [], (width, dark)
        check_clean(browser, status=404 if page.endswith("none") else 200)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_needs_no_script(url, page):
    answer = httpx.get(url + page, headers={"accept": "text/html"})
    assert answer.status_code == (404 if page.endswith("none") else 200)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert " style=" not in answer.text
    assert answer.text.count("<script") == answer.text.count(" defer></script>")


def test_the_overview_shows_failures_and_the_latest_runs(browser, url):
    browser.open(url)
    assert "exit code" in text_of(browser, "#failures")
    assert SCRIPT in text_of(browser, "#latest")
    assert browser.driver.find_elements(By.CSS_SELECTOR, "#throughput canvas")
    wait_until_live(browser)
    check_clean(browser)


@pytest.mark.parametrize("path", ["/", "/runs"])
def test_hostile_names_run_nowhere_in_a_list(browser, url, path):
    browser.open(url + path)
    wait_until_live(browser)
    check_clean(browser)


def test_hostile_texts_run_nowhere_in_a_run(browser, url):
    page = url + address("/run", run=SCRIPT, queue=EVIL_QUEUE, text="")
    browser.open(page)
    wait_until_live(browser)
    assert keys_shown(browser) == list(EVIL_KEYS)
    browser.open(url + address("/run", run=SCRIPT, text=ABSENT))
    assert IMAGE in text_of(browser, "#results td.text")
    browser.open(page)
    assert EVIL_QUEUE in text_of(browser, "#results")
    assert text_of(browser, "h1") == SCRIPT
    check_clean(browser)


@pytest.mark.parametrize("key", EVIL_KEYS)
def test_hostile_texts_run_nowhere_in_a_task(browser, url, key):
    browser.open(url + address("/run", run=SCRIPT))
    at = EVIL_KEYS.index(key)
    browser.driver.find_elements(By.CSS_SELECTOR, "#results .name a")[at].click()
    until(lambda: "/task" in browser.driver.current_url, "the page of the task")
    wait_until_live(browser)
    assert SCRIPT in text_of(browser, "#stdout pre")
    assert text_of(browser, "#stderr pre") == "␛[31m␇"
    assert "␛" in text_of(browser, "h1") or "\x1b" not in key
    check_clean(browser)


def test_hostile_texts_run_nowhere_in_an_explanation(browser, url):
    for key in (*EVIL_KEYS, ABSENT):
        browser.open(url + address("/explain", run=SCRIPT, key=key))
        assert SCRIPT in text_of(browser, ".trail")
        assert text_of(browser, "#answer .now").startswith("ended: failed")
        check_clean(browser)
    assert IMAGE in text_of(browser, "#answer .now")


@pytest.mark.parametrize("action", ["cancel", "retry", "priority"])
def test_hostile_texts_run_nowhere_in_a_confirmation(browser, url, action):
    """The page of its own, as a browser without scripts shows it, and the page about what cannot be done."""
    for key in {"cancel": (*EVIL_KEYS, None), "retry": (IMAGE, None), "priority": (IMAGE,)}[action]:
        named = {} if key is None else {"key": key}
        browser.open(url + address(f"/confirm/{action}", run=SCRIPT, **named))
        assert browser.driver.find_elements(By.CSS_SELECTOR, "main form.confirm input[name=csrf]")
        assert SCRIPT in text_of(browser, "h1") or key not in (SCRIPT, None)
        check_clean(browser)
    browser.open(url + address(f"/confirm/{action}", run=SCRIPT, key=SCRIPT))
    browser.driver.find_element(By.CSS_SELECTOR, ".confirm button").click()
    until(lambda: not browser.driver.find_elements(By.CSS_SELECTOR, ".confirm"), "the answer")
    assert browser.driver.execute_script("return window.hacked") is None
    assert not any("Content Security Policy" in line for line in browser.console())


@pytest.mark.parametrize(
    "page",
    [
        address("/run", run=IMAGE),
        address("/task", run=SCRIPT, key=IMAGE + SCRIPT),
        address("/explain", run=IMAGE, key=SCRIPT),
        address("/confirm/cancel", run=IMAGE),
        address("/confirm/drain", worker=SCRIPT),
        address("/output", run=SCRIPT, key=SCRIPT, stream=SCRIPT),
        address("/run", run=SCRIPT, after=SCRIPT),
        address("/runs", text=SCRIPT, before=IMAGE),
        address("/run", run=SCRIPT, text=SCRIPT, queue=IMAGE, state=SCRIPT, back=SCRIPT),
        "/" + IMAGE,
    ],
)
def test_hostile_texts_of_an_address_run_nowhere(browser, url, page):
    browser.open(url + page)
    assert browser.driver.find_elements(By.CSS_SELECTOR, "main h1")
    assert browser.driver.execute_script("return window.hacked") is None
    assert not any("Content Security Policy" in line for line in browser.console())


def test_the_whole_output_is_plain_text(url):
    answer = httpx.get(url + address("/output", run=SCRIPT, key=SCRIPT, stream="stdout"))
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.text.startswith(SCRIPT)
    assert httpx.get(url + address("/output", run=SCRIPT, key="none")).status_code == 404


def test_filters_are_in_the_address_and_change_the_page_in_place(browser, url):
    browser.open(url + "/run?run=mixed")
    browser.driver.find_element(By.CSS_SELECTOR, "input[value=failed]").click()
    until(lambda: set(keys_shown(browser)) == {"bad", "killed", "again"}, "the failed tasks")
    assert "state=failed" in browser.driver.current_url
    browser.driver.find_element(By.ID, "filter").send_keys("AGAI")
    until(lambda: keys_shown(browser) == ["again"], "the only failed task of this name")
    browser.open(browser.driver.current_url)
    assert keys_shown(browser) == ["again"]
    assert browser.driver.find_element(By.ID, "filter").get_attribute("value") == "AGAI"
    browser.open(url + "/run?run=mixed&queue=network&state=success&text=good-00")
    assert keys_shown(browser) == ["good-001", "good-003", "good-005", "good-007", "good-009"]
    check_clean(browser)


def test_pages_go_forth_and_back(browser, url):
    browser.open(url + "/run?run=mixed")
    first = keys_shown(browser)
    browser.driver.find_element(By.CSS_SELECTOR, "a[rel=next]").click()
    until(lambda: "after=" in browser.driver.current_url, "the next page")
    second = keys_shown(browser)
    assert (len(first), len(second), set(first) & set(second)) == (100, 24, set())
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "a[rel=next]")
    browser.driver.find_element(By.CSS_SELECTOR, "a[rel=prev]").click()
    until(lambda: "after=" not in browser.driver.current_url, "the page before")
    assert keys_shown(browser) == first


def test_runs_are_filtered(browser, url):
    browser.open(url + "/runs?state=ended&text=MIX")
    assert keys_shown(browser) == ["mixed"]
    browser.open(url + "/runs?state=running")
    assert "No run matches" in text_of(browser, "#results")


def test_a_task_shows_its_life(browser, url):
    browser.open(url + "/task?run=mixed&key=again")
    states = [element.text for element in browser.driver.find_elements(By.CSS_SELECTOR, "#timeline td .state")]
    assert states == ["waiting", "running", "waiting", "running", "failed"]
    assert "exit code 4" in text_of(browser, "#summary")
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, "#timeline rect")) == 4
    browser.open(url + "/task?run=mixed&key=bad")
    assert (text_of(browser, "#stdout pre"), text_of(browser, "#stderr pre")) == ("said", "complained")
    browser.open(url + "/task?run=mixed&key=after")
    assert "It has not begun" in text_of(browser, "#stdout")


def test_times_are_local_and_exact_on_hover(browser, url):
    browser.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Tokyo"})
    try:
        browser.open(url + "/task?run=mixed&key=bad")
        shown = browser.driver.find_element(By.CSS_SELECTOR, "#timeline time")
        day, clock = shown.text.split()
        exact = shown.get_attribute("datetime")
        hours = (int(exact[11:13]) + 9) % 24
        assert clock == f"{hours:02}{exact[13:23]}"
        assert "GMT+9" in shown.get_attribute("title")
        assert exact in shown.get_attribute("title")
        assert len(day) == 10
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": ""})


def test_keys_reach_everything(browser, url):
    browser.open(url + "/run?run=mixed")
    body = browser.driver.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert browser.driver.switch_to.active_element.text == "Skip to the content"
    body.send_keys("jjk")
    assert browser.driver.switch_to.active_element.text == "good-000"
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert browser.driver.switch_to.active_element.text == "good-001"
    browser.driver.switch_to.active_element.send_keys("/")
    assert browser.driver.switch_to.active_element.get_attribute("id") == "filter"
    browser.driver.switch_to.active_element.send_keys("/j")
    assert browser.driver.switch_to.active_element.get_attribute("value") == "/j"
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.driver.find_element(By.TAG_NAME, "body").send_keys("r")
    until(lambda: browser.driver.current_url.endswith("/runs"), "the list of runs")


def test_a_ledger_without_runs_teaches_the_next_command(browser, tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "true"})
    assert run("run", file, "--ledger", "ledger.db", "-q", cwd=tmp_path).status == 0
    assert run("prune", "--older-than", "0", "--ledger", "ledger.db", cwd=tmp_path).status == 0
    with web_server(tmp_path, "--ledger", "ledger.db") as (url, _):
        for path, part in (("/", "#latest"), ("/runs", "#results")):
            browser.open(url + path)
            assert "celeriac submit jobs.jsonl" in text_of(browser, part)
            assert browser.serious_faults() == []
        check_clean(browser)


def test_the_files_of_others_are_unchanged():
    lines = [line.split() for line in (VENDOR / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    files = {file.name for file in VENDOR.iterdir()} - {"SHA256SUMS", "README"}
    assert set(sums) == files
    assert {name: hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() for name in files} == sums
    assert {Path(name).stem for name in files if name.endswith(".LICENSE")} == {"htmx", "uPlot"}


def test_a_static_file_is_kept_and_an_unknown_one_is_not_found(url):
    page = httpx.get(url).text
    style = page.partition('rel="stylesheet" href="/static/page.css')[2].partition('"')[0]
    answer = httpx.get(f"{url}/static/page.css{style}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert "immutable" in answer.headers["cache-control"]
    for name in ("../rendering.py", "..%2f..%2fgate.py", "vendor/SHA256SUMS", "none.js"):
        assert httpx.get(f"{url}/static/{name}").status_code == 404


AIRFLOW_TASK = "extract_the_orders_of_the_region_number_7"
AIRFLOW_QUEUE = "a_long_queue_name_for_reports_with_much_memory"
AIRFLOW_WORKER = f"celery@worker-5f7b9c6d4b-x2x7q.airflow.svc.cluster.local{SCRIPT}"


def airflow_values() -> dict[str, dict[str, Any]]:
    """Return the values of each template of the pages within Airflow, with long and hostile names."""
    name = SimpleNamespace(dag=f"daily_customer_report{SCRIPT}", run="manual__2026", task=AIRFLOW_TASK, index=3)
    facts = TaskFacts(state="queued", try_number=1, queue=AIRFLOW_QUEUE, celery_id="an-id", age=600.0)
    event = SimpleNamespace(when=1e9, state=SimpleNamespace(value="queued"), detail=f"{IMAGE} " * 20)
    statement = SimpleNamespace(executor="1@host", words=f"queued: {IMAGE}", events=[event], left_out=2)
    stored = SimpleNamespace(name=name, facts=facts, names={"queue": AIRFLOW_QUEUE, "queued": moment(1e9)})
    place = Place(worker=AIRFLOW_WORKER, worker_age=1.0)
    task = SimpleNamespace(stored=stored, place=place, now=sentence(facts, place), statement=statement, asks=True)
    entry = SimpleNamespace(when=moment(1e9), event="failed", owner="ann", text=f"{SCRIPT} " * 20)
    counts = SimpleNamespace(scheduled=1, queued=2000, running=3, oldest_queued=600.0)
    queue = SimpleNamespace(name=AIRFLOW_QUEUE, is_unserved=True, counts=counts, status=None)
    worker = WorkerStatus(AIRFLOW_WORKER, (AIRFLOW_QUEUE, "default"), 16, 3, heartbeat_age=1e6)
    view = SimpleNamespace(problems=["broker: unavailable"], broker="redis://host/0", backend="db+sqlite://")
    overview = SimpleNamespace(
        team="a team", view=view, totals=counts, queues=[queue], workers=[worker], running={AIRFLOW_WORKER: [name]}
    )
    return {
        "overview.html": {"overviews": [overview], "permitted": {name.dag}},
        "run.html": {"dag": name.dag, "run": name.run, "details": SimpleNamespace(number=300, tasks=[task])},
        "task.html": {"name": name, "details": task, "entries": [entry]},
        "problem.html": {"text": "There is no such page."},
    }


@pytest.mark.parametrize("template", airflow_values())
def test_a_page_within_airflow_has_no_serious_fault_and_fits_its_frame(browser, tmp_path, template):
    base = AIRFLOW_STATIC.parent.as_uri()
    file = tmp_path / "page.html"
    file.write_text(make_templates().get_template(template).render(base=base, **airflow_values()[template]))
    for width, dark in ((330, True), (900, False), (1400, True)):
        browser.view(width, 900, dark=dark)
        browser.open(file)
        assert browser.overflow() == 0, width
        assert browser.serious_faults() == [], (width, dark)
        check_clean(browser)
