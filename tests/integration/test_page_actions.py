"""Changes that an operator makes on the page, and the page of a viewer. Each change is recorded in the ledger."""

from __future__ import annotations

import json
from contextlib import contextmanager
from urllib.parse import quote

import httpx
import pytest
from selenium.webdriver.common.by import By

from tests.support.browser import Browser
from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.page_data import EVIL_QUEUE, IMAGE, SCRIPT
from tests.support.web_host import OPERATOR, READER, token_file, web_server

LEDGER = ("--ledger", "ledger.db")
EVIL_WORKER = "w<svg onload=window.hacked=1>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("actions")


@pytest.fixture(scope="module")
def url(folder):
    submit(folder, "first")
    with web_server(folder, *LEDGER) as (url, _):
        yield url


@pytest.fixture(scope="module")
def guarded_url(folder, url):
    """A server of the same ledger that asks for a token."""
    with web_server(folder, *LEDGER, env={"CELERIAC_WEB_TOKEN_FILE": token_file(folder)}) as (url, _):
        yield url


def submit(folder, name: str) -> str:
    """Submit a run that no service takes."""
    file = jobs(folder, {"key": "a", "command": "true", "priority": 3}, {"key": "b", "command": "true"})
    assert run("submit", file, *LEDGER, "--name", name, cwd=folder).status == 0
    return name


def task_in(folder, name: str, key: str) -> dict[str, object]:
    shown = run_in_process("show", name, *LEDGER, "--json", cwd=folder).out
    tasks: list[dict[str, object]] = [json.loads(line) for line in shown.splitlines()]
    (task,) = (task for task in tasks if task["key"] == key)
    return task


def click(browser: Browser, selector: str) -> None:
    browser.driver.find_element(By.CSS_SELECTOR, selector).click()


def confirm(browser: Browser, link: str) -> str:
    """Follow a link to a confirmation, say yes, and return the sentence of the page after it."""
    ask(browser, link)
    assert browser.serious_faults() == []
    return agree(browser)


def ask(browser: Browser, link: str) -> None:
    click(browser, f".actions a[href^='/confirm/{link}']")
    until(lambda: browser.driver.find_elements(By.CSS_SELECTOR, "dialog[open] button"), "the dialog")


def agree(browser: Browser) -> str:
    """Send the form of the dialog. Return the sentence of the next page."""
    browser.driver.execute_script("window.isOld = true")
    click(browser, "dialog button")
    shown = "return window.isOld ? null : document.querySelector('.notice')?.innerText"
    until(lambda: browser.driver.execute_script(shown), "the sentence about the change")
    return str(browser.driver.execute_script(shown))


def without_faults(browser: Browser) -> bool:
    return browser.console() == [] and browser.driver.execute_script("return window.hacked") is None


def test_a_task_is_cancelled_and_run_again(browser, folder, url):
    name = submit(folder, "one")
    browser.open(f"{url}/task?run={name}&key=a")
    ask(browser, "cancel")
    click(browser, "dialog [data-close]")
    assert task_in(folder, name, "a")["state"] == "waiting"
    assert "cancelled" in confirm(browser, "cancel")
    task = task_in(folder, name, "a")
    assert (task["state"], task["reason"], task_in(folder, name, "b")["state"]) == ("revoked", "revoked", "waiting")
    assert confirm(browser, "retry") == "1 task is queued again."
    assert task_in(folder, name, "a")["state"] == "waiting"
    events = json.loads(run_in_process("explain", "a", "--run", name, *LEDGER, "--json", cwd=folder).out)
    assert [move["state"] for move in events["lives"][0]["moves"]] == ["revoked"]
    assert without_faults(browser)


def test_a_priority_is_changed(browser, folder, url):
    name = submit(folder, "urgent")
    browser.open(f"{url}/task?run={name}&key=b")
    ask(browser, "priority")
    field = browser.driver.find_element(By.CSS_SELECTOR, "dialog input[name=priority]")
    field.clear()
    field.send_keys("7")
    assert agree(browser) == "The task has priority 7 now."
    assert task_in(folder, name, "b")["priority"] == 7
    timeline = "return document.getElementById('timeline').innerText"
    words = "priority changed from 0 to 7, asked by the page (operator)"
    until(lambda: words in browser.driver.execute_script(timeline), "the change in the timeline")
    explained = run_in_process("explain", "b", "--run", name, *LEDGER, cwd=folder).out
    assert "priority changed from 0 to 7" in explained
    browser.driver.refresh()
    assert not browser.driver.find_elements(By.CSS_SELECTOR, ".notice")
    assert without_faults(browser)


def test_a_run_is_cancelled_and_retried(browser, folder, url):
    name = submit(folder, "whole")
    browser.open(f"{url}/run?run={name}")
    assert confirm(browser, "cancel") == "2 tasks were revoked."
    assert {task_in(folder, name, key)["state"] for key in "ab"} == {"revoked"}
    assert confirm(browser, "retry") == "2 tasks are queued again."
    assert {task_in(folder, name, key)["state"] for key in "ab"} == {"waiting"}
    assert without_faults(browser)


def test_a_live_run_is_cancelled_through_its_owner_and_then_says_how_to_retry_it(browser, folder, url):
    file = jobs(folder, {"key": "a", "command": "sleep 600"}, {"key": "b", "command": "true"}, name="live.jsonl")
    with started("run", file, *LEDGER, "--name", "own", "-j", "1", cwd=folder) as celeriac:
        until(lambda: '"running"' in run_in_process("show", "own", *LEDGER, "--json", cwd=folder).out, "the start")
        browser.open(f"{url}/task?run=own&key=b")
        shown = {link.text for link in browser.driver.find_elements(By.CSS_SELECTOR, ".actions a")}
        assert shown == {"Priority…", "Cancel…"}
        browser.open(f"{url}/run?run=own")
        change_limits_and_pauses(browser, folder, url)
        assert "revoked" in confirm(browser, "cancel")
        assert celeriac.wait().status == 1
    assert [task_in(folder, "own", key)["state"] for key in "ab"] == ["revoked", "success"]
    browser.open(f"{url}/run?run=own")
    assert not browser.driver.find_elements(By.CSS_SELECTOR, ".actions a")
    advice = browser.driver.find_element(By.CSS_SELECTOR, ".actions").text
    assert advice == "To run again what did not succeed: celeriac retry own"
    assert browser.serious_faults() == []
    browser.open(f"{url}/task?run=own&key=b")
    advice = browser.driver.find_element(By.CSS_SELECTOR, ".actions").text
    assert advice == "To run it again: celeriac retry own --key b"
    assert without_faults(browser)


def change_limits_and_pauses(browser: Browser, folder, url) -> None:
    """Pause the live run, give it one more slot, and resume it: nothing starts meanwhile."""
    assert confirm(browser, "pause") == "The run is paused: it starts nothing more."
    ask(browser, "parallelism")
    field = browser.driver.find_element(By.CSS_SELECTOR, "dialog input[name=parallelism]")
    assert field.get_attribute("value") == "1"
    field.clear()
    field.send_keys("2")
    assert agree(browser) == "The parallelism of the run is 2 now."
    assert task_in(folder, "own", "b")["state"] == "waiting"
    paused = browser.driver.find_element(By.CSS_SELECTOR, "#summary .paused").text
    assert paused.startswith("paused by the page (operator)")
    for width in (320, 768, 1400):
        browser.view(width, 900)
        assert browser.overflow() == 0
    assert confirm(browser, "resume") == "The run is resumed."
    until(lambda: task_in(folder, "own", "b")["state"] == "success", "the other task")
    refused = httpx.get(f"{url}/confirm/parallelism?run=first", headers={"accept": "text/html"})
    assert (refused.status_code, "live celeriac run" in refused.text) == (404, True)


def test_a_run_and_a_queue_of_it_are_paused_and_resumed(browser, folder, url):
    name = submit(folder, "waits")
    browser.open(f"{url}/run?run={name}")
    assert confirm(browser, "pause") == "The run is paused: it starts nothing more."
    assert run_in_process("pause", name, "--queue", "gpu", *LEDGER, cwd=folder).status == 0
    shown = {link.text for link in browser.driver.find_elements(By.CSS_SELECTOR, ".actions a")}
    assert shown == {"Resume…", "Cancel…"}
    ask(browser, "resume")
    effect = "Its tasks start again. Its queue gpu stays paused."
    assert browser.driver.find_element(By.CSS_SELECTOR, "dialog p").text == effect
    assert agree(browser) == "The run is resumed."
    ask(browser, "resume")
    assert browser.driver.find_element(By.CSS_SELECTOR, "dialog p").text == "Tasks of its queue gpu start again."
    assert agree(browser) == "The run is resumed."
    assert not browser.driver.find_elements(By.CSS_SELECTOR, ".actions a[href^='/confirm/resume']")
    assert without_faults(browser)


def test_a_confirmation_needs_no_script_but_the_token_of_its_page(folder, url):
    name = submit(folder, "plain")
    address = f"{url}/confirm/cancel?run={name}&key=a"
    with httpx.Client(headers={"origin": url}) as client:
        page = client.get(address).text
        token = page.partition('name="csrf" value="')[2].partition('"')[0]
        assert client.post(address, data={"csrf": "wrong"}).status_code == 403
        assert client.post(address, data={"csrf": token}, headers={"origin": "http://evil.example"}).status_code == 403
        assert task_in(folder, name, "a")["state"] == "waiting"
        answer = client.post(address, data={"csrf": token})
        assert (answer.status_code, answer.headers["location"].partition("&notice")[0]) == (
            303,
            f"/task?run={name}&key=a",
        )
        refused = client.post(f"{url}/confirm/priority?run={name}&key=a", data={"csrf": token, "priority": "high"})
        assert (refused.status_code, "not a whole number" in refused.text) == (422, True)
    assert task_in(folder, name, "a")["state"] == "revoked"


@contextmanager
def logged_in(browser: Browser, url: str, token: str):
    browser.open(url)
    browser.driver.find_element(By.CSS_SELECTOR, "input[name=token]").send_keys(token)
    click(browser, "button")
    until(lambda: browser.driver.find_elements(By.CSS_SELECTOR, "#tiles"), "the overview")
    yield
    click(browser, "header form button")
    until(lambda: browser.driver.find_elements(By.CSS_SELECTOR, "input[name=token]"), "the form for a token")


def test_a_viewer_sees_no_actions(browser, folder, guarded_url):
    name = submit(folder, "watched")
    with logged_in(browser, guarded_url, READER):
        for path in (f"/run?run={name}", f"/task?run={name}&key=a"):
            browser.open(guarded_url + path)
            assert browser.driver.find_element(By.CSS_SELECTOR, ".role").text == "read-only"
            assert not browser.driver.find_elements(By.CSS_SELECTOR, "a[data-confirm]")
        browser.open(f"{guarded_url}/confirm/cancel?run={name}")
        assert "only an operator" in browser.driver.find_element(By.TAG_NAME, "main").text
    assert task_in(folder, name, "a")["state"] == "waiting"


def test_an_operator_logs_in_and_changes_something(browser, folder, guarded_url):
    name = submit(folder, "guarded")
    browser.open(guarded_url)
    assert browser.serious_faults() == []
    colour = "return getComputedStyle(document.querySelector('button')).backgroundColor"
    assert browser.driver.execute_script(colour) == "rgb(31, 107, 72)"  # its policy admits its style
    assert not any("Content Security Policy" in line for line in browser.console())
    with logged_in(browser, guarded_url, OPERATOR):
        browser.open(f"{guarded_url}/run?run={name}")
        assert confirm(browser, "cancel") == "2 tasks were revoked."


def test_the_waiting_tasks_of_a_ledger_alone_are_shown_by_queue(browser, folder, url):
    file = jobs(
        folder, {"key": "a", "command": "true", "queue": "gpu"}, {"key": "b", "command": "true", "queue": "gpu"}
    )
    browser.open(url)
    assert run("submit", file, *LEDGER, "--name", "queues", cwd=folder).status == 0
    text = "return document.getElementById('queues')?.innerText.replace(/\\s+/g, ' ') ?? ''"
    until(lambda: "gpu 2" in browser.driver.execute_script(text), "the queue with its tasks")
    assert browser.driver.execute_script(text).startswith("Waiting by queue")
    assert browser.serious_faults() == []
    assert without_faults(browser)


def test_a_page_shows_changes_by_itself(browser, folder, url):
    file = jobs(folder, {"key": IMAGE, "command": "echo begun; until test -e go; do sleep 0.05; done; echo over"})
    with started("run", file, *LEDGER, "--name", "live", "--output", "out", cwd=folder) as celeriac:
        until(lambda: "window.hacked" in run_in_process("show", "live", *LEDGER, "--json", cwd=folder).out, "the task")
        browser.open(f"{url}/task?run=live&key={quote(IMAGE)}")
        shown = "return document.getElementById('content').innerText"
        until(lambda: "begun" in browser.driver.execute_script(shown), "the first line of the output")
        until(lambda: "Executor " in browser.driver.execute_script(shown), "the answer of the executor")
        browser.driver.execute_script("window.same = true")
        (folder / "go").touch()
        until(lambda: "over" in browser.driver.execute_script(shown), "the last line of the output")
        until(lambda: "ended: success" in browser.driver.execute_script(shown), "the end")
        assert browser.driver.execute_script("return window.same") is True
        assert celeriac.wait().status == 0
    assert without_faults(browser)


def test_a_worker_is_shown_with_its_tasks_and_drained(browser, shared_redis, folder):
    submit(folder, "before")
    options = ("--broker", shared_redis.url)
    queues = ("--concurrency", "3", "--queues", f"default,{EVIL_QUEUE}")
    file = jobs(
        folder,
        {"key": SCRIPT, "queue": EVIL_QUEUE, "command": "until test -e end; do sleep 0.05; done"},
        name="work.jsonl",
    )
    with (
        started("worker", *options, "--name", EVIL_WORKER, *queues, cwd=folder) as worker,
        started("run", file, *options, *LEDGER, "--name", "work", cwd=folder) as celeriac,
        web_server(folder, *LEDGER, *options) as (url, _),
    ):
        browser.open(url)
        text = "return document.getElementById('workers')?.innerText ?? ''"
        until(lambda: SCRIPT in browser.driver.execute_script(text), "the task of the worker")
        assert f"default, {EVIL_QUEUE}" in browser.driver.execute_script(text)
        assert EVIL_WORKER in browser.driver.execute_script(text)
        headings = browser.driver.find_element(By.CSS_SELECTOR, "#queues thead").get_attribute("textContent")
        assert headings == "QueueWaitingWaiting at the brokerOldestSlots"
        assert browser.serious_faults() == []
        assert "takes nothing more" in confirm(browser, "pause")
        until(lambda: "paused" in browser.driver.execute_script(text), "the state of the worker")
        assert "by the page (operator)" in browser.driver.execute_script(text)
        for width in (320, 768, 1400):
            browser.view(width, 900)
            assert browser.overflow() == 0
        assert "takes tasks again" in confirm(browser, "resume")
        until(lambda: "live" in browser.driver.execute_script(text), "the state of the worker")
        sentence = confirm(browser, "drain")
        assert EVIL_WORKER in sentence
        assert "takes nothing more" in sentence
        until(lambda: "draining" in browser.driver.execute_script(text), "the state of the worker")
        until(lambda: "asked by the page (operator)" in browser.driver.execute_script(text), "who has asked for it")
        (folder / "end").touch()
        assert worker.wait().status == 0
        assert celeriac.wait().status == 0
        assert without_faults(browser)
