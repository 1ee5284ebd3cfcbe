"""`--on-end` and `--notify`: real runs and services, a real web server, and real commands."""

from __future__ import annotations

import json
import signal
import sqlite3
import ssl
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from celeriac.config.notice_targets import NoticeTargets
from celeriac.json_types.runs import Notice
from celeriac.ledger.inputs import RunInputs
from celeriac.runs import notices
from celeriac.runs.notices import CommandCall, post
from celeriac.runs.service_notices import targets_of
from tests.support.cli_runner import Ended, jobs, run, run_in_process, started, until
from tests.support.service_host import running_service
from tests.support.web_hook import WebHook, web_hook

LEDGER = ("--ledger", "ledger.db")
KEEP = "cat >> told; echo >> told"
GOOD, BAD = {"key": "good", "command": "true"}, {"key": "bad", "command": "exit 3"}


@pytest.fixture
def hook() -> Iterator[WebHook]:
    with web_hook() as server:
        yield server


def told(folder: Path) -> list[dict[str, Any]]:
    """Return the notices that the command `KEEP` got."""
    file = folder / "told"
    notices = [json.loads(line) for line in file.read_text().splitlines() if line] if file.exists() else []
    for each in notices:
        msgspec.convert(each, Notice)
    return notices


def run_jobs(folder: Path, *arguments: str, lines: tuple[dict[str, Any], ...] = (GOOD, BAD), **options: Any) -> Ended:
    ended = run("run", jobs(folder, *lines), *LEDGER, *arguments, cwd=folder, **options)
    assert "SECRET" not in ended.out + ended.err
    return ended


# — a run —


def test_a_command_and_a_url_get_the_summary(tmp_path, hook):
    (tmp_path / "url").write_text(hook.url)
    ended = run_jobs(tmp_path, "--on-end", KEEP, "--notify-file", "url", "--json")
    [notice], [posted] = told(tmp_path), hook.posted
    assert (ended.status, "celeriac:" in ended.err) == (1, False)
    assert notice == posted.body
    assert {name: value for name, value in notice.items() if name in ended.summary} == ended.summary
    assert notice["event"] == "end"
    assert notice["text"].startswith("run jobs has ended: 2 tasks: 1 succeeded, 1 failed; ")
    assert notice["text"].endswith(", exit status 1; failed: bad (exit code 3)")
    assert (posted.target, posted.headers["Content-Type"]) == ("/hook/SECRET?token=HIDDEN", "application/json")


def test_the_first_failure_is_told_once_and_first(tmp_path, hook):
    lines = (
        BAD,
        {"key": "worse", "command": "exit 4"},
        {"key": "late", "command": "until [ -e go ]; do sleep 0.05; done"},
    )
    command = ("run", jobs(tmp_path, *lines), *LEDGER, "-j1", "--on-end", KEEP, "--notify-first-failure")
    with started(*command, "--notify", hook.url, cwd=tmp_path) as celeriac:
        hook.wait_for(1)  # while the run goes on
        (tmp_path / "go").touch()
        assert celeriac.wait().status == 1
    first, end = [posted.body for posted in hook.posted]
    assert told(tmp_path) == [first, end]
    assert (first["event"], first["exit_status"], [each["key"] for each in first["failures"]]) == (
        "first_failure",
        None,
        ["bad"],
    )
    assert (end["event"], end["exit_status"], end["failed"]) == ("end", 1, 2)


def test_a_run_without_a_failure_and_one_without_a_ledger_are_told(tmp_path):
    ended = run("run", "--on-end", KEEP, "--notify-first-failure", "--", "sh", "-c", "echo said; exit 0", cwd=tmp_path)
    assert (ended.status, ended.out) == (0, "said\n")
    assert [(each["event"], each["run"], each["exit_status"]) for each in told(tmp_path)] == [("end", None, 0)]


def test_an_interrupted_run_is_told(tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "touch began; sleep 60"}, {"key": "b", "command": "true"})
    with started("run", file, "-j1", *LEDGER, "--on-end", KEEP, cwd=tmp_path) as celeriac:
        until((tmp_path / "began").exists, "the start of the first task")
        celeriac.signal(signal.SIGINT)
        celeriac.signal(signal.SIGTERM)
        ended = celeriac.wait()
    [notice] = told(tmp_path)
    assert (ended.status, notice["exit_status"], notice["interrupted"], notice["never_ran"]) == (130, 130, True, 1)


def test_standard_output_is_left_to_the_summary_and_secrets_to_the_run(tmp_path, hook):
    (tmp_path / "url").write_text(hook.url)
    variables = {"CELERIAC_NOTIFY_FILE": "url", "CELERIAC_ON_END": "echo said; env > environment"}
    ended = run_jobs(tmp_path, "--json", env=variables)
    assert ended.summary["failed"] == 1
    assert "said\n" in ended.err
    environment = (tmp_path / "environment").read_text().splitlines()
    assert "CELERIAC_EVENT=end" in environment
    assert not [
        line for line in environment if line.startswith(("CELERIAC_NOTIFY", "CELERIAC_ON_END", "CELERIAC_LEDGER"))
    ]
    assert len(hook.posted) == 1


def test_a_run_that_the_command_starts_does_not_start_it_again(tmp_path):
    (tmp_path / "celeriac.toml").write_text(f"on_end = '{KEEP}; $AGAIN run --ledger none -- true'\n")
    ended = run_jobs(tmp_path, env={"AGAIN": f"{sys.executable} -m celeriac"})
    assert (ended.status, len(told(tmp_path))) == (1, 1)


# — what goes wrong —


@pytest.mark.parametrize(
    ("command", "problem"),
    [("exit 4", "ended with exit code 4"), ("kill -9 $$", "was ended by SIGKILL"), ("exec < /dev/null; true", None)],
)
def test_a_command_that_fails_is_one_line_and_changes_nothing(tmp_path, command, problem):
    ended = run_jobs(tmp_path, "--on-end", command, "--json", lines=(GOOD,))
    lines = [line for line in ended.err.splitlines() if line.startswith("celeriac: ")]
    assert (ended.status, ended.summary["exit_status"]) == (0, 0)
    assert lines == ([] if problem is None else [f"celeriac: the end of the run: the command of --on-end {problem}"])


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (404, "HTTP 404 Not Found"),
        (307, "it redirects to another address (HTTP 307); give that one"),
    ],
)
def test_a_server_that_refuses_is_one_line_and_changes_nothing(tmp_path, hook, status, problem):
    hook.status, hook.headers = status, {"Location": "file:///etc/passwd"}
    ended = run_jobs(tmp_path, "--notify", hook.url, lines=(GOOD,))
    expected = f"celeriac: the end of the run was not reported to {hook.shown}: {problem}\n"
    assert (ended.status, len(hook.posted)) == (0, 1)
    assert ended.err.endswith(expected)


def test_an_interrupt_ends_the_report_and_what_it_has_started_but_not_the_status(tmp_path):
    file = jobs(tmp_path, GOOD)
    command = ("run", file, *LEDGER, "--on-end", "sleep 60 & touch began; wait")
    with started(*command, cwd=tmp_path) as celeriac:
        until((tmp_path / "began").exists, "the start of the command")
        celeriac.signal(signal.SIGINT)
        ended = celeriac.wait()
        celeriac.wait_until_nothing_is_alive()
    assert ended.status == 0
    assert ended.err.endswith("celeriac: interrupted while the end of the run was being reported\n")


def test_a_command_that_takes_too_long_is_ended_with_what_it_has_started(tmp_path, monkeypatch):
    monkeypatch.setattr(notices, "COMMAND_TIMEOUT", 0.3)
    monkeypatch.setattr(notices, "TERM_TIMEOUT", 0.3)
    marks = (
        f"trap '' TERM; (trap '' TERM; sleep 60; touch {tmp_path}/survived) & echo $! > {tmp_path}/pid; wait; sleep 60"
    )
    assert CommandCall().run(marks, b"{}", "end") == "was ended: it ran for 0.3 s"
    until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline").exists(), "the end of its child")


def test_a_server_that_does_not_answer_is_given_up(hook, monkeypatch):
    monkeypatch.setattr(notices, "URL_TIMEOUT", 0.3)
    hook.may_answer.clear()
    problem = post(hook.url, b"{}")
    assert problem is not None
    assert "timed out" in problem


def test_a_certificate_is_checked(monkeypatch, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with web_hook(context) as hook:
        problem = post(hook.url, b"{}")
        assert problem is not None
        assert "CERTIFICATE_VERIFY_FAILED" in problem
        assert hook.posted == []
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert post(hook.url, b"{}") is None
        assert len(hook.posted) == 1


def test_a_proxy_of_the_environment_is_used_and_a_login_is_sent(hook, monkeypatch):
    monkeypatch.setenv("http_proxy", hook.url.partition("/hook")[0])
    assert post("http://me:p%40ss@example.invalid/x?token=y", b"{}") is None
    [posted] = hook.posted
    assert posted.target == "http://example.invalid/x?token=y"
    assert (posted.headers["Authorization"], posted.headers["Host"]) == ("Basic bWU6cEBzcw==", "example.invalid")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/SECRET",
        "ftp://h/SECRET",
        "https:///SECRET",
        "SECRET",
        "https://h:99999/SECRET",
        "https://h/SECRET x",
        "https://h/SECRETé",
    ],
)
def test_a_wrong_url_is_refused_before_the_run_without_a_part_of_it(tmp_path, url):
    ended = run_in_process("run", jobs(tmp_path, {"key": "a", "command": "touch ran"}), "--notify", url, cwd=tmp_path)
    assert (ended.status, (tmp_path / "ran").exists()) == (2, False)
    assert ended.err.startswith("celeriac: --notify: ")
    assert "SECRET" not in ended.err


def test_settings_hide_the_command_and_the_path_of_the_url(tmp_path):
    (tmp_path / "celeriac.toml").write_text(
        'on_end = "curl SECRET"\nnotify = "https://u:SECRET@h:8443/SECRET?a=SECRET"\n'
    )
    ended = run_in_process("config", "--json", cwd=tmp_path)
    values = json.loads(ended.out)
    assert (values["on_end"]["value"], values["notify"]["value"]) == ("******", "https://h:8443/******")
    dry = run_in_process("run", jobs(tmp_path, GOOD), "--dry-run", "--notify-first-failure", cwd=tmp_path)
    assert dry.err == (
        "the first failure and the end of the run would be reported to the command of --on-end and https://h:8443/******\n"
    )
    assert "SECRET" not in ended.out + dry.out
    assert "SECRET" not in repr(NoticeTargets(command="SECRET", url="https://h/SECRET"))


# — what a run remembers —


@pytest.mark.parametrize("arguments", [("retry",), ("run", "jobs.jsonl", "--resume-failed")])
def test_a_run_goes_on_with_its_notices(tmp_path, hook, arguments):
    (tmp_path / "url").write_text(hook.url)
    run_jobs(tmp_path, "--on-end", KEEP, "--notify-file", "url")
    ended = run(*arguments, *LEDGER, cwd=tmp_path)
    assert f"goes on as it began, with --on-end COMMAND --notify-file {tmp_path}/url\n" in ended.err
    assert len(told(tmp_path)) == len(hook.posted) == 2
    run(*arguments, *LEDGER, "--on-end", "touch other", cwd=tmp_path)
    assert (len(told(tmp_path)), len(hook.posted), (tmp_path / "other").exists()) == (2, 3, True)


# — a service —


def submitted(folder: Path, *arguments: str, lines: tuple[dict[str, Any], ...] = (GOOD, BAD)) -> None:
    ended = run("submit", jobs(folder, *lines), *LEDGER, *arguments, cwd=folder)
    assert (ended.status, ended.err) == (0, "")


def inputs(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        [(text,)] = ledger.execute("SELECT inputs FROM celeriac_input").fetchall()
    return str(text)


def test_a_service_tells_the_first_failure_and_the_end_of_a_submitted_run(tmp_path, hook):
    (tmp_path / "url").write_text(hook.url)
    submitted(tmp_path, "--notify-file", "url", "--on-end", KEEP, "--notify-first-failure")
    with running_service(tmp_path, "one", "ledger.db") as service:
        first, end = [posted.body for posted in hook.wait_for(2)]
        until(lambda: "notice_due" not in inputs(tmp_path), "the note that the end is reported")
        until(lambda: len(told(tmp_path)) == 2, "both notices")
        service.celeriac.signal(signal.SIGTERM)
        assert service.wait_for_end() == 0
        log = service.log
    assert "SECRET" not in log
    assert (first["event"], end["event"]) == ("first_failure", "end")
    numbers = {name: end[name] for name in ("run", "tasks", "succeeded", "failed", "skipped", "exit_status")}
    assert numbers == {"run": "jobs", "tasks": 2, "succeeded": 1, "failed": 1, "skipped": 0, "exit_status": 1}
    assert told(tmp_path) == [first, end]
    assert [each["detail"] for each in end["failures"]] == ["exit code 3"]


def test_an_end_is_told_again_if_the_service_is_killed_while_it_tells_it(tmp_path):
    submitted(tmp_path, "--on-end", f"{KEEP}; until [ -e go ]; do sleep 0.05; done", lines=(GOOD,))
    with running_service(tmp_path, "one", "ledger.db") as one:
        until(lambda: told(tmp_path), "the notice")
        one.celeriac.signal(signal.SIGKILL)
        one.wait_for_end()
        (tmp_path / "go").touch()
        one.celeriac.wait_until_nothing_is_alive()
    assert '"notice_due":' in inputs(tmp_path)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger, ledger:  # as if its time had come
        text = json.dumps({**json.loads(inputs(tmp_path)), "notice_due": 1.0}, separators=(",", ":"))
        ledger.execute("UPDATE celeriac_input SET inputs = ?", (text,))
    with running_service(tmp_path, "two", "ledger.db"):
        until(lambda: len(told(tmp_path)) == 2, "the second notice")
        until(lambda: "notice_due" not in inputs(tmp_path), "the note that the end is reported")
    assert [each["event"] for each in told(tmp_path)] == ["end", "end"]


def test_a_retry_of_a_submitted_run_is_told_by_itself_alone(tmp_path):
    submitted(tmp_path, "--on-end", KEEP)
    assert run("retry", *LEDGER, cwd=tmp_path).status == 1
    assert "notice_due" not in inputs(tmp_path)
    with running_service(tmp_path, "one", "ledger.db"):
        submitted(tmp_path, "--name", "later", "--on-end", "touch later", lines=(GOOD,))
        until((tmp_path / "later").exists, "the end of another run")
    assert len(told(tmp_path)) == 1


def test_the_inputs_of_a_run_name_the_targets():
    assert not targets_of(RunInputs())
    assert targets_of(RunInputs(notify="https://h/")) == NoticeTargets(url="https://h/")
